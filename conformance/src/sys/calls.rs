//! The calls of the host into the guest.

use std::time::{Duration, Instant};

use proxy_golang_abi as abi;
use proxy_golang_abi::Status;

use super::arena::{self, Align, Kind, Lent, Piece};
use super::boundary::{Builder, CANARY, Layout, Library};
use super::reader::Reader;
use super::shared::{self, Hook};
use super::thunks::{IN_RELEASE, RUNNING, Running};
use super::{peek, reader, threads};
use crate::finding::note;
use crate::host::config::{ConfigMade, ConfigSpec, Projection, Want};
use crate::host::model::{Event, Outcome, Text};
use crate::host::state::StrictHost;

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
    /// On a processor.
    pub(crate) ran_ns: u64,
    /// Neither running nor waiting for a processor: asleep.
    pub(crate) asleep_ns: u64,
}

fn timed<T>(f: impl FnOnce() -> T) -> (T, Took) {
    let before = threads::run_and_queue_ns();
    let start = Instant::now();
    let v = f();
    let wall_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let (ran_ns, asleep_ns) = match (before, threads::run_and_queue_ns()) {
        (Some((r0, q0)), Some((r1, q1))) => {
            let (ran, queued) = (r1.saturating_sub(r0), q1.saturating_sub(q0));
            (ran, wall_ns.saturating_sub(ran.saturating_add(queued)))
        }
        _ => (0, 0),
    };
    let took = Took {
        wall_ns,
        ran_ns,
        asleep_ns,
    };
    (v, took)
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
            scratch: &reader::ranges(&lent_scratch),
            views: &reader::ranges(&views),
            foreign: arena::is_ours,
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
        arena::close(&running.more);
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
                arena::close(&running.more);
                calls += 1;
                let reader = Reader {
                    scratch: &[],
                    views: &[],
                    foreign: arena::is_ours,
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
            scratch: &reader::ranges(&lent_scratch),
            views: &reader::ranges(&views),
            foreign: arena::is_ours,
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
        arena::close(&running.more);
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
        foreign: arena::is_ours,
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
        foreign: arena::is_ours,
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
