//! What requests leave behind.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Case, Run};
use crate::finding::note;
use crate::host::messages;
use crate::host::stream::Options;
use crate::symbols;
use crate::sys::allocations;

pub(super) const CASES: &[Case] = &[Case {
    name: "mem/request-growth",
    rules: &["PXG-CFG-005"],
    level: 3,
    about: "what requests allocate in C's heap is free again when their configuration was dropped",
    run: request_growth,
    env: &[],
    seconds: 60,
}];

/// Exchanges of each round.
const REQUESTS: usize = 12;
const ROUNDS: u64 = 4;

fn request_growth(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let path = std::fs::canonicalize(&run.path).unwrap_or_else(|_| run.path.clone());
    if allocations::watch(&path, rig.library.base) == 0 {
        run.not_applicable("the guest does not call the C library's allocator");
        return;
    }
    let subjects = run.subjects_of(&rig);
    let mut any = false;
    for (i, s) in subjects.iter().enumerate() {
        for n in 0..ROUNDS {
            allocations::begin_round(round(i, n));
            let confs = rig.configure(std::slice::from_ref(s));
            for c in &confs {
                any = true;
                for k in 0..REQUESTS {
                    let e = [
                        messages::get(),
                        messages::post(&[60, 60]),
                        messages::chunked(),
                    ];
                    let o = Options {
                        abort_pending: k % 5 == 4,
                        ..Options::default()
                    };
                    run.checked(rig.run(c, &e[k % 3], o).events);
                }
            }
            rig.drop_all(confs);
        }
    }
    if !any {
        run.or_blocked(Vec::new());
    }
    run.checked(1);
    // What a thread of the guest has still to free is free at last; it is waited for only where something is left.
    for wait in [0, 20, 100, 400] {
        std::thread::sleep(Duration::from_millis(wait));
        if subjects
            .iter()
            .enumerate()
            .all(|(i, _)| leaks(i).is_empty())
        {
            return;
        }
    }
    for (i, s) in subjects.iter().enumerate() {
        for (site, bytes, blocks) in leaks(i) {
            note(
                "PXG-CFG-005",
                format!(
                    "{}: requests leave memory behind that stays when the configuration is dropped",
                    s.label()
                ),
                [
                    format!(
                        "{bytes} bytes in {blocks} blocks after {REQUESTS} requests, in each of {} rounds",
                        ROUNDS - 1
                    ),
                    format!(
                        "allocated by {}",
                        symbols::place(&path, (site - 1).wrapping_sub(rig.library.base))
                    ),
                ],
            );
        }
    }
}

/// The number of the `n`th round of a subject.
fn round(subject: usize, n: u64) -> u64 {
    u64::try_from(subject).unwrap_or(0) * ROUNDS + n + 1
}

/// Places that left blocks in every round of a subject but the first, and for many of its requests: what a guest keeps
/// for later use is made once. Place, bytes and blocks.
fn leaks(subject: usize) -> Vec<(u64, u64, u64)> {
    let rounds: Vec<BTreeMap<u64, (u64, u64)>> = (1..ROUNDS)
        .map(|n| {
            let mut by: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
            for b in allocations::left_of_round(round(subject, n)) {
                let of = by.entry(b.site).or_default();
                *of = (of.0 + b.size, of.1 + 1);
            }
            by
        })
        .collect();
    let many = REQUESTS as u64 / 4;
    let always = |site: &u64| {
        rounds
            .iter()
            .all(|r| r.get(site).is_some_and(|(_, n)| *n >= many))
    };
    rounds[0]
        .iter()
        .filter(|(site, _)| always(site))
        .map(|(site, (bytes, blocks))| (*site, *bytes, *blocks))
        .collect()
}
