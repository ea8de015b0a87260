//! Trailers, in each direction: what a guest is shown of them, what it changes and adds, and who can take them.

use super::prelude::*;
use crate::hostcheck::cx::Exchange;

type Trailers = Vec<(String, String)>;

/// A direction: its phases, and the features of its trailers.
struct Way {
    /// 0 is the request, 1 the response.
    d: usize,
    body: Phase,
    trailers: Phase,
    shows: Feature,
    changes: Feature,
    pends: Feature,
    stream: Feature,
    observe: Feature,
    whole: Feature,
}

const REQUEST: Way = Way {
    d: 0,
    body: Phase::REQUEST_BODY,
    trailers: Phase::REQUEST_TRAILERS,
    shows: Feature::TRAILERS_IN_REQUEST,
    changes: Feature::TRAILERS_OUT_REQUEST,
    pends: Feature::PEND_REQUEST_TRAILERS,
    stream: Feature::BODY_STREAM_REQUEST,
    observe: Feature::BODY_OBSERVE_REQUEST,
    whole: Feature::BODY_WHOLE_REQUEST,
};

const RESPONSE: Way = Way {
    d: 1,
    body: Phase::RESPONSE_BODY,
    trailers: Phase::RESPONSE_TRAILERS,
    shows: Feature::TRAILERS_IN_RESPONSE,
    changes: Feature::TRAILERS_OUT_RESPONSE,
    pends: Feature::PEND_RESPONSE_TRAILERS,
    stream: Feature::BODY_STREAM_RESPONSE,
    observe: Feature::BODY_OBSERVE_RESPONSE,
    whole: Feature::BODY_WHOLE_RESPONSE,
};

const WAYS: [&Way; 2] = [&REQUEST, &RESPONSE];

impl Way {
    /// An exchange whose message in this direction has the body `abcdef`, or what `body` says, and the trailer x-t if
    /// `with`. The client says that it takes trailers.
    async fn exchange(
        &self,
        cx: &Cx,
        path: &str,
        body: &[&[u8]],
        with: bool,
    ) -> anyhow::Result<Exchange> {
        let (sent, got): (&[&[u8]], &[&[u8]]) = match self.d {
            0 => (body, &[b"hello"]),
            _ => (&[b"hello"], body),
        };
        let mut r = Request::chunks(path, sent).field("te", "trailers");
        if with && self.d == 0 {
            r = r.trailer("x-t", "1");
        }
        let trailers: &[(&str, &str)] = match with && self.d == 1 {
            true => &[("x-t", "1")],
            false => &[],
        };
        cx.answer(Answer::status(200).chunks_and_trailers(got, trailers));
        cx.exchange(r).await
    }

    /// What the receiver got.
    fn received(&self, x: &Exchange) -> Trailers {
        match (self.d, &x.up) {
            (0, Some(up)) => up.trailers.clone(),
            (0, None) => Vec::new(),
            _ => x.reply.trailers.clone(),
        }
    }

    fn received_body(&self, x: &Exchange) -> Vec<u8> {
        match (self.d, &x.up) {
            (0, Some(up)) => up.body.clone(),
            (0, None) => Vec::new(),
            _ => x.reply.body.clone(),
        }
    }

    fn receiver(&self) -> &'static str {
        ["upstream", "at the client"][self.d]
    }

    /// The first event of a phase at a place shows x-t.
    fn shown(&self, cx: &Cx, x: &Exchange, place: &str, phase: Phase, rule: &str) {
        let all = x.records.events(place, phase.0);
        let t = all.first().and_then(|r| r.trailers.clone());
        let what = format!("x-t in the first event of phase {} at {place}", phase.0);
        cx.equal(rule, &what, trailer(&t.unwrap_or_default(), "x-t"), one());
    }

    fn arrives(&self, cx: &Cx, x: &Exchange, rule: &str, value: Option<&str>) {
        let what = format!("x-t {}", self.receiver());
        let value = value.map(str::to_string);
        cx.equal(rule, &what, trailer(&self.received(x), "x-t"), value);
        cx.equal(rule, "the status", x.reply.status, 200);
        cx.check(rule, x.reply.complete, || {
            "the response does not end".into()
        });
    }
}

fn one() -> Option<String> {
    Some("1".into())
}

fn trailer(all: &[(String, String)], name: &str) -> Option<String> {
    all.iter().find(|t| t.0 == name).map(|t| t.1.clone())
}

const BODY: [&[u8]; 2] = [b"abc", b"def"];

/// The cases that there are for each direction; `names` has the one of each for `w`.
fn shown(w: &'static Way, names: [&'static str; 6]) -> Vec<Case> {
    let [skip, unsubscribed, stream, observe, whole, over_limit] = names;
    let flowing = |name, mode, feature, script| {
        Case::new(
            name,
            2,
            &["PXG-TRL-003", "PXG-EVT-001", "PXG-EVT-011"],
            "TRAILERS behind a body that is shown: BODY_END comes without END_STREAM before them",
        )
        .needs(&[w.shows, feature])
        .script(script)
        .run(move |cx| async move {
            let x = w.exchange(&cx, "/x", &BODY, true).await?;
            let last = x.records.events("b", w.body.0).last().cloned();
            let flags = last.as_ref().and_then(|r| r.flags).unwrap_or(0);
            cx.check("PXG-EVT-011", flags & EventFlags::BODY_END.0 != 0, || {
                format!("no BODY_END before trailers in {mode}")
            });
            cx.check("PXG-EVT-001", flags & EventFlags::END_STREAM.0 == 0, || {
                "END_STREAM before trailers".into()
            });
            let trailers = x.records.events("b", w.trailers.0);
            cx.equal("PXG-TRL-003", "TRAILERS events", trailers.len(), 1);
            let at = trailers.first().map_or(0, |r| r.seq);
            cx.check("PXG-EVT-001", last.map_or(0, |r| r.seq) < at, || {
                "TRAILERS before the body".into()
            });
            w.shown(&cx, &x, "b", w.trailers, "PXG-TRL-003");
            w.arrives(&cx, &x, "PXG-TRL-003", Some("1"));
            Ok(())
        })
    };
    let in_stream = [
        "b request-headers: mode request stream",
        "b request-headers: mode response stream",
    ][w.d];
    let observed = [
        "b request-headers: mode request observe",
        "b request-headers: mode response observe",
    ][w.d];
    let in_whole = [
        "b request-headers: mode request whole",
        "b request-headers: mode response whole",
    ][w.d];
    vec![
        Case::new(
            skip,
            2,
            &["PXG-TRL-003", "PXG-EVT-001"],
            "TRAILERS come in mode SKIP, after the body has passed, at each place",
        )
        .needs(&[w.shows])
        .script("* request-headers: continue")
        .run(move |cx| async move {
            let x = w.exchange(&cx, "/x", &BODY, true).await?;
            for place in ["a", "b", "c"] {
                w.shown(&cx, &x, place, w.trailers, "PXG-TRL-003");
            }
            w.arrives(&cx, &x, "PXG-TRL-003", Some("1"));
            Ok(())
        }),
        Case::new(
            unsubscribed,
            2,
            &["PXG-TRL-003"],
            "trailers pass a guest that does not subscribe to their phase",
        )
        .needs(&[w.shows])
        .script("headers request-headers: continue")
        .run(move |cx| async move {
            let x = w.exchange(&cx, "/headers/x", &BODY, true).await?;
            let n = x.records.events("headers", w.trailers.0).len();
            cx.equal("PXG-TRL-003", "TRAILERS events", n, 0);
            w.arrives(&cx, &x, "PXG-TRL-003", Some("1"));
            Ok(())
        }),
        flowing(stream, "STREAM", w.stream, in_stream),
        flowing(observe, "OBSERVE", w.observe, observed),
        Case::new(
            whole,
            2,
            &["PXG-TRL-002", "PXG-BODY-003"],
            "in WHOLE the trailers come with the body, and no TRAILERS event follows",
        )
        .needs(&[w.shows, w.whole])
        .script(in_whole)
        .run(move |cx| async move {
            let x = w.exchange(&cx, "/x", &BODY, true).await?;
            let body = x.records.events("b", w.body.0);
            cx.equal("PXG-TRL-002", "body events", body.len(), 1);
            w.shown(&cx, &x, "b", w.body, "PXG-TRL-002");
            let n = x.records.events("b", w.trailers.0).len();
            cx.equal("PXG-TRL-002", "TRAILERS events", n, 0);
            let flags = body.first().and_then(|r| r.flags).unwrap_or(0);
            cx.check("PXG-EVT-001", flags & EventFlags::END_STREAM.0 != 0, || {
                "WHOLE_BODY without END_STREAM".into()
            });
            w.arrives(&cx, &x, "PXG-TRL-002", Some("1"));
            Ok(())
        }),
        Case::new(
            over_limit,
            2,
            &["PXG-TRL-002", "PXG-BODY-004"],
            "after OVER_LIMIT the TRAILERS event comes as usual",
        )
        .needs(&[w.shows, w.whole, w.stream])
        .script("small-whole request-headers: continue")
        .run(move |cx| async move {
            let body = bytes(3000);
            let x = w.exchange(&cx, "/small-whole/x", &[&body], true).await?;
            let n = x.records.events("small-whole", w.trailers.0).len();
            cx.equal("PXG-TRL-002", "TRAILERS events", n, 1);
            cx.check("PXG-BODY-002", w.received_body(&x) == body, || {
                format!("the body {} is another", w.receiver())
            });
            w.arrives(&cx, &x, "PXG-TRL-002", Some("1"));
            Ok(())
        }),
    ]
}

fn changed(w: &'static Way, names: [&'static str; 5]) -> Vec<Case> {
    let [change, pending, add, add_whole, bad] = names;
    let script = |request: &'static str, response: &'static str| [request, response][w.d];
    vec![
        Case::new(
            change,
            2,
            &["PXG-TRL-001", "PXG-HDR-003"],
            "trailer operations at TRAILERS",
        )
        .needs(&[w.shows, w.changes])
        .script(script(
            "b request-trailers: t.set x-t 2",
            "b response-trailers: t.set x-t 2",
        ))
        .run(move |cx| async move {
            let x = w.exchange(&cx, "/x", &BODY, true).await?;
            w.arrives(&cx, &x, "PXG-TRL-001", Some("2"));
            Ok(())
        }),
        Case::new(
            pending,
            4,
            &["PXG-TRL-001", "PXG-EVT-003", "PXG-ASY-004"],
            "the end of a message waits for the completion of its TRAILERS event, which changes them",
        )
        .needs(&[w.shows, w.changes, w.pends])
        .script(script(
            "b request-trailers: pending; complete R @race
             b result R: t.set x-t 2; continue",
            "b response-trailers: pending; complete R @race
             b result R: t.set x-t 2; continue",
        ))
        .run(move |cx| async move {
            let x = w.exchange(&cx, "/x", &BODY, true).await?;
            w.arrives(&cx, &x, "PXG-TRL-001", Some("2"));
            Ok(())
        }),
        Case::new(
            add,
            2,
            &["PXG-TRL-001"],
            "trailers are added at the last event of a body that has none, and at no event before",
        )
        .needs(&[w.changes, w.stream])
        .script(script(
            "b request-headers: mode request stream
             b request-body: t.add x-t 1",
            "b request-headers: mode response stream
             b response-body: t.add x-t 1",
        ))
        .run(move |cx| async move {
            let x = w.exchange(&cx, "/x", &BODY, false).await?;
            let got = w.received(&x);
            let all: Vec<_> = got.iter().filter(|t| t.0 == "x-t").collect();
            cx.equal("PXG-TRL-001", "x-t at the receiver", all.len(), 1);
            cx.check("PXG-BODY-002", w.received_body(&x) == b"abcdef", || {
                format!("the body {} is another", w.receiver())
            });
            w.arrives(&cx, &x, "PXG-TRL-001", Some("1"));
            Ok(())
        }),
        Case::new(
            add_whole,
            2,
            &["PXG-TRL-001"],
            "trailers that are added to a message of known length, which is framed anew",
        )
        .needs(&[w.changes, w.whole])
        .script(script(
            "b request-headers: mode request whole
             b request-body: t.set! x-t 1",
            "b request-headers: mode response whole
             b response-body: t.set! x-t 1",
        ))
        .run(move |cx| async move {
            cx.answer(Answer::status(200).body(b"abcdef"));
            let r = Request::post("/x", b"abcdef").field("te", "trailers");
            let x = cx.exchange(r).await?;
            cx.check("PXG-BODY-002", w.received_body(&x) == b"abcdef", || {
                format!("the body {} is another", w.receiver())
            });
            w.arrives(&cx, &x, "PXG-TRL-001", Some("1"));
            Ok(())
        }),
        Case::new(
            bad,
            2,
            &["PXG-HDR-005", "PXG-TRL-001"],
            "bad trailers never leave",
        )
        .needs(&[w.shows, w.changes])
        .script(script(
            "b request-trailers: t.set x-t 1\\r\\nx-smuggled:\\s1",
            "b response-trailers: t.set x-t 1\\r\\nx-smuggled:\\s1",
        ))
        .run(move |cx| async move {
            let x = w.exchange(&cx, "/x", &BODY, true).await?;
            let clean = !w.received(&x).iter().any(|t| t.0 == "x-smuggled");
            cx.check("PXG-HDR-005", clean, || {
                "a trailer was smuggled in".into()
            });
            // The head of a response may have left before its trailers came.
            let refused = x.reply.status != 200 || (w.d == 1 && !x.reply.complete);
            cx.check("PXG-HDR-005", refused, || {
                format!("status {} and a whole message", x.reply.status)
            });
            Ok(())
        }),
    ]
}

/// Both directions, where an operation comes too early or nobody can take it.
fn nowhere() -> Vec<Case> {
    vec![
        Case::new(
            "trl/too-early",
            2,
            &["PXG-TRL-001"],
            "trailer operations at HEADERS are skipped, and their indices are not judged",
        )
        .script(
            "b request-headers: t.set x-t 9; t.set-at 0 9; t.delete-at 1000
             b response-headers: t.set x-t 9; t.set-at 0 9; t.delete-at 1000",
        )
        .run(|cx| async move {
            for w in WAYS {
                let x = w.exchange(&cx, "/x", &BODY, true).await?;
                cx.equal("PXG-TRL-001", "the status", x.reply.status, 200);
                // A host that knows no trailers of this direction may drop them.
                let got = trailer(&w.received(&x), "x-t");
                let dropped = got.is_none() && !cx.has(w.shows);
                let what = format!("x-t {}", w.receiver());
                if !dropped {
                    cx.equal("PXG-TRL-001", &what, got, one());
                }
            }
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
            let r = Request::chunks("/x", &BODY).trailer("x-t", "1");
            c.send(&r, cx.name()).await;
            let status = c.response("POST").await?.status;
            cx.equal("PXG-TRL-001", "the status", status, 500);
            Ok(())
        }),
        Case::new(
            "trl/no-receiver",
            2,
            &["PXG-TRL-001"],
            "a client of HTTP/1.0 gets none: operations are skipped, and the body is what it was",
        )
        .needs(&[RESPONSE.changes, RESPONSE.stream])
        .script(
            "b request-headers: mode response stream
             b response-body: t.set x-t 9
             b response-trailers: t.set x-t 9",
        )
        .run(|cx| async move {
            cx.answer(Answer::status(200).chunks_and_trailers(&BODY, &[("x-t", "1")]));
            let mut c = cx.connect().await?;
            let name = cx.name();
            let head = format!("GET /x HTTP/1.0\r\nhost: pxg.test\r\nx-pxg-case: {name}\r\n\r\n");
            c.write(head.as_bytes()).await;
            let reply = c.response("GET").await?;
            cx.ended().await;
            let trailers = reply.trailers.clone();
            cx.equal("PXG-TRL-001", "trailers", trailers, Vec::new());
            if reply.status == 426 || reply.status == 505 {
                cx.remark("the host serves no HTTP/1.0");
                return Ok(());
            }
            cx.equal("PXG-TRL-001", "the status", reply.status, 200);
            cx.equal("PXG-TRL-001", "the body", reply.text(), "abcdef".into());
            Ok(())
        }),
    ]
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = shown(
        &REQUEST,
        [
            "trl/skip-request",
            "trl/unsubscribed-request",
            "trl/stream-request",
            "trl/observe-request",
            "trl/whole-request",
            "trl/over-limit-request",
        ],
    );
    all.extend(shown(
        &RESPONSE,
        [
            "trl/skip-response",
            "trl/unsubscribed-response",
            "trl/stream-response",
            "trl/observe-response",
            "trl/whole-response",
            "trl/over-limit-response",
        ],
    ));
    all.extend(changed(
        &REQUEST,
        [
            "trl/change-request",
            "trl/pending-request",
            "trl/add-request",
            "trl/add-whole-request",
            "trl/bad-name-request",
        ],
    ));
    all.extend(changed(
        &RESPONSE,
        [
            "trl/change-response",
            "trl/pending-response",
            "trl/add-response",
            "trl/add-whole-response",
            "trl/bad-name-response",
        ],
    ));
    all.extend(nowhere());
    all
}
