//! Lives of configurations, streams, tokens and workers that a host must not lead.

use proxy_golang_abi::{Action, EventFlags as F, Phase, Status};

use super::rig::{Rig as R, all_features, op, terms, with_ops};
use super::{Ev, Rig, Wrong, answer, config, each_breaks_its_rule};

fn go() -> proxy_golang_conformance::parts::model::Outcome {
    answer(Action::CONTINUE)
}

/// A stream that pends at its headers; its token.
fn pending(r: &mut Rig) -> u64 {
    r.configure(&config());
    let mut o = answer(Action::PENDING);
    o.user = 7;
    r.send(&Ev::headers(), &o);
    r.last_token
}

fn mine(e: Ev) -> Ev {
    e.edit(|e| e.user = 7)
}

/// A stream with `user` 7.
fn running(r: &mut Rig) {
    r.configure(&config());
    let mut o = go();
    o.user = 7;
    r.send(&Ev::headers(), &o);
}

const WRONG: &[Wrong] = &[
    (
        "PXG-EVT-003",
        "an event of a direction that is PENDING",
        |r| {
            pending(r);
            r.send(&mine(Ev::body(0, "x")), &go());
        },
    ),
    ("PXG-EVT-003", "an event of the peer without DUPLEX", |r| {
        running(r);
        r.send(&mine(Ev::body(0, "x")), &answer(Action::PENDING));
        r.send(&mine(Ev::response()), &go());
    }),
    ("PXG-ASY-008", "LOG before on_cancel", |r| {
        pending(r);
        r.send(&mine(Ev::log()), &go());
    }),
    ("PXG-EVT-017", "the end of a stream that is PENDING", |r| {
        let mut c = config();
        c.subscribe &= !(1 << 7);
        r.configure(&c);
        let mut o = answer(Action::PENDING);
        o.user = 7;
        r.send(&Ev::headers(), &o);
        r.end(5, 7);
    }),
    ("PXG-ASY-001", "on_cancel twice", |r| {
        let t = pending(r);
        r.cancel(5, t, 7);
        r.cancel(5, t, 7);
    }),
    ("PXG-ASY-001", "on_cancel of a token that nobody has", |r| {
        running(r);
        r.cancel(5, 0x1234, 7);
    }),
    (
        "PXG-ASY-001",
        "on_cancel of an event that did not pend",
        |r| {
            running(r);
            let t = r.last_token;
            r.cancel(5, t, 7);
        },
    ),
    ("PXG-ASY-009", "on_cancel after OK", |r| {
        let t = pending(r);
        r.complete(t, &go(), Status::OK);
        r.cancel(5, t, 7);
    }),
    ("PXG-ASY-009", "STALE without on_cancel", |r| {
        let mut c = config();
        c.subscribe &= !(1 << 7);
        r.configure(&c);
        let mut o = answer(Action::PENDING);
        o.user = 7;
        r.send(&Ev::headers(), &o);
        let t = r.last_token;
        r.complete(t, &go(), Status::STALE);
        r.end(5, 7);
    }),
    ("PXG-EVT-017", "on_cancel after LOG", |r| {
        let t = pending(r);
        // The cancel of the request comes before LOG, that of a token which LOG should not have found after it.
        r.cancel(5, t, 7);
        r.send(&mine(Ev::log()), &go());
        let f = r.library.cancel_enter(1, 7, 5, t, 0, None);
        r.take(only(f, "PXG-EVT-017"));
        r.library.cancel_leave(5);
    }),
    (
        "PXG-EVT-001",
        "an event after the direction was cancelled",
        |r| {
            let t = pending(r);
            r.cancel(5, t, 7);
            r.send(&mine(Ev::body(0, "x")), &go());
        },
    ),
    ("PXG-EVT-006", "an end with user 0", |r| {
        r.configure(&config());
        r.send(&Ev::headers(), &go());
        let f = r.library.stream_end_enter(1, 0, 5, 0, None);
        r.take(only(f, "PXG-EVT-006"));
    }),
    ("PXG-EVT-006", "an end twice", |r| {
        running(r);
        r.send(&mine(Ev::log()), &go());
        r.end(5, 7);
        r.end(5, 7);
    }),
    ("PXG-EVT-006", "an event after the end", |r| {
        running(r);
        r.send(&mine(Ev::log()), &go());
        r.end(5, 7);
        let f = after_end(r, Phase::WAKE);
        r.take(only(f, "PXG-EVT-006"));
    }),
    ("PXG-ASY-003", "a handle that comes again", |r| {
        running(r);
        r.send(&mine(Ev::log()), &go());
        r.end(5, 7);
        r.send(&Ev::headers(), &go());
    }),
    ("PXG-EVT-009", "an end without LOG", |r| {
        running(r);
        r.end(5, 7);
    }),
    ("PXG-EVT-009", "LOG twice", |r| {
        running(r);
        r.send(&mine(Ev::log()), &go());
        r.send(&mine(Ev::log()), &go());
    }),
    ("PXG-EVT-007", "user that is lost", |r| {
        running(r);
        r.send(&Ev::body(0, "x").edit(|e| e.user = 8), &go());
    }),
    ("PXG-EVT-007", "on_cancel with another user", |r| {
        let t = pending(r);
        r.cancel(5, t, 8);
    }),
    ("PXG-CFG-007", "another configuration for a stream", |r| {
        running(r);
        let mut other = config();
        other.config = 2;
        r.configure_as("other", 0, &other);
        r.send(&mine(Ev::body(0, "x")).edit(|e| e.config = 2), &go());
    }),
    (
        "PXG-CFG-005",
        "an event of a configuration that nobody made",
        |r| {
            r.send(&Ev::headers(), &go());
        },
    ),
    ("PXG-CFG-005", "a drop twice", |r| {
        r.configure(&config());
        r.drop_config(1);
        r.drop_config(1);
    }),
    ("PXG-CFG-005", "a drop with a stream", |r| {
        running(r);
        r.drop_config(1);
    }),
    ("PXG-CFG-005", "a drop with a token", |r| {
        pending(r);
        r.drop_config(1);
    }),
    ("PXG-CFG-003", "a parent that is not live", |r| {
        let mut child = config();
        child.config = 2;
        r.configure_as("main", 1, &child);
    }),
    ("PXG-CFG-003", "a parent dropped before its child", |r| {
        r.configure(&config());
        let mut child = config();
        child.config = 2;
        r.configure_as("main", 1, &child);
        r.drop_config(1);
    }),
    ("PXG-CFG-001", "a name that is none", |r| {
        r.configure_as("a b", 0, &config())
    }),
    (
        "PXG-CFG-001",
        "an event of a VALIDATE_ONLY configuration",
        |r| {
            r.configure_with("main", 0, 1, terms().features, &config());
            r.send(&Ev::headers(), &go());
        },
    ),
    ("PXG-NEG-006", "an undefined flag of a configuration", |r| {
        r.configure_with("main", 0, 4, terms().features, &config());
    }),
    ("PXG-NEG-008", "features beyond the table's", |r| {
        let mut f = terms().features;
        f[0] |= 1 << 60;
        r.configure_with("main", 0, 0, f, &config());
    }),
    ("PXG-ASY-003", "a token that comes again", |r| {
        running(r);
        let t = r.last_token;
        r.send(&mine(Ev::body(0, "x")).edit(|e| e.token = Some(t)), &go());
    }),
    ("PXG-ASY-001", "no token where the phase may pend", |r| {
        r.configure(&config());
        r.send(&Ev::headers().edit(|e| e.token = Some(0)), &go());
    }),
    ("PXG-ASY-001", "a token where the phase may not pend", |r| {
        let mut c = config();
        c.pend_phases = 0;
        r.configure(&c);
        r.send(&Ev::headers(), &go());
    }),
    ("PXG-EVT-016", "a stream without a handle", |r| {
        r.configure(&config());
        r.send(&Ev::headers().edit(|e| e.stream = 0), &go());
    }),
    ("PXG-EVT-005", "a hook from inside a host function", |r| {
        r.configure(&config());
        r.in_host = Some("complete");
        r.send(&Ev::headers(), &go());
    }),
    ("PXG-EVT-002", "on_cancel inside on_event", |r| {
        running(r);
        let f = {
            let mut found = None;
            r.send_and(&mine(Ev::body(0, "x")), &go(), |r| {
                let t = r.last_token;
                found = Some(r.library.cancel_enter(1, 7, 5, t, 0, None));
            });
            found.unwrap()
        };
        r.take(only(f, "PXG-EVT-002"));
    }),
    ("PXG-EVT-002", "two events of one stream at once", |r| {
        running(r);
        r.send_and(&mine(Ev::body(0, "x")), &go(), |r| {
            r.send(&mine(Ev::response()), &go());
        });
    }),
    ("PXG-EVT-014", "an event after ERROR", |r| {
        r.configure(&config());
        r.send(&Ev::headers(), &answer(Action::ERROR));
        r.send(&Ev::log(), &go());
    }),
    ("PXG-RPL-002", "the response of one's own reply", |r| {
        r.configure(&config());
        r.send(&Ev::headers(), &answer(Action::REPLY));
        r.send(&Ev::response(), &go());
    }),
    ("PXG-CHN-005", "the request after a reply", |r| {
        r.configure(&config());
        r.send(&Ev::headers(), &answer(Action::REPLY));
        r.send(&Ev::body(0, "x"), &go());
    }),
    ("PXG-ACT-004", "an event after RESET", |r| {
        r.configure(&config());
        r.send(&Ev::headers(), &answer(Action::RESET));
        r.send(&Ev::body(0, "x"), &go());
    }),
    ("PXG-ASY-002", "a retired token that is accepted", |r| {
        running(r);
        let t = r.last_token;
        r.complete(t, &go(), Status::OK);
    }),
    (
        "PXG-ASY-002",
        "a token that nobody issued is accepted",
        |r| {
            r.complete(0x77, &go(), Status::OK);
        },
    ),
    ("PXG-ASY-001", "a second completion is accepted", |r| {
        let t = pending(r);
        r.complete(t, &go(), Status::OK);
        r.complete(t, &go(), Status::OK);
    }),
    (
        "PXG-ASY-004",
        "an early completion is refused as stale",
        |r| {
            r.configure(&config());
            r.send_and(&Ev::headers(), &go(), |r| {
                let t = r.last_token;
                r.complete(t, &go(), Status::STALE);
            });
        },
    ),
    ("PXG-ASY-010", "a plain completion is refused", |r| {
        let t = pending(r);
        r.complete(t, &go(), Status::ARG);
    }),
    ("PXG-ABI-013", "an answer that is no status", |r| {
        let t = pending(r);
        r.complete(t, &go(), Status(17));
    }),
    (
        "PXG-EVT-001",
        "a completed direction without RESUMED",
        |r| {
            let t = pending(r);
            r.complete(t, &go(), Status::OK);
            r.send(&mine(Ev::body(0, "x")), &go());
        },
    ),
    ("PXG-ASY-002", "an event of a handle that is stale", |r| {
        running(r);
        r.wake(5, 1, Status::STALE);
        r.send(&mine(Ev::body(0, "x")), &go());
    }),
    ("PXG-ASY-002", "a wake of a stream that has ended", |r| {
        running(r);
        r.send(&mine(Ev::log()), &go());
        r.end(5, 7);
        r.wake(5, 1, Status::OK);
    }),
    ("PXG-ASY-013", "a wake without a subscription", |r| {
        let mut c = config();
        c.subscribe &= !(1 << 8);
        r.configure(&c);
        r.send(&Ev::headers(), &go());
        r.wake(5, 1, Status::OK);
    }),
    ("PXG-ASY-013", "WAKE with bits that nobody sent", |r| {
        running(r);
        r.wake(5, 1, Status::OK);
        r.send(
            &mine(Ev::new(Phase::WAKE).with(F::CAN_REPLY)).edit(|e| e.arg = 3),
            &go(),
        );
    }),
    ("PXG-RPL-006", "FULL without BODY_WRITE", |r| {
        running(r);
        r.apply(5, &go(), Status::FULL);
    }),
    ("PXG-THR-003", "no on_worker(up)", |r| {
        r.configure(&config());
        r.worker = 1;
        r.send(&Ev::headers(), &go());
    }),
    ("PXG-THR-003", "on_worker(up) twice", |r| r.up(0)),
    ("PXG-THR-001", "a worker beyond n_workers", |r| {
        let f = r.library.worker_enter(9, 1, None);
        r.take(f);
    }),
    (
        "PXG-THR-001",
        "a stream that moves to another worker",
        |r| {
            running(r);
            r.up(1);
            r.worker = 1;
            r.send(&mine(Ev::body(0, "x")), &go());
        },
    ),
    ("PXG-THR-004", "on_batch_end without PENDING", |r| {
        let f = r.library.batch_end_enter(0, None);
        r.take(f);
    }),
    ("PXG-THR-004", "no on_batch_end at all", |r| {
        let t = pending(r);
        r.complete(t, &go(), Status::OK);
        let f = r.library.worker_enter(0, 0, None);
        r.take(f);
    }),
    ("PXG-ASY-007", "an event on another thread", |r| {
        running(r);
        std::thread::scope(|s| {
            s.spawn(|| r.send(&mine(Ev::body(0, "x")), &go()));
        });
    }),
    ("PXG-NEG-007", "an extension that moves", |r| {
        let f = r.library.ext(true, b"x.y/1".to_vec(), 8);
        r.take(f);
        let f = r.library.ext(true, b"x.y/1".to_vec(), 16);
        r.take(f);
    }),
    ("PXG-OBS-006", "a metric with two ids", |r| {
        let f = r.library.metric(b"m".to_vec(), 1);
        r.take(f);
        let f = r.library.metric(b"m".to_vec(), 2);
        r.take(f);
    }),
];

/// Only one rule of what was found: where a wrong call breaks several.
fn only(mut f: crate::library::Findings, rule: &str) -> crate::library::Findings {
    f.list.retain(|x| x.rule == rule);
    f
}

fn after_end(r: &mut R, phase: Phase) -> crate::library::Findings {
    let mut probe = R::with(terms());
    std::mem::swap(&mut probe.library, &mut r.library);
    let before = probe.found().len();
    probe.send(
        &Ev::new(phase).edit(|e| e.user = 7),
        &answer(Action::CONTINUE),
    );
    let found: Vec<String> = probe.found()[before..]
        .iter()
        .map(|(rule, _, _)| rule.to_string())
        .collect();
    std::mem::swap(&mut probe.library, &mut r.library);
    let mut f = crate::library::Findings::at("on_event");
    if found.iter().any(|x| x == "PXG-EVT-006") {
        f.list
            .push(crate::report::host("PXG-EVT-006", "after the end", ""));
    }
    f
}

#[test]
fn each_wrong_life_is_found_by_its_rule() {
    each_breaks_its_rule("host", WRONG);
}

#[test]
fn config_thread_functions_are_serialised() {
    let mut r = Rig::new();
    r.configure(&config());
    let mut f = crate::library::Findings::at("on_config_new");
    r.library.config_thread_begin(&mut f);
    r.take(f);
    // With CONFIG_THREAD this thread is a loop thread by now, which is a finding too.
    r.drop_config(1);
    assert!(r.found().iter().any(|(rule, _, _)| *rule == "PXG-THR-001"));
}

#[test]
fn with_config_thread_configurations_are_not_made_on_a_loop_thread() {
    let mut t = terms();
    t.features = all_features();
    let mut r = Rig::with(t);
    r.up(0);
    std::thread::scope(|s| {
        s.spawn(|| r.configure(&config()));
    });
    assert_eq!(r.found(), vec![]);
    r.drop_config(1);
    assert!(r.found().iter().any(|(rule, _, _)| *rule == "PXG-CFG-006"));
}

#[test]
fn a_guest_that_must_be_refused_is_not_called() {
    let mut t = terms();
    t.asked.refuse = Some(("PXG-LOAD-010", "`on_event` is NULL".into()));
    let mut r = Rig::with(t);
    r.up(0);
    assert_eq!(r.found()[0].0, "PXG-LOAD-010");
}

#[test]
fn completions_cancels_and_wakes_that_are_right() {
    let mut r = Rig::new();
    let t = pending(&mut r);
    r.complete(t, &go(), Status::OK);
    // A second one is refused, which is right.
    r.complete(t, &go(), Status::STALE);
    r.send(
        &mine(Ev::body(0, "abc")).with(F::RESUMED),
        &answer(Action::PENDING),
    );
    let t = r.last_token;
    let more = with_ops(answer(Action::MORE), vec![op(8, 1, "", "")]);
    r.complete(t, &more, Status::OK);
    r.send(&mine(Ev::body(1, "bcd")).with(F::RESUMED), &go());
    r.wake(5, 1, Status::OK);
    r.wake(5, 2, Status::OK);
    r.send(
        &mine(Ev::new(Phase::WAKE).with(F::CAN_REPLY)).edit(|e| e.arg = 3),
        &go(),
    );
    // Completed before on_event returned.
    r.send_and(&mine(Ev::body(4, "e")), &answer(Action::PENDING), |r| {
        let t = r.last_token;
        r.complete(t, &go(), Status::OK);
    });
    r.send(
        &mine(Ev::body(5, "f")).with(F::RESUMED),
        &answer(Action::PENDING),
    );
    let t = r.last_token;
    // The stream dies while a completion is on its way.
    r.complete(t, &go(), Status::STALE);
    r.cancel(5, t, 7);
    r.complete(t, &go(), Status::STALE);
    r.send(&mine(Ev::log().edit(|e| e.arg = 0x4202)), &go());
    r.end(5, 7);
    r.wake(5, 1, Status::STALE);
    assert_eq!(r.found(), vec![]);
}

#[test]
fn an_event_may_come_before_complete_has_returned() {
    let mut r = Rig::new();
    let t = pending(&mut r);
    let (call, f) = r.library.complete_enter(t, Some(&go()), false);
    r.take(f);
    r.send(&mine(Ev::body(0, "x")).with(F::RESUMED), &go());
    let f = r.library.complete_leave(&call, Status::OK);
    r.take(f);
    assert_eq!(r.found(), vec![]);
    // It was not accepted after all: then the event was wrong.
    let mut r = Rig::new();
    let t = pending(&mut r);
    let (call, f) = r.library.complete_enter(t, Some(&go()), false);
    r.take(f);
    r.send(&mine(Ev::body(0, "x")).with(F::RESUMED), &go());
    let f = r.library.complete_leave(&call, Status::LIMIT);
    r.take(f);
    assert_eq!(r.found()[0].0, "PXG-EVT-003");
}
