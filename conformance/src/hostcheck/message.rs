//! HTTP/1.1 messages as the driver sees them: strict, byte by byte.

/// The head of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// The first line.
    pub(crate) first: String,
    /// Fields in their order, names in lower case.
    pub(crate) fields: Vec<(String, String)>,
}

impl Head {
    /// Parses a head that ends with an empty line; how long it was.
    pub(crate) fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
        let text: String = bytes[..end].iter().map(|b| char::from(*b)).collect();
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default().to_string();
        let fields = lines.map(field).collect();
        Some((Self { first, fields }, end + 4))
    }

    /// The value of a field; several are joined.
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        let all = self.all(name);
        (!all.is_empty()).then(|| all.join(", "))
    }

    /// The values of a field, in their order.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.fields
            .iter()
            .filter(|f| f.0 == name)
            .map(|f| f.1.as_str())
            .collect()
    }

    /// The status of a response.
    pub(crate) fn status(&self) -> u16 {
        self.first
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .unwrap_or(0)
    }

    /// The method of a request.
    pub(crate) fn method(&self) -> &str {
        self.first.split(' ').next().unwrap_or_default()
    }

    /// The target of a request.
    pub(crate) fn target(&self) -> &str {
        self.first.split(' ').nth(1).unwrap_or_default()
    }
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    (
        name.to_ascii_lowercase(),
        value.trim_matches([' ', '\t']).to_string(),
    )
}

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

impl Framing {
    pub(crate) fn of_request(h: &Head) -> Self {
        match Self::said(h) {
            Self::UntilClose => Self::None,
            f => f,
        }
    }

    pub(crate) fn of_response(h: &Head, method: &str) -> Self {
        let status = h.status();
        if method == "HEAD" || status == 204 || status == 304 || (100..200).contains(&status) {
            return Self::None;
        }
        Self::said(h)
    }

    fn said(h: &Head) -> Self {
        if h.get("transfer-encoding")
            .is_some_and(|t| t.to_ascii_lowercase().contains("chunked"))
        {
            Self::Chunked
        } else if let Some(n) = h.get("content-length").and_then(|n| n.parse().ok()) {
            Self::Length(n)
        } else {
            Self::UntilClose
        }
    }
}

/// A body being read.
#[derive(Clone, Debug)]
pub(crate) struct BodyReader {
    framing: Framing,
    /// Bytes that are still to come in this piece: of the length, or of the chunk.
    left: u64,
    in_chunk: bool,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    pub(crate) done: bool,
    /// The framing was broken so.
    pub(crate) broken: Option<String>,
}

impl BodyReader {
    pub(crate) fn new(framing: Framing) -> Self {
        let left = match framing {
            Framing::Length(n) => n,
            _ => 0,
        };
        Self {
            framing,
            left,
            in_chunk: false,
            body: Vec::new(),
            trailers: Vec::new(),
            done: framing == Framing::None || framing == Framing::Length(0),
            broken: None,
        }
    }

    /// Takes what it can from the front of `buffer`.
    pub(crate) fn feed(&mut self, buffer: &mut Vec<u8>) {
        while !self.done && self.broken.is_none() && !buffer.is_empty() {
            match self.framing {
                Framing::None => self.done = true,
                Framing::UntilClose => self.body.append(buffer),
                Framing::Length(_) => {
                    self.take(buffer);
                    self.done = self.left == 0;
                }
                Framing::Chunked if self.left > 0 => self.take(buffer),
                Framing::Chunked => {
                    let Some(end) = buffer.windows(2).position(|w| w == b"\r\n") else {
                        return;
                    };
                    let line = String::from_utf8_lossy(&buffer[..end]).to_string();
                    if self.in_chunk {
                        // The line end behind a chunk.
                        if end != 0 {
                            self.broken = Some(format!("{line:?} where a chunk ends"));
                            return;
                        }
                        self.in_chunk = false;
                        buffer.drain(..2);
                        continue;
                    }
                    let size = line.split(';').next().unwrap_or_default().trim();
                    let Ok(size) = u64::from_str_radix(size, 16) else {
                        self.broken = Some(format!("{line:?} where a chunk size is expected"));
                        return;
                    };
                    if size > 0 {
                        buffer.drain(..end + 2);
                        self.left = size;
                        self.in_chunk = true;
                        continue;
                    }
                    // The last chunk, trailers, an empty line.
                    let rest = &buffer[end + 2..];
                    if rest.starts_with(b"\r\n") {
                        buffer.drain(..end + 4);
                        self.done = true;
                        return;
                    }
                    let Some(close) = rest.windows(4).position(|w| w == b"\r\n\r\n") else {
                        return;
                    };
                    let text: String = rest[..close].iter().map(|b| char::from(*b)).collect();
                    self.trailers = text.split("\r\n").map(field).collect();
                    buffer.drain(..end + 2 + close + 4);
                    self.done = true;
                }
            }
        }
    }

    /// The connection has ended.
    pub(crate) fn eof(&mut self) {
        if self.framing == Framing::UntilClose {
            self.done = true;
        }
    }

    fn take(&mut self, buffer: &mut Vec<u8>) {
        let n = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        self.body.extend(buffer.drain(..n));
        self.left -= n as u64;
    }
}

/// The bytes of a chunk.
pub(crate) fn chunk(data: &[u8]) -> Vec<u8> {
    let mut out = format!("{:x}\r\n", data.len()).into_bytes();
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
    out
}

/// The end of a chunked body, with trailers.
pub(crate) fn last_chunk(trailers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = b"0\r\n".to_vec();
    for (n, v) in trailers {
        out.extend_from_slice(format!("{n}: {v}\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}
