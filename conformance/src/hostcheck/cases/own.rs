//! Hosts of a case's own: started with other libraries, configurations or options, reloaded, stopped; or refused.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Result, bail};
use regex::Regex;

use super::prelude::*;
use crate::hostcheck::cx::{Running, THE_END};
use crate::hostcheck::groups;
use crate::hostcheck::history;
use crate::hostcheck::setup::{Instance, Route, Setup};

/// A setup of one chain: each instance with the head of its configuration, and the case's script.
pub(super) fn chain(cx: &Cx, instances: &[(&str, &str)]) -> Result<Setup> {
    chain_of(cx, &cx.shared().probe.clone(), instances)
}

/// The same with another library.
pub(super) fn chain_of(cx: &Cx, library: &Path, instances: &[(&str, &str)]) -> Result<Setup> {
    let Some(case) = super::find(cx.name()) else {
        bail!("no case {}", cx.name());
    };
    // Records go where the environment of the host says.
    Ok(groups::chain(Path::new("-"), library, case, instances))
}

/// The probe as a library of its own that behaves as `asks` says.
pub(super) fn variant(cx: &Cx, asks: &str) -> Result<PathBuf> {
    cx.shared().workshop.variant(&cx.shared().probe, asks)
}

/// One more instance, of another library, alone on a route.
pub(super) fn also(cx: &Cx, setup: &mut Setup, library: (&str, &Path), name: &str, head: &str) {
    let (guest, path) = library;
    if !setup.guests.iter().any(|g| g.0 == guest) {
        setup.guests.push((guest.into(), path.to_path_buf()));
    }
    let scripts: Vec<(&str, &str)> = super::find(cx.name())
        .map(|c| (c.name, c.script))
        .into_iter()
        .collect();
    setup.instances.push(Instance {
        name: name.into(),
        filter: "probe".into(),
        guest: guest.into(),
        config: groups::config(Path::new("-"), head, name, &scripts),
        options: Vec::new(),
    });
    setup.routes.push(Route {
        name: name.into(),
        prefix: format!("/{name}"),
        chain: vec![(name.into(), None)],
    });
}

/// An option for the instance `name`.
pub(super) fn option(setup: &mut Setup, name: &str, key: &str, value: &str) {
    for i in setup.instances.iter_mut().filter(|i| i.name == name) {
        i.options.push((key.into(), value.into()));
    }
}

/// A running host, with hands on it.
pub(super) struct Own {
    outer: Cx,
    pub(super) cx: Cx,
    pub(super) running: Rc<Running>,
}

impl Own {
    /// Starts a host, which is expected to get ready.
    pub(super) async fn start(cx: &Cx, setup: &Setup) -> Result<Self> {
        match cx.start(setup).await? {
            Ok(running) => Ok(Self {
                outer: cx.clone(),
                cx: cx.on(running.clone()),
                running,
            }),
            Err(e) => bail!(
                "the host did not get ready; it printed:\n{}",
                e.output.join("\n")
            ),
        }
    }

    /// Has it take `setup`; whether it did, as far as it says.
    pub(super) async fn reload(&self, setup: &Setup) -> Result<Option<bool>> {
        let s = self.outer.shared();
        let dir = &self.running.dir;
        let setup = s.with_layer(setup, dir)?;
        self.running
            .host
            .reload(dir, s.upstream_at, &setup, s.patience)
            .await
    }

    /// What it printed.
    pub(super) fn output(&self) -> String {
        self.running.host.output.since(0).join("\n")
    }

    /// All records, of every case and of none.
    pub(super) fn all(&self) -> Vec<Rc<Record>> {
        let _ = self.running.journal.refresh();
        self.running.journal.all()
    }

    /// Its counters.
    pub(super) async fn metrics(&self) -> Result<Metrics> {
        metrics(&self.cx).await
    }

    /// Ends the host, and looks at the streams alone.
    pub(super) async fn stop(self, rule: &str) -> Result<()> {
        self.cx.finish().await?;
        self.running.host.stop()?;
        let patience = self.outer.shared().patience * 2;
        if self.running.host.wait(patience).await.is_none() {
            self.cx.unknown(rule, "the end of the host after its stop");
        }
        self.outer.take(&self.cx);
        Ok(())
    }

    /// Waits for the ends of the streams, ends the host, and looks at everything that was recorded.
    pub(super) async fn end(self, rule: &str) -> Result<()> {
        self.cx.finish().await?;
        let died = self.running.host.died();
        let status = match self.running.host.ended() {
            Some(status) => Some(status),
            None => {
                self.running.host.stop()?;
                let patience = self.outer.shared().patience * 2;
                self.running.host.wait(patience).await
            }
        };
        match status {
            None => self.cx.unknown(rule, "the end of the host after its stop"),
            Some(s) if died.is_some() || !s.success() => {
                self.cx.finding(
                    rule,
                    format!("{THE_END} {s}"),
                    self.running.host.output.since(0),
                );
            }
            Some(_) => {}
        }
        let records: Vec<Record> = self.all().iter().map(|r| (**r).clone()).collect();
        let features = self.outer.shared().features.get();
        for f in history::check_run(&records, &features, died.is_none()) {
            self.cx.finding(f.rule, f.title(), f.detail(&records));
        }
        self.outer.take(&self.cx);
        Ok(())
    }
}

/// Demands that the host refuses `setup`, that it does not serve, and that what it prints matches each of `words`.
pub(super) async fn refused(
    cx: &Cx,
    rule: &str,
    what: &str,
    setup: &Setup,
    words: &[&str],
) -> Result<Option<Vec<Rc<Record>>>> {
    match cx.start(setup).await? {
        Ok(running) => {
            let on = cx.on(running.clone());
            let mut c = on.connect().await?;
            c.send(&Request::get("/"), "").await;
            let reply = c.response("GET").await?;
            cx.finding(
                rule,
                format!("{what}: the host serves, and answers {}", reply.status),
                running.host.output.since(0),
            );
            Ok(None)
        }
        Err(e) => {
            let text = e.output.join("\n");
            says(cx, rule, what, &text, words)?;
            Ok(Some(Vec::new()))
        }
    }
}

/// Demands that `text`, which a host printed, matches each of `words`.
pub(super) fn says(cx: &Cx, rule: &str, what: &str, text: &str, words: &[&str]) -> Result<()> {
    for w in words {
        let r = Regex::new(&format!("(?is){w}"))?;
        cx.check(rule, r.is_match(text), || {
            format!("{what}: the host's message has nothing like {w:?}:\n{text}")
        });
    }
    Ok(())
}

/// Counters in Prometheus' text form.
pub(super) struct Metrics {
    text: String,
    prefix: String,
}

pub(super) async fn metrics(cx: &Cx) -> Result<Metrics> {
    let admin = cx.shared().adapter.admin.clone().unwrap_or_default();
    if admin.metrics.is_empty() {
        return Err(crate::hostcheck::setup::NoOption("admin.metrics".into()).into());
    }
    let read = async || {
        let text = cx.running().host.admin("GET", &admin.metrics, "").await?;
        let prefix = admin.prefix.clone();
        anyhow::Ok(Metrics { text, prefix })
    };
    let mut metrics = read().await?;
    if let Some(name) = &admin.handed_over {
        // Of the first one that is seen to end nobody knows when it began.
        let enough = metrics.count(name, &[]) + 2.0;
        let until = std::time::Instant::now() + cx.shared().patience;
        while metrics.count(name, &[]) < enough {
            if std::time::Instant::now() > until {
                anyhow::bail!("the host does not hand its counts over: {name} does not rise");
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            metrics = read().await?;
        }
    }
    Ok(metrics)
}

impl Metrics {
    /// The sum of the series of `name` that have these labels; None if there is none.
    pub(super) fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let full = format!("{}{name}", self.prefix);
        let mut sum = None;
        for line in self.text.lines().filter(|l| !l.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let (n, set) = series.split_once('{').unwrap_or((series, ""));
            if n == full
                && labels
                    .iter()
                    .all(|(k, v)| set.contains(&format!("{k}=\"{v}\"")))
                && let Ok(v) = value.parse::<f64>()
            {
                sum = Some(sum.unwrap_or(0.0) + v);
            }
        }
        sum
    }

    /// The same; a series that is not there counts 0.
    pub(super) fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.get(name, labels).unwrap_or(0.0)
    }

    /// The sum of the series whose name has `part`; hosts put a guest's metrics under names of their own.
    pub(super) fn like(&self, part: &str) -> Option<f64> {
        self.text
            .lines()
            .filter(|l| !l.starts_with('#') && l.contains(part))
            .filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok())
            .reduce(|a, b| a + b)
    }
}
