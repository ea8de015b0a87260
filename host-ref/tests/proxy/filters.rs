//! Requests through real guests: in C, in Go, in Rust.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, mpsc};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::{Client, HEAD, Host, Upstream, c_guest, full, run, seen, until};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .into()
}

/// Builds a guest once in this process.
fn built(name: &'static str, build: impl FnOnce() -> PathBuf) -> PathBuf {
    static BUILT: OnceLock<Mutex<HashMap<&'static str, PathBuf>>> = OnceLock::new();
    let mut built = BUILT.get_or_init(Mutex::default).lock().unwrap();
    built.entry(name).or_insert_with(build).clone()
}

/// The example filters in C.
fn c_policy() -> PathBuf {
    c_guest(
        "header-policy",
        &root().join("guest-sdk/c/examples/header-policy.c"),
    )
}

/// All example filters in Go: one library.
fn go_bundle() -> PathBuf {
    built("bundle", || {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("proxy-{}-bundle.so", std::process::id()));
        let status = Command::new("go")
            .args(["build", "-buildmode=c-shared", "-o"])
            .arg(&out)
            .arg("./examples/bundle")
            .current_dir(root().join("guest-sdk/go"))
            .status()
            .expect("Go 1.24 or newer in PATH; `cargo xtask test` brings it");
        assert!(status.success(), "the Go filters do not build");
        out
    })
}

/// All example filters in Rust: one library.
fn rust_filters() -> PathBuf {
    built("rust", || {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rust-guests");
        let status = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "--package",
                "body-rewrite",
                "--target-dir",
            ])
            .arg(&target)
            .current_dir(root())
            .status()
            .unwrap();
        assert!(status.success(), "the Rust filters do not build");
        target.join("debug/libbody_rewrite.so")
    })
}

/// A site with one route for each of `routes`: prefix and filters.
fn site(upstream: &Upstream, filters: &str, routes: &[(&str, &str)]) -> String {
    let mut config = format!(
        "[[clusters]]\nname = \"app\"\nendpoints = [\"{}\"]\n",
        upstream.address
    );
    for (name, path) in [
        ("c", c_policy as fn() -> PathBuf),
        ("go", go_bundle),
        ("rust", rust_filters),
    ] {
        if filters.contains(&format!("guest = \"{name}\"")) {
            config += &format!("[[guests]]\nname = \"{name}\"\npath = {:?}\n", path());
        }
    }
    config += filters;
    config += "\n[[virtual_hosts]]\nname = \"all\"\nhosts = [\"*\"]\n";
    for (prefix, filters) in routes {
        config += &format!(
            "[[virtual_hosts.routes]]\nname = \"{prefix}\"\nprefix = \"{prefix}\"\ncluster = \"app\"\nfilters = {filters}\n"
        );
    }
    config
}

const POLICY: &str = r#"
[[filters]]
name = "policy"
guest = "c"
config = """
request set x-policy yes
request delete x-secret
response set x-policy-out done
deny path-prefix /forbidden 403
"""
"#;

#[test]
fn a_c_filter_changes_both_heads_and_answers_by_itself() {
    let upstream = Upstream::mirror();
    let routes = [
        ("/", "[\"policy\"]"),
        (
            "/over",
            "[{ name = \"policy\", config = \"request set x-over 1\" }]",
        ),
    ];
    let host = Host::start(&site(&upstream, POLICY, &routes));
    let mut client = host.connect();
    for _ in 0..5 {
        let reply = client.request("GET", "/x", "x-secret: 1\r\nX-Policy: forged\r\n", b"");
        assert_eq!(reply.field("x-policy-out"), Some("done"));
        let mirror = reply.json();
        assert_eq!(
            (seen(&mirror, "x-policy"), seen(&mirror, "x-secret")),
            (vec!["yes"], vec![])
        );
    }
    let before = upstream.count();
    let reply = client.get("/forbidden");
    assert_eq!(reply.status, 403);
    assert_eq!(upstream.count(), before, "the upstream is not asked");
    assert!(
        host.access(|l| l["status"] == 403)["details"]
            .as_str()
            .unwrap()
            .starts_with("policy")
    );
    // A route's own configuration.
    let reply = client.get("/over");
    assert_eq!(reply.field("x-policy-out"), None);
    assert_eq!(seen(&reply.json(), "x-over"), ["1"]);
    // Bodies go through untouched.
    let mirror = client
        .request("POST", "/x", "", &vec![b'x'; 1 << 20])
        .json();
    assert_eq!(
        (&mirror["length"], seen(&mirror, "x-policy")),
        (&(1 << 20).into(), vec!["yes"])
    );
    let guests = host.admin("GET", "/guests").json();
    assert_eq!(
        guests["filters"]["policy"]["phases"]["request_headers"]["calls"],
        8
    );
    assert_eq!(guests["libraries"][0]["go"], false);
}

#[test]
fn the_host_s_own_replies_pass_the_response_phases() {
    let upstream = Upstream::raw(|mut connection, _| drop(connection.read_request()));
    let host = Host::start(&site(&upstream, POLICY, &[("/", "[\"policy\"]")]));
    let reply = host.get("/");
    assert_eq!(
        (reply.status, reply.field("x-policy-out")),
        (502, Some("done"))
    );
    assert_eq!(reply.text(), "502 Bad Gateway\n");
}

#[test]
fn a_go_filter_adds_an_id_both_ways_over_http1_and_http2() {
    let upstream = Upstream::mirror();
    let filters =
        "[[filters]]\nname = \"trace\"\nguest = \"go\"\nfilter = \"trace-id\"\nconfig = {}\n";
    let host = Host::start(&site(&upstream, filters, &[("/", "[\"trace\"]")]));
    let reply = host.get("/");
    let id = reply.field("x-trace-id").unwrap().to_owned();
    assert_eq!(seen(&reply.json(), "x-trace-id"), [id]);
    run(async {
        let stream = tokio::net::TcpStream::connect(host.address())
            .await
            .unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let request = Request::post("http://test/h2")
            .body(Full::<Bytes>::from("body"))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let id = response.headers()["x-trace-id"]
            .to_str()
            .unwrap()
            .to_owned();
        let mirror: serde_json::Value =
            serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes())
                .unwrap();
        assert_eq!(
            (&mirror["body"], seen(&mirror, "x-trace-id")),
            (&"body".into(), vec![&*id])
        );
    });
    assert_eq!(
        host.admin("GET", "/guests").json()["libraries"][0]["go"],
        true
    );
}

/// An authority that knows one token.
fn authority() -> Upstream {
    Upstream::http1(|request: Request<hyper::body::Incoming>| async move {
        let good = request
            .headers()
            .get("authorization")
            .is_some_and(|v| v == "Bearer good");
        let mut response = Response::new(full(""));
        if good {
            response
                .headers_mut()
                .insert("x-subject", http::HeaderValue::from_static("alice"));
        } else {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
        }
        response
    })
}

#[test]
fn an_asynchronous_verdict_holds_the_request() {
    let (upstream, authority) = (Upstream::mirror(), authority());
    let filters = format!(
        "[[filters]]\nname = \"token\"\nguest = \"go\"\nfilter = \"token-check\"\n\
         config = {{ authority = \"http://{}/check\" }}\n",
        authority.address
    );
    let host = Host::start(&site(&upstream, &filters, &[("/", "[\"token\"]")]));
    let mut client = host.connect();
    let fields = "authorization: Bearer good\r\nx-subject: forged\r\n";
    for body in [&b""[..], b"a body"] {
        let mirror = client.request("POST", "/", fields, body).json();
        assert_eq!(seen(&mirror, "x-subject"), ["alice"]);
        assert_eq!(mirror["length"], body.len());
    }
    let before = upstream.count();
    assert_eq!(
        client
            .request("GET", "/", "authorization: Bearer bad\r\n", b"")
            .status,
        401
    );
    // Nobody is told to send a body that the verdict refuses.
    let mut client = host.connect();
    client.send(
        "POST / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer bad\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n",
    );
    assert_eq!(client.reply().status, 401);
    assert_eq!(upstream.count(), before);
    let mut client = host.connect();
    client.send(
        "POST / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer good\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n",
    );
    assert_eq!(client.head().status, 100);
    client.send("abc");
    assert_eq!(client.reply().json()["body"], "abc");
    assert!(
        host.metric("pxg_guest_pending_total{config=\"token\",phase=\"request_headers\"}") >= 5
    );
    assert_eq!(host.metric("pxg_guest_pending{config=\"token\"}"), 0);
}

#[test]
fn a_rust_filter_rewrites_whole_bodies() {
    let upstream = Upstream::http1(|request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut response = Response::new(full(format!(
            "internal got {}",
            String::from_utf8_lossy(&body)
        )));
        response
            .headers_mut()
            .insert("content-type", http::HeaderValue::from_static("text/plain"));
        response
    });
    let filters = "[[filters]]\nname = \"rewrite\"\nguest = \"rust\"\nfilter = \"body-rewrite\"\n\
        config = { direction = \"both\", replace = [{ from = \"internal\", to = \"public!\" }, { from = \"abc\", to = \"\" }] }\n";
    let host = Host::start(&site(&upstream, filters, &[("/", "[\"rewrite\"]")]));
    let mut client = host.connect();
    for _ in 0..3 {
        let reply = client.request("POST", "/", "content-type: text/plain\r\n", b"xabcyabcz");
        assert_eq!(reply.text(), "public! got xyz");
        assert_eq!(reply.field("content-length"), Some("15"));
        assert_eq!(
            client
                .request("POST", "/", "content-type: image/png\r\n", b"abc")
                .text(),
            "public! got "
        );
        let reply = client.request("HEAD", "/", "", b"");
        assert_eq!(reply.status, 200);
    }
    // Chunked, and so long that it comes in many pieces.
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n");
    for _ in 0..100 {
        client.send(format!("3e9\r\n{}\r\n", "0123456789".repeat(100) + "a"));
        client.send("2\r\nbc\r\n");
    }
    client.send("0\r\n\r\n");
    assert_eq!(
        client.reply().text(),
        format!("public! got {}", "0123456789".repeat(10_000))
    );
}

#[test]
fn a_streaming_filter_holds_nothing_back() {
    let (go, next) = mpsc::channel::<()>();
    let next = Mutex::new(next);
    let upstream = Upstream::raw(move |mut connection, _| {
        connection.read_request();
        connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        for i in 0..5 {
            connection.send(format!("1\r\n{i}\r\n"));
            next.lock().unwrap().recv().unwrap();
        }
        connection.send("0\r\n\r\n");
        connection.rest();
    });
    let filters = "[[filters]]\nname = \"count\"\nguest = \"rust\"\nfilter = \"body-count\"\n";
    let host = Host::start(&site(&upstream, filters, &[("/", "[\"count\"]")]));
    let mut client = host.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(client.head().status, 200);
    for i in 0..5 {
        assert_eq!(client.chunk(), i.to_string().as_bytes());
        go.send(()).unwrap();
    }
    assert_eq!(client.chunk(), b"");
}

#[test]
fn streamed_bodies_arrive_whole_both_ways() {
    let upstream = Upstream::http1(|request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(full(body))
    });
    let filters = "[[filters]]\nname = \"count\"\nguest = \"rust\"\nfilter = \"body-count\"\n";
    let host = Host::start(&site(&upstream, filters, &[("/", "[\"count\"]")]));
    let body: Vec<u8> = (0..8_u32 << 20).map(|i| (i % 251) as u8).collect();
    let mut client = host.connect();
    for _ in 0..2 {
        let mut writer = client.stream.try_clone().unwrap();
        let reply = std::thread::scope(|scope| {
            scope.spawn(|| {
                use std::io::Write;
                write!(
                    writer,
                    "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                .unwrap();
                for piece in body.chunks(70_001) {
                    write!(writer, "{:x}\r\n", piece.len()).unwrap();
                    writer.write_all(piece).unwrap();
                    writer.write_all(b"\r\n").unwrap();
                }
                writer.write_all(b"0\r\n\r\n").unwrap();
            });
            client.reply()
        });
        assert!(
            reply.body == body,
            "{} of {} bytes",
            reply.body.len(),
            body.len()
        );
    }
}

#[test]
fn a_streaming_filter_keeps_the_back_pressure() {
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    let sent = Arc::<AtomicU64>::default();
    let counter = Arc::clone(&sent);
    let upstream = Upstream::raw(move |mut connection, _| {
        connection.read_request();
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n");
        let piece = vec![b'x'; 64 << 10];
        while connection.stream.write_all(&piece).is_ok() {
            counter.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
    });
    let filters = "[[filters]]\nname = \"count\"\nguest = \"rust\"\nfilter = \"body-count\"\n";
    let host = Host::start(&site(&upstream, filters, &[("/", "[\"count\"]")]));
    let mut client = host.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    client.head();
    let mut last = 0;
    until("the upstream is held back", || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let now = sent.load(Ordering::SeqCst);
        now > 0 && std::mem::replace(&mut last, now) == now
    });
    assert!(last < 24 << 20, "{last} bytes were taken from the upstream");
    client.exact(16 << 20);
    until("the upstream sends on", || {
        sent.load(Ordering::SeqCst) > last
    });
}

fn faulty(more: &str) -> String {
    format!(
        "[[filters]]\nname = \"faulty\"\nguest = \"go\"\nfilter = \"faulty\"\nconfig = {{}}\n{more}\n"
    )
}

#[test]
fn a_failing_filter_fails_only_its_own_request() {
    let upstream = Upstream::mirror();
    let host = Host::start(&site(&upstream, &faulty(""), &[("/", "[\"faulty\"]")]));
    let mut good = host.connect();
    for fault in [
        "panic",
        "nil",
        "zero-action",
        "error",
        "async-panic",
        "async-goexit",
        "async-forget",
        "unreturned",
    ] {
        let reply = host
            .connect()
            .request("GET", "/", &format!("x-fault: {fault}\r\n"), b"");
        assert!(
            [200, 500].contains(&reply.status),
            "{fault}: {}",
            reply.status
        );
        assert!(fault == "unreturned" || reply.status == 500, "{fault}");
        assert!(
            !reply.text().contains("faulty"),
            "{fault}: what went wrong is not for clients"
        );
        assert_eq!(good.get("/").status, 200, "after {fault}");
    }
    let mut client = host.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\nx-fault: reset\r\n\r\n");
    assert!(client.is_closed(), "a reset has no reply");
    assert_eq!(good.get("/").status, 200);
    for fault in ["async-late", "async-twice", "async-nothing"] {
        assert_eq!(
            good.request("GET", "/", &format!("x-fault: {fault}\r\n"), b"")
                .status,
            200,
            "{fault}"
        );
    }
    assert!(
        host.metric("pxg_guest_panics_total{config=\"faulty\",phase=\"request_headers\"}") >= 2
    );
    host.wait_for_log("a filter failed on a request");
}

#[test]
fn a_filter_that_never_decides_runs_into_its_limit() {
    let upstream = Upstream::mirror();
    let open = faulty("pend_limit = \"100ms\"\nfailure_mode = \"open\"");
    let closed =
        faulty("pend_limit = \"100ms\"").replace("name = \"faulty\"\n", "name = \"closed\"\n");
    let routes = [("/open", "[\"faulty\"]"), ("/closed", "[\"closed\"]")];
    let host = Host::start(&site(&upstream, &(open + &closed), &routes));
    let mut client = host.connect();
    let reply = client.request("POST", "/open", "x-fault: async-never\r\n", b"body");
    assert_eq!((reply.status, &reply.json()["body"]), (200, &"body".into()));
    let reply = client.request("POST", "/closed", "x-fault: async-never\r\n", b"body");
    assert_eq!(reply.status, 500);
    assert_eq!(
        host.metric("pxg_filter_deadlines_total{config=\"closed\"}"),
        1
    );
    assert_eq!(
        host.metric("pxg_guest_bypassed_total{config=\"faulty\"}"),
        1
    );
}

#[test]
fn a_client_that_leaves_cancels_what_pends() {
    let upstream = Upstream::mirror();
    let host = Host::start(&site(&upstream, &faulty(""), &[("/", "[\"faulty\"]")]));
    let mut client = host.connect();
    client.send("GET /left HTTP/1.1\r\nhost: a\r\nx-fault: async-never\r\n\r\n");
    let pending = || host.metric("pxg_guest_pending{config=\"faulty\"}");
    until("the filter waits", || pending() == 1);
    drop(client);
    until("nothing waits any more", || pending() == 0);
    assert_eq!(host.access(|l| l["path"] == "/left")["status"], 0);
    assert_eq!(host.get("/").status, 200);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn what_pends_survives_a_reload_and_a_drain() {
    let (upstream, authority) = (Upstream::mirror(), mpsc::channel::<()>());
    let (go, wait) = authority;
    let wait = Mutex::new(wait);
    let slow = Upstream::raw(move |mut connection: Client, _| {
        connection.read_request();
        let _ = wait.lock().unwrap().recv();
        connection.send("HTTP/1.1 200 OK\r\nx-subject: bob\r\ncontent-length: 0\r\n\r\n");
        connection.rest();
    });
    let filters = format!(
        "[[filters]]\nname = \"token\"\nguest = \"go\"\nfilter = \"token-check\"\n\
         config = {{ authority = \"http://{}/\", timeout_ms = 50000 }}\npend_limit = \"50s\"\nhold_limit = \"50s\"\n",
        slow.address
    );
    let config = site(&upstream, &filters, &[("/", "[\"token\"]")]);
    let mut host = Host::start(&config);
    let ask = |host: &Host| {
        let mut client = host.connect();
        client.send("GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer x\r\n\r\n");
        client
    };
    let mut first = ask(&host);
    until("the authority is asked", || slow.connection_count() == 1);
    // Another configuration of the same filter: the old one lives until its last stream has ended.
    host.rewrite_config(&format!(
        "{HEAD}{}",
        config.replace("timeout_ms = 50000", "timeout_ms = 40000")
    ));
    assert_eq!(host.reload().status, 200);
    let mut second = ask(&host);
    until("the authority is asked again", || {
        slow.connection_count() == 2
    });
    let live = |host: &Host| {
        host.admin("GET", "/guests").json()["libraries"][0]["live_configurations"].clone()
    };
    assert_eq!(live(&host), 2);
    go.send(()).unwrap();
    host.signal("TERM");
    until("it drains", || host.admin("GET", "/healthz").status == 503);
    drop(go);
    for client in [&mut first, &mut second] {
        assert_eq!(seen(&client.reply().json(), "x-subject"), ["bob"]);
    }
    assert_eq!(host.wait().code(), Some(0));
}

#[test]
fn an_unused_configuration_is_dropped_and_an_unchanged_one_kept() {
    let upstream = Upstream::mirror();
    let config = site(&upstream, POLICY, &[("/", "[\"policy\"]")]);
    let host = Host::start(&config);
    let live =
        || host.admin("GET", "/guests").json()["libraries"][0]["live_configurations"].clone();
    assert_eq!(host.get("/").status, 200);
    assert_eq!(live(), 1);
    for i in 0..5 {
        host.rewrite_config(&format!(
            "{HEAD}{}",
            config.replace("x-policy-out done", &format!("x-policy-out {i}"))
        ));
        assert_eq!(host.reload().status, 200);
        assert_eq!(host.get("/").field("x-policy-out"), Some(&*i.to_string()));
    }
    until("the old ones are dropped", || live() == 1);
    assert_eq!(
        host.metric("pxg_guest_calls_total{config=\"policy\",phase=\"request_headers\"}"),
        6,
        "counters go on"
    );
}

#[test]
fn a_long_chain_in_three_languages() {
    let (upstream, authority) = (Upstream::mirror(), authority());
    let filters = format!(
        "{POLICY}[[filters]]\nname = \"trace\"\nguest = \"go\"\nfilter = \"trace-id\"\nconfig = {{}}\n\
         [[filters]]\nname = \"token\"\nguest = \"go\"\nfilter = \"token-check\"\n\
         config = {{ authority = \"http://{}/check\" }}\n\
         [[filters]]\nname = \"rewrite\"\nguest = \"rust\"\nfilter = \"body-rewrite\"\n\
         config = {{ content_types = [\"application/json\"], replace = [{{ from = \"alice\", to = \"ALICE\" }}] }}\n\
         [[filters]]\nname = \"echo\"\nguest = \"rust\"\nfilter = \"async-echo\"\n",
        authority.address
    );
    let chain = "[\"trace\", \"policy\", \"token\", \"echo\", \"rewrite\"]";
    let host = Host::start(&site(&upstream, &filters, &[("/", chain)]));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = host.connect();
                for i in 0..50 {
                    let body = vec![b'x'; i * 100];
                    let reply =
                        client.request("POST", "/", "authorization: Bearer good\r\n", &body);
                    assert_eq!(reply.field("x-policy-out"), Some("done"));
                    let mirror = reply.json();
                    assert_eq!(seen(&mirror, "x-subject"), ["ALICE"]);
                    assert_eq!(mirror["length"], body.len());
                    assert_eq!(
                        Some(seen(&mirror, "x-trace-id")[0]),
                        reply.field("x-trace-id")
                    );
                }
            });
        }
    });
    assert_eq!(
        host.metric("pxg_guest_calls_total{config=\"rewrite\",phase=\"response_body\"}"),
        200
    );
}
