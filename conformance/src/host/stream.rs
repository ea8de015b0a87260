//! One stream at one place, after the machine of 7.11: what is delivered, in which order, and what a result leads to.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use proxy_golang_abi::feature::Feature;
use proxy_golang_abi::{Action, BodyMode, EventFlags, Phase, phase_bit};

use super::config::ConfigMade;
use super::judge::{Context, Way};
use super::messages::{Exchange, Message};
use super::model::{Event, Field, Outcome, ReplyFound, phase_name};
use super::rig::{Conf, Rig};
use super::state::Mail;
use crate::finding::note;
use crate::sys::boundary::Layout;
use crate::sys::calls::{self, Took};

/// How a stream is driven.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) layout: Layout,
    /// The stream dies before the event of this number.
    pub(crate) abort_at: Option<usize>,
    /// The stream dies as soon as it is pending.
    pub(crate) abort_pending: bool,
    /// Into how many pieces a view is cut, at most 64.
    pub(crate) chunks: usize,
    /// Event flags that version 1.0 does not define, set on each event.
    pub(crate) unknown_flags: u32,
    /// How long a PENDING may last.
    pub(crate) pend_limit: Duration,
    /// Answers to `complete` that the guest does not expect.
    pub(crate) lies: Vec<i32>,
    /// Wait this long after each event and look again at what is borrowed.
    pub(crate) borrow_grace: Option<Duration>,
    pub(crate) worker: u32,
    /// Most bytes held, where the configuration leaves it to the host.
    pub(crate) max_body: u64,
    /// The end of a body is known only after its last bytes were delivered.
    pub(crate) late_end: bool,
    /// The response is one that the host made.
    pub(crate) local_origin: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            layout: Layout::default(),
            abort_at: None,
            abort_pending: false,
            chunks: 4,
            unknown_flags: 0,
            pend_limit: Duration::from_secs(3),
            lies: Vec::new(),
            borrow_grace: None,
            worker: 0,
            max_body: 64 << 10,
            late_end: false,
            local_origin: false,
        }
    }
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Ran,
    /// This token must be completed first.
    Waits(u64),
    Ended,
}

/// What a stream came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ran {
    /// Phase and shape of each result.
    pub(crate) shapes: Vec<String>,
    pub(crate) events: usize,
    pub(crate) pended: usize,
    pub(crate) errors: Vec<String>,
    /// Bodies behind the place.
    pub(crate) bodies: [Vec<u8>; 2],
    pub(crate) replied: Option<u32>,
    /// A rule was broken, or the guest failed.
    pub(crate) failed: bool,
    pub(crate) slowest: Took,
    pub(crate) asleep_ns: u64,
    /// Addresses of `release` functions that came with OWNED buffers.
    pub(crate) owned: Vec<u64>,
    pub(crate) slowest_phase: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Wait,
    Hold,
    Flow,
    Done,
    Cut,
}

struct Side {
    at: At,
    fields: Vec<Field>,
    trailers: Option<Vec<Field>>,
    reads: VecDeque<Vec<u8>>,
    ends_at_headers: bool,
    mode: BodyMode,
    held: bool,
    passed_headers: bool,
    view: Vec<u8>,
    offset: u64,
    passed: Vec<u8>,
    /// After MORE: how far the view must grow.
    due: u64,
    body_end: bool,
    trailers_shown: bool,
    over: bool,
    length_left: Option<u64>,
    resumed: bool,
}

impl Side {
    fn new(m: &Message, mode: BodyMode, resizes: bool) -> Self {
        let length = m
            .fields
            .iter()
            .find(|f| f.name == b"content-length")
            .and_then(|f| std::str::from_utf8(&f.value).ok()?.parse().ok());
        Self {
            at: At::Wait,
            fields: m.fields.clone(),
            trailers: m.trailers.clone(),
            reads: m.reads.iter().cloned().collect(),
            ends_at_headers: m.ends_at_headers(),
            mode: if mode == BodyMode::UNSET {
                BodyMode::SKIP
            } else {
                mode
            },
            held: false,
            passed_headers: false,
            view: Vec::new(),
            offset: 0,
            passed: Vec::new(),
            due: 0,
            body_end: false,
            trailers_shown: false,
            over: false,
            length_left: length.filter(|_| !resizes && mode != BodyMode::WHOLE),
            resumed: false,
        }
    }

    fn pass_headers(&mut self) {
        self.held = false;
        self.passed_headers = true;
    }

    fn pass_view(&mut self) {
        let view = std::mem::take(&mut self.view);
        self.offset += view.len() as u64;
        self.send(&view);
    }

    fn send(&mut self, bytes: &[u8]) {
        if let Some(left) = &mut self.length_left {
            *left = left.saturating_sub(bytes.len() as u64);
        }
        self.passed.extend_from_slice(bytes);
    }
}

const HEADERS: [Phase; 2] = [Phase::REQUEST_HEADERS, Phase::RESPONSE_HEADERS];
const BODY: [Phase; 2] = [Phase::REQUEST_BODY, Phase::RESPONSE_BODY];
const TRAILERS: [Phase; 2] = [Phase::REQUEST_TRAILERS, Phase::RESPONSE_TRAILERS];

struct Pend {
    token: u64,
    dir: usize,
    context: Context,
    since: Instant,
}

/// A running stream.
pub(crate) struct Stream<'a> {
    rig: &'a Rig,
    conf: &'a Conf,
    opt: Options,
    sides: [Side; 2],
    request: Vec<Field>,
    request_trailers: Vec<Field>,
    subscribe: u64,
    user: u64,
    handle: u64,
    pend: Option<Pend>,
    upgraded: bool,
    replied: bool,
    reset: bool,
    aborted: bool,
    ended: bool,
    ran: Ran,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(rig: &'a Rig, conf: &'a Conf, e: &Exchange, opt: Options) -> Self {
        Self::with_fields(rig, conf, e, opt, &conf.subject.fields)
    }

    fn with_fields(
        rig: &'a Rig,
        conf: &'a Conf,
        e: &Exchange,
        opt: Options,
        fields: &[(String, String)],
    ) -> Self {
        let made: &ConfigMade = &conf.made;
        let mut request = e.request.clone();
        for (name, value) in fields {
            request.fields.push(super::model::field(name, value));
        }
        Self {
            sides: [
                Side::new(&request, made.body_mode[0], made.flags & 2 != 0),
                Side::new(&e.response, made.body_mode[1], made.flags & 4 != 0),
            ],
            request: request.fields,
            request_trailers: request.trailers.unwrap_or_default(),
            subscribe: made.subscribe,
            user: 0,
            handle: rig.host.open_handle(made.subscribes(Phase::WAKE)),
            pend: None,
            upgraded: e.upgraded,
            replied: false,
            reset: false,
            aborted: false,
            ended: false,
            ran: Ran::default(),
            rig,
            conf,
            opt,
        }
    }

    pub(crate) fn finish(self) -> Ran {
        let mut ran = self.ran;
        let [a, b] = self.sides;
        ran.bodies = [a.passed, b.passed];
        ran
    }

    fn subscribed(&self, p: Phase) -> bool {
        self.subscribe & phase_bit(p) != 0
    }

    /// Does one thing, and says what it waits for.
    pub(crate) fn step(&mut self) -> Step {
        if self.ended {
            return Step::Ended;
        }
        for m in self.rig.host.take_mail(self.handle) {
            self.mail(m);
        }
        if let Some(p) = &self.pend {
            let token = p.token;
            if self.opt.abort_pending {
                self.aborted = true;
                self.end(2);
                return Step::Ended;
            }
            if let Some(o) = self.rig.host.wait(token, Instant::now()) {
                self.completed(&o);
                return Step::Ran;
            }
            // A guest that has forgotten one token is not waited for each time.
            let limit = if self.rig.host.forgotten() > 0 {
                self.opt.pend_limit.min(Duration::from_millis(60))
            } else {
                self.opt.pend_limit
            };
            if p.since.elapsed() < limit {
                return Step::Waits(token);
            }
            note(
                "PXG-ASY-001",
                format!("never completed a token of {}", phase_name(p.context.phase)),
                [format!(
                    "token {token:#x} was PENDING for {limit:?}; the stream's deadline ended it"
                )],
            );
            self.rig.host.forget();
            self.fail();
            return Step::Ended;
        }
        if self.opt.abort_at == Some(self.ran.events) && self.ran.events > 0 {
            self.aborted = true;
            self.end(2);
            return Step::Ended;
        }
        if self.replied || self.reset {
            self.end(if self.replied { 5 } else { 6 });
            return Step::Ended;
        }
        match self
            .sides
            .iter()
            .position(|s| !matches!(s.at, At::Done | At::Cut))
        {
            Some(dir) => {
                self.advance(dir);
                if self.ended { Step::Ended } else { Step::Ran }
            }
            None => {
                self.end(if self.opt.local_origin { 5 } else { 1 });
                Step::Ended
            }
        }
    }

    /// Runs to the end, waiting for completions.
    pub(crate) fn run(mut self) -> Ran {
        let mut batched = None;
        loop {
            match self.step() {
                Step::Ran => {}
                Step::Ended => return self.finish(),
                Step::Waits(token) => {
                    // The loop would block here: the end of an iteration in which an event pended (PXG-THR-004).
                    if batched.replace(token) != Some(token) {
                        self.rig.batch_end(self.opt.worker);
                        self.help();
                    }
                    let deadline = Instant::now() + Duration::from_millis(20);
                    if let Some(o) = self.rig.host.wait(token, deadline) {
                        self.completed(&o);
                    }
                }
            }
        }
    }

    /// Puts a completion that came into effect.
    pub(crate) fn completed(&mut self, o: &Outcome) {
        if let Some(p) = self.pend.take() {
            self.sides[p.dir].resumed = true;
            self.settle(p.dir, &p.context, o);
        }
    }

    /// Sends the request that the filter waits for, where its settings name one.
    pub(crate) fn help(&self) {
        if !self.conf.subject.companion.is_empty() {
            let fields = self.conf.subject.companion.clone();
            Self::with_fields(
                self.rig,
                self.conf,
                &super::messages::get(),
                Options::default(),
                &fields,
            )
            .run();
        }
    }

    /// The token that is pending.
    pub(crate) fn pending(&self) -> Option<u64> {
        self.pend.as_ref().map(|p| p.token)
    }

    /// The client goes away: the time that `on_cancel` took, if there was one.
    pub(crate) fn abort(&mut self) -> Option<Took> {
        self.aborted = true;
        let took = self.cancel();
        self.end(2);
        took
    }

    fn advance(&mut self, d: usize) {
        match self.sides[d].at {
            At::Wait => self.headers(d),
            At::Hold | At::Flow => self.body(d),
            At::Done | At::Cut => {}
        }
    }

    fn headers(&mut self, d: usize) {
        let whole = self.sides[d].mode == BodyMode::WHOLE && self.subscribed(BODY[d]);
        self.sides[d].held = true;
        if self.subscribed(HEADERS[d]) {
            let mut flags = 0;
            if self.sides[d].ends_at_headers {
                if self.rig.exact_eos(d) {
                    flags |= EventFlags::END_STREAM.0;
                } else {
                    flags |= EventFlags::EOS_UNKNOWN.0;
                }
            }
            if self.upgraded && d == 1 {
                flags |= EventFlags::UPGRADED.0 | EventFlags::END_STREAM.0;
            }
            let known = flags & EventFlags::END_STREAM.0 != 0;
            self.deliver(d, HEADERS[d], flags, known);
        } else if whole && !self.sides[d].ends_at_headers {
            self.sides[d].at = At::Hold;
        } else if whole && !(self.upgraded && d == 1) {
            // A filter that subscribes to nothing but a WHOLE body sees every message once.
            let flags = EventFlags::WHOLE_BODY.0
                | EventFlags::HEADERS_HELD.0
                | EventFlags::BODY_END.0
                | EventFlags::END_STREAM.0;
            self.sides[d].body_end = true;
            self.deliver(d, BODY[d], flags, true);
        } else {
            self.sides[d].pass_headers();
            self.sides[d].at = if self.sides[d].ends_at_headers {
                At::Done
            } else {
                At::Flow
            };
        }
    }

    fn max_body(&self, d: usize) -> u64 {
        match self.conf.made.max_body[d] {
            0 => self.opt.max_body,
            n => n.min(1 << 20),
        }
    }

    fn body(&mut self, d: usize) {
        let max = self.max_body(d);
        let late = self.opt.late_end;
        let subscribed = self.subscribed(BODY[d]);
        let s = &mut self.sides[d];
        if s.body_end || !subscribed || s.mode == BodyMode::SKIP {
            if !s.body_end {
                s.pass_headers();
                s.pass_view();
                while let Some(r) = s.reads.pop_front() {
                    s.offset += r.len() as u64;
                    s.send(&r);
                }
                s.body_end = true;
            }
            self.trailers(d);
            return;
        }
        let holding = s.at == At::Hold;
        match s.mode {
            BodyMode::OBSERVE => {
                let read = s.reads.pop_front().unwrap_or_default();
                s.offset += read.len() as u64;
                s.send(&read);
                let last = s.reads.is_empty() && (!late || read.is_empty());
                let mut flags = 0;
                if last {
                    flags |= EventFlags::BODY_END.0;
                    s.body_end = true;
                    if s.trailers.is_none() {
                        flags |= EventFlags::END_STREAM.0;
                    }
                }
                s.offset -= read.len() as u64;
                s.view = read;
                let ends = flags & EventFlags::END_STREAM.0 != 0;
                self.deliver(d, BODY[d], flags, ends);
            }
            BodyMode::WHOLE => {
                while s.view.len() as u64 <= max
                    && let Some(r) = s.reads.pop_front()
                {
                    s.view.extend_from_slice(&r);
                }
                let over = s.view.len() as u64 > max;
                let mut flags = EventFlags::HEADERS_HELD.0;
                let ended = s.reads.is_empty();
                let mut ends = false;
                if over {
                    flags |= EventFlags::OVER_LIMIT.0;
                    s.over = true;
                    if ended {
                        flags |= EventFlags::BODY_END.0;
                        s.body_end = true;
                        if s.trailers.is_none() {
                            flags |= EventFlags::END_STREAM.0;
                            ends = true;
                        }
                    }
                } else {
                    flags |= EventFlags::WHOLE_BODY.0
                        | EventFlags::BODY_END.0
                        | EventFlags::END_STREAM.0;
                    s.body_end = true;
                    s.trailers_shown = true;
                    ends = true;
                }
                self.deliver(d, BODY[d], flags, ends);
            }
            _ => {
                let before = s.view.len();
                let want = if holding { s.due.max(1) } else { 1 };
                while ((s.view.len() - before) as u64) < want
                    && s.view.len() as u64 <= max
                    && let Some(r) = s.reads.pop_front()
                {
                    s.view.extend_from_slice(&r);
                }
                let grew = s.view.len() > before;
                let mut flags = 0;
                let mut ends = false;
                if s.reads.is_empty() && (!late || !grew) {
                    flags |= EventFlags::BODY_END.0;
                    s.body_end = true;
                    if s.trailers.is_none() {
                        flags |= EventFlags::END_STREAM.0;
                        ends = true;
                    }
                }
                if s.view.len() as u64 > max {
                    flags |= EventFlags::OVER_LIMIT.0;
                }
                if s.held {
                    flags |= EventFlags::HEADERS_HELD.0;
                }
                self.deliver(d, BODY[d], flags, ends);
            }
        }
    }

    fn trailers(&mut self, d: usize) {
        let s = &mut self.sides[d];
        if s.trailers.is_some() && !s.trailers_shown && self.subscribe & phase_bit(TRAILERS[d]) != 0
        {
            s.trailers_shown = true;
            self.deliver(d, TRAILERS[d], EventFlags::END_STREAM.0, true);
        } else {
            s.at = At::Done;
        }
    }

    fn context(&self, d: Option<usize>, phase: Phase, flags: u32) -> Context {
        let side = d.map(|d| &self.sides[d]);
        Context {
            phase,
            flags: EventFlags(flags),
            pend_phases: self.conf.made.pend_phases,
            features: self.conf.features,
            mode: [self.sides[0].mode, self.sides[1].mode],
            subscribe: self.subscribe,
            held: side.is_some_and(|s| s.held),
            view_len: side.map_or(0, |s| s.view.len() as u64),
            max_body: d.map_or(0, |d| self.max_body(d)),
            fields: side.map(|s| s.fields.clone()).unwrap_or_default(),
            trailers: side.and_then(|s| s.trailers.clone()).unwrap_or_default(),
            replied: self.replied,
            way: Way::Event,
            length_left: side.and_then(|s| s.length_left.filter(|_| s.mode == BodyMode::STREAM)),
        }
    }

    fn attrs(&self, phase: Phase) -> Vec<Option<Vec<u8>>> {
        let wants = self.conf.made.attrs.get();
        if !wants.iter().any(|w| w.phases & phase_bit(phase) != 0) {
            return Vec::new();
        }
        wants
            .iter()
            .map(|w| {
                let asked = w.phases & phase_bit(phase) != 0;
                asked.then(|| attribute(w.name.get())).flatten()
            })
            .collect()
    }

    fn event(&mut self, d: Option<usize>, phase: Phase, flags: u32) -> Event {
        let mut flags = flags | self.opt.unknown_flags;
        if self.upgraded && self.sides[1].passed_headers {
            flags |= EventFlags::UPGRADED.0;
        }
        if phase.0 < 7 || phase == Phase::WAKE {
            let can = !self.sides[1].passed_headers && !self.replied;
            if can {
                flags |= EventFlags::CAN_REPLY.0;
            }
        }
        if self.opt.local_origin && (d == Some(1) || phase == Phase::LOG) {
            flags |= EventFlags::LOCAL_ORIGIN.0;
        }
        let mut e = Event {
            phase,
            worker: self.opt.worker,
            config: self.conf.made.config,
            user: self.user,
            stream: self.handle,
            attrs: self.attrs(phase),
            ..Event::default()
        };
        if let Some(d) = d {
            if std::mem::take(&mut self.sides[d].resumed) {
                flags |= EventFlags::RESUMED.0;
            }
            let s = &self.sides[d];
            let shows_fields = phase == HEADERS[d]
                || (phase == BODY[d] && flags & EventFlags::HEADERS_HELD.0 != 0);
            if shows_fields {
                e.fields.clone_from(&s.fields);
                if d == 1 && self.conf.made.flags & 8 != 0 {
                    e.peer_fields.clone_from(&self.request);
                    e.peer_trailers.clone_from(&self.request_trailers);
                }
            }
            if phase == TRAILERS[d] || flags & EventFlags::WHOLE_BODY.0 != 0 {
                e.trailers = s.trailers.clone().unwrap_or_default();
            }
            if phase == BODY[d] {
                e.chunks = split(&s.view, self.opt.chunks);
                e.body_offset = s.offset;
            }
        }
        e.flags = EventFlags(flags);
        e
    }

    fn deliver(&mut self, d: usize, phase: Phase, flags: u32, ends: bool) {
        let e = self.event(Some(d), phase, flags);
        let context = self.context(Some(d), phase, e.flags.0);
        let _ = ends;
        self.call(Some(d), e, context);
    }

    /// The crossing, and what its result leads to.
    fn call(&mut self, d: Option<usize>, mut e: Event, context: Context) {
        let phase = e.phase;
        let host = self.rig.host;
        let token = self.conf.made.may_pend(phase) && d.is_some();
        if token {
            e.token = host.issue(context.clone());
            if !self.opt.lies.is_empty() {
                host.lie(e.token, &self.opt.lies);
            }
        }
        self.ran.events += 1;
        let grace = self.opt.borrow_grace;
        let done = self.rig.guest.on_event(&e, self.opt.layout, |o| {
            if let Some(grace) = grace {
                check_borrowed(o, grace, self.rig);
            }
        });
        let o = done.outcome;
        self.ran.asleep_ns += done.took.asleep_ns;
        self.ran.owned.extend(o.owned().iter().map(|b| b.0));
        if done.took.asleep_ns > self.ran.slowest.asleep_ns {
            self.ran.slowest = done.took;
            self.ran.slowest_phase = phase.0;
        }
        host.own(o.owned());
        let mut bad = context.judge(&o);
        bad.dedup();
        self.user = o.user;
        let at = phase_name(phase);
        self.ran.shapes.push(format!("{at} {}", o.shape()));
        if o.action == Action::ERROR {
            self.ran
                .errors
                .push(String::from_utf8_lossy(o.error.get()).into_owned());
        }
        let illegal = !bad.is_empty();
        for (rule, text) in bad {
            note(
                rule,
                text,
                [format!(
                    "filter {}, exchange step {}",
                    self.conf.label(),
                    self.ran.events
                )],
            );
        }
        if e.token != 0 && o.action != Action::PENDING && host.retire_issued(e.token) && !illegal {
            note(
                "PXG-ASY-005",
                format!(
                    "{at}: completed its token and then returned {}",
                    super::model::action_name(o.action)
                ),
                [
                    "the completion is discarded; answer PENDING where the token is used"
                        .to_string(),
                ],
            );
        }
        if illegal {
            if phase == Phase::LOG {
                self.ran.failed = true;
                return;
            }
            if e.token != 0 && o.action == Action::PENDING {
                host.cancel(e.token);
            }
            self.fail();
            return;
        }
        if o.action == Action::PENDING {
            self.ran.pended += 1;
            let Some(d) = d else { return };
            match host.pend(e.token) {
                Some(early) => {
                    self.sides[d].resumed = true;
                    self.settle(d, &context, &early);
                }
                None => {
                    self.pend = Some(Pend {
                        token: e.token,
                        dir: d,
                        context,
                        since: Instant::now(),
                    });
                }
            }
            return;
        }
        match d {
            Some(d) => self.settle(d, &context, &o),
            None if phase == Phase::LOG => {}
            None => match o.action {
                Action::REPLY => self.reply(&o),
                Action::RESET => self.reset = true,
                Action::ERROR => self.fail(),
                _ => {}
            },
        }
    }

    fn reply(&mut self, o: &Outcome) {
        if let ReplyFound::Some(r) = &o.reply {
            self.ran.replied = Some(r.status);
        }
        self.replied = true;
        for s in &mut self.sides {
            if s.at != At::Done {
                s.at = At::Cut;
            }
        }
    }

    /// The five steps of 7.11 for a legal result.
    fn settle(&mut self, d: usize, context: &Context, o: &Outcome) {
        let phase = context.phase;
        if o.action == Action::ERROR && context.way == Way::Event {
            self.ran.failed = true;
        }
        self.subscribe &= !o.unsubscribe;
        for (side, mode) in self.sides.iter_mut().zip(o.body_mode) {
            if mode != BodyMode::UNSET {
                side.mode = mode;
            }
        }
        match o.action {
            Action::REPLY if self.sides[1].passed_headers => self.reset = true,
            Action::REPLY => self.reply(o),
            Action::RESET => self.reset = true,
            Action::ERROR => {
                if self.ran.errors.is_empty() {
                    self.ran
                        .errors
                        .push(String::from_utf8_lossy(o.error.get()).into_owned());
                }
                self.fail();
            }
            _ => {
                self.apply(d, context, o);
                let ends = context.flags.0 & EventFlags::END_STREAM.0 != 0;
                let s = &mut self.sides[d];
                let whole_at_headers =
                    phase == HEADERS[d] && s.mode == BodyMode::WHOLE && !s.ends_at_headers && !ends;
                if o.action == Action::MORE {
                    s.at = At::Hold;
                    let kept = s.view.len() as u64;
                    s.due = if o.more_bytes > 0 {
                        o.more_bytes
                    } else {
                        (kept / 8).max(1024)
                    };
                } else if whole_at_headers {
                    s.at = At::Hold;
                } else {
                    s.pass_headers();
                    if s.mode == BodyMode::OBSERVE {
                        s.offset += s.view.len() as u64;
                        s.view.clear();
                    } else {
                        s.pass_view();
                    }
                    if s.over && s.mode == BodyMode::WHOLE {
                        s.mode = BodyMode::STREAM;
                    }
                    let over = ends
                        || (s.ends_at_headers && phase == HEADERS[d])
                        || (phase == HEADERS[d] && self.upgraded && d == 1);
                    s.at = if over { At::Done } else { At::Flow };
                }
            }
        }
    }

    fn apply(&mut self, d: usize, context: &Context, o: &Outcome) {
        let s = &mut self.sides[d];
        let mut cursor = 0usize;
        let mut out: Vec<u8> = Vec::new();
        for op in o.ops.get() {
            let list = if op.target == 1 {
                s.trailers.as_mut()
            } else if s.held {
                Some(&mut s.fields)
            } else {
                None
            };
            let value = || op.val.text.get().to_vec();
            match (op.kind, list) {
                (1 | 2, Some(list)) => {
                    if op.kind == 1 {
                        list.retain(|f| f.name != op.key.get());
                    }
                    let at = if op.key.get().first() == Some(&b':') {
                        0
                    } else {
                        list.len()
                    };
                    list.insert(
                        at,
                        Field {
                            name: op.key.get().to_vec(),
                            value: value(),
                            flags: op.val.text.flags & 2,
                        },
                    );
                }
                (3, Some(list)) => list.retain(|f| f.name != op.key.get()),
                // An index means the field that stood there in the delivered view.
                (4 | 5, Some(list)) => {
                    let view = if op.target == 1 {
                        &context.trailers
                    } else {
                        &context.fields
                    };
                    if let Some(f) = usize::try_from(op.u0).ok().and_then(|i| view.get(i))
                        && let Some(at) = list.iter().position(|g| g == f)
                    {
                        if op.kind == 4 {
                            list[at].value = value();
                        } else {
                            list.remove(at);
                        }
                    }
                }
                (8, _) => {
                    let n = usize::try_from(op.u0)
                        .unwrap_or(usize::MAX)
                        .min(s.view.len() - cursor);
                    out.extend_from_slice(&s.view[cursor..cursor + n]);
                    cursor += n;
                }
                (9, _) => {
                    cursor += usize::try_from(op.u0)
                        .unwrap_or(usize::MAX)
                        .min(s.view.len() - cursor);
                }
                (10, _) => out.extend_from_slice(op.val.text.get()),
                _ => {}
            }
        }
        s.view.drain(..cursor);
        s.offset += cursor as u64;
        s.send(&out);
    }

    fn mail(&mut self, m: Mail) {
        match m {
            Mail::Apply(o) => match o.action {
                Action::REPLY if !self.sides[1].passed_headers && !self.replied => {
                    self.cancel();
                    self.reply(&o);
                }
                Action::REPLY => {}
                Action::RESET => {
                    self.cancel();
                    self.reset = true;
                }
                _ => {}
            },
            Mail::Wake(arg) => {
                if self.subscribed(Phase::WAKE) && !self.ran.failed {
                    let mut e = self.event(None, Phase::WAKE, 0);
                    e.arg = arg;
                    let c = self.context(None, Phase::WAKE, e.flags.0);
                    self.call(None, e, c);
                }
            }
        }
    }

    fn cancel(&mut self) -> Option<Took> {
        let p = self.pend.take()?;
        let guest = &self.rig.guest;
        self.rig.host.cancel(p.token).then(|| {
            guest.on_cancel(
                self.conf.made.config,
                self.user,
                self.handle,
                p.token,
                self.opt.worker,
            )
        })
    }

    /// After a failure the guest gets nothing more but `on_cancel` and `on_stream_end`.
    fn fail(&mut self) {
        self.ran.failed = true;
        self.cancel();
        self.end(6);
    }

    fn end(&mut self, why: u64) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.cancel();
        let how = |s: &Side, d: usize| -> u64 {
            match s.at {
                At::Done => 1,
                At::Wait => 0,
                _ if self.aborted => [2, 3][d],
                _ => 4,
            }
        };
        let arg = why | how(&self.sides[0], 0) << 8 | how(&self.sides[1], 1) << 12;
        if self.subscribed(Phase::LOG) && !self.ran.failed {
            let mut e = self.event(None, Phase::LOG, 0);
            e.arg = arg;
            e.peer_fields.clone_from(&self.request);
            e.peer_trailers.clone_from(&self.request_trailers);
            if self.sides[1].at != At::Wait {
                e.fields.clone_from(&self.sides[1].fields);
                e.trailers = self.sides[1].trailers.clone().unwrap_or_default();
            }
            let c = self.context(None, Phase::LOG, e.flags.0);
            self.call(None, e, c);
        }
        self.rig.host.close_handle(self.handle);
        if self.user != 0 {
            self.rig.guest.on_stream_end(
                self.conf.made.config,
                self.user,
                self.handle,
                self.opt.worker,
            );
        }
        self.rig.release_owned();
    }
}

/// Looks again at borrowed memory after `grace`, while another thread makes the guest work.
fn check_borrowed(o: &Outcome, grace: Duration, rig: &Rig) {
    let was = o.borrowed();
    if was.is_empty() {
        return;
    }
    rig.disturb(grace);
    for (at, len) in calls::changed(&was) {
        let collected = rig.is_collected_heap(at);
        note(
            if collected {
                "PXG-MEM-011"
            } else {
                "PXG-MEM-004"
            },
            if collected {
                "handed out a pointer into its collected heap that was not pinned".to_string()
            } else {
                "borrowed result memory changed, or was freed, before the guest's next call"
                    .to_string()
            },
            [format!("{len} bytes at {at:#x}")],
        );
    }
}

/// Cuts a view into at most `n` pieces, none empty.
fn split(view: &[u8], n: usize) -> Vec<Vec<u8>> {
    if view.is_empty() {
        return Vec::new();
    }
    let n = n.clamp(1, 64).min(view.len());
    let each = view.len() / n;
    let mut out: Vec<Vec<u8>> = (0..n - 1)
        .map(|i| view[i * each..(i + 1) * each].to_vec())
        .collect();
    out.push(view[(n - 1) * each..].to_vec());
    out
}

fn attribute(name: &[u8]) -> Option<Vec<u8>> {
    Some(
        match name {
            b"request.id" => "pxg-0001",
            b"request.protocol" => "HTTP/2",
            b"request.start_ns" => "1700000000000000000",
            b"request.early_data" => "false",
            b"path.raw" | b"path.normalized" => "/index.html?q=1",
            b"source.address" | b"source.peer_address" => "192.0.2.1:40000",
            b"destination.address" => "[2001:db8::1]:443",
            b"connection.id" => "7",
            b"connection.requests" => "1",
            b"tls.version" => "TLSv1.3",
            b"route.name" => "",
            b"duration_ns" => "1000",
            _ => return None,
        }
        .as_bytes()
        .to_vec(),
    )
}

/// The features that a full host has.
pub(crate) fn all_features() -> proxy_golang_abi::feature::FeatureSet {
    let http: Vec<Feature> = Feature::ALL.iter().map(|(f, _)| *f).collect();
    proxy_golang_abi::feature::set_of(&http)
}
