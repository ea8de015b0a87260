//! MORE: what is held, when it is shown again, and that no byte overtakes the head (spec 7.3, 7.4, 14.3).

mod engine_support;
use engine_support::*;

/// Subscribes to head and body of the request; each BODY event gets the next answer, then CONTINUE.
fn scripted(head: fn() -> Answer, mut answers: Vec<Answer>) -> Spec {
    answers.reverse();
    filter("a")
        .on(&[REQ_H])
        .body(Dir::Request, BodyMode::STREAM)
        .script(move |e| match e.phase {
            REQ_H => head(),
            _ => answers.pop().unwrap_or_else(cont),
        })
}

fn texts(world: &World) -> Vec<String> {
    let mut events = world.events_of("a");
    events.retain(|e| e.phase == REQ_B);
    events.iter().map(Seen::text).collect()
}

/// PXG-ACT-007.
#[test]
fn more_holds_the_head_until_the_first_continue() {
    let mut world = World::new(vec![scripted(
        || more(4).set("x-one", "1"),
        vec![more(4).set("x-two", "2"), cont().set("x-three", "3")],
    )]);
    world.post(BodyLength::Exact(12));
    world.data(Dir::Request, "abc");
    assert_eq!(texts(&world), [""; 0]);
    world.data(Dir::Request, "d");
    assert_eq!(texts(&world), ["abcd"]);
    assert!(world.upstream.head.is_none());
    world.data(Dir::Request, "efg");
    world.data(Dir::Request, "h");
    assert_eq!(texts(&world), ["abcd", "abcdefgh"]);
    assert_eq!(world.upstream.text(), "abcdefgh");
    world.data(Dir::Request, "ijkl");
    world.end(Dir::Request);
    assert_eq!(world.upstream.text(), "abcdefghijkl");
    assert_eq!(world.upstream.length, Some(BodyLength::Exact(12)));
    let events = world.events();
    let held: Vec<_> = events
        .iter()
        .map(|e| e.has(EventFlags::HEADERS_HELD))
        .collect();
    assert_eq!(held, [false, true, true, false, false]);
    assert_eq!(
        events[1].field("x-one"),
        Some("1"),
        "earlier operations show"
    );
    assert_eq!(events[2].field("x-two"), Some("2"));
    assert!(events[3].fields.is_empty());
    assert_eq!(world.upstream.field("x-three"), Some("3"));
}

/// PXG-BODY-013: bytes cannot overtake the head, but may be dropped.
#[test]
fn more_with_a_held_head_may_drop_but_not_pass() {
    let answers: [(fn() -> Answer, bool); 3] = [
        (|| more(1).drop(1), true),
        (|| more(1).pass(1), false),
        (|| more(1).inject("x"), false),
    ];
    for (answer, legal) in answers {
        let mut world = World::new(vec![
            scripted(|| more(1), vec![answer()]).flag(ConfigFlags::RESIZES_REQUEST),
        ]);
        world.post(BodyLength::Exact(4));
        world.data(Dir::Request, "ab");
        assert!(world.upstream.head.is_none());
        assert_eq!(world.failures().is_empty(), legal);
        if legal {
            world.data(Dir::Request, "cd");
            world.end(Dir::Request);
            assert_eq!(texts(&world), ["ab", "bcd", ""]);
            assert_eq!(world.last("a").offset, 4);
            assert_eq!(world.upstream.text(), "bcd");
        }
    }
}

/// PXG-BODY-012.
#[test]
fn operations_of_more_take_effect_at_once() {
    let mut world = World::new(vec![
        scripted(cont, vec![more(2).pass(2).inject("-").drop(1), cont()])
            .flag(ConfigFlags::RESIZES_REQUEST),
    ]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "abcd");
    assert_eq!(world.upstream.text(), "ab-");
    world.data(Dir::Request, "ef");
    assert_eq!(texts(&world), ["abcd", "def"]);
    assert_eq!(world.last("a").offset, 3);
    assert_eq!(world.upstream.text(), "ab-def");
}

#[test]
fn more_with_operations_needs_partial_release() {
    let mut world = World::new(vec![
        scripted(cont, vec![more(1).pass(1)]).without(Feature::PARTIAL_RELEASE),
    ]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "ab");
    assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
}

/// PXG-BODY-009.
#[test]
fn without_more_bytes_the_view_grows_by_an_eighth() {
    let mut world = World::new(vec![
        filter("a")
            .body(Dir::Request, BodyMode::STREAM)
            .script(|e| {
                if e.has(EventFlags::BODY_END) {
                    cont()
                } else {
                    more(0)
                }
            }),
    ]);
    world.post(BodyLength::Unknown);
    for _ in 0..20_000 {
        world.data(Dir::Request, "x");
    }
    let sizes: Vec<_> = world.events().iter().map(|e| e.body().len()).collect();
    let mut want = vec![1];
    while let Some(last) = want.last()
        && last + (last / 8).max(1024) <= 20_000
    {
        want.push(last + (last / 8).max(1024));
    }
    assert_eq!(sizes, want);
    world.end(Dir::Request);
    assert_eq!(world.upstream.body.len(), 20_000);
}

#[test]
fn the_end_shows_what_is_held() {
    for trailers in [None, Some(&[("t", "1")][..])] {
        let mut world = World::new(vec![scripted(|| more(100), vec![more(100)])]);
        world.post(BodyLength::Unknown);
        world.data(Dir::Request, "ab");
        world.end_with(Dir::Request, trailers);
        assert_eq!(texts(&world), ["ab"]);
        // MORE at the end is a failure.
        assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
    }
}

/// 7.4: what arrived while the headers pended was never shown, so it counts as growth.
#[test]
fn bytes_that_came_while_pending_are_growth() {
    let mut world = World::new(vec![scripted(pending, vec![]).pend(&[REQ_H])]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "abcd");
    let token = world.last("a").token;
    assert_eq!(world.complete("a", token, more(4)), Status::OK);
    assert_eq!(texts(&world), ["abcd"]);
    let mut world = World::new(vec![scripted(cont, vec![pending()]).pend(&[REQ_B])]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "ab");
    world.data(Dir::Request, "cd");
    let token = world.last("a").token;
    assert_eq!(world.complete("a", token, more(2)), Status::OK);
    assert_eq!(texts(&world), ["ab", "abcd"]);
}

/// What MORE keeps is judged by its own view, and before anything of it is visible.
#[test]
fn more_keeps_at_most_max_body() {
    for (drop, legal) in [(1, false), (2, true)] {
        let mut world = World::new(vec![
            scripted(cont, vec![pending()]).pend(&[REQ_B]).max_body(4),
        ]);
        world.post(BodyLength::Unknown);
        world.data(Dir::Request, "abcdef");
        world.data(Dir::Request, "gh");
        let e = world.last("a");
        assert!(e.has(EventFlags::OVER_LIMIT));
        let answer = more(1).drop(drop).metadata("k", "v");
        assert_eq!(world.complete("a", e.token, answer), Status::OK);
        assert_eq!(world.failures().is_empty(), legal);
        if legal {
            assert_eq!(texts(&world), ["abcdef", "cdefgh"]);
        }
    }
}

/// Hold time: what came is shown though it is less than was asked for.
#[test]
fn the_hold_time_shows_what_has_come() {
    let mut world = World::new(vec![scripted(cont, vec![more(100), more(100)])]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "ab");
    assert_eq!(
        world.stream.deadline(),
        Some(1 + 30 * SECOND),
        "the hold span"
    );
    world.at(50 * MS);
    world.data(Dir::Request, "c");
    assert_eq!(world.stream.deadline(), Some(1 + 100 * MS));
    world.at(99 * MS);
    assert_eq!(texts(&world), ["ab"]);
    world.at(101 * MS);
    assert_eq!(texts(&world), ["ab", "abc"]);
    world.at(400 * MS);
    assert_eq!(texts(&world), ["ab", "abc"], "nothing has come");
}

/// A hold time that cannot be obeyed is no deadline, or the driver would spin.
#[test]
fn a_parked_hold_has_no_hold_time() {
    let spec = filter("a")
        .pend(&[RES_H])
        .body(Dir::Request, BodyMode::STREAM)
        .script(|e| {
            if e.phase == RES_H {
                pending()
            } else {
                more(100)
            }
        });
    let mut world = World::new(vec![spec]);
    world.post(BodyLength::Unknown);
    world.response("200", BodyLength::Unknown);
    let token = world.last("a").token;
    world.data(Dir::Request, "parked");
    assert_eq!(world.story_text(), "a:RES_H");
    assert_eq!(world.complete("a", token, cont()), Status::OK);
    assert_eq!(world.story_text(), "a:RES_H a:REQ_B");

    let mut world = World::new(vec![
        filter("a")
            .pend(&[RES_H])
            .body(Dir::Request, BodyMode::STREAM)
            .script(|e| {
                if e.phase == RES_H {
                    pending()
                } else {
                    more(100)
                }
            }),
    ]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "ab");
    world.response("200", BodyLength::Unknown);
    world.data(Dir::Request, "c");
    world.at(200 * MS);
    assert!(
        world.stream.deadline().unwrap() > 200 * MS,
        "a deadline in the past"
    );
}

/// 14.3: a guest that keeps nothing withholds nothing.
#[test]
fn the_hold_span_ends_when_nothing_is_held() {
    let mut world = World::new(vec![
        filter("a")
            .body(Dir::Request, BodyMode::STREAM)
            .script(|e| {
                let len = e.body().len() as u64;
                if e.has(EventFlags::BODY_END) {
                    cont()
                } else {
                    more(1).pass(len)
                }
            }),
    ]);
    world.post(BodyLength::Unknown);
    for i in 0..10 {
        world.at((1 + i * 20) * SECOND);
        world.data(Dir::Request, "ab");
    }
    world.end(Dir::Request);
    assert_eq!(world.failures(), []);
    assert_eq!(world.upstream.body.len(), 20);
}

#[test]
fn the_hold_span_is_limited_over_pendings_and_mores() {
    let script = |e: &Seen| {
        if e.body().len().is_multiple_of(2) {
            pending()
        } else {
            more(1)
        }
    };
    let mut world = World::new(vec![
        filter("a")
            .pend(&[REQ_B])
            .body(Dir::Request, BodyMode::STREAM)
            .script(script),
    ]);
    world.post(BodyLength::Unknown);
    let mut i = 0;
    while world.failures().is_empty() && i < 100 {
        world.at((1 + i) * SECOND);
        world.data(Dir::Request, "x");
        let e = world.last("a");
        if e.body().len().is_multiple_of(2) {
            let _ = world.complete("a", e.token, more(1));
        }
        i += 1;
    }
    assert!((30..=31).contains(&i), "{i}");
    assert_eq!(world.failures(), [("a".into(), Reason::Deadline)]);
    assert_eq!(world.client.status(), "500");
}

#[test]
fn whole_on_a_slow_sender_runs_out_of_time() {
    let mut world = World::new(vec![filter("a").body(Dir::Request, BodyMode::WHOLE)]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "ab");
    world.at(29 * SECOND);
    assert_eq!(world.failures(), []);
    world.at(30 * SECOND + 1);
    assert_eq!(world.failures(), [("a".into(), Reason::Deadline)]);
}

#[test]
fn a_held_direction_does_not_park_its_peer() {
    let mut world = World::new(vec![
        filter("a")
            .on(&[RES_H])
            .body(Dir::Request, BodyMode::STREAM)
            .script(|e| if e.phase == REQ_B { more(100) } else { cont() }),
    ]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "ab");
    world.ok("early");
    assert_eq!(world.client.text(), "early");
}

#[test]
fn more_where_it_is_illegal() {
    let body = |mode| filter("a").on(&[REQ_H, REQ_T]).body(Dir::Request, mode);
    let specs = [
        body(BodyMode::STREAM)
            .without(Feature::HOLD_REQUEST)
            .script(|_| more(0)),
        body(BodyMode::SKIP).script(|_| more(0)),
        body(BodyMode::OBSERVE).script(|_| more(0)),
        body(BodyMode::OBSERVE).script(|e| if e.phase == REQ_B { more(0) } else { cont() }),
        body(BodyMode::STREAM).script(|e| if e.phase == REQ_T { more(0) } else { cont() }),
    ];
    for spec in specs {
        let mut world = World::new(vec![spec]);
        world.post(BodyLength::Unknown);
        world.data(Dir::Request, "ab");
        world.end_with(Dir::Request, Some(&[("t", "1")]));
        assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
    }
    let mut world = World::new(vec![
        body(BodyMode::WHOLE).script(|e| if e.phase == REQ_H { more(0) } else { cont() }),
    ]);
    world.post(BodyLength::Unknown);
    world.end(Dir::Request);
    assert_eq!(world.failures(), [], "in WHOLE it equals CONTINUE");
    let mut world = World::new(vec![body(BodyMode::WHOLE).script(|_| more(0))]);
    world.get();
    assert_eq!(
        world.failures(),
        [("a".into(), Reason::Invalid)],
        "END_STREAM"
    );
}

/// D11: a result of the other direction or of WAKE ends what WHOLE alone held; the bytes come as the new mode says.
#[test]
fn what_whole_held_leaves_when_another_result_changes_the_mode() {
    for (mode, shown) in [
        (BodyMode::SKIP, &[][..]),
        (BodyMode::STREAM, &["ab", "cd", ""][..]),
        (BodyMode::OBSERVE, &["ab", "cd", ""][..]),
    ] {
        let mut world = World::new(vec![
            filter("a")
                .on(&[WAKE, LOG])
                .body(Dir::Request, BodyMode::WHOLE)
                .body(Dir::Response, BodyMode::WHOLE)
                .script(move |e| match e.phase {
                    WAKE => cont().mode(Dir::Response, mode),
                    _ => cont(),
                }),
        ]);
        world.get();
        world.response("200", BodyLength::Unknown);
        world.data(Dir::Response, "ab");
        assert!(world.client.head.is_none());
        assert_eq!(world.wake("a", 1), Status::OK);
        assert_eq!(world.client.status(), "200", "{mode:?}");
        assert_eq!(world.client.text(), "ab");
        world.data(Dir::Response, "cd");
        assert_eq!(world.client.text(), "abcd");
        world.end(Dir::Response);
        assert!(world.client.ended);
        let mut events = world.events_of("a");
        events.retain(|e| e.phase == Phase::RESPONSE_BODY);
        let texts: Vec<_> = events.iter().map(Seen::text).collect();
        assert_eq!(texts, shown, "{mode:?}");
        let held = |e: &Seen| e.has(EventFlags::HEADERS_HELD);
        assert!(!events.iter().any(held), "{mode:?}");
    }
}
