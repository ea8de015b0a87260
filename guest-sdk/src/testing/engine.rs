//! The stream of the test host: phases, body modes, operations, async. Written from the spec, chapters 5 to 12; simpler
//! than a host, and stricter: what a host would skip and count is a violation here, unless a filter can't know better.

mod direction;

use std::collections::BTreeMap;
use std::time::Instant;

use proxy_golang_abi as abi;
use proxy_golang_abi::feature::Feature;
use proxy_golang_abi::{
    Action, BodyMode, ConfigFlags, EventFlags, OpFlags, OpKind, Phase, ReplyFlags,
};

use super::{Done, End, Message, TestConfig};
use crate::raw::mini::{Effects, EventIn, Mail, OpOut, ReplyOut, Token};

/// Why the run of a stream stopped before its end.
struct Stop(End);
type Step<T = ()> = Result<T, Stop>;

pub(super) struct Exchange<'c> {
    config: &'c TestConfig<'c>,
    request: Message,
    response: Message,
    stream: u64,
    user: u64,
    subscribed: u64,
    modes: [BodyMode; 2],
    steps: u32,
    events: Vec<Phase>,
    metadata: BTreeMap<String, Vec<u8>>,
    route: Option<String>,
    details: String,
    response_left: bool,
    upstream: Option<Message>,
    client: Option<Message>,
    open_reply: bool,
    failed: bool,
}

impl<'c> Exchange<'c> {
    pub(super) fn new(config: &'c TestConfig<'c>, request: Message, response: Message) -> Self {
        let mini = config.host.mini;
        let stream = mini.fresh();
        let wakes = config.out.subscribe & abi::phase_bit(Phase::WAKE) != 0;
        mini.state().streams.insert(stream, (Vec::new(), wakes));
        let mode = |m| {
            if m == BodyMode::UNSET {
                BodyMode::SKIP
            } else {
                m
            }
        };
        Self {
            config,
            request,
            response,
            stream,
            user: 0,
            subscribed: config.out.subscribe,
            modes: config.out.body_mode.map(mode),
            steps: 0,
            events: Vec::new(),
            metadata: BTreeMap::new(),
            route: None,
            details: String::new(),
            response_left: false,
            upstream: None,
            client: None,
            open_reply: false,
            failed: false,
        }
    }

    pub(super) fn run(&mut self) -> Done {
        let end = match self.both() {
            Ok(()) => End::Complete,
            Err(Stop(end)) => end,
        };
        self.failed = matches!(end, End::Failed(_) | End::Deadline);
        if self.failed {
            // Failure mode closed.
            self.client = (!self.response_left).then(|| super::response(500));
        } else {
            self.log(&end);
        }
        let mini = self.config.host.mini;
        mini.state().streams.remove(&self.stream);
        if self.user != 0 {
            mini.stream_end(self.config.out.config, self.user, self.stream);
        }
        Done {
            end,
            upstream: self.upstream.take(),
            client: self.client.take(),
            metadata: std::mem::take(&mut self.metadata),
            route: self.route.take(),
            details: std::mem::take(&mut self.details),
            steps: self.steps,
            events: std::mem::take(&mut self.events),
        }
    }

    fn both(&mut self) -> Step {
        let request = self.request.clone();
        self.upstream = Some(self.direction(request, abi::DIR_REQUEST)?);
        let response = self.response.clone();
        let response = self.direction(response, abi::DIR_RESPONSE)?;
        self.client = Some(response);
        self.mail()
    }

    fn violation(&self, text: impl Into<String>) {
        self.config.host.mini.violation(text);
    }

    fn has(&self, feature: Feature) -> bool {
        feature.is_in(self.config.host.mini.features())
    }

    fn subscribes(&self, phase: Phase) -> bool {
        self.subscribed & abi::phase_bit(phase) != 0
    }

    /// A place where the client may go away.
    fn step(&mut self) -> bool {
        let here = self.config.kill_at == Some(self.steps);
        self.steps += 1;
        here
    }

    // ---- one event

    fn event(&self, phase: Phase, flags: u32) -> EventIn {
        let mini = self.config.host.mini;
        let token = if self.config.out.pend_phases & abi::phase_bit(phase) != 0 {
            let token = mini.fresh();
            mini.state().tokens.insert(token, Token::Issued);
            token
        } else {
            0
        };
        let mut flags = flags;
        if !self.response_left && self.client.is_none() {
            flags |= EventFlags::CAN_REPLY.0;
        }
        let peer = self.config.out.flags.0 & ConfigFlags::WANT_PEER_FIELDS.0 != 0
            && (Phase::RESPONSE_HEADERS.0..=Phase::RESPONSE_TRAILERS.0).contains(&phase.0);
        let wants = &self.config.out.attrs;
        EventIn {
            phase,
            flags: EventFlags(flags),
            config: self.config.out.config,
            user: self.user,
            stream: self.stream,
            token,
            peer_fields: if peer || phase == Phase::LOG {
                self.request.fields.clone()
            } else {
                Vec::new()
            },
            peer_trailers: if peer || phase == Phase::LOG {
                self.request.trailers.clone()
            } else {
                Vec::new()
            },
            attrs: wants
                .iter()
                .map(|(name, phases, _)| {
                    let here = phases & abi::phase_bit(phase) != 0;
                    here.then(|| self.config.attributes.get(name).cloned())
                        .flatten()
                })
                .collect(),
            ..EventIn::default()
        }
    }

    /// Calls the guest, now and then on another thread: a host without THREAD_AFFINE may.
    fn call(&mut self, event: &EventIn) -> Effects {
        let mini = self.config.host.mini;
        self.events.push(event.phase);
        let (effects, user) = if self.config.host.random.one_in(4) {
            std::thread::scope(|s| {
                s.spawn(|| mini.event(event))
                    .join()
                    .expect("the call does not panic")
            })
        } else {
            mini.event(event)
        };
        self.user = user;
        effects
    }

    /// Delivers an event and waits for its decision.
    fn deliver(&mut self, event: &EventIn) -> Step<Effects> {
        self.mail()?;
        if self.step() {
            self.config.host.mini.state().tokens.remove(&event.token);
            return Err(Stop(End::Cancelled));
        }
        let effects = self.call(event);
        let effects = if effects.action == Action::PENDING {
            self.wait(event.token)?
        } else {
            self.config.host.mini.state().tokens.remove(&event.token);
            effects
        };
        self.unsubscribe_and_modes(event, &effects);
        match effects.action {
            Action::CONTINUE | Action::MORE => {
                if effects.reply.is_some() {
                    self.violation("PXG-ACT-001: a reply without the action REPLY");
                }
                Ok(effects)
            }
            Action::REPLY => {
                self.apply_anywhere(&effects.ops);
                self.reply(effects.reply)
            }
            Action::RESET => {
                self.apply_anywhere(&effects.ops);
                Err(Stop(End::Reset))
            }
            Action::ERROR => Err(Stop(End::Failed(effects.error))),
            other => {
                self.violation(format!(
                    "PXG-ACT-001: action {} at phase {}",
                    other.0, event.phase.0
                ));
                Err(Stop(End::Failed(format!("action {}", other.0))))
            }
        }
    }

    fn unsubscribe_and_modes(&mut self, event: &EventIn, effects: &Effects) {
        self.subscribed &= !effects.unsubscribe;
        let own = if event.phase.0 <= Phase::REQUEST_TRAILERS.0 {
            abi::DIR_REQUEST
        } else {
            abi::DIR_RESPONSE
        };
        for (index, &mode) in effects.body_mode.iter().enumerate() {
            if mode == BodyMode::UNSET || mode == self.modes[index] {
                continue;
            }
            let body = [Phase::REQUEST_BODY, Phase::RESPONSE_BODY][index];
            let headers = [Phase::REQUEST_HEADERS, Phase::RESPONSE_HEADERS][index];
            let early =
                event.phase == headers || (index == abi::DIR_RESPONSE && own == abi::DIR_REQUEST);
            let over = event.flags.0 & EventFlags::OVER_LIMIT.0 != 0;
            let legal = early
                || (mode == BodyMode::SKIP
                    && (over || matches!(self.modes[index], BodyMode::STREAM | BodyMode::OBSERVE)))
                || (mode == BodyMode::STREAM && over);
            if !legal {
                self.violation(format!(
                    "PXG-BODY: mode {} to {} at phase {} is too late; change it in the HEADERS result",
                    self.modes[index].0, mode.0, event.phase.0
                ));
            } else if mode != BodyMode::SKIP && !self.subscribes(body) {
                self.violation(format!(
                    "PXG-BODY: mode {} for a body phase that is not subscribed",
                    mode.0
                ));
            } else {
                self.modes[index] = mode;
            }
        }
    }

    // ---- async

    fn wait(&mut self, token: u64) -> Step<Effects> {
        let mini = self.config.host.mini;
        if token == 0 {
            self.violation("PXG-ACT-006: PENDING in a phase outside `pend_phases`");
            return Err(Stop(End::Failed("PENDING outside pend_phases".to_owned())));
        }
        {
            let mut state = mini.state();
            match state.tokens.remove(&token) {
                Some(Token::Early(effects)) => return Ok(effects),
                _ => state.tokens.insert(token, Token::Pending),
            };
        }
        mini.batch_end();
        let until = Instant::now() + self.config.deadline;
        if self.step() {
            // Either the completion was first, or the cancel is.
            if let Some(Token::Pending) = mini.state().tokens.remove(&token) {
                return self.cancel(token, End::Cancelled);
            }
            return Err(Stop(End::Cancelled));
        }
        loop {
            {
                let mut state = mini.state();
                if let Some(Token::Completed(_)) = state.tokens.get(&token)
                    && let Some(Token::Completed(effects)) = state.tokens.remove(&token)
                {
                    return Ok(effects);
                }
                let has_mail = state
                    .streams
                    .get(&self.stream)
                    .is_some_and(|(mail, _)| !mail.is_empty());
                if !has_mail {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        state.tokens.remove(&token);
                        drop(state);
                        return self.cancel(token, End::Deadline);
                    }
                    drop(mini.changed.wait_timeout(state, left));
                    continue;
                }
            }
            if let Err(stop) = self.mail() {
                // A reply or a reset by `apply` retires the token first (PXG-ASY-017).
                if let Some(Token::Pending) = mini.state().tokens.remove(&token) {
                    mini.cancel(self.config.out.config, self.user, self.stream, token);
                }
                return Err(stop);
            }
        }
    }

    fn cancel(&mut self, token: u64, end: End) -> Step<Effects> {
        let mini = self.config.host.mini;
        mini.cancel(self.config.out.config, self.user, self.stream, token);
        Err(Stop(end))
    }

    /// What `apply` and `wake` left, in order.
    fn mail(&mut self) -> Step {
        loop {
            let mail = {
                let mut state = self.config.host.mini.state();
                let Some((mail, _)) = state.streams.get_mut(&self.stream) else {
                    return Ok(());
                };
                std::mem::take(mail)
            };
            if mail.is_empty() {
                return Ok(());
            }
            for one in mail {
                match one {
                    Mail::Apply(effects) => self.applied(effects)?,
                    Mail::Wake(arg) => self.wake(arg, 0)?,
                }
            }
        }
    }

    fn wake(&mut self, arg: u64, flags: u32) -> Step {
        let mut event = self.event(Phase::WAKE, flags);
        event.arg = arg;
        let effects = self.call(&event);
        self.applied(effects)
    }

    fn applied(&mut self, effects: Effects) -> Step {
        match effects.action {
            Action::CONTINUE => {
                self.apply_anywhere(&effects.ops);
                for op in effects
                    .ops
                    .iter()
                    .filter(|op| op.kind == OpKind::BODY_WRITE)
                {
                    self.body_write(op);
                }
                Ok(())
            }
            Action::REPLY => {
                self.apply_anywhere(&effects.ops);
                self.reply(effects.reply)
            }
            Action::RESET => Err(Stop(End::Reset)),
            Action::ERROR => Err(Stop(End::Failed(effects.error))),
            other => {
                self.violation(format!(
                    "PXG-ACT-001: action {} at WAKE or by apply",
                    other.0
                ));
                Err(Stop(End::Failed(format!("action {}", other.0))))
            }
        }
    }

    fn body_write(&mut self, op: &OpOut) {
        if let (true, Some(client)) = (self.open_reply, &mut self.client) {
            client.body.extend_from_slice(&op.val);
            self.open_reply = op.flags.0 & OpFlags::END.0 == 0;
        }
    }

    // ---- replies

    fn reply<T>(&mut self, reply: Option<ReplyOut>) -> Step<T> {
        let Some(reply) = reply else {
            self.violation("PXG-ACT-001: the action REPLY without a reply");
            return Err(Stop(End::Failed("REPLY without a reply".to_owned())));
        };
        if !(200..=599).contains(&reply.status) {
            self.violation(format!(
                "PXG-RPL-001: status {}; expected 200 to 599",
                reply.status
            ));
        }
        for (name, value) in reply.fields.iter().chain(&reply.trailers) {
            self.check_field(name, Some(value), OpKind::HEADER_ADD);
            if name.starts_with(b":") {
                self.violation("PXG-HDR-006: a pseudo-header in a reply");
            }
        }
        if self.response_left || self.client.is_some() {
            // A late reply resets, without blame (PXG-ACT-005).
            return Err(Stop(End::Reset));
        }
        self.details = String::from_utf8_lossy(&reply.details).into_owned();
        let mut message = super::response(u16::try_from(reply.status).unwrap_or(0));
        message.fields.extend(reply.fields);
        message.trailers = reply.trailers;
        message.body = reply.body;
        self.upstream = None;
        self.client = Some(message);
        if reply.flags.0 & ReplyFlags::OPEN.0 != 0 {
            self.open_reply = true;
            self.response_left = true;
            self.wait_for_open_reply()?;
        }
        Err(Stop(End::Replied))
    }

    fn wait_for_open_reply(&mut self) -> Step {
        let mini = self.config.host.mini;
        let until = Instant::now() + self.config.deadline;
        while self.open_reply {
            self.mail()?;
            if !self.open_reply {
                break;
            }
            let state = mini.state();
            if state
                .streams
                .get(&self.stream)
                .is_some_and(|(mail, _)| mail.is_empty())
            {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Stop(End::Deadline));
                }
                drop(mini.changed.wait_timeout(state, left));
            }
        }
        Ok(())
    }

    // ---- the end

    fn log(&mut self, end: &End) {
        if !self.subscribes(Phase::LOG) {
            return;
        }
        let mut event = self.event(Phase::LOG, 0);
        event.flags = EventFlags(0);
        if let Some(response) = &self.client {
            event.fields = response.fields.clone();
            event.trailers = response.trailers.clone();
        }
        let (why, request, response) = match end {
            End::Complete => (1, 1, 1),
            End::Replied => (5, 1, 1),
            End::Reset => (6, 4, 4),
            _ => (2, 2, 4),
        };
        event.arg = why | request << 8 | response << 12;
        let effects = self.call(&event);
        if effects.action != Action::CONTINUE {
            self.violation(format!(
                "PXG-ACT-001: action {} at LOG: {}",
                effects.action.0, effects.error
            ));
        }
        self.apply_anywhere(&effects.ops);
    }
}
