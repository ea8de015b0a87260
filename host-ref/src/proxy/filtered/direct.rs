//! The first gear: filters that only look at heads. The bodies are forwarded as they come, as without filters.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use http::Request;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::super::body::OutBody;
use super::super::clock;
use super::super::exchange::{self, Ended};
use super::super::fields::Message;
use super::super::upstream::HostReply;
use super::Begin;
use super::driver::Driver;
use super::task::Task;
use crate::engine::{BodyLength, Dir, Part, Stream};

impl Task {
    /// Waits for filters that pend on the head of a request without body. None: something else is left to do.
    pub(super) async fn decided(&self) -> Option<Part<Message>> {
        let filtered = self.filtered();
        poll_fn(|cx| {
            filtered.register(cx);
            if filtered.is_stopped() {
                return Poll::Ready(None);
            }
            let part = self.with(Stream::request_part);
            if part.is_some() || !self.stream(Stream::request_headers_pending) {
                return Poll::Ready(part);
            }
            let mut deadline = self.stream(Stream::deadline);
            if let Some(until) = self.until {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Poll::Ready(None);
                }
                let until = clock::now() + u64::try_from(left.as_nanos()).unwrap_or(u64::MAX >> 1);
                deadline = Some(deadline.map_or(until, |d| d.min(until)));
            }
            self.x.worker.streams.set_deadline(filtered.key, deadline);
            Poll::Pending
        })
        .await
    }

    /// Whether what is left of the request needs no driver.
    pub(super) fn can_pass(&self, end: bool) -> bool {
        (end || self.stream(|s| s.bodies_skipped(Dir::Request)))
            && !self.filtered().is_stopped()
            && self.stream(Stream::deadline).is_none()
            && self.target().is_ok_and(|target| target.is_some())
    }

    /// Sends the request and takes the response's head through the engine; leaves the rest to a driver where a filter
    /// wants more than that.
    pub(super) async fn pass(
        mut self,
        head: Message,
        length: BodyLength,
        client: Option<Incoming>,
    ) -> Begin {
        let answer = match self.begin(head, length, client) {
            Ok((cluster, request)) => {
                let x = &self.x;
                let filtered = self.filtered();
                let mut call = pin!(exchange::call(x, cluster, request, self.until));
                poll_fn(|cx| {
                    filtered.register(cx);
                    if filtered.is_stopped() {
                        return Poll::Ready(None);
                    }
                    call.as_mut().poll(cx).map(Some)
                })
                .await
            }
            Err(reply) => Some(Err(reply)),
        };
        let opened = match answer {
            Some(Ok(answer)) => {
                let sent = self.x.request_is_sent();
                self.open(answer, sent)
            }
            Some(Err(reply)) => Err(reply),
            // A filter replied or reset; the engine has the rest.
            None => return Box::pin(Driver::sent(self).drive()).await,
        };
        let (head, length, rest) = match opened {
            Ok(opened) => opened,
            Err(reply) => {
                let mut driver = Driver::sent(self);
                driver.reply(reply);
                return Box::pin(driver.drive()).await;
            }
        };
        let part = self.with(|stream, cx| {
            if rest.switches.is_some() {
                stream.upgraded();
            }
            stream.response_head(cx, head, length);
            stream.response_part(cx)
        });
        match part {
            Some(Part::Head {
                head,
                length,
                end,
                local: false,
            }) if rest.switches.is_none() && self.can_forward(end) => {
                let body = match rest.body {
                    Some((incoming, lease)) if !end => self.forward_response(incoming, lease),
                    _ => {
                        self.x.set_ended(Dir::Response, Ended::Complete);
                        OutBody::Empty
                    }
                };
                let response = self.response(head, length, body);
                // The end of a forwarded body would wake the connection's task for nothing.
                self.filtered().driver.take();
                Ok(response)
            }
            part => Box::pin(Driver::answered(self, rest, part).drive()).await,
        }
    }

    /// Where the request goes, and what goes there.
    fn begin(
        &self,
        head: Message,
        length: BodyLength,
        client: Option<Incoming>,
    ) -> Result<(usize, Request<OutBody>), HostReply> {
        self.route_again(&head)?;
        let cluster = self.target()?;
        let cluster = cluster.ok_or(HostReply::new(500, "host.no_action"))?;
        let body = client.map_or(OutBody::Empty, |client| self.forward_request(client));
        let request = self.upstream_request(cluster, head, length, body)?;
        Ok((cluster, request))
    }

    /// Whether what is left of the response needs no driver.
    fn can_forward(&self, end: bool) -> bool {
        (end || self.stream(|s| s.bodies_skipped(Dir::Response))) && !self.filtered().is_stopped()
    }
}
