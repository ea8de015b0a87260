//! The attributes that this host has (`spec/16-attributes.md`).

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use super::access::protocol;
use super::exchange::Exchange;
use crate::engine::{Attributes, Dir};

/// Names in the order of their numbers.
const NAMES: &[&str] = &[
    "request.id",
    "request.protocol",
    "request.start_ns",
    "request.early_data",
    "request.body_bytes",
    "path.raw",
    "path.normalized",
    "source.address",
    "source.peer_address",
    "destination.address",
    "connection.id",
    "connection.requests",
    "tls.version",
    "tls.cipher",
    "tls.alpn",
    "tls.sni",
    "route.name",
    "upstream.cluster",
    "upstream.address",
    "upstream.attempts",
    "upstream.duration_ns",
    "response.code",
    "response.code_details",
    "response.body_bytes",
    "duration_ns",
    "x.pxg-host.listener",
];

/// The number of an attribute.
pub(super) fn number(name: &str) -> Option<u32> {
    let index = NAMES.iter().position(|known| *known == name)?;
    u32::try_from(index).ok()
}

impl Attributes for Exchange {
    fn write(&self, attribute: u32, out: &mut Vec<u8>) -> bool {
        let Some(name) = NAMES.get(attribute as usize) else {
            return false;
        };
        let tls = self.conn.tls.as_ref();
        // Writing to memory cannot fail.
        macro_rules! put {
            ($value:expr) => {{
                let _ = write!(out, "{}", $value);
                true
            }};
        }
        let text = |out: &mut Vec<u8>, text: Option<&[u8]>| match text {
            Some(text) => {
                out.extend_from_slice(text);
                true
            }
            None => false,
        };
        match *name {
            "request.id" => match self.request_id.get() {
                Some(id) => text(out, Some(id.as_bytes())),
                None => put!(format_args!("{:x}", self.number)),
            },
            "request.protocol" => put!(protocol(self.version)),
            "request.start_ns" => {
                let since = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                put!(
                    since
                        .as_nanos()
                        .saturating_sub(u128::from(self.duration_ns()))
                )
            }
            "request.early_data" => put!(false), // the host accepts none
            "request.body_bytes" => put!(self.body_bytes(Dir::Request)),
            "path.raw" => text(
                out,
                self.uri.path_and_query().map(|p| p.as_str().as_bytes()),
            ),
            "path.normalized" => text(out, self.normalized.get().map(|p| p.as_str().as_bytes())),
            "source.address" | "source.peer_address" => put!(self.conn.peer),
            "destination.address" => put!(self.conn.local),
            "connection.id" => put!(self.conn.id),
            "connection.requests" => put!(self.conn.requests.get()),
            "tls.version" => text(out, tls.map(|t| t.version.as_bytes())),
            "tls.cipher" => text(out, tls.map(|t| t.cipher.as_bytes())),
            "tls.alpn" => text(out, tls.and_then(|t| t.alpn.as_deref()).map(str::as_bytes)),
            "tls.sni" => text(out, tls.and_then(|t| t.sni.as_deref()).map(str::as_bytes)),
            "route.name" => text(out, self.route().map(|r| r.name.as_bytes())),
            "upstream.cluster" => {
                let name = self
                    .cluster
                    .get()
                    .map(|c| self.site.cluster(c).name.as_bytes());
                text(out, name)
            }
            "upstream.address" => self.upstream.get().is_some_and(|address| put!(address)),
            "upstream.attempts" => self
                .upstream
                .get()
                .is_some_and(|_| put!(self.attempts.get())),
            "upstream.duration_ns" => match (self.sent_at.get(), self.answered_at.get()) {
                (sent, answered) if answered > sent => put!(answered - sent),
                _ => false,
            },
            "response.code" => match self.status.get() {
                0 => false,
                status => put!(status),
            },
            "response.code_details" => {
                let details = self.details.borrow();
                text(out, (!details.is_empty()).then(|| details.as_bytes()))
            }
            // Before there is a response, it has no length either.
            "response.body_bytes" => {
                (self.status.get() != 0 || self.answered_at.get() != 0)
                    && put!(self.body_bytes(Dir::Response))
            }
            "duration_ns" => put!(self.duration_ns()),
            "x.pxg-host.listener" => text(out, Some(self.conn.listener.name.as_bytes())),
            _ => false,
        }
    }
}
