//! Faults of the module itself: they end the stream on which they happen, and nothing else.

use serde_json::json;

use crate::client::Client;
use crate::config::{bootstrap, listener, pxg_with};
use crate::envoy::Envoy;
use crate::guests;
use crate::record::Record;
use crate::suite::{Suite, World};
use crate::support::until;

pub(crate) fn add(suite: &mut Suite) {
    suite.test("module::a_panic_of_its_own_in_each_hook", each_hook);
    suite.test(
        "module::a_panic_over_one_stream_in_the_turn_of_all_spares_the_others",
        one_of_many,
    );
}

/// An Envoy with one worker, whose module panics once at the place whose name is written into a file.
struct Faulty {
    envoy: Envoy,
    folder: tempfile::TempDir,
}

/// The pause before the response's headers is long enough that the completion comes as mail, also where the thread that
/// calls the guest is held up.
const CASES: &str = "
case all
request_headers pend 1
request_headers mode request stream
request_body pend 1
request_trailers log 0 .
response_headers pend 20
response_headers mode response stream
response_body log 0 .
response_trailers log 0 .
log log 0 .
case until
request_headers pend until key
case release
request_headers release key
case never
request_headers pend forever
";

impl Faulty {
    fn start(w: &World) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let script = format!(
            "record {}{CASES}",
            folder.path().join("record.jsonl").display()
        );
        let with_limit = |limit: &str| {
            let entry = json!({ "guest": guests::script(), "config": script, "pend_limit": limit });
            pxg_with("script", entry)
        };
        let listeners = vec![
            listener("main", vec![with_limit("20s")]),
            listener("short", vec![with_limit("200ms")]),
        ];
        let config = bootstrap(listeners, &w.origins.clusters());
        let flags = ["--disable-hot-restart", "--concurrency", "1"];
        let file = folder.path().join("fault");
        let envoy = Envoy::start_in(w.version, &config, &flags, &[("PXG_ENVOY_FAULT", &file)]);
        Self { envoy, folder }
    }

    /// Has it panic once, at this point.
    fn arm(&self, point: &str) {
        std::fs::write(self.folder.path().join("fault"), point).expect("write a file");
    }

    fn has_fired(&self) -> bool {
        !self.folder.path().join("fault").exists()
    }

    fn record(&self, case: &'static str) -> Record {
        Record::new(self.folder.path().join("record.jsonl"), case)
    }

    /// This many connections, each with a request of a case.
    fn ask(&self, listener: &str, case: &str, n: usize) -> Vec<Client> {
        let ask = |_| {
            let mut client = self.envoy.connect(listener);
            client.send(format!(
                "GET / HTTP/1.1\r\nhost: test\r\nx-case: {case}\r\nconnection: close\r\n\r\n"
            ));
            client
        };
        (0..n).map(ask).collect()
    }
}

fn each_hook(w: &World) {
    let faulty = Faulty::start(w);
    let exchange = || {
        let mut client = faulty.envoy.connect("main");
        client.send(
            "POST /h2/trailers HTTP/1.1\r\nhost: test\r\nx-case: all\r\nte: trailers\r\nconnection: close, te\r\n\
             transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-kept: 1\r\n\r\n",
        );
        let all = String::from_utf8_lossy(&client.rest()).into_owned();
        let is_whole =
            all.starts_with("HTTP/1.1 200") && all.contains("hello") && all.ends_with("\r\n\r\n");
        (is_whole, all)
    };
    // Which hook, whether the answer has left by then, and whether the guest has had the stream before.
    let hooks = [
        ("request_headers", false),
        ("request_body", false),
        ("request_trailers", false),
        ("response_headers", false),
        ("response_body", false),
        ("response_trailers", false),
        ("scheduled", false),
        ("mail", false),
        ("filter_new", false),
        ("stream_complete", true),
        ("destroy", true),
    ];
    let mut streams = 0;
    for when in ["before", "after"] {
        for (hook, survives) in hooks {
            let point = format!("{when} {hook}");
            faulty.arm(&point);
            let (is_whole, all) = exchange();
            until(&format!("it has panicked {point}"), || faulty.has_fired());
            assert_eq!(is_whole, survives, "{point}: {all}");
            faulty
                .envoy
                .wait_for_log(&format!("a fault of the module itself in {hook}:"));
            let (is_whole, all) = exchange();
            assert!(is_whole, "after a panic {point}: {all}");
            let is_unseen = hook == "filter_new" || point == "before request_headers";
            streams += if is_unseen { 1 } else { 2 };
            // Guests hear of the end of each stream that they had.
            faulty.record("all").calls("end", streams);
        }
    }
    until("no stream pends", || {
        let pending = faulty.envoy.stats("pxg_guest_pending\\.");
        !pending.is_empty() && pending.values().all(|n| *n == 0)
    });
    assert_eq!(faulty.envoy.stat("http.main.downstream_rq_active"), 0);
}

fn one_of_many(w: &World) {
    const STREAMS: usize = 20;
    let faulty = Faulty::start(w);
    for (place, listener, case, status) in [
        ("before mail", "main", "until", "200"),
        ("before deadline", "short", "never", "500"),
    ] {
        // A deadline comes by itself: the fault waits for it.
        if place == "before deadline" {
            faulty.arm(place);
        }
        let clients = faulty.ask(listener, case, STREAMS);
        let record = faulty.record(case);
        if case == "until" {
            until("all of them pend", || {
                let lines = record.lines();
                lines
                    .iter()
                    .filter(|l| l["phase"] == "request_headers")
                    .count()
                    == STREAMS
            });
            faulty.arm(place);
            faulty.ask("main", "release", 1).remove(0).rest();
        }
        let answers = clients.into_iter().map(|mut client| client.rest());
        let lost = answers.filter(|answer| {
            let expected = format!("HTTP/1.1 {status}");
            !answer.starts_with(expected.as_bytes())
        });
        assert_eq!(lost.count(), 1, "{place}");
        assert!(faulty.has_fired());
        record.calls("end", STREAMS);
    }
}
