//! Tokens, completions and cancels.

use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use super::{Case, Run};
use crate::finding::note;
use crate::host::messages;
use crate::host::rig::Conf;
use crate::host::state::Gate;
use crate::host::stream::{Options, Step, Stream};
use crate::sys::clock::{self, Patience};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "async/completes",
        rules: &[
            "PXG-ASY-001",
            "PXG-ASY-005",
            "PXG-ASY-010",
            "PXG-ACT-006",
            "PXG-ACT-008",
        ],
        level: 4,
        about: "every pending token is completed, with a legal result",
        run: completes,
        env: &[],
        seconds: 60,
    },
    Case {
        name: "async/unknown-status",
        rules: &["PXG-ABI-013"],
        level: 4,
        about: "complete answers 1000, which means OK, and -1000, which means INTERNAL",
        run: unknown_status,
        env: &[],
        seconds: 60,
    },
    Case {
        name: "async/abort-while-pending",
        rules: &["PXG-ABI-007", "PXG-ASY-001"],
        level: 4,
        about: "the client goes away while the guest works",
        run: abort_while_pending,
        env: &[],
        seconds: 60,
    },
    Case {
        name: "async/cancel-does-not-wait",
        rules: &["PXG-ASY-014"],
        level: 4,
        about: "on_cancel returns while a worker of the guest is held",
        run: cancel_does_not_wait,
        env: &[],
        seconds: 60,
    },
    Case {
        name: "async/many-streams",
        rules: &["PXG-ASY-001", "PXG-MEM-002"],
        level: 4,
        about: "64 streams pend at once, a third of them dies",
        run: many_streams,
        env: &[],
        seconds: 60,
    },
];

fn pending(run: &Run, confs: &[Conf]) -> bool {
    if !confs.is_empty() && !confs.iter().any(|c| c.made.pend_phases != 0) {
        run.not_applicable("no configuration declares pend_phases");
    }
    confs.iter().any(|c| c.made.pend_phases != 0)
}

fn may_pend(c: &&Conf) -> bool {
    c.made.pend_phases != 0
}

fn completes(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    if pending(run, &confs) {
        let mut pended = 0;
        for c in confs.iter().filter(may_pend) {
            for e in messages::shapes(&[200, 200]) {
                let ran = rig.run(c, &e, Options::default());
                pended += ran.pended;
                run.checked(1);
            }
        }
        if pended == 0 {
            run.nothing_pended();
        }
    }
    rig.drop_all(confs);
}

/// How often a guest may call `complete` for one token before it is found to try for ever.
const RETRIES: u64 = 20;

fn unknown_status(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    if pending(run, &confs) {
        let mut pended = 0;
        for c in confs.iter().filter(may_pend) {
            for lies in [vec![1000], vec![-1000, -1000]] {
                let before = rig.host.completes();
                let opt = Options {
                    lies,
                    ..Options::default()
                };
                pended += rig.run(c, &messages::get(), opt).pended;
                rig.host
                    .wait_completes(before + RETRIES, Duration::from_millis(30));
                let calls = rig.host.completes() - before;
                run.checked(1);
                if calls > RETRIES {
                    note(
                        "PXG-ABI-013",
                        format!(
                            "called `complete` {calls} times after a status that it did not know"
                        ),
                        [
                            "an unknown negative status means INTERNAL, an unknown positive one OK"
                                .to_string(),
                        ],
                    );
                }
            }
        }
        if pended == 0 {
            run.not_applicable("no event was answered with PENDING");
        }
    }
    rig.drop_all(confs);
}

fn abort_while_pending(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    if pending(run, &confs) {
        for c in confs.iter().filter(may_pend) {
            for e in [messages::get(), messages::post(&[100, 100])] {
                for _ in 0..5 {
                    let o = Options {
                        abort_pending: true,
                        ..Options::default()
                    };
                    rig.run(c, &e, o);
                    run.checked(1);
                }
            }
        }
        clock::linger(Duration::from_millis(40));
    }
    rig.drop_all(confs);
}

/// How long a worker of the guest is held: `on_cancel` must return meanwhile.
const CANCEL: Duration = Duration::from_millis(250);

fn cancel_does_not_wait(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    if !pending(run, &confs) {
        rig.drop_all(confs);
        return;
    }
    let mut held_any = false;
    for c in confs.iter().filter(may_pend) {
        rig.host.set_gate(Gate::Closed);
        let mut s = Stream::new(&rig, c, &messages::get(), Options::default());
        for _ in 0..8 {
            if let Step::Waits(_) | Step::Ended = s.step() {
                break;
            }
        }
        rig.batch_end(0);
        s.help();
        let held = rig.host.wait_occupied(Duration::from_millis(200));
        rig.host.keep_gate();
        // The token that is just being completed dies: the two cross, and the guest's thread stays where it is.
        if held.is_some() && s.pending().is_some() && rig.host.is_occupied() {
            held_any = true;
            let (done, wait) = std::sync::mpsc::channel();
            let host = rig.host;
            let opener = std::thread::spawn(move || {
                // The gate opens when on_cancel has returned, or when it obviously waits.
                let mut patience = Patience::new(CANCEL);
                let waited = loop {
                    let left = patience
                        .deadline()
                        .saturating_duration_since(Instant::now());
                    match wait.recv_timeout(left) {
                        Err(RecvTimeoutError::Timeout) if patience.over() => break true,
                        Err(RecvTimeoutError::Timeout) => {}
                        Ok(()) | Err(RecvTimeoutError::Disconnected) => break false,
                    }
                };
                host.set_gate(Gate::Open);
                waited
            });
            let took = s.client_goes();
            let _ = done.send(());
            let waited = opener.join().unwrap_or(false);
            s.abort();
            run.checked(1);
            if let Some(t) = took.filter(|_| waited) {
                note(
                    "PXG-ASY-014",
                    format!("{}: on_cancel waited for a worker of the guest", c.label()),
                    [format!(
                        "{} ms, while another thread of the guest was inside `complete`",
                        t.wall_ns / 1_000_000
                    )],
                );
            }
        }
        rig.host.set_gate(Gate::Open);
        s.run();
    }
    if !held_any {
        run.not_applicable("no thread of the guest came to `complete` while a stream was pending");
    }
    rig.drop_all(confs);
}

fn many_streams(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    if pending(run, &confs) {
        for c in confs.iter().filter(may_pend) {
            let exchanges = [messages::get(), messages::post(&[30, 30])];
            let mut streams: Vec<Option<Stream>> = (0..64)
                .map(|i| Some(Stream::new(&rig, c, &exchanges[i % 2], Options::default())))
                .collect();
            let mut round = 0;
            while streams.iter().any(Option::is_some) {
                round += 1;
                for (i, slot) in streams.iter_mut().enumerate() {
                    let Some(s) = slot else { continue };
                    match s.step() {
                        Step::Ran => {}
                        Step::Waits(_) if i % 3 == 0 && round > 2 => {
                            s.abort();
                            *slot = None;
                        }
                        Step::Waits(_) if round == 4 => s.help(),
                        Step::Waits(_) => {}
                        Step::Ended => *slot = None,
                    }
                }
                rig.batch_end(0);
                rig.host.wait_changed(Duration::from_millis(2));
            }
            run.checked(64);
        }
    }
    rig.drop_all(confs);
    let left = rig.host.pending();
    if !left.is_empty() {
        crate::finding::suite_error(format!("tokens left pending: {}", left.join(", ")));
    }
}
