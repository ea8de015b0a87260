//! Metrics for Prometheus, gathered from the host's counters when they are asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::control::Shared;
use super::guests::Counted;
use super::worker::WorkerStats;
use crate::engine::{FilterStats, PHASES, PhaseStats, Reason, TIME_BUCKETS_NS};
use crate::ffi::{MetricSnapshot, MetricValue};

/// Everything as text.
pub(super) fn render(shared: &Arc<Shared>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(HostMetrics(Arc::clone(shared))));
    let mut text = String::new();
    // Writing to memory fails only if a value cannot be written, and numbers can.
    if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &registry) {
        tracing::error!(%error, "cannot write the metrics");
    }
    text
}

struct HostMetrics(Arc<Shared>);

impl fmt::Debug for HostMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostMetrics")
    }
}

type Labels<'a> = Vec<(&'a str, String)>;

/// A family of counters or gauges.
fn family<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    kind: MetricType,
    series: impl IntoIterator<Item = (Labels<'a>, u64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in series {
        if labels.is_empty() {
            number(metric, kind, value)?;
            break;
        }
        number(metric.encode_family(&labels)?, kind, value)?;
    }
    Ok(())
}

fn number(mut metric: MetricEncoder<'_>, kind: MetricType, value: u64) -> fmt::Result {
    match kind {
        MetricType::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&value, None),
        _ => metric.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)),
    }
}

fn seconds(ns: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)] // a time in a report
    let ns = ns as f64;
    ns / 1e9
}

/// What each worker counts for itself.
type PerWorker = fn(&WorkerStats) -> &AtomicU64;
const PER_WORKER: [(&str, &str, MetricType, PerWorker); 8] = {
    use MetricType::{Counter, Gauge};
    [
        ("pxg_connections", "Client connections", Counter, |w| {
            &w.connections
        }),
        (
            "pxg_connections_active",
            "Client connections now",
            Gauge,
            |w| &w.connections_now,
        ),
        ("pxg_requests", "Requests that have ended", Counter, |w| {
            &w.requests
        }),
        ("pxg_requests_active", "Requests now", Gauge, |w| {
            &w.requests_now
        }),
        (
            "pxg_request_body_bytes",
            "Body bytes from clients",
            Counter,
            |w| &w.request_bytes,
        ),
        (
            "pxg_response_body_bytes",
            "Body bytes to clients",
            Counter,
            |w| &w.response_bytes,
        ),
        (
            "pxg_request_time_ns",
            "Time of requests in sum",
            Counter,
            |w| &w.duration_ns,
        ),
        (
            "pxg_upstream_idle_connections",
            "Connections kept for later",
            Gauge,
            |w| &w.upstream_idle,
        ),
    ]
};

impl Collector for HostMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let shared = &self.0;
        let runtime = shared.runtime();
        let one = |value: u64| [(Labels::new(), value)];
        use MetricType::{Counter, Gauge};
        let e = &mut encoder;
        family(
            e,
            "pxg_config_generation",
            "Number of the configuration in force",
            Gauge,
            one(runtime.generation),
        )?;
        family(
            e,
            "pxg_reloads",
            "Reloads by result",
            Counter,
            shared
                .reload_counts()
                .map(|(result, n)| (vec![("result", result.to_owned())], n)),
        )?;
        family(
            e,
            "pxg_draining",
            "Whether the host drains",
            Gauge,
            one(u64::from(shared.is_draining())),
        )?;
        for (name, help, kind, field) in PER_WORKER {
            let values = shared.workers.iter().map(|w| field(w).load(Relaxed));
            family(e, name, help, kind, one(values.fold(0, u64::wrapping_add)))?;
        }
        let mut routes = BTreeMap::new();
        for route in runtime.routes() {
            routes.entry(route.name.to_string()).or_insert(&route.stats);
        }
        const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
        let responses = routes.iter().flat_map(|(name, stats)| {
            CLASSES.iter().enumerate().map(move |(class, word)| {
                (
                    vec![("route", name.clone()), ("class", (*word).to_owned())],
                    stats.get(class),
                )
            })
        });
        family(
            e,
            "pxg_route_responses",
            "Responses by route and class of status",
            Counter,
            responses,
        )?;
        for (name, help, field) in [
            (
                "pxg_upstream_requests",
                "Requests sent to an endpoint, attempts included",
                0,
            ),
            (
                "pxg_upstream_connects",
                "Connections made to an endpoint",
                1,
            ),
            ("pxg_upstream_failures", "Attempts that failed", 2),
        ] {
            let series = runtime.clusters.iter().flat_map(|cluster| {
                cluster.endpoints.iter().map(move |endpoint| {
                    let counters = [&endpoint.requests, &endpoint.connects, &endpoint.failures];
                    let labels = vec![
                        ("cluster", cluster.name.clone()),
                        ("endpoint", endpoint.address.to_string()),
                    ];
                    (labels, counters[field].load(Relaxed))
                })
            });
            family(e, name, help, Counter, series)?;
        }
        let filters = shared.filter_stats();
        filter_metrics(e, &filters)?;
        guest_metrics(e, &shared.guest_metrics())
    }
}

/// The counters of spec 15.4, and what this host counts besides.
fn filter_metrics(e: &mut DescriptorEncoder<'_>, filters: &[(String, Counted)]) -> fmt::Result {
    use MetricType::{Counter, Gauge};
    type Read = fn(&FilterStats) -> u64;
    let per_filter: [(&str, &str, MetricType, Read); 9] = [
        ("pxg_guest_pending", "Decisions pending now", Gauge, |s| {
            s.pending_now.get()
        }),
        (
            "pxg_guest_stale_completions",
            "Calls of the guest for what had ended, and completions that were not applied",
            Counter,
            |s| s.stale.get() + s.unused_completions.get(),
        ),
        (
            "pxg_guest_cancels",
            "Pending decisions that were cancelled",
            Counter,
            |s| s.cancels.get(),
        ),
        (
            "pxg_guest_operations_skipped",
            "Operations skipped",
            Counter,
            |s| s.skipped_ops.get(),
        ),
        (
            "pxg_guest_late_replies",
            "Replies that came too late",
            Counter,
            |s| s.late_replies.get(),
        ),
        (
            "pxg_guest_bypassed",
            "Requests that went on without the filter",
            Counter,
            |s| s.bypassed.get(),
        ),
        (
            "pxg_filter_unused_completions",
            "Completions accepted and not applied",
            Counter,
            |s| s.unused_completions.get(),
        ),
        (
            "pxg_filter_deadlines",
            "Decisions that ran into their deadline",
            Counter,
            |s| s.deadlines.get(),
        ),
        (
            "pxg_filter_over_pending_cap",
            "Decisions refused because too many were pending",
            Counter,
            |s| s.over_pending_cap.get(),
        ),
    ];
    for (name, help, kind, read) in per_filter {
        let series = filters
            .iter()
            .map(|(config, counted)| (labels_of(config, counted), read(&counted.stats)));
        family(e, name, help, kind, series)?;
    }
    let failures = filters.iter().flat_map(|(config, counted)| {
        Reason::ALL.iter().map(move |reason| {
            let mut labels = labels_of(config, counted);
            labels.push(("reason", reason.name().to_owned()));
            (labels, counted.stats.failures(*reason).get())
        })
    });
    family(
        e,
        "pxg_guest_failures",
        "Failures of the guest by reason",
        Counter,
        failures,
    )?;
    type ReadPhase = fn(&PhaseStats) -> u64;
    let per_phase: [(&str, &str, MetricType, ReadPhase); 4] = [
        ("pxg_guest_calls", "Calls into the guest", Counter, |p| {
            p.calls.get()
        }),
        (
            "pxg_guest_errors",
            "Failures of the guest, panics included",
            Counter,
            |p| p.errors.get(),
        ),
        ("pxg_guest_panics", "Panics of the guest", Counter, |p| {
            p.panics.get()
        }),
        // OpenMetrics has one family of a name, and the gauge has it.
        (
            "pxg_guest_pending_total",
            "Decisions left pending",
            MetricType::Unknown,
            |p| p.pending.get(),
        ),
    ];
    for (name, help, kind, read) in per_phase {
        let series = filters.iter().flat_map(|(config, counted)| {
            PHASES.iter().map(move |(phase, word)| {
                let mut labels = labels_of(config, counted);
                labels.push(("phase", (*word).to_owned()));
                (labels, read(&counted.stats.phase(*phase)))
            })
        });
        family(e, name, help, kind, series)?;
    }
    let mut time = e.encode_descriptor(
        "pxg_guest_call_seconds",
        "Time inside the guest, per call",
        None,
        MetricType::Histogram,
    )?;
    for (config, counted) in filters {
        for (phase, word) in PHASES {
            let phase = counted.stats.phase(phase);
            let bounds = TIME_BUCKETS_NS
                .iter()
                .map(|ns| seconds(*ns))
                .chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds
                .zip(phase.time.iter().map(crate::engine::Counter::get))
                .collect();
            let count = buckets.iter().map(|(_, n)| n).sum();
            if count > 0 {
                let mut labels = labels_of(config, counted);
                labels.push(("phase", word.to_owned()));
                time.encode_family(&labels)?
                    .encode_histogram::<NoLabelSet>(
                        seconds(phase.time_ns.get()),
                        count,
                        &buckets,
                        None,
                    )?;
            }
        }
    }
    Ok(())
}

/// The labels that every counter of a filter's instance has.
fn labels_of<'a>(config: &str, counted: &Counted) -> Labels<'a> {
    vec![
        ("guest", counted.guest.clone()),
        ("filter", counted.filter.clone()),
        ("config", config.to_owned()),
    ]
}

/// The name of a guest's metric in exports (spec 15.3).
fn user_name(metric: &MetricSnapshot) -> String {
    let library: String = metric
        .guest
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    format!("pxg_user_{library}_{}", metric.name)
}

/// What guests defined, under `pxg_user_<library>_`, with the guest as a label.
fn guest_metrics(e: &mut DescriptorEncoder<'_>, metrics: &[MetricSnapshot]) -> fmt::Result {
    let mut families: BTreeMap<(String, u8), Vec<&MetricSnapshot>> = BTreeMap::new();
    for metric in metrics {
        let kind = match metric.value {
            MetricValue::Counter(_) => 0,
            MetricValue::Gauge(_) => 1,
            MetricValue::Histogram { .. } => 2,
        };
        families
            .entry((user_name(metric), kind))
            .or_default()
            .push(metric);
    }
    let mut last = String::new();
    for ((name, kind), series) in &families {
        // Two guests may give one name to different things; a family has one type.
        let clash = *name == last;
        last.clone_from(name);
        let suffix = if clash {
            ["_counter", "_gauge", "_histogram"][usize::from(*kind)]
        } else {
            ""
        };
        let kind = [
            MetricType::Counter,
            MetricType::Gauge,
            MetricType::Histogram,
        ][usize::from(*kind)];
        let full = format!("{name}{suffix}");
        let mut family = e.encode_descriptor(&full, "Defined by a guest", None, kind)?;
        for metric in series {
            let mut labels: Labels<'_> = vec![("guest", metric.guest.clone())];
            labels.extend(
                metric
                    .labels
                    .iter()
                    .filter(|(n, _)| n != "guest")
                    .map(|(n, v)| (n.as_str(), v.clone())),
            );
            let mut encoder = family.encode_family(&labels)?;
            match &metric.value {
                MetricValue::Counter(n) => encoder.encode_counter::<NoLabelSet, _, u64>(n, None)?,
                MetricValue::Gauge(n) => encoder.encode_gauge(n)?,
                MetricValue::Histogram {
                    buckets,
                    count,
                    sum,
                } => {
                    #[allow(clippy::cast_precision_loss)] // a report
                    let (sum, mut bounds): (f64, Vec<(f64, u64)>) = (
                        *sum as f64,
                        buckets
                            .iter()
                            .map(|(bound, up_to)| (*bound as f64, *up_to))
                            .collect(),
                    );
                    bounds.push((f64::INFINITY, *count));
                    // The encoder adds up by itself.
                    for i in (1..bounds.len()).rev() {
                        bounds[i].1 -= bounds[i - 1].1.min(bounds[i].1);
                    }
                    encoder.encode_histogram::<NoLabelSet>(sum, *count, &bounds, None)?;
                }
            }
        }
    }
    Ok(())
}
