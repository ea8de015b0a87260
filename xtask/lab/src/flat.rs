//! A thin upstream and a thin load for benchmarks: HTTP with as little work per request as possible, so that one
//! processor drives a proxy that has another one for itself. Both belong on one current-thread runtime.

mod h2c;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_local};

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 13\r\nserver: flat\r\n\r\nHello, world!";

/// Serves the same answer to each request without a body, until the runtime ends.
pub async fn upstream() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            spawn_local(async move {
                // A proxy that closes the connection ends it.
                let _ = answer(stream).await;
            });
        }
    });
    Ok(address)
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 16 << 10];
    let mut filled = 0;
    loop {
        let n = stream.read(&mut buffer[filled..]).await?;
        if n == 0 {
            return Ok(());
        }
        filled += n;
        if buffer[..filled].ends_with(b"\r\n\r\n") {
            stream.write_all(ANSWER).await?;
            filled = 0;
        }
    }
}

/// A GET with six fields beside `host`.
#[must_use]
pub fn request(path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nhost: bench.example\r\nuser-agent: flat/1\r\naccept: text/plain\r\n\
         accept-language: en-GB,en;q=0.7\r\ncookie: session=8f14e45fceea167a5a36dedd4bea2543\r\n\
         x-client: 0123456789abcdef\r\nx-purpose: benchmark\r\n\r\n"
    )
    .into_bytes()
}

/// What the connections of a load ask, again and again.
#[derive(Clone, Debug)]
pub enum Ask {
    /// These bytes, one request at a time on each connection.
    Http1(Vec<u8>),
    /// A GET of `fields`, so many at a time on each connection.
    H2c {
        /// The fields, pseudo-header fields first.
        fields: Vec<(String, String)>,
        /// Requests at a time.
        streams: u32,
    },
}

/// Connections that ask one after the other, each as fast as it is answered, whenever they are told to.
pub struct Load {
    shared: Rc<Shared>,
    tasks: Vec<JoinHandle<Result<()>>>,
}

struct Shared {
    running: Cell<bool>,
    start: Notify,
    /// Connections that are between requests while the load is stopped.
    idle: Cell<usize>,
    all_idle: Notify,
    done: Cell<u64>,
    times: RefCell<Option<Vec<u64>>>,
}

impl Shared {
    /// A request that was sent at `begin` has been answered.
    fn answered(&self, begin: Instant) {
        if let Some(times) = self.times.borrow_mut().as_mut() {
            let ns = begin.elapsed().as_nanos();
            times.push(u64::try_from(ns).unwrap_or(u64::MAX));
        }
        self.done.set(self.done.get() + 1);
    }
}

impl Load {
    /// Opens connections to `address` that ask for `path` over HTTP/1.1.
    pub async fn open(address: SocketAddr, path: &str, connections: usize) -> Result<Self> {
        Self::asking(address, &Ask::Http1(request(path)), connections).await
    }

    /// Opens connections to `address`.
    pub async fn asking(address: SocketAddr, ask: &Ask, connections: usize) -> Result<Self> {
        let shared = Rc::new(Shared {
            running: Cell::new(false),
            start: Notify::new(),
            idle: Cell::new(connections),
            all_idle: Notify::new(),
            done: Cell::new(0),
            times: RefCell::new(None),
        });
        let mut tasks = Vec::new();
        for _ in 0..connections {
            let stream = TcpStream::connect(address)
                .await
                .with_context(|| format!("connect to {address}"))?;
            stream.set_nodelay(true)?;
            tasks.push(spawn_local(converse(
                stream,
                ask.clone(),
                Rc::clone(&shared),
            )));
        }
        Ok(Self { shared, tasks })
    }

    /// Begins to ask. With `times` the time of each request is kept.
    pub fn start(&self, times: bool) {
        *self.shared.times.borrow_mut() = times.then(Vec::new);
        self.shared.running.set(true);
        self.shared.start.notify_waiters();
    }

    /// Number of answers so far.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.shared.done.get()
    }

    /// Stops, and waits until the last request has been answered. Gives the times of the requests in nanoseconds, if
    /// they were kept.
    pub async fn stop(&mut self) -> Result<Vec<u64>> {
        self.shared.running.set(false);
        while self.shared.idle.get() < self.tasks.len() {
            if let Some(ended) = self.tasks.iter().position(JoinHandle::is_finished) {
                self.tasks.swap_remove(ended).await??;
                bail!("a connection ended by itself");
            }
            self.shared.all_idle.notified().await;
        }
        Ok(self.shared.times.take().unwrap_or_default())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn converse(stream: TcpStream, ask: Ask, shared: Rc<Shared>) -> Result<()> {
    let done = match ask {
        Ask::Http1(request) => http1(stream, &request, &shared).await,
        Ask::H2c { fields, streams } => h2c::converse(stream, &fields, streams, &shared).await,
    };
    // `stop` looks.
    shared.all_idle.notify_one();
    done
}

async fn http1(mut stream: TcpStream, request: &[u8], shared: &Shared) -> Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        while !shared.running.get() {
            shared.start.notified().await;
        }
        shared.idle.set(shared.idle.get() - 1);
        while shared.running.get() {
            let begin = Instant::now();
            stream.write_all(request).await?;
            response(&mut stream, &mut buffer).await?;
            shared.answered(begin);
        }
        shared.idle.set(shared.idle.get() + 1);
        shared.all_idle.notify_one();
    }
}

/// Reads one response with a length and status 200.
async fn response(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    loop {
        let n = stream.read(&mut buffer[filled..]).await?;
        ensure!(n > 0, "the connection was closed within a response");
        filled += n;
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(body) = head.parse(&buffer[..filled])? else {
            continue;
        };
        ensure!(
            head.code == Some(200),
            "status {:?}: {}",
            head.code,
            String::from_utf8_lossy(&buffer[..filled])
        );
        let length = head
            .headers
            .iter()
            .find(|f| f.name.eq_ignore_ascii_case("content-length"))
            .context("a response without a length")?;
        let length: usize = std::str::from_utf8(length.value)?.parse()?;
        while filled < body + length {
            let n = stream.read(&mut buffer[filled..]).await?;
            ensure!(n > 0, "the connection was closed within a body");
            filled += n;
        }
        ensure!(
            filled == body + length,
            "more bytes than the response has: {}",
            String::from_utf8_lossy(&buffer[..filled])
        );
        return Ok(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_counts_what_the_upstream_answered() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let address = upstream().await.unwrap();
            let mut load = Load::open(address, "/", 4).await.unwrap();
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
    fn a_refused_request_is_an_error() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            spawn_local(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 1024];
                assert!(stream.read(&mut buffer).await.unwrap() > 0);
                let answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            });
            let mut load = Load::open(address, "/", 1).await.unwrap();
            load.start(false);
            while !load.tasks[0].is_finished() {
                tokio::task::yield_now().await;
            }
            let error = load.stop().await.unwrap_err();
            assert!(format!("{error:#}").contains("503"), "{error:#}");
        });
    }
}
