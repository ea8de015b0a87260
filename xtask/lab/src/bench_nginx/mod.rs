//! A stock nginx with guests in it, against itself without, and against what else can be done there: a module of nginx's
//! own, Lua, Lua that calls Go by FFI, and njs. Besides: what reloads cost, in memory and in requests.

mod reload;
mod server;
mod variant;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::bench_proxy::{
    self, About, Bench, CHECK, FIELD, Measured, Mixed, More, PATIENCE, Run, SEEN, Section,
    Settings, Target, Title, Upstream, pairs,
};
use crate::client::{self, Connection, Protocol};
use crate::flat::{Ask, Load};
use server::Server;
use variant::{Built, LOCAL, LOCAL_ONE, PROXY, PROXY_ONE, UNPINNED, VALUE, VARIANTS, Variant};

/// Measure guests in a stock nginx against plain nginx, and against the alternatives
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    built: Built,
    #[command(flatten)]
    settings: Settings,
    /// Variants to leave out
    #[arg(long, value_name = "VARIANT")]
    without: Vec<String>,
    /// Reloads after which memory is compared
    #[arg(long, default_value_t = 100)]
    reloads: u32,
    /// Seconds of load with a reload in each
    #[arg(long, default_value_t = 60)]
    reload_seconds: u32,
}

static ABOUT: About = About {
    proxy: "nginx",
    name: "nginx",
    introduction: "Each variant is an nginx of its own with one worker, which nginx pins to one processor; load and upstream \
                   have another one.\nGuests are loaded as by default, so that threads of their runtimes may run on both. All \
                   set the same one request field; the\nupstream counts that they do. In a round each runs between two runs of \
                   plain nginx; figures are ratios to those two, the\nmedian of the rounds with the interval that covers the \
                   true median with 95 %. Processor time is that of all threads of\nmaster and worker, by the scheduler's \
                   accounting. *Least* is the ratio of the cheapest runs: noise only adds.\n",
    sections: &[
        Section {
            name: PROXY,
            title: "proxy_pass, 32 connections",
            saturates: true,
        },
        Section {
            name: PROXY_ONE,
            title: "proxy_pass, 1 connection",
            saturates: false,
        },
        Section {
            name: LOCAL,
            title: "a file of 13 bytes, 32 connections",
            saturates: true,
        },
        Section {
            name: LOCAL_ONE,
            title: "a file of 13 bytes, 1 connection",
            saturates: false,
        },
        Section {
            name: UNPINNED,
            title: "proxy_pass, 32 connections, a worker that no processor is chosen for",
            saturates: false,
        },
    ],
};

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        args.built.nginx.is_file(),
        "there is no nginx at {}: `cargo xtask test` brings it, or say where another one is",
        args.built.nginx.display()
    );
    bench_proxy::run(args, &args.settings)
}

impl Bench for Args {
    type Subject = Subject;

    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn variants(&self) -> Vec<Title> {
        let there = VARIANTS
            .iter()
            .filter(|v| !self.without.iter().any(|w| w == v.name));
        there.map(Variant::title).collect()
    }

    fn has(&self, section: &str, variant: &str) -> bool {
        Variant::of(variant).is_some_and(|v| v.has(section))
    }

    fn has_mixed(&self, variant: &str) -> bool {
        Variant::of(variant).is_some_and(Variant::is_async)
    }

    async fn start(
        &self,
        variant: &'static str,
        sections: &[&'static str],
        folder: &Path,
    ) -> Result<Subject> {
        let variant = Variant::of(variant).context("an unknown variant")?;
        let upstream = Upstream::start().await?;
        let start = async |pinned: bool, name: &str| {
            let folder = folder.join(format!("{}-{name}", variant.name));
            Server::start(variant, &self.built, upstream.address, &folder, pinned).await
        };
        let pinned = start(true, "pinned").await?;
        let unpinned = match sections.contains(&UNPINNED) {
            true => Some(start(false, "unpinned").await?),
            false => None,
        };
        let subject = Subject {
            variant,
            pinned,
            unpinned,
            upstream,
            loads: BTreeMap::new(),
        };
        for section in sections {
            let checked = subject.check(section).await;
            checked.with_context(|| format!("one request, {section}"))?;
        }
        Ok(subject)
    }

    fn targets(&self, measured: &Measured) -> Vec<Target> {
        targets(measured)
    }

    fn version(&self) -> Result<String> {
        let output = std::process::Command::new(&self.built.nginx)
            .arg("-v")
            .output()
            .with_context(|| format!("start {}", self.built.nginx.display()))?;
        let text = String::from_utf8_lossy(&output.stderr);
        // nginx version: nginx/1.22.1
        let version = text.trim().rsplit('/').next().context("no version")?;
        Ok(format!("nginx {version}"))
    }

    async fn more(&self, folder: &Path) -> Result<Vec<More>> {
        Ok(vec![
            reload::growth(&self.built, folder, self.reloads).await?,
            reload::under_load(&self.built, folder, self.reload_seconds).await?,
        ])
    }

    fn names_of_more(&self) -> Vec<&'static str> {
        vec![reload::GROWTH, reload::LOAD]
    }
}

/// A variant with its upstream and its loads.
pub(crate) struct Subject {
    variant: &'static Variant,
    pinned: Server,
    unpinned: Option<Server>,
    upstream: Upstream,
    loads: BTreeMap<&'static str, Load>,
}

fn request(path: &str) -> Ask {
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: bench.example\r\nuser-agent: flat/1\r\naccept: text/plain\r\n\r\n"
    );
    Ask::Http1(request.into_bytes())
}

impl Subject {
    fn server(&self, section: &str) -> Result<&Server> {
        if section == UNPINNED {
            return self.unpinned.as_ref().context("there is no second worker");
        }
        Ok(&self.pinned)
    }

    /// Asks once, with an HTTP library.
    async fn check(&self, section: &str) -> Result<()> {
        let address = self.server(section)?.address;
        let path = match section {
            LOCAL | LOCAL_ONE => "/local-check/file",
            _ => CHECK,
        };
        let mut connection = Connection::open(address, Protocol::Http1).await?;
        let request = http::Request::builder().uri(format!("http://bench.example{path}"));
        let answer = connection.ask(request.body(client::no_body())?).await?;
        let expected = self.variant.marks().then_some(VALUE);
        let seen = answer.field(SEEN);
        ensure!(
            answer.status == http::StatusCode::OK && seen == expected,
            "status {} and {FIELD} was {seen:?} behind the filter; expected 200 and {expected:?}. The answer: {:?}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        Ok(())
    }

    async fn measure(&mut self, section: &'static str, time: Duration) -> Result<Option<Run>> {
        let local = matches!(section, LOCAL | LOCAL_ONE);
        if !self.loads.contains_key(section) {
            let address = self.server(section)?.address;
            let ask = request(if local { "/local/file" } else { "/" });
            let connections = if matches!(section, PROXY_ONE | LOCAL_ONE) {
                1
            } else {
                32
            };
            let load = Load::asking(address, &ask, connections).await?;
            self.loads.insert(section, load);
        }
        let mut load = self
            .loads
            .remove(section)
            .context("it was just put there")?;
        let marked = self.variant.marks() && !local;
        let server = self.server(section)?;
        let run = Run::of(&mut load, time, &self.upstream, marked, || server.cpu()).await;
        self.loads.insert(section, load);
        run
    }
}

impl bench_proxy::Subject for Subject {
    /// On a busy machine a short run may see no answer: it is repeated then.
    async fn run(&mut self, section: &'static str, time: Duration) -> Result<Run> {
        let name = format!("{section}/{}", self.variant.name);
        for _ in 0..PATIENCE {
            let measured = self.measure(section, time).await;
            if let Some(run) = measured.with_context(|| name.clone())? {
                return Ok(run);
            }
        }
        bail!("{name}: no request was answered in {PATIENCE} runs of {time:?}")
    }

    async fn mixed(&self) -> Result<Mixed> {
        let (plain, filtered) = (request("/plain"), request("/"));
        let address = self.pinned.address;
        Mixed::open(
            self.variant.name,
            (address, &plain),
            (address, &filtered),
            32,
        )
        .await
    }

    fn cpu(&self) -> Result<Duration> {
        let second = self.unpinned.as_ref().map(Server::cpu).transpose()?;
        Ok(self.pinned.cpu()? + second.unwrap_or_default())
    }
}

/// Those for which all rows were measured.
fn targets(measured: &Measured) -> Vec<Target> {
    let title = |name| Variant::of(name).map_or("an unknown variant", |v| v.title().title);
    let mut targets = Vec::new();
    let mut most = |what: String, series: Option<Vec<f64>>, limit| {
        targets.extend(series.map(|s| Target::most(what, &s, limit)));
    };
    let cpu = |section, variant| measured.cpu(section, variant);
    for (variant, limit) in [
        ("c", 1.03),
        ("go-sync", 1.05),
        ("go-ring", 1.10),
        ("go-goroutine", 1.18),
    ] {
        let what = format!("{}: processor time", title(variant));
        most(what, cpu(PROXY, variant), limit);
    }
    most(
        "guest in Go, synchronous, less the guest in C: processor time".into(),
        pairs(cpu(PROXY, "go-sync"), cpu(PROXY, "c"), |go, c| go - c),
        0.02,
    );
    for (variant, limit) in [
        ("c", 1.05),
        ("go-sync", 1.05),
        ("go-ring", 1.20),
        ("go-goroutine", 1.20),
    ] {
        let what = format!("{}, 1 connection: processor time", title(variant));
        most(what, cpu(PROXY_ONE, variant), limit);
    }
    for variant in ["go-ring", "go-goroutine"] {
        let what = format!("{}, 1 connection: µs that p50 has more", title(variant));
        most(what, measured.added_p50_us(PROXY_ONE, variant), 15.0);
    }
    for variant in VARIANTS {
        let Some([p50, p99]) = measured.probe(variant.name) else {
            continue;
        };
        let what = |q| format!("{}, mixed load: {q} of a probe", variant.title().title);
        most(what("p50"), Some(p50), 2.0);
        most(what("p99"), Some(p99), 2.5);
    }
    let ring = measured.rate(PROXY, "go-ring");
    let what = format!("{}: requests per second", title("go-ring"));
    targets.extend(ring.map(|s| Target::least(what, &s, 0.92)));
    targets
}
