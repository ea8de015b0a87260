//! What the host's functions work on: tokens, handles, metrics, and what the guest asked for from any thread.

mod answers;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use proxy_golang_abi::feature::FeatureSet;
use proxy_golang_abi::{LogLevel, Status};

use super::judge::{Context, Way};
use super::model::{Outcome, phase_name};
use crate::finding::note;
use crate::sys::calls::HOST_THREAD;
use crate::sys::clock::{self, Patience};

/// Which optional entries of the table are NULL.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Nulls {
    pub(crate) log: bool,
    pub(crate) get_ext: bool,
    pub(crate) page: bool,
}

/// What a host's table says.
#[derive(Clone, Debug)]
pub(crate) struct HostOptions {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) features: FeatureSet,
    pub(crate) n_workers: u32,
    pub(crate) null: Nulls,
    pub(crate) tail: usize,
    pub(crate) log_level: u32,
}

/// Where in its life a token is.
#[derive(Clone, Debug)]
pub(crate) enum TokenState {
    Issued,
    Early(Box<Outcome>),
    Pending,
    Completed(Box<Outcome>),
    Retired,
}

struct Token {
    state: TokenState,
    context: Context,
    /// Answers that are given instead of the right one, each once.
    lies: Vec<i32>,
    accepted_with: Option<i32>,
}

struct Handle {
    live: bool,
    wakes: bool,
}

/// Something the guest asked for a stream, in the order of acceptance.
#[derive(Clone, Debug)]
pub(crate) enum Mail {
    Apply(Box<Outcome>),
    Wake(u64),
}

#[derive(Default)]
struct Inner {
    tokens: HashMap<u64, Token>,
    handles: HashMap<u64, Handle>,
    mail: HashMap<u64, Vec<Mail>>,
    logs: Vec<(u32, String)>,
    log_calls: u64,
    metrics: Vec<Vec<u8>>,
    ext_ids: Vec<String>,
    owned: Vec<(u64, u64)>,
    stale: u64,
    gate: Gate,
    gate_token: u64,
    /// Counts what was done with the gate.
    gate_moves: u64,
    /// Nobody opened it in time: the guest waited for the thread that was held.
    gate_tripped: bool,
    completes: u64,
}

/// Holds threads of the guest inside `complete`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Gate {
    #[default]
    Open,
    Closed,
    /// A thread waits in it.
    Occupied,
}

/// One host of the process.
pub(crate) struct StrictHost {
    index: u64,
    pub(crate) options: HostOptions,
    inner: Mutex<Inner>,
    changed: Condvar,
    events: AtomicU64,
    forgotten: AtomicU64,
    values: AtomicU64,
    /// Tokens and handles are small numbers (PXG-ABI-009).
    small: std::sync::atomic::AtomicBool,
    metrics: u64,
}

static HOSTS: RwLock<Vec<&'static StrictHost>> = RwLock::new(Vec::new());

/// Makes a host that lives as long as the process.
pub(crate) fn make(options: HostOptions) -> &'static StrictHost {
    let mut hosts = HOSTS.write().unwrap_or_else(PoisonError::into_inner);
    let host: &'static StrictHost = Box::leak(Box::new(StrictHost {
        index: hosts.len() as u64,
        options,
        inner: Mutex::default(),
        changed: Condvar::new(),
        events: AtomicU64::new(0),
        forgotten: AtomicU64::new(0),
        // Hosts of one process give different values.
        values: AtomicU64::new((hosts.len() as u64) << 20),
        small: false.into(),
        metrics: crate::sys::thunks::metrics_table(),
    }));
    hosts.push(host);
    host
}

/// The host whose table has this `ctx`.
pub(crate) fn by_ctx(ctx: u64) -> Option<&'static StrictHost> {
    let hosts = HOSTS.read().unwrap_or_else(PoisonError::into_inner);
    hosts
        .get(usize::try_from(ctx.wrapping_sub(FIRST_CTX)).ok()?)
        .copied()
}

const FIRST_CTX: u64 = 0x11;

impl StrictHost {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ctx(&self) -> u64 {
        FIRST_CTX + self.index
    }

    /// Another host of this process that gave `token`.
    fn owner_of(&self, token: u64) -> Option<&'static Self> {
        let hosts = HOSTS.read().unwrap_or_else(PoisonError::into_inner).clone();
        hosts
            .into_iter()
            .filter(|h| h.index != self.index)
            .find(|h| h.lock().tokens.contains_key(&token))
    }

    pub(crate) fn next_event(&self) -> u64 {
        self.events.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A token was never completed.
    pub(crate) fn forget(&self) {
        self.forgotten.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }

    pub(crate) fn use_small_values(&self) {
        self.small.store(true, Ordering::Relaxed);
    }

    fn next_value(&self) -> u64 {
        let n = self.values.fetch_add(1, Ordering::Relaxed);
        if self.small.load(Ordering::Relaxed) {
            // Above the offsets of members behind NULL, below the first page's end.
            0xA00 + n % 0x5ff
        } else {
            // 24 bits of slot, 40 of generation, no small numbers.
            (n + 0x10_0001) << 24 | ((n * 7919) & 0xff_ffff)
        }
    }

    // ---- the driver's side

    pub(crate) fn issue(&self, context: Context) -> u64 {
        let value = self.next_value();
        self.lock().tokens.insert(
            value,
            Token {
                state: TokenState::Issued,
                context,
                lies: Vec::new(),
                accepted_with: None,
            },
        );
        value
    }

    pub(crate) fn open_handle(&self, wakes: bool) -> u64 {
        let value = self.next_value();
        self.lock()
            .handles
            .insert(value, Handle { live: true, wakes });
        value
    }

    pub(crate) fn close_handle(&self, handle: u64) {
        let mut i = self.lock();
        if let Some(h) = i.handles.get_mut(&handle) {
            h.live = false;
        }
        i.mail.remove(&handle);
    }

    pub(crate) fn take_mail(&self, handle: u64) -> Vec<Mail> {
        self.lock().mail.remove(&handle).unwrap_or_default()
    }

    /// `on_event` returned PENDING: the kept result, if `complete` was faster.
    pub(crate) fn pend(&self, token: u64) -> Option<Outcome> {
        let mut i = self.lock();
        let t = i.tokens.get_mut(&token)?;
        match std::mem::replace(&mut t.state, TokenState::Pending) {
            TokenState::Early(o) => {
                t.state = TokenState::Retired;
                Some(*o)
            }
            _ => None,
        }
    }

    /// `on_event` returned something else: whether the token had been completed before.
    pub(crate) fn retire_issued(&self, token: u64) -> bool {
        let mut i = self.lock();
        i.tokens.get_mut(&token).is_some_and(|t| {
            matches!(
                std::mem::replace(&mut t.state, TokenState::Retired),
                TokenState::Early(_)
            )
        })
    }

    /// Waits until a pending token is completed, at most until `deadline`.
    pub(crate) fn wait(&self, token: u64, deadline: Instant) -> Option<Outcome> {
        let mut i = self.lock();
        loop {
            if let Some(t) = i.tokens.get_mut(&token)
                && let TokenState::Completed(_) = t.state
                && let TokenState::Completed(o) =
                    std::mem::replace(&mut t.state, TokenState::Retired)
            {
                return Some(*o);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            i = self
                .changed
                .wait_timeout(i, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Cancels: true if the token was pending, false if a completion came first.
    pub(crate) fn cancel(&self, token: u64) -> bool {
        let mut i = self.lock();
        i.tokens.get_mut(&token).is_some_and(|t| {
            matches!(
                std::mem::replace(&mut t.state, TokenState::Retired),
                TokenState::Pending
            )
        })
    }

    /// The next answers to `complete` for this token are these, whatever it says.
    pub(crate) fn lie(&self, token: u64, answers: &[i32]) {
        if let Some(t) = self.lock().tokens.get_mut(&token) {
            t.lies = answers.to_vec();
        }
    }

    /// A guest may keep a lock while it calls `complete`, and want it in a hook: a gate that is closed opens by itself
    /// after a while, unless [`StrictHost::keep_gate`] says that somebody else will do it.
    pub(crate) fn set_gate(&'static self, gate: Gate) {
        let moves = self.moved(Some(gate));
        if gate != Gate::Closed {
            return;
        }
        let opener = std::thread::Builder::new().name(HOST_THREAD.into());
        let spawned = opener.spawn(move || {
            clock::linger(Duration::from_millis(300));
            let mut i = self.lock();
            if i.gate_moves == moves && i.gate != Gate::Open {
                i.gate = Gate::Open;
                i.gate_tripped = true;
                self.changed.notify_all();
            }
        });
        if let Err(e) = spawned {
            self.moved(Some(Gate::Open));
            crate::finding::suite_error(format!("no thread for the gate: {e}"));
        }
    }

    /// The caller opens the gate.
    pub(crate) fn keep_gate(&self) {
        self.moved(None);
    }

    fn moved(&self, gate: Option<Gate>) -> u64 {
        let mut i = self.lock();
        i.gate_moves += 1;
        i.gate = gate.unwrap_or(i.gate);
        self.changed.notify_all();
        i.gate_moves
    }

    /// Whether the gate once had to open by itself.
    pub(crate) fn gate_tripped(&self) -> bool {
        self.lock().gate_tripped
    }

    /// Waits until a thread of the guest is held inside `complete`: the token it completes.
    pub(crate) fn wait_occupied(&self, limit: Duration) -> Option<u64> {
        let mut patience = Patience::new(limit);
        let mut i = self.lock();
        while i.gate != Gate::Occupied {
            // Measuring the machine must not keep the guest's threads from the lock.
            drop(i);
            if patience.over() {
                return None;
            }
            let left = patience
                .deadline()
                .saturating_duration_since(Instant::now());
            i = self
                .changed
                .wait_timeout_while(self.lock(), left, |i| i.gate != Gate::Occupied)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Some(i.gate_token)
    }

    pub(crate) fn is_occupied(&self) -> bool {
        self.lock().gate == Gate::Occupied
    }

    /// Waits until the guest has done something, or for `limit`.
    pub(crate) fn wait_changed(&self, limit: Duration) {
        let _ = self
            .changed
            .wait_timeout(self.lock(), limit)
            .unwrap_or_else(PoisonError::into_inner);
    }

    /// Waits until `complete` was called more than `n` times.
    pub(crate) fn wait_completes(&self, n: u64, limit: Duration) {
        let mut patience = Patience::new(limit);
        while self.completes() <= n && !patience.over() {
            self.wait_changed(Duration::from_millis(1));
        }
    }

    /// Buffers that passed to the host and have not been released.
    pub(crate) fn take_owned(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.lock().owned)
    }

    pub(crate) fn own(&self, buffers: Vec<(u64, u64)>) {
        self.lock().owned.extend(buffers);
    }

    pub(crate) fn logs(&self) -> Vec<(u32, String)> {
        self.lock().logs.clone()
    }

    pub(crate) fn log_calls(&self) -> u64 {
        self.lock().log_calls
    }

    pub(crate) fn ext_ids(&self) -> Vec<String> {
        self.lock().ext_ids.clone()
    }

    pub(crate) fn metrics_defined(&self) -> usize {
        self.lock().metrics.len()
    }

    pub(crate) fn completes(&self) -> u64 {
        self.lock().completes
    }

    /// Tokens that are still pending, by phase: for the end of a case.
    pub(crate) fn pending(&self) -> Vec<String> {
        self.lock()
            .tokens
            .iter()
            .filter(|(_, t)| matches!(t.state, TokenState::Pending))
            .map(|(v, t)| format!("token {v:#x} of {}", phase_name(t.context.phase)))
            .collect()
    }
}
