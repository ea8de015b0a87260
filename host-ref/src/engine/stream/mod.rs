//! One client exchange and its filters: the state machine of `spec/07-bodies.md`, for all places and both directions.
//!
//! * this file: the types, what a driver feeds in and takes out;
//! * `step`: the transitions D01 to D14 of one direction at one place;
//! * `call`: an event is built, the guest called;
//! * `judge` and `judge_ops`: its result is validated as a whole; `settle`: and then takes effect;
//! * `plain`: both at once, for what most results are;
//! * `reply`: local replies, of guests and of the host;
//! * `mail`: completions, `apply` and `wake`;
//! * `trace`: what each guest did, if somebody wants to know;
//! * `end`: failures, deadlines, and the end of a stream.

mod call;
mod end;
mod judge;
mod judge_ops;
mod mail;
mod plain;
mod reply;
mod settle;
mod step;
mod trace;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use proxy_golang_abi::{
    BodyMode, ConfigFlags, DirectionEnd, EndReason, EventFlags, Phase, phase_bit,
};

use super::body::BodyBuf;
use super::fields::Fields;
use super::guest::{Attributes, Chain, Filter};
use super::worker::Worker;
pub use end::{Failure, Reason};
use reply::OpenReply;
pub use trace::Step;

/// A direction of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dir {
    /// From the client to the upstream.
    Request = 0,
    /// From the upstream to the client.
    Response = 1,
}

impl Dir {
    const BOTH: [Self; 2] = [Self::Request, Self::Response];

    const fn peer(self) -> Self {
        match self {
            Self::Request => Self::Response,
            Self::Response => Self::Request,
        }
    }

    const fn phase(self, part: PartOf) -> Phase {
        match (self, part) {
            (Self::Request, PartOf::Headers) => Phase::REQUEST_HEADERS,
            (Self::Request, PartOf::Body) => Phase::REQUEST_BODY,
            (Self::Request, PartOf::Trailers) => Phase::REQUEST_TRAILERS,
            (Self::Response, PartOf::Headers) => Phase::RESPONSE_HEADERS,
            (Self::Response, PartOf::Body) => Phase::RESPONSE_BODY,
            (Self::Response, PartOf::Trailers) => Phase::RESPONSE_TRAILERS,
        }
    }
}

/// What of a message an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PartOf {
    Headers,
    Body,
    Trailers,
}

/// How long a message's body is, as far as its head tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// There is none. For a response: there can't be one (HEAD, 204, 304, 101).
    None,
    /// So many bytes. `Exact(0)` is a message that ends with its head and could have had a body.
    Exact(u64),
    /// Until its end.
    Unknown,
}

/// A part of a message for the driver to send on.
#[derive(Debug)]
pub enum Part<H> {
    /// The head, with what the driver frames by. With `end` nothing follows.
    Head {
        /// Pseudo-headers and fields.
        head: H,
        /// The body's length after all guests.
        length: BodyLength,
        /// Nothing follows: no data, trailers or [`Part::End`].
        end: bool,
        /// The host or a guest made it.
        local: bool,
    },
    /// Body bytes.
    Data(Bytes),
    /// The trailers, which are also the end.
    Trailers(H),
    /// The end.
    End,
}

/// Something for the driver to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Signal {
    /// Send to this cluster, or (`None`) route again by the headers that come next.
    Route(Option<Bytes>),
    /// Nothing more of the request is sent, and what the upstream sends is discarded.
    CancelUpstream,
    /// Abort the client's side after what was already given out.
    ResetClient,
    /// Hand what was given out to the transport at once.
    Flush(Dir),
    /// A guest failed on this stream: for the log.
    GuestFailed(Box<Failure>),
    /// LOG and `on_stream_end` are done: drop the stream.
    Finished,
}

/// How a direction was cut from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Its sender died.
    Sender,
    /// Its receiver died.
    Receiver,
    /// A time limit of the host.
    Timeout,
}

/// What the engine needs from its surroundings during a call.
pub struct Cx<'a> {
    /// The thread that the stream lives on.
    pub worker: &'a mut Worker,
    /// The host's attributes of this stream.
    pub attrs: &'a dyn Attributes,
}

/// Limits of one stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// Bytes that wait for the driver before [`Stream::wants`] says no.
    pub buffer: u64,
    /// How long bytes may be kept from a guest that asked for MORE, in nanoseconds (the hold time of the spec).
    pub hold_time_ns: u64,
    /// Most operations in one batch.
    pub max_ops: usize,
    /// Most fields that a message may have after a batch.
    pub max_fields: usize,
    /// Status of the reply when a guest fails closed: 500 to 599.
    pub failure_status: u16,
    /// Whether [`Stream::trace`] is kept.
    pub trace: bool,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            buffer: 64 * 1024,
            hold_time_ns: 100_000_000,
            max_ops: 4096,
            max_fields: 256,
            failure_status: 500,
            trace: false,
        }
    }
}

/// A filter's place in one stream.
#[derive(Debug)]
struct Place {
    user: u64,
    /// For `apply` and `wake`; 0 before the first event.
    handle: u64,
    /// Phases still subscribed.
    mask: u64,
    mode: [BodyMode; 2],
    /// It failed, or was skipped: no more events.
    failed: bool,
    reached: bool,
    replied: bool,
    /// Bytes of BODY_WRITE that the table counts as queued: skipped, on their way, or waiting for the client.
    written: u64,
}

impl Place {
    fn wants(&self, phase: Phase) -> bool {
        self.mask & phase_bit(phase) != 0
    }
}

/// Where a direction stands at one place; names and transitions are those of the spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Wait,
    Pend(PartOf),
    Hold,
    Flow,
    /// Everything passes unseen: bypassed, or cut and passed by another's reply.
    Bypass,
    Done,
}

/// One direction at one place.
#[derive(Debug)]
struct Side {
    state: State,
    /// Received, neither passed nor dropped.
    view: BodyBuf,
    /// Offset of the view's first byte.
    offset: u64,
    /// OBSERVE: passed and not shown yet.
    observed: BodyBuf,
    /// PEND: the live token and its deadline, and what its event showed.
    token: u64,
    deadline: u64,
    shown: u64,
    shown_flags: EventFlags,
    shown_mode: BodyMode,
    /// Fields of the head and of the trailers when the event was built.
    shown_fields: [usize; 2],
    /// The HEADERS result has taken effect: from here on the body mode only goes down.
    decided: bool,
    /// An operation on headers, trailers or body of this direction was applied.
    changed: bool,
    body_end_shown: bool,
    resizes: bool,
    /// STREAM without RESIZES: bytes that may still leave before the head's length is reached.
    length_left: Option<u64>,
    /// HOLD in STREAM: the length of view that is worth an event, and what was kept.
    more_at: u64,
    kept: u64,
    shown_at: u64,
    /// Since when the guest withholds something.
    hold_since: Option<u64>,
    /// A completion was applied and no event has come since.
    resumed: bool,
}

impl Side {
    fn new() -> Self {
        Self {
            state: State::Wait,
            view: BodyBuf::default(),
            offset: 0,
            observed: BodyBuf::default(),
            token: 0,
            deadline: 0,
            shown: 0,
            shown_flags: EventFlags(0),
            shown_mode: BodyMode::UNSET,
            shown_fields: [0; 2],
            decided: false,
            changed: false,
            body_end_shown: false,
            resizes: false,
            length_left: None,
            more_at: 0,
            kept: 0,
            shown_at: 0,
            hold_since: None,
            resumed: false,
        }
    }
}

/// A direction of a stream: its message on the way through the places.
///
/// Head, bytes and end keep their order, so each is at one position: an index into `sides`, `sides.len()` when it is
/// ready for the driver, and beyond it when the driver has it.
#[derive(Debug)]
struct Flow<H> {
    sides: Vec<Side>,
    head: Option<H>,
    head_at: usize,
    length: BodyLength,
    end: Option<End<H>>,
    ready: BodyBuf,
    /// What the driver feeds in counts: until the end came, or the direction was cut or replaced.
    open: bool,
    /// The driver has the end, or it was cut.
    finished: bool,
    how: DirectionEnd,
    local: bool,
    upgraded: bool,
    /// Head and trailers as they left, for LOG and peers, where some filter wants them.
    left: Option<H>,
    left_trailers: Option<H>,
    keep: bool,
}

#[derive(Debug)]
struct End<H> {
    at: usize,
    trailers: Option<H>,
}

impl<H> Flow<H> {
    fn new(places: usize, keep: bool) -> Self {
        Self {
            sides: (0..places).map(|_| Side::new()).collect(),
            head: None,
            head_at: 0,
            length: BodyLength::Unknown,
            end: None,
            ready: BodyBuf::default(),
            open: true,
            finished: false,
            how: DirectionEnd::NEVER_BEGAN,
            local: false,
            upgraded: false,
            left: None,
            left_trailers: None,
            keep,
        }
    }

    fn head_is_at(&self, pos: usize) -> bool {
        self.head.is_some() && self.head_at == pos
    }

    fn end_is_at(&self, pos: usize) -> bool {
        self.end.as_ref().is_some_and(|end| end.at == pos)
    }

    fn has_trailers_at(&self, pos: usize) -> bool {
        self.end
            .as_ref()
            .is_some_and(|end| end.at == pos && end.trailers.is_some())
    }

    /// The body queue behind `pos`: the next place's view, or what is ready for the driver.
    fn pass_bytes(&mut self, pos: usize, n: u64) {
        let (before, after) = self.sides.split_at_mut(pos + 1);
        let from = &mut before[pos];
        from.offset += n.min(from.view.len());
        let to = match after.first_mut() {
            Some(side) => &mut side.view,
            None => &mut self.ready,
        };
        from.view.move_to(n, to);
    }

    fn push_behind(&mut self, pos: usize, bytes: Bytes) {
        match self.sides.get_mut(pos + 1) {
            Some(side) => side.view.push(bytes),
            None => self.ready.push(bytes),
        }
    }

    /// Where what arrives from outside goes first.
    fn push_in(&mut self, bytes: Bytes) {
        match self.sides.first_mut() {
            Some(side) => side.view.push(bytes),
            None => self.ready.push(bytes),
        }
    }
}

/// One client exchange.
pub struct Stream<H: Fields> {
    chain: Chain,
    key: u64,
    limits: StreamLimits,
    places: Vec<Place>,
    flows: [Flow<H>; 2],
    signals: VecDeque<Signal>,
    metadata: Vec<Metadata>,
    reply: Option<OpenReply<H>>,
    asked: Option<Asked>,
    why: Option<EndReason>,
    /// The upstream, or its stand-in, has been told to stop.
    upstream_cancelled: bool,
    /// Of the last local reply or failure; for the access log.
    details: String,
    trace: Vec<Step>,
    closed: bool,
}

/// What a reply needs to know of the request as the client sent it.
#[derive(Debug)]
struct Asked {
    /// Its method is HEAD.
    head: bool,
    /// Its content type, if it is gRPC's.
    grpc: Option<Box<[u8]>>,
}

#[derive(Debug)]
struct Metadata {
    namespace: Bytes,
    key: Bytes,
    value: Bytes,
}

/// One place and direction in the middle of something.
#[derive(Clone, Copy, Debug)]
struct At {
    dir: Dir,
    pos: usize,
    place: usize,
}

impl<H: Fields> Stream<H> {
    /// A stream through `chain`. `key` comes back in [`Mail::stream`](super::Mail::stream).
    #[must_use]
    pub fn new(chain: Chain, key: u64, limits: StreamLimits) -> Self {
        let filters = chain.filters();
        let places = filters.iter().map(|f| Place {
            user: 0,
            handle: 0,
            mask: f.declared.subscribe,
            mode: f.declared.body_mode,
            failed: false,
            reached: false,
            replied: false,
            written: 0,
        });
        let places: Vec<_> = places.collect();
        let log = filters.iter().any(|f| f.subscribes(Phase::LOG));
        let peers = filters.iter().any(|f| f.is(ConfigFlags::WANT_PEER_FIELDS));
        let flows = [
            Flow::new(places.len(), log || peers),
            Flow::new(places.len(), log),
        ];
        Self {
            chain,
            key,
            limits,
            places,
            flows,
            signals: VecDeque::new(),
            metadata: Vec::new(),
            reply: None,
            asked: None,
            why: None,
            upstream_cancelled: false,
            details: String::new(),
            trace: Vec::new(),
            closed: false,
        }
    }

    /// The request's head. `BodyLength::None` and `Exact(0)` are also its end.
    pub fn request_head(&mut self, cx: &mut Cx<'_>, head: H, length: BodyLength) {
        self.head(cx, Dir::Request, head, length);
    }

    /// Bytes of the request's body.
    pub fn request_data(&mut self, cx: &mut Cx<'_>, data: Bytes) {
        self.data(cx, Dir::Request, data);
    }

    /// The end of the request.
    pub fn request_end(&mut self, cx: &mut Cx<'_>, trailers: Option<H>) {
        self.end(cx, Dir::Request, trailers);
    }

    /// The head of the final response or of 101; never of another 1xx. `BodyLength::None` and `Exact(0)` are also
    /// its end.
    pub fn response_head(&mut self, cx: &mut Cx<'_>, head: H, length: BodyLength) {
        self.head(cx, Dir::Response, head, length);
    }

    /// Bytes of the response's body.
    pub fn response_data(&mut self, cx: &mut Cx<'_>, data: Bytes) {
        self.data(cx, Dir::Response, data);
    }

    /// The end of the response.
    pub fn response_end(&mut self, cx: &mut Cx<'_>, trailers: Option<H>) {
        self.end(cx, Dir::Response, trailers);
    }

    /// The upstream accepted an upgrade: to be called before [`Stream::response_head`] with the 101. Once that head
    /// has been given out, what goes through the tunnel is the driver's; the stream ends when the driver has reported
    /// the end of both directions by [`Stream::body_forwarded`] or [`Stream::cut`].
    pub fn upgraded(&mut self) {
        if self.closed {
            return;
        }
        self.flows.iter_mut().for_each(|flow| flow.upgraded = true);
        let request = &mut self.flows[Dir::Request as usize];
        request.end = None;
        request.open = false;
        request.finished = false;
        request.how = DirectionEnd::PROXY;
    }

    fn head(&mut self, cx: &mut Cx<'_>, dir: Dir, head: H, length: BodyLength) {
        let flow = &mut self.flows[dir as usize];
        if !flow.open || flow.head.is_some() || flow.finished || self.closed {
            return;
        }
        flow.head = Some(head);
        flow.head_at = 0;
        flow.length = length;
        flow.how = DirectionEnd::PROXY;
        if matches!(length, BodyLength::None | BodyLength::Exact(0)) {
            flow.end = Some(End {
                at: 0,
                trailers: None,
            });
            flow.open = false;
        }
        self.run(cx);
    }

    fn data(&mut self, cx: &mut Cx<'_>, dir: Dir, data: Bytes) {
        let flow = &mut self.flows[dir as usize];
        if !flow.open || self.closed {
            return;
        }
        flow.push_in(data);
        self.run(cx);
    }

    fn end(&mut self, cx: &mut Cx<'_>, dir: Dir, trailers: Option<H>) {
        let flow = &mut self.flows[dir as usize];
        if !flow.open || self.closed {
            return;
        }
        flow.open = false;
        flow.end = Some(End {
            at: 0,
            trailers: trailers.filter(|t| !t.is_empty()),
        });
        self.run(cx);
    }

    /// Something that the driver has to do, in the order in which it came up. To be asked before the parts.
    pub fn signal(&mut self) -> Option<Signal> {
        self.signals.pop_front()
    }

    /// The next part for the upstream. To be asked only when there is room for it: what is not taken holds back the
    /// client.
    pub fn request_part(&mut self, cx: &mut Cx<'_>) -> Option<Part<H>> {
        self.part(cx, Dir::Request)
    }

    /// The next part for the client, as [`Stream::request_part`].
    pub fn response_part(&mut self, cx: &mut Cx<'_>) -> Option<Part<H>> {
        self.part(cx, Dir::Response)
    }

    fn part(&mut self, cx: &mut Cx<'_>, dir: Dir) -> Option<Part<H>> {
        let ready = self.places.len();
        let flow = &self.flows[dir as usize];
        if flow.finished {
            return None;
        }
        let head_leaves = flow.head_is_at(ready);
        if head_leaves && dir == Dir::Request {
            self.remember_request();
        }
        let flow = &mut self.flows[dir as usize];
        if head_leaves {
            let ends =
                flow.end_is_at(ready) && flow.ready.is_empty() && !flow.has_trailers_at(ready);
            let length = match flow.length {
                BodyLength::None => BodyLength::None,
                _ if ends => BodyLength::Exact(0),
                // All of it is here: its length is known, whatever the guests made of it.
                _ if flow.end_is_at(ready) && !flow.has_trailers_at(ready) => {
                    BodyLength::Exact(flow.ready.len())
                }
                length => length,
            };
            if length == BodyLength::None {
                flow.ready.clear();
            }
            flow.head_at = ready + 1;
            let head = flow.head.take()?;
            if flow.keep {
                flow.left = Some(head.clone());
            }
            let local = flow.local;
            let end = ends || (length == BodyLength::None && flow.end_is_at(ready));
            if flow.upgraded {
                flow.end = None; // the message's; the tunnel goes on
            } else if end {
                self.finish(cx, dir);
            }
            return Some(Part::Head {
                head,
                length,
                end,
                local,
            });
        }
        if flow.head_at <= ready {
            return None;
        }
        if let Some(bytes) = flow.ready.pop() {
            if dir == Dir::Response {
                self.response_left(cx);
            }
            return Some(Part::Data(bytes));
        }
        if !flow.end_is_at(ready) {
            return None;
        }
        let trailers = flow.end.as_mut().and_then(|end| end.trailers.take());
        if flow.keep {
            flow.left_trailers.clone_from(&trailers);
        }
        self.finish(cx, dir);
        Some(trailers.map_or(Part::End, Part::Trailers))
    }

    /// The driver has all of a direction.
    fn finish(&mut self, cx: &mut Cx<'_>, dir: Dir) {
        let flow = &mut self.flows[dir as usize];
        flow.finished = true;
        flow.how = DirectionEnd::COMPLETE;
        self.end_if_both_ended(cx);
    }

    /// Whether the driver should read on in this direction: what is buffered at every place and for the driver is
    /// below its limit.
    #[must_use]
    pub fn wants(&self, dir: Dir) -> bool {
        let flow = &self.flows[dir as usize];
        if !flow.open || self.closed {
            return false;
        }
        let room = |(pos, side): (usize, &Side)| {
            let place = self.place_of(dir, pos);
            let limit = match side.state {
                State::Flow | State::Bypass | State::Done => self.limits.buffer,
                _ => self.chain.filters()[place].declared.max_body[dir as usize],
            };
            side.view.len() <= limit
        };
        flow.ready.len() < self.limits.buffer && flow.sides.iter().enumerate().all(room)
    }

    /// Whether the driver may send the rest of this direction's body and trailers on by itself: the head has been
    /// given out and no guest wants any of them. It then reports the end by [`Stream::body_forwarded`] or
    /// [`Stream::cut`].
    #[must_use]
    pub fn bodies_skipped(&self, dir: Dir) -> bool {
        let flow = &self.flows[dir as usize];
        let skipped = |(pos, side): (usize, &Side)| {
            let at = self.at(dir, pos);
            match side.state {
                State::Done => flow.upgraded,
                State::Bypass => side.length_left.is_none(),
                State::Flow => {
                    self.mode(at) == BodyMode::SKIP
                        && !self.places[at.place].wants(dir.phase(PartOf::Trailers))
                        && side.length_left.is_none()
                }
                _ => false,
            }
        };
        !flow.local
            && !flow.finished
            && flow.head_at > flow.sides.len()
            && flow.ready.is_empty()
            && flow.sides.iter().enumerate().all(skipped)
    }

    /// Whether a guest's verdict on the request's head is pending: a driver tells no client to send its body before
    /// it is there (PXG-BODY-011).
    #[must_use]
    pub fn request_headers_pending(&self) -> bool {
        let sides = &self.flows[Dir::Request as usize].sides;
        sides
            .iter()
            .any(|side| matches!(side.state, State::Pend(PartOf::Headers)))
    }

    /// The driver has sent the rest of this direction by itself.
    pub fn body_forwarded(&mut self, cx: &mut Cx<'_>, dir: Dir) {
        if !self.flows[dir as usize].finished && !self.closed {
            self.flows[dir as usize].open = false;
            self.finish(cx, dir);
        }
    }

    /// When [`Stream::timer`] has to be called, by the worker's clock.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.next_deadline()
    }

    /// Whether everything is over.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.closed
    }

    /// Whether the response's head has been given out: then there is no other any more.
    #[must_use]
    pub fn response_began(&self) -> bool {
        let flow = &self.flows[Dir::Response as usize];
        flow.head_at > flow.sides.len()
    }

    /// Why the last local reply or failure came about, for the access log; never for clients.
    #[must_use]
    pub fn details(&self) -> &str {
        &self.details
    }

    /// What each guest decided so far, in order, if the limits say that it is kept.
    #[must_use]
    pub fn trace(&self) -> &[Step] {
        &self.trace
    }

    fn place_of(&self, dir: Dir, pos: usize) -> usize {
        match dir {
            Dir::Request => pos,
            Dir::Response => self.places.len() - 1 - pos,
        }
    }

    fn pos_of(&self, dir: Dir, place: usize) -> usize {
        self.place_of(dir, place)
    }

    fn at(&self, dir: Dir, pos: usize) -> At {
        At {
            dir,
            pos,
            place: self.place_of(dir, pos),
        }
    }

    fn side(&mut self, at: At) -> &mut Side {
        &mut self.flows[at.dir as usize].sides[at.pos]
    }

    fn filter(chain: &Chain, at: At) -> &Arc<Filter> {
        &chain.filters()[at.place]
    }
}
