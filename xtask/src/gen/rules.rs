//! The rules of the spec: `spec/rules/*.toml`, validated, and the tables made of them.
//!
//! A table stands between `<!-- rules: EVT -->` and `<!-- /rules -->` in the chapters and in the docs.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{Made, Output};

const FOLDER: &str = "spec/rules";
const LEVELS: &[&str] = &["MUST", "SHOULD", "MAY"];
const PARTIES: &[&str] = &["guest", "host", "both", "project"];
const OPEN: &str = "<!-- rules: ";
const CLOSE: &str = "<!-- /rules -->";
const ALL_RULES: &str = "docs/src/rules.md";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    rule: Vec<toml::Spanned<toml::Value>>,
}

/// A rule. The fields are described in `spec/README.md`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    id: String,
    level: String,
    party: String,
    since: String,
    chapter: String,
    text: String,
    why: String,
    fix: Fix,
    /// How each side is checked: read by the conformance suite.
    check: toml::Table,
    #[serde(default)]
    retired: Option<String>,
}

/// How to mend a violation: for all, or per language.
#[derive(Deserialize)]
#[serde(untagged)]
enum Fix {
    Text(String),
    ByLanguage(BTreeMap<String, String>),
}

/// Families with their rules in the order of the file.
type Families = BTreeMap<String, Vec<Rule>>;

pub(super) fn made() -> Result<Made> {
    let mut made = Made::default();
    let families = families(&mut made.complaints)?;
    for folder in ["spec", "docs/src"] {
        for file in super::list(folder)? {
            if file.ends_with(".md") && file != ALL_RULES {
                let old = super::read(&file)?;
                if old.contains(OPEN) {
                    let new = filled(&old, &file, &families, &mut made.complaints)?;
                    made.outputs.push(Output::new(file, new));
                }
            }
        }
    }
    if super::exists("docs/src") && !families.is_empty() {
        made.outputs.push(Output::new(ALL_RULES, page(&families)));
    }
    Ok(made)
}

fn families(complaints: &mut Vec<String>) -> Result<Families> {
    let mut families = Families::new();
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for path in super::list(FOLDER)? {
        let Some(stem) = path
            .strip_prefix("spec/rules/")
            .and_then(|n| n.strip_suffix(".toml"))
        else {
            continue;
        };
        let text = super::read(&path)?;
        let file: File = toml::from_str(&text).with_context(|| path.clone())?;
        let family = stem.to_uppercase();
        let mut rules = Vec::new();
        for value in file.rule {
            let line = text[..value.span().start].lines().count().max(1);
            let value = value.into_inner();
            let id = value.get("id").and_then(toml::Value::as_str);
            let place = format!("{path}:{line}: {}", id.unwrap_or("a rule without an id"));
            let rule: Rule = match value.try_into() {
                Ok(rule) => rule,
                Err(error) => {
                    complaints.push(format!("{place}: {}", error.message()));
                    continue;
                }
            };
            complaints.extend(
                rule.faults(&family)
                    .into_iter()
                    .map(|f| format!("{place}: {f}")),
            );
            if let Some(first) = seen.insert(rule.id.clone(), place.clone()) {
                complaints.push(format!("{place}: the id is taken by {first}"));
            }
            rules.push(rule);
        }
        families.insert(family, rules);
    }
    Ok(families)
}

impl Rule {
    fn faults(&self, family: &str) -> Vec<String> {
        let mut faults = Vec::new();
        let number = self.id.strip_prefix(&format!("PXG-{family}-"));
        if !number.is_some_and(|n| n.len() == 3 && n.bytes().all(|b| b.is_ascii_digit())) {
            faults.push(format!(
                "the id of a rule in this file has the form PXG-{family}-001"
            ));
        }
        if !LEVELS.contains(&self.level.as_str()) {
            faults.push(format!("level `{}`: one of {LEVELS:?}", self.level));
        }
        if !PARTIES.contains(&self.party.as_str()) {
            faults.push(format!("party `{}`: one of {PARTIES:?}", self.party));
        }
        let version = self.since.split('.').map(str::parse::<u32>);
        if !(version.clone().count() == 2 && version.clone().all(|p| p.is_ok())) {
            faults.push(format!("since `{}`: a version like 1.0", self.since));
        }
        let chapter = format!("spec/{}.md", self.chapter);
        if !super::exists(&chapter) {
            faults.push(format!("chapter `{}`: there is no {chapter}", self.chapter));
        }
        let texts = [("text", &self.text), ("why", &self.why)];
        for (key, text) in texts {
            if text.trim().is_empty() {
                faults.push(format!("{key} is empty"));
            }
        }
        if self.level == "MUST" && self.retired.is_none() && self.check.is_empty() {
            faults.push("check is empty: name the cases, or `untestable` with the reason".into());
        }
        faults
    }

    fn anchor(&self) -> String {
        self.id.to_lowercase()
    }
}

/// Replaces what stands between the marks. A mark is a line of its own: prose may speak of marks.
fn filled(
    old: &str,
    file: &str,
    families: &Families,
    complaints: &mut Vec<String>,
) -> Result<String> {
    let mut out = String::new();
    let mut inside = None;
    for line in old.split_inclusive('\n') {
        let word = line.trim_end();
        let names = word
            .strip_prefix(OPEN)
            .and_then(|rest| rest.strip_suffix("-->"));
        if let Some(names) = names {
            ensure!(
                inside.is_none(),
                "{file}: `{word}` before {CLOSE} of the one above"
            );
            inside = Some(word.to_owned());
            out.push_str(line);
            for name in names.split_whitespace() {
                match families.get(name) {
                    Some(rules) => out.push_str(&table(rules)),
                    None => complaints.push(format!(
                        "{file}: {word}: there is no {FOLDER}/{}.toml",
                        name.to_lowercase()
                    )),
                }
            }
        } else if word == CLOSE {
            let opened = inside.take();
            opened.with_context(|| format!("{file}: {CLOSE} that closes nothing"))?;
            out.push_str(line);
        } else if inside.is_none() {
            out.push_str(line);
        }
    }
    if let Some(mark) = inside {
        anyhow::bail!("{file}: `{mark}` without a line {CLOSE}");
    }
    Ok(out)
}

fn table(rules: &[Rule]) -> String {
    let mut out = String::from("| id | level | party | text |\n|---|---|---|---|\n");
    for rule in rules {
        let text = match &rule.retired {
            Some(why) => format!("*Retired: {}*", one_line(why)),
            None => one_line(&rule.text),
        };
        out.push_str(&format!(
            "| <a id=\"{}\"></a>{} | {} | {} | {} |\n",
            rule.anchor(),
            rule.id,
            rule.level,
            rule.party,
            text.replace('|', "\\|")
        ));
    }
    out
}

fn page(families: &Families) -> String {
    let mut out = String::from(
        "<!-- Generated from spec/rules by `cargo xtask gen`: do not edit. -->\n\n# The rules\n\nEvery rule of the ABI \
         with its reason and how to mend a violation. Ids are permanent.\n",
    );
    for (family, rules) in families {
        out.push_str(&format!("\n## {family}\n"));
        for rule in rules {
            out.push_str(&format!("\n### {}\n\n", rule.id));
            if let Some(why) = &rule.retired {
                out.push_str(&format!("*Retired: {}*\n\n", one_line(why)));
            }
            out.push_str(&format!(
                "{} · {} · since {} · chapter `{}`\n\n{}\n\n**Why.** {}\n\n",
                rule.level,
                rule.party,
                rule.since,
                rule.chapter,
                one_line(&rule.text),
                one_line(&rule.why)
            ));
            match &rule.fix {
                Fix::Text(text) => out.push_str(&format!("**Fix.** {}\n", one_line(text))),
                Fix::ByLanguage(fixes) => {
                    out.push_str("**Fix.**\n\n");
                    for (key, text) in fixes {
                        out.push_str(&format!("- {}: {}\n", language(key), one_line(text)));
                    }
                }
            }
        }
    }
    out
}

/// The text as one line of Markdown: `<` outside of code would begin HTML.
fn one_line(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let parts = words.split('`').enumerate();
    let parts = parts.map(|(i, part)| match i % 2 {
        0 => part.replace('<', "&lt;"),
        _ => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("`")
}

/// The name that a reader knows a key of `fix` by.
fn language(key: &str) -> &str {
    match key {
        "c" => "C",
        "go" => "Go",
        "rust" => "Rust",
        "lua" => "Lua",
        "host" => "In a host",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = r#"
[[rule]]
id = "PXG-ABI-001"
level = "MUST"
party = "both"
since = "1.0"
chapter = "01-terms"
text = "A | B <c> `<d>`."
why = "Because."
fix = { go = "Do.", c = "Do that." }
check = { cases = ["abi/padding"] }
"#;

    fn faults(from: &str, to: &str) -> String {
        let file: File = toml::from_str(&RULE.replace(from, to)).unwrap();
        let value = file.rule.into_iter().next().unwrap().into_inner();
        match value.try_into::<Rule>() {
            Ok(rule) => rule.faults("ABI").join("\n"),
            Err(error) => error.message().to_owned(),
        }
    }

    #[test]
    fn a_rule_names_what_is_wrong_with_it() {
        assert_eq!(faults("", ""), "");
        assert!(faults("ABI-001", "EVT-001").contains("PXG-ABI-001"));
        assert!(faults("ABI-001", "ABI-1").contains("PXG-ABI-001"));
        assert!(faults("\"MUST\"", "\"SHALL\"").contains("level `SHALL`"));
        assert!(faults("\"both\"", "\"all\"").contains("party `all`"));
        assert!(faults("\"1.0\"", "\"1\"").contains("since `1`"));
        assert!(faults("01-terms", "99-none").contains("no spec/99-none.md"));
        assert!(faults("Because.", " ").contains("why is empty"));
        assert!(faults("cases = [\"abi/padding\"]", "").contains("check is empty"));
        assert!(faults("why =", "because =").contains("unknown field `because`"));
    }

    #[test]
    fn only_marks_on_lines_of_their_own_are_filled() {
        let file: File = toml::from_str(RULE).unwrap();
        let rules = file.rule.into_iter();
        let rules = rules.map(|v| v.into_inner().try_into().unwrap()).collect();
        let families = Families::from([("ABI".to_owned(), rules)]);
        let old = "of `<!-- rules: ABI -->` and\n<!-- rules: ABI -->\nold\n<!-- /rules -->\nend\n";
        let mut complaints = Vec::new();
        let new = filled(old, "x.md", &families, &mut complaints).unwrap();
        assert!(new.starts_with("of `<!-- rules: ABI -->` and\n<!-- rules: ABI -->\n| id |"));
        assert!(new.contains(
            "<a id=\"pxg-abi-001\"></a>PXG-ABI-001 | MUST | both | A \\| B &lt;c> `<d>`. |"
        ));
        assert!(new.ends_with("<!-- /rules -->\nend\n") && !new.contains("old"));
        assert_eq!(
            filled(&new, "x.md", &families, &mut complaints).unwrap(),
            new
        );
        assert!(complaints.is_empty());
        assert!(filled("<!-- rules: ABI -->\n", "x.md", &families, &mut complaints).is_err());
        filled(
            "<!-- rules: NO -->\n<!-- /rules -->\n",
            "x.md",
            &families,
            &mut complaints,
        )
        .unwrap();
        assert!(complaints[0].contains("no spec/rules/no.toml"));
    }
}
