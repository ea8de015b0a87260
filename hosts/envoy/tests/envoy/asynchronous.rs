//! PENDING: completions from threads, deadlines, streams that die.

use std::time::Duration;

use proxy_golang_abi::Status;
use serde_json::{Value, json};

use crate::config::{bootstrap, listener, pxg, pxg_with, text};
use crate::envoy::Envoy;
use crate::guests;
use crate::h2;
use crate::phases::seen;
use crate::suite::{Setup, Suite, World};
use crate::support::{run, until};

pub(crate) fn add(suite: &mut Suite) {
    suite.scripts(
        "
case pend-all
request_headers pend 1
request_headers set x-a 1
request_headers mode request stream
request_headers mode response stream
request_body pend 1
request_trailers pend 1
request_trailers tset x-b 1
response_headers pend 1
response_headers set x-c 1
response_body pend 1
response_trailers pend 1
response_trailers tset x-d 1
case pend-early
request_headers pend early
request_headers set x-a early
response_headers pend early
response_headers set x-b early
case pend-storm
request_headers pend 0
request_headers set x-a 1
case pend-storm-early
request_headers pend early
request_headers set x-a 1
case pend-gone
request_headers pend until gone-key
request_headers set x-a 1
case release-gone
request_headers release gone-key
case pend-reset
request_headers pend until reset-key
case pend-siblings
request_headers pend until siblings-key
case release-siblings
request_headers release siblings-key
case pend-whole
request_headers mode request whole
request_body pend 1
request_body set x-a 1
request_body drop all
request_body inject later
case parked
request_headers mode request stream
request_body @1 pend until parked-key
response_headers set x-a 1
case release-parked
request_headers release parked-key
case pend-response-gone
response_headers pend until response-gone-key
",
    );
    suite.listeners(listeners);
    suite.test("async::in_every_phase", every_phase);
    suite.test("async::completed_before_it_returned", early);
    suite.test("async::a_whole_body_changed_later", whole);
    suite.test("async::many_at_once_on_every_connection", storm);
    suite.test("async::a_response_waits_while_the_request_pends", parked);
    suite.test("async::a_duplex_guest_takes_both_directions", duplex);
    suite.test("async::the_stream_goes_first", gone);
    suite.test("async::streams_of_http2_go_first", gone_http2);
    suite.test("async::a_thousand_clients_go_while_they_wait", thousand);
    suite.test("async::a_stream_that_dies_takes_no_wakeup_along", siblings);
    suite.test("async::a_ring_outlives_its_carrier", carrier);
    suite.test("async::nobody_decides_until_the_deadline", deadline);
    suite.test(
        "async::nobody_decides_and_the_filter_may_fail_open",
        deadline_open,
    );
    suite.test("async::over_the_cap_of_pending_streams", cap);
    suite.test("async::the_example_in_go", example);
}

fn listeners(setup: &Setup) -> Vec<Value> {
    let record = format!("record {}\n", setup.record.display());
    let script = guests::script();
    let never = format!(
        "{record}case never\nrequest_headers pend forever\ncase never-open\nrequest_headers pend forever\n\
         case never-response\nresponse_headers pend forever\n"
    );
    let settings = |more: Value| {
        let mut settings =
            json!({ "guest": script, "filter": "script", "config": never, "pend_limit": "200ms" });
        for (key, value) in more.as_object().expect("a table") {
            settings[key] = value.clone();
        }
        settings
    };
    let cap = format!(
        "{record}case cap\nrequest_headers pend until cap-key\ncase release-cap\nlog log 0 .\n"
    );
    let cap = json!({ "guest": script, "filter": "script", "config": cap, "max_pending": 3, "pend_limit": "120s" });
    let authority = format!("http://{}/authority", setup.clusters["app"].0);
    let duplex = format!(
        "{record}flags duplex\ncase duplex\nrequest_headers mode request stream\nrequest_body @1 pend until duplex-key\n\
         response_headers set x-a 1\nlog log 0 .\ncase release-duplex\nrequest_headers release duplex-key\n"
    );
    let thousand = format!("{record}case thousand\nrequest_headers pend forever\n");
    let thousand =
        json!({ "name": "thousand", "guest": script, "config": thousand, "pend_limit": "120s" });
    vec![
        listener("duplex", vec![pxg("script", &script, text(&duplex))]),
        listener("thousand", vec![pxg_with("thousand", thousand)]),
        listener("deadline", vec![pxg_with("script", settings(json!({})))]),
        listener(
            "deadline-open",
            vec![pxg_with(
                "script",
                settings(json!({ "failure_mode": "open" })),
            )],
        ),
        listener("cap", vec![pxg_with("script", cap)]),
        listener(
            "go",
            vec![
                pxg("trace-id", &guests::go(), json!({})),
                pxg(
                    "token-check",
                    &guests::go(),
                    json!({ "authority": authority, "timeout_ms": 5000 }),
                ),
            ],
        ),
    ]
}

fn every_phase(w: &World) {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue};
    use hyper::body::Frame;
    let address = w.envoy().address("script");
    let ask = |path: &'static str| {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-kept", HeaderValue::from_static("1"));
        let frames = vec![
            Frame::data(Bytes::from_static(b"hello")),
            Frame::trailers(trailers),
        ];
        h2::with_body("POST", path, &[("x-case", "pend-all")], h2::frames(frames))
    };
    let (mirror, ended) = run(async {
        let mut sender = h2::connect(address).await;
        let mirror = h2::whole(sender.send_request(ask("/h2/mirror")).await.unwrap())
            .await
            .unwrap();
        let ended = h2::whole(sender.send_request(ask("/h2/trailers")).await.unwrap())
            .await
            .unwrap();
        (mirror, ended)
    });
    assert_eq!(mirror.fields["x-c"], "1");
    let mirror = mirror.json();
    assert_eq!(seen(&mirror, "x-a"), ["1"]);
    assert_eq!(
        (mirror["body"].as_str(), &mirror["trailers"]),
        (Some("hello"), &json!([["x-kept", "1"], ["x-b", "1"]]))
    );
    assert_eq!(
        (&ended.body[..], &ended.trailers["x-d"]),
        (&b"hello"[..], &HeaderValue::from_static("1"))
    );
    let record = w.record("pend-all");
    record.calls("end", 2);
    let lines = record.lines();
    assert!(lines.iter().all(|l| l["call"] != "cancel"));
    for line in lines.iter().filter(|l| l["call"] == "complete") {
        assert_eq!(line["status"], Status::OK.0, "{line}");
    }
}

fn early(w: &World) {
    let reply = w.envoy().case("pend-early", "/");
    assert_eq!((reply.status, reply.field("x-b")), (200, Some("early")));
    assert_eq!(seen(&reply.json(), "x-a"), ["early"]);
}

fn whole(w: &World) {
    let reply =
        w.envoy()
            .connect("script")
            .request("POST", "/", "x-case: pend-whole\r\n", b"sooner");
    let mirror = reply.json();
    assert_eq!(mirror["body"], "later");
    assert_eq!(seen(&mirror, "content-length"), ["5"]);
}

fn storm(w: &World) {
    const STREAMS: usize = 100;
    const CONNECTIONS: usize = 4;
    let address = w.envoy().address("script");
    for case in ["pend-storm", "pend-storm-early"] {
        run(async {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..CONNECTIONS {
                let sender = h2::connect(address).await;
                for _ in 0..STREAMS {
                    let mut sender = sender.clone();
                    tasks.spawn(async move {
                        sender.ready().await.unwrap();
                        let answer = sender
                            .send_request(h2::get("/", &[("x-case", case)]))
                            .await
                            .unwrap();
                        h2::whole(answer).await.unwrap()
                    });
                }
            }
            let mut n = 0;
            while let Some(whole) = tasks.join_next().await {
                assert_eq!(seen(&whole.unwrap().json(), "x-a"), ["1"]);
                n += 1;
            }
            assert_eq!(n, STREAMS * CONNECTIONS);
        });
    }
}

/// Waits until a stream of this case pends in a phase.
fn pends(w: &World, case: &'static str, phase: &str) {
    let record = w.record(case);
    until(&format!("{case} pends"), || {
        record.lines().iter().any(|l| l["phase"] == phase)
    });
}

fn gone(w: &World) {
    let envoy = w.envoy();
    for (case, phase) in [
        ("pend-gone", "request_headers"),
        ("pend-response-gone", "response_headers"),
    ] {
        let mut client = envoy.connect("script");
        client.send(format!(
            "GET / HTTP/1.1\r\nhost: test\r\nx-case: {case}\r\n\r\n"
        ));
        pends(w, case, phase);
        drop(client);
    }
    for case in ["pend-gone", "pend-response-gone"] {
        let record = w.record(case);
        record.calls("cancel", 1);
        record.calls("end", 1);
    }
    // A later completion is answered, and changes nothing.
    assert_eq!(envoy.case("release-gone", "/").status, 200);
    let complete = w.record("pend-gone").calls("complete", 1);
    assert_eq!(complete[0]["status"], Status::STALE.0);
}

/// The upstream answers before it has the body, of which a chunk pends: without DUPLEX the guest sees one direction at a
/// time.
fn parked(w: &World) {
    let envoy = w.envoy();
    let mut client = envoy.connect("script");
    client.send(
        "POST /parked HTTP/1.1\r\nhost: test\r\nx-case: parked\r\ncontent-length: 10000\r\n\r\nthe beginning",
    );
    let record = w.record("parked");
    until("the body pends", || {
        record.lines().iter().any(|l| l["phase"] == "request_body")
    });
    until("Envoy has the answer", || {
        envoy.stat("cluster.parked.upstream_cx_rx_bytes_total") > 0
    });
    // That worker, or both, have had a turn since.
    (0..4).for_each(|_| assert_eq!(envoy.connect("script").get("/").status, 200));
    assert!(
        record
            .lines()
            .iter()
            .all(|l| l["phase"] != "response_headers"),
        "not parked"
    );
    assert_eq!(envoy.case("release-parked", "/").status, 200);
    let reply = client.head();
    assert_eq!((reply.status, reply.field("x-a")), (413, Some("1")));
}

/// The same with DUPLEX: the answer passes while the request still pends.
fn duplex(w: &World) {
    let envoy = w.envoy();
    let mut client = envoy.connect("duplex");
    client.send(
        "POST /early HTTP/1.1\r\nhost: test\r\nx-case: duplex\r\ncontent-length: 10000\r\n\r\nthe beginning",
    );
    let reply = client.head();
    assert_eq!((reply.status, reply.field("x-a")), (413, Some("1")));
    let record = w.record("duplex");
    assert!(record.lines().iter().all(|l| l["call"] != "complete"));
    let release = envoy
        .connect("duplex")
        .request("GET", "/", "x-case: release-duplex\r\n", b"");
    assert_eq!(release.status, 200);
    drop(client);
    let events = record.events(1);
    let phases: Vec<_> = events
        .iter()
        .map(|e| e["phase"].as_str().unwrap())
        .collect();
    assert_eq!(
        phases,
        ["request_headers", "request_body", "response_headers", "log"]
    );
}

/// 1,000 streams of 20 connections that break off all at once.
fn thousand(w: &World) {
    const CONNECTIONS: usize = 20;
    const STREAMS: usize = 50;
    let envoy = w.envoy();
    let address = envoy.address("thousand");
    let stat = |expression: &str| envoy.stats(expression).into_values().sum::<u64>();
    let pending = || stat("pxg_guest_pending\\..*thousand");
    let active = || envoy.stat("http.thousand.downstream_rq_active");
    const ALL: u64 = (CONNECTIONS * STREAMS) as u64;
    run(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..CONNECTIONS {
            let sender = h2::connect(address).await;
            for _ in 0..STREAMS {
                let mut sender = sender.clone();
                tasks.spawn(async move {
                    let _ = sender
                        .send_request(h2::get("/", &[("x-case", "thousand")]))
                        .await;
                });
            }
        }
        while pending() != ALL {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(active(), ALL);
        // The runtime ends here, and with it all connections.
    });
    until("nothing pends, and no stream is left", || {
        pending() == 0 && active() == 0
    });
    let record = w.record("thousand");
    record.calls("cancel", CONNECTIONS * STREAMS);
    record.calls("end", CONNECTIONS * STREAMS);
    until("each is counted once", || {
        stat("pxg_guest_cancels_total.*thousand") == ALL
    });
    assert_eq!(envoy.connect("thousand").get("/").status, 200);
}

/// Streams that are reset one by one on a connection that lives.
fn gone_http2(w: &World) {
    const STREAMS: usize = 50;
    let address = w.envoy().address("script");
    run(async {
        let sender = h2::connect(address).await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..STREAMS {
            let mut sender = sender.clone();
            tasks.spawn(async move {
                let _ = sender
                    .send_request(h2::get("/", &[("x-case", "pend-reset")]))
                    .await;
            });
        }
        let record = w.record("pend-reset");
        while record
            .lines()
            .iter()
            .filter(|l| l["call"] == "event")
            .count()
            < STREAMS
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Dropped futures reset their streams.
        tasks.shutdown().await;
        let mut sender = sender.clone();
        let after = h2::whole(sender.send_request(h2::get("/", &[])).await.unwrap())
            .await
            .unwrap();
        assert_eq!(after.status, 200);
        // The connection lives until all of them have ended.
        while record.lines().iter().filter(|l| l["call"] == "end").count() < STREAMS {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    w.record("pend-reset").calls("cancel", STREAMS);
}

/// Many completions in one batch, some for streams that die in the same moment: the wake-up of the others must not be
/// bound to a stream that has gone.
fn siblings(w: &World) {
    let envoy = w.envoy();
    const ROUNDS: usize = 10;
    const EACH: usize = 16;
    for round in 0..ROUNDS {
        let mut clients: Vec<_> = (0..EACH).map(|_| envoy.connect("script")).collect();
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nhost: test\r\nx-case: pend-siblings\r\n\r\n");
        }
        let events = |n| {
            let record = w.record("pend-siblings");
            until("all of them pend", || {
                let lines = record.lines();
                lines
                    .iter()
                    .filter(|l| l["phase"] == "request_headers" && l["call"] == "event")
                    .count()
                    >= n
            });
        };
        events((round + 1) * EACH);
        // Every second one dies while the batch is completed.
        let (dying, living): (Vec<_>, Vec<_>) = clients
            .into_iter()
            .enumerate()
            .partition(|(i, _)| i % 2 == 0);
        let killer = std::thread::spawn(move || drop(dying));
        assert_eq!(envoy.case("release-siblings", "/").status, 200);
        killer.join().unwrap();
        for (i, mut client) in living {
            assert_eq!(client.reply().status, 200, "round {round}, stream {i}");
        }
    }
}

/// The streams that carry the wake-up for another one end before it is served.
///
/// On one worker, the event loop finds at once: a request that blocks it, and the ends of all streams but the one that
/// waits. While it is blocked, that one is completed, which rings by way of one of the others.
fn carrier(w: &World) {
    const ROUNDS: usize = 3;
    // More than carry rings at once: so the blocking ones do not.
    const CARRIERS: usize = 8;
    const EACH: usize = CARRIERS + 3;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut script = format!("record {}\n", at("record.jsonl").display());
    for round in 0..ROUNDS {
        let file = at(&format!("released-{round}"));
        script += &format!(
            "watch key-{round} {}\ncase waits-{round}\nrequest_headers pend until key-{round}\n",
            file.display()
        );
    }
    script +=
        "case carries\nrequest_headers pend forever\ncase blocks\nrequest_headers block 200\n";
    let listeners = vec![listener(
        "main",
        vec![pxg("script", &guests::script(), text(&script))],
    )];
    let config = bootstrap(listeners, &w.origins.clusters());
    let envoy = Envoy::start_with(
        w.version,
        &config,
        &["--disable-hot-restart", "--concurrency", "1"],
    );
    let request = |case: &str| format!("GET / HTTP/1.1\r\nhost: test\r\nx-case: {case}\r\n\r\n");
    let ask = |case: &str| {
        let mut client = envoy.connect("main");
        client.send(request(case));
        client
    };
    let pending = |n: usize| {
        until("they pend", || {
            let text = std::fs::read_to_string(at("record.jsonl")).unwrap_or_default();
            text.lines()
                .filter(|l| l.contains(r#""call":"event""#))
                .count()
                >= n
        });
    };
    for round in 0..ROUNDS {
        let mut waits = ask(&format!("waits-{round}"));
        pending(round * EACH + 1);
        let mut second = envoy.connect("main");
        let carry: Vec<_> = (0..CARRIERS).map(|_| ask("carries")).collect();
        pending(round * EACH + 1 + CARRIERS);
        // What arrives while this one blocks is found in one look, in the order in which it came.
        let first = ask("blocks");
        pending(round * EACH + 2 + CARRIERS);
        second.send(request("blocks"));
        drop(carry);
        pending(round * EACH + 3 + CARRIERS);
        std::fs::write(at(&format!("released-{round}")), "").unwrap();
        assert_eq!(waits.reply().status, 200, "round {round}");
        drop((first, second));
    }
}

fn deadline(w: &World) {
    let envoy = w.envoy();
    for case in ["never", "never-response"] {
        let reply =
            envoy
                .connect("deadline")
                .request("GET", "/", &format!("x-case: {case}\r\n"), b"");
        assert_eq!(reply.status, 500, "{case}");
        let record = w.record(case);
        record.calls("end", 1);
        record.calls("cancel", 1);
    }
}

fn deadline_open(w: &World) {
    let reply =
        w.envoy()
            .connect("deadline-open")
            .request("GET", "/", "x-case: never-open\r\n", b"");
    assert_eq!(reply.status, 200);
    w.record("never-open").calls("cancel", 1);
}

fn cap(w: &World) {
    let envoy = w.envoy();
    // Each worker has its own cap, and which worker a connection gets is the kernel's choice: of nine, three pend on one
    // of the two workers at least, and six at most.
    let mut clients: Vec<_> = (0..9).map(|_| envoy.connect("cap")).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nhost: test\r\nx-case: cap\r\n\r\n");
    }
    let pending = || {
        let all = envoy.stat("http.cap.downstream_rq_total");
        let active = envoy.stat("http.cap.downstream_rq_active");
        (all == clients.len() as u64).then_some(active)
    };
    until("the others are refused", || {
        pending().is_some_and(|n| n <= 6)
    });
    assert!(
        pending().is_some_and(|n| n >= 3),
        "{:?} of 9 pend",
        pending()
    );
}

fn example(w: &World) {
    let envoy = w.envoy();
    let reply = envoy.connect("go").get("/");
    assert_eq!(
        (reply.status, reply.field("www-authenticate")),
        (401, Some("Bearer"))
    );
    let reply = envoy
        .connect("go")
        .request("GET", "/", "authorization: Bearer x\r\n", b"");
    let mirror = reply.json();
    let id = seen(&mirror, "x-trace-id");
    assert_eq!(
        (reply.status, reply.field("x-trace-id")),
        (200, id.first().copied())
    );
    assert_eq!(id[0].len(), 32);
}
