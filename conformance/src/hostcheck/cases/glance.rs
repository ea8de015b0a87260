//! A chain of one filter that looks at the head of requests alone. Hosts may have a shorter way for it, which must not show.

use super::prelude::*;

const SYNC: &str = "/glance-sync/x";
const MAY_PEND: &str = "/glance/x";

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "glance/edits",
            2,
            &["PXG-ACT-002", "PXG-HDR-003", "PXG-EVT-006", "PXG-EVT-010", "PXG-EVT-007"],
            "edits by name; no other event, and the end of the stream for a user slot",
        )
        .script(
            "* request-headers: set x-a 1; set x-kept 2; add x-b 1; add x-b 2; delete x-gone; user 4711",
        )
        .run(|cx| async move {
            let body = bytes(70_000);
            for (path, place) in [(SYNC, "glance-sync"), (MAY_PEND, "glance")] {
                for r in [Request::get(path), Request::post(path, &body), Request::chunks(path, &[b"abc", &body])] {
                    let sent: Vec<u8> = r.body.concat();
                    cx.answer(Answer::status(200).field("x-up", "1").chunks(&[b"one", &body]));
                    let x = cx.exchange(r.field("x-kept", "1").field("x-gone", "1")).await?;
                    cx.equal("PXG-ACT-002", "the status", x.reply.status, 200);
                    cx.equal("PXG-ACT-002", "x-up at the client", x.reply.get("x-up"), Some("1".into()));
                    cx.check("PXG-ACT-002", x.reply.body == [&b"one"[..], &body].concat(), || "another body at the client".into());
                    cx.check("PXG-ACT-002", x.up.as_ref().is_some_and(|u| u.body == sent), || "another body upstream".into());
                    let up = ["x-a", "x-kept", "x-b", "x-gone"].map(|n| x.up_get(n));
                    let expected = [Some("1".into()), Some("2".into()), Some("1, 2".into()), None];
                    cx.equal("PXG-HDR-003", "x-a, x-kept, x-b, x-gone upstream", up, expected);
                    cx.equal("PXG-EVT-010", "events", x.records.phases(place), vec!["REQUEST_HEADERS"]);
                    let ends = x.records.calls("on_stream_end", Edge::Enter, place);
                    cx.equal("PXG-EVT-006", "on_stream_end", ends.len(), 1);
                    cx.equal("PXG-EVT-007", "user at the end", ends.first().and_then(|r| r.user), Some(4711));
                }
            }
            Ok(())
        }),
        Case::new(
            "glance/user-zero",
            2,
            &["PXG-EVT-006"],
            "without a user slot there is one call, and nothing else of the stream",
        )
        .script("* request-headers: user 0; set x-a 1")
        .run(|cx| async move {
            for (path, place) in [(SYNC, "glance-sync"), (MAY_PEND, "glance")] {
                let x = cx.exchange(Request::get(path)).await?;
                cx.equal("PXG-EVT-006", "x-a upstream", x.up_get("x-a"), Some("1".into()));
                cx.settle().await?;
                cx.equal("PXG-EVT-006", "on_stream_end", cx.records().calls("on_stream_end", Edge::Enter, place).len(), 0);
            }
            Ok(())
        }),
        Case::new(
            "glance/reply",
            2,
            &["PXG-RPL-004", "PXG-RPL-005", "PXG-EVT-006"],
            "a reply: the upstream is not asked, and the rest of the request is no other one",
        )
        .script("* request-headers: reply 403; field x-f 1; body no; details why")
        .run(|cx| async move {
            for path in [SYNC, MAY_PEND] {
                let x = cx.exchange(Request::chunks(path, &[b"GET /none HTTP/1.1\r\n\r\n", &bytes(9000)])).await?;
                cx.equal("PXG-RPL-004", "the status", x.reply.status, 403);
                cx.equal("PXG-RPL-005", "the body", x.reply.text(), "no".into());
                cx.equal("PXG-RPL-005", "x-f", x.reply.get("x-f"), Some("1".into()));
            }
            cx.check("PXG-RPL-004", cx.seen().is_empty(), || "the upstream was asked".into());
            Ok(())
        }),
        Case::new(
            "glance/refused",
            2,
            &["PXG-ERR-001", "PXG-MUT-005", "PXG-ERR-005"],
            "what is not legal, and ERROR, are failures in the configured mode, and nothing of the result is seen",
        )
        .script(
            "glance-sync request-headers: set x-a 1; set bad\\sname 1
             glance request-headers: error bad
             glance-open request-headers: set x-a 1; delete-at 1000",
        )
        .run(|cx| async move {
            for path in [SYNC, MAY_PEND] {
                let x = cx.exchange(Request::get(path)).await?;
                cx.equal("PXG-ERR-001", "the status", x.reply.status, 500);
            }
            cx.check("PXG-ERR-001", cx.seen().is_empty(), || "the upstream was asked".into());
            let x = cx.exchange(Request::post("/glance-open/x", b"body")).await?;
            cx.equal("PXG-ERR-005", "the status where failures are passed by", x.reply.status, 200);
            cx.equal("PXG-MUT-005", "x-a upstream", x.up_get("x-a"), None);
            cx.equal("PXG-ERR-005", "the body upstream", x.up_text(), Some("body".into()));
            Ok(())
        }),
        Case::new("glance/reset", 2, &["PXG-ACT-004"], "RESET: no byte of a reply")
            .script("* request-headers: reset")
            .run(|cx| async move {
                for path in [SYNC, MAY_PEND] {
                    let mut c = cx.connect().await?;
                    c.send(&Request::get(path), cx.name()).await;
                    let raw = c.raw(1).await?;
                    cx.check("PXG-ACT-004", raw.is_empty() && c.closed.is_some(), || "the client got bytes, or its connection stayed open".into());
                }
                cx.check("PXG-ACT-004", cx.seen().is_empty(), || "the upstream got the request".into());
                Ok(())
            }),
        Case::new("glance/pending", 4, &["PXG-EVT-003", "PXG-ASY-004"], "PENDING holds the request, body and all, and its completion edits it")
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script(
                "glance request-headers: pending; complete R @gate:go
                 glance result R: set x-a 1; delete x-gone; continue",
            )
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.send(&Request::post(MAY_PEND, b"body").field("x-gone", "1"), cx.name()).await;
                cx.until("PXG-EVT-003", "PENDING", |r| r.calls("on_event", Edge::Exit, "glance").len() == 1).await;
                cx.settle().await?;
                cx.check("PXG-EVT-003", cx.seen().is_empty(), || "the request has left while its event is PENDING".into());
                cx.open("go");
                cx.equal("PXG-ASY-004", "the status", c.response("POST").await?.status, 200);
                cx.ended().await;
                cx.wait("PXG-ASY-004", "the answer of complete", || !cx.records().statuses("complete", "glance").is_empty()).await;
                let seen = cx.seen();
                let up = |n: &str| seen.first().and_then(|s| s.get(n));
                cx.equal("PXG-ASY-004", "x-a and x-gone upstream", (up("x-a"), up("x-gone")), (Some("1".into()), None));
                cx.equal("PXG-ASY-004", "the body upstream", seen.first().map(|s| s.text()), Some("body".into()));
                cx.equal("PXG-ASY-004", "what complete answered", cx.records().statuses("complete", "glance"), vec![OK]);
                Ok(())
            }),
        Case::new("glance/early", 4, &["PXG-ASY-004", "PXG-ASY-002"], "completions inside the event: the first one counts, later ones are stale")
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script(
                "glance request-headers: complete R @now; complete R @now; complete R @end; complete R @end+5; pending
                 glance result R: reply 418; body tea",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::get(MAY_PEND)).await?;
                cx.equal("PXG-ASY-004", "the status", x.reply.status, 418);
                cx.equal("PXG-ASY-004", "the body", x.reply.text(), "tea".into());
                cx.until("PXG-ASY-002", "four answers", |r| r.statuses("complete", "glance").len() >= 4).await;
                cx.equal("PXG-ASY-002", "what complete answered", cx.records().statuses("complete", "glance"), vec![OK, STALE, STALE, STALE]);
                Ok(())
            }),
        Case::new("glance/discarded", 4, &["PXG-ASY-005"], "a completion before the event answers CONTINUE has no effect")
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script(
                "glance request-headers: complete R @now; set x-a 1; continue
                 glance result R: set x-evil 1; continue",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::get(MAY_PEND)).await?;
                cx.equal("PXG-ASY-005", "x-a and x-evil upstream", (x.up_get("x-a"), x.up_get("x-evil")), (Some("1".into()), None));
                Ok(())
            }),
        Case::new("glance/abort", 4, &["PXG-ASY-008", "PXG-ASY-002"], "a client goes away while its event is PENDING")
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script(
                "glance request-headers: pending; complete R @cancel; complete R @end+5
                 glance result R: memory owned; set x-a 1; continue",
            )
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.send(&Request::get(MAY_PEND), cx.name()).await;
                cx.until("PXG-ASY-008", "PENDING", |r| r.calls("on_event", Edge::Exit, "glance").len() == 1).await;
                c.reset();
                cx.until("PXG-ASY-002", "both answers", |r| r.statuses("complete", "glance").len() >= 2).await;
                let all = cx.records();
                cx.equal("PXG-ASY-008", "on_cancel", all.calls("on_cancel", Edge::Enter, "glance").len(), 1);
                cx.equal("PXG-ASY-002", "what complete answered", all.statuses("complete", "glance"), vec![STALE, STALE]);
                cx.check("PXG-ASY-008", cx.seen().is_empty(), || "the request is upstream".into());
                Ok(())
            }),
        Case::new("glance/apply", 4, &["PXG-ASY-017", "PXG-ASY-002"], "the handle lives as long as the stream: a reply by apply while the upstream is waited for, and STALE after the end")
            .needs(&[Feature::APPLY])
            .script(
                "glance request-headers: apply R @gate:go; apply R @end+5; continue
                 glance-sync request-headers: apply R @gate:go; apply R @end+5; continue
                 * result R: reply 504; body slow",
            )
            .run(|cx| async move {
                cx.answer(Answer::status(200).body(b"x").first(Step::Gate("never".into())));
                let mut waiting = Vec::new();
                for path in [SYNC, MAY_PEND] {
                    let mut c = cx.connect().await?;
                    c.send(&Request::get(path), cx.name()).await;
                    waiting.push(c);
                }
                cx.upstream_saw("PXG-ASY-017", 2).await;
                cx.open("go");
                for mut c in waiting {
                    let reply = c.response("GET").await?;
                    cx.equal("PXG-ASY-017", "the status", reply.status, 504);
                    cx.equal("PXG-ASY-017", "the body", reply.text(), "slow".into());
                }
                for place in ["glance", "glance-sync"] {
                    cx.until("PXG-ASY-002", "both answers", |r| r.statuses("apply", place).len() >= 2).await;
                    cx.equal("PXG-ASY-002", "what apply answered", cx.records().statuses("apply", place), vec![OK, STALE]);
                }
                cx.open("never");
                Ok(())
            }),
        Case::new("glance/modes", 2, &["PXG-BODY-015", "PXG-ACT-003"], "a body mode without its phase and MORE are refused")
            .script(
                "glance-sync request-headers: mode request whole
                 glance request-headers: more",
            )
            .run(|cx| async move {
                cx.equal("PXG-BODY-015", "the status with a mode", cx.exchange(Request::post(SYNC, b"body")).await?.reply.status, 500);
                cx.equal("PXG-ACT-003", "the status with MORE", cx.exchange(Request::post(MAY_PEND, b"body")).await?.reply.status, 500);
                Ok(())
            }),
        Case::new("glance/one-connection", 2, &["PXG-EVT-016", "PXG-HDR-001"], "streams of one connection, one after the other, each with a handle and a view of its own")
            .script("* request-headers: set x-a 1")
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                for i in 0..20 {
                    let path = format!("{}{i}", if i % 2 == 0 { SYNC } else { MAY_PEND });
                    c.send(&Request::get(&path).field("x-turn", &i.to_string()), cx.name()).await;
                    cx.equal("PXG-EVT-016", "the status", c.response("GET").await?.status, 200);
                }
                cx.ended().await;
                let all = cx.records();
                let events: Vec<_> = ["glance", "glance-sync"].iter().flat_map(|p| all.events(p, Phase::REQUEST_HEADERS.0)).collect();
                let turns: std::collections::BTreeSet<String> = events
                    .iter()
                    .filter_map(|e| e.fields.iter().flatten().find(|f| f.0 == "x-turn").map(|f| f.1.clone()))
                    .collect();
                cx.equal("PXG-HDR-001", "values of x-turn that were shown", turns.len(), 20);
                cx.equal("PXG-EVT-016", "events", events.len(), 20);
                Ok(())
            }),
    ]
}
