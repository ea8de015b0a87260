//! One REQUEST_HEADERS round with a C guest in a shared library: the view of 20 fields is built, the guest called, its
//! three operations validated and applied. On the engine's own field list, and on the HTTP library's header map as
//! `pxg-host` has it. The floor does the same without the engine: no phases, no chain, no validation.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use proxy_golang_abi::Phase;
use proxy_golang_host::engine::{
    self, BodyLength, Chain, Cx, Declared, EventView, FieldList, Fields, Filter, FilterStats, Hub,
    HubLimits, OpKind, Stream, StreamLimits, Views, Worker,
};
use proxy_golang_host::loader::load;

// The proxy's own, which is no part of the crate's interface.
#[allow(dead_code, unused_imports)]
#[path = "../src/proxy/fields.rs"]
mod fields;
#[allow(dead_code)]
#[path = "support/messages.rs"]
mod messages;
#[path = "../tests/support/mod.rs"]
mod support;
use fields::Message;
use messages::{Model, blind_edits, clock};
use support::{configure, event, guest, host_of};

/// View, call, and the three edits made blindly.
fn floor<F: Fields>(filter: &Filter, fields: &mut F) {
    let mut views = Views::new();
    fields.view(&mut views);
    let event = EventView {
        fields: &views,
        ..event(Phase::REQUEST_HEADERS, 0)
    };
    let mut seen = 0;
    filter.guest.event(black_box(&event), &mut |outcome| {
        let outcome = outcome.as_ref().expect("the guest answers CONTINUE");
        seen = outcome
            .ops
            .iter()
            .filter(|op| !matches!(op.kind, OpKind::Metric { .. }))
            .count();
    });
    assert_eq!(seen, 3);
    drop(views);
    fields.apply(&blind_edits());
}

fn round(c: &mut Criterion) {
    let hub = Hub::new(1, HubLimits::default());
    let (host, _) = host_of(Arc::clone(&hub));
    let library = load(&host, &guest("header_policy")).expect("the guest");
    let subscribed = configure(&library, "p").expect("a filter");
    let silent = Arc::new(Filter {
        name: "silent".into(),
        guest: Arc::clone(&subscribed.guest),
        declared: Declared {
            subscribe: 0,
            ..subscribed.declared.clone()
        },
        policy: subscribed.policy.clone(),
        features: subscribed.features,
        stats: Arc::new(FilterStats::default()),
    });
    let mut worker = Worker::new(hub, 0, clock);
    let mut group = c.benchmark_group("round");

    group.bench_function("floor, field list", |b| {
        b.iter_batched_ref(
            FieldList::request,
            |list| floor(&subscribed, list),
            BatchSize::NumIterations(32),
        );
    });
    group.bench_function("floor, header map", |b| {
        b.iter_batched_ref(
            Message::request,
            |m| floor(&subscribed, m),
            BatchSize::NumIterations(32),
        );
    });
    for (what, filter, timing) in [
        ("3 operations", &subscribed, false),
        ("3 operations, timed", &subscribed, true),
        ("unsubscribed", &silent, true),
    ] {
        let chain = Chain::new(vec![Arc::clone(filter)]);
        worker.set_timing(timing);
        group.bench_function(BenchmarkId::new("field list", what), |b| {
            b.iter_batched_ref(
                || (stream(&chain), Some(FieldList::request())),
                |(stream, head)| request(stream, head, &mut worker),
                BatchSize::NumIterations(32),
            );
        });
        group.bench_function(BenchmarkId::new("header map", what), |b| {
            b.iter_batched_ref(
                || (stream(&chain), Some(Message::request())),
                |(stream, head)| request(stream, head, &mut worker),
                BatchSize::NumIterations(32),
            );
        });
    }
    group.finish();
    let calls = |filter: &Filter| filter.stats.phase(Phase::REQUEST_HEADERS).calls.get();
    assert!(calls(&subscribed) > 1000, "the guest was called");
    assert_eq!(
        calls(&silent),
        0,
        "a phase that nobody subscribed to is no call"
    );
}

fn stream<F: Fields>(chain: &Chain) -> Stream<F> {
    Stream::new(chain.clone(), 7, StreamLimits::default())
}

fn request<F: Fields>(stream: &mut Stream<F>, head: &mut Option<F>, worker: &mut Worker) {
    let mut cx = Cx { worker, attrs: &() };
    let head = head.take().expect("each stream has one head");
    stream.request_head(&mut cx, head, BodyLength::Unknown);
}

criterion_group!(benches, round);
criterion_main!(benches);
