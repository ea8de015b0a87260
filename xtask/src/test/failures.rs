//! Which tests failed, as the tools' output has it.

/// A test that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// The test program's source, as cargo names it; empty for other tools.
    pub(super) program: String,
    pub(super) name: String,
    /// The first lines of what it said.
    pub(super) message: String,
}

/// How much of a test's message is kept.
const MESSAGE_LINES: usize = 12;

/// All of them, in the output of cargo test, go test, Python's unittest or the conformance suite.
pub(super) fn read(log: &str) -> Vec<Failed> {
    let mut found: Vec<Failed> = Vec::new();
    let mut program = String::new();
    for line in log.lines() {
        if let Some(started) = started(line) {
            program = started.to_owned();
        }
        if let Some(name) = name(line)
            && !found.iter().any(|f| f.name == name && f.program == program)
        {
            found.push(Failed {
                program: program.clone(),
                name: name.to_owned(),
                message: message(log, name),
            });
        }
    }
    found
}

/// Whether each test program that cargo started came to its end. One that did not has died, or was never built.
pub(super) fn all_ended(log: &str) -> bool {
    let begun = log
        .lines()
        .filter(|l| started(l).is_some() || l.starts_with("   Doc-tests "))
        .count();
    let ended = log
        .lines()
        .filter(|l| l.starts_with("test result: "))
        .count();
    begun == ended
}

/// `     Running tests/envoy/main.rs (target/debug/deps/envoy-0a1b)`; the program's source.
fn started(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("     Running ")?;
    let (source, _) = rest.split_once(" (")?;
    Some(source.strip_prefix("unittests ").unwrap_or(source))
}

/// The name of a test in the line that says that it failed.
fn name(line: &str) -> Option<&str> {
    if let Some(rest) = line.strip_prefix("test ") {
        return rest.strip_suffix(" ... FAILED");
    }
    // Go has subtests further in.
    if let Some(rest) = line.trim_start().strip_prefix("--- FAIL: ") {
        return rest.split([' ', ':']).next();
    }
    // Python's: test_name (program.Class.test_name).
    if let Some(rest) = line
        .strip_prefix("FAIL: ")
        .or_else(|| line.strip_prefix("ERROR: "))
    {
        let inner = rest.split_once('(').map(|(_, rest)| rest);
        return Some(inner.and_then(|i| i.split(')').next()).unwrap_or(rest));
    }
    // The conformance suite's.
    if let Some(rest) = line.trim_start().strip_prefix("FAIL  ") {
        return rest.split_whitespace().next();
    }
    None
}

/// What is below the test's headline.
fn message(log: &str, name: &str) -> String {
    let heads = [
        format!("---- {name} stdout ----"),
        format!("---- {name} ----"),
        format!("--- FAIL: {name} "),
        format!("({name})"),
        format!("FAIL  {name} "),
    ];
    let mut lines = log.lines();
    let found = lines.find(|line| heads.iter().any(|head| line.contains(head.as_str())));
    if found.is_none() {
        return String::new();
    }
    let end = |line: &&str| {
        !(line.starts_with("---- ")
            || line.starts_with("=====")
            || line.starts_with("Ran ")
            || *line == "failures:")
            && self::name(line).is_none()
    };
    let text: Vec<_> = lines
        .take_while(end)
        .filter(|line| !line.trim().is_empty() && !line.starts_with("-----"))
        .take(MESSAGE_LINES)
        .collect();
    text.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARGO: &str = "     Running tests/envoy/main.rs (target/debug/deps/envoy-0a1b)

running 2 tests
test 1.40.0::faults::panics ... FAILED
test 1.40.0::faults::other ... ok

failures:

---- 1.40.0::faults::panics ----
test panicked: waited in vain until the log says \"x\"

failures:
    1.40.0::faults::panics

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured
";

    #[test]
    fn cargos_failed_tests_are_named_with_their_program_and_message() {
        let failed = Failed {
            program: "tests/envoy/main.rs".into(),
            name: "1.40.0::faults::panics".into(),
            message: "test panicked: waited in vain until the log says \"x\"".into(),
        };
        assert_eq!(read(CARGO), [failed]);
        assert!(all_ended(CARGO));
        let died = format!(
            "{CARGO}     Running unittests src/lib.rs (target/debug/deps/x-1)\n\nrunning 1 test\nSIGSEGV\n"
        );
        assert!(!all_ended(&died));
    }

    #[test]
    fn failures_of_other_tools_are_named() {
        let names = |log| read(log).into_iter().map(|f| f.name).collect::<Vec<_>>();
        let go = "--- FAIL: TestA (0.00s)\n    --- FAIL: TestA/sub (0.00s)\nok  \tp\n";
        assert_eq!(names(go), ["TestA", "TestA/sub"]);
        let python = "=====\nFAIL: test_x (__main__.Module.test_x)\n-----\nTraceback\nRan 3 tests";
        assert_eq!(names(python), ["__main__.Module.test_x"]);
        assert_eq!(read(python)[0].message, "Traceback");
        let suite = "  FAIL  l4/connection  80 ms  [PXG-L4-003]\n    it was reset\n";
        assert_eq!(names(suite), ["l4/connection"]);
        assert_eq!(read(suite)[0].message, "    it was reset");
        assert!(names("  l4   6/7   1 FAIL\nFAILED\ntest a ... ok\n").is_empty());
    }
}
