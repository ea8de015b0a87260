//! What comes out of the engine, and how it is sent on.

use std::rc::Rc;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;

use super::super::body::{self, Forward, OutBody, Sender};
use super::super::exchange::{self, Aborted, Ended};
use super::super::fields::{Message, Start};
use super::super::head;
use super::super::site::Action;
use super::super::upstream::HostReply;
use super::{Driver, content_length};
use crate::engine::{BodyLength, Dir, Part, Stream};

impl Driver {
    /// The cluster that the request goes to; none for a route of the host's own.
    pub(super) fn target(&self) -> Result<Option<usize>, HostReply> {
        let chosen = self.filtered().route.borrow();
        if let Some(Some(name)) = &*chosen {
            let found = self.x.site.runtime.cluster_by_name(name);
            return found
                .map(Some)
                .ok_or(HostReply::new(503, "host.no_such_cluster"));
        }
        let route = self.x.route().ok_or(HostReply::new(404, "host.no_route"))?;
        Ok(match &route.action {
            Action::Cluster(cluster) => Some(*cluster),
            Action::Direct { .. } => None,
        })
    }

    /// Routes again by what the filters made of the head. Time limits and cluster are the new route's; filters and path
    /// stay.
    pub(super) fn route_again(&self, head: &Message) -> Result<(), HostReply> {
        let recompute = matches!(*self.filtered().route.borrow(), Some(None));
        if !recompute {
            return Ok(());
        }
        let (Start::Request { uri, .. }, Some(host)) =
            (&head.start, head.headers.get(header::HOST))
        else {
            return Err(HostReply::new(400, "host.bad_authority"));
        };
        let host = host
            .to_str()
            .map_err(|_| HostReply::new(400, "host.bad_authority"))?;
        let route = self.x.site.runtime.router.find(host, uri.path());
        let route = route.ok_or(HostReply::new(404, "host.no_route"))?;
        self.x.route.set(Some(route));
        Ok(())
    }

    /// The request as it goes upstream, framed by the length that the engine gave.
    pub(super) fn upstream_request(
        &self,
        cluster: usize,
        head: Message,
        length: BodyLength,
        body: OutBody,
    ) -> Result<Request<OutBody>, HostReply> {
        let Start::Request { method, uri, .. } = head.start else {
            return Err(HostReply::new(500, "host.no_head"));
        };
        let mut headers = head.headers;
        match length {
            BodyLength::Exact(0) | BodyLength::None => {
                let expects_body = matches!(method, Method::POST | Method::PUT | Method::PATCH);
                if expects_body || headers.contains_key(header::CONTENT_LENGTH) {
                    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
                }
            }
            BodyLength::Exact(n) => {
                if content_length(&headers) != Some(n) {
                    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(n));
                }
            }
            BodyLength::Unknown => {
                headers.remove(header::CONTENT_LENGTH);
            }
        }
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = method;
        parts.uri = uri;
        parts.headers = headers;
        exchange::upstream_request(&self.x, cluster, parts, &self.hop, body)
    }

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
        self.x.set_ended(Dir::Request, Ended::Complete);
    }

    fn begin_request(
        &mut self,
        head: Message,
        length: BodyLength,
        end: bool,
    ) -> Result<(), HostReply> {
        self.route_again(&head)?;
        let Some(cluster) = self.target()? else {
            return self.direct(end);
        };
        let body = if end {
            self.x.set_ended(Dir::Request, Ended::Complete);
            OutBody::Empty
        } else if self.client.is_some() && self.stream(|s| s.bodies_skipped(Dir::Request)) {
            self.forward_request(false)
        } else {
            let known = if let BodyLength::Exact(n) = length {
                Some(n)
            } else {
                None
            };
            let (sender, receiver) = body::channel(known);
            self.request = Some(sender);
            OutBody::Channel(receiver)
        };
        let request = self.upstream_request(cluster, head, length, body)?;
        let (x, until) = (Rc::clone(&self.x), self.until);
        self.call = Some(Box::pin(async move {
            exchange::call(&x, cluster, request, until).await
        }));
        Ok(())
    }

    /// The response of a route without cluster; what is left of the request is read and dropped.
    fn direct(&mut self, end: bool) -> Result<(), HostReply> {
        let route = self.x.route().ok_or(HostReply::new(404, "host.no_route"))?;
        let Action::Direct {
            status,
            headers,
            body,
        } = &route.action
        else {
            return Err(HostReply::new(500, "host.no_action"));
        };
        if end {
            self.x.set_ended(Dir::Request, Ended::Complete);
        }
        let message = Message {
            start: Start::Response(*status),
            headers: headers.clone(),
        };
        let bodyless = self.x.method == Method::HEAD || matches!(status.as_u16(), 204 | 304);
        let length = if bodyless {
            BodyLength::None
        } else {
            BodyLength::Exact(body.len() as u64)
        };
        let body = body.clone();
        self.x.set_details("host.direct_response");
        self.with(|stream, cx| {
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
                let filtered = self.filtered();
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
                self.x.set_ended(Dir::Response, Ended::Reset);
                return;
            }
            let room = |sender: &Option<Sender>| sender.as_ref().is_none_or(Sender::is_empty);
            self.blocked = [!room(&self.request), !room(&self.response)];
            if !self.blocked[0]
                && let Some(part) = self.with(Stream::request_part)
            {
                self.take_request_part(part);
                continue;
            }
            if !self.blocked[1]
                && self.begin.is_none()
                && let Some(part) = self.with(Stream::response_part)
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
                self.x.count_body(Dir::Response, self.upstream_bytes);
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
        self.x.set_ended(Dir::Response, Ended::Complete);
    }

    fn begin_response(&mut self, head: Message, length: BodyLength, end: bool, local: bool) {
        let status = match head.start {
            Start::Response(status) => status,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut headers = head.headers;
        self.x.status.set(status.as_u16());
        self.began = true;
        if local {
            let details = self.stream(|s| s.details().to_owned());
            if !details.is_empty() {
                self.x.set_details(details);
            }
        }
        match length {
            // What HEAD would have got, and 304 stands for, is the upstream's to say.
            BodyLength::None => {
                if status == StatusCode::NO_CONTENT {
                    headers.remove(header::CONTENT_LENGTH);
                }
            }
            BodyLength::Exact(n) => {
                if content_length(&headers) != Some(n) {
                    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(n));
                }
            }
            BodyLength::Unknown => {
                headers.remove(header::CONTENT_LENGTH);
                let announce = self.x.route().map_or(&[][..], |r| &r.announce);
                head::announce(&mut headers, announce);
            }
        }
        let body = if end {
            self.x.set_ended(Dir::Response, Ended::Complete);
            OutBody::Empty
        } else if !local
            && self.upstream.is_some()
            && self.stream(|s| s.bodies_skipped(Dir::Response))
        {
            self.forward_response()
        } else {
            let known = if let BodyLength::Exact(n) = length {
                Some(n)
            } else {
                None
            };
            let (sender, receiver) = body::channel(known);
            self.response = Some(sender);
            OutBody::Channel(receiver)
        };
        if let (StatusCode::SWITCHING_PROTOCOLS, Some((upstream, protocol)), Some(client)) =
            (status, self.upstream_upgrade.take(), self.upgrade.take())
        {
            exchange::upgrade_fields(&mut headers, protocol);
            tokio::task::spawn_local(exchange::tunnel(Rc::clone(&self.x), client, upstream));
        }
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        self.begin = Some(Ok(response));
    }

    fn forward_response(&mut self) -> OutBody {
        match self.upstream.take() {
            Some((incoming, Some(lease))) => {
                let idle = self.x.route().and_then(|r| r.timeouts.idle.limit());
                OutBody::Forward(Forward::response(
                    incoming,
                    Rc::clone(&self.x),
                    lease,
                    idle,
                    self.until,
                ))
            }
            _ => OutBody::Empty,
        }
    }
}
