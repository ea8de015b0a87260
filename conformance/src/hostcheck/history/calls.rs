//! Calls on threads, tokens and handles.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use proxy_golang_abi::{EventFlags, Phase};

use super::super::record::{Edge, Record};
use super::{
    ConfigKey, Configs, Found, PlaceKey, Token, config_key, is_hook, is_host_function,
    is_legal_pending, is_stream_hook, place_key,
};

const OK: i32 = 0;
const STALE: i32 = -1;

/// Hooks never run inside each other, nor inside a host function; those of a place never at the same time.
pub(super) fn nesting(records: &[Record], out: &mut Vec<Found>) {
    let mut stacks: HashMap<(u32, u32), Vec<usize>> = HashMap::new();
    let mut running: HashMap<PlaceKey, usize> = HashMap::new();
    for (i, r) in records.iter().enumerate() {
        if !is_hook(r) && !is_host_function(r) {
            continue;
        }
        let stack = stacks.entry((r.pid, r.tid)).or_default();
        match r.edge {
            Edge::Enter => {
                if is_hook(r)
                    && let Some(&outer) = stack.last()
                {
                    let o = &records[outer];
                    if is_host_function(o) {
                        out.push(Found {
                            rule: "PXG-EVT-005",
                            saw: format!("{} runs inside {}", r.function, o.function),
                            expected: "no hook is called from inside a host function",
                            at: vec![outer, i],
                        });
                    } else {
                        let rule = if r.function == "on_stream_end" {
                            "PXG-EVT-006"
                        } else {
                            "PXG-EVT-002"
                        };
                        out.push(Found {
                            rule,
                            saw: format!("{} runs inside {}", r.function, o.function),
                            expected: "no hook runs inside another hook",
                            at: vec![outer, i],
                        });
                    }
                }
                if is_stream_hook(r)
                    && let Some(key) = place_key(r)
                {
                    if let Some(&other) = running.get(&key)
                        && records[other].tid != r.tid
                    {
                        out.push(Found {
                            rule: "PXG-EVT-002",
                            saw: format!(
                                "{} on thread {} while {} runs on thread {} for the same stream",
                                r.function, r.tid, records[other].function, records[other].tid
                            ),
                            expected: "hooks of one stream one after the other",
                            at: vec![other, i],
                        });
                    }
                    running.insert(key, i);
                }
                stack.push(i);
            }
            Edge::Exit => {
                if let Some(at) = stack
                    .iter()
                    .rposition(|s| records[*s].function == r.function)
                {
                    stack.truncate(at);
                }
                if is_stream_hook(r)
                    && let Some(key) = place_key(r)
                {
                    running.remove(&key);
                }
            }
        }
    }
}

/// The life of a token (12.1).
#[derive(Debug)]
struct Life {
    issued: usize,
    place: PlaceKey,
    /// `on_event` returned: with PENDING or not.
    returned: Option<(usize, bool)>,
    completed: Option<usize>,
    cancelled: Option<usize>,
}

pub(super) fn tokens(
    records: &[Record],
    configs: &Configs,
    illegal: &BTreeSet<Token>,
    closed: bool,
    out: &mut Vec<Found>,
) {
    let mut all: BTreeMap<Token, Life> = BTreeMap::new();
    let mut handles: HashMap<Token, (ConfigKey, usize)> = HashMap::new();
    let mut ended: HashMap<Token, usize> = HashMap::new();
    let mut calls: HashMap<(u32, u32), usize> = HashMap::new();
    for (i, r) in records.iter().enumerate() {
        let id = |n: u64| (r.pid, r.library.clone(), n);
        match (r.function.as_str(), r.edge) {
            ("on_event", Edge::Enter) => {
                let (Some(place), Some(stream)) = (place_key(r), r.stream) else {
                    continue;
                };
                if let Some((config, first)) = handles.get(&id(stream)) {
                    if *config != place.0 {
                        same_handle(records, configs, config, &place.0, *first, i, out);
                    }
                } else {
                    handles.insert(id(stream), (place.0.clone(), i));
                }
                pend_token(r, configs, i, out);
                let Some(t) = r.token.filter(|t| *t != 0) else {
                    continue;
                };
                if let Some(old) = all.get(&id(t)) {
                    let (rule, expected) = if old.place == place {
                        ("PXG-ASY-003", "a fresh token for each event")
                    } else {
                        ("PXG-EVT-016", "another token at each place")
                    };
                    out.push(Found {
                        rule,
                        saw: format!("the token {t:#x} came before"),
                        expected,
                        at: vec![old.issued, i],
                    });
                }
                all.insert(
                    id(t),
                    Life {
                        issued: i,
                        place,
                        returned: None,
                        completed: None,
                        cancelled: None,
                    },
                );
            }
            ("on_event", Edge::Exit) => {
                if let Some(t) = r.token.and_then(|t| all.get_mut(&id(t))) {
                    let pending =
                        is_legal_pending(r) && !illegal.contains(&id(r.token.unwrap_or_default()));
                    t.returned = Some((i, pending));
                }
            }
            ("on_cancel", Edge::Enter) => {
                let Some(token) = r.token else { continue };
                match all.get_mut(&id(token)) {
                    None => out.push(Found {
                        rule: "PXG-ASY-001",
                        saw: format!("on_cancel for {token:#x}, which was never issued"),
                        expected: "on_cancel for tokens that were PENDING",
                        at: vec![i],
                    }),
                    Some(t) => {
                        if let Some(first) = t.cancelled {
                            out.push(Found {
                                rule: "PXG-ASY-001",
                                saw: format!("on_cancel twice for {token:#x}"),
                                expected: "exactly one on_cancel for a token that is not completed",
                                at: vec![first, i],
                            });
                        } else if let Some(done) = t.completed {
                            out.push(Found {
                                rule: "PXG-ASY-009",
                                saw: format!(
                                    "on_cancel for {token:#x}, whose completion was answered OK"
                                ),
                                expected: "either OK or on_cancel",
                                at: vec![done, i],
                            });
                        } else if t.returned.is_none_or(|(_, pending)| !pending) {
                            out.push(Found {
                                rule: "PXG-ASY-001",
                                saw: format!("on_cancel for {token:#x}, which is not PENDING"),
                                expected: "on_cancel for tokens that were PENDING",
                                at: vec![t.issued, i],
                            });
                        }
                        t.cancelled.get_or_insert(i);
                    }
                }
            }
            ("on_stream_end", Edge::Enter) => {
                if let Some(s) = r.stream {
                    ended.entry(id(s)).or_insert(i);
                }
            }
            ("complete" | "apply" | "wake", Edge::Enter) => {
                calls.insert((r.pid, r.tid), i);
            }
            ("complete", Edge::Exit) => {
                let entered = calls.remove(&(r.pid, r.tid)).unwrap_or(i);
                let (Some(token), Some(status)) = (r.token, r.status) else {
                    continue;
                };
                complete(records, &mut all, id(token), token, status, entered, i, out);
            }
            ("apply" | "wake", Edge::Exit) => {
                let entered = calls.remove(&(r.pid, r.tid)).unwrap_or(i);
                let (Some(stream), Some(status)) = (r.stream, r.status) else {
                    continue;
                };
                let known = handles.contains_key(&id(stream));
                let over = ended.get(&id(stream)).filter(|e| **e < entered);
                if status != STALE && (!known || over.is_some()) {
                    out.push(Found {
                        rule: "PXG-ASY-002",
                        saw: format!(
                            "{} on {stream:#x}, {}, was answered {status}",
                            r.function,
                            if known {
                                "whose stream has ended"
                            } else {
                                "which is no handle of this library"
                            }
                        ),
                        expected: "STALE",
                        at: over.copied().into_iter().chain([i]).collect(),
                    });
                }
            }
            _ => {}
        }
    }
    if closed {
        for (id, t) in &all {
            if let Some((returned, true)) = t.returned
                && t.completed.is_none()
                && t.cancelled.is_none()
            {
                out.push(Found {
                    rule: "PXG-ASY-001",
                    saw: format!("the token {:#x} was neither completed nor cancelled", id.2),
                    expected: "on_cancel, since the stream has ended",
                    at: vec![t.issued, returned],
                });
            }
        }
    }
}

#[allow(clippy::too_many_arguments)] // one call's facts
fn complete(
    records: &[Record],
    all: &mut BTreeMap<Token, Life>,
    id: Token,
    token: u64,
    status: i32,
    entered: usize,
    i: usize,
    out: &mut Vec<Found>,
) {
    let Some(t) = all.get_mut(&id) else {
        if status != STALE {
            out.push(Found {
                rule: "PXG-ASY-002",
                saw: format!(
                    "complete on {token:#x}, which was never issued, was answered {status}"
                ),
                expected: "STALE",
                at: vec![i],
            });
        }
        return;
    };
    // Retired before the call began; what happened during it may have been before or after.
    let retired = [
        t.completed,
        t.cancelled,
        t.returned
            .and_then(|(at, pending)| (!pending).then_some(at)),
    ]
    .into_iter()
    .flatten()
    .find(|at| *at < entered);
    if let Some(at) = retired
        && status != STALE
    {
        out.push(Found {
            rule: "PXG-ASY-002",
            saw: format!("complete on the retired token {token:#x} was answered {status}"),
            expected: "STALE",
            at: vec![at, i],
        });
    } else if let (Some(first), OK) = (t.completed, status) {
        out.push(Found {
            rule: "PXG-ASY-002",
            saw: format!("two completions of {token:#x} were answered OK"),
            expected: "OK once, then STALE",
            at: vec![first, i],
        });
    } else if let (Some(cancel), OK) = (t.cancelled, status) {
        out.push(Found {
            rule: "PXG-ASY-009",
            saw: format!("a completion of {token:#x} was answered OK, and on_cancel came"),
            expected: "either OK or on_cancel",
            at: vec![cancel, i],
        });
    }
    // A live token is not refused as stale. It is certainly alive if nothing retired it until the call returned.
    let alive = t.completed.is_none()
        && t.cancelled.is_none()
        && t.returned.is_none_or(|(_, pending)| pending)
        && records[i + 1..]
            .iter()
            .take_while(|r| !r.is("on_stream_end", Edge::Enter))
            .any(|r| {
                r.token == Some(token) && (r.is("complete", Edge::Exit) && r.status == Some(OK))
            });
    if status == STALE && alive {
        out.push(Found {
            rule: "PXG-ASY-010",
            saw: format!("complete on the live token {token:#x} was answered STALE"),
            expected: "OK, or what is wrong with the result",
            at: vec![t.issued, i],
        });
    }
    if status == OK && t.completed.is_none() {
        t.completed = Some(i);
    }
}

fn same_handle(
    records: &[Record],
    configs: &Configs,
    first: &ConfigKey,
    second: &ConfigKey,
    at: usize,
    i: usize,
    out: &mut Vec<Found>,
) {
    let name = |k: &ConfigKey| configs.get(k).map(|c| c.instance.as_str());
    let (rule, expected) = if name(first) == name(second) {
        ("PXG-CFG-007", "one configuration per place for life")
    } else {
        ("PXG-EVT-016", "another handle at each place")
    };
    out.push(Found {
        rule,
        saw: format!(
            "the handle {:#x} came with the configurations {} and {}",
            records[i].stream.unwrap_or_default(),
            first.2,
            second.2
        ),
        expected,
        at: vec![at, i],
    });
}

/// A token comes with the phases that may pend, and with no other.
fn pend_token(r: &Record, configs: &Configs, i: usize, out: &mut Vec<Found>) {
    let (Some(config), Some(phase), Some(token)) = (
        config_key(r).and_then(|k| configs.get(&k)),
        r.phase,
        r.token,
    ) else {
        return;
    };
    let may = phase < 64 && config.pend >> phase & 1 == 1;
    if may != (token != 0) {
        out.push(Found {
            rule: "PXG-CHN-002",
            saw: format!(
                "token {token:#x} at {}, which is {}in pend_phases",
                super::phase_name(phase),
                if may { "" } else { "not " }
            ),
            expected: "a token for each event whose phase is in pend_phases, else 0",
            at: vec![i],
        });
    }
}

/// WAKE events come of wakes, and carry their bits.
pub(super) fn wakes(records: &[Record], out: &mut Vec<Found>) {
    #[derive(Default)]
    struct Woken {
        asked: u64,
        bits: u64,
        events: u64,
        writes: u64,
        writable: u64,
    }
    let mut all: HashMap<PlaceKey, Woken> = HashMap::new();
    let mut quiet: HashSet<PlaceKey> = HashSet::new();
    for (i, r) in records.iter().enumerate() {
        let Some(key) = place_key(r) else { continue };
        // The call has begun before its event can come.
        if r.is("wake", Edge::Enter) {
            let w = all.entry(key).or_default();
            w.asked += 1;
            w.bits |= r.arg.unwrap_or_default();
        } else if r.is("apply", Edge::Enter) {
            // WRITABLE may come before the call has returned FULL.
            all.entry(key).or_default().writes += 1;
        } else if r.is("on_event", Edge::Enter) && r.phase == Some(Phase::WAKE.0) {
            let w = all.entry(key.clone()).or_default();
            let writable = r.flags.unwrap_or_default() & EventFlags::WRITABLE.0 != 0;
            let bits = r.arg.unwrap_or_default();
            // One event may say both.
            if writable {
                w.writable += 1;
            }
            if !writable || bits != 0 {
                w.events += 1;
            }
            let wrong = bits & !w.bits != 0 || w.events > w.asked || w.writable > w.writes;
            if wrong && quiet.insert(key) {
                out.push(Found {
                    rule: "PXG-ASY-013",
                    saw: format!(
                        "WAKE number {} with {bits:#x} after {} calls with the bits {:#x}",
                        w.events, w.asked, w.bits
                    ),
                    expected: "at most one WAKE for each wake, with the OR of their values",
                    at: vec![i],
                });
            }
        }
    }
}
