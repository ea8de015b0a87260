//! Structs, strings and values at the boundary.

use super::{Case, Run};
use crate::finding::{note, remark};
use crate::host::messages::{self, Exchange, Rng};
use crate::host::rig::{Conf, Rig, full};
use crate::host::stream::{Options, Ran};
use crate::sys::boundary::Layout;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "abi/exact-structs",
        rules: &["PXG-ABI-003", "PXG-ABI-004"],
        level: 2,
        about: "structs have exactly the size of version 1.0 and end at an inaccessible page",
        run: exact_structs,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "abi/larger-structs",
        rules: &["PXG-ABI-005"],
        level: 2,
        about: "64 bytes of 0xEE behind every struct, and undefined event flags, change nothing",
        run: larger_structs,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "abi/odd-strings",
        rules: &["PXG-ABI-008"],
        level: 2,
        about: "NUL, bytes that are no UTF-8, empty strings with a NULL or an unreadable pointer",
        run: odd_strings,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "abi/small-values",
        rules: &["PXG-ABI-009"],
        level: 2,
        about: "streams and tokens are small numbers while the guest's stacks grow and its heap is collected",
        run: small_values,
        env: &[("GOGC", "1"), ("GODEBUG", "invalidptr=1")],
        seconds: 30,
    },
    Case {
        name: "abi/hostile-input",
        rules: &["PXG-ABI-007", "PXG-ERR-002"],
        level: 2,
        about: "requests at the edges of HTTP, in every order of pseudo-headers: nothing leaves a hook but a result",
        run: hostile_input,
        env: &[],
        seconds: 30,
    },
];

/// Runs `e` and answers what the guest decided.
fn shapes(rig: &Rig, c: &Conf, e: &Exchange, o: Options) -> Ran {
    rig.run(c, e, o)
}

fn exact_structs(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    for c in &confs {
        for e in [
            messages::get(),
            messages::chunked(),
            messages::post(&[33, 44, 55]),
        ] {
            run.checked(rig.run(c, &e, Options::default()).events);
        }
        let late = Options {
            late_end: true,
            ..Options::default()
        };
        run.checked(rig.run(c, &messages::chunked(), late).events);
        let aborted = Options {
            abort_at: Some(1),
            ..Options::default()
        };
        run.checked(rig.run(c, &messages::post(&[9, 9]), aborted).events);
    }
    rig.drop_all(confs);
    run.checked(1);
}

fn larger_structs(run: &mut Run) {
    let mut o = full();
    o.tail = 64;
    let Some(rig) = run.rig_with(o) else { return };
    let layout = Layout {
        tail: 64,
        ..Layout::default()
    };
    let subjects = run.subjects_of(&rig);
    let plain = run.or_blocked(rig.configure(&subjects));
    let larger = rig.configure_with(&subjects, layout, &rig.host.options.features);
    let labels = |v: &[Conf]| v.iter().map(Conf::label).collect::<Vec<_>>();
    if labels(&plain) != labels(&larger) {
        note(
            "PXG-ABI-005",
            "accepts other configurations when pxg_config_in is 64 bytes longer",
            [format!(
                "{:?} before, {:?} now",
                labels(&plain),
                labels(&larger)
            )],
        );
    }
    for (a, b) in plain.iter().zip(&larger) {
        let declared = |c: &Conf| {
            let m = &c.made;
            (m.subscribe, m.pend_phases, m.body_mode, m.max_body, m.flags)
        };
        if declared(a) != declared(b) {
            note(
                "PXG-ABI-005",
                format!(
                    "{}: declares something else when the structs are longer",
                    a.label()
                ),
                [format!("{:x?} before, {:x?} now", declared(a), declared(b))],
            );
        }
        for e in [
            messages::get(),
            messages::chunked(),
            messages::post(&[40, 2]),
        ] {
            let first = shapes(&rig, a, &e, Options::default());
            let again = shapes(&rig, a, &e, Options::default());
            let tailed = shapes(
                &rig,
                b,
                &e,
                Options {
                    layout,
                    ..Options::default()
                },
            );
            let flagged = shapes(
                &rig,
                a,
                &e,
                Options {
                    unknown_flags: 0x8000_4000,
                    ..Options::default()
                },
            );
            run.checked(3);
            if first.shapes != again.shapes {
                remark(format!(
                    "{}: decides by more than its input, so nothing was compared",
                    a.label()
                ));
                continue;
            }
            for (ran, what) in [
                (&tailed, "structs that are 64 bytes longer"),
                (&flagged, "undefined event flags"),
            ] {
                if ran.shapes != first.shapes {
                    note(
                        "PXG-ABI-005",
                        format!("{}: decides otherwise with {what}", a.label()),
                        [
                            format!("exchange {}", e.name),
                            format!("before {:?}", first.shapes),
                            format!("now    {:?}", ran.shapes),
                        ],
                    );
                }
            }
        }
    }
    rig.drop_all(plain);
    rig.drop_all(larger);
}

fn odd_strings(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let mut rng = Rng::new(run.seed);
    let confs = run.confs(&rig);
    for c in &confs {
        for wild_empty in [false, true] {
            let layout = Layout {
                wild_empty,
                ..Layout::default()
            };
            for e in [
                messages::odd(&mut rng),
                messages::chunked(),
                messages::binary(&mut rng),
            ] {
                let o = Options {
                    layout,
                    ..Options::default()
                };
                run.checked(rig.run(c, &e, o).events);
            }
        }
    }
    rig.drop_all(confs);
    run.checked(1);
}

fn small_values(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    rig.host.use_small_values();
    let confs = run.confs(&rig);
    for c in &confs {
        for n in 0..40 {
            let e = if n % 4 == 0 {
                messages::post(&[2000, 2000, 2000])
            } else {
                messages::get()
            };
            run.checked(rig.run(c, &e, Options::default()).events);
            if n % 10 == 5 {
                rig.disturb(std::time::Duration::from_millis(5));
            }
        }
    }
    rig.drop_all(confs);
    run.checked(1);
}

fn hostile_input(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let mut rng = Rng::new(run.seed);
    let confs = run.confs(&rig);
    for c in confs.iter().filter(|c| !c.subject.panics) {
        for e in messages::all(&mut rng) {
            run.checked(rig.run(c, &e, Options::default()).events);
        }
        for e in messages::broken(&mut rng) {
            run.checked(rig.run(c, &e, Options::default()).events);
        }
    }
    rig.drop_all(confs);
    run.checked(1);
}
