//! A result takes effect: what it asks for is judged, then applied, then the direction moves on.

use bytes::Bytes;
use proxy_golang_abi::feature::Feature;
use proxy_golang_abi::{
    Action, BodyMode, EventFlags, Phase, ResultFlags, Status, Target, phase_bit,
};
use smallvec::SmallVec;

use super::super::fields::{Edit, Fields, Views};
use super::super::guest::{Chain, Filter};
use super::super::outcome::{Op, OpKind, Outcome};
use super::super::table::State as Slot;
use super::end::{Failure, Reason};
use super::judge::Refusal;
use super::judge_ops::{Applied, Judged};
use super::{At, BodyLength, Cx, Dir, Metadata, PartOf, Signal, State, Step, Stream};

/// The field operations of a batch, for a head or for trailers.
pub(super) type Edits<'o> = SmallVec<[Edit<'o>; 8]>;

/// What a result answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context {
    pub(super) place: usize,
    /// `None` for WAKE, LOG and `apply`.
    pub(super) at: Option<At>,
    /// 0 for `apply`.
    pub(super) phase: Phase,
    pub(super) flags: EventFlags,
    /// The direction's body mode at the event.
    pub(super) mode: BodyMode,
    /// Length of the view that the event showed.
    pub(super) shown: u64,
    /// Fields of the head and of the trailers when the event was built.
    pub(super) shown_fields: [usize; 2],
    /// By `complete` or `apply`, and not by a return.
    pub(super) late: bool,
    /// Nanoseconds inside the guest.
    pub(super) ns: u64,
    /// By the clock, at the guest's return; 0 if nobody looked.
    pub(super) now: u64,
}

impl Context {
    pub(super) fn part(&self) -> Option<PartOf> {
        self.at?;
        match self.phase {
            Phase::REQUEST_HEADERS | Phase::RESPONSE_HEADERS => Some(PartOf::Headers),
            Phase::REQUEST_BODY | Phase::RESPONSE_BODY => Some(PartOf::Body),
            Phase::REQUEST_TRAILERS | Phase::RESPONSE_TRAILERS => Some(PartOf::Trailers),
            _ => None,
        }
    }

    pub(super) fn has(&self, flag: EventFlags) -> bool {
        self.flags.0 & flag.0 != 0
    }

    /// Whether the headers are at this place, so that they can still be changed.
    pub(super) fn holds_head(&self) -> bool {
        self.part() == Some(PartOf::Headers) || self.has(EventFlags::HEADERS_HELD)
    }
}

impl<H: Fields> Stream<H> {
    /// The whole of spec 7.11 for one result.
    pub(super) fn settle(
        &mut self,
        cx: &mut Cx<'_>,
        chain: &Chain,
        context: Context,
        outcome: &mut Outcome<'_>,
    ) {
        self.note(&context, outcome.action, outcome.ops.len());
        let filter = &chain.filters()[context.place];
        if let Some(at) = context.at
            && !context.late
        {
            if outcome.action == Action::PENDING {
                let clean = outcome.ops.is_empty()
                    && outcome.reply.is_none()
                    && outcome.flags.0 == 0
                    && outcome.unsubscribe == 0
                    && outcome.body_mode == [BodyMode::UNSET; 2]
                    && outcome.more_bytes == 0
                    && outcome.error.is_empty();
                return self.pend(cx, chain, context, at, clean, outcome.pend_ns);
            }
            self.retire_issued(cx, filter, at);
        }
        let (modes, judged) = match self.judge(filter, &context, outcome) {
            Ok(judged) => judged,
            Err(refusal) => return self.refuse(cx, chain, context, &refusal),
        };
        if !(context.late && context.at.is_none()) {
            let place = &mut self.places[context.place];
            if outcome.unsubscribe & place.mask & phase_bit(Phase::WAKE) != 0 {
                cx.worker.refuse_wakes(place.handle);
            }
            place.mask &= !outcome.unsubscribe;
            place.mode = modes;
            if let Some(at) = context.at {
                let resizes = outcome.flags.0 & ResultFlags::RESIZES.0 != 0;
                self.side(at).resizes |= resizes && context.holds_head();
                self.side(at).decided |= context.part() == Some(PartOf::Headers);
            }
        }
        match outcome.action {
            Action::ERROR => {
                self.apply_ops(cx, filter, &context, &outcome.ops, &judged);
                let text = String::from_utf8_lossy(outcome.error);
                let reason = if outcome.error.starts_with(b"panic: ") {
                    Reason::Panic
                } else {
                    Reason::Error
                };
                self.fail(
                    cx,
                    chain,
                    context.place,
                    context.at,
                    &Failure::new(reason, context.phase, &text),
                );
            }
            Action::RESET => {
                self.apply_ops(cx, filter, &context, &outcome.ops, &judged);
                self.reset(cx, chain);
            }
            Action::REPLY => {
                self.apply_ops(cx, filter, &context, &outcome.ops, &judged);
                if let Some(reply) = outcome.reply.take() {
                    self.guest_reply(cx, chain, context.place, *reply);
                }
            }
            action => {
                let rest = self.apply_ops(cx, filter, &context, &outcome.ops, &judged);
                if outcome.flags.0 & ResultFlags::FLUSH.0 != 0 && filter.has(Feature::FLUSH) {
                    let dir = context.at.map_or(Dir::Response, |at| at.dir);
                    self.signals.push(Signal::Flush(dir));
                }
                let Some(at) = context.at else { return };
                if action == Action::MORE {
                    // At headers nothing of the body was shown.
                    let body = context.part() == Some(PartOf::Body);
                    self.hold(cx, at, if body { rest } else { 0 }, outcome.more_bytes);
                } else {
                    self.go_on(cx, chain, context, at, rest);
                }
            }
        }
    }

    pub(super) fn note(&mut self, context: &Context, action: Action, ops: usize) {
        if self.limits.trace {
            let Context {
                place,
                phase,
                late,
                ns,
                ..
            } = *context;
            self.trace.push(Step {
                place,
                phase,
                action,
                ops,
                late,
                ns,
            });
        }
    }

    /// D04. `clean`: the result says nothing else; `pend_ns` is its wish.
    pub(super) fn pend(
        &mut self,
        cx: &mut Cx<'_>,
        chain: &Chain,
        context: Context,
        at: At,
        clean: bool,
        pend_ns: u64,
    ) {
        let filter = Self::filter(chain, at);
        let observes = context.part() == Some(PartOf::Body) && self.mode(at) == BodyMode::OBSERVE;
        let refusal = if !filter.may_pend(context.phase) {
            "PENDING in a phase outside pend_phases"
        } else if !clean {
            "PENDING with operations, a reply or changes: complete brings them"
        } else if observes {
            "PENDING in OBSERVE, which holds nothing"
        } else {
            ""
        };
        if !refusal.is_empty() {
            self.retire_issued(cx, filter, at);
            return self.refuse(cx, chain, context, &Refusal::invalid(refusal));
        }
        filter.stats.count(cx.worker.id(), context.phase).pending();
        cx.worker.count_pending(filter);
        let now = match context.now {
            0 => cx.worker.now(),
            now => now,
        };
        let limit = u64::try_from(filter.policy.pend_limit.as_nanos()).unwrap_or(u64::MAX);
        let wish = [pend_ns, filter.declared.pend_ns]
            .into_iter()
            .find(|ns| *ns != 0)
            .unwrap_or(limit);
        let side = self.side(at);
        side.state = State::Pend(context.part().unwrap_or(PartOf::Headers));
        side.deadline = now.saturating_add(wish.min(limit));
        side.hold_since.get_or_insert(now);
        let token = side.token;
        cx.worker.pend(token, filter);
    }

    /// A04 and A06: the event's token dies with its return.
    pub(super) fn retire_issued(&mut self, cx: &mut Cx<'_>, filter: &Filter, at: At) {
        let token = std::mem::take(&mut self.side(at).token);
        if token != 0 && cx.worker.retire(token) == Slot::Done {
            filter.stats.unused_completions.inc();
        }
    }

    /// Applies what was judged, in order. Answers how many bytes of the event's view are left.
    pub(super) fn apply_ops(
        &mut self,
        cx: &mut Cx<'_>,
        filter: &Filter,
        context: &Context,
        ops: &[Op<'_>],
        judged: &Judged,
    ) -> u64 {
        let mut rest = context.shown;
        if ops.is_empty() {
            return rest;
        }
        if judged.skipped > 0 {
            filter.stats.skipped_ops.add(judged.skipped);
        }
        self.apply_fields(filter, context, ops, &judged.applied);
        for (op, _) in ops
            .iter()
            .zip(&judged.applied)
            .filter(|(_, applied)| **applied)
        {
            match op.kind {
                OpKind::Pass(n) => {
                    rest -= n;
                    if let Some(at) = context.at {
                        self.pass_bytes(at, n);
                    }
                }
                OpKind::Drop(n) => {
                    rest -= n;
                    if let Some(at) = context.at {
                        let side = self.side(at);
                        side.view.discard(n);
                        side.offset += n;
                        side.changed = true;
                    }
                }
                OpKind::Inject(ref bytes) => {
                    if let Some(at) = context.at {
                        self.inject(at, bytes.clone().into_bytes());
                    }
                }
                OpKind::BodyWrite { ref bytes, end } => {
                    let bytes = bytes.clone().into_bytes();
                    if !context.late {
                        self.count_write(cx, context.place, bytes.len() as u64);
                    }
                    self.body_write(cx, context.place, bytes, end);
                }
                OpKind::Metadata {
                    namespace,
                    key,
                    value,
                } => {
                    let namespace = if namespace.is_empty() {
                        filter.name.as_bytes()
                    } else {
                        namespace
                    };
                    self.set_metadata(namespace, key, value);
                }
                OpKind::Metric { id, value }
                    if filter.guest.record_metric(id, value) != Status::OK =>
                {
                    filter.stats.skipped_ops.inc();
                }
                OpKind::Route(cluster) => {
                    self.signals
                        .push(Signal::Route(cluster.map(Bytes::copy_from_slice)));
                }
                _ => {}
            }
        }
        rest
    }

    fn apply_fields(
        &mut self,
        filter: &Filter,
        context: &Context,
        ops: &[Op<'_>],
        applied: &Applied,
    ) {
        let Some(at) = context.at else { return };
        let mut edits = [Edits::new(), Edits::new()];
        self.edits(filter, context, at, ops, applied, &mut edits);
        let [head_edits, trailer_edits] = &edits;
        self.edit_head(at, head_edits);
        let flow = &mut self.flows[at.dir as usize];
        if !trailer_edits.is_empty()
            && let Some(end) = &mut flow.end
        {
            let trailers = end
                .trailers
                .get_or_insert_with(|| Box::new(H::from_fields([])));
            trailers.apply(trailer_edits);
            if trailers.is_empty() {
                end.trailers = None;
            } else if matches!(flow.length, BodyLength::Exact(_)) {
                // Framed so that trailers can follow; judged to be possible still.
                flow.length = BodyLength::Unknown;
            }
            flow.sides[at.pos].changed = true;
        }
    }

    /// Appends the field operations that apply, for the head and for the trailers. In place, for the lists are large.
    pub(super) fn edits<'o>(
        &self,
        filter: &Filter,
        context: &Context,
        at: At,
        ops: &'o [Op<'_>],
        applied: &Applied,
        edits: &mut [Edits<'o>; 2],
    ) {
        for (op, _) in ops.iter().zip(applied).filter(|(_, applied)| **applied) {
            let sensitive = op.sensitive;
            let in_full = |target, index| self.index_in_full(filter, context, at, target, index);
            let (target, edit) = match op.kind {
                OpKind::Set {
                    target,
                    name,
                    value,
                } => (
                    target,
                    Edit::Set {
                        name,
                        value,
                        sensitive,
                    },
                ),
                OpKind::Add {
                    target,
                    name,
                    value,
                } => (
                    target,
                    Edit::Add {
                        name,
                        value,
                        sensitive,
                    },
                ),
                OpKind::Delete { target, name } => (target, Edit::Delete { name }),
                OpKind::SetAt {
                    target,
                    index,
                    value,
                } => (
                    target,
                    Edit::SetAt {
                        index: in_full(target, index),
                        value,
                        sensitive,
                    },
                ),
                OpKind::DeleteAt { target, index } => (
                    target,
                    Edit::DeleteAt {
                        index: in_full(target, index),
                    },
                ),
                _ => continue,
            };
            edits[usize::from(target == Target::TRAILERS)].push(edit);
        }
    }

    /// The index in the list of what a projected view showed at `index`; trailers are never projected.
    fn index_in_full(
        &self,
        filter: &Filter,
        context: &Context,
        at: At,
        target: Target,
        index: u64,
    ) -> usize {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let bit = phase_bit(context.phase);
        let wanted = &filter.declared.projection;
        let Some(head) = &self.flows[at.dir as usize].head else {
            return index;
        };
        if target == Target::TRAILERS || wanted.iter().all(|(_, phases)| phases & bit == 0) {
            return index;
        }
        let mut all = Views::new();
        head.view(&mut all);
        let shown = all.iter().enumerate().filter(|(_, f)| {
            wanted
                .iter()
                .any(|(name, phases)| phases & bit != 0 && name == f.name())
        });
        shown.map(|(i, _)| i).nth(index).unwrap_or(usize::MAX)
    }

    pub(super) fn pass_bytes(&mut self, at: At, n: u64) {
        let flow = &mut self.flows[at.dir as usize];
        let side = &mut flow.sides[at.pos];
        if let Some(left) = &mut side.length_left {
            *left = left.saturating_sub(n);
        }
        flow.pass_bytes(at.pos, n);
    }

    pub(super) fn inject(&mut self, at: At, bytes: Bytes) {
        let flow = &mut self.flows[at.dir as usize];
        let side = &mut flow.sides[at.pos];
        side.changed = true;
        if let Some(left) = &mut side.length_left {
            *left = left.saturating_sub(bytes.len() as u64);
        }
        flow.push_behind(at.pos, bytes);
    }

    pub(super) fn set_metadata(&mut self, namespace: &[u8], key: &[u8], value: &[u8]) {
        let value = Bytes::copy_from_slice(value);
        self.metadata_changed = true;
        match self
            .metadata
            .iter_mut()
            .find(|m| m.namespace == namespace && m.key == key)
        {
            Some(entry) => entry.value = value,
            None => self.metadata.push(Metadata {
                namespace: Bytes::copy_from_slice(namespace),
                key: Bytes::copy_from_slice(key),
                value,
            }),
        }
    }

    /// CONTINUE: D05, D06, D08. `rest` bytes of the view have not been passed or dropped.
    fn go_on(&mut self, cx: &mut Cx<'_>, chain: &Chain, context: Context, at: At, rest: u64) {
        let whole = context.has(EventFlags::WHOLE_BODY);
        let filter = Self::filter(chain, at);
        match context.part() {
            Some(PartOf::Headers) => {
                let ended = context.has(EventFlags::END_STREAM);
                if self.mode(at) == BodyMode::WHOLE && !ended {
                    return self.hold_whole(cx, at);
                }
                self.pass_head(chain, at, self.mode(at));
                if ended {
                    self.pass_end(at);
                }
            }
            Some(PartOf::Body) => {
                if context.has(EventFlags::HEADERS_HELD) {
                    // Operations ran while the head was held: what they passed or injected is behind it already.
                    let flow = &mut self.flows[at.dir as usize];
                    let changed = flow.sides[at.pos].changed;
                    let behind = match flow.sides.get(at.pos + 1) {
                        Some(next) => next.view.len(),
                        None => flow.ready.len(),
                    };
                    let no_body = at.dir == Dir::Response && flow.length == BodyLength::None;
                    if changed && !no_body && context.mode == BodyMode::WHOLE {
                        let plain = whole && !flow.has_trailers_at(at.pos);
                        flow.length = if plain {
                            BodyLength::Exact(behind + rest)
                        } else {
                            BodyLength::Unknown
                        };
                    }
                    if context.has(EventFlags::OVER_LIMIT)
                        && self.places[at.place].mode[at.dir as usize] == BodyMode::WHOLE
                    {
                        let streams = Feature::of_body_mode(at.dir as usize, BodyMode::STREAM)
                            .is_some_and(|feature| filter.has(feature));
                        self.places[at.place].mode[at.dir as usize] = if streams {
                            BodyMode::STREAM
                        } else {
                            BodyMode::SKIP
                        };
                    }
                    self.pass_head(chain, at, context.mode);
                    if let Some(left) = &mut self.side(at).length_left {
                        *left = left.saturating_sub(behind);
                    }
                }
                self.pass_bytes(at, rest);
                self.side(at).state = State::Flow;
                if context.has(EventFlags::END_STREAM) {
                    self.finish_place(cx, chain, at);
                }
            }
            Some(PartOf::Trailers) | None => self.finish_place(cx, chain, at),
        }
        let side = self.side(at);
        if side.state == State::Flow {
            side.hold_since = None;
        }
    }

    /// A result that takes no effect.
    pub(super) fn refuse(
        &mut self,
        cx: &mut Cx<'_>,
        chain: &Chain,
        context: Context,
        refusal: &Refusal,
    ) {
        if let Some(at) = context.at
            && !context.late
        {
            self.retire_issued(cx, &chain.filters()[context.place], at);
        }
        self.note(&context, Action::ERROR, 0);
        let failure = Failure::new(refusal.reason, context.phase, &refusal.text);
        self.fail(cx, chain, context.place, context.at, &failure);
    }
}
