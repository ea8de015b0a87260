//! The engine, driven by a byte string: which guests there are, what each of them answers, legal or not, and what
//! happens to the stream. The driver asserts what must hold of everything that comes out; at the end each token has
//! been ended once, LOG and the stream's end came once, and every OWNED buffer was released.

#[path = "../../tests/engine_support/mod.rs"]
mod engine_support;

use std::sync::{Arc, Mutex};

use engine_support::*;

use super::Source;

const NAMES: [&str; 3] = ["a", "b", "c"];
const FIELD_NAMES: [&[u8]; 10] = [
    b"x-a",
    b"x-b",
    b":path",
    b":status",
    b"content-length",
    b"connection",
    b"cookie",
    b"",
    b"X-Upper",
    b"bad name",
];
const VALUES: [&[u8]; 6] = [b"", b"1", b"/other", b"503", b"a\r\nb", b"\x00"];
const NUMBERS: [u64; 8] = [0, 1, 2, 7, 100, 5000, 1 << 40, u64::MAX];

fn text(s: &mut Source) -> Bytes {
    Bytes::from_static(s.of(&[&b"inject"[..], b"", b"0123456789"]))
}

fn op(s: &mut Source, owned: &Owned) -> OpKind<'static> {
    let target = Target(s.of(&[0, 0, 0, 1, 2, 9]));
    let (name, value, n) = (s.of(&FIELD_NAMES), s.of(&VALUES), s.of(&NUMBERS));
    match s.below(16) {
        0 | 1 => OpKind::Set {
            target,
            name,
            value,
        },
        2 => OpKind::Add {
            target,
            name,
            value,
        },
        3 => OpKind::Delete { target, name },
        4 => OpKind::SetAt {
            target,
            index: n,
            value,
        },
        5 => OpKind::DeleteAt { target, index: n },
        6..=8 => OpKind::Pass(n),
        9 | 10 => OpKind::Drop(n),
        11 => OpKind::Inject(Payload::Shared(text(s))),
        12 => OpKind::Inject(Payload::Shared(owned.bytes(b"owned"))),
        13 => OpKind::BodyWrite {
            bytes: Payload::Shared(owned.bytes(b"written")),
            end: s.odds(2),
        },
        14 => match s.below(4) {
            0 => OpKind::Route(None),
            1 => OpKind::Route(Some(b"cluster")),
            2 => OpKind::Metric { id: 1, value: -1 },
            _ => OpKind::Unknown(999),
        },
        _ => OpKind::Metadata {
            namespace: b"",
            key: name,
            value,
        },
    }
}

fn reply_of(s: &mut Source, owned: &Owned) -> Box<Reply<'static>> {
    let mut made = plain_reply(s.of(&[200, 204, 304, 403, 599, 100, 0, 700]), "");
    made.flags = ReplyFlags(s.of(&[0, 0, 1, 2, 4, 3, 64]));
    made.body = match s.below(3) {
        0 => [].into_iter().collect(),
        1 => [Payload::Shared(owned.bytes(b"reply"))]
            .into_iter()
            .collect(),
        _ => [Payload::Borrowed(b"one"), Payload::Shared(text(s))]
            .into_iter()
            .collect(),
    };
    if s.odds(3) {
        made.fields.push((s.of(&FIELD_NAMES), s.of(&VALUES)));
    }
    if s.odds(4) {
        made.trailers.push((s.of(&FIELD_NAMES), s.of(&VALUES)));
    }
    made
}

fn decide(s: &mut Source, owned: &Owned, may_pend: bool) -> Answer {
    let action = match s.below(16) {
        0..=6 => Action::CONTINUE,
        7 | 8 if may_pend => Action::PENDING,
        7..=9 => Action::MORE,
        10 => Action::REPLY,
        11 => Action::RESET,
        12 => Action::ERROR,
        13 => Action(s.of(&[0, 9, 77])),
        _ => Action::CONTINUE,
    };
    let mut made = answer(action);
    if s.odds(4) {
        made.user = Some(u64::from(s.byte()));
    }
    if action == Action::PENDING {
        // It carries nothing else, or it is no PENDING: which one it was is not known here.
        made.outcome.pend_ns = s.of(&NUMBERS);
        return made;
    }
    let o = &mut made.outcome;
    if action == Action::REPLY && !s.odds(8) || s.odds(16) {
        o.reply = Some(reply_of(s, owned));
    }
    for _ in 0..s.of(&[0, 0, 1, 1, 2, 5]) {
        let kind = op(s, owned);
        o.ops.push(Op {
            must: s.odds(4),
            sensitive: s.odds(8),
            kind,
        });
    }
    if s.odds(6) {
        o.body_mode[s.below(2)] = BodyMode(s.of(&[1, 2, 3, 4, 5]));
    }
    if s.odds(8) {
        o.unsubscribe = s.of(&[0x7e, 0x4, 0x20, 0x80, 0xff, 1 << 40]);
    }
    if s.odds(6) {
        o.more_bytes = s.of(&NUMBERS);
    }
    if s.odds(8) {
        o.pend_ns = s.of(&NUMBERS);
    }
    if s.odds(8) {
        o.flags = ResultFlags(s.of(&[1, 2, 3, 0x80]));
    }
    made
}

/// Which tokens each guest may complete.
type Tokens = Arc<Mutex<Vec<(&'static str, u64)>>>;

fn spec(
    name: &'static str,
    s: &mut Source,
    source: &Arc<Mutex<Source>>,
    owned: &Owned,
    tokens: &Tokens,
) -> Spec {
    let mut spec = filter(name);
    let on: Vec<Phase> = ALL_PHASES.into_iter().filter(|_| s.below(4) > 0).collect();
    spec = spec.on(&on);
    spec.declared.body_mode = [0, 1].map(|_| BodyMode(s.of(&[1, 2, 2, 3, 4])));
    spec.declared.max_body = [0, 1].map(|_| s.of(&[3, 20, 1 << 20]));
    spec.declared.flags = ConfigFlags(u32::from(s.byte()));
    let pends = s.odds(2);
    if pends {
        let may: Vec<Phase> = on
            .iter()
            .copied()
            .filter(|p| *p != LOG && *p != WAKE)
            .collect();
        spec = spec.pend(&may);
    }
    if s.odds(3) {
        spec = spec.open();
    }
    for _ in 0..s.of(&[0, 0, 1, 4]) {
        spec = spec.without(Feature::ALL[s.below(Feature::ALL.len())].0);
    }
    let (source, owned, tokens) = (Arc::clone(source), owned.clone(), Arc::clone(tokens));
    spec.script(move |e| {
        let mut s = source.lock().unwrap();
        let made = decide(&mut s, &owned, e.token != 0);
        if e.token != 0 && made.outcome.action == Action::PENDING {
            tokens.lock().unwrap().push((name, e.token));
        }
        made
    })
}

struct Run {
    world: World,
    owned: Owned,
    source: Arc<Mutex<Source>>,
    tokens: Tokens,
    /// The driver may give more of this direction in.
    open: [bool; 2],
    /// What a known length leaves.
    left: [Option<u64>; 2],
    responded: bool,
    time: u64,
}

pub fn run(data: &[u8]) {
    if data.len() > 4096 {
        return;
    }
    let owned = Owned::default();
    {
        let mut s = Source::new(data);
        // Guests answer from the second half, so that both parts change by themselves.
        let source = Arc::new(Mutex::new(Source::new(&data[data.len() / 2..])));
        let tokens = Tokens::default();
        let n = s.of(&[1, 1, 2, 3]);
        let specs = NAMES[..n]
            .iter()
            .map(|name| spec(name, &mut s, &source, &owned, &tokens))
            .collect();
        let limits = StreamLimits {
            buffer: s.of(&[1, 50, 1 << 16]),
            max_ops: s.of(&[4096, 2]),
            max_fields: s.of(&[256, 8]),
            trace: s.odds(4),
            ..StreamLimits::default()
        };
        let mut run = Run {
            world: World::with(hub(), specs, limits),
            owned: owned.clone(),
            source,
            tokens,
            open: [true, false],
            left: [None, None],
            responded: false,
            time: 1,
        };
        run.request(&mut s);
        for _ in 0..200 {
            if s.at >= data.len() / 2 || run.world.finished() {
                break;
            }
            run.step(&mut s);
        }
        run.end();
    }
    let (made, released) = owned.counts();
    assert_eq!(made, released, "OWNED buffers that were not released");
}

impl Run {
    fn request(&mut self, s: &mut Source) {
        let length = s.of(&[BodyLength::None, BodyLength::Unknown, BodyLength::Exact(12)]);
        self.begin(Dir::Request, length);
        let list = [("x-a", "1"), ("cookie", "c"), ("x-b", "")];
        let n = s.below(4);
        self.world.request_of("POST", &list[..n], length);
    }

    fn begin(&mut self, dir: Dir, length: BodyLength) {
        let d = dir as usize;
        self.left[d] = match length {
            BodyLength::Exact(n) => Some(n),
            _ => None,
        };
        self.open[d] = !matches!(length, BodyLength::None | BodyLength::Exact(0));
    }

    fn step(&mut self, s: &mut Source) {
        let dir = s.of(&[Dir::Request, Dir::Response]);
        let d = dir as usize;
        match s.below(16) {
            0..=3 if self.open[d] => {
                let mut n = s.of(&[1, 2, 5, 30]);
                if let Some(left) = &mut self.left[d] {
                    n = n.min(*left);
                    *left -= n;
                }
                if n > 0 {
                    let n = usize::try_from(n).unwrap();
                    self.world.data(dir, vec![b'd'; n]);
                }
                self.end_if_full(dir);
            }
            4 | 5 if self.open[d] && self.left[d].is_none() => {
                self.open[d] = false;
                let trailers = s.odds(3);
                self.world.end_with(dir, trailers.then_some(&[("t", "1")]));
            }
            6 | 7 if self.world.upstream.head.is_some() && !self.responded => {
                self.responded = true;
                let length = s.of(&[
                    BodyLength::Unknown,
                    BodyLength::None,
                    BodyLength::Exact(9),
                    BodyLength::Exact(0),
                ]);
                self.begin(Dir::Response, length);
                let status = if length == BodyLength::None {
                    "204"
                } else {
                    "200"
                };
                self.world.response(status, length);
            }
            8 | 9 => self.complete(s),
            10 => {
                self.time += s.of(&[1, 60, 40_000]) * MS;
                self.world.at(self.time);
            }
            11 => self.wake_or_apply(s),
            12 => {
                self.world.blocked[d] = !self.world.blocked[d];
                self.world.pump();
            }
            13 => self.world.end_batch(),
            14 if s.odds(3) => {
                let why = s.of(&[Cut::Sender, Cut::Receiver, Cut::Timeout]);
                self.open[d] = false;
                self.world.on(|st, cx| st.cut(cx, dir, why));
            }
            15 if s.odds(3) && !self.responded => {
                self.responded = true;
                self.open[1] = false;
                self.world.on(|st, cx| {
                    st.host_reply(cx, 503, "text/plain", Bytes::from_static(b"no"), "x")
                });
            }
            _ => {}
        }
    }

    fn end_if_full(&mut self, dir: Dir) {
        let d = dir as usize;
        if self.open[d] && self.left[d] == Some(0) {
            self.open[d] = false;
            self.world.end(dir);
        }
    }

    fn complete(&mut self, s: &mut Source) {
        let n = s.below(4);
        let chosen = self.tokens.lock().unwrap().get(n).copied();
        if let Some((guest, token)) = chosen {
            let made = decide(&mut self.source.lock().unwrap(), &self.owned, false);
            // What `complete` refuses, the guest may hand in again: the token lives on.
            if check(&made.outcome).is_err() || made.outcome.action == Action::PENDING {
                return;
            }
            // Stale or accepted: `check_ended` knows which.
            let _ = self.world.complete(guest, token, made);
        }
    }

    fn wake_or_apply(&mut self, s: &mut Source) {
        let n = s.below(3);
        let Some(e) = self
            .world
            .events()
            .into_iter()
            .rfind(|e| NAMES[n] == e.guest)
        else {
            return;
        };
        let library = u32::from(e.guest.as_bytes()[0]);
        if s.odds(2) {
            let _ = self.world.hub.wake(library, e.stream, 1);
        } else {
            let made = decide(&mut self.source.lock().unwrap(), &self.owned, false);
            if check(&made.outcome).is_ok() {
                let _ = self.world.hub.apply(library, e.stream, made.keep());
            }
        }
        self.world.pump();
    }

    /// A PENDING that the engine refused was none: it is neither completed nor cancelled.
    fn forget_refused(&mut self) {
        let mut calls = self.world.calls.lock().unwrap();
        let ended: Vec<u64> = calls
            .iter()
            .filter_map(|c| match c {
                Call::Complete { token, .. } | Call::Cancel { token, .. } => Some(*token),
                _ => None,
            })
            .collect();
        for (filter, reason) in self.world.failures() {
            let last = calls.iter_mut().rev().find_map(|c| match c {
                Call::Event(e, action, _) if e.guest == filter && e.phase != LOG => {
                    Some((e.token, action))
                }
                _ => None,
            });
            if let Some((token, action)) = last
                && reason == Reason::Invalid
                && !ended.contains(&token)
            {
                *action = Action::ERROR;
            }
        }
    }

    fn end(&mut self) {
        self.world.blocked = [false; 2];
        self.world.pump();
        if !self.world.finished() {
            self.world.close();
        }
        self.forget_refused();
        if std::env::var_os("PXG_FUZZ_TRACE").is_some() {
            for call in self.world.calls.lock().unwrap().iter() {
                eprintln!("{call:?}");
            }
            eprintln!("{:?}", self.world.signals);
        }
        self.world.check_ended();
    }
}
