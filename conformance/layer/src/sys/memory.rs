//! Guarded memory for the copies that each side is handed. It becomes inaccessible when its time is over; its address
//! space is used again only after everything else of it has been.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::platform;

pub(super) const PAGE: usize = 4096;
/// Copies of up to this size keep their bytes after their end, so that a late reader that is let through reads what it
/// would have read.
const SMALL: usize = 64 << 10;

/// What a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// An event and its views, for the guest.
    View = 1,
    /// A `pxg_config_in`, for the guest.
    ConfigView = 2,
    /// What a result of `on_event` borrows, for the host.
    Result = 3,
    /// What a `pxg_config_out` borrows, for the host.
    ConfigResult = 4,
    /// What `complete` or `apply` was handed, for the host.
    Handed = 5,
    /// What `log` was handed, for the host.
    Log = 6,
}

impl Kind {
    pub(super) fn from(n: u64) -> Option<Self> {
        Some(match n {
            1 => Self::View,
            2 => Self::ConfigView,
            3 => Self::Result,
            4 => Self::ConfigResult,
            5 => Self::Handed,
            6 => Self::Log,
            _ => return None,
        })
    }
}

/// For which call memory was lent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct For {
    pub(crate) phase: u32,
    pub(crate) stream: u64,
}

/// One copy, indexed by its first page.
#[derive(Default)]
#[repr(C)]
pub(super) struct Record {
    pub(super) start: AtomicU64,
    pub(super) len: AtomicU64,
    /// kind | phase << 32
    pub(super) what: AtomicU64,
    pub(super) stream: AtomicU64,
    pub(super) thread: AtomicU64,
    /// Nanoseconds of the monotonic clock; 0 while it is open.
    pub(super) closed: AtomicU64,
}

pub(super) struct Ring {
    base: usize,
    pages: usize,
    keeps: bool,
    /// First page of the copy that a page belongs to, plus one.
    owner: &'static [AtomicU32],
    records: &'static [Record],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: usize,
    /// Open copies: first page and number of pages, the guard included.
    open: BTreeMap<usize, usize>,
}

/// Guarded memory that is open.
#[derive(Debug)]
pub(crate) struct Slab {
    pub(crate) start: u64,
    pub(crate) len: usize,
    large: bool,
    page: usize,
    pages: usize,
}

fn reserve(len: usize, prot: i32) -> usize {
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            prot,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert!(
        at != libc::MAP_FAILED,
        "cannot reserve address space for guarded copies: {}",
        std::io::Error::last_os_error()
    );
    at as usize
}

impl Ring {
    fn new(pages: usize, keeps: bool) -> Self {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let owner = reserve(pages * size_of::<AtomicU32>(), rw);
        let records = reserve(pages * size_of::<Record>(), rw);
        Self {
            base: reserve(pages * PAGE, libc::PROT_NONE),
            pages,
            keeps,
            // SAFETY: the mapping has room for `pages` zeroed atomics and is never unmapped.
            owner: unsafe { std::slice::from_raw_parts(owner as *const AtomicU32, pages) },
            // SAFETY: as above; zero is valid for a record.
            records: unsafe { std::slice::from_raw_parts(records as *const Record, pages) },
            state: Mutex::default(),
        }
    }

    /// The copy to which the page of `at` belongs. Async-signal-safe.
    fn find(&self, at: usize) -> Option<&'static Record> {
        let page = at.checked_sub(self.base)? / PAGE;
        let first = self
            .owner
            .get(page)?
            .load(Ordering::Acquire)
            .checked_sub(1)?;
        self.records.get(first as usize)
    }

    /// Address space for `n` pages behind the newest copy, round and round past what is open.
    fn place(&self, n: usize) -> Option<usize> {
        let mut s = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = s.next;
        for _ in 0..s.open.len() + 2 {
            if at + n > self.pages {
                at = 0;
            }
            let before = s.open.range(..at + n).next_back();
            match before.map(|(p, k)| p + k).filter(|end| *end > at) {
                Some(end) => at = end,
                None => {
                    s.open.insert(at, n);
                    s.next = at + n;
                    return Some(at);
                }
            }
        }
        None
    }
}

struct Memory {
    small: Ring,
    large: Ring,
}

static MEMORY: OnceLock<Memory> = OnceLock::new();

fn memory() -> &'static Memory {
    MEMORY.get_or_init(|| Memory {
        small: Ring::new((128 << 20) / PAGE, true),
        large: Ring::new((8 << 30) / PAGE, false),
    })
}

fn protect(at: usize, len: usize, prot: i32) {
    // SAFETY: the range belongs to a ring; only its protection changes, which is the point.
    let rc = unsafe { libc::mprotect(at as *mut _, len, prot) };
    assert!(
        rc == 0,
        "mprotect of a guarded copy: {}",
        std::io::Error::last_os_error()
    );
}

/// The copy that `at` points into or just behind, and the address space it lies in. Async-signal-safe.
pub(super) fn find(at: u64) -> Option<&'static Record> {
    let m = MEMORY.get()?;
    let at = usize::try_from(at).ok()?;
    m.small.find(at).or_else(|| m.large.find(at))
}

/// Whether `at` is an address of guarded copies.
pub(crate) fn is_ours(at: u64) -> bool {
    MEMORY.get().is_some_and(|m| {
        [&m.small, &m.large].into_iter().any(|r| {
            let base = r.base as u64;
            (base..base + (r.pages * PAGE) as u64).contains(&at)
        })
    })
}

/// Lets an access through. Async-signal-safe.
pub(super) fn let_through(at: u64) {
    // SAFETY: the caller found `at` in a ring; only the protection of its page changes.
    unsafe {
        libc::mprotect(
            ((at as usize) & !(PAGE - 1)) as *mut _,
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
        );
    }
}

/// Opens `len` bytes that end at an inaccessible page, but for what alignment to 16 leaves free. None: too large.
pub(super) fn open(len: usize, kind: Kind, f: For) -> Option<Slab> {
    let m = memory();
    let large = len > SMALL;
    let ring = if large { &m.large } else { &m.small };
    let pages = len.div_ceil(PAGE).max(1);
    let page = ring.place(pages + 1)?;
    let at = ring.base + page * PAGE;
    protect(at, pages * PAGE, libc::PROT_READ | libc::PROT_WRITE);
    // The page behind may belong to an earlier copy that was let through.
    protect(at + pages * PAGE, PAGE, libc::PROT_NONE);
    let start = (at + pages * PAGE - len) & !15;
    let record = &ring.records[page];
    record.start.store(start as u64, Ordering::Relaxed);
    record.len.store(len as u64, Ordering::Relaxed);
    record
        .what
        .store(kind as u64 | u64::from(f.phase) << 32, Ordering::Relaxed);
    record.stream.store(f.stream, Ordering::Relaxed);
    record.thread.store(platform::tid(), Ordering::Relaxed);
    record.closed.store(0, Ordering::Relaxed);
    let first = u32::try_from(page + 1).unwrap_or(0);
    for o in &ring.owner[page..=page + pages] {
        o.store(first, Ordering::Release);
    }
    Some(Slab {
        start: start as u64,
        len,
        large,
        page,
        pages,
    })
}

impl Slab {
    fn ring(&self) -> &'static Ring {
        if self.large {
            &memory().large
        } else {
            &memory().small
        }
    }

    /// Writes before [`Slab::seal`].
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(
            offset + bytes.len() <= self.len,
            "outside of a guarded copy"
        );
        if bytes.is_empty() {
            return;
        }
        // SAFETY: the range lies inside this copy, which is open and writable and known to nobody yet.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                (self.start as usize + offset) as *mut u8,
                bytes.len(),
            );
        }
    }

    /// Makes it read-only.
    pub(super) fn seal(&self) {
        let at = self.ring().base + self.page * PAGE;
        protect(at, self.pages * PAGE, libc::PROT_READ);
    }

    /// Ends its life: with `poison` every later access is a fault.
    pub(crate) fn close(self, poison: bool) {
        let ring = self.ring();
        let at = ring.base + self.page * PAGE;
        ring.records[self.page]
            .closed
            .store(platform::now_ns(), Ordering::Release);
        if poison {
            protect(at, self.pages * PAGE, libc::PROT_NONE);
        }
        if !ring.keeps {
            // SAFETY: the pages belong to this copy, which ends; their content is not needed any more.
            unsafe { libc::madvise(at as *mut _, self.pages * PAGE, libc::MADV_DONTNEED) };
        }
        ring.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .open
            .remove(&self.page);
    }
}

/// Puts values into a copy, one behind the other.
pub(super) struct Packer {
    pub(super) slab: Slab,
    at: usize,
}

/// Bytes that an array takes at most.
pub(super) fn room<T>(n: usize) -> usize {
    n * size_of::<T>() + 15
}

impl Packer {
    pub(super) fn new(len: usize, kind: Kind, f: For) -> Option<Self> {
        Some(Self {
            slab: open(len, kind, f)?,
            at: 0,
        })
    }

    pub(super) fn bytes(&mut self, b: &[u8]) -> *const u8 {
        let at = self.at;
        self.slab.write(at, b);
        self.at += b.len();
        (self.slab.start as usize + at) as *const u8
    }

    pub(super) fn array<T: proxy_golang_conformance::parts::peek::Plain>(
        &mut self,
        v: &[T],
    ) -> *const T {
        self.at = self.at.next_multiple_of(16);
        self.bytes(proxy_golang_conformance::parts::peek::slice_bytes(v))
            .cast()
    }

    /// Leaves `n` bytes free.
    pub(super) fn skip(&mut self, n: usize) {
        self.at += n;
    }
}
