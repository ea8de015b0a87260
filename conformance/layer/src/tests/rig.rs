//! Plays a host and a guest against the model, without either.

use proxy_golang_abi as abi;
use proxy_golang_abi::feature::{Feature, FeatureSet, set_of};
use proxy_golang_abi::{Action, BodyMode, EventFlags, Phase, Status};
use proxy_golang_conformance::parts::config::ConfigMade;
use proxy_golang_conformance::parts::model::{
    Array, Buffer, Op, Outcome, Region, Reply, ReplyFound, Text,
};

use crate::library::{Asked, Findings, Library};
use crate::report::Side;
use crate::sys::view;

pub(super) fn all_features() -> FeatureSet {
    let all: Vec<Feature> = Feature::ALL.iter().map(|(f, _)| *f).collect();
    set_of(&all)
}

pub(super) struct Rig {
    pub(super) library: Library,
    found: Vec<(String, String, String)>,
    token: u64,
    /// The last token that was issued.
    pub(super) last_token: u64,
    pub(super) in_host: Option<&'static str>,
    pub(super) worker: u32,
}

/// What the tables of both sides say.
pub(super) struct Terms {
    pub(super) features: FeatureSet,
    pub(super) n_workers: u32,
    pub(super) asked: Asked,
}

pub(super) fn terms() -> Terms {
    // The test's only thread is both: without CONFIG_THREAD that is legal.
    let mut features = all_features();
    features[0] &= !(1 << 40);
    Terms {
        features,
        n_workers: 2,
        asked: Asked::default(),
    }
}

impl Rig {
    pub(super) fn new() -> Self {
        let mut rig = Self::with(terms());
        rig.up(0);
        rig
    }

    pub(super) fn with(terms: Terms) -> Self {
        let library = Library::new(0, terms.features, terms.n_workers);
        let _ = library.asked.set(terms.asked);
        Self {
            library,
            found: Vec::new(),
            token: 100,
            last_token: 0,
            in_host: None,
            worker: 0,
        }
    }

    pub(super) fn take(&mut self, f: Findings) {
        for x in f.list {
            let side = match x.side {
                Side::Host => "host",
                Side::Guest => "guest",
            };
            self.found
                .push((x.rule.to_string(), side.to_string(), x.what));
        }
    }

    pub(super) fn found(&self) -> Vec<(&str, &str, &str)> {
        self.found
            .iter()
            .map(|(r, s, w)| (r.as_str(), s.as_str(), w.as_str()))
            .collect()
    }

    pub(super) fn up(&mut self, worker: u32) {
        let f = self.library.worker_enter(worker, 1, None);
        self.take(f);
    }

    /// A configuration that declares `made`.
    pub(super) fn configure(&mut self, made: &ConfigMade) {
        self.configure_as("main", 0, made);
    }

    pub(super) fn configure_as(&mut self, name: &str, parent: u64, made: &ConfigMade) {
        let features = self.library.features;
        self.configure_with(name, parent, 0, features, made);
    }

    pub(super) fn configure_with(
        &mut self,
        name: &str,
        parent: u64,
        flags: u32,
        features: FeatureSet,
        made: &ConfigMade,
    ) {
        let filter = b"filter";
        let input = abi::ConfigIn {
            size: u32::try_from(size_of::<abi::ConfigIn>()).unwrap(),
            flags: abi::ConfigInFlags(flags),
            features,
            filter: text(filter),
            name: text(name.as_bytes()),
            bytes: text(b""),
            parent,
        };
        let seen = view::config(&raw const input as u64).unwrap();
        let f = self.library.config_new_enter(&seen, self.in_host);
        self.take(f);
        let f = self
            .library
            .config_new_leave(&seen, made, 0, 0, seen.seen.changed());
        self.take(f);
    }

    /// An event, and what the guest answers.
    pub(super) fn send(&mut self, ev: &Ev, o: &Outcome) {
        self.send_and(ev, o, |_| {});
    }

    /// The same, with what happens while `on_event` runs.
    pub(super) fn send_and(&mut self, ev: &Ev, o: &Outcome, meanwhile: impl FnOnce(&mut Self)) {
        let token = ev.token.unwrap_or_else(|| {
            self.token += 1;
            self.token
        });
        let token = if ev.pends { token } else { 0 };
        self.last_token = token;
        let (seen, changed, call, f);
        {
            let mut keep = Keep::default();
            let raw = ev.raw(self.worker, token, &mut keep);
            seen = view::event(&raw const raw as u64).unwrap();
            (call, f) = self.library.event_enter(&seen, self.in_host, Vec::new());
            self.take(f);
            if ev.changes {
                keep.spoil();
            }
            changed = seen.seen.changed().map(|what| {
                crate::report::host("PXG-MEM-001", format!("{what} changed"), "nothing changes")
            });
        }
        meanwhile(self);
        let mut o = o.clone();
        if o.user == KEEP_USER {
            o.user = ev.user;
        }
        let f = self.library.event_leave(&call, &o, changed);
        self.take(f);
    }

    pub(super) fn cancel(&mut self, stream: u64, token: u64, user: u64) {
        let f = self
            .library
            .cancel_enter(1, user, stream, token, self.worker, self.in_host);
        self.take(f);
        self.library.cancel_leave(stream);
    }

    pub(super) fn end(&mut self, stream: u64, user: u64) {
        let f = self
            .library
            .stream_end_enter(1, user, stream, self.worker, self.in_host);
        self.take(f);
    }

    pub(super) fn drop_config(&mut self, config: u64) {
        let f = self.library.config_drop_enter(config, self.in_host);
        self.take(f);
        self.library.config_thread_end();
    }

    pub(super) fn complete(&mut self, token: u64, o: &Outcome, answer: Status) {
        let (call, f) = self.library.complete_enter(token, Some(o), false);
        self.take(f);
        let f = self.library.complete_leave(&call, answer);
        self.take(f);
    }

    pub(super) fn apply(&mut self, stream: u64, o: &Outcome, answer: Status) {
        let (call, f) = self.library.apply_enter(stream, Some(o), false);
        self.take(f);
        let f = self.library.apply_leave(&call, answer);
        self.take(f);
    }

    pub(super) fn wake(&mut self, stream: u64, arg: u64, answer: Status) {
        let ended = self.library.has_ended(stream);
        let f = self.library.wake_enter(stream, arg, false);
        self.take(f);
        let f = self.library.wake_leave(stream, ended, answer);
        self.take(f);
    }
}

fn text(b: &[u8]) -> abi::Str {
    abi::Str {
        ptr: if b.is_empty() {
            std::ptr::null()
        } else {
            b.as_ptr()
        },
        len: u32::try_from(b.len()).unwrap(),
        flags: abi::StrFlags(0),
    }
}

/// What the pointers of a raw event lead to.
#[derive(Default)]
struct Keep {
    bytes: Vec<Box<[u8]>>,
    fields: Vec<Box<[abi::Field]>>,
    strings: Vec<Box<[abi::Str]>>,
}

impl Keep {
    fn text(&mut self, b: &[u8]) -> abi::Str {
        self.bytes.push(b.into());
        text(self.bytes.last().unwrap())
    }

    fn spoil(&mut self) {
        if let Some(b) = self.bytes.iter_mut().find(|b| !b.is_empty()) {
            b[0] ^= 1;
        }
    }
}

pub(super) type Pairs = Vec<(String, String)>;

/// An event to be sent. What a right host would send is the default of [`Ev::new`].
#[derive(Clone)]
pub(super) struct Ev {
    pub(super) phase: Phase,
    pub(super) flags: u32,
    pub(super) config: u64,
    pub(super) user: u64,
    pub(super) stream: u64,
    pub(super) token: Option<u64>,
    pub(super) pends: bool,
    pub(super) arg: u64,
    pub(super) fields: Pairs,
    pub(super) trailers: Pairs,
    pub(super) peer_fields: Pairs,
    pub(super) chunks: Vec<Vec<u8>>,
    pub(super) offset: u64,
    /// None: ABSENT.
    pub(super) attrs: Vec<Option<String>>,
    pub(super) size: u32,
    /// The host changes the view while the guest reads it.
    pub(super) changes: bool,
    pub(super) null_fields: u64,
}

pub(super) fn pairs(p: &[(&str, &str)]) -> Pairs {
    p.iter()
        .map(|(n, v)| ((*n).to_string(), (*v).to_string()))
        .collect()
}

impl Ev {
    /// A right event of a phase.
    pub(super) fn new(phase: Phase) -> Self {
        let (fields, trailers) = match phase {
            Phase::REQUEST_HEADERS => (
                pairs(&[
                    (":method", "GET"),
                    (":scheme", "http"),
                    (":path", "/"),
                    (":authority", "a"),
                    ("x-a", "1"),
                ]),
                vec![],
            ),
            Phase::RESPONSE_HEADERS | Phase::LOG => {
                (pairs(&[(":status", "200"), ("x-b", "2")]), vec![])
            }
            Phase::REQUEST_TRAILERS | Phase::RESPONSE_TRAILERS => (vec![], pairs(&[("x-t", "3")])),
            _ => (vec![], vec![]),
        };
        let flags = match phase {
            Phase::REQUEST_HEADERS | Phase::RESPONSE_HEADERS | Phase::REQUEST_BODY => {
                EventFlags::CAN_REPLY.0
            }
            Phase::REQUEST_TRAILERS | Phase::RESPONSE_TRAILERS => EventFlags::END_STREAM.0,
            _ => 0,
        };
        Self {
            phase,
            flags,
            config: 1,
            user: 0,
            stream: 5,
            token: None,
            pends: !matches!(phase, Phase::LOG | Phase::WAKE),
            arg: if phase == Phase::LOG { 0x1101 } else { 0 },
            fields,
            trailers,
            peer_fields: vec![],
            chunks: vec![],
            offset: 0,
            attrs: vec![],
            size: u32::try_from(size_of::<abi::Event>()).unwrap(),
            changes: false,
            null_fields: 0,
        }
    }

    pub(super) fn headers() -> Self {
        Self::new(Phase::REQUEST_HEADERS)
    }

    pub(super) fn response() -> Self {
        Self::new(Phase::RESPONSE_HEADERS)
    }

    pub(super) fn log() -> Self {
        Self::new(Phase::LOG)
    }

    /// A request body's event.
    pub(super) fn body(offset: u64, chunk: &str) -> Self {
        let mut e = Self::new(Phase::REQUEST_BODY);
        e.offset = offset;
        if !chunk.is_empty() {
            e.chunks = vec![chunk.as_bytes().to_vec()];
        }
        e
    }

    pub(super) fn with(mut self, f: EventFlags) -> Self {
        self.flags |= f.0;
        self
    }

    pub(super) fn without(mut self, f: EventFlags) -> Self {
        self.flags &= !f.0;
        self
    }

    pub(super) fn edit(mut self, f: impl FnOnce(&mut Self)) -> Self {
        f(&mut self);
        self
    }

    fn raw(&self, worker: u32, token: u64, keep: &mut Keep) -> abi::Event {
        let mut list = |p: &Pairs| {
            let v: Box<[abi::Field]> = p
                .iter()
                .map(|(n, v)| abi::Field {
                    name: keep.text(n.as_bytes()),
                    value: keep.text(v.as_bytes()),
                })
                .collect();
            keep.fields.push(v);
            let v = keep.fields.last().unwrap();
            (
                if v.is_empty() {
                    std::ptr::null()
                } else {
                    v.as_ptr()
                },
                v.len() as u64,
            )
        };
        let (fields, n_fields) = list(&self.fields);
        let (trailers, n_trailers) = list(&self.trailers);
        let (peer_fields, n_peer_fields) = list(&self.peer_fields);
        let mut strings = |v: Vec<abi::Str>| {
            keep.strings.push(v.into());
            let v = keep.strings.last().unwrap();
            (
                if v.is_empty() {
                    std::ptr::null()
                } else {
                    v.as_ptr()
                },
                v.len() as u64,
            )
        };
        let _ = &mut strings;
        let chunks: Vec<abi::Str> = self.chunks.iter().map(|c| keep.text(c)).collect();
        let attrs: Vec<abi::Str> = self
            .attrs
            .iter()
            .map(|a| match a {
                Some(a) => keep.text(a.as_bytes()),
                None => abi::Str::ABSENT,
            })
            .collect();
        let mut strings = |v: Vec<abi::Str>| {
            keep.strings.push(v.into());
            let v = keep.strings.last().unwrap();
            (
                if v.is_empty() {
                    std::ptr::null()
                } else {
                    v.as_ptr()
                },
                v.len() as u64,
            )
        };
        let (chunks, n_chunks) = strings(chunks);
        let (attrs, n_attrs) = strings(attrs);
        abi::Event {
            size: self.size,
            phase: self.phase,
            flags: EventFlags(self.flags),
            worker,
            config: self.config,
            user: self.user,
            stream: self.stream,
            token,
            arg: self.arg,
            fields,
            n_fields: n_fields + self.null_fields,
            trailers,
            n_trailers,
            peer_fields,
            n_peer_fields,
            peer_trailers: std::ptr::null(),
            n_peer_trailers: 0,
            chunks,
            n_chunks,
            body_offset: self.offset,
            attrs,
            n_attrs,
        }
    }
}

/// In an outcome: `user` as it was.
const KEEP_USER: u64 = u64::MAX;

fn empty<T>() -> Array<T> {
    Array {
        ptr: 0,
        count: 0,
        region: Region::Null,
        items: Some(Vec::new()),
        bytes: 0,
    }
}

pub(super) fn given(b: &[u8]) -> Text {
    Text {
        ptr: if b.is_empty() { 0 } else { 0x1000 },
        len: u32::try_from(b.len()).unwrap(),
        flags: 0,
        bytes: Some(b.to_vec()),
        region: if b.is_empty() {
            Region::Null
        } else {
            Region::Guest
        },
    }
}

/// A result with an action and nothing else.
pub(super) fn answer(action: Action) -> Outcome {
    Outcome {
        size: u32::try_from(size_of::<abi::EventResult>()).unwrap(),
        action,
        flags: 0,
        reserved0: 0,
        user: KEEP_USER,
        ops: empty(),
        reply: if action == Action::REPLY {
            ReplyFound::Some(Box::new(Reply {
                size: u32::try_from(size_of::<abi::Reply>()).unwrap(),
                status: 403,
                flags: 0,
                grpc_status: 0,
                fields: empty(),
                body: empty(),
                trailers: empty(),
                details: given(b""),
                tail_is_zero: true,
            }))
        } else {
            ReplyFound::None
        },
        unsubscribe: 0,
        body_mode: [BodyMode::UNSET; 2],
        more_bytes: 0,
        pend_ns: 0,
        error: given(b""),
        tail_is_zero: true,
    }
}

/// One operation.
pub(super) fn op(kind: u16, u0: u64, key: &str, val: &str) -> Op {
    Op {
        kind,
        flags: 0,
        target: 0,
        u0,
        key: given(key.as_bytes()),
        val: Buffer {
            text: given(val.as_bytes()),
            release: 0,
            ctx: 0,
        },
    }
}

pub(super) fn with_ops(mut o: Outcome, ops: Vec<Op>) -> Outcome {
    o.ops = Array {
        ptr: 0x1000,
        count: ops.len() as u64,
        region: Region::Guest,
        bytes: 64 * ops.len() as u64,
        items: Some(ops),
    };
    o
}

/// A configuration with the value 1 that subscribes to everything and may pend everywhere.
pub(super) fn config() -> ConfigMade {
    ConfigMade {
        status: 0,
        flags: 0,
        config: 1,
        subscribe: 0x1fe,
        pend_phases: 0x7e,
        body_mode: [BodyMode::STREAM, BodyMode::STREAM],
        max_body: [0, 0],
        attrs: empty(),
        projection: empty(),
        error: given(b""),
    }
}
