//! Phases, header operations, attributes, metadata, metrics, routes.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use hyper::body::Frame;
use proxy_golang_abi::EventFlags;
use serde_json::{Value, json};

use crate::config::{self, listener_with, pxg, route, routes, text};
use crate::record::{has_flag, values};
use crate::suite::{Setup, Suite, World};
use crate::support::{run, until};
use crate::{guests, h2};

pub(crate) fn add(suite: &mut Suite) {
    suite.scripts(
        "
case both-ways
request_headers set x-a one
request_headers add x-many 2
request_headers delete x-gone
response_headers set x-b two
log log 2 both-ways has ended
case every
request_headers mode request stream
request_body set x-late 1
request_trailers tset x-own 1
request_trailers tdelete x-gone
response_headers mode response stream
response_body @1 log 1 body
response_trailers tset x-more 2
case by-index
request_headers set_at 0 other.example
request_headers set :path /elsewhere?x=1
request_headers set accept text/plain
case pseudo
request_headers set_at 99 no
case framing
request_headers set content-length 5
response_headers set connection close
case attributes
response_headers set x-route $4
case metric
request_headers metric 3
response_headers metric 4
case lists
request_headers log 1 lists
case head
request_headers set x-a 1
response_headers set x-b 1
response_headers mode response whole
response_body set x-never 1
case http2
request_headers set x-a one
response_headers set x-b two
log log 0 .
case wakes
request_headers wake 5
wake log 2 woken
",
    );
    suite.listeners(listeners);
    suite.test("phases::headers_both_ways", headers_both_ways);
    suite.test("phases::every_phase_in_order", every_phase);
    suite.test(
        "phases::operations_by_index_and_on_pseudo_headers",
        by_index,
    );
    suite.test(
        "phases::an_index_out_of_the_view_is_an_error_of_its_own_stream",
        index_out_of_view,
    );
    suite.test("phases::framing_is_the_hosts", framing);
    suite.test("phases::lists_keep_their_values_in_order", lists);
    suite.test("phases::attributes", attributes);
    suite.test("phases::metadata_for_later_guests_and_for_envoy", metadata);
    suite.test("phases::metadata_becomes_filter_state", filter_state);
    suite.test(
        "phases::trusted_fields_are_stripped_and_failures_have_their_status",
        stripped,
    );
    suite.test("phases::metrics_are_envoys_stats", metrics);
    suite.test("phases::routes_and_clusters_are_chosen_again", recompute);
    suite.test("phases::wake", wake);
    suite.test("phases::head_and_empty_bodies", head);
    suite.test("phases::the_same_filters_over_http2", over_http2);
}

fn listeners(setup: &Setup) -> Vec<Value> {
    let record = format!("record {}\n", setup.record.display());
    let attributes = "attr source.address\nattr request.id\nattr request.protocol\nattr path.normalized\nattr route.name\n\
                      attr upstream.address\nattr response.code\nattr connection.id\nattr x.envoy.none\n";
    let attributes = format!(
        "{record}{attributes}case attributes\nrequest_headers set x-protocol $2\nresponse_headers set x-route $4\nlog log 1 .\n"
    );
    let mut named = route("/", "app");
    named["name"] = json!("the-route");
    let first = "case metadata\nrequest_headers meta colour blue\n";
    let second = format!(
        "{record}attr metadata.first.colour\ncase metadata\nrequest_headers set x-colour $0\n"
    );
    let access = json!({ "access_log": [{
        "name": "envoy.access_loggers.stderr",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog",
            "log_format": { "text_format_source": { "inline_string":
                "access path=%REQ(:PATH)% colour=%DYNAMIC_METADATA(first:colour)% details=%RESPONSE_CODE_DETAILS%\n" } },
        },
    }] });
    let mut by_header = route("/", "nowhere");
    by_header["match"]["headers"] =
        json!([{ "name": "x-go", "string_match": { "exact": "there" } }]);
    by_header.as_object_mut().expect("a table").remove("route");
    by_header["direct_response"] = json!({ "status": 204 });
    // A guest chooses the cluster by the field that this route looks at.
    let mut by_cluster = route("/", "nowhere");
    by_cluster["match"]["headers"] = json!([{ "name": "x-pxg-cluster", "present_match": true }]);
    by_cluster["route"] = json!({ "cluster_header": "x-pxg-cluster" });
    let recompute = "case recompute\nrequest_headers set x-go there\nrequest_headers recompute\n\
                     case no-recompute\nrequest_headers set x-go there\n\
                     case cluster\nrequest_headers cluster h2\ncase forbidden\nrequest_headers cluster raw\n";
    let script = guests::script();
    let state = json!({
        "guest": script, "config": "case *\nrequest_headers meta tenant blue\n",
        "filter_state": { "tenant": "test.tenant" },
    });
    let reads = format!(
        "{record}attr x.envoy.filter_state.test.tenant\ncase *\nrequest_headers set x-tenant $0\n"
    );
    let strict = json!({
        "guest": script, "strip_request_fields": ["X-User"], "failure_status": 503,
        "config": "case fails\nrequest_headers error as asked for\n",
    });
    vec![
        listener_with(
            "filter-state",
            vec![
                config::pxg_with("script", state),
                pxg_named("reads", &script, &reads),
            ],
            routes(),
            json!({}),
        ),
        listener_with(
            "strict",
            vec![as_text("script", &strict)],
            routes(),
            json!({}),
        ),
        listener_with(
            "attributes",
            vec![pxg("script", &script, text(&attributes))],
            vec![named],
            json!({}),
        ),
        listener_with(
            "metadata",
            vec![
                pxg_named("first", &script, first),
                pxg_named("second", &script, &second),
            ],
            routes(),
            access,
        ),
        listener_with(
            "recompute",
            vec![config::pxg_with(
                "script",
                json!({ "guest": script, "config": recompute, "clusters": ["h2"] }),
            )],
            vec![by_header, by_cluster, route("/", "app")],
            json!({}),
        ),
    ]
}

/// An instance of `script` with a name of its own.
pub(crate) fn pxg_named(name: &str, guest: &std::path::Path, script: &str) -> Value {
    config::pxg_with(
        name,
        json!({ "guest": guest, "filter": "script", "config": script }),
    )
}

fn headers_both_ways(w: &World) {
    let envoy = w.envoy();
    let fields = "x-case: both-ways\r\nx-gone: 1\r\nx-many: 1\r\n";
    let reply = envoy
        .connect("script")
        .request("GET", "/some?q=1", fields, b"");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.field("x-b"), Some("two"));
    let mirror = reply.json();
    assert_eq!(seen(&mirror, "x-a"), ["one"]);
    assert_eq!(seen(&mirror, "x-many"), ["1", "2"]);
    assert!(seen(&mirror, "x-gone").is_empty());
    let record = w.record("both-ways");
    assert_eq!(
        record.phases(),
        ["request_headers", "response_headers", "log"]
    );
    let events = record.events(1);
    assert_eq!(values(&events[0], "fields", ":path"), ["/some?q=1"]);
    assert_eq!(values(&events[0], "fields", ":method"), ["GET"]);
    assert!(
        has_flag(&events[0], EventFlags::END_STREAM) && has_flag(&events[0], EventFlags::CAN_REPLY)
    );
    assert_eq!(values(&events[1], "fields", ":status"), ["200"]);
    // LOG: the response's fields, the request's beside them, both as they left.
    assert_eq!(values(&events[2], "fields", "x-b"), ["two"]);
    assert_eq!(values(&events[2], "peer_fields", "x-a"), ["one"]);
    envoy.wait_for_log("both-ways has ended");
}

fn every_phase(w: &World) {
    let address = w.envoy().address("script");
    let trailers = || {
        let mut map = HeaderMap::new();
        map.insert("x-gone", HeaderValue::from_static("1"));
        map.insert("x-kept", HeaderValue::from_static("1"));
        Frame::trailers(map)
    };
    let ask = |path: &'static str| {
        let body = h2::frames(vec![Frame::data(Bytes::from_static(b"hello")), trailers()]);
        h2::with_body("POST", path, &[("x-case", "every")], body)
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
    let mirror = mirror.json();
    assert_eq!(mirror["body"], "hello");
    // Headers that have left are not changed any more.
    assert!(seen(&mirror, "x-late").is_empty());
    assert_eq!(mirror["trailers"], json!([["x-kept", "1"], ["x-own", "1"]]));
    assert_eq!(ended.body, "hello");
    assert_eq!(ended.trailers["x-end"], "1");
    assert_eq!(ended.trailers["x-more"], "2");
    let events = w.record("every").events(2);
    let second = events.last().unwrap()["stream"].clone();
    let second: Vec<_> = events.iter().filter(|e| e["stream"] == second).collect();
    let mut phases: Vec<_> = second
        .iter()
        .map(|e| e["phase"].as_str().unwrap())
        .collect();
    phases.dedup();
    let all = [
        "request_headers",
        "request_body",
        "request_trailers",
        "response_headers",
        "response_body",
        "response_trailers",
        "log",
    ];
    assert_eq!(phases, all);
    for event in second {
        // With trailers, they alone end the stream.
        let is_end = event["phase"].as_str().unwrap().ends_with("trailers");
        assert_eq!(has_flag(event, EventFlags::END_STREAM), is_end, "{event}");
    }
}

fn by_index(w: &World) {
    let fields = "x-case: by-index\r\naccept: a/b\r\naccept: c/d\r\n";
    let reply = w
        .envoy()
        .connect("script")
        .request("GET", "/before", fields, b"");
    assert_eq!(reply.status, 200);
    let mirror = reply.json();
    // The first of the view is a pseudo-header; Envoy has :authority there.
    let events = w.record("by-index").events(1);
    assert_eq!(events[0]["fields"][0][0], ":authority");
    assert_eq!(seen(&mirror, "host"), ["other.example"]);
    assert_eq!(mirror["path"], "/elsewhere?x=1");
    assert_eq!(seen(&mirror, "accept"), ["text/plain"]);
}

fn index_out_of_view(w: &World) {
    let envoy = w.envoy();
    assert_eq!(envoy.case("pseudo", "/").status, 500);
    assert_eq!(envoy.connect("script").get("/").status, 200);
}

fn framing(w: &World) {
    let envoy = w.envoy();
    let reply = envoy.case("framing", "/");
    assert_eq!(reply.status, 500, "{}", reply.text());
}

fn lists(w: &World) {
    let fields = "x-case: lists\r\nx-list: 1\r\nx-other: a\r\nx-list: 2\r\nx-list: 3\r\n";
    let reply = w.envoy().connect("script").request("GET", "/", fields, b"");
    assert_eq!(seen(&reply.json(), "x-list"), ["1", "2", "3"]);
}

fn attributes(w: &World) {
    let envoy = w.envoy();
    let reply =
        envoy
            .connect("attributes")
            .request("GET", "/raw/path?q", "x-case: attributes\r\n", b"");
    assert_eq!(reply.field("x-route"), Some("the-route"));
    assert_eq!(seen(&reply.json(), "x-protocol"), ["HTTP/1.1"]);
    let events = w.record("attributes").events(1);
    let attr = |event: usize, i: usize| events[event]["attrs"][i].clone();
    assert_eq!(
        attr(0, 0).as_str().map(|a| a.starts_with("127.0.0.1")),
        Some(true),
        "{}",
        attr(0, 0)
    );
    assert!(
        attr(0, 1).as_str().is_some_and(|id| !id.is_empty()),
        "{}",
        attr(0, 1)
    );
    assert_eq!(attr(0, 3), "/raw/path?q");
    assert!(
        attr(0, 5).is_null(),
        "the upstream's address is not known yet"
    );
    let upstream = w.origins.clusters()["app"].0.to_string();
    assert_eq!(attr(1, 5), upstream);
    assert_eq!(attr(2, 6), "200");
    assert!(
        attr(0, 7)
            .as_str()
            .is_some_and(|id| id.parse::<u64>().is_ok()),
        "{}",
        attr(0, 7)
    );
    assert!(attr(0, 8).is_null() && attr(2, 8).is_null());
}

fn metadata(w: &World) {
    let envoy = w.envoy();
    let reply = envoy
        .connect("metadata")
        .request("GET", "/coloured", "x-case: metadata\r\n", b"");
    assert_eq!(seen(&reply.json(), "x-colour"), ["blue"]);
    envoy.wait_for_log("access path=/coloured colour=blue");
}

/// Our filter with these settings as a `StringValue`.
fn as_text(filter: &str, settings: &Value) -> Value {
    let mut filter = config::pxg_with(filter, json!({}));
    filter["typed_config"]["filter_config"] = json!({
        "@type": "type.googleapis.com/google.protobuf.StringValue",
        "value": settings.to_string(),
    });
    filter
}

fn filter_state(w: &World) {
    let reply = w.envoy().connect("filter-state").get("/");
    assert_eq!(seen(&reply.json(), "x-tenant"), ["blue"]);
}

fn stripped(w: &World) {
    let ask = |case: &str| {
        let fields = format!("x-case: {case}\r\nx-user: root\r\nx-other: 1\r\n");
        w.envoy()
            .connect("strict")
            .request("GET", "/", &fields, b"")
    };
    let mirror = ask("none").json();
    assert!(seen(&mirror, "x-user").is_empty());
    assert_eq!(seen(&mirror, "x-other"), ["1"]);
    assert_eq!(ask("fails").status, 503);
}

fn metrics(w: &World) {
    let envoy = w.envoy();
    let sum = || envoy.stats("script_hits").values().sum::<u64>();
    let before = sum();
    assert_eq!(envoy.case("metric", "/").status, 200);
    w.record("metric").calls("end", 1);
    // The host hands what was counted to Envoy once a second.
    until("the metric is in Envoy's statistics", || {
        sum() == before + 7
    });
}

fn recompute(w: &World) {
    let ask = |case: &str| {
        let mut client = w.envoy().connect("recompute");
        client.request("GET", "/", &format!("x-case: {case}\r\n"), b"")
    };
    assert_eq!(ask("no-recompute").status, 200);
    assert_eq!(ask("recompute").status, 204);
    // The upstream of HTTP/1.1 sees a field `host`, that of HTTP/2 an authority.
    assert!(ask("no-recompute").json()["authority"].is_null());
    assert_eq!(ask("cluster").json()["authority"], "test");
    // A cluster that the operator did not name.
    assert_eq!(ask("forbidden").status, 500);
}

fn wake(w: &World) {
    let envoy = w.envoy();
    assert_eq!(envoy.case("wakes", "/").status, 200);
    let events = w.record("wakes").events(1);
    let wake = events
        .iter()
        .find(|e| e["phase"] == "wake")
        .expect("a WAKE event");
    assert_eq!(wake["arg"], 5);
}

fn head(w: &World) {
    let envoy = w.envoy();
    let mut client = envoy.connect("script");
    let reply = client.request("HEAD", "/bytes-10", "x-case: head\r\n", b"");
    assert_eq!(
        (reply.status, reply.field("content-length")),
        (200, Some("10"))
    );
    // The connection goes on.
    assert_eq!(client.get("/").status, 200);
}

fn over_http2(w: &World) {
    let address = w.envoy().address("script");
    let whole = run(async {
        let mut sender = h2::connect(address).await;
        let asks =
            (0..20).map(|i| sender.send_request(h2::get(&format!("/{i}"), &[("x-case", "http2")])));
        let asks: Vec<_> = asks.collect();
        let mut whole = Vec::new();
        for ask in asks {
            whole.push(h2::whole(ask.await.unwrap()).await.unwrap());
        }
        whole
    });
    for (i, whole) in whole.iter().enumerate() {
        assert_eq!(
            (whole.status, whole.fields["x-b"].to_str().unwrap()),
            (200, "two")
        );
        assert_eq!(whole.json()["path"], format!("/{i}"));
    }
    assert_eq!(w.record("http2").events(20).len(), 60);
}

/// What a mirror saw of one field.
pub(crate) fn seen<'a>(mirror: &'a Value, name: &str) -> Vec<&'a str> {
    let fields = mirror["fields"].as_array().expect("fields").iter();
    fields
        .filter(|f| f[0] == name)
        .map(|f| f[1].as_str().expect("text"))
        .collect()
}
