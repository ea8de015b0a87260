//! The life of a stream whose only filter looks at the request's head and at nothing else, without a [`Stream`].
//!
//! Such a filter has one event. Nearly always it answers at once, with CONTINUE and edits of the head or none, and what
//! the state machine would then do is known: the head goes on, bodies and the response pass unseen, and at the end the
//! handle dies and `on_stream_end` comes if the guest has set its slot. That is done here. All else is the stream's:
//!
//! * the event's result says anything more, or is a mistake (also one of the cap or of tokens);
//! * the guest acts on the stream later, by `apply`: there is no other way, for it subscribes to nothing but the head.
//!
//! The stream then takes over at the very place where it would be, by the same functions: [`Stream::take_over`] puts the
//! head, the handle and the token where `call` would have, and gives the result to `conclude`, as `call` does. A handover
//! after the head has gone is the same with the result that the guest gave, less its edits, which have been made; that
//! there were some matters only to a filter that looks at bodies. So nothing of what a result does is written twice but
//! the effect of a plain one, which is four lines. A test runs every kind of result both ways.

use proxy_golang_abi::{BodyMode, EventFlags, Phase, phase_bit};

use super::super::fields::{Fields, Views};
use super::super::guest::{Chain, EventView};
use super::super::table::State as Slot;
use super::call::{Attrs, Taken, project};
use super::settle::Context;
use super::{Asked, At, BodyLength, Cx, Dir, PartOf, Stream, StreamLimits};
use crate::ffi::StrView;

const AT: At = At {
    dir: Dir::Request,
    pos: 0,
    place: 0,
};

/// What is kept of a stream that is none yet.
#[derive(Debug)]
pub struct Glance {
    /// 0: there is none, or it is over, or a stream has taken over.
    handle: u64,
    user: u64,
    length: BodyLength,
    asked: Asked,
}

impl Default for Glance {
    fn default() -> Self {
        Self {
            handle: 0,
            user: 0,
            length: BodyLength::Unknown,
            asked: Asked {
                head: false,
                grpc: None,
            },
        }
    }
}

impl Glance {
    /// Whether streams through `chain` can begin this way.
    #[must_use]
    pub fn suits(chain: &Chain) -> bool {
        match chain.filters() {
            [only] => only.declared.subscribe == phase_bit(Phase::REQUEST_HEADERS),
            _ => false,
        }
    }

    /// Whether a stream lives here: its head has gone on, and nobody else has it.
    #[must_use]
    #[inline]
    pub fn is_live(&self) -> bool {
        self.handle != 0
    }

    /// The request's length, as long as it lives here.
    #[must_use]
    pub fn length(&self) -> BodyLength {
        self.length
    }

    /// The request's head, at the beginning of a stream through a chain that [suits](Glance::suits). As
    /// [`Stream::renew`] and [`Stream::request_head`], on `stream`, which is over; but when the head is the answer, it
    /// goes on to the upstream, its `length` as it was, all of the response passes unseen, and `stream` has not been
    /// touched.
    #[allow(clippy::too_many_arguments)] // what a stream begins with, and its head
    pub fn request_head<H: Fields>(
        &mut self,
        cx: &mut Cx<'_>,
        stream: &mut Stream<H>,
        chain: &Chain,
        key: u64,
        limits: &StreamLimits,
        mut head: H,
        length: BodyLength,
    ) -> Option<H> {
        debug_assert!(Self::suits(chain) && !self.is_live());
        let filter = &chain.filters()[0];
        let phase = Phase::REQUEST_HEADERS;
        let may_pend = filter.may_pend(phase);
        let library = filter.guest.library();
        let handle = if limits.trace || may_pend && !cx.worker.has_room(filter) {
            None
        } else {
            cx.worker.issue(library, key, Slot::Handle, Phase(0))
        };
        let Some(handle) = handle else {
            return refuse(cx, stream, chain, key, limits, head, length);
        };
        let token = if may_pend {
            // None: the stream fails for the lack of one, below.
            cx.worker.issue(library, key, Slot::Issued, phase)
        } else {
            Some(0)
        };
        let Some(token) = token else {
            cx.worker.retire(handle);
            return refuse(cx, stream, chain, key, limits, head, length);
        };
        let asked = Asked::of(&head);
        let mut context = context_of(length);
        let mut room = std::mem::take(&mut cx.worker.room);
        let mut taken = Taken::new();
        {
            let mut built = Views::new();
            let fields = match head.ready() {
                Some(ready) if filter.declared.projection.is_empty() => ready,
                _ => {
                    head.view(&mut built);
                    context.shown_fields[0] = built.len();
                    project(filter, phase, &mut built);
                    &built
                }
            };
            context.shown_fields[0] = context.shown_fields[0].max(fields.len());
            let mut values = Attrs::default();
            let mut attrs = smallvec::SmallVec::<[StrView<'_>; 8]>::new();
            if !filter.declared.attrs.is_empty() {
                values.collect(cx, filter, phase, &[]);
                values.view(&mut attrs);
            }
            let event = EventView {
                phase,
                flags: context.flags,
                worker: cx.worker.id(),
                user: 0,
                stream: handle,
                token,
                arg: 0,
                fields,
                trailers: &[],
                peer_fields: &[],
                peer_trailers: &[],
                chunks: &[],
                body_offset: 0,
                attrs: &attrs,
            };
            taken.call(limits, cx, filter, &event, &context, &mut room);
            drop(attrs);
            values.give_back(cx);
        }
        let passed = if let Some(user) = taken.plain {
            if token != 0 && cx.worker.retire(token) == Slot::Done {
                filter.stats.unused_completions.inc();
            }
            if !taken.edits.is_empty() {
                head.apply(&taken.edits);
            }
            *self = Self {
                handle,
                user,
                length,
                asked,
            };
            Some(head)
        } else {
            stream.renew(chain, key, *limits);
            stream.take_over(
                cx,
                chain,
                head,
                length,
                asked,
                (handle, token),
                context,
                &mut taken,
            );
            None
        };
        drop(taken);
        cx.worker.room = room;
        passed
    }

    /// Makes `stream`, which is over, what it would be now, for what only a stream can do. `head` is that of the request
    /// again. It gives out the request's head once more; what the driver has seen of the response passes by
    /// [`Stream::skip_response`]. Nothing, if none lives here.
    pub fn hand_over<H: Fields>(
        &mut self,
        cx: &mut Cx<'_>,
        stream: &mut Stream<H>,
        chain: &Chain,
        key: u64,
        limits: &StreamLimits,
        head: H,
    ) {
        if !self.is_live() {
            return;
        }
        let Self {
            handle,
            user,
            length,
            asked,
        } = std::mem::take(self);
        let mut taken = Taken::new();
        taken.plain = Some(user);
        let context = context_of(length);
        stream.renew(chain, key, *limits);
        stream.take_over(
            cx,
            chain,
            head,
            length,
            asked,
            (handle, 0),
            context,
            &mut taken,
        );
    }

    /// The stream is over, however it ended: nobody but LOG would be told how. Nothing, if none lives here.
    pub fn close(&mut self, cx: &mut Cx<'_>, chain: &Chain) {
        if !self.is_live() {
            return;
        }
        let handle = std::mem::take(&mut self.handle);
        cx.worker.retire(handle);
        if self.user != 0 {
            let worker = cx.worker.id();
            let guest = &chain.filters()[0].guest;
            guest.stream_end(self.user, handle, worker);
        }
    }
}

/// Has the stream find out by itself why nothing can begin here.
#[cold]
fn refuse<H: Fields>(
    cx: &mut Cx<'_>,
    stream: &mut Stream<H>,
    chain: &Chain,
    key: u64,
    limits: &StreamLimits,
    head: H,
    length: BodyLength,
) -> Option<H> {
    stream.renew(chain, key, *limits);
    stream.request_head(cx, head, length);
    None
}

/// What is known of the event beforehand: it is the first one, and nothing of the response has come.
fn context_of(length: BodyLength) -> Context {
    let mut flags = EventFlags::CAN_REPLY;
    if length.ends() {
        flags.0 |= EventFlags::END_STREAM.0;
    }
    Context {
        place: AT.place,
        at: Some(AT),
        phase: Phase::REQUEST_HEADERS,
        flags,
        mode: BodyMode::UNSET,
        shown: 0,
        shown_fields: [0; 2],
        late: false,
        ns: 0,
        now: 0,
    }
}

impl<H: Fields> Stream<H> {
    /// A renewed stream as it is when its only filter's event of the request's head has returned.
    #[allow(clippy::too_many_arguments)] // what an event has left behind
    #[inline(never)] // out of the way of those that need none
    fn take_over(
        &mut self,
        cx: &mut Cx<'_>,
        chain: &Chain,
        head: H,
        length: BodyLength,
        asked: Asked,
        (handle, token): (u64, u64),
        mut context: Context,
        taken: &mut Taken<'_>,
    ) {
        self.asked = Some(asked);
        self.take_head(Dir::Request, head, length);
        let place = &mut self.places[AT.place];
        place.reached = true;
        place.handle = handle;
        context.mode = place.mode[AT.dir as usize];
        let side = self.side(AT);
        side.token = token;
        side.shown_flags = context.flags;
        side.shown_mode = context.mode;
        debug_assert_eq!(context.part(), Some(PartOf::Headers));
        self.conclude(cx, chain, context, AT, taken);
        self.run(cx);
    }
}
