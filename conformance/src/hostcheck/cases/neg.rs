//! Negotiation: features, absent entries, phases, extensions.

use super::own::{self, Own};
use super::prelude::*;
use crate::hostcheck::cx::has;

fn name_of(number: u32) -> Option<&'static str> {
    Feature::ALL
        .iter()
        .find(|(f, _)| f.0 == number)
        .map(|(_, n)| *n)
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "neg/table",
            2,
            &["PXG-NEG-001", "PXG-NEG-004"],
            "the host's table is complete at init and the same in every hook",
        )
        .script("* request-headers: continue")
        .run(|cx| async move {
            cx.exchange(Request::post("/", b"x")).await?;
            let all = cx.running().journal.all();
            let tables: Vec<_> = all.iter().filter_map(|r| r.host.clone()).collect();
            cx.check("PXG-NEG-001", !tables.is_empty(), || "no table was seen".into());
            for h in tables {
                let [complete, apply, wake, _, scratch, _, _] = h.entries;
                let pend = h.features[0] & 0xff != 0;
                cx.equal("PXG-NEG-004", "complete is there, if a PEND feature is", complete || !pend, true);
                cx.equal("PXG-NEG-004", "apply and wake are there, if APPLY is", (apply && wake) || !has(&h.features, Feature::APPLY), true);
                cx.equal("PXG-NEG-004", "scratch_more is there", scratch, true);
            }
            // The probe compares the table with what it was in each hook, and tells.
            let changed: Vec<_> = all.iter().filter(|r| r.rule.as_deref() == Some("PXG-NEG-001")).filter_map(|r| r.text.clone()).collect();
            cx.equal("PXG-NEG-001", "changes of the table", changed, Vec::new());
            Ok(())
        }),
        Case::new(
            "neg/required",
            1,
            &["PXG-NEG-003"],
            "a guest that requires a feature which the host lacks is refused, and so is a configuration; both name it",
        )
        .alone()
        .run(|cx| async move {
            let features = cx.shared().features.get();
            let lacks = (0..64).find(|n| !has(&features, Feature(*n)) && name_of(*n).is_some()).unwrap_or(63);
            let library = own::variant(&cx, &format!("required={lacks}"))?;
            let setup = own::chain_of(&cx, &library, &[("a", "subscribe all\npend none\n")])?;
            let name = name_of(lacks).map_or_else(|| lacks.to_string(), str::to_string);
            own::refused(&cx, "PXG-NEG-003", &format!("a guest that requires {name}"), &setup, &[&name]).await?;
            // A feature of the table that a plain configuration does not get.
            let all = cx.running().journal.all();
            let of = all.iter().find(|r| r.is("on_config_new", Edge::Enter) && r.instance.as_deref() == Some("a")).and_then(|r| r.features);
            if let Some(own) = of
                && let Some(n) = (0..64).find(|n| has(&features, Feature(*n)) && !has(&own, Feature(*n)))
            {
                let library = own::variant(&cx, &format!("required={n}"))?;
                let setup = own::chain_of(&cx, &library, &[("a", "subscribe all\npend none\n")])?;
                let name = name_of(n).unwrap_or("?");
                own::refused(&cx, "PXG-NEG-003", &format!("a configuration without {name}"), &setup, &[name]).await?;
            } else {
                cx.remark("each configuration has all features of the table");
            }
            Ok(())
        }),
        Case::new(
            "neg/optional-hooks",
            2,
            &["PXG-NEG-004"],
            "a guest without its optional hooks works",
        )
        .script(
            "a request-headers: pending; complete R @race
             a result R: set x-a 1; continue",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .alone()
        .run(|cx| async move {
            let library = own::variant(&cx, "bare=1")?;
            let own = Own::start(&cx, &own::chain_of(&cx, &library, &[("a", "subscribe all\npend all\n")])?).await?;
            let x = own.cx.exchange(Request::get("/")).await?;
            cx.equal("PXG-NEG-004", "x-a", x.up_get("x-a"), Some("1".into()));
            let hooks: Vec<_> = own.all().iter().filter(|r| matches!(r.function.as_str(), "on_worker" | "on_batch_end")).map(|r| r.function.clone()).collect();
            cx.equal("PXG-NEG-004", "calls of hooks that are NULL", hooks, Vec::new());
            own.stop("PXG-NEG-004").await
        }),
        Case::new(
            "neg/phases",
            2,
            &["PXG-NEG-005"],
            "each phase comes to the place that subscribed to it and to no other; without phases there is no call",
        )
        .alone()
        .run(|cx| async move {
            let heads = [
                ("rqh", "subscribe request-headers\npend none\n", Phase::REQUEST_HEADERS),
                ("rqb", "subscribe request-body\npend none\nmode request stream\n", Phase::REQUEST_BODY),
                ("rqt", "subscribe request-trailers\npend none\n", Phase::REQUEST_TRAILERS),
                ("rsh", "subscribe response-headers\npend none\n", Phase::RESPONSE_HEADERS),
                ("rsb", "subscribe response-body\npend none\nmode response stream\n", Phase::RESPONSE_BODY),
                ("rst", "subscribe response-trailers\npend none\n", Phase::RESPONSE_TRAILERS),
                ("log", "subscribe log\npend none\n", Phase::LOG),
            ];
            let mut instances: Vec<(&str, &str)> = heads.iter().map(|(n, h, _)| (*n, *h)).collect();
            instances.push(("none", "subscribe none\npend none\n"));
            let own = Own::start(&cx, &own::chain(&cx, &instances)?).await?;
            own.cx.answer(Answer::status(200).chunks_and_trailers(&[b"one", b"two"], &[("x-t", "1")]));
            own.cx.exchange(Request::chunks("/", &[b"three", b"four"]).trailer("x-s", "2")).await?;
            let all = own.all();
            for (name, _, phase) in heads {
                let saw: std::collections::BTreeSet<u32> = all
                    .iter()
                    .filter(|r| r.is("on_event", Edge::Enter) && r.instance.as_deref() == Some(name))
                    .filter_map(|r| r.phase)
                    .collect();
                let feature = match phase {
                    Phase::REQUEST_TRAILERS => own.cx.has(Feature::TRAILERS_IN_REQUEST),
                    Phase::RESPONSE_TRAILERS => own.cx.has(Feature::TRAILERS_IN_RESPONSE),
                    _ => true,
                };
                let expected = if feature { [phase.0].into() } else { std::collections::BTreeSet::new() };
                cx.equal("PXG-NEG-005", &format!("phases of the place {name}"), saw, expected);
            }
            let none = all.iter().filter(|r| r.instance.as_deref() == Some("none") && r.function == "on_event").count();
            cx.equal("PXG-NEG-005", "calls of a place that subscribed to nothing", none, 0);
            own.end("PXG-NEG-005").await
        }),
        Case::new(
            "neg/known",
            2,
            &["PXG-NEG-006"],
            "a guest that knows no feature gets only what version 1.0 defines",
        )
        .script("a request-headers: mode request stream; mode response stream")
        .alone()
        .run(|cx| async move {
            let library = own::variant(&cx, "known=0")?;
            let own = Own::start(&cx, &own::chain_of(&cx, &library, &[("a", "subscribe all\npend none\n")])?).await?;
            own.cx.answer(Answer::status(200).chunks_and_trailers(&[b"one", b"two"], &[("x-t", "1")]));
            let x = own.cx.exchange(Request::chunks("/", &[b"three", b"four"]).trailer("x-s", "2")).await?;
            let mut n = 0;
            for r in x.records.iter().filter(|r| r.is("on_event", Edge::Enter)) {
                n += 1;
                let (phase, flags) = (r.phase.unwrap_or(0), r.flags.unwrap_or(0));
                cx.check("PXG-NEG-006", (1..=8).contains(&phase) && flags & !0x1fff == 0, || {
                    format!("phase {phase} with flags {flags:#x}, which version 1.0 does not define")
                });
            }
            cx.check("PXG-NEG-006", n >= 3, || format!("{n} events"));
            own.end("PXG-NEG-006").await
        }),
        Case::new(
            "neg/extensions",
            2,
            &["PXG-NEG-007"],
            "get_ext answers the same for one id on every thread and at every time, and NULL for what there is not",
        )
        .script(
            "* request-headers: get-ext pxg.metrics/1; get-ext nobody.has/9
             a response-headers: get-ext pxg.metrics/1; pending; complete R @race
             a result R: get-ext pxg.metrics/1; get-ext pxg.metrics/; continue",
        )
        .needs(&[Feature::PEND_RESPONSE_HEADERS])
        .run(|cx| async move {
            let mut seen = std::collections::BTreeMap::<String, std::collections::BTreeSet<(Option<i32>, Option<u64>)>>::new();
            for _ in 0..4 {
                for r in cx.exchange(Request::get("/")).await?.records.iter().filter(|r| r.function == "get_ext") {
                    seen.entry(r.text.clone().unwrap_or_default()).or_default().insert((r.status, r.arg));
                }
            }
            for (id, answers) in &seen {
                cx.check("PXG-NEG-007", answers.len() == 1, || format!("get_ext({id:?}) answered {answers:?}"));
            }
            for id in ["nobody.has/9", "pxg.metrics/"] {
                let answers: Vec<_> = seen.get(id).into_iter().flatten().map(|a| a.0).collect();
                cx.equal("PXG-NEG-007", &format!("get_ext({id:?})"), answers, vec![Some(-8)]);
            }
            Ok(())
        }),
        Case::new(
            "neg/subset",
            1,
            &["PXG-NEG-008"],
            "what a configuration is told is a subset of the table, and what it may use of it works on its streams",
        )
        .script(
            "a request-headers: pending; complete R @race
             a result R: continue
             a response-headers: mode response stream; set x-done 1",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .run(|cx| async move {
            let table = cx.shared().features.get();
            let all = cx.running().journal.all();
            let mut n = 0;
            for r in all.iter().filter(|r| r.is("on_config_new", Edge::Enter)) {
                n += 1;
                let own = r.features.unwrap_or_default();
                cx.check("PXG-NEG-008", (0..4).all(|k| own[k] & !table[k] == 0), || format!("{own:x?} is no subset of {table:x?}"));
            }
            cx.check("PXG-NEG-008", n > 0, || "no configuration was made".into());
            for r in [Request::get("/"), Request::post("/", b"12"), Request::chunks("/", &[b"34"])] {
                let x = cx.exchange(r).await?;
                cx.equal("PXG-NEG-008", "x-done", x.reply.get("x-done"), Some("1".into()));
            }
            Ok(())
        }),
    ]
}
