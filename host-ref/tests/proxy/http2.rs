//! HTTP/2 by prior knowledge and by ALPN, HTTP/2 upstreams, TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Frame;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::support::{Body, Host, Upstream, full, run, seen, to_app};

async fn h2(address: SocketAddr) -> http2::SendRequest<Body> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn get(path: &str) -> Request<Body> {
    let body = Empty::new().map_err(|never| match never {}).boxed();
    Request::get(format!("http://test{path}"))
        .body(body)
        .unwrap()
}

async fn json(response: Response<hyper::body::Incoming>) -> Value {
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

#[test]
fn many_streams_of_one_connection() {
    let upstream = Upstream::mirror();
    let host = Host::start(&to_app(&[upstream.address]));
    run(async {
        let sender = h2(host.address()).await;
        let asks = (0..50).map(|i| {
            let mut sender = sender.clone();
            tokio::spawn(async move {
                let response = sender.send_request(get(&format!("/{i}"))).await.unwrap();
                assert_eq!(response.version(), Version::HTTP_2);
                (i, json(response).await)
            })
        });
        for ask in asks.collect::<Vec<_>>() {
            let (i, mirror) = ask.await.unwrap();
            assert_eq!(mirror["path"], format!("/{i}"));
            assert_eq!(seen(&mirror, "host"), ["test"]);
        }
    });
    assert!(host.access(|l| l["path"] == "/49")["protocol"] == "HTTP/2");
}

/// Bytes between requests (settings, pings, windows) are no beginning of a request: they count neither for its duration
/// nor for the time that its head may take.
#[test]
fn a_request_begins_with_its_own_head() {
    let upstream = Upstream::mirror();
    let config = to_app(&[upstream.address]);
    let limits = "name = \"main\"\nlimits = { header_timeout = \"100ms\", idle_timeout = \"1h\" }";
    let host = Host::start(&config.replacen("name = \"main\"", limits, 1));
    let mut took = [0, 0];
    run(async {
        let mut sender = h2(host.address()).await;
        for (path, took) in ["/first", "/second"].into_iter().zip(&mut took) {
            // The host looks after twice the limit at the latest.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let begin = Instant::now();
            let response = sender.send_request(get(path)).await.unwrap();
            assert_eq!(json(response).await["path"], path);
            *took = begin.elapsed().as_micros();
        }
    });
    for (path, took) in ["/first", "/second"].into_iter().zip(took) {
        let logged = host.access(|l| l["path"] == path)["duration_us"].as_u64();
        assert!(
            logged.is_some_and(|us| u128::from(us) <= took),
            "{path}: {logged:?}, {took}"
        );
    }
}

#[test]
fn a_request_body_streams_through() {
    let upstream = Upstream::mirror();
    let host = Host::start(&to_app(&[upstream.address]));
    run(async {
        let mut sender = h2(host.address()).await;
        let frames = (0..10).map(|i| Frame::data(Bytes::from(format!("part {i};"))));
        let body = Frames(frames.collect()).boxed();
        let response = sender
            .send_request(Request::post("http://test/up").body(body).unwrap())
            .await
            .unwrap();
        let mirror = json(response).await;
        assert_eq!(mirror["length"], 70);
        assert_eq!(seen(&mirror, "transfer-encoding"), ["chunked"]);
    });
}

/// A body of these frames.
struct Frames(std::collections::VecDeque<Frame<Bytes>>);

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        std::task::Poll::Ready(self.0.pop_front().map(Ok))
    }
}

fn with_trailers(text: &'static str, trailer: &'static str) -> Body {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static(trailer));
    let frames = vec![
        Frame::data(Bytes::from_static(text.as_bytes())),
        Frame::trailers(trailers),
    ];
    Frames(frames.into()).boxed()
}

#[test]
fn trailers_go_both_ways_over_http2() {
    let upstream = Upstream::http2(|request| async move {
        let collected = request.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["x-sum"], "request");
        Response::new(with_trailers("response body", "response"))
    });
    let config = to_app(&[upstream.address]).replace(
        "[[virtual_hosts]]",
        "protocol = \"http2\"\n[[virtual_hosts]]",
    );
    let host = Host::start(&config);
    run(async {
        let mut sender = h2(host.address()).await;
        let request = Request::post("http://test/")
            .body(with_trailers("request body", "request"))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["x-sum"], "response");
        assert_eq!(collected.to_bytes(), "response body");
    });
}

#[test]
fn an_http2_upstream_gets_authority_and_scheme() {
    let upstream = Upstream::http2(crate::support::mirror);
    let config = to_app(&[upstream.address]).replace(
        "[[virtual_hosts]]",
        "protocol = \"http2\"\n[[virtual_hosts]]",
    );
    let host = Host::start(&config);
    let mut client = host.connect();
    for _ in 0..3 {
        let mirror = client
            .request("GET", "/p?q", "connection: keep-alive\r\n", b"")
            .json();
        assert_eq!(
            (&mirror["authority"], &mirror["path"]),
            (&"test".into(), &"/p?q".into())
        );
        assert_eq!(seen(&mirror, "host"), [""; 0]);
    }
    // HTTP/2 needs one connection for each worker.
    assert!(upstream.connection_count() <= 2);
}

struct Tls {
    folder: tempfile::TempDir,
    cert: String,
}

fn tls() -> Tls {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["test.example".into()]).unwrap();
    std::fs::write(folder.path().join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(
        folder.path().join("key.pem"),
        made.signing_key.serialize_pem(),
    )
    .unwrap();
    Tls {
        folder,
        cert: made.cert.pem(),
    }
}

impl Tls {
    fn config(&self, upstream: SocketAddr) -> String {
        format!(
            "{}tls = {{ cert = {:?}, key = {:?} }}\n{}",
            crate::support::HEAD,
            self.folder.path().join("cert.pem"),
            self.folder.path().join("key.pem"),
            to_app(&[upstream])
        )
    }

    async fn connect(
        &self,
        address: SocketAddr,
        alpn: &[u8],
    ) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.cert.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        if !alpn.is_empty() {
            config.alpn_protocols = vec![alpn.to_vec()];
        }
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("test.example").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap()
    }
}

#[test]
fn tls_speaks_what_alpn_says() {
    let upstream = Upstream::mirror();
    let tls = tls();
    let host = Host::start_with(&tls.config(upstream.address));
    run(async {
        let stream = tls.connect(host.address(), b"h2").await;
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let mirror = json(sender.send_request(get("/h2")).await.unwrap()).await;
        assert_eq!(seen(&mirror, "x-forwarded-proto"), ["https"]);
        for (alpn, path) in [(&b"http/1.1"[..], "/h1"), (b"", "/none")] {
            let stream = tls.connect(host.address(), alpn).await;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            let body = Full::<Bytes>::default();
            let request = Request::get(path)
                .header("host", "test")
                .body(body)
                .unwrap();
            assert_eq!(
                json(sender.send_request(request).await.unwrap()).await["path"],
                path
            );
        }
    });
    assert_eq!(host.access(|l| l["path"] == "/h2")["protocol"], "HTTP/2");
    assert_eq!(host.access(|l| l["path"] == "/h1")["protocol"], "HTTP/1.1");
}

#[test]
fn plain_text_on_a_tls_listener_harms_nobody() {
    let upstream = Upstream::mirror();
    let tls = tls();
    let host = Host::start_with(&tls.config(upstream.address));
    let mut client = host.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    client.rest(); // an alert, then the end
    run(async {
        let stream = tls.connect(host.address(), b"http/1.1").await;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("/")
            .header("host", "test")
            .body(full(""))
            .unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    });
}

#[test]
fn a_preface_in_pieces_is_still_http2() {
    let upstream = Upstream::mirror();
    let host = Host::start(&to_app(&[upstream.address]));
    let mut client = host.connect();
    for piece in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".chunks(5) {
        client.send(piece);
    }
    client.send([0, 0, 0, 4, 0, 0, 0, 0, 0]); // empty SETTINGS
    let frame = client.exact(9);
    assert_eq!(frame[3], 4, "the server answers with SETTINGS");
    // And a method that begins like the preface is HTTP/1.
    let mut client = host.connect();
    client.send("PR");
    client.send("OPFIND / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(client.reply().json()["method"], "PROPFIND");
}
