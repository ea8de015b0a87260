//! Streams that begin as a `Glance` against the same streams without one: whatever their guest answers, and whatever
//! happens then, guests and wire see the same.

mod engine_support;
use engine_support::*;

/// A driver that forwards what nobody looks at by itself, as `Stream::bodies_skipped` and `Stream::skip_response` say.
struct Driver {
    world: World,
    glance: Option<Glance>,
    limits: StreamLimits,
    passes: [bool; 2],
    ended: [bool; 2],
    responded: bool,
    made: bool,
}

type Make = fn() -> Answer;

impl Driver {
    fn new(spec: Spec, glances: bool) -> Self {
        let limits = StreamLimits {
            driver_closes: true,
            max_ops: 5,
            max_fields: 7,
            ..StreamLimits::default()
        };
        let mut world = World::with(hub(), vec![spec], limits);
        if glances {
            world.stream = Stream::spare();
        }
        Self {
            world,
            glance: glances.then(Glance::default),
            limits,
            passes: [false; 2],
            ended: [false; 2],
            responded: false,
            made: !glances,
        }
    }

    fn chain(&self) -> Chain {
        Chain::new(self.world.filters.clone())
    }

    /// Runs the glance with what it needs.
    fn at_glance<R>(
        &mut self,
        act: impl FnOnce(&mut Glance, &mut Cx<'_>, &mut Stream<FieldList>, &Chain, &StreamLimits) -> R,
    ) -> R {
        let chain = self.chain();
        let mut cx = Cx {
            worker: &mut self.world.worker,
            attrs: &(),
        };
        let glance = self.glance.as_mut().unwrap();
        act(
            glance,
            &mut cx,
            &mut self.world.stream,
            &chain,
            &self.limits,
        )
    }

    fn request(&mut self, method: &str, extra: &[(&str, &str)], length: BodyLength) {
        let mut list = vec![(":method", method), (":path", "/"), ("x-first", "1")];
        list.extend(extra);
        let head = fields(&list);
        self.ended[0] = matches!(length, BodyLength::None | BodyLength::Exact(0));
        if self.glance.is_none() {
            self.world.on(|s, cx| s.request_head(cx, head, length));
        } else {
            let passed = self.at_glance(|glance, cx, stream, chain, limits| {
                assert!(Glance::suits(chain));
                glance.request_head(cx, stream, chain, 7, limits, head, length)
            });
            match passed {
                Some(head) => {
                    self.world.upstream.head = Some(pairs(&head));
                    self.world.upstream.length = Some(length);
                    self.world.upstream.ended = self.ended[0];
                    self.passes = [true; 2];
                }
                None => {
                    self.made = true;
                    self.world.pump();
                }
            }
        }
        self.passes[0] |= self.world.stream.bodies_skipped(Dir::Request);
    }

    fn request_body(&mut self, bytes: &'static str) {
        if self.ended[0] {
            return;
        }
        self.ended[0] = true;
        if self.passes[0] {
            self.world.upstream.body.extend(bytes.bytes());
            self.world.upstream.ended = true;
            if self.made {
                self.world.on(|s, cx| s.body_forwarded(cx, Dir::Request));
            }
        } else {
            self.world.data(Dir::Request, bytes);
            self.world.end(Dir::Request);
        }
    }

    fn response(&mut self) {
        let head = fields(&[(":status", "200"), ("x-from", "upstream")]);
        let upstream = &self.world.upstream;
        if self.responded || upstream.head.is_none() || self.world.client.head.is_some() {
            return;
        }
        self.responded = true;
        self.ended[1] = true;
        self.passes[1] = !self.made || self.world.stream.skip_response(BodyLength::Exact(0));
        if self.passes[1] {
            self.world.client.head = Some(pairs(&head));
            self.world.client.ended = true;
            return;
        }
        self.world
            .on(|s, cx| s.response_head(cx, head, BodyLength::Exact(0)));
    }

    /// From here on there is a stream.
    fn make(&mut self) {
        if std::mem::replace(&mut self.made, true) {
            return;
        }
        // Read anew from where it is now; guests do not see it again.
        let list = self.world.upstream.head.clone().unwrap();
        let list: Vec<_> = list.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let head = fields(&list);
        self.at_glance(|glance, cx, stream, chain, limits| {
            glance.hand_over(cx, stream, chain, 7, limits, head);
            assert!(!glance.is_live());
        });
        let mut cx = Cx {
            worker: &mut self.world.worker,
            attrs: &(),
        };
        // Before any mail.
        let part = self.world.stream.request_part(&mut cx);
        let Some(Part::Head { head, length, .. }) = part else {
            panic!("no head once more: {part:?}");
        };
        assert_eq!(Some(pairs(&head)), self.world.upstream.head);
        let seen = self.world.upstream.length.unwrap();
        assert!(length == seen, "{length:?}, not {seen:?}");
        if self.ended[0] {
            self.world.stream.body_forwarded(&mut cx, Dir::Request);
        }
        self.passes[1] = self.responded;
        if self.responded {
            assert!(self.world.stream.skip_response(BodyLength::Exact(0)));
        }
    }

    fn apply(&mut self, answer: Answer) -> Status {
        let handle = self.world.handle("a");
        let library = self.world.library("a");
        let status = self.world.hub.apply(library, handle, answer.keep());
        self.make();
        self.world.pump();
        status
    }

    fn close(&mut self) {
        if !self.made {
            self.at_glance(|glance, cx, _, chain, _| {
                glance.close(cx, chain);
                glance.close(cx, chain);
            });
            return;
        }
        for dir in [Dir::Request, Dir::Response] {
            if self.passes[dir as usize] && self.ended[dir as usize] {
                self.world.on(|s, cx| s.body_forwarded(cx, dir));
            }
        }
        self.world.on(|s, cx| s.close(cx, EndReason::COMPLETE));
    }

    /// All that anybody can tell of it.
    fn told(&mut self) -> String {
        let world = &mut self.world;
        world.signals.retain(|s| *s != Signal::Finished);
        let (a, calls) = (world.stats("a"), world.calls.lock().unwrap());
        let phase = a.phase(REQ_H);
        let counts: Vec<u64> = [
            &phase.calls,
            &phase.errors,
            &phase.panics,
            &phase.pending,
            &a.cancels,
            &a.unused_completions,
            &a.deadlines,
            &a.over_pending_cap,
            &a.skipped_ops,
            &a.late_replies,
            &a.bypassed,
            &a.pending_now,
        ]
        .iter()
        .map(|c| c.get())
        .collect();
        let metadata: Vec<_> = world.stream.metadata().collect();
        format!(
            "{:?}",
            (
                &*calls,
                &world.upstream,
                &world.client,
                &world.signals,
                counts,
                metadata
            )
        )
    }

    fn check_dead(&self) {
        for event in self.world.events() {
            let library = self.world.library("a");
            let status = self.world.hub.stream_status(library, event.stream);
            assert_eq!(status, Status::STALE, "the handle lives");
            let status = self.world.hub.token_status(library, event.token);
            assert_eq!(status, Status::STALE, "the token lives");
        }
    }
}

fn adds(n: usize) -> Answer {
    (0..n).fold(cont(), |answer, _| answer.add("x-more", "1"))
}

const ANSWERS: &[(&str, Make)] = &[
    ("nothing", cont),
    ("a slot", || cont().user(9)),
    ("edits", || {
        cont().set("x-first", "2").add("x-new", "3").del("x-none")
    }),
    ("edits and a slot", || cont().del("x-first").user(9)),
    ("a pseudo-header", || cont().set(":path", "/other")),
    ("an index", || cont().set_at(2, "by index")),
    ("a field of the host", || cont().set("content-length", "5")),
    ("no name", || cont().set("No Name", "5")),
    ("a must", || cont().set("x y", "5").must()),
    ("too many operations", || adds(6)),
    ("too many fields", || adds(5)),
    ("metadata", || {
        cont().metadata("key", "value").add("x-new", "3")
    }),
    ("a metric", || cont().op(OpKind::Metric { id: 1, value: 1 })),
    ("a route", || cont().op(OpKind::Route(None))),
    ("a trailer", || cont().add_trailer("x-t", "1")),
    ("an unknown operation", || cont().op(OpKind::Unknown(99))),
    ("unsubscribes", || cont().unsubscribe(&[REQ_H])),
    ("a mode", || cont().mode(Dir::Request, BodyMode::WHOLE)),
    ("a flag", || cont().flags(ResultFlags::FLUSH)),
    ("more", || more(1)),
    ("pending", || pending().user(4)),
    ("pending with a wish", || pending().pend_ns(MS)),
    ("pending with edits", || pending().set("x-new", "1")),
    ("a reply", || reply(403, "no").user(5)),
    ("an open reply", || open_reply(200, "a")),
    ("a reset", reset),
    ("an error", || error("wrong")),
    ("a panic", || error("panic: at the glance").user(6)),
    ("no action", || answer(Action::UNSET)),
];

const LATER: &[(&str, Make)] = &[
    ("reply", || reply(503, "later")),
    ("reset", reset),
    ("error", || error("later")),
    ("metadata", || cont().metadata("key", "later")),
    ("nothing", cont),
];

type Request = (
    &'static str,
    &'static [(&'static str, &'static str)],
    BodyLength,
);

const REQUESTS: &[Request] = &[
    ("GET", &[], BodyLength::Exact(0)),
    ("HEAD", &[], BodyLength::None),
    ("POST", &[("content-length", "4")], BodyLength::Exact(4)),
    (
        "POST",
        &[("content-type", "application/grpc")],
        BodyLength::Unknown,
    ),
];

/// What happens after the request's head, in each of these ways.
const SCRIPTS: &[&str] = &["", "br", "bra", "ba", "a", "rab", "aa", "bc", "dbr", "cbra"];

fn run(driver: &mut Driver, script: &str, later: Make) -> Vec<Status> {
    let mut statuses = Vec::new();
    for step in script.chars() {
        match step {
            'b' => driver.request_body("body"),
            'r' => driver.response(),
            'a' => statuses.push(driver.apply(later())),
            'c' => {
                let event = driver.world.last("a");
                if event.token != 0 {
                    let status = driver.world.complete("a", event.token, later());
                    statuses.push(status);
                }
                driver.passes[0] |= driver.world.stream.bodies_skipped(Dir::Request);
            }
            'd' => driver.world.at(20 * SECOND),
            _ => unreachable!(),
        }
    }
    driver.world.end_batch();
    driver.close();
    driver.check_dead();
    statuses
}

/// Answers in how many of the cases no stream was made for the request's head, and how many there were.
fn both(
    spec: impl Fn() -> Spec,
    what: &str,
    requests: &[Request],
    laters: &[(&str, Make)],
) -> [usize; 2] {
    let mut counts = [0; 2];
    for (method, extra, length) in requests {
        for script in SCRIPTS {
            let acts = script.contains(['a', 'c']);
            for (named, later) in if acts { laters } else { &laters[..1] } {
                let mut told = Vec::new();
                for glances in [false, true] {
                    let mut driver = Driver::new(spec(), glances);
                    driver.request(method, extra, *length);
                    counts[0] += usize::from(!driver.made);
                    let statuses = run(&mut driver, script, *later);
                    told.push((statuses, driver.told()));
                }
                counts[1] += 1;
                let (with, without) = (told.pop().unwrap(), told.pop().unwrap());
                assert_eq!(without.0, with.0, "{what}, {method}, {script}, {named}");
                assert_eq!(without.1, with.1, "{what}, {method}, {script}, {named}");
            }
        }
    }
    counts
}

#[test]
fn every_result_does_the_same_with_and_without_a_glance() {
    for (what, answer) in ANSWERS {
        let answer = *answer;
        let plain = || filter("a").on(&[REQ_H]).script(move |_| answer());
        let [without, all] = both(plain, what, REQUESTS, LATER);
        let simple = ["nothing", "a slot", "edits", "edits and a slot"].contains(what);
        assert_eq!(without, if simple { all } else { 0 }, "{what}");
        let (one, later) = (&REQUESTS[2..3], &LATER[..1]);
        both(|| plain().pend(&[REQ_H]), what, one, later);
        both(|| plain().open(), what, one, later);
        let few = || {
            plain().declare(|d| {
                d.projection = vec![(b"x-first".to_vec(), phase_bit(REQ_H))];
                d.attrs = vec![AttrWant {
                    source: AttrSource::Unknown,
                    phases: phase_bit(REQ_H),
                }];
            })
        };
        both(few, what, one, later);
    }
}

#[test]
fn a_completion_in_the_event_does_the_same() {
    for action in [cont as Make, pending, || cont().set("x-new", "1"), reset] {
        let mut told = Vec::new();
        for glances in [false, true] {
            let spec = filter("a").pend(&[REQ_H]);
            let mut driver = Driver::new(spec.script(|_| cont()), glances);
            let hub = std::sync::Arc::clone(&driver.world.hub);
            let library = driver.world.library("a");
            let spec = filter("a").pend(&[REQ_H]).script(move |e| {
                let early = hub.complete(library, e.token, cont().set("x-early", "1").keep());
                assert_eq!(early, Status::OK);
                action()
            });
            driver.world.filters = vec![spec.build(&driver.world.calls)];
            if !glances {
                let (chain, limits) = (driver.chain(), driver.limits);
                driver.world.stream = Stream::new(chain, 7, limits);
            }
            driver.request("GET", &[], BodyLength::Exact(0));
            if driver.made {
                driver.world.pump();
            } else {
                // The mail is of a token that is dead.
                driver.make();
            }
            run(&mut driver, "r", cont);
            told.push(driver.told());
        }
        assert_eq!(told[0], told[1]);
    }
}

#[test]
fn a_full_cap_is_the_streams_to_refuse() {
    let mut told = Vec::new();
    for glances in [false, true] {
        let spec = filter("a").pend(&[REQ_H]).policy(|p| p.max_pending = 1);
        let mut driver = Driver::new(spec.script(|_| pending()), glances);
        driver.request("GET", &[], BodyLength::Exact(0));
        let next = if glances {
            Stream::spare()
        } else {
            Stream::new(driver.chain(), 7, driver.limits)
        };
        let mut first = std::mem::replace(&mut driver.world.stream, next);
        driver.request("GET", &[], BodyLength::Exact(0));
        assert!(driver.made);
        assert_eq!(driver.world.failures()[0].1, Reason::Cap);
        driver.close();
        let mut cx = Cx {
            worker: &mut driver.world.worker,
            attrs: &(),
        };
        first.close(&mut cx, EndReason::COMPLETE);
        told.push(driver.told());
    }
    assert_eq!(told[0], told[1]);
}

#[test]
fn who_looks_at_anything_else_needs_a_stream() {
    let calls = Calls::default();
    let suits = |specs: Vec<Spec>| {
        let filters = specs.into_iter().map(|s| s.build(&calls)).collect();
        Glance::suits(&Chain::new(filters))
    };
    let head = || filter("a").on(&[REQ_H]);
    assert!(suits(vec![head()]));
    assert!(suits(vec![head().pend(&[REQ_H])]));
    assert!(!suits(vec![]) && !suits(vec![head(), head()]));
    assert!(!suits(vec![filter("a")]));
    for phase in ALL_PHASES.into_iter().filter(|p| *p != REQ_H) {
        assert!(!suits(vec![head().on(&[phase])]), "{}", phase_name(phase));
    }
}

#[test]
fn a_stream_after_a_glance_and_a_glance_after_a_stream() {
    let mut driver = Driver::new(
        filter("a").on(&[REQ_H]).script({
            let mut n = 0;
            move |_| {
                n += 1;
                if n % 2 == 0 { reply(403, "no") } else { cont() }
            }
        }),
        true,
    );
    for n in 1..=6 {
        driver.world.upstream = Out::default();
        driver.world.client = Out::default();
        driver.world.signals.clear();
        (driver.made, driver.responded) = (false, false);
        (driver.passes, driver.ended) = ([false; 2], [false; 2]);
        driver.request("GET", &[], BodyLength::Exact(0));
        assert_eq!(driver.made, n % 2 == 0);
        driver.response();
        let status = if n % 2 == 0 { "403" } else { "200" };
        assert_eq!(driver.world.client.status(), status);
        driver.close();
        driver.check_dead();
    }
}
