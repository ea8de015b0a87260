//! One guest under one host: its configurations, streams, tokens and workers, and what each call does to them. Nothing
//! here calls either side, and no lock is held while one of them runs.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proxy_golang_abi as abi;
use proxy_golang_abi::feature::{Feature, FeatureSet, missing};
use proxy_golang_abi::{Action, BodyMode, Phase, Status, phase_bit};
use proxy_golang_conformance::parts::config::ConfigMade;
use proxy_golang_conformance::parts::judge::{Context, Violation, Way};
use proxy_golang_conformance::parts::model::{Outcome, action_name, phase_name};

use crate::content::{self, dir_of, is_log};
use crate::place::{self, Fate, Place, View};
use crate::report::{self, Found, guest, host};
use crate::sys::view::{SeenConfig, SeenEvent};
use crate::sys::{handover, platform};
use crate::tokens::{Life, Memory, Token, Tokens};

/// Streams that may have ended unseen: those whose `user` is 0 and that do not subscribe to LOG.
const MOST_QUIET: usize = 1 << 14;
/// An owned buffer that is older than this at the end, in nanoseconds, has been forgotten.
const FORGOTTEN: u64 = 1_000_000_000;
/// A host function that takes longer, in nanoseconds, probably waits for something.
const SLOW: u64 = 250_000_000;

/// What a configuration declared.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) value: u64,
    pub(crate) instance: String,
    pub(crate) parent: u64,
    filter: Vec<u8>,
    validate_only: bool,
    /// What it declared is illegal: the host must refuse it.
    illegal: Option<String>,
    pub(crate) features: FeatureSet,
    pub(crate) flags: u32,
    pub(crate) subscribe: u64,
    pub(crate) pend_phases: u64,
    pub(crate) body_mode: [BodyMode; 2],
    pub(crate) max_body: [u64; 2],
    pub(crate) pend_ns: u64,
    /// Names and phases.
    pub(crate) attrs: Vec<(String, u64)>,
    /// Phases in which the host may leave fields out.
    pub(crate) projected: u64,
}

impl Config {
    pub(crate) fn is_l4(&self) -> bool {
        self.subscribe & !0xffff != 0
    }
}

/// What the two tables say.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) features: FeatureSet,
    pub(crate) n_workers: u32,
    pub(crate) required: FeatureSet,
    pub(crate) known: FeatureSet,
    /// Why the host must refuse the guest, if it must.
    pub(crate) refuse: Option<(&'static str, String)>,
}

#[derive(Default)]
struct Worker {
    up: bool,
    missing_reported: bool,
    pended: u64,
    batches: u64,
    since_batch: u64,
}

#[derive(Default)]
struct State {
    configs: HashMap<u64, Arc<Config>>,
    dropped: Memory,
    places: HashMap<u64, Place>,
    /// Handles in the order of their first event.
    order: VecDeque<u64>,
    ended: Memory,
    tokens: Tokens,
    workers: HashMap<u32, Worker>,
    loops: HashSet<u64>,
    exts: HashMap<(bool, Vec<u8>), u64>,
    /// Id and kind by name and labels.
    metrics: HashMap<Vec<u8>, u32>,
}

pub(crate) struct Library {
    pub(crate) slot: usize,
    pub(crate) terms: Terms,
    state: Mutex<State>,
    /// The thread that is in a config-thread function, 0 for none.
    config_thread: AtomicU64,
    refuse_reported: AtomicBool,
}

/// What was found, and where.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) list: Vec<Found>,
    place: report::Place,
}

impl Findings {
    pub(crate) fn at(function: &'static str) -> Self {
        Self {
            list: Vec::new(),
            place: report::Place {
                function,
                ..report::Place::default()
            },
        }
    }

    fn push(&mut self, f: Found) {
        self.list.push(f);
    }

    fn know(&mut self, stream: u64, p: Option<&Place>, phase: Option<Phase>) {
        self.place.stream = stream;
        if let Some(phase) = phase {
            self.place.phase = phase_name(phase);
        }
        if let Some(p) = p {
            self.place.instance = p.config.instance.clone();
            if !self.list.is_empty() {
                self.place.last = p.last();
            }
        }
    }

    pub(crate) fn report(self) {
        if let Some(r) = report::current() {
            for f in &self.list {
                r.report(f, &self.place);
            }
        }
    }
}

/// Between the entry and the exit of `on_event`.
pub(crate) struct EventCall {
    pub(crate) context: Option<Context>,
    pub(crate) instance: String,
    view: View,
    stream: u64,
    token: u64,
}

/// Between the entry and the exit of `complete` or `apply`.
pub(crate) struct HandedCall {
    function: &'static str,
    value: u64,
    violations: Vec<Violation>,
    /// Of the token at the entry; none if it was never issued.
    life: Option<Life>,
    ended: bool,
    action: Option<Action>,
    /// Nothing in it that a host could refuse for reasons of its own.
    plain: bool,
    writes: bool,
    began: u64,
}

/// Rules that need no state of the stream: a host refuses what breaks them before it answers (PXG-ASY-020).
const STATELESS: [&str; 8] = [
    "PXG-ASY-010",
    "PXG-HDR-005",
    "PXG-HDR-006",
    "PXG-HDR-008",
    "PXG-HDR-010",
    "PXG-ABI-005",
    "PXG-ABI-012",
    "PXG-RPL-001",
];

impl Library {
    pub(crate) fn new(slot: usize, terms: Terms) -> Self {
        Self {
            slot,
            terms,
            state: Mutex::default(),
            config_thread: AtomicU64::new(0),
            refuse_reported: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What holds for every hook: not in a forked child, not from inside a host function.
    fn hook(&self, f: &mut Findings, in_host: Option<&'static str>) {
        if platform::forked() {
            f.push(host(
                "PXG-LOAD-004",
                format!(
                    "`{}` in process {}, which was forked after the guest was loaded",
                    f.place.function,
                    std::process::id()
                ),
                "a guest is called in the process that loaded it",
            ));
        }
        if let Some(function) = in_host {
            f.push(host(
                "PXG-EVT-005",
                format!(
                    "`{}` from inside the host's `{function}`, which the guest called",
                    f.place.function
                ),
                "no hook runs inside a host function",
            ));
        }
        if let Some((rule, why)) = &self.terms.refuse
            && !self.refuse_reported.swap(true, Ordering::Relaxed)
        {
            f.push(host(
                rule,
                format!(
                    "called `{}` of a guest that it must refuse",
                    f.place.function
                ),
                format!("no hook is called, because {why}"),
            ));
        }
    }

    // ---- config-thread

    /// A config-thread function begins. To be ended by [`Library::config_thread_end`].
    pub(crate) fn config_thread_begin(&self, f: &mut Findings) {
        let me = platform::tid();
        let other = self.config_thread.swap(me, Ordering::AcqRel);
        if other != 0 {
            f.push(host(
                "PXG-THR-001",
                format!(
                    "`{}` while thread {other} is in a config-thread function",
                    f.place.function
                ),
                "config-thread functions are serialised",
            ));
        }
        if Feature::CONFIG_THREAD.is_in(&self.terms.features) && self.lock().loops.contains(&me) {
            f.push(host(
                "PXG-CFG-006",
                format!("`{}` on the loop thread {me}", f.place.function),
                "with CONFIG_THREAD config-thread functions never run on a loop thread",
            ));
        }
    }

    pub(crate) fn config_thread_end(&self) {
        self.config_thread.store(0, Ordering::Release);
    }

    pub(crate) fn config_new_enter(
        &self,
        c: &SeenConfig,
        in_host: Option<&'static str>,
    ) -> Findings {
        let mut f = Findings::at("on_config_new");
        let filter = String::from_utf8_lossy(c.seen.text(&c.filter)).into_owned();
        let name = c.seen.text(&c.name);
        f.place.instance = format!("{filter}/{}", String::from_utf8_lossy(name));
        self.hook(&mut f, in_host);
        if (c.seen.size as usize) < size_of::<abi::ConfigIn>() {
            f.push(host(
                "PXG-ABI-002",
                format!("pxg_config_in.size is {}", c.seen.size),
                "the size that the host knows, at least that of version 1.0 (96 bytes)",
            ));
        }
        for (rule, what) in &c.seen.problems {
            f.push(host(
                rule,
                what.clone(),
                "memory that can be read for all of the call",
            ));
        }
        for (s, what) in [
            (&c.filter, "filter"),
            (&c.name, "name"),
            (&c.bytes, "bytes"),
        ] {
            if s.flags & !3 != 0 {
                f.push(host(
                    "PXG-ABI-005",
                    format!("{what} has undefined flag bits {:#x}", s.flags & !3),
                    "ABSENT and SENSITIVE only",
                ));
            }
        }
        if c.raw.flags.0 & !1 != 0 {
            f.push(host(
                "PXG-NEG-006",
                format!("pxg_config_in.flags is {:#x}", c.raw.flags.0),
                "VALIDATE_ONLY (1) or nothing",
            ));
        }
        let beyond = missing(&c.raw.features, &self.terms.features);
        if beyond != [0; 4] {
            f.push(host(
                "PXG-NEG-008",
                format!("features {beyond:x?} that are not in the host's table"),
                "a subset of the host's features",
            ));
        }
        let lacking = missing(&self.terms.required, &c.raw.features);
        if lacking != [0; 4] {
            f.push(host(
                "PXG-NEG-003",
                format!("a configuration without {lacking:x?}, which the guest requires"),
                "the host refuses the configuration itself, and names the features",
            ));
        }
        let legal = (1..=128).contains(&name.len())
            && name
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || b"_-/".contains(b));
        if !legal {
            f.push(host(
                "PXG-CFG-001",
                format!("the instance's name {:?}", String::from_utf8_lossy(name)),
                "1 to 128 characters of a-z A-Z 0-9 _ - / (4.1)",
            ));
        }
        if c.raw.parent != 0 {
            match self.lock().configs.get(&c.raw.parent) {
                None => f.push(host(
                    "PXG-CFG-003",
                    format!("parent {:#x}, which is not live", c.raw.parent),
                    "the parent is live when the child is made",
                )),
                Some(p) if p.parent != 0 => f.push(host(
                    "PXG-CFG-003",
                    format!("parent {:#x}, which has a parent itself", c.raw.parent),
                    "one level: a parent has parent 0 (4.3)",
                )),
                Some(p) if p.filter != c.seen.text(&c.filter) => f.push(host(
                    "PXG-CFG-003",
                    format!(
                        "a parent of the filter {:?}",
                        String::from_utf8_lossy(&p.filter)
                    ),
                    "a configuration of the same filter",
                )),
                Some(_) => {}
            }
        }
        self.config_thread_begin(&mut f);
        f
    }

    pub(crate) fn config_new_leave(
        &self,
        c: &SeenConfig,
        made: &ConfigMade,
        pend_ns: u64,
        projected: u64,
        changed: Option<String>,
    ) -> Findings {
        self.config_thread_end();
        let mut f = Findings::at("on_config_new");
        let filter = String::from_utf8_lossy(c.seen.text(&c.filter)).into_owned();
        let name = String::from_utf8_lossy(c.seen.text(&c.name)).into_owned();
        let instance = format!("{filter}/{name}");
        f.place.instance.clone_from(&instance);
        if let Some(what) = changed {
            f.push(host(
                "PXG-MEM-001",
                format!("{what} of pxg_config_in changed during the call"),
                "views stay as they are until the hook returns",
            ));
        }
        let mut s = self.lock();
        let live: Vec<u64> = s.configs.keys().copied().collect();
        let violations = made.violations(&c.raw.features, &live);
        for (rule, what) in &violations {
            f.push(guest(
                rule,
                what.clone(),
                "a configuration that a host may take",
            ));
        }
        if made.status < 0 {
            return f;
        }
        if made.config == 0 || live.contains(&made.config) {
            // Refused without a drop: nothing to remember, and the other one lives on.
            return f;
        }
        let config = Config {
            value: made.config,
            instance,
            parent: c.raw.parent,
            filter: c.seen.text(&c.filter).to_vec(),
            validate_only: c.raw.flags.0 & 1 != 0,
            illegal: violations.first().map(|(_, what)| what.clone()),
            features: c.raw.features,
            flags: made.flags,
            subscribe: made.subscribe,
            pend_phases: made.pend_phases,
            body_mode: made.body_mode,
            max_body: made.max_body,
            pend_ns,
            attrs: made
                .attrs
                .get()
                .iter()
                .map(|a| {
                    (
                        String::from_utf8_lossy(a.name.bytes.as_deref().unwrap_or_default())
                            .into_owned(),
                        a.phases,
                    )
                })
                .collect(),
            projected,
        };
        s.configs.insert(made.config, Arc::new(config));
        f
    }

    pub(crate) fn config_drop_enter(&self, config: u64, in_host: Option<&'static str>) -> Findings {
        let mut f = Findings::at("on_config_drop");
        self.hook(&mut f, in_host);
        self.config_thread_begin(&mut f);
        let mut s = self.lock();
        let Some(c) = s.configs.remove(&config) else {
            f.push(host(
                "PXG-CFG-005",
                format!(
                    "dropped {config:#x}, which {}",
                    if s.dropped.has(config) {
                        "was dropped before"
                    } else {
                        "no configuration has"
                    }
                ),
                "exactly once for each configuration that was answered with OK",
            ));
            return f;
        };
        s.dropped.insert(config);
        f.place.instance.clone_from(&c.instance);
        if let Some(child) = s.configs.values().find(|k| k.parent == config) {
            f.push(host(
                "PXG-CFG-003",
                format!("dropped a parent before its child {}", child.instance),
                "a parent is dropped after every child",
            ));
        }
        let handles: Vec<u64> = s
            .places
            .iter()
            .filter(|(_, p)| p.config.value == config)
            .map(|(h, _)| *h)
            .collect();
        for h in handles {
            let p = &s.places[&h];
            let pending = s
                .tokens
                .pending()
                .any(|(_, t)| t.stream == h && t.flying.is_none());
            if p.user != 0 || pending || p.busy.is_some() {
                f.push(host(
                    "PXG-CFG-005",
                    format!(
                        "dropped with the stream {h:#x} {}: {}",
                        if pending { "PENDING" } else { "not ended" },
                        p.last().join("; ")
                    ),
                    "after on_stream_end of the last stream, and when no token is live",
                ));
            }
            self.forget(&mut s, h);
        }
        f
    }

    // ---- loop-thread

    fn loop_hook(
        &self,
        s: &mut State,
        worker: u32,
        f: &mut Findings,
        in_host: Option<&'static str>,
    ) {
        self.hook(f, in_host);
        s.loops.insert(platform::tid());
        if self.terms.n_workers != 0 && worker >= self.terms.n_workers {
            f.push(host(
                "PXG-THR-001",
                format!("worker {worker}"),
                format!("an index below n_workers, {}", self.terms.n_workers),
            ));
        }
        let w = s.workers.entry(worker).or_default();
        if !w.up && !w.missing_reported {
            w.missing_reported = true;
            f.push(host(
                "PXG-THR-003",
                format!(
                    "`{}` of worker {worker} before its on_worker(up)",
                    f.place.function
                ),
                "on_worker(up) is the first hook of each worker",
            ));
        }
    }

    fn forget(&self, s: &mut State, stream: u64) {
        for t in s.tokens.of_stream(stream) {
            s.tokens.retire(t);
        }
        s.places.remove(&stream);
        s.ended.insert(stream);
    }

    fn place_for<'a>(
        &self,
        s: &'a mut State,
        e: &SeenEvent,
        f: &mut Findings,
    ) -> Option<&'a mut Place> {
        let stream = e.raw.stream;
        let p = e.raw.phase;
        if stream == 0 {
            f.push(host(
                "PXG-EVT-016",
                "an event with the stream handle 0",
                "a handle of this place of this stream",
            ));
            return None;
        }
        if !s.places.contains_key(&stream) {
            if s.ended.has(stream) {
                let fresh = matches!(p, Phase::REQUEST_HEADERS | Phase::L4_OPEN);
                f.push(host(
                    if fresh { "PXG-ASY-003" } else { "PXG-EVT-006" },
                    format!("{} for {stream:#x}, a stream that has ended", phase_name(p)),
                    "on_stream_end is the last call, and its handle does not come again",
                ));
                // From here on it is judged as a new one.
            }
            let config = s.configs.get(&e.raw.config).cloned();
            let Some(config) = config else {
                f.push(host(
                    "PXG-CFG-005",
                    format!(
                        "an event of config {:#x}, which {}",
                        e.raw.config,
                        if s.dropped.has(e.raw.config) {
                            "was dropped"
                        } else {
                            "on_config_new never answered"
                        }
                    ),
                    "a live configuration",
                ));
                return None;
            };
            if let Some(why) = &config.illegal {
                f.push(host(
                    "PXG-CFG-009",
                    format!("an event of a configuration that it must refuse: {why}"),
                    "a configuration with an illegal declaration is dropped and never used",
                ));
            }
            if config.validate_only {
                f.push(host(
                    "PXG-CFG-001",
                    "an event of a configuration that was made with VALIDATE_ONLY",
                    "it is dropped without being used (4.1)",
                ));
            }
            s.places
                .insert(stream, Place::new(config, e.raw.worker, platform::tid()));
            s.order.push_back(stream);
            self.forget_quiet(s);
        }
        s.places.get_mut(&stream)
    }

    /// Streams whose end nobody is told are forgotten when there are too many.
    fn forget_quiet(&self, s: &mut State) {
        if s.order.len() <= 2 * MOST_QUIET {
            return;
        }
        s.order.retain(|h| s.places.contains_key(h));
        let mut excess = s.order.len().saturating_sub(MOST_QUIET);
        let old: Vec<u64> = s
            .order
            .iter()
            .copied()
            .filter(|h| {
                let quiet = s.places.get(h).is_some_and(Place::is_quiet);
                let take = quiet && excess > 0;
                excess -= usize::from(take);
                take
            })
            .collect();
        for h in old {
            self.forget(s, h);
        }
    }

    pub(crate) fn event_enter(
        &self,
        e: &SeenEvent,
        in_host: Option<&'static str>,
        preset: Vec<Found>,
    ) -> (EventCall, Findings) {
        let mut f = Findings::at("on_event");
        let p = e.raw.phase;
        let stream = e.raw.stream;
        let token = e.raw.token;
        f.list = preset;
        let mut state = self.lock();
        let s = &mut *state;
        self.loop_hook(s, e.raw.worker, &mut f, in_host);
        // Taken out, so that the place and the tokens can be borrowed at once.
        let mut tokens = std::mem::take(&mut s.tokens);
        let place = self.place_for(s, e, &mut f);
        let config = place.as_ref().map(|p| p.config.clone());
        content::check(e, config.as_deref(), &self.terms.known, &mut f.list);
        let affine = config
            .as_ref()
            .is_some_and(|c| place::is_affine(&c.features));
        let mut call = EventCall {
            context: None,
            instance: config
                .as_ref()
                .map_or(String::new(), |c| c.instance.clone()),
            view: Place::view(e, token != 0),
            stream,
            token,
        };
        if let (Some(place), Some(c)) = (place, config) {
            place.enter(e, platform::tid(), affine, &mut tokens, &mut f.list);
            let pends = c.pend_phases & phase_bit(p) != 0;
            if pends != (token != 0) {
                f.list.push(host(
                    "PXG-ASY-001",
                    format!("{} with the token {token:#x}", phase_name(p)),
                    if pends {
                        "a fresh token, because the phase is in pend_phases"
                    } else {
                        "0, because the phase is not in pend_phases"
                    },
                ));
            }
            if token != 0 && tokens.was(token) {
                f.list.push(host(
                    "PXG-ASY-003",
                    format!("the token {token:#x}, which an earlier event had"),
                    "a fresh token for each event",
                ));
            }
            let context = place.context(e);
            if token != 0 {
                let dir = dir_of(p).unwrap_or(0);
                for old in tokens.of_stream(stream) {
                    if tokens.get_mut(old).is_some_and(|t| {
                        t.dir == dir && t.flying.is_none() && t.life != Life::Pending
                    }) {
                        tokens.retire(old);
                    }
                }
                place.issued(dir, token);
                tokens.issue(
                    token,
                    Token {
                        stream,
                        dir,
                        life: Life::Issued,
                        context: context.clone(),
                        view: call.view.clone(),
                        kept: None,
                        flying: None,
                        clean: false,
                        assumed: false,
                        stale: false,
                        since: 0,
                        wish: 0,
                    },
                );
            }
            call.context = Some(context);
            f.know(stream, Some(place), Some(p));
        } else {
            f.know(stream, None, Some(p));
        }
        s.tokens = tokens;
        (call, f)
    }

    pub(crate) fn event_leave(
        &self,
        call: &EventCall,
        o: &Outcome,
        changed: Option<Found>,
    ) -> Findings {
        let mut f = Findings::at("on_event");
        f.list.extend(changed);
        let mut violations = call
            .context
            .as_ref()
            .map(|c| c.judge(o))
            .unwrap_or_default();
        if o.action == Action::PENDING
            && content::is_body(call.view.phase)
            && let (Some(c), Some(d)) = (&call.context, dir_of(call.view.phase))
            && c.mode[d] == BodyMode::OBSERVE
        {
            violations.push((
                "PXG-BODY-007",
                format!("{}: PENDING in OBSERVE", phase_name(call.view.phase)),
            ));
        }
        for (rule, what) in &violations {
            f.push(guest(rule, what.clone(), "a result that a host may take"));
        }
        let phase = call.view.phase;
        let mut state = self.lock();
        let s = &mut *state;
        let mut tokens = std::mem::take(&mut s.tokens);
        let mut pended = None;
        let mut over = false;
        if let Some(place) = s.places.get_mut(&call.stream) {
            place.busy = None;
            place.user = o.user;
            place.answered(o);
            let dir = dir_of(phase).unwrap_or(0);
            if let Some(t) = tokens.get_mut(call.token) {
                let early = t.life == Life::Early;
                if o.action == Action::PENDING && violations.is_empty() {
                    pended = Some(place.worker);
                    t.life = if early {
                        Life::Completed
                    } else {
                        Life::Pending
                    };
                    t.since = platform::now_ns();
                    t.wish = if o.pend_ns == 0 {
                        place.config.pend_ns
                    } else {
                        o.pend_ns
                    };
                } else {
                    place.not_pending(dir);
                    t.life = Life::Returned;
                    t.kept = None;
                    if early {
                        f.list.push(guest(
                            "PXG-ASY-005",
                            format!(
                                "completed the token {:#x} and answered {}",
                                call.token,
                                action_name(o.action)
                            ),
                            "PENDING, if the token was completed",
                        ));
                    }
                }
            }
            if o.action != Action::PENDING || !violations.is_empty() {
                place.settle(
                    &call.view,
                    o,
                    violations.is_empty(),
                    Way::Event,
                    &mut f.list,
                );
            }
            if place.fate == Fate::Failed && o.action == Action::PENDING {
                pended = None;
            }
            f.know(call.stream, Some(place), Some(phase));
            over = is_log(phase) && place.user == 0;
        } else {
            f.know(call.stream, None, Some(phase));
        }
        s.tokens = tokens;
        if over {
            self.forget(s, call.stream);
        }
        if let Some(w) = pended {
            let w = s.workers.entry(w).or_default();
            w.pended += 1;
            w.since_batch += 1;
        }
        f
    }

    /// What `on_cancel` and `on_stream_end` have in common.
    fn stream_hook(
        &self,
        s: &mut State,
        config: u64,
        user: u64,
        stream: u64,
        worker: u32,
        f: &mut Findings,
    ) -> bool {
        let me = platform::tid();
        let Some(p) = s.places.get(&stream) else {
            let rule = if f.place.function == "on_cancel" {
                "PXG-ASY-001"
            } else {
                "PXG-EVT-006"
            };
            f.push(host(
                rule,
                format!(
                    "`{}` for {stream:#x}, which {}",
                    f.place.function,
                    if s.ended.has(stream) {
                        "has ended"
                    } else {
                        "no event ever named"
                    }
                ),
                "a live stream",
            ));
            return false;
        };
        if let Some((t, hook)) = p.busy {
            f.push(host(
                "PXG-EVT-002",
                format!(
                    "`{}` while {hook} of the same stream runs on thread {t}",
                    f.place.function
                ),
                "never inside another hook of the stream, nor beside it",
            ));
        }
        if place::is_affine(&p.config.features) && p.thread != me {
            f.push(host(
                "PXG-ASY-007",
                format!(
                    "`{}` on thread {me}, earlier hooks on {}",
                    f.place.function, p.thread
                ),
                "with THREAD_AFFINE one thread for all hooks of a stream",
            ));
        }
        if worker != p.worker {
            f.push(host(
                "PXG-THR-001",
                format!("worker {worker} for a stream of worker {}", p.worker),
                "a stream lives on one worker",
            ));
        }
        if config != p.config.value {
            f.push(host(
                "PXG-CFG-007",
                format!("config {config:#x} for a stream of {:#x}", p.config.value),
                "a stream keeps one configuration per place",
            ));
        }
        if user != p.user {
            f.push(host(
                "PXG-EVT-007",
                format!("user {user:#x}"),
                format!("{:#x}, as the last on_event left it", p.user),
            ));
        }
        true
    }

    pub(crate) fn cancel_enter(
        &self,
        config: u64,
        user: u64,
        stream: u64,
        token: u64,
        worker: u32,
        in_host: Option<&'static str>,
    ) -> Findings {
        let mut f = Findings::at("on_cancel");
        let mut state = self.lock();
        let s = &mut *state;
        self.loop_hook(s, worker, &mut f, in_host);
        let known = self.stream_hook(s, config, user, stream, worker, &mut f);
        let bad = |f: &mut Findings, rule, what: &str| {
            f.push(host(
                rule,
                format!("on_cancel of the token {token:#x}, {what}"),
                "once for each token that was PENDING and was not completed",
            ));
        };
        let issued = s.tokens.was(token);
        match s.tokens.get_mut(token) {
            None if issued => bad(&mut f, "PXG-ASY-001", "which was retired before"),
            None => bad(&mut f, "PXG-ASY-001", "which was never issued"),
            Some(t) if t.stream != stream => {
                bad(&mut f, "PXG-ASY-001", "which belongs to another stream");
            }
            Some(t) => {
                match t.life {
                    Life::Pending => {}
                    Life::Issued | Life::Early => {
                        bad(&mut f, "PXG-EVT-002", "whose on_event has not returned");
                    }
                    Life::Completed => bad(
                        &mut f,
                        "PXG-ASY-009",
                        "which `complete` was answered OK for",
                    ),
                    Life::Returned => bad(
                        &mut f,
                        "PXG-ASY-001",
                        "whose on_event did not answer PENDING",
                    ),
                    Life::Cancelled => bad(&mut f, "PXG-ASY-001", "a second time"),
                }
                let waited = platform::now_ns().saturating_sub(t.since);
                if t.life == Life::Pending && t.wish > 0 && waited >= t.wish && t.flying.is_none() {
                    f.list.push(
                        guest(
                            "PXG-ASY-001",
                            format!(
                                "the token {token:#x} was not completed in {} ms; it had asked for {} ms",
                                waited / 1_000_000,
                                t.wish / 1_000_000
                            ),
                            "a guest completes every token that it made PENDING",
                        )
                        .warning(),
                    );
                }
                t.life = Life::Cancelled;
                t.kept = None;
                let dir = t.dir;
                if let Some(p) = s.places.get_mut(&stream).filter(|_| known) {
                    if p.log {
                        f.list.push(host(
                            "PXG-EVT-017",
                            "on_cancel after LOG",
                            "tokens are cancelled before LOG",
                        ));
                    }
                    p.cancelled(dir, token);
                }
            }
        }
        if let Some(p) = s.places.get_mut(&stream) {
            p.busy = Some((platform::tid(), "on_cancel"));
            p.note("on_cancel".into());
            f.know(stream, Some(p), None);
        } else {
            f.know(stream, None, None);
        }
        f
    }

    pub(crate) fn cancel_leave(&self, stream: u64) {
        if let Some(p) = self.lock().places.get_mut(&stream) {
            p.busy = None;
        }
    }

    pub(crate) fn stream_end_enter(
        &self,
        config: u64,
        user: u64,
        stream: u64,
        worker: u32,
        in_host: Option<&'static str>,
    ) -> Findings {
        let mut f = Findings::at("on_stream_end");
        let mut state = self.lock();
        let s = &mut *state;
        self.loop_hook(s, worker, &mut f, in_host);
        if user == 0 {
            f.push(host(
                "PXG-EVT-006",
                "on_stream_end with user 0",
                "not at all where user is 0",
            ));
        }
        if self.stream_hook(s, config, user, stream, worker, &mut f) {
            // What a completion that no event followed led to is not visible: the guest may have failed by it.
            let mut unsettled = false;
            for t in s.tokens.of_stream(stream) {
                let Some(t) = s.tokens.get_mut(t) else {
                    continue;
                };
                unsettled |= t.kept.is_some() || t.flying.is_some();
                if t.life == Life::Pending && t.flying.is_none() {
                    f.push(if t.stale {
                        host(
                            "PXG-ASY-009",
                            "a token was answered STALE, and on_cancel never came for it",
                            "STALE and on_cancel, or OK and no on_cancel",
                        )
                    } else {
                        host(
                            "PXG-EVT-017",
                            format!(
                                "on_stream_end with a token of {} PENDING",
                                phase_name(t.view.phase)
                            ),
                            "tokens are retired and cancelled before",
                        )
                    });
                }
            }
            if let Some(p) = s.places.get(&stream)
                && (p.sees(Phase::LOG) || p.sees(Phase::L4_CLOSE))
                && !p.log
                && matches!(p.fate, Fate::Open | Fate::Replied | Fate::Reset)
                && !p.cancelled
                && !unsettled
            {
                f.push(host(
                    "PXG-EVT-009",
                    "on_stream_end without LOG",
                    "LOG (L4_CLOSE) once for each subscribed place whose guest has not failed",
                ));
            }
        }
        f.know(stream, s.places.get(&stream), None);
        self.forget(s, stream);
        f
    }

    pub(crate) fn worker_enter(
        &self,
        worker: u32,
        up: u32,
        in_host: Option<&'static str>,
    ) -> Findings {
        const LEAST_STACK: usize = 256 << 10;
        let mut f = Findings::at("on_worker");
        self.hook(&mut f, in_host);
        let stack = platform::stack_size();
        let mut s = self.lock();
        if up == 1 {
            s.loops.insert(platform::tid());
        }
        let features = self.terms.features;
        let w = s.workers.entry(worker).or_default();
        if up > 1 {
            f.push(host(
                "PXG-ABI-005",
                format!("on_worker with up {up}"),
                "1 for up, 0 for down",
            ));
        }
        if up == 1 && w.up {
            f.push(host(
                "PXG-THR-003",
                format!("on_worker(up) a second time for worker {worker}"),
                "once per library and worker",
            ));
        }
        if up == 1
            && let Some(n) = stack.filter(|n| *n < LEAST_STACK)
        {
            f.push(host(
                "PXG-THR-003",
                format!("a loop thread with a stack of {n} bytes"),
                "at least 256 KiB",
            ));
        }
        if up == 0 {
            if !w.up {
                f.push(host(
                    "PXG-THR-003",
                    format!("on_worker(down) for worker {worker}, which is not up"),
                    "down after up",
                ));
            }
            if Feature::BATCH_END.is_in(&features) && w.pended > 0 && w.batches == 0 {
                f.push(host(
                    "PXG-THR-004",
                    format!(
                        "no on_batch_end on worker {worker}, and {} events answered PENDING",
                        w.pended
                    ),
                    "once per loop iteration in which an event answered PENDING",
                ));
            }
        }
        if self.terms.n_workers != 0 && worker >= self.terms.n_workers {
            f.push(host(
                "PXG-THR-001",
                format!("worker {worker}"),
                format!("an index below n_workers, {}", self.terms.n_workers),
            ));
        }
        w.up = up == 1;
        f
    }

    pub(crate) fn batch_end_enter(&self, worker: u32, in_host: Option<&'static str>) -> Findings {
        let mut f = Findings::at("on_batch_end");
        let mut s = self.lock();
        self.loop_hook(&mut s, worker, &mut f, in_host);
        if !Feature::BATCH_END.is_in(&self.terms.features) {
            f.push(host(
                "PXG-NEG-009",
                "on_batch_end, and the feature BATCH_END is clear",
                "the hook is called only with the feature",
            ));
        }
        let w = s.workers.entry(worker).or_default();
        if w.since_batch == 0 {
            f.push(host(
                "PXG-THR-004",
                "on_batch_end, and no event answered PENDING since the last one",
                "once per loop iteration in which an event answered PENDING",
            ));
        }
        w.since_batch = 0;
        w.batches += 1;
        f
    }

    // ---- what the guest calls

    pub(crate) fn complete_enter(
        &self,
        token: u64,
        o: Option<&Outcome>,
        in_release: bool,
    ) -> (HandedCall, Findings) {
        let mut f = Findings::at("complete");
        check_release(&mut f, in_release);
        let mut s = self.lock();
        let was = s.tokens.was(token);
        let mut call = HandedCall {
            function: "complete",
            value: token,
            violations: Vec::new(),
            life: None,
            ended: was,
            action: o.map(|o| o.action),
            plain: o.is_some_and(is_plain),
            writes: false,
            began: platform::now_ns(),
        };
        let mut stream = 0;
        if let Some(t) = s.tokens.get_mut(token) {
            call.life = Some(t.life);
            call.ended = false;
            stream = t.stream;
            let live = matches!(t.life, Life::Issued | Life::Pending);
            if let Some(o) = o.filter(|_| live) {
                let mut c = t.context.clone();
                c.way = Way::Complete;
                call.violations = c.judge(o);
                if t.flying.is_none() {
                    t.clean = call.violations.is_empty();
                    t.flying = Some(Box::new(o.clone()));
                }
            }
        }
        for (rule, what) in &call.violations {
            f.push(guest(rule, what.clone(), "a result that a host accepts"));
        }
        if let Some(p) = s.places.get_mut(&stream) {
            p.note("complete".into());
        }
        f.know(stream, s.places.get(&stream), None);
        (call, f)
    }

    /// What every answer must be.
    fn check_answer(&self, call: &HandedCall, status: Status, f: &mut Findings) {
        let known = match call.function {
            "apply" => -6..=1,
            _ => -6..=0,
        };
        if !known.contains(&status.0) && status != Status::INTERNAL {
            f.push(host(
                "PXG-ABI-013",
                format!("`{}` answered {}", call.function, status.0),
                "a status of version 1.0 that the function may answer",
            ));
        }
        let took = platform::now_ns().saturating_sub(call.began);
        if took > SLOW {
            f.list.push(
                host(
                    "PXG-ASY-006",
                    format!("`{}` took {} ms", call.function, took / 1_000_000),
                    "it never blocks on a worker",
                )
                .warning(),
            );
        }
        if status.0 >= 0
            && let Some((rule, what)) = call
                .violations
                .iter()
                .find(|(rule, _)| STATELESS.contains(rule))
        {
            f.push(host(
                if *rule == "PXG-ASY-010" && call.function == "apply" {
                    "PXG-ASY-021"
                } else {
                    rule
                },
                format!("`{}` answered {} to: {what}", call.function, status.0),
                "what needs no state of the stream is refused before it answers (PXG-ASY-020)",
            ));
        }
        let refused = status.0 < 0 && status != Status::STALE && status != Status::LIMIT;
        if refused && call.violations.is_empty() && call.plain && call.life.is_some() {
            f.push(host(
                "PXG-ASY-010",
                format!(
                    "`{}` answered {} to a plain {}",
                    call.function,
                    status.0,
                    call.action.map(action_name).unwrap_or_default()
                ),
                "OK, or STALE where the token or stream has ended",
            ));
        }
    }

    pub(crate) fn complete_leave(&self, call: &HandedCall, status: Status) -> Findings {
        let mut f = Findings::at("complete");
        self.check_answer(call, status, &mut f);
        let ok = status.0 >= 0;
        let token = call.value;
        if call.life.is_none() {
            if ok {
                f.push(host(
                    "PXG-ASY-002",
                    format!(
                        "accepted the token {token:#x}, which {}",
                        if call.ended {
                            "was retired"
                        } else {
                            "it never issued to this guest"
                        }
                    ),
                    "STALE, for ever",
                ));
            }
            return f;
        }
        let mut state = self.lock();
        let s = &mut *state;
        let mut stream = 0;
        let mut fate = Fate::Open;
        if let Some(t) = s.tokens.get_mut(token) {
            stream = t.stream;
            let flown = t.flying.take();
            if let Some(p) = s.places.get(&stream) {
                fate = p.fate;
            }
            match (call.life, t.life, ok) {
                // It was taken as accepted already, when the next event came.
                (Some(Life::Issued | Life::Pending), Life::Pending, _) if t.assumed => {
                    t.assumed = false;
                    t.life = Life::Completed;
                    if !ok {
                        f.push(host(
                            "PXG-EVT-003",
                            format!(
                                "an event came while {} was PENDING; `complete` was answered {}",
                                phase_name(t.view.phase),
                                status.0
                            ),
                            "no event of a direction that is PENDING",
                        ));
                    }
                }
                (_, Life::Pending, true) => {
                    t.life = Life::Completed;
                    t.kept = flown;
                }
                (_, Life::Issued, true) => {
                    t.life = Life::Early;
                    t.kept = flown;
                }
                (Some(Life::Early | Life::Completed), _, true) => f.push(host(
                    "PXG-ASY-001",
                    format!("accepted a second completion of the token {token:#x}"),
                    "STALE, because the token was completed before",
                )),
                (Some(Life::Returned | Life::Cancelled), _, true) => f.push(host(
                    "PXG-ASY-002",
                    format!("accepted the token {token:#x}, which was retired"),
                    "STALE, for ever",
                )),
                (_, Life::Cancelled, true) => f.push(host(
                    "PXG-ASY-009",
                    format!("answered OK for the token {token:#x}, and called on_cancel for it"),
                    "exactly one of complete and cancel wins",
                )),
                (Some(Life::Issued), Life::Issued, false)
                    if status == Status::STALE && fate == Fate::Open =>
                {
                    f.push(host(
                        "PXG-ASY-004",
                        format!("answered STALE for the token {token:#x} of the running on_event"),
                        "complete is accepted before on_event has returned",
                    ));
                }
                (_, Life::Pending | Life::Issued, false) => t.stale |= status == Status::STALE,
                _ => {}
            }
        }
        f.know(stream, s.places.get(&stream), None);
        f
    }

    pub(crate) fn apply_enter(
        &self,
        stream: u64,
        o: Option<&Outcome>,
        in_release: bool,
    ) -> (HandedCall, Findings) {
        let mut f = Findings::at("apply");
        check_release(&mut f, in_release);
        let mut s = self.lock();
        let ended = s.ended.has(stream);
        let mut call = HandedCall {
            function: "apply",
            value: stream,
            violations: Vec::new(),
            life: None,
            ended,
            action: o.map(|o| o.action),
            plain: o.is_some_and(is_plain),
            writes: o.is_some_and(|o| o.ops.get().iter().any(|op| op.kind == 11)),
            began: platform::now_ns(),
        };
        if let Some(p) = s.places.get_mut(&stream) {
            p.note("apply".into());
            call.life = Some(Life::Issued);
            if let Some(o) = o {
                let c = Context {
                    phase: Phase(0),
                    flags: abi::EventFlags(0),
                    pend_phases: 0,
                    features: p.config.features,
                    mode: Default::default(),
                    subscribe: 0,
                    held: false,
                    view_len: 0,
                    max_body: 0,
                    fields: Vec::new(),
                    trailers: Vec::new(),
                    replied: false,
                    way: Way::Apply,
                    length_left: None,
                };
                call.violations = c.judge(o);
            }
        }
        for (rule, what) in &call.violations {
            f.push(guest(rule, what.clone(), "a result that a host accepts"));
        }
        f.know(stream, s.places.get(&stream), None);
        (call, f)
    }

    pub(crate) fn apply_leave(&self, call: &HandedCall, status: Status) -> Findings {
        let mut f = Findings::at("apply");
        self.check_answer(call, status, &mut f);
        let mut s = self.lock();
        self.check_handle(&mut s, call.value, call.ended, status, &mut f);
        if status == Status::FULL && !call.writes {
            f.push(host(
                "PXG-RPL-006",
                "answered FULL to an apply without BODY_WRITE",
                "FULL says that bytes of a streamed reply wait",
            ));
        }
        if let Some(p) = s.places.get_mut(&call.value) {
            if status == Status::FULL {
                p.full += 1;
            }
            if status.0 >= 0
                && matches!(call.action, Some(Action::REPLY | Action::RESET))
                && p.fate == Fate::Open
            {
                // It takes effect at its turn, or the stream dies first.
                p.fate = Fate::Unknown;
            }
        }
        f.know(call.value, s.places.get(&call.value), None);
        f
    }

    fn check_handle(
        &self,
        s: &mut State,
        stream: u64,
        ended: bool,
        status: Status,
        f: &mut Findings,
    ) {
        match s.places.get_mut(&stream) {
            Some(p) if status == Status::STALE => p.stale = true,
            None if status != Status::STALE && ended => f.push(host(
                "PXG-ASY-002",
                format!(
                    "answered {} for {stream:#x}, a stream that has ended",
                    status.0
                ),
                "STALE, for ever",
            )),
            _ => {}
        }
    }

    pub(crate) fn wake_enter(&self, stream: u64, arg: u64, in_release: bool) -> Findings {
        let mut f = Findings::at("wake");
        check_release(&mut f, in_release);
        let mut s = self.lock();
        if let Some(p) = s.places.get_mut(&stream) {
            p.woken(arg);
            p.note("wake".into());
        }
        f.know(stream, s.places.get(&stream), None);
        f
    }

    pub(crate) fn wake_leave(&self, stream: u64, ended: bool, status: Status) -> Findings {
        let mut f = Findings::at("wake");
        let mut s = self.lock();
        self.check_handle(&mut s, stream, ended, status, &mut f);
        if let Some(p) = s.places.get(&stream) {
            if status.0 >= 0 && !p.sees(Phase::WAKE) && p.fate == Fate::Open {
                f.list.push(host(
                    "PXG-ASY-013",
                    format!(
                        "answered {} to a wake without a subscription to WAKE",
                        status.0
                    ),
                    "STATE",
                ));
            }
            if !matches!(status, Status::OK | Status::STALE)
                && p.sees(Phase::WAKE)
                && p.fate == Fate::Open
            {
                f.list.push(host(
                    "PXG-ASY-013",
                    format!("answered {} to a wake", status.0),
                    "OK or STALE",
                ));
            }
        }
        f.know(stream, s.places.get(&stream), None);
        f
    }

    pub(crate) fn has_ended(&self, stream: u64) -> bool {
        self.lock().ended.has(stream)
    }

    /// The same id must give the same answer as long as the process lives.
    pub(crate) fn ext(&self, of_host: bool, id: Vec<u8>, answer: u64) -> Findings {
        let mut f = Findings::at("get_ext");
        let name = String::from_utf8_lossy(&id).into_owned();
        let before = *self.lock().exts.entry((of_host, id)).or_insert(answer);
        if before != answer {
            let what = format!("answered {answer:#x} for {name:?}, {before:#x} before");
            let expected = "the same for one id as long as the process lives";
            f.push(if of_host {
                host("PXG-NEG-007", what, expected)
            } else {
                guest("PXG-NEG-007", what, expected)
            });
        }
        f
    }

    /// `define` answered OK with `id` for a series.
    pub(crate) fn metric(&self, series: Vec<u8>, id: u32) -> Findings {
        let mut f = Findings::at("define");
        let before = *self.lock().metrics.entry(series).or_insert(id);
        if before != id {
            f.push(host(
                "PXG-OBS-006",
                format!("answered the id {id} for a series that had {before}"),
                "one id for one kind, name and set of labels",
            ));
        }
        f
    }

    /// At the end of the process.
    pub(crate) fn finish(&self) {
        let mut f = Findings::at("exit");
        let now = platform::now_ns();
        let forgotten = {
            let s = self.lock();
            handover::outstanding()
                .into_iter()
                .filter(|o| {
                    o.slot == self.slot
                        && now.saturating_sub(o.since) > FORGOTTEN
                        && !s.places.contains_key(&o.stream)
                })
                .count()
        };
        if forgotten > 0 {
            f.push(host(
                "PXG-MEM-006",
                format!("{forgotten} OWNED buffers of streams that have ended were never released"),
                "exactly one release for each, on every path",
            ));
        }
        let s = self.lock();
        let waiting = s
            .tokens
            .pending()
            .filter(|(_, t)| t.wish > 0 && now.saturating_sub(t.since) > 2 * t.wish + FORGOTTEN)
            .count();
        if waiting > 0 {
            f.list.push(
                host(
                    "PXG-ASY-011",
                    format!("{waiting} tokens are PENDING for more than twice the deadline that was asked for"),
                    "a finite deadline; the host's own limit may be longer than what the guest asked for",
                )
                .warning(),
            );
        }
        for (n, w) in &s.workers {
            if Feature::BATCH_END.is_in(&self.terms.features)
                && w.up
                && w.pended > 0
                && w.batches == 0
            {
                f.push(host(
                    "PXG-THR-004",
                    format!(
                        "no on_batch_end on worker {n}, and {} events answered PENDING",
                        w.pended
                    ),
                    "once per loop iteration in which an event answered PENDING",
                ));
            }
        }
        drop(s);
        f.report();
    }
}

fn check_release(f: &mut Findings, in_release: bool) {
    if in_release {
        f.push(guest(
            "PXG-MEM-007",
            format!("`release` called the host's `{}`", f.place.function),
            "release frees and returns",
        ));
    }
}

/// Whether a host has no reason of its own to refuse it.
fn is_plain(o: &Outcome) -> bool {
    matches!(o.action, Action::CONTINUE | Action::RESET)
        && o.ops.count == 0
        && o.body_mode == [BodyMode::UNSET; 2]
        && o.unsubscribe == 0
        && o.flags == 0
}
