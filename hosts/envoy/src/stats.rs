//! What guests and this host count, as Envoy's statistics.
//!
//! Guests record into the host's registry from any thread; Envoy takes values for labelled statistics on its main thread
//! only, and wants them defined while a configuration is made. So once a second the main thread adds what has come since.
//! The newest configuration publishes: it has defined all that there is. Names begin with Envoy's prefix for modules
//! (`dynamicmodulescustom.` unless `metrics_namespace` says otherwise), then:
//!
//! * `pxg_<metric>`: a guest's metric, its labels and `guest` as tags. Histograms are counted by bucket: each observation as
//!   the upper bound of its bucket in the guest-side histogram.
//! * `pxg_calls`, `pxg_errors`, `pxg_panics`, `pxg_pending`, `pxg_time_ns` by `filter` and `phase`: calls into guests.
//! * `pxg_failures` by `filter` and `reason`; `pxg_cancels`, `pxg_stale`, `pxg_unused_completions`, `pxg_deadlines`,
//!   `pxg_over_pending_cap`, `pxg_skipped_ops`, `pxg_late_replies`, `pxg_bypassed` and the gauge `pxg_pending_now` by
//!   `filter`.
//! * the gauge `pxg_recipe` by `guest` and `step`: 1 where the host does its part of the runtime recipe.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use proxy_golang_abi::Phase;
use proxy_golang_host::engine::{Counter, FilterStats, PHASES, PhaseStats, Reason};
use proxy_golang_host::ffi::{MetricSnapshot, MetricValue};

use crate::process::{self, Process, lock};
use crate::site::Site;
use crate::sys::{Config, Stat, StatKind};

/// The statistics of one configuration.
#[derive(Default)]
pub(crate) struct Published {
    defined: OnceLock<Defined>,
}

struct Defined {
    phases: Vec<Option<Stat>>,
    failures: Option<Stat>,
    plain: Vec<Option<Stat>>,
    pending_now: Option<Stat>,
    recipe: Option<Stat>,
    /// Guests' metrics by kind, name and names of labels.
    metrics: Mutex<HashMap<Shape, Option<Stat>>>,
}

/// The name of a guest's metric, and the names of its labels.
type Shape = (String, Vec<String>);

/// What has been added to Envoy's counters of a process: whichever configuration did it.
static ADDED: Mutex<Option<HashMap<String, u64>>> = Mutex::new(None);

type OfPhase = fn(&PhaseStats) -> &Counter;
const OF_PHASE: [(&str, OfPhase); 5] = [
    ("pxg_calls", |s| &s.calls),
    ("pxg_errors", |s| &s.errors),
    ("pxg_panics", |s| &s.panics),
    ("pxg_pending", |s| &s.pending),
    ("pxg_time_ns", |s| &s.time_ns),
];

type OfFilter = fn(&FilterStats) -> &Counter;
const OF_FILTER: [(&str, OfFilter); 8] = [
    ("pxg_cancels", |s| &s.cancels),
    ("pxg_stale", |s| &s.stale),
    ("pxg_unused_completions", |s| &s.unused_completions),
    ("pxg_deadlines", |s| &s.deadlines),
    ("pxg_over_pending_cap", |s| &s.over_pending_cap),
    ("pxg_skipped_ops", |s| &s.skipped_ops),
    ("pxg_late_replies", |s| &s.late_replies),
    ("pxg_bypassed", |s| &s.bypassed),
];

fn kind_of(value: &MetricValue) -> StatKind {
    match value {
        MetricValue::Counter(_) => StatKind::Counter,
        MetricValue::Gauge(_) => StatKind::Gauge,
        MetricValue::Histogram { .. } => StatKind::Histogram,
    }
}

fn shape_of(metric: &MetricSnapshot) -> Shape {
    let labels = metric.labels.iter().map(|(name, _)| name.clone());
    (metric.name.clone(), labels.collect())
}

impl Published {
    /// Defines what this host counts, and all that guests have defined so far. \[main thread, while the configuration is
    /// made\]
    pub(crate) fn define(&self, config: Config) {
        let Some(process) = process::get() else {
            return;
        };
        let counter = |name: &str, labels: &[&str]| config.define(StatKind::Counter, name, labels);
        let metrics = Mutex::<HashMap<Shape, _>>::default();
        for metric in process.host.metrics() {
            let shape = shape_of(&metric);
            let mut labels: Vec<&str> = vec!["guest"];
            labels.extend(shape.1.iter().map(String::as_str));
            let name = format!("pxg_{}", metric.name);
            lock(&metrics)
                .entry(shape.clone())
                .or_insert_with(|| config.define(kind_of(&metric.value), &name, &labels));
        }
        let _ = self.defined.set(Defined {
            phases: OF_PHASE
                .iter()
                .map(|(name, _)| counter(name, &["filter", "phase"]))
                .collect(),
            failures: counter("pxg_failures", &["filter", "reason"]),
            plain: OF_FILTER
                .iter()
                .map(|(name, _)| counter(name, &["filter"]))
                .collect(),
            pending_now: config.define(StatKind::Gauge, "pxg_pending_now", &["filter"]),
            recipe: config.define(StatKind::Gauge, "pxg_recipe", &["filter", "step"]),
            metrics,
        });
    }

    /// Adds what has come since. \[main thread\]
    pub(crate) fn publish(&self, config: Config, site: &Site) {
        let (Some(process), Some(defined)) = (process::get(), self.defined.get()) else {
            return;
        };
        let mut added = lock(&ADDED);
        let mut publisher = Publisher {
            config,
            added: added.get_or_insert_default(),
        };
        publisher.filters(process, defined);
        publisher.guests(process, defined);
        for guest in &site.settings.chain {
            for (step, on) in [("batch_end", guest.batch_end), ("warm_up", true)] {
                if let Some(stat) = defined.recipe {
                    config.record(stat, &[&guest.name, step], u64::from(on));
                }
            }
        }
    }
}

struct Publisher<'a> {
    config: Config,
    added: &'a mut HashMap<String, u64>,
}

impl Publisher<'_> {
    /// Brings one of Envoy's counters to `now`.
    fn counter(&mut self, name: &str, stat: Option<Stat>, labels: &[&str], now: u64) {
        let Some(stat) = stat else { return };
        if now == 0 {
            return;
        }
        let key = format!("{name}\0{}", labels.join("\0"));
        let added = self.added.entry(key).or_insert(0);
        if now > *added && self.config.record(stat, labels, now - *added) {
            *added = now;
        }
    }

    fn filters(&mut self, process: &Process, defined: &Defined) {
        for (filter, stats) in &*lock(&process.stats) {
            for (phase, phase_name) in PHASES {
                let counts: PhaseStats = stats.phase(Phase(phase.0));
                for ((name, of), stat) in OF_PHASE.iter().zip(&defined.phases) {
                    let now = of(&counts).get();
                    self.counter(name, *stat, &[filter, phase_name], now);
                }
            }
            for reason in Reason::ALL {
                let now = stats.failures(reason).get();
                let labels = [filter, reason.name()];
                self.counter("pxg_failures", defined.failures, &labels, now);
            }
            for ((name, of), stat) in OF_FILTER.iter().zip(&defined.plain) {
                self.counter(name, *stat, &[filter], of(stats).get());
            }
            if let Some(stat) = defined.pending_now {
                self.config.record(stat, &[filter], stats.pending_now.get());
            }
        }
    }

    fn guests(&mut self, process: &Process, defined: &Defined) {
        let known = lock(&defined.metrics);
        for metric in process.host.metrics() {
            let Some(Some(stat)) = known.get(&shape_of(&metric)).copied() else {
                continue;
            };
            let mut labels: Vec<&str> = vec![&metric.guest];
            labels.extend(metric.labels.iter().map(|(_, value)| value.as_str()));
            match &metric.value {
                MetricValue::Counter(now) => self.counter(&metric.name, Some(stat), &labels, *now),
                MetricValue::Gauge(now) => {
                    // Envoy's gauges are never negative.
                    self.config
                        .record(stat, &labels, u64::try_from(*now).unwrap_or(0));
                }
                MetricValue::Histogram { buckets, count, .. } => {
                    self.histogram(&metric.name, stat, &labels, buckets, *count);
                }
            }
        }
    }

    fn histogram(
        &mut self,
        name: &str,
        stat: Stat,
        labels: &[&str],
        buckets: &[(i64, u64)],
        count: u64,
    ) {
        /// Most observations of one bucket that are repeated in a second.
        const MOST: u64 = 10_000;
        let mut below = 0;
        let last = buckets.last().map_or(0, |(bound, _)| *bound);
        for (bound, upto) in buckets.iter().copied().chain([(last, count)]) {
            let now = upto - below.min(upto);
            below = upto;
            let key = format!("{name}\0{}\0{bound}\0{}", labels.join("\0"), upto == count);
            let added = self.added.entry(key).or_insert(0);
            let new = now.saturating_sub(*added);
            *added = now;
            for _ in 0..new.min(MOST) {
                self.config
                    .record(stat, labels, u64::try_from(bound).unwrap_or(0));
            }
        }
    }
}
