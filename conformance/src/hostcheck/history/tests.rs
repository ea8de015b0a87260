//! Histories made by hand: one that keeps the rules, and for each invariant one change of it that must be found, by its
//! rule and by no other.

mod calls;
mod stream;
mod whole;

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
    breaks_all(story, &[rule], change);
}

/// What breaks one of them breaks the others.
fn breaks_all(story: Story, rules: &[&str], change: impl FnOnce(&mut Story)) {
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
    assert_eq!(s.rules(), rules, "{:#?}", s.found());
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
