//! A client, and a connection of a server, that see the bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::support::PATIENCE;

/// A client that sees the bytes.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

/// A response as it came over HTTP/1.1.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// The body's chunks, if it was chunked.
    pub(crate) chunked: bool,
}

impl Reply {
    /// The only value of a field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut values = self
            .fields
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| v.as_str());
        let first = values.next();
        assert_eq!(values.next(), None, "{name} is there once");
        first
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    pub(crate) fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    pub(crate) fn get(&mut self, path: &str) -> Reply {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n"));
        self.reply()
    }

    /// A request with fields (each with its line end) and a body of known length.
    pub(crate) fn request(&mut self, method: &str, path: &str, fields: &str, body: &[u8]) -> Reply {
        let length = if body.is_empty() {
            String::new()
        } else {
            format!("content-length: {}\r\n", body.len())
        };
        self.send(format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\n{fields}{length}\r\n"
        ));
        self.send(body);
        if method == "HEAD" {
            self.head()
        } else {
            self.reply()
        }
    }

    fn fill(&mut self) -> bool {
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(n) => {
                self.buffer.extend_from_slice(&bytes[..n]);
                true
            }
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(e) => panic!("read: {e}"),
        }
    }

    /// Whether the other side has closed, after everything that it sent was taken.
    pub(crate) fn is_closed(&mut self) -> bool {
        assert!(
            self.buffer.is_empty(),
            "unread: {:?}",
            String::from_utf8_lossy(&self.buffer)
        );
        !self.fill()
    }

    /// Bytes that came without being asked for, until the other side closes.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.buffer)
    }

    pub(crate) fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line = self.buffer.drain(..end + 2).take(end).collect();
                return String::from_utf8(line).unwrap();
            }
            assert!(
                self.fill(),
                "closed in the middle of {:?}",
                String::from_utf8_lossy(&self.buffer)
            );
        }
    }

    fn fields(&mut self) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                return fields;
            }
            let (name, value) = line.split_once(':').unwrap();
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    pub(crate) fn exact(&mut self, n: usize) -> Vec<u8> {
        while self.buffer.len() < n {
            assert!(
                self.fill(),
                "closed after {} of {n} bytes",
                self.buffer.len()
            );
        }
        self.buffer.drain(..n).collect()
    }

    /// A response without body: to HEAD, 101, 100, 304.
    pub(crate) fn head(&mut self) -> Reply {
        let line = self.line();
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
        Reply {
            status: status.unwrap_or_else(|| panic!("no status line: {line:?}")),
            fields: self.fields(),
            body: Vec::new(),
            trailers: Vec::new(),
            chunked: false,
        }
    }

    /// A chunk; empty for the last one.
    pub(crate) fn chunk(&mut self) -> Vec<u8> {
        let size = usize::from_str_radix(self.line().trim(), 16).unwrap();
        if size == 0 {
            return Vec::new();
        }
        let chunk = self.exact(size);
        assert_eq!(self.line(), "");
        chunk
    }

    pub(crate) fn reply(&mut self) -> Reply {
        let mut reply = self.head();
        if matches!(reply.status, 204 | 304) || reply.status < 200 {
            return reply;
        }
        if reply.field("transfer-encoding") == Some("chunked") {
            reply.chunked = true;
            loop {
                let chunk = self.chunk();
                if chunk.is_empty() {
                    break;
                }
                reply.body.extend(chunk);
            }
            reply.trailers = self.fields();
        } else if let Some(length) = reply.field("content-length") {
            reply.body = self.exact(length.parse().unwrap());
        } else {
            reply.body = self.rest();
        }
        reply
    }
}

impl Client {
    /// A request as an upstream reads it: its first line, fields, body and trailers.
    pub(crate) fn read_request(&mut self) -> (String, Reply) {
        let line = self.line();
        let mut message = Reply {
            status: 0,
            fields: self.fields(),
            body: Vec::new(),
            trailers: Vec::new(),
            chunked: false,
        };
        if message.field("transfer-encoding") == Some("chunked") {
            message.chunked = true;
            loop {
                let chunk = self.chunk();
                if chunk.is_empty() {
                    break;
                }
                message.body.extend(chunk);
            }
            message.trailers = self.fields();
        } else if let Some(length) = message.field("content-length") {
            message.body = self.exact(length.parse().unwrap());
        }
        (line, message)
    }
}
