//! One client exchange and its filters: the state machine of `spec/07-bodies.md`, for all places and both directions.
//!
//! * this file: what a driver feeds in; `output`: what it takes out; `types`: in which words;
//! * `flow`: what a stream keeps;
//! * `step`: the transitions D01 to D14 of one direction at one place;
//! * `call`: an event is built, the guest called;
//! * `judge` and `judge_ops`: its result is validated as a whole; `settle`: and then takes effect;
//! * `plain`: both at once, for what most results are;
//! * `glance`: no stream at all, for filters that only look at a request's head;
//! * `reply`: local replies, of guests and of the host;
//! * `mail`: completions, `apply` and `wake`;
//! * `in_place`: for drivers that keep messages where they are;
//! * `trace`: what each guest did, if somebody wants to know;
//! * `end`: failures, deadlines, and the end of a stream; `renew`: its memory for the next one.

mod call;
mod end;
mod flow;
mod glance;
mod in_place;
mod judge;
mod judge_ops;
mod mail;
mod output;
mod plain;
mod renew;
mod reply;
mod settle;
mod step;
mod trace;
mod types;

use std::sync::Arc;

use bytes::Bytes;
use proxy_golang_abi::{ConfigFlags, DirectionEnd, EndReason, Phase};
use smallvec::SmallVec;

use super::fields::Fields;
use super::guest::{Chain, Filter};
pub use end::{Failure, Reason};
use flow::{End, Flow, Place, Side, State};
pub use glance::Glance;
use reply::OpenReply;
pub use trace::Step;
use types::PartOf;
pub use types::{BodyLength, Cut, Cx, Dir, Part, Signal, StreamLimits};

/// One client exchange.
pub struct Stream<H: Fields> {
    chain: Chain,
    key: u64,
    limits: StreamLimits,
    places: Vec<Place>,
    flows: [Flow<H>; 2],
    /// For the driver, oldest first; rarely more than one.
    signals: SmallVec<[Signal; 2]>,
    metadata: Vec<Metadata>,
    metadata_changed: bool,
    reply: Option<Box<OpenReply<H>>>,
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

impl Asked {
    /// By the head as it came: a host may have to read it anew after an edit.
    fn of(head: &impl Fields) -> Self {
        let grpc = |v: &[u8]| v.starts_with(b"application/grpc").then(|| Box::from(v));
        let Some(fields) = head.ready() else {
            return Self {
                head: head.value(b":method") == Some(b"HEAD"),
                grpc: head.value(b"content-type").and_then(grpc),
            };
        };
        let mut asked = Self {
            head: false,
            grpc: None,
        };
        for field in fields {
            match field.name() {
                b":method" => asked.head = field.value() == b"HEAD",
                b"content-type" if asked.grpc.is_none() => asked.grpc = grpc(field.value()),
                _ => {}
            }
        }
        asked
    }
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
        let places: Vec<_> = Self::places(&chain).collect();
        let flows = Self::keeps(&chain).map(|keep| Flow::new(places.len(), keep));
        Self {
            chain,
            key,
            limits,
            places,
            flows,
            signals: SmallVec::new(),
            metadata: Vec::new(),
            metadata_changed: false,
            reply: None,
            asked: None,
            why: None,
            upstream_cancelled: false,
            details: String::new(),
            trace: Vec::new(),
            closed: false,
        }
    }

    fn places(chain: &Chain) -> impl Iterator<Item = Place> {
        chain.filters().iter().map(|f| Place {
            user: 0,
            handle: 0,
            mask: f.declared.subscribe,
            mode: f.declared.body_mode,
            failed: false,
            reached: false,
            replied: false,
            written: 0,
        })
    }

    /// Whether a direction's head and trailers are kept when they have left.
    fn keeps(chain: &Chain) -> [bool; 2] {
        let filters = chain.filters();
        let log = filters.iter().any(|f| f.subscribes(Phase::LOG));
        let peers = filters.iter().any(|f| f.is(ConfigFlags::WANT_PEER_FIELDS));
        [log || peers, log]
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
        let flow = &self.flows[dir as usize];
        if !flow.open || flow.head.is_some() || flow.finished || self.closed {
            return;
        }
        if dir == Dir::Request {
            self.asked = Some(Asked::of(&head));
        }
        self.take_head(dir, head, length);
        self.run(cx);
    }

    fn take_head(&mut self, dir: Dir, head: H, length: BodyLength) {
        let flow = &mut self.flows[dir as usize];
        flow.head = Some(head);
        flow.head_at = 0;
        flow.length = length;
        flow.how = DirectionEnd::PROXY;
        if length.ends() {
            flow.end = Some(End {
                at: 0,
                trailers: None,
            });
            flow.open = false;
        }
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
            trailers: trailers.filter(|t| !t.is_empty()).map(Box::new),
        });
        self.run(cx);
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
