//! What the operating system is asked.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// Nanoseconds of the monotonic clock. Async-signal-safe.
pub(crate) fn now_ns() -> u64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `t` is a valid out-parameter.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut t) };
    t.tv_sec.cast_unsigned() * 1_000_000_000 + t.tv_nsec.cast_unsigned()
}

thread_local! {
    static TID: u64 = raw_tid();
}

/// Async-signal-safe.
pub(super) fn raw_tid() -> u64 {
    // SAFETY: gettid takes nothing.
    unsafe { libc::syscall(libc::SYS_gettid) }.cast_unsigned()
}

/// The calling thread's id.
pub(crate) fn tid() -> u64 {
    TID.try_with(|t| *t).unwrap_or_else(|_| raw_tid())
}

/// The file of this copy of the layer.
pub(crate) fn own_file() -> PathBuf {
    // SAFETY: `info` is a valid out-parameter, and the address is that of a function of this library.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(own_file as *const libc::c_void, &raw mut info) == 0
            || info.dli_fname.is_null()
        {
            return PathBuf::new();
        }
        let name = OsStr::from_bytes(CStr::from_ptr(info.dli_fname).to_bytes());
        std::fs::canonicalize(name).unwrap_or_else(|_| name.into())
    }
}

/// Directed to a process, not to a thread.
const PROCESS_SIGNALS: [(i32, &str); 8] = [
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGCHLD, "SIGCHLD"),
    (libc::SIGALRM, "SIGALRM"),
];

/// Signals of the process that have a handler and are not blocked in this thread.
pub(crate) fn open_signals() -> Vec<&'static str> {
    // SAFETY: out-parameters of the right types; nothing is changed.
    unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask);
        PROCESS_SIGNALS
            .into_iter()
            .filter(|(n, _)| {
                let mut old: libc::sigaction = std::mem::zeroed();
                libc::sigaction(*n, std::ptr::null(), &raw mut old);
                old.sa_sigaction != libc::SIG_DFL
                    && old.sa_sigaction != libc::SIG_IGN
                    && libc::sigismember(&raw const mask, *n) == 0
            })
            .map(|(_, name)| name)
            .collect()
    }
}

/// Size of the calling thread's stack, in bytes.
pub(crate) fn stack_size() -> Option<usize> {
    // SAFETY: `attr` is initialised by pthread_getattr_np and destroyed once.
    unsafe {
        let mut attr: libc::pthread_attr_t = std::mem::zeroed();
        if libc::pthread_getattr_np(libc::pthread_self(), &raw mut attr) != 0 {
            return None;
        }
        let mut size = 0;
        let rc = libc::pthread_attr_getstacksize(&raw const attr, &raw mut size);
        libc::pthread_attr_destroy(&raw mut attr);
        (rc == 0).then_some(size)
    }
}

static FORKED: AtomicBool = AtomicBool::new(false);

extern "C" fn in_child() {
    FORKED.store(true, Ordering::Relaxed);
}

/// From now on [`forked`] is true in children.
pub(super) fn watch_forks() {
    // SAFETY: the handler only stores into a static; the layer is never unloaded (see `load::stay`).
    unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
}

/// This process was forked after the guest was loaded.
pub(crate) fn forked() -> bool {
    FORKED.load(Ordering::Relaxed)
}

/// Where files are mapped: path, first and last address, offset.
pub(crate) fn modules() -> Vec<(PathBuf, u64, u64, u64)> {
    let Ok(text) = std::fs::read_to_string("/proc/self/maps") else {
        return Vec::new();
    };
    text.lines()
        .filter_map(|l| {
            let mut words = l.split_ascii_whitespace();
            let (low, high) = words.next()?.split_once('-')?;
            let _perms = words.next()?;
            let offset = u64::from_str_radix(words.next()?, 16).ok()?;
            let path = words.nth(2)?;
            path.starts_with('/').then_some(())?;
            Some((
                PathBuf::from(path),
                u64::from_str_radix(low, 16).ok()?,
                u64::from_str_radix(high, 16).ok()?,
                offset,
            ))
        })
        .collect()
}

/// Runs at exit, and if the host unloads the layer against the rules.
extern "C" fn at_exit() {
    crate::at_exit();
}

#[used]
// SAFETY: the section is a list of functions without parameters that the loader calls at exit.
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = at_exit;

/// Gives the processor to others once.
pub(crate) fn yield_now() {
    std::thread::yield_now();
}
