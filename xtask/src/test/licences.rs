//! Licences, bans and sources of the dependencies, by `deny.toml`: with cargo-deny where it is installed, else with
//! this reading of the same keys. (Advisories need another network than the package registries.)

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::Run;
use crate::proc::stdout_of;
use crate::root::root;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Deny {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Graph {
    targets: Vec<String>,
    all_features: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Bans {
    /// Reported, never an error here.
    multiple_versions: String,
    #[serde(rename = "wildcards")]
    _wildcards: String,
    deny: Vec<Banned>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Sources {
    unknown_registry: String,
    unknown_git: String,
    allow_registry: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

pub(super) fn check(c: &Run) -> Result<()> {
    let text = std::fs::read_to_string(root().join("deny.toml")).context("read deny.toml")?;
    let deny: Deny = toml::from_str(&text).context(
        "deny.toml: a key that xtask/src/test/licences.rs does not know; teach it, so that both readings agree",
    )?;
    if stdout_of(c.command(".", "cargo").args(["deny", "--version"])).is_some() {
        return c.run(".", "cargo deny --offline check licenses bans sources");
    }
    c.say("cargo-deny is not installed: reading deny.toml here")?;
    let mut faults = Vec::new();
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut seen = std::collections::BTreeSet::new();
    for target in &deny.graph.targets {
        for package in packages(c, &deny, target)? {
            if seen.insert(package.id.clone()) {
                faults.extend(deny.faults(&package));
                let versions = versions.entry(package.name).or_default();
                versions.push(package.version);
            }
        }
    }
    for (name, versions) in versions.iter().filter(|(_, v)| v.len() > 1) {
        let all = versions.join(", ");
        c.say(&format!(
            "{}: {name} in versions {all}",
            deny.bans.multiple_versions
        ))?;
    }
    c.say(&format!("{} packages read", seen.len()))?;
    ensure!(seen.len() > 1, "cargo metadata has no packages");
    for fault in &faults {
        c.say(fault)?;
    }
    ensure!(
        faults.is_empty(),
        "{} dependencies break deny.toml",
        faults.len()
    );
    Ok(())
}

fn packages(c: &Run, deny: &Deny, target: &str) -> Result<Vec<Package>> {
    let mut command = c.command(".", "cargo");
    command.args(["metadata", "--format-version", "1", "--locked"]);
    command.args(["--filter-platform", target]);
    if deny.graph.all_features {
        command.arg("--all-features");
    }
    let output = command.output().context("run cargo metadata")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("read cargo metadata's output")?;
    // `packages` has those of other platforms, too.
    let used = |p: &Package| metadata.resolve.nodes.iter().any(|n| n.id == p.id);
    Ok(metadata.packages.into_iter().filter(used).collect())
}

impl Deny {
    fn faults(&self, package: &Package) -> Vec<String> {
        let mut faults = Vec::new();
        let mut fault = |text: String| {
            faults.push(format!("{} {}: {text}", package.name, package.version));
        };
        match &package.license {
            None => fault("no licence in its manifest".into()),
            Some(text) => match spdx::Expression::parse_mode(text, spdx::ParseMode::LAX) {
                Err(error) => fault(format!("licence `{text}`: {error}")),
                Ok(expression) => {
                    if !expression.evaluate(|r| self.licenses.allow.contains(&r.to_string())) {
                        fault(format!("licence `{text}` is not allowed by deny.toml"));
                    }
                }
            },
        }
        if self.bans.deny.iter().any(|b| b.name == package.name) {
            fault("banned by deny.toml".into());
        }
        if let Some(source) = &package.source {
            let registry = source
                .strip_prefix("registry+")
                .or(source.strip_prefix("sparse+"));
            let refused = match registry {
                Some(url) => {
                    self.sources.unknown_registry == "deny"
                        && !self.sources.allow_registry.iter().any(|a| a == url)
                }
                None => self.sources.unknown_git == "deny",
            };
            if refused {
                fault(format!("source {source} is not allowed by deny.toml"));
            }
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(license: &str, name: &str, source: Option<&str>) -> String {
        let text = std::fs::read_to_string(root().join("deny.toml")).unwrap();
        let deny: Deny = toml::from_str(&text).unwrap();
        let package = Package {
            id: String::new(),
            name: name.into(),
            version: "1.0.0".into(),
            license: (!license.is_empty()).then(|| license.into()),
            source: source.map(Into::into),
        };
        deny.faults(&package).join("\n")
    }

    const CRATES_IO: Option<&str> = Some("registry+https://github.com/rust-lang/crates.io-index");

    #[test]
    fn what_deny_toml_allows_passes() {
        assert_eq!(faults("MIT OR Apache-2.0", "a", CRATES_IO), "");
        assert_eq!(faults("MIT/Apache-2.0", "a", CRATES_IO), "");
        assert_eq!(faults("GPL-3.0-only OR MIT", "a", CRATES_IO), "");
        assert_eq!(faults("Apache-2.0 WITH LLVM-exception", "a", CRATES_IO), "");
        assert_eq!(faults("(MIT OR Apache-2.0) AND Unicode-3.0", "a", None), "");
    }

    #[test]
    fn what_it_does_not_allow_is_named() {
        assert!(faults("GPL-3.0-only", "a", CRATES_IO).contains("a 1.0.0: licence `GPL-3.0-only`"));
        assert!(faults("MIT AND GPL-3.0-only", "a", CRATES_IO).contains("not allowed"));
        assert!(faults("", "a", CRATES_IO).contains("no licence"));
        assert!(faults("MIT", "openssl-sys", CRATES_IO).contains("banned"));
        assert!(faults("MIT", "a", Some("git+https://example.com/a")).contains("source git+"));
        assert!(faults("MIT", "a", Some("registry+https://example.com")).contains("source reg"));
    }
}
