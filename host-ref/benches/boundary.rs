//! Cost of the boundary alone: an event is built, a C guest called, its result decoded. The floor is `empty`, the same
//! crossing with nothing to read and nothing to decode.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use proxy_golang_abi::Phase;
use proxy_golang_host::engine::{EventView, FieldList, Fields, Filter, OpKind, Views};
use proxy_golang_host::loader::{Library, load};

#[path = "../tests/support/mod.rs"]
mod support;
use support::{configure, event, guest, host};

const FIELDS: [(&str, &str); 20] = [
    (":method", "GET"),
    (":scheme", "https"),
    (":authority", "api.example.com"),
    (":path", "/v1/orders/12345?expand=items"),
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
        "Bearer eyJhbGciOiJIUzI1NiJ9.e30.ZRrHA1JJJW8opsbCGfG_HACGpVUMN_a9IV7pAx_Zmeo",
    ),
];

fn filter(library: &Arc<Library>, which: &str) -> Arc<Filter> {
    configure(library, which).expect("a filter")
}

fn boundary(c: &mut Criterion) {
    let (host, _) = host();
    let library = load(&host, &guest("header_policy")).expect("the guest");
    let (empty, reads, policy) = (
        filter(&library, "e"),
        filter(&library, "r"),
        filter(&library, "p"),
    );
    let mut list = FieldList::new();
    for (name, value) in FIELDS {
        list.push(name.as_bytes(), value.as_bytes());
    }
    let mut views = Views::new();
    list.view(&mut views);
    let mut group = c.benchmark_group("boundary");

    let nothing = event(Phase::REQUEST_HEADERS, 0);
    group.bench_function("empty", |b| {
        b.iter(|| {
            let mut action = None;
            empty.guest.event(black_box(&nothing), &mut |o| {
                action = o.as_ref().ok().map(|o| o.action)
            });
            action
        });
    });
    let request = |fields| EventView {
        fields,
        ..event(Phase::REQUEST_HEADERS, 0)
    };
    group.bench_function("read_20_fields", |b| {
        b.iter(|| {
            let mut ops = 0;
            reads.guest.event(black_box(&request(&views)), &mut |o| {
                ops = o.as_ref().map_or(0, |o| o.ops.len())
            });
            ops
        });
    });
    group.bench_function("read_20_fields_decode_3_changes", |b| {
        b.iter(|| {
            let mut bytes = 0;
            policy.guest.event(black_box(&request(&views)), &mut |o| {
                bytes = o.as_ref().map_or(0, |o| names(&o.ops))
            });
            assert!(bytes != 0);
            bytes
        });
    });
    group.bench_function("build_20_views", |b| {
        b.iter(|| {
            let mut views = Views::new();
            black_box(&list).view(&mut views);
            black_box(views.len())
        });
    });
    group.finish();
}

/// Looks at what was decoded, as an engine would.
fn names(ops: &[proxy_golang_host::engine::Op<'_>]) -> usize {
    let len = |op: &proxy_golang_host::engine::Op<'_>| match op.kind {
        OpKind::Set { name, value, .. } | OpKind::Add { name, value, .. } => {
            name.len() + value.len()
        }
        OpKind::Delete { name, .. } => name.len(),
        _ => 0,
    };
    ops.iter().map(len).sum()
}

criterion_group!(benches, boundary);
criterion_main!(benches);
