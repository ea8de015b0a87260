//! What a stream keeps: its places, and the two messages on their way through them.

use bytes::Bytes;
use proxy_golang_abi::{BodyMode, DirectionEnd, EventFlags, Phase, phase_bit};

use super::super::body::BodyBuf;
use super::{BodyLength, PartOf};

/// A filter's place in one stream.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) user: u64,
    /// For `apply` and `wake`; 0 before the first event.
    pub(super) handle: u64,
    /// Phases still subscribed.
    pub(super) mask: u64,
    pub(super) mode: [BodyMode; 2],
    /// It failed, or was skipped: no more events.
    pub(super) failed: bool,
    pub(super) reached: bool,
    pub(super) replied: bool,
    /// Bytes of BODY_WRITE that the table counts as queued: skipped, on their way, or waiting for the client.
    pub(super) written: u64,
}

impl Place {
    pub(super) fn wants(&self, phase: Phase) -> bool {
        self.mask & phase_bit(phase) != 0
    }
}

/// Where a direction stands at one place; names and transitions are those of the spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
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
pub(super) struct Side {
    pub(super) state: State,
    /// Received, neither passed nor dropped.
    pub(super) view: BodyBuf,
    /// Offset of the view's first byte.
    pub(super) offset: u64,
    /// OBSERVE: passed and not shown yet.
    pub(super) observed: BodyBuf,
    /// PEND: the live token and its deadline, and what its event showed.
    pub(super) token: u64,
    pub(super) deadline: u64,
    pub(super) shown: u64,
    pub(super) shown_flags: EventFlags,
    pub(super) shown_mode: BodyMode,
    /// Fields of the head and of the trailers when the event was built.
    pub(super) shown_fields: [usize; 2],
    /// The HEADERS result has taken effect: from here on the body mode only goes down.
    pub(super) decided: bool,
    /// An operation on headers, trailers or body of this direction was applied.
    pub(super) changed: bool,
    pub(super) body_end_shown: bool,
    pub(super) resizes: bool,
    /// STREAM without RESIZES: bytes that may still leave before the head's length is reached.
    pub(super) length_left: Option<u64>,
    /// HOLD in STREAM: the length of view that is worth an event, and what was kept.
    pub(super) more_at: u64,
    pub(super) kept: u64,
    pub(super) shown_at: u64,
    /// Since when the guest withholds something.
    pub(super) hold_since: Option<u64>,
    /// A completion was applied and no event has come since.
    pub(super) resumed: bool,
}

impl Side {
    pub(super) fn new() -> Self {
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
pub(super) struct Flow<H> {
    pub(super) sides: Vec<Side>,
    pub(super) head: Option<H>,
    pub(super) head_at: usize,
    pub(super) length: BodyLength,
    pub(super) end: Option<End<H>>,
    pub(super) ready: BodyBuf,
    /// What the driver feeds in counts: until the end came, or the direction was cut or replaced.
    pub(super) open: bool,
    /// The driver has the end, or it was cut.
    pub(super) finished: bool,
    pub(super) how: DirectionEnd,
    pub(super) local: bool,
    /// The driver's own message in the upstream's stead, which it keeps and sends itself.
    pub(super) from_host: bool,
    pub(super) upgraded: bool,
    /// Head and trailers as they left, for LOG and peers, where some filter wants them.
    pub(super) left: Option<Box<H>>,
    pub(super) left_trailers: Option<Box<H>>,
    pub(super) keep: bool,
}

#[derive(Debug)]
pub(super) struct End<H> {
    pub(super) at: usize,
    pub(super) trailers: Option<Box<H>>,
}

impl<H> Flow<H> {
    pub(super) fn new(places: usize, keep: bool) -> Self {
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
            from_host: false,
            upgraded: false,
            left: None,
            left_trailers: None,
            keep,
        }
    }

    pub(super) fn head_is_at(&self, pos: usize) -> bool {
        self.head.is_some() && self.head_at == pos
    }

    pub(super) fn end_is_at(&self, pos: usize) -> bool {
        self.end.as_ref().is_some_and(|end| end.at == pos)
    }

    pub(super) fn has_trailers_at(&self, pos: usize) -> bool {
        self.end
            .as_ref()
            .is_some_and(|end| end.at == pos && end.trailers.is_some())
    }

    /// The body queue behind `pos`: the next place's view, or what is ready for the driver.
    pub(super) fn pass_bytes(&mut self, pos: usize, n: u64) {
        let (before, after) = self.sides.split_at_mut(pos + 1);
        let from = &mut before[pos];
        from.offset += n.min(from.view.len());
        let to = match after.first_mut() {
            Some(side) => &mut side.view,
            None => &mut self.ready,
        };
        from.view.move_to(n, to);
    }

    pub(super) fn push_behind(&mut self, pos: usize, bytes: Bytes) {
        match self.sides.get_mut(pos + 1) {
            Some(side) => side.view.push(bytes),
            None => self.ready.push(bytes),
        }
    }

    /// Where what arrives from outside goes first.
    pub(super) fn push_in(&mut self, bytes: Bytes) {
        match self.sides.first_mut() {
            Some(side) => side.view.push(bytes),
            None => self.ready.push(bytes),
        }
    }
}
