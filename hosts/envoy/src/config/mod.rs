//! The configuration of one of our filters in Envoy: `filter_config` and a route's, as JSON.
//!
//! In Envoy's own configuration it is a `google.protobuf.Struct`, which Envoy hands over as JSON; a
//! `google.protobuf.StringValue` that holds JSON does, too.
//!
//! ```yaml
//! filter_name: edge                          # names this filter for routes; any text
//! filter_config:
//!   "@type": type.googleapis.com/google.protobuf.Struct
//!   value:
//!     chain:                                 # one or more guests, in the order of the request
//!     - name: auth                           # unique among all filters of the process
//!       guest: /usr/lib/pxg/libauth.so       # absolute path of the guest library
//!       filter: token-check                  # which of its filters; may be left out if it has one
//!       config: {realm: edge}                # for the guest: text as it is, anything else as JSON
//!       config_file: /etc/pxg/auth.conf      # or the bytes of this file, whatever they are
//!       failure_mode: closed                 # or open
//!       pend_limit: 10s                      # most time of one PENDING
//!       hold_limit: 30s                      # most time that a direction may be held in sum
//!       max_pending: 10000                   # streams that may pend on one worker
//!       max_body: 1MiB                       # most bytes held of a body; the guest may ask for less
//!       metadata_namespaces: [shared]        # that METADATA_SET may write beside its own
//!       clusters: [canary]                   # that ROUTE may choose; see `cluster_field`
//!       batch_end: true                      # on_batch_end after each turn of the event loop that pended
//!       warm_up: true                        # empty calls before a worker's first event
//!       all_cpus: false                      # its threads may run where Envoy's may not, if Envoy is pinned
//!     failure_status: 500                    # status of the reply when a guest fails closed
//!     strip_request_fields: [x-user]         # removed before the first guest runs
//!     cluster_field: x-pxg-cluster           # field that ROUTE sets; give your routes `cluster_header: x-pxg-cluster`
//!     filter_state: {tenant: my.tenant}      # METADATA_SET of this key sets this filter state, too
//! ```
//!
//! With a single guest the keys of its entry may stand directly in `value`, without `chain`; its `name` is then
//! `filter_name` if it has none. A route's configuration (`DynamicModuleFilterPerRoute`, `per_route_config_name` equal to
//! `filter_name`) overrides by the guests' names:
//!
//! ```yaml
//! filter_config:
//!   "@type": type.googleapis.com/google.protobuf.Struct
//!   value:
//!     overrides:
//!       auth: {config: {realm: admin}}       # or config_file; the guest gets its own configuration as the parent
//!       trace: {disabled: true}              # not in the chain of this route
//! ```

mod table;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use proxy_golang_host::engine::{FailureMode, Policy};
use serde_json::Value;
use table::{Table, show};

/// What one of our filters in Envoy is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) chain: Vec<GuestSettings>,
    pub(crate) failure_status: u16,
    pub(crate) strip: Vec<String>,
    pub(crate) cluster_field: String,
    pub(crate) filter_state: BTreeMap<String, String>,
}

/// One guest's filter in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestSettings {
    pub(crate) name: String,
    pub(crate) guest: PathBuf,
    pub(crate) filter: Option<String>,
    pub(crate) config: Vec<u8>,
    pub(crate) open: bool,
    pub(crate) pend_limit: Duration,
    pub(crate) hold_limit: Duration,
    pub(crate) max_pending: u32,
    pub(crate) max_body: u64,
    pub(crate) metadata_namespaces: Vec<String>,
    pub(crate) clusters: Vec<String>,
    pub(crate) batch_end: bool,
    pub(crate) warm_up: bool,
    pub(crate) all_cpus: bool,
    pub(crate) reply_refilter: bool,
}

impl GuestSettings {
    pub(crate) fn policy(&self) -> Policy {
        Policy {
            failure_mode: if self.open {
                FailureMode::Open
            } else {
                FailureMode::Closed
            },
            pend_limit: self.pend_limit,
            hold_limit: self.hold_limit,
            max_pending: self.max_pending,
            metadata_namespaces: self.metadata_namespaces.clone(),
            clusters: self.clusters.clone(),
        }
    }
}

/// What a route changes of one guest's filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Override {
    Disabled,
    Config(Vec<u8>),
}

/// What a route changes.
pub(crate) type Overrides = BTreeMap<String, Override>;

/// Why a configuration was refused: what was found where, what was expected, what to do.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{key}`: found {found}; expected {expected}. {advice}")]
pub(crate) struct ConfigError {
    key: String,
    found: String,
    expected: String,
    advice: String,
}

impl ConfigError {
    pub(crate) fn new(
        key: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            key: key.into(),
            found: found.into(),
            expected: expected.into(),
            advice: advice.into(),
        }
    }
}

const GUEST_KEYS: &[&str] = &[
    "name",
    "guest",
    "filter",
    "config",
    "config_file",
    "failure_mode",
    "pend_limit",
    "hold_limit",
    "max_pending",
    "max_body",
    "metadata_namespaces",
    "clusters",
    "batch_end",
    "warm_up",
    "all_cpus",
    "reply_refilter",
];
const TOP_KEYS: &[&str] = &[
    "chain",
    "failure_status",
    "strip_request_fields",
    "cluster_field",
    "filter_state",
];

/// Reads `filter_config`. `filter_name` names a single guest that has no name of its own.
pub(crate) fn parse(filter_name: &str, bytes: &[u8]) -> Result<Settings, ConfigError> {
    let mut top = Table::parse("filter_config", bytes)?;
    let chain = match top.take("chain") {
        Some(Value::Array(entries)) if !entries.is_empty() => {
            let own = entries.into_iter().enumerate();
            own.map(|(i, entry)| {
                let mut table = Table::of(format!("chain[{i}]"), entry)?;
                let guest = guest(&mut table, None)?;
                table.finish(GUEST_KEYS)?;
                Ok(guest)
            })
            .collect::<Result<Vec<_>, _>>()?
        }
        Some(other) => {
            return Err(ConfigError::new(
                "chain",
                show(&other),
                "a list with at least one guest",
                "Give each guest an entry with `name` and `guest`.",
            ));
        }
        None => vec![guest(&mut top, Some(filter_name))?],
    };
    for (i, guest) in chain.iter().enumerate() {
        if chain[..i].iter().any(|g| g.name == guest.name) {
            return Err(ConfigError::new(
                format!("chain[{i}].name"),
                format!("{:?} a second time", guest.name),
                "a name of its own for each entry",
                "Rename one of them.",
            ));
        }
    }
    let failure_status = top.number("failure_status", 500, 500, 599)?;
    let strip = top.texts("strip_request_fields")?;
    let cluster_field = top
        .text("cluster_field")?
        .unwrap_or_else(|| "x-pxg-cluster".to_owned())
        .to_ascii_lowercase();
    let mut filter_state = BTreeMap::new();
    match top.take("filter_state") {
        None => {}
        Some(Value::Object(map)) => {
            for (key, value) in map {
                let Value::String(name) = value else {
                    return Err(ConfigError::new(
                        format!("filter_state.{key}"),
                        show(&value),
                        "the name of a filter state, as text",
                        "Write, for example, \"my.tenant\".",
                    ));
                };
                filter_state.insert(key, name);
            }
        }
        Some(other) => {
            return Err(ConfigError::new(
                "filter_state",
                show(&other),
                "a table from keys of metadata to names of filter states",
                "Write, for example, {\"tenant\": \"my.tenant\"}.",
            ));
        }
    }
    let keys: Vec<&str> = TOP_KEYS.iter().chain(GUEST_KEYS).copied().collect();
    top.finish(&keys)?;
    Ok(Settings {
        chain,
        failure_status: u16::try_from(failure_status).unwrap_or(500),
        strip: strip.into_iter().map(|s| s.to_ascii_lowercase()).collect(),
        cluster_field,
        filter_state,
    })
}

/// Reads a route's configuration.
pub(crate) fn parse_overrides(bytes: &[u8]) -> Result<Overrides, ConfigError> {
    let mut top = Table::parse("filter_config", bytes)?;
    let mut overrides = Overrides::new();
    match top.take("overrides") {
        Some(Value::Object(map)) if !map.is_empty() => {
            for (name, value) in map {
                let mut table = Table::of(format!("overrides.{name}"), value)?;
                let disabled = table.flag("disabled", false)?;
                let config = table.config()?;
                table.finish(&["disabled", "config", "config_file"])?;
                let change = match (disabled, config) {
                    (true, None) => Override::Disabled,
                    (false, Some(bytes)) => Override::Config(bytes),
                    _ => {
                        return Err(ConfigError::new(
                            table.at,
                            "neither, or both, of `disabled: true` and a configuration",
                            "one of them",
                            "Disable the guest on this route, or give it another configuration.",
                        ));
                    }
                };
                overrides.insert(name, change);
            }
        }
        other => {
            return Err(ConfigError::new(
                "overrides",
                other.map_or_else(|| "nothing".to_owned(), |o| show(&o)),
                "a table by the names of the guests' entries",
                "Write, for example, {\"overrides\": {\"auth\": {\"disabled\": true}}}.",
            ));
        }
    }
    top.finish(&["overrides"])?;
    Ok(overrides)
}

fn guest(table: &mut Table, name: Option<&str>) -> Result<GuestSettings, ConfigError> {
    let needed = |table: &Table, key: &str, what: &str| {
        ConfigError::new(
            table.key(key),
            "nothing",
            what,
            format!("Add `{key}`: {what}."),
        )
    };
    let name = match (table.text("name")?, name) {
        (Some(name), _) if !name.is_empty() => name,
        (None, Some(name)) if !name.is_empty() => name.to_owned(),
        _ => {
            return Err(needed(
                table,
                "name",
                "the name of this entry, unique in the process",
            ));
        }
    };
    let Some(guest) = table.text("guest")? else {
        return Err(needed(
            table,
            "guest",
            "the absolute path of the guest library",
        ));
    };
    if !guest.starts_with('/') {
        return Err(ConfigError::new(
            table.key("guest"),
            format!("{guest:?}"),
            "an absolute path",
            "Envoy's working directory is nobody's choice: begin with a slash.",
        ));
    }
    let open = match table.text("failure_mode")?.as_deref() {
        None | Some("closed") => false,
        Some("open") => true,
        Some(other) => {
            return Err(ConfigError::new(
                table.key("failure_mode"),
                format!("{other:?}"),
                "\"closed\" or \"open\"",
                "With open a request passes without the guest where that is harmless.",
            ));
        }
    };
    Ok(GuestSettings {
        name,
        guest: guest.into(),
        filter: table.text("filter")?,
        config: table.config()?.unwrap_or_default(),
        open,
        pend_limit: table.time("pend_limit", Duration::from_secs(10))?,
        hold_limit: table.time("hold_limit", Duration::from_secs(30))?,
        max_pending: u32::try_from(table.number("max_pending", 10_000, 1, 100_000_000)?)
            .unwrap_or(u32::MAX),
        max_body: table.size("max_body", 1 << 20)?,
        metadata_namespaces: table.texts("metadata_namespaces")?,
        clusters: table.texts("clusters")?,
        batch_end: table.flag("batch_end", true)?,
        warm_up: table.flag("warm_up", true)?,
        all_cpus: table.flag("all_cpus", false)?,
        reply_refilter: table.flag("reply_refilter", false)?,
    })
}

#[cfg(test)]
mod tests;
