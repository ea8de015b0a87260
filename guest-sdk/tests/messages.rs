//! Headers, bodies, trailers and replies through the exported table.

use proxy_golang_guest::prelude::*;
use proxy_golang_guest::testing::{End, TestHost, get, request, response};
use proxy_golang_guest::{Buffer, Library, library};

const SEEDS: std::ops::Range<u64> = 0..64;

/// Declares a filter without configuration from its phase impls.
macro_rules! plain_filter {
    ($name:ident, $ctx:ty) => {
        struct $name;
        impl Filter for $name {
            type Ctx = $ctx;
            fn configure(_: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
                Ok(Self)
            }
        }
    };
}

// ---- headers

struct Headers {
    value: String,
}

impl Filter for Headers {
    type Ctx = ();
    fn configure(input: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Self {
            value: input.text()?.to_owned(),
        })
    }
}

impl OnRequestHeaders for Headers {
    fn on_request_headers<'c>(&'c self, (): &'c mut (), ev: &HeadersEvent<'c>) -> Outcome {
        let headers = ev.headers();
        assert_eq!(headers.get("absent"), None);
        assert_eq!(headers.get("empty"), Some(&b""[..]));
        assert_eq!(headers.get_all("twice").collect::<Vec<_>>(), [b"1", b"2"]);
        let local = format!("n={}", headers.len());
        ev.set_header("x-copied", &local);
        ev.set_header_fmt("x-formatted", format_args!("{}-{}", headers.len(), 7));
        ev.set_header_borrowed("x-borrowed", &self.value);
        ev.set_header_borrowed("x-view", headers.get(":path").unwrap());
        ev.add_header("twice", "3");
        ev.remove_header("gone");
        ev.set_header_at(headers.position("at").unwrap(), "new");
        ev.remove_header_at(headers.position("empty").unwrap());
        ev.set_header(":path", "/other");
        Ok(Verdict::Continue)
    }
}

/// More operations and bytes than the host lends at first.
struct Many(usize);

impl Filter for Many {
    type Ctx = ();
    fn configure(input: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Self(input.text()?.parse()?))
    }
}

impl OnRequestHeaders for Many {
    fn on_request_headers(&self, (): &mut (), ev: &HeadersEvent<'_>) -> Outcome {
        for i in 0..self.0 {
            ev.add_header(format!("x-{i}"), format!("{i}-").repeat(40));
        }
        Ok(Verdict::Continue)
    }
}

plain_filter!(Panics, ());

impl OnRequestHeaders for Panics {
    fn on_request_headers(&self, (): &mut (), ev: &HeadersEvent<'_>) -> Outcome {
        match ev.headers().get_str("x-how").unwrap_or_default() {
            "panic" => panic!("on purpose {}", 42),
            "error" => Err("nonsense".parse::<u32>().unwrap_err().into()),
            "text" => Err(FilterError::new("said so")),
            "reply-and-go-on" => {
                ev.reply(403).send()?;
                Ok(Verdict::Continue)
            }
            _ => Ok(Verdict::Continue),
        }
    }
}

static LIBRARY: Library = library! {
    "headers" => Headers,
    "many" => Many,
    "panics" => Panics,
    "replies" => Replies,
    "rot" => Rot,
    "whole" => Whole,
    "lines" => Lines,
    "observer" => Observer,
    "stamp" => Stamp,
    "count" => Count,
};

#[test]
fn header_operations_arrive_as_written() {
    let host = TestHost::new(&LIBRARY);
    let config = host.configure("headers", "from the configuration").unwrap();
    let done = config.exchange(
        get("/here")
            .header("empty", "")
            .header("twice", "1")
            .header("twice", "2")
            .header("gone", "x")
            .header("at", "old"),
        response(204),
    );
    let got = done.upstream();
    assert_eq!(got.get("x-copied"), Some("n=9"));
    assert_eq!(got.get("x-formatted"), Some("9-7"));
    assert_eq!(got.get("x-borrowed"), Some("from the configuration"));
    assert_eq!(got.get("x-view"), Some("/here"));
    assert_eq!(got.get(":path"), Some("/other"));
    assert_eq!(got.get("at"), Some("new"));
    assert_eq!((got.get("gone"), got.get("empty")), (None, None));
    let twice: Vec<_> = got
        .fields()
        .iter()
        .filter(|(n, _)| n == b"twice")
        .map(|(_, v)| v.as_slice())
        .collect();
    assert_eq!(twice, [b"1", b"2", b"3"]);
    assert_eq!(done.end(), &End::Complete);
}

#[test]
fn more_than_the_lent_scratch() {
    let host = TestHost::new(&LIBRARY);
    for n in [31, 32, 33, 64, 65, 500] {
        let config = host.configure("many", n.to_string()).unwrap();
        let done = config.exchange(get("/"), response(204));
        assert_eq!(done.upstream().fields().len(), 4 + n);
        for i in 0..n {
            let want = format!("{i}-").repeat(40);
            assert_eq!(done.upstream().get(&format!("x-{i}")), Some(want.as_str()));
        }
    }
}

#[test]
fn scratch_over_the_hosts_limit_fails_the_stream_alone() {
    let host = TestHost::new(&LIBRARY);
    let config = host.configure("many", "20000").unwrap();
    let done = config.exchange(get("/"), response(204));
    assert!(
        matches!(done.end(), End::Failed(text) if text.contains("scratch_more refused")),
        "{:?}",
        done.end()
    );
    assert_eq!(done.client().status(), 500);
}

#[test]
fn a_panic_and_an_error_fail_the_stream_with_their_text() {
    let host = TestHost::new(&LIBRARY);
    let config = host.configure("panics", "").unwrap();
    for (how, want) in [
        ("panic", "panic: on purpose 42"),
        ("error", "invalid digit found in string"),
        ("text", "said so"),
        ("reply-and-go-on", "return what send() answered"),
    ] {
        let done = config.exchange(get("/").header("x-how", how), response(204));
        assert!(
            matches!(done.end(), End::Failed(text) if text.contains(want)),
            "{how}: {:?}",
            done.end()
        );
        assert!(!done.reached_upstream());
        assert_eq!(done.client().status(), 500);
    }
    let done = config.exchange(get("/").header("x-how", "well"), response(204));
    assert_eq!(done.end(), &End::Complete);
}

// ---- replies

plain_filter!(Replies, ());

impl OnRequestHeaders for Replies {
    fn on_request_headers(&self, (): &mut (), ev: &HeadersEvent<'_>) -> Outcome {
        let mut reply = ev.reply(418).details("short and stout");
        for i in 0..20 {
            reply = reply
                .header(format!("x-{i}"), format!("{i}"))
                .body(format!("{i},"));
        }
        reply
            .body_owned(vec![b'!'; 5000])
            .body_borrowed("\n")
            .trailer("x-end", "1")
            .send()
    }
}

impl OnResponseHeaders for Replies {
    fn on_response_headers(&self, (): &mut (), _: &HeadersEvent<'_>) -> Outcome {
        unreachable!("PXG-RPL-002: no response phase for its own reply")
    }
}

#[test]
fn a_reply_of_every_part() {
    let host = TestHost::new(&LIBRARY);
    let config = host.configure("replies", "").unwrap();
    let done = config.exchange(get("/"), response(204));
    assert_eq!(done.end(), &End::Replied);
    assert!(!done.reached_upstream());
    let got = done.client();
    assert_eq!(got.status(), 418);
    for i in 0..20 {
        assert_eq!(got.get(&format!("x-{i}")), Some(i.to_string().as_str()));
    }
    let list: String = (0..20).map(|i| format!("{i},")).collect();
    assert_eq!(got.text(), format!("{list}{}\n", "!".repeat(5000)));
    assert_eq!(got.get_trailer("x-end"), Some("1"));
    assert_eq!(done.details(), "short and stout");
    assert_eq!(host.owned_released(), 1);
}

// ---- bodies

// ROT13 of a stream: same length, no memory.
plain_filter!(Rot, ());

fn rot13(bytes: &[u8]) -> Vec<u8> {
    bytes
        .iter()
        .map(|&c| match c {
            b'a'..=b'z' => (c - b'a' + 13) % 26 + b'a',
            other => other,
        })
        .collect()
}

impl OnRequestBody for Rot {
    const MODE: BodyMode = BodyMode::STREAM;
    fn on_request_body(&self, (): &mut (), ev: &BodyEvent<'_>) -> Outcome {
        ev.discard(ev.len());
        for chunk in ev.chunks() {
            ev.inject(rot13(chunk));
        }
        Ok(Verdict::Continue)
    }
}

// Replaces a whole body, and its etag.
plain_filter!(Whole, ());

impl OnResponseBody for Whole {
    const MODE: BodyMode = BodyMode::WHOLE;
    fn on_response_body(&self, (): &mut (), ev: &BodyEvent<'_>) -> Outcome {
        assert!(ev.headers_held() && ev.is_whole() && ev.is_end());
        assert_eq!(ev.offset(), 0);
        ev.remove_header("etag");
        ev.set_trailer("x-was", ev.len().to_string());
        ev.replace(format!("<{}>", String::from_utf8(ev.to_vec())?));
        Ok(Verdict::Continue)
    }
}

// Passes whole lines, each with its number put before it; what is not a line yet stays with the host.
plain_filter!(Lines, u64);

impl OnRequestHeaders for Lines {
    fn on_request_headers(&self, _: &mut u64, ev: &HeadersEvent<'_>) -> Outcome {
        ev.resizes();
        Ok(Verdict::Continue)
    }
}

impl OnRequestBody for Lines {
    const MODE: BodyMode = BodyMode::STREAM;
    fn on_request_body(&self, lines: &mut u64, ev: &BodyEvent<'_>) -> Outcome {
        let view = ev.contiguous();
        let mut rest = &view[..];
        while let Some(end) = rest.iter().position(|&c| c == b'\n') {
            *lines += 1;
            ev.inject_copy(format!("{lines}:"));
            ev.pass(end + 1);
            rest = &rest[end + 1..];
        }
        if ev.is_end() {
            return Ok(Verdict::Continue);
        }
        Ok(Verdict::More(1))
    }
}

// Looks at what has been forwarded.
plain_filter!(Observer, Vec<u8>);

impl OnRequestBody for Observer {
    const MODE: BodyMode = BodyMode::OBSERVE;
    fn on_request_body(&self, seen: &mut Vec<u8>, ev: &BodyEvent<'_>) -> Outcome {
        assert_eq!(ev.offset(), seen.len() as u64);
        ev.chunks().for_each(|c| seen.extend_from_slice(c));
        ev.set_metadata("seen", &*seen);
        Ok(Verdict::Continue)
    }
}

// Adds a trailer wherever one can be added.
plain_filter!(Stamp, u64);

impl OnResponseBody for Stamp {
    const MODE: BodyMode = BodyMode::STREAM;
    fn on_response_body(&self, bytes: &mut u64, ev: &BodyEvent<'_>) -> Outcome {
        *bytes += ev.len() as u64;
        if ev.is_end_of_stream() {
            ev.set_trailer_fmt("x-bytes", format_args!("{bytes}"));
        }
        Ok(Verdict::Continue)
    }
}

impl OnResponseTrailers for Stamp {
    fn on_response_trailers(&self, bytes: &mut u64, ev: &TrailersEvent<'_>) -> Outcome {
        ev.remove_trailer("x-old");
        ev.set_trailer_fmt("x-bytes", format_args!("{bytes}"));
        Ok(Verdict::Continue)
    }
}

#[test]
fn streamed_bodies_keep_every_byte_however_they_are_split() {
    for seed in SEEDS {
        let host = TestHost::new(&LIBRARY).seed(seed);
        let body: String = "the quick brown fox jumps over the lazy dog. ".repeat(30);
        let config = host.configure("rot", "").unwrap();
        let done = config.exchange(request("POST", "/").body(&body), response(204));
        assert_eq!(
            done.upstream().bytes(),
            rot13(body.as_bytes()),
            "seed {seed}"
        );
        assert!(host.owned_released() > 0);
    }
}

#[test]
fn whole_bodies_change_length_headers_and_trailers() {
    for seed in SEEDS {
        let host = TestHost::new(&LIBRARY).seed(seed);
        let config = host.configure("whole", "").unwrap();
        let upstream = response(200)
            .header("etag", "\"1\"")
            .header("content-length", "5")
            .body("hello");
        let done = config.exchange(get("/"), upstream);
        assert_eq!(done.client().text(), "<hello>");
        assert_eq!(done.client().get("etag"), None);
        assert_eq!(done.client().get("content-length"), Some("7"));
        assert_eq!(done.client().get_trailer("x-was"), Some("5"));
    }
}

#[test]
fn more_keeps_the_rest_of_the_view() {
    for seed in SEEDS {
        let host = TestHost::new(&LIBRARY).seed(seed);
        let config = host.configure("lines", "").unwrap();
        let done = config.exchange(
            request("POST", "/")
                .header("content-length", "17")
                .body("one\ntwo\n\nfour\nf.."),
            response(204),
        );
        assert_eq!(
            done.upstream().text(),
            "1:one\n2:two\n3:\n4:four\nf..",
            "seed {seed}"
        );
    }
}

#[test]
fn observing_sees_all_and_changes_nothing() {
    for seed in SEEDS {
        let host = TestHost::new(&LIBRARY).seed(seed);
        let config = host.configure("observer", "").unwrap();
        let body = b"0123456789".repeat(100);
        let done = config.exchange(request("POST", "/").body(&body), response(204));
        assert_eq!(done.upstream().bytes(), body);
        assert_eq!(done.metadata("seen"), Some(&body[..]));
    }
}

#[test]
fn trailers_are_added_with_and_without_trailers_of_the_upstream() {
    for seed in SEEDS {
        let host = TestHost::new(&LIBRARY).seed(seed);
        let config = host.configure("stamp", "").unwrap();
        let done = config.exchange(get("/"), response(200).body("12345"));
        assert_eq!(
            done.client().get_trailer("x-bytes"),
            Some("5"),
            "seed {seed}"
        );
        let done = config.exchange(
            get("/"),
            response(200)
                .body("123")
                .trailer("x-old", "1")
                .trailer("x-keep", "2"),
        );
        let got = done.client();
        assert_eq!(got.get_trailer("x-bytes"), Some("3"), "seed {seed}");
        assert_eq!(
            (got.get_trailer("x-old"), got.get_trailer("x-keep")),
            (None, Some("2"))
        );
    }
}

// ---- the context's life

use std::sync::atomic::{AtomicI64, Ordering};

static ALIVE: AtomicI64 = AtomicI64::new(0);

struct Counted(u32);

impl Default for Counted {
    fn default() -> Self {
        ALIVE.fetch_add(1, Ordering::SeqCst);
        Self(0)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::SeqCst);
    }
}

plain_filter!(Count, Counted);

impl OnRequestHeaders for Count {
    fn on_request_headers(&self, ctx: &mut Counted, _: &HeadersEvent<'_>) -> Outcome {
        ctx.0 += 1;
        Ok(Verdict::Continue)
    }
}

impl OnLog for Count {
    fn on_log(&self, ctx: &mut Counted, ev: &LogEvent<'_>) {
        assert_eq!(ev.request_headers().get_str(":path"), Some("/logged"));
        ev.set_metadata("events", ctx.0.to_string());
        ev.set_metadata(
            "status",
            ev.response_headers().get(":status").unwrap_or_default(),
        );
        ev.set_metadata("reason", ev.reason().0.to_string());
    }
}

#[test]
fn the_context_is_made_once_and_dropped_at_every_end() {
    let host = TestHost::new(&LIBRARY);
    let mut config = host.configure("count", "").unwrap();
    let done = config.exchange(get("/logged"), response(204));
    assert_eq!(done.metadata("events"), Some(&b"1"[..]));
    assert_eq!(done.metadata("status"), Some(&b"204"[..]));
    assert_eq!(done.metadata("reason"), Some(&b"1"[..]));
    assert_eq!(ALIVE.load(Ordering::SeqCst), 0);
    for step in 0..done.steps() {
        config = config.kill_at(Some(step));
        let done = config.exchange(get("/logged"), response(204));
        assert_eq!(done.end(), &End::Cancelled);
        assert_eq!(ALIVE.load(Ordering::SeqCst), 0, "step {step}");
    }
}

#[test]
fn a_buffer_that_is_never_handed_over_is_dropped() {
    struct Flag(std::sync::Arc<std::sync::atomic::AtomicU32>);
    impl AsRef<[u8]> for Flag {
        fn as_ref(&self) -> &[u8] {
            b"bytes"
        }
    }
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let drops = std::sync::Arc::default();
    let buffer = Buffer::from_owner(Flag(std::sync::Arc::clone(&drops)));
    assert_eq!(buffer.as_slice(), b"bytes");
    drop(buffer);
    assert_eq!(drops.load(Ordering::SeqCst), 1);
    let _ = Completion::resume().inject(Buffer::from_owner(Flag(std::sync::Arc::clone(&drops))));
    assert_eq!(drops.load(Ordering::SeqCst), 2);
}
