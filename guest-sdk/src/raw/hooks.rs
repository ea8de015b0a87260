//! The guest's table: init, and the hooks that lead into a filter's methods, each behind a panic barrier
//! (PXG-ERR-002).

mod probe;

use std::any::Any;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::with_exposed_provenance;
use std::sync::{Arc, Mutex, PoisonError};

use proxy_golang_abi as abi;
use proxy_golang_abi::{Phase, Status, Str};

use super::call::Event;
use super::host::Host;
use super::view::{ConfigInput, bytes};
use crate::filter::Filter;
use crate::pending::CancelState;
use crate::{ConfigError, Outcome, Setup, Verdict};

/// One more than the largest phase number.
const PHASES: usize = abi::Phase::L4_CLOSE.0 as usize + 1;

// `extern "C"` because it does not unwind: so the hook can jump to it.
type Run = unsafe extern "C" fn(Host, *const ConfigHead, *const abi::Event, *mut abi::EventResult);
/// By phase; `unwanted` where the filter has no method.
type Runs = [Run; PHASES];

/// How a filter handles one phase.
pub struct PhaseSpec<F> {
    phase: Phase,
    run: Run,
    may_pend: bool,
    mode: abi::BodyMode,
    _filter: PhantomData<fn(&F)>,
}

/// A call of the method for one phase.
pub(super) trait Handler<F: Filter> {
    /// Calls it.
    fn handle<'c>(filter: &'c F, ctx: &'c mut F::Ctx, event: &Event<'c>) -> Outcome;
}

pub use probe::{NoPhases, Probe};

/// Number of phases that [`crate::__phases`] looks for.
const PROBED: usize = 12;

// ---- the library

/// One named filter of a library.
pub struct FilterEntry {
    name: &'static str,
    runs: Runs,
    subscribe: u64,
    may_pend: u64,
    mode: [abi::BodyMode; 2],
    configure: fn(
        &'static FilterEntry,
        Host,
        &abi::ConfigIn,
        &mut abi::ConfigOut,
    ) -> Result<(), ConfigError>,
}

impl FilterEntry {
    /// The entry of a filter type with the phases that it handles.
    #[must_use]
    pub const fn new<F: Filter>(
        name: &'static str,
        phases: [Option<PhaseSpec<F>>; PROBED],
    ) -> Self {
        let mut entry = Self {
            name,
            runs: [unwanted; PHASES],
            subscribe: 0,
            may_pend: 0,
            mode: [abi::BodyMode::UNSET; 2],
            configure: configure::<F>,
        };
        let mut i = 0;
        while i < PROBED {
            if let Some(spec) = &phases[i] {
                entry.runs[spec.phase.0 as usize] = spec.run;
                entry.subscribe |= abi::phase_bit(spec.phase);
                if spec.may_pend {
                    entry.may_pend |= abi::phase_bit(spec.phase);
                }
                if spec.phase.0 == Phase::REQUEST_BODY.0 {
                    entry.mode[abi::DIR_REQUEST] = spec.mode;
                } else if spec.phase.0 == Phase::RESPONSE_BODY.0 {
                    entry.mode[abi::DIR_RESPONSE] = spec.mode;
                }
            }
            i += 1;
        }
        entry
    }

    /// The name that a configuration chooses it by.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

/// A library of filters, made by [`crate::export!`] or [`crate::library!`].
pub struct Library {
    /// The library's name, for the host's log.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Its filters.
    pub filters: &'static [FilterEntry],
    /// Features without which nothing of it works.
    pub required: abi::feature::FeatureSet,
    /// Called when a worker comes up (true) and, as best it can, when it goes.
    pub on_worker: Option<fn(Host, u32, bool)>,
    /// Called once at the end of a loop iteration in which an event was deferred.
    pub on_batch_end: Option<fn(Host, u32)>,
}

/// A library in a host: the guest's `ctx`. One for each pair, for ever, so that init is idempotent (PXG-LOAD-006).
struct Instance {
    host: Host,
    library: &'static Library,
    filter_names: Vec<Str>,
}

// SAFETY: `filter_names` points to static strings.
unsafe impl Send for Instance {}
// SAFETY: as for Send.
unsafe impl Sync for Instance {}

static INSTANCES: Mutex<Vec<&'static Instance>> = Mutex::new(Vec::new());

/// What `pxg_guest_init_v1` does.
///
/// # Safety
/// The caller must be a host that keeps the contract of `pxg_guest_init_v1`: `host` valid as long as the process,
/// `out` valid for its `size`.
pub unsafe fn init(
    library: &'static Library,
    host: *const abi::Host,
    out: *mut abi::Guest,
) -> Status {
    catch_unwind(|| {
        if host.is_null() || out.is_null() {
            return Status::ARG;
        }
        // SAFETY: every version's table begins with size and major.
        let (size, major) = unsafe { ((*host).size, (*host).major) };
        if major != abi::VERSION_MAJOR {
            return Status::VERSION;
        }
        // SAFETY: every version's table begins with its size.
        let out_size = unsafe { (*out).size };
        if (size as usize) < size_of::<abi::Host>() || (out_size as usize) < size_of::<abi::Guest>()
        {
            return Status::ARG;
        }
        // SAFETY: long enough, as just checked, and the caller's.
        let host = unsafe { Host::new(host) };
        if host.table().scratch_more.is_none() {
            return Status::ARG;
        }
        let instance = instance(library, host);
        let known = abi::feature::Feature::ALL
            .iter()
            .fold([0; 4], |set, (feature, _)| feature.add_to(set));
        let guest = abi::Guest {
            size: size_of::<abi::Guest>() as u32,
            major: abi::VERSION_MAJOR,
            minor: abi::VERSION_MINOR,
            flags: if cfg!(panic = "abort") {
                abi::GuestFlags::ABORTS
            } else {
                abi::GuestFlags(0)
            },
            required: library.required,
            known,
            name: Str::new(library.name.as_bytes()),
            version: Str::new(library.version.as_bytes()),
            ctx: std::ptr::from_ref(instance).expose_provenance() as u64,
            filters: instance.filter_names.as_ptr(),
            n_filters: instance.filter_names.len() as u64,
            on_config_new: Some(on_config_new),
            on_config_drop: Some(on_config_drop),
            on_event: Some(on_event),
            on_cancel: Some(on_cancel),
            on_stream_end: Some(on_stream_end),
            on_batch_end: library.on_batch_end.map(|_| on_batch_end as _),
            on_worker: library.on_worker.map(|_| on_worker as _),
            get_ext: None,
        };
        // SAFETY: `out` has room for this version's table, as checked.
        unsafe { out.write(guest) };
        Status::OK
    })
    .unwrap_or(Status::INTERNAL)
}

fn instance(library: &'static Library, host: Host) -> &'static Instance {
    let mut all = INSTANCES.lock().unwrap_or_else(PoisonError::into_inner);
    let same = |i: &&&Instance| {
        std::ptr::eq(i.library, library) && std::ptr::eq(i.host.table(), host.table())
    };
    if let Some(found) = all.iter().find(same) {
        return found;
    }
    let new: &'static Instance = Box::leak(Box::new(Instance {
        host,
        library,
        filter_names: library
            .filters
            .iter()
            .map(|f| Str::new(f.name.as_bytes()))
            .collect(),
    }));
    all.push(new);
    new
}

/// # Safety
/// `ctx` must be what init answered.
#[inline(always)]
unsafe fn instance_of(ctx: u64) -> &'static Instance {
    // SAFETY: the caller's; instances are leaked.
    unsafe { &*with_exposed_provenance(ctx as usize) }
}

// ---- configurations

/// The part of a configuration that does not depend on its filter's type; its address is the configuration's value.
#[repr(C)]
pub(super) struct ConfigHead {
    runs: &'static Runs,
    /// Makes a stream's slot and answers it as `user`.
    pub(super) new_slot: fn() -> u64,
    cancel: unsafe fn(*const ConfigHead, user: u64),
    drop_slot: unsafe fn(user: u64),
    drop_config: unsafe fn(*mut ConfigHead),
    filter: unsafe fn(*const ConfigHead) -> *const (dyn Any + Send + Sync),
}

#[repr(C)]
struct Config<F> {
    head: ConfigHead,
    filter: F,
    // What `on_config_new` answered points here.
    _attributes: Vec<abi::AttrWant>,
    _projection: Vec<abi::Projection>,
    _names: Vec<String>,
}

fn configure<F: Filter>(
    entry: &'static FilterEntry,
    host: Host,
    input: &abi::ConfigIn,
    out: &mut abi::ConfigOut,
) -> Result<(), ConfigError> {
    let parent = (input.parent != 0).then(|| {
        let head: *const ConfigHead = with_exposed_provenance(input.parent as usize);
        // SAFETY: a configuration of this guest that is alive (PXG-CFG-003).
        unsafe { &*((*head).filter)(head) }
    });
    // SAFETY: views that are valid until `on_config_new` returns, and `configure` can keep none.
    let view = unsafe { ConfigInput::new(input, host, parent) };
    let mut setup = Setup::new(entry.subscribe, entry.may_pend, entry.mode);
    let filter = F::configure(&view, &mut setup)?;
    setup.check(&input.features)?;

    let names: Vec<String> = setup
        .attributes
        .iter()
        .map(|a| a.name.clone())
        .chain(setup.projection.iter().map(|p| p.0.clone()))
        .collect();
    // The strings' own memory does not move with the vector.
    let attributes: Vec<abi::AttrWant> = setup
        .attributes
        .iter()
        .zip(&names)
        .map(|(a, name)| abi::AttrWant {
            name: Str::new(name.as_bytes()),
            phases: a.phases,
            flags: if a.required {
                abi::AttrFlags::REQUIRED
            } else {
                abi::AttrFlags(0)
            },
            reserved0: 0,
        })
        .collect();
    let projection: Vec<abi::Projection> = setup
        .projection
        .iter()
        .zip(&names[attributes.len()..])
        .map(|((_, phases), name)| abi::Projection {
            name: Str::new(name.as_bytes()),
            phases: *phases,
        })
        .collect();
    out.flags = setup.flags;
    out.subscribe = setup.subscribe;
    out.pend_phases = setup.may_pend & setup.subscribe;
    out.body_mode = setup.mode;
    out.max_body = setup.max_body;
    out.pend_ns = setup.pend_ns;
    out.attrs = attributes.as_ptr();
    out.n_attrs = attributes.len() as u64;
    out.projection = projection.as_ptr();
    out.n_projection = projection.len() as u64;
    let config = Box::new(Config {
        head: ConfigHead {
            runs: &entry.runs,
            new_slot: new_slot::<F>,
            cancel: cancel::<F>,
            drop_slot: drop_slot::<F>,
            drop_config: drop_config::<F>,
            filter: filter_of::<F>,
        },
        filter,
        _attributes: attributes,
        _projection: projection,
        _names: names,
    });
    out.config = Box::into_raw(config).expose_provenance() as u64;
    Ok(())
}

unsafe extern "C" fn on_config_new(
    ctx: u64,
    input: *const abi::ConfigIn,
    out: *mut abi::ConfigOut,
) -> Status {
    // SAFETY: host contract: `ctx` is ours, `input` is a view, `out` is the guest's for the call; both are at least as
    // long as at v1.0.
    let (instance, input, out) = unsafe { (instance_of(ctx), &*input, &mut *out) };
    let made = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: a view of the call.
        let wanted = unsafe { bytes(&input.filter) };
        let filters = instance.library.filters;
        match filters.iter().find(|f| f.name.as_bytes() == wanted) {
            Some(entry) => (entry.configure)(entry, instance.host, input, out),
            None => {
                let known: Vec<&str> = filters.iter().map(FilterEntry::name).collect();
                Err(ConfigError::with_status(
                    Status::NOTFOUND,
                    format!(
                        "no filter \"{}\" in this library; it has {}",
                        String::from_utf8_lossy(wanted),
                        known.join(", ")
                    ),
                ))
            }
        }
    }));
    let error = match made {
        Ok(Ok(())) => return Status::OK,
        Ok(Err(error)) => error,
        Err(payload) => ConfigError::with_status(Status::INTERNAL, panic_text(payload)),
    };
    let text = error.to_string();
    let n = text.len().min(out.scratch_cap as usize);
    if n > 0 && !out.scratch.is_null() {
        // SAFETY: the host lends `scratch_cap` bytes for the call.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), out.scratch, n) };
        out.error = Str {
            ptr: out.scratch,
            len: n as u32,
            flags: abi::StrFlags(0),
        };
    }
    error.status()
}

unsafe extern "C" fn on_config_drop(_ctx: u64, config: u64) {
    let head: *mut ConfigHead = std::ptr::with_exposed_provenance_mut(config as usize);
    guard(|| {
        // SAFETY: a configuration of ours, dropped exactly once (PXG-CFG-005).
        unsafe { ((*head).drop_config)(head) }
    });
}

unsafe fn drop_config<F: Filter>(head: *mut ConfigHead) {
    // SAFETY: `configure::<F>` made the box and put this function into its head.
    drop(unsafe { Box::from_raw(head.cast::<Config<F>>()) });
}

unsafe fn filter_of<F: Filter>(head: *const ConfigHead) -> *const (dyn Any + Send + Sync) {
    // SAFETY: as in `drop_config`; alive by the caller's word.
    unsafe { &raw const (*head.cast::<Config<F>>()).filter }
}

// ---- streams

/// The part of a stream's slot that does not depend on the filter's type.
pub(super) struct SlotHead {
    watched: Vec<(u64, Arc<CancelState>)>,
}

impl SlotHead {
    pub(super) fn watch(&mut self, token: u64, state: Arc<CancelState>) {
        self.watched.retain(|(_, s)| !s.is_over());
        self.watched.push((token, state));
    }

    fn take(&mut self, token: u64) -> Option<Arc<CancelState>> {
        let at = self.watched.iter().position(|(t, _)| *t == token)?;
        Some(self.watched.swap_remove(at).1)
    }
}

/// What `user` points to.
#[repr(C)]
struct Slot<C> {
    head: SlotHead,
    ctx: C,
}

/// A context without memory and without a destructor needs no slot.
const fn is_stateless<C>() -> bool {
    size_of::<C>() == 0 && !std::mem::needs_drop::<C>()
}

fn new_slot<F: Filter>() -> u64 {
    let slot = Slot {
        head: SlotHead {
            watched: Vec::new(),
        },
        ctx: F::Ctx::default(),
    };
    Box::into_raw(Box::new(slot)).expose_provenance() as u64
}

unsafe fn drop_slot<F: Filter>(user: u64) {
    let slot: *mut Slot<F::Ctx> = std::ptr::with_exposed_provenance_mut(user as usize);
    // SAFETY: `new_slot::<F>` made it for this stream, and this is the stream's last call (PXG-EVT-006).
    drop(unsafe { Box::from_raw(slot) });
}

/// The hot path: one event of a filter `F` in the phase of `H`.
unsafe extern "C" fn run<F: Filter, H: Handler<F>>(
    host: Host,
    head: *const ConfigHead,
    ev: *const abi::Event,
    out: *mut abi::EventResult,
) {
    // SAFETY: `on_event` passes what the host lent for the call.
    let event = unsafe { Event::new(host, head, ev, out) };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: a live configuration whose entry has this function in `runs`, so its filter is an `F`.
        let filter = unsafe { &(*head.cast::<Config<F>>()).filter };
        if is_stateless::<F::Ctx>() {
            // For its side effects, and as the proof that there is such a value.
            let _ = F::Ctx::default();
            // SAFETY: a value of no size needs no memory, and it has no destructor to run.
            let ctx = unsafe { std::ptr::NonNull::<F::Ctx>::dangling().as_mut() };
            return H::handle(filter, ctx, &event);
        }
        // SAFETY: `out` is the guest's for the call; `user` was preset with the stream's slot or 0.
        let user = unsafe {
            if (*out).user == 0 {
                (*out).user = new_slot::<F>();
            }
            (*out).user
        };
        let slot: *mut Slot<F::Ctx> = std::ptr::with_exposed_provenance_mut(user as usize);
        // SAFETY: the stream's slot, with one event at a time; `defer` reaches its head only, not the context.
        H::handle(filter, unsafe { &mut (*slot).ctx }, &event)
    }));
    if matches!(outcome, Ok(Ok(Verdict::Continue))) && event.finish_plain() {
        // Nothing to drop: said so that no destructor is called to find that out.
        std::mem::forget(outcome);
        return;
    }
    let retired = conclude(&event, outcome);
    if let Some(token) = retired {
        // SAFETY: `out` is the guest's for the call; its `user` is the stream's slot: deferring made it.
        unsafe { forget((*out).user, token) }
    }
}

#[cold]
#[inline(never)]
fn conclude(event: &Event<'_>, outcome: std::thread::Result<Outcome>) -> Option<u64> {
    match outcome {
        Ok(outcome) => event.finish(outcome),
        Err(payload) => event.fail(&panic_text(payload)),
    }
}

/// An event was deferred and then not pending: whoever has its [`crate::Pending`] is told.
#[cold]
unsafe fn forget(user: u64, token: u64) {
    // SAFETY: the caller's: a slot with no other reference to its head.
    let slot: &mut SlotHead = unsafe { &mut *std::ptr::with_exposed_provenance_mut(user as usize) };
    if let Some(state) = slot.take(token) {
        guard(|| state.cancel());
    }
}

unsafe extern "C" fn on_event(ctx: u64, ev: *const abi::Event, out: *mut abi::EventResult) {
    // SAFETY: host contract: `ctx` is ours and `ev` a view with a live configuration of ours.
    let (host, head, phase) = unsafe {
        (
            instance_of(ctx).host,
            with_exposed_provenance::<ConfigHead>((*ev).config as usize),
            (*ev).phase,
        )
    };
    // SAFETY: as above.
    let runs = unsafe { (*head).runs };
    let at = phase.0 as usize;
    if at >= runs.len() {
        // SAFETY: the call's arguments.
        return unsafe { unwanted(host, head, ev, out) };
    }
    // SAFETY: the configuration's own function, with the call's arguments.
    unsafe { runs[at](host, head, ev, out) }
}

#[cold]
unsafe extern "C" fn unwanted(
    host: Host,
    head: *const ConfigHead,
    ev: *const abi::Event,
    out: *mut abi::EventResult,
) {
    // SAFETY: `on_event` passes what the host lent for the call.
    let event = unsafe { Event::new(host, head, ev, out) };
    let phase = event.phase().0;
    event.fail(&format!(
        "an event of phase {phase}, which this filter does not subscribe to"
    ));
}

unsafe extern "C" fn on_cancel(
    _ctx: u64,
    config: u64,
    user: u64,
    _stream: u64,
    token: u64,
    _worker: u32,
) {
    if user == 0 {
        return;
    }
    let head: *const ConfigHead = with_exposed_provenance(config as usize);
    // SAFETY: the stream's slot; no event of the stream runs now (PXG-EVT-002).
    let slot: &mut SlotHead = unsafe { &mut *std::ptr::with_exposed_provenance_mut(user as usize) };
    if let Some(state) = slot.take(token) {
        guard(|| state.cancel());
    }
    // SAFETY: a live configuration of ours and its stream's slot.
    guard(|| unsafe { ((*head).cancel)(head, user) });
}

unsafe fn cancel<F: Filter>(head: *const ConfigHead, user: u64) {
    // SAFETY: as in `run`: the head of an `F` and the slot of one of its streams, with no event running.
    let (filter, slot) = unsafe {
        let slot: *mut Slot<F::Ctx> = std::ptr::with_exposed_provenance_mut(user as usize);
        (&(*head.cast::<Config<F>>()).filter, &mut *slot)
    };
    filter.on_cancel(&mut slot.ctx);
}

unsafe extern "C" fn on_stream_end(_ctx: u64, config: u64, user: u64, _stream: u64, _worker: u32) {
    if user == 0 {
        return;
    }
    let head: *const ConfigHead = with_exposed_provenance(config as usize);
    // SAFETY: a live configuration of ours; the last call for this slot.
    guard(|| unsafe { ((*head).drop_slot)(user) });
}

unsafe extern "C" fn on_batch_end(ctx: u64, worker: u32) {
    // SAFETY: host contract.
    let instance = unsafe { instance_of(ctx) };
    if let Some(hook) = instance.library.on_batch_end {
        guard(|| hook(instance.host, worker));
    }
}

unsafe extern "C" fn on_worker(ctx: u64, worker: u32, up: u32) {
    // SAFETY: host contract.
    let instance = unsafe { instance_of(ctx) };
    if let Some(hook) = instance.library.on_worker {
        guard(|| hook(instance.host, worker, up != 0));
    }
}

/// The barrier of hooks that can't answer an error: the panic hook has printed it.
fn guard(f: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(f));
}

#[cold]
fn panic_text(payload: Box<dyn Any + Send>) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a payload that is no text");
    // The prefix is how a host tells panics from errors (PXG-ERR-006).
    let text = format!("panic: {text}");
    // A payload's destructor may panic as well.
    guard(|| drop(payload));
    text
}
