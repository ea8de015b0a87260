//! Bodies: modes, views, operations, limits.

use super::prelude::*;

fn text(b: &[u8]) -> String {
    b.iter().map(|b| char::from(*b)).collect()
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = vec![
        whole_let_go(),
        Case::new(
            "body/skip",
            2,
            &["PXG-BODY-001", "PXG-NEG-005"],
            "1 MiB in SKIP: no body event",
        )
        .script("* request-headers: continue")
        .run(|cx| async move {
            let body = bytes(1 << 20);
            cx.answer(Answer::status(200).body(&body));
            let x = cx.exchange(Request::post("/x", &body)).await?;
            for place in ["a", "b", "c"] {
                let n = x.records.events(place, Phase::REQUEST_BODY.0).len()
                    + x.records.events(place, Phase::RESPONSE_BODY.0).len();
                cx.equal("PXG-BODY-001", &format!("body events at {place}"), n, 0);
            }
            cx.check("PXG-BODY-002", x.up.is_some_and(|u| u.body == body), || {
                "the body upstream is another".into()
            });
            cx.check("PXG-BODY-002", x.reply.body == body, || {
                "the body at the client is another".into()
            });
            Ok(())
        }),
        Case::new(
            "body/sizes",
            2,
            &["PXG-BODY-002", "PXG-BODY-008", "PXG-MEM-001"],
            "bodies of many sizes through STREAM, WHOLE and OBSERVE in one chain",
        )
        .needs(&[
            Feature::BODY_STREAM_REQUEST,
            Feature::BODY_STREAM_RESPONSE,
            Feature::BODY_WHOLE_REQUEST,
            Feature::BODY_WHOLE_RESPONSE,
            Feature::BODY_OBSERVE_REQUEST,
            Feature::BODY_OBSERVE_RESPONSE,
        ])
        .script(
            "a request-headers: mode request stream; mode response observe
                 b request-headers: mode request whole; mode response whole
                 c request-headers: mode request observe; mode response stream",
        )
        .run(|cx| async move {
            for n in [
                1usize, 2, 63, 64, 65, 1023, 1024, 1025, 4096, 16384, 65535, 65537, 300_000,
            ] {
                let body = bytes(n);
                cx.answer(Answer::status(200).body(&body));
                let x = cx.exchange(Request::post("/x", &body)).await?;
                cx.check("PXG-BODY-002", x.up.is_some_and(|u| u.body == body), || {
                    format!("{n} bytes: another body upstream")
                });
                cx.check("PXG-BODY-002", x.reply.body == body, || {
                    format!("{n} bytes: another body at the client")
                });
            }
            Ok(())
        }),
        Case::new(
            "body/large",
            5,
            &["PXG-BODY-002", "PXG-BODY-005"],
            "16 MiB in both directions through STREAM",
        )
        .needs(&[Feature::BODY_STREAM_REQUEST, Feature::BODY_STREAM_RESPONSE])
        .script("b request-headers: mode request stream; mode response stream; quiet")
        .run(|cx| async move {
            let body = bytes(16 << 20);
            cx.answer(Answer::status(200).body(&body));
            let mut c = cx.connect().await?;
            c.send(&Request::post("/x", &body), cx.name()).await;
            let reply = c.response("POST").await?;
            cx.leave_open();
            cx.check(
                "PXG-BODY-002",
                cx.seen().first().is_some_and(|s| s.body == body),
                || "another body upstream".into(),
            );
            cx.check("PXG-BODY-002", reply.body == body, || {
                "another body at the client".into()
            });
            Ok(())
        }),
        Case::new(
            "body/operations",
            2,
            &["PXG-BODY-002", "PXG-MUT-001"],
            "PASS, DROP and INJECT move one cursor",
        )
        .needs(&[Feature::BODY_WHOLE_REQUEST])
        .script(
            "b request-headers: mode request whole
                 b request-body: inject <; pass 2; drop 3; inject |; pass 1; inject >",
        )
        .run(|cx| async move {
            let x = cx.exchange(Request::post("/x", b"0123456789")).await?;
            cx.equal(
                "PXG-BODY-002",
                "the body upstream",
                x.up_text(),
                Some("<01|5>6789".into()),
            );
            Ok(())
        }),
        Case::new(
            "body/replace",
            2,
            &["PXG-BODY-002"],
            "INJECT and DROP all replace a view",
        )
        .needs(&[Feature::BODY_WHOLE_REQUEST, Feature::BODY_WHOLE_RESPONSE])
        .script(
            "b request-headers: mode request whole; mode response whole
                 b request-body: inject new; drop all
                 b response-body: memory owned; inject other; drop all",
        )
        .run(|cx| async move {
            let x = cx.exchange(Request::post("/x", b"0123456789")).await?;
            cx.equal(
                "PXG-BODY-002",
                "the body upstream",
                x.up_text(),
                Some("new".into()),
            );
            cx.equal("PXG-BODY-002", "the body", x.reply.text(), "other".into());
            Ok(())
        }),
        Case::new(
            "body/whole-holds",
            2,
            &["PXG-BODY-003", "PXG-ACT-007"],
            "WHOLE holds the headers until its result",
        )
        .needs(&[Feature::BODY_WHOLE_REQUEST, Feature::PEND_REQUEST_BODY])
        .script(
            "b request-headers: mode request whole; set x-early 1
                 b request-body: pending; complete R @gate:go
                 b result R: set x-late 1; continue",
        )
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.send(&Request::post("/x", b"abc"), cx.name()).await;
            cx.until("PXG-BODY-003", "the whole body", |r| {
                !r.events("b", Phase::REQUEST_BODY.0).is_empty()
            })
            .await;
            cx.settle().await?;
            cx.check("PXG-BODY-003", cx.seen().is_empty(), || {
                "the upstream got headers that WHOLE holds".into()
            });
            let all = cx.records();
            let ev = all.events("b", Phase::REQUEST_BODY.0);
            let fields = ev
                .first()
                .and_then(|r| r.fields.clone())
                .unwrap_or_default();
            cx.check(
                "PXG-BODY-003",
                fields.iter().any(|f| f.0 == "x-early"),
                || "no fields with the whole body".into(),
            );
            cx.open("go");
            cx.equal(
                "PXG-BODY-003",
                "the status",
                c.response("POST").await?.status,
                200,
            );
            let up = cx.seen();
            cx.equal(
                "PXG-BODY-003",
                "x-late upstream",
                up.first().and_then(|u| u.get("x-late")),
                Some("1".into()),
            );
            Ok(())
        }),
        Case::new(
            "body/whole-only",
            2,
            &["PXG-BODY-017", "PXG-BODY-003"],
            "a guest of WHOLE bodies alone sees every message once",
        )
        .needs(&[Feature::BODY_WHOLE_REQUEST, Feature::BODY_WHOLE_RESPONSE])
        .script("bodies request-body: continue")
        .run(|cx| async move {
            for (what, r, a) in [
                (
                    "GET and 204",
                    Request::get("/bodies/x"),
                    Answer::status(204).head(),
                ),
                (
                    "POST",
                    Request::post("/bodies/x", b"abc"),
                    Answer::status(200).body(b"def"),
                ),
                (
                    "HEAD",
                    Request::new("HEAD", "/bodies/x"),
                    Answer::status(200).body(b"def"),
                ),
            ] {
                cx.answer(a);
                let x = cx.exchange(r).await?;
                for phase in [Phase::REQUEST_BODY, Phase::RESPONSE_BODY] {
                    let all = x.records.events("bodies", phase.0);
                    cx.equal(
                        "PXG-BODY-017",
                        &format!("{what}: events of phase {}", phase.0),
                        all.len(),
                        1,
                    );
                    let flags = all.first().and_then(|r| r.flags).unwrap_or(0);
                    let due = EventFlags::WHOLE_BODY.0
                        | EventFlags::HEADERS_HELD.0
                        | EventFlags::BODY_END.0
                        | EventFlags::END_STREAM.0;
                    cx.equal("PXG-BODY-017", &format!("{what}: flags"), flags & due, due);
                }
            }
            Ok(())
        }),
        Case::new(
            "body/over-limit-continue",
            2,
            &["PXG-BODY-004"],
            "OVER_LIMIT in WHOLE: CONTINUE goes on as STREAM",
        )
        .needs(&[Feature::BODY_WHOLE_REQUEST, Feature::BODY_STREAM_REQUEST])
        .script("small-whole request-body#1: set x-over 1")
        .run(|cx| async move {
            let body = bytes(1001);
            let mut c = cx.connect().await?;
            c.write(
                &Request::post("/small-whole/x", b"")
                    .field("content-length", "1005")
                    .head_only()
                    .head(cx.name()),
            )
            .await;
            c.write(&body).await;
            cx.until("PXG-BODY-004", "OVER_LIMIT", |r| {
                r.events("small-whole", Phase::REQUEST_BODY.0)
                    .first()
                    .is_some_and(|r| r.flags.unwrap_or(0) & EventFlags::OVER_LIMIT.0 != 0)
            })
            .await;
            c.write(b"rest").await;
            let reply = c.response("POST").await?;
            cx.equal("PXG-BODY-004", "the status", reply.status, 200);
            let up = cx.seen();
            cx.equal(
                "PXG-BODY-004",
                "x-over upstream",
                up.first().and_then(|u| u.get("x-over")),
                Some("1".into()),
            );
            cx.equal(
                "PXG-BODY-004",
                "bytes upstream",
                up.first().map(|u| u.body.len()),
                Some(1005),
            );
            let events = cx.records().events("small-whole", Phase::REQUEST_BODY.0);
            cx.check("PXG-BODY-004", events.len() >= 2, || {
                "what follows was not shown".into()
            });
            Ok(())
        }),
        Case::new(
            "body/over-limit-skip",
            2,
            &["PXG-BODY-004"],
            "OVER_LIMIT in WHOLE with SKIP: the rest is not shown",
        )
        .needs(&[Feature::BODY_WHOLE_REQUEST])
        .script("small-whole request-body: mode request skip")
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.write(
                &Request::post("/small-whole/x", b"")
                    .field("content-length", "1105")
                    .head_only()
                    .head(cx.name()),
            )
            .await;
            c.write(&bytes(1100)).await;
            cx.until("PXG-BODY-004", "OVER_LIMIT", |r| {
                !r.events("small-whole", Phase::REQUEST_BODY.0).is_empty()
            })
            .await;
            c.write(b"rest!").await;
            cx.equal(
                "PXG-BODY-004",
                "the status",
                c.response("POST").await?.status,
                200,
            );
            cx.equal(
                "PXG-BODY-004",
                "body events",
                cx.records()
                    .events("small-whole", Phase::REQUEST_BODY.0)
                    .len(),
                1,
            );
            Ok(())
        }),
        Case::new(
            "body/over-limit-reply",
            2,
            &["PXG-BODY-004"],
            "OVER_LIMIT in WHOLE: a reply",
        )
        .needs(&[Feature::BODY_WHOLE_REQUEST])
        .script("small-whole request-body: reply 413; body mine")
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.send(&Request::post("/small-whole/x", &bytes(5000)), cx.name())
                .await;
            let reply = c.response("POST").await?;
            cx.equal("PXG-BODY-004", "the status", reply.status, 413);
            cx.equal("PXG-BODY-004", "the body", reply.text(), "mine".into());
            cx.check("PXG-BODY-004", cx.seen().is_empty(), || {
                "the upstream got the request".into()
            });
            Ok(())
        }),
        Case::new(
            "body/over-limit-more",
            2,
            &["PXG-BODY-014"],
            "MORE at OVER_LIMIT in WHOLE is a failure",
        )
        .needs(&[Feature::BODY_WHOLE_REQUEST])
        .script("small-whole request-body#1: more")
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.write(
                &Request::post("/small-whole/x", b"")
                    .field("content-length", "5000")
                    .head_only()
                    .head(cx.name()),
            )
            .await;
            c.write(&bytes(2000)).await;
            cx.until("PXG-BODY-014", "the answer to OVER_LIMIT", |r| {
                r.calls("on_event", Edge::Exit, "small-whole")
                    .iter()
                    .any(|r| r.phase == Some(Phase::REQUEST_BODY.0))
            })
            .await;
            // A host that obeyed it goes on.
            c.write(&bytes(3000)).await;
            cx.equal(
                "PXG-BODY-014",
                "the status",
                c.response("POST").await?.status,
                500,
            );
            Ok(())
        }),
        Case::new(
            "body/more-over-limit",
            2,
            &["PXG-BODY-014"],
            "MORE in STREAM that keeps more than max_body is a failure",
        )
        .needs(&[Feature::BODY_STREAM_REQUEST, Feature::HOLD_REQUEST])
        .script(
            "small request-headers: mode request stream; more
                 small request-body#1: more
                 small request-body#2: more",
        )
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.write(
                &Request::post("/small/x", b"")
                    .field("content-length", "5000")
                    .head_only()
                    .head(cx.name()),
            )
            .await;
            c.write(&bytes(2000)).await;
            cx.until("PXG-BODY-004", "OVER_LIMIT", |r| {
                r.events("small", Phase::REQUEST_BODY.0)
                    .iter()
                    .any(|r| r.view_len() > 1000)
            })
            .await;
            // A host that obeyed it goes on.
            c.write(&bytes(3000)).await;
            cx.equal(
                "PXG-BODY-014",
                "the status",
                c.response("POST").await?.status,
                500,
            );
            let flags = cx
                .records()
                .events("small", Phase::REQUEST_BODY.0)
                .last()
                .and_then(|r| r.flags)
                .unwrap_or(0);
            cx.check(
                "PXG-BODY-004",
                flags & EventFlags::OVER_LIMIT.0 != 0,
                || "no OVER_LIMIT".into(),
            );
            Ok(())
        }),
        Case::new(
            "body/more-drop",
            2,
            &["PXG-BODY-014", "PXG-BODY-012"],
            "MORE over the limit that drops enough is legal",
        )
        .needs(&[
            Feature::BODY_STREAM_REQUEST,
            Feature::RESIZE_REQUEST,
            Feature::PARTIAL_RELEASE,
        ])
        .script(
            "small request-headers: mode request stream; resizes
                 small request-body#1: drop 1900; more",
        )
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.write(
                &Request::post("/small/x", b"")
                    .field("content-length", "2006")
                    .head_only()
                    .head(cx.name()),
            )
            .await;
            c.write(&bytes(2000)).await;
            cx.until("PXG-BODY-014", "OVER_LIMIT", |r| {
                !r.events("small", Phase::REQUEST_BODY.0).is_empty()
            })
            .await;
            c.write(b"abcdef").await;
            let reply = c.response("POST").await?;
            cx.equal("PXG-BODY-014", "the status", reply.status, 200);
            let first = cx
                .records()
                .events("small", Phase::REQUEST_BODY.0)
                .first()
                .map_or(0, |r| r.view_len());
            if first == 2000 {
                cx.equal(
                    "PXG-BODY-002",
                    "bytes upstream",
                    cx.seen().first().map(|s| s.body.len()),
                    Some(106),
                );
            }
            Ok(())
        }),
        Case::new(
            "body/back-pressure",
            3,
            &["PXG-BODY-005"],
            "a guest that pends: the host stops reading",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .script(
            "small request-headers: pending; complete R @gate:go
                 small result R: continue",
        )
        .run(|cx| async move {
            let n = 24 << 20;
            let body = bytes(n);
            let mut c = cx.connect().await?;
            c.write(
                &Request::post("/small/x", b"")
                    .field("content-length", &n.to_string())
                    .head_only()
                    .head(cx.name()),
            )
            .await;
            let sent = c
                .write_some(&body, std::time::Duration::from_millis(300))
                .await;
            // What the kernel's buffers of loopback take, and the host's reads.
            cx.check("PXG-BODY-005", sent < 16 << 20, || {
                format!("the host took {sent} bytes while the guest pends")
            });
            cx.open("go");
            c.write(&body[sent..]).await;
            cx.equal(
                "PXG-BODY-005",
                "the status",
                c.response("POST").await?.status,
                200,
            );
            Ok(())
        }),
        Case::new(
            "body/observe",
            2,
            &["PXG-BODY-007"],
            "OBSERVE shows what passed, and does not hold it",
        )
        .needs(&[Feature::BODY_OBSERVE_REQUEST])
        .script(
            "b request-headers: mode request observe
                 b request-body: block go",
        )
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.write(
                &Request::post("/x", b"")
                    .field("content-length", "3")
                    .head_only()
                    .head(cx.name()),
            )
            .await;
            c.write(b"abc").await;
            cx.until("PXG-BODY-007", "the look", |r| {
                !r.events("b", Phase::REQUEST_BODY.0).is_empty()
            })
            .await;
            cx.open("go");
            cx.equal(
                "PXG-BODY-007",
                "the status",
                c.response("POST").await?.status,
                200,
            );
            cx.equal(
                "PXG-BODY-007",
                "the body upstream",
                cx.seen().first().map(|s| s.text()),
                Some("abc".into()),
            );
            Ok(())
        }),
        Case::new(
            "body/observe-left",
            2,
            &["PXG-BODY-007"],
            "what OBSERVE was shown does not leave again when its result lets go of the body",
        )
        .needs(&[
            Feature::BODY_OBSERVE_REQUEST,
            Feature::BODY_OBSERVE_RESPONSE,
        ])
        .script(
            "b request-headers: mode request observe; mode response observe
                 b request-body#1: mode request skip
                 b response-body#1: unsubscribe response-body",
        )
        .run(|cx| async move {
            let head = Answer::status(200).field("content-length", "6").head();
            cx.answer(head.send(b"onetwo"));
            let x = cx.exchange(Request::post("/x", b"abcdef")).await?;
            cx.equal("PXG-BODY-007", "the status", x.reply.status, 200);
            cx.equal(
                "PXG-BODY-007",
                "the body upstream",
                x.up_text(),
                Some("abcdef".into()),
            );
            cx.equal(
                "PXG-BODY-007",
                "the body at the client",
                x.reply.text(),
                "onetwo".into(),
            );
            Ok(())
        }),
        Case::new(
            "body/observe-forwards",
            2,
            &["PXG-BODY-007"],
            "OBSERVE: each part is at the receiver before the next one is sent",
        )
        .needs(&[
            Feature::BODY_OBSERVE_REQUEST,
            Feature::BODY_OBSERVE_RESPONSE,
        ])
        .script("b request-headers: mode request observe; mode response observe")
        .run(|cx| async move {
            let parts: [&[u8]; 3] = [b"abc", b"def", b"ghi"];
            let mut a = Answer::status(200).field("content-length", "9").head();
            for (i, part) in parts.iter().enumerate() {
                a = a.send(part).gate(&format!("g{i}"));
            }
            cx.answer(a);
            let mut c = cx.connect().await?;
            c.write(
                &Request::post("/x", b"")
                    .field("content-length", "9")
                    .head_only()
                    .head(cx.name()),
            )
            .await;
            for (i, part) in parts.iter().enumerate() {
                c.write(part).await;
                let came = cx.wait("PXG-BODY-007", "what OBSERVE was shown, upstream", || {
                    cx.seen().first().is_some_and(|s| s.body.len() == 3 * i + 3)
                });
                if !came.await {
                    return Ok(());
                }
            }
            for (i, part) in parts.iter().enumerate() {
                let what = "what OBSERVE was shown, at the client";
                let came = cx.within("PXG-BODY-007", what, c.until(part.to_vec()));
                if came.await.is_none() {
                    return Ok(());
                }
                cx.open(&format!("g{i}"));
            }
            let reply = c.response("POST").await?;
            cx.equal("PXG-BODY-007", "the body", reply.text(), "abcdefghi".into());
            Ok(())
        }),
        Case::new(
            "body/tiny-chunks",
            3,
            &["PXG-BODY-009"],
            "MORE without a threshold on tiny chunks: few events",
        )
        .needs(&[Feature::BODY_STREAM_REQUEST, Feature::HOLD_REQUEST])
        .script(
            "a request-headers: mode request stream
                 b request-headers: mode request stream; more
                 b request-body: more",
        )
        .run(|cx| async move {
            const PIECES: usize = 64;
            let mut c = cx.connect().await?;
            let head = Request::post("/x", b"")
                .field("transfer-encoding", "chunked")
                .head_only();
            c.write(&head.head(cx.name())).await;
            let started = std::time::Instant::now();
            for n in 1..=PIECES {
                c.write(&b"1\r\nx\r\n".repeat(64)).await;
                // What a has been shown is at b: no two pieces are one.
                cx.until("PXG-BODY-009", "a piece at a", |r| {
                    let at_a = r.events("a", Phase::REQUEST_BODY.0);
                    at_a.iter().map(|r| r.view_len()).sum::<u64>() == 64 * n as u64
                })
                .await;
            }
            // Besides growth by 1024 bytes the hold time brings events.
            let limit = PIECES * 64 / 1024
                + 1
                + started.elapsed().as_millis() as usize
                    / usize::try_from(cx.limits().hold_time_ms.max(1))?;
            let n = cx.records().events("b", Phase::REQUEST_BODY.0).len();
            cx.check("PXG-BODY-009", n <= limit, || {
                format!("{n} events for {PIECES} pieces of 64 bytes, expected at most {limit}")
            });
            c.reset();
            Ok(())
        }),
        Case::new(
            "body/continue-gate",
            2,
            &["PXG-BODY-011"],
            "no 100 Continue before the verdict",
        )
        .needs(&[Feature::CONTINUE_GATE, Feature::PEND_REQUEST_HEADERS])
        .script(
            "b request-headers: pending; complete R @gate:go
                 b result R: reply 401; body no",
        )
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            let head = Request::post("/x", b"")
                .field("content-length", "3")
                .field("expect", "100-continue")
                .head_only();
            c.write(&head.head(cx.name())).await;
            cx.until("PXG-BODY-011", "PENDING at b", |r| {
                r.calls("on_event", Edge::Exit, "b").len() == 1
            })
            .await;
            cx.settle().await?;
            cx.check("PXG-BODY-011", c.peek(20).await == 0, || {
                "an answer before the guest's verdict".into()
            });
            cx.open("go");
            let reply = c.response("POST").await?;
            cx.equal("PXG-BODY-011", "the status", reply.status, 401);
            cx.equal("PXG-BODY-011", "interim responses", reply.interim.len(), 0);
            Ok(())
        }),
        Case::new(
            "body/continue-sent",
            2,
            &["PXG-BODY-011"],
            "a place that waits for the body: the host sends 100 Continue itself",
        )
        .needs(&[Feature::CONTINUE_GATE, Feature::BODY_WHOLE_REQUEST])
        .script("b request-headers: mode request whole")
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            let head = Request::post("/x", b"")
                .field("content-length", "3")
                .field("expect", "100-continue")
                .head_only();
            c.write(&head.head(cx.name())).await;
            let interim = cx
                .within("PXG-BODY-011", "100 Continue", c.interim())
                .await
                .flatten();
            cx.equal(
                "PXG-BODY-011",
                "the interim response",
                interim.map(|h| h.status()),
                Some(100),
            );
            c.write(b"abc").await;
            cx.equal(
                "PXG-BODY-011",
                "the status",
                c.response("POST").await?.status,
                200,
            );
            cx.equal(
                "PXG-BODY-011",
                "the body upstream",
                cx.seen().first().map(|s| s.text()),
                Some("abc".into()),
            );
            Ok(())
        }),
        Case::new(
            "body/partial",
            2,
            &["PXG-BODY-012", "PXG-BODY-002"],
            "PASS with MORE: what was passed leaves, the rest is kept",
        )
        .needs(&[Feature::PARTIAL_RELEASE, Feature::BODY_STREAM_REQUEST])
        .script(
            "b request-headers: mode request stream
                 b request-body#1: pass 2; more 1",
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
            c.write(b"abcd").await;
            cx.wait("PXG-BODY-012", "two bytes upstream", || {
                cx.seen().first().is_some_and(|s| s.body == b"ab")
            })
            .await;
            c.write(b"ef").await;
            cx.equal(
                "PXG-BODY-012",
                "the status",
                c.response("POST").await?.status,
                200,
            );
            let view = cx
                .records()
                .events("b", Phase::REQUEST_BODY.0)
                .get(1)
                .map(|r| (r.body_offset, r.body.clone()));
            cx.equal(
                "PXG-BODY-012",
                "offset and bytes of the next view",
                view,
                Some((Some(2), Some("cdef".into()))),
            );
            cx.equal(
                "PXG-BODY-002",
                "the body upstream",
                cx.seen().first().map(|s| s.text()),
                Some("abcdef".into()),
            );
            Ok(())
        }),
        Case::new(
            "body/held-complete",
            4,
            &["PXG-BODY-013"],
            "the same by complete: ARG at once, or a failure when its turn comes",
        )
        .needs(&[
            Feature::BODY_STREAM_REQUEST,
            Feature::HOLD_REQUEST,
            Feature::PEND_REQUEST_BODY,
        ])
        .script(
            "b request-headers: mode request stream; more 4
                 b request-body#1: pending; complete PASS; complete INJECT; complete GOOD
                 b result PASS: pass 1; more
                 b result INJECT: inject x; more
                 b result GOOD: continue",
        )
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.write(
                &Request::post("/x", b"")
                    .field("content-length", "8")
                    .head_only()
                    .head(cx.name()),
            )
            .await;
            c.write(b"0123").await;
            cx.until("PXG-BODY-013", "three completions", |r| {
                r.statuses("complete", "b").len() == 3
            })
            .await;
            c.write(b"4567").await;
            let saw = (
                cx.records().statuses("complete", "b"),
                c.response("POST").await?.status,
            );
            let refused = saw == (vec![ARG, ARG, OK], 200);
            let failed = saw.0.first() == Some(&OK) && saw.1 == 500;
            cx.check("PXG-BODY-013", refused || failed, || {
                format!("the answers of complete and the status: {saw:?}")
            });
            Ok(())
        }),
        Case::new(
            "body/unsubscribe-held",
            2,
            &["PXG-BODY-016"],
            "to SKIP with held headers and bytes: they pass first",
        )
        .needs(&[
            Feature::BODY_STREAM_REQUEST,
            Feature::HOLD_REQUEST,
            Feature::APPLY,
        ])
        .script(
            "b request-headers: mode request stream; more 1000
                 b request-body#1: more 1000; wake 1 @gate:wake
                 b wake: mode request skip",
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
            cx.until("PXG-BODY-016", "a body event", |r| {
                !r.events("b", Phase::REQUEST_BODY.0).is_empty()
            })
            .await;
            cx.open("wake");
            cx.wait("PXG-BODY-016", "what was held, upstream", || {
                cx.seen().first().is_some_and(|s| s.body == b"abc")
            })
            .await;
            c.write(b"def").await;
            cx.equal(
                "PXG-BODY-016",
                "the status",
                c.response("POST").await?.status,
                200,
            );
            cx.equal(
                "PXG-BODY-016",
                "the body upstream",
                cx.seen().first().map(|s| s.text()),
                Some("abcdef".into()),
            );
            Ok(())
        }),
        Case::new(
            "body/observe-pending",
            2,
            &["PXG-BODY-007"],
            "PENDING in OBSERVE is a failure",
        )
        .needs(&[Feature::BODY_OBSERVE_RESPONSE])
        .script(
            "b request-headers: mode response observe
                 b response-body#1: pending",
        )
        .run(|cx| async move {
            cx.answer(Answer::status(200).chunks(&[b"one", b"two"]));
            let mut c = cx.connect().await?;
            c.send(&Request::get("/x"), cx.name()).await;
            let _ = c.response("GET").await?;
            cx.ended().await;
            cx.equal(
                "PXG-BODY-007",
                "LOG at b, which has failed",
                cx.records().events("b", Phase::LOG.0).len(),
                0,
            );
            Ok(())
        }),
    ];
    all.extend(refusals());
    all.extend(refusals_before_the_end());
    all.extend(splits());
    all
}

/// Results for a body that are refused: the response is 500.
fn refusals() -> Vec<Case> {
    macro_rules! refused {
        ($name:literal, $rule:literal, $about:literal, $script:literal) => {
            Case::new($name, 2, &[$rule], $about)
                .needs(&[Feature::BODY_WHOLE_REQUEST, Feature::BODY_STREAM_REQUEST])
                .script($script)
                .run(|cx| async move {
                    let mut c = cx.connect().await?;
                    c.send(&Request::post("/x", b"0123456789"), cx.name()).await;
                    let reply = c.response("POST").await?;
                    cx.equal($rule, "the status", reply.status, 500);
                    cx.ended().await;
                    cx.equal(
                        $rule,
                        "LOG at b, which has failed",
                        cx.records().events("b", Phase::LOG.0).len(),
                        0,
                    );
                    Ok(())
                })
        };
    }
    vec![
        refused!(
            "body/pass-beyond",
            "PXG-BODY-006",
            "PASS beyond the view",
            "b request-headers: mode request whole
             b request-body: pass all+1"
        ),
        refused!(
            "body/drop-beyond",
            "PXG-BODY-006",
            "PASS and DROP beyond the view together",
            "b request-headers: mode request whole
             b request-body: pass 6; drop all-5"
        ),
        refused!(
            "body/pass-huge",
            "PXG-BODY-006",
            "PASS of 2^64-1, which would wrap round",
            "b request-headers: mode request whole
             b request-body: pass 2; pass 0xffffffffffffffff"
        ),
        refused!(
            "body/late-mode",
            "PXG-BODY-015",
            "from WHOLE to STREAM without OVER_LIMIT",
            "b request-headers: mode request whole
             b request-body: mode request stream"
        ),
        refused!(
            "body/mode-unsubscribed",
            "PXG-BODY-015",
            "a mode for a phase that is not subscribed any more",
            "b request-headers: unsubscribe request-body; mode request stream"
        ),
        refused!(
            "body/mode-unknown",
            "PXG-BODY-015",
            "body mode 9",
            "b request-headers: mode request 9"
        ),
    ]
}

/// The same for the first part of a body: a host that takes the result finds nothing else to refuse.
fn refusals_before_the_end() -> Vec<Case> {
    macro_rules! refused {
        ($name:literal, $rule:literal, $about:literal, $needs:expr, $script:literal) => {
            Case::new($name, 2, &[$rule], $about)
                .needs($needs)
                .script($script)
                .run(|cx| async move {
                    let mut c = cx.connect().await?;
                    c.write(
                        &Request::post("/x", b"")
                            .field("content-length", "8")
                            .head_only()
                            .head(cx.name()),
                    )
                    .await;
                    c.write(b"0123").await;
                    cx.until($rule, "the answer to the first part", |r| {
                        r.calls("on_event", Edge::Exit, "b")
                            .iter()
                            .any(|r| r.phase == Some(Phase::REQUEST_BODY.0))
                    })
                    .await;
                    c.write(b"4567").await;
                    let reply = c.response("POST").await?;
                    cx.check($rule, reply.status == 500 || reply.status == 0, || {
                        format!("status {}, expected 500 or a reset", reply.status)
                    });
                    cx.ended().await;
                    cx.equal(
                        $rule,
                        "LOG at b, which has failed",
                        cx.records().events("b", Phase::LOG.0).len(),
                        0,
                    );
                    let up = cx.seen().first().map(|s| s.text()).unwrap_or_default();
                    cx.check($rule, "01234567".starts_with(&up), || {
                        format!("the bytes upstream are {up:?}")
                    });
                    Ok(())
                })
        };
    }
    const HOLD: &[Feature] = &[Feature::BODY_STREAM_REQUEST, Feature::HOLD_REQUEST];
    const OBSERVE: &[Feature] = &[Feature::BODY_OBSERVE_REQUEST];
    vec![
        refused!(
            "body/held-pass",
            "PXG-BODY-013",
            "PASS with MORE while headers are held",
            HOLD,
            "b request-headers: mode request stream; more 4
             b request-body#1: pass 1; more"
        ),
        refused!(
            "body/held-inject",
            "PXG-BODY-013",
            "INJECT with MORE while headers are held",
            HOLD,
            "b request-headers: mode request stream; more 4
             b request-body#1: inject x; more"
        ),
        refused!(
            "body/observe-pass",
            "PXG-BODY-007",
            "PASS in OBSERVE",
            OBSERVE,
            "b request-headers: mode request observe
             b request-body#1: pass 1"
        ),
        refused!(
            "body/observe-drop",
            "PXG-BODY-007",
            "DROP in OBSERVE",
            OBSERVE,
            "b request-headers: mode request observe
             b request-body#1: drop 1"
        ),
        refused!(
            "body/observe-inject",
            "PXG-BODY-007",
            "INJECT in OBSERVE",
            OBSERVE,
            "b request-headers: mode request observe
             b request-body#1: inject x"
        ),
        refused!(
            "body/observe-inject-and-leave",
            "PXG-BODY-007",
            "INJECT in OBSERVE, in a result that leaves it",
            OBSERVE,
            "b request-headers: mode request observe
             b request-body#1: inject x; mode request skip"
        ),
        refused!(
            "body/observe-more",
            "PXG-BODY-007",
            "MORE in OBSERVE",
            OBSERVE,
            "b request-headers: mode request observe
             b request-body#1: more"
        ),
        refused!(
            "body/observe-reply",
            "PXG-BODY-007",
            "REPLY in OBSERVE",
            OBSERVE,
            "b request-headers: mode request observe
             b request-body#1: reply 418"
        ),
    ]
}

/// A chain that holds, pends, drops and injects, over many splits of one body.
fn splits() -> Vec<Case> {
    vec![
        Case::new(
            "body/splits",
            3,
            &["PXG-BODY-002", "PXG-BODY-018", "PXG-EVT-015"],
            "every split of a body through MORE, PENDING, DROP and INJECT",
        )
        .needs(&[
            Feature::BODY_STREAM_REQUEST,
            Feature::PEND_REQUEST_BODY,
            Feature::RESIZE_REQUEST,
        ])
        .script(
            "a request-headers: mode request stream
                 a request-body#1: more 4
                 b request-headers: mode request stream; resizes
                 b request-body#1: pending; complete R @1
                 b request-body#2: inject []
                 b result R: drop 1; inject (); continue
                 c request-headers: mode request stream
                 c request-body#1: pending; complete S @race
                 c result S: continue",
        )
        .run(|cx| async move {
            let body = b"0123456789abcdef";
            for at in 1..body.len() {
                let n = cx.seen().len();
                let from = cx.records().len();
                let mut c = cx.connect().await?;
                let head = Request::post("/x", b"")
                    .field("content-length", &body.len().to_string())
                    .head_only();
                c.write(&head.head(cx.name())).await;
                c.write(&body[..at]).await;
                cx.until("PXG-BODY-002", "the first part at a", |r| {
                    !r[from.min(r.len())..]
                        .to_vec()
                        .events("a", Phase::REQUEST_BODY.0)
                        .is_empty()
                })
                .await;
                c.write(&body[at..]).await;
                let reply = c.response("POST").await?;
                cx.equal("PXG-BODY-002", "the status", reply.status, 200);
                let up = cx.seen().get(n).map(|s| text(&s.body)).unwrap_or_default();
                let plain: String = up.replace("()", "").replace("[]", "");
                cx.equal(
                    "PXG-BODY-002",
                    &format!("split at {at}: what is left of the body"),
                    plain,
                    text(&body[1..]),
                );
                cx.ended().await;
            }
            Ok(())
        }),
    ]
}

/// The response's head is held by WHOLE alone when WAKE comes, and the upstream says no more before the client has it.
fn whole_let_go() -> Case {
    Case::new(
        "body/whole-let-go",
        4,
        &["PXG-BODY-018", "PXG-BODY-015"],
        "what WHOLE held leaves when WAKE makes the mode STREAM, and the body is streamed from there on",
    )
    .needs(&[
        Feature::APPLY,
        Feature::BODY_WHOLE_RESPONSE,
        Feature::BODY_STREAM_RESPONSE,
    ])
    .script(
        "b request-headers: mode response whole; unsubscribe response-headers; wake 1 @gate:wake
         b wake: mode response stream",
    )
    .run(|cx| async move {
        let rule = "PXG-BODY-018";
        cx.answer(
            Answer::status(200)
                .field("content-length", "4")
                .send(b"ab")
                .gate("rest")
                .send(b"cd"),
        );
        let mut c = cx.connect().await?;
        c.send(&Request::get("/x"), cx.name()).await;
        cx.until(rule, "the response's head at c", |r| {
            !r.events("c", Phase::RESPONSE_HEADERS.0).is_empty()
        })
        .await;
        cx.open("wake");
        cx.until(rule, "the head at a, with the body still on its way", |r| {
            !r.events("a", Phase::RESPONSE_HEADERS.0).is_empty()
        })
        .await;
        cx.open("rest");
        let reply = c.response("GET").await?;
        cx.equal(rule, "the body", (reply.complete, reply.text()), (true, "abcd".into()));
        cx.ended().await;
        let all = cx.records();
        let body = all.events("b", Phase::RESPONSE_BODY.0);
        let whole = body
            .iter()
            .any(|r| r.flags.unwrap_or(0) & EventFlags::WHOLE_BODY.0 != 0);
        cx.check(rule, !body.is_empty() && !whole, || {
            format!("the body at b: {body:?}")
        });
        Ok(())
    })
}
