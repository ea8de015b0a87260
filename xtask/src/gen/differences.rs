//! The page of host differences, made of what each host says beside its code: the constants `LACKS` and `GRANTED` of its
//! `features.rs`, lists of a feature and a sentence.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};
use proxy_golang_abi::feature::Feature;
use syn::{Expr, Item, Lit};

use super::{Made, Output};

const PAGE: &str = "docs/src/host-differences.md";

/// A host: its name, and where its constants are.
const HOSTS: &[(&str, &str)] = &[
    ("pxg-host", "host-ref/src/proxy/features.rs"),
    ("Envoy", "hosts/envoy/src/features.rs"),
];

/// Sentences by the features' names.
type Why = BTreeMap<String, String>;

struct Host {
    name: &'static str,
    lacks: Why,
    granted: Why,
}

pub(super) fn made() -> Result<Made> {
    let mut hosts = Vec::new();
    for (name, path) in HOSTS {
        let text = super::read(path)?;
        hosts.push(read(name, &text).with_context(|| (*path).to_owned())?);
    }
    Ok(Made {
        outputs: vec![Output::new(PAGE, page(&hosts))],
        complaints: Vec::new(),
    })
}

fn read(name: &'static str, text: &str) -> Result<Host> {
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
    Ok(Host {
        name,
        lacks,
        granted,
    })
}

/// A constant of the form `&[(Feature::NAME, "sentence"), ...]`.
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
        let (Some(Expr::Path(feature)), Some(Expr::Lit(sentence)), None) =
            (pair.next(), pair.next(), pair.next())
        else {
            bail!("{name} has an element that is no pair of a feature and a text");
        };
        let (Some(feature), Lit::Str(sentence)) = (feature.path.segments.last(), &sentence.lit)
        else {
            bail!("{name} has an element that is no pair of a feature and a text");
        };
        why.insert(feature.ident.to_string(), sentence.value());
    }
    Ok(why)
}

fn page(hosts: &[Host]) -> String {
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
    for host in hosts {
        let _ = write!(page, "\n## {}\n", host.name);
        for (title, why) in [
            ("It lacks", &host.lacks),
            ("It grants to some configurations", &host.granted),
        ] {
            if why.is_empty() {
                continue;
            }
            let _ = writeln!(page, "\n{title}:\n");
            for (_, feature) in Feature::ALL {
                if let Some(sentence) = why.get(*feature) {
                    let _ = writeln!(page, "- {feature}: {sentence}.");
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
    "#;

    #[test]
    fn a_host_is_read_and_shown() {
        let page = page(&[read("a-host", SOURCE).unwrap()]);
        assert!(page.contains("| feature | a-host |\n|---|---|\n"));
        assert!(page.contains("| L4 | no |") && page.contains("| ROUTE | granted |"));
        assert!(page.contains("| APPLY | yes |"));
        assert!(page.contains("- L4: it knows HTTP only.\n"));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let refused = |old: &str, new: &str| {
            let text = SOURCE.replace(old, new);
            read("a-host", &text).err().expect("refused").to_string()
        };
        assert!(refused("L4", "L5").contains("no feature L5"));
        assert!(refused("ROUTE", "L4").contains("in both lists"));
        assert!(refused("const GRANTED", "const OTHER").contains("no constant GRANTED"));
        assert!(refused("\"it knows HTTP only\"", "7").contains("a feature and a text"));
    }
}
