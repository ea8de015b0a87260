//! What the kernel says about threads, descriptors and memory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;

/// Attributes of the calling thread that belong to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) policy: i32,
    pub(crate) affinity: Vec<usize>,
    pub(crate) timer_slack_ns: i32,
    pub(crate) blocked_signals: Vec<i32>,
}

/// Those of the calling thread.
pub(crate) fn attributes() -> Attributes {
    // SAFETY: getters with valid out-parameters for the calling thread.
    unsafe {
        let mut cpus: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut cpus);
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask);
        Attributes {
            policy: libc::sched_getscheduler(0),
            affinity: (0..1024).filter(|i| libc::CPU_ISSET(*i, &cpus)).collect(),
            timer_slack_ns: libc::prctl(libc::PR_GET_TIMERSLACK),
            blocked_signals: (1..65)
                .filter(|s| libc::sigismember(&raw const mask, *s) == 1)
                .collect(),
        }
    }
}

/// Blocks the process-directed signals of a host in the calling thread, as chapter 2 asks for before loading; returns
/// what restores the mask.
pub(crate) fn block_signals() -> SignalMask {
    // SAFETY: valid sets; the calling thread's own mask.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for s in [
            libc::SIGTERM,
            libc::SIGHUP,
            libc::SIGINT,
            libc::SIGQUIT,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGCHLD,
            libc::SIGWINCH,
        ] {
            libc::sigaddset(&raw mut set, s);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut old);
        SignalMask(old)
    }
}

pub(crate) struct SignalMask(libc::sigset_t);

impl SignalMask {
    pub(crate) fn restore(self) {
        // SAFETY: a mask that the thread had.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut())
        };
    }
}

/// The calling thread.
pub(crate) fn current() -> u64 {
    // SAFETY: takes nothing.
    unsafe { libc::syscall(libc::SYS_gettid) }.cast_unsigned()
}

/// Time of the calling thread: on a processor, and waiting for one.
pub(crate) fn run_and_queue_ns() -> Option<(u64, u64)> {
    thread_local! {
        // It is asked before and after each event, so it stays open.
        static FILE: Option<fs::File> = fs::File::open("/proc/thread-self/schedstat").ok();
    }
    let mut text = [0u8; 96];
    let n = FILE.with(|f| f.as_ref()?.read_at(&mut text, 0).ok())?;
    let text = std::str::from_utf8(&text[..n]).ok()?;
    let mut words = text.split_whitespace().map(str::parse::<u64>);
    match (words.next(), words.next()) {
        (Some(Ok(run)), Some(Ok(queue))) => Some((run, queue)),
        _ => None,
    }
}

/// Ids and names of the process's threads.
pub(crate) fn list() -> BTreeMap<u64, String> {
    let mut out = BTreeMap::new();
    if let Ok(dir) = fs::read_dir("/proc/self/task") {
        for e in dir.flatten() {
            if let Ok(tid) = e.file_name().to_string_lossy().parse() {
                let name = fs::read_to_string(e.path().join("comm")).unwrap_or_default();
                out.insert(tid, name.trim().to_string());
            }
        }
    }
    out
}

/// Scheduling policy of another thread of this process.
pub(crate) fn policy_of(tid: u64) -> i32 {
    // SAFETY: a getter; an id that is gone is an error code.
    unsafe { libc::sched_getscheduler(libc::pid_t::try_from(tid).unwrap_or(0)) }
}

/// Open descriptors and what they are.
pub(crate) fn descriptors() -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    if let Ok(dir) = fs::read_dir("/proc/self/fd") {
        for e in dir.flatten() {
            if let Ok(to) = fs::read_link(e.path()) {
                let to = to.to_string_lossy().into_owned();
                // The directory that is being read here, and what a runtime's poller keeps for itself.
                if to.starts_with("/proc/") || to.starts_with("anon_inode:") {
                    continue;
                }
                out.insert(e.file_name().to_string_lossy().into_owned(), to);
            }
        }
    }
    out
}

/// Open descriptors, and which file each of them is.
pub(crate) fn open_files() -> BTreeMap<i32, (u64, u64)> {
    (0..256)
        .filter_map(|fd| {
            // SAFETY: an out-parameter of the right type; a number that is not open is an error.
            let file = unsafe {
                let mut s: libc::stat = std::mem::zeroed();
                (libc::fstat(fd, &raw mut s) == 0).then_some((s.st_dev, s.st_ino))
            };
            Some((fd, file?))
        })
        .collect()
}

/// Has processes whose parents have ended become children of this one.
pub(crate) fn adopt_orphans() {
    // SAFETY: takes numbers.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}

/// Whether a child of this process has ended and been waited for.
pub(crate) fn children_were_reaped() -> bool {
    // SAFETY: a valid out-parameter.
    unsafe {
        let mut used: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut used) == 0 && used.ru_minflt > 0
    }
}

/// Processes that threads of this process started, or that were left to it, and that have not been reaped.
pub(crate) fn children() -> Vec<u64> {
    let mut out = Vec::new();
    for tid in list().keys() {
        if let Ok(text) = fs::read_to_string(format!("/proc/self/task/{tid}/children")) {
            out.extend(
                text.split_whitespace()
                    .filter_map(|w| w.parse::<u64>().ok()),
            );
        }
    }
    out
}

/// Bytes in use in the C allocator, which a C or Rust guest shares with the host.
pub(crate) fn c_heap_bytes() -> u64 {
    // SAFETY: takes nothing.
    let m = unsafe { libc::mallinfo2() };
    (m.uordblks + m.hblkhd) as u64
}

/// Resident memory of the process that is its own.
pub(crate) fn resident_bytes() -> u64 {
    fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|t| t.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0)
        * 4096
}

/// What each thread of a process waits in; for a process that has not ended in time.
pub(crate) fn describe_all(pid: u32) -> Vec<String> {
    let mut out = Vec::new();
    let Ok(dir) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return out;
    };
    for e in dir.flatten().take(32) {
        let read = |f: &str| {
            fs::read_to_string(e.path().join(f))
                .unwrap_or_default()
                .trim()
                .to_string()
        };
        let stat = read("stat");
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, s)| s.chars().next())
            .unwrap_or('?');
        let syscall = read("syscall");
        let number = syscall.split_whitespace().next().unwrap_or("?");
        let wchan = match read("wchan").as_str() {
            "" | "0" => "-".to_string(),
            w => w.to_string(),
        };
        out.push(format!(
            "thread {} {}: state {state}, in {wchan}, system call {number}",
            e.file_name().to_string_lossy(),
            read("comm"),
        ));
    }
    out
}
