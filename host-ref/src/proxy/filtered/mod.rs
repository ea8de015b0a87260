//! The way of a request through filters: drives the engine's stream between the two connections.
//!
//! There are two gears. As long as no filter wants bodies and nothing but the head of a request without body is held, the
//! exchange runs as without filters (`direct`): the heads go through the engine, and the bodies are forwarded as they
//! come, with no task and no channel. When that ends, a driver takes over what is left: it feeds frames to the engine
//! and sends on what comes out, at the pace of the slower side.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

use bytes::Bytes;
use http::Response;
use http::header::{self, HeaderMap};
use proxy_golang_abi::EndReason;

use super::access::FilterStep;
use super::body::OutBody;
use super::exchange::{Aborted, Ended, Exchange};
use super::fields::Message;
use crate::engine::{Chain, Cut, Cx, Dir, Signal, Stream, StreamLimits};

mod direct;
mod driver;
mod feed;
mod parts;
mod streams;
mod task;

pub(super) use direct::Next;
pub(super) use streams::{Streams, keep_deadlines};
pub(super) use task::Task;

/// Most bytes of a guest's text about its failure that are logged (PXG-SEC-006).
const MAX_FAILURE_TEXT: usize = 1024;

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

impl Filtered {
    /// Gives an exchange its stream.
    fn open<'x>(x: &'x Rc<Exchange>, chain: &Chain) -> &'x Self {
        x.filtered.get_or_init(|| {
            let key = x.worker.streams.insert(x);
            let log = x.site.runtime.access.as_ref();
            let limits = StreamLimits {
                hold_time_ns: 100_000_000,
                trace: log.is_some_and(|log| log.traces()),
                ..StreamLimits::default()
            };
            match x.worker.streams.take_spare() {
                Some(mut spare) => {
                    spare.renew(key, chain, limits);
                    spare
                }
                None => Box::new(Self {
                    stream: RefCell::new(Stream::new(chain.clone(), key, limits)),
                    chain: chain.clone(),
                    key,
                    cancel_upstream: Cell::new(false),
                    reset_client: Cell::new(false),
                    finished: Cell::new(false),
                    look: Cell::new(false),
                    route: RefCell::default(),
                    driver: RefCell::default(),
                    forwards: RefCell::default(),
                }),
            }
        })
    }

    fn renew(&mut self, key: u64, chain: &Chain, limits: StreamLimits) {
        let Self {
            stream,
            chain: old,
            key: old_key,
            cancel_upstream,
            reset_client,
            finished,
            look,
            route,
            driver,
            forwards,
        } = self;
        stream.get_mut().renew(chain, key, limits);
        old.clone_from(chain);
        *old_key = key;
        for flag in [cancel_upstream, reset_client, finished, look] {
            flag.set(false);
        }
        *route.get_mut() = None;
        *driver.get_mut() = None;
        *forwards.get_mut() = [None, None];
    }

    /// Whether nothing more goes upstream, or nothing more to the client.
    fn is_stopped(&self) -> bool {
        self.cancel_upstream.get() || self.reset_client.get()
    }

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
                Signal::GuestFailed(mut failure) => {
                    let most = (0..=MAX_FAILURE_TEXT).rev();
                    let cut = most.into_iter().find(|i| failure.text.is_char_boundary(*i));
                    if let Some(cut) = cut.filter(|cut| *cut < failure.text.len()) {
                        failure.text.truncate(cut);
                        failure.text.push_str("...");
                    }
                    tracing::warn!(
                        route = exchange.route().map_or("", |r| &r.name),
                        request = exchange.number,
                        ?failure,
                        "a filter failed on a request"
                    );
                }
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
        if self.is_stopped() {
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
        if self.is_stopped() {
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

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}
