//! The stream of the test host: phases, body modes, operations, async. Written from the spec, chapters 5 to 12; simpler
//! than a host, and stricter: what a host would skip and count is a violation here, unless a filter can't know better.

use std::collections::BTreeMap;
use std::time::Instant;

use proxy_golang_abi as abi;
use proxy_golang_abi::feature::Feature;
use proxy_golang_abi::{
    Action, BodyMode, ConfigFlags, EventFlags, OpFlags, OpKind, Phase, ReplyFlags, ResultFlags,
    Target,
};

use super::{Done, End, Message, TestConfig};
use crate::raw::mini::{Effects, EventIn, FieldList, Mail, OpOut, ReplyOut, Token};

/// What the host holds of a body without `max_body`.
const DEFAULT_MAX_BODY: usize = 1 << 20;

/// Why the run of a stream stopped before its end.
struct Stop(End);
type Step<T = ()> = Result<T, Stop>;

/// A direction under way.
struct Direction {
    index: usize,
    headers: Phase,
    body: Phase,
    trailers_phase: Phase,
    mode: BodyMode,
    /// What has not been passed: fields while they are held, then the view.
    fields: FieldList,
    trailers: FieldList,
    headers_left: bool,
    view: Vec<u8>,
    offset: u64,
    passed: Vec<u8>,
    resizes: bool,
    received: usize,
    ended: bool,
}

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

    // ---- operations

    /// Metadata and metrics, which are legal in every result.
    fn apply_anywhere(&mut self, ops: &[OpOut]) {
        for op in ops {
            match op.kind {
                OpKind::METADATA_SET => {
                    let key = String::from_utf8_lossy(&op.key).into_owned();
                    self.metadata.insert(key, op.val.clone());
                }
                OpKind::METRIC => {
                    let known = self
                        .config
                        .host
                        .mini
                        .state()
                        .record(op.target.0, op.u0.cast_signed());
                    if !known {
                        self.violation(format!(
                            "PXG-OBS-003: METRIC with the unknown id {}",
                            op.target.0
                        ));
                    }
                }
                OpKind::ROUTE => {
                    self.route = Some(
                        String::from_utf8_lossy(if op.key == b"cluster" {
                            &op.val
                        } else {
                            &op.key
                        })
                        .into_owned(),
                    )
                }
                _ => {}
            }
        }
    }

    fn check_field(&self, name: &[u8], value: Option<&[u8]>, kind: OpKind) {
        let shown = String::from_utf8_lossy(name);
        let pseudo = name.starts_with(b":");
        let token = |c: &u8| {
            c.is_ascii_alphanumeric() && !c.is_ascii_uppercase() || b"!#$%&'*+-.^_`|~".contains(c)
        };
        let legal = if pseudo {
            [
                &b":method"[..],
                b":scheme",
                b":authority",
                b":path",
                b":status",
            ]
            .contains(&name)
        } else {
            !name.is_empty() && name.iter().all(token)
        };
        if !legal {
            self.violation(format!(
                "PXG-HDR-005: the field name {shown:?}; expected a token in lower case"
            ));
        }
        if pseudo && !matches!(kind, OpKind::HEADER_SET | OpKind::SET_AT) {
            self.violation(format!("PXG-HDR-006: {shown} can only be set"));
        }
        if value.is_some_and(|v| v.iter().any(|c| matches!(c, b'\r' | b'\n' | 0))) {
            self.violation(format!(
                "PXG-HDR-005: the value of {shown} has CR, LF or NUL"
            ));
        }
        let owned = [
            &b"connection"[..],
            b"content-length",
            b"keep-alive",
            b"proxy-connection",
            b"te",
            b"trailer",
            b"transfer-encoding",
            b"upgrade",
            b"host",
        ];
        if owned.contains(&name) {
            self.violation(format!("PXG-HDR-008: {shown} is the host's"));
        }
    }

    fn field_ops(&self, d: &mut Direction, event: &EventIn, ops: &[OpOut]) {
        let held = !d.headers_left;
        let end_of_stream = event.flags.0 & EventFlags::END_STREAM.0 != 0;
        let trailers_legal = self.has(
            [
                Feature::TRAILERS_OUT_REQUEST,
                Feature::TRAILERS_OUT_RESPONSE,
            ][d.index],
        ) && (event.phase == d.trailers_phase
            || (event.phase == d.body && end_of_stream));
        // By index into the view, before all operations of the batch (PXG-HDR-004).
        let mut headers: Vec<(usize, (Vec<u8>, Vec<u8>))> =
            d.fields.drain(..).enumerate().collect();
        let mut trailers: Vec<(usize, (Vec<u8>, Vec<u8>))> =
            d.trailers.drain(..).enumerate().collect();
        let (n_headers, n_trailers) = (headers.len(), trailers.len());
        for op in ops {
            if !matches!(
                op.kind,
                OpKind::HEADER_SET
                    | OpKind::HEADER_ADD
                    | OpKind::HEADER_DELETE
                    | OpKind::SET_AT
                    | OpKind::DELETE_AT
            ) {
                continue;
            }
            let (list, count, legal) = match op.target {
                Target::HEADERS => (&mut headers, n_headers, held),
                Target::TRAILERS => (&mut trailers, n_trailers, trailers_legal),
                other => {
                    self.violation(format!(
                        "PXG-ABI-005: a field operation with target {}",
                        other.0
                    ));
                    continue;
                }
            };
            if !legal {
                // A host skips and counts it; a filter that does this has not looked at what it may do.
                self.violation(format!(
                    "PXG-TRL-001: a {} operation at phase {}, where they have left or cannot be sent",
                    if op.target == Target::TRAILERS { "trailer" } else { "header" },
                    event.phase.0
                ));
                continue;
            }
            let index = usize::try_from(op.u0).unwrap_or(usize::MAX);
            match op.kind {
                OpKind::SET_AT | OpKind::DELETE_AT if index >= count => {
                    self.violation(format!(
                        "PXG-HDR-004: index {index} in a view of {count} fields"
                    ));
                }
                OpKind::SET_AT => {
                    if let Some((_, field)) = list.iter_mut().find(|(i, _)| *i == index) {
                        self.check_field(&field.0, Some(&op.val), op.kind);
                        field.1.clone_from(&op.val);
                    }
                }
                OpKind::DELETE_AT => list.retain(|(i, _)| *i != index),
                OpKind::HEADER_DELETE => {
                    self.check_field(&op.key, None, op.kind);
                    list.retain(|(_, (name, _))| *name != op.key);
                }
                OpKind::HEADER_SET => {
                    self.check_field(&op.key, Some(&op.val), op.kind);
                    match list.iter().position(|(_, (name, _))| *name == op.key) {
                        Some(at) => {
                            list[at].1.1.clone_from(&op.val);
                            let keep = list[at].0;
                            list.retain(|(i, (name, _))| *name != op.key || *i == keep);
                        }
                        None => list.push((usize::MAX, (op.key.clone(), op.val.clone()))),
                    }
                }
                _ => {
                    self.check_field(&op.key, Some(&op.val), op.kind);
                    list.push((usize::MAX, (op.key.clone(), op.val.clone())));
                }
            }
        }
        d.fields = headers.into_iter().map(|(_, field)| field).collect();
        d.trailers = trailers.into_iter().map(|(_, field)| field).collect();
    }

    /// Moves the cursor over the view; answers what leaves.
    fn body_ops(&self, d: &mut Direction, effects: &Effects) -> Vec<u8> {
        let mut out = Vec::new();
        let mut cursor = 0_usize;
        for op in &effects.ops {
            let n = usize::try_from(op.u0).unwrap_or(usize::MAX);
            match op.kind {
                OpKind::PASS | OpKind::DROP if n > d.view.len() - cursor => {
                    self.violation(format!(
                        "PXG-BODY-006: {n} bytes from {cursor} in a view of {}",
                        d.view.len()
                    ));
                }
                OpKind::PASS => {
                    out.extend_from_slice(&d.view[cursor..cursor + n]);
                    cursor += n;
                }
                OpKind::DROP => cursor += n,
                OpKind::INJECT => out.extend_from_slice(&op.val),
                _ => {}
            }
        }
        d.view.drain(..cursor);
        d.offset += cursor as u64;
        out
    }

    // ---- a direction

    fn direction(&mut self, message: Message, index: usize) -> Step<Message> {
        let phases = [
            (
                Phase::REQUEST_HEADERS,
                Phase::REQUEST_BODY,
                Phase::REQUEST_TRAILERS,
            ),
            (
                Phase::RESPONSE_HEADERS,
                Phase::RESPONSE_BODY,
                Phase::RESPONSE_TRAILERS,
            ),
        ][index];
        let mut d = Direction {
            index,
            headers: phases.0,
            body: phases.1,
            trailers_phase: phases.2,
            mode: BodyMode::SKIP,
            fields: message.fields,
            trailers: message.trailers,
            headers_left: false,
            view: Vec::new(),
            offset: 0,
            passed: Vec::new(),
            resizes: self.config.out.flags.0
                & [ConfigFlags::RESIZES_REQUEST, ConfigFlags::RESIZES_RESPONSE][index].0
                != 0,
            received: message.body.len(),
            ended: false,
        };
        let bodyless = message.body.is_empty() && d.trailers.is_empty();
        let mut held = false;
        let headers_seen = self.subscribes(d.headers);
        if headers_seen {
            held = self.headers(&mut d, bodyless)?;
        }
        d.mode = self.mode(&d);
        let whole_of_nothing = d.mode == BodyMode::WHOLE && !headers_seen && bodyless;
        if bodyless && !whole_of_nothing {
            self.leave(&mut d);
            return Ok(finish(d));
        }
        match d.mode {
            BodyMode::WHOLE => self.whole(&mut d, &message.body)?,
            BodyMode::STREAM | BodyMode::OBSERVE => {
                if !held {
                    self.leave(&mut d);
                }
                self.streamed(&mut d, &message.body)?;
            }
            _ => {
                self.leave(&mut d);
                d.passed.extend_from_slice(&message.body);
            }
        }
        self.leave(&mut d);
        if !d.ended && !d.trailers.is_empty() && self.subscribes(d.trailers_phase) {
            let mut event = self.event(d.trailers_phase, EventFlags::END_STREAM.0);
            event.trailers = d.trailers.clone();
            let effects = self.deliver(&event)?;
            if effects.action == Action::MORE {
                self.violation("PXG-ACT-003: MORE at trailers");
            }
            self.apply_anywhere(&effects.ops);
            self.field_ops(&mut d, &event, &effects.ops);
        }
        Ok(finish(d))
    }

    fn leave(&mut self, d: &mut Direction) {
        d.headers_left = true;
        if d.index == abi::DIR_RESPONSE {
            self.response_left = true;
        }
    }

    /// The headers event; whether MORE holds the headers.
    fn headers(&mut self, d: &mut Direction, bodyless: bool) -> Step<bool> {
        let mut event = self.event(
            d.headers,
            if bodyless {
                EventFlags::END_STREAM.0
            } else {
                0
            },
        );
        event.fields = d.fields.clone();
        let effects = self.deliver(&event)?;
        self.apply_anywhere(&effects.ops);
        self.field_ops(d, &event, &effects.ops);
        if effects.flags.0 & ResultFlags::RESIZES.0 != 0 {
            d.resizes = true;
        }
        if effects
            .ops
            .iter()
            .any(|op| matches!(op.kind, OpKind::PASS | OpKind::DROP | OpKind::INJECT))
        {
            self.violation("PXG-BODY: body operations at headers");
        }
        let more = effects.action == Action::MORE;
        if more && (bodyless || self.mode(d) == BodyMode::SKIP || self.mode(d) == BodyMode::OBSERVE)
        {
            self.violation(
                "PXG-ACT-003: MORE at headers without a body in mode STREAM or WHOLE to come",
            );
        }
        Ok(more)
    }

    fn mode(&self, d: &Direction) -> BodyMode {
        if self.subscribes(d.body) {
            self.modes[d.index]
        } else {
            BodyMode::SKIP
        }
    }

    /// The view in pieces of random length: at most 64, none empty.
    fn chunks(&self, view: &[u8]) -> Vec<Vec<u8>> {
        let mut rest = view;
        let mut chunks = Vec::new();
        while !rest.is_empty() {
            let n = if chunks.len() == 63 {
                rest.len()
            } else {
                self.config.host.random.piece(rest.len())
            };
            chunks.push(rest[..n].to_vec());
            rest = &rest[n..];
        }
        chunks
    }

    fn body_event(&self, d: &Direction, flags: u32, view: &[u8]) -> EventIn {
        let mut event = self.event(d.body, flags);
        if !d.headers_left {
            event.flags.0 |= EventFlags::HEADERS_HELD.0;
            event.fields = d.fields.clone();
        }
        if event.flags.0 & EventFlags::WHOLE_BODY.0 != 0 {
            event.trailers = d.trailers.clone();
        }
        event.body_offset = d.offset;
        event.chunks = self.chunks(view);
        event
    }

    fn max_body(&self, d: &Direction) -> usize {
        match usize::try_from(self.config.out.max_body[d.index]).unwrap_or(usize::MAX) {
            0 => DEFAULT_MAX_BODY,
            n => n.min(DEFAULT_MAX_BODY),
        }
    }

    fn whole(&mut self, d: &mut Direction, body: &[u8]) -> Step {
        let max = self.max_body(d);
        if body.len() <= max {
            let flags =
                EventFlags::WHOLE_BODY.0 | EventFlags::BODY_END.0 | EventFlags::END_STREAM.0;
            d.view = body.to_vec();
            let event = self.body_event(d, flags, body);
            let effects = self.deliver(&event)?;
            if effects.action == Action::MORE {
                self.violation("PXG-ACT-003: MORE at the end of a body");
            }
            self.apply_anywhere(&effects.ops);
            self.field_ops(d, &event, &effects.ops);
            let out = self.body_ops(d, &effects);
            d.passed.extend(out);
            d.passed.append(&mut d.view);
            // The host computes the length.
            d.received = d.passed.len();
            d.ended = true;
            return Ok(());
        }
        // All that is held: up to one read more than the limit.
        let held = max + 1 + self.config.host.random.below((body.len() - max).min(4096));
        let held = held.min(body.len());
        d.view = body[..held].to_vec();
        let view = d.view.clone();
        let event = self.body_event(d, EventFlags::OVER_LIMIT.0, &view);
        let effects = self.deliver(&event)?;
        if effects.action == Action::MORE {
            self.violation("PXG-BODY-004: MORE over the limit");
        }
        self.apply_anywhere(&effects.ops);
        self.field_ops(d, &event, &effects.ops);
        let out = self.body_ops(d, &effects);
        d.passed.extend(out);
        d.offset += d.view.len() as u64;
        d.passed.append(&mut d.view);
        self.leave(d);
        if self.modes[d.index] == BodyMode::WHOLE {
            self.modes[d.index] = BodyMode::STREAM;
        }
        d.mode = self.mode(d);
        let rest = &body[held..];
        if d.mode == BodyMode::STREAM && !rest.is_empty() {
            self.streamed(d, rest)
        } else {
            d.passed.extend_from_slice(rest);
            Ok(())
        }
    }

    fn streamed(&mut self, d: &mut Direction, body: &[u8]) -> Step {
        let mut rest = body;
        let mut wanted = 0;
        loop {
            if self.mode(d) == BodyMode::SKIP {
                self.leave(d);
                d.passed.append(&mut d.view);
                d.passed.extend_from_slice(rest);
                return Ok(());
            }
            let n = if rest.is_empty() {
                0
            } else {
                self.config.host.random.piece(rest.len())
            };
            let (new, later) = rest.split_at(n);
            rest = later;
            d.view.extend_from_slice(new);
            wanted = usize::saturating_sub(wanted, n);
            // The host may learn of the end after the last bytes: then an empty event says so.
            let end = rest.is_empty() && (n == 0 || self.config.host.random.one_in(2));
            if !end && (wanted > 0 || d.view.is_empty()) {
                continue;
            }
            let mut flags = 0;
            if end {
                flags |= EventFlags::BODY_END.0;
                if d.trailers.is_empty() {
                    flags |= EventFlags::END_STREAM.0;
                    d.ended = true;
                }
            }
            if d.view.len() > self.max_body(d) {
                flags |= EventFlags::OVER_LIMIT.0;
            }
            if d.mode == BodyMode::OBSERVE {
                self.observe(d, flags)?;
            } else {
                wanted = self.stream_event(d, flags, end)?;
            }
            if end {
                self.check_length(d);
                return Ok(());
            }
        }
    }

    fn observe(&mut self, d: &mut Direction, flags: u32) -> Step {
        let view = std::mem::take(&mut d.view);
        d.passed.extend_from_slice(&view);
        let event = self.body_event(d, flags, &view);
        d.offset += view.len() as u64;
        let effects = self.deliver(&event)?;
        let looks_only = |op: &OpOut| matches!(op.kind, OpKind::METADATA_SET | OpKind::METRIC);
        if effects.action != Action::CONTINUE || !effects.ops.iter().all(looks_only) {
            self.violation("PXG-BODY-007: OBSERVE can only look");
        }
        self.apply_anywhere(&effects.ops);
        Ok(())
    }

    /// Answers how many further bytes are worth an event.
    fn stream_event(&mut self, d: &mut Direction, flags: u32, end: bool) -> Step<usize> {
        let view = d.view.clone();
        let event = self.body_event(d, flags, &view);
        let effects = self.deliver(&event)?;
        self.apply_anywhere(&effects.ops);
        self.field_ops(d, &event, &effects.ops);
        let more = effects.action == Action::MORE;
        let leaves = |op: &OpOut| matches!(op.kind, OpKind::PASS | OpKind::INJECT);
        if more && !d.headers_left && effects.ops.iter().any(leaves) {
            self.violation(
                "PXG-ACT-007: PASS or INJECT in a MORE result while the headers are held",
            );
        }
        let out = self.body_ops(d, &effects);
        d.passed.extend(out);
        if more {
            if end {
                self.violation("PXG-ACT-003: MORE at the end of a body");
                return Err(Stop(End::Failed("MORE at the end of a body".to_owned())));
            }
            if d.view.len() > self.max_body(d) {
                self.violation("PXG-BODY-004: MORE keeps more than max_body");
            }
            let grown = d.view.len() / 8;
            return Ok(match effects.more_bytes {
                0 => grown.clamp(1, 1024),
                n => usize::try_from(n).unwrap_or(usize::MAX),
            });
        }
        self.leave(d);
        d.offset += d.view.len() as u64;
        d.passed.append(&mut d.view);
        Ok(0)
    }

    fn check_length(&self, d: &Direction) {
        let declared = d.fields.iter().any(|(name, _)| name == b"content-length");
        if declared && !d.resizes && d.passed.len() != d.received {
            self.violation(format!(
                "PXG-HDR-007: the body changed from {} to {} bytes without `resizes`",
                d.received,
                d.passed.len()
            ));
        }
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

fn finish(d: Direction) -> Message {
    let mut fields = d.fields;
    for (name, value) in &mut fields {
        if name == b"content-length" && d.received != d.passed.len() {
            *value = d.passed.len().to_string().into_bytes();
        }
    }
    if d.mode == BodyMode::WHOLE {
        for (name, value) in &mut fields {
            if name == b"content-length" {
                *value = d.passed.len().to_string().into_bytes();
            }
        }
    }
    Message {
        fields,
        body: d.passed,
        trailers: d.trailers,
    }
}
