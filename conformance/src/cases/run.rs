//! What a guest answers to whole exchanges: the strict reading of every result.

use std::time::Duration;

use proxy_golang_abi::Phase;

use super::{Case, Run};
use crate::finding::{note, remark};
use crate::host::messages::{self, Rng};
use crate::host::model::phase_name;
use crate::host::rig::full;
use crate::host::stream::Options;
use crate::sys::threads;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "run/exchanges",
        rules: &[
            "PXG-ACT-001",
            "PXG-ACT-003",
            "PXG-ACT-006",
            "PXG-ACT-008",
            "PXG-ACT-009",
            "PXG-ABI-005",
            "PXG-ABI-011",
            "PXG-ABI-012",
            "PXG-HDR-002",
            "PXG-HDR-004",
            "PXG-HDR-006",
            "PXG-HDR-008",
            "PXG-HDR-010",
            "PXG-MUT-006",
            "PXG-RPL-001",
            "PXG-ABI-002",
            "PXG-MEM-012",
        ],
        level: 2,
        about: "every result of ordinary and odd exchanges is legal where it was given",
        run: exchanges,
        env: &[],
        seconds: 30,
    },
    Case {
        name: "body/views",
        rules: &["PXG-BODY-006", "PXG-BODY-013", "PXG-ACT-003"],
        level: 2,
        about: "bodies split at every byte, over the limit, with an end that is known late, END_STREAM in every position",
        run: views,
        env: &[],
        seconds: 30,
    },
    Case {
        name: "body/chunks",
        rules: &["PXG-BODY-008"],
        level: 2,
        about: "a view in 1 to 64 pieces is the same view",
        run: chunks,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "run/abort-everywhere",
        rules: &["PXG-ACT-009", "PXG-ABI-007"],
        level: 2,
        about: "the client goes away before each event in turn",
        run: abort_everywhere,
        env: &[],
        seconds: 30,
    },
    Case {
        name: "log/off",
        rules: &["PXG-OBS-002"],
        level: 2,
        about: "nothing is logged while the host's level is OFF",
        run: log_off,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "err/panic",
        rules: &["PXG-ERR-006", "PXG-ERR-002"],
        level: 2,
        about: "a filter that is said to panic answers ERROR with `panic: `, and the process goes on",
        run: panics,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "thr/blocking",
        rules: &["PXG-THR-002"],
        level: 2,
        about: "no hook on the loop thread sleeps",
        run: blocking,
        env: &[],
        seconds: 20,
    },
];

fn exchanges(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let mut rng = Rng::new(run.seed);
    let confs = run.confs(&rig);
    for c in &confs {
        for e in messages::all(&mut rng) {
            let ran = rig.run(c, &e, Options::default());
            run.checked(ran.events);
            for text in ran.errors.iter().filter(|_| !c.subject.panics) {
                remark(format!(
                    "{}: answered ERROR to {}: {text}",
                    c.label(),
                    e.name
                ));
            }
        }
        let local = Options {
            local_origin: true,
            ..Options::default()
        };
        run.checked(rig.run(c, &messages::get(), local).events);
    }
    rig.drop_all(confs);
}

fn views(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    for c in &confs {
        for sizes in [&[1usize; 24][..], &[0], &[5000], &[1, 4000, 1], &[1024; 6]] {
            for late_end in [false, true] {
                let o = Options {
                    late_end,
                    ..Options::default()
                };
                run.checked(rig.run(c, &messages::post(sizes), o).events);
            }
        }
        for e in [
            messages::large(200 << 10),
            messages::chunked(),
            messages::grpc(),
        ] {
            let o = Options {
                max_body: 20 << 10,
                late_end: true,
                ..Options::default()
            };
            run.checked(rig.run(c, &e, o).events);
        }
        let whole_limit = Options {
            max_body: 4,
            ..Options::default()
        };
        run.checked(rig.run(c, &messages::chunked(), whole_limit).events);
    }
    rig.drop_all(confs);
    run.checked(1);
}

fn chunks(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    let mut with_body = false;
    for c in &confs {
        if !c.made.subscribes(Phase::REQUEST_BODY) && !c.made.subscribes(Phase::RESPONSE_BODY) {
            continue;
        }
        with_body = true;
        let e = messages::post(&[900]);
        let cut = |chunks| {
            rig.run(
                c,
                &e,
                Options {
                    chunks,
                    ..Options::default()
                },
            )
        };
        let first = cut(1);
        let again = cut(1);
        for n in [2, 3, 17, 63, 64] {
            let ran = cut(n);
            run.checked(1);
            if first.failed != ran.failed {
                note(
                    "PXG-BODY-008",
                    format!(
                        "{}: fails on a view of {n} chunks and not on one of 1",
                        c.label()
                    ),
                    ran.errors.clone(),
                );
            } else if first.bodies == again.bodies && first.bodies != ran.bodies {
                note(
                    "PXG-BODY-008",
                    format!("{}: makes another body of {n} chunks than of 1", c.label()),
                    [format!(
                        "{} and {} bytes before, {} and {} now",
                        first.bodies[0].len(),
                        first.bodies[1].len(),
                        ran.bodies[0].len(),
                        ran.bodies[1].len()
                    )],
                );
            }
        }
    }
    if !confs.is_empty() && !with_body {
        run.not_applicable("no configuration subscribes to a body");
    }
    rig.drop_all(confs);
}

fn abort_everywhere(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    for c in &confs {
        for e in [messages::chunked(), messages::post(&[50, 50, 50])] {
            let whole = rig.run(c, &e, Options::default());
            for at in 1..=whole.events {
                let o = Options {
                    abort_at: Some(at),
                    ..Options::default()
                };
                rig.run(c, &e, o);
                run.checked(1);
            }
        }
    }
    rig.drop_all(confs);
    run.checked(1);
}

fn log_off(run: &mut Run) {
    let mut o = full();
    o.log_level = 5;
    let Some(rig) = run.rig_with(o) else { return };
    let mut rng = Rng::new(run.seed);
    let confs = run.confs(&rig);
    for c in &confs {
        for e in messages::all(&mut rng) {
            rig.run(c, &e, Options::default());
            run.checked(1);
        }
    }
    rig.drop_all(confs);
    let n = rig.host.log_calls();
    if n > 0 {
        let first = rig.host.logs().into_iter().next();
        note(
            "PXG-OBS-002",
            format!("sent {n} records while page->log_level was OFF"),
            first.map(|(level, text)| format!("level {level}: {text}")),
        );
    }
}

fn panics(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    if rig.aborts() {
        run.not_applicable("the guest declares ABORTS: it cannot contain a panic");
        return;
    }
    let confs = run.confs(&rig);
    let mut any = false;
    for c in confs.iter().filter(|c| c.subject.panics) {
        any = true;
        let ran = rig.run(c, &messages::post(&[10, 10]), Options::default());
        run.checked(1);
        let Some(text) = ran.errors.first() else {
            note(
                "PXG-ERR-002",
                format!("{}: is said to panic, and did not answer ERROR", c.label()),
                ran.shapes.clone(),
            );
            continue;
        };
        if !text.starts_with("panic: ") {
            note(
                "PXG-ERR-006",
                format!(
                    "{}: the text of a contained panic does not begin with `panic: `",
                    c.label()
                ),
                [format!("found {text:?}")],
            );
        }
        // The guest still works.
        for c in confs.iter().filter(|c| !c.subject.panics) {
            rig.run(c, &messages::get(), Options::default());
            run.checked(1);
        }
    }
    if !any && !confs.is_empty() {
        run.not_applicable("no subject of pxg-conformance.toml has `panics = true`");
    }
    rig.drop_all(confs);
}

/// A hook that sleeps longer than this, each time, keeps the worker's other streams waiting.
const ASLEEP: Duration = Duration::from_millis(2);

fn blocking(run: &mut Run) {
    if threads::run_and_queue_ns().is_none() {
        run.not_applicable("this kernel does not say how long a thread ran (schedstat)");
        return;
    }
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    for c in &confs {
        for e in [messages::get(), messages::post(&[500, 500])] {
            let mut least: Option<(u64, u32, u64)> = None;
            for _ in 0..5 {
                let ran = rig.run(c, &e, Options::default());
                run.checked(ran.events);
                let now = (
                    ran.slowest.asleep_ns,
                    ran.slowest_phase,
                    ran.slowest.wall_ns,
                );
                if least.is_none_or(|l| now.0 < l.0) {
                    least = Some(now);
                }
            }
            if let Some((asleep, phase, wall)) = least
                && asleep > u64::try_from(ASLEEP.as_nanos()).unwrap_or(0)
            {
                note(
                    "PXG-THR-002",
                    format!("{}: on_event sleeps on the loop thread", c.label()),
                    [format!(
                        "in {}: at least {} us asleep of {} us in the call, in each of 5 runs",
                        phase_name(Phase(phase)),
                        asleep / 1000,
                        wall / 1000
                    )],
                );
            }
        }
    }
    rig.drop_all(confs);
    run.checked(1);
}
