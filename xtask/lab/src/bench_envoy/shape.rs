//! What is asked: requests of several shapes, and how many at a time.

use crate::client::Protocol;
use crate::flat::Ask;

/// What one request looks like and how many are asked at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shape {
    Fields3,
    Fields25,
    OneConnection,
    Body1K,
    Body64K,
    H2c,
}

impl Shape {
    /// The shape of this name.
    pub(super) fn of(name: &str) -> Option<Self> {
        let all = [
            Self::Fields3,
            Self::Fields25,
            Self::OneConnection,
            Self::Body1K,
            Self::Body64K,
            Self::H2c,
        ];
        all.into_iter().find(|shape| shape.name() == name)
    }

    /// The first half of a row's name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Fields3 => "fields-3",
            Self::Fields25 => "fields-25",
            Self::OneConnection => "one-connection",
            Self::Body1K => "body-1k",
            Self::Body64K => "body-64k",
            Self::H2c => "h2c",
        }
    }

    /// For people.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Fields3 => "32 connections, 3 header fields",
            Self::Fields25 => "32 connections, 25 header fields",
            Self::OneConnection => "1 connection, 3 header fields",
            Self::Body1K => "32 connections, the whole body of 1 KB",
            Self::Body64K => "32 connections, the whole body of 64 KB",
            Self::H2c => "HTTP/2 without TLS in front: 4 connections, 16 streams each",
        }
    }

    /// Of one request.
    pub(super) fn title_of_one(self) -> &'static str {
        let title = self.title();
        title.split_once(", ").map_or(title, |(_, request)| request)
    }

    pub(super) fn connections(self) -> usize {
        match self {
            Self::OneConnection => 1,
            Self::H2c => 4,
            _ => 32,
        }
    }

    /// Whether the proxy's processor is meant to be busy all the time.
    pub(super) const fn saturates(self) -> bool {
        !matches!(self, Self::OneConnection)
    }

    pub(super) fn protocol(self) -> Protocol {
        match self {
            Self::H2c => Protocol::H2c,
            _ => Protocol::Http1,
        }
    }

    /// Length of the request's body.
    pub(super) fn body(self) -> Option<usize> {
        match self {
            Self::Body1K => Some(1 << 10),
            Self::Body64K => Some(64 << 10),
            _ => None,
        }
    }

    fn method(self) -> &'static str {
        if self.body().is_some() { "POST" } else { "GET" }
    }

    /// The header fields beside those that the protocol has for itself.
    pub(super) fn fields(self) -> Vec<(String, String)> {
        let mut fields = vec![
            ("user-agent".to_owned(), "flat/1".to_owned()),
            ("accept".to_owned(), "text/plain".to_owned()),
        ];
        if self == Self::Fields25 {
            // About what a browser sends to a site with an application behind: a cookie, a few long ones, many short.
            fields.push((
                "accept-language".to_owned(),
                "en-GB,en;q=0.7,de;q=0.3".to_owned(),
            ));
            fields.push((
                "cookie".to_owned(),
                format!("session={}; theme=dark", "8f14e45fceea167a".repeat(8)),
            ));
            fields.push((
                "authorization".to_owned(),
                format!("Bearer {}", "eyJhbGciOiJFZERTQSJ9".repeat(12)),
            ));
            for i in fields.len()..24 {
                fields.push((
                    format!("x-field-{i:02}"),
                    format!("{i:02}-0123456789abcdef"),
                ));
            }
        }
        fields
    }

    /// What a load asks.
    pub(super) fn ask(self) -> Ask {
        if self.protocol() == Protocol::H2c {
            let pseudo = [
                (":method", self.method()),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "bench.example"),
            ];
            let mut fields = pseudo.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec();
            fields.extend(self.fields());
            return Ask::H2c {
                fields,
                streams: 16,
            };
        }
        let mut request = format!("{} / HTTP/1.1\r\nhost: bench.example\r\n", self.method());
        for (name, value) in self.fields() {
            request += &format!("{name}: {value}\r\n");
        }
        if let Some(length) = self.body() {
            request += &format!("content-length: {length}\r\n");
        }
        let mut request = (request + "\r\n").into_bytes();
        request.resize(request.len() + self.body().unwrap_or(0), b'b');
        Ask::Http1(request)
    }
}
