//! A loaded guest with its host, its configurations, and what cases do with them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proxy_golang_abi as abi;
use proxy_golang_abi::feature::{Feature, FeatureSet};

use super::config::{ConfigMade, ConfigSpec};
use super::judge::check_text;
use super::messages::Exchange;
use super::state::{self, HostOptions, Nulls, StrictHost};
use super::stream::{Options, Ran, Stream, all_features};
use crate::finding::{GuestInfo, Record, note, record, remark};
use crate::scenario::{Step, record as recorder};
use crate::subject::Subject;
use crate::sys::boundary::{self, Layout, Library};
use crate::sys::calls::{self, Guest, Initialised, Released};
use crate::sys::shared::{self, Stage};
use crate::sys::{fault, heap, threads, thunks};

/// How often what must not change is looked at.
const LOOK: Duration = Duration::from_micros(500);

/// A configuration that the guest accepted.
pub(crate) struct Conf {
    pub(crate) subject: Subject,
    pub(crate) made: ConfigMade,
    pub(crate) features: FeatureSet,
}

impl Conf {
    pub(crate) fn label(&self) -> String {
        self.subject.label()
    }
}

/// A guest in its strict host.
pub(crate) struct Rig {
    pub(crate) library: Library,
    pub(crate) table_at: u64,
    pub(crate) host: &'static StrictHost,
    pub(crate) guest: Guest,
    pub(crate) filters: Vec<String>,
    pub(crate) has_go: bool,
    release_blocks: AtomicBool,
}

/// A full host.
pub(crate) fn full() -> HostOptions {
    HostOptions {
        major: abi::VERSION_MAJOR,
        minor: abi::VERSION_MINOR,
        features: all_features(),
        n_workers: 2,
        null: Nulls::default(),
        tail: 0,
        log_level: 0,
    }
}

/// Loads the library; a refusal to load is a verdict.
pub(crate) fn load(path: &Path) -> Option<Library> {
    let stage = |s| {
        if let Some(shared) = shared::current() {
            shared.set_stage(s);
        }
    };
    stage(Stage::Loading);
    fault::install(0);
    let mask = threads::block_signals();
    if let Some(s) = shared::current() {
        s.enter(shared::Hook::Load, 0, 0, 0);
    }
    let loaded = boundary::load(path);
    if let Some(s) = shared::current() {
        s.leave();
    }
    mask.restore();
    match loaded {
        Ok(l) => {
            stage(Stage::Init);
            record_modules();
            Some(l)
        }
        Err(text) => {
            let rule = if text.contains("pxg_guest_init_v1") {
                "PXG-LOAD-001"
            } else {
                "PXG-LOAD-002"
            };
            note(rule, "the library can't be loaded", [text]);
            None
        }
    }
}

/// Tells the suite which files are mapped where, so that addresses become functions and lines.
fn record_modules() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for line in maps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [range, perms, offset, _, _, path] = words[..]
            && perms.contains('x')
            && path.starts_with('/')
            && let Some((low, high)) = range.split_once('-')
            && let (Ok(low), Ok(high), Ok(offset)) = (
                u64::from_str_radix(low, 16),
                u64::from_str_radix(high, 16),
                u64::from_str_radix(offset, 16),
            )
        {
            record(&Record::Module(path.to_string(), low, high, offset));
        }
    }
}

/// Calls init on a new host.
pub(crate) fn init(
    library: Library,
    options: HostOptions,
) -> (&'static StrictHost, u64, Initialised) {
    let host = state::make(options);
    let table_at = thunks::host_table(host, &host.options);
    let mask = threads::block_signals();
    let done = calls::init(library, table_at, 0);
    mask.restore();
    fault::install(1);
    (host, table_at, done)
}

impl Rig {
    /// Loads and initialises with `options`; `None` if that is already the verdict.
    pub(crate) fn start(path: &Path, has_go: bool, options: HostOptions) -> Option<Self> {
        Self::with_library(load(path)?, has_go, options)
    }

    pub(crate) fn with_library(
        library: Library,
        has_go: bool,
        options: HostOptions,
    ) -> Option<Self> {
        let (host, table_at, done) = init(library, options);
        Self::made(library, has_go, host, table_at, &done)
    }

    /// As [`Rig::start`], for a guest whose init was called by the case itself.
    pub(crate) fn attach(
        library: Library,
        has_go: bool,
        host: &'static StrictHost,
        done: Initialised,
    ) -> Option<Self> {
        Self::made(library, has_go, host, 0, &done)
    }

    fn made(
        library: Library,
        has_go: bool,
        host: &'static StrictHost,
        table_at: u64,
        done: &Initialised,
    ) -> Option<Self> {
        let rig = Self {
            library,
            table_at,
            host,
            guest: Guest {
                table: done.table,
                host,
            },
            filters: Vec::new(),
            has_go,
            release_blocks: AtomicBool::new(false),
        };
        if done.status.0 < 0 {
            let logs: Vec<String> = host.logs().into_iter().map(|(_, t)| t).collect();
            record(&Record::Blocked(format!(
                "pxg_guest_init_v1 answered {}: {}",
                done.status.0,
                if logs.is_empty() {
                    "it said nothing to `log`".to_string()
                } else {
                    logs.join("; ")
                }
            )));
            return None;
        }
        rig.inspected(done)
    }

    /// Checks the table, as a host does before it calls a hook (PXG-LOAD-010).
    fn inspected(mut self, done: &Initialised) -> Option<Self> {
        let t = &done.table;
        let v1 = u32::try_from(size_of::<abi::Guest>()).unwrap_or(0);
        if t.size < v1 || t.size > done.given {
            note(
                "PXG-ABI-002",
                format!("pxg_guest.size is {} after init", t.size),
                [format!(
                    "the host gave {}, and version 1.0 has {v1} bytes",
                    done.given
                )],
            );
            return None;
        }
        if t.major != abi::VERSION_MAJOR {
            note(
                "PXG-LOAD-010",
                format!("pxg_guest.major is {}", t.major),
                [],
            );
            return None;
        }
        if t.flags.0 & !1 != 0 {
            note(
                "PXG-ABI-005",
                format!("pxg_guest.flags has undefined bits {:#x}", t.flags.0 & !1),
                [],
            );
        }
        let missing: Vec<&str> = [
            ("on_config_new", t.on_config_new.is_none()),
            ("on_config_drop", t.on_config_drop.is_none()),
            ("on_event", t.on_event.is_none()),
            ("on_cancel", t.on_cancel.is_none()),
            ("on_stream_end", t.on_stream_end.is_none()),
        ]
        .into_iter()
        .filter_map(|(name, bad)| bad.then_some(name))
        .collect();
        if !missing.is_empty() {
            note(
                "PXG-LOAD-010",
                format!("the table lacks {}", missing.join(", ")),
                [],
            );
        }
        if t.n_filters == 0 || t.n_filters > 4096 {
            note(
                "PXG-LOAD-010",
                format!("the table says {} filters", t.n_filters),
                [],
            );
            return None;
        }
        let Some(filters) = calls::filters(t) else {
            note(
                "PXG-ABI-012",
                format!("filters: {} elements that can't be read", t.n_filters),
                [],
            );
            return None;
        };
        let mut put = |rule: &'static str, text: String| note(rule, text, []);
        for (i, f) in filters.iter().enumerate() {
            check_text(f, &format!("filters[{i}]"), false, &mut put);
        }
        for (name, s) in [("name", t.name), ("version", t.version)] {
            check_text(
                &calls::table_text(s),
                &format!("pxg_guest.{name}"),
                false,
                &mut put,
            );
        }
        let names: Vec<String> = filters
            .iter()
            .map(|f| String::from_utf8_lossy(f.get()).into_owned())
            .collect();
        for (i, n) in names.iter().enumerate() {
            if n.is_empty() {
                note("PXG-LOAD-010", "a filter has an empty name", []);
            } else if names[..i].contains(n) {
                note(
                    "PXG-LOAD-010",
                    format!("two filters have the name {n:?}"),
                    [],
                );
            }
        }
        if !missing.is_empty() {
            return None;
        }
        let lacks = abi::feature::missing(&t.required, &self.host.options.features);
        if lacks != [0; 4] {
            record(&Record::Blocked(format!(
                "the guest requires features {lacks:x?}"
            )));
            return None;
        }
        let aborts = t.flags.0 & 1 != 0;
        if let Some(s) = shared::current() {
            s.set_containment(aborts);
            s.set_stage(Stage::Running);
        }
        let text = |s| String::from_utf8_lossy(calls::table_text(s).get()).into_owned();
        record(&Record::Guest(GuestInfo {
            name: text(t.name),
            version: text(t.version),
            filters: names.clone(),
            aborts,
        }));
        self.filters = names;
        self.guest.on_worker(0, true);
        Some(self)
    }

    pub(crate) fn aborts(&self) -> bool {
        self.guest.table.flags.0 & 1 != 0
    }

    pub(crate) fn exact_eos(&self, d: usize) -> bool {
        [Feature::EXACT_EOS_REQUEST, Feature::EXACT_EOS_RESPONSE][d]
            .is_in(&self.host.options.features)
    }

    pub(crate) fn spec(&self, s: &Subject, index: usize) -> ConfigSpec {
        ConfigSpec {
            filter: s.filter.as_bytes().to_vec(),
            name: format!("c{index}").into_bytes(),
            bytes: s.config.clone(),
            features: self.host.options.features,
            flags: 0,
            parent: 0,
        }
    }

    /// Makes a configuration of each subject; those that the guest refuses are left out and said.
    pub(crate) fn configure(&self, subjects: &[Subject]) -> Vec<Conf> {
        self.configure_with(subjects, Layout::default(), &self.host.options.features)
    }

    pub(crate) fn configure_with(
        &self,
        subjects: &[Subject],
        layout: Layout,
        features: &FeatureSet,
    ) -> Vec<Conf> {
        let mut out: Vec<Conf> = Vec::new();
        for (i, s) in subjects.iter().enumerate() {
            if !self.filters.contains(&s.filter) {
                remark(format!("the library has no filter {:?}", s.filter));
                continue;
            }
            let live: Vec<u64> = out.iter().map(|c| c.made.config).collect();
            if let Some(c) = self.configure_one(s, i, &live, layout, features) {
                if out.iter().all(|c: &Conf| c.subject.filter != s.filter) {
                    record(&Record::Configured(s.filter.clone()));
                }
                out.push(c);
            }
        }
        out
    }

    /// Makes the configuration of one subject, whose value must differ from those that are `live`.
    pub(crate) fn configure_one(
        &self,
        s: &Subject,
        index: usize,
        live: &[u64],
        layout: Layout,
        features: &FeatureSet,
    ) -> Option<Conf> {
        let mut spec = self.spec(s, index);
        spec.features = *features;
        let made = self.guest.on_config_new(&spec, layout);
        if made.judge(features, live) {
            recorder::configured(s, made.config);
            return Some(Conf {
                subject: s.clone(),
                made,
                features: *features,
            });
        }
        if made.is_ok() {
            self.guest.on_config_drop(made.config);
        } else {
            remark(format!(
                "{}: the configuration was refused with {}: {}",
                s.label(),
                made.status,
                String::from_utf8_lossy(made.error.get())
            ));
        }
        None
    }

    pub(crate) fn drop_all(&self, confs: Vec<Conf>) {
        for c in confs {
            recorder::dropped(c.made.config);
            self.guest.on_config_drop(c.made.config);
        }
    }

    /// Puts one exchange through.
    pub(crate) fn run(&self, conf: &Conf, e: &Exchange, opt: Options) -> Ran {
        Stream::new(self, conf, e, opt).run()
    }

    /// The end of a loop iteration in which an event was answered with PENDING.
    pub(crate) fn batch_end(&self, worker: u32) {
        if Feature::BATCH_END.is_in(&self.host.options.features) {
            recorder::step(worker, &Step::Turn);
            self.guest.on_batch_end(worker);
        }
    }

    /// Calls `release` of what passed to the host.
    pub(crate) fn release_owned(&self) {
        for (at, ctx) in self.host.take_owned() {
            match calls::release(at, ctx, !self.release_blocks.load(Ordering::Relaxed)) {
                Released::InTime => continue,
                Released::Slept(ns) => note(
                    "PXG-MEM-007",
                    "`release` blocks",
                    [format!("it slept for {} ms", ns / 1_000_000)],
                ),
                Released::Never => note("PXG-MEM-007", "`release` does not return", []),
            }
            self.release_blocks.store(true, Ordering::Relaxed);
        }
    }

    /// Whether `at` is in Go's heap.
    pub(crate) fn is_collected_heap(&self, at: u64) -> bool {
        self.has_go && heap::is_go(at)
    }

    /// Has the guest look at `n` bytes of configuration, for a filter that it does not have.
    pub(crate) fn large_configuration(&self, n: usize) {
        let spec = ConfigSpec {
            filter: b"pxg-conformance-no-such-filter".to_vec(),
            name: b"large".to_vec(),
            bytes: vec![b'x'; n],
            features: self.host.options.features,
            flags: 0,
            parent: 0,
        };
        self.guest.on_config_new(&spec, Layout::default());
    }

    /// Makes the guest work on another thread for `grace`: it allocates, and a collector runs.
    pub(crate) fn disturb(&self, grace: Duration) {
        self.disturb_while(grace, || {});
    }

    /// As [`Rig::disturb`]; `look` is called again and again meanwhile, and once at the end.
    pub(crate) fn disturb_while(&self, grace: Duration, mut look: impl FnMut()) {
        recorder::collected(grace);
        let deadline = Instant::now() + grace;
        std::thread::scope(|scope| {
            let work = scope.spawn(|| {
                // A collector needs some cycles of work before what it freed is seen, however fast the machine is.
                let least = if self.has_go { 150 } else { 10 };
                let mut rounds = 0;
                while Instant::now() < deadline || rounds < least {
                    self.large_configuration(64 << 10);
                    rounds += 1;
                }
            });
            while !work.is_finished() {
                look();
                std::thread::sleep(LOOK);
            }
        });
        look();
    }
}
