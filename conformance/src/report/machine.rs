//! JUnit, TAP, GitHub annotations.

use std::fmt::Write as _;

use quick_junit::{NonSuccessKind, Report as JunitReport, TestCase, TestCaseStatus, TestSuite};

use super::human;
use crate::sandbox::Status;
use crate::verdict::Report;

/// JUnit's XML.
pub(crate) fn junit(r: &Report) -> anyhow::Result<String> {
    let mut suite = TestSuite::new(match &r.host {
        Some(h) => format!("pxg-conformance host {}", h.name),
        None => format!("pxg-conformance {}", r.guest.display()),
    });
    for c in &r.cases {
        let status = match c.status {
            Status::Pass | Status::ExpectedFailure | Status::Warn => TestCaseStatus::success(),
            Status::Skip | Status::NotApplicable | Status::Unchecked => {
                let mut s = TestCaseStatus::skipped();
                s.set_message(c.reason.clone());
                s
            }
            // What could not run must not look green.
            Status::SuiteError | Status::Blocked => {
                let mut s = TestCaseStatus::non_success(NonSuccessKind::Error);
                s.set_type(c.status.name());
                s.set_message(c.reason.clone());
                s
            }
            _ => {
                let mut s = TestCaseStatus::non_success(NonSuccessKind::Failure);
                if let Some(f) = c.findings.first() {
                    s.set_type(f.rule.clone());
                    s.set_message(f.title.clone());
                }
                s.set_description(human::case(r, c, false));
                s
            }
        };
        let mut case = TestCase::new(c.case.clone(), status);
        case.set_classname(format!("L{}", c.level));
        case.set_time(std::time::Duration::from_millis(c.ms));
        suite.add_test_case(case);
    }
    // The verdict is a test of its own: a report of nothing but skipped cases is not green.
    let mut verdict = TestCaseStatus::success();
    if r.verdict.code() != 0 {
        verdict = TestCaseStatus::non_success(NonSuccessKind::Failure);
        verdict.set_type(r.verdict.name());
        verdict.set_message(r.because.clone());
    }
    suite.add_test_case(TestCase::new("verdict", verdict));
    let mut report = JunitReport::new("pxg-conformance");
    report.add_test_suite(suite);
    Ok(report.to_string()?)
}

/// The Test Anything Protocol.
pub(crate) fn tap(r: &Report) -> String {
    let mut out = format!("TAP version 13\n1..{}\n", r.cases.len() + 1);
    for (i, c) in r.cases.iter().enumerate() {
        let ok = if c.status.is_bad() || matches!(c.status, Status::SuiteError | Status::Blocked) {
            "not ok"
        } else {
            "ok"
        };
        let directive = match c.status {
            Status::Skip | Status::NotApplicable | Status::Unchecked => {
                format!(" # SKIP {}", c.reason.replace('\n', " "))
            }
            Status::ExpectedFailure => format!(" # TODO {}", c.reason.replace('\n', " ")),
            _ => String::new(),
        };
        let _ = writeln!(out, "{ok} {} - {}{directive}", i + 1, c.case);
        for f in &c.findings {
            let _ = writeln!(out, "# {} {}", f.rule, f.title);
        }
    }
    // As in JUnit's: a run of nothing but skipped cases is not green.
    let _ = writeln!(
        out,
        "{} {} - verdict: {}",
        if r.verdict.code() == 0 {
            "ok"
        } else {
            "not ok"
        },
        r.cases.len() + 1,
        r.verdict.name()
    );
    out
}

/// Annotations of GitHub's actions.
pub(crate) fn github(r: &Report) -> String {
    let escape = |t: &str| {
        t.replace('%', "%25")
            .replace('\r', "%0D")
            .replace('\n', "%0A")
    };
    // In a property, the characters between properties, too.
    let property = |t: &str| escape(t).replace(':', "%3A").replace(',', "%2C");
    let mut out = String::new();
    for c in &r.cases {
        for f in &c.findings {
            let kind = if c.status.is_bad() {
                "error"
            } else {
                "warning"
            };
            let mut text = f.title.clone();
            for d in &f.detail {
                text.push('\n');
                text.push_str(d);
            }
            let _ = writeln!(
                out,
                "::{kind} title={}::{}",
                property(&format!("{} {}", f.rule, c.case)),
                escape(&text)
            );
        }
    }
    out
}
