//! The configuration file: its schema, and how its mistakes are reported.
//!
//! A file goes through three steps: [`Config::read`] (TOML, unknown keys, types), [`check()`] (names, addresses,
//! certificates, files: everything that can be known without loading a guest), and then the guests are loaded and
//! asked. Each step reports all the mistakes that it can see at once, with their place in the file.

mod check;
mod error;
mod units;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, de};

pub use check::{
    CheckedCluster, CheckedFilter, CheckedListener, CheckedRoute, CheckedVirtualHost, FilterCall,
    RouteAction, Site, check,
};
pub use error::{ConfigError, Diagnostic, KeyPath};
pub use units::{Millis, Size};

/// The configuration of `pxg-host`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Worker threads; each has its own event loop, and a stream never leaves its worker. Default: one per processor
    /// that the process may use. Cannot be changed by a reload.
    #[serde(default)]
    #[schemars(range(min = 1, max = 256))]
    pub workers: Option<u16>,
    /// The host's own log.
    #[serde(default)]
    pub log: Log,
    /// One line per request.
    #[serde(default)]
    pub access_log: AccessLog,
    /// Health, configuration, guests, metrics, reload. Without it there is no admin listener. Its address cannot be
    /// changed by a reload.
    #[serde(default)]
    pub admin: Option<Admin>,
    /// How the host stops.
    #[serde(default)]
    pub drain: Drain,
    /// What the host does to every request.
    #[serde(default)]
    pub http: Http,
    /// Where clients connect.
    pub listeners: Vec<Listener>,
    /// Where requests go.
    #[serde(default)]
    pub clusters: Vec<Cluster>,
    /// Which request goes where.
    pub virtual_hosts: Vec<VirtualHost>,
    /// Libraries that hold filters.
    #[serde(default)]
    pub guests: Vec<GuestLibrary>,
    /// Filters of these libraries, configured; routes name them.
    #[serde(default)]
    pub filters: Vec<Filter>,
}

/// The host's own log, on standard error.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The least severe level that is written. Guests see it too, and format nothing below it.
    pub level: Level,
    /// `text` or `json`. Cannot be changed by a reload.
    pub format: Format,
}

/// A level of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Level {
    Trace,
    Debug,
    #[default]
    Info,
    Warn,
    Error,
    Off,
}

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// One line per request, written when both directions have ended.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLog {
    /// A file to append to (opened again at each reload, so that it can be rotated), or `-` for standard output. None:
    /// no access log.
    pub path: Option<PathBuf>,
    /// `text` or `json`.
    pub format: Format,
    /// Add what each filter did, in order: `filters` of the JSON form. Costs a little on each request with filters.
    pub trace: bool,
}

/// The admin listener. Whoever can reach it can reload and drain the host: bind it to a loopback address.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
}

/// How the host stops.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// Longest time that running requests get to finish after SIGTERM, SIGINT or `POST /drain`.
    pub timeout: Millis,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            timeout: Millis::secs(30),
        }
    }
}

/// What the host does to every request.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Request fields that are removed before the first filter runs, because an upstream trusts a filter to set them.
    /// Letter case does not matter, and `_` is the same as `-`.
    pub strip_request_fields: Vec<String>,
    /// Append the client's address to `x-forwarded-for`, and set `x-forwarded-proto` and `x-forwarded-host`.
    pub forwarded: bool,
    /// Append to `via` under this name, for example `edge-1`. None: no `via`.
    pub via: Option<String>,
    /// The field that carries the request's id: kept if the client sent a legal one and `trust_request_id` is on, else
    /// set. None: no such field.
    pub request_id_field: Option<String>,
    /// Take the id from the client if it sent one (at most 128 visible characters).
    pub trust_request_id: bool,
    /// Trailer fields that HTTP/1.1 messages announce in addition to those that their sender announced. A trailer that
    /// is not announced in `trailer` cannot be sent over HTTP/1.1.
    pub announce_trailers: Vec<String>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            strip_request_fields: Vec::new(),
            forwarded: true,
            via: None,
            request_id_field: Some("x-request-id".into()),
            trust_request_id: false,
            announce_trailers: Vec::new(),
        }
    }
}

/// Where clients connect. It speaks HTTP/1.1 and HTTP/2: by ALPN with TLS, by prior knowledge without.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Its name in logs, metrics and the admin API.
    pub name: String,
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
    /// TLS; without it the listener speaks plain text.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// Limits.
    #[serde(default)]
    pub limits: Limits,
}

/// TLS 1.2 and 1.3 for a listener.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate and its chain, PEM. A relative path starts at the configuration file's folder.
    pub cert: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
}

/// Limits of a listener.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most bytes of a request's header section; beyond comes 431. At least 8 KiB.
    pub header_bytes: Size,
    /// Most fields of a request's header section (HTTP/1.1).
    pub header_fields: u16,
    /// Most connections at once; others wait in the system's queue. Each worker takes an equal share, rounded up.
    pub connections: u32,
    /// Most HTTP/2 streams of one connection at once.
    pub streams: u32,
    /// Longest time for a client to send a header section over HTTP/1.1, or to finish the TLS handshake. An HTTP/2
    /// connection without a complete request is under `idle_timeout`.
    pub header_timeout: Millis,
    /// Longest time for which a connection may have no request.
    pub idle_timeout: Millis,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: Size(64 << 10),
            header_fields: 100,
            connections: 10_000,
            streams: 100,
            header_timeout: Millis::secs(10),
            idle_timeout: Millis::secs(60),
        }
    }
}

/// Servers that are equal to each other.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Its name in routes.
    pub name: String,
    /// `address:port` or `host:port` each; names are resolved when the configuration is loaded.
    pub endpoints: Vec<String>,
    /// How an endpoint is chosen.
    #[serde(default)]
    pub balance: Balance,
    /// What the endpoints speak.
    #[serde(default)]
    pub protocol: UpstreamProtocol,
    /// Longest time to connect.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Millis,
    /// Most idle connections kept by each worker for each endpoint.
    #[serde(default = "max_idle")]
    pub max_idle: u32,
    /// Longest time that an idle connection is kept.
    #[serde(default = "upstream_idle")]
    pub idle_timeout: Millis,
}

fn connect_timeout() -> Millis {
    Millis::secs(5)
}

fn max_idle() -> u32 {
    128
}

fn upstream_idle() -> Millis {
    Millis::secs(50)
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one with the fewest requests in flight; among equals one after the other.
    LeastRequest,
}

/// What endpoints speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamProtocol {
    /// HTTP/1.1 in plain text.
    #[default]
    Http1,
    /// HTTP/2 in plain text, by prior knowledge.
    Http2,
}

/// Routes for some hosts.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VirtualHost {
    /// Its name in logs.
    pub name: String,
    /// Host names: `example.com`, `*.example.com` (any depth, not the name itself), or `*` for all that no other
    /// virtual host has. Ports are not compared. An exact name wins over a suffix, a longer suffix over a shorter one.
    pub hosts: Vec<String>,
    /// The filters of routes that name none.
    #[serde(default)]
    pub filters: Vec<FilterUse>,
    /// The routes; the longest matching prefix wins.
    pub routes: Vec<Route>,
}

/// Requests whose path begins with a prefix.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Its name in logs and for filters (attribute `route.name`).
    pub name: String,
    /// The beginning of the path. It matches whole segments: `/api` matches `/api` and `/api/x`, not `/apis`.
    pub prefix: String,
    /// The cluster that answers. Exactly one of `cluster` and `direct_response` is needed.
    #[serde(default)]
    pub cluster: Option<String>,
    /// The host's own answer.
    #[serde(default)]
    pub direct_response: Option<DirectResponse>,
    /// Replaces the prefix in the path that is sent to the cluster.
    #[serde(default)]
    pub prefix_rewrite: Option<String>,
    /// The filters, in order: each a name, or a table with a configuration of this route's own. Without it those of the
    /// virtual host.
    #[serde(default)]
    pub filters: Option<Vec<FilterUse>>,
    /// Limits of time.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Most bytes of a request's body; beyond comes 413. None: no limit of the host's.
    #[serde(default)]
    pub max_request_body: Option<Size>,
}

/// An answer of the host's own.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DirectResponse {
    /// The status.
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// The body, sent as text.
    #[serde(default)]
    pub body: String,
    /// Fields to send.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

/// Limits of time of a route; `0s` is none.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// The whole exchange, until the response's last byte. Upgraded connections have none.
    pub request: Millis,
    /// From the request's head being sent to the response's head.
    pub response_header: Millis,
    /// No byte of the response's body for so long.
    pub idle: Millis,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            request: Millis(0),
            response_header: Millis::secs(60),
            idle: Millis::secs(300),
        }
    }
}

/// A library that holds filters.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuestLibrary {
    /// Its name in `filters`.
    pub name: String,
    /// The shared library. A relative path starts at the configuration file's folder. A new version is a new file:
    /// what is loaded stays loaded until the process ends.
    pub path: PathBuf,
}

/// A filter of a guest, configured.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// The instance's name: in routes, metrics and logs, and the namespace of its metadata.
    pub name: String,
    /// The library, by its name in `guests`.
    pub guest: String,
    /// Which of the library's filters; may be left out if it has one.
    #[serde(default)]
    pub filter: Option<String>,
    /// Its configuration: a table is handed over as JSON, a string byte for byte.
    #[serde(default)]
    pub config: Option<FilterConfig>,
    /// A file whose bytes are the configuration.
    #[serde(default)]
    pub config_file: Option<PathBuf>,
    /// What happens to a request when the filter fails.
    #[serde(default)]
    pub failure_mode: FailureMode,
    /// Longest time for one decision that the filter leaves pending.
    #[serde(default = "pend_limit")]
    pub pend_limit: Millis,
    /// Longest time that the filter may hold one direction of a request, all waits together.
    #[serde(default = "hold_limit")]
    pub hold_limit: Millis,
    /// Most requests of one worker that may wait for the filter at once.
    #[serde(default = "max_pending")]
    pub max_pending: u32,
    /// Most bytes of a body that the filter may ask to be held.
    #[serde(default = "max_body")]
    pub max_body: Size,
    /// Metadata namespaces that the filter may write beside its own.
    #[serde(default)]
    pub metadata_namespaces: Vec<String>,
    /// Clusters that the filter may route to.
    #[serde(default)]
    pub clusters: Vec<String>,
    /// Trailer fields that the filter may add; HTTP/1.1 messages announce them.
    #[serde(default)]
    pub trailers: Vec<String>,
}

fn pend_limit() -> Millis {
    Millis::secs(10)
}

fn hold_limit() -> Millis {
    Millis::secs(30)
}

fn max_pending() -> u32 {
    10_000
}

fn max_body() -> Size {
    Size(1 << 20)
}

/// A filter's configuration.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum FilterConfig {
    /// Handed over byte for byte.
    Text(String),
    /// Handed over as JSON.
    Table(serde_json::Map<String, serde_json::Value>),
}

/// What happens to a request when its filter fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FailureMode {
    /// It is answered with 500, or reset if that is too late.
    #[default]
    Closed,
    /// It goes on without the filter, if nothing that the filter changed has been sent.
    Open,
}

/// A filter in a route: its name, or a table with another configuration for this route.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum FilterUse {
    /// As configured in `filters`.
    Name(String),
    /// With a configuration of this place's own; the filter sees that of `filters` as its parent.
    Override(FilterOverride),
}

/// A filter with a configuration of a route's own.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilterOverride {
    /// Its name in `filters`.
    pub name: String,
    /// As in `filters`.
    #[serde(default)]
    pub config: Option<FilterConfig>,
    /// As in `filters`.
    #[serde(default)]
    pub config_file: Option<PathBuf>,
}

impl FilterUse {
    /// The filter's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Name(name) => name,
            Self::Override(o) => &o.name,
        }
    }
}

// By hand, because the error of an untagged enum says nothing about what is wrong inside.
impl<'de> Deserialize<'de> for FilterUse {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = FilterUse;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a filter's name, or a table with `name` and `config`")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<FilterUse, E> {
                Ok(FilterUse::Name(name.into()))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<FilterUse, A::Error> {
                FilterOverride::deserialize(MapAccessDeserializer::new(map))
                    .map(FilterUse::Override)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A configuration as it was read.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file, absolute.
    pub file: PathBuf,
    /// Its text.
    pub text: String,
    /// What it says.
    pub config: Config,
}

impl Config {
    /// Reads a file: TOML, key names, types.
    ///
    /// # Errors
    /// What is wrong and where: the file cannot be read, is not TOML, has an unknown key or a value of a wrong type.
    pub fn read(file: &Path) -> Result<Source, ConfigError> {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_path_buf());
        let text =
            std::fs::read_to_string(&file).map_err(|e| ConfigError::unreadable(&file, &e))?;
        match toml::from_str(&text) {
            Ok(config) => Ok(Source { file, text, config }),
            Err(e) => Err(ConfigError::syntax(&file, &text, &e)),
        }
    }

    /// The JSON schema of the file.
    #[must_use]
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}
