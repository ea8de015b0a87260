//! Which rule is checked by what, on guests and on hosts: the gate.

use std::fmt::Write as _;

use crate::mutants::Mutant;
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

/// Rules that bind hosts and can't be checked on one from outside, each with the reason.
const UNTESTABLE_ON_HOSTS: &[(&str, &str)] = &[
    (
        "PXG-ABI-001",
        "a host does not carry its layout; `include/layout_check.c` and the crate assert it when a host is built, and a wrong \
         one shows as other violations in every case",
    ),
    (
        "PXG-CALL-001",
        "version 1.0 reserves the extensions that make calls and defines none: no host has a call to end",
    ),
    (
        "PXG-CALL-002",
        "version 1.0 reserves the extensions that make calls and defines none: no host has a call to cancel",
    ),
    (
        "PXG-ERR-004",
        "a breaker is optional and set by the operator in a way of each host's own; a host without one never reports it",
    ),
];

/// What checks a rule on one side of the boundary.
#[derive(Clone, Debug, Default)]
pub(crate) struct Covered {
    pub(crate) cases: Vec<&'static str>,
    pub(crate) mutants: Vec<String>,
    pub(crate) clean: Vec<String>,
    pub(crate) untestable: Option<&'static str>,
}

/// The mutants of a rule; what survives is none that the rule kills.
fn killed_by<'a>(all: impl Iterator<Item = &'a Mutant>, id: &str) -> Vec<String> {
    all.filter(|m| m.rule.as_deref() == Some(id) && !m.survives)
        .map(|m| m.name.clone())
        .collect()
}

fn reason(of: &[(&str, &'static str)], id: &str) -> Option<&'static str> {
    of.iter().find(|(i, _)| *i == id).map(|(_, why)| *why)
}

/// What checks a rule on guests.
pub(crate) fn of(r: &Rule) -> Covered {
    Covered {
        cases: cases::all()
            .filter(|c| c.rules.contains(&r.id.as_str()))
            .map(|c| c.name)
            .collect(),
        mutants: killed_by(mutants::all().iter(), &r.id),
        clean: mutants::all()
            .iter()
            .filter(|m| m.rule.is_none())
            .map(|m| m.name.clone())
            .collect(),
        untestable: reason(UNTESTABLE, &r.id),
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
    if r.id == crate::hostcheck::FEATURE_RULE {
        cases.extend(
            crate::hostcheck::cases::all()
                .iter()
                .filter(|c| !c.needs.is_empty())
                .map(|c| c.name),
        );
    }
    Covered {
        cases,
        mutants: killed_by(mutants::of_hosts().iter(), &r.id),
        clean: vec!["the mini host".into()],
        untestable: reason(UNTESTABLE_ON_HOSTS, &r.id),
    }
}

/// How many rules of a side are covered, cannot be, and are not.
#[derive(Default)]
struct Count {
    covered: usize,
    untestable: usize,
    gaps: Vec<String>,
}

fn list(names: &[impl AsRef<str>]) -> String {
    if names.is_empty() {
        return "-".into();
    }
    names
        .iter()
        .map(AsRef::as_ref)
        .collect::<Vec<_>>()
        .join(",")
}

fn side(
    out: &mut String,
    name: &str,
    rules: impl Iterator<Item = &'static Rule>,
    of: fn(&Rule) -> Covered,
) -> Count {
    let mut count = Count::default();
    for r in rules {
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
                count.covered += 1;
                "covered".to_string()
            }
            (Some(why), false) => {
                count.untestable += 1;
                format!("untestable: {why}")
            }
            (None, false) => {
                count.gaps.push(format!("{} ({name})", r.id));
                format!("GAP: {}", missing.join(", "))
            }
        };
        let _ = writeln!(
            out,
            "{}  {:6}  {name}  cases {}  mutants {}  {state}",
            r.id,
            r.level.name(),
            list(&c.cases),
            list(&c.mutants),
        );
    }
    count
}

/// The table, and whether it has no gap.
pub(crate) fn table() -> (String, bool) {
    let mut out = String::new();
    let guests = side(
        &mut out,
        "guests",
        rules::all().iter().filter(|r| r.binds_guests()),
        of,
    );
    let hosts = side(
        &mut out,
        "hosts",
        rules::all().iter().filter(|r| r.binds_hosts()),
        of_host,
    );
    let mut unknown: Vec<String> = UNTESTABLE
        .iter()
        .chain(UNTESTABLE_ON_HOSTS)
        .map(|(id, _)| (*id).to_string())
        .chain(cases::all().flat_map(|c| c.rules.iter().map(|r| (*r).to_string())))
        .chain(
            crate::hostcheck::cases::all()
                .iter()
                .flat_map(|c| c.rules.iter().map(|r| (*r).to_string())),
        )
        .chain(
            mutants::all()
                .iter()
                .chain(mutants::of_hosts())
                .flat_map(|m| m.rule.iter().chain(&m.also).cloned()),
        )
        .filter(|id| rules::find(id).is_none())
        .map(|id| format!("{id} (no such rule)"))
        .collect();
    unknown.sort();
    unknown.dedup();
    out.push('\n');
    for (name, c) in [("guests", &guests), ("hosts", &hosts)] {
        let _ = writeln!(
            out,
            "{name}: {} rules, {} covered, {} untestable, {} gaps",
            c.covered + c.untestable + c.gaps.len(),
            c.covered,
            c.untestable,
            c.gaps.len()
        );
    }
    let gaps: Vec<String> = guests
        .gaps
        .into_iter()
        .chain(hosts.gaps)
        .chain(unknown)
        .collect();
    if !gaps.is_empty() {
        let _ = writeln!(out, "gaps: {}", gaps.join(", "));
    }
    (out, gaps.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutant_that_survives_covers_no_rule() {
        let mut m = mutants::of_hosts()[0].clone();
        let rule = m.rule.clone().expect("a mutant of a host has a rule");
        m.survives = false;
        assert_eq!(killed_by([&m].into_iter(), &rule), [m.name.clone()]);
        m.survives = true;
        assert!(killed_by([&m].into_iter(), &rule).is_empty());
    }
}
