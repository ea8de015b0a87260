//! The proof that the suite finds what it says: each mutant is killed by its own rule and by no other, and each clean
//! sample is clean.
//!
//! A mutant meets the cases that check its rule; with `full` it meets all of them, which finds more rules that lay
//! something to the wrong cause, and takes many times as long.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::mutants::{self, Mutant, Workshop};
use crate::sandbox::Status;
use crate::suite::{self, Plan};
use crate::verdict::{Report, Verdict};
use crate::{cases, elf};

/// What the self-test is asked for.
pub(crate) struct Asked {
    pub(crate) only: Vec<String>,
    /// Each mutant meets every case.
    pub(crate) full: bool,
    pub(crate) repeat: u32,
    pub(crate) load: bool,
    pub(crate) jobs: usize,
    pub(crate) keep: Option<PathBuf>,
    pub(crate) samples: Vec<PathBuf>,
    pub(crate) verbose: bool,
}

/// What became of one mutant or sample.
struct Outcome {
    name: String,
    ok: bool,
    /// What this machine lacks to find a mutant, or to let a sample pass: by case.
    unchecked: BTreeMap<String, String>,
    mutant: bool,
    text: String,
    passed: BTreeSet<String>,
    /// How often a mutant was tried.
    tries: u32,
}

/// A defect that is a race may not happen at once: a mutant that survives is tried again, and the summary says so.
const TRIES: u32 = 3;

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
    let dir = &std::fs::canonicalize(dir)?;
    let workshop = Workshop::new(dir)?;
    let mut selected: Vec<&Mutant> = mutants::all()
        .iter()
        .filter(|m| {
            asked.only.is_empty()
                || asked.only.iter().any(|w| {
                    glob::Pattern::new(w).is_ok_and(|p| p.matches(&m.name))
                        || m.rule.as_deref() == Some(w.as_str())
                })
        })
        .collect();
    if selected.is_empty() {
        let known = mutants::all()
            .iter()
            .flat_map(|m| [Some(m.name.as_str()), m.rule.as_deref()])
            .flatten();
        let word = asked.only.first().map_or("", String::as_str);
        let mut near = crate::rules::did_you_mean(word, known.collect::<BTreeSet<_>>().into_iter());
        near.dedup();
        bail!(
            "no mutant or sample is selected by {:?}{}",
            asked.only,
            if near.is_empty() {
                "; `pxg-conformance coverage` names them".to_string()
            } else {
                format!("; did you mean {}?", near.join(" or "))
            }
        );
    }
    // What takes longest comes first.
    selected.sort_by_key(|m| (m.rule.is_some(), !m.is_go()));
    let next = AtomicUsize::new(0);
    let outcomes: Mutex<Vec<Outcome>> = Mutex::default();
    let say = |o: Outcome| {
        if asked.verbose || !o.ok || !o.mutant || !o.unchecked.is_empty() {
            println!("{}", o.text);
        }
        outcomes
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(o);
    };
    std::thread::scope(|s| {
        for _ in 0..asked.jobs.max(1) {
            s.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(m) = selected.get(i) else { break };
                    say(match workshop.build(m) {
                        Ok(library) => {
                            if m.rule.is_some() {
                                kill(m, &library, asked.full)
                            } else {
                                clean(&m.name, &m.also, &library, asked)
                            }
                        }
                        Err(e) => Outcome {
                            name: m.name.clone(),
                            ok: false,
                            mutant: m.rule.is_some(),
                            text: format!("BROKEN    {}: {e:#}", m.name),
                            passed: BTreeSet::new(),
                            tries: 1,
                            unchecked: BTreeMap::new(),
                        },
                    });
                }
            });
        }
    });
    for sample in &asked.samples {
        let name = sample
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        // What Go's runtime earns, as of the mutants below.
        let warns: Vec<String> = elf::has_go(sample)
            .then(|| "PXG-RT-004".to_string())
            .into_iter()
            .collect();
        say(clean(&name, &warns, sample, asked));
    }
    let outcomes = outcomes
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut ok = summary(&outcomes, started);
    // Each case must have passed on some clean sample: else nobody knows that it can.
    if asked.only.is_empty() {
        let passed: BTreeSet<&String> = outcomes.iter().flat_map(|o| &o.passed).collect();
        let lacks: BTreeMap<&String, &String> =
            outcomes.iter().flat_map(|o| &o.unchecked).collect();
        for (case, why) in &lacks {
            println!("not checkable on this machine: {case}: {why}");
        }
        let never: Vec<&str> = cases::all()
            .map(|c| c.name)
            .filter(|n| !passed.contains(&n.to_string()) && !lacks.contains_key(&n.to_string()))
            .collect();
        if !never.is_empty() {
            println!("no clean sample passes: {}", never.join(", "));
            ok = false;
        }
    }
    Ok(ok)
}

fn summary(outcomes: &[Outcome], started: Instant) -> bool {
    let count = |mutant: bool, ok: bool| {
        outcomes
            .iter()
            .filter(|o| o.mutant == mutant && o.ok == ok)
            .count()
    };
    let names = |mutant: bool| {
        let v: Vec<&str> = outcomes
            .iter()
            .filter(|o| o.mutant == mutant && !o.ok)
            .map(|o| o.name.as_str())
            .collect();
        if v.is_empty() {
            String::new()
        } else {
            format!(" ({})", v.join(", "))
        }
    };
    let again: Vec<&str> = outcomes
        .iter()
        .filter(|o| o.ok && o.tries > 1)
        .map(|o| o.name.as_str())
        .collect();
    if !again.is_empty() {
        println!("not killed at the first try: {}", again.join(", "));
    }
    let unchecked: Vec<&str> = outcomes
        .iter()
        .filter(|o| o.mutant && o.ok && !o.unchecked.is_empty())
        .map(|o| o.name.as_str())
        .collect();
    let not_checkable = if unchecked.is_empty() {
        String::new()
    } else {
        format!(
            ", {} not checkable on this machine ({})",
            unchecked.len(),
            unchecked.join(", ")
        )
    };
    println!(
        "mutants: {} killed by their own rule, {} not{}{not_checkable}; clean samples: {} clean, {} not{}; {:.1} s",
        count(true, true) - unchecked.len(),
        count(true, false),
        names(true),
        count(false, true),
        count(false, false),
        names(false),
        started.elapsed().as_secs_f64()
    );
    !outcomes.is_empty() && outcomes.iter().all(|o| o.ok)
}

fn plan(library: &Path) -> Result<Plan> {
    let mut p = Plan::new(library)?;
    p.level = 5;
    p.jobs = 1;
    p.traces = false;
    Ok(p)
}

fn kill(m: &Mutant, library: &Path, full: bool) -> Outcome {
    let mut tries = 1;
    loop {
        let (outcome, survived) = kill_once(m, library, full);
        if !survived || tries == TRIES {
            return Outcome { tries, ..outcome };
        }
        tries += 1;
    }
}

/// The outcome, and whether its rule found nothing.
fn kill_once(m: &Mutant, library: &Path, full: bool) -> (Outcome, bool) {
    let rule = m.rule.clone().unwrap_or_default();
    let run = |mut p: Plan| {
        if !full {
            p.only = vec![rule.clone()];
        }
        suite::run(&p, |_| {})
    };
    let report = match plan(library).and_then(run) {
        Ok(r) => r,
        Err(e) => return (broken(&m.name, true, &format!("{e:#}")), false),
    };
    let found: BTreeSet<String> = report
        .cases
        .iter()
        .flat_map(|c| &c.findings)
        .map(|f| f.rule.clone())
        .collect();
    let unrelated: Vec<String> = found
        .iter()
        .filter(|f| **f != rule && !m.also.contains(f) && !runtime_earns(m, f))
        .cloned()
        .collect();
    let errors: Vec<String> = report
        .cases
        .iter()
        .filter(|c| c.status == Status::SuiteError)
        .map(|c| format!("{}: {}", c.case, c.reason))
        .collect();
    // The one case that could find it, where it could not check.
    let lacks = unchecked(&report)
        .into_iter()
        .find(|(case, _)| !found.contains(&rule) && m.needs.as_ref() == Some(case));
    let ok =
        (found.contains(&rule) || lacks.is_some()) && unrelated.is_empty() && errors.is_empty();
    let text = if let Some((case, why)) = lacks.as_ref().filter(|_| ok) {
        format!("UNCHECKED {} ({rule}): {case}: {why}", m.name)
    } else if !found.contains(&rule) {
        format!(
            "SURVIVED  {} ({rule}): {}; found {found:?} {errors:?}",
            m.name, m.about
        )
    } else if !unrelated.is_empty() || !errors.is_empty() {
        format!(
            "UNRELATED {} ({rule}): also killed by {}\n{}",
            m.name,
            unrelated.join(", "),
            details(&report, &rule)
        )
    } else {
        format!("killed    {} by {rule}", m.name)
    };
    let outcome = Outcome {
        name: m.name.clone(),
        ok,
        mutant: true,
        text,
        passed: BTreeSet::new(),
        tries: 1,
        unchecked: lacks.into_iter().collect(),
    };
    (outcome, !ok && !found.contains(&rule))
}

/// Cases that could not check on this machine, and why.
fn unchecked(r: &Report) -> BTreeMap<String, String> {
    r.cases
        .iter()
        .filter(|c| c.status == Status::Unchecked)
        .map(|c| (c.case.clone(), c.reason.clone()))
        .collect()
}

/// A Go runtime starts threads from whatever thread needs one: without an SDK's care some of them may preempt.
fn runtime_earns(m: &Mutant, rule: &str) -> bool {
    m.is_go() && rule == "PXG-RT-004"
}

fn details(report: &Report, but: &str) -> String {
    let mut out = String::new();
    for c in &report.cases {
        if out.lines().count() > 8 {
            break;
        }
        if c.status == Status::SuiteError {
            out.push_str(&format!("    {}: {}\n", c.case, c.reason));
        }
        for f in c.findings.iter().filter(|f| f.rule != but) {
            out.push_str(&format!(
                "    {} {} {} {:?}\n",
                c.case, f.rule, f.title, f.detail
            ));
        }
    }
    out
}

fn broken(name: &str, mutant: bool, why: &str) -> Outcome {
    Outcome {
        name: name.to_string(),
        ok: false,
        mutant,
        text: format!("BROKEN    {name}: {why}"),
        passed: BTreeSet::new(),
        tries: 1,
        unchecked: BTreeMap::new(),
    }
}

fn clean(name: &str, warns: &[String], library: &Path, asked: &Asked) -> Outcome {
    let mut passed = BTreeSet::new();
    let mut lacks = BTreeMap::new();
    let mut text = String::new();
    let mut ok = true;
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        for round in 0..asked.repeat.max(1) {
            let mut plan = match plan(library) {
                Ok(p) => p,
                Err(e) => {
                    ok = false;
                    text = format!("BROKEN    {name}: {e:#}");
                    return;
                }
            };
            plan.shuffle = round > 0;
            plan.seed += u64::from(round);
            // The last round runs under load.
            if asked.load && round + 1 == asked.repeat {
                for _ in 0..2 {
                    s.spawn(|| {
                        while !stop.load(Ordering::Relaxed) {
                            std::hint::spin_loop();
                        }
                    });
                }
            }
            match suite::run(&plan, |_| {}) {
                Ok(r) => {
                    lacks.extend(unchecked(&r));
                    passed.extend(
                        r.cases
                            .iter()
                            .filter(|c| c.status == Status::Pass)
                            .map(|c| c.case.clone()),
                    );
                    let warned = r
                        .cases
                        .iter()
                        .filter(|c| c.status == Status::Warn)
                        .flat_map(|c| &c.findings)
                        .filter(|f| !warns.contains(&f.rule))
                        .count();
                    if r.verdict != Verdict::Conformant || warned > 0 {
                        ok = false;
                        text = format!(
                            "NOT CLEAN {name} in round {round}: {} {}\n{}",
                            r.verdict.name(),
                            r.because,
                            details(&r, "")
                        );
                        break;
                    }
                }
                Err(e) => {
                    ok = false;
                    text = format!("BROKEN    {name}: {e:#}");
                    break;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    if ok {
        text = format!("clean     {name} in {} rounds", asked.repeat.max(1));
    }
    Outcome {
        name: name.to_string(),
        ok,
        mutant: false,
        text,
        passed,
        tries: 1,
        unchecked: lacks,
    }
}
