//! The servers that are measured: Envoy in its variants, and Go's proxy. Each is ended when it is dropped.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::shape::Shape;
use super::variant::{Built, EXT_PROC, HEADERS, Kind, Variant, WHOLE, filter};
use crate::client::{self, Connection, Protocol};
use crate::process::CpuClock;

/// How long one may take to start: it shares a processor with all others.
const START: Duration = Duration::from_secs(60);

/// What Envoy runs under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Under {
    Nothing,
    /// Valgrind, which counts when it is told to, and writes to this file with a number behind.
    Callgrind(PathBuf),
}

/// A running server, its helper process included.
pub(super) struct Server {
    listeners: BTreeMap<String, SocketAddr>,
    /// One listener for everything.
    any: Option<SocketAddr>,
    /// Killed when dropped. The last one listens.
    children: Vec<Child>,
    clocks: Vec<CpuClock>,
}

impl Server {
    /// Starts `variant` in front of `upstream`, with its files in `folder`, on the processor of this thread.
    pub(super) async fn start(
        variant: &Variant,
        built: &Built,
        upstream: SocketAddr,
        folder: &Path,
        under: &Under,
    ) -> Result<Self> {
        std::fs::create_dir(folder)?;
        if variant.kind == Kind::GoProxy {
            let upstream = format!("http://{upstream}");
            let (child, line) = start_and_read(&built.go_proxy, &[&upstream], folder).await?;
            let any = line
                .parse()
                .with_context(|| format!("read the address {line}"))?;
            return Ok(Self {
                listeners: BTreeMap::new(),
                any: Some(any),
                clocks: vec![clock(&child)?],
                children: vec![child],
            });
        }
        let socket = folder.join("ext_proc.sock");
        let mut children = Vec::new();
        if variant.kind == Kind::ExtProc {
            let arguments = ["ext-proc", "--socket", path(&socket)?];
            let (child, line) = start_and_read(&built.peers, &arguments, folder).await?;
            ensure!(line == "listening", "the ext_proc server said {line:?}");
            children.push(child);
        }
        let config = config(variant, built, upstream, &socket)?;
        let (envoy, listeners) = start_envoy(built, &config, folder, under).await?;
        children.push(envoy);
        Ok(Self {
            listeners,
            any: None,
            clocks: children.iter().map(clock).collect::<Result<_>>()?,
            children,
        })
    }

    /// Where requests of this shape go.
    pub(super) fn address(&self, shape: Shape) -> Result<SocketAddr> {
        self.listener(if shape.body().is_some() {
            WHOLE
        } else {
            HEADERS
        })
    }

    /// Where a listener is.
    pub(super) fn listener(&self, name: &str) -> Result<SocketAddr> {
        let found = self.any.or_else(|| self.listeners.get(name).copied());
        found.with_context(|| format!("no listener {name:?} but {:?}", self.listeners))
    }

    /// The process that listens.
    pub(super) fn pid(&self) -> Result<u32> {
        let listening = self.children.last().and_then(Child::id);
        listening.context("the server has ended")
    }

    /// Processor time of all threads of all its processes until now.
    pub(super) fn cpu(&self) -> Result<Duration> {
        self.clocks.iter().map(|clock| clock.now()).sum()
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

fn clock(child: &Child) -> Result<CpuClock> {
    let id = child.id().context("a child that has ended")?;
    CpuClock::of(Pid::from_raw(i32::try_from(id)?))
}

/// Starts a program that prints a line when it is ready.
async fn start_and_read(
    program: &Path,
    arguments: &[&str],
    folder: &Path,
) -> Result<(Child, String)> {
    let log = folder.join("helper.log");
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&log)?)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let out = child.stdout.take().context("the output is piped")?;
    let mut lines = BufReader::new(out).lines();
    match tokio::time::timeout(START, lines.next_line()).await {
        Ok(Ok(Some(line))) => Ok((child, line)),
        _ => bail!(
            "{} did not start: {}",
            program.display(),
            std::fs::read_to_string(&log).unwrap_or_default()
        ),
    }
}

async fn start_envoy(
    built: &Built,
    config: &Value,
    folder: &Path,
    under: &Under,
) -> Result<(Child, BTreeMap<String, SocketAddr>)> {
    let (file, admin, log) = (
        folder.join("envoy.json"),
        folder.join("admin"),
        folder.join("envoy.log"),
    );
    std::fs::write(&file, serde_json::to_string_pretty(config)?)?;
    let mut command = match under {
        Under::Nothing => Command::new(&built.envoy),
        Under::Callgrind(dump) => {
            let mut command = Command::new("valgrind");
            command.args(["--tool=callgrind", "--instr-atstart=no"]);
            command.arg("--separate-threads=yes");
            command.arg(format!("--callgrind-out-file={}", path(dump)?));
            command.arg(&built.envoy);
            command
        }
    };
    let mut child = command
        .arg("-c")
        .arg(&file)
        .arg("--admin-address-path")
        .arg(&admin)
        .args(["--concurrency", "1", "--disable-hot-restart"])
        .args(["--log-level", "warning"])
        .env("ENVOY_DYNAMIC_MODULES_SEARCH_PATH", &built.module)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log)?)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {:?}", command.as_std().get_program()))?;
    let begin = Instant::now();
    let why = loop {
        if let Some(status) = child.try_wait()? {
            break format!("it ended: {status}");
        }
        // Not there before the admin listener is.
        let address = std::fs::read_to_string(&admin).unwrap_or_default();
        if let Ok(address) = address.trim().parse()
            && let Some(listeners) = listeners(address).await?
        {
            return Ok((child, listeners));
        }
        if begin.elapsed() > START {
            break format!("not ready after {START:?}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    bail!("Envoy did not start: {why}\n{said}");
}

/// Envoy's listeners, once it is ready.
async fn listeners(admin: SocketAddr) -> Result<Option<BTreeMap<String, SocketAddr>>> {
    let mut connection = Connection::open(admin, Protocol::Http1).await?;
    let mut get = async |path: &str| {
        let request = http::Request::builder()
            .uri(format!("http://{admin}{path}"))
            .body(client::no_body())?;
        connection.ask(request).await
    };
    if get("/ready").await?.status != http::StatusCode::OK {
        return Ok(None);
    }
    let answer = get("/listeners?format=json").await?;
    let text = String::from_utf8_lossy(&answer.body);
    let all: Value = serde_json::from_str(&text).with_context(|| format!("read {text}"))?;
    let mut found = BTreeMap::new();
    for status in all["listener_statuses"].as_array().into_iter().flatten() {
        let address = &status["local_address"]["socket_address"];
        let name = status["name"].as_str().unwrap_or_default();
        let (Some(ip), Some(port)) = (address["address"].as_str(), address["port_value"].as_u64())
        else {
            bail!("a listener without an address: {text}");
        };
        let port = u16::try_from(port).context("a port")?;
        found.insert(name.to_owned(), SocketAddr::new(ip.parse()?, port));
    }
    Ok(Some(found))
}

fn config(variant: &Variant, built: &Built, upstream: SocketAddr, socket: &Path) -> Result<Value> {
    let local = |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let endpoints = |name: &str, address: Value| {
        json!({
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        })
    };
    let mut listeners = Vec::new();
    for (name, mut filters) in variant.listeners(built)? {
        filters.push(filter("router", "router.v3.Router", json!({})));
        listeners.push(json!({
            "name": name,
            "address": local(0),
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.\
                              HttpConnectionManager",
                    "stat_prefix": name,
                    "http_filters": filters,
                    "route_config": {"virtual_hosts": [{
                        "name": "all",
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}],
                    }]},
                },
            }]}],
        }));
    }
    let mut clusters = vec![json!({
        "name": "upstream",
        "load_assignment": endpoints("upstream", local(upstream.port())),
    })];
    if variant.kind == Kind::ExtProc {
        clusters.push(json!({
            "name": EXT_PROC,
            "load_assignment": endpoints(EXT_PROC, json!({"pipe": {"path": socket}})),
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}},
                },
            },
        }));
    }
    Ok(json!({
        "admin": {"address": local(0)},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }))
}
