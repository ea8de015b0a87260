//! How any thread gets a worker to look at its mail.
//!
//! Envoy offers one way onto a worker's thread: a scheduler, which belongs to one stream and does nothing once that stream
//! is gone. So a worker keeps the schedulers of all streams that guests may still answer, its *carriers*, and one commit on
//! any of them does for the whole worker: it drains the mail of all streams. One commit for each edge from empty to
//! non-empty would be lost for ever with the stream that carried it; here the carrier of a commit that has not been served
//! is known, and when that stream ends first, another carrier is committed in its stead. If there is none, nobody is left
//! who waits, and the next carrier that comes finds the ring owed.
//!
//! Commits are made under the lock, and a stream gives its scheduler up under the same lock before Envoy destroys it. So no
//! commit meets a stream, or a worker's dispatcher, that is going down.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proxy_golang_host::engine::Counter;

/// What can be committed; a trait so that tests can lose a stream.
pub(crate) trait Commit: Send + Sync {
    /// Runs the stream's scheduled hook on its own thread, if it still lives then.
    fn commit(&self);
}

impl Commit for crate::sys::Scheduler {
    fn commit(&self) {
        Self::commit(self);
    }
}

/// No deadline.
pub(crate) const NEVER: u64 = u64::MAX;

/// What wakes a worker, and what it did then: completions by wake-up are what batching is worth.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// Commits of Envoy's schedulers.
    pub(crate) wakes: Counter,
    pub(crate) turns: Counter,
    /// What guests sent from outside of a call and streams have taken, in a turn or in a hook of their own.
    pub(crate) completions: Counter,
    /// Turns that ended a batch.
    pub(crate) batch_ends: Counter,
}

/// One worker's bell.
pub(crate) struct Bell<S> {
    carriers: Mutex<Carriers<S>>,
    pub(crate) work: Work,
    /// The earliest deadline of the worker's streams; the housekeeper rings then.
    pub(crate) due: AtomicU64,
}

struct Carriers<S> {
    /// By the slot of the stream: where it stands in `list`.
    places: Vec<Option<u32>>,
    list: Vec<(u32, Arc<S>)>,
    /// The slot whose commit has not been served yet.
    rung: Option<u32>,
    /// Somebody rang and nobody was there to carry it.
    owed: bool,
}

impl<S: Commit> Default for Bell<S> {
    fn default() -> Self {
        Self {
            carriers: Mutex::new(Carriers {
                places: Vec::new(),
                list: Vec::new(),
                rung: None,
                owed: false,
            }),
            work: Work::default(),
            due: AtomicU64::new(NEVER),
        }
    }
}

impl<S: Commit> Carriers<S> {
    fn ring(&mut self, work: &Work) {
        if self.rung.is_some() {
            return;
        }
        match self.list.last() {
            Some((slot, scheduler)) => {
                self.rung = Some(*slot);
                work.wakes.inc();
                scheduler.commit();
            }
            None => self.owed = true,
        }
    }
}

impl<S: Commit> Bell<S> {
    fn lock(&self) -> MutexGuard<'_, Carriers<S>> {
        // Whole between any two statements.
        self.carriers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Any thread: the worker will take a turn.
    pub(crate) fn ring(&self) {
        self.lock().ring(&self.work);
    }

    /// \[loop-thread\] A turn begins: what is rung for from here on needs another one.
    pub(crate) fn answered(&self) {
        self.work.turns.inc();
        let mut carriers = self.lock();
        carriers.rung = None;
        carriers.owed = false;
    }

    /// \[loop-thread\] The stream in `slot` can carry a ring.
    pub(crate) fn join(&self, slot: u32, scheduler: Arc<S>) {
        let mut carriers = self.lock();
        let at = u32::try_from(carriers.list.len()).unwrap_or(u32::MAX);
        if carriers.places.len() <= slot as usize {
            carriers.places.resize(slot as usize + 1, None);
        }
        carriers.places[slot as usize] = Some(at);
        carriers.list.push((slot, scheduler));
        if std::mem::take(&mut carriers.owed) {
            carriers.ring(&self.work);
        }
    }

    /// \[loop-thread\] The stream in `slot` ends. Whether a ring is owed now that nobody can carry.
    pub(crate) fn leave(&self, slot: u32) -> bool {
        let mut carriers = self.lock();
        let Some(at) = carriers
            .places
            .get_mut(slot as usize)
            .and_then(Option::take)
        else {
            return false;
        };
        let gone = carriers.list.swap_remove(at as usize);
        if let Some((moved, _)) = carriers.list.get(at as usize) {
            let moved = *moved as usize;
            carriers.places[moved] = Some(at);
        }
        if carriers.rung == Some(slot) {
            carriers.rung = None;
            carriers.ring(&self.work);
        }
        let owed = carriers.owed;
        drop(carriers);
        drop(gone);
        owed
    }

    /// Sets the earliest deadline; whether the housekeeper has to hear of it.
    pub(crate) fn set_due(&self, due: u64) -> bool {
        self.due.swap(due, Relaxed) > due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU32};

    /// A stream's scheduler: a commit counts only while the stream lives, as in Envoy.
    #[derive(Default)]
    struct Stream {
        alive: AtomicBool,
        commits: AtomicU32,
    }

    impl Stream {
        fn new() -> Arc<Self> {
            let stream = Self::default();
            stream.alive.store(true, Relaxed);
            Arc::new(stream)
        }

        fn commits(&self) -> u32 {
            self.commits.load(Relaxed)
        }
    }

    impl Commit for Stream {
        fn commit(&self) {
            assert!(self.alive.load(Relaxed), "a commit met a dead stream");
            self.commits.fetch_add(1, Relaxed);
        }
    }

    fn end(bell: &Bell<Stream>, slot: u32, stream: &Stream) -> bool {
        let owed = bell.leave(slot);
        stream.alive.store(false, Relaxed);
        owed
    }

    #[test]
    fn a_carrier_that_dies_unserved_hands_its_ring_on() {
        let bell = Bell::default();
        let streams = [Stream::new(), Stream::new(), Stream::new()];
        for (slot, stream) in (0..).zip(&streams) {
            bell.join(slot, Arc::clone(stream));
        }
        bell.ring();
        bell.ring();
        let carrier = streams.iter().position(|s| s.commits() == 1).unwrap();
        assert_eq!(
            streams.iter().map(|s| s.commits()).sum::<u32>(),
            1,
            "one for both"
        );
        assert!(!end(&bell, carrier as u32, &streams[carrier]));
        let others: u32 = (0..3)
            .filter(|i| *i != carrier)
            .map(|i| streams[i].commits())
            .sum();
        assert_eq!(others, 1, "the ring went to a stream that lives");
        bell.answered();
        bell.ring();
        let others: u32 = (0..3)
            .filter(|i| *i != carrier)
            .map(|i| streams[i].commits())
            .sum();
        assert_eq!(others, 2);
    }

    #[test]
    fn a_ring_that_nobody_can_carry_is_owed_to_the_next() {
        let bell = Bell::default();
        let first = Stream::new();
        bell.join(7, Arc::clone(&first));
        bell.ring();
        assert!(end(&bell, 7, &first), "owed");
        bell.ring();
        let next = Stream::new();
        bell.join(0, Arc::clone(&next));
        assert_eq!(next.commits(), 1);
        bell.answered();
        let third = Stream::new();
        bell.join(1, Arc::clone(&third));
        assert_eq!(third.commits() + next.commits(), 1, "not owed twice");
        assert!(!end(&bell, 0, &next));
        assert!(!bell.leave(0), "who is gone is gone");
        assert!(!end(&bell, 1, &third));
    }

    #[test]
    fn rings_from_other_threads_are_never_lost_while_streams_come_and_go() {
        let bell = Arc::new(Bell::default());
        let rings = Arc::new(AtomicU32::new(0));
        let done = Arc::new(AtomicBool::new(false));
        let ringer = {
            let (bell, rings, done) = (Arc::clone(&bell), Arc::clone(&rings), Arc::clone(&done));
            std::thread::spawn(move || {
                for _ in 0..20_000 {
                    rings.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    bell.ring();
                }
                done.store(true, Relaxed);
            })
        };
        let mut seen = 0;
        let mut slot = 0;
        let mut after = 0;
        while !done.load(Relaxed) || seen != rings.load(Relaxed) {
            after += u32::from(done.load(Relaxed));
            assert!(after < 1000, "the last rings were never answered");
            let stream = Stream::new();
            slot = (slot + 1) % 5;
            bell.join(slot, Arc::clone(&stream));
            // Every other stream dies before its commit is served.
            if stream.commits() > 0 && slot % 2 == 0 {
                bell.answered();
                seen = rings.load(std::sync::atomic::Ordering::SeqCst);
            }
            end(&bell, slot, &stream);
        }
        ringer.join().unwrap();
    }
}
