//! What the guest `script` wrote down.

use std::path::PathBuf;

use serde_json::Value;

use crate::support::until;

/// The lines about the streams of one case.
pub(crate) struct Record {
    file: PathBuf,
    case: &'static str,
}

impl Record {
    pub(crate) fn new(file: PathBuf, case: &'static str) -> Self {
        Self { file, case }
    }

    /// All until now.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        // All cases share the file: most lines are of others.
        let case = format!("\"case\":\"{}\"", self.case);
        let own = whole.lines().filter(|line| line.contains(&case));
        own.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .filter(|line: &Value| line["case"] == self.case)
            .collect()
    }

    /// Waits for `n` lines of this kind.
    pub(crate) fn calls(&self, call: &str, n: usize) -> Vec<Value> {
        let mut found = Vec::new();
        until(
            &format!("{n} lines `{call}` of {} are written", self.case),
            || {
                found = self
                    .lines()
                    .into_iter()
                    .filter(|l| l["call"] == call)
                    .collect();
                found.len() >= n
            },
        );
        assert_eq!(found.len(), n, "`{call}` of {}: {found:#?}", self.case);
        found
    }

    /// The events once `n` streams have ended.
    pub(crate) fn events(&self, n: usize) -> Vec<Value> {
        self.calls("end", n);
        self.lines()
            .into_iter()
            .filter(|l| l["call"] == "event")
            .collect()
    }

    /// The events of the only stream, once it has ended, by phase.
    pub(crate) fn phases(&self) -> Vec<String> {
        self.events(1)
            .iter()
            .map(|e| e["phase"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// The values of a field in an event.
pub(crate) fn values<'a>(event: &'a Value, list: &str, name: &str) -> Vec<&'a str> {
    let fields = event[list].as_array().unwrap().iter();
    fields
        .filter(|f| f[0] == name)
        .map(|f| f[1].as_str().unwrap())
        .collect()
}

pub(crate) fn has_flag(event: &Value, flag: proxy_golang_abi::EventFlags) -> bool {
    event["flags"].as_u64().unwrap() & u64::from(flag.0) != 0
}
