//! Memory is given back: after each of many rounds of the same load the process has as much as after the one before.
//!
//! What its allocator has given out says so most exactly: the module, guests in C and Rust, and Envoy share it. What stays
//! resident goes up and down with what the allocator keeps for later, and with Go's heap; that is for the long form.

use serde_json::{Value, json};

use crate::client::Client;
use crate::config::{bootstrap, listener, pxg, pxg_with, text};
use crate::envoy::Envoy;
use crate::guests;
use crate::suite::{Suite, World};
use crate::support::until;

pub(crate) fn add(suite: &mut Suite) {
    suite.test("memory::is_given_back_after_each_load", |w| {
        rounds(w, 5, 60);
    });
    suite.test("memory::a_body_that_is_held_is_there_once", held);
    suite.long_test("memory::is_given_back_after_each_load_for_long", |w| {
        rounds(w, 8, 300);
    });
}

/// What one connection sends again and again, to which listener, and the status that it gets; `None`: it goes away first.
struct Load {
    name: &'static str,
    request: String,
    status: Option<u16>,
}

fn loads() -> Vec<Load> {
    let load = |name, case: &str, path: &str, body: usize, status| Load {
        name,
        request: format!(
            "POST {path} HTTP/1.1\r\nhost: test\r\nx-case: {case}\r\nauthorization: Bearer x\r\ncontent-length: {body}\r\n\r\n{}",
            "x".repeat(body)
        ),
        status,
    };
    vec![
        load("script", "plain", "/", 0, Some(200)),
        load("script", "stream", "/length", 50_000, Some(200)),
        load("script", "held", "/length", 50_000, Some(200)),
        load("script", "changed", "/bytes-50000", 50_000, Some(200)),
        load("script", "pends", "/length", 50_000, Some(200)),
        load("script", "reply", "/", 10, Some(403)),
        load("script", "streamed", "/", 0, Some(200)),
        load("script", "late", "/bytes-50000", 10, Some(502)),
        load("script", "fails", "/", 10, Some(500)),
        load("script", "never", "/", 50_000, None),
        load("go", "-", "/length", 50_000, Some(200)),
    ]
}

const SCRIPT: &str = "
flags resizes_request resizes_response
case plain
request_headers set x-a 1
response_headers set x-b 1
case stream
request_headers mode request stream
request_body log 0 .
response_headers mode response stream
response_body log 0 .
case held
request_headers mode request stream
request_body more 1000000
case changed
request_headers mode request whole
request_body inject more
response_headers mode response whole
response_body drop all
response_body inject less
case pends
request_headers pend early
request_headers mode request whole
request_body pend 0
request_body inject more
response_headers mode response stream
response_body pend 0
case reply
request_headers reply 403 no
case streamed
request_headers stream 200 20 5000
case late
response_headers pend 0
response_headers reply 502 no
case fails
request_headers error as asked for
case grows
request_headers mode request stream
request_body more 100000
case never
request_headers pend 0
request_headers mode request whole
request_body pend forever
";

fn filters(w: &World) -> Vec<Value> {
    let authority = format!("http://{}/authority", w.origins.clusters()["app"].0);
    vec![
        listener(
            "script",
            vec![pxg("script", &guests::script(), text(SCRIPT))],
        ),
        listener(
            "go",
            vec![
                pxg("trace-id", &guests::go(), json!({})),
                pxg_with(
                    "token-check",
                    json!({ "guest": guests::go(), "filter": "token-check",
                            "config": { "authority": authority, "timeout_ms": 5000 } }),
                ),
            ],
        ),
    ]
}

impl Load {
    /// So many exchanges on each of a few connections.
    fn run(&self, envoy: &Envoy, exchanges: usize) {
        let address = envoy.address(self.name);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(move || {
                    let mut client = Client::new(address);
                    for _ in 0..exchanges / 3 {
                        client.send(&self.request);
                        if let Some(status) = self.status {
                            let got = client.reply().status;
                            assert_eq!(got, status, "{}", &self.request[..60]);
                        }
                        // After an answer that did not wait for all of the request Envoy closes.
                        if self.status != Some(200) {
                            client = Client::new(address);
                        }
                    }
                });
            }
        });
    }
}

fn rounds(w: &World, n: usize, exchanges: usize) {
    let config = bootstrap(filters(w), &w.origins.clusters());
    let flags = ["--disable-hot-restart", "--concurrency", "1"];
    let envoy = Envoy::start_with(w.version, &config, &flags);
    let loads = loads();
    let mut levels = Vec::new();
    for _ in 0..n {
        for load in &loads {
            load.run(&envoy, exchanges);
        }
        until("all streams have ended", || {
            let active = envoy.stats("^http.(script|go).downstream_cx_active$");
            active.len() == 2 && active.values().all(|n| *n == 0)
        });
        levels.push((envoy.allocated(), envoy.memory()));
        eprintln!("{}: {:?}", w.version, levels.last());
    }
    // The first rounds make what is kept for good: sessions, connections' buffers, counters. Envoy 1.40 goes up and down by
    // a megabyte or two all the same: what grows by less than two of them and 200 bytes a stream is not found.
    let streams = (n - 2) * loads.len() * exchanges;
    let most = levels[1].0 + (2 << 20) + 200 * streams as u64;
    until(
        &format!("at most {most} bytes are given out after {streams} streams more: {levels:?}"),
        || envoy.allocated() < most,
    );
}

/// What a guest holds of bodies while it decides: all of a whole one, and what it has seen of one that goes on.
fn held(w: &World) {
    const STREAMS: usize = 12;
    const BODY: usize = 700_000;
    let config = bootstrap(filters(w), &w.origins.clusters());
    let flags = ["--disable-hot-restart", "--concurrency", "1"];
    let envoy = Envoy::start_with(w.version, &config, &flags);
    let pending = |n: u64| {
        let what = format!("{n} streams pend");
        until(&what, || {
            envoy.stat("http.script.downstream_rq_active") == n
        });
    };
    let before = envoy.allocated();
    for (case, sent) in [("never", BODY), ("grows", BODY - 1)] {
        let request = format!(
            "POST / HTTP/1.1\r\nhost: test\r\nx-case: {case}\r\ncontent-length: {BODY}\r\n\r\n"
        );
        let read = envoy.stat("http.script.downstream_cx_rx_bytes_total");
        let clients: Vec<_> = (0..STREAMS)
            .map(|_| {
                let mut client = envoy.connect("script");
                client.send(&request);
                client.send("x".repeat(sent));
                client
            })
            .collect();
        let all = (STREAMS * (request.len() + sent)) as u64;
        until("Envoy has read them", || {
            envoy.stat("http.script.downstream_cx_rx_bytes_total") - read == all
        });
        pending(STREAMS as u64);
        // The worker has had a turn since.
        assert_eq!(envoy.connect("go").get("/").status, 401);
        let (after, bytes) = (envoy.allocated(), (STREAMS * sent) as u64);
        let times = (after - before) as f64 / bytes as f64;
        eprintln!("{}: {case}: {times:.2} times {bytes} bytes", w.version);
        assert!(
            times < 1.4,
            "{case}: {bytes} bytes are there {times:.2} times"
        );
        drop(clients);
        pending(0);
    }
}
