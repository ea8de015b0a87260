//! The servers behind the proxy: an upstream that tells what it got, and an authority that takes its time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The page that `/page` answers.
pub const PAGE: &str = "<!doctype html>\n<title>Orders</title>\n\
    <p>See <a href=\"http://internal.example/orders/7\">order 7</a>\n\
    and <a href=\"http://internal.example/help\">help</a>.</p>\n";

/// What is in each line that `/stream` answers.
pub const LINE: &str = "NAME-OF-THE-CONFIGURATION";

/// What an upstream got, as it answers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Fields in order.
    pub fields: Vec<(String, String)>,
    /// Length of the body.
    pub body_bytes: u64,
    /// FNV-1a of the body.
    pub body_hash: u64,
    /// Trailer fields.
    pub trailers: Vec<(String, String)>,
}

impl Seen {
    /// Value of the first field of this name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// A server; it ends with this.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    _tasks: JoinSet<()>,
    requests: Arc<AtomicU64>,
}

type Body = BoxBody<Bytes, Infallible>;
type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>>> + Send>>;

impl Server {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Number of requests until now.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// The upstream, over HTTP/1.1 and HTTP/2. What it does is in the path's last segment:
    ///
    /// - `page`: an HTML page, [`PAGE`];
    /// - `wait`: as below, after the number of milliseconds in the field `x-wait`;
    /// - `stream`: as below, in pieces, with the trailer `x-pieces`, whose value is their number; before it, in lines
    ///   of text, as many as the field `x-lines` says;
    /// - all else: what it got, a [`Seen`] in JSON.
    ///
    /// Each answer has the request's `x-nonce`.
    pub async fn upstream() -> Result<Self> {
        Self::start(|request| Box::pin(upstream(request))).await
    }

    /// The authority of token-check: after `delay` it answers 200 to a token that begins with `good-`, with the
    /// subject that [`subject`] gives, and 401 to all others.
    pub async fn authority(delay: Duration) -> Result<Self> {
        Self::start(move |request| {
            Box::pin(async move {
                tokio::time::sleep(delay).await;
                let token = request.headers().get("authorization");
                let token = token.and_then(|t| t.to_str().ok()?.strip_prefix("Bearer "));
                let mut response = Response::new(text(""));
                match token.filter(|t| t.starts_with("good-")) {
                    Some(token) => {
                        let subject = subject(token).parse()?;
                        response.headers_mut().insert("x-subject", subject);
                    }
                    None => *response.status_mut() = StatusCode::UNAUTHORIZED,
                }
                Ok(response)
            })
        })
        .await
    }

    async fn start(
        answer: impl Fn(Request<Incoming>) -> Answer + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("listen on a free loopback port")?;
        let address = listener.local_addr()?;
        let requests = Arc::new(AtomicU64::new(0));
        let (answer, counter) = (Arc::new(answer), Arc::clone(&requests));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let _ = stream.set_nodelay(true);
                let (answer, counter) = (Arc::clone(&answer), Arc::clone(&counter));
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        counter.fetch_add(1, Relaxed);
                        answer(request)
                    });
                    let server = auto::Builder::new(TokioExecutor::new());
                    // The proxy gave up, or a body of a client that did broke off: nobody is left to tell.
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            _tasks: tasks,
            requests,
        })
    }
}

/// The subject of a good token.
#[must_use]
pub fn subject(token: &str) -> String {
    format!("user-{:016x}", hash(token.as_bytes()))
}

/// FNV-1a.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    hash_on(0xcbf2_9ce4_8422_2325, bytes)
}

fn hash_on(begun: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(begun, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn text(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed()
}

async fn upstream(request: Request<Incoming>) -> Result<Response<Body>> {
    let (head, mut body) = request.into_parts();
    let (mut body_bytes, mut body_hash, mut trailers) = (0, hash(b""), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => {
                body_bytes += data.len() as u64;
                body_hash = hash_on(body_hash, &data);
            }
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    let number = |name: &str| -> u64 {
        let value = head.headers.get(name).and_then(|v| v.to_str().ok());
        value.and_then(|v| v.parse().ok()).unwrap_or(0)
    };
    let seen = Seen {
        method: head.method.to_string(),
        path: head
            .uri
            .path_and_query()
            .map_or_else(String::new, ToString::to_string),
        fields: list(&head.headers),
        body_bytes,
        body_hash,
        trailers: list(&trailers),
    };
    let json = serde_json::to_string(&seen)?;
    let mut response = match head.uri.path().rsplit('/').next() {
        Some("page") => typed("text/html; charset=utf-8", text(PAGE)),
        Some("stream") => typed("text/plain", pieces(number("x-lines"), json)),
        Some("wait") => {
            tokio::time::sleep(Duration::from_millis(number("x-wait"))).await;
            typed("application/json", text(json))
        }
        _ => typed("application/json", text(json)),
    };
    if head.method == Method::HEAD {
        *response.body_mut() = text("");
    }
    let nonce = HeaderName::from_static("x-nonce");
    if let Some(value) = head.headers.get(&nonce) {
        response.headers_mut().insert(nonce, value.clone());
    }
    Ok(response)
}

fn typed(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert("content-type", value);
    response
}

fn pieces(lines: u64, last: String) -> Body {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        for line in 0..lines {
            let piece = Bytes::from(format!("line {line}: {LINE} {}\n", "=".repeat(100)));
            // The reader is gone.
            if sender.send(Frame::data(piece)).await.is_err() {
                return;
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-pieces", (lines + 1).into());
        let _ = sender.send(Frame::data(last.into())).await;
        let _ = sender.send(Frame::trailers(trailers)).await;
    });
    Frames(receiver).boxed()
}

/// Frames from a channel.
struct Frames(tokio::sync::mpsc::Receiver<Frame<Bytes>>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

fn list(fields: &HeaderMap) -> Vec<(String, String)> {
    fields
        .iter()
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes());
            (name.to_string(), value.into_owned())
        })
        .collect()
}
