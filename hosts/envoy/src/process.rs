//! What there is once per process: the host of the guests, the workers' bells, and a thread for what Envoy's threads cannot
//! wait for.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::ThreadId;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proxy_golang_abi::LogLevel;
use proxy_golang_host::engine::{FilterStats, Hub, HubLimits};
use proxy_golang_host::loader::{BoundaryLimits, Host, HostInfo};

use crate::bell::{Bell, NEVER, Work};
use crate::site::Site;
use crate::stats::Counted;
use crate::sys::{self, Scheduler};
use crate::{attributes, features};

/// Most that `max_body` of an entry may be.
pub(crate) const BODY_LIMIT: u64 = 1 << 30;

/// The process's part of this module.
pub(crate) struct Process {
    pub(crate) host: Arc<Host>,
    pub(crate) hub: Arc<Hub>,
    bells: Vec<Arc<Bell<Scheduler>>>,
    house: Arc<House>,
    main: ThreadId,
    /// What is counted for entries: it goes on over updates of the configuration.
    pub(crate) stats: Mutex<Vec<Counted>>,
    /// The configurations in force, for routes' overrides and for statistics.
    pub(crate) sites: Mutex<Vec<Weak<Site>>>,
}

/// What the housekeeper waits for.
#[derive(Default)]
struct House {
    asked: Mutex<Asked>,
    wake: Condvar,
    /// Held while configurations are dropped.
    dropping: Mutex<()>,
}

#[derive(Default)]
struct Asked {
    /// A deadline earlier than any before.
    due: Option<u64>,
    /// Configurations wait to be dropped.
    drops: bool,
}

static PROCESS: OnceLock<Process> = OnceLock::new();

/// Locks what is whole between any two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The process, made by the first configuration. \[main thread\]
pub(crate) fn get_or_start() -> &'static Process {
    PROCESS.get_or_init(|| Process::start(sys::concurrency()))
}

/// The process, if a configuration has been made.
pub(crate) fn get() -> Option<&'static Process> {
    PROCESS.get()
}

/// Monotonic nanoseconds; never 0.
pub(crate) fn now() -> u64 {
    static BEGAN: OnceLock<std::time::Instant> = OnceLock::new();
    let since = BEGAN.get_or_init(std::time::Instant::now).elapsed();
    u64::try_from(since.as_nanos()).unwrap_or(NEVER - 1) + 1_000_000_000
}

/// The least of what Envoy's log takes of us.
fn log_level() -> LogLevel {
    [
        LogLevel::TRACE,
        LogLevel::DEBUG,
        LogLevel::INFO,
        LogLevel::WARN,
    ]
    .into_iter()
    .find(|level| sys::log_enabled(*level))
    .unwrap_or(LogLevel::ERROR)
}

impl Process {
    fn start(workers: u32) -> Self {
        // Envoy gives its main thread the index behind the last worker's.
        let workers = workers.max(1) + 1;
        let hub = Hub::new(workers, HubLimits::default());
        let bells: Vec<Arc<Bell<Scheduler>>> = (0..workers).map(|_| Arc::default()).collect();
        for (worker, bell) in (0..).zip(&bells) {
            let bell = Arc::clone(bell);
            hub.set_notify(worker, Box::new(move || bell.ring()));
        }
        let host = Host::new(HostInfo {
            name: "proxy_golang-envoy".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: features::of_host(),
            hub: Arc::clone(&hub),
            log: Arc::new(|level, guest, text| {
                if sys::log_enabled(level) {
                    sys::log(level, &format!("[{guest}] {text}"));
                }
            }),
            limits: BoundaryLimits {
                body_limit: [BODY_LIMIT; 2],
                ..BoundaryLimits::default()
            },
            attributes: Arc::new(attributes::number),
        });
        host.page().set_log_level(log_level());
        let house = Arc::<House>::default();
        let notify = Arc::clone(&house);
        host.set_drop_notify(Box::new(move || {
            lock(&notify.asked).drops = true;
            notify.wake.notify_one();
        }));
        let keeper = Keeper {
            host: Arc::clone(&host),
            house: Arc::clone(&house),
            bells: bells.clone(),
        };
        let started = std::thread::Builder::new()
            .name("pxg-house".to_owned())
            .spawn(move || keeper.run());
        if let Err(error) = started {
            sys::log(
                LogLevel::ERROR,
                &format!(
                    "proxy_golang: no thread for deadlines ({error}): guests that do not answer are not cut off"
                ),
            );
        }
        Self {
            host,
            hub,
            bells,
            house,
            main: std::thread::current().id(),
            stats: Mutex::default(),
            sites: Mutex::default(),
        }
    }

    /// A worker's bell.
    pub(crate) fn bell(&self, worker: u32) -> Option<&Arc<Bell<Scheduler>>> {
        self.bells.get(worker as usize)
    }

    /// What is counted for each of Envoy's workers.
    pub(crate) fn work(&self) -> impl Iterator<Item = (usize, &Work)> {
        // The last is the main thread's.
        let workers = self
            .bells
            .split_last()
            .map_or(&[][..], |(_, workers)| workers);
        workers.iter().map(|bell| &bell.work).enumerate()
    }

    /// The counters of an entry: those of an earlier one of the same guest, filter and name, or new ones.
    pub(crate) fn stats_of(&self, guest: &str, filter: &str, config: &str) -> Arc<FilterStats> {
        let mut all = lock(&self.stats);
        let same = |c: &&Counted| c.guest == guest && c.filter == filter && c.config == config;
        if let Some(counted) = all.iter().find(same) {
            return Arc::clone(&counted.stats);
        }
        let stats = Arc::<FilterStats>::default();
        all.push(Counted {
            guest: guest.to_owned(),
            filter: filter.to_owned(),
            config: config.to_owned(),
            stats: Arc::clone(&stats),
        });
        stats
    }

    /// A worker's earliest deadline has moved forward.
    pub(crate) fn due(&self, due: u64) {
        let mut asked = lock(&self.house.asked);
        if asked.due.is_none_or(|known| due < known) {
            asked.due = Some(due);
            self.house.wake.notify_one();
        }
    }

    /// A configuration has been given up. The housekeeper drops it; on the main thread it is done at the latest when this
    /// returns, for what comes next there may be the end of the process, with the guests' destructors.
    pub(crate) fn given_up(&self) {
        if std::thread::current().id() == self.main {
            let _one = lock(&self.house.dropping);
            self.host.drop_configs();
        }
    }

    /// The configurations in force.
    pub(crate) fn live_sites(&self) -> Vec<Arc<Site>> {
        let mut sites = lock(&self.sites);
        sites.retain(|site| site.strong_count() > 0);
        sites.iter().filter_map(Weak::upgrade).collect()
    }
}

/// The thread: deadlines, since Envoy's HTTP filters have no timer; configurations to be dropped, which is no work for a
/// worker; and the clock that guests read.
struct Keeper {
    host: Arc<Host>,
    house: Arc<House>,
    bells: Vec<Arc<Bell<Scheduler>>>,
}

/// How often the clock and the log's level are set and statistics are handed to Envoy: the level follows within a second
/// (PXG-OBS-002).
const TICK: Duration = Duration::from_millis(500);

impl Keeper {
    fn run(self) {
        let mut next = NEVER;
        let mut tick = 0;
        loop {
            let at = now();
            if at >= tick {
                tick = at + u64::try_from(TICK.as_nanos()).unwrap_or(NEVER);
                let realtime = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                let realtime = u64::try_from(realtime.as_nanos()).unwrap_or(0);
                self.host.page().set_clock(at, realtime);
                // Operators change it at the admin listener, and Envoy tells nobody.
                self.host.page().set_log_level(log_level());
                if let Some(process) = get() {
                    Site::publish(process);
                }
            }
            if next <= at {
                next = NEVER;
                for bell in &self.bells {
                    let due = bell.due.load(Relaxed);
                    if due <= at {
                        // The worker sets it anew when it has looked.
                        let _ = bell.due.compare_exchange(due, NEVER, Relaxed, Relaxed);
                        bell.ring();
                    } else {
                        next = next.min(due);
                    }
                }
            }
            let wait = Duration::from_nanos(next.min(tick).saturating_sub(at));
            let asked = lock(&self.house.asked);
            let (mut asked, _) = self
                .house
                .wake
                .wait_timeout_while(asked, wait, |asked| asked.due.is_none() && !asked.drops)
                .unwrap_or_else(PoisonError::into_inner);
            let drops = std::mem::take(&mut asked.drops);
            if let Some(due) = asked.due.take() {
                next = next.min(due);
            }
            drop(asked);
            if drops {
                let _one = lock(&self.house.dropping);
                self.host.drop_configs();
            }
        }
    }
}
