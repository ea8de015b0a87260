//! The page of host differences, made of what each host says beside its code: the constants `LACKS` and `GRANTED` of its
//! `features.rs`, lists of a feature and a sentence, `LACKS_ATTRIBUTES`, the same of attributes, and `LIMITS`, of what no
//! feature tells. A host in another language says it in a `features.toml`, by tables of these names in small letters.

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
    ("nginx", NGINX),
    ("Lua in nginx", LUA),
];

const NGINX: &str = "hosts/nginx/features.toml";
const LUA: &str = "hosts/openresty/features.toml";

/// Sentences by the names of features, or of attributes.
type Why = BTreeMap<String, String>;

struct Host {
    name: &'static str,
    said: Said,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    lacks: Why,
    granted: Why,
    lacks_attributes: Why,
    /// By what they are about.
    #[serde(default)]
    limits: Why,
}

pub(super) fn made() -> Result<Made> {
    let spec = super::read(ATTRIBUTES)?;
    let attributes = attributes(&spec);
    let mut hosts = Vec::new();
    for (name, path) in HOSTS {
        let text = super::read(path)?;
        let said = if path.ends_with(".toml") {
            toml::from_str(&text).map_err(Into::into)
        } else {
            of_source(&text)
        };
        let said = said.and_then(|s| checked(s, &attributes));
        let said = said.with_context(|| (*path).to_owned())?;
        hosts.push(Host { name, said });
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

fn of_source(text: &str) -> Result<Said> {
    let file = syn::parse_file(text)?;
    Ok(Said {
        lacks: list(&file, "LACKS")?,
        granted: list(&file, "GRANTED")?,
        lacks_attributes: list(&file, "LACKS_ATTRIBUTES")?,
        limits: match constant(&file, "LIMITS") {
            Some(_) => list(&file, "LIMITS")?,
            None => Why::new(),
        },
    })
}

fn checked(said: Said, attributes: &[&str]) -> Result<Said> {
    let (lacks, granted) = (&said.lacks, &said.granted);
    for feature in lacks.keys().chain(granted.keys()) {
        ensure!(
            Feature::ALL.iter().any(|(_, known)| known == feature),
            "there is no feature {feature}"
        );
    }
    if let Some(both) = lacks.keys().find(|feature| granted.contains_key(*feature)) {
        bail!("{both} is in both lists: a host lacks it, or grants it");
    }
    if let Some(unknown) = said
        .lacks_attributes
        .keys()
        .find(|name| !attributes.contains(&name.as_str()))
    {
        bail!("there is no attribute {unknown}");
    }
    Ok(said)
}

fn constant<'a>(file: &'a syn::File, name: &str) -> Option<&'a Expr> {
    file.items.iter().find_map(|item| match item {
        Item::Const(constant) if constant.ident == name => Some(&*constant.expr),
        _ => None,
    })
}

/// A constant of the form `&[(Feature::NAME, "sentence"), ...]` or `&[("name", "sentence"), ...]`.
fn list(file: &syn::File, name: &str) -> Result<Why> {
    let expression = constant(file, name).with_context(|| format!("no constant {name}"))?;
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
        "<!-- Generated from the hosts' `features.rs` and `features.toml` by `cargo xtask gen`: do not edit. -->\n\n\
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
                if host.said.lacks.contains_key(*feature) {
                    "no"
                } else if host.said.granted.contains_key(*feature) {
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
        let limits: Vec<&str> = host.said.limits.keys().map(String::as_str).collect();
        let _ = write!(page, "\n## {}\n", host.name);
        for (title, order, why) in [
            ("It lacks", &*features, &host.said.lacks),
            (
                "It grants to some configurations",
                &*features,
                &host.said.granted,
            ),
            (
                "Of the attributes of [chapter 16](../../spec/16-attributes.md), it lacks",
                attributes,
                &host.said.lacks_attributes,
            ),
            ("What its features do not tell", &limits, &host.said.limits),
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
        const LIMITS: &[(&str, &str)] = &[("empty values", "it drops them")];
    "#;
    const TABLES: &str = "[lacks]\nL4 = \"it knows HTTP only\"\n[granted]\n[lacks_attributes]";
    const NAMES: [&str; 2] = ["request.id", "path.raw"];

    #[test]
    fn attributes_are_those_of_the_chapters_table() {
        let spec = "x\n\n| name | type | unit |\n|---|---|---|\n| `a.b` | text | c `d` |\n| `m.<key>` | text | |\n\n| `z` |\n";
        assert_eq!(attributes(spec), ["a.b"]);
    }

    #[test]
    fn a_host_is_read_and_shown() {
        let of = |name, said: Result<Said>| Host {
            name,
            said: checked(said.unwrap(), &NAMES).unwrap(),
        };
        let hosts = [
            of("a-host", of_source(SOURCE)),
            of("another", toml::from_str(TABLES).map_err(Into::into)),
        ];
        let page = page(&hosts, &NAMES);
        assert!(page.contains("| feature | a-host | another |\n|---|---|---|\n"));
        assert!(page.contains("| L4 | no | no |") && page.contains("| ROUTE | granted | yes |"));
        assert!(page.contains("| APPLY | yes | yes |"));
        assert!(page.contains("- L4: it knows HTTP only.\n"));
        assert!(page.contains("it lacks:\n\n- path.raw: it keeps none.\n"));
        assert!(page.contains("do not tell:\n\n- empty values: it drops them.\n"));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let refused = |old: &str, new: &str| {
            let text = SOURCE.replace(old, new);
            of_source(&text)
                .and_then(|s| checked(s, &NAMES))
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

    /// The table against the bits that the module's table had when the suite ran, with all that can be granted.
    #[test]
    fn nginx_is_as_its_reports_say() {
        let said: Said = toml::from_str(&super::super::read(NGINX).unwrap()).unwrap();
        for (host, has_trailers) in [("nginx-debian", false), ("nginx-stable", true)] {
            let file = format!("conformance/reports/v1.0/{host}/report.json");
            let report = super::super::read(&file).unwrap();
            let report: serde_json::Value = serde_json::from_str(&report).unwrap();
            for (feature, name) in Feature::ALL {
                let words = &report["host"]["features"];
                let bits = words[(feature.0 / 64) as usize]
                    .as_u64()
                    .expect("a word of features");
                let trailers = ["TRAILERS_IN_RESPONSE", "PEND_RESPONSE_TRAILERS"].contains(name);
                let expected = !said.lacks.contains_key(*name) && (has_trailers || !trailers);
                assert_eq!(
                    bits >> (feature.0 % 64) & 1 == 1,
                    expected,
                    "{name} of {host}"
                );
            }
        }
    }

    /// The column against the bits that the C source names.
    #[test]
    fn streams_of_lua_are_as_their_source_says() {
        let source = super::super::read("hosts/nginx/src/ngx_http_pxg_lua_filters.c").unwrap();
        let (_, rest) = source.split_once("ngx_http_pxg_lua_features =").unwrap();
        let (list, _) = rest.split_once(';').unwrap();
        let mut named: Vec<String> = Vec::new();
        for word in list.split('|') {
            let (of, what) = word.trim().split_once('(').unwrap();
            let what = what.trim_end_matches(')');
            match of.strip_prefix("NGX_HTTP_PXG_LUA_").unwrap() {
                "BIT" => named.push(what.strip_prefix("PXG_F_").unwrap().to_owned()),
                "BOTH" => named.extend(["REQUEST", "RESPONSE"].map(|d| format!("{what}_{d}"))),
                "PEND" => named
                    .extend(["HEADERS", "BODY", "TRAILERS"].map(|p| format!("PEND_{what}_{p}"))),
                other => panic!("what is {other}?"),
            }
        }
        let of = |path| toml::from_str::<Said>(&super::super::read(path).unwrap()).unwrap();
        let (lua, nginx) = (of(LUA), of(NGINX));
        for (_, name) in Feature::ALL {
            // What the module does not have at all, its streams of Lua do not either.
            let expected = named.iter().any(|n| n == name) && !nginx.lacks.contains_key(*name);
            assert_eq!(!lua.lacks.contains_key(*name), expected, "{name}");
        }
    }
}
