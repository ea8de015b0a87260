//! The history checker: a pure function from records to findings. What it demands holds in every run of every case of
//! every host, so it checks each case besides what the case itself knows.
//!
//! | module | what it follows |
//! |---|---|
//! | `place` | one stream at one place: order, modes, views, `user`, the end |
//! | `calls` | nesting on a thread, tokens, handles, wakes |
//! | `run` | the whole run: configurations, workers, threads, owned buffers, the process |

mod calls;
mod place;
mod run;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use proxy_golang_abi as abi;

use super::record::{Edge, Record};

/// Something that a rule forbids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The rule's id.
    pub(crate) rule: &'static str,
    /// What was seen.
    pub(crate) saw: String,
    /// What was to be expected.
    pub(crate) expected: &'static str,
    /// Where: indices into the records.
    pub(crate) at: Vec<usize>,
}

impl Found {
    /// In one line.
    pub(crate) fn title(&self) -> String {
        format!("{}; expected: {}", self.saw, self.expected)
    }

    /// The records that it is about, and those around the last of them.
    pub(crate) fn detail(&self, records: &[Record]) -> Vec<String> {
        let mut all: BTreeSet<usize> = self.at.iter().copied().collect();
        if let Some(last) = self.at.last() {
            all.extend(last.saturating_sub(2)..(last + 2).min(records.len()));
        }
        all.iter()
            .filter_map(|i| {
                let mark = if self.at.contains(i) { ">" } else { " " };
                records.get(*i).map(|r| format!("{mark} {}", line(r)))
            })
            .collect()
    }
}

/// A record in a line for people.
pub(crate) fn line(r: &Record) -> String {
    use std::fmt::Write as _;
    let mut out = format!(
        "#{} {} {}{}",
        r.seq,
        r.tid,
        match r.edge {
            Edge::Enter => "",
            Edge::Exit => "end of ",
        },
        r.function
    );
    if let Some(p) = r.phase {
        let _ = write!(out, "({})", phase_name(p));
    }
    for (name, value) in [
        ("place", r.instance.clone()),
        ("stream", r.stream.map(|n| format!("{n:#x}"))),
        (
            "token",
            r.token.filter(|n| *n != 0).map(|n| format!("{n:#x}")),
        ),
        ("flags", r.flags.map(flag_names)),
        ("offset", r.body_offset.map(|n| n.to_string())),
        ("view", r.chunks.as_ref().map(|_| r.view_len().to_string())),
        ("arg", r.arg.map(|n| format!("{n:#x}"))),
        ("status", r.status.map(|n| n.to_string())),
    ] {
        if let Some(v) = value {
            let _ = write!(out, " {name}={v}");
        }
    }
    if let Some(a) = &r.result {
        let _ = write!(out, " -> {}", action_name(a.action));
        if a.n_ops > 0 {
            let _ = write!(out, " with {} operations", a.n_ops);
        }
    }
    out
}

/// The name of a phase.
pub(crate) fn phase_name(p: u32) -> String {
    crate::host::model::phase_name(abi::Phase(p)).to_string()
}

fn action_name(a: u32) -> String {
    [
        "UNSET", "CONTINUE", "PENDING", "MORE", "REPLY", "RESET", "ERROR",
    ]
    .get(a as usize)
    .map_or_else(|| format!("action {a}"), |n| (*n).to_string())
}

fn flag_names(f: u32) -> String {
    const NAMES: [&str; 13] = [
        "END_STREAM",
        "BODY_END",
        "WHOLE_BODY",
        "HEADERS_HELD",
        "OVER_LIMIT",
        "CAN_REPLY",
        "LOCAL_ORIGIN",
        "EOS_UNKNOWN",
        "UPGRADED",
        "REDIRECTED",
        "SUBREQUEST",
        "RESUMED",
        "WRITABLE",
    ];
    let names: Vec<&str> = (0..13)
        .filter(|i| f >> i & 1 == 1)
        .map(|i| NAMES[i])
        .collect();
    if names.is_empty() {
        "0".into()
    } else {
        names.join("|")
    }
}

/// What names a configuration: process, library and value.
pub(crate) type ConfigKey = (u32, Option<String>, u64);

/// What names a token: process, library and value.
pub(crate) type Token = (u32, Option<String>, u64);

/// What names a place of a stream.
pub(crate) type PlaceKey = (ConfigKey, u64);

/// What a configuration declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) instance: String,
    pub(crate) flags: u32,
    pub(crate) subscribe: u64,
    pub(crate) pend: u64,
    pub(crate) modes: [u32; 2],
    pub(crate) max_body: [u64; 2],
}

pub(crate) type Configs = BTreeMap<ConfigKey, Config>;

fn config_key(r: &Record) -> Option<ConfigKey> {
    Some((r.pid, r.library.clone(), r.config?))
}

/// The place that a record is about.
pub(crate) fn place_key(r: &Record) -> Option<PlaceKey> {
    Some((config_key(r)?, r.stream?))
}

/// The configurations that were accepted.
pub(crate) fn configs<'a>(records: impl Iterator<Item = &'a Record>) -> Configs {
    let mut out = Configs::new();
    for r in records {
        if r.is("on_config_new", Edge::Exit)
            && r.status.is_some_and(|s| s >= 0)
            && let (Some(key), Some(a)) = (config_key(r), &r.result)
        {
            out.insert(
                key,
                Config {
                    instance: r.instance.clone().unwrap_or_default(),
                    flags: a.flags,
                    subscribe: a.subscribe,
                    pend: a.pend,
                    modes: a.modes,
                    max_body: a.max_body,
                },
            );
        }
    }
    out
}

/// A PENDING that is one: with changes, or without a token, it is a failure of the guest (PXG-ACT-006, -008).
fn is_legal_pending(r: &Record) -> bool {
    r.token.is_some_and(|t| t != 0)
        && r.result.as_ref().is_some_and(|a| {
            a.action == abi::Action::PENDING.0
                && a.n_ops == 0
                && a.reply.is_none()
                && a.modes == [0, 0]
                && a.unsubscribe == 0
                && a.flags == 0
                && a.more == 0
        })
}

/// Hooks of a stream.
fn is_stream_hook(r: &Record) -> bool {
    matches!(
        r.function.as_str(),
        "on_event" | "on_cancel" | "on_stream_end"
    )
}

fn is_hook(r: &Record) -> bool {
    r.function.starts_with("on_")
}

fn is_host_function(r: &Record) -> bool {
    matches!(
        r.function.as_str(),
        "complete" | "apply" | "wake" | "scratch_more" | "get_ext" | "log"
    )
}

/// The places whose end has not come: the last `user` is not 0 and `on_stream_end` has not returned, or an event runs.
pub(crate) fn open_places<R: AsRef<Record>>(records: &[R]) -> Vec<PlaceKey> {
    let mut open: BTreeMap<PlaceKey, bool> = BTreeMap::new();
    for r in records.iter().map(AsRef::as_ref) {
        let Some(key) = place_key(r).filter(|_| is_stream_hook(r)) else {
            continue;
        };
        match (r.function.as_str(), r.edge) {
            ("on_event", Edge::Enter) => {
                open.insert(key, true);
            }
            ("on_event", Edge::Exit) => {
                open.insert(key, r.result.as_ref().is_none_or(|a| a.user != 0));
            }
            ("on_stream_end", Edge::Exit) => {
                open.insert(key, false);
            }
            _ => {}
        }
    }
    open.into_iter()
        .filter(|(_, o)| *o)
        .map(|(k, _)| k)
        .collect()
}

/// Judges the records of some streams, in the order of their process. `closed`: the streams have ended, so what is missing
/// will not come any more.
pub(crate) fn check(
    records: &[Record],
    configs: &Configs,
    features: &[u64; 4],
    closed: bool,
) -> Vec<Found> {
    let mut out = Vec::new();
    notes(records, &mut out);
    calls::nesting(records, &mut out);
    let illegal = place::check(records, configs, features, closed, &mut out);
    calls::tokens(records, configs, &illegal, closed, &mut out);
    calls::wakes(records, &mut out);
    out
}

/// Judges a whole run. `ended`: the host has ended.
pub(crate) fn check_run(records: &[Record], features: &[u64; 4], ended: bool) -> Vec<Found> {
    let mut out = Vec::new();
    run::check(records, features, ended, &mut out);
    out
}

/// What the probe saw by itself.
fn notes(records: &[Record], out: &mut Vec<Found>) {
    for (i, r) in records
        .iter()
        .enumerate()
        .filter(|(_, r)| r.function == "note")
    {
        let rule = r.rule.as_deref().unwrap_or_default();
        if let Some(rule) = crate::rules::find(rule) {
            out.push(Found {
                rule: rule.id.as_str(),
                saw: r.text.clone().unwrap_or_default(),
                expected: "the rule's text",
                at: vec![i],
            });
        }
    }
}
