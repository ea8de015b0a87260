//! What a scripted guest answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A result, built up. `user` stays what it was unless set.
#[derive(Debug)]
pub struct Answer {
    pub outcome: Outcome<'static>,
    pub user: Option<u64>,
}

pub fn answer(action: Action) -> Answer {
    Answer {
        outcome: Outcome::of(action, 0),
        user: None,
    }
}

pub fn cont() -> Answer {
    answer(Action::CONTINUE)
}

pub fn pending() -> Answer {
    answer(Action::PENDING)
}

pub fn more(bytes: u64) -> Answer {
    let mut more = answer(Action::MORE);
    more.outcome.more_bytes = bytes;
    more
}

pub fn reset() -> Answer {
    answer(Action::RESET)
}

pub fn error(text: &'static str) -> Answer {
    let mut error = answer(Action::ERROR);
    error.outcome.error = text.as_bytes();
    error
}

pub fn reply(status: u32, body: &'static str) -> Answer {
    let mut made = answer(Action::REPLY);
    made.outcome.reply = Some(plain_reply(status, body));
    made
}

pub fn open_reply(status: u32, body: &'static str) -> Answer {
    let mut made = reply(status, body);
    made.outcome.reply.as_mut().unwrap().flags = ReplyFlags::OPEN;
    made
}

pub fn plain_reply(status: u32, body: &'static str) -> Box<Reply<'static>> {
    Box::new(Reply {
        status,
        flags: ReplyFlags(0),
        grpc_status: 0,
        fields: [(&b"x-reply"[..], &b"yes"[..])].into_iter().collect(),
        body: [Payload::Borrowed(body.as_bytes())].into_iter().collect(),
        trailers: Default::default(),
        details: b"test",
    })
}

impl Answer {
    pub fn user(mut self, user: u64) -> Self {
        self.user = Some(user);
        self
    }

    pub fn op(mut self, kind: OpKind<'static>) -> Self {
        self.outcome.ops.push(Op {
            must: false,
            sensitive: false,
            kind,
        });
        self
    }

    /// The last operation gets the MUST flag.
    pub fn must(mut self) -> Self {
        self.outcome.ops.last_mut().unwrap().must = true;
        self
    }

    pub fn set(self, name: &'static str, value: &'static str) -> Self {
        self.op(OpKind::Set {
            target: Target::HEADERS,
            name: name.as_bytes(),
            value: value.as_bytes(),
        })
    }

    pub fn add(self, name: &'static str, value: &'static str) -> Self {
        self.op(OpKind::Add {
            target: Target::HEADERS,
            name: name.as_bytes(),
            value: value.as_bytes(),
        })
    }

    pub fn del(self, name: &'static str) -> Self {
        self.op(OpKind::Delete {
            target: Target::HEADERS,
            name: name.as_bytes(),
        })
    }

    pub fn set_at(self, index: u64, value: &'static str) -> Self {
        self.op(OpKind::SetAt {
            target: Target::HEADERS,
            index,
            value: value.as_bytes(),
        })
    }

    pub fn del_at(self, index: u64) -> Self {
        self.op(OpKind::DeleteAt {
            target: Target::HEADERS,
            index,
        })
    }

    pub fn add_trailer(self, name: &'static str, value: &'static str) -> Self {
        self.op(OpKind::Add {
            target: Target::TRAILERS,
            name: name.as_bytes(),
            value: value.as_bytes(),
        })
    }

    pub fn pass(self, n: u64) -> Self {
        self.op(OpKind::Pass(n))
    }

    pub fn drop(self, n: u64) -> Self {
        self.op(OpKind::Drop(n))
    }

    pub fn inject(self, bytes: impl Into<Bytes>) -> Self {
        self.op(OpKind::Inject(Payload::Shared(bytes.into())))
    }

    pub fn write(self, bytes: impl Into<Bytes>) -> Self {
        self.op(OpKind::BodyWrite {
            bytes: Payload::Shared(bytes.into()),
            end: false,
        })
    }

    pub fn write_end(self, bytes: impl Into<Bytes>) -> Self {
        self.op(OpKind::BodyWrite {
            bytes: Payload::Shared(bytes.into()),
            end: true,
        })
    }

    pub fn metadata(self, key: &'static str, value: &'static str) -> Self {
        self.op(OpKind::Metadata {
            namespace: b"",
            key: key.as_bytes(),
            value: value.as_bytes(),
        })
    }

    pub fn mode(mut self, dir: Dir, mode: BodyMode) -> Self {
        self.outcome.body_mode[dir as usize] = mode;
        self
    }

    pub fn unsubscribe(mut self, phases: &[Phase]) -> Self {
        self.outcome.unsubscribe |= mask(phases);
        self
    }

    pub fn flags(mut self, flags: ResultFlags) -> Self {
        self.outcome.flags = ResultFlags(self.outcome.flags.0 | flags.0);
        self
    }

    pub fn pend_ns(mut self, ns: u64) -> Self {
        self.outcome.pend_ns = ns;
        self
    }

    pub fn keep(self) -> KeptOutcome {
        KeptOutcome::new(self.outcome)
    }
}

pub fn mask(phases: &[Phase]) -> u64 {
    phases.iter().map(|p| phase_bit(*p)).sum()
}

/// Owned buffers that are alive: an OWNED buffer of a guest is released when its last clone is dropped.
#[derive(Clone, Default)]
pub struct Owned {
    made: Arc<AtomicUsize>,
    released: Arc<AtomicUsize>,
}

struct Buffer(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

impl Owned {
    pub fn bytes(&self, bytes: &[u8]) -> Bytes {
        self.made.fetch_add(1, Ordering::Relaxed);
        Bytes::from_owner(Buffer(bytes.to_vec(), Arc::clone(&self.released)))
    }

    /// (made, released)
    pub fn counts(&self) -> (usize, usize) {
        (
            self.made.load(Ordering::Relaxed),
            self.released.load(Ordering::Relaxed),
        )
    }
}
