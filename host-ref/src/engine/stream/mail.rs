//! What guests sent from any thread takes effect on the stream's thread.

use proxy_golang_abi::{BodyMode, EventFlags, Phase};

use super::super::fields::Fields;
use super::super::hub::{Item, Mail};
use super::super::table::State as Slot;
use super::settle::Context;
use super::{Cx, Dir, State, Stream};

impl<H: Fields> Stream<H> {
    /// Gives the stream what [`Worker::take_mail`](super::super::Worker::take_mail) had for it. What came too late
    /// is dropped, and releases what it owned.
    pub fn deliver(&mut self, cx: &mut Cx<'_>, mail: Mail) {
        if self.closed {
            return;
        }
        match mail.item {
            Item::Complete { token, outcome } => {
                let found = Dir::BOTH.into_iter().find_map(|dir| {
                    let sides = &self.flows[dir as usize].sides;
                    let pos = sides
                        .iter()
                        .position(|s| s.token == token && matches!(s.state, State::Pend(_)))?;
                    Some(self.at(dir, pos))
                });
                let Some(at) = found else { return };
                let chain = self.chain.clone();
                let filter = Self::filter(&chain, at);
                let State::Pend(part) = self.side(at).state else {
                    return;
                };
                let was = cx.worker.retire(token);
                debug_assert_eq!(
                    was,
                    Slot::Done,
                    "only an accepted completion is in the mail"
                );
                self.unpend(cx, filter, at);
                let side = self.side(at);
                side.resumed = true;
                let (flags, mode, shown) = (side.shown_flags, side.shown_mode, side.shown);
                let shown_fields = side.shown_fields;
                // Whatever comes next sets the state; until then the place holds what it held.
                side.state = State::Hold;
                let phase = at.dir.phase(part);
                let context = Context {
                    place: at.place,
                    at: Some(at),
                    phase,
                    flags,
                    mode,
                    shown,
                    shown_fields,
                    late: true,
                    ns: 0,
                    now: 0,
                };
                match self.take_plain_kept(&context, &outcome) {
                    Some(edits) => self.settle_plain(cx, &chain, context, at, &edits),
                    None => self.settle(cx, &chain, context, &mut outcome.outcome()),
                }
            }
            Item::Apply { handle, outcome } => {
                let Some(place) = self.place_with(handle) else {
                    return;
                };
                let chain = self.chain.clone();
                self.places[place].written += outcome.written_bytes();
                let context = Context {
                    place,
                    at: None,
                    phase: Phase(0),
                    flags: EventFlags(0),
                    mode: BodyMode::UNSET,
                    shown: 0,
                    shown_fields: [0; 2],
                    late: true,
                    ns: 0,
                    now: 0,
                };
                self.settle(cx, &chain, context, &mut outcome.outcome());
            }
            Item::Wake { handle } => {
                let arg = cx.worker.hub.table.take_wakes(handle);
                let Some(place) = self.place_with(handle) else {
                    return;
                };
                if self.places[place].wants(Phase::WAKE) {
                    let chain = self.chain.clone();
                    self.call_plain(cx, &chain, place, Phase::WAKE, arg, EventFlags(0));
                }
            }
        }
        self.run(cx);
    }

    fn place_with(&self, handle: u64) -> Option<usize> {
        self.places
            .iter()
            .position(|p| p.handle == handle && !p.failed)
    }
}
