//! What the guest calls: the functions of the host's table, each in front of the real one.

use std::ffi::c_void;

use proxy_golang_abi as abi;
use proxy_golang_abi::ext::{METRICS_V1_ID, MetricKind, MetricsV1};
use proxy_golang_abi::{LogLevel, Status};
use proxy_golang_conformance::parts::model::Outcome;
use proxy_golang_conformance::parts::peek;
use proxy_golang_conformance::parts::reader::Reader;
use serde_json::json;

use super::handover;
use super::hooks::{IN_HOST, IN_RELEASE, contained, frames, per_slot};
use super::memory::{self, For, Kind};
use super::tables::{Link, Metrics, SLOTS, link};
use crate::library::Findings;
use crate::report::{self, guest, host};
use crate::{perturb, report_faults, trace};

/// What every host function begins with. False: the ctx is not the host's, and what the host answers is its own affair.
fn begin(l: &Link, ctx: u64, function: &'static str) -> bool {
    if let Some(r) = report::current() {
        r.count_call();
    }
    if ctx != l.host.ctx {
        let mut f = Findings::at(function);
        f.list.push(guest(
            "PXG-ABI-009",
            format!("ctx {ctx:#x}"),
            format!("the ctx of the host's table, {:#x}", l.host.ctx),
        ));
        f.report();
        return false;
    }
    true
}

fn not_in_release(function: &'static str) {
    if IN_RELEASE.get() {
        let mut f = Findings::at(function);
        f.list.push(guest(
            "PXG-MEM-007",
            format!("`release` called the host's `{function}`"),
            "release frees and returns",
        ));
        f.report();
    }
}

/// Runs a function of the host's: a hook that begins on this thread meanwhile is called from inside it.
fn in_host<T>(function: &'static str, f: impl FnOnce() -> T) -> T {
    let outer = IN_HOST.replace(Some(function));
    let v = f();
    IN_HOST.set(outer);
    v
}

/// A result that was handed to `complete` or `apply`, as far as it can be read.
fn handed(at: u64, function: &'static str) -> Option<(Outcome, abi::EventResult)> {
    let mut f = Findings::at(function);
    let size = peek::value::<u32>(at).unwrap_or(0);
    if size == 0 || peek::bytes(at, size.min(4096) as usize).is_err() {
        f.list.push(guest(
            "PXG-ABI-012",
            format!("a result at {at:#x} that can't be read, or has size 0"),
            "a pxg_result with its size",
        ));
        f.report();
        return None;
    }
    if (size as usize) < size_of::<abi::EventResult>() {
        f.list.push(guest(
            "PXG-ABI-002",
            format!("a pxg_result of size {size}"),
            "the size that the guest knows, at least that of version 1.0 (128 bytes)",
        ));
        f.report();
        return None;
    }
    let (scratch, views) = frames(|f| {
        f.last()
            .map(|f| (f.scratch.clone(), f.views.clone()))
            .unwrap_or_default()
    });
    let reader = Reader {
        scratch: &scratch,
        views: &views,
        foreign: memory::is_ours,
    };
    let outcome = reader.outcome(at, size).ok()?;
    let raw = peek::prefix(at, size as usize).ok()?;
    Some((outcome, raw))
}

type Handing = unsafe extern "C" fn(u64, u64, *const abi::EventResult) -> Status;

/// Hands a result on, in memory that is gone when the host's function returns.
fn hand_on(
    l: &Link,
    function: &'static str,
    f: Handing,
    ctx: u64,
    value: u64,
    at: u64,
    o: Option<&(Outcome, abi::EventResult)>,
) -> Status {
    let guards = report::current().is_some_and(report::Reporter::guards_memory);
    let copy = o.and_then(|(o, raw)| {
        let stream = For {
            phase: 0,
            stream: value,
        };
        handover::result(o, raw, at, Kind::Handed, stream, l.library.slot, guards)
    });
    let owned = copy.as_ref().map_or(&[][..], |c| &c.owned);
    let member = if function == "apply" {
        "stream"
    } else {
        "token"
    };
    trace::handed(function, member, value, o.map(|o| &o.0), owned);
    let given = copy.as_ref().map_or(at, |c| c.at);
    let status = in_host(function, || {
        // SAFETY: an any-thread function of the host's with the guest's arguments, or a copy that lives until it
        // returns.
        unsafe { f(ctx, value, given as *const abi::EventResult) }
    });
    if let Some(c) = copy {
        c.slab.close(guards);
    }
    status
}

unsafe extern "C" fn complete<const N: usize>(
    ctx: u64,
    token: u64,
    r: *const abi::EventResult,
) -> Status {
    contained(Status::INTERNAL, || {
        let Some((l, f)) = link(N).and_then(|l| Some((l, l.host.complete?))) else {
            return Status::INTERNAL;
        };
        let mine = begin(l, ctx, "complete");
        perturb::pause();
        let o = handed(r as u64, "complete");
        if !mine || o.is_none() {
            return hand_on(l, "complete", f, ctx, token, r as u64, o.as_ref());
        }
        let (call, found) =
            l.library
                .complete_enter(token, o.as_ref().map(|o| &o.0), IN_RELEASE.get());
        found.report();
        let status = hand_on(l, "complete", f, ctx, token, r as u64, o.as_ref());
        l.library.complete_leave(&call, status).report();
        trace::call(
            "complete",
            "exit",
            || json!({ "token": token, "status": status.0 }),
        );
        perturb::pause();
        report_faults();
        status
    })
}

unsafe extern "C" fn apply<const N: usize>(
    ctx: u64,
    stream: u64,
    r: *const abi::EventResult,
) -> Status {
    contained(Status::INTERNAL, || {
        let Some((l, f)) = link(N).and_then(|l| Some((l, l.host.apply?))) else {
            return Status::INTERNAL;
        };
        let mine = begin(l, ctx, "apply");
        perturb::pause();
        let o = handed(r as u64, "apply");
        if !mine || o.is_none() {
            return hand_on(l, "apply", f, ctx, stream, r as u64, o.as_ref());
        }
        let (call, found) =
            l.library
                .apply_enter(stream, o.as_ref().map(|o| &o.0), IN_RELEASE.get());
        found.report();
        let status = hand_on(l, "apply", f, ctx, stream, r as u64, o.as_ref());
        l.library.apply_leave(&call, status).report();
        trace::call(
            "apply",
            "exit",
            || json!({ "stream": stream, "status": status.0 }),
        );
        report_faults();
        status
    })
}

unsafe extern "C" fn wake<const N: usize>(ctx: u64, stream: u64, arg: u64) -> Status {
    contained(Status::INTERNAL, || {
        let Some((l, f)) = link(N).and_then(|l| Some((l, l.host.wake?))) else {
            return Status::INTERNAL;
        };
        if !begin(l, ctx, "wake") {
            // SAFETY: an any-thread function of the host's, with values.
            return in_host("wake", || unsafe { f(ctx, stream, arg) });
        }
        perturb::pause();
        let ended = l.library.has_ended(stream);
        l.library.wake_enter(stream, arg, IN_RELEASE.get()).report();
        trace::call("wake", "enter", || json!({ "stream": stream, "arg": arg }));
        let status = in_host("wake", || {
            // SAFETY: an any-thread function of the host's, with values.
            unsafe { f(ctx, stream, arg) }
        });
        l.library.wake_leave(stream, ended, status).report();
        trace::call(
            "wake",
            "exit",
            || json!({ "stream": stream, "status": status.0 }),
        );
        status
    })
}

unsafe extern "C" fn log<const N: usize>(ctx: u64, level: LogLevel, ptr: *const u8, len: u64) {
    contained((), || {
        let Some((l, f)) = link(N).and_then(|l| Some((l, l.host.log?))) else {
            return;
        };
        begin(l, ctx, "log");
        not_in_release("log");
        let n = usize::try_from(len.min(1 << 20)).unwrap_or(0);
        let text = peek::bytes(ptr as u64, n);
        let mut found = Findings::at("log");
        if level.0 > LogLevel::ERROR.0 {
            found.list.push(guest(
                "PXG-OBS-002",
                format!("a record of the level {}", level.0),
                "TRACE (0) to ERROR (4)",
            ));
        }
        let page = peek::value::<abi::Page>(l.host.page as u64);
        if let Ok(p) = page
            && level.0 < p.log_level.0
        {
            // The level may have changed between the guest's look and this one.
            found.list.push(
                guest(
                    "PXG-OBS-002",
                    format!(
                        "a record of the level {} at log_level {}",
                        level.0, p.log_level.0
                    ),
                    "records below the page's log_level are not sent",
                )
                .warning(),
            );
        }
        match &text {
            Err(_) => found.list.push(guest(
                "PXG-ABI-012",
                format!("a record of {len} bytes at {ptr:p} that can't be read"),
                "memory that lives until log returns",
            )),
            Ok(t) if t.last() == Some(&b'\n') => found.list.push(
                guest(
                    "PXG-OBS-005",
                    "a record that ends with a line end",
                    "a record has no line end (15.1)",
                )
                .warning(),
            ),
            Ok(_) => {}
        }
        found.report();
        trace::call("log", "enter", || json!({ "arg": len }));
        let guards = report::current().is_some_and(report::Reporter::guards_memory);
        let whole = len == n as u64;
        let copy = text
            .ok()
            .filter(|t| guards && whole && !t.is_empty())
            .and_then(|t| handover::text(&t));
        let at = copy.as_ref().map_or(ptr, |s| s.start as *const u8);
        in_host("log", || {
            // SAFETY: an any-thread function of the host's, with memory that lives until it returns.
            unsafe { f(ctx, level, at, len) };
        });
        if let Some(s) = copy {
            s.close(true);
        }
        trace::call("log", "exit", || json!({ "status": 0 }));
    });
}

unsafe extern "C" fn scratch_more<const N: usize>(ctx: u64, n: u64) -> *mut u8 {
    /// What every host grants in one call at least.
    const LEAST: u64 = 64 << 10;
    contained(std::ptr::null_mut(), || {
        let Some((l, f)) = link(N).and_then(|l| Some((l, l.host.scratch_more?))) else {
            return std::ptr::null_mut();
        };
        begin(l, ctx, "scratch_more");
        not_in_release("scratch_more");
        let mut found = Findings::at("scratch_more");
        let running = frames(|s| {
            s.last()
                .filter(|f| f.slot == N)
                .map(|f| (f.granted, f.limit))
        });
        let rounded = n.max(1).div_ceil(16).saturating_mul(16);
        let Some((granted, limit)) = running else {
            found.list.push(guest(
                "PXG-THR-001",
                "called `scratch_more` outside of on_event and on_config_new, or on another thread",
                "[in-call]",
            ));
            found.report();
            // SAFETY: the host answers NULL where it can tell; the guest broke the rule, not the layer.
            return unsafe { f(ctx, n) };
        };
        if granted.saturating_add(rounded) > limit {
            return std::ptr::null_mut();
        }
        // SAFETY: inside of the hook that the host called, on its thread.
        let at = in_host("scratch_more", || unsafe { f(ctx, n) });
        let mut misaligned = 0;
        let mut dirty = false;
        if at.is_null() {
            if granted.saturating_add(rounded) <= LEAST {
                found.list.push(host(
                    "PXG-MEM-014",
                    format!("NULL for {n} bytes, and {granted} were granted in this call"),
                    "at least 64 KiB in sum per call",
                ));
            }
        } else {
            misaligned = at as u64 & 15;
            if misaligned != 0 {
                found.list.push(host(
                    "PXG-ABI-010",
                    format!("scratch_more answered {at:p}"),
                    "aligned to 16 bytes",
                ));
            }
            let len = usize::try_from(n.min(1 << 24)).unwrap_or(0);
            dirty = !peek::bytes(at as u64, len).is_ok_and(|b| b.iter().all(|b| *b == 0));
            if dirty {
                found.list.push(host(
                    "PXG-MEM-010",
                    format!("scratch_more answered {n} bytes that are not zero, or can't be read"),
                    "zeroed memory",
                ));
            }
            frames(|s| {
                if let Some(f) = s.last_mut() {
                    f.granted += rounded;
                    f.scratch.push((at as u64, n));
                }
            });
        }
        trace::call("scratch_more", "exit", || {
            json!({
                "arg": n, "misaligned": misaligned, "dirty": dirty,
                "status": if at.is_null() { Status::NOTFOUND.0 } else { 0 },
            })
        });
        found.report();
        at
    })
}

unsafe extern "C" fn get_ext<const N: usize>(ctx: u64, id: *const u8, len: u64) -> *const c_void {
    contained(std::ptr::null(), || {
        let Some((l, f)) = link(N).and_then(|l| Some((l, l.host.get_ext?))) else {
            return std::ptr::null();
        };
        begin(l, ctx, "get_ext");
        not_in_release("get_ext");
        // SAFETY: an any-thread function of the host's with the guest's arguments.
        let at = in_host("get_ext", || unsafe { f(ctx, id, len) });
        let n = usize::try_from(len.min(1024)).unwrap_or(0);
        let Ok(id) = peek::bytes(id as u64, n) else {
            return at;
        };
        let is_metrics = id == METRICS_V1_ID.as_bytes();
        let name = String::from_utf8_lossy(&id).into_owned();
        let mut found = l.library.ext(true, id, at as u64);
        if at.is_null() {
            found.report();
            return at;
        }
        let size = peek::value::<u32>(at as u64).unwrap_or(0);
        if size < 8 {
            found.list.push(host(
                "PXG-EXT-002",
                format!("the table of {name:?} begins with {size}"),
                "its size",
            ));
        }
        found.report();
        if !is_metrics {
            return at;
        }
        let m = l.metrics.get_or_init(|| Metrics {
            real: peek::prefix(at as u64, size as usize).unwrap_or(EMPTY),
            given: MetricsV1 {
                size: u32::try_from(size_of::<MetricsV1>()).unwrap_or(0),
                reserved0: 0,
                define: Some(per_slot!(define as Define, N)),
                record: Some(per_slot!(record as RecordMetric, N)),
            },
        });
        (&raw const m.given).cast()
    })
}

const EMPTY: MetricsV1 = MetricsV1 {
    size: 0,
    reserved0: 0,
    define: None,
    record: None,
};

type Define = unsafe extern "C" fn(
    u64,
    MetricKind,
    *const abi::Str,
    *const abi::Field,
    u64,
    *mut u32,
) -> Status;
type RecordMetric = unsafe extern "C" fn(u64, u32, i64) -> Status;

unsafe extern "C" fn define<const N: usize>(
    ctx: u64,
    kind: MetricKind,
    name: *const abi::Str,
    labels: *const abi::Field,
    n_labels: u64,
    id: *mut u32,
) -> Status {
    contained(Status::INTERNAL, || {
        let Some((l, f)) = link(N).and_then(|l| Some((l, l.metrics.get()?.real.define?))) else {
            return Status::UNSUPPORTED;
        };
        begin(l, ctx, "define");
        // SAFETY: an any-thread function of the host's with the guest's arguments.
        let status = in_host("define", || unsafe {
            f(ctx, kind, name, labels, n_labels, id)
        });
        if status.0 >= 0
            && let Some(series) = series(kind, name, labels, n_labels)
            && let Ok(id) = peek::value::<u32>(id as u64)
        {
            l.library.metric(series, id).report();
        }
        status
    })
}

/// What names a series: kind, name and labels.
fn series(
    kind: MetricKind,
    name: *const abi::Str,
    labels: *const abi::Field,
    n: u64,
) -> Option<Vec<u8>> {
    let text = |s: &abi::Str| peek::bytes(s.ptr as u64, s.len as usize).ok();
    let name = peek::value::<abi::Str>(name as u64).ok()?;
    let mut out = kind.0.to_le_bytes().to_vec();
    out.extend(text(&name)?);
    let n = usize::try_from(n).ok().filter(|n| *n <= 64)?;
    let mut pairs = Vec::new();
    for l in peek::array::<abi::Field>(labels as u64, n).ok()? {
        pairs.push((text(&l.name)?, text(&l.value)?));
    }
    // The order of labels does not matter.
    pairs.sort();
    for (n, v) in pairs {
        out.push(0);
        out.extend(n);
        out.push(b'=');
        out.extend(v);
    }
    Some(out)
}

unsafe extern "C" fn record<const N: usize>(ctx: u64, id: u32, value: i64) -> Status {
    contained(Status::INTERNAL, || {
        let Some((l, f)) = link(N).and_then(|l| Some((l, l.metrics.get()?.real.record?))) else {
            return Status::UNSUPPORTED;
        };
        begin(l, ctx, "record");
        // SAFETY: an any-thread function of the host's, with values.
        in_host("record", || unsafe { f(ctx, id, value) })
    })
}

/// The layer's table for the guest, at an address that lives as long as the process: the host's, with the layer's
/// functions where the host has some. `all`: the host's bytes, with what the layer does not know.
pub(super) fn table(slot: usize, h: &abi::Host, all: &[u8]) -> *const abi::Host {
    type Wake = unsafe extern "C" fn(u64, u64, u64) -> Status;
    type Log = unsafe extern "C" fn(u64, LogLevel, *const u8, u64);
    type More = unsafe extern "C" fn(u64, u64) -> *mut u8;
    type Ext = unsafe extern "C" fn(u64, *const u8, u64) -> *const c_void;
    let mine = abi::Host {
        complete: h.complete.map(|_| per_slot!(complete as Handing, slot)),
        apply: h.apply.map(|_| per_slot!(apply as Handing, slot)),
        wake: h.wake.map(|_| per_slot!(wake as Wake, slot)),
        log: h.log.map(|_| per_slot!(log as Log, slot)),
        scratch_more: h
            .scratch_more
            .map(|_| per_slot!(scratch_more as More, slot)),
        get_ext: h.get_ext.map(|_| per_slot!(get_ext as Ext, slot)),
        ..*h
    };
    let known = peek::as_bytes(&mine);
    let mut bytes = all.to_vec();
    bytes.resize(all.len().max(known.len()).next_multiple_of(8), 0);
    bytes[..known.len()].copy_from_slice(known);
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .map(|c| u64::from_ne_bytes(c.try_into().unwrap_or_default()))
        .collect();
    words.leak().as_ptr().cast()
}
