//! One stream of Envoy at one of our filters: drives the engine's stream by Envoy's hooks.
//!
//! Envoy keeps the message; the engine decides. Heads and trailers are edited where they are. A body's bytes are lent to
//! the engine for the length of a hook; what no guest lets go on stays in Envoy's buffer, under Envoy's watermarks, with a
//! copy of what guests were shown of it. When all of a direction may go on, Envoy's buffers either hold just that, and
//! nothing is touched, or they are drained and filled with what the guests made of them.
//!
//! Nothing is borrowed while a call runs that can come back into this module (`continue`, `send`, `reset`): other filters'
//! hooks, this one's own next hook, and the end of the stream may be nested in it. From inside a hook only the reply to a
//! request is sent at once, which Envoy defers; all else of the kind waits for a turn of its own, asked for by a commit on
//! the stream's scheduler.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use proxy_golang_abi::{EndReason, LogLevel};
use proxy_golang_host::engine::{
    BodyLength, Cut, Cx, Dir, Fields, Mail, Part, Signal, Stream, StreamLimits,
};

use crate::attributes::OfStream;
use crate::reply::{Next, Reply, Send};
use crate::site::{Route, Site};
use crate::sys::{self, BodyOf, Filter, Head, HeaderOf, Scheduler, next_hook};
use crate::worker::{Worker, slot_of};

/// Room in Envoy's buffer beyond what guests may hold, so that the host sees the excess before Envoy does.
const SLACK: u64 = 256 * 1024;

/// What a head or trailers hook answers.
pub(crate) const CONTINUE: i32 = 0;
pub(crate) const STOP: i32 = 1;
/// What a body hook answers: keep the bytes, and pause the sender at the watermark instead of answering 413.
pub(crate) const STOP_AND_KEEP: i32 = 2;
/// The same, and drop the bytes.
pub(crate) const STOP_AND_DROP: i32 = 3;

/// A stream.
pub(crate) struct Session {
    worker: Rc<Worker>,
    key: Cell<u64>,
    /// Until Envoy destroys its object.
    filter: Cell<Option<Filter>>,
    site: RefCell<Option<Arc<Site>>>,
    /// No guest wants anything more of the direction.
    pass: [Cell<bool>; 2],
    /// Envoy has shown the end of the direction.
    ended: [Cell<bool>; 2],
    /// Envoy, or another filter, answers in the upstream's stead.
    local: Cell<bool>,
    state: RefCell<State>,
}

struct State {
    stream: Stream<Head>,
    /// The chain is chosen.
    open: bool,
    closed: bool,
    ways: [Way; 2],
    reply: Option<Reply>,
    /// The reply is ours: Envoy's hooks for it are none of the guests' business.
    replied: bool,
    reset: bool,
    scheduler: Option<Arc<Scheduler>>,
    /// The client takes no more at the moment.
    blocked: bool,
    /// A turn of this stream's own is asked for.
    asked: bool,
}

/// One direction as Envoy has it.
#[derive(Default)]
struct Way {
    /// The head has come.
    came: Option<BodyLength>,
    /// Envoy waits for `continue`.
    stopped: bool,
    /// The engine has let the head go.
    head_out: bool,
    /// Bytes that the engine has let go, since Envoy went on last.
    out: Vec<Bytes>,
    out_end: bool,
    /// Bytes in Envoy's buffers that the engine has been fed.
    fed: u64,
    end_fed: bool,
    trailers: bool,
    /// What follows the head is a tunnel's, and Envoy's alone.
    tunnel: bool,
}

impl Way {
    fn renew(&mut self) {
        self.out.clear();
        let out = std::mem::take(&mut self.out);
        *self = Self {
            out,
            ..Self::default()
        };
    }
}

/// In which hook of a direction something runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Head,
    Body,
    Trailers,
}

const fn received(dir: Dir) -> BodyOf {
    match dir {
        Dir::Request => BodyOf::ReceivedRequest,
        Dir::Response => BodyOf::ReceivedResponse,
    }
}

const fn buffered(dir: Dir) -> BodyOf {
    match dir {
        Dir::Request => BodyOf::BufferedRequest,
        Dir::Response => BodyOf::BufferedResponse,
    }
}

const fn head_of(dir: Dir) -> HeaderOf {
    match dir {
        Dir::Request => HeaderOf::Request,
        Dir::Response => HeaderOf::Response,
    }
}

const fn trailers_of(dir: Dir) -> HeaderOf {
    match dir {
        Dir::Request => HeaderOf::RequestTrailers,
        Dir::Response => HeaderOf::ResponseTrailers,
    }
}

const DIRS: [Dir; 2] = [Dir::Request, Dir::Response];

impl Session {
    pub(crate) fn new(worker: Rc<Worker>, key: u64) -> Self {
        Self {
            worker,
            key: Cell::new(key),
            filter: Cell::new(None),
            site: RefCell::new(None),
            pass: Default::default(),
            ended: Default::default(),
            local: Cell::new(false),
            state: RefCell::new(State {
                stream: Stream::spare(),
                open: false,
                closed: true,
                ways: Default::default(),
                reply: None,
                replied: false,
                reset: false,
                scheduler: None,
                blocked: false,
                asked: false,
            }),
        }
    }

    pub(crate) fn key(&self) -> u64 {
        self.key.get()
    }

    pub(crate) fn set_key(&self, key: u64) {
        self.key.set(key);
    }

    fn slot(&self) -> u32 {
        slot_of(self.key.get())
    }

    /// Whether the chain is chosen.
    pub(crate) fn is_open(&self) -> bool {
        self.state.try_borrow().is_ok_and(|state| state.open)
    }

    /// A new stream of Envoy's; its chain is chosen at its first hook, when it has a route.
    pub(crate) fn begin(&self, filter: Filter, site: Arc<Site>) {
        self.filter.set(Some(filter));
        *self.site.borrow_mut() = Some(site);
        for flag in self.pass.iter().chain(&self.ended) {
            flag.set(false);
        }
        self.local.set(false);
        let state = &mut *self.state.borrow_mut();
        state.open = false;
        state.closed = false;
        state.ways.iter_mut().for_each(Way::renew);
        state.reply = None;
        state.replied = false;
        state.reset = false;
        state.blocked = false;
        state.asked = false;
    }

    /// Chooses the chain. With none of its guests left, the stream passes untouched.
    fn open(&self, filter: Filter, route: Option<&Route>) {
        let state = &mut *self.state.borrow_mut();
        if state.open {
            return;
        }
        state.open = true;
        let site = self.site.borrow();
        let Some(site) = &*site else { return };
        let own = route.and_then(|route| site.plan_for(route));
        let plan = own.as_ref().unwrap_or(&site.plan);
        if plan.chain.filters().is_empty() {
            state.closed = true;
            self.pass.iter().for_each(|pass| pass.set(true));
            return;
        }
        self.worker.know(&plan.libraries);
        let limits = StreamLimits {
            failure_status: site.settings.failure_status,
            adds_trailers: false,
            driver_closes: true,
            buffer: u64::MAX,
            ..StreamLimits::default()
        };
        state.stream.renew(&plan.chain, self.key.get(), limits);
        if plan.may_call_back {
            self.join(state, filter);
        }
    }

    /// Makes this stream a carrier of its worker's rings.
    fn join(&self, state: &mut State, filter: Filter) {
        if state.scheduler.is_none()
            && let Some(scheduler) = filter.scheduler()
        {
            let scheduler = Arc::new(scheduler);
            state.scheduler = Some(Arc::clone(&scheduler));
            self.worker.bell.join(self.slot(), scheduler);
        }
    }

    /// Asks for a turn of this stream's own.
    fn ask(&self, state: &mut State, filter: Filter) {
        if !state.asked {
            self.join(state, filter);
            if let Some(scheduler) = &state.scheduler {
                state.asked = true;
                scheduler.commit();
            }
        }
    }

    /// Lets the engine do something, and takes what comes out.
    fn with<R>(
        &self,
        state: &mut State,
        act: impl FnOnce(&mut Stream<Head>, &mut Cx<'_>) -> R,
    ) -> R {
        let attrs = OfStream(self.filter.get());
        let result = {
            let engine = &mut *self.worker.engine.borrow_mut();
            let mut cx = Cx {
                worker: engine,
                attrs: &attrs,
            };
            let result = act(&mut state.stream, &mut cx);
            self.take(state, &mut cx);
            if state.stream.metadata_changed() {
                self.metadata(state);
            }
            result
        };
        self.worker.after_guests();
        result
    }

    /// Takes signals and parts out of the engine.
    fn take(&self, state: &mut State, cx: &mut Cx<'_>) {
        loop {
            while let Some(signal) = state.stream.signal() {
                self.signal(state, signal);
            }
            if let Some(part) = state.stream.request_part(cx) {
                self.part(state, Dir::Request, part);
                continue;
            }
            if !state.blocked
                && let Some(part) = state.stream.response_part(cx)
            {
                self.part(state, Dir::Response, part);
                continue;
            }
            return;
        }
    }

    fn signal(&self, state: &mut State, signal: Signal) {
        match signal {
            Signal::Route(cluster) => self.route(cluster.as_deref()),
            // The parts of the reply follow.
            Signal::CancelUpstream | Signal::Flush(_) => {}
            Signal::ResetClient => state.reset = true,
            Signal::GuestFailed(failure) => sys::log(
                LogLevel::WARN,
                &format!(
                    "proxy_golang: guest {:?} failed on a stream: {} in {}: {}",
                    failure.filter,
                    failure.reason.name(),
                    phase_name(failure.phase),
                    failure.text
                ),
            ),
            Signal::Finished => state.closed = true,
        }
    }

    /// METADATA_SET is Envoy's dynamic metadata, too, and where the operator says so, filter state.
    fn metadata(&self, state: &State) {
        let (Some(filter), Some(site)) = (self.filter.get(), &*self.site.borrow()) else {
            return;
        };
        for (namespace, key, value) in state.stream.metadata() {
            filter.set_metadata(namespace, key, value);
            let name = std::str::from_utf8(key).ok();
            if let Some(name) = name.and_then(|key| site.settings.filter_state.get(key)) {
                filter.set_filter_state(name.as_bytes(), value);
            }
        }
    }

    /// ROUTE: the cluster's name goes into a field that the route reads.
    fn route(&self, cluster: Option<&[u8]>) {
        let (Some(filter), Some(site)) = (self.filter.get(), &*self.site.borrow()) else {
            return;
        };
        if let Some(cluster) = cluster {
            let field = site.settings.cluster_field.as_bytes();
            filter.set_field(HeaderOf::Request, field, Some(cluster));
            next_hook();
        }
        filter.clear_route_cache();
    }

    fn part(&self, state: &mut State, dir: Dir, part: Part<Head>) {
        if let Part::Head {
            head,
            local: true,
            end,
            ..
        } = part
        {
            let details = state.stream.details();
            state.reply = Some(Reply::new(head, end, details));
            return;
        }
        if dir == Dir::Response
            && let Some(reply) = &mut state.reply
        {
            return reply.take(part);
        }
        let way = &mut state.ways[dir as usize];
        match part {
            Part::Head { length, end, .. } => {
                way.head_out = true;
                way.out_end = end;
                if way.came != Some(length) && !self.pass[dir as usize].get() {
                    self.frame(dir, length);
                }
            }
            Part::Data(bytes) => way.out.push(bytes),
            // Edited where they are.
            Part::Trailers(_) | Part::End => way.out_end = true,
        }
    }

    /// Sets or removes `content-length` where guests have changed a body's length.
    fn frame(&self, dir: Dir, length: BodyLength) {
        let Some(filter) = self.filter.get() else {
            return;
        };
        const NAME: &[u8] = b"content-length";
        match length {
            BodyLength::None => {}
            BodyLength::Exact(n) => {
                filter.set_field(head_of(dir), NAME, Some(n.to_string().as_bytes()));
            }
            BodyLength::Unknown => filter.set_field(head_of(dir), NAME, None),
        }
    }

    /// A head hook of the request.
    pub(crate) fn request_headers(&self, route: Option<&Route>, end: bool) -> i32 {
        let Some(filter) = self.filter.get() else {
            return CONTINUE;
        };
        self.open(filter, route);
        if self.pass[0].get() {
            return CONTINUE;
        }
        next_hook();
        self.ended[0].set(end);
        {
            let state = &mut *self.state.borrow_mut();
            self.strip(filter);
            let head = Head::live(filter, HeaderOf::Request);
            let tunnel = !end && asks_for_tunnel(&head);
            let length = if end || tunnel {
                BodyLength::Exact(0)
            } else {
                length_of(&head)
            };
            let way = &mut state.ways[0];
            way.came = Some(length);
            way.tunnel = tunnel;
            way.end_fed = end || tunnel;
            self.with(state, |stream, cx| stream.request_head(cx, head, length));
        }
        self.after(Dir::Request, At::Head)
    }

    /// Removes fields that only guests may set.
    fn strip(&self, filter: Filter) {
        if let Some(site) = &*self.site.borrow() {
            for name in &site.settings.strip {
                filter.set_field(HeaderOf::Request, name.as_bytes(), None);
            }
            let routes = site.settings.chain.iter().any(|g| !g.clusters.is_empty());
            if routes {
                let name = site.settings.cluster_field.as_bytes();
                filter.set_field(HeaderOf::Request, name, None);
            }
        }
    }

    /// A head hook of the response.
    pub(crate) fn response_headers(&self, route: Option<&Route>, end: bool) -> i32 {
        let Some(filter) = self.filter.get() else {
            return CONTINUE;
        };
        self.ended[1].set(end);
        self.open(filter, route);
        if self.pass[1].get() {
            return CONTINUE;
        }
        next_hook();
        {
            let state = &mut *self.state.borrow_mut();
            if state.replied {
                return CONTINUE;
            }
            let head = Head::live(filter, HeaderOf::Response);
            if let Some(site) = &*self.site.borrow()
                && !site.plan.response
                && !site.plan.log
                && !self.local.get()
                && state.stream.skip_response(BodyLength::Unknown)
            {
                self.pass[1].set(true);
                return CONTINUE;
            }
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
                length_of(&head)
            };
            if self.local.get() {
                // Without REPLY_REFILTER no guest sees it.
                self.with(state, |stream, cx| stream.local_response(cx, &head, length));
                self.pass[0].set(true);
                self.pass[1].set(true);
                return CONTINUE;
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
        if end {
            self.ended[dir as usize].set(true);
        }
        if self.pass[dir as usize].get() {
            return CONTINUE;
        }
        let Some(filter) = self.filter.get() else {
            return CONTINUE;
        };
        next_hook();
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
        self.ended[dir as usize].set(true);
        if self.pass[dir as usize].get() {
            return CONTINUE;
        }
        let Some(filter) = self.filter.get() else {
            return CONTINUE;
        };
        next_hook();
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
    fn feed(&self, state: &mut State, filter: Filter, dir: Dir, in_body_hook: bool) {
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
        let end = ended.then(|| way.trailers.then(|| Head::live(filter, trailers_of(dir))));
        self.with(state, |stream, cx| stream.feed(cx, dir, pieces, end));
    }

    /// What follows on a hook of `dir`. Answers the hook's status.
    fn after(&self, dir: Dir, at: At) -> i32 {
        let stop = if at == At::Body { STOP_AND_KEEP } else { STOP };
        let Some(filter) = self.filter.get() else {
            return stop;
        };
        let reply = {
            let state = &mut *self.state.borrow_mut();
            self.take_early(state, filter, dir, at);
            if state.reset || state.reply.is_some() {
                self.own(state);
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
                    self.own(state);
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
    fn pass_if_skipped(&self, state: &State, dir: Dir) {
        let way = &state.ways[dir as usize];
        if way.tunnel || state.stream.bodies_skipped(dir) {
            self.pass[dir as usize].set(true);
        }
    }

    /// Whether the engine has let go all that Envoy has of a direction; `new` bytes of it are in a body hook's own buffer.
    fn is_free(&self, state: &State, filter: Filter, dir: Dir, new: u64) -> bool {
        let way = &state.ways[dir as usize];
        let ended = self.ended[dir as usize].get();
        way.head_out
            && (way.tunnel
                || ((!ended || way.out_end)
                    && state.stream.held(dir) == 0
                    && filter.body_len(buffered(dir)) + new == way.fed))
    }

    /// Whether Envoy waits in a direction for what may go on.
    fn may_go(&self, state: &State, filter: Filter, dir: Dir, new: u64) -> bool {
        state.ways[dir as usize].stopped && self.is_free(state, filter, dir, new)
    }

    /// Before a hook is left: what was lent is copied where it is still needed.
    fn own(&self, state: &mut State) {
        for dir in DIRS {
            state.stream.own_bodies(dir);
            own(&mut state.ways[dir as usize].out);
        }
    }

    /// The stream waits: for a guest, for its time to run out, or for more of the body.
    fn wait(&self, state: &mut State, filter: Filter) {
        let held = DIRS.map(|dir| state.stream.max_held(dir));
        let most = held[0].max(held[1]);
        if most > 0 {
            filter.raise_buffer_limit(most + SLACK);
        }
        self.note_deadline(state, filter);
    }

    fn note_deadline(&self, state: &mut State, filter: Filter) {
        let deadline = state.stream.deadline();
        if deadline.is_some() {
            self.join(state, filter);
        }
        if state.scheduler.is_some() {
            self.worker.set_deadline(self.slot(), deadline);
        }
    }

    /// \[turn\] A guest has answered, woken or applied.
    pub(crate) fn deliver(&self, mail: Mail) {
        next_hook();
        {
            let state = &mut *self.state.borrow_mut();
            if !state.open || state.closed {
                return;
            }
            self.with(state, |stream, cx| stream.deliver(cx, mail));
        }
        self.go_on();
    }

    /// \[turn\] A deadline has passed.
    pub(crate) fn expire(&self) {
        next_hook();
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
        next_hook();
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
                self.own(state);
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
            next_hook();
        }
    }

    fn step(&self, state: &mut State, filter: Filter) -> Step {
        if std::mem::take(&mut state.reset) {
            return Step::Reset;
        }
        if state.closed || !state.open {
            return Step::Rest;
        }
        let begun = state.ways[1].came.is_some();
        if let Some(reply) = &mut state.reply {
            if !state.replied || reply.is_streaming() {
                if let Some(next) = reply.next(begun) {
                    state.replied = true;
                    self.pass.iter().for_each(|pass| pass.set(true));
                    return match next {
                        Next::Whole => state.reply.take().map_or(Step::Rest, Step::Reply),
                        Next::Part(send) => Step::Send(send),
                    };
                }
            }
            return Step::Rest;
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

    /// Envoy, or another filter, answers.
    pub(crate) fn local_reply(&self) {
        if !self.state.borrow().replied {
            self.local.set(true);
        }
    }

    /// The client takes no more at the moment, or again.
    pub(crate) fn watermark(&self, above: bool) {
        let Some(filter) = self.filter.get() else {
            return;
        };
        let Ok(mut state) = self.state.try_borrow_mut() else {
            return;
        };
        let state = &mut *state;
        state.blocked = above && state.reply.is_some();
        if !above && state.open && !state.closed && state.reply.is_some() {
            self.with(state, |_, _| ());
            self.ask(state, filter);
        }
    }

    /// Envoy's stream is over: guests get LOG.
    pub(crate) fn complete(&self) {
        next_hook();
        let state = &mut *self.state.borrow_mut();
        if !state.open || state.closed {
            return;
        }
        for dir in DIRS {
            if self.pass[dir as usize].get() && self.ended[dir as usize].get() && !state.replied {
                self.with(state, |stream, cx| stream.body_forwarded(cx, dir));
            }
        }
        if state.replied {
            if state.stream.has_ended() || state.reply.is_none() {
                self.close(state, EndReason::REPLIED);
            } else {
                self.with(state, |stream, cx| {
                    stream.cut(cx, Dir::Response, Cut::Receiver);
                });
            }
        } else if state.stream.has_ended() {
            self.close(state, EndReason::COMPLETE);
        } else {
            let (dir, why) = self.cause(state);
            self.with(state, |stream, cx| stream.cut(cx, dir, why));
        }
        self.close(state, EndReason::COMPLETE);
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
        } else if begun {
            (Dir::Response, Cut::Receiver)
        } else {
            (Dir::Request, Cut::Sender)
        }
    }

    fn close(&self, state: &mut State, reason: EndReason) {
        if !state.closed {
            self.with(state, |stream, cx| stream.close(cx, reason));
            state.closed = true;
        }
    }

    /// Envoy lets go of the stream.
    pub(crate) fn end(&self) {
        self.filter.set(None);
        next_hook();
        let scheduler = {
            let state = &mut *self.state.borrow_mut();
            if state.open {
                self.close(state, EndReason::CLIENT_ABORT);
                state.stream.let_go();
                state.open = false;
            }
            state.closed = true;
            state.reply = None;
            state.scheduler.take()
        };
        if scheduler.is_some() && self.worker.bell.leave(self.slot()) {
            self.worker.nobody_left();
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
        if let Ok(mut state) = self.state.try_borrow_mut() {
            state.reset = true;
            state.asked = false;
            state.reply = None;
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

/// Makes Envoy's buffers hold what the guests let go on.
fn release(way: &mut Way, filter: Filter, dir: Dir, in_body_hook: bool) {
    if way.tunnel {
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
        for piece in &way.out {
            filter.append_body(to, piece);
        }
    }
    way.out.clear();
    way.fed = 0;
}

/// Copies what may be lent.
fn own(pieces: &mut [Bytes]) {
    for piece in pieces {
        if !piece.is_unique() {
            *piece = Bytes::copy_from_slice(piece);
        }
    }
}

/// Whether a request is over with its head, and what follows, if it is accepted, is a tunnel.
fn asks_for_tunnel(head: &Head) -> bool {
    head.iter()
        .any(|(name, value)| name == b"upgrade" || (name == b":method" && value == b"CONNECT"))
}

/// How long a body is, as far as its head tells. No end with the head.
fn length_of(head: &Head) -> BodyLength {
    let text = head
        .value(b"content-length")
        .and_then(|v| std::str::from_utf8(v).ok());
    text.and_then(|t| t.parse().ok())
        .map_or(BodyLength::Unknown, BodyLength::Exact)
}

fn phase_name(phase: proxy_golang_abi::Phase) -> &'static str {
    let known = proxy_golang_host::engine::PHASES
        .iter()
        .find(|(known, _)| *known == phase);
    known.map_or("apply", |(_, name)| name)
}
