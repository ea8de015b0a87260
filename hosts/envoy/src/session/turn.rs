//! What a stream does outside of its hooks: a turn of its own, or of its worker's.

use proxy_golang_abi::LogLevel;
use proxy_golang_host::engine::{Dir, Mail, Stream};

use super::message::release;
use super::{DIRS, Session, State};
use crate::reply::{Next, Reply, Send};
use crate::sys::{self, Filter};

impl Session {
    /// \[turn\] A guest has answered, woken or applied.
    pub(crate) fn deliver(&self, mail: Mail) {
        self.worker.heads.next_hook();
        {
            let state = &mut *self.state.borrow_mut();
            if !state.open || state.closed {
                return;
            }
            self.stop_glancing(state);
            self.with(state, |stream, cx| stream.deliver(cx, mail));
        }
        self.go_on();
    }

    /// \[turn\] A deadline has passed.
    pub(crate) fn expire(&self) {
        self.worker.heads.next_hook();
        {
            let state = &mut *self.state.borrow_mut();
            if !state.open || state.closed {
                return;
            }
            self.with(state, Stream::timer);
        }
        self.go_on();
    }

    /// The turn that this stream asked for, or that it carries for its worker.
    pub(crate) fn scheduled(&self) {
        self.worker.heads.next_hook();
        if std::mem::take(&mut self.state.borrow_mut().asked) {
            self.go_on();
        }
        self.worker.turn();
    }

    /// Does, outside of any hook of this stream, what can be done.
    fn go_on(&self) {
        loop {
            let Some(filter) = self.filter.get() else {
                return;
            };
            let step = {
                let state = &mut *self.state.borrow_mut();
                let step = self.step(state, filter);
                self.own(state, filter, None);
                if matches!(step, Step::Rest) {
                    self.note_deadline(state, filter);
                }
                step
            };
            match step {
                Step::Rest => return,
                Step::Reset => {
                    filter.reset(b"proxy_golang_reset");
                    return;
                }
                Step::Reply(reply) => {
                    reply.send(filter);
                    return;
                }
                Step::Send(send) => send.perform(filter),
                Step::Go(Dir::Request) => filter.continue_request(),
                Step::Go(Dir::Response) => filter.continue_response(),
            }
            self.worker.heads.next_hook();
        }
    }

    fn step(&self, state: &mut State, filter: Filter) -> Step {
        if state.reply.is_some() && !state.closed {
            // There may be room again for what the engine has of it.
            self.with(state, |_, _| ());
        }
        if std::mem::take(&mut state.reset) {
            return Step::Reset;
        }
        if state.closed || !state.open {
            return Step::Rest;
        }
        let begun = state.ways[1].came.is_some();
        if let Some(reply) = &mut state.reply {
            let Some(next) = reply.next(begun) else {
                return Step::Rest;
            };
            state.replied = true;
            self.pass.iter().for_each(|pass| pass.set(true));
            return match next {
                Next::Whole => state.reply.take().map_or(Step::Rest, Step::Reply),
                Next::Part(send) => Step::Send(send),
                Next::TooLong => {
                    sys::log(
                        LogLevel::WARN,
                        "proxy_golang: a reply is too long: Envoy streams none once the response has begun, and of one that \
                         has to be kept until its end at most 1 MiB is. Stream it from a request phase",
                    );
                    Step::Reset
                }
            };
        }
        for dir in DIRS {
            if self.pass[dir as usize].get() || state.ways[dir as usize].came.is_none() {
                continue;
            }
            if state.ways[dir as usize].stopped {
                self.feed(state, filter, dir, false);
            }
            if state.reset || state.reply.is_some() {
                return self.step(state, filter);
            }
            if self.may_go(state, filter, dir, 0) {
                let way = &mut state.ways[dir as usize];
                release(way, filter, dir, false);
                way.stopped = false;
                self.pass_if_skipped(state, dir);
                return Step::Go(dir);
            }
        }
        Step::Rest
    }

    /// The client takes no more of a streamed reply at the moment, or takes some again.
    pub(crate) fn watermark(&self, above: bool) {
        self.blocked.set(above);
        if above {
            return;
        }
        // Nobody holds the state while Envoy runs other code; if somebody did, the reply would go on with what comes next.
        if let (Some(filter), Ok(mut state)) = (self.filter.get(), self.state.try_borrow_mut())
            && state.reply.is_some()
            && !state.closed
        {
            self.ask(&mut state, filter);
        }
    }
}

/// What a turn does next.
enum Step {
    /// Nothing.
    Rest,
    Reset,
    /// The whole reply at once.
    Reply(Reply),
    /// A part of a streamed reply.
    Send(Send),
    /// Envoy goes on in a direction.
    Go(Dir),
}
