//! Events, their order, and the end of a stream.

use super::prelude::*;

/// The chain of `/`.
const CHAIN: [&str; 3] = ["a", "b", "c"];

/// The hooks of the end, in their order: which hook at which place.
fn ends(records: &[std::rc::Rc<Record>]) -> Vec<String> {
    records
        .iter()
        .filter(|r| r.edge == Edge::Enter)
        .filter_map(|r| {
            let what = match (r.function.as_str(), r.phase) {
                ("on_cancel", _) => "cancel",
                ("on_event", Some(p)) if p == Phase::LOG.0 => "log",
                ("on_stream_end", _) => "end",
                _ => return None,
            };
            Some(format!("{what} {}", r.instance.as_deref().unwrap_or("?")))
        })
        .collect()
}

fn log_arg(records: &[std::rc::Rc<Record>], place: &str) -> Option<u64> {
    records
        .events(place, Phase::LOG.0)
        .first()
        .map(|r| r.arg.unwrap_or(0))
}

/// Interim responses of the upstream before its 200.
fn interim(
    name: &'static str,
    about: &'static str,
    method: &'static str,
    before: &'static [&'static [u8]],
) -> Case {
    Case::new(name, 2, &["PXG-EVT-013"], about)
        .script("* request-headers: continue")
        .run(move |cx| async move {
            let mut answer = Answer::default();
            for head in before {
                answer = answer.send(head);
            }
            // A host that takes an interim response for the response waits for its end.
            cx.answer(
                answer
                    .send(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")
                    .then(Step::Close),
            );
            let x = match method {
                "POST" => cx.exchange(Request::post("/x", b"body")).await?,
                _ => cx.exchange(Request::get("/x")).await?,
            };
            cx.equal("PXG-EVT-013", "the status", x.reply.status, 200);
            cx.equal("PXG-EVT-013", "the body", x.reply.text(), "ok".into());
            for place in CHAIN {
                let all = x.records.events(place, Phase::RESPONSE_HEADERS.0);
                cx.equal(
                    "PXG-EVT-013",
                    &format!("RESPONSE_HEADERS at {place}"),
                    all.len(),
                    1,
                );
            }
            Ok(())
        })
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = vec![
        Case::new(
            "evt/exchange",
            2,
            &[
                "PXG-EVT-001",
                "PXG-EVT-002",
                "PXG-EVT-006",
                "PXG-EVT-007",
                "PXG-EVT-009",
                "PXG-EVT-012",
                "PXG-EVT-016",
                "PXG-EVT-018",
                "PXG-EVT-021",
            ],
            "a plain exchange through three places of one library",
        )
        .script("* request-headers: continue")
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/x")).await?;
            cx.equal("PXG-ACT-002", "the status", x.reply.status, 200);
            cx.equal("PXG-ACT-002", "the body", x.reply.text(), "hello".into());
            for place in CHAIN {
                for phase in [Phase::REQUEST_HEADERS, Phase::RESPONSE_HEADERS, Phase::LOG] {
                    let n = x.records.events(place, phase.0).len();
                    let rule = if phase == Phase::LOG { "PXG-EVT-009" } else { "PXG-EVT-001" };
                    cx.equal(rule, &format!("events of phase {} at {place}", phase.0), n, 1);
                }
                cx.equal("PXG-EVT-018", &format!("LOG's arg at {place}"), log_arg(&x.records, place), Some(0x1101));
                cx.equal(
                    "PXG-EVT-006",
                    &format!("on_stream_end at {place}"),
                    x.records.calls("on_stream_end", Edge::Enter, place).len(),
                    1,
                );
            }
            Ok(())
        }),
        Case::new(
            "evt/bodies-in-pieces",
            2,
            &["PXG-EVT-001", "PXG-EVT-011", "PXG-BODY-002", "PXG-BODY-018"],
            "bodies in STREAM at three places, sent byte by byte in both directions",
        )
        .needs(&[Feature::BODY_STREAM_REQUEST, Feature::BODY_STREAM_RESPONSE])
        .script("* request-headers: mode request stream; mode response stream")
        .run(|cx| async move {
            let body = bytes(150);
            let single: Vec<&[u8]> = body.chunks(1).collect();
            cx.answer(Answer::status(200).chunks(&single));
            let x = cx.exchange(Request::chunks("/x", &single)).await?;
            let text: String = body.iter().map(|b| char::from(*b)).collect();
            cx.equal("PXG-BODY-002", "the request's body upstream", x.up_text(), Some(text.clone()));
            cx.equal("PXG-BODY-002", "the response's body", x.reply.text(), text);
            for place in CHAIN {
                for phase in [Phase::REQUEST_BODY, Phase::RESPONSE_BODY] {
                    let last = x.records.events(place, phase.0);
                    let end = last.last().and_then(|r| r.flags).unwrap_or(0);
                    let both = EventFlags::BODY_END.0 | EventFlags::END_STREAM.0;
                    cx.equal("PXG-EVT-011", &format!("the end at {place}, phase {}", phase.0), end & both, both);
                    let seen: String = last.iter().filter_map(|r| r.body.clone()).collect();
                    cx.equal("PXG-BODY-002", &format!("bytes shown at {place}, phase {}", phase.0), seen.len(), 150);
                }
            }
            Ok(())
        }),
        Case::new(
            "evt/head-in-pieces",
            2,
            &["PXG-EVT-001", "PXG-HDR-001"],
            "a request whose every byte comes by itself",
        )
        .script("b request-headers: add x-b 1")
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.write_slowly(&Request::get("/x").field("x-a", "1").head(cx.name())).await;
            cx.equal("PXG-EVT-001", "the status", c.response("GET").await?.status, 200);
            cx.ended().await;
            let up = cx.seen();
            cx.equal("PXG-HDR-001", "x-a upstream", up.first().and_then(|u| u.get("x-a")), Some("1".into()));
            cx.equal("PXG-HDR-001", "x-b upstream", up.first().and_then(|u| u.get("x-b")), Some("1".into()));
            Ok(())
        }),
        Case::new(
            "evt/until-close",
            2,
            &["PXG-EVT-001", "PXG-EVT-011"],
            "a response that ends with its connection",
        )
        .needs(&[Feature::BODY_STREAM_RESPONSE])
        .script("* request-headers: mode response stream")
        .run(|cx| async move {
            cx.answer(Answer::status(200).field("connection", "close").send(b"until-").send(b"close").then(Step::Close));
            let x = cx.exchange(Request::get("/x")).await?;
            cx.equal("PXG-EVT-001", "the body", x.reply.text(), "until-close".into());
            cx.check("PXG-EVT-001", x.reply.complete, || "the response has no end".into());
            let last = x.records.events("b", Phase::RESPONSE_BODY.0).last().and_then(|r| r.flags).unwrap_or(0);
            cx.check("PXG-EVT-011", last & EventFlags::BODY_END.0 != 0, || "no BODY_END at the close".into());
            Ok(())
        }),
        Case::new(
            "evt/pending-holds",
            2,
            &["PXG-EVT-003"],
            "nothing is delivered, and nothing leaves, while the request headers are PENDING",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS, Feature::BODY_STREAM_REQUEST])
        .script(
            "b request-headers: pending; complete R @gate:go
             b result R: mode request stream; continue",
        )
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.send(&Request::post("/x", b"12345"), cx.name()).await;
            cx.until("PXG-EVT-003", "PENDING at b", |r| {
                r.calls("on_event", Edge::Exit, "b").len() == 1
            })
            .await;
            cx.settle().await?;
            cx.check("PXG-EVT-003", cx.seen().is_empty(), || {
                "the request is at the upstream while b's request headers are PENDING".into()
            });
            cx.equal("PXG-EVT-003", "events at c", cx.records().phases("c").len(), 0);
            cx.open("go");
            let reply = c.response("POST").await?;
            cx.equal("PXG-ASY-004", "the status", reply.status, 200);
            Ok(())
        }),
        Case::new(
            "evt/peer-parked",
            2,
            &["PXG-EVT-003"],
            "without DUPLEX an early response waits while the request's body is PENDING",
        )
        .needs(&[Feature::PEND_REQUEST_BODY, Feature::BODY_STREAM_REQUEST])
        .script(
            "b request-headers: mode request stream
             b request-body#1: pending; complete R @gate:go
             b result R: continue",
        )
        .run(|cx| async move {
            cx.answer(Answer::status(200).early().body(b"early"));
            let mut c = cx.connect().await?;
            c.write(
                &Request::post("/x", b"")
                    .field("content-length", "6")
                    .head_only()
                    .head(cx.name()),
            )
            .await;
            c.write(b"abc").await;
            cx.until("PXG-EVT-003", "PENDING at b", |r| {
                r.events("b", Phase::REQUEST_BODY.0).len() == 1
                    && r.calls("on_event", Edge::Exit, "b").len() >= 2
            })
            .await;
            cx.settle().await?;
            cx.equal(
                "PXG-EVT-003",
                "response events at b while its request body is PENDING",
                cx.records().events("b", Phase::RESPONSE_HEADERS.0).len(),
                0,
            );
            cx.open("go");
            c.write(b"def").await;
            let reply = c.response("POST").await?;
            cx.equal("PXG-EVT-003", "the status", reply.status, 200);
            cx.equal("PXG-BODY-002", "the body", reply.text(), "early".into());
            Ok(())
        }),
        Case::new(
            "evt/unreached",
            2,
            &["PXG-EVT-004", "PXG-EVT-009", "PXG-RPL-002"],
            "a reply of the first guest: those behind it get LOG and nothing else",
        )
        .script("a request-headers: reply 403; body no")
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/x")).await?;
            cx.equal("PXG-RPL-001", "the status", x.reply.status, 403);
            cx.equal("PXG-RPL-002", "events at a", x.records.phases("a"), vec!["REQUEST_HEADERS", "LOG"]);
            for place in ["b", "c"] {
                cx.equal("PXG-EVT-004", &format!("events at {place}"), x.records.phases(place), vec!["LOG"]);
            }
            cx.equal("PXG-EVT-018", "LOG's arg", log_arg(&x.records, "a"), Some(0x1105));
            Ok(())
        }),
        Case::new(
            "evt/one-at-a-time",
            4,
            &["PXG-EVT-002"],
            "while a hook of a stream runs, bytes, wakes and completions for it wait",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS, Feature::APPLY, Feature::BODY_STREAM_REQUEST])
        .script(
            "b request-headers: mode request stream; wake 1 @gate:in times=5; apply M @gate:in; block free
             b result M: meta k v; continue
             b request-body: wake 2 @race; continue",
        )
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.write(&Request::post("/x", b"").field("content-length", "6").head_only().head(cx.name())).await;
            cx.until("PXG-EVT-002", "the hook that blocks", |r| !r.events("b", Phase::REQUEST_HEADERS.0).is_empty()).await;
            c.write(b"abc").await;
            cx.open("in");
            cx.until("PXG-EVT-002", "the answers of wake and apply", |r| {
                r.statuses("wake", "b").len() >= 5 && !r.statuses("apply", "b").is_empty()
            })
            .await;
            cx.open("free");
            c.write(b"def").await;
            // The history checker looks at the threads of each hook.
            cx.equal("PXG-EVT-002", "the status", c.response("POST").await?.status, 200);
            cx.ended().await;
            cx.check("PXG-EVT-002", !cx.records().events("b", Phase::WAKE.0).is_empty(), || "no WAKE came".into());
            Ok(())
        }),
        Case::new(
            "evt/first-cause",
            2,
            &["PXG-EVT-018"],
            "LOG says the first cause: a failure before its 500, a reply before the client's reset",
        )
        .needs(&[Feature::STREAM_REPLY])
        .script(
            "c request-headers: error bad
             b request-headers: continue
             peer request-headers: reply 200; open; body part",
        )
        .run(|cx| async move {
            let why = |place: &str| log_arg(&cx.records(), place).map(|a| a & 0xff);
            let x = cx.exchange(Request::get("/x")).await?;
            cx.equal("PXG-EVT-018", "the status of a failure", x.reply.status, 500);
            cx.equal("PXG-EVT-018", "why, in LOG, after a failure", why("a"), Some(6));
            let mut c = cx.connect().await?;
            c.send(&Request::get("/peer/x"), cx.name()).await;
            let part = cx.within("PXG-EVT-018", "the part of a reply", c.until(b"part".to_vec())).await;
            if part.is_some() {
                c.reset();
                cx.until("PXG-EVT-018", "LOG", |r| !r.events("peer", Phase::LOG.0).is_empty()).await;
                cx.equal("PXG-EVT-018", "why, in LOG, after a reset of an open reply", why("peer"), Some(5));
            }
            Ok(())
        }),
        Case::new(
            "evt/calls-inside",
            4,
            &["PXG-EVT-005", "PXG-ASY-004"],
            "complete, wake and apply inside on_event run no hook",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS, Feature::APPLY])
        .script(
            "b request-headers: wake 5; apply A; pending; complete R
             b result A: meta k v; continue
             b result R: set x-b done; continue",
        )
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/x")).await?;
            cx.equal("PXG-ASY-004", "x-b upstream", x.up_get("x-b"), Some("done".into()));
            cx.equal("PXG-ASY-004", "what complete answered", x.records.statuses("complete", "b"), vec![OK]);
            Ok(())
        }),
        Case::new(
            "evt/user-zero",
            2,
            &["PXG-EVT-006"],
            "without a user slot there is no on_stream_end",
        )
        .script(
            "b request-headers: user 0
             b response-headers: user 0
             b log: user 0",
        )
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/x")).await?;
            let n = x.records.calls("on_stream_end", Edge::Enter, "b").len();
            cx.equal("PXG-EVT-006", "on_stream_end at b, whose user is 0", n, 0);
            cx.equal("PXG-EVT-009", "LOG at b", x.records.events("b", Phase::LOG.0).len(), 1);
            Ok(())
        }),
        Case::new(
            "evt/user-after-complete",
            4,
            &["PXG-EVT-007"],
            "`user` of a completion is ignored",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .script(
            "b request-headers: user 4711; pending; complete R @5
             b result R: user 0; continue
             b response-headers: user keep",
        )
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/x")).await?;
            let next = x.records.events("b", Phase::RESPONSE_HEADERS.0);
            cx.equal("PXG-EVT-007", "user after the completion", next.first().and_then(|r| r.user), Some(4711));
            Ok(())
        }),
        Case::new(
            "evt/bodyless",
            2,
            &["PXG-EVT-008", "PXG-BODY-017"],
            "messages that end at their headers are known to",
        )
        .needs(&[Feature::BODY_STREAM_REQUEST, Feature::BODY_STREAM_RESPONSE])
        .script("* request-headers: mode request stream; mode response stream")
        .run(|cx| async move {
            for (what, request, answer) in [
                ("GET and 204", Request::get("/x"), Answer::status(204).head()),
                ("HEAD", Request::new("HEAD", "/x"), Answer::status(200).body(b"12345")),
                ("304", Request::get("/x"), Answer::status(304).field("etag", "\"x\"").head()),
                ("content-length 0", Request::new("POST", "/x").field("content-length", "0"), Answer::status(200).body(b"")),
            ] {
                cx.answer(answer);
                let x = cx.exchange(request).await?;
                cx.check("PXG-EVT-008", x.reply.complete, || format!("{what}: the response has no end"));
                for (phase, body, exact) in [
                    (Phase::REQUEST_HEADERS, Phase::REQUEST_BODY, Feature::EXACT_EOS_REQUEST),
                    (Phase::RESPONSE_HEADERS, Phase::RESPONSE_BODY, Feature::EXACT_EOS_RESPONSE),
                ] {
                    for place in CHAIN {
                        let flags = x.records.events(place, phase.0).first().and_then(|r| r.flags).unwrap_or(0);
                        let unknown = flags & EventFlags::EOS_UNKNOWN.0 != 0;
                        let end = flags & EventFlags::END_STREAM.0 != 0;
                        let ok = end || (unknown && !cx.has(exact) && phase == Phase::REQUEST_HEADERS);
                        cx.check("PXG-EVT-008", ok, || {
                            format!("{what}: no END_STREAM in phase {} at {place}", phase.0)
                        });
                        if end {
                            cx.equal(
                                "PXG-BODY-017",
                                &format!("{what}: body events at {place} after END_STREAM"),
                                x.records.events(place, body.0).len(),
                                0,
                            );
                        }
                    }
                }
            }
            Ok(())
        }),
        Case::new(
            "evt/body-is-not-the-end",
            2,
            &["PXG-EVT-008"],
            "a message with a body does not end at its headers",
        )
        .run(|cx| async move {
            let x = cx.exchange(Request::post("/x", b"abc")).await?;
            for phase in [Phase::REQUEST_HEADERS, Phase::RESPONSE_HEADERS] {
                let flags = x.records.events("b", phase.0).first().and_then(|r| r.flags).unwrap_or(0);
                cx.check("PXG-EVT-008", flags & EventFlags::END_STREAM.0 == 0, || {
                    format!("END_STREAM at the headers of a message with a body, phase {}", phase.0)
                });
            }
            Ok(())
        })
        .script("* request-headers: continue"),
        Case::new(
            "evt/unsubscribe",
            2,
            &["PXG-EVT-010", "PXG-NEG-005"],
            "phases that are unsubscribed in the first event do not come",
        )
        .needs(&[Feature::BODY_STREAM_REQUEST, Feature::BODY_STREAM_RESPONSE])
        .script(
            "a request-headers: unsubscribe request-body
             b request-headers: mode response stream; unsubscribe response-headers
             c request-headers: unsubscribe response-body log",
        )
        .run(|cx| async move {
            cx.answer(Answer::status(200).chunks(&[b"ab", b"cd"]));
            let x = cx.exchange(Request::post("/x", b"abc")).await?;
            for (place, phases) in [
                ("a", vec!["REQUEST_HEADERS", "RESPONSE_HEADERS", "LOG"]),
                ("c", vec!["REQUEST_HEADERS", "RESPONSE_HEADERS"]),
            ] {
                cx.equal("PXG-EVT-010", &format!("events at {place}"), x.records.phases(place), phases);
            }
            cx.equal("PXG-EVT-010", "RESPONSE_HEADERS at b", x.records.events("b", Phase::RESPONSE_HEADERS.0).len(), 0);
            cx.equal("PXG-BODY-016", "the body", x.reply.text(), "abcd".into());
            cx.equal("PXG-BODY-016", "the body upstream", x.up_text(), Some("abc".into()));
            Ok(())
        }),
        interim("evt/interim", "103 of the upstream is no event", "GET", &[b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"]),
        interim("evt/interim-100", "100 of the upstream, for a request with a body, is no event", "POST", &[b"HTTP/1.1 100 Continue\r\n\r\n"]),
        interim(
            "evt/interim-several",
            "several interim responses are none, whatever they are",
            "POST",
            &[
                b"HTTP/1.1 100 Continue\r\n\r\n",
                b"HTTP/1.1 102 Processing\r\n\r\n",
                b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n",
                b"HTTP/1.1 103 Early Hints\r\nlink: </y>\r\n\r\n",
            ],
        ),
        Case::new(
            "evt/bytes-while-pending",
            2,
            &["PXG-EVT-015", "PXG-BODY-002"],
            "three chunks, PENDING on the first: the others come in an event of their own and not before",
        )
        .needs(&[Feature::PEND_REQUEST_BODY, Feature::BODY_STREAM_REQUEST])
        .script(
            "b request-headers: mode request stream
             b request-body#1: pending; complete R @gate:go
             b result R: continue",
        )
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            let r = Request::post("/x", b"").field("transfer-encoding", "chunked").head_only();
            c.write(&r.head(cx.name())).await;
            c.write(b"3\r\none\r\n").await;
            cx.until("PXG-EVT-015", "the first body event", |r| {
                !r.events("b", Phase::REQUEST_BODY.0).is_empty() && r.calls("on_event", Edge::Exit, "b").len() >= 2
            })
            .await;
            c.write(b"3\r\ntwo\r\n").await;
            c.write(b"5\r\nthree\r\n0\r\n\r\n").await;
            cx.settle().await?;
            let early: usize = cx.seen().first().map_or(0, |s| s.body.len());
            cx.equal("PXG-EVT-015", "bytes at the upstream while the first is PENDING", early, 0);
            cx.open("go");
            let reply = c.response("POST").await?;
            cx.equal("PXG-EVT-015", "the status", reply.status, 200);
            let all: Vec<String> = cx
                .records()
                .events("b", Phase::REQUEST_BODY.0)
                .iter()
                .filter_map(|r| r.body.clone())
                .collect();
            cx.equal("PXG-EVT-015", "what b was shown", all.concat(), "onetwothree".into());
            cx.equal("PXG-BODY-002", "the body upstream", cx.seen().first().map(|s| s.text()), Some("onetwothree".into()));
            Ok(())
        }),
        Case::new(
            "evt/end-order",
            4,
            &["PXG-EVT-017", "PXG-ASY-008", "PXG-EVT-009"],
            "a client that goes away while b pends: cancel, LOG at all places, then the ends, in the order of the chain",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .script("b request-headers: pending")
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.send(&Request::get("/x"), cx.name()).await;
            cx.until("PXG-EVT-017", "PENDING at b", |r| r.calls("on_event", Edge::Exit, "b").len() == 1).await;
            c.reset();
            cx.until("PXG-ASY-008", "on_cancel at b", |r| !r.calls("on_cancel", Edge::Enter, "b").is_empty()).await;
            cx.ended().await;
            let expected: Vec<String> =
                ["cancel b", "log a", "log b", "log c", "end a", "end b", "end c"].map(String::from).to_vec();
            cx.equal("PXG-EVT-017", "the end", ends(&cx.records()), expected);
            let why = log_arg(&cx.records(), "b").map(|a| a & 0xff);
            cx.equal("PXG-EVT-018", "why, in LOG", why, Some(2));
            Ok(())
        }),
        Case::new(
            "evt/upstream-reset",
            4,
            &["PXG-EVT-018", "PXG-EVT-009", "PXG-EVT-001"],
            "an upstream that resets in the middle of its body",
        )
        .needs(&[Feature::BODY_STREAM_RESPONSE])
        .script("* request-headers: mode response stream")
        .run(|cx| async move {
            cx.answer(
                Answer::status(200)
                    .field("content-length", "100")
                    .send(b"0123456789")
                    .gate("reset")
                    .then(Step::Reset),
            );
            let mut c = cx.connect().await?;
            c.send(&Request::get("/x"), cx.name()).await;
            cx.until("PXG-EVT-009", "a body event at a", |r| !r.events("a", Phase::RESPONSE_BODY.0).is_empty()).await;
            cx.open("reset");
            let reply = c.response("GET").await?;
            cx.check("PXG-EVT-018", !reply.complete, || "the client got a whole response from a broken one".into());
            cx.ended().await;
            let arg = log_arg(&cx.records(), "b").unwrap_or(0);
            cx.equal("PXG-EVT-018", "LOG: why, request, response", (arg & 0xff, arg >> 8 & 0xf, arg >> 12 & 0xf), (3, 1, 2));
            let ended = cx.records().events("b", Phase::RESPONSE_BODY.0).iter().any(|r| {
                r.flags.unwrap_or(0) & EventFlags::END_STREAM.0 != 0
            });
            cx.check("PXG-EVT-001", !ended, || "END_STREAM in a response that was cut".into());
            Ok(())
        }),
        Case::new(
            "evt/wake-while-pending",
            4,
            &["PXG-EVT-019", "PXG-ASY-013"],
            "WAKE comes while the direction of the place is PENDING",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS, Feature::APPLY])
        .script(
            "b request-headers: pending; wake 6 @gate:wake; complete R @gate:go
             b result R: continue",
        )
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.send(&Request::get("/x"), cx.name()).await;
            cx.until("PXG-EVT-019", "PENDING at b", |r| r.calls("on_event", Edge::Exit, "b").len() == 1).await;
            cx.open("wake");
            cx.until("PXG-EVT-019", "WAKE while PENDING", |r| !r.events("b", Phase::WAKE.0).is_empty()).await;
            let wake = cx.records().events("b", Phase::WAKE.0);
            let wake = wake.first();
            cx.equal("PXG-ASY-013", "arg of WAKE", wake.and_then(|r| r.arg), Some(6));
            cx.equal("PXG-EVT-019", "token of WAKE", wake.and_then(|r| r.token), Some(0));
            cx.check("PXG-EVT-019", wake.is_some_and(|r| r.fields.is_none() && r.chunks.is_none()), || {
                "WAKE with fields or chunks".into()
            });
            cx.open("go");
            cx.equal("PXG-EVT-019", "the status", c.response("GET").await?.status, 200);
            Ok(())
        }),
        Case::new(
            "evt/fields-as-they-stand",
            2,
            &["PXG-EVT-020", "PXG-BODY-012"],
            "fields with HEADERS_HELD show what MORE has changed",
        )
        .needs(&[Feature::HOLD_REQUEST, Feature::BODY_STREAM_REQUEST])
        .script(
            "b request-headers: mode request stream; add x-held 1; delete x-gone; more
             c request-headers: mode request stream",
        )
        .run(|cx| async move {
            let x = cx.exchange(Request::post("/x", b"body").field("x-gone", "1")).await?;
            let body = x.records.events("b", Phase::REQUEST_BODY.0);
            let fields = body.first().and_then(|r| r.fields.clone()).unwrap_or_default();
            let held = fields.iter().any(|f| f.0 == "x-held" && f.1 == "1");
            let gone = fields.iter().any(|f| f.0 == "x-gone");
            cx.check("PXG-EVT-020", held && !gone, || format!("the fields of the next event are {fields:?}"));
            cx.equal("PXG-ACT-007", "x-held upstream", x.up_get("x-held"), Some("1".into()));
            let body = x.records.events("c", Phase::REQUEST_BODY.0);
            let shown: usize = body.iter().map(|r| r.fields.iter().flatten().count()).sum();
            cx.equal("PXG-EVT-020", "fields at c's body, whose headers have left", shown, 0);
            Ok(())
        }),
        Case::new(
            "evt/can-reply",
            2,
            &["PXG-EVT-021"],
            "CAN_REPLY at the request's body: until the response headers have passed this place",
        )
        .needs(&[Feature::BODY_STREAM_REQUEST])
        .script("* request-headers: mode request stream")
        .run(|cx| async move {
            cx.answer(Answer::status(200).early().field("content-length", "4").send(b"ea").gate("rest").send(b"rl"));
            let mut c = cx.connect().await?;
            let r = Request::post("/x", b"").field("content-length", "6").head_only();
            c.write(&r.head(cx.name())).await;
            c.write(b"abc").await;
            cx.until("PXG-EVT-021", "the response at a", |r| {
                !r.events("a", Phase::RESPONSE_HEADERS.0).is_empty() && !r.events("c", Phase::REQUEST_BODY.0).is_empty()
            })
            .await;
            cx.settle().await?;
            c.write(b"def").await;
            cx.until("PXG-EVT-021", "the rest of the body at c, or its end", |r| {
                r.events("c", Phase::REQUEST_BODY.0).len() >= 2 || !r.events("c", Phase::LOG.0).is_empty()
            })
            .await;
            cx.open("rest");
            c.response("POST").await?;
            cx.ended().await;
            for place in CHAIN {
                let all = cx.records();
                let passed = all.events(place, Phase::RESPONSE_HEADERS.0).first().map_or(u64::MAX, |r| r.seq);
                for r in all.events(place, Phase::REQUEST_BODY.0).iter().filter(|r| r.seq > passed) {
                    cx.check("PXG-EVT-021", r.flags.unwrap_or(0) & EventFlags::CAN_REPLY.0 == 0, || {
                        format!("CAN_REPLY at {place} after its response headers have passed")
                    });
                }
            }
            Ok(())
        }),
        Case::new(
            "evt/upgrade",
            2,
            &["PXG-EVT-022", "PXG-BODY-010"],
            "an accepted upgrade: both messages end at their headers, and no body event follows",
        )
        .needs(&[Feature::BODY_STREAM_REQUEST, Feature::BODY_STREAM_RESPONSE])
        .script("* request-headers: mode request stream; mode response stream")
        .run(|cx| async move {
            cx.answer(
                Answer::default()
                    .send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
                    .then(Step::Echo),
            );
            let mut c = cx.connect().await?;
            let r = Request::get("/x").field("connection", "upgrade").field("upgrade", "websocket");
            c.send(&r, cx.name()).await;
            let reply = c.response("GET").await?;
            cx.equal("PXG-EVT-022", "the status", reply.status, 101);
            c.write(b"ping").await;
            let back = c.raw(4).await?;
            cx.equal("PXG-BODY-010", "the tunnel's bytes", back, b"ping".to_vec());
            c.finish().await;
            drop(c);
            cx.ended().await;
            for place in CHAIN {
                let all = cx.records();
                for phase in [Phase::REQUEST_HEADERS, Phase::RESPONSE_HEADERS] {
                    let flags = all.events(place, phase.0).first().and_then(|r| r.flags).unwrap_or(0);
                    cx.check("PXG-EVT-022", flags & EventFlags::END_STREAM.0 != 0, || {
                        format!("no END_STREAM in phase {} at {place}", phase.0)
                    });
                    let upgraded = flags & EventFlags::UPGRADED.0 != 0;
                    cx.equal("PXG-EVT-022", &format!("UPGRADED in phase {} at {place}", phase.0), upgraded, phase == Phase::RESPONSE_HEADERS);
                }
                let bodies = all.events(place, Phase::REQUEST_BODY.0).len() + all.events(place, Phase::RESPONSE_BODY.0).len();
                cx.equal("PXG-BODY-010", &format!("body events at {place}"), bodies, 0);
            }
            Ok(())
        }),
    ];
    all.extend([
        unsubscribe_others(),
        reply_elsewhere(),
        body_is_no_upgrade(),
    ]);
    all.extend(killed());
    all.extend(failures());
    all
}

/// The client goes away while `b` pends in each phase.
fn killed() -> Vec<Case> {
    macro_rules! killed {
        ($name:literal, $feature:ident, $phase:ident, $script:literal) => {
            Case::new(
                $name,
                4,
                &[
                    "PXG-EVT-006",
                    "PXG-EVT-009",
                    "PXG-EVT-017",
                    "PXG-ASY-001",
                    "PXG-ASY-008",
                ],
                "the client resets while a phase is PENDING: one cancel, LOG, the end",
            )
            .needs(&[Feature::$feature])
            .script($script)
            .run(|cx| async move {
                cx.answer(
                    Answer::status(200).chunks_and_trailers(&[b"one", b"two"], &[("x-t", "1")]),
                );
                let mut c = cx.connect().await?;
                c.send(
                    &Request::chunks("/x", &[b"abc"])
                        .trailer("x-t", "1")
                        .field("te", "trailers"),
                    cx.name(),
                )
                .await;
                let phase = Phase::$phase.0;
                cx.until("PXG-ASY-001", "PENDING at b", |r| {
                    r.calls("on_event", Edge::Exit, "b")
                        .iter()
                        .any(|r| r.phase == Some(phase))
                })
                .await;
                c.reset();
                cx.until("PXG-ASY-008", "on_cancel at b", |r| {
                    !r.calls("on_cancel", Edge::Enter, "b").is_empty()
                })
                .await;
                cx.ended().await;
                let all = cx.records();
                cx.equal(
                    "PXG-ASY-001",
                    "on_cancel at b",
                    all.calls("on_cancel", Edge::Enter, "b").len(),
                    1,
                );
                for place in CHAIN {
                    cx.equal(
                        "PXG-EVT-009",
                        &format!("LOG at {place}"),
                        all.events(place, Phase::LOG.0).len(),
                        1,
                    );
                }
                let expected: Vec<String> = [
                    "cancel b", "log a", "log b", "log c", "end a", "end b", "end c",
                ]
                .map(String::from)
                .to_vec();
                cx.equal("PXG-EVT-017", "the end", ends(&all), expected);
                Ok(())
            })
        };
    }
    vec![
        killed!(
            "evt/killed-at-request-headers",
            PEND_REQUEST_HEADERS,
            REQUEST_HEADERS,
            "b request-headers: pending"
        ),
        killed!(
            "evt/killed-at-request-body",
            PEND_REQUEST_BODY,
            REQUEST_BODY,
            "b request-headers: mode request stream
             b request-body: pending"
        ),
        killed!(
            "evt/killed-at-request-trailers",
            PEND_REQUEST_TRAILERS,
            REQUEST_TRAILERS,
            "b request-trailers: pending"
        ),
        killed!(
            "evt/killed-at-response-headers",
            PEND_RESPONSE_HEADERS,
            RESPONSE_HEADERS,
            "b response-headers: pending"
        ),
        killed!(
            "evt/killed-at-response-body",
            PEND_RESPONSE_BODY,
            RESPONSE_BODY,
            "b request-headers: mode response stream
             b response-body: pending"
        ),
        killed!(
            "evt/killed-at-response-trailers",
            PEND_RESPONSE_TRAILERS,
            RESPONSE_TRAILERS,
            "b response-trailers: pending"
        ),
    ]
}

/// `b` fails in each phase; nothing more comes to it but its end.
fn failures() -> Vec<Case> {
    macro_rules! fails {
        ($name:literal, $script:literal, $phase:ident, $reply:literal) => {
            Case::new(
                $name,
                2,
                &["PXG-EVT-014", "PXG-ERR-001"],
                "after an error the guest gets nothing but its end",
            )
            .needs(&[Feature::BODY_STREAM_REQUEST, Feature::BODY_STREAM_RESPONSE])
            .script($script)
            .run(|cx| async move {
                cx.answer(Answer::status(200).chunks(&[b"one", b"two"]));
                let x = cx.exchange(Request::post("/x", b"abc")).await?;
                let all = x.records.phases("b");
                let expected = crate::host::model::phase_name(Phase::$phase);
                cx.equal(
                    "PXG-EVT-014",
                    "the last event at b",
                    all.last().copied(),
                    Some(expected),
                );
                if $reply {
                    cx.equal("PXG-ERR-001", "the status", x.reply.status, 500);
                    cx.check("PXG-ERR-001", x.reply.body.is_empty(), || {
                        "the 500 of a failure has a body".into()
                    });
                } else {
                    cx.check("PXG-ERR-001", !x.reply.complete, || {
                        "a response whose headers had left came whole, though a filter failed"
                            .into()
                    });
                }
                for place in ["a", "c"] {
                    cx.equal(
                        "PXG-ERR-001",
                        &format!("LOG at {place}"),
                        x.records.events(place, Phase::LOG.0).len(),
                        1,
                    );
                }
                Ok(())
            })
        };
    }
    vec![
        fails!(
            "evt/error-at-request-headers",
            "b request-headers: error bad",
            REQUEST_HEADERS,
            true
        ),
        fails!(
            "evt/error-at-request-body",
            "b request-headers: mode request stream
             b request-body: error bad",
            REQUEST_BODY,
            true
        ),
        fails!(
            "evt/error-at-response-headers",
            "b response-headers: error bad",
            RESPONSE_HEADERS,
            true
        ),
        fails!(
            "evt/error-at-response-body",
            "b request-headers: mode response stream
             b response-body: error bad",
            RESPONSE_BODY,
            false
        ),
    ]
}

/// All phases of version 1.0, those of connections included.
fn unsubscribe_others() -> Case {
    Case::new(
        "evt/unsubscribe-others",
        2,
        &["PXG-EVT-010"],
        "bits of phases that are not subscribed are ignored",
    )
    .script("b request-headers: set x-b 1; unsubscribe 0xf01fe")
    .run(|cx| async move {
        let x = cx.exchange(Request::post("/x", b"abc")).await?;
        cx.equal("PXG-EVT-010", "the status", x.reply.status, 200);
        cx.equal(
            "PXG-EVT-010",
            "x-b upstream",
            x.up_get("x-b"),
            Some("1".into()),
        );
        cx.equal(
            "PXG-EVT-010",
            "events at b",
            x.records.phases("b"),
            vec!["REQUEST_HEADERS"],
        );
        Ok(())
    })
}

/// b replies while the upstream is waited for, and a holds that reply: nothing has been sent, and only a can still reply.
fn reply_elsewhere() -> Case {
    Case::new(
        "evt/can-reply-behind-a-reply",
        4,
        &["PXG-EVT-021"],
        "another place's reply, or its own, takes CAN_REPLY from a place whose response it has cut",
    )
    .needs(&[
        Feature::APPLY,
        Feature::REPLY_REFILTER,
        Feature::PEND_RESPONSE_HEADERS,
    ])
    .script(
        "a request-headers: wake 1 @gate:wake
         a response-headers: pending; complete GO @gate:go
         a result GO: continue
         b request-headers: apply R @gate:reply; wake 1 @gate:wake
         b result R: reply 418
         c request-headers: wake 1 @gate:wake",
    )
    .run(|cx| async move {
        let rule = "PXG-EVT-021";
        cx.answer(
            Answer::status(200)
                .body(b"x")
                .first(Step::Gate("never".into())),
        );
        let mut c = cx.connect().await?;
        c.send(&Request::get("/x"), cx.name()).await;
        cx.upstream_saw(rule, 1).await;
        cx.open("reply");
        cx.until(rule, "the reply at a", |r| {
            !r.events("a", Phase::RESPONSE_HEADERS.0).is_empty()
        })
        .await;
        cx.open("wake");
        for (place, can) in [("a", true), ("b", false), ("c", false)] {
            cx.until(rule, "WAKE", |r| !r.events(place, Phase::WAKE.0).is_empty())
                .await;
            let all = cx.records();
            let flags = all
                .events(place, Phase::WAKE.0)
                .first()
                .and_then(|r| r.flags)
                .unwrap_or(0);
            let set = flags & EventFlags::CAN_REPLY.0 != 0;
            cx.equal(
                rule,
                &format!("CAN_REPLY at {place}, behind b's reply"),
                set,
                can,
            );
        }
        cx.open("go");
        cx.equal(rule, "the status", c.response("GET").await?.status, 418);
        cx.open("never");
        Ok(())
    })
}

fn body_is_no_upgrade() -> Case {
    Case::new(
        "evt/upgrade-with-a-body",
        2,
        &["PXG-EVT-022"],
        "a request with a body asks for no upgrade, whatever its fields say: the body is shown",
    )
    .needs(&[Feature::BODY_STREAM_REQUEST])
    .script("* request-headers: mode request stream")
    .run(|cx| async move {
        let rule = "PXG-EVT-022";
        let mut c = cx.connect().await?;
        let r = Request::post("/x", b"abcd")
            .field("connection", "upgrade")
            .field("upgrade", "websocket");
        c.send(&r, cx.name()).await;
        let reply = c.response("POST").await?;
        cx.ended().await;
        // A host may refuse it.
        let refused = (400..600).contains(&reply.status) && cx.seen().is_empty();
        for place in CHAIN {
            let all = cx.records();
            let Some(head) = all
                .events(place, Phase::REQUEST_HEADERS.0)
                .into_iter()
                .next()
            else {
                cx.check(rule, refused, || {
                    format!("no event at {place}, and the status is {}", reply.status)
                });
                continue;
            };
            let ends = head.flags.unwrap_or(0) & EventFlags::END_STREAM.0 != 0;
            cx.check(rule, !ends, || {
                format!("END_STREAM at the headers at {place}")
            });
            let shown: u64 = all
                .events(place, Phase::REQUEST_BODY.0)
                .iter()
                .map(|r| r.view_len())
                .sum();
            cx.check(rule, shown >= 4, || {
                format!("{place} was shown {shown} bytes of a body of 4")
            });
        }
        if !refused {
            let up = cx.seen();
            cx.equal(
                rule,
                "the body upstream",
                up.first().map(|s| s.text()),
                Some("abcd".into()),
            );
            cx.equal(
                rule,
                "upgrade upstream",
                up.first().and_then(|s| s.get("upgrade")),
                None,
            );
        }
        Ok(())
    })
}
