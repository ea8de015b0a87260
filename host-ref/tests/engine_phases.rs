//! Phases and their order, alone and in chains of three (spec chapter 5).

mod engine_support;
use engine_support::*;

/// Subscribes to everything; records only.
fn watcher(name: &'static str) -> Spec {
    filter(name)
        .on(&[REQ_H, REQ_T, RES_H, RES_T, LOG])
        .body(Dir::Request, BodyMode::STREAM)
        .body(Dir::Response, BodyMode::STREAM)
        .script(|_| cont().user(5))
}

#[test]
fn a_chain_runs_forwards_then_backwards_then_log_forwards() {
    let mut world = World::new(vec![watcher("a"), watcher("b"), watcher("c")]);
    world.exchange();
    assert_eq!(
        world.story_text(),
        "a:REQ_H b:REQ_H c:REQ_H a:REQ_B b:REQ_B c:REQ_B \
         a:REQ_B a:REQ_T b:REQ_B b:REQ_T c:REQ_B c:REQ_T \
         c:RES_H b:RES_H a:RES_H c:RES_B b:RES_B a:RES_B \
         c:RES_B c:RES_T b:RES_B b:RES_T a:RES_B a:RES_T \
         a:LOG b:LOG c:LOG a:end b:end c:end"
    );
    assert_eq!(world.upstream.text(), "ping");
    assert_eq!(world.client.text(), "pong");
    assert_eq!(
        world.client.trailers,
        Some(vec![("t-res".into(), "2".into())])
    );
    assert_eq!(
        world.log_arg("b"),
        (
            EndReason::COMPLETE,
            DirectionEnd::COMPLETE,
            DirectionEnd::COMPLETE
        )
    );
    world.check_ended();
}

#[test]
fn each_guest_sees_the_result_of_those_before_it() {
    let stamp = |name: &'static str| {
        filter(name).on(&[REQ_H, RES_H, LOG]).script(move |e| {
            if e.phase == LOG {
                return cont();
            }
            cont().add("x-seen", name)
        })
    };
    let mut world = World::new(vec![stamp("a"), stamp("b"), stamp("c")]);
    world.get();
    world.ok("x");
    let seen = |e: &Seen| {
        let values = e.fields.iter().filter(|(n, _)| n == "x-seen");
        values.map(|(_, v)| v.as_str()).collect::<String>()
    };
    let events = world.events();
    let words: Vec<_> = events.iter().map(seen).collect();
    assert_eq!(words, ["", "a", "ab", "", "c", "cb", "cba", "cba", "cba"]);
    // LOG shows both messages as they left.
    assert_eq!(events[6].peer_fields.last().unwrap().1, "c");
}

#[test]
fn flags_of_a_bodyless_exchange() {
    let mut world = World::new(vec![watcher("a")]);
    world.get();
    world.response("204", BodyLength::None);
    let events = world.events();
    assert_eq!(world.story_text(), "a:REQ_H a:RES_H a:LOG a:end");
    assert!(events[0].has(EventFlags::END_STREAM) && events[0].has(EventFlags::CAN_REPLY));
    assert!(events[1].has(EventFlags::END_STREAM) && events[1].has(EventFlags::CAN_REPLY));
    assert!(!events[2].has(EventFlags::CAN_REPLY) && !events[1].has(EventFlags::LOCAL_ORIGIN));
    world.check_ended();
}

#[test]
fn can_reply_until_the_response_head_has_passed_the_place() {
    let mut world = World::new(vec![watcher("a"), watcher("b")]);
    world.get();
    world.response("200", BodyLength::Unknown);
    world.data(Dir::Response, "x");
    let can = |e: &Seen| (e.guest, phase_name(e.phase), e.has(EventFlags::CAN_REPLY));
    let events: Vec<_> = world.events().iter().map(can).collect();
    assert_eq!(
        events[2..],
        [
            ("b", "RES_H", true),
            ("a", "RES_H", true),
            ("b", "RES_B", false),
            ("a", "RES_B", false)
        ]
    );
}

#[test]
fn an_unsubscribed_phase_costs_no_call() {
    let mut world = World::new(vec![filter("a"), filter("b").on(&[RES_H])]);
    world.exchange();
    assert_eq!(world.story_text(), "b:RES_H");
    assert_eq!(world.upstream.text(), "ping");
    assert_eq!(world.upstream.trailers.as_ref().unwrap().len(), 1);
    world.check_ended();
}

#[test]
fn unsubscribing_ends_events_of_those_phases() {
    let mut world = World::new(vec![watcher("a").script(|e| {
        if e.phase == REQ_H {
            return cont().unsubscribe(&[REQ_T, RES_H, RES_B, LOG]);
        }
        cont()
    })]);
    world.exchange();
    assert_eq!(world.story_text(), "a:REQ_H a:REQ_B a:REQ_B a:RES_T");
    assert_eq!(world.client.text(), "pong");
    world.check_ended();
}

/// PXG-EVT-010: results of WAKE have effect too.
#[test]
fn wake_unsubscribes() {
    let mut world = World::new(vec![watcher("a").on(&[WAKE]).script(|e| {
        if e.phase == WAKE {
            return cont().unsubscribe(&[RES_H, RES_B, RES_T, WAKE]);
        }
        cont()
    })]);
    world.get();
    assert_eq!(world.wake("a", 1), Status::OK);
    assert_eq!(world.wake("a", 1), Status::STATE, "unsubscribed");
    world.ok("x");
    assert_eq!(world.story_text(), "a:REQ_H a:WAKE a:LOG");
}

/// PXG-EVT-007.
#[test]
fn user_is_echoed_and_changed_only_by_returns() {
    let mut n = 0;
    let mut world = World::new(vec![watcher("a").script(move |_| {
        n += 1;
        cont().user(n)
    })]);
    world.exchange();
    let users: Vec<_> = world.events().iter().map(|e| e.user).collect();
    assert_eq!(users, (0..users.len() as u64).collect::<Vec<_>>());
    world.check_ended();
}

#[test]
fn user_zero_has_no_stream_end() {
    let mut world = World::new(vec![
        watcher("a").script(|e| cont().user(u64::from(e.phase != LOG))),
        watcher("b").script(|e| cont().user(u64::from(e.phase == LOG))),
    ]);
    world.exchange();
    let story = world.story_text();
    assert!(story.ends_with("a:LOG b:LOG b:end"), "{story}");
}

/// PXG-EVT-016.
#[test]
fn places_have_handles_and_tokens_of_their_own() {
    let mut world = World::new(vec![
        watcher("a").library(9).pend(&[REQ_H]),
        watcher("b").library(9).pend(&[REQ_H]),
    ]);
    world.get();
    let events = world.events();
    assert_ne!(events[0].stream, events[1].stream);
    assert_ne!(events[0].token, events[1].token);
    assert!(events.iter().all(|e| e.token != 0 && e.stream != 0));
}

/// PXG-EVT-008: a message whose end was known before its head came is shown as ended.
#[test]
fn the_end_is_shown_at_headers_where_it_is_known() {
    let mut world = World::new(vec![watcher("a").pend(&[REQ_H]), watcher("b")]);
    world.filters.clear();
    let mut world = World::new(vec![
        filter("a")
            .pend(&[REQ_H])
            .script(|e| if e.user == 0 { pending() } else { cont() }),
        watcher("b"),
    ]);
    world.post(BodyLength::Unknown);
    world.end(Dir::Request);
    let token = world.last("a").token;
    assert_eq!(world.complete("a", token, cont()), Status::OK);
    let events = world.events_of("b");
    assert_eq!(events.len(), 1);
    assert!(events[0].has(EventFlags::END_STREAM));
    assert!(world.upstream.ended);
}

/// 7.2: END_STREAM was not set at HEADERS, so the end comes with a BODY event.
#[test]
fn the_end_that_came_while_headers_pended_is_a_body_event() {
    let script = |e: &Seen| if e.phase == REQ_H { pending() } else { cont() };
    let mut world = World::new(vec![watcher("a").pend(&[REQ_H]).script(script)]);
    world.post(BodyLength::Unknown);
    assert!(!world.last("a").has(EventFlags::END_STREAM));
    world.end(Dir::Request);
    let token = world.last("a").token;
    assert_eq!(world.complete("a", token, cont()), Status::OK);
    assert_eq!(world.story_text(), "a:REQ_H a:REQ_B");
    let body = world.last("a");
    assert!(body.chunks.is_empty());
    assert!(body.has(EventFlags::END_STREAM) && body.has(EventFlags::BODY_END));
    assert!(world.upstream.ended);
}

/// PXG-EVT-022 and 5.3: UPGRADED on the response's head and everything after it.
#[test]
fn an_upgrade_is_flagged_to_the_end() {
    for headers in [true, false] {
        let mut spec = filter("a")
            .on(&[REQ_H, LOG])
            .body(Dir::Response, BodyMode::WHOLE);
        if headers {
            spec = spec.on(&[RES_H]);
        }
        let mut world = World::new(vec![spec]);
        world.get();
        world.on(|s, _| s.upgraded());
        world.response("101", BodyLength::None);
        // The tunnel is the driver's; the stream ends with it.
        assert!(!world.finished());
        for dir in [Dir::Request, Dir::Response] {
            assert!(world.stream.bodies_skipped(dir) && !world.stream.wants(dir));
        }
        if headers {
            world.on(|s, cx| s.body_forwarded(cx, Dir::Request));
            world.on(|s, cx| s.body_forwarded(cx, Dir::Response));
            let complete = DirectionEnd::COMPLETE;
            assert_eq!(
                world.log_arg("a"),
                (EndReason::COMPLETE, complete, complete)
            );
        } else {
            world.on(|s, cx| s.cut(cx, Dir::Request, Cut::Sender));
            let (sender, receiver) = (DirectionEnd::SENDER, DirectionEnd::RECEIVER);
            assert_eq!(
                world.log_arg("a"),
                (EndReason::CLIENT_ABORT, sender, receiver)
            );
        }
        world.check_ended();
        let events = world.events();
        assert_eq!(events[1].phase, if headers { RES_H } else { RES_B });
        assert!(!events[0].has(EventFlags::UPGRADED));
        for e in &events[1..] {
            assert!(e.has(EventFlags::UPGRADED), "{}", phase_name(e.phase));
        }
        assert!(events[1].has(EventFlags::END_STREAM) && events[1].has(EventFlags::CAN_REPLY));
        assert_eq!(world.client.status(), "101");
        assert!(world.client.ended, "as a message");
    }
}

/// CHN-003.
#[test]
fn metadata_is_an_attribute_of_later_events() {
    let want = AttrWant {
        source: AttrSource::Metadata {
            namespace: b"a".to_vec(),
            key: b"who".to_vec(),
        },
        phases: !0,
    };
    let mut world = World::new(vec![
        filter("a")
            .on(&[REQ_H])
            .script(|_| cont().metadata("who", "me")),
        filter("b")
            .on(&[REQ_H, RES_H])
            .declare(|d| d.attrs.push(want)),
    ]);
    world.get();
    world.ok("x");
    for e in world.events_of("b") {
        assert_eq!(e.attrs, [Some(b"me".to_vec())]);
    }
}

#[test]
fn a_foreign_namespace_needs_a_grant() {
    let foreign = || {
        cont().op(OpKind::Metadata {
            namespace: b"other",
            key: b"k",
            value: b"v",
        })
    };
    let mut world = World::new(vec![filter("a").on(&[REQ_H]).script(move |_| foreign())]);
    world.get();
    assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
    let grant = |p: &mut Policy| p.metadata_namespaces.push("other".into());
    let granted = filter("a").on(&[REQ_H]).policy(grant);
    let mut world = World::new(vec![granted.script(move |_| foreign())]);
    world.get();
    assert_eq!(world.failures(), []);
}

#[test]
fn an_empty_chain_passes_everything() {
    let mut world = World::new(vec![]);
    world.exchange();
    assert_eq!(world.upstream.text(), "ping");
    assert_eq!(world.client.text(), "pong");
    world.check_ended();
}
