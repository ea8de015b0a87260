//! What a call into a guest costs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::criterion::{self, Time};
use crate::lab::{Lab, Step};
use crate::proc::stdout_of;
use crate::root::{logs, root, target};

/// Most instructions of a C or Rust guest for 20 fields read and 3 changes, the call included.
const GATE: u64 = 400;
/// Calls of one timed run, and how many runs.
const CALLS: &str = "2000000";
const RUNS: usize = 9;
/// The benches of criterion that are looked at.
const BENCHES: [&str; 3] = ["boundary", "engine", "round"];

/// A line of the result.
#[derive(Debug, Serialize)]
struct Row {
    what: String,
    measured: f64,
    unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<[f64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<f64>,
    /// A missed one is an error.
    gate: bool,
}

impl Row {
    fn new(what: impl Into<String>, measured: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            measured,
            unit,
            interval: None,
            target: None,
            gate: false,
        }
    }

    fn of(what: impl Into<String>, time: Time) -> Self {
        Self {
            interval: Some(time.interval),
            ..Self::new(what, time.median, "ns")
        }
    }

    fn at_most(self, target: f64) -> Self {
        Self {
            target: Some(target),
            ..self
        }
    }

    fn gate(self) -> Self {
        Self { gate: true, ..self }
    }

    fn missed(&self) -> bool {
        self.target.is_some_and(|target| self.measured > target)
    }

    fn line(&self) -> String {
        let number = |n: f64| match self.unit {
            "ns" | "KiB" | "%" => format!("{n:.1}"),
            _ => format!("{n:.0}"),
        };
        let interval = self.interval.map_or_else(String::new, |[low, high]| {
            format!("[{}, {}]", number(low), number(high))
        });
        let target = self
            .target
            .map_or_else(String::new, |t| format!("<= {}", number(t)));
        let verdict = match (self.target, self.missed(), self.gate) {
            (None, ..) => "",
            (_, false, true) => "met (gate)",
            (_, true, true) => "MISSED (gate)",
            (_, false, false) => "met",
            (_, true, false) => "missed",
        };
        format!(
            "{:66} {:>9} {:12} {interval:18} {target:>10}  {verdict}",
            self.what,
            number(self.measured),
            self.unit
        )
    }
}

pub(super) fn run(lab: &Lab, quick: bool, json: Option<&Path>) -> Result<()> {
    lab.build(steps(lab))?;
    if !quick {
        lab.build(
            BENCHES
                .map(|name| ("and running criterion's measurements", bench(lab, name)))
                .into(),
        )?;
    }
    let mut rows = Vec::new();
    for (language, guest) in [("C", lab.c("bench_guest.so")), ("Rust", lab.rust())] {
        rows.extend(guest_side(lab, language, &guest)?);
    }
    rows.extend(go(lab)?);
    if !quick {
        rows.extend(whole_round()?);
    }
    rows.extend(memory(lab)?);
    println!();
    println!(
        "{:66} {:>9} {:12} {:18} {:>10}  verdict",
        "what", "measured", "", "95 %", "target"
    );
    for row in &rows {
        println!("{}", row.line());
    }
    if let Some(file) = json {
        super::write_json(file, &rows)?;
    }
    let missed: Vec<_> = rows
        .iter()
        .filter(|r| r.gate && r.missed())
        .map(|r| r.what.as_str())
        .collect();
    ensure!(missed.is_empty(), "missed: {}", missed.join("; "));
    Ok(())
}

fn go_guest() -> PathBuf {
    target().join("guests/go-boundary.so")
}

fn minihost() -> PathBuf {
    target().join("guests/minihost")
}

/// The Go guest of the SDK's own boundary tests, and their host in C.
fn steps(lab: &Lab) -> Vec<Step> {
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

fn bench(lab: &Lab, name: &str) -> Command {
    let mut command = lab.command(".", "cargo");
    command.args([
        "bench",
        "--locked",
        "-p",
        "proxy-golang-host",
        "--bench",
        name,
        "--",
    ]);
    command.args(["--warm-up-time", "1", "--measurement-time", "2", "--noplot"]);
    command
}

#[derive(Deserialize)]
struct Timed {
    ns: f64,
    empty_ns: f64,
    allocations: u64,
    operations: u64,
}

/// The guest alone: 20 fields read, 3 changes.
fn guest_side(lab: &Lab, language: &str, guest: &Path) -> Result<[Row; 3]> {
    let boundary = lab.c("boundary");
    let mut over = Vec::new();
    let mut allocations = 0;
    for _ in 0..RUNS {
        let mut command = lab.command(".", &boundary);
        let text = output(command.arg(guest).args(["bench-headers", CALLS]))?;
        let timed: Timed = serde_json::from_str(&text).with_context(|| format!("read {text}"))?;
        ensure!(
            timed.operations == 3,
            "{language}: {} operations, not 3",
            timed.operations
        );
        over.push(timed.ns - timed.empty_ns);
        allocations = allocations.max(timed.allocations);
    }
    over.sort_by(f64::total_cmp);
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
    #[allow(clippy::cast_precision_loss)]
    let (instructions, allocated) = (instructions as f64, allocations as f64);
    Ok([
        Row::new(what.clone(), instructions, "instructions")
            .at_most(GATE as f64)
            .gate(),
        Row {
            interval: Some([over[1], over[RUNS - 2]]),
            ..Row::new(format!("{what}: over an empty call"), over[RUNS / 2], "ns")
        },
        Row::new(
            format!("{what}: in {CALLS} calls"),
            allocated,
            "allocations",
        )
        .at_most(0.0)
        .gate(),
    ])
}

/// The Go SDK, by its own measurement.
fn go(lab: &Lab) -> Result<Vec<Row>> {
    let mut command = lab.command(".", minihost());
    let text = output(command.arg(go_guest()).arg("bench"))?;
    // Noise only adds: the least of the runs.
    let least = |name: &str| -> Result<f64> {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix("min"));
        let value = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        value.with_context(|| format!("no least time of {name} in:\n{text}"))
    };
    let empty = least("empty call")?;
    let per_call = text
        .lines()
        .find_map(|line| line.strip_prefix("allocations per call: "));
    let allocations: f64 = per_call
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("no allocations in:\n{text}"))?;
    Ok(vec![
        Row::new("Go, an empty call without the SDK", empty, "ns"),
        Row::new(
            "Go SDK, a filter that does nothing: over the empty call",
            least("test-nothing")? - empty,
            "ns",
        ),
        Row::new(
            "Go SDK, 20 fields read: over the empty call",
            least("test-read20")? - empty,
            "ns",
        ),
        Row::new(
            "Go SDK, 20 fields read, 3 changes: over the empty call",
            least("test-read20-set3")? - empty,
            "ns",
        )
        .at_most(70.0),
        // The runtime's own few are in this figure.
        Row::new(
            "Go SDK, the same: in 1,000 calls",
            (allocations * 1000.0).floor(),
            "allocations",
        )
        .at_most(0.0)
        .gate(),
    ])
}

/// The host's side, by criterion.
fn whole_round() -> Result<Vec<Row>> {
    let found = criterion::read(&target().join("criterion"))?;
    let time = |name: &str| -> Result<Time> {
        let of_name = found.iter().find(|(n, _)| n == name);
        of_name.map(|(_, time)| *time).with_context(|| {
            let names: Vec<_> = found.iter().map(|(n, _)| n.as_str()).collect();
            format!("criterion measured no {name:?} but {names:?}")
        })
    };
    let (small, large) = (
        time("engine/a chunk of 1 KB")?,
        time("engine/a chunk of 1 MB")?,
    );
    Ok(vec![
        Row::of(
            "boundary, C guest: an empty call from the host",
            time("boundary/empty")?,
        ),
        Row::of(
            "boundary, C guest: 20 fields read, 3 operations decoded",
            time("boundary/read_20_fields_decode_3_changes")?,
        ),
        Row::of(
            "round on a field list: the floor, no engine",
            time("round/floor, field list")?,
        ),
        Row::of(
            "round on a field list, C guest, 3 operations",
            time("round/field list/3 operations")?,
        )
        .at_most(100.0),
        Row::of(
            "round on hyper's header map: the floor, no engine",
            time("round/floor, header map")?,
        ),
        Row::of(
            "round on hyper's header map, C guest, 3 operations",
            time("round/header map/3 operations")?,
        )
        .at_most(250.0),
        Row::of(
            "the same with the histogram of times",
            time("round/header map/3 operations, timed")?,
        ),
        Row::of(
            "headers of a phase nobody subscribed to (0 crossings)",
            time("round/header map/unsubscribed")?,
        ),
        Row::of("a body chunk of 1 KB through the engine", small),
        Row::of("a body chunk of 1 MB through the engine", large).at_most(small.median * 1.1 + 2.0),
    ])
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
    Lab::run(lab.laboratory().arg("memory").arg("--json").arg(&file))?;
    let text =
        std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let memory: Memory = serde_json::from_str(&text)?;
    let mut rows = Vec::new();
    for idle in &memory.idle {
        rows.push(if rows.is_empty() {
            Row::new("pxg-host without a guest: resident", idle.rss_kib, "KiB")
        } else {
            let what = format!(
                "idle guest, {}: more resident ({:+} threads, {:+.0} KiB private)",
                idle.guest, idle.more_threads, idle.more_private_kib
            );
            Row::new(what, idle.more_rss_kib, "KiB")
        });
    }
    for waiting in &memory.waiting {
        let what = format!(
            "a request that waits for {}, of {}",
            waiting.r#for, waiting.streams
        );
        rows.push(Row::new(what, waiting.kib_each, "KiB"));
    }
    Ok(rows)
}

/// What a command prints. Its errors go to this terminal.
fn output(command: &mut Command) -> Result<String> {
    match stdout_of(command) {
        Some(text) => Ok(text),
        None => bail!(
            "{command:?} in {} failed: run it to see why",
            root().display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_missed_above_its_target_only() {
        let row = |measured| {
            Row::new("C guest", measured, "instructions")
                .at_most(400.0)
                .gate()
        };
        assert!(!row(400.0).missed() && row(400.0).line().ends_with("met (gate)"));
        assert!(row(401.0).missed() && row(401.0).line().ends_with("MISSED (gate)"));
        assert!(!Row::new("time", 5.0, "ns").missed());
    }
}
