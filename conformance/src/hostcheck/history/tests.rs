//! Histories made by hand: one that keeps the rules, and for each invariant one change of it that must be found, by its
//! rule and by no other.

use proxy_golang_abi::feature::Feature;
use proxy_golang_abi::{EventFlags, Phase};

use super::super::record::{Answer, Edge, HostTable, Preset, Record};
use super::{Configs, Found, check, check_run, configs};

const A: u64 = 1;
const STREAM: u64 = 0x100;

/// A history that grows call by call.
#[derive(Clone, Default)]
struct Story {
    records: Vec<Record>,
    user: u64,
}

fn fields(status: bool) -> Vec<(String, String)> {
    let names: &[(&str, &str)] = if status {
        &[(":status", "200"), ("x-a", "1")]
    } else {
        &[
            (":method", "GET"),
            (":path", "/"),
            (":scheme", "http"),
            (":authority", "a"),
            ("x-a", "1"),
        ]
    };
    names
        .iter()
        .map(|(n, v)| ((*n).into(), (*v).into()))
        .collect()
}

fn plain(action: u32) -> Answer {
    Answer {
        action,
        ..Answer::default()
    }
}

impl Story {
    fn push(&mut self, function: &str, edge: Edge) -> &mut Record {
        let seq = self.records.len() as u64 + 1;
        self.records.push(Record {
            seq,
            t: seq,
            pid: 7,
            tid: 10,
            function: function.into(),
            edge,
            ..Record::default()
        });
        self.records.last_mut().expect("pushed above")
    }

    /// A library in its process, and a configuration that subscribes to everything and may pend everywhere.
    fn begin() -> Self {
        Self::with(u64::MAX, 0x7e, [0, 0], 0)
    }

    fn with(subscribe: u64, pend: u64, modes: [u32; 2], flags: u32) -> Self {
        let mut s = Self::default();
        s.push("init", Edge::Enter).host = Some(HostTable {
            size: size_of::<proxy_golang_abi::Host>() as u32,
            major: 1,
            n_workers: 2,
            features: features(),
            entries: [true; 7],
            ..HostTable::default()
        });
        s.push("init", Edge::Exit);
        s.push("on_config_new", Edge::Enter).features = Some(features());
        let r = s.push("on_config_new", Edge::Exit);
        r.config = Some(A);
        r.instance = Some("a".into());
        r.status = Some(0);
        r.result = Some(Answer {
            subscribe,
            pend,
            modes,
            flags,
            max_body: [100, 100],
            ..Answer::default()
        });
        for r in &mut s.records {
            r.tid = 5;
        }
        let r = s.push("on_worker", Edge::Enter);
        (r.worker, r.arg, r.stack) = (Some(0), Some(1), Some(1 << 20));
        s.push("on_worker", Edge::Exit);
        s
    }

    fn enter(&mut self, phase: Phase, flags: u32) -> &mut Record {
        let user = self.user;
        let token = if (1..=6).contains(&phase.0) {
            0x1000 + self.records.len() as u64
        } else {
            0
        };
        let r = self.push("on_event", Edge::Enter);
        r.instance = Some("a".into());
        r.config = Some(A);
        r.stream = Some(STREAM);
        r.token = Some(token);
        r.user = Some(user);
        r.worker = Some(0);
        r.phase = Some(phase.0);
        r.flags = Some(flags);
        r.size = Some(size_of::<proxy_golang_abi::Event>() as u32);
        r.sum = Some("1".into());
        r.preset = Some(Preset {
            size: size_of::<proxy_golang_abi::EventResult>() as u32,
            user,
            zero: true,
            ops_cap: 32,
            cap: 4096,
            ..Preset::default()
        });
        match phase {
            Phase::REQUEST_HEADERS => r.fields = Some(fields(false)),
            Phase::RESPONSE_HEADERS => r.fields = Some(fields(true)),
            Phase::REQUEST_TRAILERS | Phase::RESPONSE_TRAILERS => {
                r.trailers = Some(vec![("x-t".into(), "1".into())]);
            }
            Phase::LOG => r.arg = Some(0x1101),
            _ => {}
        }
        r
    }

    fn exit(&mut self, answer: Answer) -> &mut Record {
        let of = self
            .records
            .iter()
            .rev()
            .find(|r| r.is("on_event", Edge::Enter))
            .cloned()
            .expect("an event was entered");
        self.user += 1;
        let user = self.user;
        let r = self.push("on_event", Edge::Exit);
        r.instance = Some("a".into());
        (r.config, r.stream, r.token, r.phase) = (of.config, of.stream, of.token, of.phase);
        r.sum = Some("1".into());
        r.result = Some(Answer { user, ..answer });
        r
    }

    /// A whole event that is answered with CONTINUE; the index of its entry.
    fn event(&mut self, phase: Phase, flags: u32) -> usize {
        self.enter(phase, flags);
        let at = self.records.len() - 1;
        self.exit(plain(1));
        at
    }

    fn body(&mut self, phase: Phase, offset: u64, len: u64, flags: u32, answer: Answer) -> usize {
        let r = self.enter(phase, flags);
        r.body_offset = Some(offset);
        r.chunks = Some(if len == 0 { vec![] } else { vec![len] });
        let at = self.records.len() - 1;
        self.exit(answer);
        at
    }

    fn hook(&mut self, function: &str) -> usize {
        let user = self.user;
        let r = self.push(function, Edge::Enter);
        (r.config, r.stream, r.user, r.worker) = (Some(A), Some(STREAM), Some(user), Some(0));
        r.instance = Some("a".into());
        let at = self.records.len() - 1;
        let r = self.push(function, Edge::Exit);
        (r.config, r.stream) = (Some(A), Some(STREAM));
        at
    }

    fn call(&mut self, function: &str, value: u64, answer: Answer, status: i32) {
        let complete = function == "complete";
        for edge in [Edge::Enter, Edge::Exit] {
            let r = self.push(function, edge);
            r.tid = 20;
            r.config = Some(A);
            if complete {
                r.token = Some(value);
            } else {
                r.stream = Some(value);
            }
            if edge == Edge::Enter {
                r.result = Some(answer.clone());
            } else {
                r.status = Some(status);
            }
        }
    }

    /// LOG and the end.
    fn end(mut self) -> Self {
        self.event(Phase::LOG, 0);
        self.hook("on_stream_end");
        self
    }

    fn found(&self) -> Vec<Found> {
        let all: Configs = configs(self.records.iter());
        let mut found = check(&self.records, &all, &features(), true);
        found.extend(check_run(&self.records, &features(), true));
        found
    }

    fn rules(&self) -> Vec<&'static str> {
        let mut all: Vec<&'static str> = self.found().iter().map(|f| f.rule).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

fn features() -> [u64; 4] {
    let mut f = [0; 4];
    // All but BATCH_END, which has its own test.
    for (x, _) in Feature::ALL {
        if *x != Feature::BATCH_END {
            f[0] |= 1 << x.0;
        }
    }
    f
}

const END: u32 = EventFlags::END_STREAM.0;
const CAN: u32 = EventFlags::CAN_REPLY.0;
const LAST: u32 = EventFlags::END_STREAM.0 | EventFlags::BODY_END.0;

/// A GET that is answered.
fn exchange() -> Story {
    let mut s = Story::begin();
    s.event(Phase::REQUEST_HEADERS, END | CAN);
    s.event(Phase::RESPONSE_HEADERS, END | CAN);
    s.end()
}

/// A POST in STREAM, in two views.
fn upload() -> Story {
    let mut s = Story::with(u64::MAX, 0x7e, [2, 2], 0);
    s.event(Phase::REQUEST_HEADERS, CAN);
    s.body(Phase::REQUEST_BODY, 0, 10, CAN, plain(1));
    s.body(Phase::REQUEST_BODY, 10, 5, LAST | CAN, plain(1));
    s.event(Phase::RESPONSE_HEADERS, END | CAN);
    s.end()
}

/// The request's headers pend; completed from another thread.
fn pended(flags: u32) -> (Story, u64) {
    let mut s = Story::with(u64::MAX, 0x7e, [0, 0], flags);
    s.enter(Phase::REQUEST_HEADERS, END | CAN);
    let token = s.records.last().and_then(|r| r.token).expect("it may pend");
    s.exit(plain(2));
    (s, token)
}

fn completed() -> Story {
    let (mut s, token) = pended(0);
    s.call("complete", token, plain(1), 0);
    s.event(Phase::RESPONSE_HEADERS, END | CAN);
    s.end()
}

/// `change` breaks a story that keeps the rules: exactly `rule` is found.
#[track_caller]
fn breaks(story: Story, rule: &str, change: impl FnOnce(&mut Story)) {
    assert_eq!(
        story.rules(),
        Vec::<&str>::new(),
        "before the change: {:#?}",
        story.found()
    );
    let mut s = story;
    change(&mut s);
    for (i, r) in s.records.iter_mut().enumerate() {
        r.seq = i as u64 + 1;
    }
    assert_eq!(s.rules(), vec![rule], "{:#?}", s.found());
}

fn at(s: &Story, function: &str, edge: Edge, phase: Option<Phase>) -> usize {
    s.records
        .iter()
        .position(|r| r.is(function, edge) && phase.is_none_or(|p| r.phase == Some(p.0)))
        .expect("the story has it")
}

fn entry(s: &mut Story, phase: Phase) -> &mut Record {
    let i = at(s, "on_event", Edge::Enter, Some(phase));
    &mut s.records[i]
}

fn remove(s: &mut Story, function: &str, phase: Option<Phase>) {
    let i = at(s, function, Edge::Enter, phase);
    s.records.drain(i..i + 2);
}

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
    breaks(upload(), "PXG-EVT-001", |s| {
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
