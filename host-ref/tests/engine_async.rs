//! PENDING and what ends it; apply, wake, deadlines, caps (spec chapter 12, 14.3, 14.4).

mod engine_support;
use engine_support::*;
use std::sync::Arc;

fn everything() -> Spec {
    filter("a")
        .on(&[LOG, WAKE])
        .pend(&[REQ_H, REQ_B, REQ_T, RES_H, RES_B, RES_T])
        .body(Dir::Request, BodyMode::STREAM)
        .body(Dir::Response, BodyMode::STREAM)
}

const PENDABLE: [Phase; 6] = [REQ_H, REQ_B, REQ_T, RES_H, RES_B, RES_T];

fn pends_at(phase: Phase) -> impl FnMut(&Seen) -> Answer {
    move |e| if e.phase == phase { pending() } else { cont() }.user(3)
}

#[test]
fn pending_in_every_phase() {
    for phase in PENDABLE {
        let mut world = World::new(vec![everything().script(pends_at(phase))]);
        world.exchange();
        let mut rounds = 0;
        while !world.finished() {
            let e = world.last("a");
            assert_eq!(e.phase, phase);
            assert_eq!(world.stats("a").pending_now.get(), 1);
            assert_eq!(world.complete("a", e.token, cont()), Status::OK);
            assert_eq!(
                world.complete("a", e.token, cont()),
                Status::STALE,
                "double"
            );
            rounds += 1;
            assert!(rounds < 10, "{}", world.story_text());
        }
        assert_eq!(world.upstream.text(), "ping");
        assert_eq!(world.client.text(), "pong");
        assert!(world.upstream.trailers.is_some() && world.client.trailers.is_some());
        assert!(!world.story_text().contains("cancel"));
        world.check_ended();
    }
}

/// PXG-EVT-003: nothing leaves while a direction is PENDING.
#[test]
fn nothing_leaves_while_pending() {
    for (dir, head, body) in [(Dir::Request, REQ_H, REQ_B), (Dir::Response, RES_H, RES_B)] {
        for phase in [head, body] {
            let mut world = World::new(vec![everything().script(pends_at(phase))]);
            world.head_of(dir, BodyLength::Unknown);
            world.data(dir, "ab");
            world.data(dir, "cd");
            world.end(dir);
            assert_eq!(world.out(dir).text(), "");
            assert_eq!(world.out(dir).head.is_some(), phase == body);
            assert!(!world.out(dir).ended);
        }
    }
}

/// PXG-EVT-015: what arrived meanwhile comes in a new event, flagged RESUMED.
#[test]
fn bytes_that_came_while_pending_are_shown() {
    let mut world = World::new(vec![everything().script(|e| {
        if e.phase == REQ_B && e.offset == 0 {
            pending()
        } else {
            cont()
        }
    })]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "ab");
    let first = world.last("a");
    world.data(Dir::Request, "cd");
    world.end(Dir::Request);
    let answer = cont().drop(1);
    assert_eq!(world.complete("a", first.token, answer), Status::OK);
    let next = world.last("a");
    assert_eq!((next.text().as_str(), next.offset), ("cd", 2));
    assert!(next.has(EventFlags::RESUMED) && next.has(EventFlags::END_STREAM));
    assert!(!first.has(EventFlags::RESUMED));
    assert_eq!(world.upstream.text(), "bcd");
}

/// A02, A05: completed before `on_event` returned.
#[test]
fn early_completion() {
    let hub = hub();
    let early = Arc::clone(&hub);
    let mut world = World::with(
        hub,
        vec![everything().script(move |e| {
            if e.token == 0 {
                return cont();
            }
            let status = early.complete(u32::from(b'a'), e.token, cont().keep());
            assert_eq!(status, Status::OK);
            let twice = early.complete(u32::from(b'a'), e.token, cont().keep());
            assert_eq!(twice, Status::STALE);
            pending()
        })],
        StreamLimits::default(),
    );
    world.exchange();
    assert_eq!(world.upstream.text(), "ping");
    assert_eq!(world.client.text(), "pong");
    assert!(world.finished());
    assert_eq!(world.stats("a").unused_completions.get(), 0);
    assert!(
        world.worker.batch_is_open(),
        "PXG-THR-004: an EARLY one included"
    );
    world.end_batch();
    assert!(world.story_text().ends_with("a:batch"));
    assert!(!world.worker.batch_is_open());
}

/// A06: the returned action stands, the kept result is released and counted.
#[test]
fn early_completion_of_what_did_not_pend() {
    let owned = Owned::default();
    let (hub, buffers) = (hub(), owned.clone());
    let early = Arc::clone(&hub);
    let mut world = World::with(
        hub,
        vec![everything().script(move |e| {
            if e.phase == REQ_B && !e.body().is_empty() {
                let drop = cont().drop(1).inject(buffers.bytes(b"zz"));
                let status = early.complete(u32::from(b'a'), e.token, drop.keep());
                assert_eq!(status, Status::OK);
            }
            cont()
        })],
        StreamLimits::default(),
    );
    world.exchange();
    assert_eq!(world.upstream.text(), "ping");
    assert_eq!(world.stats("a").unused_completions.get(), 1);
    assert_eq!(owned.counts(), (1, 1));
}

#[test]
fn stale_foreign_and_unknown_values() {
    let mut world = World::new(vec![
        everything().script(pends_at(REQ_H)),
        filter("b").on(&[REQ_H]),
    ]);
    world.post(BodyLength::Unknown);
    let e = world.last("a");
    assert_eq!(
        world.complete("b", e.token, cont()),
        Status::STALE,
        "foreign"
    );
    for token in [0, 1, e.token + 1, e.token + (1 << 24), u64::MAX, e.stream] {
        assert_eq!(world.complete("a", token, cont()), Status::STALE);
    }
    let library = world.library("a");
    for handle in [0, e.token, e.stream + (1 << 24), u64::MAX] {
        assert_eq!(
            world.hub.apply(library, handle, cont().keep()),
            Status::STALE
        );
        assert_eq!(world.hub.wake(library, handle, 1), Status::STALE);
    }
    assert_eq!(
        world.hub.wake(world.library("b"), e.stream, 1),
        Status::STALE
    );
    assert_eq!(world.complete("a", e.token, cont()), Status::OK);
    assert_eq!(world.complete("a", e.token, cont()), Status::STALE);
    world.close();
    assert_eq!(
        world.hub.apply(library, e.stream, cont().keep()),
        Status::STALE
    );
    assert_eq!(world.hub.stream_status(library, e.stream), Status::STALE);
}

#[test]
fn completion_with_more() {
    let mut world = World::new(vec![everything().script(|e| {
        if e.phase == REQ_B && e.offset < 4 {
            pending()
        } else {
            cont()
        }
    })]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "ab");
    let e = world.last("a");
    assert_eq!(world.complete("a", e.token, more(2).drop(1)), Status::OK);
    world.data(Dir::Request, "c");
    assert_eq!(world.last("a").text(), "ab");
    world.data(Dir::Request, "d");
    let e = world.last("a");
    assert_eq!((e.text().as_str(), e.offset), ("bcd", 1));
    assert_eq!(world.complete("a", e.token, cont()), Status::OK);
    assert_eq!(world.upstream.text(), "bcd");
}

#[test]
fn a_violation_that_shows_when_its_turn_comes() {
    let mut world = World::new(vec![everything().script(pends_at(REQ_B))]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "ab");
    let token = world.last("a").token;
    assert_eq!(world.complete("a", token, cont().pass(3)), Status::OK);
    assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
    assert_eq!(world.client.status(), "500");
    world.check_ended();
}

/// PXG-EVT-003: the peer direction waits, unless the configuration says DUPLEX.
#[test]
fn the_peer_is_parked_without_duplex() {
    for duplex in [false, true] {
        let mut spec = everything().script(pends_at(REQ_B));
        if duplex {
            spec = spec.flag(ConfigFlags::DUPLEX);
        }
        let mut world = World::new(vec![filter("z"), spec]);
        world.post(BodyLength::Unknown);
        world.data(Dir::Request, "ab");
        let token = world.last("a").token;
        world.response("200", BodyLength::Unknown);
        world.data(Dir::Response, "pong");
        let seen = world.events_of("a").len();
        assert_eq!(world.client.text(), if duplex { "pong" } else { "" });
        assert_eq!(seen, if duplex { 4 } else { 2 });
        assert_eq!(world.wake("a", 1), Status::OK);
        assert_eq!(world.last("a").phase, WAKE, "delivered all the same");
        assert_eq!(world.complete("a", token, cont()), Status::OK);
        assert_eq!(world.client.text(), "pong");
        assert_eq!(world.upstream.text(), "ab");
    }
}

/// PXG-ASY-012.
#[test]
fn both_directions_pend_with_duplex() {
    let mut world = World::new(vec![everything().flag(ConfigFlags::DUPLEX).script(|e| {
        if e.phase == REQ_B || e.phase == RES_B {
            pending()
        } else {
            cont()
        }
    })]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "ab");
    let request = world.last("a").token;
    world.response("200", BodyLength::Unknown);
    world.data(Dir::Response, "cd");
    let response = world.last("a").token;
    assert_ne!(request, response);
    assert_eq!(world.complete("a", response, cont()), Status::OK);
    assert_eq!(world.client.text(), "cd");
    assert_eq!(world.upstream.text(), "");
    assert_eq!(world.complete("a", request, cont()), Status::OK);
    assert_eq!(world.upstream.text(), "ab");
}

#[test]
fn deadlines() {
    // (of the result, of the configuration, of the policy) in seconds, and which counts.
    let cases = [
        (0, 0, 10, 10),
        (0, 3, 10, 3),
        (5, 3, 10, 5),
        (50, 3, 10, 10),
    ];
    for (result, config, limit, want) in cases {
        let mut world = World::new(vec![
            everything()
                .declare(|d| d.pend_ns = config * SECOND)
                .policy(|p| p.pend_limit = std::time::Duration::from_secs(limit))
                .script(move |_| pending().pend_ns(result * SECOND).user(2)),
        ]);
        world.get();
        let token = world.last("a").token;
        assert_eq!(world.stream.deadline(), Some(1 + want * SECOND));
        world.at(want * SECOND);
        assert_eq!(world.failures(), []);
        world.at(1 + want * SECOND);
        assert_eq!(world.failures(), [("a".into(), Reason::Deadline)]);
        assert_eq!(world.complete("a", token, cont()), Status::STALE);
        assert_eq!(world.client.status(), "500");
        assert_eq!(
            world.story_text(),
            "a:REQ_H a:cancel a:end",
            "a failed guest has no LOG"
        );
        world.check_ended();
    }
}

/// Accepted is accepted: the deadline does not take it back.
#[test]
fn a_completion_before_the_deadline_counts() {
    let mut world = World::new(vec![everything().script(pends_at(REQ_H))]);
    world.get();
    let token = world.last("a").token;
    assert_eq!(world.complete_quietly("a", token, cont()), Status::OK);
    world.at(3_000 * SECOND);
    assert_eq!(world.failures(), []);
    assert!(world.upstream.ended);
}

/// PXG-SEC-002.
#[test]
fn the_cap_on_pending_places() {
    for open in [false, true] {
        let mut spec = everything()
            .policy(|p| p.max_pending = 1)
            .flag(ConfigFlags::DUPLEX)
            .script(|e| if e.token == 0 { cont() } else { pending() }.user(1));
        if open {
            spec = spec.open();
        }
        let mut world = World::new(vec![spec]);
        world.post(BodyLength::Unknown);
        let token = world.last("a").token;
        assert_eq!(world.complete("a", token, cont()), Status::OK);
        world.data(Dir::Request, "ab");
        world.response("200", BodyLength::Unknown);
        assert_eq!(world.failures(), [("a".into(), Reason::Cap)]);
        assert_eq!(world.stats("a").over_pending_cap.get(), 1);
        assert_eq!(world.events_of("a").len(), 2, "no crossing");
        if open {
            assert_eq!(world.upstream.text(), "ab");
            assert_eq!(world.client.status(), "200");
        } else {
            assert_eq!(world.client.status(), "500");
        }
        assert_eq!(world.stats("a").pending_now.get(), 0);
    }
}

/// PXG-ASY-013.
#[test]
fn wakes_are_one_and_ored() {
    let mut world = World::new(vec![everything(), filter("b").on(&[REQ_H])]);
    world.get();
    let (hub, library, handle) = (
        Arc::clone(&world.hub),
        world.library("a"),
        world.handle("a"),
    );
    for arg in [1, 4, 16] {
        assert_eq!(hub.wake(library, handle, arg), Status::OK);
    }
    world.pump();
    let wakes: Vec<_> = world
        .events()
        .into_iter()
        .filter(|e| e.phase == WAKE)
        .collect();
    assert_eq!(wakes.len(), 1);
    assert_eq!(wakes[0].arg, 21);
    assert!(wakes[0].fields.is_empty() && wakes[0].token == 0);
    assert_eq!(world.wake("b", 1), Status::STATE);
    assert_eq!(world.wake("a", 2), Status::OK);
    assert_eq!(world.last("a").arg, 2);
}

/// PXG-ASY-019: in the order in which they were answered.
#[test]
fn effects_come_in_the_order_of_their_answers() {
    let hub = hub();
    let inside = Arc::clone(&hub);
    let want = AttrWant {
        source: AttrSource::Metadata {
            namespace: b"a".to_vec(),
            key: b"k".to_vec(),
        },
        phases: !0,
    };
    let mut world = World::with(
        hub,
        vec![
            everything()
                .declare(|d| d.attrs.push(want))
                .script(move |e| {
                    if e.phase != REQ_H {
                        return cont();
                    }
                    let library = u32::from(b'a');
                    let first = cont().metadata("k", "first");
                    assert_eq!(inside.apply(library, e.stream, first.keep()), Status::OK);
                    assert_eq!(inside.wake(library, e.stream, 1), Status::OK);
                    let second = cont().metadata("k", "second");
                    assert_eq!(inside.apply(library, e.stream, second.keep()), Status::OK);
                    cont().metadata("k", "result")
                }),
        ],
        StreamLimits::default(),
    );
    world.get();
    assert_eq!(world.last("a").attrs, [Some(b"first".to_vec())]);
    world.ok("x");
    assert_eq!(world.last("a").attrs, [Some(b"second".to_vec())]);
}

/// 5.7: all tokens are retired before the first `on_cancel`.
#[test]
fn a_cancel_cannot_complete_another_token_of_the_stream() {
    let hub = hub();
    let inside = Arc::clone(&hub);
    let tokens = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&tokens);
    let spec = everything()
        .flag(ConfigFlags::DUPLEX)
        .script(move |e| {
            if e.phase == REQ_B || e.phase == RES_H {
                seen.lock().unwrap().push(e.token);
                return pending();
            }
            cont()
        })
        .on_cancel(move |_| {
            for token in tokens.lock().unwrap().iter() {
                let status = inside.complete(u32::from(b'a'), *token, cont().keep());
                assert_eq!(status, Status::STALE);
            }
        });
    let mut world = World::with(hub, vec![spec], StreamLimits::default());
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "ab");
    world.response("200", BodyLength::Unknown);
    world.close();
    assert!(
        world
            .story_text()
            .contains("a:REQ_B a:RES_H a:cancel a:cancel a:LOG")
    );
}

/// PXG-ACT-006, PXG-ACT-008.
#[test]
fn pending_where_it_is_illegal() {
    let dirty: [fn() -> Answer; 8] = [
        || pending().set("x", "1"),
        || pending().unsubscribe(&[RES_H]),
        || pending().mode(Dir::Request, BodyMode::SKIP),
        || pending().flags(ResultFlags::FLUSH),
        || {
            let mut p = pending();
            p.outcome.more_bytes = 1;
            p
        },
        || {
            let mut p = pending();
            p.outcome.error = b"x";
            p
        },
        || {
            let mut p = pending();
            p.outcome.reply = Some(plain_reply(200, ""));
            p
        },
        pending,
    ];
    for (i, answer) in dirty.into_iter().enumerate() {
        let clean = i == 7;
        let mut world = World::new(vec![
            everything().script(move |e| if e.phase == REQ_H { answer() } else { cont() }),
        ]);
        world.get();
        assert_eq!(world.failures().is_empty(), clean, "{i}");
    }
    let mut world = World::new(vec![filter("a").on(&[REQ_H]).script(|_| pending())]);
    world.get();
    assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
    assert_eq!(world.stats("a").pending_now.get(), 0);
}

/// PXG-ASY-009: the stream dies with an accepted completion in the mail.
#[test]
fn a_completion_that_loses_against_death_releases_its_buffers() {
    let owned = Owned::default();
    let mut world = World::new(vec![everything().script(pends_at(REQ_B))]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "ab");
    let token = world.last("a").token;
    let answer = cont().inject(owned.bytes(b"zz"));
    assert_eq!(world.complete_quietly("a", token, answer), Status::OK);
    world.close();
    assert!(!world.story_text().contains("cancel"));
    assert_eq!(world.stats("a").unused_completions.get(), 1);
    assert_eq!(owned.counts(), (1, 1));
    world.check_ended();
}

/// `apply` before the return, and after the guest failed.
#[test]
fn what_a_failed_guest_had_queued_is_discarded() {
    let owned = Owned::default();
    let (hub, buffers) = (hub(), owned.clone());
    let inside = Arc::clone(&hub);
    let mut world = World::with(
        hub,
        vec![everything().open().script(move |e| {
            let library = u32::from(b'a');
            let write = cont().write(buffers.bytes(b"x"));
            assert_eq!(inside.apply(library, e.stream, write.keep()), Status::OK);
            assert_eq!(inside.wake(library, e.stream, 1), Status::OK);
            error("bad").user(1)
        })],
        StreamLimits::default(),
    );
    world.get();
    assert_eq!(world.story_text(), "a:REQ_H");
    assert_eq!(world.apply("a", cont()), Status::STALE);
    assert_eq!(owned.counts(), (1, 1));
    world.ok("x");
    assert_eq!(world.story_text(), "a:REQ_H a:end");
    world.check_ended();
}

/// 7.1: while PENDING, SKIP waits for the completion.
#[test]
fn unsubscribing_a_body_that_pends() {
    let mut world = World::new(vec![everything().script(|e| match e.phase {
        REQ_B if e.offset == 0 => pending(),
        WAKE => cont().unsubscribe(&[REQ_B]),
        _ => cont(),
    })]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "ab");
    let token = world.last("a").token;
    world.data(Dir::Request, "cd");
    assert_eq!(world.wake("a", 0), Status::OK);
    assert_eq!(world.upstream.text(), "");
    assert_eq!(world.complete("a", token, cont().drop(1)), Status::OK);
    assert_eq!(world.upstream.text(), "bcd");
    assert_eq!(world.last("a").phase, WAKE);
}
