//! A message on its way: Envoy's hooks for heads, bodies and trailers.

use proxy_golang_abi::EndReason;
use proxy_golang_host::engine::{BodyLength, Dir, Fields};

use super::{
    At, CONTINUE, DIRS, STOP, STOP_AND_DROP, STOP_AND_KEEP, Session, State, Way, buffered, own,
    received, trailers_of,
};
use crate::reply::Reply;
use crate::site::Route;
use crate::sys::{Filter, Head, HeaderOf};

impl Session {
    /// A head hook of the request.
    pub(crate) fn request_headers(&self, route: Option<&Route>, end: bool) -> i32 {
        let Some(filter) = self.filter.get() else {
            return CONTINUE;
        };
        self.worker.heads.next_hook();
        self.strip(filter);
        self.open(filter, route, Dir::Request);
        if self.pass[0].get() {
            return CONTINUE;
        }
        self.ended[0].set(end);
        let head = self.worker.heads.live(filter, HeaderOf::Request);
        let (length, tunnel) = if end {
            (BodyLength::Exact(0), false)
        } else {
            framing_of(&head)
        };
        if tunnel && has_body(&head) {
            // Envoy has made it a tunnel already, whose bytes no guest would see (PXG-EVT-022).
            self.close(&mut self.state.borrow_mut(), EndReason::ERROR);
            self.pass.iter().for_each(|pass| pass.set(true));
            filter.send_response(400, &[], b"", b"proxy_golang.upgrade_with_a_body");
            return STOP;
        }
        if self.glancing.get() {
            return if self.glance(head, length, tunnel) {
                CONTINUE
            } else {
                self.after(Dir::Request, At::Head)
            };
        }
        {
            let state = &mut *self.state.borrow_mut();
            state.ways[0].request_came(length, tunnel, end);
            self.with(state, |stream, cx| stream.request_head(cx, head, length));
        }
        self.after(Dir::Request, At::Head)
    }

    /// Removes fields that only guests may set, also where no guest runs, and in the spelling with `_` that many
    /// applications take for the same (PXG-SEC-005).
    fn strip(&self, filter: Filter) {
        let site = self.site.borrow();
        let Some(site) = site.as_ref().filter(|site| !site.stripped.is_empty()) else {
            return;
        };
        let head = self.worker.heads.live(filter, HeaderOf::Request);
        let spelt: Vec<Vec<u8>> = head
            .iter()
            .filter(|(name, _)| site.stripped.iter().any(|s| same_field(s.as_bytes(), name)))
            .map(|(name, _)| name.to_vec())
            .collect();
        for name in &spelt {
            filter.set_field(HeaderOf::Request, name, None);
        }
        if !spelt.is_empty() {
            self.worker.heads.next_hook();
        }
    }

    /// A head hook of the response.
    pub(crate) fn response_headers(&self, route: Option<&Route>, end: bool) -> i32 {
        let Some(filter) = self.filter.get() else {
            return CONTINUE;
        };
        self.ended[1].set(end);
        self.open(filter, route, Dir::Response);
        if self.pass[1].get() {
            return CONTINUE;
        }
        self.worker.heads.next_hook();
        {
            let state = &mut *self.state.borrow_mut();
            if state.replied {
                return CONTINUE;
            }
            if state.stream.skip_response(BodyLength::Unknown) {
                self.pass[1].set(true);
                return CONTINUE;
            }
            let head = self.worker.heads.live(filter, HeaderOf::Response);
            let status = head.value(b":status").unwrap_or_default();
            let upgraded =
                state.ways[0].tunnel && (status == b"101" || status.first() == Some(&b'2'));
            let no_body = upgraded
                || matches!(status, b"101" | b"204" | b"304")
                || (end && filter.field(HeaderOf::Request, b":method").as_deref() == Some(b"HEAD"));
            let length = if no_body {
                BodyLength::None
            } else if end {
                BodyLength::Exact(0)
            } else {
                framing_of(&head).0
            };
            if self.local.get() {
                self.pass[0].set(true);
                if !self.with(state, |stream, cx| stream.host_responds(cx, &head, length)) {
                    self.pass[1].set(true);
                    return CONTINUE;
                }
            }
            let way = &mut state.ways[1];
            way.came = Some(length);
            way.tunnel = upgraded;
            way.end_fed = matches!(length, BodyLength::None | BodyLength::Exact(0));
            self.with(state, |stream, cx| {
                if upgraded {
                    stream.upgraded();
                }
                stream.response_head(cx, head, length);
            });
        }
        self.after(Dir::Response, At::Head)
    }

    /// A body hook.
    pub(crate) fn body(&self, dir: Dir, end: bool) -> i32 {
        if self.passes(dir, end) {
            return CONTINUE;
        }
        let Some(filter) = self.filter.get() else {
            return CONTINUE;
        };
        self.worker.heads.next_hook();
        {
            let state = &mut *self.state.borrow_mut();
            if state.reset || state.reply.is_some() || state.closed {
                return STOP_AND_DROP;
            }
            if state.replied {
                return CONTINUE;
            }
            self.feed(state, filter, dir, true);
        }
        self.after(dir, At::Body)
    }

    /// A trailers hook.
    pub(crate) fn trailers(&self, dir: Dir) -> i32 {
        if self.passes(dir, true) {
            return CONTINUE;
        }
        let Some(filter) = self.filter.get() else {
            return CONTINUE;
        };
        self.worker.heads.next_hook();
        {
            let state = &mut *self.state.borrow_mut();
            if state.reset || state.reply.is_some() || state.closed {
                return STOP;
            }
            if state.replied {
                return CONTINUE;
            }
            state.ways[dir as usize].trailers = true;
            self.feed(state, filter, dir, false);
        }
        self.after(dir, At::Trailers)
    }

    /// Gives the engine what Envoy has and it has not, if it can use it.
    pub(super) fn feed(&self, state: &mut State, filter: Filter, dir: Dir, in_body_hook: bool) {
        let ended = self.ended[dir as usize].get();
        let way = &mut state.ways[dir as usize];
        if way.end_fed || way.came.is_none() {
            return;
        }
        let kept = filter.body_len(buffered(dir));
        let new = if in_body_hook {
            filter.body_len(received(dir))
        } else {
            0
        };
        if kept + new == way.fed && !ended {
            return;
        }
        if !state.stream.takes(dir) {
            return;
        }
        if let Some(limit) = state.stream.whole_limit(dir)
            && !ended
            && kept + new <= limit
        {
            return;
        }
        let mut pieces = Vec::new();
        filter.lend_body(buffered(dir), way.fed, &mut pieces);
        if in_body_hook {
            let fed = way.fed.saturating_sub(kept);
            filter.lend_body(received(dir), fed, &mut pieces);
        }
        way.fed = kept + new;
        way.end_fed = ended;
        let end = ended.then(|| {
            way.trailers
                .then(|| self.worker.heads.live(filter, trailers_of(dir)))
        });
        self.with(state, |stream, cx| stream.feed(cx, dir, pieces, end));
    }

    /// What follows on a hook of `dir`. Answers the hook's status.
    pub(super) fn after(&self, dir: Dir, at: At) -> i32 {
        let stop = if at == At::Body { STOP_AND_KEEP } else { STOP };
        let Some(filter) = self.filter.get() else {
            return stop;
        };
        let in_body_hook = (at == At::Body).then_some(dir);
        let reply = {
            let state = &mut *self.state.borrow_mut();
            self.take_early(state, filter, dir, at);
            if state.reset || state.reply.is_some() {
                self.own(state, filter, in_body_hook);
                let begun = state.ways[1].came.is_some();
                let whole = state.reply.as_ref().is_some_and(Reply::is_plain);
                if state.reset || begun || !whole {
                    self.ask(state, filter);
                    return stop;
                }
                state.replied = true;
                self.pass.iter().for_each(|pass| pass.set(true));
                state.reply.take()
            } else {
                let status = self.verdict(state, filter, dir, at);
                if DIRS
                    .iter()
                    .any(|other| *other != dir && self.may_go(state, filter, *other, 0))
                {
                    self.ask(state, filter);
                }
                if status != CONTINUE {
                    self.own(state, filter, in_body_hook);
                    self.wait(state, filter);
                }
                return status;
            }
        };
        if let Some(reply) = reply {
            // Envoy sends it when this hook has returned.
            reply.send(filter);
        }
        stop
    }

    /// What was answered before the event returned takes effect without a pause. Mail of other streams waits for a turn.
    fn take_early(&self, state: &mut State, filter: Filter, dir: Dir, at: At) {
        while state.stream.pends()
            && let Some(mail) = self.worker.take_own(self.key.get())
        {
            self.with(state, |stream, cx| stream.deliver(cx, mail));
            if at != At::Head && !state.reset && state.reply.is_none() {
                self.feed(state, filter, dir, at == At::Body);
            }
        }
    }

    /// Whether the hook's direction goes on.
    fn verdict(&self, state: &mut State, filter: Filter, dir: Dir, at: At) -> i32 {
        let stop = if at == At::Body { STOP_AND_KEEP } else { STOP };
        let new = if at == At::Body {
            filter.body_len(received(dir))
        } else {
            0
        };
        if !self.is_free(state, filter, dir, new) {
            state.ways[dir as usize].stopped = true;
            return stop;
        }
        let way = &mut state.ways[dir as usize];
        if at == At::Trailers
            && way.stopped
            && !way.out.is_empty()
            && filter.body_len(buffered(dir)) == 0
        {
            // From this hook Envoy would send bytes before the headers that it still holds.
            self.ask(state, filter);
            return stop;
        }
        release(way, filter, dir, at == At::Body);
        way.stopped = false;
        self.pass_if_skipped(state, dir);
        CONTINUE
    }

    /// Has the hooks of a direction answer at once when no guest wants anything more of it.
    pub(super) fn pass_if_skipped(&self, state: &State, dir: Dir) {
        let way = &state.ways[dir as usize];
        if way.tunnel || state.stream.bodies_skipped(dir) {
            self.pass[dir as usize].set(true);
        }
    }

    /// Whether the engine has let go all that Envoy has of a direction; `new` bytes of it are in a body hook's own buffer.
    fn is_free(&self, state: &State, filter: Filter, dir: Dir, new: u64) -> bool {
        let way = &state.ways[dir as usize];
        let ended = self.ended[dir as usize].get();
        if !way.head_out || way.tunnel {
            return way.head_out;
        }
        // With nothing fed and nothing new there is nothing in Envoy's buffers, but for what came while nothing was taken.
        let all_fed = || filter.body_len(buffered(dir)) + new == way.fed;
        (!ended || way.out_end) && state.stream.held(dir) == 0 && all_fed()
    }

    /// Whether Envoy waits in a direction for what may go on.
    pub(super) fn may_go(&self, state: &State, filter: Filter, dir: Dir, new: u64) -> bool {
        state.ways[dir as usize].stopped && self.is_free(state, filter, dir, new)
    }
}

/// Whether two names are one where `_` stands for `-`; Envoy's are in lower case.
fn same_field(a: &[u8], b: &[u8]) -> bool {
    let dash = |c: &u8| if *c == b'_' { b'-' } else { *c };
    a.len() == b.len() && a.iter().map(dash).eq(b.iter().map(dash))
}

/// Makes Envoy's buffers hold what the guests let go on.
pub(super) fn release(way: &mut Way, filter: Filter, dir: Dir, in_body_hook: bool) {
    if way.tunnel || (way.fed == 0 && way.out.is_empty()) {
        return;
    }
    let both = [buffered(dir), received(dir)];
    let buffers = if in_body_hook { &both[..] } else { &both[..1] };
    if !filter.body_is(buffers, &way.out) {
        own(&mut way.out);
        for buffer in buffers {
            filter.drain_body(*buffer);
        }
        let to = if in_body_hook {
            received(dir)
        } else {
            buffered(dir)
        };
        // Each is gone when the next one is copied.
        for piece in way.out.drain(..) {
            filter.append_body(to, &piece);
        }
    }
    way.out.clear();
    way.fed = 0;
}

/// How long the body behind a head is, which does not end the message; and whether the message ends with it all the same,
/// for what follows, if it is accepted, is a tunnel.
fn framing_of(head: &Head) -> (BodyLength, bool) {
    let mut length = BodyLength::Unknown;
    for (name, value) in head.iter() {
        // By length first: most names are none of these.
        match name.len() {
            7 if name == b"upgrade" || (name == b":method" && value == b"CONNECT") => {
                return (BodyLength::Exact(0), true);
            }
            14 if name == b"content-length" => {
                let number = std::str::from_utf8(value).ok().and_then(|t| t.parse().ok());
                length = number.map_or(BodyLength::Unknown, BodyLength::Exact);
            }
            _ => {}
        }
    }
    (length, false)
}

/// Whether a request has a body, whatever else it asks for.
fn has_body(head: &Head) -> bool {
    head.iter().any(|(name, value)| {
        name == b"transfer-encoding" || (name == b"content-length" && value != b"0")
    })
}

#[cfg(test)]
mod tests {
    use super::same_field;

    #[test]
    fn an_underscore_stands_for_a_dash() {
        assert!(same_field(b"x-user-id", b"x_user-id"));
        assert!(!same_field(b"x-user-id", b"x-user-i"));
        assert!(!same_field(b"x-user-id", b"x-user-ip"));
    }
}
