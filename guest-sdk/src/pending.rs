//! Async: a deferred event is decided later, from any thread.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proxy_golang_abi::Status;

use crate::{Completion, Host};

/// Why the host did not take a completion, an application or a wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostError {
    /// Too late: the stream has ended, or the event was cancelled. Nothing was applied; nothing is to be done.
    Stale,
    /// The host has no such function or feature.
    Unsupported,
    /// Over a limit of the host.
    Limit,
    /// The host refused the arguments; its log says why.
    Refused(Status),
}

impl HostError {
    pub(crate) fn of(status: Status) -> Self {
        match status {
            Status::STALE => Self::Stale,
            Status::UNSUPPORTED => Self::Unsupported,
            Status::LIMIT => Self::Limit,
            other => Self::Refused(other),
        }
    }
}

impl std::fmt::Display for HostError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stale => f.write_str("too late: the stream has ended or the event was cancelled"),
            Self::Unsupported => f.write_str("the host does not have this function or feature"),
            Self::Limit => f.write_str("over a limit of the host"),
            Self::Refused(status) => {
                write!(
                    f,
                    "the host refused it with status {}; its log says why",
                    status.0
                )
            }
        }
    }
}

impl std::error::Error for HostError {}

/// A deferred event, to be completed exactly once, from any thread, also before the filter's method returned.
///
/// Dropped without a completion it fails the stream at once, rather than at the host's deadline: a worker that panics
/// holds no client.
#[must_use = "a dropped Pending fails its stream"]
pub struct Pending {
    host: Host,
    token: u64,
    state: Arc<CancelState>,
    open: bool,
}

impl Pending {
    pub(crate) fn new(host: Host, token: u64, state: Arc<CancelState>) -> Self {
        Self {
            host,
            token,
            state,
            open: true,
        }
    }

    /// Goes on without a change.
    ///
    /// # Errors
    /// As [`Pending::complete`].
    pub fn resume(self) -> Result<(), HostError> {
        self.complete(Completion::resume())
    }

    /// Decides. The host copies what is not handed over, never blocks, and applies it on the stream's own thread.
    ///
    /// # Errors
    /// [`HostError::Stale`] if the stream died meanwhile: nothing to do. With any other error the host found the
    /// completion illegal, and the stream has been failed.
    pub fn complete(mut self, completion: Completion) -> Result<(), HostError> {
        self.open = false;
        self.send(completion)
    }

    fn send(&self, completion: Completion) -> Result<(), HostError> {
        if !self.host.can_complete() {
            return Err(HostError::Unsupported);
        }
        let status = completion.0.complete(self.host, self.token);
        if status.0 >= 0 {
            self.state.finish();
            return Ok(());
        }
        if status != Status::STALE {
            // The token lives on, and nobody else will complete it.
            let refused = Completion::error(format_args!(
                "the host refused a completion with status {}",
                status.0
            ));
            let _ = refused.0.complete(self.host, self.token);
        }
        self.state.finish();
        Err(HostError::of(status))
    }

    /// Whether nobody waits any more.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.state.is_cancelled()
    }

    /// Tells when the event is cancelled: a future, and a handle to ask or to wait.
    #[must_use]
    pub fn cancellation(&self) -> Cancellation {
        Cancellation {
            state: Arc::clone(&self.state),
        }
    }

    /// The host, to log to.
    #[must_use]
    pub fn host(&self) -> Host {
        self.host
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.open && !self.state.is_cancelled() {
            let text = if std::thread::panicking() {
                "panic: in the thread that was to complete a deferred event"
            } else {
                "the filter dropped a deferred event without completing it"
            };
            let _ = self.send(Completion::error(text));
        }
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pending({:#x})", self.token)
    }
}

/// Resolves when a deferred event is cancelled; it never does if the event is completed.
#[derive(Clone, Debug)]
pub struct Cancellation {
    state: Arc<CancelState>,
}

impl Cancellation {
    /// Whether the event was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.state.is_cancelled()
    }

    /// Waits up to that time; true if the event was cancelled.
    #[must_use]
    pub fn wait_timeout(&self, time: Duration) -> bool {
        let (state, _) = self
            .state
            .changed
            .wait_timeout_while(self.state.lock(), time, |s| s.life == Life::Waiting)
            .unwrap_or_else(PoisonError::into_inner);
        state.life == Life::Cancelled
    }
}

impl Future for Cancellation {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.life == Life::Cancelled {
            return Poll::Ready(());
        }
        if state.life == Life::Waiting && !state.wakers.iter().any(|w| w.will_wake(cx.waker())) {
            state.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Life {
    #[default]
    Waiting,
    Finished,
    Cancelled,
}

#[derive(Debug, Default)]
struct Shared {
    life: Life,
    wakers: Vec<Waker>,
}

/// What a deferred event and its stream share.
#[derive(Debug, Default)]
pub(crate) struct CancelState {
    shared: Mutex<Shared>,
    changed: Condvar,
}

impl CancelState {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, life: Life) {
        let wakers = {
            let mut shared = self.lock();
            if shared.life != Life::Waiting {
                return;
            }
            shared.life = life;
            std::mem::take(&mut shared.wakers)
        };
        self.changed.notify_all();
        if life == Life::Cancelled {
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    pub(crate) fn finish(&self) {
        self.end(Life::Finished);
    }

    pub(crate) fn cancel(&self) {
        self.end(Life::Cancelled);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.lock().life == Life::Cancelled
    }

    pub(crate) fn is_over(&self) -> bool {
        self.lock().life != Life::Waiting
    }
}
