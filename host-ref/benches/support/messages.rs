//! The messages, and the clock, that the measurements of a round share.

use std::sync::LazyLock;
use std::time::Instant;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri};
use proxy_golang_host::engine::{FieldList, Fields};

use crate::fields::{Message, Start};

/// A head of 20 fields with its pseudo-headers, as a browser sends it.
pub(crate) const FIELDS: [(&str, &str); 16] = [
    (
        "user-agent",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
    ),
    ("accept", "application/json, text/plain, */*"),
    ("accept-language", "en-GB,en;q=0.9,de;q=0.8"),
    ("accept-encoding", "gzip, deflate, br"),
    ("referer", "https://www.example.com/account/orders"),
    (
        "cookie",
        "session=0123456789abcdef0123456789abcdef; theme=dark",
    ),
    ("x-request-id", "7f3c2f6e-1f0b-4a58-9a0e-8a1d3a4c9b11"),
    ("x-forwarded-for", "203.0.113.7"),
    ("x-forwarded-proto", "https"),
    ("x-internal", "secret"),
    ("cache-control", "no-cache"),
    ("dnt", "1"),
    ("sec-fetch-dest", "empty"),
    ("sec-fetch-mode", "cors"),
    ("sec-fetch-site", "same-site"),
    (
        "authorization",
        "Bearer eyJhbGciOiJIUzI1NiJ9.e30.ZRrHA1JJJW8opsbCGfG",
    ),
];

pub(crate) const PSEUDO: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "http"),
    (":authority", "api.example.com"),
    (":path", "/v1/orders/12345?expand=items"),
];

/// A list of fields that can stand for a message of each direction.
pub(crate) trait Model: Fields {
    fn request() -> Self;
    fn response() -> Self;
}

impl Model for FieldList {
    fn request() -> Self {
        let mut list = FieldList::with_capacity(32, 2048);
        for (name, value) in PSEUDO.iter().chain(&FIELDS) {
            list.push(name.as_bytes(), value.as_bytes());
        }
        list
    }

    fn response() -> Self {
        let mut list = FieldList::with_capacity(8, 256);
        list.push(b":status", b"200");
        list.push(b"content-type", b"application/json");
        list
    }
}

impl Model for Message {
    fn request() -> Self {
        let mut headers = HeaderMap::with_capacity(32);
        headers.insert("host", HeaderValue::from_static(PSEUDO[2].1));
        for (name, value) in FIELDS {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        Message {
            start: Start::Request {
                method: Method::GET,
                uri: Uri::from_static(PSEUDO[3].1),
                https: false,
            },
            headers,
        }
    }

    fn response() -> Self {
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        Message {
            start: Start::Response(StatusCode::OK),
            headers,
        }
    }
}

/// Monotonic nanoseconds, as the proxy's clock has them.
pub(crate) fn clock() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
