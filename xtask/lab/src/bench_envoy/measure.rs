//! Runs: a server under a load for a while, and what it cost.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::server::{Server, Under};
use super::shape::Shape;
use super::upstream::{CHECK, FIELD, SEEN, Upstream};
use super::variant::{Built, HEADERS, PLAIN, Variant};
use crate::client::{self, Connection, Protocol};
use crate::flat::Load;
use crate::process::pin;
use crate::stats::quantile;

/// Where the proxy runs, and where everything else does.
pub(super) const WORKER: usize = 0;
pub(super) const OTHERS: usize = 1;

/// A load runs for so long before it is measured.
pub(super) const LEAD: Duration = Duration::from_millis(30);

/// So often a run without an answer is repeated.
const PATIENCE: usize = 20;

/// What a run cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    requests: f64,
    cpu: Duration,
    wall: Duration,
    pub(super) p50: f64,
    pub(super) p99: f64,
}

impl Run {
    /// Nanoseconds of processor time per request.
    pub(super) fn cost(self) -> f64 {
        self.cpu.as_nanos() as f64 / self.requests
    }

    /// Requests per second.
    pub(super) fn rate(self) -> f64 {
        self.requests / self.wall.as_secs_f64()
    }

    /// Share of one processor that was used.
    pub(super) fn busy(self) -> f64 {
        self.cpu.as_secs_f64() / self.wall.as_secs_f64()
    }

    /// Both together; of the times the mean.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            cpu: self.cpu + other.cpu,
            wall: self.wall + other.wall,
            p50: f64::midpoint(self.p50, other.p50),
            p99: f64::midpoint(self.p99, other.p99),
        }
    }
}

/// A running variant with its upstream and its loads.
pub(super) struct Subject {
    pub(super) variant: Variant,
    pub(super) server: Server,
    upstream: Upstream,
    loads: BTreeMap<Shape, Load>,
}

impl Subject {
    /// Starts it, and asks once for each shape whether requests come out as they should.
    pub(super) async fn start(
        variant: &Variant,
        built: &Built,
        folder: &Path,
        shapes: &[Shape],
        under: &Under,
    ) -> Result<Self> {
        let upstream = Upstream::start().await?;
        // A child runs where the thread does that starts it.
        pin(WORKER)?;
        let folder = folder.join(variant.name);
        let server = Server::start(variant, built, upstream.address, &folder, under).await;
        pin(OTHERS)?;
        let subject = Self {
            variant: *variant,
            server: server?,
            upstream,
            loads: BTreeMap::new(),
        };
        for shape in shapes {
            subject
                .check(*shape)
                .await
                .with_context(|| format!("one request, {}", shape.title()))?;
        }
        Ok(subject)
    }

    /// Asks once, with an HTTP library.
    async fn check(&self, shape: Shape) -> Result<()> {
        let address = self.server.address(shape)?;
        let mut connection = Connection::open(address, shape.protocol()).await?;
        let mut request = http::Request::builder().uri(format!("http://bench.example{CHECK}"));
        for (name, value) in shape.fields() {
            request = request.header(name, value);
        }
        let request = match shape.body() {
            Some(length) => request
                .method("POST")
                .body(client::body(vec![b'b'; length])),
            None => request.body(client::no_body()),
        };
        let answer = connection.ask(request?).await?;
        let (seen, expected) = (answer.field(SEEN), self.variant.value(shape));
        ensure!(
            answer.status == http::StatusCode::OK && seen == expected.as_deref(),
            "status {} and the upstream saw {FIELD}: {seen:?}; expected 200 and {expected:?}. The answer: {:?}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        Ok(())
    }

    /// Has at least `requests` asked over so many connections; how many it was.
    pub(super) async fn ask(&self, shape: Shape, connections: usize, requests: u64) -> Result<u64> {
        let address = self.server.address(shape)?;
        let mut load = Load::asking(address, &shape.ask(), connections).await?;
        load.start(false);
        while load.done() < requests {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        load.stop().await?;
        Ok(load.done())
    }

    /// One run. On a busy machine a short one may see no answer: it is repeated then.
    pub(super) async fn run(&mut self, shape: Shape, time: Duration) -> Result<Run> {
        let name = format!("{}/{}", shape.name(), self.variant.name);
        for _ in 0..PATIENCE {
            let measured = self.measure(shape, time).await;
            if let Some(run) = measured.with_context(|| name.clone())? {
                return Ok(run);
            }
        }
        bail!("{name}: no request was answered in {PATIENCE} runs of {time:?}")
    }

    async fn measure(&mut self, shape: Shape, time: Duration) -> Result<Option<Run>> {
        if !self.loads.contains_key(&shape) {
            let address = self.server.address(shape)?;
            let load = Load::asking(address, &shape.ask(), shape.connections()).await?;
            self.loads.insert(shape, load);
        }
        let load = self
            .loads
            .get_mut(&shape)
            .context("it was just put there")?;
        let counted = self.upstream.counts();
        load.start(true);
        tokio::time::sleep(LEAD).await;
        let begin = (Instant::now(), load.done(), self.server.cpu()?);
        tokio::time::sleep(time).await;
        let wall = begin.0.elapsed();
        let requests = load.done() - begin.1;
        let cpu = self.server.cpu()? - begin.2;
        let mut times = load.stop().await?;
        times.sort_unstable();
        let now = self.upstream.counts();
        let (requests_seen, marked) = (now.0 - counted.0, now.1 - counted.1);
        let expected = match self.variant.value(shape) {
            Some(_) => requests_seen,
            None => 0,
        };
        ensure!(
            marked == expected,
            "{marked} of {requests_seen} requests came to the upstream with {FIELD}, expected were {expected}"
        );
        Ok((requests > 0).then(|| Run {
            requests: requests as f64,
            cpu,
            wall,
            p50: quantile(&times, 0.5) as f64,
            p99: quantile(&times, 0.99) as f64,
        }))
    }
}

/// A probe through the filter and a plain one, while others that are not filtered keep the worker busy.
pub(super) struct Mixed {
    pub(super) variant: Variant,
    flood: Load,
    /// The plain one, the filtered one.
    probes: [Load; 2],
}

/// Times of probes in one round, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probes {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) plain_p50: f64,
    pub(super) plain_p99: f64,
}

impl Mixed {
    pub(super) async fn open(subject: &Subject) -> Result<Self> {
        let shape = Shape::Fields3;
        let (plain, filtered) = (
            subject.server.listener(PLAIN)?,
            subject.server.listener(HEADERS)?,
        );
        debug_assert_eq!(shape.protocol(), Protocol::Http1);
        Ok(Self {
            variant: subject.variant,
            flood: Load::asking(plain, &shape.ask(), shape.connections()).await?,
            probes: [
                Load::asking(plain, &shape.ask(), 1).await?,
                Load::asking(filtered, &shape.ask(), 1).await?,
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
