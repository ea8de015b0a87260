//! A batch is validated as a whole before anything of it is visible (PXG-MUT-005).

use proxy_golang_abi::feature::Feature;
use proxy_golang_abi::{Action, BodyMode, EventFlags, Phase, ResultFlags, Target};
use smallvec::SmallVec;

use super::super::fields::{Fields, Views};
use super::super::grammar;
use super::super::guest::Filter;
use super::super::outcome::{Op, OpKind, Outcome};
use super::super::stateless::{refuse_edit, refuse_metadata, show};
use super::call::project;
use super::judge::Refusal;
use super::settle::{Context, Edits};
use super::{At, BodyLength, Dir, PartOf, Stream};

/// For each operation whether it is applied; the others are skipped and counted.
pub(super) type Applied = SmallVec<[bool; 32]>;

/// A batch that takes effect.
#[derive(Debug, Default)]
pub(super) struct Judged {
    pub(super) applied: Applied,
    /// Operations to be counted as skipped.
    pub(super) skipped: u64,
}

/// What one operation is found to be.
enum Verdict {
    Apply,
    /// Legal, and not possible or not known here.
    Skip,
    /// By index, of a field that the batch has removed: skipped also with MUST.
    Gone,
    Refuse(String),
}

fn refuse(text: impl Into<String>) -> Verdict {
    Verdict::Refuse(text.into())
}

impl<H: Fields> Stream<H> {
    /// Judges every operation of `outcome`, or says what makes the batch illegal.
    pub(super) fn judge_ops(
        &self,
        filter: &Filter,
        context: &Context,
        outcome: &Outcome<'_>,
    ) -> Result<Judged, Refusal> {
        let mut judged = Judged::default();
        if outcome.ops.is_empty() && context.part() != Some(PartOf::Body) {
            return Ok(judged);
        }
        let only_effects = matches!(
            outcome.action,
            Action::REPLY | Action::RESET | Action::ERROR
        );
        let mut counts = Counts::default();
        let mut shown = [const { None }; 2];
        for (index, op) in outcome.ops.iter().enumerate() {
            let verdict = match &op.kind {
                OpKind::Metadata { namespace, key, .. } => judge_metadata(filter, namespace, key),
                OpKind::Metric { id, .. } if filter.guest.has_metric(*id) => Verdict::Apply,
                OpKind::Metric { .. } => Verdict::Skip,
                _ if only_effects => {
                    judged.applied.push(false);
                    continue;
                }
                OpKind::Unknown(_) => Verdict::Skip,
                OpKind::Set { .. }
                | OpKind::Add { .. }
                | OpKind::Delete { .. }
                | OpKind::SetAt { .. }
                | OpKind::DeleteAt { .. } => {
                    let before = (&outcome.ops[..index], &judged.applied);
                    self.judge_field_op(filter, context, op, before, &mut shown)
                }
                OpKind::Pass(n) => {
                    counts.moved = true;
                    counts.sent = counts.sent.saturating_add(*n);
                    counts.cursor = counts.cursor.saturating_add(*n);
                    judge_cursor(context, counts.cursor)
                }
                OpKind::Drop(n) => {
                    counts.cursor = counts.cursor.saturating_add(*n);
                    judge_cursor(context, counts.cursor)
                }
                OpKind::Inject(bytes) => {
                    let verdict = self.judge_inject(context);
                    counts.moved = true;
                    if matches!(verdict, Verdict::Apply) {
                        let len = bytes.as_slice().len() as u64;
                        counts.sent = counts.sent.saturating_add(len);
                    }
                    verdict
                }
                OpKind::BodyWrite { end, .. } => {
                    let verdict = self.judge_body_write(filter, context, *end, counts.ended);
                    counts.ended |= *end;
                    verdict
                }
                OpKind::Route(cluster) => self.judge_route(filter, context, *cluster),
            };
            let applies = match verdict {
                Verdict::Apply => true,
                Verdict::Gone => false,
                Verdict::Skip if !op.must => false,
                Verdict::Skip => {
                    return Err(Refusal::invalid(format!(
                        "operation {index} ({}) says MUST and is not possible here",
                        name_of(op)
                    )));
                }
                Verdict::Refuse(why) => {
                    return Err(Refusal::invalid(format!(
                        "operation {index} ({}): {why}",
                        name_of(op)
                    )));
                }
            };
            judged.applied.push(applies);
            judged.skipped += u64::from(!applies);
            if applies {
                counts.added +=
                    usize::from(matches!(op.kind, OpKind::Set { .. } | OpKind::Add { .. }));
                for shown in shown.iter_mut().flatten() {
                    shown.remove(op);
                }
            }
        }
        if let Some(at) = context.at {
            if context.part() == Some(PartOf::Body) {
                self.judge_body(filter, context, at, outcome, &counts)
                    .map_err(Refusal::invalid)?;
            }
            self.judge_size(filter, context, at, outcome, &judged, counts.added)?;
        }
        Ok(judged)
    }

    /// What the body operations come to together.
    fn judge_body(
        &self,
        filter: &Filter,
        context: &Context,
        at: At,
        outcome: &Outcome<'_>,
        counts: &Counts,
    ) -> Result<(), String> {
        let held = context.has(EventFlags::HEADERS_HELD);
        let rest = context.shown - counts.cursor.min(context.shown);
        if outcome.action == Action::MORE {
            if held && counts.moved {
                return Err("PASS or INJECT with MORE while the headers are held: bytes cannot overtake them".into());
            }
            if (counts.moved || counts.cursor > 0) && !filter.has(Feature::PARTIAL_RELEASE) {
                return Err(
                    "PASS, DROP or INJECT with MORE needs the feature PARTIAL_RELEASE".into(),
                );
            }
            let max = filter.declared.max_body[at.dir as usize];
            if rest > max {
                return Err(format!("MORE would keep {rest} bytes; max_body is {max}"));
            }
        }
        // PXG-HDR-007: a byte beyond the content-length never leaves.
        let leaves = match outcome.action {
            Action::CONTINUE => counts.sent.saturating_add(rest),
            Action::MORE => counts.sent,
            _ => return Ok(()),
        };
        let flow = &self.flows[at.dir as usize];
        let side = &flow.sides[at.pos];
        let left = if held && context.mode == BodyMode::STREAM {
            let resizes = outcome.flags.0 & ResultFlags::RESIZES.0 != 0;
            match flow.length {
                BodyLength::Exact(n) if !resizes && !self.is_resizing(filter, at) => Some(n),
                _ => None,
            }
        } else {
            side.length_left
        };
        let edits = side.changed || counts.moved || counts.cursor > 0;
        if let Some(left) = left.filter(|_| edits)
            && leaves > left
        {
            return Err(format!(
                "the body would be {} bytes longer than its content-length; declare RESIZES to change a length",
                leaves - left
            ));
        }
        Ok(())
    }

    /// PXG-HDR-009: the number of fields after the batch.
    fn judge_size(
        &self,
        filter: &Filter,
        context: &Context,
        at: At,
        outcome: &Outcome<'_>,
        judged: &Judged,
        added: usize,
    ) -> Result<(), Refusal> {
        let flow = &self.flows[at.dir as usize];
        let shown = context.shown_fields;
        let max = self.limits.max_fields;
        if added == 0 || shown[0].max(shown[1]) + added <= max {
            return Ok(());
        }
        let trailers = flow.end.as_ref().and_then(|end| end.trailers.as_deref());
        let mut edits = [Edits::new(), Edits::new()];
        self.edits(
            filter,
            context,
            at,
            &outcome.ops,
            &judged.applied,
            &mut edits,
        );
        for ((list, edits), before) in [flow.head.as_ref(), trailers].iter().zip(edits).zip(shown) {
            let mut list = list.cloned().unwrap_or_else(|| H::from_fields([]));
            list.apply(&edits);
            let mut views = Views::new();
            list.view(&mut views);
            if !edits.is_empty() && views.len() > max.max(before) {
                return Err(Refusal::limit(format!(
                    "{} fields after the operations; this host takes {max}",
                    views.len()
                )));
            }
        }
        Ok(())
    }

    fn judge_field_op<'s>(
        &'s self,
        filter: &Filter,
        context: &Context,
        op: &Op<'_>,
        before: (&[Op<'_>], &Applied),
        shown: &mut [Option<Box<Shown<'s>>>; 2],
    ) -> Verdict {
        let Some(at) = context.at else {
            return refuse("not for this phase");
        };
        let target = match op.kind {
            OpKind::Set { target, .. }
            | OpKind::Add { target, .. }
            | OpKind::Delete { target, .. }
            | OpKind::SetAt { target, .. }
            | OpKind::DeleteAt { target, .. } => target,
            _ => return refuse("no field operation"),
        };
        let trailers = match target {
            Target::HEADERS => false,
            Target::TRAILERS => true,
            Target(n) => return refuse(format!("target {n} is not HEADERS or TRAILERS")),
        };
        let body = context.phase == at.dir.phase(PartOf::Body);
        if body && context.mode == BodyMode::OBSERVE {
            return refuse("OBSERVE can only look");
        }
        // The grammar first: what is illegal is refused even where it would be too late.
        if let Some(why) = refuse_edit(&op.kind) {
            return refuse(why);
        }
        let is_pseudo = |name: &[u8]| name.first() == Some(&b':');
        if let OpKind::Set { name, .. } = op.kind
            && is_pseudo(name)
        {
            let status = name == b":status";
            let head = self.flows[at.dir as usize].head.as_ref();
            let missing = matches!(name, b":path" | b":scheme")
                && head.is_some_and(|head| head.value(name).is_none());
            if status != (at.dir == Dir::Response) || missing {
                return refuse(format!(
                    "{} is not a pseudo-header of this message",
                    show(name)
                ));
            }
        }
        let here = if trailers {
            let feature = match at.dir {
                Dir::Request => Feature::TRAILERS_OUT_REQUEST,
                Dir::Response => Feature::TRAILERS_OUT_RESPONSE,
            };
            let at_end = body && context.has(EventFlags::END_STREAM);
            filter.has(feature)
                && (context.part() == Some(PartOf::Trailers) || at_end && self.takes_trailers(at))
        } else {
            context.holds_head()
        };
        if !here {
            return Verdict::Skip;
        }
        let index = match op.kind {
            OpKind::SetAt { index, .. } | OpKind::DeleteAt { index, .. } => index,
            _ => return Verdict::Apply,
        };
        let shown = shown[usize::from(trailers)].get_or_insert_with(|| {
            let mut shown = Box::new(Shown::new(target));
            let flow = &self.flows[at.dir as usize];
            if trailers {
                if let Some(list) = flow.end.as_ref().and_then(|end| end.trailers.as_ref()) {
                    list.view(&mut shown.fields);
                }
            } else if let Some(head) = &flow.head {
                head.view(&mut shown.fields);
                project(filter, context.phase, &mut shown.fields);
            }
            shown.gone.resize(shown.fields.len(), false);
            for (op, _) in before
                .0
                .iter()
                .zip(before.1)
                .filter(|(_, applied)| **applied)
            {
                shown.remove(op);
            }
            shown
        });
        let count = shown.fields.len();
        let Some((index, field)) = usize::try_from(index)
            .ok()
            .and_then(|i| Some((i, shown.fields.get(i)?)))
        else {
            return refuse(format!("index {index} of a view of {count} fields"));
        };
        let gone = shown.gone[index];
        match op.kind {
            OpKind::DeleteAt { .. } if is_pseudo(field.name()) => {
                refuse("a pseudo-header can only be set")
            }
            _ if grammar::is_host_owned(field.name()) => {
                refuse(format!("{} is the host's own field", show(field.name())))
            }
            OpKind::SetAt { value, .. }
                if is_pseudo(field.name()) && !grammar::is_pseudo_value(field.name(), value) =>
            {
                refuse(format!(
                    "{} is not a value of {}",
                    show(value),
                    show(field.name())
                ))
            }
            _ if gone => Verdict::Gone,
            _ => Verdict::Apply,
        }
    }

    /// Whether trailers can still be added to a message that has none: its framing must allow it, or be open.
    fn takes_trailers(&self, at: At) -> bool {
        let flow = &self.flows[at.dir as usize];
        let left = flow.head_at > flow.sides.len();
        match flow.length {
            _ if flow.has_trailers_at(at.pos) => true,
            _ if !self.limits.adds_trailers => false,
            BodyLength::None => at.dir == Dir::Request && !left,
            BodyLength::Exact(_) => !left,
            BodyLength::Unknown => true,
        }
    }

    fn judge_inject(&self, context: &Context) -> Verdict {
        if !in_body(context) {
            return refuse("only for a body's view");
        }
        let Some(at) = context.at else {
            return refuse("only for a body's view");
        };
        if at.dir == Dir::Response && self.flows[1].length == super::BodyLength::None {
            return Verdict::Skip; // HEAD, 204, 304
        }
        Verdict::Apply
    }

    fn judge_body_write(
        &self,
        filter: &Filter,
        context: &Context,
        end: bool,
        ended: bool,
    ) -> Verdict {
        if context.at.is_some() || context.phase == Phase::LOG {
            return refuse("only by apply or from WAKE");
        }
        let open = self
            .reply
            .as_ref()
            .is_some_and(|r| r.place == context.place && r.open);
        let forwarded = !end && filter.has(Feature::BODY_INJECT) && self.can_inject(context.place);
        if (open && !ended) || forwarded {
            Verdict::Apply
        } else {
            Verdict::Skip
        }
    }

    fn judge_route(&self, filter: &Filter, context: &Context, cluster: Option<&[u8]>) -> Verdict {
        let request = context.at.is_some_and(|at| {
            at.dir == Dir::Request
                && (context.phase == Phase::REQUEST_HEADERS
                    || context.flags.0 & EventFlags::HEADERS_HELD.0 != 0)
        });
        if !(request || (context.late && context.at.is_none() && context.phase != Phase::WAKE)) {
            return refuse("only while the request's headers are here");
        }
        if let Some(cluster) = cluster
            && !filter
                .policy
                .clusters
                .iter()
                .any(|c| c.as_bytes() == cluster)
        {
            return refuse(format!(
                "the operator does not allow the cluster {} here",
                show(cluster)
            ));
        }
        if !filter.has(Feature::ROUTE) || self.flows[0].head_at >= self.places.len() {
            return Verdict::Skip;
        }
        Verdict::Apply
    }
}

#[derive(Default)]
struct Counts {
    /// Bytes of the view that PASS and DROP took.
    cursor: u64,
    /// Bytes that PASS and INJECT send.
    sent: u64,
    /// Whether PASS or INJECT is there at all.
    moved: bool,
    /// Fields that SET and ADD may have added.
    added: usize,
    /// A BODY_WRITE with END was there.
    ended: bool,
}

/// The delivered view, and what of it the batch has removed so far.
struct Shown<'s> {
    target: Target,
    fields: Views<'s>,
    gone: SmallVec<[bool; 40]>,
}

impl Shown<'_> {
    fn new(target: Target) -> Self {
        Self {
            target,
            fields: Views::new(),
            gone: SmallVec::new(),
        }
    }

    fn remove(&mut self, op: &Op<'_>) {
        match op.kind {
            OpKind::Set { target, name, .. } | OpKind::Delete { target, name }
                if target == self.target =>
            {
                for (field, gone) in self.fields.iter().zip(&mut self.gone) {
                    *gone |= field.name() == name;
                }
            }
            OpKind::DeleteAt { target, index } if target == self.target => {
                if let Some(gone) = usize::try_from(index)
                    .ok()
                    .and_then(|i| self.gone.get_mut(i))
                {
                    *gone = true;
                }
            }
            _ => {}
        }
    }
}

fn in_body(context: &Context) -> bool {
    context.part() == Some(PartOf::Body) && context.mode != BodyMode::OBSERVE
}

fn judge_cursor(context: &Context, cursor: u64) -> Verdict {
    if !in_body(context) {
        return refuse("only for a body's view");
    }
    if cursor > context.shown {
        return refuse(format!(
            "reaches byte {cursor} of a view of {}",
            context.shown
        ));
    }
    Verdict::Apply
}

fn judge_metadata(filter: &Filter, namespace: &[u8], key: &[u8]) -> Verdict {
    if let Some(why) = refuse_metadata(namespace, key) {
        return refuse(why);
    }
    if !filter.has(Feature::METADATA) {
        return Verdict::Skip;
    }
    let own = namespace.is_empty() || namespace == filter.name.as_bytes();
    if !own
        && !filter
            .policy
            .metadata_namespaces
            .iter()
            .any(|n| n.as_bytes() == namespace)
    {
        return refuse(format!(
            "the namespace {} is not this filter's and not granted to it",
            show(namespace)
        ));
    }
    Verdict::Apply
}

fn name_of(op: &Op<'_>) -> &'static str {
    match op.kind {
        OpKind::Set { .. } => "HEADER_SET",
        OpKind::Add { .. } => "HEADER_ADD",
        OpKind::Delete { .. } => "HEADER_DELETE",
        OpKind::SetAt { .. } => "SET_AT",
        OpKind::DeleteAt { .. } => "DELETE_AT",
        OpKind::Pass(_) => "PASS",
        OpKind::Drop(_) => "DROP",
        OpKind::Inject(_) => "INJECT",
        OpKind::BodyWrite { .. } => "BODY_WRITE",
        OpKind::Metadata { .. } => "METADATA_SET",
        OpKind::Metric { .. } => "METRIC",
        OpKind::Route(_) => "ROUTE",
        OpKind::Unknown(_) => "unknown kind",
    }
}
