//! Where the any-thread calls of guests end: they check, queue and wake the worker, and never touch a stream.

use std::sync::{Arc, OnceLock};

use proxy_golang_abi::{Phase, Status};

use super::outcome::KeptOutcome;
use super::sync::{AtomicBool, Ordering::*, Queue};
use super::table::{Address, Table};

/// Limits of the any-thread calls.
#[derive(Clone, Copy, Debug)]
pub struct HubLimits {
    /// Bytes of a streamed reply that `apply` takes before it answers FULL.
    pub reply_watermark: u64,
}

impl Default for HubLimits {
    fn default() -> Self {
        Self {
            reply_watermark: 256 * 1024,
        }
    }
}

/// What is shared by all threads of a host process.
pub struct Hub {
    pub(crate) table: Table,
    pub(crate) limits: HubLimits,
    mailboxes: Box<[Mailbox]>,
}

struct Mailbox {
    queue: Queue<Mail>,
    /// Set from the first mail after a drain until the next drain: one notification for all of them.
    notified: AtomicBool,
    notify: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// Something that was accepted from a guest for a stream, to be given to [`Stream::deliver`](super::Stream::deliver).
#[derive(Debug)]
pub struct Mail {
    /// The driver's key of the stream. The stream may have died since: then the mail is dropped.
    pub stream: u64,
    pub(crate) item: Item,
}

#[derive(Debug)]
pub(crate) enum Item {
    Complete {
        token: u64,
        outcome: Box<KeptOutcome>,
    },
    Apply {
        handle: u64,
        outcome: Box<KeptOutcome>,
    },
    Wake {
        handle: u64,
    },
}

impl Hub {
    /// A hub for workers 0 to `workers - 1`.
    #[must_use]
    pub fn new(workers: u32, limits: HubLimits) -> Arc<Self> {
        let mailbox = |_| Mailbox {
            queue: Queue::new(),
            notified: AtomicBool::new(false),
            notify: OnceLock::new(),
        };
        Arc::new(Self {
            table: Table::new(),
            limits,
            mailboxes: (0..workers).map(mailbox).collect(),
        })
    }

    /// Number of workers.
    #[must_use]
    pub fn workers(&self) -> u32 {
        u32::try_from(self.mailboxes.len()).unwrap_or(u32::MAX)
    }

    /// Sets what wakes a worker's thread: called by any thread when mail comes to an empty mailbox. It must not
    /// block. Only the first setting counts.
    pub fn set_notify(&self, worker: u32, notify: Box<dyn Fn() + Send + Sync>) {
        if let Some(mailbox) = self.mailboxes.get(worker as usize) {
            // A worker's second registration would orphan whoever waits on the first.
            let _ = mailbox.notify.set(notify);
        }
    }

    /// OK, or STALE if the token is not live or not this library's.
    pub fn token_status(&self, library: u32, token: u64) -> Status {
        self.table.token_status(library, token)
    }

    /// The phase of a live token's event.
    pub fn token_phase(&self, library: u32, token: u64) -> Option<Phase> {
        self.table.token_phase(library, token)
    }

    /// OK, or STALE if the handle is not live or not this library's.
    pub fn stream_status(&self, library: u32, stream: u64) -> Status {
        self.table.handle_status(library, stream)
    }

    /// Ends a PENDING, or what is about to become one.
    pub fn complete(&self, library: u32, token: u64, outcome: KeptOutcome) -> Status {
        let outcome = Box::new(outcome);
        let Some(to) = self.table.complete(library, token) else {
            return Status::STALE;
        };
        self.send(to, Item::Complete { token, outcome });
        Status::OK
    }

    /// Acts on a stream outside its events: OK, FULL, LIMIT or STALE.
    pub fn apply(&self, library: u32, stream: u64, outcome: KeptOutcome) -> Status {
        let outcome = Box::new(outcome);
        match self.table.apply(
            library,
            stream,
            outcome.written_bytes(),
            self.limits.reply_watermark,
        ) {
            Ok((to, status)) => {
                self.send(
                    to,
                    Item::Apply {
                        handle: stream,
                        outcome,
                    },
                );
                status
            }
            Err(status) => status,
        }
    }

    /// Leads to a WAKE event: OK, STALE, or STATE if the configuration does not subscribe to WAKE.
    pub fn wake(&self, library: u32, stream: u64, arg: u64) -> Status {
        match self.table.wake(library, stream, arg) {
            Ok(Some(to)) => {
                self.send(to, Item::Wake { handle: stream });
                Status::OK
            }
            Ok(None) => Status::OK,
            Err(status) => status,
        }
    }

    fn send(&self, to: Address, item: Item) {
        let Some(mailbox) = self.mailboxes.get(to.worker as usize) else {
            return;
        };
        mailbox.queue.push(Mail {
            stream: to.stream,
            item,
        });
        if !mailbox.notified.swap(true, AcqRel)
            && let Some(notify) = mailbox.notify.get()
        {
            notify();
        }
    }

    pub(crate) fn has_mail(&self, worker: u32) -> bool {
        self.mailboxes
            .get(worker as usize)
            .is_some_and(|mailbox| !mailbox.queue.is_empty())
    }

    /// Takes one mail; at the end of the queue the next mail notifies again.
    pub(crate) fn take(&self, worker: u32) -> Option<Mail> {
        let mailbox = self.mailboxes.get(worker as usize)?;
        mailbox.queue.pop().or_else(|| {
            // Armed before the last look: what is pushed after it notifies, what was pushed before it is seen. A swap
            // and no store, so that the push of whoever found it set is seen.
            mailbox.notified.swap(false, AcqRel);
            mailbox.queue.pop()
        })
    }
}
