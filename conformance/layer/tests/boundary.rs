//! The layer's own file between a host and a guest in C that have one defect each (`wrong.c`), and the ways in which it is
//! told what to do.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

struct Built {
    dir: tempfile::TempDir,
    layer: PathBuf,
}

impl Built {
    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// The layer that cargo built for this test.
fn layer() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.ancestors()
        .skip(1)
        .take(2)
        .map(|d| d.join("libpxg_layer.so"))
        .find(|p| p.exists())
        .unwrap_or_else(|| panic!("no libpxg_layer.so beside {}", exe.display()))
}

fn cc(dir: &Path, out: &str, more: &[&str]) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("cc")
        .args([
            "-std=gnu11",
            "-g",
            "-O0",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-I",
        ])
        .arg(here.join("../../include"))
        .args(more)
        .arg(here.join("tests/wrong.c"))
        .arg("-o")
        .arg(dir.join(out))
        .args(["-ldl", "-lpthread"])
        .output()
        .expect("a C compiler is needed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        cc(dir.path(), "guest.so", &["-DGUEST", "-shared", "-fPIC"]);
        cc(dir.path(), "host", &[]);
        Built {
            dir,
            layer: layer(),
        }
    })
}

struct Ran {
    output: Output,
    lines: Vec<Value>,
}

impl Ran {
    fn rules(&self) -> Vec<(String, String)> {
        self.of_kind("finding")
            .iter()
            .map(|f| {
                let text = |k: &str| f[k].as_str().unwrap().to_string();
                (text("rule"), text("side"))
            })
            .collect()
    }

    fn of_kind(&self, kind: &str) -> Vec<&Value> {
        self.lines.iter().filter(|l| l["kind"] == kind).collect()
    }
}

fn run(mode: &str, defect: &str, guest: &str, more: &[(&str, &str)]) -> Ran {
    let b = built();
    let out = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new(b.file("host"))
        .arg(&b.layer)
        .args([defect, guest])
        .env_clear()
        .env("PXG_LAYER_GUEST", b.file("guest.so"))
        .env("PXG_LAYER", mode)
        .env("PXG_LAYER_OUT", out.path())
        .envs(more.iter().copied())
        .output()
        .unwrap();
    let text = std::fs::read_to_string(out.path()).unwrap();
    Ran {
        output,
        lines: text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect(),
    }
}

/// Defect, what the guest does, and the rule.
const HOSTS: &[(&str, &str, &str)] = &[
    ("presets an action", "", "PXG-ACT-001"),
    ("presets more", "", "PXG-ABI-011"),
    ("lends little", "", "PXG-MEM-010"),
    ("lends crooked memory", "", "PXG-ABI-010"),
    ("lends dirty operations", "", "PXG-MEM-010"),
    ("uses another ctx", "", "PXG-ABI-009"),
    ("changes a view", "asks for scratch", "PXG-MEM-001"),
    ("refuses scratch", "asks for scratch", "PXG-MEM-014"),
    ("lends dirty scratch", "asks for scratch", "PXG-MEM-010"),
    ("lends crooked scratch", "asks for scratch", "PXG-ABI-010"),
    ("releases twice", "gives an owned buffer", "PXG-MEM-006"),
    ("never releases", "gives an owned buffer", "PXG-MEM-006"),
    ("releases twice", "pends", "PXG-MEM-006"),
    ("calls a hook inside complete", "pends", "PXG-EVT-005"),
    ("keeps what complete was handed", "pends", "PXG-MEM-005"),
    ("keeps a record", "logs", "PXG-OBS-005"),
    ("keeps a configuration's strings", "", "PXG-CFG-002"),
    ("reads borrowed memory late", "", "PXG-MEM-003"),
    ("leaves its signals open", "", "PXG-RT-001"),
    ("calls in a child", "", "PXG-LOAD-004"),
    ("does not zero the table", "", "PXG-ABI-011"),
    ("has no complete", "", "PXG-NEG-004"),
    ("changes its table", "", "PXG-NEG-001"),
];

#[test]
fn each_wrong_host_is_found() {
    for (defect, guest, rule) in HOSTS {
        let ran = run("heal", defect, guest, &[]);
        let found = ran.rules();
        let is = |(r, s): &(String, String)| r == rule && s == "host";
        assert!(ran.output.status.success(), "{defect}: {:?}", ran.output);
        assert!(found.iter().any(is), "{defect}: {rule} is not in {found:?}");
        // A hook at the wrong time is also one batch end too many.
        let also = |r: &str| {
            matches!(*defect, "calls a hook inside complete" | "calls in a child")
                && r == "PXG-THR-004"
        };
        assert!(
            found.iter().all(|x| is(x) || also(&x.0)),
            "{defect}: more than {rule}: {found:?}"
        );
    }
}

#[test]
fn each_wrong_guest_is_found() {
    for (guest, rule) in [
        ("reads a view late", "PXG-MEM-002"),
        ("writes to a view", "PXG-MEM-009"),
        ("writes behind its result", "PXG-ABI-004"),
        ("changes what it lent", "PXG-MEM-004"),
    ] {
        let ran = run("heal", "", guest, &[]);
        assert_eq!(
            ran.rules(),
            vec![(rule.to_string(), "guest".to_string())],
            "{guest}: {}",
            String::from_utf8_lossy(&ran.output.stderr)
        );
        assert!(ran.output.status.success(), "{guest}: it is let through");
    }
    // Where it was, by the debug information.
    let ran = run("heal", "", "reads a view late", &[]);
    let what = ran.of_kind("finding")[0]["what"].as_str().unwrap();
    assert!(
        what.contains("wrong.c:") && what.contains("later"),
        "{what}"
    );
}

#[test]
fn right_ones_have_no_finding_in_any_mode() {
    for mode in ["log", "heal", "abort"] {
        for guest in [
            "",
            "asks for scratch",
            "logs",
            "pends",
            "gives an owned buffer",
        ] {
            for more in [&[][..], &[("PXG_LAYER_PERTURB", "7")]] {
                let ran = run(mode, "", guest, more);
                assert!(
                    ran.output.status.success(),
                    "{mode} {guest}: {:?}",
                    ran.output
                );
                assert_eq!(ran.rules(), vec![], "{mode} {guest:?} {more:?}");
                let end = ran.of_kind("end");
                assert_eq!(end.len(), 1, "{mode} {guest}");
                assert!(end[0]["calls"].as_u64().unwrap() >= 7);
            }
        }
    }
}

#[test]
fn abort_ends_the_process_with_the_message() {
    use std::os::unix::process::ExitStatusExt as _;
    for (defect, guest, rule) in [
        ("presets an action", "", "PXG-ACT-001"),
        ("", "reads a view late", "PXG-MEM-002"),
    ] {
        let ran = run("abort", defect, guest, &[]);
        assert_eq!(ran.output.status.signal(), Some(6), "{:?}", ran.output);
        let text = String::from_utf8_lossy(&ran.output.stderr);
        assert!(text.contains(rule) && text.contains("expected"), "{text}");
        assert_eq!(ran.rules()[0].0, rule);
    }
}

#[test]
fn the_filter_hides_rules_and_the_banner_comes_once() {
    let hidden = [("PXG_LAYER_FILTER", "!PXG-ACT-*")];
    assert_eq!(
        run("heal", "presets an action", "", &hidden).rules(),
        vec![]
    );
    let banner = run("heal", "", "", &[]);
    let text = String::from_utf8_lossy(&banner.output.stderr).into_owned();
    assert_eq!(text.matches("checks ").count(), 1, "one banner: {text}");
}

#[test]
fn settings_come_from_the_file_beside_the_layer_where_the_environment_is_empty() {
    let b = built();
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy.so");
    std::fs::copy(&b.layer, &copy).unwrap();
    let settings = format!(
        "guest = {:?}\nmode = \"heal\"\nout = \"out.jsonl\"\ntrace = true\n",
        b.file("guest.so")
    );
    std::fs::write(dir.path().join("copy.so.toml"), settings).unwrap();
    let output = Command::new(b.file("host"))
        .arg(&copy)
        .args(["", "pends"])
        .env_clear()
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(dir.path().join("out.jsonl")).unwrap();
    for function in [
        "init",
        "on_config_new",
        "on_event",
        "complete",
        "release",
        "on_stream_end",
    ] {
        assert!(
            text.contains(&format!("\"fn\":\"{function}\"")),
            "{function} is in no record"
        );
    }
}

#[test]
fn without_a_guest_init_says_what_to_set() {
    let b = built();
    let output = Command::new(b.file("host"))
        .arg(&b.layer)
        .args(["", ""])
        .env_clear()
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("PXG_LAYER_GUEST"), "{text}");
    let output = Command::new(b.file("host"))
        .arg(&b.layer)
        .args(["", ""])
        .env_clear()
        .env("PXG_LAYER_GUEST", &b.layer)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("the layer itself"), "{text}");
}

/// What needs copies that become inaccessible is seen in `heal` and `abort` alone.
#[test]
fn log_finds_the_same_but_late_uses() {
    const LATE: [&str; 4] = ["PXG-MEM-003", "PXG-MEM-005", "PXG-OBS-005", "PXG-CFG-002"];
    for (defect, guest, rule) in HOSTS {
        let found = run("log", defect, guest, &[]).rules();
        assert_eq!(
            found.iter().any(|(r, s)| r == rule && s == "host"),
            !LATE.contains(rule),
            "{defect}: {found:?}"
        );
    }
}

#[test]
fn the_filter_takes_a_list_and_takes_away() {
    let ran = |filter| {
        run(
            "heal",
            "presets an action",
            "",
            &[("PXG_LAYER_FILTER", filter)],
        )
    };
    assert_eq!(ran("PXG-MEM-*").rules(), vec![]);
    let taken = ran("PXG-ACT-*").rules();
    assert!(
        !taken.is_empty() && taken.iter().all(|(r, _)| r == "PXG-ACT-001"),
        "{taken:?}"
    );
    let hidden = ran("PXG-ACT-*,!PXG-ACT-001");
    assert_eq!(hidden.rules(), vec![]);
    // What is not reported does not count either, and does not abort.
    assert_eq!(hidden.of_kind("end")[0]["findings"], 0);
    let more = [("PXG_LAYER_FILTER", "!PXG-ACT-*")];
    let aborts = run("abort", "presets an action", "", &more);
    assert!(aborts.output.status.success(), "{:?}", aborts.output);
}

/// A host that sends so many heads, with a defect in each, and ends without an end of its streams.
fn heads(n: u32, defect: &str) -> (Ran, String) {
    let b = built();
    let out = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new(b.file("host"))
        .arg(&b.layer)
        .args([defect, "", &n.to_string()])
        .env_clear()
        .env("PXG_LAYER_GUEST", b.file("guest.so"))
        .env("PXG_LAYER", "heal")
        .env("PXG_LAYER_OUT", out.path())
        .output()
        .unwrap();
    let text = std::fs::read_to_string(out.path()).unwrap();
    let lines = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (Ran { output, lines }, stderr)
}

#[test]
fn a_rule_is_reported_ten_times_for_a_place_and_counted_to_the_end() {
    let (ran, text) = heads(25, "presets an action");
    assert!(ran.output.status.success(), "{text}");
    let found = ran.of_kind("finding");
    assert_eq!(found.len(), 10);
    let last: Vec<bool> = found
        .iter()
        .map(|f| f["last_of_its_kind"] == true)
        .collect();
    assert_eq!(last, [&[false; 9][..], &[true]].concat());
    assert_eq!(text.matches("PXG-ACT-001 host").count(), 10);
    assert_eq!(text.matches("that was the last time").count(), 1);
    let end = ran.of_kind("end");
    assert_eq!(end.len(), 1);
    assert_eq!(
        (&end[0]["findings"], &end[0]["suppressed"]),
        (&25.into(), &15.into())
    );
    // Init with its record, a configuration, a worker, 25 heads.
    assert_eq!(end[0]["calls"], 29);
    assert!(
        text.contains("29 calls, 25 findings, 0 warnings (15 of them repeats"),
        "{text}"
    );
    // As many as are written at most: nothing is kept back.
    let (ran, _) = heads(10, "presets an action");
    assert_eq!(ran.of_kind("end")[0]["suppressed"], 0);
}

#[test]
fn the_process_id_is_in_the_name_of_the_file_where_it_is_asked_for() {
    let b = built();
    let dir = tempfile::tempdir().unwrap();
    let child = Command::new(b.file("host"))
        .arg(&b.layer)
        .args(["", ""])
        .env_clear()
        .env("PXG_LAYER_GUEST", b.file("guest.so"))
        .env("PXG_LAYER_OUT", dir.path().join("out.%p.jsonl"))
        .spawn()
        .unwrap();
    let pid = child.id();
    assert!(child.wait_with_output().unwrap().status.success());
    assert!(dir.path().join(format!("out.{pid}.jsonl")).is_file());
}

/// How much scratch the guest got before it was refused more, by the seed.
fn granted(seed: u64) -> String {
    let seed = seed.to_string();
    let ran = run(
        "heal",
        "",
        "asks until refused",
        &[("PXG_LAYER_PERTURB", &seed)],
    );
    assert_eq!(ran.rules(), vec![], "seed {seed}");
    assert_eq!(ran.of_kind("begin")[0]["perturb"].to_string(), seed);
    let text = String::from_utf8_lossy(&ran.output.stderr).into_owned();
    let line = text.lines().find(|l| l.starts_with("granted "));
    line.unwrap_or_else(|| panic!("{text}")).to_string()
}

#[test]
fn a_seed_gives_the_same_perturbations_again() {
    let first: Vec<String> = (1..=6).map(granted).collect();
    let again: Vec<String> = (1..=6).map(granted).collect();
    assert_eq!(first, again);
    assert!(first.iter().any(|g| *g != first[0]), "{first:?}");
    // Never less than what every host grants.
    let least = |g: &String| g["granted ".len()..].parse::<u32>().unwrap() >= 64;
    assert!(first.iter().all(least), "{first:?}");
}

#[test]
fn a_trace_has_both_ends_of_every_call() {
    let ran = run("heal", "", "pends", &[("PXG_LAYER_TRACE", "1")]);
    let of = |function: &str, edge: &str| {
        ran.lines
            .iter()
            .filter(|l| l["fn"] == function && l["edge"] == edge)
            .count()
    };
    for (function, n) in [
        ("init", 1),
        ("on_config_new", 1),
        ("on_worker", 2),
        ("on_event", 2),
        ("complete", 1),
        ("on_batch_end", 1),
        ("on_stream_end", 1),
        ("on_config_drop", 1),
    ] {
        assert_eq!(
            (of(function, "enter"), of(function, "exit")),
            (n, n),
            "{function}"
        );
    }
    let numbers: Vec<u64> = ran.lines.iter().filter_map(|l| l["seq"].as_u64()).collect();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
}

/// Instructions that a process executes, by callgrind.
fn instructions(library: &Path, mode: &str, heads: u32) -> Option<u64> {
    let b = built();
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(b.file("host"))
        .arg(library)
        .args(["", "", &heads.to_string()])
        .env("PXG_LAYER_GUEST", b.file("guest.so"))
        .env("PXG_LAYER", mode)
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().find(|l| l.contains("Collected"))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
#[ignore = "a measurement: needs valgrind, and --release to mean anything"]
fn what_a_call_costs() {
    let b = built();
    let per_call = |library: &Path, mode: &str| {
        let few = instructions(library, mode, 100).expect("valgrind is needed");
        let many = instructions(library, mode, 1100).expect("valgrind is needed");
        (many - few) / 1000
    };
    println!(
        "instructions for a head of 13 fields: {} without the layer, {} in log, {} in heal",
        per_call(&b.file("guest.so"), "log"),
        per_call(&b.layer, "log"),
        per_call(&b.layer, "heal"),
    );
}
