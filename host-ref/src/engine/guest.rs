//! A filter as the engine sees it: how to call it, what it declared, and what its operator decided about it.

use std::sync::Arc;
use std::time::Duration;

use proxy_golang_abi::feature::{Feature, FeatureSet};
use proxy_golang_abi::{BodyMode, ConfigFlags, EventFlags, Phase, Status, phase_bit};

use super::fields::FieldView;
use super::outcome::{Fault, Outcome};
use super::stats::FilterStats;
pub use crate::ffi::PlainOp;
use crate::ffi::StrView;

/// One event, as it is lent to a guest for the length of a call.
#[derive(Clone, Copy)]
pub struct EventView<'a> {
    /// The phase.
    pub phase: Phase,
    /// Its flags.
    pub flags: EventFlags,
    /// The worker that makes the call.
    pub worker: u32,
    /// The guest's slot.
    pub user: u64,
    /// The handle for `apply` and `wake`.
    pub stream: u64,
    /// The token for `complete`, or 0.
    pub token: u64,
    /// WAKE's and LOG's value.
    pub arg: u64,
    /// See `pxg_event`.
    pub fields: &'a [FieldView<'a>],
    /// See `pxg_event`.
    pub trailers: &'a [FieldView<'a>],
    /// See `pxg_event`.
    pub peer_fields: &'a [FieldView<'a>],
    /// See `pxg_event`.
    pub peer_trailers: &'a [FieldView<'a>],
    /// See `pxg_event`.
    pub chunks: &'a [StrView<'a>],
    /// See `pxg_event`.
    pub body_offset: u64,
    /// See `pxg_event`.
    pub attrs: &'a [StrView<'a>],
}

/// Who takes a result.
pub trait Take {
    /// CONTINUE that says nothing but `user` and these operations. `false`, also of [`Take::pending`], if it is to be
    /// decoded all the same; then [`Take::outcome`] is called, else not.
    fn plain(&mut self, user: u64, ops: &[PlainOp<'_>]) -> bool;

    /// PENDING that says nothing but `user` and how long it may take.
    fn pending(&mut self, user: u64, pend_ns: u64) -> bool;

    /// Any other result, or why there is none.
    fn outcome(&mut self, outcome: Result<Outcome<'_>, Fault>);
}

/// One configuration of one filter of a loaded guest. The boundary implements it over a guest's table; tests over a
/// closure. No call of it re-enters the engine.
pub trait Guest: Send + Sync {
    /// `on_event`: calls the guest, then `take` exactly once with what it decided, before anything that the guest
    /// lent has died.
    fn event(&self, event: &EventView<'_>, take: &mut dyn FnMut(Result<Outcome<'_>, Fault>));

    /// As [`Guest::event`], and offers a plain result as it is.
    fn event_to(&self, event: &EventView<'_>, take: &mut dyn Take) {
        self.event(event, &mut |outcome| take.outcome(outcome));
    }

    /// `on_cancel`.
    fn cancel(&self, user: u64, stream: u64, token: u64, worker: u32);

    /// `on_stream_end`.
    fn stream_end(&self, user: u64, stream: u64, worker: u32);

    /// `on_batch_end` of the library; nothing if it has none.
    fn batch_end(&self, worker: u32);

    /// Which library this is: the owner of its tokens. Equal for all filters of one library.
    fn library(&self) -> u32;

    /// Whether the library owns the metric of this id.
    fn has_metric(&self, _id: u32) -> bool {
        true
    }

    /// A METRIC operation; NOTFOUND for an id that the library does not own.
    fn record_metric(&self, id: u32, value: i64) -> Status;

    /// The value of `on_config_new`, alive as long as this object.
    fn config(&self) -> u64;
}

/// What a configuration declared, checked against the host's features.
#[derive(Clone, Debug, Default)]
pub struct Declared {
    /// Mask of phases.
    pub subscribe: u64,
    /// Mask of phases.
    pub pend_phases: u64,
    /// Per direction, never UNSET.
    pub body_mode: [BodyMode; 2],
    /// Per direction, in bytes, resolved against the host's default and limit.
    pub max_body: [u64; 2],
    /// Wish for the deadline in nanoseconds, 0 for the host's.
    pub pend_ns: u64,
    /// `PXG_CFG_*`.
    pub flags: ConfigFlags,
    /// The attributes in the configuration's order.
    pub attrs: Vec<AttrWant>,
    /// The fields that suffice, with the mask of phases that they are for; empty is all.
    pub projection: Vec<(Vec<u8>, u64)>,
    /// What the guest understands.
    pub known: FeatureSet,
}

/// An attribute that a configuration wants, its name resolved.
#[derive(Clone, Debug)]
pub struct AttrWant {
    /// Where it comes from.
    pub source: AttrSource,
    /// Mask of phases.
    pub phases: u64,
}

/// Where an attribute comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttrSource {
    /// The host's, by the number that it chose for the name.
    Host(u32),
    /// `metadata.<namespace>.<key>`, kept by the engine.
    Metadata {
        /// Who set it.
        namespace: Vec<u8>,
        /// What.
        key: Vec<u8>,
    },
    /// No such attribute: always ABSENT.
    Unknown,
}

/// The attributes of a stream, from its host.
pub trait Attributes {
    /// Appends the value to `out` and answers whether there is one.
    fn write(&self, attribute: u32, out: &mut Vec<u8>) -> bool;

    /// The same for metadata that no guest has set, but perhaps somebody else in the host's chain.
    fn write_metadata(&self, namespace: &[u8], key: &[u8], out: &mut Vec<u8>) -> bool {
        let _ = (namespace, key, out);
        false
    }
}

/// No attributes.
impl Attributes for () {
    fn write(&self, _: u32, _: &mut Vec<u8>) -> bool {
        false
    }
}

/// What happens to a stream when its guest fails (PXG-ERR-001, PXG-ERR-005).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailureMode {
    /// Reply 500 if a reply can still be made, else reset.
    #[default]
    Closed,
    /// Pass the unmodified view and go on without the guest, if nothing that it changed has left.
    Open,
}

/// What the operator decided for one filter.
#[derive(Clone, Debug)]
pub struct Policy {
    /// What a failure does.
    pub failure_mode: FailureMode,
    /// Most time for one PENDING.
    pub pend_limit: Duration,
    /// Most time of all PENDINGs and MOREs of a direction together.
    pub hold_limit: Duration,
    /// Most streams of this configuration that pend on one worker at once.
    pub max_pending: u32,
    /// Namespaces that METADATA_SET may write beside the filter's own.
    pub metadata_namespaces: Vec<String>,
    /// Clusters that ROUTE may choose; empty is none.
    pub clusters: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            failure_mode: FailureMode::Closed,
            pend_limit: Duration::from_secs(10),
            hold_limit: Duration::from_secs(30),
            max_pending: 10_000,
            metadata_namespaces: Vec::new(),
            clusters: Vec::new(),
        }
    }
}

/// A filter in a chain.
pub struct Filter {
    /// The instance's name, also its metadata namespace.
    pub name: String,
    /// How to call it.
    pub guest: Arc<dyn Guest>,
    /// What it declared.
    pub declared: Declared,
    /// What its operator decided.
    pub policy: Policy,
    /// What the host can do for this configuration.
    pub features: FeatureSet,
    /// Counters, shared with whoever reports them.
    pub stats: Arc<FilterStats>,
}

impl Filter {
    /// Whether events of this phase are delivered.
    #[must_use]
    pub fn subscribes(&self, phase: Phase) -> bool {
        self.declared.subscribe & phase_bit(phase) != 0
    }

    /// Whether this phase may answer PENDING.
    #[must_use]
    pub fn may_pend(&self, phase: Phase) -> bool {
        self.declared.pend_phases & phase_bit(phase) != 0
    }

    /// Whether the host can do it for this configuration.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        feature.is_in(&self.features)
    }

    /// Whether the configuration has the flag.
    #[must_use]
    pub fn is(&self, flag: ConfigFlags) -> bool {
        self.declared.flags.0 & flag.0 != 0
    }
}

/// The filters of a stream in their configured order: request phases run forwards, response phases backwards, LOG
/// forwards (PXG-CHN-001).
#[derive(Default)]
pub struct Chain {
    /// `None` is no filter: an empty one is made, and a stream's taken out for a moment, without touching a counter.
    filters: Option<Arc<[Arc<Filter>]>>,
}

impl Clone for Chain {
    fn clone(&self) -> Self {
        Self {
            filters: self.filters.clone(),
        }
    }

    /// Most streams of a worker go through the chain of the one before: then no counter is touched.
    #[inline]
    fn clone_from(&mut self, other: &Self) {
        let same = match (&self.filters, &other.filters) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            _ => false,
        };
        if !same {
            self.filters.clone_from(&other.filters);
        }
    }
}

impl Chain {
    /// A chain.
    #[must_use]
    pub fn new(filters: Vec<Arc<Filter>>) -> Self {
        Self {
            filters: Some(filters.into()),
        }
    }

    /// The filters.
    #[must_use]
    #[inline]
    pub fn filters(&self) -> &[Arc<Filter>] {
        self.filters.as_deref().unwrap_or(&[])
    }
}
