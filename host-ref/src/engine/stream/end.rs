//! Failures, deadlines and the end of a stream (spec chapters 5.7 and 14).

use std::sync::Arc;

use proxy_golang_abi::{BodyMode, DirectionEnd, EndReason, EventFlags, Phase};
use smallvec::SmallVec;

use super::super::fields::Fields;
use super::super::guest::{Chain, FailureMode, Filter};
use super::super::table::State as Slot;
use super::{At, Cut, Cx, Dir, Signal, State, Stream};

/// Why a guest failed on a stream: the values of the metric label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The action ERROR.
    Error,
    /// ERROR with a text that says panic.
    Panic,
    /// A result that the rules do not allow.
    Invalid,
    /// A PENDING not completed, or too much held for too long.
    Deadline,
    /// A limit of the host.
    Limit,
    /// Too many streams pend.
    Cap,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Error,
        Self::Panic,
        Self::Invalid,
        Self::Deadline,
        Self::Limit,
        Self::Cap,
    ];

    /// As in metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Panic => "panic",
            Self::Invalid => "invalid",
            Self::Deadline => "deadline",
            Self::Limit => "limit",
            Self::Cap => "cap",
        }
    }
}

/// A guest's failure on a stream, for the host's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The filter's name.
    pub filter: String,
    /// What kind.
    pub reason: Reason,
    /// In which phase; 0 for `apply`.
    pub phase: Phase,
    /// What was found, from the guest or the host. Never for clients.
    pub text: String,
}

impl Failure {
    pub(super) fn new(reason: Reason, phase: Phase, text: &str) -> Self {
        Self {
            filter: String::new(),
            reason,
            phase,
            text: text.to_owned(),
        }
    }
}

impl<H: Fields> Stream<H> {
    /// Counts a failure and hands it to the driver's log.
    pub(super) fn report(&mut self, worker: u32, filter: &Filter, failure: &Failure) {
        let count = filter.stats.count(worker, failure.phase);
        count.error();
        filter.stats.failures(failure.reason).inc();
        if failure.reason == Reason::Panic {
            count.panic();
        }
        self.details = format!(
            "{}: {}: {}",
            filter.name,
            failure.reason.name(),
            failure.text
        );
        let failure = Failure {
            filter: filter.name.clone(),
            ..failure.clone()
        };
        self.signals.push(Signal::GuestFailed(Box::new(failure)));
    }

    /// D13 or D15: the guest gets nothing more of this stream, and its failure mode decides.
    pub(super) fn fail(
        &mut self,
        cx: &mut Cx<'_>,
        chain: &Chain,
        place: usize,
        at: Option<At>,
        failure: &Failure,
    ) {
        let filter = &chain.filters()[place];
        self.report(cx.worker.id(), filter, failure);
        if failure.phase == Phase::LOG || self.places[place].failed || self.closed {
            return;
        }
        let harmless = self.is_harmless(place, at.map(|at| at.dir));
        self.places[place].failed = true;
        for dir in Dir::BOTH {
            self.cancel_side(cx, chain, dir, place);
        }
        let handle = self.places[place].handle;
        cx.worker.retire(handle);
        if filter.policy.failure_mode == FailureMode::Open && harmless {
            filter.stats.bypassed.inc();
            for dir in Dir::BOTH {
                let pos = self.pos_of(dir, place);
                let side = &mut self.flows[dir as usize].sides[pos];
                if side.state != State::Done {
                    side.state = State::Bypass;
                }
                side.hold_since = None;
                if !side.changed {
                    side.length_left = None;
                }
            }
            return;
        }
        self.why.get_or_insert(EndReason::ERROR);
        if self.can_reply(place) {
            self.failure_reply(cx, chain, place);
        } else {
            self.reset(cx, chain);
        }
    }

    /// Whether going on without this guest can't mix what it changed with what it did not (spec 14.2).
    fn is_harmless(&self, place: usize, failing: Option<Dir>) -> bool {
        let direction = |dir: Dir| {
            let pos = self.pos_of(dir, place);
            let flow = &self.flows[dir as usize];
            let side = &flow.sides[pos];
            let looks = matches!(
                self.places[place].mode[dir as usize],
                BodyMode::SKIP | BodyMode::OBSERVE
            );
            let aside =
                matches!(side.state, State::Wait | State::Done) || (looks && flow.head_at > pos);
            !side.changed || (failing != Some(dir) && aside)
        };
        !self.places[place].replied && direction(Dir::Request) && direction(Dir::Response)
    }

    /// A08: the token of one direction at one place dies, with an `on_cancel` if nobody completed it.
    pub(super) fn cancel_side(&mut self, cx: &mut Cx<'_>, chain: &Chain, dir: Dir, place: usize) {
        if let Some(token) = self.retire_pending(cx, chain, dir, place) {
            self.cancel(cx, chain, place, token);
        }
    }

    /// The first half of A08; the token, if the guest has to hear of it.
    fn retire_pending(
        &mut self,
        cx: &mut Cx<'_>,
        chain: &Chain,
        dir: Dir,
        place: usize,
    ) -> Option<u64> {
        let at = self.at(dir, self.pos_of(dir, place));
        if !matches!(self.side(at).state, State::Pend(_)) {
            return None;
        }
        let filter = &chain.filters()[place];
        let token = self.side(at).token;
        self.unpend(cx, filter, at);
        self.side(at).state = State::Bypass;
        match cx.worker.retire(token) {
            Slot::Pending => Some(token),
            Slot::Done => {
                filter.stats.unused_completions.inc();
                None
            }
            _ => None,
        }
    }

    fn cancel(&mut self, cx: &mut Cx<'_>, chain: &Chain, place: usize, token: u64) {
        let filter = &chain.filters()[place];
        let seat = &self.places[place];
        filter.stats.cancels.inc();
        filter
            .guest
            .cancel(seat.user, seat.handle, token, cx.worker.id());
    }

    /// Both directions end without a reply.
    pub(super) fn reset(&mut self, cx: &mut Cx<'_>, chain: &Chain) {
        self.cancel_upstream();
        self.signals.push(Signal::ResetClient);
        self.close_with(cx, chain, EndReason::ERROR);
    }

    pub(super) fn cancel_upstream(&mut self) {
        if !std::mem::replace(&mut self.upstream_cancelled, true) {
            self.signals.push(Signal::CancelUpstream);
        }
    }

    /// A direction was cut from outside.
    pub fn cut(&mut self, cx: &mut Cx<'_>, dir: Dir, why: Cut) {
        if self.closed || self.flows[dir as usize].finished {
            return;
        }
        let flow = &mut self.flows[dir as usize];
        flow.open = false;
        let reason = match (dir, why) {
            (Dir::Request, Cut::Receiver) => {
                // The upstream reads no more and may still answer.
                flow.how = DirectionEnd::RECEIVER;
                let chain = self.chain.clone();
                self.cut_sides(cx, &chain, dir);
                self.end_if_both_ended(cx);
                return self.run(cx);
            }
            (Dir::Request, Cut::Sender) => {
                flow.cut_short(DirectionEnd::SENDER);
                self.flows[Dir::Response as usize].cut_short(DirectionEnd::RECEIVER);
                EndReason::CLIENT_ABORT
            }
            (Dir::Response, Cut::Receiver) => {
                flow.cut_short(DirectionEnd::RECEIVER);
                self.flows[Dir::Request as usize].cut_short(DirectionEnd::SENDER);
                EndReason::CLIENT_ABORT
            }
            (Dir::Response, Cut::Sender) => {
                flow.cut_short(DirectionEnd::SENDER);
                self.flows[Dir::Request as usize].cut_short(DirectionEnd::RECEIVER);
                self.signals.push(Signal::ResetClient);
                EndReason::UPSTREAM_RESET
            }
            (_, Cut::Timeout) => {
                flow.cut_short(DirectionEnd::PROXY);
                self.signals.push(Signal::ResetClient);
                EndReason::TIMEOUT
            }
        };
        self.cancel_upstream();
        self.close(cx, reason);
    }

    /// Whether both directions have ended, however.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.flows.iter().all(|f| f.finished)
    }

    pub(super) fn end_if_both_ended(&mut self, cx: &mut Cx<'_>) {
        if !self.limits.driver_closes && self.has_ended() {
            self.close(cx, EndReason::COMPLETE);
        }
    }

    /// Ends everything now, in the order of spec 5.7. A driver that gives a stream up before [`Signal::Finished`]
    /// calls it first; once it has run, it does nothing.
    pub fn close(&mut self, cx: &mut Cx<'_>, reason: EndReason) {
        let chain = std::mem::take(&mut self.chain);
        self.close_with(cx, &chain, reason);
        self.chain = chain;
    }

    fn close_with(&mut self, cx: &mut Cx<'_>, chain: &Chain, reason: EndReason) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        let reason = *self.why.get_or_insert(reason);
        for flow in &mut self.flows {
            flow.cut_short(DirectionEnd::PROXY);
        }
        self.cancel_all(cx, chain);
        let how = |dir: Dir| u64::from(self.flows[dir as usize].how.0);
        let arg = u64::from(reason.0) | how(Dir::Request) << 8 | how(Dir::Response) << 12;
        for place in 0..self.places.len() {
            if self.places[place].wants(Phase::LOG) && !self.places[place].failed {
                self.call_plain(cx, chain, place, Phase::LOG, arg, EventFlags(0));
            }
        }
        for place in &self.places {
            cx.worker.retire(place.handle);
        }
        for (place, filter) in self.places.iter().zip(chain.filters()) {
            if place.user != 0 {
                filter
                    .guest
                    .stream_end(place.user, place.handle, cx.worker.id());
            }
        }
        self.signals.push(Signal::Finished);
    }

    /// All tokens die before the first guest hears of it.
    fn cancel_all(&mut self, cx: &mut Cx<'_>, chain: &Chain) {
        let pends = |side: &super::Side| matches!(side.state, State::Pend(_));
        if !self.flows.iter().any(|flow| flow.sides.iter().any(pends)) {
            return;
        }
        let mut pending = SmallVec::<[(usize, u64); 4]>::new();
        for place in 0..self.places.len() {
            for dir in Dir::BOTH {
                pending.extend(
                    self.retire_pending(cx, chain, dir, place)
                        .map(|token| (place, token)),
                );
            }
        }
        for (place, token) in pending {
            self.cancel(cx, chain, place, token);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        if self.closed {
            return None;
        }
        let mut next = self.reply_deadline();
        let mut at = |deadline: u64| next = Some(next.map_or(deadline, |n| n.min(deadline)));
        for dir in Dir::BOTH {
            for (pos, side) in self.flows[dir as usize].sides.iter().enumerate() {
                let filter = &self.chain.filters()[self.place_of(dir, pos)];
                match side.state {
                    State::Pend(_) => at(side.deadline),
                    State::Hold
                        if side.view.len() > side.kept
                            && self.mode(self.at(dir, pos)) == BodyMode::STREAM
                            && !self.is_parked(&self.chain, self.at(dir, pos)) =>
                    {
                        at(side.shown_at.saturating_add(self.limits.hold_time_ns));
                    }
                    State::Hold => {}
                    _ => continue,
                }
                if let Some(since) = side.hold_since {
                    at(since.saturating_add(hold_limit(filter)));
                }
            }
        }
        next
    }

    /// Handles every deadline that has passed.
    pub fn timer(&mut self, cx: &mut Cx<'_>) {
        let now = cx.worker.now();
        let chain = self.chain.clone();
        for dir in Dir::BOTH {
            for pos in 0..self.places.len() {
                if self.closed {
                    return;
                }
                self.timer_at(cx, &chain, self.at(dir, pos), now);
            }
        }
        if self
            .reply_deadline()
            .is_some_and(|deadline| deadline <= now)
        {
            self.abandon_reply(cx, &chain);
        }
        self.run(cx);
    }

    fn timer_at(&mut self, cx: &mut Cx<'_>, chain: &Chain, at: At, now: u64) {
        let filter = Self::filter(chain, at);
        let mode = self.mode(at);
        let hold_time = self.limits.hold_time_ns;
        let side = self.side(at);
        let withholds = matches!(side.state, State::Pend(_) | State::Hold);
        let spent = withholds
            && side
                .hold_since
                .is_some_and(|since| since.saturating_add(hold_limit(filter)) <= now);
        let late = matches!(side.state, State::Pend(_)) && side.deadline <= now;
        let due = side.state == State::Hold
            && mode == BodyMode::STREAM
            && side.view.len() > side.kept
            && side.shown_at.saturating_add(hold_time) <= now;
        if !(spent || late) {
            if due {
                self.show_held(cx, chain, at);
            }
            return;
        }
        if let State::Pend(_) = side.state
            && cx.worker.is_done(side.token)
        {
            return; // completed in time: the completion is in the mail
        }
        filter.stats.deadlines.inc();
        let text = if late {
            "not completed before its deadline"
        } else {
            "held for longer than the host allows"
        };
        let phase = match self.side(at).state {
            State::Pend(part) => at.dir.phase(part),
            _ => at.dir.phase(super::PartOf::Body),
        };
        self.fail(
            cx,
            chain,
            at.place,
            Some(at),
            &Failure::new(Reason::Deadline, phase, text),
        );
    }
}

impl<H> super::Flow<H> {
    /// How the request of a stream ended that is answered here: complete, or cut by the host.
    pub(super) fn answered(&mut self) {
        if !self.finished && self.how != DirectionEnd::NEVER_BEGAN {
            self.how = if self.open {
                DirectionEnd::PROXY
            } else {
                DirectionEnd::COMPLETE
            };
        }
    }

    /// Ends a direction that has not ended, if it began.
    pub(super) fn cut_short(&mut self, how: DirectionEnd) {
        if self.finished {
            return;
        }
        self.finished = true;
        self.open = false;
        if self.how != DirectionEnd::NEVER_BEGAN && self.how == DirectionEnd::PROXY {
            self.how = how;
        }
    }
}

fn hold_limit(filter: &Arc<Filter>) -> u64 {
    u64::try_from(filter.policy.hold_limit.as_nanos()).unwrap_or(u64::MAX)
}
