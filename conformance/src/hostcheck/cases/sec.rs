//! Caps, watermarks, owners of values, what is stripped, what is logged, what is normalised.

use super::own::{self, Own};
use super::prelude::*;

const PLAIN: &str = "subscribe all\npend none\n";

fn request_headers(records: &[std::rc::Rc<Record>], place: &str) -> usize {
    records.events(place, Phase::REQUEST_HEADERS.0).len()
}

const PATHS: &[&str] = &[
    "/a/../b",
    "/a/./b",
    "/a/%2e%2e/b",
    "/a/.%2E/b?q=/../x",
    "/a/../../b",
    "//a//b",
    "/a/..%2fb",
    "/%61/b",
    "/a/b/..",
    "/a/b/.",
    "/a/%7euser/%2D%5f",
    "/a%2fb/c",
    "/a%2F%2e%2e%2Fb",
    "/a/%252e%252e/b",
    "/a/b?q=%61/./",
    "/a/..;/b",
    "/a/...",
    "/./..//../a",
];

/// A pseudo-header in an event.
fn pseudo(event: &Record, name: &str) -> Option<String> {
    event
        .fields
        .iter()
        .flatten()
        .find(|f| f.0 == name)
        .map(|f| f.1.clone())
}

/// `:path` in the first event at a place.
fn path_shown(records: &[std::rc::Rc<Record>], place: &str) -> Option<String> {
    records
        .events(place, Phase::REQUEST_HEADERS.0)
        .first()
        .and_then(|e| pseudo(e, ":path"))
}

/// Whether a path has no dot segments, written plainly or escaped.
fn has_no_dots(path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    let path = path.to_ascii_lowercase().replace("%2e", ".");
    !path.split('/').any(|s| s == "." || s == "..")
}

/// Whether a path escapes what RFC 3986, 2.3, has no escapes for.
fn escapes_unreserved(path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    path.match_indices('%').any(|(i, _)| {
        let byte = path
            .get(i + 1..i + 3)
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        byte.is_some_and(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
    })
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "sec/cap",
            4,
            &["PXG-SEC-002"],
            "at the cap on pending places the failure mode applies at once, without a call",
        )
        .script(
            "a request-headers: pending; complete R @gate:go
             a result R: continue",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .alone()
        .run(|cx| async move {
            let mut setup = own::chain(&cx, &[("a", "subscribe all\npend all\n")])?;
            setup.workers = 1;
            own::option(&mut setup, "a", "max_pending", "2");
            let own = Own::start(&cx, &setup).await?;
            let mut waiting = Vec::new();
            for n in 1..=2 {
                let mut c = own.cx.connect().await?;
                c.send(&Request::get("/"), cx.name()).await;
                waiting.push(c);
                own.cx.until("PXG-SEC-002", "a stream that pends", |r| r.iter().filter(|r| r.is("on_event", Edge::Exit)).count() >= n).await;
            }
            for _ in 0..3 {
                let mut c = own.cx.connect().await?;
                c.send(&Request::get("/"), cx.name()).await;
                let reply = c.response("GET").await?;
                cx.check("PXG-SEC-002", (500..600).contains(&reply.status), || format!("a stream over the cap: status {}", reply.status));
            }
            cx.equal("PXG-SEC-002", "calls of the guest", request_headers(&own.cx.records(), "a"), 2);
            own.cx.open("go");
            for mut c in waiting {
                cx.equal("PXG-SEC-002", "the status of a stream below the cap", c.response("GET").await?.status, 200);
            }
            own.cx.ended().await;
            let x = own.cx.exchange(Request::get("/")).await?;
            cx.equal("PXG-SEC-002", "the status once places are free again", x.reply.status, 200);
            own.end("PXG-SEC-002").await
        }),
        Case::new(
            "sec/watermark",
            4,
            &["PXG-SEC-003"],
            "bytes for a client that never reads are bounded: apply answers FULL, then LIMIT",
        )
        .script(
            "a request-headers: reply 200; open; apply W @20 times=96
             a result W: write %1048576:w; continue",
        )
        .needs(&[Feature::STREAM_REPLY, Feature::APPLY])
        .run(|cx| async move {
            let mut c = cx.connect().await?;
            c.send(&Request::get("/"), cx.name()).await;
            cx.until("PXG-SEC-003", "96 answers of apply", |r| r.statuses("apply", "a").len() >= 96).await;
            let all = cx.records().statuses("apply", "a");
            let taken = all.iter().filter(|s| **s >= 0).count();
            cx.check("PXG-SEC-003", taken < 96, || "96 MiB were taken for a client that reads nothing".into());
            cx.check("PXG-SEC-003", all.contains(&1), || format!("FULL was never answered: {taken} of 96 MiB were taken"));
            c.reset();
            Ok(())
        }),
        Case::new(
            "sec/inject",
            4,
            &["PXG-SEC-003"],
            "INJECT for a client that never reads is bounded: a direction whose output is full gets no events",
        )
        .needs(&[Feature::BODY_STREAM_RESPONSE, Feature::RESIZE_RESPONSE])
        .script(
            "a request-headers: mode response stream
             a response-headers: resizes
             a response-body: inject %1048576:i",
        )
        .run(|cx| async move {
            const MOST: usize = 32;
            let body = bytes(2 << 20);
            cx.answer(Answer::status(200).chunks(&body.chunks(8192).collect::<Vec<_>>()));
            let mut c = cx.connect().await?;
            c.send(&Request::get("/"), cx.name()).await;
            let looks = || cx.records().events("a", Phase::RESPONSE_BODY.0).len();
            cx.until("PXG-SEC-003", "the first bytes of the response", |_| looks() > 0).await;
            // Until it comes to rest: a host without a bound goes on to the end.
            let (mut before, mut still) = (0, 0);
            while still < 3 && looks() <= MOST {
                cx.settle().await?;
                still = if looks() == before { still + 1 } else { 0 };
                before = looks();
            }
            let n = looks();
            cx.check("PXG-SEC-003", n <= MOST, || format!("{n} events, each with an INJECT of 1 MiB, for a client that reads nothing"));
            c.reset();
            Ok(())
        }),
        Case::new(
            "sec/owners",
            4,
            &["PXG-SEC-004"],
            "a token and a handle of one library are STALE to another, and change nothing",
        )
        .script(
            "a request-headers: publish values; pending; complete R @gate:go
             a result R: set x-a 1; continue
             other request-headers: complete S value=of:values; apply T value=of:values; wake 7 value=of:values; set x-o 1
             other result S: set x-evil 1; continue
             other result T: reply 418",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS, Feature::APPLY])
        .alone()
        .run(|cx| async move {
            let first = own::variant(&cx, "library=first")?;
            let second = own::variant(&cx, "library=second")?;
            let mut setup = own::chain_of(&cx, &first, &[("a", "subscribe all\npend all\n")])?;
            own::also(&cx, &mut setup, ("second", &second), "other", "subscribe all\npend all\n");
            // Both libraries in one process: a value of another one means nothing.
            setup.workers = 1;
            let own = Own::start(&cx, &setup).await?;
            let mut c = own.cx.connect().await?;
            c.send(&Request::get("/"), cx.name()).await;
            own.cx.until("PXG-SEC-004", "the stream whose values are published", |r| r.iter().any(|r| r.is("on_event", Edge::Exit))).await;
            let mut d = own.cx.connect().await?;
            d.send(&Request::get("/other"), cx.name()).await;
            let reply = d.response("GET").await?;
            cx.equal("PXG-SEC-004", "the status of the other library's stream", reply.status, 200);
            let records = own.cx.records();
            for function in ["complete", "apply", "wake"] {
                cx.equal("PXG-SEC-004", &format!("{function} with another library's value"), records.statuses(function, "other"), vec![STALE]);
            }
            own.cx.open("go");
            cx.equal("PXG-SEC-004", "the status of the stream", c.response("GET").await?.status, 200);
            own.cx.ended().await;
            let seen = own.cx.seen();
            let evil = seen.iter().any(|s| s.get("x-evil").is_some());
            let own_result = seen.iter().any(|s| s.get("x-a").is_some());
            cx.equal("PXG-SEC-004", "x-evil and x-a upstream", (evil, own_result), (false, true));
            let wakes = own.cx.records().events("a", Phase::WAKE.0).len();
            cx.equal("PXG-SEC-004", "WAKE events", wakes, 0);
            own.end("PXG-SEC-004").await
        }),
        Case::new(
            "sec/strip",
            2,
            &["PXG-SEC-005"],
            "fields of the strip list are gone before the first guest, in every spelling, also where a guest is bypassed",
        )
        .script("a request-headers: error text")
        .alone()
        .run(|cx| async move {
            let mut setup = own::chain(&cx, &[("a", PLAIN), ("b", PLAIN)])?;
            own::option(&mut setup, "a", "open", "");
            setup.options.push(("strip".into(), "x-user-id".into()));
            setup.routes.push(crate::hostcheck::setup::Route { name: "none".into(), prefix: "/none".into(), chain: Vec::new() });
            let own = Own::start(&cx, &setup).await?;
            for (turn, route) in ["/", "/none"].iter().enumerate() {
                let mut c = own.cx.connect().await?;
                let mut r = Request::get(route).field("x-kept", "1");
                for name in ["x-user-id", "X-User-ID", "x_user_id", "X-User_Id"] {
                    r = r.field(name, "spoofed");
                }
                c.send(&r, cx.name()).await;
                cx.equal("PXG-SEC-005", "the status", c.response("GET").await?.status, 200);
                own.cx.ended().await;
                let seen = own.cx.seen().into_iter().nth(turn);
                let left: Vec<String> = seen.iter().flat_map(|s| &s.head.fields).filter(|f| f.1.contains("spoofed")).map(|f| f.0.clone()).collect();
                cx.equal("PXG-SEC-005", &format!("spoofed fields upstream on {route}"), left, Vec::new());
                cx.check("PXG-SEC-005", seen.is_some_and(|s| s.get("x-kept").is_some()), || "x-kept did not arrive".into());
            }
            let shown = own.all().iter().filter(|r| r.fields.iter().flatten().any(|f| f.1 == "spoofed")).count();
            cx.equal("PXG-SEC-005", "events that show a spoofed field", shown, 0);
            own.end("PXG-SEC-005").await
        }),
        Case::new(
            "sec/logs",
            2,
            &["PXG-SEC-006"],
            "details and errors are escaped and capped, and a SENSITIVE value is in no output",
        )
        .script(
            "a request-headers: set x-secret S3CRET-OF-A-GUEST; value-flags 2
             b request-headers: reply 403; details %60000:D\\nforged\\x1b[31m
             other request-headers: error %60000:E\\nforged\\x1b[31m",
        )
        .alone()
        .run(|cx| async move {
            let mut setup = own::chain(&cx, &[("a", PLAIN), ("b", PLAIN)])?;
            own::also(&cx, &mut setup, ("probe", &cx.shared().probe.clone()), "other", PLAIN);
            let own = Own::start(&cx, &setup).await?;
            let names = |dir: &std::path::Path| -> Vec<std::path::PathBuf> {
                std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_file()).collect()
            };
            // What the suite wrote holds the script, and the secret with it.
            let config: Vec<_> = names(&own.running.dir).into_iter().filter(|p| std::fs::read(p).is_ok_and(|b| !b.is_empty()) && !is_log(p)).collect();
            for route in ["/", "/other"] {
                own.cx.exchange(Request::get(route)).await?;
            }
            let (dir, running) = (own.running.dir.clone(), own.running.clone());
            own.end("PXG-SEC-006").await?;
            let mut texts = vec![("its output".to_string(), running.host.output.since(0).join("\n"))];
            for p in names(&dir).into_iter().filter(|p| !config.contains(p) && p.extension().is_none_or(|e| e != "jsonl" && e != "seq")) {
                texts.push((p.display().to_string(), String::from_utf8_lossy(&std::fs::read(&p)?).into_owned()));
            }
            for (what, text) in &texts {
                cx.check("PXG-SEC-006", !text.contains("S3CRET"), || format!("a SENSITIVE value is in {what}"));
                for l in text.lines() {
                    cx.check("PXG-SEC-006", !l.starts_with("forged") && !l.contains('\u{1b}'), || format!("a guest's text is not escaped in {what}"));
                    cx.check("PXG-SEC-006", l.len() < 50_000, || format!("a line of {} bytes in {what}", l.len()));
                }
            }
            cx.remark(format!("looked into {}", texts.iter().map(|t| t.0.as_str()).collect::<Vec<_>>().join(", ")));
            Ok(())
        }),
        Case::new(
            "sec/paths",
            2,
            &["PXG-SEC-007"],
            "the path that guests see is byte for byte the one that is forwarded, in its normal form",
        )
        .script("* request-headers: continue")
        .run(|cx| async move {
            for path in PATHS {
                let x = cx.exchange(Request::get(path)).await?;
                if x.reply.status == 400 {
                    continue;
                }
                let seen: Vec<Option<String>> = ["a", "b", "c"].iter().map(|p| path_shown(&x.records, p)).collect();
                let target = x.up.as_ref().map(|u| u.head.target().to_string());
                cx.check("PXG-SEC-007", seen.iter().all(|s| *s == target) && target.is_some(), || {
                    format!("{path}: guests saw {seen:?}, the upstream {target:?}")
                });
                let shown = seen[0].clone().unwrap_or_default();
                cx.check("PXG-SEC-007", has_no_dots(&shown), || format!("{path} is shown as {shown}: dot segments are left"));
                cx.check("PXG-SEC-007", !escapes_unreserved(&shown), || {
                    format!("{path} is shown as {shown}: characters are escaped that need not be")
                });
            }
            Ok(())
        }),
        Case::new(
            "sec/h2-paths",
            2,
            &["PXG-SEC-007"],
            "the same over HTTP/2",
        )
        .script("* request-headers: continue")
        .run(|cx| async move {
            let mut h = cx.h2().await?;
            for path in PATHS {
                let before = (cx.seen().len(), cx.records().events("a", Phase::REQUEST_HEADERS.0).len());
                let reply = h.send(&Request::get(path), cx.name(), true).await?.response().await?;
                if reply.status == 400 || reply.status == 0 {
                    continue;
                }
                cx.ended().await;
                let target = cx.seen().get(before.0).map(|u| u.head.target().to_string());
                for place in ["a", "c"] {
                    let all = cx.records().events(place, Phase::REQUEST_HEADERS.0);
                    let shown = all.get(before.1).and_then(|e| pseudo(e, ":path"));
                    cx.check("PXG-SEC-007", shown == target && target.is_some(), || {
                        format!("{path}: {place} saw {shown:?}, the upstream {target:?}")
                    });
                    let shown = shown.unwrap_or_default();
                    cx.check("PXG-SEC-007", has_no_dots(&shown) && !escapes_unreserved(&shown), || {
                        format!("{path} is shown as {shown}, which is not its normal form")
                    });
                }
            }
            Ok(())
        }),
        Case::new(
            "sec/absolute-target",
            2,
            &["PXG-SEC-007"],
            "a target in absolute form: its authority and path are what guests see and what is forwarded",
        )
        .script("* request-headers: continue")
        .run(|cx| async move {
            let x = cx.exchange(Request::get("http://one.test/a/../b?q").field("host", "two.test")).await?;
            if x.reply.status != 400 {
                let up = x.up.as_ref();
                let target = up.map(|u| u.head.target().to_string());
                let host = up.and_then(|u| u.get("host"));
                let e = x.records.events("c", Phase::REQUEST_HEADERS.0);
                let shown = |name: &str| e.first().and_then(|e| pseudo(e, name));
                cx.equal("PXG-SEC-007", ":path at c, and the target upstream", (shown(":path"), target), (Some("/b?q".into()), Some("/b?q".into())));
                cx.equal("PXG-SEC-007", ":authority at c, and host upstream", (shown(":authority"), host), (Some("one.test".into()), Some("one.test".into())));
            }
            // The checks above must not pass because nothing works.
            cx.equal("PXG-SEC-007", "the status of a plain request", cx.exchange(Request::get("/")).await?.reply.status, 200);
            Ok(())
        }),
        Case::new(
            "sec/set-paths",
            2,
            &["PXG-SEC-007"],
            "a path that a guest sets is what those behind it see and what is forwarded, not changed once more",
        )
        .script(
            "b request-headers: set :path /a/%7e%2f/x?q=%41/../b",
        )
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/x")).await?;
            cx.equal("PXG-SEC-007", "the status", x.reply.status, 200);
            let target = x.up.as_ref().map(|u| u.head.target().to_string());
            let shown = path_shown(&x.records, "c");
            cx.check("PXG-SEC-007", shown == target && target.is_some(), || {
                format!("b set /a/%7e%2f/x?q=%41/../b: c saw {shown:?}, the upstream {target:?}")
            });
            Ok(())
        }),
        Case::new(
            "sec/framing",
            2,
            &["PXG-SEC-007"],
            "conflicting framing is rejected before the first guest",
        )
        .script("* request-headers: continue")
        .run(|cx| async move {
            for (what, fields, body) in [
                ("content-length with transfer-encoding", "content-length: 5\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"),
                ("two lengths", "content-length: 5\r\ncontent-length: 6\r\n", "123456"),
                ("two lengths in one field", "content-length: 5, 6\r\n", "123456"),
                ("a length that is no number", "content-length: +5\r\n", "12345"),
                ("a space before the colon", "content-length : 5\r\n", "12345"),
            ] {
                let before = request_headers(&cx.records(), "a");
                let mut c = cx.connect().await?;
                let text = format!("POST / HTTP/1.1\r\nhost: pxg.test\r\nx-pxg-case: {}\r\n{fields}\r\n{body}", cx.name());
                c.write(text.as_bytes()).await;
                let reply = c.response("POST").await?;
                cx.check("PXG-SEC-007", reply.status == 400 || reply.status == 0, || format!("{what}: status {}, expected 400", reply.status));
                cx.equal("PXG-SEC-007", &format!("{what}: calls of the first guest"), request_headers(&cx.records(), "a") - before, 0);
            }
            // RFC 9112 5.2: refused, or blanks before anybody sees it.
            let before = cx.records().len();
            let mut c = cx.connect().await?;
            let text = format!("POST / HTTP/1.1\r\nhost: pxg.test\r\nx-pxg-case: {}\r\nx-folded: a\r\n b\r\ncontent-length: 0\r\n\r\n", cx.name());
            c.write(text.as_bytes()).await;
            let reply = c.response("POST").await?;
            if reply.status != 400 && reply.status != 0 {
                cx.ended().await;
                let seen: Vec<String> = cx.records()[before..]
                    .iter()
                    .filter(|r| r.phase == Some(Phase::REQUEST_HEADERS.0))
                    .flat_map(|r| r.fields.iter().flatten())
                    .filter(|f| f.0 == "x-folded")
                    .map(|f| f.1.clone())
                    .collect();
                let up = cx.seen().last().and_then(|s| s.get("x-folded").map(|v| v.to_string()));
                let sound = |v: &String| v.starts_with('a') && v.ends_with('b') && v[1..v.len() - 1].chars().all(|c| c == ' ');
                cx.check("PXG-SEC-007", !seen.is_empty() && seen.iter().chain(&up).all(sound) && up.as_ref() == seen.first(), || {
                    format!("an obsolete line folding: guests saw {seen:?}, the upstream {up:?}; expected \"a b\" at all, or status 400")
                });
            }
            // The checks above must not pass because nothing works.
            let x = cx.exchange(Request::post("/", b"12345")).await?;
            cx.equal("PXG-SEC-007", "the status of a sound request", x.reply.status, 200);
            Ok(())
        }),
    ]
}

fn is_log(p: &std::path::Path) -> bool {
    p.extension().is_some_and(|e| e == "log")
}
