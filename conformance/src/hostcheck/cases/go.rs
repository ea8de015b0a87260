//! Guests with a runtime of their own: the probe's twin in Go.

use super::prelude::*;
use crate::hostcheck::client::Reply;
use crate::hostcheck::setup::{Instance, NoOption, Route, Setup};

/// One exchange with the twin.
async fn ask(cx: &Cx, r: Request) -> anyhow::Result<Reply> {
    let mut c = cx.connect().await?;
    let method = r.method.clone();
    c.send(&r, cx.name()).await;
    c.response(&method).await
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "go/probe",
            4,
            &["PXG-ABI-007", "PXG-RT-001", "PXG-RT-002", "PXG-ASY-004", "PXG-MEM-003", "PXG-LOAD-005"],
            "a Go runtime in the host: operations, goroutines, whole bodies, panics, collections, clients that go away",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS, Feature::PEND_REQUEST_BODY, Feature::BODY_WHOLE_REQUEST])
        .alone()
        .go()
        .run(|cx| async move {
            let Some(library) = cx.shared().workshop.go_probe()? else {
                return Err(NoOption("go".into()).into());
            };
            let setup = Setup {
                guests: vec![("twin".into(), library)],
                instances: vec![Instance {
                    name: "twin".into(),
                    filter: "go-probe".into(),
                    guest: "twin".into(),
                    config: Vec::new(),
                    options: Vec::new(),
                }],
                routes: vec![Route {
                    name: "root".into(),
                    prefix: "/".into(),
                    chain: vec![("twin".into(), None)],
                }],
                workers: 2,
                options: Vec::new(),
            };
            let running = match cx.start(&setup).await? {
                Ok(r) => r,
                Err(e) => {
                    cx.finding("PXG-ABI-007", "the host does not take a guest in Go".into(), e.output);
                    return Ok(());
                }
            };
            let own = cx.on(running.clone());
            let went_well = exchanges(&own).await;
            let alive = running.host.ended().is_none();
            own.check("PXG-RT-002", alive, || "the host ended".into());
            if alive {
                running.host.stop()?;
                let patience = cx.shared().patience;
                let ended = running.host.wait(patience * 2).await;
                own.check("PXG-LOAD-005", ended.is_some_and(|s| s.success()), || {
                    format!("the host's end with a Go guest in it: {ended:?}")
                });
            }
            own.leave_open();
            cx.take(&own);
            cx.leave_open();
            went_well
        }),
    ]
}

async fn exchanges(cx: &Cx) -> anyhow::Result<()> {
    let up = |name: &str| cx.seen().last().and_then(|s| s.get(name));
    let script = |s: &str| Request::get("/x").field("x-pxg-go", s);

    let r = ask(
        cx,
        script("set x-a 1; add x-b 2; add x-b 3; delete x-gone").field("x-gone", "1"),
    )
    .await?;
    cx.equal("PXG-ACT-002", "the status", r.status, 200);
    cx.equal("PXG-HDR-003", "x-a upstream", up("x-a"), Some("1".into()));
    cx.equal(
        "PXG-HDR-003",
        "x-b upstream",
        up("x-b"),
        Some("2, 3".into()),
    );
    cx.equal("PXG-HDR-003", "x-gone upstream", up("x-gone"), None);
    cx.check(
        "PXG-ACT-002",
        r.get("x-go-response").is_some_and(|v| v.starts_with("go1")),
        || format!("x-go-response is {:?}", r.get("x-go-response")),
    );

    for i in 0..20 {
        let r = ask(cx, script(&format!("pend {}; gc; set x-late {i}", i % 3))).await?;
        cx.equal("PXG-ASY-004", "the status", r.status, 200);
        cx.equal(
            "PXG-ASY-004",
            "x-late upstream",
            up("x-late"),
            Some(i.to_string()),
        );
    }
    let r = ask(cx, script("pend 2; reply 403 denied by a goroutine")).await?;
    cx.equal("PXG-ASY-004", "the status", r.status, 403);
    cx.equal(
        "PXG-MEM-005",
        "the body",
        r.text(),
        "denied by a goroutine".into(),
    );
    let r = ask(cx, script("reply 418 at once")).await?;
    cx.equal("PXG-RPL-001", "the status", r.status, 418);
    cx.equal("PXG-MEM-003", "the body", r.text(), "at once".into());

    let body = bytes(100_000);
    ask(
        cx,
        Request::post("/x", &body).field("x-pxg-go-body", "upper"),
    )
    .await?;
    let seen = cx.seen().last().map(|s| s.body.clone()).unwrap_or_default();
    cx.check("PXG-BODY-002", seen == body.to_ascii_uppercase(), || {
        "another body upstream".into()
    });

    for fault in ["panic", "pend 1; panic", "error bad"] {
        let r = ask(cx, script(fault)).await?;
        cx.equal(
            "PXG-ABI-007",
            &format!("the status after {fault:?}"),
            r.status,
            500,
        );
    }
    // Clients that go away while goroutines work for them.
    for _ in 0..20 {
        let mut c = cx.connect().await?;
        c.send(&script("pend 0; never"), cx.name()).await;
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        c.reset();
    }
    let until = std::time::Instant::now() + cx.shared().patience;
    // Each process of the host counts its own.
    let mut by_process = std::collections::BTreeMap::<_, u32>::new();
    let mut gone = 0;
    while gone < 20 && std::time::Instant::now() < until {
        ask(cx, script("set x-a 1")).await?;
        let here = up("x-go-gone").and_then(|n| n.parse().ok()).unwrap_or(0);
        by_process.insert(up("x-go-process"), here);
        gone = by_process.values().sum();
    }
    cx.equal(
        "PXG-ASY-008",
        "goroutines that were told that their client is gone",
        gone,
        20,
    );
    Ok(())
}
