//! What both gears need: where a request goes, how messages are framed after the filters, what an upstream answered.

use std::rc::Rc;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;

use super::super::body::{Forward, OutBody};
use super::super::exchange::{self, Exchange};
use super::super::fields::{Message, Start};
use super::super::head::{self, Hop};
use super::super::site::{Action, RouteChain};
use super::super::upstream::{Answer, HostReply, Lease};
use super::{Filtered, content_length};
use crate::engine::{BodyLength, Cx, Dir, Stream};

/// An exchange on its way through filters.
pub(in super::super) struct Task {
    pub(super) x: Rc<Exchange>,
    pub(super) hop: Hop,
    pub(super) upgrade: Option<OnUpgrade>,
    /// When the whole exchange must be over.
    pub(in super::super) until: Option<Instant>,
    /// The length that each message came with: while it stays, the fields that frame the message do, too.
    pub(super) came_with: [Option<BodyLength>; 2],
}

/// What an upstream's answer has besides its head.
pub(in super::super) struct Rest {
    /// If there is one.
    pub(super) body: Option<(Incoming, Lease)>,
    /// The connection and the protocol of a 101.
    pub(super) switches: Option<(OnUpgrade, HeaderValue)>,
}

impl Task {
    /// Gives an exchange its stream.
    pub(in super::super) fn new(
        x: &Rc<Exchange>,
        chain: &RouteChain,
        hop: Hop,
        upgrade: Option<OnUpgrade>,
    ) -> Self {
        Filtered::open(x, &chain.0);
        Self {
            x: Rc::clone(x),
            hop,
            upgrade,
            until: x.until(),
            came_with: [None; 2],
        }
    }

    pub(super) fn filtered(&self) -> &Filtered {
        self.x.filtered.get().expect("a task has a stream")
    }

    pub(super) fn with<R>(&self, act: impl FnOnce(&mut Stream<Message>, &mut Cx<'_>) -> R) -> R {
        self.filtered().with(&self.x, act)
    }

    pub(super) fn stream<R>(&self, look: impl FnOnce(&Stream<Message>) -> R) -> R {
        look(&self.filtered().stream.borrow())
    }

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

    /// Routes again, if a filter asks for it, by what the filters made of the head. Time limits and cluster are the new
    /// route's; filters and path stay.
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
        if self.came_with[Dir::Request as usize] != Some(length) {
            frame_request(&mut headers, &method, length);
        }
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = method;
        parts.uri = uri;
        parts.headers = headers;
        exchange::upstream_request(&self.x, cluster, parts, &self.hop, body)
    }

    pub(super) fn forward_request(&self, client: Incoming) -> OutBody {
        let limit = self.x.route().and_then(|r| r.max_request_body);
        OutBody::Forward(Forward::request(client, Rc::clone(&self.x), limit))
    }

    pub(super) fn forward_response(&self, incoming: Incoming, lease: Lease) -> OutBody {
        let idle = self.x.route().and_then(|r| r.timeouts.idle.limit());
        let x = Rc::clone(&self.x);
        OutBody::Forward(Forward::response(incoming, x, lease, idle, self.until))
    }

    /// Takes an answer apart. `sent`: the request has left completely, so that the connection can be used again.
    pub(super) fn open(
        &mut self,
        answer: Answer,
        sent: bool,
    ) -> Result<(Message, BodyLength, Rest), HostReply> {
        let Answer { response, lease } = answer;
        let (mut parts, body) = response.into_parts();
        let hop = exchange::response_head(&self.x, &mut parts.headers, &mut parts.version);
        self.x.set_details("via_upstream");
        let mut switches = None;
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            let upgrade = parts.extensions.remove::<OnUpgrade>();
            match (upgrade, hop.upgrade, self.upgrade.is_some()) {
                (Some(upgrade), Some(protocol), true) => switches = Some((upgrade, protocol)),
                _ => return Err(HostReply::new(502, "host.unexpected_upgrade")),
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
        let mut kept = None;
        if matches!(length, BodyLength::None | BodyLength::Exact(0)) {
            if sent && switches.is_none() {
                lease.give_back();
            }
        } else {
            kept = Some((body, lease));
            self.came_with[Dir::Response as usize] = Some(length);
        }
        let head = Message {
            start: Start::Response(parts.status),
            headers: parts.headers,
        };
        let rest = Rest {
            body: kept,
            switches,
        };
        Ok((head, length, rest))
    }

    /// The response as the client gets it, framed by the length that the engine gave.
    pub(super) fn response(
        &self,
        head: Message,
        length: BodyLength,
        body: OutBody,
    ) -> Response<OutBody> {
        let status = match head.start {
            Start::Response(status) => status,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        self.x.status.set(status.as_u16());
        let mut headers = head.headers;
        if length == BodyLength::Unknown {
            let announce = self.x.route().map_or(&[][..], |r| &r.announce);
            head::announce(&mut headers, announce);
        }
        if self.came_with[Dir::Response as usize] != Some(length) {
            frame_response(&mut headers, status, length);
        }
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

fn frame_request(headers: &mut HeaderMap, method: &Method, length: BodyLength) {
    match length {
        BodyLength::Exact(0) | BodyLength::None => {
            let expects_body = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
            if expects_body || headers.contains_key(header::CONTENT_LENGTH) {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
        }
        length => frame(headers, length),
    }
}

fn frame_response(headers: &mut HeaderMap, status: StatusCode, length: BodyLength) {
    match length {
        // What HEAD would have got, and 304 stands for, is the upstream's to say.
        BodyLength::None if status != StatusCode::NO_CONTENT => {}
        BodyLength::None => {
            headers.remove(header::CONTENT_LENGTH);
        }
        length => frame(headers, length),
    }
}

fn frame(headers: &mut HeaderMap, length: BodyLength) {
    if let BodyLength::Exact(n) = length {
        if content_length(headers) != Some(n) {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(n));
        }
    } else {
        headers.remove(header::CONTENT_LENGTH);
    }
}
