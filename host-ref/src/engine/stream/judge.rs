//! A batch is validated as a whole before anything of it is visible (PXG-MUT-005).

use proxy_golang_abi::feature::Feature;
use proxy_golang_abi::{Action, BodyMode, EventFlags, Phase, Target};
use smallvec::SmallVec;

use super::super::fields::{Fields, Views};
use super::super::grammar;
use super::super::guest::Filter;
use super::super::outcome::{Op, OpKind, Outcome};
use super::settle::Context;
use super::{Dir, PartOf, Stream};

/// For each operation whether it is applied; the others are skipped and counted.
pub(super) type Applied = SmallVec<[bool; 32]>;

/// What one operation is found to be.
enum Verdict {
    Apply,
    /// Legal, and not possible or not known here.
    Skip,
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
    ) -> Result<Applied, String> {
        let mut applied = Applied::new();
        if outcome.ops.is_empty() {
            return Ok(applied);
        }
        if outcome.ops.len() > self.limits.max_ops {
            return Err(format!(
                "{} operations; this host takes {}",
                outcome.ops.len(),
                self.limits.max_ops
            ));
        }
        let only_effects = matches!(
            outcome.action,
            Action::REPLY | Action::RESET | Action::ERROR
        );
        let mut cursor = 0u64;
        let mut counts = Counts {
            sent: 0,
            moved: false,
        };
        let mut views = None;
        for (index, op) in outcome.ops.iter().enumerate() {
            let verdict = match &op.kind {
                OpKind::Metadata { namespace, key, .. } => judge_metadata(filter, namespace, key),
                OpKind::Metric { .. } => Verdict::Apply,
                _ if only_effects => {
                    applied.push(false);
                    continue;
                }
                OpKind::Unknown(_) => Verdict::Skip,
                OpKind::Set { .. }
                | OpKind::Add { .. }
                | OpKind::Delete { .. }
                | OpKind::SetAt { .. }
                | OpKind::DeleteAt { .. } => self.judge_field_op(filter, context, op, &mut views),
                OpKind::Pass(n) | OpKind::Drop(n) => {
                    counts.moved |= matches!(op.kind, OpKind::Pass(_));
                    cursor = cursor.saturating_add(*n);
                    if matches!(op.kind, OpKind::Pass(_)) {
                        counts.sent = counts.sent.saturating_add(*n);
                    }
                    self.judge_cursor(context, cursor)
                }
                OpKind::Inject(bytes) => {
                    counts.moved = true;
                    counts.sent = counts.sent.saturating_add(bytes.as_slice().len() as u64);
                    self.judge_inject(context)
                }
                OpKind::BodyWrite { .. } => self.judge_body_write(filter, context),
                OpKind::Route(cluster) => self.judge_route(filter, context, *cluster),
            };
            match verdict {
                Verdict::Apply => applied.push(true),
                Verdict::Skip if !op.must => applied.push(false),
                Verdict::Skip => {
                    return Err(format!(
                        "operation {index} ({}) says MUST and is not possible here",
                        name_of(op)
                    ));
                }
                Verdict::Refuse(why) => {
                    return Err(format!("operation {index} ({}): {why}", name_of(op)));
                }
            }
        }
        self.judge_body(filter, context, outcome, cursor, &counts)?;
        Ok(applied)
    }

    /// What the body operations come to together.
    fn judge_body(
        &self,
        filter: &Filter,
        context: &Context,
        outcome: &Outcome<'_>,
        cursor: u64,
        counts: &Counts,
    ) -> Result<(), String> {
        let Some(at) = context.at else { return Ok(()) };
        if context.phase != at.dir.phase(PartOf::Body) {
            return Ok(());
        }
        let held = context.flags.0 & EventFlags::HEADERS_HELD.0 != 0;
        if outcome.action == Action::MORE {
            if held && counts.moved {
                return Err("PASS or INJECT with MORE while the headers are held: bytes cannot overtake them".into());
            }
            if (counts.moved || cursor > 0) && !filter.has(Feature::PARTIAL_RELEASE) {
                return Err(
                    "PASS, DROP or INJECT with MORE needs the feature PARTIAL_RELEASE".into(),
                );
            }
        }
        // PXG-HDR-007: a byte beyond the content-length never leaves.
        let rest = if outcome.action == Action::CONTINUE {
            context.shown - cursor.min(context.shown)
        } else {
            0
        };
        if let Some(left) = self.flows[at.dir as usize].sides[at.pos].length_left
            && counts.sent + rest > left
        {
            return Err(format!(
                "the body would be {} bytes longer than its content-length; declare RESIZES to change a length",
                counts.sent + rest - left
            ));
        }
        Ok(())
    }

    fn judge_field_op<'s>(
        &'s self,
        filter: &Filter,
        context: &Context,
        op: &Op<'_>,
        views: &mut Option<[Views<'s>; 2]>,
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
        if body && self.mode(at) == BodyMode::OBSERVE {
            return refuse("OBSERVE can only look");
        }
        // The grammar first: what is illegal is refused even where it would be too late.
        let is_pseudo = |name: &[u8]| name.first() == Some(&b':');
        match op.kind {
            OpKind::Set { name, value, .. } if is_pseudo(name) => {
                let fits = matches!(
                    (at.dir, name),
                    (
                        Dir::Request,
                        b":method" | b":scheme" | b":authority" | b":path"
                    ) | (Dir::Response, b":status")
                );
                if trailers || !fits {
                    return refuse(format!(
                        "{} is not a pseudo-header of this message",
                        show(name)
                    ));
                }
                if !grammar::is_pseudo_value(name, value) {
                    return refuse(format!("{} is not a value of {}", show(value), show(name)));
                }
            }
            OpKind::Set { name, value, .. } | OpKind::Add { name, value, .. } => {
                if let Some(why) = refuse_field(name, value) {
                    return refuse(why);
                }
            }
            OpKind::Delete { name, .. } => {
                if let Some(why) = refuse_field(name, b"") {
                    return refuse(why);
                }
            }
            OpKind::SetAt { value, .. } if !grammar::is_value(value) => {
                return refuse(format!("{} is not a field value", show(value)));
            }
            _ => {}
        }
        let here = if trailers {
            let feature = match at.dir {
                Dir::Request => Feature::TRAILERS_OUT_REQUEST,
                Dir::Response => Feature::TRAILERS_OUT_RESPONSE,
            };
            let at_end = body && context.flags.0 & EventFlags::END_STREAM.0 != 0;
            filter.has(feature) && (context.phase == at.dir.phase(PartOf::Trailers) || at_end)
        } else {
            context.phase == at.dir.phase(PartOf::Headers)
                || context.flags.0 & EventFlags::HEADERS_HELD.0 != 0
        };
        if !here {
            return Verdict::Skip;
        }
        let index = match op.kind {
            OpKind::SetAt { index, .. } | OpKind::DeleteAt { index, .. } => index,
            _ => return Verdict::Apply,
        };
        let flow = &self.flows[at.dir as usize];
        let views = views.get_or_insert_with(|| {
            let [mut head, mut tail] = std::array::from_fn(|_| Views::new());
            if let Some(h) = &flow.head {
                h.view(&mut head);
            }
            if let Some(t) = flow.end.as_ref().and_then(|end| end.trailers.as_ref()) {
                t.view(&mut tail);
            }
            [head, tail]
        });
        let view = &views[usize::from(trailers)];
        let Some(field) = usize::try_from(index).ok().and_then(|i| view.get(i)) else {
            return refuse(format!("index {index} of a view of {} fields", view.len()));
        };
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
            _ => Verdict::Apply,
        }
    }

    fn in_body(&self, context: &Context) -> bool {
        context.at.is_some_and(|at| {
            context.phase == at.dir.phase(PartOf::Body) && self.mode(at) != BodyMode::OBSERVE
        })
    }

    fn judge_cursor(&self, context: &Context, cursor: u64) -> Verdict {
        if !self.in_body(context) {
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

    fn judge_inject(&self, context: &Context) -> Verdict {
        if !self.in_body(context) {
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

    fn judge_body_write(&self, filter: &Filter, context: &Context) -> Verdict {
        if context.at.is_some() || context.phase == Phase::LOG {
            return refuse("only by apply or from WAKE");
        }
        let open = self
            .reply
            .as_ref()
            .is_some_and(|r| r.place == context.place && r.open);
        let forwarded = filter.has(Feature::BODY_INJECT) && self.can_inject(context.place);
        if open || forwarded {
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

struct Counts {
    /// Bytes that PASS and INJECT send.
    sent: u64,
    /// Whether PASS or INJECT is there at all.
    moved: bool,
}

fn judge_metadata(filter: &Filter, namespace: &[u8], key: &[u8]) -> Verdict {
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
    if key.is_empty() {
        return refuse("an empty key");
    }
    Verdict::Apply
}

/// Why a field of a guest must not go on the wire, if so.
pub(super) fn refuse_field(name: &[u8], value: &[u8]) -> Option<String> {
    if !grammar::is_name(name) {
        Some(format!("{} is not a field name in lower case", show(name)))
    } else if grammar::is_host_owned(name) {
        Some(format!("{} is the host's own field", show(name)))
    } else if !grammar::is_value(value) {
        Some(format!(
            "the value of {} has a control byte or blanks at its ends: {}",
            show(name),
            show(value)
        ))
    } else {
        None
    }
}

/// Bytes of a guest for a log: quoted, escaped, at most 100.
fn show(bytes: &[u8]) -> String {
    let more = if bytes.len() > 100 { "..." } else { "" };
    format!("\"{}{more}\"", bytes[..bytes.len().min(100)].escape_ascii())
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
