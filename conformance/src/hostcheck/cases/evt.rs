//! Events and their order.

use proxy_golang_abi::Phase;

use super::Case;
use crate::hostcheck::client::Request;
use crate::hostcheck::cx::Records as _;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "evt/exchange",
            2,
            &[
                "PXG-EVT-001",
                "PXG-EVT-006",
                "PXG-EVT-007",
                "PXG-EVT-009",
                "PXG-CHN-001",
            ],
            "a plain exchange through three places",
        )
        .script("* request-headers: continue")
        .run(|cx| async move {
            let x = cx.exchange(Request::get("/x")).await?;
            cx.equal("PXG-ACT-002", "the status", x.reply.status, 200);
            cx.equal("PXG-ACT-002", "the body", x.reply.text(), "hello".into());
            for place in ["a", "b", "c"] {
                for phase in [Phase::REQUEST_HEADERS, Phase::RESPONSE_HEADERS, Phase::LOG] {
                    let n = x.records.events(place, phase.0).len();
                    cx.equal(
                        "PXG-EVT-001",
                        &format!("events of phase {} at {place}", phase.0),
                        n,
                        1,
                    );
                }
            }
            Ok(())
        }),
    ]
}
