//! A stock Envoy with guests in it, against itself without, and against what else can be done there: Envoy's own filter,
//! Lua, WebAssembly, ext_proc, and Go's own reverse proxy instead of Envoy.
//!
//! Each variant is a process of its own with one worker on one processor; load and upstream have another one. In a round
//! the variants take turns with plain Envoy, so that each run stands between two plain ones; its figures are ratios to
//! those two. Processes are replaced by new ones every few rounds: where code and memory of one happen to lie is worth some
//! percent. What is told is the median of the rounds with the interval that covers it with 95 %.

mod instructions;
mod measure;
mod plot;
mod result;
mod server;
mod shape;
mod table;
mod upstream;
mod variant;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;
use serde::Serialize;
use tokio::task::LocalSet;

use crate::bench_host::{busy, machine};
use crate::process::{CpuClock, pin};
use measure::{Mixed, OTHERS, Subject, WORKER};
use result::{Measured, MixedRow, Row, Target};
use server::Under;
use shape::Shape;
use variant::{Built, VARIANTS, Variant};

/// Measure guests in a stock Envoy against plain Envoy, and against the alternatives
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    built: Built,
    /// Rounds
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// Milliseconds of each run
    #[arg(long, default_value_t = 250)]
    run_ms: u64,
    /// Start all processes anew after so many rounds
    #[arg(long, default_value_t = 3)]
    fresh: usize,
    /// Only rows whose name matches one of these, with * for anything; can be given several times
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Say which rows there are and measure none
    #[arg(long)]
    list: bool,
    /// Count instructions of so many requests by valgrind instead
    #[arg(long, value_name = "REQUESTS", num_args = 0..=1, default_missing_value = "1000")]
    instructions: Option<u64>,
    /// Also write what was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write table, plot and figures to this folder, as envoy.md, envoy.svg and envoy.json
    #[arg(long, value_name = "FOLDER")]
    save: Option<PathBuf>,
    /// Version of a tool, for the report; can be given several times
    #[arg(long, value_name = "TEXT")]
    version_of: Vec<String>,
}

/// All that is told.
#[derive(Debug, Serialize)]
struct Report {
    /// Changes when a reader must change.
    version: u32,
    command: String,
    machine: String,
    versions: Vec<String>,
    rounds: usize,
    run_ms: u64,
    /// Rounds after which all processes were started anew.
    fresh: usize,
    /// Share of all processors' time that processes had which do not belong to this.
    others: f64,
    /// Share of its processor that load and upstream used.
    load_busy: f64,
    rows: Vec<Row>,
    mixed: Vec<MixedRow>,
    targets: Vec<Target>,
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    let plan = Plan::of(args)?;
    if args.list {
        for name in plan.names() {
            println!("{name}");
        }
        return Ok(());
    }
    let processors = std::thread::available_parallelism()?.get();
    ensure!(
        processors > OTHERS,
        "this machine offers {processors} processor; two are needed: one for the proxy, one for load and upstream"
    );
    ensure!(args.rounds > 0, "--rounds 0: at least one is needed");
    ensure!(
        args.fresh > 0,
        "--fresh 0: processes serve for a round at least"
    );
    ensure!(
        args.built.envoy.is_file(),
        "there is no Envoy at {}: `cargo xtask test` brings it, or say where another one is",
        args.built.envoy.display()
    );
    pin(OTHERS)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if let Some(requests) = args.instructions {
        return LocalSet::new().block_on(&runtime, instructions::run(args, requests));
    }
    let report = LocalSet::new().block_on(&runtime, measure(args, &plan, processors))?;
    table::print(&report);
    if let Some(file) = &args.json {
        write(file, &serde_json::to_string_pretty(&report)?)?;
    }
    if let Some(folder) = &args.save {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("make the folder {}", folder.display()))?;
        write(
            &folder.join("envoy.json"),
            &serde_json::to_string_pretty(&report)?,
        )?;
        write(&folder.join("envoy.md"), &table::markdown(&report))?;
        write(&folder.join("envoy.svg"), &plot::svg(&report))?;
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text.trim_end().to_owned() + "\n")
        .with_context(|| format!("write {}", file.display()))
}

/// What is to be measured.
struct Plan {
    /// The variants of each shape.
    shapes: Vec<(Shape, Vec<&'static Variant>)>,
    mixed: Vec<&'static Variant>,
}

impl Args {
    fn wants(&self, shape: &str, variant: &Variant) -> bool {
        let name = format!("{shape}/{}", variant.name);
        self.only.is_empty() || self.only.iter().any(|pattern| matches(pattern, &name))
    }
}

impl Plan {
    fn of(args: &Args) -> Result<Self> {
        let of = |shape: Shape| -> Vec<_> {
            let has = VARIANTS.iter().filter(|v| v.has(shape));
            has.filter(|v| args.wants(shape.name(), v)).collect()
        };
        let plan = Self {
            shapes: Shape::ALL
                .into_iter()
                .map(|shape| (shape, of(shape)))
                .filter(|(_, variants)| !variants.is_empty())
                .collect(),
            mixed: VARIANTS
                .iter()
                .filter(|v| v.has_mixed() && args.wants("mixed", v))
                .collect(),
        };
        ensure!(
            !plan.shapes.is_empty() || !plan.mixed.is_empty(),
            "no row matches --only {}: --list says which there are",
            args.only.join(" --only ")
        );
        Ok(plan)
    }

    fn names(&self) -> Vec<String> {
        let rows = self.shapes.iter().flat_map(|(shape, variants)| {
            variants
                .iter()
                .map(move |v| format!("{}/{}", shape.name(), v.name))
        });
        rows.chain(self.mixed.iter().map(|v| format!("mixed/{}", v.name)))
            .collect()
    }

    /// The shapes in which a variant is measured. None: not at all.
    fn shapes_of(&self, variant: &Variant) -> Option<Vec<Shape>> {
        let shapes = self.shapes.iter();
        let shapes: Vec<_> = shapes
            .filter(|(_, variants)| variants.iter().any(|v| v.name == variant.name))
            .map(|(shape, _)| *shape)
            .collect();
        let mixed = self.mixed.iter().any(|v| v.name == variant.name);
        (mixed || !shapes.is_empty()).then_some(shapes)
    }
}

/// Whether `name` is what `pattern` says, where `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            let ends = rest.char_indices().map(|(i, _)| i).chain([rest.len()]);
            ends.into_iter().any(|i| matches(after, &rest[i..]))
        }),
    }
}

/// What each run is compared with.
const PLAIN: Variant = Variant {
    name: "plain",
    title: "plain Envoy",
    kind: variant::Kind::Plain,
};

/// All processes that are measured, warm.
struct Fleet {
    plain: Subject,
    subjects: BTreeMap<&'static str, Subject>,
    mixed: Vec<Mixed>,
}

impl Fleet {
    async fn start(args: &Args, plan: &Plan, folder: &Path) -> Result<Self> {
        let shapes: Vec<_> = plan.shapes.iter().map(|(shape, _)| *shape).collect();
        let start = async |variant: &Variant, shapes: &[Shape]| {
            progress(&format!("starting {}", variant.name));
            Subject::start(variant, &args.built, folder, shapes, &Under::Nothing)
                .await
                .with_context(|| format!("{} ({})", variant.title, variant.name))
        };
        let mut fleet = Self {
            plain: start(&PLAIN, &shapes).await?,
            subjects: BTreeMap::new(),
            mixed: Vec::new(),
        };
        for variant in VARIANTS {
            if let Some(shapes) = plan.shapes_of(variant) {
                let subject = start(variant, &shapes).await?;
                fleet.subjects.insert(variant.name, subject);
            }
        }
        // Connections are opened, and everything is warm.
        let warm = Duration::from_millis(300);
        for (shape, variants) in &plan.shapes {
            progress(&format!("warming up {}", shape.name()));
            fleet.plain.run(*shape, warm).await?;
            for variant in variants {
                fleet.subject(variant)?.run(*shape, warm).await?;
            }
        }
        for variant in &plan.mixed {
            let mixed = Mixed::open(fleet.subject(variant)?).await?;
            fleet.mixed.push(mixed);
        }
        Ok(fleet)
    }

    fn subject(&mut self, variant: &Variant) -> Result<&mut Subject> {
        let found = self.subjects.get_mut(variant.name);
        found.with_context(|| format!("{} was not started", variant.name))
    }

    /// Processor time of all of them.
    fn cpu(&self) -> Result<Duration> {
        let all = self.subjects.values().chain([&self.plain]);
        all.map(|subject| subject.server.cpu()).sum()
    }

    async fn round(
        &mut self,
        round: usize,
        args: &Args,
        plan: &Plan,
        measured: &mut Measured,
    ) -> Result<()> {
        let run = Duration::from_millis(args.run_ms);
        let tell = |row: &str| progress(&format!("round {}/{}, {row}", round + 1, args.rounds));
        for (shape, variants) in &plan.shapes {
            let mut first = self.plain.run(*shape, run).await?;
            for i in 0..variants.len() {
                // Not always the same one after the same one.
                let variant = variants[(i + round) % variants.len()];
                tell(&format!("{}/{}", shape.name(), variant.name));
                let it = self.subject(variant)?.run(*shape, run).await?;
                let second = self.plain.run(*shape, run).await?;
                let rounds = measured.rows.entry((*shape, variant.name)).or_default();
                rounds.push((first.and(second), it));
                first = second;
            }
        }
        for mixed in &mut self.mixed {
            tell(&format!("mixed/{}", mixed.variant.name));
            let probes = mixed.round(run).await?;
            let rounds = measured.mixed.entry(mixed.variant.name).or_default();
            rounds.push(probes);
        }
        Ok(())
    }
}

async fn measure(args: &Args, plan: &Plan, processors: usize) -> Result<Report> {
    let machine = machine();
    println!("{machine}");
    println!(
        "{} rounds, {} rows, runs of {} ms, new processes after {} rounds; the proxy with one worker on processor \
         {WORKER}, load and upstream on processor {OTHERS}",
        args.rounds,
        plan.names().len(),
        args.run_ms,
        args.fresh
    );
    let me = CpuClock::of(Pid::this())?;
    let mut measured = Measured::default();
    // While rounds are measured: time that passed, time of load and upstream, of ours together, of all processes.
    let [mut wall, mut load, mut ours, mut all] = [Duration::ZERO; 4];
    let rounds: Vec<_> = (0..args.rounds).collect();
    for rounds in rounds.chunks(args.fresh) {
        let folder = tempfile::tempdir()?;
        let mut fleet = Fleet::start(args, plan, folder.path()).await?;
        let before = (Instant::now(), busy()?, fleet.cpu()?, me.now()?);
        for round in rounds {
            fleet.round(*round, args, plan, &mut measured).await?;
        }
        let loaded = me.now()? - before.3;
        wall += before.0.elapsed();
        load += loaded;
        ours += fleet.cpu()? - before.2 + loaded;
        all += busy()?.saturating_sub(before.1);
    }
    progress("");
    let others = all.saturating_sub(ours);
    Ok(Report {
        version: 1,
        command: command(args),
        machine,
        versions: versions(args)?,
        rounds: args.rounds,
        run_ms: args.run_ms,
        fresh: args.fresh,
        others: others.as_secs_f64() / (wall.as_secs_f64() * processors as f64),
        load_busy: load.as_secs_f64() / wall.as_secs_f64(),
        rows: measured.rows(),
        mixed: measured.mixed_rows(),
        targets: measured.targets(),
    })
}

/// How to have the same measured again.
fn command(args: &Args) -> String {
    let mut command = format!(
        "cargo xtask bench envoy --rounds {} --run-ms {} --fresh {}",
        args.rounds, args.run_ms, args.fresh
    );
    for only in &args.only {
        command += &format!(" --only '{only}'");
    }
    command
}

fn versions(args: &Args) -> Result<Vec<String>> {
    let output = std::process::Command::new(&args.built.envoy)
        .arg("--version")
        .output()
        .with_context(|| format!("start {}", args.built.envoy.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // ... version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL
    let version = text
        .trim()
        .rsplit(' ')
        .next()
        .and_then(|v| v.split('/').nth(1));
    let version = version.with_context(|| format!("no version in {text:?}"))?;
    let mut versions = vec![format!("Envoy {version}")];
    versions.extend(args.version_of.iter().cloned());
    Ok(versions)
}

/// On a terminal one line, written over; else nothing.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{text:60}");
        if text.is_empty() {
            eprint!("\r");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        assert!(matches("fields-3/c", "fields-3/c"));
        assert!(matches("*", "fields-3/c"));
        assert!(matches("fields-*/go-*", "fields-25/go-sync"));
        assert!(matches("*/go-*ring", "mixed/go-ring"));
        assert!(!matches("fields-3/c", "fields-3/cc"));
        assert!(!matches("*/go-", "mixed/go-ring"));
        assert!(!matches("go-*", "mixed/go-ring"));
    }
}
