//! Runs one case in a process of its own and says what came of it.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use proxy_golang_abi::Phase;
use serde::{Deserialize, Serialize};

use crate::cases::Case;
use crate::child::Order;
use crate::fault_text::Fault;
use crate::finding::{Finding, GuestInfo, Record};
use crate::host::model::phase_name;
use crate::rules::{self, Level};
use crate::symbols::{Module, Symbols};
use crate::sys::arena::UNDER_VALGRIND;
use crate::sys::process::{self, Ended};
use crate::sys::shared::{Hook, Progress, Shared, Stage};

/// What came of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Status {
    /// Everything checked was right.
    #[serde(rename = "PASS")]
    Pass,
    /// A SHOULD was not kept.
    #[serde(rename = "WARN")]
    Warn,
    /// A MUST was broken.
    #[serde(rename = "FAIL")]
    Fail,
    /// The guest ended the process.
    #[serde(rename = "CRASH")]
    Crash,
    /// The case did not end in its time.
    #[serde(rename = "TIMEOUT")]
    Timeout,
    /// Broken, as `[expect]` says.
    #[serde(rename = "XFAIL")]
    ExpectedFailure,
    /// `[expect]` says that it is broken, and it is not, or not any more allowed to be.
    #[serde(rename = "XPASS")]
    UnexpectedPass,
    /// Left out by the command line.
    #[serde(rename = "SKIP")]
    Skip,
    /// The guest does not declare what it checks.
    #[serde(rename = "N/A")]
    NotApplicable,
    /// This machine does not allow what it checks with.
    #[serde(rename = "UNCHECKED")]
    Unchecked,
    /// It could not run, because something that it needs failed.
    #[serde(rename = "BLOCKED")]
    Blocked,
    /// The suite itself failed.
    #[serde(rename = "SUITE-ERROR")]
    SuiteError,
}

impl Status {
    /// As in reports.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
            Self::Crash => "CRASH",
            Self::Timeout => "TIMEOUT",
            Self::ExpectedFailure => "XFAIL",
            Self::UnexpectedPass => "XPASS",
            Self::Skip => "SKIP",
            Self::NotApplicable => "N/A",
            Self::Unchecked => "UNCHECKED",
            Self::Blocked => "BLOCKED",
            Self::SuiteError => "SUITE-ERROR",
        }
    }

    /// The guest is not conformant.
    #[must_use]
    pub(crate) fn is_bad(self) -> bool {
        matches!(
            self,
            Self::Fail | Self::Crash | Self::Timeout | Self::UnexpectedPass
        )
    }
}

/// The result of one case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CaseResult {
    /// Its name.
    pub(crate) case: String,
    /// Its level.
    pub(crate) level: u8,
    /// The rules that it checks.
    pub(crate) rules: Vec<String>,
    /// What came of it.
    pub(crate) status: Status,
    /// Why, for SKIP, N/A, BLOCKED, SUITE-ERROR, XFAIL and XPASS.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
    /// The rules that were broken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) findings: Vec<Finding>,
    /// For the reader.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) remarks: Vec<String>,
    /// The last lines that the guest printed, where the case failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) output: String,
    /// The guest's own words about the first wrong access, from a second run.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) trace: String,
    /// How long it took.
    pub(crate) ms: u64,
    /// How many things were checked.
    pub(crate) checked: u64,
}

/// What one run of a case told besides its result.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) guest: Option<GuestInfo>,
    /// Filters of which a configuration was accepted.
    pub(crate) configured: Vec<String>,
    pub(crate) faults: usize,
    /// It hung while it was loaded or in its init.
    pub(crate) hung_at_start: bool,
    /// Executions of the fuzzer, the last of them, and in which one each finding was made, where that is known.
    pub(crate) executions: u64,
    pub(crate) last_execution: Option<u64>,
    pub(crate) found_in: Vec<Option<u64>>,
}

/// The settings of a run that cases share.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) timeout_scale: f64,
    pub(crate) grace_ms: u64,
}

/// Runs `case` once.
pub(crate) fn run(case: &Case, order: &Order, limits: &Limits) -> (CaseResult, Told) {
    let started = Instant::now();
    let mut result = CaseResult {
        case: case.name.to_string(),
        level: case.level,
        rules: case.rules.iter().map(ToString::to_string).collect(),
        status: Status::SuiteError,
        reason: String::new(),
        findings: Vec::new(),
        remarks: Vec::new(),
        output: String::new(),
        trace: String::new(),
        ms: 0,
        checked: 0,
    };
    let mut told = Told::default();
    let limit = Duration::from_secs_f64(case.seconds as f64 * limits.timeout_scale);
    match attempt(case, order, limit, None) {
        Ok((ended, shared)) => {
            judge(case, order, &ended, &shared, limit, &mut result, &mut told);
            shared.unmap();
        }
        Err(e) => result.reason = format!("the process of the case could not be started: {e}"),
    }
    result.ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    (result, told)
}

/// Runs `case` once more without letting wrong accesses through: what the guest's runtime says about the first one.
pub(crate) fn trace(case: &Case, order: &Order, limits: &Limits) -> Option<String> {
    let mut order = order.clone();
    order.heal = false;
    let limit = Duration::from_secs_f64(case.seconds as f64 * limits.timeout_scale);
    let (ended, shared) = attempt(case, &order, limit, None).ok()?;
    shared.unmap();
    let text = tail(&ended.printed, 40);
    (!text.is_empty()).then_some(text)
}

/// What memcheck says of the guest in `case`: how many errors, and its report. An error says why it was not asked.
pub(crate) fn valgrind(
    case: &Case,
    order: &Order,
    limits: &Limits,
) -> Result<(usize, String), String> {
    if order.has_go {
        return Err(
            "valgrind does not know Go's stacks and heap, and most of what it says of them is wrong; build the guest \
             with `go build -asan`, or `-tags valgrind` from Go 1.26 on, and run a test of its own"
                .into(),
        );
    }
    let log = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    // Slower by a factor of 20 to 50.
    let limit = Duration::from_secs_f64(case.seconds as f64 * limits.timeout_scale * 20.0);
    let (ended, shared) = attempt(case, order, limit, Some(log.path()))
        .map_err(|e| format!("valgrind cannot be started ({e}); install it (Debian: valgrind)"))?;
    let finished = shared.progress().stage == Stage::Finished;
    shared.unmap();
    let text = std::fs::read_to_string(log.path()).map_err(|e| e.to_string())?;
    let blocks = memcheck(&text);
    if !finished && blocks.is_empty() {
        return Err(format!(
            "the case did not end under valgrind: {}",
            tail(&ended.printed, 3)
        ));
    }
    Ok((blocks.len(), blocks.join("\n\n")))
}

/// The errors of a report of memcheck, without the numbers of processes.
fn memcheck(text: &str) -> Vec<String> {
    let plain = |l: &str| {
        let l = l.strip_prefix("==").or_else(|| l.strip_prefix("--"))?;
        Some(l.split_once(' ').map_or("", |(_, rest)| rest).to_string())
    };
    let lines: Vec<String> = text.lines().filter_map(plain).collect();
    lines
        .split(|l| l.trim().is_empty())
        .filter(|block| block.iter().any(|l| l.trim_start().starts_with("at 0x")))
        .filter(|block| !block[0].starts_with("Thread") || block.len() > 1)
        .map(|block| block.join("\n"))
        .collect()
}

fn attempt(
    case: &Case,
    order: &Order,
    limit: Duration,
    memcheck: Option<&Path>,
) -> std::io::Result<(Ended, Shared)> {
    let shared = Shared::create()?;
    let fd = shared
        .fd()
        .ok_or_else(|| std::io::Error::other("the shared memory has no descriptor"))?;
    let text = serde_json::to_string(order).map_err(std::io::Error::other)?;
    let args: [OsString; 3] = ["__case".into(), fd.to_string().into(), text.into()];
    let env: Vec<(&str, String)> = case
        .env
        .iter()
        .map(|(k, v)| (*k, (*v).to_string()))
        .chain([("GOTRACEBACK", "all".to_string())])
        .chain(crate::sys::entry::environment())
        .chain(memcheck.map(|_| (UNDER_VALGRIND, "1".to_string())))
        .collect();
    let wrapper: Vec<OsString> = memcheck.map_or_else(Vec::new, |log| {
        let mut to = OsString::from("--log-file=");
        to.push(log);
        vec![
            "valgrind".into(),
            "--quiet".into(),
            "--num-callers=20".into(),
            "--vgdb=no".into(),
            to,
        ]
    });
    let ended = process::run(&wrapper, &args, &env, fd, limit)?;
    Ok((ended, shared))
}

/// The last `n` lines of `text`.
fn tail(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
}

fn judge(
    case: &Case,
    order: &Order,
    ended: &Ended,
    shared: &Shared,
    limit: Duration,
    result: &mut CaseResult,
    told: &mut Told,
) {
    let progress = shared.progress();
    let mut modules = Vec::new();
    let mut not_applicable = None;
    let mut unchecked = None;
    let mut blocked = None;
    let mut suite_errors = Vec::new();
    for line in shared.log().lines() {
        match serde_json::from_str::<Record>(line) {
            Ok(Record::Finding(f)) => {
                result.findings.push(f);
                told.found_in.push(told.last_execution);
            }
            Ok(Record::Execution(n)) => {
                told.executions += 1;
                told.last_execution = Some(n);
            }
            Ok(Record::NotApplicable(why)) => not_applicable = Some(why),
            Ok(Record::Unchecked(why)) => unchecked = Some(why),
            Ok(Record::Blocked(why)) => blocked = Some(why),
            Ok(Record::Checked(n)) => result.checked = n,
            Ok(Record::Module(path, low, high, offset)) => modules.push(Module {
                path: path.into(),
                low,
                high,
                offset,
            }),
            Ok(Record::SuiteError(why)) => suite_errors.push(why),
            Ok(Record::Remark(text)) if !result.remarks.contains(&text) => {
                result.remarks.push(text)
            }
            Ok(Record::Remark(_)) => {}
            Ok(Record::Guest(g)) => told.guest = Some(g),
            Ok(Record::Configured(f)) => told.configured.push(f),
            Err(e) => suite_errors.push(format!("a line of the log can't be read: {e}")),
        }
    }
    let mut symbols = Symbols::new(modules, &order.guest);
    let faults = shared.faults();
    told.faults = faults.len();
    for f in &faults {
        let found = Fault::read(f).finding(&mut symbols, None);
        let same = |g: &&Finding| g.rule == found.rule && g.title == found.title;
        if result.findings.iter().filter(same).count() < 3 {
            result.findings.push(found);
        }
    }
    // What `load/table` and `load/bare-process` find blocks every case that needs a working table.
    let before_events = ["load/symbols", "load/bare-process", "load/table"].contains(&case.name);
    if told.guest.is_none()
        && !before_events
        && blocked.is_none()
        && let Some(f) = result.findings.first()
        && result
            .findings
            .iter()
            .all(|f| OF_THE_TABLE.contains(&f.rule.as_str()))
    {
        blocked = Some(format!("{}: {}", f.rule, f.title));
        result.findings.clear();
    }
    let mut crashed = None;
    if let Some(status) = ended.status {
        if progress.stage != Stage::Finished {
            let wild = shared.wild().map(|w| Fault::read(&w));
            crashed = Some(Status::Crash);
            result.findings.push(crash(
                case,
                &progress,
                status,
                ended,
                wild.as_ref(),
                &mut symbols,
            ));
        }
    } else {
        crashed = Some(Status::Timeout);
        told.hung_at_start = matches!(
            progress.stage,
            Stage::Starting | Stage::Loading | Stage::Init
        );
        let rule = result
            .findings
            .first()
            .map_or(case.rules[0].to_string(), |f| f.rule.clone());
        result.findings.push(timeout(rule, &progress, ended, limit));
    }
    if !ended.escaped.is_empty() {
        result.findings.push(Finding {
            rule: "PXG-RT-008".to_string(),
            title: "started processes that left the group of their parent".to_string(),
            detail: vec![format!("{:?}, which have been ended", ended.escaped)],
        });
    }
    if ended.printed_bytes > 1 << 20 {
        result
            .remarks
            .push(format!("the guest printed {} bytes", ended.printed_bytes));
    }
    let worst = result
        .findings
        .iter()
        .map(|f| rules::find(&f.rule).map_or(Level::Must, |r| r.level))
        .fold(None, |worst, l| match (worst, l) {
            (Some(Level::Must), _) | (_, Level::Must) => Some(Level::Must),
            _ => Some(l),
        });
    (result.status, result.reason) = if let Some(status) = crashed {
        (status, String::new())
    } else if let Some(why) = suite_errors.first() {
        (Status::SuiteError, why.clone())
    } else if worst == Some(Level::Must) {
        // Something was found, with less than everything.
        (Status::Fail, unchecked.unwrap_or_default())
    } else if worst.is_some() {
        (Status::Warn, String::new())
    } else if let Some(why) = blocked {
        (Status::Blocked, why)
    } else if let Some(why) = unchecked {
        (Status::Unchecked, why)
    } else if let Some(why) = not_applicable {
        (Status::NotApplicable, why)
    } else if result.checked == 0 {
        (Status::SuiteError, "the case checked nothing".to_string())
    } else {
        (Status::Pass, String::new())
    };
    if result.status.is_bad() || result.status == Status::SuiteError {
        result.output = tail(&ended.printed, 30);
    }
}

fn where_it_was(p: &Progress) -> String {
    match (p.stage, p.hook) {
        (_, Hook::Event) => format!(
            "in on_event({}), event {} of the run, stream {:#x}",
            phase_name(Phase(p.phase)),
            p.event,
            p.stream
        ),
        (Stage::Starting, Hook::None) => "before the guest was loaded".to_string(),
        (_, Hook::None) => format!("outside of every hook, after event {}", p.event),
        (_, h) => format!("in {}", h.name()),
    }
}

fn signal_name(n: i32) -> String {
    match n {
        libc::SIGSEGV => "SIGSEGV".into(),
        libc::SIGABRT => "SIGABRT".into(),
        libc::SIGBUS => "SIGBUS".into(),
        libc::SIGFPE => "SIGFPE".into(),
        libc::SIGILL => "SIGILL".into(),
        libc::SIGKILL => "SIGKILL".into(),
        libc::SIGXCPU => "SIGXCPU".into(),
        libc::SIGXFSZ => "SIGXFSZ".into(),
        libc::SIGPIPE => "SIGPIPE".into(),
        n => format!("signal {n}"),
    }
}

/// Rules that a guest breaks before it can be used at all.
const OF_THE_TABLE: [&str; 5] = [
    "PXG-LOAD-001",
    "PXG-LOAD-002",
    "PXG-LOAD-010",
    "PXG-ABI-002",
    "PXG-ABI-012",
];

/// Lays a crash to a rule: by what the C library or the runtime said, by the address, else by where it was.
fn crash(
    case: &Case,
    p: &Progress,
    status: std::process::ExitStatus,
    ended: &Ended,
    wild: Option<&Fault>,
    symbols: &mut Symbols,
) -> Finding {
    let text = &ended.printed;
    let says = |words: &[&str]| words.iter().any(|w| text.contains(w));
    let how = match (status.signal(), status.code()) {
        (Some(s), _) => format!("the process died of {}", signal_name(s)),
        (None, Some(c)) => format!("the guest ended the process with exit code {c}"),
        (None, None) => "the process ended".to_string(),
    };
    let rule = if says(&[
        "free(): invalid",
        "munmap_chunk(): invalid",
        "realloc(): invalid",
        "double free or corruption (out)",
        "free(): double free",
    ]) {
        "PXG-MEM-008"
    } else if says(&[
        "found bad pointer in Go heap",
        "invalid pointer found on stack",
        "bad pointer in write barrier",
    ]) {
        case.rules[0]
    } else if says(&[
        "unpinned Go pointer",
        "cgo result has Go pointer",
        "cgo argument has Go pointer",
    ]) {
        "PXG-MEM-011"
    } else if wild.is_some_and(|w| w.pc == 0) {
        "PXG-NEG-004"
    } else if p.refused_scratch && wild.is_some_and(|w| w.at < 4096) {
        "PXG-MEM-010"
    } else if p.containment == 1
        && (panicked_in_goroutine(text)
            || (p.hook == Hook::None && says(&["panicked at", "terminate called"])))
    {
        "PXG-ERR-002"
    } else if p.containment == 1
        && says(&[
            "panic:",
            "panicked at",
            "terminate called",
            "fatal error:",
            "fatal runtime error",
        ])
    {
        "PXG-ABI-007"
    } else if status.code().is_some() && !says(&["panic:", "fatal error:"]) {
        "PXG-RT-007"
    } else {
        case.rules[0]
    };
    let mut detail = vec![where_it_was(p)];
    if let Some(w) = wild.filter(|_| status.signal().is_some()) {
        let (first, own) = symbols.sites(&w.frames);
        detail.push(format!(
            "{} of address {:#x}{}",
            if w.write { "write" } else { "read or call" },
            w.at,
            if w.at < 4096 {
                ", behind a NULL or a small number"
            } else {
                ""
            }
        ));
        if let Some(s) = own.or(first) {
            detail.push(format!("by {s}"));
        }
    }
    if let Some(line) = text.lines().find(|l| {
        [
            "panic:",
            "fatal error:",
            "panicked at",
            "terminate called",
            "(): ",
            "unexpected fault",
        ]
        .iter()
        .any(|w| l.contains(w))
    }) {
        detail.push(format!("it said: {}", line.trim()));
    }
    Finding {
        rule: rule.to_string(),
        title: how,
        detail,
    }
}

/// Whether Go's report of a panic is about a goroutine of the guest's own, not about one that a hook runs in.
fn panicked_in_goroutine(text: &str) -> bool {
    text.split_once("panic: ")
        .and_then(|(_, rest)| rest.split_once("goroutine "))
        .is_some_and(|(_, rest)| {
            rest.split("\n\n")
                .next()
                .is_some_and(|g| g.contains("created by "))
        })
}

fn timeout(rule: String, p: &Progress, ended: &Ended, limit: Duration) -> Finding {
    let mut detail = vec![where_it_was(p)];
    detail.extend(ended.threads.iter().take(6).cloned());
    Finding {
        rule,
        title: format!("did not end within {} s", limit.as_secs_f64()),
        detail,
    }
}

/// Whether `path` can be a library at all, before anything is run.
pub(crate) fn check_file(path: &Path) -> Result<(), String> {
    crate::elf::exports(path).map(|_| ())
}
