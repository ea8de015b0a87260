//! The end of a stream: LOG, its `arg`, the order of the last calls, and death at every step (spec 5.7).

mod engine_support;
use engine_support::*;
use std::sync::Arc;

fn watcher(name: &'static str) -> Spec {
    filter(name)
        .on(&[REQ_H, RES_H, LOG])
        .script(|_| cont().user(5))
}

#[test]
fn log_goes_to_places_that_were_not_reached() {
    let mut world = World::new(vec![
        watcher("a"),
        watcher("b").pend(&[REQ_H]).script(|_| pending()),
        watcher("c"),
    ]);
    world.get();
    world.on(|s, cx| s.cut(cx, Dir::Request, Cut::Sender));
    assert_eq!(
        world.story_text(),
        "a:REQ_H b:REQ_H b:cancel a:LOG b:LOG c:LOG a:end c:end"
    );
    let (why, request, response) = world.log_arg("c");
    assert_eq!(why, EndReason::CLIENT_ABORT);
    assert_eq!(request, DirectionEnd::SENDER);
    assert_eq!(response, DirectionEnd::NEVER_BEGAN);
    world.check_ended();
}

#[test]
fn how_and_why() {
    use DirectionEnd as How;
    type Act = fn(&mut World);
    let cases: [(&str, Act, EndReason, How, How); 10] = [
        (
            "complete",
            |w| {
                w.end(Dir::Request);
                w.ok("x");
            },
            EndReason::COMPLETE,
            How::COMPLETE,
            How::COMPLETE,
        ),
        (
            "the client goes away before the response",
            |w| {
                w.end(Dir::Request);
                w.on(|s, cx| s.cut(cx, Dir::Response, Cut::Receiver));
            },
            EndReason::CLIENT_ABORT,
            How::COMPLETE,
            How::NEVER_BEGAN,
        ),
        (
            "the client goes away in the response",
            |w| {
                w.end(Dir::Request);
                w.response("200", BodyLength::Unknown);
                w.on(|s, cx| s.cut(cx, Dir::Response, Cut::Receiver));
            },
            EndReason::CLIENT_ABORT,
            How::COMPLETE,
            How::RECEIVER,
        ),
        (
            "the client goes away in both",
            |w| {
                w.response("200", BodyLength::Unknown);
                w.on(|s, cx| s.cut(cx, Dir::Request, Cut::Sender));
            },
            EndReason::CLIENT_ABORT,
            How::SENDER,
            How::RECEIVER,
        ),
        (
            "the upstream dies in the response",
            |w| {
                w.end(Dir::Request);
                w.response("200", BodyLength::Unknown);
                w.on(|s, cx| s.cut(cx, Dir::Response, Cut::Sender));
            },
            EndReason::UPSTREAM_RESET,
            How::COMPLETE,
            How::SENDER,
        ),
        (
            "the upstream dies in both",
            |w| {
                w.response("200", BodyLength::Unknown);
                w.on(|s, cx| s.cut(cx, Dir::Response, Cut::Sender));
            },
            EndReason::UPSTREAM_RESET,
            How::RECEIVER,
            How::SENDER,
        ),
        (
            "a time limit of the host",
            |w| {
                w.end(Dir::Request);
                w.response("200", BodyLength::Unknown);
                w.on(|s, cx| s.cut(cx, Dir::Response, Cut::Timeout));
            },
            EndReason::TIMEOUT,
            How::COMPLETE,
            How::PROXY,
        ),
        (
            "a reply of the host",
            |w| {
                w.on(|s, cx| s.host_reply(cx, 502, "text/plain", Bytes::new(), "down"));
            },
            EndReason::REPLIED,
            How::PROXY,
            How::COMPLETE,
        ),
        (
            "the host gives up",
            |w| w.on(|s, cx| s.close(cx, EndReason::ERROR)),
            EndReason::ERROR,
            How::PROXY,
            How::NEVER_BEGAN,
        ),
        (
            "the upstream stops reading and answers",
            |w| {
                w.response("200", BodyLength::Unknown);
                w.on(|s, cx| s.cut(cx, Dir::Request, Cut::Receiver));
                assert!(!w.finished());
                w.end(Dir::Response);
            },
            EndReason::COMPLETE,
            How::RECEIVER,
            How::COMPLETE,
        ),
    ];
    for (name, act, why, request, response) in cases {
        let mut world = World::new(vec![watcher("a")]);
        world.post(BodyLength::Unknown);
        world.data(Dir::Request, "ping");
        act(&mut world);
        assert_eq!(world.log_arg("a"), (why, request, response), "{name}");
        assert_eq!(world.story().iter().filter(|w| *w == "a:LOG").count(), 1);
        world.check_ended();
    }
}

/// The upstream reads no more: what a guest held of the request runs out of no time.
#[test]
fn a_cut_request_holds_nothing() {
    let mut world = World::new(vec![
        watcher("a")
            .body(Dir::Request, BodyMode::STREAM)
            .script(|e| if e.phase == REQ_B { more(1000) } else { cont() }),
    ]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "ping");
    world.response("200", BodyLength::Unknown);
    world.on(|s, cx| s.cut(cx, Dir::Request, Cut::Receiver));
    assert_eq!(world.stream.deadline(), None);
    world.at(100 * SECOND);
    assert_eq!(world.failures(), []);
}

#[test]
fn close_is_idempotent_and_final() {
    let mut world =
        World::new(vec![watcher("a").pend(&[RES_H]).script(|e| {
            if e.phase == RES_H { pending() } else { cont() }.user(1)
        })]);
    world.get();
    world.response("200", BodyLength::Unknown);
    let e = world.last("a");
    let owned = Owned::default();
    let queued = cont().write(owned.bytes(b"x"));
    assert_eq!(
        world.hub.apply(world.library("a"), e.stream, queued.keep()),
        Status::OK
    );
    world.stream.close(
        &mut Cx {
            worker: &mut world.worker,
            attrs: &(),
        },
        EndReason::ERROR,
    );
    world.close();
    world.data(Dir::Response, "late");
    world.end(Dir::Response);
    world.on(|s, cx| s.cut(cx, Dir::Request, Cut::Sender));
    world.at(1000 * SECOND);
    assert_eq!(world.story_text(), "a:REQ_H a:RES_H a:cancel a:LOG a:end");
    assert_eq!(owned.counts(), (1, 1));
    assert!(!world.stream.wants(Dir::Request) && !world.stream.wants(Dir::Response));
    assert_eq!(world.stream.deadline(), None);
    world.check_ended();
}

/// The steps of an exchange in which three guests pend, hold, observe, apply and wake.
type Script = Vec<Box<dyn Fn(&mut World)>>;

fn scripted(owned: &Owned) -> (World, Script) {
    let pends = |name: &'static str| {
        let buffers = owned.clone();
        filter(name)
            .on(&[LOG, WAKE])
            .pend(&[REQ_H, REQ_B, REQ_T, RES_H, RES_B, RES_T])
            .body(Dir::Request, BodyMode::STREAM)
            .body(Dir::Response, BodyMode::STREAM)
            .flag(ConfigFlags::DUPLEX)
            .flag(ConfigFlags::RESIZES_REQUEST)
            .flag(ConfigFlags::RESIZES_RESPONSE)
            .script(move |e| match e.phase {
                LOG => cont().user(0),
                WAKE => cont(),
                REQ_B | RES_B if e.offset == 0 && !e.has(EventFlags::BODY_END) => {
                    more(1).inject(buffers.bytes(b"+")).pass(1).user(2)
                }
                _ => pending().user(e.user + 1),
            })
    };
    let world = World::new(vec![
        pends("a"),
        filter("b")
            .on(&[REQ_H, LOG])
            .body(Dir::Request, BodyMode::WHOLE)
            .body(Dir::Response, BodyMode::OBSERVE)
            .script(|_| cont().user(7)),
        pends("c"),
    ]);
    let complete = |guest: &'static str, dir: Dir| -> Box<dyn Fn(&mut World)> {
        let buffers = owned.clone();
        Box::new(move |w: &mut World| {
            let mut events = w.events_of(guest);
            let phases = [[REQ_H, REQ_B, REQ_T], [RES_H, RES_B, RES_T]][dir as usize];
            events.retain(|e| phases.contains(&e.phase) && e.token != 0);
            let Some(e) = events.pop() else { return };
            let answer = if e.phase == REQ_B || e.phase == RES_B {
                cont().inject(buffers.bytes(b"!"))
            } else {
                cont().set("x", "1").metadata("k", "v")
            };
            let _ = w.complete(guest, e.token, answer);
        })
    };
    let apply: Box<dyn Fn(&mut World)> = {
        let buffers = owned.clone();
        Box::new(move |w: &mut World| {
            if let Some(e) = w.events_of("a").pop() {
                let write = cont().write(buffers.bytes(b"w"));
                let _ = w.hub.apply(u32::from(b'a'), e.stream, write.keep());
                let _ = w.hub.wake(u32::from(b'a'), e.stream, 1);
            }
        })
    };
    let mut steps: Script = vec![Box::new(|w| w.post(BodyLength::Unknown))];
    for _ in 0..2 {
        steps.push(Box::new(|w| w.data(Dir::Request, "ping")));
        steps.push(complete("a", Dir::Request));
    }
    steps.push(Box::new(|w| w.end_with(Dir::Request, Some(&[("t", "1")]))));
    for _ in 0..4 {
        steps.push(complete("a", Dir::Request));
        steps.push(complete("c", Dir::Request));
    }
    steps.push(Box::new(|w| {
        if w.upstream.head.is_some() {
            w.response("200", BodyLength::Unknown);
        }
    }));
    steps.push(apply);
    steps.push(Box::new(|w| w.data(Dir::Response, "pong")));
    for _ in 0..3 {
        steps.push(complete("c", Dir::Response));
        steps.push(complete("a", Dir::Response));
        steps.push(complete("c", Dir::Request));
    }
    steps.push(Box::new(|w| w.data(Dir::Response, "pong")));
    steps.push(Box::new(|w| w.end_with(Dir::Response, Some(&[("t", "1")]))));
    for _ in 0..4 {
        steps.push(complete("c", Dir::Response));
        steps.push(complete("a", Dir::Response));
    }
    (world, steps)
}

#[test]
fn the_scripted_exchange_ends_by_itself() {
    let owned = Owned::default();
    let (mut world, steps) = scripted(&owned);
    for step in &steps {
        step(&mut world);
    }
    assert!(world.finished(), "{}", world.story_text());
    assert_eq!(world.failures(), [], "{}", world.failure_texts());
    assert_eq!(world.upstream.text().replace(['+', '!'], ""), "pingping");
    assert_eq!(world.client.text().replace(['+', '!', 'w'], ""), "pongpong");
    world.check_ended();
    drop(world);
    let (made, released) = owned.counts();
    assert!(made > 4);
    assert_eq!(made, released);
}

/// The stream dies at every step, in every way; an accepted completion may be in the mail.
#[test]
fn death_at_every_step() {
    type Kill = fn(&mut World);
    let kills: [Kill; 7] = [
        |w| w.close(),
        |w| w.on(|s, cx| s.cut(cx, Dir::Request, Cut::Sender)),
        |w| w.on(|s, cx| s.cut(cx, Dir::Response, Cut::Receiver)),
        |w| w.on(|s, cx| s.cut(cx, Dir::Response, Cut::Sender)),
        |w| w.on(|s, cx| s.cut(cx, Dir::Response, Cut::Timeout)),
        |w| {
            w.on(|s, cx| s.host_reply(cx, 503, "text/plain", Bytes::from_static(b"x"), "drain"));
            w.close();
        },
        |w| {
            w.on(|s, cx| s.cut(cx, Dir::Request, Cut::Receiver));
            w.close();
        },
    ];
    let steps = scripted(&Owned::default()).1.len();
    for kill in kills {
        for racing in [false, true] {
            for at in 0..=steps {
                let owned = Owned::default();
                let (mut world, steps) = scripted(&owned);
                for step in &steps[..at] {
                    step(&mut world);
                }
                if racing {
                    for guest in ["a", "c"] {
                        for e in world.events_of(guest).into_iter().rev().take(2) {
                            let answer = cont().metadata("k", "v").inject(owned.bytes(b"?"));
                            let _ = world.complete_quietly(guest, e.token, answer);
                        }
                    }
                }
                let story = world.story_text();
                kill(&mut world);
                if !world.finished() {
                    assert!(!world.stream.is_finished());
                    world.close();
                }
                world.check_ended();
                let after = world.story_text();
                if at == 0 {
                    assert_eq!(story, "");
                    assert!(after.ends_with("a:LOG b:LOG c:LOG b:end"), "{after}");
                }
                let batches = Arc::clone(&world.calls);
                world.end_batch();
                drop((batches, world));
                let (made, released) = owned.counts();
                assert_eq!(made, released, "buffers after death at step {at}");
            }
        }
    }
}

/// Whatever a stream was in the middle of when it died, the next one in its memory does what a fresh one does.
#[test]
fn a_renewed_stream_is_a_new_one() {
    let run = |world: &mut World, steps: &Script| {
        for step in steps {
            step(world);
        }
        world.close();
        world.check_ended();
        let out = |out: &Out| (out.head.clone(), out.text(), out.trailers.clone());
        let details = world.stream.details().to_owned();
        let seen: Vec<_> = world
            .events()
            .iter()
            .map(|e| (e.phase, e.flags.0, e.offset, e.text()))
            .collect();
        (
            world.story_text(),
            seen,
            out(&world.upstream),
            out(&world.client),
            details,
        )
    };
    let owned = Owned::default();
    let (mut fresh, steps) = scripted(&owned);
    let expected = run(&mut fresh, &steps);
    assert!(expected.0.contains("c:RES_B"), "{}", expected.0);
    for at in 0..=steps.len() {
        let (mut world, steps) = scripted(&owned);
        for step in &steps[..at] {
            step(&mut world);
        }
        if !world.finished() {
            world
                .on(|s, cx| s.host_reply(cx, 503, "text/plain", Bytes::from_static(b"x"), "drain"));
            world.close();
        }
        world.renew(StreamLimits::default());
        assert_eq!(
            run(&mut world, &steps),
            expected,
            "after a death at step {at}"
        );
    }
}

/// A response that nobody looks at is the driver's alone; the stream hears of its end.
#[test]
fn a_response_that_no_filter_sees_can_be_skipped() {
    let request_only = |name| filter(name).on(&[REQ_H]).script(|_| cont().user(1));
    let skip = |world: &mut World| world.stream.skip_response(BodyLength::Unknown);
    let mut world = World::new(vec![request_only("a"), request_only("b")]);
    world.get();
    assert!(skip(&mut world));
    assert!(world.stream.response_began() && world.stream.bodies_skipped(Dir::Response));
    assert!(!skip(&mut world), "there is one response");
    let late = world.on(|s, cx| s.host_reply(cx, 503, "text/plain", Bytes::new(), "late"));
    assert!(!late, "the head has left");
    world.on(|s, cx| s.body_forwarded(cx, Dir::Response));
    assert_eq!(world.story_text(), "a:REQ_H b:REQ_H a:end b:end");
    world.check_ended();

    for phase in [RES_H, RES_T, LOG] {
        let sees = filter("b").on(&[REQ_H, phase]).script(|_| cont());
        let mut world = World::new(vec![request_only("a"), sees]);
        world.get();
        assert!(!skip(&mut world), "{} is subscribed to", phase_name(phase));
        world.close();
    }
    let body = filter("b")
        .body(Dir::Response, BodyMode::OBSERVE)
        .script(|_| cont());
    let mut world = World::new(vec![request_only("a"), body]);
    world.get();
    assert!(!skip(&mut world), "the body is looked at");
    world.close();
    let replies = filter("r").on(&[REQ_H]).script(|_| reply(403, "no"));
    let mut world = World::new(vec![request_only("a"), replies]);
    world.get();
    assert!(!skip(&mut world), "a filter has replied");
}
