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

    /// Adds `n`, where no other thread adds at the same time: without locking the memory bus.
    #[inline]
    fn add_alone(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
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

/// Workers that count events each in a lane of its own; the others share the last one.
const LANES: usize = 8;

/// What workers count per event: one writer, so that counting costs an addition.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane([PhaseStats; PHASES.len()]);

/// What is counted for one filter.
#[derive(Debug, Default)]
pub struct FilterStats {
    lanes: [Lane; LANES],
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

    /// The counters of a phase as they are now; those of LOG for a phase that is not counted.
    #[must_use]
    pub fn phase(&self, phase: Phase) -> PhaseStats {
        let sum = PhaseStats::default();
        for lane in &self.lanes {
            sum.add(&lane.0[index(phase)]);
        }
        sum
    }

    /// Where a worker counts what happens in a phase.
    #[inline]
    pub(crate) fn count(&self, worker: u32, phase: Phase) -> PhaseCount<'_> {
        let own = worker as usize;
        PhaseCount {
            alone: own < LANES - 1,
            stats: &self.lanes[own.min(LANES - 1)].0[index(phase)],
        }
    }
}

#[inline]
fn index(phase: Phase) -> usize {
    let index = phase.0.wrapping_sub(1) as usize;
    if index < PHASES.len() { index } else { 6 }
}

/// The counters of a phase in one worker's lane.
#[derive(Clone, Copy)]
pub(crate) struct PhaseCount<'s> {
    stats: &'s PhaseStats,
    alone: bool,
}

impl PhaseCount<'_> {
    #[inline]
    fn add(self, counter: &Counter, n: u64) {
        if self.alone {
            counter.add_alone(n);
        } else {
            counter.add(n);
        }
    }

    #[inline]
    pub(crate) fn call(self) {
        self.add(&self.stats.calls, 1);
    }

    pub(crate) fn error(self) {
        self.add(&self.stats.errors, 1);
    }

    pub(crate) fn panic(self) {
        self.add(&self.stats.panics, 1);
    }

    pub(crate) fn pending(self) {
        self.add(&self.stats.pending, 1);
    }

    /// The time of one call, which stands for `calls`.
    #[inline]
    pub(crate) fn time(self, ns: u64, calls: u32) {
        let calls = u64::from(calls);
        self.add(&self.stats.time_ns, ns.saturating_mul(calls));
        let bucket = TIME_BUCKETS_NS.partition_point(|bound| *bound < ns);
        self.add(&self.stats.time[bucket], calls);
    }
}

impl PhaseStats {
    fn add(&self, other: &Self) {
        let pairs = [
            (&self.calls, &other.calls),
            (&self.errors, &other.errors),
            (&self.panics, &other.panics),
            (&self.pending, &other.pending),
            (&self.time_ns, &other.time_ns),
        ];
        for (to, from) in pairs.into_iter().chain(self.time.iter().zip(&other.time)) {
            to.add_alone(from.get());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_beyond_the_lanes_lose_no_count() {
        let stats = FilterStats::default();
        std::thread::scope(|scope| {
            for worker in 0..12 {
                let stats = &stats;
                scope.spawn(move || {
                    for ns in 0..1000 {
                        let count = stats.count(worker, Phase::REQUEST_BODY);
                        count.call();
                        count.time(ns, 1);
                    }
                });
            }
        });
        let sum = stats.phase(Phase::REQUEST_BODY);
        assert_eq!(sum.calls.get(), 12_000);
        assert_eq!(sum.time.iter().map(Counter::get).sum::<u64>(), 12_000);
        assert_eq!(sum.time[0].get(), 12 * 251, "0 to 250 ns");
        assert_eq!(sum.time_ns.get(), 12 * 499_500);
        assert_eq!(stats.phase(Phase::LOG).calls.get(), 0);
    }
}
