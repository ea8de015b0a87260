//! Tokens, completions, apply and wake.

use super::prelude::*;

/// Waits until `b` has answered PENDING.
async fn pending(cx: &Cx, rule: &str) {
    pending_at(cx, rule, "b").await;
}

pub(super) async fn pending_at(cx: &Cx, rule: &str, instance: &str) {
    cx.until(rule, &format!("PENDING at {instance}"), |r| {
        r.calls("on_event", Edge::Exit, instance)
            .iter()
            .any(|r| r.result.as_ref().is_some_and(|a| a.action == 2))
    })
    .await;
}

/// Where the first WAKE of `b` has returned.
fn blocks_until(records: &[std::rc::Rc<Record>]) -> Option<u64> {
    records
        .calls("on_event", Edge::Exit, "b")
        .iter()
        .find(|r| r.phase == Some(Phase::WAKE.0))
        .map(|r| r.seq)
}

/// One exchange in which `b` pends at the request's headers and is completed as the script says.
macro_rules! completed {
    ($name:literal, $rules:expr, $about:literal, $script:literal, $statuses:expr) => {
        Case::new($name, 4, $rules, $about)
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script($script)
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                let rule = $rules[0];
                cx.equal(rule, "the status", x.reply.status, 200);
                cx.equal(
                    rule,
                    "x-done upstream",
                    x.up_get("x-done"),
                    Some("yes".into()),
                );
                let expected: Vec<i32> = $statuses.to_vec();
                cx.until(rule, "every call's answer", |r| {
                    r.statuses("complete", "b").len() >= expected.len()
                })
                .await;
                cx.equal(
                    rule,
                    "what complete answered",
                    cx.records().statuses("complete", "b"),
                    expected,
                );
                Ok(())
            })
    };
}

/// A completion that is refused, and then a good one: the token stayed alive.
macro_rules! refused {
    ($name:literal, $rules:expr, $about:literal, $bad:literal, $status:expr) => {
        Case::new($name, 4, $rules, $about)
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script(concat!(
                "b request-headers: pending; complete BAD @5; complete R @gate:good
                 b result R: set x-done yes; continue
                 b result BAD: ",
                $bad
            ))
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                let rule = $rules[0];
                cx.until(rule, "the answer to the bad completion", |r| {
                    !r.statuses("complete", "b").is_empty()
                })
                .await;
                let allowed: &[i32] = &$status;
                let got = cx.records().statuses("complete", "b").first().copied();
                cx.check(rule, got.is_some_and(|s| allowed.contains(&s)), || {
                    format!("complete answered {got:?}, expected one of {allowed:?}")
                });
                cx.open("good");
                let reply = c.response("GET").await?;
                cx.equal(
                    rule,
                    "the status after a good completion",
                    reply.status,
                    200,
                );
                let done = cx.seen().first().and_then(|s| s.get("x-done"));
                cx.equal(rule, "x-done upstream", done, Some("yes".into()));
                Ok(())
            })
    };
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = vec![
        completed!(
            "asy/thread",
            &["PXG-ASY-004", "PXG-ASY-001"],
            "a completion from another thread",
            "b request-headers: pending; complete R @5
             b result R: set x-done yes; continue",
            [OK]
        ),
        completed!(
            "asy/early",
            &["PXG-ASY-004"],
            "a completion inside on_event",
            "b request-headers: complete R @now; pending
             b result R: set x-done yes; continue",
            [OK]
        ),
        completed!(
            "asy/twice",
            &["PXG-ASY-002"],
            "the second completion is stale",
            "b request-headers: complete R @now; complete R @now; pending
             b result R: set x-done yes; continue",
            [OK, STALE]
        ),
        completed!(
            "asy/late",
            &["PXG-ASY-002"],
            "a completion inside on_stream_end is stale",
            "b request-headers: complete R @now; complete R @end; pending
             b result R: set x-done yes; continue",
            [OK, STALE]
        ),
        completed!(
            "asy/after-the-end",
            &["PXG-ASY-002"],
            "a completion after the stream has ended is stale",
            "b request-headers: complete R @now; complete R @end+10; pending
             b result R: set x-done yes; continue",
            [OK, STALE]
        ),
        completed!(
            "asy/random",
            &["PXG-ASY-002", "PXG-SEC-004"],
            "values that nobody issued are stale",
            "b request-headers: complete R value=random; complete R value=0; complete R value=flip:0; complete R value=flip:30; complete R value=flip:63; complete R; pending
             b result R: set x-done yes; continue",
            [STALE, STALE, STALE, STALE, STALE, OK]
        ),
        completed!(
            "asy/previous",
            &["PXG-ASY-002"],
            "the token of an earlier event is stale",
            "b request-headers: continue; set x-done yes
             b response-headers: complete R value=previous; complete R; pending
             b result R: continue",
            [STALE, OK]
        ),
        Case::new("asy/race", 4, &["PXG-ASY-004", "PXG-ASY-001", "PXG-ASY-003"], "completions that race the return of on_event")
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script(
                "b request-headers: complete R @race; pending
                 b result R: set x-done yes; continue",
            )
            .run(|cx| async move {
                for i in 0..40 {
                    let x = cx.exchange(Request::get(&format!("/x{i}"))).await?;
                    if !cx.equal("PXG-ASY-004", "x-done upstream", x.up_get("x-done"), Some("yes".into())) {
                        break;
                    }
                }
                Ok(())
            }),
        Case::new("asy/discarded", 4, &["PXG-ASY-005", "PXG-MEM-006"], "a completion before a return other than PENDING: the return stands")
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script(
                "b request-headers: complete R @now; set x-returned yes; continue
                 b result R: memory owned; set x-kept yes; reply 403; body no",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-ASY-005", "the status", x.reply.status, 200);
                cx.equal("PXG-ASY-005", "x-returned upstream", x.up_get("x-returned"), Some("yes".into()));
                cx.equal("PXG-ASY-005", "x-kept upstream", x.up_get("x-kept"), None);
                Ok(())
            }),
        Case::new("asy/thread-affine", 4, &["PXG-ASY-007"], "what follows a completion runs on the stream's thread")
            .needs(&[Feature::PEND_REQUEST_HEADERS, Feature::PEND_RESPONSE_HEADERS, Feature::THREAD_AFFINE])
            .script(
                "b request-headers: pending; complete R @1
                 b response-headers: pending; complete R @1
                 b result R: continue",
            )
            .run(|cx| async move {
                for i in 0..8 {
                    let x = cx.exchange(Request::get(&format!("/x{i}"))).await?;
                    let tids: std::collections::BTreeSet<u32> = x
                        .records
                        .iter()
                        .filter(|r| r.function.starts_with("on_"))
                        .map(|r| r.tid)
                        .collect();
                    cx.equal("PXG-ASY-007", "threads of a stream's hooks", tids.len(), 1);
                }
                Ok(())
            }),
        Case::new("asy/abort-while-pending", 4, &["PXG-ASY-008", "PXG-ASY-002", "PXG-EVT-007"], "a client goes away; the completion is stale, inside on_cancel and after the end")
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script(
                "b request-headers: pending; complete R @cancel; complete R @end+5
                 b result R: memory owned; set x-a 1; continue",
            )
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                pending(&cx, "PXG-ASY-008").await;
                c.reset();
                cx.until("PXG-ASY-008", "on_cancel", |r| !r.calls("on_cancel", Edge::Enter, "b").is_empty()).await;
                cx.until("PXG-ASY-002", "both answers", |r| r.statuses("complete", "b").len() >= 2).await;
                let answers = cx.records().statuses("complete", "b");
                cx.equal("PXG-ASY-008", "what complete answered inside on_cancel", answers.first().copied(), Some(STALE));
                cx.equal("PXG-ASY-002", "what complete answered after the end", answers.get(1).copied(), Some(STALE));
                Ok(())
            }),
        Case::new("asy/retired-together", 4, &["PXG-ASY-008", "PXG-ASY-012"], "both tokens of a place are retired before its first on_cancel")
            .needs(&[Feature::PEND_REQUEST_BODY, Feature::PEND_RESPONSE_HEADERS, Feature::BODY_STREAM_REQUEST])
            .script(
                "duplex request-headers: mode request stream
                 duplex request-body: pending; complete R @cancel
                 duplex response-headers: pending; complete R @cancel
                 duplex result R: continue",
            )
            .run(|cx| async move {
                cx.answer(Answer::status(200).early().body(b"early"));
                let mut c = cx.connect().await?;
                c.write(&Request::post("/duplex/x", b"").field("content-length", "6").head_only().head(cx.name())).await;
                c.write(b"abc").await;
                cx.until("PXG-ASY-012", "both directions PENDING", |r| {
                    let exits = r.calls("on_event", Edge::Exit, "duplex");
                    exits.iter().filter(|r| r.result.as_ref().is_some_and(|a| a.action == 2)).count() == 2
                })
                .await;
                c.reset();
                // The probe makes both calls in the first on_cancel.
                cx.until("PXG-ASY-008", "both answers", |r| r.statuses("complete", "duplex").len() >= 2).await;
                cx.equal("PXG-ASY-008", "what complete answered inside the first on_cancel", cx.records().statuses("complete", "duplex"), vec![STALE, STALE]);
                cx.ended().await;
                cx.equal("PXG-ASY-008", "on_cancel", cx.records().calls("on_cancel", Edge::Enter, "duplex").len(), 2);
                Ok(())
            }),
        Case::new("asy/handle-after-the-end", 4, &["PXG-ASY-002"], "apply and wake are stale inside on_stream_end and after it")
            .needs(&[Feature::APPLY, Feature::METADATA])
            .script(
                "b request-headers: apply M @end; wake 1 @end; apply M @end+5; wake 1 @end+5; continue
                 b result M: memory owned; meta k v; continue",
            )
            .run(|cx| async move {
                cx.exchange(Request::get("/x")).await?;
                for call in ["apply", "wake"] {
                    cx.until("PXG-ASY-002", "the answers", |r| r.statuses(call, "b").len() >= 2).await;
                    cx.equal("PXG-ASY-002", &format!("what {call} answered"), cx.records().statuses(call, "b"), vec![STALE, STALE]);
                }
                Ok(())
            }),
        Case::new("asy/races-death", 4, &["PXG-ASY-009", "PXG-ASY-001", "PXG-MEM-006"], "completions that race the client's reset")
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script(
                "b request-headers: pending; complete R @2
                 b result R: memory owned; set x-a owned-value; continue",
            )
            .run(|cx| async move {
                for i in 0..30u64 {
                    let mut c = cx.connect().await?;
                    c.send(&Request::get("/x"), cx.name()).await;
                    let n = usize::try_from(i)? + 1;
                    cx.until("PXG-ASY-009", "PENDING at b", |r| {
                        r.calls("on_event", Edge::Exit, "b").iter().filter(|r| r.phase == Some(1)).count() >= n
                    })
                    .await;
                    tokio::time::sleep(std::time::Duration::from_micros(i * 137 % 3000)).await;
                    c.reset();
                }
                cx.until("PXG-ASY-009", "every answer", |r| r.statuses("complete", "b").len() >= 30).await;
                Ok(())
            }),
        Case::new("asy/duplex", 4, &["PXG-ASY-012", "PXG-CHN-002"], "with DUPLEX both directions pend at once, with different tokens")
            .needs(&[Feature::PEND_REQUEST_BODY, Feature::PEND_RESPONSE_HEADERS, Feature::BODY_STREAM_REQUEST])
            .script(
                "duplex request-headers: mode request stream
                 duplex request-body#1: pending; complete R @gate:request
                 duplex response-headers: pending; complete R @gate:response
                 duplex result R: continue",
            )
            .run(|cx| async move {
                cx.answer(Answer::status(200).early().body(b"early"));
                let mut c = cx.connect().await?;
                c.write(&Request::post("/duplex/x", b"").field("content-length", "6").head_only().head(cx.name())).await;
                c.write(b"abc").await;
                cx.until("PXG-ASY-012", "both directions PENDING", |r| {
                    !r.events("duplex", Phase::REQUEST_BODY.0).is_empty()
                        && !r.events("duplex", Phase::RESPONSE_HEADERS.0).is_empty()
                })
                .await;
                let tokens: std::collections::BTreeSet<u64> = cx
                    .records()
                    .iter()
                    .filter(|r| r.is("on_event", Edge::Enter) && r.phase != Some(1))
                    .filter_map(|r| r.token)
                    .collect();
                cx.check("PXG-ASY-012", tokens.len() >= 2, || "both directions have one token".into());
                cx.open("request");
                cx.open("response");
                c.write(b"def").await;
                let reply = c.response("POST").await?;
                cx.equal("PXG-ASY-012", "the body", reply.text(), "early".into());
                Ok(())
            }),
        Case::new("asy/wakes", 4, &["PXG-ASY-013"], "many wakes from several threads: at least one WAKE, all bits, not more than wakes")
            .needs(&[Feature::PEND_REQUEST_HEADERS, Feature::APPLY])
            .script(
                "b request-headers: pending; wake 1 @race times=200; wake 2 @race times=200; wake 4 @race times=200; wake 8 @race times=200; complete R @gate:go
                 b result R: continue",
            )
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                cx.until("PXG-ASY-013", "the answers of 800 wakes", |r| r.statuses("wake", "b").len() >= 800).await;
                let bits = |r: &[std::rc::Rc<Record>]| {
                    r.events("b", Phase::WAKE.0).iter().fold(0, |a, r| a | r.arg.unwrap_or(0))
                };
                cx.until("PXG-ASY-013", "WAKE events with all the bits", |r| bits(r) == 15).await;
                let last = cx.records().calls("wake", Edge::Enter, "b").last().map_or(0, |r| r.seq);
                cx.until("PXG-ASY-013", "a WAKE after the last wake", |r| {
                    r.events("b", Phase::WAKE.0).last().is_some_and(|e| e.seq > last)
                })
                .await;
                let ok = cx.records().statuses("wake", "b").iter().all(|s| *s == OK);
                cx.check("PXG-ASY-013", ok, || "a wake of a living stream was not answered OK".into());
                cx.open("go");
                cx.equal("PXG-ASY-013", "the status", c.response("GET").await?.status, 200);
                Ok(())
            }),
        Case::new("asy/wakes-coalesce", 4, &["PXG-ASY-013"], "wakes while the worker is inside a hook of the place become one WAKE")
            .needs(&[Feature::PEND_REQUEST_HEADERS, Feature::APPLY])
            .script(
                "b request-headers: pending; wake 1 @gate:first; wake 2 @gate:more times=20; wake 4 @gate:more times=20; complete R @gate:go
                 b wake#1: block free
                 b result R: continue",
            )
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                pending(&cx, "PXG-ASY-013").await;
                cx.open("first");
                cx.until("PXG-ASY-013", "the WAKE that blocks", |r| !r.events("b", Phase::WAKE.0).is_empty()).await;
                cx.open("more");
                cx.until("PXG-ASY-013", "the answers of 41 wakes", |r| r.statuses("wake", "b").len() >= 41).await;
                cx.open("free");
                cx.until("PXG-ASY-013", "a second WAKE", |r| r.events("b", Phase::WAKE.0).len() >= 2).await;
                cx.open("go");
                cx.equal("PXG-ASY-013", "the status", c.response("GET").await?.status, 200);
                cx.ended().await;
                let args: Vec<_> = cx.records().events("b", Phase::WAKE.0).iter().map(|r| r.arg).collect();
                cx.equal("PXG-ASY-013", "the values of the WAKEs", args, vec![Some(1), Some(6)]);
                Ok(())
            }),
        Case::new("asy/wake-not-subscribed", 4, &["PXG-ASY-013"], "wake without a subscription to WAKE is STATE")
            .needs(&[Feature::APPLY])
            .script("headers request-headers: wake 1")
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/headers/x")).await?;
                cx.equal("PXG-ASY-013", "what wake answered", x.records.statuses("wake", "headers"), vec![STATE]);
                Ok(())
            }),
        Case::new("asy/other-stream-dies", 4, &["PXG-ASY-016"], "a completion is not lost when another stream of the worker dies")
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script(
                "b request-headers: pending; complete R @gate:go
                 b result R: set x-done yes; continue",
            )
            .run(|cx| async move {
                let mut kept = Vec::new();
                let mut dying = Vec::new();
                for i in 0..12 {
                    let mut c = cx.connect().await?;
                    c.send(&Request::get("/x"), cx.name()).await;
                    if i % 2 == 0 { kept.push(c) } else { dying.push(c) }
                }
                cx.until("PXG-ASY-016", "12 PENDING", |r| r.calls("on_event", Edge::Exit, "b").len() >= 12).await;
                cx.open("go");
                for c in dying {
                    c.reset();
                }
                for mut c in kept {
                    let reply = cx.within("PXG-ASY-016", "the response of a stream that lives on", c.response("GET")).await;
                    cx.equal("PXG-ASY-016", "the status", reply.map(|r| r.status), Some(200));
                }
                Ok(())
            }),
        Case::new("asy/other-stream-died", 4, &["PXG-ASY-016"], "completions are not lost after other streams of the worker have died")
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script(
                "b request-headers: pending; complete R @gate:go
                 b result R: continue",
            )
            .run(|cx| async move {
                // Enough that each worker has some of both kinds.
                const EACH: usize = 8;
                let mut kept = Vec::new();
                let mut dying = Vec::new();
                for i in 0..2 * EACH {
                    let mut c = cx.connect().await?;
                    c.send(&Request::get("/x"), cx.name()).await;
                    if i % 2 == 0 { kept.push(c) } else { dying.push(c) }
                }
                cx.until("PXG-ASY-016", "all PENDING", |r| r.calls("on_event", Edge::Exit, "b").len() >= 2 * EACH).await;
                for c in dying {
                    c.reset();
                }
                cx.until("PXG-ASY-016", "on_cancel for those that died", |r| r.calls("on_cancel", Edge::Exit, "b").len() >= EACH).await;
                cx.open("go");
                for mut c in kept {
                    let reply = cx.within("PXG-ASY-016", "the response of a stream that lives on", c.response("GET")).await;
                    cx.equal("PXG-ASY-016", "the status", reply.map(|r| r.status), Some(200));
                }
                Ok(())
            }),
        Case::new("asy/apply-reply", 4, &["PXG-ASY-017", "PXG-CHN-005"], "REPLY by apply while the direction is PENDING")
            .needs(&[Feature::PEND_REQUEST_HEADERS, Feature::APPLY])
            .script(
                "b request-headers: pending; apply T @5
                 b result T: reply 504; body slow",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-ASY-017", "the status", x.reply.status, 504);
                cx.equal("PXG-ASY-017", "the body", x.reply.text(), "slow".into());
                cx.equal("PXG-ASY-017", "on_cancel", x.records.calls("on_cancel", Edge::Enter, "b").len(), 1);
                cx.equal("PXG-ASY-017", "what apply answered", x.records.statuses("apply", "b"), vec![OK]);
                Ok(())
            }),
        Case::new("asy/apply-reset", 4, &["PXG-ASY-017"], "RESET by apply while the upstream is waited for")
            .needs(&[Feature::APPLY])
            .script(
                "b request-headers: apply T @gate:now
                 b result T: reset",
            )
            .run(|cx| async move {
                cx.answer(Answer::status(200).body(b"x").first(Step::Gate("never".into())));
                let mut c = cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                cx.upstream_saw("PXG-ASY-017", 1).await;
                cx.open("now");
                let raw = c.raw(1).await?;
                cx.check("PXG-ASY-017", raw.is_empty() && c.closed.is_some(), || {
                    "the client got bytes, or its connection stayed open".into()
                });
                cx.open("never");
                Ok(())
            }),
        Case::new("asy/order", 4, &["PXG-ASY-019"], "apply before the return takes effect after it, in order")
            .needs(&[Feature::APPLY, Feature::STREAM_REPLY])
            .script(
                "b request-headers: apply W1; apply W2; reply 200; open; body a-
                 b result W1: write b-; continue
                 b result W2: write-end c; continue",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-ASY-019", "the body", x.reply.text(), "a-b-c".into());
                let statuses = x.records.statuses("apply", "b");
                cx.check("PXG-ASY-019", statuses.iter().all(|s| *s >= 0), || format!("apply answered {statuses:?}"));
                Ok(())
            }),
        Case::new("asy/checked-late", 4, &["PXG-ASY-020"], "what depends on the stream is checked when its turn comes: then it is a failure")
            .needs(&[Feature::PEND_REQUEST_HEADERS])
            .script(
                "b request-headers: pending; complete R @5
                 b result R: set-at 1000 x; continue",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-ASY-020", "what complete answered", x.records.statuses("complete", "b"), vec![OK]);
                cx.equal("PXG-ASY-020", "the status", x.reply.status, 500);
                Ok(())
            }),
        Case::new("asy/apply-actions", 4, &["PXG-ASY-021"], "apply takes CONTINUE, REPLY and RESET, and the operations of its table")
            .needs(&[Feature::APPLY, Feature::METADATA])
            .script(
                "b request-headers: apply PEND; apply MORE; apply ERR; apply UNSET; apply A9; apply SET; apply PASS; apply MODE; apply UNSUB; apply GOOD
                 b result PEND: pending
                 b result MORE: more
                 b result ERR: error bad
                 b result UNSET: unset
                 b result A9: action 9
                 b result SET: set x-a 1; continue
                 b result PASS: pass 1; continue
                 b result MODE: mode request stream; continue
                 b result UNSUB: unsubscribe log; continue
                 b result GOOD: meta k v; continue",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-ASY-021", "the status", x.reply.status, 200);
                let got = x.records.statuses("apply", "b");
                let fits = |i: usize, ok: &[i32]| got.get(i).is_some_and(|s| ok.contains(s));
                for i in 0..3 {
                    cx.check("PXG-ASY-021", fits(i, &[STATE]), || format!("apply number {i} answered {:?}, expected STATE", got.get(i)));
                }
                cx.check("PXG-ASY-021", fits(3, &[ARG]), || format!("UNSET answered {:?}, expected ARG", got.get(3)));
                for i in 4..9 {
                    cx.check("PXG-ASY-021", fits(i, &[STATE, ARG, UNSUPPORTED]), || {
                        format!("apply number {i} answered {:?}, expected a refusal", got.get(i))
                    });
                }
                cx.check("PXG-ASY-021", fits(9, &[OK]), || format!("metadata answered {:?}, expected OK", got.get(9)));
                Ok(())
            }),
        Case::new("asy/after-failure", 4, &["PXG-ASY-022", "PXG-ASY-002"], "after a failure handle and token are stale")
            .needs(&[Feature::APPLY, Feature::PEND_REQUEST_HEADERS])
            .script(
                "b request-headers: complete R @gate:go; apply R2 @gate:go; wake 1 @gate:go; error bad
                 b result R: memory owned; set x-a 1; continue
                 b result R2: memory owned; meta k v; continue",
            )
            .run(|cx| async move {
                cx.answer(Answer::status(200).body(b"x"));
                let mut c = cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                let reply = c.response("GET").await?;
                cx.equal("PXG-ASY-022", "the status", reply.status, 500);
                cx.open("go");
                for call in ["complete", "apply", "wake"] {
                    cx.until("PXG-ASY-022", "the answers", |r| !r.statuses(call, "b").is_empty()).await;
                    cx.equal("PXG-ASY-022", &format!("what {call} answered"), cx.records().statuses(call, "b"), vec![STALE]);
                }
                Ok(())
            }),
        Case::new("asy/after-failure-open", 4, &["PXG-ASY-022"], "a guest that is bypassed: its handle is stale while the stream goes on, and what it had queued has no effect")
            .needs(&[Feature::APPLY, Feature::METADATA])
            .script(
                "open request-headers: apply REPLY; wake 1; apply M @gate:go; wake 1 @gate:go; error bad
                 open result REPLY: memory owned; reply 403; body queued
                 open result M: memory owned; meta k v; continue",
            )
            .run(|cx| async move {
                cx.answer(Answer::status(200).body(b"x").first(Step::Gate("rest".into())));
                let mut c = cx.connect().await?;
                c.send(&Request::get("/open/x"), cx.name()).await;
                cx.upstream_saw("PXG-ASY-022", 1).await;
                cx.open("go");
                for call in ["apply", "wake"] {
                    cx.until("PXG-ASY-022", "the answers", |r| r.statuses(call, "open").len() >= 2).await;
                    cx.equal("PXG-ASY-022", &format!("what {call} answered before and after the failure"), cx.records().statuses(call, "open"), vec![OK, STALE]);
                }
                cx.open("rest");
                cx.equal("PXG-ASY-022", "the status", c.response("GET").await?.status, 200);
                cx.ended().await;
                cx.equal("PXG-ASY-022", "events at the bypassed guest", cx.records().phases("open"), vec!["REQUEST_HEADERS"]);
                Ok(())
            }),
        Case::new("asy/blocked-worker", 4, &["PXG-ASY-006"], "complete and wake return while another guest blocks the worker")
            .needs(&[Feature::PEND_REQUEST_HEADERS, Feature::APPLY])
            .script(
                "b request-headers: pending; complete R @gate:go
                 b result R: continue
                 c request-headers: continue
                 a log: continue
                 b wake: block free
                 b request-headers: wake 1 @gate:block; wake 2 @gate:go",
            )
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                pending(&cx, "PXG-ASY-006").await;
                cx.open("block");
                cx.until("PXG-ASY-006", "the WAKE that blocks", |r| !r.events("b", Phase::WAKE.0).is_empty()).await;
                cx.open("go");
                // The worker is inside on_event; both calls must come back all the same.
                cx.until("PXG-ASY-006", "the answers of complete and wake while the worker is blocked", |r| {
                    r.statuses("complete", "b").len() == 1 && r.statuses("wake", "b").len() == 2
                })
                .await;
                cx.open("free");
                cx.equal("PXG-ASY-006", "the status", c.response("GET").await?.status, 200);
                cx.until("PXG-ASY-006", "the end of the hook", |r| blocks_until(r).is_some()).await;
                let records = cx.records();
                let end = blocks_until(&records).unwrap_or(0);
                let late: Vec<&str> = records
                    .iter()
                    .filter(|r| r.edge == Edge::Exit && r.seq > end && matches!(r.function.as_str(), "complete" | "wake"))
                    .map(|r| r.function.as_str())
                    .collect();
                cx.equal("PXG-ASY-006", "calls that returned after the hook only", late, Vec::new());
                Ok(())
            }),
        Case::new("asy/more-by-complete", 4, &["PXG-ASY-010", "PXG-BODY-012"], "MORE by complete keeps the view")
            .needs(&[Feature::PEND_REQUEST_BODY, Feature::BODY_STREAM_REQUEST])
            .script(
                "b request-headers: mode request stream
                 b request-body#1: pending; complete R @1
                 b result R: more 3",
            )
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.write(&Request::post("/x", b"").field("content-length", "6").head_only().head(cx.name())).await;
                c.write(b"abc").await;
                cx.until("PXG-ASY-010", "the completion", |r| r.statuses("complete", "b") == [OK]).await;
                c.write(b"def").await;
                cx.equal("PXG-ASY-010", "the status", c.response("POST").await?.status, 200);
                let last = cx.records().events("b", Phase::REQUEST_BODY.0);
                let view = last.get(1).and_then(|r| r.body.clone());
                cx.equal("PXG-BODY-012", "the next view", view, Some("abcdef".into()));
                Ok(())
            }),
        Case::new("asy/more-has-come", 4, &["PXG-ACT-003"], "bytes that came while an event was PENDING count for its MORE")
            .needs(&[Feature::PEND_REQUEST_BODY, Feature::BODY_STREAM_REQUEST])
            .script(
                "b request-headers: mode request stream
                 b request-body#1: pending; complete R @gate:go
                 b result R: more 3",
            )
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.write(&Request::post("/x", b"").field("content-length", "9").head_only().head(cx.name())).await;
                c.write(b"abc").await;
                cx.until("PXG-ACT-003", "PENDING at the body", |r| {
                    let body = Some(Phase::REQUEST_BODY.0);
                    r.calls("on_event", Edge::Exit, "b").iter().any(|r| r.phase == body)
                })
                .await;
                c.write(b"def").await;
                cx.settle().await?;
                cx.open("go");
                cx.until("PXG-ACT-003", "the event with what came meanwhile", |r| r.events("b", Phase::REQUEST_BODY.0).len() >= 2).await;
                let view = cx.records().events("b", Phase::REQUEST_BODY.0).get(1).and_then(|r| r.body.clone());
                cx.equal("PXG-ACT-003", "the view after MORE", view, Some("abcdef".into()));
                c.write(b"ghi").await;
                cx.equal("PXG-ACT-003", "the status", c.response("POST").await?.status, 200);
                Ok(())
            }),
    ];
    all.extend(vec![
        refused!(
            "asy/complete-pending",
            &["PXG-ASY-010"],
            "complete with PENDING is STATE",
            "pending",
            [STATE]
        ),
        refused!(
            "asy/complete-unset",
            &["PXG-ASY-010"],
            "complete with UNSET is ARG",
            "unset",
            [ARG]
        ),
        refused!(
            "asy/complete-unknown",
            &["PXG-ASY-010"],
            "complete with action 9 is STATE",
            "action 9",
            [STATE, ARG, UNSUPPORTED]
        ),
        refused!(
            "asy/complete-short",
            &["PXG-ASY-010", "PXG-ABI-005"],
            "complete with a struct that is too short is ARG",
            "size 8; continue",
            [ARG]
        ),
        refused!(
            "asy/complete-name",
            &["PXG-ASY-020", "PXG-HDR-005"],
            "a bad name is ARG, and the token lives",
            "set bad\\sname 1; continue",
            [ARG]
        ),
        refused!(
            "asy/complete-value",
            &["PXG-ASY-020", "PXG-HDR-005"],
            "a bad value is ARG, and the token lives",
            "set x-a a\\r\\nx-b:\\s1; continue",
            [ARG]
        ),
        refused!(
            "asy/complete-null",
            &["PXG-ASY-010", "PXG-ABI-012"],
            "a NULL array with a count is ARG",
            "continue; null-ops 1",
            [ARG]
        ),
        refused!(
            "asy/complete-flags",
            &["PXG-ASY-010", "PXG-ABI-005"],
            "undefined flags are UNSUPPORTED",
            "rflags 0x40000000; continue",
            [UNSUPPORTED]
        ),
        refused!(
            "asy/complete-reply",
            &["PXG-ASY-020", "PXG-RPL-001"],
            "a reply with status 99 is ARG",
            "reply 99",
            [ARG]
        ),
        refused!(
            "asy/complete-kind",
            &["PXG-ASY-010", "PXG-MUT-006"],
            "PASS for a headers token is ARG",
            "pass 1; continue",
            [ARG]
        ),
    ]);
    all
}
