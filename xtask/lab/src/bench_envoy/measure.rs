//! Envoy, or what stands in its place, under its loads.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::server::{Server, Under};
use super::shape::Shape;
use super::variant::{Built, HEADERS, PLAIN, Variant};
use crate::bench_proxy::{
    self, CHECK, FIELD, Mixed, OTHERS, PATIENCE, Run, SEEN, Upstream, WORKER,
};
use crate::client::{self, Connection, Protocol};
use crate::flat::Load;
use crate::process::pin;

/// A running variant with its upstream and its loads.
pub(crate) struct Subject {
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
        let marked = self.variant.value(shape).is_some();
        Run::of(load, time, &self.upstream, marked, || self.server.cpu()).await
    }
}

impl bench_proxy::Subject for Subject {
    /// On a busy machine a short run may see no answer: it is repeated then.
    async fn run(&mut self, section: &'static str, time: Duration) -> Result<Run> {
        let shape = Shape::of(section).context("an unknown shape")?;
        let name = format!("{section}/{}", self.variant.name);
        for _ in 0..PATIENCE {
            let measured = self.measure(shape, time).await;
            if let Some(run) = measured.with_context(|| name.clone())? {
                return Ok(run);
            }
        }
        bail!("{name}: no request was answered in {PATIENCE} runs of {time:?}")
    }

    async fn mixed(&self) -> Result<Mixed> {
        let shape = Shape::Fields3;
        debug_assert_eq!(shape.protocol(), Protocol::Http1);
        let ask = shape.ask();
        let plain = (self.server.listener(PLAIN)?, &ask);
        let filtered = (self.server.listener(HEADERS)?, &ask);
        Mixed::open(self.variant.name, plain, filtered, shape.connections()).await
    }

    fn cpu(&self) -> Result<Duration> {
        self.server.cpu()
    }
}
