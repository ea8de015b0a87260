//! A run: the host started once for most cases, cases at the same time, and a report.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use proxy_golang_abi::feature::Feature;

use super::adapter::Adapter;
use super::cases::{self, Case};
use super::changes::{Changes, in_time};
use super::cx::{Cx, Running, Shared, THE_END, has};
use super::groups;
use super::history;
use super::host;
use super::layer_check::{self, Layer};
use super::probe::{Workshop, sha256};
use super::record::Record;
use super::setup::NoOption;
use super::upstream::Upstream;
use crate::finding::{Finding, GuestInfo};
use crate::rules::{self, Level};
use crate::sandbox::{CaseResult, Status};
use crate::suite::machine;
use crate::verdict::{HostInfo, Report, SCHEMA, Verdict, expected};

/// What is run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) adapter: PathBuf,
    pub(crate) level: u8,
    pub(crate) only: Vec<String>,
    pub(crate) skip: Vec<String>,
    pub(crate) seed: u64,
    pub(crate) jobs: usize,
    pub(crate) timeout_scale: f64,
    /// The probe in place of the one that is built.
    pub(crate) probe: Option<PathBuf>,
    /// The layer between the host and the probe.
    pub(crate) layer: Option<PathBuf>,
    /// Where the host's folders are kept.
    pub(crate) keep: Option<PathBuf>,
    /// Where the probe and its twin are built, for several runs, instead of in that folder.
    pub(crate) built: Option<PathBuf>,
    /// How many records a process of the host may write; what the probe allows if it is not said.
    pub(crate) most_records: Option<u32>,
    /// Arguments for the host's start, behind those of the adapter: mutants are chosen so.
    pub(crate) extra: Vec<String>,
}

/// The case that stands for the history of the whole run.
pub(crate) const WHOLE_RUN: &str = "run/history";

/// The rules that it checks.
pub(crate) const WHOLE_RUN_RULES: &[&str] = &[
    "PXG-CFG-005",
    "PXG-CFG-006",
    "PXG-CFG-003",
    "PXG-LOAD-004",
    "PXG-LOAD-005",
    "PXG-MEM-006",
    "PXG-NEG-004",
    "PXG-NEG-008",
    "PXG-THR-001",
    "PXG-THR-003",
    "PXG-THR-004",
    "PXG-RT-004",
];

/// The rule of a set feature that the host does not have. Each case that needs a feature checks it: a failure there is one
/// of this rule as well.
pub(crate) const FEATURE_RULE: &str = "PXG-NEG-009";

/// The futures of the cases are polled on one stack, and are long in a debug build.
pub(crate) const STACK: usize = 64 << 20;

fn matches(c: &Case, word: &str) -> bool {
    c.rules.iter().any(|r| r.eq_ignore_ascii_case(word))
        || (FEATURE_RULE.eq_ignore_ascii_case(word) && !c.needs.is_empty())
        || glob::Pattern::new(word).is_ok_and(|p| p.matches(c.name))
        || c.name.split('/').next() == Some(word)
}

/// The cases that `plan` selects; an unknown word is an error.
pub(crate) fn select(plan: &Plan) -> Result<Vec<&'static Case>> {
    for word in plan.only.iter().chain(&plan.skip) {
        let whole = word == WHOLE_RUN || WHOLE_RUN_RULES.contains(&word.as_str());
        if !whole && !cases::all().iter().any(|c| matches(c, word)) {
            let known = cases::all()
                .iter()
                .map(|c| c.name)
                .chain(rules::all().iter().map(|r| r.id.as_str()));
            let near = rules::did_you_mean(word, known);
            bail!(
                "no case of hosts checks or is called {word:?}{}",
                if near.is_empty() {
                    "; `pxg-conformance host --list` shows them".into()
                } else {
                    format!("; did you mean {}?", near.join(" or "))
                }
            );
        }
    }
    Ok(cases::all()
        .iter()
        .filter(|c| {
            if plan.only.is_empty() {
                c.level <= plan.level
            } else {
                plan.only.iter().any(|w| matches(c, w))
            }
        })
        .collect())
}

/// Runs the plan, on a thread of its own.
pub(crate) fn run(plan: &Plan, each: impl Fn(&CaseResult) + Send + 'static) -> Result<Report> {
    let plan = plan.clone();
    let cases = std::thread::Builder::new()
        .name("cases".into())
        .stack_size(STACK)
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, run_all(plan, Rc::new(each)))
        })
        .context("cannot start a thread for the cases")?;
    cases
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

async fn run_all(plan: Plan, each: Rc<dyn Fn(&CaseResult)>) -> Result<Report> {
    let started = Instant::now();
    let selected = select(&plan)?;
    let mut adapter = Adapter::read(&plan.adapter)?;
    adapter.start.command.extend(plan.extra.iter().cloned());
    if let Some(n) = plan.most_records {
        let most = ("PXG_PROBE_MOST".to_string(), n.to_string());
        adapter.start.env.extend([most]);
    }
    let adapter = Arc::new(adapter);
    let temporary = match &plan.keep {
        Some(d) => {
            std::fs::create_dir_all(d)?;
            None
        }
        None => Some(tempfile::tempdir()?),
    };
    let dir = match (&temporary, &plan.keep) {
        (Some(t), _) => t.path().to_path_buf(),
        (None, Some(d)) => std::fs::canonicalize(d)?,
        _ => bail!("no folder to run in"),
    };
    // What cases build and where their hosts run is of this run alone.
    let run_dir = dir.join("run");
    let _ = std::fs::remove_dir_all(&run_dir);
    std::fs::create_dir_all(&run_dir)?;
    let workshop = Workshop::new(plan.built.as_deref().unwrap_or(&dir), &run_dir)?;
    let probe = match &plan.probe {
        Some(p) => {
            std::fs::canonicalize(p).with_context(|| format!("no probe at {}", p.display()))?
        }
        None => workshop.probe("pxg_probe", &[])?,
    };
    // It takes longer than any step of a host may.
    if selected.iter().any(|c| c.go) {
        workshop.go_probe()?;
    }
    let version = host::version(&adapter)?;
    let changes = Changes::default();
    let (upstream, upstream_at) = Upstream::listen(changes.clone()).await?;
    let scale = plan.timeout_scale.clamp(0.01, 1000.0);
    let shared = Rc::new(Shared {
        patience: Duration::from_millis(adapter.limits.patience_ms).mul_f64(scale),
        adapter: adapter.clone(),
        probe: probe.clone(),
        upstream,
        upstream_at,
        changes,
        dir: run_dir.clone(),
        features: Cell::default(),
        granted: Cell::default(),
        workshop,
        layer: match &plan.layer {
            Some(file) => Some(Layer::new(file, toml::Table::new())?),
            None => None,
        },
        own_hosts: RefCell::default(),
    });
    let setup = groups::main(&run_dir, &probe, &selected);
    let setup = shared.with_layer(&setup, &run_dir)?;
    let first_case_ms = ms(started);
    let running = match Running::start(&shared, &run_dir, &setup).await? {
        Ok(running) => running,
        Err(e) => bail!(
            "{}: the host did not get ready{}; it printed:\n{}",
            adapter.name,
            e.status
                .map(|s| format!(" and ended with {s}"))
                .unwrap_or_default(),
            tail(&e.output, 30)
        ),
    };
    running.journal.refresh()?;
    let table = running
        .journal
        .all()
        .iter()
        .find_map(|r| r.host.clone())
        .context("the host is ready and has not called the probe's init: is the probe in its configuration?")?;
    shared.features.set(table.features);
    shared.granted.set(granted(&running.journal.all()));
    let results: Rc<RefCell<Vec<(usize, CaseResult)>>> = Rc::default();
    let slots = Rc::new(tokio::sync::Semaphore::new(plan.jobs.clamp(1, 64)));
    let mut tasks = Vec::new();
    // The seed gives the order: what one case leaves behind must not matter to another.
    let mut order: Vec<(usize, &'static Case)> = selected.iter().copied().enumerate().collect();
    let mut rng = crate::host::messages::Rng::new(plan.seed);
    for i in (1..order.len()).rev() {
        order.swap(i, rng.below(i + 1));
    }
    for (i, case) in order.iter().copied().filter(|(_, c)| !c.alone) {
        let (shared, running, slots) = (shared.clone(), running.clone(), slots.clone());
        let (results, each, plan, case) = (results.clone(), each.clone(), plan.clone(), case);
        tasks.push(tokio::task::spawn_local(async move {
            let Ok(_slot) = slots.acquire().await else {
                return;
            };
            let r = one(&plan, case, shared, running).await;
            each(&r);
            results.borrow_mut().push((i, r));
        }));
    }
    for t in tasks {
        t.await.context("a case of the suite panicked")?;
    }
    for (i, case) in order.iter().copied().filter(|(_, c)| c.alone) {
        let r = one(&plan, case, shared.clone(), running.clone()).await;
        each(&r);
        results.borrow_mut().push((i, r));
    }
    let known = known_breaks(&results.borrow());
    let whole = whole_run(&adapter, &shared, &running, &plan, &known).await?;
    each(&whole);
    results.borrow_mut().push((usize::MAX, whole));
    let mut results = results.take();
    results.sort_by_key(|r| r.0);
    let mut report = Report {
        schema: SCHEMA,
        suite: env!("CARGO_PKG_VERSION").to_string(),
        abi: format!(
            "{}.{}",
            proxy_golang_abi::VERSION_MAJOR,
            proxy_golang_abi::VERSION_MINOR
        ),
        guest: probe.clone(),
        settings: None,
        sha256: sha256(&probe),
        unconfigured: Vec::new(),
        info: GuestInfo::default(),
        go: crate::elf::has_go(&probe),
        level: plan.level,
        seed: plan.seed,
        detectors: vec![
            "the history of every call, checked against the rules of events, tokens, threads and memory".into(),
            "bytes at the client and at the upstream".into(),
            "borrowed memory overwritten in the next hook; results of complete and apply made inaccessible".into(),
        ],
        machine: machine(),
        cases: results.into_iter().map(|r| r.1).collect(),
        ms: ms(started),
        first_case_ms,
        verdict: Verdict::SuiteError,
        because: String::new(),
        inactive: Vec::new(),
        host: Some(HostInfo {
            adapter: plan.adapter.clone(),
            name: adapter.name.clone(),
            version,
            table_name: table.name.clone(),
            table_version: table.version.clone(),
            features: table.features,
            layer: plan.layer.clone(),
        }),
    };
    (report.verdict, report.because) = report.recompute();
    Ok(report)
}

fn feature_name(f: Feature) -> &'static str {
    Feature::ALL
        .iter()
        .find(|(x, _)| *x == f)
        .map_or("?", |(_, n)| n)
}

/// Features that a configuration is given for an option of the adapter, which cases that need one ask for: `clusters`, `l4`.
const BY_OPTION: &[Feature] = &[
    Feature::ROUTE,
    Feature::L4,
    Feature::PEND_L4_OPEN,
    Feature::PEND_L4_DATA,
];

/// What any configuration has been given.
fn granted(records: &[Rc<Record>]) -> [u64; 4] {
    let mut all = [0; 4];
    for given in records.iter().filter_map(|r| r.features) {
        for (sum, bits) in all.iter_mut().zip(given) {
            *sum |= bits;
        }
    }
    all
}

/// Why a case that needs `f` does not apply. What the table sets and no configuration is given needs a reason.
fn lacks(shared: &Shared, f: Feature) -> Option<(Status, String)> {
    let name = feature_name(f);
    if !has(&shared.features.get(), f) {
        let why = format!("the host does not set the feature {name}");
        return Some((Status::NotApplicable, why));
    }
    if has(&shared.granted.get(), f) || BY_OPTION.contains(&f) {
        return None;
    }
    Some(match shared.adapter.not_applicable.get(name) {
        Some(why) => (Status::NotApplicable, format!("{name}: {why}")),
        None => (
            Status::Skip,
            format!(
                "the host's table sets {name}, no configuration is given it, and [not_applicable] does not say why"
            ),
        ),
    })
}

fn ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The last lines, each cut where it gets unreadable.
fn tail(lines: &[String], n: usize) -> String {
    lines[lines.len().saturating_sub(n)..]
        .iter()
        .map(|l| l.chars().take(400).collect::<String>())
        .collect::<Vec<_>>()
        .join("\n")
}

fn result(case: &Case, status: Status, reason: String) -> CaseResult {
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

async fn one(
    plan: &Plan,
    case: &'static Case,
    shared: Rc<Shared>,
    running: Rc<Running>,
) -> CaseResult {
    if plan.skip.iter().any(|w| matches(case, w)) {
        return result(case, Status::Skip, "left out by --skip".into());
    }
    let adapter = shared.adapter.clone();
    if let Some(why) = adapter.not_applicable.get(case.name) {
        return result(case, Status::NotApplicable, why.clone());
    }
    if let Some(why) = case.not_layered.filter(|_| shared.layer.is_some()) {
        return result(
            case,
            Status::NotApplicable,
            format!("not through the layer: {why}"),
        );
    }
    if let Some((status, why)) = case.needs.iter().find_map(|f| lacks(&shared, *f)) {
        return result(case, status, why);
    }
    let from = running.host.output.len();
    let started = Instant::now();
    let patience = shared.patience;
    let cx = Cx::new(shared.clone(), running.clone(), case.name);
    let mut r = result(case, Status::Pass, String::new());
    let Some(run) = &case.run else {
        r.status = Status::SuiteError;
        r.reason = "the case has nothing to run".into();
        return r;
    };
    let did = match in_time(patience * 4, run(cx.clone())).await {
        Some(Ok(())) => cx.finish().await,
        Some(e) => {
            // What was recorded says more than the error.
            let _ = cx.finish().await;
            e
        }
        None => {
            cx.unknown(
                case.rules.first().copied().unwrap_or_default(),
                "the end of the case",
            );
            cx.finish().await
        }
    };
    let (findings, remarks, checked, unknown) = cx.outcome();
    r.findings = findings;
    // Cases with hosts of their own run one after the other, after all others.
    for dir in shared.own_hosts.take() {
        match layer_check::host_findings(&dir) {
            Ok(found) => r.findings.extend(found),
            Err(e) => r.remarks.push(format!("{e:#}")),
        }
    }
    r.remarks.extend(remarks);
    r.checked = checked;
    r.ms = ms(started);
    if let Some(status) = running.host.ended() {
        r.findings.push(Finding {
            rule: case.rules.first().copied().unwrap_or_default().to_string(),
            title: format!("{THE_END} {status} while the case ran"),
            detail: Vec::new(),
        });
        r.status = Status::Crash;
    } else if let Err(e) = did {
        if let Some(option) = e.downcast_ref::<NoOption>() {
            match adapter.not_applicable.get(&option.0) {
                Some(why) => {
                    r.status = Status::NotApplicable;
                    r.reason.clone_from(why);
                }
                None => {
                    r.status = Status::Skip;
                    r.reason = format!("{option}, and [not_applicable] does not say why");
                }
            }
            r.findings.clear();
            return r;
        }
        // The host did not do what the case needs: the verdict is not known, and not green.
        r.status = Status::Timeout;
        r.findings.push(Finding {
            rule: case.rules.first().copied().unwrap_or_default().to_string(),
            title: format!("unknown: {e:#}"),
            detail: Vec::new(),
        });
    } else {
        r.status = status_of(&r.findings, unknown);
        if r.findings.is_empty() && checked == 0 {
            r.status = Status::SuiteError;
            r.reason = "the case checked nothing".into();
        }
    }
    if r.status.is_bad() {
        r.output = tail(&running.host.output.since(from), 20);
        r.trace = cx
            .records()
            .iter()
            .rev()
            .take(40)
            .rev()
            .map(|x| history::line(x))
            .collect::<Vec<_>>()
            .join("\n");
    }
    expected(&mut r, &adapter.expect);
    lacks_a_feature(case, &mut r);
    r
}

/// A case that needs features, and fails on a host that sets them, is a failure of these as well.
fn lacks_a_feature(case: &Case, r: &mut CaseResult) {
    if r.status != Status::Fail || case.needs.is_empty() {
        return;
    }
    let names: Vec<&str> = case.needs.iter().map(|f| feature_name(*f)).collect();
    r.findings.push(Finding {
        rule: FEATURE_RULE.into(),
        title: format!(
            "the host sets {}, and fails a case that needs {}",
            names.join(", "),
            if names.len() == 1 { "it" } else { "them" }
        ),
        detail: Vec::new(),
    });
}

/// A finding that says only that the host ended, or that a case did not get through: it stands under the first rule of the
/// case, whatever the cause is.
pub(crate) fn is_bare(f: &Finding) -> bool {
    f.title.starts_with(THE_END)
        || f.title.starts_with("unknown: the end of the case")
        || f.title.starts_with("unknown: ") && !f.title.contains(" did not come within")
}

fn status_of(findings: &[Finding], unknown: bool) -> Status {
    let must = findings
        .iter()
        .any(|f| rules::find(&f.rule).is_none_or(|r| r.level == Level::Must));
    match (must, findings.is_empty()) {
        (true, _) if unknown && findings.iter().all(|f| f.title.starts_with("unknown")) => {
            Status::Timeout
        }
        (true, _) => Status::Fail,
        (false, false) => Status::Warn,
        (false, true) => Status::Pass,
    }
}

/// Ends the host, and looks at the run as a whole.
/// The rules that cases found broken as the adapter said. The layer, which stands in every case, sees the same.
fn known_breaks(results: &[(usize, CaseResult)]) -> BTreeSet<String> {
    let of = results.iter().map(|r| &r.1);
    of.filter(|r| r.status == Status::ExpectedFailure)
        .flat_map(|r| r.findings.iter().map(|f| f.rule.clone()))
        .collect()
}

async fn whole_run(
    adapter: &Adapter,
    shared: &Shared,
    running: &Running,
    plan: &Plan,
    known: &BTreeSet<String>,
) -> Result<CaseResult> {
    let started = Instant::now();
    let mut r = CaseResult {
        case: WHOLE_RUN.into(),
        level: 1,
        rules: WHOLE_RUN_RULES.iter().map(ToString::to_string).collect(),
        status: Status::Pass,
        reason: String::new(),
        findings: Vec::new(),
        remarks: Vec::new(),
        output: String::new(),
        trace: String::new(),
        ms: 0,
        checked: 0,
    };
    let crashed = running.host.ended();
    if crashed.is_none() {
        running.host.stop()?;
        let ended = running.host.wait(shared.patience * 2).await;
        match ended {
            None => r.findings.push(Finding {
                rule: "PXG-ASY-015".into(),
                title: format!(
                    "unknown: the host did not end within {:?} of its stop",
                    shared.patience * 2
                ),
                detail: Vec::new(),
            }),
            Some(s) if !s.success() => r.findings.push(Finding {
                rule: "PXG-LOAD-005".into(),
                title: format!("{THE_END} {s} after its stop"),
                detail: Vec::new(),
            }),
            Some(_) => {}
        }
    }
    running.journal.refresh()?;
    let records: Vec<_> = running
        .journal
        .all()
        .iter()
        .map(|r| (**r).clone())
        .collect();
    r.checked = records.len() as u64;
    let ended = crashed.is_none();
    for f in history::check_run(&records, &shared.features.get(), ended) {
        r.findings.push(Finding {
            rule: f.rule.into(),
            title: f.title(),
            detail: f.detail(&records),
        });
    }
    if plan.layer.is_some() {
        let seen = layer_check::host_findings(&running.dir)?;
        let (again, new): (Vec<_>, Vec<_>) =
            seen.into_iter().partition(|f| known.contains(&f.rule));
        r.findings.extend(new);
        if !again.is_empty() {
            r.remarks.push(format!(
                "the layer saw breaks of {}, too, which cases were expected to find",
                known.iter().cloned().collect::<Vec<_>>().join(", ")
            ));
        }
    }
    r.status = status_of(&r.findings, false);
    // What is not recorded is not checked, and not green.
    if let Some(full) = records
        .iter()
        .find(|r| r.function == "note" && r.rule.is_none())
    {
        r.status = Status::SuiteError;
        r.reason = full.text.clone().unwrap_or_default();
    }
    r.ms = ms(started);
    if r.status.is_bad() {
        r.output = tail(&running.host.output.since(0), 20);
    }
    expected(&mut r, &adapter.expect);
    Ok(r)
}
