//! Which rule is checked by what: the gate.

use std::fmt::Write as _;

use crate::rules::{self, Rule};
use crate::{cases, mutants};

/// Rules that bind guests and can't be checked on a library from outside, each with the reason.
const UNTESTABLE: &[(&str, &str)] = &[
    (
        "PXG-ABI-001",
        "a library does not carry its layout; `include/layout_check.c` and the SDKs assert it when a guest is built, and a \
         wrong one shows as other violations",
    ),
    (
        "PXG-HDR-003",
        "what a filter meant to do is not known from outside; the vectors of the SDKs' own tests check their set, add and delete",
    ),
    (
        "PXG-L4-001",
        "what a guest has the host forward is for the host to apply; on its side only the shape of the operations can be \
         judged, and that is PXG-MUT-006",
    ),
];

/// What checks a rule on guests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Covered {
    pub(crate) cases: Vec<&'static str>,
    pub(crate) mutants: Vec<String>,
    pub(crate) clean: Vec<String>,
    pub(crate) untestable: Option<&'static str>,
}

pub(crate) fn of(r: &Rule) -> Covered {
    let cases: Vec<&'static str> = cases::all()
        .filter(|c| c.rules.contains(&r.id.as_str()))
        .map(|c| c.name)
        .collect();
    Covered {
        mutants: mutants::all()
            .iter()
            .filter(|m| m.rule.as_deref() == Some(r.id.as_str()))
            .map(|m| m.name.clone())
            .collect(),
        clean: mutants::all()
            .iter()
            .filter(|m| m.rule.is_none())
            .map(|m| m.name.clone())
            .collect(),
        untestable: UNTESTABLE
            .iter()
            .find(|(id, _)| *id == r.id)
            .map(|(_, why)| *why),
        cases,
    }
}

/// What checks a rule on hosts.
pub(crate) fn of_host(r: &Rule) -> Covered {
    let mut cases: Vec<&'static str> = crate::hostcheck::cases::all()
        .iter()
        .filter(|c| c.rules.contains(&r.id.as_str()))
        .map(|c| c.name)
        .collect();
    if crate::hostcheck::WHOLE_RUN_RULES.contains(&r.id.as_str()) {
        cases.push(crate::hostcheck::WHOLE_RUN);
    }
    Covered {
        cases,
        ..Covered::default()
    }
}

/// The table, and whether it has no gap.
pub(crate) fn table() -> (String, bool) {
    let mut out = String::new();
    let (mut covered, mut untestable, mut gaps) = (0, 0, Vec::new());
    for r in rules::all().iter().filter(|r| r.binds_guests()) {
        let c = of(r);
        let missing: Vec<&str> = [
            (c.cases.is_empty(), "no case"),
            (c.mutants.is_empty(), "no mutant"),
            (c.clean.is_empty(), "no clean sample"),
        ]
        .into_iter()
        .filter_map(|(m, text)| m.then_some(text))
        .collect();
        let state = match (&c.untestable, missing.is_empty()) {
            (_, true) => {
                covered += 1;
                "covered".to_string()
            }
            (Some(why), false) => {
                untestable += 1;
                format!("untestable: {why}")
            }
            (None, false) => {
                gaps.push(r.id.clone());
                format!("GAP: {}", missing.join(", "))
            }
        };
        let _ = writeln!(
            out,
            "{}  {:6}  {:5}  cases {}  mutants {}  {state}",
            r.id,
            r.level.name(),
            r.party,
            if c.cases.is_empty() {
                "-".into()
            } else {
                c.cases.join(",")
            },
            if c.mutants.is_empty() {
                "-".into()
            } else {
                c.mutants.join(",")
            },
        );
    }
    for (id, _) in UNTESTABLE {
        if rules::find(id).is_none() {
            gaps.push(format!("{id} (no such rule)"));
        }
    }
    for id in cases::all()
        .flat_map(|c| c.rules.iter().map(|r| (*r).to_string()))
        .chain(mutants::all().iter().filter_map(|m| m.rule.clone()))
    {
        if rules::find(&id).is_none() && !gaps.iter().any(|g| g.starts_with(&id)) {
            gaps.push(format!("{id} (no such rule)"));
        }
    }
    let open = rules::all()
        .iter()
        .filter(|r| r.retired.is_none() && r.party == "host")
        .count();
    let both = rules::all()
        .iter()
        .filter(|r| r.retired.is_none() && r.party == "both")
        .count();
    let _ = writeln!(
        out,
        "\nguests: {} rules, {covered} covered, {untestable} untestable, {} gaps\n\
         hosts: {open} rules for hosts alone and the hosts' side of {both} others are open: nothing here checks a host yet",
        covered + untestable + gaps.len(),
        gaps.len()
    );
    if !gaps.is_empty() {
        let _ = writeln!(out, "gaps: {}", gaps.join(", "));
    }
    (out, gaps.is_empty())
}
