//! Bodies on their way from one connection to the other.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::exchange::{Ended, Exchange};
use super::upstream::Lease;
use crate::engine::Dir;

/// Why a body ended early. The text is for logs.
pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body that the host sends.
#[derive(Debug)]
pub(super) enum OutBody {
    /// None.
    Empty,
    /// Bytes of the host's own.
    Full(Bytes),
    /// What the other side sends, as it comes.
    Forward(Forward),
    /// What a driver hands over.
    Channel(Receiver),
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match this {
            Self::Empty => Poll::Ready(None),
            Self::Full(_) => match std::mem::replace(this, Self::Empty) {
                Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                _ => Poll::Ready(None),
            },
            Self::Forward(forward) => forward.poll(cx),
            Self::Channel(receiver) => receiver.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Forward(forward) => forward.ended || forward.incoming.is_end_stream(),
            Self::Channel(receiver) => receiver.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Forward(forward) => forward.incoming.size_hint(),
            Self::Channel(receiver) => receiver.hint(),
        }
    }
}

/// A body that goes through as it comes: no copy, no task; the reader's pace is the sender's.
#[derive(Debug)]
pub(super) struct Forward {
    incoming: Incoming,
    exchange: Rc<Exchange>,
    dir: Dir,
    /// The upstream's connection, for responses.
    lease: Option<Lease>,
    /// Most bytes, for requests.
    limit: Option<u64>,
    bytes: u64,
    timer: Timer,
    ended: bool,
}

/// The time limits of a response's body: no byte for so long, and the end of all.
#[derive(Debug, Default)]
pub(super) struct Timer {
    idle: Option<Duration>,
    last: Option<Instant>,
    until: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    pub(super) fn new(idle: Option<Duration>, until: Option<Instant>) -> Self {
        Self {
            idle,
            until,
            ..Self::default()
        }
    }

    /// Something came.
    pub(super) fn progress(&mut self) {
        self.last = None;
    }

    /// Called when there is nothing to do but to wait: whether it has been too long.
    pub(super) fn expired(&mut self, cx: &mut Context<'_>) -> bool {
        let deadline = |last: Instant| match (self.idle, self.until) {
            (Some(idle), Some(until)) => Some((last + idle).min(until)),
            (Some(idle), None) => Some(last + idle),
            (None, until) => until,
        };
        if self.idle.is_none() && self.until.is_none() {
            return false;
        }
        let last = *self.last.get_or_insert_with(Instant::now);
        let Some(deadline) = deadline(last) else {
            return false;
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        // A sleep that was set earlier may end too soon: it is set again only then.
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return true;
            }
            sleep.as_mut().reset(deadline);
        }
        false
    }
}

impl Forward {
    pub(super) fn request(incoming: Incoming, exchange: Rc<Exchange>, limit: Option<u64>) -> Self {
        Self {
            incoming,
            exchange,
            dir: Dir::Request,
            lease: None,
            limit,
            bytes: 0,
            timer: Timer::default(),
            ended: false,
        }
    }

    pub(super) fn response(
        incoming: Incoming,
        exchange: Rc<Exchange>,
        lease: Lease,
        idle: Option<Duration>,
        until: Option<Instant>,
    ) -> Self {
        Self {
            incoming,
            exchange,
            dir: Dir::Response,
            lease: Some(lease),
            limit: None,
            bytes: 0,
            timer: Timer::new(idle, until),
            ended: false,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.exchange.is_reset(self.dir, cx) {
            self.end(Ended::Reset);
            return Poll::Ready(Some(Err("reset by a filter".into())));
        }
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    self.bytes += data.len() as u64;
                    self.exchange.count_body(self.dir, self.bytes);
                    if self.limit.is_some_and(|limit| self.bytes > limit) {
                        self.end(Ended::TooLarge);
                        return Poll::Ready(Some(Err("the body is over the route's limit".into())));
                    }
                }
                self.timer.progress();
                // The reader may not ask again once it knows that this was all.
                if self.incoming.is_end_stream() || frame.is_trailers() {
                    self.end(Ended::Complete);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.end(Ended::Complete);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                self.end(Ended::SenderDied);
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Pending if self.timer.expired(cx) => {
                self.end(Ended::Timeout);
                Poll::Ready(Some(Err("no data in time".into())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn end(&mut self, how: Ended) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Some(lease) = self.lease.take() {
            // A response that ends before its request leaves the connection in use.
            if how == Ended::Complete && self.exchange.request_is_sent() {
                lease.give_back();
            }
        }
        self.exchange.body_ended(self.dir, how);
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let how = if self.incoming.is_end_stream() {
            Ended::Complete
        } else {
            Ended::ReceiverDied
        };
        self.end(how);
    }
}

/// A body that a driver hands over frame by frame; one may wait.
#[derive(Debug)]
pub(super) struct Sender(Rc<Channel>);

/// The end of a [`Sender`] that the connection reads.
#[derive(Debug)]
pub(super) struct Receiver {
    channel: Rc<Channel>,
    length: Option<u64>,
}

#[derive(Debug, Default)]
struct Channel(RefCell<ChannelState>);

#[derive(Debug, Default)]
struct ChannelState {
    frames: VecDeque<Result<Frame<Bytes>, BodyError>>,
    ended: bool,
    receiver_gone: bool,
    sender: Option<Waker>,
    receiver: Option<Waker>,
}

/// A body for `length` bytes (if they are known), and where to put them.
pub(super) fn channel(length: Option<u64>) -> (Sender, Receiver) {
    let channel = Rc::new(Channel::default());
    let sender = Sender(Rc::clone(&channel));
    (sender, Receiver { channel, length })
}

impl Sender {
    /// Whether there is room; if not, the task is woken when there is, or when nobody reads any more.
    pub(super) fn poll_ready(&self, cx: &Context<'_>) -> bool {
        let mut state = self.0.0.borrow_mut();
        if state.frames.is_empty() {
            return true;
        }
        set_waker(&mut state.sender, cx);
        false
    }

    /// Whether nobody will read any more; the task is woken when that happens.
    pub(super) fn poll_closed(&self, cx: &Context<'_>) -> bool {
        let mut state = self.0.0.borrow_mut();
        set_waker(&mut state.sender, cx);
        state.receiver_gone
    }

    /// Whether everything that was sent has been taken.
    pub(super) fn is_empty(&self) -> bool {
        self.0.0.borrow().frames.is_empty()
    }

    pub(super) fn send(&self, frame: Frame<Bytes>) {
        self.push(Some(Ok(frame)), false);
    }

    pub(super) fn end(&self) {
        self.push(None, true);
    }

    /// Cuts the body: the reader's connection is reset.
    pub(super) fn abort(&self, why: BodyError) {
        self.push(Some(Err(why)), true);
    }

    fn push(&self, frame: Option<Result<Frame<Bytes>, BodyError>>, ended: bool) {
        let waker = {
            let mut state = self.0.0.borrow_mut();
            state.frames.extend(frame);
            state.ended |= ended;
            state.receiver.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let ended = self.0.0.borrow().ended;
        if !ended {
            self.abort("the body was cut".into());
        }
    }
}

impl Receiver {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let (frame, waker) = {
            let mut state = self.channel.0.borrow_mut();
            match state.frames.pop_front() {
                Some(frame) => (Poll::Ready(Some(frame)), state.sender.take()),
                None if state.ended => (Poll::Ready(None), None),
                None => {
                    set_waker(&mut state.receiver, cx);
                    (Poll::Pending, state.sender.take())
                }
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        if let (Some(left), Poll::Ready(Some(Ok(frame)))) = (&mut self.length, &frame) {
            *left = left.saturating_sub(frame.data_ref().map_or(0, |d| d.len() as u64));
        }
        frame
    }

    fn is_end(&self) -> bool {
        let state = self.channel.0.borrow();
        state.ended && state.frames.is_empty()
    }

    fn hint(&self) -> SizeHint {
        self.length
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let waker = {
            let mut state = self.channel.0.borrow_mut();
            // With a known length hyper drops a body at its last byte, before it has seen the end: nobody has gone away.
            state.receiver_gone = self.length != Some(0);
            state.frames.clear();
            state.sender.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

fn set_waker(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        _ => *slot = Some(cx.waker().clone()),
    }
}
