//! The guests of a configuration: loaded, and their filters configured.

use std::collections::HashMap;
use std::sync::Arc;

use proxy_golang_abi::feature::FeatureSet;

use super::config::{CheckedFilter, ConfigError, Diagnostic, KeyPath, Site};
use super::{attributes, features};
use crate::engine::{Chain, Filter, FilterStats};
use crate::loader::{self, ConfigRequest, Host, Library};

/// The guests that one configuration uses.
#[derive(Default)]
pub(super) struct Guests {
    pub libraries: Vec<Arc<Library>>,
    instances: Vec<Instance>,
    /// In the order of the routes of all virtual hosts.
    pub chains: Vec<Chain>,
}

impl std::fmt::Debug for Guests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guests")
            .field("libraries", &self.libraries)
            .finish_non_exhaustive()
    }
}

/// A filter that was configured, with all that decides whether the next configuration can keep it.
#[derive(Clone)]
struct Instance {
    key: InstanceKey,
    parent: Option<Arc<Filter>>,
    filter: Arc<Filter>,
}

#[derive(Clone, PartialEq, Eq)]
struct InstanceKey {
    library: u32,
    filter: String,
    name: String,
    bytes: Vec<u8>,
    /// Policy and limits, as text: they are compared, nothing else.
    policy: String,
}

/// What is counted for a filter's instance, and what it is an instance of.
#[derive(Clone, Default)]
pub(super) struct Counted {
    pub guest: String,
    pub filter: String,
    pub stats: Arc<FilterStats>,
}

/// Counters by the instance's name: they go on over reloads.
#[derive(Default)]
pub(super) struct KeptStats(HashMap<String, Counted>);

impl KeptStats {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Counted)> {
        self.0
            .iter()
            .map(|(name, counted)| (name.as_str(), counted))
    }
}

/// What this host can do for the streams of a configuration.
fn features_of(filter: &CheckedFilter) -> FeatureSet {
    features::of_filter(
        !filter.trailers.is_empty(),
        !filter.policy.clusters.is_empty(),
    )
}

impl Guests {
    /// Loads the guests of a configuration and configures their filters. With `validate_only` guests only check.
    pub(super) fn load(
        host: &Arc<Host>,
        site: &Site,
        before: Option<&Self>,
        stats: &mut KeptStats,
        validate_only: bool,
    ) -> Result<Self, ConfigError> {
        let mut loader = Loader {
            site,
            before: before.filter(|_| !validate_only),
            stats,
            validate_only,
            found: Vec::new(),
            guests: Self::default(),
        };
        let libraries: Vec<_> = site
            .guests
            .iter()
            .map(|(path, key)| {
                loader::load(host, path)
                    .map_err(|e| {
                        let expected = format!("expected {}", e.expected);
                        let message =
                            format!("{}: found {}; {expected}", e.path.display(), e.found);
                        loader.error(key, message, e.advice);
                    })
                    .ok()
            })
            .collect();
        let filters: Vec<_> = site
            .filters
            .iter()
            .map(|filter| {
                let library = libraries.get(filter.guest)?.as_ref()?;
                loader.configure(library, filter, &filter.config, None, &filter.key)
            })
            .collect();
        for route in site.virtual_hosts.iter().flat_map(|host| &host.routes) {
            let mut chain = Vec::new();
            for call in &route.filters {
                let checked = &site.filters[call.filter];
                let Some(filter) = &filters[call.filter] else {
                    continue;
                };
                chain.extend(match &call.config {
                    None => Some(Arc::clone(filter)),
                    Some(bytes) => libraries[checked.guest].as_ref().and_then(|library| {
                        loader.configure(library, checked, bytes, Some(filter), &call.key)
                    }),
                });
            }
            loader.guests.chains.push(Chain::new(chain));
        }
        if !loader.found.is_empty() {
            return Err(ConfigError {
                diagnostics: loader.found,
            });
        }
        let mut guests = loader.guests;
        guests.libraries = libraries.into_iter().flatten().collect();
        Ok(guests)
    }

    /// \[loop-thread\] Makes the first calls into libraries that this worker has not used yet.
    pub(super) fn worker_up(&self, worker: u32, known: &mut Vec<Arc<Library>>) {
        for library in &self.libraries {
            if !known.iter().any(|k| k.id() == library.id()) {
                library.warm_up(worker);
                known.push(Arc::clone(library));
            }
        }
    }
}

struct Loader<'a> {
    site: &'a Site,
    before: Option<&'a Guests>,
    stats: &'a mut KeptStats,
    validate_only: bool,
    found: Vec<Diagnostic>,
    guests: Guests,
}

impl Loader<'_> {
    fn error(&mut self, key: &KeyPath, message: String, help: impl Into<String>) {
        let source = &self.site.source;
        self.found.push(Diagnostic::at(
            &source.file,
            &source.text,
            key,
            message,
            help,
        ));
    }

    fn configure(
        &mut self,
        library: &Arc<Library>,
        checked: &CheckedFilter,
        bytes: &[u8],
        parent: Option<&Arc<Filter>>,
        key: &KeyPath,
    ) -> Option<Arc<Filter>> {
        let name = self.filter_name(library, checked)?;
        let instance = InstanceKey {
            library: library.id(),
            filter: name.clone(),
            name: checked.name.clone(),
            bytes: bytes.to_vec(),
            policy: format!(
                "{:?} {} {:?}",
                checked.policy, checked.max_body, checked.trailers
            ),
        };
        let kept = |instances: &[Instance]| {
            let same = |i: &&Instance| {
                i.key == instance
                    && match (&i.parent, parent) {
                        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                        (None, None) => true,
                        _ => false,
                    }
            };
            instances.iter().find(same).cloned()
        };
        let kept = self
            .before
            .and_then(|before| kept(&before.instances))
            .or_else(|| kept(&self.guests.instances));
        if let Some(kept) = kept {
            let filter = Arc::clone(&kept.filter);
            self.guests.instances.push(kept);
            return Some(filter);
        }
        let counted = self.stats.0.entry(checked.name.clone()).or_default();
        library.name().clone_into(&mut counted.guest);
        name.clone_into(&mut counted.filter);
        let stats = Arc::clone(&counted.stats);
        let configured = library.configure(ConfigRequest {
            filter: &name,
            name: &checked.name,
            bytes,
            parent,
            features: features_of(checked),
            policy: checked.policy.clone(),
            validate_only: self.validate_only,
            stats: Some(stats),
        });
        match configured {
            Ok(mut filter) => {
                if let Some(filter) = Arc::get_mut(&mut filter) {
                    for max in &mut filter.declared.max_body {
                        *max = (*max).min(checked.max_body);
                    }
                }
                self.guests.instances.push(Instance {
                    key: instance,
                    parent: parent.cloned(),
                    filter: Arc::clone(&filter),
                });
                Some(filter)
            }
            Err(error) => {
                let message = format!(
                    "the filter {:?} ({} in {}) refused its configuration: {}: found {}; expected {}",
                    error.name,
                    error.filter,
                    error.library.display(),
                    crate::ffi::status_name(error.status),
                    error.found,
                    error.expected
                );
                self.error(key, message, error.advice);
                None
            }
        }
    }

    fn filter_name(&mut self, library: &Library, checked: &CheckedFilter) -> Option<String> {
        let known = library.filters();
        match &checked.filter {
            Some(name) if known.contains(name) => Some(name.clone()),
            Some(name) => {
                let message = format!("{} has no filter {name:?}", library.path().display());
                self.error(
                    &checked.key.key("filter"),
                    message,
                    format!("it has: {}", known.join(", ")),
                );
                None
            }
            None if known.len() == 1 => Some(known[0].clone()),
            None => {
                let message = format!("{} has {} filters", library.path().display(), known.len());
                self.error(
                    &checked.key,
                    message,
                    format!("add `filter`, one of: {}", known.join(", ")),
                );
                None
            }
        }
    }
}

/// The number of an attribute of this host.
pub(super) fn attribute(name: &str) -> Option<u32> {
    attributes::number(name)
}
