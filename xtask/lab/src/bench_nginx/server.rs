//! A running nginx: a master and one worker. It ends when it is dropped.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::variant::{Built, Setting, Variant};
use crate::bench_proxy::OTHERS;
use crate::process::{CpuClock, pin, unpin};

/// How long one may take to start: it shares a processor with all others.
const START: Duration = Duration::from_secs(60);

pub(super) struct Server {
    pub(super) address: SocketAddr,
    child: Child,
    clocks: Vec<CpuClock>,
}

impl Server {
    /// Starts `variant` in front of `upstream`, with its files in `folder`.
    pub(super) async fn start(
        variant: &Variant,
        built: &Built,
        upstream: SocketAddr,
        folder: &Path,
        pinned: bool,
    ) -> Result<Self> {
        std::fs::create_dir_all(folder.join("www"))?;
        std::fs::write(folder.join("www/file"), "Hello, world!")?;
        // Nginx cannot choose a port, and one that is free now may be taken a moment later.
        for _ in 0..10 {
            let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
            let config = variant.config(
                built,
                &Setting {
                    listen: address,
                    upstream,
                    folder,
                    pinned,
                },
            );
            std::fs::write(folder.join("nginx.conf"), config)?;
            // A child runs where the thread may that starts it; nginx pins its worker by itself.
            unpin()?;
            let child = command(&built.nginx, folder).spawn();
            pin(OTHERS)?;
            let child = child.with_context(|| format!("start {}", built.nginx.display()))?;
            let mut server = Self {
                address,
                child,
                clocks: Vec::new(),
            };
            let Err(error) = server.ready().await else {
                let processes = [server.master()?, server.worker()?.context("no worker")?];
                server.clocks = processes
                    .map(CpuClock::of)
                    .into_iter()
                    .collect::<Result<_>>()?;
                return Ok(server);
            };
            let said = std::fs::read_to_string(folder.join("error.log")).unwrap_or_default();
            if !said.contains("Address already in use") {
                bail!("nginx did not start: {error:#}\n{said}");
            }
            std::fs::remove_file(folder.join("error.log"))?;
        }
        bail!("nginx did not start: ten times somebody else took its port")
    }

    async fn ready(&mut self) -> Result<()> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended: {status}");
            }
            let there = std::net::TcpStream::connect(self.address).is_ok();
            if there && self.worker()?.is_some() {
                return Ok(());
            }
            ensure!(begin.elapsed() < START, "not ready after {START:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(super) fn master(&self) -> Result<Pid> {
        let id = self.child.id().context("nginx has ended")?;
        Ok(Pid::from_raw(i32::try_from(id)?))
    }

    /// Its only child. None: there are none, or several, as while it reloads.
    pub(super) fn worker(&self) -> Result<Option<Pid>> {
        let master = self.master()?;
        let file = format!("/proc/{master}/task/{master}/children");
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
        let children: Vec<_> = text.split_whitespace().collect();
        let [one] = children[..] else {
            return Ok(None);
        };
        Ok(Some(Pid::from_raw(one.parse()?)))
    }

    /// Has the configuration read again, and guests loaded again, by a new worker.
    pub(super) fn reload(&self) -> Result<()> {
        kill(self.master()?, Signal::SIGHUP).context("tell nginx to reload")
    }

    /// Processor time of all threads of both processes until now.
    pub(super) fn cpu(&self) -> Result<Duration> {
        self.clocks.iter().map(|clock| clock.now()).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A master that is killed leaves its worker behind.
        if let Ok(master) = self.master() {
            let _ = kill(master, Signal::SIGTERM);
            let begin = Instant::now();
            while matches!(self.child.try_wait(), Ok(None))
                && begin.elapsed() < Duration::from_secs(5)
            {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

fn command(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .arg("-p")
        .arg(folder)
        .arg("-c")
        .arg(folder.join("nginx.conf"))
        .arg("-e")
        .arg(folder.join("error.log"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
}
