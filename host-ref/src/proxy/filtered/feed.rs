//! What a driver waits for, and how it gets into the engine.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Method, StatusCode};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;

use super::super::body::Sender;
use super::super::clock;
use super::super::exchange::{self, Aborted, Ended};
use super::super::fields::{Message, Start};
use super::super::upstream::{Answer, HostReply};
use super::{Begin, Driver, Event, content_length};
use crate::engine::{BodyLength, Cut, Dir, Stream};

impl Driver {
    /// Runs until the client's side can begin.
    pub(super) async fn run_to_head(&mut self) -> Begin {
        loop {
            self.take_outputs();
            if let Some(begin) = self.begin.take() {
                return begin;
            }
            if self.filtered().finished.get() {
                return Err(Aborted);
            }
            let event = poll_fn(|cx| self.poll(cx)).await;
            self.feed(event);
        }
    }

    /// Whether something is left after the client's side has begun.
    pub(super) fn has_work(&self) -> bool {
        let open = self.request.is_some() || self.client.is_some();
        self.response.is_some() || (open && !self.filtered().finished.get())
    }

    /// Runs until nothing is left.
    pub(super) async fn run_to_end(mut self) {
        loop {
            self.take_outputs();
            if !self.has_work() {
                return;
            }
            let event = poll_fn(|cx| self.poll(cx)).await;
            self.feed(event);
        }
    }

    /// Waits for the next thing that the engine can use.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let x = Rc::clone(&self.x);
        let filtered = x.filtered.get().expect("a driver has a stream");
        filtered.register(cx);
        if let Some(response) = &self.response
            && response.poll_closed(cx)
        {
            return Poll::Ready(Event::ClientGone);
        }
        let has_room = |blocked: bool, sender: &Option<Sender>| {
            blocked && sender.as_ref().is_some_and(|s| s.poll_ready(cx))
        };
        if has_room(self.blocked[0], &self.request) || has_room(self.blocked[1], &self.response) {
            return Poll::Ready(Event::Look);
        }
        if self.total.expired(cx) {
            return Poll::Ready(Event::Timeout);
        }
        if let Some(call) = &mut self.call
            && let Poll::Ready(answer) = call.as_mut().poll(cx)
        {
            self.call = None;
            return Poll::Ready(Event::Answer(answer));
        }
        let (wants_request, wants_response, deadline, undecided) = self.stream(|s| {
            (
                s.wants(Dir::Request),
                s.wants(Dir::Response),
                s.deadline(),
                s.request_headers_pending(),
            )
        });
        // A filter's verdict on the headers comes before the client is told to send its body.
        let gated = self.hop.expect && undecided && !self.head_out;
        if wants_request
            && !gated
            && let Some(client) = &mut self.client
            && let Poll::Ready(frame) = Pin::new(client).poll_frame(cx)
        {
            return Poll::Ready(Event::ClientFrame(frame));
        }
        if wants_response {
            if let Some((upstream, _)) = &mut self.upstream {
                if let Poll::Ready(frame) = Pin::new(upstream).poll_frame(cx) {
                    self.idle.progress();
                    return Poll::Ready(Event::UpstreamFrame(frame));
                }
                if self.idle.expired(cx) {
                    return Poll::Ready(Event::Timeout);
                }
            }
        } else {
            self.idle.progress();
        }
        if let Some(deadline) = deadline {
            if clock::now() >= deadline {
                return Poll::Ready(Event::Deadline);
            }
            self.sleep_until(deadline, cx);
        }
        let has_output = filtered.look.replace(false)
            || filtered.cancel_upstream.get() && (self.call.is_some() || self.upstream.is_some())
            || filtered.reset_client.get();
        if has_output {
            Poll::Ready(Event::Look)
        } else {
            Poll::Pending
        }
    }

    /// Sees to it that the task is woken when the worker's clock says `deadline`.
    fn sleep_until(&mut self, deadline: u64, cx: &mut Context<'_>) {
        let at = || Instant::now() + Duration::from_nanos(deadline.saturating_sub(clock::now()));
        let (armed, sleep) = self
            .sleep
            .get_or_insert_with(|| (deadline, Box::pin(tokio::time::sleep_until(at()))));
        if *armed != deadline {
            *armed = deadline;
            sleep.as_mut().reset(at());
        }
        // The two clocks differ by less than the timer's tick.
        while sleep.as_mut().poll(cx).is_ready() {
            sleep
                .as_mut()
                .reset(Instant::now() + Duration::from_millis(1));
        }
    }

    fn feed(&mut self, event: Event) {
        match event {
            Event::ClientFrame(frame) => self.feed_request(frame),
            Event::UpstreamFrame(frame) => self.feed_response(frame),
            Event::Answer(answer) => self.take_answer(answer),
            Event::Deadline => self.with(Stream::timer),
            Event::Timeout => self.reply(HostReply::new(504, "host.timeout")),
            Event::ClientGone => {
                self.response = None;
                self.x.set_ended(Dir::Response, Ended::ReceiverDied);
                self.with(|stream, cx| stream.cut(cx, Dir::Response, Cut::Receiver));
            }
            Event::Look => {}
        }
    }

    fn feed_request(&mut self, frame: Option<Result<Frame<Bytes>, hyper::Error>>) {
        match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.client_bytes += data.len() as u64;
                    self.x.count_body(Dir::Request, self.client_bytes);
                    let limit = self.x.route().and_then(|r| r.max_request_body);
                    if limit.is_some_and(|limit| self.client_bytes > limit) {
                        self.client = None;
                        self.x.set_ended(Dir::Request, Ended::TooLarge);
                        return self.reply(HostReply::new(413, "host.request_too_large"));
                    }
                    self.with(|stream, cx| stream.request_data(cx, data));
                }
                Err(frame) => {
                    self.client = None;
                    let trailers = frame.into_trailers().ok().map(Message::trailers);
                    self.with(|stream, cx| stream.request_end(cx, trailers));
                    return;
                }
            },
            None => {
                self.client = None;
                return self.with(|stream, cx| stream.request_end(cx, None));
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "a client's body broke");
                self.client = None;
                self.x.set_ended(Dir::Request, Ended::SenderDied);
                return self.with(|stream, cx| stream.cut(cx, Dir::Request, Cut::Sender));
            }
        }
        if self.client.as_ref().is_some_and(Incoming::is_end_stream) {
            self.client = None;
            self.with(|stream, cx| stream.request_end(cx, None));
        }
    }

    fn feed_response(&mut self, frame: Option<Result<Frame<Bytes>, hyper::Error>>) {
        match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    let ends = self
                        .upstream
                        .as_ref()
                        .is_some_and(|(body, _)| body.is_end_stream());
                    self.with(|stream, cx| stream.response_data(cx, data));
                    if ends {
                        self.upstream_ended(None);
                    }
                }
                Err(frame) => self.upstream_ended(frame.into_trailers().ok()),
            },
            None => self.upstream_ended(None),
            Some(Err(error)) => {
                tracing::debug!(%error, "an upstream's body broke");
                self.upstream = None;
                self.x.set_ended(Dir::Response, Ended::SenderDied);
                self.with(|stream, cx| stream.cut(cx, Dir::Response, Cut::Sender));
            }
        }
    }

    fn upstream_ended(&mut self, trailers: Option<HeaderMap>) {
        if let Some((_, lease)) = self.upstream.take()
            && let Some(lease) = lease.filter(|_| self.request_is_sent())
        {
            lease.give_back();
        }
        let trailers = trailers.map(Message::trailers);
        self.with(|stream, cx| stream.response_end(cx, trailers));
    }

    fn request_is_sent(&self) -> bool {
        self.request.is_none() && self.x.request_is_sent()
    }

    /// A reply of the host's own in the upstream's stead.
    pub(super) fn reply(&mut self, reply: HostReply) {
        self.call = None;
        self.upstream = None;
        let status =
            StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let text = super::super::reply::reply_text(status);
        self.x.set_details(reply.details);
        let kind = "text/plain; charset=utf-8";
        self.with(|stream, cx| {
            if !stream.host_reply(cx, reply.status, kind, text, reply.details) {
                stream.cut(cx, Dir::Response, Cut::Timeout);
            }
        });
    }

    pub(super) fn take_answer(&mut self, answer: Result<Answer, HostReply>) {
        if let Some((head, length, switches)) = self.open_answer(answer) {
            self.with(|stream, cx| {
                if switches {
                    stream.upgraded();
                }
                stream.response_head(cx, head, length);
            });
        }
    }

    /// The response's head for the engine, its length, and whether it switches protocols; none if the host replies
    /// instead. The body is kept for later.
    pub(super) fn open_answer(
        &mut self,
        answer: Result<Answer, HostReply>,
    ) -> Option<(Message, BodyLength, bool)> {
        let Answer { response, lease } = match answer {
            Ok(answer) => answer,
            Err(reply) => {
                self.reply(reply);
                return None;
            }
        };
        let (mut parts, body) = response.into_parts();
        let hop = exchange::response_head(&self.x, &mut parts.headers, &mut parts.version);
        self.x.set_details("via_upstream");
        let switches = parts.status == StatusCode::SWITCHING_PROTOCOLS;
        if switches {
            let upgrade = parts.extensions.remove::<OnUpgrade>();
            match (upgrade, hop.upgrade, self.upgrade.is_some()) {
                (Some(upgrade), Some(protocol), true) => {
                    self.upstream_upgrade = Some((upgrade, protocol))
                }
                _ => {
                    self.reply(HostReply::new(502, "host.unexpected_upgrade"));
                    return None;
                }
            }
        }
        let cannot_have_body =
            self.x.method == Method::HEAD || matches!(parts.status.as_u16(), 101 | 204 | 304);
        let length = if cannot_have_body {
            BodyLength::None
        } else if body.is_end_stream() {
            BodyLength::Exact(0)
        } else {
            content_length(&parts.headers).map_or(BodyLength::Unknown, BodyLength::Exact)
        };
        if matches!(length, BodyLength::None | BodyLength::Exact(0)) {
            if self.request_is_sent() && !switches {
                lease.give_back();
            }
        } else {
            self.upstream = Some((body, Some(lease)));
        }
        let head = Message {
            start: Start::Response(parts.status),
            headers: parts.headers,
        };
        Some((head, length, switches))
    }
}
