//! The clients: each answer is checked against its own request, and some requests are given up half way.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use fastrand::Rng;
use http::Request;
use http_body_util::BodyExt;
use hyper::body::Frame;

use super::config::MARK;
use crate::client::{self, Connection, Protocol, Whole};
use crate::upstream::{Seen, hash, subject};

/// What all clients share.
pub(super) struct Shared {
    pub(super) address: SocketAddr,
    pub(super) stop: AtomicBool,
    /// Number of the last configuration that the proxy took, and of the last one that it may have taken.
    pub(super) taken: AtomicU64,
    pub(super) offered: AtomicU64,
    pub(super) answered: AtomicU64,
    pub(super) aborted: AtomicU64,
    /// The first few, and the number of all.
    pub(super) failures: Mutex<(Vec<String>, u64)>,
}

impl Shared {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            stop: AtomicBool::new(false),
            taken: AtomicU64::new(1),
            offered: AtomicU64::new(1),
            answered: AtomicU64::new(0),
            aborted: AtomicU64::new(0),
            failures: Mutex::default(),
        }
    }

    /// The first few failures, and the number of all.
    pub(super) fn failures(&self) -> (Vec<String>, u64) {
        self.failures
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    fn fail(&self, text: String) {
        let mut failures = self
            .failures
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        failures.1 += 1;
        if failures.0.len() < 10 {
            failures.0.push(text);
        }
    }
}

/// How a client gives up.
#[derive(Clone, Copy, Debug)]
enum Abort {
    /// After a while, whatever has come by then.
    Waiting(Duration),
    /// With the request's body half sent.
    Sending,
    /// With the response's body unread.
    Reading,
}

/// A client that asks until it is told to stop.
pub(super) async fn client(shared: &Shared, protocol: Protocol, id: u64, seed: u64) {
    let mut random = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ id);
    let mut connection = None;
    let mut count = 0;
    while !shared.stop.load(SeqCst) {
        count += 1;
        let nonce = format!("{id}-{count}-{:08x}", random.u32(..));
        let abort = (random.u32(..10) == 0).then(|| match random.u32(..3) {
            0 => Abort::Waiting(Duration::from_micros(random.u64(..8000))),
            1 => Abort::Sending,
            _ => Abort::Reading,
        });
        match one(
            shared,
            &mut connection,
            protocol,
            &nonce,
            abort,
            &mut random,
        )
        .await
        {
            Ok(()) if abort.is_some() => {
                shared.aborted.fetch_add(1, SeqCst);
                // HTTP/1.1 has no other way to give up a request than to give up its connection.
                if protocol == Protocol::Http1 || random.u32(..4) == 0 {
                    connection = None;
                }
            }
            Ok(()) => {
                shared.answered.fetch_add(1, SeqCst);
            }
            Err(error) => {
                shared.fail(format!("{} {nonce} {abort:?}: {error:#}", protocol.name()));
                connection = None;
                // A proxy that is gone would be asked millions of times.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        if random.bool() {
            tokio::time::sleep(Duration::from_micros(random.u64(..2000))).await;
        }
    }
}

async fn one(
    shared: &Shared,
    connection: &mut Option<Connection>,
    protocol: Protocol,
    nonce: &str,
    abort: Option<Abort>,
    random: &mut Rng,
) -> Result<()> {
    if connection.as_ref().is_none_or(|c| !c.is_open()) {
        // HTTP/2 connections that were given up, or were never there.
        *connection = Some(Connection::open(shared.address, protocol).await?);
    }
    let connection = connection.as_mut().context("a connection was opened")?;
    let kind = ["echo", "echo", "stream", "wait"][random.usize(..4)];
    let lines = random.usize(..40);
    let upload =
        (random.bool() || matches!(abort, Some(Abort::Sending))).then(|| upload(nonce, random));
    let trace = random.bool().then(|| format!("{:032x}", random.u128(..)));
    let path = format!("/soak/{kind}?config={MARK}&nonce={nonce}");
    let mut request = Request::builder()
        .method(if upload.is_some() { "POST" } else { "GET" })
        .uri(format!("http://{}{path}", shared.address))
        .header("authorization", format!("Bearer good-{nonce}"))
        .header("x-nonce", nonce)
        .header("x-lines", lines)
        .header("x-wait", random.u64(..30));
    if let Some(trace) = &trace {
        request = request.header("x-trace-id", trace);
    }
    let body = match &upload {
        None => client::no_body(),
        Some(text) => {
            request = request.header("content-type", "text/plain");
            pieces(text, matches!(abort, Some(Abort::Sending)), random)
        }
    };
    let request = request.body(body)?;
    let oldest = shared.taken.load(SeqCst);
    match abort {
        None => {
            let whole = tokio::time::timeout(Duration::from_secs(30), connection.ask(request))
                .await
                .context("no answer after 30 s")??;
            let newest = shared.offered.load(SeqCst);
            let wanted = Wanted {
                nonce,
                kind,
                lines,
                upload: upload.as_deref(),
                trace: trace.as_deref(),
                configs: oldest..=newest,
            };
            check(&whole, &wanted)
        }
        Some(Abort::Waiting(time)) => {
            // Whether it was answered in that time does not matter.
            let _ = tokio::time::timeout(time, connection.ask(request)).await;
            Ok(())
        }
        // Ours is the error that ends it.
        Some(Abort::Sending) => {
            let _ = connection.ask(request).await;
            Ok(())
        }
        Some(Abort::Reading) => {
            let response = connection.send(request).await?;
            ensure!(response.status() == 200, "status {}", response.status());
            Ok(())
        }
    }
}

struct Wanted<'a> {
    nonce: &'a str,
    kind: &'a str,
    lines: usize,
    upload: Option<&'a str>,
    trace: Option<&'a str>,
    configs: std::ops::RangeInclusive<u64>,
}

/// Each effect of a filter on an answer must come from the answer's own request, and all from one configuration, which
/// was in force while the request ran.
fn check(whole: &Whole, wanted: &Wanted<'_>) -> Result<()> {
    let text = String::from_utf8_lossy(&whole.body);
    ensure!(whole.status == 200, "status {}: {text}", whole.status);
    ensure!(
        whole.field("x-nonce") == Some(wanted.nonce),
        "nonce of another request: {:?}",
        whole.fields
    );
    let config = whole
        .field("x-config")
        .context("no x-config in the response")?
        .to_owned();
    let number: u64 = config
        .strip_prefix("config-")
        .unwrap_or("")
        .parse()
        .context(config.clone())?;
    ensure!(
        wanted.configs.contains(&number),
        "the response is of {config}, and {:?} were in force",
        wanted.configs
    );
    let mut lines: Vec<_> = text.lines().collect();
    let json = lines.pop().context("an empty body")?;
    if wanted.kind == "stream" {
        ensure!(
            lines.len() == wanted.lines,
            "{} lines, not {}",
            lines.len(),
            wanted.lines
        );
        for (i, line) in lines.iter().enumerate() {
            let start = format!("line {i}: {config} ");
            ensure!(
                line.starts_with(&start),
                "line {i} is {line:?} and not of {config}"
            );
        }
    }
    let seen: Seen = serde_json::from_str(json).with_context(|| format!("the body is {text}"))?;
    let expect = |what: &str, is: Option<&str>, should: Option<&str>| {
        ensure!(
            is == should,
            "{what} is {is:?} and not {should:?}, with {config}"
        );
        Ok(())
    };
    let path = format!(
        "/soak/{}?config={config}&nonce={}",
        wanted.kind, wanted.nonce
    );
    expect(
        "the path in the rewritten body",
        Some(&seen.path),
        Some(&path),
    )?;
    expect(
        "the upstream's x-config",
        seen.field("x-config"),
        Some(&config),
    )?;
    expect(
        "the upstream's x-nonce",
        seen.field("x-nonce"),
        Some(wanted.nonce),
    )?;
    let subject = subject(&format!("good-{}", wanted.nonce));
    expect("the subject", seen.field("x-subject"), Some(&subject))?;
    let trace = whole
        .field("x-trace-id")
        .context("no x-trace-id in the response")?;
    expect(
        "the upstream's x-trace-id",
        seen.field("x-trace-id"),
        Some(trace),
    )?;
    if wanted.trace.is_some() {
        expect("the x-trace-id", Some(trace), wanted.trace)?;
    }
    let upload = wanted.upload.unwrap_or("").replace(MARK, &config);
    if seen.body_bytes != upload.len() as u64 || seen.body_hash != hash(upload.as_bytes()) {
        bail!(
            "the upstream got a body of {} bytes and not the one of {} bytes, with {config}",
            seen.body_bytes,
            upload.len()
        );
    }
    Ok(())
}

/// A text with the mark in it at some places.
fn upload(nonce: &str, random: &mut Rng) -> String {
    let mut text = String::new();
    for _ in 0..random.usize(1..12) {
        text += nonce;
        text += &"-".repeat(random.usize(..3000));
        if random.bool() {
            text += MARK;
        }
    }
    text
}

/// The text in pieces, which do not respect where the mark is. With `broken` it fails half way.
fn pieces(text: &str, broken: bool, random: &mut Rng) -> client::Body {
    let mut left = text.as_bytes();
    let mut frames = VecDeque::new();
    if broken {
        left = &left[..left.len() / 2];
    }
    while !left.is_empty() {
        let (piece, rest) = left.split_at(random.usize(1..=left.len().min(4000)));
        frames.push_back(Ok(Frame::data(Bytes::copy_from_slice(piece))));
        left = rest;
    }
    if broken {
        frames.push_back(Err(io::Error::other("the client gave up")));
    }
    Pieces(frames).boxed()
}

struct Pieces(VecDeque<io::Result<Frame<Bytes>>>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(self.0.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;

    fn answer(change: impl FnOnce(&mut Seen, &mut HeaderMap)) -> Whole {
        let fields = [
            ("x-config", "config-3"),
            ("x-nonce", "1-2-3"),
            ("x-subject", &subject("good-1-2-3")),
            ("x-trace-id", "0123"),
        ];
        let mut seen = Seen {
            method: "POST".into(),
            path: "/soak/stream?config=config-3&nonce=1-2-3".into(),
            fields: fields.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
            body_bytes: 10,
            body_hash: hash(b"a config-3"),
            trailers: vec![],
        };
        let mut headers = HeaderMap::new();
        headers.insert("x-config", "config-3".parse().unwrap());
        headers.insert("x-nonce", "1-2-3".parse().unwrap());
        headers.insert("x-trace-id", "0123".parse().unwrap());
        change(&mut seen, &mut headers);
        Whole {
            status: StatusCode::OK,
            fields: headers,
            body: format!(
                "line 0: config-3 =\n{}",
                serde_json::to_string(&seen).unwrap()
            )
            .into(),
            trailers: HeaderMap::new(),
        }
    }

    fn verdict(whole: &Whole) -> Result<(), String> {
        let wanted = Wanted {
            nonce: "1-2-3",
            kind: "stream",
            lines: 1,
            upload: Some(&format!("a {MARK}")),
            trace: Some("0123"),
            configs: 2..=3,
        };
        check(whole, &wanted).map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn an_answer_of_its_own_passes() {
        verdict(&answer(|_, _| {})).unwrap();
    }

    #[test]
    fn what_belongs_to_another_request_or_configuration_is_seen() {
        type Change = fn(&mut Seen, &mut HeaderMap);
        let cases: [(Change, &str); 8] = [
            (
                |_, h| drop(h.insert("x-nonce", "1-2-4".parse().unwrap())),
                "nonce of another",
            ),
            (
                |_, h| drop(h.insert("x-config", "config-4".parse().unwrap())),
                "were in force",
            ),
            (
                |_, h| drop(h.insert("x-config", "config-2".parse().unwrap())),
                "not of config-2",
            ),
            (|s, _| s.path = s.path.replace("config-3", MARK), "the path"),
            (
                |s, _| s.fields[0].1 = "config-2".into(),
                "the upstream's x-config",
            ),
            (|s, _| s.fields[2].1 = subject("good-1-2-4"), "the subject"),
            (|s, _| s.fields[3].1 = "4567".into(), "x-trace-id"),
            (|s, _| s.body_hash ^= 1, "a body of"),
        ];
        for (change, wanted) in cases {
            let error = verdict(&answer(change)).unwrap_err();
            assert!(error.contains(wanted), "{error} for {wanted}");
        }
    }
}
