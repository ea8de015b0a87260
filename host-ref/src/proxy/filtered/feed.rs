//! What a driver waits for, and how it gets into the engine.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::StatusCode;
use http::header::HeaderMap;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;

use super::super::body::Sender;
use super::super::exchange::{Aborted, Ended};
use super::super::fields::Message;
use super::super::reply::reply_text;
use super::super::upstream::{Answer, HostReply};
use super::Begin;
use super::driver::{Driver, Event};
use crate::engine::{Cut, Dir};

impl Driver {
    /// Runs until the client's side can begin.
    pub(super) async fn run_to_head(&mut self) -> Begin {
        loop {
            self.take_outputs();
            if let Some(begin) = self.begin.take() {
                return begin;
            }
            if self.task.filtered().finished.get() {
                return Err(Aborted);
            }
            let event = poll_fn(|cx| self.poll(cx)).await;
            self.feed(event);
        }
    }

    /// Whether something is left after the client's side has begun.
    pub(super) fn has_work(&self) -> bool {
        let open = self.request.is_some() || self.client.is_some();
        self.response.is_some() || (open && !self.task.filtered().finished.get())
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
        self.task.filtered().register(cx);
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
        let (wants_request, wants_response, deadline, undecided) = self.task.stream(|s| {
            (
                s.wants(Dir::Request),
                s.wants(Dir::Response),
                s.deadline(),
                s.request_headers_pending(),
            )
        });
        // A filter's verdict on the headers comes before the client is told to send its body.
        let gated = self.task.hop.expect && undecided && !self.head_out;
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
        let filtered = self.task.filtered();
        let has_output = filtered.look.replace(false)
            || filtered.cancel_upstream.get() && (self.call.is_some() || self.upstream.is_some())
            || filtered.reset_client.get();
        if has_output {
            return Poll::Ready(Event::Look);
        }
        self.task
            .x
            .worker
            .streams
            .set_deadline(filtered.key, deadline);
        Poll::Pending
    }

    fn feed(&mut self, event: Event) {
        match event {
            Event::ClientFrame(frame) => self.feed_request(frame),
            Event::UpstreamFrame(frame) => self.feed_response(frame),
            Event::Answer(answer) => self.take_answer(answer),
            Event::Timeout => self.reply(HostReply::new(504, "host.timeout")),
            Event::ClientGone => {
                self.response = None;
                self.task.x.set_ended(Dir::Response, Ended::ReceiverDied);
                self.task
                    .with(|stream, cx| stream.cut(cx, Dir::Response, Cut::Receiver));
            }
            Event::Look => {}
        }
    }

    fn feed_request(&mut self, frame: Option<Result<Frame<Bytes>, hyper::Error>>) {
        match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.client_bytes += data.len() as u64;
                    self.task.x.count_body(Dir::Request, self.client_bytes);
                    let limit = self.task.x.route().and_then(|r| r.max_request_body);
                    if limit.is_some_and(|limit| self.client_bytes > limit) {
                        self.client = None;
                        self.task.x.set_ended(Dir::Request, Ended::TooLarge);
                        return self.reply(HostReply::new(413, "host.request_too_large"));
                    }
                    self.task.with(|stream, cx| stream.request_data(cx, data));
                }
                Err(frame) => {
                    self.client = None;
                    let trailers = frame.into_trailers().ok().map(Message::trailers);
                    self.task
                        .with(|stream, cx| stream.request_end(cx, trailers));
                    return;
                }
            },
            None => {
                self.client = None;
                return self.task.with(|stream, cx| stream.request_end(cx, None));
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "a client's body broke");
                self.client = None;
                self.task.x.set_ended(Dir::Request, Ended::SenderDied);
                return self
                    .task
                    .with(|stream, cx| stream.cut(cx, Dir::Request, Cut::Sender));
            }
        }
        if self.client.as_ref().is_some_and(Incoming::is_end_stream) {
            self.client = None;
            self.task.with(|stream, cx| stream.request_end(cx, None));
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
                    self.task.with(|stream, cx| stream.response_data(cx, data));
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
                self.task.x.set_ended(Dir::Response, Ended::SenderDied);
                self.task
                    .with(|stream, cx| stream.cut(cx, Dir::Response, Cut::Sender));
            }
        }
    }

    fn upstream_ended(&mut self, trailers: Option<HeaderMap>) {
        if let Some((_, lease)) = self.upstream.take()
            && self.request_is_sent()
        {
            lease.give_back();
        }
        let trailers = trailers.map(Message::trailers);
        self.task
            .with(|stream, cx| stream.response_end(cx, trailers));
    }

    fn request_is_sent(&self) -> bool {
        self.request.is_none() && self.task.x.request_is_sent()
    }

    /// A reply of the host's own in the upstream's stead.
    pub(super) fn reply(&mut self, reply: HostReply) {
        self.call = None;
        self.upstream = None;
        let status =
            StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let text = reply_text(status);
        self.task.x.set_details(reply.details);
        let kind = "text/plain; charset=utf-8";
        self.task.with(|stream, cx| {
            if !stream.host_reply(cx, reply.status, kind, text, reply.details) {
                stream.cut(cx, Dir::Response, Cut::Timeout);
            }
        });
    }

    fn take_answer(&mut self, answer: Result<Answer, HostReply>) {
        let sent = self.request_is_sent();
        let opened = answer.and_then(|answer| self.task.open(answer, sent));
        let (head, length, rest) = match opened {
            Ok(opened) => opened,
            Err(reply) => return self.reply(reply),
        };
        self.upstream = rest.body;
        self.switches = rest.switches;
        let switches = self.switches.is_some();
        self.task.with(|stream, cx| {
            if switches {
                stream.upgraded();
            }
            stream.response_head(cx, head, length);
        });
    }
}
