//! Failures: every reason, closed and open, harmless or not, in every phase (spec chapter 14).

mod engine_support;
use engine_support::*;

fn watcher(name: &'static str) -> Spec {
    filter(name)
        .on(&[REQ_H, REQ_T, RES_H, RES_T, LOG, WAKE])
        .body(Dir::Request, BodyMode::STREAM)
        .body(Dir::Response, BodyMode::STREAM)
        .script(|_| cont().user(5))
}

const PHASES_OF_A_STREAM: [Phase; 6] = [REQ_H, REQ_B, REQ_T, RES_H, RES_B, RES_T];

fn fails_at(phase: Phase, how: fn() -> Answer) -> Spec {
    watcher("b").script(move |e| if e.phase == phase { how() } else { cont() }.user(6))
}

#[test]
fn closed_is_500_while_a_reply_is_possible_and_a_reset_later() {
    for phase in PHASES_OF_A_STREAM {
        let spec = fails_at(phase, || error("secret"));
        let mut world = World::new(vec![watcher("a"), spec, watcher("c")]);
        world.exchange();
        assert_eq!(world.failures(), [("b".into(), Reason::Error)]);
        assert_eq!(world.stats("b").failures(Reason::Error).get(), 1);
        if [RES_B, RES_T].contains(&phase) {
            assert!(world.was_reset(), "{phase:?}");
        } else {
            assert_eq!(world.client.status(), "500", "{phase:?}");
            assert_eq!(world.client.text(), "");
            assert!(!format!("{:?}", world.client).contains("secret"));
            assert!(world.last("a").has(EventFlags::LOCAL_ORIGIN));
        }
        let story = world.story_text();
        assert!(
            !story.contains("b:LOG") && story.contains("b:end"),
            "{story}"
        );
        assert_eq!(world.log_arg("a").0, EndReason::ERROR);
        world.check_ended();
    }
}

#[test]
fn the_operator_chooses_the_status() {
    let limits = StreamLimits {
        failure_status: 503,
        ..StreamLimits::default()
    };
    let mut world = World::with(hub(), vec![fails_at(REQ_H, || error("x"))], limits);
    world.exchange();
    assert_eq!(world.client.status(), "503");
}

#[test]
fn open_passes_the_view_unmodified_and_the_rest_unseen() {
    for phase in PHASES_OF_A_STREAM {
        let failing: fn() -> Answer = || cont().set("x-bad", "1").drop(1).op(OpKind::Pass(99));
        let spec = fails_at(phase, failing).open();
        let mut world = World::new(vec![watcher("a"), spec, watcher("c")]);
        world.exchange();
        assert_eq!(
            world.failures(),
            [("b".into(), Reason::Invalid)],
            "{phase:?}"
        );
        assert_eq!(world.upstream.text(), "ping");
        assert_eq!(world.client.text(), "pong");
        assert_eq!(world.upstream.field("x-bad"), None);
        assert!(world.upstream.trailers.is_some() && world.client.trailers.is_some());
        assert_eq!(world.last("b").phase, phase, "nothing more but the end");
        assert_eq!(world.stats("b").bypassed.get(), 1);
        assert_eq!(world.log_arg("a").0, EndReason::COMPLETE);
        assert!(world.story_text().contains("b:end"));
        world.check_ended();
    }
}

#[test]
fn all_the_ways_to_fail() {
    let ways: [(fn() -> Answer, Reason); 7] = [
        (|| error("broken"), Reason::Error),
        (|| error("panic: broken"), Reason::Panic),
        (|| answer(Action::UNSET), Reason::Invalid),
        (|| answer(Action(77)), Reason::Invalid),
        (|| answer(Action::REPLY), Reason::Invalid),
        (pending, Reason::Invalid),
        (
            || {
                let mut a = cont();
                a.outcome.reply = Some(plain_reply(200, ""));
                a
            },
            Reason::Invalid,
        ),
    ];
    for (way, reason) in ways {
        for open in [false, true] {
            for phase in PHASES_OF_A_STREAM {
                let mut spec = fails_at(phase, way);
                if open {
                    spec = spec.open();
                }
                let mut world = World::new(vec![spec]);
                world.exchange();
                assert_eq!(world.failures(), [("b".into(), reason)], "{phase:?}");
                let stats = world.stats("b");
                assert_eq!(stats.failures(reason).get(), 1);
                assert_eq!(stats.phase(phase).errors.get(), 1);
                let panics = u64::from(reason == Reason::Panic);
                assert_eq!(stats.phase(phase).panics.get(), panics);
                assert_eq!(world.client.text() == "pong" && world.client.ended, open);
                world.check_ended();
            }
        }
    }
}

/// PXG-ERR-005: what was changed and is still held counts too.
#[test]
fn open_and_not_harmless_is_closed() {
    type Case = (Phase, fn() -> Answer, Phase, bool);
    let cases: [Case; 7] = [
        (REQ_H, || cont().set("x", "1"), REQ_B, false),
        (REQ_H, || more(1).set("x", "1"), REQ_B, false),
        (REQ_H, || cont().metadata("k", "v"), REQ_B, true),
        (REQ_B, || cont().pass(1), REQ_T, true),
        (REQ_B, || cont().drop(1).inject("P"), REQ_T, false),
        // The peer direction: changed and running, changed and done.
        (RES_H, || cont().set("x", "1"), REQ_B, false),
        (REQ_H, || cont().set("x", "1"), RES_B, true),
    ];
    for (first, change, then, harmless) in cases {
        let mut world = World::new(vec![watcher("b").open().script(move |e| {
            if e.phase == then && (then != REQ_B || e.text() == "late") {
                error("broken")
            } else if e.phase == first && !(e.phase == REQ_B && e.body().is_empty()) {
                change()
            } else {
                cont()
            }
        })]);
        world.post(BodyLength::Unknown);
        if then == REQ_B {
            world.response("200", BodyLength::Unknown);
            world.data(Dir::Response, "pong");
            if first == REQ_H {
                // so that only the request's direction matters
                world.end(Dir::Response);
            }
            world.data(Dir::Request, "late");
            if world.failures().is_empty() {
                world.data(Dir::Request, "late");
            }
        } else {
            world.data(Dir::Request, "ping");
            world.end_with(Dir::Request, Some(&[("t", "1")]));
            if then == RES_B {
                world.response("200", BodyLength::Unknown);
                world.data(Dir::Response, "pong");
            }
        }
        assert_eq!(world.failures().len(), 1, "{first:?} {then:?}");
        assert_eq!(
            world.stats("b").bypassed.get() == 1,
            harmless,
            "{first:?} {then:?}"
        );
        assert_eq!(
            world.was_reset() || world.client.status() == "500",
            !harmless
        );
    }
}

/// 14.2: held headers and the whole view pass unmodified, in order; the peer too.
#[test]
fn open_releases_what_both_directions_hold() {
    let mut world = World::new(vec![watcher("b").open().script(|e| match e.phase {
        REQ_H | REQ_B | RES_B => more(1000),
        RES_H => more(1000),
        WAKE => error("broken"),
        _ => cont(),
    })]);
    world.post(BodyLength::Exact(4));
    world.data(Dir::Request, "pi");
    world.response("200", BodyLength::Unknown);
    world.data(Dir::Response, "pong");
    assert!(world.upstream.head.is_none() && world.client.head.is_none());
    let _ = world.wake("b", 0);
    assert_eq!(
        (world.upstream.text(), world.client.text()),
        ("pi".into(), "pong".into())
    );
    world.data(Dir::Request, "ng");
    world.end(Dir::Request);
    world.end(Dir::Response);
    assert!(world.upstream.ended && world.client.ended);
    world.check_ended();
}

/// PXG-ERR-008: the peer's token is cancelled and its view passes.
#[test]
fn open_cancels_the_peer() {
    let mut world = World::new(vec![
        watcher("b")
            .open()
            .pend(&[RES_B])
            .flag(ConfigFlags::DUPLEX)
            .script(|e| match e.phase {
                RES_B => pending(),
                REQ_B => error("broken"),
                _ => cont().user(1),
            }),
    ]);
    world.post(BodyLength::Unknown);
    world.response("200", BodyLength::Unknown);
    world.data(Dir::Response, "pong");
    let token = world.last("b").token;
    world.data(Dir::Request, "ping");
    assert_eq!(
        world.story_text(),
        "b:REQ_H b:RES_H b:RES_B b:REQ_B b:cancel"
    );
    assert_eq!(world.complete("b", token, cont()), Status::STALE);
    assert_eq!(
        (world.upstream.text(), world.client.text()),
        ("ping".into(), "pong".into())
    );
    world.end(Dir::Request);
    world.end(Dir::Response);
    world.check_ended();
}

#[test]
fn a_deadline_with_open_passes_what_was_held() {
    for phase in PHASES_OF_A_STREAM {
        let spec = watcher("b")
            .open()
            .pend(&PHASES_OF_A_STREAM)
            .script(move |e| if e.phase == phase { pending() } else { cont() }.user(1));
        let mut world = World::new(vec![spec]);
        world.post(BodyLength::Unknown);
        world.data(Dir::Request, "ping");
        world.end_with(Dir::Request, Some(&[("t", "1")]));
        world.at(20 * SECOND);
        world.response("200", BodyLength::Unknown);
        world.data(Dir::Response, "pong");
        world.end_with(Dir::Response, Some(&[("t", "1")]));
        world.at(40 * SECOND);
        assert_eq!(world.failures(), [("b".into(), Reason::Deadline)]);
        assert_eq!(world.stats("b").deadlines.get(), 1);
        assert_eq!(
            (world.upstream.text(), world.client.text()),
            ("ping".into(), "pong".into())
        );
        assert!(world.story_text().contains("b:cancel b:end"));
        world.check_ended();
    }
}

/// What LOG answers changes nothing.
#[test]
fn failures_in_log_are_counted_only() {
    let ways: [fn() -> Answer; 6] = [
        || error("x"),
        pending,
        || more(0),
        || reply(200, "x"),
        reset,
        || cont().set("x", "1"),
    ];
    for way in ways {
        let mut world = World::new(vec![
            watcher("b").script(move |e| if e.phase == LOG { way() } else { cont() }.user(1)),
            watcher("c"),
        ]);
        world.exchange();
        assert_eq!(world.failures().len(), 1);
        assert_eq!(world.stats("b").phase(LOG).errors.get(), 1);
        assert!(!world.was_reset());
        assert!(world.story_text().ends_with("b:LOG c:LOG b:end c:end"));
        world.check_ended();
    }
}

#[test]
fn wake_cannot_hold() {
    let ways: [fn() -> Answer; 2] = [pending, || more(0)];
    for way in ways {
        let mut world = World::new(vec![
            watcher("b").script(move |e| if e.phase == WAKE { way() } else { cont() }),
        ]);
        world.get();
        let _ = world.wake("b", 0);
        assert_eq!(world.failures(), [("b".into(), Reason::Invalid)]);
        assert_eq!(world.client.status(), "500");
    }
}

#[test]
fn observe_cannot_hold_or_reply() {
    let ways: [(fn() -> Answer, bool); 4] = [
        (pending, false),
        (|| more(0), false),
        (|| reply(200, "x"), false),
        (reset, true),
    ];
    for (way, legal) in ways {
        let mut world = World::new(vec![
            filter("b")
                .pend(&[REQ_B])
                .body(Dir::Request, BodyMode::OBSERVE)
                .script(move |_| way()),
        ]);
        world.post(BodyLength::Unknown);
        world.data(Dir::Request, "ab");
        assert_eq!(world.failures().is_empty(), legal);
        assert_eq!(world.was_reset(), legal);
    }
}

/// PXG-EVT-007: also a result that could not be read changes `user`... only if it was read.
#[test]
fn a_failed_result_sets_user() {
    let mut world = World::new(vec![
        filter("b").on(&[REQ_H]).script(|_| error("x").user(9)),
    ]);
    world.get();
    world.check_ended();
    assert!(world.story_text().ends_with("b:end"));
}
