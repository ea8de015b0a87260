//! What a process costs: processor time of all its threads, memory, files.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// The processor time of a process, all threads together, those that have ended too.
#[derive(Clone, Copy, Debug)]
pub struct CpuClock(ClockId);

impl CpuClock {
    /// Of the process `pid`.
    pub fn of(pid: Pid) -> Result<Self> {
        clock_getcpuclockid(pid)
            .map(Self)
            .with_context(|| format!("find the processor clock of process {pid}"))
    }

    /// Time used until now.
    pub fn now(self) -> Result<Duration> {
        let time = clock_gettime(self.0).context("read a process's processor clock")?;
        Ok(time.into())
    }
}

/// Lets this thread, and what it starts from now on, run on one processor only.
pub fn pin(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)
        .with_context(|| format!("processor {processor}"))?;
    sched_setaffinity(Pid::from_raw(0), &set)
        .with_context(|| format!("run on processor {processor} only"))
}

/// Takes back [`pin`], for what is started from now on.
pub fn unpin() -> Result<()> {
    let mut set = CpuSet::new();
    for processor in 0..CpuSet::count() {
        set.set(processor)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).context("run on any processor")
}

/// What /proc tells of a process.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Usage {
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// Of it what no other process has.
    pub private_kib: u64,
    /// Open files.
    pub files: u64,
    /// Threads.
    pub threads: u64,
}

impl Usage {
    /// Of the process `pid`, now.
    pub fn of(pid: Pid) -> Result<Self> {
        let folder = format!("/proc/{pid}");
        let count = |name: &str| -> Result<u64> {
            let path = format!("{folder}/{name}");
            let entries = std::fs::read_dir(&path).with_context(|| format!("list {path}"))?;
            Ok(entries.count() as u64)
        };
        let path = format!("{folder}/smaps_rollup");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let sum = |keys: &[&str]| -> u64 {
            let of_keys = text.lines().filter_map(|line| {
                let (key, rest) = line.split_once(':')?;
                keys.contains(&key)
                    .then(|| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())?
            });
            of_keys.sum()
        };
        Ok(Self {
            rss_kib: sum(&["Rss"]),
            private_kib: sum(&["Private_Clean", "Private_Dirty"]),
            files: count("fd")?,
            threads: count("task")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The clock is the sum that the scheduler keeps for each thread.
    #[test]
    fn the_clock_counts_all_threads() {
        let me = Pid::this();
        let clock = CpuClock::of(me).unwrap();
        let before = clock.now().unwrap();
        let spin = |ms: u128| {
            let id = ClockId::CLOCK_THREAD_CPUTIME_ID;
            let used = || Duration::from(clock_gettime(id).unwrap()).as_millis();
            while used() < ms {
                std::hint::spin_loop();
            }
        };
        // One thread has ended when the clock is read.
        std::thread::spawn(move || spin(30)).join().unwrap();
        std::thread::scope(|s| s.spawn(move || spin(20)).join()).unwrap();
        let used = clock.now().unwrap() - before;
        assert!(used >= Duration::from_millis(50), "{used:?}");
    }

    #[test]
    fn usage_is_read() {
        let usage = Usage::of(Pid::this()).unwrap();
        assert!(usage.rss_kib > 500 && usage.private_kib > 100, "{usage:?}");
        assert!(usage.files >= 3 && usage.threads >= 1, "{usage:?}");
    }
}
