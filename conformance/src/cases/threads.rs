//! Loop threads, the guest's own threads, and their attributes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proxy_golang_abi::{EventFlags, Phase};

use super::{Case, Run};
use crate::elf;
use crate::finding::{note, remark};
use crate::host::messages;
use crate::host::model::Event;
use crate::host::rig::{Conf, Rig, full};
use crate::host::stream::Options;
use crate::sys::clock::Patience;
use crate::sys::{calls, clock, peek, threads};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "thr/in-call",
        rules: &["PXG-THR-001"],
        level: 4,
        about: "functions tagged [in-call] are called inside the hook that lent the memory, on its thread",
        run: in_call,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "thr/workers",
        rules: &["PXG-RT-005"],
        level: 4,
        about: "as many loop threads as the host said call at once, and none waits for another",
        run: workers,
        env: &[],
        seconds: 30,
    },
    Case {
        name: "thr/guest-threads",
        rules: &["PXG-RT-004"],
        level: 4,
        about: "threads that the guest started do not preempt loop threads",
        run: guest_threads,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "thr/reload",
        rules: &["PXG-CFG-005", "PXG-ABI-007"],
        level: 4,
        about: "configurations are made and dropped while streams of others run on two threads",
        run: reload,
        env: &[],
        seconds: 30,
    },
];

fn in_call(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    for c in &confs {
        for e in messages::shapes(&[700, 700]) {
            run.checked(rig.run(c, &e, Options::default()).events);
            let aborted = Options {
                abort_pending: true,
                ..Options::default()
            };
            run.checked(rig.run(c, &e, aborted).events);
        }
    }
    clock::linger(Duration::from_millis(30));
    rig.drop_all(confs);
    run.checked(1);
}

const WORKERS: u32 = 4;
/// Share of a loop thread's waking time, in percent, that it may sleep inside calls that have nothing to wait for.
const WAITS: u64 = 12;
/// What other programs do to the machine is not in the best of so many attempts.
const ATTEMPTS: usize = 9;

fn usable(c: &Conf) -> bool {
    c.made.pend_phases == 0 && c.made.subscribes(Phase::REQUEST_HEADERS) && !c.subject.panics
}

/// As many loop threads as were said call at once: how long they slept, in percent of the time that they slept or ran
/// (a wait for a processor is not the guest's), and how often they called.
fn attempt(rig: &Rig, c: &Conf) -> (u64, u64) {
    let time = Duration::from_millis(100);
    let took: Vec<(u64, u64, u64)> = std::thread::scope(|s| {
        let handles: Vec<_> = (0..WORKERS)
            .map(|worker| {
                s.spawn(move || {
                    let e = Event {
                        phase: Phase::REQUEST_HEADERS,
                        flags: EventFlags(EventFlags::END_STREAM.0 | EventFlags::CAN_REPLY.0),
                        worker,
                        config: c.made.config,
                        stream: rig.host.open_handle(false),
                        fields: messages::get().request.fields,
                        ..Event::default()
                    };
                    let (calls, took) = rig.guest.hammer(&e, Instant::now() + time);
                    (took.asleep_ns, took.ran_ns, calls)
                })
            })
            .collect();
        handles.into_iter().filter_map(|h| h.join().ok()).collect()
    });
    let asleep: u64 = took.iter().map(|t| t.0).sum();
    let ran: u64 = took.iter().map(|t| t.1).sum();
    let share = asleep * 100 / (asleep + ran).max(1);
    (share, took.iter().map(|t| t.2).sum())
}

fn workers(run: &mut Run) {
    if !run.has_go {
        run.not_applicable("the guest has no scheduler of its own that is known here");
        return;
    }
    let mut o = full();
    o.n_workers = WORKERS;
    let Some(rig) = run.rig_with(o) else { return };
    let confs = run.confs(&rig);
    let known = go_processors(run, &rig);
    if let Some(n) = known {
        run.checked(1);
        // One for what the guest itself does.
        if n <= WORKERS {
            note(
                "PXG-RT-005",
                format!("Go has {n} processors for {WORKERS} loop threads and its own work"),
                ["raise runtime.GOMAXPROCS at init to n_workers and what the guest needs".into()],
            );
        }
    }
    for c in confs.iter().filter(|c| usable(c)) {
        for w in 1..WORKERS {
            let rig = &rig;
            std::thread::scope(|s| {
                s.spawn(move || rig.guest.on_worker(w, true))
                    .join()
                    .unwrap_or(())
            });
        }
        run.checked(1);
        let (mut share, mut calls) = attempt(&rig, c);
        if known.is_none() {
            for _ in 1..ATTEMPTS {
                if share <= WAITS {
                    break;
                }
                (share, calls) = (share, calls).min(attempt(&rig, c));
            }
        }
        remark(format!(
            "{}: {WORKERS} loop threads slept {share}% of their time in {calls} calls",
            c.label()
        ));
        if known.is_none() && share > WAITS {
            note(
                "PXG-RT-005",
                format!(
                    "{}: loop threads wait for each other inside the guest",
                    c.label()
                ),
                [format!(
                    "{share}% of the time of {WORKERS} threads, with {WAITS}% allowed"
                )],
            );
        }
    }
    if known.is_none() && !confs.iter().any(usable) {
        run.not_applicable("every configuration may pend, or does not look at request headers");
    }
    rig.drop_all(confs);
}

/// How many processors Go's scheduler has, where the library's symbols say where that number is.
fn go_processors(run: &Run, rig: &Rig) -> Option<u32> {
    let at = elf::address_of(&run.path, "runtime.gomaxprocs")?;
    peek::value::<u32>(rig.library.base + at)
        .ok()
        .filter(|n| *n > 0)
}

fn preempts(tid: u64) -> bool {
    threads::policy_of(tid) == libc::SCHED_OTHER
}

fn guest_threads(run: &mut Run) {
    let before = threads::list();
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    for c in &confs {
        for _ in 0..3 {
            rig.run(c, &messages::post(&[100, 100]), Options::default());
        }
    }
    // Threads need a moment to set themselves up.
    let mut patience = Patience::new(Duration::from_millis(40));
    let own = loop {
        let own: Vec<(u64, String)> = threads::list()
            .into_iter()
            .filter(|(tid, name)| !before.contains_key(tid) && name != calls::HOST_THREAD)
            .collect();
        if own.iter().all(|(tid, _)| !preempts(*tid)) || patience.over() {
            break own;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    rig.drop_all(confs);
    if own.is_empty() {
        run.not_applicable("the guest starts no thread");
        return;
    }
    run.checked(own.len());
    let preempting: Vec<String> = own
        .iter()
        .filter(|(tid, _)| preempts(*tid))
        .map(|(tid, name)| format!("{tid} {name}"))
        .collect();
    if !preempting.is_empty() {
        note(
            "PXG-RT-004",
            format!(
                "{} of the guest's {} threads may preempt loop threads",
                preempting.len(),
                own.len()
            ),
            [
                preempting[..preempting.len().min(8)].join(", "),
                "give them SCHED_BATCH, or a lower priority".to_string(),
            ],
        );
    }
    for (tid, name) in &own {
        if matches!(threads::policy_of(*tid), libc::SCHED_FIFO | libc::SCHED_RR) {
            note(
                "PXG-RT-004",
                format!("thread {tid} {name} has a real-time policy"),
                [],
            );
        }
    }
}

/// How often configurations are made and dropped.
const RELOADS: usize = 24;

fn reload(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let subjects = run.subjects_of(&rig);
    let confs = run.confs(&rig);
    let stop = AtomicBool::new(confs.is_empty());
    let busy = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for worker in 0..2 {
            let (rig, confs, stop, busy) = (&rig, &confs, &stop, &busy);
            s.spawn(move || {
                if worker > 0 {
                    rig.guest.on_worker(worker, true);
                }
                while !stop.load(Ordering::Relaxed) {
                    for c in confs {
                        let o = Options {
                            worker,
                            ..Options::default()
                        };
                        rig.run(c, &messages::post(&[100, 100]), o);
                    }
                    busy.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Both threads have been through all configurations while others were made and dropped.
        let mut rounds = 0;
        while !stop.load(Ordering::Relaxed) {
            let extra = rig.configure(&subjects);
            run.checked(extra.len());
            rig.drop_all(extra);
            rounds += 1;
            let enough = rounds >= RELOADS && busy.load(Ordering::Relaxed) >= 4;
            stop.store(enough, Ordering::Relaxed);
        }
    });
    rig.drop_all(confs);
}
