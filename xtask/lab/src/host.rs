//! The proxy as a child process: started on free ports, asked over its admin listener, ended in every case.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::{Method, Request, StatusCode};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::client::{self, Connection, Protocol, Whole};

/// How long the proxy may take to start: it loads guests and asks each for its configuration.
const START: Duration = Duration::from_secs(30);

/// What was built; `cargo xtask` says where it is.
#[derive(Clone, Debug, clap::Args)]
pub struct Built {
    /// The proxy
    #[arg(long, env = "PXG_LAB_HOST", value_name = "FILE")]
    pub host: PathBuf,
    /// The library of example filters in Go
    #[arg(long, env = "PXG_LAB_GO", value_name = "FILE")]
    pub go: PathBuf,
    /// The library of the benchmark's filters in Go
    #[arg(long, env = "PXG_LAB_GO_BENCH", value_name = "FILE")]
    pub go_bench: PathBuf,
    /// The library of example filters in Rust
    #[arg(long, env = "PXG_LAB_RUST", value_name = "FILE")]
    pub rust: PathBuf,
    /// The header policy in C
    #[arg(long, env = "PXG_LAB_C", value_name = "FILE")]
    pub c: PathBuf,
}

impl Built {
    /// The path as a TOML string.
    #[must_use]
    pub fn toml(path: &Path) -> String {
        format!("{:?}", path.display().to_string())
    }
}

/// A line of the access log, as far as it is used here.
#[derive(Clone, Debug, Deserialize)]
pub struct Logged {
    /// The request's id.
    pub request_id: String,
    /// Protocol, method and path of the request.
    pub protocol: String,
    #[allow(missing_docs)]
    pub method: String,
    #[allow(missing_docs)]
    pub path: String,
    /// The response's status.
    pub status: u16,
    /// Who made the response and why.
    pub details: String,
    /// From the request's first byte to the response's last.
    pub duration_us: u64,
    /// From the request's head being sent to the response's head.
    pub upstream_us: u64,
    /// What each filter did.
    #[serde(default)]
    pub filters: Vec<Step>,
}

/// One decision of a filter.
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    /// The filter's instance.
    pub filter: String,
    /// The phase.
    pub phase: String,
    /// What it decided.
    pub action: String,
    /// Number of its operations.
    pub ops: u64,
    /// Not by returning, but later.
    pub late: bool,
    /// Time inside the filter.
    pub ns: u64,
}

/// The running proxy. It is killed when this is dropped.
#[derive(Debug)]
pub struct Host {
    child: Child,
    pid: Pid,
    listeners: BTreeMap<String, SocketAddr>,
    admin: SocketAddr,
    log: mpsc::UnboundedReceiver<Logged>,
}

/// A line that the proxy prints while it starts.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Event {
    Listening {
        #[serde(default)]
        listener: Option<String>,
        address: SocketAddr,
    },
    Ready,
}

#[derive(Default)]
struct Ready {
    listeners: BTreeMap<String, SocketAddr>,
    admin: Option<SocketAddr>,
}

impl Host {
    /// Starts the proxy, with its own log in `log`, and waits until it listens. It needs an admin listener.
    pub async fn start(program: &Path, config: &Path, log: &Path) -> Result<Self> {
        let errors =
            std::fs::File::create(log).with_context(|| format!("write {}", log.display()))?;
        let mut child = Command::new(program)
            .arg("run")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let pid = Pid::from_raw(i32::try_from(child.id().context("a child has an id")?)?);
        let out = child.stdout.take().context("the child's output is piped")?;
        let mut lines = BufReader::new(out).lines();
        let (sender, receiver) = mpsc::unbounded_channel();
        let ready = tokio::time::timeout(START, async {
            let mut found = Ready::default();
            while let Some(line) = lines.next_line().await? {
                let event =
                    serde_json::from_str(&line).with_context(|| format!("read its line {line}"))?;
                match event {
                    Event::Listening {
                        listener: Some(name),
                        address,
                    } => {
                        found.listeners.insert(name, address);
                    }
                    Event::Listening {
                        listener: None,
                        address,
                    } => found.admin = Some(address),
                    Event::Ready => {
                        let admin = found.admin.context("it has no admin listener")?;
                        return Ok((found.listeners, admin));
                    }
                }
            }
            bail!("it ended")
        });
        let (listeners, admin) = match ready.await {
            Ok(Ok(ready)) => ready,
            failed => {
                let _ = child.kill().await;
                let said = std::fs::read_to_string(log).unwrap_or_default();
                let why = match failed {
                    Ok(Err(error)) => format!("{error:#}"),
                    _ => format!("not ready after {START:?}"),
                };
                bail!("pxg-host did not start: {why}\n{said}");
            }
        };
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(logged) = serde_json::from_str(&line) {
                    let _ = sender.send(logged);
                }
            }
        });
        Ok(Self {
            child,
            pid,
            listeners,
            admin,
            log: receiver,
        })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Where a listener of its configuration is.
    pub fn listener(&self, name: &str) -> Result<SocketAddr> {
        let address = self.listeners.get(name).copied();
        address.with_context(|| format!("pxg-host has no listener `{name}`: {:?}", self.listeners))
    }

    /// Where its admin listener is.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// The next line of the access log, if that goes to standard output in JSON. None: the proxy ended.
    pub async fn next_logged(&mut self) -> Option<Logged> {
        self.log.recv().await
    }

    /// The access log's line of a request. Lines before it are lost.
    pub async fn logged(&mut self, request_id: &str) -> Result<Logged> {
        let find = async {
            loop {
                let line = self.log.recv().await.context("pxg-host ended")?;
                if line.request_id == request_id {
                    return Ok(line);
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), find)
            .await
            .with_context(|| format!("no line in the access log for request {request_id}"))?
    }

    /// Asks the admin listener.
    pub async fn admin(&self, method: Method, path: &str) -> Result<Whole> {
        let mut connection = Connection::open(self.admin, Protocol::Http1).await?;
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.admin))
            .body(client::no_body())?;
        connection.ask(request).await
    }

    /// JSON from the admin listener.
    pub async fn admin_json(&self, path: &str) -> Result<serde_json::Value> {
        let answer = self.admin(Method::GET, path).await?;
        let text = String::from_utf8_lossy(&answer.body);
        ensure!(
            answer.status == StatusCode::OK,
            "{path}: {}: {text}",
            answer.status
        );
        serde_json::from_str(&text).with_context(|| format!("read {path}: {text}"))
    }

    /// A metric of its own, by its name in the text format, labels included.
    pub async fn metric(&self, series: &str) -> Result<f64> {
        let answer = self.admin(Method::GET, "/metrics").await?;
        let text = String::from_utf8_lossy(&answer.body);
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let wanted = labels.trim_end_matches('}');
        // A series may have labels besides.
        let value = text.lines().find_map(|line| {
            let (of, value) = line.rsplit_once(' ')?;
            let (n, has) = of.split_once('{').unwrap_or((of, ""));
            (n == name && wanted.split_terminator(',').all(|w| has.contains(w)))
                .then(|| value.parse().ok())?
        });
        value.with_context(|| format!("pxg-host has no metric {series}"))
    }

    /// Asks for a graceful end, and waits for it.
    pub async fn drain(&mut self, limit: Duration) -> Result<ExitStatus> {
        kill(self.pid, Signal::SIGTERM).context("tell pxg-host to drain")?;
        let ended = tokio::time::timeout(limit, self.child.wait());
        Ok(ended
            .await
            .with_context(|| format!("pxg-host still runs {limit:?} after SIGTERM"))??)
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}
