//! What a case finds, and how it travels from the case's process to the suite: one JSON object a line.

use std::collections::HashMap;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::sys::shared;

/// A rule that was broken, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// The rule's id.
    pub(crate) rule: String,
    /// What happened, in one line.
    pub(crate) title: String,
    /// More about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) detail: Vec<String>,
}

/// A line of the log in shared memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Record {
    Finding(Finding),
    /// The case does not apply, and why.
    NotApplicable(String),
    /// This machine does not allow what the case checks with, and why.
    Unchecked(String),
    /// The case could not be run, and why.
    Blocked(String),
    /// What the case did: a case that says nothing checked nothing.
    Checked(u64),
    /// A mapped file: path, first address, last address, offset in the file.
    Module(String, u64, u64, u64),
    /// Something of the suite's own went wrong.
    SuiteError(String),
    /// For the reader of the report.
    Remark(String),
    /// Guest's name, version and runtime.
    Guest(GuestInfo),
    /// An execution of the fuzzer begins.
    Execution(u64),
    /// A filter of which a configuration was accepted.
    Configured(String),
}

/// What a guest says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GuestInfo {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// The names of its filters.
    pub(crate) filters: Vec<String>,
    /// It declares that it cannot contain its failures.
    pub(crate) aborts: bool,
}

pub(crate) fn record(r: &Record) {
    let Ok(line) = serde_json::to_string(r) else {
        return;
    };
    match shared::current() {
        Some(s) => s.append(&line),
        None => eprintln!("{line}"),
    }
}

/// How often one rule is reported with one title.
const REPEATS: u32 = 3;

static SEEN: Mutex<Option<HashMap<String, u32>>> = Mutex::new(None);

/// Reports that the guest broke a rule.
pub(crate) fn note(rule: &str, title: impl Into<String>, detail: impl IntoIterator<Item = String>) {
    let title = title.into();
    {
        let mut seen = SEEN
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let n = seen
            .get_or_insert_default()
            .entry(format!("{rule} {title}"))
            .or_default();
        *n += 1;
        if *n > REPEATS {
            return;
        }
    }
    record(&Record::Finding(Finding {
        rule: rule.to_string(),
        title,
        detail: detail.into_iter().collect(),
    }));
}

pub(crate) fn suite_error(text: String) {
    record(&Record::SuiteError(text));
}

pub(crate) fn remark(text: impl Into<String>) {
    record(&Record::Remark(text.into()));
}
