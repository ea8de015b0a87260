//! Workers and loop iterations. What holds of every hook of a run is in `history/run.rs`.

use super::prelude::*;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "thr/batch-end",
            4,
            &["PXG-THR-004"],
            "on_batch_end follows each PENDING, on its thread",
        )
        .needs(&[Feature::BATCH_END, Feature::PEND_REQUEST_HEADERS])
        .script(
            "b request-headers: pending; complete R @gate:go
             b result R: continue",
        )
        .run(|cx| async move {
            let mut all = Vec::new();
            for n in 1..=6 {
                let mut c = cx.connect().await?;
                c.send(&Request::get("/x"), cx.name()).await;
                all.push(c);
                cx.until("PXG-THR-004", "a PENDING", |r| {
                    r.calls("on_event", Edge::Exit, "b").len() == n
                })
                .await;
                let exits = cx.records().calls("on_event", Edge::Exit, "b");
                let Some(pending) = exits.last() else {
                    continue;
                };
                let ended = cx
                    .until("PXG-THR-004", "on_batch_end on its thread", |_| {
                        cx.running().journal.all().iter().any(|r| {
                            r.is("on_batch_end", Edge::Exit)
                                && (r.pid, r.tid) == (pending.pid, pending.tid)
                                && r.seq > pending.seq
                        })
                    })
                    .await;
                if !ended {
                    break;
                }
            }
            cx.open("go");
            for mut c in all {
                let status = c.response("GET").await?.status;
                cx.equal("PXG-THR-004", "the status", status, 200);
            }
            Ok(())
        }),
        Case::new(
            "thr/workers",
            2,
            &["PXG-THR-001", "PXG-THR-003"],
            "each hook runs on the worker that it names",
        )
        .needs(&[Feature::BODY_STREAM_REQUEST])
        .script("* request-headers: mode request stream")
        .run(|cx| async move {
            for _ in 0..8 {
                let x = cx.exchange(Request::post("/x", b"body")).await?;
                cx.equal("PXG-THR-001", "the status", x.reply.status, 200);
            }
            Ok(())
        }),
    ]
}
