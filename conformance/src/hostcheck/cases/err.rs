//! Failures and failure modes.

use super::own::{self, Own};
use super::prelude::*;

const PLAIN: &str = "subscribe all\npend none\n";

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "err/one-stream",
            2,
            &["PXG-ERR-001"],
            "failures of many streams leave the others alone",
        )
        .script("b request-headers: error bad")
        .run(|cx| async move {
            // Enough that each worker has some of them when others fail.
            const OTHERS: usize = 12;
            cx.answer(
                Answer::status(200)
                    .body(b"x")
                    .first(Step::Gate("one-stream".into())),
            );
            let mut others = Vec::new();
            for _ in 0..OTHERS {
                let mut c = cx.connect().await?;
                c.send(&Request::get("/none"), cx.name()).await;
                others.push(c);
            }
            cx.upstream_saw("PXG-ERR-001", OTHERS).await;
            for i in 0..20 {
                let x = cx.exchange(Request::get(&format!("/x{i}"))).await?;
                cx.equal("PXG-ERR-001", "the status", x.reply.status, 500);
            }
            cx.open("one-stream");
            for mut c in others {
                let reply = c.response("GET").await;
                let status = reply.map_or_else(|e| format!("{e:#}"), |r| r.status.to_string());
                cx.equal(
                    "PXG-ERR-001",
                    "the status of another stream",
                    status,
                    "200".into(),
                );
            }
            Ok(())
        }),
        Case::new(
            "err/text",
            2,
            &["PXG-ERR-003"],
            "the text of an error is not for the client",
        )
        .script(
            "b request-headers: error the-secret-reason
                 small request-headers: reply 403; details the-secret-reason",
        )
        .run(|cx| async move {
            for (path, what) in [("/x", "error"), ("/small/x", "details")] {
                let x = cx.exchange(Request::get(path)).await?;
                let all: String = x
                    .reply
                    .head
                    .fields
                    .iter()
                    .map(|f| format!("{}={};", f.0, f.1))
                    .collect();
                let leaks = all.contains("the-secret-reason")
                    || x.reply.text().contains("the-secret-reason");
                cx.check("PXG-ERR-003", !leaks, || {
                    format!("the guest's `{what}` is in the response")
                });
            }
            Ok(())
        }),
        Case::new(
            "err/open-headers",
            2,
            &["PXG-ERR-005", "PXG-EVT-014"],
            "fail-open at the headers: the request goes on as it was",
        )
        .script("open request-headers: set x-a changed; error bad")
        .run(|cx| async move {
            let x = cx
                .exchange(Request::post("/open/x", b"abc").field("x-a", "1"))
                .await?;
            cx.equal("PXG-ERR-005", "the status", x.reply.status, 200);
            cx.equal(
                "PXG-ERR-005",
                "x-a upstream",
                x.up_get("x-a"),
                Some("1".into()),
            );
            cx.equal(
                "PXG-ERR-005",
                "the body upstream",
                x.up_text(),
                Some("abc".into()),
            );
            cx.equal(
                "PXG-EVT-014",
                "events at the bypassed guest",
                x.records.phases("open"),
                vec!["REQUEST_HEADERS"],
            );
            cx.equal(
                "PXG-ERR-005",
                "RESPONSE_HEADERS at c",
                x.records.events("c", Phase::RESPONSE_HEADERS.0).len(),
                1,
            );
            Ok(())
        }),
        Case::new(
            "err/open-body",
            2,
            &["PXG-ERR-005"],
            "fail-open with held headers and body: they pass unmodified",
        )
        .needs(&[Feature::BODY_WHOLE_REQUEST])
        .script(
            "open request-headers: mode request whole
                 open request-body: inject x; set x-a 1; error bad",
        )
        .run(|cx| async move {
            let x = cx.exchange(Request::post("/open/x", b"abc")).await?;
            cx.equal("PXG-ERR-005", "the status", x.reply.status, 200);
            cx.equal(
                "PXG-ERR-005",
                "the body upstream",
                x.up_text(),
                Some("abc".into()),
            );
            cx.equal("PXG-ERR-005", "x-a upstream", x.up_get("x-a"), None);
            Ok(())
        }),
        Case::new(
            "err/open-harmful",
            2,
            &["PXG-ERR-005"],
            "fail-open after a change of that direction is closed",
        )
        .needs(&[Feature::BODY_WHOLE_REQUEST])
        .script(
            "open request-headers: mode request whole; set x-a changed
                 open request-body: error bad",
        )
        .run(|cx| async move {
            let x = cx.exchange(Request::post("/open/x", b"abc")).await?;
            cx.equal("PXG-ERR-005", "the status", x.reply.status, 500);
            cx.check("PXG-ERR-005", x.up.is_none(), || {
                "the upstream got a changed head with an unchanged body".into()
            });
            Ok(())
        }),
        Case::new(
            "err/open-body-changed",
            2,
            &["PXG-ERR-005"],
            "fail-open with a body half rewritten is closed",
        )
        .needs(&[Feature::BODY_STREAM_RESPONSE, Feature::RESIZE_RESPONSE])
        .script(
            "open request-headers: mode response stream
                 open response-headers: resizes
                 open response-body#1: inject changed
                 open response-body#2: error bad",
        )
        .run(|cx| async move {
            cx.answer(
                Answer::status(200)
                    .field("transfer-encoding", "chunked")
                    .send(b"3\r\none\r\n")
                    .gate("two")
                    .send(b"3\r\ntwo\r\n0\r\n\r\n"),
            );
            let mut c = cx.connect().await?;
            c.send(&Request::get("/open/x"), cx.name()).await;
            cx.until("PXG-ERR-005", "the first body event", |r| {
                !r.events("open", Phase::RESPONSE_BODY.0).is_empty()
            })
            .await;
            cx.open("two");
            let reply = c.response("GET").await?;
            cx.check("PXG-ERR-005", !reply.complete, || {
                format!("a half rewritten body came whole: {:?}", reply.text())
            });
            Ok(())
        }),
        Case::new(
            "err/open-deadline",
            4,
            &["PXG-ERR-005", "PXG-ASY-011"],
            "fail-open at a deadline: one cancel, and the request goes on",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .script("open-brief request-headers: pending")
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/open-brief/x")).await?;
            cx.equal("PXG-ERR-005", "the status", x.reply.status, 200);
            cx.equal(
                "PXG-ASY-011",
                "on_cancel",
                x.records
                    .calls("on_cancel", Edge::Enter, "open-brief")
                    .len(),
                1,
            );
            cx.equal(
                "PXG-EVT-014",
                "events",
                x.records.phases("open-brief"),
                vec!["REQUEST_HEADERS"],
            );
            Ok(())
        }),
        Case::new(
            "err/open-peer",
            4,
            &["PXG-ERR-008", "PXG-ASY-012"],
            "with DUPLEX one direction pends and the other fails open: both are bypassed",
        )
        .needs(&[Feature::PEND_REQUEST_BODY, Feature::BODY_STREAM_REQUEST])
        .script(
            "open-duplex request-headers: mode request stream
                 open-duplex request-body: pending; complete R @cancel
                 open-duplex result R: continue
                 open-duplex response-headers: error bad",
        )
        .run(|cx| async move {
            cx.answer(Answer::status(200).early().body(b"early"));
            let mut c = cx.connect().await?;
            c.write(
                &Request::post("/open-duplex/x", b"")
                    .field("content-length", "6")
                    .head_only()
                    .head(cx.name()),
            )
            .await;
            c.write(b"abc").await;
            cx.until("PXG-ERR-008", "the failure", |r| {
                !r.events("open-duplex", Phase::RESPONSE_HEADERS.0)
                    .is_empty()
            })
            .await;
            c.write(b"def").await;
            let reply = c.response("POST").await?;
            cx.equal("PXG-ERR-008", "the status", reply.status, 200);
            cx.equal("PXG-ERR-008", "the body", reply.text(), "early".into());
            cx.ended().await;
            cx.equal(
                "PXG-ERR-008",
                "on_cancel",
                cx.records()
                    .calls("on_cancel", Edge::Enter, "open-duplex")
                    .len(),
                1,
            );
            Ok(())
        }),
        Case::new(
            "err/open-peer-changed",
            2,
            &["PXG-ERR-008"],
            "fail-open is closed where the peer direction still runs and was changed",
        )
        .needs(&[Feature::BODY_STREAM_REQUEST])
        .script(
            "open request-headers: mode request stream; set x-a changed
             open response-headers: error bad",
        )
        .run(|cx| async move {
            cx.answer(Answer::status(200).early().body(b"early"));
            let mut c = cx.connect().await?;
            c.write(
                &Request::post("/open/x", b"")
                    .field("content-length", "6")
                    .head_only()
                    .head(cx.name()),
            )
            .await;
            c.write(b"abc").await;
            let reply = c.response("POST").await?;
            cx.equal("PXG-ERR-008", "the status", reply.status, 500);
            Ok(())
        }),
        Case::new(
            "err/open-peer-holds",
            2,
            &["PXG-ERR-008"],
            "what the peer direction holds when a guest is bypassed passes unmodified",
        )
        .needs(&[Feature::BODY_STREAM_REQUEST])
        .script(
            "open request-headers: mode request stream
             open request-body#1: more 1000
             open response-headers: error bad",
        )
        .run(|cx| async move {
            cx.answer(
                Answer::status(200)
                    .early()
                    .field("content-length", "5")
                    .first(Step::Gate("head".into()))
                    .gate("body")
                    .send(b"early"),
            );
            let mut c = cx.connect().await?;
            c.write(
                &Request::post("/open/x", b"")
                    .field("content-length", "6")
                    .head_only()
                    .head(cx.name()),
            )
            .await;
            c.write(b"abc").await;
            cx.until("PXG-ERR-008", "the bytes that are held", |r| {
                let body = Some(Phase::REQUEST_BODY.0);
                r.calls("on_event", Edge::Exit, "open")
                    .iter()
                    .any(|r| r.phase == body)
            })
            .await;
            cx.open("head");
            cx.until("PXG-ERR-008", "the failure", |r| {
                let head = Some(Phase::RESPONSE_HEADERS.0);
                r.calls("on_event", Edge::Exit, "open")
                    .iter()
                    .any(|r| r.phase == head)
            })
            .await;
            let upstream = || cx.seen().first().map(|s| s.text()).unwrap_or_default();
            cx.wait("PXG-ERR-008", "what was held, upstream", || {
                upstream() == "abc"
            })
            .await;
            c.write(b"def").await;
            cx.wait("PXG-ERR-008", "the rest upstream", || {
                upstream() == "abcdef"
            })
            .await;
            cx.open("body");
            let reply = c.response("POST").await?;
            cx.equal("PXG-ERR-008", "the status", reply.status, 200);
            cx.equal("PXG-ERR-008", "the body", reply.text(), "early".into());
            cx.equal(
                "PXG-ERR-008",
                "the body upstream",
                upstream(),
                "abcdef".into(),
            );
            Ok(())
        }),
        Case::new(
            "err/message",
            2,
            &["PXG-ERR-009"],
            "the host's message about a failure names the instance and what it found",
        )
        .script("b request-headers: action 7")
        .run(|cx| async move {
            let from = cx.running().host.output.len();
            cx.exchange(Request::get("/x")).await?;
            cx.settle().await?;
            let said = cx.running().host.output.since(from).join("\n");
            cx.check(
                "PXG-ERR-009",
                said.contains('b') && said.contains('7'),
                || "no line of the host names the filter and the action".into(),
            );
            Ok(())
        }),
        Case::new(
            "err/reasons",
            2,
            &["PXG-ERR-007"],
            "each cause of a failure is counted once, with its own reason",
        )
        .script(
            "errs request-headers: error text
             panics request-headers: error panic:\\x20text
             acts request-headers: action 7
             drops request-headers: op 60000 1 0 0 k v
             waits request-headers: pending
             floods request-headers: delete x-none times=200000
             caps request-headers: pending; complete R @gate:go
             caps result R: continue",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .alone()
        .run(|cx| async move {
            let pends = "subscribe all\npend all\n";
            let brief = "subscribe all\npend all\npend-ms 50\n";
            let expected = [
                ("errs", PLAIN, "error"),
                ("panics", PLAIN, "panic"),
                ("acts", PLAIN, "invalid"),
                ("drops", PLAIN, "invalid"),
                ("waits", brief, "deadline"),
                ("floods", PLAIN, "limit"),
                ("caps", pends, "cap"),
            ];
            let mut setup = own::chain(&cx, &[("a", PLAIN)])?;
            setup.workers = 1;
            let probe = cx.shared().probe.clone();
            for (name, head, _) in expected {
                own::also(&cx, &mut setup, ("probe", &probe), name, head);
            }
            own::option(&mut setup, "caps", "max_pending", "1");
            let own = Own::start(&cx, &setup).await?;
            // The one place that may pend.
            let mut waiting = own.cx.connect().await?;
            waiting.send(&Request::get("/caps"), cx.name()).await;
            own.cx
                .until("PXG-ERR-007", "the stream that pends", |r| {
                    !r.calls("on_event", Edge::Exit, "caps").is_empty()
                })
                .await;
            for (name, _, _) in expected {
                let mut c = own.cx.connect().await?;
                c.send(&Request::get(&format!("/{name}")), cx.name()).await;
                let status = c.response("GET").await?.status;
                cx.equal("PXG-ERR-007", &format!("the status of {name}"), status, 500);
            }
            let m = own.metrics().await?;
            for (name, _, reason) in expected {
                for r in [
                    "error", "panic", "invalid", "deadline", "limit", "cap", "breaker",
                ] {
                    cx.equal(
                        "PXG-ERR-007",
                        &format!("failures of {name} with the reason {r}"),
                        m.count(
                            "pxg_guest_failures_total",
                            &[("config", name), ("reason", r)],
                        ),
                        if r == reason { 1.0 } else { 0.0 },
                    );
                }
            }
            own.cx.open("go");
            cx.equal(
                "PXG-ERR-007",
                "the status of what pended",
                waiting.response("GET").await?.status,
                200,
            );
            own.end("PXG-ERR-007").await
        }),
    ]
}
