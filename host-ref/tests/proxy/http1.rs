//! HTTP/1.1 with clients: connections, framing, hop-by-hop fields, Expect, HEAD.

use std::sync::mpsc;

use crate::support::{Client, Host, Upstream, seen, to_app};

fn host() -> (Host, Upstream) {
    let upstream = Upstream::mirror();
    (Host::start(&to_app(&[upstream.address])), upstream)
}

#[test]
fn one_connection_carries_many_requests_and_upstream_connections_are_kept() {
    let (host, upstream) = host();
    let mut client = host.connect();
    for i in 0..20 {
        let reply = client.get(&format!("/{i}"));
        assert_eq!(
            (reply.status, &reply.json()["path"]),
            (200, &format!("/{i}").into())
        );
    }
    assert_eq!((upstream.count(), upstream.connection_count()), (20, 1));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (host, _upstream) = host();
    let mut client = host.connect();
    let requests: String = (0..10)
        .map(|i| format!("GET /{i} HTTP/1.1\r\nhost: test\r\n\r\n"))
        .collect();
    client.send(requests);
    for i in 0..10 {
        assert_eq!(client.reply().json()["path"], format!("/{i}"));
    }
}

#[test]
fn connection_close_is_obeyed() {
    let (host, _upstream) = host();
    let mut client = host.connect();
    let reply = client.request("GET", "/", "connection: close\r\n", b"");
    assert_eq!(reply.status, 200);
    assert!(client.is_closed());
}

#[test]
fn http_1_0_gets_a_response_and_the_end() {
    let (host, _upstream) = host();
    let mut client = host.connect();
    client.send("GET /old HTTP/1.0\r\n\r\n");
    let reply = client.reply();
    assert_eq!(reply.json()["path"], "/old");
    assert!(client.is_closed());
}

#[test]
fn fields_of_one_connection_stay_on_it() {
    let (host, _upstream) = host();
    let fields = "connection: x-private, keep-alive\r\nx-private: 1\r\nkeep-alive: 3\r\nproxy-connection: x\r\n\
                  te: gzip\r\nx-public: 2\r\n";
    let mirror = host.connect().request("GET", "/", fields, b"").json();
    for name in [
        "connection",
        "x-private",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
    ] {
        assert_eq!(seen(&mirror, name), [""; 0], "{name}");
    }
    assert_eq!(seen(&mirror, "x-public"), ["2"]);
}

#[test]
fn upstream_learns_who_asked() {
    let (host, _upstream) = host();
    let fields =
        "x-forwarded-for: 192.0.2.7\r\nx-forwarded-for: 192.0.2.8\r\nx-forwarded-proto: https\r\n";
    let mirror = host.connect().request("GET", "/", fields, b"").json();
    assert_eq!(
        seen(&mirror, "x-forwarded-for"),
        ["192.0.2.7, 192.0.2.8, 127.0.0.1"]
    );
    assert_eq!(seen(&mirror, "x-forwarded-proto"), ["http"]);
    assert_eq!(seen(&mirror, "x-forwarded-host"), ["test"]);
    assert_eq!(seen(&mirror, "x-request-id")[0].len(), 32);
    assert_eq!(seen(&mirror, "host"), ["test"]);
}

#[test]
fn contradictory_framing_is_refused_and_reaches_nobody() {
    let (host, upstream) = host();
    let corpus: &[&str] = &[
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nX",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n0\r\n\r\nX",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nXX",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1, 2\r\n\r\nXX",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\nX",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n y: obsolete folding\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\ncontent-length : 1\r\n\r\nX",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
        "GET /../x HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: nul\0\r\n\r\n",
    ];
    for bytes in corpus {
        let mut client = host.connect();
        client.send(bytes);
        let reply = client.reply();
        assert_eq!(reply.status, 400, "{bytes:?}");
        assert!(client.is_closed() || bytes.starts_with("GET"), "{bytes:?}");
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_chunked_request_after_another_is_no_conflict() {
    let (host, _upstream) = host();
    let mut client = host.connect();
    for _ in 0..3 {
        client.send(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n11\r\ncontent-length: 5\r\n0\r\n\r\n"
                .replace("5\r\n0", "5\r\n\r\n0")
                .replace("11\r\n", "13\r\n"),
        );
        assert_eq!(client.reply().json()["body"], "content-length: 5\r\n");
        assert_eq!(
            client.request("POST", "/", "", b"abc").json()["body"],
            "abc"
        );
    }
}

#[test]
fn connect_is_refused() {
    let (host, upstream) = host();
    let mut client = host.connect();
    client.send("CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n");
    assert_eq!(client.reply().status, 405);
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_head_section_over_the_limit_is_431() {
    let (host, _upstream) = host();
    let mut client = host.connect();
    client.send(format!(
        "GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
        "y".repeat(70 << 10)
    ));
    assert_eq!(client.reply().status, 431);
}

#[test]
fn a_slow_head_ends_its_connection() {
    let upstream = Upstream::mirror();
    let config = format!(
        "{}limits = {{ header_timeout = \"100ms\", idle_timeout = \"60s\" }}\n{}",
        crate::support::HEAD,
        to_app(&[upstream.address])
    );
    let host = Host::start_with(&config);
    let mut client = host.connect();
    client.send("GET / HTTP/1.1\r\nho");
    assert!(client.is_closed());
    // One that has not begun another request is only idle.
    let mut client = host.connect();
    assert_eq!(client.get("/").status, 200);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(client.get("/").status, 200);
}

#[test]
fn an_idle_connection_ends() {
    let upstream = Upstream::mirror();
    let config = format!(
        "{}limits = {{ idle_timeout = \"100ms\" }}\n{}",
        crate::support::HEAD,
        to_app(&[upstream.address])
    );
    let host = Host::start_with(&config);
    let mut client = host.connect();
    assert_eq!(client.get("/").status, 200);
    assert!(client.is_closed());
}

#[test]
fn the_client_is_told_to_continue_only_when_the_body_is_wanted() {
    let (host, _upstream) = host();
    let mut client = host.connect();
    client.send("POST /x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n");
    assert_eq!(client.head().status, 100);
    client.send("abc");
    let mirror = client.reply().json();
    assert_eq!(mirror["body"], "abc");
    assert_eq!(seen(&mirror, "expect"), [""; 0]);
    // Refused by its head: no 100, and the body is not waited for.
    let mut client = host.connect();
    client.send(
        "POST /../x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n",
    );
    assert_eq!(client.reply().status, 400);
}

#[test]
fn responses_without_body_keep_their_fields() {
    let upstream = Upstream::raw(|mut connection: Client, _| {
        loop {
            let (line, _) = connection.read_request();
            let path = line.split(' ').nth(1).unwrap();
            connection.send(match path {
                "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                "/304" => "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
                _ if line.starts_with("HEAD") => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
                "/end" => return,
                _ => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n12345",
            });
        }
    });
    let host = Host::start(&to_app(&[upstream.address]));
    let mut client = host.connect();
    let reply = client.request("HEAD", "/", "", b"");
    assert_eq!(
        (reply.status, reply.field("content-length")),
        (200, Some("5"))
    );
    let reply = client.get("/204");
    assert_eq!((reply.status, reply.field("content-length")), (204, None));
    let reply = client.get("/304");
    assert_eq!((reply.status, reply.body.len()), (304, 0));
    // The connection is where it should be: the next response is whole.
    assert_eq!(client.get("/").text(), "12345");
}

#[test]
fn absolute_targets_name_the_host() {
    let (host, _upstream) = host();
    let mut client = host.connect();
    client.send("GET http://other.test:81/p?q HTTP/1.1\r\nhost: test\r\n\r\n");
    let mirror = client.reply().json();
    assert_eq!(
        (&mirror["path"], seen(&mirror, "host")),
        (&"/p?q".into(), vec!["other.test:81"])
    );
}

#[test]
fn informational_responses_do_not_confuse() {
    let (sent, seen) = mpsc::channel();
    let sent = std::sync::Mutex::new(sent);
    let upstream = Upstream::raw(move |mut connection: Client, _| {
        connection.read_request();
        connection.send("HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n");
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        sent.lock().unwrap().send(()).unwrap();
        connection.rest();
    });
    let host = Host::start(&to_app(&[upstream.address]));
    let reply = host.get("/");
    assert_eq!((reply.status, reply.text().as_str()), (200, "ok"));
    seen.recv().unwrap();
}
