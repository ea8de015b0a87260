//! The proxy under load while it is reloaded and its clients go away.

mod clients;
mod config;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http::{Method, Request, StatusCode};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::client::{self, Connection, Protocol};
use crate::host::{Built, Host};
use crate::paint::Paint;
use crate::process::Usage;
use crate::stats::slope;
use crate::upstream::Server;
use clients::Shared;
use config::Configs;

/// Load the proxy while it is reloaded and its clients go away
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    built: Built,
    /// How long, such as 30s or 5m
    #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = seconds)]
    time: Duration,
    /// Seed of the clients' choices
    #[arg(long)]
    seed: Option<u64>,
    /// Also write what was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let (number, unit) = match (text.strip_suffix('s'), text.strip_suffix('m')) {
        (Some(number), _) => (number, 1),
        (_, Some(number)) => (number, 60),
        _ => return Err("expected a time in seconds or minutes, such as 30s or 5m".into()),
    };
    let number: u64 = number.parse().map_err(|e| format!("{number}: {e}"))?;
    match number {
        0 => Err("expected at least one second".into()),
        n => Ok(Duration::from_secs(n * unit)),
    }
}

/// 32 connections: 20 of HTTP/1.1 with a request at a time, 12 of HTTP/2.
const HTTP1: u64 = 20;
const H2C: u64 = 12;

/// How long the authority takes.
const AUTHORITY_DELAY: Duration = Duration::from_millis(2);

/// Each fifth configuration is invalid.
const INVALID_EVERY: u64 = 5;

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    seconds: f64,
    seed: u64,
    answered: u64,
    aborted: u64,
    failed: u64,
    reloads_taken: u64,
    reloads_refused: u64,
    rss_kib_first: u64,
    rss_kib_last: u64,
    /// Of the second half.
    rss_kib_per_second: f64,
    threads: u64,
}

/// Runs it. An error if anything is not as it should be.
pub async fn run(args: &Args) -> Result<()> {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let folder = tempfile::tempdir().context("make a folder for the configuration")?;
    let log = folder.path().join("pxg-host.log");
    let done = soak(args, seed, folder.path(), &log).await;
    if done.is_err() {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<_> = said
            .lines()
            .filter(|l| !l.contains("reload refused"))
            .collect();
        if !lines.is_empty() {
            eprintln!(
                "pxg-host said:\n{}",
                lines[lines.len().saturating_sub(40)..].join("\n")
            );
        }
    }
    done.with_context(|| format!("with --seed {seed}"))
}

async fn soak(args: &Args, seed: u64, folder: &Path, log: &Path) -> Result<()> {
    let upstream = Server::upstream().await?;
    let authority = Server::authority(AUTHORITY_DELAY).await?;
    let file = folder.join("soak.toml");
    let configs = Configs {
        built: &args.built,
        upstream: upstream.address().to_string(),
        authority: authority.address().to_string(),
        admin: "127.0.0.1:0".into(),
    };
    std::fs::write(&file, configs.valid(1))?;
    let mut host = Host::start(&args.built.host, &file, log).await?;
    let shared = Arc::new(Shared::new(host.listener("main")?));
    let before = Usage::of(host.pid())?;
    println!(
        "{HTTP1} connections over HTTP/1.1 and {H2C} over HTTP/2, for {:?}, seed {seed}",
        args.time
    );

    let mut clients = JoinSet::new();
    for id in 0..HTTP1 + H2C {
        let protocol = if id < HTTP1 {
            Protocol::Http1
        } else {
            Protocol::H2c
        };
        let shared = Arc::clone(&shared);
        clients.spawn(async move { clients::client(&shared, protocol, id, seed).await });
    }
    let begin = Instant::now();
    let driven = drive(args, &host, &configs, &file, &shared).await;
    let seconds = begin.elapsed().as_secs_f64();
    shared.stop.store(true, SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.context("a client panicked")?;
    }
    let (failures, failed) = shared.failures();
    if let Some(status) = host.has_ended()? {
        bail!(
            "pxg-host ended under load: {status}\n{}",
            failures.join("\n")
        );
    }
    ensure!(
        failed == 0,
        "{failed} requests failed, the first of them:\n{}",
        failures.join("\n")
    );
    let driven = driven?;

    let (first, last, growth) = driven.memory();
    let report = Report {
        seconds,
        seed,
        answered: shared.answered.load(SeqCst),
        aborted: shared.aborted.load(SeqCst),
        failed,
        reloads_taken: driven.taken,
        reloads_refused: driven.refused,
        rss_kib_first: first,
        rss_kib_last: last,
        rss_kib_per_second: growth,
        threads: Usage::of(host.pid())?.threads,
    };
    let paint = Paint::stdout();
    let say = |text: &str| println!("{} {text}", paint.green("✓"));
    ensure!(
        report.answered > 100 && report.aborted > 10,
        "too little happened: {report:?}"
    );
    say(&format!(
        "{} requests answered, each checked against itself; {} given up by their clients; none failed",
        report.answered, report.aborted
    ));
    ensure!(
        driven.taken > 1 && driven.refused > 0,
        "too few reloads: {report:?}"
    );
    say(&format!(
        "{} configurations taken, {} refused, each with its reason and without effect",
        driven.taken, driven.refused
    ));
    settled(&host, before).await?;
    say(
        "nothing is left over: no request, connection, pending decision, old configuration, or open file",
    );
    memory(&report, args.time)?;
    say(&format!(
        "memory {:.1} MiB in the second quarter of the time, {:.1} MiB in the last; {:+.1} KiB/s; {} threads",
        first as f64 / 1024.0,
        last as f64 / 1024.0,
        growth,
        report.threads
    ));
    drained(&mut host).await?;
    say("pxg-host drained: a running request was finished, then it ended by itself");
    if let Some(file) = &args.json {
        std::fs::write(file, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// How the reloads went.
struct Driven {
    taken: u64,
    refused: u64,
    /// Seconds and KiB.
    rss: Vec<(f64, f64)>,
}

impl Driven {
    /// Median KiB of the second quarter and of the last quarter, and KiB per second in the second half.
    fn memory(&self) -> (u64, u64, f64) {
        let n = self.rss.len();
        let median = |from: usize, to: usize| {
            let mut values: Vec<_> = self.rss[from..to.max(from + 1)]
                .iter()
                .map(|p| p.1)
                .collect();
            values.sort_by(f64::total_cmp);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let kib = values[values.len() / 2] as u64;
            kib
        };
        (
            median(n / 4, n / 2),
            median(n - n.div_ceil(4), n),
            slope(&self.rss[n / 2..]),
        )
    }
}

/// Reloads until the time is over.
async fn drive(
    args: &Args,
    host: &Host,
    configs: &Configs<'_>,
    file: &Path,
    shared: &Shared,
) -> Result<Driven> {
    // A short run has as many as are needed for all kinds of invalid ones.
    let every = Duration::from_secs(1).min(args.time / 25);
    let begin = Instant::now();
    let (mut driven, mut number, mut turns) = (
        Driven {
            taken: 0,
            refused: 0,
            rss: Vec::new(),
        },
        1,
        0,
    );
    let mut ticks = tokio::time::interval(every);
    ticks.tick().await;
    while begin.elapsed() < args.time {
        ticks.tick().await;
        let usage = Usage::of(host.pid()).context("pxg-host has ended")?;
        driven
            .rss
            .push((begin.elapsed().as_secs_f64(), usage.rss_kib as f64));
        turns += 1;
        if turns % INVALID_EVERY == 0 {
            refused(host, configs, file, driven.refused).await?;
            driven.refused += 1;
        } else {
            number += 1;
            std::fs::write(file, configs.valid(number))?;
            shared.offered.store(number, SeqCst);
            let answer = host.admin(Method::POST, "/reload").await?;
            let text = String::from_utf8_lossy(&answer.body);
            ensure!(
                answer.status == StatusCode::OK,
                "configuration {number}: {}: {text}",
                answer.status
            );
            shared.taken.store(number, SeqCst);
            driven.taken += 1;
        }
        if shared.failures().1 > 0 {
            break;
        }
    }
    Ok(driven)
}

/// Offers an invalid configuration.
async fn refused(host: &Host, configs: &Configs<'_>, file: &Path, number: u64) -> Result<()> {
    let generation = host.admin_json("/config").await?["generation"].clone();
    let invalid = configs.invalid(number);
    std::fs::write(file, &invalid.text)?;
    let answer = host.admin(Method::POST, "/reload").await?;
    let text = String::from_utf8_lossy(&answer.body);
    ensure!(
        answer.status == StatusCode::UNPROCESSABLE_ENTITY && text.contains(invalid.names),
        "an invalid configuration was to be refused with a reason that names {}: {}: {text}",
        invalid.names,
        answer.status
    );
    let now = host.admin_json("/config").await?["generation"].clone();
    ensure!(
        now == generation,
        "a refused configuration changed the generation from {generation} to {now}"
    );
    Ok(())
}

/// Nothing may be left over when the clients have gone.
async fn settled(host: &Host, before: Usage) -> Result<()> {
    let limit = Instant::now() + Duration::from_secs(15);
    loop {
        match leftovers(host, before).await {
            Ok(left) if left.is_empty() => return Ok(()),
            Ok(left) if Instant::now() >= limit => {
                bail!("left over 15 s after the load: {}", left.join(", "))
            }
            Err(error) => return Err(error),
            Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn leftovers(host: &Host, before: Usage) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for name in ["pxg_requests_active", "pxg_connections_active"] {
        let n = host.metric(name).await?;
        if n != 0.0 {
            left.push(format!("{name} is {n}"));
        }
    }
    let guests = host.admin_json("/guests").await?;
    let mut live = 0;
    for library in guests["libraries"].as_array().context("libraries")? {
        live += library["live_configurations"]
            .as_u64()
            .context("live_configurations")?;
    }
    if live != Configs::LIVE {
        left.push(format!(
            "{live} live configurations of guests and not {}",
            Configs::LIVE
        ));
    }
    for (name, filter) in guests["filters"].as_object().context("filters")? {
        // What a load without faults must not have caused, at no time.
        for what in ["pending_now", "deadlines", "over_pending_cap", "bypassed"] {
            let n = filter[what]
                .as_u64()
                .with_context(|| format!("{name}: {what}"))?;
            if n != 0 {
                left.push(format!("{what} of {name} is {n}"));
            }
        }
        for (phase, counters) in filter["phases"].as_object().context("phases")? {
            for what in ["errors", "panics"] {
                let n = counters[what]
                    .as_u64()
                    .with_context(|| format!("{name}: {what}"))?;
                if n != 0 {
                    left.push(format!("{what} of {name} in {phase} are {n}"));
                }
            }
        }
    }
    // Connections kept for later: the proxy's to the upstream, token-check's to the authority.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let kept = host.metric("pxg_upstream_idle_connections").await? as u64 + 8;
    let files = Usage::of(host.pid())?.files;
    if files > before.files + kept + SPARE_FILES {
        left.push(format!(
            "{files} open files, {} before the load, {kept} kept connections",
            before.files
        ));
    }
    Ok(left)
}

/// Go's poller, the admin connection that asks, and what starts with the first request.
const SPARE_FILES: u64 = 12;

/// What memory may grow by in the second half of the time: the guests' heaps settle, and so much for each request. So a
/// leak of 1 KiB for each request shows within half a minute, one of 128 bytes after some 15,000 requests in that half.
const SETTLES_KIB: f64 = 1024.0;
const PER_REQUEST_BYTES: f64 = 64.0;

/// Memory may settle, but not grow for ever.
fn memory(report: &Report, time: Duration) -> Result<()> {
    if time < Duration::from_secs(20) {
        return Ok(());
    }
    let allowed = report.rss_kib_first + report.rss_kib_first / 10 + 4096;
    ensure!(
        report.rss_kib_last <= allowed,
        "memory grew from {} to {} KiB, {:+.1} KiB/s in the second half",
        report.rss_kib_first,
        report.rss_kib_last,
        report.rss_kib_per_second
    );
    let half = (report.answered + report.aborted) as f64 / 2.0;
    let grown = report.rss_kib_per_second * report.seconds / 2.0;
    let allowed = SETTLES_KIB + half * PER_REQUEST_BYTES / 1024.0;
    ensure!(
        grown <= allowed,
        "memory grew by {grown:.0} KiB in the second half of the time, {:.0} bytes for each of {half:.0} requests; \
         at most {allowed:.0} KiB expected",
        grown * 1024.0 / half
    );
    Ok(())
}

/// A request that runs when the proxy is told to end is finished.
async fn drained(host: &mut Host) -> Result<()> {
    let address = host.listener("main")?;
    let mut connection = Connection::open(address, Protocol::Http1).await?;
    let request = Request::get(format!("http://{address}/soak/wait"))
        .header("authorization", "Bearer good-last")
        .header("x-wait", "500")
        .body(client::no_body())?;
    let running = tokio::spawn(async move { connection.ask(request).await });
    while host.metric("pxg_requests_active").await? == 0.0 {
        ensure!(
            !running.is_finished(),
            "the last request ended before the drain"
        );
    }
    let ended = host.drain(Duration::from_secs(10)).await?;
    let answer = running
        .await?
        .context("the request that ran during the drain")?;
    ensure!(
        answer.status == 200,
        "the request that ran during the drain got {}",
        answer.status
    );
    ensure!(ended.success(), "pxg-host drained and ended with {ended}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(seconds("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(seconds("2m"), Ok(Duration::from_secs(120)));
        assert!(seconds("30").is_err() && seconds("0s").is_err() && seconds("xs").is_err());
    }

    #[test]
    fn memory_that_grows_is_seen() {
        let driven = Driven {
            taken: 0,
            refused: 0,
            rss: (0..40)
                .map(|i| (f64::from(i), 20_000.0 + 300.0 * f64::from(i)))
                .collect(),
        };
        let (first, last, growth) = driven.memory();
        assert_eq!((first, last), (24_500, 30_500));
        assert!((growth - 300.0).abs() < 1e-6);
    }

    #[test]
    fn a_leak_for_each_request_is_an_error() {
        // As a soak of half a minute saw it, without and with 128 bytes that each request left behind.
        let report = |last, growth| Report {
            seconds: 30.0,
            seed: 7,
            answered: 33_000,
            aborted: 3_600,
            failed: 0,
            reloads_taken: 24,
            reloads_refused: 6,
            rss_kib_first: 41_000,
            rss_kib_last: last,
            rss_kib_per_second: growth,
            threads: 14,
        };
        let time = Duration::from_secs(30);
        assert!(memory(&report(41_200, 2.6), time).is_ok());
        let error = memory(&report(45_700, 173.3), time).unwrap_err();
        assert!(error.to_string().contains("145 bytes for each"), "{error}");
        let error = memory(&report(60_000, 0.0), time).unwrap_err();
        assert!(error.to_string().contains("from 41000 to 60000"), "{error}");
    }
}
