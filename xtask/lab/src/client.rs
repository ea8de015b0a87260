//! The client's side: one connection, HTTP/1.1 or HTTP/2 without TLS.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use tokio::net::TcpStream;

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub enum Protocol {
    Http1,
    H2c,
}

impl Protocol {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::H2c => "HTTP/2",
        }
    }
}

/// A request's body.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// A connection.
#[derive(Debug)]
pub enum Connection {
    /// HTTP/1.1.
    Http1(http1::SendRequest<Body>),
    /// HTTP/2.
    H2c(http2::SendRequest<Body>),
}

/// A whole response.
#[derive(Clone, Debug)]
pub struct Whole {
    /// Status.
    pub status: StatusCode,
    /// Fields.
    pub fields: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// Trailers.
    pub trailers: HeaderMap,
}

impl Whole {
    /// Value of a field, if it is text.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr, protocol: Protocol) -> Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(stream);
        // What ends a connection early, the request on it tells.
        Ok(match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::spawn(connection);
                Self::Http1(sender)
            }
            Protocol::H2c => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                Self::H2c(sender)
            }
        })
    }

    /// Another handle of an HTTP/2 connection, for a request at the same time.
    pub fn clone_h2(&self) -> Result<Self> {
        match self {
            Self::Http1(_) => bail!("HTTP/1.1 has one request at a time"),
            Self::H2c(sender) => Ok(Self::H2c(sender.clone())),
        }
    }

    /// Whether another request can be sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match self {
            Self::Http1(sender) => !sender.is_closed(),
            Self::H2c(sender) => !sender.is_closed(),
        }
    }

    /// Sends a request, until the response's head is there. The URI must be absolute; HTTP/1.1 gets it as it should.
    pub async fn send(&mut self, mut request: Request<Body>) -> Result<Response<Incoming>> {
        Ok(match self {
            Self::Http1(sender) => {
                if let Some(authority) = request.uri().authority() {
                    let host = authority.as_str().parse()?;
                    request.headers_mut().insert("host", host);
                }
                if let Some(path) = request.uri().path_and_query() {
                    *request.uri_mut() = path.as_str().parse()?;
                }
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::H2c(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        })
    }

    /// Sends a request and reads the whole response.
    pub async fn ask(&mut self, request: Request<Body>) -> Result<Whole> {
        let (head, body) = self.send(request).await?.into_parts();
        let body = body.collect().await.context("read the response's body")?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok(Whole {
            status: head.status,
            fields: head.headers,
            body: body.to_bytes(),
            trailers,
        })
    }
}

/// A body of these bytes.
#[must_use]
pub fn body(bytes: impl Into<Bytes>) -> Body {
    let full = http_body_util::Full::new(bytes.into());
    full.map_err(|never| match never {}).boxed()
}

/// No body.
#[must_use]
pub fn no_body() -> Body {
    let empty = http_body_util::Empty::new();
    empty.map_err(|never| match never {}).boxed()
}
