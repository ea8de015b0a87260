//! The boundary of the test host: tables, views that are poisoned after each call, results that are copied and checked.

mod table;

use std::collections::HashMap;
use std::ptr::null;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use proxy_golang_abi as abi;
use proxy_golang_abi::ext::{MetricKind, MetricsV1};
use proxy_golang_abi::{
    Action, BodyMode, Buf, LogLevel, Op, OpFlags, OpKind, Phase, Status, Str, StrFlags, Target,
};

use table::{apply, complete, define, get_ext, in_call, log, record, scratch_more, wake};

use super::hooks::{Library, init};
use super::view::slice;

/// What stands in memory that a guest has no business with any more.
const POISON: u8 = 0xdb;
/// Behind every struct that is longer than the guest knows (PXG-ABI-005), and behind what it may write (PXG-ABI-004).
const TAIL: [u8; 64] = [0xee; 64];
const SCRATCH_OPS: usize = 32;
const SCRATCH: usize = 4096;
/// What one call gets by `scratch_more`.
const SCRATCH_MORE: u64 = 1 << 20;

pub(crate) type FieldList = Vec<(Vec<u8>, Vec<u8>)>;

/// An event to deliver.
#[derive(Clone, Default)]
pub(crate) struct EventIn {
    pub(crate) phase: Phase,
    pub(crate) flags: abi::EventFlags,
    pub(crate) config: u64,
    pub(crate) user: u64,
    pub(crate) stream: u64,
    pub(crate) token: u64,
    pub(crate) arg: u64,
    pub(crate) fields: FieldList,
    pub(crate) trailers: FieldList,
    pub(crate) peer_fields: FieldList,
    pub(crate) peer_trailers: FieldList,
    pub(crate) chunks: Vec<Vec<u8>>,
    pub(crate) body_offset: u64,
    pub(crate) attrs: Vec<Option<Vec<u8>>>,
}

/// An operation, copied.
#[derive(Clone, Debug)]
pub(crate) struct OpOut {
    pub(crate) kind: OpKind,
    pub(crate) flags: OpFlags,
    pub(crate) target: Target,
    pub(crate) u0: u64,
    pub(crate) key: Vec<u8>,
    pub(crate) val: Vec<u8>,
}

/// A reply, copied.
#[derive(Clone, Debug)]
pub(crate) struct ReplyOut {
    pub(crate) status: u32,
    pub(crate) flags: abi::ReplyFlags,
    pub(crate) fields: FieldList,
    pub(crate) trailers: FieldList,
    pub(crate) body: Vec<u8>,
    pub(crate) details: Vec<u8>,
}

/// A result, copied.
#[derive(Clone, Debug)]
pub(crate) struct Effects {
    pub(crate) action: Action,
    pub(crate) flags: abi::ResultFlags,
    pub(crate) ops: Vec<OpOut>,
    pub(crate) reply: Option<ReplyOut>,
    pub(crate) unsubscribe: u64,
    pub(crate) body_mode: [BodyMode; 2],
    pub(crate) more_bytes: u64,
    pub(crate) error: String,
}

/// What a configuration answered.
#[derive(Clone, Debug)]
pub(crate) struct ConfigOut {
    pub(crate) config: u64,
    pub(crate) flags: abi::ConfigFlags,
    pub(crate) subscribe: u64,
    pub(crate) pend_phases: u64,
    pub(crate) body_mode: [BodyMode; 2],
    pub(crate) max_body: [u64; 2],
    pub(crate) attrs: Vec<(String, u64, bool)>,
}

/// The life of a token (spec, chapter 12).
pub(crate) enum Token {
    Issued,
    Early(Effects),
    Pending,
    Completed(Effects),
}

/// What waits for a stream.
pub(crate) enum Mail {
    Apply(Effects),
    Wake(u64),
}

#[derive(Clone, Debug)]
pub(crate) struct MetricOut {
    pub(crate) kind: MetricKind,
    pub(crate) name: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: i64,
}

#[derive(Default)]
pub(crate) struct State {
    /// Live tokens; a retired one is not there.
    pub(crate) tokens: HashMap<u64, Token>,
    /// Live streams with their mail, and whether they subscribe to WAKE.
    pub(crate) streams: HashMap<u64, (Vec<Mail>, bool)>,
    pub(crate) log: Vec<(LogLevel, String)>,
    pub(crate) metrics: Vec<MetricOut>,
    pub(crate) violations: Vec<String>,
    pub(crate) owned_released: u64,
    /// A validation runs: nothing may be defined (PXG-CFG-004).
    pub(crate) validating: bool,
    next: u64,
}

#[repr(C)]
struct Longer<T> {
    known: T,
    tail: [u8; 64],
}

/// One test host: leaked, since a guest may use its table for ever.
pub(crate) struct Mini {
    host: Longer<abi::Host>,
    page: abi::Page,
    metrics: MetricsV1,
    guest: abi::Guest,
    state: Mutex<State>,
    pub(crate) changed: Condvar,
}

// SAFETY: the raw pointers in the tables point to leaked or static memory that nobody changes after `start`.
unsafe impl Send for Mini {}
// SAFETY: as for Send.
unsafe impl Sync for Mini {}

impl Mini {
    /// Makes a host with these features and initialises the library in it.
    pub(crate) fn start(
        library: &'static Library,
        features: abi::feature::FeatureSet,
        level: LogLevel,
    ) -> &'static Self {
        let mini = Box::into_raw(Box::new(Self {
            host: Longer {
                known: abi::Host {
                    size: (size_of::<abi::Host>() + TAIL.len()) as u32,
                    major: abi::VERSION_MAJOR,
                    minor: abi::VERSION_MINOR,
                    n_workers: 4,
                    features,
                    name: Str::new(b"proxy-golang-guest testing"),
                    version: Str::new(env!("CARGO_PKG_VERSION").as_bytes()),
                    ctx: 0,
                    page: null(),
                    complete: Some(complete),
                    apply: Some(apply),
                    wake: Some(wake),
                    log: Some(log),
                    scratch_more: Some(scratch_more),
                    get_ext: Some(get_ext),
                },
                tail: TAIL,
            },
            page: abi::Page {
                size: size_of::<abi::Page>() as u32,
                log_level: level,
                draining: 0,
                reserved0: 0,
                monotonic_ns: 0,
                realtime_ns: 0,
            },
            metrics: MetricsV1 {
                size: size_of::<MetricsV1>() as u32,
                reserved0: 0,
                define: Some(define),
                record: Some(record),
            },
            // SAFETY: integers, null pointers and `None`: zero is a value of each member.
            guest: unsafe { std::mem::zeroed() },
            state: Mutex::default(),
            changed: Condvar::new(),
        }));
        // SAFETY: just made, leaked, and not shared before this function returns.
        unsafe {
            (*mini).host.known.ctx = mini.expose_provenance() as u64;
            (*mini).host.known.page = &raw const (*mini).page;
        }
        for again in [false, true] {
            // SAFETY: as for `guest` above.
            let mut guest: Longer<abi::Guest> = unsafe { std::mem::zeroed() };
            guest.tail = TAIL;
            guest.known.size = (size_of::<abi::Guest>() + TAIL.len()) as u32;
            // SAFETY: a host's table that is leaked, and an out-struct of the size that it says.
            let status =
                unsafe { init(library, &raw const (*mini).host.known, &raw mut guest.known) };
            assert!(status == Status::OK, "init answered {status:?}");
            assert!(
                guest.tail == TAIL,
                "PXG-ABI-004: init wrote beyond the table that it was given"
            );
            // SAFETY: as above.
            let first = unsafe { &mut (*mini).guest };
            assert!(
                !again || guest.known.ctx == first.ctx,
                "PXG-LOAD-006: init is not idempotent"
            );
            *first = guest.known;
        }
        // SAFETY: as above; from here on it is only read.
        unsafe { &*mini }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn features(&self) -> &abi::feature::FeatureSet {
        &self.host.known.features
    }

    pub(crate) fn violation(&self, text: impl Into<String>) {
        self.state().violations.push(text.into());
    }

    /// A fresh value for a stream or a token, never 0.
    pub(crate) fn fresh(&self) -> u64 {
        let mut state = self.state();
        state.next += 1;
        // Generation and slot, so that nobody takes a value for an index.
        (state.next << 24) | ((state.next * 7) & 0xff_ffff)
    }

    pub(crate) fn new_config(
        &self,
        filter: &str,
        name: &str,
        bytes: &[u8],
        features: abi::feature::FeatureSet,
        validate_only: bool,
        parent: u64,
    ) -> Result<ConfigOut, (Status, String)> {
        let (mut filter, mut name, mut bytes) = (
            filter.as_bytes().to_vec(),
            name.as_bytes().to_vec(),
            bytes.to_vec(),
        );
        let input = Longer {
            known: abi::ConfigIn {
                size: (size_of::<abi::ConfigIn>() + TAIL.len()) as u32,
                flags: if validate_only {
                    abi::ConfigInFlags::VALIDATE_ONLY
                } else {
                    abi::ConfigInFlags(0)
                },
                features,
                filter: str_of(&filter),
                name: str_of(&name),
                bytes: str_of(&bytes),
                parent,
            },
            tail: TAIL,
        };
        let mut scratch = vec![0xa5_u128; SCRATCH / 16];
        // SAFETY: integers and null pointers: zero is a value of each member.
        let mut out: Longer<abi::ConfigOut> = unsafe { std::mem::zeroed() };
        out.tail = TAIL;
        out.known.size = size_of::<abi::ConfigOut>() as u32;
        out.known.scratch = scratch.as_mut_ptr().cast();
        out.known.scratch_cap = SCRATCH as u64;
        let on_config_new = self.guest.on_config_new.expect("a guest has on_config_new");
        let call = in_call();
        // SAFETY: structs as the ABI says, alive during the call.
        let status =
            unsafe { on_config_new(self.guest.ctx, &raw const input.known, &raw mut out.known) };
        call.end();
        assert!(
            out.tail == TAIL,
            "PXG-ABI-004: on_config_new wrote beyond the struct that it was given"
        );
        // SAFETY: the guest's text, borrowed until the next call.
        let error = String::from_utf8_lossy(&unsafe { copy(&out.known.error) }).into_owned();
        for view in [&mut filter, &mut name, &mut bytes] {
            view.fill(POISON);
        }
        if status.0 < 0 {
            return Err((status, error));
        }
        assert!(out.known.config != 0, "0 is never a legal configuration");
        // SAFETY: borrowed until the next call.
        let wishes: &[abi::AttrWant] = unsafe { slice(out.known.attrs, out.known.n_attrs) };
        let attrs = wishes
            .iter()
            .map(|a| {
                // SAFETY: as above.
                let name = String::from_utf8_lossy(&unsafe { copy(&a.name) }).into_owned();
                (name, a.phases, a.flags == abi::AttrFlags::REQUIRED)
            })
            .collect();
        Ok(ConfigOut {
            config: out.known.config,
            flags: out.known.flags,
            subscribe: out.known.subscribe,
            pend_phases: out.known.pend_phases,
            body_mode: out.known.body_mode,
            max_body: out.known.max_body,
            attrs,
        })
    }

    pub(crate) fn drop_config(&self, config: u64) {
        if let Some(drop) = self.guest.on_config_drop {
            // SAFETY: the guest's configuration; the caller drops it once, after its last stream.
            unsafe { drop(self.guest.ctx, config) }
        }
    }

    pub(crate) fn cancel(&self, config: u64, user: u64, stream: u64, token: u64) {
        if let Some(cancel) = self.guest.on_cancel {
            // SAFETY: values of a live stream.
            unsafe { cancel(self.guest.ctx, config, user, stream, token, 0) }
        }
    }

    pub(crate) fn stream_end(&self, config: u64, user: u64, stream: u64) {
        if let Some(end) = self.guest.on_stream_end {
            // SAFETY: values of a live stream, and its last call.
            unsafe { end(self.guest.ctx, config, user, stream, 0) }
        }
    }

    pub(crate) fn worker(&self, up: bool) {
        if let Some(hook) = self.guest.on_worker {
            // SAFETY: takes values only.
            unsafe { hook(self.guest.ctx, 0, u32::from(up)) }
        }
    }

    pub(crate) fn batch_end(&self) {
        if let Some(hook) = self.guest.on_batch_end {
            // SAFETY: takes values only.
            unsafe { hook(self.guest.ctx, 0) }
        }
    }

    /// Delivers an event; answers the result and the new `user`.
    pub(crate) fn event(&self, event: &EventIn) -> (Effects, u64) {
        let mut views = Views::default();
        let (fields, n_fields) = views.fields(&event.fields);
        let (trailers, n_trailers) = views.fields(&event.trailers);
        let (peer_fields, n_peer_fields) = views.fields(&event.peer_fields);
        let (peer_trailers, n_peer_trailers) = views.fields(&event.peer_trailers);
        let chunks: Vec<Str> = event.chunks.iter().map(|c| views.text(c)).collect();
        let attrs: Vec<Str> = event
            .attrs
            .iter()
            .map(|a| a.as_ref().map_or(Str::ABSENT, |a| views.text(a)))
            .collect();
        let ev = Longer {
            known: abi::Event {
                size: (size_of::<abi::Event>() + TAIL.len()) as u32,
                phase: event.phase,
                flags: event.flags,
                worker: 0,
                config: event.config,
                user: event.user,
                stream: event.stream,
                token: event.token,
                arg: event.arg,
                fields,
                n_fields,
                trailers,
                n_trailers,
                peer_fields,
                n_peer_fields,
                peer_trailers,
                n_peer_trailers,
                chunks: chunks.as_ptr(),
                n_chunks: chunks.len() as u64,
                body_offset: event.body_offset,
                attrs: attrs.as_ptr(),
                n_attrs: attrs.len() as u64,
            },
            tail: TAIL,
        };
        let mut scratch_ops = vec![Op::ZERO; SCRATCH_OPS];
        let mut scratch = vec![0xa5a5_a5a5_a5a5_a5a5_u128; SCRATCH / 16];
        let mut out = Longer {
            known: abi::EventResult {
                size: size_of::<abi::EventResult>() as u32,
                action: Action::UNSET,
                flags: abi::ResultFlags(0),
                reserved0: 0,
                user: event.user,
                ops: null(),
                n_ops: 0,
                reply: null(),
                unsubscribe: 0,
                body_mode: [BodyMode::UNSET; 2],
                more_bytes: 0,
                pend_ns: 0,
                error: Str::EMPTY,
                scratch_ops: scratch_ops.as_mut_ptr(),
                scratch_ops_cap: SCRATCH_OPS as u64,
                scratch: scratch.as_mut_ptr().cast(),
                scratch_cap: SCRATCH as u64,
            },
            tail: TAIL,
        };
        let on_event = self.guest.on_event.expect("a guest has on_event");
        let call = in_call();
        // SAFETY: structs as the ABI says, alive during the call; one event at a time for the stream.
        unsafe { on_event(self.guest.ctx, &raw const ev.known, &raw mut out.known) };
        let effects = self.decode(&out.known);
        call.end();
        if out.tail != TAIL {
            self.violation("PXG-ABI-004: on_event wrote beyond the result that it was given");
        }
        let preset = &out.known;
        if effects.action == Action::PENDING
            && (!preset.ops.is_null()
                || preset.n_ops != 0
                || !preset.reply.is_null()
                || !preset.error.ptr.is_null())
        {
            self.violation("PXG-ACT-006: a PENDING result that is not as preset");
        }
        views.poison(self);
        (effects, out.known.user)
    }

    /// Copies a result and releases what it owns.
    fn decode(&self, r: &abi::EventResult) -> Effects {
        // SAFETY: borrowed by the guest for this call.
        let ops = unsafe { slice(r.ops, r.n_ops) };
        let ops = ops
            .iter()
            .map(|op| OpOut {
                kind: op.kind,
                flags: op.flags,
                target: op.target,
                u0: op.u0,
                // SAFETY: as above.
                key: unsafe { copy(&op.key) },
                val: self.take(&op.val),
            })
            .collect();
        // SAFETY: as above; null without a reply.
        let reply = unsafe { r.reply.as_ref() }.map(|reply| {
            // SAFETY: as above.
            let (fields, trailers, parts) = unsafe {
                (
                    fields_of(reply.fields, reply.n_fields),
                    fields_of(reply.trailers, reply.n_trailers),
                    slice(reply.body, reply.n_body),
                )
            };
            if reply.size as usize != size_of::<abi::Reply>() {
                self.violation(format!("PXG-ABI-002: a reply of size {}", reply.size));
            }
            ReplyOut {
                status: reply.status,
                flags: reply.flags,
                fields,
                trailers,
                body: parts.iter().flat_map(|part| self.take(part)).collect(),
                // SAFETY: as above.
                details: unsafe { copy(&reply.details) },
            }
        });
        Effects {
            action: r.action,
            flags: r.flags,
            ops,
            reply,
            unsubscribe: r.unsubscribe,
            body_mode: r.body_mode,
            more_bytes: r.more_bytes,
            // SAFETY: as above.
            error: String::from_utf8_lossy(&unsafe { copy(&r.error) }).into_owned(),
        }
    }

    /// Copies a buffer; releases it if it is owned, on a thread of its own to show that any will do (PXG-MEM-007).
    fn take(&self, buf: &Buf) -> Vec<u8> {
        // SAFETY: borrowed, static or owned: valid now.
        let bytes = unsafe { copy(&buf.bytes) };
        let owned = buf.bytes.flags.0 & StrFlags::OWNED.0 != 0;
        match buf.release {
            Some(release) if owned => {
                let ctx = buf.ctx;
                std::thread::scope(|s| {
                    s.spawn(move || {
                        // SAFETY: an owned buffer, released here and nowhere else.
                        unsafe { release(ctx) }
                    });
                });
                self.state().owned_released += 1;
            }
            None if !owned => {}
            _ => self.violation("PXG-MEM-006: `release` must be set exactly for OWNED buffers"),
        }
        bytes
    }
}

fn str_of(bytes: &[u8]) -> Str {
    if bytes.is_empty() {
        Str::EMPTY
    } else {
        Str::new(bytes)
    }
}

/// # Safety
/// The bytes must be valid now.
unsafe fn copy(s: &Str) -> Vec<u8> {
    // SAFETY: the caller's.
    unsafe { slice(s.ptr, u64::from(s.len)) }.to_vec()
}

/// # Safety
/// The fields must be valid now.
unsafe fn fields_of(ptr: *const abi::Field, n: u64) -> FieldList {
    // SAFETY: the caller's.
    unsafe {
        slice(ptr, n)
            .iter()
            .map(|f| (copy(&f.name), copy(&f.value)))
            .collect()
    }
}

/// The memory of an event's views.
#[derive(Default)]
struct Views {
    // With what each piece must still hold when the call returns.
    bytes: Vec<(Box<[u8]>, Vec<u8>)>,
    fields: Vec<Vec<abi::Field>>,
}

impl Views {
    fn text(&mut self, bytes: &[u8]) -> Str {
        if bytes.is_empty() {
            return Str::EMPTY;
        }
        let view: Box<[u8]> = bytes.into();
        let text = Str::new(&view);
        self.bytes.push((view, bytes.to_vec()));
        text
    }

    fn fields(&mut self, list: &FieldList) -> (*const abi::Field, u64) {
        if list.is_empty() {
            return (null(), 0);
        }
        let fields: Vec<abi::Field> = list
            .iter()
            .map(|(name, value)| abi::Field {
                name: self.text(name),
                value: self.text(value),
            })
            .collect();
        self.fields.push(fields);
        let fields = &self.fields[self.fields.len() - 1];
        (fields.as_ptr(), fields.len() as u64)
    }

    /// Overwrites everything. The memory stays allocated for ever, so that a late read finds poison, not chance.
    fn poison(self, mini: &Mini) {
        for (mut view, before) in self.bytes {
            if *view != *before {
                mini.violation("PXG-MEM-009: the guest wrote to a view");
            }
            view.fill(POISON);
            Box::leak(view);
        }
        for mut fields in self.fields {
            static GONE: [u8; 16] = [POISON; 16];
            fields.fill(abi::Field {
                name: Str::new(&GONE),
                value: Str::new(&GONE),
            });
            fields.leak();
        }
    }
}
