//! Metrics that guests define: `pxg.metrics/1` and the METRIC operation (PXG-OBS-003).
//!
//! Defining takes a lock, recording does not. A series belongs to the library that defined it; ids are unique in the
//! host, so that a foreign one is found out.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};

use proxy_golang_abi::Status;
use proxy_golang_abi::ext::MetricKind;

/// Upper bounds of a histogram's buckets, in the unit of its observations; one more bucket has no bound.
const BOUNDS: [i64; 21] = {
    let mut bounds = [0; 21];
    let mut decade = 1;
    let mut i = 0;
    while i < bounds.len() {
        bounds[i] = if i % 2 == 0 { decade } else { 3 * decade };
        if i % 2 == 1 {
            decade *= 10;
        }
        i += 1;
    }
    bounds
};

/// Limits of the metrics of guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricLimits {
    /// Series of all libraries of a host.
    pub series: u32,
    /// Series of one library.
    pub series_per_library: u32,
    /// Labels of a series.
    pub labels: u32,
    /// Bytes of a name or of a label's value.
    pub text: u32,
}

impl Default for MetricLimits {
    fn default() -> Self {
        Self {
            series: 8192,
            series_per_library: 2048,
            labels: 16,
            text: 256,
        }
    }
}

/// One series, as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricSnapshot {
    /// Which library it belongs to: [`Library::id`](crate::loader::Library::id).
    pub library: u32,
    /// The library's name.
    pub guest: String,
    /// The series' name: `[a-zA-Z_][a-zA-Z0-9_]*`.
    pub name: String,
    /// Names and values, sorted by name. A value is any text.
    pub labels: Vec<(String, String)>,
    /// The value.
    pub value: MetricValue,
}

/// The value of a series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricValue {
    /// Sum of what was recorded.
    Counter(u64),
    /// What was recorded last.
    Gauge(i64),
    /// Observations.
    Histogram {
        /// Upper bounds, inclusive, with the number of observations up to each.
        buckets: Vec<(i64, u64)>,
        /// Number of all observations.
        count: u64,
        /// Their sum.
        sum: i64,
    },
}

/// The registry of one host.
pub(super) struct Metrics {
    limits: MetricLimits,
    /// Series by id - 1.
    series: Box<[OnceLock<Series>]>,
    index: Mutex<Index>,
}

/// Names and values, sorted by name.
type Labels = Vec<(String, String)>;

#[derive(Default)]
struct Index {
    ids: HashMap<(u32, String, Labels), u32>,
    shapes: HashMap<(u32, String), (MetricKind, Vec<String>)>,
    per_library: HashMap<u32, u32>,
}

struct Series {
    library: u32,
    name: String,
    labels: Labels,
    cell: Cell,
}

enum Cell {
    Counter(AtomicU64),
    Gauge(AtomicI64),
    Histogram(Box<Histogram>),
}

#[derive(Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicI64,
}

impl Metrics {
    pub(super) fn new(limits: MetricLimits) -> Self {
        Self {
            limits,
            series: (0..limits.series).map(|_| OnceLock::new()).collect(),
            index: Mutex::default(),
        }
    }

    pub(super) fn limits(&self) -> &MetricLimits {
        &self.limits
    }

    /// Makes a series, or finds it.
    pub(super) fn define(
        &self,
        library: u32,
        kind: MetricKind,
        name: String,
        mut labels: Vec<(String, String)>,
    ) -> Result<u32, Status> {
        let cell = match kind {
            MetricKind::COUNTER => Cell::Counter(AtomicU64::default()),
            MetricKind::GAUGE => Cell::Gauge(AtomicI64::default()),
            MetricKind::HISTOGRAM => Cell::Histogram(Box::default()),
            _ => return Err(Status::UNSUPPORTED),
        };
        labels.sort();
        let twice = labels.windows(2).any(|pair| pair[0].0 == pair[1].0);
        if !is_name(&name) || twice || !labels.iter().all(|(name, _)| is_name(name)) {
            return Err(Status::ARG);
        }
        let long = |text: &String| text.len() > self.limits.text as usize;
        if labels.len() > self.limits.labels as usize
            || long(&name)
            || labels.iter().any(|(name, value)| long(name) || long(value))
        {
            return Err(Status::LIMIT);
        }
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let shape = (kind, labels.iter().map(|(name, _)| name.clone()).collect());
        let known = index.shapes.get(&(library, name.clone()));
        if known.is_some_and(|known| *known != shape) {
            return Err(Status::ARG);
        }
        let key = (library, name.clone(), labels.clone());
        if let Some(id) = index.ids.get(&key) {
            return Ok(*id);
        }
        let used = u32::try_from(index.ids.len()).unwrap_or(u32::MAX);
        let own = index.per_library.get(&library).copied().unwrap_or(0);
        if used >= self.limits.series || own >= self.limits.series_per_library {
            return Err(Status::LIMIT);
        }
        let series = Series {
            library,
            name: name.clone(),
            labels,
            cell,
        };
        if self.series[used as usize].set(series).is_err() {
            return Err(Status::INTERNAL);
        }
        index.shapes.insert((library, name), shape);
        index.per_library.insert(library, own + 1);
        index.ids.insert(key, used + 1);
        Ok(used + 1)
    }

    /// The series of this id, if it is the library's own.
    fn own(&self, library: u32, id: u32) -> Option<&Series> {
        self.series
            .get(id.wrapping_sub(1) as usize)
            .and_then(OnceLock::get)
            .filter(|s| s.library == library)
    }

    pub(super) fn owns(&self, library: u32, id: u32) -> bool {
        self.own(library, id).is_some()
    }

    /// Records a value.
    pub(super) fn record(&self, library: u32, id: u32, value: i64) -> Status {
        let Some(series) = self.own(library, id) else {
            return Status::NOTFOUND;
        };
        match &series.cell {
            Cell::Counter(sum) => match u64::try_from(value) {
                Ok(value) => {
                    sum.fetch_add(value, Relaxed);
                }
                Err(_) => return Status::ARG,
            },
            Cell::Gauge(last) => last.store(value, Relaxed),
            Cell::Histogram(histogram) => {
                let bucket = BOUNDS.partition_point(|bound| *bound < value);
                histogram.buckets[bucket].fetch_add(1, Relaxed);
                histogram.sum.fetch_add(value, Relaxed);
            }
        }
        Status::OK
    }

    pub(super) fn snapshot(&self, guest: impl Fn(u32) -> String) -> Vec<MetricSnapshot> {
        let value = |cell: &Cell| match cell {
            Cell::Counter(sum) => MetricValue::Counter(sum.load(Relaxed)),
            Cell::Gauge(last) => MetricValue::Gauge(last.load(Relaxed)),
            Cell::Histogram(histogram) => {
                let mut count = 0;
                let mut buckets = Vec::with_capacity(BOUNDS.len());
                for (i, bucket) in histogram.buckets.iter().enumerate() {
                    count += bucket.load(Relaxed);
                    buckets.extend(BOUNDS.get(i).map(|bound| (*bound, count)));
                }
                MetricValue::Histogram {
                    buckets,
                    count,
                    sum: histogram.sum.load(Relaxed),
                }
            }
        };
        // Filled from the front.
        let defined = self.series.iter().map_while(OnceLock::get);
        defined
            .map(|s| MetricSnapshot {
                library: s.library,
                guest: guest(s.library),
                name: s.name.clone(),
                labels: s.labels.clone(),
                value: value(&s.cell),
            })
            .collect()
    }
}

/// `[a-zA-Z_][a-zA-Z0-9_]*`
fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn a_series_is_its_name_and_label_values() {
        let metrics = Metrics::new(MetricLimits::default());
        let define = |library, kind, name: &str, l| {
            metrics.define(library, kind, name.to_owned(), labels(l))
        };
        let a = define(1, MetricKind::COUNTER, "a", &[("x", "1"), ("y", "2")]);
        assert_eq!(
            a,
            define(1, MetricKind::COUNTER, "a", &[("y", "2"), ("x", "1")])
        );
        assert_ne!(
            a,
            define(1, MetricKind::COUNTER, "a", &[("x", "1"), ("y", "3")])
        );
        assert_ne!(
            a,
            define(2, MetricKind::COUNTER, "a", &[("x", "1"), ("y", "2")])
        );
        assert_eq!(
            Err(Status::ARG),
            define(1, MetricKind::GAUGE, "a", &[("x", "1"), ("y", "2")])
        );
        assert_eq!(
            Err(Status::ARG),
            define(1, MetricKind::COUNTER, "a", &[("x", "1")])
        );
        assert_eq!(
            Err(Status::ARG),
            define(1, MetricKind::COUNTER, "b", &[("x", "1"), ("x", "2")])
        );
        assert_eq!(Err(Status::ARG), define(1, MetricKind::COUNTER, "9b", &[]));
        assert_eq!(Err(Status::ARG), define(1, MetricKind::COUNTER, "", &[]));
        assert_eq!(
            Err(Status::ARG),
            define(1, MetricKind::COUNTER, "b", &[("a-b", "")])
        );
        assert_eq!(Err(Status::UNSUPPORTED), define(1, MetricKind(9), "b", &[]));
    }

    #[test]
    fn limits_are_per_library_and_for_all() {
        let limits = MetricLimits {
            series: 3,
            series_per_library: 2,
            labels: 1,
            text: 4,
        };
        let metrics = Metrics::new(limits);
        let define = |library, name: &str, l| {
            metrics.define(library, MetricKind::GAUGE, name.to_owned(), labels(l))
        };
        assert_eq!(Ok(1), define(1, "a", &[]));
        assert_eq!(Ok(2), define(1, "b", &[]));
        assert_eq!(Err(Status::LIMIT), define(1, "c", &[]));
        assert_eq!(Ok(1), define(1, "a", &[]), "one that exists is no new one");
        assert_eq!(Ok(3), define(2, "c", &[]));
        assert_eq!(Err(Status::LIMIT), define(3, "d", &[]));
        assert_eq!(Err(Status::LIMIT), define(2, "abcde", &[]));
        assert_eq!(Err(Status::LIMIT), define(2, "e", &[("l", "abcde")]));
        assert_eq!(Err(Status::LIMIT), define(2, "e", &[("l", ""), ("m", "")]));
    }

    #[test]
    fn values_add_up_by_kind_and_foreign_ids_do_not_exist() {
        let metrics = Metrics::new(MetricLimits::default());
        let id = |kind, name: &str| {
            metrics
                .define(1, kind, name.to_owned(), Vec::new())
                .unwrap()
        };
        let (c, g, h) = (
            id(MetricKind::COUNTER, "c"),
            id(MetricKind::GAUGE, "g"),
            id(MetricKind::HISTOGRAM, "h"),
        );
        assert_eq!(Status::OK, metrics.record(1, c, 2));
        assert_eq!(Status::OK, metrics.record(1, c, 3));
        assert_eq!(Status::ARG, metrics.record(1, c, -1));
        assert_eq!(Status::OK, metrics.record(1, g, -7));
        for value in [1, 2, 300, i64::MAX] {
            assert_eq!(Status::OK, metrics.record(1, h, value.min(i64::MAX - 303)));
        }
        for (library, id) in [(2, c), (1, 0), (1, h + 1), (1, u32::MAX)] {
            assert_eq!(Status::NOTFOUND, metrics.record(library, id, 1));
        }
        let snapshot = metrics.snapshot(|l| format!("lib{l}"));
        assert_eq!(snapshot[0].value, MetricValue::Counter(5));
        assert_eq!(snapshot[0].guest, "lib1");
        assert_eq!(snapshot[1].value, MetricValue::Gauge(-7));
        let MetricValue::Histogram { buckets, count, .. } = &snapshot[2].value else {
            panic!()
        };
        assert_eq!(*count, 4);
        assert_eq!(
            buckets[..6],
            [(1, 1), (3, 2), (10, 2), (30, 2), (100, 2), (300, 3)]
        );
        assert_eq!(buckets.last(), Some(&(10_000_000_000, 3)));
    }
}
