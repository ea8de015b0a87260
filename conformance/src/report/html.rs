//! One file of HTML: the verdict, what was found and how to repeat it, the cases, the rules.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::coverage;
use crate::finding::Finding;
use crate::rules;
use crate::sandbox::{CaseResult, Status};
use crate::verdict::{Report, Verdict};

fn escape(t: &str) -> String {
    t.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Text with what stands between backticks as code.
fn prose(t: &str) -> String {
    let mut out = String::new();
    for (i, part) in escape(t).split('`').enumerate() {
        if i % 2 == 1 {
            let _ = write!(out, "<code>{part}</code>");
        } else {
            out.push_str(part);
        }
    }
    out
}

const STYLE: &str = include_str!("page.css");

fn class(s: Status) -> &'static str {
    match s {
        Status::Pass | Status::ExpectedFailure => "pass",
        Status::Warn | Status::Blocked | Status::Unchecked => "warn",
        Status::Skip | Status::NotApplicable => "none",
        _ => "fail",
    }
}

/// What came of a rule: broken by a finding, else by its cases.
fn of_rule(r: &Report, id: &str) -> (String, &'static str) {
    let found = r
        .cases
        .iter()
        .find(|c| c.findings.iter().any(|f| f.rule == id));
    if let Some(c) = found {
        return (c.status.name().to_string(), class(c.status));
    }
    let cases: Vec<&CaseResult> = r
        .cases
        .iter()
        .filter(|c| c.rules.iter().any(|x| x == id))
        .collect();
    if cases.iter().any(|c| c.status == Status::Pass) {
        return ("PASS".into(), "pass");
    }
    match cases.first() {
        Some(c) => (c.status.name().to_string(), class(c.status)),
        None => ("not run".into(), "none"),
    }
}

/// The page.
pub(crate) fn page(r: &Report) -> String {
    let name = match &r.host {
        Some(h) => escape(&h.name),
        None => escape(&r.guest.file_name().unwrap_or_default().to_string_lossy()),
    };
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <title>{name}: {}</title>\n<style>{STYLE}</style></head>\n<body><main>\n",
        r.verdict.name()
    );
    head(&mut out, r, &name);
    findings(&mut out, r);
    cases(&mut out, r);
    rule_table(&mut out, r);
    facts(&mut out, r);
    out.push_str("</main></body></html>\n");
    out
}

const LEVELS: [&str; 5] = ["loads", "core", "memory", "async", "stress"];

fn head(out: &mut String, r: &Report, name: &str) {
    let (colour, symbol) = match r.verdict {
        Verdict::Conformant => ("pass", "✓"),
        Verdict::NotConformant => ("fail", "✗"),
        Verdict::Incomplete | Verdict::SuiteError => ("warn", "!"),
    };
    let about: Vec<String> = [
        match &r.host {
            Some(h) => h.version.clone(),
            None => format!("{} {}", r.info.name, r.info.version)
                .trim()
                .to_string(),
        },
        if r.go {
            "Go runtime".into()
        } else {
            String::new()
        },
        match r.info.filters.len() {
            0 => String::new(),
            1 => format!("filter {}", r.info.filters[0]),
            n => format!("{n} filters: {}", r.info.filters.join(", ")),
        },
    ]
    .into_iter()
    .filter(|t| !t.is_empty())
    .map(|t| escape(&t))
    .collect();
    let _ = write!(
        out,
        "<header><p class=\"kind\">proxy_golang ABI {} conformance</p><h1>{name}</h1><p class=\"about\">{}</p></header>\n\
         <section class=\"verdict {colour}\"><p class=\"word\"><span class=\"mark\" aria-hidden=\"true\">{symbol}</span>{}</p>",
        escape(&r.abi),
        about.join(" · "),
        r.verdict.name()
    );
    if !r.because.is_empty() {
        let _ = write!(out, "<p>{}</p>", prose(&r.because));
    }
    // Each level that was asked for: reached, or not.
    out.push_str("<ol class=\"levels\">");
    let reached = r.reached();
    for level in 1..=r.level {
        let ran = r.cases.iter().any(|c| c.level == level);
        let (class, what) = match (level <= reached, ran) {
            (true, true) => ("pass", "reached"),
            (_, false) => ("none", "no case ran"),
            (false, true) => ("fail", "not reached"),
        };
        let _ = write!(
            out,
            "<li class=\"{class}\" title=\"{what}\"><b>L{level}</b> {}</li>",
            LEVELS[usize::from(level - 1).min(4)]
        );
    }
    out.push_str("</ol>");
    bar(out, r);
    out.push_str("</section>\n");
}

/// How many cases ended how, as a bar with its legend.
fn bar(out: &mut String, r: &Report) {
    let mut by: Vec<(&str, &str, usize)> = Vec::new();
    for s in [
        Status::Fail,
        Status::Crash,
        Status::Timeout,
        Status::UnexpectedPass,
        Status::SuiteError,
        Status::Warn,
        Status::Blocked,
        Status::Unchecked,
        Status::Pass,
        Status::ExpectedFailure,
        Status::Skip,
        Status::NotApplicable,
    ] {
        let n = r.count(s);
        if n > 0 {
            by.push((s.name(), class(s), n));
        }
    }
    out.push_str("<div class=\"bar\" aria-hidden=\"true\">");
    for (_, class, n) in &by {
        let _ = write!(out, "<i class=\"{class}\" style=\"flex:{n}\"></i>");
    }
    out.push_str("</div><p class=\"legend\">");
    for (name, class, n) in &by {
        let _ = write!(
            out,
            "<span><i class=\"{class}\"></i><b>{n}</b> {}</span>",
            name.to_lowercase()
        );
    }
    let _ = write!(
        out,
        "<span class=\"none\">in {:.1} s</span></p>",
        r.ms as f64 / 1000.0
    );
}

/// Findings that are the same but for numbers: how often, and in which cases.
struct Group<'a> {
    first: &'a Finding,
    case: &'a CaseResult,
    cases: Vec<&'a CaseResult>,
}

fn place(f: &Finding) -> Option<&str> {
    f.detail
        .iter()
        .find_map(|d| Some(d.strip_prefix("by ")?.split_once(": ")?.1))
}

fn groups(r: &Report) -> Vec<Group<'_>> {
    let mut by: BTreeMap<(String, String), Group<'_>> = BTreeMap::new();
    for c in &r.cases {
        for f in &c.findings {
            let what = place(f).map_or_else(
                || f.title.replace(|c: char| c.is_ascii_digit(), "#"),
                str::to_string,
            );
            let g = by.entry((f.rule.clone(), what)).or_insert(Group {
                first: f,
                case: c,
                cases: Vec::new(),
            });
            // The case that is about the rule stands for those that met it by the way.
            let about = |c: &CaseResult| c.rules.contains(&f.rule);
            if about(c) && !about(g.case) {
                (g.first, g.case) = (f, c);
            }
            if !g.cases.iter().any(|x| x.case == c.case) {
                g.cases.push(c);
            }
        }
    }
    let mut all: Vec<Group<'_>> = by.into_values().collect();
    all.sort_by_key(|g| {
        (
            !g.case.status.is_bad(),
            std::cmp::Reverse(g.cases.len()),
            g.first.rule.clone(),
        )
    });
    all
}

fn findings(out: &mut String, r: &Report) {
    let all = groups(r);
    let silent: Vec<&CaseResult> = r
        .cases
        .iter()
        .filter(|c| {
            c.findings.is_empty()
                && (c.status.is_bad() || matches!(c.status, Status::SuiteError | Status::Blocked))
        })
        .collect();
    if all.is_empty() && silent.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "<section><h2>Findings <span class=\"count\">{}</span></h2>",
        all.len() + silent.len()
    );
    for g in &all {
        finding(out, r, g);
    }
    for c in silent {
        let _ = writeln!(
            out,
            "<article class=\"finding {}\"><h3><span class=\"tag\">{}</span> <code>{}</code></h3><p>{}</p></article>",
            class(c.status),
            c.status.name(),
            escape(&c.case),
            prose(&c.reason)
        );
    }
    out.push_str("</section>\n");
}

fn finding(out: &mut String, r: &Report, g: &Group<'_>) {
    let f = g.first;
    let rule = rules::find(&f.rule);
    let _ = write!(
        out,
        "<article class=\"finding {}\"><p class=\"ids\"><span class=\"tag\">{}</span><a href=\"#{id}\">{id}</a> {}</p><h3>{}</h3>",
        class(g.case.status),
        g.case.status.name(),
        rule.map(|r| r.level.name()).unwrap_or_default(),
        prose(&f.title),
        id = escape(&f.rule),
    );
    if !f.detail.is_empty() {
        out.push_str("<ul class=\"detail\">");
        for d in &f.detail {
            let at = d.starts_with("by ") || d.starts_with("through ");
            let _ = write!(
                out,
                "<li{}>{}</li>",
                if at { " class=\"at\"" } else { "" },
                escape(d)
            );
        }
        out.push_str("</ul>");
    }
    if let Some(rule) = rule {
        let _ = write!(out, "<blockquote>{}</blockquote>", prose(&rule.text));
        if let Some(fix) = rule.fix_for(match (&r.host, r.go) {
            (Some(_), _) => "host",
            (None, true) => "go",
            (None, false) => "c",
        }) {
            let _ = write!(out, "<p class=\"fix\"><b>Fix</b> {}</p>", prose(fix));
        }
    }
    let _ = write!(
        out,
        "<p class=\"again\"><b>Again</b> <code>{}</code></p>",
        escape(&super::human::again(r, g.case))
    );
    if g.cases.len() > 1 {
        let _ = write!(
            out,
            "<details><summary>in {} cases</summary><p class=\"names\">",
            g.cases.len()
        );
        for c in &g.cases {
            let _ = write!(out, "<code>{}</code> ", escape(&c.case));
        }
        out.push_str("</p></details>");
    } else {
        let _ = write!(
            out,
            "<p class=\"names\">in <code>{}</code></p>",
            escape(&g.case.case)
        );
    }
    for (title, text) in [
        (
            if r.host.is_some() {
                "What the host printed"
            } else {
                "What the guest printed"
            },
            &g.case.output,
        ),
        (
            if r.host.is_some() {
                "The last calls"
            } else {
                "What its runtime or valgrind says"
            },
            &g.case.trace,
        ),
    ] {
        if !text.is_empty() {
            let _ = write!(
                out,
                "<details><summary>{title}</summary><pre>{}</pre></details>",
                escape(text)
            );
        }
    }
    out.push_str("</article>\n");
}

/// All cases, a line for each family.
fn cases(out: &mut String, r: &Report) {
    let mut by: BTreeMap<&str, Vec<&CaseResult>> = BTreeMap::new();
    for c in &r.cases {
        by.entry(c.case.split('/').next().unwrap_or(""))
            .or_default()
            .push(c);
    }
    let _ = writeln!(
        out,
        "<section><h2>Cases <span class=\"count\">{}</span></h2><div class=\"families\">",
        r.cases.len()
    );
    for (family, cases) in by {
        let _ = write!(out, "<h3>{}</h3><ul>", escape(family));
        for c in cases {
            let name = c.case.split_once('/').map_or(c.case.as_str(), |n| n.1);
            let title = if c.reason.is_empty() {
                format!("{} in {} ms, L{}", c.status.name(), c.ms, c.level)
            } else {
                format!("{} (L{}): {}", c.status.name(), c.level, c.reason)
            };
            let _ = write!(
                out,
                "<li class=\"{}\" title=\"{}\"><span class=\"s\">{}</span>{}</li>",
                class(c.status),
                escape(&title),
                match class(c.status) {
                    "pass" => "✓",
                    "fail" => "✗",
                    "warn" => "!",
                    _ => "–",
                },
                escape(name)
            );
        }
        out.push_str("</ul>\n");
    }
    out.push_str("</div>");
    let reasons: Vec<&CaseResult> = r.cases.iter().filter(|c| !c.reason.is_empty()).collect();
    if !reasons.is_empty() {
        let _ = write!(
            out,
            "<details><summary>Why {} did not run, or are excused</summary><dl>",
            match reasons.len() {
                1 => "one of them".to_string(),
                n => format!("{n} of them"),
            }
        );
        for c in reasons {
            let _ = write!(
                out,
                "<dt><code>{}</code></dt><dd>{}: {}</dd>",
                escape(&c.case),
                c.status.name(),
                prose(&c.reason)
            );
        }
        out.push_str("</dl></details>");
    }
    out.push_str("</section>\n");
}

fn rule_table(out: &mut String, r: &Report) {
    let of_host = r.host.is_some();
    let all: Vec<_> = rules::all()
        .iter()
        .filter(|x| {
            if of_host {
                x.binds_hosts()
            } else {
                x.binds_guests()
            }
        })
        .collect();
    let _ = writeln!(
        out,
        "<section><h2>Rules <span class=\"count\">{}</span></h2><table><thead><tr><th>Rule</th><th>Result</th>\
         <th>What it says</th><th>Cases</th></tr></thead><tbody>",
        all.len()
    );
    for rule in all {
        let c = if of_host {
            coverage::of_host(rule)
        } else {
            coverage::of(rule)
        };
        let (state, class) = match (&c.untestable, c.cases.is_empty()) {
            (Some(_), true) => ("not testable".to_string(), "none"),
            (None, true) => ("no case".to_string(), "none"),
            _ => of_rule(r, &rule.id),
        };
        let _ = writeln!(
            out,
            "<tr id=\"{id}\"><td class=\"id\"><code>{id}</code> <small>{level}</small></td>\
             <td class=\"state {class}\">{state}</td><td>{text}{why}</td><td class=\"names\">{cases}</td></tr>",
            id = rule.id,
            level = rule.level.name(),
            text = prose(&rule.text),
            why = c
                .untestable
                .map(|w| format!("<br><small>{}</small>", prose(w)))
                .unwrap_or_default(),
            cases = c
                .cases
                .iter()
                .map(|c| format!("<code>{}</code>", escape(c)))
                .collect::<Vec<_>>()
                .join(" "),
        );
    }
    out.push_str("</tbody></table></section>\n");
}

fn facts(out: &mut String, r: &Report) {
    out.push_str("<section><h2>This run</h2><dl>");
    let mut rows = vec![];
    if let Some(h) = &r.host {
        rows.push(("adapter", h.adapter.display().to_string()));
        rows.push(("host", format!("{} {}", h.table_name, h.table_version)));
        rows.push(("features", h.feature_names().join(" ")));
        if let Some(l) = &h.layer {
            rows.push(("layer", l.display().to_string()));
        }
    }
    let of_all = [
        (
            if r.host.is_some() { "probe" } else { "library" },
            r.guest.display().to_string(),
        ),
        ("sha256", r.sha256.clone()),
        ("suite", format!("pxg-conformance {}", r.suite)),
        (
            "level",
            format!("L{}, of which L{} is reached", r.level, r.reached()),
        ),
        ("seed", format!("{:#x}", r.seed)),
        ("machine", r.machine.clone()),
        ("detectors", r.detectors.join("; ")),
        ("not active", r.inactive.join("; ")),
    ];
    rows.extend(of_all);
    for (k, v) in rows.into_iter().filter(|(_, v)| !v.is_empty()) {
        let _ = write!(out, "<dt>{k}</dt><dd>{}</dd>", escape(v.trim()));
    }
    out.push_str("</dl></section>\n");
}
