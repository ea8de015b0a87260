//! Configurations of guests that are loaded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use proxy_golang_abi::feature::set_of;
use proxy_golang_abi::{BodyMode, Phase, Status};
use proxy_golang_host::engine::{AttrSource, Filter, Policy};
use proxy_golang_host::loader::{ConfigRequest, Host, load};

use crate::support::*;

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
