//! C guests compiled by the tests, a host that records its log, and calls into filters.
#![allow(dead_code)] // each test binary uses its part

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use proxy_golang_abi::feature::{Feature, FeatureSet, set_of};
use proxy_golang_abi::{Action, EventFlags, LogLevel, Phase};
use proxy_golang_host::engine::{
    EventView, Fault, FieldView, Filter, Hub, HubLimits, Outcome, Policy,
};
use proxy_golang_host::loader::{
    BoundaryLimits, ConfigError, ConfigRequest, Host, HostInfo, Library, load,
};

/// What the tests' host can do. Not L4, OBSERVE, ORPHAN, WIRE_ORDER and PEND_RESPONSE_TRAILERS.
pub(crate) const FEATURES: FeatureSet = set_of(&[
    Feature::PEND_REQUEST_HEADERS,
    Feature::PEND_REQUEST_BODY,
    Feature::BODY_STREAM_REQUEST,
    Feature::BODY_STREAM_RESPONSE,
    Feature::BODY_WHOLE_REQUEST,
    Feature::HOLD_REQUEST,
    Feature::RESIZE_REQUEST,
    Feature::METADATA,
    Feature::APPLY,
    Feature::BATCH_END,
    Feature::CONFIG_REJECT,
]);

/// Operations that the tests' host takes in one result.
pub(crate) const MAX_OPS: u64 = 32;

/// A file of its own for each call, in a folder that cargo cleans.
pub(crate) fn scratch_file(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("guests-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the compiled guests");
    folder.join(format!("{}-{name}", NEXT.fetch_add(1, Relaxed)))
}

/// Compiles `tests/guests/<name>.c` into a file of its own.
pub(crate) fn compile(name: &str, flags: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join("tests/guests").join(format!("{name}.c"));
    let out = scratch_file(&format!("{name}.so"));
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let done = Command::new(&cc)
        .args([
            "-std=gnu11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Wno-unused-function",
            "-fPIC",
            "-pthread",
        ])
        .args(flags)
        .arg("-I")
        .arg(root.join("../include"))
        .arg("-o")
        .arg(&out)
        .arg(&source)
        .output()
        .unwrap_or_else(|e| {
            panic!("{cc} cannot be started ({e}): install a C compiler, on Debian the package gcc")
        });
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    out
}

/// A guest as a shared library.
pub(crate) fn guest(name: &str) -> PathBuf {
    compile(name, &["-shared"])
}

/// A log that keeps what came: level, guest, text.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<(LogLevel, String, String)>>>);

impl Log {
    pub(crate) fn records(&self) -> Vec<(LogLevel, String, String)> {
        self.0.lock().expect("no test panics while it logs").clone()
    }

    /// The records that contain `part`.
    pub(crate) fn with(&self, part: &str) -> Vec<(LogLevel, String, String)> {
        self.records()
            .into_iter()
            .filter(|(_, _, text)| text.contains(part))
            .collect()
    }
}

/// A host with a log.
pub(crate) fn host() -> (Arc<Host>, Log) {
    let hub = Hub::new(2, HubLimits::default());
    host_of(hub)
}

/// A host over a hub.
pub(crate) fn host_of(hub: Arc<Hub>) -> (Arc<Host>, Log) {
    host_with(hub, FEATURES)
}

/// A host over a hub, with features.
pub(crate) fn host_with(hub: Arc<Hub>, features: FeatureSet) -> (Arc<Host>, Log) {
    let log = Log::default();
    let kept = log.clone();
    let host = Host::new(HostInfo {
        name: "test-host".to_owned(),
        version: "0".to_owned(),
        features,
        hub,
        log: Arc::new(move |level, guest, text| {
            let record = (level, guest.to_owned(), text.to_owned());
            kept.0
                .lock()
                .expect("no test panics while it logs")
                .push(record);
        }),
        limits: BoundaryLimits {
            max_ops: MAX_OPS,
            max_fields: 16,
            scratch_more: 64 * 1024,
            body_default: [1000, 2000],
            body_limit: [5000; 2],
            ..BoundaryLimits::default()
        },
        attributes: Arc::new(|name| (name == "request.id").then_some(5)),
    });
    (host, log)
}

/// A configuration request with nothing special.
pub(crate) fn request<'a>(name: &'a str, bytes: &'a [u8]) -> ConfigRequest<'a> {
    ConfigRequest {
        filter: "f",
        name,
        bytes,
        parent: None,
        features: FEATURES,
        policy: Policy::default(),
        validate_only: false,
        stats: None,
    }
}

/// Configures the library's one filter.
pub(crate) fn configure(library: &Arc<Library>, bytes: &str) -> Result<Arc<Filter>, ConfigError> {
    library.configure(request("test", bytes.as_bytes()))
}

/// Compiles, loads and configures a guest.
pub(crate) fn filter_of(host: &Arc<Host>, name: &str) -> (Arc<Library>, Arc<Filter>) {
    let library = load(host, &guest(name)).unwrap_or_else(|e| panic!("{e}"));
    let filter = configure(&library, "").unwrap_or_else(|e| panic!("{e}"));
    (library, filter)
}

/// An event without anything.
pub(crate) fn event<'a>(phase: Phase, arg: u64) -> EventView<'a> {
    EventView {
        phase,
        flags: EventFlags(0),
        worker: 0,
        user: 0,
        stream: 0,
        token: 0,
        arg,
        fields: &[],
        trailers: &[],
        peer_fields: &[],
        peer_trailers: &[],
        chunks: &[],
        body_offset: 0,
        attrs: &[],
    }
}

/// Calls the filter and shows its outcome to `f`.
pub(crate) fn call<R>(
    filter: &Filter,
    event: &EventView<'_>,
    f: impl FnOnce(Result<Outcome<'_>, Fault>) -> R,
) -> R {
    let mut f = Some(f);
    let mut answer = None;
    filter.guest.event(event, &mut |outcome| {
        let f = f.take().expect("the outcome is given once");
        answer = Some(f(outcome));
    });
    answer.expect("the outcome is given")
}

/// Calls the filter with `arg` and answers the slot, which the test guests use for numbers.
pub(crate) fn ask(filter: &Filter, phase: Phase, arg: u64) -> u64 {
    let fields = [FieldView::new(b"empty", b"")];
    let event = EventView {
        fields: &fields,
        ..event(phase, arg)
    };
    call(filter, &event, |outcome| {
        let outcome = outcome.unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(outcome.action, Action::CONTINUE);
        outcome.user
    })
}

/// A text that tells what was found, what was expected and what to do: all of `parts` are in it.
#[track_caller]
pub(crate) fn assert_says(text: &dyn std::fmt::Display, parts: &[&str]) {
    let text = text.to_string();
    for part in parts {
        assert!(text.contains(part), "expected \"{part}\" in: {text}");
    }
}
