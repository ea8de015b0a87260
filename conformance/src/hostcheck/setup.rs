//! What one start of a host serves, and the files and arguments that say so to it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};

use super::adapter::{Adapter, Ports, fill};

/// One configured instance of a filter.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) name: String,
    pub(crate) filter: String,
    /// Which library: a key of [`Setup::guests`].
    pub(crate) guest: String,
    /// The configuration's bytes.
    pub(crate) config: Vec<u8>,
    /// What the host is asked for this instance: options of the adapter.
    pub(crate) options: Vec<(String, String)>,
}

/// A route and its chain.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) name: String,
    pub(crate) prefix: String,
    /// Instances, in order, each with the bytes of this route's own configuration if it overrides.
    pub(crate) chain: Vec<(String, Option<Vec<u8>>)>,
}

/// What one start of a host serves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    /// Libraries by name.
    pub(crate) guests: Vec<(String, PathBuf)>,
    pub(crate) instances: Vec<Instance>,
    pub(crate) routes: Vec<Route>,
    pub(crate) workers: usize,
    /// Options of the whole host.
    pub(crate) options: Vec<(String, String)>,
}

/// The host can't be configured so.
#[derive(Debug)]
pub(crate) struct NoOption(pub(crate) String);

impl std::fmt::Display for NoOption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the adapter has no option {:?}", self.0)
    }
}

impl std::error::Error for NoOption {}

fn json_string(bytes: &[u8]) -> String {
    let text: String = bytes.iter().map(|b| char::from(*b)).collect();
    serde_json::to_string(&text).unwrap_or_default()
}

/// Writes the host's files for `setup` into `dir`; the variables for its start.
pub(super) fn write_config(
    a: &Adapter,
    dir: &Path,
    upstream: SocketAddr,
    ports: &Ports,
    setup: &Setup,
) -> Result<(BTreeMap<String, String>, Vec<String>)> {
    let mut values = a.own_variables()?;
    values.extend(ports.values());
    values.insert("dir".into(), dir.display().to_string());
    values.insert("upstream".into(), upstream.to_string());
    values.insert("upstream_port".into(), upstream.port().to_string());
    values.insert("workers".into(), setup.workers.max(1).to_string());
    let at = |key: &str, e: String| anyhow!("{}: {key}: {e}", a.file.display());
    let c = &a.config;
    let general = values.clone();
    let options = |list: &[(String, String)], known: &BTreeMap<String, String>| -> Result<String> {
        let mut out = Vec::new();
        for (name, value) in list {
            // `?name`: for hosts that want to be told; others need not be.
            let template = match (
                known.get(name.trim_start_matches('?')),
                name.starts_with('?'),
            ) {
                (Some(t), _) => t,
                (None, true) => continue,
                (None, false) => return Err(NoOption(name.clone()).into()),
            };
            let mut v = general.clone();
            v.insert("value".into(), value.clone());
            out.push(fill(template, &v).map_err(|e| at("config.options", e))?);
        }
        Ok(out.join(c.options_separator.as_deref().unwrap_or("\n")))
    };
    let (main, rest): (Vec<_>, Vec<_>) = setup
        .options
        .iter()
        .cloned()
        .partition(|(name, _)| c.main_options.contains_key(name));
    values.insert("main_options".into(), options(&main, &c.main_options)?);
    values.insert("host_options".into(), options(&rest, &c.host_options)?);
    let path_of = |guest: &str| -> Result<&PathBuf> {
        setup
            .guests
            .iter()
            .find(|g| g.0 == guest)
            .map(|g| &g.1)
            .with_context(|| format!("a setup names the library {guest:?}, which it does not have"))
    };
    let of_instance =
        |i: &Instance, config: &[u8], file: &str| -> Result<BTreeMap<String, String>> {
            let path = dir.join(file);
            std::fs::write(&path, config)?;
            let mut v = general.clone();
            v.insert("instance".into(), i.name.clone());
            v.insert("filter".into(), i.filter.clone());
            v.insert("guest".into(), path_of(&i.guest)?.display().to_string());
            v.insert("guest_name".into(), i.guest.clone());
            v.insert("config".into(), path.display().to_string());
            v.insert("config_json".into(), json_string(config));
            v.insert("options".into(), options(&i.options, &c.options)?);
            Ok(v)
        };
    let mut guests = String::new();
    for (name, path) in &setup.guests {
        let mut v = values.clone();
        v.insert("guest_name".into(), name.clone());
        v.insert("guest".into(), path.display().to_string());
        guests.push_str(&fill(&c.guest, &v).map_err(|e| at("config.guest", e))?);
    }
    let mut by_name = BTreeMap::new();
    let mut instances = String::new();
    let mut instance_arguments = Vec::new();
    for i in &setup.instances {
        let v = of_instance(i, &i.config, &format!("{}.config", i.name))?;
        instances.push_str(&fill(&c.instance, &v).map_err(|e| at("config.instance", e))?);
        by_name.insert(i.name.clone(), (i, v));
    }
    let mut routes = String::new();
    let mut ordered: Vec<&Route> = setup.routes.iter().collect();
    if c.routes_longest_first {
        ordered.sort_by_key(|r| std::cmp::Reverse(r.prefix.len()));
    }
    for r in ordered {
        let mut chain = Vec::new();
        let mut beside = String::new();
        let mut arguments = Vec::new();
        for (name, own) in &r.chain {
            let (i, v) = by_name
                .get(name)
                .with_context(|| format!("route {} names the instance {name:?}", r.name))?;
            let own_values = match own {
                Some(bytes) => of_instance(i, bytes, &format!("{name}.{}.config", r.name))?,
                None => v.clone(),
            };
            let template = if own.is_some() {
                if c.chain_override.is_empty() && c.instance_arguments.is_empty() {
                    return Err(NoOption("chain_override".into()).into());
                }
                &c.chain_override
            } else {
                &c.chain
            };
            chain.push(fill(template, &own_values).map_err(|e| at("config.chain", e))?);
            if own.is_some() {
                beside.push_str(&fill(&c.own, &own_values).map_err(|e| at("config.own", e))?);
            }
            for piece in &c.instance_arguments {
                let filled = fill(piece, v).map_err(|e| at("config.instance_arguments", e))?;
                // Options are several arguments, one a line.
                if piece == "{options}" {
                    arguments.extend(filled.split_whitespace().map(str::to_string));
                } else {
                    arguments.push(filled);
                }
            }
            if own.is_some() && !c.instance_arguments.is_empty() {
                arguments.push("--override".into());
                arguments.push(own_values["config"].clone());
            }
        }
        let mut absent = Vec::new();
        for (name, (_, v)) in &by_name {
            if !r.chain.iter().any(|(c, _)| c == name) {
                absent.push(fill(&c.absent, v).map_err(|e| at("config.absent", e))?);
            }
        }
        let mut v = values.clone();
        v.insert("route".into(), r.name.clone());
        v.insert("prefix".into(), r.prefix.clone());
        let joined = |pieces: &[&Vec<String>]| -> String {
            let all: Vec<&str> = pieces
                .iter()
                .flat_map(|p| p.iter())
                .map(String::as_str)
                .filter(|p| !p.is_empty())
                .collect();
            all.join(&c.separator)
        };
        v.insert("chain".into(), joined(&[&chain]));
        v.insert("own".into(), beside);
        v.insert("absent".into(), joined(&[&absent]));
        v.insert("overrides".into(), joined(&[&chain, &absent]));
        v.insert("chain_arguments".into(), String::new());
        let template = match &c.route_plain {
            Some(plain) if v["overrides"].is_empty() => plain,
            _ => &c.route,
        };
        routes.push_str(&fill(template, &v).map_err(|e| at("config.route", e))?);
        for piece in &c.route_arguments {
            if piece == "{chain_arguments}" {
                instance_arguments.append(&mut arguments);
            } else {
                instance_arguments
                    .push(fill(piece, &v).map_err(|e| at("config.route_arguments", e))?);
            }
        }
        instance_arguments.append(&mut arguments);
    }
    values.insert("guests".into(), guests);
    values.insert("instances".into(), instances);
    values.insert("routes".into(), routes);
    values.insert("chains".into(), String::new());
    for f in &c.files {
        let path = fill(&f.path, &values).map_err(|e| at("config.files.path", e))?;
        let text = fill(&f.text, &values).map_err(|e| at("config.files.text", e))?;
        std::fs::write(&path, text).with_context(|| format!("cannot write {path}"))?;
    }
    let mut arguments = Vec::new();
    for piece in &c.arguments {
        match piece.as_str() {
            "{route_arguments}" => arguments.append(&mut instance_arguments),
            "{host_options}" => arguments.extend(
                values["host_options"]
                    .split_whitespace()
                    .map(str::to_string),
            ),
            _ => arguments.push(fill(piece, &values).map_err(|e| at("config.arguments", e))?),
        }
    }
    Ok((values, arguments))
}

/// A command of the adapter, with its variables replaced.
pub(super) fn filled(
    a: &Adapter,
    key: &str,
    command: &[String],
    values: &BTreeMap<String, String>,
    arguments: &[String],
) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for piece in command {
        if piece == "{arguments}" {
            out.extend(arguments.iter().cloned());
        } else {
            out.push(fill(piece, values).map_err(|e| anyhow!("{}: {key}: {e}", a.file.display()))?);
        }
    }
    Ok(out)
}
