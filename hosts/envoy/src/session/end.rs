//! How a stream ends.

use std::panic::{AssertUnwindSafe, catch_unwind};

use proxy_golang_abi::EndReason;
use proxy_golang_host::engine::{Cut, Dir, Glance, Stream};

use super::{DIRS, Session, State, Way};

impl Session {
    /// Envoy, or another filter, answers.
    pub(crate) fn local_reply(&self) {
        if !self.state.borrow().replied {
            self.local.set(true);
        }
    }

    /// Envoy's stream is over: guests get LOG.
    pub(crate) fn complete(&self) {
        self.worker.heads.next_hook();
        let state = &mut *self.state.borrow_mut();
        if !state.open || state.closed {
            return;
        }
        let replied = state.replied;
        let passed = DIRS
            .map(|dir| !replied && self.pass[dir as usize].get() && self.ended[dir as usize].get());
        // What was accepted takes effect, also if no turn has come between (PXG-ASY-019).
        while state.needs_turns
            && !state.stream.pends()
            && let Some(mail) = self.worker.take_own(self.key.get())
        {
            self.stop_glancing(state);
            self.with(state, |stream, cx| stream.deliver(cx, mail));
        }
        if self.glancing.get() {
            return self.close_glance(state);
        }
        let over = self.with(state, |stream, cx| {
            for dir in DIRS {
                if passed[dir as usize] {
                    stream.body_forwarded(cx, dir);
                }
            }
            if stream.has_ended() {
                stream.close(cx, EndReason::COMPLETE);
            }
            stream.has_ended()
        });
        if !over {
            let (dir, how) = if replied {
                (Dir::Response, Cut::Receiver)
            } else {
                self.cause(state)
            };
            self.with(state, |stream, cx| {
                stream.cut(cx, dir, how);
                stream.close(cx, EndReason::COMPLETE);
            });
        }
        state.closed = true;
    }

    /// Why a stream ended that did not run to its end: Envoy says so in text only.
    fn cause(&self, state: &State) -> (Dir, Cut) {
        let mut details = Vec::new();
        if let Some(filter) = self.filter.get() {
            const RESPONSE_CODE_DETAILS: i32 = 16;
            filter.attribute(RESPONSE_CODE_DETAILS, &mut details);
        }
        let has = |text: &str| details.windows(text.len()).any(|w| w == text.as_bytes());
        let begun = state.ways[1].came.is_some();
        if has("timeout") {
            (Dir::Response, Cut::Timeout)
        } else if has("upstream_reset") || has("protocol_error") {
            (Dir::Response, Cut::Sender)
        } else if begun || self.ended[Dir::Request as usize].get() {
            // A client that has said everything can only stop listening.
            (Dir::Response, Cut::Receiver)
        } else {
            (Dir::Request, Cut::Sender)
        }
    }

    pub(super) fn close(&self, state: &mut State, reason: EndReason) {
        if !state.closed {
            self.with(state, |stream, cx| stream.close(cx, reason));
            state.closed = true;
        }
    }

    /// [`Session::end`] has failed: the rest of it. A stream that stayed a carrier would take its worker's rings with it.
    pub(crate) fn end_after_fault(&self) {
        if let Ok(mut state) = self.state.try_borrow_mut() {
            state.open = false;
            state.stream = Stream::spare();
        }
        self.end();
    }

    /// Envoy lets go of the stream.
    pub(crate) fn end(&self) {
        if self.site.borrow().is_none() {
            return;
        }
        self.filter.set(None);
        self.worker.heads.next_hook();
        let (scheduler, needed) = {
            let state = &mut *self.state.borrow_mut();
            let open = std::mem::take(&mut state.open);
            if self.glancing.get() {
                self.close_glance(state);
            }
            if open && state.used {
                self.close(state, EndReason::CLIENT_ABORT);
                state.stream.let_go();
            }
            state.closed = true;
            state.reply = None;
            let needed = std::mem::take(&mut state.needs_turns);
            (state.scheduler.take(), needed)
        };
        if needed {
            self.worker.turns_needed(-1);
        }
        if scheduler.is_some() {
            self.worker.leave(self.slot());
        }
        drop(scheduler);
        self.site.take();
        self.key.set(u64::MAX << 32 | u64::from(self.slot()));
        if !self.worker.give_back(self.slot()) {
            self.state.borrow_mut().stream = Stream::spare();
        }
    }

    /// Our own code has failed on this stream: it ends, and the process goes on.
    pub(crate) fn give_up(&self) {
        let Some(filter) = self.filter.get() else {
            return;
        };
        self.worker.heads.next_hook();
        if let Ok(mut state) = self.state.try_borrow_mut() {
            let state = &mut *state;
            // Guests hear of the end as of any other, unless that is what fails.
            let told = catch_unwind(AssertUnwindSafe(|| {
                if self.glancing.get() {
                    self.close_glance(state);
                } else {
                    self.close(state, EndReason::ERROR);
                }
            }));
            if told.is_err() {
                state.stream = Stream::spare();
                state.glance = Glance::default();
                self.glancing.set(false);
            }
            state.used = true;
            state.closed = true;
            // What it was lent may be gone by its turn: nobody looks at it any more.
            state.ways.iter_mut().for_each(Way::renew);
            state.reply = None;
            state.reset = true;
            state.asked = false;
            self.ask(state, filter);
        }
    }
}
