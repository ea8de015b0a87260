//! What a case has in its hands: clients, the upstream's answers, the records, and findings.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use proxy_golang_abi::Phase;
use proxy_golang_abi::feature::Feature;

use super::adapter::Adapter;
use super::changes::{Changes, Watch, in_time};
use super::client::{Connection, Reply, Request};
use super::h2c::H2;
use super::history;
use super::host::{Host, NotReady};
use super::journal::Journal;
use super::layer_check::Layer;
use super::probe::Workshop;
use super::record::{Edge, Record};
use super::setup::{NoOption, Setup};
use super::upstream::{Answer, Seen, Upstream};
use crate::finding::Finding;
use crate::sys::clock::Patience;

/// What cases of one start of a host share.
pub(crate) struct Shared {
    pub(crate) adapter: Arc<Adapter>,
    /// The probe, or what stands for it.
    pub(crate) probe: PathBuf,
    pub(crate) upstream: Upstream,
    pub(crate) upstream_at: std::net::SocketAddr,
    /// What waits are woken by.
    pub(crate) changes: Changes,
    pub(crate) patience: Duration,
    /// Folder of the run, for hosts of a case's own.
    pub(crate) dir: PathBuf,
    /// Of the host's table.
    pub(crate) features: Cell<[u64; 4]>,
    /// What any configuration of the common setup is given of them.
    pub(crate) granted: Cell<[u64; 4]>,
    pub(crate) workshop: Workshop,
    /// Stands before each guest of each host, if it is asked for.
    pub(crate) layer: Option<Layer>,
    /// Folders of hosts that cases have started and the layer has not been asked about.
    pub(crate) own_hosts: RefCell<Vec<PathBuf>>,
}

impl Shared {
    /// What the host of `dir` is given for `setup`.
    pub(crate) fn with_layer<'a>(&self, setup: &'a Setup, dir: &Path) -> Result<Cow<'a, Setup>> {
        Ok(match &self.layer {
            Some(l) => Cow::Owned(l.before_all(setup, dir)?),
            None => Cow::Borrowed(setup),
        })
    }
}

/// A started host with its records.
pub(crate) struct Running {
    pub(crate) host: Host,
    pub(crate) journal: Journal,
    pub(crate) dir: PathBuf,
    _records: Watch,
}

impl Running {
    /// Starts a host in the folder `dir`, where its records come to be.
    pub(crate) async fn start(
        shared: &Shared,
        dir: &Path,
        setup: &Setup,
    ) -> Result<Result<Rc<Self>, NotReady>> {
        let records = shared.changes.of_folder(dir)?;
        let started = Host::start(
            &shared.adapter,
            dir,
            shared.upstream_at,
            setup,
            shared.patience,
            &shared.changes,
        )
        .await?;
        Ok(started.map(|host| {
            Rc::new(Self {
                host,
                journal: Journal::new(dir),
                dir: dir.to_path_buf(),
                _records: records,
            })
        }))
    }
}

/// The hands of a case. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cx(Rc<Inner>);

struct Inner {
    shared: Rc<Shared>,
    running: Rc<Running>,
    name: &'static str,
    findings: RefCell<Vec<Finding>>,
    remarks: RefCell<Vec<String>>,
    checked: Cell<u64>,
    /// Something was waited for in vain: the verdict is not known.
    unknown: Cell<bool>,
    /// The case looks at its end itself.
    loose_end: Cell<bool>,
}

/// How findings begin whose cause may be that the host ended.
pub(crate) const THE_END: &str = "the host ended with";

impl Exchange {
    /// A field as the upstream saw it.
    pub(crate) fn up_get(&self, name: &str) -> Option<String> {
        self.up.as_ref().and_then(|u| u.get(name))
    }

    /// The request's body as the upstream saw it.
    pub(crate) fn up_text(&self) -> Option<String> {
        self.up.as_ref().map(Seen::text)
    }
}

/// What came of a whole exchange.
pub(crate) struct Exchange {
    pub(crate) reply: Reply,
    /// The request as the upstream saw it, if it did.
    pub(crate) up: Option<Seen>,
    /// The records that it made.
    pub(crate) records: Vec<Rc<Record>>,
}

impl Cx {
    pub(crate) fn new(shared: Rc<Shared>, running: Rc<Running>, name: &'static str) -> Self {
        Self(Rc::new(Inner {
            shared,
            running,
            name,
            findings: RefCell::default(),
            remarks: RefCell::default(),
            checked: Cell::new(0),
            unknown: Cell::new(false),
            loose_end: Cell::new(false),
        }))
    }

    // ---- findings

    /// A rule is broken if `ok` is false.
    pub(crate) fn check(&self, rule: &str, ok: bool, title: impl FnOnce() -> String) -> bool {
        self.0.checked.set(self.0.checked.get() + 1);
        if !ok {
            self.finding(rule, title(), Vec::new());
        }
        ok
    }

    /// `saw` and `expected` are to be equal.
    pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(
        &self,
        rule: &str,
        what: &str,
        saw: T,
        expected: T,
    ) -> bool {
        self.check(rule, saw == expected, || {
            format!("{what}: {}, expected {}", short(&saw), short(&expected))
        })
    }

    /// What is found once the host has died may have no other cause, and says so.
    pub(crate) fn finding(&self, rule: &str, mut title: String, detail: Vec<String>) {
        if let Some(status) = self.0.running.host.died()
            && !title.starts_with(THE_END)
        {
            title = format!("{THE_END} {status}; {title}");
        }
        let f = Finding {
            rule: rule.into(),
            title,
            detail,
        };
        let mut all = self.0.findings.borrow_mut();
        if !all.contains(&f) {
            all.push(f);
        }
    }

    pub(crate) fn remark(&self, text: impl Into<String>) {
        self.0.remarks.borrow_mut().push(text.into());
    }

    pub(crate) fn outcome(&self) -> (Vec<Finding>, Vec<String>, u64, bool) {
        (
            self.0.findings.take(),
            self.0.remarks.take(),
            self.0.checked.get(),
            self.0.unknown.get(),
        )
    }

    // ---- the host and its features

    /// Whether streams of the common setup have a feature.
    pub(crate) fn has(&self, f: Feature) -> bool {
        has(&self.0.shared.granted.get(), f)
    }

    pub(crate) fn shared(&self) -> &Rc<Shared> {
        &self.0.shared
    }

    pub(crate) fn running(&self) -> &Running {
        &self.0.running
    }

    pub(crate) fn limits(&self) -> &super::adapter::Limits {
        &self.0.shared.adapter.limits
    }

    /// Starts a host of this case's own, in a folder of its own. Records are in its journal.
    pub(crate) async fn start(&self, setup: &Setup) -> Result<Result<Rc<Running>, NotReady>> {
        let dir = tempfile::Builder::new()
            .prefix(&self.0.name.replace('/', "-"))
            .tempdir_in(&self.0.shared.dir)?
            .keep();
        let s = &self.0.shared;
        let setup = s.with_layer(setup, &dir)?;
        s.own_hosts.borrow_mut().push(dir.clone());
        Running::start(s, &dir, &setup).await
    }

    /// These hands on a host of the case's own.
    pub(crate) fn on(&self, running: Rc<Running>) -> Self {
        Self::new(self.0.shared.clone(), running, self.0.name)
    }

    /// Takes over what was found with other hands.
    pub(crate) fn take(&self, other: &Self) {
        let (findings, remarks, checked, unknown) = other.outcome();
        self.0.findings.borrow_mut().extend(findings);
        self.0.remarks.borrow_mut().extend(remarks);
        self.0.checked.set(self.0.checked.get() + checked);
        self.0.unknown.set(self.0.unknown.get() || unknown);
    }

    // ---- traffic

    /// How the upstream answers this case from now on.
    pub(crate) fn answer(&self, a: Answer) {
        self.0.shared.upstream.answer(self.0.name, a);
    }

    /// Opens a gate, for the upstream and for the probe.
    pub(crate) fn open(&self, gate: &str) {
        self.0.shared.upstream.open(self.0.name, gate);
        let file = format!("gate.{}.{gate}", self.0.name).replace('/', "_");
        let _ = std::fs::write(self.0.running.dir.join(file), "");
    }

    pub(crate) async fn connect(&self) -> Result<Connection> {
        let to = self.0.running.host.address;
        Connection::open(to, self.patience()).await
    }

    /// A connection of HTTP/2 without TLS, by prior knowledge.
    pub(crate) async fn h2(&self) -> Result<H2> {
        if self.0.shared.adapter.not_applicable.contains_key("h2c") {
            return Err(NoOption("h2c".into()).into());
        }
        let to = self.0.running.host.h2c_address()?;
        H2::open(to, self.patience()).await
    }

    pub(crate) fn name(&self) -> &'static str {
        self.0.name
    }

    /// The requests that the upstream saw.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.0.shared.upstream.seen(self.0.name)
    }

    /// One request on a connection of its own, to the end of its stream.
    pub(crate) async fn exchange(&self, r: Request) -> Result<Exchange> {
        let id = |r: &Rc<Record>| (r.pid, r.seq);
        let known: HashSet<_> = self
            .0
            .running
            .journal
            .of(self.0.name)
            .iter()
            .map(id)
            .collect();
        let before = self.seen().len();
        let mut c = self.connect().await?;
        c.send(&r, self.0.name).await;
        let reply = c.response(&r.method).await?;
        // The client stays until the stream has ended: that it goes away is another case.
        self.ended().await;
        drop(c);
        let mut records = self.records();
        records.retain(|r| !known.contains(&id(r)));
        Ok(Exchange {
            reply,
            up: self.seen().into_iter().nth(before),
            records,
        })
    }

    /// Time in which a host that does too much would do it: an exchange on a route without filters, and a moment.
    pub(crate) async fn settle(&self) -> Result<()> {
        let mut c = self.connect().await?;
        c.send(&Request::get("/none"), "").await;
        c.response("GET").await?;
        tokio::time::sleep(Duration::from_millis(10)).await;
        Ok(())
    }

    /// Waits until the upstream has seen the head of `n` requests.
    pub(crate) async fn upstream_saw(&self, rule: &str, n: usize) -> bool {
        self.wait(rule, "the request at the upstream", || {
            self.seen().len() >= n
        })
        .await
    }

    // ---- waiting

    /// All records of this case.
    pub(crate) fn records(&self) -> Vec<Rc<Record>> {
        let _ = self.0.running.journal.refresh();
        self.0.running.journal.of(self.0.name)
    }

    /// Waits until the records are so; otherwise the verdict is unknown, and `rule` is what is in doubt.
    pub(crate) async fn until(
        &self,
        rule: &str,
        what: &str,
        so: impl Fn(&[Rc<Record>]) -> bool,
    ) -> bool {
        self.wait(rule, what, || so(&self.records())).await
    }

    /// Waits until something is so; as [`Self::until`].
    pub(crate) async fn wait(&self, rule: &str, what: &str, so: impl Fn() -> bool) -> bool {
        self.0.checked.set(self.0.checked.get() + 1);
        let (host, patience) = (&self.0.running.host, self.patience());
        let look = || match so() {
            true => Some(true),
            // Nothing more comes, or nobody would know.
            false => (host.gone() || self.0.running.journal.full()).then_some(false),
        };
        let changes = &self.0.shared.changes;
        let came = changes.until(&mut Patience::new(patience), look).await;
        // What had come before the end was perhaps on its way when it was looked at.
        if came == Some(true) || (came == Some(false) && so()) {
            return true;
        }
        self.0.unknown.set(true);
        let title = match came {
            None => format!("unknown: {what} did not come within {patience:?}"),
            Some(_) if host.gone() => {
                format!("unknown: {what} did not come: the host has ended")
            }
            Some(_) => format!("unknown: {what} did not come before the records were full"),
        };
        self.finding(rule, title, Vec::new());
        false
    }

    /// How long the next thing is waited for. A case that has found something has its verdict, and waits less.
    fn patience(&self) -> Duration {
        let patience = self.0.shared.patience;
        if !self.0.findings.borrow().is_empty() {
            patience / 8
        } else {
            patience
        }
    }

    /// Something was waited for in vain.
    pub(crate) fn unknown(&self, rule: &str, what: &str) {
        self.0.unknown.set(true);
        self.finding(
            rule,
            format!("unknown: {what} did not come in time"),
            Vec::new(),
        );
    }

    /// The same for a future, such as the answer of a client.
    pub(crate) async fn within<T>(
        &self,
        rule: &str,
        what: &str,
        f: impl Future<Output = Result<T>>,
    ) -> Option<T> {
        let patience = self.patience();
        let title = match in_time(patience, f).await {
            Some(Ok(t)) => return Some(t),
            Some(Err(e)) => format!("unknown: {what}: {e:#}"),
            None => format!("unknown: {what} did not come within {patience:?}"),
        };
        self.0.unknown.set(true);
        self.finding(rule, title, Vec::new());
        None
    }

    /// Waits until every place of the case has ended.
    pub(crate) async fn ended(&self) -> bool {
        self.until("PXG-EVT-006", "the end of each stream", |r| {
            history::open_places(r).is_empty()
        })
        .await
    }

    /// The case leaves streams open on purpose.
    pub(crate) fn leave_open(&self) {
        self.0.loose_end.set(true);
    }

    /// Waits until no call into the host is under way: a thread of the probe may record what `complete` answered after
    /// the worker has ended the stream. What does not return stays open, and the history says so.
    async fn returned(&self) -> Result<()> {
        let running = &self.0.running;
        let look = || {
            let open: i64 = self
                .records()
                .iter()
                .filter(|r| matches!(r.function.as_str(), "complete" | "apply" | "wake"))
                .map(|r| if r.edge == Edge::Enter { 1 } else { -1 })
                .sum();
            (open <= 0 || running.host.ended().is_some()).then_some(())
        };
        let mut patience = Patience::new(self.patience());
        self.0.shared.changes.until(&mut patience, look).await;
        running.journal.refresh().context("cannot read the records")
    }

    /// Waits for the end, and lets the history checker look at what happened.
    pub(crate) async fn finish(&self) -> Result<()> {
        let mut closed = false;
        if !self.0.loose_end.get() {
            closed = self.ended().await;
            self.returned().await?;
        }
        self.0
            .running
            .journal
            .refresh()
            .context("cannot read the records")?;
        let records = self.records();
        let plain: Vec<Record> = records.iter().map(|r| (**r).clone()).collect();
        let features = self.0.shared.features.get();
        let all = self.0.running.journal.all();
        let configs = history::configs(all.iter().map(AsRef::as_ref));
        for f in history::check(&plain, &configs, &features, closed) {
            self.finding(f.rule, f.title(), f.detail(&plain));
        }
        self.0
            .checked
            .set(self.0.checked.get() + records.len() as u64);
        Ok(())
    }
}

/// Whether a feature is set.
pub(crate) fn has(features: &[u64; 4], f: Feature) -> bool {
    features[(f.0 / 64) as usize] >> (f.0 % 64) & 1 == 1
}

fn short<T: std::fmt::Debug>(t: &T) -> String {
    let text = format!("{t:?}");
    if text.chars().count() <= 200 {
        return text;
    }
    let head: String = text.chars().take(200).collect();
    format!("{head}... ({} characters)", text.chars().count())
}

/// What cases ask of records.
pub(crate) trait Records {
    /// Events of an instance in a phase, as they were delivered.
    fn events(&self, instance: &str, phase: u32) -> Vec<Rc<Record>>;
    /// Calls of a function by an instance, at one end.
    fn calls(&self, function: &str, edge: Edge, instance: &str) -> Vec<Rc<Record>>;
    /// What the calls of `complete`, `apply` or `wake` by an instance answered.
    fn statuses(&self, function: &str, instance: &str) -> Vec<i32>;
    /// The names of the events of an instance, in their order.
    fn phases(&self, instance: &str) -> Vec<&'static str>;
}

impl Records for [Rc<Record>] {
    fn events(&self, instance: &str, phase: u32) -> Vec<Rc<Record>> {
        self.iter()
            .filter(|r| {
                r.is("on_event", Edge::Enter)
                    && r.phase == Some(phase)
                    && r.instance.as_deref() == Some(instance)
            })
            .cloned()
            .collect()
    }

    fn calls(&self, function: &str, edge: Edge, instance: &str) -> Vec<Rc<Record>> {
        self.iter()
            .filter(|r| r.is(function, edge) && r.instance.as_deref() == Some(instance))
            .cloned()
            .collect()
    }

    fn statuses(&self, function: &str, instance: &str) -> Vec<i32> {
        self.calls(function, Edge::Exit, instance)
            .iter()
            .filter_map(|r| r.status)
            .collect()
    }

    fn phases(&self, instance: &str) -> Vec<&'static str> {
        self.iter()
            .filter(|r| r.is("on_event", Edge::Enter) && r.instance.as_deref() == Some(instance))
            .map(|r| crate::host::model::phase_name(Phase(r.phase.unwrap_or(0))))
            .collect()
    }
}

impl Records for Vec<Rc<Record>> {
    fn phases(&self, instance: &str) -> Vec<&'static str> {
        self.as_slice().phases(instance)
    }

    fn events(&self, instance: &str, phase: u32) -> Vec<Rc<Record>> {
        self.as_slice().events(instance, phase)
    }

    fn calls(&self, function: &str, edge: Edge, instance: &str) -> Vec<Rc<Record>> {
        self.as_slice().calls(function, edge, instance)
    }

    fn statuses(&self, function: &str, instance: &str) -> Vec<i32> {
        self.as_slice().statuses(function, instance)
    }
}
