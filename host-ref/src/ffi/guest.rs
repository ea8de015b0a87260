//! Calls into a guest: a configuration as the engine's [`Guest`], and the hooks of a library.

use std::collections::VecDeque;
use std::ptr::null;
use std::sync::{Arc, Mutex, PoisonError};

use proxy_golang_abi as abi;
use proxy_golang_abi::feature::FeatureSet;
use proxy_golang_abi::{
    Action, BodyMode, ConfigFlags, ConfigIn, ConfigInFlags, ConfigOut, Event, EventResult,
    ResultFlags, Status, Str,
};

use super::decode::Reading;
use super::exports::Entry;
use super::lent::Loan;
use super::plain::{PlainOp, is_plain_pending, plain_ops};
use super::pointers::{copy_text, elements};
use super::{FieldView, StrView};
use crate::engine::{EventView, Fault, Filter, Guest, Outcome, Take};

/// Most attributes, and most fields of a projection, of one configuration.
const MAX_WANTS: u64 = 256;

/// The hooks of a loaded library, checked to be there. Lives as long as the process, as the library does.
pub(crate) struct GuestTable {
    pub(super) entry: &'static Entry,
    pub(super) ctx: u64,
    pub(super) on_config_new: unsafe extern "C" fn(u64, *const ConfigIn, *mut ConfigOut) -> Status,
    pub(super) on_config_drop: unsafe extern "C" fn(u64, u64),
    pub(super) on_event: unsafe extern "C" fn(u64, *const Event, *mut EventResult),
    pub(super) on_cancel: unsafe extern "C" fn(u64, u64, u64, u64, u64, u32),
    pub(super) on_stream_end: unsafe extern "C" fn(u64, u64, u64, u64, u32),
    pub(super) on_batch_end: Option<unsafe extern "C" fn(u64, u32)>,
    pub(super) on_worker: Option<unsafe extern "C" fn(u64, u32, u32)>,
    pub(super) get_ext:
        Option<unsafe extern "C" fn(u64, *const u8, u64) -> *const std::ffi::c_void>,
}

/// What `on_config_new` is asked for.
pub(crate) struct NewConfig<'a> {
    pub(crate) filter: &'a str,
    pub(crate) name: &'a str,
    pub(crate) bytes: &'a [u8],
    pub(crate) parent: u64,
    pub(crate) features: FeatureSet,
    pub(crate) validate_only: bool,
}

/// What `on_config_new` answered, copied. With a negative status only `error` means something.
pub(crate) struct ConfigAnswer {
    pub(crate) status: Status,
    pub(crate) config: u64,
    pub(crate) error: Vec<u8>,
    /// The lists, or why they cannot be read.
    pub(crate) lists: Result<ConfigLists, Fault>,
    pub(crate) flags: ConfigFlags,
    pub(crate) subscribe: u64,
    pub(crate) pend_phases: u64,
    pub(crate) body_mode: [BodyMode; 2],
    pub(crate) max_body: [u64; 2],
    pub(crate) pend_ns: u64,
}

/// The arrays of `pxg_config_out`.
pub(crate) struct ConfigLists {
    /// Name, phases, flags, reserved.
    pub(crate) attrs: Vec<(Vec<u8>, u64, u32, u32)>,
    /// Name, phases.
    pub(crate) projection: Vec<(Vec<u8>, u64)>,
}

impl GuestTable {
    pub(crate) fn entry(&self) -> &'static Entry {
        self.entry
    }

    /// \[config-thread\]
    pub(crate) fn config_new(&self, new: &NewConfig<'_>) -> ConfigAnswer {
        let text = |bytes: &[u8]| {
            if bytes.is_empty() {
                Str::EMPTY
            } else {
                Str::new(bytes)
            }
        };
        let input = ConfigIn {
            size: size_of::<ConfigIn>() as u32,
            flags: if new.validate_only {
                ConfigInFlags::VALIDATE_ONLY
            } else {
                ConfigInFlags(0)
            },
            features: new.features,
            filter: text(new.filter.as_bytes()),
            name: text(new.name.as_bytes()),
            bytes: text(new.bytes),
            parent: new.parent,
        };
        let loan = Loan::take();
        let size = size_of::<ConfigOut>() as u32;
        let mut out = ConfigOut {
            size,
            flags: ConfigFlags(0),
            config: 0,
            subscribe: 0,
            pend_phases: 0,
            body_mode: [BodyMode::UNSET; 2],
            max_body: [0; 2],
            pend_ns: 0,
            attrs: null(),
            n_attrs: 0,
            projection: null(),
            n_projection: 0,
            error: Str::EMPTY,
            scratch: loan.bytes(),
            scratch_cap: loan.bytes_cap(),
        };
        let shared = self.entry.shared();
        // SAFETY: the hook was checked to be there, the library is never unloaded, both structs live across the call.
        let status = loan.during(self.entry.ctx(), shared.scratch_more(), || unsafe {
            (self.on_config_new)(self.ctx, &raw const input, &raw mut out)
        });
        let regions = loan.regions();
        // SAFETY: the guest has just returned; what it borrows to us is valid until our next call into it.
        let (error, lists) = unsafe {
            let error =
                copy_text(&out.error, "error", &regions).unwrap_or_else(|f| f.text.into_bytes());
            let lists = if out.size == size {
                copy_lists(&out, &regions)
            } else {
                Err(Fault::new(
                    Status::ARG,
                    format!(
                        "size: found {}, expected {size} as it was lent (PXG-ABI-002)",
                        out.size
                    ),
                ))
            };
            (error, lists)
        };
        ConfigAnswer {
            status,
            config: out.config,
            error,
            lists,
            flags: out.flags,
            subscribe: out.subscribe,
            pend_phases: out.pend_phases,
            body_mode: out.body_mode,
            max_body: out.max_body,
            pend_ns: out.pend_ns,
        }
    }

    /// \[config-thread\]
    pub(crate) fn config_drop(&self, config: u64) {
        // SAFETY: the hook was checked to be there and the library is never unloaded.
        unsafe { (self.on_config_drop)(self.ctx, config) }
    }

    /// \[loop-thread\]
    pub(crate) fn worker(&self, worker: u32, up: bool) {
        if let Some(on_worker) = self.on_worker {
            // SAFETY: the library is never unloaded.
            unsafe { on_worker(self.ctx, worker, u32::from(up)) }
        }
    }

    /// \[loop-thread\]
    pub(crate) fn batch_end(&self, worker: u32) {
        if let Some(on_batch_end) = self.on_batch_end {
            // SAFETY: the library is never unloaded.
            unsafe { on_batch_end(self.ctx, worker) }
        }
    }

    /// \[any-thread\] A call that does nothing: a runtime's first one on a thread is slow.
    pub(crate) fn touch(&self) {
        const NOTHING: &[u8] = b"x.warm-up/1";
        if let Some(get_ext) = self.get_ext {
            // SAFETY: the library is never unloaded, and the id is static.
            unsafe { get_ext(self.ctx, NOTHING.as_ptr(), NOTHING.len() as u64) };
        }
    }
}

/// # Safety
/// A guest has just returned `out`, and no other call into it was made on this thread.
unsafe fn copy_lists(
    out: &ConfigOut,
    regions: &super::lent::Regions<'_>,
) -> Result<ConfigLists, Fault> {
    // SAFETY: promised by the caller.
    unsafe {
        let attrs: &[abi::AttrWant] =
            elements(out.attrs, out.n_attrs, "attrs", MAX_WANTS, regions)?;
        let attrs = attrs.iter().enumerate().map(|(i, a)| {
            let name = copy_text(&a.name, &format!("attrs[{i}].name"), regions)?;
            Ok((name, a.phases, a.flags.0, a.reserved0))
        });
        let projection: &[abi::Projection] = elements(
            out.projection,
            out.n_projection,
            "projection",
            MAX_WANTS,
            regions,
        )?;
        let projection = projection.iter().enumerate().map(|(i, p)| {
            Ok((
                copy_text(&p.name, &format!("projection[{i}].name"), regions)?,
                p.phases,
            ))
        });
        Ok(ConfigLists {
            attrs: attrs.collect::<Result<_, _>>()?,
            projection: projection.collect::<Result<_, _>>()?,
        })
    }
}

/// Configurations that nobody uses any more, until the config thread tells the guest.
#[derive(Default)]
pub(crate) struct RetireQueue {
    queue: Mutex<VecDeque<Retired>>,
    notify: std::sync::OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// A configuration to be dropped. It keeps its parent alive until it has been (PXG-CFG-003).
pub(crate) struct Retired {
    pub(crate) table: &'static GuestTable,
    pub(crate) config: u64,
    #[allow(dead_code)] // held, never read
    parent: Option<Arc<Filter>>,
}

impl RetireQueue {
    /// Called by any thread after something came in. Only the first setting counts.
    pub(crate) fn set_notify(&self, notify: Box<dyn Fn() + Send + Sync>) {
        // A second one has nobody to tell.
        let _ = self.notify.set(notify);
    }

    fn push(&self, retired: Retired) {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(retired);
        if let Some(notify) = self.notify.get() {
            notify();
        }
    }

    pub(crate) fn pop(&self) -> Option<Retired> {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}

/// One live configuration. Its drop is the end of its last user.
pub(super) struct FfiGuest {
    table: &'static GuestTable,
    config: u64,
    parent: Option<Arc<Filter>>,
    retire: Arc<RetireQueue>,
}

impl GuestTable {
    /// The configuration as the engine calls it. `on_config_drop` is queued when it is dropped.
    pub(crate) fn guest(
        &'static self,
        config: u64,
        parent: Option<Arc<Filter>>,
        retire: Arc<RetireQueue>,
    ) -> Arc<dyn Guest> {
        Arc::new(FfiGuest {
            table: self,
            config,
            parent,
            retire,
        })
    }
}

impl Drop for FfiGuest {
    fn drop(&mut self) {
        let (table, config, parent) = (self.table, self.config, self.parent.take());
        self.retire.push(Retired {
            table,
            config,
            parent,
        });
    }
}

/// The array of the ABI that a slice of views is. Null where it is empty: the address of an empty slice is a small
/// number, and a collected runtime does not survive one in a pointer.
macro_rules! array {
    ($views:expr, $view:ty => $abi:ty) => {{
        let views: &[$view] = $views;
        let ptr = if views.is_empty() {
            null::<$abi>()
        } else {
            views.as_ptr().cast()
        };
        (ptr, views.len() as u64)
    }};
}

impl Guest for FfiGuest {
    fn event(&self, event: &EventView<'_>, take: &mut dyn FnMut(Result<Outcome<'_>, Fault>)) {
        /// Takes nothing but decoded results.
        struct Decoded<'t>(&'t mut dyn FnMut(Result<Outcome<'_>, Fault>));
        impl Take for Decoded<'_> {
            fn plain(&mut self, _: u64, _: &[PlainOp<'_>]) -> bool {
                false
            }

            fn pending(&mut self, _: u64, _: u64) -> bool {
                false
            }

            fn outcome(&mut self, outcome: Result<Outcome<'_>, Fault>) {
                (self.0)(outcome);
            }
        }
        self.event_to(event, &mut Decoded(take));
    }

    fn event_to(&self, event: &EventView<'_>, take: &mut dyn Take) {
        let (fields, n_fields) = array!(event.fields, FieldView<'_> => abi::Field);
        let (trailers, n_trailers) = array!(event.trailers, FieldView<'_> => abi::Field);
        let (peer_fields, n_peer_fields) = array!(event.peer_fields, FieldView<'_> => abi::Field);
        let (peer_trailers, n_peer_trailers) =
            array!(event.peer_trailers, FieldView<'_> => abi::Field);
        let (chunks, n_chunks) = array!(event.chunks, StrView<'_> => Str);
        let (attrs, n_attrs) = array!(event.attrs, StrView<'_> => Str);
        let ev = Event {
            size: size_of::<Event>() as u32,
            phase: event.phase,
            flags: event.flags,
            worker: event.worker,
            config: self.config,
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
            chunks,
            n_chunks,
            body_offset: event.body_offset,
            attrs,
            n_attrs,
        };
        let loan = Loan::take();
        let mut result = EventResult {
            size: size_of::<EventResult>() as u32,
            action: Action::UNSET,
            flags: ResultFlags(0),
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
            scratch_ops: loan.ops(),
            scratch_ops_cap: loan.ops_cap(),
            scratch: loan.bytes(),
            scratch_cap: loan.bytes_cap(),
        };
        let out = &raw mut result;
        let table = self.table;
        let shared = table.entry.shared();
        // SAFETY: the hook was checked to be there, the library is never unloaded; the event, what it points to, the
        // result and the loan live across the call.
        loan.during(table.entry.ctx(), shared.scratch_more(), || unsafe {
            (table.on_event)(table.ctx, &raw const ev, out);
        });
        let regions = loan.regions();
        // SAFETY: the guest has just returned, and `take` does not enter it.
        if let Some(ops) = unsafe { plain_ops(&result, &regions, shared.limits()) }
            && take.plain(result.user, ops)
        {
            return;
        }
        if is_plain_pending(&result) && take.pending(result.user, result.pend_ns) {
            return;
        }
        let mut reading = Reading::new(result);
        // SAFETY: as above.
        unsafe {
            reading.lent(&regions);
            reading.show(&regions, shared.limits(), &mut |outcome| {
                take.outcome(outcome);
            });
        }
    }

    fn cancel(&self, user: u64, stream: u64, token: u64, worker: u32) {
        let t = self.table;
        // SAFETY: the hook was checked to be there and the library is never unloaded.
        unsafe { (t.on_cancel)(t.ctx, self.config, user, stream, token, worker) }
    }

    fn stream_end(&self, user: u64, stream: u64, worker: u32) {
        let t = self.table;
        // SAFETY: the hook was checked to be there and the library is never unloaded.
        unsafe { (t.on_stream_end)(t.ctx, self.config, user, stream, worker) }
    }

    fn batch_end(&self, worker: u32) {
        self.table.batch_end(worker);
    }

    fn library(&self) -> u32 {
        self.table.entry.id()
    }

    fn has_metric(&self, id: u32) -> bool {
        self.table.entry.has_metric(id)
    }

    fn record_metric(&self, id: u32, value: i64) -> Status {
        self.table.entry.record_metric(id, value)
    }

    fn config(&self) -> u64 {
        self.config
    }
}
