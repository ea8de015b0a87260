//! A reply of guests on its way to the client.

use std::collections::VecDeque;

use bytes::Bytes;
use proxy_golang_host::engine::{Fields, Part};

use crate::sys::{Filter, Head, HeaderOf};

/// Most bytes that are kept of a reply which is not sent before all of it is here. Nobody else holds a guest back that
/// writes one: its client could take more.
const MOST_KEPT: usize = 1 << 20;

/// A reply.
pub(crate) struct Reply {
    head: Head,
    details: Vec<u8>,
    data: VecDeque<Bytes>,
    /// Bytes that have been in `data`.
    len: usize,
    trailers: Option<Head>,
    ended: bool,
    /// Sent part by part, and its head is out.
    streaming: bool,
    /// Its last part is out.
    done: bool,
}

/// How a reply goes on.
pub(crate) enum Next {
    /// All of it at once.
    Whole,
    /// This part of it.
    Part(Send),
    /// Nothing of it, ever: it is too long to be kept.
    TooLong,
}

/// A part of a streamed reply.
pub(crate) enum Send {
    Head(Head, bool),
    Data(Bytes, bool),
    Trailers(Head),
}

impl Send {
    /// May end the stream before it returns.
    pub(crate) fn perform(self, filter: Filter) {
        match self {
            Self::Head(head, end) => {
                let fields: Vec<_> = head.iter().collect();
                filter.send_head(&fields, end);
            }
            Self::Data(bytes, end) => filter.send_data(&bytes, end),
            Self::Trailers(trailers) => {
                let fields: Vec<_> = trailers.iter().collect();
                filter.send_trailers(&fields);
            }
        }
    }
}

impl Reply {
    pub(crate) fn new(head: Head, ended: bool, details: &str) -> Self {
        Self {
            head,
            details: details_of(details),
            data: VecDeque::new(),
            len: 0,
            trailers: None,
            ended,
            streaming: false,
            done: false,
        }
    }

    /// What the engine gave out after the head.
    pub(crate) fn take(&mut self, part: Part<Head>) {
        match part {
            Part::Data(bytes) => {
                self.len += bytes.len();
                self.data.push_back(bytes);
            }
            Part::Trailers(trailers) => {
                self.trailers = Some(trailers);
                self.ended = true;
            }
            Part::End => self.ended = true,
            Part::Head { .. } => {}
        }
    }

    /// Whether all of it is here, and nothing that only a streamed reply can have.
    pub(crate) fn is_plain(&self) -> bool {
        self.ended
            && self.trailers.is_none()
            && !self.streaming
            && !self.is_for_head()
            && !self.is_of_grpc_codec()
    }

    /// Whether its type names a codec of gRPC: Envoy would make `application/grpc` of it.
    fn is_of_grpc_codec(&self) -> bool {
        self.head.value(b"grpc-status").is_some()
            && self
                .head
                .value(b"content-type")
                .is_some_and(|v| v.starts_with(b"application/grpc+"))
    }

    /// Whether it answers HEAD, with the length of what GET would get: Envoy would compute another.
    fn is_for_head(&self) -> bool {
        self.data.is_empty() && self.head.value(b"content-length").is_some()
    }

    /// What can be sent now. When the upstream's response has `begun`, Envoy takes no second head: what was meant to be
    /// streamed is sent when all of it is here, without its trailers, if that is not too long.
    pub(crate) fn next(&mut self, begun: bool) -> Option<Next> {
        if self.done {
            return None;
        }
        if self.is_plain() || (begun && self.ended) {
            return Some(Next::Whole);
        }
        if begun {
            return (self.len > MOST_KEPT).then_some(Next::TooLong);
        }
        if !self.streaming {
            self.streaming = true;
            let end = self.ended && self.data.is_empty() && self.trailers.is_none();
            self.done = end;
            return Some(Next::Part(Send::Head(self.head.clone(), end)));
        }
        if let Some(bytes) = self.data.pop_front() {
            let end = self.ended && self.data.is_empty() && self.trailers.is_none();
            self.done = end;
            return Some(Next::Part(Send::Data(bytes, end)));
        }
        if !self.ended {
            return None;
        }
        self.done = true;
        Some(Next::Part(match self.trailers.take() {
            Some(trailers) => Send::Trailers(trailers),
            None => Send::Data(Bytes::new(), true),
        }))
    }

    /// Sends all of it. May end the stream before it returns, unless that is in a request hook.
    pub(crate) fn send(self, filter: Filter) {
        let status = self
            .head
            .value(b":status")
            .and_then(|v| std::str::from_utf8(v).ok()?.parse().ok())
            .unwrap_or(500);
        let grpc_status = grpc_status(status);
        // Envoy would make `grpc-status: 0` of a reply to gRPC that has none.
        let needs_status = self.head.value(b"grpc-status").is_none()
            && filter
                .field(HeaderOf::Request, b"content-type")
                .is_some_and(|v| v.starts_with(b"application/grpc"));
        let fields = self.head.iter().filter(|(name, _)| name[0] != b':');
        let fields: Vec<_> = fields
            .chain(needs_status.then_some((&b"grpc-status"[..], grpc_status)))
            .collect();
        let body = match self.data.len() {
            0 => Bytes::new(),
            1 => self.data[0].clone(),
            // Envoy takes the body of a reply in one piece.
            _ => self
                .data
                .iter()
                .flatten()
                .copied()
                .collect::<Vec<_>>()
                .into(),
        };
        filter.send_response(status, &fields, &body, &self.details);
    }
}

/// Details go into access logs, where white space separates.
///
/// The engine's `<entry>: <text>` becomes `<entry>.<text>` (spec 16.4).
fn details_of(text: &str) -> Vec<u8> {
    let (name, text) = text.split_once(": ").unwrap_or((text, ""));
    let text = if text.is_empty() { "reply" } else { text };
    let clean = |b: u8| if b.is_ascii_graphic() { b } else { b'_' };
    let all = name.bytes().chain(*b".").chain(text.bytes());
    all.take(256).map(clean).collect()
}

/// The status of gRPC that stands for one of HTTP (as gRPC's own mapping has it), with the few that are plainly meant.
fn grpc_status(status: u32) -> &'static [u8] {
    match status {
        400 => b"13",
        401 => b"16",
        403 => b"7",
        404 => b"12",
        429 | 502..=504 => b"14",
        _ => b"2",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head::from_fields([(&b":status"[..], &b"200"[..])])
    }

    #[test]
    fn a_reply_that_comes_in_parts_is_streamed_in_order() {
        let mut reply = Reply::new(head(), false, "");
        assert!(matches!(
            reply.next(false),
            Some(Next::Part(Send::Head(_, false)))
        ));
        assert!(reply.next(false).is_none());
        reply.take(Part::Data(Bytes::from_static(b"a")));
        reply.take(Part::Data(Bytes::from_static(b"b")));
        let Some(Next::Part(Send::Data(a, false))) = reply.next(false) else {
            panic!()
        };
        assert_eq!(a, "a");
        reply.take(Part::End);
        let Some(Next::Part(Send::Data(b, true))) = reply.next(false) else {
            panic!("the end goes with the last bytes")
        };
        assert_eq!(b, "b");
        assert!(reply.next(false).is_none());
    }

    #[test]
    fn trailers_make_a_reply_streamed_and_end_it() {
        let mut reply = Reply::new(head(), false, "");
        reply.take(Part::Data(Bytes::from_static(b"a")));
        reply.take(Part::Trailers(head()));
        assert!(!reply.is_plain());
        assert!(matches!(
            reply.next(false),
            Some(Next::Part(Send::Head(_, false)))
        ));
        assert!(matches!(
            reply.next(false),
            Some(Next::Part(Send::Data(_, false)))
        ));
        assert!(matches!(
            reply.next(false),
            Some(Next::Part(Send::Trailers(_)))
        ));
        assert!(reply.next(false).is_none());
    }

    #[test]
    fn once_the_response_has_begun_a_reply_waits_for_all_of_itself() {
        let mut reply = Reply::new(head(), false, "");
        assert!(reply.next(true).is_none());
        reply.take(Part::Data(Bytes::from_static(b"a")));
        assert!(reply.next(true).is_none());
        reply.take(Part::End);
        assert!(matches!(reply.next(true), Some(Next::Whole)));
    }

    #[test]
    fn a_reply_that_cannot_be_streamed_is_kept_within_bounds() {
        let mut reply = Reply::new(head(), false, "");
        reply.take(Part::Data(Bytes::from(vec![b'a'; MOST_KEPT])));
        assert!(reply.next(true).is_none());
        reply.take(Part::Data(Bytes::from_static(b"b")));
        assert!(matches!(reply.next(true), Some(Next::TooLong)));
        // One that is here already takes no more memory by being sent.
        reply.take(Part::End);
        assert!(matches!(reply.next(true), Some(Next::Whole)));
    }

    #[test]
    fn a_codec_of_grpc_is_streamed_and_plain_grpc_is_not() {
        for (kind, plain) in [
            ("application/grpc", true),
            ("application/grpc+proto", false),
        ] {
            let head = Head::from_fields([
                (&b":status"[..], &b"200"[..]),
                (b"content-type", kind.as_bytes()),
                (b"grpc-status", b"7"),
            ]);
            assert_eq!(Reply::new(head, true, "").is_plain(), plain, "{kind}");
        }
    }

    #[test]
    fn details_have_no_white_space() {
        assert_eq!(details_of("auth: no token"), b"auth.no_token");
        assert_eq!(details_of("auth: "), b"auth.reply");
        assert_eq!(details_of("auth: error: boom"), b"auth.error:_boom");
    }
}
