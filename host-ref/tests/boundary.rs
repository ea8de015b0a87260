//! Results that do not hold together, owned buffers on every path, lent memory, and calls from any thread.

mod support;

use std::sync::Arc;

use bytes::Bytes;
use proxy_golang_abi::feature::{Feature, set_of};
use proxy_golang_abi::{Action, BodyMode, LogLevel, Phase, Status, Target};
use proxy_golang_host::engine::{
    BodyLength, Chain, Cx, EventView, FieldList, FieldView, Fields, Filter, Hub, HubLimits, OpKind,
    Part, Payload, Stream, StreamLimits, Views, Worker,
};
use proxy_golang_host::ffi::MetricValue;
use proxy_golang_host::loader::Host;
use support::*;

const LOG: Phase = Phase::LOG;
const WAKE: Phase = Phase::WAKE;

fn status(user: u64) -> Status {
    Status(i32::try_from(user.cast_signed()).expect("a status"))
}

/// A host, and a stream's worker on its hub.
struct Site {
    host: Arc<Host>,
    log: Log,
    worker: Worker,
}

impl Site {
    fn new() -> Self {
        let hub = Hub::new(1, HubLimits::default());
        let (host, log) = host_of(Arc::clone(&hub));
        Self {
            host,
            log,
            worker: Worker::new(hub, 0, || 0),
        }
    }

    /// A request through the filter, with the number of a case.
    fn request(&mut self, filter: &Arc<Filter>, case: u64) -> Stream<FieldList> {
        let mut stream = Stream::new(
            Chain::new(vec![Arc::clone(filter)]),
            1,
            StreamLimits::default(),
        );
        let mut head = FieldList::new();
        for (name, value) in [
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/"),
        ] {
            head.push(name.as_bytes(), value.as_bytes());
        }
        head.push(b"case", case.to_string().as_bytes());
        stream.request_head(&mut self.cx(), head, BodyLength::None);
        stream
    }

    fn cx(&mut self) -> Cx<'_> {
        Cx {
            worker: &mut self.worker,
            attrs: &(),
        }
    }

    fn deliver(&mut self, stream: &mut Stream<FieldList>) {
        while let Some(mail) = self.worker.take_mail() {
            stream.deliver(&mut self.cx(), mail);
        }
    }

    fn end(&mut self, mut stream: Stream<FieldList>) {
        stream.close(&mut self.cx(), proxy_golang_abi::EndReason::CLIENT_ABORT);
    }

    /// The request's head, if it was given out.
    fn head(&mut self, stream: &mut Stream<FieldList>) -> Option<FieldList> {
        match stream.request_part(&mut self.cx())? {
            Part::Head { head, .. } => Some(head),
            _ => panic!("expected a head"),
        }
    }
}

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

/// How many buffers were released by a direct call of a path.
fn released_by(filter: &Filter, case: u64, ok: bool) -> u64 {
    let before = ask(filter, WAKE, 0);
    call(filter, &event(LOG, case), |outcome| {
        assert_eq!(outcome.is_ok(), ok, "path {case}: {outcome:?}");
        // They are still there: what is owned is released by its last user.
        assert!(
            outcome.is_err() || case >= 7 || ask(filter, WAKE, 0) == before,
            "path {case}"
        );
    });
    ask(filter, WAKE, 0) - before
}

#[test]
fn an_owned_buffer_is_released_once_on_every_path() {
    let (host, _) = host();
    let (_, filter) = filter_of(&host, "owned_buffers");
    for (case, ok, released) in [
        (0, true, 1),
        (1, false, 1),
        (2, false, 40),
        (3, true, 1),
        (4, true, 1),
        (5, false, 1),
        (6, true, 1),
        (7, true, 1),
        (8, true, 1),
        (9, true, 1),
        (10, true, 1),
        (15, false, 1),
        (16, true, 1),
    ] {
        assert_eq!(released_by(&filter, case, ok), released, "path {case}");
        if (8..=10).contains(&case) {
            assert_eq!(status(ask(&filter, WAKE, 1)), Status::STALE, "path {case}");
        }
    }
}

#[test]
fn an_owned_buffer_lives_as_long_as_its_last_user_on_any_thread() {
    let (host, _) = host();
    let (_, filter) = filter_of(&host, "owned_buffers");
    let kept = call(&filter, &event(LOG, 0), |outcome| {
        match &outcome.unwrap().ops[0].kind {
            OpKind::Inject(bytes) => bytes.clone().into_bytes(),
            other => panic!("{other:?}"),
        }
    });
    assert_eq!((&kept[..], ask(&filter, WAKE, 0)), (&b"inject"[..], 0));
    std::thread::spawn(move || drop(kept)).join().unwrap();
    assert_eq!(ask(&filter, WAKE, 0), 1);
    // A field's value is copied by its user; a static part of a reply is nobody's to release.
    call(&filter, &event(LOG, 3), |outcome| {
        match &outcome.unwrap().ops[0].kind {
            OpKind::Set { value, .. } => assert_eq!(value, b"inject"),
            other => panic!("{other:?}"),
        }
    });
    let part = call(&filter, &event(LOG, 4), |outcome| {
        let reply = outcome.unwrap().reply.unwrap();
        assert_eq!(reply.body[0].as_slice(), b"part");
        reply.body[1].clone().into_bytes()
    });
    assert_eq!(
        (part, ask(&filter, WAKE, 0)),
        (Bytes::from_static(b"static"), 3)
    );
}

#[test]
fn completions_release_what_they_own_whatever_they_answer() {
    let mut site = Site::new();
    let (_, filter) = filter_of(&site.host, "owned_buffers");
    for (case, answer, released) in [
        (11, Status::STATE, 1),
        (12, Status::ARG, 1),
        // Cut off before its operations: they were not handed over.
        (13, Status::ARG, 0),
        // Accepted, and the event answered something else.
        (14, Status::OK, 1),
        // A kind that the token's phase cannot have.
        (17, Status::ARG, 1),
    ] {
        let before = ask(&filter, WAKE, 0);
        let mut stream = site.request(&filter, case);
        assert_eq!(status(ask(&filter, WAKE, 1)), answer, "path {case}");
        site.deliver(&mut stream);
        site.end(stream);
        assert_eq!(ask(&filter, WAKE, 0) - before, released, "path {case}");
    }
}

#[test]
fn a_completion_that_is_never_applied_releases_what_it_owns() {
    let mut site = Site::new();
    let (_, filter) = filter_of(&site.host, "completer");
    let stream = site.request(&filter, 0);
    let token = ask(&filter, WAKE, 0);
    ask(&filter, LOG, 2);
    assert_eq!(status(ask(&filter, WAKE, token)), Status::OK);
    assert_eq!(ask(&filter, LOG, 1), 0, "on its way");
    // The stream dies before its turn comes; the mail comes to nobody.
    site.end(stream);
    while let Some(mail) = site.worker.take_mail() {
        drop(mail);
    }
    assert_eq!(
        (ask(&filter, LOG, 1), ask(&filter, LOG, 0)),
        (1, 0),
        "released; not cancelled"
    );
}

#[test]
fn complete_refuses_what_is_no_result_and_the_token_lives_on() {
    let mut site = Site::new();
    let (_, filter) = filter_of(&site.host, "complete_cases");
    let (ok, arg, state, unsupported) = (0, -3, -2, -4);
    let words: &[(u64, i64, &str)] = &[
        (
            0,
            arg,
            "complete: answered ARG: found the result pointer 0x0",
        ),
        (1, arg, "8-aligned"),
        (2, arg, "result.size: found 120, expected at least 128"),
        (
            3,
            unsupported,
            "result: found a byte 0x80 at offset 159, beyond the 128 bytes",
        ),
        (4, arg, "result.size: found 100000"),
        (5, arg, "found the action UNSET (0), expected a decision"),
        (
            6,
            state,
            "found the action 2, expected CONTINUE, MORE, REPLY, RESET or ERROR; the token lives on",
        ),
        (7, state, "found the action 99"),
        (
            8,
            unsupported,
            "complete: answered UNSUPPORTED: result.flags: found 0x20",
        ),
        // What needs no state of the stream is judged before the answer (PXG-ASY-020).
        (
            10,
            arg,
            "complete: answered ARG: result.ops[0]: the value of \"x-split\" has a control byte",
        ),
        (
            11,
            arg,
            "complete: answered ARG: a reply with status 99; 200 to 599 are legal",
        ),
    ];
    for (case, answer, words) in words {
        let stream = site.request(&filter, *case);
        let then = ok;
        assert_eq!(
            ask(&filter, WAKE, 0).cast_signed(),
            answer * 1000 + then,
            "case {case}"
        );
        let record = &site.log.with(words)[..];
        assert!(!record.is_empty(), "case {case}: {:?}", site.log.records());
        assert_eq!(
            (record[0].0, record[0].1.as_str()),
            (LogLevel::WARN, "test-guest")
        );
        site.end(stream);
    }
    // A good one retires it.
    let stream = site.request(&filter, 9);
    assert_eq!(ask(&filter, WAKE, 0).cast_signed(), -1);
    site.end(stream);
}

#[test]
fn apply_refuses_what_needs_a_direction() {
    let mut site = Site::new();
    let (_, filter) = filter_of(&site.host, "apply_cases");
    for (case, answer) in [
        (0, Status::STATE),
        (1, Status::STATE),
        (2, Status::STATE),
        (3, Status::ARG),
        (4, Status::ARG),
        (5, Status::ARG),
        (6, Status::ARG),
        (7, Status::ARG),
        (8, Status::ARG),
        (9, Status::ARG),
        (10, Status::OK),
        (11, Status::ARG),
    ] {
        let stream = site.request(&filter, case);
        assert_eq!(
            status(ask(&filter, WAKE, 0)),
            answer,
            "case {case}: {:?}",
            site.log.records().last()
        );
        site.end(stream);
    }
}

#[test]
fn a_token_belongs_to_one_library() {
    let mut site = Site::new();
    let ((_, one), (_, two)) = (
        filter_of(&site.host, "completer"),
        filter_of(&site.host, "completer"),
    );
    let (mut first, mut second) = (site.request(&one, 0), site.request(&two, 0));
    let (of_one, of_two) = (ask(&one, WAKE, 0), ask(&two, WAKE, 0));
    assert_ne!(of_one, of_two);
    // Swapped: both are told off, and both tokens live on.
    assert_eq!(status(ask(&one, WAKE, of_two)), Status::STALE);
    assert_eq!(status(ask(&two, WAKE, of_one)), Status::STALE);
    assert!(site.head(&mut first).is_none() && site.head(&mut second).is_none());
    assert_eq!(status(ask(&one, WAKE, of_one)), Status::OK);
    assert_eq!(status(ask(&two, WAKE, of_two)), Status::OK);
    assert_eq!(status(ask(&two, WAKE, of_two)), Status::STALE, "once");
    // Each guest's own thread completed it; its owned value arrives and is released.
    // Both streams have the same key here: the mail is told apart by its order.
    let mail = site.worker.take_mail().expect("the first completion");
    first.deliver(&mut site.cx(), mail);
    site.deliver(&mut second);
    let head = site.head(&mut first).expect("completed");
    assert_eq!(head.get(b"x-by"), Some(&b"completer"[..]));
    assert!(site.head(&mut second).is_some());
    site.end(first);
    site.end(second);
    assert_eq!(
        (ask(&one, LOG, 1), ask(&two, LOG, 1)),
        (2, 3),
        "released, refused ones too"
    );
}

#[test]
fn lent_memory_is_as_the_spec_says() {
    let (host, _) = host();
    let (_, filter) = filter_of(&host, "scratch");
    // A thread of its own: its scratch has not been used before.
    std::thread::spawn(move || {
        for case in [0, 1, 2, 2, 3] {
            assert_eq!(ask(&filter, LOG, case), 1, "case {case}");
        }
        filter.guest.cancel(1, 2, 3, 0);
        assert_eq!(ask(&filter, LOG, 4), 1, "none in on_cancel");
        call(&filter, &event(LOG, 5), |outcome| {
            let ops = outcome.unwrap().ops;
            assert!(
                ops.iter()
                    .zip(0..)
                    .all(|(op, n)| matches!(op.kind, OpKind::Pass(m) if m == n))
            );
            assert_eq!(ops.len(), 20);
        });
    })
    .join()
    .unwrap();
}

#[test]
fn a_wrong_ctx_is_stale_and_nothing_else() {
    let (host, log) = host();
    let (_, filter) = filter_of(&host, "unknown_ctx");
    assert_eq!(ask(&filter, LOG, 0), 1, "{:?}", log.records());
    assert!(log.with("unseen").is_empty());
}

#[test]
fn guests_log_from_any_thread() {
    let (host, log) = host();
    let (_, filter) = filter_of(&host, "log_from_threads");
    ask(&filter, LOG, 0);
    let mut lines: Vec<_> = log
        .with("thread ")
        .into_iter()
        .map(|(_, _, text)| text)
        .collect();
    lines.sort();
    lines.dedup();
    assert_eq!(lines.len(), 400);
}

#[test]
fn what_is_logged_is_clean_and_short_and_the_page_is_read() {
    let (host, log) = host();
    let (_, filter) = filter_of(&host, "log_from_threads");
    host.page().set_clock(5, 7);
    host.page().set_draining(true);
    assert_eq!(ask(&filter, LOG, 1), 2 | 1 << 8 | 5 << 16 | 7 << 32);
    let big = &log.with("xxx")[0];
    assert!(
        big.2.len() < 8300 && big.2.ends_with(" ... (1040384 bytes more)"),
        "{}",
        big.2.len()
    );
    assert_eq!((big.0, big.1.as_str()), (LogLevel::WARN, "test-guest"));
    assert_eq!(log.with("a\\r\\nb\\u{0}\\u{1b}[31m\\xff").len(), 1);
    assert!(log.with("below").is_empty());
    assert_eq!(log.with("no level")[0].0, LogLevel::ERROR);
    let records = log.records().len();
    host.page().set_log_level(LogLevel::OFF);
    ask(&filter, LOG, 1);
    assert_eq!(log.records().len(), records);
    host.page().set_log_level(LogLevel::DEBUG);
    ask(&filter, LOG, 1);
    assert_eq!(log.with("below").len(), 1);
}

#[test]
fn metrics_are_defined_and_recorded_by_their_owner() {
    let (host, log) = host();
    let ((owner, one), (_, two)) = (filter_of(&host, "metrics"), filter_of(&host, "metrics"));
    assert_eq!(ask(&one, LOG, 0), 1, "{:?}", log.records());
    assert_eq!(ask(&one, LOG, 1), 1);
    assert_eq!(ask(&two, LOG, 2), 1);
    let id = u32::try_from(ask(&one, LOG, 3)).unwrap();
    // The METRIC operation.
    assert_eq!(one.guest.record_metric(id, 2), Status::OK);
    assert_eq!(two.guest.record_metric(id, 2), Status::NOTFOUND);
    let metrics = host.metrics();
    let hits = &metrics[0];
    assert_eq!(
        (hits.name.as_str(), hits.guest.as_str(), hits.library),
        ("hits", "test-guest", owner.id())
    );
    assert_eq!(hits.labels, [("code".to_owned(), "200".to_owned())]);
    assert_eq!(hits.value, MetricValue::Counter(7));
    assert_eq!(
        (metrics[1].name.as_str(), &metrics[1].value),
        ("depth", &MetricValue::Gauge(-2))
    );
    assert_eq!(metrics.len(), 2);
    assert_says(
        &log.with("pxg.metrics/1 define: answered ARG: metric \"no-name\"")[0].2,
        &["expected names"],
    );
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
