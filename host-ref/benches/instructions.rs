//! The engine's hot paths as small named cases, to count their instructions: a count is the same on a busy machine.
//!
//! `valgrind --tool=callgrind --toggle-collect='*instructions::measured*' <binary> <case> [items]` collects nothing but
//! the case, `items` times (100 unless told); callgrind's `Collected` divided by them is the cost of one. Without
//! valgrind it prints nanoseconds, the least of several passes. Without a case it takes all of them in turn.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proxy_golang_abi::{BodyMode, EndReason, Phase, phase_bit};
use proxy_golang_host::engine::{
    self, BodyLength, Chain, Cx, Declared, EventView, Fault, FieldList, FieldView, Fields, Filter,
    FilterStats, Hub, HubLimits, Outcome, PlainOp, Stream, StreamLimits, Take, Views, Worker,
};
use proxy_golang_host::loader::load;

// The proxy's own, which is no part of the crate's interface.
#[allow(dead_code, unused_imports, unreachable_pub)]
#[path = "../src/proxy/fields.rs"]
mod fields;
#[path = "support/messages.rs"]
mod messages;
#[path = "../tests/support/mod.rs"]
mod support;
use fields::Message;
use messages::{Model, blind_edits, clock};
use support::{configure, event, guest, host_of};

/// Items that are alive at once.
const BATCH: usize = 20;

/// The guest's configurations, and the thread's worker.
struct Bench {
    worker: Worker,
    policy: Arc<Filter>,
    empty: Arc<Filter>,
    pending: Arc<Filter>,
    silent: Arc<Filter>,
    items: usize,
    passes: usize,
}

impl Bench {
    fn new(items: usize, passes: usize) -> Self {
        let hub = Hub::new(1, HubLimits::default());
        let (host, _) = host_of(Arc::clone(&hub));
        let library = load(&host, &guest("header_policy")).expect("the guest");
        let [policy, empty, pending] =
            ["policy", "empty", "waits"].map(|which| configure(&library, which).expect("a filter"));
        let silent = Arc::new(Filter {
            name: "silent".into(),
            guest: Arc::clone(&policy.guest),
            declared: Declared {
                subscribe: 0,
                ..policy.declared.clone()
            },
            policy: policy.policy.clone(),
            features: policy.features,
            stats: Arc::new(FilterStats::default()),
        });
        Self {
            worker: Worker::new(hub, 0, clock),
            policy,
            empty,
            pending,
            silent,
            items,
            passes,
        }
    }

    /// Nanoseconds of one `act`, the least of the passes.
    fn run<T>(&self, mut make: impl FnMut() -> T, mut act: impl FnMut(&mut T)) -> f64 {
        // The first call of a thread gets its scratch, and the first streams what the worker keeps.
        (0..8).for_each(|_| act(&mut make()));
        // Few items at a time: the allocator is to be as warm as that of a proxy at work.
        let mut pass = |_| {
            let mut time = Duration::ZERO;
            for from in (0..self.items).step_by(BATCH) {
                let n = BATCH.min(self.items - from);
                let mut items: Vec<T> = (0..n).map(|_| make()).collect();
                let start = Instant::now();
                for item in &mut items {
                    measured(&mut act, item);
                }
                time += start.elapsed();
            }
            time
        };
        let least = (0..self.passes).map(&mut pass).min().unwrap_or_default();
        least.as_secs_f64() * 1e9 / self.items as f64
    }

    /// View, call, and the three edits made blindly: what remains without an engine.
    fn floor<F: Model>(&mut self) -> f64 {
        let filter = &self.policy;
        self.run(F::request, |fields| {
            let mut views = Views::new();
            fields.view(&mut views);
            assert_eq!(call(filter, &views), 3);
            drop(views);
            fields.apply(&blind_edits());
        })
    }

    /// The call through the boundary alone, with a view that is there already.
    fn boundary(&mut self, filter: &Arc<Filter>, operations: usize) -> f64 {
        let fields = FieldList::request();
        let mut views = Views::new();
        fields.view(&mut views);
        self.run(
            || (),
            |()| assert_eq!(call(filter, black_box(&views)), operations),
        )
    }

    /// A request's head on a stream that is there.
    fn round<F: Model>(&mut self, filter: &Arc<Filter>, timing: bool) -> f64 {
        let chain = Chain::new(vec![Arc::clone(filter)]);
        let mut worker = self.take_worker(timing);
        let time = self.run(
            || (stream(&chain), Some(F::request())),
            |(stream, head)| {
                let mut cx = cx(&mut worker);
                let head = head.take().expect("each stream has one head");
                stream.request_head(&mut cx, head, BodyLength::Unknown);
            },
        );
        self.worker = worker;
        time
    }

    /// Everything of an exchange without bodies, from its beginning to its end, in the memory of the one before.
    fn life<F: Model>(&mut self, filter: &Arc<Filter>) -> f64 {
        let chain = Chain::new(vec![Arc::clone(filter)]);
        let mut worker = self.take_worker(true);
        let mut stream = stream(&chain);
        stream.close(&mut cx(&mut worker), EndReason::COMPLETE);
        let time = self.run(
            || Some((F::request(), F::response())),
            |messages| {
                let (request, response) = messages.take().expect("used once");
                stream.renew(&chain, 7, StreamLimits::default());
                let mut cx = cx(&mut worker);
                stream.request_head(&mut cx, request, BodyLength::None);
                let request = stream.request_part(&mut cx);
                stream.response_head(&mut cx, response, BodyLength::Exact(0));
                let response = stream.response_part(&mut cx);
                assert!(stream.is_finished());
                drop(black_box((request, response)));
            },
        );
        self.worker = worker;
        time
    }

    /// PENDING, completed with three operations at the end of the batch, delivered and resumed.
    fn pending<F: Model>(&mut self) -> f64 {
        let chain = Chain::new(vec![Arc::clone(&self.pending)]);
        let mut worker = self.take_worker(true);
        let time = self.run(
            || (stream(&chain), Some(F::request())),
            |(stream, head)| {
                let head = head.take().expect("each stream has one head");
                stream.request_head(&mut cx(&mut worker), head, BodyLength::Unknown);
                worker.end_batch();
                let mail = worker.take_mail().expect("the guest completes");
                stream.deliver(&mut cx(&mut worker), mail);
                assert!(worker.take_mail().is_none());
            },
        );
        self.worker = worker;
        time
    }

    /// A body chunk through a stream that looks at each one. Views are not copied: the size is not to matter.
    fn body(&mut self, size: usize) -> f64 {
        let watched = Arc::new(Filter {
            name: "body".into(),
            guest: Arc::clone(&self.empty.guest),
            declared: Declared {
                subscribe: phase_bit(Phase::REQUEST_BODY),
                body_mode: [BodyMode::STREAM, BodyMode::SKIP],
                ..self.empty.declared.clone()
            },
            policy: self.empty.policy.clone(),
            features: self.empty.features,
            stats: Arc::new(FilterStats::default()),
        });
        let chain = Chain::new(vec![Arc::clone(&watched)]);
        let mut worker = self.take_worker(false);
        let bytes = Bytes::from(vec![b'x'; size]);
        let mut stream = stream::<FieldList>(&chain);
        stream.request_head(&mut cx(&mut worker), Model::request(), BodyLength::Unknown);
        drop(stream.request_part(&mut cx(&mut worker)));
        let time = self.run(
            || Some(bytes.clone()),
            |bytes| {
                let mut cx = cx(&mut worker);
                stream.request_data(&mut cx, bytes.take().expect("each chunk comes once"));
                drop(black_box(stream.request_part(&mut cx)));
            },
        );
        let calls = watched.stats.phase(Phase::REQUEST_BODY).calls.get();
        assert!(calls as usize > self.items, "{calls} calls of the guest");
        self.worker = worker;
        time
    }

    fn take_worker(&mut self, timing: bool) -> Worker {
        let hub = Hub::new(1, HubLimits::default());
        let mut worker = std::mem::replace(&mut self.worker, Worker::new(hub, 0, clock));
        worker.set_timing(timing);
        worker
    }
}

/// Calls the guest; the number of its operations.
fn call(filter: &Filter, fields: &[FieldView<'_>]) -> usize {
    struct Count(usize);
    impl Take for Count {
        fn plain(&mut self, _: u64, ops: &[PlainOp<'_>]) -> bool {
            self.0 = ops.len();
            true
        }

        fn pending(&mut self, _: u64, _: u64) -> bool {
            panic!("expected CONTINUE, found PENDING");
        }

        fn outcome(&mut self, outcome: Result<Outcome<'_>, Fault>) {
            panic!("expected a plain result, found {outcome:?}");
        }
    }
    let event = EventView {
        fields,
        ..event(Phase::REQUEST_HEADERS, 0)
    };
    let mut count = Count(0);
    filter.guest.event_to(black_box(&event), &mut count);
    count.0
}

fn stream<F: Fields>(chain: &Chain) -> Stream<F> {
    Stream::new(chain.clone(), 7, StreamLimits::default())
}

fn cx(worker: &mut Worker) -> Cx<'_> {
    Cx { worker, attrs: &() }
}

/// What callgrind's `--toggle-collect` names.
#[inline(never)]
fn measured<T>(act: &mut impl FnMut(&mut T), item: &mut T) {
    act(item);
    black_box(item);
}

type Case = fn(&mut Bench) -> f64;

/// Name, what it is.
const CASES: [(&str, Case); 15] = [
    ("call-empty", |b| b.boundary(&b.empty.clone(), 0)),
    ("call", |b| b.boundary(&b.policy.clone(), 3)),
    ("floor-list", Bench::floor::<FieldList>),
    ("floor-map", Bench::floor::<Message>),
    ("round-list", |b| {
        b.round::<FieldList>(&b.policy.clone(), false)
    }),
    ("round-map", |b| {
        b.round::<Message>(&b.policy.clone(), false)
    }),
    ("round-map-timed", |b| {
        b.round::<Message>(&b.policy.clone(), true)
    }),
    ("round-empty-list", |b| {
        b.round::<FieldList>(&b.empty.clone(), false)
    }),
    ("unsubscribed-list", |b| {
        b.round::<FieldList>(&b.silent.clone(), false)
    }),
    ("unsubscribed-map", |b| {
        b.round::<Message>(&b.silent.clone(), false)
    }),
    ("life-map", |b| b.life::<Message>(&b.policy.clone())),
    ("life-unsubscribed-map", |b| {
        b.life::<Message>(&b.silent.clone())
    }),
    ("pending-map", Bench::pending::<Message>),
    ("body-1k", |b| b.body(1 << 10)),
    ("body-1m", |b| b.body(1 << 20)),
];

fn main() {
    // Cargo's own arguments begin with dashes.
    let args: Vec<_> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let wanted = args.first().map(String::as_str);
    let items = args
        .get(1)
        .map_or(100, |n| n.parse().expect("a number of items"));
    let passes = if wanted.is_some() && args.len() > 1 {
        1
    } else {
        200
    };
    let cases = CASES
        .iter()
        .filter(|(name, _)| wanted.is_none_or(|wanted| wanted == *name));
    let mut bench = Bench::new(items, passes);
    let mut any = false;
    for (name, case) in cases {
        println!("{name:24} {:8.1} ns", case(&mut bench));
        any = true;
    }
    assert!(
        any,
        "no such case; expected one of {:?}",
        CASES.map(|(name, _)| name)
    );
}
