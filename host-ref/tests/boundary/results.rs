//! What results say, and results that do not hold together.

use super::*;

#[test]
fn everything_that_a_result_may_say_arrives() {
    let (host, _) = host();
    let (_, filter) = filter_of(&host, "all_operations");
    let fields = [FieldView::new(b"name", b"value")];
    let event = EventView {
        fields: &fields,
        user: 41,
        ..event(Phase::REQUEST_HEADERS, 0)
    };
    call(&filter, &event, |outcome| {
        let o = outcome.unwrap();
        assert_eq!(
            (o.action, o.flags.0, o.user, o.unsubscribe),
            (Action::MORE, 3, 42, 1 << 7)
        );
        assert_eq!(
            (o.body_mode, o.more_bytes, o.pend_ns),
            ([BodyMode::UNSET, BodyMode::SKIP], 11, 12)
        );
        assert_eq!(o.error, b"why");
        assert!(o.reply.is_none());
        let must: Vec<_> = o.ops.iter().map(|op| op.must).collect();
        assert!(must[0] && !must[1..].contains(&true));
        assert!(o.ops[1].sensitive && !o.ops[0].sensitive);
        let kinds: Vec<_> = o.ops.iter().map(|op| &op.kind).collect();
        assert!(matches!(
            kinds[..],
            [
                OpKind::Set {
                    target: Target::HEADERS,
                    name: b"name",
                    value: b"value"
                },
                OpKind::Add {
                    target: Target::TRAILERS,
                    name: b"t",
                    value: b"scratch"
                },
                OpKind::Delete {
                    target: Target::HEADERS,
                    name: b"gone"
                },
                OpKind::SetAt {
                    index: 3,
                    value: b"",
                    ..
                },
                OpKind::DeleteAt { index: 4, .. },
                OpKind::Pass(5),
                OpKind::Drop(6),
                OpKind::Inject(Payload::Borrowed(b"in")),
                OpKind::BodyWrite {
                    bytes: Payload::Shared(_),
                    end: true
                },
                OpKind::Metadata {
                    namespace: b"ns",
                    key: b"key",
                    value: b"v"
                },
                OpKind::Metric { id: 9, value: -3 },
                OpKind::Route(Some(b"blue")),
                OpKind::Route(None),
                OpKind::Unknown(4000),
            ]
        ));
    });
}

#[test]
fn what_is_empty_is_null() {
    let (host, _) = host();
    let (_, filter) = filter_of(&host, "plain");
    // A small number in a pointer ends a Go process.
    assert_eq!(ask(&filter, WAKE, 4), 1);
    assert_eq!(ask(&filter, WAKE, 3), 0);
}

#[test]
fn entries_that_a_host_cannot_serve_are_null() {
    for (features, null) in [
        (set_of(&[]), 0b111),
        (set_of(&[Feature::PEND_RESPONSE_BODY]), 0b110),
        (set_of(&[Feature::APPLY]), 0b001),
        (FEATURES, 0),
    ] {
        let (host, _) = host_with(Hub::new(3, HubLimits::default()), features);
        let (_, filter) = filter_of(&host, "null_entries");
        assert_eq!(ask(&filter, LOG, 0), 3 << 8 | null);
    }
}

#[test]
fn results_that_do_not_hold_together() {
    let (host, _) = host();
    let (_, filter) = filter_of(&host, "bad_results");
    let good = [0, 31];
    let (arg, unsupported, limit) = (Status::ARG, Status::UNSUPPORTED, Status::LIMIT);
    let bad: &[(u64, Status, &[&str])] = &[
        (
            1,
            arg,
            &["result.size: found 120, expected 128", "PXG-ABI-002"],
        ),
        (2, arg, &["result.size: found 192, expected 128"]),
        (
            3,
            unsupported,
            &[
                "result.flags: found 0x10, expected no bits beside 0x3",
                "PXG-ABI-005",
            ],
        ),
        (4, unsupported, &["result.reserved0: found 0x1"]),
        (
            5,
            unsupported,
            &["result.unsubscribe: found 0x4000000000000"],
        ),
        (
            6,
            unsupported,
            &["result.body_mode[1]: found 7, expected 0 to 4"],
        ),
        (
            7,
            limit,
            &["result.ops: found 33 elements, expected at most 32"],
        ),
        (
            8,
            arg,
            &["result.ops: found the pointer 0x0 for 1 elements"],
        ),
        (9, arg, &["result.ops: found the pointer", "8-aligned"]),
        (
            10,
            arg,
            &[
                "result.ops: found memory that begins in a lent region and ends 64 bytes beyond",
                "PXG-MEM-012",
            ],
        ),
        (
            11,
            arg,
            &[
                "result.ops[0].key: found memory",
                "ends 7 bytes beyond",
                "Ask scratch_more",
            ],
        ),
        (
            12,
            arg,
            &["result.ops[0].val: found memory", "ends 1 bytes beyond"],
        ),
        (
            13,
            arg,
            &["result.ops[0].val: found memory", "ends 1 bytes beyond"],
        ),
        (
            14,
            arg,
            &["result.ops[0].key: found NULL with the length 1"],
        ),
        (
            15,
            unsupported,
            &["result.ops[0].key.flags: found 0x40, expected no bits beside 0x3"],
        ),
        (16, arg, &["result.ops[0].key: found ABSENT"]),
        (17, unsupported, &["result.ops[0].flags: found 0x8000"]),
        (
            18,
            unsupported,
            &["result.ops[0].target: found 9, expected HEADERS (0) or TRAILERS (1)"],
        ),
        (19, arg, &["result.ops[0].target: found 3"]),
        (
            20,
            unsupported,
            &["result.ops[0].val.bytes.flags: found 0x40, expected no bits beside 0x33"],
        ),
        (
            21,
            arg,
            &["result.ops[0].val.release: found NULL with OWNED, expected a function"],
        ),
        (
            22,
            arg,
            &["result.ops[0].val.release: found a function or its ctx without OWNED"],
        ),
        (
            23,
            arg,
            &["result.ops[0].u0: found a value, expected zero: an operation of kind 1"],
        ),
        (
            24,
            arg,
            &["result.ops[0].val: found a value, expected zero"],
        ),
        (
            25,
            arg,
            &["result.ops[0].key: found \"elsewhere\", expected \"cluster\" or \"recompute\""],
        ),
        (
            26,
            arg,
            &[
                "result.ops[0].u0: found a namespace of 4 bytes, expected at most the 3 bytes of key",
            ],
        ),
        (27, arg, &["result.ops[0].flags (END): found a value"]),
        (
            28,
            arg,
            &["result.reply: found NULL with the action 4, expected a reply"],
        ),
        (29, arg, &["result.reply: found a reply with the action 1"]),
        (30, arg, &["reply.size: found 40, expected at least 80"]),
        (
            32,
            unsupported,
            &[
                "reply: found a byte 0x07 at offset 90, beyond the 80 bytes",
                "ask for its feature first",
                "PXG-ABI-005",
            ],
        ),
        (
            33,
            unsupported,
            &["reply.flags: found 0x100, expected no bits beside 0x7"],
        ),
        (
            34,
            arg,
            &["reply.fields: found the pointer 0x0 for 2 elements"],
        ),
        (
            35,
            arg,
            &["reply.fields[1].value: found NULL with the length 3"],
        ),
        (
            36,
            limit,
            &["reply.fields: found 1000 elements, expected at most 16"],
        ),
        (
            37,
            arg,
            &["reply.size: found 5000", "no struct of version 1"],
        ),
        (
            38,
            limit,
            &["result.ops: found 18446744073709551615 elements"],
        ),
        (39, arg, &["result.error: found NULL"]),
        (40, unsupported, &["result.ops[1].flags: found 0x4000"]),
        (
            41,
            arg,
            &["result.ops[0].val: found a value, expected zero"],
        ),
        (
            42,
            arg,
            &["result.ops[0].target: found a value, expected zero"],
        ),
        (43, arg, &["result.reply: found the pointer", "8-aligned"]),
    ];
    for case in good {
        call(&filter, &event(LOG, case), |outcome| {
            outcome
                .map(|_| ())
                .unwrap_or_else(|e| panic!("{case}: {e}"))
        });
    }
    for (case, status, parts) in bad {
        call(&filter, &event(LOG, *case), |outcome| {
            let fault = outcome.map(|_| ()).expect_err(&format!("case {case}"));
            assert_eq!(fault.status, *status, "case {case}: {fault}");
            assert_says(&fault, parts);
        });
    }
    // The guest is as good as before.
    call(&filter, &event(LOG, 0), |outcome| assert!(outcome.is_ok()));
}

#[test]
fn the_user_of_a_refused_result_ends_with_the_stream() {
    let mut site = Site::new();
    let (_, filter) = filter_of(&site.host, "refused_user");
    let stream = site.request(&filter, 0);
    site.end(stream);
    assert_eq!(ask(&filter, WAKE, 0), 99, "PXG-EVT-007");
}

/// What becomes of a request in a case of `plain_cases`: its fields behind the guest, or why it failed.
fn plain_case(site: &mut Site, filter: &Arc<Filter>, case: u64) -> Result<Vec<String>, String> {
    let mut stream = site.request(filter, case);
    site.worker.end_batch();
    site.deliver(&mut stream);
    let head = site.head(&mut stream).ok_or(stream.details().to_owned());
    site.end(stream);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    head.map(|head| {
        let mut views = Views::new();
        head.view(&mut views);
        let fields = views.iter().skip(3);
        let mark = |f: &FieldView<'_>| if f.is_sensitive() { "!" } else { "" };
        fields
            .map(|f| format!("{}={}{}", text(f.name()), text(f.value()), mark(f)))
            .collect()
    })
}

#[test]
fn edits_by_name_are_judged_as_all_others_are() {
    let mut site = Site::new();
    let (_, filter) = filter_of(&site.host, "plain_cases");
    let skipped = || filter.stats.skipped_ops.get();
    for base in [0, 10] {
        let mut run = |case| plain_case(&mut site, &filter, base + case);
        let case = |n: u64| format!("case={}", base + n);
        assert_eq!(run(0).unwrap(), [":path=/", &case(0)]);
        let both = [":path=/", &case(1), "x-set=1", "x-add=2!"];
        assert_eq!(run(1).unwrap(), both);
        let before = skipped();
        assert_eq!(run(5).unwrap(), [":path=/", &case(5), "x-set=1"]);
        assert_eq!(skipped(), before + 1, "trailers cannot be given here");
        assert_eq!(run(7).unwrap(), [":path=/new", &case(7), "x-set=1"]);
        assert_eq!(run(8).unwrap(), [":path=/", "x-set=1"]);
        assert!(run(6).unwrap_err().contains("HEADER_ADD) says MUST"));
    }
    for (case, text) in [
        (2, "\"X-Upper\" is not a field name"),
        (3, "\"host\" is the host's own"),
        (4, "the value of \"x-add\""),
        (9, "\"\" is not a field name"),
    ] {
        let why = plain_case(&mut site, &filter, case).unwrap_err();
        assert_says(&why, &["invalid", text]);
        // Refused where it is handed in, so that the guest can still mend it: the stream waits on.
        assert!(plain_case(&mut site, &filter, 10 + case).is_err());
        assert_eq!(status(ask(&filter, WAKE, 0)), Status::ARG);
        assert!(!site.log.with(text).is_empty());
    }
}
