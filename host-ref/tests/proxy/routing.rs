//! Hosts, prefixes, rewriting, the strip list, balancing, the host's own responses.

use crate::support::{Host, Upstream, seen};

/// Upstreams that answer with a name of their own.
fn named(name: &'static str) -> Upstream {
    Upstream::http1(move |_| async move { http::Response::new(crate::support::full(name)) })
}

#[test]
fn hosts_and_prefixes_choose_the_cluster() {
    let (a, b, c) = (named("a"), named("b"), named("c"));
    let host = Host::start(&format!(
        r#"
[[clusters]]
name = "a"
endpoints = ["{}"]
[[clusters]]
name = "b"
endpoints = ["{}"]
[[clusters]]
name = "c"
endpoints = ["{}"]
[[virtual_hosts]]
name = "exact"
hosts = ["a.example"]
routes = [{{ name = "a", prefix = "/", cluster = "a" }}, {{ name = "ab", prefix = "/b", cluster = "b" }}]
[[virtual_hosts]]
name = "suffix"
hosts = ["*.example"]
routes = [{{ name = "c", prefix = "/", cluster = "c" }}]
"#,
        a.address, b.address, c.address
    ));
    let ask = |authority: &str, path: &str| {
        let mut client = host.connect();
        client.send(format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\n\r\n"));
        let reply = client.reply();
        (reply.status, reply.text())
    };
    assert_eq!(ask("a.example", "/"), (200, "a".into()));
    assert_eq!(ask("A.EXAMPLE:8080", "/bb"), (200, "a".into()));
    assert_eq!(ask("a.example", "/b/c"), (200, "b".into()));
    assert_eq!(
        ask("a.example", "/x/../b"),
        (200, "b".into()),
        "dot segments are resolved before routing"
    );
    assert_eq!(ask("x.example", "/b"), (200, "c".into()));
    assert_eq!(ask("elsewhere", "/").0, 404);
    let line = host.access(|l| l["status"] == 404);
    assert_eq!(line["details"], "host.no_route");
}

#[test]
fn the_prefix_is_rewritten_and_dots_are_resolved_for_the_upstream() {
    let upstream = Upstream::mirror();
    let host = Host::start(&format!(
        r#"
[[clusters]]
name = "app"
endpoints = ["{}"]
[[virtual_hosts]]
name = "all"
hosts = ["*"]
routes = [{{ name = "api", prefix = "/api", cluster = "app", prefix_rewrite = "/v2" }}]
"#,
        upstream.address
    ));
    let mut client = host.connect();
    for (path, expected) in [
        ("/api/x?q=1", "/v2/x?q=1"),
        ("/api", "/v2"),
        ("/api/a/%2e%2e/b", "/v2/b"),
    ] {
        assert_eq!(client.get(path).json()["path"], expected, "{path}");
    }
}

#[test]
fn the_host_answers_by_itself() {
    let host = Host::start(
        r#"
[[virtual_hosts]]
name = "all"
hosts = ["*"]
routes = [{ name = "r", prefix = "/", direct_response = { status = 418, body = "teapot", headers = { x-a = "b" } } }]
"#,
    );
    let mut client = host.connect();
    let reply = client.get("/");
    assert_eq!(
        (reply.status, reply.text().as_str(), reply.field("x-a")),
        (418, "teapot", Some("b"))
    );
    let reply = client.request("HEAD", "/", "", b"");
    assert_eq!(
        (reply.status, reply.field("content-length")),
        (418, Some("6"))
    );
    // A body that nobody wants does not disturb what follows on the connection, or ends it.
    let reply = client.request("POST", "/", "", b"ignored");
    assert_eq!(reply.status, 418);
}

#[test]
fn fields_on_the_strip_list_reach_nobody() {
    let upstream = Upstream::mirror();
    let config = crate::support::to_app(&[upstream.address]);
    let host = Host::start(&format!(
        "{config}\n[http]\nstrip_request_fields = [\"X-User-Id\"]\nvia = \"edge\"\n"
    ));
    let fields = "x-user-id: 1\r\nX_User_Id: 2\r\nx-user_id: 3\r\nx-userid: 4\r\n";
    let mirror = host.connect().request("GET", "/", fields, b"").json();
    for name in ["x-user-id", "x_user_id", "x-user_id"] {
        assert_eq!(seen(&mirror, name), [""; 0], "{name}");
    }
    assert_eq!(seen(&mirror, "x-userid"), ["4"]);
    assert_eq!(seen(&mirror, "via"), ["1.1 edge"]);
}

#[test]
fn endpoints_take_turns() {
    let upstreams = [named("0"), named("1"), named("2")];
    let host = Host::start(&crate::support::to_app(
        &upstreams.each_ref().map(|u| u.address),
    ));
    let mut client = host.connect();
    let mut counts = [0; 3];
    for _ in 0..30 {
        counts[client.get("/").text().parse::<usize>().unwrap()] += 1;
    }
    assert_eq!(counts, [10; 3]);
}

#[test]
fn the_least_busy_endpoint_is_chosen() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let busy = Upstream::raw(move |mut connection, _| {
        connection.read_request();
        let _ = released.lock().unwrap().recv();
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbusy");
    });
    let idle = named("idle");
    let config = crate::support::to_app(&[busy.address, idle.address]);
    let host = Host::start(&config.replace(
        "[[virtual_hosts]]",
        "balance = \"least_request\"\n[[virtual_hosts]]",
    ));
    let mut waiting = host.connect();
    // One of the first two goes to the busy one and stays there.
    waiting.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    crate::support::until("the busy one is busy", || busy.connection_count() == 1);
    let mut client = host.connect();
    for _ in 0..10 {
        assert_eq!(client.get("/").text(), "idle");
    }
    drop(release);
    waiting.reply();
}
