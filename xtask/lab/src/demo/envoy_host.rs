//! A stock Envoy as a child process: started on free ports, asked over its admin listener, ended in every case.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http::{Request, StatusCode};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::client::{self, Connection, Protocol};

/// How long it may take to start.
const START: Duration = Duration::from_secs(60);

/// The running Envoy. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Envoy {
    child: Child,
    admin: SocketAddr,
    pub(super) listener: SocketAddr,
    /// Lines of its access log.
    pub(super) access: mpsc::UnboundedReceiver<String>,
}

impl Envoy {
    /// Starts it with one worker, our module from the folder `module`, its files and its log in `folder`.
    pub(super) async fn start(
        program: &Path,
        module: &Path,
        folder: &Path,
        config: &str,
    ) -> Result<Self> {
        let (file, admin, log) = (
            folder.join("envoy.yaml"),
            folder.join("admin"),
            folder.join("envoy.log"),
        );
        std::fs::write(&file, config).with_context(|| format!("write {}", file.display()))?;
        let mut child = Command::new(program)
            .arg("-c")
            .arg(&file)
            .arg("--admin-address-path")
            .arg(&admin)
            .args([
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "warning",
            ])
            .env("ENVOY_DYNAMIC_MODULES_SEARCH_PATH", module)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let out = child.stdout.take().context("the child's output is piped")?;
        let begin = Instant::now();
        let why = loop {
            if let Some(status) = child.try_wait()? {
                break format!("it ended: {status}");
            }
            // Not there before the admin listener is.
            let address = std::fs::read_to_string(&admin).unwrap_or_default();
            if let Ok(admin) = address.trim().parse()
                && let Ok(listener) = listener(admin).await
            {
                let (sender, access) = mpsc::unbounded_channel();
                tokio::spawn(async move {
                    let mut lines = BufReader::new(out).lines();
                    while let Ok(Some(line)) = lines.next_line().await {
                        let _ = sender.send(line);
                    }
                });
                return Ok(Self {
                    child,
                    admin,
                    listener,
                    access,
                });
            }
            if begin.elapsed() > START {
                break format!("not ready after {START:?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        bail!("Envoy did not start: {why}\n{said}");
    }

    pub(super) fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// A counter of request heads, of the entry `config`: the host hands them to Envoy now and then, so this waits until
    /// it is at least `least`.
    pub(super) async fn counted(&self, name: &str, config: &str, least: u64) -> Result<u64> {
        let begin = Instant::now();
        let (name, labels) = (
            format!(".{name}."),
            format!(".config.{config}.phase.request_headers"),
        );
        loop {
            let text = get(self.admin, "/stats?usedonly&filter=pxg").await?;
            let lines = text.lines().filter_map(|line| line.rsplit_once(": "));
            let found = lines.filter(|(key, _)| key.contains(&name) && key.ends_with(&labels));
            let sum = found
                .filter_map(|(_, value)| value.parse::<u64>().ok())
                .sum();
            if sum >= least || begin.elapsed() > Duration::from_secs(10) {
                return Ok(sum);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks for its end, and waits for it.
    pub(super) async fn terminate(&mut self) -> Result<ExitStatus> {
        let id = self.child.id().context("Envoy has ended")?;
        kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGTERM).context("tell Envoy to end")?;
        let ended = tokio::time::timeout(Duration::from_secs(20), self.child.wait());
        Ok(ended
            .await
            .context("Envoy still runs 20 s after SIGTERM")??)
    }
}

async fn get(admin: SocketAddr, path: &str) -> Result<String> {
    let mut connection = Connection::open(admin, Protocol::Http1).await?;
    let request = Request::get(format!("http://{admin}{path}")).body(client::no_body())?;
    let answer = connection.ask(request).await?;
    ensure!(answer.status == StatusCode::OK, "{path}: {}", answer.status);
    Ok(String::from_utf8_lossy(&answer.body).into_owned())
}

/// Where its listener is, once it serves.
async fn listener(admin: SocketAddr) -> Result<SocketAddr> {
    get(admin, "/ready").await?;
    let text = get(admin, "/listeners?format=json").await?;
    let all: Value = serde_json::from_str(&text)?;
    let port = &all["listener_statuses"][0]["local_address"]["socket_address"]["port_value"];
    let port = port.as_u64().and_then(|port| u16::try_from(port).ok());
    Ok(([127, 0, 0, 1], port.context("a listener without a port")?).into())
}
