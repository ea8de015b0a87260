//! Attributes: where they come, how they are encoded, what they mean.

use regex::Regex;

use super::own::{self, Own};
use super::prelude::*;

/// Attributes of chapter 16.3 with the form of their values.
const NAMES: &[(&str, &str)] = &[
    ("request.id", r"^\S+$"),
    ("request.protocol", r"^HTTP/1\.1$"),
    ("request.start_ns", r"^[1-9]\d{18}$"),
    ("request.early_data", r"^false$"),
    ("request.body_bytes", r"^(0|[1-9]\d*)$"),
    ("path.raw", r"^/att/\.\./x\?y=%41$"),
    ("path.normalized", r"^/x\?y=(%41|A)$"),
    ("source.address", r"^127\.0\.0\.1:\d+$"),
    ("source.peer_address", r"^127\.0\.0\.1:\d+$"),
    ("destination.address", r"^127\.0\.0\.1:\d+$"),
    ("connection.id", r"^(0|[1-9]\d*)$"),
    ("connection.requests", r"^[1-9]\d*$"),
    ("route.name", r"^\S+$"),
    ("upstream.cluster", r"^\S+$"),
    ("upstream.address", r"^127\.0\.0\.1:\d+$"),
    ("upstream.attempts", r"^1$"),
    ("upstream.duration_ns", r"^(0|[1-9]\d*)$"),
    ("response.code", r"^200$"),
    ("response.code_details", r"^via_upstream$"),
    ("response.body_bytes", r"^(0|[1-9]\d*)$"),
    ("duration_ns", r"^(0|[1-9]\d*)$"),
];

/// What does not apply without TLS, or exists nowhere.
const ABSENT: &[&str] = &[
    "tls.version",
    "tls.cipher",
    "tls.alpn",
    "tls.sni",
    "tls.peer.verified",
    "tls.peer.subject",
    "tls.peer.uri_san",
    "tls.peer.dns_san",
    "tls.peer.sha256",
    "x.nobody.has",
    "metadata.a.never-set",
];

/// Which of them may be known before the response: the others are not there at REQUEST_HEADERS.
const LATE: &[&str] = &[
    "upstream.attempts",
    "upstream.address",
    "upstream.cluster",
    "upstream.duration_ns",
    "response.code",
    "response.code_details",
    "response.body_bytes",
];

fn head(names: &[&str]) -> String {
    let mut out = "subscribe all\npend none\n".to_string();
    for n in names {
        out.push_str(&format!("attr {n} request-headers response-headers log\n"));
    }
    out
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "att/places",
            2,
            &["PXG-ATT-001"],
            "attributes come at the index of their declaration, only in phases that one asks for, and only to the ones that ask",
        )
        .alone()
        .run(|cx| async move {
            let own = Own::start(&cx, &own::chain(&cx, &[
                ("a", "subscribe all\npend none\nattr path.normalized response-headers\nattr request.protocol request-headers\nattr x.nobody.has request-headers\nattr path.normalized request-headers response-headers\n"),
                ("b", "subscribe all\npend none\nattr path.normalized request-headers\n"),
            ])?).await?;
            let x = own.cx.exchange(Request::get("/att")).await?;
            let of = |place: &str, phase: Phase| x.records.events(place, phase.0).first().and_then(|r| r.attrs.clone());
            let (path, http) = (Some("/att".to_string()), Some("HTTP/1.1".to_string()));
            for (place, phase, expected) in [
                ("a", Phase::REQUEST_HEADERS, Some(vec![None, http, None, path.clone()])),
                ("a", Phase::RESPONSE_HEADERS, Some(vec![path.clone(), None, None, path.clone()])),
                ("a", Phase::LOG, None),
                ("b", Phase::REQUEST_HEADERS, Some(vec![path])),
                ("b", Phase::RESPONSE_HEADERS, None),
            ] {
                cx.equal("PXG-ATT-001", &format!("attributes at {place} in phase {}", phase.0), of(place, phase), expected);
            }
            own.end("PXG-ATT-001").await
        }),
        Case::new(
            "att/values",
            2,
            &["PXG-ATT-002", "PXG-ATT-004"],
            "each attribute of 16.3 that the host has is encoded as the text says and means what it says; without TLS there is no TLS",
        )
        .alone()
        .run(|cx| async move {
            let known: Vec<&str> = NAMES.iter().map(|n| n.0).collect();
            let (a, b) = (head(&known), head(ABSENT));
            let own = Own::start(&cx, &own::chain(&cx, &[("a", &a), ("b", &b)])?).await?;
            own.cx.answer(Answer::status(200).body(b"seven b"));
            let mut c = own.cx.connect().await?;
            let mut all = Vec::new();
            for turn in 1..=2 {
                let before = own.cx.records().len();
                c.send(&Request::post("/att/../x?y=%41", b"12345"), cx.name()).await;
                c.response("POST").await?;
                own.cx.until("PXG-ATT-002", "LOG", |r| r[before..].iter().any(|r| r.is("on_event", Edge::Exit) && r.phase == Some(Phase::LOG.0))).await;
                own.cx.ended().await;
                all.push((turn, own.cx.records().split_off(before)));
            }
            let (host, up) = (own.running.host.address.to_string(), cx.shared().upstream_at.to_string());
            for (turn, records) in &all {
                for phase in [Phase::REQUEST_HEADERS, Phase::RESPONSE_HEADERS, Phase::LOG] {
                    let attrs = |place: &str| records.events(place, phase.0).first().and_then(|r| r.attrs.clone()).unwrap_or_default();
                    let of_a = attrs("a");
                    cx.equal("PXG-ATT-001", "attributes delivered", of_a.len(), NAMES.len());
                    for ((name, form), value) in NAMES.iter().zip(&of_a) {
                        let Some(v) = value else { continue };
                        let late = LATE.contains(name) && phase == Phase::REQUEST_HEADERS;
                        cx.check("PXG-ATT-002", !late, || format!("{name} is {v:?} at REQUEST_HEADERS, where it cannot be known"));
                        cx.check("PXG-ATT-002", late || Regex::new(form).is_ok_and(|r| r.is_match(v)), || {
                            format!("{name} is {v:?} in phase {}, expected {form}", phase.0)
                        });
                        let exact = match *name {
                            "destination.address" => Some(host.clone()),
                            "upstream.address" => Some(up.clone()),
                            "connection.requests" => Some(turn.to_string()),
                            "request.body_bytes" if phase == Phase::LOG => Some("5".into()),
                            "response.body_bytes" if phase == Phase::LOG => Some("7".into()),
                            _ => None,
                        };
                        // A value of another form was found above.
                        let formed = Regex::new(form).is_ok_and(|r| r.is_match(v));
                        if let Some(e) = exact.filter(|_| formed) {
                            cx.equal("PXG-ATT-004", &format!("{name} in phase {}", phase.0), v.clone(), e);
                        }
                    }
                    for (name, value) in ABSENT.iter().zip(attrs("b")) {
                        cx.equal("PXG-ATT-002", &format!("{name} over plain HTTP"), value, None);
                    }
                }
            }
            let at = |turn: usize, name: &str| -> Option<String> {
                let i = NAMES.iter().position(|n| n.0 == name)?;
                all[turn].1.events("a", Phase::LOG.0).first()?.attrs.clone()?.get(i)?.clone()
            };
            cx.equal("PXG-ATT-004", "connection.id of two requests on one connection", at(0, "connection.id"), at(1, "connection.id"));
            let ids = (at(0, "request.id"), at(1, "request.id"));
            cx.check("PXG-ATT-004", ids.0.is_none() || ids.0 != ids.1, || format!("request.id of two streams: {ids:?}"));
            let have = NAMES.iter().filter(|n| at(1, n.0).is_some()).count();
            cx.remark(format!("the host has {have} of {} attributes of 16.3 over plain HTTP", NAMES.len()));
            own.end("PXG-ATT-004").await
        }),
        Case::new(
            "att/required",
            1,
            &["PXG-ATT-003"],
            "a required attribute that the host does not have refuses the configuration with NOTFOUND and its name",
        )
        .alone()
        .run(|cx| async move {
            let setup = own::chain(&cx, &[("a", "subscribe all\npend none\nattr x.nobody.has required request-headers\n")])?;
            own::refused(&cx, "PXG-ATT-003", "a made-up attribute", &setup, &[r"x\.nobody\.has", "NOTFOUND"]).await?;
            Ok(())
        }),
    ]
}
