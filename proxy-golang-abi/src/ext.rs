//! Extensions, found by name through `get_ext`. One C header each, under `include/proxy_golang/ext/`.

use crate::{Field, Status, Str};

/// The id of [`MetricsV1`].
pub const METRICS_V1_ID: &str = "pxg.metrics/1";

/// Kinds of metrics.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MetricKind(pub u32);
impl MetricKind {
    /// Only grows; a record adds to it.
    pub const COUNTER: Self = Self(1);
    /// A record sets it.
    pub const GAUGE: Self = Self(2);
    /// A record is an observation; the host chooses the buckets.
    pub const HISTOGRAM: Self = Self(3);
}

/// Host extension `pxg.metrics/1`: metrics that a guest defines and updates. The ids that `define` answers also serve
/// the METRIC operation.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MetricsV1 {
    /// Size of the struct as the host knows it, in bytes.
    pub size: u32,
    /// Zero.
    pub reserved0: u32,
    /// \[any-thread\] Defines a metric, or answers the id of the one with this name, kind and labels. Copies its
    /// arguments. ARG: not a metric or label name (`[a-zA-Z_][a-zA-Z0-9_]*`), or defined with another kind. LIMIT: too
    /// many.
    pub define: Option<
        unsafe extern "C" fn(
            ctx: u64,
            kind: MetricKind,
            name: *const Str,
            labels: *const Field,
            n_labels: u64,
            id: *mut u32,
        ) -> Status,
    >,
    /// \[any-thread\] Records a value outside a stream. NOTFOUND for an unknown or foreign id.
    pub record: Option<unsafe extern "C" fn(ctx: u64, id: u32, value: i64) -> Status>,
}
