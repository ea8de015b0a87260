//! Actions, and what they make of a stream.

use super::own::{self, Own};
use super::prelude::*;
use crate::hostcheck::upstream::Seen;

pub(super) fn cases() -> Vec<Case> {
    let mut all = vec![
        Case::new(
            "act/continue",
            2,
            &["PXG-ACT-002"],
            "CONTINUE forwards message and body as they came",
        )
        .script("* request-headers: continue")
        .run(|cx| async move {
            cx.answer(
                Answer::status(201)
                    .field("x-one", "1")
                    .field("x-two", "a")
                    .field("x-two", "b")
                    .field("x-empty", "")
                    .body(&bytes(3000)),
            );
            let r = Request::post("/path/to?q=1&r=%20", &bytes(2000))
                .field("x-one", "1")
                .field("x-many", "a")
                .field("x-many", "b")
                .field("x-empty", "");
            let mut plain = cx.connect().await?;
            let mut past = r.clone();
            past.path = "/none".into();
            plain.send(&past, cx.name()).await;
            plain.response("POST").await?;
            let x = cx.exchange(r).await?;
            let up = x.up.as_ref();
            // What the host adds by itself it adds without guests too.
            let names = |s: &Seen| {
                let mut names: Vec<String> =
                    s.head.fields.iter().map(|f| f.0.to_lowercase()).collect();
                names.sort();
                names
            };
            cx.equal(
                "PXG-ACT-002",
                "the names upstream, of those without guests",
                up.map(names),
                cx.seen().first().map(names),
            );
            cx.equal(
                "PXG-ACT-002",
                "the method",
                up.map(|u| u.head.method().to_string()),
                Some("POST".into()),
            );
            cx.equal(
                "PXG-ACT-002",
                "the path upstream",
                up.map(|u| u.head.target().to_string()),
                Some("/path/to?q=1&r=%20".into()),
            );
            for (name, value) in [("x-one", "1"), ("x-many", "a, b"), ("x-empty", "")] {
                cx.equal(
                    "PXG-ACT-002",
                    &format!("{name} upstream"),
                    x.up_get(name),
                    Some(value.into()),
                );
            }
            cx.check(
                "PXG-ACT-002",
                up.is_some_and(|u| u.body == bytes(2000)),
                || "the body upstream is another".into(),
            );
            cx.equal("PXG-ACT-002", "the status", x.reply.status, 201);
            for (name, value) in [("x-one", "1"), ("x-two", "a, b"), ("x-empty", "")] {
                cx.equal(
                    "PXG-ACT-002",
                    &format!("{name} at the client"),
                    x.reply.get(name),
                    Some(value.into()),
                );
            }
            cx.check("PXG-ACT-002", x.reply.body == bytes(3000), || {
                "the body at the client is another".into()
            });
            Ok(())
        }),
        Case::new(
            "act/more-threshold",
            2,
            &["PXG-ACT-003", "PXG-BODY-002"],
            "MORE with a threshold: the next event comes with it, or at the end",
        )
        .needs(&[Feature::BODY_STREAM_REQUEST])
        .script(
            "b request-headers: mode request stream
             b request-body#1: more 10",
        )
        .run(|cx| async move {
            let body = bytes(40);
            let mut c = cx.connect().await?;
            c.write(
                &Request::post("/x", b"")
                    .field("content-length", "40")
                    .head_only()
                    .head(cx.name()),
            )
            .await;
            c.write(&body[..4]).await;
            cx.until("PXG-ACT-003", "the first body event", |r| {
                !r.events("b", Phase::REQUEST_BODY.0).is_empty()
            })
            .await;
            c.write(&body[4..16]).await;
            cx.until(
                "PXG-ACT-003",
                "an event when 10 more bytes have come",
                |r| r.events("b", Phase::REQUEST_BODY.0).len() >= 2,
            )
            .await;
            c.write(&body[16..]).await;
            let reply = c.response("POST").await?;
            cx.equal("PXG-ACT-003", "the status", reply.status, 200);
            cx.check(
                "PXG-BODY-002",
                cx.seen().first().is_some_and(|s| s.body == body),
                || "the body upstream is another".into(),
            );
            Ok(())
        }),
        Case::new(
            "act/more-end",
            2,
            &["PXG-ACT-003"],
            "MORE waits for more than there is: the end of the body brings an event",
        )
        .needs(&[Feature::BODY_STREAM_REQUEST, Feature::BODY_STREAM_RESPONSE])
        .script(
            "b request-headers: mode request stream; mode response stream
                 b request-body#1: more 1000000
                 b response-body#1: more 1000000",
        )
        .run(|cx| async move {
            cx.answer(
                Answer::status(200)
                    .early()
                    .field("content-length", "6")
                    .first(Step::WholeRequest)
                    .send(b"abc")
                    .gate("rest")
                    .send(b"def"),
            );
            let mut c = cx.connect().await?;
            c.write(
                &Request::post("/x", b"")
                    .field("content-length", "6")
                    .head_only()
                    .head(cx.name()),
            )
            .await;
            c.write(b"123").await;
            cx.until("PXG-ACT-003", "the first body event", |r| {
                !r.events("b", Phase::REQUEST_BODY.0).is_empty()
            })
            .await;
            c.write(b"456").await;
            cx.until("PXG-ACT-003", "the first response body event", |r| {
                !r.events("b", Phase::RESPONSE_BODY.0).is_empty()
            })
            .await;
            cx.open("rest");
            let reply = c.response("POST").await?;
            cx.equal("PXG-ACT-003", "the body", reply.text(), "abcdef".into());
            cx.equal(
                "PXG-ACT-003",
                "the body upstream",
                cx.seen().first().map(|s| s.text()),
                Some("123456".into()),
            );
            Ok(())
        }),
        Case::new(
            "act/more-hold-time",
            2,
            &["PXG-ACT-003"],
            "MORE below its threshold: the hold time brings an event",
        )
        .needs(&[Feature::BODY_STREAM_REQUEST])
        .script(
            "b request-headers: mode request stream
                 b request-body#1: more 1000000",
        )
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.write(
                &Request::post("/x", b"")
                    .field("content-length", "9")
                    .head_only()
                    .head(cx.name()),
            )
            .await;
            c.write(b"123").await;
            cx.until("PXG-ACT-003", "the first body event", |r| {
                !r.events("b", Phase::REQUEST_BODY.0).is_empty()
            })
            .await;
            c.write(b"456").await;
            cx.until("PXG-ACT-003", "an event after the hold time", |r| {
                r.events("b", Phase::REQUEST_BODY.0).len() >= 2
            })
            .await;
            c.write(b"789").await;
            cx.equal(
                "PXG-ACT-003",
                "the status",
                c.response("POST").await?.status,
                200,
            );
            Ok(())
        }),
        Case::new(
            "act/reset",
            2,
            &["PXG-ACT-004"],
            "RESET: no byte of a reply",
        )
        .script("b request-headers: reset")
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.send(&Request::get("/x"), cx.name()).await;
            let raw = c.raw(1).await?;
            cx.check("PXG-ACT-004", raw.is_empty() && c.closed.is_some(), || {
                "the client got bytes, or its connection stayed open".into()
            });
            cx.check("PXG-ACT-004", cx.seen().is_empty(), || {
                "the upstream got the request".into()
            });
            Ok(())
        }),
        Case::new(
            "act/reset-response",
            2,
            &["PXG-ACT-004"],
            "RESET at the response's headers: no byte of it",
        )
        .script("b response-headers: reset")
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.send(&Request::get("/x"), cx.name()).await;
            let raw = c.raw(1).await?;
            cx.check("PXG-ACT-004", raw.is_empty() && c.closed.is_some(), || {
                "the client got bytes, or its connection stayed open".into()
            });
            Ok(())
        }),
        Case::new(
            "act/late-reply",
            2,
            &["PXG-ACT-005"],
            "REPLY after the response's headers have left resets, and is no failure",
        )
        .needs(&[Feature::BODY_STREAM_RESPONSE])
        .script(
            "b request-headers: mode response stream
                 b response-body#1: reply 403; body late",
        )
        .run(|cx| async move {
            cx.answer(
                Answer::status(200)
                    .field("content-length", "6")
                    .send(b"abc")
                    .gate("rest")
                    .send(b"def"),
            );
            let mut c = cx.connect().await?;
            c.send(&Request::get("/x"), cx.name()).await;
            let reply = c.response("GET").await?;
            cx.check(
                "PXG-ACT-005",
                !reply.complete && !reply.text().contains("late"),
                || {
                    format!(
                        "the client got a whole response, or the late reply: {:?}",
                        reply.text()
                    )
                },
            );
            cx.ended().await;
            // Not a failure: LOG comes to b as well.
            cx.equal(
                "PXG-ACT-005",
                "LOG at b",
                cx.records().events("b", Phase::LOG.0).len(),
                1,
            );
            Ok(())
        }),
        Case::new(
            "act/hold-headers",
            2,
            &["PXG-ACT-007"],
            "headers held by MORE leave with the first CONTINUE and not before",
        )
        .needs(&[
            Feature::HOLD_REQUEST,
            Feature::BODY_STREAM_REQUEST,
            Feature::PEND_REQUEST_BODY,
        ])
        .script(
            "b request-headers: mode request stream; more
                 b request-body#1: set x-late yes; more 3
                 b request-body#2: pending; complete R @gate:go
                 b result R: set x-later yes; continue",
        )
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.write(
                &Request::post("/x", b"")
                    .field("content-length", "6")
                    .head_only()
                    .head(cx.name()),
            )
            .await;
            c.write(b"abc").await;
            cx.until("PXG-ACT-007", "the first body event", |r| {
                !r.events("b", Phase::REQUEST_BODY.0).is_empty()
            })
            .await;
            c.write(b"def").await;
            cx.until("PXG-ACT-007", "the second body event", |r| {
                r.events("b", Phase::REQUEST_BODY.0).len() >= 2
            })
            .await;
            cx.settle().await?;
            cx.check("PXG-ACT-007", cx.seen().is_empty(), || {
                "the upstream got held headers".into()
            });
            cx.open("go");
            cx.equal(
                "PXG-ACT-007",
                "the status",
                c.response("POST").await?.status,
                200,
            );
            let up = cx.seen();
            let up = up.first();
            cx.equal(
                "PXG-ACT-007",
                "x-late upstream",
                up.and_then(|u| u.get("x-late")),
                Some("yes".into()),
            );
            cx.equal(
                "PXG-ACT-007",
                "x-later upstream",
                up.and_then(|u| u.get("x-later")),
                Some("yes".into()),
            );
            cx.equal(
                "PXG-ACT-007",
                "the body upstream",
                up.map(|u| u.text()),
                Some("abcdef".into()),
            );
            Ok(())
        }),
        Case::new(
            "act/pending-not-declared",
            2,
            &["PXG-ACT-006"],
            "PENDING of a configuration that never pends is a failure",
        )
        .script("never request-headers: pending")
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/never/x")).await?;
            cx.equal("PXG-ACT-006", "the status", x.reply.status, 500);
            cx.equal(
                "PXG-ACT-006",
                "events",
                x.records.phases("never"),
                vec!["REQUEST_HEADERS"],
            );
            Ok(())
        }),
        Case::new(
            "act/log-answers",
            2,
            &["PXG-ACT-009"],
            "whatever LOG is answered with, the stream ends as usual",
        )
        .script(
            "a log: reset
                 b log: reply 403
                 c log: pending",
        )
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/x")).await?;
            cx.equal("PXG-ACT-009", "the status", x.reply.status, 200);
            for place in ["a", "b", "c"] {
                let ends = x.records.calls("on_stream_end", Edge::Enter, place).len();
                cx.equal("PXG-ACT-009", &format!("on_stream_end at {place}"), ends, 1);
            }
            Ok(())
        }),
        Case::new(
            "act/failures-counted",
            2,
            &["PXG-ACT-009", "PXG-ACT-005"],
            "an answer to LOG that is not CONTINUE is a failure of the guest, a late reply is none",
        )
        .needs(&[Feature::BODY_STREAM_RESPONSE])
        .script(
            "a log: reset
                 b request-headers: mode response stream
                 b response-body#1: reply 403; body late",
        )
        .alone()
        .run(|cx| async move {
            let head = "subscribe all\npend none\n";
            let setup = own::chain(&cx, &[("a", head), ("b", head)])?;
            let own = Own::start(&cx, &setup).await?;
            cx.answer(
                Answer::status(200)
                    .field("content-length", "6")
                    .send(b"abc")
                    .gate("rest")
                    .send(b"def"),
            );
            let mut c = own.cx.connect().await?;
            c.send(&Request::get("/x"), cx.name()).await;
            c.response("GET").await?;
            own.cx.ended().await;
            let m = own.metrics().await?;
            for (rule, name, expected) in [("PXG-ACT-009", "a", 1.0), ("PXG-ACT-005", "b", 0.0)] {
                let labels = [("config", name), ("reason", "invalid")];
                let n = m.count("pxg_guest_failures_total", &labels);
                cx.equal(rule, &format!("failures of {name}"), n, expected);
            }
            own.end("PXG-ACT-009").await
        }),
        Case::new(
            "act/members-first",
            2,
            &["PXG-ACT-010"],
            "a mode in a result has effect before its MORE is judged",
        )
        .needs(&[Feature::HOLD_REQUEST, Feature::BODY_STREAM_REQUEST])
        .script("b request-headers: mode request stream; more")
        .run(|cx| async move {
            let x = cx.exchange(Request::post("/x", b"abc")).await?;
            cx.equal("PXG-ACT-010", "the status", x.reply.status, 200);
            let bodies = x.records.events("b", Phase::REQUEST_BODY.0);
            cx.check("PXG-ACT-010", !bodies.is_empty(), || {
                "no body event at b after MORE".into()
            });
            Ok(())
        }),
        Case::new(
            "act/resizes-first",
            2,
            &["PXG-ACT-010"],
            "RESIZES in a HEADERS result: the length is dropped with it",
        )
        .needs(&[Feature::RESIZE_REQUEST, Feature::BODY_STREAM_REQUEST])
        .script(
            "b request-headers: mode request stream; resizes
                 b request-body#1: inject more-",
        )
        .run(|cx| async move {
            let x = cx.exchange(Request::post("/x", b"abc")).await?;
            cx.equal(
                "PXG-ACT-010",
                "the body upstream",
                x.up_text(),
                Some("more-abc".into()),
            );
            // A host that reads a request whole before it sends it on knows the new length.
            let length = x.up_get("content-length");
            cx.check(
                "PXG-HDR-007",
                length.as_deref().is_none_or(|l| l == "8"),
                || format!("content-length upstream: {length:?}"),
            );
            Ok(())
        }),
    ];
    all.extend(unset());
    all.extend(bad_pending());
    all.extend(bad_more());
    all
}

/// A case in which `b` fails at the request's headers: 500, and the upstream sees nothing.
macro_rules! refused {
    ($name:literal, $rule:literal, $about:literal, $script:literal) => {
        Case::new($name, 2, &[$rule, "PXG-EVT-014"], $about)
            .script($script)
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal($rule, "the status", x.reply.status, 500);
                cx.check($rule, x.up.is_none(), || {
                    "the upstream got the request".into()
                });
                cx.equal(
                    $rule,
                    "events at b",
                    x.records.phases("b"),
                    vec!["REQUEST_HEADERS"],
                );
                // Not by its deadline either.
                let cancels = x.records.calls("on_cancel", Edge::Enter, "b");
                cx.equal($rule, "on_cancel at b", cancels.len(), 0);
                Ok(())
            })
    };
}

fn unset() -> Vec<Case> {
    vec![
        refused!(
            "act/unset",
            "PXG-ACT-001",
            "an action that was left unset is a failure",
            "b request-headers: unset"
        ),
        refused!(
            "act/unknown",
            "PXG-ACT-001",
            "action 7 is a failure",
            "b request-headers: action 7"
        ),
        refused!(
            "act/unknown-high",
            "PXG-ACT-001",
            "action 2^31 is a failure",
            "b request-headers: action 2147483648"
        ),
    ]
}

fn bad_pending() -> Vec<Case> {
    vec![
        refused!(
            "act/pending-with-operation",
            "PXG-ACT-008",
            "PENDING with an operation is a failure",
            "b request-headers: set x-a 1; pending"
        ),
        refused!(
            "act/pending-with-reply",
            "PXG-ACT-008",
            "PENDING with a reply is a failure",
            "b request-headers: reply-beside 200; pending"
        ),
        refused!(
            "act/pending-with-unsubscribe",
            "PXG-ACT-008",
            "PENDING with unsubscribe is a failure",
            "b request-headers: unsubscribe response-headers; pending"
        ),
        refused!(
            "act/pending-with-mode",
            "PXG-ACT-008",
            "PENDING with a body mode is a failure",
            "b request-headers: mode response skip; pending"
        ),
        refused!(
            "act/reply-beside-continue",
            "PXG-RPL-001",
            "a reply beside CONTINUE is a failure",
            "b request-headers: reply-beside 200; continue"
        ),
    ]
}

fn bad_more() -> Vec<Case> {
    vec![
        refused!(
            "act/more-at-end-of-headers",
            "PXG-ACT-003",
            "MORE at headers that end the message is a failure",
            "b request-headers: mode request stream; more"
        ),
        refused!(
            "act/more-in-skip",
            "PXG-ACT-003",
            "MORE at headers in mode SKIP is a failure",
            "b request-headers: more"
        ),
        Case::new(
            "act/more-at-body-end",
            2,
            &["PXG-ACT-003"],
            "MORE at the last bytes is a failure",
        )
        .needs(&[Feature::BODY_STREAM_REQUEST])
        .script(
            "b request-headers: mode request stream
                 b request-body: more",
        )
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.send(&Request::post("/x", b"abc"), cx.name()).await;
            let reply = c.response("POST").await?;
            cx.ended().await;
            cx.check("PXG-ACT-003", reply.status != 200, || {
                "the exchange went through".into()
            });
            cx.equal(
                "PXG-EVT-014",
                "LOG at b",
                cx.records().events("b", Phase::LOG.0).len(),
                0,
            );
            Ok(())
        }),
    ]
}
