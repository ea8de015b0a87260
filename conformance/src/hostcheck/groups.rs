//! What one start of a host serves: instances of the probe, routes, and the scripts of the cases.

use std::fmt::Write as _;
use std::path::Path;

use super::cases::Case;
use super::setup::{Instance, Route, Setup};

/// An instance of the common setup: its name, the head of its configuration, options of the host for it.
struct Common {
    name: &'static str,
    head: &'static str,
    options: &'static [(&'static str, &'static str)],
}

const fn common(name: &'static str, head: &'static str) -> Common {
    Common {
        name,
        head,
        options: &[],
    }
}

/// The instances that cases share. `a`, `b` and `c` are the chain of `/`. They stand in the order in which they are in
/// any chain: some hosts have one chain, of which routes leave out some.
const INSTANCES: &[Common] = &[
    common("a", "subscribe all\npend all\n"),
    Common {
        name: "b",
        head: "subscribe all\npend all\n",
        options: &[("?trailers", "x-t")],
    },
    Common {
        name: "open",
        head: "subscribe all\npend all\n",
        options: &[("open", "")],
    },
    common("c", "subscribe all\npend all\n"),
    common("duplex", "subscribe all\npend all\nflags duplex\n"),
    common("orphan", "subscribe all\npend all\nflags orphan peer\n"),
    common(
        "resizes",
        "subscribe all\npend all\nflags resizes-request resizes-response\n",
    ),
    common("peer", "subscribe all\npend all\nflags peer\n"),
    common(
        "small",
        "subscribe all\npend all\nmax-body request 1000\nmax-body response 1000\n",
    ),
    common(
        "small-whole",
        "subscribe all\npend all\nmax-body request 1000\nmax-body response 1000\nmode request whole\nmode response whole\n",
    ),
    common(
        "bodies",
        "subscribe request-body response-body log\npend request-body response-body\nmode request whole\nmode response whole\nflags peer\n",
    ),
    common(
        "meta",
        "subscribe all\npend all\nattr metadata.a.key all\nattr metadata.a.none all\n",
    ),
    common("never", "subscribe all\npend none\n"),
    common(
        "headers",
        "subscribe request-headers response-headers log\npend none\n",
    ),
    common(
        "late",
        "subscribe response-headers response-body log\npend none\nmode response stream\nflags peer\n",
    ),
    common("brief", "subscribe all\npend all\npend-ms 60\n"),
    Common {
        name: "open-brief",
        head: "subscribe all\npend all\npend-ms 60\n",
        options: &[("open", "")],
    },
    common(
        "glance",
        "subscribe request-headers\npend request-headers\n",
    ),
    common("glance-sync", "subscribe request-headers\npend none\n"),
    Common {
        name: "glance-open",
        head: "subscribe request-headers\npend request-headers\n",
        options: &[("open", "")],
    },
    Common {
        name: "open-duplex",
        head: "subscribe all\npend all\nflags duplex\n",
        options: &[("open", "")],
    },
];

/// The routes: prefix and chain. A chain of one instance is at its name.
const ROUTES: &[(&str, &[&str])] = &[
    ("/", &["a", "b", "c"]),
    ("/duplex", &["duplex"]),
    ("/orphan", &["a", "b", "orphan"]),
    ("/resizes", &["resizes"]),
    ("/peer", &["peer"]),
    ("/small", &["small"]),
    ("/small-whole", &["small-whole"]),
    ("/bodies", &["bodies"]),
    ("/meta", &["a", "meta"]),
    ("/never", &["never"]),
    ("/headers", &["headers"]),
    ("/late", &["a", "late"]),
    ("/brief", &["brief"]),
    ("/open", &["a", "open", "c"]),
    ("/open-brief", &["open-brief"]),
    ("/open-duplex", &["open-duplex"]),
    ("/glance", &["glance"]),
    ("/glance-sync", &["glance-sync"]),
    ("/glance-open", &["glance-open"]),
    ("/none", &[]),
];

/// The part of a case's script that is for `instance`.
fn script_for(script: &str, instance: &str) -> String {
    let mut out = String::new();
    for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
        if let Some((who, what)) = line.split_once(' ')
            && (who == instance || who == "*")
        {
            let _ = writeln!(out, "  {what}");
        }
    }
    out
}

/// A configuration of the probe.
pub(crate) fn config(dir: &Path, head: &str, instance: &str, scripts: &[(&str, &str)]) -> Vec<u8> {
    let mut out = format!("record {}\ninstance {instance}\n{head}\n", dir.display());
    for (case, script) in scripts {
        let own = script_for(script, instance);
        if !own.is_empty() {
            let _ = write!(out, "case {case}\n{own}");
        }
    }
    out.into_bytes()
}

/// The setup that most cases share.
pub(crate) fn main(dir: &Path, probe: &Path, cases: &[&Case]) -> Setup {
    let scripts: Vec<(&str, &str)> = cases.iter().map(|c| (c.name, c.script)).collect();
    Setup {
        guests: vec![("probe".into(), probe.to_path_buf())],
        instances: INSTANCES
            .iter()
            .map(|i| Instance {
                name: i.name.into(),
                filter: "probe".into(),
                guest: "probe".into(),
                config: config(dir, i.head, i.name, &scripts),
                options: i
                    .options
                    .iter()
                    .map(|(n, v)| ((*n).to_string(), (*v).to_string()))
                    .collect(),
            })
            .collect(),
        routes: ROUTES
            .iter()
            .map(|(prefix, chain)| Route {
                name: match prefix.trim_matches('/') {
                    "" => "root".into(),
                    name => name.into(),
                },
                prefix: (*prefix).into(),
                chain: chain.iter().map(|i| ((*i).to_string(), None)).collect(),
            })
            .collect(),
        workers: 2,
        options: Vec::new(),
    }
}

/// A setup of one chain, for hosts of a case's own: instances with the heads of their configurations.
pub(crate) fn chain(dir: &Path, probe: &Path, case: &Case, instances: &[(&str, &str)]) -> Setup {
    let scripts = [(case.name, case.script)];
    Setup {
        guests: vec![("probe".into(), probe.to_path_buf())],
        instances: instances
            .iter()
            .map(|(name, head)| Instance {
                name: (*name).into(),
                filter: "probe".into(),
                guest: "probe".into(),
                config: config(dir, head, name, &scripts),
                options: Vec::new(),
            })
            .collect(),
        routes: vec![Route {
            name: "root".into(),
            prefix: "/".into(),
            chain: instances
                .iter()
                .map(|(n, _)| ((*n).to_string(), None))
                .collect(),
        }],
        workers: 2,
        options: Vec::new(),
    }
}
