//! The memory of a stream that is over serves the next one: a stream is large, and most end without having held anything.

use proxy_golang_abi::{BodyMode, DirectionEnd, EventFlags};

use super::super::fields::Fields;
use super::super::guest::Chain;
use super::flow::{Flow, Side, State};
use super::{BodyLength, Stream, StreamLimits};

/// What one stream needed much of is not kept for all that come.
const KEPT: usize = 64;

impl<H: Fields> Stream<H> {
    /// A stream that is over, to be renewed.
    #[must_use]
    pub fn spare() -> Self {
        Self {
            closed: true,
            ..Self::new(Chain::default(), 0, StreamLimits::default())
        }
    }

    /// Lets go of the chain of a stream that is over, for its guests are told when nobody has their configuration.
    pub fn let_go(&mut self) {
        debug_assert!(self.closed);
        self.chain = Chain::default();
        // What the driver lends goes with the exchange.
        self.flows.iter_mut().for_each(|flow| flow.head = None);
    }

    /// Makes this stream, which is over, one of another exchange, as [`Stream::new`] does.
    ///
    /// # Panics
    ///
    /// If it is not over: guests would never hear of its end.
    pub fn renew(&mut self, chain: &Chain, key: u64, limits: StreamLimits) {
        assert!(self.closed, "only a stream that is over can be renewed");
        // All fields by name: a new one is not forgotten here.
        let Self {
            chain: old,
            key: old_key,
            limits: old_limits,
            places,
            flows,
            signals,
            metadata,
            metadata_changed,
            reply,
            asked,
            why,
            upstream_cancelled,
            details,
            trace,
            closed,
        } = self;
        old.clone_from(chain);
        *old_key = key;
        *old_limits = limits;
        places.clear();
        places.extend(Self::places(chain));
        for (flow, keep) in flows.iter_mut().zip(Self::keeps(chain)) {
            flow.renew(places.len(), keep);
        }
        signals.clear();
        metadata.clear();
        *metadata_changed = false;
        *reply = None;
        *asked = None;
        *why = None;
        *upstream_cancelled = false;
        details.clear();
        details.shrink_to(16 * KEPT);
        trace.clear();
        trace.shrink_to(KEPT);
        *closed = false;
    }
}

impl<H> Flow<H> {
    fn renew(&mut self, places: usize, keeps: bool) {
        let Self {
            sides,
            head,
            head_at,
            length,
            end,
            ready,
            open,
            finished,
            how,
            local,
            from_host,
            upgraded,
            left,
            left_trailers,
            keep,
        } = self;
        sides.truncate(places);
        sides.iter_mut().for_each(Side::renew);
        sides.resize_with(places, Side::new);
        *head = None;
        *head_at = 0;
        *length = BodyLength::Unknown;
        *end = None;
        ready.renew();
        *open = true;
        *finished = false;
        *how = DirectionEnd::NEVER_BEGAN;
        *local = false;
        *from_host = false;
        *upgraded = false;
        *left = None;
        *left_trailers = None;
        *keep = keeps;
    }
}

impl Side {
    fn renew(&mut self) {
        let Self {
            state,
            view,
            offset,
            observed,
            token,
            deadline,
            shown,
            shown_flags,
            shown_mode,
            shown_fields,
            decided,
            changed,
            body_end_shown,
            resizes,
            length_left,
            more_at,
            kept,
            shown_at,
            hold_since,
            resumed,
        } = self;
        *state = State::Wait;
        view.renew();
        *offset = 0;
        observed.renew();
        *token = 0;
        *deadline = 0;
        *shown = 0;
        *shown_flags = EventFlags(0);
        *shown_mode = BodyMode::UNSET;
        *shown_fields = [0; 2];
        *decided = false;
        *changed = false;
        *body_end_shown = false;
        *resizes = false;
        *length_left = None;
        *more_at = 0;
        *kept = 0;
        *shown_at = 0;
        *hold_since = None;
        *resumed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::FieldList;

    #[test]
    #[should_panic(expected = "only a stream that is over")]
    fn a_live_stream_is_not_renewed() {
        let chain = Chain::new(Vec::new());
        let mut stream = Stream::<FieldList>::new(chain.clone(), 1, StreamLimits::default());
        stream.renew(&chain, 2, StreamLimits::default());
    }
}
