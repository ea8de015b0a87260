//! What the host tells: access log, admin listener, metrics, log level.

use crate::support::{Client, Host, Upstream, to_app};

#[test]
fn the_access_log_has_every_field() {
    let upstream = Upstream::mirror();
    let host = Host::start(&to_app(&[upstream.address]));
    let reply = host.connect().request("POST", "/p?q", "", b"body");
    let line = host.access(|l| l["path"] == "/p?q");
    let names: Vec<_> = line
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let mut expected = [
        "time",
        "request_id",
        "listener",
        "connection",
        "client",
        "protocol",
        "method",
        "host",
        "path",
        "status",
        "details",
        "route",
        "cluster",
        "upstream",
        "attempts",
        "request_bytes",
        "response_bytes",
        "duration_us",
        "upstream_us",
        "request_end",
        "response_end",
    ];
    expected.sort_unstable();
    let mut sorted = names;
    sorted.sort_unstable();
    assert_eq!(sorted, expected);
    assert_eq!(
        (&line["method"], &line["host"], &line["status"]),
        (&"POST".into(), &"test".into(), &200.into())
    );
    assert_eq!(
        (&line["route"], &line["cluster"]),
        (&"app".into(), &"app".into())
    );
    assert_eq!(line["upstream"], upstream.address.to_string());
    assert_eq!(
        (&line["request_bytes"], &line["response_bytes"]),
        (&4.into(), &reply.body.len().into())
    );
    assert_eq!(
        (&line["request_end"], &line["response_end"]),
        (&"complete".into(), &"complete".into())
    );
    assert!(
        line["upstream_us"].as_u64() > Some(0)
            && line["duration_us"].as_u64() >= line["upstream_us"].as_u64()
    );
}

#[test]
fn a_text_log_can_be_rotated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let head = crate::support::HEAD.replace(
        "path = \"-\"\nformat = \"json\"",
        &format!("path = {path:?}"),
    );
    let config = format!(
        "{head}[[virtual_hosts]]\nname = \"a\"\nhosts = [\"*\"]\nroutes = [{{ name = \"r\", prefix = \"/\", \
         direct_response = {{ status = 200 }} }}]\n"
    );
    let host = Host::start_with(&config);
    host.get("/before%22\"x");
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
    crate::support::until("the line is written", || read(&path).contains("/before"));
    assert!(
        read(&path).contains("\"GET /before%22\\x22x HTTP/1.1\" 200 host.direct_response main"),
        "{}",
        read(&path)
    );
    let old = folder.path().join("old.log");
    std::fs::rename(&path, &old).unwrap();
    assert_eq!(host.reload().status, 200);
    host.get("/after");
    crate::support::until("the new file has the line", || {
        read(&path).contains("/after")
    });
    assert!(!read(&old).contains("/after"));
}

#[test]
fn the_admin_listener_answers() {
    let upstream = Upstream::mirror();
    let host = Host::start(&to_app(&[upstream.address]));
    let health = host.admin("GET", "/healthz");
    assert_eq!((health.status, health.text().as_str()), (200, "ok\n"));
    let config = host.admin("GET", "/config").json();
    assert_eq!(config["generation"], 1);
    assert!(config["file"].as_str().unwrap().ends_with("pxg.toml"));
    assert_eq!(
        config["config"]["clusters"][0]["connect_timeout"], "5s",
        "with defaults"
    );
    assert_eq!(config["listening"]["main"], host.address().to_string());
    assert_eq!(
        host.admin("GET", "/guests").json()["libraries"],
        serde_json::json!([])
    );
    assert_eq!(host.admin("GET", "/nothing").status, 404);
    assert_eq!(host.admin("GET", "/reload").status, 405);
    assert!(host.admin("GET", "/").text().contains("/metrics"));
}

#[test]
fn metrics_count() {
    let upstream = Upstream::mirror();
    let host = Host::start(&to_app(&[upstream.address]));
    let mut client = host.connect();
    for _ in 0..3 {
        client.request("POST", "/", "", b"12345");
    }
    host.access(|_| true);
    assert_eq!(host.metric("pxg_requests_total"), 3);
    assert_eq!(host.metric("pxg_request_body_bytes_total"), 15);
    assert_eq!(host.metric("pxg_connections_active"), 1);
    assert_eq!(
        host.metric("pxg_route_responses_total{route=\"app\",class=\"2xx\"}"),
        3
    );
    let endpoint = format!("{{cluster=\"app\",endpoint=\"{}\"}}", upstream.address);
    assert_eq!(
        host.metric(&format!("pxg_upstream_requests_total{endpoint}")),
        3
    );
    assert_eq!(
        host.metric(&format!("pxg_upstream_connects_total{endpoint}")),
        1
    );
    assert!(host.admin("GET", "/metrics").text().ends_with("# EOF\n"));
}

#[test]
fn the_log_level_changes_while_it_runs() {
    let host = Host::start("[[virtual_hosts]]\nname = \"a\"\nhosts = [\"*\"]\nroutes = []\n");
    let begin_badly = || {
        let mut client = Client::new(host.address());
        client.send("nonsense\r\n\r\n");
        client.rest();
    };
    begin_badly();
    assert!(!host.log().contains("a client's connection ended"));
    assert_eq!(host.admin("POST", "/log_level?level=debug").status, 200);
    host.wait_for_log("log level changed");
    begin_badly();
    host.wait_for_log("a client's connection ended");
    let reply = host.admin("POST", "/log_level?level=loud");
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("\"loud\" is no level"));
}
