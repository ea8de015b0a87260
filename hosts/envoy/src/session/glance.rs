//! A stream that is none, for its only guest looks at the request's head and at nothing else.
//!
//! The engine's [`Glance`] says when that is enough, and why what happens is the same. As long as it is, both directions
//! pass: hooks note that they have been called, and answer before they look at anything else of the stream.

use proxy_golang_host::engine::{BodyLength, Cx, Dir, Glance, Stream};

use super::{Session, State};
use crate::attributes::OfStream;
use crate::site::{Plan, Site};
use crate::sys::{Head, HeaderOf};

impl Session {
    /// The request's head. Whether it goes on, and with it all else; if not, there is a stream now.
    pub(super) fn glance(&self, head: Head, length: BodyLength, tunnel: bool) -> bool {
        let state = &mut *self.state.borrow_mut();
        let passed = self.at_glance(state, |glance, stream, cx, site, plan| {
            let (chain, key) = (&plan.chain, self.key.get());
            glance.request_head(cx, stream, chain, key, &site.limits, head, length)
        });
        if passed.flatten().is_some() {
            state.tunnel = tunnel;
            self.pass.iter().for_each(|pass| pass.set(true));
            return true;
        }
        self.make_stream(state, length, tunnel);
        false
    }

    /// From here on there is a stream, which the engine has made.
    #[inline(never)]
    fn make_stream(&self, state: &mut State, length: BodyLength, tunnel: bool) {
        self.glancing.set(false);
        state.own_plan = None;
        state.used = true;
        let ended = self.ended[Dir::Request as usize].get();
        state.ways[0].request_came(length, tunnel, ended && length == BodyLength::Exact(0));
        self.with(state, |_, _| ());
    }

    /// Before anything is done on the stream from outside of its hooks.
    pub(super) fn stop_glancing(&self, state: &mut State) {
        let Some(filter) = self.filter.get().filter(|_| self.glancing.get()) else {
            return;
        };
        let head = self.worker.heads.live(filter, HeaderOf::Request);
        let length = state.glance.length();
        self.at_glance(state, |glance, stream, cx, site, plan| {
            glance.hand_over(cx, stream, &plan.chain, self.key.get(), &site.limits, head);
        });
        let responded = self.responded.get();
        self.pass[1].set(responded);
        self.make_stream(state, length, state.tunnel);
        if responded {
            let skipped = state.stream.skip_response(BodyLength::Unknown);
            debug_assert!(skipped, "nobody looks at the response");
        }
    }

    /// Envoy's stream is over, or goes.
    pub(super) fn close_glance(&self, state: &mut State) {
        self.at_glance(state, |glance, _, cx, _, plan| {
            glance.close(cx, &plan.chain)
        });
        self.glancing.set(false);
        state.own_plan = None;
        state.closed = true;
    }

    /// A hook of a body or of trailers: whether it passes.
    #[inline]
    pub(crate) fn passes(&self, dir: Dir, end: bool) -> bool {
        if end {
            self.ended[dir as usize].set(true);
        }
        self.pass[dir as usize].get()
    }

    /// The hook of the response's head: whether it passes.
    #[inline]
    pub(crate) fn passes_response(&self, end: bool) -> bool {
        if self.glancing.get() {
            self.ended[Dir::Response as usize].set(end);
            self.responded.set(true);
        }
        self.glancing.get()
    }

    fn at_glance<R>(
        &self,
        state: &mut State,
        act: impl FnOnce(&mut Glance, &mut Stream<Head>, &mut Cx<'_>, &Site, &Plan) -> R,
    ) -> Option<R> {
        let site = self.site.borrow();
        let site = site.as_deref()?;
        let attrs = OfStream {
            filter: self.filter.get(),
            start: state.start,
        };
        let mut engine = self.worker.engine.borrow_mut();
        let mut cx = Cx {
            worker: &mut engine,
            attrs: &attrs,
        };
        let plan = state.own_plan.as_ref().unwrap_or(&site.plan);
        Some(act(
            &mut state.glance,
            &mut state.stream,
            &mut cx,
            site,
            plan,
        ))
    }
}
