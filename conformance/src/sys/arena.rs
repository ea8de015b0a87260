//! Guarded memory for everything that the host lends: each piece ends (or begins) at an inaccessible page, becomes
//! inaccessible when its time is over, and its addresses never come again.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

pub(crate) const PAGE: usize = 4096;
/// Address space for all that is ever lent, and how many pieces: it costs nothing until it is used.
const RESERVED: usize = 64 << 30;
const MAX_VIEWS: usize = 4 << 20;
/// The same under valgrind, which keeps books of each byte of it.
const RESERVED_UNDER_VALGRIND: usize = 1 << 30;
const MAX_VIEWS_UNDER_VALGRIND: usize = 128 << 10;
/// Set for a process that runs under valgrind.
pub(crate) const UNDER_VALGRIND: &str = "PXG_CONFORMANCE_UNDER_VALGRIND";

/// What a piece of lent memory is; decides which rule a wrong access breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    Event = 1,
    ConfigIn = 2,
    HostTable = 3,
    Page = 4,
    Name = 5,
    Value = 6,
    Chunk = 7,
    Attr = 8,
    Fields = 9,
    Chunks = 10,
    Attrs = 11,
    ConfigText = 12,
    Result = 13,
    ConfigOut = 14,
    GuestTable = 15,
    ScratchOps = 16,
    Scratch = 17,
    ScratchMore = 18,
    HostText = 19,
    Extension = 20,
}

impl Kind {
    pub(crate) fn from(n: u64) -> Option<Self> {
        const ALL: [Kind; 20] = [
            Kind::Event,
            Kind::ConfigIn,
            Kind::HostTable,
            Kind::Page,
            Kind::Name,
            Kind::Value,
            Kind::Chunk,
            Kind::Attr,
            Kind::Fields,
            Kind::Chunks,
            Kind::Attrs,
            Kind::ConfigText,
            Kind::Result,
            Kind::ConfigOut,
            Kind::GuestTable,
            Kind::ScratchOps,
            Kind::Scratch,
            Kind::ScratchMore,
            Kind::HostText,
            Kind::Extension,
        ];
        ALL.into_iter().find(|k| *k as u64 == n)
    }
}

/// On which side of a piece the inaccessible page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// The piece ends at it: reading past the end is found.
    Right,
    /// The piece begins at it: reading before the start is found.
    Left,
}

/// Lent memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) start: u64,
    pub(crate) len: u64,
    map: usize,
    map_len: usize,
    record: usize,
}

#[repr(C)]
pub(super) struct Record {
    pub(super) map: AtomicU64,
    pub(super) map_end: AtomicU64,
    pub(super) start: AtomicU64,
    pub(super) len: AtomicU64,
    /// kind | index << 32
    pub(super) what: AtomicU64,
    /// phase | hook << 32
    pub(super) call: AtomicU64,
    pub(super) stream: AtomicU64,
    pub(super) event: AtomicU64,
    /// Nanoseconds of the monotonic clock; 0 while it is open.
    pub(super) closed: AtomicU64,
}

pub(super) struct Arena {
    pub(super) base: usize,
    reserved: usize,
    pub(super) records: &'static [Record],
    pub(super) count: AtomicUsize,
    next: Mutex<usize>,
}

static ARENA: OnceLock<Arena> = OnceLock::new();

/// Which call a piece is lent for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lent {
    pub(crate) hook: u32,
    pub(crate) phase: u32,
    pub(crate) stream: u64,
    pub(crate) event: u64,
}

pub(super) fn get() -> Option<&'static Arena> {
    ARENA.get()
}

pub(crate) fn now_ns() -> u64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `t` is a valid out-parameter; the call is async-signal-safe.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut t) };
    t.tv_sec.cast_unsigned() * 1_000_000_000 + t.tv_nsec.cast_unsigned()
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
        "cannot reserve address space for the guarded arena: {}",
        std::io::Error::last_os_error()
    );
    at as usize
}

fn arena() -> &'static Arena {
    ARENA.get_or_init(|| {
        let (reserved, views) = if std::env::var_os(UNDER_VALGRIND).is_some() {
            (RESERVED_UNDER_VALGRIND, MAX_VIEWS_UNDER_VALGRIND)
        } else {
            (RESERVED, MAX_VIEWS)
        };
        let records = reserve(
            views * size_of::<Record>(),
            libc::PROT_READ | libc::PROT_WRITE,
        );
        Arena {
            reserved,
            base: reserve(reserved, libc::PROT_NONE),
            // SAFETY: the mapping has room for `views` zeroed records, is never unmapped, and zero is valid for them.
            records: unsafe { std::slice::from_raw_parts(records as *const Record, views) },
            count: AtomicUsize::new(0),
            next: Mutex::new(0),
        }
    })
}

fn protect(at: usize, len: usize, prot: i32) {
    // SAFETY: the range belongs to the arena; only its protection changes, which is the point.
    let rc = unsafe { libc::mprotect(at as *mut _, len, prot) };
    assert!(
        rc == 0,
        "mprotect of lent memory: {}",
        std::io::Error::last_os_error()
    );
}

/// Lends `len` bytes with `content` at their start and zeros behind it, writable until [`Piece::seal`].
pub(crate) fn lend(
    kind: Kind,
    index: u32,
    align: Align,
    len: usize,
    content: &[u8],
    lent: Lent,
) -> Piece {
    let a = arena();
    let pages = len.div_ceil(PAGE).max(1);
    let mut next = a
        .next
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    // The page before the first one and the page behind are inaccessible; the one behind is the next piece's first.
    let map = a.base + *next + PAGE;
    let map_len = pages * PAGE;
    *next += map_len + PAGE;
    assert!(
        *next + PAGE <= a.reserved,
        "the guarded arena is used up: one case lends too much memory"
    );
    protect(map, map_len, libc::PROT_READ | libc::PROT_WRITE);
    let start = match align {
        Align::Right => map + map_len - len,
        Align::Left => map,
    };
    let n = a.count.load(Ordering::Relaxed);
    assert!(n < a.records.len(), "too many views in one case");
    let r = &a.records[n];
    r.map.store(map as u64, Ordering::Relaxed);
    r.map_end.store((map + map_len) as u64, Ordering::Relaxed);
    r.start.store(start as u64, Ordering::Relaxed);
    r.len.store(len as u64, Ordering::Relaxed);
    r.what
        .store(kind as u64 | u64::from(index) << 32, Ordering::Relaxed);
    r.call.store(
        u64::from(lent.phase) | u64::from(lent.hook) << 32,
        Ordering::Relaxed,
    );
    r.stream.store(lent.stream, Ordering::Relaxed);
    r.event.store(lent.event, Ordering::Relaxed);
    r.closed.store(0, Ordering::Relaxed);
    a.count.store(n + 1, Ordering::Release);
    drop(next);
    let piece = Piece {
        start: start as u64,
        len: len as u64,
        map,
        map_len,
        record: n,
    };
    piece.write(0, content);
    piece
}

impl Piece {
    /// Writes host data; before [`Piece::seal`] or into what stays writable.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len as usize);
        if bytes.is_empty() {
            return;
        }
        // SAFETY: the range lies inside this piece, which is mapped, writable and not aliased by a Rust reference.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                (self.start as usize + offset) as *mut u8,
                bytes.len(),
            );
        }
    }

    /// Fills the whole accessible range, canaries included, with `byte`.
    pub(crate) fn fill(&self, byte: u8) {
        // SAFETY: the range is this piece's own mapping and writable.
        unsafe { std::ptr::write_bytes(self.map as *mut u8, byte, self.map_len) };
    }

    /// Bytes of the mapping around the piece that are not `byte` any more.
    pub(crate) fn canary_broken(&self, byte: u8) -> Option<i64> {
        // SAFETY: the mapping is accessible until `close`; a guest's thread may write at the same time, which is read
        // as volatile bytes.
        let at = |i: usize| unsafe { ((self.map + i) as *const u8).read_volatile() };
        let head = self.start as usize - self.map;
        let tail = head + self.len as usize;
        (0..head)
            .chain(tail..self.map_len)
            .find(|i| at(*i) != byte)
            .map(|i| i.cast_signed() as i64 - head.cast_signed() as i64)
    }

    /// Makes it read-only.
    pub(crate) fn seal(&self) {
        protect(self.map, self.map_len, libc::PROT_READ);
    }
}

/// Ends the life of `pieces`: every later access is a fault. Neighbours go together, with the guard pages between them.
pub(crate) fn close(pieces: &[Piece]) {
    let now = now_ns();
    for p in pieces {
        arena().records[p.record]
            .closed
            .store(now, Ordering::Release);
    }
    for run in pieces.chunk_by(|a, b| a.map + a.map_len + PAGE == b.map) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            continue;
        };
        let len = last.map + last.map_len - first.map;
        protect(first.map, len, libc::PROT_NONE);
        let watched = super::userfault::watch(first.map, len);
        // SAFETY: the range is that of pieces which end; their content is not needed any more.
        unsafe { libc::madvise(first.map as *mut _, len, libc::MADV_DONTNEED) };
        if watched {
            // Missing pages stop whoever comes, and the kernel too.
            protect(first.map, len, libc::PROT_READ | libc::PROT_WRITE);
        }
    }
}

/// Whether `at` is inside the arena.
pub(crate) fn is_ours(at: u64) -> bool {
    ARENA
        .get()
        .is_some_and(|a| (a.base as u64..(a.base + a.reserved) as u64).contains(&at))
}

impl Arena {
    /// The piece whose mapping, or the guard pages beside it, holds `at`. Async-signal-safe.
    pub(super) fn find(&self, at: u64) -> Option<&'static Record> {
        let n = self.count.load(Ordering::Acquire);
        let records = &self.records[..n];
        let i = records.partition_point(|r| r.map_end.load(Ordering::Relaxed) <= at);
        // `at` is below the end of record i: inside it, or in the guard between i - 1 and i. An access just behind a
        // right-aligned piece belongs to the piece before the guard.
        let inside = records
            .get(i)
            .filter(|r| at >= r.map.load(Ordering::Relaxed));
        let before = i.checked_sub(1).map(|i| &records[i]);
        let closer_to_next = records.get(i).is_some_and(|next| {
            let start = next.map.load(Ordering::Relaxed);
            at < start && start - at <= 64
        });
        match (inside, before) {
            (Some(r), _) => Some(r),
            (None, Some(_)) if closer_to_next => records.get(i),
            (None, Some(r)) => Some(r),
            (None, None) => records.get(i),
        }
    }
}
