//! Servers in threads of their own.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::client::Client;

pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

/// A server in a thread of its own; it ends when this is dropped.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) requests: Arc<AtomicUsize>,
    _stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Upstream {
    pub(crate) fn count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn connection_count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// An HTTP/1.1 server.
    pub(crate) fn http1<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::serve(false, answer)
    }

    /// An HTTP/2 server by prior knowledge.
    pub(crate) fn http2<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::serve(true, answer)
    }

    fn serve<F, R>(http2: bool, answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (connections, requests) =
            (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let counters = (Arc::clone(&connections), Arc::clone(&requests));
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let accept = async {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        stream.set_nodelay(true).unwrap();
                        counters.0.fetch_add(1, Ordering::SeqCst);
                        let (answer, requests) = (Arc::clone(&answer), Arc::clone(&counters.1));
                        let service = service_fn(move |request| {
                            requests.fetch_add(1, Ordering::SeqCst);
                            let answer = answer(request);
                            async move { Ok::<_, std::convert::Infallible>(answer.await) }
                        });
                        tokio::spawn(async move {
                            let io = TokioIo::new(stream);
                            if http2 {
                                let builder =
                                    hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                                let _ = builder.serve_connection(io, service).await;
                            } else {
                                let builder = hyper::server::conn::http1::Builder::new();
                                let _ = builder.serve_connection(io, service).with_upgrades().await;
                            }
                        });
                    }
                };
                tokio::select! {
                    () = accept => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            address,
            connections,
            requests,
            _stop: Some(stop),
        }
    }

    /// A server that sees the bytes: `serve` gets each connection, with its number, in a thread of its own.
    pub(crate) fn raw(serve: impl Fn(Client, usize) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&connections);
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let number = count.fetch_add(1, Ordering::SeqCst);
                let serve = Arc::clone(&serve);
                let client = Client::over(stream);
                std::thread::spawn(move || serve(client, number));
            }
        });
        Self {
            address,
            connections,
            requests: Arc::default(),
            _stop: None,
        }
    }

    /// Answers what it got, as JSON: method, path, fields, body, trailers.
    pub(crate) fn mirror() -> Self {
        Self::http1(mirror)
    }
}

pub(crate) async fn mirror(request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let fields = |map: &http::HeaderMap| -> Vec<(String, String)> {
        let text = |v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
        map.iter().map(|(n, v)| (n.to_string(), text(v))).collect()
    };
    let (body, trailers) = match body.collect().await {
        Ok(collected) => {
            let trailers = collected.trailers().map(fields).unwrap_or_default();
            (collected.to_bytes(), trailers)
        }
        Err(_) => (Bytes::new(), Vec::new()),
    };
    let value = serde_json::json!({
        "method": parts.method.as_str(),
        "path": parts.uri.path_and_query().map(|p| p.as_str()),
        "authority": parts.uri.authority().map(|a| a.as_str()),
        "fields": fields(&parts.headers),
        "body": String::from_utf8_lossy(&body),
        "length": body.len(),
        "trailers": trailers,
    });
    let mut response = Response::new(full(value.to_string()));
    response.headers_mut().insert(
        "content-type",
        http::HeaderValue::from_static("application/json"),
    );
    response
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}
