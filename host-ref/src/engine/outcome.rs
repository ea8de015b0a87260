//! What a guest decided: borrowed for one call, or kept for later.

use bytes::Bytes;
use proxy_golang_abi as abi;
use proxy_golang_abi::{Action, BodyMode, ReplyFlags, ResultFlags, Status, Target};
use smallvec::SmallVec;

use super::fields::Edit;
use super::grammar;
use super::guest::PlainOp;

/// The name of an action that is legal somewhere; what is none counts as ERROR.
pub(crate) fn action_name(action: Action) -> &'static str {
    match action {
        Action::CONTINUE => "CONTINUE",
        Action::PENDING => "PENDING",
        Action::MORE => "MORE",
        Action::REPLY => "REPLY",
        Action::RESET => "RESET",
        _ => "ERROR",
    }
}

/// A result of `on_event`, decoded and with its pointers checked, not yet judged by the engine.
#[derive(Clone, Debug)]
pub struct Outcome<'a> {
    /// What to do.
    pub action: Action,
    /// `RESIZES`, `FLUSH`.
    pub flags: ResultFlags,
    /// The guest's slot from now on.
    pub user: u64,
    /// The batch, in order.
    pub ops: SmallVec<[Op<'a>; 4]>,
    /// With [`Action::REPLY`]. Boxed: an outcome is moved several times, and most have none.
    pub reply: Option<Box<Reply<'a>>>,
    /// Mask of phases no longer wanted.
    pub unsubscribe: u64,
    /// New body modes.
    pub body_mode: [BodyMode; 2],
    /// With [`Action::MORE`].
    pub more_bytes: u64,
    /// With [`Action::PENDING`]: the wish.
    pub pend_ns: u64,
    /// With [`Action::ERROR`]: why. For logs.
    pub error: &'a [u8],
}

/// An operation with its flag.
#[derive(Debug, Clone)]
pub struct Op<'a> {
    /// Fail the stream rather than skip it.
    pub must: bool,
    /// The value of the new field is never to be logged or indexed.
    pub sensitive: bool,
    /// What to do.
    pub kind: OpKind<'a>,
}

/// What an operation does.
#[allow(missing_docs)] // the members are those of `pxg_op`
#[derive(Debug, Clone)]
pub enum OpKind<'a> {
    /// HEADER_SET
    Set {
        target: Target,
        name: &'a [u8],
        value: &'a [u8],
    },
    /// HEADER_ADD
    Add {
        target: Target,
        name: &'a [u8],
        value: &'a [u8],
    },
    /// HEADER_DELETE
    Delete { target: Target, name: &'a [u8] },
    /// SET_AT
    SetAt {
        target: Target,
        index: u64,
        value: &'a [u8],
    },
    /// DELETE_AT
    DeleteAt { target: Target, index: u64 },
    /// PASS
    Pass(u64),
    /// DROP
    Drop(u64),
    /// INJECT
    Inject(Payload<'a>),
    /// BODY_WRITE
    BodyWrite { bytes: Payload<'a>, end: bool },
    /// METADATA_SET; an empty namespace is the guest's own.
    Metadata {
        namespace: &'a [u8],
        key: &'a [u8],
        value: &'a [u8],
    },
    /// METRIC
    Metric { id: u32, value: i64 },
    /// ROUTE to a cluster, or `None` to route again.
    Route(Option<&'a [u8]>),
    /// A kind that this host does not know.
    Unknown(u16),
}

/// Bytes of a guest.
#[derive(Debug, Clone)]
pub enum Payload<'a> {
    /// To be copied if they are to live on.
    Borrowed(&'a [u8]),
    /// Static or owned; an owned buffer is released when the last clone is dropped.
    Shared(Bytes),
}

/// A local reply.
#[derive(Clone, Debug)]
pub struct Reply<'a> {
    /// 200 to 599, not yet checked.
    pub status: u32,
    /// `GRPC`, `OPEN`, `FLUSH`.
    pub flags: ReplyFlags,
    /// Counts only with GRPC.
    pub grpc_status: i32,
    /// Fields, not yet checked.
    pub fields: SmallVec<[(&'a [u8], &'a [u8]); 8]>,
    /// The body's parts.
    pub body: SmallVec<[Payload<'a>; 2]>,
    /// Trailers, not yet checked.
    pub trailers: SmallVec<[(&'a [u8], &'a [u8]); 2]>,
    /// For logs.
    pub details: &'a [u8],
}

/// Why a result was refused at the boundary: its memory does not hold together (PXG-ABI-005, PXG-MEM-012).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Fault {
    /// What `complete` and `apply` answer.
    pub status: Status,
    /// What was found, what was expected.
    pub text: String,
    /// The guest's slot from now on, for a result of `on_event`: it counts also where the rest is refused (PXG-EVT-007).
    pub user: Option<u64>,
}

impl Fault {
    /// A fault of a result, without a slot.
    #[must_use]
    pub fn new(status: Status, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
            user: None,
        }
    }
}

impl Outcome<'_> {
    /// An outcome that says nothing but `action`.
    #[must_use]
    #[inline]
    pub fn of(action: Action, user: u64) -> Self {
        Self {
            action,
            flags: ResultFlags(0),
            user,
            ops: SmallVec::new(),
            reply: None,
            unsubscribe: 0,
            body_mode: [BodyMode::UNSET; 2],
            more_bytes: 0,
            pend_ns: 0,
            error: &[],
        }
    }
}

impl<'a> Outcome<'a> {
    /// Moves what this says to `to`, whose borrowed bytes lie in `room`. That grows to take them, and never shrinks.
    pub(super) fn copy_to<'b>(&mut self, to: &mut Outcome<'b>, room: &'b mut Vec<u8>) {
        let len = self.borrowed_len();
        if room.len() < len {
            room.resize(len, 0);
        }
        let mut free = &mut room[..];
        self.lend_to(to, |bytes| {
            let (copy, rest) = std::mem::take(&mut free).split_at_mut(bytes.len());
            free = rest;
            copy.copy_from_slice(bytes);
            copy
        });
    }

    fn borrowed_len(&self) -> usize {
        let len = |bytes: [&[u8]; 3]| bytes.map(<[u8]>::len).iter().sum::<usize>();
        let ops: usize = self.ops.iter().map(|op| len(op.kind.borrowed())).sum();
        self.error.len() + ops + self.reply.as_ref().map_or(0, |r| r.borrowed_len())
    }

    /// Moves what this says to `to`, over other bytes: `lend` gives what stands for each borrowed slice, always in the
    /// same order. In place, for an outcome is large.
    fn lend_to<'b>(&mut self, to: &mut Outcome<'b>, mut lend: impl FnMut(&'a [u8]) -> &'b [u8]) {
        to.action = self.action;
        to.flags = self.flags;
        to.user = self.user;
        to.unsubscribe = self.unsubscribe;
        to.body_mode = self.body_mode;
        to.more_bytes = self.more_bytes;
        to.pend_ns = self.pend_ns;
        to.error = lend(self.error);
        to.ops.clear();
        to.ops.reserve(self.ops.len());
        for op in &mut self.ops {
            to.ops.push(Op {
                must: op.must,
                sensitive: op.sensitive,
                kind: op.kind.lend(&mut lend),
            });
        }
        to.reply = self
            .reply
            .take()
            .map(|mut reply| Box::new(reply.lend(&mut lend)));
    }
}

impl<'a> OpKind<'a> {
    /// What is borrowed; empty slices stand for what is not there.
    fn borrowed(&self) -> [&'a [u8]; 3] {
        match *self {
            Self::Set { name, value, .. } | Self::Add { name, value, .. } => [name, value, &[]],
            Self::Delete { name, .. } => [name, &[], &[]],
            Self::SetAt { value, .. } => [value, &[], &[]],
            Self::Inject(Payload::Borrowed(bytes))
            | Self::BodyWrite {
                bytes: Payload::Borrowed(bytes),
                ..
            }
            | Self::Route(Some(bytes)) => [bytes, &[], &[]],
            Self::Metadata {
                namespace,
                key,
                value,
            } => [namespace, key, value],
            Self::DeleteAt { .. }
            | Self::Pass(_)
            | Self::Drop(_)
            | Self::Inject(_)
            | Self::BodyWrite { .. }
            | Self::Metric { .. }
            | Self::Route(None)
            | Self::Unknown(_) => [&[]; 3],
        }
    }

    #[inline]
    fn lend<'b>(&mut self, lend: &mut impl FnMut(&'a [u8]) -> &'b [u8]) -> OpKind<'b> {
        match *self {
            Self::Set {
                target,
                name,
                value,
            } => OpKind::Set {
                target,
                name: lend(name),
                value: lend(value),
            },
            Self::Add {
                target,
                name,
                value,
            } => OpKind::Add {
                target,
                name: lend(name),
                value: lend(value),
            },
            Self::Delete { target, name } => OpKind::Delete {
                target,
                name: lend(name),
            },
            Self::SetAt {
                target,
                index,
                value,
            } => OpKind::SetAt {
                target,
                index,
                value: lend(value),
            },
            Self::DeleteAt { target, index } => OpKind::DeleteAt { target, index },
            Self::Pass(n) => OpKind::Pass(n),
            Self::Drop(n) => OpKind::Drop(n),
            Self::Inject(ref mut bytes) => OpKind::Inject(bytes.lend(lend)),
            Self::BodyWrite { ref mut bytes, end } => OpKind::BodyWrite {
                bytes: bytes.lend(lend),
                end,
            },
            Self::Metadata {
                namespace,
                key,
                value,
            } => OpKind::Metadata {
                namespace: lend(namespace),
                key: lend(key),
                value: lend(value),
            },
            Self::Metric { id, value } => OpKind::Metric { id, value },
            Self::Route(cluster) => OpKind::Route(cluster.map(lend)),
            Self::Unknown(kind) => OpKind::Unknown(kind),
        }
    }
}

impl<'a> Reply<'a> {
    fn borrowed_len(&self) -> usize {
        let fields = self.fields.iter().chain(&self.trailers);
        let body = self.body.iter().map(|payload| match payload {
            Payload::Borrowed(bytes) => bytes.len(),
            Payload::Shared(_) => 0,
        });
        let fields = fields.map(|(name, value)| name.len() + value.len());
        self.details.len() + fields.sum::<usize>() + body.sum::<usize>()
    }

    fn lend<'b>(&mut self, lend: &mut impl FnMut(&'a [u8]) -> &'b [u8]) -> Reply<'b> {
        Reply {
            status: self.status,
            flags: self.flags,
            grpc_status: self.grpc_status,
            fields: self
                .fields
                .iter()
                .map(|(n, v)| (lend(n), lend(v)))
                .collect(),
            body: self.body.iter_mut().map(|p| p.lend(lend)).collect(),
            trailers: self
                .trailers
                .iter()
                .map(|(n, v)| (lend(n), lend(v)))
                .collect(),
            details: lend(self.details),
        }
    }
}

impl<'a> Payload<'a> {
    fn lend<'b>(&mut self, lend: &mut impl FnMut(&'a [u8]) -> &'b [u8]) -> Payload<'b> {
        match self {
            Self::Borrowed(bytes) => Payload::Borrowed(lend(bytes)),
            Self::Shared(bytes) => Payload::Shared(std::mem::take(bytes)),
        }
    }
}

impl Payload<'_> {
    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }

    /// The bytes to keep: a copy of what is borrowed, nothing copied otherwise.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Self::Shared(bytes) => bytes,
        }
    }
}

/// An outcome that outlives its call: what `complete` and `apply` accepted. All borrowed bytes lie in one arena.
#[derive(Debug)]
pub struct KeptOutcome {
    arena: Vec<u8>,
    kept: Kept,
}

#[derive(Debug)]
enum Kept {
    /// CONTINUE with edits of the head by name, legal on every message.
    Plain(SmallVec<[KeptEdit; 8]>),
    Whole {
        /// The lengths of what was borrowed, in the order of the arena.
        lens: Vec<usize>,
        outcome: Box<Outcome<'static>>,
    },
}

/// An edit whose name and then value come next in the arena.
#[derive(Clone, Copy, Debug)]
struct KeptEdit {
    kind: OpName,
    must: bool,
    sensitive: bool,
    name: u32,
    value: u32,
}

#[derive(Clone, Copy, Debug)]
enum OpName {
    Set,
    Add,
    Delete,
}

impl KeptOutcome {
    /// Copies what is borrowed.
    #[must_use]
    pub fn new(mut outcome: Outcome<'_>) -> Self {
        let mut arena = Vec::with_capacity(outcome.borrowed_len());
        let mut lens = Vec::new();
        let mut kept = Box::new(Outcome::of(Action::UNSET, 0));
        outcome.lend_to(&mut kept, |bytes| {
            arena.extend_from_slice(bytes);
            lens.push(bytes.len());
            &[][..]
        });
        let kept = Kept::Whole {
            lens,
            outcome: kept,
        };
        Self { arena, kept }
    }

    /// CONTINUE with operations that the boundary found to be plain, copied; `None` if one of them is none for the head
    /// of every message. Then they are to be decoded, which also tells what is wrong with them.
    #[must_use]
    pub(crate) fn plain(ops: &[PlainOp<'_>]) -> Option<Self> {
        let mut edits = SmallVec::with_capacity(ops.len());
        let mut len = 0;
        for op in ops {
            let (name, value) = (op.name(), op.value());
            let kind = match op.kind() {
                abi::OpKind::HEADER_SET => OpName::Set,
                abi::OpKind::HEADER_ADD => OpName::Add,
                abi::OpKind::HEADER_DELETE => OpName::Delete,
                _ => return None,
            };
            if op.target() != Target::HEADERS || !grammar::is_field(name, value) {
                return None;
            }
            len += name.len() + value.len();
            edits.push(KeptEdit {
                kind,
                must: op.must(),
                sensitive: op.sensitive(),
                name: u32::try_from(name.len()).ok()?,
                value: u32::try_from(value.len()).ok()?,
            });
        }
        let mut arena = Vec::with_capacity(len);
        for op in ops {
            arena.extend_from_slice(op.name());
            arena.extend_from_slice(op.value());
        }
        Some(Self {
            arena,
            kept: Kept::Plain(edits),
        })
    }

    /// What a plain one asks for.
    pub(super) fn plain_edits(&self) -> Option<impl ExactSizeIterator<Item = Edit<'_>>> {
        let Kept::Plain(edits) = &self.kept else {
            return None;
        };
        let mut rest = &self.arena[..];
        Some(edits.iter().map(move |edit| {
            let (name, behind) = rest.split_at(edit.name as usize);
            let (value, behind) = behind.split_at(edit.value as usize);
            rest = behind;
            let sensitive = edit.sensitive;
            match edit.kind {
                OpName::Set => Edit::Set {
                    name,
                    value,
                    sensitive,
                },
                OpName::Add => Edit::Add {
                    name,
                    value,
                    sensitive,
                },
                OpName::Delete => Edit::Delete { name },
            }
        }))
    }

    /// The outcome again, borrowing from this.
    #[must_use]
    pub fn outcome(&self) -> Outcome<'_> {
        let mut rest = &self.arena[..];
        let mut take = |len| {
            let (bytes, behind) = rest.split_at(len);
            rest = behind;
            bytes
        };
        match &self.kept {
            Kept::Plain(edits) => {
                let mut outcome = Outcome::of(Action::CONTINUE, 0);
                let target = Target::HEADERS;
                outcome.ops.extend(edits.iter().map(|edit| {
                    let (name, value) = (take(edit.name as usize), take(edit.value as usize));
                    Op {
                        must: edit.must,
                        sensitive: edit.sensitive,
                        kind: match edit.kind {
                            OpName::Set => OpKind::Set {
                                target,
                                name,
                                value,
                            },
                            OpName::Add => OpKind::Add {
                                target,
                                name,
                                value,
                            },
                            OpName::Delete => OpKind::Delete { target, name },
                        },
                    }
                }));
                outcome
            }
            Kept::Whole {
                lens,
                outcome: kept,
            } => {
                let mut lens = lens.iter();
                let mut outcome = Outcome::of(Action::UNSET, 0);
                kept.clone().lend_to(&mut outcome, |_| {
                    take(*lens.next().expect("one for each slice that was kept"))
                });
                outcome
            }
        }
    }

    /// What kind of decision it is.
    #[must_use]
    pub fn action(&self) -> Action {
        match &self.kept {
            Kept::Plain(_) => Action::CONTINUE,
            Kept::Whole { outcome, .. } => outcome.action,
        }
    }

    /// Bytes that BODY_WRITE operations carry, for the watermark.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        if let Kept::Plain(_) = self.kept {
            return 0;
        }
        let outcome = self.outcome();
        let written = |op: &Op<'_>| match &op.kind {
            OpKind::BodyWrite { bytes, .. } => bytes.as_slice().len() as u64,
            _ => 0,
        };
        outcome.ops.iter().map(written).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind of operation, and a reply, all of whose bytes are borrowed.
    fn full() -> Outcome<'static> {
        let target = Target::HEADERS;
        let (name, value) = (&b"x-name"[..], &b"a value"[..]);
        let kinds = [
            OpKind::Set {
                target,
                name,
                value,
            },
            OpKind::Add {
                target,
                name,
                value: b"",
            },
            OpKind::Delete { target, name },
            OpKind::SetAt {
                target,
                index: 3,
                value,
            },
            OpKind::DeleteAt { target, index: 4 },
            OpKind::Pass(5),
            OpKind::Drop(6),
            OpKind::Inject(Payload::Borrowed(b"injected")),
            OpKind::Inject(Payload::Shared(Bytes::from_static(b"shared"))),
            OpKind::BodyWrite {
                bytes: Payload::Borrowed(b"written"),
                end: true,
            },
            OpKind::Metadata {
                namespace: b"space",
                key: b"key",
                value,
            },
            OpKind::Metric { id: 7, value: -8 },
            OpKind::Route(Some(b"cluster")),
            OpKind::Route(None),
            OpKind::Unknown(99),
        ];
        let mut outcome = Outcome::of(Action::REPLY, 9);
        outcome.error = b"why";
        outcome.ops.extend(kinds.into_iter().map(|kind| Op {
            must: true,
            sensitive: false,
            kind,
        }));
        outcome.reply = Some(Box::new(Reply {
            status: 200,
            flags: ReplyFlags(0),
            grpc_status: 0,
            fields: SmallVec::from_iter([(name, value)]),
            body: SmallVec::from_iter([Payload::Borrowed(&b"body"[..])]),
            trailers: SmallVec::from_iter([(name, value)]),
            details: b"details",
        }));
        outcome
    }

    #[test]
    fn a_copy_says_the_same_and_borrows_from_its_room_alone() {
        let said = format!("{:?}", full());
        let mut room = Vec::new();
        for _ in 0..2 {
            let mut copy = Outcome::of(Action::UNSET, 0);
            full().copy_to(&mut copy, &mut room);
            assert_eq!(format!("{copy:?}"), said);
            let bytes = copy.ops.iter().flat_map(|op| op.kind.borrowed());
            let lies: Vec<_> = bytes
                .filter(|b| !b.is_empty())
                .map(<[u8]>::as_ptr)
                .collect();
            drop(copy);
            assert!(lies.iter().all(|at| room.as_ptr_range().contains(at)));
            room.fill(b'!');
        }
        assert_eq!(room.len(), full().borrowed_len());
    }

    #[test]
    fn a_kept_outcome_says_the_same_each_time() {
        let said = format!("{:?}", full());
        let kept = KeptOutcome::new(full());
        assert_eq!(format!("{:?}", kept.outcome()), said);
        assert_eq!(format!("{:?}", kept.outcome()), said);
        assert_eq!(kept.written_bytes(), 7);
    }
}
