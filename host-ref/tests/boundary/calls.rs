//! Calls of the host's functions: what they refuse, whose values they take, and from which thread.

use super::*;

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
