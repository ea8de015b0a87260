//! The example's filters, run without a proxy.

use body_rewrite::PXG_LIBRARY;
use proxy_golang_guest::testing::{End, Message, TestHost, get, request, response};
use proxy_golang_guest::{Feature, Phase, Status};

const SEEDS: std::ops::Range<u64> = 0..32;

const RULES: &str = r#"{"replace": [{"from": "cat", "to": "tiger"}, {"from": "category", "to": "class"}, {"from": "<b>", "to": ""}]}"#;

fn html(body: &str) -> Message {
    response(200)
        .header("content-type", "text/html; charset=utf-8")
        .header("content-length", body.len().to_string())
        .header("etag", "\"1\"")
        .body(body)
}

#[test]
fn a_response_is_rewritten_and_its_digests_go() {
    for seed in SEEDS {
        let host = TestHost::new(&PXG_LIBRARY).seed(seed);
        let config = host.configure("body-rewrite", RULES).unwrap();
        let done = config.exchange(
            get("/").header("accept-encoding", "br"),
            html("a <b>cat and a category").trailer("x-sum", "1"),
        );
        assert_eq!(done.upstream().get("accept-encoding"), None);
        let got = done.client();
        assert_eq!(got.text(), "a tiger and a tigeregory");
        assert_eq!(got.get("content-length"), Some("24"));
        assert_eq!(got.get("etag"), None);
        assert_eq!(got.get_trailer("x-sum"), Some("1"));
        assert_eq!(host.metric("body_rewrite_bodies"), Some(1));
    }
}

#[test]
fn what_is_not_to_be_rewritten_passes_untouched() {
    let host = TestHost::new(&PXG_LIBRARY);
    let config = host.configure("body-rewrite", RULES).unwrap();
    let binary = response(200)
        .header("content-type", "image/png")
        .header("etag", "\"1\"")
        .body("cat");
    let encoded = html("cat").header("content-encoding", "gzip");
    let partial = response(206)
        .header("content-type", "text/html")
        .body("cat");
    let untyped = response(200).body("cat");
    let unmatched = html("no such animal");
    for message in [binary, encoded, partial, untyped, unmatched] {
        let done = config.exchange(
            request("POST", "/")
                .header("content-type", "text/plain")
                .body("cat"),
            message.clone(),
        );
        assert_eq!(done.client(), &message);
        assert_eq!(
            done.upstream().text(),
            "cat",
            "requests are not rewritten unless asked for"
        );
    }
    assert_eq!(host.metric("body_rewrite_bodies"), Some(0));
}

#[test]
fn requests_and_both() {
    for seed in SEEDS {
        let host = TestHost::new(&PXG_LIBRARY).seed(seed);
        for (direction, up, down) in [
            ("request", "tiger", "cat"),
            ("response", "cat", "tiger"),
            ("both", "tiger", "tiger"),
        ] {
            let rules = format!(
                r#"{{"direction": "{direction}", "replace": [{{"from": "cat", "to": "tiger"}}]}}"#
            );
            let config = host.configure("body-rewrite", rules).unwrap();
            let done = config.exchange(
                request("PUT", "/")
                    .header("content-type", "application/json")
                    .body("cat"),
                html("cat"),
            );
            assert_eq!(
                (
                    done.upstream().text().as_str(),
                    done.client().text().as_str()
                ),
                (up, down),
                "{direction}"
            );
        }
    }
}

#[test]
fn bodies_over_the_limit_pass_or_fail_as_configured() {
    let long = "cat ".repeat(3000);
    for seed in SEEDS {
        let host = TestHost::new(&PXG_LIBRARY).seed(seed);
        let config = |over: &str| {
            let rules = format!(
                r#"{{"direction": "both", "max_body": 1000, "over_limit": "{over}", "replace": [{{"from": "cat", "to": "dog"}}]}}"#
            );
            host.configure("body-rewrite", rules).unwrap()
        };
        let post = |body: &str| {
            request("POST", "/")
                .header("content-type", "text/plain")
                .body(body)
        };

        let pass = config("pass");
        let done = pass.exchange(post(&long), html(&long));
        assert_eq!(done.upstream().text(), long);
        assert_eq!(done.client().text(), long);
        assert_eq!(done.client().get("etag"), Some("\"1\""));

        let fail = config("fail");
        let done = fail.exchange(post(&long), html("cat"));
        assert_eq!((done.end(), done.client().status()), (&End::Replied, 413));
        let done = fail.exchange(post("cat"), html(&long));
        assert_eq!((done.end(), done.client().status()), (&End::Replied, 502));
        let done = fail.exchange(post("cat"), html(&"cat ".repeat(250)));
        assert_eq!(
            done.client().text(),
            "dog ".repeat(250),
            "1000 bytes are within the limit"
        );
    }
}

#[test]
fn bad_configurations_are_refused() {
    let host = TestHost::new(&PXG_LIBRARY);
    for (config, want) in [
        ("", "EOF while parsing"),
        (
            r#"{"replace": [], "replace_all": true}"#,
            "unknown field `replace_all`",
        ),
        (r#"{"replace": []}"#, "expected at least one"),
        (
            r#"{"replace": [{"from": "", "to": "x"}]}"#,
            "replace[0].from is empty",
        ),
        (
            r#"{"replace": [{"from": "x", "to": "y"}], "direction": "up"}"#,
            "unknown variant `up`",
        ),
        ("{\n  \"replace\": 7\n}", "line 2 column"),
    ] {
        let refused = host.configure("body-rewrite", config).unwrap_err();
        assert_eq!(refused.status, Status::ARG);
        assert!(refused.text.contains(want), "{config}: {refused}");
    }
    assert!(
        host.configure("body-count", "x")
            .unwrap_err()
            .text
            .contains("takes none")
    );
    let host = TestHost::without(&PXG_LIBRARY, &[Feature::BODY_WHOLE_RESPONSE]);
    let refused = host.configure("body-rewrite", RULES).unwrap_err();
    assert!(refused.text.contains("BODY_WHOLE_RESPONSE"), "{refused}");
}

#[test]
fn bytes_are_counted_in_trailers_and_metrics() {
    for seed in SEEDS {
        let host = TestHost::new(&PXG_LIBRARY).seed(seed);
        let config = host.configure("body-count", "").unwrap();
        let done = config.exchange(
            request("POST", "/").body("12345"),
            response(200).body("x".repeat(777)),
        );
        assert_eq!(done.client().get_trailer("x-body-bytes"), Some("777"));
        let done = config.exchange(get("/"), response(200).body("xyz").trailer("x-sum", "1"));
        assert_eq!(done.client().get_trailer("x-body-bytes"), Some("3"));
        assert_eq!(done.client().get_trailer("x-sum"), Some("1"));
        assert_eq!(host.metric("body_request_bytes"), Some(5));
        assert_eq!(host.metric("body_response_bytes"), Some(780));
    }
    let host = TestHost::without(&PXG_LIBRARY, &[Feature::TRAILERS_OUT_RESPONSE]);
    let config = host.configure("body-count", "").unwrap();
    assert!(!config.subscribes(Phase::RESPONSE_TRAILERS));
    let done = config.exchange(get("/"), response(200).body("xyz").trailer("x-sum", "1"));
    assert_eq!(done.client().get_trailer("x-body-bytes"), None);
}

#[test]
fn a_request_waits_for_the_one_that_releases_it() {
    let host = TestHost::new(&PXG_LIBRARY);
    let config = host.configure("async-echo", "").unwrap();
    std::thread::scope(|s| {
        let waiting =
            s.spawn(|| config.exchange(get("/waits").header("x-wait-for", "k1"), response(204)));
        let released = config.exchange(get("/releases").header("x-release", "k1"), response(204));
        assert_eq!(released.upstream().get("x-released-by"), None);
        let waited = waiting.join().unwrap();
        assert_eq!(waited.upstream().get("x-released-by"), Some("/releases"));
    });
    // Already released: still decided on another thread.
    let done = config.exchange(get("/late").header("x-wait-for", "k1"), response(204));
    assert_eq!(done.upstream().get("x-released-by"), Some("/releases"));
    // Nobody releases it, and the client goes away.
    let config = host.configure("async-echo", "").unwrap().kill_at(Some(1));
    let done = config.exchange(get("/never").header("x-wait-for", "k2"), response(204));
    assert_eq!(done.end(), &End::Cancelled);
}

#[test]
fn the_benchmark_filter_does_what_its_c_twin_does() {
    let host = TestHost::new(&PXG_LIBRARY);
    let config = host.configure("bench-headers", "").unwrap();
    let done = config.exchange(
        get("/")
            .header("x-request-id", "7")
            .header("user-agent", "test"),
        response(204),
    );
    let got = done.upstream();
    assert_eq!(
        (
            got.get("x-seen-id"),
            got.get("x-size"),
            got.get("user-agent")
        ),
        (Some("7"), Some("small"), None)
    );
}
