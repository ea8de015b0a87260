//! Reads a report back and recomputes its verdict: nobody has to trust the last line.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::verdict::{Report, SCHEMA};

/// Checks the report at `path`; its verdict, if the report is whole.
pub(crate) fn verify(path: &Path) -> Result<Report> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // The schema first: an old report is told apart from a broken one.
    let value: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
    match value.get("schema").and_then(serde_json::Value::as_u64) {
        Some(n) if n == u64::from(SCHEMA) => {}
        Some(n) => bail!(
            "{}: the report has schema {n}, this program reads schema {SCHEMA}; make the report again",
            path.display()
        ),
        None => bail!(
            "{}: no report of pxg-conformance: it has no `schema`",
            path.display()
        ),
    }
    let report: Report = serde_json::from_value(value)
        .with_context(|| format!("{} is not as expected", path.display()))?;
    if report.suite == env!("CARGO_PKG_VERSION") {
        let missing: Vec<&str> = report
            .due()
            .into_iter()
            .filter(|n| !report.cases.iter().any(|c| c.case == *n))
            .collect();
        if !missing.is_empty() && report.verdict.code() == 0 {
            bail!(
                "{}: conformant at L{}, and these cases are missing: {}",
                path.display(),
                report.level,
                missing.join(", ")
            );
        }
    }
    let (verdict, because) = report.recompute();
    if verdict != report.verdict {
        bail!(
            "{}: the report says {}, its cases say {} ({because})",
            path.display(),
            report.verdict.name(),
            verdict.name()
        );
    }
    Ok(report)
}
