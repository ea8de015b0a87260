//! Fuzzing a guest: random hosts, messages and schedules from a seed, until the time is over.
//!
//! Each process has one host and puts a batch of scenarios through the guest. What is found is run again by itself,
//! made smaller and kept.

pub(crate) mod cli;
mod found;
mod generate;
mod shrink;

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::cases::{Case, Run};
use crate::child::Order;
use crate::finding::{Record, record, suite_error};
use crate::sandbox::{self, CaseResult, Limits, Status, Told};
use crate::scenario::{Scenario, play};
use crate::subject::Subject;
use crate::suite::Plan;
use crate::verdict::Verdict;
use crate::{elf, rules};

use found::{Found, Key};
use serde::{Deserialize, Serialize};

/// What a process is to put through the guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Script {
    /// The scenario in a file.
    File(PathBuf),
    /// The executions of these numbers; all of one batch.
    Generate { seed: u64, numbers: Range<u64> },
}

/// What [`Script`]s run as. The second one is for guests with a heap that is collected: so often, and so visibly, as
/// their runtime lets it.
pub(crate) static CASES: [Case; 2] = [
    Case {
        name: "scenario/plain",
        rules: RULES,
        level: 5,
        about: "a scenario",
        run: case,
        env: &[],
        seconds: 30,
    },
    Case {
        name: "scenario/collecting",
        rules: RULES,
        level: 5,
        about: "a scenario, while freed memory is overwritten",
        run: case,
        env: &[
            ("GOGC", "1"),
            ("GODEBUG", "clobberfree=1,invalidptr=1"),
            ("MALLOC_PERTURB_", "165"),
        ],
        seconds: 60,
    },
];

const RULES: &[&str] = &["PXG-ABI-007", "PXG-ACT-001", "PXG-MEM-002", "PXG-MEM-010"];

fn case(run: &mut Run) {
    match run.script.take() {
        Some(Script::File(path)) => match Scenario::read(&path) {
            Ok(s) => {
                let mut once = Some(s);
                play::play(run, |_| once.take());
            }
            Err(e) => suite_error(format!("{e:#}")),
        },
        Some(Script::Generate { seed, mut numbers }) => {
            let words = elf::words(&run.path, generate::WORDS);
            play::play(run, |subjects| {
                let n = numbers.next()?;
                record(&Record::Execution(n));
                Some(generate::scenario(seed, n, subjects, &words))
            });
        }
        None => suite_error("no script was given".into()),
    }
}

fn case_of(collects: bool) -> &'static Case {
    &CASES[usize::from(collects)]
}

/// What is asked for.
pub(crate) struct Asked {
    pub(crate) plan: Plan,
    pub(crate) time: Option<Duration>,
    pub(crate) executions: Option<u64>,
    /// These executions and no others.
    pub(crate) only: Option<Range<u64>>,
    pub(crate) corpus: Option<PathBuf>,
    pub(crate) most_findings: usize,
    /// Stop when this rule is found.
    pub(crate) until: Option<String>,
    pub(crate) shrink: Duration,
    pub(crate) json: bool,
    pub(crate) quiet: bool,
}

/// Runs one scenario or batch in a process of its own.
pub(super) struct Runner<'a> {
    plan: &'a Plan,
    guest: PathBuf,
    has_go: bool,
    words: Vec<String>,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(plan: &'a Plan) -> Self {
        Self {
            words: elf::words(&plan.guest, generate::WORDS),
            plan,
            guest: std::fs::canonicalize(&plan.guest).unwrap_or_else(|_| plan.guest.clone()),
            has_go: elf::has_go(&plan.guest),
        }
    }

    fn script(&self, script: Script, collects: bool, limits: &Limits) -> (CaseResult, Told) {
        let case = case_of(collects);
        let order = Order {
            case: case.name.to_string(),
            guest: self.guest.clone(),
            has_go: self.has_go,
            seed: self.plan.seed,
            subjects: self.plan.settings.subjects.clone(),
            grace_ms: limits.grace_ms,
            heal: true,
            script: Some(script),
            trace: None,
        };
        sandbox::run(case, &order, limits)
    }

    /// Puts one scenario through, from a file at `at`.
    pub(crate) fn scenario(&self, s: &Scenario, at: &Path) -> Result<CaseResult> {
        s.write(at)?;
        Ok(self
            .script(
                Script::File(at.to_path_buf()),
                s.host.collects,
                &self.plan.limits,
            )
            .0)
    }
}

/// Replays the scenario in `file`: what came of it.
pub(crate) fn replay(plan: &Plan, file: &Path) -> Result<(Scenario, CaseResult)> {
    let s = Scenario::read(file)?;
    let file = std::fs::canonicalize(file)?;
    let (result, _) = Runner::new(plan).script(Script::File(file), s.host.collects, &plan.limits);
    Ok((s, result))
}

#[derive(Default)]
struct Total {
    executions: AtomicU64,
    /// Batches whose host the guest refused.
    refused: AtomicU64,
    steps: AtomicU64,
    stop: AtomicBool,
}

/// Fuzzes; the exit code.
pub(crate) fn run(asked: &Asked) -> Result<u8> {
    let started = Instant::now();
    let dir = tempfile::tempdir()?;
    if let Some(c) = &asked.corpus {
        std::fs::create_dir_all(c).with_context(|| format!("cannot make {}", c.display()))?;
    }
    let all = Session {
        asked,
        runner: Runner::new(&asked.plan),
        started,
        dir: dir.path(),
        total: Total::default(),
        found: Mutex::default(),
        subjects: Mutex::new(asked.plan.settings.subjects.clone()),
        error: Mutex::default(),
    };
    all.say(&serde_json::json!({"start": {
        "guest": asked.plan.guest, "seed": format!("{:#x}", asked.plan.seed),
        "suite": env!("CARGO_PKG_VERSION"),
    }}));
    if !asked.quiet && !asked.json {
        println!(
            "pxg-conformance {}  fuzz {}  seed {:#x}",
            env!("CARGO_PKG_VERSION"),
            asked.plan.guest.display(),
            asked.plan.seed
        );
    }
    all.kept()?;
    all.everything();
    all.end()
}

struct Session<'a> {
    asked: &'a Asked,
    runner: Runner<'a>,
    started: Instant,
    dir: &'a Path,
    total: Total,
    found: Mutex<BTreeMap<Key, Found>>,
    /// What the guest is configured with, once that is known.
    subjects: Mutex<Vec<Subject>>,
    error: Mutex<Option<String>>,
}

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session<'_> {
    fn say(&self, v: &serde_json::Value) {
        if self.asked.json {
            println!("{v}");
        }
    }

    fn over(&self) -> bool {
        self.total.stop.load(Ordering::Relaxed)
            || self.asked.time.is_some_and(|t| self.started.elapsed() >= t)
            || lock(&self.error).is_some()
    }

    /// Runs what earlier sessions kept.
    fn kept(&self) -> Result<()> {
        let Some(dir) = &self.asked.corpus else {
            return Ok(());
        };
        let mut files: Vec<PathBuf> = std::fs::read_dir(dir)?
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.extension().is_some_and(|e| e == ENDING))
            .collect();
        files.sort();
        for file in files {
            let (s, mut result) = replay(&self.asked.plan, &file)?;
            // A race need not be lost each time.
            for _ in 1..REPEATS {
                if result.findings.is_empty() {
                    result = replay(&self.asked.plan, &file)?.1;
                }
            }
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            self.total.executions.fetch_add(1, Ordering::Relaxed);
            if result.findings.is_empty() {
                self.say(&serde_json::json!({"gone": {"file": file, "shows": s.shows}}));
                if !self.asked.quiet && !self.asked.json {
                    println!("gone   {name}: nothing is found with it any more");
                }
            }
            for f in &result.findings {
                let found = Found {
                    finding: f.clone(),
                    status: result.status,
                    numbers: None,
                    repeats: (1, 1),
                    scenario: Some(s.clone()),
                    file: Some(file.clone()),
                    output: result.output.clone(),
                };
                self.report(found);
            }
        }
        Ok(())
    }

    fn everything(&self) {
        let range = self
            .asked
            .only
            .clone()
            .unwrap_or(0..self.asked.executions.unwrap_or(u64::MAX));
        let next = AtomicU64::new(range.start / generate::BATCH);
        std::thread::scope(|s| {
            for _ in 0..self.asked.plan.jobs.clamp(1, 64) {
                s.spawn(|| {
                    while !self.over() {
                        let batch = next.fetch_add(1, Ordering::Relaxed);
                        let low = batch.saturating_mul(generate::BATCH).max(range.start);
                        let high = (batch.saturating_add(1))
                            .saturating_mul(generate::BATCH)
                            .min(range.end);
                        if low >= high {
                            return;
                        }
                        self.batch(batch, low..high);
                    }
                });
            }
        });
    }

    fn batch(&self, batch: u64, mut numbers: Range<u64>) {
        // What ends a process leaves the rest of its batch to the next one.
        while !numbers.is_empty() && !self.over() {
            numbers.start = self.process(batch, numbers.clone());
        }
        self.progress();
    }

    /// Runs executions of one batch in one process; the number of the first one that it did not come to.
    fn process(&self, batch: u64, numbers: Range<u64>) -> u64 {
        let seed = self.asked.plan.seed;
        let host = generate::host(seed, batch);
        let script = Script::Generate {
            seed,
            numbers: numbers.clone(),
        };
        let (result, told) = self
            .runner
            .script(script, host.collects, &self.asked.plan.limits);
        if let Some(g) = &told.guest {
            let mut subjects = lock(&self.subjects);
            if subjects.is_empty() {
                *subjects = g.filters.iter().map(|f| Subject::bare(f)).collect();
            }
        }
        match result.status {
            Status::SuiteError => {
                *lock(&self.error) = Some(format!(
                    "executions {numbers:?}: {}\n{}",
                    result.reason, result.output
                ));
                return numbers.end;
            }
            // A host that the guest refused, or in which it took no configuration.
            s if s == Status::Blocked || (told.configured.is_empty() && !s.is_bad()) => {
                self.total.refused.fetch_add(1, Ordering::Relaxed);
            }
            _ => {
                self.total
                    .executions
                    .fetch_add(told.executions, Ordering::Relaxed);
                self.total
                    .steps
                    .fetch_add(result.checked, Ordering::Relaxed);
            }
        }
        for (i, f) in result.findings.iter().enumerate() {
            if self.over() || lock(&self.found).contains_key(&Key::of(f)) {
                continue;
            }
            let suspect = told
                .found_in
                .get(i)
                .copied()
                .flatten()
                .or(told.last_execution);
            self.isolate(f, &result, suspect, numbers.clone());
        }
        match (result.status, told.last_execution) {
            (Status::Crash | Status::Timeout, Some(n)) => n + 1,
            _ => numbers.end,
        }
    }

    /// Runs the executions of a batch one at a time until one of them shows the finding alone, and makes that smaller.
    fn isolate(
        &self,
        f: &crate::finding::Finding,
        result: &CaseResult,
        suspect: Option<u64>,
        numbers: Range<u64>,
    ) {
        let subjects = lock(&self.subjects).clone();
        let key = Key::of(f);
        // One at a time: both jobs often find the same.
        let mut known = lock(&self.found);
        if known.contains_key(&key) {
            return;
        }
        let order = suspect
            .into_iter()
            .chain(numbers.clone().filter(|n| Some(*n) != suspect));
        let file = self.dir.join("candidate");
        let mut found = Found {
            finding: f.clone(),
            status: result.status,
            numbers: Some(numbers),
            repeats: (0, 1),
            scenario: None,
            file: None,
            output: result.output.clone(),
        };
        for n in order {
            let s = generate::scenario(self.asked.plan.seed, n, &subjects, &self.runner.words);
            let Ok(alone) = self.runner.scenario(&s, &file) else {
                break;
            };
            let Some(same) = key.find(&alone) else {
                continue;
            };
            found.finding = same.clone();
            found.status = alone.status;
            found.output.clone_from(&alone.output);
            found.numbers = Some(n..n + 1);
            let mut s = shrink::shrink(s, self.asked.shrink, |c| {
                self.runner
                    .scenario(c, &file)
                    .is_ok_and(|r| key.find(&r).is_some())
            });
            let mut shown = 0;
            for _ in 0..REPEATS {
                if let Ok(r) = self.runner.scenario(&s, &file)
                    && let Some(same) = key.find(&r)
                {
                    shown += 1;
                    found.finding = same.clone();
                    found.status = r.status;
                    found.output.clone_from(&r.output);
                }
            }
            found.repeats = (shown, REPEATS);
            s.shows = Some((f.rule.clone(), found.finding.title.clone()));
            found.scenario = Some(s);
            break;
        }
        if found.scenario.is_none() && found.is_of_time() {
            // A machine that was busy is no fault of the guest's.
            self.say(&serde_json::json!({"not_repeated": {"rule": f.rule, "title": f.title}}));
            return;
        }
        if let Some(dir) = &self.asked.corpus
            && let Some(s) = &found.scenario
        {
            let at = dir.join(format!("{}.{ENDING}", key.file_name()));
            match s.write(&at) {
                Ok(()) => found.file = Some(at),
                Err(e) => *lock(&self.error) = Some(format!("{e:#}")),
            }
        }
        known.insert(key, found.clone());
        let n = known.len();
        drop(known);
        self.show(&found);
        let is_it = self.asked.until.as_ref() == Some(&f.rule);
        if n >= self.asked.most_findings || is_it {
            self.total.stop.store(true, Ordering::Relaxed);
        }
    }

    fn report(&self, found: Found) {
        let new = lock(&self.found)
            .insert(Key::of(&found.finding), found.clone())
            .is_none();
        if new {
            self.show(&found);
        }
    }

    fn show(&self, found: &Found) {
        self.say(&serde_json::json!({"finding": found.json(self.asked)}));
        if !self.asked.quiet && !self.asked.json {
            self.clear_line();
            println!("\n{}", found.text(self.asked, self.runner.has_go));
        }
    }

    fn progress(&self) {
        let n = self.total.executions.load(Ordering::Relaxed);
        let found = lock(&self.found).len();
        let seconds = self.started.elapsed().as_secs_f64();
        self.say(&serde_json::json!({"progress": {
            "executions": n, "steps": self.total.steps.load(Ordering::Relaxed),
            "refused_hosts": self.total.refused.load(Ordering::Relaxed),
            "findings": found, "seconds": seconds,
        }}));
        if std::io::stderr().is_terminal() && !self.asked.quiet {
            eprint!(
                "\r\x1b[K{n} executions, {:.0} a second, {found} findings, {seconds:.0} s",
                n as f64 / seconds.max(0.001)
            );
        }
    }

    fn clear_line(&self) {
        if std::io::stderr().is_terminal() && !self.asked.quiet {
            eprint!("\r\x1b[K");
        }
        let _ = std::io::stdout().flush();
    }

    fn end(&self) -> Result<u8> {
        self.clear_line();
        let found = lock(&self.found);
        let executions = self.total.executions.load(Ordering::Relaxed);
        let refused = self.total.refused.load(Ordering::Relaxed);
        let bad = found
            .values()
            .filter(|f| f.status.is_bad() || f.is_must())
            .count();
        let (verdict, because) = if bad > 0 {
            (Verdict::NotConformant, String::new())
        } else if let Some(e) = lock(&self.error).as_ref() {
            (Verdict::SuiteError, e.clone())
        } else if executions == 0 {
            (
                Verdict::Incomplete,
                "nothing was executed: the guest refused every host, or took no configuration"
                    .into(),
            )
        } else {
            (Verdict::Conformant, String::new())
        };
        let name = match verdict {
            Verdict::Conformant => "NOTHING FOUND",
            v => v.name(),
        };
        let seconds = self.started.elapsed().as_secs_f64();
        self.say(&serde_json::json!({"end": {
            "verdict": verdict, "because": because, "executions": executions, "refused_hosts": refused,
            "findings": found.len(), "seconds": seconds, "seed": format!("{:#x}", self.asked.plan.seed),
        }}));
        if !self.asked.json {
            println!(
                "{executions} executions ({:.0} a second), {} findings, {refused} hosts refused by the guest, seed \
                 {:#x}  {seconds:.1} s      {name}{}",
                executions as f64 / seconds.max(0.001),
                found.len(),
                self.asked.plan.seed,
                if because.is_empty() {
                    String::new()
                } else {
                    format!(": {because}")
                },
            );
        }
        Ok(verdict.code())
    }
}

/// The ending of the names of scenarios' files.
pub(crate) const ENDING: &str = "scenario";
const REPEATS: u32 = 3;

/// Whether a rule is a MUST.
fn is_must(rule: &str) -> bool {
    rules::find(rule).is_none_or(|r| r.level == rules::Level::Must)
}
