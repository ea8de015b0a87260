//! What goes wrong around the host: upstreams and clients that die, are slow, or are not there.

use std::net::TcpListener;
use std::sync::mpsc;

use crate::support::{Client, Host, Upstream, to_app, until};

/// An address where nobody listens.
fn nobody() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

#[test]
fn an_upstream_that_is_down_is_503() {
    let host = Host::start(&to_app(&[nobody()]));
    let reply = host.get("/");
    assert_eq!(
        (reply.status, reply.text().as_str()),
        (503, "503 Service Unavailable\n")
    );
    let line = host.access(|l| l["status"] == 503);
    assert_eq!(line["details"], "host.upstream_connect_failure");
    host.wait_for_log("cannot connect to upstream");
}

#[test]
fn another_endpoint_takes_over_from_one_that_is_down() {
    let upstream = Upstream::mirror();
    let host = Host::start(&to_app(&[nobody(), upstream.address]));
    let mut client = host.connect();
    for _ in 0..10 {
        assert_eq!(client.get("/").status, 200);
    }
    assert!(
        host.metric(&format!(
            "pxg_upstream_connects_total{{cluster=\"app\",endpoint=\"{}\"}}",
            upstream.address
        )) > 0
    );
}

#[test]
fn an_upstream_that_breaks_before_its_head_is_502() {
    let upstream = Upstream::raw(|mut connection, _| drop(connection.read_request()));
    let host = Host::start(&to_app(&[upstream.address]));
    assert_eq!(host.get("/").status, 502);
    assert_eq!(
        host.access(|l| l["status"] == 502)["details"],
        "host.upstream_reset"
    );
    assert_eq!(
        upstream.connection_count(),
        1,
        "a fresh connection that breaks is not tried again"
    );
}

#[test]
fn an_upstream_that_speaks_nonsense_is_502() {
    let upstream = Upstream::raw(|mut connection, _| {
        connection.read_request();
        connection.send("220 smtp.example ready\r\n\r\n");
        connection.rest();
    });
    let host = Host::start(&to_app(&[upstream.address]));
    assert_eq!(host.get("/").status, 502);
    assert_eq!(
        host.access(|l| l["status"] == 502)["details"],
        "host.upstream_protocol_error"
    );
}

/// Answers the first request of each connection, and closes at the second.
fn closes_when_used_again() -> Upstream {
    Upstream::raw(|mut connection, _| {
        connection.read_request();
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        connection.line();
    })
}

#[test]
fn a_kept_connection_that_was_dead_costs_no_request() {
    let upstream = closes_when_used_again();
    let host = Host::start(&to_app(&[upstream.address]));
    let mut client = host.connect();
    for _ in 0..5 {
        assert_eq!(client.get("/").status, 200);
    }
    // What may have had an effect is not sent twice.
    assert_eq!(client.request("POST", "/", "", b"once").status, 502);
}

#[test]
fn a_response_that_breaks_off_is_not_made_whole() {
    let upstream = Upstream::raw(|mut connection, _| {
        let (line, _) = connection.read_request();
        if line.contains("/chunked") {
            connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n");
        } else {
            connection.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart");
        }
    });
    let host = Host::start(&to_app(&[upstream.address]));
    for path in ["/chunked", "/length"] {
        let mut client = host.connect();
        client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"));
        assert_eq!(client.head().status, 200);
        let rest = String::from_utf8(client.rest()).unwrap();
        assert!(
            rest.contains("part") && !rest.contains("0\r\n\r\n"),
            "{rest:?}"
        );
        let line = host.access(|l| l["path"] == path);
        assert_eq!(line["response_end"], "sender_died");
    }
}

#[test]
fn a_client_that_leaves_frees_the_upstream() {
    let (gone, told) = mpsc::channel();
    let gone = std::sync::Mutex::new(gone);
    let upstream = Upstream::raw(move |mut connection, _| {
        connection.read_request();
        assert!(connection.is_closed(), "the host closes it");
        gone.lock().unwrap().send(()).unwrap();
    });
    let host = Host::start(&to_app(&[upstream.address]));
    let mut client = host.connect();
    client.send("GET /left HTTP/1.1\r\nhost: a\r\n\r\n");
    until("the upstream has the request", || {
        upstream.connection_count() == 1
    });
    drop(client);
    told.recv_timeout(crate::support::PATIENCE).unwrap();
    let line = host.access(|l| l["path"] == "/left");
    assert_eq!(line["status"], 0);
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_body() {
    let (seen, told) = mpsc::channel();
    let seen = std::sync::Mutex::new(seen);
    let upstream = Upstream::raw(move |mut connection, _| {
        seen.lock()
            .unwrap()
            .send(String::from_utf8_lossy(&connection.rest()).into_owned())
            .unwrap();
    });
    let host = Host::start(&to_app(&[upstream.address]));
    let mut client = host.connect();
    client.send("POST /cut HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n");
    until("the upstream has the request", || {
        upstream.connection_count() == 1
    });
    drop(client);
    let bytes = told.recv_timeout(crate::support::PATIENCE).unwrap();
    assert!(
        !bytes.ends_with("0\r\n\r\n"),
        "a cut body is not completed: {bytes:?}"
    );
    host.access(|l| l["path"] == "/cut");
}

#[test]
fn a_silent_upstream_is_504() {
    let upstream = Upstream::raw(|mut connection, _| drop(connection.rest()));
    let config = to_app(&[upstream.address]).replace(
        "cluster = \"app\" }]",
        "cluster = \"app\", timeouts = { response_header = \"100ms\" } }]",
    );
    let host = Host::start(&config);
    assert_eq!(host.get("/").status, 504);
    assert_eq!(
        host.access(|l| l["status"] == 504)["details"],
        "host.upstream_timeout"
    );
}

#[test]
fn a_response_that_stalls_is_cut() {
    let stalls = |mut connection: Client, _| {
        connection.read_request();
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart");
        connection.rest();
    };
    for limit in ["idle", "request"] {
        let upstream = Upstream::raw(stalls);
        let config = to_app(&[upstream.address]).replace(
            "cluster = \"app\" }]",
            &format!("cluster = \"app\", timeouts = {{ {limit} = \"100ms\" }} }}]"),
        );
        let host = Host::start(&config);
        let mut client = host.connect();
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(client.head().status, 200);
        assert_eq!(client.rest(), b"part");
        assert_eq!(
            host.access(|l| l["status"] == 200)["response_end"],
            "timeout",
            "{limit}"
        );
    }
}

#[test]
fn connections_over_the_limit_wait() {
    let upstream = Upstream::mirror();
    let config = format!(
        "{}limits = {{ connections = 1 }}\n{}",
        crate::support::HEAD,
        to_app(&[upstream.address])
    );
    let host = Host::start_with(&config.replace("workers = 2", "workers = 1"));
    let mut first = host.connect();
    assert_eq!(first.get("/").status, 200);
    let mut second = host.connect();
    second.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    second
        .stream
        .set_read_timeout(Some(std::time::Duration::from_millis(300)))
        .unwrap();
    let mut byte = [0];
    assert!(
        std::io::Read::read(&mut second.stream, &mut byte).is_err(),
        "served beside the first"
    );
    second
        .stream
        .set_read_timeout(Some(crate::support::PATIENCE))
        .unwrap();
    drop(first);
    assert_eq!(second.reply().status, 200);
}
