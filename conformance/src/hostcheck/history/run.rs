//! The whole run: configurations, workers, threads, owned buffers, the process.

use std::collections::{BTreeMap, BTreeSet};

use proxy_golang_abi::feature::Feature;

use super::super::cx::has;
use super::super::record::{Edge, Record};
use super::{ConfigKey, Found, config_key, is_hook, is_legal_pending, is_stream_hook};

pub(super) fn check(records: &[Record], features: &[u64; 4], ended: bool, out: &mut Vec<Found>) {
    process(records, out);
    table(records, out);
    configurations(records, features, out);
    workers(records, features, out);
    batches(records, features, ended, out);
    owned(records, ended, out);
}

/// One process loads and calls; nothing is called once the library is gone.
fn process(records: &[Record], out: &mut Vec<Found>) {
    let mut loaded: BTreeMap<(u32, Option<String>), usize> = BTreeMap::new();
    let mut gone: BTreeMap<(u32, Option<String>), usize> = BTreeMap::new();
    let mut forked: BTreeSet<u32> = BTreeSet::new();
    for (i, r) in records.iter().enumerate() {
        let key = (r.pid, r.library.clone());
        match r.function.as_str() {
            "init" => {
                loaded.entry(key).or_insert(i);
            }
            "unload" => {
                gone.entry(key).or_insert(i);
            }
            _ if is_hook(r) => {
                if !loaded.contains_key(&key) && forked.insert(r.pid) {
                    out.push(Found {
                        rule: "PXG-LOAD-004",
                        saw: format!(
                            "{} in process {}, which did not load the library",
                            r.function, r.pid
                        ),
                        expected: "calls only in the process that loaded the library",
                        at: vec![i],
                    });
                }
                if let Some(at) = gone.remove(&key) {
                    out.push(Found {
                        rule: "PXG-LOAD-005",
                        saw: format!("{} after the library's destructor ran", r.function),
                        expected: "a library stays loaded as long as the process",
                        at: vec![at, i],
                    });
                }
            }
            _ => {}
        }
    }
}

/// The host's table, and what configurations are told of it.
fn table(records: &[Record], out: &mut Vec<Found>) {
    let mut of: BTreeMap<u32, [u64; 4]> = BTreeMap::new();
    for (i, r) in records.iter().enumerate() {
        if let Some(h) = &r.host {
            of.insert(r.pid, h.features);
            let pend = h.features[0] & 0xff != 0;
            let apply = has(&h.features, Feature::APPLY);
            let [complete, a, w, _, scratch, _, _] = h.entries;
            if complete != pend && pend || (a != apply || w != apply) && apply || !scratch {
                out.push(Found {
                    rule: "PXG-NEG-004",
                    saw: format!("table entries {:?} with the features {:#x}", h.entries, h.features[0]),
                    expected: "complete with PEND features, apply and wake with APPLY, scratch_more always",
                    at: vec![i],
                });
            }
            if (h.size as usize) < size_of::<proxy_golang_abi::Host>() {
                out.push(Found {
                    rule: "PXG-ABI-002",
                    saw: format!("a table of {} bytes", h.size),
                    expected: "at least the size of version 1.0",
                    at: vec![i],
                });
            }
        }
        if let (Some(f), Some(host)) = (r.features, of.get(&r.pid))
            && (0..4).any(|k| f[k] & !host[k] != 0)
        {
            out.push(Found {
                rule: "PXG-NEG-008",
                saw: format!(
                    "a configuration is told the features {f:x?}, the table says {host:x?}"
                ),
                expected: "a subset of the table's features",
                at: vec![i],
            });
        }
    }
}

/// What is still live when the process ends need not be dropped: 12.8 asks for that as far as the process runs.
fn configurations(records: &[Record], features: &[u64; 4], out: &mut Vec<Found>) {
    let mut made: BTreeMap<ConfigKey, usize> = BTreeMap::new();
    let mut dropped: BTreeMap<ConfigKey, usize> = BTreeMap::new();
    let mut parents: BTreeMap<ConfigKey, ConfigKey> = BTreeMap::new();
    let mut loop_threads: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    for (i, r) in records.iter().enumerate() {
        if is_stream_hook(r) && r.edge == Edge::Enter {
            loop_threads.entry((r.pid, r.tid)).or_insert(i);
            if let Some(key) = config_key(r)
                && let Some(at) = dropped.get(&key)
            {
                out.push(Found {
                    rule: "PXG-CFG-005",
                    saw: format!(
                        "{} of the configuration {} after it was dropped",
                        r.function, key.2
                    ),
                    expected: "on_config_drop after the last stream",
                    at: vec![*at, i],
                });
            }
        }
        if r.is("on_config_new", Edge::Exit)
            && r.status.is_some_and(|s| s >= 0)
            && let Some(key) = config_key(r)
        {
            // The same value may come again once it was dropped.
            dropped.remove(&key);
            if let Some(p) = r.parent.filter(|p| *p != 0) {
                let parent = (r.pid, r.library.clone(), p);
                if !made.contains_key(&parent) || dropped.contains_key(&parent) {
                    out.push(Found {
                        rule: "PXG-CFG-003",
                        saw: format!("the parent {p} is not live"),
                        expected: "a live parent",
                        at: vec![i],
                    });
                }
                parents.insert(key.clone(), parent);
            }
            made.insert(key, i);
        }
        if r.is("on_config_drop", Edge::Enter)
            && let Some(key) = config_key(r)
        {
            if let Some(first) = dropped.get(&key) {
                out.push(Found {
                    rule: "PXG-CFG-005",
                    saw: format!("the configuration {} was dropped twice", key.2),
                    expected: "on_config_drop exactly once",
                    at: vec![*first, i],
                });
            } else if !made.contains_key(&key) {
                out.push(Found {
                    rule: "PXG-CFG-005",
                    saw: format!("on_config_drop of {}, which was never made", key.2),
                    expected: "on_config_drop of configurations that were answered with OK",
                    at: vec![i],
                });
            }
            for (child, parent) in &parents {
                if *parent == key && !dropped.contains_key(child) {
                    out.push(Found {
                        rule: "PXG-CFG-003",
                        saw: format!(
                            "the parent {} was dropped before its child {}",
                            key.2, child.2
                        ),
                        expected: "children first",
                        at: vec![i],
                    });
                }
            }
            dropped.insert(key, i);
        }
    }
    if has(features, Feature::CONFIG_THREAD) {
        for (i, r) in records.iter().enumerate() {
            if matches!(r.function.as_str(), "on_config_new" | "on_config_drop")
                && r.edge == Edge::Enter
                && let Some(at) = loop_threads.get(&(r.pid, r.tid))
            {
                out.push(Found {
                    rule: "PXG-CFG-006",
                    saw: format!("{} on thread {}, which runs streams", r.function, r.tid),
                    expected: "never on a loop thread, with CONFIG_THREAD",
                    at: vec![*at, i],
                });
            }
        }
    }
    overlap(records, out);
}

/// Config-thread calls are serialised.
fn overlap(records: &[Record], out: &mut Vec<Found>) {
    let mut running: BTreeMap<u32, usize> = BTreeMap::new();
    for (i, r) in records.iter().enumerate() {
        if !matches!(
            r.function.as_str(),
            "init" | "on_config_new" | "on_config_drop"
        ) {
            continue;
        }
        match r.edge {
            Edge::Enter => {
                if let Some(at) = running.insert(r.pid, i)
                    && records[at].tid != r.tid
                {
                    out.push(Found {
                        rule: "PXG-THR-001",
                        saw: format!(
                            "{} on thread {} while {} runs on thread {}",
                            r.function, r.tid, records[at].function, records[at].tid
                        ),
                        expected: "config-thread calls one at a time",
                        at: vec![at, i],
                    });
                }
            }
            Edge::Exit => {
                running.remove(&r.pid);
            }
        }
    }
}

fn workers(records: &[Record], features: &[u64; 4], out: &mut Vec<Found>) {
    let mut up: BTreeMap<(u32, Option<String>, u32), usize> = BTreeMap::new();
    let mut seen: BTreeSet<(u32, Option<String>, u32)> = BTreeSet::new();
    let mut threads: BTreeMap<(u32, u32), (u32, usize)> = BTreeMap::new();
    let mut bound: BTreeMap<u32, u32> = BTreeMap::new();
    let mut foreign: BTreeSet<(u32, u32)> = BTreeSet::new();
    // The workers that `on_worker` named on a thread.
    let mut names: BTreeMap<(u32, u32), BTreeSet<u32>> = BTreeMap::new();
    for (i, r) in records.iter().enumerate() {
        if let Some(h) = &r.host {
            bound.insert(r.pid, h.n_workers);
        }
        let Some(w) = r.worker.filter(|_| is_hook(r) && r.edge == Edge::Enter) else {
            continue;
        };
        let key = (r.pid, r.library.clone(), w);
        if let Some(n) = bound.get(&r.pid).filter(|n| **n != 0)
            && w >= *n
        {
            out.push(Found {
                rule: "PXG-THR-003",
                saw: format!("worker {w}, with n_workers {n}"),
                expected: "an index below n_workers",
                at: vec![i],
            });
        }
        let named = names.entry((r.pid, r.tid)).or_default();
        if r.function == "on_worker" {
            named.insert(w);
        } else if !named.is_empty() && named.insert(w) {
            out.push(Found {
                rule: "PXG-THR-001",
                saw: format!(
                    "{} names worker {w}, on a thread where on_worker(up) named another",
                    r.function
                ),
                expected: "loop-thread hooks on the worker that the call names",
                at: vec![i],
            });
        }
        if r.function == "on_worker" {
            let is_up = r.arg == Some(1);
            if is_up {
                if let Some(first) = up.insert(key.clone(), i) {
                    out.push(Found {
                        rule: "PXG-THR-003",
                        saw: format!("on_worker(up) twice for worker {w}"),
                        expected: "once per library and worker",
                        at: vec![first, i],
                    });
                }
                if r.stack.is_some_and(|s| s != 0 && s < 256 << 10) {
                    out.push(Found {
                        rule: "PXG-THR-003",
                        saw: format!("a loop thread with {} bytes of stack", r.stack.unwrap_or(0)),
                        expected: "at least 256 KiB",
                        at: vec![i],
                    });
                }
            }
        } else if !up.contains_key(&key) && seen.insert(key) {
            out.push(Found {
                rule: "PXG-THR-003",
                saw: format!("{} on worker {w} before on_worker(up)", r.function),
                expected: "on_worker(up) before the first other hook of that worker",
                at: vec![i],
            });
        }
        if has(features, Feature::THREAD_AFFINE) {
            let (tid, first) = *threads.entry((r.pid, w)).or_insert((r.tid, i));
            if tid != r.tid && foreign.insert((r.pid, w)) {
                out.push(Found {
                    rule: "PXG-ASY-007",
                    saw: format!(
                        "{} of worker {w} on thread {}, before on {tid}",
                        r.function, r.tid
                    ),
                    expected: "one thread for a worker, with THREAD_AFFINE",
                    at: vec![first, i],
                });
            }
        }
    }
}

/// `on_batch_end` closes an iteration in which an event answered PENDING.
fn batches(records: &[Record], features: &[u64; 4], ended: bool, out: &mut Vec<Found>) {
    let mut open: BTreeMap<(u32, Option<String>, u32), usize> = BTreeMap::new();
    let mut workers: BTreeMap<(u32, u32), u32> = BTreeMap::new();
    // Tokens that were live: a PENDING that was a failure, as in OBSERVE, need not close an iteration.
    let live: BTreeSet<(u32, u64)> = records
        .iter()
        .filter(|r| {
            r.is("on_cancel", Edge::Enter) || r.is("complete", Edge::Exit) && r.status == Some(0)
        })
        .filter_map(|r| Some((r.pid, r.token?)))
        .collect();
    let is_live = |r: &Record| r.token.is_some_and(|t| live.contains(&(r.pid, t)));
    for (i, r) in records.iter().enumerate() {
        if let (true, Some(w)) = (r.is("on_event", Edge::Enter), r.worker) {
            workers.insert((r.pid, r.tid), w);
        }
        if r.is("on_event", Edge::Exit)
            && is_legal_pending(r)
            && let Some(w) = workers.get(&(r.pid, r.tid))
        {
            let first = open.entry((r.pid, r.library.clone(), *w)).or_insert(i);
            if is_live(&records[i]) {
                *first = i;
            }
        }
        if r.is("on_batch_end", Edge::Enter)
            && let Some(w) = r.worker
            && open.remove(&(r.pid, r.library.clone(), w)).is_none()
        {
            out.push(Found {
                rule: "PXG-THR-004",
                saw: format!("on_batch_end of worker {w} without a PENDING before it"),
                expected: "once per loop iteration in which an event answered PENDING",
                at: vec![i],
            });
        }
    }
    if ended && has(features, Feature::BATCH_END) {
        for ((_, _, w), at) in open {
            if !is_live(&records[at]) {
                continue;
            }
            out.push(Found {
                rule: "PXG-THR-004",
                saw: format!("no on_batch_end of worker {w} after a PENDING"),
                expected: "on_batch_end at the end of the loop iteration",
                at: vec![at],
            });
        }
    }
}

/// Every owned buffer is released exactly once.
fn owned(records: &[Record], ended: bool, out: &mut Vec<Found>) {
    type Id = (u32, Option<String>, u64);
    let mut handed: BTreeMap<Id, usize> = BTreeMap::new();
    let mut released: BTreeMap<Id, usize> = BTreeMap::new();
    for (i, r) in records.iter().enumerate() {
        // What is handed over in a call is handed over at its entry, what is answered at the exit.
        let gives = (r.function == "on_event" && r.edge == Edge::Exit)
            || (matches!(r.function.as_str(), "complete" | "apply") && r.edge == Edge::Enter);
        if gives && let Some(a) = &r.result {
            for id in &a.owned {
                handed.insert((r.pid, r.library.clone(), *id), i);
            }
        }
        if let (true, Some(id)) = (r.function == "release", r.owned) {
            let key = (r.pid, r.library.clone(), id);
            if let Some(first) = released.get(&key) {
                out.push(Found {
                    rule: "PXG-MEM-006",
                    saw: format!("the buffer {id} was released twice"),
                    expected: "release exactly once",
                    at: vec![*first, i],
                });
            } else if !handed.contains_key(&key) {
                out.push(Found {
                    rule: "PXG-MEM-006",
                    saw: format!("the buffer {id} was released, and never handed over"),
                    expected: "release of buffers that were handed over",
                    at: vec![i],
                });
            }
            released.insert(key, i);
        }
    }
    if ended {
        for (key, at) in &handed {
            if !released.contains_key(key) {
                out.push(Found {
                    rule: "PXG-MEM-006",
                    saw: format!("the buffer {} was never released", key.2),
                    expected: "release exactly once on every path",
                    at: vec![*at],
                });
            }
        }
    }
}
