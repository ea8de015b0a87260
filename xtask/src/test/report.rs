//! How stages ended: for a reader, and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::counts::Counts;
use super::failures::Failed;
use crate::root::logs;

/// How much of a failed stage's output is shown.
const SHOWN_LINES: usize = 60;
/// Of how many failed tests the messages are shown.
const SHOWN_MESSAGES: usize = 10;

/// How a stage ended.
pub(super) struct Ended {
    pub(super) name: &'static str,
    pub(super) took: Duration,
    /// What its processes took of the processors.
    pub(super) cpu: Duration,
    pub(super) counts: Option<(&'static str, Counts)>,
    pub(super) error: Option<String>,
    pub(super) failed: Vec<Failed>,
    /// Tests that failed, and passed when they were run once more.
    pub(super) flaky: Vec<String>,
}

impl Ended {
    pub(super) fn line(&self) -> String {
        let mut line = match &self.error {
            None => colour("32", "ok    "),
            Some(_) => colour("31", "FAILED"),
        };
        let _ = write!(line, " {:6.1} s", self.took.as_secs_f64());
        if let Some((what, counts)) = &self.counts {
            let _ = write!(line, "  {what}: {counts}");
        }
        for name in &self.flaky {
            let _ = write!(line, "\n        {}", flaky(name));
        }
        if let Some(error) = &self.error {
            let _ = write!(line, "\n{error}\n");
            // Last, and again below the table: who reads only the end of the output sees what failed.
            for failed in self.failed.iter().take(SHOWN_MESSAGES) {
                let _ = writeln!(line, "    {} failed: {}", self.name, failed.name);
                for text in failed.message.lines() {
                    let _ = writeln!(line, "        {text}");
                }
            }
        }
        line
    }
}

fn flaky(name: &str) -> String {
    colour(
        "33",
        &format!("flaky: {name} failed, and passed when it was run once more"),
    )
}

/// The end of a log, and before it the lines that tell of failures further up.
pub(super) fn excerpt(log: &str) -> String {
    const SIGNS: &[&str] = &["panicked at", "error: ", "error[", "--- FAIL", "... FAILED"];
    let lines: Vec<_> = log.lines().collect();
    let (above, end) = lines.split_at(lines.len().saturating_sub(SHOWN_LINES));
    let mut shown = Vec::new();
    for line in above {
        if SIGNS.iter().any(|sign| line.contains(sign)) && shown.len() < SHOWN_LINES / 3 {
            shown.push(*line);
        }
    }
    if !shown.is_empty() {
        shown.push("[...]");
    }
    shown.extend(end);
    shown.iter().map(|line| format!("    {line}\n")).collect()
}

/// The table, and below it what failed in words.
pub(super) fn summary(ended: &[Ended], took: Duration) {
    let width = ended.iter().map(|e| e.name.len()).max().unwrap_or(5).max(5);
    println!();
    println!("{:width$} result      time       CPU", "stage");
    let mut sums: BTreeMap<&str, Counts> = BTreeMap::new();
    for end in ended {
        let result = match &end.error {
            None => colour("32", "passed"),
            Some(_) => colour("31", "failed"),
        };
        println!(
            "{:width$} {result}  {:6.1} s  {:6.1} s",
            end.name,
            end.took.as_secs_f64(),
            end.cpu.as_secs_f64()
        );
        if let Some((what, counts)) = &end.counts {
            sums.entry(what).or_default().add(counts);
        }
    }
    let cpu: Duration = ended.iter().map(|e| e.cpu).sum();
    println!(
        "{:width$}         {:6.1} s  {:6.1} s",
        "all",
        took.as_secs_f64(),
        cpu.as_secs_f64()
    );
    for (what, counts) in sums {
        println!("{what}: {counts}");
    }
    for end in ended {
        for name in &end.flaky {
            println!("{} {}", end.name, flaky(name));
        }
        if let Some(error) = &end.error {
            let names: Vec<_> = end.failed.iter().map(|f| f.name.as_str()).collect();
            let what = if names.is_empty() {
                error.lines().next().unwrap_or_default().to_owned()
            } else {
                names.join(", ")
            };
            println!("{} {}: {what}", end.name, colour("31", "failed"));
        }
    }
}

/// The same for programs: target/xtask/summary.json.
pub(super) fn write_json(ended: &[Ended], took: Duration) -> Result<()> {
    let stages: Vec<_> = ended
        .iter()
        .map(|end| {
            let failed: Vec<_> = end
                .failed
                .iter()
                .map(|f| json!({ "program": f.program, "name": f.name, "message": f.message }))
                .collect();
            json!({
                "name": end.name,
                "passed": end.error.is_none(),
                "seconds": end.took.as_secs_f64(),
                "cpu_seconds": end.cpu.as_secs_f64(),
                "tests": end.counts.as_ref().map(|(_, counts)| counts.json()),
                "failed": failed,
                "flaky": end.flaky,
                "error": end.error.as_ref().and_then(|e| e.lines().next()),
            })
        })
        .collect();
    let text = json!({ "seconds": took.as_secs_f64(), "stages": stages });
    let file = logs().join("summary.json");
    std::fs::write(&file, format!("{text:#}\n"))
        .with_context(|| format!("write {}", file.display()))
}

fn colour(code: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_has_the_end_and_the_failures_above_it() {
        let mut log = String::from("thread 'a' panicked at x.rs:1\nquiet\n");
        for i in 0..100 {
            let _ = writeln!(log, "line {i}");
        }
        let shown = excerpt(&log);
        assert!(shown.starts_with("    thread 'a' panicked at x.rs:1\n    [...]\n    line 40\n"));
        assert!(shown.ends_with("    line 99\n"));
        assert_eq!(excerpt("short"), "    short\n");
    }

    #[test]
    fn names_of_failed_tests_are_the_last_that_is_said() {
        let ended = Ended {
            name: "envoy",
            took: Duration::ZERO,
            cpu: Duration::ZERO,
            counts: None,
            error: Some("`cargo test`: exit status: 101".into()),
            failed: vec![Failed {
                program: String::new(),
                name: "1.40.0::faults::x".into(),
                message: "waited in vain".into(),
            }],
            flaky: Vec::new(),
        };
        assert!(
            ended
                .line()
                .ends_with("    envoy failed: 1.40.0::faults::x\n        waited in vain\n")
        );
    }
}
