//! A host under test: started, ready, reloaded, stopped; what it printed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use regex::Regex;
use rustix::process::Pid;

use super::adapter::{Adapter, Ports, fill, signal};
use super::changes::{Changes, Watch};
use super::setup::{NoOption, Setup, filled, write_config};
use crate::sys::clock::Patience;
use crate::sys::process::{bound_host, kill_group};

/// The exit code of a custom command that does not implement what it is asked for.
pub(crate) const UNIMPLEMENTED: i32 = 89;

/// How many bytes of each of the host's outputs are kept: a host that loops may print without end.
const KEPT_OUTPUT: usize = 64 << 20;

/// A longer line is cut into several.
const LONGEST_LINE: u64 = 1 << 20;

/// Lines that the host printed, from both outputs.
#[derive(Clone)]
pub(crate) struct Output {
    lines: Arc<Mutex<Vec<String>>>,
    /// Of the outputs that may bring more.
    open: Arc<AtomicUsize>,
    changes: Changes,
}

impl Output {
    fn new(changes: Changes) -> Self {
        Self {
            lines: Arc::default(),
            open: Arc::default(),
            changes,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.lines
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether all is here that will ever come.
    fn whole(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0
    }

    fn follow(&self, from: impl Read + Send + 'static) {
        let to = self.clone();
        to.open.fetch_add(1, Ordering::Release);
        std::thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut line = Vec::new();
            let mut left = KEPT_OUTPUT;
            // What is not kept is read all the same, so that the host does not wait for its pipe.
            while let Ok(n) = (&mut from).take(LONGEST_LINE).read_until(b'\n', &mut line) {
                if n == 0 {
                    break;
                }
                if left > 0 {
                    left = left.saturating_sub(n);
                    let text = if left == 0 {
                        "(what the host prints from here on is not kept)".to_string()
                    } else {
                        String::from_utf8_lossy(&line).trim_end().to_string()
                    };
                    to.lock().push(text);
                    to.changes.tell();
                }
                line.clear();
            }
            to.open.fetch_sub(1, Ordering::Release);
            to.changes.tell();
        });
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// The lines from `from` on.
    pub(crate) fn since(&self, from: usize) -> Vec<String> {
        self.lock().get(from..).unwrap_or_default().to_vec()
    }

    /// The first line from `from` on that matches.
    pub(crate) fn find(&self, from: usize, what: &Regex) -> Option<String> {
        self.since(from).into_iter().find(|l| what.is_match(l))
    }
}

/// A running host. Dropped, it is killed.
pub(crate) struct Host {
    child: RefCell<Child>,
    pub(crate) output: Output,
    pub(crate) address: SocketAddr,
    adapter: Arc<Adapter>,
    ports: Ports,
    workers: usize,
    values: BTreeMap<String, String>,
    pub(crate) pid: u32,
    /// It was told to end.
    stopped: Cell<bool>,
    reaped: Cell<bool>,
    changes: Changes,
    _end: Watch,
}

/// Why a host did not get ready.
#[derive(Debug)]
pub(crate) struct NotReady {
    /// The exit status, if it ended.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) output: Vec<String>,
}

/// What says whether a host that starts gets ready.
enum Sign {
    /// It listens there.
    Address(SocketAddr),
    /// It says that it will not serve.
    Refused,
    Ended(ExitStatus),
}

impl Host {
    /// Starts the host and waits until it is ready. The outer error is the suite's; the inner one the host's.
    pub(crate) async fn start(
        adapter: &Arc<Adapter>,
        dir: &Path,
        upstream: SocketAddr,
        setup: &Setup,
        patience: Duration,
        changes: &Changes,
    ) -> Result<Result<Self, NotReady>> {
        let ports = Ports::hold()?;
        let (values, arguments) = write_config(adapter, dir, upstream, &ports, setup)?;
        let command = filled(
            adapter,
            "start.command",
            &adapter.start.command,
            &values,
            &arguments,
        )?;
        let mut c = std::process::Command::new(&command[0]);
        c.args(&command[1..])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env("PXG_PROBE_DIR", dir);
        for (k, v) in &adapter.start.env {
            let v = fill(v, &values).map_err(|e| anyhow!("start.env.{k}: {e}"))?;
            c.env(k, v);
        }
        let last_signal = adapter.start.last_signal.as_deref().and_then(signal);
        bound_host(&mut c, last_signal.map(|s| s.as_raw()));
        let mut child = c
            .spawn()
            .with_context(|| format!("cannot start {:?}", command[0]))?;
        let end = changes.of_process(Pid::from_child(&child))?;
        let output = Output::new(changes.clone());
        if let Some(o) = child.stdout.take() {
            output.follow(o);
        }
        if let Some(e) = child.stderr.take() {
            output.follow(e);
        }
        let pid = child.id();
        let mut host = Self {
            child: RefCell::new(child),
            output,
            address: SocketAddr::from(([0, 0, 0, 0], 0)),
            adapter: adapter.clone(),
            ports,
            workers: setup.workers.max(1),
            values,
            pid,
            stopped: Cell::new(false),
            reaped: Cell::new(false),
            changes: changes.clone(),
            _end: end,
        };
        let mut patience = Patience::new(patience);
        match host.sign(&mut patience).await? {
            Some(Sign::Address(address)) => {
                host.address = address;
                Ok(Ok(host))
            }
            // What it printed last is still on its way through the pipes, which children of it may hold open.
            Some(Sign::Ended(status)) => {
                changes
                    .until(&mut patience, || host.output.whole().then_some(()))
                    .await;
                Ok(Err(host.not_ready(Some(status))))
            }
            Some(Sign::Refused) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(Err(host.not_ready(None)))
            }
            None => Ok(Err(host.not_ready(None))),
        }
    }

    fn not_ready(&self, status: Option<ExitStatus>) -> NotReady {
        NotReady {
            status,
            output: self.output.since(0),
        }
    }

    /// What comes first while there is `patience`.
    async fn sign(&self, patience: &mut Patience) -> Result<Option<Sign>> {
        let regex = |text: &Option<String>| text.as_deref().map(Regex::new).transpose();
        let ready = regex(&self.adapter.ready.line)?;
        let refused = regex(&self.adapter.ready.refused)?;
        let each_worker = regexes(&self.adapter.ready.each_worker)?;
        let printed = |r: &Regex| self.output.find(0, r).is_some();
        loop {
            let look = || match self.ended() {
                Some(status) => Some(Some(Sign::Ended(status))),
                None if refused.as_ref().is_some_and(printed) => Some(Some(Sign::Refused)),
                None => (ready.as_ref().is_none_or(printed) && self.each_worker(0, &each_worker))
                    .then_some(None),
            };
            match self.changes.until(patience, look).await {
                None => return Ok(None),
                Some(Some(sign)) => return Ok(Some(sign)),
                Some(None) => {}
            }
            if let Some(address) = self.discover().await? {
                return Ok(Some(Sign::Address(address)));
            }
            if patience.over() {
                return Ok(None);
            }
            // The address comes a little later, from where nothing tells of it.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether each of these has been printed by each worker, from line `from` on.
    fn each_worker(&self, from: usize, what: &[Regex]) -> bool {
        let lines = self.output.since(from);
        let times = |r: &Regex| lines.iter().filter(|l| r.is_match(l)).count();
        what.iter().all(|r| times(r) >= self.workers)
    }

    /// An address that the adapter names itself.
    fn named(&self, key: &str, template: &str) -> Result<SocketAddr> {
        let text = fill(template, &self.values).map_err(|e| anyhow!("{key}: {e}"))?;
        text.parse()
            .with_context(|| format!("{key} = {text:?}: not ADDRESS:PORT"))
    }

    /// Where it takes HTTP/2 without TLS.
    pub(crate) fn h2c_address(&self) -> Result<SocketAddr> {
        match &self.adapter.listen.h2c {
            Some(template) => self.named("listen.h2c", template),
            None => Ok(self.address),
        }
    }

    async fn discover(&self) -> Result<Option<SocketAddr>> {
        let l = &self.adapter.listen;
        if let Some(template) = &l.address {
            return self.named("listen.address", template).map(Some);
        }
        if let Some(line) = &l.line {
            let r = Regex::new(line)?;
            return Ok(self
                .output
                .find(0, &r)
                .and_then(|text| r.captures(&text)?.get(1)?.as_str().parse().ok()));
        }
        let (Some(file), Some(get), Some(matches)) = (&l.admin_file, &l.get, &l.matches) else {
            return Ok(None);
        };
        let file = fill(file, &self.values).map_err(|e| anyhow!("listen.admin_file: {e}"))?;
        let Some(admin) = std::fs::read_to_string(file)
            .ok()
            .and_then(|t| t.trim().parse::<SocketAddr>().ok())
        else {
            return Ok(None);
        };
        let Ok(text) = super::client::fetch(admin, get).await else {
            return Ok(None);
        };
        let r = Regex::new(matches)?;
        Ok(r.captures(&text).and_then(|c| {
            c.get(1)?
                .as_str()
                .replace("0.0.0.0", "127.0.0.1")
                .parse()
                .ok()
        }))
    }

    /// One request to the admin listener: `METHOD PATH` as the adapter has it; the answer's text.
    pub(crate) async fn admin(&self, method: &str, path: &str, value: &str) -> Result<String> {
        let a = self
            .adapter
            .admin
            .as_ref()
            .ok_or_else(|| NoOption("admin".into()))?;
        let address = match (&a.line, &a.file) {
            _ if let Some(template) = &a.address => Some(self.named("admin.address", template)?),
            (Some(line), _) => {
                let r = Regex::new(line)?;
                self.output
                    .find(0, &r)
                    .and_then(|text| r.captures(&text)?.get(1)?.as_str().parse().ok())
            }
            (None, Some(file)) => {
                let file = fill(file, &self.values).map_err(|e| anyhow!("admin.file: {e}"))?;
                std::fs::read_to_string(file)
                    .ok()
                    .and_then(|t| t.trim().parse().ok())
            }
            (None, None) => None,
        };
        let address: SocketAddr = address.context("the host's admin listener has no address")?;
        let mut values = self.values.clone();
        values.insert("value".into(), value.into());
        let path = fill(path, &values).map_err(|e| anyhow!("admin: {e}"))?;
        let mut c = super::client::Connection::open(address, Duration::from_secs(5)).await?;
        c.send(
            &super::client::Request::new(method, &path).field("connection", "close"),
            "",
        )
        .await;
        let r = c.response(method).await?;
        if r.status >= 400 {
            bail!(
                "{method} {path} of the admin listener: {} {}",
                r.status,
                r.text()
            );
        }
        Ok(r.text())
    }

    /// The exit status, if the host has ended.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        let status = self.child.borrow_mut().try_wait().ok().flatten()?;
        if !self.reaped.replace(true) {
            // Workers outlive a master that crashes.
            kill_group(self.pid);
        }
        Some(status)
    }

    /// The exit status, if it has ended by itself.
    pub(crate) fn died(&self) -> Option<ExitStatus> {
        self.ended().filter(|_| !self.stopped.get())
    }

    /// Whether it has ended, and all that it printed is here.
    pub(crate) fn gone(&self) -> bool {
        self.ended().is_some() && self.output.whole()
    }

    fn act(&self, name: &str) -> Result<()> {
        let act = match name {
            "reload" => self.adapter.reload.as_ref(),
            _ => Some(&self.adapter.stop),
        }
        .ok_or_else(|| NoOption(name.into()))?;
        if let Some(s) = &act.signal {
            let signal = signal(s).with_context(|| format!("no signal {s}"))?;
            if self.ended().is_none() {
                let pid = Pid::from_child(&self.child.borrow());
                rustix::process::kill_process(pid, signal)?;
            }
            return Ok(());
        }
        let mut values = self.values.clone();
        values.insert("pid".into(), self.pid.to_string());
        let c = filled(&self.adapter, name, &act.command, &values, &[])?;
        let status = std::process::Command::new(&c[0])
            .args(&c[1..])
            .stdin(Stdio::null())
            .status()
            .with_context(|| format!("cannot run {:?}", c[0]))?;
        if status.code() == Some(UNIMPLEMENTED) {
            return Err(NoOption(name.into()).into());
        }
        Ok(())
    }

    /// Writes new files for `setup` and has the host take them; whether it did, as far as it says.
    pub(crate) async fn reload(
        &self,
        dir: &Path,
        upstream: SocketAddr,
        setup: &Setup,
        patience: Duration,
    ) -> Result<Option<bool>> {
        let reload = self
            .adapter
            .reload
            .as_ref()
            .ok_or_else(|| NoOption("reload".into()))?;
        write_config(&self.adapter, dir, upstream, &self.ports, setup)?;
        let from = self.output.len();
        self.act("reload")?;
        let done = reload.done.as_deref().map(Regex::new).transpose()?;
        let refused = reload.refused.as_deref().map(Regex::new).transpose()?;
        let each_worker = regexes(&reload.each_worker)?;
        let printed = |r: &Regex| self.output.find(from, r).is_some();
        let said = done.is_some() || !each_worker.is_empty();
        let look = || {
            if said && done.as_ref().is_none_or(printed) && self.each_worker(from, &each_worker) {
                Some(true)
            } else {
                refused.as_ref().is_some_and(printed).then_some(false)
            }
        };
        Ok(self.changes.until(&mut Patience::new(patience), look).await)
    }

    /// Begins the graceful end.
    pub(crate) fn stop(&self) -> Result<()> {
        self.stopped.set(true);
        self.act("stop")
    }

    /// Waits for the end; None if it does not come.
    pub(crate) async fn wait(&self, patience: Duration) -> Option<ExitStatus> {
        let mut patience = Patience::new(patience);
        self.changes.until(&mut patience, || self.ended()).await
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.ended().is_none() {
            kill_group(self.pid);
            let _ = self.child.get_mut().wait();
        }
        // For --keep-logs.
        if let Some(dir) = self.values.get("dir") {
            let _ = std::fs::write(
                Path::new(dir).join("host.log"),
                self.output.since(0).join("\n"),
            );
        }
    }
}

fn regexes(all: &[String]) -> Result<Vec<Regex>> {
    Ok(all
        .iter()
        .map(|t| Regex::new(t))
        .collect::<Result<_, _>>()?)
}

/// What the host says of its version.
pub(crate) fn version(a: &Adapter) -> Result<String> {
    let values = a.own_variables()?;
    let c = filled(a, "version.command", &a.version.command, &values, &[])?;
    let out = std::process::Command::new(&c[0])
        .args(&c[1..])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {:?}", c[0]))?;
    if out.status.code() == Some(UNIMPLEMENTED) {
        return Ok("unknown".into());
    }
    if !out.status.success() {
        bail!(
            "{}: version.command {:?} ended with {}",
            a.file.display(),
            c,
            out.status
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout)
        .lines()
        .find(|l| !l.trim().is_empty())
        .unwrap_or("unknown")
        .trim()
        .to_string())
}
