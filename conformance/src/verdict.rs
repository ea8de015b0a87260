//! What a run comes to: the report of its cases, and the verdict that follows from them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cases;
use crate::finding::GuestInfo;
use crate::sandbox::{CaseResult, Status};
use crate::subject::{Expect, FILE_NAME};

/// What a run comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// Every case that applies passed.
    Conformant,
    /// A MUST was broken.
    NotConformant,
    /// Nothing was found, and not everything was checked.
    Incomplete,
    /// The suite failed.
    SuiteError,
}

impl Verdict {
    /// The exit code.
    #[must_use]
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Conformant => 0,
            Self::NotConformant => 1,
            Self::SuiteError => 3,
            Self::Incomplete => 4,
        }
    }

    /// For the last line.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Conformant => "CONFORMANT",
            Self::NotConformant => "NOT CONFORMANT",
            Self::Incomplete => "INCOMPLETE",
            Self::SuiteError => "SUITE ERROR",
        }
    }
}

/// A whole run: the report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Version of this schema.
    pub(crate) schema: u32,
    /// Version of the suite.
    pub(crate) suite: String,
    /// Version of the ABI that it checks.
    pub(crate) abi: String,
    /// The library.
    pub(crate) guest: PathBuf,
    /// The settings' file, where it was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) settings: Option<PathBuf>,
    /// Its digest.
    pub(crate) sha256: String,
    /// What it says of itself.
    pub(crate) info: GuestInfo,
    /// Whether it contains a Go runtime.
    pub(crate) go: bool,
    /// The level that was asked for.
    pub(crate) level: u8,
    /// The seed.
    pub(crate) seed: u64,
    /// What watched.
    pub(crate) detectors: Vec<String>,
    /// What did not, and why.
    #[serde(default)]
    pub(crate) inactive: Vec<String>,
    /// Kernel and machine.
    pub(crate) machine: String,
    /// The cases.
    pub(crate) cases: Vec<CaseResult>,
    /// Filters of which no configuration was accepted.
    pub(crate) unconfigured: Vec<String>,
    /// How long it took.
    pub(crate) ms: u64,
    /// From the start of the program to that of the first case.
    #[serde(default)]
    pub(crate) first_case_ms: u64,
    /// What it comes to.
    pub(crate) verdict: Verdict,
    /// Why it is not conformant, in a few words.
    pub(crate) because: String,
    /// The host, where one was checked; `guest` is the probe then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) host: Option<HostInfo>,
}

/// A host that was checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostInfo {
    /// The adapter's file.
    pub(crate) adapter: PathBuf,
    /// Its name in the adapter.
    pub(crate) name: String,
    /// What it says of its version.
    pub(crate) version: String,
    /// What it says of itself in its table.
    pub(crate) table_name: String,
    /// See above.
    pub(crate) table_version: String,
    /// Its feature bits.
    pub(crate) features: [u64; 4],
    /// The layer that stood between it and the probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) layer: Option<PathBuf>,
}

impl HostInfo {
    /// The names of its features.
    #[must_use]
    pub(crate) fn feature_names(&self) -> Vec<&'static str> {
        proxy_golang_abi::feature::Feature::ALL
            .iter()
            .filter(|(f, _)| self.features[(f.0 / 64) as usize] >> (f.0 % 64) & 1 == 1)
            .map(|(_, n)| *n)
            .collect()
    }
}

/// The version of the report's schema.
pub(crate) const SCHEMA: u32 = 1;

impl Report {
    /// The cases that a whole report of its kind and level has.
    #[must_use]
    pub(crate) fn due(&self) -> Vec<&'static str> {
        match &self.host {
            Some(_) => crate::hostcheck::cases::all()
                .iter()
                .filter(|c| c.level <= self.level)
                .map(|c| c.name)
                .collect(),
            None => cases::all()
                .filter(|c| c.level <= self.level)
                .map(|c| c.name)
                .collect(),
        }
    }

    /// How many cases ended so.
    #[must_use]
    pub(crate) fn count(&self, s: Status) -> usize {
        self.cases.iter().filter(|c| c.status == s).count()
    }

    /// The verdict that follows from the cases.
    #[must_use]
    pub(crate) fn recompute(&self) -> (Verdict, String) {
        let bad = self.cases.iter().filter(|c| c.status.is_bad()).count();
        let ran = self
            .cases
            .iter()
            .filter(|c| {
                !matches!(
                    c.status,
                    Status::Skip | Status::NotApplicable | Status::Unchecked | Status::Blocked
                )
            })
            .count();
        if bad > 0 {
            return (Verdict::NotConformant, format!("{bad} cases failed"));
        }
        if let Some(c) = self.cases.iter().find(|c| c.status == Status::SuiteError) {
            return (Verdict::SuiteError, format!("{}: {}", c.case, c.reason));
        }
        if ran == 0 {
            return (Verdict::Incomplete, "no case ran".into());
        }
        if let Some(c) = self.cases.iter().find(|c| c.status == Status::Blocked) {
            return (
                Verdict::Incomplete,
                format!("{} was blocked: {}", c.case, c.reason),
            );
        }
        let skipped = self.count(Status::Skip);
        if skipped > 0 {
            return (Verdict::Incomplete, format!("{skipped} cases were skipped"));
        }
        if !self.unconfigured.is_empty() {
            return (
                Verdict::Incomplete,
                format!(
                    "no configuration was accepted for {}; give them one in {FILE_NAME}",
                    self.unconfigured.join(", ")
                ),
            );
        }
        (Verdict::Conformant, String::new())
    }

    /// The highest level of which every case is right, 0 for none.
    #[must_use]
    pub(crate) fn reached(&self) -> u8 {
        (1..=self.level)
            .take_while(|l| {
                self.cases.iter().filter(|c| c.level == *l).all(|c| {
                    !c.status.is_bad()
                        && !matches!(
                            c.status,
                            Status::SuiteError | Status::Blocked | Status::Skip
                        )
                })
            })
            .last()
            .unwrap_or(0)
    }
}

/// Applies `[expect]`: by the case's name, or by the rules that were broken.
pub(crate) fn expected(r: &mut CaseResult, all: &BTreeMap<String, Expect>) {
    let find = |r: &CaseResult| -> Option<(String, Expect)> {
        if let Some(x) = all.get(&r.case) {
            return Some((r.case.clone(), x.clone()));
        }
        let rule = &r.findings.first()?.rule;
        let x = all.get(rule)?;
        // A rule's expectation covers a case only if nothing else is wrong with it.
        r.findings
            .iter()
            .all(|f| f.rule == *rule)
            .then(|| (rule.clone(), x.clone()))
    };
    let Some((name, x)) = find(r) else { return };
    let as_expected = r.status.name().eq_ignore_ascii_case(&x.status);
    if as_expected && x.until.as_str() >= today().as_str() {
        r.status = Status::ExpectedFailure;
        r.reason = x.reason;
    } else if as_expected {
        r.reason = format!("[expect] {name:?} has run out on {}", x.until);
    } else if r.status == Status::Pass {
        r.status = Status::UnexpectedPass;
        r.reason = format!(
            "[expect] {name:?} says {}, and it passes: remove the entry",
            x.status
        );
    }
}

/// The day, as `2027-01-31`.
fn today() -> String {
    let days = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() / 86400)
        .cast_signed();
    // Days to a date of the Gregorian calendar, with years that begin in March.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let d = doy - (153 * mp + 2) / 5 + 1;
    let m = if mp < 10 { mp + 3 } else { mp - 9 };
    let y = yoe + era * 400 + i64::from(m <= 2);
    format!("{y:04}-{m:02}-{d:02}")
}
