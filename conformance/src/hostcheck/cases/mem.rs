//! Memory: views, what guests lend, scratch, buffers that change hands.

use std::collections::BTreeMap;

use super::abi::answered;
use super::own::{self, Own};
use super::prelude::*;

/// How often each owned buffer that the case handed over was released.
fn releases(cx: &Cx) -> BTreeMap<(u32, u64), usize> {
    let records = cx.records();
    let gives = |r: &Record| {
        (r.function == "on_event" && r.edge == Edge::Exit)
            || (matches!(r.function.as_str(), "complete" | "apply") && r.edge == Edge::Enter)
    };
    let mut out: BTreeMap<(u32, u64), usize> = records
        .iter()
        .filter(|r| gives(r))
        .flat_map(|r| {
            r.result
                .iter()
                .flat_map(|a| a.owned.clone())
                .map(|id| (r.pid, id))
                .collect::<Vec<_>>()
        })
        .map(|id| (id, 0))
        .collect();
    for r in cx
        .running()
        .journal
        .all()
        .iter()
        .filter(|r| r.function == "release")
    {
        if let Some(n) = r.owned.and_then(|id| out.get_mut(&(r.pid, id))) {
            *n += 1;
        }
    }
    out
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "mem/views",
            3,
            &["PXG-MEM-001"],
            "views stay as they are while a hook takes its time and bytes go on arriving",
        )
        .script(
            "a request-headers: mode request stream; sleep 3
             a request-body: sleep 5
             b request-headers: mode request whole; sleep 2
             b request-body: sleep 5
             b response-headers: mode response stream; sleep 2
             b response-body: sleep 3
             b log: sleep 3",
        )
        .run(|cx| async move {
            cx.answer(Answer::status(200).chunks(&[&bytes(3000), b"2", &bytes(70_000), b"4"]));
            let x = cx.exchange(Request::chunks("/", &[&bytes(5000), b"b", &bytes(90_000), b"d"])).await?;
            // The history checker compares the sums of each event's entry and exit.
            let n = x.records.iter().filter(|r| r.is("on_event", Edge::Exit) && r.sum.is_some()).count();
            cx.check("PXG-MEM-001", n >= 8, || format!("{n} events with sums"));
            cx.equal("PXG-MEM-001", "bytes at the client", x.reply.body.len(), 73_002);
            Ok(())
        }),
        Case::new(
            "mem/borrowed",
            3,
            &["PXG-MEM-003", "PXG-MEM-008"],
            "what a result lent is copied before the next hook, which overwrites it, and stays the guest's",
        )
        .script(
            "* request-headers: ops-at own; memory borrowed; set x-shared %200:s; add x-all %50:v
             a request-headers: ops-at own; set x-a %3000:a
             b request-headers: ops-at own; set x-b %3000:b
             c request-headers: ops-at own; set x-c %3000:c; set x-shared %64:c
             * response-headers: ops-at own; set x-r %100:r
             never request-headers: reply 200; field x-f %500:f; body %2000:p; details %100:d",
        )
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/")).await?;
            for (name, byte) in [("x-a", "a"), ("x-b", "b"), ("x-c", "c")] {
                cx.equal("PXG-MEM-003", &format!("{name} upstream"), x.up_get(name), Some(byte.repeat(3000)));
            }
            cx.equal("PXG-MEM-003", "x-shared upstream", x.up_get("x-shared"), Some("c".repeat(64)));
            cx.equal("PXG-MEM-003", "x-r at the client", x.reply.get("x-r"), Some("r".repeat(100)));
            let y = cx.exchange(Request::get("/never")).await?;
            cx.equal("PXG-MEM-003", "x-f of a reply", y.reply.get("x-f"), Some("f".repeat(500)));
            cx.equal("PXG-MEM-003", "the body of a reply", y.reply.text(), "p".repeat(2000));
            Ok(())
        }),
        Case::new(
            "mem/copied",
            3,
            &["PXG-MEM-005", "PXG-MEM-008"],
            "complete and apply have copied what they were given when they return: it becomes inaccessible, and is nobody else's",
        )
        .script(
            "a request-headers: pending; complete R @race
             a result R: set x-a %5000:a; meta k %1000:m; continue
             b request-headers: apply M; pending; complete Q @race
             b result M: meta n %1000:n; continue
             b result Q: set x-b %100:b; continue
             c request-headers: pending; complete P @20
             c result P: reply 200; field x-f %300:f; body %4000:p; details %50:d",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS, Feature::APPLY, Feature::METADATA])
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/")).await?;
            let c = x.records.events("c", Phase::REQUEST_HEADERS.0);
            let at_c = |n: &str| c.first().and_then(|e| e.fields.iter().flatten().find(|f| f.0 == n).map(|f| f.1.clone()));
            cx.equal("PXG-MEM-005", "x-a at c", at_c("x-a"), Some("a".repeat(5000)));
            cx.equal("PXG-MEM-005", "x-b at c", at_c("x-b"), Some("b".repeat(100)));
            cx.equal("PXG-MEM-005", "x-f of the reply", x.reply.get("x-f"), Some("f".repeat(300)));
            cx.equal("PXG-MEM-005", "the body of the reply", x.reply.text(), "p".repeat(4000));
            Ok(())
        }),
        Case::new(
            "mem/released",
            3,
            &["PXG-MEM-006", "PXG-MEM-008"],
            "an owned buffer is released once: applied, skipped, beside a reply, refused, discarded, or too late",
        )
        .script(
            "a request-headers: pending; complete REFUSED; complete WRONG; complete TAKEN; complete LATE; complete END @end; complete AFTER @end+10
             a result REFUSED: memory owned; set x-a 1; set bad\\sname 2; continue
             a result WRONG: memory owned; set x-a 3; pending
             a result TAKEN: memory owned; set x-a 4; continue
             a result LATE: memory owned; set x-a 5; continue
             a result END: memory owned; set x-a 6; continue
             a result AFTER: memory owned; reply 200; body 7; body 8
             b request-headers: memory owned; op 60000 0 0 0 k v; set x-c 9; mode request stream
             b request-body: memory owned; set x-late 10
             b response-headers: memory owned; set x-d 11; reply 200; body 12; body 13
             never request-headers: memory owned; set x-e 14; error text
             headers request-headers: memory owned; set x-e 15; set bad\\sname 16
             brief request-headers: pending; complete GOOD @200
             brief result GOOD: memory owned; set x-e 17; continue",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .run(|cx| async move {
            cx.exchange(Request::post("/", b"body")).await?;
            for route in ["/never", "/headers"] {
                cx.exchange(Request::get(route)).await?;
            }
            // The client goes away while it pends.
            let mut c = cx.connect().await?;
            c.send(&Request::get("/brief"), cx.name()).await;
            let all_called = |r: &[std::rc::Rc<Record>]| {
                r.iter().any(|r| r.function == "complete" && r.edge == Edge::Exit && r.instance.as_deref() == Some("brief"))
            };
            cx.until("PXG-MEM-006", "the event of a stream that is abandoned", |r| {
                r.iter().any(|r| r.is("on_event", Edge::Exit) && r.instance.as_deref() == Some("brief"))
            }).await;
            c.reset();
            cx.until("PXG-MEM-006", "the completion after the stream is gone", all_called).await;
            cx.until("PXG-MEM-006", "the completion after the end", |r| r.statuses("complete", "a").len() >= 6).await;
            cx.wait("PXG-MEM-006", "the release of each buffer", || releases(&cx).values().all(|n| *n >= 1)).await;
            cx.settle().await?;
            let of = releases(&cx);
            cx.check("PXG-MEM-006", of.len() >= 15, || format!("{} buffers were handed over, expected at least 15", of.len()));
            for ((_, id), n) in of {
                cx.equal("PXG-MEM-006", &format!("releases of the buffer {id}"), n, 1);
            }
            Ok(())
        }),
        Case::new(
            "mem/scratch",
            3,
            &["PXG-MEM-010", "PXG-MEM-013"],
            "32 operations and 4096 bytes are lent to each call, and hold nothing foreign when they come again",
        )
        .script(
            "* request-headers: fill-scratch; memory scratch; set x-s %120:s times=32
             * response-headers: fill-scratch; memory scratch; add x-t %60:t times=32
             b log: fill-scratch",
        )
        .run(|cx| async move {
            for _ in 0..3 {
                let x = cx.exchange(Request::get("/")).await?;
                cx.equal("PXG-MEM-010", "x-s upstream", x.up_get("x-s"), Some("s".repeat(120)));
                cx.equal("PXG-MEM-010", "fields x-t at the client", x.reply.head.all("x-t").len(), 96);
            }
            Ok(())
        }),
        Case::new(
            "mem/lent-bounds",
            3,
            &["PXG-MEM-012"],
            "a pointer that begins in the lent region and ends behind it is a failure; one that ends at its end is not",
        )
        .script(
            "a request-headers: fill-scratch; set x-a v; past-scratch 0
             never request-headers: fill-scratch; set x-a v; past-scratch 1
             headers request-headers: fill-scratch; set x-a v; past-scratch 60
             late request-headers: continue
             peer request-headers: fill-scratch; set x-a v; past-scratch 100000",
        )
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/")).await?;
            cx.equal("PXG-MEM-012", "x-a of the last four bytes", x.up_get("x-a"), Some("ZZZZ".into()));
            for (route, n) in [("/never", 1), ("/headers", 60), ("/peer", 100_000)] {
                let x = cx.exchange(Request::get(route)).await?;
                cx.check("PXG-MEM-012", x.up.is_none() && (500..600).contains(&x.reply.status), || {
                    format!("a value that ends {n} bytes behind the scratch: status {}", x.reply.status)
                });
            }
            Ok(())
        }),
        Case::new(
            "mem/after-pending",
            3,
            &["PXG-MEM-013"],
            "what a PENDING guest left in scratch has no effect, and pieces of scratch_more are memory of their own",
        )
        .script(
            "a request-headers: fill-scratch; scratch-more 4096; scratch-more 4096; pending; complete R @race
             a result R: set x-a 1; continue",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/").field("x-pxg-none", "stays")).await?;
            cx.equal("PXG-MEM-013", "x-a", x.up_get("x-a"), Some("1".into()));
            cx.equal("PXG-MEM-013", "a field that operations left in scratch would delete", x.up_get("x-pxg-none"), Some("stays".into()));
            // The probe fills what it gets: a piece that comes twice is not zeroed the second time.
            let dirty = x.records.iter().any(|r| r.function == "scratch_more" && r.dirty == Some(true));
            cx.check("PXG-MEM-013", !dirty, || "scratch_more answered memory that this call had before".into());
            Ok(())
        }),
        Case::new(
            "mem/config-scratch",
            2,
            &["PXG-MEM-014", "PXG-MEM-010", "PXG-ABI-010"],
            "on_config_new gets 64 KiB by scratch_more, aligned and zeroed",
        )
        .alone()
        .run(|cx| async move {
            let own = Own::start(&cx, &own::chain(&cx, &[("a", "subscribe all\npend none\nscratch 65536\n")])?).await?;
            own.cx.exchange(Request::get("/")).await?;
            let all = own.all();
            for r in all.iter().filter(|r| r.function == "note") {
                cx.finding(r.rule.as_deref().unwrap_or_default(), r.text.clone().unwrap_or_default(), Vec::new());
            }
            cx.check("PXG-MEM-014", all.iter().any(|r| r.is("on_config_new", Edge::Exit)), || "no configuration was made".into());
            own.end("PXG-MEM-014").await
        }),
        Case::new(
            "mem/refused-keeps-nothing",
            3,
            &["PXG-MEM-005", "PXG-MEM-012"],
            "an operation whose bytes are not there is refused by complete, and nothing of it is kept",
        )
        .script(
            "a request-headers: pending; complete NULL; complete GOOD
             a result NULL: set x-a v; null-value 40; continue
             a result GOOD: set x-b 1; continue",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/")).await?;
            answered(&cx, "PXG-MEM-005", &x.records, "complete", &[("NULL", &[ARG]), ("GOOD", &[OK])]);
            cx.equal("PXG-MEM-005", "x-a and x-b upstream", (x.up_get("x-a"), x.up_get("x-b")), (None, Some("1".into())));
            Ok(())
        }),
    ]
}
