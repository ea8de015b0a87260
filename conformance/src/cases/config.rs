//! Configurations.

use std::collections::BTreeMap;

use proxy_golang_abi::Status;

use super::{Case, Run};
use crate::finding::{note, remark};
use crate::host::config::ConfigSpec;
use crate::host::messages::Rng;
use crate::host::rig::Rig;
use crate::sys::boundary::Layout;
use crate::sys::threads;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "cfg/unknown-filter",
        rules: &["PXG-CFG-001"],
        level: 1,
        about: "a filter name that the library does not have is answered with NOTFOUND",
        run: unknown_filter,
        env: &[],
        seconds: 10,
    },
    Case {
        name: "cfg/declarations",
        rules: &["PXG-CFG-009", "PXG-CFG-008", "PXG-ABI-005", "PXG-ABI-012"],
        level: 1,
        about: "what a configuration declares is legal, and the values of many differ",
        run: declarations,
        env: &[],
        seconds: 10,
    },
    Case {
        name: "cfg/fuzzed-bytes",
        rules: &["PXG-ABI-007", "PXG-CFG-001"],
        level: 2,
        about: "on_config_new survives any bytes",
        run: fuzzed_bytes,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "cfg/validate-only",
        rules: &["PXG-CFG-004"],
        level: 2,
        about: "VALIDATE_ONLY starts no thread, opens nothing and defines no metric",
        run: validate_only,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "cfg/no-leak",
        rules: &["PXG-CFG-005"],
        level: 3,
        about: "on_config_drop frees what on_config_new made",
        run: no_leak,
        env: &[("GOGC", "10")],
        seconds: 60,
    },
];

fn unknown_filter(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let mut names: Vec<Vec<u8>> = vec![
        b"pxg-conformance-no-such-filter".to_vec(),
        Vec::new(),
        vec![0xff, 0, 0x80],
    ];
    for f in &rig.filters {
        names.push(format!("{f}x").into_bytes());
        names.push(f.as_bytes()[..f.len() - 1].to_vec());
        names.push(f.to_uppercase().into_bytes());
    }
    names.retain(|n| !rig.filters.iter().any(|f| f.as_bytes() == n.as_slice()));
    for filter in names {
        let made = rig.guest.on_config_new(
            &ConfigSpec {
                filter: filter.clone(),
                name: b"c0".to_vec(),
                bytes: Vec::new(),
                features: rig.host.options.features,
                flags: 0,
                parent: 0,
            },
            Layout::default(),
        );
        run.checked(1);
        if made.status != Status::NOTFOUND.0 {
            note(
                "PXG-CFG-001",
                format!(
                    "on_config_new answered {} for a filter that it does not have",
                    made.status
                ),
                [
                    format!("filter {:?}", String::from_utf8_lossy(&filter)),
                    format!("expected NOTFOUND ({})", Status::NOTFOUND.0),
                ],
            );
            return;
        }
    }
}

fn declarations(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let subjects = run.subjects_of(&rig);
    // Each subject four times: their values must differ while they live.
    let many: Vec<_> = (0..4).flat_map(|_| subjects.clone()).collect();
    let confs = rig.configure(&many);
    run.checked(confs.len());
    let confs = run.or_blocked(confs);
    rig.drop_all(confs);
}

fn fuzzed_bytes(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let mut rng = Rng::new(run.seed);
    let subjects = run.subjects_of(&rig);
    for (i, s) in subjects.iter().enumerate() {
        for n in 0..60 {
            let mut spec = rig.spec(s, i);
            spec.bytes = match n % 6 {
                0 => Vec::new(),
                1 => {
                    let len = rng.below(200);
                    rng.bytes(len)
                }
                2 => {
                    let mut b = s.config.clone();
                    if !b.is_empty() {
                        let at = rng.below(b.len());
                        b[at] = rng.next().to_le_bytes()[0];
                    }
                    b
                }
                3 => s.config[..rng.below(s.config.len() + 1)].to_vec(),
                4 => b"{\"a\":[[[[{}]]]],\"b\":1e999,\"c\":\"\\u0000\"}".to_vec(),
                _ => vec![b'['; 1 + rng.below(5000)],
            };
            let made = rig.guest.on_config_new(&spec, Layout::default());
            if made.is_ok() {
                made.judge(&rig.host.options.features, &[]);
                rig.guest.on_config_drop(made.config);
            }
            run.checked(1);
        }
    }
}

fn validate_only(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let subjects = run.subjects_of(&rig);
    let files = threads::descriptors();
    let threads_before = threads::list();
    let metrics = rig.host.metrics_defined();
    let rounds = 8;
    let mut taken = 0;
    for _ in 0..rounds {
        for (i, s) in subjects.iter().enumerate() {
            let mut spec = rig.spec(s, i);
            spec.flags = 1;
            let made = rig.guest.on_config_new(&spec, Layout::default());
            if made.is_ok() {
                taken += 1;
                check_side_effects(&rig, &files, metrics);
                rig.guest.on_config_drop(made.config);
            }
        }
    }
    if taken == 0 {
        run.or_blocked(Vec::new());
        return;
    }
    run.checked(taken);
    // A runtime starts threads of its own when it likes; a filter starts one each time.
    let now = threads::list();
    let new: Vec<&String> = now
        .iter()
        .filter(|(tid, _)| !threads_before.contains_key(tid))
        .map(|(_, name)| name)
        .collect();
    let allowed = if run.has_go { rounds - 1 } else { 0 };
    if new.len() > allowed {
        note(
            "PXG-CFG-004",
            format!("started {} threads in {taken} validations", new.len()),
            [format!("{new:?}")],
        );
    }
}

fn check_side_effects(rig: &Rig, files: &BTreeMap<String, String>, metrics: usize) {
    let opened: Vec<String> = threads::descriptors()
        .into_iter()
        .filter(|(fd, to)| files.get(fd) != Some(to))
        .map(|(fd, to)| format!("{fd} -> {to}"))
        .collect();
    if !opened.is_empty() {
        note(
            "PXG-CFG-004",
            "opened files or sockets under VALIDATE_ONLY",
            [opened.join(", ")],
        );
    }
    if rig.host.metrics_defined() > metrics {
        note("PXG-CFG-004", "defined metrics under VALIDATE_ONLY", []);
    }
}

/// What a configuration may grow the process by, in bytes: the allocators' own noise.
const C_HEAP: u64 = 16;
const RESIDENT: u64 = 6 << 10;

fn no_leak(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let subjects = run.subjects_of(&rig);
    let rounds: u64 = 250;
    let mut any = false;
    for (i, s) in subjects.iter().enumerate() {
        let spec = rig.spec(s, i);
        let once = || {
            let made = rig.guest.on_config_new(&spec, Layout::default());
            if made.is_ok() {
                rig.guest.on_config_drop(made.config);
            }
            made.is_ok()
        };
        if !once() {
            continue;
        }
        any = true;
        let mut grew: Vec<(u64, u64)> = Vec::new();
        // What warms up, or is collected or given back at times, is not in most rounds: where they do not agree, more
        // of them are asked.
        let most = |grew: &[(u64, u64)]| {
            let middle = |mut v: Vec<u64>| {
                v.sort_unstable();
                v.get(v.len().saturating_sub(1) / 2).copied().unwrap_or(0)
            };
            let later = &grew[1.min(grew.len())..];
            (
                middle(later.iter().map(|g| g.0).collect()),
                middle(later.iter().map(|g| g.1).collect()),
            )
        };
        let leaks = |g: &(u64, u64)| g.0 >= C_HEAP || g.1 >= RESIDENT;
        let agreed = |grew: &[(u64, u64)]| {
            grew.len() >= 4 && grew[1..].iter().all(|g| leaks(g) == leaks(&grew[1]))
        };
        while !agreed(&grew) && grew.len() < 12 {
            let before = (threads::c_heap_bytes(), threads::resident_bytes());
            for _ in 0..rounds {
                once();
            }
            grew.push((
                threads::c_heap_bytes().saturating_sub(before.0) / rounds,
                threads::resident_bytes().saturating_sub(before.1) / rounds,
            ));
        }
        run.checked(usize::try_from(rounds).unwrap_or(0) * grew.len());
        let (heap, resident) = most(&grew);
        if leaks(&(heap, resident)) {
            note(
                "PXG-CFG-005",
                format!("{}: on_config_drop leaves memory behind", s.label()),
                [format!(
                    "each of {rounds} configurations grew the C heap by {heap} bytes and the process by {resident}"
                )],
            );
        }
        remark(format!(
            "{}: {heap} bytes of C heap, {resident} resident for each configuration",
            s.label()
        ));
    }
    if !any {
        run.or_blocked(Vec::new());
    }
}
