//! The page: words that guests read without a call.

use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use proxy_golang_abi as abi;
use proxy_golang_abi::LogLevel;

/// `pxg_page` with words that may change under a reader.
#[repr(C)]
pub(super) struct Page {
    size: u32,
    log_level: AtomicU32,
    draining: AtomicU32,
    reserved0: u32,
    monotonic_ns: AtomicU64,
    realtime_ns: AtomicU64,
}

const _: () = {
    assert!(size_of::<Page>() == size_of::<abi::Page>());
    assert!(offset_of!(Page, log_level) == offset_of!(abi::Page, log_level));
    assert!(offset_of!(Page, draining) == offset_of!(abi::Page, draining));
    assert!(offset_of!(Page, monotonic_ns) == offset_of!(abi::Page, monotonic_ns));
    assert!(offset_of!(Page, realtime_ns) == offset_of!(abi::Page, realtime_ns));
};

/// A host's page. Guests see what is set here with their next load.
#[derive(Clone, Copy)]
pub struct PageHandle(&'static Page);

impl PageHandle {
    /// A page for the rest of the process: guests keep its address.
    pub(crate) fn leak(level: LogLevel) -> Self {
        Self(Box::leak(Box::new(Page {
            size: size_of::<Page>() as u32,
            log_level: AtomicU32::new(level.0),
            draining: AtomicU32::new(0),
            reserved0: 0,
            monotonic_ns: AtomicU64::new(0),
            realtime_ns: AtomicU64::new(0),
        })))
    }

    pub(super) fn as_abi(self) -> *const abi::Page {
        std::ptr::from_ref(self.0).cast()
    }

    /// Records below this level are dropped before they are copied.
    pub fn set_log_level(self, level: LogLevel) {
        self.0.log_level.store(level.0, Relaxed);
    }

    /// What [`PageHandle::set_log_level`] set.
    #[must_use]
    pub fn log_level(self) -> LogLevel {
        LogLevel(self.0.log_level.load(Relaxed))
    }

    /// Tells guests that the host drains.
    pub fn set_draining(self, draining: bool) {
        self.0.draining.store(u32::from(draining), Relaxed);
    }

    /// Both clocks in nanoseconds, as of now: the monotonic one, and the time since 1970-01-01 UTC. To be called at
    /// least once a second while streams exist.
    pub fn set_clock(self, monotonic_ns: u64, realtime_ns: u64) {
        self.0.monotonic_ns.store(monotonic_ns, Relaxed);
        self.0.realtime_ns.store(realtime_ns, Relaxed);
    }
}
