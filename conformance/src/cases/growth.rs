//! What requests leave behind.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Case, Run};
use crate::finding::{note, remark};
use crate::go_runtime::{self, Figures};
use crate::host::messages;
use crate::host::rig::Rig;
use crate::host::stream::Options;
use crate::scenario::record as recorder;
use crate::subject::Subject;
use crate::symbols;
use crate::sys::boundary::Layout;
use crate::sys::{allocations, peek};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "mem/request-growth",
        rules: &["PXG-CFG-005"],
        level: 3,
        about: "what requests allocate in C's heap is free again when their configuration was dropped",
        run: request_growth,
        env: &[],
        seconds: 60,
    },
    Case {
        name: "mem/go-heap-growth",
        rules: &["PXG-CFG-005"],
        level: 3,
        about: "what requests leave in Go's heap when their configuration was dropped does not grow with their number",
        run: go_heap_growth,
        // It collects as often as it can, and threads have no buffers for profiles.
        env: &[
            ("GOGC", "10"),
            ("GOMEMLIMIT", "1"),
            ("GODEBUG", "profstackdepth=0"),
        ],
        seconds: 60,
    },
];

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
                    let e = messages::shapes(&[60, 60]);
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

/// Requests of the first window; each further one has as many as all before it together, so that also a container that
/// doubles grows in every window.
const FIRST: u64 = 48;
const WINDOWS: usize = 6;
/// Bytes for each request that are more than what the runtime caches for its processors.
const PER_REQUEST: i64 = 24;
/// What a goroutine that has ended leaves with its description: timers, defers.
const PER_GOROUTINE: u64 = 512;

/// What the guest's Go runtime says of its heap.
struct GoHeap {
    base: u64,
    figures: Figures,
}

impl GoHeap {
    fn collections(&self) -> u32 {
        peek::value(self.base + self.figures.collections).unwrap_or(0)
    }

    fn goroutines(&self) -> u64 {
        peek::value(self.base + self.figures.goroutines).unwrap_or(0)
    }

    /// Without what the runtime keeps for goroutines and threads, of which there are more for a while.
    fn in_use(&self) -> i64 {
        let f = &self.figures;
        let threads: u64 = peek::value(self.base + f.threads).unwrap_or(0);
        let all: u64 = peek::value(self.base + f.in_use).unwrap_or(0);
        let own =
            self.goroutines() * (f.goroutine_bytes + PER_GOROUTINE) + threads * f.thread_bytes;
        all.cast_signed() - own.cast_signed()
    }

    /// The least that is found in use by a few collections from now on; what allocates makes them come.
    fn least(&self, allocate: impl Fn()) -> Option<i64> {
        let mut least = None;
        let mut seen = self.collections();
        let mut left = 5;
        for _ in 0..2000 {
            allocate();
            let now = self.collections();
            // The first that ends may have begun before.
            if now != seen {
                seen = now;
                left -= 1;
                if left < 4 {
                    least = Some(least.unwrap_or(i64::MAX).min(self.in_use()));
                }
                if left == 0 {
                    break;
                }
            }
        }
        least
    }
}

fn go_heap_growth(run: &mut Run) {
    if !run.has_go {
        run.not_applicable("the guest has no Go runtime");
        return;
    }
    let Some(rig) = run.rig() else { return };
    recorder::left_out("configurations that make the collector run");
    let heap = match go_runtime::figures(&run.path) {
        Ok(figures) => GoHeap {
            base: rig.library.base,
            figures,
        },
        Err(why) => {
            run.unchecked(format!("Go's heap can't be measured: {why}"));
            return;
        }
    };
    let subjects = run.subjects_of(&rig);
    let mut any = false;
    for s in &subjects {
        any |= one_go_heap(run, &rig, &heap, s);
    }
    if !any {
        run.or_blocked(Vec::new());
    }
}

/// Whether the guest accepted the configuration.
fn one_go_heap(run: &mut Run, rig: &Rig, heap: &GoHeap, s: &Subject) -> bool {
    let spec = rig.spec(s, 0);
    let allocate = || {
        rig.large_configuration(1 << 10);
        let made = rig.guest.on_config_new(&spec, Layout::default());
        if made.is_ok() {
            rig.guest.on_config_drop(made.config);
        }
    };
    let mut put = |n: u64| {
        let confs = rig.configure(std::slice::from_ref(s));
        for c in &confs {
            for k in 0..n {
                let e = messages::shapes(&[60, 60]);
                let o = Options {
                    abort_pending: k % 5 == 4,
                    ..Options::default()
                };
                run.checked(rig.run(c, &e[(k % 3) as usize], o).events);
            }
        }
        let any = !confs.is_empty();
        rig.drop_all(confs);
        any
    };
    if !put(FIRST) {
        return false;
    }
    let mut done = FIRST;
    let (mut sizes, mut goroutines) = (Vec::new(), Vec::new());
    // Whether memory and goroutines have grown with the requests in every window.
    let (mut heap_grows, mut goroutines_grow) = (true, true);
    loop {
        let Some(now) = heap.least(allocate) else {
            run.unchecked("Go's heap can't be measured: the guest's collector does not run");
            return true;
        };
        if let (Some(size), Some(count)) = (sizes.last(), goroutines.last()) {
            let requests = (done / 2).cast_signed();
            heap_grows &= now >= size + PER_REQUEST * requests;
            goroutines_grow &= heap.goroutines() >= count + done / 4;
        }
        sizes.push(now);
        goroutines.push(heap.goroutines());
        if sizes.len() == WINDOWS || !(heap_grows || goroutines_grow) {
            break;
        }
        put(done);
        done *= 2;
    }
    run.checked(1);
    let list = |v: &[i64]| {
        let v: Vec<String> = v.iter().map(i64::to_string).collect();
        v.join(", ")
    };
    let text = format!(
        "{}: {} bytes of Go's heap in use after {FIRST} requests, and after each doubling of them",
        s.label(),
        list(&sizes)
    );
    if goroutines_grow {
        note(
            "PXG-CFG-005",
            format!(
                "{}: requests leave goroutines behind that stay when the configuration is dropped",
                s.label()
            ),
            [format!(
                "{goroutines:?} goroutines after {FIRST} requests, and after each doubling of them"
            )],
        );
    } else if heap_grows {
        let all = sizes.last().zip(sizes.first()).map_or(0, |(b, a)| b - a);
        note(
            "PXG-CFG-005",
            format!(
                "{}: requests leave memory behind in Go's heap that stays when the configuration is dropped",
                s.label()
            ),
            [
                text,
                format!(
                    "about {} bytes for each request",
                    all / (done - FIRST).cast_signed()
                ),
                "a heap profile of the filter's own test (`go test -memprofile`) names the place"
                    .to_string(),
            ],
        );
    } else {
        remark(text);
    }
    true
}
