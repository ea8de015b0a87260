//! Connections: the phases of chapter 17.

use proxy_golang_abi::{Phase, phase_bit};

use super::{Case, Run};
use crate::host::rig::Conf;
use crate::host::stream::{Options, Stream};

pub(super) const CASES: &[Case] = &[Case {
    name: "l4/connections",
    rules: &[
        "PXG-MUT-006",
        "PXG-ACT-009",
        "PXG-RPL-001",
        "PXG-ACT-001",
        "PXG-ACT-006",
    ],
    level: 2,
    about: "connections in both orders of the first byte, split at every byte, half-closed, cut, and held by credit",
    run: connections,
    env: &[],
    seconds: 30,
}];

fn is_l4(c: &&Conf) -> bool {
    let l4 = [
        Phase::L4_OPEN,
        Phase::L4_DOWNSTREAM,
        Phase::L4_UPSTREAM,
        Phase::L4_CLOSE,
    ];
    l4.iter().any(|p| c.made.subscribe & phase_bit(*p) != 0)
}

fn connections(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let confs = run.confs(&rig);
    let each_byte = |text: &[u8]| -> Vec<Vec<u8>> { text.iter().map(|b| vec![*b]).collect() };
    let blocks =
        |sizes: &[usize]| -> Vec<Vec<u8>> { sizes.iter().map(|n| vec![b'x'; *n]).collect() };
    let talks = [
        (
            each_byte(b"EHLO example.test\r\n"),
            each_byte(b"250 ok\r\n"),
        ),
        (blocks(&[700, 1, 5000]), blocks(&[1, 1, 9000, 3])),
        // The server speaks first, and the client says nothing.
        (Vec::new(), blocks(&[80])),
        (blocks(&[80]), Vec::new()),
        (Vec::new(), Vec::new()),
        (blocks(&[90 << 10]), blocks(&[200 << 10])),
    ];
    let mut any = false;
    for c in confs.iter().filter(is_l4) {
        for (down, up) in &talks {
            for n in 0..4 {
                for late_end in [false, true] {
                    let o = Options {
                        turns: (n > 0).then_some(run.seed.wrapping_add(n)),
                        late_end,
                        chunks: 1 + usize::try_from(n).unwrap_or(0) * 21,
                        ..Options::default()
                    };
                    let whole = Stream::connection(&rig, c, [down, up], o.clone()).run();
                    run.checked(whole.events);
                    any |= whole.events > 0;
                    let cut = Options {
                        abort_at: Some(whole.events / 2),
                        ..o
                    };
                    Stream::connection(&rig, c, [down, up], cut).run();
                }
            }
        }
    }
    if !any && !confs.is_empty() {
        run.not_applicable("no configuration subscribes to L4 phases");
    }
    rig.drop_all(confs);
}
