//! The end of a process, and a hot restart, while streams pend.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::config::{self, listener, pxg, text};
use crate::envoy::Envoy;
use crate::guests;
use crate::h2;
use crate::record::Record;
use crate::suite::{Suite, World};
use crate::support::run;

pub(crate) fn add(suite: &mut Suite) {
    suite.test("restarts::sigterm_with_1000_pending_streams", terminated);
    suite.test("restarts::sigterm_while_goroutines_decide", terminated_go);
    suite.test(
        "restarts::hot_restart_with_1000_pending_streams",
        hot_restart,
    );
}

const PENDING: usize = 1000;

/// The guest of a process; it lets go of what it holds once there is the file `released`.
fn script(folder: &Path) -> Value {
    let script = format!(
        "record {0}/record.jsonl\nwatch key {0}/released\ncase held\nrequest_headers pend until key\n\
         request_headers set x-a 1\ncase forever\nrequest_headers pend forever\n",
        folder.display()
    );
    listener(
        "main",
        vec![pxg("script", &guests::script(), text(&script))],
    )
}

/// Sends this many requests of a case over HTTP/2, waits until all pend, does `then`, and answers how many got 200.
fn with_pending(
    address: SocketAddr,
    record: &Record,
    case: &'static str,
    then: impl FnOnce(),
) -> usize {
    run(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..PENDING / 100 {
            let sender = h2::connect(address).await;
            for _ in 0..100 {
                let mut sender = sender.clone();
                tasks.spawn(async move {
                    sender.ready().await.ok()?;
                    let answer = sender
                        .send_request(h2::get("/", &[("x-case", case)]))
                        .await
                        .ok()?;
                    let whole = h2::whole(answer).await.ok()?;
                    (whole.status == 200).then_some(())
                });
            }
        }
        while record
            .lines()
            .iter()
            .filter(|l| l["call"] == "event")
            .count()
            < PENDING
        {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        then();
        let mut answered = 0;
        while let Some(task) = tasks.join_next().await {
            answered += usize::from(task.expect("a client").is_some());
        }
        answered
    })
}

fn record(folder: &Path, case: &'static str) -> Record {
    Record::new(folder.join("record.jsonl"), case)
}

fn terminated(w: &World) {
    let folder = tempfile::tempdir().expect("a folder");
    let listeners = vec![script(folder.path())];
    let mut envoy = Envoy::start(
        w.version,
        &config::bootstrap(listeners, &w.origins.clusters()),
    );
    let record = record(folder.path(), "forever");
    let answered = with_pending(envoy.address("main"), &record, "forever", || {
        envoy.terminate()
    });
    assert_eq!(answered, 0);
    let status = envoy.wait();
    assert!(status.success(), "{status}\n{}", envoy.log_end());
    // Each token was retired, each stream ended.
    record.calls("cancel", PENDING);
    record.calls("end", PENDING);
}

fn terminated_go(w: &World) {
    let faulty = json!({ "millis": 20 });
    let listeners = vec![listener("main", vec![pxg("faulty", &guests::go(), faulty)])];
    for _ in 0..2 {
        let mut envoy = Envoy::start(
            w.version,
            &config::bootstrap(listeners.clone(), &w.origins.clusters()),
        );
        let mut clients: Vec<_> = (0..30).map(|_| envoy.connect("main")).collect();
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nhost: test\r\nx-fault: async-late\r\n\r\n");
        }
        // The first answer: the others are being decided.
        assert_eq!(clients[0].reply().status, 200);
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nhost: test\r\nx-fault: async-late\r\n\r\n");
        }
        envoy.terminate();
        let status = envoy.wait();
        assert!(status.success(), "{status}\n{}", envoy.log_end());
    }
}

/// The old process keeps its streams until they have their answers; the new one takes what comes.
fn hot_restart(w: &World) {
    let folder = tempfile::tempdir().expect("a folder");
    // The port is the same in both processes, and nobody else's: bound here too, and not listening, it gets nothing.
    let reserved = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    reserved.set_reuse_port(true).expect("an option");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    reserved.bind(&any.into()).expect("a free port");
    let address = reserved
        .local_addr()
        .expect("its address")
        .as_socket()
        .expect("an IP address");
    let mut listener = script(folder.path());
    listener["address"]["socket_address"]["port_value"] = json!(address.port());
    let config = config::bootstrap(vec![listener], &w.origins.clusters());
    let id = folder.path().join("base-id");
    let id = id.to_str().expect("a path in UTF-8");
    let common = [
        "--concurrency",
        "2",
        "--drain-time-s",
        "1",
        // Time enough for all answers; the old process is there for so long in any case.
        "--parent-shutdown-time-s",
        "12",
    ];
    let first = [
        &common[..],
        &["--use-dynamic-base-id", "--base-id-path", id],
    ]
    .concat();
    let mut old = Envoy::start_with(w.version, &config, &first);
    let base = std::fs::read_to_string(id).expect("the base id");
    let record = record(folder.path(), "held");
    let mut new = None;
    let answered = with_pending(address, &record, "held", || {
        let second = [
            &common[..],
            &["--base-id", base.trim(), "--restart-epoch", "1"],
        ]
        .concat();
        new = Some(Envoy::start_with(w.version, &config, &second));
        std::fs::write(folder.path().join("released"), "").expect("write a file");
    });
    assert_eq!(answered, PENDING);
    let mut new = new.expect("it was started");
    assert!(old.wait().success(), "{}", old.log_end());
    assert_eq!(new.connect("main").get("/").status, 200);
    new.terminate();
    assert!(new.wait().success(), "{}", new.log_end());
    drop(reserved);
}
