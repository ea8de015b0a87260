//! Guest libraries: checked, loaded for ever, configured.
//!
//! [`check`] looks at a file without running any of it, [`load()`] loads it, [`Library::configure`] makes a configuration
//! that the engine can put into a chain. All three belong on a *config thread*: any thread but a loop thread. Calls into
//! guests that the ABI wants serialised are, for the whole process.
//!
//! A process that forks must not load guests before: a Go runtime does not survive `fork` (PXG-LOAD-004). This host does not
//! fork; one that does validates in a child made for it, with [`ConfigRequest::validate_only`].

mod configure;
mod elf;
mod error;
mod load;
mod signals;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proxy_golang_abi::feature::FeatureSet;

pub use configure::ConfigRequest;
pub use elf::{ElfFacts, Libc, check};
pub use error::{ConfigError, LoadError, LoadErrorKind};
pub use load::load;

use crate::engine::Hub;
use crate::ffi::{
    Entry, GuestTable, LogSink, MetricLimits, MetricSnapshot, PageHandle, RetireQueue, Shared,
};

/// Numbers of attributes by their names.
pub type AttributeNames = dyn Fn(&str) -> Option<u32> + Send + Sync;

/// What a host is, to its guests and to the boundary.
#[derive(Clone)]
pub struct HostInfo {
    /// For guests' logs.
    pub name: String,
    /// For guests' logs.
    pub version: String,
    /// What this host can do.
    pub features: FeatureSet,
    /// Where `complete`, `apply` and `wake` end.
    pub hub: Arc<Hub>,
    /// Where log records go: level, name of the guest, text of one line, escaped and capped. Called by any thread, also
    /// inside of [`load()`]; must not block for long, and must not call into the host or a guest.
    pub log: Arc<LogSink>,
    /// Limits.
    pub limits: BoundaryLimits,
    /// The number of an attribute, by its name; `None` if this host never has it.
    pub attributes: Arc<AttributeNames>,
}

/// Limits of the boundary.
#[derive(Clone, Copy, Debug)]
pub struct BoundaryLimits {
    /// Bytes that `scratch_more` gives to one call in sum; the spec asks for 64 KiB at least.
    pub scratch_more: u64,
    /// Operations of a result, and parts of a reply's body.
    pub max_ops: u64,
    /// Fields, and trailers, of a reply.
    pub max_fields: u64,
    /// `max_body` of a configuration that leaves it to the host, per direction.
    pub body_default: [u64; 2],
    /// Most that `max_body` may be, per direction.
    pub body_limit: [u64; 2],
    /// Most that a configuration's `pend_ns` may be.
    pub pend_limit: Duration,
    /// Limits of guests' metrics.
    pub metrics: MetricLimits,
}

impl Default for BoundaryLimits {
    fn default() -> Self {
        Self {
            scratch_more: 1 << 20,
            max_ops: 1024,
            max_fields: 256,
            body_default: [1 << 20; 2],
            body_limit: [16 << 20; 2],
            pend_limit: Duration::from_secs(60),
            metrics: MetricLimits::default(),
        }
    }
}

/// A host of guests. What it hands to them lives as long as the process, so there is one per process, in tests a few.
pub struct Host {
    info: HostInfo,
    shared: Arc<Shared>,
    retire: Arc<RetireQueue>,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    /// By device and inode, refused ones included: what was mapped once stays.
    files: HashMap<(u64, u64), load::Mapped>,
    libraries: Vec<Arc<Library>>,
}

/// Serialises config-thread calls into guests (PXG-THR-001).
static CONFIG_THREAD: Mutex<()> = Mutex::new(());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is kept under these locks is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    /// A host.
    #[must_use]
    pub fn new(info: HostInfo) -> Arc<Self> {
        let limits = info.limits;
        let shared = Shared::new(
            info.name.clone(),
            info.version.clone(),
            info.features,
            Arc::clone(&info.hub),
            Arc::clone(&info.log),
            limits.scratch_more,
            (limits.max_ops, limits.max_fields),
            limits.metrics,
        );
        Arc::new(Self {
            info,
            shared,
            retire: Arc::default(),
            loaded: Mutex::default(),
        })
    }

    /// The words that guests read.
    #[must_use]
    pub fn page(&self) -> PageHandle {
        self.shared.page()
    }

    /// The libraries that are loaded, in the order in which they were.
    #[must_use]
    pub fn libraries(&self) -> Vec<Arc<Library>> {
        lock(&self.loaded).libraries.clone()
    }

    /// The metrics that guests defined.
    #[must_use]
    pub fn metrics(&self) -> Vec<MetricSnapshot> {
        self.shared.metrics()
    }

    /// Tells guests about configurations that nobody uses any more, children before their parents, and answers how many
    /// there were. To be called on the config thread after a notification, and at the end.
    pub fn drop_configs(&self) -> usize {
        let mut dropped = 0;
        while let Some(retired) = self.retire.pop() {
            {
                let _serial = lock(&CONFIG_THREAD);
                retired.table.config_drop(retired.config);
            }
            let library = self.library(retired.table.entry().id());
            if let Some(library) = library {
                lock(&library.state).configs.remove(&retired.config);
            }
            dropped += 1;
            // Its parent, if it was the last child, comes into the queue only now.
            drop(retired);
        }
        dropped
    }

    /// Sets what is called, by any thread, when there is something for [`Host::drop_configs`]. It must not block or call
    /// into a guest. Only the first setting counts.
    pub fn set_drop_notify(&self, notify: Box<dyn Fn() + Send + Sync>) {
        self.retire.set_notify(notify);
    }

    fn library(&self, id: u32) -> Option<Arc<Library>> {
        lock(&self.loaded)
            .libraries
            .iter()
            .find(|l| l.id() == id)
            .cloned()
    }
}

/// A loaded library. It is never unloaded.
pub struct Library {
    host: Arc<Host>,
    entry: &'static Entry,
    table: &'static GuestTable,
    facts: ElfFacts,
    name: String,
    version: String,
    filters: Vec<String>,
    required: FeatureSet,
    known: FeatureSet,
    aborts: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Configurations that are not dropped yet.
    configs: HashMap<u64, Live>,
    workers: HashSet<u32>,
}

struct Live {
    filter: String,
    is_override: bool,
}

impl Library {
    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.facts.path
    }

    /// What the file says.
    #[must_use]
    pub fn facts(&self) -> &ElfFacts {
        &self.facts
    }

    /// The guest's name, or the file's if it has none. Escaped and capped.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The guest's version. Escaped and capped.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The names of its filters.
    #[must_use]
    pub fn filters(&self) -> &[String] {
        &self.filters
    }

    /// Features without which it refuses to work.
    #[must_use]
    pub fn required(&self) -> FeatureSet {
        self.required
    }

    /// Features that it understands.
    #[must_use]
    pub fn known(&self) -> FeatureSet {
        self.known
    }

    /// Whether a panic in it ends the process.
    #[must_use]
    pub fn aborts(&self) -> bool {
        self.aborts
    }

    /// Its number in this process: the owner of tokens and metrics.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.entry.id()
    }

    /// Configurations that are not dropped yet.
    #[must_use]
    pub fn live_configs(&self) -> usize {
        lock(&self.state).configs.len()
    }

    /// \[loop-thread\] `on_worker(up)`, on the worker's own thread before its first event; nothing if it is up.
    pub fn worker_up(&self, worker: u32) {
        if lock(&self.state).workers.insert(worker) {
            self.table.worker(worker, true);
        }
    }

    /// \[loop-thread\] `on_worker(down)` after the worker's last event; nothing if it is not up.
    pub fn worker_down(&self, worker: u32) {
        if lock(&self.state).workers.remove(&worker) {
            self.table.worker(worker, false);
        }
    }

    /// \[loop-thread\] Makes the first calls on this thread, which are slow in a guest with a runtime:
    /// [`Library::worker_up`], and calls that do nothing (PXG-RT-004).
    pub fn warm_up(&self, worker: u32) {
        self.worker_up(worker);
        self.table.touch();
        self.table.touch();
    }

    /// \[loop-thread\] `on_batch_end`, if the guest has it. The engine's `Worker::end_batch` calls it where it is due.
    pub fn batch_end(&self, worker: u32) {
        self.table.batch_end(worker);
    }
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Library")
            .field("id", &self.id())
            .field("name", &self.name)
            .field("path", &self.facts.path)
            .field("filters", &self.filters)
            .finish_non_exhaustive()
    }
}

/// The file's name without its folder, for messages before a guest has said its own.
fn file_name(path: &Path) -> String {
    let name: PathBuf = path.file_name().unwrap_or(path.as_os_str()).into();
    crate::ffi::clean(name.as_os_str().as_encoded_bytes(), 128)
}
