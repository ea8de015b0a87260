//! The way of a request through filters: drives the engine's stream between the two connections.
//!
//! There are two gears. As long as no filter wants bodies and nothing is held, the exchange runs as without filters: the
//! heads go through the engine, and the bodies are forwarded as they come ([`Forward`]), with no task and no channel.
//! When that ends, a [`Driver`] takes over what is left: it feeds frames to the engine and sends on what comes out, at
//! the pace of the slower side.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, request};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use proxy_golang_abi::EndReason;
use tokio::time::{Instant, Sleep};

use super::body::{self, Forward, OutBody, Sender, Timer};
use super::clock;
use super::exchange::{self, Aborted, Ended, Exchange, Ready};
use super::fields::{Message, Start};
use super::head::{self, Hop};
use super::site::{Action, RouteChain};
use super::upstream::{Answer, HostReply, Lease};
use crate::engine::{BodyLength, Cut, Cx, Dir, Mail, Part, Signal, Stream, StreamLimits};

/// The engine's part of an exchange.
pub(super) struct Filtered {
    stream: RefCell<Stream<Message>>,
    key: u64,
    cancel_upstream: Cell<bool>,
    reset_client: Cell<bool>,
    finished: Cell<bool>,
    /// Something happened outside the driver that may have given it parts to send.
    look: Cell<bool>,
    /// The cluster that a filter chose, or that routing again gave.
    route: RefCell<Option<Option<Bytes>>>,
    driver: RefCell<Option<Waker>>,
    forwards: RefCell<[Option<Waker>; 2]>,
}

impl std::fmt::Debug for Filtered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Filtered").field(&self.key).finish()
    }
}

/// The streams of a worker, by the key that comes back in [`Mail::stream`].
#[derive(Default)]
pub(super) struct Streams {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    generation: Cell<u32>,
}

struct Slot {
    generation: u32,
    exchange: Weak<Exchange>,
}

impl Streams {
    fn insert(&self, exchange: &Rc<Exchange>) -> u64 {
        let generation = self.generation.get().wrapping_add(1);
        self.generation.set(generation);
        let slot = Slot {
            generation,
            exchange: Rc::downgrade(exchange),
        };
        let mut slots = self.slots.borrow_mut();
        let index = match self.free.borrow_mut().pop() {
            Some(index) => {
                slots[index as usize] = slot;
                index
            }
            None => {
                slots.push(slot);
                u32::try_from(slots.len() - 1).expect("fewer than 2^32 streams at once")
            }
        };
        u64::from(generation) << 32 | u64::from(index)
    }

    fn remove(&self, key: u64) {
        let (generation, index) = split(key);
        let mut slots = self.slots.borrow_mut();
        if let Some(slot) = slots
            .get_mut(index as usize)
            .filter(|s| s.generation == generation)
        {
            slot.exchange = Weak::new();
            self.free.borrow_mut().push(index);
        }
    }

    /// Gives a guest's completion, apply or wake to its stream.
    pub(super) fn deliver(&self, mail: Mail) {
        let (generation, index) = split(mail.stream);
        let found = {
            let slots = self.slots.borrow();
            slots
                .get(index as usize)
                .filter(|s| s.generation == generation)
                .and_then(|s| s.exchange.upgrade())
        };
        let Some(exchange) = found else { return };
        if let Some(filtered) = exchange.filtered.get() {
            filtered.with(&exchange, |stream, cx| stream.deliver(cx, mail));
            filtered.wake_all();
        }
    }

    /// Ends all streams; for the end of the worker.
    pub(super) fn close_all(&self) {
        let live: Vec<_> = self
            .slots
            .borrow()
            .iter()
            .filter_map(|s| s.exchange.upgrade())
            .collect();
        for exchange in live {
            if let Some(filtered) = exchange.filtered.get() {
                filtered.with(&exchange, |stream, cx| stream.close(cx, EndReason::ERROR));
            }
        }
    }
}

#[allow(clippy::cast_possible_truncation)] // the two halves of a key
fn split(key: u64) -> (u32, u32) {
    ((key >> 32) as u32, key as u32)
}

impl Filtered {
    /// Lets the engine do something, and notes what it asks for.
    fn with<R>(
        &self,
        exchange: &Exchange,
        act: impl FnOnce(&mut Stream<Message>, &mut Cx<'_>) -> R,
    ) -> R {
        let mut worker = exchange.worker.engine.borrow_mut();
        let mut stream = self.stream.borrow_mut();
        let mut cx = Cx {
            worker: &mut worker,
            attrs: exchange,
        };
        let result = act(&mut stream, &mut cx);
        while let Some(signal) = stream.signal() {
            match signal {
                Signal::Route(cluster) => *self.route.borrow_mut() = Some(cluster),
                Signal::CancelUpstream => self.cancel_upstream.set(true),
                Signal::ResetClient => self.reset_client.set(true),
                // The connection is flushed whenever its body has nothing more to give.
                Signal::Flush(_) => {}
                Signal::GuestFailed(failure) => tracing::warn!(
                    route = exchange.route().map_or("", |r| &r.name),
                    request = exchange.number,
                    ?failure,
                    "a filter failed on a request"
                ),
                Signal::Finished => self.finished.set(true),
            }
        }
        exchange.worker.after_engine(&worker);
        result
    }

    /// To be called after the engine did something outside the driver.
    fn wake_all(&self) {
        self.look.set(true);
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
        if self.cancel_upstream.get() || self.reset_client.get() {
            for waker in self.forwards.take().into_iter().flatten() {
                waker.wake();
            }
        }
    }

    fn register(&self, cx: &Context<'_>) {
        let mut driver = self.driver.borrow_mut();
        if !driver.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *driver = Some(cx.waker().clone());
        }
    }

    /// Whether a forwarded body has to stop; the task is woken when it has.
    pub(super) fn is_reset(&self, dir: Dir, cx: &Context<'_>) -> bool {
        if self.reset_client.get() || self.cancel_upstream.get() {
            return true;
        }
        let mut wakers = self.forwards.borrow_mut();
        let waker = &mut wakers[dir as usize];
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        false
    }

    /// A forwarded body has ended.
    pub(super) fn body_ended(&self, exchange: &Exchange, dir: Dir, how: Ended) {
        self.with(exchange, |stream, cx| match how {
            Ended::Complete => stream.body_forwarded(cx, dir),
            Ended::SenderDied => stream.cut(cx, dir, Cut::Sender),
            Ended::ReceiverDied => stream.cut(cx, dir, Cut::Receiver),
            Ended::Timeout => stream.cut(cx, dir, Cut::Timeout),
            // The reply 413 follows; and a reset is the engine's own.
            Ended::TooLarge | Ended::Reset => {}
        });
        self.wake_all();
    }

    /// The exchange is given up: whatever has not ended ends now.
    pub(super) fn abandon(&self, exchange: &Exchange) {
        exchange.worker.streams.remove(self.key);
        if !self.finished.get() {
            self.with(exchange, |stream, cx| {
                stream.close(cx, EndReason::CLIENT_ABORT)
            });
        }
    }
}

/// How the client's side begins.
enum Begin {
    Response(Response<OutBody>),
    Reset,
}

/// Answers a request through its route's filters.
pub(super) async fn run(
    x: &Rc<Exchange>,
    chain: &RouteChain,
    ready: Ready,
    body: Incoming,
    upgrade: Option<OnUpgrade>,
) -> Result<Response<OutBody>, Aborted> {
    let Ready { parts, hop, .. } = ready;
    let key = x.worker.streams.insert(x);
    let limits = StreamLimits {
        hold_time_ns: 100_000_000,
        ..StreamLimits::default()
    };
    let created = x.filtered.set(Box::new(Filtered {
        stream: RefCell::new(Stream::new(chain.0.clone(), key, limits)),
        key,
        cancel_upstream: Cell::new(false),
        reset_client: Cell::new(false),
        finished: Cell::new(false),
        look: Cell::new(false),
        route: RefCell::default(),
        driver: RefCell::default(),
        forwards: RefCell::default(),
    }));
    debug_assert!(created.is_ok(), "one stream for each exchange");
    let Some(filtered) = x.filtered.get() else {
        return Err(Aborted);
    };
    let request::Parts {
        method,
        uri,
        headers,
        ..
    } = parts;
    let length = request_length(&body, &headers);
    let message = Message {
        start: Start::Request {
            method,
            uri,
            https: x.conn.tls.is_some(),
        },
        headers,
    };
    let part = filtered.with(x, |stream, cx| {
        stream.request_head(cx, message, length);
        stream.request_part(cx)
    });
    let mut driver = Driver::new(Rc::clone(x), hop, body, length, upgrade);
    let begin = match part {
        Some(Part::Head {
            head, length, end, ..
        }) if driver.can_forward_request(end) => driver.run_simply(head, length, end).await,
        part => {
            if let Some(part) = part {
                driver.take_request_part(part);
            }
            driver.run_to_head().await
        }
    };
    match begin {
        Begin::Response(response) => {
            if driver.has_work() {
                tokio::task::spawn_local(driver.run_to_end());
            }
            Ok(response)
        }
        Begin::Reset => Err(Aborted),
    }
}

fn request_length(body: &Incoming, headers: &HeaderMap) -> BodyLength {
    if body.is_end_stream() {
        return BodyLength::Exact(0);
    }
    content_length(headers).map_or(BodyLength::Unknown, BodyLength::Exact)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

type Call = Pin<Box<dyn Future<Output = Result<Answer, HostReply>>>>;

/// What is left to do for an exchange.
struct Driver {
    x: Rc<Exchange>,
    hop: Hop,
    /// The client's body, until it has been read or is forwarded.
    client: Option<Incoming>,
    client_bytes: u64,
    /// Whether the request's head has been decided on: only then may the client be told to send its body.
    head_out: bool,
    request: Option<Sender>,
    call: Option<Call>,
    upstream: Option<(Incoming, Option<Lease>)>,
    upstream_bytes: u64,
    response: Option<Sender>,
    began: bool,
    upgrade: Option<OnUpgrade>,
    upstream_upgrade: Option<(OnUpgrade, HeaderValue)>,
    until: Option<Instant>,
    idle: Timer,
    /// Armed for a deadline of the engine.
    sleep: Option<(u64, Pin<Box<Sleep>>)>,
    begin: Option<Begin>,
}

/// What a [`Driver`] waits for.
enum Event {
    ClientFrame(Option<Result<Frame<Bytes>, hyper::Error>>),
    Answer(Result<Answer, HostReply>),
    UpstreamFrame(Option<Result<Frame<Bytes>, hyper::Error>>),
    /// A deadline of the engine.
    Deadline,
    /// A time limit of the route.
    Timeout,
    /// Nobody reads the response any more.
    ClientGone,
    /// There may be something to take from the engine.
    Look,
}

impl Driver {
    fn new(
        x: Rc<Exchange>,
        hop: Hop,
        body: Incoming,
        length: BodyLength,
        upgrade: Option<OnUpgrade>,
    ) -> Self {
        let until = x.until();
        let idle = x.route().and_then(|r| r.timeouts.idle.limit());
        Self {
            hop,
            client: (length != BodyLength::Exact(0)).then_some(body),
            client_bytes: 0,
            head_out: false,
            request: None,
            call: None,
            upstream: None,
            upstream_bytes: 0,
            response: None,
            began: false,
            upgrade,
            upstream_upgrade: None,
            idle: Timer::new(idle, until),
            until,
            sleep: None,
            begin: None,
            x,
        }
    }

    fn filtered(&self) -> &Filtered {
        self.x.filtered.get().expect("a driver has a stream")
    }

    fn with<R>(&self, act: impl FnOnce(&mut Stream<Message>, &mut Cx<'_>) -> R) -> R {
        self.filtered().with(&self.x, act)
    }

    fn stream<R>(&self, look: impl FnOnce(&Stream<Message>) -> R) -> R {
        look(&self.filtered().stream.borrow())
    }

    // ---- the simple gear

    /// Whether what is left of the request needs no driver.
    fn can_forward_request(&self, end: bool) -> bool {
        let filtered = self.filtered();
        let skipped = end || self.stream(|s| s.bodies_skipped(Dir::Request));
        skipped
            && !filtered.cancel_upstream.get()
            && !filtered.reset_client.get()
            && self.stream(Stream::deadline).is_none()
            && self.target().is_ok_and(|target| target.is_some())
    }

    /// Sends the request and takes the response's head through the engine; falls back to the other gear where a filter
    /// wants more than that.
    async fn run_simply(&mut self, head: Message, length: BodyLength, end: bool) -> Begin {
        let x = Rc::clone(&self.x);
        let filtered = x.filtered.get().expect("a driver has a stream");
        self.head_out = true;
        let body = self.forward_request(end);
        let request = match self.target().and_then(|cluster| {
            let cluster = cluster.ok_or(HostReply::new(500, "host.no_action"))?;
            self.upstream_request(cluster, head, length, body)
                .map(|request| (cluster, request))
        }) {
            Ok(request) => request,
            Err(reply) => {
                self.reply(reply);
                return self.run_to_head().await;
            }
        };
        let answer = {
            let mut call = pin!(exchange::call(&x, request.0, request.1, self.until));
            poll_fn(|cx| {
                filtered.register(cx);
                if filtered.cancel_upstream.get() || filtered.reset_client.get() {
                    return Poll::Ready(None);
                }
                call.as_mut().poll(cx).map(Some)
            })
            .await
        };
        match answer {
            Some(answer) => self.take_answer(answer),
            None => {} // a filter replied or reset; the engine has the rest
        }
        self.run_to_head().await
    }

    fn forward_request(&mut self, end: bool) -> OutBody {
        match self.client.take() {
            Some(body) if !end => {
                let limit = self.x.route().and_then(|r| r.max_request_body);
                OutBody::Forward(Forward::request(body, Rc::clone(&self.x), limit))
            }
            _ => OutBody::Empty,
        }
    }

    // ---- the other gear

    /// Runs until the client's side can begin.
    async fn run_to_head(&mut self) -> Begin {
        loop {
            self.take_outputs(None);
            if let Some(begin) = self.begin.take() {
                return begin;
            }
            let event = poll_fn(|cx| self.poll(cx)).await;
            self.feed(event);
        }
    }

    /// Whether something is left after the client's side has begun.
    fn has_work(&self) -> bool {
        self.response.is_some() || self.request.is_some() || self.client.is_some()
    }

    /// Runs until nothing is left.
    async fn run_to_end(mut self) {
        while self.has_work() && !(self.filtered().finished.get() && self.response.is_none()) {
            let event = poll_fn(|cx| {
                self.take_outputs(Some(cx));
                if !self.has_work() || (self.filtered().finished.get() && self.response.is_none()) {
                    return Poll::Ready(Event::Look);
                }
                self.poll(cx)
            })
            .await;
            self.feed(event);
        }
    }

    /// Waits for the next thing that the engine can use.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let x = Rc::clone(&self.x);
        let filtered = x.filtered.get().expect("a driver has a stream");
        filtered.register(cx);
        if let Some(response) = &self.response {
            if response.poll_closed(cx) {
                return Poll::Ready(Event::ClientGone);
            }
        }
        if let Some(call) = &mut self.call {
            if let Poll::Ready(answer) = call.as_mut().poll(cx) {
                self.call = None;
                return Poll::Ready(Event::Answer(answer));
            }
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
        if wants_request && !gated {
            if let Some(client) = &mut self.client {
                if let Poll::Ready(frame) = Pin::new(client).poll_frame(cx) {
                    return Poll::Ready(Event::ClientFrame(frame));
                }
            }
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
        if let Some((_, lease)) = self.upstream.take() {
            if let Some(lease) = lease.filter(|_| self.request_is_sent()) {
                lease.give_back();
            }
        }
        let trailers = trailers.map(Message::trailers);
        self.with(|stream, cx| stream.response_end(cx, trailers));
    }

    fn request_is_sent(&self) -> bool {
        self.request.is_none() && self.x.request_is_sent()
    }

    /// A reply of the host's own in the upstream's stead.
    fn reply(&mut self, reply: HostReply) {
        self.call = None;
        self.upstream = None;
        let status =
            StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let text = exchange::reply_text(status);
        self.x.set_details(reply.details);
        let kind = "text/plain; charset=utf-8";
        self.with(|stream, cx| {
            if !stream.host_reply(cx, reply.status, kind, text, reply.details) {
                stream.cut(cx, Dir::Response, Cut::Timeout);
            }
        });
    }

    fn take_answer(&mut self, answer: Result<Answer, HostReply>) {
        let Answer { response, lease } = match answer {
            Ok(answer) => answer,
            Err(reply) => return self.reply(reply),
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
                _ => return self.reply(HostReply::new(502, "host.unexpected_upgrade")),
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
        self.with(|stream, cx| {
            if switches {
                stream.upgraded();
            }
            stream.response_head(cx, head, length);
        });
    }

    /// The cluster that the request goes to; none for a route of the host's own.
    fn target(&self) -> Result<Option<usize>, HostReply> {
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
    fn route_again(&self, head: &Message) -> Result<(), HostReply> {
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
    fn upstream_request(
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

    fn take_request_part(&mut self, part: Part<Message>) {
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

    /// Takes from the engine what there is room for. Without context the client's side has not begun.
    fn take_outputs(&mut self, cx: Option<&Context<'_>>) {
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
                    self.begin = Some(Begin::Reset);
                }
                self.x.set_ended(Dir::Response, Ended::Reset);
                return;
            }
            let room = match (&self.request, cx) {
                (Some(request), Some(cx)) => request.poll_ready(cx),
                (Some(request), None) => request.is_empty(),
                (None, _) => true,
            };
            if room {
                if let Some(part) = self.with(|stream, cx| stream.request_part(cx)) {
                    self.take_request_part(part);
                    continue;
                }
            }
            let room = match (&self.response, cx) {
                (Some(response), Some(cx)) => response.poll_ready(cx),
                (Some(response), None) => response.is_empty(),
                (None, _) => true,
            };
            if room && self.begin.is_none() {
                if let Some(part) = self.with(|stream, cx| stream.response_part(cx)) {
                    self.take_response_part(part);
                    continue;
                }
            }
            return;
        }
    }

    fn take_response_part(&mut self, part: Part<Message>) {
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
        self.begin = Some(Begin::Response(response));
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
