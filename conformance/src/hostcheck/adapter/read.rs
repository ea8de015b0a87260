//! Reading an adapter: its mistakes, its templates, its variables.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use regex::Regex;

use super::{Adapter, PROTOCOL, ports};

/// The variables that a template may name, by where it stands.
const GENERAL: &[&str] = &["here", "dir", "upstream", "upstream_port", "workers"];
const SIGNALS: &str = "expected one of HUP, TERM, INT, QUIT, USR1, USR2, WINCH";
const PIECES: &[&str] = &[
    "guests",
    "instances",
    "routes",
    "chains",
    "host_options",
    "main_options",
];
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
    "own",
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
                    return Err(self.wrong(&format!("{key}.signal"), s, SIGNALS));
                }
                None if act.command.is_empty() => {
                    return Err(self.wrong(key, "", "expected `signal` or `command`"));
                }
                _ => {}
            }
        }
        let l = &self.listen;
        match (&l.address, &l.line, &l.admin_file) {
            (Some(_), None, None) | (None, Some(_), None) => {}
            (None, None, Some(_)) if l.get.is_some() && l.matches.is_some() => {}
            _ => bail!(
                "{}: [listen]: expected one of `address`, `line`, and `admin_file` with `get` and `matches`",
                self.file.display()
            ),
        }
        if let Some(a) = &self.admin
            && [&a.address, &a.line, &a.file]
                .iter()
                .filter(|x| x.is_some())
                .count()
                != 1
        {
            bail!(
                "{}: [admin]: expected one of `address`, `line` and `file`",
                self.file.display()
            );
        }
        if let Some(s) = &self.start.last_signal
            && signal(s).is_none()
        {
            return Err(self.wrong("start.last_signal", s, SIGNALS));
        }
        let no_lines = Vec::new();
        let of_reload = self.reload.as_ref().map_or(&no_lines, |r| &r.each_worker);
        for (key, all) in [
            ("ready.each_worker", &self.ready.each_worker),
            ("reload.each_worker", of_reload),
        ] {
            for text in all {
                Regex::new(text).map_err(|e| self.wrong(key, text, e))?;
            }
        }
        if !self.stop.each_worker.is_empty() {
            return Err(self.wrong(
                "stop.each_worker",
                &self.stop.each_worker[0],
                "a stop is done when the host has ended",
            ));
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
        let admin = self.admin.as_ref();
        for (key, text) in [
            ("listen.address", self.listen.address.as_ref()),
            ("listen.h2c", self.listen.h2c.as_ref()),
            ("admin.address", admin.and_then(|a| a.address.as_ref())),
            ("admin.file", admin.and_then(|a| a.file.as_ref())),
        ] {
            all.extend(text.map(|t| (key.to_string(), t, vec![])));
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
        all.push(("config.own".into(), &c.own, vec![INSTANCE]));
        all.push(("config.absent".into(), &c.absent, vec![INSTANCE]));
        for (key, v) in c
            .options
            .iter()
            .chain(&c.host_options)
            .chain(&c.main_options)
        {
            all.push((format!("config.options.{key}"), v, vec![&["value"]]));
        }
        for (key, text, more) in all {
            let values: BTreeMap<String, String> = GENERAL
                .iter()
                .chain(&ports::NAMES)
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
                "line = \"at (.*)\"",
                "line = \"at (.*)\"\naddress = \"127.0.0.1:{port}\"",
                vec!["a.toml", "[listen]", "one of `address`, `line`"],
            ),
            (
                "line = \"at (.*)\"",
                "address = \"127.0.0.1:{prot}\"",
                vec!["a.toml", "listen.address", "{prot}", "admin_port", "port"],
            ),
            (
                "line = \"ready\"",
                "each_worker = [\"(\"]",
                vec!["a.toml", "ready.each_worker", "unclosed group"],
            ),
            (
                "[ready]",
                "last_signal = \"SEVEN\"\n[ready]",
                vec!["a.toml", "start.last_signal", "SEVEN", "HUP, TERM"],
            ),
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
