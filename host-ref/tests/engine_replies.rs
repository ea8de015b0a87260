//! Replies of guests and of the host, whole and streamed (spec chapter 9, 5.6).

mod engine_support;
use engine_support::*;

fn watcher(name: &'static str) -> Spec {
    filter(name)
        .on(&[REQ_H, REQ_T, RES_H, RES_T, LOG])
        .body(Dir::Request, BodyMode::STREAM)
        .body(Dir::Response, BodyMode::STREAM)
        .script(|_| cont().user(5))
}

/// Replies at `phase`.
fn replier(phase: Phase) -> Spec {
    watcher("b").script(move |e| {
        if e.phase == phase {
            reply(403, "no")
        } else {
            cont()
        }
        .user(6)
    })
}

#[test]
fn a_reply_from_each_phase() {
    for phase in [REQ_H, REQ_B, REQ_T, RES_H] {
        let mut world = World::new(vec![watcher("a"), replier(phase), watcher("c")]);
        world.exchange();
        assert_eq!(world.client.status(), "403", "{phase:?}");
        assert_eq!(world.client.field("x-reply"), Some("yes"));
        assert_eq!(world.client.text(), "no");
        assert_eq!(world.client.length, Some(BodyLength::Exact(2)));
        assert!(world.client.local);
        assert!(world.signals.contains(&Signal::CancelUpstream));
        let story = world.story_text();
        assert!(
            story.ends_with("a:RES_H a:RES_B a:LOG b:LOG c:LOG a:end b:end c:end"),
            "{story}"
        );
        for e in world.events_of("a") {
            if [RES_H, RES_B, LOG].contains(&e.phase) {
                assert!(e.has(EventFlags::LOCAL_ORIGIN));
            }
        }
        let (why, request, response) = world.log_arg("a");
        assert_eq!(
            (why, response),
            (EndReason::REPLIED, DirectionEnd::COMPLETE)
        );
        let complete = [REQ_T, RES_H].contains(&phase);
        let how = if complete {
            DirectionEnd::COMPLETE
        } else {
            DirectionEnd::PROXY
        };
        assert_eq!(request, how, "{phase:?}");
        world.check_ended();
    }
}

#[test]
fn without_refilter_nobody_sees_a_reply() {
    let blind = |s: Spec| s.without(Feature::REPLY_REFILTER);
    let mut world = World::new(vec![blind(watcher("a")), blind(replier(REQ_H))]);
    world.post(BodyLength::Unknown);
    assert_eq!(world.client.text(), "no");
    assert_eq!(
        world.story_text(),
        "a:REQ_H b:REQ_H a:LOG b:LOG a:end b:end"
    );
}

#[test]
fn orphans_see_it_first() {
    let mut world = World::new(vec![
        watcher("a"),
        replier(REQ_H),
        watcher("c").flag(ConfigFlags::ORPHAN),
        watcher("d"),
    ]);
    world.post(BodyLength::Unknown);
    assert_eq!(
        world.story_text(),
        "a:REQ_H b:REQ_H c:RES_H c:RES_B a:RES_H a:RES_B a:LOG b:LOG c:LOG d:LOG a:end b:end c:end d:end"
    );
    assert_eq!(world.events_of("d")[0].user, 0);
    // The orphan that had its own RESPONSE_HEADERS sees nothing.
    let mut world = World::new(vec![replier(RES_H), watcher("c").flag(ConfigFlags::ORPHAN)]);
    world.exchange();
    let phases: Vec<_> = world.events_of("c").iter().map(|e| e.phase).collect();
    assert_eq!(phases.iter().filter(|p| **p == RES_H).count(), 1);
}

#[test]
fn a_guest_may_replace_the_reply_of_another() {
    let replace = |e: &Seen| {
        if e.phase == RES_H {
            reply(404, "other")
        } else {
            cont()
        }
    };
    let mut world = World::new(vec![watcher("a").script(replace), replier(REQ_H)]);
    world.post(BodyLength::Unknown);
    assert_eq!(world.client.status(), "404");
    assert_eq!(world.client.text(), "other");
    world.check_ended();
}

#[test]
fn late_replies_reset_and_are_counted() {
    for phase in [RES_B, RES_T] {
        let mut world = World::new(vec![watcher("a"), replier(phase)]);
        world.exchange();
        assert!(world.was_reset());
        assert_eq!(world.stats("b").late_replies.get(), 1);
        assert_eq!(world.failures(), []);
        assert!(
            world.story_text().contains("b:LOG"),
            "not the guest's fault"
        );
        assert_eq!(world.log_arg("a").0, EndReason::ERROR);
        world.check_ended();
    }
}

#[test]
fn a_second_reply_is_a_failure() {
    let mut world = World::new(vec![watcher("a").on(&[WAKE]).script(|e| match e.phase {
        REQ_H => open_reply(200, "x"),
        WAKE => reply(200, "again"),
        _ => cont(),
    })]);
    world.post(BodyLength::Unknown);
    let _ = world.wake("a", 0);
    assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
    assert!(world.was_reset());
}

#[test]
fn a_reply_by_complete_and_by_apply() {
    for late in [false, true] {
        let mut world = World::new(vec![
            watcher("a")
                .pend(&[REQ_H])
                .script(|e| if e.phase == REQ_H { pending() } else { cont() }.user(1)),
            watcher("c"),
        ]);
        world.post(BodyLength::Unknown);
        let token = world.last("a").token;
        if late {
            assert_eq!(world.apply("a", reply(403, "no")), Status::OK);
            assert_eq!(world.complete("a", token, cont()), Status::STALE);
        } else {
            assert_eq!(world.complete("a", token, reply(403, "no")), Status::OK);
        }
        assert_eq!(world.client.text(), "no");
        let story = if late {
            "a:REQ_H a:cancel a:LOG c:LOG a:end c:end"
        } else {
            "a:REQ_H a:LOG c:LOG a:end c:end"
        };
        assert_eq!(world.story_text(), story);
        world.check_ended();
    }
}

/// ASY-017, 5.6: tokens of all cut directions are cancelled before the reply is shown.
#[test]
fn a_reply_cancels_what_it_cuts() {
    let pends = |name| {
        watcher(name)
            .pend(&[REQ_B, RES_H])
            .flag(ConfigFlags::DUPLEX)
            .script(|e| if e.token != 0 { pending() } else { cont() }.user(1))
    };
    let mut world = World::new(vec![watcher("a"), watcher("b").on(&[WAKE]), pends("c")]);
    world.post(BodyLength::Unknown);
    world.data(Dir::Request, "ping");
    world.response("200", BodyLength::Unknown);
    assert_eq!(world.apply("b", reply(403, "no")), Status::OK);
    let story = world.story_text();
    assert!(
        story.contains("c:REQ_B c:RES_H c:cancel c:cancel a:RES_H a:RES_B"),
        "{story}"
    );
    world.check_ended();
}

#[test]
fn replies_without_a_body() {
    type Case = (&'static str, u32, Option<&'static str>);
    let cases: [Case; 4] = [
        ("GET", 204, None),
        ("GET", 304, None),
        ("HEAD", 200, Some("2")),
        ("HEAD", 204, None),
    ];
    for (method, status, length) in cases {
        let mut world = World::new(vec![
            filter("a")
                .on(&[REQ_H])
                .script(move |_| reply(status, "no")),
        ]);
        world.request_of(method, &[], BodyLength::None);
        assert!(world.client.ended);
        assert_eq!(world.client.text(), "");
        assert_eq!(world.client.length, Some(BodyLength::None));
        assert_eq!(
            world.client.field("content-length"),
            length,
            "{method} {status}"
        );
    }
}

#[test]
fn what_is_wrong_with_a_reply() {
    let bad = |change: fn(&mut Reply<'static>)| {
        move |_: &Seen| {
            let mut made = reply(200, "x").metadata("k", "v");
            change(made.outcome.reply.as_mut().unwrap());
            made
        }
    };
    let changes: [fn(&mut Reply<'static>); 7] = [
        |r| r.status = 199,
        |r| r.status = 600,
        |r| r.fields.push((b"Upper", b"x")),
        |r| r.fields.push((b"content-length", b"3")),
        |r| r.fields.push((b":status", b"200")),
        |r| r.trailers.push((b"x", b"a\nb")),
        |r| {
            r.flags = ReplyFlags::GRPC;
            r.grpc_status = 17;
        },
    ];
    for change in changes {
        let want = AttrWant {
            source: AttrSource::Metadata {
                namespace: b"a".to_vec(),
                key: b"k".to_vec(),
            },
            phases: !0,
        };
        let mut world = World::new(vec![
            filter("a").on(&[REQ_H]).script(bad(change)),
            filter("w").on(&[LOG]).declare(|d| d.attrs.push(want)),
        ]);
        world.get();
        assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
        assert_eq!(world.client.status(), "500");
        assert_eq!(world.last("w").attrs, [None], "nothing of it applies");
    }
}

#[test]
fn grpc_replies() {
    for (content_type, grpc) in [("application/grpc+proto", true), ("text/plain", false)] {
        let mut world = World::new(vec![filter("a").on(&[REQ_H]).script(|_| {
            let mut made = reply(403, "no");
            let r = made.outcome.reply.as_mut().unwrap();
            r.flags = ReplyFlags::GRPC;
            r.grpc_status = 7;
            r.fields.push((b"grpc-message", b"denied"));
            made
        })]);
        world.request_of(
            "POST",
            &[("content-type", content_type)],
            BodyLength::Unknown,
        );
        let client = &world.client;
        assert_eq!(client.field("grpc-message"), Some("denied"));
        if grpc {
            assert_eq!(client.status(), "200");
            assert_eq!(client.field("grpc-status"), Some("7"));
            assert_eq!(client.field("content-type"), Some(content_type));
            assert!(client.ended && client.body.is_empty());
        } else {
            assert_eq!((client.status(), client.text().as_str()), ("403", "no"));
            assert_eq!(client.field("grpc-status"), None);
        }
    }
}

#[test]
fn reply_trailers() {
    for feature in [true, false] {
        let mut spec = filter("a").on(&[REQ_H]).script(|_| {
            let mut made = reply(200, "x");
            let r = made.outcome.reply.as_mut().unwrap();
            r.trailers.push((b"t", b"1"));
            made
        });
        if !feature {
            spec = spec.without(Feature::TRAILERS_OUT_RESPONSE);
        }
        let mut world = World::new(vec![spec]);
        world.get();
        assert_eq!(world.client.trailers.is_some(), feature);
        assert_eq!(world.stats("a").skipped_ops.get(), u64::from(!feature));
    }
}

// Streamed replies.

/// Opens a reply at the request's head; WAKE answers by `wake`.
fn streamer(wake: impl Fn(&Seen) -> Answer + Send + 'static) -> Spec {
    filter("a")
        .on(&[REQ_H, LOG, WAKE])
        .script(move |e| match e.phase {
            REQ_H => open_reply(200, "first,"),
            WAKE => wake(e),
            _ => cont(),
        })
}

#[test]
fn a_streamed_reply_in_order() {
    let mut world = World::new(vec![watcher("w"), streamer(|_| cont().write("two,"))]);
    world.get();
    assert_eq!(world.client.text(), "first,");
    assert_eq!(world.client.length, Some(BodyLength::Unknown));
    assert_eq!(world.apply("a", cont().write("one,")), Status::OK);
    assert_eq!(world.wake("a", 0), Status::OK);
    assert_eq!(
        world.apply("a", cont().write("three").write_end("")),
        Status::OK
    );
    assert_eq!(world.client.text(), "first,one,two,three");
    assert!(world.client.ended);
    assert_eq!(world.events_of("w").last().unwrap().phase, LOG);
    world.check_ended();
}

/// PXG-RPL-006, in one batch too.
#[test]
fn writes_after_the_end_are_skipped() {
    let owned = Owned::default();
    let mut world = World::new(vec![streamer(|_| cont())]);
    world.blocked[1] = true;
    world.get();
    let batch = cont()
        .write_end(owned.bytes(b"x"))
        .write(owned.bytes(b"late"));
    assert_eq!(world.apply("a", batch), Status::OK);
    let batch = cont().write(owned.bytes(b"later"));
    assert_eq!(world.apply("a", batch), Status::OK);
    assert_eq!(world.stats("a").skipped_ops.get(), 2);
    world.blocked[1] = false;
    world.pump();
    assert_eq!(world.client.text(), "first,x");
    assert_eq!(world.failures(), []);
    world.check_ended();
    assert_eq!(owned.counts(), (3, 3));
}

#[test]
fn full_limit_and_writable() {
    let mut world = World::new(vec![streamer(|_| cont())]);
    world.blocked[1] = true;
    world.get();
    assert_eq!(world.apply("a", cont().write("x".repeat(60))), Status::OK);
    assert_eq!(world.apply("a", cont().write("y".repeat(60))), Status::FULL);
    assert_eq!(world.apply("a", cont().write("z")), Status::LIMIT);
    assert_eq!(world.apply("a", cont()), Status::OK, "nothing written");
    assert_eq!(world.story_text(), "a:REQ_H");
    world.blocked[1] = false;
    world.pump();
    assert_eq!(world.story_text(), "a:REQ_H a:WAKE");
    assert!(world.last("a").has(EventFlags::WRITABLE));
    assert_eq!(world.client.body.len(), 6 + 120);
    assert_eq!(world.apply("a", cont().write_end("z")), Status::OK);
    assert!(world.client.ended);
    world.check_ended();
}

/// Bytes that were written in WAKE count too, and leave the books when they leave.
#[test]
fn writes_of_wake_count() {
    let mut world = World::new(vec![streamer(|e| {
        if e.has(EventFlags::WRITABLE) {
            cont()
        } else {
            cont().write("w".repeat(90))
        }
    })]);
    world.get();
    for _ in 0..5 {
        assert_eq!(world.wake("a", 0), Status::OK);
        assert_eq!(world.apply("a", cont().write("x")), Status::OK);
    }
    world.blocked[1] = true;
    assert_eq!(world.wake("a", 0), Status::OK);
    assert_eq!(world.apply("a", cont().write("y".repeat(20))), Status::FULL);
    world.blocked[1] = false;
    world.pump();
    assert!(world.last("a").has(EventFlags::WRITABLE));
}

/// What a guest on the way drops has left as well.
#[test]
fn a_reply_that_another_guest_swallows_stays_writable() {
    let swallow = |e: &Seen| {
        if e.phase == RES_B {
            cont().drop(e.body().len() as u64)
        } else {
            cont()
        }
    };
    let mut world = World::new(vec![
        filter("w")
            .body(Dir::Response, BodyMode::STREAM)
            .script(swallow),
        streamer(|_| cont()),
    ]);
    world.get();
    for _ in 0..5 {
        let status = world.apply("a", cont().write("x".repeat(120)));
        assert_eq!(status, Status::FULL);
    }
    assert_eq!(world.story_text().matches("a:WAKE").count(), 5);
}

/// Skipped writes leave the books at once.
#[test]
fn skipped_writes_do_not_fill_the_books() {
    let mut world = World::new(vec![filter("a").on(&[REQ_H, WAKE])]);
    world.get();
    for _ in 0..5 {
        let status = world.apply("a", cont().write("x".repeat(80)));
        assert_eq!(status, Status::OK);
    }
    assert_eq!(world.stats("a").skipped_ops.get(), 5);
}

#[test]
fn trailers_of_a_streamed_reply_come_at_its_end() {
    let mut world = World::new(vec![filter("a").on(&[REQ_H, LOG]).script(|e| {
        if e.phase == LOG {
            return cont();
        }
        let mut made = open_reply(200, "x");
        let r = made.outcome.reply.as_mut().unwrap();
        r.trailers.push((b"t", b"1"));
        made
    })]);
    world.get();
    assert_eq!(world.client.trailers, None);
    assert_eq!(world.apply("a", cont().write_end("y")), Status::OK);
    assert_eq!(world.client.text(), "xy");
    assert!(world.client.trailers.is_some());
    assert_eq!(world.last("a").trailers, [("t".into(), "1".into())]);
    // Where the reply was cut they were never sent.
    let mut world = World::new(vec![filter("a").on(&[REQ_H, LOG]).script(|e| {
        if e.phase == LOG {
            return cont();
        }
        let mut made = open_reply(200, "x");
        let r = made.outcome.reply.as_mut().unwrap();
        r.trailers.push((b"t", b"1"));
        made
    })]);
    world.get();
    world.close();
    assert!(world.last("a").trailers.is_empty());
}

/// PXG-RPL-009, 9.3 idle: a failed guest has no LOG.
#[test]
fn an_idle_reply_is_given_up() {
    let mut world = World::new(vec![streamer(|_| cont())]);
    world.get();
    world.at(29 * SECOND);
    assert_eq!(world.apply("a", cont().write("x")), Status::OK);
    world.at(58 * SECOND);
    assert!(!world.finished());
    world.at(60 * SECOND);
    assert_eq!(world.failures(), [("a".into(), Reason::Deadline)]);
    assert!(world.was_reset());
    assert_eq!(world.story_text(), "a:REQ_H");
    world.check_ended();
}

#[test]
fn a_client_that_does_not_read_makes_no_reply_idle() {
    let mut world = World::new(vec![streamer(|_| cont())]);
    world.blocked[1] = true;
    world.get();
    world.at(100 * SECOND);
    assert_eq!(world.failures(), []);
}

#[test]
fn a_failure_while_a_reply_is_open_resets() {
    let mut world = World::new(vec![streamer(|_| error("bad")).open()]);
    world.get();
    assert_eq!(world.wake("a", 0), Status::OK);
    assert!(world.was_reset());
    assert_eq!(world.story_text(), "a:REQ_H a:WAKE");
    world.check_ended();
}

#[test]
fn an_open_reply_needs_the_feature() {
    let mut world = World::new(vec![streamer(|_| cont()).without(Feature::STREAM_REPLY)]);
    world.get();
    assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
}

#[test]
fn flush_by_apply_means_the_response() {
    let mut world = World::new(vec![streamer(|_| cont())]);
    world.get();
    world.signals.clear();
    let written = cont().write("x").flags(ResultFlags::FLUSH);
    assert_eq!(world.apply("a", written), Status::OK);
    assert_eq!(world.signals, [Signal::Flush(Dir::Response)]);
}

// BODY_WRITE into a forwarded message.

#[test]
fn bytes_into_a_forwarded_response() {
    let mut world = World::new(vec![filter("a").on(&[RES_H, WAKE])]);
    world.get();
    world.response("200", BodyLength::Unknown);
    world.data(Dir::Response, "ab");
    for _ in 0..5 {
        let status = world.apply("a", cont().write("-".repeat(60)));
        assert_eq!(status, Status::OK, "they have left");
    }
    world.data(Dir::Response, "cd");
    assert_eq!(world.client.text(), format!("ab{}cd", "-".repeat(300)));
    // END, a fixed length, no feature: skipped.
    assert_eq!(world.apply("a", cont().write_end("x")), Status::OK);
    assert_eq!(world.stats("a").skipped_ops.get(), 1);
    world.end(Dir::Response);
    assert!(world.client.ended);
    for feature in [true, false] {
        let mut spec = filter("a").on(&[RES_H, WAKE]);
        if !feature {
            spec = spec.without(Feature::BODY_INJECT);
        }
        let mut world = World::new(vec![spec]);
        world.get();
        let length = if feature {
            BodyLength::Exact(4)
        } else {
            BodyLength::Unknown
        };
        world.response("200", length);
        world.data(Dir::Response, "ab");
        assert_eq!(world.apply("a", cont().write("xx")), Status::OK);
        assert_eq!(world.stats("a").skipped_ops.get(), 1);
        assert_eq!(world.client.text(), "ab");
    }
}

// The host's own replies.

#[test]
fn a_reply_of_the_host() {
    let mut world = World::new(vec![
        watcher("a"),
        watcher("b"),
        filter("p").pend(&[REQ_H]).script(|_| pending()),
        watcher("d"),
    ]);
    world.post(BodyLength::Unknown);
    let made = world.on(|s, cx| {
        s.host_reply(
            cx,
            504,
            "text/plain",
            Bytes::from_static(b"late"),
            "upstream.timeout",
        )
    });
    assert!(made);
    assert_eq!(world.client.status(), "504");
    assert_eq!(world.client.text(), "late");
    assert_eq!(
        world.story_text(),
        "a:REQ_H b:REQ_H p:REQ_H p:cancel b:RES_H b:RES_B a:RES_H a:RES_B a:LOG b:LOG d:LOG a:end b:end d:end"
    );
    assert!(world.events_of("b")[1].has(EventFlags::LOCAL_ORIGIN));
    world.check_ended();
}

/// The response was on its way through the chain, and somebody waits for its own decision on it.
#[test]
fn a_reply_of_the_host_cancels_what_it_replaces() {
    let mut world = World::new(vec![
        watcher("a"),
        watcher("b")
            .pend(&[RES_H])
            .script(|e| if e.token != 0 { pending() } else { cont() }.user(1)),
    ]);
    world.get();
    world.response("200", BodyLength::Unknown);
    assert!(world.on(|s, cx| s.host_reply(cx, 504, "text/plain", Bytes::new(), "timeout")));
    assert_eq!(
        world.story_text(),
        "a:REQ_H b:REQ_H b:RES_H b:cancel a:RES_H a:LOG b:LOG a:end b:end"
    );
    assert_eq!(world.client.status(), "504");
    world.check_ended();
}

#[test]
fn a_reply_of_the_host_comes_too_late_for_a_begun_response() {
    let mut world = World::new(vec![watcher("a")]);
    world.get();
    world.response("200", BodyLength::Unknown);
    assert!(!world.on(|s, cx| s.host_reply(cx, 504, "text/plain", Bytes::new(), "timeout")));
}
