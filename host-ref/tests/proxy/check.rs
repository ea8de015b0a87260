//! `pxg-host check`: each mistake is named with its place, what was expected and what to do.

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, binary, c_guest};

const GOOD: &str = r#"
[[listeners]]
name = "main"
address = "127.0.0.1:0"
[[clusters]]
name = "app"
endpoints = ["127.0.0.1:9000"]
[[virtual_hosts]]
name = "all"
hosts = ["*"]
routes = [{ name = "app", prefix = "/", cluster = "app" }]
"#;

struct Verdict {
    code: i32,
    text: String,
}

fn run(command: &str, config: &str) -> Verdict {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pxg.toml");
    std::fs::write(&file, config).unwrap();
    std::fs::write(folder.path().join("not-elf.so"), "#!/bin/sh\n").unwrap();
    let mut child = binary()
        .arg(command)
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let text = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    // One that was to be refused and serves instead would never end.
    let begin = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if begin.elapsed() > PATIENCE => {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("`pxg-host {command}` did not end with this configuration:\n{config}");
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    Verdict {
        code: status.code().unwrap(),
        text: text
            .join()
            .unwrap()
            .unwrap()
            .replace(folder.path().to_str().unwrap(), ""),
    }
}

/// The check fails and its text has all of these.
fn refuses(config: &str, expected: &[&str]) {
    let verdict = run("check", config);
    assert_eq!(verdict.code, 1, "{config}\n{}", verdict.text);
    for part in expected {
        assert!(
            verdict.text.contains(part),
            "no {part:?} in:\n{}",
            verdict.text
        );
    }
}

#[test]
fn a_good_file_is_good() {
    let verdict = run("check", GOOD);
    assert_eq!(verdict.code, 0, "{}", verdict.text);
}

#[test]
fn an_unknown_key_is_pointed_at_with_the_likely_one() {
    refuses(
        &GOOD.replace("endpoints", "endpoint"),
        &[
            "/pxg.toml:7:1: error",
            "unknown field `endpoint`",
            "7 | endpoint = [",
            "did you mean `endpoints`?",
        ],
    );
    refuses(
        &GOOD.replace("prefix = ", "prefx = "),
        &["/pxg.toml:11", "did you mean `prefix`?"],
    );
    refuses(
        &format!("zzz = 1\n{GOOD}"),
        &["/pxg.toml:1:1", "the keys here are: workers"],
    );
}

#[test]
fn what_is_no_toml_is_pointed_at() {
    refuses(&GOOD.replace("[\"*\"]", "[\"*\""), &["/pxg.toml:"]);
    refuses(
        &GOOD.replace("name = \"app\"\n", "name = \"app\"\nname = \"app\"\n"),
        &["duplicate key", "/pxg.toml:7:"],
    );
}

#[test]
fn wrong_types_and_units_say_what_is_expected() {
    refuses(
        &GOOD.replace("\"127.0.0.1:0\"", "\"localhost\""),
        &["/pxg.toml:4:11", "socket address"],
    );
    let timeout = |value: &str| {
        GOOD.replace(
            "[[virtual",
            &format!("connect_timeout = {value}\n[[virtual"),
        )
    };
    refuses(&timeout("\"5\""), &["/pxg.toml:8:19", "a time with a unit"]);
    refuses(&timeout("5"), &["a time with a unit"]);
    refuses(
        &timeout("\"0s\""),
        &["clusters[0].connect_timeout", "needs a limit"],
    );
    refuses(
        &GOOD.replace(
            "[[clusters]]",
            "limits = { header_bytes = \"many\" }\n[[clusters]]",
        ),
        &["a number of bytes, like 65536"],
    );
}

#[test]
fn every_wrong_name_is_told_at_once() {
    refuses(
        &GOOD.replace(
            "cluster = \"app\" }]",
            "cluster = \"ap\" }, { name = \"x\", prefix = \"x\", cluster = \"nothing\" }]",
        ),
        &[
            "virtual_hosts[0].routes[0].cluster: there is no cluster \"ap\"",
            "did you mean \"app\"?",
            "virtual_hosts[0].routes[1].prefix: \"x\" is no path",
            "virtual_hosts[0].routes[1].cluster: there is no cluster \"nothing\"",
            "there are: app",
            "3 errors",
        ],
    );
}

#[test]
fn duplicates_are_refused() {
    refuses(
        &format!("{GOOD}[[clusters]]\nname = \"app\"\nendpoints = [\"127.0.0.1:1\"]\n"),
        &["clusters[1].name: the name \"app\" is taken by clusters[0]"],
    );
    refuses(
        &GOOD.replace("hosts = [\"*\"]", "hosts = [\"a\", \"A\"]"),
        &["hosts[1]", "belongs to virtual_hosts[0]"],
    );
    refuses(
        &GOOD.replace(
            "cluster = \"app\" }]",
            "cluster = \"app\" }, { name = \"y\", prefix = \"/\", cluster = \"app\" }]",
        ),
        &["has the prefix \"/\""],
    );
}

#[test]
fn a_route_answers_in_exactly_one_way() {
    refuses(
        &GOOD.replace(", cluster = \"app\"", ""),
        &["exactly one of `cluster` and `direct_response`"],
    );
    refuses(
        &GOOD.replace(
            "cluster = \"app\" }]",
            "direct_response = { status = 99 } }]",
        ),
        &["99 is no final status", "200 to 599"],
    );
}

#[test]
fn an_endpoint_that_is_no_address() {
    refuses(
        &GOOD.replace("\"127.0.0.1:9000\"", "\"127.0.0.1\""),
        &["clusters[0].endpoints[0]", "host:port"],
    );
    refuses(
        &GOOD.replace("\"127.0.0.1:9000\"", "\"127.0.0.1:0\""),
        &["has port 0"],
    );
    refuses(
        &GOOD.replace("[\"127.0.0.1:9000\"]", "[]"),
        &["has no endpoint"],
    );
}

#[test]
fn certificates_that_cannot_be_used() {
    let tls = |t: &str| GOOD.replace("[[clusters]]", &format!("tls = {{ {t} }}\n[[clusters]]"));
    refuses(
        &tls("cert = \"none.pem\", key = \"none.pem\""),
        &["listeners[0].tls.cert", "cannot read /none.pem"],
    );
    refuses(
        &tls("cert = \"pxg.toml\", key = \"pxg.toml\""),
        &["holds no certificate", "BEGIN CERTIFICATE"],
    );
}

#[test]
fn guests_that_cannot_be_used() {
    let guest = |path: &str| format!("{GOOD}[[guests]]\nname = \"g\"\npath = {path:?}\n");
    refuses(
        &guest("missing.so"),
        &["guests[0].path", "/missing.so", "No such file"],
    );
    refuses(
        &guest("not-elf.so"),
        &["guests[0].path", "found", "expected", "ELF"],
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let no_entry = c_guest("no_entry", &root.join("tests/guests/no_entry.c"));
    refuses(&guest(no_entry.to_str().unwrap()), &["pxg_guest_init_v1"]);
    let other = c_guest("other_major", &root.join("tests/guests/other_major.c"));
    refuses(
        &guest(other.to_str().unwrap()),
        &["guests[0].path", "expected"],
    );
    let requires = c_guest(
        "requires_features",
        &root.join("tests/guests/requires_features.c"),
    );
    refuses(
        &guest(requires.to_str().unwrap()),
        &["guests[0].path", "expected"],
    );
}

fn policy() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = c_guest(
        "header-policy",
        &root.join("guest-sdk/c/examples/header-policy.c"),
    );
    format!("{GOOD}[[guests]]\nname = \"g\"\npath = {:?}\n", path)
}

#[test]
fn a_configuration_that_a_guest_refuses() {
    let filter = |text: &str| format!("{}[[filters]]\nname = \"f\"\n{text}\n", policy());
    refuses(
        &filter("guest = \"g\"\nconfig = \"request xet a b\""),
        &[
            "filters[0]",
            "header-policy",
            "line 1, word 2",
            "\"xet\"",
            "set, add or delete",
        ],
    );
    refuses(
        &filter("guest = \"h\""),
        &["filters[0].guest: there is no guest \"h\""],
    );
    refuses(
        &filter("guest = \"g\"\nfilter = \"nope\""),
        &["has no filter \"nope\"", "it has: header-policy"],
    );
    refuses(
        &filter("guest = \"g\"\nconfig_file = \"nope\""),
        &["filters[0].config_file", "cannot read /nope"],
    );
    refuses(
        &filter("guest = \"g\"\npend_limit = \"0s\""),
        &["filters[0].pend_limit"],
    );
    refuses(
        &filter("guest = \"g\"\nclusters = [\"nope\"]"),
        &["filters[0].clusters[0]: there is no cluster \"nope\""],
    );
    let verdict = run(
        "check",
        &filter("guest = \"g\"\nconfig = \"request set a b\""),
    );
    assert_eq!(verdict.code, 0, "{}", verdict.text);
}

#[test]
fn a_filter_that_a_route_names_wrong() {
    let config = policy() + "[[filters]]\nname = \"policy\"\nguest = \"g\"\n";
    refuses(
        &config.replace(
            "cluster = \"app\" }]",
            "cluster = \"app\", filters = [\"polcy\"] }]",
        ),
        &[
            "virtual_hosts[0].routes[0].filters[0]: there is no filter \"polcy\"",
            "did you mean \"policy\"?",
        ],
    );
    refuses(
        &config.replace(
            "cluster = \"app\" }]",
            "cluster = \"app\", filters = [{ nam = \"policy\" }] }]",
        ),
        &["unknown field `nam`", "did you mean `name`?"],
    );
    refuses(
        &config.replace(
            "cluster = \"app\" }]",
            "cluster = \"app\", filters = [{ name = \"policy\", config = \"bad\" }] }]",
        ),
        &["virtual_hosts[0].routes[0].filters[0]", "line 1"],
    );
}

#[test]
fn a_port_in_use_is_named_by_run() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let verdict = run("run", &GOOD.replace("127.0.0.1:0", &address.to_string()));
    assert_eq!(verdict.code, 1);
    for part in [
        "/pxg.toml:4:11",
        "listeners[0].address",
        &format!("cannot listen on {address}"),
        "in use",
        "help:",
    ] {
        assert!(
            verdict.text.contains(part),
            "no {part:?} in:\n{}",
            verdict.text
        );
    }
    // Another pxg-host is no exception, although both would allow the port to be shared.
    let first = crate::support::Host::start(
        "[[virtual_hosts]]\nname = \"a\"\nhosts = [\"*\"]\nroutes = []\n",
    );
    let verdict = run(
        "run",
        &GOOD.replace("127.0.0.1:0", &first.address().to_string()),
    );
    assert_eq!(verdict.code, 1);
    assert!(verdict.text.contains("in use"), "{}", verdict.text);
}

#[test]
fn a_file_that_is_not_there() {
    let out = binary()
        .args(["check", "/nowhere/pxg.toml"])
        .output()
        .unwrap();
    let text = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(
        text.contains("/nowhere/pxg.toml: error: cannot read the configuration"),
        "{text}"
    );
}

#[test]
fn wrong_usage_has_its_own_status() {
    assert_eq!(
        binary().arg("nonsense").output().unwrap().status.code(),
        Some(2)
    );
}

#[test]
fn the_schema_in_the_repository_is_the_programs() {
    let out = binary().arg("schema").output().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kept = std::fs::read_to_string(root.join("config.schema.json")).unwrap();
    // As values: the order of keys depends on what else is built beside the program.
    let value = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).unwrap();
    assert!(
        value(&out.stdout) == value(kept.as_bytes()),
        "host-ref/config.schema.json is stale: cargo xtask gen"
    );
}

#[test]
fn the_examples_are_good() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = binary()
        .arg("check")
        .arg(root.join("examples/plain.toml"))
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}
