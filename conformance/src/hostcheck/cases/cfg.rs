//! Configurations: made, refused, limited, kept, dropped.

use std::collections::{BTreeMap, BTreeSet};

use super::own::{self, Own};
use super::prelude::*;
use crate::hostcheck::record::fnv;

/// Records of the hosts that this case started, from their folders.
fn recorded(cx: &Cx) -> Vec<Record> {
    let mut all = Vec::new();
    for dir in std::fs::read_dir(&cx.shared().dir)
        .into_iter()
        .flatten()
        .flatten()
    {
        let own = dir
            .file_name()
            .to_string_lossy()
            .starts_with(&cx.name().replace('/', "-"));
        if own && let Ok(records) = crate::hostcheck::record::read_dir(&dir.path()) {
            all.extend(records);
        }
    }
    all
}

const PLAIN: &str = "subscribe all\npend none\n";

/// How many configurations each process made and dropped.
fn drops(records: &[Record]) -> BTreeMap<u32, i64> {
    let mut all = BTreeMap::new();
    for r in records {
        let made = r.is("on_config_new", Edge::Exit) && r.status == Some(OK);
        let dropped = r.is("on_config_drop", Edge::Exit);
        if made || dropped {
            *all.entry(r.pid).or_default() += i64::from(dropped);
        }
    }
    all
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "cfg/bytes",
            1,
            &["PXG-CFG-001"],
            "on_config_new comes once, with the operator's exact bytes; a refusal and an unknown filter are told",
        )
        .alone()
        .run(|cx| async move {
            let mut setup = own::chain(&cx, &[("a", PLAIN), ("b", PLAIN)])?;
            setup.instances[0].config.splice(0..0, *b"# \0\xff\xfe caf\xc3\xa9\ttab \"quoted\" 'single' \\ {} [] %s $x\r\n\r\n");
            setup.instances[0].config.extend_from_slice(b"\n  # last, without an end   \n\n ");
            let bytes: Vec<String> = setup.instances.iter().map(|i| fnv(&i.config)).collect();
            let own = Own::start(&cx, &setup).await?;
            for (i, name) in ["a", "b"].iter().enumerate() {
                // Each process of the host makes its own.
                let mut made = BTreeMap::<_, Vec<_>>::new();
                for r in own.all().calls("on_config_new", Edge::Enter, name).iter().filter(|r| r.arg.unwrap_or(0) & 1 == 0) {
                    made.entry(r.pid).or_default().push(r.config_bytes.clone());
                }
                // The first one's hold NUL and bytes that are not UTF-8.
                let expected = vec![Some(bytes[i].clone())];
                cx.check("PXG-CFG-001", !made.is_empty() && made.values().all(|m| *m == expected), || {
                    format!("sums of the bytes that {name} was made with, by process: {made:?}, expected {expected:?}")
                });
            }
            own.end("PXG-CFG-001").await?;
            let setup = own::chain(&cx, &[("a", "refuse -3 the\\sguest\\ssays\\sso\n")])?;
            own::refused(&cx, "PXG-CFG-001", "a refused configuration", &setup, &["the guest says so"]).await?;
            let mut setup = own::chain(&cx, &[("a", PLAIN)])?;
            setup.instances[0].filter = "nobody".into();
            own::refused(&cx, "PXG-CFG-001", "an unknown filter", &setup, &["nobody"]).await?;
            Ok(())
        }),
        Case::new(
            "cfg/copied",
            2,
            &["PXG-CFG-002"],
            "what a configuration declared was copied before the next call into the guest, which overwrites it",
        )
        .alone()
        .run(|cx| async move {
            let own = Own::start(&cx, &own::chain(&cx, &[
                ("a", "subscribe all\npend none\nattr request.protocol request-headers\nattr x.nobody.has request-headers\nproject x-keep request-headers\nproject x-pxg-case request-headers\n"),
                ("b", "subscribe all\npend none\nattr path.normalized request-headers response-headers\nproject x-other request-headers\nproject x-pxg-case request-headers\n"),
                ("c", PLAIN),
            ])?).await?;
            let x = own.cx.exchange(Request::get("/copied?x").field("x-keep", "1").field("x-other", "2")).await?;
            let of = |p: &str| x.records.events(p, Phase::REQUEST_HEADERS.0).first().and_then(|r| r.attrs.clone());
            cx.equal("PXG-CFG-002", "attributes at a", of("a"), Some(vec![Some("HTTP/1.1".into()), None]));
            cx.equal("PXG-CFG-002", "attributes at b", of("b"), Some(vec![Some("/copied?x".into())]));
            for (place, name) in [("a", "x-keep"), ("b", "x-other")] {
                let has = x.records.events(place, Phase::REQUEST_HEADERS.0).iter().any(|r| r.fields.iter().flatten().any(|f| f.0 == name));
                cx.check("PXG-CFG-002", has, || format!("{name} is not at {place}, which projects it"));
            }
            own.end("PXG-CFG-002").await
        }),
        Case::new(
            "cfg/parents",
            2,
            &["PXG-CFG-003", "PXG-CFG-005", "PXG-CFG-006"],
            "an override's parent is live when it is made and dropped after it, over reloads; all are dropped once",
        )
        .script(
            "a request-headers: pending; complete R @race
             a result R: continue",
        )
        .alone()
        .run(|cx| async move {
            let of = |turn: u32| -> anyhow::Result<_> {
                let head = format!("subscribe all\npend all\n# turn {turn}\n");
                let mut setup = own::chain(&cx, &[("a", &head), ("b", PLAIN)])?;
                let mut route = setup.routes[0].clone();
                route.name = "admin".into();
                route.prefix = "/admin".into();
                let child = setup.instances[0].config.clone();
                route.chain[0].1 = Some([child.as_slice(), b"\n"].concat());
                setup.routes.push(route);
                Ok(setup)
            };
            let own = Own::start(&cx, &of(0)?).await?;
            for turn in 1..=3 {
                own.cx.exchange(Request::get("/")).await?;
                let x = own.cx.exchange(Request::get("/admin")).await?;
                let made = own.all();
                let parents: Vec<_> = made.iter().filter(|r| r.is("on_config_new", Edge::Exit)).filter_map(|r| Some(((r.pid, r.config?), r.parent?))).collect();
                let child = x.records.events("a", Phase::REQUEST_HEADERS.0).first().and_then(|r| Some((r.pid, r.config?)));
                let parent = parents.iter().find(|(c, _)| Some(*c) == child).map(|(_, p)| *p);
                cx.check("PXG-CFG-003", parent.is_some_and(|p| p != 0), || {
                    format!("the stream on the route runs the configuration {child:?} with the parent {parent:?}")
                });
                cx.equal("PXG-CFG-005", &format!("reload {turn}"), own.reload(&of(turn)?).await?, Some(true));
            }
            // A process that has only validated may end as it is. Of those that serve, each has its own.
            let made: Vec<_> = own.all().into_iter().filter(|r| r.is("on_config_new", Edge::Enter) && r.arg.unwrap_or(0) & 1 == 0).collect();
            let serving = made.iter().map(|r| r.pid).collect::<BTreeSet<_>>().len().min(2);
            let (made, live) = (made.len(), 3 * serving);
            let dropped = || own.all().iter().filter(|r| r.is("on_config_drop", Edge::Exit)).count();
            own.cx.wait("PXG-CFG-005", "on_config_drop of each configuration that was replaced", || dropped() + live + 1 >= made).await;
            own.end("PXG-CFG-005").await
        }),
        Case::new(
            "cfg/reload-in-stream",
            4,
            &["PXG-CFG-007", "PXG-CFG-005", "PXG-CFG-006"],
            "a stream that pends over a reload keeps its configuration, which is dropped after the stream's end",
        )
        .script(
            "a request-headers: pending; complete R @gate:go
             a result R: set x-old 1; continue",
        )
        .needs(&[Feature::PEND_REQUEST_HEADERS])
        .alone()
        .run(|cx| async move {
            let of = |n: u32| own::chain(&cx, &[("a", &format!("subscribe all\npend all\n# {n}\n"))]);
            let own = Own::start(&cx, &of(1)?).await?;
            let mut c = own.cx.connect().await?;
            c.send(&Request::get("/"), cx.name()).await;
            own.cx.until("PXG-CFG-007", "REQUEST_HEADERS", |r| r.iter().any(|r| r.is("on_event", Edge::Exit))).await;
            cx.equal("PXG-CFG-007", "the reload", own.reload(&of(2)?).await?, Some(true));
            let pending: Vec<_> = own.cx.records().iter().filter_map(|r| Some((r.pid, r.config?))).collect();
            let early = own.all().iter().any(|r| r.is("on_config_drop", Edge::Enter) && r.config.is_some_and(|c| pending.contains(&(r.pid, c))));
            cx.check("PXG-CFG-005", !early, || "on_config_drop while a stream of the configuration is pending".into());
            own.cx.open("go");
            let reply = c.response("GET").await?;
            cx.equal("PXG-CFG-007", "the status of the stream that pended", reply.status, 200);
            own.cx.ended().await;
            let of_stream = |records: &[std::rc::Rc<Record>]| {
                records.iter().filter(|r| r.is("on_event", Edge::Enter)).filter_map(|r| Some((r.pid, r.config?))).collect::<BTreeSet<_>>()
            };
            let first = of_stream(&own.cx.records());
            cx.check("PXG-CFG-007", first.len() == 1, || format!("one stream ran the configurations {first:?}"));
            let x = own.cx.exchange(Request::get("/")).await?;
            cx.check("PXG-CFG-007", of_stream(&x.records).is_disjoint(&first), || "a new stream runs the old configuration after the reload".into());
            own.cx.wait("PXG-CFG-005", "on_config_drop of the replaced configuration", || {
                own.all().iter().any(|r| r.is("on_config_drop", Edge::Exit))
            }).await;
            own.end("PXG-CFG-005").await
        }),
        Case::new(
            "cfg/values",
            1,
            &["PXG-CFG-008"],
            "a configuration whose value is 0, or that of another live one, is refused, without a drop of somebody else's",
        )
        .alone()
        .run(|cx| async move {
            let zero = own::chain(&cx, &[("a", "subscribe all\npend none\nvalue 0\n")])?;
            own::refused(&cx, "PXG-CFG-008", "the value 0", &zero, &["ARG", "config"]).await?;
            let drops = recorded(&cx).iter().filter(|r| r.is("on_config_drop", Edge::Enter)).count();
            cx.equal("PXG-CFG-008", "drops of the value 0", drops, 0);
            let twice = own::chain(&cx, &[("a", "subscribe all\npend none\nvalue 7\n"), ("b", "subscribe all\npend none\nvalue 7\n")])?;
            own::refused(&cx, "PXG-CFG-008", "the same value twice", &twice, &["ARG", "config", "7"]).await?;
            let drops = recorded(&cx).iter().filter(|r| r.is("on_config_drop", Edge::Enter)).count();
            cx.check("PXG-CFG-008", drops <= 1, || format!("the value 7 was dropped {drops} times: it is one configuration's"));
            Ok(())
        }),
        Case::new(
            "cfg/declarations",
            1,
            &["PXG-CFG-009"],
            "each illegal declaration is refused with the member and the value, and the configuration dropped",
        )
        .alone()
        .run(|cx| async move {
            let lacks = [
                (Feature::ORPHAN, "orphan", "0x10|16|ORPHAN"), (Feature::SUBREQUESTS, "subrequests", "0x20|32|SUBREQUESTS"), (Feature::UPGRADE_BODY, "upgrade-body", "0x40|64|UPGRADE_BODY"),
            ];
            let mut wrong = vec![
                ("an unknown phase", "subscribe raw 0x4000000000000000\npend none\n".to_string(), "subscribe", "4000000000000000|62"),
                ("pend_phases outside subscribe", "subscribe request-headers raw\npend raw 0x10\n".into(), "pend_phases", "0x10|RESPONSE_HEADERS"),
                ("LOG in pend_phases", "subscribe raw request-headers log\npend raw log\n".into(), "pend_phases", "0x80|LOG"),
                ("an unknown flag", format!("{PLAIN}flags 0x1000\n"), "flags", "0x1000|4096"),
                ("an unknown body mode", format!("{PLAIN}mode request 9\n"), "body_mode", "9"),
                ("a body mode without its phase", "subscribe request-headers raw\npend none\nmode response whole\n".into(), "body_mode", "3|WHOLE"),
                ("an unknown flag of an attribute", format!("{PLAIN}attr path.normalized request-headers\nattr-flags 0x100\n"), "attr", "0x100|256"),
                ("a reserved member of an attribute", format!("{PLAIN}attr path.normalized request-headers\nattr-reserved 5\n"), "attr", "5"),
                ("an unknown phase of an attribute", format!("{PLAIN}attr path.normalized 0x4000000000000000\n"), "attr", "4000000000000000|62"),
                ("an unknown phase of a projection", format!("{PLAIN}project x-a 0x4000000000000000\n"), "projection", "4000000000000000|62"),
                ("a count of attributes without an array", format!("{PLAIN}null-attrs 2\n"), "attrs", "2|NULL"),
            ];
            for (feature, word, value) in lacks {
                if !cx.has(feature) {
                    wrong.push(("a flag without its feature", format!("subscribe raw request-headers\npend none\nflags {word}\n"), "flag", value));
                }
            }
            for (what, head, member, value) in wrong {
                let before = drops(&recorded(&cx));
                let setup = own::chain(&cx, &[("a", &head)])?;
                own::refused(&cx, "PXG-CFG-009", what, &setup, &[member, value]).await?;
                // Each process that made it drops it: workers may make configurations of their own.
                let mut after = drops(&recorded(&cx));
                after.retain(|pid, _| !before.contains_key(pid));
                cx.check("PXG-CFG-009", !after.is_empty() && after.values().all(|n| *n == 1), || {
                    format!("{what}: drops of the refused configuration, by process: {after:?}, expected 1 in each")
                });
            }
            Ok(())
        }),
        Case::new(
            "cfg/limits",
            1,
            &["PXG-CFG-010"],
            "wishes of 2^63 are set to the host's limits, with a warning that names member and wish",
        )
        .script(
            "a request-headers: mode request whole
             a request-body: continue",
        )
        .alone()
        .run(|cx| async move {
            let mut setup = own::chain(&cx, &[(
                "a",
                "subscribe all\npend none\nmax-body request 9223372036854775808\nmax-body response 9223372036854775809\npend-ns 9223372036854775810\n",
            )])?;
            own::option(&mut setup, "a", "max_body", "1000");
            let own = Own::start(&cx, &setup).await?;
            let text = own.output();
            for (member, wish) in [("max_body", "9223372036854775808"), ("max_body", "9223372036854775809"), ("pend_ns", "9223372036854775810")] {
                let line = text.lines().find(|l| l.contains(wish) && l.contains(member));
                let limit = line.is_some_and(|l| {
                    l.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok()).any(|n| n != 0 && n < 1 << 63 && !l.starts_with(&n.to_string()))
                });
                cx.check("PXG-CFG-010", limit, || format!("no warning about {member} = {wish} with the limit: {line:?}"));
            }
            // And the limit holds.
            let x = own.cx.exchange(Request::post("/", &bytes(5000))).await?;
            let over = x.records.events("a", Phase::REQUEST_BODY.0).iter().any(|r| r.flags.unwrap_or(0) & EventFlags::OVER_LIMIT.0 != 0);
            cx.check("PXG-CFG-010", over, || "a body of 5000 bytes came whole, with a limit of 1000".into());
            own.end("PXG-CFG-010").await
        }),
        Case::new(
            "cfg/projection",
            2,
            &["PXG-CFG-011"],
            "with a projection the named fields come in the order and number that they have without it",
        )
        .alone()
        .run(|cx| async move {
            let own = Own::start(&cx, &own::chain(&cx, &[
                ("plain", PLAIN),
                ("some", "subscribe all\npend none\nproject cookie request-headers\nproject x-pxg-case request-headers\nproject :path request-headers\nproject x-k response-headers\n"),
            ])?).await?;
            own.cx.answer(Answer::status(200).field("x-k", "1").field("x-l", "0").field("x-k", "2").body(b"x"));
            let x = own.cx.exchange(
                Request::get("/p").field("cookie", "a=1").field("x-o", "0").field("cookie", "b=2").field("cookie", ""),
            ).await?;
            for (phase, names) in [(Phase::REQUEST_HEADERS, &["cookie", ":path"][..]), (Phase::RESPONSE_HEADERS, &["x-k"])] {
                for name in names {
                    let of = |place: &str| -> Vec<String> {
                        x.records.events(place, phase.0).iter().flat_map(|r| r.fields.iter().flatten()).filter(|f| f.0 == *name).map(|f| f.1.clone()).collect()
                    };
                    let plain = of("plain");
                    cx.check("PXG-CFG-011", !plain.is_empty(), || format!("{name} did not come without a projection"));
                    cx.equal("PXG-CFG-011", &format!("{name} with a projection"), of("some"), plain);
                }
            }
            own.end("PXG-CFG-011").await
        }),
    ]
}
