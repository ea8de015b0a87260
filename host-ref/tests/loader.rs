//! Libraries that are no guests, guests that are wrong, and guests that are loaded and configured.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use proxy_golang_abi::feature::set_of;
use proxy_golang_abi::{BodyMode, LogLevel, Phase, Status};
use proxy_golang_host::engine::{AttrSource, Filter, Policy};
use proxy_golang_host::loader::{
    ConfigRequest, Host, Libc, LoadError, LoadErrorKind as K, check, load,
};
use support::*;

/// The error of a file that [`check`] refuses, and that [`load`] refuses in the same words.
#[track_caller]
fn refused(path: &Path, kind: K, parts: &[&str]) -> LoadError {
    let error = check(path).expect_err("expected a refusal");
    assert_eq!(error.kind, kind, "{error}");
    assert_says(&error, parts);
    assert!(error.to_string().ends_with('.'), "{error}");
    let (host, _) = host();
    assert_eq!(
        load(&host, path).expect_err("as check").to_string(),
        error.to_string()
    );
    assert!(host.libraries().is_empty());
    error
}

/// The error of a guest that [`check`] accepts and [`load`] refuses.
#[track_caller]
fn refused_by_load(name: &str, kind: K, parts: &[&str]) {
    let path = guest(name);
    check(&path).unwrap_or_else(|e| panic!("{e}"));
    let (host, _) = host();
    let error = load(&host, &path).expect_err("expected a refusal");
    assert_eq!(error.kind, kind, "{error}");
    assert_says(&error, parts);
    assert_says(&error, &[path.to_str().expect("an ASCII path")]);
    assert!(host.libraries().is_empty());
}

#[test]
fn missing_file() {
    refused(
        Path::new("/nowhere/guest.so"),
        K::Missing,
        &[
            "/nowhere/guest.so",
            "No such file",
            "a readable guest library",
            "build the guest first",
        ],
    );
    refused(
        Path::new("no/guest.so"),
        K::Missing,
        &["The path is relative to /"],
    );
}

#[test]
fn directory_and_pipe() {
    let folder = scratch_file("folder");
    fs::create_dir(&folder).unwrap();
    refused(
        &folder,
        K::NotAFile,
        &["a directory", "a regular file", "Name the library itself"],
    );
    let socket = scratch_file("s");
    // A path of a socket is short.
    let short = std::env::temp_dir().join(format!("pxg-{}.sock", std::process::id()));
    let _listener = std::os::unix::net::UnixListener::bind(&short).unwrap();
    fs::rename(&short, &socket).unwrap();
    refused(&socket, K::NotAFile, &["a socket"]);
}

#[test]
fn not_an_elf_file() {
    for (bytes, found) in [
        (&b""[..], "an empty file"),
        (b"#!/bin/sh\n", "a script"),
        (b"!<arch>\nfoo", "c-archive"),
        (b"MZ\x90\0", "Windows"),
        (b"hello\nworld", "begins with \"hello\\nwo ... \""),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "Git LFS pointer",
        ),
    ] {
        let path = scratch_file("file");
        fs::write(&path, bytes).unwrap();
        let found = found.replace(" ... ", "");
        refused(
            &path,
            K::NotElf,
            &[
                &found,
                "a 64-bit ELF shared library for",
                "-buildmode=c-shared",
            ],
        );
    }
}

#[test]
fn truncated_elf() {
    let whole = fs::read(guest("plain")).unwrap();
    for len in [10, 30, 100, 5000, whole.len() / 2, whole.len() - 1] {
        let path = scratch_file("cut.so");
        fs::write(&path, &whole[..len]).unwrap();
        refused(
            &path,
            K::Damaged,
            &["cut", &len.to_string(), "shared library"],
        );
    }
}

#[test]
fn library_without_a_section_table() {
    let mut bytes = fs::read(guest("plain")).unwrap();
    // e_shoff, e_shnum and e_shstrndx.
    for at in (40..48).chain(60..64) {
        bytes[at] = 0;
    }
    let whole = scratch_file("whole.so");
    fs::write(&whole, &bytes).unwrap();
    load(&host().0, &whole).unwrap_or_else(|e| panic!("{e}"));
    // Mapping what is not there would end in SIGBUS.
    let cut = scratch_file("cut.so");
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    refused(
        &cut,
        K::Damaged,
        &[
            "damaged or cut: a segment ends at byte",
            "a whole shared library",
        ],
    );
}

/// A copy of a good guest with some of its first bytes changed.
fn patched(changes: &[(usize, u8)]) -> std::path::PathBuf {
    let mut bytes = fs::read(guest("plain")).unwrap();
    for (at, byte) in changes {
        bytes[*at] = *byte;
    }
    let path = scratch_file("patched.so");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn another_machine() {
    let (other, name) = if cfg!(target_arch = "x86_64") {
        (183, "aarch64")
    } else {
        (62, "x86-64")
    };
    refused(
        &patched(&[(18, other)]),
        K::WrongMachine,
        &[name, "shared library for", "for this machine"],
    );
    refused(
        &patched(&[(18, 0x34), (19, 0x12)]),
        K::WrongMachine,
        &["machine number 4660"],
    );
}

#[test]
fn another_word_size_or_byte_order() {
    refused(
        &patched(&[(4, 1), (18, 3)]),
        K::WrongClass,
        &["a 32-bit ELF file for i386", "64-bit"],
    );
    refused(
        &patched(&[(5, 2), (18, 0), (19, 22)]),
        K::WrongClass,
        &["big-endian ELF file for s390x"],
    );
}

#[test]
fn executable_instead_of_a_library() {
    let pie = compile("executable", &["-pie", "-rdynamic"]);
    refused(
        &pie,
        K::NotALibrary,
        &[
            "an executable (position-independent)",
            "a shared library",
            "cdylib",
        ],
    );
    let fixed = compile("executable", &["-no-pie", "-rdynamic", "-fno-pic"]);
    refused(&fixed, K::NotALibrary, &["an executable", "-shared -fPIC"]);
    refused(
        &compile("no_entry", &["-c"]),
        K::NotALibrary,
        &["object file"],
    );
}

#[test]
fn no_entry_function() {
    refused(
        &guest("no_entry"),
        K::NoEntry,
        &[
            "without that function",
            "the exported function pxg_guest_init_v1",
            "link the SDK's entry",
        ],
    );
    refused(
        &guest("hidden_entry"),
        K::NoEntry,
        &["pxg_guest_init_v1, but hidden", "default visibility"],
    );
    refused(
        &guest("entry_is_data"),
        K::NoEntry,
        &["as a variable", "a function", "Rename"],
    );
}

#[test]
fn another_major_version_in_the_name() {
    refused(
        &guest("other_major"),
        K::OtherMajor,
        &[
            "major version 2",
            "pxg_guest_init_v1, for major version 1",
            "SDK for version 1",
        ],
    );
}

#[test]
fn unreadable_file() {
    let path = guest("plain");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // The superuser may read everything.
    if fs::File::open(&path).is_err() {
        refused(
            &path,
            K::Missing,
            &[
                "Permission denied",
                "Let the user that the host runs as read the file",
            ],
        );
    }
}

#[test]
fn unresolved_symbols_are_found_at_load() {
    refused_by_load(
        "unresolved",
        K::Unresolved,
        &[
            "only_in_the_proxy",
            "all its symbols resolved",
            "Link the library that has the symbol into the guest",
        ],
    );
}

#[test]
fn init_refuses_the_version() {
    refused_by_load(
        "says_version",
        K::Version,
        &[
            "the answer VERSION (-7)",
            "made for the draft of\\nversion 1",
            "version 1.0 of the ABI",
            "Build the guest",
        ],
    );
}

#[test]
fn a_refused_guest_can_be_tried_again() {
    let path = guest("says_internal");
    let (host, log) = host();
    let error = load(&host, &path).expect_err("the first time");
    assert_eq!(error.kind, K::Refused);
    assert_says(
        &error,
        &["INTERNAL (-9)", "no rules file", "mend what it names"],
    );
    let library = load(&host, &path).expect("the second time");
    assert_eq!(host.libraries().len(), 1);
    assert_eq!(library.name(), "test-guest");
    assert_eq!(
        log.with("no rules file")[0].1,
        library.path().file_name().unwrap().to_str().unwrap()
    );
}

#[test]
fn tables_that_break_rules() {
    for (name, kind, parts) in [
        (
            "answers_major_2",
            K::Version,
            &["version 2.0 in pxg_guest", "major version 1"][..],
        ),
        (
            "table_too_short",
            K::BadTable,
            &[
                "pxg_guest.size 152",
                "200: not less than in version 1.0",
                "author",
            ],
        ),
        (
            "unknown_guest_flags",
            K::BadTable,
            &["pxg_guest.flags 0x8001", "no bits beside 0x1"],
        ),
        (
            "requires_features",
            K::MissingFeature,
            &[
                "requires WIRE_ORDER, L4, feature number 200",
                "PXG-NEG-003",
                "Use a host that has it",
            ],
        ),
        (
            "no_filters",
            K::BadTable,
            &["no filters", "at least one", "Register each filter"],
        ),
        (
            "filters_twice",
            K::BadTable,
            &["the filter name \"auth\" twice", "distinct names"],
        ),
        (
            "filter_name_not_utf8",
            K::BadTable,
            &["the filter name \"a\\xff\"", "UTF-8"],
        ),
        (
            "filters_null",
            K::BadTable,
            &["pxg_guest.filters", "8-aligned array"],
        ),
        (
            "no_on_event",
            K::BadTable,
            &[
                "no on_event, on_cancel in pxg_guest",
                "all of on_config_new",
            ],
        ),
    ] {
        refused_by_load(name, kind, parts);
    }
}

#[test]
fn a_file_is_loaded_once_under_any_name() {
    let path = guest("plain");
    let (host, log) = host();
    let first = load(&host, &path).unwrap();
    let link = scratch_file("link.so");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let hard = scratch_file("hard.so");
    fs::hard_link(&path, &hard).unwrap();
    for again in [&path, &link, &hard] {
        assert!(Arc::ptr_eq(&first, &load(&host, again).unwrap()));
    }
    assert_eq!(host.libraries().len(), 1);
    assert!(first.path().is_absolute());
    assert_eq!(
        (first.name(), first.version(), first.filters()),
        ("test-guest", "1.2.3", &["f".to_owned()][..])
    );
    assert!(first.aborts());
    assert!(!first.facts().go);
    assert!(log.with("was written to").is_empty());
    if cfg!(target_env = "gnu") {
        let needs = check(&guest("owned_buffers")).unwrap();
        assert_eq!(needs.libc, Some(Libc::Glibc));
    }
    // A copy is another library.
    let copy = scratch_file("copy.so");
    fs::copy(&path, &copy).unwrap();
    assert_ne!(first.id(), load(&host, &copy).unwrap().id());
}

#[test]
fn a_file_that_was_written_to_is_noticed() {
    let path = guest("plain");
    let (host, log) = host();
    load(&host, &path).unwrap();
    let file = fs::File::options().append(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    load(&host, &path).unwrap();
    let warning = &log.with("was written to after it was loaded")[0];
    assert_eq!(warning.0, LogLevel::WARN);
    assert_says(&warning.2, &["PXG-LOAD-007", "another path"]);
}

#[test]
fn two_hosts_keep_one_library_apart() {
    let path = guest("plain");
    let (a, b) = (host().0, host().0);
    let (in_a, in_b) = (load(&a, &path).unwrap(), load(&b, &path).unwrap());
    assert_ne!(in_a.id(), in_b.id());
}

#[test]
fn a_second_go_runtime_is_warned_of() {
    let (first, second) = (guest("go_like"), guest("go_like"));
    assert!(check(&first).unwrap().go);
    let (host, log) = host();
    load(&host, &first).unwrap();
    assert!(log.with("Go runtime").is_empty());
    load(&host, &second).unwrap();
    load(&host, &second).unwrap();
    let warnings = log.with("Go runtime number 2");
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].0, LogLevel::WARN);
    assert_says(
        &warnings[0].2,
        &[
            first.to_str().unwrap(),
            second.to_str().unwrap(),
            "PXG-LOAD-008",
        ],
    );
}

#[test]
fn signals_are_blocked_while_a_guest_is_loaded() {
    use nix::sys::signal::{SigSet, Signal};
    let before = SigSet::thread_get_mask().unwrap();
    assert!(!before.contains(Signal::SIGTERM));
    let (host, _) = host();
    let (_, filter) = filter_of(&host, "signals");
    assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    for place in 0..3 {
        let mask = ask(&filter, Phase::WAKE, place);
        for signal in [
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGCHLD,
            Signal::SIGUSR1,
        ] {
            assert!(mask & 1 << signal as u64 != 0, "{signal} in {place}");
        }
        for signal in [
            Signal::SIGSEGV,
            Signal::SIGURG,
            Signal::SIGPROF,
            Signal::SIGPIPE,
        ] {
            assert!(mask & 1 << signal as u64 == 0, "{signal} in {place}");
        }
        // Realtime signals are for threads.
        assert_eq!(mask >> 34, 0, "in {place}");
    }
}

#[test]
fn workers_go_up_and_down_once() {
    let (host, _) = host();
    let (library, filter) = filter_of(&host, "plain");
    library.worker_up(0);
    library.warm_up(0);
    library.warm_up(1);
    library.worker_down(1);
    library.worker_down(1);
    assert_eq!(
        (ask(&filter, Phase::WAKE, 1), ask(&filter, Phase::WAKE, 2)),
        (2, 1)
    );
    library.batch_end(0);
}

// ---- configurations

/// Why a configuration with these bytes is refused, and how many configurations the guest was told to drop for it.
#[track_caller]
fn refused_config(bytes: &str, status: Status, parts: &[&str], dropped: u64) {
    let (host, _) = host();
    let library = load(&host, &guest("config_cases")).unwrap();
    let good = configure(&library, "").unwrap();
    if bytes == "same" {
        // The value is in use.
        std::mem::forget(configure(&library, bytes).unwrap());
    }
    let before = ask(&good, Phase::WAKE, 0);
    let error = configure(&library, bytes)
        .map(|_| ())
        .expect_err("expected a refusal");
    assert_eq!(error.status, status, "{error}");
    assert_says(&error, parts);
    assert_says(
        &error,
        &[
            "configuration \"test\" of filter \"f\" in /",
            ": found ",
            "; expected ",
        ],
    );
    assert!(error.to_string().ends_with('.'));
    assert_eq!(ask(&good, Phase::WAKE, 0) - before, dropped, "{error}");
    assert_eq!(host.drop_configs(), 0);
    // The good one still works, and so does another.
    configure(&library, "").unwrap();
}

#[test]
fn a_configuration_that_the_guest_refuses() {
    refused_config(
        "refused",
        Status::ARG,
        &[
            "ARG",
            "line 3: unknown key \"colour\"\\n",
            "Correct the configuration",
        ],
        0,
    );
    refused_config(
        "refused-silently",
        Status(-4711),
        &["INTERNAL", "without a text"],
        0,
    );
    refused_config(
        "refused-beyond-scratch",
        Status::ARG,
        &["error: found memory that begins in a lent region"],
        0,
    );
}

#[test]
fn declarations_that_break_rules() {
    for (bytes, status, parts) in [
        ("size", Status::ARG, &["size: found", "PXG-ABI-002"][..]),
        (
            "flag",
            Status::UNSUPPORTED,
            &["flags 0x40000000", "no bits beside 0x7f"],
        ),
        (
            "orphan",
            Status::UNSUPPORTED,
            &[
                "the flag ORPHAN",
                "the feature ORPHAN, which this host does not have",
            ],
        ),
        (
            "phase-0",
            Status::UNSUPPORTED,
            &["subscribe 0x1;", "phases of version 1.0"],
        ),
        (
            "phase-40",
            Status::UNSUPPORTED,
            &["subscribe 0x10000000000"],
        ),
        (
            "l4",
            Status::UNSUPPORTED,
            &["subscribe has L4 phases", "the feature L4"],
        ),
        (
            "pend-unsubscribed",
            Status::ARG,
            &["pend_phases 0x4", "a subset of subscribe 0x102"],
        ),
        (
            "pend-log",
            Status::ARG,
            &["pend_phases 0x80", "without LOG"],
        ),
        (
            "pend-feature",
            Status::UNSUPPORTED,
            &["pend_phases 0x40", "PEND_RESPONSE_TRAILERS"],
        ),
        (
            "mode-unsubscribed",
            Status::ARG,
            &[
                "body_mode[0] WHOLE with subscribe 0x102",
                "the bit of that body phase, 0x4",
            ],
        ),
        (
            "mode-unknown",
            Status::UNSUPPORTED,
            &["body_mode[1] 9", "0 to 4"],
        ),
        (
            "mode-feature",
            Status::UNSUPPORTED,
            &["body_mode[0] OBSERVE", "BODY_OBSERVE_REQUEST"],
        ),
        (
            "attr-required",
            Status::NOTFOUND,
            &[
                "required attribute \"moon.phase\"",
                "Use a host that has the attribute",
            ],
        ),
        (
            "attr-reserved",
            Status::UNSUPPORTED,
            &["attrs[0] (\"request.id\")", "reserved0 0x5"],
        ),
        (
            "attr-null",
            Status::ARG,
            &["attrs: found the pointer 0x0 for 1 elements"],
        ),
        (
            "attr-many",
            Status::LIMIT,
            &["attrs: found 1000 elements", "at most 256"],
        ),
        (
            "projection-case",
            Status::ARG,
            &["projection[0].name \"Content-Type\"", "lower case"],
        ),
    ] {
        refused_config(bytes, status, parts, 1);
    }
}

#[test]
fn config_values_that_cannot_be_dropped() {
    refused_config("zero", Status::ARG, &["config 0", "not 0"], 0);
    refused_config(
        "same",
        Status::ARG,
        &["config 1000000, the value of another live configuration"],
        0,
    );
}

#[test]
fn a_filter_that_is_not_there() {
    let (host, _) = host();
    let library = load(&host, &guest("plain")).unwrap();
    let error = library
        .configure(ConfigRequest {
            filter: "g",
            ..request("test", b"")
        })
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.status, Status::NOTFOUND);
    assert_says(
        &error,
        &[
            "no filter \"g\" in the library",
            "one of f",
            "Correct the filter's name.",
        ],
    );
}

#[test]
fn required_features_count_per_configuration() {
    let (host, _) = host();
    let library = load(&host, &guest("requires_pend")).unwrap();
    configure(&library, "").unwrap();
    let error = library.configure(ConfigRequest {
        features: set_of(&[]),
        ..request("test", b"")
    });
    let error = error.map(|_| ()).unwrap_err();
    assert_eq!(error.status, Status::UNSUPPORTED);
    assert_says(
        &error,
        &[
            "requires PEND_REQUEST_HEADERS",
            "PXG-NEG-003",
            "Use the filter where",
        ],
    );
}

#[test]
fn declarations_are_resolved() {
    let (host, log) = host();
    let library = load(&host, &guest("config_cases")).unwrap();
    let whole = configure(&library, "whole").unwrap();
    assert_eq!(whole.declared.body_mode, [BodyMode::WHOLE, BodyMode::SKIP]);
    assert_eq!(
        whole.declared.max_body,
        [5000, 2000],
        "the limit; the default"
    );
    assert_eq!(whole.declared.pend_ns, 10_000_000_000, "the policy's limit");
    assert_says(
        &log.with("max_body[0]")[0].2,
        &["1099511627776", "limit 5000"],
    );
    assert_eq!(log.with("pend_ns").len(), 1);
    let wants = configure(&library, "attrs").unwrap();
    let sources: Vec<_> = wants
        .declared
        .attrs
        .iter()
        .map(|a| a.source.clone())
        .collect();
    let metadata = AttrSource::Metadata {
        namespace: b"auth".to_vec(),
        key: b"user.name".to_vec(),
    };
    assert_eq!(sources, [AttrSource::Host(5), metadata]);
    assert_eq!(wants.declared.projection, [(b":path".to_vec(), 2)]);
    configure(&library, "scratch").unwrap();
    library.configure(request("four", b"bytes")).unwrap();
    let validate = ConfigRequest {
        validate_only: true,
        ..request("test", b"validate")
    };
    library.configure(validate).unwrap();
    // What the host does not have is not passed on.
    let all = ConfigRequest {
        features: [u64::MAX; 4],
        ..request("test", b"")
    };
    assert_eq!(library.configure(all).unwrap().features, FEATURES);
}

#[test]
fn calls_on_the_config_thread_do_not_overlap() {
    let (host, _) = host();
    let library = load(&host, &guest("config_cases")).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    configure(&library, "overlap").unwrap();
                    host.drop_configs();
                }
            });
        }
    });
    assert_eq!(library.live_configs(), 0);
}

#[test]
fn a_configuration_is_dropped_once_after_its_last_user() {
    let (host, _) = host();
    let library = load(&host, &guest("config_cases")).unwrap();
    let good = configure(&library, "").unwrap();
    let notified = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&notified);
    host.set_drop_notify(Box::new(move || {
        count.fetch_add(1, SeqCst);
    }));
    let filter = configure(&library, "").unwrap();
    let stream = Arc::clone(&filter);
    let token = Arc::clone(&filter.guest);
    drop(filter);
    drop(stream);
    assert_eq!(
        (host.drop_configs(), notified.load(SeqCst)),
        (0, 0),
        "a token is alive"
    );
    std::thread::spawn(move || drop(token)).join().unwrap();
    assert_eq!(ask(&good, Phase::WAKE, 0), 0, "not on that thread");
    assert_eq!(library.live_configs(), 2);
    assert_eq!((host.drop_configs(), notified.load(SeqCst)), (1, 1));
    assert_eq!(host.drop_configs(), 0);
    assert_eq!(ask(&good, Phase::WAKE, 0), 1);
    assert_eq!(library.live_configs(), 1);
}

#[test]
fn a_parent_outlives_its_children() {
    let (host, _) = host();
    let library = load(&host, &guest("config_cases")).unwrap();
    let good = configure(&library, "").unwrap();
    let parent = configure(&library, "base").unwrap();
    fn over(parent: &Arc<Filter>) -> ConfigRequest<'_> {
        ConfigRequest {
            parent: Some(parent),
            ..request("over", b"parent")
        }
    }
    let child = library.configure(over(&parent)).unwrap();
    let error = library.configure(over(&child)).map(|_| ()).unwrap_err();
    assert_says(
        &error,
        &["the parent \"over\", itself an override", "no parent"],
    );
    drop(parent);
    assert_eq!(host.drop_configs(), 0, "the child holds it");
    drop(child);
    assert_eq!(host.drop_configs(), 2);
    assert_eq!(ask(&good, Phase::WAKE, 0), 2);
    assert_eq!(ask(&good, Phase::WAKE, 1), 0, "the parent after its child");
    let (_, foreign) = filter_of(&host, "plain");
    let error = library.configure(over(&foreign)).map(|_| ()).unwrap_err();
    assert_eq!(error.status, Status::ARG);
    assert_says(
        &error,
        &["a configuration of another library", "the same filter"],
    );
}

#[test]
fn the_policy_and_the_counters_are_the_operators() {
    let (host, _) = host();
    let library = load(&host, &guest("plain")).unwrap();
    let stats = Arc::default();
    let policy = Policy {
        max_pending: 3,
        ..Policy::default()
    };
    let req = ConfigRequest {
        policy,
        stats: Some(Arc::clone(&stats)),
        ..request("test", b"")
    };
    let filter = library.configure(req).unwrap();
    assert_eq!(filter.policy.max_pending, 3);
    assert!(Arc::ptr_eq(&filter.stats, &stats));
    assert_eq!(
        (filter.name.as_str(), filter.guest.library()),
        ("test", library.id())
    );
}

fn _is_shared(host: Host) -> impl Send + Sync {
    host
}
