//! Batches: validated as a whole, then applied in order (spec chapters 6, 7.6, 8, 10).

mod engine_support;
use engine_support::*;

/// One answer at the request's head; the body is skipped.
fn at_head(answer: impl Fn() -> Answer + Send + 'static) -> World {
    let mut world = World::new(vec![filter("a").on(&[REQ_H]).script(move |_| answer())]);
    world.request(
        &[("a", "1"), ("b", "2"), ("a", "3"), ("te", "x")],
        BodyLength::None,
    );
    world
}

fn plain(world: &World) -> Vec<String> {
    let head = world.upstream.head.as_ref().expect("a head");
    let fields = head.iter().filter(|(n, _)| !n.starts_with(':'));
    fields.map(|(n, v)| format!("{n}={v}")).collect()
}

#[test]
fn field_operations() {
    let a = 4; // index of the first field behind the pseudo-headers
    type Case = (fn(u64) -> Answer, &'static str);
    let cases: [Case; 12] = [
        (|_| cont(), "a=1 a=3 b=2 te=x"),
        (|_| cont().set("a", "9"), "a=9 b=2 te=x"),
        (|_| cont().set("c", ""), "a=1 a=3 b=2 c= te=x"),
        (|_| cont().add("a", "9"), "a=1 a=3 a=9 b=2 te=x"),
        (|_| cont().del("a"), "b=2 te=x"),
        (|_| cont().del("nothing"), "a=1 a=3 b=2 te=x"),
        (|_| cont().add("a", "9").del("a"), "b=2 te=x"),
        (|_| cont().del("a").add("a", "9"), "a=9 b=2 te=x"),
        (|i| cont().set_at(i, "8").set_at(i, "9"), "a=3 a=9 b=2 te=x"),
        (|i| cont().del_at(i).set_at(i + 2, "9"), "a=9 b=2 te=x"),
        (|i| cont().set_at(i, "9").del_at(i), "a=3 b=2 te=x"),
        (|i| cont().set("b", "9").del_at(i), "a=3 b=9 te=x"),
    ];
    for (answer, want) in cases {
        let world = at_head(move || answer(a));
        let mut fields = plain(&world);
        fields.sort();
        assert_eq!(fields.join(" "), want);
        assert_eq!(world.stats("a").skipped_ops.get(), 0);
    }
}

/// PXG-HDR-004: an index whose field the batch has removed is skipped, also with MUST.
#[test]
fn an_index_of_a_removed_field_is_skipped_and_counted() {
    let answers: [fn() -> Answer; 5] = [
        || cont().del("a").set_at(4, "9").must(),
        || cont().set("a", "9").set_at(4, "x").must(),
        || cont().set("a", "9").del_at(4),
        || cont().del_at(4).del_at(4),
        || cont().del_at(4).set_at(4, "x"),
    ];
    for answer in answers {
        let world = at_head(answer);
        assert_eq!(world.failures(), []);
        assert_eq!(world.stats("a").skipped_ops.get(), 1);
        assert!(!plain(&world).iter().any(|f| f == "a=x"));
    }
}

#[test]
fn pseudo_headers_can_only_be_set() {
    type Case = (fn() -> Answer, Result<(&'static str, &'static str), ()>);
    let cases: [Case; 16] = [
        (|| cont().set(":path", "/x?y"), Ok((":path", "/x?y"))),
        (|| cont().set(":path", "*"), Ok((":path", "*"))),
        (|| cont().set(":method", "pOst"), Ok((":method", "pOst"))),
        (|| cont().set_at(3, "/z"), Ok((":path", "/z"))),
        (
            || cont().set(":authority", "[::1]:80"),
            Ok((":authority", "[::1]:80")),
        ),
        (|| cont().set(":path", "x"), Err(())),
        (|| cont().set(":path", "/a b"), Err(())),
        (|| cont().set(":path", "/a#b"), Err(())),
        (|| cont().set(":path", ""), Err(())),
        (|| cont().set(":authority", "user@host"), Err(())),
        (|| cont().set(":scheme", "ftp"), Err(())),
        (|| cont().set(":status", "200"), Err(())),
        (|| cont().set(":protocol", "websocket"), Err(())),
        (|| cont().add(":path", "/x"), Err(())),
        (|| cont().del(":path"), Err(())),
        (|| cont().del_at(3), Err(())),
    ];
    for (answer, want) in cases {
        let world = at_head(answer);
        match want {
            Ok((name, value)) => assert_eq!(world.upstream.field(name), Some(value)),
            Err(()) => {
                assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
                assert!(world.upstream.head.is_none());
            }
        }
    }
}

/// HDR-006: only those that the message has.
#[test]
fn connect_has_no_path_to_set() {
    let mut world = World::new(vec![
        filter("a")
            .on(&[REQ_H])
            .script(|_| cont().set(":path", "/")),
    ]);
    let head = fields(&[(":method", "CONNECT"), (":authority", "example.com:443")]);
    world.on(|s, cx| s.request_head(cx, head, BodyLength::None));
    assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
}

#[test]
fn what_is_refused_takes_the_whole_batch_with_it() {
    let answers: [fn() -> Answer; 14] = [
        || cont().set("X-Upper", "1"),
        || cont().set("", "1"),
        || cont().set("a b", "1"),
        || cont().set("x", "a\r\nb: c"),
        || cont().set("x", "a\0"),
        || cont().set("x", " a"),
        || cont().add("x", "a\t"),
        || cont().set("content-length", "1"),
        || cont().del("transfer-encoding"),
        || cont().set("host", "x"),
        || cont().set_at(7, "trailers"), // te
        || cont().set_at(8, "beyond"),
        || cont().pass(1),
        || cont().write("x"),
    ];
    for bad in answers {
        let answer = move || {
            let mut good = cont().set("x-good", "1").metadata("k", "v");
            good.outcome.ops.extend(bad().outcome.ops);
            good
        };
        let mut world = World::new(vec![
            filter("a").open().on(&[REQ_H]).script(move |_| answer()),
        ]);
        world.request(
            &[("a", "1"), ("b", "2"), ("a", "3"), ("te", "x")],
            BodyLength::None,
        );
        assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
        assert_eq!(
            world.upstream.field("x-good"),
            None,
            "nothing of it applies"
        );
        assert_eq!(plain(&world).len(), 4, "open: the view passes unmodified");
    }
}

/// PXG-MUT-002.
#[test]
fn unknown_kinds() {
    let world = at_head(|| cont().op(OpKind::Unknown(999)).set("x", "1"));
    assert_eq!(world.upstream.field("x"), Some("1"));
    assert_eq!(world.stats("a").skipped_ops.get(), 1);
    let world = at_head(|| cont().set("x", "1").op(OpKind::Unknown(999)).must());
    assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
}

/// PXG-HDR-011.
#[test]
fn header_operations_after_the_head_left() {
    for must in [false, true] {
        for phase in [REQ_B, REQ_T] {
            let mut world = World::new(vec![
                filter("a")
                    .on(&[REQ_T])
                    .body(Dir::Request, BodyMode::STREAM)
                    .script(move |e| {
                        if e.phase != phase {
                            return cont();
                        }
                        let late = cont().set("x", "1");
                        if must { late.must() } else { late }
                    }),
            ]);
            world.post(BodyLength::Unknown);
            world.data(Dir::Request, "ab");
            world.end_with(Dir::Request, Some(&[("t", "1")]));
            assert_eq!(world.failures().is_empty(), !must);
            if !must {
                assert!(world.stats("a").skipped_ops.get() > 0);
            }
        }
    }
}

/// PXG-MUT-003: what a reply leaves out is not even counted.
#[test]
fn reply_reset_and_error_apply_metadata_only() {
    let answers: [fn() -> Answer; 3] = [|| reply(403, "no"), reset, || error("bad")];
    for answer in answers {
        let want = AttrWant {
            source: AttrSource::Metadata {
                namespace: b"b".to_vec(),
                key: b"k".to_vec(),
            },
            phases: !0,
        };
        let mut world = World::new(vec![
            filter("w").on(&[LOG]).declare(|d| d.attrs.push(want)),
            filter("b").on(&[REQ_H]).script(move |_| {
                let batch = answer().set("Bad Name", "\r").pass(99).metadata("k", "v");
                batch.op(OpKind::Unknown(7)).must()
            }),
        ]);
        world.get();
        assert_eq!(world.last("w").attrs, [Some(b"v".to_vec())]);
        assert_eq!(world.stats("b").skipped_ops.get(), 0, "ignored, uncounted");
        assert!(world.upstream.head.is_none());
    }
}

#[test]
fn the_view_bounds_pass_and_drop() {
    for (n, legal) in [(4, true), (5, false), (u64::MAX, false)] {
        for drop in [false, true] {
            let mut world = World::new(vec![
                filter("a")
                    .body(Dir::Request, BodyMode::STREAM)
                    .script(move |e| {
                        if e.body().is_empty() {
                            return cont();
                        }
                        if drop {
                            cont().pass(1).drop(n - 1)
                        } else {
                            cont().drop(1).pass(n - 1)
                        }
                    }),
            ]);
            world.post(BodyLength::Unknown);
            world.data(Dir::Request, "abcd");
            assert_eq!(world.failures().is_empty(), legal);
        }
    }
}

/// PXG-HDR-007: a byte beyond the content-length is a failure before it leaves.
#[test]
fn a_surplus_fails_before_it_leaves() {
    for held in [false, true] {
        let mut world = World::new(vec![
            filter("a")
                .on(&[REQ_H])
                .body(Dir::Request, BodyMode::STREAM)
                .script(move |e| match e.phase {
                    REQ_H if held => more(1),
                    REQ_H => cont(),
                    _ => cont().inject("xxx"),
                }),
        ]);
        world.post(BodyLength::Exact(4));
        world.data(Dir::Request, "ab");
        assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
        assert_eq!(world.upstream.text(), "");
        assert_eq!(world.client.status(), "500");
    }
}

/// A surplus that shows only when the rest passes unseen.
#[test]
fn a_surplus_in_skip_fails_too() {
    let mut world = World::new(vec![
        filter("a")
            .body(Dir::Request, BodyMode::STREAM)
            .script(|_| cont().inject("xx").mode(Dir::Request, BodyMode::SKIP)),
    ]);
    world.post(BodyLength::Exact(4));
    world.data(Dir::Request, "ab");
    assert_eq!(world.upstream.text(), "xxab");
    world.data(Dir::Request, "cd");
    assert_eq!(world.upstream.text(), "xxab");
    assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
}

/// PXG-HDR-007, PXG-EVT-014: a shortage is a failure instead of an end, and a failed guest has no LOG.
#[test]
fn a_shortage_fails_instead_of_the_end() {
    let how: [fn(&Seen) -> Answer; 3] = [
        |e| {
            if e.body().is_empty() {
                cont()
            } else {
                cont().drop(1)
            }
        },
        |e| {
            if e.body().is_empty() {
                return cont();
            }
            cont().drop(1).mode(Dir::Response, BodyMode::SKIP)
        },
        |e| {
            if e.body().is_empty() {
                cont()
            } else {
                cont().drop(1).unsubscribe(&[RES_B])
            }
        },
    ];
    for script in how {
        for trailers in [None, Some(&[("t", "1")][..])] {
            let mut world = World::new(vec![
                filter("w").on(&[LOG]),
                filter("a")
                    .on(&[LOG])
                    .body(Dir::Response, BodyMode::STREAM)
                    .script(script),
            ]);
            world.get();
            world.response("200", BodyLength::Exact(4));
            world.data(Dir::Response, "abcd");
            world.end_with(Dir::Response, trailers);
            assert!(!world.client.ended, "{}", world.client.text());
            assert!(world.was_reset());
            assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
            assert!(!world.story_text().contains("a:LOG"));
            assert_eq!(world.log_arg("w").0, EndReason::ERROR);
            world.check_ended();
        }
    }
}

#[test]
fn an_edit_of_the_same_length_is_no_resize() {
    let mut world = World::new(vec![
        filter("a")
            .body(Dir::Request, BodyMode::STREAM)
            .script(|e| {
                if e.offset > 0 || e.body().is_empty() {
                    return cont().mode(Dir::Request, BodyMode::SKIP);
                }
                cont()
                    .drop(1)
                    .inject("X")
                    .mode(Dir::Request, BodyMode::SKIP)
            }),
    ]);
    world.post(BodyLength::Exact(4));
    world.data(Dir::Request, "ab");
    world.data(Dir::Request, "cd");
    world.end(Dir::Request);
    assert_eq!(world.failures(), []);
    assert_eq!(world.upstream.text(), "Xbcd");
    assert!(world.upstream.ended);
}

/// 7.6: in a result while the head is held; later it is ignored.
#[test]
fn resizes_in_a_result() {
    for (at, legal) in [(REQ_H, true), (REQ_B, false)] {
        let mut world = World::new(vec![
            filter("a")
                .on(&[REQ_H])
                .body(Dir::Request, BodyMode::STREAM)
                .script(move |e| {
                    let then = if e.phase == at {
                        cont().flags(ResultFlags::RESIZES)
                    } else {
                        cont()
                    };
                    if e.phase == REQ_B && !e.body().is_empty() {
                        then.inject("xx")
                    } else {
                        then
                    }
                }),
        ]);
        world.post(BodyLength::Exact(2));
        world.data(Dir::Request, "ab");
        world.end(Dir::Request);
        assert_eq!(
            world.failures().is_empty(),
            legal,
            "{}",
            world.failure_texts()
        );
        if legal {
            assert_eq!(world.upstream.text(), "xxab");
            assert_eq!(world.upstream.length, Some(BodyLength::Unknown));
        } else {
            assert!(
                world.failure_texts().contains("longer"),
                "{}",
                world.failure_texts()
            );
        }
    }
}

#[test]
fn a_later_resizes_is_ignored() {
    let mut world = World::new(vec![
        filter("a")
            .body(Dir::Request, BodyMode::STREAM)
            .script(|_| cont().flags(ResultFlags::RESIZES)),
    ]);
    world.post(BodyLength::Exact(2));
    world.data(Dir::Request, "ab");
    world.end(Dir::Request);
    assert_eq!(world.failures(), []);
    assert_eq!(world.upstream.length, Some(BodyLength::Exact(2)));
}

#[test]
fn trailers_are_added_at_the_end() {
    for mode in [BodyMode::STREAM, BodyMode::WHOLE] {
        let mut world = World::new(vec![
            filter("b").on(&[REQ_T]),
            filter("a").body(Dir::Request, mode).script(|e| {
                if e.has(EventFlags::END_STREAM) {
                    cont().add_trailer("t", "1")
                } else {
                    cont()
                }
            }),
            filter("c").on(&[REQ_T]),
        ]);
        world.post(BodyLength::Unknown);
        world.data(Dir::Request, "ab");
        world.end(Dir::Request);
        assert_eq!(
            world.upstream.trailers,
            Some(vec![("t".into(), "1".into())])
        );
        assert_eq!(world.story_text().matches("b:REQ_T").count(), 0);
        assert_eq!(world.story_text().matches("c:REQ_T").count(), 1);
    }
}

#[test]
fn trailers_of_a_whole_message_with_a_length() {
    let mut world = World::new(vec![
        filter("a")
            .body(Dir::Request, BodyMode::WHOLE)
            .script(|_| cont().add_trailer("t", "1")),
    ]);
    world.post(BodyLength::Exact(2));
    world.data(Dir::Request, "ab");
    world.end(Dir::Request);
    assert_eq!(world.upstream.length, Some(BodyLength::Unknown));
    assert_eq!(
        world.upstream.trailers,
        Some(vec![("t".into(), "1".into())])
    );
}

/// PXG-TRL-001.
#[test]
fn trailers_where_they_cannot_be_added() {
    // A fixed length that has begun to leave; not the end; no feature.
    let specs: [fn() -> Spec; 3] = [
        || filter("a").body(Dir::Request, BodyMode::STREAM),
        || filter("a").on(&[REQ_H]),
        || {
            filter("a")
                .body(Dir::Request, BodyMode::WHOLE)
                .without(Feature::TRAILERS_OUT_REQUEST)
        },
    ];
    for spec in specs {
        for must in [false, true] {
            let mut world = World::new(vec![spec().script(move |e| {
                if e.phase == REQ_B && !e.has(EventFlags::END_STREAM) {
                    return cont();
                }
                let trailers = cont().add_trailer("t", "1");
                if must { trailers.must() } else { trailers }
            })]);
            world.post(BodyLength::Exact(2));
            world.data(Dir::Request, "ab");
            world.end(Dir::Request);
            assert_eq!(world.failures().is_empty(), !must);
            if !must {
                assert_eq!(world.stats("a").skipped_ops.get(), 1);
                assert_eq!(world.upstream.trailers, None);
                assert!(world.upstream.ended);
            }
        }
    }
}

#[test]
fn trailers_can_be_edited_and_removed() {
    for all in [false, true] {
        let mut world = World::new(vec![filter("a").on(&[REQ_T]).script(move |e| {
            assert!(e.has(EventFlags::END_STREAM));
            let op = |index| OpKind::DeleteAt {
                target: Target::TRAILERS,
                index,
            };
            if all {
                cont().op(op(0)).op(op(1))
            } else {
                cont().op(op(0))
            }
        })]);
        world.post(BodyLength::Unknown);
        world.end_with(Dir::Request, Some(&[("t", "1"), ("u", "2")]));
        let left = (!all).then(|| vec![("u".into(), "2".into())]);
        assert_eq!(world.upstream.trailers, left);
        assert!(world.upstream.ended);
    }
}

/// PXG-HDR-009: limits have their own reason.
#[test]
fn limits_of_a_batch() {
    let many = |n: usize| move |_: &Seen| (0..n).fold(cont(), |a, _| a.add("x", "1"));
    let limits = StreamLimits {
        max_ops: 1024,
        max_fields: 100,
        ..StreamLimits::default()
    };
    for (n, legal) in [(96, true), (97, false), (1024, false), (1025, false)] {
        let mut world = World::with(
            hub(),
            vec![filter("a").on(&[REQ_H]).script(many(n))],
            limits,
        );
        world.request(&[], BodyLength::None);
        if legal {
            assert_eq!(world.failures(), []);
            assert_eq!(world.upstream.head.as_ref().unwrap().len(), 100);
        } else {
            assert_eq!(world.failures(), [("a".into(), Reason::Limit)], "{n}");
        }
    }
    // Replacing is not growing.
    let mut world = World::with(
        hub(),
        vec![
            filter("a")
                .on(&[REQ_H])
                .script(|_| (0..1024).fold(cont(), |a, _| a.set("x", "1"))),
        ],
        limits,
    );
    world.request(&[("x", "0")], BodyLength::None);
    assert_eq!(world.failures(), []);
}

#[test]
fn routes() {
    let route = |name: &'static str| cont().op(OpKind::Route(Some(name.as_bytes())));
    let allowed = |p: &mut Policy| p.clusters = vec!["blue".into(), "green".into()];
    let cases: [(&str, bool); 2] = [("blue", true), ("red", false)];
    for (name, legal) in cases {
        let mut world = World::new(vec![
            filter("a")
                .on(&[REQ_H])
                .policy(allowed)
                .script(move |_| route(name).op(OpKind::Route(Some(b"green")))),
        ]);
        world.get();
        assert_eq!(world.failures().is_empty(), legal);
        let routes: Vec<_> = world
            .signals
            .iter()
            .filter(|s| matches!(s, Signal::Route(_)))
            .collect();
        if legal {
            let last = Signal::Route(Some(Bytes::from_static(b"green")));
            assert_eq!(routes.last(), Some(&&last));
        } else {
            assert!(routes.is_empty());
        }
    }
    // By apply, when routing is final.
    let mut world = World::new(vec![filter("a").on(&[REQ_H]).policy(allowed)]);
    world.get();
    assert_eq!(world.apply("a", route("blue")), Status::OK);
    assert_eq!(world.stats("a").skipped_ops.get(), 1);
    // In a response phase it is illegal.
    let mut world = World::new(vec![
        filter("a")
            .on(&[RES_H])
            .policy(allowed)
            .script(move |_| route("blue")),
    ]);
    world.get();
    world.ok("x");
    assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
}

/// 4.4: indices count in what was delivered.
#[test]
fn indices_count_in_a_projected_view() {
    let wanted = |d: &mut Declared| {
        let phases = phase_bit(REQ_H);
        d.projection = vec![(b"b".to_vec(), phases), (b":path".to_vec(), phases)];
    };
    let world_with = |answer: fn() -> Answer| {
        let mut world = World::new(vec![
            filter("a")
                .on(&[REQ_H])
                .declare(wanted)
                .script(move |_| answer()),
        ]);
        world.request(
            &[("te", "x"), ("b", "1"), ("a", "2"), ("b", "3")],
            BodyLength::None,
        );
        world
    };
    let world = world_with(|| cont().set_at(2, "9").del_at(1));
    assert_eq!(world.events()[0].fields.len(), 3);
    assert_eq!(plain(&world), ["te=x", "a=2", "b=9"]);
    let world = world_with(|| cont().set_at(0, "/new"));
    assert_eq!(world.upstream.field(":path"), Some("/new"));
    let world = world_with(|| cont().del_at(0));
    assert_eq!(world.failures().len(), 1, ":path");
    let world = world_with(|| cont().del_at(3));
    assert_eq!(world.failures().len(), 1, "beyond the view");
}

/// Trailers are not projected.
#[test]
fn indices_of_trailers_count_in_the_trailers() {
    let mut world = World::new(vec![
        filter("a")
            .on(&[REQ_T])
            .declare(|d| d.projection = vec![(b"b".to_vec(), !0)])
            .script(|_| {
                cont().op(OpKind::DeleteAt {
                    target: Target::TRAILERS,
                    index: 1,
                })
            }),
    ]);
    world.post(BodyLength::Unknown);
    world.end_with(Dir::Request, Some(&[("t", "1"), ("u", "2")]));
    assert_eq!(world.failures(), []);
    assert_eq!(
        world.upstream.trailers,
        Some(vec![("t".into(), "1".into())])
    );
}

/// PXG-OBS-003: a foreign metric is skipped.
#[test]
fn metrics() {
    let world = at_head(|| {
        cont()
            .op(OpKind::Metric { id: 1, value: 1 })
            .op(OpKind::Metric { id: 2, value: 1 })
    });
    assert_eq!(world.failures(), []);
    assert_eq!(world.stats("a").skipped_ops.get(), 1);
}

#[test]
fn observe_refuses_operations_on_body_and_fields() {
    let answers: [fn() -> Answer; 4] = [
        || cont().drop(0),
        || cont().inject("x"),
        || cont().set("x", "1"),
        || cont().add_trailer("x", "1"),
    ];
    for answer in answers {
        let mut world = World::new(vec![
            filter("a")
                .body(Dir::Request, BodyMode::OBSERVE)
                .script(move |_| answer()),
        ]);
        world.post(BodyLength::Unknown);
        world.data(Dir::Request, "ab");
        assert_eq!(world.failures(), [("a".into(), Reason::Invalid)]);
    }
}
