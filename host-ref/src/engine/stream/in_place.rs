//! For drivers that keep messages where they are and only lend them: what such a driver has to know, and to give at once.

use bytes::Bytes;
use proxy_golang_abi::feature::Feature;
use proxy_golang_abi::{BodyMode, ConfigFlags, DirectionEnd, EndReason};

use super::super::fields::Fields;
use super::flow::{End, State};
use super::{BodyLength, Cx, Dir, PartOf, Stream};

impl<H: Fields> Stream<H> {
    /// Pieces of a direction's body, and perhaps its end, at once: filters get them in one view.
    pub fn feed(
        &mut self,
        cx: &mut Cx<'_>,
        dir: Dir,
        pieces: impl IntoIterator<Item = Bytes>,
        end: Option<Option<H>>,
    ) {
        let flow = &mut self.flows[dir as usize];
        if !flow.open || self.closed {
            return;
        }
        for piece in pieces {
            flow.push_in(piece);
        }
        if let Some(trailers) = end {
            flow.open = false;
            flow.end = Some(End {
                at: 0,
                trailers: trailers.filter(|t| !t.is_empty()).map(Box::new),
            });
        }
        self.run(cx);
    }

    /// Bytes of a direction that have not been given out: some filter keeps them, or the driver has not taken them.
    #[must_use]
    pub fn held(&self, dir: Dir) -> u64 {
        let flow = &self.flows[dir as usize];
        let views = flow.sides.iter().map(|side| side.view.len());
        flow.ready.len() + views.sum::<u64>()
    }

    /// Copies what is held of a direction: to be called before lent bytes become invalid.
    pub fn own_bodies(&mut self, dir: Dir) {
        let flow = &mut self.flows[dir as usize];
        flow.ready.own();
        flow.sides.iter_mut().for_each(|side| side.view.own());
    }

    /// Whether bytes that come now would get anywhere. If not, a driver that can keep them saves a copy.
    #[must_use]
    pub fn takes(&self, dir: Dir) -> bool {
        let flow = &self.flows[dir as usize];
        if !flow.open || self.closed {
            return false;
        }
        let first = flow.sides.first();
        first.is_none_or(|side| {
            !matches!(side.state, State::Wait | State::Pend(_))
                && !self.is_parked(&self.chain, self.at(dir, 0))
        })
    }

    /// Whether some filter pends.
    #[must_use]
    pub fn pends(&self) -> bool {
        let sides = self.flows.iter().flat_map(|flow| &flow.sides);
        sides.into_iter().any(|s| matches!(s.state, State::Pend(_)))
    }

    /// How many bytes a filter wants to see whole, with its headers held, if no filter before it looks at them: until there
    /// are more, or the end has come, the driver need not feed any.
    #[must_use]
    pub fn whole_limit(&self, dir: Dir) -> Option<u64> {
        let flow = &self.flows[dir as usize];
        for pos in 0..flow.sides.len() {
            let side = &flow.sides[pos];
            let at = self.at(dir, pos);
            match side.state {
                State::Hold if self.mode(at) == BodyMode::WHOLE => {
                    let filter = Self::filter(&self.chain, at);
                    return Some(filter.declared.max_body[dir as usize]);
                }
                State::Flow | State::Bypass
                    if self.mode(at) == BodyMode::SKIP && side.length_left.is_none() => {}
                _ => return None,
            }
        }
        None
    }

    /// Most bytes that a filter of the chain may hold of a direction.
    #[must_use]
    pub fn max_held(&self, dir: Dir) -> u64 {
        let filters = self.chain.filters().iter();
        let wants = filters.filter(|f| f.subscribes(dir.phase(PartOf::Body)));
        let most = wants.map(|f| f.declared.max_body[dir as usize]);
        most.max().unwrap_or(0)
    }

    /// Whether nothing is left of a direction but its end, which has passed all filters. A driver that takes it only when
    /// its own side of the message is over has LOG come then.
    #[must_use]
    pub fn end_is_ready(&self, dir: Dir) -> bool {
        let flow = &self.flows[dir as usize];
        let ready = flow.sides.len();
        flow.finished || (flow.head_at > ready && flow.ready.is_empty() && flow.end_is_at(ready))
    }

    /// Whether METADATA_SET has set something since this was asked last.
    pub fn metadata_changed(&mut self) -> bool {
        std::mem::take(&mut self.metadata_changed)
    }

    /// What METADATA_SET has set: namespace, key, value.
    pub fn metadata(&self) -> impl Iterator<Item = (&[u8], &[u8], &[u8])> {
        self.metadata
            .iter()
            .map(|m| (&m.namespace[..], &m.key[..], &m.value[..]))
    }

    /// The host, or somebody else in its chain, answers in the upstream's stead: to be called before
    /// [`Stream::response_head`] with that answer. It passes the response phases of guests with REPLY_REFILTER that the
    /// request reached, flagged LOCAL_ORIGIN. Whether there are such guests. If not, it counts as given out: the driver
    /// sends it, and reports its end by [`Stream::body_forwarded`] or [`Stream::cut`]; of `head` LOG gets a copy if some
    /// guest wants it.
    pub fn host_responds(&mut self, cx: &mut Cx<'_>, head: &H, length: BodyLength) -> bool {
        let response = &self.flows[Dir::Response as usize];
        if self.closed || response.finished || response.head_at > 0 || response.head.is_some() {
            return false;
        }
        let chain = std::mem::take(&mut self.chain);
        self.why.get_or_insert(EndReason::REPLIED);
        self.flows[Dir::Request as usize].answered();
        self.cut_sides(cx, &chain, Dir::Request);
        let mut seen = false;
        for (place, filter) in chain.filters().iter().enumerate() {
            self.cancel_side(cx, &chain, Dir::Response, place);
            let seat = &self.places[place];
            let entitled = seat.reached || filter.is(ConfigFlags::ORPHAN);
            let sees = entitled && !seat.failed && filter.has(Feature::REPLY_REFILTER);
            let pos = self.pos_of(Dir::Response, place);
            let side = &mut self.flows[Dir::Response as usize].sides[pos];
            if !sees {
                side.state = State::Bypass;
            }
            seen |= sees;
        }
        let flow = &mut self.flows[Dir::Response as usize];
        flow.from_host = true;
        self.upstream_cancelled = true;
        if !seen {
            flow.length = length;
            flow.head_at = flow.sides.len() + 1;
            flow.how = DirectionEnd::PROXY;
            if flow.keep {
                flow.left = Some(Box::new(head.clone()));
            }
        }
        self.chain = chain;
        seen
    }
}
