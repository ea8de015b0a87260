//! Loads a guest, lays out what it is handed, and reads what it hands back.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use proxy_golang_abi as abi;
use proxy_golang_abi::GuestInitV1;

use super::arena::{self, Align, Kind, Lent, Piece};
use super::peek;
use crate::host::model::{Event, Field};

/// A loaded library.
#[derive(Clone, Copy)]
pub(crate) struct Library {
    pub(super) init: GuestInitV1,
    /// Where the library was mapped.
    pub(crate) base: u64,
}

/// Loads by path, with all symbols resolved now and none made global.
pub(crate) fn load(path: &Path) -> Result<Library, String> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: a NUL-terminated path; running the library's constructors is what is asked for, in a process of its own.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        // SAFETY: dlerror answers a string of the C library's that lives until the next call on this thread.
        let text = unsafe {
            let e = libc::dlerror();
            if e.is_null() {
                "no text".to_string()
            } else {
                CStr::from_ptr(e).to_string_lossy().into_owned()
            }
        };
        return Err(text);
    }
    // SAFETY: a live handle and a NUL-terminated name.
    let at = unsafe { libc::dlsym(handle, c"pxg_guest_init_v1".as_ptr()) };
    if at.is_null() {
        return Err("the library has no symbol pxg_guest_init_v1".into());
    }
    // SAFETY: `info` is a valid out-parameter.
    let base = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        libc::dladdr(at, &raw mut info);
        info.dli_fbase as u64
    };
    Ok(Library {
        // SAFETY: the specification says that a symbol of this name is a function of this type (PXG-LOAD-001).
        init: unsafe { std::mem::transmute::<*mut libc::c_void, GuestInitV1>(at) },
        base,
    })
}

/// How memory is handed over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) align: Align,
    /// Bytes of 0xEE behind what version 1.0 knows, in what the host hands in.
    pub(crate) tail: usize,
    /// An empty string has a pointer that must not be followed, instead of NULL.
    pub(crate) wild_empty: bool,
    pub(crate) scratch_ops: usize,
    pub(crate) scratch: usize,
    /// Most bytes that `scratch_more` grants per call.
    pub(crate) scratch_more: u64,
    /// Fill `scratch_ops` with operations whose pointers lead here, as if from an earlier call.
    pub(crate) stale_ops: Option<(u64, u64)>,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            align: Align::Right,
            tail: 0,
            wild_empty: false,
            scratch_ops: 32,
            scratch: 4096,
            scratch_more: 1 << 20,
            stale_ops: None,
        }
    }
}

/// Puts values into guarded memory for one call.
pub(super) struct Builder {
    pub(super) layout: Layout,
    pub(super) lent: Lent,
    pub(super) pieces: Vec<Piece>,
}

impl Builder {
    pub(super) fn new(layout: Layout, lent: Lent) -> Self {
        Self {
            layout,
            lent,
            pieces: Vec::new(),
        }
    }

    /// A sealed view.
    pub(super) fn view(&mut self, kind: Kind, index: u32, bytes: &[u8]) -> u64 {
        let p = arena::lend(
            kind,
            index,
            self.layout.align,
            bytes.len(),
            bytes,
            self.lent,
        );
        p.seal();
        self.pieces.push(p);
        p.start
    }

    pub(super) fn text(&mut self, kind: Kind, index: u32, bytes: &[u8], flags: u32) -> abi::Str {
        let ptr = if bytes.is_empty() && !self.layout.wild_empty {
            0
        } else if bytes.is_empty() {
            // The address of an inaccessible page.
            let p = arena::lend(kind, index, Align::Right, 0, &[], self.lent);
            p.seal();
            self.pieces.push(p);
            p.start
        } else {
            self.view(kind, index, bytes)
        };
        abi::Str {
            ptr: ptr as *const u8,
            len: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            flags: abi::StrFlags(flags),
        }
    }

    pub(super) fn array<T: peek::Plain>(
        &mut self,
        kind: Kind,
        index: u32,
        items: &[T],
    ) -> (*const T, u64) {
        if items.is_empty() {
            return (std::ptr::null(), 0);
        }
        (
            self.view(kind, index, peek::slice_bytes(items)) as *const T,
            items.len() as u64,
        )
    }

    fn fields(&mut self, which: u32, fields: &[Field]) -> (*const abi::Field, u64) {
        let raw: Vec<abi::Field> = fields
            .iter()
            .enumerate()
            .map(|(i, f)| {
                let index = which << 24 | u32::try_from(i).unwrap_or(0);
                abi::Field {
                    name: self.text(Kind::Name, index, &f.name, 0),
                    value: self.text(Kind::Value, index, &f.value, f.flags),
                }
            })
            .collect();
        self.array(Kind::Fields, which, &raw)
    }

    /// A struct that begins with its size, read-only, with the layout's tail behind it.
    pub(super) fn sized<T: peek::Plain>(&mut self, kind: Kind, v: &T) -> *const T {
        let mut bytes = peek::as_bytes(v).to_vec();
        bytes.resize(bytes.len() + self.layout.tail, 0xEE);
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&size.to_ne_bytes());
        self.view(kind, 0, &bytes) as *const T
    }

    pub(super) fn event(&mut self, e: &Event) -> *const abi::Event {
        let (fields, n_fields) = self.fields(0, &e.fields);
        let (trailers, n_trailers) = self.fields(1, &e.trailers);
        let (peer_fields, n_peer_fields) = self.fields(2, &e.peer_fields);
        let (peer_trailers, n_peer_trailers) = self.fields(3, &e.peer_trailers);
        let chunks: Vec<abi::Str> = e
            .chunks
            .iter()
            .enumerate()
            .map(|(i, c)| self.text(Kind::Chunk, u32::try_from(i).unwrap_or(0), c, 0))
            .collect();
        let (chunks, n_chunks) = self.array(Kind::Chunks, 0, &chunks);
        let attrs: Vec<abi::Str> = e
            .attrs
            .iter()
            .enumerate()
            .map(|(i, a)| match a {
                Some(bytes) => self.text(Kind::Attr, u32::try_from(i).unwrap_or(0), bytes, 0),
                None => abi::Str::ABSENT,
            })
            .collect();
        let (attrs, n_attrs) = self.array(Kind::Attrs, 0, &attrs);
        self.sized(
            Kind::Event,
            &abi::Event {
                size: 0,
                phase: e.phase,
                flags: e.flags,
                worker: e.worker,
                config: e.config,
                user: e.user,
                stream: e.stream,
                token: e.token,
                arg: e.arg,
                fields,
                n_fields,
                trailers,
                n_trailers,
                peer_fields,
                n_peer_fields,
                peer_trailers,
                n_peer_trailers,
                chunks,
                n_chunks,
                body_offset: e.body_offset,
                attrs,
                n_attrs,
            },
        )
    }

    /// A struct lent to be filled: surrounded by canaries.
    pub(super) fn out<T: peek::Plain>(&mut self, kind: Kind, v: &T, tail: usize) -> Piece {
        let mut bytes = peek::as_bytes(v).to_vec();
        bytes.resize(bytes.len() + tail, 0);
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&size.to_ne_bytes());
        let p = arena::lend(kind, 0, self.layout.align, bytes.len(), &[], self.lent);
        p.fill(CANARY);
        p.write(0, &bytes);
        self.pieces.push(p);
        p
    }

    /// Scratch memory: `n` bytes.
    pub(super) fn scratch(&mut self, kind: Kind, n: usize, content: &[u8]) -> Piece {
        let p = arena::lend(kind, 0, self.layout.align, n, &[], self.lent);
        p.fill(CANARY);
        p.write(0, content);
        self.pieces.push(p);
        p
    }

    /// The operations that an earlier call might have left.
    pub(super) fn scratch_ops(&self) -> Vec<u8> {
        let n = self.layout.scratch_ops;
        let Some((low, high)) = self.layout.stale_ops else {
            return vec![0; n * size_of::<abi::Op>()];
        };
        let ops: Vec<abi::Op> = (0..n as u64)
            .map(|i| {
                let at = low + (i * 0x7_e000 + 64) % (high - low).max(1);
                let text = abi::Str {
                    ptr: at as *const u8,
                    len: 24,
                    flags: abi::StrFlags(0),
                };
                abi::Op {
                    kind: abi::OpKind::HEADER_SET,
                    flags: abi::OpFlags(0),
                    target: abi::Target::HEADERS,
                    u0: 0,
                    key: text,
                    val: abi::Buf::borrowed(text),
                }
            })
            .collect();
        peek::slice_bytes(&ops).to_vec()
    }

    pub(super) fn close(&self) {
        arena::close(&self.pieces);
    }
}

pub(super) const CANARY: u8 = 0xC5;
