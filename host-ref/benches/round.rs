//! One REQUEST_HEADERS round with a C guest in a shared library: the view of 20 fields is built, the guest called, its
//! three operations validated and applied. On the engine's own field list, and on the HTTP library's header map as
//! `pxg-host` has it. The floor does the same without the engine: no phases, no chain, no validation.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::LazyLock;
use std::time::Instant;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use proxy_golang_abi::Phase;
use proxy_golang_host::engine::{
    self, BodyLength, Chain, Cx, Declared, Edit, EventView, FieldList, Fields, Filter, FilterStats,
    Hub, HubLimits, OpKind, Stream, StreamLimits, Views, Worker,
};
use proxy_golang_host::loader::load;

// The proxy's own, which is no part of the crate's interface.
#[allow(dead_code, unused_imports)]
#[path = "../src/proxy/fields.rs"]
mod fields;
#[path = "../tests/support/mod.rs"]
mod support;
use fields::{Message, Start};
use support::{configure, event, guest, host_of};

const FIELDS: [(&str, &str); 16] = [
    (
        "user-agent",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
    ),
    ("accept", "application/json, text/plain, */*"),
    ("accept-language", "en-GB,en;q=0.9,de;q=0.8"),
    ("accept-encoding", "gzip, deflate, br"),
    ("referer", "https://www.example.com/account/orders"),
    (
        "cookie",
        "session=0123456789abcdef0123456789abcdef; theme=dark",
    ),
    ("x-request-id", "7f3c2f6e-1f0b-4a58-9a0e-8a1d3a4c9b11"),
    ("x-forwarded-for", "203.0.113.7"),
    ("x-forwarded-proto", "https"),
    ("x-internal", "secret"),
    ("cache-control", "no-cache"),
    ("dnt", "1"),
    ("sec-fetch-dest", "empty"),
    ("sec-fetch-mode", "cors"),
    ("sec-fetch-site", "same-site"),
    (
        "authorization",
        "Bearer eyJhbGciOiJIUzI1NiJ9.e30.ZRrHA1JJJW8opsbCGfG",
    ),
];

const PSEUDO: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "http"),
    (":authority", "api.example.com"),
    (":path", "/v1/orders/12345?expand=items"),
];

fn list() -> FieldList {
    let mut list = FieldList::with_capacity(32, 2048);
    for (name, value) in PSEUDO.iter().chain(&FIELDS) {
        list.push(name.as_bytes(), value.as_bytes());
    }
    list
}

fn message() -> Message {
    let mut headers = HeaderMap::with_capacity(32);
    headers.insert("host", HeaderValue::from_static(PSEUDO[2].1));
    for (name, value) in FIELDS {
        headers.append(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    Message {
        start: Start::Request {
            method: Method::GET,
            uri: Uri::from_static(PSEUDO[3].1),
            https: false,
        },
        headers,
    }
}

/// Monotonic nanoseconds, as the proxy's clock has them.
fn clock() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

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
    let value = black_box(&FIELDS[0].1).as_bytes();
    let edits = [
        Edit::Set {
            name: b"x-agent",
            value,
            sensitive: false,
        },
        Edit::Add {
            name: b"x-trace",
            value: FIELDS[6].1.as_bytes(),
            sensitive: false,
        },
        Edit::Delete {
            name: b"x-internal",
        },
    ];
    drop(views);
    fields.apply(&edits);
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
            list,
            |list| floor(&subscribed, list),
            BatchSize::NumIterations(32),
        );
    });
    group.bench_function("floor, header map", |b| {
        b.iter_batched_ref(
            message,
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
                || (stream(&chain), Some(list())),
                |(stream, head)| request(stream, head, &mut worker),
                BatchSize::NumIterations(32),
            );
        });
        group.bench_function(BenchmarkId::new("header map", what), |b| {
            b.iter_batched_ref(
                || (stream(&chain), Some(message())),
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
