//! The configuration in the README is one that works.

use std::path::Path;

use crate::client::Client;
use crate::envoy::Envoy;
use crate::guests;
use crate::phases::seen;
use crate::suite::{Suite, World};
use crate::support::until;

pub(crate) fn add(suite: &mut Suite) {
    suite.test("readme::its_configuration_works", works);
}

/// The README's configuration, its paths and ports replaced by those of the test.
fn config(w: &World) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(file).expect("the README");
    let (_, rest) = text.split_once("```yaml\n").expect("a block of YAML");
    let (yaml, _) = rest.split_once("```").expect("its end");
    let upstream = w.origins.clusters()["app"].0;
    let mut config = yaml.to_owned();
    for (old, new) in [
        ("port_value: 9901", "port_value: 0".to_owned()),
        ("port_value: 10000", "port_value: 0".to_owned()),
        (
            "port_value: 8080",
            format!("port_value: {}", upstream.port()),
        ),
        ("127.0.0.1:9000", upstream.to_string()),
        (
            "/opt/pxg/libexamples.so",
            guests::go().display().to_string(),
        ),
    ] {
        assert!(config.contains(old), "the README has no {old}");
        config = config.replace(old, &new);
    }
    config
}

fn works(w: &World) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("envoy.yaml");
    std::fs::write(&file, config(w)).expect("write the configuration");
    let flags = ["--disable-hot-restart", "--concurrency", "1"];
    let envoy = Envoy::start_file(w.version, &file, folder, &flags);
    let get = |path: &str, fields: &str| {
        Client::new(envoy.address("main")).request("GET", path, fields, b"")
    };
    let reply = get("/", "");
    assert_eq!(
        (reply.status, reply.field("x-trace-id").map(str::len)),
        (200, Some(32))
    );
    assert_eq!(
        seen(&reply.json(), "x-trace-id"),
        [reply.field("x-trace-id").unwrap()]
    );
    let reply = get("/account/me", "");
    assert_eq!(
        (reply.status, reply.field("x-trace-id").map(str::len)),
        (401, Some(32))
    );
    assert_eq!(
        get("/account/me", "authorization: Bearer x\r\n").status,
        200
    );
    // The names of the statistics are those of the README, as its configuration has them for Prometheus.
    until("the module has handed over what it counted", || {
        let text = envoy.admin("GET", "/stats/prometheus?filter=pxg_").text();
        let has = |name: &str, labels: &str, value: u64| {
            let (name, end) = (format!("{name}{{"), format!("{labels}}} {value}"));
            text.lines()
                .any(|line| line.starts_with(&name) && line.ends_with(&end))
        };
        let auth = "filter=\"token-check\",config=\"auth\"";
        let headers = format!("{auth},phase=\"request_headers\"");
        let step = format!("{auth},step=\"batch_end\"");
        has("pxg_guest_calls_total", &headers, 2)
            && has("pxg_guest_pending_total", &headers, 1)
            && has("pxg_guest_pending", auth, 0)
            && has("pxg_recipe", &step, 1)
    });
}
