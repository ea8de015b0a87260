//! How many tests ran, as the tools' output has it.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// Takes back failures of tests that were run once more, and whose passing is counted.
    pub(super) fn forgive(&mut self, failures: usize) {
        let failures = u64::try_from(failures).unwrap_or(u64::MAX);
        self.failed = self.failed.saturating_sub(failures);
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::json!({ "passed": self.passed, "failed": self.failed, "ignored": self.ignored })
    }

    /// Whether no test ran at all.
    pub(super) fn is_empty(&self) -> bool {
        self.passed + self.failed == 0
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.ignored > 0 {
            write!(f, ", {} ignored", self.ignored)?;
        }
        Ok(())
    }
}

/// Sums cargo's lines `test result: ok. 5 passed; 0 failed; 1 ignored; ...`.
pub(super) fn cargo(log: &str) -> Counts {
    let mut sum = Counts::default();
    for line in log.lines() {
        let Some(rest) = line.trim_start().strip_prefix("test result: ") else {
            continue;
        };
        let number = |what: &str| {
            let parts = rest.split([';', '.']);
            let found = parts.filter_map(|part| part.trim().strip_suffix(what));
            found.filter_map(|n| n.trim().parse::<u64>().ok()).sum()
        };
        sum.add(&Counts {
            passed: number(" passed"),
            failed: number(" failed"),
            ignored: number(" ignored"),
        });
    }
    sum
}

/// Sums unittest's lines `Ran 9 tests in 1.2s` and `FAILED (failures=1, errors=2, skipped=3)`, and the last lines of
/// programs that count for themselves: `RESULT {"cases": 160, "red": 1, ...}`.
pub(super) fn python(log: &str) -> Counts {
    #[derive(Deserialize)]
    struct Said {
        #[serde(alias = "behaviours")]
        cases: u64,
        red: u64,
    }
    let mut sum = Counts::default();
    for line in log.lines() {
        if let Some(rest) = line.strip_prefix("Ran ") {
            let n = rest.split(' ').next().and_then(|n| n.parse().ok());
            sum.passed += n.unwrap_or(0);
        } else if let Some(rest) = line
            .strip_prefix("FAILED (")
            .or_else(|| line.strip_prefix("OK ("))
        {
            for part in rest.trim_end_matches(')').split(", ") {
                let (what, n) = part.split_once('=').unwrap_or_default();
                let n: u64 = n.parse().unwrap_or(0);
                sum.passed = sum.passed.saturating_sub(n);
                match what {
                    "skipped" | "expected failures" => sum.ignored += n,
                    _ => sum.failed += n,
                }
            }
        } else if let Some(rest) = line.strip_prefix("RESULT ")
            && let Ok(said) = serde_json::from_str::<Said>(rest)
        {
            sum.passed += said.cases.saturating_sub(said.red);
            sum.failed += said.red;
        }
    }
    sum
}

/// A line of `go test -json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GoLine {
    action: String,
    #[serde(default)]
    package: String,
    #[serde(default)]
    test: Option<String>,
    #[serde(default)]
    output: String,
}

/// Turns the output of `go test -json` into what a reader wants: the output of what failed, and lines per package.
/// What is no JSON, a message of the compiler for example, stays as it is.
pub(super) fn go_readable(json: &str) -> String {
    let mut out = String::new();
    let mut by_test: HashMap<(String, String), String> = HashMap::new();
    let mut sum = Counts::default();
    for line in json.lines() {
        let Ok(line) = serde_json::from_str::<GoLine>(line) else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let Some(test) = line.test else {
            out.push_str(&line.output);
            continue;
        };
        let key = (line.package, test);
        match line.action.as_str() {
            "output" => by_test.entry(key).or_default().push_str(&line.output),
            "pass" => {
                sum.passed += 1;
                by_test.remove(&key);
            }
            "skip" => {
                sum.ignored += 1;
                by_test.remove(&key);
            }
            "fail" => {
                sum.failed += 1;
                out.push_str(&by_test.remove(&key).unwrap_or_default());
            }
            _ => {}
        }
    }
    // Tests without an end: the process died in them.
    for ((package, test), output) in by_test {
        sum.failed += 1;
        out.push_str(&format!("--- FAIL: {package} {test}: no result\n{output}"));
    }
    out.push_str(&format!(
        "{GO_SUM}{} {} {}\n",
        sum.passed, sum.failed, sum.ignored
    ));
    out
}

const GO_SUM: &str = "go tests (passed, failed, skipped): ";

/// Sums what `go_readable` wrote.
pub(super) fn go(log: &str) -> Counts {
    let mut sum = Counts::default();
    for line in log.lines() {
        if let Some(rest) = line.strip_prefix(GO_SUM) {
            let mut numbers = rest.split(' ').map(|n| n.parse().unwrap_or(0));
            let mut next = || numbers.next().unwrap_or(0);
            sum.add(&Counts {
                passed: next(),
                failed: next(),
                ignored: next(),
            });
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_results_are_summed() {
        let log = "running 2 tests\ntest result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; \
                   finished in 0.03s\n\ntest result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured\n";
        let counts = cargo(log);
        assert_eq!(counts.to_string(), "7 passed, 1 failed, 1 ignored");
        assert!(cargo("test result: ok. 0 passed; 0 failed; 2 ignored;").is_empty());
    }

    #[test]
    fn pythons_results_are_summed() {
        let log = "Ran 9 tests in 1.2s\n\nFAILED (failures=1, errors=2, skipped=3)\nRan 1 test in 0.1s\n\nOK\n\
                   RESULT {\"what\": \"harmless\", \"behaviours\": 160, \"red\": 1}\n";
        assert_eq!(python(log).to_string(), "163 passed, 4 failed, 3 ignored");
        assert!(python("Running\n").is_empty());
    }

    #[test]
    fn gos_results_are_counted_and_only_failures_are_shown() {
        let json = r#"{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"quiet\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB","Output":"loud\n"}
{"Action":"fail","Package":"p","Test":"TestB"}
{"Action":"skip","Package":"p","Test":"TestC"}
{"Action":"output","Package":"p","Test":"TestD","Output":"died\n"}
{"Action":"output","Package":"p","Output":"FAIL p 0.1s\n"}
# p
x.go:1:1: wrong"#;
        let text = go_readable(json);
        assert!(text.contains("loud\n") && !text.contains("quiet"));
        assert!(text.contains("FAIL p 0.1s\n# p\nx.go:1:1: wrong\n"));
        assert!(text.contains("TestD: no result\ndied"));
        assert_eq!(go(&text).to_string(), "1 passed, 2 failed, 1 ignored");
    }
}
