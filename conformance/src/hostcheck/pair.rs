//! `pxg-conformance pair`: one guest in one host, with the layer between them, under real traffic. What the layer finds on
//! either side is the verdict.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::adapter::Adapter;
use super::changes::Changes;
use super::client::{Connection, Request};
use super::h2c::H2;
use super::host::Host;
use super::layer_check::{self, Judging, Layer, Seen};
use super::runner;
use super::setup::{Instance, Route, Setup};
use super::upstream::{Answer, Step, Upstream};
use crate::cli::number;
use crate::subject::{self, Subject};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The guest.
    library: PathBuf,
    /// What the host is, as data: see conformance/adapters.
    #[arg(long, value_name = "FILE")]
    adapter: PathBuf,
    /// The layer: libpxg_layer.so.
    #[arg(long, value_name = "LIBRARY")]
    layer: PathBuf,
    /// Settings, instead of pxg-conformance.toml beside the library: which filters, with which configurations.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// This filter with an empty configuration.
    #[arg(long, value_name = "NAME")]
    filter: Vec<String>,
    /// The seed of the layer's perturbations.
    #[arg(long, value_parser = number)]
    perturb: Option<u64>,
    /// Multiplies the time that the host is given for each step.
    #[arg(long, default_value_t = 1.0)]
    timeout_scale: f64,
    /// Keep what the host was given, what it wrote and the layer's file here.
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,
    #[command(flatten)]
    judging: Judging,
}

/// What is driven.
pub(crate) struct Pair {
    pub(crate) adapter: Arc<Adapter>,
    pub(crate) layer: PathBuf,
    pub(crate) library: PathBuf,
    pub(crate) subjects: Vec<Subject>,
    pub(crate) perturb: Option<u64>,
    pub(crate) timeout_scale: f64,
}

/// The exit code of `layer-check`.
pub(crate) fn run(a: &Args) -> Result<u8> {
    let beside = a.library.with_file_name(subject::FILE_NAME);
    let mut subjects: Vec<Subject> = a.filter.iter().map(|f| Subject::bare(f)).collect();
    if let Some(file) = a
        .config
        .as_deref()
        .or(Some(&*beside))
        .filter(|f| a.config.is_some() || f.exists())
    {
        subjects.extend(subject::read(file)?.subjects);
    }
    if subjects.is_empty() {
        bail!(
            "no filter to drive: name one with --filter, or write {}",
            beside.display()
        );
    }
    let temporary = tempfile::tempdir()?;
    let dir = match &a.keep_logs {
        Some(d) => {
            std::fs::create_dir_all(d)?;
            std::fs::canonicalize(d)?
        }
        None => temporary.path().to_path_buf(),
    };
    let pair = Pair {
        adapter: Arc::new(Adapter::read(&a.adapter)?),
        layer: a.layer.clone(),
        library: a.library.clone(),
        subjects,
        perturb: a.perturb,
        timeout_scale: a.timeout_scale,
    };
    layer_check::judge(&drive(pair, &dir)?, &a.judging)
}

/// Starts the host, sends the traffic, ends the host; what the layer wrote. An error: host or guest do not work together.
pub(crate) fn drive(pair: Pair, dir: &Path) -> Result<Seen> {
    let dir = dir.to_path_buf();
    std::thread::Builder::new()
        .name("traffic".into())
        .stack_size(runner::STACK)
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            tokio::task::LocalSet::new().block_on(&runtime, drive_all(&pair, &dir))
        })
        .context("cannot start a thread for the traffic")?
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

async fn drive_all(pair: &Pair, dir: &Path) -> Result<Seen> {
    let changes = Changes::default();
    let (upstream, upstream_at) = Upstream::listen(changes.clone()).await?;
    let patience = Duration::from_millis(pair.adapter.limits.patience_ms)
        .mul_f64(pair.timeout_scale.clamp(0.01, 1000.0));
    let mut settings = toml::Table::from_iter([("trace".to_string(), true.into())]);
    if let Some(seed) = pair.perturb {
        let seed = i64::try_from(seed).context("a seed in a file has at most 63 bits")?;
        settings.insert("perturb".into(), seed.into());
    }
    let layer = Layer::new(&pair.layer, settings)?;
    let _ = std::fs::remove_file(layer_check::out_file(dir));
    let setup = layer.before_all(&setup(&pair.library, &pair.subjects), dir)?;
    let host =
        match Host::start(&pair.adapter, dir, upstream_at, &setup, patience, &changes).await? {
            Ok(host) => Rc::new(host),
            Err(e) => bail!(
                "{} does not start with {}; it printed:\n{}",
                pair.adapter.name,
                pair.library.display(),
                e.output.join("\n")
            ),
        };
    let traffic = Rc::new(Traffic {
        upstream,
        host: host.clone(),
        patience,
        speaks_h2: !pair.adapter.not_applicable.contains_key("h2c"),
    });
    let mut tasks = Vec::new();
    for (i, s) in pair.subjects.iter().enumerate() {
        let (traffic, s) = (traffic.clone(), s.clone());
        tasks.push(tokio::task::spawn_local(async move {
            let what = s.label();
            traffic.of(i, &s).await.with_context(|| what)
        }));
    }
    let mut silent = Vec::new();
    for t in tasks {
        if let Err(e) = t.await.context("the traffic panicked")? {
            silent.push(format!("{e:#}"));
        }
    }
    let output = || host.output.since(0).join("\n");
    if let Some(status) = host.ended() {
        bail!(
            "the host ended with {status} under the traffic; it printed:\n{}",
            output()
        );
    }
    ensure!(silent.is_empty(), "{}", silent.join("\n"));
    host.stop()?;
    match host.wait(patience * 2).await {
        None => bail!("the host did not end within {:?} of its stop", patience * 2),
        Some(status) => ensure!(
            status.success(),
            "the host ended with {status} after its stop; it printed:\n{}",
            output()
        ),
    }
    let mut seen = Seen::default();
    seen.read(&layer_check::out_file(dir))?;
    Ok(seen)
}

/// Each subject alone on a route of its own, and a route with all of them that do not fail on purpose.
fn setup(library: &Path, subjects: &[Subject]) -> Setup {
    let name = |i: usize| format!("s{i}");
    let route = |name: String, chain: Vec<String>| Route {
        prefix: format!("/{name}"),
        name,
        chain: chain.into_iter().map(|i| (i, None)).collect(),
    };
    let mut routes: Vec<Route> = (0..subjects.len())
        .map(|i| route(name(i), vec![name(i)]))
        .collect();
    let chain = (0..subjects.len()).filter(|i| !subjects[*i].panics);
    routes.push(route("all".into(), chain.map(name).collect()));
    Setup {
        guests: vec![("guest".into(), library.to_path_buf())],
        instances: subjects
            .iter()
            .enumerate()
            .map(|(i, s)| Instance {
                name: name(i),
                filter: s.filter.clone(),
                guest: "guest".into(),
                config: s.config.clone(),
                options: Vec::new(),
            })
            .collect(),
        routes,
        workers: 2,
        options: Vec::new(),
    }
}

/// Something that filters of texts find.
const TEXT: &[u8] = b"the quick brown fox jumps over the lazy dog; ";

struct Traffic {
    upstream: Upstream,
    host: Rc<Host>,
    patience: Duration,
    speaks_h2: bool,
}

impl Traffic {
    /// Everything that is sent to one subject, and to it in the chain of all.
    async fn of(&self, i: usize, s: &Subject) -> Result<()> {
        for route in [format!("/s{i}/x"), "/all/x".to_string()] {
            for (n, (r, a)) in exchanges(&route).into_iter().enumerate() {
                let case = format!("pair-{i}{}-{n}", route.replace('/', "-"));
                self.upstream.answer(&case, a);
                self.exchange(r, s, &case).await?;
            }
            self.broken_off(&route, s).await?;
            if self.speaks_h2 {
                self.over_h2(&route, s).await?;
            }
        }
        Ok(())
    }

    /// One exchange; while it waits, requests with the companion's fields let it go on.
    async fn exchange(&self, r: Request, s: &Subject, case: &str) -> Result<()> {
        let companion = s.companion.iter().fold(Request::get(&r.path), with);
        let r = s.fields.iter().fold(r, with);
        let main = async {
            let mut c = Connection::open(self.host.address, self.patience).await?;
            c.send(&r, case).await;
            c.response(&r.method)
                .await
                .with_context(|| format!("{} {} ({case})", r.method, r.path))
        };
        if s.companion.is_empty() {
            main.await?;
            return Ok(());
        }
        tokio::pin!(main);
        loop {
            tokio::select! {
                done = &mut main => return done.map(|_| ()),
                () = tokio::time::sleep(Duration::from_millis(20)) => {
                    let mut c = Connection::open(self.host.address, self.patience).await?;
                    c.send(&companion, "pair-companion").await;
                    c.response("GET").await?;
                }
            }
        }
    }

    /// Clients that go away: in the request's body, and before the answer.
    async fn broken_off(&self, route: &str, s: &Subject) -> Result<()> {
        let half = Request::new("POST", route)
            .field("content-length", "100000")
            .head_only();
        let half = s.fields.iter().fold(half, with);
        let mut c = Connection::open(self.host.address, self.patience).await?;
        c.write(&half.head("pair-half")).await;
        c.write(&TEXT.repeat(100)).await;
        c.reset();
        let case = "pair-unanswered";
        self.upstream
            .answer(case, Answer::status(200).head().gate("never"));
        let asked = s.fields.iter().fold(Request::get(route), with);
        let mut c = Connection::open(self.host.address, self.patience).await?;
        c.send(&asked, case).await;
        c.peek(30).await;
        c.reset();
        Ok(())
    }

    async fn over_h2(&self, route: &str, s: &Subject) -> Result<()> {
        let mut h2 = H2::open(self.host.h2c_address()?, self.patience).await?;
        let r = s.fields.iter().fold(Request::post(route, b""), with);
        let mut all = Vec::new();
        for n in 0..3 {
            let mut stream = h2.send(&r, "pair-h2", false).await?;
            // A stream that the host has ended takes no more: that is an answer, too.
            let _ = stream.data(&TEXT.repeat(n * 20 + 1), false);
            let _ = if n == 1 {
                stream.trailers(&[("x-t", "1")])
            } else {
                stream.data(TEXT, true)
            };
            all.push(stream);
        }
        if !s.companion.is_empty() {
            // What nobody lets go on is cut.
            return Ok(());
        }
        for mut stream in all {
            stream
                .response()
                .await
                .with_context(|| format!("POST {route} by HTTP/2"))?;
        }
        Ok(())
    }
}

fn with(r: Request, (name, value): &(String, String)) -> Request {
    r.field(name, value)
}

/// Requests to `route` and what the upstream answers.
fn exchanges(route: &str) -> Vec<(Request, Answer)> {
    let ok = || Answer::status(200).field("content-type", "text/plain");
    let long = TEXT.repeat(4000);
    vec![
        (
            Request::get(route).field("user-agent", "Mozilla/5.0 (X11)"),
            ok().body(TEXT),
        ),
        (Request::new("HEAD", route), ok().body(TEXT)),
        (Request::get(route), Answer::status(204).head()),
        (Request::get(route), ok().chunks(&[TEXT, b"", TEXT])),
        (
            Request::get(route).field("cookie", "a=b; c=d"),
            ok().field("set-cookie", "a=b")
                .field("set-cookie", "c=d")
                .body(b""),
        ),
        (Request::post(route, TEXT), ok().body(TEXT)),
        (
            Request::chunks(route, &[b"the qui", b"ck brown", TEXT]),
            ok().chunks(&[b"the qui", b"ck", b" brown"]),
        ),
        (
            Request::chunks(route, &[TEXT]).trailer("x-t", "1"),
            ok().chunks_and_trailers(&[TEXT], &[("x-t", "2")]),
        ),
        (Request::post(route, &long), ok().body(&long)),
        (Request::post(route, TEXT), ok().early().body(TEXT)),
        (Request::get(route), Answer::status(304).head()),
        (
            Request::get(route),
            ok().field("content-length", "1000")
                .head()
                .send(TEXT)
                .then(Step::Reset),
        ),
        (Request::get(route), Answer::default().first(Step::Reset)),
    ]
}
