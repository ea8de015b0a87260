//! Trailers.

use super::prelude::*;

fn request() -> Request {
    Request::chunks("/x", &[b"abc", b"def"])
        .trailer("x-t", "1")
        .field("te", "trailers")
}

fn answer() -> Answer {
    Answer::status(200).chunks_and_trailers(&[b"one", b"two"], &[("x-t", "1")])
}

fn trailer(all: &[(String, String)], name: &str) -> Option<String> {
    all.iter().find(|t| t.0 == name).map(|t| t.1.clone())
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "trl/skip",
            2,
            &["PXG-TRL-003", "PXG-EVT-001"],
            "TRAILERS come in mode SKIP, after the body has passed",
        )
        .needs(&[Feature::TRAILERS_IN_REQUEST, Feature::TRAILERS_IN_RESPONSE])
        .script("* request-headers: continue")
        .run(|cx| async move {
            cx.answer(answer());
            let x = cx.exchange(request()).await?;
            for place in ["a", "b", "c"] {
                for phase in [Phase::REQUEST_TRAILERS, Phase::RESPONSE_TRAILERS] {
                    let events = x.records.events(place, phase.0);
                    let t = events
                        .first()
                        .and_then(|r| r.trailers.clone())
                        .unwrap_or_default();
                    cx.equal(
                        "PXG-TRL-003",
                        &format!("x-t in phase {} at {place}", phase.0),
                        trailer(&t, "x-t"),
                        Some("1".into()),
                    );
                }
            }
            cx.equal(
                "PXG-TRL-003",
                "x-t upstream",
                x.up.and_then(|u| trailer(&u.trailers, "x-t")),
                Some("1".into()),
            );
            cx.equal(
                "PXG-TRL-003",
                "x-t at the client",
                trailer(&x.reply.trailers, "x-t"),
                Some("1".into()),
            );
            Ok(())
        }),
        Case::new(
            "trl/stream-observe",
            2,
            &["PXG-TRL-003", "PXG-EVT-011"],
            "TRAILERS in STREAM and OBSERVE: BODY_END without END_STREAM before them",
        )
        .needs(&[
            Feature::TRAILERS_IN_REQUEST,
            Feature::TRAILERS_IN_RESPONSE,
            Feature::BODY_STREAM_REQUEST,
            Feature::BODY_OBSERVE_RESPONSE,
        ])
        .script("b request-headers: mode request stream; mode response observe")
        .run(|cx| async move {
            cx.answer(answer());
            let x = cx.exchange(request()).await?;
            for (body, trailers) in [
                (Phase::REQUEST_BODY, Phase::REQUEST_TRAILERS),
                (Phase::RESPONSE_BODY, Phase::RESPONSE_TRAILERS),
            ] {
                let last = x.records.events("b", body.0);
                let flags = last.last().and_then(|r| r.flags).unwrap_or(0);
                cx.check("PXG-EVT-011", flags & EventFlags::BODY_END.0 != 0, || {
                    "no BODY_END before trailers".into()
                });
                cx.check("PXG-EVT-001", flags & EventFlags::END_STREAM.0 == 0, || {
                    "END_STREAM before trailers".into()
                });
                cx.equal(
                    "PXG-TRL-003",
                    "TRAILERS events",
                    x.records.events("b", trailers.0).len(),
                    1,
                );
                let after = last.last().map_or(0, |r| r.seq)
                    < x.records
                        .events("b", trailers.0)
                        .first()
                        .map_or(0, |r| r.seq);
                cx.check("PXG-EVT-001", after, || "TRAILERS before the body".into());
            }
            Ok(())
        }),
        Case::new(
            "trl/whole",
            2,
            &["PXG-TRL-002", "PXG-BODY-003"],
            "in WHOLE the trailers come with the body, and no TRAILERS event follows",
        )
        .needs(&[Feature::TRAILERS_IN_REQUEST, Feature::BODY_WHOLE_REQUEST])
        .script("b request-headers: mode request whole")
        .run(|cx| async move {
            let x = cx.exchange(request()).await?;
            let body = x.records.events("b", Phase::REQUEST_BODY.0);
            cx.equal("PXG-TRL-002", "body events", body.len(), 1);
            let t = body
                .first()
                .and_then(|r| r.trailers.clone())
                .unwrap_or_default();
            cx.equal(
                "PXG-TRL-002",
                "x-t with the body",
                trailer(&t, "x-t"),
                Some("1".into()),
            );
            cx.equal(
                "PXG-TRL-002",
                "TRAILERS events",
                x.records.events("b", Phase::REQUEST_TRAILERS.0).len(),
                0,
            );
            let flags = body.first().and_then(|r| r.flags).unwrap_or(0);
            cx.check("PXG-EVT-001", flags & EventFlags::END_STREAM.0 != 0, || {
                "WHOLE_BODY without END_STREAM".into()
            });
            cx.equal(
                "PXG-TRL-002",
                "x-t upstream",
                x.up.and_then(|u| trailer(&u.trailers, "x-t")),
                Some("1".into()),
            );
            Ok(())
        }),
        Case::new(
            "trl/over-limit",
            2,
            &["PXG-TRL-002", "PXG-BODY-004"],
            "after OVER_LIMIT the TRAILERS event comes as usual",
        )
        .needs(&[
            Feature::TRAILERS_IN_REQUEST,
            Feature::BODY_WHOLE_REQUEST,
            Feature::BODY_STREAM_REQUEST,
        ])
        .script("small-whole request-headers: continue")
        .run(|cx| async move {
            let body = bytes(3000);
            let x = cx
                .exchange(
                    Request::chunks("/small-whole/x", &[&body])
                        .trailer("x-t", "1")
                        .field("te", "trailers"),
                )
                .await?;
            cx.equal(
                "PXG-TRL-002",
                "TRAILERS events",
                x.records
                    .events("small-whole", Phase::REQUEST_TRAILERS.0)
                    .len(),
                1,
            );
            cx.check("PXG-BODY-002", x.up.is_some_and(|u| u.body == body), || {
                "the body upstream is another".into()
            });
            Ok(())
        }),
        Case::new(
            "trl/change",
            2,
            &["PXG-TRL-001", "PXG-HDR-003"],
            "trailer operations at TRAILERS",
        )
        .needs(&[
            Feature::TRAILERS_OUT_REQUEST,
            Feature::TRAILERS_OUT_RESPONSE,
        ])
        .script(
            "b request-trailers: t.set x-t 2
                 b response-trailers: t.set x-t 2",
        )
        .run(|cx| async move {
            cx.answer(answer());
            let x = cx.exchange(request()).await?;
            cx.equal(
                "PXG-TRL-001",
                "x-t upstream",
                x.up.and_then(|u| trailer(&u.trailers, "x-t")),
                Some("2".into()),
            );
            cx.equal(
                "PXG-TRL-001",
                "x-t at the client",
                trailer(&x.reply.trailers, "x-t"),
                Some("2".into()),
            );
            Ok(())
        }),
        Case::new(
            "trl/too-early",
            2,
            &["PXG-TRL-001"],
            "trailer operations at HEADERS are skipped, and their indices are not judged",
        )
        .script("b request-headers: t.set x-t 9; t.set-at 0 9; t.delete-at 1000")
        .run(|cx| async move {
            let x = cx.exchange(request()).await?;
            cx.equal("PXG-TRL-001", "the status", x.reply.status, 200);
            // A host that knows no request trailers may drop them.
            let passed = cx
                .has(Feature::TRAILERS_IN_REQUEST)
                .then(|| "1".to_string());
            cx.equal(
                "PXG-TRL-001",
                "x-t upstream",
                x.up.and_then(|u| trailer(&u.trailers, "x-t")),
                passed,
            );
            Ok(())
        }),
        Case::new(
            "trl/too-early-must",
            2,
            &["PXG-TRL-001"],
            "with MUST they are a failure",
        )
        .script("b request-headers: t.set! x-t 9")
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.send(&request(), cx.name()).await;
            cx.equal(
                "PXG-TRL-001",
                "the status",
                c.response("POST").await?.status,
                500,
            );
            Ok(())
        }),
        Case::new(
            "trl/bad-name",
            2,
            &["PXG-HDR-005", "PXG-TRL-001"],
            "bad trailers never leave",
        )
        .needs(&[Feature::TRAILERS_OUT_REQUEST])
        .script("b request-trailers: t.set x-t 1\\r\\nx-smuggled:\\s1")
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.send(&request(), cx.name()).await;
            let reply = c.response("POST").await?;
            cx.ended().await;
            cx.check("PXG-HDR-005", reply.status != 200, || {
                "the exchange went through".into()
            });
            let smuggled = cx
                .seen()
                .iter()
                .any(|s| trailer(&s.trailers, "x-smuggled").is_some());
            cx.check("PXG-HDR-005", !smuggled, || {
                "a smuggled trailer upstream".into()
            });
            Ok(())
        }),
    ]
}
