//! Reload and drain: what changes, what goes on, what is refused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use crate::support::{Client, HEAD, Host, Upstream, to_app, until, with_c_filter};

fn direct(text: &str) -> String {
    format!(
        "[[virtual_hosts]]\nname = \"all\"\nhosts = [\"*\"]\n\
         routes = [{{ name = \"r\", prefix = \"/\", direct_response = {{ status = 200, body = {text:?} }} }}]\n"
    )
}

#[test]
fn a_new_configuration_serves_also_on_old_connections() {
    let host = Host::start(&direct("one"));
    let mut client = host.connect();
    assert_eq!(client.get("/").text(), "one");
    host.rewrite_config(&format!("{HEAD}{}", direct("two")));
    let reply = host.reload();
    assert_eq!(
        (reply.status, &reply.json()["generation"]),
        (200, &2.into())
    );
    assert_eq!(client.get("/").text(), "two");
    assert_eq!(host.get("/").text(), "two");
    assert_eq!(host.admin("GET", "/config").json()["generation"], 2);
}

#[test]
fn a_bad_configuration_is_refused_with_its_reason_and_the_old_one_serves_on() {
    let host = Host::start(&direct("one"));
    let bad = [
        ("nonsense", "pxg.toml:1:"),
        (
            &format!("{HEAD}{}", direct("x").replace("prefix", "prefx")),
            "did you mean `prefix`?",
        ),
        (
            &format!(
                "{HEAD}{}[[guests]]\nname = \"g\"\npath = \"none.so\"\n",
                direct("x")
            ),
            "guests[0].path",
        ),
        (
            &format!(
                "{}{}",
                HEAD.replace("workers = 2", "workers = 3"),
                direct("x")
            ),
            "workers: this cannot be changed",
        ),
    ];
    for (config, reason) in bad {
        host.rewrite_config(config);
        let reply = host.reload();
        assert_eq!(reply.status, 422, "{config}");
        assert!(
            reply.text().contains(reason),
            "no {reason:?} in {}",
            reply.text()
        );
        assert_eq!(host.get("/").text(), "one");
    }
    assert_eq!(host.metric("pxg_reloads_total{result=\"refused\"}"), 4);
    assert_eq!(host.admin("GET", "/config").json()["generation"], 1);
}

#[test]
fn sighup_reloads() {
    let host = Host::start(&direct("one"));
    host.rewrite_config(&format!("{HEAD}{}", direct("two")));
    host.signal("HUP");
    until("the new configuration serves", || {
        host.get("/").text() == "two"
    });
    host.wait_for_log("configuration reloaded");
}

#[test]
fn a_request_ends_on_the_configuration_that_it_began_with() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::raw(move |mut connection, _| {
        connection.read_request();
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nol");
        let _ = wait.lock().unwrap().recv();
        connection.send("d!");
    });
    let host = Host::start(&to_app(&[upstream.address]));
    let mut client = host.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(client.head().status, 200);
    host.rewrite_config(&format!("{HEAD}{}", direct("new")));
    assert_eq!(host.reload().status, 200);
    go.send(()).unwrap();
    assert_eq!(client.exact(4), b"old!");
    assert_eq!(client.get("/").text(), "new");
}

#[test]
fn listeners_come_and_go() {
    let second = "[[listeners]]\nname = \"second\"\naddress = \"127.0.0.1:0\"\n";
    let host = Host::start(&direct("x"));
    host.rewrite_config(&format!("{HEAD}{second}{}", direct("x")));
    assert_eq!(host.reload().status, 200);
    let listening = host.admin("GET", "/config").json()["listening"].clone();
    assert_eq!(
        listening["main"],
        host.address().to_string(),
        "it keeps its port"
    );
    let address = listening["second"].as_str().unwrap().parse().unwrap();
    let mut client = Client::new(address);
    assert_eq!(client.get("/").text(), "x");
    host.rewrite_config(&format!("{HEAD}{}", direct("x")));
    assert_eq!(host.reload().status, 200);
    assert!(
        client.is_closed(),
        "idle connections of a removed listener end"
    );
    until("nobody listens any more", || {
        std::net::TcpStream::connect(address).is_err()
    });
    assert_eq!(host.get("/").text(), "x");
}

#[test]
fn no_request_fails_while_reloading() {
    let upstream = Upstream::mirror();
    let host = Host::start(&to_app(&[upstream.address]));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|i| {
                let (host, stop) = (&host, &stop);
                scope.spawn(move || {
                    let mut requests = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let mut client = host.connect();
                        for _ in 0..10 {
                            assert_eq!(client.get(&format!("/{i}")).status, 200);
                            requests += 1;
                        }
                    }
                    requests
                })
            })
            .collect();
        for _ in 0..20 {
            assert_eq!(host.reload().status, 200);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(clients.into_iter().map(|c| c.join().unwrap()).sum::<u32>() > 0);
    });
    assert_eq!(host.admin("GET", "/config").json()["generation"], 21);
}

#[test]
fn draining_finishes_what_runs_and_ends_with_0() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::raw(move |mut connection, _| {
        connection.read_request();
        let _ = wait.lock().unwrap().recv();
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    });
    let mut host = Host::start(&to_app(&[upstream.address]));
    let mut idle = host.connect();
    idle.send("GET /idle HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut client = host.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    until("both requests are under way", || {
        upstream.connection_count() == 2
    });
    go.send(()).unwrap();
    idle.stream
        .set_read_timeout(Some(crate::support::PATIENCE))
        .unwrap();
    host.signal("TERM");
    until("the health check says so", || {
        host.admin("GET", "/healthz").status == 503
    });
    until("nobody accepts any more", || {
        std::net::TcpStream::connect(host.address()).is_err()
    });
    assert!(host.is_running());
    drop(go);
    let reply = client.reply();
    assert_eq!((reply.status, reply.text().as_str()), (200, "ok"));
    assert!(client.is_closed());
    assert_eq!(host.wait().code(), Some(0));
}

#[test]
fn a_drain_that_takes_too_long_is_cut() {
    let upstream = Upstream::raw(|mut connection, _| drop(connection.rest()));
    let mut host = Host::start(&format!(
        "{}\n[drain]\ntimeout = \"100ms\"\n",
        to_app(&[upstream.address])
    ));
    let mut client = host.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    until("the request is under way", || {
        upstream.connection_count() == 1
    });
    assert_eq!(host.admin("POST", "/drain").status, 202);
    assert_eq!(host.wait().code(), Some(3));
    assert!(client.is_closed());
    assert_eq!(host.access(|_| true)["response_end"], "cut");
}

#[test]
fn what_still_pends_is_cancelled_then_configurations_go_and_then_workers() {
    let upstream = Upstream::mirror();
    let config = with_c_filter("says_the_end", &to_app(&[upstream.address]));
    let mut host = Host::start(&format!("{config}\n[drain]\ntimeout = \"100ms\"\n"));
    let mut client = host.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    host.wait_for_log("end: pending");
    host.signal("TERM");
    assert_eq!(host.wait().code(), Some(3));
    let log = host.log();
    let mut said: Vec<_> = log
        .lines()
        .filter_map(|l| l.split_once("end: ")?.1.split_whitespace().next())
        .collect();
    said.dedup(); // there may be several workers
    assert_eq!(
        said,
        ["pending", "cancel", "stream", "config", "worker"],
        "{log}"
    );
}

#[test]
fn a_second_signal_ends_at_once() {
    let upstream = Upstream::raw(|mut connection, _| drop(connection.rest()));
    let mut host = Host::start(&to_app(&[upstream.address]));
    let mut client = host.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    until("the request is under way", || {
        upstream.connection_count() == 1
    });
    host.signal("INT");
    until("it drains", || host.admin("GET", "/healthz").status == 503);
    assert!(host.is_running());
    host.signal("INT");
    assert_eq!(host.wait().code(), Some(3));
}

#[test]
fn an_http2_connection_is_told_to_go() {
    let upstream = Arc::new(Upstream::mirror());
    let mut host = Host::start(&to_app(&[upstream.address]));
    let address = host.address();
    crate::support::run(async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let exec = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(exec, io)
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let request = http::Request::get("http://test/")
            .body(crate::support::full(""))
            .unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
        host.signal("TERM");
        connection.await.unwrap().unwrap();
    });
    assert_eq!(host.wait().code(), Some(0));
}
