//! A configuration in force: guests loaded, their filters configured, and what routes override of them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock};

use proxy_golang_abi::feature::{Feature, FeatureSet};
use proxy_golang_abi::{LogLevel, Phase};
use proxy_golang_host::engine::{Chain, Filter, Glance, StreamLimits};
use proxy_golang_host::loader::{self, ConfigRequest, Library};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::config::{self, ConfigError, GuestSettings, Override, Overrides, Settings};
use crate::features;
use crate::process::{self, Process, lock};
use crate::stats::Published;
use crate::sys::{self, ConfigBell};

/// One of our filters in Envoy.
pub(crate) struct Site {
    id: u64,
    pub(crate) name: String,
    pub(crate) settings: Settings,
    entries: Vec<Entry>,
    pub(crate) plan: Plan,
    pub(crate) limits: StreamLimits,
    /// Request fields that are removed before the first guest runs.
    pub(crate) stripped: Vec<String>,
    /// To get onto the main thread, until Envoy gives the configuration up.
    pub(crate) bell: Mutex<Option<ConfigBell>>,
    pub(crate) published: Published,
}

struct Entry {
    library: Arc<Library>,
    filter: Arc<Filter>,
    filter_name: String,
}

/// A library that a chain's entries come from.
#[derive(Clone)]
pub(crate) struct Used {
    pub(crate) library: Arc<Library>,
    /// Some entry wants empty calls before a worker's first event.
    pub(crate) warm_up: bool,
}

impl Entry {
    fn used(&self, guest: &GuestSettings) -> Used {
        Used {
            library: Arc::clone(&self.library),
            warm_up: guest.warm_up,
        }
    }
}

/// A chain, and what is known of all its streams beforehand.
#[derive(Clone)]
pub(crate) struct Plan {
    /// Of this plan alone, as long as the process lives.
    pub(crate) id: u64,
    pub(crate) chain: Chain,
    pub(crate) libraries: Vec<Used>,
    /// Guests may send mail to a stream although it has not pended.
    pub(crate) may_call_back: bool,
    /// Its streams begin as a [`Glance`].
    pub(crate) glances: bool,
}

/// A route's configuration.
pub(crate) struct Route {
    name: String,
    overrides: Overrides,
    /// By the filter that it overrides.
    plans: RwLock<Vec<(u64, Plan)>>,
}

/// Routes with a configuration: without any, nobody asks for one.
static ROUTES: AtomicUsize = AtomicUsize::new(0);
static IDS: AtomicU64 = AtomicU64::new(1);
/// The routes' configurations that live.
static LIVE: Mutex<Vec<std::sync::Weak<Route>>> = Mutex::new(Vec::new());

impl Plan {
    fn new(filters: Vec<Arc<Filter>>, mut libraries: Vec<Used>) -> Self {
        // Of a library's entries, one that wants it warm stands first.
        libraries.sort_by_key(|used| (used.library.id(), !used.warm_up));
        libraries.dedup_by_key(|used| used.library.id());
        let chain = Chain::new(filters);
        let filters = chain.filters();
        Self {
            id: IDS.fetch_add(1, Relaxed),
            glances: Glance::suits(&chain),
            may_call_back: filters.iter().any(|f| {
                f.subscribes(Phase::WAKE)
                    || (f.has(Feature::APPLY) && Feature::APPLY.is_in(&f.declared.known))
            }),
            chain,
            libraries,
        }
    }
}

/// What the host can do for the streams of an entry.
fn features_of(guest: &GuestSettings) -> FeatureSet {
    let mut set = features::of_host();
    for (feature, has) in [
        (Feature::ROUTE, !guest.clusters.is_empty()),
        (Feature::REPLY_REFILTER, guest.reply_refilter),
        (Feature::BATCH_END, guest.batch_end),
    ] {
        if !has {
            set = features::without(set, feature);
        }
    }
    set
}

impl Site {
    /// Makes the configuration of a filter, or says what is wrong with it. \[main thread\]
    pub(crate) fn new(name: &str, bytes: &[u8]) -> Result<Arc<Self>, String> {
        let settings = config::parse(name, bytes).map_err(|e| e.to_string())?;
        let process = process::get_or_start();
        let validating = sys::is_validating();
        let mut entries = Vec::new();
        for guest in &settings.chain {
            let load = || loader::load(&process.host, &guest.guest);
            let library = if guest.all_cpus {
                on_all_cpus(load)
            } else {
                load()
            };
            let library = library.map_err(|e| format!("guest {:?}: {e}", guest.name))?;
            let filter_name = filter_of(guest, &library).map_err(|e| e.to_string())?;
            let filter = configure(
                process,
                guest,
                &library,
                &filter_name,
                &guest.config,
                None,
                validating,
            )?;
            entries.push(Entry {
                library,
                filter,
                filter_name,
            });
        }
        let guests = settings.chain.iter().zip(&entries);
        let plan = Plan::new(
            entries.iter().map(|e| Arc::clone(&e.filter)).collect(),
            guests.map(|(guest, entry)| entry.used(guest)).collect(),
        );
        let mut stripped = settings.strip.clone();
        if settings.chain.iter().any(|g| !g.clusters.is_empty()) {
            stripped.push(settings.cluster_field.clone());
        }
        let limits = StreamLimits {
            failure_status: settings.failure_status,
            adds_trailers: false,
            driver_closes: true,
            buffer: u64::MAX,
            ..StreamLimits::default()
        };
        let site = Arc::new(Self {
            stripped,
            limits,
            id: IDS.fetch_add(1, Relaxed),
            name: name.to_owned(),
            settings,
            entries,
            plan,
            bell: Mutex::default(),
            published: Published::default(),
        });
        for route in live_routes() {
            if route.name == name {
                // A route that an earlier filter of this name has taken may name entries that are gone with it.
                let of_before = route.has_plans();
                route.resolve(process, &site, of_before)?;
            }
        }
        lock(&process.sites).push(Arc::downgrade(&site));
        Ok(site)
    }

    /// Its guests' settings, with the labels that their counters have.
    pub(crate) fn counted(&self) -> impl Iterator<Item = (&GuestSettings, [&str; 3])> {
        let entries = self.settings.chain.iter().zip(&self.entries);
        entries.map(|(guest, entry)| {
            let labels = [entry.library.name(), &*entry.filter_name, &*guest.name];
            (guest, labels)
        })
    }

    /// Asks Envoy's main thread to take over what the counters say.
    pub(crate) fn publish(process: &Process) {
        // The newest has defined everything that there is.
        if let Some(site) = process.live_sites().last()
            && let Some(bell) = &*lock(&site.bell)
        {
            bell.ring();
        }
    }

    /// The plan of a route's streams.
    pub(crate) fn plan_for(&self, route: &Route) -> Option<Plan> {
        let plans = route
            .plans
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        plans
            .iter()
            .find(|(id, _)| *id == self.id)
            .map(|(_, plan)| plan.clone())
    }
}

/// Runs this with every processor open to this thread, and to the threads that it starts meanwhile.
fn on_all_cpus<R>(run: impl FnOnce() -> R) -> R {
    let Ok(before) = sched_getaffinity(None) else {
        return run();
    };
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    // Of those, the kernel takes the ones that this process may use.
    if let Err(error) = sched_setaffinity(None, &all) {
        let text =
            format!("proxy_golang: all_cpus: {error}; the guest's threads run where Envoy's do");
        sys::log(LogLevel::WARN, &text);
    }
    let result = run();
    let _ = sched_setaffinity(None, &before);
    result
}

/// Which of the library's filters an entry means.
fn filter_of(guest: &GuestSettings, library: &Library) -> Result<String, ConfigError> {
    let known = library.filters();
    let key = format!("filter of {:?}", guest.name);
    match &guest.filter {
        Some(name) if known.contains(name) => Ok(name.clone()),
        Some(name) => Err(ConfigError::new(
            key,
            format!("{name:?}"),
            format!(
                "one of {} in {}",
                known.join(", "),
                library.path().display()
            ),
            "Correct the filter's name.",
        )),
        None if known.len() == 1 => Ok(known[0].clone()),
        None => Err(ConfigError::new(
            key,
            "nothing",
            format!(
                "one of {} in {}",
                known.join(", "),
                library.path().display()
            ),
            "Say which of the library's filters is meant.",
        )),
    }
}

fn configure(
    process: &Process,
    guest: &GuestSettings,
    library: &Arc<Library>,
    filter_name: &str,
    bytes: &[u8],
    parent: Option<&Arc<Filter>>,
    validate_only: bool,
) -> Result<Arc<Filter>, String> {
    let stats = process.stats_of(library.name(), filter_name, &guest.name);
    let mut filter = library
        .configure(ConfigRequest {
            filter: filter_name,
            name: &guest.name,
            bytes,
            parent,
            features: features_of(guest),
            policy: guest.policy(),
            validate_only,
            stats: Some(stats),
        })
        .map_err(|e| e.to_string())?;
    if let Some(filter) = Arc::get_mut(&mut filter) {
        for max in &mut filter.declared.max_body {
            *max = (*max).min(guest.max_body);
        }
    }
    Ok(filter)
}

fn live_routes() -> Vec<Arc<Route>> {
    let mut live = lock(&LIVE);
    live.retain(|route| route.strong_count() > 0);
    live.iter().filter_map(std::sync::Weak::upgrade).collect()
}

/// The route's configuration at an address that Envoy gave: `None` if it is none of ours.
pub(crate) fn route_at(address: *const Route) -> Option<Arc<Route>> {
    let live = lock(&LIVE);
    live.iter()
        .find(|route| std::ptr::eq(route.as_ptr(), address))
        .and_then(std::sync::Weak::upgrade)
}

/// Whether some route has a configuration of its own.
pub(crate) fn has_routes() -> bool {
    ROUTES.load(Relaxed) > 0
}

impl Route {
    /// Makes a route's configuration, for filters that are there and for those that come. \[main thread\]
    pub(crate) fn new(name: &str, bytes: &[u8]) -> Result<Arc<Self>, String> {
        let overrides = config::parse_overrides(bytes).map_err(|e| e.to_string())?;
        let route = Arc::new(Self {
            name: name.to_owned(),
            overrides,
            plans: RwLock::default(),
        });
        ROUTES.fetch_add(1, Relaxed);
        if let Some(process) = process::get() {
            for site in process.live_sites() {
                if site.name == name {
                    route.resolve(process, &site, false)?;
                }
            }
        }
        lock(&LIVE).push(Arc::downgrade(&route));
        Ok(route)
    }

    /// Whether a live filter has taken this route.
    fn has_plans(&self) -> bool {
        let plans = self
            .plans
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        !plans.is_empty()
    }

    /// Configures what the route overrides of a filter. Names that the filter does not have are an error, or with
    /// `may_lack` overrides of nothing.
    fn resolve(&self, process: &Process, site: &Site, may_lack: bool) -> Result<(), String> {
        for name in self.overrides.keys() {
            if !site.settings.chain.iter().any(|guest| guest.name == *name) {
                if may_lack {
                    continue;
                }
                let known: Vec<_> = site.settings.chain.iter().map(|g| &*g.name).collect();
                return Err(ConfigError::new(
                    format!("overrides.{name}"),
                    format!("{name:?}"),
                    format!(
                        "one of {}, the entries of filter {:?}",
                        known.join(", "),
                        site.name
                    ),
                    "Correct the name, or add the entry to the filter's chain.",
                )
                .to_string());
            }
        }
        let validating = sys::is_validating();
        let mut filters = Vec::new();
        let mut libraries = Vec::new();
        for (guest, entry) in site.settings.chain.iter().zip(&site.entries) {
            match self.overrides.get(&guest.name) {
                Some(Override::Disabled) => continue,
                None => filters.push(Arc::clone(&entry.filter)),
                Some(Override::Config(bytes)) => filters.push(configure(
                    process,
                    guest,
                    &entry.library,
                    &entry.filter_name,
                    bytes,
                    Some(&entry.filter),
                    validating,
                )?),
            }
            libraries.push(entry.used(guest));
        }
        let plan = Plan::new(filters, libraries);
        let mut plans = self
            .plans
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        plans.retain(|(id, _)| *id != site.id);
        plans.push((site.id, plan));
        Ok(())
    }

    /// Envoy has given a filter up.
    fn forget(&self, site: &Site) {
        let mut plans = self
            .plans
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        plans.retain(|(id, _)| *id != site.id);
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        ROUTES.fetch_sub(1, Relaxed);
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for route in live_routes() {
            route.forget(self);
        }
    }
}

/// Says why a configuration is refused: Envoy's own error only says that it was.
pub(crate) fn refuse(name: &str, why: &str) {
    sys::log(
        LogLevel::ERROR,
        &format!("proxy_golang filter {name:?} is refused: {why}"),
    );
}
