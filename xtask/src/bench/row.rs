//! The lines of a result, for people and for programs.

use serde::Serialize;

use super::stats::{Estimate, Verdict};

/// A line of the result.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    what: String,
    measured: f64,
    unit: &'static str,
    /// Covers the true median with 95 %; a count has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<[f64; 2]>,
    /// Of the least times: noise only adds, so it is the steadiest figure on a busy machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    least: Option<f64>,
    /// The most that it may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<Verdict>,
    /// A missed one is an error.
    gate: bool,
}

impl Row {
    /// What is counted, and the same each time.
    pub(super) fn count(what: impl Into<String>, measured: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            measured,
            unit,
            interval: None,
            least: None,
            target: None,
            verdict: None,
            gate: false,
        }
    }

    /// A time in nanoseconds.
    pub(super) fn time(what: impl Into<String>, median: f64, interval: [f64; 2]) -> Self {
        Self {
            interval: Some(interval),
            ..Self::count(what, median, "ns")
        }
    }

    pub(super) fn least(self, least: f64) -> Self {
        Self {
            least: Some(least),
            ..self
        }
    }

    pub(super) fn at_most(self, target: f64) -> Self {
        let estimate = Estimate {
            median: self.measured,
            interval: self.interval.unwrap_or([self.measured; 2]),
            n: 1,
        };
        Self {
            target: Some(target),
            verdict: Some(estimate.against(target)),
            ..self
        }
    }

    /// For counts only: a time says as much of the machine as of the code.
    pub(super) fn gate(self) -> Self {
        assert!(self.interval.is_none(), "{}: a gate on a time", self.what);
        Self { gate: true, ..self }
    }

    /// What is wrong, if a gate is missed.
    pub(super) fn failure(&self) -> Option<String> {
        let missed = self.gate && self.verdict == Some(Verdict::Missed);
        let target = self.target.filter(|_| missed)?;
        Some(format!(
            "{}: {} {}, at most {} expected",
            self.what,
            self.number(self.measured),
            self.unit,
            self.number(target)
        ))
    }

    fn number(&self, n: f64) -> String {
        match self.unit {
            "ns" | "KiB" => format!("{n:.1}"),
            _ => format!("{n:.0}"),
        }
    }

    fn line(&self) -> String {
        let interval = self.interval.map_or_else(String::new, |[low, high]| {
            format!("[{}, {}]", self.number(low), self.number(high))
        });
        let least = self.least.map_or_else(String::new, |n| self.number(n));
        let target = self
            .target
            .map_or_else(String::new, |t| format!("<= {}", self.number(t)));
        let verdict = match (self.verdict, self.gate) {
            (None, _) => String::new(),
            (Some(Verdict::Missed), true) => "MISSED (gate)".into(),
            (Some(verdict), true) => format!("{} (gate)", verdict.text()),
            (Some(verdict), false) => verdict.text().into(),
        };
        let line = format!(
            "{:64} {:>9} {:12} {interval:18} {least:>7} {target:>10}  {verdict}",
            self.what,
            self.number(self.measured),
            self.unit
        );
        line.trim_end().into()
    }
}

/// Prints a table with its head.
pub(super) fn print(title: &str, rows: &[Row]) {
    if rows.is_empty() {
        return;
    }
    println!();
    println!(
        "{title:64} {:>9} {:12} {:18} {:>7} {:>10}  verdict",
        "median", "", "95 %", "least", "target"
    );
    for row in rows {
        println!("{}", row.line());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_missed_above_its_target_only() {
        let row = |measured| {
            Row::count("C guest", measured, "instructions")
                .at_most(400.0)
                .gate()
        };
        assert_eq!(row(400.0).failure(), None);
        assert!(row(400.0).line().ends_with("met (gate)"));
        let missed = row(401.0);
        assert!(missed.line().ends_with("MISSED (gate)"));
        assert_eq!(
            missed.failure().unwrap(),
            "C guest: 401 instructions, at most 400 expected"
        );
    }

    #[test]
    fn a_missed_time_is_told_and_fails_nothing() {
        let row = |interval| Row::time("a call", 90.0, interval).at_most(80.0);
        assert!(row([85.0, 95.0]).line().ends_with(" missed"));
        assert!(row([75.0, 95.0]).line().ends_with(" missed by median"));
        assert_eq!(row([85.0, 95.0]).failure(), None);
    }
}
