//! What is behind the proxies: upstreams that do what the path asks for.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use tokio::sync::{mpsc, watch};

use crate::client::Client;
use crate::config::Clusters;
use crate::upstream::{Body, Upstream, mirror};

/// Upstreams that all tests share. The last segment of a path says what they do:
///
/// - `trailers`: the body `hello`, the trailer `x-end: 1`, once the request has ended;
/// - `bytes-N`: N bytes;
/// - `gate-KEY`: `first`, and `second` when the test opens that gate;
/// - `shut-KEY`: nothing before the test opens that gate;
/// - `break`: some bytes, and then the connection breaks;
/// - `flaky-KEY`: 503 to the first two requests with that key, what came to the others;
/// - `moved-KEY`: 302 to `/KEY` of the same authority;
/// - all else: what came, in JSON.
///
/// A third one sees bytes: below `/upgrade` it accepts a WebSocket and echoes what comes, below `/hints` it sends 103
/// before 200, below `/continue` 100 before it reads the body, and to all else it answers 413 without reading the body.
pub(crate) struct Origins {
    http1: Upstream,
    http2: Upstream,
    raw: Upstream,
    gates: Arc<Gates>,
}

/// By key: whether a gate is open, and how often something flaky was asked for.
#[derive(Default)]
struct Gates(
    Mutex<HashMap<String, watch::Sender<bool>>>,
    Mutex<HashMap<String, u32>>,
);

impl Gates {
    fn get(&self, key: &str) -> watch::Sender<bool> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = all
            .entry(key.to_owned())
            .or_insert_with(|| watch::channel(false).0);
        gate.clone()
    }

    /// How often this was called with the key before.
    fn calls(&self, key: &str) -> u32 {
        let mut all = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = all.entry(key.to_owned()).or_default();
        *calls += 1;
        *calls - 1
    }

    async fn pass(&self, key: &str) {
        // The map keeps the sender.
        let _ = self.get(key).subscribe().wait_for(|open| *open).await;
    }
}

impl Origins {
    pub(crate) fn start() -> Self {
        let gates = Arc::<Gates>::default();
        let answer = |gates: Arc<Gates>| move |request| answer(request, Arc::clone(&gates));
        Self {
            http1: Upstream::http1(answer(Arc::clone(&gates))),
            http2: Upstream::http2(answer(Arc::clone(&gates))),
            raw: Upstream::raw(raw),
            gates,
        }
    }

    pub(crate) fn clusters(&self) -> Clusters {
        Clusters::from([
            ("app", (self.http1.address, false)),
            ("h2", (self.http2.address, true)),
            ("raw", (self.raw.address, false)),
            // The same by other names: for tests that look at the statistics of a cluster.
            ("parked", (self.raw.address, false)),
        ])
    }

    pub(crate) fn open(&self, key: &str) {
        self.gates.get(key).send_replace(true);
    }
}

type Frames = mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>;

async fn answer(request: Request<Incoming>, gates: Arc<Gates>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let last = path.rsplit('/').next().unwrap_or_default();
    if let Some(key) = last.strip_prefix("shut-") {
        gates.pass(key).await;
        return mirror(request).await;
    }
    if let Some(n) = last.strip_prefix("bytes-") {
        let n = n.parse().expect("a number of bytes");
        return Response::new(crate::upstream::full(vec![b'x'; n]));
    }
    if let Some(key) = last.strip_prefix("flaky-") {
        let calls = gates.calls(key);
        let mut response = mirror(request).await;
        if calls < 2 {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        return response;
    }
    if let Some(key) = last.strip_prefix("moved-") {
        let host = request.headers().get("host").map(HeaderValue::to_str);
        let to = format!("http://{}/{key}", host.expect("a host").expect("text"));
        let mut response = Response::new(crate::upstream::full("moved"));
        *response.status_mut() = StatusCode::FOUND;
        let to = HeaderValue::from_str(&to).expect("a field's value");
        response.headers_mut().insert("location", to);
        return response;
    }
    let (what, key) = last.split_once('-').unwrap_or((last, ""));
    let (what, key) = (what.to_owned(), key.to_owned());
    if !["trailers", "gate", "break"].contains(&what.as_str()) {
        return mirror(request).await;
    }
    if what == "trailers" {
        // The request has ended before the response does.
        let _ = request.into_body().collect().await;
    }
    let (frames, body) = mpsc::channel(4);
    tokio::spawn(async move { write(&what, &key, &frames, &gates).await });
    let mut response = Response::new(FromChannel(body).boxed());
    response
        .headers_mut()
        .insert("trailer", HeaderValue::from_static("x-end"));
    response
}

/// The reader may be gone: nobody is left to tell.
async fn write(what: &str, key: &str, frames: &Frames, gates: &Gates) {
    let data = |text: &'static str| Ok(Frame::data(Bytes::from_static(text.as_bytes())));
    match what {
        "trailers" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-end", HeaderValue::from_static("1"));
            let _ = frames.send(data("hello")).await;
            let _ = frames.send(Ok(Frame::trailers(trailers))).await;
        }
        "gate" => {
            let _ = frames.send(data("first")).await;
            gates.pass(key).await;
            let _ = frames.send(data("second")).await;
        }
        _ => {
            let _ = frames.send(data("some bytes")).await;
            // What was sent reaches the proxy before the break.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            let _ = frames
                .send(Err(std::io::Error::other("broken, as asked for")))
                .await;
        }
    }
}

fn raw(mut client: Client, _: usize) {
    let head: Vec<_> =
        std::iter::from_fn(|| Some(client.line()).filter(|line| !line.is_empty())).collect();
    let is = |path: &str| head.first().is_some_and(|first| first.contains(path));
    if is("/hints") {
        client.send(
            "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n\
             HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello",
        );
        client.rest();
        return;
    }
    if is("/continue") {
        client.send("HTTP/1.1 100 Continue\r\n\r\n");
        let body = client.exact(5);
        client.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\n");
        client.send(body);
        client.rest();
        return;
    }
    if !is("/upgrade") {
        client.send(
            "HTTP/1.1 413 Payload Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        );
        // Until the proxy has read it and closes.
        client.rest();
        return;
    }
    client.send(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    );
    let mut reader = client
        .stream
        .try_clone()
        .expect("a second handle of the connection");
    let _ = std::io::copy(&mut reader, &mut client.stream);
}

/// Frames from a channel.
struct FromChannel(mpsc::Receiver<Result<Frame<Bytes>, std::io::Error>>);

impl hyper::body::Body for FromChannel {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0.poll_recv(cx)
    }
}
