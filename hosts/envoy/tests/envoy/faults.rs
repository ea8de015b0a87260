//! Guests, clients and upstreams that do wrong: an error of their own stream, and nothing else.

use serde_json::{Value, json};

use crate::config::{listener, pxg, pxg_with};
use crate::guests;
use crate::h2;
use crate::phases::seen;
use crate::suite::{Setup, Suite, World};
use crate::support::{run, until};

pub(crate) fn add(suite: &mut Suite) {
    suite.scripts(
        "
case exhaust
request_headers exhaust
case unset
request_headers unset
case guest-error
request_headers error it went wrong
case response-error
response_headers error it went wrong
case body-error
response_headers mode response stream
response_body error it went wrong
case abort-streaming
request_headers mode request stream
request_body log 0 .
log log 0 .
case breaks
response_headers mode response stream
response_body log 0 .
log log 0 .
case breaks-h2
response_headers mode response stream
response_body log 0 .
log log 0 .
case breaks-whole
response_headers mode response whole
response_body set x-a 1
log log 0 .
",
    );
    suite.listeners(listeners);
    suite.test("faults::a_panic_in_each_phase", panics);
    suite.test("faults::what_else_a_go_filter_can_do_wrong", faulty);
    suite.test("faults::garbage_from_a_guest", garbage);
    suite.test(
        "faults::garbage_passes_where_the_filter_may_fail_open",
        garbage_open,
    );
    suite.test("faults::scratch_is_limited", scratch);
    suite.test(
        "faults::owned_buffers_are_released_once_on_every_path",
        owned,
    );
    suite.test("faults::errors_close", errors);
    suite.test(
        "faults::a_client_that_goes_in_the_middle_of_its_request",
        client_aborts,
    );
    suite.test("faults::an_upstream_that_breaks_off", upstream_breaks);
    suite.test("faults::an_upstream_that_cannot_be_reached", unreachable);
}

const GARBAGE: std::ops::RangeInclusive<u32> = 0..=12;

fn listeners(setup: &Setup) -> Vec<Value> {
    let script = guests::script();
    let cases: String = GARBAGE
        .map(|n| format!("case garbage-{n}\nrequest_headers garbage {n}\n"))
        .collect();
    let garbage = |mode: &str| {
        let config = format!("record {}\n{cases}", setup.record.display());
        pxg_with(
            "script",
            json!({ "guest": script, "filter": "script", "config": config, "failure_mode": mode }),
        )
    };
    let owned = format!(
        "record {}\nflags resizes_request\n\
         case owned-applied\nrequest_headers owned x-a headers\nrequest_headers mode request stream\n\
         request_body @1 owned_inject <body>\nrequest_body owned x-late skipped\nresponse_headers owned x-b response\n\
         case owned-refused\nrequest_headers owned x-a 1\nrequest_headers garbage 3\n\
         case owned-error\nrequest_headers owned x-a 1\nrequest_headers error as asked for\n\
         case owned-later\nrequest_headers pend 1\nrequest_headers owned x-a later\n\
         case owned-gone\nrequest_headers pend until owned-key\nrequest_headers owned x-a never\n\
         case owned-release\nrequest_headers release owned-key\n\
         case owned-count\nrequest_headers count\n",
        setup.record.display()
    );
    let mut nowhere = crate::config::route("/", "app");
    nowhere["direct_response"] = json!({ "status": 503 });
    nowhere.as_object_mut().expect("a table").remove("route");
    let trace = json!({
        "name": "trace-of-replies", "guest": guests::go(), "filter": "trace-id", "config": {}, "reply_refilter": true,
    });
    let faulty = json!({ "name": "faulty", "guest": guests::go(), "filter": "faulty", "config": {}, "pend_limit": "2s" });
    let faulty = pxg_with("faulty", json!({ "chain": [trace.clone(), faulty] }));
    vec![
        listener("garbage", vec![garbage("closed")]),
        listener(
            "owned",
            vec![pxg("script", &script, crate::config::text(&owned))],
        ),
        listener("garbage-open", vec![garbage("open")]),
        listener("faulty", vec![faulty]),
        listener("panics", vec![pxg("panics", &guests::go(), json!({}))]),
        crate::config::listener_with(
            "nowhere",
            vec![
                pxg_with("trace-of-replies", trace),
                pxg("trace-id", &guests::go(), json!({ "header": "x-unseen" })),
            ],
            vec![nowhere],
            json!({}),
        ),
    ]
}

fn panics(w: &World) {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue};
    use hyper::body::Frame;
    let address = w.envoy().address("panics");
    let ask = |phase: &str| {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-kept", HeaderValue::from_static("1"));
        let body = h2::frames(vec![
            Frame::data(Bytes::from_static(b"hello")),
            Frame::trailers(trailers),
        ]);
        h2::with_body("POST", "/h2/trailers", &[("x-panic", phase)], body)
    };
    for phase in [
        "request_headers",
        "request_body",
        "request_trailers",
        "response_headers",
        "response_body",
        "response_trailers",
        "log",
    ] {
        let answer = run(async {
            let mut sender = h2::connect(address).await;
            let answer = match sender.send_request(ask(phase)).await {
                Ok(response) => h2::whole(response).await,
                Err(error) => Err(error),
            };
            // Another stream of the same connection.
            let after = h2::whole(sender.send_request(ask("none")).await.unwrap())
                .await
                .unwrap();
            assert_eq!(
                (after.status, &after.body[..]),
                (200, &b"hello"[..]),
                "after {phase}"
            );
            answer
        });
        match phase {
            // Headers and body have been passed on already when the response's own are there.
            "response_body" | "response_trailers" => assert!(answer.is_err(), "{phase}"),
            "log" => assert_eq!(answer.unwrap().status, 200),
            // A reply, where one can still be made; a reset is right where the upstream was faster.
            "request_body" | "request_trailers" => {
                assert!(answer.map_or(true, |whole| whole.status == 500), "{phase}");
            }
            _ => assert_eq!(answer.unwrap().status, 500, "{phase}"),
        }
    }
}

fn faulty(w: &World) {
    let envoy = w.envoy();
    for (fault, status) in [
        ("panic", Some(500)),
        ("nil", Some(500)),
        ("zero-action", Some(500)),
        ("error", Some(500)),
        ("reset", None),
        ("async-panic", Some(500)),
        ("async-goexit", Some(500)),
        ("async-forget", Some(500)),
        ("async-never", Some(500)),
        ("unreturned", Some(500)),
        ("async-late", Some(200)),
        ("async-twice", Some(200)),
        ("async-nothing", Some(200)),
        ("block", Some(200)),
    ] {
        let mut client = envoy.connect("faulty");
        client.send(format!(
            "GET / HTTP/1.1\r\nhost: test\r\nx-fault: {fault}\r\n\r\n"
        ));
        match status {
            None => assert!(client.rest().is_empty(), "{fault}"),
            Some(status) => {
                let reply = client.reply();
                assert_eq!(reply.status, status, "{fault}: {}", reply.text());
                // The filter before it still sees the response.
                assert!(
                    reply.field("x-trace-id").is_some(),
                    "{fault}: {:?}",
                    reply.fields
                );
            }
        }
        assert_eq!(
            envoy.connect("faulty").get("/").status,
            200,
            "after {fault}"
        );
    }
}

fn garbage(w: &World) {
    let envoy = w.envoy();
    for n in GARBAGE {
        let mut client = envoy.connect("garbage");
        let reply = client.request("GET", "/", &format!("x-case: garbage-{n}\r\n"), b"");
        assert_eq!(reply.status, 500, "garbage {n}: {}", reply.text());
        assert_eq!(client.get("/").status, 200, "after garbage {n}");
    }
}

fn garbage_open(w: &World) {
    let envoy = w.envoy();
    for n in GARBAGE {
        let reply = envoy.connect("garbage-open").request(
            "GET",
            "/",
            &format!("x-case: garbage-{n}\r\n"),
            b"",
        );
        assert_eq!(reply.status, 200, "garbage {n}: {}", reply.text());
        let mirror = reply.json();
        assert!(
            seen(&mirror, "x-garbage").is_empty() && seen(&mirror, "x-smuggled").is_empty(),
            "garbage {n}"
        );
    }
}

fn scratch(w: &World) {
    let envoy = w.envoy();
    for _ in 0..3 {
        let reply = envoy.case("exhaust", "/");
        assert_eq!(reply.status, 200);
        let mirror = reply.json();
        let got: u64 = seen(&mirror, "x-scratch")[0].parse().unwrap();
        assert!((4096..64 << 20).contains(&got), "{got}");
    }
}

fn owned(w: &World) {
    let envoy = w.envoy();
    let ask = |case: &str, body: &[u8]| {
        let fields = format!("x-case: owned-{case}\r\n");
        envoy.connect("owned").request("POST", "/", &fields, body)
    };
    let applied = ask("applied", b"hello");
    let mirror = applied.json();
    assert_eq!(
        (applied.field("x-b"), seen(&mirror, "x-a")),
        (Some("response"), vec!["headers"])
    );
    assert_eq!(mirror["body"], "<body>hello");
    assert_eq!(seen(&ask("later", b"").json(), "x-a"), ["later"]);
    for case in ["refused", "error"] {
        assert_eq!(ask(case, b"").status, 500, "{case}");
    }
    let mut gone = envoy.connect("owned");
    gone.send("GET / HTTP/1.1\r\nhost: test\r\nx-case: owned-gone\r\n\r\n");
    let record = w.record("owned-gone");
    until("it pends", || !record.lines().is_empty());
    drop(gone);
    record.calls("end", 1);
    assert_eq!(ask("release", b"").status, 200);
    let counts = w.record("owned-count");
    until("all have been given back", || {
        assert_eq!(ask("count", b"").status, 200);
        let lines = counts.lines();
        let last = lines
            .iter()
            .rfind(|l| l["call"] == "count")
            .expect("a count");
        last["given"].as_u64() >= Some(8) && last["given"] == last["released"]
    });
}

fn errors(w: &World) {
    let envoy = w.envoy();
    for case in ["unset", "guest-error", "response-error"] {
        assert_eq!(envoy.case(case, "/").status, 500, "{case}");
    }
    envoy.wait_for_log("it went wrong");
    let mut client = envoy.connect("script");
    client.send("GET /bytes-100000 HTTP/1.1\r\nhost: test\r\nx-case: body-error\r\n\r\n");
    let rest = client.rest();
    assert!(rest.len() < 100_000, "the body went on after the error");
}

fn client_aborts(w: &World) {
    let envoy = w.envoy();
    let record = w.record("abort-streaming");
    const CLIENTS: usize = 20;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = envoy.connect("script");
            client.send(
                "POST / HTTP/1.1\r\nhost: test\r\nx-case: abort-streaming\r\ncontent-length: 100\r\n\r\nthe beginning",
            );
            client
        })
        .collect();
    until("all of them have sent something", || {
        record
            .lines()
            .iter()
            .filter(|l| l["phase"] == "request_body")
            .count()
            >= CLIENTS
    });
    drop(clients);
    let events = record.events(CLIENTS);
    let logs: Vec<_> = events.iter().filter(|e| e["phase"] == "log").collect();
    assert_eq!(logs.len(), CLIENTS);
    for log in logs {
        // PXG_END_CLIENT_ABORT
        assert_eq!(log["arg"].as_u64().unwrap() & 0xff, 2, "{log}");
    }
}

fn upstream_breaks(w: &World) {
    let envoy = w.envoy();
    let mut client = envoy.connect("script");
    client.send("GET /break HTTP/1.1\r\nhost: test\r\nx-case: breaks\r\n\r\n");
    let rest = String::from_utf8_lossy(&client.rest()).into_owned();
    assert!(
        rest.contains("200 OK") && !rest.ends_with("0\r\n\r\n"),
        "{rest}"
    );
    let events = w.record("breaks").events(1);
    // PXG_END_UPSTREAM_RESET
    assert_eq!(
        events.last().unwrap()["arg"].as_u64().unwrap() & 0xff,
        3,
        "{events:#?}"
    );
    // A stream of HTTP/2 that is reset, on a connection that goes on.
    let mut client = envoy.connect("script");
    client.send("GET /h2/break HTTP/1.1\r\nhost: test\r\nx-case: breaks-h2\r\n\r\n");
    let rest = String::from_utf8_lossy(&client.rest()).into_owned();
    assert!(!rest.ends_with("0\r\n\r\n"), "{rest}");
    let events = w.record("breaks-h2").events(1);
    assert_eq!(
        events.last().unwrap()["arg"].as_u64().unwrap() & 0xff,
        3,
        "{events:#?}"
    );
    // Nothing had left yet: there is an answer, though not the upstream's.
    let reply = envoy.case("breaks-whole", "/break");
    assert!(reply.status >= 500, "{}", reply.status);
    let events = w.record("breaks-whole").events(1);
    assert!(
        events.iter().all(|e| e["phase"] != "response_body"),
        "a part is not the whole: {events:#?}"
    );
}

fn unreachable(w: &World) {
    let reply = w.envoy().connect("nowhere").get("/");
    assert_eq!(reply.status, 503);
    // What Envoy answers itself passes guests that see replies, and no others.
    assert!(reply.field("x-trace-id").is_some());
    assert_eq!(reply.field("x-unseen"), None);
}
