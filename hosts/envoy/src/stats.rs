//! What guests and this host count, as Envoy's statistics.
//!
//! The names and labels are those of `spec/15-logging-metrics.md`. Envoy puts the namespace of modules before them
//! (`dynamicmodulescustom.` unless `metrics_namespace` says otherwise), which its Prometheus page makes
//! `envoy_dynamicmodulescustom_`, or nothing with a runtime guard of Envoy's that `README.md` names.
//!
//! Guests record into the host's registry from any thread; Envoy takes values for labelled statistics on its main thread
//! only, and has their names defined while a configuration is made. So now and then the main thread adds what has come
//! since. The newest configuration does so: it has defined all that there was when it was made. A metric that a guest
//! defines later has no name in Envoy until the next configuration, and is told by the labels of one that has
//! (`pxg_user_counter{guest,metric,labels}`).
//!
//! Envoy's histograms take whole numbers and have buckets of their own, the same for all, which begin at 0.5. Times of calls
//! are far below a second: their histogram is made of counters, which are what Prometheus reads of a histogram anyway.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock};

use proxy_golang_host::engine::{
    Counter as Count, FilterStats, PHASES, PhaseStats, Reason, TIME_BUCKETS_NS,
};
use proxy_golang_host::ffi::{MetricSnapshot, MetricValue};

use crate::bell::Work;
use crate::config::GuestSettings;
use crate::process::{self, lock};
use crate::site::Site;
use crate::sys::{Config, Stat, StatKind};

use StatKind::{Counter, Gauge, Histogram};

/// What is counted for an entry, and what it is an entry of.
pub(crate) struct Counted {
    pub(crate) guest: String,
    pub(crate) filter: String,
    pub(crate) config: String,
    pub(crate) stats: Arc<FilterStats>,
}

const ENTRY: &[&str] = &["guest", "filter", "config"];
const PHASE: &[&str] = &["guest", "filter", "config", "phase"];
const WORKER: &[&str] = &["worker"];
const LATE: &[&str] = &["guest", "metric", "labels"];

/// The host's own, and those by which metrics of guests are told that Envoy has no name for.
const FAMILIES: &[(StatKind, &str, &[&str])] = &[
    (Counter, "pxg_guest_calls_total", PHASE),
    (Counter, "pxg_guest_errors_total", PHASE),
    (Counter, "pxg_guest_panics_total", PHASE),
    (Counter, "pxg_guest_pending_total", PHASE),
    (
        Counter,
        "pxg_guest_call_seconds_bucket",
        &["guest", "filter", "config", "phase", "le"],
    ),
    (Counter, "pxg_guest_call_seconds_count", PHASE),
    (Counter, "pxg_guest_call_seconds_sum", PHASE),
    (Counter, "pxg_guest_call_nanoseconds_total", PHASE),
    (
        Counter,
        "pxg_guest_failures_total",
        &["guest", "filter", "config", "reason"],
    ),
    (Gauge, "pxg_guest_pending", ENTRY),
    (Counter, "pxg_guest_stale_completions_total", ENTRY),
    (Counter, "pxg_guest_cancels_total", ENTRY),
    (Counter, "pxg_guest_operations_skipped_total", ENTRY),
    (Counter, "pxg_guest_late_replies_total", ENTRY),
    (Counter, "pxg_guest_bypassed_total", ENTRY),
    (Counter, "pxg_filter_unused_completions_total", ENTRY),
    (Counter, "pxg_filter_deadlines_total", ENTRY),
    (Counter, "pxg_filter_over_pending_cap_total", ENTRY),
    (Gauge, "pxg_recipe", &["guest", "filter", "config", "step"]),
    (Counter, "pxg_worker_wakes_total", WORKER),
    (Counter, "pxg_worker_turns_total", WORKER),
    (Counter, "pxg_worker_completions_total", WORKER),
    (Counter, "pxg_worker_batch_ends_total", WORKER),
    (Counter, "pxg_user_counter", LATE),
    (Gauge, "pxg_user_gauge", LATE),
    (Histogram, "pxg_user_histogram", LATE),
    // How often all of them have been handed over: who sees it risen sees what had been counted before.
    (Counter, PUBLISHED, &[]),
];

const PUBLISHED: &str = "pxg_statistics_published_total";

type OfPhase = fn(&PhaseStats) -> &Count;
const OF_PHASE: [(&str, OfPhase); 4] = [
    ("pxg_guest_calls_total", |s| &s.calls),
    ("pxg_guest_errors_total", |s| &s.errors),
    ("pxg_guest_panics_total", |s| &s.panics),
    ("pxg_guest_pending_total", |s| &s.pending),
];

type OfEntry = fn(&FilterStats) -> u64;
const OF_ENTRY: [(&str, OfEntry); 8] = [
    ("pxg_guest_stale_completions_total", |s| {
        s.stale.get() + s.unused_completions.get()
    }),
    ("pxg_guest_cancels_total", |s| s.cancels.get()),
    ("pxg_guest_operations_skipped_total", |s| {
        s.skipped_ops.get()
    }),
    ("pxg_guest_late_replies_total", |s| s.late_replies.get()),
    ("pxg_guest_bypassed_total", |s| s.bypassed.get()),
    ("pxg_filter_unused_completions_total", |s| {
        s.unused_completions.get()
    }),
    ("pxg_filter_deadlines_total", |s| s.deadlines.get()),
    ("pxg_filter_over_pending_cap_total", |s| {
        s.over_pending_cap.get()
    }),
];

/// The steps of the runtime recipe that a host does (`docs/src/write-a-host.md`), and whether an entry has them.
type OfRecipe = fn(&GuestSettings) -> bool;
const RECIPE: [(&str, OfRecipe); 3] = [
    ("all_cpus", |guest| guest.all_cpus),
    ("batch_end", |guest| guest.batch_end),
    ("warm_up", |guest| guest.warm_up),
];

/// The statistics of one configuration.
#[derive(Default)]
pub(crate) struct Published {
    defined: OnceLock<Defined>,
    /// Counters that this configuration keeps alive in Envoy.
    touched: Mutex<HashSet<String>>,
}

#[derive(Default)]
struct Defined {
    own: HashMap<&'static str, Stat>,
    guests: HashMap<Shape, Stat>,
}

/// What Envoy knows a guest's metric by: its kind, its name, and the names of its labels.
type Shape = (StatKind, String, Vec<String>);

/// What has been added to Envoy's counters of a process: whichever configuration did it.
static ADDED: Mutex<Option<HashMap<String, u64>>> = Mutex::new(None);

impl Published {
    /// Defines what this host counts, and all that guests have defined so far. \[main thread, while the configuration is
    /// made\]
    pub(crate) fn define(&self, config: Config) {
        let Some(process) = process::get() else {
            return;
        };
        let mut defined = Defined::default();
        for (kind, name, labels) in FAMILIES {
            if let Some(stat) = config.define(*kind, name, labels) {
                defined.own.insert(name, stat);
            }
        }
        for metric in process.host.metrics() {
            let shape = shape_of(&metric);
            if defined.guests.contains_key(&shape) {
                continue;
            }
            let labels: Vec<&str> = shape.2.iter().map(String::as_str).collect();
            if let Some(stat) = config.define(shape.0, &shape.1, &labels) {
                defined.guests.insert(shape, stat);
            }
        }
        let _ = self.defined.set(defined);
    }

    /// Adds what has come since. \[main thread\]
    pub(crate) fn publish(&self, config: Config, site: &Site) {
        let (Some(process), Some(defined)) = (process::get(), self.defined.get()) else {
            return;
        };
        let mut added = lock(&ADDED);
        let mut publisher = Publisher {
            config,
            defined,
            added: added.get_or_insert_default(),
            touched: &mut lock(&self.touched),
        };
        for counted in &*lock(&process.stats) {
            publisher.entry(counted);
        }
        for counted in site.counted() {
            let (guest, labels) = counted;
            for (step, has) in RECIPE {
                let [library, filter, name] = labels;
                publisher.gauge(
                    "pxg_recipe",
                    &[library, filter, name, step],
                    has(guest).into(),
                );
            }
        }
        for (worker, work) in process.work() {
            publisher.worker(&worker.to_string(), work);
        }
        for metric in process.host.metrics() {
            publisher.metric(&metric);
        }
        publisher.handed_over();
    }
}

struct Publisher<'a> {
    config: Config,
    defined: &'a Defined,
    added: &'a mut HashMap<String, u64>,
    touched: &'a mut HashSet<String>,
}

impl Publisher<'_> {
    /// Brings one of Envoy's counters to `now`.
    fn bring(&mut self, key: String, stat: Stat, labels: &[&str], now: u64) {
        let added = self.added.get(&key).copied().unwrap_or(0);
        // Envoy forgets a counter with the last configuration that has used it: a new one has to, by adding nothing.
        let is_new = !self.touched.contains(&key);
        if (now > added || is_new) && self.config.record(stat, labels, now.saturating_sub(added)) {
            if is_new {
                self.touched.insert(key.clone());
            }
            self.added.insert(key, now.max(added));
        }
    }

    fn counter(&mut self, name: &str, labels: &[&str], now: u64) {
        if let Some(stat) = self.defined.own.get(name) {
            self.bring(format!("{name}\0{}", labels.join("\0")), *stat, labels, now);
        }
    }

    fn gauge(&mut self, name: &str, labels: &[&str], now: u64) {
        if let Some(stat) = self.defined.own.get(name) {
            self.config.record(*stat, labels, now);
        }
    }

    fn entry(&mut self, counted: &Counted) {
        let [guest, filter, config] = counted.labels();
        let stats = &counted.stats;
        for (phase, name) in PHASES {
            let counts = stats.phase(phase);
            // A phase is there from its first call on: few entries have all of them.
            if OF_PHASE.iter().all(|(_, of)| of(&counts).get() == 0) {
                continue;
            }
            let labels = [guest, filter, config, name];
            for (name, of) in OF_PHASE {
                self.counter(name, &labels, of(&counts).get());
            }
            let time = Times::of(&counts);
            self.counter("pxg_guest_call_seconds_count", &labels, time.calls);
            self.counter(
                "pxg_guest_call_seconds_sum",
                &labels,
                time.ns / 1_000_000_000,
            );
            self.counter("pxg_guest_call_nanoseconds_total", &labels, time.ns);
            for (bound, calls) in time.buckets {
                let labels = [guest, filter, config, name, &bound];
                self.counter("pxg_guest_call_seconds_bucket", &labels, calls);
            }
        }
        for reason in Reason::ALL {
            let labels = [guest, filter, config, reason.name()];
            let failures = stats.failures(reason).get();
            self.counter("pxg_guest_failures_total", &labels, failures);
        }
        for (name, of) in OF_ENTRY {
            self.counter(name, &[guest, filter, config], of(stats));
        }
        let pending = stats.pending_now.get();
        self.gauge("pxg_guest_pending", &[guest, filter, config], pending);
    }

    fn worker(&mut self, worker: &str, work: &Work) {
        for (name, count) in [
            ("pxg_worker_wakes_total", &work.wakes),
            ("pxg_worker_turns_total", &work.turns),
            ("pxg_worker_completions_total", &work.completions),
            ("pxg_worker_batch_ends_total", &work.batch_ends),
        ] {
            self.counter(name, &[worker], count.get());
        }
    }

    fn metric(&mut self, metric: &MetricSnapshot) {
        let shape = shape_of(metric);
        let all: String;
        let (stat, name, labels) = if let Some(stat) = self.defined.guests.get(&shape) {
            let own = own_labels(metric).map(|(_, value)| value.as_str());
            let labels: Vec<&str> = [metric.guest.as_str()].into_iter().chain(own).collect();
            (*stat, shape.1.as_str(), labels)
        } else {
            let name = match shape.0 {
                Counter => "pxg_user_counter",
                Gauge => "pxg_user_gauge",
                Histogram => "pxg_user_histogram",
            };
            let Some(stat) = self.defined.own.get(name) else {
                return;
            };
            all = own_labels(metric)
                .map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>()
                .join(",");
            (*stat, name, vec![&*metric.guest, &*metric.name, &*all])
        };
        // Two files may say that they are the same library: their counts add up.
        let key = format!("{name}\0{}\0{}", metric.library, labels.join("\0"));
        match &metric.value {
            MetricValue::Counter(now) => self.bring(key, stat, &labels, *now),
            MetricValue::Gauge(now) => {
                // Envoy's gauges are never negative.
                let now = u64::try_from(*now).unwrap_or(0);
                self.config.record(stat, &labels, now);
            }
            MetricValue::Histogram { buckets, count, .. } => {
                self.observe(&key, stat, &labels, buckets, *count);
            }
        }
    }

    /// Repeats observations: each as the upper bound of the bucket that it fell into.
    fn observe(
        &mut self,
        key: &str,
        stat: Stat,
        labels: &[&str],
        buckets: &[(i64, u64)],
        count: u64,
    ) {
        /// Most of one bucket that are repeated at once; the others follow.
        const MOST: u64 = 10_000;
        let mut below = 0;
        let last = buckets.last().map_or(0, |(bound, _)| *bound);
        let bounded = buckets.iter().map(|(bound, upto)| (*bound, *upto, "le"));
        for (bound, upto, side) in bounded.chain([(last, count, "gt")]) {
            let now = upto.saturating_sub(below);
            below = upto;
            let added = self
                .added
                .entry(format!("{key}\0{side}\0{bound}"))
                .or_insert(0);
            let value = u64::try_from(bound).unwrap_or(0);
            for _ in 0..now.saturating_sub(*added).min(MOST) {
                if !self.config.record(stat, labels, value) {
                    break;
                }
                *added += 1;
            }
        }
    }

    /// Says that all of it is there.
    fn handed_over(&mut self) {
        if let Some(stat) = self.defined.own.get(PUBLISHED) {
            self.config.record(*stat, &[], 1);
        }
    }
}

impl Counted {
    fn labels(&self) -> [&str; 3] {
        [&self.guest, &self.filter, &self.config]
    }
}

/// The histogram of a phase's calls. Not every call is timed: those that were stand for all.
struct Times {
    calls: u64,
    ns: u64,
    /// Upper bounds in seconds, with the calls up to each.
    buckets: Vec<(String, u64)>,
}

impl Times {
    fn of(counts: &PhaseStats) -> Self {
        let calls = counts.calls.get();
        let timed: u64 = counts.time.iter().map(Count::get).sum();
        let of_all = |part: u64| {
            let part = u128::from(part) * u128::from(calls);
            let part = part.checked_div(u128::from(timed)).unwrap_or(0);
            u64::try_from(part).unwrap_or(u64::MAX)
        };
        let mut upto = 0;
        let bounded = TIME_BUCKETS_NS.iter().zip(&counts.time);
        let mut buckets: Vec<_> = bounded
            .map(|(bound, count)| {
                upto += count.get();
                (seconds(*bound), of_all(upto))
            })
            .collect();
        buckets.push(("+Inf".to_owned(), calls));
        Self {
            calls,
            ns: of_all(counts.time_ns.get()),
            buckets,
        }
    }
}

/// Nanoseconds as Prometheus writes seconds: `0.00025`.
fn seconds(ns: u64) -> String {
    let text = format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn kind_of(value: &MetricValue) -> StatKind {
    match value {
        MetricValue::Counter(_) => Counter,
        MetricValue::Gauge(_) => Gauge,
        MetricValue::Histogram { .. } => Histogram,
    }
}

/// A metric's labels beside `guest`, which is the host's.
fn own_labels(metric: &MetricSnapshot) -> impl Iterator<Item = &(String, String)> {
    metric.labels.iter().filter(|(name, _)| name != "guest")
}

/// Under which name and labels a guest's metric is exported (`spec/15-logging-metrics.md`, 15.3).
fn shape_of(metric: &MetricSnapshot) -> Shape {
    let library: String = metric
        .guest
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    let own = own_labels(metric).map(|(name, _)| name.clone());
    let labels = ["guest".to_owned()].into_iter().chain(own).collect();
    let name = format!("pxg_user_{library}_{}", metric.name);
    (kind_of(&metric.value), name, labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_seconds_as_prometheus_writes_them() {
        assert_eq!(seconds(250), "0.00000025");
        assert_eq!(seconds(100_000_000), "0.1");
        assert_eq!(seconds(10_000_000_000), "10");
    }

    #[test]
    fn timed_calls_stand_for_all_and_the_last_bucket_is_exact() {
        let counts = PhaseStats::default();
        counts.calls.add(20);
        let time = Times::of(&counts);
        assert_eq!((time.calls, time.ns), (20, 0), "none was timed");
        assert_eq!(time.buckets.last(), Some(&("+Inf".to_owned(), 20)));
        // Three calls were timed, each for thirteen.
        counts.time[0].add(26);
        counts.time[3].add(13);
        counts.time_ns.add(13 * 2_000);
        let time = Times::of(&counts);
        let calls: Vec<u64> = time.buckets.iter().map(|(_, calls)| *calls).collect();
        assert_eq!(calls[..4], [13, 13, 13, 20]);
        assert_eq!(calls[4..], [20; 7]);
        assert_eq!(time.ns, 26_000 * 20 / 39);
    }

    #[test]
    fn a_guests_metric_has_its_librarys_name() {
        let metric = MetricSnapshot {
            library: 1,
            guest: "my-guest 2".to_owned(),
            name: "hits".to_owned(),
            labels: vec![
                ("guest".to_owned(), "forged".to_owned()),
                ("kind".to_owned(), "a".to_owned()),
            ],
            value: MetricValue::Counter(1),
        };
        let (kind, name, labels) = shape_of(&metric);
        assert_eq!((kind, name.as_str()), (Counter, "pxg_user_my_guest_2_hits"));
        assert_eq!(labels, ["guest", "kind"]);
    }
}
