//! Modules and guest libraries as operators may have them: what is odd, and works all the same.

use serde_json::{Value, json};

use crate::config::{bootstrap, listener, pxg, pxg_with, text};
use crate::envoy::Envoy;
use crate::guests;
use crate::phases::seen;
use crate::record::Record;
use crate::suite::{Suite, World};
use crate::support::until;
use crate::updates::Dynamic;

pub(crate) fn add(suite: &mut Suite) {
    suite.test("libraries::two_go_runtimes_in_one_process", two_runtimes);
    suite.test("libraries::a_module_that_may_be_closed_stays", closed);
    suite.test("libraries::batch_end_can_be_switched_off", no_batch_end);
}

fn two_runtimes(w: &World) {
    let authority = format!("http://{}/authority", w.origins.clusters()["app"].0);
    let entry = |name: &str, guest: &std::path::Path, filter: &str, config: Value| json!({ "name": name, "guest": guest, "filter": filter, "config": config });
    let chain = json!({ "chain": [
        entry("trace", &guests::go_bundle(), "trace-id", json!({ "header": "x-first" })),
        entry("check", &guests::go(), "token-check", json!({ "authority": authority, "timeout_ms": 5000 })),
        entry("again", &guests::go(), "trace-id", json!({ "header": "x-second" })),
        entry("faulty", &guests::go(), "faulty", json!({})),
    ] });
    let listeners = vec![listener("main", vec![pxg_with("both", chain)])];
    let envoy = Envoy::start(w.version, &bootstrap(listeners, &w.origins.clusters()));
    envoy.wait_for_log("is Go runtime number 2 in this process");
    let address = envoy.address("main");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || {
                let mut client = crate::client::Client::new(address);
                for i in 0..50 {
                    // Panics, and answers of goroutines, of one runtime beside calls of the other.
                    let fault = if i % 10 == 9 {
                        "x-fault: panic\r\n"
                    } else {
                        ""
                    };
                    let fields = format!("authorization: Bearer x\r\n{fault}");
                    let reply = client.request("GET", "/", &fields, b"");
                    assert_eq!(reply.status, if fault.is_empty() { 200 } else { 500 });
                    if fault.is_empty() {
                        let mirror = reply.json();
                        assert_eq!(seen(&mirror, "x-first").len(), 1);
                        assert_eq!(seen(&mirror, "x-second").len(), 1);
                    }
                }
            });
        }
    });
}

/// `do_not_close: false`: with the last configuration Envoy closes the module, whose threads and guests stay.
fn closed(w: &World) {
    let with_ours = |record: &std::path::Path| {
        let script = format!(
            "record {}\ncase pends\nrequest_headers pend 300\nrequest_headers set x-a 1\n",
            record.display()
        );
        let mut script = pxg("script", &guests::script(), text(&script));
        let mut go = pxg("trace-id", &guests::go(), json!({}));
        for filter in [&mut script, &mut go] {
            filter["typed_config"]["dynamic_module_config"]["do_not_close"] = json!(false);
        }
        listener("main", vec![script, go])
    };
    let without = |_: &std::path::Path| listener("main", Vec::new());
    let dynamic = Dynamic::start(w, &with_ours);
    let traced = || {
        let reply = dynamic.envoy.connect("main").get("/");
        (reply.status, reply.field("x-trace-id").is_some())
    };
    // Before any stream keeps the module by what its threads have in it.
    dynamic.update(&without, 1, true);
    dynamic.record("-").calls("drop", 1);
    dynamic.update(&with_ours, 2, true);
    for round in 1..3 {
        until("our filters serve", || traced() == (200, true));
        // One in flight, whose guest answers from a thread, keeps the old configuration until it has its answer.
        let mut held = dynamic.envoy.connect("main");
        held.send("GET / HTTP/1.1\r\nhost: test\r\nx-case: pends\r\n\r\n");
        let record = dynamic.record("pends");
        until("it pends", || {
            record
                .lines()
                .iter()
                .filter(|l| l["call"] == "event")
                .count()
                >= round
        });
        dynamic.update(&without, 2 * round as u32 + 1, true);
        until("they are gone", || traced() == (200, false));
        assert_eq!(seen(&held.reply().json(), "x-a"), ["1"], "round {round}");
        drop(held);
        // The last configuration is gone, and with it what Envoy knows of the module.
        dynamic.record("-").calls("drop", round + 1);
        dynamic.update(&with_ours, 2 * round as u32 + 2, true);
    }
    until("our filters serve", || traced() == (200, true));
}

fn no_batch_end(w: &World) {
    let folder = tempfile::tempdir().expect("a folder");
    let script = format!(
        "record {}\ncase pends\nrequest_headers pend 1\nrequest_headers set x-a 1\ncase count\nrequest_headers count\n",
        folder.path().join("record.jsonl").display()
    );
    let with = |name: &str, batch_end: bool| {
        let script = json!({ "name": name, "guest": guests::script(), "config": script, "batch_end": batch_end });
        let go = json!({ "name": format!("{name}-go"), "guest": guests::go(), "filter": "faulty", "config": {}, "batch_end": batch_end });
        listener(name, vec![pxg_with(name, json!({ "chain": [script, go] }))])
    };
    let listeners = vec![with("off", false), with("on", true)];
    let envoy = Envoy::start(w.version, &bootstrap(listeners, &w.origins.clusters()));
    let record = Record::new(folder.path().join("record.jsonl"), "count");
    let mut counts = 0;
    let mut batches = || {
        assert_eq!(
            envoy
                .connect("off")
                .request("GET", "/", "x-case: count\r\n", b"")
                .status,
            200
        );
        counts += 1;
        record.calls("count", counts)[counts - 1]["batches"]
            .as_u64()
            .expect("a number")
    };
    for (name, ends) in [("off", false), ("on", true)] {
        for fields in ["x-case: pends\r\n", "x-fault: async-late\r\n"] {
            let reply = envoy.connect(name).request("GET", "/", fields, b"");
            assert_eq!(reply.status, 200, "{name}: {fields}");
        }
        assert_eq!(batches() > 0, ends, "{name}");
    }
    until("it is in the statistics", || {
        let recipe = envoy.stats("pxg_recipe.*batch_end");
        let of = |name: &str| {
            let all: Vec<_> = recipe
                .iter()
                .filter(|(key, _)| key.contains(&format!(".{name}.")))
                .map(|(_, n)| *n)
                .collect();
            all
        };
        (of("off"), of("on")) == (vec![0], vec![1])
    });
}
