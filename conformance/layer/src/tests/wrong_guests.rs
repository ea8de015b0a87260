//! What guests must not answer and do.

use proxy_golang_abi::{Action, BodyMode, Phase, Status};

use super::rig::{op, with_ops};
use super::{Ev, Rig, Wrong, answer, config, each_breaks_its_rule};

fn go() -> proxy_golang_conformance::parts::model::Outcome {
    answer(Action::CONTINUE)
}

fn answering(r: &mut Rig, o: &proxy_golang_conformance::parts::model::Outcome) {
    r.configure(&config());
    r.send(&Ev::headers(), o);
}

const WRONG: &[Wrong] = &[
    ("PXG-ACT-001", "an action that was left UNSET", |r| {
        answering(r, &answer(Action::UNSET))
    }),
    ("PXG-ACT-003", "MORE at trailers", |r| {
        let mut c = config();
        c.body_mode[0] = BodyMode::SKIP;
        r.configure(&c);
        r.send(&Ev::headers(), &go());
        r.send(&Ev::new(Phase::REQUEST_TRAILERS), &answer(Action::MORE));
    }),
    ("PXG-ACT-006", "PENDING outside of pend_phases", |r| {
        let mut c = config();
        c.pend_phases = 0;
        r.configure(&c);
        r.send(
            &Ev::headers().edit(|e| e.pends = false),
            &answer(Action::PENDING),
        );
    }),
    ("PXG-ACT-008", "PENDING with operations", |r| {
        answering(
            r,
            &with_ops(answer(Action::PENDING), vec![op(2, 0, "x", "y")]),
        )
    }),
    ("PXG-ACT-009", "LOG that is answered with RESET", |r| {
        r.configure(&config());
        r.send(&Ev::headers(), &go());
        r.send(&Ev::log(), &answer(Action::RESET));
    }),
    ("PXG-HDR-005", "a line end in a value", |r| {
        answering(r, &with_ops(go(), vec![op(2, 0, "x", "a\r\nb")]))
    }),
    ("PXG-HDR-008", "a field that the host owns", |r| {
        answering(r, &with_ops(go(), vec![op(2, 0, "content-length", "1")]))
    }),
    ("PXG-HDR-010", "an upper-case name", |r| {
        answering(r, &with_ops(go(), vec![op(2, 0, "X-A", "1")]))
    }),
    ("PXG-HDR-004", "an index beyond the view", |r| {
        answering(r, &with_ops(go(), vec![op(5, 9, "", "")]))
    }),
    ("PXG-BODY-006", "PASS beyond the view", |r| {
        r.configure(&config());
        r.send(&Ev::headers(), &go());
        r.send(&Ev::body(0, "abc"), &with_ops(go(), vec![op(8, 4, "", "")]));
    }),
    ("PXG-BODY-007", "PENDING in OBSERVE", |r| {
        let mut c = config();
        c.body_mode[0] = BodyMode::OBSERVE;
        r.configure(&c);
        r.send(&Ev::headers(), &go());
        r.send(&Ev::body(0, "abc"), &answer(Action::PENDING));
    }),
    ("PXG-BODY-015", "a mode that comes back", |r| {
        r.configure(&config());
        r.send(&Ev::headers(), &go());
        let mut o = go();
        o.body_mode[0] = BodyMode::WHOLE;
        r.send(&Ev::body(0, "abc"), &o);
    }),
    ("PXG-RPL-001", "a reply with the status 99", |r| {
        let mut o = answer(Action::REPLY);
        if let proxy_golang_conformance::parts::model::ReplyFound::Some(x) = &mut o.reply {
            x.status = 99;
        }
        answering(r, &o);
    }),
    ("PXG-ASY-005", "completed, and answered CONTINUE", |r| {
        r.configure(&config());
        r.send_and(&Ev::headers(), &go(), |r| {
            let t = r.last_token;
            r.complete(t, &go(), Status::OK);
        });
    }),
    ("PXG-ASY-010", "complete with PENDING", |r| {
        r.configure(&config());
        r.send(&Ev::headers(), &answer(Action::PENDING));
        let t = r.last_token;
        r.complete(t, &answer(Action::PENDING), Status::STATE);
    }),
    ("PXG-MUT-006", "PASS by apply", |r| {
        r.configure(&config());
        r.send(&Ev::headers(), &go());
        r.apply(5, &with_ops(go(), vec![op(8, 1, "", "")]), Status::ARG);
    }),
    ("PXG-CFG-008", "the configuration 0", |r| {
        let mut c = config();
        c.config = 0;
        r.configure(&c);
    }),
    ("PXG-CFG-009", "a mode without its phase", |r| {
        let mut c = config();
        c.subscribe &= !(1 << 2);
        c.pend_phases &= !(1 << 2);
        r.configure(&c);
    }),
    ("PXG-MEM-007", "release that calls the host", |r| {
        let f = r.library.wake_enter(5, 1, true);
        r.take(f);
    }),
    (
        "PXG-NEG-007",
        "an extension of the guest's that moves",
        |r| {
            let f = r.library.ext(false, b"x.y/1".to_vec(), 8);
            r.take(f);
            let f = r.library.ext(false, b"x.y/1".to_vec(), 16);
            r.take(f);
        },
    ),
];

#[test]
fn each_wrong_guest_is_found_by_its_rule() {
    each_breaks_its_rule("guest", WRONG);
}

#[test]
fn a_host_that_takes_what_it_must_refuse_is_found_too() {
    let mut r = Rig::new();
    r.configure(&config());
    r.send(&Ev::headers(), &answer(Action::PENDING));
    let t = r.last_token;
    r.complete(t, &answer(Action::PENDING), Status::OK);
    assert!(
        r.found()
            .iter()
            .any(|(rule, side, _)| *rule == "PXG-ASY-010" && *side == "host"),
        "{:?}",
        r.found()
    );
    let mut r = Rig::new();
    let mut c = config();
    c.subscribe &= !(1 << 2);
    c.pend_phases &= !(1 << 2);
    r.configure(&c);
    r.send(&Ev::headers(), &go());
    assert!(
        r.found()
            .iter()
            .any(|(rule, side, _)| *rule == "PXG-CFG-009" && *side == "host"),
        "{:?}",
        r.found()
    );
}

#[test]
fn a_token_that_runs_into_its_deadline_is_a_warning() {
    let mut r = Rig::new();
    r.configure(&config());
    let mut o = answer(Action::PENDING);
    o.pend_ns = 1;
    r.send(&Ev::headers(), &o);
    let t = r.last_token;
    let f = r.library.cancel_enter(1, 0, 5, t, 0, None);
    assert!(f.list.iter().any(|x| x.rule == "PXG-ASY-001" && x.warning));
}
