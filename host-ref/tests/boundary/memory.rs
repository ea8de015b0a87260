//! Owned buffers on every path, and lent memory.

use super::*;

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
