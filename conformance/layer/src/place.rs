//! One place of one stream: what may come next, by the machine of 7.11 and by what the guest answered.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Arc;

use proxy_golang_abi as abi;
use proxy_golang_abi::feature::{Feature, FeatureSet};
use proxy_golang_abi::{Action, BodyMode, EventFlags, Phase, phase_bit};
use proxy_golang_conformance::parts::judge::{Context, Way};
use proxy_golang_conformance::parts::model::{Field, Outcome, ReplyFound, action_name, phase_name};

use crate::content::{dir_of, flag_names, has, is_body, is_data, is_headers, is_log, is_trailers};
use crate::library::Config;
use crate::report::{Found, guest, host};
use crate::sys::view::{FieldSpan, SeenEvent};
use crate::tokens::{Life, Tokens};

/// Calls of a stream that a finding shows.
const HISTORY: usize = 10;
/// Most bytes of a pending view that are kept, to be compared with what is kept of it.
const KEEP: usize = 1 << 20;

/// What became of a guest's part in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Open,
    /// It replied, and nothing but WAKE and LOG follows.
    Replied,
    /// It reset the stream.
    Reset,
    /// It failed, and nothing but cancels and the end follows.
    Failed,
    /// What the host made of an illegal result, or whether a kept one took effect, is not visible.
    Unknown,
}

/// Bytes that the guest kept.
#[derive(Clone, Copy, Debug)]
struct Kept {
    len: u64,
    sum: u64,
}

fn sum(b: &[u8]) -> u64 {
    let mut h = DefaultHasher::new();
    h.write(b);
    h.finish()
}

#[derive(Clone, Debug, Default)]
struct Dir {
    mode: BodyMode,
    headers: bool,
    held: bool,
    passed: bool,
    body: bool,
    /// Offset of the next view, where it is known.
    offset: Option<u64>,
    kept: Option<Kept>,
    body_end: bool,
    end: bool,
    whole: bool,
    trailers: bool,
    /// A completion took effect: the next event says RESUMED.
    resumes: bool,
    /// A token was cancelled: nothing of this direction follows.
    cut: bool,
    token: Option<u64>,
}

/// The view of an event, as long as its result is open.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) phase: Phase,
    pub(crate) flags: u32,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) body: Option<Vec<u8>>,
}

pub(crate) struct Place {
    pub(crate) config: Arc<Config>,
    pub(crate) worker: u32,
    pub(crate) thread: u64,
    pub(crate) user: u64,
    /// The thread and the hook that is running.
    pub(crate) busy: Option<(u64, &'static str)>,
    dirs: [Dir; 2],
    unsubscribed: u64,
    pub(crate) fate: Fate,
    began: bool,
    pub(crate) log: bool,
    upgraded: bool,
    sticky: u32,
    no_reply: bool,
    head: bool,
    wake_args: u64,
    wakes: u64,
    pub(crate) full: u64,
    /// `apply` or `wake` was answered STALE: the handle is retired.
    pub(crate) stale: bool,
    pub(crate) cancelled: bool,
    /// It answered something that a host may refuse for reasons that are not visible here.
    may_have_failed: bool,
    history: VecDeque<String>,
}

impl Place {
    pub(crate) fn new(config: Arc<Config>, worker: u32, thread: u64) -> Self {
        let mut dirs = [Dir::default(), Dir::default()];
        for (d, m) in dirs.iter_mut().zip(config.body_mode) {
            d.mode = if config.is_l4() {
                BodyMode::STREAM
            } else if m == BodyMode::UNSET {
                BodyMode::SKIP
            } else {
                m
            };
        }
        Self {
            config,
            worker,
            thread,
            user: 0,
            busy: None,
            dirs,
            unsubscribed: 0,
            fate: Fate::Open,
            began: false,
            log: false,
            upgraded: false,
            sticky: 0,
            no_reply: false,
            head: false,
            wake_args: 0,
            wakes: 0,
            full: 0,
            stale: false,
            cancelled: false,
            may_have_failed: false,
            history: VecDeque::new(),
        }
    }

    pub(crate) fn note(&mut self, what: String) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(what);
    }

    pub(crate) fn last(&self) -> Vec<String> {
        self.history.iter().cloned().collect()
    }

    /// LOG is owed: nothing that the layer saw can have been a failure of the guest's.
    pub(crate) fn owes_log(&self) -> bool {
        (self.sees(Phase::LOG) || self.sees(Phase::L4_CLOSE))
            && !self.log
            && matches!(self.fate, Fate::Open | Fate::Replied | Fate::Reset)
            && !self.cancelled
            && !self.may_have_failed
            // What was held for too long has failed (14.3).
            && !self.dirs.iter().any(|d| d.held)
    }

    /// The guest gave this to `apply`: it takes effect at its turn.
    pub(crate) fn applied(&mut self, o: &Outcome) {
        let again = o.action == Action::REPLY && self.fate != Fate::Open;
        self.may_have_failed |= again || may_fail(o);
    }

    pub(crate) fn woken(&mut self, arg: u64) {
        self.wake_args |= arg;
        self.wakes += 1;
    }

    /// The last call for the place has come, or there will be none.
    pub(crate) fn is_quiet(&self) -> bool {
        self.user == 0 && self.busy.is_none() && self.dirs.iter().all(|d| d.token.is_none())
    }

    pub(crate) fn cancelled(&mut self, dir: usize, token: u64) {
        self.cancelled = true;
        let d = &mut self.dirs[dir];
        d.cut = true;
        if d.token == Some(token) {
            d.token = None;
        }
    }

    /// Lets accepted completions take effect, as far as this event proves that they have.
    fn absorb(&mut self, e: &SeenEvent, tokens: &mut Tokens, out: &mut Vec<Found>) {
        let p = e.raw.phase;
        let mine = dir_of(p);
        let duplex = self.config.flags & 1 != 0;
        for dir in 0..2 {
            let Some(value) = self.dirs[dir].token else {
                continue;
            };
            let Some(t) = tokens.get_mut(value) else {
                self.dirs[dir].token = None;
                continue;
            };
            // Whether the completion has had its turn is not visible from WAKE, nor from the peer with DUPLEX.
            let proof = mine == Some(dir) || (mine.is_some() && !duplex);
            match t.life {
                Life::Pending if !proof && !is_log(p) => {}
                Life::Pending if t.flying.is_none() => {
                    if is_log(p) {
                        out.push(host(
                            "PXG-ASY-008",
                            format!(
                                "{} with a token that is PENDING ({value:#x})",
                                phase_name(p)
                            ),
                            "tokens are retired first, then on_cancel for each, then LOG",
                        ));
                    } else {
                        out.push(host(
                            "PXG-EVT-003",
                            format!(
                                "{} while {} is PENDING (token {value:#x})",
                                phase_name(p),
                                phase_name(t.view.phase)
                            ),
                            if mine == Some(dir) {
                                "no event of a direction that is PENDING"
                            } else {
                                "without DUPLEX no event of the peer direction either"
                            },
                        ));
                    }
                }
                Life::Completed | Life::Pending if proof => {
                    // `complete` may not have returned to the guest yet, and the host goes on already.
                    t.assumed = t.life == Life::Pending;
                    if let Some(o) = t.kept.take().or_else(|| t.flying.clone()) {
                        let view = t.view.clone();
                        let clean = t.clean;
                        self.dirs[dir].token = None;
                        self.settle(&view, &o, clean, Way::Complete, out);
                        self.dirs[dir].resumes = true;
                    }
                }
                _ => {}
            }
        }
    }

    /// An event of this place begins.
    pub(crate) fn enter(
        &mut self,
        e: &SeenEvent,
        thread: u64,
        affine: bool,
        tokens: &mut Tokens,
        out: &mut Vec<Found>,
    ) {
        let p = e.raw.phase;
        let f = e.raw.flags.0;
        let name = phase_name(p);
        if let Some((t, hook)) = self.busy {
            out.push(host(
                "PXG-EVT-002",
                format!("{name} while {hook} of the same stream runs on thread {t}"),
                "events of one stream never run concurrently, nor inside another hook of it",
            ));
        }
        self.busy = Some((thread, "on_event"));
        if affine && thread != self.thread {
            out.push(host(
                "PXG-ASY-007",
                format!(
                    "{name} on thread {thread}, earlier hooks on {}",
                    self.thread
                ),
                "with THREAD_AFFINE one thread for all hooks of a stream",
            ));
        }
        if e.raw.worker != self.worker {
            out.push(host(
                "PXG-THR-001",
                format!(
                    "worker {} for a stream of worker {}",
                    e.raw.worker, self.worker
                ),
                "a stream lives on one worker",
            ));
        }
        if e.raw.config != self.config.value {
            out.push(host(
                "PXG-CFG-007",
                format!(
                    "config {:#x} for a stream of config {:#x}",
                    e.raw.config, self.config.value
                ),
                "a stream keeps one configuration per place for life",
            ));
        }
        if e.raw.user != self.user {
            out.push(host(
                "PXG-EVT-007",
                format!("user {:#x}", e.raw.user),
                format!(
                    "{:#x}, as the last on_event left it (0 at first)",
                    self.user
                ),
            ));
        }
        if self.stale {
            out.push(host(
                "PXG-ASY-002",
                format!("{name} for a handle that apply or wake had answered with STALE"),
                "a handle that answers STALE is retired for ever",
            ));
        }
        if self.log {
            out.push(host(
                "PXG-EVT-009",
                format!("{name} after the stream's last event"),
                "LOG (L4_CLOSE) is the last event, and comes once",
            ));
        }
        if self.config.subscribe & phase_bit(p) == 0 {
            out.push(host(
                "PXG-NEG-005",
                format!("{name}, which the configuration did not subscribe to"),
                format!("phases of the mask {:#x}", self.config.subscribe),
            ));
        } else if self.unsubscribed & phase_bit(p) != 0 && self.fate != Fate::Unknown {
            out.push(host(
                "PXG-EVT-010",
                format!("{name} after unsubscribe"),
                "no event of a phase that was unsubscribed for this stream",
            ));
        }
        self.absorb(e, tokens, out);
        self.check_fate(p, out);
        self.check_sticky(e, out);
        if self.fate == Fate::Open {
            match dir_of(p) {
                Some(d) => self.enter_direction(d, e, out),
                None if p == Phase::WAKE => self.enter_wake(e, out),
                None => {}
            }
        }
        self.began = true;
        self.log |= is_log(p);
        let flags = flag_names(f);
        self.note(if flags.is_empty() {
            name.to_string()
        } else {
            format!("{name}[{flags}]")
        });
    }

    fn check_fate(&self, p: Phase, out: &mut Vec<Found>) {
        let name = phase_name(p);
        match self.fate {
            Fate::Failed => out.push(host(
                "PXG-EVT-014",
                format!("{name} after the guest failed"),
                "after a failure nothing but on_cancel and on_stream_end",
            )),
            Fate::Replied if !is_log(p) && p != Phase::WAKE => out.push(host(
                if dir_of(p) == Some(1) {
                    "PXG-RPL-002"
                } else {
                    "PXG-CHN-005"
                },
                format!("{name} after the guest's own reply"),
                "WAKE, LOG and the end only",
            )),
            Fate::Reset if !is_log(p) => out.push(host(
                "PXG-ACT-004",
                format!("{name} after the guest reset the stream"),
                "RESET aborts both directions: LOG and the end only",
            )),
            _ => {}
        }
    }

    fn check_sticky(&mut self, e: &SeenEvent, out: &mut Vec<Found>) {
        use EventFlags as F;
        let f = e.raw.flags.0;
        let p = e.raw.phase;
        for (flag, rule) in [
            (F::REDIRECTED, "PXG-EVT-012"),
            (F::SUBREQUEST, "PXG-EVT-012"),
            (F::UPGRADED, "PXG-EVT-022"),
        ] {
            if self.sticky & flag.0 != 0 && !has(f, flag) {
                out.push(host(
                    rule,
                    format!("{} without {}", phase_name(p), flag_names(flag.0)),
                    "the flag is on all later events of the stream (5.3)",
                ));
            }
        }
        if self.began && has(f, F::SUBREQUEST) && self.sticky & F::SUBREQUEST.0 == 0 {
            out.push(host(
                "PXG-EVT-012",
                "SUBREQUEST on a stream that began without it",
                "on all events of the stream",
            ));
        }
        if has(f, F::SUBREQUEST) && self.config.flags & 0x20 == 0 {
            out.push(host(
                "PXG-EVT-012",
                "a subrequest",
                "subrequests only for configurations with SUBREQUESTS",
            ));
        }
        if has(f, F::UPGRADED) && !self.upgraded {
            if p == Phase::RESPONSE_HEADERS || !self.sees(Phase::RESPONSE_HEADERS) {
                self.upgraded = true;
                for d in &mut self.dirs {
                    // The tunnel counts anew.
                    d.mode = match d.mode {
                        BodyMode::WHOLE => BodyMode::SKIP,
                        m => m,
                    };
                    d.offset = None;
                }
                self.dirs[0].end = false;
                self.dirs[0].body_end = false;
            } else if !is_log(p) {
                out.push(host(
                    "PXG-EVT-022",
                    format!("UPGRADED first on {}", phase_name(p)),
                    "RESPONSE_HEADERS is the first to carry it",
                ));
            }
        }
        self.sticky |= f & (F::REDIRECTED.0 | F::SUBREQUEST.0 | F::UPGRADED.0);
        // CAN_REPLY goes once and does not come back.
        let judged = p.0 < 16 && !is_log(p);
        if judged && has(f, F::CAN_REPLY) && self.no_reply && self.fate == Fate::Open {
            out.push(host(
                "PXG-EVT-021",
                format!("{} with CAN_REPLY", phase_name(p)),
                "clear, because response headers passed this place, or it was clear before",
            ));
        }
        let headers = p == Phase::REQUEST_HEADERS
            || p == Phase::RESPONSE_HEADERS
            || (p == Phase::RESPONSE_BODY && has(f, F::HEADERS_HELD));
        if headers && !has(f, F::CAN_REPLY) && !self.no_reply {
            out.push(host(
                "PXG-EVT-021",
                format!("{} without CAN_REPLY", phase_name(p)),
                "set, because no response headers have passed this place",
            ));
        }
        if judged && !has(f, F::CAN_REPLY) {
            self.no_reply = true;
        }
    }

    /// The guest gets events of this phase.
    pub(crate) fn sees(&self, p: Phase) -> bool {
        self.config.subscribe & !self.unsubscribed & phase_bit(p) != 0
    }

    fn enter_wake(&mut self, e: &SeenEvent, out: &mut Vec<Found>) {
        let writable = has(e.raw.flags.0, EventFlags::WRITABLE);
        if writable && self.full == 0 {
            out.push(host(
                "PXG-RPL-006",
                "WRITABLE, and apply never answered FULL",
                "one WRITABLE wake after a FULL",
            ));
        }
        if writable {
            self.full = 0;
        }
        if !writable && self.wakes == 0 {
            out.push(host(
                "PXG-ASY-013",
                "WAKE, and the guest never called wake for this stream",
                "a WAKE event answers a wake, or carries WRITABLE",
            ));
        }
        if e.raw.arg & !self.wake_args != 0 {
            out.push(host(
                "PXG-ASY-013",
                format!("WAKE with arg {:#x}", e.raw.arg),
                format!(
                    "the OR of the wakes' values; all so far are {:#x}",
                    self.wake_args
                ),
            ));
        }
    }

    fn enter_direction(&mut self, dir: usize, e: &SeenEvent, out: &mut Vec<Found>) {
        use EventFlags as F;
        let p = e.raw.phase;
        let f = e.raw.flags.0;
        let name = phase_name(p);
        let http = p.0 < 16;
        // A reply of another guest comes through a place that still held the response.
        if p == Phase::RESPONSE_HEADERS
            && has(f, F::LOCAL_ORIGIN)
            && self.dirs[1].headers
            && !self.dirs[1].passed
        {
            let mode = self.dirs[1].mode;
            self.dirs[1] = Dir {
                mode,
                ..Dir::default()
            };
            self.dirs[0].cut = true;
        }
        let headers_first = [Phase::REQUEST_HEADERS, Phase::RESPONSE_HEADERS][dir];
        let sees_headers = self.sees(headers_first);
        let sees_request = self.sees(Phase::REQUEST_HEADERS);
        let request_came = self.dirs[0].headers;
        let orphan = self.config.flags & 0x10 != 0;
        let d = &self.dirs[dir];
        let mut put = |rule, what: String, expected: &str| out.push(host(rule, what, expected));
        if d.cut {
            put(
                "PXG-EVT-001",
                format!("{name} after the direction was cut with on_cancel"),
                "nothing more of this direction",
            );
        }
        if dir == 1 && http && sees_request && !request_came && !orphan {
            put(
                "PXG-EVT-004",
                format!("{name} before REQUEST_HEADERS"),
                "response events only where the request came, but with ORPHAN",
            );
        }
        if d.end && (!self.upgraded || is_headers(p)) {
            let rule = if is_body(p) && !d.body {
                "PXG-BODY-017"
            } else if is_trailers(p) && d.whole {
                "PXG-TRL-002"
            } else {
                "PXG-EVT-001"
            };
            put(
                rule,
                format!("{name} after END_STREAM"),
                "nothing follows in this direction",
            );
        }
        if has(f, F::RESUMED) != d.resumes {
            put(
                "PXG-EVT-001",
                format!(
                    "{name} {} RESUMED",
                    if d.resumes { "without" } else { "with" }
                ),
                "the first event of a direction after a completion carries RESUMED, and no other does (5.3)",
            );
        }
        if is_headers(p) || p == Phase::L4_OPEN {
            if d.headers {
                put(
                    if dir == 0 {
                        "PXG-EVT-012"
                    } else {
                        "PXG-EVT-001"
                    },
                    format!("{name} a second time"),
                    "once per direction of a stream",
                );
            } else if d.body || d.trailers {
                put(
                    "PXG-EVT-001",
                    format!("{name} after the body or the trailers"),
                    "headers, then body, then trailers",
                );
            }
            if p == Phase::RESPONSE_HEADERS && self.head && !has(f, F::END_STREAM) {
                put(
                    "PXG-EVT-008",
                    "a response to HEAD without END_STREAM at its headers".into(),
                    "responses to HEAD are known to have no body",
                );
            }
        } else if sees_headers && !d.headers && http && !is_headers(p) {
            put(
                "PXG-EVT-001",
                format!("{name} before {}", phase_name(headers_first)),
                "headers, then body, then trailers",
            );
        }
        if is_data(p) {
            self.enter_body(dir, e, sees_headers, out);
        } else if is_trailers(p) {
            let d = &self.dirs[dir];
            let shown = matches!(d.mode, BodyMode::STREAM | BodyMode::WHOLE)
                && self.sees([Phase::REQUEST_BODY, Phase::RESPONSE_BODY][dir]);
            if d.trailers {
                out.push(host(
                    "PXG-EVT-001",
                    format!("{name} a second time"),
                    "at most one TRAILERS event",
                ));
            }
            if shown && !d.body_end && !d.end {
                out.push(host(
                    "PXG-TRL-003",
                    format!("{name} before BODY_END"),
                    "the trailers come when the body has passed the place",
                ));
            }
        }
        let d = &mut self.dirs[dir];
        d.resumes = false;
        d.end |= has(f, F::END_STREAM);
        d.body_end |= has(f, F::BODY_END);
        d.headers |= is_headers(p) || p == Phase::L4_OPEN;
        d.body |= is_data(p);
        d.trailers |= is_trailers(p);
        d.whole |= has(f, F::WHOLE_BODY);
        if p == Phase::REQUEST_HEADERS {
            self.head = e
                .fields
                .iter()
                .map(|x| e.field(x))
                .any(|x| x == (b":method", b"HEAD"));
        }
    }

    fn enter_body(&mut self, dir: usize, e: &SeenEvent, sees_headers: bool, out: &mut Vec<Found>) {
        use EventFlags as F;
        let p = e.raw.phase;
        let f = e.raw.flags.0;
        let name = phase_name(p);
        let len = e.view_len();
        let offset = e.raw.body_offset;
        let upgraded = self.upgraded;
        let upgrade_body = self.config.flags & 0x40 != 0;
        let max = self.config.max_body[dir];
        let d = &mut self.dirs[dir];
        let mut put = |rule, what: String, expected: String| out.push(host(rule, what, expected));
        if d.body_end && !(upgraded && d.offset.is_none()) && !d.end {
            put(
                "PXG-EVT-011",
                format!("{name} after BODY_END"),
                "BODY_END is on the last body event".into(),
            );
        }
        if upgraded && !upgrade_body {
            put(
                "PXG-BODY-010",
                format!("{name} of a tunnel"),
                "without UPGRADE_BODY both bodies are skipped after the upgrade".into(),
            );
        }
        if matches!(d.mode, BodyMode::SKIP | BodyMode::UNSET) {
            put(
                "PXG-BODY-001",
                format!("{name} in the body mode SKIP"),
                "a body in SKIP causes no crossing".into(),
            );
            return;
        }
        let held = has(f, F::HEADERS_HELD);
        let over = has(f, F::OVER_LIMIT);
        if d.mode == BodyMode::WHOLE && !has(f, F::WHOLE_BODY) && !over {
            put(
                "PXG-BODY-003",
                format!("{name}[{}] of {len} bytes in the mode WHOLE", flag_names(f)),
                "one event with WHOLE_BODY, or OVER_LIMIT".into(),
            );
        }
        if d.mode != BodyMode::WHOLE && has(f, F::WHOLE_BODY) {
            put(
                "PXG-BODY-003",
                format!("WHOLE_BODY in the mode {}", d.mode.0),
                "WHOLE_BODY in the mode WHOLE only".into(),
            );
        }
        if p.0 < 16 {
            // Without HEADERS events WHOLE holds them all the same.
            let expect = if sees_headers {
                d.held
            } else if d.mode == BodyMode::WHOLE || (d.held && !d.passed) {
                true
            } else {
                // WHOLE may have held them until WAKE or the peer changed the mode.
                held && !d.body
            };
            if held != expect {
                put(
                    "PXG-EVT-020",
                    format!(
                        "{name} {} HEADERS_HELD",
                        if held { "with" } else { "without" }
                    ),
                    if expect {
                        "set: the guest holds the headers by MORE or WHOLE".into()
                    } else {
                        "clear: the headers passed this place with the first CONTINUE".into()
                    },
                );
            }
        }
        if d.mode != BodyMode::OBSERVE && max > 0 && len > max && !over {
            put(
                "PXG-BODY-004",
                format!("a view of {len} bytes without OVER_LIMIT"),
                format!("the flag, because max_body is {max}"),
            );
        }
        if let Some(want) = d.offset.or((!d.body).then_some(0))
            && offset != want
        {
            put(
                "PXG-BODY-002",
                format!("a view at body_offset {offset}"),
                format!("{want}: no byte twice, none lost"),
            );
        }
        if let Some(k) = d.kept.take() {
            let body = e.body();
            let n = usize::try_from(k.len).unwrap_or(usize::MAX);
            if body.len() < n {
                put(
                    "PXG-BODY-002",
                    format!("a view of {len} bytes; the guest had kept {}", k.len),
                    "every byte received and not yet passed".into(),
                );
            } else if sum(&body[..n]) != k.sum {
                put(
                    "PXG-BODY-002",
                    format!("the first {n} bytes of the view are not those that the guest kept"),
                    "every byte received and not yet passed, in order".into(),
                );
            } else if body.len() == n && !has(f, F::BODY_END) && !over {
                put(
                    "PXG-ACT-003",
                    format!("{name} again, with the {n} bytes that the guest kept and no more"),
                    "an event after MORE has more bytes, or is the end, or is over the limit"
                        .into(),
                );
            }
        }
        d.offset = Some(offset);
    }

    /// By what a result is judged.
    pub(crate) fn context(&self, e: &SeenEvent) -> Context {
        let p = e.raw.phase;
        let own = |list: &[FieldSpan]| {
            list.iter()
                .map(|f| Field {
                    name: e.seen.text(&f.name).to_vec(),
                    value: e.seen.text(&f.value).to_vec(),
                    flags: f.value.flags,
                })
                .collect::<Vec<_>>()
        };
        let dir = dir_of(p);
        let max = dir.map_or(0, |d| self.config.max_body[d]);
        Context {
            phase: p,
            flags: e.raw.flags,
            pend_phases: self.config.pend_phases,
            features: self.config.features,
            mode: [self.dirs[0].mode, self.dirs[1].mode],
            subscribe: self.config.subscribe & !self.unsubscribed,
            held: has(e.raw.flags.0, EventFlags::HEADERS_HELD),
            view_len: e.view_len(),
            max_body: if max == 0 { u64::MAX } else { max },
            fields: own(&e.fields),
            trailers: own(&e.trailers),
            replied: self.fate == Fate::Replied,
            way: Way::Event,
            length_left: None,
        }
    }

    pub(crate) fn view(e: &SeenEvent, may_pend: bool) -> View {
        let len = e.view_len();
        let small = usize::try_from(len).is_ok_and(|n| n <= KEEP);
        View {
            phase: e.raw.phase,
            flags: e.raw.flags.0,
            offset: e.raw.body_offset,
            len,
            body: (is_data(e.raw.phase) && (small || !may_pend)).then(|| e.body()),
        }
    }

    pub(crate) fn issued(&mut self, dir: usize, token: u64) {
        self.dirs[dir].token = Some(token);
    }

    pub(crate) fn not_pending(&mut self, dir: usize) {
        self.dirs[dir].token = None;
    }

    /// Changes of a body mode that came too late (7.1).
    fn check_modes(&mut self, v: &View, o: &Outcome, out: &mut Vec<Found>) -> bool {
        let mut legal = true;
        for (dir, new) in o.body_mode.iter().enumerate() {
            let d = &self.dirs[dir];
            if *new == BodyMode::UNSET || *new == d.mode {
                continue;
            }
            let body = [Phase::REQUEST_BODY, Phase::RESPONSE_BODY][dir];
            let gone = o.unsubscribe & phase_bit(body) != 0 || !self.sees(body);
            if *new != BodyMode::SKIP && gone && v.phase.0 < 16 {
                legal = false;
                out.push(guest(
                    "PXG-BODY-015",
                    format!(
                        "body_mode[{dir}] {} at {}, and {} is not subscribed",
                        new.0,
                        phase_name(v.phase),
                        phase_name(body)
                    ),
                    "a mode that delivers needs the body's phase (7.1)",
                ));
                continue;
            }
            let headers = [Phase::REQUEST_HEADERS, Phase::RESPONSE_HEADERS][dir];
            let before = if self.sees(headers) {
                !d.headers || (v.phase == headers && !d.passed)
            } else {
                // When headers that are not shown pass is not visible.
                !d.body
            };
            let over = dir_of(v.phase) == Some(dir) && has(v.flags, EventFlags::OVER_LIMIT);
            let late = match (d.mode, *new) {
                (BodyMode::STREAM | BodyMode::OBSERVE, BodyMode::SKIP) => true,
                (BodyMode::WHOLE, BodyMode::STREAM | BodyMode::SKIP) => over,
                _ => false,
            };
            if !before && !late {
                legal = false;
                out.push(guest(
                    "PXG-BODY-015",
                    format!(
                        "body_mode[{dir}] from {} to {} at {}",
                        d.mode.0,
                        new.0,
                        phase_name(v.phase)
                    ),
                    "after the HEADERS result only STREAM or OBSERVE to SKIP, and WHOLE to STREAM or SKIP at OVER_LIMIT",
                ));
            }
        }
        legal
    }

    /// A result takes effect. `clean`: no rule was broken by it.
    pub(crate) fn settle(
        &mut self,
        v: &View,
        o: &Outcome,
        clean: bool,
        way: Way,
        out: &mut Vec<Found>,
    ) {
        if is_log(v.phase) {
            return;
        }
        let definite = match o.action {
            Action::ERROR => Some(Fate::Failed),
            Action(n) if n == 0 || n > Action::ERROR.0 => Some(Fate::Failed),
            Action::RESET if clean => Some(Fate::Reset),
            Action::REPLY if clean && has(v.flags, EventFlags::CAN_REPLY) => Some(Fate::Replied),
            Action::REPLY => Some(Fate::Unknown),
            _ if !clean => Some(Fate::Unknown),
            _ => None,
        };
        self.may_have_failed |= may_fail(o);
        if let Some(f) = definite {
            let fails_late = f == Fate::Failed && self.fate == Fate::Replied;
            if self.fate == Fate::Open || fails_late {
                // A completion whose stream died first never had its turn.
                self.fate = if way == Way::Event { f } else { Fate::Unknown };
            }
            return;
        }
        if !self.check_modes(v, o, out) {
            self.fate = Fate::Unknown;
            return;
        }
        self.unsubscribed |= o.unsubscribe;
        for (dir, mode) in o.body_mode.iter().enumerate() {
            let body = phase_bit([Phase::REQUEST_BODY, Phase::RESPONSE_BODY][dir]);
            if *mode != BodyMode::UNSET {
                self.dirs[dir].mode = *mode;
            }
            if o.unsubscribe & body != 0 {
                self.dirs[dir].mode = BodyMode::SKIP;
            }
        }
        let Some(dir) = dir_of(v.phase) else {
            return;
        };
        let upgraded = has(v.flags, EventFlags::UPGRADED);
        let end = has(v.flags, EventFlags::END_STREAM);
        let d = &mut self.dirs[dir];
        let headers = is_headers(v.phase);
        match o.action {
            Action::CONTINUE if headers => {
                d.held = d.mode == BodyMode::WHOLE && !end;
                d.passed = !d.held;
            }
            Action::MORE if headers => d.held = true,
            Action::CONTINUE if is_data(v.phase) => {
                d.held = false;
                d.passed = true;
                let credit = credit(o, v.len);
                d.offset = (credit == 0).then_some(v.offset + v.len);
                d.kept = None;
                if d.mode == BodyMode::WHOLE && !has(v.flags, EventFlags::WHOLE_BODY) {
                    d.mode = BodyMode::STREAM;
                }
            }
            Action::MORE if is_data(v.phase) => {
                let at = cursor(o).min(v.len);
                let credit = credit(o, v.len);
                d.offset = (credit == 0).then_some(v.offset + at);
                d.kept = v.body.as_ref().filter(|_| credit == 0).map(|b| {
                    let rest = &b[usize::try_from(at).unwrap_or(0).min(b.len())..];
                    Kept {
                        len: rest.len() as u64,
                        sum: sum(rest),
                    }
                });
            }
            _ => {}
        }
        if headers && upgraded && dir == 1 && o.action == Action::CONTINUE {
            // The tunnel begins: END_STREAM may come once more, in each direction.
            for d in &mut self.dirs {
                d.end = false;
                d.body_end = false;
            }
        }
        if dir == 1 && d_passed(&self.dirs[1]) && v.phase.0 < 16 && !is_trailers(v.phase) {
            self.no_reply = true;
        }
    }

    /// In words, for the history.
    pub(crate) fn answered(&mut self, o: &Outcome) {
        let mut text = format!("answered {}", action_name(o.action));
        if o.ops.count > 0 {
            text += &format!(" with {} operations", o.ops.count);
        }
        self.note(text);
    }
}

fn d_passed(d: &Dir) -> bool {
    d.passed
}

/// Whether a host may take it for a failure although the layer sees nothing wrong: bytes beyond `content-length` or short
/// of it, a namespace or a cluster that is not granted, fields beyond the host's limits, an open reply that gets no bytes.
fn may_fail(o: &Outcome) -> bool {
    /// Up to here operations name fields; the rest counts them, moves bytes or asks the host for something.
    const LAST_BY_NAME: u16 = 3;
    /// So many fields are within every host's limits.
    const FEW: u64 = 64;
    o.ops.count > FEW
        || matches!(&o.reply, ReplyFound::Some(r) if r.flags & abi::ReplyFlags::OPEN.0 != 0)
        || o.ops
            .get()
            .iter()
            .any(|op| op.kind > LAST_BY_NAME || op.flags & abi::OpFlags::MUST.0 != 0)
}

/// Where the operations leave the cursor.
fn cursor(o: &Outcome) -> u64 {
    o.ops
        .get()
        .iter()
        .filter(|op| matches!(op.kind, 8 | 9))
        .fold(0u64, |n, op| n.saturating_add(op.u0))
}

/// What PASS and DROP say beyond the view, on L4.
fn credit(o: &Outcome, len: u64) -> u64 {
    cursor(o).saturating_sub(len)
}

/// Features by which the host promises one thread per stream.
pub(crate) fn is_affine(features: &FeatureSet) -> bool {
    Feature::THREAD_AFFINE.is_in(features)
}
