//! What ends the waiting of a stream: deadlines, the span of a hold, an idle reply, the drain of the host. A reload does not.

use super::asy::pending_at;
use super::own::{self, Own};
use super::prelude::*;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("asy/deadline", 4, &["PXG-ASY-011", "PXG-ERR-001"], "a guest that never completes runs into its deadline")
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script("brief request-headers: pending")
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/brief/x")).await?;
                cx.equal("PXG-ASY-011", "the status", x.reply.status, 500);
                cx.equal("PXG-ASY-011", "on_cancel", x.records.calls("on_cancel", Edge::Enter, "brief").len(), 1);
                cx.equal("PXG-EVT-014", "events", x.records.phases("brief"), vec!["REQUEST_HEADERS"]);
                let exit = x.records.calls("on_event", Edge::Exit, "brief").first().map_or(0, |r| r.t);
                let cancel = x.records.calls("on_cancel", Edge::Enter, "brief").first().map_or(0, |r| r.t);
                cx.check("PXG-ASY-011", cancel >= exit + 60_000_000, || {
                    format!("cancelled {} us after the return, with a deadline of 60 ms", cancel.saturating_sub(exit) / 1000)
                });
                Ok(())
            }),
        Case::new("asy/deadline-of-the-result", 4, &["PXG-ASY-011"], "`pend_ns` of a result is the deadline")
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script("b request-headers: pending 40")
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-ASY-011", "the status", x.reply.status, 500);
                cx.equal("PXG-ASY-011", "on_cancel", x.records.calls("on_cancel", Edge::Enter, "b").len(), 1);
                Ok(())
            }),
        Case::new("asy/hold-span", 4, &["PXG-ASY-011"], "a direction that withholds through many PENDINGs and MOREs ends at the host's limit")
            .needs(&[Feature::PEND_REQUEST_BODY, Feature::BODY_STREAM_REQUEST, Feature::HOLD_REQUEST])
            .script(
                "a request-headers: mode request stream; more
                 a request-body: pending; complete R @10
                 a result R: more 1",
            )
            .alone()
            .run(|cx| async move {
                // Each PENDING takes 10 ms or more: together they are far over the limit.
                const MOST: usize = 30;
                let mut setup = own::chain(&cx, &[("a", "subscribe all\npend all\n")])?;
                own::option(&mut setup, "a", "hold_limit_ms", "100");
                let own = Own::start(&cx, &setup).await?;
                let mut c = own.cx.connect().await?;
                c.write(&Request::post("/x", b"").field("content-length", "1000").head_only().head(cx.name())).await;
                let has_ended = |r: &[std::rc::Rc<Record>]| !r.calls("on_stream_end", Edge::Enter, "a").is_empty();
                for i in 0..MOST {
                    c.write(b"x").await;
                    let comes = own.cx.until("PXG-ASY-011", "the next body event, or the end", |r| {
                        has_ended(r) || r.events("a", Phase::REQUEST_BODY.0).len() > i
                    });
                    if !comes.await || has_ended(&own.cx.records()) {
                        break;
                    }
                }
                let ended = cx.check("PXG-ASY-011", has_ended(&own.cx.records()), || {
                    format!("{MOST} PENDINGs of 10 ms without a break, with a limit of 100 ms, and the stream goes on")
                });
                if ended {
                    cx.equal("PXG-ASY-011", "the status", c.response("POST").await?.status, 500);
                } else {
                    c.reset();
                }
                own.end("PXG-ASY-011").await
            }),
        Case::new("asy/reply-idle", 4, &["PXG-ASY-011"], "an open reply that gets no write is reset at the host's limit")
            .needs(&[Feature::STREAM_REPLY, Feature::APPLY])
            .script("a request-headers: reply 200; open; body part")
            .alone()
            .run(|cx| async move {
                let mut setup = own::chain(&cx, &[("a", "subscribe all\npend all\n")])?;
                own::option(&mut setup, "a", "hold_limit_ms", "100");
                let own = Own::start(&cx, &setup).await?;
                let mut c = own.cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                let came = own.cx.until("PXG-ASY-011", "the end of a reply without writes", |r| {
                    !r.calls("on_stream_end", Edge::Enter, "a").is_empty()
                });
                if came.await {
                    let reply = c.response("GET").await?;
                    cx.equal("PXG-ASY-011", "the body, and whether it is complete", (reply.text(), reply.complete), ("part".into(), false));
                } else {
                    c.reset();
                }
                own.end("PXG-ASY-011").await
            }),
        Case::new(
            "asy/drain",
            4,
            &["PXG-ASY-018", "PXG-ASY-015"],
            "a host that is stopped while a stream pends: the completion is applied, then the end",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .script(
            "a request-headers: pending; complete R @gate:go
             a result R: draining; set x-done yes; continue",
        )
        .alone()
        .run(|cx| async move {
            let setup = super::own::chain(&cx, &[("a", "subscribe all\npend all\n")])?;
            let Ok(running) = cx.start(&setup).await? else {
                anyhow::bail!("the host did not get ready");
            };
            let own = cx.on(running.clone());
            let mut c = own.connect().await?;
            c.send(&Request::get("/x"), own.name()).await;
            own.until("PXG-ASY-018", "PENDING at a", |r| {
                r.calls("on_event", Edge::Exit, "a").len() == 1
            })
            .await;
            running.host.stop()?;
            // The completion waits until the page says that the host drains.
            own.open("go");
            let reply = c.response("GET").await?;
            own.equal("PXG-ASY-018", "the status", reply.status, 200);
            let ended = running.host.wait(cx.shared().patience * 2).await;
            own.check("PXG-ASY-015", ended.is_some_and(|s| s.success()), || {
                format!("the host's end: {ended:?}")
            });
            own.finish().await?;
            let all = running.journal.all();
            // A completion that was made looks at the page.
            for said in all.iter().filter(|r| r.function == "draining") {
                own.equal(
                    "PXG-ASY-015",
                    "whether the page said that the host drains",
                    said.status,
                    Some(OK),
                );
            }
            // Each process of the host ends by itself: this is about the one with the stream.
            let process = own.records().first().map(|r| r.pid);
            let all: Vec<_> = all.into_iter().filter(|r| Some(r.pid) == process).collect();
            let last = |f: &str| {
                all.iter()
                    .rposition(|r| r.function == f && r.arg != Some(1))
            };
            let (end, drop, down) = (
                last("on_stream_end"),
                last("on_config_drop"),
                last("on_worker"),
            );
            own.check("PXG-ASY-015", drop.is_none_or(|d| end < Some(d)), || {
                "on_config_drop before on_stream_end".into()
            });
            let down_enter = all
                .iter()
                .position(|r| r.is("on_worker", Edge::Enter) && r.arg == Some(0));
            own.check(
                "PXG-ASY-015",
                down.is_none() || down_enter.is_none_or(|w| drop.is_none_or(|d| d < w)),
                || "on_worker(down) before on_config_drop".into(),
            );
            cx.take(&own);
            cx.leave_open();
            Ok(())
        }),
        Case::new(
            "asy/drain-limit",
            4,
            &["PXG-ASY-015"],
            "a stream that still pends at the drain's limit is cancelled and ended, then its configuration, then the workers",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .script("a request-headers: pending")
        .alone()
        .run(|cx| async move {
            let mut setup = own::chain(&cx, &[("a", "subscribe all\npend all\n")])?;
            setup.workers = 1;
            setup.options.push(("drain_ms".into(), "50".into()));
            let own = Own::start(&cx, &setup).await?;
            let mut c = own.cx.connect().await?;
            c.send(&Request::get("/x"), cx.name()).await;
            pending_at(&own.cx, "PXG-ASY-015", "a").await;
            own.running.host.stop()?;
            let ended = own.running.host.wait(cx.shared().patience * 2).await;
            // With which code it ends when it has cut streams is its own affair.
            cx.check("PXG-ASY-015", ended.is_some_and(|s| s.code().is_some()), || {
                format!("the host's end: {ended:?}")
            });
            let all = own.all();
            let calls: Vec<&str> = all
                .iter()
                .filter(|r| r.edge == Edge::Enter)
                .filter_map(|r| match r.function.as_str() {
                    "on_event" if r.phase == Some(Phase::LOG.0) => Some("LOG"),
                    "on_worker" if r.arg == Some(1) => None,
                    name @ ("on_cancel" | "on_stream_end" | "on_config_drop" | "on_worker") => Some(name),
                    _ => None,
                })
                .collect();
            let mut expected = vec!["on_cancel", "LOG", "on_stream_end", "on_config_drop", "on_worker"];
            // As far as the process runs: it may end with its configurations.
            expected.retain(|name| *name != "on_config_drop" || calls.contains(name));
            cx.equal("PXG-ASY-015", "the calls after the drain's limit", calls, expected);
            own.cx.finish().await?;
            cx.take(&own.cx);
            cx.leave_open();
            Ok(())
        }),
        Case::new(
            "asy/reload",
            4,
            &["PXG-ASY-018"],
            "a stream that pends over a reload is neither cancelled nor cut: its completion is applied",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .script(
            "a request-headers: pending; complete R @gate:go
             a result R: set x-done yes; continue",
        )
        .alone()
        .run(|cx| async move {
            let of = |n: u32| own::chain(&cx, &[("a", &format!("subscribe all\npend all\n# {n}\n"))]);
            let own = Own::start(&cx, &of(1)?).await?;
            let mut c = own.cx.connect().await?;
            c.send(&Request::get("/x"), cx.name()).await;
            pending_at(&own.cx, "PXG-ASY-018", "a").await;
            cx.equal("PXG-ASY-018", "the reload", own.reload(&of(2)?).await?, Some(true));
            own.cx.settle().await?;
            let cancelled = own.cx.records().calls("on_cancel", Edge::Enter, "a").len();
            cx.equal("PXG-ASY-018", "on_cancel after the reload", cancelled, 0);
            own.cx.open("go");
            let reply = c.response("GET").await;
            let status = reply.as_ref().map_or_else(|e| format!("{e:#}"), |r| r.status.to_string());
            cx.equal("PXG-ASY-018", "the status of the stream that pended", status, "200".into());
            let done = own.cx.seen().first().and_then(|s| s.get("x-done"));
            cx.equal("PXG-ASY-018", "x-done upstream", done, Some("yes".into()));
            own.end("PXG-ASY-018").await
        }),
    ]
}
