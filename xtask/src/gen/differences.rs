//! The page of host differences, made of what each host says beside its code: the constants `LACKS` and `GRANTED` of its
//! `features.rs`, lists of a feature and a sentence, and `LACKS_ATTRIBUTES`, the same of attributes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};
use proxy_golang_abi::feature::Feature;
use syn::{Expr, Item, Lit};

use super::{Made, Output};

/// Names all attributes, each in a row of a table.
const ATTRIBUTES: &str = "spec/16-attributes.md";

const PAGE: &str = "docs/src/host-differences.md";

/// A host: its name, and where its constants are.
const HOSTS: &[(&str, &str)] = &[
    ("pxg-host", "host-ref/src/proxy/features.rs"),
    ("Envoy", "hosts/envoy/src/features.rs"),
];

/// Sentences by the names of features, or of attributes.
type Why = BTreeMap<String, String>;

struct Host {
    name: &'static str,
    lacks: Why,
    granted: Why,
    lacks_attributes: Why,
}

pub(super) fn made() -> Result<Made> {
    let spec = super::read(ATTRIBUTES)?;
    let attributes = attributes(&spec);
    let mut hosts = Vec::new();
    for (name, path) in HOSTS {
        let text = super::read(path)?;
        hosts.push(read(name, &text, &attributes).with_context(|| (*path).to_owned())?);
    }
    Ok(Made {
        outputs: vec![Output::new(PAGE, page(&hosts, &attributes))],
        complaints: Vec::new(),
    })
}

/// The names in the first cells of the chapter's table.
fn attributes(spec: &str) -> Vec<&str> {
    let (_, rest) = spec.split_once("| name | type |").unwrap_or_default();
    let rows = rest
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let names = rows.filter_map(|row| row.strip_prefix("| `")?.split('`').next());
    // A pattern of names is no name.
    names.filter(|name| !name.contains('<')).collect()
}

fn read(name: &'static str, text: &str, attributes: &[&str]) -> Result<Host> {
    let file = syn::parse_file(text)?;
    let lacks = list(&file, "LACKS")?;
    let granted = list(&file, "GRANTED")?;
    for feature in lacks.keys().chain(granted.keys()) {
        ensure!(
            Feature::ALL.iter().any(|(_, known)| known == feature),
            "there is no feature {feature}"
        );
    }
    if let Some(both) = lacks.keys().find(|feature| granted.contains_key(*feature)) {
        bail!("{both} is in both lists: a host lacks it, or grants it");
    }
    let lacks_attributes = list(&file, "LACKS_ATTRIBUTES")?;
    if let Some(unknown) = lacks_attributes
        .keys()
        .find(|name| !attributes.contains(&name.as_str()))
    {
        bail!("there is no attribute {unknown}");
    }
    Ok(Host {
        name,
        lacks,
        granted,
        lacks_attributes,
    })
}

/// A constant of the form `&[(Feature::NAME, "sentence"), ...]` or `&[("name", "sentence"), ...]`.
fn list(file: &syn::File, name: &str) -> Result<Why> {
    let found = file.items.iter().find_map(|item| match item {
        Item::Const(constant) if constant.ident == name => Some(&*constant.expr),
        _ => None,
    });
    let expression = found.with_context(|| format!("no constant {name}"))?;
    let Expr::Reference(reference) = expression else {
        bail!("{name} is no reference to a list");
    };
    let Expr::Array(array) = &*reference.expr else {
        bail!("{name} is no list");
    };
    let mut why = Why::new();
    for element in &array.elems {
        let Expr::Tuple(tuple) = element else {
            bail!("{name} has an element that is no pair");
        };
        let mut pair = tuple.elems.iter();
        let of = match pair.next() {
            Some(Expr::Path(feature)) => feature.path.segments.last().map(|s| s.ident.to_string()),
            Some(of) => text(of),
            None => None,
        };
        let (Some(of), Some(sentence), None) = (of, pair.next().and_then(text), pair.next()) else {
            bail!("{name} has an element that is no pair of a name and a text");
        };
        why.insert(of, sentence);
    }
    Ok(why)
}

fn text(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Lit(syn::ExprLit {
            lit: Lit::Str(text),
            ..
        }) => Some(text.value()),
        _ => None,
    }
}

fn page(hosts: &[Host], attributes: &[&str]) -> String {
    let mut page = String::from(
        "<!-- Generated from the hosts' `features.rs` by `cargo xtask gen`: do not edit. -->\n\n\
         # Host differences\n\n\
         What each host can do. A filter asks for what it cannot do without, and is refused, with the feature's name, where\n\
         that is missing; what a feature means is in [chapter 3 of the spec](../../spec/03-negotiation.md). A host never\n\
         emulates silently what it lacks.\n\n",
    );
    let names: Vec<_> = hosts.iter().map(|host| host.name).collect();
    let _ = writeln!(
        page,
        "| feature | {} |\n|---|{}",
        names.join(" | "),
        "---|".repeat(hosts.len())
    );
    for (_, feature) in Feature::ALL {
        let cells: Vec<_> = hosts
            .iter()
            .map(|host| {
                if host.lacks.contains_key(*feature) {
                    "no"
                } else if host.granted.contains_key(*feature) {
                    "granted"
                } else {
                    "yes"
                }
            })
            .collect();
        let _ = writeln!(page, "| {feature} | {} |", cells.join(" | "));
    }
    let features: Vec<&str> = Feature::ALL.iter().map(|(_, name)| *name).collect();
    for host in hosts {
        let _ = write!(page, "\n## {}\n", host.name);
        for (title, order, why) in [
            ("It lacks", &*features, &host.lacks),
            (
                "It grants to some configurations",
                &*features,
                &host.granted,
            ),
            (
                "Of the attributes of [chapter 16](../../spec/16-attributes.md), it lacks",
                attributes,
                &host.lacks_attributes,
            ),
        ] {
            if why.is_empty() {
                continue;
            }
            let _ = writeln!(page, "\n{title}:\n");
            for name in order {
                if let Some(sentence) = why.get(*name) {
                    let _ = writeln!(page, "- {name}: {sentence}.");
                }
            }
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = r#"
        pub const LACKS: &[(Feature, &str)] = &[(Feature::L4, "it knows HTTP only")];
        const GRANTED: &[(Feature, &str)] = &[(Feature::ROUTE, "it names clusters")];
        const LACKS_ATTRIBUTES: &[(&str, &str)] = &[("path.raw", "it keeps none")];
    "#;
    const NAMES: [&str; 2] = ["request.id", "path.raw"];

    #[test]
    fn attributes_are_those_of_the_chapters_table() {
        let spec = "x\n\n| name | type | unit |\n|---|---|---|\n| `a.b` | text | c `d` |\n| `m.<key>` | text | |\n\n| `z` |\n";
        assert_eq!(attributes(spec), ["a.b"]);
    }

    #[test]
    fn a_host_is_read_and_shown() {
        let page = page(&[read("a-host", SOURCE, &NAMES).unwrap()], &NAMES);
        assert!(page.contains("| feature | a-host |\n|---|---|\n"));
        assert!(page.contains("| L4 | no |") && page.contains("| ROUTE | granted |"));
        assert!(page.contains("| APPLY | yes |"));
        assert!(page.contains("- L4: it knows HTTP only.\n"));
        assert!(page.contains("it lacks:\n\n- path.raw: it keeps none.\n"));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let refused = |old: &str, new: &str| {
            let text = SOURCE.replace(old, new);
            read("a-host", &text, &NAMES)
                .err()
                .expect("refused")
                .to_string()
        };
        assert!(refused("L4", "L5").contains("no feature L5"));
        assert!(refused("ROUTE", "L4").contains("in both lists"));
        assert!(refused("const GRANTED", "const OTHER").contains("no constant GRANTED"));
        assert!(refused("path.raw", "path.rwa").contains("no attribute path.rwa"));
        assert!(refused("\"it knows HTTP only\"", "7").contains("a name and a text"));
    }
}
