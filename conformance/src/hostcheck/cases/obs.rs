//! Logs, the page, metrics.

use super::own::{self, Own};
use super::prelude::*;

const PLAIN: &str = "subscribe all\npend none\n";
const NOTFOUND: i32 = -8;
const LIMIT: i32 = -5;

/// Answers of a metrics' function, by what it was about.
fn answers(records: &[std::rc::Rc<Record>], function: &str) -> Vec<(String, i32, u64)> {
    records
        .iter()
        .filter(|r| r.is(function, Edge::Exit))
        .filter_map(|r| Some((r.text.clone()?, r.status?, r.arg?)))
        .collect()
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "obs/after-the-end",
            4,
            &["PXG-OBS-001"],
            "log, define and record work on a foreign thread after the stream has ended",
        )
        .script(
            "a request-headers: define 1 pxg_obs_one; complete R @end+5
             a result R: log 4 written-after-the-end; define 1 pxg_obs_late; record $pxg_obs_one 3; record $pxg_obs_late 4; continue",
        )
        .run(|cx| async move {
            let from = cx.running().host.output.len();
            cx.exchange(Request::get("/")).await?;
            cx.until("PXG-OBS-001", "the calls after the end", |r| r.iter().filter(|r| r.function == "record").count() >= 2).await;
            let records = cx.records();
            for (what, status, _) in answers(&records, "define").into_iter().chain(answers(&records, "record")) {
                cx.equal("PXG-OBS-001", &what, status, OK);
            }
            cx.wait("PXG-OBS-001", "the record that was logged after the end", || {
                cx.running().host.output.since(from).iter().any(|l| l.contains("written-after-the-end"))
            }).await;
            Ok(())
        }),
        Case::new(
            "obs/level",
            2,
            &["PXG-OBS-002"],
            "the page's level follows a change while traffic flows, and records below it are dropped",
        )
        .script(
            "a request-headers: log-level 4; log 2 below-the-level; log 4 above-the-level
             two request-headers: log-level 2; log 2 shown-again",
        )
        .alone()
        .run(|cx| async move {
            let Some((method, path)) = cx.shared().adapter.admin.clone().and_then(|a| a.log_level) else {
                return Err(crate::hostcheck::setup::NoOption("admin.log_level".into()).into());
            };
            let mut setup = own::chain(&cx, &[("a", PLAIN)])?;
            own::also(&cx, &mut setup, ("probe", &cx.shared().probe.clone()), "two", PLAIN);
            let own = Own::start(&cx, &setup).await?;
            for (level, route) in [("error", "/"), ("info", "/two")] {
                own.running.host.admin(&method, &path, level).await?;
                // The page follows soon, not at once.
                let until = std::time::Instant::now() + cx.shared().patience;
                let mut saw = Vec::new();
                while saw != [OK] && std::time::Instant::now() < until {
                    let x = own.cx.exchange(Request::get(route)).await?;
                    saw = x.records.iter().filter(|r| r.function == "log-level").filter_map(|r| r.status).collect();
                }
                if !cx.equal("PXG-OBS-002", &format!("whether the page says {level}"), saw, vec![OK]) {
                    return own.end("PXG-OBS-002").await;
                }
            }
            own.cx.wait("PXG-OBS-002", "records at the level", || own.output().contains("shown-again")).await;
            let text = own.output();
            cx.check("PXG-OBS-002", text.contains("above-the-level"), || "a record at the level is not in the log".into());
            cx.check("PXG-OBS-002", !text.contains("below-the-level"), || "a record below the level is in the log".into());
            own.end("PXG-OBS-002").await
        }),
        Case::new(
            "obs/clocks",
            2,
            &["PXG-OBS-002"],
            "the page's clocks, where the host keeps them, go on while there are streams, and not ahead of time",
        )
        .script("a request-headers: page-clocks")
        .run(|cx| async move {
            let until = std::time::Instant::now() + cx.shared().patience;
            let mut first = Vec::new();
            loop {
                let x = cx.exchange(Request::get("/")).await?;
                let now: Vec<u64> = x.records.iter().filter(|r| r.function == "page-clock").filter_map(|r| r.arg).collect();
                if now.iter().all(|n| *n == 0) {
                    cx.remark("the host keeps no clocks in its page");
                    cx.check("PXG-OBS-002", true, String::new);
                    return Ok(());
                }
                let ahead = x.records.iter().any(|r| r.text.as_deref() == Some("monotonic") && r.arg.is_some_and(|n| n > r.t));
                cx.check("PXG-OBS-002", !ahead, || format!("the page's monotonic clock is ahead: {now:?}"));
                if first.is_empty() {
                    first.clone_from(&now);
                }
                let moved = now.iter().zip(&first).all(|(n, f)| n > f);
                if moved || std::time::Instant::now() > until {
                    cx.check("PXG-OBS-002", moved, || format!("the page's clocks stand at {first:?}, later at {now:?}"));
                    return Ok(());
                }
            }
        }),
        Case::new(
            "obs/ids",
            2,
            &["PXG-OBS-003"],
            "an unknown or foreign id is NOTFOUND to record, skipped and counted in METRIC, and with MUST a failure",
        )
        .script(
            "a request-headers: define 1 pxg_obs_mine; record 0 1; record 4294967295 1; record 77777 1; metric 77777 1; metric $pxg_obs_mine 1; set x-a 1
             never request-headers: metric! 77777 1
             other request-headers: record 1 1; record 2 1; record 3 1; record 65537 1",
        )
        .alone()
        .run(|cx| async move {
            let mut setup = own::chain(&cx, &[("a", PLAIN)])?;
            own::also(&cx, &mut setup, ("probe", &cx.shared().probe.clone()), "never", PLAIN);
            let second = own::variant(&cx, "library=second")?;
            own::also(&cx, &mut setup, ("second", &second), "other", PLAIN);
            let own = Own::start(&cx, &setup).await?;
            let x = own.cx.exchange(Request::get("/")).await?;
            for (what, status, _) in answers(&x.records, "record") {
                cx.equal("PXG-OBS-003", &format!("record of the id {what}"), status, NOTFOUND);
            }
            cx.equal("PXG-OBS-003", "x-a beside an unknown id", x.up_get("x-a"), Some("1".into()));
            let m = own.metrics().await?;
            cx.equal("PXG-OBS-003", "operations skipped", m.count("pxg_guest_operations_skipped_total", &[("config", "a")]), 1.0);
            let y = own.cx.exchange(Request::get("/never")).await?;
            cx.check("PXG-OBS-003", (500..600).contains(&y.reply.status), || format!("METRIC with MUST and an unknown id: {}", y.reply.status));
            // The other library has defined nothing: no id of the first is its own.
            let mine: Vec<u64> = answers(&x.records, "define").iter().map(|a| a.2).collect();
            let z = own.cx.exchange(Request::get("/other")).await?;
            for (what, status, id) in answers(&z.records, "record") {
                cx.equal("PXG-OBS-003", &format!("record of {what} by another library ({mine:?} are the first's)"), (status, id), (NOTFOUND, id));
            }
            own.end("PXG-OBS-003").await
        }),
        Case::new(
            "obs/foreign-id",
            2,
            &["PXG-OBS-003"],
            "the very id that one library was given is NOTFOUND to another",
        )
        .script(
            "a request-headers: define 1 pxg_obs_owner; publish-metric pxg_obs_owner
             other request-headers: record @pxg_obs_owner 9",
        )
        .alone()
        .run(|cx| async move {
            let mut setup = own::chain(&cx, &[("a", PLAIN)])?;
            let second = own::variant(&cx, "library=second")?;
            own::also(&cx, &mut setup, ("second", &second), "other", PLAIN);
            let own = Own::start(&cx, &setup).await?;
            own.cx.exchange(Request::get("/")).await?;
            let x = own.cx.exchange(Request::get("/other")).await?;
            let saw: Vec<_> = answers(&x.records, "record").iter().map(|a| a.1).collect();
            cx.equal("PXG-OBS-003", "record of another library's id", saw, vec![NOTFOUND]);
            own.end("PXG-OBS-003").await
        }),
        Case::new(
            "obs/counters",
            2,
            &["PXG-OBS-004"],
            "calls, errors, pendings, cancels and skipped operations are counted with their labels",
        )
        .script(
            "a request-headers: op 60000 0 0 0 k v
             errs request-headers: error text
             pends request-headers: pending; complete R @race
             pends result R: continue
             waits request-headers: pending",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .alone()
        .run(|cx| async move {
            let mut setup = own::chain(&cx, &[("a", PLAIN)])?;
            let probe = cx.shared().probe.clone();
            own::also(&cx, &mut setup, ("probe", &probe), "errs", PLAIN);
            own::also(&cx, &mut setup, ("probe", &probe), "pends", "subscribe all\npend all\n");
            own::also(&cx, &mut setup, ("probe", &probe), "waits", "subscribe all\npend all\npend-ms 50\n");
            let own = Own::start(&cx, &setup).await?;
            for route in ["/", "/", "/", "/errs", "/errs", "/pends", "/waits"] {
                own.cx.exchange(Request::get(route)).await?;
            }
            let m = own.metrics().await?;
            let headers = ("phase", "request_headers");
            for (name, labels, expected) in [
                ("pxg_guest_calls_total", vec![("config", "a"), headers, ("guest", "pxg-probe"), ("filter", "probe")], 3.0),
                ("pxg_guest_calls_total", vec![("config", "a"), ("phase", "log")], 3.0),
                ("pxg_guest_calls_total", vec![("config", "errs"), headers], 2.0),
                ("pxg_guest_errors_total", vec![("config", "errs"), headers], 2.0),
                ("pxg_guest_errors_total", vec![("config", "a")], 0.0),
                ("pxg_guest_pending_total", vec![("config", "pends"), headers], 1.0),
                ("pxg_guest_pending", vec![("config", "pends")], 0.0),
                ("pxg_guest_cancels_total", vec![("config", "waits")], 1.0),
                ("pxg_guest_cancels_total", vec![("config", "pends")], 0.0),
                ("pxg_guest_operations_skipped_total", vec![("config", "a")], 3.0),
                ("pxg_guest_call_seconds_count", vec![("config", "a"), headers], 3.0),
            ] {
                cx.equal("PXG-OBS-004", &format!("{name}{labels:?}"), m.count(name, &labels), expected);
            }
            own.end("PXG-OBS-004").await
        }),
        Case::new(
            "obs/records",
            2,
            &["PXG-OBS-005", "PXG-SEC-006"],
            "a record is copied, escaped and cut with a mark; it cannot forge another",
        )
        .script(
            "a request-headers: log 4 first-half\\nforged-line\\x1b[31m\\x07\\xff\\xfe-escape-end
             b request-headers: log 4 %1048576:L; log 4 %4000:M
             c request-headers: log 4 after-the-long-one",
        )
        .run(|cx| async move {
            let from = cx.running().host.output.len();
            cx.exchange(Request::get("/")).await?;
            let lines = || cx.running().host.output.since(from);
            cx.wait("PXG-OBS-005", "the records in the host's log", || lines().iter().any(|l| l.contains("after-the-long-one"))).await;
            let all = lines();
            let forged = all.iter().find(|l| l.contains("forged-line"));
            cx.check("PXG-OBS-005", forged.is_some_and(|l| l.contains("first-half")), || format!("a line end in a record made a line of its own: {forged:?}"));
            let raw = forged.is_some_and(|l| l.chars().any(|c| c.is_control() || c == '\u{fffd}'));
            cx.check("PXG-OBS-005", !raw, || format!("control bytes or invalid UTF-8 reached the log: {forged:?}"));
            let long = all.iter().filter(|l| l.contains("LLLL")).map(String::len).max().unwrap_or(0);
            cx.check("PXG-OBS-005", (4096..900_000).contains(&long), || format!("a record of 1 MiB is a line of {long} bytes, expected a cut at 4096 or more"));
            let mark = all.iter().find(|l| l.contains("LLLL")).is_some_and(|l| l.trim_end_matches(|c: char| c != 'L').len() < l.len());
            cx.check("PXG-OBS-005", mark, || "the cut has no mark".into());
            let whole = all.iter().any(|l| l.contains(&"M".repeat(4000)));
            cx.check("PXG-OBS-005", whole, || "a record of 4000 bytes was cut".into());
            Ok(())
        }),
        Case::new(
            "obs/define",
            2,
            &["PXG-OBS-006"],
            "one definition has one id; a name of another kind or with other labels is ARG; over the cap it is LIMIT",
        )
        .script(
            "a request-headers: define 1 pxg_def_a; define 1 pxg_def_a; define 2 pxg_def_a; define 1 pxg_def_b l=1; define 1 pxg_def_b l=2; define 1 pxg_def_b l=1; define 1 pxg_def_b m=1; define 1 pxg_def_b l=1 m=2
             b request-headers: define 1 pxg-bad; define 1 0bad; define 1 pxg_def_c l=1 l=2; define 1 pxg_def_c a-b=1; define 1 -; define-many 1 pxg_def_many 1000000
             c request-headers: define 1 pxg_def_a; define 1 pxg_def_b l=2",
        )
        .alone()
        .run(|cx| async move {
            // A host of its own: the cap on series is used up at the end.
            let own = Own::start(&cx, &own::chain(&cx, &[("a", PLAIN), ("b", PLAIN), ("c", PLAIN)])?).await?;
            let x = own.cx.exchange(Request::get("/")).await?;
            let of = |place: &str| -> Vec<(i32, u64)> {
                x.records.calls("define", Edge::Exit, place).iter().filter_map(|r| Some((r.status?, r.arg?))).collect()
            };
            let (a, b, c) = (of("a"), of("b"), of("c"));
            let statuses: Vec<i32> = a.iter().map(|d| d.0).collect();
            cx.equal("PXG-OBS-006", "define of one name in several ways", statuses, vec![OK, OK, ARG, OK, OK, OK, ARG, ARG]);
            if a.len() == 8 && c.len() == 2 {
                let same = a[0].1 == a[1].1 && a[3].1 == a[5].1 && a[3].1 != a[4].1 && a[0].1 != a[3].1;
                cx.check("PXG-OBS-006", same && c[0] == a[0] && c[1] == a[4], || format!("ids {a:?}, and later {c:?}: one id for one definition"));
            }
            cx.equal("PXG-OBS-006", "define of bad names", b.iter().map(|d| d.0).collect::<Vec<_>>(), vec![ARG; 5]);
            let many: Vec<_> = x.records.iter().filter(|r| r.function == "define-many").filter_map(|r| Some((r.status?, r.arg?))).collect();
            cx.check("PXG-OBS-006", many.len() == 1 && many[0].0 == LIMIT && many[0].1 > 0, || {
                format!("a million label values were answered {many:?}, expected LIMIT at the cap")
            });
            own.end("PXG-OBS-006").await
        }),
    ]
}
