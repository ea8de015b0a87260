//! Cost of the engine alone: the guest is a closure in this process, and the clock stands still. The floor is `call`,
//! the same closure called directly.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use proxy_golang_abi::feature::Feature;
use proxy_golang_abi::{Action, BodyMode, EndReason, Phase, Status, Target, phase_bit};
use proxy_golang_host::engine::{
    BodyLength, Chain, Cx, Declared, EventView, Fault, FieldList, Fields, Filter, FilterStats,
    Guest, Hub, HubLimits, Op, OpKind, Outcome, Policy, Stream, StreamLimits, Views, Worker,
};

#[path = "support/head.rs"]
mod head;
use head::{FIELDS, PSEUDO};

/// Answers CONTINUE, at headers with `edits` operations.
struct Trivial {
    edits: usize,
}

impl Guest for Trivial {
    fn event(&self, event: &EventView<'_>, take: &mut dyn FnMut(Result<Outcome<'_>, Fault>)) {
        let mut outcome = Outcome::of(Action::CONTINUE, event.user);
        let target = Target::HEADERS;
        if event.phase == Phase::REQUEST_HEADERS {
            let op = |kind| Op {
                must: false,
                sensitive: false,
                kind,
            };
            if self.edits > 0 {
                outcome.ops.push(op(OpKind::Set {
                    target,
                    name: b"x-trace",
                    value: b"0123456789abcdef",
                }));
            }
            if self.edits > 1 {
                outcome.ops.push(op(OpKind::Add {
                    target,
                    name: b"x-policy",
                    value: b"checked",
                }));
            }
            if self.edits > 2 {
                outcome.ops.push(op(OpKind::Delete {
                    target,
                    name: b"x-internal",
                }));
            }
        }
        take(Ok(outcome));
    }

    fn cancel(&self, _: u64, _: u64, _: u64, _: u32) {}
    fn stream_end(&self, _: u64, _: u64, _: u32) {}
    fn batch_end(&self, _: u32) {}

    fn library(&self) -> u32 {
        1
    }

    fn record_metric(&self, _: u32, _: i64) -> Status {
        Status::OK
    }

    fn config(&self) -> u64 {
        1
    }
}

fn chain(phases: &[Phase], edits: usize, body: BodyMode) -> Chain {
    let mut features = [0; 4];
    for (feature, _) in Feature::ALL {
        features = feature.add_to(features);
    }
    Chain::new(vec![Arc::new(Filter {
        name: "trivial".into(),
        guest: Arc::new(Trivial { edits }),
        declared: Declared {
            subscribe: phases.iter().map(|p| phase_bit(*p)).sum(),
            body_mode: [body, BodyMode::SKIP],
            max_body: [4 << 20; 2],
            ..Declared::default()
        },
        policy: Policy::default(),
        features,
        stats: Arc::new(FilterStats::default()),
    })])
}

fn head() -> FieldList {
    let mut list = FieldList::with_capacity(32, 2048);
    for (name, value) in PSEUDO.iter().chain(&FIELDS) {
        list.push(name.as_bytes(), value.as_bytes());
    }
    list
}

fn stream(chain: &Chain) -> Stream<FieldList> {
    Stream::new(chain.clone(), 7, StreamLimits::default())
}

fn engine(c: &mut Criterion) {
    let hub = Hub::new(1, HubLimits::default());
    let mut worker = Worker::new(hub, 0, || 1);
    worker.set_timing(false);
    let mut group = c.benchmark_group("engine");

    // The floor: the guest's own time, and the view of 20 fields.
    let guest = Trivial { edits: 3 };
    let list = head();
    let call = |fields: &[_]| {
        let event = EventView {
            phase: Phase::REQUEST_HEADERS,
            flags: proxy_golang_abi::EventFlags(0),
            worker: 0,
            user: 0,
            stream: 1,
            token: 0,
            arg: 0,
            fields,
            trailers: &[],
            peer_fields: &[],
            peer_trailers: &[],
            chunks: &[],
            body_offset: 0,
            attrs: &[],
        };
        guest.event(&event, &mut |result| drop(black_box(result)));
    };
    group.bench_function("call", |b| b.iter(|| call(&[])));
    group.bench_function("call with a view of 20 fields", |b| {
        b.iter(|| {
            let mut views = Views::new();
            black_box(&list).view(&mut views);
            call(&views);
        });
    });

    // One event on a stream that is there: the view, the call, validation, three operations.
    for (name, phases, edits) in [
        ("headers, unsubscribed", &[][..], 0),
        ("headers, no operation", &[Phase::REQUEST_HEADERS][..], 0),
        ("headers, 3 operations", &[Phase::REQUEST_HEADERS][..], 3),
    ] {
        let chain = chain(phases, edits, BodyMode::SKIP);
        group.bench_function(name, |b| {
            b.iter_batched(
                || (stream(&chain), head()),
                |(mut stream, head)| {
                    let mut cx = Cx {
                        worker: &mut worker,
                        attrs: &(),
                    };
                    stream.request_head(&mut cx, head, BodyLength::Unknown);
                    stream
                },
                BatchSize::SmallInput,
            );
        });
    }

    // The whole life of a stream.
    let edits = chain(&[Phase::REQUEST_HEADERS], 3, BodyMode::SKIP);
    group.bench_function("life of a stream, 3 operations", |b| {
        b.iter_batched(
            head,
            |head| {
                let mut stream = stream(&edits);
                let mut cx = Cx {
                    worker: &mut worker,
                    attrs: &(),
                };
                stream.request_head(&mut cx, head, BodyLength::None);
                let part = black_box(stream.request_part(&mut cx));
                stream.close(&mut cx, EndReason::COMPLETE);
                (stream, part)
            },
            BatchSize::SmallInput,
        );
    });

    // Views of bodies are not copied: what they cost does not depend on their size.
    let body = chain(&[Phase::REQUEST_BODY], 0, BodyMode::STREAM);
    for (name, size) in [("a chunk of 1 KB", 1 << 10), ("a chunk of 1 MB", 1 << 20)] {
        let bytes = Bytes::from(vec![b'x'; size]);
        let mut stream = stream(&body);
        let mut cx = Cx {
            worker: &mut worker,
            attrs: &(),
        };
        stream.request_head(&mut cx, head(), BodyLength::Unknown);
        drop(stream.request_part(&mut cx));
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut cx = Cx {
                    worker: &mut worker,
                    attrs: &(),
                };
                stream.request_data(&mut cx, bytes.clone());
                drop(black_box(stream.request_part(&mut cx)));
            });
        });
        let mut cx = Cx {
            worker: &mut worker,
            attrs: &(),
        };
        stream.close(&mut cx, EndReason::COMPLETE);
    }
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
