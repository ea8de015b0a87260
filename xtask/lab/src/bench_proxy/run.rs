//! Runs: a server under a load for a while, and what it cost.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::upstream::{FIELD, Upstream};
use crate::flat::{Ask, Load};
use crate::stats::quantile;

/// Where the proxy runs, and where everything else does.
pub(crate) const WORKER: usize = 0;
pub(crate) const OTHERS: usize = 1;

/// A load runs for so long before it is measured.
const LEAD: Duration = Duration::from_millis(30);

/// So often a run without an answer is repeated.
pub(crate) const PATIENCE: usize = 20;

/// What a run cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    requests: f64,
    cpu: Duration,
    wall: Duration,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Run {
    /// One run of `load` for so long; the field has to come to the upstream in each request if it is `marked`, else in
    /// none. Nothing, if no request was answered.
    pub(crate) async fn of(
        load: &mut Load,
        time: Duration,
        upstream: &Upstream,
        marked: bool,
        cpu: impl Fn() -> Result<Duration>,
    ) -> Result<Option<Self>> {
        let counted = upstream.counts();
        load.start(true);
        tokio::time::sleep(LEAD).await;
        let begin = (Instant::now(), load.done(), cpu()?);
        tokio::time::sleep(time).await;
        let wall = begin.0.elapsed();
        let requests = load.done() - begin.1;
        let cpu = cpu()? - begin.2;
        let mut times = load.stop().await?;
        times.sort_unstable();
        let now = upstream.counts();
        let (seen, with) = (now.0 - counted.0, now.1 - counted.1);
        let expected = if marked { seen } else { 0 };
        ensure!(
            with == expected,
            "{with} of {seen} requests came to the upstream with {FIELD}, expected were {expected}"
        );
        Ok((requests > 0).then(|| Self {
            requests: requests as f64,
            cpu,
            wall,
            p50: quantile(&times, 0.5) as f64,
            p99: quantile(&times, 0.99) as f64,
        }))
    }

    /// Nanoseconds of processor time per request.
    pub(crate) fn cost(self) -> f64 {
        self.cpu.as_nanos() as f64 / self.requests
    }

    /// Requests per second.
    pub(crate) fn rate(self) -> f64 {
        self.requests / self.wall.as_secs_f64()
    }

    /// Share of one processor that was used.
    pub(crate) fn busy(self) -> f64 {
        self.cpu.as_secs_f64() / self.wall.as_secs_f64()
    }

    /// Both together; of the times the mean.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            cpu: self.cpu + other.cpu,
            wall: self.wall + other.wall,
            p50: f64::midpoint(self.p50, other.p50),
            p99: f64::midpoint(self.p99, other.p99),
        }
    }
}

/// A probe through the filter and a plain one, while others that are not filtered keep the worker busy.
pub(crate) struct Mixed {
    pub(super) variant: &'static str,
    flood: Load,
    /// The plain one, the filtered one.
    probes: [Load; 2],
}

/// Times of probes in one round, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probes {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) plain_p50: f64,
    pub(crate) plain_p99: f64,
}

impl Mixed {
    /// Asks over `connections` for what is not filtered.
    pub(crate) async fn open(
        variant: &'static str,
        plain: (SocketAddr, &Ask),
        filtered: (SocketAddr, &Ask),
        connections: usize,
    ) -> Result<Self> {
        Ok(Self {
            variant,
            flood: Load::asking(plain.0, plain.1, connections).await?,
            probes: [
                Load::asking(plain.0, plain.1, 1).await?,
                Load::asking(filtered.0, filtered.1, 1).await?,
            ],
        })
    }

    /// Plain, filtered, filtered, plain, so that what drifts slowly is in both.
    pub(super) async fn round(&mut self, time: Duration) -> Result<Probes> {
        self.flood.start(false);
        tokio::time::sleep(LEAD).await;
        let mut times: [Vec<u64>; 2] = Default::default();
        for which in [0, 1, 1, 0] {
            self.probes[which].start(true);
            tokio::time::sleep(time).await;
            // The last request is waited for: at least one is answered.
            times[which].extend(self.probes[which].stop().await?);
        }
        self.flood.stop().await?;
        for times in &mut times {
            ensure!(!times.is_empty(), "a probe asked nothing in {time:?}");
            times.sort_unstable();
        }
        let [plain, filtered] = times;
        Ok(Probes {
            p50: quantile(&filtered, 0.5) as f64,
            p99: quantile(&filtered, 0.99) as f64,
            plain_p50: quantile(&plain, 0.5) as f64,
            plain_p99: quantile(&plain, 0.99) as f64,
        })
    }
}
