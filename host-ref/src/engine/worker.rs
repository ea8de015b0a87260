//! What one loop thread keeps for all of its streams.

use std::sync::Arc;

use proxy_golang_abi::Phase;
use proxy_golang_abi::feature::Feature;

use super::guest::{Filter, Guest};
use super::hub::{Hub, Mail};
use super::table::{FreeList, Settled, State};

/// One loop thread. Not for other threads.
pub struct Worker {
    pub(crate) hub: Arc<Hub>,
    id: u32,
    clock: fn() -> u64,
    /// The time of each such call is measured; 0: of none.
    timing: u32,
    /// Calls until the next one of these.
    untimed: u32,
    free: FreeList,
    /// Libraries with a PENDING since the last end of a batch: one or two in practice.
    batch: Vec<Arc<dyn Guest>>,
    /// Places that pend, by their filter's configuration: what the cap counts. Few, so that looking is faster than hashing.
    pending: Vec<(usize, u32)>,
    /// Room for what a guest returned, kept between calls.
    pub(crate) room: Vec<u8>,
    pub(crate) attrs: Vec<u8>,
}

impl Worker {
    /// Worker `id`. `clock` is monotonic, in nanoseconds; the engine has no other time.
    #[must_use]
    pub fn new(hub: Arc<Hub>, id: u32, clock: fn() -> u64) -> Self {
        Self {
            hub,
            id,
            clock,
            timing: 1,
            untimed: 0,
            free: FreeList::default(),
            batch: Vec::new(),
            pending: Vec::new(),
            room: Vec::new(),
            attrs: Vec::new(),
        }
    }

    /// Its index.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether the time inside guests is measured: two looks at the clock for each call.
    pub fn set_timing(&mut self, on: bool) {
        self.set_timing_every(u32::from(on));
    }

    /// Measures the time inside guests at every `n`th call only, and counts it `n` times; 0 is never. A prime number
    /// meets all filters and phases of a chain in turn.
    pub fn set_timing_every(&mut self, n: u32) {
        self.timing = n;
        self.untimed = 0;
    }

    /// Whether something waits for [`Worker::take_mail`]: a look that costs less than taking nothing.
    #[must_use]
    pub fn has_mail(&self) -> bool {
        self.hub.has_mail(self.id)
    }

    /// Takes what guests sent to streams of this worker. To be called until `None` after each notification.
    pub fn take_mail(&mut self) -> Option<Mail> {
        self.hub.take(self.id)
    }

    /// Whether some guest pended since the last [`Worker::end_batch`].
    #[must_use]
    pub fn batch_is_open(&self) -> bool {
        !self.batch.is_empty()
    }

    /// Ends a loop iteration: `on_batch_end` for each library that pended in it (PXG-THR-004).
    pub fn end_batch(&mut self) {
        for guest in self.batch.drain(..) {
            guest.batch_end(self.id);
        }
    }

    pub(crate) fn now(&self) -> u64 {
        (self.clock)()
    }

    /// Whether this call's time is measured, and how many calls it stands for then.
    #[inline]
    pub(crate) fn times_call(&mut self) -> Option<u32> {
        if self.untimed > 0 {
            self.untimed -= 1;
            return None;
        }
        self.untimed = self.timing.checked_sub(1)?;
        Some(self.timing)
    }

    pub(crate) fn issue(
        &mut self,
        library: u32,
        stream: u64,
        state: State,
        phase: Phase,
    ) -> Option<u64> {
        let table = &self.hub.table;
        table.issue(&mut self.free, self.id, library, stream, state, phase)
    }

    pub(crate) fn retire(&mut self, value: u64) -> State {
        self.hub.table.retire(&mut self.free, value)
    }

    pub(crate) fn refuse_wakes(&mut self, handle: u64) {
        self.hub.table.refuse_wakes(handle);
    }

    pub(crate) fn is_done(&self, token: u64) -> bool {
        self.hub.table.is_done(token)
    }

    pub(crate) fn pend(&mut self, token: u64, filter: &Arc<Filter>) -> Settled {
        if filter.has(Feature::BATCH_END)
            && !self
                .batch
                .iter()
                .any(|g| g.library() == filter.guest.library())
        {
            self.batch.push(Arc::clone(&filter.guest));
        }
        self.hub.table.pend(token)
    }

    /// Whether one more place of this configuration may pend.
    pub(crate) fn has_room(&self, filter: &Arc<Filter>) -> bool {
        let mut counts = self.pending.iter();
        counts
            .find(|(of, _)| *of == key(filter))
            .is_none_or(|(_, n)| *n < filter.policy.max_pending)
    }

    pub(crate) fn count_pending(&mut self, filter: &Arc<Filter>) {
        filter.stats.pending_now.inc();
        match self.pending.iter_mut().find(|(of, _)| *of == key(filter)) {
            Some((_, n)) => *n += 1,
            None => self.pending.push((key(filter), 1)),
        }
    }

    pub(crate) fn uncount_pending(&mut self, filter: &Arc<Filter>) {
        filter.stats.pending_now.dec();
        if let Some(at) = self.pending.iter().position(|(of, _)| *of == key(filter)) {
            self.pending[at].1 -= 1;
            if self.pending[at].1 == 0 {
                // Another configuration may get this one's address.
                self.pending.swap_remove(at);
            }
        }
    }
}

fn key(filter: &Arc<Filter>) -> usize {
    Arc::as_ptr(filter).addr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::HubLimits;

    #[test]
    fn every_so_many_calls_are_timed_and_stand_for_the_others() {
        let mut worker = Worker::new(Hub::new(1, HubLimits::default()), 0, || 0);
        let stands_for = |worker: &mut Worker, calls: u32| -> Vec<u32> {
            (0..calls).filter_map(|_| worker.times_call()).collect()
        };
        assert_eq!(stands_for(&mut worker, 3), [1, 1, 1]);
        worker.set_timing_every(13);
        assert_eq!(stands_for(&mut worker, 39), [13, 13, 13]);
        worker.set_timing(false);
        assert_eq!(stands_for(&mut worker, 3), [0; 0]);
    }
}
