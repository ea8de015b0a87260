//! Everything at once, by the seed.

use super::{Case, Run};
use crate::host::messages::{self, Rng};
use crate::host::stream::Options;
use crate::sys::arena::Align;
use crate::sys::boundary::Layout;

pub(super) const CASES: &[Case] = &[Case {
    name: "stress/random",
    rules: &["PXG-ABI-007", "PXG-ACT-001", "PXG-MEM-002", "PXG-MEM-010"],
    level: 5,
    about: "150 exchanges, chosen by the seed: lengths, chunks, aborts, ends, alignments, room for scratch",
    run: random,
    env: &[],
    seconds: 120,
}];

fn random(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let mut rng = Rng::new(run.seed);
    let confs = run.confs(&rig);
    if confs.is_empty() {
        return;
    }
    for _ in 0..150 {
        let c = &confs[rng.below(confs.len())];
        let mut exchanges = messages::all(&mut rng);
        let mut e = exchanges.swap_remove(rng.below(exchanges.len()));
        if rng.below(3) == 0 {
            let sizes: Vec<usize> = (0..rng.below(12)).map(|_| rng.below(3000)).collect();
            e = messages::post(&sizes);
        }
        if rng.below(6) == 0 {
            let n = rng.below(100 << 10);
            e = messages::large(n);
        }
        let o = Options {
            layout: Layout {
                align: if rng.below(2) == 0 {
                    Align::Right
                } else {
                    Align::Left
                },
                tail: 8 * rng.below(9),
                wild_empty: rng.below(2) == 0,
                scratch_more: [0, 64, 4096, 64 << 10, 1 << 20][rng.below(5)],
                ..Layout::default()
            },
            abort_at: (rng.below(4) == 0).then(|| 1 + rng.below(8)),
            abort_pending: rng.below(6) == 0,
            chunks: 1 + rng.below(64),
            max_body: [4, 1000, 20 << 10, 1 << 20][rng.below(4)],
            late_end: rng.below(2) == 0,
            local_origin: rng.below(8) == 0,
            ..Options::default()
        };
        run.checked(rig.run(c, &e, o).events + 1);
    }
    rig.drop_all(confs);
}
