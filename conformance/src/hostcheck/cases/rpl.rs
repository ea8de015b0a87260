//! Replies.

use super::prelude::*;

pub(super) fn cases() -> Vec<Case> {
    let mut all = vec![
        Case::new("rpl/whole", 2, &["PXG-RPL-001", "PXG-RPL-002", "PXG-MEM-003"], "status, fields and body of a reply")
            .script("b request-headers: reply 418; field x-a 1; field x-a 2; body one-; memory owned; body two-; memory static; body three; details secret-details")
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-RPL-001", "the status", x.reply.status, 418);
                cx.equal("PXG-RPL-001", "x-a", x.reply.get("x-a"), Some("1, 2".into()));
                cx.equal("PXG-RPL-001", "the body", x.reply.text(), "one-two-three".into());
                cx.check("PXG-HDR-007", x.reply.get("content-length").is_none_or(|n| n == "13"), || "another content-length".into());
                let all: String = x.reply.head.fields.iter().map(|f| format!("{}={};", f.0, f.1)).collect();
                cx.check("PXG-ERR-003", !all.contains("secret-details"), || "details at the client".into());
                cx.check("PXG-RPL-001", x.up.is_none(), || "the upstream got the request".into());
                cx.equal("PXG-RPL-002", "events at b", x.records.phases("b"), vec!["REQUEST_HEADERS", "LOG"]);
                Ok(())
            }),
        Case::new("rpl/from-complete", 4, &["PXG-RPL-001", "PXG-MEM-005"], "a reply by complete")
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script(
                "b request-headers: pending; complete R @2
                 b result R: reply 403; field x-why denied; body no",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-RPL-001", "the status", x.reply.status, 403);
                cx.equal("PXG-MEM-005", "x-why", x.reply.get("x-why"), Some("denied".into()));
                cx.equal("PXG-MEM-005", "the body", x.reply.text(), "no".into());
                Ok(())
            }),
        Case::new("rpl/response-headers", 2, &["PXG-RPL-001", "PXG-CHN-004"], "a reply instead of the upstream's response")
            .script("b response-headers: reply 503; body sorry")
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-RPL-001", "the status", x.reply.status, 503);
                cx.equal("PXG-RPL-001", "the body", x.reply.text(), "sorry".into());
                let seen = x.records.events("a", Phase::RESPONSE_HEADERS.0);
                if cx.has(Feature::REPLY_REFILTER) {
                    let flags = seen.first().and_then(|r| r.flags).unwrap_or(0);
                    cx.equal("PXG-RPL-003", "RESPONSE_HEADERS at a", seen.len(), 1);
                    cx.check("PXG-RPL-003", flags & EventFlags::LOCAL_ORIGIN.0 != 0, || "no LOCAL_ORIGIN at a".into());
                } else {
                    cx.equal("PXG-CHN-004", "RESPONSE_HEADERS at a", seen.len(), 0);
                }
                Ok(())
            }),
        Case::new("rpl/refilter", 2, &["PXG-RPL-003", "PXG-CHN-004"], "guests between the reply and the client see it, all its phases")
            .needs(&[Feature::REPLY_REFILTER, Feature::BODY_STREAM_RESPONSE])
            .script(
                "a request-headers: mode response stream
                 a response-headers: set x-seen-by a; resizes
                 a response-body#1: inject a:
                 c request-headers: reply 200; body from-c",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-RPL-003", "x-seen-by", x.reply.get("x-seen-by"), Some("a".into()));
                cx.equal("PXG-RPL-003", "the body", x.reply.text(), "a:from-c".into());
                for place in ["a", "b"] {
                    let all = x.records.events(place, Phase::RESPONSE_HEADERS.0);
                    let flags = all.first().and_then(|r| r.flags).unwrap_or(0);
                    cx.check("PXG-RPL-003", flags & EventFlags::LOCAL_ORIGIN.0 != 0, || format!("no LOCAL_ORIGIN at {place}"));
                }
                cx.equal("PXG-RPL-002", "events at c", x.records.phases("c"), vec!["REQUEST_HEADERS", "LOG"]);
                Ok(())
            }),
        Case::new("rpl/rest-of-upload", 2, &["PXG-RPL-004"], "a large upload that is answered at its headers, then another request")
            .needs(&[Feature::BODY_STREAM_REQUEST])
            .script("b request-headers: mode request stream; reply 403; body no")
            .run(|cx| async move {
                // A host that takes the rest for requests finds some.
                let next = format!("GET /in-the-body HTTP/1.1\r\nhost: pxg.test\r\nx-pxg-case: {}\r\n\r\n", cx.name());
                let mut body = next.repeat(20).into_bytes();
                body.extend(bytes(200_000));
                let mut c = cx.connect().await?;
                c.send(&Request::post("/x", &body), cx.name()).await;
                let reply = c.response("POST").await?;
                cx.equal("PXG-RPL-004", "the status", reply.status, 403);
                cx.ended().await;
                cx.equal("PXG-RPL-004", "body events at b", cx.records().events("b", Phase::REQUEST_BODY.0).len(), 0);
                let closes = reply.get("connection").is_some_and(|v| v.contains("close"));
                if !closes {
                    c.send(&Request::get("/x"), cx.name()).await;
                    let next = c.response("GET").await?;
                    // Either the next exchange, or the connection was closed behind the response.
                    cx.check("PXG-RPL-004", next.status == 403 || next.status == 0, || format!("the next answer is {}", next.status));
                }
                let paths: Vec<String> = cx
                    .records()
                    .events("b", Phase::REQUEST_HEADERS.0)
                    .iter()
                    .filter_map(|r| r.fields.iter().flatten().find(|f| f.0 == ":path").map(|f| f.1.clone()))
                    .filter(|p| p != "/x")
                    .collect();
                cx.equal("PXG-RPL-004", "requests that nobody sent", paths, Vec::new());
                Ok(())
            }),
        Case::new("rpl/bodyless", 2, &["PXG-RPL-005"], "HEAD, 204 and 304: no body bytes")
            .script("b request-headers: reply 200; body must-not-leave")
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.send(&Request::new("HEAD", "/x"), cx.name()).await;
                let reply = c.response("HEAD").await?;
                cx.equal("PXG-RPL-005", "the status", reply.status, 200);
                cx.check("PXG-RPL-005", c.peek(20).await == 0, || "body bytes in a response to HEAD".into());
                cx.check("PXG-RPL-005", reply.get("content-length").is_none_or(|n| n == "14"), || "another length than GET's".into());
                Ok(())
            }),
        Case::new("rpl/204", 2, &["PXG-RPL-005"], "204 and 304 have no body, 204 no length")
            .script(
                "b request-headers: reply 204; body must-not-leave
                 peer request-headers: reply 304; body must-not-leave",
            )
            .run(|cx| async move {
                for (path, status) in [("/x", 204), ("/peer/x", 304)] {
                    let mut c = cx.connect().await?;
                    c.send(&Request::get(path), cx.name()).await;
                    let reply = c.response("GET").await?;
                    cx.equal("PXG-RPL-005", "the status", reply.status, status);
                    if status == 204 {
                        cx.equal("PXG-RPL-005", "content-length", reply.get("content-length"), None);
                    }
                    cx.check("PXG-RPL-005", c.peek(20).await == 0, || format!("body bytes behind {status}"));
                }
                Ok(())
            }),
        Case::new("rpl/grpc", 2, &["PXG-RPL-005"], "GRPC for a gRPC request: a trailers-only response")
            .script("b request-headers: reply 403; grpc 7; field grpc-message denied; body must-not-leave")
            .run(|cx| async move {
                let x = cx.exchange(Request::post("/x", b"").field("content-type", "application/grpc+proto").field("te", "trailers")).await?;
                cx.equal("PXG-RPL-005", "the status", x.reply.status, 200);
                cx.equal("PXG-RPL-005", "grpc-status", x.reply.get("grpc-status"), Some("7".into()));
                cx.equal("PXG-RPL-005", "grpc-message", x.reply.get("grpc-message"), Some("denied".into()));
                cx.equal("PXG-RPL-005", "content-type", x.reply.get("content-type"), Some("application/grpc+proto".into()));
                cx.equal("PXG-RPL-005", "the body", x.reply.text(), String::new());
                Ok(())
            }),
        Case::new("rpl/grpc-ignored", 2, &["PXG-RPL-005"], "GRPC for another request is ignored")
            .script("b request-headers: reply 403; grpc 7; body no")
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-RPL-005", "the status", x.reply.status, 403);
                cx.equal("PXG-RPL-005", "grpc-status", x.reply.get("grpc-status"), None);
                cx.equal("PXG-RPL-005", "the body", x.reply.text(), "no".into());
                Ok(())
            }),
        Case::new("rpl/streamed", 4, &["PXG-RPL-006", "PXG-MEM-006"], "a streamed reply: writes in their order, END once")
            .needs(&[Feature::STREAM_REPLY, Feature::APPLY])
            .script(
                "b request-headers: reply 200; open; field x-s 1; body a; apply W1 @gate:w1; apply W2 @gate:w2; apply E @gate:e
                 b result W1: memory owned; write b; write c; continue
                 b result W2: write d; continue
                 b result E: write-end e; continue",
            )
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                for (i, gate) in ["w1", "w2", "e"].into_iter().enumerate() {
                    cx.open(gate);
                    cx.until("PXG-RPL-006", "the answer to a write", |r| r.statuses("apply", "b").len() > i).await;
                }
                let reply = c.response("GET").await?;
                cx.equal("PXG-RPL-006", "the status", reply.status, 200);
                cx.equal("PXG-RPL-006", "x-s", reply.get("x-s"), Some("1".into()));
                cx.equal("PXG-RPL-006", "the body", reply.text(), "abcde".into());
                cx.check("PXG-RPL-006", reply.complete, || "the reply has no end".into());
                let statuses = cx.records().statuses("apply", "b");
                cx.check("PXG-RPL-006", statuses.iter().all(|s| *s >= 0), || format!("apply answered {statuses:?}"));
                Ok(())
            }),
        Case::new("rpl/slow-reader", 4, &["PXG-RPL-006", "PXG-SEC-003"], "a reader that does not read: FULL, LIMIT, WRITABLE")
            .needs(&[Feature::STREAM_REPLY, Feature::APPLY])
            .script(
                "b request-headers: reply 200; open; apply W times=400 @gate:w; apply E @gate:e
                 b result W: write %100000:x; continue
                 b result E: write-end -; continue",
            )
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                cx.until("PXG-RPL-006", "b's reply", |r| r.calls("on_event", Edge::Exit, "b").len() == 1).await;
                cx.open("w");
                cx.until("PXG-RPL-006", "400 answers", |r| r.statuses("apply", "b").len() >= 400).await;
                let all = cx.records().statuses("apply", "b");
                let full = all.iter().filter(|s| **s == 1).count();
                let limit = all.iter().filter(|s| **s == -5).count();
                cx.check("PXG-SEC-003", full >= 1 && limit >= 1, || format!("40 MB were taken from a client that does not read: {full} FULL, {limit} LIMIT"));
                let writable = cx.records().events("b", Phase::WAKE.0).len();
                cx.check("PXG-RPL-006", writable <= full, || format!("{writable} WRITABLE wakes after {full} FULL"));
                let taken = all.iter().filter(|s| **s >= 0).count() * 100_000;
                let read = tokio::task::spawn_local(async move {
                    let r = c.response("GET").await;
                    (r, c)
                });
                cx.until("PXG-RPL-006", "WRITABLE", |r| {
                    r.events("b", Phase::WAKE.0).iter().any(|r| r.flags.unwrap_or(0) & EventFlags::WRITABLE.0 != 0)
                })
                .await;
                cx.open("e");
                let (reply, _c) = read.await?;
                cx.equal("PXG-RPL-006", "bytes of what was taken", reply?.body.len(), taken);
                let writable = cx.records().events("b", Phase::WAKE.0).len();
                cx.check("PXG-RPL-006", full <= writable + 1, || {
                    format!("FULL was answered {full} times and WRITABLE came {writable} times: writes before WRITABLE were taken, expected LIMIT")
                });
                Ok(())
            }),
        Case::new("rpl/write-without-reply", 4, &["PXG-RPL-008", "PXG-MEM-006"], "BODY_WRITE without an open reply is skipped")
            .needs(&[Feature::STREAM_REPLY, Feature::APPLY])
            .script(
                "b request-headers: apply W
                 b result W: memory owned; write nowhere; continue",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-RPL-008", "the status", x.reply.status, 200);
                cx.equal("PXG-RPL-008", "the body", x.reply.text(), "hello".into());
                Ok(())
            }),
        Case::new("rpl/write-after-end", 4, &["PXG-RPL-008"], "BODY_WRITE after END is skipped")
            .needs(&[Feature::STREAM_REPLY, Feature::APPLY])
            .script(
                "b request-headers: apply E; apply W; reply 200; open; body a
                 b result E: write-end b; continue
                 b result W: memory owned; write c; continue",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-RPL-008", "the body", x.reply.text(), "ab".into());
                Ok(())
            }),
        Case::new("rpl/failure-while-open", 4, &["PXG-RPL-009"], "an error in WAKE while the reply is open resets, also with fail-open")
            .needs(&[Feature::STREAM_REPLY, Feature::APPLY])
            .script(
                "open request-headers: reply 200; open; body start; wake 1 @gate:fail
                 open wake: error bad",
            )
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.send(&Request::get("/open/x"), cx.name()).await;
                let head = c.interim().await?;
                cx.check("PXG-RPL-009", head.is_none(), || "an interim response".into());
                cx.open("fail");
                let reply = c.response("GET").await?;
                cx.check("PXG-RPL-009", !reply.complete, || "the reply came to a regular end".into());
                Ok(())
            }),
        Case::new("rpl/flush", 4, &["PXG-RPL-007"], "FLUSH: what was passed is at the client before the next event")
            .needs(&[Feature::FLUSH, Feature::BODY_STREAM_RESPONSE])
            .script(
                "b request-headers: mode response stream
                 b response-body: flush; continue",
            )
            .run(|cx| async move {
                let mut a = Answer::status(200).field("transfer-encoding", "chunked").head();
                for i in 0..5 {
                    a = a.send(&crate::hostcheck::message::chunk(format!("event {i}").as_bytes())).gate(&format!("g{i}"));
                }
                cx.answer(a.send(b"0\r\n\r\n"));
                let mut c = cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                for i in 0..5 {
                    // The next event is not sent before this one is here.
                    let text = cx.within("PXG-RPL-007", "an event at the client", c.until(format!("event {i}").into_bytes())).await;
                    cx.check("PXG-RPL-007", text.is_some(), || format!("event {i} is not at the client"));
                    cx.open(&format!("g{i}"));
                }
                Ok(())
            }),
        Case::new("rpl/replaced-by-itself", 4, &["PXG-RPL-001"], "a second reply while the first is still held in the chain does not replace it")
            .needs(&[Feature::APPLY, Feature::REPLY_REFILTER, Feature::PEND_RESPONSE_HEADERS])
            .script(
                "a response-headers: pending; complete C @gate:go
                 a result C: continue
                 b request-headers: reply 200; body first; apply R @gate:second
                 b result R: reply 418; body second",
            )
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                cx.until("PXG-RPL-001", "the first reply at a", |r| {
                    r.calls("on_event", Edge::Exit, "a").iter().any(|r| r.phase == Some(Phase::RESPONSE_HEADERS.0))
                })
                .await;
                cx.open("second");
                cx.until("PXG-RPL-001", "the answer to the second reply", |r| r.statuses("apply", "b").len() == 1).await;
                cx.open("go");
                let reply = c.response("GET").await?;
                cx.check("PXG-RPL-001", reply.status != 418 && !reply.text().contains("second"), || {
                    format!("the second reply is at the client: {} {}", reply.status, reply.text())
                });
                // Refused, or a failure of b when its turn came.
                let got = cx.records().statuses("apply", "b");
                if got == [OK] {
                    cx.ended().await;
                    cx.equal("PXG-RPL-001", "LOG at b, which has failed", cx.records().events("b", Phase::LOG.0).len(), 0);
                } else {
                    cx.equal("PXG-RPL-001", "the answer to the second reply", got, vec![STATE]);
                    cx.equal("PXG-RPL-001", "the body", reply.text(), "first".into());
                }
                Ok(())
            }),
        Case::new("rpl/second", 2, &["PXG-RPL-001"], "a second reply at the same place is a failure: by apply it is refused, or skipped")
            .needs(&[Feature::APPLY])
            .script(
                "b request-headers: reply 200; body first
                 b log: apply R
                 b result R: reply 500; body second",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-RPL-001", "the status", x.reply.status, 200);
                cx.equal("PXG-RPL-001", "the body", x.reply.text(), "first".into());
                let got = x.records.statuses("apply", "b");
                cx.check("PXG-RPL-001", got.first().is_some_and(|s| *s == STATE || *s == STALE || *s == OK), || format!("apply answered {got:?}"));
                Ok(())
            }),
    ];
    macro_rules! refused {
        ($name:literal, $rule:literal, $about:literal, $script:literal) => {
            Case::new($name, 2, &[$rule], $about)
                .script($script)
                .run(|cx| async move {
                    let x = cx.exchange(Request::get("/x")).await?;
                    cx.equal($rule, "the status", x.reply.status, 500);
                    Ok(())
                })
        };
    }
    all.extend(vec![
        refused!(
            "rpl/status-0",
            "PXG-RPL-001",
            "status 0",
            "b request-headers: reply 0"
        ),
        refused!(
            "rpl/status-100",
            "PXG-RPL-001",
            "status 100",
            "b request-headers: reply 100"
        ),
        refused!(
            "rpl/status-199",
            "PXG-RPL-001",
            "status 199",
            "b request-headers: reply 199"
        ),
        refused!(
            "rpl/status-600",
            "PXG-RPL-001",
            "status 600",
            "b request-headers: reply 600"
        ),
        refused!(
            "rpl/status-huge",
            "PXG-RPL-001",
            "status 2^32-1",
            "b request-headers: reply 4294967295"
        ),
        refused!(
            "rpl/zeroed",
            "PXG-ABI-011",
            "a reply of zeros",
            "b request-headers: reply-zero"
        ),
        refused!(
            "rpl/null",
            "PXG-RPL-001",
            "REPLY without a reply",
            "b request-headers: reply-null"
        ),
        refused!(
            "rpl/flags",
            "PXG-ABI-005",
            "undefined flags of a reply",
            "b request-headers: reply 200; reply-flags 0x100"
        ),
        refused!(
            "rpl/short",
            "PXG-ABI-005",
            "a reply that is too short",
            "b request-headers: reply 200; reply-size 16"
        ),
        refused!(
            "rpl/null-fields",
            "PXG-ABI-012",
            "a NULL array of fields with a count",
            "b request-headers: reply 200; null-reply-fields 2"
        ),
        refused!(
            "rpl/grpc-range",
            "PXG-RPL-005",
            "grpc_status 17",
            "b request-headers: reply 200; grpc 17"
        ),
    ]);
    all
}
