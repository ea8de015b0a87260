//! Body modes, held headers, limits, lengths, upgrades.

use proxy_golang_abi::EventFlags;
use serde_json::Value;

use crate::client::{Client, Reply};
use crate::config::{listener, listener_with, pxg, routes, text};
use crate::guests;
use crate::record::{has_flag, values};
use crate::suite::{Setup, Suite, World};
use crate::support::until;

pub(crate) fn add(suite: &mut Suite) {
    suite.scripts(
        "
case stream
request_headers mode request stream
request_body log 0 .
response_headers mode response stream
response_body log 0 .
case gate
response_headers mode response stream
response_body log 0 .
case upper
request_headers mode request stream
request_headers resizes
request_body drop all
request_body inject <piece>
case whole
request_headers mode request whole
request_body set x-whole 1
request_body drop 1
request_body pass 3
request_body inject INSIDE
response_headers mode response whole
response_body set x-whole 2
response_body drop all
response_body inject replaced
case whole-trailers
request_headers mode request whole
request_body tset x-added 1
request_body set x-whole 1
case observe
request_headers mode request observe
request_body log 0 .
response_headers mode response observe
response_body log 0 .
case skip
request_headers set x-a 1
case length
request_headers mode request stream
request_body inject too long
case more
request_headers more 4
request_headers mode request stream
request_body @1 set x-seen-first 1
request_body pass all
case release-chunk
request_headers release pending-chunk-key
case early-answer
request_headers mode request stream
request_body log 0 .
",
    );
    suite.listeners(listeners);
    suite.test("bodies::streamed_both_ways", streamed);
    suite.test("bodies::what_was_passed_is_not_kept", gate);
    suite.test("bodies::streamed_with_another_length", resized);
    suite.test("bodies::whole_both_ways_with_the_new_length", whole);
    suite.test("bodies::whole_with_trailers", whole_with_trailers);
    suite.test("bodies::observed", observed);
    suite.test("bodies::skipped", skipped);
    suite.test("bodies::a_surplus_never_leaves", surplus);
    suite.test("bodies::headers_wait_for_the_first_bytes", more);
    suite.test(
        "bodies::what_arrives_while_a_chunk_pends_is_seen",
        pending_chunk,
    );
    suite.test("bodies::over_the_limit", over_limit);
    suite.test("bodies::more_than_envoys_buffer_is_held", large);
    suite.test("bodies::without_a_body", empty);
    suite.test("bodies::websocket", upgrade);
    suite.test("bodies::an_answer_before_the_body", early_answer);
    suite.test("bodies::expect_100_continue", expect);
    suite.test("bodies::the_example_in_rust", example);
}

fn listeners(setup: &Setup) -> Vec<Value> {
    let record = format!("record {}\n", setup.record.display());
    let limited = format!(
        "{record}max_body request 10\nmax_body response 10\n\
         case over-continue\nrequest_headers mode request whole\nrequest_body set x-over 1\n\
         case over-reply\nrequest_headers mode request whole\nrequest_body reply 413 too long\n\
         case over-response\nresponse_headers mode response whole\nresponse_body set x-over 1\n"
    );
    let large = format!(
        "{record}max_body request 4000000\nmax_body response 4000000\ncase large\nrequest_headers mode request whole\n\
         request_body set x-whole 1\nresponse_headers mode response whole\nresponse_body set x-whole 2\n"
    );
    let chunks = format!(
        "{record}case pending-chunk\nrequest_headers mode request stream\nrequest_body @1 pend until pending-chunk-key\n\
         request_body @2 set x-none 1\n"
    );
    let script = guests::script();
    let large = serde_json::json!({ "guest": script, "filter": "script", "config": large, "max_body": 4_000_000 });
    let rust = serde_json::json!({
        "content_types": ["application/json"],
        "replace": [{ "from": "needle", "to": "the found one" }],
    });
    vec![
        listener("chunks", vec![pxg("script", &script, text(&chunks))]),
        listener("limited", vec![pxg("script", &script, text(&limited))]),
        listener("large", vec![crate::config::pxg_with("script", large)]),
        listener_with(
            "upgrade",
            vec![pxg(
                "script",
                &script,
                text(&format!(
                    "{record}case upgrade\nrequest_headers mode request stream\nrequest_body log 0 .\n\
                     response_headers mode response stream\nresponse_body log 0 .\n"
                )),
            )],
            routes(),
            serde_json::json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }] }),
        ),
        listener("rust", vec![pxg("body-rewrite", &guests::rust(), rust)]),
    ]
}

/// A POST of a case, its body in chunks.
fn chunked(client: &mut Client, case: &str, path: &str, chunks: &[&str]) -> Reply {
    client.send(format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\nx-case: {case}\r\ntransfer-encoding: chunked\r\n\r\n"
    ));
    for chunk in chunks {
        client.send(format!("{:x}\r\n{chunk}\r\n", chunk.len()));
    }
    client.send("0\r\n\r\n");
    client.reply()
}

fn post(w: &World, listener: &str, case: &str, path: &str, body: &[u8]) -> Reply {
    w.envoy()
        .connect(listener)
        .request("POST", path, &format!("x-case: {case}\r\n"), body)
}

/// The events of one phase.
fn of<'a>(events: &'a [Value], phase: &str) -> Vec<&'a Value> {
    events.iter().filter(|e| e["phase"] == phase).collect()
}

/// All bytes, each once, the last event and no other with BODY_END.
fn assert_bytes(events: &[&Value], bytes: u64) {
    let mut offset = 0;
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["offset"].as_u64(), Some(offset), "{event}");
        offset += event["len"].as_u64().unwrap();
        let is_last = i + 1 == events.len();
        assert_eq!(has_flag(event, EventFlags::BODY_END), is_last, "{event}");
        assert!(
            is_last || event["len"] != 0,
            "an event without bytes: {event}"
        );
    }
    assert_eq!(offset, bytes);
}

fn streamed(w: &World) {
    let reply = chunked(
        &mut w.envoy().connect("script"),
        "stream",
        "/",
        &["hello ", "streamed ", "world"],
    );
    assert_eq!(reply.json()["body"], "hello streamed world");
    let events = w.record("stream").events(1);
    assert_bytes(&of(&events, "request_body"), 20);
    assert_bytes(&of(&events, "response_body"), reply.body.len() as u64);
}

/// The client has the first bytes while the upstream has not sent the last.
fn gate(w: &World) {
    let mut client = w.envoy().connect("script");
    let key = w.version;
    client.send(format!(
        "GET /gate-{key} HTTP/1.1\r\nhost: test\r\nx-case: gate\r\n\r\n"
    ));
    assert_eq!(client.head().status, 200);
    assert_eq!(client.chunk(), b"first");
    w.origins.open(key);
    assert_eq!(client.chunk(), b"second");
    assert!(client.chunk().is_empty());
    let events = w.record("gate").events(1);
    assert_bytes(&of(&events, "response_body"), 11);
}

fn resized(w: &World) {
    let reply = post(w, "script", "upper", "/", b"hello");
    let mirror = reply.json();
    let body = mirror["body"].as_str().unwrap();
    // One or two views, as Envoy reads; the second has no bytes, and gets its piece too.
    assert!(["<piece>", "<piece><piece>"].contains(&body), "{body}");
    assert!(crate::phases::seen(&mirror, "content-length").is_empty());
}

fn whole(w: &World) {
    let reply = post(w, "script", "whole", "/", b"0123456789");
    assert_eq!((reply.status, reply.field("x-whole")), (200, Some("2")));
    assert_eq!(reply.field("content-length"), Some("8"));
    assert_eq!(reply.text(), "replaced");
    let events = w.record("whole").events(1);
    let body = of(&events, "request_body");
    assert_eq!(body.len(), 1, "{body:#?}");
    assert_eq!(body[0]["body"], "0123456789");
    for flag in [
        EventFlags::WHOLE_BODY,
        EventFlags::HEADERS_HELD,
        EventFlags::BODY_END,
        EventFlags::END_STREAM,
        EventFlags::CAN_REPLY,
    ] {
        assert!(has_flag(body[0], flag), "{flag:?}: {}", body[0]);
    }
    assert_eq!(values(body[0], "fields", ":method"), ["POST"]);
    // What the upstream got is in the body that was replaced, as the guest saw it.
    let response = of(&events, "response_body");
    let text = response[0]["body"].as_str().unwrap();
    assert!(
        text.contains("123INSIDE456789") && text.contains(r#"["x-whole","1"]"#),
        "{text}"
    );
    assert!(text.contains(r#"["content-length","15"]"#), "{text}");
}

fn whole_with_trailers(w: &World) {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue};
    use hyper::body::Frame;
    let address = w.envoy().address("script");
    let mirror = crate::support::run(async {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-kept", HeaderValue::from_static("1"));
        let body = crate::h2::frames(vec![
            Frame::data(Bytes::from_static(b"hello")),
            Frame::trailers(trailers),
        ]);
        let request = crate::h2::with_body("POST", "/h2/", &[("x-case", "whole-trailers")], body);
        let mut sender = crate::h2::connect(address).await;
        crate::h2::whole(sender.send_request(request).await.unwrap())
            .await
            .unwrap()
            .json()
    });
    assert_eq!(
        mirror["trailers"],
        serde_json::json!([["x-kept", "1"], ["x-added", "1"]])
    );
    assert_eq!(mirror["body"], "hello");
    assert_eq!(crate::phases::seen(&mirror, "x-whole"), ["1"]);
    let events = w.record("whole-trailers").events(1);
    let body = of(&events, "request_body");
    assert_eq!(body.len(), 1);
    assert_eq!(values(body[0], "trailers", "x-kept"), ["1"]);
    assert!(has_flag(body[0], EventFlags::END_STREAM));
}

fn observed(w: &World) {
    let reply = chunked(
        &mut w.envoy().connect("script"),
        "observe",
        "/",
        &["hello ", "world"],
    );
    assert_eq!(reply.json()["body"], "hello world");
    let events = w.record("observe").events(1);
    assert_bytes(&of(&events, "request_body"), 11);
    assert_bytes(&of(&events, "response_body"), reply.body.len() as u64);
}

fn skipped(w: &World) {
    let reply = post(w, "script", "skip", "/", b"hello");
    assert_eq!(reply.json()["body"], "hello");
    let events = w.record("skip").events(1);
    assert!(of(&events, "request_body").is_empty());
}

fn surplus(w: &World) {
    let reply = post(w, "script", "length", "/", b"hello");
    assert_ne!(reply.status, 200, "{}", reply.text());
    assert!(!reply.text().contains("too long"));
}

fn more(w: &World) {
    let reply = chunked(
        &mut w.envoy().connect("script"),
        "more",
        "/",
        &["hello ", "world"],
    );
    let mirror = reply.json();
    assert_eq!(mirror["body"], "hello world");
    assert_eq!(crate::phases::seen(&mirror, "x-seen-first"), ["1"]);
    let events = w.record("more").events(1);
    assert!(has_flag(
        of(&events, "request_body")[0],
        EventFlags::HEADERS_HELD
    ));
}

/// Envoy calls the body hook again while the first chunk pends, and a plain continue would send what came meanwhile
/// unseen: a bypass of the filter.
fn pending_chunk(w: &World) {
    let envoy = w.envoy();
    let mut client = envoy.connect("chunks");
    let head = "POST / HTTP/1.1\r\nhost: test\r\nx-case: pending-chunk\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n";
    client.send(head);
    let record = w.record("pending-chunk");
    until("the first chunk pends", || {
        !of(&record.lines(), "request_body").is_empty()
    });
    let rest = "6\r\nsecond\r\n5\r\nthird\r\n0\r\n\r\n";
    client.send(rest);
    until("Envoy has read them", || {
        envoy.stat("http.chunks.downstream_cx_rx_bytes_total") >= (head.len() + rest.len()) as u64
    });
    // Both workers have had a turn since, by all odds.
    (0..4).for_each(|_| assert_eq!(envoy.connect("script").get("/").status, 200));
    assert_eq!(
        of(&record.lines(), "request_body").len(),
        1,
        "an event while the direction pends"
    );
    assert_eq!(envoy.case("release-chunk", "/").status, 200);
    let reply = client.reply();
    assert_eq!(reply.json()["body"], "firstsecondthird");
    let events = record.events(1);
    let body = of(&events, "request_body");
    assert_bytes(&body, 16);
    let seen: String = body.iter().map(|e| e["body"].as_str().unwrap()).collect();
    assert_eq!(seen, "firstsecondthird");
}

fn over_limit(w: &World) {
    let reply = post(w, "limited", "over-continue", "/", b"0123456789abcdef");
    let mirror = reply.json();
    assert_eq!(mirror["body"], "0123456789abcdef");
    assert_eq!(crate::phases::seen(&mirror, "x-over"), ["1"]);
    let events = w.record("over-continue").events(1);
    let first = of(&events, "request_body")[0];
    assert!(has_flag(first, EventFlags::OVER_LIMIT) && has_flag(first, EventFlags::HEADERS_HELD));
    assert!(!has_flag(first, EventFlags::WHOLE_BODY));
    let reply = post(w, "limited", "over-reply", "/", b"0123456789abcdef");
    assert_eq!((reply.status, reply.text().as_str()), (413, "too long"));
    let reply = w.envoy().connect("limited").request(
        "GET",
        "/bytes-5000",
        "x-case: over-response\r\n",
        b"",
    );
    assert_eq!(
        (reply.status, reply.field("x-over"), reply.body.len()),
        (200, Some("1"), 5000)
    );
}

/// Envoy answers 413, or 500, of its own accord when more than its buffer limit of 1 MiB is held.
fn large(w: &World) {
    let body = vec![b'x'; 3_000_000];
    let reply = post(w, "large", "large", "/length", &body);
    assert_eq!((reply.status, reply.field("x-whole")), (200, Some("2")));
    let mirror = reply.json();
    assert_eq!(mirror["length"], 3_000_000);
    assert_eq!(crate::phases::seen(&mirror, "x-whole"), ["1"]);
}

fn empty(w: &World) {
    // A message that ends at its headers has no body event, whatever the mode.
    let reply = w
        .envoy()
        .connect("script")
        .request("GET", "/", "x-case: whole\r\n", b"");
    assert_eq!(reply.text(), "replaced");
}

fn upgrade(w: &World) {
    let envoy = w.envoy();
    let mut client = envoy.connect("upgrade");
    client.send(
        "GET /upgrade HTTP/1.1\r\nhost: test\r\nx-case: upgrade\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    );
    let reply = client.head();
    assert_eq!(reply.status, 101);
    client.send("ping");
    assert_eq!(client.exact(4), b"ping");
    drop(client);
    let events = w.record("upgrade").events(1);
    assert!(of(&events, "request_body").is_empty() && of(&events, "response_body").is_empty());
    assert!(has_flag(
        of(&events, "response_headers")[0],
        EventFlags::UPGRADED
    ));
}

fn early_answer(w: &World) {
    let envoy = w.envoy();
    let mut client = envoy.connect("script");
    client.send(
        "POST /early HTTP/1.1\r\nhost: test\r\nx-case: early-answer\r\ncontent-length: 100000\r\n\r\nthe beginning",
    );
    let reply = client.head();
    assert_eq!(reply.status, 413);
    drop(client);
    let events = w.record("early-answer").events(1);
    let log = of(&events, "log");
    assert_eq!(log.len(), 1);
    assert!(
        of(&events, "request_body")
            .iter()
            .all(|e| !has_flag(e, EventFlags::END_STREAM))
    );
}

/// This host has no CONTINUE_GATE: Envoy says 100 before the verdict, and the verdict holds all the same.
fn expect(w: &World) {
    let envoy = w.envoy();
    let mut client = envoy.connect("limited");
    client.send(
        "POST / HTTP/1.1\r\nhost: test\r\nx-case: over-reply\r\nexpect: 100-continue\r\ncontent-length: 20\r\n\r\n",
    );
    assert_eq!(client.head().status, 100);
    client.send("0123456789abcdefghij");
    assert_eq!(client.reply().status, 413);
}

fn example(w: &World) {
    let reply = w
        .envoy()
        .connect("rust")
        .request("POST", "/", "", b"find the needle");
    let mirror = reply.json();
    assert_eq!(mirror["body"], "find the the found one");
    assert_eq!(
        reply.field("content-length"),
        Some(reply.body.len().to_string().as_str())
    );
}
