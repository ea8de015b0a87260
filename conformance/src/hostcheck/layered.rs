//! What the layer alone finds: over the mini host's mutants, with the probe, and over the guests with one defect each, in
//! the mini host as it should be.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};

use super::adapter::Adapter;
use super::layer_check::SEEN_BY_THE_LAYER;
use super::pair::{self, Pair};
use super::selftest::{self, Workshop};
use crate::mutants::{self, Mutant};
use crate::subject::{self, Subject};

/// The filters of `mutants/guest/c`, but for that of connections: the traffic is HTTP.
const FILTERS: [&str; 5] = ["headers", "bodies", "whole", "async", "duplex"];

/// Mutants of either side, built in one folder, and the layer.
pub struct Layered {
    layer: PathBuf,
    dir: PathBuf,
    hosts: Workshop,
    guests: mutants::Workshop,
}

impl Layered {
    /// Builds the mini host and the probe below `dir`.
    pub fn new(layer: &Path, dir: &Path) -> Result<Self> {
        let dir = std::fs::canonicalize(dir)?;
        Ok(Self {
            layer: layer.to_path_buf(),
            hosts: Workshop::new(&dir)?,
            guests: mutants::Workshop::new(&dir)?,
            dir,
        })
    }

    /// The rules that the layer says the mini host with this mutant breaks, under the cases that check the mutant's rule.
    pub fn host(&self, name: &str) -> Result<BTreeSet<String>> {
        let m = find(mutants::of_hosts(), name)?;
        let mut plan = self.hosts.plan(0);
        plan.keep = Some(self.dir.join(format!("host-{name}")));
        plan.layer = Some(self.layer.clone());
        selftest::narrow(&mut plan, m);
        let report = super::runner::run(&plan, |_| {})?;
        Ok(report
            .cases
            .iter()
            .flat_map(|c| &c.findings)
            .filter(|f| f.title.starts_with(SEEN_BY_THE_LAYER))
            .map(|f| f.rule.clone())
            .collect())
    }

    /// The rules that the layer says the guest of this name breaks.
    pub fn guest(&self, name: &str) -> Result<BTreeSet<String>> {
        let m = find(mutants::all(), name)?;
        let library = self.guests.build(m)?;
        let settings = library.with_file_name(subject::FILE_NAME);
        let subjects = if settings.is_file() {
            subject::read(&settings)?.subjects
        } else {
            FILTERS.iter().map(|f| Subject::bare(f)).collect()
        };
        let dir = self.dir.join(format!("guest-{name}"));
        std::fs::create_dir_all(&dir)?;
        let seen = pair::drive(
            Pair {
                adapter: Arc::new(Adapter::read(&self.hosts.adapter)?),
                layer: self.layer.clone(),
                library,
                subjects,
                perturb: None,
                timeout_scale: 1.0,
            },
            &dir,
        );
        // A guest may end the host, or keep it from serving: what was found until then counts.
        let seen = match seen {
            Ok(seen) => seen,
            Err(_) => super::layer_check::Seen::of_folder(&dir)?,
        };
        Ok(seen
            .findings
            .into_iter()
            .filter(|f| f.side == "guest")
            .map(|f| f.rule)
            .collect())
    }
}

fn find(all: &'static [Mutant], name: &str) -> Result<&'static Mutant> {
    all.iter()
        .find(|m| m.name == name)
        .with_context(|| format!("no mutant is called {name}"))
}

/// Prints a line for each mutant of a side: whether the layer finds it by its own rule, and what else it says. For
/// people: what it finds is not all that it has to.
pub(crate) fn table(layer: &Path, hosts: bool, only: &[String], jobs: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let layered = Layered::new(layer, dir.path())?;
    let all = if hosts {
        mutants::of_hosts()
    } else {
        mutants::all()
    };
    let selected: Vec<&Mutant> = all
        .iter()
        .filter(|m| m.rule.is_some())
        .filter(|m| {
            only.is_empty()
                || only
                    .iter()
                    .any(|w| glob::Pattern::new(w).is_ok_and(|p| p.matches(&m.name)))
        })
        .collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let lines: Mutex<Vec<(usize, bool, String)>> = Mutex::default();
    std::thread::scope(|s| {
        for _ in 0..jobs.max(1) {
            s.spawn(|| {
                loop {
                    let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(m) = selected.get(i) else { break };
                    let rule = m.rule.clone().unwrap_or_default();
                    let found = if hosts {
                        layered.host(&m.name)
                    } else {
                        layered.guest(&m.name)
                    };
                    let side = if hosts { "host" } else { "guest" };
                    let _ = std::fs::remove_dir_all(layered.dir.join(format!("{side}-{}", m.name)));
                    let (hit, what) = match found {
                        Ok(f) => {
                            let hit = f.contains(&rule);
                            let others: Vec<String> =
                                f.into_iter().filter(|r| *r != rule).collect();
                            (hit, others.join(" "))
                        }
                        Err(e) => (false, format!("nothing ran: {e:#}").replace('\n', " ")),
                    };
                    let line = format!(
                        "{} {:34} {rule} {}",
                        if hit { "found" } else { "-    " },
                        m.name,
                        what.chars().take(200).collect::<String>()
                    );
                    lines
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push((i, hit, line));
                }
            });
        }
    });
    let mut lines = lines.into_inner().unwrap_or_else(PoisonError::into_inner);
    lines.sort();
    for (_, _, line) in &lines {
        println!("{}", line.trim_end());
    }
    println!(
        "the layer alone finds {} of {} mutants by their own rule",
        lines.iter().filter(|l| l.1).count(),
        lines.len()
    );
    Ok(())
}
