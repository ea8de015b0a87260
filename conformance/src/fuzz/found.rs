//! What fuzzing finds, and how it is said.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use super::{Asked, is_must};
use crate::finding::Finding;
use crate::rules;
use crate::sandbox::{CaseResult, Status};
use crate::scenario::Scenario;

/// What makes two findings the same: the rule, and the place in the guest, or else the words without numbers and
/// without what they quote.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    rule: String,
    what: String,
}

impl Key {
    pub(super) fn of(f: &Finding) -> Self {
        let site = f
            .detail
            .iter()
            .find_map(|d| d.strip_prefix("by "))
            .and_then(|d| Some(d.split_once(": ")?.1.to_string()));
        Self {
            rule: f.rule.clone(),
            // The numbers of lines are part of a place.
            what: site.unwrap_or_else(|| without_numbers(&f.title)),
        }
    }

    /// The same finding in another result.
    pub(super) fn find<'a>(&self, r: &'a CaseResult) -> Option<&'a Finding> {
        r.findings.iter().find(|f| Self::of(f) == *self)
    }

    pub(super) fn file_name(&self) -> String {
        let digest = Sha256::digest(format!("{} {}", self.rule, self.what));
        let short: String = digest[..4].iter().map(|b| format!("{b:02x}")).collect();
        format!("{}-{short}", self.rule)
    }
}

fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    let mut in_number = false;
    let mut in_quotes = false;
    for c in text.chars() {
        in_quotes ^= c == '"';
        if in_quotes {
            continue;
        }
        in_number = c.is_ascii_digit() || (in_number && (c.is_ascii_hexdigit() || c == 'x'));
        if !in_number {
            out.push(c);
        } else if !out.ends_with('#') {
            out.push('#');
        }
    }
    out
}

#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) finding: Finding,
    pub(super) status: Status,
    /// The executions that showed it: one, if one alone does.
    pub(super) numbers: Option<Range<u64>>,
    /// How often the smallest scenario showed it, of how many times.
    pub(super) repeats: (u32, u32),
    pub(super) scenario: Option<Scenario>,
    pub(super) file: Option<PathBuf>,
    pub(super) output: String,
}

impl Found {
    /// It is found by waiting: a busy machine may look the same.
    pub(super) fn is_of_time(&self) -> bool {
        self.status == Status::Timeout
            || ["PXG-ASY-001", "PXG-MEM-007"].contains(&self.finding.rule.as_str())
    }

    pub(super) fn is_must(&self) -> bool {
        is_must(&self.finding.rule)
    }

    /// The line that repeats it.
    fn again(&self, asked: &Asked) -> String {
        let guest = asked.plan.guest.display();
        let settings = asked
            .plan
            .settings_file
            .as_ref()
            .map(|f| format!(" --config {}", f.display()))
            .unwrap_or_default();
        match (&self.file, &self.numbers) {
            (Some(f), _) => format!(
                "pxg-conformance guest {guest}{settings} --replay {}",
                f.display()
            ),
            (None, Some(n)) => {
                let only = if n.end == n.start + 1 {
                    n.start.to_string()
                } else {
                    format!("{}..{}", n.start, n.end)
                };
                format!(
                    "pxg-conformance fuzz {guest}{settings} --seed {:#x} --only {only}",
                    asked.plan.seed
                )
            }
            (None, None) => String::new(),
        }
    }

    pub(super) fn json(&self, asked: &Asked) -> serde_json::Value {
        serde_json::json!({
            "rule": self.finding.rule, "title": self.finding.title, "detail": self.finding.detail,
            "status": self.status, "must": self.is_must(),
            "executions": self.numbers.as_ref().map(|n| [n.start, n.end]),
            "repeats": self.repeats, "steps": self.scenario.as_ref().map(Scenario::len),
            "file": self.file, "again": self.again(asked),
        })
    }

    pub(super) fn text(&self, asked: &Asked, go: bool) -> String {
        let mut out = String::new();
        let rule = rules::find(&self.finding.rule);
        let _ = writeln!(
            out,
            "{}  [{}{}]  {}",
            self.status.name(),
            self.finding.rule,
            rule.map(|r| format!(" {}", r.level.name()))
                .unwrap_or_default(),
            self.finding.title
        );
        for d in &self.finding.detail {
            let _ = writeln!(out, "    {d}");
        }
        if let Some(r) = rule {
            let _ = writeln!(out, "  spec   \"{}\"", r.text);
            if let Some(fix) = r.fix_for(if go { "go" } else { "c" }) {
                let _ = writeln!(out, "  fix    {fix}");
            }
        }
        let found_by = match (&self.scenario, &self.numbers) {
            (Some(s), _) => format!(
                "a scenario of {} steps shows it, {} of {} times",
                s.len(),
                self.repeats.0,
                self.repeats.1
            ),
            (None, Some(n)) => {
                format!("executions {} to {} together showed it", n.start, n.end - 1)
            }
            (None, None) => String::new(),
        };
        let _ = writeln!(out, "  found  {found_by}");
        let _ = writeln!(out, "  again  {}", self.again(asked));
        if let (Some(s), None) = (&self.scenario, &self.file)
            && let Ok(text) = s.to_text()
            && text.len() < 4000
        {
            let _ = writeln!(out, "  scenario (--corpus DIR keeps it):");
            for line in text.lines() {
                let _ = writeln!(out, "  | {line}");
            }
        }
        if self.status == Status::Crash && !self.output.is_empty() {
            let _ = writeln!(out, "  the guest printed:");
            for line in self.output.lines().take(25) {
                let _ = writeln!(out, "  | {line}");
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_do_not_make_findings_different() {
        let f = |title: &str, by: &str| Finding {
            rule: "PXG-MEM-002".into(),
            title: title.into(),
            detail: vec![by.into()],
        };
        assert_eq!(
            Key::of(&f("has \"a\", bad", "")),
            Key::of(&f("has \"b1\", bad", ""))
        );
        let a = Key::of(&f("the value of field 3 used late", ""));
        assert_eq!(a, Key::of(&f("the value of field 12 used late", "")));
        assert_ne!(a, Key::of(&f("the name of field 3 used late", "")));
        let site = "by thread 7: late_run  guest.c:214  (x.so)";
        assert_eq!(
            Key::of(&f("the value of field 3", site)),
            Key::of(&f("the name of field 1", &site.replace('7', "9")))
        );
        assert_ne!(
            Key::of(&f("x", site)),
            Key::of(&f("x", &site.replace("214", "215")))
        );
    }
}
