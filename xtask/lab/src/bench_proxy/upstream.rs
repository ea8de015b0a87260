//! The upstream: HTTP/1.1 with as little work per request as possible. It counts the requests that carry the field that
//! filters set, so that no filter is measured which did not do its job.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

/// The field that filters set.
pub(crate) const FIELD: &str = "x-bench";
/// Requests for this path are told the field's value, in [`SEEN`].
pub(crate) const CHECK: &str = "/check";
/// The response field that has it; absent if the request had none.
pub(crate) const SEEN: &str = "x-seen";

const ANSWER: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 13\r\nserver: flat\r\n";
const BODY: &str = "\r\nHello, world!";

/// Serves until the runtime ends.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    counts: Rc<Counts>,
}

#[derive(Default)]
struct Counts {
    requests: Cell<u64>,
    marked: Cell<u64>,
}

impl Upstream {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let counts = Rc::new(Counts::default());
        let shared = Rc::clone(&counts);
        spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let counts = Rc::clone(&shared);
                spawn_local(async move {
                    if let Err(error) = serve(stream, &counts).await {
                        eprintln!("upstream: {error:#}");
                    }
                });
            }
        });
        Ok(Self { address, counts })
    }

    /// Requests so far, and those of them that carried the field.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.counts.requests.get(), self.counts.marked.get())
    }
}

/// What is of interest in a request's head.
struct Head {
    bytes: usize,
    body: Body,
    /// The field's value.
    seen: Option<Vec<u8>>,
    check: bool,
}

enum Body {
    Length(usize),
    Chunked,
}

async fn serve(mut stream: TcpStream, counts: &Counts) -> Result<()> {
    stream.set_nodelay(true)?;
    let answer = format!("{ANSWER}{BODY}").into_bytes();
    let mut buffer = vec![0; 80 << 10];
    let mut filled = 0;
    loop {
        // A proxy that closes the connection, or breaks it because it was ended, ends it.
        let Ok(n @ 1..) = stream.read(&mut buffer[filled..]).await else {
            return Ok(());
        };
        filled += n;
        let Some(head) = head(&buffer[..filled])? else {
            continue;
        };
        match head.body {
            Body::Length(length) => {
                let mut missing = (head.bytes + length).saturating_sub(filled);
                while missing > 0 {
                    let Ok(n @ 1..) = stream.read(&mut buffer).await else {
                        return Ok(());
                    };
                    missing = missing.checked_sub(n).context("bytes behind a body")?;
                }
            }
            // The bodies that are sent here have no such end within.
            Body::Chunked => {
                while !buffer[..filled].ends_with(b"0\r\n\r\n") {
                    if filled > buffer.len() / 2 {
                        buffer.copy_within(filled - 8..filled, 0);
                        filled = 8;
                    }
                    let Ok(n @ 1..) = stream.read(&mut buffer[filled..]).await else {
                        return Ok(());
                    };
                    filled += n;
                }
            }
        }
        filled = 0;
        counts.requests.set(counts.requests.get() + 1);
        let marked = u64::from(head.seen.is_some());
        counts.marked.set(counts.marked.get() + marked);
        match head.seen {
            Some(value) if head.check => {
                let value = String::from_utf8_lossy(&value);
                let answer = format!("{ANSWER}{SEEN}: {value}\r\n{BODY}");
                stream.write_all(answer.as_bytes()).await?;
            }
            _ => stream.write_all(&answer).await?,
        }
    }
}

fn head(bytes: &[u8]) -> Result<Option<Head>> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(n) = request.parse(bytes)? else {
        return Ok(None);
    };
    let mut head = Head {
        bytes: n,
        body: Body::Length(0),
        seen: None,
        check: request.path.is_some_and(|path| path == CHECK),
    };
    for field in request.headers.iter() {
        match field.name {
            "content-length" | "Content-Length" => {
                head.body = Body::Length(std::str::from_utf8(field.value)?.parse()?);
            }
            "transfer-encoding" | "Transfer-Encoding" if field.value == b"chunked" => {
                head.body = Body::Chunked;
            }
            "transfer-encoding" | "Transfer-Encoding" => {
                bail!(
                    "transfer-encoding {:?}",
                    field.value.escape_ascii().to_string()
                )
            }
            name if name.eq_ignore_ascii_case(FIELD) => head.seen = Some(field.value.to_vec()),
            _ => {}
        }
    }
    Ok(Some(head))
}
