//! What most results are: CONTINUE at headers, with edits by name or nothing at all. Judged and copied out of the call
//! in one pass; whatever is unusual about a result goes the way of `judge` and `settle`, which also say what is wrong.

use proxy_golang_abi as abi;
use proxy_golang_abi::{Action, BodyMode, EventFlags, Phase, Target};

use super::super::fields::{Edit, Fields};
use super::super::grammar;
use super::super::guest::{Chain, PlainOp};
use super::super::outcome::{KeptOutcome, Op, OpKind, Outcome};
use super::settle::{Context, Edits};
use super::{At, Cx, Stream, StreamLimits};

impl StreamLimits {
    /// Whether `outcome` is such a result and legal; then `edits` are what it asks for, over bytes in `room`.
    pub(super) fn take_plain_outcome<'r>(
        &self,
        context: &Context,
        outcome: &Outcome<'_>,
        edits: &mut Edits<'r>,
        room: &'r mut Vec<u8>,
    ) -> Result<(), &'r mut Vec<u8>> {
        let plain = outcome.action == Action::CONTINUE
            && outcome.flags.0 == 0
            && outcome.unsubscribe == 0
            && outcome.body_mode == [BodyMode::UNSET; 2]
            && outcome.reply.is_none()
            && self.takes_plain(context, outcome.ops.len());
        if !plain {
            return Err(room);
        }
        take_edits(&outcome.ops, edits, room)
    }

    /// The same for a result that the boundary found to be plain.
    #[inline]
    pub(super) fn take_plain_ops<'r>(
        &self,
        context: &Context,
        ops: &[PlainOp<'_>],
        edits: &mut Edits<'r>,
        room: &'r mut Vec<u8>,
    ) -> Result<(), &'r mut Vec<u8>> {
        if !self.takes_plain(context, ops.len()) {
            return Err(room);
        }
        take_edits(ops, edits, room)
    }

    /// Whether so many edits are plain here, and below every limit of the host.
    #[inline]
    fn takes_plain(&self, context: &Context, n: usize) -> bool {
        context.is_headers()
            && n <= self.max_ops
            && (n == 0 || context.shown_fields[0] + n <= self.max_fields)
    }
}

impl<H: Fields> Stream<H> {
    /// What a completion asks for, if it is such a result: its grammar was checked when it was accepted.
    pub(super) fn take_plain_kept<'k>(
        &self,
        context: &Context,
        kept: &'k KeptOutcome,
    ) -> Option<Edits<'k>> {
        let edits = kept.plain_edits()?;
        self.limits
            .takes_plain(context, edits.len())
            .then(|| edits.collect())
    }

    /// The effect of such a result.
    #[inline]
    pub(super) fn settle_plain(
        &mut self,
        cx: &mut Cx<'_>,
        chain: &Chain,
        context: Context,
        at: At,
        edits: &Edits<'_>,
    ) {
        self.note(&context, Action::CONTINUE, edits.len());
        if !context.late {
            self.retire_issued(cx, Self::filter(chain, at), at);
        }
        self.side(at).decided = true;
        self.edit_head(at, edits);
        let ended = context.has(EventFlags::END_STREAM);
        if self.mode(at) == BodyMode::WHOLE && !ended {
            return self.hold_whole(cx, at);
        }
        self.pass_head(chain, at, self.mode(at));
        if ended {
            self.pass_end(at);
        }
        self.side(at).hold_since = None;
    }

    /// Applies edits to the head at this place.
    pub(super) fn edit_head(&mut self, at: At, edits: &Edits<'_>) {
        if edits.is_empty() {
            return;
        }
        let flow = &mut self.flows[at.dir as usize];
        if let Some(head) = &mut flow.head {
            head.apply(edits);
            flow.sides[at.pos].changed = true;
        }
    }
}

impl Context {
    /// Whether the result is of a direction's headers.
    #[inline]
    pub(super) fn is_headers(&self) -> bool {
        matches!(self.phase, Phase::REQUEST_HEADERS | Phase::RESPONSE_HEADERS)
    }
}

/// The edits that operations ask for, over bytes in `room`, if all of them are edits of the head by name that are legal on
/// every message.
#[inline]
fn take_edits<'r, O: NamedOp>(
    ops: &[O],
    edits: &mut Edits<'r>,
    room: &'r mut Vec<u8>,
) -> Result<(), &'r mut Vec<u8>> {
    let mut len = 0;
    for op in ops {
        let (name, value) = (op.name(), op.value());
        if !op.edits_head() || !grammar::is_field(name, value) {
            return Err(room);
        }
        len += name.len() + value.len();
    }
    if room.len() < len {
        room.resize(len, 0);
    }
    let mut free = &mut room[..];
    let mut keep = |bytes: &[u8]| -> &'r [u8] {
        let (copy, rest) = std::mem::take(&mut free).split_at_mut(bytes.len());
        free = rest;
        copy.copy_from_slice(bytes);
        copy
    };
    for op in ops {
        let name = keep(op.name());
        edits.push(op.edit(name, keep(op.value())));
    }
    Ok(())
}

/// An operation that may be an edit of the head by name.
trait NamedOp {
    fn edits_head(&self) -> bool;
    fn name(&self) -> &[u8];
    fn value(&self) -> &[u8];

    /// The edit, over these copies of name and value.
    fn edit<'r>(&self, name: &'r [u8], value: &'r [u8]) -> Edit<'r>;
}

impl NamedOp for PlainOp<'_> {
    #[inline]
    fn edits_head(&self) -> bool {
        self.target() == Target::HEADERS
    }

    #[inline]
    fn name(&self) -> &[u8] {
        self.name()
    }

    #[inline]
    fn value(&self) -> &[u8] {
        self.value()
    }

    #[inline]
    fn edit<'r>(&self, name: &'r [u8], value: &'r [u8]) -> Edit<'r> {
        let sensitive = self.sensitive();
        match self.kind() {
            abi::OpKind::HEADER_SET => Edit::Set {
                name,
                value,
                sensitive,
            },
            abi::OpKind::HEADER_ADD => Edit::Add {
                name,
                value,
                sensitive,
            },
            _ => Edit::Delete { name },
        }
    }
}

impl NamedOp for Op<'_> {
    fn edits_head(&self) -> bool {
        matches!(
            self.kind,
            OpKind::Set {
                target: Target::HEADERS,
                ..
            } | OpKind::Add {
                target: Target::HEADERS,
                ..
            } | OpKind::Delete {
                target: Target::HEADERS,
                ..
            }
        )
    }

    fn name(&self) -> &[u8] {
        match self.kind {
            OpKind::Set { name, .. } | OpKind::Add { name, .. } | OpKind::Delete { name, .. } => {
                name
            }
            _ => &[],
        }
    }

    fn value(&self) -> &[u8] {
        match self.kind {
            OpKind::Set { value, .. } | OpKind::Add { value, .. } => value,
            _ => &[],
        }
    }

    fn edit<'r>(&self, name: &'r [u8], value: &'r [u8]) -> Edit<'r> {
        let sensitive = self.sensitive;
        match self.kind {
            OpKind::Set { .. } => Edit::Set {
                name,
                value,
                sensitive,
            },
            OpKind::Add { .. } => Edit::Add {
                name,
                value,
                sensitive,
            },
            _ => Edit::Delete { name },
        }
    }
}
