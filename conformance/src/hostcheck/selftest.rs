//! The proof that the host side finds what it says: the mini host is clean, and with each of its mutants the mutant's own
//! rule is found broken, and no other.
//!
//! A mutant meets the cases that check its rule, and a plain exchange; with `full` it meets all of them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use super::cases;
use super::probe;
use super::runner::{self, Plan, WHOLE_RUN_RULES};
use crate::mutants::{self, Mutant};
use crate::rules;
use crate::sandbox::Status;
use crate::suite::Report;

/// What the self-test is asked for.
pub(crate) struct Asked {
    pub(crate) only: Vec<String>,
    /// Each mutant meets every case.
    pub(crate) full: bool,
    pub(crate) repeat: u32,
    pub(crate) load: bool,
    /// Hosts at a time.
    pub(crate) jobs: usize,
    pub(crate) keep: Option<PathBuf>,
    pub(crate) verbose: bool,
}

/// Every mutant meets this case, whatever its rule.
const ALWAYS: &str = "evt/exchange";

/// A defect that is a race may not happen at once.
const TRIES: u32 = 3;

/// A mutant that keeps a case waiting is not waited for as long as a host is: the clean rounds show that the time is enough.
const PATIENCE: f64 = 0.2;

struct Outcome {
    name: String,
    ok: bool,
    survived: bool,
    text: String,
    tries: u32,
}

/// The mini host and the probe, built.
struct Workshop {
    dir: PathBuf,
    adapter: PathBuf,
    probe: PathBuf,
}

impl Workshop {
    fn new(dir: &Path) -> Result<Self> {
        let probe = probe::Workshop::new(dir)?.probe("pxg_probe", &[])?;
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

    /// A plan whose libraries are built in the folder of `slot`, once for all runs there.
    fn plan(&self, slot: usize) -> Plan {
        Plan {
            adapter: self.adapter.clone(),
            level: 5,
            only: Vec::new(),
            skip: Vec::new(),
            seed: 0x5eed_1234,
            jobs: 16,
            timeout_scale: 1.0,
            probe: Some(self.probe.clone()),
            layer: None,
            keep: Some(self.slot(slot)),
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
    let selected = select(&asked.only)?;
    let outcomes: Mutex<Vec<Outcome>> = Mutex::default();
    let say = |o: Outcome| {
        if asked.verbose || !o.ok {
            println!("{}", o.text);
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
    for line in &clean {
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
    let outcomes = outcomes
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let bad: Vec<&str> = outcomes
        .iter()
        .filter(|o| !o.ok)
        .map(|o| o.name.as_str())
        .collect();
    let again: Vec<&str> = outcomes
        .iter()
        .filter(|o| o.ok && o.tries > 1)
        .map(|o| o.name.as_str())
        .collect();
    if !again.is_empty() {
        println!("not killed at the first try: {}", again.join(", "));
    }
    let known: Vec<&str> = outcomes
        .iter()
        .filter(|o| o.ok && o.survived)
        .map(|o| o.name.as_str())
        .collect();
    if !known.is_empty() {
        println!("{} known survivors: {}", known.len(), known.join(", "));
    }
    println!(
        "mutants of hosts: {} of {} killed by their own rule, {} known to survive, {} not killed{}; the clean host: {}; \
         {:.1} s",
        outcomes.len() - bad.len() - known.len(),
        outcomes.len(),
        known.len(),
        bad.len(),
        if bad.is_empty() {
            String::new()
        } else {
            format!(" ({})", bad.join(", "))
        },
        match (asked.only.is_empty(), clean.is_empty()) {
            (false, _) => "not asked",
            (true, true) => "clean",
            (true, false) => "NOT clean",
        },
        started.elapsed().as_secs_f64()
    );
    Ok(bad.is_empty() && clean.is_empty() && !outcomes.is_empty())
}

fn select(only: &[String]) -> Result<Vec<&'static Mutant>> {
    let selected: Vec<&Mutant> = mutants::of_hosts()
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
    let mut tries = 1;
    loop {
        let (outcome, survived) = kill_once(m, workshop, slot, full);
        if !survived || tries == TRIES {
            return Outcome { tries, ..outcome };
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

/// The outcome, and whether its rule found nothing.
fn kill_once(m: &Mutant, workshop: &Workshop, slot: usize, full: bool) -> (Outcome, bool) {
    let rule = m.rule.clone().unwrap_or_default();
    let mut plan = workshop.plan(slot);
    plan.timeout_scale = PATIENCE;
    plan.extra = vec!["--mutant".into(), m.name.clone()];
    let checked_by = cases_of(&rule);
    if !full {
        plan.only = vec![ALWAYS.to_string()];
        plan.only.extend(m.needs.clone());
        plan.only.extend(
            checked_by
                .iter()
                .filter(|c| **c != runner::WHOLE_RUN)
                .map(|c| (*c).to_string()),
        );
    }
    let outcome = |ok, text| Outcome {
        name: m.name.clone(),
        ok,
        survived: false,
        text,
        tries: 1,
    };
    let report = match runner::run(&plan, |_| {}) {
        Ok(r) => r,
        Err(e) => {
            return (
                Outcome {
                    survived: true,
                    ..outcome(m.survives, format!("BROKEN    {} ({rule}): {e:#}", m.name))
                },
                // A defect may end the host before it serves, but not each time.
                !m.survives,
            );
        }
    };
    // A host that ended or stalled stands under any rule: that proves the mutant's own only where this is its defect.
    let found: BTreeSet<&str> = report
        .cases
        .iter()
        .flat_map(|c| &c.findings)
        .filter(|f| m.ends || !runner::is_bare(f))
        .map(|f| f.rule.as_str())
        .collect();
    // What did not come in time may have any cause, and stands for no other rule.
    let unrelated: BTreeSet<&str> = report
        .cases
        .iter()
        .flat_map(|c| &c.findings)
        .filter(|f| !f.title.starts_with("unknown") && !runner::is_bare(f))
        .map(|f| f.rule.as_str())
        .filter(|f| *f != rule && !m.also.iter().any(|a| a == f))
        // It comes with the failure of another rule, wherever a case needs a feature.
        .filter(|f| *f != runner::FEATURE_RULE)
        .collect();
    if !found.contains(rule.as_str()) {
        let seen_by = if checked_by.is_empty() {
            format!("no case checks {rule}")
        } else {
            format!("{} should have seen it", checked_by.join(", "))
        };
        return (
            Outcome {
                survived: true,
                ..outcome(
                    m.survives,
                    format!(
                        "{}  {} ({rule}): {}; {seen_by}; found {found:?}",
                        if m.survives { "known gap" } else { "SURVIVED" },
                        m.name,
                        m.about
                    ),
                )
            },
            // A known gap is not tried again.
            !m.survives,
        );
    }
    if !unrelated.is_empty() {
        let unrelated: Vec<&str> = unrelated.into_iter().collect();
        return (
            outcome(
                false,
                format!(
                    "UNRELATED {} ({rule}): also killed by {}\n{}",
                    m.name,
                    unrelated.join(" "),
                    details(&report, &unrelated)
                ),
            ),
            false,
        );
    }
    let now = if m.survives {
        "; a case finds it now: take `survives` out of its line"
    } else {
        ""
    };
    (
        outcome(!m.survives, format!("killed    {} by {rule}{now}", m.name)),
        false,
    )
}

fn details(report: &Report, of: &[&str]) -> String {
    report
        .cases
        .iter()
        .flat_map(|c| c.findings.iter().map(move |f| (c, f)))
        .filter(|(_, f)| of.contains(&f.rule.as_str()))
        .take(4)
        .map(|(c, f)| format!("    {} {} {}", c.case, f.rule, f.title))
        .collect::<Vec<_>>()
        .join("\n")
}
