//! `pxg-host` against itself: what filters cost, in processor time per request of all its threads.
//!
//! Each variant is a process of its own with one worker on one processor; load and upstream have another one. A round of
//! a variant is four runs, plain - variant - variant - plain, so that what drifts slowly is in both; its figure is the
//! ratio of the processor time per request. What is told is the median of the rounds with the interval that covers it
//! with 95 %. Plain against a second plain process, measured the same way, says what the noise is.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;
use serde::Serialize;
use tokio::task::LocalSet;

use crate::flat::{self, Load};
use crate::host::{Built, Host};
use crate::paint::{Paint, time};
use crate::process::{CpuClock, pin};
use crate::stats::{Estimate, Verdict, quantile};

/// Measure what filters cost the proxy
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    built: Built,
    /// Rounds of each variant
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// Milliseconds of one of the four runs of a round
    #[arg(long, default_value_t = 250)]
    run_ms: u64,
    /// Connections
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Only variants whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Also write what was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Where the proxy runs, and where everything else does.
const WORKER: usize = 0;
const OTHERS: usize = 1;

/// A load runs for so long before it is measured.
const LEAD: Duration = Duration::from_millis(30);

/// What is compared with plain.
struct Variant {
    name: &'static str,
    /// Most that the processor time may be, as a ratio to plain.
    target: Option<f64>,
    /// The mixed load is of interest.
    mixed: bool,
    guest: Guest,
    filter: &'static str,
    config: &'static str,
}

#[derive(Clone, Copy)]
enum Guest {
    None,
    C,
    Go,
    GoExamples,
}

const VARIANTS: &[Variant] = &[
    Variant {
        name: "no filter, a second process",
        target: None,
        mixed: false,
        guest: Guest::None,
        filter: "",
        config: "",
    },
    Variant {
        name: "C, sets a header",
        target: Some(1.03),
        mixed: false,
        guest: Guest::C,
        filter: "header-policy",
        config: "request set x-bench 0123456789abcdef",
    },
    Variant {
        name: "Go, sets a header",
        target: Some(1.06),
        mixed: false,
        guest: Guest::Go,
        filter: "bench-sync",
        config: "",
    },
    Variant {
        name: "Go, trace-id: both ways, random",
        target: None,
        mixed: false,
        guest: Guest::GoExamples,
        filter: "trace-id",
        config: "",
    },
    Variant {
        name: "Go async, on the ring",
        target: Some(1.12),
        mixed: true,
        guest: Guest::Go,
        filter: "bench-ring",
        config: "",
    },
    Variant {
        name: "Go async, a goroutine each",
        target: Some(1.18),
        mixed: true,
        guest: Guest::Go,
        filter: "bench-goroutine",
        config: "",
    },
];

/// Most that a probe's median time may be, as a ratio to that of a plain probe.
const MIXED_TARGET: f64 = 2.0;

/// A row of the result.
#[derive(Debug, Serialize)]
struct Row {
    what: String,
    ratio: Estimate,
    target: Option<f64>,
    verdict: Option<Verdict>,
    #[serde(flatten)]
    more: More,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum More {
    Cost {
        /// Least processor time per request over plain's least.
        ratio_of_least: f64,
        /// Requests per second over plain's.
        throughput: Estimate,
        cpu_ns_per_request: f64,
        plain_cpu_ns_per_request: f64,
        plain_requests_per_second: f64,
        /// Share of the time that the process was running while plain.
        plain_busy: f64,
    },
    Mixed {
        p50_ns: u64,
        plain_p50_ns: u64,
        p99_ns: u64,
        plain_p99_ns: u64,
        flood_requests_per_second: f64,
    },
}

#[derive(Debug, Serialize)]
struct Report {
    machine: String,
    /// Share of all processors' time that other processes had.
    others: f64,
    rounds: usize,
    run_ms: u64,
    connections: usize,
    rows: Vec<Row>,
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    let processors = std::thread::available_parallelism()?.get();
    ensure!(
        processors > OTHERS,
        "this machine offers {processors} processor; two are needed: one for the proxy, one for load and upstream"
    );
    ensure!(args.rounds > 0, "--rounds 0: at least one is needed");
    pin(OTHERS)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, measure(args, processors))
}

/// A running variant with its load.
struct Subject {
    host: Host,
    clock: CpuClock,
    load: Load,
    runs: Vec<Run>,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    requests: f64,
    cpu: Duration,
    wall: Duration,
}

impl Run {
    fn cost(self) -> f64 {
        self.cpu.as_nanos() as f64 / self.requests
    }

    fn and(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            cpu: self.cpu + other.cpu,
            wall: self.wall + other.wall,
        }
    }

    fn rate(self) -> f64 {
        self.requests / self.wall.as_secs_f64()
    }
}

impl Subject {
    async fn start(
        args: &Args,
        folder: &Path,
        number: usize,
        variant: Option<&Variant>,
    ) -> Result<Self> {
        let upstream = flat::upstream().await?;
        let file = folder.join(format!("{number}.toml"));
        std::fs::write(&file, config(&args.built, &upstream.to_string(), variant))?;
        // A child runs where the thread does that starts it.
        pin(WORKER)?;
        let host = Host::start(
            &args.built.host,
            &file,
            &folder.join(format!("{number}.log")),
        )
        .await;
        pin(OTHERS)?;
        let host = host?;
        let load = Load::open(host.listener("main")?, "/filtered", args.connections).await?;
        Ok(Self {
            clock: CpuClock::of(host.pid())?,
            host,
            load,
            runs: Vec::new(),
        })
    }

    async fn run(&mut self, time: Duration) -> Result<Run> {
        let load = &mut self.load;
        load.start(false);
        tokio::time::sleep(LEAD).await;
        let begin = (Instant::now(), load.done(), self.clock.now()?);
        tokio::time::sleep(time).await;
        let (wall, done, cpu) = (
            begin.0.elapsed(),
            load.done() - begin.1,
            self.clock.now()? - begin.2,
        );
        load.stop().await?;
        ensure!(done > 0, "no request was answered in {time:?}");
        let run = Run {
            requests: done as f64,
            cpu,
            wall,
        };
        self.runs.push(run);
        Ok(run)
    }

    fn least(&self) -> f64 {
        self.runs
            .iter()
            .map(|r| r.cost())
            .fold(f64::INFINITY, f64::min)
    }
}

fn config(built: &Built, upstream: &str, variant: Option<&Variant>) -> String {
    let mut text = format!(
        r#"workers = 1

[log]
level = "warn"

[admin]
address = "127.0.0.1:0"

[[listeners]]
name = "main"
address = "127.0.0.1:0"
limits = {{ idle_timeout = "1h", header_timeout = "1h" }}

[[clusters]]
name = "upstream"
endpoints = ["{upstream}"]
idle_timeout = "1h"
"#
    );
    let guest = variant.and_then(|v| {
        let library = match v.guest {
            Guest::None => return None,
            Guest::C => &built.c,
            Guest::Go => &built.go_bench,
            Guest::GoExamples => &built.go,
        };
        Some((v, Built::toml(library)))
    });
    let mut filters = String::new();
    if let Some((variant, library)) = guest {
        text += &format!(
            "\n[[guests]]\nname = \"guest\"\npath = {library}\n\n[[filters]]\nname = \"it\"\nguest = \"guest\"\nfilter = {:?}\n",
            variant.filter
        );
        if !variant.config.is_empty() {
            text += &format!("config = {:?}\n", variant.config);
        }
        filters = "filters = [\"it\"]\n".into();
    }
    text += "\n[[virtual_hosts]]\nname = \"all\"\nhosts = [\"*\"]\n";
    for (name, filters) in [("filtered", filters.as_str()), ("plain", "")] {
        text += &format!(
            "\n[[virtual_hosts.routes]]\nname = \"{name}\"\nprefix = \"/{name}\"\ncluster = \"upstream\"\n{filters}"
        );
    }
    text
}

async fn measure(args: &Args, processors: usize) -> Result<()> {
    let paint = Paint::stdout();
    let folder = tempfile::tempdir()?;
    let wanted = |v: &&Variant| {
        let only = args.only.as_deref().unwrap_or("");
        v.name.contains(only) || matches!(v.guest, Guest::None)
    };
    let variants: Vec<_> = VARIANTS.iter().filter(wanted).collect();
    let run = Duration::from_millis(args.run_ms);
    let machine = machine();
    println!("{machine}");
    println!(
        "{} rounds of 4 x {} ms each, {} connections, a GET with 7 fields and an answer of 13 bytes",
        args.rounds, args.run_ms, args.connections
    );
    println!(
        "pxg-host on processor {WORKER} with one worker, load and upstream on processor {OTHERS}"
    );
    let mut plain = Subject::start(args, folder.path(), 0, None).await?;
    let mut subjects = Vec::new();
    for (i, variant) in variants.iter().enumerate() {
        subjects.push(
            Subject::start(args, folder.path(), i + 1, Some(variant))
                .await
                .with_context(|| variant.name)?,
        );
    }
    for subject in subjects.iter_mut().chain([&mut plain]) {
        subject.run(Duration::from_millis(500)).await?;
        subject.runs.clear();
    }
    let clocks: Vec<_> = subjects
        .iter()
        .map(|s| s.clock)
        .chain([plain.clock, CpuClock::of(Pid::this())?])
        .collect();
    let before = (Instant::now(), busy()?, sum(&clocks)?);
    let mut rounds: Vec<Vec<(Run, Run)>> = vec![Vec::new(); subjects.len()];
    for round in 0..args.rounds {
        progress(&format!("round {}/{}", round + 1, args.rounds));
        // Not always the same one after the same one.
        for i in 0..variants.len() {
            let i = (i + round) % variants.len();
            let first = plain.run(run).await?;
            let variant = subjects[i].run(run).await?.and(subjects[i].run(run).await?);
            rounds[i].push((first.and(plain.run(run).await?), variant));
        }
    }
    let ours = sum(&clocks)? - before.2;
    let all = before.0.elapsed().as_secs_f64() * processors as f64;
    let others = (busy()?.saturating_sub(before.1).saturating_sub(ours)).as_secs_f64() / all;
    let mut rows = Vec::new();
    for ((variant, subject), rounds) in variants.iter().zip(&subjects).zip(&rounds) {
        rows.push(cost(variant, subject, &plain, rounds));
    }
    for (variant, subject) in variants.iter().zip(&subjects).filter(|(v, _)| v.mixed) {
        progress("mixed load");
        rows.push(
            mixed(args, variant.name, subject, run)
                .await
                .with_context(|| variant.name)?,
        );
    }
    progress("");
    let report = Report {
        machine,
        others,
        rounds: args.rounds,
        run_ms: args.run_ms,
        connections: args.connections,
        rows,
    };
    table(paint, &report);
    if let Some(file) = &args.json {
        std::fs::write(file, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

fn sum(clocks: &[CpuClock]) -> Result<Duration> {
    clocks.iter().map(|clock| clock.now()).sum()
}

/// Time that all processors together were not idle since the machine started.
pub(crate) fn busy() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let line = stat
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("cpu "));
    let fields: Vec<u64> = line
        .context("/proc/stat begins with the sum of all processors")?
        .split_whitespace()
        .map(|field| field.parse().context("read /proc/stat"))
        .collect::<Result<_>>()?;
    ensure!(fields.len() >= 8, "/proc/stat has {} columns", fields.len());
    // user nice system idle iowait irq softirq steal, in hundredths of a second
    let ticks = fields[..3].iter().chain(&fields[5..8]).sum::<u64>();
    Ok(Duration::from_millis(ticks * 10))
}

/// On a terminal one line, written over; else nothing.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{text:20}");
        if text.is_empty() {
            eprint!("\r");
        }
    }
}

fn cost(variant: &Variant, subject: &Subject, plain: &Subject, rounds: &[(Run, Run)]) -> Row {
    let of =
        |f: &dyn Fn(&(Run, Run)) -> f64| Estimate::of(&rounds.iter().map(f).collect::<Vec<_>>());
    let ratio = of(&|(plain, variant)| variant.cost() / plain.cost());
    Row {
        what: variant.name.to_owned(),
        ratio,
        target: variant.target,
        verdict: variant.target.map(|t| ratio.against(t)),
        more: More::Cost {
            ratio_of_least: subject.least() / plain.least(),
            throughput: of(&|(plain, variant)| variant.rate() / plain.rate()),
            cpu_ns_per_request: of(&|(_, variant)| variant.cost()).median,
            plain_cpu_ns_per_request: of(&|(plain, _)| plain.cost()).median,
            plain_requests_per_second: of(&|(plain, _)| plain.rate()).median,
            plain_busy: of(&|(plain, _)| plain.cpu.as_secs_f64() / plain.wall.as_secs_f64()).median,
        },
    }
}

/// One connection through the filter while others, unfiltered, keep the worker busy.
async fn mixed(args: &Args, name: &str, subject: &Subject, run: Duration) -> Result<Row> {
    let address = subject.host.listener("main")?;
    let mut flood = Load::open(address, "/plain", args.connections).await?;
    let mut probes = [
        Load::open(address, "/plain", 1).await?,
        Load::open(address, "/filtered", 1).await?,
    ];
    flood.start(false);
    tokio::time::sleep(LEAD).await;
    let (begin, before) = (Instant::now(), flood.done());
    let mut all: [Vec<u64>; 2] = Default::default();
    let mut ratios = Vec::new();
    for _ in 0..args.rounds {
        let mut round: [Vec<u64>; 2] = Default::default();
        for which in [0, 1, 1, 0] {
            probes[which].start(true);
            tokio::time::sleep(run).await;
            round[which].extend(probes[which].stop().await?);
        }
        for times in &mut round {
            ensure!(!times.is_empty(), "a probe got no answer in {run:?}");
            times.sort_unstable();
        }
        ratios.push(quantile(&round[1], 0.5) as f64 / quantile(&round[0], 0.5) as f64);
        for (all, round) in all.iter_mut().zip(round) {
            all.extend(round);
        }
    }
    let rate = (flood.done() - before) as f64 / begin.elapsed().as_secs_f64();
    flood.stop().await?;
    for times in &mut all {
        times.sort_unstable();
    }
    let ratio = Estimate::of(&ratios);
    Ok(Row {
        what: format!("{name}: p50 of a probe under mixed load"),
        ratio,
        target: Some(MIXED_TARGET),
        verdict: Some(ratio.against(MIXED_TARGET)),
        more: More::Mixed {
            p50_ns: quantile(&all[1], 0.5),
            plain_p50_ns: quantile(&all[0], 0.5),
            p99_ns: quantile(&all[1], 0.99),
            plain_p99_ns: quantile(&all[0], 0.99),
            flood_requests_per_second: rate,
        },
    })
}

/// Most of the processors' time that others may have had for a measurement to be worth something.
const QUIET: f64 = 0.05;

fn table(paint: Paint, report: &Report) {
    if report.others > QUIET {
        println!();
        println!(
            "{}",
            paint.red(
                format!(
                    "Other processes had {:.0} % of the processors meanwhile. The figures below say little; run this again \
                     when the machine is quiet.",
                    report.others * 100.0
                )
            )
        );
    }
    println!();
    println!(
        "{:58} {:22} {:>7}  verdict",
        "ratio to no filter", "median [95 % interval]", "target"
    );
    for row in &report.rows {
        let [low, high] = row.ratio.interval;
        let target = row.target.map_or_else(String::new, |t| format!("<={t:.2}"));
        let verdict = match row.verdict {
            None => String::new(),
            Some(v @ (Verdict::Met | Verdict::MetByMedian)) => paint.green(v.text()),
            Some(v) => paint.red(v.text()),
        };
        println!(
            "{:58} {:5.3} [{low:5.3}, {high:5.3}]   {target:>7}  {verdict}",
            row.what, row.ratio.median
        );
    }
    println!();
    for row in &report.rows {
        match &row.more {
            More::Cost {
                ratio_of_least,
                throughput,
                cpu_ns_per_request,
                plain_cpu_ns_per_request,
                plain_requests_per_second,
                plain_busy,
            } => println!(
                "{:34} {cpu_ns_per_request:6.0} ns of processor per request against {plain_cpu_ns_per_request:6.0}; \
                 least/least {ratio_of_least:5.3}; requests/s x{:5.3} of {plain_requests_per_second:.0}, worker busy {:.0} %",
                row.what,
                throughput.median,
                plain_busy * 100.0
            ),
            More::Mixed {
                p50_ns,
                plain_p50_ns,
                p99_ns,
                plain_p99_ns,
                flood_requests_per_second,
            } => println!(
                "{:58} p50 {} against {}, p99 {} against {}, {flood_requests_per_second:.0} others/s",
                row.what,
                time(*p50_ns),
                time(*plain_p50_ns),
                time(*p99_ns),
                time(*plain_p99_ns)
            ),
        }
    }
}

/// What the figures were measured on.
#[must_use]
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    let processors = info
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let virtual_machine = if info.contains("hypervisor") {
        ", virtual machine"
    } else {
        ""
    };
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{model}, {processors} processors{virtual_machine}, Linux {}",
        kernel.trim()
    )
}
