//! The two tables: what the host gave, what the guest gave, and the layer's own between them.

use std::sync::{Mutex, OnceLock, PoisonError};

use proxy_golang_abi as abi;
use proxy_golang_abi::feature::{Feature, missing};
use proxy_golang_abi::{GuestInitV1, LogLevel, Status};
use proxy_golang_conformance::parts::peek;
use proxy_golang_conformance::parts::reader::Reader;

use super::{fault, hooks, host_calls, load, memory, platform};
use crate::library::{Asked, Findings, Library};
use crate::report::{self, guest, host};
use crate::settings::{Mode, Settings};
use crate::trace;

/// How many hosts of one process may load one copy of the layer.
pub(super) const SLOTS: usize = 8;

/// A guest under a host, with what is called in each direction.
pub(crate) struct Link {
    pub(crate) library: Library,
    host_at: u64,
    pub(super) host: abi::Host,
    pub(super) guest: OnceLock<abi::Guest>,
    /// The table as it was at init, for the comparison at the end.
    snapshot: Vec<u8>,
    pub(super) metrics: OnceLock<Metrics>,
}

/// The host's table of `pxg.metrics/1`, and the layer's.
pub(super) struct Metrics {
    pub(super) real: abi::ext::MetricsV1,
    pub(super) given: abi::ext::MetricsV1,
}

// SAFETY: the tables' pointers lead to memory that stays valid as long as the process (PXG-NEG-001, PXG-LOAD-012), and
// every function says by its tag on which threads it may be called; the layer calls it where it was called itself.
unsafe impl Send for Link {}
// SAFETY: as above.
unsafe impl Sync for Link {}
// SAFETY: as above.
unsafe impl Send for Metrics {}
// SAFETY: as above.
unsafe impl Sync for Metrics {}

static LINKS: [OnceLock<Link>; SLOTS] = [const { OnceLock::new() }; SLOTS];

/// The link of a slot; its functions are handed out only after it was made.
pub(super) fn link(slot: usize) -> Option<&'static Link> {
    LINKS.get(slot)?.get()
}

/// The libraries in use.
pub(crate) fn libraries() -> impl Iterator<Item = &'static Library> {
    LINKS.iter().filter_map(|l| {
        let l = l.get()?;
        l.check_unchanged();
        Some(&l.library)
    })
}

impl Link {
    /// The host's table never changes (PXG-NEG-001).
    fn check_unchanged(&self) {
        let now = peek::bytes(self.host_at, self.snapshot.len());
        if now.is_ok_and(|n| n != self.snapshot) {
            let mut f = Findings::at("exit");
            f.list.push(host(
                "PXG-NEG-001",
                "the host's table is not what it was at init",
                "complete before init, and never changed",
            ));
            f.report();
        }
    }
}

/// The hosts that called init, in the order of their slots: where each table is, and where the guest's copy of it is.
static HOSTS: Mutex<Vec<(u64, Option<u64>)>> = Mutex::new(Vec::new());

/// Init is idempotent: a host keeps its slot.
fn slot_of(table: u64) -> Option<usize> {
    let mut hosts = HOSTS.lock().unwrap_or_else(PoisonError::into_inner);
    let known = hosts.iter().position(|(at, _)| *at == table);
    known.or_else(|| {
        hosts.push((table, None));
        (hosts.len() <= SLOTS).then(|| hosts.len() - 1)
    })
}

/// The table for the guest, which is the same at each init.
fn given_for(table: u64, slot: usize, h: &abi::Host, size: u32) -> *const abi::Host {
    let mut hosts = HOSTS.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = &mut hosts[slot].1;
    *entry.get_or_insert_with(|| {
        let all = peek::bytes(table, size.min(4096) as usize).unwrap_or_default();
        host_calls::table(slot, h, &all) as u64
    }) as *const abi::Host
}

fn tell(h: &abi::Host, text: &str) {
    report::say(&format!("pxg-layer: {text}"));
    if let Some(log) = h.log {
        // SAFETY: an any-thread function of the host that copies the text before it returns.
        unsafe { log(h.ctx, LogLevel::ERROR, text.as_ptr(), text.len() as u64) };
    }
}

fn start() -> Result<(&'static report::Reporter, GuestInitV1), String> {
    static STARTED: OnceLock<Result<GuestInitV1, String>> = OnceLock::new();
    let own = platform::own_file();
    let reporter = match report::current() {
        Some(r) => r,
        None => report::begin(Settings::read(&own, |n| std::env::var(n).ok())?)?,
    };
    let init = STARTED.get_or_init(|| {
        load::stay(&own);
        platform::watch_forks();
        load::guest(&reporter.settings.guest)
    });
    init.clone().map(|i| (reporter, i))
}

/// The layer's entry: what a host takes for the guest's.
///
/// # Safety
/// As the specification says of `pxg_guest_init_v1`: `table` is a complete table that lives as long as the process, and
/// `out` a zeroed one whose `size` is set.
// SAFETY: the name belongs to this ABI, and the function has the type that it says for it.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pxg_guest_init_v1(
    table: *const abi::Host,
    out: *mut abi::Guest,
) -> Status {
    std::panic::catch_unwind(|| init(table as u64, out as u64)).unwrap_or(Status::INTERNAL)
}

fn init(table: u64, out: u64) -> Status {
    let Ok(size) = peek::value::<u32>(table) else {
        report::say("pxg-layer: the host's table can't be read (PXG-ABI-012)");
        return Status::ARG;
    };
    let Ok(h) = peek::prefix::<abi::Host>(table, size as usize) else {
        report::say("pxg-layer: the host's table can't be read (PXG-ABI-003)");
        return Status::ARG;
    };
    let (reporter, real) = match start() {
        Ok(s) => s,
        Err(e) => {
            tell(&h, &e);
            return Status::INTERNAL;
        }
    };
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    reporter.count_call();
    let mut f = Findings::at("init");
    check_host(&h, size, table, &mut f);
    let Some(slot) = slot_of(table) else {
        tell(
            &h,
            &format!(
                "one copy of the layer serves {SLOTS} hosts of a process; copy the file for more"
            ),
        );
        return Status::STATE;
    };
    let name = read_text(h.name);
    let version = read_text(h.version);
    trace::init(&h, None, &name, &version);
    let given = given_for(table, slot, &h, size);
    let out_size = peek::value::<u32>(out).unwrap_or(0);
    if (out_size as usize) < size_of::<abi::Guest>() {
        f.list.push(host(
            "PXG-ABI-002",
            format!("pxg_guest.size is {out_size} at init"),
            "the size that the host knows, at least that of version 1.0 (200 bytes)",
        ));
    }
    let zeroed = peek::bytes(out + 4, (out_size.clamp(4, 4096) - 4) as usize)
        .is_ok_and(|b| b.iter().all(|b| *b == 0));
    if !zeroed {
        f.list.push(host(
            "PXG-ABI-011",
            "a pxg_guest that is not zero behind its size",
            "the host has zeroed it",
        ));
    }
    // A guest may call the host while it is initialised.
    let l = LINKS[slot].get_or_init(|| Link {
        library: Library::new(slot, h.features, h.n_workers),
        host_at: table,
        host: h,
        guest: OnceLock::new(),
        snapshot: peek::bytes(table, size as usize).unwrap_or_default(),
        metrics: OnceLock::new(),
    });
    // The guest sees the host's size: what is behind what the layer knows is the guest's and the host's affair.
    // SAFETY: `out` is the host's struct to be filled, with room for what its `size` says; the table that the guest is
    // given was leaked and lives as long as the process.
    let status = unsafe { real(given, out as *mut abi::Guest) };
    trace::init(&h, Some(status.0), &name, &version);
    if status.0 < 0 {
        f.report();
        return status;
    }
    let guest_size = peek::value::<u32>(out).unwrap_or(0);
    let g = match peek::prefix::<abi::Guest>(out, guest_size as usize) {
        Ok(g) => g,
        Err(_) => return Status::INTERNAL,
    };
    let refuse = check_guest(&h, &g, guest_size, out_size, &mut f);
    let _ = l.library.asked.set(Asked {
        required: g.required,
        known: g.known,
        refuse,
    });
    let _ = l.guest.set(g);
    if reporter.guards_memory() {
        // A runtime that the guest brought has installed its handlers by now.
        fault::install(reporter.settings.mode == Mode::Abort);
    }
    let mine = hooks::guest_table(slot, &g);
    let known = peek::as_bytes(&mine);
    let n = known.len().min(guest_size as usize);
    // SAFETY: the host's struct has room for `out_size` bytes, of which the guest took `guest_size`; `n` is not more.
    unsafe {
        std::ptr::copy_nonoverlapping(known.as_ptr(), out as *mut u8, n.min(out_size as usize));
    }
    f.report();
    status
}

fn read_text(s: abi::Str) -> String {
    let n = (s.len as usize).min(256);
    String::from_utf8_lossy(&peek::bytes(s.ptr as u64, n).unwrap_or_default()).into_owned()
}

fn check_host(h: &abi::Host, size: u32, at: u64, f: &mut Findings) {
    let mut put = |rule, what: String, expected: &str| f.list.push(host(rule, what, expected));
    if (size as usize) < size_of::<abi::Host>() {
        put(
            "PXG-ABI-002",
            format!("pxg_host.size is {size}"),
            "the size that the host knows, at least that of version 1.0 (144 bytes)",
        );
    }
    if !at.is_multiple_of(8) {
        put(
            "PXG-ABI-001",
            format!("pxg_host at {at:#x}"),
            "the alignment of the struct, 8",
        );
    }
    if h.major != abi::VERSION_MAJOR {
        put(
            "PXG-ABI-002",
            format!("pxg_guest_init_v1 by a host of major {}", h.major),
            "the major that the symbol's name says",
        );
    }
    let pends = h.features[0] & 0xff != 0;
    let applies = Feature::APPLY.is_in(&h.features);
    for (there, wanted, name) in [
        (h.complete.is_some(), pends, "complete"),
        (h.apply.is_some(), applies, "apply"),
        (h.wake.is_some(), applies, "wake"),
        (h.scratch_more.is_some(), true, "scratch_more"),
    ] {
        if there != wanted {
            put(
                "PXG-NEG-004",
                format!("`{name}` is {}", if there { "there" } else { "NULL" }),
                "complete is NULL iff no PEND feature is set, apply and wake iff APPLY is clear, scratch_more never (3.3)",
            );
        }
    }
    if !h.page.is_null() {
        match peek::value::<abi::Page>(h.page as u64) {
            Ok(p) if (p.size as usize) < size_of::<abi::Page>() || p.reserved0 != 0 => put(
                "PXG-ABI-002",
                format!(
                    "pxg_page with size {} and reserved0 {}",
                    p.size, p.reserved0
                ),
                "its size, and zero",
            ),
            Ok(_) => {}
            Err(_) => put(
                "PXG-NEG-001",
                format!("the page at {:p} can't be read", h.page),
                "memory that lives as long as the process, or NULL",
            ),
        }
    }
    let open = platform::open_signals();
    if !open.is_empty() {
        put(
            "PXG-RT-001",
            format!(
                "init with {} handled by the process and not blocked in this thread",
                open.join(", ")
            ),
            "process-directed signals are blocked while a guest is loaded (13.3)",
        );
    }
}

/// Checks what the guest filled; why the host must refuse it, if it must.
fn check_guest(
    h: &abi::Host,
    g: &abi::Guest,
    size: u32,
    given: u32,
    f: &mut Findings,
) -> Option<(&'static str, String)> {
    let mut refuse = None;
    let mut bad = |rule: &'static str, what: String, expected: &str| {
        f.list.push(guest(rule, what.clone(), expected));
        refuse.get_or_insert((rule, what));
    };
    if (size as usize) < size_of::<abi::Guest>() || size > given {
        bad(
            "PXG-ABI-002",
            format!("pxg_guest.size is {size} after init; the host gave {given}"),
            "what the host gave, or less where the guest knows less, at least that of version 1.0",
        );
    }
    if g.major != abi::VERSION_MAJOR {
        bad(
            "PXG-NEG-002",
            format!("the guest's major is {}", g.major),
            "the host's",
        );
    }
    for (there, name) in [
        (g.on_config_new.is_some(), "on_config_new"),
        (g.on_config_drop.is_some(), "on_config_drop"),
        (g.on_event.is_some(), "on_event"),
        (g.on_cancel.is_some(), "on_cancel"),
        (g.on_stream_end.is_some(), "on_stream_end"),
    ] {
        if !there {
            bad(
                "PXG-LOAD-010",
                format!("`{name}` is NULL"),
                "a required hook",
            );
        }
    }
    if g.flags.0 & !1 != 0 {
        bad(
            "PXG-ABI-005",
            format!("pxg_guest.flags is {:#x}", g.flags.0),
            "ABORTS (1) or nothing",
        );
    }
    let lacking = missing(&g.required, &h.features);
    if lacking != [0; 4] {
        // The guest may require what it likes; a host that lacks it must not go on.
        refuse.get_or_insert((
            "PXG-NEG-003",
            format!("the guest requires {lacking:x?}, which the host lacks"),
        ));
    }
    let reader = Reader {
        scratch: &[],
        views: &[],
        foreign: memory::is_ours,
    };
    let names = reader.array(g.filters, g.n_filters, |s: abi::Str| reader.text(s));
    let mut bad = |rule: &'static str, what: String, expected: &str| {
        f.list.push(guest(rule, what.clone(), expected));
        refuse.get_or_insert((rule, what));
    };
    let mut seen: Vec<&[u8]> = Vec::new();
    for n in names.get() {
        let b = n.bytes.as_deref().unwrap_or_default();
        if b.is_empty() || seen.contains(&b) {
            bad(
                "PXG-LOAD-010",
                format!("the filter name {:?}", String::from_utf8_lossy(b)),
                "names that are not empty and distinct",
            );
        }
        seen.push(b);
    }
    if names.get().is_empty() {
        bad(
            "PXG-LOAD-010",
            format!("{} filters, none of which can be read", g.n_filters),
            "at least one filter",
        );
    }
    refuse
}
