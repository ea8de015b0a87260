//! The load over HTTP/2 without TLS, on frames: a library would take about as much time for a request as a proxy does.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Shared;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;
/// What a peer may send us at most, as nothing was agreed on.
const MAX_FRAME: usize = 16 << 10;

mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
}

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// Asks while the load runs, `streams` requests at a time.
pub(super) async fn converse(
    mut stream: TcpStream,
    fields: &[(String, String)],
    streams: u32,
    shared: &Shared,
) -> Result<()> {
    let mut out = PREFACE.to_vec();
    // Initial window of streams, and that of the connection: neither is ever used up.
    frame(
        &mut out,
        kind::SETTINGS,
        0,
        0,
        &[0, 4, 0x7f, 0xff, 0xff, 0xff],
    );
    let rest: u32 = 0x7fff_ffff - 0xffff;
    frame(&mut out, kind::WINDOW_UPDATE, 0, 0, &rest.to_be_bytes());
    stream.write_all(&out).await?;
    // The first request puts its fields into the table, the others refer to it.
    let mut block = literal(fields)?;
    let mut next = 1u32;
    let mut open: Vec<(u32, Instant)> = Vec::new();
    let mut buffer = Vec::with_capacity(64 << 10);
    loop {
        while !shared.running.get() {
            shared.start.notified().await;
        }
        shared.idle.set(shared.idle.get() - 1);
        out.clear();
        loop {
            while shared.running.get() && open.len() < streams as usize {
                frame(
                    &mut out,
                    kind::HEADERS,
                    END_STREAM | END_HEADERS,
                    next,
                    &block,
                );
                open.push((next, Instant::now()));
                block = indexed(fields.len());
                next += 2;
                ensure!(next < 1 << 31, "a connection has no more stream ids");
            }
            if open.is_empty() {
                break;
            }
            stream.write_all(&out).await?;
            out.clear();
            let n = stream.read_buf(&mut buffer).await?;
            ensure!(n > 0, "the connection was closed with requests open");
            let mut at = 0;
            while let Some(read) = Frame::read(&buffer[at..])? {
                at += HEAD + read.payload.len();
                if let Some(ended) = read.handle(&mut out)? {
                    let Some(i) = open.iter().position(|(id, _)| *id == ended) else {
                        bail!("stream {ended} ended, which is not open");
                    };
                    shared.answered(open.swap_remove(i).1);
                }
            }
            buffer.drain(..at);
        }
        stream.write_all(&out).await?;
        shared.idle.set(shared.idle.get() + 1);
        shared.all_idle.notify_one();
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    // Lengths here are below 2^14.
    #[allow(clippy::cast_possible_truncation)]
    let length = (payload.len() as u32).to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first frame of `bytes`, if all of it is there.
    fn read(bytes: &'a [u8]) -> Result<Option<Self>> {
        let Some((head, rest)) = bytes.split_at_checked(HEAD) else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        ensure!(length <= MAX_FRAME, "a frame of {length} bytes");
        Ok(rest.get(..length).map(|payload| Self {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]),
            payload,
        }))
    }

    /// Answers it in `out` if it has to be; the stream that it ends.
    fn handle(&self, out: &mut Vec<u8>) -> Result<Option<u32>> {
        match self.kind {
            kind::HEADERS => ensure!(
                status_is_200(self.payload),
                "stream {}: not status 200: {:?}",
                self.stream,
                String::from_utf8_lossy(self.payload)
            ),
            kind::SETTINGS if self.flags & ACK == 0 => frame(out, kind::SETTINGS, ACK, 0, &[]),
            kind::PING if self.flags & ACK == 0 => frame(out, kind::PING, ACK, 0, self.payload),
            kind::RST_STREAM => bail!("stream {} was reset: {:?}", self.stream, self.payload),
            kind::GOAWAY => bail!(
                "the connection is to end: {:?}",
                String::from_utf8_lossy(self.payload)
            ),
            _ => {}
        }
        let ends = matches!(self.kind, kind::HEADERS | kind::DATA) && self.flags & END_STREAM != 0;
        Ok(ends.then_some(self.stream))
    }
}

/// Whether a header block begins with `:status: 200`, which is the 8th entry of the static table.
fn status_is_200(block: &[u8]) -> bool {
    let mut rest = block;
    // Changes of the table's size come first.
    while let [first, more @ ..] = rest {
        if first & 0xe0 != 0x20 {
            return *first == 0x88;
        }
        rest = more;
        if first & 0x1f == 0x1f {
            let end = rest.iter().position(|byte| byte & 0x80 == 0);
            rest = &rest[end.map_or(rest.len(), |i| i + 1)..];
        }
    }
    false
}

/// The fields, each put into the dynamic table.
fn literal(fields: &[(String, String)]) -> Result<Vec<u8>> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0x40);
        for text in [name, value] {
            // One byte holds the length up to 126, and the table of 4096 bytes holds all fields.
            ensure!(text.len() < 127, "{name}: more than 126 bytes");
            #[allow(clippy::cast_possible_truncation)]
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    let size: usize = fields.iter().map(|(n, v)| n.len() + v.len() + 32).sum();
    ensure!(size <= 4096, "{size} bytes of fields, the table has 4096");
    Ok(block)
}

/// The same fields once the dynamic table, which begins at 62 with the last one, has them.
fn indexed(n: usize) -> Vec<u8> {
    #[allow(clippy::cast_possible_truncation)] // `literal` has made sure: 4096 / 32 at most
    let n = n as u8;
    (0..n).rev().map(|i| 0x80 | (62 + i)).collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http::{Request, Response, StatusCode};
    use http_body_util::Full;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::net::TcpListener;
    use tokio::task::spawn_local;

    use super::*;
    use crate::flat::{Ask, Load};

    /// A server of the library that answers as long as it gets the fields.
    async fn server() -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(|request: Request<Incoming>| async move {
                let right = request.uri().path() == "/x" && request.headers()["x-a"] == "b";
                let mut response = Response::new(Full::new(Bytes::from_static(b"Hello")));
                if !right {
                    *response.status_mut() = StatusCode::BAD_REQUEST;
                }
                Ok::<_, Infallible>(response)
            });
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await
        });
        address
    }

    fn ask(value: &str) -> Ask {
        let fields = [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/x"),
            (":authority", "bench.example"),
            ("x-a", value),
        ];
        Ask::H2c {
            fields: fields.map(|(n, v)| (n.into(), v.into())).to_vec(),
            streams: 4,
        }
    }

    fn local<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, work)
    }

    #[test]
    fn a_library_understands_the_load() {
        local(async {
            let mut load = Load::asking(server().await, &ask("b"), 1).await.unwrap();
            for _ in 0..2 {
                let before = load.done();
                load.start(true);
                while load.done() < before + 1000 {
                    tokio::task::yield_now().await;
                }
                let times = load.stop().await.unwrap();
                assert_eq!(times.len() as u64, load.done() - before);
            }
        });
    }

    #[test]
    fn another_status_is_an_error() {
        local(async {
            let mut load = Load::asking(server().await, &ask("c"), 1).await.unwrap();
            load.start(false);
            while !load.tasks[0].is_finished() {
                tokio::task::yield_now().await;
            }
            let error = load.stop().await.unwrap_err();
            assert!(format!("{error:#}").contains("not status 200"), "{error:#}");
        });
    }

    #[test]
    fn the_status_is_found_behind_table_sizes() {
        assert!(status_is_200(&[0x88, 0x5c]));
        assert!(status_is_200(&[0x3f, 0xe1, 0x1f, 0x88]));
        assert!(status_is_200(&[0x20, 0x88]));
        assert!(!status_is_200(&[0x8d]));
        assert!(!status_is_200(&[0x3f, 0xe1]));
    }
}
