//! What most results are: CONTINUE at headers, with edits by name or nothing at all. Judged and copied out of the call
//! in one pass; whatever is unusual about a result goes the way of `judge` and `settle`, which also say what is wrong.

use proxy_golang_abi::{Action, BodyMode, EventFlags, Phase, Target};

use super::super::fields::{Edit, Fields};
use super::super::grammar;
use super::super::guest::{Chain, PlainOp};
use super::super::outcome::{KeptOutcome, Op, OpKind, Outcome};
use super::settle::{Context, Edits};
use super::{At, Cx, Dir, PartOf, Stream};

impl<H: Fields> Stream<H> {
    /// Whether `outcome` is such a result and legal; then `edits` are what it asks for, over bytes in `room`.
    #[inline]
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
            && outcome.reply.is_none();
        if !plain {
            return Err(room);
        }
        self.take_plain(context, outcome.ops.iter().map(edit_of_op), edits, room)
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
        self.take_plain(context, ops.iter().map(edit_of_plain), edits, room)
    }

    /// What a completion asks for, if it is such a result: its grammar was checked when it was accepted.
    pub(super) fn take_plain_kept<'k>(
        &self,
        context: &Context,
        kept: &'k KeptOutcome,
    ) -> Option<Edits<'k>> {
        let edits = kept.plain_edits()?;
        let n = edits.len();
        let fits = n <= self.limits.max_ops
            && (n == 0 || context.shown_fields[0] + n <= self.limits.max_fields);
        (fits && context.is_headers()).then(|| edits.collect())
    }

    #[inline]
    fn take_plain<'r, 'o>(
        &self,
        context: &Context,
        ops: impl ExactSizeIterator<Item = Option<Edit<'o>>> + Clone,
        edits: &mut Edits<'r>,
        room: &'r mut Vec<u8>,
    ) -> Result<(), &'r mut Vec<u8>> {
        let headers = matches!(
            context.phase,
            Phase::REQUEST_HEADERS | Phase::RESPONSE_HEADERS
        );
        let n = ops.len();
        if !headers || n > self.limits.max_ops {
            return Err(room);
        }
        if n == 0 {
            return Ok(());
        }
        if context.shown_fields[0] + n > self.limits.max_fields {
            return Err(room);
        }
        let mut len = 0;
        for op in ops.clone() {
            let Some(bytes) = op.and_then(|edit| legal_len(&edit)) else {
                return Err(room);
            };
            len += bytes;
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
        edits.reserve(n);
        for edit in ops.flatten() {
            edits.push(match edit {
                Edit::Set {
                    name,
                    value,
                    sensitive,
                } => Edit::Set {
                    name: keep(name),
                    value: keep(value),
                    sensitive,
                },
                Edit::Add {
                    name,
                    value,
                    sensitive,
                } => Edit::Add {
                    name: keep(name),
                    value: keep(value),
                    sensitive,
                },
                Edit::Delete { name } => Edit::Delete { name: keep(name) },
                // By index: never plain.
                Edit::SetAt { .. } | Edit::DeleteAt { .. } => continue,
            });
        }
        Ok(())
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
            return self.hold(cx, at, 0, 0);
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
        if at.dir == Dir::Request && edits.iter().any(touches_what_replies_ask) {
            self.remember_request();
        }
        let flow = &mut self.flows[at.dir as usize];
        if let Some(head) = &mut flow.head {
            head.apply(edits);
            flow.sides[at.pos].changed = true;
        }
    }

    /// Keeps what a reply needs to know of the request as the client sent it. To be called before that changes or leaves.
    pub(super) fn remember_request(&mut self) {
        if self.asked.is_some() {
            return;
        }
        let Some(head) = &self.flows[Dir::Request as usize].head else {
            return;
        };
        let grpc = head
            .value(b"content-type")
            .filter(|v| v.starts_with(b"application/grpc"));
        self.asked = Some(super::Asked {
            head: head.value(b":method") == Some(b"HEAD"),
            grpc: grpc.map(Box::from),
        });
    }
}

impl Context {
    /// Whether the result is of a direction's headers.
    #[inline]
    pub(super) fn is_headers(&self) -> bool {
        self.part() == Some(PartOf::Headers)
    }
}

/// The edit of the head by name that an operation asks for, if it is one.
#[inline]
fn edit_of_op<'o>(op: &Op<'o>) -> Option<Edit<'o>> {
    let sensitive = op.sensitive;
    match op.kind {
        OpKind::Set {
            target: Target::HEADERS,
            name,
            value,
        } => Some(Edit::Set {
            name,
            value,
            sensitive,
        }),
        OpKind::Add {
            target: Target::HEADERS,
            name,
            value,
        } => Some(Edit::Add {
            name,
            value,
            sensitive,
        }),
        OpKind::Delete {
            target: Target::HEADERS,
            name,
        } => Some(Edit::Delete { name }),
        _ => None,
    }
}

#[inline]
fn edit_of_plain<'o>(op: &PlainOp<'o>) -> Option<Edit<'o>> {
    if op.target() != Target::HEADERS {
        return None;
    }
    let (name, value, sensitive) = (op.name(), op.value(), false);
    match op.kind() {
        proxy_golang_abi::OpKind::HEADER_SET => Some(Edit::Set {
            name,
            value,
            sensitive,
        }),
        proxy_golang_abi::OpKind::HEADER_ADD => Some(Edit::Add {
            name,
            value,
            sensitive,
        }),
        proxy_golang_abi::OpKind::HEADER_DELETE => Some(Edit::Delete { name }),
        _ => None,
    }
}

/// The bytes of an edit that is legal on every message.
#[inline]
fn legal_len(edit: &Edit<'_>) -> Option<usize> {
    let (name, value) = match *edit {
        Edit::Set { name, value, .. } | Edit::Add { name, value, .. } => (name, value),
        Edit::Delete { name } => (name, &[][..]),
        Edit::SetAt { .. } | Edit::DeleteAt { .. } => return None,
    };
    grammar::is_field(name, value).then_some(name.len() + value.len())
}

fn touches_what_replies_ask(edit: &Edit<'_>) -> bool {
    match *edit {
        Edit::Set { name, .. } | Edit::Add { name, .. } | Edit::Delete { name } => {
            matches!(name, b":method" | b"content-type")
        }
        Edit::SetAt { .. } | Edit::DeleteAt { .. } => true,
    }
}
