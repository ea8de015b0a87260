//! Process-directed signals stay with the host's threads (PXG-RT-001).

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

/// While it lives, this thread takes no signal that is meant for the process; nor do the threads that start from it, for
/// ever. On drop the thread's mask is as before.
pub(super) struct Blocked {
    before: Option<SigSet>,
}

/// What operators and the kernel send to a process as a whole. Not the faults of a thread, not SIGURG, SIGPROF and SIGPIPE,
/// which runtimes use, and no realtime signals: an SDK addresses its own threads by them.
const PROCESS: [Signal; 17] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGCHLD,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGXCPU,
    Signal::SIGXFSZ,
    Signal::SIGVTALRM,
    Signal::SIGIO,
    Signal::SIGWINCH,
];

impl Blocked {
    pub(super) fn new() -> Self {
        let signals: SigSet = PROCESS.into_iter().collect();
        // Fails only for an unknown `how`.
        Self {
            before: signals.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok(),
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // As above.
            let _ = before.thread_set_mask();
        }
    }
}
