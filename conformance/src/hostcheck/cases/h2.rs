//! The same over HTTP/2: what streams of one connection change.

use super::prelude::*;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("h2/exchange", 2, &["PXG-HDR-001", "PXG-ACT-002", "PXG-EVT-001", "PXG-NEG-008"], "a plain exchange over HTTP/2")
            .needs(&[Feature::BODY_STREAM_REQUEST, Feature::BODY_STREAM_RESPONSE])
            .script("* request-headers: mode request stream; mode response stream; set x-a b")
            .run(|cx| async move {
                cx.answer(Answer::status(200).field("x-one", "1").chunks(&[b"one", b"two"]));
                let mut h = cx.h2().await?;
                let mut s = h.send(&Request::new("POST", "/x?y=1").field("x-many", "1").field("x-many", "2"), cx.name(), false).await?;
                s.data(b"abc", false)?;
                s.data(b"def", true)?;
                let reply = s.response().await?;
                cx.equal("PXG-ACT-002", "the status", reply.status, 200);
                cx.equal("PXG-ACT-002", "the body", reply.text(), "onetwo".into());
                cx.check("PXG-ACT-002", reply.complete, || "the response has no end".into());
                cx.ended().await;
                let up = cx.seen();
                cx.equal("PXG-ACT-002", "the body upstream", up.first().map(|u| u.text()), Some("abcdef".into()));
                let view = cx.records().events("a", Phase::REQUEST_HEADERS.0);
                let view = view.first().and_then(|r| r.fields.clone()).unwrap_or_default();
                let get = |n: &str| view.iter().filter(|f| f.0 == n).map(|f| f.1.clone()).collect::<Vec<_>>().join(", ");
                for (n, v) in [(":method", "POST"), (":path", "/x?y=1"), (":authority", "pxg.test"), (":scheme", "http"), ("x-many", "1, 2")] {
                    cx.equal("PXG-HDR-001", n, get(n), v.into());
                }
                Ok(())
            }),
        Case::new("h2/bodyless", 2, &["PXG-EVT-008", "PXG-BODY-017"], "END_STREAM at the head of a request and of a response")
            .script("* request-headers: continue")
            .run(|cx| async move {
                cx.answer(Answer::status(204).head());
                let mut h = cx.h2().await?;
                let mut s = h.send(&Request::get("/x"), cx.name(), true).await?;
                let reply = s.response().await?;
                cx.equal("PXG-EVT-008", "the status", reply.status, 204);
                cx.ended().await;
                for phase in [Phase::REQUEST_HEADERS, Phase::RESPONSE_HEADERS] {
                    let flags = cx.records().events("b", phase.0).first().and_then(|r| r.flags).unwrap_or(0);
                    cx.check("PXG-EVT-008", flags & EventFlags::END_STREAM.0 != 0, || format!("no END_STREAM in phase {}", phase.0));
                }
                Ok(())
            }),
        Case::new("h2/request-trailers", 2, &["PXG-TRL-003"], "a request's trailers over HTTP/2")
            .needs(&[Feature::TRAILERS_IN_REQUEST])
            .script("* request-headers: continue")
            .run(|cx| async move {
                let mut h = cx.h2().await?;
                let mut s = h.send(&Request::new("POST", "/x").field("te", "trailers"), cx.name(), false).await?;
                s.data(b"abc", false)?;
                s.trailers(&[("x-r", "1")])?;
                cx.equal("PXG-TRL-003", "the status", s.response().await?.status, 200);
                cx.ended().await;
                let seen = cx.records().events("b", Phase::REQUEST_TRAILERS.0);
                let seen = seen.first().and_then(|r| r.trailers.clone()).unwrap_or_default();
                cx.check("PXG-TRL-003", seen.iter().any(|t| t.0 == "x-r"), || format!("the request's trailers at b: {seen:?}"));
                Ok(())
            }),
        Case::new("h2/response-trailers", 2, &["PXG-TRL-001", "PXG-TRL-003"], "an upstream's trailers leave over HTTP/2, changed")
            .needs(&[Feature::TRAILERS_IN_RESPONSE, Feature::TRAILERS_OUT_RESPONSE])
            .script("b response-trailers: t.set x-t 2")
            .run(|cx| async move {
                cx.answer(Answer::status(200).chunks_and_trailers(&[b"one", b"two"], &[("x-t", "1")]));
                let mut h = cx.h2().await?;
                let reply = h.send(&Request::get("/x").field("te", "trailers"), cx.name(), true).await?.response().await?;
                cx.equal("PXG-TRL-001", "the body", reply.text(), "onetwo".into());
                cx.equal("PXG-TRL-001", "trailers at the client", reply.trailers, vec![("x-t".into(), "2".into())]);
                cx.check("PXG-TRL-001", reply.complete, || "the response has no end".into());
                cx.ended().await;
                let seen = cx.records().events("b", Phase::RESPONSE_TRAILERS.0);
                cx.equal("PXG-TRL-003", "TRAILERS events at b", seen.len(), 1);
                Ok(())
            }),
        Case::new("h2/added-trailers", 2, &["PXG-TRL-001"], "trailers that a guest adds to a response leave over HTTP/2")
            .needs(&[Feature::TRAILERS_OUT_RESPONSE, Feature::BODY_STREAM_RESPONSE])
            .script(
                "b request-headers: mode response stream
                 b response-body: t.set x-t 1",
            )
            .run(|cx| async move {
                cx.answer(Answer::status(200).chunks(&[b"one", b"two"]));
                let mut h = cx.h2().await?;
                let reply = h.send(&Request::get("/x").field("te", "trailers"), cx.name(), true).await?.response().await?;
                cx.equal("PXG-TRL-001", "the body", reply.text(), "onetwo".into());
                cx.equal("PXG-TRL-001", "trailers at the client", reply.trailers, vec![("x-t".into(), "1".into())]);
                cx.check("PXG-TRL-001", reply.complete, || "the response has no end".into());
                Ok(())
            }),
        Case::new("h2/reset", 2, &["PXG-ACT-004"], "RESET is RST_STREAM, and the connection lives on")
            .script(
                "b request-headers: continue
                 b request-headers#1: reset",
            )
            .run(|cx| async move {
                let mut h = cx.h2().await?;
                let reply = h.send(&Request::get("/x"), cx.name(), true).await?.response().await?;
                cx.check("PXG-ACT-004", reply.status == 0 && reply.reset.is_some(), || format!("{reply:?}, expected RST_STREAM"));
                let reply = h.send(&Request::get("/none"), "", true).await?.response().await?;
                cx.equal("PXG-ACT-004", "the status of the next stream", reply.status, 200);
                Ok(())
            }),
        Case::new("h2/abort-while-pending", 4, &["PXG-ASY-008", "PXG-EVT-017", "PXG-ASY-016"], "RST_STREAM while b pends: its token is cancelled, the other stream of the connection goes on")
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script(
                "b request-headers: pending; complete R @gate:go
                 b result R: continue",
            )
            .run(|cx| async move {
                let mut h = cx.h2().await?;
                let dying = h.send(&Request::get("/x"), cx.name(), true).await?;
                let mut living = h.send(&Request::get("/x"), cx.name(), true).await?;
                cx.until("PXG-ASY-008", "two PENDING", |r| r.calls("on_event", Edge::Exit, "b").len() >= 2).await;
                dying.reset();
                cx.until("PXG-ASY-008", "on_cancel", |r| r.calls("on_cancel", Edge::Enter, "b").len() == 1).await;
                cx.open("go");
                let reply = living.response().await?;
                cx.equal("PXG-ASY-016", "the status of the other stream", reply.status, 200);
                cx.until("PXG-ASY-002", "both answers", |r| r.statuses("complete", "b").len() == 2).await;
                let mut got = cx.records().statuses("complete", "b");
                got.sort_unstable();
                cx.equal("PXG-ASY-002", "what complete answered", got, vec![STALE, OK]);
                Ok(())
            }),
        Case::new("h2/many", 4, &["PXG-ASY-004", "PXG-ASY-007", "PXG-THR-004"], "thirty streams of one connection pend at once, and are completed from thirty threads")
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script(
                "b request-headers: pending; complete R @gate:go
                 b result R: set x-done yes; continue",
            )
            .run(|cx| async move {
                let mut h = cx.h2().await?;
                let mut all = Vec::new();
                for i in 0..30 {
                    all.push(h.send(&Request::get(&format!("/x{i}")), cx.name(), true).await?);
                }
                cx.until("PXG-ASY-004", "30 PENDING", |r| r.calls("on_event", Edge::Exit, "b").len() >= 30).await;
                cx.open("go");
                for mut s in all {
                    cx.equal("PXG-ASY-004", "the status", s.response().await?.status, 200);
                }
                let done = cx.seen().iter().filter(|s| s.get("x-done").is_some()).count();
                cx.equal("PXG-ASY-004", "requests with the completion's operation", done, 30);
                Ok(())
            }),
        Case::new("h2/reply", 2, &["PXG-RPL-004", "PXG-RPL-005"], "a reply to an upload that has not ended")
            .script("b request-headers: reply 403; body no")
            .run(|cx| async move {
                let mut h = cx.h2().await?;
                let mut s = h.send(&Request::new("POST", "/x"), cx.name(), false).await?;
                let reply = s.response().await?;
                cx.equal("PXG-RPL-004", "the status", reply.status, 403);
                cx.equal("PXG-RPL-004", "the body", reply.text(), "no".into());
                cx.ended().await;
                cx.check("PXG-RPL-004", cx.seen().is_empty(), || "the upstream got the request".into());
                Ok(())
            }),
    ]
}
