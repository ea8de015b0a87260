//! Where findings go: a line of JSON each into the file, and a text on standard error.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::Serialize;

use crate::settings::{Mode, Settings};
use crate::sys::platform;

/// Who broke the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    Host,
    Guest,
}

/// A rule that was broken.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) rule: &'static str,
    pub(crate) side: Side,
    pub(crate) what: String,
    pub(crate) expected: String,
    /// It may have a good reason: never aborts, never fails a test.
    pub(crate) warning: bool,
}

pub(crate) fn host(
    rule: &'static str,
    what: impl Into<String>,
    expected: impl Into<String>,
) -> Found {
    Found {
        rule,
        side: Side::Host,
        what: what.into(),
        expected: expected.into(),
        warning: false,
    }
}

pub(crate) fn guest(
    rule: &'static str,
    what: impl Into<String>,
    expected: impl Into<String>,
) -> Found {
    Found {
        side: Side::Guest,
        ..host(rule, what, expected)
    }
}

impl Found {
    pub(crate) fn warning(mut self) -> Self {
        self.warning = true;
        self
    }
}

/// Where it happened.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Place {
    /// The function of the boundary.
    #[serde(rename = "fn")]
    pub(crate) function: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) phase: &'static str,
    /// Filter and name of the configuration.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) instance: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) stream: u64,
    /// The last calls for this stream, the newest last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) last: Vec<String>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[derive(Serialize)]
struct FindingLine<'a> {
    kind: &'static str,
    rule: &'a str,
    side: Side,
    severity: &'static str,
    what: &'a str,
    expected: &'a str,
    #[serde(flatten)]
    place: &'a Place,
    t: u64,
    pid: u32,
    tid: u64,
    guest: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    last_of_its_kind: bool,
}

#[derive(Serialize)]
struct BeginLine<'a> {
    kind: &'static str,
    layer: &'static str,
    guest: &'a str,
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    perturb: Option<u64>,
    t: u64,
    pid: u32,
}

#[derive(Serialize)]
struct EndLine<'a> {
    kind: &'static str,
    guest: &'a str,
    t: u64,
    pid: u32,
    calls: u64,
    findings: u64,
    warnings: u64,
    suppressed: u64,
}

/// How often one rule is reported for one place.
const REPEATS: u64 = 10;

pub(crate) struct Reporter {
    pub(crate) settings: Settings,
    out: Option<File>,
    seen: Mutex<HashMap<(&'static str, Side, String), u64>>,
    findings: AtomicU64,
    warnings: AtomicU64,
    suppressed: AtomicU64,
    calls: AtomicU64,
    pid: u32,
}

static REPORTER: OnceLock<Reporter> = OnceLock::new();

/// Begins: the banner, once.
pub(crate) fn begin(settings: Settings) -> Result<&'static Reporter, String> {
    if let Some(r) = REPORTER.get() {
        return Ok(r);
    }
    let out = match &settings.out {
        Some(p) => Some(open(p)?),
        None => None,
    };
    let r = REPORTER.get_or_init(|| Reporter {
        settings,
        out,
        seen: Mutex::default(),
        findings: AtomicU64::new(0),
        warnings: AtomicU64::new(0),
        suppressed: AtomicU64::new(0),
        calls: AtomicU64::new(0),
        pid: std::process::id(),
    });
    let s = &r.settings;
    r.line(&BeginLine {
        kind: "begin",
        layer: env!("CARGO_PKG_VERSION"),
        guest: &s.guest.display().to_string(),
        mode: s.mode.name(),
        perturb: s.perturb,
        t: platform::now_ns(),
        pid: std::process::id(),
    });
    let perturbed = s
        .perturb
        .map(|n| format!(", perturbed by seed {n:#x}"))
        .unwrap_or_default();
    say(&format!(
        "pxg-layer {}: checks {}, mode {}{perturbed}",
        env!("CARGO_PKG_VERSION"),
        s.guest.display(),
        s.mode.name(),
    ));
    Ok(r)
}

fn open(path: &Path) -> Result<File, String> {
    let path = path.display().to_string();
    let path = path.replace("%p", &std::process::id().to_string());
    File::options()
        .append(true)
        .create(true)
        .open(&path)
        .map_err(|e| format!("PXG_LAYER_OUT: cannot open {path}: {e}"))
}

/// The reporter of this copy of the layer, once it has begun.
pub(crate) fn current() -> Option<&'static Reporter> {
    REPORTER.get()
}

/// Standard error may be closed: nobody minds.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

impl Reporter {
    pub(crate) fn guards_memory(&self) -> bool {
        self.settings.mode != Mode::Log
    }

    pub(crate) fn count_call(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// One line, with one write: other copies of the layer may append to the same file.
    pub(crate) fn line(&self, v: &impl Serialize) {
        let Some(mut out) = self.out.as_ref() else {
            return;
        };
        if let Ok(mut line) = serde_json::to_vec(v) {
            line.push(b'\n');
            let _ = out.write_all(&line);
        }
    }

    pub(crate) fn report(&self, found: &Found, place: &Place) {
        if !self.settings.filter.takes(found.rule) {
            return;
        }
        let counter = if found.warning {
            &self.warnings
        } else {
            &self.findings
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let n = {
            let at = format!("{} {} {}", place.function, place.phase, place.instance);
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let n = seen.entry((found.rule, found.side, at)).or_default();
            *n += 1;
            *n
        };
        if n > REPEATS {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.line(&FindingLine {
            kind: "finding",
            rule: found.rule,
            side: found.side,
            severity: if found.warning { "warning" } else { "error" },
            what: &found.what,
            expected: &found.expected,
            place,
            t: platform::now_ns(),
            pid: std::process::id(),
            tid: platform::tid(),
            guest: &self.settings.guest.display().to_string(),
            last_of_its_kind: n == REPEATS,
        });
        say(&text(found, place, n));
        if self.settings.mode == Mode::Abort && !found.warning {
            say("pxg-layer: aborts, because PXG_LAYER=abort");
            std::process::abort();
        }
    }

    /// The count at the end, also where the host swallows standard error.
    pub(crate) fn end(&self) {
        // A child that was forked after loading has its own end; the count is its parent's.
        if std::process::id() != self.pid {
            return;
        }
        let (findings, warnings) = (
            self.findings.load(Ordering::Relaxed),
            self.warnings.load(Ordering::Relaxed),
        );
        let suppressed = self.suppressed.load(Ordering::Relaxed);
        let calls = self.calls.load(Ordering::Relaxed);
        self.line(&EndLine {
            kind: "end",
            guest: &self.settings.guest.display().to_string(),
            t: platform::now_ns(),
            pid: std::process::id(),
            calls,
            findings,
            warnings,
            suppressed,
        });
        say(&format!(
            "pxg-layer: {}: {calls} calls, {findings} findings, {warnings} warnings{}",
            self.settings.guest.display(),
            if suppressed > 0 {
                format!(" ({suppressed} of them repeats that were not written)")
            } else {
                String::new()
            }
        ));
    }
}

fn text(f: &Found, p: &Place, n: u64) -> String {
    let side = match f.side {
        Side::Host => "host",
        Side::Guest => "guest",
    };
    let mut s = format!(
        "pxg-layer: {} {side}{}: {}\n  in {}",
        f.rule,
        if f.warning { " (warning)" } else { "" },
        f.what,
        p.function
    );
    if !p.phase.is_empty() {
        s += &format!("({})", p.phase);
    }
    if !p.instance.is_empty() {
        s += &format!(" of {}", p.instance);
    }
    if p.stream != 0 {
        s += &format!(", stream {:#x}", p.stream);
    }
    s += &format!(", thread {}", platform::tid());
    if !f.expected.is_empty() {
        s += &format!("\n  expected: {}", f.expected);
    }
    if !p.last.is_empty() {
        s += &format!("\n  before it: {}", p.last.join("; "));
    }
    s += &format!("\n  more: pxg-conformance explain {}", f.rule);
    if n == REPEATS {
        s += "\n  that was the last time that this is written for this rule and place";
    }
    s
}
