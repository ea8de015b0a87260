//! What a driver takes out: signals and parts, and what it may ask.

use proxy_golang_abi::{BodyMode, DirectionEnd};

use super::super::fields::Fields;
use super::flow::{Place, Side, State};
use super::{BodyLength, Cx, Dir, Part, PartOf, Signal, Step, Stream};

impl<H: Fields> Stream<H> {
    /// Something that the driver has to do, in the order in which it came up. To be asked before the parts.
    pub fn signal(&mut self) -> Option<Signal> {
        (!self.signals.is_empty()).then(|| self.signals.remove(0))
    }

    /// The next part for the upstream. To be asked only when there is room for it: what is not taken holds back the
    /// client.
    pub fn request_part(&mut self, cx: &mut Cx<'_>) -> Option<Part<H>> {
        self.part(cx, Dir::Request)
    }

    /// The next part for the client, as [`Stream::request_part`].
    pub fn response_part(&mut self, cx: &mut Cx<'_>) -> Option<Part<H>> {
        self.part(cx, Dir::Response)
    }

    fn part(&mut self, cx: &mut Cx<'_>, dir: Dir) -> Option<Part<H>> {
        let ready = self.places.len();
        let flow = &mut self.flows[dir as usize];
        if flow.finished {
            return None;
        }
        if flow.head_is_at(ready) {
            let ends =
                flow.end_is_at(ready) && flow.ready.is_empty() && !flow.has_trailers_at(ready);
            let length = match flow.length {
                BodyLength::None => BodyLength::None,
                _ if ends => BodyLength::Exact(0),
                // All of it is here: its length is known, whatever the guests made of it.
                _ if flow.end_is_at(ready) && !flow.has_trailers_at(ready) => {
                    BodyLength::Exact(flow.ready.len())
                }
                length => length,
            };
            if length == BodyLength::None {
                flow.ready.clear();
            }
            flow.head_at = ready + 1;
            let head = flow.head.take()?;
            if flow.keep {
                flow.left = Some(Box::new(head.clone()));
            }
            let local = flow.local;
            let end = ends || (length == BodyLength::None && flow.end_is_at(ready));
            if flow.upgraded {
                flow.end = None; // the message's; the tunnel goes on
            } else if end {
                self.finish(cx, dir);
            }
            return Some(Part::Head {
                head,
                length,
                end,
                local,
            });
        }
        if flow.head_at <= ready {
            return None;
        }
        if let Some(bytes) = flow.ready.pop() {
            if dir == Dir::Response {
                self.response_left(cx);
            }
            return Some(Part::Data(bytes));
        }
        if !flow.end_is_at(ready) {
            return None;
        }
        let trailers = flow.end.as_mut().and_then(|end| end.trailers.take());
        if flow.keep {
            flow.left_trailers.clone_from(&trailers);
        }
        self.finish(cx, dir);
        Some(trailers.map_or(Part::End, |trailers| Part::Trailers(*trailers)))
    }

    /// The driver has all of a direction.
    fn finish(&mut self, cx: &mut Cx<'_>, dir: Dir) {
        let flow = &mut self.flows[dir as usize];
        flow.finished = true;
        flow.how = DirectionEnd::COMPLETE;
        self.end_if_both_ended(cx);
    }

    /// Whether the driver should read on in this direction: what is buffered at every place and for the driver is
    /// below its limit.
    #[must_use]
    pub fn wants(&self, dir: Dir) -> bool {
        let flow = &self.flows[dir as usize];
        if !flow.open || self.closed {
            return false;
        }
        let room = |(pos, side): (usize, &Side)| {
            let place = self.place_of(dir, pos);
            let limit = match side.state {
                State::Flow | State::Bypass | State::Done => self.limits.buffer,
                _ => self.chain.filters()[place].declared.max_body[dir as usize],
            };
            side.view.len() <= limit
        };
        flow.ready.len() < self.limits.buffer && flow.sides.iter().enumerate().all(room)
    }

    /// Whether the driver may send the rest of this direction's body and trailers on by itself: the head has been
    /// given out and no guest wants any of them. It then reports the end by [`Stream::body_forwarded`] or
    /// [`Stream::cut`].
    #[must_use]
    pub fn bodies_skipped(&self, dir: Dir) -> bool {
        let flow = &self.flows[dir as usize];
        let skipped = |(pos, side): (usize, &Side)| {
            let at = self.at(dir, pos);
            match side.state {
                State::Done => flow.upgraded,
                State::Bypass => side.length_left.is_none(),
                State::Flow => {
                    self.mode(at) == BodyMode::SKIP
                        && !self.places[at.place].wants(dir.phase(PartOf::Trailers))
                        && side.length_left.is_none()
                }
                _ => false,
            }
        };
        !flow.local
            && !flow.finished
            && flow.head_at > flow.sides.len()
            && flow.ready.is_empty()
            && flow.sides.iter().enumerate().all(skipped)
    }

    /// Whether the driver may keep the whole response from the engine, for no filter would see any of it. If so, it counts
    /// as given out: the driver sends it, of this `length`, and reports its end as after [`Stream::bodies_skipped`].
    #[must_use]
    pub fn skip_response(&mut self, length: BodyLength) -> bool {
        let flow = &mut self.flows[Dir::Response as usize];
        let unseen = |place: &Place| {
            let parts = [PartOf::Headers, PartOf::Body, PartOf::Trailers];
            !parts.iter().any(|p| place.wants(Dir::Response.phase(*p)))
        };
        let skips = flow.open
            && flow.head.is_none()
            && flow.head_at == 0
            && !(flow.keep || flow.upgraded || self.closed)
            && self.places.iter().all(unseen);
        if skips {
            flow.length = length;
            flow.how = DirectionEnd::PROXY;
            flow.head_at = flow.sides.len() + 1;
            for side in &mut flow.sides {
                if side.state == State::Wait {
                    side.state = State::Flow;
                    side.decided = true;
                }
            }
        }
        skips
    }

    /// Whether a guest's verdict on the request's head is pending: a driver tells no client to send its body before
    /// it is there (PXG-BODY-011).
    #[must_use]
    pub fn request_headers_pending(&self) -> bool {
        let sides = &self.flows[Dir::Request as usize].sides;
        sides
            .iter()
            .any(|side| matches!(side.state, State::Pend(PartOf::Headers)))
    }

    /// The driver has sent the rest of this direction by itself.
    pub fn body_forwarded(&mut self, cx: &mut Cx<'_>, dir: Dir) {
        if !self.flows[dir as usize].finished && !self.closed {
            self.flows[dir as usize].open = false;
            self.finish(cx, dir);
        }
    }

    /// When [`Stream::timer`] has to be called, by the worker's clock.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.next_deadline()
    }

    /// Whether everything is over.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.closed
    }

    /// Whether the response's head has been given out: then there is no other any more.
    #[must_use]
    pub fn response_began(&self) -> bool {
        let flow = &self.flows[Dir::Response as usize];
        flow.head_at > flow.sides.len()
    }

    /// Why the last local reply or failure came about, for the access log; never for clients.
    #[must_use]
    pub fn details(&self) -> &str {
        &self.details
    }

    /// What each guest decided so far, in order, if the limits say that it is kept.
    #[must_use]
    pub fn trace(&self) -> &[Step] {
        &self.trace
    }
}
