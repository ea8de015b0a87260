//! One stream at one place: order, views, `user`, the end.

use super::*;

#[test]
fn whole_stories_are_clean() {
    for (name, s) in [
        ("exchange", exchange()),
        ("upload", upload()),
        ("completed", completed()),
    ] {
        assert_eq!(s.rules(), Vec::<&str>::new(), "{name}: {:#?}", s.found());
    }
}

#[test]
fn more_is_followed_by_what_it_kept() {
    let mut s = Story::with(u64::MAX, 0x7e, [2, 2], 0);
    s.event(Phase::REQUEST_HEADERS, CAN);
    let more = Answer {
        drop: 4,
        n_ops: 1,
        ..plain(3)
    };
    s.body(Phase::REQUEST_BODY, 0, 10, CAN, more);
    s.body(Phase::REQUEST_BODY, 4, 9, LAST | CAN, plain(1));
    s.event(Phase::RESPONSE_HEADERS, END | CAN);
    let s = s.end();
    assert_eq!(s.rules(), Vec::<&str>::new(), "{:#?}", s.found());
    breaks(s, "PXG-BODY-002", |s| {
        let i = s
            .records
            .iter()
            .rposition(|r| r.chunks.is_some())
            .expect("a view");
        s.records[i].chunks = Some(vec![5]);
    });
}

#[test]
fn order_of_a_direction() {
    breaks_all(upload(), &["PXG-BODY-018", "PXG-EVT-001"], |s| {
        // BODY after the end.
        entry(s, Phase::REQUEST_BODY).flags = Some(LAST | CAN);
    });
    breaks(exchange(), "PXG-EVT-012", |s| {
        // REQUEST_HEADERS twice, the first without an end.
        entry(s, Phase::REQUEST_HEADERS).flags = Some(CAN);
        let i = at(s, "on_event", Edge::Enter, Some(Phase::REQUEST_HEADERS));
        let mut again: Vec<Record> = s.records[i..i + 2].to_vec();
        for r in &mut again {
            r.token = Some(0x9999);
        }
        again[0].user = Some(1);
        again[0].preset.as_mut().expect("recorded").user = 1;
        again[1].result.as_mut().expect("recorded").user = 1;
        s.records.splice(i + 2..i + 2, again);
    });
    breaks(exchange(), "PXG-EVT-004", |s| {
        remove(s, "on_event", Some(Phase::REQUEST_HEADERS));
        let r = entry(s, Phase::RESPONSE_HEADERS);
        r.user = Some(0);
        r.preset.as_mut().expect("recorded").user = 0;
    });
}

#[test]
fn the_end_of_a_stream() {
    breaks(exchange(), "PXG-EVT-006", |s| {
        remove(s, "on_stream_end", None)
    });
    breaks(exchange(), "PXG-EVT-006", |s| {
        s.hook("on_stream_end");
    });
    breaks(exchange(), "PXG-EVT-009", |s| {
        remove(s, "on_event", Some(Phase::LOG));
        let i = at(s, "on_stream_end", Edge::Enter, None);
        s.records[i].user = Some(2);
    });
    breaks(exchange(), "PXG-EVT-009", |s| {
        let i = at(s, "on_event", Edge::Enter, Some(Phase::LOG));
        let mut again: Vec<Record> = s.records[i..i + 2].to_vec();
        again[0].user = Some(3);
        again[0].preset.as_mut().expect("recorded").user = 3;
        s.records.splice(i + 2..i + 2, again);
    });
    breaks(exchange(), "PXG-EVT-018", |s| {
        entry(s, Phase::LOG).arg = Some(0x1_1101)
    });
    breaks(exchange(), "PXG-EVT-018", |s| {
        entry(s, Phase::LOG).arg = Some(0x1100)
    });
}

#[test]
fn the_user_slot() {
    breaks(exchange(), "PXG-EVT-007", |s| {
        let r = entry(s, Phase::RESPONSE_HEADERS);
        r.user = Some(99);
        r.preset.as_mut().expect("recorded").user = 99;
    });
    breaks(exchange(), "PXG-EVT-007", |s| {
        entry(s, Phase::RESPONSE_HEADERS)
            .preset
            .as_mut()
            .expect("recorded")
            .user = 0;
    });
    breaks(exchange(), "PXG-EVT-007", |s| {
        let i = at(s, "on_stream_end", Edge::Enter, None);
        s.records[i].user = Some(1);
    });
}

#[test]
fn what_is_preset() {
    let preset = |s: &mut Story, f: fn(&mut Preset)| {
        f(entry(s, Phase::REQUEST_HEADERS)
            .preset
            .as_mut()
            .expect("recorded"));
    };
    breaks(exchange(), "PXG-ACT-001", |s| preset(s, |p| p.action = 1));
    breaks(exchange(), "PXG-ACT-001", |s| preset(s, |p| p.zero = false));
    breaks(exchange(), "PXG-MEM-010", |s| preset(s, |p| p.ops_cap = 16));
    breaks(exchange(), "PXG-MEM-010", |s| preset(s, |p| p.cap = 100));
    breaks(exchange(), "PXG-MEM-010", |s| preset(s, |p| p.dirty = true));
    breaks(exchange(), "PXG-ABI-010", |s| {
        preset(s, |p| p.misaligned = 8)
    });
    breaks(exchange(), "PXG-ABI-002", |s| {
        entry(s, Phase::REQUEST_HEADERS).size = Some(8)
    });
    breaks(exchange(), "PXG-MEM-001", |s| {
        let i = at(s, "on_event", Edge::Exit, Some(Phase::RESPONSE_HEADERS));
        s.records[i].sum = Some("2".into());
    });
}

#[test]
fn views() {
    let first = |s: &mut Story, name: &str| {
        entry(s, Phase::REQUEST_HEADERS)
            .fields
            .as_mut()
            .expect("recorded")
            .push((name.into(), "1".into()));
    };
    breaks(exchange(), "PXG-HDR-001", |s| first(s, "X-Upper"));
    breaks(exchange(), "PXG-HDR-001", |s| first(s, ":protocol"));
    breaks(exchange(), "PXG-HDR-001", |s| first(s, "host"));
    breaks(exchange(), "PXG-EVT-020", |s| {
        entry(s, Phase::RESPONSE_HEADERS).fields = None
    });
    breaks(upload(), "PXG-EVT-020", |s| {
        entry(s, Phase::REQUEST_BODY).fields = Some(fields(false))
    });
    breaks(exchange(), "PXG-EVT-013", |s| {
        entry(s, Phase::RESPONSE_HEADERS)
            .fields
            .as_mut()
            .expect("recorded")[0]
            .1 = "103".into();
    });
    breaks(exchange(), "PXG-EVT-021", |s| {
        entry(s, Phase::REQUEST_HEADERS).flags = Some(END)
    });
    breaks(upload(), "PXG-BODY-008", |s| {
        entry(s, Phase::REQUEST_BODY).chunks = Some(vec![10, 0])
    });
    breaks(upload(), "PXG-BODY-008", |s| {
        let mut many = vec![1; 9];
        many.extend([0; 56]);
        many[8] = 2;
        entry(s, Phase::REQUEST_BODY).chunks = Some(many);
    });
    breaks(upload(), "PXG-BODY-002", |s| {
        let i = s
            .records
            .iter()
            .rposition(|r| r.chunks.is_some())
            .expect("a view");
        s.records[i].body_offset = Some(9);
    });
    breaks(upload(), "PXG-EVT-011", |s| {
        let i = s
            .records
            .iter()
            .rposition(|r| r.chunks.is_some())
            .expect("a view");
        s.records[i].flags = Some(END | CAN);
    });
    breaks(upload(), "PXG-BODY-004", |s| {
        entry(s, Phase::REQUEST_BODY).flags = Some(CAN | EventFlags::OVER_LIMIT.0);
    });
    breaks(upload(), "PXG-BODY-018", |s| {
        entry(s, Phase::REQUEST_BODY).flags = Some(CAN | EventFlags::WHOLE_BODY.0);
    });
}

#[test]
fn empty_views_and_modes() {
    // In OBSERVE and STREAM an event without bytes is the end.
    let mut s = Story::with(u64::MAX, 0x7e, [2, 2], 0);
    s.event(Phase::REQUEST_HEADERS, CAN);
    s.body(Phase::REQUEST_BODY, 0, 0, LAST | CAN, plain(1));
    s.event(Phase::RESPONSE_HEADERS, END | CAN);
    breaks(s.end(), "PXG-EVT-011", |s| {
        entry(s, Phase::REQUEST_BODY).flags = Some(CAN)
    });
    breaks(upload(), "PXG-BODY-001", |s| {
        let i = at(s, "on_config_new", Edge::Exit, None);
        s.records[i].result.as_mut().expect("recorded").modes = [1, 1];
    });
    // WHOLE.
    let whole = EventFlags::WHOLE_BODY.0 | EventFlags::HEADERS_HELD.0;
    let mut s = Story::with(u64::MAX, 0x7e, [3, 3], 0);
    s.event(Phase::REQUEST_HEADERS, CAN);
    s.body(Phase::REQUEST_BODY, 0, 10, LAST | CAN | whole, plain(1));
    entry(&mut s, Phase::REQUEST_BODY).fields = Some(fields(false));
    s.event(Phase::RESPONSE_HEADERS, END | CAN);
    let s = s.end();
    breaks(s.clone(), "PXG-BODY-003", |s| {
        entry(s, Phase::REQUEST_BODY).flags = Some(LAST | CAN | EventFlags::HEADERS_HELD.0);
    });
    breaks(s, "PXG-TRL-002", |s| {
        // Trailers that were in the view come again.
        entry(s, Phase::REQUEST_BODY).flags = Some(EventFlags::BODY_END.0 | CAN | whole);
        let i = at(s, "on_event", Edge::Exit, Some(Phase::REQUEST_BODY));
        let mut t = Story {
            records: s.records[..=i].to_vec(),
            user: 2,
        };
        t.event(Phase::REQUEST_TRAILERS, END | CAN);
        let mut new: Vec<Record> = t.records[i + 1..].to_vec();
        for r in &mut new {
            r.token = Some(0x7777);
        }
        s.records.splice(i + 1..i + 1, new);
        let next = entry(s, Phase::RESPONSE_HEADERS);
        next.user = Some(3);
        next.preset.as_mut().expect("recorded").user = 3;
    });
    let mut s = Story::begin();
    s.event(Phase::REQUEST_HEADERS, CAN);
    s.event(Phase::REQUEST_TRAILERS, END | CAN);
    s.event(Phase::RESPONSE_HEADERS, END | CAN);
    let s = s.end();
    breaks(s.clone(), "PXG-TRL-003", |s| {
        entry(s, Phase::REQUEST_TRAILERS).trailers = None
    });
    breaks(s, "PXG-EVT-001", |s| {
        entry(s, Phase::REQUEST_TRAILERS).flags = Some(CAN)
    });
    // OBSERVE holds nothing.
    let mut s = Story::with(u64::MAX, 0x7e, [4, 4], 0);
    s.event(Phase::REQUEST_HEADERS, CAN);
    s.body(Phase::REQUEST_BODY, 0, 10, LAST | CAN, plain(1));
    s.event(Phase::RESPONSE_HEADERS, END | CAN);
    breaks(s.end(), "PXG-BODY-007", |s| {
        let r = entry(s, Phase::REQUEST_BODY);
        r.flags = Some(LAST | CAN | EventFlags::HEADERS_HELD.0);
        r.fields = Some(fields(false));
    });
}

#[test]
fn subscriptions() {
    breaks(exchange(), "PXG-NEG-005", |s| {
        let i = at(s, "on_config_new", Edge::Exit, None);
        s.records[i].result.as_mut().expect("recorded").subscribe &=
            !(1 << Phase::RESPONSE_HEADERS.0);
    });
    breaks(exchange(), "PXG-EVT-010", |s| {
        let i = at(s, "on_event", Edge::Exit, Some(Phase::REQUEST_HEADERS));
        s.records[i].result.as_mut().expect("recorded").unsubscribe =
            1 << Phase::RESPONSE_HEADERS.0;
    });
    breaks(exchange(), "PXG-CHN-002", |s| {
        let i = at(s, "on_config_new", Edge::Exit, None);
        s.records[i].result.as_mut().expect("recorded").pend = 1 << Phase::REQUEST_HEADERS.0;
    });
    breaks(exchange(), "PXG-EVT-014", |s| {
        let i = at(s, "on_event", Edge::Exit, Some(Phase::RESPONSE_HEADERS));
        s.records[i].result.as_mut().expect("recorded").action = 6;
    });
}
