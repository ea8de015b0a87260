//! Chains.

use std::collections::BTreeSet;
use std::path::Path;

use super::own::{self, Own};
use super::prelude::*;
use crate::hostcheck::groups;

const PLAIN: &str = "subscribe all\npend all\n";

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("chn/order", 2, &["PXG-CHN-001"], "request in order, response in reverse, LOG in order; each sees what those before it did")
            .script(
                "a request-headers: add x-path a
                 b request-headers: add x-path b
                 c request-headers: add x-path c
                 a response-headers: add x-path a
                 b response-headers: add x-path b
                 c response-headers: add x-path c",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-CHN-001", "x-path upstream", x.up_get("x-path"), Some("a, b, c".into()));
                cx.equal("PXG-CHN-001", "x-path at the client", x.reply.get("x-path"), Some("c, b, a".into()));
                for (phase, order) in [
                    (Phase::REQUEST_HEADERS, ["a", "b", "c"]),
                    (Phase::RESPONSE_HEADERS, ["c", "b", "a"]),
                    (Phase::LOG, ["a", "b", "c"]),
                ] {
                    let seen: Vec<String> = x
                        .records
                        .iter()
                        .filter(|r| r.is("on_event", Edge::Enter) && r.phase == Some(phase.0))
                        .filter_map(|r| r.instance.clone())
                        .collect();
                    cx.equal("PXG-CHN-001", &format!("places of phase {}", phase.0), seen, order.map(String::from).to_vec());
                }
                let view = |place: &str, phase: Phase| -> String {
                    let all = x.records.events(place, phase.0);
                    let fields = all.first().and_then(|r| r.fields.clone()).unwrap_or_default();
                    let v: Vec<String> = fields.iter().filter(|f| f.0 == "x-path").map(|f| f.1.clone()).collect();
                    v.join(", ")
                };
                cx.equal("PXG-CHN-001", "what c is shown", view("c", Phase::REQUEST_HEADERS), "a, b".into());
                cx.equal("PXG-CHN-001", "what a is shown", view("a", Phase::RESPONSE_HEADERS), "c, b".into());
                Ok(())
            }),
        Case::new("chn/bodies", 2, &["PXG-CHN-001", "PXG-CHN-002"], "bodies through three places with different modes")
            .needs(&[Feature::BODY_STREAM_REQUEST, Feature::BODY_WHOLE_REQUEST, Feature::RESIZE_REQUEST])
            .script(
                "a request-headers: mode request stream; resizes
                 a request-body#1: inject a
                 b request-headers: mode request whole
                 b request-body: inject b
                 c request-headers: continue",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::post("/x", b"0123")).await?;
                cx.equal("PXG-CHN-001", "the body upstream", x.up_text(), Some("ba0123".into()));
                let b = x.records.events("b", Phase::REQUEST_BODY.0);
                cx.equal("PXG-CHN-001", "what b is shown", b.first().and_then(|r| r.body.clone()), Some("a0123".into()));
                cx.equal("PXG-CHN-002", "body events at c, in SKIP", x.records.events("c", Phase::REQUEST_BODY.0).len(), 0);
                Ok(())
            }),
        Case::new("chn/reply-in-the-middle", 2, &["PXG-CHN-004", "PXG-CHN-005"], "b replies at the response's headers: c is cut, a sees the reply or nothing")
            .needs(&[Feature::BODY_STREAM_RESPONSE])
            .script(
                "c request-headers: mode response stream
                 b response-headers: reply 503; body sorry",
            )
            .run(|cx| async move {
                cx.answer(Answer::status(200).chunks(&[b"one", b"two", b"three"]));
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-CHN-004", "the status", x.reply.status, 503);
                let all = &x.records;
                cx.equal("PXG-CHN-005", "body events at c", all.events("c", Phase::RESPONSE_BODY.0).len(), 0);
                let at_a = all.events("a", Phase::RESPONSE_HEADERS.0).len();
                cx.equal("PXG-CHN-004", "RESPONSE_HEADERS at a", at_a, usize::from(cx.has(Feature::REPLY_REFILTER)));
                for place in ["a", "b", "c"] {
                    cx.equal("PXG-EVT-009", &format!("LOG at {place}"), all.events(place, Phase::LOG.0).len(), 1);
                }
                Ok(())
            }),
        Case::new("chn/reply-of-a-body", 2, &["PXG-CHN-004", "PXG-CHN-005"], "b replies at the request's body: c, which the request has reached, sees nothing of it")
            .needs(&[Feature::BODY_STREAM_REQUEST])
            .script(
                "b request-headers: mode request stream
                 b request-body#1: reply 403; body no",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::post("/x", b"body")).await?;
                cx.equal("PXG-CHN-004", "the status", x.reply.status, 403);
                cx.equal("PXG-CHN-004", "events at c", x.records.phases("c"), vec!["REQUEST_HEADERS", "LOG"]);
                let at_a = x.records.events("a", Phase::RESPONSE_HEADERS.0).len();
                cx.equal("PXG-CHN-004", "RESPONSE_HEADERS at a", at_a, usize::from(cx.has(Feature::REPLY_REFILTER)));
                Ok(())
            }),
        Case::new("chn/reply-cuts-first", 4, &["PXG-CHN-005"], "what pends behind a reply's place is cancelled before the first event of the reply")
            .needs(&[Feature::PEND_REQUEST_HEADERS, Feature::APPLY, Feature::REPLY_REFILTER])
            .script(
                "b request-headers: apply R @gate:reply
                 b result R: reply 504; body slow
                 c request-headers: pending; complete L @cancel
                 c result L: continue",
            )
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                cx.until("PXG-CHN-005", "PENDING at c", |r| r.calls("on_event", Edge::Exit, "c").len() == 1).await;
                cx.open("reply");
                let reply = c.response("GET").await?;
                cx.equal("PXG-CHN-005", "the status", reply.status, 504);
                cx.ended().await;
                let all = cx.records();
                let cancelled = all.calls("on_cancel", Edge::Enter, "c").first().map(|r| r.seq);
                let shown = all.events("a", Phase::RESPONSE_HEADERS.0).first().map(|r| r.seq);
                cx.check("PXG-CHN-005", cancelled.is_some() && shown.is_some() && cancelled < shown, || {
                    format!("on_cancel at c has the number {cancelled:?}, RESPONSE_HEADERS at a {shown:?}: expected the cut before the reply's first event")
                });
                cx.check("PXG-CHN-005", cx.seen().is_empty(), || "the request is upstream".into());
                Ok(())
            }),
        Case::new("chn/reply-cuts-pending", 4, &["PXG-CHN-005", "PXG-ASY-017"], "one place pends, another replies by apply: the token is cancelled before the reply is seen")
            .needs(&[Feature::PEND_REQUEST_HEADERS, Feature::APPLY])
            .script(
                "a request-headers: apply R @gate:reply
                 a result R: reply 504; body slow
                 b request-headers: pending; complete L @cancel
                 b result L: continue",
            )
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                cx.until("PXG-CHN-005", "PENDING at b", |r| r.calls("on_event", Edge::Exit, "b").len() == 1).await;
                cx.open("reply");
                let reply = c.response("GET").await?;
                cx.equal("PXG-CHN-005", "the status", reply.status, 504);
                cx.ended().await;
                let all = cx.records();
                cx.equal("PXG-CHN-005", "on_cancel at b", all.calls("on_cancel", Edge::Enter, "b").len(), 1);
                cx.equal("PXG-ASY-002", "a completion inside on_cancel", all.statuses("complete", "b"), vec![STALE]);
                cx.equal("PXG-CHN-005", "events at c", all.phases("c"), vec!["LOG"]);
                Ok(())
            }),
        Case::new("chn/orphan", 2, &["PXG-CHN-004", "PXG-EVT-004"], "with ORPHAN a guest behind the reply sees it, first")
            .needs(&[Feature::ORPHAN, Feature::REPLY_REFILTER])
            .script("b request-headers: reply 403; body no")
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/orphan/x")).await?;
                cx.equal("PXG-CHN-004", "the status", x.reply.status, 403);
                let orphan = x.records.events("orphan", Phase::RESPONSE_HEADERS.0);
                let a = x.records.events("a", Phase::RESPONSE_HEADERS.0);
                cx.equal("PXG-CHN-004", "RESPONSE_HEADERS at the orphan", orphan.len(), 1);
                cx.equal("PXG-CHN-004", "RESPONSE_HEADERS at a", a.len(), 1);
                let first = orphan.first().map_or(u64::MAX, |r| r.seq) < a.first().map_or(0, |r| r.seq);
                cx.check("PXG-CHN-004", first, || "a saw the reply before the orphan".into());
                cx.equal("PXG-EVT-004", "REQUEST_HEADERS at the orphan", x.records.events("orphan", Phase::REQUEST_HEADERS.0).len(), 0);
                Ok(())
            }),
        Case::new("chn/response-only", 2, &["PXG-CHN-001", "PXG-EVT-004"], "a guest that subscribes to the response alone gets it")
            .needs(&[Feature::BODY_STREAM_RESPONSE])
            .script("late response-headers: set x-late 1")
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/late/x")).await?;
                cx.equal("PXG-EVT-004", "x-late", x.reply.get("x-late"), Some("1".into()));
                cx.equal("PXG-EVT-004", "RESPONSE_HEADERS at late", x.records.events("late", Phase::RESPONSE_HEADERS.0).len(), 1);
                Ok(())
            }),
        Case::new("chn/recompute", 2, &["PXG-CHN-006"], "the chain stays, also when the route is computed again")
            .needs(&[Feature::ROUTE])
            .script("b request-headers: set :path /never/x; recompute")
            .alone()
            .run(|cx| async move {
                let probe = cx.shared().probe.clone();
                let places = ["a", "b", "c"];
                let mut setup = own::chain(&cx, &places.map(|n| (n, PLAIN)))?;
                own::also(&cx, &mut setup, ("probe", &probe), "never", PLAIN);
                // The other route has a chain of its own, and other configurations for what is in both.
                if let Some(other) = setup.routes.iter_mut().find(|r| r.prefix == "/never") {
                    let of = |n: &str| groups::config(Path::new("-"), PLAIN, n, &[]);
                    other.chain.extend(places.map(|n| (n.to_string(), Some(of(n)))));
                }
                setup.options.push(("cluster".into(), "other".into()));
                own::option(&mut setup, "b", "clusters", "other");
                let own = Own::start(&cx, &setup).await?;
                let x = own.cx.exchange(Request::post("/x", b"body")).await?;
                cx.equal("PXG-CHN-006", "the status", x.reply.status, 200);
                cx.equal("PXG-CHN-006", "the path upstream", x.up.as_ref().map(|u| u.head.target().to_string()), Some("/never/x".into()));
                cx.equal("PXG-CHN-006", "the body upstream", x.up_text(), Some("body".into()));
                cx.equal("PXG-CHN-006", "events at never", x.records.phases("never").len(), 0);
                for place in places {
                    cx.equal("PXG-CHN-006", &format!("events at {place}"), x.records.phases(place), vec!["REQUEST_HEADERS", "RESPONSE_HEADERS", "LOG"]);
                    let events = x.records.iter().filter(|r| r.instance.as_deref() == Some(place) && r.is("on_event", Edge::Enter));
                    let configs: BTreeSet<_> = events.filter_map(|r| r.config).collect();
                    cx.equal("PXG-CHN-006", &format!("configurations in the events of {place}"), configs.len(), 1);
                }
                own.end("PXG-CHN-006").await
            }),
        Case::new("chn/metadata", 2, &["PXG-CHN-003"], "metadata of one guest is an attribute for those behind it")
            .needs(&[Feature::METADATA])
            .script(
                "a request-headers: meta key value
                 b request-headers: continue",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/meta/x")).await?;
                let at = |phase: Phase| {
                    x.records.events("meta", phase.0).first().and_then(|r| r.attrs.clone()).unwrap_or_default()
                };
                cx.equal("PXG-CHN-003", "metadata.a.key at meta", at(Phase::REQUEST_HEADERS).first().cloned().flatten(), Some("value".into()));
                cx.equal("PXG-CHN-003", "metadata.a.none at meta", at(Phase::REQUEST_HEADERS).get(1).cloned().flatten(), None);
                Ok(())
            }),
        Case::new("chn/forged-namespace", 2, &["PXG-CHN-003"], "another namespace without a grant is refused")
            .needs(&[Feature::METADATA])
            .script("b request-headers: meta other/key forged")
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-CHN-003", "the status", x.reply.status, 500);
                Ok(())
            }),
    ]
}
