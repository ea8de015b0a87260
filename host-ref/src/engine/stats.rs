//! Counters per filter and phase. Written by loop threads with relaxed atomics, read by whoever reports.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use proxy_golang_abi::Phase;

use super::stream::Reason;

/// Phases that are counted, with the names they have in reports.
pub const PHASES: [(Phase, &str); 8] = [
    (Phase::REQUEST_HEADERS, "request_headers"),
    (Phase::REQUEST_BODY, "request_body"),
    (Phase::REQUEST_TRAILERS, "request_trailers"),
    (Phase::RESPONSE_HEADERS, "response_headers"),
    (Phase::RESPONSE_BODY, "response_body"),
    (Phase::RESPONSE_TRAILERS, "response_trailers"),
    (Phase::LOG, "log"),
    (Phase::WAKE, "wake"),
];

/// Upper bounds of the time histogram's buckets in nanoseconds; one more bucket has no bound.
pub const TIME_BUCKETS_NS: [u64; 10] = [
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    100_000,
    1_000_000,
    10_000_000,
    100_000_000,
];

/// A counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Takes one off; for gauges.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// The value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What is counted for one phase of one filter.
#[derive(Debug, Default)]
pub struct PhaseStats {
    /// Calls into the guest.
    pub calls: Counter,
    /// Results that were errors, of the guest's own or found by the host; panics are among them.
    pub errors: Counter,
    /// Errors whose text says that the guest panicked.
    pub panics: Counter,
    /// Results PENDING.
    pub pending: Counter,
    /// Nanoseconds inside the guest, in sum.
    pub time_ns: Counter,
    /// Calls by their time; see [`TIME_BUCKETS_NS`].
    pub time: [Counter; TIME_BUCKETS_NS.len() + 1],
}

/// What is counted for one filter.
#[derive(Debug, Default)]
pub struct FilterStats {
    phases: [PhaseStats; PHASES.len()],
    failures: [Counter; Reason::ALL.len()],
    /// `on_cancel` calls.
    pub cancels: Counter,
    /// `complete`, `apply` and `wake` on something that had ended.
    pub stale: Counter,
    /// Completions accepted and not applied, because the event answered something else or the stream had died.
    pub unused_completions: Counter,
    /// PENDINGs that ran into their deadline.
    pub deadlines: Counter,
    /// PENDINGs refused because too many streams pended.
    pub over_pending_cap: Counter,
    /// Operations skipped.
    pub skipped_ops: Counter,
    /// Replies that came too late to be made.
    pub late_replies: Counter,
    /// Streams that went on without the filter after it had failed.
    pub bypassed: Counter,
    /// Streams that pend now.
    pub pending_now: Counter,
}

impl FilterStats {
    /// Failures with this reason.
    #[must_use]
    pub fn failures(&self, reason: Reason) -> &Counter {
        &self.failures[reason as usize]
    }

    /// The counters of a phase; those of LOG for a phase that is not counted.
    #[must_use]
    pub fn phase(&self, phase: Phase) -> &PhaseStats {
        let index = phase.0.wrapping_sub(1) as usize;
        &self.phases[if index < self.phases.len() { index } else { 6 }]
    }
}

impl PhaseStats {
    /// Records the time of one call.
    pub fn record_time(&self, ns: u64) {
        self.time_ns.add(ns);
        self.time[TIME_BUCKETS_NS.partition_point(|bound| *bound < ns)].inc();
    }
}
