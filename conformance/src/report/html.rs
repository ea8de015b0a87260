//! One file of HTML: the rules of the guest's side, what was found, and how to repeat it.

use std::fmt::Write as _;

use crate::coverage;
use crate::rules;
use crate::sandbox::{CaseResult, Status};
use crate::suite::Report;

fn escape(t: &str) -> String {
    t.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

const STYLE: &str = "
:root{--fg:#1c1e21;--bg:#fff;--line:#d9dce1;--dim:#5f6670;--ok:#14713d;--bad:#b3261e;--warn:#8a5a00;--soft:#f5f6f8}
@media(prefers-color-scheme:dark){:root{--fg:#e6e8eb;--bg:#16181b;--line:#363a40;--dim:#9aa2ad;--ok:#5fd08f;--bad:#ff8a80;--warn:#f0b860;--soft:#1f2226}}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);margin:0 auto;max-width:76rem;padding:1rem 1.25rem 4rem}
h1{font-size:1.4rem;margin:.5rem 0}h2{font-size:1.1rem;margin:2rem 0 .5rem}
code,pre{font:.85em/1.45 ui-monospace,monospace}pre{background:var(--soft);padding:.75rem;overflow-x:auto;border-radius:4px}
.verdict{font-size:1.2rem;font-weight:600;padding:.6rem .8rem;border-left:5px solid;background:var(--soft);margin:1rem 0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:.5rem 0}dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.35rem .5rem;border-bottom:1px solid var(--line)}
th{font-weight:600;position:sticky;top:0;background:var(--bg)}td.s{white-space:nowrap;font-weight:600}
.pass{color:var(--ok)}.fail{color:var(--bad)}.warn{color:var(--warn)}.none{color:var(--dim);font-weight:400}
.scroll{overflow-x:auto}details{border-bottom:1px solid var(--line);padding:.4rem 0}summary{cursor:pointer}
@media(max-width:40rem){dl{grid-template-columns:1fr}dt{margin-top:.4rem}table.r thead{display:none}table.r tr{display:block;padding:.5rem 0;border-bottom:1px solid var(--line)}table.r td{display:block;border:0;padding:.1rem 0}}
";

fn class(s: Status) -> &'static str {
    match s {
        Status::Pass | Status::ExpectedFailure => "pass",
        Status::Warn | Status::Blocked => "warn",
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
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{name}: {verdict}</title><style>{STYLE}</style></head><body>\
         <h1>{name}</h1><div class=\"verdict {class}\">{verdict}{because}</div><dl>",
        name = escape(&r.guest.file_name().unwrap_or_default().to_string_lossy()),
        verdict = r.verdict.name(),
        class = if r.verdict.code() == 0 {
            "pass"
        } else {
            "fail"
        },
        because = if r.because.is_empty() {
            String::new()
        } else {
            format!(": {}", escape(&r.because))
        },
    );
    let filters = r.info.filters.join(", ");
    let rows = [
        ("guest", format!("{} {}", r.info.name, r.info.version)),
        ("filters", filters),
        (
            "level",
            format!("L{} asked for, L{} reached", r.level, r.reached()),
        ),
        ("ABI", r.abi.clone()),
        ("suite", format!("pxg-conformance {}", r.suite)),
        ("sha256", r.sha256.clone()),
        ("seed", format!("{:#x}", r.seed)),
        ("machine", r.machine.clone()),
        ("detectors", r.detectors.join(", ")),
        ("time", format!("{:.1} s", r.ms as f64 / 1000.0)),
    ];
    for (k, v) in rows {
        let _ = write!(out, "<dt>{k}</dt><dd>{}</dd>", escape(v.trim()));
    }
    out.push_str("</dl>");
    findings(&mut out, r);
    out.push_str("<h2>Rules</h2><table class=\"r\"><thead><tr><th>rule</th><th>result</th><th>what it says</th><th>cases</th></tr></thead><tbody>");
    for rule in rules::all().iter().filter(|x| x.binds_guests()) {
        let c = coverage::of(rule);
        let (state, class) = match (&c.untestable, c.cases.is_empty()) {
            (Some(_), true) => ("not testable".to_string(), "none"),
            (None, true) => ("no case".to_string(), "none"),
            _ => of_rule(r, &rule.id),
        };
        let _ = write!(
            out,
            "<tr id=\"{id}\"><td><code>{id}</code> {level}</td><td class=\"s {class}\">{state}</td><td>{text}{why}</td><td>{cases}</td></tr>",
            id = rule.id,
            level = rule.level.name(),
            text = escape(&rule.text),
            why = c
                .untestable
                .map(|w| format!("<br><span class=\"none\">{}</span>", escape(w)))
                .unwrap_or_default(),
            cases = c
                .cases
                .iter()
                .map(|c| format!("<code>{}</code>", escape(c)))
                .collect::<Vec<_>>()
                .join(" "),
        );
    }
    out.push_str("</tbody></table><h2>Cases</h2><div class=\"scroll\"><table><thead><tr><th>case</th><th>result</th><th>level</th><th>ms</th><th></th></tr></thead><tbody>");
    for c in &r.cases {
        let _ = write!(
            out,
            "<tr><td><code>{}</code></td><td class=\"s {}\">{}</td><td>L{}</td><td>{}</td><td>{}</td></tr>",
            escape(&c.case),
            class(c.status),
            c.status.name(),
            c.level,
            c.ms,
            escape(&c.reason)
        );
    }
    out.push_str("</tbody></table></div></body></html>\n");
    out
}

fn findings(out: &mut String, r: &Report) {
    let bad: Vec<&CaseResult> = r.cases.iter().filter(|c| !c.findings.is_empty()).collect();
    if bad.is_empty() {
        return;
    }
    out.push_str("<h2>Findings</h2>");
    for c in bad {
        let _ = write!(
            out,
            "<details open><summary><span class=\"{}\">{}</span> <code>{}</code></summary><pre>{}</pre></details>",
            class(c.status),
            c.status.name(),
            escape(&c.case),
            escape(&super::human::case(r, c, false))
        );
    }
}
