//! What a person reads on a terminal.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::finding::Finding;
use crate::sandbox::{CaseResult, Status};
use crate::suite::Plan;
use crate::verdict::{HostInfo, Report};
use crate::{elf, rules};

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const END: &str = "\x1b[0m";

fn paint(text: &str, with: &str, colour: bool) -> String {
    if colour {
        format!("{with}{text}{END}")
    } else {
        text.to_string()
    }
}

fn colour_of(s: Status) -> &'static str {
    match s {
        Status::Pass | Status::ExpectedFailure => GREEN,
        Status::Fail
        | Status::Crash
        | Status::Timeout
        | Status::UnexpectedPass
        | Status::SuiteError => RED,
        Status::Warn | Status::Blocked | Status::Unchecked => YELLOW,
        Status::Skip | Status::NotApplicable => DIM,
    }
}

/// The head of a report.
pub(crate) fn head(r: &Report, colour: bool) -> String {
    if let Some(h) = &r.host {
        return host_head(r, h, colour);
    }
    let runtime = if r.go { ", with a Go runtime" } else { "" };
    let name = if r.info.name.is_empty() {
        r.guest.display().to_string()
    } else {
        format!("{} ({} {})", r.guest.display(), r.info.name, r.info.version)
    };
    let mut out = format!(
        "{}  abi {}  guest {name}{runtime}\nsha256 {}  level L{}  seed {:#x}\n",
        paint(&format!("pxg-conformance {}", r.suite), BOLD, colour),
        r.abi,
        &r.sha256[..r.sha256.len().min(16)],
        r.level,
        r.seed
    );
    let _ = writeln!(out, "detectors: {}", r.detectors.join(", "));
    if !r.inactive.is_empty() {
        let _ = writeln!(out, "not active: {}", r.inactive.join("; "));
    }
    out
}

fn host_head(r: &Report, h: &HostInfo, colour: bool) -> String {
    format!(
        "{}  abi {}  host {} ({}), {}\nprobe sha256 {}{}  level L{}  seed {:#x}\nfeatures: {}\n",
        paint(&format!("pxg-conformance {}", r.suite), BOLD, colour),
        r.abi,
        h.name,
        h.version,
        h.adapter.display(),
        &r.sha256[..r.sha256.len().min(16)],
        h.layer
            .as_ref()
            .map(|l| format!("  through {}", l.display()))
            .unwrap_or_default(),
        r.level,
        r.seed,
        h.feature_names().join(" "),
    )
}

/// A line for each family of cases.
pub(crate) fn families(r: &Report, colour: bool) -> String {
    let mut by: BTreeMap<&str, Vec<&CaseResult>> = BTreeMap::new();
    for c in &r.cases {
        by.entry(c.case.split('/').next().unwrap_or(""))
            .or_default()
            .push(c);
    }
    let mut out = String::new();
    for (family, cases) in by {
        let ok = cases.iter().filter(|c| c.status == Status::Pass).count();
        let applies = cases
            .iter()
            .filter(|c| {
                !matches!(
                    c.status,
                    Status::NotApplicable | Status::Skip | Status::Unchecked
                )
            })
            .count();
        let mut rest: BTreeMap<&str, (usize, Status)> = BTreeMap::new();
        for c in cases.iter().filter(|c| c.status != Status::Pass) {
            rest.entry(c.status.name()).or_insert((0, c.status)).0 += 1;
        }
        let rest: Vec<String> = rest
            .iter()
            .map(|(name, (n, s))| paint(&format!("{n} {name}"), colour_of(*s), colour))
            .collect();
        let state = if rest.is_empty() {
            paint("ok", GREEN, colour)
        } else {
            rest.join(", ")
        };
        let _ = writeln!(out, " {family:<7} {ok:>3}/{applies:<3} {state}");
    }
    out
}

fn language(r: &Report) -> &'static str {
    match (&r.host, r.go) {
        (Some(_), _) => "host",
        (None, true) => "go",
        (None, false) => "c",
    }
}

/// The line that runs a case again.
pub(crate) fn again(r: &Report, c: &CaseResult) -> String {
    if let Some(h) = &r.host {
        return format!(
            "pxg-conformance host --adapter {}{} --only {} --seed {:#x}",
            h.adapter.display(),
            h.layer
                .as_ref()
                .map(|l| format!(" --layer {}", l.display()))
                .unwrap_or_default(),
            c.case,
            r.seed
        );
    }
    format!(
        "pxg-conformance guest {}{} --only {} --seed {:#x}",
        r.guest.display(),
        r.settings
            .as_ref()
            .map(|f| format!(" --config {}", f.display()))
            .unwrap_or_default(),
        c.case,
        r.seed
    )
}

/// Whether the report has every case of its level: a few that pass make nothing conformant.
pub(crate) fn is_whole(r: &Report) -> bool {
    r.due().iter().all(|c| r.cases.iter().any(|x| x.case == *c))
}

/// A case that is not as it should be, in full.
pub(crate) fn case(r: &Report, c: &CaseResult, colour: bool) -> String {
    let mut out = String::new();
    let ids: Vec<String> = {
        let mut v: Vec<String> = c.findings.iter().map(|f| f.rule.clone()).collect();
        v.dedup();
        v
    };
    let status = paint(c.status.name(), colour_of(c.status), colour);
    let _ = writeln!(
        out,
        "{status}  {}  {} ms  [{}]",
        paint(&c.case, BOLD, colour),
        c.ms,
        if ids.is_empty() {
            c.rules.join(", ")
        } else {
            ids.join(", ")
        }
    );
    if !c.reason.is_empty() {
        let _ = writeln!(out, "  {}", c.reason);
    }
    findings(&mut out, c, language(r));
    if c.status.is_bad() || c.status == Status::Warn {
        let _ = writeln!(out, "  again  {}", again(r, c));
    }
    printed(&mut out, c, r.host.is_some());
    out
}

fn findings(out: &mut String, c: &CaseResult, language: &str) {
    let mut said: Option<&str> = None;
    for (i, f) in c.findings.iter().enumerate() {
        finding(out, f);
        let last_of_rule = c.findings.get(i + 1).is_none_or(|n| n.rule != f.rule);
        if last_of_rule && said != Some(f.rule.as_str()) {
            said = Some(f.rule.as_str());
            if let Some(rule) = rules::find(&f.rule) {
                let _ = writeln!(
                    out,
                    "  spec   {} {} ({}): \"{}\"",
                    rule.id,
                    rule.level.name(),
                    rule.party,
                    rule.text
                );
                if let Some(fix) = rule.fix_for(language) {
                    let _ = writeln!(out, "  fix    {fix}");
                }
            }
        }
    }
}

fn printed(out: &mut String, c: &CaseResult, of_host: bool) {
    let titles = if of_host {
        ["the host printed", "the last calls"]
    } else {
        ["the guest printed", "what its runtime or valgrind says"]
    };
    for (title, text) in titles.iter().zip([&c.output, &c.trace]) {
        if !text.is_empty() {
            let _ = writeln!(out, "  {title}:");
            for line in text.lines() {
                let _ = writeln!(out, "  | {line}");
            }
        }
    }
}

/// What came of a recorded scenario.
pub(crate) fn replayed(p: &Plan, c: &CaseResult, file: &Path) -> String {
    let mut out = format!("{}  {}  {} ms\n", c.status.name(), file.display(), c.ms);
    if !c.reason.is_empty() {
        let _ = writeln!(out, "  {}", c.reason);
    }
    let language = if elf::has_go(&p.guest) { "go" } else { "c" };
    findings(&mut out, c, language);
    printed(&mut out, c, false);
    out
}

fn finding(out: &mut String, f: &Finding) {
    let _ = writeln!(out, "  {}  {}", f.rule, f.title);
    for d in &f.detail {
        let _ = writeln!(out, "    {d}");
    }
}

/// The last line.
pub(crate) fn last(r: &Report, colour: bool) -> String {
    let n = |s| r.count(s);
    let mut parts = vec![format!("{} pass", n(Status::Pass))];
    for (s, word) in [
        (Status::Warn, "warn"),
        (Status::Fail, "fail"),
        (Status::Crash, "crash"),
        (Status::Timeout, "timeout"),
        (Status::ExpectedFailure, "xfail"),
        (Status::UnexpectedPass, "xpass"),
        (Status::Blocked, "blocked"),
        (Status::SuiteError, "suite error"),
        (Status::Unchecked, "not checkable here"),
        (Status::Skip, "skip"),
        (Status::NotApplicable, "n/a"),
    ] {
        if n(s) > 0 {
            parts.push(format!("{} {word}", n(s)));
        }
    }
    let whole = is_whole(r);
    let name = if r.verdict.code() == 0 && !whole {
        "THE SELECTED CASES PASS"
    } else {
        r.verdict.name()
    };
    let verdict = paint(
        name,
        if r.verdict.code() == 0 { GREEN } else { RED },
        colour,
    );
    let because = if r.because.is_empty() {
        String::new()
    } else {
        format!(": {}", r.because)
    };
    let reached = if whole {
        format!(" (L{} of L{} reached)", r.reached(), r.level)
    } else {
        String::new()
    };
    format!(
        "{} cases: {}  {:.1} s      {verdict}{because}{reached}\n",
        r.cases.len(),
        parts.join(", "),
        r.ms as f64 / 1000.0,
    )
}

/// Everything.
pub(crate) fn whole(r: &Report, colour: bool) -> String {
    let mut out = head(r, colour);
    out.push_str(&families(r, colour));
    for c in &r.cases {
        if c.status.is_bad()
            || !c.trace.is_empty()
            || matches!(
                c.status,
                Status::Warn
                    | Status::Blocked
                    | Status::Unchecked
                    | Status::SuiteError
                    | Status::ExpectedFailure
            )
        {
            out.push('\n');
            out.push_str(&case(r, c, colour));
        }
    }
    out.push('\n');
    out.push_str(&slowest(r));
    out.push_str(&last(r, colour));
    out
}

fn slowest(r: &Report) -> String {
    let mut by: Vec<&CaseResult> = r.cases.iter().filter(|c| c.ms > 0).collect();
    by.sort_by_key(|c| std::cmp::Reverse(c.ms));
    let five: Vec<String> = by
        .iter()
        .take(5)
        .map(|c| format!("{} {} ms", c.case, c.ms))
        .collect();
    format!(
        "slowest: {}; the first case began after {} ms\n",
        five.join(", "),
        r.first_case_ms
    )
}
