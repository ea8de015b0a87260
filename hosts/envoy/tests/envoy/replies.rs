//! Local replies, whole and streamed.

use serde_json::Value;

use crate::config::{listener, pxg_with};
use crate::guests;
use crate::suite::{Setup, Suite, World};
use crate::support::{run, until};
use crate::{h2, phases};

pub(crate) fn add(suite: &mut Suite) {
    suite.scripts(
        "
case reply-headers
request_headers rset x-why because
request_headers rset set-cookie a=1
request_headers rset set-cookie b=2
request_headers reply 418 short and stout
response_headers set x-never 1
log log 0 .
case reply-body
request_headers mode request whole
request_body rset x-why body
request_body reply 422 not this body
case reply-response
response_headers rset x-why response
response_headers reply 502 the upstream's was no good
case reply-late
response_headers mode response stream
response_body reply 500 too late
case reply-trailers
request_headers rset content-type text/plain
request_headers rtrailer x-end 1
request_headers reply 200 with trailers
case reply-grpc
request_headers grpc 7
request_headers reply 200 denied
case reply-pending
request_headers pend 1
request_headers rset x-why later
request_headers reply 403 later
case reply-stream
request_headers rset x-why stream
request_headers stream 200 5 1000
case reply-stream-begun
response_headers rset x-why begun
response_headers rtrailer x-end 1
response_headers stream 200 5 1000
case reply-stream-begun-large
response_headers stream 200 400 10000
case reply-stream-large
request_headers stream 200 400 10000
case reply-reset
request_headers reset
case reply-reset-response
response_headers reset
",
    );
    suite.listeners(listeners);
    suite.test("replies::to_request_headers", to_headers);
    suite.test("replies::to_a_request_body", to_body);
    suite.test("replies::in_place_of_a_response", to_response);
    suite.test("replies::too_late_resets", too_late);
    suite.test("replies::with_trailers", with_trailers);
    suite.test("replies::for_grpc", grpc);
    suite.test("replies::by_a_completion", by_completion);
    suite.test("replies::to_head", to_head);
    suite.test("replies::streamed", streamed);
    suite.test(
        "replies::streamed_once_the_response_has_begun",
        streamed_begun,
    );
    suite.test("replies::streamed_at_the_clients_pace", streamed_slowly);
    suite.test(
        "replies::streamed_to_a_client_that_goes",
        streamed_to_nobody,
    );
    suite.test("replies::in_a_chain_of_filters", chain);
    suite.test("replies::resets", resets);
    suite.test("replies::the_example_in_c", example);
}

fn listeners(setup: &Setup) -> Vec<Value> {
    let record = format!("record {}\n", setup.record.display());
    let watch = "case chain-reply\nrequest_headers log 0 .\nresponse_headers set x-NAME 1\nlog log 0 .\n\
                 case chain-response\nrequest_headers log 0 .\nresponse_headers set x-NAME 1\nlog log 0 .\n";
    let middle = "case chain-reply\nrequest_headers reply 403 no\nresponse_headers set x-middle 1\nlog log 0 .\n\
                  case chain-response\nresponse_headers reply 403 no\nlog log 0 .\n";
    let script = guests::script();
    let of = |name: &str, text: &str| {
        phases::pxg_named(
            name,
            &script,
            &format!("{record}{}", text.replace("NAME", name)),
        )
    };
    let place = |name: &str, text: &str| {
        let config = format!("{record}{}", text.replace("NAME", name));
        serde_json::json!({ "name": format!("inside-{name}"), "guest": script, "config": config, "reply_refilter": true })
    };
    let places = [
        place("first", watch),
        place("middle", middle),
        place("last", watch),
    ];
    let inside = pxg_with("inside", serde_json::json!({ "chain": places }));
    let policy = serde_json::json!({
        "guest": guests::header_policy(),
        "config": "request delete x-debug\nrequest set x-plan gold\nresponse set x-frame-options DENY\n\
                   deny path-prefix /policy/private 403\n",
    });
    let slow =
        format!("{record}case reply-stream-abort\nrequest_headers stream 200 100000 10000\n");
    vec![
        listener("slow", vec![phases::pxg_named("slow", &script, &slow)]),
        listener(
            "reply-chain",
            vec![of("first", watch), of("middle", middle), of("last", watch)],
        ),
        listener("reply-inside", vec![inside]),
        listener("c", vec![pxg_with("header-policy", policy)]),
    ]
}

fn to_headers(w: &World) {
    let envoy = w.envoy();
    let mut client = envoy.connect("script");
    let reply = client.request("GET", "/", "x-case: reply-headers\r\n", b"");
    assert_eq!(
        (reply.status, reply.text().as_str()),
        (418, "short and stout")
    );
    assert_eq!(
        (reply.field("x-why"), reply.field("x-never")),
        (Some("because"), None)
    );
    let cookies: Vec<_> = reply
        .fields
        .iter()
        .filter(|(n, _)| n == "set-cookie")
        .map(|(_, v)| v.as_str())
        .collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
    assert_eq!(reply.field("content-length"), Some("15"));
    // The connection goes on; what the upstream would have answered was never asked.
    assert_eq!(client.get("/").status, 200);
    assert_eq!(
        w.record("reply-headers").phases(),
        ["request_headers", "log"]
    );
}

fn to_body(w: &World) {
    let reply =
        w.envoy()
            .connect("script")
            .request("POST", "/", "x-case: reply-body\r\n", b"some body");
    assert_eq!(
        (reply.status, reply.text().as_str(), reply.field("x-why")),
        (422, "not this body", Some("body"))
    );
}

fn to_response(w: &World) {
    let reply = w.envoy().case("reply-response", "/bytes-100000");
    assert_eq!(reply.status, 502);
    assert_eq!(
        (reply.text().as_str(), reply.field("x-why")),
        ("the upstream's was no good", Some("response"))
    );
}

fn too_late(w: &World) {
    let mut client = w.envoy().connect("script");
    client.send("GET /bytes-50000 HTTP/1.1\r\nhost: test\r\nx-case: reply-late\r\n\r\n");
    // A reset without a second response; how much of the first has left is not said.
    let all = String::from_utf8_lossy(&client.rest()).into_owned();
    assert!(
        !all.contains("too late") && !all.contains("\r\n\r\nxxxxx"),
        "{all}"
    );
    w.record("reply-late").calls("end", 1);
}

fn with_trailers(w: &World) {
    let address = w.envoy().address("script");
    let whole = run(async {
        let mut sender = h2::connect(address).await;
        let request = h2::get("/", &[("x-case", "reply-trailers")]);
        h2::whole(sender.send_request(request).await.unwrap())
            .await
            .unwrap()
    });
    assert_eq!(
        (whole.status, &whole.body[..]),
        (200, &b"with trailers"[..])
    );
    assert_eq!(whole.trailers["x-end"], "1");
}

fn grpc(w: &World) {
    let address = w.envoy().address("script");
    let whole = run(async {
        let mut sender = h2::connect(address).await;
        let request = h2::get(
            "/",
            &[
                ("x-case", "reply-grpc"),
                ("content-type", "application/grpc"),
            ],
        );
        h2::whole(sender.send_request(request).await.unwrap())
            .await
            .unwrap()
    });
    let status = whole
        .fields
        .get("grpc-status")
        .or(whole.trailers.get("grpc-status"));
    assert_eq!(
        (whole.status, status.map(|s| s.to_str().unwrap())),
        (200, Some("7"))
    );
}

fn by_completion(w: &World) {
    let reply = w.envoy().case("reply-pending", "/");
    assert_eq!(
        (reply.status, reply.text().as_str(), reply.field("x-why")),
        (403, "later", Some("later"))
    );
}

fn to_head(w: &World) {
    let mut client = w.envoy().connect("script");
    let reply = client.request("HEAD", "/", "x-case: reply-headers\r\n", b"");
    assert_eq!(
        (reply.status, reply.field("content-length")),
        (418, Some("15"))
    );
    assert_eq!(client.get("/").status, 200);
}

fn streamed(w: &World) {
    let reply = w.envoy().case("reply-stream", "/");
    assert_eq!((reply.status, reply.field("x-why")), (200, Some("stream")));
    let want: String = ('a'..='e').map(|c| c.to_string().repeat(1000)).collect();
    assert_eq!(reply.text(), want);
}

/// Envoy takes no second head: the reply is sent when all of it is here, and is kept until then within bounds.
fn streamed_begun(w: &World) {
    let envoy = w.envoy();
    let reply = envoy.case("reply-stream-begun", "/bytes-100000");
    assert_eq!((reply.status, reply.field("x-why")), (200, Some("begun")));
    assert_eq!(reply.field("content-length"), Some("5000"));
    let want: String = ('a'..='e').map(|c| c.to_string().repeat(1000)).collect();
    assert_eq!(reply.text(), want);
    assert!(reply.trailers.is_empty());
    let mut client = envoy.connect("script");
    client.send(
        "GET /bytes-100000 HTTP/1.1\r\nhost: test\r\nx-case: reply-stream-begun-large\r\n\r\n",
    );
    assert!(client.rest().is_empty());
    envoy.wait_for_log("a reply is too long");
    let written = w.record("reply-stream-begun-large").calls("written", 1);
    assert_eq!(written[0]["status"], proxy_golang_abi::Status::STALE.0);
}

/// 4 MB to a client that does not read at first: `apply` says FULL, and nothing is lost.
fn streamed_slowly(w: &World) {
    let mut client = w.envoy().connect("script");
    client.send("GET / HTTP/1.1\r\nhost: test\r\nx-case: reply-stream-large\r\n\r\n");
    let head = client.line();
    assert!(head.contains("200"), "{head}");
    w.record("reply-stream-large").calls("full", 1);
    while !client.line().is_empty() {}
    let mut n = 0;
    loop {
        let chunk = client.chunk();
        if chunk.is_empty() {
            break;
        }
        n += chunk.len();
    }
    assert_eq!(n, 4_000_000);
    let written = w.record("reply-stream-large").calls("written", 1);
    assert!(
        written[0]["full"].as_u64().unwrap() > 0,
        "never FULL: {written:?}"
    );
}

fn streamed_to_nobody(w: &World) {
    let envoy = w.envoy();
    let mut client = envoy.connect("slow");
    client.send("GET / HTTP/1.1\r\nhost: test\r\nx-case: reply-stream-abort\r\n\r\n");
    client.line();
    // It reads no more. What Envoy keeps for it grows until the writer is held back: of the gigabyte little is taken but
    // what fits into sockets.
    let record = w.record("reply-stream-abort");
    record.calls("full", 1);
    let kept = || {
        // Turns of the workers lie between two looks.
        (0..4).for_each(|_| assert_eq!(envoy.connect("script").get("/").status, 200));
        envoy.stat("http.slow.downstream_cx_tx_bytes_buffered")
    };
    until("it grows no more", || {
        let first = kept();
        first > 0 && (0..5).all(|_| kept() == first)
    });
    drop(client);
    let written = record.calls("written", 1);
    let sent = written[0]["sent"].as_u64().unwrap();
    assert!(
        sent < 24 << 20,
        "{sent} bytes were taken for a client that does not read"
    );
    assert_eq!(written[0]["status"], proxy_golang_abi::Status::STALE.0);
}

/// Who sees what of a reply, by 5.6 and the features of this host.
fn chain(w: &World) {
    let envoy = w.envoy();
    let seen = |listener: &str, case: &str| {
        let reply =
            envoy
                .connect(listener)
                .request("GET", "/", &format!("x-case: {case}\r\n"), b"");
        assert_eq!((reply.status, reply.text().as_str()), (403, "no"));
        ["x-first", "x-middle", "x-last"].map(|name| reply.field(name).is_some())
    };
    // Without REPLY_REFILTER nobody sees it.
    assert_eq!(seen("reply-chain", "chain-reply"), [false; 3]);
    // The one behind has seen the upstream's response, which is discarded.
    assert_eq!(seen("reply-chain", "chain-response"), [false; 3]);
    // With it those between the replying one and the client do.
    assert_eq!(seen("reply-inside", "chain-reply"), [true, false, false]);
    assert_eq!(seen("reply-inside", "chain-response"), [true, false, false]);
}

fn resets(w: &World) {
    for case in ["reply-reset", "reply-reset-response"] {
        let mut client = w.envoy().connect("script");
        client.send(format!(
            "GET / HTTP/1.1\r\nhost: test\r\nx-case: {case}\r\n\r\n"
        ));
        let rest = client.rest();
        assert!(
            rest.is_empty(),
            "{case}: {:?}",
            String::from_utf8_lossy(&rest)
        );
    }
}

fn example(w: &World) {
    let envoy = w.envoy();
    let reply = envoy.connect("c").request(
        "GET",
        "/policy/orders",
        "x-debug: 1\r\nx-plan: free\r\n",
        b"",
    );
    assert_eq!(reply.field("x-frame-options"), Some("DENY"));
    let mirror = reply.json();
    assert!(phases::seen(&mirror, "x-debug").is_empty());
    assert_eq!(phases::seen(&mirror, "x-plan"), ["gold"]);
    assert_eq!(envoy.connect("c").get("/policy/private/keys").status, 403);
}
