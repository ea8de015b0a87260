//! Two hosts in one process: each has its own table, and what belongs to one never comes to the other.

use proxy_golang_abi::Status;

use super::{Case, Run};
use crate::finding::note;
use crate::host::messages;
use crate::host::rig::{self, Rig, full};
use crate::host::stream::{Options, Step, Stream};

pub(super) const CASES: &[Case] = &[Case {
    name: "load/two-hosts",
    rules: &["PXG-LOAD-006", "PXG-ASY-001", "PXG-THR-001"],
    level: 2,
    about: "two hosts of one process use the guest in turns; completions come to the right one",
    run: two_hosts,
    env: &[],
    seconds: 30,
}];

fn two_hosts(run: &mut Run) {
    let Some(first) = run.rig() else { return };
    let (host, _, done) = rig::init(first.library, full());
    if done.status == Status::STATE {
        run.not_applicable(
            "the guest serves one host of a process: init answered STATE to a second one",
        );
        return;
    }
    if done.status.0 >= 0 && done.table.ctx == first.guest.table.ctx {
        note(
            "PXG-LOAD-006",
            "a second host got the same ctx as the first one",
            ["completions can't find their host".to_string()],
        );
        return;
    }
    let Some(second) = Rig::attach(first.library, run.has_go, host, done) else {
        return;
    };
    let confs = [run.confs(&first), run.confs(&second)];
    for (a, b) in confs[0].iter().zip(&confs[1]) {
        for e in [messages::get(), messages::post(&[60, 60])] {
            let mut streams = [
                Some(Stream::new(&first, a, &e, Options::default())),
                Some(Stream::new(&second, b, &e, Options::default())),
            ];
            let mut rounds = 0;
            while streams.iter().any(Option::is_some) {
                rounds += 1;
                for (slot, rig) in streams.iter_mut().zip([&first, &second]) {
                    let Some(s) = slot else { continue };
                    match s.step() {
                        Step::Ran => {}
                        // Both wait now: each is finished at its own host.
                        Step::Waits(_) if rounds > 4 => {
                            rig.batch_end(0);
                            if let Some(s) = slot.take() {
                                s.run();
                            }
                        }
                        Step::Waits(_) => {}
                        Step::Ended => *slot = None,
                    }
                }
            }
            run.checked(1);
        }
    }
    let [a, b] = confs;
    // The second host goes on when the first one has nothing left.
    first.drop_all(a);
    for c in &b {
        second.run(c, &messages::get(), Options::default());
        run.checked(1);
    }
    second.drop_all(b);
}
