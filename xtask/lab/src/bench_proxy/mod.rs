//! What benchmarks of guests in a stock proxy share: rounds in which variants take turns with the plain proxy, ratios, and
//! the report. What is compared, and how a proxy is told, is said by a [`Bench`].
//!
//! Each variant is a process of its own with one worker on one processor; load and upstream have another one. In a round
//! the variants take turns with the plain proxy, so that each run stands between two plain ones; its figures are ratios to
//! those two. Processes are replaced by new ones every few rounds: where code and memory of one happen to lie is worth some
//! percent. What is told is the median of the rounds with the interval that covers it with 95 %.

mod plot;
mod result;
mod run;
mod table;
mod upstream;

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

pub(crate) use result::{Measured, Target, pairs};
pub(crate) use run::{Mixed, OTHERS, PATIENCE, Run, WORKER};
pub(crate) use upstream::{CHECK, FIELD, SEEN, Upstream};

use result::{MixedRow, Row};

/// What all of them can be told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Settings {
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
    /// Also write what was measured to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Also write table, plot and figures to this folder
    #[arg(long, value_name = "FOLDER")]
    pub(crate) save: Option<PathBuf>,
    /// Version of a tool, for the report; can be given several times
    #[arg(long, value_name = "TEXT")]
    version_of: Vec<String>,
}

impl Settings {
    /// Whether a row is wanted.
    pub(crate) fn wants(&self, section: &str, variant: &str) -> bool {
        let name = format!("{section}/{variant}");
        self.only.is_empty() || self.only.iter().any(|pattern| matches(pattern, &name))
    }
}

/// Rows that are compared with the same plain proxy under the same requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section {
    /// The first half of a row's name.
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) title: &'static str,
    /// Whether the proxy's processor is meant to be busy all the time.
    pub(crate) saturates: bool,
}

/// What is compared with the plain proxy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Title {
    /// The second half of a row's name.
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) title: &'static str,
    pub(crate) class: Class,
}

/// For colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// The proxy's own.
    Native,
    Guest,
    Other,
}

/// What is said of the proxy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About {
    /// As it is written in sentences.
    pub(crate) proxy: &'static str,
    /// Name of the command, and of the files of `--save`.
    pub(crate) name: &'static str,
    /// What its report begins with, behind the title.
    pub(crate) introduction: &'static str,
    pub(crate) sections: &'static [Section],
}

/// Name of the variant that all others are compared with.
pub(crate) const PLAIN: &str = "plain";

/// A benchmark of one proxy.
pub(crate) trait Bench {
    type Subject: Subject;

    fn about(&self) -> &'static About;
    fn variants(&self) -> Vec<Title>;
    /// Whether a variant is measured in this section.
    fn has(&self, section: &str, variant: &str) -> bool;
    /// Whether a probe through it is measured while other requests keep the worker busy.
    fn has_mixed(&self, variant: &str) -> bool;
    /// Starts a variant, or [`PLAIN`], and asks once for each section whether requests come out as they should.
    async fn start(
        &self,
        variant: &'static str,
        sections: &[&'static str],
        folder: &Path,
    ) -> Result<Self::Subject>;
    fn targets(&self, measured: &Measured) -> Vec<Target>;
    /// The proxy with its version.
    fn version(&self) -> Result<String>;
    /// Sentences and figures besides the rows.
    async fn more(&self, _folder: &Path) -> Result<Vec<More>> {
        Ok(Vec::new())
    }
    /// Names of those.
    fn names_of_more(&self) -> Vec<&'static str> {
        Vec::new()
    }
}

/// A running variant with its upstream and its loads.
pub(crate) trait Subject {
    async fn run(&mut self, section: &'static str, time: Duration) -> Result<Run>;
    async fn mixed(&self) -> Result<Mixed>;
    /// Processor time of all its processes.
    fn cpu(&self) -> Result<Duration>;
}

/// Something else that was found.
#[derive(Debug, Serialize)]
pub(crate) struct More {
    pub(crate) name: &'static str,
    /// A sentence with the figures.
    pub(crate) found: String,
    pub(crate) target: String,
    pub(crate) reached: bool,
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    more: Vec<More>,
    targets: Vec<Target>,
    #[serde(skip)]
    about: &'static About,
}

/// Two processors: a thread of this one for the proxy, which is its child, and the other for the rest.
pub(crate) fn two_processors() -> Result<tokio::runtime::Runtime> {
    let processors = std::thread::available_parallelism()?.get();
    ensure!(
        processors > OTHERS,
        "this machine offers {processors} processor; two are needed: one for the proxy, one for load and upstream"
    );
    pin(OTHERS)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime)
}

/// Runs it.
pub(crate) fn run(bench: &impl Bench, settings: &Settings) -> Result<()> {
    let about = bench.about();
    let plan = Plan::of(bench, settings)?;
    if settings.list {
        for name in plan.names() {
            println!("{name}");
        }
        return Ok(());
    }
    ensure!(settings.rounds > 0, "--rounds 0: at least one is needed");
    ensure!(
        settings.fresh > 0,
        "--fresh 0: processes serve for a round at least"
    );
    let processors = std::thread::available_parallelism()?.get();
    let runtime = two_processors()?;
    let report = LocalSet::new().block_on(&runtime, measure(bench, settings, &plan, processors))?;
    table::print(&report);
    let json = serde_json::to_string_pretty(&report)?;
    if let Some(file) = &settings.json {
        write(file, &json)?;
    }
    if let Some(folder) = &settings.save {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("make the folder {}", folder.display()))?;
        let file = |extension: &str| folder.join(format!("{}.{extension}", about.name));
        write(&file("json"), &json)?;
        write(&file("md"), &table::markdown(&report))?;
        write(&file("svg"), &plot::svg(&report, &bench.variants()))?;
    }
    Ok(())
}

pub(crate) fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text.trim_end().to_owned() + "\n")
        .with_context(|| format!("write {}", file.display()))
}

/// What is to be measured.
struct Plan {
    /// The variants of each section.
    sections: Vec<(Section, Vec<Title>)>,
    mixed: Vec<Title>,
    more: Vec<&'static str>,
}

impl Plan {
    fn of(bench: &impl Bench, settings: &Settings) -> Result<Self> {
        let variants = bench.variants();
        let of = |section: &Section| -> Vec<_> {
            let has = variants.iter().filter(|v| bench.has(section.name, v.name));
            has.filter(|v| settings.wants(section.name, v.name))
                .copied()
                .collect()
        };
        let mixed = variants.iter().filter(|v| bench.has_mixed(v.name));
        let more = bench.names_of_more().into_iter();
        let plan = Self {
            sections: bench
                .about()
                .sections
                .iter()
                .map(|section| (*section, of(section)))
                .filter(|(_, variants)| !variants.is_empty())
                .collect(),
            mixed: mixed
                .filter(|v| settings.wants("mixed", v.name))
                .copied()
                .collect(),
            more: more.filter(|name| settings.wants("reload", name)).collect(),
        };
        ensure!(
            !plan.names().is_empty(),
            "no row matches --only {}: --list says which there are",
            settings.only.join(" --only ")
        );
        Ok(plan)
    }

    fn names(&self) -> Vec<String> {
        let rows = self.sections.iter().flat_map(|(section, variants)| {
            variants
                .iter()
                .map(move |v| format!("{}/{}", section.name, v.name))
        });
        rows.chain(self.mixed.iter().map(|v| format!("mixed/{}", v.name)))
            .chain(self.more.iter().map(|name| format!("reload/{name}")))
            .collect()
    }

    /// The sections in which a variant is measured. None: not at all.
    fn sections_of(&self, variant: &str) -> Option<Vec<&'static str>> {
        let sections = self.sections.iter();
        let sections: Vec<_> = sections
            .filter(|(_, variants)| variants.iter().any(|v| v.name == variant))
            .map(|(section, _)| section.name)
            .collect();
        let mixed = self.mixed.iter().any(|v| v.name == variant);
        (mixed || !sections.is_empty()).then_some(sections)
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

/// All processes that are measured, warm.
struct Fleet<S> {
    plain: S,
    subjects: BTreeMap<&'static str, S>,
    mixed: Vec<Mixed>,
}

impl<S: Subject> Fleet<S> {
    async fn start(bench: &impl Bench<Subject = S>, plan: &Plan, folder: &Path) -> Result<Self> {
        let sections: Vec<_> = plan.sections.iter().map(|(s, _)| s.name).collect();
        let start = async |name: &'static str, sections: &[&'static str]| {
            progress(&format!("starting {name}"));
            let started = bench.start(name, sections, folder).await;
            started.with_context(|| name.to_owned())
        };
        let mut fleet = Self {
            plain: start(PLAIN, &sections).await?,
            subjects: BTreeMap::new(),
            mixed: Vec::new(),
        };
        for variant in bench.variants() {
            if let Some(sections) = plan.sections_of(variant.name) {
                let subject = start(variant.name, &sections).await?;
                fleet.subjects.insert(variant.name, subject);
            }
        }
        // Connections are opened, and everything is warm.
        let warm = Duration::from_millis(200);
        for (section, variants) in &plan.sections {
            progress(&format!("warming up {}", section.name));
            fleet.plain.run(section.name, warm).await?;
            for variant in variants {
                fleet.subject(variant)?.run(section.name, warm).await?;
            }
        }
        for variant in &plan.mixed {
            let mixed = fleet.subject(variant)?.mixed().await?;
            fleet.mixed.push(mixed);
        }
        Ok(fleet)
    }

    fn subject(&mut self, variant: &Title) -> Result<&mut S> {
        let found = self.subjects.get_mut(variant.name);
        found.with_context(|| format!("{} was not started", variant.name))
    }

    /// Processor time of all of them.
    fn cpu(&self) -> Result<Duration> {
        let all = self.subjects.values().chain([&self.plain]);
        all.map(Subject::cpu).sum()
    }

    async fn round(
        &mut self,
        round: usize,
        settings: &Settings,
        plan: &Plan,
        measured: &mut Measured,
    ) -> Result<()> {
        let run = Duration::from_millis(settings.run_ms);
        let tell = |row: &str| progress(&format!("round {}/{}, {row}", round + 1, settings.rounds));
        for (section, variants) in &plan.sections {
            let mut first = self.plain.run(section.name, run).await?;
            for i in 0..variants.len() {
                // Not always the same one after the same one.
                let variant = variants[(i + round) % variants.len()];
                tell(&format!("{}/{}", section.name, variant.name));
                let it = self.subject(&variant)?.run(section.name, run).await?;
                let second = self.plain.run(section.name, run).await?;
                measured.add(section.name, variant.name, first.and(second), it);
                first = second;
            }
        }
        for mixed in &mut self.mixed {
            tell(&format!("mixed/{}", mixed.variant));
            let probes = mixed.round(run).await?;
            measured.add_mixed(mixed.variant, probes);
        }
        Ok(())
    }
}

async fn measure(
    bench: &impl Bench,
    settings: &Settings,
    plan: &Plan,
    processors: usize,
) -> Result<Report> {
    let machine = machine();
    println!("{machine}");
    println!(
        "{} rounds, {} rows, runs of {} ms, new processes after {} rounds; the proxy with one worker on processor \
         {WORKER}, load and upstream on processor {OTHERS}",
        settings.rounds,
        plan.names().len(),
        settings.run_ms,
        settings.fresh
    );
    let me = CpuClock::of(Pid::this())?;
    let mut measured = Measured::default();
    // While rounds are measured: time that passed, time of load and upstream, of ours together, of all processes.
    let [mut wall, mut load, mut ours, mut all] = [Duration::ZERO; 4];
    let rounds: Vec<_> = (0..settings.rounds).collect();
    let rounds = if plan.sections.is_empty() && plan.mixed.is_empty() {
        &[][..]
    } else {
        &rounds
    };
    for rounds in rounds.chunks(settings.fresh) {
        let folder = tempfile::tempdir()?;
        let mut fleet = Fleet::start(bench, plan, folder.path()).await?;
        let before = (Instant::now(), busy()?, fleet.cpu()?, me.now()?);
        for round in rounds {
            fleet.round(*round, settings, plan, &mut measured).await?;
        }
        let loaded = me.now()? - before.3;
        wall += before.0.elapsed();
        load += loaded;
        ours += fleet.cpu()? - before.2 + loaded;
        all += busy()?.saturating_sub(before.1);
    }
    let mut more = Vec::new();
    if !plan.more.is_empty() {
        progress("reloads");
        let folder = tempfile::tempdir()?;
        more = bench.more(folder.path()).await?;
        more.retain(|found| plan.more.contains(&found.name));
    }
    progress("");
    let others = all.saturating_sub(ours);
    let share = |part: Duration, of: f64| part.as_secs_f64() / of.max(f64::MIN_POSITIVE);
    let mut versions = vec![bench.version()?];
    versions.extend(settings.version_of.iter().cloned());
    Ok(Report {
        version: 1,
        command: command(bench, settings),
        machine,
        versions,
        rounds: settings.rounds,
        run_ms: settings.run_ms,
        fresh: settings.fresh,
        others: share(others, wall.as_secs_f64() * processors as f64),
        load_busy: share(load, wall.as_secs_f64()),
        rows: measured.rows(bench.about().sections, &bench.variants()),
        mixed: measured.mixed_rows(&bench.variants()),
        more,
        targets: bench.targets(&measured),
        about: bench.about(),
    })
}

/// How to have the same measured again.
fn command(bench: &impl Bench, settings: &Settings) -> String {
    let mut command = format!(
        "cargo xtask bench {} --rounds {} --run-ms {} --fresh {}",
        bench.about().name,
        settings.rounds,
        settings.run_ms,
        settings.fresh
    );
    for only in &settings.only {
        command += &format!(" --only '{only}'");
    }
    command
}

/// On a terminal one line, written over; else nothing.
pub(crate) fn progress(text: &str) {
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
