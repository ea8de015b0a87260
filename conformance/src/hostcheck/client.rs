//! The HTTP/1.1 client: raw bytes, sent as a case wants them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::changes::in_time;
use super::message::{BodyReader, Framing, Head, chunk, last_chunk};

/// A request to be.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<Vec<u8>>,
    chunked: bool,
    trailers: Vec<(String, String)>,
    /// Adds no length or transfer coding.
    bare: bool,
}

impl Request {
    pub(crate) fn new(method: &str, path: &str) -> Self {
        Self {
            method: method.into(),
            path: path.into(),
            fields: Vec::new(),
            body: Vec::new(),
            chunked: false,
            trailers: Vec::new(),
            bare: false,
        }
    }

    pub(crate) fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    pub(crate) fn post(path: &str, body: &[u8]) -> Self {
        let mut r = Self::new("POST", path);
        r.body.push(body.to_vec());
        r
    }

    /// A chunked body, in these chunks.
    pub(crate) fn chunks(path: &str, chunks: &[&[u8]]) -> Self {
        let mut r = Self::new("POST", path);
        r.chunked = true;
        r.body = chunks.iter().map(|c| c.to_vec()).collect();
        r
    }

    pub(crate) fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    pub(crate) fn trailer(mut self, name: &str, value: &str) -> Self {
        self.chunked = true;
        self.trailers.push((name.into(), value.into()));
        self
    }

    /// Only the head: the case sends the body itself, and names its framing.
    pub(crate) fn head_only(mut self) -> Self {
        self.bare = true;
        self
    }

    /// The head's bytes.
    pub(crate) fn head(&self, case: &str) -> Vec<u8> {
        let mut out = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        if !self.fields.iter().any(|f| f.0.eq_ignore_ascii_case("host")) {
            out.push_str("host: pxg.test\r\n");
        }
        if !case.is_empty() {
            out.push_str(&format!("x-pxg-case: {case}\r\n"));
        }
        for (n, v) in &self.fields {
            out.push_str(&format!("{n}: {v}\r\n"));
        }
        if !self.bare {
            if self.chunked {
                out.push_str("transfer-encoding: chunked\r\n");
                if !self.trailers.is_empty() {
                    let names: Vec<&str> = self.trailers.iter().map(|t| t.0.as_str()).collect();
                    out.push_str(&format!("trailer: {}\r\n", names.join(", ")));
                }
            } else if !self.body.is_empty() {
                let n: usize = self.body.iter().map(Vec::len).sum();
                out.push_str(&format!("content-length: {n}\r\n"));
            }
        }
        out.push_str("\r\n");
        // Values may hold any byte: each character is one.
        out.chars().map(|c| c as u8).collect()
    }

    /// The pieces that follow the head.
    pub(crate) fn pieces(&self) -> Vec<Vec<u8>> {
        if self.bare {
            return Vec::new();
        }
        if !self.chunked {
            return self.body.clone();
        }
        let mut out: Vec<Vec<u8>> = self.body.iter().map(|b| chunk(b)).collect();
        let trailers: Vec<(&str, &str)> = self
            .trailers
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        out.push(last_chunk(&trailers));
        out
    }
}

/// A response as it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: Head,
    /// Interim responses before it.
    pub(crate) interim: Vec<Head>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// It came to its end; otherwise the connection broke.
    pub(crate) complete: bool,
    /// The connection was reset, or closed.
    pub(crate) reset: bool,
}

impl Reply {
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        self.head.get(name)
    }

    pub(crate) fn text(&self) -> String {
        self.body.iter().map(|b| char::from(*b)).collect()
    }
}

/// A connection.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// The connection ended: reset or not.
    pub(crate) closed: Option<bool>,
    patience: Duration,
}

impl Connection {
    pub(crate) async fn open(to: SocketAddr, patience: Duration) -> Result<Self> {
        let stream = TcpStream::connect(to)
            .await
            .with_context(|| format!("cannot connect to the host at {to}"))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            closed: None,
            patience,
        })
    }

    /// Sends bytes. A host may close while it is sent to; what it says is read later.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let _ = in_time(self.patience, self.stream.write_all(bytes)).await;
    }

    /// Sends as much as is taken before nothing is taken for `quiet`; how much.
    pub(crate) async fn write_some(&mut self, bytes: &[u8], quiet: Duration) -> usize {
        let mut sent = 0;
        while sent < bytes.len() {
            match tokio::time::timeout(quiet, self.stream.write(&bytes[sent..])).await {
                Ok(Ok(n)) if n > 0 => sent += n,
                _ => break,
            }
        }
        sent
    }

    /// Sends each byte by itself.
    pub(crate) async fn write_slowly(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write(&[*b]).await;
            tokio::task::yield_now().await;
        }
    }

    /// Sends a request, the head and each piece of the body by themselves.
    pub(crate) async fn send(&mut self, r: &Request, case: &str) {
        self.write(&r.head(case)).await;
        for p in r.pieces() {
            tokio::task::yield_now().await;
            self.write(&p).await;
        }
    }

    /// Reads once; false at the end of the connection.
    async fn fill(&mut self) -> Result<bool> {
        if self.closed.is_some() {
            return Ok(false);
        }
        let mut chunk = [0u8; 65536];
        match in_time(self.patience, self.stream.read(&mut chunk)).await {
            None => bail!("nothing came from the host for {:?}", self.patience),
            Some(Ok(0)) => {
                self.closed = Some(false);
                Ok(false)
            }
            Some(Ok(n)) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                Ok(true)
            }
            Some(Err(_)) => {
                self.closed = Some(true);
                Ok(false)
            }
        }
    }

    /// The next response to a request with `method`; a broken one is not complete. An error: the host says nothing.
    pub(crate) async fn response(&mut self, method: &str) -> Result<Reply> {
        let mut reply = Reply::default();
        loop {
            if let Some((head, n)) = Head::parse(&self.buffer) {
                self.buffer.drain(..n);
                let status = head.status();
                if (100..200).contains(&status) && status != 101 {
                    reply.interim.push(head);
                    continue;
                }
                reply.status = status;
                reply.head = head;
                break;
            }
            if !self.fill().await? {
                reply.reset = self.closed == Some(true);
                return Ok(reply);
            }
        }
        let framing = if reply.status == 101 {
            Framing::None
        } else {
            Framing::of_response(&reply.head, method)
        };
        let mut body = BodyReader::new(framing);
        loop {
            body.feed(&mut self.buffer);
            if body.done || body.broken.is_some() {
                break;
            }
            if !self.fill().await? {
                body.eof();
                reply.reset = self.closed == Some(true);
                break;
            }
        }
        reply.complete = body.done;
        reply.body = body.body;
        reply.trailers = body.trailers;
        Ok(reply)
    }

    /// The next interim response, such as `100 Continue`, or None if a final one has come instead.
    pub(crate) async fn interim(&mut self) -> Result<Option<Head>> {
        loop {
            if let Some((head, n)) = Head::parse(&self.buffer) {
                if !(100..200).contains(&head.status()) {
                    return Ok(None);
                }
                self.buffer.drain(..n);
                return Ok(Some(head));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// At least `n` raw bytes, for tunnels and broken messages; fewer if the connection ends.
    pub(crate) async fn raw(&mut self, n: usize) -> Result<Vec<u8>> {
        while self.buffer.len() < n && self.fill().await? {}
        let n = n.min(self.buffer.len());
        Ok(self.buffer.drain(..n).collect())
    }

    /// Reads until `text` has come, whatever it stands in.
    pub(crate) async fn until(&mut self, text: Vec<u8>) -> Result<()> {
        while !self.buffer.windows(text.len()).any(|w| w == text) {
            if !self.fill().await? {
                bail!("the connection ended");
            }
        }
        Ok(())
    }

    /// What has come by now without waiting longer than `for_ms`.
    pub(crate) async fn peek(&mut self, for_ms: u64) -> usize {
        let mut chunk = [0u8; 65536];
        if let Ok(Ok(n)) =
            tokio::time::timeout(Duration::from_millis(for_ms), self.stream.read(&mut chunk)).await
        {
            if n == 0 {
                self.closed = Some(false);
            }
            self.buffer.extend_from_slice(&chunk[..n]);
        }
        self.buffer.len()
    }

    /// Half-closes.
    pub(crate) async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(self) {
        let _ = self.stream.set_zero_linger();
    }
}

/// A plain GET, for admin listeners: the body.
pub(crate) async fn fetch(to: SocketAddr, path: &str) -> Result<String> {
    let mut c = Connection::open(to, Duration::from_secs(5)).await?;
    c.send(&Request::get(path).field("connection", "close"), "")
        .await;
    Ok(c.response("GET").await?.text())
}
