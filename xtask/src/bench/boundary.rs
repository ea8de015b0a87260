//! What a call into a guest costs.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::criterion::{self, Time};
use super::row::{self, Row};
use super::stats::Estimate;
use crate::lab::{Lab, Step};
use crate::proc::stdout_of;
use crate::root::{logs, root, target};

/// Most instructions of a C or Rust guest for 20 fields read and 3 changes, the call included.
const GATE: f64 = 400.0;
/// Calls of one timed run, and how many runs.
const CALLS: &str = "1000000";
const RUNS: usize = 15;
/// Calls of each case whose instructions are counted.
const COUNTED: u64 = 200;
/// The benches of criterion, and which of their measurements are of interest.
const TIMED: [(&str, &str); 3] = [
    ("boundary", "empty|decode"),
    ("engine", "a chunk"),
    ("round", ""),
];
const COUNTS: &str = "instructions";

#[derive(Serialize)]
struct Report<'a> {
    /// Changes when a reader must change.
    version: u32,
    commit: Option<String>,
    machine: Machine,
    counted: &'a [Row],
    timed: &'a [Row],
    memory: &'a [Row],
}

#[derive(Serialize)]
struct Machine {
    processor: String,
    processors: usize,
    kernel: String,
    /// Processes that wanted a processor, over the last minute and at the start.
    load: f64,
    rust: Option<String>,
    go: Option<String>,
}

pub(super) fn run(lab: &Lab, quick: bool, json: Option<&Path>) -> Result<()> {
    let machine = machine(lab);
    let mut steps = lab.guest_steps();
    steps.extend(lab.bench_steps());
    steps.extend(steps_of_go(lab));
    lab.build(steps)?;
    let names: Vec<_> = TIMED
        .iter()
        .map(|(name, _)| *name)
        .chain([COUNTS])
        .collect();
    let built = lab.benches(&names)?;
    let bench = |name: &str| {
        let found = built.get(name);
        found.with_context(|| format!("cargo built no bench {name:?} but {:?}", built.keys()))
    };

    let (mut counted, mut timed) = (Vec::new(), Vec::new());
    for (language, guest) in [("C", lab.c("bench_guest.so")), ("Rust", lab.rust())] {
        measure(&format!("the guest in {language}"), || {
            guest_side(lab, language, &guest, &mut counted, &mut timed)
        })?;
    }
    measure("the guest in Go", || go(lab, &mut counted, &mut timed))?;
    measure("the engine's instructions", || {
        engine(lab, bench(COUNTS)?, &mut counted)
    })?;
    if !quick {
        for (name, filter) in TIMED {
            measure(&format!("times of {name}"), || {
                let mut command = lab.command("host-ref", bench(name)?);
                command.args(["--bench", "--noplot", "--quiet"]);
                command.args(["--warm-up-time", "1", "--measurement-time", "2"]);
                command.env("CRITERION_HOME", target().join("criterion"));
                output(command.arg(filter)).map(drop)
            })?;
        }
        whole_round(&mut timed)?;
    }
    let memory = measure("memory", || memory(lab))?;

    println!("\n{}", machine.line());
    row::print("counts: the same on any machine", &counted);
    row::print("times: of this machine", &timed);
    row::print("memory", &memory);
    if let Some(file) = json {
        let report = Report {
            version: 1,
            commit: stdout_of(lab.command(".", "git").args(["rev-parse", "HEAD"]))
                .map(|text| text.trim().into()),
            machine,
            counted: &counted,
            timed: &timed,
            memory: &memory,
        };
        super::write_json(file, &report)?;
    }
    let missed: Vec<_> = counted.iter().filter_map(Row::failure).collect();
    ensure!(missed.is_empty(), "gate missed: {}", missed.join("; "));
    Ok(())
}

/// Does it with a line of progress.
fn measure<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    print!("measuring {what} ... ");
    std::io::stdout().flush()?;
    let begin = Instant::now();
    match work() {
        Ok(done) => {
            println!("{:.1} s", begin.elapsed().as_secs_f64());
            Ok(done)
        }
        Err(error) => {
            println!("failed");
            Err(error.context(format!("measure {what}")))
        }
    }
}

fn go_guest() -> PathBuf {
    target().join("guests/go-boundary.so")
}

fn minihost() -> PathBuf {
    target().join("guests/minihost")
}

/// The Go guest of the SDK's own boundary tests, and their host in C.
fn steps_of_go(lab: &Lab) -> Vec<Step> {
    let folder = "guest-sdk/go/internal/cabi/testdata";
    let guest = lab.go_library(
        "guest-sdk/go",
        "./internal/cabi/testdata/guest",
        &go_guest(),
    );
    let mut host = lab.command(folder, "cc");
    host.args([
        "-O2",
        "-g",
        "-std=gnu11",
        "minihost.c",
        "-ldl",
        "-lpthread",
        "-o",
    ]);
    host.arg(minihost());
    vec![
        ("the boundary's guest in Go", guest),
        ("its host in C", host),
    ]
}

/// Times over those of a base, each of the same run.
fn over(what: impl Into<String>, times: &[f64], base: &[f64]) -> Row {
    let differences: Vec<_> = times.iter().zip(base).map(|(t, b)| t - b).collect();
    let Estimate {
        median, interval, ..
    } = Estimate::of(&differences);
    let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    Row::time(what, median, interval).least(least(times) - least(base))
}

#[derive(Deserialize)]
struct Timed {
    ns: f64,
    empty_ns: f64,
    empty_again_ns: f64,
    allocations: u64,
    operations: u64,
}

/// The guest alone: 20 fields read, 3 changes.
#[allow(clippy::cast_precision_loss)] // figures in a report
fn guest_side(
    lab: &Lab,
    language: &str,
    guest: &Path,
    counted: &mut Vec<Row>,
    timed: &mut Vec<Row>,
) -> Result<()> {
    let boundary = lab.c("boundary");
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        let mut command = lab.command(".", &boundary);
        let text = output(command.arg(guest).args(["bench-headers", CALLS]))?;
        let run: Timed = serde_json::from_str(&text).with_context(|| format!("read {text}"))?;
        ensure!(
            run.operations == 3,
            "{language}: {} operations, not 3",
            run.operations
        );
        runs.push(run);
    }
    let mut command = lab.command("guest-sdk/c", "sh");
    command
        .arg("bench/instructions.sh")
        .arg(&boundary)
        .arg(guest)
        .arg("bench-headers");
    let text = output(&mut command)?;
    let instructions: u64 = text
        .trim()
        .parse()
        .with_context(|| format!("read {text}"))?;
    // Less than the fields have bytes to compare would be a measurement of nothing.
    ensure!(
        instructions > 60,
        "{language}: {instructions} instructions for 20 fields"
    );
    let what = format!("{language} guest, 20 fields read, 3 changes");
    let allocations = runs.iter().map(|run| run.allocations).max().unwrap_or(0);
    counted.push(
        Row::count(what.clone(), instructions as f64, "instructions")
            .at_most(GATE)
            .gate(),
    );
    counted.push(
        Row::count(
            format!("{what}: in {CALLS} calls"),
            allocations as f64,
            "allocations",
        )
        .at_most(0.0)
        .gate(),
    );
    let times = |of: fn(&Timed) -> f64| -> Vec<_> { runs.iter().map(of).collect() };
    let empty = times(|r| r.empty_ns);
    if timed.is_empty() {
        timed.push(over(
            "noise: an empty call in C, measured again, over the first",
            &times(|r| r.empty_again_ns),
            &empty,
        ));
    }
    timed.push(over(
        format!("{what}: over an empty call"),
        &times(|r| r.ns),
        &empty,
    ));
    Ok(())
}

/// The Go SDK, by its own measurement.
#[allow(clippy::cast_precision_loss)] // figures in a report
fn go(lab: &Lab, counted: &mut Vec<Row>, timed: &mut Vec<Row>) -> Result<()> {
    let text = output(lab.command(".", minihost()).arg(go_guest()).arg("bench"))?;
    let line = text.lines().find(|line| line.starts_with('{'));
    let line = line.with_context(|| format!("no line of JSON in:\n{text}"))?;
    let runs: BTreeMap<String, Vec<f64>> =
        serde_json::from_str(line).with_context(|| format!("read {line}"))?;
    let of = |name: &str| {
        let found = runs.get(name).filter(|values| !values.is_empty());
        found.with_context(|| format!("no {name:?} in {:?}", runs.keys()))
    };
    let empty = of("empty call")?;
    let over_empty = |what: &str, name: &str| -> Result<Row> { Ok(over(what, of(name)?, empty)) };
    let allocations: f64 = text
        .lines()
        .find_map(|line| line.strip_prefix("allocations per call: "))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("no allocations in:\n{text}"))?;
    // The runtime's own few are in this figure.
    counted.push(
        Row::count(
            "Go SDK, 20 fields read, 3 changes: in 1,000 calls",
            (allocations * 1000.0).floor(),
            "allocations",
        )
        .at_most(0.0)
        .gate(),
    );
    // Needs ptrace, which not every container allows.
    let steps = |filter: &[&str]| -> Option<u64> {
        let mut command = lab.command(".", minihost());
        let text = stdout_of(command.arg(go_guest()).arg("steps").args(filter));
        text?.trim().parse().ok()
    };
    for (what, filter) in [
        ("a filter that does nothing", "test-nothing"),
        ("20 fields read, 3 changes", "test-read20-set3"),
    ] {
        match (steps(&[]), steps(&[filter])) {
            (Some(empty), Some(all)) => counted.push(Row::count(
                format!("Go SDK, {what}: over the empty call"),
                all.saturating_sub(empty) as f64,
                "instructions",
            )),
            _ => print!("(no instructions of Go: stepping through it is not allowed here) "),
        }
    }
    timed.extend([
        over(
            "Go, an empty call without the SDK",
            empty,
            &vec![0.0; empty.len()],
        ),
        over_empty(
            "noise: the same, measured again, over the first",
            "empty call again",
        )?,
        over_empty(
            "Go SDK, a filter that does nothing: over the empty call",
            "test-nothing",
        )?,
        over_empty("Go SDK, 20 fields read: over the empty call", "test-read20")?,
        over_empty(
            "Go SDK, 20 fields read, 3 changes: over the empty call",
            "test-read20-set3",
        )?
        .at_most(70.0),
    ]);
    Ok(())
}

/// Instructions of the host's side, by callgrind.
#[allow(clippy::cast_precision_loss)] // figures in a report
fn engine(lab: &Lab, bench: &Path, rows: &mut Vec<Row>) -> Result<()> {
    let count = |case: &str| -> Result<f64> {
        let mut command = lab.command("host-ref", "valgrind");
        command
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(format!("--toggle-collect=*{COUNTS}::measured*"))
            .arg(bench)
            .args([case, &COUNTED.to_string()])
            .stdin(std::process::Stdio::null());
        let done = command.output().context("start valgrind")?;
        let text = String::from_utf8_lossy(&done.stderr);
        let collected = text.lines().find_map(|line| {
            let (_, number) = line.split_once("Collected :")?;
            number.trim().parse::<u64>().ok()
        });
        match collected {
            Some(n) if done.status.success() && n > 0 => Ok((n as f64 / COUNTED as f64).round()),
            _ => bail!("{command:?}: {}, it counted nothing:\n{text}", done.status),
        }
    };
    for (what, case) in [
        (
            "boundary, C guest: an empty call from the host",
            "call-empty",
        ),
        (
            "boundary, C guest: 20 fields read, 3 operations decoded",
            "call",
        ),
        ("round on a field list: the floor, no engine", "floor-list"),
        ("round on a field list, C guest, 3 operations", "round-list"),
        (
            "round on hyper's header map: the floor, no engine",
            "floor-map",
        ),
        (
            "round on hyper's header map, C guest, 3 operations",
            "round-map",
        ),
        ("the same with the histogram of times", "round-map-timed"),
        (
            "headers of a phase nobody subscribed to, header map",
            "unsubscribed-map",
        ),
        ("an exchange without bodies, C guest", "life-map"),
        (
            "an exchange that nobody subscribed to",
            "life-unsubscribed-map",
        ),
        ("PENDING, completed and resumed, C guest", "pending-map"),
    ] {
        rows.push(Row::count(what, count(case)?, "instructions"));
    }
    let small = count("body-1k")?;
    rows.push(Row::count(
        "a body view of 1 KB through the engine",
        small,
        "instructions",
    ));
    // Not to the instruction: the allocator's own ways differ.
    rows.push(
        Row::count(
            "a body view of 1 MB through the engine",
            count("body-1m")?,
            "instructions",
        )
        .at_most((small * 1.02).round())
        .gate(),
    );
    Ok(())
}

/// Times of the host's side, by criterion.
fn whole_round(rows: &mut Vec<Row>) -> Result<()> {
    let found = criterion::read(&target().join("criterion"))?;
    let time = |name: &str| -> Result<Time> {
        let of_name = found.iter().find(|(n, _)| n == name);
        of_name.map(|(_, time)| *time).with_context(|| {
            let names: Vec<_> = found.iter().map(|(n, _)| n.as_str()).collect();
            format!("criterion measured no {name:?} but {names:?}")
        })
    };
    let small = time("engine/a chunk of 1 KB")?;
    for (what, name, target) in [
        (
            "boundary, C guest: an empty call from the host",
            "boundary/empty",
            None,
        ),
        (
            "noise: the same, measured again",
            "boundary/empty, again",
            None,
        ),
        (
            "boundary, C guest: 20 fields read, 3 operations decoded",
            "boundary/read_20_fields_decode_3_changes",
            None,
        ),
        (
            "round on a field list: the floor, no engine",
            "round/floor, field list",
            None,
        ),
        (
            "round on a field list, C guest, 3 operations",
            "round/field list/3 operations",
            Some(100.0),
        ),
        (
            "round on hyper's header map: the floor, no engine",
            "round/floor, header map",
            None,
        ),
        (
            "round on hyper's header map, C guest, 3 operations",
            "round/header map/3 operations",
            Some(250.0),
        ),
        (
            "the same with the histogram of times",
            "round/header map/3 operations, timed",
            None,
        ),
        (
            "headers of a phase nobody subscribed to (0 crossings)",
            "round/header map/unsubscribed",
            None,
        ),
        (
            "a body view of 1 KB through the engine",
            "engine/a chunk of 1 KB",
            None,
        ),
        (
            "a body view of 1 MB through the engine",
            "engine/a chunk of 1 MB",
            Some(small.median * 1.1),
        ),
    ] {
        let Time { median, interval } = time(name)?;
        let row = Row::time(what, median, interval);
        rows.push(match target {
            Some(target) => row.at_most(target),
            None => row,
        });
    }
    Ok(())
}

#[derive(Deserialize)]
struct Memory {
    idle: Vec<Idle>,
    waiting: Vec<Waiting>,
}

#[derive(Deserialize)]
struct Idle {
    guest: String,
    rss_kib: f64,
    more_rss_kib: f64,
    more_private_kib: f64,
    more_threads: i64,
}

#[derive(Deserialize)]
struct Waiting {
    r#for: String,
    streams: u64,
    kib_each: f64,
}

fn memory(lab: &Lab) -> Result<Vec<Row>> {
    let file = logs().join("memory.json");
    let mut command = lab.laboratory();
    output(command.arg("memory").arg("--json").arg(&file))?;
    let text =
        std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let memory: Memory = serde_json::from_str(&text)?;
    let mut rows = Vec::new();
    for idle in &memory.idle {
        rows.push(if rows.is_empty() {
            Row::count("pxg-host without a guest: resident", idle.rss_kib, "KiB")
        } else {
            let what = format!(
                "idle, {}: more ({:+.0} private, {:+} threads)",
                idle.guest, idle.more_private_kib, idle.more_threads
            );
            Row::count(what, idle.more_rss_kib, "KiB")
        });
    }
    for waiting in &memory.waiting {
        let what = format!(
            "a request that waits for {}, of {}",
            waiting.r#for, waiting.streams
        );
        rows.push(Row::count(what, waiting.kib_each, "KiB"));
    }
    Ok(rows)
}

fn machine(lab: &Lab) -> Machine {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| {
            Some(
                line.strip_prefix("model name")?
                    .split_once(':')?
                    .1
                    .trim()
                    .into(),
            )
        })
        .unwrap_or_else(|| std::env::consts::ARCH.into());
    let version = |tool: &str, arg: &str| {
        let text = stdout_of(lab.command(".", tool).arg(arg))?;
        Some(text.lines().next()?.trim().to_owned())
    };
    Machine {
        processor: model,
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        kernel: read("/proc/sys/kernel/osrelease").trim().into(),
        load: read("/proc/loadavg")
            .split(' ')
            .next()
            .and_then(|load| load.parse().ok())
            .unwrap_or(0.0),
        rust: version("rustc", "--version"),
        go: version("go", "version"),
    }
}

impl Machine {
    fn line(&self) -> String {
        let tools = [&self.rust, &self.go].map(|v| v.as_deref().unwrap_or("unknown version"));
        format!(
            "{}, {} processors, load {:.1} before this began; Linux {}; {}",
            self.processor,
            self.processors,
            self.load,
            self.kernel,
            tools.join("; ")
        )
    }
}

/// What a command prints. What it says of errors is told if it fails.
fn output(command: &mut Command) -> Result<String> {
    let done = command.stdin(std::process::Stdio::null()).output();
    let done = done.with_context(|| format!("start {}", command.get_program().display()))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    bail!(
        "{command:?} in {}: {}\n{}{}",
        root().display(),
        done.status,
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    )
}
