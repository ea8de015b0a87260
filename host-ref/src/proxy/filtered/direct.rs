//! The first gear: filters that only look at heads. The bodies are forwarded as they come, as without filters.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use http::header::HeaderMap;
use http::request::Parts;
use http::{Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::super::body::OutBody;
use super::super::clock;
use super::super::exchange::Ended;
use super::super::fields::{Message, Start};
use super::super::upstream::{Answer, HostReply};
use super::driver::Driver;
use super::task::{Rest, Task};
use super::{Begin, content_length};
use crate::engine::{BodyLength, Dir, Part, Stream};

/// What follows on a filtered request.
#[allow(clippy::large_enum_variant)] // the large one is the usual one
pub(in super::super) enum Next {
    /// It goes to this cluster.
    Send(usize, Request<OutBody>),
    /// There is more to do than that.
    Drive(Left),
}

/// What the first gear leaves to the second.
pub(in super::super) enum Left {
    /// A request of which the engine has the head and gave out this.
    Request(Option<Box<Part<Message>>>, Option<Incoming>),
    /// Whatever the engine has of a request that was sent.
    Sent,
    /// A reply of the host's own to a request that was sent, or could not be.
    Reply(HostReply),
    /// The rest of a response of which the engine has the head.
    Response(Box<(Rest, Option<Part<Message>>)>),
}

impl Task {
    /// Takes the request's head through the engine. None: a filter pends on it, and there is nothing else to do.
    pub(in super::super) fn begin(&mut self, ready: Parts, body: Incoming) -> Option<Next> {
        let Parts {
            method,
            uri,
            headers,
            ..
        } = ready;
        let length = request_length(&body, &headers);
        self.came_with[Dir::Request as usize] = Some(length);
        let message = Message {
            start: Start::Request {
                method,
                uri,
                https: self.x.conn.tls.is_some(),
            },
            headers,
        };
        let part = self.with(|stream, cx| {
            stream.request_head(cx, message, length);
            stream.request_part(cx)
        });
        let client = (length != BodyLength::Exact(0)).then_some(body);
        if part.is_none() && client.is_none() {
            return None;
        }
        Some(self.send(part, client))
    }

    /// Waits for filters that pend on the head of a request without body.
    pub(in super::super) async fn decided(&self) -> Next {
        let filtered = self.filtered();
        poll_fn(|cx| {
            filtered.register(cx);
            if filtered.is_stopped() {
                return Poll::Ready(self.send(None, None));
            }
            let part = self.with(Stream::request_part);
            if part.is_some() || !self.stream(Stream::request_headers_pending) {
                return Poll::Ready(self.send(part, None));
            }
            let mut deadline = self.stream(Stream::deadline);
            if let Some(until) = self.until {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Poll::Ready(self.send(None, None));
                }
                let until = clock::now() + u64::try_from(left.as_nanos()).unwrap_or(u64::MAX >> 1);
                deadline = Some(deadline.map_or(until, |d| d.min(until)));
            }
            self.x.worker.streams.set_deadline(filtered.key, deadline);
            Poll::Pending
        })
        .await
    }

    /// Sends the request if nothing of it is left to the engine, and it goes to a cluster.
    fn send(&self, part: Option<Part<Message>>, client: Option<Incoming>) -> Next {
        let (head, length, end) = match part {
            Some(Part::Head {
                head, length, end, ..
            }) if (end || self.stream(|s| s.bodies_skipped(Dir::Request)))
                && !self.filtered().is_stopped() =>
            {
                (head, length, end)
            }
            part => return Next::Drive(Left::Request(part.map(Box::new), client)),
        };
        match self.request(head, length, client.filter(|_| !end)) {
            Ok(next) => next,
            Err(reply) => Next::Drive(Left::Reply(reply)),
        }
    }

    fn request(
        &self,
        head: Message,
        length: BodyLength,
        client: Option<Incoming>,
    ) -> Result<Next, HostReply> {
        self.route_again(&head)?;
        let Some(cluster) = self.target()? else {
            let end = client.is_none();
            let part = Part::Head {
                head,
                length,
                end,
                local: false,
            };
            return Ok(Next::Drive(Left::Request(Some(Box::new(part)), client)));
        };
        let body = client.map_or(OutBody::Empty, |client| self.forward_request(client));
        let request = self.upstream_request(cluster, head, length, body)?;
        Ok(Next::Send(cluster, request))
    }

    /// Waits for the upstream's answer. None: a filter has stopped it.
    pub(in super::super) fn poll_answer(
        &self,
        call: Pin<&mut impl Future<Output = Result<Answer, HostReply>>>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Answer, HostReply>>> {
        let filtered = self.filtered();
        filtered.register(cx);
        if filtered.is_stopped() {
            return Poll::Ready(None);
        }
        call.poll(cx).map(Some)
    }

    /// Takes the response's head through the engine.
    pub(in super::super) fn respond(
        &mut self,
        answer: Option<Result<Answer, HostReply>>,
    ) -> Result<Response<OutBody>, Left> {
        // None: a filter replied or reset; the engine has the rest.
        let answer = answer.ok_or(Left::Sent)?.map_err(Left::Reply)?;
        let sent = self.x.request_is_sent();
        let (head, length, rest) = self.open(answer, sent).map_err(Left::Reply)?;
        if rest.switches.is_none()
            && !self.filtered().is_stopped()
            && self.filtered().stream.borrow_mut().skip_response(length)
        {
            self.filtered().driver.take();
            let body = match rest.body {
                Some((incoming, lease)) => self.forward_response(incoming, lease),
                None => {
                    self.x.body_ended(Dir::Response, Ended::Complete);
                    OutBody::Empty
                }
            };
            return Ok(self.response(head, length, body));
        }
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
                // The end of a forwarded body would wake the connection's task for nothing.
                self.filtered().driver.take();
                let body = match rest.body {
                    Some((incoming, lease)) if !end => self.forward_response(incoming, lease),
                    _ => {
                        self.x.set_ended(Dir::Response, Ended::Complete);
                        OutBody::Empty
                    }
                };
                Ok(self.response(head, length, body))
            }
            part => Err(Left::Response(Box::new((rest, part)))),
        }
    }

    fn can_forward(&self, end: bool) -> bool {
        (end || self.stream(|s| s.bodies_skipped(Dir::Response))) && !self.filtered().is_stopped()
    }
}

impl Left {
    /// Goes on in the second gear.
    pub(in super::super) fn drive(self, task: Task) -> Pin<Box<dyn Future<Output = Begin>>> {
        let driver = match self {
            Self::Request(part, client) => {
                let mut driver = Driver::new(task, client);
                if let Some(part) = part {
                    driver.take_request_part(*part);
                }
                driver
            }
            Self::Sent => Driver::sent(task),
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

fn request_length(body: &Incoming, headers: &HeaderMap) -> BodyLength {
    if body.is_end_stream() {
        return BodyLength::Exact(0);
    }
    content_length(headers).map_or(BodyLength::Unknown, BodyLength::Exact)
}
