//! What Envoy makes of one request besides asking an upstream once: attempts, redirects that it follows, answers before the
//! answer.

use proxy_golang_abi::EventFlags;
use serde_json::{Value, json};

use crate::config::{listener_with, pxg, route, routes, text};
use crate::guests;
use crate::phases::seen;
use crate::record::{has_flag, values};
use crate::suite::{Setup, Suite, World};

pub(crate) fn add(suite: &mut Suite) {
    suite.scripts(
        "
case hints
request_headers set x-a 1
response_headers set x-b 1
response_headers mode response stream
response_body log 0 .
log log 0 .
",
    );
    suite.listeners(listeners);
    suite.test("upstreams::attempts_are_one_stream_to_guests", retries);
    suite.test(
        "upstreams::attempts_get_the_body_that_guests_made",
        retried_body,
    );
    suite.test("upstreams::attempts_that_all_fail", exhausted);
    suite.test(
        "upstreams::a_redirect_that_envoy_follows_is_a_stream_of_its_own",
        redirects,
    );
    suite.test("upstreams::early_hints_are_no_response", hints);
    suite.test(
        "upstreams::a_continue_of_the_upstream_is_no_response",
        continues,
    );
}

fn listeners(setup: &Setup) -> Vec<Value> {
    let record = format!("record {}\n", setup.record.display());
    let script = guests::script();
    let retried = format!(
        "{record}\
         case retried\nrequest_headers add x-a 1\nresponse_headers add x-b 1\nlog log 0 .\n\
         case retried-pending\nrequest_headers pend 1\nrequest_headers add x-a 1\nresponse_headers pend 1\n\
         response_headers add x-b 1\nlog log 0 .\n\
         case retried-body\nrequest_headers mode request whole\nrequest_body add x-a 1\nrequest_body drop all\n\
         request_body inject other\nlog log 0 .\n\
         case exhausted\nrequest_headers add x-a 1\nresponse_headers add x-b 1\nlog log 0 .\n"
    );
    let attempts = |n: u32| {
        let mut route = route("/", "app");
        route["route"]["retry_policy"] = json!({ "retry_on": "5xx", "num_retries": n, "retry_back_off": { "base_interval": "0.001s" } });
        route
    };
    let (three, two) = (attempts(2), {
        let mut route = attempts(1);
        route["match"]["prefix"] = json!("/two");
        route
    });
    let mut retries = listener_with(
        "retries",
        vec![pxg("script", &script, text(&retried))],
        vec![two, three],
        json!({}),
    );
    let manager = &mut retries["filter_chains"][0]["filters"][0]["typed_config"];
    manager["route_config"]["virtual_hosts"][0]["include_request_attempt_count"] = json!(true);

    let moved = format!(
        "{record}case moved\nrequest_headers add x-a 1\nresponse_headers add x-b 1\nlog log 0 .\n\
         case moved-pending\nrequest_headers pend 1\nrequest_headers add x-a 1\nresponse_headers pend 1\n\
         response_headers add x-b 1\nlog log 0 .\n"
    );
    let mut followed = route("/", "app");
    followed["route"]["internal_redirect_policy"] =
        json!({ "max_internal_redirects": 1, "redirect_response_codes": [302] });
    vec![
        retries,
        listener_with(
            "redirects",
            vec![pxg("script", &script, text(&moved))],
            vec![followed],
            json!({}),
        ),
        listener_with(
            "continues",
            vec![pxg(
                "script",
                &script,
                text(&format!(
                    "{record}case continue\nrequest_headers set x-a 1\nrequest_headers mode request stream\n\
                     request_body log 0 .\nresponse_headers set x-b 1\nlog log 0 .\n"
                )),
            )],
            routes(),
            json!({ "proxy_100_continue": true }),
        ),
    ]
}

fn phases_of(events: &[Value]) -> Vec<&str> {
    let phases = events.iter().map(|e| e["phase"].as_str().expect("text"));
    phases.collect()
}

fn retries(w: &World) {
    for case in ["retried", "retried-pending"] {
        let path = format!("/flaky-{case}-{}", w.version);
        let reply =
            w.envoy()
                .connect("retries")
                .request("GET", &path, &format!("x-case: {case}\r\n"), b"");
        assert_eq!(
            (reply.status, reply.field("x-b")),
            (200, Some("1")),
            "{case}"
        );
        let mirror = reply.json();
        assert_eq!(seen(&mirror, "x-envoy-attempt-count"), ["3"]);
        // What guests did is in each attempt, once.
        assert_eq!(seen(&mirror, "x-a"), ["1"]);
        let events = w.record(case).events(1);
        assert_eq!(
            phases_of(&events),
            ["request_headers", "response_headers", "log"],
            "{case}"
        );
        assert_eq!(values(&events[1], "fields", ":status"), ["200"]);
    }
}

fn retried_body(w: &World) {
    let path = format!("/flaky-body-{}", w.version);
    let reply =
        w.envoy()
            .connect("retries")
            .request("POST", &path, "x-case: retried-body\r\n", b"first");
    let mirror = reply.json();
    assert_eq!((reply.status, &mirror["body"]), (200, &json!("other")));
    assert_eq!(seen(&mirror, "x-envoy-attempt-count"), ["3"]);
    assert_eq!(seen(&mirror, "x-a"), ["1"]);
    let events = w.record("retried-body").events(1);
    assert_eq!(
        phases_of(&events),
        ["request_headers", "request_body", "response_headers", "log"]
    );
}

fn exhausted(w: &World) {
    let path = format!("/two/flaky-exhausted-{}", w.version);
    let reply = w
        .envoy()
        .connect("retries")
        .request("GET", &path, "x-case: exhausted\r\n", b"");
    // The last attempt's answer is the upstream's, and passes the guests as such.
    assert_eq!((reply.status, reply.field("x-b")), (503, Some("1")));
    let events = w.record("exhausted").events(1);
    assert_eq!(
        phases_of(&events),
        ["request_headers", "response_headers", "log"]
    );
    assert!(!has_flag(&events[2], EventFlags::LOCAL_ORIGIN));
}

/// Envoy begins anew with the request as it is: guests see the first stream end without a response, and a second one.
fn redirects(w: &World) {
    for case in ["moved", "moved-pending"] {
        let reply = w.envoy().connect("redirects").request(
            "GET",
            "/moved-there",
            &format!("x-case: {case}\r\n"),
            b"",
        );
        assert_eq!(
            (reply.status, reply.field("x-b")),
            (200, Some("1")),
            "{case}"
        );
        let mirror = reply.json();
        assert_eq!(mirror["path"], "/there");
        // The second stream's guests see what the first one's did.
        assert_eq!(seen(&mirror, "x-a"), ["1", "1"]);
        let events = w.record(case).events(2);
        assert_ne!(
            events[0]["stream"],
            events.last().expect("an event")["stream"]
        );
        let of = |path: &str| {
            let first = events
                .iter()
                .find(|e| values(e, "fields", ":path") == [path])
                .expect("its head");
            let own: Vec<_> = events
                .iter()
                .filter(|e| e["stream"] == first["stream"])
                .cloned()
                .collect();
            own
        };
        assert_eq!(
            phases_of(&of("/moved-there")),
            ["request_headers", "log"],
            "{case}"
        );
        assert_eq!(
            phases_of(&of("/there")),
            ["request_headers", "response_headers", "log"],
            "{case}"
        );
    }
}

fn hints(w: &World) {
    let mut client = w.envoy().connect("script");
    client.send("GET /hints HTTP/1.1\r\nhost: test\r\nx-case: hints\r\n\r\n");
    let mut reply = client.reply();
    if reply.status == 103 {
        // It goes past the guests.
        assert_eq!(reply.field("x-b"), None);
        reply = client.reply();
    }
    assert_eq!(
        (reply.status, reply.text().as_str(), reply.field("x-b")),
        (200, "hello", Some("1"))
    );
    let events = w.record("hints").events(1);
    let heads: Vec<_> = events
        .iter()
        .filter(|e| e["phase"] == "response_headers")
        .collect();
    assert_eq!(heads.len(), 1);
    assert_eq!(values(heads[0], "fields", ":status"), ["200"]);
}

fn continues(w: &World) {
    let mut client = w.envoy().connect("continues");
    client.send(
        "POST /continue HTTP/1.1\r\nhost: test\r\nx-case: continue\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n",
    );
    // The upstream's own, for Envoy says none here.
    assert_eq!(client.head().status, 100);
    client.send("hello");
    let reply = client.reply();
    assert_eq!(
        (reply.status, reply.text().as_str(), reply.field("x-b")),
        (200, "hello", Some("1"))
    );
    let events = w.record("continue").events(1);
    assert_eq!(
        phases_of(&events)
            .iter()
            .filter(|p| **p == "response_headers")
            .count(),
        1
    );
}
