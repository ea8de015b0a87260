//! `pxg-conformance fuzz`.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::cli::{no_library, number, plan_of};
use crate::rules;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The library.
    library: PathBuf,
    /// How long: 60s, 5m, 2h. Without it and --executions: 60s.
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    time: Option<Duration>,
    /// At most so many executions.
    #[arg(long, value_name = "N")]
    executions: Option<u64>,
    /// Only the execution of this number, or those of a range A..B: repeats what was found with the same seed.
    #[arg(long, value_name = "N|A..B", value_parser = range)]
    only: Option<Range<u64>>,
    /// Which run it is.
    #[arg(long, value_parser = number, default_value = "0x5eed1234")]
    seed: u64,
    /// Keep what is found here, a scenario in each file, and run those of earlier sessions first.
    #[arg(long, value_name = "DIR")]
    corpus: Option<PathBuf>,
    /// Stop after so many findings.
    #[arg(long, value_name = "N", default_value_t = 10)]
    findings: usize,
    /// Stop as soon as this rule is found.
    #[arg(long, value_name = "RULE", value_parser = rule)]
    until: Option<String>,
    /// Make each finding smaller for at most so long.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "10s")]
    shrink: Duration,
    /// Settings, instead of pxg-conformance.toml beside the library.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// This filter only; with an empty configuration unless the settings have one.
    #[arg(long, value_name = "NAME")]
    filter: Vec<String>,
    /// Processes at a time.
    #[arg(short, long)]
    jobs: Option<usize>,
    /// Multiplies the time that each process may take.
    #[arg(long, default_value_t = 1.0)]
    timeout_scale: f64,
    /// Milliseconds that each process waits at its end for late uses.
    #[arg(long, default_value_t = 20)]
    grace: u64,
    /// Write JSON lines to standard output while running: findings, progress, and the end.
    #[arg(long)]
    json: bool,
    /// Nothing but the last line.
    #[arg(short, long)]
    quiet: bool,
}

fn time(s: &str) -> Result<Duration, String> {
    let at = s.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(s.len());
    let unit = match &s[at..] {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("found the unit {other:?}; expected ms, s, m or h")),
    };
    match s[..at].parse::<f64>() {
        Ok(n) if (0.0..=1e6).contains(&n) => Ok(Duration::from_secs_f64(n * unit)),
        _ => Err("expected a time such as 60s, 5m or 2h".into()),
    }
}

fn rule(s: &str) -> Result<String, String> {
    match rules::find(s) {
        Some(r) => Ok(r.id.clone()),
        None => {
            let near = rules::did_you_mean(s, rules::all().iter().map(|r| r.id.as_str()));
            Err(match near.first() {
                Some(n) => format!("there is no such rule; did you mean {n}?"),
                None => "there is no such rule; `pxg-conformance list --rules` shows them".into(),
            })
        }
    }
}

fn range(s: &str) -> Result<Range<u64>, String> {
    let bad = |e: std::num::ParseIntError| format!("{e}; expected a number or a range A..B");
    let (low, high) = match s.split_once("..") {
        Some((a, b)) => (a.parse().map_err(bad)?, b.parse().map_err(bad)?),
        None => {
            let n: u64 = s.parse().map_err(bad)?;
            (n, n.saturating_add(1))
        }
    };
    if low < high {
        Ok(low..high)
    } else {
        Err(format!("{low}..{high} is empty"))
    }
}

/// Runs `fuzz`.
pub(crate) fn run(f: &Args) -> Result<u8> {
    if let Some(code) = no_library(&f.library)? {
        return Ok(code);
    }
    let mut plan = plan_of(&f.library, f.config.as_ref(), &f.filter)?;
    plan.seed = f.seed;
    plan.jobs = f.jobs.unwrap_or(plan.jobs);
    plan.limits.timeout_scale = f.timeout_scale.clamp(0.01, 1000.0);
    plan.limits.grace_ms = f.grace;
    let unlimited = f.time.is_none() && f.executions.is_none() && f.only.is_none();
    super::run(&super::Asked {
        plan,
        time: f.time.or(unlimited.then_some(Duration::from_secs(60))),
        executions: f.executions,
        only: f.only.clone(),
        corpus: f.corpus.clone(),
        most_findings: f.findings.max(1),
        until: f.until.clone(),
        shrink: f.shrink,
        json: f.json,
        quiet: f.quiet,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_ranges_are_read_or_refused() {
        assert_eq!(time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(time("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(time("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "s", "-1s", "5d", "1e99s", "nan"] {
            assert!(time(bad).is_err(), "{bad}");
        }
        assert_eq!(range("7"), Ok(7..8));
        assert_eq!(range("3..9"), Ok(3..9));
        for bad in ["", "9..3", "x", "1..", "3..3"] {
            assert!(range(bad).is_err(), "{bad}");
        }
    }
}
