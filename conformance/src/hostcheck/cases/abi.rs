//! The boundary itself: sizes, bits, strings, zeros, arguments.

use proxy_golang_abi as abi;

use super::own::{self, Own};
use super::prelude::*;

const LIMIT: i32 = -5;

/// What each `complete` of `a` answered, by the name of its result.
fn answers(records: &[std::rc::Rc<Record>], function: &str) -> Vec<(String, i32)> {
    records
        .calls(function, Edge::Exit, "a")
        .iter()
        .filter_map(|r| Some((r.text.clone()?, r.status?)))
        .collect()
}

/// Compares what calls answered with a table; a result may have several legal answers.
pub(super) fn answered(
    cx: &Cx,
    rule: &str,
    records: &[std::rc::Rc<Record>],
    function: &str,
    table: &[(&str, &[i32])],
) {
    let saw = answers(records, function);
    for (name, legal) in table {
        match saw.iter().find(|(n, _)| n == name) {
            Some((_, status)) => {
                cx.check(rule, legal.contains(status), || {
                    format!("{function} with {name} answered {status}, expected {legal:?}")
                });
            }
            None => cx.unknown(rule, &format!("the answer of {function} with {name}")),
        }
    }
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "abi/layout",
            2,
            &["PXG-ABI-001", "PXG-ABI-002"],
            "sizes are those of the recorded layout, and each member holds what belongs there",
        )
        .script("a request-headers: mode request stream")
        .run(|cx| async move {
            let x = cx.exchange(Request::post("/layout?x=1", b"0123456789").field("x-l", "v")).await?;
            let all = cx.running().journal.all();
            let Some(init) = all.iter().find(|r| r.host.is_some()) else {
                cx.unknown("PXG-ABI-001", "init");
                return Ok(());
            };
            if let Some(h) = &init.host {
                cx.check("PXG-ABI-002", h.size as usize >= size_of::<abi::Host>(), || format!("a table of {} bytes", h.size));
                cx.equal("PXG-ABI-001", "the host's major version", h.major, 1);
                cx.check("PXG-ABI-001", !h.name.is_empty() && h.name.len() < 200, || format!("the host's name: {:?}", h.name));
            }
            for r in all.iter().filter(|r| r.is("on_config_new", Edge::Enter)) {
                cx.check("PXG-ABI-002", r.size.is_some_and(|n| n as usize >= size_of::<abi::ConfigIn>()), || format!("pxg_config_in.size {:?}", r.size));
                let out = r.preset.clone().unwrap_or_default();
                cx.check("PXG-ABI-002", out.size as usize >= size_of::<abi::ConfigOut>(), || format!("pxg_config_out.size {}", out.size));
                cx.equal("PXG-ABI-001", "pxg_config_in.filter", r.filter.clone(), Some("probe".into()));
                cx.check("PXG-ABI-010", out.cap >= 4096 && out.misaligned == 0, || format!("scratch of a configuration: {out:?}"));
            }
            let Some(e) = x.records.events("a", Phase::REQUEST_HEADERS.0).into_iter().next() else {
                cx.unknown("PXG-ABI-001", "REQUEST_HEADERS");
                return Ok(());
            };
            let get = |n: &str| e.fields.iter().flatten().find(|f| f.0 == n).map(|f| f.1.clone());
            cx.equal("PXG-ABI-001", ":method in fields", get(":method"), Some("POST".into()));
            cx.equal("PXG-ABI-001", ":path in fields", get(":path"), Some("/layout?x=1".into()));
            cx.equal("PXG-ABI-001", "x-l in fields", get("x-l"), Some("v".into()));
            cx.check("PXG-ABI-002", e.size.is_some_and(|n| n as usize >= size_of::<abi::Event>()), || format!("pxg_event.size {:?}", e.size));
            let body = x.records.events("a", Phase::REQUEST_BODY.0);
            let n: u64 = body.iter().map(|r| r.view_len()).sum();
            cx.check("PXG-ABI-001", n >= 10, || format!("{n} bytes in the views of a body of 10"));
            Ok(())
        }),
        Case::new(
            "abi/edges",
            3,
            &["PXG-ABI-003", "PXG-ABI-004", "PXG-MEM-005"],
            "results and replies that end at the edge of a page are read to their size; nothing beside what is lent is written",
        )
        .script(
            "a request-headers: define 1 pxg_edges; pending; complete R @race
             a result R: set x-a 1; continue
             a response-headers: reply 418; field x-b 2; body at-the-edge; details d",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/")).await?;
            cx.equal("PXG-ABI-003", "x-a, completed at the edge of a page", x.up_get("x-a"), Some("1".into()));
            cx.equal("PXG-ABI-003", "a reply at the edge of a page", (x.reply.status, x.reply.text()), (418, "at-the-edge".into()));
            Ok(())
        }),
        Case::new(
            "abi/undefined-bits",
            2,
            &["PXG-ABI-005"],
            "an undefined bit at each place and a tail that is not zero are UNSUPPORTED, a short struct is ARG, and the token lives",
        )
        .script(
            "a request-headers: pending; complete rflags; complete reserved; complete op-flag; complete target; complete value; complete unsubscribe; complete mode; complete reply; complete tail; complete reply-tail; complete short; complete empty; complete reply-short; complete zeros
             a result rflags: continue; rflags 0x40000000
             a result reserved: continue; reserved 1
             a result op-flag: op 1 0x4000 0 0 x-a b; continue
             a result target: op 1 0 7 0 x-a b; continue
             a result value: set x-a b; value-flags 0x800; continue
             a result unsubscribe: continue; unsubscribe 0x8000000000000000
             a result mode: continue; mode request 9
             a result reply: reply 200; reply-flags 0x4000
             a result tail: continue; tail 16 1
             a result reply-tail: reply 200; reply-tail 16 1
             a result short: continue; size 64
             a result empty: continue; size 0
             a result reply-short: reply 200; reply-size 8
             a result zeros: set x-a zeros; continue; tail 16 0",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/")).await?;
            answered(&cx, "PXG-ABI-005", &x.records, "complete", &[
                ("rflags", &[UNSUPPORTED]), ("reserved", &[UNSUPPORTED, ARG]), ("op-flag", &[UNSUPPORTED]), ("target", &[UNSUPPORTED]),
                ("value", &[UNSUPPORTED]), ("unsubscribe", &[UNSUPPORTED]), ("mode", &[UNSUPPORTED]), ("reply", &[UNSUPPORTED]),
                ("tail", &[UNSUPPORTED]), ("reply-tail", &[UNSUPPORTED]), ("short", &[ARG]), ("empty", &[ARG]), ("reply-short", &[ARG]),
                ("zeros", &[OK]),
            ]);
            cx.equal("PXG-ABI-005", "x-a, of the result with a tail of zeros", x.up_get("x-a"), Some("zeros".into()));
            Ok(())
        }),
        Case::new(
            "abi/bad-calls",
            2,
            &["PXG-ABI-007"],
            "every host function with every bad argument: refused, and the process lives",
        )
        .script(
            "a request-headers: bad-calls; pending; complete R @race
             a result R: bad-calls; continue",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/")).await?;
            let accepted: Vec<_> = x.records.calls("bad-calls", Edge::Exit, "a").iter().filter_map(|r| r.arg).collect();
            cx.equal("PXG-ABI-007", "bad calls that were not refused, in the hook and on a thread", accepted, vec![0, 0]);
            cx.equal("PXG-ABI-007", "the status", x.reply.status, 200);
            Ok(())
        }),
        Case::new(
            "abi/bytes",
            2,
            &["PXG-ABI-008"],
            "empty is not absent, length 0 is empty wherever it points, and bytes that are not UTF-8 and NUL go through",
        )
        .script(
            "a request-headers: mode request stream; set x-back \\xe9\\xff; set x-nil -; set x-wild v; wild-empty; log 2 a\\0b\\xff
             c request-headers: mode request stream",
        )
        .run(|cx| async move {
            let body = b"a\0b\xff\xfec";
            let x = cx.exchange(Request::post("/", body).field("x-empty", "").field("x-latin", "\u{e9}\u{ff}")).await?;
            for place in ["a", "c"] {
                let head = x.records.events(place, Phase::REQUEST_HEADERS.0);
                let get = |n: &str| head.first().and_then(|e| e.fields.iter().flatten().find(|f| f.0 == n).map(|f| f.1.clone()));
                cx.equal("PXG-ABI-008", &format!("x-empty at {place}"), get("x-empty"), Some(String::new()));
                cx.equal("PXG-ABI-008", &format!("x-latin at {place}"), get("x-latin"), Some("\u{e9}\u{ff}".into()));
            }
            let seen: String = x.records.events("c", Phase::REQUEST_BODY.0).iter().filter_map(|r| r.body.clone()).collect();
            cx.equal("PXG-ABI-008", "the body at c", seen, body.iter().map(|b| char::from(*b)).collect());
            cx.equal("PXG-ABI-008", "x-back upstream", x.up_get("x-back"), Some("\u{e9}\u{ff}".into()));
            cx.equal("PXG-ABI-008", "x-nil upstream, set to the empty string", x.up_get("x-nil"), Some(String::new()));
            cx.equal("PXG-ABI-008", "x-wild upstream, of length 0 at address 1", x.up_get("x-wild"), Some(String::new()));
            cx.equal("PXG-ABI-008", "the body upstream", x.up.map(|u| u.body), Some(body.to_vec()));
            Ok(())
        }),
        Case::new(
            "abi/metadata-bytes",
            2,
            &["PXG-ABI-008"],
            "a metadata value with NUL and bytes that are not UTF-8 comes back as an attribute",
        )
        .script("a request-headers: meta k one\\0two\\xff")
        .needs(&[Feature::METADATA])
        .alone()
        .run(|cx| async move {
            let own = Own::start(&cx, &own::chain(&cx, &[
                ("a", "subscribe all\npend none\n"), ("b", "subscribe all\npend none\nattr metadata.a.k request-headers\n"),
            ])?).await?;
            let x = own.cx.exchange(Request::get("/")).await?;
            let seen = x.records.events("b", Phase::REQUEST_HEADERS.0).first().and_then(|r| r.attrs.clone());
            cx.equal("PXG-ABI-008", "metadata.a.k at b", seen, Some(vec![Some("one\0two\u{ff}".into())]));
            own.end("PXG-ABI-008").await
        }),
        Case::new(
            "abi/small-values",
            2,
            &["PXG-ABI-009"],
            "configurations and user values from 1 to 4095 come back unchanged, and so do those with every bit set",
        )
        .script(
            "a request-headers: user 1; pending; complete R @race
             a result R: continue
             a response-headers: user 4095
             b request-headers: user 0xffffffffffffffff
             c request-headers: user 2",
        )
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/")).await?;
            for (place, phase, user) in [
                ("a", Phase::RESPONSE_HEADERS, 1), ("a", Phase::LOG, 4095), ("b", Phase::RESPONSE_HEADERS, u64::MAX), ("c", Phase::RESPONSE_HEADERS, 2),
            ] {
                let saw: Vec<_> = x.records.events(place, phase.0).iter().filter_map(|r| r.user).collect();
                cx.equal("PXG-ABI-009", &format!("user at {place}"), saw, vec![user]);
            }
            let small = x.records.iter().filter_map(|r| r.config).all(|c| (1..=4095).contains(&c));
            cx.check("PXG-ABI-009", small, || "a configuration's value came back changed".into());
            Ok(())
        }),
        Case::new(
            "abi/zeros",
            2,
            &["PXG-ABI-011"],
            "a result and a reply of zeros let nothing through",
        )
        .script(
            "never request-headers: unset
             peer request-headers: reply 0
             headers request-headers: reply-zero
             a request-headers: pending; complete nothing; complete zero-reply; complete good
             a result nothing: unset
             a result zero-reply: reply-zero
             a result good: continue",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .run(|cx| async move {
            for route in ["/never", "/headers", "/peer"] {
                let x = cx.exchange(Request::get(route)).await?;
                cx.check("PXG-ABI-011", x.up.is_none() && (500..600).contains(&x.reply.status), || {
                    format!("zeros on {route}: status {}, upstream {}", x.reply.status, x.up.is_some())
                });
            }
            let x = cx.exchange(Request::get("/")).await?;
            answered(&cx, "PXG-ABI-011", &x.records, "complete", &[("nothing", &[ARG]), ("zero-reply", &[ARG]), ("good", &[OK])]);
            Ok(())
        }),
        Case::new(
            "abi/arrays",
            2,
            &["PXG-ABI-012"],
            "a count without an array, bytes at NULL and an absent string with bytes are ARG",
        )
        .script(
            "a request-headers: pending; complete ops; complete fields; complete value; complete error; complete absent; complete many; complete good
             a result ops: continue; null-ops 1
             a result fields: reply 200; null-reply-fields 2
             a result value: set x-a abc; null-value 3; continue
             a result error: error text; error-null 5
             a result absent: set x-a abc; value-flags 1; continue
             a result many: continue; null-ops 0xffffffffffffffff
             a result good: continue",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/")).await?;
            answered(&cx, "PXG-ABI-012", &x.records, "complete", &[
                ("ops", &[ARG]), ("fields", &[ARG]), ("value", &[ARG]), ("error", &[ARG]), ("absent", &[ARG]), ("many", &[ARG, LIMIT]), ("good", &[OK]),
            ]);
            Ok(())
        }),
        Case::new(
            "abi/unknown-status",
            1,
            &["PXG-ABI-013"],
            "a configuration answered with -1000 is refused as INTERNAL, one with 1000 is taken",
        )
        .script("a request-headers: set x-a 1")
        .alone()
        .run(|cx| async move {
            let setup = own::chain(&cx, &[("a", "refuse -1000 who\\sknows\n")])?;
            own::refused(&cx, "PXG-ABI-013", "the answer -1000", &setup, &["who knows", "INTERNAL"]).await?;
            let own = Own::start(&cx, &own::chain(&cx, &[("a", "subscribe all\npend none\nanswer 1000\n")])?).await?;
            let x = own.cx.exchange(Request::get("/")).await?;
            cx.equal("PXG-ABI-013", "x-a, of a configuration answered with 1000", x.up_get("x-a"), Some("1".into()));
            own.end("PXG-ABI-013").await
        }),
        Case::new(
            "abi/scratch",
            3,
            &["PXG-ABI-010", "PXG-MEM-010", "PXG-MEM-014"],
            "scratch_more: aligned, zeroed, 64 KiB in sum, NULL for 2^62 bytes and outside a hook",
        )
        .script(
            "a request-headers: scratch-more 1; scratch-more 16384; scratch-more 16384; scratch-more 16384; scratch-more 16000; scratch-more 4611686018427387904; pending; complete R @race
             a result R: scratch-more 16; continue
             a response-headers: ops-at more; set x-b 1; set x-c 2",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/")).await?;
            let calls: Vec<_> = x.records.iter().filter(|r| r.is("scratch_more", Edge::Exit)).cloned().collect();
            let got: Vec<_> = calls.iter().filter_map(|r| r.status).collect();
            cx.equal("PXG-MEM-014", "scratch_more: five pieces, 2^62 bytes, on a foreign thread, operations", got, vec![0, 0, 0, 0, 0, -8, -8, 0]);
            cx.check("PXG-ABI-010", calls.iter().all(|r| r.status != Some(0) || r.misaligned == Some(0)), || "scratch_more: not aligned to 16".into());
            cx.check("PXG-MEM-010", calls.iter().all(|r| r.dirty != Some(true)), || "scratch_more: not zeroed".into());
            cx.equal("PXG-ABI-010", "x-b and x-c, whose operations lay there", (x.reply.get("x-b"), x.reply.get("x-c")), (Some("1".into()), Some("2".into())));
            Ok(())
        }),
    ]
}
