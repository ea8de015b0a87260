//! One guest under one host: its configurations, streams, tokens and workers, and what each call does to them. Nothing
//! here calls either side, and no lock is held while one of them runs.

mod calls;
mod configs;
mod streams;
mod workers;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use proxy_golang_abi::feature::{Feature, FeatureSet};
use proxy_golang_abi::{BodyMode, Phase};
use proxy_golang_conformance::parts::model::phase_name;

use crate::place::Place;
use crate::report::{self, Found, guest, host};
use crate::sys::{handover, platform};
use crate::tokens::{Memory, Tokens};

pub(crate) use streams::EventCall;

/// An owned buffer that is older than this at the end, in nanoseconds, has been forgotten.
const FORGOTTEN: u64 = 1_000_000_000;

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

/// What the guest's table asks of the host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
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
    pub(crate) features: FeatureSet,
    n_workers: u32,
    /// Set when the guest has been initialised.
    pub(crate) asked: OnceLock<Asked>,
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

impl Library {
    pub(crate) fn new(slot: usize, features: FeatureSet, n_workers: u32) -> Self {
        Self {
            slot,
            features,
            n_workers,
            asked: OnceLock::new(),
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
        if let Some((rule, why)) = self.asked.get().and_then(|a| a.refuse.as_ref())
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
            if Feature::BATCH_END.is_in(&self.features) && w.up && w.pended > 0 && w.batches == 0 {
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
