//! Header views and operations.

use super::prelude::*;

/// A batch at the request's headers that is refused: 500, and the upstream sees nothing.
macro_rules! refused {
    ($name:literal, $rules:expr, $about:literal, $script:literal) => {
        Case::new($name, 2, $rules, $about)
            .script(concat!("b request-headers: ", $script))
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x").field("x-good", "1")).await?;
                let rule = $rules[0];
                cx.equal(rule, "the status", x.reply.status, 500);
                cx.check(rule, x.up.is_none(), || {
                    "the upstream got the request".into()
                });
                Ok(())
            })
    };
}

/// The same for a reply.
macro_rules! refused_reply {
    ($name:literal, $rules:expr, $about:literal, $script:literal) => {
        Case::new($name, 2, $rules, $about)
            .script(concat!("b request-headers: ", $script))
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                let reply = c.response("GET").await?;
                let rule = $rules[0];
                cx.equal(rule, "the status", reply.status, 500);
                cx.check(rule, reply.get("x-smuggled").is_none(), || {
                    "a smuggled field at the client".into()
                });
                cx.check(rule, c.peek(20).await == 0, || {
                    "bytes behind the response".into()
                });
                Ok(())
            })
    };
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = vec![
        Case::new("hdr/view", 2, &["PXG-HDR-001", "PXG-HDR-002"], "the view is the message: pseudo-headers, names, values, order")
            .script("* request-headers: continue")
            .run(|cx| async move {
                cx.answer(
                    Answer::status(203)
                        .field("X-Upper", "Value With CASE")
                        .field("x-many", "1")
                        .field("x-other", "o")
                        .field("x-many", "2")
                        .field("x-empty", "")
                        .body(b"ok"),
                );
                let r = Request::get("/a/b?c=d")
                    .field("Host", "example.test")
                    .field("X-Upper", "Value With CASE")
                    .field("x-many", "1")
                    .field("x-other", "o")
                    .field("x-many", "2")
                    .field("x-empty", "")
                    .field("x-latin", "caf\u{e9}");
                let x = cx.exchange(r).await?;
                for (phase, pseudo) in [
                    (
                        Phase::REQUEST_HEADERS,
                        vec![(":method", "GET"), (":path", "/a/b?c=d"), (":authority", "example.test"), (":scheme", "http")],
                    ),
                    (Phase::RESPONSE_HEADERS, vec![(":status", "203")]),
                ] {
                    let seen = x.records.events("b", phase.0);
                    let fields = seen.first().and_then(|r| r.fields.clone()).unwrap_or_default();
                    let all = |n: &str| -> Vec<String> {
                        fields.iter().filter(|f| f.0 == n).map(|f| f.1.clone()).collect()
                    };
                    for (n, v) in pseudo {
                        cx.equal("PXG-HDR-001", n, all(n), vec![v.to_string()]);
                    }
                    cx.equal("PXG-HDR-001", "x-upper", all("x-upper"), vec!["Value With CASE".into()]);
                    cx.equal("PXG-HDR-001", "x-many", all("x-many").join(", "), "1, 2".into());
                    cx.equal("PXG-HDR-002", "x-empty", all("x-empty"), vec![String::new()]);
                    cx.equal("PXG-HDR-001", "host beside :authority", all("host").len(), 0);
                    if phase == Phase::REQUEST_HEADERS {
                        cx.equal("PXG-ABI-008", "a value that is not UTF-8", all("x-latin"), vec!["caf\u{e9}".into()]);
                    }
                }
                Ok(())
            }),
        Case::new("hdr/set-add-delete", 2, &["PXG-HDR-003", "PXG-MUT-001", "PXG-HDR-002"], "SET, ADD and DELETE, in both directions")
            .script(
                "b request-headers: set x-set 2; add x-add 2; delete x-delete; set x-new n; set x-empty -; add x-blank -; delete x-none; add x-chain 1; set x-chain 2; add x-chain 3
                 b response-headers: set x-set 2; add x-add 2; delete x-delete; set x-new n; set x-empty -",
            )
            .run(|cx| async move {
                let fields = [("x-set", "0"), ("x-set", "1"), ("x-add", "1"), ("x-delete", "1"), ("x-delete", "2"), ("x-empty", "e")];
                let mut a = Answer::status(200);
                let mut r = Request::get("/x");
                for (n, v) in fields {
                    a = a.field(n, v);
                    r = r.field(n, v);
                }
                cx.answer(a.body(b"ok"));
                let x = cx.exchange(r).await?;
                let expected = [
                    ("x-set", Some("2")),
                    ("x-add", Some("1, 2")),
                    ("x-delete", None),
                    ("x-new", Some("n")),
                    ("x-empty", Some("")),
                ];
                for (n, v) in expected {
                    let v = v.map(String::from);
                    cx.equal("PXG-HDR-003", &format!("{n} upstream"), x.up_get(n), v.clone());
                    cx.equal("PXG-HDR-003", &format!("{n} at the client"), x.reply.get(n), v);
                }
                cx.equal("PXG-HDR-002", "x-blank, added without a value, upstream", x.up_get("x-blank"), Some(String::new()));
                cx.equal("PXG-MUT-001", "x-chain upstream", x.up_get("x-chain"), Some("2, 3".into()));
                Ok(())
            }),
        Case::new("hdr/by-index", 2, &["PXG-HDR-004"], "indices mean the delivered view, whatever the batch has done before")
            .script(
                "b request-headers: continue
                 b response-headers: delete x-b; set-at 1 one; delete-at 2; set-at 3 gone",
            )
            .run(|cx| async move {
                // The host's own fields come first or last: the case finds its own in what `a`'s successor is shown.
                cx.answer(Answer::status(200).field("x-a", "a").field("x-b", "b").field("x-c", "c").chunks(&[b"ok"]));
                let x = cx.exchange(Request::get("/x")).await?;
                let view = x.records.events("b", Phase::RESPONSE_HEADERS.0);
                let view = view.first().and_then(|r| r.fields.clone()).unwrap_or_default();
                // The model: index 0 is :status; 1 is replaced, 2 removed, 3 replaced, x-b removed before.
                let mut model = view.clone();
                let b = model.iter().position(|f| f.0 == "x-b");
                for (i, v) in [(1, Some("one")), (2, None), (3, Some("gone"))] {
                    if Some(i) == b || i >= model.len() {
                        continue;
                    }
                    model[i].1 = v.map_or_else(|| "\u{0}".into(), String::from);
                }
                for (i, (n, v)) in model.iter().enumerate().skip(1) {
                    let expected = (v != "\u{0}" && Some(i) != b).then(|| v.clone());
                    if ["content-length", "date", "connection", "transfer-encoding", "server"].contains(&n.as_str()) {
                        continue;
                    }
                    cx.equal("PXG-HDR-004", &format!("{n} at the client"), x.reply.get(n), expected);
                }
                Ok(())
            }),
        Case::new("hdr/pseudo-set", 2, &["PXG-HDR-006", "PXG-HDR-001"], ":path, :authority, :method and :status can be SET")
            .script(
                "b request-headers: set :path /other?x=1; set :authority other.test; set :method PUT
                 b response-headers: set :status 418",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::post("/x", b"abc")).await?;
                let up = x.up.as_ref();
                cx.equal("PXG-HDR-006", "the target upstream", up.map(|u| u.head.target().to_string()), Some("/other?x=1".into()));
                cx.equal("PXG-HDR-006", "the method upstream", up.map(|u| u.head.method().to_string()), Some("PUT".into()));
                cx.equal("PXG-HDR-006", "host upstream", x.up_get("host"), Some("other.test".into()));
                cx.equal("PXG-HDR-006", "the status", x.reply.status, 418);
                let c = x.records.events("c", Phase::REQUEST_HEADERS.0);
                let path = c.first().and_then(|r| r.fields.clone()).unwrap_or_default();
                let path = path.iter().find(|f| f.0 == ":path").map(|f| f.1.clone());
                cx.equal("PXG-CHN-001", ":path at c", path, Some("/other?x=1".into()));
                Ok(())
            }),
        Case::new("hdr/length-in-whole", 2, &["PXG-HDR-007", "PXG-BODY-003"], "in WHOLE the host computes the length")
            .needs(&[Feature::BODY_WHOLE_REQUEST, Feature::BODY_WHOLE_RESPONSE])
            .script(
                "b request-headers: mode request whole; mode response whole
                 b request-body: inject longer-; pass all
                 b response-body: drop 2",
            )
            .run(|cx| async move {
                cx.answer(Answer::status(200).body(b"0123456789"));
                let x = cx.exchange(Request::post("/x", b"abc")).await?;
                cx.equal("PXG-HDR-007", "the body upstream", x.up_text(), Some("longer-abc".into()));
                let framed = x.up_get("content-length").is_none_or(|n| n == "10");
                cx.check("PXG-HDR-007", framed, || format!("content-length {:?} upstream", x.up_get("content-length")));
                cx.equal("PXG-HDR-007", "the body", x.reply.text(), "23456789".into());
                let framed = x.reply.get("content-length").is_none_or(|n| n == "8");
                cx.check("PXG-HDR-007", framed, || format!("content-length {:?}", x.reply.get("content-length")));
                Ok(())
            }),
        Case::new("hdr/surplus", 2, &["PXG-HDR-007"], "in STREAM a byte beyond content-length never leaves")
            .needs(&[Feature::BODY_STREAM_REQUEST, Feature::BODY_STREAM_RESPONSE])
            .script(
                "b request-headers: mode response stream
                 b response-body#1: inject X",
            )
            .run(|cx| async move {
                cx.answer(Answer::status(200).body(b"0123456789"));
                let mut c = cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                let reply = c.response("GET").await?;
                cx.check("PXG-HDR-007", !(reply.complete && reply.status == 200), || {
                    format!("the surplus went through: {:?}", reply.text())
                });
                cx.check("PXG-HDR-007", reply.body.len() <= 10, || "more bytes than content-length".into());
                Ok(())
            }),
        Case::new("hdr/surplus-over-limit", 2, &["PXG-HDR-007"], "nor does it after OVER_LIMIT, when a WHOLE body goes on as a stream")
            .needs(&[
                Feature::BODY_WHOLE_REQUEST,
                Feature::BODY_STREAM_REQUEST,
                Feature::BODY_WHOLE_RESPONSE,
                Feature::BODY_STREAM_RESPONSE,
            ])
            .script("small-whole response-body: inject X")
            .run(|cx| async move {
                let body = bytes(3000);
                let answer = Answer::status(200).field("content-length", "3000").send(&body[..2000]);
                cx.answer(answer.gate("rest").send(&body[2000..]));
                let mut c = cx.connect().await?;
                c.send(&Request::get("/small-whole/x"), cx.name()).await;
                cx.until("PXG-HDR-007", "OVER_LIMIT", |r| r.events("small-whole", Phase::RESPONSE_BODY.0).len() == 1).await;
                cx.open("rest");
                let reply = c.response("GET").await?;
                // With the headers still held, a host may have taken the length away, or made it right.
                let bound = reply.get("content-length").as_deref() == Some("3000");
                cx.check("PXG-HDR-007", !(bound && reply.complete && reply.status == 200), || {
                    format!("the surplus went through: {:?}", &reply.text()[..16])
                });
                Ok(())
            }),
        Case::new("hdr/shortage", 2, &["PXG-HDR-007"], "in STREAM an end short of content-length is a failure")
            .needs(&[Feature::BODY_STREAM_REQUEST])
            .script(
                "b request-headers: mode request stream
                 b request-body#1: drop 1",
            )
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.send(&Request::post("/x", b"0123456789"), cx.name()).await;
                let reply = c.response("POST").await?;
                cx.ended().await;
                let whole = cx.seen().first().is_some_and(|s| s.complete);
                cx.check("PXG-HDR-007", !whole, || "the upstream got a whole request".into());
                cx.check("PXG-HDR-007", reply.status != 200, || "the exchange went through".into());
                Ok(())
            }),
        Case::new("hdr/resizes", 2, &["PXG-HDR-007"], "with RESIZES the length is dropped and the body may grow")
            .needs(&[Feature::RESIZE_REQUEST, Feature::RESIZE_RESPONSE, Feature::BODY_STREAM_REQUEST, Feature::BODY_STREAM_RESPONSE])
            .script(
                "resizes request-headers: mode request stream; mode response stream
                 resizes request-body#1: inject >>
                 resizes response-body#1: drop 1; inject <<",
            )
            .run(|cx| async move {
                cx.answer(Answer::status(200).body(b"0123456789"));
                let x = cx.exchange(Request::post("/resizes/x", b"abc")).await?;
                cx.equal("PXG-HDR-007", "the body upstream", x.up_text(), Some(">>abc".into()));
                // A host that reads a request whole before it sends it on knows the new length.
                let length = x.up_get("content-length");
                cx.check("PXG-HDR-007", length.as_deref().is_none_or(|l| l == "5"), || format!("content-length upstream: {length:?}"));
                cx.equal("PXG-HDR-007", "the body", x.reply.text(), "<<123456789".into());
                Ok(())
            }),
        Case::new("hdr/many-operations", 2, &["PXG-HDR-009"], "1024 operations in one batch are legal")
            .script("b request-headers: delete x-none times=1023; set x-last yes")
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-HDR-009", "the status", x.reply.status, 200);
                cx.equal("PXG-HDR-009", "x-last upstream", x.up_get("x-last"), Some("yes".into()));
                Ok(())
            }),
        Case::new("hdr/too-many-fields", 2, &["PXG-HDR-009"], "fields without end are a failure, never cut off")
            .script("b request-headers: add x-f %1000:v times=1024; add x-f %64000:v times=40; set x-last yes")
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                let whole = x.up_get("x-last").is_some() && x.up.as_ref().is_some_and(|u| u.head.all("x-f").len() == 1064);
                cx.check("PXG-HDR-009", whole || x.reply.status >= 400, || "the fields were cut off".into());
                Ok(())
            }),
        Case::new("hdr/late-skipped", 2, &["PXG-HDR-011"], "a header operation after the headers left is skipped")
            .needs(&[Feature::BODY_STREAM_REQUEST, Feature::BODY_STREAM_RESPONSE])
            .script(
                "b request-headers: mode request stream; mode response stream
                 b request-body#1: set x-late 1
                 b response-body#1: set x-late 1",
            )
            .run(|cx| async move {
                let x = cx.exchange(Request::post("/x", b"abc")).await?;
                cx.equal("PXG-HDR-011", "the status", x.reply.status, 200);
                cx.check("PXG-HDR-011", x.reply.complete, || "the response was cut".into());
                cx.equal("PXG-HDR-011", "x-late upstream", x.up_get("x-late"), None);
                cx.equal("PXG-HDR-011", "x-late at the client", x.reply.get("x-late"), None);
                Ok(())
            }),
        Case::new("hdr/late-must", 2, &["PXG-HDR-011"], "with MUST it is a failure")
            .needs(&[Feature::BODY_STREAM_RESPONSE])
            .script(
                "b request-headers: mode response stream
                 b response-body#1: set! x-late 1",
            )
            .run(|cx| async move {
                let mut c = cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                let reply = c.response("GET").await?;
                cx.check("PXG-HDR-011", !reply.complete, || "the response came whole".into());
                Ok(())
            }),
        late_index(),
        late_index_must(),
        Case::new("hdr/index-beyond", 2, &["PXG-HDR-004"], "an index beyond the view is refused")
            .script("b request-headers: set x-a 1; delete-at 1000")
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/x")).await?;
                cx.equal("PXG-HDR-004", "the status", x.reply.status, 500);
                Ok(())
            }),
    ];
    all.extend(vec![
        refused!(
            "hdr/value-crlf",
            &["PXG-HDR-005"],
            "CR LF in a value",
            "set x-a 1\\r\\nx-smuggled:\\s1"
        ),
        refused!(
            "hdr/value-lf",
            &["PXG-HDR-005"],
            "LF in a value",
            "add x-a 1\\nx-smuggled:\\s1"
        ),
        refused!(
            "hdr/value-nul",
            &["PXG-HDR-005"],
            "NUL in a value",
            "set x-a a\\0b"
        ),
        refused!(
            "hdr/value-del",
            &["PXG-HDR-005"],
            "0x7F in a value",
            "set x-a a\\x7fb"
        ),
        refused!(
            "hdr/value-space",
            &["PXG-HDR-005"],
            "a leading space",
            "set x-a \\sa"
        ),
        refused!(
            "hdr/value-at",
            &["PXG-HDR-005"],
            "CR LF by index",
            "set-at 4 1\\r\\nx-smuggled:\\s1"
        ),
        refused!(
            "hdr/name-empty",
            &["PXG-HDR-005"],
            "an empty name",
            "set - 1"
        ),
        refused!(
            "hdr/name-space",
            &["PXG-HDR-005"],
            "a space in a name",
            "set x\\sa 1"
        ),
        refused!(
            "hdr/name-colon",
            &["PXG-HDR-005"],
            "a colon in a name",
            "add x-a:b 1"
        ),
        refused!(
            "hdr/name-crlf",
            &["PXG-HDR-005"],
            "CR LF in a name",
            "set x\\r\\nx-smuggled 1"
        ),
        refused!(
            "hdr/name-high",
            &["PXG-HDR-005"],
            "a byte above 0x7F in a name",
            "set x-\\xe9 1"
        ),
        refused!(
            "hdr/path-space",
            &["PXG-HDR-005"],
            "a space in :path",
            "set :path /a\\sb"
        ),
        refused!(
            "hdr/path-relative",
            &["PXG-HDR-005"],
            "a :path without a slash",
            "set :path x"
        ),
        refused!(
            "hdr/path-fragment",
            &["PXG-HDR-005"],
            "# in :path",
            "set :path /a#b"
        ),
        refused!(
            "hdr/path-crlf",
            &["PXG-HDR-005"],
            "CR LF in :path",
            "set :path /a\\r\\nx-smuggled:\\s1"
        ),
        refused!(
            "hdr/authority-path",
            &["PXG-HDR-005"],
            "a slash in :authority",
            "set :authority a.test/x"
        ),
        refused!(
            "hdr/authority-user",
            &["PXG-HDR-005"],
            "userinfo in :authority",
            "set :authority u@a.test"
        ),
        refused!(
            "hdr/method-space",
            &["PXG-HDR-005"],
            "a space in :method",
            "set :method GET\\s/"
        ),
        refused!(
            "hdr/scheme",
            &["PXG-HDR-005"],
            "a made-up :scheme",
            "set :scheme gopher"
        ),
        refused!(
            "hdr/pseudo-add",
            &["PXG-HDR-006"],
            "ADD of a pseudo-header",
            "add :path /y"
        ),
        refused!(
            "hdr/pseudo-delete",
            &["PXG-HDR-006"],
            "DELETE of a pseudo-header",
            "delete :authority"
        ),
        refused!(
            "hdr/pseudo-foreign",
            &["PXG-HDR-006"],
            ":status in a request",
            "set :status 200"
        ),
        refused!(
            "hdr/pseudo-unknown",
            &["PXG-HDR-006"],
            "a pseudo-header that does not exist",
            "set :made-up 1"
        ),
        refused!(
            "hdr/pseudo-delete-at",
            &["PXG-HDR-006"],
            "DELETE_AT of a pseudo-header",
            "delete-at 0"
        ),
        refused!(
            "hdr/upper-case",
            &["PXG-HDR-010"],
            "an upper-case name in SET",
            "set X-A 1"
        ),
        refused!(
            "hdr/upper-case-add",
            &["PXG-HDR-010"],
            "an upper-case name in ADD",
            "add x-A 1"
        ),
        refused!(
            "hdr/upper-case-delete",
            &["PXG-HDR-010"],
            "an upper-case name in DELETE",
            "delete X-Good"
        ),
        refused!(
            "hdr/absent-value",
            &["PXG-HDR-002"],
            "an ABSENT value in SET",
            "set x-a ~"
        ),
        refused!(
            "hdr/owned-connection",
            &["PXG-HDR-008"],
            "connection",
            "set connection close"
        ),
        refused!(
            "hdr/owned-length",
            &["PXG-HDR-008"],
            "content-length",
            "set content-length 3"
        ),
        refused!(
            "hdr/owned-host",
            &["PXG-HDR-008"],
            "host",
            "set host other.test"
        ),
        refused!(
            "hdr/owned-keep-alive",
            &["PXG-HDR-008"],
            "keep-alive",
            "add keep-alive 1"
        ),
        refused!(
            "hdr/owned-proxy-connection",
            &["PXG-HDR-008"],
            "proxy-connection",
            "add proxy-connection close"
        ),
        refused!("hdr/owned-te", &["PXG-HDR-008"], "te", "set te trailers"),
        refused!(
            "hdr/owned-trailer",
            &["PXG-HDR-008"],
            "trailer",
            "set trailer x-t"
        ),
        refused!(
            "hdr/owned-transfer-encoding",
            &["PXG-HDR-008"],
            "transfer-encoding",
            "set transfer-encoding chunked"
        ),
        refused!(
            "hdr/owned-upgrade",
            &["PXG-HDR-008"],
            "upgrade",
            "set upgrade h2c"
        ),
        refused!(
            "hdr/owned-expect",
            &["PXG-HDR-008"],
            "expect",
            "set expect 100-continue"
        ),
        refused!(
            "hdr/owned-delete",
            &["PXG-HDR-008"],
            "DELETE of transfer-encoding",
            "delete transfer-encoding"
        ),
        refused_reply!(
            "hdr/reply-crlf",
            &["PXG-HDR-005"],
            "CR LF in a reply's field",
            "reply 200; field x-a 1\\r\\nx-smuggled:\\s1"
        ),
        refused_reply!(
            "hdr/reply-name",
            &["PXG-HDR-005"],
            "a space in a reply's field name",
            "reply 200; field x\\sa 1"
        ),
        refused_reply!(
            "hdr/reply-owned",
            &["PXG-HDR-008"],
            "content-length in a reply",
            "reply 200; field content-length 1; body ab"
        ),
        refused_reply!(
            "hdr/reply-coding",
            &["PXG-HDR-008"],
            "transfer-encoding in a reply",
            "reply 200; field transfer-encoding chunked"
        ),
        refused_reply!(
            "hdr/reply-upper-case",
            &["PXG-HDR-010"],
            "an upper-case name in a reply",
            "reply 200; field X-A 1"
        ),
        refused_reply!(
            "hdr/reply-pseudo",
            &["PXG-HDR-006"],
            "a pseudo-header in a reply",
            "reply 200; field :status 204"
        ),
    ]);
    all
}

/// Both bodies are streamed, so that their headers have left when they come.
fn late_index() -> Case {
    Case::new(
        "hdr/late-index",
        2,
        &["PXG-HDR-011", "PXG-HDR-004"],
        "where an operation is skipped its index is not judged",
    )
    .needs(&[Feature::BODY_STREAM_REQUEST, Feature::BODY_STREAM_RESPONSE])
    .script(
        "b request-headers: mode request stream; mode response stream
         b request-body#1: set-at 0 x; delete-at 1000; set-at 1 y
         b response-body#1: delete-at 0; set-at 1000 x",
    )
    .run(|cx| async move {
        let x = cx
            .exchange(Request::post("/index", b"abc").field("x-kept", "k"))
            .await?;
        cx.equal("PXG-HDR-011", "the status", x.reply.status, 200);
        cx.check("PXG-HDR-011", x.reply.complete, || {
            "the response was cut".into()
        });
        for phase in [Phase::REQUEST_BODY, Phase::RESPONSE_BODY] {
            let seen = x.records.events("b", phase.0);
            let late = seen.first().is_some_and(|r| r.fields.is_none());
            cx.check("PXG-HDR-011", late, || {
                format!("phase {} at b: {seen:?}", phase.0)
            });
        }
        let up = x.up.as_ref();
        cx.equal(
            "PXG-HDR-011",
            "the target upstream",
            up.map(|u| u.head.target().to_string()),
            Some("/index".into()),
        );
        cx.equal(
            "PXG-HDR-011",
            "x-kept upstream",
            x.up_get("x-kept"),
            Some("k".into()),
        );
        Ok(())
    })
}

fn late_index_must() -> Case {
    Case::new(
        "hdr/late-index-must",
        2,
        &["PXG-HDR-011"],
        "with MUST it is a failure, and a value that is not legal is one in any case",
    )
    .needs(&[Feature::BODY_STREAM_RESPONSE])
    .script(
        "b request-headers: mode response stream
         b response-body#1: set-at! 0 x
         small request-headers: mode response stream
         small response-body#1: set-at 0 a\\rb",
    )
    .run(|cx| async move {
        for (path, what) in [("/x", "MUST"), ("/small/x", "CR in a value")] {
            let mut c = cx.connect().await?;
            c.send(&Request::get(path), cx.name()).await;
            let reply = c.response("GET").await?;
            cx.check("PXG-HDR-011", !reply.complete, || {
                format!("the response came whole: {what}")
            });
        }
        Ok(())
    })
}
