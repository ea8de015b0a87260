//! The body modes in both directions (spec chapter 7).

mod engine_support;
use engine_support::*;

const DIRS: [Dir; 2] = [Dir::Request, Dir::Response];

fn body_phase(dir: Dir) -> Phase {
    [REQ_B, RES_B][dir as usize]
}

fn head_phase(dir: Dir) -> Phase {
    [REQ_H, RES_H][dir as usize]
}

fn bodies(world: &World, dir: Dir) -> Vec<Seen> {
    let mut events = world.events();
    events.retain(|e| e.phase == body_phase(dir));
    events
}

/// Every way to cut `text` in at most three pieces.
fn splits(text: &str) -> Vec<Vec<&str>> {
    let mut all = vec![vec![text]];
    for i in 1..text.len() {
        all.push(vec![&text[..i], &text[i..]]);
        for j in i + 1..text.len() {
            all.push(vec![&text[..i], &text[i..j], &text[j..]]);
        }
    }
    all.push(text.split("").filter(|s| !s.is_empty()).collect());
    all
}

/// Passes every byte that is not `x`; doubles every `d`.
fn edit(e: &Seen, then: Answer) -> Answer {
    e.body().iter().fold(then, |a, b| match b {
        b'x' => a.drop(1),
        b'd' => a.inject("d").pass(1),
        _ => a.pass(1),
    })
}

#[test]
fn edits_are_the_same_at_every_split() {
    let text = "axbdxc";
    for dir in DIRS {
        for mode in [BodyMode::STREAM, BodyMode::WHOLE] {
            for pieces in splits(text) {
                for trailers in [None, Some(&[("t", "1")][..])] {
                    let spec = filter("a")
                        .body(dir, mode)
                        .flag(ConfigFlags::RESIZES_REQUEST)
                        .flag(ConfigFlags::RESIZES_RESPONSE)
                        .script(|e| edit(e, cont()));
                    let mut world = World::new(vec![spec, filter("b"), filter("c").on(&[LOG])]);
                    world.head_of(dir, BodyLength::Exact(text.len() as u64));
                    for piece in &pieces {
                        world.data(dir, piece.to_string());
                    }
                    world.end_with(dir, trailers);
                    let out = world.out(dir);
                    assert_eq!(out.text(), "abddc", "{pieces:?}");
                    assert_eq!(out.trailers.is_some(), trailers.is_some());
                    assert!(out.ended);
                    if mode == BodyMode::WHOLE {
                        assert_eq!(bodies(&world, dir).len(), 1);
                        let length = match trailers {
                            Some(_) => BodyLength::Unknown,
                            None => BodyLength::Exact(5),
                        };
                        assert_eq!(out.length, Some(length));
                    } else {
                        assert_eq!(out.length, Some(BodyLength::Unknown));
                    }
                    check_offsets(&bodies(&world, dir));
                }
            }
        }
    }
}

/// In STREAM with CONTINUE every byte is shown once, and offsets follow.
fn check_offsets(events: &[Seen]) {
    let mut at = 0;
    for (i, e) in events.iter().enumerate() {
        assert_eq!(e.offset, at);
        at += e.body().len() as u64;
        assert_eq!(e.has(EventFlags::BODY_END), i + 1 == events.len());
        assert!(!e.chunks.iter().any(Vec::is_empty));
        assert!(!e.body().is_empty() || e.has(EventFlags::BODY_END));
    }
}

#[test]
fn observe_sees_what_has_passed_and_changes_nothing() {
    for dir in DIRS {
        for pieces in splits("abcdef") {
            let mut world = World::new(vec![filter("a").body(dir, BodyMode::OBSERVE)]);
            world.head_of(dir, BodyLength::Exact(6));
            for piece in &pieces {
                world.data(dir, piece.to_string());
            }
            world.end(dir);
            let events = bodies(&world, dir);
            assert_eq!(world.out(dir).text(), "abcdef");
            assert_eq!(world.out(dir).length, Some(BodyLength::Exact(6)));
            let shown: Vec<u8> = events.iter().flat_map(Seen::body).collect();
            assert_eq!(shown, b"abcdef");
            assert!(events.last().unwrap().has(EventFlags::END_STREAM));
            check_offsets(&events);
        }
    }
}

#[test]
fn skip_causes_no_call() {
    for dir in DIRS {
        let mut world = World::new(vec![
            filter("a").body(dir, BodyMode::SKIP).on(&[head_phase(dir)]),
        ]);
        world.head_of(dir, BodyLength::Unknown);
        world.data(dir, "abc");
        assert_eq!(world.out(dir).text(), "abc");
        world.end(dir);
        assert!(bodies(&world, dir).is_empty());
    }
}

/// PXG-BODY-003.
#[test]
fn whole_holds_the_head_and_shows_everything_once() {
    for dir in DIRS {
        let mut world = World::new(vec![
            filter("a")
                .on(&[head_phase(dir), REQ_T, RES_T])
                .body(dir, BodyMode::WHOLE)
                .script(|e| {
                    if e.has(EventFlags::WHOLE_BODY) {
                        return cont().set("x-size", "4").add_trailer("t-more", "2");
                    }
                    cont()
                }),
        ]);
        world.head_of(dir, BodyLength::Exact(4));
        world.data(dir, "ab");
        assert!(world.out(dir).head.is_none(), "the head is held");
        world.data(dir, "cd");
        assert!(bodies(&world, dir).is_empty());
        world.end_with(dir, Some(&[("t", "1")]));
        let [body] = &bodies(&world, dir)[..] else {
            panic!("one BODY event")
        };
        let all = EventFlags::WHOLE_BODY.0
            | EventFlags::HEADERS_HELD.0
            | EventFlags::BODY_END.0
            | EventFlags::END_STREAM.0;
        assert_eq!(body.flags.0 & all, all);
        assert_eq!(body.text(), "abcd");
        assert_eq!(body.trailers, [("t".into(), "1".into())]);
        assert!(!body.fields.is_empty());
        let out = world.out(dir);
        assert_eq!(out.field("x-size"), Some("4"));
        assert_eq!(out.trailers.as_ref().unwrap().len(), 2);
        let trailers = world.events();
        assert!(
            !trailers
                .iter()
                .any(|e| e.phase == REQ_T || e.phase == RES_T)
        );
    }
}

/// PXG-BODY-017.
#[test]
fn whole_without_headers_sees_bodyless_messages() {
    for dir in DIRS {
        let mut world = World::new(vec![filter("a").body(dir, BodyMode::WHOLE)]);
        world.head_of(dir, BodyLength::None);
        let [body] = &bodies(&world, dir)[..] else {
            panic!("one BODY event")
        };
        let all = EventFlags::WHOLE_BODY.0
            | EventFlags::HEADERS_HELD.0
            | EventFlags::BODY_END.0
            | EventFlags::END_STREAM.0;
        assert_eq!(body.flags.0 & all, all);
        assert!(body.chunks.is_empty());
        assert!(world.out(dir).ended);
    }
}

#[test]
fn other_modes_have_no_body_event_of_a_bodyless_message() {
    for dir in DIRS {
        for mode in [BodyMode::STREAM, BodyMode::WHOLE, BodyMode::OBSERVE] {
            for headers in [true, false] {
                if mode == BodyMode::WHOLE && !headers {
                    continue;
                }
                let mut spec = filter("a").body(dir, mode);
                if headers {
                    spec = spec.on(&[head_phase(dir)]);
                }
                let mut world = World::new(vec![spec]);
                world.head_of(dir, BodyLength::Exact(0));
                assert!(bodies(&world, dir).is_empty());
                assert!(world.out(dir).ended);
            }
        }
    }
}

#[test]
fn a_whole_guest_can_give_a_bodyless_request_a_body() {
    let mut world = World::new(vec![
        filter("a")
            .body(Dir::Request, BodyMode::WHOLE)
            .script(|_| cont().inject("hello")),
    ]);
    world.post(BodyLength::Exact(0));
    assert_eq!(world.upstream.text(), "hello");
    assert_eq!(world.upstream.length, Some(BodyLength::Exact(5)));
}

#[test]
fn what_cannot_have_a_body_gets_none() {
    for must in [false, true] {
        let mut world = World::new(vec![
            filter("a")
                .body(Dir::Response, BodyMode::WHOLE)
                .script(move |_| {
                    let answer = cont().inject("hello");
                    if must { answer.must() } else { answer }
                }),
        ]);
        world.get();
        world.response("304", BodyLength::None);
        assert_eq!(world.client.text(), "");
        assert!(world.client.ended);
        if must {
            assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
        } else {
            assert_eq!(world.stats("a").skipped_ops.get(), 1);
            assert_eq!(world.client.status(), "304");
        }
    }
}

fn over_limit(action: impl Fn() -> Answer + Send + 'static) -> Spec {
    filter("a")
        .on(&[REQ_H, REQ_T])
        .body(Dir::Request, BodyMode::WHOLE)
        .max_body(4)
        .script(move |e| {
            if e.has(EventFlags::OVER_LIMIT) && e.has(EventFlags::HEADERS_HELD) {
                assert!(!e.has(EventFlags::WHOLE_BODY));
                return action();
            }
            cont()
        })
}

/// PXG-BODY-004.
#[test]
fn over_the_limit_continue_goes_on_as_a_stream() {
    let mut world = World::new(vec![over_limit(|| cont().set("x-over", "1"))]);
    world.post(BodyLength::Exact(8));
    world.data(Dir::Request, "abcd");
    assert!(bodies(&world, Dir::Request).is_empty(), "max_body is legal");
    world.data(Dir::Request, "ef");
    world.data(Dir::Request, "gh");
    world.end_with(Dir::Request, Some(&[("t", "1")]));
    let events = bodies(&world, Dir::Request);
    let texts: Vec<_> = events.iter().map(Seen::text).collect();
    assert_eq!(texts, ["abcdef", "gh", ""]);
    assert!(events[2].has(EventFlags::BODY_END) && !events[2].has(EventFlags::END_STREAM));
    assert_eq!(world.last("a").phase, REQ_T, "TRAILERS as usual");
    assert_eq!(world.upstream.text(), "abcdefgh");
    assert_eq!(world.upstream.field("x-over"), Some("1"));
}

/// Where STREAM does not exist, what follows passes unseen.
#[test]
fn over_the_limit_without_stream_passes_the_rest_unseen() {
    let filter = over_limit(cont).without(Feature::BODY_STREAM_REQUEST);
    let mut world = World::new(vec![filter]);
    world.post(BodyLength::Exact(8));
    world.data(Dir::Request, "abcdef");
    world.data(Dir::Request, "gh");
    world.end(Dir::Request);
    let texts: Vec<_> = bodies(&world, Dir::Request)
        .iter()
        .map(Seen::text)
        .collect();
    assert_eq!(texts, ["abcdef"]);
    assert_eq!(world.upstream.text(), "abcdefgh");
}

#[test]
fn over_the_limit_skip_passes_the_rest_unseen() {
    let skip = || cont().mode(Dir::Request, BodyMode::SKIP);
    let mut world = World::new(vec![over_limit(skip)]);
    world.post(BodyLength::Exact(8));
    world.data(Dir::Request, "abcdef");
    world.data(Dir::Request, "gh");
    world.end(Dir::Request);
    assert_eq!(bodies(&world, Dir::Request).len(), 1);
    assert_eq!(world.upstream.text(), "abcdefgh");
    assert_eq!(world.failures(), []);
}

/// The length that the head promised is not the one of an edited body.
#[test]
fn over_the_limit_skip_with_edits_drops_the_content_length() {
    let skip = || cont().mode(Dir::Request, BodyMode::SKIP).drop(1);
    let mut world = World::new(vec![over_limit(skip)]);
    world.post(BodyLength::Exact(8));
    world.data(Dir::Request, "abcdef");
    world.data(Dir::Request, "gh");
    world.end(Dir::Request);
    assert_eq!(world.upstream.length, Some(BodyLength::Unknown));
    assert_eq!(world.upstream.text(), "bcdefgh");
}

#[test]
fn over_the_limit_reply_and_reset() {
    let mut world = World::new(vec![over_limit(|| reply(413, "too long"))]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "abcdef");
    assert_eq!(world.client.status(), "413");
    assert!(world.upstream.head.is_none());
    let mut world = World::new(vec![over_limit(reset)]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "abcdef");
    assert!(world.was_reset() && world.client.head.is_none());
    world.check_ended();
}

/// PXG-BODY-014: also with a change of the mode in the same result.
#[test]
fn over_the_limit_more_is_a_failure() {
    let with_mode = || more(0).drop(5).mode(Dir::Request, BodyMode::STREAM);
    let answers: [fn() -> Answer; 2] = [|| more(0), with_mode];
    for answer in answers {
        let mut world = World::new(vec![over_limit(answer)]);
        world.post(BodyLength::Unknown);
        world.data(Dir::Request, "abcdef");
        assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
        assert_eq!(world.client.status(), "500");
    }
}

#[test]
fn over_the_limit_pending() {
    let spec = over_limit(pending).pend(&[REQ_B]);
    let mut world = World::new(vec![spec]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "abcdef");
    world.data(Dir::Request, "gh");
    assert!(world.upstream.head.is_none());
    let token = world.last("a").token;
    assert_eq!(world.complete("a", token, cont()), Status::OK);
    world.end(Dir::Request);
    let texts: Vec<_> = bodies(&world, Dir::Request)
        .iter()
        .map(Seen::text)
        .collect();
    assert_eq!(texts, ["abcdef", "gh", ""]);
    assert_eq!(world.upstream.text(), "abcdefgh");
}

/// 7.5: that the body has ended changes nothing.
#[test]
fn over_the_limit_with_the_end_is_not_whole() {
    for trailers in [None, Some(&[("t", "1")][..])] {
        let mut world = World::new(vec![
            filter("p").pend(&[REQ_H]).script(|_| pending()),
            over_limit(cont),
        ]);
        world.post(BodyLength::Unknown);
        world.data(Dir::Request, "abcdef");
        world.end_with(Dir::Request, trailers);
        let token = world.last("p").token;
        assert_eq!(world.complete("p", token, cont()), Status::OK);
        let [body] = &bodies(&world, Dir::Request)[..] else {
            panic!("one BODY event")
        };
        assert!(body.has(EventFlags::OVER_LIMIT) && body.has(EventFlags::BODY_END));
        assert!(body.trailers.is_empty());
        assert_eq!(body.has(EventFlags::END_STREAM), trailers.is_none());
        assert_eq!(world.last("a").phase == REQ_T, trailers.is_some());
        assert_eq!(world.upstream.text(), "abcdef");
        assert!(world.upstream.ended);
    }
}

/// 7.1: from the HEADERS result on modes only go down.
#[test]
fn body_modes_change_as_allowed() {
    type Change = (Phase, BodyMode, BodyMode, bool);
    let cases: [Change; 9] = [
        (REQ_H, BodyMode::SKIP, BodyMode::STREAM, true),
        (REQ_H, BodyMode::STREAM, BodyMode::WHOLE, true),
        (REQ_H, BodyMode::WHOLE, BodyMode::OBSERVE, true),
        (REQ_H, BodyMode::WHOLE, BodyMode::SKIP, true),
        (REQ_B, BodyMode::STREAM, BodyMode::SKIP, true),
        (REQ_B, BodyMode::OBSERVE, BodyMode::SKIP, true),
        (REQ_B, BodyMode::STREAM, BodyMode::STREAM, true),
        (REQ_B, BodyMode::STREAM, BodyMode::OBSERVE, false),
        (REQ_B, BodyMode::STREAM, BodyMode::WHOLE, false),
    ];
    for (phase, from, to, legal) in cases {
        let mut world = World::new(vec![
            filter("a")
                .on(&[REQ_H])
                .body(Dir::Request, from)
                .script(move |e| {
                    if e.phase == phase {
                        return cont().mode(Dir::Request, to);
                    }
                    cont()
                }),
        ]);
        world.post(BodyLength::Unknown);
        world.data(Dir::Request, "abc");
        world.data(Dir::Request, "def");
        world.end(Dir::Request);
        assert_eq!(
            world.failures().is_empty(),
            legal,
            "{phase:?} {from:?} {to:?}"
        );
        if legal {
            assert_eq!(world.upstream.text(), "abcdef");
        }
    }
}

/// 7.1: once the HEADERS result has taken effect another phase cannot leave WHOLE, nor enter it.
#[test]
fn a_held_direction_keeps_its_mode() {
    for (mode, headers) in [
        (BodyMode::WHOLE, cont as fn() -> Answer),
        (BodyMode::STREAM, || more(10)),
    ] {
        for to in [BodyMode::STREAM, BodyMode::WHOLE, BodyMode::SKIP] {
            let mut world = World::new(vec![
                filter("a")
                    .on(&[REQ_H, WAKE])
                    .body(Dir::Request, mode)
                    .script(move |e| match e.phase {
                        WAKE => cont().mode(Dir::Request, to),
                        REQ_H => headers(),
                        _ => cont(),
                    }),
            ]);
            world.post(BodyLength::Unknown);
            world.data(Dir::Request, "abc");
            assert_eq!(world.wake("a", 0), Status::OK);
            let legal = to == mode || (mode == BodyMode::STREAM && to == BodyMode::SKIP);
            assert_eq!(world.failures().is_empty(), legal, "{mode:?} to {to:?}");
            if legal && to == BodyMode::SKIP {
                assert_eq!(world.upstream.text(), "abc", "D11");
            }
        }
    }
}

#[test]
fn turning_on_an_unsubscribed_body_is_refused() {
    let mut world = World::new(vec![
        filter("a")
            .on(&[REQ_H])
            .script(|_| cont().mode(Dir::Request, BodyMode::STREAM)),
    ]);
    world.post(BodyLength::Unknown);
    assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
}

/// PXG-BODY-008.
#[test]
fn views_have_at_most_64_chunks() {
    let mut world = World::new(vec![filter("a").body(Dir::Request, BodyMode::WHOLE)]);
    world.post(BodyLength::Unknown);
    for i in 0..500u32 {
        world.data(Dir::Request, vec![(i % 251) as u8]);
    }
    world.end(Dir::Request);
    let body = &bodies(&world, Dir::Request)[0];
    assert!(body.chunks.len() <= 64);
    let want: Vec<u8> = (0..500u32).map(|i| (i % 251) as u8).collect();
    assert_eq!(body.body(), want);
    assert_eq!(world.upstream.body, want);
}

/// PXG-BODY-005, PXG-SEC-003.
#[test]
fn reading_stops_at_max_body() {
    let mut world = World::new(vec![
        filter("a")
            .pend(&[REQ_B])
            .body(Dir::Request, BodyMode::STREAM)
            .max_body(10)
            .script(|_| pending()),
    ]);
    world.post(BodyLength::Unknown);
    let mut read = 0;
    while world.stream.wants(Dir::Request) {
        world.data(Dir::Request, "abcd");
        read += 4;
    }
    assert_eq!(read, 12, "max_body and one read");
    let token = world.last("a").token;
    assert_eq!(world.complete("a", token, cont()), Status::OK);
    assert_eq!(world.upstream.text(), "abcd", "the rest is a new event");
}

#[test]
fn a_slow_receiver_stops_the_reading() {
    let mut world = World::with(
        hub(),
        vec![filter("a").body(Dir::Request, BodyMode::STREAM)],
        StreamLimits {
            buffer: 10,
            ..StreamLimits::default()
        },
    );
    world.blocked[0] = true;
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "0123456789");
    assert!(!world.stream.wants(Dir::Request));
    world.blocked[0] = false;
    world.pump();
    assert!(world.stream.wants(Dir::Request));
}

#[test]
fn a_body_that_nobody_wants_can_be_forwarded_aside() {
    let script = |e: &Seen| {
        if e.phase == REQ_B {
            return cont().unsubscribe(&[REQ_B]);
        }
        cont()
    };
    let spec = filter("a").body(Dir::Request, BodyMode::STREAM);
    let mut world = World::new(vec![filter("b").on(&[LOG]), spec.script(script)]);
    world.post(BodyLength::Unknown);
    assert!(!world.stream.bodies_skipped(Dir::Request));
    world.data(Dir::Request, "abc");
    assert!(world.stream.bodies_skipped(Dir::Request));
    world.on(|s, cx| s.body_forwarded(cx, Dir::Request));
    world.ok("x");
    assert_eq!(world.log_arg("b").1, DirectionEnd::COMPLETE);
    world.check_ended();
}
