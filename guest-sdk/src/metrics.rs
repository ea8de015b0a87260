//! Metrics that a filter defines, through the host's extension `pxg.metrics/1`.

use proxy_golang_abi::ext::MetricKind;

use crate::pending::HostError;
use crate::raw::{ConfigInput, Host, MetricsTable};

/// A metric of the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metric {
    /// None in a validation, which has no side effects (PXG-CFG-004): nothing was defined.
    table: Option<MetricsTable>,
    id: u32,
}

impl Metric {
    pub(crate) fn id(self) -> u32 {
        self.id
    }

    fn record(self, value: i64) {
        // NOTFOUND can't be: the id is this table's.
        let _ = self.table.map(|table| table.record(self.id, value));
    }
}

/// Only grows. Add with an event ([`crate::Event::count`], no crossing) or from anywhere.
#[derive(Clone, Copy, Debug)]
pub struct Counter(pub(crate) Metric);

/// Goes up and down.
#[derive(Clone, Copy, Debug)]
pub struct Gauge(pub(crate) Metric);

/// Observations; the host chooses the buckets.
#[derive(Clone, Copy, Debug)]
pub struct Histogram(pub(crate) Metric);

impl Counter {
    /// Adds, from any thread: one crossing.
    pub fn add(&self, by: u64) {
        self.0.record(i64::try_from(by).unwrap_or(i64::MAX));
    }
}

impl Gauge {
    /// Sets, from any thread: one crossing.
    pub fn set(&self, value: i64) {
        self.0.record(value);
    }
}

impl Histogram {
    /// Observes, from any thread: one crossing.
    pub fn observe(&self, value: i64) {
        self.0.record(value);
    }
}

impl ConfigInput<'_> {
    fn define(
        &self,
        kind: MetricKind,
        name: &str,
        labels: &[(&str, &str)],
    ) -> Result<Metric, HostError> {
        if self.validate_only() {
            return Ok(Metric { table: None, id: 0 });
        }
        self.host().define(kind, name, labels)
    }

    /// [`Host::counter`], but in a validation nothing is defined: that has no side effects.
    ///
    /// # Errors
    /// As there.
    pub fn counter(&self, name: &str, labels: &[(&str, &str)]) -> Result<Counter, HostError> {
        self.define(MetricKind::COUNTER, name, labels).map(Counter)
    }

    /// [`Host::gauge`], as [`ConfigInput::counter`].
    ///
    /// # Errors
    /// As there.
    pub fn gauge(&self, name: &str, labels: &[(&str, &str)]) -> Result<Gauge, HostError> {
        self.define(MetricKind::GAUGE, name, labels).map(Gauge)
    }

    /// [`Host::histogram`], as [`ConfigInput::counter`].
    ///
    /// # Errors
    /// As there.
    pub fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Result<Histogram, HostError> {
        self.define(MetricKind::HISTOGRAM, name, labels)
            .map(Histogram)
    }
}

/// Defining metrics; the host answers the same one for the same name, kind and labels.
impl Host {
    fn define(
        self,
        kind: MetricKind,
        name: &str,
        labels: &[(&str, &str)],
    ) -> Result<Metric, HostError> {
        let table = self.metrics_table().ok_or(HostError::Unsupported)?;
        let id = table.define(kind, name, labels).map_err(HostError::of)?;
        Ok(Metric {
            table: Some(table),
            id,
        })
    }

    /// Defines a counter. Names and labels: `[a-zA-Z_][a-zA-Z0-9_]*`.
    ///
    /// # Errors
    /// [`HostError::Unsupported`] if the host has no metrics; refused for a bad name or another kind under this name.
    pub fn counter(self, name: &str, labels: &[(&str, &str)]) -> Result<Counter, HostError> {
        self.define(MetricKind::COUNTER, name, labels).map(Counter)
    }

    /// Defines a gauge, as [`Host::counter`].
    ///
    /// # Errors
    /// As there.
    pub fn gauge(self, name: &str, labels: &[(&str, &str)]) -> Result<Gauge, HostError> {
        self.define(MetricKind::GAUGE, name, labels).map(Gauge)
    }

    /// Defines a histogram, as [`Host::counter`].
    ///
    /// # Errors
    /// As there.
    pub fn histogram(self, name: &str, labels: &[(&str, &str)]) -> Result<Histogram, HostError> {
        self.define(MetricKind::HISTOGRAM, name, labels)
            .map(Histogram)
    }
}
