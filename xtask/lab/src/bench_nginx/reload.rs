//! Reloads: what stays in memory after many, and what happens to requests meanwhile.

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use super::server::Server;
use super::variant::{Built, Kind, PLAIN, Variant};
use crate::bench_proxy::{More, Upstream, progress};
use crate::process::Usage;

pub(super) const GROWTH: &str = "growth";
pub(super) const LOAD: &str = "load";

/// Whose every request waits for some milliseconds.
const SLOW: Variant = Variant {
    name: "go-slow",
    kind: Kind::Go("bench-slow"),
    ..PLAIN
};

/// How long a reload may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests under way at a time.
const CONNECTIONS: usize = 32;
/// Reloads before memory is first looked at.
const FIRST: u32 = 5;
/// What a page here or there may make, in KiB.
const MASTER_MORE: i64 = 64;
const WORKER_MORE: i64 = 512;

/// Has a worker replaced by another one, and waits until it serves; the new one.
async fn reload(server: &Server) -> Result<Pid> {
    let old = server.worker()?.context("no worker")?;
    server.reload()?;
    let begin = Instant::now();
    loop {
        match server.worker()? {
            Some(new) if new != old && ask(server.address).await.is_ok() => return Ok(new),
            _ => {}
        }
        ensure!(
            begin.elapsed() < PATIENCE,
            "no new worker {PATIENCE:?} after a reload"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Memory and files of master and worker after the first few reloads and after many more.
pub(super) async fn growth(built: &Built, folder: &Path, reloads: u32) -> Result<More> {
    let upstream = Upstream::start().await?;
    let folder = folder.join("growth");
    let server = Server::start(&SLOW, built, upstream.address, &folder, true).await?;
    let mut first = None;
    let mut worker = server.worker()?.context("no worker")?;
    for i in 0..FIRST + reloads {
        if i == FIRST {
            first = Some((Usage::of(server.master()?)?, Usage::of(worker)?));
        }
        progress(&format!("reload {} of {}", i + 1, FIRST + reloads));
        worker = reload(&server).await?;
    }
    let (master, of_worker) = first.context("--reloads 0: at least one is needed")?;
    let now = (Usage::of(server.master()?)?, Usage::of(worker)?);
    let more = |before: u64, after: u64| {
        i64::try_from(after).unwrap_or(0) - i64::try_from(before).unwrap_or(0)
    };
    let master_more = more(master.private_kib, now.0.private_kib);
    let worker_more = more(of_worker.private_kib, now.1.private_kib);
    let files = more(master.files + of_worker.files, now.0.files + now.1.files);
    Ok(More {
        name: GROWTH,
        found: format!(
            "{reloads} reloads with a guest in Go: {master_more:+} KiB of {} KiB in the master, {worker_more:+} KiB of {} \
             KiB in the worker, {files:+} files",
            master.private_kib, of_worker.private_kib
        ),
        target: format!("no growth: at most {MASTER_MORE} KiB, {WORKER_MORE} KiB, 0 files"),
        reached: master_more <= MASTER_MORE && worker_more <= WORKER_MORE && files <= 0,
    })
}

#[derive(Default)]
struct Counts {
    answered: Cell<u64>,
    lost: Cell<u64>,
    why: Cell<Option<String>>,
    over: Cell<bool>,
    running: Cell<usize>,
}

/// Requests on connections of their own, so that none is sent on a connection that is just being closed, while the
/// configuration is read again each second.
pub(super) async fn under_load(built: &Built, folder: &Path, seconds: u32) -> Result<More> {
    let upstream = Upstream::start().await?;
    let folder = folder.join("load");
    let server = Server::start(&SLOW, built, upstream.address, &folder, true).await?;
    let counts = Rc::new(Counts::default());
    for _ in 0..CONNECTIONS {
        let (counts, address) = (Rc::clone(&counts), server.address);
        counts.running.set(counts.running.get() + 1);
        spawn_local(async move {
            while !counts.over.get() {
                match ask(address).await {
                    Ok(()) => counts.answered.set(counts.answered.get() + 1),
                    Err(error) => {
                        counts.lost.set(counts.lost.get() + 1);
                        counts.why.set(Some(format!("{error:#}")));
                    }
                }
            }
            counts.running.set(counts.running.get() - 1);
        });
    }
    for second in 0..seconds {
        progress(&format!("second {} of {seconds} with reloads", second + 1));
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.reload()?;
    }
    counts.over.set(true);
    let begin = Instant::now();
    while counts.running.get() > 0 {
        ensure!(
            begin.elapsed() < PATIENCE,
            "{} requests are without an answer",
            counts.running.get()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (answered, lost) = (counts.answered.get(), counts.lost.get());
    ensure!(answered > 0, "no request was answered");
    let why = counts
        .why
        .take()
        .map(|why| format!(", the last one by: {why}"));
    Ok(More {
        name: LOAD,
        found: format!(
            "{seconds} s of load with {seconds} reloads and {CONNECTIONS} requests pending at a time: {lost} of {} lost{}",
            answered + lost,
            why.unwrap_or_default()
        ),
        target: "0 lost".to_owned(),
        reached: lost == 0,
    })
}

/// One request on its own connection.
async fn ask(address: SocketAddr) -> Result<()> {
    let request = "GET / HTTP/1.1\r\nhost: bench.example\r\nconnection: close\r\n\r\n";
    let mut stream = TcpStream::connect(address).await.context("connect")?;
    stream.write_all(request.as_bytes()).await.context("send")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.context("receive")?;
    ensure!(
        answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"Hello, world!"),
        "the answer {:?}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}
