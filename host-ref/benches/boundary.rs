//! Cost of the boundary alone: an event is built, a C guest called, its result decoded. The floor is `empty`, the same
//! crossing with nothing to read and nothing to decode.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use proxy_golang_abi::Phase;
use proxy_golang_host::engine::{EventView, FieldList, Fields, Filter, OpKind, Views};
use proxy_golang_host::loader::{Library, load};

#[path = "support/head.rs"]
mod head;
#[path = "../tests/support/mod.rs"]
mod support;
use head::{FIELDS, PSEUDO};
use support::{configure, event, guest, host};

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
    for (name, value) in PSEUDO.iter().chain(&FIELDS) {
        list.push(name.as_bytes(), value.as_bytes());
    }
    let mut views = Views::new();
    list.view(&mut views);
    let mut group = c.benchmark_group("boundary");

    let nothing = event(Phase::REQUEST_HEADERS, 0);
    // Twice: what differs between the two is noise.
    for name in ["empty", "empty, again"] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut action = None;
                empty.guest.event(black_box(&nothing), &mut |o| {
                    action = o.as_ref().ok().map(|o| o.action)
                });
                action
            });
        });
    }
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
