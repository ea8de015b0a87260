//! The proof that the host side finds what it says: the mini host is clean, and with each of its mutants the mutant's own
//! rule is found broken, and no other.
//!
//! A mutant meets the cases that check its rule, and a plain exchange; with `full` it meets all of them. With `quick`
//! there is one mutant for each rule: the first of the rule in `mutants.inc` that does not survive.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::cases;
use super::probe;
use super::runner::{self, Plan, WHOLE_RUN_RULES};
use crate::finding::Finding;
use crate::mutants::{self, Mutant};
use crate::rules;
use crate::sandbox::Status;

/// What the self-test is asked for.
pub(crate) struct Asked {
    pub(crate) only: Vec<String>,
    /// Each mutant meets every case.
    pub(crate) full: bool,
    /// One mutant for each rule.
    pub(crate) quick: bool,
    pub(crate) repeat: u32,
    pub(crate) load: bool,
    /// Hosts at a time.
    pub(crate) jobs: usize,
    pub(crate) keep: Option<PathBuf>,
    pub(crate) verbose: bool,
    /// A line of JSON for each mutant and one for all, instead of the table.
    pub(crate) json: bool,
}

/// Every mutant meets this case, whatever its rule.
const ALWAYS: &str = "evt/exchange";

/// A defect that is a race may not happen at once.
const TRIES: u32 = 3;

/// A mutant that keeps a case waiting is not waited for as long as a host is: the clean rounds, which get no more, show
/// that the time is enough.
const PATIENCE: f64 = 0.2;

/// How many records a mutant may write: three times as many as the clean host does in the longest of the runs for a
/// rule. Of one that calls without end the first of them say all.
const MOST_RECORDS: u32 = 20_000;

/// What came of a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// Its rule was found broken, and no rule that it does not break.
    Killed,
    /// Its rule was not found broken.
    Survived,
    /// The same, and its line says so.
    KnownSurvivor,
    /// Its line says that it survives, and it does not.
    NoSurvivor,
    /// A rule was found broken that it does not break.
    Unrelated,
    /// The host did not start, or the suite failed.
    Broken,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Survived => "SURVIVED",
            Self::KnownSurvivor => "known survivor",
            Self::NoSurvivor => "NO SURVIVOR",
            Self::Unrelated => "UNRELATED",
            Self::Broken => "BROKEN",
        }
    }

    fn is_right(self) -> bool {
        matches!(self, Self::Killed | Self::KnownSurvivor)
    }
}

#[derive(Debug, Serialize)]
struct Outcome {
    mutant: String,
    rule: String,
    state: State,
    /// The cases that found its rule broken.
    cases: Vec<String>,
    /// Other rules that were found broken.
    also: BTreeSet<String>,
    ms: u64,
    tries: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    text: String,
}

impl Outcome {
    fn line(&self) -> String {
        let mut line = format!("{:14} {} ({})", self.state.name(), self.mutant, self.rule);
        if !self.cases.is_empty() {
            let _ = write!(line, " by {}", self.cases.join(", "));
        }
        if !self.text.is_empty() {
            let _ = write!(line, ": {}", self.text);
        }
        line
    }
}

/// The mini host and the probe, built.
pub(super) struct Workshop {
    dir: PathBuf,
    pub(super) adapter: PathBuf,
    probe: PathBuf,
}

impl Workshop {
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let probe = probe::Workshop::new(dir, dir)?.probe("pxg_probe", &[])?;
        let home = dir.join("minihost");
        let mut digest = Sha256::new();
        let mut sources = Vec::new();
        for (name, text) in rules::sources()
            .iter()
            .filter(|(n, _)| n.starts_with("minihost/") || n.starts_with("include/"))
        {
            let to = dir.join(name);
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(&to, text).with_context(|| format!("cannot write {}", to.display()))?;
            digest.update(name);
            digest.update(text);
            if to.extension().is_some_and(|e| e == "c") && name.starts_with("minihost/") {
                sources.push(to);
            }
        }
        if let Ok(out) = Command::new("cc").arg("--version").output() {
            digest.update(&out.stdout);
        }
        let digest = format!("{:x?}", digest.finalize());
        let built = home.join("build");
        std::fs::create_dir_all(&built)?;
        let (out, stamp) = (built.join("pxg-minihost"), built.join("stamp"));
        if !out.is_file()
            || std::fs::read_to_string(&stamp).is_ok_and(|s| s != digest)
            || !stamp.is_file()
        {
            let done = Command::new("cc")
                .args(["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-pthread"])
                .arg(format!("-I{}", dir.join("include").display()))
                .args(&sources)
                .arg("-o")
                .arg(&out)
                .arg("-ldl")
                .output()
                .context("cannot run cc; the self-test needs a C compiler")?;
            if !done.status.success() {
                bail!(
                    "the mini host does not build:\n{}",
                    String::from_utf8_lossy(&done.stderr)
                );
            }
            std::fs::write(stamp, digest)?;
        }
        Ok(Self {
            dir: dir.to_path_buf(),
            adapter: home.join("adapter.toml"),
            probe,
        })
    }

    /// Where the hosts of one job run, one after the other.
    fn slot(&self, slot: usize) -> PathBuf {
        self.dir.join(format!("slot-{slot}"))
    }

    /// A plan whose hosts run in the folder of `slot`, with the libraries that are built once for all.
    pub(super) fn plan(&self, slot: usize) -> Plan {
        Plan {
            adapter: self.adapter.clone(),
            level: 5,
            only: Vec::new(),
            skip: Vec::new(),
            seed: 0x5eed_1234,
            jobs: 16,
            timeout_scale: PATIENCE,
            probe: Some(self.probe.clone()),
            layer: None,
            keep: Some(self.slot(slot)),
            built: Some(self.dir.clone()),
            most_records: None,
            extra: Vec::new(),
        }
    }
}

/// Runs it; whether all is as it should be.
pub(crate) fn run(asked: &Asked) -> Result<bool> {
    let started = Instant::now();
    let temporary;
    let dir: &Path = match &asked.keep {
        Some(d) => {
            std::fs::create_dir_all(d)?;
            d
        }
        None => {
            temporary = tempfile::tempdir()?;
            temporary.path()
        }
    };
    let workshop = Workshop::new(&std::fs::canonicalize(dir)?)?;
    let selected = select(asked)?;
    let outcomes: Mutex<Vec<Outcome>> = Mutex::default();
    let say = |o: Outcome| {
        if asked.json {
            if let Ok(line) = serde_json::to_string(&o) {
                println!("{line}");
            }
        } else if asked.verbose || !o.state.is_right() {
            println!("{}", o.line());
        }
        outcomes
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(o);
    };
    let clean = if asked.only.is_empty() {
        clean(&workshop, asked)
    } else {
        Vec::new()
    };
    for line in clean.iter().filter(|_| !asked.json) {
        println!("{line}");
    }
    let next = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for slot in 0..asked.jobs.max(1) {
            let (next, selected, workshop, say) = (&next, &selected, &workshop, &say);
            s.spawn(move || {
                while let Some(m) = selected.get(next.fetch_add(1, Ordering::Relaxed)) {
                    say(kill(m, workshop, slot, asked.full));
                    // What a mutant recorded is as long as its defect makes it.
                    let _ = std::fs::remove_dir_all(workshop.slot(slot).join("run"));
                }
            });
        }
    });
    let mut outcomes = outcomes
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    outcomes.sort_by(|a, b| (&a.rule, &a.mutant).cmp(&(&b.rule, &b.mutant)));
    let count = |s: State| outcomes.iter().filter(|o| o.state == s).count();
    let right = outcomes.iter().filter(|o| o.state.is_right()).count();
    let seconds = started.elapsed().as_secs_f64();
    if asked.json {
        let sum = serde_json::json!({
            "mutants": outcomes.len(),
            "killed": count(State::Killed),
            "known_survivors": count(State::KnownSurvivor),
            "wrong": outcomes.len() - right,
            "clean": asked.only.is_empty().then_some(clean.is_empty()),
            "not_clean": clean,
            "seconds": seconds,
        });
        println!("{sum}");
    } else {
        print!("{}", table(&outcomes));
        println!(
            "mutants of hosts: {} of {} killed by their own rule, {} known to survive, {} wrong; the clean host: {}; \
             {seconds:.1} s",
            count(State::Killed),
            outcomes.len(),
            count(State::KnownSurvivor),
            outcomes.len() - right,
            match (asked.only.is_empty(), clean.is_empty()) {
                (false, _) => "not asked",
                (true, true) => "clean",
                (true, false) => "NOT clean",
            },
        );
    }
    Ok(right == outcomes.len() && clean.is_empty() && !outcomes.is_empty())
}

/// Rule, mutant, what came of it, the case that found it and the time; then what is to be said of single ones.
fn table(outcomes: &[Outcome]) -> String {
    let mut out = String::new();
    for o in outcomes {
        let by = match o.cases.as_slice() {
            [] => "-".to_string(),
            [one] => one.clone(),
            [first, rest @ ..] => format!("{first} and {} more", rest.len()),
        };
        let _ = writeln!(
            out,
            "{}  {:38}  {:14}  {by:42} {:6.1} s",
            o.rule,
            o.mutant,
            o.state.name(),
            seconds(o)
        );
    }
    let mut list = |what: &str, of: &dyn Fn(&Outcome) -> bool| {
        let names: Vec<&str> = outcomes
            .iter()
            .filter(|o| of(o))
            .map(|o| o.mutant.as_str())
            .collect();
        if !names.is_empty() {
            let _ = writeln!(out, "{what}: {}", names.join(", "));
        }
    };
    list("not right at the first try", &|o| {
        o.state.is_right() && o.tries > 1
    });
    list("known survivors", &|o| o.state == State::KnownSurvivor);
    list("wrong", &|o| !o.state.is_right());
    let mut slow: Vec<&Outcome> = outcomes.iter().collect();
    slow.sort_by_key(|o| std::cmp::Reverse(o.ms));
    let slow: Vec<String> = slow
        .iter()
        .take(5)
        .map(|o| format!("{} {:.1} s", o.mutant, seconds(o)))
        .collect();
    let _ = writeln!(out, "slowest: {}", slow.join(", "));
    out
}

#[allow(clippy::cast_precision_loss)] // a time in a report
fn seconds(o: &Outcome) -> f64 {
    o.ms as f64 / 1000.0
}

fn select(asked: &Asked) -> Result<Vec<&'static Mutant>> {
    let only = &asked.only;
    let mut selected: Vec<&Mutant> = mutants::of_hosts()
        .iter()
        .filter(|m| {
            only.is_empty()
                || only.iter().any(|w| {
                    glob::Pattern::new(w).is_ok_and(|p| p.matches(&m.name))
                        || m.rule
                            .as_deref()
                            .is_some_and(|r| glob::Pattern::new(w).is_ok_and(|p| p.matches(r)))
                })
        })
        .collect();
    if selected.is_empty() {
        let known = mutants::of_hosts()
            .iter()
            .flat_map(|m| [Some(m.name.as_str()), m.rule.as_deref()])
            .flatten();
        let word = only.first().map_or("", String::as_str);
        let near = rules::did_you_mean(word, known.collect::<BTreeSet<_>>().into_iter());
        bail!(
            "no mutant of hosts is selected by {only:?}{}",
            if near.is_empty() {
                "; `pxg-conformance coverage` names them".to_string()
            } else {
                format!("; did you mean {}?", near.join(" or "))
            }
        );
    }
    if asked.quick {
        let mut seen = BTreeSet::new();
        selected.retain(|m| !m.survives && seen.insert(m.rule.as_deref()));
    }
    Ok(selected)
}

/// What the clean host is found to break, round by round.
fn clean(workshop: &Workshop, asked: &Asked) -> Vec<String> {
    let mut out = Vec::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        for round in 0..asked.repeat.max(1) {
            let mut plan = workshop.plan(0);
            plan.seed += u64::from(round);
            // Another number of cases at a time is another order of what happens.
            plan.jobs = [16, 5, 29][round as usize % 3];
            if asked.load && round + 1 == asked.repeat {
                for _ in 0..2 {
                    s.spawn(|| {
                        while !stop.load(Ordering::Relaxed) {
                            std::hint::spin_loop();
                        }
                    });
                }
            }
            match runner::run(&plan, |_| {}) {
                Ok(r) => {
                    for c in r
                        .cases
                        .iter()
                        .filter(|c| c.status.is_bad() || c.status == Status::Warn)
                    {
                        out.push(format!(
                            "NOT CLEAN round {round}: {} {}{}",
                            c.status.name(),
                            c.case,
                            c.findings.iter().fold(c.reason.clone(), |t, f| format!(
                                "{t}\n    {} {}",
                                f.rule, f.title
                            ))
                        ));
                    }
                }
                Err(e) => out.push(format!("NOT CLEAN round {round}: {e:#}")),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    out
}

fn kill(m: &Mutant, workshop: &Workshop, slot: usize, full: bool) -> Outcome {
    let started = Instant::now();
    let mut tries = 1;
    loop {
        let mut outcome = kill_once(m, workshop, slot, full);
        // A defect may end the host before it serves, or break what depends on where memory lies and on who is first, but
        // not each time.
        let again = matches!(
            outcome.state,
            State::Survived | State::Broken | State::Unrelated
        );
        if !again || tries == TRIES {
            outcome.tries = tries;
            outcome.ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            return outcome;
        }
        tries += 1;
    }
}

/// The cases that check `rule`.
fn cases_of(rule: &str) -> Vec<&'static str> {
    let mut names: Vec<&str> = cases::all()
        .iter()
        .filter(|c| c.rules.contains(&rule))
        .map(|c| c.name)
        .collect();
    if WHOLE_RUN_RULES.contains(&rule) {
        names.push(runner::WHOLE_RUN);
    }
    names
}

/// Has `plan` run the host with `m`, and only the cases that are to find it.
pub(super) fn narrow(plan: &mut Plan, m: &Mutant) {
    plan.extra = vec!["--mutant".into(), m.name.clone()];
    plan.most_records = Some(MOST_RECORDS);
    plan.only = vec![ALWAYS.to_string()];
    plan.only.extend(m.needs.clone());
    plan.only.extend(
        cases_of(m.rule.as_deref().unwrap_or_default())
            .into_iter()
            .filter(|c| *c != runner::WHOLE_RUN)
            .map(str::to_string),
    );
}

fn kill_once(m: &Mutant, workshop: &Workshop, slot: usize, full: bool) -> Outcome {
    let rule = m.rule.clone().unwrap_or_default();
    let mut plan = workshop.plan(slot);
    let checked_by = cases_of(&rule);
    narrow(&mut plan, m);
    if full {
        plan.most_records = None;
        plan.only.clear();
    }
    let mut outcome = Outcome {
        mutant: m.name.clone(),
        rule: rule.clone(),
        state: State::Killed,
        cases: Vec::new(),
        also: BTreeSet::new(),
        ms: 0,
        tries: 1,
        text: String::new(),
    };
    let report = match runner::run(&plan, |_| {}) {
        Ok(r) => r,
        Err(e) => {
            outcome.state = if m.survives {
                State::KnownSurvivor
            } else {
                State::Broken
            };
            outcome.text = format!("{e:#}");
            return outcome;
        }
    };
    // A host that ended or stalled stands under any rule: that proves the mutant's own only where this is its defect.
    outcome.cases = report
        .cases
        .iter()
        .filter(|c| {
            let mut findings = c.findings.iter();
            findings.any(|f| f.rule == rule && (m.ends || !runner::is_bare(f)))
        })
        .map(|c| c.case.clone())
        .collect();
    // That of features comes with the failure of another rule, wherever a case needs one.
    let others: Vec<(&str, &Finding)> = report
        .cases
        .iter()
        .flat_map(|c| reliable(&c.findings).map(move |f| (c.case.as_str(), f)))
        .filter(|(_, f)| f.rule != rule && f.rule != runner::FEATURE_RULE)
        .collect();
    outcome.also = others.iter().map(|(_, f)| f.rule.clone()).collect();
    let unrelated: Vec<_> = others
        .iter()
        .filter(|(_, f)| !m.also.contains(&f.rule))
        .collect();
    if outcome.cases.is_empty() {
        let (state, seen_by) = (m.survives, checked_by.join(", "));
        outcome.state = if state {
            State::KnownSurvivor
        } else {
            State::Survived
        };
        let found: BTreeSet<&str> = report
            .cases
            .iter()
            .flat_map(|c| c.findings.iter().map(|f| f.rule.as_str()))
            .collect();
        outcome.text = format!(
            "{}; {}; found {found:?}",
            m.about,
            if seen_by.is_empty() {
                format!("no case checks {rule}")
            } else {
                format!("{seen_by} should have seen it")
            }
        );
    } else if !unrelated.is_empty() {
        outcome.state = State::Unrelated;
        outcome.text = unrelated
            .iter()
            .take(4)
            .fold("it is no break of".to_string(), |t, (case, f)| {
                format!("{t}\n    {} {case} {}", f.rule, f.title)
            });
    } else if m.survives {
        outcome.state = State::NoSurvivor;
        outcome.text = "take `survives` out of its line".into();
    }
    outcome
}

/// What did not come in time, and what a case found behind that, may have any cause: it stands for no other rule.
fn reliable(findings: &[Finding]) -> impl Iterator<Item = &Finding> {
    findings
        .iter()
        .take_while(|f| !f.title.starts_with("unknown"))
        .filter(|f| !runner::is_bare(f))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(only: &[&str], quick: bool) -> Asked {
        Asked {
            only: only.iter().map(ToString::to_string).collect(),
            full: false,
            quick,
            repeat: 1,
            load: false,
            jobs: 1,
            keep: None,
            verbose: false,
            json: false,
        }
    }

    #[test]
    fn a_quick_run_has_one_mutant_for_each_rule() {
        let all = select(&asked(&[], false)).expect("there are mutants");
        let quick = select(&asked(&[], true)).expect("there are mutants");
        let rules = |of: &[&Mutant]| -> BTreeSet<String> {
            let killed = of.iter().filter(|m| !m.survives);
            killed.filter_map(|m| m.rule.clone()).collect()
        };
        assert_eq!(rules(&all), rules(&quick));
        assert_eq!(quick.len(), rules(&quick).len());
        assert!(select(&asked(&["no-such-mutant"], false)).is_err());
    }

    #[test]
    fn what_stands_behind_a_wait_in_vain_or_a_death_is_not_relied_on() {
        let found: Vec<Finding> = [
            "the status: 0, expected 200",
            "the host ended with signal: 11 (SIGSEGV); the status: 0, expected 200",
            "unknown: the end of each stream did not come within 2s",
            "the body: \"\", expected \"hello\"",
        ]
        .map(|title| Finding {
            rule: "PXG-ACT-002".into(),
            title: title.into(),
            detail: Vec::new(),
        })
        .into();
        let titles: Vec<&str> = reliable(&found).map(|f| f.title.as_str()).collect();
        assert_eq!(titles, ["the status: 0, expected 200"]);
    }
}
