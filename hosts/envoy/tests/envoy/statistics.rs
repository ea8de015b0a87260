//! The statistics of `spec/15-logging-metrics.md` in Envoy's, attributes that depend on its version, and configurations in
//! files.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

use crate::config::{self, listener, pxg_with};
use crate::envoy::{self, Envoy};
use crate::guests;
use crate::record::Record;
use crate::suite::{Suite, World};
use crate::support::until;

pub(crate) fn add(suite: &mut Suite) {
    suite.test("statistics::have_the_names_of_the_spec", names);
    suite.test("statistics::go_on_over_updates", updates);
    suite.test("statistics::steps_of_the_recipe_can_be_off", recipe);
    suite.test(
        "statistics::guests_may_leave_the_processors_of_a_pinned_envoy",
        pinned,
    );
    suite.test("statistics::bytes_and_attempts_are_attributes", sizes);
    suite.test("statistics::a_configuration_may_be_a_file", files);
}

/// Two guests that share a library: names of an entry and of a filter are told apart.
const CHAIN: &str = "counter first_hits\ncase works\nrequest_headers metric 3\ncase fails\nrequest_headers error no\n";

fn chain(entries: &[(&str, &str, Value)]) -> Value {
    let entries = entries.iter().map(|(name, config, more)| {
        let mut entry = json!({ "name": name, "guest": guests::script(), "filter": "script", "config": config });
        for (key, value) in more.as_object().into_iter().flatten() {
            entry[key] = value.clone();
        }
        entry
    });
    pxg_with("edge", json!({ "chain": entries.collect::<Vec<_>>() }))
}

fn bootstrap(w: &World, filter: Value) -> Value {
    config::bootstrap(vec![listener("main", vec![filter])], &w.setup().clusters)
}

/// With names for Prometheus as the spec has them.
fn unprefixed(mut config: Value) -> Value {
    config["layered_runtime"] = json!({ "layers": [{ "name": "static", "static_layer": {
        "envoy.reloadable_features.dynamic_modules_strip_custom_stat_prefix": true,
    } }] });
    config
}

/// What Prometheus reads, once everything before this call has been handed over.
fn scrape(envoy: &Envoy, prefix: &str) -> BTreeMap<String, u64> {
    let read = || -> BTreeMap<String, u64> {
        let text = envoy.admin("GET", "/stats/prometheus?filter=pxg_").text();
        let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
        lines
            .filter_map(|(series, value)| {
                let series = series.strip_prefix(prefix)?;
                Some((series.to_owned(), value.parse().ok()?))
            })
            .collect()
    };
    let handed_over = "pxg_statistics_published_total{}";
    let before = read().get(handed_over).copied();
    let mut now = BTreeMap::new();
    // Envoy answers and takes counts on one thread: what begins after `before` is whole.
    until("the module hands its counts over", || {
        now = read();
        now.get(handed_over).copied() > before
    });
    now
}

fn ask(envoy: &Envoy, case: &str, path: &str, body: &[u8]) -> u16 {
    let fields = format!("x-case: {case}\r\n");
    let method = if body.is_empty() { "GET" } else { "POST" };
    envoy
        .connect("main")
        .request(method, path, &fields, body)
        .status
}

fn names(w: &World) {
    let filter = chain(&[
        ("one", CHAIN, json!({})),
        (
            "two",
            "case works\nresponse_headers set x-two 1\n",
            json!({}),
        ),
    ]);
    let config = bootstrap(w, filter);
    for (config, prefix) in [
        (config.clone(), "envoy_dynamicmodulescustom_"),
        (unprefixed(config), ""),
    ] {
        let envoy = Envoy::start(w.version, &config);
        for (case, status) in [("works", 200), ("works", 200), ("fails", 500)] {
            assert_eq!(ask(&envoy, case, "/", b""), status);
        }
        let stats = scrape(&envoy, prefix);
        let of = |name: &str, config: &str, more: &str| {
            let series =
                format!("{name}{{guest=\"script\",filter=\"script\",config=\"{config}\"{more}}}");
            stats.get(&series).copied()
        };
        let headers = ",phase=\"request_headers\"";
        assert_eq!(of("pxg_guest_calls_total", "one", headers), Some(3));
        assert_eq!(of("pxg_guest_calls_total", "two", headers), Some(2));
        assert_eq!(of("pxg_guest_errors_total", "one", headers), Some(1));
        assert_eq!(of("pxg_guest_panics_total", "one", headers), Some(0));
        assert_eq!(of("pxg_guest_pending_total", "two", headers), Some(0));
        assert_eq!(of("pxg_guest_pending", "two", ""), Some(0));
        for (reason, n) in [("error", 1), ("panic", 0), ("deadline", 0)] {
            let reason = format!(",reason=\"{reason}\"");
            assert_eq!(of("pxg_guest_failures_total", "one", &reason), Some(n));
        }
        for name in [
            "cancels",
            "stale_completions",
            "operations_skipped",
            "bypassed",
            "late_replies",
        ] {
            assert_eq!(of(&format!("pxg_guest_{name}_total"), "one", ""), Some(0));
        }
        // The histogram: as many calls as there were, and no bucket with more than the next.
        assert_eq!(of("pxg_guest_call_seconds_count", "one", headers), Some(3));
        let bucket = |bound: &str| {
            let labels = format!("{headers},le=\"{bound}\"");
            of("pxg_guest_call_seconds_bucket", "one", &labels)
        };
        assert_eq!(bucket("+Inf"), Some(3));
        assert!(bucket("0.00001") <= bucket("0.001") && bucket("0.001") <= Some(3));
        let user = "pxg_user_script_first_hits{guest=\"script\"}";
        assert_eq!(stats.get(user), Some(&6));
    }
}

fn updates(w: &World) {
    let folder = tempfile::tempdir().expect("a folder");
    let lds = folder.path().join("lds.json");
    let record = folder.path().join("record.jsonl");
    let put = |generation: u32| {
        let config = format!(
            "record {}\n{CHAIN}case unused-{generation}\n",
            record.display()
        );
        let filter = chain(&[("one", &config, json!({}))]);
        let mut resource = listener("main", vec![filter]);
        resource["@type"] = json!("type.googleapis.com/envoy.config.listener.v3.Listener");
        let new = folder.path().join("new.json");
        std::fs::write(&new, json!({ "resources": [resource] }).to_string()).expect("write it");
        std::fs::rename(&new, &lds).expect("put it in its place");
    };
    put(1);
    let mut config = config::bootstrap(Vec::new(), &w.setup().clusters);
    config["node"] = json!({ "id": "test", "cluster": "test" });
    config["dynamic_resources"] =
        json!({ "lds_config": { "path_config_source": { "path": lds } } });
    let flags = [
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "--drain-time-s",
        "1",
    ];
    let mut envoy = Envoy::start_with(w.version, &unprefixed(config), &flags);
    until("the listener is there", || {
        envoy.read_listeners();
        envoy.has_listener("main")
    });
    assert_eq!(ask(&envoy, "works", "/", b""), 200);
    let series = |name: &str, more: &str| {
        format!("{name}{{guest=\"script\",filter=\"script\",config=\"one\"{more}}}")
    };
    let calls = series("pxg_guest_calls_total", ",phase=\"request_headers\"");
    assert_eq!(scrape(&envoy, "").get(&calls), Some(&1));
    put(2);
    until("the configuration that counted so far is gone", || {
        std::fs::read_to_string(&record).is_ok_and(|text| text.contains("\"drop\""))
    });
    envoy.read_listeners();
    // Envoy has forgotten with it what it alone used.
    let stats = scrape(&envoy, "");
    assert_eq!(stats.get(&calls), Some(&1), "{stats:?}");
    assert_eq!(
        stats.get("pxg_user_script_first_hits{guest=\"script\"}"),
        Some(&3)
    );
    assert_eq!(ask(&envoy, "works", "/", b""), 200);
    assert_eq!(scrape(&envoy, "").get(&calls), Some(&2));
}

fn recipe(w: &World) {
    // Long enough that each completion comes as mail.
    let pends = "case pends\nrequest_headers pend 50\n";
    let off = json!({ "batch_end": false, "warm_up": false });
    let filter = chain(&[("on", pends, json!({})), ("off", pends, off)]);
    let envoy = Envoy::start(w.version, &unprefixed(bootstrap(w, filter)));
    assert_eq!(ask(&envoy, "pends", "/", b""), 200);
    let stats = scrape(&envoy, "");
    for (config, value) in [("on", 1), ("off", 0)] {
        for step in ["batch_end", "warm_up"] {
            let series = format!(
                "pxg_recipe{{guest=\"script\",filter=\"script\",config=\"{config}\",step=\"{step}\"}}"
            );
            assert_eq!(stats.get(&series), Some(&value), "{series}");
        }
    }
    let sum = |name: &str| -> u64 {
        let of =
            |worker: u32| stats.get(&format!("pxg_worker_{name}_total{{worker=\"{worker}\"}}"));
        (0..2).map(|worker| of(worker).copied().unwrap_or(0)).sum()
    };
    assert_eq!(sum("completions"), 2, "{stats:?}");
    assert!(sum("wakes") > 0 && sum("turns") >= sum("batch_ends"));
    // The one that has it on pended once.
    assert_eq!(sum("batch_ends"), 1, "{stats:?}");
}

/// On how many processors each thread of a process may run.
fn processors(pid: nix::unistd::Pid) -> Vec<(String, u32)> {
    let folder = format!("/proc/{pid}/task");
    let threads = std::fs::read_dir(folder).expect("its threads");
    threads
        .filter_map(|thread| {
            let thread = thread.ok()?.path();
            let name = std::fs::read_to_string(thread.join("comm")).ok()?;
            let id = thread.file_name()?.to_str()?.parse().ok()?;
            let cpus = sched_getaffinity(rustix::thread::Pid::from_raw(id)).ok()?;
            Some((name.trim().to_owned(), cpus.count()))
        })
        .collect()
}

fn pinned(w: &World) {
    let all = sched_getaffinity(None).expect("the processors of this thread");
    let mut one = CpuSet::new();
    let first = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu));
    one.set(first.expect("it runs somewhere"));
    for all_cpus in [true, false] {
        let filter = pxg_with(
            "edge",
            json!({ "guest": guests::go(), "filter": "trace-id", "all_cpus": all_cpus }),
        );
        let config = bootstrap(w, filter);
        // A process inherits it from the thread that starts it.
        sched_setaffinity(None, &one).expect("pin this thread");
        let envoy = Envoy::start(w.version, &config);
        sched_setaffinity(None, &all).expect("let this thread go");
        assert_eq!(envoy.connect("main").get("/").status, 200);
        let threads = processors(envoy.pid());
        let free = threads.iter().filter(|(_, cpus)| *cpus == all.count());
        if all.count() > 1 {
            assert_eq!(free.count() > 0, all_cpus, "{threads:?}");
        }
        // The two, and threads of Go's runtime that a worker started: they inherit its name and its processor.
        let workers = threads.iter().filter(|(name, _)| name.starts_with("wrk:"));
        let on: Vec<u32> = workers.map(|(_, cpus)| *cpus).collect();
        assert!(on.len() >= 2 && on.iter().all(|n| *n == 1), "{threads:?}");
    }
}

fn sizes(w: &World) {
    let folder = tempfile::tempdir().expect("a folder");
    let record = folder.path().join("record.jsonl");
    let config = format!(
        "record {}\nattr request.body_bytes\nattr response.body_bytes\nattr upstream.attempts\ncase sizes\nlog log 1 .\n",
        record.display()
    );
    let filter = chain(&[("sizes", &config, json!({}))]);
    let envoy = Envoy::start(w.version, &bootstrap(w, filter));
    assert_eq!(ask(&envoy, "sizes", "/bytes-10", b"hello"), 200);
    let events = Record::new(record, "sizes").events(1);
    let at = |phase: &str| -> Vec<Value> {
        let event = events
            .iter()
            .find(|e| e["phase"] == phase)
            .expect("an event");
        event["attrs"].as_array().expect("attributes").clone()
    };
    let has_sizes = w.version != "1.39.3";
    let request = if has_sizes { json!("5") } else { Value::Null };
    assert_eq!(at("log"), [request, json!("10"), json!("1")]);
    let early = at("request_headers");
    assert!(early[1].is_null() && early[2].is_null(), "{early:?}");
}

/// What `envoy --mode validate` says of an entry with these keys.
fn validate(w: &World, entry: Value) -> (bool, String) {
    let mut all = json!({ "guest": guests::script(), "filter": "script" });
    for (key, value) in entry.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    let output = envoy::validate(w.version, &bootstrap(w, pxg_with("edge", all)));
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

fn files(w: &World) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("guest.conf");
    let write = |bytes: &[u8]| std::fs::write(&file, bytes).expect("write it");
    write(b"case *\nresponse_headers set x-from a-file\n");
    let (is_good, said) = validate(w, json!({ "config_file": file }));
    assert!(is_good, "{said}");
    let (is_good, said) = validate(w, json!({ "config_file": file, "config": "case *" }));
    assert!(!is_good && said.contains("beside `config`"), "{said}");
    // The guest's own opinion of what is in it.
    write(b"refuse the file says nonsense\n");
    let (is_good, said) = validate(w, json!({ "config_file": file }));
    assert!(
        !is_good && said.contains("the file says nonsense"),
        "{said}"
    );
    for (path, why) in [
        (Path::new("/nowhere/guest.conf"), "No such file"),
        (folder.path(), "not a regular file"),
        (Path::new("guest.conf"), "an absolute path"),
    ] {
        let (is_good, said) = validate(w, json!({ "config_file": path }));
        let path = path.display().to_string();
        assert!(
            !is_good && said.contains(&path) && said.contains(why),
            "{said}"
        );
    }
}
