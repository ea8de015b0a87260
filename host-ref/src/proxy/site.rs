//! A configuration in force: what workers route and send by.

use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::access::AccessLog;
use super::config::{CheckedListener, RouteAction, Site, Timeouts};
use super::guests::Guests;
use super::router::{RouteId, Router};
use super::upstream::{Cluster, EndpointPool, Pools};
use crate::engine::Chain;

/// A configuration in force; shared by all workers.
#[derive(Debug)]
pub(super) struct Runtime {
    pub generation: u64,
    pub file: PathBuf,
    /// The configuration with its defaults, for the admin API.
    pub config: serde_json::Value,
    pub listeners: Vec<CheckedListener>,
    pub router: Router,
    hosts: Vec<Vec<Route>>,
    pub clusters: Vec<Arc<Cluster>>,
    pub strip: Vec<Box<[u8]>>,
    pub forwarded: bool,
    pub via: Option<Via>,
    pub request_id: Option<HeaderName>,
    pub trust_request_id: bool,
    pub access: Option<Arc<AccessLog>>,
    pub guests: Guests,
}

/// The host's entry in `via`, by what the message came in.
#[derive(Debug)]
pub(super) struct Via {
    pub h1: HeaderValue,
    pub h2: HeaderValue,
}

/// A route in force.
#[derive(Debug)]
pub(super) struct Route {
    pub name: Arc<str>,
    pub prefix: String,
    pub rewrite: Option<String>,
    pub action: Action,
    /// None: no filters, the engine is not entered.
    pub chain: Option<RouteChain>,
    pub timeouts: Timeouts,
    pub max_request_body: Option<u64>,
    /// Trailers to announce over HTTP/1.1.
    pub announce: Vec<HeaderName>,
    pub stats: Arc<RouteStats>,
}

/// The filters of a route.
pub(super) struct RouteChain(pub Chain);

impl std::fmt::Debug for RouteChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.0.filters().iter().map(|filter| &filter.name))
            .finish()
    }
}

/// Who answers.
#[derive(Debug)]
pub(super) enum Action {
    Cluster(usize),
    Direct {
        status: StatusCode,
        headers: HeaderMap,
        body: Bytes,
    },
}

/// Responses of a route by the class of their status; each worker counts in its own cache line.
#[derive(Debug)]
pub(super) struct RouteStats(Vec<WorkerCell>);

#[derive(Debug, Default)]
#[repr(align(64))]
struct WorkerCell([AtomicU64; 6]);

impl RouteStats {
    pub(super) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| WorkerCell::default()).collect())
    }

    /// `class` 0: ended without a response.
    pub(super) fn count(&self, worker: u32, class: usize) {
        if let Some(cell) = self.0.get(worker as usize) {
            let counter = &cell.0[class.min(5)];
            counter.store(counter.load(Relaxed) + 1, Relaxed); // one writer
        }
    }

    pub(super) fn get(&self, class: usize) -> u64 {
        self.0.iter().map(|cell| cell.0[class].load(Relaxed)).sum()
    }
}

/// What outlives a configuration: counters by name.
#[derive(Debug, Default)]
pub(super) struct Kept {
    routes: HashMap<String, Arc<RouteStats>>,
}

impl Runtime {
    pub(super) fn new(
        site: Site,
        generation: u64,
        workers: usize,
        guests: Guests,
        access: Option<Arc<AccessLog>>,
        before: Option<&Runtime>,
        kept: &mut Kept,
    ) -> Self {
        let http = &site.source.config.http;
        let clusters = site
            .clusters
            .iter()
            .map(|checked| {
                let same = before.and_then(|b| b.clusters.iter().find(|c| c.checked == *checked));
                same.map_or_else(|| Arc::new(Cluster::new(checked)), Arc::clone)
            })
            .collect();
        let mut chains = guests.chains.iter();
        let mut hosts = Vec::new();
        for host in &site.virtual_hosts {
            let mut routes = Vec::new();
            for route in &host.routes {
                let chain = chains.next().filter(|c| !c.filters().is_empty()).cloned();
                let mut announce = site.announce.clone();
                for call in &route.filters {
                    announce.extend(site.filters[call.filter].trailers.iter().cloned());
                }
                let stats = kept
                    .routes
                    .entry(route.name.to_string())
                    .or_insert_with(|| Arc::new(RouteStats::new(workers)));
                routes.push(Route {
                    name: Arc::clone(&route.name),
                    prefix: route.prefix.clone(),
                    rewrite: route.rewrite.clone(),
                    action: match &route.action {
                        RouteAction::Cluster(index) => Action::Cluster(*index),
                        RouteAction::Direct {
                            status,
                            headers,
                            body,
                        } => Action::Direct {
                            status: StatusCode::from_u16(*status).unwrap_or_default(),
                            headers: headers.clone(),
                            body: body.clone(),
                        },
                    },
                    chain: chain.map(RouteChain),
                    timeouts: route.timeouts.clone(),
                    max_request_body: route.max_request_body,
                    announce,
                    stats: Arc::clone(stats),
                });
            }
            hosts.push(routes);
        }
        let via = |version: &str, name: &Bytes| {
            let name = String::from_utf8_lossy(name);
            HeaderValue::from_str(&format!("{version} {name}"))
                .expect("checked: visible characters")
        };
        Self {
            generation,
            file: site.source.file.clone(),
            config: serde_json::to_value(&site.source.config).unwrap_or_default(),
            listeners: site.listeners.clone(),
            router: Router::new(&site.virtual_hosts),
            hosts,
            clusters,
            forwarded: http.forwarded,
            via: site.via.as_ref().map(|name| Via {
                h1: via("1.1", name),
                h2: via("2.0", name),
            }),
            request_id: site.request_id.clone(),
            trust_request_id: http.trust_request_id,
            strip: site.strip,
            access,
            guests,
        }
    }

    /// What is in force when the workers have ended: nothing is served, and no guest's configuration is held.
    pub(super) fn ended(last: &Self) -> Self {
        Self {
            generation: last.generation,
            file: last.file.clone(),
            config: last.config.clone(),
            listeners: Vec::new(),
            router: Router::new(&[]),
            hosts: Vec::new(),
            clusters: Vec::new(),
            strip: Vec::new(),
            forwarded: false,
            via: None,
            request_id: None,
            trust_request_id: false,
            access: None,
            guests: Guests::default(),
        }
    }

    pub(super) fn route(&self, id: RouteId) -> &Route {
        &self.hosts[id.host as usize][id.route as usize]
    }

    pub(super) fn routes(&self) -> impl Iterator<Item = &Route> {
        self.hosts.iter().flatten()
    }

    pub(super) fn cluster_by_name(&self, name: &[u8]) -> Option<usize> {
        self.clusters.iter().position(|c| c.name.as_bytes() == name)
    }
}

/// A configuration as one worker holds it; a request keeps the one that it began with.
#[derive(Debug)]
pub(super) struct Pinned {
    pub runtime: Arc<Runtime>,
    pools: Vec<Vec<Rc<EndpointPool>>>,
}

impl Pinned {
    pub(super) fn new(runtime: Arc<Runtime>, pools: &mut Pools) -> Self {
        let pools = runtime
            .clusters
            .iter()
            .map(|cluster| {
                cluster
                    .endpoints
                    .iter()
                    .map(|e| pools.get(cluster, e.address))
                    .collect()
            })
            .collect();
        Self { runtime, pools }
    }

    pub(super) fn route(&self, id: RouteId) -> &Route {
        self.runtime.route(id)
    }

    pub(super) fn cluster(&self, index: usize) -> &Cluster {
        &self.runtime.clusters[index]
    }

    pub(super) fn pools(&self, cluster: usize) -> &[Rc<EndpointPool>] {
        &self.pools[cluster]
    }
}
