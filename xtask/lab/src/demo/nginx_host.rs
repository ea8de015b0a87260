//! A stock nginx as a child process: started on free ports, asked over its status location, ended in every case.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http::{Request, StatusCode};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::client::{self, Connection, Protocol};

/// How long it may take to start.
const START: Duration = Duration::from_secs(60);

/// The running nginx: its master, and one worker. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Nginx {
    child: Child,
    http1: SocketAddr,
    h2c: SocketAddr,
}

impl Nginx {
    /// Starts it with what `config` makes of the addresses that it is to listen at.
    pub(super) async fn start(
        program: &Path,
        folder: &Path,
        config: &(dyn Fn(SocketAddr, SocketAddr) -> String + Sync),
    ) -> Result<Self> {
        // Nginx can not choose a port; one that is free now may be taken a moment later.
        for _ in 0..10 {
            let (http1, h2c) = two_free_addresses()?;
            let file = folder.join("nginx.conf");
            std::fs::write(&file, config(http1, h2c))
                .with_context(|| format!("write {}", file.display()))?;
            let child = command(program, folder, &file)
                .kill_on_drop(true)
                .spawn()
                .with_context(|| format!("start {}", program.display()))?;
            let mut nginx = Self { child, http1, h2c };
            match nginx.ready().await {
                Ok(()) => return Ok(nginx),
                Err(error) => {
                    let said = log(folder);
                    if !said.contains("Address already in use") {
                        bail!("nginx did not start: {error:#}\n{said}");
                    }
                    std::fs::remove_file(folder.join("error.log"))?;
                }
            }
        }
        bail!("nginx did not start: ten times somebody else took its port")
    }

    async fn ready(&mut self) -> Result<()> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended: {status}");
            }
            if self.status().await.is_ok() {
                return Ok(());
            }
            ensure!(begin.elapsed() < START, "not ready after {START:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(super) fn address(&self, protocol: Protocol) -> SocketAddr {
        match protocol {
            Protocol::Http1 => self.http1,
            Protocol::H2c => self.h2c,
        }
    }

    /// Its status location, in the form for Prometheus.
    async fn status(&self) -> Result<String> {
        let mut connection = Connection::open(self.http1, Protocol::Http1).await?;
        let url = format!("http://{}/pxg?format=prometheus", self.http1);
        let answer = connection
            .ask(Request::get(url).body(client::no_body())?)
            .await?;
        ensure!(answer.status == StatusCode::OK, "/pxg: {}", answer.status);
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// A counter of request heads of the filter `config`, once it is at least `least`.
    pub(super) async fn counted(&self, name: &str, config: &str, least: u64) -> Result<u64> {
        let begin = Instant::now();
        let labels = [
            format!("config=\"{config}\""),
            "phase=\"request_headers\"".to_owned(),
        ];
        loop {
            let text = self.status().await?;
            let found = text.lines().filter_map(|line| {
                let (series, value) = line.rsplit_once(' ')?;
                let (found, set) = series.split_once('{')?;
                (found == name && labels.iter().all(|label| set.contains(label.as_str())))
                    .then(|| value.parse::<u64>().ok())?
            });
            let sum = found.sum();
            if sum >= least || begin.elapsed() > Duration::from_secs(10) {
                return Ok(sum);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks for its end, and waits for it.
    pub(super) async fn terminate(&mut self) -> Result<ExitStatus> {
        let id = self.child.id().context("nginx has ended")?;
        // Graceful: what is in flight is answered.
        kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGQUIT).context("tell nginx to end")?;
        let ended = tokio::time::timeout(Duration::from_secs(20), self.child.wait());
        Ok(ended
            .await
            .context("nginx still runs 20 s after SIGQUIT")??)
    }

    /// Until it ends.
    pub(super) async fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait().await?)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // A master that is killed leaves its worker behind.
        if let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
            let begin = Instant::now();
            while matches!(self.child.try_wait(), Ok(None))
                && begin.elapsed() < Duration::from_secs(5)
            {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn command(program: &Path, folder: &Path, file: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .arg("-p")
        .arg(folder)
        .arg("-c")
        .arg(file)
        .arg("-e")
        .arg(folder.join("error.log"))
        .stdin(Stdio::null())
        .stdout(Stdio::inherit())
        .stderr(Stdio::null());
    command
}

/// `nginx -t` of a configuration.
pub(super) async fn check(program: &Path, folder: &Path, config: &str) -> Result<Output> {
    let file = folder.join("bad.conf");
    std::fs::write(&file, config).with_context(|| format!("write {}", file.display()))?;
    let mut command = command(program, folder, &file);
    command.arg("-t").stderr(Stdio::piped());
    command
        .output()
        .await
        .with_context(|| format!("start {}", program.display()))
}

/// What it wrote to its error log.
pub(super) fn log(folder: &Path) -> String {
    let file: PathBuf = folder.join("error.log");
    std::fs::read_to_string(file).unwrap_or_default()
}

/// At loopback, with a port each that nobody uses now.
fn two_free_addresses() -> Result<(SocketAddr, SocketAddr)> {
    let free = || TcpListener::bind(("127.0.0.1", 0)).context("find a free port");
    let (one, two) = (free()?, free()?);
    Ok((one.local_addr()?, two.local_addr()?))
}
