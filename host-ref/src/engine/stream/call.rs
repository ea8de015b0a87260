//! An event is built from what is here, the guest is called, its result taken.

use std::sync::Arc;

use proxy_golang_abi::{Action, BodyMode, ConfigFlags, EventFlags, Phase, phase_bit};
use smallvec::SmallVec;

use super::super::fields::{Fields, Views};
use super::super::guest::{AttrSource, Chain, EventView, Filter, PlainOp, Take};
use super::super::outcome::{Fault, Outcome};
use super::super::table::State as Slot;
use super::end::{Failure, Reason};
use super::settle::{Context, Edits};
use super::{At, Cx, Dir, Flow, Metadata, PartOf, State, Stream, StreamLimits};
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
        let Some(token) = self.issue(cx, chain, at.place, library, may_pend.then_some(phase))
        else {
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
        if at.dir == Dir::Response && (flow.local || flow.from_host) {
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

        let mut context = Context {
            place: at.place,
            at: Some(at),
            phase,
            flags: EventFlags(flags),
            mode,
            shown: side.shown,
            shown_fields: [0; 2],
            late: false,
            ns: 0,
            now: 0,
        };
        let user = self.places[at.place].user;
        let mut room = std::mem::take(&mut cx.worker.room);
        let mut taken = Taken::new();
        {
            let flow = &self.flows[at.dir as usize];
            let side = &flow.sides[at.pos];
            let mut built = Views::new();
            let mut fields = &[][..];
            let mut trailers = Views::new();
            let mut peer_fields = Views::new();
            let mut peer_trailers = Views::new();
            if part == PartOf::Headers || flags & EventFlags::HEADERS_HELD.0 != 0 {
                if let Some(head) = &flow.head {
                    fields = match head.ready() {
                        Some(ready) if filter.declared.projection.is_empty() => ready,
                        _ => {
                            head.view(&mut built);
                            context.shown_fields[0] = built.len();
                            project(filter, phase, &mut built);
                            &built
                        }
                    };
                    context.shown_fields[0] = context.shown_fields[0].max(fields.len());
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
                context.shown_fields[1] = trailers.len();
            }
            let mut chunks = SmallVec::<[StrView<'_>; 16]>::new();
            let mut body_offset = 0;
            if part == PartOf::Body {
                let shown = if observe { &side.observed } else { &side.view };
                chunks.extend(shown.chunks().map(StrView::new));
                body_offset = side.offset - if observe { side.observed.len() } else { 0 };
            }
            let mut values = Attrs::default();
            let mut attrs = SmallVec::<[StrView<'_>; 8]>::new();
            if !filter.declared.attrs.is_empty() {
                values.collect(cx, filter, phase, &self.metadata);
                values.view(&mut attrs);
            }
            let event = EventView {
                phase,
                flags: EventFlags(flags),
                worker: cx.worker.id(),
                user,
                stream: self.places[at.place].handle,
                token,
                arg: 0,
                fields,
                trailers: &trailers,
                peer_fields: &peer_fields,
                peer_trailers: &peer_trailers,
                chunks: &chunks,
                body_offset,
                attrs: &attrs,
            };
            taken.call(&self.limits, cx, filter, &event, &context, &mut room);
            drop(attrs);
            values.give_back(cx);
        }
        self.conclude(cx, chain, context, at, &mut taken);
        drop(taken);
        cx.worker.room = room;
    }

    /// An event of a direction has returned: its result takes effect.
    #[inline]
    pub(super) fn conclude(
        &mut self,
        cx: &mut Cx<'_>,
        chain: &Chain,
        mut context: Context,
        at: At,
        taken: &mut Taken<'_>,
    ) {
        (context.ns, context.now) = (taken.ns, taken.now);
        let side = &mut self.flows[at.dir as usize].sides[at.pos];
        side.observed.clear();
        side.shown_fields = context.shown_fields;
        if let Some(user) = taken.plain {
            self.places[at.place].user = user;
            self.settle_plain(cx, chain, context, at, &taken.edits);
        } else if let Some((user, pend_ns)) = taken.pending {
            self.places[at.place].user = user;
            self.note(&context, Action::PENDING, 0);
            self.pend(cx, chain, context, at, true, pend_ns);
        } else {
            self.take_effect(cx, chain, context, taken);
        }
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
            .issue(cx, chain, place, filter.guest.library(), None)
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
        let mut taken = Taken::new();
        let mut context = Context {
            place,
            at: None,
            phase,
            flags,
            mode: BodyMode::UNSET,
            shown: 0,
            shown_fields: [0; 2],
            late: false,
            ns: 0,
            now: 0,
        };
        {
            let [mut fields, mut trailers, mut peer_fields, mut peer_trailers] =
                std::array::from_fn(|_| Views::new());
            if phase == Phase::LOG {
                let response = &self.flows[Dir::Response as usize];
                if response.local || response.from_host {
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
            let mut attrs = SmallVec::<[StrView<'_>; 8]>::new();
            if !filter.declared.attrs.is_empty() {
                values.collect(cx, filter, phase, &self.metadata);
                values.view(&mut attrs);
            }
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
            context.flags = flags;
            taken.call(&self.limits, cx, filter, &event, &context, &mut room);
            drop(attrs);
            values.give_back(cx);
        }
        (context.ns, context.now) = (taken.ns, taken.now);
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
        match (&mut taken.outcome, taken.fault.take()) {
            (Some(outcome), None) => {
                self.places[context.place].user = outcome.user;
                self.settle(cx, chain, context, outcome);
            }
            (_, Some(fault)) => {
                if let Some(user) = fault.user {
                    self.places[context.place].user = user;
                }
                self.refuse(cx, chain, context, &fault.into());
            }
            (None, None) => {
                let user = self.places[context.place].user;
                self.settle(cx, chain, context, &mut Outcome::of(Action::UNSET, user));
            }
        }
    }

    /// The handle of this place, made at its first event, and a token if the phase may pend.
    fn issue(
        &mut self,
        cx: &mut Cx<'_>,
        chain: &Chain,
        place: usize,
        library: u32,
        token: Option<Phase>,
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
                Phase(0),
            )?;
        }
        match token {
            Some(phase) => cx.worker.issue(library, self.key, Slot::Issued, phase),
            None => Some(0),
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
    if let Some(head) = flow.head.as_ref().or(flow.left.as_deref()) {
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
pub(super) struct Taken<'r> {
    /// The slot that a plain result set; `edits` are what else it says.
    pub(super) plain: Option<u64>,
    pub(super) edits: Edits<'r>,
    /// The slot and the time that PENDING asked for.
    pending: Option<(u64, u64)>,
    /// Any other result.
    outcome: Option<Outcome<'r>>,
    fault: Option<Fault>,
    ns: u64,
    /// By the clock, at the guest's return; 0 if nobody looked.
    now: u64,
}

impl<'r> Taken<'r> {
    #[inline]
    pub(super) fn new() -> Self {
        Self {
            plain: None,
            edits: Edits::new(),
            pending: None,
            outcome: None,
            fault: None,
            ns: 0,
            now: 0,
        }
    }

    #[inline]
    pub(super) fn call(
        &mut self,
        limits: &StreamLimits,
        cx: &mut Cx<'_>,
        filter: &Filter,
        event: &EventView<'_>,
        context: &Context,
        room: &'r mut Vec<u8>,
    ) {
        let count = filter.stats.count(cx.worker.id(), event.phase);
        count.call();
        let timed = cx.worker.times_call();
        let before = timed.map_or(0, |_| cx.worker.now());
        filter.guest.event_to(
            event,
            &mut Taking {
                limits,
                context,
                taken: self,
                room: Some(room),
            },
        );
        if let Some(calls) = timed {
            self.now = cx.worker.now();
            self.ns = self.now.saturating_sub(before);
            count.time(self.ns, calls);
        }
    }
}

/// Takes one result.
struct Taking<'t, 'r> {
    limits: &'t StreamLimits,
    context: &'t Context,
    taken: &'t mut Taken<'r>,
    /// Until it is used.
    room: Option<&'r mut Vec<u8>>,
}

impl Take for Taking<'_, '_> {
    fn plain(&mut self, user: u64, ops: &[PlainOp<'_>]) -> bool {
        let Some(room) = self.room.take() else {
            return true;
        };
        let edits = &mut self.taken.edits;
        match self.limits.take_plain_ops(self.context, ops, edits, room) {
            Ok(()) => self.taken.plain = Some(user),
            Err(room) => self.room = Some(room),
        }
        self.room.is_none()
    }

    fn pending(&mut self, user: u64, pend_ns: u64) -> bool {
        let here = self.context.at.is_some();
        if here && self.room.take().is_some() {
            self.taken.pending = Some((user, pend_ns));
        }
        here
    }

    fn outcome(&mut self, outcome: Result<Outcome<'_>, Fault>) {
        let Some(room) = self.room.take() else { return };
        let mut outcome = match outcome {
            Ok(outcome) => outcome,
            Err(fault) => return self.taken.fault = Some(fault),
        };
        let edits = &mut self.taken.edits;
        match self
            .limits
            .take_plain_outcome(self.context, &outcome, edits, room)
        {
            Ok(()) => self.taken.plain = Some(outcome.user),
            Err(room) => {
                let to = Outcome::of(Action::UNSET, outcome.user);
                outcome.copy_to(self.taken.outcome.insert(to), room);
            }
        }
    }
}

/// The attributes of one event, in the order of the configuration.
#[derive(Default)]
pub(super) struct Attrs<'m> {
    bytes: Vec<u8>,
    found: SmallVec<[Found<'m>; 8]>,
}

enum Found<'m> {
    Absent,
    Written(usize, usize),
    Kept(&'m [u8]),
}

impl<'m> Attrs<'m> {
    pub(super) fn collect(
        &mut self,
        cx: &mut Cx<'_>,
        filter: &Filter,
        phase: Phase,
        metadata: &'m [Metadata],
    ) {
        // In a phase that none asks for there is none, not a list of absent ones (PXG-ATT-001).
        let asked = filter.declared.attrs.iter().fold(0, |m, a| m | a.phases);
        if asked & phase_bit(phase) == 0 {
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
                AttrSource::Metadata { namespace, key } => {
                    let set = metadata
                        .iter()
                        .find(|m| m.namespace == namespace[..] && m.key == key[..]);
                    let from = self.bytes.len();
                    match set {
                        Some(m) => Found::Kept(&m.value),
                        None if cx.attrs.write_metadata(namespace, key, &mut self.bytes) => {
                            Found::Written(from, self.bytes.len())
                        }
                        None => Found::Absent,
                    }
                }
            };
            self.found.push(found);
        }
    }

    pub(super) fn view<'v>(&'v self, out: &mut SmallVec<[StrView<'v>; 8]>) {
        for found in &self.found {
            out.push(match *found {
                Found::Absent => StrView::ABSENT,
                Found::Written(from, to) => StrView::new(&self.bytes[from..to]),
                Found::Kept(bytes) => StrView::new(bytes),
            });
        }
    }

    #[inline]
    pub(super) fn give_back(self, cx: &mut Cx<'_>) {
        if self.bytes.capacity() > 0 {
            cx.worker.attrs = self.bytes;
        }
    }
}
