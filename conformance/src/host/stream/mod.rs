//! One stream at one place, after the machine of 7.11: what is delivered, in which order, and what a result leads to.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use proxy_golang_abi::feature::Feature;
use proxy_golang_abi::{BodyMode, Phase, phase_bit};

use super::config::ConfigMade;
use super::judge::Context;
use super::messages::{Exchange, Message, Rng};
use super::model::{Field, Outcome, phase_name};
use super::rig::{Conf, Rig};
use crate::finding::note;
use crate::scenario::{self, record};
use crate::sys::boundary::Layout;
use crate::sys::calls::Took;
use crate::sys::clock::Patience;

mod deliver;
mod settle;

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
    /// Events of both directions take turns, by this seed, as soon as the request's headers have passed. Otherwise the
    /// response begins when the request has ended.
    pub(crate) turns: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            layout: Layout::default(),
            abort_at: None,
            abort_pending: false,
            chunks: 4,
            unknown_flags: 0,
            lies: Vec::new(),
            borrow_grace: None,
            worker: 0,
            max_body: 64 << 10,
            late_end: false,
            local_origin: false,
            turns: None,
        }
    }
}

impl Options {
    /// Nothing that can be expected follows a failure that the guest does not know: it may leave its token alone, and the
    /// client goes away then.
    fn may_give_up(&self) -> bool {
        self.lies.iter().any(|l| *l < 0)
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
    /// L4: bytes still to be passed (true) or dropped without an event.
    credit: VecDeque<(bool, u64)>,
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
            credit: VecDeque::new(),
        }
    }

    /// How much of `view` an operation passes or drops; of a connection, the rest of its number is credit.
    fn take(&mut self, view: &[u8], passes: bool, number: u64, l4: bool) -> usize {
        let n = usize::try_from(number)
            .unwrap_or(usize::MAX)
            .min(view.len());
        let beyond = number - n as u64;
        if l4 && beyond > 0 {
            self.credit.push_back((passes, beyond));
        }
        n
    }

    /// Bytes come: what credit does not take joins the view.
    fn arrive(&mut self, mut bytes: &[u8]) {
        while let (false, Some((passes, left))) = (bytes.is_empty(), self.credit.front_mut()) {
            let n = usize::try_from(*left)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            let (taken, rest) = bytes.split_at(n);
            *left -= n as u64;
            let (passes, used) = (*passes, *left == 0);
            self.offset += n as u64;
            if passes {
                self.send(taken);
            }
            if used {
                self.credit.pop_front();
            }
            bytes = rest;
        }
        self.view.extend_from_slice(bytes);
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

/// Which phase is what: of an HTTP exchange, or of a connection.
struct Phases {
    first: [Option<Phase>; 2],
    body: [Phase; 2],
    trailers: [Option<Phase>; 2],
    last: Phase,
}

const HTTP: Phases = Phases {
    first: [Some(Phase::REQUEST_HEADERS), Some(Phase::RESPONSE_HEADERS)],
    body: [Phase::REQUEST_BODY, Phase::RESPONSE_BODY],
    trailers: [
        Some(Phase::REQUEST_TRAILERS),
        Some(Phase::RESPONSE_TRAILERS),
    ],
    last: Phase::LOG,
};

const L4: Phases = Phases {
    first: [Some(Phase::L4_OPEN), None],
    body: [Phase::L4_DOWNSTREAM, Phase::L4_UPSTREAM],
    trailers: [None, None],
    last: Phase::L4_CLOSE,
};

/// How long a PENDING may last.
const PEND_LIMIT: Duration = Duration::from_secs(3);
/// The same, where the guest may give up.
const GIVEN_UP: Duration = Duration::from_millis(250);

struct Pend {
    token: u64,
    context: Context,
    patience: Patience,
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
    /// At most one of them, unless the configuration says DUPLEX.
    pend: [Option<Pend>; 2],
    phases: &'static Phases,
    turns: Option<Rng>,
    upgraded: bool,
    replied: bool,
    reset: bool,
    aborted: bool,
    ended: bool,
    ran: Ran,
    /// Its number in the recording of a case.
    recorded: Option<u32>,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(rig: &'a Rig, conf: &'a Conf, e: &Exchange, opt: Options) -> Self {
        let recorded = record::opened(conf.made.config, e, &opt);
        Self {
            recorded,
            ..Self::with_fields(rig, conf, e, opt, &conf.subject.fields)
        }
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
            pend: [None, None],
            phases: &HTTP,
            turns: opt.turns.map(Rng::new),
            upgraded: e.upgraded,
            replied: false,
            reset: false,
            aborted: false,
            ended: false,
            ran: Ran::default(),
            recorded: None,
            rig,
            conf,
            opt,
        }
    }

    /// A connection, for a configuration that subscribes to L4 phases.
    pub(crate) fn connection(
        rig: &'a Rig,
        conf: &'a Conf,
        reads: [&[Vec<u8>]; 2],
        opt: Options,
    ) -> Self {
        let side = |reads: &[Vec<u8>]| {
            let m = Message {
                reads: reads.to_vec(),
                ..Message::default()
            };
            let mut s = Side::new(&m, BodyMode::STREAM, true);
            // A connection ends with its last byte, and it may have none.
            s.ends_at_headers = false;
            s
        };
        Self {
            sides: reads.map(side),
            request: Vec::new(),
            phases: &L4,
            ..Self::with_fields(rig, conf, &super::messages::get(), opt, &[])
        }
    }

    fn is_l4(&self) -> bool {
        self.phases.last == Phase::L4_CLOSE
    }

    /// Whether the configuration lets both directions be PENDING at once.
    fn is_duplex(&self) -> bool {
        self.conf.made.flags & 1 != 0
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
        self.record(|stream| scenario::Step::Go { stream, events: 1 });
        self.advance_once()
    }

    fn record(&self, step: impl FnOnce(u32) -> scenario::Step) {
        if let Some(stream) = self.recorded {
            record::step(self.opt.worker, &step(stream));
        }
    }

    fn advance_once(&mut self) -> Step {
        if self.ended {
            return Step::Ended;
        }
        for m in self.rig.host.take_mail(self.handle) {
            self.mail(m);
        }
        if self.opt.abort_pending && self.pend.iter().any(Option::is_some) {
            self.aborted = true;
            self.end(2);
            return Step::Ended;
        }
        for d in 0..2 {
            let Some(p) = &mut self.pend[d] else { continue };
            if let Some(o) = self.rig.host.wait(p.token, Instant::now()) {
                let token = p.token;
                self.completed(token, &o);
                return Step::Ran;
            }
            if p.patience.over() && self.opt.may_give_up() {
                self.abort();
                return Step::Ended;
            }
            if p.patience.over() {
                note(
                    "PXG-ASY-001",
                    format!("never completed a token of {}", phase_name(p.context.phase)),
                    [format!(
                        "token {:#x} was PENDING for {PEND_LIMIT:?} or longer; the stream's deadline ended it",
                        p.token
                    )],
                );
                self.rig.host.forget();
                self.fail();
                return Step::Ended;
            }
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
        let open = |s: &Side| !matches!(s.at, At::Done | At::Cut);
        if !self.sides.iter().any(open) {
            self.end(if self.opt.local_origin { 5 } else { 1 });
            return Step::Ended;
        }
        match (self.turn(), self.pending()) {
            (Some(dir), _) => {
                self.advance(dir);
                if self.ended { Step::Ended } else { Step::Ran }
            }
            (None, Some(token)) => Step::Waits(token),
            (None, None) => unreachable!("a direction that is open and not pending can go on"),
        }
    }

    /// The direction whose event is next; none while all that is open is PENDING or parked.
    fn turn(&mut self) -> Option<usize> {
        let open: Vec<usize> = (0..2)
            .filter(|d| !matches!(self.sides[*d].at, At::Done | At::Cut))
            .collect();
        let (rng, duplex) = (self.turns.is_some(), self.is_duplex());
        let parked = |d: usize| self.pend[d].is_some() || (!duplex && self.pend[1 - d].is_some());
        if !rng {
            return open
                .first()
                .copied()
                .filter(|d| !parked(*d) && self.pend[1 - d].is_none());
        }
        let ready: Vec<usize> = open
            .into_iter()
            .filter(|d| !parked(*d))
            .filter(|d| *d == 0 || self.sides[0].passed_headers || self.sides[0].at == At::Done)
            .collect();
        let n = self.turns.as_mut().map_or(0, |r| r.below(ready.len()));
        ready.get(n).copied()
    }

    /// Runs to the end, waiting for completions.
    pub(crate) fn run(mut self) -> Ran {
        self.record(|stream| scenario::Step::Finish { stream });
        let mut batched = None;
        loop {
            match self.advance_once() {
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
                        self.completed(token, &o);
                    }
                }
            }
        }
    }

    /// Puts a completion that came into effect.
    pub(crate) fn completed(&mut self, token: u64, o: &Outcome) {
        for d in 0..2 {
            if let Some(p) = self.pend[d].take_if(|p| p.token == token) {
                self.sides[d].resumed = true;
                self.settle(d, &p.context, o);
            }
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

    /// The token that is pending, the request's before the response's.
    pub(crate) fn pending(&self) -> Option<u64> {
        self.pend.iter().flatten().map(|p| p.token).next()
    }

    /// How many are.
    pub(crate) fn pending_count(&self) -> usize {
        self.pend.iter().flatten().count()
    }

    /// The client goes away: the time that `on_cancel` took, if there was one. [`Stream::abort`] does what follows.
    pub(crate) fn client_goes(&mut self) -> Option<Took> {
        self.record(|stream| scenario::Step::Abort { stream });
        self.aborted = true;
        self.cancel()
    }

    /// The client goes away, and the stream ends.
    pub(crate) fn abort(&mut self) {
        self.client_goes();
        self.end(2);
    }
}

/// The features that a full host has.
pub(crate) fn all_features() -> proxy_golang_abi::feature::FeatureSet {
    let http: Vec<Feature> = Feature::ALL.iter().map(|(f, _)| *f).collect();
    proxy_golang_abi::feature::set_of(&http)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_takes_bytes_before_they_are_shown() {
        let mut s = Side::new(&Message::default(), BodyMode::STREAM, true);
        assert_eq!(s.take(b"12", true, 2, true), 2);
        assert_eq!(s.take(b"12", true, 5, false), 2);
        assert!(s.credit.is_empty());
        assert_eq!(s.take(b"12", true, 4, true), 2);
        assert_eq!(s.take(b"", false, 3, true), 0);
        s.arrive(b"abcd");
        assert_eq!(
            (s.passed.as_slice(), s.view.len(), s.offset),
            (&b"ab"[..], 0, 4)
        );
        s.arrive(b"efg");
        assert_eq!(s.passed, b"ab", "what credit drops is not passed");
        assert_eq!((s.view.as_slice(), s.offset), (&b"fg"[..], 5));
        assert!(s.credit.is_empty());
        s.arrive(b"h");
        assert_eq!(s.view, b"fgh");
    }
}
