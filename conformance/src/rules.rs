//! The rules, compiled in from `spec/rules/*.toml`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;

/// How binding a rule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum Level {
    /// Breaking it is a failure.
    #[serde(rename = "MUST")]
    Must,
    /// Breaking it is a warning.
    #[serde(rename = "SHOULD")]
    Should,
    /// It is free.
    #[serde(rename = "MAY")]
    May,
}

impl Level {
    /// As in the specification.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Must => "MUST",
            Self::Should => "SHOULD",
            Self::May => "MAY",
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum TextOrMap {
    Text(String),
    Map(BTreeMap<String, String>),
}

/// A rule of the specification.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Rule {
    /// Its permanent id.
    pub(crate) id: String,
    /// How binding it is.
    pub(crate) level: Level,
    /// Whom it binds: `guest`, `host`, `both` or `project`.
    pub(crate) party: String,
    /// The version it came with.
    pub(crate) since: String,
    /// The chapter of the specification that it is in.
    pub(crate) chapter: String,
    /// What it says.
    pub(crate) text: String,
    /// Why.
    pub(crate) why: String,
    fix: TextOrMap,
    check: BTreeMap<String, String>,
    /// Why it is not in force any more.
    #[serde(default)]
    pub(crate) retired: Option<String>,
}

#[derive(Deserialize)]
struct File {
    rule: Vec<Rule>,
}

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// All rules, in the order of their ids.
pub(crate) fn all() -> &'static [Rule] {
    static ALL: OnceLock<Vec<Rule>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut rules: Vec<Rule> = Vec::new();
        for (name, text) in RULES {
            match toml::from_str::<File>(text) {
                Ok(f) => rules.extend(f.rule),
                Err(e) => unreachable!("spec/rules/{name} was checked by the build: {e}"),
            }
        }
        rules.sort_by(|a, b| a.id.cmp(&b.id));
        rules
    })
}

/// The rule of an id.
#[must_use]
pub(crate) fn find(id: &str) -> Option<&'static Rule> {
    all().iter().find(|r| r.id.eq_ignore_ascii_case(id))
}

impl Rule {
    /// Whether a guest can break it.
    #[must_use]
    pub(crate) fn binds_guests(&self) -> bool {
        self.retired.is_none() && matches!(self.party.as_str(), "guest" | "both")
    }

    /// Whether a host can break it.
    #[must_use]
    pub(crate) fn binds_hosts(&self) -> bool {
        self.retired.is_none() && matches!(self.party.as_str(), "host" | "both")
    }

    /// How to mend it: for whom, and what. The key is empty where it holds for all.
    #[must_use]
    pub(crate) fn fixes(&self) -> Vec<(&str, &str)> {
        match &self.fix {
            TextOrMap::Text(t) => vec![("", t.as_str())],
            TextOrMap::Map(m) => m.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
        }
    }

    /// How a guest is checked, in a sentence.
    #[must_use]
    pub(crate) fn guest_check(&self) -> Option<&str> {
        self.check.get("guest").map(String::as_str)
    }

    /// The fix for a guest in `language`, or the common one.
    #[must_use]
    pub(crate) fn fix_for(&self, language: &str) -> Option<&str> {
        let fixes = self.fixes();
        fixes
            .iter()
            .find(|(k, _)| *k == language)
            .or_else(|| fixes.iter().find(|(k, _)| k.is_empty()))
            .map(|(_, v)| *v)
    }
}

/// Those of `known` that look most like `word`.
#[must_use]
pub(crate) fn did_you_mean<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let lower = word.to_lowercase();
    let mut near: Vec<(f64, &str)> = known
        .map(|k| (strsim::jaro_winkler(&lower, &k.to_lowercase()), k))
        .filter(|(s, _)| *s > 0.8)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().take(3).map(|(_, k)| k).collect()
}

/// Files that the self-test builds guests from: path below `mutants/guest` or `include`, and content.
pub(crate) fn sources() -> &'static [(&'static str, &'static str)] {
    SOURCES
}

/// The Go SDK, for the probe's twin in Go: path below its module, and content.
pub(crate) fn go_sdk() -> &'static [(&'static str, &'static str)] {
    GO_SDK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_read_and_ids_are_unique() {
        assert!(all().len() > 150, "{} rules", all().len());
        for pair in all().windows(2) {
            assert_ne!(pair[0].id, pair[1].id);
        }
        assert!(find("pxg-mem-002").is_some());
    }

    #[test]
    fn a_slip_of_the_pen_is_understood() {
        let ids = all().iter().map(|r| r.id.as_str());
        assert_eq!(
            did_you_mean("PXG-MEM-02", ids).first(),
            Some(&"PXG-MEM-002")
        );
    }
}
