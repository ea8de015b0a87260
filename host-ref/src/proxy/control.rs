//! The config thread: starts everything, loads and reloads configurations, ends the process.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc as async_mpsc, oneshot};

use super::access::AccessLog;
use super::config::{Config, ConfigError, Diagnostic, KeyPath, Level, Site, check};
use super::guests::{self, Counted, Guests, KeptStats};
use super::site::{Kept, Runtime};
use super::sockets::{Bound, Sockets, bind_admin};
use super::worker::{self, Command, Socket, WorkerStats};
use super::{admin, clock, features, logging};
use crate::engine::{Hub, HubLimits};
use crate::ffi::MetricSnapshot;
use crate::loader::{BoundaryLimits, Host, HostInfo, Library};

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything that ran has finished.
    Drained,
    /// The time for finishing was over before that.
    Cut,
}

/// What the config thread is asked to do.
#[derive(Debug)]
pub(super) enum Order {
    /// Take the file again; answers the generation in force, or why it is still the old one.
    Reload(Option<oneshot::Sender<Result<u64, String>>>),
    /// Finish what runs, then end.
    Drain,
    /// Change the log's level until the next reload.
    Level(Level),
    /// Guests have configurations that nobody uses any more.
    DropConfigs,
}

/// What the other threads may look at.
pub(super) struct Shared {
    runtime: Mutex<Arc<Runtime>>,
    pub workers: Vec<Arc<WorkerStats>>,
    draining: AtomicBool,
    reloads: [AtomicU64; 2],
    host: Arc<Host>,
    stats: Mutex<KeptStats>,
    addresses: Mutex<Vec<(String, SocketAddr)>>,
    orders: mpsc::Sender<Order>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is kept under these locks is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn runtime(&self) -> Arc<Runtime> {
        Arc::clone(&lock(&self.runtime))
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    pub(super) fn reload_counts(&self) -> [(&'static str, u64); 2] {
        [
            ("ok", self.reloads[0].load(Relaxed)),
            ("refused", self.reloads[1].load(Relaxed)),
        ]
    }

    pub(super) fn filter_stats(&self) -> Vec<(String, Counted)> {
        let stats = lock(&self.stats);
        let mut all: Vec<_> = stats
            .iter()
            .map(|(name, counted)| (name.to_owned(), counted.clone()))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    pub(super) fn guest_metrics(&self) -> Vec<MetricSnapshot> {
        self.host.metrics()
    }

    pub(super) fn libraries(&self) -> Vec<Arc<Library>> {
        self.host.libraries()
    }

    pub(super) fn addresses(&self) -> Vec<(String, SocketAddr)> {
        lock(&self.addresses).clone()
    }

    pub(super) fn order(&self, order: Order) {
        // Fails only when the process is about to end.
        let _ = self.orders.send(order);
    }
}

/// Checks a configuration, its guests included, without serving by it.
///
/// # Errors
/// Everything that is wrong with it.
pub fn check_file(file: &Path) -> Result<(), ConfigError> {
    let site = check(Config::read(file)?)?;
    logging::start(site.source.config.log.level, site.source.config.log.format);
    let host = guest_host(Hub::new(1, HubLimits::default()));
    let loaded = Guests::load(&host, &site, None, &mut KeptStats::default(), true);
    let result = loaded.map(drop);
    host.drop_configs();
    result?;
    if let Some(path) = &site.source.config.access_log.path {
        open_access(&site, path)?;
    }
    Ok(())
}

/// Serves until the process is told to end.
///
/// # Errors
/// It could not start: the configuration is wrong, an address is taken, a thread could not be made.
pub fn run(file: &Path) -> anyhow::Result<End> {
    let site = check(Config::read(file)?)?;
    let config = &site.source.config;
    let level = logging::start(config.log.level, config.log.format);
    let (orders, inbox) = mpsc::channel();
    // Before any guest is loaded: handlers that were there first are the ones that a guest's runtime respects.
    let admin = admin::start(orders.clone())?;
    let count = match config.workers {
        Some(n) => usize::from(n),
        None => std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(256),
    };
    let hub = Hub::new(u32::try_from(count)?, HubLimits::default());
    let host = guest_host(Arc::clone(&hub));
    host.page().set_log_level(level);
    set_clock(&host);
    let notify = Mutex::new(orders.clone());
    host.set_drop_notify(Box::new(move || {
        let _ = lock(&notify).send(Order::DropConfigs);
    }));
    let mut stats = KeptStats::default();
    let mut kept = Kept::default();
    let guests = Guests::load(&host, &site, None, &mut stats, false)?;
    let mut sockets = Sockets::default();
    let bound = sockets.bind(&site, count)?;
    let admin_socket = config
        .admin
        .as_ref()
        .map(|a| bind_admin(&site, a.address))
        .transpose()?;
    let access = config
        .access_log
        .path
        .as_deref()
        .map(|p| open_access(&site, p))
        .transpose()?;
    let runtime = Arc::new(Runtime::new(
        site, 1, count, guests, access, None, &mut kept,
    ));
    let shared = Arc::new(Shared {
        runtime: Mutex::new(Arc::clone(&runtime)),
        workers: (0..count).map(|_| Arc::default()).collect(),
        draining: AtomicBool::new(false),
        reloads: Default::default(),
        host,
        stats: Mutex::new(stats),
        addresses: Mutex::default(),
        orders,
    });
    let mut control = Control {
        file: runtime.file.clone(),
        threads: start_workers(&shared, &hub, &runtime)?,
        shared,
        sockets,
        kept,
        count,
    };
    drop(runtime);
    control.apply(bound);
    control.announce(admin_socket.as_ref())?;
    admin.serve(Arc::clone(&control.shared), admin_socket);
    let end = control.serve(&inbox);
    Ok(end)
}

fn guest_host(hub: Arc<Hub>) -> Arc<Host> {
    Host::new(HostInfo {
        name: "pxg-host".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        features: features::of_host(),
        hub,
        log: Arc::new(logging::guest),
        limits: BoundaryLimits {
            body_limit: [1 << 30; 2],
            ..BoundaryLimits::default()
        },
        attributes: Arc::new(guests::attribute),
    })
}

fn set_clock(host: &Host) {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    host.page().set_clock(
        clock::now(),
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
    );
}

fn open_access(site: &Site, path: &Path) -> Result<Arc<AccessLog>, ConfigError> {
    let source = &site.source;
    let at = if path == Path::new("-") {
        path.to_path_buf()
    } else {
        source.file.parent().unwrap_or(Path::new("/")).join(path)
    };
    let config = &source.config.access_log;
    AccessLog::open(&at, config.format, config.trace)
        .map(Arc::new)
        .map_err(|e| {
            ConfigError::one(Diagnostic::at(
                &source.file,
                &source.text,
                &KeyPath::new("access_log").key("path"),
                format!("cannot append to {}: {e}", at.display()),
                "create its folder, or write \"-\" for standard output",
            ))
        })
}

struct WorkerThread {
    commands: async_mpsc::UnboundedSender<Command>,
    thread: JoinHandle<()>,
}

fn start_workers(
    shared: &Shared,
    hub: &Arc<Hub>,
    runtime: &Arc<Runtime>,
) -> io::Result<Vec<WorkerThread>> {
    // Of the process, so that ids of different runs and hosts differ. Not a secret.
    let random = RandomState::new().hash_one(std::process::id());
    let mut id_prefix = [b'0'; 32];
    id_prefix[..16].copy_from_slice(format!("{random:016x}").as_bytes());
    let mut threads = Vec::new();
    for (id, stats) in (0..).zip(&shared.workers) {
        let (commands, inbox) = async_mpsc::unbounded_channel();
        let start = worker::Start {
            id,
            hub: Arc::clone(hub),
            stats: Arc::clone(stats),
            runtime: Arc::clone(runtime),
            commands: inbox,
            id_prefix,
        };
        let thread = std::thread::Builder::new()
            .name(format!("worker-{id}"))
            .spawn(move || {
                if let Err(error) = worker::run(start) {
                    tracing::error!(%error, "a worker could not start its event loop");
                    std::process::exit(1);
                }
            })?;
        threads.push(WorkerThread { commands, thread });
    }
    Ok(threads)
}

struct Control {
    file: PathBuf,
    shared: Arc<Shared>,
    threads: Vec<WorkerThread>,
    sockets: Sockets,
    kept: Kept,
    count: usize,
}

/// How often guests' clock is set, which is also how often the config thread looks about.
const TICK: Duration = Duration::from_millis(100);

impl Control {
    fn serve(&mut self, inbox: &mpsc::Receiver<Order>) -> End {
        loop {
            set_clock(&self.shared.host);
            match inbox.recv_timeout(TICK) {
                Ok(Order::Reload(reply)) => {
                    let result = self.reload();
                    self.shared.reloads[usize::from(result.is_err())].fetch_add(1, Relaxed);
                    match &result {
                        Ok(generation) => tracing::info!(generation, "configuration reloaded"),
                        Err(error) => tracing::error!(
                            "reload refused, the old configuration serves on:\n{error}"
                        ),
                    }
                    if let Some(reply) = reply {
                        let _ = reply.send(result.map_err(|e| e.to_string()));
                    }
                }
                Ok(Order::DropConfigs) => {
                    self.shared.host.drop_configs();
                }
                Ok(Order::Level(level)) => {
                    self.shared
                        .host
                        .page()
                        .set_log_level(logging::set_level(level));
                    tracing::info!(?level, "log level changed");
                }
                Ok(Order::Drain) | Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return self.drain(inbox);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn reload(&mut self) -> Result<u64, ConfigError> {
        let before = self.shared.runtime();
        let site = check(Config::read(&self.file)?)?;
        self.check_fixed(&site, &before)?;
        let mut stats = lock(&self.shared.stats);
        let guests = Guests::load(
            &self.shared.host,
            &site,
            Some(&before.guests),
            &mut stats,
            false,
        )?;
        drop(stats);
        let path = site.source.config.access_log.path.as_deref();
        let access = path.map(|p| open_access(&site, p)).transpose()?;
        let bound = self.sockets.bind(&site, self.count)?;
        // From here on nothing fails.
        let level = site.source.config.log.level;
        let generation = before.generation + 1;
        let runtime = Runtime::new(
            site,
            generation,
            self.count,
            guests,
            access,
            Some(&before),
            &mut self.kept,
        );
        *lock(&self.shared.runtime) = Arc::new(runtime);
        drop(before);
        self.shared
            .host
            .page()
            .set_log_level(logging::set_level(level));
        self.apply(bound);
        self.shared.host.drop_configs();
        Ok(generation)
    }

    /// What only a restart can change.
    fn check_fixed(&self, site: &Site, before: &Runtime) -> Result<(), ConfigError> {
        let source = &site.source;
        let old: Option<Config> = serde_json::from_value(before.config.clone()).ok();
        let Some(old) = old else { return Ok(()) };
        let refuse = |key: KeyPath| {
            Err(ConfigError::one(Diagnostic::at(
                &source.file,
                &source.text,
                &key,
                "this cannot be changed by a reload",
                "put the old value back, or restart the host",
            )))
        };
        if source.config.workers != old.workers {
            return refuse(KeyPath::new("workers"));
        }
        if source.config.log.format != old.log.format {
            return refuse(KeyPath::new("log").key("format"));
        }
        if source.config.admin.as_ref().map(|a| a.address) != old.admin.as_ref().map(|a| a.address)
        {
            return refuse(KeyPath::new("admin").key("address"));
        }
        Ok(())
    }

    /// Hands the configuration in force to the workers and waits until they serve by it.
    fn apply(&mut self, bound: Vec<Bound>) {
        let runtime = self.shared.runtime();
        let (done, all_done) = mpsc::channel();
        let mut per_worker: Vec<Vec<Socket>> = self.threads.iter().map(|_| Vec::new()).collect();
        for bound in bound {
            for (worker, listener) in bound.listeners.into_iter().enumerate() {
                per_worker[worker].push(Socket {
                    key: bound.key.clone(),
                    listener,
                    permits: Arc::clone(&bound.permits[worker]),
                });
            }
        }
        for (thread, sockets) in self.threads.iter().zip(per_worker) {
            let _ = thread.commands.send(Command::Apply {
                runtime: Arc::clone(&runtime),
                sockets,
                done: done.clone(),
            });
        }
        drop(done);
        while all_done.recv().is_ok() {}
        self.sockets.keep(&runtime, self.count);
        *lock(&self.shared.addresses) = self.sockets.addresses(&runtime);
    }

    /// Tells on standard output, for programs, where the host listens.
    fn announce(&self, admin: Option<&StdListener>) -> io::Result<()> {
        let mut out = io::stdout().lock();
        for (name, address) in self.shared.addresses() {
            let line =
                serde_json::json!({"event": "listening", "listener": name, "address": address});
            writeln!(out, "{line}")?;
        }
        if let Some(admin) = admin {
            let line = serde_json::json!({"event": "listening", "admin": true, "address": admin.local_addr()?});
            writeln!(out, "{line}")?;
        }
        let generation = self.shared.runtime().generation;
        writeln!(
            out,
            "{}",
            serde_json::json!({"event": "ready", "generation": generation})
        )?;
        out.flush()
    }

    fn drain(&mut self, inbox: &mpsc::Receiver<Order>) -> End {
        let runtime = self.shared.runtime();
        let config: Option<Config> = serde_json::from_value(runtime.config.clone()).ok();
        let limit = config.map_or(Duration::from_secs(30), |c| c.drain.timeout.duration());
        drop(runtime);
        self.shared.draining.store(true, Relaxed);
        self.shared.host.page().set_draining(true);
        tracing::info!(timeout = ?limit, "draining: no new connections, running requests finish");
        let (done, all_done) = mpsc::channel();
        for thread in &self.threads {
            let _ = thread.commands.send(Command::Drain(done.clone()));
        }
        drop(done);
        let deadline = Instant::now() + limit;
        let mut left = self.threads.len();
        while left > 0 && Instant::now() < deadline {
            match all_done
                .recv_timeout(TICK.min(deadline.saturating_duration_since(Instant::now())))
            {
                Ok(()) => left -= 1,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            set_clock(&self.shared.host);
            for order in inbox.try_iter() {
                if let Order::Reload(Some(reply)) = order {
                    let _ = reply.send(Err("the host drains".into()));
                }
            }
            self.shared.host.drop_configs();
        }
        self.stop();
        if left == 0 {
            tracing::info!("drained");
            End::Drained
        } else {
            tracing::warn!(timeout = ?limit, "requests were cut: they did not finish in time");
            End::Cut
        }
    }

    /// The end in the order of the spec's 12.8: streams, configurations, workers.
    fn stop(&mut self) {
        let (ended, all_ended) = mpsc::channel();
        let mut leave = Vec::new();
        for thread in &self.threads {
            let (keep, dropped) = mpsc::channel();
            let ended = ended.clone();
            let _ = thread.commands.send(Command::Stop { ended, dropped });
            leave.push(keep);
        }
        drop(ended);
        while all_ended.recv().is_ok() {}
        let last = self.shared.runtime();
        *lock(&self.shared.runtime) = Arc::new(Runtime::ended(&last));
        drop(last);
        self.shared.host.drop_configs();
        drop(leave);
        for thread in self.threads.drain(..) {
            let _ = thread.thread.join();
        }
    }
}
