//! Random chains with random legal decisions against a naive model: each guest applies what it decides to plain
//! vectors, and what leaves the engine has to be the composition of them (invariants of spec 7.11).

mod engine_support;
use engine_support::*;

use std::sync::{Arc, Mutex};

use proptest::prelude::*;

/// One direction at one place, as the guest itself keeps its books.
#[derive(Debug, Default)]
struct Side {
    mode: BodyMode,
    /// Bytes passed or dropped.
    consumed: u64,
    /// What was kept and must be shown again.
    kept: Vec<u8>,
    /// What has passed.
    out: Vec<u8>,
    /// Everything from `consumed` on passes unseen.
    transparent: bool,
    /// 0 nothing yet, 1 HEADERS, 2 BODY, 3 BODY_END, 4 TRAILERS.
    stage: u8,
    ended: bool,
    pending: bool,
    /// Marks set on the head.
    marks: usize,
}

struct Books {
    name: &'static str,
    rng: u64,
    sides: [Side; 2],
    pend: bool,
    early: bool,
    duplex: bool,
    max: u64,
    waiting: Vec<Seen>,
    completed: Vec<u64>,
    logs: usize,
}

impl Books {
    fn roll(&mut self, n: u64) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        self.rng % n
    }

    /// What an event may look like, given those before it.
    fn check(&mut self, e: &Seen, dir: usize) {
        let name = self.name;
        let duplex = self.duplex;
        let peer_pends = self.sides[1 - dir].pending;
        let side = &mut self.sides[dir];
        assert!(!side.pending, "{name}: an event of a PENDING direction");
        assert!(
            duplex || !peer_pends,
            "{name}: an event of a parked direction"
        );
        assert!(!side.ended, "{name}: an event after END_STREAM");
        let stage = match e.phase {
            REQ_H | RES_H => 1,
            REQ_B | RES_B if e.has(EventFlags::BODY_END) => 3,
            REQ_B | RES_B => 2,
            _ => 4,
        };
        let before = side.stage;
        assert!(
            before < stage || (before, stage) == (2, 2),
            "{name}: {before} then {stage}"
        );
        side.stage = stage;
        side.ended = e.has(EventFlags::END_STREAM);
        if stage == 2 || stage == 3 {
            let view = e.body();
            assert!(!side.transparent, "{name}: a BODY event in SKIP");
            assert_eq!(e.offset, side.consumed, "{name}: offset");
            assert!(
                view.starts_with(&side.kept),
                "{name}: kept bytes are shown again"
            );
            assert!(!view.is_empty() || stage == 3, "{name}: an empty event");
            assert_eq!(
                e.has(EventFlags::OVER_LIMIT),
                side.mode != BodyMode::OBSERVE && view.len() as u64 > self.max
            );
        }
    }

    /// A legal decision, and its effect in the books.
    fn decide(&mut self, e: &Seen, late: bool) -> Answer {
        let dir = usize::from([RES_H, RES_B, RES_T].contains(&e.phase));
        match e.phase {
            REQ_H | RES_H => self.decide_head(e, dir, late),
            REQ_B | RES_B => self.decide_body(e, dir, late),
            REQ_T | RES_T => {
                if !late && self.pend && self.roll(3) == 0 {
                    return pending();
                }
                cont()
            }
            _ => cont(),
        }
    }

    fn decide_head(&mut self, e: &Seen, dir: usize, late: bool) -> Answer {
        if !late && self.pend && self.roll(3) == 0 {
            return pending();
        }
        let mode = match self.roll(8) {
            0 => BodyMode::SKIP,
            1 => BodyMode::STREAM,
            2 => BodyMode::WHOLE,
            3 => BodyMode::OBSERVE,
            _ => self.sides[dir].mode,
        };
        let holds = matches!(mode, BodyMode::STREAM | BodyMode::WHOLE);
        let mut answer = if holds && !e.has(EventFlags::END_STREAM) && self.roll(3) == 0 {
            more(self.roll(6))
        } else {
            cont()
        };
        if mode != self.sides[dir].mode {
            answer = answer.mode([Dir::Request, Dir::Response][dir], mode);
        }
        if self.roll(2) == 0 {
            answer = answer.add("x-mark", self.name);
            self.sides[dir].marks += 1;
        }
        self.sides[dir].mode = mode;
        self.sides[dir].transparent = mode == BodyMode::SKIP;
        answer
    }

    fn decide_body(&mut self, e: &Seen, dir: usize, late: bool) -> Answer {
        let view = e.body();
        if self.sides[dir].mode == BodyMode::OBSERVE {
            let skip = self.roll(4) == 0;
            let side = &mut self.sides[dir];
            side.consumed += view.len() as u64;
            side.out.extend_from_slice(&view);
            return if skip {
                self.leave_to_skip(cont(), dir)
            } else {
                cont()
            };
        }
        if !late && self.pend && self.roll(4) == 0 {
            self.sides[dir].kept = view;
            return pending();
        }
        let held = e.has(EventFlags::HEADERS_HELD);
        let may_keep = self.sides[dir].mode == BodyMode::STREAM
            && !e.has(EventFlags::BODY_END)
            && view.len() as u64 <= self.max;
        let keeps = may_keep && self.roll(3) == 0;
        let mut answer = if keeps { more(self.roll(6)) } else { cont() };
        if held && self.roll(2) == 0 {
            answer = answer.add("x-mark", self.name);
            self.sides[dir].marks += 1;
        }
        let mut at = 0;
        let only_drop = keeps && held;
        for _ in 0..self.roll(5) {
            let n = self.roll(view.len() as u64 - at + 1);
            match self.roll(3) {
                0 if !only_drop => {
                    self.sides[dir]
                        .out
                        .extend_from_slice(&view[at as usize..][..n as usize]);
                    answer = answer.pass(n);
                    at += n;
                }
                1 if !only_drop => {
                    let text = ["", "+", "injected"][self.roll(3) as usize];
                    self.sides[dir].out.extend_from_slice(text.as_bytes());
                    answer = answer.inject(text);
                }
                _ => {
                    answer = answer.drop(n);
                    at += n;
                }
            }
        }
        let skip = !keeps
            && self.roll(6) == 0
            && (self.sides[dir].mode == BodyMode::STREAM || e.has(EventFlags::OVER_LIMIT));
        let over = e.has(EventFlags::OVER_LIMIT);
        let side = &mut self.sides[dir];
        let rest = view[at as usize..].to_vec();
        side.consumed += at;
        if keeps {
            side.kept = rest;
            return answer;
        }
        side.kept.clear();
        side.consumed += rest.len() as u64;
        side.out.extend(rest);
        if over && side.mode == BodyMode::WHOLE {
            side.mode = BodyMode::STREAM;
        }
        if skip {
            self.leave_to_skip(answer, dir)
        } else {
            answer
        }
    }

    fn leave_to_skip(&mut self, answer: Answer, dir: usize) -> Answer {
        self.sides[dir].transparent = true;
        if self.roll(2) == 0 {
            self.sides[dir].mode = BodyMode::SKIP;
            answer.mode([Dir::Request, Dir::Response][dir], BodyMode::SKIP)
        } else {
            answer.unsubscribe(&[[REQ_B, RES_B][dir]])
        }
    }

    fn event(&mut self, e: &Seen, hub: &Hub) -> Answer {
        assert_eq!(self.logs, 0, "{}: an event after LOG", self.name);
        if e.phase == LOG {
            self.logs += 1;
            return cont().user(self.roll(2));
        }
        if e.phase == WAKE {
            return cont();
        }
        let dir = usize::from([RES_H, RES_B, RES_T].contains(&e.phase));
        self.check(e, dir);
        let answer = self.decide(e, false);
        if answer.outcome.action == Action::PENDING {
            if self.early && self.roll(3) == 0 {
                let kept = self.decide(e, true).keep();
                assert_eq!(hub.complete(library(self.name), e.token, kept), Status::OK);
                self.completed.push(e.token);
            } else {
                self.sides[dir].pending = true;
                self.waiting.push(e.clone());
            }
        }
        answer.user(1 + self.roll(3))
    }

    /// Completes the `n`th that waits.
    fn complete(&mut self, n: usize, hub: &Hub) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        let e = self.waiting.remove(n % self.waiting.len());
        let dir = usize::from([RES_H, RES_B, RES_T].contains(&e.phase));
        self.sides[dir].pending = false;
        let kept = self.decide(&e, true).keep();
        assert_eq!(hub.complete(library(self.name), e.token, kept), Status::OK);
        self.completed.push(e.token);
        true
    }
}

fn library(name: &str) -> u32 {
    u32::from(name.as_bytes()[0])
}

#[derive(Clone, Debug)]
struct Config {
    subscribe: u64,
    modes: [u8; 2],
    max: u64,
    pend: bool,
    early: bool,
    duplex: bool,
    seed: u64,
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Data(Dir, usize),
    End(Dir, bool),
    ResponseHead(bool),
    Complete(usize, usize),
    Tick,
    Wake(usize),
    Block(Dir, bool),
    Kill(u8),
}

fn configs() -> impl Strategy<Value = Vec<Config>> {
    let one = (
        any::<u64>(),
        any::<[u8; 2]>(),
        1..40u64,
        any::<[bool; 3]>(),
        1..u64::MAX,
    )
        .prop_map(
            |(subscribe, modes, max, [pend, early, duplex], seed)| Config {
                subscribe,
                modes,
                max,
                pend,
                early,
                duplex,
                seed,
            },
        );
    prop::collection::vec(one, 1..4)
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let dir = prop_oneof![Just(Dir::Request), Just(Dir::Response)];
    let one = prop_oneof![
        6 => (dir.clone(), 1..20usize).prop_map(|(d, n)| Move::Data(d, n)),
        1 => (dir.clone(), any::<bool>()).prop_map(|(d, t)| Move::End(d, t)),
        2 => any::<bool>().prop_map(Move::ResponseHead),
        5 => (0..3usize, 0..2usize).prop_map(|(g, n)| Move::Complete(g, n)),
        2 => Just(Move::Tick),
        1 => (0..3usize).prop_map(Move::Wake),
        1 => (dir, any::<bool>()).prop_map(|(d, b)| Move::Block(d, b)),
        1 => (0..40u8).prop_map(Move::Kill),
    ];
    prop::collection::vec(one, 1..40)
}

struct Run {
    world: World,
    books: Vec<Arc<Mutex<Books>>>,
    input: [Vec<u8>; 2],
    open: [bool; 2],
    time: u64,
}

const NAMES: [&str; 3] = ["a", "b", "c"];
const MODES: [BodyMode; 4] = [
    BodyMode::SKIP,
    BodyMode::STREAM,
    BodyMode::WHOLE,
    BodyMode::OBSERVE,
];

impl Run {
    fn new(configs: &[Config]) -> Self {
        let hub = hub();
        let mut specs = Vec::new();
        let mut all = Vec::new();
        for (config, name) in configs.iter().zip(NAMES) {
            let side = |i: usize| {
                let body = config.subscribe & phase_bit([REQ_B, RES_B][i]) != 0;
                let mode = MODES[config.modes[i] as usize % 4];
                Side {
                    mode: if body { mode } else { BodyMode::SKIP },
                    transparent: !body || mode == BodyMode::SKIP,
                    ..Side::default()
                }
            };
            let books = Arc::new(Mutex::new(Books {
                name,
                rng: config.seed,
                sides: [side(0), side(1)],
                pend: config.pend,
                early: config.early,
                duplex: config.duplex,
                max: config.max,
                waiting: Vec::new(),
                completed: Vec::new(),
                logs: 0,
            }));
            // Who is asked at headers may turn a body on: so it subscribes to it.
            let mut on = vec![LOG, WAKE];
            for (head, body, trailers, i) in [(REQ_H, REQ_B, REQ_T, 0), (RES_H, RES_B, RES_T, 1)] {
                let books = &mut books.lock().unwrap().sides[i];
                if books.mode != BodyMode::SKIP || config.subscribe & phase_bit(head) != 0 {
                    on.push(body);
                }
                if config.subscribe & phase_bit(head) != 0 {
                    on.push(head);
                }
                if config.subscribe & phase_bit(trailers) != 0 {
                    on.push(trailers);
                }
            }
            let modes = [0, 1].map(|i| books.lock().unwrap().sides[i].mode);
            let mut spec = filter(name)
                .on(&on)
                .max_body(config.max)
                .flag(ConfigFlags::RESIZES_REQUEST)
                .flag(ConfigFlags::RESIZES_RESPONSE)
                .declare(|d| d.body_mode = modes);
            if config.pend {
                on.retain(|p| *p != LOG && *p != WAKE);
                spec = spec.pend(&on);
            }
            if config.duplex {
                spec = spec.flag(ConfigFlags::DUPLEX);
            }
            let (of_guest, hub) = (Arc::clone(&books), Arc::clone(&hub));
            specs.push(spec.script(move |e| of_guest.lock().unwrap().event(e, &hub)));
            all.push(books);
        }
        Self {
            world: World::with(hub, specs, StreamLimits::default()),
            books: all,
            input: [Vec::new(), Vec::new()],
            open: [true, false],
            time: 1,
        }
    }

    /// A step that makes no sense now does nothing.
    fn step(&mut self, step: Move) {
        let world = &mut self.world;
        match step {
            Move::Data(dir, n) if self.open[dir as usize] => {
                let from = self.input[dir as usize].len();
                let bytes: Vec<u8> = (from..from + n).map(|i| (i % 26) as u8 + b'a').collect();
                self.input[dir as usize].extend_from_slice(&bytes);
                world.data(dir, bytes);
            }
            Move::End(dir, trailers) if self.open[dir as usize] => {
                self.open[dir as usize] = false;
                world.end_with(dir, trailers.then_some(&[("t", "1")]));
            }
            Move::ResponseHead(known)
                if world.upstream.head.is_some()
                    && world.client.head.is_none()
                    && !self.open[1] =>
            {
                if self.world_has_response() {
                    return;
                }
                let world = &mut self.world;
                self.open[1] = !known;
                let length = if known {
                    BodyLength::Exact(0)
                } else {
                    BodyLength::Unknown
                };
                self.input[1].clear();
                world.response("200", length);
                RESPONSES.with(|r| r.set(true));
            }
            Move::Complete(guest, n) => {
                if let Some(books) = self.books.get(guest)
                    && books.lock().unwrap().complete(n, &world.hub)
                {
                    world.pump();
                }
            }
            Move::Tick => {
                self.time += 60 * MS;
                world.at(self.time);
            }
            Move::Wake(guest) => {
                let event = world
                    .events()
                    .into_iter()
                    .rfind(|e| NAMES.get(guest) == Some(&e.guest));
                if let Some(e) = event {
                    assert_eq!(world.hub.wake(library(e.guest), e.stream, 1), Status::OK);
                    world.pump();
                }
            }
            Move::Block(dir, blocked) => {
                world.blocked[dir as usize] = blocked;
                world.pump();
            }
            _ => {}
        }
    }

    fn world_has_response(&self) -> bool {
        RESPONSES.with(std::cell::Cell::get)
    }

    /// Lets the exchange run to its end.
    fn finish(&mut self) {
        for dir in [Dir::Request, Dir::Response] {
            self.step(Move::Block(dir, false));
        }
        for round in 0..200 {
            if self.world.finished() {
                return;
            }
            self.step(Move::End(Dir::Request, false));
            if !self.world_has_response() {
                self.step(Move::ResponseHead(false));
            }
            self.step(Move::End(Dir::Response, round % 2 == 0));
            for guest in 0..3 {
                self.step(Move::Complete(guest, round));
            }
        }
        panic!("it does not end: {}", self.world.story_text());
    }

    fn check_ended(&self) {
        for books in &self.books {
            let completed = std::mem::take(&mut books.lock().unwrap().completed);
            let call = |token| Call::Complete {
                token,
                status: Status::OK,
            };
            let mut calls = self.world.calls.lock().unwrap();
            calls.extend(completed.into_iter().map(call));
        }
        self.world.check_ended();
    }

    /// What leaves has to be a prefix of the composition, and all of it if the exchange was complete.
    fn check(&self, complete: bool) {
        for dir in [Dir::Request, Dir::Response] {
            let mut bytes = self.input[dir as usize].clone();
            let mut order: Vec<_> = self.books.iter().collect();
            if dir == Dir::Response {
                order.reverse();
            }
            let mut marks = 0;
            for books in order {
                let books = books.lock().unwrap();
                let side = &books.sides[dir as usize];
                marks += side.marks;
                let consumed = usize::try_from(side.consumed).unwrap();
                assert!(consumed <= bytes.len() || !complete);
                let rest = bytes.get(consumed..).unwrap_or(&[]).to_vec();
                bytes = side.out.clone();
                if side.transparent {
                    bytes.extend(rest);
                } else if complete {
                    assert!(rest.is_empty(), "{}: bytes that it never saw", books.name);
                }
            }
            let out = self.world.out(dir);
            if complete {
                assert_eq!(out.text(), String::from_utf8(bytes).unwrap(), "{dir:?}");
                assert!(out.ended);
                let head = out.head.as_ref().unwrap();
                assert_eq!(head.iter().filter(|(n, _)| n == "x-mark").count(), marks);
            } else {
                assert!(bytes.starts_with(&out.body), "{dir:?}");
            }
        }
    }
}

thread_local! {
    static RESPONSES: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn run(configs: &[Config], steps: &[Move], request_ends: bool) {
    RESPONSES.with(|r| r.set(false));
    let mut run = Run::new(configs);
    let length = if request_ends {
        BodyLength::None
    } else {
        BodyLength::Unknown
    };
    run.open[0] = !request_ends;
    run.world.post(length);
    for step in steps {
        if let Move::Kill(how) = step {
            if *how > 3 {
                continue;
            }
            for books in &run.books {
                let mut books = books.lock().unwrap();
                books.sides.iter_mut().for_each(|s| s.pending = false); // all of it is cancelled
                books.waiting.clear();
            }
            match how {
                0 => run.world.close(),
                1 => run
                    .world
                    .on(|s, cx| s.cut(cx, Dir::Response, Cut::Receiver)),
                2 => run.world.on(|s, cx| s.cut(cx, Dir::Response, Cut::Sender)),
                _ => {
                    run.world
                        .on(|s, cx| s.host_reply(cx, 503, "text/plain", Bytes::new(), "x"));
                }
            }
            if !run.world.finished() {
                run.world.close(); // that direction had ended
            }
            run.check_ended();
            for books in &run.books {
                assert_eq!(books.lock().unwrap().logs, 1);
            }
            return;
        }
        run.step(*step);
        assert_eq!(run.world.failures(), [], "{}", run.world.failure_texts());
        run.check(false);
        if run.world.finished() {
            break;
        }
    }
    run.finish();
    assert_eq!(run.world.failures(), [], "{}", run.world.failure_texts());
    run.check_ended();
    run.check(true);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3 * ProptestConfig::default().cases, // PROPTEST_CASES scales it
        max_shrink_iters: 20_000,
        failure_persistence: Some(Box::new(
            proptest::test_runner::FileFailurePersistence::WithSource("regressions"),
        )),
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_leaves_is_what_the_guests_made(
        configs in configs(),
        steps in moves(),
        request_ends in any::<bool>(),
    ) {
        run(&configs, &steps, request_ends);
    }
}
