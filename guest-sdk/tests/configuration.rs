//! Configurations: what they declare, how they are refused, and what they know of the host.

use std::sync::atomic::{AtomicU32, Ordering};

use proxy_golang_guest::prelude::*;
use proxy_golang_guest::testing::{TestHost, get, response};
use proxy_golang_guest::{
    Attribute, Counter, Gauge, Host, HostError, Library, Status, debug, library,
};

/// What a validation must not do.
fn host_side_effect(input: &ConfigInput<'_>) -> Result<(), ConfigError> {
    input.host().counter("early", &[])?;
    Ok(())
}

struct Picky {
    address: Attribute,
    level: u32,
    hits: Counter,
    size: Gauge,
}

/// Drops of the levels that one test alone uses: the others run at the same time.
static DROPS: AtomicU32 = AtomicU32::new(0);

impl Drop for Picky {
    fn drop(&mut self) {
        if matches!(self.level, 3 | 4) {
            DROPS.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Filter for Picky {
    type Ctx = ();

    fn configure(input: &ConfigInput<'_>, setup: &mut Setup) -> Result<Self, ConfigError> {
        let text = input.text()?;
        let level = match (text, input.parent::<Self>()) {
            ("panic", _) => panic!("in configure"),
            ("inherit", Some(parent)) => parent.level + 1,
            ("inherit", None) => return Err(ConfigError::at_line(1, "nothing to inherit")),
            (number, _) => number.parse()?,
        };
        if level == 66 {
            host_side_effect(input)?;
        }
        if input.validate_only() {
            assert_eq!(input.name(), b"validate");
        }
        setup.skip(Phase::LOG);
        let host = input.host();
        debug!(input, "level {level} on {}", host.name());
        Ok(Self {
            address: setup.attribute("source.address"),
            level,
            hits: input.counter("hits", &[("kind", "all")])?,
            size: input.gauge("size", &[])?,
        })
    }
}

impl OnRequestHeaders for Picky {
    fn on_request_headers(&self, (): &mut (), ev: &HeadersEvent<'_>) -> Outcome {
        ev.count(&self.hits, 2);
        self.hits.add(3);
        ev.gauge(&self.size, -7);
        ev.set_header("x-address", ev.attribute(self.address).unwrap_or(b"none"));
        ev.set_header_fmt("x-level", format_args!("{}", self.level));
        Ok(Verdict::Continue)
    }
}

impl OnLog for Picky {
    fn on_log(&self, (): &mut (), _: &LogEvent<'_>) {
        unreachable!("LOG is skipped by the configuration");
    }
}

struct Whole;

impl Filter for Whole {
    type Ctx = ();
    fn configure(_: &ConfigInput<'_>, setup: &mut Setup) -> Result<Self, ConfigError> {
        setup.resizes(Direction::Request);
        Ok(Self)
    }
}

impl OnRequestBody for Whole {
    const MODE: BodyMode = BodyMode::WHOLE;
    const MAY_PEND: bool = true;
    fn on_request_body(&self, (): &mut (), _: &BodyEvent<'_>) -> Outcome {
        Ok(Verdict::Continue)
    }
}

static WORKERS: AtomicU32 = AtomicU32::new(0);

fn worker(host: Host, index: u32, up: bool) {
    assert!(host.workers().is_some_and(|n| index < n));
    if up {
        WORKERS.fetch_add(1, Ordering::SeqCst);
    }
}

static LIBRARY: Library = library! {
    "picky" => Picky,
    "whole" => Whole;
    requires = [Feature::METADATA];
    on_worker = worker;
};

#[test]
fn a_configuration_is_refused_with_its_text() {
    let host = TestHost::new(&LIBRARY);
    for (filter, bytes, status, want) in [
        ("picky", &b"many"[..], Status::ARG, "invalid digit"),
        (
            "picky",
            b"inherit",
            Status::ARG,
            "line 1: nothing to inherit",
        ),
        ("picky", b"\xff", Status::ARG, "not UTF-8 at byte 0"),
        ("picky", b"panic", Status::INTERNAL, "panic: in configure"),
        (
            "piccy",
            b"1",
            Status::NOTFOUND,
            "no filter \"piccy\" in this library; it has picky, whole",
        ),
    ] {
        let refused = host.configure(filter, bytes).unwrap_err();
        assert_eq!(refused.status, status, "{refused}");
        assert!(refused.text.contains(want), "{refused}");
    }
}

#[test]
fn features_that_the_host_lacks_are_named() {
    let missing = [
        Feature::BODY_WHOLE_REQUEST,
        Feature::PEND_REQUEST_BODY,
        Feature::RESIZE_REQUEST,
    ];
    let host = TestHost::without(&LIBRARY, &missing);
    let refused = host.configure("whole", "").unwrap_err();
    assert_eq!(refused.status, Status::UNSUPPORTED);
    for name in ["BODY_WHOLE_REQUEST", "PEND_REQUEST_BODY", "RESIZE_REQUEST"] {
        assert!(refused.text.contains(name), "{refused}");
    }
    host.configure("picky", "1").unwrap();
}

#[test]
fn attributes_metrics_and_parents() {
    let host = TestHost::new(&LIBRARY);
    host.validate("picky", "3").unwrap();
    let config = host
        .configure("picky", "3")
        .unwrap()
        .attribute("source.address", "192.0.2.1");
    assert!(config.subscribes(Phase::REQUEST_HEADERS) && !config.subscribes(Phase::LOG));
    let done = config.exchange(get("/"), response(204));
    assert_eq!(done.upstream().get("x-address"), Some("192.0.2.1"));
    assert_eq!(done.upstream().get("x-level"), Some("3"));
    assert_eq!(done.events(), [Phase::REQUEST_HEADERS]);
    {
        let child = config.child("picky", "inherit").unwrap();
        let done = child.exchange(get("/"), response(204));
        assert_eq!(done.upstream().get("x-level"), Some("4"));
        assert_eq!(done.upstream().get("x-address"), Some("none"));
        // A parent of another filter is none.
        assert!(config.child("whole", "").is_ok());
    }
    drop(config);
    assert_eq!(DROPS.load(Ordering::SeqCst), 3);
    assert_eq!(host.metric("hits"), Some(10));
    assert_eq!(host.metric("size"), Some(-7));
    assert!(
        host.log_lines()
            .iter()
            .any(|(_, line)| line.contains("level 3 on proxy-golang-guest testing"))
    );
    assert!(WORKERS.load(Ordering::SeqCst) > 0);
}

#[test]
#[should_panic(expected = "PXG-CFG-004")]
fn a_validation_without_side_effects() {
    let host = TestHost::new(&LIBRARY);
    host.configure("picky", "66").unwrap();
    host.validate("picky", "65").unwrap();
    let _ = host.validate("picky", "66");
}

#[test]
fn a_bad_metric_name_is_refused_by_the_host() {
    struct Bad;
    impl Filter for Bad {
        type Ctx = ();
        fn configure(input: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
            let refused = input.host().counter("no spaces", &[]).unwrap_err();
            assert_eq!(refused, HostError::Refused(Status::ARG));
            Ok(Self)
        }
    }
    static LIBRARY: Library = library! { "bad" => Bad };
    let host = TestHost::new(&LIBRARY);
    let config = host.configure("bad", "").unwrap();
    // No phase, no event.
    assert!(config.exchange(get("/"), response(204)).events().is_empty());
}
