//! An event is built from what is here, the guest is called, its result taken.

use std::sync::Arc;

use proxy_golang_abi::{Action, BodyMode, ConfigFlags, EventFlags, Phase, phase_bit};
use smallvec::SmallVec;

use super::super::fields::{Fields, Views};
use super::super::guest::{AttrSource, Chain, EventView, Filter};
use super::super::outcome::{Fault, Outcome};
use super::super::table::State as Slot;
use super::end::{Failure, Reason};
use super::settle::Context;
use super::{At, Cx, Dir, Flow, Metadata, PartOf, State, Stream};
use crate::ffi::StrView;

/// Most pieces of a view (PXG-BODY-008).
const MAX_CHUNKS: usize = 64;

impl<H: Fields> Stream<H> {
    /// Delivers one event of a direction.
    pub(super) fn call(
        &mut self,
        cx: &mut Cx<'_>,
        chain: &Chain,
        at: At,
        part: PartOf,
        flags: EventFlags,
    ) {
        let filter = Self::filter(chain, at);
        let phase = at.dir.phase(part);
        let may_pend = filter.may_pend(phase);
        if may_pend && !cx.worker.has_room(filter) {
            filter.stats.over_pending_cap.inc();
            return self.fail(
                cx,
                chain,
                at.place,
                Some(at),
                &Failure::new(Reason::Cap, phase, "too many streams pend"),
            );
        }
        let library = filter.guest.library();
        let Some(token) = self.issue(cx, chain, at.place, library, may_pend) else {
            return self.fail(
                cx,
                chain,
                at.place,
                Some(at),
                &Failure::new(Reason::Limit, phase, "no token is free"),
            );
        };

        let mut flags = flags.0;
        if self.can_reply(at.place) {
            flags |= EventFlags::CAN_REPLY.0;
        }
        let flow = &mut self.flows[at.dir as usize];
        if at.dir == Dir::Response && flow.local {
            flags |= EventFlags::LOCAL_ORIGIN.0;
        }
        if flow.upgraded {
            flags |= EventFlags::UPGRADED.0;
        }
        let side = &mut flow.sides[at.pos];
        if std::mem::take(&mut side.resumed) {
            flags |= EventFlags::RESUMED.0;
        }
        let mode = self.places[at.place].mode[at.dir as usize];
        let observe = part == PartOf::Body && mode == BodyMode::OBSERVE;
        side.view.coalesce(MAX_CHUNKS);
        side.observed.coalesce(MAX_CHUNKS);
        side.shown = if observe { 0 } else { side.view.len() };
        side.shown_mode = mode;
        side.token = token;
        if flags & EventFlags::BODY_END.0 != 0 {
            side.body_end_shown = true;
        }
        side.shown_flags = EventFlags(flags);

        let user = self.places[at.place].user;
        let mut room = std::mem::take(&mut cx.worker.room);
        let mut taken = Taken::new(user);
        let mut shown_fields = [0; 2];
        {
            let flow = &self.flows[at.dir as usize];
            let side = &flow.sides[at.pos];
            let mut fields = Views::new();
            let mut trailers = Views::new();
            let mut peer_fields = Views::new();
            let mut peer_trailers = Views::new();
            if part == PartOf::Headers || flags & EventFlags::HEADERS_HELD.0 != 0 {
                if let Some(head) = &flow.head {
                    head.view(&mut fields);
                    shown_fields[0] = fields.len();
                    project(filter, phase, &mut fields);
                }
                if at.dir == Dir::Response && filter.is(ConfigFlags::WANT_PEER_FIELDS) {
                    view_left(
                        &self.flows[Dir::Request as usize],
                        &mut peer_fields,
                        &mut peer_trailers,
                    );
                }
            }
            if (part == PartOf::Trailers || flags & EventFlags::WHOLE_BODY.0 != 0)
                && let Some(list) = flow.end.as_ref().and_then(|end| end.trailers.as_ref())
            {
                list.view(&mut trailers);
                shown_fields[1] = trailers.len();
            }
            let mut chunks = SmallVec::<[StrView<'_>; 16]>::new();
            let mut body_offset = 0;
            if part == PartOf::Body {
                let shown = if observe { &side.observed } else { &side.view };
                chunks.extend(shown.chunks().map(StrView::new));
                body_offset = side.offset - if observe { side.observed.len() } else { 0 };
            }
            let mut values = Attrs::default();
            values.collect(cx, filter, phase, &self.metadata);
            let mut attrs = SmallVec::<[StrView<'_>; 8]>::new();
            values.view(&mut attrs);
            let event = EventView {
                phase,
                flags: EventFlags(flags),
                worker: cx.worker.id(),
                user,
                stream: self.places[at.place].handle,
                token,
                arg: 0,
                fields: &fields,
                trailers: &trailers,
                peer_fields: &peer_fields,
                peer_trailers: &peer_trailers,
                chunks: &chunks,
                body_offset,
                attrs: &attrs,
            };
            taken.call(cx, filter, &event, &mut room);
            drop(attrs);
            values.give_back(cx);
        }
        let side = &mut self.flows[at.dir as usize].sides[at.pos];
        side.observed.clear();
        side.shown_fields = shown_fields;
        let shown = side.shown;
        let context = Context {
            place: at.place,
            at: Some(at),
            phase,
            flags: EventFlags(flags),
            mode,
            shown,
            late: false,
            ns: taken.ns,
        };
        self.take_effect(cx, chain, context, &mut taken);
        drop(taken);
        cx.worker.room = room;
    }

    /// Delivers WAKE or LOG, which have no direction.
    pub(super) fn call_plain(
        &mut self,
        cx: &mut Cx<'_>,
        chain: &Chain,
        place: usize,
        phase: Phase,
        arg: u64,
        mut flags: EventFlags,
    ) {
        let filter = &chain.filters()[place];
        if self
            .issue(cx, chain, place, filter.guest.library(), false)
            .is_none()
        {
            return;
        }
        if phase == Phase::WAKE && self.can_reply(place) {
            flags.0 |= EventFlags::CAN_REPLY.0;
        }
        if self.flows[Dir::Response as usize].upgraded {
            flags.0 |= EventFlags::UPGRADED.0;
        }
        let user = self.places[place].user;
        let mut room = std::mem::take(&mut cx.worker.room);
        let mut taken = Taken::new(user);
        {
            let [mut fields, mut trailers, mut peer_fields, mut peer_trailers] =
                std::array::from_fn(|_| Views::new());
            if phase == Phase::LOG {
                if self.flows[Dir::Response as usize].local {
                    flags.0 |= EventFlags::LOCAL_ORIGIN.0;
                }
                view_left(
                    &self.flows[Dir::Response as usize],
                    &mut fields,
                    &mut trailers,
                );
                view_left(
                    &self.flows[Dir::Request as usize],
                    &mut peer_fields,
                    &mut peer_trailers,
                );
            }
            let mut values = Attrs::default();
            values.collect(cx, filter, phase, &self.metadata);
            let mut attrs = SmallVec::<[StrView<'_>; 8]>::new();
            values.view(&mut attrs);
            let event = EventView {
                phase,
                flags,
                worker: cx.worker.id(),
                user,
                stream: self.places[place].handle,
                token: 0,
                arg,
                fields: &fields,
                trailers: &trailers,
                peer_fields: &peer_fields,
                peer_trailers: &peer_trailers,
                chunks: &[],
                body_offset: 0,
                attrs: &attrs,
            };
            taken.call(cx, filter, &event, &mut room);
            drop(attrs);
            values.give_back(cx);
        }
        let context = Context {
            place,
            at: None,
            phase,
            flags,
            mode: BodyMode::UNSET,
            shown: 0,
            late: false,
            ns: taken.ns,
        };
        self.take_effect(cx, chain, context, &mut taken);
        drop(taken);
        cx.worker.room = room;
    }

    fn take_effect(
        &mut self,
        cx: &mut Cx<'_>,
        chain: &Chain,
        context: Context,
        taken: &mut Taken<'_>,
    ) {
        match taken.fault.take() {
            None => {
                self.places[context.place].user = taken.outcome.user;
                self.settle(cx, chain, context, &mut taken.outcome);
            }
            Some(fault) => self.refuse(cx, chain, context, &fault.into()),
        }
    }

    /// The handle of this place, made at its first event, and a token if the phase may pend.
    fn issue(
        &mut self,
        cx: &mut Cx<'_>,
        chain: &Chain,
        place: usize,
        library: u32,
        token: bool,
    ) -> Option<u64> {
        if self.places[place].handle == 0 {
            let wakes = chain.filters()[place].subscribes(Phase::WAKE);
            self.places[place].handle = cx.worker.issue(
                library,
                self.key,
                if wakes {
                    Slot::WakeHandle
                } else {
                    Slot::Handle
                },
            )?;
        }
        if token {
            cx.worker.issue(library, self.key, Slot::Issued)
        } else {
            Some(0)
        }
    }

    /// Whether a reply of this place can still be made: no response headers have passed it (spec 5.3).
    pub(super) fn can_reply(&self, place: usize) -> bool {
        let flow = &self.flows[Dir::Response as usize];
        let pos = self.pos_of(Dir::Response, place);
        !self.closed && !flow.finished && !self.places[place].replied && flow.head_at <= pos
    }

    /// A token's side has been left: PEND is over, however it ended.
    pub(super) fn unpend(&mut self, cx: &mut Cx<'_>, filter: &Arc<Filter>, at: At) {
        let side = self.side(at);
        if matches!(side.state, State::Pend(_)) {
            side.token = 0;
            cx.worker.uncount_pending(filter);
        }
    }
}

/// The message of a flow as it left, or as far as it came.
fn view_left<'a, H: Fields>(flow: &'a Flow<H>, fields: &mut Views<'a>, trailers: &mut Views<'a>) {
    if let Some(head) = flow.head.as_ref().or(flow.left.as_ref()) {
        head.view(fields);
    }
    let list = flow
        .end
        .as_ref()
        .and_then(|end| end.trailers.as_ref())
        .or(flow.left_trailers.as_ref());
    if let Some(list) = list {
        list.view(trailers);
    }
}

/// Leaves out the fields that the configuration does not need. Indices then count in what is left, and so only a
/// view that has every field is edited by index.
pub(super) fn project(filter: &Filter, phase: Phase, fields: &mut Views<'_>) {
    let wanted = &filter.declared.projection;
    let bit = phase_bit(phase);
    if wanted.iter().any(|(_, phases)| phases & bit != 0) {
        fields.retain(|f| {
            wanted
                .iter()
                .any(|(name, phases)| phases & bit != 0 && name == f.name())
        });
    }
}

/// A guest's result, copied out of the call: the views that it may point into are gone when it takes effect
/// (PXG-MEM-003).
struct Taken<'r> {
    outcome: Outcome<'r>,
    fault: Option<Fault>,
    ns: u64,
}

impl<'r> Taken<'r> {
    #[inline]
    fn new(user: u64) -> Self {
        Self {
            outcome: Outcome::of(Action::UNSET, user),
            fault: None,
            ns: 0,
        }
    }

    fn call(
        &mut self,
        cx: &mut Cx<'_>,
        filter: &Filter,
        event: &EventView<'_>,
        room: &'r mut Vec<u8>,
    ) {
        let stats = filter.stats.phase(event.phase);
        stats.calls.inc();
        let before = if cx.worker.is_timing() {
            cx.worker.now()
        } else {
            0
        };
        let (to, fault, mut room) = (&mut self.outcome, &mut self.fault, Some(room));
        filter
            .guest
            .event(event, &mut |mut result| match &mut result {
                Ok(outcome) => {
                    if let Some(room) = room.take() {
                        outcome.copy_to(to, room);
                    }
                }
                Err(found) => *fault = Some(found.clone()),
            });
        if cx.worker.is_timing() {
            self.ns = cx.worker.now().saturating_sub(before);
            stats.record_time(self.ns);
        }
    }
}

/// The attributes of one event, in the order of the configuration.
#[derive(Default)]
struct Attrs<'m> {
    bytes: Vec<u8>,
    found: SmallVec<[Found<'m>; 8]>,
}

enum Found<'m> {
    Absent,
    Written(usize, usize),
    Kept(&'m [u8]),
}

impl<'m> Attrs<'m> {
    fn collect(
        &mut self,
        cx: &mut Cx<'_>,
        filter: &Filter,
        phase: Phase,
        metadata: &'m [Metadata],
    ) {
        if filter.declared.attrs.is_empty() {
            return;
        }
        self.bytes = std::mem::take(&mut cx.worker.attrs);
        self.bytes.clear();
        for want in &filter.declared.attrs {
            let found = match &want.source {
                _ if want.phases & phase_bit(phase) == 0 => Found::Absent,
                AttrSource::Unknown => Found::Absent,
                AttrSource::Host(attribute) => {
                    let from = self.bytes.len();
                    if cx.attrs.write(*attribute, &mut self.bytes) {
                        Found::Written(from, self.bytes.len())
                    } else {
                        Found::Absent
                    }
                }
                AttrSource::Metadata { namespace, key } => metadata
                    .iter()
                    .find(|m| m.namespace == namespace[..] && m.key == key[..])
                    .map_or(Found::Absent, |m| Found::Kept(&m.value)),
            };
            self.found.push(found);
        }
    }

    fn view<'v>(&'v self, out: &mut SmallVec<[StrView<'v>; 8]>) {
        for found in &self.found {
            out.push(match *found {
                Found::Absent => StrView::ABSENT,
                Found::Written(from, to) => StrView::new(&self.bytes[from..to]),
                Found::Kept(bytes) => StrView::new(bytes),
            });
        }
    }

    fn give_back(self, cx: &mut Cx<'_>) {
        if self.bytes.capacity() > 0 {
            cx.worker.attrs = self.bytes;
        }
    }
}
