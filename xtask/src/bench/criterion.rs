//! What criterion left behind.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// A time in nanoseconds, with its interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(super) struct Time {
    pub(super) median: f64,
    pub(super) interval: [f64; 2],
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    confidence_interval: Interval,
    point_estimate: f64,
}

#[derive(Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

#[derive(Deserialize)]
struct Benchmark {
    full_id: String,
}

/// The results below criterion's folder, by their full names.
pub(super) fn read(folder: &Path) -> Result<Vec<(String, Time)>> {
    let mut found = Vec::new();
    walk(folder, &mut found)?;
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

fn walk(folder: &Path, found: &mut Vec<(String, Time)>) -> Result<()> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.ends_with("new") {
            let name: Benchmark = json(&path.join("benchmark.json"))?;
            let estimates: Estimates = json(&path.join("estimates.json"))?;
            let Interval {
                lower_bound,
                upper_bound,
            } = estimates.median.confidence_interval;
            let time = Time {
                median: estimates.median.point_estimate,
                interval: [lower_bound, upper_bound],
            };
            found.push((name.full_id, time));
        } else if path.is_dir() {
            walk(&path, found)?;
        }
    }
    Ok(())
}

fn json<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let new = folder.path().join("group/a name/new");
        std::fs::create_dir_all(&new).unwrap();
        std::fs::write(
            new.join("benchmark.json"),
            r#"{"group_id": "group", "full_id": "group/a name"}"#,
        )
        .unwrap();
        let estimates = r#"{"mean": {}, "median": {"confidence_interval":
            {"confidence_level": 0.95, "lower_bound": 1.5, "upper_bound": 2.5}, "point_estimate": 2.0, "standard_error": 0.1}}"#;
        std::fs::write(new.join("estimates.json"), estimates).unwrap();
        let time = Time {
            median: 2.0,
            interval: [1.5, 2.5],
        };
        assert_eq!(
            read(folder.path()).unwrap(),
            [("group/a name".to_owned(), time)]
        );
    }
}
