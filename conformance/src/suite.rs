//! A run of many cases over one guest.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use anyhow::{Result, bail};
use sha2::{Digest as _, Sha256};

use crate::cases::{self, Case};
use crate::child::Order;
use crate::finding::GuestInfo;
use crate::sandbox::{self, CaseResult, Limits, Status};
use crate::subject::{FILE_NAME, Settings};
use crate::verdict::{Report, SCHEMA, Verdict, expected};
use crate::{elf, rules, subject};

/// What is run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) guest: PathBuf,
    pub(crate) settings: Settings,
    /// The settings' file, where it is not the one beside the library.
    pub(crate) settings_file: Option<PathBuf>,
    pub(crate) level: u8,
    pub(crate) only: Vec<String>,
    pub(crate) skip: Vec<String>,
    pub(crate) seed: u64,
    pub(crate) jobs: usize,
    pub(crate) limits: Limits,
    /// Run failing cases again for the guest's own trace.
    pub(crate) traces: bool,
    /// Run what failed, and `run/exchanges`, once more under valgrind.
    pub(crate) valgrind: bool,
    /// Run in an order given by the seed.
    pub(crate) shuffle: bool,
}

impl Plan {
    /// The default run of `guest`, with the settings found beside it.
    pub(crate) fn new(guest: &Path) -> Result<Self> {
        let beside = guest.with_file_name(FILE_NAME);
        let settings = if beside.is_file() {
            subject::read(&beside)?
        } else {
            Settings::default()
        };
        Ok(Self {
            guest: guest.to_path_buf(),
            settings,
            settings_file: None,
            level: 3,
            only: Vec::new(),
            skip: Vec::new(),
            seed: 0x5eed_1234,
            jobs: std::thread::available_parallelism().map_or(2, Into::into),
            limits: Limits {
                timeout_scale: 1.0,
                grace_ms: 20,
            },
            traces: true,
            valgrind: false,
            shuffle: false,
        })
    }
}

/// The cases that `plan` selects; an unknown name is an error that says what was meant.
pub(crate) fn select(plan: &Plan) -> Result<Vec<&'static Case>> {
    for word in plan.only.iter().chain(&plan.skip) {
        if !cases::all().any(|c| matches(c, word)) {
            if let Some(r) = rules::find(word) {
                bail!(
                    "no case checks {} ({}); `pxg-conformance explain {}` says why",
                    r.id,
                    r.party,
                    r.id
                );
            }
            let known = cases::all()
                .map(|c| c.name)
                .chain(rules::all().iter().map(|r| r.id.as_str()));
            let near = rules::did_you_mean(word, known);
            if near.is_empty() {
                bail!("no case or rule {word:?}; `pxg-conformance list` shows them");
            }
            bail!(
                "no case or rule {word:?}; did you mean {}?",
                near.join(" or ")
            );
        }
    }
    Ok(cases::all()
        .filter(|c| {
            if plan.only.is_empty() {
                c.level <= plan.level
            } else {
                plan.only.iter().any(|w| matches(c, w))
            }
        })
        .collect())
}

fn matches(c: &Case, word: &str) -> bool {
    c.rules.iter().any(|r| r.eq_ignore_ascii_case(word))
        || glob::Pattern::new(word).is_ok_and(|p| p.matches(c.name))
        || c.name.split('/').next() == Some(word)
}

fn skipped(c: &Case, plan: &Plan) -> bool {
    plan.skip.iter().any(|w| matches(c, w))
}

/// Runs the plan; `each` is called with every result as it comes.
pub(crate) fn run(plan: &Plan, each: impl Fn(&CaseResult) + Sync) -> Result<Report> {
    let started = Instant::now();
    let mut selected = select(plan)?;
    let guest = std::fs::canonicalize(&plan.guest).unwrap_or_else(|_| plan.guest.clone());
    let go = elf::has_go(&guest);
    if plan.shuffle {
        let mut rng = crate::host::messages::Rng::new(plan.seed);
        for i in (1..selected.len()).rev() {
            selected.swap(i, rng.below(i + 1));
        }
    }
    let results: Mutex<Vec<(usize, CaseResult)>> = Mutex::default();
    let info: Mutex<GuestInfo> = Mutex::default();
    let configured: Mutex<BTreeSet<String>> = Mutex::default();
    let next = AtomicUsize::new(0);
    let hangs = Hangs::default();
    let begun = *PROCESS_STARTED.get().unwrap_or(&started);
    let first = AtomicU64::new(0);
    let lock = |e: std::sync::PoisonError<_>| e.into_inner();
    let sha256 = std::thread::scope(|s| {
        let digest = s.spawn(|| {
            let data = std::fs::read(&guest).unwrap_or_default();
            Sha256::digest(&data)
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect()
        });
        for _ in 0..plan.jobs.clamp(1, 64) {
            s.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = selected.get(i) else { break };
                    let order = Order {
                        case: case.name.to_string(),
                        guest: guest.clone(),
                        has_go: go,
                        seed: plan.seed,
                        subjects: plan.settings.subjects.clone(),
                        grace_ms: plan.limits.grace_ms,
                        heal: true,
                        script: None,
                        trace: None,
                    };
                    if i == 0 {
                        let ms = begun.elapsed().as_millis();
                        first.store(u64::try_from(ms).unwrap_or(u64::MAX), Ordering::Relaxed);
                    }
                    let mut result = if skipped(case, plan) {
                        not_run(case, Status::Skip, "left out by --skip".into())
                    } else if let Some(why) = hangs.refuse() {
                        not_run(case, Status::Blocked, why)
                    } else {
                        let (mut result, told) = sandbox::run(case, &order, &plan.limits);
                        if plan.traces && told.faults > 0 && result.status.is_bad() {
                            result.trace =
                                sandbox::trace(case, &order, &plan.limits).unwrap_or_default();
                        }
                        if plan.valgrind && (result.status.is_bad() || case.name == MEMCHECKED) {
                            memcheck(case, &order, plan, &mut result);
                        }
                        hangs.count(&result, told.hung_at_start);
                        if let Some(g) = told.guest {
                            *info
                                .lock()
                                .unwrap_or_else(std::sync::PoisonError::into_inner) = g;
                        }
                        configured
                            .lock()
                            .unwrap_or_else(std::sync::PoisonError::into_inner)
                            .extend(told.configured);
                        result
                    };
                    expected(&mut result, &plan.settings.expect);
                    each(&result);
                    results.lock().unwrap_or_else(lock).push((i, result));
                }
            });
        }
        digest.join().unwrap_or_default()
    });
    let mut cases = results
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    cases.sort_by_key(|c| c.0);
    let info = info
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let configured = configured
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut report = Report {
        schema: SCHEMA,
        suite: env!("CARGO_PKG_VERSION").to_string(),
        abi: format!(
            "{}.{}",
            proxy_golang_abi::VERSION_MAJOR,
            proxy_golang_abi::VERSION_MINOR
        ),
        guest: plan.guest.clone(),
        settings: plan.settings_file.clone(),
        sha256,
        unconfigured: info
            .filters
            .iter()
            .filter(|f| !configured.contains(*f))
            .cloned()
            .collect(),
        info,
        go,
        level: plan.level,
        seed: plan.seed,
        detectors: Vec::new(),
        inactive: Vec::new(),
        machine: machine(),
        cases: cases.into_iter().map(|c| c.1).collect(),
        ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        first_case_ms: first.into_inner(),
        verdict: Verdict::SuiteError,
        because: String::new(),
        host: None,
    };
    // A selection need not make configurations.
    if !plan.only.is_empty() || !report.cases.iter().any(|c| c.status == Status::Pass) {
        report.unconfigured.clear();
    }
    (report.detectors, report.inactive) = detectors(plan, &report);
    (report.verdict, report.because) = report.recompute();
    Ok(report)
}

/// When the program began, for how long it takes until the first case; a library's caller has no such moment.
pub(crate) static PROCESS_STARTED: OnceLock<Instant> = OnceLock::new();

/// Cases that did not end. A guest that hangs everywhere must not take the time limit of every case.
#[derive(Default)]
struct Hangs {
    cases: Mutex<Vec<String>>,
    at_start: AtomicBool,
}

impl Hangs {
    const MOST: usize = 3;

    fn count(&self, r: &CaseResult, at_start: bool) {
        if r.status == Status::Timeout {
            self.at_start.fetch_or(at_start, Ordering::Relaxed);
            self.cases
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push(r.case.clone());
        }
    }

    /// Why no further case is run.
    fn refuse(&self) -> Option<String> {
        let cases = self
            .cases
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.at_start.load(Ordering::Relaxed) {
            let first = cases.first().map_or("", String::as_str);
            Some(format!(
                "the guest hangs before it can be used: see {first}"
            ))
        } else if cases.len() >= Self::MOST {
            Some(format!(
                "{} cases did not end in their time: see {}",
                cases.len(),
                cases.join(", ")
            ))
        } else {
            None
        }
    }
}

fn not_run(case: &Case, status: Status, reason: String) -> CaseResult {
    CaseResult {
        case: case.name.to_string(),
        level: case.level,
        rules: case.rules.iter().map(ToString::to_string).collect(),
        status,
        reason,
        findings: Vec::new(),
        remarks: Vec::new(),
        output: String::new(),
        trace: String::new(),
        ms: 0,
        checked: 0,
    }
}

/// What is run under valgrind also where nothing failed.
const MEMCHECKED: &str = "run/exchanges";

/// Attaches what memcheck says. It is about the guest's own memory, of which no rule speaks, and changes no status.
fn memcheck(case: &Case, order: &Order, plan: &Plan, result: &mut CaseResult) {
    match sandbox::valgrind(case, order, &plan.limits) {
        Ok((0, _)) => result.remarks.push("valgrind: no errors".into()),
        Ok((n, text)) => {
            let first = text.lines().next().unwrap_or_default().trim().to_string();
            result
                .remarks
                .push(format!("valgrind: {n} errors, the first: {first}"));
            if !result.trace.is_empty() {
                result.trace.push_str("\n\n");
            }
            result.trace.push_str("valgrind:\n");
            result.trace.push_str(&text);
        }
        Err(why) => result.remarks.push(format!("valgrind: not run: {why}")),
    }
}

/// What watched in the run of `r`, and what did not, with the reason.
fn detectors(plan: &Plan, r: &Report) -> (Vec<String>, Vec<String>) {
    let mut active = [
        "guarded views with a healing fault handler",
        "read-only views",
        "canaries",
        "tokens by generation",
        "borrowed memory read twice",
        "C heap and resident memory per configuration",
        "the guest's own calls of the C allocator, per request",
        "time asleep by the kernel's scheduler statistics",
    ]
    .map(str::to_string)
    .to_vec();
    let mut inactive = Vec::new();
    for (case, what) in [
        (
            "mem/late-system-call",
            "userfaultfd for late uses inside system calls",
        ),
        ("mem/go-heap-growth", "Go's heap per request"),
    ] {
        match r.cases.iter().find(|c| c.case == case) {
            None => inactive.push(format!("{what} ({case} is not selected)")),
            Some(c) => match c.status {
                Status::Unchecked
                | Status::NotApplicable
                | Status::Blocked
                | Status::Skip
                | Status::SuiteError => inactive.push(format!("{what} ({})", c.reason)),
                Status::Fail if !c.reason.is_empty() => {
                    inactive.push(format!("{what} ({})", c.reason));
                }
                _ => active.push(what.to_string()),
            },
        }
    }
    match (plan.valgrind, r.go) {
        (true, false) => active.push(format!(
            "valgrind's memcheck for what failed and {MEMCHECKED}"
        )),
        (true, true) => inactive.push("valgrind's memcheck (it does not know Go's stacks)".into()),
        (false, false) => {
            inactive.push("valgrind's memcheck (--valgrind asks for it)".into());
        }
        (false, true) => {}
    }
    (active, inactive)
}

pub(crate) fn machine() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("Linux {} {}", kernel.trim(), std::env::consts::ARCH)
}

/// Runs the default cases (levels L1 to L3) on the guest at `path`, for a test of that guest.
///
/// The library must have been built: a test of the package that builds it finds it beside its own program, as in the
/// example. Filters that need a configuration get it from `pxg-conformance.toml` beside the library. Each case runs in a
/// process of its own, which is this test's program started again; nothing else of it runs there.
///
/// ```no_run
/// fn the_filter_is_conformant() {
///     let test = std::env::current_exe().expect("a test has a program");
///     let built = test.ancestors().nth(2).expect("target/debug/deps/test");
///     proxy_golang_conformance::assert_guest(built.join("libmy_filter.so"));
/// }
/// ```
///
/// # Panics
/// If the guest is not conformant, with the report as the text.
pub fn assert_guest(path: impl AsRef<Path>) {
    crate::sys::entry::announce();
    let report = match Plan::new(path.as_ref()).and_then(|p| run(&p, |_| {})) {
        Ok(r) => r,
        Err(e) => panic!("{e:#}"),
    };
    let text = crate::report::human::whole(&report, false);
    assert!(report.verdict == Verdict::Conformant, "{text}");
}
