//! A client of HTTP/2 by prior knowledge.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::upstream::Body;

/// A whole response.
pub(crate) struct Whole {
    pub(crate) status: u16,
    pub(crate) fields: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

impl Whole {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }
}

pub(crate) async fn connect(address: SocketAddr) -> http2::SendRequest<Body> {
    let stream = TcpStream::connect(address).await.expect("connect");
    stream.set_nodelay(true).expect("set an option");
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("a preface");
    tokio::spawn(connection);
    sender
}

/// A request without body.
pub(crate) fn get(path: &str, fields: &[(&str, &str)]) -> Request<Body> {
    with_body(
        "GET",
        path,
        fields,
        Empty::new().map_err(|never| match never {}).boxed(),
    )
}

pub(crate) fn with_body(
    method: &str,
    path: &str,
    fields: &[(&str, &str)],
    body: Body,
) -> Request<Body> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://test{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(body).expect("a request")
}

/// A body of these frames.
pub(crate) fn frames(frames: Vec<Frame<Bytes>>) -> Body {
    struct Frames(std::vec::IntoIter<Frame<Bytes>>);
    impl hyper::body::Body for Frames {
        type Data = Bytes;
        type Error = std::io::Error;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            Poll::Ready(self.0.next().map(Ok))
        }
    }
    Frames(frames.into_iter()).boxed()
}

/// Reads all of it, or says why that ends early.
pub(crate) async fn whole(response: Response<Incoming>) -> Result<Whole, hyper::Error> {
    let (head, body) = response.into_parts();
    let body = body.collect().await?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    Ok(Whole {
        status: head.status.as_u16(),
        fields: head.headers,
        body: body.to_bytes(),
        trailers,
    })
}
