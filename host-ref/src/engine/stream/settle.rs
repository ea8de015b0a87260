//! A result takes effect: what it asks for is judged, then applied, then the direction moves on.

use bytes::Bytes;
use proxy_golang_abi::feature::Feature;
use proxy_golang_abi::{
    Action, BodyMode, EventFlags, Phase, ResultFlags, Status, Target, phase_bit,
};
use smallvec::SmallVec;

use super::super::fields::{Edit, Fields, Views};
use super::super::guest::{Chain, Filter};
use super::super::outcome::{OpKind, Outcome};
use super::super::table::State as Slot;
use super::end::{Failure, Reason};
use super::judge::Applied;
use super::{At, BodyLength, Cx, Dir, Metadata, PartOf, Signal, State, Step, Stream};

/// What a result answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context {
    pub(super) place: usize,
    /// `None` for WAKE, LOG and `apply`.
    pub(super) at: Option<At>,
    /// 0 for `apply`.
    pub(super) phase: Phase,
    pub(super) flags: EventFlags,
    /// Length of the view that the event showed.
    pub(super) shown: u64,
    /// By `complete` or `apply`, and not by a return.
    pub(super) late: bool,
    /// Nanoseconds inside the guest.
    pub(super) ns: u64,
}

impl Context {
    fn part(&self) -> Option<PartOf> {
        let at = self.at?;
        [PartOf::Headers, PartOf::Body, PartOf::Trailers]
            .into_iter()
            .find(|p| at.dir.phase(*p) == self.phase)
    }

    fn has(&self, flag: EventFlags) -> bool {
        self.flags.0 & flag.0 != 0
    }
}

impl<H: Fields> Stream<H> {
    /// The whole of spec 7.11 for one result.
    pub(super) fn settle(
        &mut self,
        cx: &mut Cx<'_>,
        chain: &Chain,
        context: Context,
        outcome: Outcome<'_>,
    ) {
        self.note(&context, outcome.action, outcome.ops.len());
        let filter = &chain.filters()[context.place];
        if let Some(at) = context.at
            && !context.late
        {
            if outcome.action == Action::PENDING {
                return self.pend(cx, chain, context, at, &outcome);
            }
            self.retire_issued(cx, filter, at);
        }
        let judged = self.judge_modes(filter, &context, &outcome);
        let judged = judged.and_then(|modes| {
            self.judge_action(filter, &context, &outcome, modes)?;
            Ok((modes, self.judge_ops(filter, &context, &outcome)?))
        });
        let (modes, applied) = match judged {
            Ok(judged) => judged,
            Err(text) => return self.fail_invalid(cx, chain, context, &text),
        };
        if !(context.late && context.at.is_none()) {
            self.places[context.place].mask &= !outcome.unsubscribe;
            self.places[context.place].mode = modes;
            if let Some(at) = context.at
                && outcome.flags.0 & ResultFlags::RESIZES.0 != 0
            {
                self.side(at).resizes = true;
            }
        }
        match outcome.action {
            Action::ERROR => {
                self.apply_ops(cx, filter, &context, outcome.ops, &applied);
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
                self.apply_ops(cx, filter, &context, outcome.ops, &applied);
                self.reset(cx);
            }
            Action::REPLY => {
                self.apply_ops(cx, filter, &context, outcome.ops, &applied);
                match outcome.reply {
                    Some(reply) => self.guest_reply(cx, chain, context, reply),
                    None => {
                        self.fail_invalid(cx, chain, context, "the action REPLY without a reply")
                    }
                }
            }
            action => {
                let rest = self.apply_ops(cx, filter, &context, outcome.ops, &applied);
                let Some(at) = context.at else { return };
                if outcome.flags.0 & ResultFlags::FLUSH.0 != 0 {
                    self.signals.push_back(Signal::Flush(at.dir));
                }
                if action == Action::MORE {
                    self.keep(cx, chain, context, at, outcome.more_bytes);
                } else {
                    self.go_on(cx, chain, context, at, rest);
                }
            }
        }
    }

    fn note(&mut self, context: &Context, action: Action, ops: usize) {
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

    /// D04.
    fn pend(
        &mut self,
        cx: &mut Cx<'_>,
        chain: &Chain,
        context: Context,
        at: At,
        outcome: &Outcome<'_>,
    ) {
        let filter = Self::filter(chain, at);
        let clean = outcome.ops.is_empty()
            && outcome.reply.is_none()
            && outcome.flags.0 == 0
            && outcome.unsubscribe == 0
            && outcome.body_mode == [BodyMode::UNSET; 2]
            && outcome.more_bytes == 0;
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
            return self.fail_invalid(cx, chain, context, refusal);
        }
        filter.stats.phase(context.phase).pending.inc();
        cx.worker.count_pending(filter);
        let now = cx.worker.now();
        let limit = u64::try_from(filter.policy.pend_limit.as_nanos()).unwrap_or(u64::MAX);
        let wish = [outcome.pend_ns, filter.declared.pend_ns]
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
    fn retire_issued(&mut self, cx: &mut Cx<'_>, filter: &Filter, at: At) {
        let token = std::mem::take(&mut self.side(at).token);
        if token != 0 && cx.worker.retire(token) == Slot::Done {
            filter.stats.unused_completions.inc();
        }
    }

    /// The modes after this result, if its changes are legal (spec 7.1).
    fn judge_modes(
        &self,
        filter: &Filter,
        context: &Context,
        outcome: &Outcome<'_>,
    ) -> Result<[BodyMode; 2], String> {
        let place = &self.places[context.place];
        let mut modes = place.mode;
        if outcome.flags.0 & ResultFlags::RESIZES.0 != 0 {
            let held =
                context.part() == Some(PartOf::Headers) || context.has(EventFlags::HEADERS_HELD);
            let feature = match context.at.map(|at| at.dir) {
                Some(Dir::Request) => Feature::RESIZE_REQUEST,
                _ => Feature::RESIZE_RESPONSE,
            };
            if !held || !filter.has(feature) {
                return Err(
                    "RESIZES where the headers are not held, or without the feature RESIZE".into(),
                );
            }
        }
        for dir in Dir::BOTH {
            let wanted = outcome.body_mode[dir as usize];
            let now = modes[dir as usize];
            if wanted == BodyMode::UNSET || wanted == now {
                continue;
            }
            let pos = self.pos_of(dir, context.place);
            let flow = &self.flows[dir as usize];
            let early =
                flow.head_at <= pos && context.part() != Some(PartOf::Body) || flow.head_at < pos;
            let over = context.has(EventFlags::OVER_LIMIT) && now == BodyMode::WHOLE;
            let legal = match wanted {
                BodyMode::SKIP => early || now != BodyMode::WHOLE || over,
                BodyMode::STREAM | BodyMode::WHOLE | BodyMode::OBSERVE => {
                    early
                        && place.wants(dir.phase(PartOf::Body))
                        && filter.has(mode_feature(dir, wanted))
                        || wanted == BodyMode::STREAM && over
                }
                _ => false,
            };
            if !legal {
                return Err(format!("body mode {} from {} here", wanted.0, now.0));
            }
            modes[dir as usize] = wanted;
        }
        Ok(modes)
    }

    /// Spec 5.4.
    fn judge_action(
        &self,
        filter: &Filter,
        context: &Context,
        outcome: &Outcome<'_>,
        modes: [BodyMode; 2],
    ) -> Result<(), String> {
        let action = outcome.action;
        if !(Action::CONTINUE.0..=Action::ERROR.0).contains(&action.0) {
            return Err(format!(
                "the action {} (0 is UNSET: the guest decided nothing)",
                action.0
            ));
        }
        if outcome.reply.is_some() != (action == Action::REPLY) {
            return Err("a reply belongs to the action REPLY, and to no other".into());
        }
        let illegal = |why: &str| Err(format!("{} is illegal here: {why}", name_of(action)));
        if action == Action::REPLY && self.places[context.place].replied {
            return illegal("this guest has replied already");
        }
        let Some(at) = context.at else {
            let log = context.phase == Phase::LOG;
            return match action {
                Action::CONTINUE | Action::ERROR => Ok(()),
                Action::REPLY | Action::RESET if !log => Ok(()),
                _ => illegal("there is no direction to hold"),
            };
        };
        let part = context.part().unwrap_or(PartOf::Headers);
        let unsubscribed = outcome.unsubscribe & phase_bit(at.dir.phase(PartOf::Body)) != 0;
        let mode = if unsubscribed || !self.places[at.place].wants(at.dir.phase(PartOf::Body)) {
            BodyMode::SKIP
        } else {
            modes[at.dir as usize]
        };
        if part == PartOf::Body
            && self.mode(at) == BodyMode::OBSERVE
            && matches!(action, Action::MORE | Action::REPLY)
        {
            return illegal("OBSERVE holds nothing");
        }
        if action == Action::PENDING {
            return illegal("a completion decides");
        }
        if action != Action::MORE {
            return Ok(());
        }
        let hold = match at.dir {
            Dir::Request => Feature::HOLD_REQUEST,
            Dir::Response => Feature::HOLD_RESPONSE,
        };
        match (part, mode) {
            _ if context.has(EventFlags::END_STREAM) || context.has(EventFlags::BODY_END) => {
                illegal("nothing more comes")
            }
            (PartOf::Trailers, _) => illegal("nothing more comes"),
            (PartOf::Headers, BodyMode::WHOLE) => Ok(()),
            (PartOf::Headers, BodyMode::STREAM) if filter.has(hold) => Ok(()),
            (PartOf::Headers, BodyMode::STREAM) => illegal("the feature HOLD is missing"),
            (PartOf::Body, BodyMode::STREAM) => Ok(()),
            _ => illegal("the body mode delivers nothing more"),
        }
    }

    /// Applies what was judged, in order. Answers how many bytes of the event's view are left.
    pub(super) fn apply_ops(
        &mut self,
        cx: &mut Cx<'_>,
        filter: &Filter,
        context: &Context,
        ops: SmallVec<[super::super::outcome::Op<'_>; 4]>,
        applied: &Applied,
    ) -> u64 {
        let mut rest = context.shown;
        if ops.is_empty() {
            return rest;
        }
        let skipped = applied.iter().filter(|a| !**a).count() as u64;
        if skipped > 0 {
            filter.stats.skipped_ops.add(skipped);
        }
        self.apply_fields(filter, context, &ops, applied);
        for (op, _) in ops
            .into_iter()
            .zip(applied)
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
                OpKind::Inject(bytes) => {
                    if let Some(at) = context.at {
                        self.inject(at, bytes.into_bytes());
                    }
                }
                OpKind::BodyWrite { bytes, end } => {
                    self.body_write(cx, context.place, bytes.into_bytes(), end)
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
                OpKind::Metric { id, value } => {
                    if filter.guest.record_metric(id, value) != Status::OK {
                        filter.stats.skipped_ops.inc();
                    }
                }
                OpKind::Route(cluster) => {
                    self.signals
                        .push_back(Signal::Route(cluster.map(Bytes::copy_from_slice)));
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
        ops: &[super::super::outcome::Op<'_>],
        applied: &Applied,
    ) {
        let Some(at) = context.at else { return };
        let mut batches: [SmallVec<[Edit<'_>; 8]>; 2] = Default::default();
        for (op, _) in ops.iter().zip(applied).filter(|(_, applied)| **applied) {
            let sensitive = op.sensitive;
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
                } => {
                    let index = self.index_in_full(filter, context, at, index);
                    (
                        target,
                        Edit::SetAt {
                            index,
                            value,
                            sensitive,
                        },
                    )
                }
                OpKind::DeleteAt { target, index } => (
                    target,
                    Edit::DeleteAt {
                        index: self.index_in_full(filter, context, at, index),
                    },
                ),
                _ => continue,
            };
            batches[usize::from(target == Target::TRAILERS)].push(edit);
        }
        let flow = &mut self.flows[at.dir as usize];
        if !batches[0].is_empty()
            && let Some(head) = &mut flow.head
        {
            head.apply(&batches[0]);
            flow.sides[at.pos].changed = true;
        }
        if !batches[1].is_empty()
            && let Some(end) = &mut flow.end
        {
            let trailers = end.trailers.get_or_insert_with(|| H::from_fields([]));
            trailers.apply(&batches[1]);
            if trailers.is_empty() {
                end.trailers = None;
            }
            flow.sides[at.pos].changed = true;
        }
    }

    /// The index in the head of what a projected view showed at `index`.
    fn index_in_full(&self, filter: &Filter, context: &Context, at: At, index: u64) -> usize {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let bit = phase_bit(context.phase);
        let wanted = &filter.declared.projection;
        let Some(head) = &self.flows[at.dir as usize].head else {
            return index;
        };
        if wanted.iter().all(|(_, phases)| phases & bit == 0) {
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

    fn pass_bytes(&mut self, at: At, n: u64) {
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

    /// MORE: D05 at headers in WHOLE, else D07.
    fn keep(&mut self, cx: &mut Cx<'_>, chain: &Chain, context: Context, at: At, more_bytes: u64) {
        let max = Self::filter(chain, at).declared.max_body[at.dir as usize];
        let kept = self.side(at).view.len();
        if context.part() == Some(PartOf::Body) && context.has(EventFlags::OVER_LIMIT) && kept > max
        {
            let text = format!("MORE would keep {kept} bytes; max_body is {max}");
            return self.fail_invalid(cx, chain, context, &text);
        }
        self.hold(cx, at, more_bytes);
    }

    /// CONTINUE: D05, D06, D08. `rest` bytes of the view have not been passed or dropped.
    fn go_on(&mut self, cx: &mut Cx<'_>, chain: &Chain, context: Context, at: At, rest: u64) {
        let whole = context.has(EventFlags::WHOLE_BODY);
        match context.part() {
            Some(PartOf::Headers) => {
                let ended = context.has(EventFlags::END_STREAM);
                if self.mode(at) == BodyMode::WHOLE && !ended {
                    return self.hold(cx, at, 0);
                }
                self.pass_head(chain, at);
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
                    if changed
                        && !no_body
                        && (whole || self.places[at.place].mode[at.dir as usize] == BodyMode::WHOLE)
                    {
                        let flow = &mut self.flows[at.dir as usize];
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
                        self.places[at.place].mode[at.dir as usize] = BodyMode::STREAM;
                    }
                    self.pass_head(chain, at);
                    if let Some(left) = &mut self.side(at).length_left {
                        *left = left.saturating_sub(behind);
                    }
                }
                self.pass_bytes(at, rest);
                let side = self.side(at);
                if side.state != State::Done {
                    side.state = State::Flow;
                }
                side.hold_since = None;
                if context.has(EventFlags::END_STREAM) {
                    self.finish_place(cx, chain, context, at);
                }
            }
            Some(PartOf::Trailers) | None => self.finish_place(cx, chain, context, at),
        }
        let side = self.side(at);
        if side.state == State::Flow {
            side.hold_since = None;
        }
    }

    /// D08: the end passes, unless the guest made the body shorter than its content-length says (PXG-HDR-007).
    fn finish_place(&mut self, cx: &mut Cx<'_>, chain: &Chain, context: Context, at: At) {
        if let Some(left) = self.side(at).length_left.filter(|left| *left > 0) {
            let text =
                format!("the body ended {left} bytes short of its content-length; declare RESIZES");
            let filter = Self::filter(chain, at);
            self.report(filter, &Failure::new(Reason::Invalid, context.phase, &text));
            return self.reset(cx);
        }
        self.pass_end(at);
    }

    /// A result that takes no effect.
    pub(super) fn fail_invalid(
        &mut self,
        cx: &mut Cx<'_>,
        chain: &Chain,
        context: Context,
        text: &str,
    ) {
        if let Some(at) = context.at
            && !context.late
        {
            self.retire_issued(cx, &chain.filters()[context.place], at);
        }
        self.note(&context, Action::ERROR, 0);
        let failure = Failure::new(Reason::Invalid, context.phase, text);
        self.fail(cx, chain, context.place, context.at, &failure);
    }
}

fn mode_feature(dir: Dir, mode: BodyMode) -> Feature {
    match (dir, mode) {
        (Dir::Request, BodyMode::WHOLE) => Feature::BODY_WHOLE_REQUEST,
        (Dir::Request, BodyMode::OBSERVE) => Feature::BODY_OBSERVE_REQUEST,
        (Dir::Request, _) => Feature::BODY_STREAM_REQUEST,
        (Dir::Response, BodyMode::WHOLE) => Feature::BODY_WHOLE_RESPONSE,
        (Dir::Response, BodyMode::OBSERVE) => Feature::BODY_OBSERVE_RESPONSE,
        (Dir::Response, _) => Feature::BODY_STREAM_RESPONSE,
    }
}

fn name_of(action: Action) -> &'static str {
    match action {
        Action::CONTINUE => "CONTINUE",
        Action::PENDING => "PENDING",
        Action::MORE => "MORE",
        Action::REPLY => "REPLY",
        Action::RESET => "RESET",
        _ => "ERROR",
    }
}
