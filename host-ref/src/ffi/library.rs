//! Opening a library and its one exported function.

use std::path::Path;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use proxy_golang_abi as abi;
use proxy_golang_abi::feature::FeatureSet;
use proxy_golang_abi::{GUEST_INIT_SYMBOL, GuestInitV1, Status};

use super::exports::Entry;
use super::guest::GuestTable;
use super::lent;
use super::pointers::{copy_text, elements};
use crate::engine::Fault;

/// Most filters of one library.
const MAX_FILTERS: u64 = 1024;

/// Why a library could not be opened: the dynamic linker's text.
pub(crate) enum OpenError {
    /// It could not be loaded.
    Load(String),
    /// The exported function is not in it.
    Symbol(String),
}

/// The exported function of a library that is loaded for the rest of the process.
#[derive(Clone, Copy)]
pub(crate) struct GuestInit(GuestInitV1);

/// Loads a library by its absolute path, for ever (PXG-LOAD-003, PXG-LOAD-005). Runs the library's initialisers: guests are
/// trusted code.
pub(crate) fn open(path: &Path) -> Result<GuestInit, OpenError> {
    // SAFETY: running a guest's initialisers is what loading it means; the caller has checked that it is one.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|e| OpenError::Load(why(&e)))?;
    // SAFETY: the symbol's name stands for this type (PXG-LOAD-001).
    let symbol = unsafe { library.get::<GuestInitV1>(GUEST_INIT_SYMBOL) };
    let init = symbol
        .map(|s| GuestInit(*s))
        .map_err(|e| OpenError::Symbol(why(&e)));
    // Never unloaded: its threads and its host table outlive every owner.
    std::mem::forget(library);
    init
}

/// The linker's own words, which libloading keeps as the source.
fn why(error: &libloading::Error) -> String {
    use std::error::Error as _;
    error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string)
}

/// What init answered. The members after `size` and `major` are to be read only if those are right.
pub(crate) struct GuestAnswer {
    pub(crate) status: Status,
    table: abi::Guest,
}

impl GuestInit {
    /// \[config-thread\]
    pub(crate) fn call(self, entry: &'static Entry) -> GuestAnswer {
        let mut table = abi::Guest {
            size: size_of::<abi::Guest>() as u32,
            major: 0,
            minor: 0,
            flags: abi::GuestFlags(0),
            required: [0; 4],
            known: [0; 4],
            name: abi::Str::EMPTY,
            version: abi::Str::EMPTY,
            ctx: 0,
            filters: std::ptr::null(),
            n_filters: 0,
            on_config_new: None,
            on_config_drop: None,
            on_event: None,
            on_cancel: None,
            on_stream_end: None,
            on_batch_end: None,
            on_worker: None,
            get_ext: None,
        };
        // SAFETY: the host's table is complete and lives as long as the process; ours is zeroed with its size set.
        let status = unsafe { (self.0)(entry.table(), &raw mut table) };
        GuestAnswer { status, table }
    }
}

impl GuestAnswer {
    pub(crate) fn size(&self) -> usize {
        self.table.size as usize
    }

    pub(crate) fn version(&self) -> (u32, u32) {
        (self.table.major, self.table.minor)
    }

    pub(crate) fn flags(&self) -> u32 {
        self.table.flags.0
    }

    pub(crate) fn required(&self) -> FeatureSet {
        self.table.required
    }

    pub(crate) fn known(&self) -> FeatureSet {
        self.table.known
    }

    /// Name and version, as the guest has them.
    pub(crate) fn names(&self) -> Result<(Vec<u8>, Vec<u8>), Fault> {
        // SAFETY: init has filled the table, and what it points to lives as long as the process.
        lent::with_current(|regions| unsafe {
            Ok((
                copy_text(&self.table.name, "pxg_guest.name", regions)?,
                copy_text(&self.table.version, "pxg_guest.version", regions)?,
            ))
        })
    }

    pub(crate) fn filters(&self) -> Result<Vec<Vec<u8>>, Fault> {
        let (ptr, n) = (self.table.filters, self.table.n_filters);
        // SAFETY: as above.
        lent::with_current(|regions| unsafe {
            let names: &[abi::Str] = elements(ptr, n, "pxg_guest.filters", MAX_FILTERS, regions)?;
            let names = names.iter().enumerate();
            names
                .map(|(i, name)| copy_text(name, &format!("pxg_guest.filters[{i}]"), regions))
                .collect()
        })
    }

    /// The hooks for the rest of the process, or the names of those that are missing.
    pub(crate) fn table(
        &self,
        entry: &'static Entry,
    ) -> Result<&'static GuestTable, Vec<&'static str>> {
        let t = &self.table;
        if let (
            Some(on_config_new),
            Some(on_config_drop),
            Some(on_event),
            Some(on_cancel),
            Some(on_stream_end),
        ) = (
            t.on_config_new,
            t.on_config_drop,
            t.on_event,
            t.on_cancel,
            t.on_stream_end,
        ) {
            return Ok(Box::leak(Box::new(GuestTable {
                entry,
                ctx: t.ctx,
                on_config_new,
                on_config_drop,
                on_event,
                on_cancel,
                on_stream_end,
                on_batch_end: t.on_batch_end,
                on_worker: t.on_worker,
                get_ext: t.get_ext,
            })));
        }
        let hooks = [
            ("on_config_new", t.on_config_new.is_none()),
            ("on_config_drop", t.on_config_drop.is_none()),
            ("on_event", t.on_event.is_none()),
            ("on_cancel", t.on_cancel.is_none()),
            ("on_stream_end", t.on_stream_end.is_none()),
        ];
        Err(hooks
            .iter()
            .filter(|(_, missing)| *missing)
            .map(|(name, _)| *name)
            .collect())
    }
}
