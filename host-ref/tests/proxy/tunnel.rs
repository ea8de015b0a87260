//! Upgraded connections.

use std::net::Shutdown;

use crate::support::{Host, Upstream, to_app, with_c_filter};

const UPGRADE: &str =
    "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: raw-echo\r\n\r\n";
const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: raw-echo\r\n\r\nhello";

#[test]
fn an_upgraded_connection_passes_bytes_both_ways_untouched() {
    let upstream = Upstream::raw(|mut connection, _| {
        let (line, head) = connection.read_request();
        assert_eq!(line, "GET /chat HTTP/1.1");
        assert_eq!(head.field("upgrade"), Some("raw-echo"));
        assert_eq!(head.field("connection"), Some("upgrade"));
        // The first bytes come with the head.
        connection.send(SWITCH);
        let ping = connection.exact(4);
        connection.send(ping);
        assert!(connection.is_closed());
    });
    let host = Host::start(&to_app(&[upstream.address]));
    let mut client = host.connect();
    client.send(UPGRADE);
    let reply = client.head();
    assert_eq!(
        (reply.status, reply.field("upgrade")),
        (101, Some("raw-echo"))
    );
    assert_eq!(client.exact(5), b"hello");
    client.send(b"\x00\xff\r\n");
    assert_eq!(client.exact(4), b"\x00\xff\r\n");
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert!(client.is_closed());
    let line = host.access(|l| l["path"] == "/chat");
    assert_eq!(
        (
            &line["status"],
            &line["request_bytes"],
            &line["response_bytes"]
        ),
        (&101.into(), &4.into(), &9.into())
    );
}

/// A site with the filter that says what its LOG event tells.
fn logged(upstream: &Upstream) -> Host {
    Host::start(&with_c_filter("log_event", &to_app(&[upstream.address])))
}

#[test]
fn log_comes_when_the_tunnel_ends() {
    let upstream = Upstream::raw(|mut connection, _| {
        connection.read_request();
        connection.send(SWITCH);
        let ping = connection.exact(4);
        connection.send(ping);
        assert!(connection.is_closed());
    });
    let host = logged(&upstream);
    let mut client = host.connect();
    client.send(UPGRADE);
    assert_eq!(client.head().status, 101);
    assert_eq!(client.exact(5), b"hello");
    client.send(b"ping");
    assert_eq!(client.exact(4), b"ping");
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert!(client.is_closed());
    host.wait_for_log("flags upgraded=1 end=1");
    // What passed through the tunnel is counted, and both directions came to their end.
    host.wait_for_log("LOG arg=0x");
    let log = host.log();
    let line = log.lines().find(|l| l.contains("LOG arg=")).unwrap();
    assert!(line.contains("request=4 response=9"), "{line}");
    assert_eq!(log.matches("LOG arg=").count(), 1, "{log}");
}

#[test]
fn a_filter_sees_an_upgrade_that_breaks() {
    let upstream = Upstream::raw(|mut connection, _| {
        connection.read_request();
        connection.send(SWITCH);
        connection.exact(4);
    });
    let host = logged(&upstream);
    let mut client = host.connect();
    client.send(UPGRADE);
    assert_eq!(client.head().status, 101);
    client.send(b"ping");
    assert_eq!(client.exact(5), b"hello");
    assert!(client.is_closed());
    drop(client);
    host.wait_for_log("LOG arg=0x");
    assert_eq!(host.log().matches("LOG arg=").count(), 1);
}

#[test]
fn an_upgrade_that_is_refused_is_an_ordinary_response() {
    let upstream = Upstream::mirror();
    let host = Host::start(&to_app(&[upstream.address]));
    let mut client = host.connect();
    let reply = client.request(
        "GET",
        "/",
        "connection: upgrade\r\nupgrade: websocket\r\n",
        b"",
    );
    assert_eq!(reply.status, 200);
    assert_eq!(client.get("/again").status, 200);
}
