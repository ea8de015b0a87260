//! Events that a host must not send, each by itself or after others.

use proxy_golang_abi::{Action, BodyMode, EventFlags as F, Phase};

use super::rig::{given, op, pairs, with_ops};
use super::{Ev, Rig, Wrong, answer, config, each_breaks_its_rule};
use proxy_golang_conformance::parts::config::Want;
use proxy_golang_conformance::parts::model::{Array, Region};

fn go() -> proxy_golang_conformance::parts::model::Outcome {
    answer(Action::CONTINUE)
}

/// One event as the first of a stream.
fn first(r: &mut Rig, e: &Ev) {
    r.configure(&config());
    r.send(e, &go());
}

/// One event after REQUEST_HEADERS.
fn second(r: &mut Rig, e: &Ev) {
    r.configure(&config());
    r.send(&Ev::headers(), &go());
    r.send(e, &go());
}

/// A stream in a mode of its request body.
fn in_mode(r: &mut Rig, mode: BodyMode) {
    let mut c = config();
    c.body_mode[0] = mode;
    r.configure(&c);
    r.send(&Ev::headers(), &go());
}

fn wanting(name: &str, phases: u64) -> proxy_golang_conformance::parts::config::ConfigMade {
    let mut c = config();
    c.attrs = Array {
        ptr: 0x1000,
        count: 1,
        region: Region::Guest,
        bytes: 32,
        items: Some(vec![Want {
            name: given(name.as_bytes()),
            phases,
            flags: 0,
            reserved0: 0,
        }]),
    };
    c
}

const WRONG: &[Wrong] = &[
    ("PXG-ABI-002", "a size below that of version 1.0", |r| {
        first(r, &Ev::headers().edit(|e| e.size = 152))
    }),
    ("PXG-ABI-012", "a NULL array with a count", |r| {
        second(
            r,
            &Ev::body(0, "x").with(F::HEADERS_HELD).edit(|e| {
                e.flags &= !F::HEADERS_HELD.0;
                e.null_fields = 0;
                e.chunks = vec![b"x".to_vec()];
            }),
        );
        r.send(
            &Ev::log().edit(|e| {
                e.fields.clear();
                e.null_fields = 2;
            }),
            &go(),
        );
    }),
    ("PXG-NEG-006", "an undefined flag", |r| {
        first(r, &Ev::headers().edit(|e| e.flags |= 0x8000))
    }),
    ("PXG-NEG-006", "a phase that nobody defined", |r| {
        let mut c = config();
        c.subscribe |= 1 << 9;
        r.configure(&config());
        r.send(&Ev::headers(), &go());
        r.send(&Ev::headers().edit(|e| e.phase = Phase(9)), &go());
        // It was not subscribed either, which is the same mistake.
        let _ = c;
    }),
    (
        "PXG-EVT-011",
        "END_STREAM on a body event without BODY_END",
        |r| second(r, &Ev::body(0, "x").with(F::END_STREAM)),
    ),
    ("PXG-EVT-001", "trailers without END_STREAM", |r| {
        in_mode(r, BodyMode::SKIP);
        r.send(
            &Ev::new(Phase::REQUEST_TRAILERS).without(F::END_STREAM),
            &go(),
        );
    }),
    ("PXG-BODY-003", "WHOLE_BODY without the end", |r| {
        in_mode(r, BodyMode::WHOLE);
        r.send(
            &Ev::body(0, "x")
                .with(F::WHOLE_BODY)
                .with(F::HEADERS_HELD)
                .with(F::BODY_END)
                .edit(|e| e.fields = Ev::headers().fields),
            &go(),
        );
    }),
    ("PXG-BODY-003", "a body in pieces in the mode WHOLE", |r| {
        in_mode(r, BodyMode::WHOLE);
        r.send(
            &Ev::body(0, "x")
                .with(F::HEADERS_HELD)
                .edit(|e| e.fields = Ev::headers().fields),
            &go(),
        );
    }),
    ("PXG-BODY-004", "over max_body without OVER_LIMIT", |r| {
        let mut c = config();
        c.max_body[0] = 4;
        r.configure(&c);
        r.send(&Ev::headers(), &go());
        r.send(&Ev::body(0, "12345"), &go());
    }),
    ("PXG-BODY-008", "65 chunks", |r| {
        second(
            r,
            &Ev::body(0, "").edit(|e| e.chunks = vec![b"x".to_vec(); 65]),
        )
    }),
    ("PXG-BODY-008", "an empty chunk", |r| {
        second(r, &Ev::body(0, "x").edit(|e| e.chunks.push(Vec::new())))
    }),
    ("PXG-EVT-011", "a body event without bytes", |r| {
        second(r, &Ev::body(0, ""))
    }),
    ("PXG-EVT-011", "a body event after BODY_END", |r| {
        second(r, &Ev::body(0, "x").with(F::BODY_END));
        r.send(&Ev::body(1, "y"), &go());
    }),
    ("PXG-EVT-020", "fields in a body event", |r| {
        second(
            r,
            &Ev::body(0, "x").edit(|e| e.fields = Ev::headers().fields),
        )
    }),
    ("PXG-EVT-020", "HEADERS_HELD after the headers left", |r| {
        second(
            r,
            &Ev::body(0, "x")
                .with(F::HEADERS_HELD)
                .edit(|e| e.fields = Ev::headers().fields),
        )
    }),
    (
        "PXG-EVT-020",
        "no HEADERS_HELD while MORE holds them",
        |r| {
            r.configure(&config());
            r.send(&Ev::headers(), &answer(Action::MORE));
            r.send(&Ev::body(0, "x"), &go());
        },
    ),
    ("PXG-EVT-020", "peer_fields that nobody wants", |r| {
        second(
            r,
            &Ev::response().edit(|e| e.peer_fields = Ev::headers().fields),
        )
    }),
    ("PXG-TRL-002", "trailers in a body event", |r| {
        second(
            r,
            &Ev::body(0, "x").edit(|e| e.trailers = pairs(&[("x-t", "1")])),
        )
    }),
    ("PXG-TRL-003", "a TRAILERS event without trailers", |r| {
        in_mode(r, BodyMode::SKIP);
        r.send(
            &Ev::new(Phase::REQUEST_TRAILERS).edit(|e| e.trailers.clear()),
            &go(),
        );
    }),
    ("PXG-TRL-003", "trailers before the body has passed", |r| {
        second(r, &Ev::body(0, "x"));
        r.send(&Ev::new(Phase::REQUEST_TRAILERS), &go());
    }),
    ("PXG-TRL-002", "trailers after a WHOLE_BODY event", |r| {
        in_mode(r, BodyMode::WHOLE);
        let whole = F(F::WHOLE_BODY.0 | F::HEADERS_HELD.0 | F::BODY_END.0 | F::END_STREAM.0);
        r.send(
            &Ev::body(0, "x")
                .with(whole)
                .edit(|e| e.fields = Ev::headers().fields),
            &go(),
        );
        r.send(&Ev::new(Phase::REQUEST_TRAILERS), &go());
    }),
    ("PXG-EVT-019", "bytes in a HEADERS event", |r| {
        first(r, &Ev::headers().edit(|e| e.chunks = vec![b"x".to_vec()]))
    }),
    ("PXG-EVT-018", "an arg that is no end", |r| {
        second(r, &Ev::log().edit(|e| e.arg = 0x10007))
    }),
    ("PXG-EVT-018", "COMPLETE with a cut response", |r| {
        second(r, &Ev::log().edit(|e| e.arg = 0x2101))
    }),
    ("PXG-EVT-018", "an arg where there is none", |r| {
        first(r, &Ev::headers().edit(|e| e.arg = 1))
    }),
    ("PXG-HDR-001", "an upper-case name", |r| {
        first(r, &Ev::headers().edit(|e| e.fields[4].0 = "X-A".into()))
    }),
    ("PXG-HDR-001", "a pseudo-header behind a field", |r| {
        first(r, &Ev::headers().edit(|e| e.fields.swap(3, 4)))
    }),
    ("PXG-HDR-001", "host beside :authority", |r| {
        first(r, &Ev::headers().edit(|e| e.fields[4].0 = "host".into()))
    }),
    ("PXG-HDR-001", "no :method", |r| {
        first(
            r,
            &Ev::headers().edit(|e| {
                e.fields.remove(0);
            }),
        )
    }),
    ("PXG-HDR-001", ":status in a request", |r| {
        first(
            r,
            &Ev::headers().edit(|e| e.fields.insert(0, (":status".into(), "200".into()))),
        )
    }),
    ("PXG-EVT-013", "an interim response", |r| {
        second(r, &Ev::response().edit(|e| e.fields[0].1 = "103".into()))
    }),
    ("PXG-EVT-008", "204 without END_STREAM", |r| {
        second(r, &Ev::response().edit(|e| e.fields[0].1 = "204".into()))
    }),
    (
        "PXG-EVT-008",
        "a response to HEAD without END_STREAM",
        |r| {
            r.configure(&config());
            r.send(
                &Ev::headers()
                    .with(F::END_STREAM)
                    .edit(|e| e.fields[0].1 = "HEAD".into()),
                &go(),
            );
            r.send(&Ev::response(), &go());
        },
    ),
    ("PXG-EVT-008", "EOS_UNKNOWN with EXACT_EOS", |r| {
        first(r, &Ev::headers().with(F::EOS_UNKNOWN))
    }),
    ("PXG-EVT-022", "CONNECT that goes on", |r| {
        first(r, &Ev::headers().edit(|e| e.fields[0].1 = "CONNECT".into()))
    }),
    ("PXG-EVT-022", "UPGRADED that goes away", |r| {
        second(
            r,
            &Ev::response()
                .with(F::UPGRADED)
                .with(F::END_STREAM)
                .edit(|e| e.fields[0].1 = "101".into()),
        );
        r.send(&Ev::log(), &go());
    }),
    ("PXG-EVT-021", "CAN_REPLY missing at the request", |r| {
        first(r, &Ev::headers().without(F::CAN_REPLY))
    }),
    ("PXG-EVT-021", "CAN_REPLY after the response passed", |r| {
        second(r, &Ev::response());
        r.send(
            &Ev::new(Phase::RESPONSE_BODY)
                .with(F::CAN_REPLY)
                .edit(|e| e.chunks = vec![b"x".to_vec()]),
            &go(),
        );
    }),
    ("PXG-NEG-005", "a phase that is not subscribed", |r| {
        let mut c = config();
        c.subscribe &= !(1 << 4);
        c.pend_phases &= !(1 << 4);
        r.configure(&c);
        r.send(&Ev::headers(), &go());
        r.send(&Ev::response().edit(|e| e.pends = false), &go());
    }),
    ("PXG-EVT-010", "a phase that was unsubscribed", |r| {
        r.configure(&config());
        let mut o = go();
        o.unsubscribe = 1 << 4;
        r.send(&Ev::headers(), &o);
        r.send(&Ev::response(), &go());
    }),
    ("PXG-EVT-012", "REQUEST_HEADERS twice", |r| {
        second(r, &Ev::headers())
    }),
    ("PXG-EVT-012", "a subrequest that nobody wants", |r| {
        first(r, &Ev::headers().with(F::SUBREQUEST))
    }),
    ("PXG-EVT-012", "REDIRECTED that goes away", |r| {
        second(r, &Ev::response().with(F::REDIRECTED));
        r.send(&Ev::log(), &go());
    }),
    ("PXG-EVT-001", "RESPONSE_HEADERS twice", |r| {
        second(r, &Ev::response());
        r.send(&Ev::response().without(F::CAN_REPLY), &go());
    }),
    ("PXG-EVT-001", "a body after END_STREAM", |r| {
        second(r, &Ev::body(0, "x").with(F::BODY_END).with(F::END_STREAM));
        r.send(
            &Ev::body(1, "y").with(F::BODY_END).with(F::END_STREAM),
            &go(),
        );
    }),
    (
        "PXG-BODY-017",
        "a body of a message that ended at its headers",
        |r| {
            r.configure(&config());
            r.send(&Ev::headers().with(F::END_STREAM), &go());
            r.send(&Ev::body(0, "x"), &go());
        },
    ),
    ("PXG-EVT-004", "a response before the request", |r| {
        first(r, &Ev::response())
    }),
    ("PXG-EVT-001", "a body before its headers", |r| {
        first(r, &Ev::body(0, "x"))
    }),
    ("PXG-EVT-001", "RESUMED without a completion", |r| {
        second(r, &Ev::response().with(F::RESUMED))
    }),
    ("PXG-BODY-001", "a body in SKIP", |r| {
        in_mode(r, BodyMode::SKIP);
        r.send(&Ev::body(0, "x"), &go());
    }),
    ("PXG-BODY-001", "a body after the mode went to SKIP", |r| {
        r.configure(&config());
        r.send(&Ev::headers(), &go());
        let mut o = go();
        o.body_mode[0] = BodyMode::SKIP;
        r.send(&Ev::body(0, "x"), &o);
        r.send(&Ev::body(1, "y"), &go());
    }),
    ("PXG-BODY-002", "a gap in the body", |r| {
        second(r, &Ev::body(0, "abc"));
        r.send(&Ev::body(4, "d"), &go());
    }),
    ("PXG-BODY-002", "bytes twice", |r| {
        second(r, &Ev::body(0, "abc"));
        r.send(&Ev::body(2, "cd"), &go());
    }),
    ("PXG-BODY-002", "what was kept is not shown again", |r| {
        r.configure(&config());
        r.send(&Ev::headers(), &go());
        r.send(&Ev::body(0, "abc"), &answer(Action::MORE));
        r.send(&Ev::body(0, "abXd"), &go());
    }),
    ("PXG-BODY-002", "what was kept and passed in part", |r| {
        r.configure(&config());
        r.send(&Ev::headers(), &go());
        let pass = with_ops(answer(Action::MORE), vec![op(8, 1, "", "")]);
        r.send(&Ev::body(0, "abc"), &pass);
        r.send(&Ev::body(0, "abcd"), &go());
    }),
    ("PXG-ACT-003", "the same view again after MORE", |r| {
        r.configure(&config());
        r.send(&Ev::headers(), &go());
        r.send(&Ev::body(0, "abc"), &answer(Action::MORE));
        r.send(&Ev::body(0, "abc"), &go());
    }),
    (
        "PXG-BODY-010",
        "a tunnel's bytes without UPGRADE_BODY",
        |r| {
            second(
                r,
                &Ev::response()
                    .with(F::UPGRADED)
                    .with(F::END_STREAM)
                    .edit(|e| e.fields[0].1 = "101".into()),
            );
            r.send(
                &Ev::new(Phase::RESPONSE_BODY)
                    .with(F::UPGRADED)
                    .edit(|e| e.chunks = vec![b"x".to_vec()]),
                &go(),
            );
        },
    ),
    ("PXG-CHN-004", "a local reply without REPLY_REFILTER", |r| {
        let mut features = super::rig::terms().features;
        features[0] &= !(1 << 29);
        r.configure_with("main", 0, 0, features, &config());
        r.send(&Ev::headers(), &go());
        r.send(&Ev::response().with(F::LOCAL_ORIGIN), &go());
    }),
    ("PXG-NEG-009", "trailers without TRAILERS_IN", |r| {
        let mut features = super::rig::terms().features;
        features[0] &= !(1 << 20);
        let mut c = config();
        c.body_mode[0] = BodyMode::SKIP;
        r.configure_with("main", 0, 0, features, &c);
        r.send(&Ev::headers(), &go());
        r.send(&Ev::new(Phase::REQUEST_TRAILERS), &go());
    }),
    ("PXG-ATT-001", "attributes that are missing", |r| {
        r.configure(&wanting("source.address", 2));
        r.send(&Ev::headers(), &go());
    }),
    ("PXG-ATT-001", "a value in a phase that did not ask", |r| {
        let mut c = wanting("source.address", 2);
        if let Some(a) = &mut c.attrs.items {
            a.push(Want {
                name: given(b"tls.sni"),
                phases: 1 << 4,
                flags: 0,
                reserved0: 0,
            });
            c.attrs.count = 2;
        }
        r.configure(&c);
        r.send(
            &Ev::headers().edit(|e| e.attrs = vec![None, Some("a".into())]),
            &go(),
        );
    }),
    ("PXG-ATT-002", "a number that is none", |r| {
        r.configure(&wanting("request.start_ns", 2));
        r.send(
            &Ev::headers().edit(|e| e.attrs = vec![Some("007".into())]),
            &go(),
        );
    }),
    ("PXG-MEM-001", "a view that changes", |r| {
        first(r, &Ev::headers().edit(|e| e.changes = true))
    }),
    ("PXG-RPL-006", "WRITABLE without FULL", |r| {
        second(
            r,
            &Ev::new(Phase::WAKE).with(F::WRITABLE).with(F::CAN_REPLY),
        )
    }),
    ("PXG-ASY-013", "WAKE that nobody asked for", |r| {
        second(r, &Ev::new(Phase::WAKE).with(F::CAN_REPLY))
    }),
];

#[test]
fn each_wrong_event_is_found_by_its_rule() {
    // A phase that nobody defined is also one that nobody subscribed to.
    let (two, one): (Vec<_>, Vec<_>) = WRONG
        .iter()
        .copied()
        .partition(|(_, name, _)| *name == "a phase that nobody defined");
    each_breaks_its_rule("host", &one);
    for (rule, name, script) in two {
        let mut rig = Rig::new();
        script(&mut rig);
        assert!(rig.found().iter().any(|(r, _, _)| *r == rule), "{name}");
    }
}

#[test]
fn a_right_exchange_has_no_finding() {
    let mut r = Rig::new();
    r.configure(&config());
    let mut remember = go();
    remember.user = 7;
    r.send(&Ev::headers(), &remember);
    let mine = |e: Ev| e.edit(|e| e.user = 7);
    r.send(&mine(Ev::body(0, "abc")), &answer(Action::MORE));
    let drop = with_ops(answer(Action::MORE), vec![op(9, 2, "", "")]);
    r.send(&mine(Ev::body(0, "abcd")), &drop);
    r.send(&mine(Ev::body(2, "cdef").with(F::BODY_END)), &go());
    r.send(
        &mine(Ev::new(Phase::REQUEST_TRAILERS).with(F::CAN_REPLY)),
        &go(),
    );
    r.send(&mine(Ev::response()), &answer(Action::MORE));
    r.send(
        &mine(
            Ev::new(Phase::RESPONSE_BODY)
                .with(F::HEADERS_HELD)
                .with(F::CAN_REPLY)
                .with(F::BODY_END)
                .with(F::END_STREAM)
                .edit(|e| {
                    e.fields = Ev::response().fields;
                    e.chunks = vec![b"x".to_vec()];
                }),
        ),
        &go(),
    );
    r.send(
        &mine(Ev::log().edit(|e| e.peer_fields = Ev::headers().fields)),
        &go(),
    );
    r.end(5, 7);
    r.drop_config(1);
    assert_eq!(r.found(), vec![]);
}

#[test]
fn over_the_limit_in_whole_is_streamed_from_there() {
    let mut r = Rig::new();
    let mut c = config();
    c.body_mode[0] = BodyMode::WHOLE;
    c.max_body[0] = 2;
    r.configure(&c);
    r.send(&Ev::headers(), &go());
    let held = |e: Ev| {
        e.with(F::HEADERS_HELD)
            .with(F::OVER_LIMIT)
            .edit(|e| e.fields = Ev::headers().fields)
    };
    r.send(&held(Ev::body(0, "abc")), &go());
    r.send(
        &Ev::body(3, "d").with(F::BODY_END).with(F::END_STREAM),
        &go(),
    );
    assert_eq!(r.found(), vec![]);
}
