//! What the hot crossing allocates: nothing.

mod support;

use proxy_golang_abi::Phase;
use proxy_golang_host::engine::{EventView, FieldView};
use support::{call, configure, event, guest, host};

#[test]
fn a_call_with_three_changes_allocates_nothing() {
    let (host, _) = host();
    let library = proxy_golang_host::loader::load(&host, &guest("header_policy")).unwrap();
    let filter = configure(&library, "policy").unwrap();
    let fields: Vec<_> = (0..18)
        .map(|_| FieldView::new(b"accept", b"*/*"))
        .chain([
            FieldView::new(b"user-agent", b"a"),
            FieldView::new(b"x-request-id", b"b"),
        ])
        .collect();
    let event = EventView {
        fields: &fields,
        ..event(Phase::REQUEST_HEADERS, 0)
    };
    let once = || {
        call(&filter, &event, |outcome| {
            assert_eq!(outcome.unwrap().ops.len(), 3)
        })
    };
    // The first call of a thread gets its scratch.
    once();
    let seen = allocation_counter::measure(|| (0..100).for_each(|_| once()));
    assert_eq!((seen.count_total, seen.bytes_total), (0, 0));
}
