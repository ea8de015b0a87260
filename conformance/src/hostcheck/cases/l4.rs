//! Connections: a host of its own that passes bytes, and a probe whose script is chosen by no field.

use std::rc::Rc;

use anyhow::Result;

use super::own::{self, Own};
use super::prelude::*;
use crate::hostcheck::client::Connection;
use crate::hostcheck::setup::Setup;

const HEAD: &str = "subscribe all\npend all\n";
const GET: &[u8] = b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n";

/// A host for connections with one probe, which does `script` on each.
async fn start(cx: &Cx, script: &str) -> Result<Own> {
    Own::start(cx, &setup(cx, script)?).await
}

fn setup(cx: &Cx, script: &str) -> Result<Setup> {
    let mut setup = own::chain(cx, &[("a", HEAD)])?;
    let config = format!("record -\ninstance a\n{HEAD}\ncase *\n{script}\n");
    for i in &mut setup.instances {
        i.config = config.clone().into_bytes();
    }
    setup.options.push(("l4".into(), String::new()));
    Ok(setup)
}

/// What comes back for a request that goes through as bytes.
async fn exchange(own: &Own, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut c: Connection = own.cx.connect().await?;
    c.write(bytes).await;
    c.finish().await;
    rest(&mut c).await
}

/// What comes until the end of the connection.
async fn rest(c: &mut Connection) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let part = c.raw(1).await?;
        if part.is_empty() {
            return Ok(all);
        }
        all.extend(part);
    }
}

/// What the upstream sends behind its head, when the guest has seen that.
const SECOND: &str = "the second part";

/// An exchange in which the upstream's bytes come in two parts: the first one, and what the client got.
async fn in_two_parts(cx: &Cx, rule: &str, script: &str) -> Result<(String, String)> {
    let own = start(cx, script).await?;
    let first = format!(
        "HTTP/1.1 200 Whatever\r\ncontent-length: {}\r\n\r\n",
        SECOND.len()
    );
    cx.answer(
        Answer::status(200)
            .field("content-length", &SECOND.len().to_string())
            .head()
            .gate("second")
            .send(SECOND.as_bytes()),
    );
    let get = format!(
        "GET /x HTTP/1.1\r\nhost: x\r\nx-pxg-case: {}\r\n\r\n",
        cx.name()
    );
    let mut c: Connection = own.cx.connect().await?;
    c.write(get.as_bytes()).await;
    c.finish().await;
    let has_come = || {
        let seen = own.all();
        seen.iter()
            .any(|r| r.is("on_event", Edge::Exit) && r.phase == Some(Phase::L4_UPSTREAM.0))
    };
    own.cx
        .wait(rule, "the first part at the guest", has_come)
        .await;
    own.cx.open("second");
    let back = text(&rest(&mut c).await?);
    drop(c);
    own.end(rule).await?;
    Ok((first, back))
}

fn phases(own: &Own) -> Vec<u32> {
    own.all()
        .iter()
        .filter(|r: &&Rc<Record>| r.is("on_event", Edge::Enter))
        .filter_map(|r| r.phase)
        .collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "l4/connection",
            2,
            &["PXG-L4-003"],
            "L4_OPEN before any byte, L4_CLOSE once at the end",
        )
        .needs(&[Feature::L4])
        .script("a l4-open: continue")
        .alone()
        .run(|cx| async move {
            let own = start(
                &cx,
                "  l4-open: pending; complete R @30\n  result R: continue",
            )
            .await?;
            let back = text(&exchange(&own, GET).await?);
            cx.check("PXG-L4-003", back.starts_with("HTTP/1.1 200"), || {
                format!("the client got {back:?}")
            });
            own.cx
                .wait("PXG-L4-003", "L4_CLOSE", || {
                    phases(&own).contains(&Phase::L4_CLOSE.0)
                })
                .await;
            let seen = phases(&own);
            cx.equal(
                "PXG-L4-003",
                "the first event",
                seen.first().copied(),
                Some(Phase::L4_OPEN.0),
            );
            cx.equal(
                "PXG-L4-003",
                "L4_CLOSE",
                seen.iter().filter(|p| **p == Phase::L4_CLOSE.0).count(),
                1,
            );
            cx.equal(
                "PXG-L4-003",
                "the last event",
                seen.last().copied(),
                Some(Phase::L4_CLOSE.0),
            );
            own.end("PXG-L4-003").await
        }),
        Case::new(
            "l4/refused",
            2,
            &["PXG-L4-003"],
            "a connection that is reset at L4_OPEN never reaches the upstream",
        )
        .needs(&[Feature::L4])
        .script("a l4-open: reset")
        .alone()
        .run(|cx| async move {
            let own = start(&cx, "  l4-open: pending; complete R @30\n  result R: reset").await?;
            let before = own.cx.shared().upstream.seen("").len();
            let back = exchange(&own, GET).await.unwrap_or_default();
            cx.equal("PXG-L4-003", "bytes at the client", back.len(), 0);
            cx.equal(
                "PXG-L4-003",
                "requests upstream",
                own.cx.shared().upstream.seen("").len(),
                before,
            );
            own.end("PXG-L4-003").await
        }),
        Case::new(
            "l4/operations",
            2,
            &["PXG-L4-001", "PXG-L4-002"],
            "PASS, DROP and INJECT on what comes from the upstream, with credit beyond the view",
        )
        .needs(&[Feature::L4])
        .script("a l4-upstream: continue")
        .alone()
        .run(|cx| async move {
            let script = "  l4-upstream#1: inject <; pass 10; drop 100000";
            let (first, back) = in_two_parts(&cx, "PXG-L4-001", script).await?;
            cx.equal(
                "PXG-L4-001",
                "the bytes at the client",
                back,
                format!("<{}", &first[..10]),
            );
            Ok(())
        }),
        Case::new(
            "l4/injection",
            2,
            &["PXG-L4-002"],
            "INJECT behind a credit keeps its place, and goes out with the half-close",
        )
        .needs(&[Feature::L4])
        .script("a l4-upstream: continue")
        .alone()
        .run(|cx| async move {
            let script = "  l4-upstream#1: pass 100000; inject !";
            let (first, back) = in_two_parts(&cx, "PXG-L4-002", script).await?;
            cx.equal(
                "PXG-L4-002",
                "the bytes at the client",
                back,
                format!("{first}{SECOND}!"),
            );
            Ok(())
        }),
        Case::new(
            "l4/injection-in-the-credit",
            2,
            &["PXG-L4-002", "PXG-L4-001"],
            "INJECT behind a credit leaves when the credit is used up, before what follows",
        )
        .needs(&[Feature::L4])
        .script("a l4-upstream: continue")
        .alone()
        .run(|cx| async move {
            // The credit ends in the second part.
            let script = "  l4-upstream#1: pass all+4; inject !";
            let (first, back) = in_two_parts(&cx, "PXG-L4-002", script).await?;
            cx.equal(
                "PXG-L4-002",
                "the bytes at the client",
                back,
                format!("{first}{}!{}", &SECOND[..4], &SECOND[4..]),
            );
            Ok(())
        }),
        void_credit(),
        route_at_open(),
    ]
}

/// The credit outlives the upstream's bytes, which come in two parts.
fn void_credit() -> Case {
    Case::new(
        "l4/void-credit",
        2,
        &["PXG-L4-002"],
        "INJECT behind credit that the end leaves void goes out before the half-close, behind all that came",
    )
    .needs(&[Feature::L4])
    .script("a l4-upstream: continue")
    .alone()
    .run(|cx| async move {
        let script = "  l4-upstream#1: pass 100000; inject <one>; drop 100000; inject <two>";
        let own = start(&cx, script).await?;
        let answer = Answer::status(200).head().send(b"first").gate("rest");
        own.cx.answer(answer.send(b"later\n").then(Step::Close));
        let mut c: Connection = own.cx.connect().await?;
        c.write(&Request::get("/x").head(own.cx.name())).await;
        let mut back = c.raw(12).await?;
        own.cx.open("rest");
        c.finish().await;
        loop {
            let part = c.raw(1).await?;
            if part.is_empty() {
                break;
            }
            back.extend(part);
        }
        let back = text(&back);
        cx.check("PXG-L4-002", back.ends_with("later\n<one><two>"), || {
            format!("the client got {back:?}")
        });
        own.end("PXG-L4-002").await
    })
}

fn route_at_open() -> Case {
    Case::new(
        "l4/route",
        2,
        &["PXG-MUT-006", "PXG-MUT-004"],
        "ROUTE is legal at L4_OPEN, and only there",
    )
    .needs(&[Feature::L4, Feature::ROUTE])
    .script("a l4-open: route other")
    .alone()
    .run(|cx| async move {
        for (script, works) in [
            ("  l4-open: route other; meta k v", true),
            ("  l4-open: recompute", false),
            ("  l4-downstream#1: route other", false),
        ] {
            let mut setup = setup(&cx, script)?;
            setup.options.push(("cluster".into(), "other".into()));
            own::option(&mut setup, "a", "clusters", "other");
            let own = Own::start(&cx, &setup).await?;
            let back = text(&exchange(&own, GET).await.unwrap_or_default());
            cx.equal(
                "PXG-MUT-006",
                &format!("an answer, after{script}"),
                back.starts_with("HTTP/1.1 200"),
                works,
            );
            own.end("PXG-MUT-006").await?;
        }
        Ok(())
    })
}
