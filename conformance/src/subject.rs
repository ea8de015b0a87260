//! What a guest is tested with: filters, their configurations, and what requests must carry. Read from
//! `pxg-conformance.toml`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

/// One filter with one configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subject {
    pub(crate) filter: String,
    pub(crate) config: Vec<u8>,
    /// Fields that each request carries besides.
    pub(crate) fields: Vec<(String, String)>,
    /// Fields of a second request that lets a pending one go on.
    #[serde(default)]
    pub(crate) companion: Vec<(String, String)>,
    /// Requests make this filter panic, and it contains that.
    pub(crate) panics: bool,
}

impl Subject {
    /// A filter with an empty configuration.
    pub(crate) fn bare(filter: &str) -> Self {
        Self {
            filter: filter.to_string(),
            config: Vec::new(),
            fields: Vec::new(),
            companion: Vec::new(),
            panics: false,
        }
    }

    /// For messages.
    pub(crate) fn label(&self) -> String {
        if self.config.is_empty() {
            self.filter.clone()
        } else {
            let text = String::from_utf8_lossy(&self.config);
            let short: String = text.chars().take(40).collect();
            format!("{} ({})", self.filter, short.replace('\n', "; "))
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    filter: Vec<Entry>,
    #[serde(default)]
    expect: BTreeMap<String, Expect>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(default)]
    config: Option<String>,
    /// A file with the configuration, beside the settings.
    #[serde(default)]
    config_file: Option<String>,
    #[serde(default)]
    request_headers: Vec<(String, String)>,
    /// A request with these fields is sent while one of this filter is pending.
    #[serde(default)]
    companion_headers: Vec<(String, String)>,
    #[serde(default)]
    panics: bool,
}

/// A known failure.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expect {
    /// `fail`, `warn`, `crash` or `timeout`.
    pub(crate) status: String,
    /// Why; never empty.
    pub(crate) reason: String,
    /// Where it is tracked.
    #[serde(default)]
    pub(crate) issue: Option<String>,
    /// The last day (`2027-01-31`) on which it is accepted.
    pub(crate) until: String,
}

/// The settings of a guest under test.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) subjects: Vec<Subject>,
    /// By case name or rule id.
    pub(crate) expect: BTreeMap<String, Expect>,
}

/// The name of the settings' file that is looked for beside the library.
pub(crate) const FILE_NAME: &str = "pxg-conformance.toml";

/// Reads settings from `path`.
pub(crate) fn read(path: &Path) -> Result<Settings> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file: File =
        toml::from_str(&text).with_context(|| format!("{} is not as expected", path.display()))?;
    let mut subjects = Vec::new();
    for e in file.filter {
        let config = match (e.config, e.config_file) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(name)) => {
                let at = path.parent().unwrap_or(Path::new(".")).join(&name);
                std::fs::read(&at).with_context(|| format!("cannot read {}", at.display()))?
            }
            (None, None) => Vec::new(),
            (Some(_), Some(_)) => bail!(
                "{}: filter {:?} has both config and config_file; give one",
                path.display(),
                e.name
            ),
        };
        subjects.push(Subject {
            filter: e.name,
            config,
            fields: e.request_headers,
            companion: e.companion_headers,
            panics: e.panics,
        });
    }
    for (name, x) in &file.expect {
        if x.reason.trim().is_empty() {
            bail!("{}: [expect] {name:?} has no reason", path.display());
        }
        if !["fail", "warn", "crash", "timeout"].contains(&x.status.as_str()) {
            bail!(
                "{}: [expect] {name:?} has the status {:?}; it is one of fail, warn, crash, timeout",
                path.display(),
                x.status
            );
        }
        if !is_date(&x.until) {
            bail!(
                "{}: [expect] {name:?} ends at {:?}; write a day like 2027-01-31",
                path.display(),
                x.until
            );
        }
    }
    Ok(Settings {
        subjects,
        expect: file.expect,
    })
}

fn is_date(s: &str) -> bool {
    let b = s.as_bytes();
    b.len() == 10
        && b.iter().enumerate().all(|(i, c)| {
            if i == 4 || i == 7 {
                *c == b'-'
            } else {
                c.is_ascii_digit()
            }
        })
}
