//! The messages, and the clock, that the measurements of a round share.

use std::hint::black_box;
use std::sync::LazyLock;
use std::time::Instant;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri};
use proxy_golang_host::engine::{Edit, FieldList, Fields};

use crate::fields::{Message, Start};

#[path = "head.rs"]
mod head;
use head::{FIELDS, PSEUDO};

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

/// What the guest asks for, as edits that nobody judged: the floor of a round.
pub(crate) fn blind_edits() -> [Edit<'static>; 3] {
    [
        Edit::Set {
            name: b"x-agent",
            value: black_box(FIELDS[0].1).as_bytes(),
            sensitive: false,
        },
        Edit::Add {
            name: b"x-trace",
            value: FIELDS[6].1.as_bytes(),
            sensitive: false,
        },
        Edit::Delete {
            name: b"x-internal",
        },
    ]
}
