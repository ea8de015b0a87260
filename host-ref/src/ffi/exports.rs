//! The host's tables: what guests call, from any thread, at any time.
//!
//! Each load of a library gets an [`Entry`]: its own table with its own `ctx`. Entries are never freed, because a guest
//! may keep the table for as long as the process lives. `ctx` is looked up in a list, so a wrong one is found out.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use proxy_golang_abi as abi;
use proxy_golang_abi::ext::{METRICS_V1_ID, MetricKind, MetricsV1};
use proxy_golang_abi::feature::{Feature, FeatureSet, set_of};
use proxy_golang_abi::{Action, EventResult, Field, LogLevel, Phase, Status, Str};

use super::decode::Reading;
use super::members::Limits;
use super::metrics::{MetricLimits, MetricSnapshot, Metrics};
use super::plain::PlainOp;
use super::pointers::{copy_text, elements};
use super::text::{MAX_LOG_TEXT, clean};
use super::{PageHandle, lent, status_name};
use crate::engine::{Fault, Hub, KeptOutcome, OpKind, Outcome, check};

/// Most libraries that one process loads, attempts that failed included. Each keeps a host table for ever.
pub const MAX_LIBRARIES: usize = 4096;

/// Marks a `ctx` of ours, so that a small number that is no `ctx` is not taken for one.
const CTX: u64 = 0x5058_4700_0000_0000;

/// Where log records go: level, guest, text.
pub type LogSink = dyn Fn(LogLevel, &str, &str) + Send + Sync;

/// What all libraries of one host share.
pub(crate) struct Shared {
    name: String,
    version: String,
    features: FeatureSet,
    hub: Arc<Hub>,
    log: Arc<LogSink>,
    page: PageHandle,
    scratch_more: u64,
    limits: Limits,
    metrics: Metrics,
}

impl Shared {
    #[allow(clippy::too_many_arguments)] // one caller, `Host::new`, that names them
    pub(crate) fn new(
        name: String,
        version: String,
        features: FeatureSet,
        hub: Arc<Hub>,
        log: Arc<LogSink>,
        scratch_more: u64,
        (ops, fields): (u64, u64),
        metrics: MetricLimits,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            version,
            features,
            hub,
            log,
            page: PageHandle::leak(LogLevel::INFO),
            scratch_more,
            limits: Limits { ops, fields },
            metrics: Metrics::new(metrics),
        })
    }

    pub(crate) fn page(&self) -> PageHandle {
        self.page
    }

    pub(crate) fn features(&self) -> &FeatureSet {
        &self.features
    }

    pub(crate) fn metrics(&self) -> Vec<MetricSnapshot> {
        self.metrics.snapshot(|id| {
            Entry::by_id(id)
                .map(|e| e.label().to_string())
                .unwrap_or_default()
        })
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn scratch_more(&self) -> u64 {
        self.scratch_more
    }
}

/// One library under one host.
pub(crate) struct Entry {
    id: u32,
    table: abi::Host,
    shared: Arc<Shared>,
    /// For logs: the file's name, once known the guest's.
    label: RwLock<Arc<str>>,
    capturing: AtomicBool,
    captured: Mutex<Option<String>>,
}

// SAFETY: the table's pointers lead to memory that lives as long as the process and, but for the atomics of the page,
// is never written.
unsafe impl Send for Entry {}
// SAFETY: as above.
unsafe impl Sync for Entry {}

static ENTRIES: [OnceLock<&'static Entry>; MAX_LIBRARIES] =
    [const { OnceLock::new() }; MAX_LIBRARIES];
/// From 1: 0 is nobody.
static NEXT: AtomicU32 = AtomicU32::new(1);

impl Entry {
    /// An entry for the rest of the process; `None` if there are [`MAX_LIBRARIES`].
    pub(crate) fn leak(shared: &Arc<Shared>, label: &str) -> Option<&'static Self> {
        let id = NEXT
            .fetch_update(Relaxed, Relaxed, |n| {
                ((n as usize) < MAX_LIBRARIES).then_some(n + 1)
            })
            .ok()?;
        let pends = set_of(&[
            Feature::PEND_REQUEST_HEADERS,
            Feature::PEND_REQUEST_BODY,
            Feature::PEND_REQUEST_TRAILERS,
            Feature::PEND_RESPONSE_HEADERS,
            Feature::PEND_RESPONSE_BODY,
            Feature::PEND_RESPONSE_TRAILERS,
            Feature::PEND_L4_OPEN,
            Feature::PEND_L4_DATA,
        ]);
        let features = shared.features;
        let pends = (0..4).any(|i| features[i] & pends[i] != 0);
        let applies = Feature::APPLY.is_in(&features);
        // The entry keeps `shared`, and with it the two strings, for ever.
        let table = abi::Host {
            size: size_of::<abi::Host>() as u32,
            major: abi::VERSION_MAJOR,
            minor: abi::VERSION_MINOR,
            n_workers: shared.hub.workers(),
            features,
            name: Str::new(shared.name.as_bytes()),
            version: Str::new(shared.version.as_bytes()),
            ctx: CTX | u64::from(id),
            page: shared.page.as_abi(),
            complete: pends.then_some(complete),
            apply: applies.then_some(apply),
            wake: applies.then_some(wake),
            log: Some(log),
            scratch_more: Some(scratch_more),
            get_ext: Some(get_ext),
        };
        let entry: &'static Self = Box::leak(Box::new(Self {
            id,
            table,
            shared: Arc::clone(shared),
            label: RwLock::new(label.into()),
            capturing: AtomicBool::new(false),
            captured: Mutex::new(None),
        }));
        // The id was given out once.
        let _ = ENTRIES[id as usize].set(entry);
        Some(entry)
    }

    fn by_id(id: u32) -> Option<&'static Self> {
        ENTRIES.get(id as usize)?.get().copied()
    }

    fn find(ctx: u64) -> Option<&'static Self> {
        (ctx & !0xffff_ffff == CTX)
            .then(|| Self::by_id(ctx as u32))
            .flatten()
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(super) fn table(&'static self) -> &'static abi::Host {
        &self.table
    }

    pub(super) fn ctx(&self) -> u64 {
        self.table.ctx
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn label(&self) -> Arc<str> {
        Arc::clone(&self.label.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_label(&self, label: &str) {
        *self.label.write().unwrap_or_else(PoisonError::into_inner) = label.into();
    }

    pub(super) fn has_metric(&self, id: u32) -> bool {
        self.shared.metrics.owns(self.id, id)
    }

    pub(super) fn record_metric(&self, id: u32, value: i64) -> Status {
        self.shared.metrics.record(self.id, id, value)
    }

    /// A record of the host about this library.
    pub(crate) fn log(&self, level: LogLevel, text: &str) {
        if level >= self.shared.page.log_level() {
            (self.shared.log)(level, &self.label(), text);
        }
    }

    /// Runs `f` and answers what the guest logged last while it ran, errors before others: why init said no.
    pub(crate) fn capture<R>(&self, f: impl FnOnce() -> R) -> (R, Option<String>) {
        self.capturing.store(true, SeqCst);
        let answer = f();
        self.capturing.store(false, SeqCst);
        let text = self
            .captured
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        (answer, text)
    }

    fn guest_log(&self, level: LogLevel, text: &[u8]) {
        // One more than OFF is no level either: what has no meaning is an error (spec 15.1).
        let level = if level > LogLevel::ERROR {
            LogLevel::ERROR
        } else {
            level
        };
        let capturing = self.capturing.load(Relaxed);
        if level < self.shared.page.log_level() && !capturing {
            return;
        }
        let text = clean(text, MAX_LOG_TEXT);
        if capturing {
            *self.captured.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.clone());
        }
        self.log(level, &text);
    }

    fn refuse(&self, function: &str, fault: &Fault) -> Status {
        self.log(
            LogLevel::WARN,
            &format!(
                "{function}: answered {}: {}",
                status_name(fault.status),
                fault.text
            ),
        );
        fault.status
    }
}

/// Nothing unwinds into a guest (PXG-ABI-007).
fn barrier<R>(otherwise: R, f: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or(otherwise)
}

/// Takes over what `r` owns, whatever the answer will be; then, if `live` says OK, gives it to `plain` if it is that, or
/// decodes it and gives it to `take`.
///
/// # Safety
/// As [`Reading::given`].
unsafe fn accept(
    function: &str,
    ctx: u64,
    r: *const EventResult,
    live: impl FnOnce(&Entry) -> Status,
    plain: impl FnOnce(&Entry, &[PlainOp<'_>]) -> Option<Status>,
    take: impl FnOnce(&Entry, Outcome<'_>) -> Result<Status, Fault>,
) -> Status {
    lent::with_current(|regions| {
        // SAFETY: promised by the caller.
        let reading = unsafe { Reading::given(r, regions) };
        let Some(entry) = Entry::find(ctx) else {
            return Status::STALE;
        };
        let status = live(entry);
        if status != Status::OK {
            return status;
        }
        let Some(mut reading) = reading else {
            return entry.refuse(
                function,
                &Fault::new(
                    Status::ARG,
                    format!(
                        "found the result pointer {r:p}, expected one to a pxg_result, 8-aligned"
                    ),
                ),
            );
        };
        // SAFETY: as above.
        if let Some(ops) = unsafe { reading.plain(regions, &entry.shared.limits) }
            && let Some(status) = plain(entry, ops)
        {
            return status;
        }
        let mut answer = Status::INTERNAL;
        let mut judge = Some(|outcome: Outcome<'_>| {
            if outcome.action == Action::UNSET {
                return Err(Fault::new(
                    Status::ARG,
                    "found the action UNSET (0), expected a decision",
                ));
            }
            check(&outcome)?;
            take(entry, outcome)
        });
        // SAFETY: as above; the guest is still inside this function.
        unsafe {
            reading.show(regions, &entry.shared.limits, &mut |outcome| {
                answer = outcome
                    .and_then(|outcome| {
                        judge
                            .take()
                            .map_or(Ok(Status::INTERNAL), |judge| judge(outcome))
                    })
                    .unwrap_or_else(|fault| entry.refuse(function, &fault));
            });
        }
        answer
    })
}

fn wrong_action(found: Action, expected: &str) -> Fault {
    Fault::new(
        Status::STATE,
        format!("found the action {}, expected {expected}", found.0),
    )
}

unsafe extern "C" fn complete(ctx: u64, token: u64, r: *const EventResult) -> Status {
    barrier(Status::INTERNAL, || {
        // SAFETY: the guest's word for `r`.
        unsafe {
            accept(
                "complete",
                ctx,
                r,
                |entry| entry.shared.hub.token_status(entry.id, token),
                |entry, ops| {
                    let outcome = KeptOutcome::plain(ops)?;
                    Some(entry.shared.hub.complete(entry.id, token, outcome))
                },
                |entry, outcome| match outcome.action {
                    Action::CONTINUE
                    | Action::MORE
                    | Action::REPLY
                    | Action::RESET
                    | Action::ERROR => {
                        if let Some(phase) = entry.shared.hub.token_phase(entry.id, token) {
                            fits(phase, &outcome)?;
                        }
                        Ok(entry
                            .shared
                            .hub
                            .complete(entry.id, token, KeptOutcome::new(outcome)))
                    }
                    other => Err(wrong_action(
                        other,
                        "CONTINUE, MORE, REPLY, RESET or ERROR; the token lives on",
                    )),
                },
            )
        }
    })
}

unsafe extern "C" fn apply(ctx: u64, stream: u64, r: *const EventResult) -> Status {
    barrier(Status::INTERNAL, || {
        // SAFETY: the guest's word for `r`.
        unsafe {
            accept(
                "apply",
                ctx,
                r,
                |entry| entry.shared.hub.stream_status(entry.id, stream),
                |_, _| None,
                |entry, outcome| {
                    without_direction(&outcome)?;
                    match outcome.action {
                        Action::CONTINUE | Action::REPLY | Action::RESET => Ok(entry
                            .shared
                            .hub
                            .apply(entry.id, stream, KeptOutcome::new(outcome))),
                        other => Err(wrong_action(other, "CONTINUE, REPLY or RESET")),
                    }
                },
            )
        }
    })
}

/// Operations that no result of this phase may hold (spec 10.2). What the action leaves out is not judged.
fn fits(phase: Phase, outcome: &Outcome<'_>) -> Result<(), Fault> {
    if !matches!(outcome.action, Action::CONTINUE | Action::MORE) {
        return Ok(());
    }
    let body = matches!(phase, Phase::REQUEST_BODY | Phase::RESPONSE_BODY);
    let routes = matches!(phase, Phase::REQUEST_HEADERS | Phase::REQUEST_BODY);
    let bad = outcome.ops.iter().position(|op| match op.kind {
        OpKind::Pass(_) | OpKind::Drop(_) | OpKind::Inject(_) => !body,
        OpKind::Route(_) => !routes,
        OpKind::BodyWrite { .. } => true,
        _ => false,
    });
    match bad {
        None => Ok(()),
        Some(i) => Err(Fault::new(
            Status::ARG,
            format!(
                "result.ops[{i}]: found an operation that is not legal in a result of phase {} (PXG-MUT-006)",
                phase.0
            ),
        )),
    }
}

/// `apply` stands outside of both directions: what needs one is refused (spec 12.3).
fn without_direction(outcome: &Outcome<'_>) -> Result<(), Fault> {
    let arg = |text: String| Err(Fault::new(Status::ARG, text));
    if outcome.unsubscribe != 0
        || outcome.body_mode.iter().any(|m| m.0 != 0)
        || outcome.more_bytes != 0
        || outcome.flags.0 & abi::ResultFlags::RESIZES.0 != 0
    {
        return arg(
            "found unsubscribe, body_mode, more_bytes or RESIZES, expected zeros: apply has no direction".to_owned(),
        );
    }
    let bad = outcome.ops.iter().position(|op| {
        !matches!(
            op.kind,
            OpKind::Metadata { .. }
                | OpKind::Metric { .. }
                | OpKind::Route(_)
                | OpKind::BodyWrite { .. }
                | OpKind::Unknown(_)
        )
    });
    match bad {
        None => Ok(()),
        Some(i) => arg(format!(
            "result.ops[{i}]: found an operation on a direction, expected METADATA_SET, METRIC, ROUTE or BODY_WRITE"
        )),
    }
}

unsafe extern "C" fn wake(ctx: u64, stream: u64, arg: u64) -> Status {
    barrier(Status::INTERNAL, || {
        let Some(entry) = Entry::find(ctx) else {
            return Status::STALE;
        };
        entry.shared.hub.wake(entry.id, stream, arg)
    })
}

unsafe extern "C" fn log(ctx: u64, level: LogLevel, ptr: *const u8, len: u64) {
    barrier((), || {
        let Some(entry) = Entry::find(ctx) else {
            return;
        };
        let Ok(len) = isize::try_from(len) else {
            return;
        };
        let text = if ptr.is_null() || len == 0 {
            &[][..]
        } else {
            // SAFETY: the guest's word: `len` readable bytes until this function returns.
            unsafe { std::slice::from_raw_parts(ptr, len.unsigned_abs()) }
        };
        entry.guest_log(level, text);
    });
}

unsafe extern "C" fn scratch_more(ctx: u64, n: u64) -> *mut u8 {
    barrier(null_mut(), || lent::more(ctx, n))
}

unsafe extern "C" fn get_ext(ctx: u64, id: *const u8, len: u64) -> *const c_void {
    barrier(null(), || {
        if Entry::find(ctx).is_none() || id.is_null() || len != METRICS_V1_ID.len() as u64 {
            return null();
        }
        // SAFETY: the guest's word: `len` readable bytes until this function returns.
        let id = unsafe { std::slice::from_raw_parts(id, METRICS_V1_ID.len()) };
        if id == METRICS_V1_ID.as_bytes() {
            (&raw const METRICS).cast()
        } else {
            null()
        }
    })
}

static METRICS: MetricsV1 = MetricsV1 {
    size: size_of::<MetricsV1>() as u32,
    reserved0: 0,
    define: Some(define_metric),
    record: Some(record_metric),
};

unsafe extern "C" fn define_metric(
    ctx: u64,
    kind: MetricKind,
    name: *const Str,
    labels: *const Field,
    n_labels: u64,
    id: *mut u32,
) -> Status {
    barrier(Status::INTERNAL, || {
        let Some(entry) = Entry::find(ctx) else {
            return Status::STALE;
        };
        if name.is_null() || id.is_null() || !name.is_aligned() || !id.is_aligned() {
            return entry.refuse(
                "pxg.metrics/1 define",
                &Fault::new(
                    Status::ARG,
                    format!("found name {name:p} and id {id:p}, expected two aligned pointers"),
                ),
            );
        }
        // SAFETY: the guest's word for its pointers, until this function returns.
        let texts = lent::with_current(|regions| unsafe {
            let text = |s: &Str, what| {
                copy_text(s, what, regions).map(|t| String::from_utf8_lossy(&t).into_owned())
            };
            let limit = u64::from(entry.shared.metrics.limits().labels);
            let labels = elements(labels, n_labels, "labels", limit, regions)?;
            let labels = labels
                .iter()
                .map(|l| Ok((text(&l.name, "label")?, text(&l.value, "label value")?)));
            Ok((
                text(&*name, "name")?,
                labels.collect::<Result<Vec<_>, Fault>>()?,
            ))
        });
        let (name, labels) = match texts {
            Ok(texts) => texts,
            Err(fault) => return entry.refuse("pxg.metrics/1 define", &fault),
        };
        match entry.shared.metrics.define(entry.id, kind, name.clone(), labels) {
            Ok(number) => {
                // SAFETY: the guest's word: `id` is writable.
                unsafe { id.write(number) };
                Status::OK
            }
            Err(status) => entry.refuse("pxg.metrics/1 define", &Fault::new(
                status,
                format!(
                    "metric \"{}\" of kind {}: expected names [a-zA-Z_][a-zA-Z0-9_]*, labels that differ, the kind and \
                     the label names of its first definition, and no more series than the host's limit",
                    clean(name.as_bytes(), 128),
                    kind.0
                ),
            )),
        }
    })
}

unsafe extern "C" fn record_metric(ctx: u64, id: u32, value: i64) -> Status {
    barrier(Status::INTERNAL, || {
        Entry::find(ctx).map_or(Status::STALE, |entry| entry.record_metric(id, value))
    })
}
