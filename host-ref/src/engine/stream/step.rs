//! The transitions of one direction at one place. The ids D01... are those of `spec/07-bodies.md`, 7.11.

use proxy_golang_abi::{BodyMode, ConfigFlags, EventFlags};

use super::super::fields::Fields;
use super::super::guest::{Chain, Filter};
use super::end::{Failure, Reason};
use super::{At, BodyLength, Cx, Dir, PartOf, State, Stream};

/// `more_at` of a side that no MORE holds: there it is never 0.
const HELD_BY_WHOLE: u64 = 0;

impl<H: Fields> Stream<H> {
    /// Lets everything move that can.
    pub(super) fn run(&mut self, cx: &mut Cx<'_>) {
        // Lent to what runs here, which all takes it as an argument, and put back.
        let chain = std::mem::take(&mut self.chain);
        loop {
            while self.step_all(cx, &chain) {}
            if self.closed || !self.release_written(cx, &chain) {
                break;
            }
        }
        self.chain = chain;
    }

    /// Once round all sides, each as far as it goes; whether any of them moved.
    fn step_all(&mut self, cx: &mut Cx<'_>, chain: &Chain) -> bool {
        let places = self.places.len();
        let mut moved = false;
        for pos in 0..places {
            moved |= !self.is_idle(Dir::Request, pos) && self.advance(cx, chain, Dir::Request, pos);
        }
        for pos in 0..places {
            moved |=
                !self.is_idle(Dir::Response, pos) && self.advance(cx, chain, Dir::Response, pos);
        }
        moved && !self.closed
    }

    /// Whether a side has nothing to do: so it is with most of them, most of the time.
    #[inline]
    fn is_idle(&self, dir: Dir, pos: usize) -> bool {
        let flow = &self.flows[dir as usize];
        let side = &flow.sides[pos];
        match side.state {
            State::Done | State::Pend(_) => true,
            State::Wait => !flow.head_is_at(pos),
            State::Flow => side.view.is_empty() && !flow.end_is_at(pos),
            State::Hold | State::Bypass => false,
        }
    }

    /// Steps one side until it stands still; whether it moved.
    #[inline(never)]
    fn advance(&mut self, cx: &mut Cx<'_>, chain: &Chain, dir: Dir, pos: usize) -> bool {
        let at = self.at(dir, pos);
        let mut moved = false;
        while !self.closed
            && !self.flows[dir as usize].finished
            && !self.is_idle(dir, pos)
            && self.step(cx, chain, at)
        {
            moved = true;
        }
        moved
    }

    /// One transition; whether there was one.
    fn step(&mut self, cx: &mut Cx<'_>, chain: &Chain, at: At) -> bool {
        match self.flows[at.dir as usize].sides[at.pos].state {
            State::Done | State::Pend(_) => false,
            State::Bypass => self.pass_all(cx, chain, at),
            _ if self.is_parked(chain, at) => false,
            State::Wait => self.step_wait(cx, chain, at),
            State::Hold => self.step_hold(cx, chain, at),
            State::Flow => self.step_flow(cx, chain, at),
        }
    }

    /// The peer direction pends here, and the guest did not say that it can take both (PXG-EVT-003).
    pub(super) fn is_parked(&self, chain: &Chain, at: At) -> bool {
        let peer = at.dir.peer();
        let pos = self.pos_of(peer, at.place);
        matches!(self.flows[peer as usize].sides[pos].state, State::Pend(_))
            && !Self::filter(chain, at).is(ConfigFlags::DUPLEX)
    }

    /// D01, D02, D03.
    fn step_wait(&mut self, cx: &mut Cx<'_>, chain: &Chain, at: At) -> bool {
        if !self.flows[at.dir as usize].head_is_at(at.pos) {
            return false;
        }
        if at.dir == Dir::Request {
            self.places[at.place].reached = true;
        }
        let place = &self.places[at.place];
        if place.wants(at.dir.phase(PartOf::Headers)) {
            let mut flags = self.end_flags(at, EventFlags(0));
            if self.flows[at.dir as usize].upgraded && at.dir == Dir::Response {
                flags.0 |= EventFlags::UPGRADED.0 | EventFlags::END_STREAM.0;
            }
            self.call(cx, chain, at, PartOf::Headers, flags);
        } else if self.mode(at) == BodyMode::WHOLE {
            self.hold_whole(cx, at);
        } else {
            let flow = &self.flows[at.dir as usize];
            let upgraded = flow.upgraded && at.dir == Dir::Response;
            let ended = self.end_flags(at, EventFlags(0)).0 & EventFlags::END_STREAM.0 != 0;
            self.pass_head(chain, at, self.mode(at));
            if upgraded || ended {
                self.pass_end(at);
            }
        }
        true
    }

    /// D09 and D11.
    #[inline(never)]
    fn step_hold(&mut self, cx: &mut Cx<'_>, chain: &Chain, at: At) -> bool {
        let flow = &self.flows[at.dir as usize];
        let side = &flow.sides[at.pos];
        let mode = self.mode(at);
        let released = mode == BodyMode::STREAM && side.more_at == HELD_BY_WHOLE;
        if mode == BodyMode::SKIP || mode == BodyMode::OBSERVE || released {
            self.pass_held(chain, at);
            return true;
        }
        let max = Self::filter(chain, at).declared.max_body[at.dir as usize];
        let ended = flow.end_is_at(at.pos);
        let over = side.view.len() > max;
        let begins = side.hold_since.is_none() && !side.view.is_empty();
        let grown = mode == BodyMode::STREAM
            && side.view.len() >= side.more_at
            && side.view.len() > side.kept;
        if begins {
            self.side(at).hold_since = Some(cx.worker.now());
        }
        if !(ended || over || grown) {
            return false;
        }
        self.call_body(cx, chain, at);
        true
    }

    /// The hold time has run: what came since is shown (D09).
    pub(super) fn show_held(&mut self, cx: &mut Cx<'_>, chain: &Chain, at: At) {
        if self.side(at).state == State::Hold && !self.is_parked(chain, at) {
            self.call_body(cx, chain, at);
        }
    }

    /// D10 and D12.
    #[inline(never)]
    fn step_flow(&mut self, cx: &mut Cx<'_>, chain: &Chain, at: At) -> bool {
        let mode = self.mode(at);
        let flow = &mut self.flows[at.dir as usize];
        let len = flow.sides[at.pos].view.len();
        let ended = flow.end_is_at(at.pos);
        let last_look = ended && !flow.sides[at.pos].body_end_shown;
        match mode {
            BodyMode::STREAM | BodyMode::WHOLE if len > 0 || last_look => {
                self.call_body(cx, chain, at);
                return true;
            }
            BodyMode::OBSERVE if len > 0 || last_look => {
                let side = &mut flow.sides[at.pos];
                let observed = side.view.clone();
                side.observed = observed;
                flow.pass_bytes(at.pos, len);
                self.call_body(cx, chain, at);
                return true;
            }
            _ => {}
        }
        if len > 0 {
            if let Some(surplus) = self.surplus(at, len) {
                self.fail_length(cx, chain, at, &surplus);
            } else {
                self.pass_bytes(at, len);
            }
            return true;
        }
        if !ended {
            return false;
        }
        if flow.has_trailers_at(at.pos)
            && self.places[at.place].wants(at.dir.phase(PartOf::Trailers))
        {
            self.call(cx, chain, at, PartOf::Trailers, EventFlags::END_STREAM);
        } else {
            self.finish_place(cx, chain, at);
        }
        true
    }

    fn call_body(&mut self, cx: &mut Cx<'_>, chain: &Chain, at: At) {
        let mode = self.mode(at);
        let flow = &self.flows[at.dir as usize];
        let mut flags = self.end_flags(at, EventFlags(0));
        let max = Self::filter(chain, at).declared.max_body[at.dir as usize];
        let over = mode != BodyMode::OBSERVE && flow.sides[at.pos].view.len() > max;
        if over {
            flags.0 |= EventFlags::OVER_LIMIT.0;
        }
        if flow.end_is_at(at.pos) {
            flags.0 |= EventFlags::BODY_END.0;
            if mode == BodyMode::WHOLE && !over {
                flags.0 |= EventFlags::WHOLE_BODY.0 | EventFlags::END_STREAM.0;
            }
        }
        if flow.head_is_at(at.pos) {
            flags.0 |= EventFlags::HEADERS_HELD.0;
        }
        self.call(cx, chain, at, PartOf::Body, flags);
    }

    /// END_STREAM, if the message ends with what this place has of it.
    fn end_flags(&self, at: At, flags: EventFlags) -> EventFlags {
        let flow = &self.flows[at.dir as usize];
        let ends = flow.end_is_at(at.pos) && !flow.has_trailers_at(at.pos);
        let at_head = flow.head_is_at(at.pos) && flow.sides[at.pos].state == State::Wait;
        let ends = ends && (!at_head || flow.sides[at.pos].view.is_empty());
        if ends {
            EventFlags(flags.0 | EventFlags::END_STREAM.0)
        } else {
            flags
        }
    }

    pub(super) fn mode(&self, at: At) -> BodyMode {
        let place = &self.places[at.place];
        if place.wants(at.dir.phase(PartOf::Body)) {
            place.mode[at.dir as usize]
        } else {
            BodyMode::SKIP
        }
    }

    /// Keeps the headers until the body has ended (D02, D05).
    pub(super) fn hold_whole(&mut self, cx: &mut Cx<'_>, at: At) {
        self.hold(cx, at, 0, 0);
        self.side(at).more_at = HELD_BY_WHOLE;
    }

    /// Keeps headers and `kept` bytes of the view until more has come. What came while the direction was PENDING is
    /// not among `kept`: it has not been shown.
    pub(super) fn hold(&mut self, cx: &mut Cx<'_>, at: At, kept: u64, more_bytes: u64) {
        let now = cx.worker.now();
        let holds_head = self.flows[at.dir as usize].head_is_at(at.pos);
        let side = self.side(at);
        side.state = State::Hold;
        side.kept = kept;
        let growth = if more_bytes == 0 {
            (side.kept / 8).max(1024)
        } else {
            more_bytes
        };
        side.more_at = side.kept.saturating_add(growth);
        side.shown_at = now;
        if holds_head || !side.view.is_empty() {
            side.hold_since.get_or_insert(now);
        } else {
            side.hold_since = None;
        }
    }

    /// The head passes this place (D03, D05 to D08). `mode` is what the event that decided it was delivered in.
    pub(super) fn pass_head(&mut self, chain: &Chain, at: At, mode: BodyMode) {
        let streams = mode == BodyMode::STREAM || self.mode(at) == BodyMode::STREAM;
        let free = self.is_resizing(Self::filter(chain, at), at);
        let flow = &mut self.flows[at.dir as usize];
        if !flow.head_is_at(at.pos) {
            return;
        }
        flow.head_at = at.pos + 1;
        let side = &mut flow.sides[at.pos];
        side.state = State::Flow;
        side.decided = true;
        if let BodyLength::Exact(n) = flow.length
            && streams
        {
            if free {
                flow.length = BodyLength::Unknown;
            } else {
                side.length_left = Some(n);
            }
        }
    }

    /// Whether this guest may change the body's length in STREAM.
    pub(super) fn is_resizing(&self, filter: &Filter, at: At) -> bool {
        let declared = match at.dir {
            Dir::Request => ConfigFlags::RESIZES_REQUEST,
            Dir::Response => ConfigFlags::RESIZES_RESPONSE,
        };
        self.flows[at.dir as usize].sides[at.pos].resizes || filter.is(declared)
    }

    pub(super) fn pass_end(&mut self, at: At) {
        let flow = &mut self.flows[at.dir as usize];
        if let Some(end) = &mut flow.end
            && end.at == at.pos
        {
            end.at += 1;
        }
        let side = &mut flow.sides[at.pos];
        side.state = State::Done;
        side.hold_since = None;
    }

    /// The held head and the view pass as they are (D11). The end follows from FLOW.
    fn pass_held(&mut self, chain: &Chain, at: At) {
        self.pass_head(chain, at, BodyMode::SKIP);
        let side = self.side(at);
        side.state = State::Flow;
        side.hold_since = None;
    }

    /// Everything that is here passes unseen (D14); whether there was anything.
    #[inline(never)]
    fn pass_all(&mut self, cx: &mut Cx<'_>, chain: &Chain, at: At) -> bool {
        let flow = &mut self.flows[at.dir as usize];
        let head = flow.head_is_at(at.pos);
        if head {
            flow.head_at += 1;
            if at.dir == Dir::Request {
                self.places[at.place].reached = true;
            }
        }
        let flow = &self.flows[at.dir as usize];
        let len = flow.sides[at.pos].view.len();
        let end = flow.end_is_at(at.pos);
        if self.surplus(at, len).is_some() || (end && self.shortage(at, len).is_some()) {
            self.reset(cx, chain);
            return true;
        }
        self.pass_bytes(at, len);
        if end {
            self.pass_end(at);
        }
        head || len > 0 || end
    }

    /// What is wrong if `n` bytes pass: a guest that changed the body made it longer than its head says.
    pub(super) fn surplus(&self, at: At, n: u64) -> Option<String> {
        let side = &self.flows[at.dir as usize].sides[at.pos];
        let left = side.length_left.filter(|_| side.changed)?;
        (n > left).then(|| {
            let surplus = n - left;
            format!(
                "the body would be {surplus} bytes longer than its content-length; declare RESIZES to change a length"
            )
        })
    }

    /// What is wrong if the body ends `n` bytes from here.
    fn shortage(&self, at: At, n: u64) -> Option<String> {
        let side = &self.flows[at.dir as usize].sides[at.pos];
        let left = side.length_left.filter(|_| side.changed)?;
        (left > n).then(|| {
            let short = left - n;
            format!("the body ended {short} bytes short of its content-length; declare RESIZES to change a length")
        })
    }

    /// D08 and D12: the end passes, unless the guest made the body shorter than its head says (PXG-HDR-007).
    pub(super) fn finish_place(&mut self, cx: &mut Cx<'_>, chain: &Chain, at: At) {
        match self.shortage(at, 0) {
            Some(shortage) => self.fail_length(cx, chain, at, &shortage),
            None => self.pass_end(at),
        }
    }

    fn fail_length(&mut self, cx: &mut Cx<'_>, chain: &Chain, at: At, text: &str) {
        let failure = Failure::new(Reason::Invalid, at.dir.phase(PartOf::Body), text);
        self.fail(cx, chain, at.place, Some(at), &failure);
    }
}
