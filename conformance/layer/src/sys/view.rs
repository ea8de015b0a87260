//! What a host hands in: read through the kernel, so that a bad pointer is a finding and not a crash; compared when the
//! hook returns; and copied for the guest.

use proxy_golang_abi as abi;
use proxy_golang_conformance::parts::peek::{self, Plain};
use proxy_golang_conformance::parts::reader::Range;

use super::memory::{For, Kind, Packer, Slab, room};
use crate::perturb::Dice;

/// More elements than a sane host hands in: not read.
const MAX_ITEMS: u64 = 1 << 16;
/// More bytes than are read of one event.
const MAX_BYTES: usize = 1 << 30;
/// Longest struct that is believed.
const MAX_STRUCT: u32 = 4096;
/// Pieces of memory that the kernel reads with one call.
const IOV_MAX: usize = 1024;

/// Reads many pieces with few system calls, one behind the other. False: some of it can't be read.
fn many(pieces: &[(u64, usize)], out: &mut Vec<u8>) -> bool {
    let total: usize = pieces.iter().map(|(_, n)| n).sum();
    out.clear();
    out.resize(total, 0);
    let mut done = 0;
    for group in pieces.chunks(IOV_MAX) {
        let n: usize = group.iter().map(|(_, n)| n).sum();
        if n == 0 {
            continue;
        }
        let remote: Vec<libc::iovec> = group
            .iter()
            .map(|(at, n)| libc::iovec {
                iov_base: *at as *mut _,
                iov_len: *n,
            })
            .collect();
        let mut left = &mut out[done..done + n];
        let mut skip = 0usize;
        let mut remote = remote.as_slice();
        // The kernel reads at most 2 GiB, and fewer when something can't be read.
        while !left.is_empty() {
            let mut first = remote.to_vec();
            if let Some(f) = first.first_mut() {
                f.iov_base = (f.iov_base as usize + skip) as *mut _;
                f.iov_len -= skip;
            }
            let local = libc::iovec {
                iov_base: left.as_mut_ptr().cast(),
                iov_len: left.len(),
            };
            // SAFETY: `local` is `left`; `first` is only read by the kernel, which checks it.
            let got = unsafe {
                libc::process_vm_readv(
                    libc::getpid(),
                    &raw const local,
                    1,
                    first.as_ptr(),
                    first.len() as libc::c_ulong,
                    0,
                )
            };
            if got <= 0 {
                return false;
            }
            let mut got = got.cast_unsigned();
            left = &mut left[got..];
            while got > 0 {
                let here = remote[0].iov_len - skip;
                if got < here {
                    skip += got;
                    break;
                }
                got -= here;
                skip = 0;
                remote = &remote[1..];
            }
        }
        done += n;
    }
    true
}

/// A string of a view: where it is, and where its copy begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) ptr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u32,
    at: usize,
}

/// A field of a view.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FieldSpan {
    pub(crate) name: Span,
    pub(crate) value: Span,
}

/// Strings in the order in which they were met.
#[derive(Default)]
struct Strings {
    pieces: Vec<(u64, usize)>,
    total: usize,
    problems: Vec<(&'static str, String)>,
}

impl Strings {
    fn span(&mut self, s: abi::Str, what: impl FnOnce() -> String) -> Span {
        let span = Span {
            ptr: s.ptr as u64,
            len: s.len,
            flags: s.flags.0,
            at: self.total,
        };
        let readable = s.len > 0 && !s.ptr.is_null();
        if s.len > 0 && s.ptr.is_null() {
            self.problems.push((
                "PXG-ABI-012",
                format!("{} is NULL with length {}", what(), s.len),
            ));
        }
        let len = if readable { s.len as usize } else { 0 };
        if self.total + len > MAX_BYTES {
            return Span { len: 0, ..span };
        }
        self.pieces.push((s.ptr as u64, len));
        self.total += len;
        span
    }

    fn array<T: Plain>(&mut self, ptr: *const T, count: u64, name: &str) -> Vec<T> {
        if count == 0 {
            return Vec::new();
        }
        if ptr.is_null() {
            self.problems.push((
                "PXG-ABI-012",
                format!("{name} is NULL with a count of {count}"),
            ));
            return Vec::new();
        }
        let read = (count <= MAX_ITEMS)
            .then(|| peek::array::<T>(ptr as u64, usize::try_from(count).unwrap_or(0)).ok())
            .flatten();
        read.unwrap_or_else(|| {
            self.problems.push((
                "PXG-MEM-001",
                format!("{name}: {count} elements at {ptr:p} can't be read"),
            ));
            Vec::new()
        })
    }
}

/// What a host handed in, as it was at the entry of the call.
pub(crate) struct Seen {
    at: u64,
    /// The struct; members beyond the host's `size` are zero.
    pub(crate) size: u32,
    head: Vec<u8>,
    arrays: Vec<(u64, Vec<u8>)>,
    pieces: Vec<(u64, usize)>,
    bytes: Vec<u8>,
    pub(crate) problems: Vec<(&'static str, String)>,
}

impl Seen {
    /// The struct at `at`, of which version 1.0 has `T`.
    fn head<T: Plain>(at: u64) -> Result<(u32, T, Vec<u8>), String> {
        let size = peek::value::<u32>(at).map_err(|_| format!("{at:#x} can't be read"))?;
        let v = peek::prefix::<T>(at, size as usize)
            .map_err(|_| format!("{size} bytes at {at:#x} can't be read"))?;
        let keep = size.min(MAX_STRUCT) as usize;
        let head = peek::bytes(at, keep).map_err(|_| format!("{keep} bytes at {at:#x}"))?;
        Ok((size, v, head))
    }

    fn finish(at: u64, size: u32, head: Vec<u8>, arrays: Vec<(u64, Vec<u8>)>, s: Strings) -> Self {
        let mut seen = Self {
            at,
            size,
            head,
            arrays,
            pieces: s.pieces,
            bytes: Vec::new(),
            problems: s.problems,
        };
        if !many(&seen.pieces, &mut seen.bytes) {
            seen.problems.push((
                "PXG-MEM-001",
                "a string of the view can't be read".to_string(),
            ));
        }
        seen
    }

    pub(crate) fn text(&self, s: &Span) -> &[u8] {
        self.bytes
            .get(s.at..s.at + s.len as usize)
            .filter(|_| s.ptr != 0)
            .unwrap_or_default()
    }

    /// Every byte: the struct, its arrays and strings.
    pub(crate) fn all_bytes(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(self.head.as_slice())
            .chain(self.arrays.iter().map(|(_, b)| b.as_slice()))
            .chain(std::iter::once(self.bytes.as_slice()))
    }

    /// What is different by now: the name of a part, if any.
    pub(crate) fn changed(&self) -> Option<String> {
        if !peek::bytes(self.at, self.head.len()).is_ok_and(|b| b == self.head) {
            return Some("the struct".into());
        }
        for (at, was) in &self.arrays {
            if !peek::bytes(*at, was.len()).is_ok_and(|b| b == *was) {
                return Some(format!("an array of {} bytes", was.len()));
            }
        }
        let mut now = Vec::new();
        if !many(&self.pieces, &mut now) {
            return Some("a string, which can't be read any more".into());
        }
        if now != self.bytes {
            let at = now.iter().zip(&self.bytes).position(|(a, b)| a != b);
            let mut left = at.unwrap_or(0);
            for (_, n) in &self.pieces {
                if left < *n {
                    return Some(format!("byte {left} of a string of {n}"));
                }
                left -= n;
            }
        }
        None
    }

    /// The memory that the guest may point into.
    pub(crate) fn ranges(&self) -> Vec<Range> {
        std::iter::once((self.at, self.head.len() as u64))
            .chain(self.arrays.iter().map(|(at, b)| (*at, b.len() as u64)))
            .chain(self.pieces.iter().map(|(at, n)| (*at, *n as u64)))
            .filter(|(_, n)| *n > 0)
            .collect()
    }
}

/// An event as it was at the entry of `on_event`.
pub(crate) struct SeenEvent {
    pub(crate) seen: Seen,
    pub(crate) raw: abi::Event,
    pub(crate) fields: Vec<FieldSpan>,
    pub(crate) trailers: Vec<FieldSpan>,
    pub(crate) peer_fields: Vec<FieldSpan>,
    pub(crate) peer_trailers: Vec<FieldSpan>,
    pub(crate) chunks: Vec<Span>,
    pub(crate) attrs: Vec<Span>,
}

/// Reads an event.
pub(crate) fn event(at: u64) -> Result<SeenEvent, String> {
    let (size, raw, head) = Seen::head::<abi::Event>(at)?;
    let mut s = Strings::default();
    let mut arrays = Vec::new();
    let mut fields = |ptr: *const abi::Field, n: u64, name: &str, s: &mut Strings| {
        let a = s.array(ptr, n, name);
        arrays.push((ptr as u64, peek::slice_bytes(&a).to_vec()));
        a.iter()
            .enumerate()
            .map(|(i, f)| FieldSpan {
                name: s.span(f.name, || format!("{name}[{i}].name")),
                value: s.span(f.value, || format!("{name}[{i}].value")),
            })
            .collect::<Vec<_>>()
    };
    let all_fields = fields(raw.fields, raw.n_fields, "fields", &mut s);
    let trailers = fields(raw.trailers, raw.n_trailers, "trailers", &mut s);
    let peer_fields = fields(raw.peer_fields, raw.n_peer_fields, "peer_fields", &mut s);
    let peer_trailers = fields(
        raw.peer_trailers,
        raw.n_peer_trailers,
        "peer_trailers",
        &mut s,
    );
    let mut strings = |ptr: *const abi::Str, n: u64, name: &str, s: &mut Strings| {
        let a = s.array(ptr, n, name);
        arrays.push((ptr as u64, peek::slice_bytes(&a).to_vec()));
        a.iter()
            .enumerate()
            .map(|(i, t)| s.span(*t, || format!("{name}[{i}]")))
            .collect::<Vec<_>>()
    };
    let attrs = strings(raw.attrs, raw.n_attrs, "attrs", &mut s);
    let chunks = strings(raw.chunks, raw.n_chunks, "chunks", &mut s);
    arrays.retain(|(_, b)| !b.is_empty());
    Ok(SeenEvent {
        seen: Seen::finish(at, size, head, arrays, s),
        raw,
        fields: all_fields,
        trailers,
        peer_fields,
        peer_trailers,
        chunks,
        attrs,
    })
}

/// A copy that a guest is handed.
pub(crate) struct Copied {
    pub(crate) slab: Slab,
    pub(crate) at: u64,
}

impl SeenEvent {
    pub(crate) fn view_len(&self) -> u64 {
        self.chunks.iter().map(|c| u64::from(c.len)).sum()
    }

    /// The bytes of the body, one behind the other.
    pub(crate) fn body(&self) -> Vec<u8> {
        self.chunks
            .iter()
            .flat_map(|c| self.seen.text(c))
            .copied()
            .collect()
    }

    pub(crate) fn field(&self, f: &FieldSpan) -> (&[u8], &[u8]) {
        (self.seen.text(&f.name), self.seen.text(&f.value))
    }

    /// A read-only copy in guarded memory; with `dice` at another place and in other chunks.
    pub(super) fn copy(&self, dice: Option<&mut Dice>) -> Option<Copied> {
        let lists = [
            &self.fields,
            &self.trailers,
            &self.peer_fields,
            &self.peer_trailers,
        ];
        let body = self.body();
        let mut cuts: Vec<usize> = Vec::new();
        let mut lead = 0;
        if let Some(d) = dice {
            lead = 16 * d.below(64);
            let most = body.len().min(64);
            if most > 0 {
                cuts = (1..1 + d.below(most))
                    .map(|_| d.below(body.len()))
                    .collect();
                cuts.push(body.len());
                cuts.retain(|c| *c > 0);
                cuts.sort_unstable();
                cuts.dedup();
            }
        } else {
            let mut at = 0;
            cuts = self
                .chunks
                .iter()
                .map(|c| {
                    at += self.seen.text(c).len();
                    at
                })
                .collect();
        }
        let n_chunks = cuts.len();
        let total = lead
            + room::<u8>(self.seen.head.len().max(size_of::<abi::Event>()))
            + lists
                .map(|l| room::<abi::Field>(l.len()))
                .iter()
                .sum::<usize>()
            + room::<abi::Str>(n_chunks)
            + room::<abi::Str>(self.attrs.len())
            + self.seen.bytes.len();
        let f = For {
            phase: self.raw.phase.0,
            stream: self.raw.stream,
        };
        let mut p = Packer::new(total, Kind::View, f)?;
        p.skip(lead);
        // The struct is written last, over the room that is left for it here.
        let head_at = p.array(&vec![
            0u8;
            self.seen.head.len().max(size_of::<abi::Event>())
        ]) as u64;
        let offset = usize::try_from(head_at - p.slab.start).unwrap_or(0);
        let string = |p: &mut Packer, s: &Span| abi::Str {
            ptr: match self.seen.text(s) {
                [] => s.ptr as *const u8,
                b => p.bytes(b),
            },
            len: s.len,
            flags: abi::StrFlags(s.flags),
        };
        let mut list = |l: &[FieldSpan]| {
            let v: Vec<abi::Field> = l
                .iter()
                .map(|f| abi::Field {
                    name: string(&mut p, &f.name),
                    value: string(&mut p, &f.value),
                })
                .collect();
            v
        };
        let made = lists.map(|l| list(l));
        let attrs: Vec<abi::Str> = self.attrs.iter().map(|a| string(&mut p, a)).collect();
        let start = p.bytes(&body);
        let mut from = 0;
        let chunks: Vec<abi::Str> = cuts
            .iter()
            .map(|to| {
                let s = abi::Str {
                    ptr: (start as usize + from) as *const u8,
                    len: u32::try_from(to - from).unwrap_or(u32::MAX),
                    flags: abi::StrFlags(0),
                };
                from = *to;
                s
            })
            .collect();
        let mut raw = self.raw;
        let mut put = |to: &mut *const abi::Field, v: &[abi::Field]| {
            if !v.is_empty() {
                *to = p.array(v);
            }
        };
        put(&mut raw.fields, &made[0]);
        put(&mut raw.trailers, &made[1]);
        put(&mut raw.peer_fields, &made[2]);
        put(&mut raw.peer_trailers, &made[3]);
        if !chunks.is_empty() {
            raw.chunks = p.array(&chunks);
            raw.n_chunks = chunks.len() as u64;
        }
        if !attrs.is_empty() {
            raw.attrs = p.array(&attrs);
        }
        let mut head = self.seen.head.clone();
        let known = peek::as_bytes(&raw);
        let n = head.len().min(known.len());
        head[..n].copy_from_slice(&known[..n]);
        p.slab.write(offset, &head);
        p.slab.seal();
        Some(Copied {
            slab: p.slab,
            at: head_at,
        })
    }
}

/// A `pxg_config_in` as it was at the entry of `on_config_new`.
pub(crate) struct SeenConfig {
    pub(crate) seen: Seen,
    pub(crate) raw: abi::ConfigIn,
    pub(crate) filter: Span,
    pub(crate) name: Span,
    pub(crate) bytes: Span,
}

/// Reads a `pxg_config_in`.
pub(crate) fn config(at: u64) -> Result<SeenConfig, String> {
    let (size, raw, head) = Seen::head::<abi::ConfigIn>(at)?;
    let mut s = Strings::default();
    let filter = s.span(raw.filter, || "filter".into());
    let name = s.span(raw.name, || "name".into());
    let bytes = s.span(raw.bytes, || "bytes".into());
    Ok(SeenConfig {
        seen: Seen::finish(at, size, head, Vec::new(), s),
        raw,
        filter,
        name,
        bytes,
    })
}

impl SeenConfig {
    /// A read-only copy in guarded memory.
    pub(super) fn copy(&self) -> Option<Copied> {
        let head_len = self.seen.head.len().max(size_of::<abi::ConfigIn>());
        let total = room::<u8>(head_len) + self.seen.bytes.len();
        let mut p = Packer::new(total, Kind::ConfigView, For::default())?;
        let head_at = p.array(&vec![0u8; head_len]) as u64;
        let offset = usize::try_from(head_at - p.slab.start).unwrap_or(0);
        let mut raw = self.raw;
        for (to, s) in [
            (&mut raw.filter, &self.filter),
            (&mut raw.name, &self.name),
            (&mut raw.bytes, &self.bytes),
        ] {
            if let b @ [_, ..] = self.seen.text(s) {
                to.ptr = p.bytes(b);
            }
        }
        let mut head = self.seen.head.clone();
        let known = peek::as_bytes(&raw);
        let n = head.len().min(known.len());
        head[..n].copy_from_slice(&known[..n]);
        p.slab.write(offset, &head);
        p.slab.seal();
        Some(Copied {
            slab: p.slab,
            at: head_at,
        })
    }
}
