//! An adapter: everything the suite must know of a host, as data. Adding a host takes one file of this form and no code.
//!
//! Texts are templates: `{name}` is replaced by a variable, `{{` and `}}` are braces. A template that names a variable
//! which does not exist is refused when the adapter is read, with the place and the variables that there are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use regex::Regex;
use serde::Deserialize;

use crate::subject::Expect;

/// The version of this format.
pub(crate) const PROTOCOL: u32 = 1;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Adapter {
    /// The version of this format, 1.
    pub(crate) protocol: u32,
    /// The host's name in reports.
    pub(crate) name: String,
    /// Variables of the adapter's own: the first of `env`'s value and `first_of` that exists.
    #[serde(default)]
    pub(crate) variables: BTreeMap<String, Variable>,
    /// Prints the host's version.
    pub(crate) version: Command,
    /// Starts the host in the foreground.
    pub(crate) start: Start,
    /// When it accepts connections.
    pub(crate) ready: Sign,
    /// Where it listens; the first group of `match` is `ADDRESS:PORT`.
    pub(crate) listen: Listen,
    /// How it takes changed configurations.
    #[serde(default)]
    pub(crate) reload: Option<Act>,
    /// How it ends gracefully.
    pub(crate) stop: Act,
    /// Its admin listener: counters, and the level of its log.
    #[serde(default)]
    pub(crate) admin: Option<Admin>,
    /// Files to write, and the pieces of which they are made.
    #[serde(default)]
    pub(crate) config: Config,
    /// What the host's own limits are, for cases that go up to them.
    #[serde(default)]
    pub(crate) limits: Limits,
    /// What it can't be asked: an option, a protocol or a case, each with its reason.
    #[serde(default)]
    pub(crate) not_applicable: BTreeMap<String, String>,
    /// Known failures, by rule or case.
    #[serde(default)]
    pub(crate) expect: BTreeMap<String, Expect>,
    /// The file that it was read from.
    #[serde(skip)]
    pub(crate) file: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Variable {
    /// An environment variable whose value wins.
    #[serde(default)]
    pub(crate) env: Option<String>,
    /// Paths, of which the first that exists is taken.
    #[serde(default)]
    pub(crate) first_of: Vec<String>,
    /// How to get it, where none exists.
    #[serde(default)]
    pub(crate) hint: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Command {
    pub(crate) command: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Start {
    /// Program and arguments. An argument that is exactly `{arguments}` is replaced by `config.arguments`, piece by piece.
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
}

/// Something that the host prints, or a file that it writes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sign {
    /// A regular expression that a line of its output, standard or error, matches.
    #[serde(default)]
    pub(crate) line: Option<String>,
    /// A line that says that it will not serve, though it runs.
    #[serde(default)]
    pub(crate) refused: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listen {
    /// A line of output with the address in its first group.
    #[serde(default)]
    pub(crate) line: Option<String>,
    /// A file with the address of an admin listener...
    #[serde(default)]
    pub(crate) admin_file: Option<String>,
    /// ...the path to get there...
    #[serde(default)]
    pub(crate) get: Option<String>,
    /// ...and what in the answer is the address: its first group.
    #[serde(default)]
    pub(crate) matches: Option<String>,
}

/// A listener for operators.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Admin {
    /// A line of output with its address in the first group...
    #[serde(default)]
    pub(crate) line: Option<String>,
    /// ...or a file that holds it.
    #[serde(default)]
    pub(crate) file: Option<String>,
    /// `GET` of this path answers the counters in Prometheus' text form.
    #[serde(default)]
    pub(crate) metrics: String,
    /// What stands before the names of chapter 15.4.
    #[serde(default)]
    pub(crate) prefix: String,
    /// A counter among them that rises each time the host has brought the others up to date; none if they always are.
    #[serde(default)]
    pub(crate) handed_over: Option<String>,
    /// Method and path that set the level of the log to `{value}`: trace, debug, info, warn, error or off.
    #[serde(default)]
    pub(crate) log_level: Option<(String, String)>,
}

/// A signal or a command.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Act {
    /// `HUP`, `TERM`, `INT`, `QUIT`, `USR1`, `USR2`, `WINCH`.
    #[serde(default)]
    pub(crate) signal: Option<String>,
    #[serde(default)]
    pub(crate) command: Vec<String>,
    /// A line that says that a reload has been taken.
    #[serde(default)]
    pub(crate) done: Option<String>,
    /// A line that says that it has been refused.
    #[serde(default)]
    pub(crate) refused: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) files: Vec<ConfigFile>,
    /// Pieces for the start command.
    #[serde(default)]
    pub(crate) arguments: Vec<String>,
    /// Once for each library: `{guest}` its path, `{guest_name}`.
    #[serde(default)]
    pub(crate) guest: String,
    /// Once for each instance: `{instance} {filter} {guest} {guest_name} {config} {config_json} {options}`.
    #[serde(default)]
    pub(crate) instance: String,
    /// Pieces of the start command for each instance of the chain, in its order.
    #[serde(default)]
    pub(crate) instance_arguments: Vec<String>,
    /// Pieces of the start command for each route: `{chain_arguments}` stands for those of its chain.
    #[serde(default)]
    pub(crate) route_arguments: Vec<String>,
    /// Once for each route: `{route} {prefix} {chain} {absent}`, and `{overrides}`: both.
    #[serde(default)]
    pub(crate) route: String,
    /// For a route without `{overrides}`, instead of `route`.
    #[serde(default)]
    pub(crate) route_plain: Option<String>,
    /// Once for each instance in a route's chain, in its order.
    #[serde(default)]
    pub(crate) chain: String,
    /// For an instance whose configuration a route overrides, instead of `chain`: besides `{config}` of the override.
    #[serde(default)]
    pub(crate) chain_override: String,
    /// Once for each instance that is not in a route's chain.
    #[serde(default)]
    pub(crate) absent: String,
    /// The routes with the longest prefix first, for hosts that take the first match.
    #[serde(default)]
    pub(crate) routes_longest_first: bool,
    /// Between the options of an instance; a line end where it is not said.
    #[serde(default)]
    pub(crate) options_separator: Option<String>,
    /// Between the pieces of `{chain}` and `{absent}`.
    #[serde(default)]
    pub(crate) separator: String,
    /// What a case can ask of an instance or of the host, and how it is written: `{value}`.
    #[serde(default)]
    pub(crate) options: BTreeMap<String, String>,
    /// The same for options of the whole host.
    #[serde(default)]
    pub(crate) host_options: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigFile {
    pub(crate) path: String,
    pub(crate) text: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Most bytes of one read of the host, for views that may exceed `max_body` by one.
    pub(crate) read_bytes: u64,
    /// The hold time of chapter 7.4 in milliseconds.
    pub(crate) hold_time_ms: u64,
    /// The longest time, in milliseconds, that the host is given for one step.
    pub(crate) patience_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            read_bytes: 1 << 20,
            hold_time_ms: 100,
            patience_ms: 10_000,
        }
    }
}

/// The variables that a template may name, by where it stands.
const GENERAL: &[&str] = &[
    "here",
    "dir",
    "upstream",
    "upstream_port",
    "workers",
    "port",
];
const PIECES: &[&str] = &["guests", "instances", "routes", "chains", "host_options"];
const INSTANCE: &[&str] = &[
    "instance",
    "filter",
    "guest",
    "guest_name",
    "config",
    "config_json",
    "options",
    "value",
];
const ROUTE: &[&str] = &[
    "route",
    "prefix",
    "chain",
    "absent",
    "overrides",
    "chain_arguments",
];

/// Replaces the variables of `template`.
pub(crate) fn fill(template: &str, values: &BTreeMap<String, String>) -> Result<String, String> {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(i) = rest.find(['{', '}']) {
        out.push_str(&rest[..i]);
        let brace = &rest[i..=i];
        if rest[i + 1..].starts_with(brace) {
            out.push_str(brace);
            rest = &rest[i + 2..];
            continue;
        }
        let Some(end) = rest[i..].find('}').filter(|_| brace == "{") else {
            return Err(format!("a single {brace:?}; write it twice for one brace"));
        };
        let name = &rest[i + 1..i + end];
        match values.get(name) {
            Some(v) => out.push_str(v),
            None => return Err(format!("no variable {name:?}")),
        }
        rest = &rest[i + end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

impl Adapter {
    /// Reads and checks an adapter.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the adapter {}", path.display()))?;
        let mut a: Self = toml::from_str(&text)
            .with_context(|| format!("{}: not an adapter as expected", path.display()))?;
        a.file = std::fs::canonicalize(path)?;
        a.check()?;
        Ok(a)
    }

    fn wrong(&self, key: &str, value: &str, expected: impl std::fmt::Display) -> anyhow::Error {
        anyhow::anyhow!("{}: {key} = {value:?}: {expected}", self.file.display())
    }

    fn check(&self) -> Result<()> {
        if self.protocol != PROTOCOL {
            return Err(self.wrong(
                "protocol",
                &self.protocol.to_string(),
                format!("this program reads protocol {PROTOCOL}"),
            ));
        }
        for (key, c) in [
            ("version.command", &self.version.command),
            ("start.command", &self.start.command),
        ] {
            if c.is_empty() {
                return Err(self.wrong(key, "", "expected a program and its arguments"));
            }
        }
        for (key, act) in [("stop", Some(&self.stop)), ("reload", self.reload.as_ref())] {
            let Some(act) = act else { continue };
            match &act.signal {
                Some(s) if signal(s).is_none() => {
                    return Err(self.wrong(
                        &format!("{key}.signal"),
                        s,
                        "expected one of HUP, TERM, INT, QUIT, USR1, USR2, WINCH",
                    ));
                }
                None if act.command.is_empty() => {
                    return Err(self.wrong(key, "", "expected `signal` or `command`"));
                }
                _ => {}
            }
        }
        let l = &self.listen;
        match (&l.line, &l.admin_file) {
            (Some(_), None) => {}
            (None, Some(_)) if l.get.is_some() && l.matches.is_some() => {}
            _ => bail!(
                "{}: [listen]: expected `line`, or `admin_file` with `get` and `matches`",
                self.file.display()
            ),
        }
        if let Some(a) = &self.admin
            && a.line.is_some() == a.file.is_some()
        {
            bail!(
                "{}: [admin]: expected either `line` or `file`",
                self.file.display()
            );
        }
        let no_line = None;
        for (key, text, groups) in [
            (
                "admin.line",
                self.admin.as_ref().map_or(&no_line, |a| &a.line),
                1,
            ),
            ("ready.line", &self.ready.line, 0),
            ("ready.refused", &self.ready.refused, 0),
            ("listen.line", &l.line, 1),
            ("listen.matches", &l.matches, 1),
            (
                "reload.done",
                self.reload.as_ref().map_or(&None, |r| &r.done),
                0,
            ),
            (
                "reload.refused",
                self.reload.as_ref().map_or(&None, |r| &r.refused),
                0,
            ),
        ] {
            let Some(text) = text else { continue };
            let r = Regex::new(text).map_err(|e| self.wrong(key, text, e))?;
            if r.captures_len() <= groups {
                return Err(self.wrong(
                    key,
                    text,
                    "expected a group in parentheses around the address",
                ));
            }
        }
        self.check_templates()?;
        for (name, x) in &self.expect {
            if x.reason.trim().is_empty() {
                return Err(self.wrong(
                    &format!("expect.{name:?}.reason"),
                    "",
                    "expected a reason",
                ));
            }
        }
        for (name, why) in &self.not_applicable {
            if why.trim().is_empty() {
                return Err(self.wrong(
                    &format!("not_applicable.{name:?}"),
                    "",
                    "expected a reason",
                ));
            }
        }
        Ok(())
    }

    fn check_templates(&self) -> Result<()> {
        let own: Vec<&str> = self.variables.keys().map(String::as_str).collect();
        let c = &self.config;
        let mut all: Vec<(String, &String, Vec<&[&str]>)> = Vec::new();
        let list = |key: &str, v: &'_ [String]| -> Vec<(String, usize)> {
            (0..v.len()).map(|i| (format!("{key}[{i}]"), i)).collect()
        };
        for (key, i) in list("start.command", &self.start.command) {
            all.push((key, &self.start.command[i], vec![&["arguments"]]));
        }
        for (key, i) in list("version.command", &self.version.command) {
            all.push((key, &self.version.command[i], vec![]));
        }
        for (key, v) in &self.start.env {
            all.push((format!("start.env.{key}"), v, vec![]));
        }
        if let Some(f) = self.admin.as_ref().and_then(|a| a.file.as_ref()) {
            all.push(("admin.file".into(), f, vec![]));
        }
        if let Some((_, path)) = self.admin.as_ref().and_then(|a| a.log_level.as_ref()) {
            all.push(("admin.log_level".into(), path, vec![&["value"]]));
        }
        for (i, f) in c.files.iter().enumerate() {
            all.push((format!("config.files[{i}].path"), &f.path, vec![]));
            all.push((format!("config.files[{i}].text"), &f.text, vec![PIECES]));
        }
        for (key, i) in list("config.arguments", &c.arguments) {
            all.push((
                key,
                &c.arguments[i],
                vec![&["instance_arguments", "route_arguments", "host_options"]],
            ));
        }
        all.push(("config.guest".into(), &c.guest, vec![INSTANCE]));
        all.push(("config.instance".into(), &c.instance, vec![INSTANCE]));
        for (key, i) in list("config.instance_arguments", &c.instance_arguments) {
            all.push((key, &c.instance_arguments[i], vec![INSTANCE]));
        }
        for (key, i) in list("config.route_arguments", &c.route_arguments) {
            all.push((key, &c.route_arguments[i], vec![ROUTE]));
        }
        all.push(("config.route".into(), &c.route, vec![ROUTE]));
        if let Some(plain) = &c.route_plain {
            all.push(("config.route_plain".into(), plain, vec![ROUTE]));
        }
        all.push(("config.chain".into(), &c.chain, vec![INSTANCE]));
        all.push((
            "config.chain_override".into(),
            &c.chain_override,
            vec![INSTANCE],
        ));
        all.push(("config.absent".into(), &c.absent, vec![INSTANCE]));
        for (key, v) in c.options.iter().chain(&c.host_options) {
            all.push((format!("config.options.{key}"), v, vec![&["value"]]));
        }
        for (key, text, more) in all {
            let values: BTreeMap<String, String> = GENERAL
                .iter()
                .chain(own.iter())
                .chain(more.iter().flat_map(|m| m.iter()))
                .map(|n| ((*n).to_string(), String::new()))
                .collect();
            if let Err(e) = fill(text, &values) {
                let known: Vec<&str> = values.keys().map(String::as_str).collect();
                return Err(self.wrong(
                    &key,
                    text.lines().find(|l| l.contains(['{', '}'])).unwrap_or(""),
                    format!("{e}; there are {}", known.join(", ")),
                ));
            }
        }
        Ok(())
    }

    /// `{here}` and the adapter's own variables.
    pub(crate) fn own_variables(&self) -> Result<BTreeMap<String, String>> {
        let here = self.file.parent().unwrap_or(Path::new("/"));
        let mut out = BTreeMap::from([("here".to_string(), here.display().to_string())]);
        for (name, v) in &self.variables {
            let from_env = v
                .env
                .as_ref()
                .and_then(|e| std::env::var(e).ok())
                .filter(|s| !s.is_empty());
            let found = match from_env {
                Some(path) => Some(path),
                None => v
                    .first_of
                    .iter()
                    .map(|p| {
                        fill(p, &out).map_err(|e| self.wrong(&format!("variables.{name}"), p, e))
                    })
                    .collect::<Result<Vec<_>>>()?
                    .into_iter()
                    .find(|p| Path::new(p).exists()),
            };
            let Some(found) = found else {
                bail!(
                    "{}: variables.{name}: none of {:?} exists{}{}",
                    self.file.display(),
                    v.first_of,
                    v.env
                        .as_ref()
                        .map(|e| format!("; set {e}"))
                        .unwrap_or_default(),
                    if v.hint.is_empty() {
                        String::new()
                    } else {
                        format!(": {}", v.hint)
                    },
                );
            };
            out.insert(name.clone(), found);
        }
        Ok(out)
    }
}

/// The number of a signal's name.
pub(crate) fn signal(name: &str) -> Option<rustix::process::Signal> {
    use rustix::process::Signal;
    Some(match name {
        "HUP" => Signal::HUP,
        "TERM" => Signal::TERM,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "WINCH" => Signal::WINCH,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
protocol = 1
name = "a host"
[variables.binary]
first_of = ["/bin/true"]
[version]
command = ["{binary}"]
[start]
command = ["{binary}", "{dir}/x"]
[ready]
line = "ready"
[listen]
line = "at (.*)"
[stop]
signal = "TERM"
"#;

    fn error(change: impl FnOnce(String) -> String) -> String {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("a.toml");
        std::fs::write(&file, change(GOOD.to_string())).expect("it is written");
        match Adapter::read(&file) {
            Ok(_) => String::new(),
            Err(e) => format!("{e:#}"),
        }
    }

    #[test]
    fn mistakes_are_named_with_file_key_value_and_what_was_expected() {
        assert_eq!(error(|t| t), "");
        for (from, to, parts) in [
            (
                "protocol = 1",
                "protocol = 2",
                vec!["a.toml", "protocol", "\"2\"", "protocol 1"],
            ),
            (
                "{dir}/x",
                "{dri}/x",
                vec![
                    "a.toml",
                    "start.command[1]",
                    "{dri}/x",
                    "no variable \"dri\"",
                    "dir",
                ],
            ),
            (
                "{dir}/x",
                "{dir/x",
                vec!["a.toml", "start.command[1]", "single"],
            ),
            (
                "\"TERM\"",
                "\"KILLALL\"",
                vec!["a.toml", "stop.signal", "KILLALL", "HUP, TERM"],
            ),
            (
                "at (.*)",
                "at .*",
                vec!["a.toml", "listen.line", "at .*", "group in parentheses"],
            ),
            (
                "\"ready\"",
                "\"(\"",
                vec!["a.toml", "ready.line", "unclosed group"],
            ),
            ("[ready]", "[raedy]", vec!["a.toml", "raedy"]),
            (
                "command = [\"{binary}\"]",
                "command = []",
                vec!["a.toml", "version.command", "a program"],
            ),
        ] {
            let text = error(|t| t.replace(from, to));
            for p in parts {
                assert!(text.contains(p), "{to:?}: {p:?} is not in {text}");
            }
        }
    }

    #[test]
    fn a_variable_that_does_not_exist_says_how_to_get_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("a.toml");
        let text = GOOD.replace("/bin/true", "/no/such/program");
        std::fs::write(
            &file,
            text.replace("first_of", "hint = \"build it\"\nfirst_of"),
        )
        .expect("it is written");
        let a = Adapter::read(&file).expect("it is an adapter");
        let e = format!("{:#}", a.own_variables().expect_err("nothing exists"));
        assert!(
            e.contains("/no/such/program") && e.contains("build it"),
            "{e}"
        );
    }

    #[test]
    fn the_shipped_adapters_are_adapters() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("adapters");
        let all: Vec<_> = std::fs::read_dir(folder)
            .expect("they are there")
            .flatten()
            .collect();
        assert!(all.len() >= 3);
        for a in all {
            if let Err(e) = Adapter::read(&a.path()) {
                panic!("{e:#}");
            }
        }
    }
}
