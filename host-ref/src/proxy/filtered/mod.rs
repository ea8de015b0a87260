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

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, request};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use proxy_golang_abi::EndReason;
use tokio::time::{Instant, Sleep};

use super::access::FilterStep;
use super::body::{Forward, OutBody, Sender, Timer};
use super::exchange::{self, Aborted, Ended, Exchange, Ready};
use super::fields::{Message, Start};
use super::head::Hop;
use super::site::RouteChain;
use super::upstream::{Answer, HostReply, Lease};
use crate::engine::{BodyLength, Chain, Cut, Cx, Dir, Mail, Part, Signal, Stream, StreamLimits};

mod feed;
mod parts;

/// The engine's part of an exchange.
pub(super) struct Filtered {
    stream: RefCell<Stream<Message>>,
    chain: Chain,
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
        let stream = self.stream.borrow();
        if !stream.details().is_empty() {
            exchange.set_details(stream.details().to_owned());
        }
    }

    /// What the filters did, if the access log wants that.
    pub(super) fn steps(&self) -> Vec<FilterStep> {
        let stream = self.stream.borrow();
        let steps = stream.trace().iter();
        steps
            .filter_map(|step| Some(FilterStep::new(self.chain.filters().get(step.place)?, step)))
            .collect()
    }
}

/// How the client's side begins.
type Begin = Result<Response<OutBody>, Aborted>;

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
        trace: x
            .site
            .runtime
            .access
            .as_ref()
            .is_some_and(|log| log.traces()),
        ..StreamLimits::default()
    };
    let created = x.filtered.set(Box::new(Filtered {
        stream: RefCell::new(Stream::new(chain.0.clone(), key, limits)),
        chain: chain.0.clone(),
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
        Ok(response) => {
            if driver.has_work() {
                tokio::task::spawn_local(driver.run_to_end());
            } else if let Some(filtered) = x.filtered.get() {
                // The end of a forwarded body would wake the connection's task for nothing.
                filtered.driver.take();
            }
            Ok(response)
        }
        Err(aborted) => Err(aborted),
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
    total: Timer,
    /// Whether the engine may have parts that there was no room for, per direction.
    blocked: [bool; 2],
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
            idle: Timer::new(idle, None),
            total: Timer::new(None, until),
            blocked: [false; 2],
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
        let request = match self
            .route_again(&head)
            .and_then(|()| self.target())
            .and_then(|cluster| {
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
        // None: a filter replied or reset; the engine has the rest.
        if let Some((head, length, switches)) = answer.and_then(|a| self.open_answer(a)) {
            let part = self.with(|stream, cx| {
                if switches {
                    stream.upgraded();
                }
                stream.response_head(cx, head, length);
                stream.response_part(cx)
            });
            if let Some(part) = part {
                self.take_response_part(part);
            }
            if let (Some(begin), false) = (self.begin.take(), filtered.reset_client.get()) {
                return begin;
            }
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
}
