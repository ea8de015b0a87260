//! One stream of Envoy at one of our filters: drives the engine's stream by Envoy's hooks.
//!
//! Envoy keeps the message; the engine decides. Heads and trailers are edited where they are. A body's bytes are lent to
//! the engine for the length of a hook. What guests have been shown and do not let go on by its end moves from Envoy's
//! buffer to ours; what comes meanwhile stays in Envoy's, under Envoy's watermarks. When all of a direction may go on,
//! Envoy's buffers either hold just that, and nothing is touched, or they are drained and filled with what the guests made
//! of them.
//!
//! Nothing is borrowed while a call runs that can come back into this module (`continue`, `send`, `reset`): other filters'
//! hooks, this one's own next hook, and the end of the stream may be nested in it. From inside a hook only the reply to a
//! request is sent at once, which Envoy defers; all else of the kind waits for a turn of its own, asked for by a commit on
//! the stream's scheduler.
//!
//! A stream whose only guest looks at the request's head and at nothing else is not made (`glance`): the engine is asked for
//! one when something happens on it that only a stream can do.

mod end;
mod glance;
mod message;
mod turn;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use proxy_golang_abi::LogLevel;
use proxy_golang_host::engine::{BodyLength, Cx, Dir, Glance, Part, Signal, Stream};

use crate::attributes::{self, OfStream};
use crate::reply::Reply;
use crate::site::{Plan, Route, Site};
use crate::sys::{self, BodyOf, Filter, Head, HeaderOf, Scheduler};
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
    /// The client takes no more of a streamed reply at the moment.
    blocked: Cell<bool>,
    /// What there is of the stream is `State::glance`, and both directions pass.
    glancing: Cell<bool>,
    /// While `glancing`: the response has come.
    responded: Cell<bool>,
    state: RefCell<State>,
}

struct State {
    stream: Stream<Head>,
    glance: Glance,
    /// While `glancing`: the plan, if it is a route's own, and whether a tunnel was asked for.
    own_plan: Option<Plan>,
    tunnel: bool,
    /// `stream` and `ways` have been in use since they were as new.
    used: bool,
    /// The chain is chosen.
    open: bool,
    closed: bool,
    ways: [Way; 2],
    reply: Option<Reply>,
    /// The reply is ours: Envoy's hooks for it are none of the guests' business.
    replied: bool,
    reset: bool,
    /// Guests may send mail, or a deadline runs: the worker has to get a turn when one is asked for.
    needs_turns: bool,
    scheduler: Option<Arc<Scheduler>>,
    /// A turn of this stream's own is asked for.
    asked: bool,
    /// For attributes.
    start: Option<attributes::Start>,
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
    /// The request's head has come; `tunnel`: what follows is none of its body.
    fn request_came(&mut self, length: BodyLength, tunnel: bool, end: bool) {
        self.came = Some(length);
        self.tunnel = tunnel;
        self.end_fed = end || tunnel;
    }

    fn renew(&mut self) {
        // All by name: a new one is not forgotten here.
        let Self {
            came,
            stopped,
            head_out,
            out,
            out_end,
            fed,
            end_fed,
            trailers,
            tunnel,
        } = self;
        *came = None;
        for flag in [stopped, head_out, out_end, end_fed, trailers, tunnel] {
            *flag = false;
        }
        out.clear();
        *fed = 0;
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
            blocked: Cell::new(false),
            glancing: Cell::new(false),
            responded: Cell::new(false),
            state: RefCell::new(State {
                stream: Stream::spare(),
                glance: Glance::default(),
                own_plan: None,
                tunnel: false,
                used: false,
                open: false,
                closed: true,
                ways: Default::default(),
                reply: None,
                replied: false,
                reset: false,
                needs_turns: false,
                scheduler: None,
                asked: false,
                start: None,
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
        self.blocked.set(false);
        self.responded.set(false);
        let state = &mut *self.state.borrow_mut();
        state.open = false;
        state.closed = false;
        if std::mem::take(&mut state.used) {
            state.ways.iter_mut().for_each(Way::renew);
            state.reply = None;
            state.replied = false;
            state.reset = false;
            state.asked = false;
        }
    }

    /// Chooses the chain, at the first hook, of `dir`. With none of its guests left, the stream passes untouched.
    fn open(&self, filter: Filter, route: Option<&Route>, dir: Dir) {
        let state = &mut *self.state.borrow_mut();
        if state.open {
            return;
        }
        state.open = true;
        state.start = attributes::start();
        let site = self.site.borrow();
        let Some(site) = &*site else { return };
        let own = route.and_then(|route| site.plan_for(route));
        let plan = own.as_ref().unwrap_or(&site.plan);
        if plan.chain.filters().is_empty() {
            state.closed = true;
            self.pass.iter().for_each(|pass| pass.set(true));
            return;
        }
        self.worker.know(plan);
        if plan.may_call_back {
            self.need_turns(state, filter);
        }
        if plan.glances && dir == Dir::Request {
            self.glancing.set(true);
            state.own_plan = own;
            return;
        }
        state.used = true;
        let key = self.key.get();
        state.stream.renew(&plan.chain, key, site.limits);
    }

    /// Sees to it that somebody can carry a ring for this stream. Any stream of the worker can.
    fn need_turns(&self, state: &mut State, filter: Filter) {
        if !state.needs_turns {
            state.needs_turns = true;
            self.worker.turns_needed(1);
        }
        if self.worker.lacks_carriers() {
            self.join(state, filter);
        }
    }

    /// Takes over from the last carrier. Whether it can.
    pub(crate) fn take_over(&self) -> bool {
        let (Some(filter), Ok(mut state)) = (self.filter.get(), self.state.try_borrow_mut()) else {
            return false;
        };
        if !state.needs_turns || state.scheduler.is_some() {
            return false;
        }
        self.join(&mut state, filter);
        state.scheduler.is_some()
    }

    /// Makes this stream a carrier of its worker's rings.
    fn join(&self, state: &mut State, filter: Filter) {
        if state.scheduler.is_none()
            && let Some(scheduler) = filter.scheduler()
        {
            let scheduler = Arc::new(scheduler);
            state.scheduler = Some(Arc::clone(&scheduler));
            self.worker.join(self.slot(), scheduler);
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
        let attrs = OfStream {
            filter: self.filter.get(),
            start: state.start,
        };
        let (result, batch_is_open) = {
            let mut engine = self.worker.engine.borrow_mut();
            let mut cx = Cx {
                worker: &mut engine,
                attrs: &attrs,
            };
            let result = act(&mut state.stream, &mut cx);
            self.take(state, &mut cx);
            if state.stream.metadata_changed() {
                self.metadata(state);
            }
            (result, cx.worker.batch_is_open())
        };
        if batch_is_open {
            self.worker.end_batch_soon();
        }
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
            // Only a reply waits for the client: a forwarded message is in Envoy's own buffers.
            if !(self.blocked.get() && state.reply.is_some())
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
            self.worker.heads.next_hook();
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

    /// Before a hook is left: what was lent is taken over, so that it is in memory once. Envoy keeps what nobody has seen;
    /// `in_body_hook` is the direction whose received bytes are at hand.
    fn own(&self, state: &mut State, filter: Filter, in_body_hook: Option<Dir>) {
        for dir in DIRS {
            state.stream.own_bodies(dir);
            let way = &mut state.ways[dir as usize];
            own(&mut way.out);
            if way.fed > 0 {
                filter.drain_body(buffered(dir));
                if in_body_hook == Some(dir) {
                    filter.drain_body(received(dir));
                }
                way.fed = 0;
            }
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
            self.need_turns(state, filter);
        }
        if state.needs_turns {
            self.worker.set_deadline(self.slot(), deadline);
        }
    }
}

/// Copies what may be lent.
fn own(pieces: &mut [Bytes]) {
    for piece in pieces {
        if !piece.is_unique() {
            *piece = Bytes::copy_from_slice(piece);
        }
    }
}

fn phase_name(phase: proxy_golang_abi::Phase) -> &'static str {
    let known = proxy_golang_host::engine::PHASES
        .iter()
        .find(|(known, _)| *known == phase);
    known.map_or("apply", |(_, name)| name)
}
