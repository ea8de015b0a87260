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
//!       failure_mode: closed                 # or open
//!       pend_limit: 10s                      # most time of one PENDING
//!       hold_limit: 30s                      # most time that a direction may be held in sum
//!       max_pending: 10000                   # streams that may pend on one worker
//!       max_body: 1MiB                       # most bytes held of a body; the guest may ask for less
//!       metadata_namespaces: [shared]        # that METADATA_SET may write beside its own
//!       clusters: [canary]                   # that ROUTE may choose; see `cluster_field`
//!       batch_end: true                      # on_batch_end after each turn of the event loop that pended
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
//!       auth: {config: {realm: admin}}       # the guest gets its own configuration as the parent
//!       trace: {disabled: true}              # not in the chain of this route
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use proxy_golang_host::engine::{FailureMode, Policy};
use serde_json::{Map, Value};

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
    "failure_mode",
    "pend_limit",
    "hold_limit",
    "max_pending",
    "max_body",
    "metadata_namespaces",
    "clusters",
    "batch_end",
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
                let config = table.take("config").map(|config| config_bytes(&config));
                table.finish(&["disabled", "config"])?;
                let change = match (disabled, config) {
                    (true, None) => Override::Disabled,
                    (false, Some(bytes)) => Override::Config(bytes),
                    _ => {
                        return Err(ConfigError::new(
                            table.at,
                            "neither, or both, of `disabled: true` and `config`",
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
        config: table
            .take("config")
            .map_or_else(Vec::new, |config| config_bytes(&config)),
        open,
        pend_limit: table.time("pend_limit", Duration::from_secs(10))?,
        hold_limit: table.time("hold_limit", Duration::from_secs(30))?,
        max_pending: u32::try_from(table.number("max_pending", 10_000, 1, 100_000_000)?)
            .unwrap_or(u32::MAX),
        max_body: table.size("max_body", 1 << 20)?,
        metadata_namespaces: table.texts("metadata_namespaces")?,
        clusters: table.texts("clusters")?,
        batch_end: table.flag("batch_end", true)?,
        reply_refilter: table.flag("reply_refilter", false)?,
    })
}

/// What a guest gets: text as it is, anything else as JSON.
fn config_bytes(config: &Value) -> Vec<u8> {
    match config {
        Value::String(text) => text.clone().into_bytes(),
        Value::Null => Vec::new(),
        other => serde_json::to_vec(&whole_numbers(other)).unwrap_or_default(),
    }
}

/// A `Struct` knows only floating point: what was written as `5` may come as `5.0`.
fn whole_numbers(value: &Value) -> Value {
    match value {
        Value::Number(n) => match n.as_f64() {
            #[allow(clippy::cast_possible_truncation)] // it is whole and small
            Some(f) if f.fract() == 0.0 && f.abs() < 9_007_199_254_740_992.0 => {
                Value::from(f as i64)
            }
            _ => value.clone(),
        },
        Value::Array(list) => list.iter().map(whole_numbers).collect(),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), whole_numbers(value)))
            .collect::<Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

fn show(value: &Value) -> String {
    let text = value.to_string();
    if text.len() > 120 {
        format!("{}...", text.chars().take(120).collect::<String>())
    } else {
        text
    }
}

/// A table whose keys are taken one by one; what is left at the end is unknown.
struct Table {
    at: String,
    map: Map<String, Value>,
}

impl Table {
    fn parse(at: &str, bytes: &[u8]) -> Result<Self, ConfigError> {
        let example = "Write, for example, {\"name\": \"auth\", \"guest\": \"/path/libauth.so\"}.";
        if bytes.is_empty() {
            return Err(ConfigError::new(at, "nothing", "a table", example));
        }
        let value = serde_json::from_slice(bytes).map_err(|e| {
            ConfigError::new(
                at,
                format!("what is not JSON ({e})"),
                "a google.protobuf.Struct, or a StringValue that holds JSON",
                example,
            )
        })?;
        let mut table = Self::of(at.to_owned(), value)?;
        table.at = String::new();
        Ok(table)
    }

    fn of(at: String, value: Value) -> Result<Self, ConfigError> {
        match value {
            Value::Object(map) => Ok(Self { at, map }),
            other => Err(ConfigError::new(
                at,
                show(&other),
                "a table",
                "Write keys with their values.",
            )),
        }
    }

    fn key(&self, key: &str) -> String {
        if self.at.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.at)
        }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key)
    }

    fn wrong(&self, key: &str, found: &Value, expected: &str) -> ConfigError {
        ConfigError::new(self.key(key), show(found), expected, "Correct the value.")
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, ConfigError> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, &other, "text")),
        }
    }

    fn texts(&mut self, key: &str) -> Result<Vec<String>, ConfigError> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(list)) => list
                .into_iter()
                .map(|item| match item {
                    Value::String(text) => Ok(text),
                    other => Err(self.wrong(key, &other, "a list of texts")),
                })
                .collect(),
            Some(other) => Err(self.wrong(key, &other, "a list of texts")),
        }
    }

    fn flag(&mut self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(self.wrong(key, &other, "true or false")),
        }
    }

    fn number(&mut self, key: &str, default: u64, min: u64, max: u64) -> Result<u64, ConfigError> {
        let Some(value) = self.take(key) else {
            return Ok(default);
        };
        whole(&value)
            .filter(|n| (min..=max).contains(n))
            .ok_or_else(|| self.wrong(key, &value, &format!("a whole number from {min} to {max}")))
    }

    fn size(&mut self, key: &str, default: u64) -> Result<u64, ConfigError> {
        let Some(value) = self.take(key) else {
            return Ok(default);
        };
        let size = match &value {
            Value::String(text) => size_of_text(text),
            other => whole(other),
        };
        size.ok_or_else(|| self.wrong(key, &value, "a number of bytes, like 65536 or \"1MiB\""))
    }

    fn time(&mut self, key: &str, default: Duration) -> Result<Duration, ConfigError> {
        let expected = "a time with a unit, like \"500ms\", \"30s\" or \"1m 30s\", and not 0";
        let Some(value) = self.take(key) else {
            return Ok(default);
        };
        let Value::String(text) = &value else {
            return Err(self.wrong(key, &value, expected));
        };
        humantime::parse_duration(text)
            .ok()
            .filter(|time| !time.is_zero())
            .ok_or_else(|| self.wrong(key, &value, expected))
    }

    /// Refuses what nobody took.
    fn finish(&self, known: &[&str]) -> Result<(), ConfigError> {
        let Some(key) = self.map.keys().next() else {
            return Ok(());
        };
        let near = known
            .iter()
            .map(|k| (strsim::damerau_levenshtein(k, key), *k))
            .min()
            .filter(|(distance, _)| *distance <= 3);
        let advice = match near {
            Some((_, near)) => format!("Did you mean `{near}`?"),
            None => "Remove it.".to_owned(),
        };
        Err(ConfigError::new(
            self.key(key),
            "an unknown key",
            format!("one of {}", known.join(", ")),
            advice,
        ))
    }
}

fn whole(value: &Value) -> Option<u64> {
    if let Some(n) = value.as_u64() {
        return Some(n);
    }
    let f = value.as_f64()?;
    let fits = f.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&f);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // it fits
    fits.then_some(f as u64)
}

/// `1MiB`, `64 KiB`, `10kB`, `123`.
fn size_of_text(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> String {
        parse("edge", json.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn one_guest_needs_no_chain_and_gets_the_filters_name() {
        let settings = parse(
            "edge",
            br#"{"guest": "/a.so", "config": "text", "max_body": 1.5e3}"#,
        );
        let settings = settings.unwrap();
        let guest = &settings.chain[0];
        assert_eq!(
            (guest.name.as_str(), &guest.config[..]),
            ("edge", &b"text"[..])
        );
        assert_eq!(guest.max_body, 1500);
        assert_eq!(guest.pend_limit, Duration::from_secs(10));
        assert!(!guest.open && guest.batch_end);
    }

    #[test]
    fn a_chain_keeps_its_order_and_its_guests_settings() {
        let settings = parse(
            "edge",
            br#"{"chain": [
                {"name": "a", "guest": "/a.so", "filter": "x", "config": {"n": 5.0, "f": 0.5, "s": [1.0]},
                 "failure_mode": "open", "pend_limit": "500ms", "hold_limit": "1m", "max_pending": 7,
                 "max_body": "64KiB", "metadata_namespaces": ["m"], "clusters": ["c"], "batch_end": false},
                {"name": "b", "guest": "/a.so"}],
              "failure_status": 503, "strip_request_fields": ["X-User"], "cluster_field": "X-C",
              "filter_state": {"tenant": "my.tenant"}}"#,
        )
        .unwrap();
        let a = &settings.chain[0];
        assert_eq!(
            std::str::from_utf8(&a.config),
            Ok(r#"{"f":0.5,"n":5,"s":[1]}"#)
        );
        assert_eq!((a.max_body, a.max_pending), (65536, 7));
        assert_eq!(a.pend_limit, Duration::from_millis(500));
        assert!(a.open && !a.batch_end);
        assert_eq!(settings.chain[1].name, "b");
        assert_eq!(
            (settings.failure_status, settings.strip[0].as_str()),
            (503, "x-user")
        );
        assert_eq!(settings.cluster_field, "x-c");
        assert_eq!(settings.filter_state["tenant"], "my.tenant");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_key_value_and_next_step() {
        for (json, expected) in [
            ("", "`filter_config`: found nothing; expected a table"),
            ("nonsense", "what is not JSON"),
            ("[]", "`filter_config`: found []; expected a table"),
            (
                r#"{"guest": "/a.so", "max_bdy": 1}"#,
                "`max_bdy`: found an unknown key",
            ),
            (
                r#"{"guest": "/a.so", "max_bdy": 1}"#,
                "Did you mean `max_body`?",
            ),
            (r#"{"name": "x"}"#, "`guest`: found nothing"),
            (
                r#"{"guest": "a.so"}"#,
                "`guest`: found \"a.so\"; expected an absolute path",
            ),
            (r#"{"chain": []}"#, "`chain`: found []"),
            (
                r#"{"chain": [{"guest": "/a.so"}]}"#,
                "`chain[0].name`: found nothing",
            ),
            (
                r#"{"chain": [{"name": "a", "guest": "/a.so"}, {"name": "a", "guest": "/a.so"}]}"#,
                "`chain[1].name`: found \"a\" a second time",
            ),
            (
                r#"{"chain": [{"name": "a", "guest": "/a.so", "pend_limit": 5}]}"#,
                "`chain[0].pend_limit`: found 5; expected a time with a unit",
            ),
            (r#"{"guest": "/a.so", "pend_limit": "0s"}"#, "`pend_limit`"),
            (
                r#"{"guest": "/a.so", "failure_mode": "ajar"}"#,
                "\"ajar\"; expected \"closed\" or \"open\"",
            ),
            (
                r#"{"guest": "/a.so", "failure_status": 404}"#,
                "a whole number from 500 to 599",
            ),
            (
                r#"{"guest": "/a.so", "max_body": "lots"}"#,
                "a number of bytes",
            ),
            (r#"{"guest": "/a.so", "clusters": "c"}"#, "a list of texts"),
            (
                r#"{"guest": "/a.so", "filter_state": {"a": 1}}"#,
                "`filter_state.a`: found 1",
            ),
        ] {
            let text = refused(json);
            assert!(text.contains(expected), "{json}: {text}");
        }
    }

    #[test]
    fn a_route_overrides_by_name() {
        let json = br#"{"overrides": {"a": {"config": {"x": 1.0}}, "b": {"disabled": true}}}"#;
        let overrides = parse_overrides(json).unwrap();
        assert_eq!(overrides["a"], Override::Config(br#"{"x":1}"#.to_vec()));
        assert_eq!(overrides["b"], Override::Disabled);
        for (json, expected) in [
            ("{}", "`overrides`: found nothing"),
            (r#"{"overrides": {}}"#, "`overrides`: found {}"),
            (
                r#"{"overrides": {"a": {}}}"#,
                "`overrides.a`: found neither",
            ),
            (
                r#"{"overrides": {"a": {"confg": 1}}}"#,
                "Did you mean `config`?",
            ),
            (r#"{"overides": {"a": {}}}"#, "`overrides`: found nothing"),
        ] {
            let text = parse_overrides(json.as_bytes()).unwrap_err().to_string();
            assert!(text.contains(expected), "{json}: {text}");
        }
    }
}
