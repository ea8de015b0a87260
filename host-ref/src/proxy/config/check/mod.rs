//! What can be known about a configuration without loading a guest.

mod filters;
mod routes;

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName};
use tokio_rustls::rustls::ServerConfig;

use super::error::{ConfigError, Diagnostic, KeyPath};
use super::{Cluster, Config, Limits, Listener, Source, Timeouts};
use crate::engine::Policy;
use crate::proxy::tls;

/// A configuration whose names, addresses and files are known to be good.
#[derive(Debug)]
pub struct Site {
    /// Where it came from.
    pub source: Source,
    /// The listeners.
    pub listeners: Vec<CheckedListener>,
    /// The clusters.
    pub clusters: Vec<CheckedCluster>,
    /// The virtual hosts.
    pub virtual_hosts: Vec<CheckedVirtualHost>,
    /// Guest libraries, absolute, with their keys.
    pub guests: Vec<(PathBuf, KeyPath)>,
    /// The filters.
    pub filters: Vec<CheckedFilter>,
    /// Request fields to remove, in lower case with `-`.
    pub strip: Vec<Box<[u8]>>,
    /// The name for `via`.
    pub via: Option<Bytes>,
    /// The field of the request's id.
    pub request_id: Option<HeaderName>,
    /// Trailer fields to announce on HTTP/1.1.
    pub announce: Vec<HeaderName>,
}

/// A listener.
#[derive(Clone, Debug)]
pub struct CheckedListener {
    /// Its name.
    pub name: Arc<str>,
    /// Where to listen.
    pub address: SocketAddr,
    /// Certificate and key.
    pub tls: Option<Arc<ServerConfig>>,
    /// Its limits.
    pub limits: Limits,
    /// Where it is configured.
    pub key: KeyPath,
}

/// A cluster with its endpoints' addresses.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckedCluster {
    /// As written.
    pub config: Cluster,
    /// The endpoints.
    pub endpoints: Vec<SocketAddr>,
}

/// A virtual host.
#[derive(Clone, Debug)]
pub struct CheckedVirtualHost {
    /// Its name.
    pub name: String,
    /// Its host patterns in lower case.
    pub hosts: Vec<String>,
    /// Its routes.
    pub routes: Vec<CheckedRoute>,
}

/// A route.
#[derive(Clone, Debug)]
pub struct CheckedRoute {
    /// Its name.
    pub name: Arc<str>,
    /// Its prefix.
    pub prefix: String,
    /// What replaces the prefix.
    pub rewrite: Option<String>,
    /// Who answers.
    pub action: RouteAction,
    /// The filters in order.
    pub filters: Vec<FilterCall>,
    /// Limits of time.
    pub timeouts: Timeouts,
    /// Limit of the request's body.
    pub max_request_body: Option<u64>,
}

/// Who answers.
#[derive(Clone, Debug)]
pub enum RouteAction {
    /// A cluster, by its index.
    Cluster(usize),
    /// The host.
    Direct {
        /// The status.
        status: u16,
        /// The fields.
        headers: HeaderMap,
        /// The body.
        body: Bytes,
    },
}

/// A filter in a route.
#[derive(Clone, Debug)]
pub struct FilterCall {
    /// The filter's index.
    pub filter: usize,
    /// A configuration of the route's own.
    pub config: Option<Vec<u8>>,
    /// Where it is configured.
    pub key: KeyPath,
}

/// A filter.
#[derive(Clone, Debug)]
pub struct CheckedFilter {
    /// Its instance name.
    pub name: String,
    /// The index of its library.
    pub guest: usize,
    /// The filter's name in its library.
    pub filter: Option<String>,
    /// Exactly what the guest gets.
    pub config: Vec<u8>,
    /// What the operator decided.
    pub policy: Policy,
    /// Most bytes of a held body.
    pub max_body: u64,
    /// Trailers that it may add.
    pub trailers: Vec<HeaderName>,
    /// Where it is configured.
    pub key: KeyPath,
}

/// The name that is most like `found`, if one is near enough to be meant.
pub(super) fn nearest<'a>(
    found: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(found, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len().max(found.len()) / 4)
        .min()
        .map(|(_, name)| name)
}

/// Checks everything that can be known without loading a guest.
///
/// # Errors
/// Every mistake that was found.
pub fn check(source: Source) -> Result<Site, ConfigError> {
    let mut checker = Checker {
        file: source.file.clone(),
        text: source.text.clone(),
        found: Vec::new(),
    };
    let site = checker.site(source);
    if checker.found.is_empty() {
        Ok(site)
    } else {
        Err(ConfigError {
            diagnostics: checker.found,
        })
    }
}

struct Checker {
    file: PathBuf,
    text: String,
    found: Vec<Diagnostic>,
}

impl Checker {
    fn error(&mut self, key: &KeyPath, message: impl Into<String>, help: impl Into<String>) {
        self.found
            .push(Diagnostic::at(&self.file, &self.text, key, message, help));
    }

    fn path(&self, path: &Path) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("/")).join(path)
    }

    fn site(&mut self, source: Source) -> Site {
        let Config {
            workers,
            http,
            listeners,
            clusters,
            virtual_hosts,
            guests,
            filters,
            ..
        } = source.config.clone();
        if workers == Some(0) || workers.is_some_and(|n| n > 256) {
            self.error(
                &KeyPath::new("workers"),
                "expected 1 to 256 workers",
                "leave it out for one per processor",
            );
        }
        let http_key = KeyPath::new("http");
        let strip = self
            .field_names(
                &http_key.key("strip_request_fields"),
                &http.strip_request_fields,
            )
            .iter()
            .map(|name| normal(name.as_str().as_bytes()))
            .collect();
        let announce =
            self.field_names(&http_key.key("announce_trailers"), &http.announce_trailers);
        let request_id = http.request_id_field.as_ref().and_then(|name| {
            let key = http_key.key("request_id_field");
            self.field_name(&key, name)
        });
        let via = http.via.as_ref().and_then(|name| {
            let legal = !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b',');
            if !legal {
                self.error(
                    &http_key.key("via"),
                    format!("{name:?} is no name for `via`"),
                    "use visible ASCII characters without comma and blank",
                );
            }
            legal.then(|| Bytes::from(name.clone()))
        });

        let guest_names = self.names("guests", guests.iter().map(|g| g.name.as_str()));
        let cluster_names = self.names("clusters", clusters.iter().map(|c| c.name.as_str()));
        let filter_names = self.names("filters", filters.iter().map(|f| f.name.as_str()));
        self.names("listeners", listeners.iter().map(|l| l.name.as_str()));
        self.names(
            "virtual_hosts",
            virtual_hosts.iter().map(|v| v.name.as_str()),
        );

        let site = Site {
            listeners: self.listeners(&listeners),
            clusters: self.clusters(&clusters),
            virtual_hosts: self.virtual_hosts(&virtual_hosts, &cluster_names, &filter_names),
            guests: guests
                .iter()
                .enumerate()
                .map(|(i, g)| {
                    (
                        self.path(&g.path),
                        KeyPath::new("guests").index(i).key("path"),
                    )
                })
                .collect(),
            filters: filters
                .iter()
                .enumerate()
                .map(|(i, f)| {
                    let key = KeyPath::new("filters").index(i);
                    self.filter(&key, f, &guest_names, &cluster_names)
                })
                .collect(),
            strip,
            via,
            request_id,
            announce,
            source,
        };
        for (path, key) in &site.guests {
            if let Err(e) = std::fs::File::open(path) {
                self.error(
                    key,
                    format!("cannot read the guest library {}: {e}", path.display()),
                    "build it first, or correct the path; a relative path starts at the configuration file's folder",
                );
            }
        }
        site
    }

    fn names<'a>(
        &mut self,
        table: &str,
        names: impl Iterator<Item = &'a str>,
    ) -> HashMap<&'a str, usize> {
        let mut indices = HashMap::new();
        for (i, name) in names.enumerate() {
            let key = KeyPath::new(table).index(i).key("name");
            let legal = !name.is_empty()
                && name.len() <= 128
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
            if !legal {
                self.error(
                    &key,
                    format!("{name:?} is no legal name"),
                    "use 1 to 128 of the characters a-z A-Z 0-9 - _ . /",
                );
            }
            if let Some(first) = indices.insert(name, i) {
                self.error(
                    &key,
                    format!("the name {name:?} is taken by {table}[{first}]"),
                    "give each its own name",
                );
            }
        }
        indices
    }

    fn lookup(
        &mut self,
        key: &KeyPath,
        what: &str,
        name: &str,
        known: &HashMap<&str, usize>,
    ) -> Option<usize> {
        if let Some(index) = known.get(name) {
            return Some(*index);
        }
        let help = match nearest(name, known.keys().copied()) {
            Some(near) => format!("did you mean {near:?}?"),
            None if known.is_empty() => format!("there is none; add a [[{what}s]] table"),
            None => {
                let mut names: Vec<_> = known.keys().copied().collect();
                names.sort_unstable();
                format!("there are: {}", names.join(", "))
            }
        };
        self.error(key, format!("there is no {what} {name:?}"), help);
        None
    }

    fn field_name(&mut self, key: &KeyPath, name: &str) -> Option<HeaderName> {
        let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
        if parsed.is_none() {
            self.error(
                key,
                format!("{name:?} is no field name"),
                "use letters, digits and - (a token of RFC 9110)",
            );
        }
        parsed
    }

    fn field_names(&mut self, key: &KeyPath, names: &[String]) -> Vec<HeaderName> {
        names
            .iter()
            .enumerate()
            .filter_map(|(i, name)| self.field_name(&key.index(i), name))
            .collect()
    }

    fn listeners(&mut self, listeners: &[Listener]) -> Vec<CheckedListener> {
        let top = KeyPath::new("listeners");
        if listeners.is_empty() {
            self.error(
                &top,
                "there is no listener",
                "add a [[listeners]] table with `name` and `address`",
            );
        }
        let mut addresses = HashMap::new();
        let mut checked = Vec::new();
        for (i, listener) in listeners.iter().enumerate() {
            let key = top.index(i);
            if listener.address.port() != 0
                && let Some(first) = addresses.insert(listener.address, i)
            {
                self.error(
                    &key.key("address"),
                    format!(
                        "{} is also the address of listeners[{first}]",
                        listener.address
                    ),
                    "give each listener its own address",
                );
            }
            if listener.limits.header_bytes.0 < 8192 || listener.limits.header_bytes.0 > 16 << 20 {
                self.error(
                    &key.key("limits").key("header_bytes"),
                    format!(
                        "expected 8KiB to 16MiB, found {}",
                        listener.limits.header_bytes
                    ),
                    "64KiB is the default",
                );
            }
            if listener.limits.connections == 0 || listener.limits.streams == 0 {
                self.error(
                    &key.key("limits"),
                    "`connections` and `streams` must be at least 1",
                    "leave them out for the defaults",
                );
            }
            let tls = listener.tls.as_ref().and_then(|t| {
                let (cert, secret) = (self.path(&t.cert), self.path(&t.key));
                tls::server_config(&cert, &secret)
                    .map_err(|e| {
                        let at = key.key("tls").key(if e.in_key { "key" } else { "cert" });
                        self.error(&at, e.message, e.help);
                    })
                    .ok()
            });
            checked.push(CheckedListener {
                name: listener.name.as_str().into(),
                address: listener.address,
                tls,
                limits: listener.limits.clone(),
                key,
            });
        }
        checked
    }

    fn clusters(&mut self, clusters: &[Cluster]) -> Vec<CheckedCluster> {
        let top = KeyPath::new("clusters");
        let mut checked = Vec::new();
        for (i, cluster) in clusters.iter().enumerate() {
            let key = top.index(i).key("endpoints");
            if cluster.endpoints.is_empty() {
                self.error(
                    &key,
                    format!("the cluster {:?} has no endpoint", cluster.name),
                    "name at least one, like \"127.0.0.1:9000\"",
                );
            }
            if cluster.connect_timeout.0 == 0 {
                self.error(
                    &top.index(i).key("connect_timeout"),
                    "a cluster needs a limit for connecting",
                    "leave it out for 5s",
                );
            }
            let mut endpoints = Vec::new();
            for (j, endpoint) in cluster.endpoints.iter().enumerate() {
                match endpoint.to_socket_addrs().map(|mut found| found.next()) {
                    Ok(Some(address)) if address.port() != 0 => endpoints.push(address),
                    Ok(Some(_)) => self.error(
                        &key.index(j),
                        format!("{endpoint:?} has port 0"),
                        "name the port that the server listens on",
                    ),
                    Ok(None) => self.error(
                        &key.index(j),
                        format!("{endpoint:?} has no address"),
                        "check the name, or write an IP address",
                    ),
                    Err(e) => self.error(
                        &key.index(j),
                        format!("{endpoint:?} is no address:port, and no host:port that can be resolved: {e}"),
                        "write it like \"127.0.0.1:9000\", \"[::1]:9000\" or \"app.internal:9000\"",
                    ),
                }
            }
            checked.push(CheckedCluster {
                config: cluster.clone(),
                endpoints,
            });
        }
        checked
    }
}

/// A field name for comparing: lower case, `_` as `-`.
fn normal(name: &[u8]) -> Box<[u8]> {
    name.iter()
        .map(|b| match b {
            b'_' => b'-',
            b => b.to_ascii_lowercase(),
        })
        .collect()
}
