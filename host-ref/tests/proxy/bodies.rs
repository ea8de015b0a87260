//! Bodies through the host without filters: lengths, chunks, trailers, back-pressure, size limits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::support::{Client, Host, Upstream, seen, to_app};

#[test]
fn both_framings_arrive_whole_at_every_size() {
    let upstream = Upstream::mirror();
    let host = Host::start(&to_app(&[upstream.address]));
    let mut client = host.connect();
    for size in [1, 2, 1000, 16 << 10, 64 << 10, 1 << 20] {
        let body = "x".repeat(size);
        let mirror = client.request("POST", "/", "", body.as_bytes()).json();
        assert_eq!(
            (&mirror["length"], seen(&mirror, "content-length")),
            (&size.into(), vec![&*size.to_string()])
        );
        client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
        for piece in body.as_bytes().chunks(1 + size / 3) {
            client.send(format!("{:x}\r\n", piece.len()));
            client.send(piece);
            client.send("\r\n");
        }
        client.send("0\r\n\r\n");
        let mirror = client.reply().json();
        assert_eq!(
            (&mirror["length"], seen(&mirror, "transfer-encoding")),
            (&size.into(), vec!["chunked"])
        );
    }
}

#[test]
fn a_get_with_a_chunked_body_keeps_it() {
    let upstream = Upstream::mirror();
    let host = Host::start(&to_app(&[upstream.address]));
    let mut client = host.connect();
    client.send(
        "GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    );
    assert_eq!(client.reply().json()["body"], "abc");
}

#[test]
fn chunks_leave_as_they_come() {
    let (go, next) = mpsc::channel::<()>();
    let next = std::sync::Mutex::new(next);
    let upstream = Upstream::raw(move |mut connection, _| {
        connection.read_request();
        connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        for i in 0..5 {
            connection.send(format!("1\r\n{i}\r\n"));
            next.lock().unwrap().recv().unwrap();
        }
        connection.send("0\r\n\r\n");
        connection.rest();
    });
    let host = Host::start(&to_app(&[upstream.address]));
    let mut client = host.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(client.head().field("transfer-encoding"), Some("chunked"));
    for i in 0..5 {
        // The next one is sent only when this one has arrived.
        assert_eq!(client.chunk(), i.to_string().as_bytes());
        go.send(()).unwrap();
    }
    assert_eq!(client.chunk(), b"");
}

#[test]
fn trailers_go_both_ways_over_http1() {
    let upstream = Upstream::raw(|mut connection, _| {
        let (_, request) = connection.read_request();
        assert_eq!(request.field("trailer"), Some("x-sum"));
        assert_eq!(request.field("te"), Some("trailers"));
        assert_eq!(request.trailers, [("x-sum".to_owned(), "1".to_owned())]);
        connection.send(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 2\r\n\r\n",
        );
        connection.rest();
    });
    let host = Host::start(&to_app(&[upstream.address]));
    let mut client = host.connect();
    client.send(
        "POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\ntransfer-encoding: chunked\r\n\
         trailer: x-sum\r\n\r\n1\r\na\r\n0\r\nx-sum: 1\r\n\r\n",
    );
    let reply = client.reply();
    assert_eq!(reply.trailers, [("x-sum".to_owned(), "2".to_owned())]);
}

#[test]
fn a_response_without_length_ends_with_its_connection() {
    let upstream = Upstream::raw(|mut connection, _| {
        connection.read_request();
        connection.send("HTTP/1.1 200 OK\r\n\r\nuntil the end");
    });
    let host = Host::start(&to_app(&[upstream.address]));
    let mut client = host.connect();
    for _ in 0..2 {
        let reply = client.get("/");
        assert_eq!(
            (reply.text().as_str(), reply.chunked),
            ("until the end", true)
        );
    }
}

/// How much can be under way between two sockets of this machine and in the host: far less than what is sent.
const UNDER_WAY: u64 = 24 << 20;
const LARGE: u64 = 256 << 20;

#[test]
fn a_client_that_does_not_read_holds_back_the_upstream() {
    let sent = Arc::<AtomicU64>::default();
    let counter = Arc::clone(&sent);
    let upstream = Upstream::raw(move |mut connection, _| {
        use std::io::Write;
        connection.read_request();
        connection.send(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n"
        ));
        let piece = vec![b'x'; 64 << 10];
        while connection.stream.write_all(&piece).is_ok() {
            counter.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
    });
    let host = Host::start(&to_app(&[upstream.address]));
    let mut client = host.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    client.head();
    let stopped = stops(&sent);
    assert!(
        stopped < UNDER_WAY,
        "{stopped} bytes were taken from the upstream"
    );
    let memory = host.memory();
    // Reading goes on where it stopped.
    client.exact(32 << 20);
    crate::support::until("the upstream sends on", || {
        sent.load(Ordering::SeqCst) > stopped
    });
    assert!(
        host.memory() < memory + (16 << 20),
        "{} after {memory}",
        host.memory()
    );
}

#[test]
fn an_upstream_that_does_not_read_holds_back_the_client() {
    let (hold, held) = mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let upstream = Upstream::raw(move |mut connection, _| {
        connection.line();
        let _ = held.lock().unwrap().recv();
        let _ = connection.exact(1 << 20);
    });
    let host = Host::start(&to_app(&[upstream.address]));
    let client = host.connect();
    let sent = Arc::<AtomicU64>::default();
    let (counter, mut stream) = (Arc::clone(&sent), client.stream.try_clone().unwrap());
    let writer = std::thread::spawn(move || {
        use std::io::Write;
        write!(
            stream,
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {LARGE}\r\n\r\n"
        )
        .unwrap();
        let piece = vec![b'x'; 64 << 10];
        while stream.write_all(&piece).is_ok() {
            counter.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
    });
    let stopped = stops(&sent);
    assert!(
        stopped < UNDER_WAY,
        "{stopped} bytes were taken from the client"
    );
    client.stream.shutdown(std::net::Shutdown::Both).unwrap();
    writer.join().unwrap();
    drop(hold);
}

/// Waits until a counter has begun and does not move any more.
fn stops(counter: &AtomicU64) -> u64 {
    let mut last = 0;
    crate::support::until("the sender is held back", || {
        std::thread::sleep(Duration::from_millis(300));
        let now = counter.load(Ordering::SeqCst);
        now > 0 && std::mem::replace(&mut last, now) == now
    });
    last
}

#[test]
fn a_body_over_the_routes_limit_is_413() {
    let upstream = Upstream::mirror();
    let config = to_app(&[upstream.address]).replace(
        "cluster = \"app\" }]",
        "cluster = \"app\", max_request_body = \"1KiB\" }]",
    );
    let host = Host::start(&config);
    let mut client = host.connect();
    assert_eq!(client.request("POST", "/", "", &[b'x'; 1024]).status, 200);
    // Announced: refused before a byte of it is read.
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1025\r\n\r\n");
    assert_eq!(client.reply().status, 413);
    // Not announced: refused when it has become too long.
    let mut client = host.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    client.send(format!("401\r\n{}\r\n", "x".repeat(1025)));
    assert_eq!(client.reply().status, 413);
    let line = host.access(|l| l["request_end"] == "too_large");
    assert_eq!(line["details"], "host.request_too_large");
}

#[test]
fn a_response_may_come_before_the_request_has_ended() {
    let upstream = Upstream::raw(|mut connection: Client, _| {
        let line = connection.line();
        assert!(line.starts_with("POST"));
        connection.send("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno");
        connection.rest();
    });
    let host = Host::start(&to_app(&[upstream.address]));
    let mut client = host.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10000000\r\n\r\nbegin");
    let reply = client.reply();
    assert_eq!((reply.status, reply.text().as_str()), (403, "no"));
}
