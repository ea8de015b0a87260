//! Loading, the table, negotiation, extensions.

use std::collections::BTreeSet;

use proxy_golang_abi::Status;

use super::{Case, Run};
use crate::elf;
use crate::finding::note;
use crate::host::messages;
use crate::host::rig::{self, full};
use crate::host::state::Nulls;
use crate::host::stream::Options;
use crate::sys::{calls, peek, threads};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "load/symbols",
        rules: &["PXG-LOAD-001", "PXG-LOAD-013"],
        level: 1,
        about: "the dynamic symbol table exports the entry function, and nothing else",
        run: symbols,
        env: &[],
        seconds: 5,
    },
    Case {
        name: "load/bare-process",
        rules: &["PXG-LOAD-002"],
        level: 1,
        about: "the library loads in a process that exports nothing",
        run: bare_process,
        env: &[],
        seconds: 10,
    },
    Case {
        name: "load/table",
        rules: &["PXG-LOAD-010", "PXG-ABI-002", "PXG-ABI-005"],
        level: 1,
        about: "the table has its required hooks, filters with distinct names, a right size and no undefined bits",
        run: table,
        env: &[],
        seconds: 10,
    },
    Case {
        name: "load/init-again",
        rules: &["PXG-LOAD-006"],
        level: 1,
        about: "init gives the same table to the same host, and keeps a second host apart",
        run: init_again,
        env: &[],
        seconds: 10,
    },
    Case {
        name: "load/table-stays",
        rules: &["PXG-LOAD-012"],
        level: 2,
        about: "what the table points to stays; the address of the table itself is not kept",
        run: table_stays,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "load/host-threads",
        rules: &["PXG-RT-006"],
        level: 2,
        about: "loading, init and events leave the host's thread as it was",
        run: host_threads,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "load/process-stays",
        rules: &["PXG-RT-007", "PXG-RT-008"],
        level: 2,
        about: "the process goes on, with the descriptors that it had, and without children",
        run: process_stays,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "neg/other-major",
        rules: &["PXG-NEG-002"],
        level: 1,
        about: "hosts of major 0 and 2 are answered with VERSION",
        run: other_major,
        env: &[],
        seconds: 10,
    },
    Case {
        name: "neg/no-log",
        rules: &["PXG-NEG-004"],
        level: 2,
        about: "`log` is NULL",
        run: no_log,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "neg/no-get-ext",
        rules: &["PXG-NEG-004"],
        level: 2,
        about: "`get_ext` is NULL",
        run: no_get_ext,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "neg/no-page",
        rules: &["PXG-NEG-004"],
        level: 2,
        about: "`page` is NULL",
        run: no_page,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "neg/no-features",
        rules: &["PXG-NEG-003", "PXG-NEG-004"],
        level: 2,
        about: "a host without any feature, so `complete`, `apply` and `wake` are NULL",
        run: no_features,
        env: &[],
        seconds: 20,
    },
    Case {
        name: "neg/each-feature-masked",
        rules: &["PXG-NEG-003", "PXG-CFG-009"],
        level: 2,
        about: "each feature is masked in turn: the guest refuses the configuration, or works without it",
        run: each_feature_masked,
        env: &[],
        seconds: 40,
    },
    Case {
        name: "ext/of-the-guest",
        rules: &["PXG-NEG-007", "PXG-EXT-002"],
        level: 2,
        about: "the guest's get_ext answers the same on every thread, with tables that begin with their size",
        run: guest_extensions,
        env: &[],
        seconds: 10,
    },
    Case {
        name: "ext/ids",
        rules: &["PXG-EXT-001"],
        level: 2,
        about: "the ids that the guest asks for are well-formed",
        run: extension_ids,
        env: &[],
        seconds: 20,
    },
];

fn symbols(run: &mut Run) {
    let exports = match elf::exports(&run.path) {
        Ok(e) => e,
        Err(text) => {
            note(
                "PXG-LOAD-001",
                "not a shared library of this machine",
                [text],
            );
            return;
        }
    };
    run.checked(1);
    if !exports
        .iter()
        .any(|e| e.name == "pxg_guest_init_v1" && e.is_function)
    {
        note(
            "PXG-LOAD-001",
            "the dynamic symbol table defines no function pxg_guest_init_v1",
            [format!("it defines {} symbols", exports.len())],
        );
    }
    for e in &exports {
        let Some(major) = e.name.strip_prefix("pxg_guest_init_v") else {
            continue;
        };
        if major.is_empty() || !major.bytes().all(|b| b.is_ascii_digit()) || !e.is_function {
            note(
                "PXG-LOAD-001",
                format!(
                    "exports {}, which is no entry function of a major version",
                    e.name
                ),
                [],
            );
        }
    }
    let others: Vec<&str> = exports
        .iter()
        .map(|e| e.name.as_str())
        .filter(|n| !n.starts_with("pxg_guest_init_v") && !is_linkers_own(n))
        .collect();
    if !others.is_empty() {
        note(
            "PXG-LOAD-013",
            format!(
                "exports {} symbols besides its entry functions",
                others.len()
            ),
            [
                format!("among them {}", others[..others.len().min(6)].join(", ")),
                "hide them with a version script or -fvisibility=hidden".to_string(),
            ],
        );
    }
}

fn is_linkers_own(name: &str) -> bool {
    matches!(
        name,
        "_init" | "_fini" | "_edata" | "_end" | "__bss_start" | "_etext"
    )
}

fn bare_process(run: &mut Run) {
    if rig::load(&run.path).is_some() {
        run.checked(1);
    }
}

fn table(run: &mut Run) {
    if run.rig().is_some() {
        run.checked(1);
    }
}

fn init_again(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let again = calls::init(rig.library, rig.table_at, 0);
    run.checked(1);
    if again.status.0 < 0 {
        note(
            "PXG-LOAD-006",
            format!(
                "init answered {} when it was called again with the same host",
                again.status.0
            ),
            [],
        );
        return;
    }
    // Strings may lie elsewhere, if they say the same.
    let says = |t: &proxy_golang_abi::Guest| {
        let mut bare = *t;
        let texts = [t.name, t.version].map(|s| calls::table_text(s).bytes);
        let filters: Option<Vec<_>> =
            calls::filters(t).map(|f| f.into_iter().map(|t| t.bytes).collect());
        bare.name = proxy_golang_abi::Str::EMPTY;
        bare.version = proxy_golang_abi::Str::EMPTY;
        bare.filters = std::ptr::null();
        (peek::as_bytes(&bare).to_vec(), texts, filters)
    };
    if says(&again.table) != says(&rig.guest.table) {
        note(
            "PXG-LOAD-006",
            "init filled another table when it was called again with the same host",
            [format!(
                "ctx {:#x} before, {:#x} now",
                rig.guest.table.ctx, again.table.ctx
            )],
        );
    }
    let (_, _, other) = rig::init(rig.library, full());
    run.checked(1);
    if other.status == Status::STATE {
        return;
    }
    if other.status.0 < 0 {
        note(
            "PXG-LOAD-006",
            format!("init answered {} to a second host", other.status.0),
            ["expected OK with another ctx, or STATE".to_string()],
        );
    } else if other.table.ctx == rig.guest.table.ctx {
        note(
            "PXG-LOAD-006",
            "a second host got the same ctx as the first one",
            [format!(
                "ctx {:#x}; completions can't find their host",
                other.table.ctx
            )],
        );
    }
}

fn table_stays(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let before = rig.filters.clone();
    let confs = run.confs(&rig);
    for c in &confs {
        rig.run(c, &messages::post(&[64, 64]), Options::default());
    }
    rig.drop_all(confs);
    run.checked(1);
    let after: Option<Vec<String>> = calls::filters(&rig.guest.table).map(|v| {
        v.iter()
            .map(|t| String::from_utf8_lossy(t.get()).into_owned())
            .collect()
    });
    if after.as_ref() != Some(&before) {
        note(
            "PXG-LOAD-012",
            "the names of the filters changed after init",
            [format!("before {before:?}"), format!("after {after:?}")],
        );
    }
}

fn host_threads(run: &mut Run) {
    let before = threads::attributes();
    let Some(rig) = run.rig() else { return };
    let check = |when: &str| {
        let now = threads::attributes();
        if now != before {
            note(
                "PXG-RT-006",
                format!("changed attributes of the host's thread {when}"),
                [format!("before {before:?}"), format!("after {now:?}")],
            );
        }
    };
    check("while it was loaded");
    let confs = run.confs(&rig);
    check("in on_config_new");
    for c in &confs {
        rig.run(c, &messages::post(&[64, 64]), Options::default());
        rig.run(c, &messages::get(), Options::default());
    }
    check("in its events");
    rig.drop_all(confs);
    run.checked(3);
}

fn process_stays(run: &mut Run) {
    let before = threads::open_files();
    let check = |when: &str| {
        let now = threads::open_files();
        let changed: Vec<String> = before
            .iter()
            .filter(|(fd, file)| now.get(*fd) != Some(file))
            .map(|(fd, _)| format!("descriptor {fd}"))
            .collect();
        if !changed.is_empty() {
            note(
                "PXG-RT-007",
                format!("closed or replaced descriptors of the host {when}"),
                [changed.join(", ")],
            );
        }
    };
    let Some(rig) = run.rig() else { return };
    check("while it was loaded");
    let confs = run.confs(&rig);
    check("in on_config_new");
    for c in &confs {
        rig.run(c, &messages::post(&[64, 64]), Options::default());
        rig.run(c, &messages::get(), Options::default());
    }
    check("in its events");
    rig.drop_all(confs);
    check("in on_config_drop");
    run.checked(4);
}

fn other_major(run: &mut Run) {
    let Some(library) = rig::load(&run.path) else {
        return;
    };
    for major in [2, 0] {
        let mut o = full();
        o.major = major;
        let (_, _, done) = rig::init(library, o);
        run.checked(1);
        if done.status != Status::VERSION {
            note(
                "PXG-NEG-002",
                format!("init answered {} to a host of major {major}", done.status.0),
                [format!("expected VERSION ({})", Status::VERSION.0)],
            );
        }
    }
}

fn with_nulls(run: &mut Run, null: Nulls) {
    let mut o = full();
    o.null = null;
    let Some(rig) = run.rig_with(o) else { return };
    let confs = run.confs(&rig);
    for c in &confs {
        for e in [messages::get(), messages::post(&[100, 20])] {
            rig.run(c, &e, Options::default());
            run.checked(1);
        }
    }
    rig.drop_all(confs);
}

fn no_log(run: &mut Run) {
    with_nulls(
        run,
        Nulls {
            log: true,
            ..Nulls::default()
        },
    );
}

fn no_get_ext(run: &mut Run) {
    with_nulls(
        run,
        Nulls {
            get_ext: true,
            ..Nulls::default()
        },
    );
}

fn no_page(run: &mut Run) {
    with_nulls(
        run,
        Nulls {
            page: true,
            ..Nulls::default()
        },
    );
}

fn no_features(run: &mut Run) {
    let mut o = full();
    o.features = [0; 4];
    let Some(library) = rig::load(&run.path) else {
        return;
    };
    let (host, _, done) = rig::init(library, o);
    run.checked(1);
    if done.status.0 < 0 {
        if done.status != Status::UNSUPPORTED {
            note(
                "PXG-NEG-003",
                format!("init answered {} to a host without features", done.status.0),
                [format!(
                    "expected OK, or UNSUPPORTED ({})",
                    Status::UNSUPPORTED.0
                )],
            );
        }
        return;
    }
    if done.table.required != [0; 4] {
        return; // the host refuses it, which is right
    }
    let Some(rig) = rig::Rig::attach(library, run.has_go, host, done) else {
        return;
    };
    let confs = rig.configure(&run.subjects_of(&rig));
    for c in &confs {
        for e in [messages::get(), messages::post(&[100, 20])] {
            rig.run(c, &e, Options::default());
            run.checked(1);
        }
    }
    rig.drop_all(confs);
}

fn each_feature_masked(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let subjects = run.subjects_of(&rig);
    let all = rig.host.options.features;
    let mut taken = 0;
    for (f, _) in proxy_golang_abi::feature::Feature::ALL {
        let mut features = all;
        features[(f.0 / 64) as usize] &= !(1 << (f.0 % 64));
        let confs = rig.configure_with(&subjects, Default::default(), &features);
        taken += confs.len();
        for c in &confs {
            rig.run(c, &messages::post(&[300, 5]), Options::default());
        }
        rig.drop_all(confs);
        run.checked(1);
    }
    if taken == 0 {
        run.or_blocked(Vec::new());
    }
}

fn guest_extensions(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    if rig.guest.table.get_ext.is_none() {
        run.not_applicable("the guest's table has no get_ext");
        return;
    }
    let ids = [
        "pxg.admin/1",
        "pxg.test/1",
        "pxg.thread-check/1",
        "x.conformance/1",
        "draft.none/1",
        "",
    ];
    let first: Vec<u64> = ids
        .iter()
        .map(|id| rig.guest.get_ext(id).unwrap_or(0))
        .collect();
    let found: Vec<Vec<u64>> = std::thread::scope(|s| {
        let handles: Vec<_> = (0..4)
            .map(|_| {
                s.spawn(|| {
                    ids.iter()
                        .map(|id| rig.guest.get_ext(id).unwrap_or(0))
                        .collect()
                })
            })
            .collect();
        handles.into_iter().filter_map(|h| h.join().ok()).collect()
    });
    run.checked(ids.len());
    for (i, id) in ids.iter().enumerate() {
        let answers: BTreeSet<u64> = found.iter().map(|v| v[i]).chain([first[i]]).collect();
        if answers.len() > 1 {
            note(
                "PXG-NEG-007",
                format!("get_ext({id:?}) answered different tables"),
                [format!("{answers:x?}")],
            );
            continue;
        }
        if first[i] == 0 {
            continue;
        }
        match peek::value::<u32>(first[i]) {
            Ok(size) if (8..=4096).contains(&size) => {}
            Ok(size) => note(
                "PXG-EXT-002",
                format!("the table of {id:?} begins with {size}, which is no size"),
                [],
            ),
            Err(_) => note(
                "PXG-EXT-002",
                format!("the table of {id:?} can't be read"),
                [],
            ),
        }
    }
}

fn extension_ids(run: &mut Run) {
    let Some(rig) = run.rig() else { return };
    let confs = rig.configure(&run.subjects_of(&rig));
    for c in &confs {
        rig.run(c, &messages::get(), Options::default());
    }
    rig.drop_all(confs);
    let ids = rig.host.ext_ids();
    if ids.is_empty() {
        run.not_applicable("the guest asks for no extension");
        return;
    }
    for id in ids {
        run.checked(1);
        let ok = id.rsplit_once('/').is_some_and(|(name, revision)| {
            !name.is_empty()
                && !name.contains('/')
                && !revision.is_empty()
                && revision.bytes().all(|b| b.is_ascii_digit())
                && !revision.starts_with('0')
        });
        if !ok {
            note(
                "PXG-EXT-001",
                format!("asked for the extension {id:?}"),
                ["an id is <name>/<revision>, like pxg.metrics/1".to_string()],
            );
        }
    }
}
