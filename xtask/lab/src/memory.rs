//! What guests and waiting requests take of memory.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::Request;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::client::{self, Connection, Protocol};
use crate::host::{Built, Host};
use crate::process::Usage;
use crate::upstream::Server;

/// Measure what guests and waiting requests take of memory, as JSON
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    built: Built,
    /// Requests that wait
    #[arg(long, default_value_t = 4000)]
    streams: usize,
    /// Where the JSON goes
    #[arg(long, value_name = "FILE")]
    json: PathBuf,
}

/// Streams of one connection; the proxy's default limit.
const PER_CONNECTION: usize = 100;

/// A process with one kind of guest, and one request served.
#[derive(Debug, Serialize)]
struct Idle {
    guest: &'static str,
    #[serde(flatten)]
    usage: Usage,
    /// More than without a guest.
    more_rss_kib: i64,
    more_private_kib: i64,
    more_threads: i64,
}

/// Requests that wait for something.
#[derive(Debug, Serialize)]
struct Waiting {
    #[serde(rename = "for")]
    what: &'static str,
    streams: usize,
    kib_each: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    idle: Vec<Idle>,
    waiting: Vec<Waiting>,
}

/// Runs it.
pub async fn run(args: &Args) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let upstream = Server::upstream().await?;
    let built = &args.built;
    let mut idle: Vec<Idle> = Vec::new();
    for (guest, library, filter) in [
        ("none", None, ""),
        ("C, header-policy", Some(&built.c), "header-policy"),
        ("Rust, body-rewrite", Some(&built.rust), "body-count"),
        ("Go, three filters", Some(&built.go), "trace-id"),
    ] {
        let host = start(
            built,
            folder.path(),
            &upstream,
            library.map(|l| (l.as_path(), filter)),
        )
        .await?;
        let mut connection = Connection::open(host.listener("main")?, Protocol::Http1).await?;
        let answer = connection.ask(request(&host, "/x", &[])?).await?;
        ensure!(answer.status == 200, "{guest}: {}", answer.status);
        let usage = Usage::of(host.pid())?;
        let none = idle.first().map_or(usage, |i| i.usage);
        let more = |now: u64, then: u64| now.cast_signed() - then.cast_signed();
        idle.push(Idle {
            guest,
            usage,
            more_rss_kib: more(usage.rss_kib, none.rss_kib),
            more_private_kib: more(usage.private_kib, none.private_kib),
            more_threads: more(usage.threads, none.threads),
        });
    }
    let mut waiting = Vec::new();
    for (what, filter, fields, gauge) in [
        (
            "its upstream, no filter",
            None,
            ("x-wait", "120000"),
            "pxg_requests_active",
        ),
        (
            "a goroutine of its own",
            Some((built.go.as_path(), "faulty")),
            ("x-fault", "async-never"),
            "pxg_guest_pending{config=\"it\"}",
        ),
    ] {
        let host = start(built, folder.path(), &upstream, filter).await?;
        let kib_each = wait(&host, args.streams, fields, gauge)
            .await
            .with_context(|| what.to_owned())?;
        waiting.push(Waiting {
            what,
            streams: args.streams,
            kib_each,
        });
    }
    let report = Report { idle, waiting };
    std::fs::write(&args.json, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("write {}", args.json.display()))
}

fn request(host: &Host, path: &str, fields: &[(&str, &str)]) -> Result<Request<client::Body>> {
    let mut request = Request::get(format!("http://{}{path}", host.listener("main")?));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    Ok(request.body(client::no_body())?)
}

/// KiB of each of `streams` more requests that wait, after a first hundred has made the process grow to its habits.
async fn wait(host: &Host, streams: usize, field: (&str, &str), gauge: &str) -> Result<f64> {
    let mut running = JoinSet::new();
    let mut connections = Vec::new();
    let mut before = None;
    for n in 0..=streams.div_ceil(PER_CONNECTION) {
        let connection = Connection::open(host.listener("main")?, Protocol::H2c).await?;
        for _ in 0..PER_CONNECTION {
            let request = request(host, "/wait", &[field])?;
            let mut stream = connection.clone_h2()?;
            running.spawn(async move { stream.ask(request).await });
        }
        connections.push(connection);
        let wanted = ((n + 1) * PER_CONNECTION) as f64;
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            let waiting = host.metric(gauge).await?;
            if waiting >= wanted {
                break;
            }
            if let Some(ended) = running.try_join_next() {
                let answer = ended??;
                anyhow::bail!("a request was answered: {}", answer.status);
            }
            ensure!(
                Instant::now() < limit,
                "{gauge} is {waiting} and not {wanted}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        before.get_or_insert(Usage::of(host.pid())?.rss_kib);
    }
    let more = Usage::of(host.pid())?.rss_kib as f64 - before.context("a first hundred")? as f64;
    Ok(more / (running.len() - PER_CONNECTION) as f64)
}

async fn start(
    built: &Built,
    folder: &Path,
    upstream: &Server,
    filter: Option<(&Path, &str)>,
) -> Result<Host> {
    let (mut guest, mut used) = (String::new(), "");
    if let Some((library, filter)) = filter {
        guest = format!(
            "[[guests]]\nname = \"guest\"\npath = {}\n\n[[filters]]\nname = \"it\"\nguest = \"guest\"\n\
             filter = \"{filter}\"\npend_limit = \"5m\"\nhold_limit = \"5m\"\n",
            Built::toml(library)
        );
        used = "filters = [\"it\"]";
    }
    let config = format!(
        r#"workers = 1

[log]
level = "warn"

[admin]
address = "127.0.0.1:0"

[[listeners]]
name = "main"
address = "127.0.0.1:0"

[[clusters]]
name = "upstream"
endpoints = ["{}"]
protocol = "http2"

{guest}
[[virtual_hosts]]
name = "all"
hosts = ["*"]

[[virtual_hosts.routes]]
name = "all"
prefix = "/"
cluster = "upstream"
timeouts = {{ response_header = "5m" }}
{used}
"#,
        upstream.address()
    );
    let file = folder.join("memory.toml");
    std::fs::write(&file, config)?;
    Host::start(&built.host, &file, &folder.join("memory.log")).await
}
