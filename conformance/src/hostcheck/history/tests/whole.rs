//! The whole run.

use super::*;

#[test]
fn the_whole_run() {
    breaks(exchange(), "PXG-LOAD-004", |s| {
        let i = at(s, "on_worker", Edge::Enter, None);
        s.records[i].pid = 8;
        s.records[i + 1].pid = 8;
        s.records[i].worker = Some(1);
        let mut copy = s.records[i].clone();
        copy.pid = 7;
        copy.worker = Some(0);
        let mut exit = s.records[i + 1].clone();
        exit.pid = 7;
        s.records.insert(i + 2, exit);
        s.records.insert(i + 2, copy);
    });
    breaks(exchange(), "PXG-LOAD-005", |s| {
        let i = at(s, "on_stream_end", Edge::Enter, None);
        s.records.insert(
            i,
            Record {
                function: "unload".into(),
                pid: 7,
                tid: 10,
                ..Record::default()
            },
        );
    });
    breaks(exchange(), "PXG-NEG-004", |s| {
        s.records[0].host.as_mut().expect("recorded").entries[1] = false;
    });
    breaks(exchange(), "PXG-NEG-008", |s| {
        s.records[2].features = Some([u64::MAX; 4])
    });
    let dropped = |times: usize| {
        move |s: &mut Story| {
            for _ in 0..times {
                for edge in [Edge::Enter, Edge::Exit] {
                    let r = s.push("on_config_drop", edge);
                    r.tid = 5;
                    r.config = Some(A);
                }
            }
        }
    };
    let mut once = exchange();
    dropped(1)(&mut once);
    assert_eq!(once.rules(), Vec::<&str>::new(), "{:#?}", once.found());
    breaks(exchange(), "PXG-CFG-005", dropped(2));
    breaks(exchange(), "PXG-CFG-005", |s| {
        let end: Vec<Record> = s.records.drain(s.records.len() - 2..).collect();
        dropped(1)(s);
        s.records.extend(end);
    });
    breaks(once, "PXG-CFG-003", |s| {
        let i = at(s, "on_config_new", Edge::Exit, None);
        let mut child = s.records[i].clone();
        child.config = Some(2);
        child.parent = Some(A);
        s.records.insert(i + 1, child);
    });
    breaks(exchange(), "PXG-THR-004", |s| {
        for edge in [Edge::Enter, Edge::Exit] {
            s.push("on_batch_end", edge).worker = Some(0);
        }
    });
}

#[test]
fn owned_buffers() {
    let mut s = Story::begin();
    s.enter(Phase::REQUEST_HEADERS, END | CAN);
    s.exit(Answer {
        owned: vec![1],
        n_ops: 1,
        ..plain(1)
    });
    let r = s.push("release", Edge::Enter);
    (r.owned, r.arg) = (Some(1), Some(1));
    s.event(Phase::RESPONSE_HEADERS, END | CAN);
    let s = s.end();
    breaks(s.clone(), "PXG-MEM-006", |s| {
        let i = at(s, "release", Edge::Enter, None);
        s.records.remove(i);
    });
    breaks(s.clone(), "PXG-MEM-006", |s| {
        let i = at(s, "release", Edge::Enter, None);
        let twice = s.records[i].clone();
        s.records.insert(i, twice);
    });
    breaks(s, "PXG-MEM-006", |s| {
        let i = at(s, "release", Edge::Enter, None);
        let mut other = s.records[i].clone();
        other.owned = Some(2);
        s.records.insert(i, other);
    });
}
