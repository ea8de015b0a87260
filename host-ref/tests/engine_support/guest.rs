//! A scripted guest that records every call as owned values.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;

/// One event as the guest saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub guest: &'static str,
    pub phase: Phase,
    pub flags: EventFlags,
    pub user: u64,
    pub stream: u64,
    pub token: u64,
    pub arg: u64,
    pub fields: Vec<(String, String)>,
    pub trailers: Vec<(String, String)>,
    pub peer_fields: Vec<(String, String)>,
    pub peer_trailers: Vec<(String, String)>,
    pub chunks: Vec<Vec<u8>>,
    pub offset: u64,
    pub attrs: Vec<Option<Vec<u8>>>,
}

impl Seen {
    pub fn has(&self, flag: EventFlags) -> bool {
        self.flags.0 & flag.0 != 0
    }

    pub fn body(&self) -> Vec<u8> {
        self.chunks.concat()
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body()).unwrap()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(n, _)| n == name);
        found.map(|(_, v)| v.as_str())
    }
}

/// A call into a guest.
#[derive(Clone, Debug)]
pub enum Call {
    /// What it saw, and the action and the `user` that it returned.
    Event(Box<Seen>, Action, u64),
    Cancel {
        guest: &'static str,
        user: u64,
        stream: u64,
        token: u64,
    },
    StreamEnd {
        guest: &'static str,
        user: u64,
        stream: u64,
    },
    BatchEnd {
        guest: &'static str,
    },
    /// Not a call into the guest: it called `complete`, which answered so.
    Complete {
        token: u64,
        status: Status,
    },
}

pub type Calls = Arc<Mutex<Vec<Call>>>;
type Script = Box<dyn FnMut(&Seen) -> Answer + Send>;
type OnCancel = Box<dyn FnMut(u64) + Send>;

struct Mock {
    name: &'static str,
    library: u32,
    script: Mutex<Script>,
    on_cancel: Mutex<Option<OnCancel>>,
    calls: Calls,
}

impl Guest for Mock {
    fn event(&self, ev: &EventView<'_>, take: &mut dyn FnMut(Result<Outcome<'_>, Fault>)) {
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        let list = |f: &[FieldView<'_>]| {
            let pair = |f: &FieldView<'_>| (text(f.name()), text(f.value()));
            f.iter().map(pair).collect::<Vec<_>>()
        };
        let seen = Seen {
            guest: self.name,
            phase: ev.phase,
            flags: ev.flags,
            user: ev.user,
            stream: ev.stream,
            token: ev.token,
            arg: ev.arg,
            fields: list(ev.fields),
            trailers: list(ev.trailers),
            peer_fields: list(ev.peer_fields),
            peer_trailers: list(ev.peer_trailers),
            chunks: ev.chunks.iter().map(|c| c.bytes().to_vec()).collect(),
            offset: ev.body_offset,
            attrs: ev
                .attrs
                .iter()
                .map(|a| (!a.is_absent()).then(|| a.bytes().to_vec()))
                .collect(),
        };
        let mut answer = (self.script.lock().unwrap())(&seen);
        answer.outcome.user = answer.user.unwrap_or(ev.user);
        let call = Call::Event(Box::new(seen), answer.outcome.action, answer.outcome.user);
        self.calls.lock().unwrap().push(call);
        take(Ok(answer.outcome));
    }

    fn cancel(&self, user: u64, stream: u64, token: u64, _: u32) {
        self.calls.lock().unwrap().push(Call::Cancel {
            guest: self.name,
            user,
            stream,
            token,
        });
        if let Some(hook) = &mut *self.on_cancel.lock().unwrap() {
            hook(token);
        }
    }

    fn stream_end(&self, user: u64, stream: u64, _: u32) {
        self.calls.lock().unwrap().push(Call::StreamEnd {
            guest: self.name,
            user,
            stream,
        });
    }

    fn batch_end(&self, _: u32) {
        let guest = self.name;
        self.calls.lock().unwrap().push(Call::BatchEnd { guest });
    }

    fn library(&self) -> u32 {
        self.library
    }

    fn record_metric(&self, id: u32, _: i64) -> Status {
        if id == 1 {
            Status::OK
        } else {
            Status::NOTFOUND
        }
    }

    fn config(&self) -> u64 {
        u64::from(self.library)
    }
}

/// A filter to be: subscribes to nothing, body modes SKIP, and answers CONTINUE, until told otherwise.
pub struct Spec {
    pub name: &'static str,
    pub library: u32,
    pub declared: Declared,
    pub policy: Policy,
    pub without: Vec<Feature>,
    pub script: Script,
    pub on_cancel: Option<OnCancel>,
}

pub fn filter(name: &'static str) -> Spec {
    let mut known = [0; 4];
    for (feature, _) in Feature::ALL {
        known = feature.add_to(known);
    }
    Spec {
        name,
        library: u32::from(name.as_bytes()[0]),
        declared: Declared {
            body_mode: [BodyMode::SKIP; 2],
            max_body: [1 << 20; 2],
            known,
            ..Declared::default()
        },
        policy: Policy {
            hold_limit: Duration::from_secs(30),
            pend_limit: Duration::from_secs(10),
            ..Policy::default()
        },
        without: Vec::new(),
        script: Box::new(|_| cont()),
        on_cancel: None,
    }
}

impl Spec {
    pub fn on(mut self, phases: &[Phase]) -> Self {
        self.declared.subscribe |= mask(phases);
        self
    }

    pub fn pend(mut self, phases: &[Phase]) -> Self {
        self.declared.subscribe |= mask(phases);
        self.declared.pend_phases |= mask(phases);
        self
    }

    /// Subscribes to a direction's body, in this mode.
    pub fn body(mut self, dir: Dir, mode: BodyMode) -> Self {
        let phase = [REQ_B, RES_B][dir as usize];
        self.declared.subscribe |= phase_bit(phase);
        self.declared.body_mode[dir as usize] = mode;
        self
    }

    pub fn max_body(mut self, max: u64) -> Self {
        self.declared.max_body = [max; 2];
        self
    }

    pub fn flag(mut self, flag: ConfigFlags) -> Self {
        self.declared.flags = ConfigFlags(self.declared.flags.0 | flag.0);
        self
    }

    pub fn without(mut self, feature: Feature) -> Self {
        self.without.push(feature);
        self
    }

    pub fn open(mut self) -> Self {
        self.policy.failure_mode = FailureMode::Open;
        self
    }

    pub fn policy(mut self, change: impl FnOnce(&mut Policy)) -> Self {
        change(&mut self.policy);
        self
    }

    pub fn declare(mut self, change: impl FnOnce(&mut Declared)) -> Self {
        change(&mut self.declared);
        self
    }

    pub fn library(mut self, library: u32) -> Self {
        self.library = library;
        self
    }

    pub fn script(mut self, script: impl FnMut(&Seen) -> Answer + Send + 'static) -> Self {
        self.script = Box::new(script);
        self
    }

    pub fn on_cancel(mut self, hook: impl FnMut(u64) + Send + 'static) -> Self {
        self.on_cancel = Some(Box::new(hook));
        self
    }

    pub fn build(self, calls: &Calls) -> Arc<Filter> {
        let mut features = self.declared.known;
        for feature in &self.without {
            let only = feature.add_to([0; 4]);
            (0..4).for_each(|i| features[i] &= !only[i]);
        }
        Arc::new(Filter {
            name: self.name.to_owned(),
            guest: Arc::new(Mock {
                name: self.name,
                library: self.library,
                script: Mutex::new(self.script),
                on_cancel: Mutex::new(self.on_cancel),
                calls: Arc::clone(calls),
            }),
            declared: self.declared,
            policy: self.policy,
            features,
            stats: Arc::new(FilterStats::default()),
        })
    }
}
