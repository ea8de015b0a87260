//! Operations: order, kinds, batches, where they are legal (the family MUT).

use super::abi::answered;
use super::own::{self, Own};
use super::prelude::*;

const LIMIT: i32 = -5;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "mut/order",
            2,
            &["PXG-MUT-001"],
            "operations are applied in their order, over three places",
        )
        .script(
            "a request-headers: set x-a 1; add x-a 2; delete x-b; set x-b 3; set x-c 4; delete x-c; add x-d 5; set x-d 6
             b request-headers: add x-a 3; delete x-d; add x-d 7; add x-d 8
             c response-headers: set x-r 1; add x-r 2
             a response-headers: add x-r 3",
        )
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/").field("x-b", "0").field("x-c", "0")).await?;
            for (name, value) in [("x-a", Some("1, 2, 3")), ("x-b", Some("3")), ("x-c", None), ("x-d", Some("7, 8"))] {
                cx.equal("PXG-MUT-001", &format!("{name} upstream"), x.up_get(name), value.map(str::to_string));
            }
            cx.equal("PXG-MUT-001", "x-r at the client", x.reply.get("x-r"), Some("1, 2, 3".into()));
            Ok(())
        }),
        Case::new(
            "mut/unknown-kind",
            2,
            &["PXG-MUT-002"],
            "an unknown kind is skipped and counted, with MUST it is a failure",
        )
        .script(
            "a request-headers: op 60000 0 0 0 key value; set x-a 1; op 60001 0 0 0 key value
             never request-headers: set x-a 1; op 60000 1 0 0 key value",
        )
        .alone()
        .run(|cx| async move {
            let before = own::metrics(&cx).await?;
            let x = cx.exchange(Request::get("/")).await?;
            cx.equal("PXG-MUT-002", "x-a, beside unknown kinds", x.up_get("x-a"), Some("1".into()));
            let after = own::metrics(&cx).await?;
            let n = |m: &own::Metrics| m.count("pxg_guest_operations_skipped_total", &[("config", "a")]);
            cx.equal("PXG-MUT-002", "operations counted as skipped", n(&after) - n(&before), 2.0);
            let x = cx.exchange(Request::get("/never")).await?;
            cx.check("PXG-MUT-002", x.up.is_none() && (500..600).contains(&x.reply.status), || {
                format!("an unknown kind with MUST: status {}", x.reply.status)
            });
            Ok(())
        }),
        Case::new(
            "mut/beside-actions",
            2,
            &["PXG-MUT-003"],
            "beside REPLY, RESET and ERROR metadata and metrics take effect, and nothing else; nothing else is judged",
        )
        .script(
            "reply request-headers: define 1 pxg_mut_three; reply 418; set x-a 1; set bad\\sname 1; route nowhere; meta k replied; metric $pxg_mut_three 5
             reset request-headers: define 1 pxg_mut_three; reset; set x-a 1; set bad\\sname 1; meta k reset; metric $pxg_mut_three 70
             error request-headers: define 1 pxg_mut_three; error text; set x-a 1; set bad\\sname 1; meta k failed; metric $pxg_mut_three 900",
        )
        .needs(&[Feature::METADATA])
        .alone()
        .run(|cx| async move {
            let mut setup = own::chain(&cx, &[("seen", &attrs()), ("reply", PLAIN), ("reset", PLAIN), ("error", PLAIN)])?;
            setup.routes.clear();
            for name in ["reply", "reset", "error"] {
                setup.routes.push(crate::hostcheck::setup::Route {
                    name: name.into(),
                    prefix: if name == "reply" { "/".into() } else { format!("/{name}") },
                    chain: vec![("seen".into(), None), (name.into(), None)],
                });
            }
            let own = Own::start(&cx, &setup).await?;
            let mut sum = 0.0;
            for (route, at, value, metric) in [("/", 0, "replied", 5.0), ("/reset", 1, "reset", 70.0), ("/error", 2, "failed", 900.0)] {
                let x = own.cx.exchange(Request::get(route)).await?;
                if route == "/" {
                    cx.equal("PXG-MUT-003", "the reply's status and x-a", (x.reply.status, x.reply.get("x-a")), (418, None));
                }
                let meta = x.records.events("seen", Phase::LOG.0).first().and_then(|r| r.attrs.clone()).and_then(|a| a[at].clone());
                cx.equal("PXG-MUT-003", &format!("metadata beside {value}"), meta, Some(value.to_string()));
                sum += metric;
                let saw = own.metrics().await?.like("pxg_mut_three");
                cx.equal("PXG-MUT-003", &format!("the metric beside {value}"), saw, Some(sum));
            }
            own.end("PXG-MUT-003").await
        }),
        Case::new(
            "mut/route",
            2,
            &["PXG-MUT-004"],
            "ROUTE goes to allowed clusters only, and is skipped and counted once routing is final",
        )
        .script(
            "good request-headers: pending; complete R
             good result R: route other; continue
             good response-headers: apply L; continue
             good result L: route other; continue
             foreign request-headers: route app
             nowhere request-headers: route nobody-has-this
             late response-headers: route other",
        )
        .needs(&[Feature::ROUTE, Feature::APPLY])
        .alone()
        .run(|cx| async move {
            let mut setup = own::chain(&cx, &[("good", "subscribe all\npend all\n")])?;
            let probe = cx.shared().probe.clone();
            for name in ["foreign", "nowhere", "late"] {
                own::also(&cx, &mut setup, ("probe", &probe), name, PLAIN);
            }
            setup.options.push(("cluster".into(), "other".into()));
            for name in ["good", "foreign", "nowhere", "late"] {
                own::option(&mut setup, name, "clusters", "other");
            }
            let own = Own::start(&cx, &setup).await?;
            let before = own.metrics().await?;
            let x = own.cx.exchange(Request::get("/")).await?;
            cx.equal("PXG-MUT-004", "the status of a stream routed to an allowed cluster", x.reply.status, 200);
            let skipped = |m: &own::Metrics| m.count("pxg_guest_operations_skipped_total", &[("config", "good")]);
            cx.equal("PXG-MUT-004", "late ROUTE by apply", x.records.statuses("apply", "good"), vec![OK]);
            cx.equal("PXG-MUT-004", "operations skipped", skipped(&own.metrics().await?) - skipped(&before), 1.0);
            for (route, what) in [("/foreign", "a cluster that is not allowed"), ("/nowhere", "no cluster"), ("/late", "ROUTE at RESPONSE_HEADERS")] {
                let x = own.cx.exchange(Request::get(route)).await?;
                cx.check("PXG-MUT-004", x.reply.status >= 500 || x.reply.status == 0, || format!("{what}: status {}", x.reply.status));
            }
            own.end("PXG-MUT-004").await
        }),
        Case::new(
            "mut/whole-batch",
            2,
            &["PXG-MUT-005"],
            "of a batch with one bad operation, at any position, nothing is visible",
        )
        .script(
            "a request-headers: pending; complete FIRST; complete MIDDLE; complete LAST; complete GOOD
             a result FIRST: set bad\\sname 1; set x-one 1; add x-two 2; delete x-kept; continue
             a result MIDDLE: set x-one 1; set bad\\sname 1; add x-two 2; delete x-kept; continue
             a result LAST: set x-one 1; add x-two 2; delete x-kept; set x-bad a\\rb; continue
             a result GOOD: continue
             open request-headers: set x-one 1; delete x-kept; set bad\\sname 1; meta k v
             c request-headers: continue",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/").field("x-kept", "k")).await?;
            answered(&cx, "PXG-MUT-005", &x.records, "complete", &[("FIRST", &[ARG]), ("MIDDLE", &[ARG]), ("LAST", &[ARG]), ("GOOD", &[OK])]);
            let y = cx.exchange(Request::get("/open").field("x-kept", "k")).await?;
            cx.equal("PXG-MUT-005", "the status with a bypassed guest", y.reply.status, 200);
            for (what, x) in [("refused by complete", &x), ("bypassed", &y)] {
                let saw = (x.up_get("x-one"), x.up_get("x-two"), x.up_get("x-kept"));
                cx.equal("PXG-MUT-005", &format!("x-one, x-two, x-kept upstream, {what}"), saw, (None, None, Some("k".into())));
            }
            Ok(())
        }),
        Case::new(
            "mut/places",
            2,
            &["PXG-MUT-006"],
            "operations where they are not legal, and members that they do not use, are ARG",
        )
        .script(
            "a request-headers: pending; apply aset; apply adel; apply apass; apply ainject; apply agood; complete pass; complete drop; complete inject; complete write; complete u0; complete val; complete key; complete target; complete metric; complete meta; complete release; complete good
             a result aset: set x-a 1; continue
             a result adel: delete-at 0; continue
             a result apass: pass 0; continue
             a result ainject: inject x; continue
             a result agood: meta k v; continue
             a result pass: pass 0; continue
             a result drop: drop 0; continue
             a result inject: inject x; continue
             a result write: write x; continue
             a result u0: op 1 0 0 5 x-a b; continue
             a result val: op 3 0 0 0 x-a b; continue
             a result key: op 5 0 0 0 x-a; continue
             a result target: op 16 0 1 0 k v; continue
             a result metric: op 17 0 1 1 k; continue
             a result meta: op 16 0 0 0 - v; continue
             a result release: op 18 0 0 7 recompute; continue
             a result good: continue",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS, Feature::APPLY])
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/")).await?;
            let bad: &[i32] = &[ARG];
            answered(&cx, "PXG-MUT-006", &x.records, "apply", &[("aset", bad), ("adel", bad), ("apass", bad), ("ainject", bad), ("agood", &[OK])]);
            answered(&cx, "PXG-MUT-006", &x.records, "complete", &[
                ("pass", bad), ("drop", bad), ("inject", bad), ("write", bad), ("u0", bad), ("val", bad), ("key", bad),
                ("target", &[ARG, UNSUPPORTED]), ("metric", bad), ("meta", bad), ("release", &[ARG, LIMIT]), ("good", &[OK]),
            ]);
            Ok(())
        }),
    ]
}

const PLAIN: &str = "subscribe all\npend none\n";

/// A configuration that sees what the others set.
fn attrs() -> String {
    format!(
        "{PLAIN}attr metadata.reply.k log\nattr metadata.reset.k log\nattr metadata.error.k log\n"
    )
}
