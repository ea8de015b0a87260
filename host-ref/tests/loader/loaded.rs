//! Guests that are loaded.

use std::fs;
use std::sync::Arc;

use proxy_golang_abi::{LogLevel, Phase};
use proxy_golang_host::loader::{Libc, check, load};

use crate::support::*;

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
