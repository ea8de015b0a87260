//! The functions of the test host's table.

use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr::{null, null_mut};

use proxy_golang_abi as abi;
use proxy_golang_abi::ext::{METRICS_V1_ID, MetricKind};
use proxy_golang_abi::{Action, LogLevel, Status, Str};

use super::{Mail, MetricOut, Mini, SCRATCH_MORE, State, Token, copy, fields_of};
use crate::raw::view::slice;

/// Scratch that the running call took by `scratch_more`.
#[derive(Default)]
struct Extra {
    in_call: bool,
    blocks: Vec<Vec<u128>>,
    taken: u64,
}

thread_local! {
    static EXTRA: RefCell<Extra> = RefCell::default();
}
/// The time in which `scratch_more` may be called on this thread.
pub(super) struct InCall;

pub(super) fn in_call() -> InCall {
    EXTRA.with_borrow_mut(|extra| extra.in_call = true);
    InCall
}

impl InCall {
    pub(super) fn end(self) {
        EXTRA.with_borrow_mut(|extra| *extra = Extra::default());
    }
}

/// # Safety
/// `ctx` must be that of a host made by [`Mini::start`].
unsafe fn mini(ctx: u64) -> &'static Mini {
    // SAFETY: the caller's; hosts are leaked.
    unsafe { &*std::ptr::with_exposed_provenance(ctx as usize) }
}

pub(super) unsafe extern "C" fn complete(
    ctx: u64,
    token: u64,
    r: *const abi::EventResult,
) -> Status {
    // SAFETY: the guest passes its host's ctx and a result that is valid during the call.
    let (mini, r) = unsafe { (mini(ctx), &*r) };
    // Owned buffers pass with every answer.
    let effects = mini.decode(r);
    let mut state = mini.state();
    let Some(life) = state.tokens.get_mut(&token) else {
        return Status::STALE;
    };
    if !matches!(
        effects.action,
        Action::CONTINUE | Action::REPLY | Action::RESET | Action::ERROR | Action::MORE
    ) {
        return Status::STATE;
    }
    match life {
        Token::Issued => *life = Token::Early(effects),
        Token::Pending => *life = Token::Completed(effects),
        Token::Early(_) | Token::Completed(_) => return Status::STALE,
    }
    mini.changed.notify_all();
    Status::OK
}

pub(super) unsafe extern "C" fn apply(ctx: u64, stream: u64, r: *const abi::EventResult) -> Status {
    // SAFETY: as in `complete`.
    let (mini, r) = unsafe { (mini(ctx), &*r) };
    let effects = mini.decode(r);
    let mut state = mini.state();
    let Some((mail, _)) = state.streams.get_mut(&stream) else {
        return Status::STALE;
    };
    if !matches!(
        effects.action,
        Action::CONTINUE | Action::REPLY | Action::RESET
    ) {
        return Status::STATE;
    }
    mail.push(Mail::Apply(effects));
    mini.changed.notify_all();
    Status::OK
}

pub(super) unsafe extern "C" fn wake(ctx: u64, stream: u64, arg: u64) -> Status {
    // SAFETY: as in `complete`.
    let mini = unsafe { mini(ctx) };
    let mut state = mini.state();
    let Some((mail, subscribed)) = state.streams.get_mut(&stream) else {
        return Status::STALE;
    };
    if !*subscribed {
        return Status::STATE;
    }
    match mail
        .iter_mut()
        .find_map(|m| if let Mail::Wake(a) = m { Some(a) } else { None })
    {
        Some(queued) => *queued |= arg,
        None => mail.push(Mail::Wake(arg)),
    }
    mini.changed.notify_all();
    Status::OK
}

pub(super) unsafe extern "C" fn log(ctx: u64, level: LogLevel, ptr: *const u8, len: u64) {
    // SAFETY: as in `complete`.
    let (mini, line) = unsafe { (mini(ctx), slice(ptr, len)) };
    let line = String::from_utf8_lossy(line).into_owned();
    mini.state().log.push((level, line));
}

pub(super) unsafe extern "C" fn scratch_more(_ctx: u64, n: u64) -> *mut u8 {
    EXTRA.with_borrow_mut(|extra| {
        if !extra.in_call || n > SCRATCH_MORE - extra.taken {
            return null_mut();
        }
        extra.taken += n;
        let mut block = vec![0_u128; (n as usize).div_ceil(16).max(1)];
        let p = block.as_mut_ptr().cast();
        extra.blocks.push(block);
        p
    })
}

pub(super) unsafe extern "C" fn get_ext(ctx: u64, id: *const u8, len: u64) -> *const c_void {
    // SAFETY: as in `complete`.
    let (mini, id) = unsafe { (mini(ctx), slice(id, len)) };
    if id == METRICS_V1_ID.as_bytes() {
        (&raw const mini.metrics).cast()
    } else {
        null()
    }
}

pub(super) unsafe extern "C" fn define(
    ctx: u64,
    kind: MetricKind,
    name: *const Str,
    labels: *const abi::Field,
    n_labels: u64,
    id: *mut u32,
) -> Status {
    // SAFETY: as in `complete`.
    let (mini, name, labels) = unsafe { (mini(ctx), copy(&*name), fields_of(labels, n_labels)) };
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    let (name, labels) = (
        text(name),
        labels
            .into_iter()
            .map(|(k, v)| (text(k), text(v)))
            .collect::<Vec<_>>(),
    );
    let legal = |n: &str| {
        n.bytes().next().is_some_and(|c| !c.is_ascii_digit())
            && n.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
    };
    if !legal(&name) || !labels.iter().all(|(k, _)| legal(k)) {
        return Status::ARG;
    }
    let state = &mut *mini.state();
    if state.validating {
        state.violations.push(format!(
            "PXG-CFG-004: a validation defined the metric {name}"
        ));
    }
    let metrics = &mut state.metrics;
    if metrics.iter().any(|m| m.name == name && m.kind != kind) {
        return Status::ARG;
    }
    let at = metrics
        .iter()
        .position(|m| m.name == name && m.labels == labels)
        .unwrap_or_else(|| {
            metrics.push(MetricOut {
                kind,
                name,
                labels,
                value: 0,
            });
            metrics.len() - 1
        });
    // SAFETY: as in `complete`.
    unsafe { *id = at as u32 + 1 };
    Status::OK
}

pub(super) unsafe extern "C" fn record(ctx: u64, id: u32, value: i64) -> Status {
    // SAFETY: as in `complete`.
    let mini = unsafe { mini(ctx) };
    if mini.state().record(id, value) {
        Status::OK
    } else {
        Status::NOTFOUND
    }
}

impl State {
    pub(crate) fn record(&mut self, id: u32, value: i64) -> bool {
        let Some(metric) = (id as usize)
            .checked_sub(1)
            .and_then(|at| self.metrics.get_mut(at))
        else {
            return false;
        };
        match metric.kind {
            MetricKind::COUNTER => metric.value += value,
            _ => metric.value = value,
        }
        true
    }
}
