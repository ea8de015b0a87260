//! What the guest calls: the functions of the host's table and of its extensions.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;

use proxy_golang_abi as abi;
use proxy_golang_abi::{LogLevel, Status};

use super::arena::{self, Kind, Lent, Piece};
use super::boundary::{Builder, CANARY, Layout};
use super::reader::Reader;
use super::shared::{self, Hook};
use super::{peek, reader, threads};
use crate::finding::note;
use crate::host::model::Outcome;
use crate::host::state::{self, HostOptions, StrictHost};

/// What the running hook of this thread was lent.
pub(super) struct Running {
    pub(super) ctx: u64,
    pub(super) hook: Hook,
    pub(super) lent: Lent,
    pub(super) layout: Layout,
    pub(super) more: Vec<Piece>,
    pub(super) scratch: Vec<Piece>,
    pub(super) views: Vec<Piece>,
    pub(super) granted: u64,
}

thread_local! {
    pub(super) static RUNNING: RefCell<Vec<Running>> = const { RefCell::new(Vec::new()) };
    /// A `release` runs on this thread: it must not call the host.
    pub(super) static IN_RELEASE: Cell<bool> = const { Cell::new(false) };
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
        scratch: &reader::ranges(&scratch),
        views: &reader::ranges(&views),
        foreign: arena::is_ours,
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
                if let Some(s) = shared::current() {
                    s.refuse_scratch();
                }
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
