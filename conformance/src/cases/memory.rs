//! Who may touch what, and when.

use std::time::Duration;

use super::{Case, Run};
use crate::elf;
use crate::finding::note;
use crate::host::messages::{self, Rng};
use crate::host::rig::Rig;
use crate::host::stream::Options;
use crate::scenario::record as recorder;
use crate::sys::boundary::Layout;
use crate::sys::userfault::{self, Allowed};
use crate::sys::{calls, clock, fault, heap};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "mem/late-use",
        rules: &["PXG-MEM-002", "PXG-MEM-013"],
        level: 3,
        about: "views and scratch are inaccessible when the hook has returned, and their addresses never come again",
        run: late_use,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "mem/left-aligned",
        rules: &["PXG-ABI-008", "PXG-MEM-008"],
        level: 3,
        about: "views begin at an inaccessible page",
        run: left_aligned,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "mem/read-only",
        rules: &["PXG-MEM-009", "PXG-MEM-008"],
        level: 3,
        about: "views lie in read-only pages, and are neither freed nor resized",
        run: read_only,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "mem/least-scratch",
        rules: &["PXG-MEM-010"],
        level: 3,
        about: "32 operations and 4096 bytes, and no more, are lent",
        run: least_scratch,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "mem/exhausted-scratch",
        rules: &["PXG-MEM-010"],
        level: 3,
        about: "scratch_more refuses",
        run: exhausted_scratch,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "mem/stale-operations",
        rules: &["PXG-MEM-010"],
        level: 3,
        about: "scratch_ops holds operations of earlier calls that point into the guest's freed heap, while it collects",
        run: stale_operations,
        env: &[("GOGC", "1"), ("GODEBUG", "invalidptr=1")],
        seconds: 40,
    },
    Case {
        name: "mem/borrowed",
        rules: &["PXG-MEM-004", "PXG-MEM-011"],
        level: 3,
        about: "borrowed memory is unchanged a while after the return, while the guest's heap is collected",
        run: borrowed,
        env: &[
            ("GOGC", "1"),
            ("GODEBUG", "clobberfree=1"),
            ("MALLOC_PERTURB_", "165"),
        ],
        seconds: 60,
    },
    Case {
        name: "mem/release",
        rules: &["PXG-MEM-007"],
        level: 3,
        about: "release runs on a fresh thread, at once, without a call of the host, and is no Go export",
        run: release,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "mem/late-system-call",
        rules: &["PXG-MEM-002", "PXG-MEM-013"],
        level: 3,
        about: "as mem/late-use, and the kernel's accesses are seen too: write(fd, view) after the hook has returned",
        run: late_system_call,
        env: &[],
        seconds: 20,
    },
];

fn late_use(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    use_and_wait(run, &rig);
    run.checked(1);
}

fn late_system_call(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    // Where the guest's own handler is to explain a fault, it must come to it.
    let allowed = if fault::heals() {
        let path = std::fs::canonicalize(&run.path).unwrap_or_else(|_| run.path.clone());
        userfault::start(&path)
    } else {
        Allowed::Nothing("the guest's own handler takes what is found".into())
    };
    if let Allowed::Nothing(why) = allowed {
        run.unchecked(why);
        if fault::heals() {
            return;
        }
    } else if let Allowed::UserMode(why) = allowed {
        run.unchecked(why);
    }
    use_and_wait(run, &rig);
    run.checked(1);
}

/// Exchanges, and time for what uses their views late.
fn use_and_wait(run: &mut Run, rig: &Rig) {
    let confs = run.confs(rig);
    for c in &confs {
        for e in messages::shapes(&[700, 700]) {
            run.checked(rig.run(c, &e, Options::default()).events);
        }
    }
    clock::linger(Duration::from_millis(60));
    rig.drop_all(confs);
}

fn left_aligned(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    for c in &confs {
        for e in messages::shapes(&[700, 3]) {
            let o = Options {
                layout: calls::left(),
                ..Options::default()
            };
            run.checked(rig.run(c, &e, o).events);
        }
    }
    rig.drop_all(confs);
    run.checked(1);
}

fn read_only(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let mut rng = Rng::new(run.seed);
    let confs = run.confs(&rig);
    for c in &confs {
        for e in messages::all(&mut rng) {
            run.checked(rig.run(c, &e, Options::default()).events);
        }
    }
    rig.drop_all(confs);
    run.checked(1);
}

fn least_scratch(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let mut rng = Rng::new(run.seed);
    let confs = run.confs(&rig);
    for c in &confs {
        for align in [Layout::default(), calls::left()] {
            for e in [messages::odd(&mut rng), messages::post(&[3000])] {
                let o = Options {
                    layout: Layout {
                        scratch_more: 64 << 10,
                        ..align
                    },
                    ..Options::default()
                };
                run.checked(rig.run(c, &e, o).events);
            }
        }
    }
    rig.drop_all(confs);
    run.checked(1);
}

fn exhausted_scratch(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let mut rng = Rng::new(run.seed);
    let confs = run.confs(&rig);
    for c in &confs {
        for e in [messages::odd(&mut rng), messages::post(&[3000])] {
            let o = Options {
                layout: Layout {
                    scratch_more: 0,
                    ..Layout::default()
                },
                ..Options::default()
            };
            run.checked(rig.run(c, &e, o).events);
        }
    }
    rig.drop_all(confs);
    run.checked(1);
}

fn stale_operations(run: &mut Run) {
    if !run.has_go {
        run.not_applicable("the guest has no collected heap that is known here");
        return;
    }
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    recorder::left_out("large configurations, and operations of earlier calls in scratch_ops");
    // What was needed for large configurations is free again, and known to the collector.
    for _ in 0..4 {
        rig.large_configuration(6 << 20);
    }
    let Some((low, high)) = heap::go_heap() else {
        run.not_applicable("Go's heap was not found");
        return;
    };
    for c in &confs {
        for n in 0..30 {
            let stale = Some((low + n * 0x1_3000 % (high - low), high));
            let o = Options {
                layout: Layout {
                    stale_ops: stale,
                    ..Layout::default()
                },
                ..Options::default()
            };
            run.checked(rig.run(c, &messages::post(&[100, 100]), o).events);
            if n % 10 == 0 {
                rig.large_configuration(6 << 20);
                rig.disturb(Duration::from_millis(3));
            }
        }
    }
    rig.drop_all(confs);
}

fn borrowed(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    for c in &confs {
        for e in [messages::get(), messages::post(&[40, 40])] {
            let o = Options {
                borrow_grace: Some(Duration::from_millis(12)),
                ..Options::default()
            };
            run.checked(rig.run(c, &e, o).events);
        }
    }
    rig.drop_all(confs);
    run.checked(1);
}

fn release(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let mut rng = Rng::new(run.seed);
    let exported: Vec<String> = if run.has_go {
        elf::symbols_with_prefix(&run.path, "_cgoexp_")
    } else {
        Vec::new()
    };
    let confs = run.confs(&rig);
    let mut found = 0;
    for c in &confs {
        for e in messages::all(&mut rng) {
            let ran = rig.run(c, &e, Options::default());
            found += ran.owned.len();
            for at in ran.owned {
                let name = crate::symbols::name_of(&run.path, at.saturating_sub(rig.library.base));
                let is_export = name
                    .as_deref()
                    .is_some_and(|n| exported.iter().any(|e| e.ends_with(&format!("_{n}"))));
                if is_export {
                    note(
                        "PXG-MEM-007",
                        "`release` is an export of the Go runtime",
                        [
                            format!("it is {}", name.unwrap_or_default()),
                            "use a C function, such as free".to_string(),
                        ],
                    );
                }
            }
        }
    }
    if found == 0 && !confs.is_empty() {
        run.not_applicable("the guest handed over no OWNED buffer");
    }
    run.checked(found);
    rig.drop_all(confs);
}
