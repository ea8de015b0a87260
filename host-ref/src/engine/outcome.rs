//! What a guest decided: borrowed for one call, or kept for later.

use bytes::Bytes;
use proxy_golang_abi::{Action, BodyMode, ReplyFlags, ResultFlags, Status, Target};
use smallvec::SmallVec;

/// A result of `on_event`, decoded and with its pointers checked, not yet judged by the engine.
#[derive(Debug)]
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
#[derive(Debug)]
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
}

impl Outcome<'_> {
    /// An outcome that says nothing but `action`.
    #[must_use]
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

/// An outcome that outlives its call: what `on_event` returned, once its views are gone, and what `complete` and
/// `apply` accepted. All borrowed bytes lie in one arena.
#[derive(Debug)]
pub struct KeptOutcome {
    arena: Vec<u8>,
    spans: Vec<(u32, u32)>,
    kept: Outcome<'static>,
}

impl Default for KeptOutcome {
    fn default() -> Self {
        Self {
            arena: Vec::new(),
            spans: Vec::new(),
            kept: Outcome::of(Action::UNSET, 0),
        }
    }
}

impl KeptOutcome {
    /// Copies what is borrowed.
    #[must_use]
    pub fn new(outcome: Outcome<'_>) -> Self {
        let mut kept = Self::default();
        kept.refill(outcome);
        kept
    }

    /// Copies what is borrowed into the room that is there already.
    pub fn refill(&mut self, outcome: Outcome<'_>) {
        self.arena.clear();
        self.spans.clear();
        let mut keep = Keeper {
            arena: &mut self.arena,
            spans: &mut self.spans,
        };
        let error = keep.bytes(outcome.error);
        self.kept.ops.clear();
        for op in outcome.ops {
            self.kept.ops.push(Op {
                must: op.must,
                sensitive: op.sensitive,
                kind: keep.op(op.kind),
            });
        }
        self.kept.reply = outcome.reply.map(|r| Box::new(Reply {
            status: r.status,
            flags: r.flags,
            grpc_status: r.grpc_status,
            fields: r
                .fields
                .iter()
                .map(|(n, v)| (keep.bytes(n), keep.bytes(v)))
                .collect(),
            body: r.body.into_iter().map(|p| keep.payload(p)).collect(),
            trailers: r
                .trailers
                .iter()
                .map(|(n, v)| (keep.bytes(n), keep.bytes(v)))
                .collect(),
            details: keep.bytes(r.details),
        }));
        self.kept.action = outcome.action;
        self.kept.flags = outcome.flags;
        self.kept.user = outcome.user;
        self.kept.unsubscribe = outcome.unsubscribe;
        self.kept.body_mode = outcome.body_mode;
        self.kept.more_bytes = outcome.more_bytes;
        self.kept.pend_ns = outcome.pend_ns;
        self.kept.error = error;
    }

    /// The outcome again, borrowing from this.
    #[must_use]
    pub fn outcome(&self) -> Outcome<'_> {
        let mut give = Giver {
            arena: &self.arena,
            spans: self.spans.iter(),
        };
        let k = &self.kept;
        let error = give.bytes();
        Outcome {
            action: k.action,
            flags: k.flags,
            user: k.user,
            unsubscribe: k.unsubscribe,
            body_mode: k.body_mode,
            more_bytes: k.more_bytes,
            pend_ns: k.pend_ns,
            error,
            ops: k
                .ops
                .iter()
                .map(|op| Op {
                    must: op.must,
                    sensitive: op.sensitive,
                    kind: give.op(&op.kind),
                })
                .collect(),
            reply: k.reply.as_ref().map(|r| Box::new(Reply {
                status: r.status,
                flags: r.flags,
                grpc_status: r.grpc_status,
                fields: r
                    .fields
                    .iter()
                    .map(|_| (give.bytes(), give.bytes()))
                    .collect(),
                body: r.body.iter().map(|p| give.payload(p)).collect(),
                trailers: r
                    .trailers
                    .iter()
                    .map(|_| (give.bytes(), give.bytes()))
                    .collect(),
                details: give.bytes(),
            })),
        }
    }

    /// Releases what was owned; the room stays.
    pub fn clear(&mut self) {
        self.kept.ops.clear();
        self.kept.reply = None;
    }

    /// What kind of decision it is.
    #[must_use]
    pub fn action(&self) -> Action {
        self.kept.action
    }

    /// Bytes that BODY_WRITE operations carry, for the watermark.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        let outcome = self.outcome();
        let written = |op: &Op<'_>| match &op.kind {
            OpKind::BodyWrite { bytes, .. } => bytes.as_slice().len() as u64,
            _ => 0,
        };
        outcome.ops.iter().map(written).sum()
    }
}

/// Copies borrowed bytes into an arena and remembers where, in the order in which they come.
struct Keeper<'k> {
    arena: &'k mut Vec<u8>,
    spans: &'k mut Vec<(u32, u32)>,
}

impl Keeper<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> &'static [u8] {
        let cut = |n: usize| u32::try_from(n).expect("a result stays below 4 GiB");
        self.spans.push((cut(self.arena.len()), cut(bytes.len())));
        self.arena.extend_from_slice(bytes);
        &[]
    }

    fn payload(&mut self, payload: Payload<'_>) -> Payload<'static> {
        match payload {
            Payload::Borrowed(bytes) => Payload::Borrowed(self.bytes(bytes)),
            Payload::Shared(bytes) => Payload::Shared(bytes),
        }
    }

    fn op(&mut self, op: OpKind<'_>) -> OpKind<'static> {
        match op {
            OpKind::Set {
                target,
                name,
                value,
            } => OpKind::Set {
                target,
                name: self.bytes(name),
                value: self.bytes(value),
            },
            OpKind::Add {
                target,
                name,
                value,
            } => OpKind::Add {
                target,
                name: self.bytes(name),
                value: self.bytes(value),
            },
            OpKind::Delete { target, name } => OpKind::Delete {
                target,
                name: self.bytes(name),
            },
            OpKind::SetAt {
                target,
                index,
                value,
            } => OpKind::SetAt {
                target,
                index,
                value: self.bytes(value),
            },
            OpKind::DeleteAt { target, index } => OpKind::DeleteAt { target, index },
            OpKind::Pass(n) => OpKind::Pass(n),
            OpKind::Drop(n) => OpKind::Drop(n),
            OpKind::Inject(p) => OpKind::Inject(self.payload(p)),
            OpKind::BodyWrite { bytes, end } => OpKind::BodyWrite {
                bytes: self.payload(bytes),
                end,
            },
            OpKind::Metadata {
                namespace,
                key,
                value,
            } => OpKind::Metadata {
                namespace: self.bytes(namespace),
                key: self.bytes(key),
                value: self.bytes(value),
            },
            OpKind::Metric { id, value } => OpKind::Metric { id, value },
            OpKind::Route(cluster) => OpKind::Route(cluster.map(|c| self.bytes(c))),
            OpKind::Unknown(kind) => OpKind::Unknown(kind),
        }
    }
}

/// The way back: hands out the spans in the order in which [`Keeper`] took them.
struct Giver<'a> {
    arena: &'a [u8],
    spans: std::slice::Iter<'a, (u32, u32)>,
}

impl<'a> Giver<'a> {
    fn bytes(&mut self) -> &'a [u8] {
        let (at, len) = self
            .spans
            .next()
            .expect("one span for each bytes that was kept");
        &self.arena[*at as usize..][..*len as usize]
    }

    fn payload(&mut self, payload: &Payload<'static>) -> Payload<'a> {
        match payload {
            Payload::Borrowed(_) => Payload::Borrowed(self.bytes()),
            Payload::Shared(bytes) => Payload::Shared(bytes.clone()),
        }
    }

    fn op(&mut self, op: &OpKind<'static>) -> OpKind<'a> {
        match op {
            OpKind::Set { target, .. } => OpKind::Set {
                target: *target,
                name: self.bytes(),
                value: self.bytes(),
            },
            OpKind::Add { target, .. } => OpKind::Add {
                target: *target,
                name: self.bytes(),
                value: self.bytes(),
            },
            OpKind::Delete { target, .. } => OpKind::Delete {
                target: *target,
                name: self.bytes(),
            },
            OpKind::SetAt { target, index, .. } => OpKind::SetAt {
                target: *target,
                index: *index,
                value: self.bytes(),
            },
            OpKind::DeleteAt { target, index } => OpKind::DeleteAt {
                target: *target,
                index: *index,
            },
            OpKind::Pass(n) => OpKind::Pass(*n),
            OpKind::Drop(n) => OpKind::Drop(*n),
            OpKind::Inject(p) => OpKind::Inject(self.payload(p)),
            OpKind::BodyWrite { bytes, end } => OpKind::BodyWrite {
                bytes: self.payload(bytes),
                end: *end,
            },
            OpKind::Metadata { .. } => OpKind::Metadata {
                namespace: self.bytes(),
                key: self.bytes(),
                value: self.bytes(),
            },
            OpKind::Metric { id, value } => OpKind::Metric {
                id: *id,
                value: *value,
            },
            OpKind::Route(cluster) => OpKind::Route(cluster.is_some().then(|| self.bytes())),
            OpKind::Unknown(kind) => OpKind::Unknown(*kind),
        }
    }
}
