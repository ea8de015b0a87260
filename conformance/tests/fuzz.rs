//! The fuzzer against guests with one defect each, and against those that have none.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

fn guest(dir: &Path, defect: &str) -> PathBuf {
    support::mutant(dir, defect)
}

fn program(args: &[&str], library: &Path) -> (i32, String) {
    support::run(
        support::program()
            .arg(args[0])
            .arg(library)
            .args(&args[1..]),
    )
}

/// The values of one kind of line, such as `finding`.
fn lines(text: &str, kind: &str) -> Vec<serde_json::Value> {
    text.lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .filter_map(|v| v.get(kind).cloned())
        .collect()
}

/// One of each family that random exchanges can reach.
const DEFECTS: &[(&str, &str)] = &[
    ("writes-past-result", "PXG-ABI-004"),
    ("reads-before-value", "PXG-ABI-008"),
    ("zeroed-operation", "PXG-ABI-011"),
    ("more-at-end", "PXG-ACT-003"),
    ("completes-and-continues", "PXG-ASY-005"),
    ("passes-too-much", "PXG-BODY-006"),
    ("undefined-config-flag", "PXG-CFG-009"),
    ("index-of-nothing", "PXG-HDR-004"),
    ("late-read", "PXG-MEM-002"),
    ("writes-view", "PXG-MEM-009"),
    ("overruns-scratch", "PXG-MEM-010"),
    ("pass-at-headers", "PXG-MUT-006"),
    ("holds-without-feature", "PXG-NEG-003"),
    ("calls-null-log", "PXG-NEG-004"),
    ("status-101", "PXG-RPL-001"),
    ("scratch-on-worker", "PXG-THR-001"),
];

#[test]
fn each_defect_is_found_within_a_bounded_number_of_executions() {
    let dir = tempfile::tempdir().unwrap();
    let mut missed = Vec::new();
    for (defect, rule) in DEFECTS {
        let (code, text) = program(
            &[
                "fuzz",
                "--seed",
                "7",
                "--executions",
                "320",
                "--shrink",
                "0s",
                "--until",
                rule,
                "--json",
            ],
            &guest(dir.path(), defect),
        );
        let found = lines(&text, "finding");
        match found.iter().find(|f| f["rule"] == *rule) {
            Some(f) => {
                assert_eq!(code, 1, "{text}");
                assert!(
                    f["again"].as_str().unwrap().contains("--seed 0x7 --only "),
                    "{f}"
                );
            }
            None => missed.push(format!("{defect} ({rule}): {text}")),
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = program(
        &["fuzz", "--seed", "1", "--executions", "480", "--json"],
        &guest(dir.path(), "none"),
    );
    assert_eq!(code, 0, "{text}");
    let end = &lines(&text, "end")[0];
    // Some hosts lack what the guest cannot do without.
    assert!(end["executions"].as_u64().unwrap() >= 400, "{end}");
    assert_eq!(end["verdict"], "conformant");
    assert!(lines(&text, "finding").is_empty(), "{text}");
}

/// Runs a command to its end, which must be good.
fn must(c: &mut Command) {
    let out = c.output().unwrap_or_else(|e| panic!("{c:?}: {e}"));
    assert!(
        out.status.success(),
        "{c:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

#[test]
fn nothing_is_found_in_the_examples() {
    let dir = tempfile::tempdir().unwrap();
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let sdk = root.join("../guest-sdk");
    let library = |name: &str| dir.path().join(format!("{name}.so"));
    for name in ["header-policy", "minimal"] {
        must(
            Command::new("cc")
                .args(["-O1", "-g", "-shared", "-fPIC", "-fvisibility=hidden", "-I"])
                .arg(root.join("include"))
                .arg("-I")
                .arg(sdk.join("c/include"))
                .arg(sdk.join(format!("c/examples/{name}.c")))
                .arg("-o")
                .arg(library(name))
                .arg("-lpthread"),
        );
    }
    must(
        Command::new("go")
            .args(["build", "-buildmode=c-shared", "-buildvcs=false", "-o"])
            .arg(library("bundle"))
            .arg(".")
            .current_dir(sdk.join("go/examples/bundle")),
    );
    for name in ["header-policy", "minimal", "bundle"] {
        let settings = root.join(format!("settings/{name}.toml"));
        let (code, text) = program(
            &[
                "fuzz",
                "--seed",
                "3",
                "--executions",
                "320",
                "--config",
                &settings.display().to_string(),
            ],
            &library(name),
        );
        assert_eq!(code, 0, "{name}: {text}");
        assert!(text.contains("NOTHING FOUND"), "{name}: {text}");
    }
}

#[test]
fn a_finding_is_made_small_kept_and_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let library = guest(dir.path(), "late-read");
    let corpus = dir.path().join("corpus").display().to_string();
    let args = [
        "fuzz",
        "--seed",
        "7",
        "--executions",
        "96",
        "--findings",
        "3",
        "--corpus",
        &corpus,
        "--json",
        "--grace",
        "200",
    ];
    let (code, text) = program(&args, &library);
    assert_eq!(code, 1, "{text}");
    let found = lines(&text, "finding");
    let f = found
        .iter()
        .find(|f| f["rule"] == "PXG-MEM-002")
        .unwrap_or_else(|| panic!("{text}"));
    assert!(f["steps"].as_u64().unwrap() <= 3, "{f}");
    let detail = f["detail"].to_string();
    assert!(detail.contains("late_run  late.h:"), "{detail}");
    let file = f["file"].as_str().unwrap();
    let kept = std::fs::read_to_string(file).unwrap();
    assert!(kept.len() < 1500, "{kept}");

    let (code, text) = program(&["guest", "--replay", file, "--grace", "200"], &library);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("PXG-MEM-002"), "{text}");
    // The next session begins with what the last one kept.
    let (code, text) = program(
        &[
            "fuzz",
            "--executions",
            "1",
            "--corpus",
            &corpus,
            "--grace",
            "200",
        ],
        &library,
    );
    assert_eq!(code, 1, "{text}");
    assert!(text.contains(&format!("--replay {file}")), "{text}");
    // A guest without the defect is told so.
    let clean = guest(dir.path(), "none");
    let (code, text) = program(&["guest", "--replay", file], &clean);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("which is not found"), "{text}");
    let (code, text) = program(&["fuzz", "--executions", "1", "--corpus", &corpus], &clean);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("nothing is found with it any more"), "{text}");
}

#[test]
fn a_guest_that_takes_nothing_is_not_called_clean_and_slips_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let library = guest(dir.path(), "none");
    let (code, text) = program(
        &["fuzz", "--filter", "no-such", "--executions", "16"],
        &library,
    );
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("INCOMPLETE"), "{text}");
    for bad in [
        &["fuzz", "--for", "5 days"][..],
        &["fuzz", "--only", "9..3"],
        &["guest", "--replay", "/no/such/file"],
    ] {
        assert_eq!(program(bad, &library).0, 2, "{bad:?}");
    }
    let none = dir.path().join("text.so");
    std::fs::write(&none, "text").unwrap();
    assert_eq!(program(&["fuzz"], &none).0, 1);
}

#[test]
fn a_case_is_recorded_and_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("case.scenario").display().to_string();
    let library = guest(dir.path(), "more-at-end");
    let (code, text) = program(
        &["guest", "--only", "body/views", "--trace", &file],
        &library,
    );
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("PXG-ACT-003"), "{text}");
    let recorded = std::fs::read_to_string(&file).unwrap();
    assert!(recorded.contains("REQUEST_BODY: MORE"), "{recorded}");
    let (code, text) = program(&["guest", "--replay", &file], &library);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("PXG-ACT-003"), "{text}");
    // The same on a guest without the defect finds nothing.
    let clean = guest(dir.path(), "none");
    let (code, text) = program(&["guest", "--replay", &file], &clean);
    assert_eq!(code, 0, "{text}");
    // What a crash cuts off was recorded until then.
    let crashes = guest(dir.path(), "frees-view");
    let (code, text) = program(
        &["guest", "--only", "run/exchanges", "--trace", &file],
        &crashes,
    );
    assert_eq!(code, 1, "{text}");
    let (code, text) = program(&["guest", "--replay", &file], &crashes);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("PXG-MEM-008"), "{text}");

    // Configurations that come and go are recorded too, and which loop thread did what.
    let (code, text) = program(&["guest", "--only", "thr/reload", "--trace", &file], &clean);
    assert_eq!(code, 0, "{text}");
    let recorded = std::fs::read_to_string(&file).unwrap();
    let lines = |what: &str| recorded.lines().filter(|l| l.contains(what)).count();
    let (opened, elsewhere) = (lines("\"do\":\"open\""), lines("\"lane\":1"));
    assert!(opened > 0 && elsewhere > 0, "{recorded}");
    let (made, dropped) = (lines("\"do\":\"configure\""), lines("\"do\":\"drop\""));
    assert!(
        made > 0 && made == dropped,
        "{made} made, {dropped} dropped"
    );
    let (code, text) = program(&["guest", "--replay", &file], &clean);
    assert_eq!(code, 0, "{text}");

    let (code, text) = program(&["guest", "--only", "run", "--trace", &file], &clean);
    assert_eq!(code, 2, "{text}");
    let (code, text) = program(
        &["guest", "--only", "cfg/no-leak", "--trace", &file],
        &clean,
    );
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("calls hooks directly"), "{text}");
}
