//! Perturbations from a seed: what a host and a guest may meet and seldom do. Everything stays within the rules.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::report;
use crate::sys::platform;

/// Numbers from a seed.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Those of the `n`th thread that draws.
    fn of_thread(seed: u64, n: u64) -> Self {
        Self::new(seed ^ n.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to and without `n`; 0 for 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % (n.max(1) as u64)).unwrap_or(0)
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

static THREADS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Each thread draws from its own dice, so that a thread's draws depend on no other thread.
    static DICE: RefCell<Option<Dice>> = const { RefCell::new(None) };
}

/// Runs `f` with this thread's dice, if the layer perturbs.
pub(crate) fn with<T>(f: impl FnOnce(&mut Dice) -> T) -> Option<T> {
    let seed = report::current()?.settings.perturb?;
    DICE.try_with(|d| {
        let mut d = d.borrow_mut();
        let dice =
            d.get_or_insert_with(|| Dice::of_thread(seed, THREADS.fetch_add(1, Ordering::Relaxed)));
        f(dice)
    })
    .ok()
}

/// Gives others a chance: mostly none, now and then the processor, seldom up to a millisecond.
pub(crate) fn pause() {
    match with(|d| (d.below(16), d.below(1000))) {
        Some((0, us)) => std::thread::sleep(Duration::from_micros(us as u64)),
        Some((1..=4, _)) => platform::yield_now(),
        _ => {}
    }
}

/// After PENDING: a completion may come before the host learns of it.
pub(crate) fn pause_after_pending() {
    if with(|d| d.one_in(2)) == Some(true) {
        std::thread::sleep(Duration::from_micros(
            with(|d| d.below(2000)).unwrap_or(0) as u64
        ));
    }
}

/// Bytes of `scratch_more` after which a hook gets no more: at least what every host grants.
pub(crate) fn scratch_limit() -> u64 {
    const LEAST: u64 = 64 << 10;
    with(|d| {
        if d.one_in(2) {
            LEAST + (d.below(16 << 10)) as u64
        } else {
            u64::MAX
        }
    })
    .unwrap_or(u64::MAX)
}

/// The scratch that every host lends at least: operations and bytes.
pub(crate) fn scratch_caps() -> Option<(u64, u64)> {
    with(|_| (32, 4096))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same() {
        let draw = |seed| {
            let mut d = Dice::new(seed);
            (0..8).map(|_| d.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let thread = |seed, n| Dice::of_thread(seed, n).next();
        assert_eq!(thread(1, 0), Dice::new(1).next());
        assert_ne!(thread(1, 0), thread(1, 1));
        assert_eq!(thread(1, 1), thread(1, 1));
        let mut d = Dice::new(3);
        assert!((0..1000).all(|_| d.below(7) < 7));
        assert_eq!(d.below(0), 0);
    }
}
