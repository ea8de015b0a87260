//! The calls across the boundary, in both directions.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::time::{Duration, Instant};

use proxy_golang_abi as abi;
use proxy_golang_abi::{LogLevel, Status};

use super::arena::{self, Align, Kind, Lent, Piece};
use super::boundary::{Builder, CANARY, Layout, Library, Reader};
use super::shared::{self, Hook};
use super::{peek, threads};
use crate::finding::note;
use crate::host::config::{ConfigMade, ConfigSpec, Projection, Want};
use crate::host::model::{Event, Outcome, Text};
use crate::host::state::{self, HostOptions, StrictHost};

/// What the running hook of this thread was lent.
struct Running {
    ctx: u64,
    hook: Hook,
    lent: Lent,
    layout: Layout,
    more: Vec<Piece>,
    scratch: Vec<Piece>,
    views: Vec<Piece>,
    granted: u64,
}

thread_local! {
    static RUNNING: RefCell<Vec<Running>> = const { RefCell::new(Vec::new()) };
    /// A `release` runs on this thread: it must not call the host.
    static IN_RELEASE: Cell<bool> = const { Cell::new(false) };
}

/// A guest's table, as it was filled, with what belongs to it.
#[derive(Clone, Copy)]
pub(crate) struct Guest {
    pub(crate) table: abi::Guest,
    pub(crate) host: &'static StrictHost,
}

// SAFETY: the table's pointers lead to memory that stays valid and unchanged as long as the process (PXG-LOAD-012), and
// every function says by its tag on which threads it may be called; the driver keeps to them.
unsafe impl Send for Guest {}
// SAFETY: as above.
unsafe impl Sync for Guest {}

/// What init answered.
pub(crate) struct Initialised {
    pub(crate) status: Status,
    pub(crate) table: abi::Guest,
    /// `size` as it was handed in.
    pub(crate) given: u32,
}

/// Lays out the host's table: it lives as long as the process.
pub(crate) fn host_table(host: &'static StrictHost, o: &HostOptions) -> u64 {
    let mut b = Builder::new(
        Layout {
            tail: o.tail,
            ..Layout::default()
        },
        Lent::default(),
    );
    let has_pend = o.features[0] & 0xff != 0;
    let has_apply = abi::feature::Feature::APPLY.is_in(&o.features);
    let page = (!o.null.page).then(|| {
        let page = abi::Page {
            size: 0,
            log_level: LogLevel(o.log_level),
            draining: 0,
            reserved0: 0,
            monotonic_ns: arena::now_ns(),
            realtime_ns: 0,
        };
        b.sized(Kind::Page, &page)
    });
    let table = abi::Host {
        size: 0,
        major: o.major,
        minor: o.minor,
        n_workers: o.n_workers,
        features: o.features,
        name: b.text(Kind::HostText, 0, b"pxg-conformance", 0),
        version: b.text(Kind::HostText, 1, env!("CARGO_PKG_VERSION").as_bytes(), 0),
        ctx: host.ctx(),
        page: page.unwrap_or(std::ptr::null()),
        complete: has_pend.then_some(complete as unsafe extern "C" fn(_, _, _) -> _),
        apply: has_apply.then_some(apply as unsafe extern "C" fn(_, _, _) -> _),
        wake: has_apply.then_some(wake as unsafe extern "C" fn(_, _, _) -> _),
        log: (!o.null.log).then_some(log as unsafe extern "C" fn(_, _, _, _)),
        scratch_more: Some(scratch_more),
        get_ext: (!o.null.get_ext).then_some(get_ext as unsafe extern "C" fn(_, _, _) -> _),
    };
    b.sized(Kind::HostTable, &table) as u64
}

/// Lays out the table of `pxg.metrics/1`.
pub(crate) fn metrics_table() -> u64 {
    let mut b = Builder::new(Layout::default(), Lent::default());
    b.sized(
        Kind::Extension,
        &abi::ext::MetricsV1 {
            size: 0,
            reserved0: 0,
            define: Some(metrics_define),
            record: Some(metrics_record),
        },
    ) as u64
}

/// Calls `pxg_guest_init_v1`. `out` is inaccessible afterwards.
pub(crate) fn init(library: Library, table: u64, tail: usize) -> Initialised {
    let lent = Lent {
        hook: Hook::Init as u32,
        ..Lent::default()
    };
    let mut b = Builder::new(Layout::default(), lent);
    // SAFETY: zero is valid for the struct: integers, pointers and optional functions.
    let zero: abi::Guest = unsafe { std::mem::zeroed() };
    let out = b.out(Kind::GuestTable, &zero, tail);
    enter(Hook::Init, lent);
    // SAFETY: the guest's entry function with a complete host table and a zeroed table to fill, as chapter 2 says.
    let status = unsafe { (library.init)(table as *const abi::Host, out.start as *mut abi::Guest) };
    leave();
    check_canary(&out, "pxg_guest");
    let table = peek::value(out.start).unwrap_or(zero);
    let given = u32::try_from(out.len).unwrap_or(0);
    b.close();
    Initialised {
        status,
        table,
        given,
    }
}

fn enter(hook: Hook, lent: Lent) {
    if let Some(s) = shared::current() {
        s.enter(hook, lent.phase, lent.stream, lent.event);
    }
}

fn leave() {
    if let Some(s) = shared::current() {
        s.leave();
    }
}

fn check_canary(p: &Piece, what: &str) {
    if let Some(at) = p.canary_broken(CANARY) {
        note(
            "PXG-ABI-004",
            format!("wrote outside of the {what} that it was lent"),
            [format!(
                "the byte at offset {at} was changed; the struct has {} bytes (`size`)",
                p.len
            )],
        );
    }
}

/// Time that a call took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Took {
    pub(crate) wall_ns: u64,
    /// Neither running nor waiting for a processor: asleep.
    pub(crate) asleep_ns: u64,
}

fn timed<T>(f: impl FnOnce() -> T) -> (T, Took) {
    let before = threads::run_and_queue_ns();
    let start = Instant::now();
    let v = f();
    let wall_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let asleep_ns = match (before, threads::run_and_queue_ns()) {
        (Some((r0, q0)), Some((r1, q1))) => {
            wall_ns.saturating_sub((r1 - r0).saturating_add(q1 - q0))
        }
        _ => 0,
    };
    (v, Took { wall_ns, asleep_ns })
}

/// What an event led to.
pub(crate) struct EventDone {
    pub(crate) outcome: Outcome,
    pub(crate) took: Took,
}

impl Guest {
    fn lent(&self, hook: Hook, phase: u32, stream: u64) -> Lent {
        Lent {
            hook: hook as u32,
            phase,
            stream,
            event: self.host.next_event(),
        }
    }

    /// Runs a hook with scratch memory in reach of `scratch_more`.
    fn with_scratch<T>(
        &self,
        b: &Builder,
        hook: Hook,
        scratch: &[Piece],
        views: &[Piece],
        f: impl FnOnce() -> T,
    ) -> (T, Running) {
        RUNNING.with_borrow_mut(|r| {
            r.push(Running {
                ctx: self.host.ctx(),
                hook,
                lent: b.lent,
                layout: b.layout,
                more: Vec::new(),
                scratch: scratch.to_vec(),
                views: views.to_vec(),
                granted: 0,
            });
        });
        enter(hook, b.lent);
        let v = f();
        leave();
        let running = RUNNING.with_borrow_mut(Vec::pop);
        (v, running.expect("pushed above"))
    }

    /// `on_event`. Everything that was lent is inaccessible when this returns.
    pub(crate) fn on_event(
        &self,
        e: &Event,
        layout: Layout,
        check: impl FnOnce(&Outcome),
    ) -> EventDone {
        let lent = self.lent(Hook::Event, e.phase.0, e.stream);
        let mut b = Builder::new(layout, lent);
        let ev = b.event(e);
        let n_views = b.pieces.len();
        let ops = b.scratch_ops();
        let scratch_ops = b.scratch(Kind::ScratchOps, ops.len(), &ops);
        let scratch = b.scratch(Kind::Scratch, layout.scratch, &vec![0xA7; layout.scratch]);
        // SAFETY: zero is valid for the struct.
        let mut preset: abi::EventResult = unsafe { std::mem::zeroed() };
        preset.user = e.user;
        preset.scratch_ops = scratch_ops.start as *mut abi::Op;
        preset.scratch_ops_cap = layout.scratch_ops as u64;
        preset.scratch = scratch.start as *mut u8;
        preset.scratch_cap = layout.scratch as u64;
        let out = b.out(Kind::Result, &preset, layout.tail);
        let views = b.pieces[..n_views].to_vec();
        let Some(f) = self.table.on_event else {
            unreachable!("a guest without on_event is refused at init")
        };
        let ctx = self.table.ctx;
        let (((), took), running) =
            self.with_scratch(&b, Hook::Event, &[scratch_ops, scratch], &views, || {
                // SAFETY: the hook of a live library, with a view, and a result to fill, that live until it returns.
                timed(|| unsafe { f(ctx, ev, out.start as *mut abi::EventResult) })
            });
        check_canary(&out, "pxg_result");
        for (p, what) in [(&scratch_ops, "scratch_ops"), (&scratch, "scratch")]
            .into_iter()
            .chain(running.more.iter().map(|p| (p, "memory from scratch_more")))
        {
            if let Some(at) = p.canary_broken(CANARY) {
                note(
                    "PXG-MEM-010",
                    format!("wrote outside of the {what} that it was lent"),
                    [format!("the byte at offset {at} of {} was changed", p.len)],
                );
            }
        }
        let mut lent_scratch = running.more.clone();
        lent_scratch.extend([scratch_ops, scratch]);
        let reader = Reader {
            scratch: &lent_scratch,
            views: &views,
        };
        let size = peek::value::<u32>(out.start).unwrap_or(0);
        let mut outcome = reader
            .outcome(out.start, u32::try_from(out.len).unwrap_or(0))
            .unwrap_or_else(|_| unreachable!("the result lies in the host's memory"));
        outcome.size = size;
        if u64::from(size) != out.len {
            note(
                "PXG-ABI-002",
                format!("changed `size` of the result from {} to {size}", out.len),
                ["the host allocated the struct and sets its size".into()],
            );
        }
        check(&outcome);
        b.close();
        for p in &running.more {
            p.close();
        }
        EventDone { outcome, took }
    }

    /// Calls `on_event` with the same event again and again until `until`, without new views: how often, and how long
    /// the thread slept meanwhile.
    pub(crate) fn hammer(&self, e: &Event, until: Instant) -> (u64, Took) {
        let lent = self.lent(Hook::Event, e.phase.0, e.stream);
        let layout = Layout::default();
        let mut b = Builder::new(layout, lent);
        let ev = b.event(e);
        let ops = b.scratch_ops();
        let scratch_ops = b.scratch(Kind::ScratchOps, ops.len(), &ops);
        let scratch = b.scratch(Kind::Scratch, layout.scratch, &vec![0; layout.scratch]);
        // SAFETY: zero is valid for the struct.
        let mut preset: abi::EventResult = unsafe { std::mem::zeroed() };
        preset.scratch_ops = scratch_ops.start as *mut abi::Op;
        preset.scratch_ops_cap = layout.scratch_ops as u64;
        preset.scratch = scratch.start as *mut u8;
        preset.scratch_cap = layout.scratch as u64;
        let out = b.out(Kind::Result, &preset, 0);
        preset.size = u32::try_from(size_of::<abi::EventResult>()).unwrap_or(0);
        let mut calls = 0;
        let ctx = self.table.ctx;
        let ((), running) = self.with_scratch(&b, Hook::Event, &[scratch_ops, scratch], &[], || {});
        drop(running);
        let ((), took) = timed(|| {
            while Instant::now() < until {
                out.write(0, peek::as_bytes(&preset));
                let ((), running) =
                    self.with_scratch(&b, Hook::Event, &[scratch_ops, scratch], &[], || {
                        if let Some(f) = self.table.on_event {
                            // SAFETY: as in on_event; the views and the result live until the loop ends.
                            unsafe { f(ctx, ev, out.start as *mut abi::EventResult) };
                        }
                    });
                for p in &running.more {
                    p.close();
                }
                calls += 1;
                let reader = Reader {
                    scratch: &[],
                    views: &[],
                };
                if let Ok(o) = reader.outcome(out.start, preset.size) {
                    for (at, ctx) in o.owned() {
                        // SAFETY: an OWNED buffer's release, called once.
                        unsafe {
                            let f: unsafe extern "C" fn(u64) = std::mem::transmute(at as usize);
                            f(ctx);
                        }
                    }
                    if o.user != 0 {
                        self.on_stream_end(e.config, o.user, e.stream, e.worker);
                    }
                }
            }
        });
        b.close();
        (calls, took)
    }

    /// `on_config_new`.
    pub(crate) fn on_config_new(&self, c: &ConfigSpec, layout: Layout) -> ConfigMade {
        let lent = self.lent(Hook::ConfigNew, 0, 0);
        let mut b = Builder::new(layout, lent);
        let input = abi::ConfigIn {
            size: 0,
            flags: abi::ConfigInFlags(c.flags),
            features: c.features,
            filter: b.text(Kind::ConfigText, 0, &c.filter, 0),
            name: b.text(Kind::ConfigText, 1, &c.name, 0),
            bytes: b.text(Kind::ConfigText, 2, &c.bytes, 0),
            parent: c.parent,
        };
        let input = b.sized(Kind::ConfigIn, &input);
        let views = b.pieces.clone();
        let scratch = b.scratch(Kind::Scratch, layout.scratch, &vec![0xA7; layout.scratch]);
        // SAFETY: zero is valid for the struct.
        let mut preset: abi::ConfigOut = unsafe { std::mem::zeroed() };
        preset.scratch = scratch.start as *mut u8;
        preset.scratch_cap = layout.scratch as u64;
        let out = b.out(Kind::ConfigOut, &preset, layout.tail);
        let Some(f) = self.table.on_config_new else {
            unreachable!("a guest without on_config_new is refused at init")
        };
        let ctx = self.table.ctx;
        let (status, running) = self.with_scratch(&b, Hook::ConfigNew, &[scratch], &views, || {
            // SAFETY: as in on_event.
            unsafe { f(ctx, input, out.start as *mut abi::ConfigOut) }
        });
        check_canary(&out, "pxg_config_out");
        if let Some(at) = scratch.canary_broken(CANARY) {
            note(
                "PXG-MEM-010",
                "wrote outside of the scratch that it was lent",
                [format!(
                    "the byte at offset {at} of {} was changed",
                    scratch.len
                )],
            );
        }
        let mut lent_scratch = running.more.clone();
        lent_scratch.push(scratch);
        let reader = Reader {
            scratch: &lent_scratch,
            views: &views,
        };
        let o: abi::ConfigOut = peek::value(out.start)
            .unwrap_or_else(|_| unreachable!("the struct lies in the host's memory"));
        let made = ConfigMade {
            status: status.0,
            flags: o.flags.0,
            config: o.config,
            subscribe: o.subscribe,
            pend_phases: o.pend_phases,
            body_mode: o.body_mode,
            max_body: o.max_body,
            attrs: reader.array(o.attrs, o.n_attrs, |a: abi::AttrWant| Want {
                name: reader.text(a.name),
                phases: a.phases,
                flags: a.flags.0,
                reserved0: a.reserved0,
            }),
            projection: reader.array(o.projection, o.n_projection, |p: abi::Projection| {
                Projection {
                    name: reader.text(p.name),
                }
            }),
            error: reader.text(o.error),
        };
        b.close();
        for p in &running.more {
            p.close();
        }
        made
    }

    pub(crate) fn on_config_drop(&self, config: u64) {
        let lent = self.lent(Hook::ConfigDrop, 0, 0);
        enter(Hook::ConfigDrop, lent);
        if let Some(f) = self.table.on_config_drop {
            // SAFETY: a hook of a live library with a value that it made.
            unsafe { f(self.table.ctx, config) };
        }
        leave();
    }

    pub(crate) fn on_cancel(
        &self,
        config: u64,
        user: u64,
        stream: u64,
        token: u64,
        worker: u32,
    ) -> Took {
        let lent = self.lent(Hook::Cancel, 0, stream);
        enter(Hook::Cancel, lent);
        let ((), took) = timed(|| {
            if let Some(f) = self.table.on_cancel {
                // SAFETY: a hook of a live library; values only.
                unsafe { f(self.table.ctx, config, user, stream, token, worker) };
            }
        });
        leave();
        took
    }

    pub(crate) fn on_stream_end(&self, config: u64, user: u64, stream: u64, worker: u32) {
        let lent = self.lent(Hook::StreamEnd, 0, stream);
        enter(Hook::StreamEnd, lent);
        if let Some(f) = self.table.on_stream_end {
            // SAFETY: a hook of a live library; values only.
            unsafe { f(self.table.ctx, config, user, stream, worker) };
        }
        leave();
    }

    pub(crate) fn on_batch_end(&self, worker: u32) {
        if let Some(f) = self.table.on_batch_end {
            enter(Hook::BatchEnd, self.lent(Hook::BatchEnd, 0, 0));
            // SAFETY: a hook of a live library; values only.
            unsafe { f(self.table.ctx, worker) };
            leave();
        }
    }

    pub(crate) fn on_worker(&self, worker: u32, up: bool) {
        if let Some(f) = self.table.on_worker {
            enter(Hook::Worker, self.lent(Hook::Worker, 0, 0));
            // SAFETY: a hook of a live library; values only.
            unsafe { f(self.table.ctx, worker, up.into()) };
            leave();
        }
    }

    /// The address of a guest's extension, 0 if it has none of that id, None if it has no `get_ext`.
    pub(crate) fn get_ext(&self, id: &str) -> Option<u64> {
        let f = self.table.get_ext?;
        let mut b = Builder::new(Layout::default(), Lent::default());
        let text = b.text(Kind::HostText, 2, id.as_bytes(), 0);
        enter(Hook::GetExt, Lent::default());
        // SAFETY: an any-thread function of a live library, with memory that lives until it returns.
        let at = unsafe { f(self.table.ctx, text.ptr, u64::from(text.len)) };
        leave();
        b.close();
        Some(at as u64)
    }
}

/// The names of the library's filters, read where the table points to.
pub(crate) fn filters(table: &abi::Guest) -> Option<Vec<Text>> {
    let reader = Reader {
        scratch: &[],
        views: &[],
    };
    reader
        .array(table.filters, table.n_filters, |s| reader.text(s))
        .items
}

/// A string of the guest's table.
pub(crate) fn table_text(s: abi::Str) -> Text {
    Reader {
        scratch: &[],
        views: &[],
    }
    .text(s)
}

/// The name of threads that this host starts.
pub(crate) const HOST_THREAD: &str = "pxg-host";

/// What a `release` did.
pub(crate) enum Released {
    InTime,
    /// It slept for so long, in nanoseconds.
    Slept(u64),
    Never,
}

/// How long a `release` may sleep.
const RELEASE_SLEEP: Duration = Duration::from_millis(200);

/// Calls `release` on a fresh thread, which must not call the host. After one that blocked nobody waits for others.
pub(crate) fn release(at: u64, ctx: u64, wait_for_it: bool) -> Released {
    let (done, wait) = std::sync::mpsc::channel();
    let spawned = std::thread::Builder::new()
        .name(HOST_THREAD.into())
        .spawn(move || {
            IN_RELEASE.set(true);
            // SAFETY: the guest gave this function with an OWNED buffer, to be called once with `ctx` on any thread.
            let ((), took) = timed(|| unsafe {
                let f: unsafe extern "C" fn(u64) = std::mem::transmute(at as usize);
                f(ctx);
            });
            let _ = done.send(took.asleep_ns);
        });
    if let Err(e) = spawned {
        crate::finding::suite_error(format!("no thread for `release`: {e}"));
        return Released::InTime;
    }
    if !wait_for_it {
        return Released::InTime;
    }
    match wait.recv_timeout(Duration::from_secs(8)) {
        Ok(asleep) if u128::from(asleep) > RELEASE_SLEEP.as_nanos() => Released::Slept(asleep),
        Ok(_) => Released::InTime,
        Err(_) => Released::Never,
    }
}

// ---- what the guest calls

fn in_release(function: &str) {
    if IN_RELEASE.get() {
        note(
            "PXG-MEM-007",
            format!("`release` called the host's `{function}`"),
            ["release must free and return: it may run inside any function of the host".into()],
        );
    }
}

/// Reads a result that was handed to `complete` or `apply`.
fn handed(r: *const abi::EventResult) -> Result<Outcome, (u32, bool)> {
    let at = r as u64;
    let size = peek::value::<u32>(at).map_err(|_| (0, false))?;
    let (scratch, views) = RUNNING.with_borrow(|r| {
        r.last()
            .map(|r| {
                let mut s = r.scratch.clone();
                s.extend(&r.more);
                (s, r.views.clone())
            })
            .unwrap_or_default()
    });
    let reader = Reader {
        scratch: &scratch,
        views: &views,
    };
    if (size as usize) < size_of::<abi::EventResult>() {
        return Err((size, true));
    }
    reader.outcome(at, size).map_err(|_| (size, false))
}

/// A panic of the suite's own must not unwind into the guest.
fn contained<T>(otherwise: T, f: impl FnOnce() -> T) -> T {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or_else(|_| {
        crate::finding::suite_error("a function of the strict host panicked".into());
        otherwise
    })
}

unsafe extern "C" fn complete(ctx: u64, token: u64, r: *const abi::EventResult) -> Status {
    contained(Status::INTERNAL, || {
        in_release("complete");
        let Some(host) = state::by_ctx(ctx) else {
            note(
                "PXG-EXT-002",
                "`complete` called with a ctx of no host",
                [format!("ctx {ctx:#x}")],
            );
            return Status::STALE;
        };
        match handed(r) {
            Ok(outcome) => host.complete(token, outcome, RUNNING.with_borrow(|r| !r.is_empty())),
            Err((size, readable)) => bad_result("complete", size, readable),
        }
    })
}

fn bad_result(function: &str, size: u32, readable: bool) -> Status {
    if readable {
        note(
            "PXG-ABI-002",
            format!("handed a pxg_result of size {size} to `{function}`"),
            [format!(
                "the struct has {} bytes in version 1.0",
                size_of::<abi::EventResult>()
            )],
        );
    } else {
        note(
            "PXG-ABI-012",
            format!("handed a result that can't be read to `{function}`"),
            [],
        );
    }
    Status::ARG
}

unsafe extern "C" fn apply(ctx: u64, stream: u64, r: *const abi::EventResult) -> Status {
    contained(Status::INTERNAL, || {
        in_release("apply");
        let Some(host) = state::by_ctx(ctx) else {
            return Status::STALE;
        };
        match handed(r) {
            Ok(outcome) => host.apply(stream, outcome),
            Err((size, readable)) => bad_result("apply", size, readable),
        }
    })
}

unsafe extern "C" fn wake(ctx: u64, stream: u64, arg: u64) -> Status {
    contained(Status::INTERNAL, || {
        in_release("wake");
        state::by_ctx(ctx).map_or(Status::STALE, |h| h.wake(stream, arg))
    })
}

unsafe extern "C" fn log(ctx: u64, level: LogLevel, ptr: *const u8, len: u64) {
    contained((), || {
        in_release("log");
        if let Some(host) = state::by_ctx(ctx) {
            let len = usize::try_from(len.min(64 << 10)).unwrap_or(0);
            host.log(level, peek::bytes(ptr as u64, len).ok());
        }
    });
}

unsafe extern "C" fn scratch_more(ctx: u64, n: u64) -> *mut u8 {
    contained(std::ptr::null_mut(), || {
        in_release("scratch_more");
        RUNNING.with_borrow_mut(|r| {
            let Some(r) = r
                .last_mut()
                .filter(|r| matches!(r.hook, Hook::Event | Hook::ConfigNew))
            else {
                note(
                    "PXG-THR-001",
                    "called `scratch_more` outside of on_event and on_config_new, or on another thread",
                    [format!("thread {}; the function is [in-call]", threads::current())],
                );
                return std::ptr::null_mut();
            };
            if r.ctx != ctx {
                note(
                    "PXG-THR-001",
                    "called `scratch_more` with the ctx of another host",
                    [format!("found {ctx:#x}, expected {:#x}", r.ctx)],
                );
            }
            let rounded = n.max(1).div_ceil(16).saturating_mul(16);
            if r.granted.saturating_add(rounded) > r.layout.scratch_more {
                return std::ptr::null_mut();
            }
            r.granted += rounded;
            let len = usize::try_from(rounded).unwrap_or(0);
            let p = arena::lend(Kind::ScratchMore, 0, r.layout.align, len, &[], r.lent);
            p.fill(CANARY);
            p.write(0, &vec![0; len]);
            r.more.push(p);
            p.start as *mut u8
        })
    })
}

unsafe extern "C" fn get_ext(ctx: u64, id: *const u8, len: u64) -> *const c_void {
    contained(std::ptr::null(), || {
        in_release("get_ext");
        let id = peek::bytes(id as u64, usize::try_from(len.min(1024)).unwrap_or(0));
        state::by_ctx(ctx).map_or(0, |h| h.get_ext(id.ok())) as *const c_void
    })
}

unsafe extern "C" fn metrics_define(
    ctx: u64,
    _kind: abi::ext::MetricKind,
    name: *const abi::Str,
    _labels: *const abi::Field,
    _n_labels: u64,
    id: *mut u32,
) -> Status {
    contained(Status::INTERNAL, || {
        in_release("define");
        let (Some(host), Ok(name)) = (state::by_ctx(ctx), peek::value::<abi::Str>(name as u64))
        else {
            return Status::ARG;
        };
        let Ok(bytes) = peek::bytes(name.ptr as u64, name.len as usize) else {
            return Status::ARG;
        };
        match host.define_metric(bytes) {
            // SAFETY: the guest gave a place for the id, which must be writable.
            Ok(n) => unsafe {
                id.write(n);
                Status::OK
            },
            Err(s) => s,
        }
    })
}

unsafe extern "C" fn metrics_record(ctx: u64, id: u32, _value: i64) -> Status {
    contained(Status::INTERNAL, || {
        in_release("record");
        state::by_ctx(ctx).map_or(Status::NOTFOUND, |h| h.record_metric(id))
    })
}

/// Reads borrowed memory again: the addresses whose content is not what it was.
pub(crate) fn changed(borrowed: &[(u64, Vec<u8>)]) -> Vec<(u64, usize)> {
    borrowed
        .iter()
        .filter(|(at, was)| !peek::bytes(*at, was.len()).is_ok_and(|now| now == *was))
        .map(|(at, was)| (*at, was.len()))
        .collect()
}

/// A left-aligned layout, for accesses before the start.
pub(crate) fn left() -> Layout {
    Layout {
        align: Align::Left,
        ..Layout::default()
    }
}
