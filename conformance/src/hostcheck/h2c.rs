//! The HTTP/2 client, without TLS.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use tokio::net::TcpStream;

use super::changes::in_time;
use super::client::Request;
use super::message::Head;

/// A connection. Its streams run on this thread's local tasks.
pub(crate) struct H2 {
    send: SendRequest<Bytes>,
    patience: Duration,
}

/// A stream whose request's head has been sent.
pub(crate) struct Stream {
    response: Option<h2::client::ResponseFuture>,
    body: SendStream<Bytes>,
    patience: Duration,
}

/// A response as it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    pub(crate) complete: bool,
    /// RST_STREAM, with its code.
    pub(crate) reset: Option<Reason>,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        self.body.iter().map(|b| char::from(*b)).collect()
    }
}

fn fields(map: &http::HeaderMap) -> Vec<(String, String)> {
    map.iter()
        .map(|(n, v)| {
            let value = v.as_bytes().iter().map(|b| char::from(*b)).collect();
            (n.as_str().to_string(), value)
        })
        .collect()
}

impl H2 {
    pub(crate) async fn open(to: SocketAddr, patience: Duration) -> Result<Self> {
        let stream = TcpStream::connect(to)
            .await
            .with_context(|| format!("cannot connect to the host at {to}"))?;
        stream.set_nodelay(true)?;
        let (send, connection) = h2::client::handshake(stream).await?;
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        Ok(Self { send, patience })
    }

    /// Sends the head of `r`; `ends` if it is all.
    pub(crate) async fn send(&mut self, r: &Request, case: &str, ends: bool) -> Result<Stream> {
        let mut head = http::Request::builder()
            .method(r.method.as_str())
            .uri(format!("http://pxg.test{}", r.path))
            .header(super::record::CASE_FIELD, case);
        for (n, v) in &r.fields {
            head = head.header(n.as_str(), v.as_str());
        }
        let mut ready = in_time(self.patience, self.send.clone().ready())
            .await
            .context("the host lets no stream begin")??;
        let (response, body) = ready.send_request(head.body(())?, ends)?;
        Ok(Stream {
            response: Some(response),
            body,
            patience: self.patience,
        })
    }
}

impl Stream {
    pub(crate) fn data(&mut self, bytes: &[u8], ends: bool) -> Result<()> {
        self.body
            .send_data(Bytes::copy_from_slice(bytes), ends)
            .context("the host has ended the stream")
    }

    pub(crate) fn trailers(&mut self, all: &[(&'static str, &'static str)]) -> Result<()> {
        let mut map = http::HeaderMap::new();
        for (n, v) in all {
            map.append(*n, http::HeaderValue::from_static(v));
        }
        self.body
            .send_trailers(map)
            .context("the host has ended the stream")
    }

    /// Ends the stream with RST_STREAM.
    pub(crate) fn reset(mut self) {
        self.body.send_reset(Reason::CANCEL);
    }

    /// The response; a broken one is not complete. An error: the host says nothing.
    pub(crate) async fn response(&mut self) -> Result<Reply> {
        let Some(response) = self.response.take() else {
            bail!("the response has been read");
        };
        let patience = self.patience;
        match in_time(patience, read(response)).await {
            Some(r) => r,
            None => bail!("nothing whole came from the host for {patience:?}"),
        }
    }
}

async fn read(response: h2::client::ResponseFuture) -> Result<Reply> {
    let mut reply = Reply::default();
    let response = match response.await {
        Ok(r) => r,
        Err(e) => {
            reply.reset = e.reason();
            return Ok(reply);
        }
    };
    reply.status = response.status().as_u16();
    reply.head = Head {
        first: format!("HTTP/2 {}", reply.status),
        fields: fields(response.headers()),
    };
    let mut body: RecvStream = response.into_body();
    while let Some(part) = body.data().await {
        match part {
            Ok(bytes) => {
                let _ = body.flow_control().release_capacity(bytes.len());
                reply.body.extend_from_slice(&bytes);
            }
            Err(e) => {
                reply.reset = e.reason();
                return Ok(reply);
            }
        }
    }
    match body.trailers().await {
        Ok(t) => {
            reply.trailers = t.as_ref().map(fields).unwrap_or_default();
            reply.complete = true;
        }
        Err(e) => reply.reset = e.reason(),
    }
    Ok(reply)
}
