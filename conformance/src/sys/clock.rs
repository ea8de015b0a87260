//! Deadlines that a verdict hangs on. A loaded or slow machine must not make a guest look late, so they are stretched
//! by how slow the machine is at the moment when one would run out.

use std::time::{Duration, Instant};

/// Processor time of the calling thread.
fn thread_cpu() -> Duration {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `t` is a valid out-parameter.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut t) };
    Duration::new(
        t.tv_sec.cast_unsigned(),
        u32::try_from(t.tv_nsec).unwrap_or(0),
    )
}

/// What a machine of today takes for one probe, when it is idle.
const NOMINAL: Duration = Duration::from_millis(2);
/// Steps of one probe: about as many as fit into [`NOMINAL`] on a slow one.
const STEPS: u64 = 400_000;
const MOST: f64 = 16.0;

/// How many times slower than an idle machine this one is now: by its processors, and by what else runs on them.
fn slowness() -> f64 {
    let (wall, cpu) = (Instant::now(), thread_cpu());
    let mut x = 1u64;
    for i in 0..STEPS {
        x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i));
    }
    let worked = thread_cpu().saturating_sub(cpu);
    // A share of the processor, and how long a sleeper waits for one.
    let pause = Duration::from_millis(1);
    std::thread::sleep(pause);
    let took = wall.elapsed();
    let by_speed = worked.as_secs_f64() / NOMINAL.as_secs_f64();
    let by_load = took.as_secs_f64() / (worked + pause).as_secs_f64();
    (by_speed.max(1.0) * by_load.max(1.0)).min(MOST)
}

/// A stretch of time that is given on an idle machine, and more on one that is busy.
pub(crate) struct Patience {
    since: Instant,
    limit: Duration,
    /// How often it may be its limit.
    most: f64,
    /// As far as it has been measured.
    until: Duration,
}

impl Patience {
    pub(crate) fn new(limit: Duration) -> Self {
        Self::at_most(limit, MOST)
    }

    /// The same, which never lasts longer than `most` times its limit.
    pub(crate) fn at_most(limit: Duration, most: f64) -> Self {
        Self {
            since: Instant::now(),
            limit,
            most,
            until: limit,
        }
    }

    /// Whether it has run out. Measures the machine only when it would have.
    pub(crate) fn over(&mut self) -> bool {
        if self.since.elapsed() < self.until {
            return false;
        }
        let stretched = self.limit.mul_f64(slowness().min(self.most));
        self.until = self.until.max(stretched);
        self.since.elapsed() >= self.until
    }

    /// When to look again.
    pub(crate) fn deadline(&self) -> Instant {
        self.since + self.until
    }

    /// Sleeps until it has run out.
    pub(crate) fn sleep(mut self) {
        while !self.over() {
            std::thread::sleep(self.deadline().saturating_duration_since(Instant::now()));
        }
    }
}

/// Sleeps for `limit`, or longer on a busy machine: others are to get something done meanwhile.
pub(crate) fn linger(limit: Duration) {
    Patience::new(limit).sleep();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_lasts_at_least_its_limit_and_ends() {
        let began = Instant::now();
        let limit = Duration::from_millis(5);
        linger(limit);
        assert!(began.elapsed() >= limit);
        let mut p = Patience::new(limit);
        assert!(!p.over());
        while !p.over() {
            std::thread::yield_now();
        }
        assert!(p.until >= limit && p.until <= limit.mul_f64(MOST));
    }
}
