//! `list` and `explain`.

use std::fmt::Write as _;

use anyhow::{Result, bail};

use crate::rules::{self, Rule};
use crate::{cases, coverage, mutants};

/// What a rule says, why, how to keep it, and how it is checked.
pub(crate) fn explain(id: &str) -> Result<String> {
    let Some(r) = rules::find(id) else {
        if let Some(c) = cases::find(id) {
            let mut out = format!("{}  (level L{})\n  {}\n", c.name, c.level, c.about);
            for rule in c.rules {
                let text = rules::find(rule).map_or("", |r| r.text.as_str());
                let _ = writeln!(out, "  {rule}  {text}");
            }
            return Ok(out);
        }
        let known = rules::all().iter().map(|r| r.id.as_str());
        let near = rules::did_you_mean(id, known.chain(cases::all().map(|c| c.name)));
        if near.is_empty() {
            bail!("no rule or case {id:?}; `pxg-conformance list --rules` shows the rules");
        }
        bail!(
            "no rule or case {id:?}; did you mean {}?",
            near.join(" or ")
        );
    };
    Ok(text(r))
}

fn text(r: &Rule) -> String {
    let mut out = format!(
        "{}  {}  {}  since {}  spec/{}.md\n\n  {}\n\n  why   {}\n",
        r.id,
        r.level.name(),
        r.party,
        r.since,
        r.chapter,
        r.text,
        r.why
    );
    if let Some(why) = &r.retired {
        let _ = writeln!(out, "  retired: {why}");
    }
    for (language, fix) in r.fixes() {
        let _ = writeln!(
            out,
            "  fix   {}{fix}",
            if language.is_empty() {
                String::new()
            } else {
                format!("({language}) ")
            }
        );
    }
    if let Some(c) = r.guest_check() {
        let _ = writeln!(out, "  check {c}");
    }
    let c = coverage::of(r);
    if !c.cases.is_empty() {
        let _ = writeln!(out, "  cases {}", c.cases.join(", "));
    }
    for name in &c.mutants {
        if let Some(m) = mutants::all().iter().find(|m| m.name == *name) {
            let _ = writeln!(out, "  mutant {} ({}): {}", m.name, m.file, m.about);
        }
    }
    match (&c.untestable, r.binds_guests()) {
        (Some(why), _) => {
            let _ = writeln!(out, "  not checked on a guest: {why}");
        }
        (None, false) => {
            let _ = writeln!(out, "  binds hosts: not checked on guests");
        }
        _ => {}
    }
    out
}
