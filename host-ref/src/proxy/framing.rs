//! Finds HTTP/1 requests whose framing contradicts itself (PXG-SEC-007).
//!
//! The HTTP library obeys RFC 9112 6.3 and drops `content-length` where `transfer-encoding` is there too, so what a
//! guest sees is what is forwarded. A request like that is still an attack or a broken client, and the front of this
//! one may have believed the other length: it is refused. The library does not tell, so this follows the bytes beside
//! it: heads line by line, bodies by their framing. It never decides where a message ends for anybody but itself.

/// Follows the requests of one connection.
#[derive(Debug)]
pub(super) struct FramingCheck {
    state: State,
    line: Line,
    length: Option<u64>,
    chunked: bool,
    conflict: bool,
    fields: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Head,
    Body(u64),
    ChunkSize {
        size: u64,
        done: bool,
    },
    ChunkData(u64),
    Trailers,
    /// It has lost its place; the library rejects or ends the connection by itself.
    Lost,
}

/// The beginning of the line that is being read, enough for the names that matter.
#[derive(Debug, Default)]
struct Line {
    bytes: Vec<u8>,
    long: bool,
}

const LINE: usize = 64;

impl Line {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn push(&mut self, part: &[u8]) {
        let room = LINE - self.bytes.len();
        self.long |= part.len() > room;
        self.bytes.extend_from_slice(&part[..part.len().min(room)]);
    }
}

impl Default for FramingCheck {
    fn default() -> Self {
        Self {
            state: State::Head,
            line: Line::default(),
            length: None,
            chunked: false,
            conflict: false,
            fields: false,
        }
    }
}

impl FramingCheck {
    /// Takes what was read; answers whether the head of a request that ends in it contradicts itself.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> bool {
        let mut found = false;
        while !bytes.is_empty() {
            match self.state {
                State::Head | State::Trailers => {
                    let end = memchr::memchr(b'\n', bytes);
                    let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
                    if end.is_none() || !self.line.is_empty() {
                        self.line.push(part);
                    }
                    if end.is_none() {
                        break;
                    }
                    bytes = &rest[1..];
                    if self.line.is_empty() {
                        found |= self.line_end(part, part.len() > LINE);
                    } else {
                        // It came in pieces.
                        let line = std::mem::take(&mut self.line);
                        found |= self.line_end(&line.bytes, line.long);
                    }
                }
                State::Body(left) => {
                    let take = left.min(bytes.len() as u64);
                    bytes = &bytes[usize::try_from(take).unwrap_or(bytes.len())..];
                    self.state = match left - take {
                        0 => State::Head,
                        left => State::Body(left),
                    };
                }
                State::ChunkSize { size, done } => {
                    let (byte, rest) = (bytes[0], &bytes[1..]);
                    bytes = rest;
                    self.state = match (char::from(byte).to_digit(16), byte, done) {
                        (_, b'\n', _) if size == 0 => State::Trailers,
                        (_, b'\n', _) => State::ChunkData(size.saturating_add(2)),
                        (Some(digit), _, false) if size >> 56 == 0 => State::ChunkSize {
                            size: size << 4 | u64::from(digit),
                            done,
                        },
                        (Some(_), _, false) => State::Lost,
                        _ => State::ChunkSize { size, done: true },
                    };
                }
                State::ChunkData(left) => {
                    let take = left.min(bytes.len() as u64);
                    bytes = &bytes[usize::try_from(take).unwrap_or(bytes.len())..];
                    self.state = match left - take {
                        0 => State::ChunkSize {
                            size: 0,
                            done: false,
                        },
                        left => State::ChunkData(left),
                    };
                }
                State::Lost => break,
            }
        }
        found
    }

    /// Whether the client is in the middle of a request, and so probably goes on sending.
    pub(super) fn is_midway(&self) -> bool {
        self.fields || !self.line.is_empty() || !matches!(self.state, State::Head)
    }

    /// The end of a line, without its LF. Of a long one the beginning is enough.
    fn line_end(&mut self, line: &[u8], long: bool) -> bool {
        let line = match line {
            [line @ .., b'\r'] if !long => line,
            line => line,
        };
        if !line.is_empty() {
            if matches!(self.state, State::Head) {
                self.fields = true;
                self.field(line);
            }
            return false;
        }
        if matches!(self.state, State::Trailers) {
            self.state = State::Head;
            return false;
        }
        if !self.fields {
            return false; // empty lines before a request do not count (RFC 9112 2.2)
        }
        self.fields = false;
        let found = std::mem::take(&mut self.conflict) || (self.chunked && self.length.is_some());
        self.state = match (std::mem::take(&mut self.chunked), self.length.take()) {
            (true, _) => State::ChunkSize {
                size: 0,
                done: false,
            },
            (false, Some(length)) if length > 0 => State::Body(length),
            (false, _) => State::Head,
        };
        found
    }

    fn field(&mut self, line: &[u8]) {
        let Some(first) = line.first() else { return };
        if !matches!(first, b'c' | b'C' | b't' | b'T') {
            return;
        }
        let Some(colon) = line.iter().position(|b| *b == b':') else {
            return;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
            match (self.length, length) {
                (None, Some(_)) => self.length = length,
                (Some(known), Some(length)) if known == length => {}
                _ => self.conflict = true,
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.chunked = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(stream: &[u8], piece: usize) -> usize {
        let mut check = FramingCheck::default();
        stream
            .chunks(piece)
            .filter(|bytes| check.feed(bytes))
            .count()
    }

    /// Every way to cut the stream gives the same verdict.
    fn conflicts(stream: &[u8], expected: usize) {
        for piece in 1..=stream.len() {
            let found = verdicts(stream, piece);
            assert!(
                found == expected || (found == 1 && expected > 1),
                "pieces of {piece}: {found} conflicts, expected {expected}"
            );
        }
    }

    #[test]
    fn both_lengths_are_a_conflict_in_any_order_and_case() {
        conflicts(
            b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
            1,
        );
        conflicts(
            b"POST / HTTP/1.1\r\nTRANSFER-ENCODING: chunked\r\nhost: x\r\ncontent-LENGTH: 4\r\n\r\n",
            1,
        );
    }

    #[test]
    fn two_different_lengths_are_a_conflict() {
        conflicts(
            b"POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
            1,
        );
    }

    #[test]
    fn bodies_are_not_taken_for_heads() {
        let fake = b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut stream = format!(
            "\r\nPOST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n",
            fake.len()
        )
        .into_bytes();
        stream.extend_from_slice(fake);
        stream.extend_from_slice(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n");
        stream.extend_from_slice(format!("{:X};ext=1\r\n", fake.len()).as_bytes());
        stream.extend_from_slice(fake);
        stream.extend_from_slice(
            b"\r\n0\r\nx-trailer: 1\r\ncontent-length: 3\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        );
        conflicts(&stream, 0);
        stream.extend_from_slice(
            b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        );
        conflicts(&stream, 1);
    }

    #[test]
    fn a_long_field_hides_nothing() {
        let mut stream = b"POST / HTTP/1.1\r\nx: ".to_vec();
        stream.extend_from_slice(&[b'y'; 500]);
        stream.extend_from_slice(b"\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n");
        conflicts(&stream, 1);
    }
}
