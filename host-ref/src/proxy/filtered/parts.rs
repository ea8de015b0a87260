//! What comes out of the engine, and how it is sent on.

use std::rc::Rc;

use http::header::HeaderMap;
use http::{Method, StatusCode};
use http_body::Frame;

use super::super::body::{self, OutBody, Receiver, Sender};
use super::super::exchange::{self, Aborted, Ended, Exchange};
use super::super::fields::{Message, Start};
use super::super::site::Action;
use super::super::upstream::HostReply;
use super::driver::Driver;
use crate::engine::{BodyLength, Dir, Part, Stream};

impl Driver {
    pub(super) fn take_request_part(&mut self, part: Part<Message>) {
        match part {
            Part::Head {
                head, length, end, ..
            } => {
                self.head_out = true;
                if let Err(reply) = self.begin_request(head, length, end) {
                    self.reply(reply);
                }
            }
            Part::Data(data) => {
                if let Some(request) = &self.request {
                    request.send(Frame::data(data));
                }
            }
            Part::Trailers(trailers) => self.end_request(Some(trailers.headers)),
            Part::End => self.end_request(None),
        }
    }

    fn end_request(&mut self, trailers: Option<HeaderMap>) {
        if let Some(request) = self.request.take() {
            if let Some(trailers) = trailers {
                request.send(Frame::trailers(trailers));
            }
            request.end();
        }
        self.x().set_ended(Dir::Request, Ended::Complete);
    }

    fn begin_request(
        &mut self,
        head: Message,
        length: BodyLength,
        end: bool,
    ) -> Result<(), HostReply> {
        self.task.route_again(&head)?;
        let Some(cluster) = self.task.target()? else {
            return self.direct(end);
        };
        let body = if end {
            self.x().set_ended(Dir::Request, Ended::Complete);
            OutBody::Empty
        } else if self.task.stream(|s| s.bodies_skipped(Dir::Request))
            && let Some(client) = self.client.take()
        {
            self.task.forward_request(client)
        } else {
            let (sender, receiver) = channel(length);
            self.request = Some(sender);
            OutBody::Channel(receiver)
        };
        let request = self.task.upstream_request(cluster, head, length, body)?;
        let (x, until) = (Rc::clone(&self.task.x), self.task.until);
        self.call = Some(Box::pin(async move {
            exchange::call(&x, cluster, request, until).await
        }));
        Ok(())
    }

    /// The response of a route without cluster; what is left of the request is read and dropped.
    fn direct(&mut self, end: bool) -> Result<(), HostReply> {
        let route = self
            .x()
            .route()
            .ok_or(HostReply::new(404, "host.no_route"))?;
        let Action::Direct {
            status,
            headers,
            body,
        } = &route.action
        else {
            return Err(HostReply::new(500, "host.no_action"));
        };
        if end {
            self.x().set_ended(Dir::Request, Ended::Complete);
        }
        let message = Message {
            start: Start::Response(*status),
            headers: headers.clone(),
        };
        let bodyless = self.x().method == Method::HEAD || matches!(status.as_u16(), 204 | 304);
        let length = if bodyless {
            BodyLength::None
        } else {
            BodyLength::Exact(body.len() as u64)
        };
        let body = body.clone();
        self.x().set_details("host.direct_response");
        self.task.with(|stream, cx| {
            stream.response_head(cx, message, length);
            if !bodyless && !body.is_empty() {
                stream.response_data(cx, body);
                stream.response_end(cx, None);
            }
        });
        Ok(())
    }

    /// Takes from the engine what there is room for.
    pub(super) fn take_outputs(&mut self) {
        loop {
            let (cancelled, reset) = {
                let filtered = self.task.filtered();
                (filtered.cancel_upstream.get(), filtered.reset_client.get())
            };
            if cancelled {
                self.call = None;
                self.upstream = None;
                self.request = None;
                self.client = None;
            }
            if reset {
                if let Some(response) = self.response.take() {
                    response.abort("reset by a filter or by the upstream".into());
                } else if !self.began {
                    self.begin = Some(Err(Aborted));
                }
                self.x().set_ended(Dir::Response, Ended::Reset);
                return;
            }
            let room = |sender: &Option<Sender>| sender.as_ref().is_none_or(Sender::is_empty);
            self.blocked = [!room(&self.request), !room(&self.response)];
            if !self.blocked[0]
                && let Some(part) = self.task.with(Stream::request_part)
            {
                self.take_request_part(part);
                continue;
            }
            if !self.blocked[1]
                && self.begin.is_none()
                && let Some(part) = self.task.with(Stream::response_part)
            {
                self.take_response_part(part);
                continue;
            }
            return;
        }
    }

    pub(super) fn take_response_part(&mut self, part: Part<Message>) {
        match part {
            Part::Head {
                head,
                length,
                end,
                local,
            } => self.begin_response(head, length, end, local),
            Part::Data(data) => {
                self.upstream_bytes += data.len() as u64;
                self.x().count_body(Dir::Response, self.upstream_bytes);
                if let Some(response) = &self.response {
                    response.send(Frame::data(data));
                }
            }
            Part::Trailers(trailers) => self.end_response(Some(trailers.headers)),
            Part::End => self.end_response(None),
        }
    }

    fn end_response(&mut self, trailers: Option<HeaderMap>) {
        if let Some(response) = self.response.take() {
            if let Some(trailers) = trailers {
                response.send(Frame::trailers(trailers));
            }
            response.end();
        }
        self.x().set_ended(Dir::Response, Ended::Complete);
    }

    fn begin_response(&mut self, head: Message, length: BodyLength, end: bool, local: bool) {
        self.began = true;
        if local {
            self.task.came_with[Dir::Response as usize] = None;
            let details = self.task.stream(|s| s.details().to_owned());
            if !details.is_empty() {
                self.x().set_details(details);
            }
        }
        let body = if end {
            self.x().set_ended(Dir::Response, Ended::Complete);
            OutBody::Empty
        } else if !local
            && self.task.stream(|s| s.bodies_skipped(Dir::Response))
            && let Some((incoming, lease)) = self.upstream.take()
        {
            self.task.forward_response(incoming, lease)
        } else {
            let (sender, receiver) = channel(length);
            self.response = Some(sender);
            OutBody::Channel(receiver)
        };
        let mut response = self.task.response(head, length, body);
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let (Some((upstream, protocol)), Some(client)) =
                (self.switches.take(), self.task.upgrade.take())
        {
            exchange::upgrade_fields(response.headers_mut(), protocol);
            tokio::task::spawn_local(exchange::tunnel(Rc::clone(self.x()), client, upstream));
        }
        self.begin = Some(Ok(response));
    }

    fn x(&self) -> &Rc<Exchange> {
        &self.task.x
    }
}

/// A body of `length`, handed over frame by frame.
fn channel(length: BodyLength) -> (Sender, Receiver) {
    body::channel(match length {
        BodyLength::Exact(n) => Some(n),
        BodyLength::None | BodyLength::Unknown => None,
    })
}
