//! Nesting, threads, tokens, handles, wakes.

use super::*;

#[test]
fn hooks_and_threads() {
    breaks(exchange(), "PXG-EVT-005", |s| {
        // The response's event runs inside a call of wake on the same thread, which comes to no WAKE.
        let i = at(s, "on_event", Edge::Enter, Some(Phase::RESPONSE_HEADERS));
        let mut wake = s.records[i].clone();
        wake = Record {
            function: "scratch_more".into(),
            tid: wake.tid,
            pid: wake.pid,
            ..Record::default()
        };
        let exit = Record {
            edge: Edge::Exit,
            ..wake.clone()
        };
        s.records.insert(i + 2, exit);
        s.records.insert(i, wake);
    });
    breaks(exchange(), "PXG-EVT-002", |s| {
        // on_event of the response enters before the request's has returned.
        let i = at(s, "on_event", Edge::Exit, Some(Phase::REQUEST_HEADERS));
        let inner = Record {
            function: "on_worker".into(),
            pid: 7,
            tid: 10,
            ..Record::default()
        };
        let exit = Record {
            edge: Edge::Exit,
            ..inner.clone()
        };
        s.records.insert(i, exit);
        s.records.insert(i, inner);
    });
    breaks(exchange(), "PXG-ASY-007", |s| {
        for r in &mut s.records {
            if r.phase == Some(Phase::RESPONSE_HEADERS.0) {
                r.tid = 11;
            }
        }
    });
    breaks(exchange(), "PXG-CFG-006", |s| {
        for r in &mut s.records {
            if r.function == "on_config_new" {
                r.tid = 10;
            }
        }
    });
    breaks(exchange(), "PXG-THR-003", |s| remove(s, "on_worker", None));
    breaks(exchange(), "PXG-THR-003", |s| {
        let i = at(s, "on_worker", Edge::Enter, None);
        s.records[i].stack = Some(64 << 10);
    });
    breaks(exchange(), "PXG-THR-003", |s| {
        let i = at(s, "on_worker", Edge::Enter, None);
        let twice: Vec<Record> = s.records[i..i + 2].to_vec();
        s.records.splice(i..i, twice);
    });
    breaks_all(exchange(), &["PXG-THR-001", "PXG-THR-003"], |s| {
        entry(s, Phase::RESPONSE_HEADERS).worker = Some(1);
    });
    breaks(exchange(), "PXG-THR-001", |s| {
        let i = at(s, "on_config_new", Edge::Exit, None);
        let mut other = Record {
            function: "on_config_drop".into(),
            pid: 7,
            tid: 6,
            ..Record::default()
        };
        s.records.insert(i, other.clone());
        other.edge = Edge::Exit;
        s.records.insert(i + 1, other);
    });
}

#[test]
fn pending() {
    breaks(completed(), "PXG-EVT-003", |s| {
        // The response comes before the completion.
        let i = at(s, "complete", Edge::Enter, None);
        let call: Vec<Record> = s.records.drain(i..i + 2).collect();
        s.records.splice(i + 2..i + 2, call);
    });
    // With DUPLEX the other direction may go on.
    let (mut s, token) = pended(1);
    s.event(Phase::RESPONSE_HEADERS, END | CAN);
    s.call("complete", token, plain(1), 0);
    let s = s.end();
    assert_eq!(s.rules(), Vec::<&str>::new(), "{:#?}", s.found());
    // Called before on_event has returned, and answered after it.
    let mut s = completed();
    let i = at(&s, "complete", Edge::Enter, None);
    let call = s.records.remove(i);
    s.records.insert(i - 1, call);
    assert_eq!(s.rules(), Vec::<&str>::new(), "{:#?}", s.found());
    // Cancelled, when the stream dies.
    let (mut s, token) = pended(0);
    let i = s.hook("on_cancel");
    for r in &mut s.records[i..] {
        r.token = Some(token);
    }
    let s = s.end();
    breaks(s.clone(), "PXG-ASY-001", |s| {
        let i = at(s, "on_cancel", Edge::Enter, None);
        let twice: Vec<Record> = s.records[i..i + 2].to_vec();
        s.records.splice(i..i, twice);
    });
    breaks(s.clone(), "PXG-ASY-009", |s| {
        let i = at(s, "on_cancel", Edge::Exit, None);
        let mut t = Story {
            records: s.records[..=i].to_vec(),
            user: 0,
        };
        let from = t.records.len();
        t.call("complete", token, plain(1), 0);
        // The call began before the cancel.
        let mut calls: Vec<Record> = t.records.drain(from..).collect();
        let exit = calls.pop().expect("two records");
        let enter = calls.pop().expect("two records");
        s.records.insert(i + 1, exit);
        s.records.insert(i - 1, enter);
    });
    breaks(s, "PXG-ASY-008", |s| {
        // After LOG.
        let i = at(s, "on_cancel", Edge::Enter, None);
        let cancel: Vec<Record> = s.records.drain(i..i + 2).collect();
        let log = at(s, "on_event", Edge::Exit, Some(Phase::LOG));
        s.records.splice(log + 1..log + 1, cancel);
        let at = at(s, "on_cancel", Edge::Enter, None);
        s.records[at].user = Some(2);
    });
}

#[test]
fn tokens_and_handles() {
    breaks(completed(), "PXG-ASY-003", |s| {
        let token = entry(s, Phase::REQUEST_HEADERS).token;
        for r in &mut s.records {
            if r.phase == Some(Phase::RESPONSE_HEADERS.0) {
                r.token = token;
            }
        }
    });
    breaks(completed(), "PXG-ASY-002", |s| {
        let token = entry(s, Phase::REQUEST_HEADERS).token.expect("it may pend");
        s.call("complete", token, plain(1), 0);
    });
    breaks(completed(), "PXG-ASY-002", |s| {
        s.call("complete", 0xdead, plain(1), 0)
    });
    breaks(completed(), "PXG-ASY-002", |s| {
        s.call("apply", STREAM, plain(1), 0)
    });
    breaks(completed(), "PXG-ASY-002", |s| {
        s.call("apply", 0xdead, plain(1), 1)
    });
    let mut clean = completed();
    clean.call("complete", 0xdead, plain(1), -1);
    clean.call("apply", STREAM, plain(1), -1);
    assert_eq!(clean.rules(), Vec::<&str>::new());
    // A second configuration with the same handle.
    let second = |instance: &'static str| {
        move |s: &mut Story| {
            let i = at(s, "on_config_new", Edge::Exit, None);
            let mut other = s.records[i].clone();
            other.config = Some(2);
            other.instance = Some(instance.into());
            s.records.insert(i + 1, other);
            for r in &mut s.records {
                if r.phase == Some(Phase::LOG.0) {
                    r.config = Some(2);
                }
            }
        }
    };
    let rules = |instance| {
        let mut s = exchange();
        second(instance)(&mut s);
        s.rules()
    };
    assert!(rules("a").contains(&"PXG-CFG-007"), "{:?}", rules("a"));
    assert!(rules("b").contains(&"PXG-EVT-016"), "{:?}", rules("b"));
}

#[test]
fn wakes() {
    let mut s = Story::begin();
    s.event(Phase::REQUEST_HEADERS, END | CAN);
    s.call("wake", STREAM, Answer::default(), 0);
    for r in s.records.iter_mut().filter(|r| r.function == "wake") {
        r.arg = Some(4);
    }
    s.enter(Phase::WAKE, CAN).arg = Some(4);
    s.exit(plain(1));
    s.event(Phase::RESPONSE_HEADERS, END | CAN);
    let s = s.end();
    breaks(s.clone(), "PXG-ASY-013", |s| {
        entry(s, Phase::WAKE).arg = Some(6)
    });
    breaks(s, "PXG-ASY-013", |s| remove(s, "wake", None));
}
