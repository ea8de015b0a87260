//! The first gear: filters that only look at heads. The bodies are forwarded as they come, as without filters.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::super::body::OutBody;
use super::super::clock;
use super::super::exchange::{self, Ended};
use super::super::fields::Message;
use super::super::upstream::{Answer, HostReply};
use super::Begin;
use super::driver::Driver;
use super::task::{Rest, Task};
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

    /// Where the request goes, and what goes there.
    pub(super) fn send(
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

    /// What the upstream answers. None: a filter has stopped it.
    pub(super) async fn answer(
        &self,
        cluster: usize,
        request: Request<OutBody>,
    ) -> Option<Result<Answer, HostReply>> {
        let filtered = self.filtered();
        let mut call = pin!(exchange::call(&self.x, cluster, request, self.until));
        poll_fn(|cx| {
            filtered.register(cx);
            if filtered.is_stopped() {
                return Poll::Ready(None);
            }
            call.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// Takes the response's head through the engine.
    pub(super) fn respond(&mut self, answer: Answer) -> Result<Response<OutBody>, Left> {
        let sent = self.x.request_is_sent();
        let (head, length, rest) = self.open(answer, sent).map_err(Left::Reply)?;
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
                // The end of a forwarded body would wake the connection's task for nothing.
                self.filtered().driver.take();
                Ok(self.response(head, length, body))
            }
            part => Err(Left::Response(Box::new((rest, part)))),
        }
    }

    /// Whether what is left of the response needs no driver.
    fn can_forward(&self, end: bool) -> bool {
        (end || self.stream(|s| s.bodies_skipped(Dir::Response))) && !self.filtered().is_stopped()
    }
}

/// What the first gear leaves to the second.
pub(super) enum Left {
    /// Whatever the engine has.
    Engine,
    /// A reply of the host's own.
    Reply(HostReply),
    /// The rest of a response of which the engine has the head.
    Response(Box<(Rest, Option<Part<Message>>)>),
}

impl Left {
    /// Goes on in the second gear.
    pub(super) fn drive(self, task: Task) -> Pin<Box<dyn Future<Output = Begin>>> {
        let driver = match self {
            Self::Engine => Driver::sent(task),
            Self::Reply(reply) => {
                let mut driver = Driver::sent(task);
                driver.reply(reply);
                driver
            }
            Self::Response(left) => Driver::answered(task, left.0, left.1),
        };
        Box::pin(driver.drive())
    }
}
