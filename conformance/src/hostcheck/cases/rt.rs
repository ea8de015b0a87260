//! The process: signals, children, threads.

use anyhow::{Context as _, Result};

use super::own::{self, Own};
use super::prelude::*;
use crate::hostcheck::adapter::signal;

/// How many processors this process may run on, and a host that it starts.
fn processors() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status
        .lines()
        .find_map(|l| l.strip_prefix("Cpus_allowed:"))
        .context("/proc/self/status has no Cpus_allowed")?;
    let digits = mask.chars().filter_map(|c| c.to_digit(16));
    Ok(digits.map(|d| u64::from(d.count_ones())).sum())
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "rt/signal-mask",
            1,
            &["PXG-RT-001"],
            "the signals that the host takes from its operator are blocked in the thread that loads a guest, and its stop works",
        )
        .alone()
        .run(|cx| async move {
            let own = Own::start(&cx, &own::chain(&cx, &[("a", "subscribe all\npend none\n")])?).await?;
            let mask = own.all().iter().find(|r| r.is("init", Edge::Enter)).and_then(|r| r.text.clone()).unwrap_or_default();
            let a = &cx.shared().adapter;
            let names = [a.stop.signal.clone(), a.reload.as_ref().and_then(|r| r.signal.clone()), Some("TERM".into())];
            for name in names.into_iter().flatten() {
                let Some(n) = signal(&name).and_then(|s| usize::try_from(s.as_raw()).ok()) else { continue };
                let blocked = mask.as_bytes().get(n - 1) == Some(&b'1');
                cx.check("PXG-RT-001", blocked, || format!("SIG{name} is not blocked while a guest is loaded: {mask}"));
            }
            own.end("PXG-RT-001").await
        }),
        Case::new(
            "rt/children",
            4,
            &["PXG-RT-002"],
            "a guest's children are left for it to reap, and the host's handlers run on foreign threads with small stacks",
        )
        .script(
            "a request-headers: pending; complete R @race
             a result R: raise 17; reap 40; raise 17; set x-a 1; continue
             reload request-headers: pending; complete R @race
             reload result R: raise 1; set x-b 1; continue",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .alone()
        .run(|cx| async move {
            let mut setup = own::chain(&cx, &[("a", "subscribe all\npend all\n")])?;
            own::also(&cx, &mut setup, ("probe", &cx.shared().probe.clone()), "reload", "subscribe all\npend all\n");
            let own = Own::start(&cx, &setup).await?;
            let x = own.cx.exchange(Request::get("/")).await?;
            let reaped: Vec<_> = x.records.iter().filter(|r| r.function == "reap").filter_map(|r| r.arg).collect();
            cx.equal("PXG-RT-002", "children that the guest could wait for", reaped, vec![40]);
            cx.equal("PXG-RT-002", "x-a", x.up_get("x-a"), Some("1".into()));
            let act = cx.shared().adapter.reload.clone();
            if act.as_ref().and_then(|r| r.signal.as_deref()) == Some("HUP") {
                let from = own.running.host.output.len();
                let x = own.cx.exchange(Request::get("/reload")).await?;
                cx.equal("PXG-RT-002", "x-b, after SIGHUP on a foreign thread", x.up_get("x-b"), Some("1".into()));
                let takes = |r: &Record| r.function == "raise" && r.status != Some(STATE) && r.pid == own.running.host.pid;
                let raised = x.records.iter().any(|r| takes(r));
                if !raised {
                    cx.remark("the guest's process takes SIGHUP without a handler, or reloads are another process's");
                }
                if let Some(done) = act.and_then(|r| r.done).filter(|_| raised) {
                    let done = regex::Regex::new(&done)?;
                    own.cx.wait("PXG-RT-002", "the reload by a signal on a foreign thread", || {
                        own.running.host.output.find(from, &done).is_some()
                    }).await;
                }
            }
            own.end("PXG-RT-002").await
        }),
        Case::new(
            "rt/handlers",
            4,
            &["PXG-RT-003"],
            "handlers that a guest installs at load are called afterwards, and interrupted system calls are begun again",
        )
        .script(
            "a request-headers: pending; complete R @race
             a result R: mode request stream; mode response stream; raise 23; raise 11; raise 7; raise 8; raise 13; storm 60; set x-a 1; continue",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .alone()
        .run(|cx| async move {
            let library = own::variant(&cx, "handlers=1")?;
            let own = Own::start(&cx, &own::chain_of(&cx, &library, &[("a", "subscribe all\npend all\n"), ("b", "subscribe all\npend none\n")])?).await?;
            let body = bytes(200_000);
            own.cx.answer(Answer::status(200).chunks(&[&body, &body]));
            for _ in 0..3 {
                let x = own.cx.exchange(Request::post("/", &body)).await?;
                let raised: Vec<_> = x.records.iter().filter(|r| r.function == "raise").filter_map(|r| Some((r.arg?, r.status?))).collect();
                cx.equal("PXG-RT-003", "signals, and whether the guest's handler ran", raised, [23, 11, 7, 8, 13].map(|n| (n, 0)).to_vec());
                cx.equal("PXG-RT-003", "bytes upstream and at the client", (x.up.map(|u| u.body.len()), x.reply.body.len()), (Some(200_000), 400_000));
                cx.equal("PXG-RT-003", "the answer came whole", x.reply.complete, true);
            }
            own.end("PXG-RT-003").await
        }),
        Case::new(
            "rt/pinned",
            4,
            &["PXG-RT-004"],
            "where the host pins its loop threads, it loads a guest with the processors of the whole process",
        )
        .script("* request-headers: continue")
        .alone()
        .run(|cx| async move {
            let most = processors()?;
            let mut setup = own::chain(&cx, &[("a", "subscribe all\npend none\n")])?;
            setup.options.push(("pin".into(), String::new()));
            let own = Own::start(&cx, &setup).await?;
            own.cx.exchange(Request::get("/")).await?;
            let all = own.all();
            let of = |function: &str| -> Vec<u64> {
                all.iter().filter(|r| r.is(function, Edge::Enter)).filter_map(|r| r.cpus).collect()
            };
            let (loading, serving) = (of("init"), of("on_worker"));
            if most == 1 {
                cx.remark("one processor: a pinned thread cannot be told from another");
            } else if !serving.iter().any(|n| *n < most) {
                cx.finding("PXG-RT-004", format!("unknown: on_worker runs with {serving:?} of {most} processors: nothing is pinned"), Vec::new());
            }
            cx.check("PXG-RT-004", !loading.is_empty() && loading.iter().all(|n| *n >= most), || {
                format!("init runs with {loading:?} of {most} processors")
            });
            own.end("PXG-RT-004").await
        }),
        Case::new(
            "rt/warm-up",
            1,
            &["PXG-RT-004"],
            "on_worker(up) is called on each loop thread before its first event",
        )
        .script("* request-headers: continue")
        .run(|cx| async move {
            for _ in 0..6 {
                cx.exchange(Request::get("/")).await?;
            }
            let all = cx.running().journal.all();
            let mut warm = std::collections::BTreeSet::new();
            let mut n = 0;
            for r in &all {
                if r.is("on_worker", Edge::Exit) {
                    warm.insert((r.pid, r.tid));
                }
                if r.is("on_event", Edge::Enter) {
                    n += 1;
                    cx.check("PXG-RT-004", warm.contains(&(r.pid, r.tid)), || format!("an event on thread {} without a warm-up call", r.tid));
                }
            }
            cx.check("PXG-RT-004", n > 0, || "no event came".into());
            Ok(())
        }),
    ]
}
