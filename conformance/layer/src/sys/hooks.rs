//! What the host calls: the functions of the guest's table, each in front of the real one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, PoisonError};

use proxy_golang_abi as abi;
use proxy_golang_abi::{Action, Status};
use proxy_golang_conformance::parts::config::{ConfigMade, Projection, Want};
use proxy_golang_conformance::parts::model::Outcome;
use proxy_golang_conformance::parts::peek;
use proxy_golang_conformance::parts::reader::{Range, Reader};
use serde_json::json;

use super::handover;
use super::memory::{self, For, Kind, Slab};
use super::tables::{Link, SLOTS, link};
use super::view::{self, SeenEvent};
use crate::library::{Findings, Library};
use crate::perturb;
use crate::report::{self, Found, Reporter, guest, host};
use crate::{report_faults, trace};

/// What the running hook of this thread was lent.
pub(super) struct Frame {
    pub(super) slot: usize,
    pub(super) scratch: Vec<Range>,
    pub(super) views: Vec<Range>,
    /// Bytes that `scratch_more` granted.
    pub(super) granted: u64,
    /// Bytes after which the layer grants no more.
    pub(super) limit: u64,
}

/// What the guest lent the host until its next call on this thread.
struct Borrow {
    slot: usize,
    /// What its memory may belong to: it is gone when this is dropped, on whichever thread.
    config: u64,
    slab: Option<Slab>,
    /// Where the guest has it, and what it was.
    originals: Vec<(u64, Vec<u8>)>,
    function: &'static str,
}

/// Never destroyed: a host may call from a destructor of its own when the thread ends.
type Kept<T> = ManuallyDrop<RefCell<Vec<T>>>;

thread_local! {
    static FRAMES: Kept<Frame> = const { ManuallyDrop::new(RefCell::new(Vec::new())) };
    static BORROWED: Kept<Borrow> = const { ManuallyDrop::new(RefCell::new(Vec::new())) };
    /// The host function that runs on this thread.
    pub(super) static IN_HOST: Cell<Option<&'static str>> = const { Cell::new(None) };
    /// A `release` runs on this thread: it must not call the host.
    pub(super) static IN_RELEASE: Cell<bool> = const { Cell::new(false) };
}

/// The hooks that run on this thread, the innermost last.
pub(super) fn frames<T>(f: impl FnOnce(&mut Vec<Frame>) -> T) -> T {
    FRAMES.with(|s| f(&mut s.borrow_mut()))
}

/// Scratch that is lent now, to whichever thread.
static LENT: Mutex<Vec<u64>> = Mutex::new(Vec::new());

/// A panic of the layer's own must not unwind into either side.
pub(super) fn contained<T>(otherwise: T, f: impl FnOnce() -> T) -> T {
    std::panic::catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| {
        report::say(
            "pxg-layer: a panic of the layer itself; what it says about this call is worth nothing",
        );
        otherwise
    })
}

/// Ends what the guest lent by its last result on this thread.
fn end_borrowing(library: &Library, r: &Reporter) {
    let slot = library.slot;
    let over: Vec<Borrow> = BORROWED.with(|b| {
        let mut b = b.borrow_mut();
        if b.is_empty() {
            return Vec::new();
        }
        let (over, keep) = std::mem::take(&mut *b)
            .into_iter()
            .partition(|x| x.slot == slot);
        *b = keep;
        over
    });
    for b in over {
        let originals: &[_] = if library.has_dropped(b.config) {
            &[]
        } else {
            &b.originals
        };
        for (at, was) in originals {
            if !peek::bytes(*at, was.len()).is_ok_and(|now| now == *was) {
                let mut f = Findings::at(b.function);
                f.list.push(guest(
                    "PXG-MEM-004",
                    format!("borrowed memory at {at:#x} ({} bytes) changed before the next call", was.len()),
                    "valid and unchanged until the next call into the same guest on the same thread",
                ));
                f.report();
                break;
            }
        }
        if let Some(s) = b.slab {
            s.close(r.guards_memory());
        }
    }
}

/// What every hook begins with.
fn begin(l: &Link, ctx: u64, function: &'static str) -> Option<&'static Reporter> {
    let r = report::current()?;
    r.count_call();
    report_faults();
    end_borrowing(&l.library, r);
    let expected = l.guest.get().map_or(0, |g| g.ctx);
    if ctx != expected {
        let mut f = Findings::at(function);
        f.list.push(host(
            "PXG-ABI-009",
            format!("ctx {ctx:#x}"),
            format!("the ctx of the guest's table, {expected:#x}"),
        ));
        f.report();
    }
    perturb::pause();
    Some(r)
}

fn check_preset(raw: &abi::EventResult, size: u32, user: u64, out: &mut Vec<Found>) {
    let mut put = |rule, what: String, expected: &str| out.push(host(rule, what, expected));
    if (size as usize) < size_of::<abi::EventResult>() {
        put(
            "PXG-ABI-002",
            format!("pxg_result.size is {size}"),
            "the size that the host knows, at least that of version 1.0 (128 bytes)",
        );
    }
    if raw.action != Action::UNSET {
        put(
            "PXG-ACT-001",
            format!("a result that is preset with action {}", raw.action.0),
            "UNSET (0)",
        );
    }
    if raw.user != user {
        put(
            "PXG-EVT-007",
            format!("a result that is preset with user {:#x}", raw.user),
            "the event's user",
        );
    }
    let zero = raw.flags.0 == 0
        && raw.reserved0 == 0
        && raw.ops.is_null()
        && raw.n_ops == 0
        && raw.reply.is_null()
        && raw.unsubscribe == 0
        && raw.body_mode.iter().all(|m| m.0 == 0)
        && raw.more_bytes == 0
        && raw.pend_ns == 0
        && raw.error.ptr.is_null()
        && raw.error.len == 0
        && raw.error.flags.0 == 0;
    if !zero {
        put(
            "PXG-ABI-011",
            "a result that is not zero where nothing is preset".into(),
            "size, UNSET, user and scratch; the rest 0 (5.1)",
        );
    }
    if raw.scratch_ops_cap < 32 || raw.scratch_ops.is_null() {
        put(
            "PXG-MEM-010",
            format!(
                "{} scratch_ops at {:p}",
                raw.scratch_ops_cap, raw.scratch_ops
            ),
            "at least 32 operations",
        );
    }
    check_scratch(raw.scratch as u64, raw.scratch_cap, &mut put);
    if !(raw.scratch_ops as u64).is_multiple_of(16) {
        put(
            "PXG-ABI-010",
            format!("scratch_ops at {:p}", raw.scratch_ops),
            "aligned to 16 bytes",
        );
    }
    let n = usize::try_from(raw.scratch_ops_cap.min(32)).unwrap_or(0);
    let dirty = peek::array::<abi::Op>(raw.scratch_ops as u64, n)
        .is_ok_and(|ops| ops.iter().any(|o| !is_operation(o)));
    if dirty {
        put(
            "PXG-MEM-010",
            "scratch_ops with bytes that are neither zeros nor an operation".into(),
            "zeros or earlier operations, never other bytes",
        );
    }
}

fn check_scratch(at: u64, cap: u64, put: &mut impl FnMut(&'static str, String, &str)) {
    if cap < 4096 || at == 0 {
        put(
            "PXG-MEM-010",
            format!("{cap} bytes of scratch at {at:#x}"),
            "at least 4096 bytes",
        );
    }
    if !at.is_multiple_of(16) {
        put(
            "PXG-ABI-010",
            format!("scratch at {at:#x}"),
            "aligned to 16 bytes",
        );
    }
}

/// Whether it may be an operation that an earlier call left.
fn is_operation(o: &abi::Op) -> bool {
    looks_right(o)
        || ODD
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(peek::as_bytes(o))
}

fn looks_right(o: &abi::Op) -> bool {
    let zero = peek::as_bytes(o).iter().all(|b| *b == 0);
    zero || o.flags.0 <= 3
        && o.key.flags.0 <= 0x33
        && o.val.bytes.flags.0 <= 0x33
        && o.kind.0 <= abi::OpKind::ROUTE.0
}

/// Operations that guests left in scratch and that look like none, up to a bound: they may come again.
static ODD: Mutex<BTreeSet<Vec<u8>>> = Mutex::new(BTreeSet::new());
const MOST_ODD: usize = 4096;

/// Remembers what the guest left in `scratch_ops`.
fn remember_odd(at: u64, n: u64) {
    let n = usize::try_from(n.min(32)).unwrap_or(0);
    let Ok(ops) = peek::array::<abi::Op>(at, n) else {
        return;
    };
    for o in ops.iter().filter(|o| !looks_right(o)) {
        let mut odd = ODD.lock().unwrap_or_else(PoisonError::into_inner);
        if odd.len() < MOST_ODD {
            odd.insert(peek::as_bytes(o).to_vec());
        }
    }
}

/// A struct of the layer's own that the guest fills, with canaries behind it.
struct Out {
    words: Vec<u64>,
    size: usize,
}

const CANARY: u64 = 0xc5c5_c5c5_c5c5_c5c5;
const CANARIES: usize = 8;

impl Out {
    fn new(bytes: &[u8], least: usize) -> Self {
        let size = bytes.len();
        let n = size.max(least).div_ceil(8);
        let mut words = vec![0u64; n];
        words.extend([CANARY; CANARIES]);
        let mut o = Self { words, size };
        o.bytes_mut()[..size].copy_from_slice(bytes);
        if size.max(least) < n * 8 {
            // Sizes are multiples of 8; an odd one leaves no room to check.
            o.words[n] = CANARY;
        }
        o
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let n = self.words.len() * 8;
        // SAFETY: the words as bytes: same memory, same length, no alignment needed.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), n) }
    }

    fn at(&mut self) -> u64 {
        self.words.as_mut_ptr() as u64
    }

    fn canary_broken(&self) -> bool {
        self.words[self.words.len() - CANARIES..]
            .iter()
            .any(|w| *w != CANARY)
    }
}

/// Writes what the guest filled into the host's struct: `known` first, then what is behind it.
fn write_back(to: u64, known: &[u8], filled: &mut Out) {
    let size = filled.size;
    let n = known.len().min(size);
    let bytes = &filled.bytes_mut()[..size];
    let mut all = bytes.to_vec();
    all[..n].copy_from_slice(&known[..n]);
    // SAFETY: the host's struct, to be filled until the hook returns; `size` is what the host said it has.
    unsafe { std::ptr::copy_nonoverlapping(all.as_ptr(), to as *mut u8, size) };
}

fn ranges_of(slab: &Slab) -> Vec<Range> {
    vec![(slab.start, slab.len as u64)]
}

/// Runs the real hook with a frame for `scratch_more`.
fn in_frame<T>(
    slot: usize,
    scratch: Vec<Range>,
    views: Vec<Range>,
    f: impl FnOnce() -> T,
) -> (T, Frame) {
    frames(|s| {
        s.push(Frame {
            slot,
            scratch,
            views,
            granted: 0,
            limit: perturb::scratch_limit(),
        });
    });
    // What runs inside the hook is not inside the host function that the hook may be inside of.
    let outer = IN_HOST.replace(None);
    let v = f();
    IN_HOST.set(outer);
    let frame = frames(Vec::pop);
    (v, frame.unwrap_or_else(|| unreachable!("pushed above")))
}

unsafe extern "C" fn on_event<const N: usize>(
    ctx: u64,
    ev: *const abi::Event,
    out: *mut abi::EventResult,
) {
    contained((), || {
        if let Some(l) = link(N) {
            event(l, ctx, ev as u64, out as u64);
        }
    });
}

fn event(l: &Link, ctx: u64, ev: u64, out: u64) {
    let Some(r) = begin(l, ctx, "on_event") else {
        return;
    };
    let Some(f) = l.guest.get().and_then(|g| g.on_event) else {
        return;
    };
    let read = view::event(ev).and_then(|e| {
        let size = peek::value::<u32>(out).map_err(|_| format!("the result at {out:#x}"))?;
        let bytes = peek::bytes(out, size.min(4096) as usize)
            .map_err(|_| format!("{size} bytes of the result at {out:#x}"))?;
        Ok((e, size, bytes))
    });
    let (e, size, bytes) = match read {
        Ok(x) => x,
        Err(what) => {
            let mut f = Findings::at("on_event");
            f.list.push(host(
                "PXG-MEM-001",
                format!("an event that can't be read: {what}"),
                "memory that can be read for all of the call",
            ));
            f.report();
            return;
        }
    };
    let raw: abi::EventResult = peek::prefix(out, size as usize)
        .unwrap_or_else(|_| unreachable!("it was read a moment ago"));
    let mut preset = Vec::new();
    check_preset(&raw, size, e.raw.user, &mut preset);
    let lent = [raw.scratch as u64, raw.scratch_ops as u64];
    lend(&lent, &mut preset);
    let preset_json = || {
        json!({
            "size": size, "action": raw.action.0, "user": raw.user, "zero": true,
            "ops_cap": raw.scratch_ops_cap, "cap": raw.scratch_cap,
            "misaligned": (raw.scratch as u64 | raw.scratch_ops as u64) & 15, "dirty": false,
        })
    };
    let zero = !preset.iter().any(|f| f.rule == "PXG-ABI-011");
    let dirty = preset
        .iter()
        .any(|f| f.rule == "PXG-MEM-010" && f.what.starts_with("scratch_ops with"));
    let (call, findings) = l.library.event_enter(&e, IN_HOST.get(), preset);
    findings.report();
    if r.settings.trace {
        let mut p = preset_json();
        p["zero"] = zero.into();
        p["dirty"] = dirty.into();
        trace::event_enter(&e, &call.instance, p);
    }

    let mut filled = Out::new(&bytes, size_of::<abi::EventResult>());
    let guards = r.guards_memory();
    let copied = guards
        .then(|| perturb::with(|d| e.copy(Some(d))).unwrap_or_else(|| e.copy(None)))
        .flatten();
    let views = copied
        .as_ref()
        .map_or_else(|| e.seen.ranges(), |c| ranges_of(&c.slab));
    let mut given = raw;
    if let Some((ops, bytes)) = perturb::scratch_caps() {
        given.scratch_ops_cap = given.scratch_ops_cap.min(ops);
        given.scratch_cap = given.scratch_cap.min(bytes);
        let known = peek::as_bytes(&given).to_vec();
        let n = known.len().min(filled.size);
        filled.bytes_mut()[..n].copy_from_slice(&known[..n]);
    }
    let scratch = vec![
        (
            given.scratch_ops as u64,
            given
                .scratch_ops_cap
                .saturating_mul(size_of::<abi::Op>() as u64),
        ),
        (given.scratch as u64, given.scratch_cap),
    ];
    let at = copied.as_ref().map_or(ev, |c| c.at);
    let to = filled.at();
    let slot = l.library.slot;
    let ((), frame) = in_frame(slot, scratch, views, || {
        // SAFETY: the hook of a live library, with a view and a result to fill that live until it returns, on the
        // thread on which the host called the layer.
        unsafe { f(ctx, at as *const abi::Event, to as *mut abi::EventResult) };
    });
    unlend(&lent);
    remember_odd(raw.scratch_ops as u64, raw.scratch_ops_cap);
    finish_event(l, r, &e, &call, out, &raw, size, &mut filled, &frame);
    if let Some(c) = copied {
        c.slab.close(true);
    }
    report_faults();
}

/// Scratch is exclusive to a call.
fn lend(scratch: &[u64], out: &mut Vec<Found>) {
    let mut lent = LENT.lock().unwrap_or_else(PoisonError::into_inner);
    for at in scratch.iter().filter(|at| **at != 0) {
        if lent.contains(at) {
            out.push(host(
                "PXG-MEM-010",
                format!("scratch at {at:#x}, which a running call was lent too"),
                "scratch is exclusive to the call",
            ));
        }
        lent.push(*at);
    }
}

fn unlend(scratch: &[u64]) {
    let mut lent = LENT.lock().unwrap_or_else(PoisonError::into_inner);
    for at in scratch {
        if let Some(i) = lent.iter().rposition(|l| l == at) {
            lent.swap_remove(i);
        }
    }
}

#[allow(clippy::too_many_arguments)] // the state of one call, taken apart only here
fn finish_event(
    l: &Link,
    r: &Reporter,
    e: &SeenEvent,
    call: &crate::library::EventCall,
    out: u64,
    raw: &abi::EventResult,
    size: u32,
    filled: &mut Out,
    frame: &Frame,
) {
    let guards = r.guards_memory();
    let reader = Reader {
        scratch: &frame.scratch,
        views: &frame.views,
        foreign: memory::is_ours,
    };
    let at = filled.at();
    let mut outcome: Outcome = reader
        .outcome(at, size)
        .unwrap_or_else(|_| unreachable!("the result lies in the layer's memory"));
    let written = outcome.size;
    outcome.size = size;
    let mut own = Vec::new();
    if written != size {
        own.push(guest(
            "PXG-ABI-002",
            format!("changed `size` of the result from {size} to {written}"),
            "the host allocates the struct and sets its size",
        ));
    }
    if filled.canary_broken() {
        own.push(guest(
            "PXG-ABI-004",
            "wrote behind the pxg_result",
            format!("nothing beyond its size, {size}"),
        ));
    }
    if outcome.action == Action::PENDING {
        perturb::pause_after_pending();
    }
    let changed = e.seen.changed();
    let found = changed.as_ref().map(|what| {
        let mut f = host(
            "PXG-MEM-001",
            format!("{what} of the event changed during on_event"),
            "views stay as they are until the hook returns",
        );
        if !guards {
            f.expected += "; PXG_LAYER=heal tells whether the guest wrote to it";
        }
        f
    });
    let mut findings = l.library.event_leave(call, &outcome, found);
    findings.list.extend(own);
    findings.report();
    let filled_raw: abi::EventResult = peek::prefix(at, size as usize)
        .unwrap_or_else(|_| unreachable!("the result lies in the layer's memory"));
    let f = For {
        phase: e.raw.phase.0,
        stream: e.raw.stream,
    };
    let handed = handover::result(
        &outcome,
        &filled_raw,
        at,
        Kind::Result,
        f,
        l.library.slot,
        guards,
    );
    let owned = handed.as_ref().map_or(&[][..], |h| &h.owned);
    trace::event_exit(e, &call.instance, &outcome, owned, changed.is_some());
    let mut back = handed.as_ref().map_or(filled_raw, |h| h.raw);
    back.size = written;
    back.scratch = raw.scratch;
    back.scratch_cap = raw.scratch_cap;
    back.scratch_ops = raw.scratch_ops;
    back.scratch_ops_cap = raw.scratch_ops_cap;
    write_back(out, peek::as_bytes(&back), filled);
    borrow(
        l,
        e.raw.config,
        handed.map(|h| h.slab),
        outcome.borrowed(),
        "on_event",
    );
}

fn borrow(
    l: &Link,
    config: u64,
    slab: Option<Slab>,
    originals: Vec<(u64, Vec<u8>)>,
    function: &'static str,
) {
    if slab.is_none() && originals.is_empty() {
        return;
    }
    BORROWED.with(|b| {
        b.borrow_mut().push(Borrow {
            slot: l.library.slot,
            config,
            slab,
            originals,
            function,
        });
    });
}

unsafe extern "C" fn on_config_new<const N: usize>(
    ctx: u64,
    input: *const abi::ConfigIn,
    out: *mut abi::ConfigOut,
) -> Status {
    contained(Status::INTERNAL, || {
        link(N).map_or(Status::INTERNAL, |l| {
            config_new(l, ctx, input as u64, out as u64)
        })
    })
}

fn config_new(l: &Link, ctx: u64, input: u64, out: u64) -> Status {
    let Some(r) = begin(l, ctx, "on_config_new") else {
        return Status::INTERNAL;
    };
    let Some(f) = l.guest.get().and_then(|g| g.on_config_new) else {
        return Status::INTERNAL;
    };
    let read = view::config(input).and_then(|c| {
        let size = peek::value::<u32>(out).map_err(|_| format!("the struct at {out:#x}"))?;
        let bytes = peek::bytes(out, size.min(4096) as usize)
            .map_err(|_| format!("{size} bytes at {out:#x}"))?;
        Ok((c, size, bytes))
    });
    let (c, size, bytes) = match read {
        Ok(x) => x,
        Err(what) => {
            let mut f = Findings::at("on_config_new");
            f.list.push(host(
                "PXG-MEM-001",
                format!("a configuration that can't be read: {what}"),
                "memory that can be read for all of the call",
            ));
            f.report();
            return Status::INTERNAL;
        }
    };
    let raw: abi::ConfigOut = peek::prefix(out, size as usize)
        .unwrap_or_else(|_| unreachable!("it was read a moment ago"));
    let mut findings = l.library.config_new_enter(&c, IN_HOST.get());
    check_config_preset(&raw, size, &mut findings.list);
    findings.report();
    trace::config_enter(&c);
    let guards = r.guards_memory();
    let copied = guards.then(|| c.copy()).flatten();
    let views = copied
        .as_ref()
        .map_or_else(|| c.seen.ranges(), |x| ranges_of(&x.slab));
    let mut filled = Out::new(&bytes, size_of::<abi::ConfigOut>());
    let at = copied.as_ref().map_or(input, |x| x.at);
    let to = filled.at();
    let scratch = vec![(raw.scratch as u64, raw.scratch_cap)];
    let (status, frame) = in_frame(l.library.slot, scratch, views, || {
        // SAFETY: as in `event`.
        unsafe { f(ctx, at as *const abi::ConfigIn, to as *mut abi::ConfigOut) }
    });
    let o: abi::ConfigOut = peek::prefix(to, size as usize)
        .unwrap_or_else(|_| unreachable!("the struct lies in the layer's memory"));
    let reader = Reader {
        scratch: &frame.scratch,
        views: &frame.views,
        foreign: memory::is_ours,
    };
    let projected = reader
        .array(o.projection, o.n_projection, |p: abi::Projection| p.phases)
        .get()
        .iter()
        .fold(0, |m, p| m | p);
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
    let changed = c.seen.changed();
    let mut findings = l
        .library
        .config_new_leave(&c, &made, o.pend_ns, projected, changed);
    if filled.canary_broken() {
        findings.list.push(guest(
            "PXG-ABI-004",
            "wrote behind the pxg_config_out",
            format!("nothing beyond its size, {size}"),
        ));
    }
    findings.report();
    trace::config_exit(&c, &made);
    let handed = guards.then(|| handover::config(&made, &o)).flatten();
    let back = handed.as_ref().map_or(o, |(_, x)| *x);
    write_back(out, peek::as_bytes(&back), &mut filled);
    let originals = [&made.error]
        .into_iter()
        .chain(made.attrs.get().iter().map(|a| &a.name))
        .filter(|t| t.region == proxy_golang_conformance::parts::model::Region::Guest)
        .filter_map(|t| Some((t.ptr, t.bytes.clone()?)))
        .filter(|(_, b)| !b.is_empty())
        .collect();
    let slab = handed.map(|(s, _)| s);
    borrow(l, made.config, slab, originals, "on_config_new");
    if let Some(x) = copied {
        x.slab.close(true);
    }
    report_faults();
    status
}

fn check_config_preset(raw: &abi::ConfigOut, size: u32, out: &mut Vec<Found>) {
    let mut put = |rule, what: String, expected: &str| out.push(host(rule, what, expected));
    if (size as usize) < size_of::<abi::ConfigOut>() {
        put(
            "PXG-ABI-002",
            format!("pxg_config_out.size is {size}"),
            "the size that the host knows, at least that of version 1.0 (128 bytes)",
        );
    }
    check_scratch(raw.scratch as u64, raw.scratch_cap, &mut put);
    let rest = abi::ConfigOut {
        size: 0,
        scratch: std::ptr::null_mut(),
        scratch_cap: 0,
        ..*raw
    };
    if peek::as_bytes(&rest).iter().any(|b| *b != 0) {
        put(
            "PXG-ABI-011",
            "a pxg_config_out that is not zero".into(),
            "zeroed but for size and scratch (4.1)",
        );
    }
}

unsafe extern "C" fn on_config_drop<const N: usize>(ctx: u64, config: u64) {
    contained((), || {
        let Some(l) = link(N) else {
            return;
        };
        let Some(_) = begin(l, ctx, "on_config_drop") else {
            return;
        };
        l.library.config_drop_enter(config, IN_HOST.get()).report();
        trace::call("on_config_drop", "enter", || json!({ "config": config }));
        if let Some(f) = l.guest.get().and_then(|g| g.on_config_drop) {
            // SAFETY: a hook of a live library, with values, called where the host called the layer.
            in_frame(usize::MAX, Vec::new(), Vec::new(), || unsafe {
                f(ctx, config)
            });
        }
        l.library.config_thread_end();
        trace::call("on_config_drop", "exit", || json!({ "config": config }));
    });
}

unsafe extern "C" fn on_cancel<const N: usize>(
    ctx: u64,
    config: u64,
    user: u64,
    stream: u64,
    token: u64,
    worker: u32,
) {
    contained((), || {
        let Some(l) = link(N) else {
            return;
        };
        let Some(_) = begin(l, ctx, "on_cancel") else {
            return;
        };
        l.library
            .cancel_enter(config, user, stream, token, worker, IN_HOST.get())
            .report();
        let members = || json!({ "config": config, "user": user, "stream": stream, "token": token, "worker": worker });
        trace::call("on_cancel", "enter", members);
        if let Some(f) = l.guest.get().and_then(|g| g.on_cancel) {
            in_frame(usize::MAX, Vec::new(), Vec::new(), || {
                // SAFETY: as in `on_config_drop`.
                unsafe { f(ctx, config, user, stream, token, worker) }
            });
        }
        l.library.cancel_leave(stream);
        trace::call("on_cancel", "exit", members);
    });
}

unsafe extern "C" fn on_stream_end<const N: usize>(
    ctx: u64,
    config: u64,
    user: u64,
    stream: u64,
    worker: u32,
) {
    contained((), || {
        let Some(l) = link(N) else {
            return;
        };
        let Some(_) = begin(l, ctx, "on_stream_end") else {
            return;
        };
        l.library
            .stream_end_enter(config, user, stream, worker, IN_HOST.get())
            .report();
        let members =
            || json!({ "config": config, "user": user, "stream": stream, "worker": worker });
        trace::call("on_stream_end", "enter", members);
        if let Some(f) = l.guest.get().and_then(|g| g.on_stream_end) {
            in_frame(usize::MAX, Vec::new(), Vec::new(), || {
                // SAFETY: as in `on_config_drop`.
                unsafe { f(ctx, config, user, stream, worker) }
            });
        }
        trace::call("on_stream_end", "exit", members);
    });
}

unsafe extern "C" fn on_batch_end<const N: usize>(ctx: u64, worker: u32) {
    contained((), || {
        let Some(l) = link(N) else {
            return;
        };
        let Some(_) = begin(l, ctx, "on_batch_end") else {
            return;
        };
        l.library.batch_end_enter(worker, IN_HOST.get()).report();
        trace::call("on_batch_end", "enter", || json!({ "worker": worker }));
        if let Some(f) = l.guest.get().and_then(|g| g.on_batch_end) {
            // SAFETY: as in `on_config_drop`.
            in_frame(usize::MAX, Vec::new(), Vec::new(), || unsafe {
                f(ctx, worker)
            });
        }
        trace::call("on_batch_end", "exit", || json!({ "worker": worker }));
    });
}

unsafe extern "C" fn on_worker<const N: usize>(ctx: u64, worker: u32, up: u32) {
    contained((), || {
        let Some(l) = link(N) else {
            return;
        };
        let Some(_) = begin(l, ctx, "on_worker") else {
            return;
        };
        l.library.worker_enter(worker, up, IN_HOST.get()).report();
        let members = || json!({ "worker": worker, "arg": up });
        trace::call("on_worker", "enter", members);
        if let Some(f) = l.guest.get().and_then(|g| g.on_worker) {
            in_frame(usize::MAX, Vec::new(), Vec::new(), || {
                // SAFETY: as in `on_config_drop`.
                unsafe { f(ctx, worker, up) }
            });
        }
        trace::call("on_worker", "exit", members);
    });
}

unsafe extern "C" fn get_ext<const N: usize>(ctx: u64, id: *const u8, len: u64) -> *const c_void {
    contained(std::ptr::null(), || {
        let Some((l, f)) = link(N).and_then(|l| Some((l, l.guest.get()?.get_ext?))) else {
            return std::ptr::null();
        };
        // SAFETY: an any-thread function of a live library, with the memory that the host lends for the call.
        let at = unsafe { f(ctx, id, len) };
        let n = usize::try_from(len.min(1024)).unwrap_or(0);
        if let Ok(id) = peek::bytes(id as u64, n) {
            l.library.ext(false, id, at as u64).report();
        }
        at
    })
}

/// One function per slot: the slot says to which host a call belongs, and each side sees the other's own `ctx`.
macro_rules! per_slot {
    ($f:ident as $t:ty, $slot:expr) => {{
        let all: [$t; SLOTS] = [
            $f::<0>, $f::<1>, $f::<2>, $f::<3>, $f::<4>, $f::<5>, $f::<6>, $f::<7>,
        ];
        all[$slot]
    }};
}
pub(super) use per_slot;

/// The layer's table for the host. A required hook that the guest lacks stays absent, so that the host can refuse it;
/// optional ones are there always: what the host does with them is checked with every guest.
pub(super) fn guest_table(slot: usize, g: &abi::Guest) -> abi::Guest {
    type New = unsafe extern "C" fn(u64, *const abi::ConfigIn, *mut abi::ConfigOut) -> Status;
    type Drop = unsafe extern "C" fn(u64, u64);
    type Event = unsafe extern "C" fn(u64, *const abi::Event, *mut abi::EventResult);
    type Cancel = unsafe extern "C" fn(u64, u64, u64, u64, u64, u32);
    type End = unsafe extern "C" fn(u64, u64, u64, u64, u32);
    type Batch = unsafe extern "C" fn(u64, u32);
    type Worker = unsafe extern "C" fn(u64, u32, u32);
    type Ext = unsafe extern "C" fn(u64, *const u8, u64) -> *const c_void;
    abi::Guest {
        on_config_new: g
            .on_config_new
            .map(|_| per_slot!(on_config_new as New, slot)),
        on_config_drop: g
            .on_config_drop
            .map(|_| per_slot!(on_config_drop as Drop, slot)),
        on_event: g.on_event.map(|_| per_slot!(on_event as Event, slot)),
        on_cancel: g.on_cancel.map(|_| per_slot!(on_cancel as Cancel, slot)),
        on_stream_end: g
            .on_stream_end
            .map(|_| per_slot!(on_stream_end as End, slot)),
        on_batch_end: Some(per_slot!(on_batch_end as Batch, slot)),
        on_worker: Some(per_slot!(on_worker as Worker, slot)),
        get_ext: g.get_ext.map(|_| per_slot!(get_ext as Ext, slot)),
        ..*g
    }
}
