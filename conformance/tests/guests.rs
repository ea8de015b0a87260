//! The program against guests: good ones, and libraries that end badly. Whatever they do, the answer is a verdict.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{build, manifest, mutant, program, run};

fn bad(dir: &Path, define: &str) -> PathBuf {
    build(dir, "tests/bad/bad.c", define, define)
}

fn guest(library: &Path, args: &[&str]) -> (i32, String) {
    run(program().arg("guest").arg(library).args(args))
}

#[test]
fn a_small_guest_is_conformant() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = guest(&bad(dir.path(), "GOOD"), &["--level", "L2"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("CONFORMANT (L2 of L2 reached)"), "{text}");
}

#[test]
fn a_test_of_a_guest_can_call_the_suite() {
    let dir = tempfile::tempdir().unwrap();
    let library = bad(dir.path(), "GOOD");
    proxy_golang_conformance::assert_guest(&library);
    let library = bad(dir.path(), "EXITS");
    let failed = std::panic::catch_unwind(|| proxy_golang_conformance::assert_guest(&library));
    let text = failed.expect_err("it is not conformant");
    let text = text.downcast_ref::<String>().expect("a text");
    assert!(
        text.contains("the guest ended the process with exit code 0"),
        "{text}"
    );
}

#[test]
fn what_is_no_library_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text.so");
    std::fs::write(&file, "#!/bin/sh\n").unwrap();
    let (code, text) = guest(&file, &[]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("found a script"), "{text}");
    assert!(text.contains("0 cases ran"), "{text}");
    let (code, text) = guest(&dir.path().join("none.so"), &[]);
    assert_eq!(code, 2, "{text}");
}

#[test]
fn a_library_without_the_entry_function_breaks_its_rule() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = guest(&bad(dir.path(), "NO_ENTRY"), &["--level", "L1"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("PXG-LOAD-001"), "{text}");
}

#[test]
fn crashes_exits_and_hangs_are_verdicts() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = guest(
        &bad(dir.path(), "CRASHES_AT_LOAD"),
        &["--only", "load/table"],
    );
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("SIGABRT") && text.contains("in the loading of the library"),
        "{text}"
    );

    let (code, text) = guest(&bad(dir.path(), "EXITS"), &["--only", "run/exchanges"]);
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("exit code 0") && text.contains("on_event(RESPONSE_HEADERS)"),
        "{text}"
    );

    let (code, text) = guest(
        &bad(dir.path(), "HANGS_IN_INIT"),
        &["--only", "load/table", "--timeout-scale", "0.1"],
    );
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("TIMEOUT") && text.contains("in pxg_guest_init_v1"),
        "{text}"
    );
}

#[test]
fn a_whole_run_over_a_library_that_cannot_be_used_ends_with_its_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let hangs = "the guest hangs before it can be used";
    for (define, says) in [
        (
            "CRASHES_AT_LOAD",
            &["died of SIGABRT", "in the loading of the library"][..],
        ),
        (
            "EXITS_AT_LOAD",
            &["exit code 0", "in the loading of the library"],
        ),
        (
            "HANGS_AT_LOAD",
            &["TIMEOUT", "in the loading of the library", hangs],
        ),
        ("STOPS_AT_LOAD", &["TIMEOUT", "state T", hangs]),
        ("HANGS_IN_INIT", &["TIMEOUT", "in pxg_guest_init_v1", hangs]),
        ("EXITS", &["exit code 0", "in on_event(RESPONSE_HEADERS)"]),
    ] {
        let (code, text) = guest(
            &bad(dir.path(), define),
            &["--level", "L5", "--timeout-scale", "0.05"],
        );
        assert_eq!(code, 1, "{define}: {text}");
        assert!(text.contains("NOT CONFORMANT"), "{define}: {text}");
        for words in says {
            assert!(text.contains(words), "{define}: no {words:?} in {text}");
        }
    }
}

#[test]
fn noise_is_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    for (define, says) in [("PRINTS", "the guest printed 4"), ("STARTS_THREADS", "")] {
        let (code, text) = guest(&bad(dir.path(), define), &["--only", "run/exchanges", "-v"]);
        assert_eq!(code, 0, "{define}: {text}");
        assert!(text.contains(says), "{define}: {text}");
    }
    // A thousand threads are no crime, but they may preempt the host's.
    let (code, text) = guest(&dir.path().join("STARTS_THREADS.so"), &["--level", "L4"]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("1000 of the guest's 1000 threads may preempt"),
        "{text}"
    );
}

#[test]
fn the_process_is_the_hosts() {
    let dir = tempfile::tempdir().unwrap();
    for (define, rule, says) in [
        (
            "CLOSES_OUTPUT",
            "PXG-RT-007",
            "closed or replaced descriptors of the host while it was loaded",
        ),
        ("EXITS_AT_LOAD", "PXG-RT-007", "exit code 0"),
        (
            "FORKS_AT_LOAD",
            "PXG-RT-008",
            "started processes that are still there",
        ),
        (
            "ESCAPES",
            "PXG-RT-008",
            "started processes that are still there",
        ),
    ] {
        let library = bad(dir.path(), define);
        let (code, text) = guest(&library, &["--only", "load/process-stays"]);
        assert_eq!(code, 1, "{define}: {text}");
        assert!(
            text.contains(rule) && text.contains(says),
            "{define}: {text}"
        );
        assert_eq!(mapped(&library), Vec::<String>::new(), "{define}");
    }
}

/// Processes that have `library` mapped.
fn mapped(library: &Path) -> Vec<String> {
    let name = library.display().to_string();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .filter(|p| std::fs::read_to_string(p.join("maps")).is_ok_and(|m| m.contains(&name)))
        .map(|p| p.display().to_string())
        .collect()
}

#[test]
fn a_wrong_access_is_named_with_its_function_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let library = mutant(dir.path(), "late-read");
    let (code, text) = guest(&library, &["--only", "mem/late-use", "--filter", "headers"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("PXG-MEM-002"), "{text}");
    assert!(text.contains("late_run  late.h:"), "{text}");
    assert!(text.contains("after on_event("), "{text}");
}

/// As far as the machine allows, a late use inside a system call is found with its line; where it does not, the report
/// says so, and nothing is green for it.
fn late_system_call(command: &mut Command, library: &Path) -> i32 {
    let (code, text) = run(command
        .arg("guest")
        .arg(library)
        .args(["--only", "mem/late-system-call"]));
    let inactive = text.contains("not active: userfaultfd for late uses inside system calls (");
    let words: &[&str] = match code {
        1 => &["inside the system call write", "late_run  late.h:"],
        _ => &[
            "UNCHECKED",
            "1 not checkable here",
            "INCOMPLETE: no case ran",
        ],
    };
    assert_eq!(inactive, code != 1, "{text}");
    for w in words {
        assert!(text.contains(w), "no {w:?} in {text}");
    }
    code
}

#[test]
fn a_late_system_call_is_found_or_said_to_be_not_checkable() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::os::unix::process::CommandExt as _;
    let dir = tempfile::tempdir().unwrap();
    let library = mutant(dir.path(), "late-system-call");
    let code = late_system_call(&mut program(), &library);
    assert!([1, 4].contains(&code), "{code}");
    // The same without privileges, where this test has some to give up.
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        let open = std::fs::Permissions::from_mode(0o755);
        let copy = dir.path().join("pxg-conformance");
        std::fs::copy(env!("CARGO_BIN_EXE_pxg-conformance"), &copy).unwrap();
        for p in [dir.path(), &copy, &library] {
            std::fs::set_permissions(p, open.clone()).unwrap();
        }
        let everyone = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd")
            .is_ok_and(|t| t.trim() == "1");
        let code = late_system_call(Command::new(&copy).uid(65534).gid(65534), &library);
        assert_eq!(code, if everyone { 1 } else { 4 });
    }
}

#[test]
fn reports_can_be_verified_and_not_forged() {
    let dir = tempfile::tempdir().unwrap();
    let library = bad(dir.path(), "GOOD");
    let file = |n: &str| dir.path().join(n).display().to_string();
    let (code, text) = guest(
        &library,
        &[
            "--level",
            "L1",
            "--report",
            &file("r.json"),
            "--junit",
            &file("r.xml"),
            "--tap",
            &file("r.tap"),
            "--html",
            &file("r.html"),
            "--json",
        ],
    );
    assert_eq!(code, 0, "{text}");
    let last = text.lines().last().expect("the report is the last line");
    assert!(last.contains("\"verdict\":\"conformant\""), "{last}");
    assert!(
        std::fs::read_to_string(file("r.xml"))
            .unwrap()
            .contains("<testsuite")
    );
    assert!(
        std::fs::read_to_string(file("r.tap"))
            .unwrap()
            .starts_with("TAP version 13")
    );
    assert!(
        std::fs::read_to_string(file("r.html"))
            .unwrap()
            .contains("PXG-LOAD-010")
    );
    let verify = |name: &str| run(program().args(["report", "verify", &file(name)]));
    assert_eq!(verify("r.json").0, 0);
    let forged = std::fs::read_to_string(file("r.json"))
        .unwrap()
        .replacen("\"PASS\"", "\"FAIL\"", 1);
    std::fs::write(file("forged.json"), forged).unwrap();
    let (code, said) = verify("forged.json");
    assert_eq!(code, 2);
    assert!(said.contains("its cases say NOT CONFORMANT"), "{said}");
    for (text, says) in [
        ("{\"schema\": 0}", "the report has schema 0"),
        ("{\"schema\": 99}", "the report has schema 99"),
        ("{\"cases\": []}", "it has no `schema`"),
        ("<html>", "is no JSON"),
        ("{\"schema\": 1}", "missing field"),
    ] {
        std::fs::write(file("other.json"), text).unwrap();
        let (code, said) = verify("other.json");
        assert_eq!(code, 2, "{text}");
        assert!(said.contains(says), "{text}: {said}");
    }
    std::fs::write(file("cut.json"), [0xff, 0xfe, 0]).unwrap();
    assert_eq!(verify("cut.json").0, 2);
    let (_, said) = verify("none.json");
    assert!(said.contains("cannot read"), "{said}");
}

#[test]
fn what_requests_leave_behind_is_named_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let library = mutant(dir.path(), "leaks-requests");
    let (code, text) = guest(
        &library,
        &["--only", "mem/request-growth", "--filter", "headers"],
    );
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("480 bytes in 12 blocks after 12 requests"),
        "{text}"
    );
    assert!(text.contains("allocated by on_event  guest.c:"), "{text}");
}

#[test]
fn valgrind_sees_what_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let library = bad(dir.path(), "READS_FREED");
    let (code, text) = guest(&library, &["--only", "run/exchanges", "-v"]);
    assert_eq!(code, 0, "{text}");
    assert!(!text.contains("valgrind: "), "{text}");
    let (_, text) = guest(&library, &["--only", "run/exchanges", "-v", "--valgrind"]);
    if Command::new("valgrind").arg("--version").output().is_err() {
        assert!(text.contains("valgrind cannot be started"), "{text}");
        return;
    }
    assert!(text.contains("Invalid read of size 1"), "{text}");
    assert!(text.contains("event (bad.c:"), "{text}");
    let good = bad(dir.path(), "GOOD");
    let (code, text) = guest(&good, &["--only", "run/exchanges", "-v", "--valgrind"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("valgrind: no errors"), "{text}");
}

/// What a reader of TAP makes of it: perl's, which comes with every Debian and every macOS.
fn prove(file: &str) -> Option<bool> {
    let out = Command::new("prove").args(["-e", "cat", file]).output();
    out.ok().map(|o| o.status.success())
}

#[test]
fn reports_are_what_their_readers_expect() {
    let dir = tempfile::tempdir().unwrap();
    let file = |n: &str| dir.path().join(n).display().to_string();
    let (xml, tap, html, svg) = (file("r.xml"), file("r.tap"), file("r.html"), file("r.svg"));
    let run = |library: &Path, more: &[&str]| {
        let mut args = vec![
            "--junit", &xml, "--tap", &tap, "--html", &html, "--badge", &svg,
        ];
        args.extend_from_slice(more);
        guest(library, &args)
    };
    let suite = || {
        let text = std::fs::read_to_string(&xml).unwrap();
        let all = junit_parser::from_reader(std::io::Cursor::new(text)).unwrap();
        assert_eq!(all.suites.len(), 1);
        all.suites.into_iter().next().unwrap()
    };
    let read = |f: &str| std::fs::read_to_string(f).unwrap();

    let good = bad(dir.path(), "GOOD");
    let (code, text) = run(&good, &["--level", "L1"]);
    assert_eq!(code, 0, "{text}");
    let s = suite();
    assert_eq!((s.failures, s.errors), (0, 0));
    assert_eq!(s.cases.last().unwrap().name, "verdict");
    assert!(s.cases.last().unwrap().status.is_success());
    assert_ne!(prove(&tap), Some(false));
    assert!(read(&svg).contains("conformant L1"), "{}", read(&svg));
    assert!(read(&html).contains("CONFORMANT") && !read(&html).contains("<h2>Findings"));

    // A few cases that pass are not called conformant.
    run(&good, &["--only", "load/table"]);
    assert!(read(&svg).contains("selected cases pass"), "{}", read(&svg));

    let broken = mutant(dir.path(), "status-101");
    let (code, text) = run(&broken, &["--only", "run/exchanges", "--github"]);
    assert_eq!(code, 1, "{text}");
    let s = suite();
    assert_eq!(s.failures, 2, "the case and the verdict");
    let failure = s.cases[0].status.failure_as_ref();
    assert_eq!(failure.failure_type, "PXG-RPL-001");
    assert!(failure.message.contains("101"), "{failure:?}");
    assert_ne!(prove(&tap), Some(true));
    let lines = read(&tap);
    for line in [
        "1..2",
        "not ok 1 - run/exchanges",
        "# PXG-RPL-001 ",
        "not ok 2 - verdict: NOT CONFORMANT",
    ] {
        assert!(lines.lines().any(|l| l.starts_with(line)), "{lines}");
    }
    assert!(read(&svg).contains("not conformant"));
    let page = read(&html);
    assert!(page.contains("href=\"#PXG-RPL-001\"") && page.contains("id=\"PXG-RPL-001\""));
    assert!(page.contains("--only run/exchanges --seed 0x5eed1234"));
    let annotation = text
        .lines()
        .find(|l| l.starts_with("::error "))
        .unwrap_or_else(|| panic!("{text}"));
    let (properties, message) = annotation[8..].split_once("::").unwrap();
    assert_eq!(properties, "title=PXG-RPL-001 run/exchanges");
    assert!(message.contains("%0A"), "{annotation}");

    // Nothing but what does not apply is not green for any of them.
    let (code, text) = run(&good, &["--only", "async"]);
    assert_eq!(code, 4, "{text}");
    assert_eq!(suite().failures, 1);
    assert_ne!(prove(&tap), Some(true));
    let lines = read(&tap);
    assert!(
        lines.lines().nth(2).is_some_and(|l| l.contains(" # SKIP ")),
        "{lines}"
    );
    assert!(lines.contains("not ok"), "{lines}");
    assert!(read(&svg).contains("incomplete"));
}

#[test]
fn nothing_run_is_never_green_and_slips_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let library = bad(dir.path(), "GOOD");
    let (code, text) = guest(&library, &["--only", "PXG-MEM-02"]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("did you mean PXG-MEM-002"), "{text}");
    let (code, text) = guest(&library, &["--only", "async"]);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("INCOMPLETE: no case ran"), "{text}");
    let (code, text) = guest(&library, &["--only", "load/table"]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("THE SELECTED CASES PASS") && !text.contains("CONFORMANT"),
        "{text}"
    );
    let (code, text) = guest(&library, &["--level", "L1", "--skip", "load/table"]);
    assert_eq!(code, 4, "{text}");
}

#[test]
fn a_mistyped_id_is_understood_everywhere() {
    for args in [
        &["explain", "PXG-MEM-0002"][..],
        &["explain", "mem/late-used"],
        &["selftest", "--only", "PXG-MEM-0002"],
        &["selftest", "--only", "late-reed"],
    ] {
        let (code, said) = run(program().args(args));
        assert_eq!(code, 2, "{args:?}: {said}");
        assert!(said.contains("did you mean"), "{args:?}: {said}");
    }
}

#[test]
fn a_guest_written_from_the_header_alone_is_conformant() {
    let dir = tempfile::tempdir().unwrap();
    let library = build(dir.path(), "tests/outside/gate.c", "GATE_GUEST", "gate");
    let settings = manifest().join("tests/outside/pxg-conformance.toml");
    let (code, text) = guest(
        &library,
        &["--level", "L5", "--config", &settings.display().to_string()],
    );
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("CONFORMANT (L5 of L5 reached)"), "{text}");
    // Without a token no configuration is accepted, and that is not passed over.
    let (code, text) = guest(&library, &["--filter", "gate"]);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("accepted no configuration"), "{text}");
}

#[test]
fn go_guests_are_found_out_with_their_lines_and_without_symbols() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = run(program()
        .args(["selftest", "--only", "go-swallowed-fault", "--keep"])
        .arg(dir.path()));
    assert_eq!(code, 0, "{text}");
    let library = dir
        .path()
        .join("built/go-swallowed-fault/go-swallowed-fault.so");
    let (code, text) = guest(&library, &["--only", "mem/late-use"]);
    assert_eq!(code, 1, "{text}");
    let source = std::fs::read_to_string(manifest().join("mutants/guest/go/main.go")).unwrap();
    let line = source
        .lines()
        .position(|l| l.contains("sink = late[0]"))
        .expect("the mutant reads there")
        + 1;
    for words in ["PXG-MEM-002", "main.readLate", &format!("main.go:{line}")] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    // The runtime's own figures are found by symbols and debug information: without them nothing is passed over.
    let only = ["--only", "mem/go-heap-growth"];
    let library = dir.path().join("built/go.so");
    let (code, text) = guest(&library, &only);
    assert_eq!(code, 0, "{text}");
    let stripped = library.with_file_name("stripped.so");
    run(Command::new("strip").arg("-o").arg(&stripped).arg(&library));
    let (code, text) = guest(&stripped, &only);
    assert_eq!(code, 4, "{text}");
    for words in [
        "UNCHECKED",
        "it is stripped",
        "Go's heap per request (Go's heap can't",
    ] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
}

#[test]
fn known_failures_need_a_reason_and_a_day() {
    let dir = tempfile::tempdir().unwrap();
    let library = mutant(dir.path(), "status-101");
    let settings = dir.path().join("settings.toml");
    let run = |expect: &str| {
        std::fs::write(&settings, format!("[expect.\"PXG-RPL-001\"]\n{expect}")).unwrap();
        guest(
            &library,
            &[
                "--only",
                "run/exchanges",
                "--config",
                &settings.display().to_string(),
            ],
        )
    };
    let (code, text) = run("status = \"fail\"\nreason = \"known\"\nuntil = \"2999-01-01\"\n");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("XFAIL"), "{text}");
    let (code, text) = run("status = \"fail\"\nreason = \"known\"\nuntil = \"2020-01-01\"\n");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("has run out"), "{text}");
    let (code, text) = run("status = \"fail\"\nreason = \" \"\nuntil = \"2999-01-01\"\n");
    assert_eq!(code, 2, "{text}");
}

#[test]
fn every_rule_of_guests_is_covered_or_said_to_be_untestable() {
    let (code, text) = run(program().arg("coverage"));
    assert_eq!(code, 0, "{text}");
}
