//! Local replies: of guests, of the host, whole and streamed (spec chapter 9).

use bytes::Bytes;
use proxy_golang_abi::feature::Feature;
use proxy_golang_abi::{ConfigFlags, DirectionEnd, EndReason, EventFlags, Phase, ReplyFlags};
use smallvec::SmallVec;

use super::super::fields::Fields;
use super::super::guest::Chain;
use super::super::outcome::Reply;
use super::end::{Failure, Reason};
use super::{BodyLength, Cx, Dir, End, Signal, State, Stream};

/// A reply whose body comes by BODY_WRITE.
#[derive(Debug)]
pub(super) struct OpenReply<H> {
    pub(super) place: usize,
    /// The END has not come.
    pub(super) open: bool,
    /// To be sent after the END.
    trailers: Option<Box<H>>,
    /// When the last write came, or when the client had taken all of them.
    idle_since: u64,
}

/// A reply as it goes on its way.
struct Made<'a> {
    status: u16,
    fields: SmallVec<[(&'a [u8], &'a [u8]); 8]>,
    body: SmallVec<[Bytes; 2]>,
    trailers: SmallVec<[(&'a [u8], &'a [u8]); 2]>,
    open: bool,
}

impl<'a> Made<'a> {
    fn plain(status: u16) -> Self {
        Self {
            status,
            fields: SmallVec::new(),
            body: SmallVec::new(),
            trailers: SmallVec::new(),
            open: false,
        }
    }
}

impl<H: Fields> Stream<H> {
    /// The action REPLY.
    pub(super) fn guest_reply(
        &mut self,
        cx: &mut Cx<'_>,
        chain: &Chain,
        place: usize,
        reply: Reply<'_>,
    ) {
        let filter = &chain.filters()[place];
        if !self.can_reply(place) {
            // ACT-005: not the guest's fault.
            filter.stats.late_replies.inc();
            return self.reset(cx, chain);
        }
        self.why.get_or_insert(EndReason::REPLIED);
        self.details = format!(
            "{}: {}",
            filter.name,
            String::from_utf8_lossy(reply.details)
        );
        self.places[place].replied = true;
        let grpc_status = reply.grpc_status.to_string();
        let content_type = self.asked.as_ref().and_then(|asked| asked.grpc.clone());
        let mut made = Made::plain(u16::try_from(reply.status).unwrap_or(500));
        made.fields.extend(reply.fields.iter().copied());
        if let Some(content_type) = content_type
            .as_deref()
            .filter(|_| reply.flags.0 & ReplyFlags::GRPC.0 != 0)
        {
            made.status = 200;
            made.fields
                .retain(|(name, _)| *name != b"content-type" && *name != b"grpc-status");
            made.fields.push((b"content-type", content_type));
            made.fields.push((b"grpc-status", grpc_status.as_bytes()));
        } else {
            made.open = reply.flags.0 & ReplyFlags::OPEN.0 != 0;
            made.body = reply
                .body
                .into_iter()
                .map(super::super::outcome::Payload::into_bytes)
                .collect();
            if filter.has(Feature::TRAILERS_OUT_RESPONSE) {
                made.trailers.extend(reply.trailers.iter().copied());
            } else if !reply.trailers.is_empty() {
                filter.stats.skipped_ops.inc();
            }
        }
        let flush = made.open || reply.flags.0 & ReplyFlags::FLUSH.0 != 0;
        self.start_reply(cx, chain, Some(place), made);
        if flush {
            self.signals.push(Signal::Flush(Dir::Response));
        }
    }

    /// The reply of a failed guest's place.
    pub(super) fn failure_reply(&mut self, cx: &mut Cx<'_>, chain: &Chain, place: usize) {
        let made = Made::plain(self.limits.failure_status);
        self.start_reply(cx, chain, Some(place), made);
    }

    /// The host's own answer in the upstream's stead: no route, no upstream, its time-out. Guests that the request
    /// reached see it, flagged LOCAL_ORIGIN. `false` if a response's head has been given out: then the direction can
    /// only be cut.
    pub fn host_reply(
        &mut self,
        cx: &mut Cx<'_>,
        status: u16,
        content_type: &str,
        body: Bytes,
        details: &str,
    ) -> bool {
        if self.closed || self.flows[1].finished || self.response_began() {
            return false;
        }
        let chain = self.chain.clone();
        self.why.get_or_insert(EndReason::REPLIED);
        details.clone_into(&mut self.details);
        let mut made = Made::plain(status);
        made.fields.push((b"content-type", content_type.as_bytes()));
        made.body.push(body);
        self.start_reply(cx, &chain, None, made);
        self.run(cx);
        true
    }

    /// Everything on the upstream's side of `from` is cut, and the reply starts there.
    fn start_reply(&mut self, cx: &mut Cx<'_>, chain: &Chain, from: Option<usize>, made: Made<'_>) {
        let n = self.places.len();
        let is_head = self.asked.as_ref().is_some_and(|asked| asked.head);
        self.flows[Dir::Request as usize].answered();
        self.cut_sides(cx, chain, Dir::Request);
        let last = from.map(|place| self.pos_of(Dir::Response, place));
        for place in 0..n {
            let pos = self.pos_of(Dir::Response, place);
            let upstream_side = last.is_some_and(|last| pos <= last);
            self.cancel_side(cx, chain, Dir::Response, place);
            let filter = &chain.filters()[place];
            let seat = &self.places[place];
            let side = &mut self.flows[Dir::Response as usize].sides[pos];
            let orphan = filter.is(ConfigFlags::ORPHAN) && Some(place) != from;
            let entitled = if upstream_side {
                orphan
            } else {
                seat.reached || orphan
            };
            let sees = side.state == State::Wait
                && entitled
                && !seat.failed
                && filter.has(Feature::REPLY_REFILTER);
            if !sees {
                side.state = State::Bypass;
            }
            side.view.clear();
            side.hold_since = None;
            side.length_left = None;
        }
        let size: u64 = made.body.iter().map(|b| b.len() as u64).sum();
        let no_body = is_head || matches!(made.status, 204 | 304);
        let (status, length) = (made.status.to_string(), size.to_string());
        let would_have = is_head && !made.open && !matches!(made.status, 204 | 304);
        let fields = std::iter::once((&b":status"[..], status.as_bytes()));
        let fields =
            fields.chain(would_have.then_some((&b"content-length"[..], length.as_bytes())));
        let flow = &mut self.flows[Dir::Response as usize];
        flow.head = Some(H::from_fields(fields.chain(made.fields.iter().copied())));
        flow.head_at = 0;
        flow.ready.clear();
        flow.local = true;
        flow.open = false;
        flow.how = DirectionEnd::PROXY;
        let trailers = (!made.trailers.is_empty())
            .then(|| Box::new(H::from_fields(made.trailers.iter().copied())));
        flow.length = match (no_body, made.open || trailers.is_some()) {
            (true, _) => BodyLength::None,
            (false, true) => BodyLength::Unknown,
            (false, false) => BodyLength::Exact(size),
        };
        if !no_body {
            made.body.into_iter().for_each(|bytes| flow.push_in(bytes));
        }
        if made.open && !no_body {
            flow.end = None;
            self.reply = Some(Box::new(OpenReply {
                place: from.unwrap_or(0),
                open: true,
                trailers,
                idle_since: cx.worker.now(),
            }));
        } else {
            flow.end = Some(End {
                at: 0,
                trailers: trailers.filter(|_| !no_body),
            });
            self.reply = None;
        }
        self.flows.iter_mut().for_each(|flow| flow.upgraded = false);
        self.cancel_upstream();
    }

    /// D16: nothing more of this direction is delivered or passes.
    pub(super) fn cut_sides(&mut self, cx: &mut Cx<'_>, chain: &Chain, dir: Dir) {
        let flow = &mut self.flows[dir as usize];
        flow.open = false;
        flow.finished = true;
        flow.ready.clear();
        for place in 0..self.places.len() {
            self.cancel_side(cx, chain, dir, place);
            let side = self.side(self.at(dir, self.pos_of(dir, place)));
            side.state = State::Done;
            side.view.clear();
            side.hold_since = None;
        }
    }

    /// BODY_WRITE: to the open reply of this place, or behind a forwarded message.
    pub(super) fn body_write(&mut self, cx: &mut Cx<'_>, place: usize, bytes: Bytes, end: bool) {
        let Some(reply) = self.reply.as_mut().filter(|r| r.place == place && r.open) else {
            let at = self.at(Dir::Response, self.pos_of(Dir::Response, place));
            return self.inject(at, bytes);
        };
        reply.idle_since = cx.worker.now();
        reply.open = !end;
        let flow = &mut self.flows[Dir::Response as usize];
        flow.push_in(bytes);
        if end {
            let trailers = reply.trailers.take();
            flow.end = Some(End { at: 0, trailers });
        }
    }

    /// Whether BODY_WRITE may add to the forwarded response behind this place.
    pub(super) fn can_inject(&self, place: usize) -> bool {
        let pos = self.pos_of(Dir::Response, place);
        let flow = &self.flows[Dir::Response as usize];
        let ended = flow.end.as_ref().is_some_and(|end| end.at > pos);
        !flow.finished
            && !flow.local
            && flow.head_at > pos
            && !ended
            && flow.sides[pos].length_left.is_none()
            && flow.length == BodyLength::Unknown
    }

    /// BODY_WRITE in WAKE counts like that of `apply`, which the table has counted already.
    pub(super) fn count_write(&mut self, cx: &mut Cx<'_>, place: usize, n: u64) {
        self.places[place].written += n;
        cx.worker
            .hub
            .table
            .count_write(self.places[place].handle, n);
    }

    /// Bytes of the response behind the writes of `place`, theirs included.
    fn in_flight(&self, place: usize) -> u64 {
        let flow = &self.flows[Dir::Response as usize];
        let from = if self.reply.as_ref().is_some_and(|r| r.place == place) {
            0
        } else {
            self.pos_of(Dir::Response, place) + 1
        };
        let views = flow.sides[from..].iter().map(|side| side.view.len());
        flow.ready.len() + views.sum::<u64>()
    }

    /// The driver took bytes of the response.
    pub(super) fn response_left(&mut self, cx: &mut Cx<'_>) {
        if self.places.iter().any(|p| p.written > 0) {
            self.run(cx);
        }
        let now = cx.worker.now();
        if let Some(place) = self.reply.as_ref().map(|r| r.place)
            && self.in_flight(place) == 0
            && let Some(reply) = &mut self.reply
        {
            reply.idle_since = now;
        }
    }

    /// Takes off the books what has left or was dropped on the way; whether a guest was called for it.
    pub(super) fn release_written(&mut self, cx: &mut Cx<'_>, chain: &Chain) -> bool {
        let mut called = false;
        for place in 0..self.places.len() {
            let written = self.places[place].written;
            if written == 0 || self.closed {
                continue;
            }
            let waiting = written.min(self.in_flight(place));
            let handle = self.places[place].handle;
            self.places[place].written = waiting;
            let watermark = cx.worker.hub.limits.reply_watermark;
            let released = written - waiting;
            if released > 0
                && cx.worker.hub.table.written(handle, released, watermark)
                && self.places[place].wants(Phase::WAKE)
                && !self.places[place].failed
            {
                called = true;
                self.call_plain(cx, chain, place, Phase::WAKE, 0, EventFlags::WRITABLE);
            }
        }
        called
    }

    /// When an open reply that gets no writes is given up.
    pub(super) fn reply_deadline(&self) -> Option<u64> {
        let reply = self.reply.as_ref().filter(|r| r.open)?;
        if self.in_flight(reply.place) > 0 {
            return None; // the client could not take more
        }
        let limit = self.chain.filters()[reply.place].policy.hold_limit;
        Some(
            reply
                .idle_since
                .saturating_add(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX)),
        )
    }

    pub(super) fn abandon_reply(&mut self, cx: &mut Cx<'_>, chain: &Chain) {
        let Some(place) = self.reply.as_ref().map(|r| r.place) else {
            return;
        };
        chain.filters()[place].stats.deadlines.inc();
        let failure = Failure::new(
            Reason::Deadline,
            Phase(0),
            "a streamed reply got no bytes and no end",
        );
        self.fail(cx, chain, place, None, &failure);
    }
}
