//! What a guest hands over at the boundary. A C guest builds its result from the bytes of the event's body: sizes,
//! counts, flags and pointers as they come, the latter into memory that exists. The host must refuse or take it without
//! looking outside, and release every OWNED buffer exactly once.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use proxy_golang_abi::feature::{Feature, set_of};
use proxy_golang_abi::{EventFlags, Phase};
use proxy_golang_host::engine::{
    EventView, Fault, FieldView, Filter, Hub, HubLimits, KeptOutcome, Op, OpKind, Outcome, Payload,
    Policy, check,
};
use proxy_golang_host::ffi::StrView;
use proxy_golang_host::loader::{BoundaryLimits, ConfigRequest, Host, HostInfo, load};

thread_local! {
    static FILTER: OnceCell<Arc<Filter>> = const { OnceCell::new() };
}

/// Compiles `tests/guests/fuzzed.c` of the host.
fn guest() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let host = [own, &own.join("..")]
        .into_iter()
        .find(|d| d.join("tests/guests/fuzzed.c").is_file())
        .expect("the sources are where they were compiled")
        .to_path_buf();
    let out = std::env::temp_dir().join(format!("pxg-fuzzed-{}.so", std::process::id()));
    let done = Command::new("cc")
        .args([
            "-std=gnu11",
            "-O1",
            "-g",
            "-shared",
            "-fPIC",
            "-pthread",
            "-w",
            "-I",
        ])
        .arg(host.join("../include"))
        .arg(host.join("tests/guests/fuzzed.c"))
        .arg("-o")
        .arg(&out)
        .output()
        .unwrap_or_else(|e| panic!("cc cannot be started ({e}): install a C compiler"));
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    out
}

fn filter() -> Arc<Filter> {
    let features = set_of(&[
        Feature::PEND_REQUEST_HEADERS,
        Feature::BODY_STREAM_REQUEST,
        Feature::METADATA,
    ]);
    let host = Host::new(HostInfo {
        name: "fuzzer".to_owned(),
        version: "0".to_owned(),
        features,
        hub: Hub::new(1, HubLimits::default()),
        log: Arc::new(|_, _, _| {}),
        limits: BoundaryLimits {
            max_ops: 32,
            max_fields: 16,
            ..BoundaryLimits::default()
        },
        attributes: Arc::new(|_| None),
    });
    let file = guest();
    let library = load(&host, &file).unwrap_or_else(|e| panic!("{e}"));
    std::fs::remove_file(&file).expect("it was just loaded");
    library
        .configure(ConfigRequest {
            filter: "f",
            name: "fuzzed",
            bytes: b"",
            parent: None,
            features,
            policy: Policy::default(),
            validate_only: false,
            stats: None,
        })
        .unwrap_or_else(|e| panic!("{e}"))
}

fn event<'a>(phase: Phase) -> EventView<'a> {
    EventView {
        phase,
        flags: EventFlags(0),
        worker: 0,
        user: 0,
        stream: 0,
        token: 0,
        arg: 0,
        fields: &[],
        trailers: &[],
        peer_fields: &[],
        peer_trailers: &[],
        chunks: &[],
        body_offset: 0,
        attrs: &[],
    }
}

/// Calls the guest and shows its outcome to `f`.
fn call<R>(
    filter: &Filter,
    event: &EventView<'_>,
    f: impl FnOnce(Result<Outcome<'_>, Fault>) -> R,
) -> R {
    let mut f = Some(f);
    let mut answer = None;
    filter.guest.event(event, &mut |outcome| {
        answer = f.take().map(|f| f(outcome));
    });
    answer.expect("the outcome is given once")
}

fn touch(op: &Op<'_>) -> usize {
    let sum = |b: &[u8]| b.iter().map(|b| usize::from(*b)).sum::<usize>();
    let payload = |p: &Payload<'_>| sum(p.as_slice());
    match &op.kind {
        OpKind::Set { name, value, .. } | OpKind::Add { name, value, .. } => sum(name) + sum(value),
        OpKind::Delete { name, .. } => sum(name),
        OpKind::SetAt { value, .. } => sum(value),
        OpKind::Inject(p) | OpKind::BodyWrite { bytes: p, .. } => payload(p),
        OpKind::Metadata {
            namespace,
            key,
            value,
        } => sum(namespace) + sum(key) + sum(value),
        OpKind::Route(Some(to)) => sum(to),
        _ => 0,
    }
}

pub fn run(data: &[u8]) {
    if data.len() > 2048 {
        return;
    }
    FILTER.with(|cell| {
        let filter = cell.get_or_init(filter);
        let chunks = [StrView::new(data)];
        let fields = [FieldView::new(b"x-a", b"1")];
        let shown = EventView {
            fields: &fields,
            chunks: &chunks,
            ..event(Phase::REQUEST_BODY)
        };
        call(filter, &shown, |outcome| match outcome {
            Ok(o) => {
                let legal = check(&o).is_ok();
                let touched: usize = o.ops.iter().map(touch).sum();
                let kept = KeptOutcome::new(o);
                let again: usize = kept.outcome().ops.iter().map(touch).sum();
                assert_eq!(touched, again, "what is kept is what was given");
                assert_eq!(check(&kept.outcome()).is_ok(), legal);
            }
            Err(fault) => assert!(fault.status.0 < 0 && !fault.text.is_empty()),
        });
        // Handed over and not released: none, when the outcome is gone.
        let live = call(filter, &event(Phase::WAKE), |o| {
            o.expect("WAKE answers").user
        });
        assert_eq!(live, 0, "OWNED buffers that were not released, or twice");
    });
}
