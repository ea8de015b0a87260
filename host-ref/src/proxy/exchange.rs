//! One request and its response: what is known about it, and the way without filters.

use std::borrow::Cow;
use std::cell::{Cell, OnceCell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Context;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version, request};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::body::{Forward, OutBody};
use super::config::UpstreamProtocol;
use super::connection::Conn;
use super::filtered::{Filtered, Next, Task};
use super::head::{self, Hop};
use super::router::{self, RouteId};
use super::site::{Action, Pinned, Route};
use super::upstream::{self, Answer, HostReply, Progress};
use super::worker::WorkerState;
use super::{clock, path, reply};
use crate::engine::{Dir, grammar};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The client's side is to be reset without reply.
#[derive(Debug, thiserror::Error)]
#[error("the exchange was reset")]
pub(super) struct Aborted;

/// How a direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Complete,
    SenderDied,
    ReceiverDied,
    Timeout,
    TooLarge,
    Reset,
}

/// What is known about one request; the access log's line when it is dropped.
#[derive(Debug)]
pub(super) struct Exchange {
    pub worker: Rc<WorkerState>,
    pub conn: Rc<Conn>,
    pub site: Rc<Pinned>,
    pub start: u64,
    pub number: u64,
    pub method: Method,
    pub version: Version,
    /// As received.
    pub uri: Uri,
    pub authority: OnceCell<HeaderValue>,
    /// Path and query that were routed on, where filters may ask.
    pub normalized: OnceCell<PathAndQuery>,
    pub request_id: OnceCell<HeaderValue>,
    pub route: Cell<Option<RouteId>>,
    pub status: Cell<u16>,
    pub details: RefCell<Cow<'static, str>>,
    pub cluster: Cell<Option<usize>>,
    pub upstream: Cell<Option<SocketAddr>>,
    pub attempts: Cell<u32>,
    pub sent_at: Cell<u64>,
    pub answered_at: Cell<u64>,
    bytes: [Cell<u64>; 2],
    ended: [Cell<Option<Ended>>; 2],
    pub filtered: OnceCell<Box<Filtered>>,
}

/// A request that is ready for its first guest, or for its upstream.
#[derive(Debug)]
pub(super) struct Ready {
    pub parts: request::Parts,
    pub hop: Hop,
    pub route: RouteId,
}

impl Exchange {
    fn new(
        worker: Rc<WorkerState>,
        conn: Rc<Conn>,
        parts: &request::Parts,
        body: &Incoming,
    ) -> Self {
        let start = match conn.watch.first_byte.swap(0, Relaxed) {
            0 => clock::now(),
            at => at,
        };
        conn.watch
            .active
            .store(conn.watch.active.load(Relaxed) + 1, Relaxed);
        conn.requests.set(conn.requests.get() + 1);
        let site = worker.site();
        let body = (!body.is_end_stream()).then_some(());
        Self {
            start,
            number: worker.next_request(),
            method: parts.method.clone(),
            version: parts.version,
            uri: parts.uri.clone(),
            authority: OnceCell::new(),
            normalized: OnceCell::new(),
            request_id: OnceCell::new(),
            route: Cell::new(None),
            status: Cell::new(0),
            details: RefCell::new(Cow::Borrowed("")),
            cluster: Cell::new(None),
            upstream: Cell::new(None),
            attempts: Cell::new(0),
            sent_at: Cell::new(0),
            answered_at: Cell::new(0),
            bytes: Default::default(),
            ended: [
                Cell::new(body.map_or(Some(Ended::Complete), |()| None)),
                Cell::new(None),
            ],
            filtered: OnceCell::new(),
            worker,
            conn,
            site,
        }
    }

    /// The route that answers; only after routing.
    pub(super) fn route(&self) -> Option<&Route> {
        self.route.get().map(|id| self.site.route(id))
    }

    pub(super) fn count_body(&self, dir: Dir, total: u64) {
        self.bytes[dir as usize].set(total);
    }

    pub(super) fn body_bytes(&self, dir: Dir) -> u64 {
        self.bytes[dir as usize].get()
    }

    pub(super) fn ended(&self, dir: Dir) -> Option<Ended> {
        self.ended[dir as usize].get()
    }

    pub(super) fn set_ended(&self, dir: Dir, how: Ended) {
        if self.ended(dir).is_none() {
            self.ended[dir as usize].set(Some(how));
        }
    }

    pub(super) fn request_is_sent(&self) -> bool {
        self.ended(Dir::Request) == Some(Ended::Complete)
    }

    /// A forwarded body has ended.
    pub(super) fn body_ended(&self, dir: Dir, how: Ended) {
        self.set_ended(dir, how);
        if let Some(filtered) = self.filtered.get() {
            filtered.body_ended(self, dir, how);
        }
    }

    /// Whether a filter has reset this direction; the task is woken when one does.
    pub(super) fn is_reset(&self, dir: Dir, cx: &Context<'_>) -> bool {
        self.filtered
            .get()
            .is_some_and(|filtered| filtered.is_reset(dir, cx))
    }

    pub(super) fn set_details(&self, details: impl Into<Cow<'static, str>>) {
        *self.details.borrow_mut() = details.into();
    }

    pub(super) fn duration_ns(&self) -> u64 {
        clock::now().saturating_sub(self.start)
    }

    /// When the whole exchange must be over.
    pub(super) fn until(&self) -> Option<Instant> {
        let limit = self.route()?.timeouts.request.limit()?;
        let gone = Duration::from_nanos(self.duration_ns());
        Some(Instant::now() + limit.saturating_sub(gone))
    }
}

impl Progress for Exchange {
    fn attempt(&self, endpoint: SocketAddr) {
        self.upstream.set(Some(endpoint));
        self.attempts.set(self.attempts.get() + 1);
        self.sent_at.set(clock::now());
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let watch = &self.conn.watch;
        let active = watch.active.load(Relaxed).saturating_sub(1);
        watch.active.store(active, Relaxed);
        let now = clock::now();
        if active == 0 {
            watch.idle_since.store(now, Relaxed);
        }
        let filtered = self.filtered.take();
        if let Some(filtered) = &filtered {
            filtered.abandon(self);
        }
        self.worker.stats.finished(self, now);
        self.worker.exchange_ended();
        if let Some(log) = &self.site.runtime.access {
            let steps = filtered.as_ref().map_or_else(Vec::new, |f| f.steps());
            self.worker.log_access(log, self, &steps, now);
        }
        if let Some(filtered) = filtered
            && self.worker.serves(&self.site)
        {
            self.worker.streams.keep_spare(filtered);
        }
    }
}

/// Answers one request.
pub(super) async fn handle(
    worker: Rc<WorkerState>,
    conn: Rc<Conn>,
    request: Request<Incoming>,
) -> Result<Response<OutBody>, Aborted> {
    let (mut parts, body) = request.into_parts();
    let exchange = Rc::new(Exchange::new(worker, conn, &parts, &body));
    let mut upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let mut ready = match prepare(&exchange, parts) {
        Ok(ready) => ready,
        Err(reply) => return Ok(reply::host_reply(&exchange, reply)),
    };
    if !body.is_end_stream() {
        // A request with a body asks for no upgrade (PXG-EVT-022).
        upgrade = None;
        ready.hop.upgrade = None;
    }
    let route = exchange.site.route(ready.route);
    if let Some(chain) = &route.chain {
        let mut task = Task::new(&exchange, chain, ready.hop, upgrade);
        let next = match task.begin(ready.parts, body) {
            Some(next) => next,
            None => task.decided().await,
        };
        let (cluster, request) = match next {
            Next::Send(cluster, request) => (cluster, request),
            Next::Drive(left) => return left.drive(task).await,
        };
        let answer = {
            let mut call = pin!(call(&exchange, cluster, request, task.until));
            poll_fn(|cx| task.poll_answer(call.as_mut(), cx)).await
        };
        return match task.respond(answer) {
            Ok(response) => Ok(response),
            Err(left) => left.drive(task).await,
        };
    }
    let result = match &route.action {
        Action::Direct { .. } => Ok(reply::direct(&exchange, &route.action)),
        Action::Cluster(cluster) => {
            let body = request_body(&exchange, body, route);
            forward(&exchange, *cluster, ready.parts, &ready.hop, body, upgrade).await
        }
    };
    match result {
        Ok(response) => Ok(response),
        Err(reply) => Ok(reply::host_reply(&exchange, reply)),
    }
}

/// The request's body as it goes upstream when no filter wants it.
pub(super) fn request_body(exchange: &Rc<Exchange>, body: Incoming, route: &Route) -> OutBody {
    if body.is_end_stream() {
        OutBody::Empty
    } else {
        OutBody::Forward(Forward::request(
            body,
            Rc::clone(exchange),
            route.max_request_body,
        ))
    }
}

/// Checks and routes a request, and makes its fields what the first guest sees and the upstream gets.
fn prepare(exchange: &Exchange, mut parts: request::Parts) -> Result<Ready, HostReply> {
    let runtime = &exchange.site.runtime;
    if exchange.conn.watch.conflict.load(Relaxed) {
        return Err(HostReply::new(400, "host.conflicting_framing"));
    }
    if parts.method == Method::CONNECT {
        return Err(HostReply::new(405, "host.connect_refused"));
    }
    let hop = head::clean(&mut parts.headers, &runtime.strip);
    let authority = authority(&mut parts)?;
    let host = authority
        .to_str()
        .map_err(|_| HostReply::new(400, "host.bad_authority"))?;
    if let Some(normal) = path::normalize(parts.uri.path()) {
        let normal = normal.ok_or(HostReply::new(400, "host.bad_path"))?;
        set_path(&mut parts.uri, &normal)?;
    }
    let target = parts.uri.path();
    let id = runtime
        .router
        .find(host, target)
        .ok_or(HostReply::new(404, "host.no_route"))?;
    exchange.route.set(Some(id));
    let route = exchange.site.route(id);
    if let (Some(_), Some(path)) = (&route.chain, parts.uri.path_and_query()) {
        let _ = exchange.normalized.set(path.clone());
    }
    if let Some(rewrite) = &route.rewrite {
        let rewritten = router::rewrite(target, &route.prefix, rewrite);
        set_path(&mut parts.uri, &rewritten)?;
    }
    if let Some(limit) = route.max_request_body {
        let length = parts
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: u64| length > limit) {
            return Err(HostReply::new(413, "host.request_too_large"));
        }
    }
    if runtime.forwarded {
        let https = exchange.conn.tls.is_some();
        let proto = HeaderValue::from_static(if https { "https" } else { "http" });
        head::append_to_list(&mut parts.headers, X_FORWARDED_FOR, &exchange.conn.peer_ip);
        parts.headers.insert(X_FORWARDED_PROTO, proto);
        parts.headers.insert(X_FORWARDED_HOST, authority.clone());
    }
    if let Some(via) = &runtime.via {
        let value = if exchange.version == Version::HTTP_2 {
            &via.h2
        } else {
            &via.h1
        };
        head::append_to_list(&mut parts.headers, header::VIA, value);
    }
    if let Some(field) = &runtime.request_id {
        let sent = parts
            .headers
            .get(field)
            .filter(|v| runtime.trust_request_id && head::is_legal_id(v));
        let id = sent
            .cloned()
            .unwrap_or_else(|| exchange.worker.request_id(exchange.number));
        parts.headers.insert(field.clone(), id.clone());
        let _ = exchange.request_id.set(id);
    }
    let _ = exchange.authority.set(authority);
    Ok(Ready {
        parts,
        hop,
        route: id,
    })
}

/// The authority of a request, also left as its only `host` field.
fn authority(parts: &mut request::Parts) -> Result<HeaderValue, HostReply> {
    const BAD: HostReply = HostReply::new(400, "host.bad_authority");
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let (first, more) = (hosts.next(), hosts.next().is_some());
    if more {
        return Err(HostReply::new(400, "host.several_hosts"));
    }
    if let Some(authority) = parts.uri.authority() {
        // The target wins over the field (RFC 9112 3.2.2, RFC 9113 8.3.1).
        let name = authority.as_str();
        let name = name.rsplit_once('@').map_or(name, |(_, host)| host);
        let value = match first {
            Some(host) if host.as_bytes() == name.as_bytes() => host.clone(),
            _ => HeaderValue::from_str(name).map_err(|_| BAD)?,
        };
        if !grammar::is_pseudo_value(b":authority", value.as_bytes()) {
            return Err(BAD);
        }
        parts.headers.insert(header::HOST, value.clone());
        return Ok(value);
    }
    match first {
        Some(host) if grammar::is_pseudo_value(b":authority", host.as_bytes()) => Ok(host.clone()),
        Some(_) => Err(BAD),
        None if parts.version == Version::HTTP_10 => {
            // A client so old names no host; the upstream's HTTP/1.1 needs one.
            let value = HeaderValue::from_static("localhost");
            parts.headers.insert(header::HOST, value.clone());
            Ok(value)
        }
        None => Err(HostReply::new(400, "host.no_host")),
    }
}

fn set_path(uri: &mut Uri, path: &str) -> Result<(), HostReply> {
    let text = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let path = PathAndQuery::from_maybe_shared(Bytes::from(text))
        .map_err(|_| HostReply::new(400, "host.bad_path"))?;
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(path);
    // Without scheme and authority every path is a URI; with them one that begins with a slash is.
    *uri = Uri::from_parts(parts).map_err(|_| HostReply::new(400, "host.bad_path"))?;
    Ok(())
}

/// Sends a request to a cluster and makes its response what the client gets.
async fn forward(
    exchange: &Rc<Exchange>,
    cluster: usize,
    parts: request::Parts,
    hop: &Hop,
    body: OutBody,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
) -> Result<Response<OutBody>, HostReply> {
    let until = exchange.until();
    let request = upstream_request(exchange, cluster, parts, hop, body)?;
    let Answer { response, lease } = call(exchange, cluster, request, until).await?;
    let (mut parts, incoming) = response.into_parts();
    let hop = response_head(exchange, &mut parts.headers, &mut parts.version);
    exchange.status.set(parts.status.as_u16());
    exchange.set_details("via_upstream");
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        let upstream = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
        let (Some(client), Some(upstream), Some(protocol)) = (upgrade, upstream, hop.upgrade)
        else {
            return Err(HostReply::new(502, "host.unexpected_upgrade"));
        };
        upgrade_fields(&mut parts.headers, protocol);
        tokio::task::spawn_local(tunnel(Rc::clone(exchange), client, upstream));
        return Ok(Response::from_parts(parts, OutBody::Empty));
    }
    let body = if incoming.is_end_stream() {
        exchange.set_ended(Dir::Response, Ended::Complete);
        if exchange.request_is_sent() {
            lease.give_back();
        }
        OutBody::Empty
    } else {
        let idle = exchange.route().and_then(|r| r.timeouts.idle.limit());
        OutBody::Forward(Forward::response(
            incoming,
            Rc::clone(exchange),
            lease,
            idle,
            until,
        ))
    };
    Ok(Response::from_parts(parts, body))
}

/// The request as one hop sends it.
pub(super) fn upstream_request(
    exchange: &Exchange,
    cluster: usize,
    mut parts: request::Parts,
    hop: &Hop,
    body: OutBody,
) -> Result<Request<OutBody>, HostReply> {
    const BAD: HostReply = HostReply::new(400, "host.bad_target");
    let site = &exchange.site;
    exchange.cluster.set(Some(cluster));
    let path = parts.uri.path_and_query().cloned();
    let headers = &mut parts.headers;
    headers.remove(header::EXPECT); // the host answers it
    match site.cluster(cluster).protocol {
        UpstreamProtocol::Http1 => {
            if parts.uri.scheme().is_some() || parts.uri.authority().is_some() {
                parts.uri = path
                    .map_or(Ok(Uri::from_static("/")), |p| Uri::try_from(p.as_str()))
                    .map_err(|_| BAD)?;
            }
            parts.version = Version::HTTP_11;
            let sized = headers.contains_key(header::CONTENT_LENGTH);
            if !matches!(body, OutBody::Empty) && !sized {
                // Explicit, since the library takes a GET without length for one without body.
                headers.insert(
                    header::TRANSFER_ENCODING,
                    HeaderValue::from_static("chunked"),
                );
                let announce = exchange.route().map_or(&[][..], |r| &r.announce);
                head::announce(headers, announce);
            }
            match &hop.upgrade {
                Some(protocol) => upgrade_fields(headers, protocol.clone()),
                None if hop.trailers => {
                    headers.insert(header::TE, HeaderValue::from_static("trailers"));
                    headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
                }
                None => {}
            }
        }
        UpstreamProtocol::Http2 => {
            let host = headers.remove(header::HOST).ok_or(BAD)?;
            let mut uri = http::uri::Parts::default();
            uri.scheme = Some(http::uri::Scheme::HTTP);
            uri.authority = Some(host.as_bytes().try_into().map_err(|_| BAD)?);
            uri.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
            parts.uri = Uri::from_parts(uri).map_err(|_| BAD)?;
            parts.version = Version::HTTP_2;
            if hop.trailers {
                headers.insert(header::TE, HeaderValue::from_static("trailers"));
            }
        }
    }
    parts.extensions = http::Extensions::new();
    Ok(Request::from_parts(parts, body))
}

pub(super) fn upgrade_fields(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// Sends, within the route's limits of time.
pub(super) async fn call(
    exchange: &Exchange,
    cluster: usize,
    request: Request<OutBody>,
    until: Option<Instant>,
) -> Result<Answer, HostReply> {
    let site = &exchange.site;
    let limit = exchange
        .route()
        .and_then(|r| r.timeouts.response_header.limit());
    let deadline = match (limit.map(|l| Instant::now() + l), until) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let send = upstream::send(
        site.cluster(cluster),
        site.pools(cluster),
        request,
        exchange,
    );
    let result = match deadline {
        None => send.await,
        Some(deadline) => tokio::time::timeout_at(deadline, send)
            .await
            .unwrap_or(Err(HostReply::new(504, "host.upstream_timeout"))),
    };
    let answer = result.map_err(|reply| match exchange.ended(Dir::Request) {
        Some(Ended::TooLarge) => HostReply::new(413, "host.request_too_large"),
        Some(Ended::SenderDied) => HostReply::new(400, "host.request_aborted"),
        _ => reply,
    })?;
    exchange.answered_at.set(clock::now());
    Ok(answer)
}

/// Makes the fields of an upstream's response what the first guest sees and the client gets.
pub(super) fn response_head(
    exchange: &Exchange,
    headers: &mut HeaderMap,
    version: &mut Version,
) -> Hop {
    let runtime = &exchange.site.runtime;
    if let Some(via) = &runtime.via {
        let value = if *version == Version::HTTP_2 {
            &via.h2
        } else {
            &via.h1
        };
        head::append_to_list(headers, header::VIA, value);
    }
    *version = Version::HTTP_11; // of the message; the client's connection writes its own
    head::clean(headers, &[])
}

/// Carries an upgraded connection in both directions until one side ends it.
pub(super) async fn tunnel(
    exchange: Rc<Exchange>,
    client: hyper::upgrade::OnUpgrade,
    upstream: hyper::upgrade::OnUpgrade,
) {
    let (client, upstream) = match (client.await, upstream.await) {
        (Ok(client), Ok(upstream)) => (client, upstream),
        _ => {
            exchange.set_ended(Dir::Request, Ended::SenderDied);
            exchange.body_ended(Dir::Response, Ended::ReceiverDied);
            return;
        }
    };
    let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
    let result = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
    if let Ok((sent, received)) = &result {
        exchange.count_body(Dir::Request, *sent);
        exchange.count_body(Dir::Response, *received);
    }
    let how = if result.is_ok() {
        Ended::Complete
    } else {
        Ended::SenderDied
    };
    exchange.body_ended(Dir::Request, how);
    exchange.body_ended(Dir::Response, how);
}
