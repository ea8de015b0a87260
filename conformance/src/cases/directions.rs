//! Both directions of a stream at once, and a configuration that is replaced under streams that wait.

use std::time::Duration;

use super::{Case, Run};
use crate::host::messages::{self, Exchange};
use crate::host::rig::{Conf, Rig};
use crate::host::state::Gate;
use crate::host::stream::{Options, Step, Stream};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "run/interleaved",
        rules: &[
            "PXG-BODY-006",
            "PXG-ACT-003",
            "PXG-BODY-013",
            "PXG-HDR-004",
            "PXG-MUT-006",
        ],
        level: 2,
        about: "the response comes while the request is still on its way, in many orders",
        run: interleaved,
        env: &[],
        seconds: 30,
    },
    Case {
        name: "async/parked-peer",
        rules: &["PXG-ASY-001", "PXG-ACT-006"],
        level: 4,
        about: "while one direction is PENDING the other one is parked, and goes on afterwards",
        run: parked,
        env: &[],
        seconds: 60,
    },
    Case {
        name: "async/duplex",
        rules: &["PXG-ASY-001", "PXG-ABI-007"],
        level: 4,
        about: "with DUPLEX both directions are PENDING at once, with a token each",
        run: duplex,
        env: &[],
        seconds: 60,
    },
    Case {
        name: "async/reload-pending",
        rules: &["PXG-ASY-001", "PXG-CFG-005"],
        level: 4,
        about: "a new configuration comes while streams of the old one are PENDING; the old one goes when they have ended",
        run: reload_pending,
        env: &[],
        seconds: 60,
    },
];

/// Orders that are tried for each exchange.
const ORDERS: u64 = 6;

fn in_turns(seed: u64) -> Options {
    Options {
        turns: Some(seed),
        ..Options::default()
    }
}

fn exchanges() -> [Exchange; 3] {
    [
        messages::post(&[30, 400, 30, 1]),
        messages::post(&[900, 5, 900]),
        messages::chunked(),
    ]
}

fn interleaved(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    for c in &confs {
        for e in exchanges() {
            for n in 0..ORDERS {
                let o = in_turns(run.seed.wrapping_add(n));
                run.checked(rig.run(c, &e, o).events);
                let aborted = Options {
                    abort_at: Some(usize::try_from(n).unwrap_or(0) + 1),
                    ..in_turns(run.seed.wrapping_add(n))
                };
                run.checked(rig.run(c, &e, aborted).events);
            }
        }
    }
    rig.drop_all(confs);
    run.checked(1);
}

fn may_pend(c: &&Conf) -> bool {
    c.made.pend_phases != 0
}

fn is_duplex(c: &&Conf) -> bool {
    may_pend(c) && c.made.flags & 1 != 0
}

fn parked(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    let mut pended = 0;
    for c in confs.iter().filter(may_pend).filter(|c| !is_duplex(c)) {
        for e in exchanges() {
            for n in 0..ORDERS {
                let seed = run.seed.wrapping_add(n);
                pended += rig.run(c, &e, in_turns(seed)).pended;
                let aborted = Options {
                    abort_pending: true,
                    ..in_turns(seed)
                };
                rig.run(c, &e, aborted);
                run.checked(1);
            }
        }
    }
    if pended == 0 {
        run.not_applicable("no configuration without DUPLEX answered PENDING");
    }
    rig.drop_all(confs);
}

/// Steps until nothing but a completion helps. A held worker of the guest completes nothing meanwhile.
fn until_waits(s: &mut Stream) {
    for _ in 0..64 {
        if !matches!(s.step(), Step::Ran) {
            return;
        }
    }
}

/// Holds the first thread of the guest that completes something: what it is asked afterwards queues up in the guest.
fn hold_worker<'a>(rig: &'a Rig, c: &'a Conf, e: &Exchange, o: Options) -> Option<Stream<'a>> {
    // A guest that wants in its hooks what the held thread has is not held again.
    if !rig.host.gate_tripped() {
        rig.host.set_gate(Gate::Closed);
    }
    let mut s = Stream::new(rig, c, e, o);
    until_waits(&mut s);
    s.pending()?;
    rig.batch_end(0);
    s.help();
    if !rig.host.gate_tripped() {
        rig.host.wait_occupied(Duration::from_millis(200));
    }
    Some(s)
}

fn duplex(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    let mut both = 0;
    for c in confs.iter().filter(is_duplex) {
        for e in exchanges() {
            for n in 0..ORDERS {
                let seed = run.seed.wrapping_add(n);
                rig.run(c, &e, in_turns(seed));
                let first = hold_worker(&rig, c, &e, in_turns(seed));
                let mut second = Stream::new(&rig, c, &e, in_turns(seed));
                until_waits(&mut second);
                both += usize::from(second.pending_count() == 2);
                rig.batch_end(0);
                rig.host.set_gate(Gate::Open);
                if n % 3 == 2 {
                    second.abort();
                }
                first.into_iter().chain([second]).for_each(|s| {
                    s.run();
                });
                run.checked(1);
            }
        }
    }
    if both == 0 {
        run.not_applicable("no stream had both directions PENDING: no configuration has DUPLEX, or its filter waits in one direction only");
    }
    rig.drop_all(confs);
}

fn reload_pending(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let subjects = run.subjects_of(&rig);
    let mut old = run.confs(&rig);
    let mut waited = 0;
    let e = messages::post(&[100, 100]);
    let mut news = Vec::new();
    for c in old.iter().filter(may_pend) {
        let mut streams: Vec<Stream> = hold_worker(&rig, c, &e, Options::default())
            .into_iter()
            .collect();
        for _ in 0..2 {
            let mut s = Stream::new(&rig, c, &e, Options::default());
            until_waits(&mut s);
            waited += usize::from(s.pending().is_some());
            streams.push(s);
        }
        rig.batch_end(0);
        let of_this: Vec<_> = subjects
            .iter()
            .filter(|s| **s == c.subject)
            .cloned()
            .collect();
        let new = rig.configure(&of_this);
        rig.host.set_gate(Gate::Open);
        for s in streams {
            s.run();
            run.checked(1);
        }
        news.extend(new);
    }
    // The old ones go; those that replaced them work on.
    let others = old.iter().filter(|c| !may_pend(c)).count();
    if waited == 0 && old.len() > others {
        run.nothing_pended();
    } else if waited == 0 {
        run.not_applicable("no configuration declares pend_phases");
    }
    rig.drop_all(std::mem::take(&mut old));
    for c in &news {
        rig.run(c, &e, Options::default());
    }
    rig.drop_all(news);
}
