//! Configurations that are checked, refused, and exchanged while streams are in flight.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::config::{self, listener, pxg, pxg_with, text};
use crate::envoy::{self, Envoy};
use crate::guests;
use crate::phases::seen;
use crate::record::Record;
use crate::suite::{Suite, World};
use crate::support::until;

pub(crate) fn add(suite: &mut Suite) {
    suite.test("updates::validate_accepts_what_is_good", accepted);
    suite.test(
        "updates::validate_refuses_a_bad_guest_and_says_why",
        bad_guest,
    );
    suite.test(
        "updates::validate_refuses_a_bad_configuration_and_says_why",
        bad_config,
    );
    suite.test("updates::listeners_change_under_streams_in_flight", lds);
    suite.test("updates::filters_change_under_streams_in_flight", ecds);
    suite.test(
        "updates::a_refused_update_leaves_the_old_one_serving",
        refused,
    );
    suite.test("updates::every_100_ms_under_load", |w| {
        churn(w, Duration::from_secs(3), Duration::from_millis(100))
    });
    suite.long_test("updates::every_second_for_30_s_under_load", |w| {
        churn(w, Duration::from_secs(30), Duration::from_secs(1));
    });
}

/// What `envoy --mode validate` says of a listener with this filter, and whether it is content.
fn validate(w: &World, filter: Value) -> (bool, String) {
    let clusters = w.origins.clusters();
    let output = envoy::validate(
        w.version,
        &config::bootstrap(vec![listener("main", vec![filter])], &clusters),
    );
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[track_caller]
fn refuses(w: &World, filter: Value, parts: &[&str]) {
    let (is_good, said) = validate(w, filter);
    assert!(!is_good, "accepted:\n{said}");
    for part in parts {
        assert!(said.contains(part), "not said: {part}\n{said}");
    }
}

fn accepted(w: &World) {
    for filter in [
        pxg("trace-id", &guests::go(), json!({})),
        pxg(
            "header-policy",
            &guests::header_policy(),
            text("request set x-a 1\n"),
        ),
        pxg("script", &guests::script(), text("case *\n")),
    ] {
        let (is_good, said) = validate(w, filter);
        assert!(is_good, "{said}");
    }
}

fn bad_guest(w: &World) {
    refuses(
        w,
        pxg("f", Path::new("/nowhere/lib.so"), json!({})),
        &["/nowhere/lib.so"],
    );
    let no_library = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(no_library.path(), "no ELF file at all").expect("write it");
    refuses(w, pxg("f", no_library.path(), json!({})), &["ELF"]);
    // Envoy's own module is a library, and no guest.
    let no_guest = guests::module_folder().join("libproxy_golang.so");
    refuses(w, pxg("f", &no_guest, json!({})), &["pxg_guest_init_v1"]);
    refuses(
        w,
        pxg_with(
            "f",
            json!({ "guest": guests::script(), "filter": "nosuch" }),
        ),
        &["nosuch", "script"],
    );
}

fn bad_config(w: &World) {
    let refused = "case *\nrefuse the operator wrote nonsense\n";
    refuses(
        w,
        pxg("script", &guests::script(), text(refused)),
        &["the operator wrote nonsense"],
    );
    refuses(
        w,
        pxg(
            "header-policy",
            &guests::header_policy(),
            text("request xet x\n"),
        ),
        &["line 1, word 2", "xet"],
    );
    refuses(
        w,
        pxg("trace-id", &guests::go(), json!({ "header": "No Name" })),
        &["No Name"],
    );
    refuses(
        w,
        pxg_with("f", json!({ "guest": guests::script(), "pend_limt": "1s" })),
        &["pend_limt", "pend_limit"],
    );
    refuses(w, pxg_with("f", json!({ "chain": [] })), &["chain"]);
}

/// A proxy whose only listener comes from a file that can be exchanged.
pub(crate) struct Dynamic {
    pub(crate) envoy: Envoy,
    record: std::path::PathBuf,
}

impl Dynamic {
    pub(crate) fn start(w: &World, listener: &dyn Fn(&Path) -> Value) -> Self {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        let record = folder.path().join("record.jsonl");
        let watched = folder.path().join("watched");
        std::fs::create_dir(&watched).expect("a folder");
        write(&watched, listener(&record), 0);
        let mut bootstrap = config::bootstrap(Vec::new(), &w.origins.clusters());
        bootstrap["node"] = json!({ "id": "test", "cluster": "test" });
        bootstrap["dynamic_resources"] = json!({ "lds_config": { "path_config_source": {
            "path": watched.join("lds.json"),
            "watched_directory": { "path": watched },
        } } });
        let file = folder.path().join("envoy.json");
        std::fs::write(&file, bootstrap.to_string()).expect("write the configuration");
        // What was exchanged is dropped after this time; the default is ten minutes.
        let flags = [
            "--disable-hot-restart",
            "--concurrency",
            "2",
            "--drain-time-s",
            "2",
        ];
        let mut envoy = Envoy::start_file(w.version, &file, folder, &flags);
        until("the listener is there", || {
            envoy.read_listeners();
            envoy.has_listener("main")
        });
        Self { envoy, record }
    }

    /// Exchanges the listener, and waits until Envoy has said whether it takes it.
    pub(crate) fn update(&self, listener: &dyn Fn(&Path) -> Value, version: u32, is_taken: bool) {
        let stat = if is_taken {
            "update_success"
        } else {
            "update_rejected"
        };
        let stat = format!("listener_manager.lds.{stat}");
        let before = self.envoy.stat(&stat);
        write(
            &self.envoy.folder().join("watched"),
            listener(&self.record),
            version,
        );
        until("Envoy has read it", || self.envoy.stat(&stat) > before);
    }

    pub(crate) fn record(&self, case: &'static str) -> Record {
        Record::new(self.record.clone(), case)
    }
}

fn write(folder: &Path, listener: Value, version: u32) {
    let mut listener = listener;
    listener["@type"] = json!("type.googleapis.com/envoy.config.listener.v3.Listener");
    put(folder, "lds.json", listener, version);
}

/// Moves a new file to the place of the old one, which is what Envoy watches for.
fn put(folder: &Path, name: &str, resource: Value, version: u32) {
    let response = json!({ "version_info": version.to_string(), "resources": [resource] });
    let fresh = folder.join("fresh");
    std::fs::write(&fresh, response.to_string()).expect("write the resource");
    std::fs::rename(&fresh, folder.join(name)).expect("exchange it");
}

/// A listener whose guest sets the field x-version, and holds requests of the case `held`.
fn versioned(version: u32) -> impl Fn(&Path) -> Value {
    move |record: &Path| {
        let script = format!(
            "record {}\ncase held\nrequest_headers pend until key\nrequest_headers set x-version {version}\n\
             response_headers set x-version {version}\nlog log 0 .\ncase release\nrequest_headers release key\ncase *\n\
             request_headers set x-version {version}\n",
            record.display()
        );
        listener(
            "main",
            vec![pxg("script", &guests::script(), text(&script))],
        )
    }
}

fn version_of(envoy: &Envoy) -> String {
    let mirror = envoy.connect("main").get("/").json();
    seen(&mirror, "x-version")[0].to_owned()
}

fn lds(w: &World) {
    let dynamic = Dynamic::start(w, &versioned(1));
    let envoy = &dynamic.envoy;
    assert_eq!(version_of(envoy), "1");
    let mut held = envoy.connect("main");
    held.send("GET / HTTP/1.1\r\nhost: test\r\nx-case: held\r\n\r\n");
    let record = dynamic.record("held");
    until("it pends", || !record.lines().is_empty());
    dynamic.update(&versioned(2), 2, true);
    until("the new one serves", || version_of(envoy) == "2");
    // The one in flight ends on what it began with.
    let release = envoy
        .connect("main")
        .request("GET", "/", "x-case: release\r\n", b"");
    assert_eq!(release.status, 200);
    let reply = held.reply();
    assert_eq!((reply.status, reply.field("x-version")), (200, Some("1")));
    assert_eq!(seen(&reply.json(), "x-version"), ["1"]);
    record.calls("end", 1);
    // Its configuration goes with the old listener, once.
    drop(held);
    dynamic.record("-").calls("drop", 1);
}

/// The same for one filter of a listener that stays.
fn ecds(w: &World) {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let record = folder.path().join("record.jsonl");
    let watched = folder.path().join("watched");
    std::fs::create_dir(&watched).expect("a folder");
    let filter = |version: u32| {
        let listener = versioned(version)(&record);
        let filter = &listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"][0];
        json!({
            "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            "name": "guests",
            "typed_config": filter["typed_config"],
        })
    };
    put(&watched, "ecds.json", filter(1), 1);
    let discovered = json!({ "name": "guests", "config_discovery": {
        "config_source": {
            "path_config_source": {
                "path": watched.join("ecds.json"),
                "watched_directory": { "path": watched },
            },
            "resource_api_version": "V3",
        },
        "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter"],
    } });
    let mut bootstrap = config::bootstrap(
        vec![listener("main", vec![discovered])],
        &w.origins.clusters(),
    );
    bootstrap["node"] = json!({ "id": "test", "cluster": "test" });
    let envoy = Envoy::start(w.version, &bootstrap);
    until("the filter is there", || {
        envoy.connect("main").get("/").status == 200
    });
    assert_eq!(version_of(&envoy), "1");
    let mut held = envoy.connect("main");
    held.send("GET / HTTP/1.1\r\nhost: test\r\nx-case: held\r\n\r\n");
    let held_record = Record::new(record.clone(), "held");
    until("it pends", || !held_record.lines().is_empty());
    put(&watched, "ecds.json", filter(2), 2);
    until("the new one serves", || version_of(&envoy) == "2");
    let release = envoy
        .connect("main")
        .request("GET", "/", "x-case: release\r\n", b"");
    assert_eq!(release.status, 200);
    let reply = held.reply();
    assert_eq!((reply.status, reply.field("x-version")), (200, Some("1")));
    held_record.calls("end", 1);
    Record::new(record.clone(), "-").calls("drop", 1);
}

fn refused(w: &World) {
    let dynamic = Dynamic::start(w, &versioned(1));
    let bad = |_: &Path| {
        let script = "refuse not this one\n";
        listener("main", vec![pxg("script", &guests::script(), text(script))])
    };
    dynamic.update(&bad, 2, false);
    dynamic.envoy.wait_for_log("not this one");
    assert_eq!(version_of(&dynamic.envoy), "1");
    dynamic.update(&versioned(3), 3, true);
    until("the next good one serves", || {
        version_of(&dynamic.envoy) == "3"
    });
}

/// Every stream gets its answer, and memory stays flat.
fn churn(w: &World, span: Duration, every: Duration) {
    let versions = |version: u32| {
        move |record: &Path| {
            let script = versioned(version)(record);
            let mut listener = script;
            let filters =
                &mut listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"];
            let go = pxg(
                "trace-id",
                &guests::go(),
                json!({ "header": format!("x-trace-{version}") }),
            );
            filters.as_array_mut().expect("a list").insert(0, go);
            listener
        }
    };
    let dynamic = Dynamic::start(w, &versions(1));
    let address = dynamic.envoy.address("main");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (mut n, mut memory) = (1, Vec::new());
    let answers: u64 = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut answers = 0;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let mut client = crate::client::Client::new(address);
                        // A draining listener closes kept connections when it pleases: each asks for one answer.
                        client.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
                        let reply = client.reply();
                        assert_eq!(reply.status, 200);
                        assert!(!seen(&reply.json(), "x-version").is_empty());
                        answers += 1;
                    }
                    answers
                })
            })
            .collect();
        let begin = Instant::now();
        while begin.elapsed() < span || n <= 6 {
            n += 1;
            dynamic.update(&versions(n), n, true);
            memory.push(dynamic.envoy.memory());
            std::thread::sleep(every);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        clients
            .into_iter()
            .map(|client| client.join().expect("a client"))
            .sum()
    });
    assert!(answers > 0);
    until("the last one serves", || {
        version_of(&dynamic.envoy) == n.to_string()
    });
    // It goes up and down with what drains: the most of the first third, the least of the last.
    let third = memory.len() / 3;
    let early = memory[..=third].iter().max().copied().unwrap_or(0);
    let late = memory[memory.len() - 1 - third..].iter().min().copied();
    let late = late.unwrap_or(u64::MAX);
    assert!(
        late < early + (48 << 20),
        "{n} updates: {} MiB, then {} MiB",
        early >> 20,
        late >> 20
    );
}
