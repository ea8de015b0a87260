//! A result is judged as a whole before anything of it is visible: its modes, its action, its operations, its reply.

use proxy_golang_abi::feature::Feature;
use proxy_golang_abi::{
    Action, BodyMode, EventFlags, Phase, ReplyFlags, ResultFlags, Status, phase_bit,
};

use super::super::fields::Fields;
use super::super::guest::Filter;
use super::super::outcome::{Fault, Outcome, Reply, action_name};
use super::super::stateless::refuse_reply;
use super::end::Reason;
use super::judge_ops::Judged;
use super::settle::Context;
use super::{Dir, PartOf, Stream};

/// Why a result takes no effect.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    pub(super) text: String,
}

impl Refusal {
    pub(super) fn invalid(text: impl Into<String>) -> Self {
        Self {
            reason: Reason::Invalid,
            text: text.into(),
        }
    }

    pub(super) fn limit(text: impl Into<String>) -> Self {
        Self {
            reason: Reason::Limit,
            text: text.into(),
        }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        match fault.status {
            Status::LIMIT => Self::limit(fault.text),
            _ => Self::invalid(fault.text),
        }
    }
}

impl<H: Fields> Stream<H> {
    /// Steps 1 to 3 of spec 7.11, without an effect: the modes that hold from here on, and what applies.
    pub(super) fn judge(
        &self,
        filter: &Filter,
        context: &Context,
        outcome: &Outcome<'_>,
    ) -> Result<([BodyMode; 2], Judged), Refusal> {
        // The number before anything else of the batch (spec 10.1).
        if outcome.ops.len() > self.limits.max_ops {
            return Err(Refusal::limit(format!(
                "{} operations; this host takes {}",
                outcome.ops.len(),
                self.limits.max_ops
            )));
        }
        let modes = self
            .judge_modes(filter, context, outcome)
            .map_err(Refusal::invalid)?;
        self.judge_action(filter, context, outcome, modes)
            .map_err(Refusal::invalid)?;
        if let Some(reply) = &outcome.reply {
            judge_reply(filter, reply).map_err(Refusal::invalid)?;
        }
        let judged = self.judge_ops(filter, context, outcome)?;
        Ok((modes, judged))
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
        if outcome.flags.0 == 0 && outcome.body_mode == [BodyMode::UNSET; 2] {
            return Ok(modes);
        }
        if outcome.flags.0 & ResultFlags::RESIZES.0 != 0 {
            let feature = match context.at.map(|at| at.dir) {
                Some(Dir::Request) => Feature::RESIZE_REQUEST,
                _ => Feature::RESIZE_RESPONSE,
            };
            if !filter.has(feature) {
                return Err("RESIZES without the feature RESIZE".into());
            }
        }
        let mask = place.mask & !outcome.unsubscribe;
        let can = |dir: Dir, mode| {
            Feature::of_body_mode(dir as usize, mode).is_some_and(|feature| filter.has(feature))
        };
        for dir in Dir::BOTH {
            let wanted = outcome.body_mode[dir as usize];
            let now = modes[dir as usize];
            if wanted == BodyMode::UNSET || wanted == now {
                continue;
            }
            let pos = self.pos_of(dir, context.place);
            let flow = &self.flows[dir as usize];
            let undecided = if place.wants(dir.phase(PartOf::Headers)) {
                !flow.sides[pos].decided
            } else {
                flow.head_at <= pos
            };
            let early = undecided && mask & phase_bit(dir.phase(PartOf::Body)) != 0;
            let over = context.has(EventFlags::OVER_LIMIT)
                && context.at.is_some_and(|at| at.dir == dir)
                && context.mode == BodyMode::WHOLE;
            let legal = match wanted {
                BodyMode::SKIP => undecided || now != BodyMode::WHOLE || over,
                BodyMode::STREAM | BodyMode::WHOLE | BodyMode::OBSERVE => {
                    early && can(dir, wanted) || wanted == BodyMode::STREAM && over
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
        let illegal = |why: &str| Err(format!("{} is illegal here: {why}", action_name(action)));
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
            && context.mode == BodyMode::OBSERVE
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
            (PartOf::Body, BodyMode::STREAM) if context.mode == BodyMode::STREAM => Ok(()),
            (PartOf::Body, BodyMode::STREAM) => illegal("over the limit in WHOLE"),
            _ => illegal("the body mode delivers nothing more"),
        }
    }
}

fn judge_reply(filter: &Filter, reply: &Reply<'_>) -> Result<(), String> {
    if reply.flags.0 & ReplyFlags::OPEN.0 != 0 && !filter.has(Feature::STREAM_REPLY) {
        return Err("an OPEN reply needs the feature STREAM_REPLY".into());
    }
    refuse_reply(reply).map_or(Ok(()), Err)
}
