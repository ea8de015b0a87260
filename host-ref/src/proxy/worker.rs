//! A worker: a thread with an event loop of its own. What belongs to a stream never leaves it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::net::TcpListener as StdListener;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::task::{Poll, Waker};
use std::time::Duration;

use http::header::HeaderValue;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, Semaphore, mpsc as async_mpsc};
use tokio::task::JoinHandle;

use super::access::{AccessLog, FilterStep};
use super::clock;
use super::connection::{self, Conn, ListenerContext};
use super::exchange::Exchange;
use super::filtered::{self, Streams};
use super::site::{Pinned, Runtime};
use super::upstream::Pools;
use crate::engine::{Dir, Hub, Worker};
use crate::loader::Library;

/// Runs what the HTTP library wants to run beside a connection, on the same thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct LocalExec;

impl<F> hyper::rt::Executor<F> for LocalExec
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// A socket that a worker is to accept from.
#[derive(Debug)]
pub(super) struct Socket {
    pub key: SocketKey,
    pub listener: StdListener,
    pub permits: Arc<Semaphore>,
}

/// What makes a listener the same one after a reload: its address, or its name if the address has no port.
pub(super) type SocketKey = String;

/// What the config thread tells a worker.
pub(super) enum Command {
    /// Serve by another configuration: `sockets` are new ones, those of other keys stay if a listener has the key.
    Apply {
        runtime: Arc<Runtime>,
        sockets: Vec<Socket>,
        done: mpsc::Sender<()>,
    },
    /// Accept no more, finish what runs, then say so.
    Drain(mpsc::Sender<()>),
    /// End now: cut what runs, let go of everything that holds a configuration, and take leave of the guests when their
    /// configurations are gone. Nothing is sent: each side says so by letting go of its end.
    Stop {
        ended: mpsc::Sender<()>,
        dropped: mpsc::Receiver<()>,
    },
}

/// What is left of a worker whose event loop has ended.
struct Leaving {
    libraries: Vec<Arc<Library>>,
    stop: Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>,
}

/// Counters of one worker, read by whoever reports.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct WorkerStats {
    pub connections: AtomicU64,
    pub connections_now: AtomicU64,
    pub requests: AtomicU64,
    pub requests_now: AtomicU64,
    pub request_bytes: AtomicU64,
    pub response_bytes: AtomicU64,
    pub duration_ns: AtomicU64,
    pub upstream_idle: AtomicU64,
}

/// Only the worker writes, so no locked instruction is needed.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

impl WorkerStats {
    /// An exchange has ended.
    pub(super) fn finished(&self, exchange: &Exchange, now: u64) {
        add(&self.requests, 1);
        add(&self.requests_now, u64::MAX);
        add(&self.request_bytes, exchange.body_bytes(Dir::Request));
        add(&self.response_bytes, exchange.body_bytes(Dir::Response));
        add(&self.duration_ns, now.saturating_sub(exchange.start));
        if let Some(route) = exchange.route() {
            let class = usize::from(exchange.status.get() / 100);
            route.stats.count(exchange.worker.id, class);
        }
    }
}

/// What one worker has.
pub(super) struct WorkerState {
    pub id: u32,
    pub stats: Arc<WorkerStats>,
    pub engine: RefCell<Worker>,
    pub streams: Streams,
    site: RefCell<Rc<Pinned>>,
    pools: RefCell<Pools>,
    conns: RefCell<HashMap<u64, Rc<Conn>>>,
    draining: Cell<bool>,
    empty: Notify,
    connections: Cell<u64>,
    requests: Cell<u64>,
    /// 16 digits of the process, and room for 16 of the request.
    id_prefix: [u8; 32],
    access: RefCell<AccessBuffer>,
    batch: BatchBell,
}

impl std::fmt::Debug for WorkerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("WorkerState").field(&self.id).finish()
    }
}

/// Lines that wait to be written together.
#[derive(Debug, Default)]
struct AccessBuffer {
    log: Option<Arc<AccessLog>>,
    lines: Vec<u8>,
    waiting: bool,
}

const ACCESS_BUFFER: usize = 32 << 10;
const ACCESS_DELAY: Duration = Duration::from_millis(100);

/// Wakes the task that ends a batch. The run queue is first in, first out: a task that is woken in the middle of a batch
/// runs after everything that was ready in it.
#[derive(Debug, Default)]
struct BatchBell {
    rung: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A connection in its worker's list.
pub(super) struct Registered(Rc<WorkerState>, u64);

impl Drop for Registered {
    fn drop(&mut self) {
        self.0.conns.borrow_mut().remove(&self.1);
        add(&self.0.stats.connections_now, u64::MAX);
        if self.0.conns.borrow().is_empty() {
            self.0.empty.notify_one();
        }
    }
}

impl WorkerState {
    /// The configuration in force.
    pub(super) fn site(&self) -> Rc<Pinned> {
        Rc::clone(&self.site.borrow())
    }

    /// Whether this configuration is the one in force.
    pub(super) fn serves(&self, site: &Rc<Pinned>) -> bool {
        Rc::ptr_eq(site, &self.site.borrow())
    }

    /// Numbers are unique in the process: the worker's is in the upper bits.
    pub(super) fn next_connection(&self) -> u64 {
        self.connections.set(self.connections.get() + 1);
        u64::from(self.id) << 48 | self.connections.get()
    }

    pub(super) fn next_request(&self) -> u64 {
        self.requests.set(self.requests.get() + 1);
        add(&self.stats.requests_now, 1);
        u64::from(self.id) << 48 | self.requests.get()
    }

    /// The id of a request: unique in this process, and very likely among all.
    pub(super) fn request_id(&self, number: u64) -> HeaderValue {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut id = self.id_prefix;
        let mut rest = number;
        for digit in id[16..].iter_mut().rev() {
            *digit = HEX[(rest & 15) as usize];
            rest >>= 4;
        }
        HeaderValue::from_bytes(&id).expect("hexadecimal digits")
    }

    /// Enters a connection into the list of those that a graceful end has to wait for.
    pub(super) fn register(self: &Rc<Self>, conn: Rc<Conn>) -> Registered {
        add(&self.stats.connections, 1);
        add(&self.stats.connections_now, 1);
        let id = conn.id;
        if self.draining.get() {
            conn.shut_down();
        }
        self.conns.borrow_mut().insert(id, conn);
        Registered(Rc::clone(self), id)
    }

    pub(super) fn log_access(
        self: &Rc<Self>,
        log: &Arc<AccessLog>,
        exchange: &Exchange,
        steps: &[FilterStep],
        now: u64,
    ) {
        let mut buffer = self.access.borrow_mut();
        if !buffer.log.as_ref().is_some_and(|l| Arc::ptr_eq(l, log)) {
            buffer.flush();
            buffer.log = Some(Arc::clone(log));
        }
        log.line(exchange, now, steps, &mut buffer.lines);
        if buffer.lines.len() >= ACCESS_BUFFER {
            buffer.flush();
        } else if !buffer.waiting && tokio::runtime::Handle::try_current().is_ok() {
            buffer.waiting = true;
            let state = Rc::clone(self);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(ACCESS_DELAY).await;
                let mut buffer = state.access.borrow_mut();
                buffer.waiting = false;
                buffer.flush();
            });
        }
    }

    /// To be called after the engine ran: sees to the end of the batch if one is open.
    pub(super) fn after_engine(&self, engine: &Worker) {
        if engine.batch_is_open()
            && !self.batch.rung.replace(true)
            && let Some(waker) = self.batch.waker.borrow().as_ref()
        {
            waker.wake_by_ref();
        }
    }

    async fn end_batches(self: Rc<Self>) {
        poll_fn(|cx| {
            let mut waker = self.batch.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            drop(waker);
            if self.batch.rung.replace(false) {
                self.engine.borrow_mut().end_batch();
            }
            Poll::<()>::Pending
        })
        .await;
    }

    async fn sweep(self: Rc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let mut pools = self.pools.borrow_mut();
            pools.sweep();
            self.stats.upstream_idle.store(pools.idle() as u64, Relaxed);
        }
    }

    async fn deliver_mail(self: Rc<Self>, mail: Arc<Notify>) {
        loop {
            mail.notified().await;
            loop {
                let next = self.engine.borrow_mut().take_mail();
                let Some(next) = next else { break };
                self.streams.deliver(next);
            }
        }
    }
}

impl AccessBuffer {
    fn flush(&mut self) {
        if let (Some(log), false) = (&self.log, self.lines.is_empty()) {
            log.write(&self.lines);
            self.lines.clear();
        }
    }
}

/// Requests that were cut at the end are written, too.
impl Drop for AccessBuffer {
    fn drop(&mut self) {
        self.flush();
    }
}

/// What a worker is started with.
pub(super) struct Start {
    pub id: u32,
    pub hub: Arc<Hub>,
    pub stats: Arc<WorkerStats>,
    pub runtime: Arc<Runtime>,
    pub commands: async_mpsc::UnboundedReceiver<Command>,
    pub id_prefix: [u8; 32],
}

/// A worker's thread.
pub(super) fn run(start: Start) -> std::io::Result<()> {
    let id = start.id;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())?;
    let Leaving { libraries, stop } = runtime.block_on(main(start));
    // Its tasks hold chains.
    drop(runtime);
    if let Some((ended, dropped)) = stop {
        drop(ended);
        let _ = dropped.recv();
    }
    for library in libraries {
        library.worker_down(id);
    }
    Ok(())
}

struct Accepting {
    context: Rc<RefCell<Rc<ListenerContext>>>,
    task: JoinHandle<()>,
}

async fn main(start: Start) -> Leaving {
    let mail = Arc::new(Notify::new());
    let notify = Arc::clone(&mail);
    start
        .hub
        .set_notify(start.id, Box::new(move || notify.notify_one()));
    let mut pools = Pools::default();
    let pinned = Rc::new(Pinned::new(start.runtime, &mut pools));
    let state = Rc::new(WorkerState {
        id: start.id,
        stats: start.stats,
        engine: RefCell::new(Worker::new(start.hub, start.id, clock::now)),
        streams: Streams::default(),
        site: RefCell::new(pinned),
        pools: RefCell::new(pools),
        conns: RefCell::default(),
        draining: Cell::new(false),
        empty: Notify::new(),
        connections: Cell::new(0),
        requests: Cell::new(0),
        id_prefix: start.id_prefix,
        access: RefCell::default(),
        batch: BatchBell::default(),
    });
    tokio::task::spawn_local(Rc::clone(&state).end_batches());
    tokio::task::spawn_local(Rc::clone(&state).sweep());
    tokio::task::spawn_local(filtered::keep_deadlines(Rc::clone(&state)));
    tokio::task::spawn_local(Rc::clone(&state).deliver_mail(mail));
    let mut accepting: HashMap<SocketKey, Accepting> = HashMap::new();
    let mut libraries = Vec::new();
    let mut stop = None;
    let mut commands = start.commands;
    while let Some(command) = commands.recv().await {
        match command {
            Command::Apply {
                runtime,
                sockets,
                done,
            } => {
                runtime.guests.worker_up(state.id, &mut libraries);
                apply(&state, &mut accepting, runtime, sockets);
                let _ = done.send(());
            }
            Command::Drain(done) => {
                state.draining.set(true);
                for (_, accepting) in accepting.drain() {
                    accepting.task.abort();
                }
                for conn in state.conns.borrow().values() {
                    conn.shut_down();
                }
                let state = Rc::clone(&state);
                tokio::task::spawn_local(async move {
                    while !state.is_empty() {
                        state.empty.notified().await;
                    }
                    let _ = done.send(());
                });
            }
            Command::Stop { ended, dropped } => {
                stop = Some((ended, dropped));
                break;
            }
        }
    }
    state.streams.close_all();
    state.access.borrow_mut().flush();
    Leaving { libraries, stop }
}

impl WorkerState {
    /// Whether nothing runs: no connection, and no tunnel that has outlived its own.
    fn is_empty(&self) -> bool {
        self.conns.borrow().is_empty() && self.stats.requests_now.load(Relaxed) == 0
    }

    /// An exchange was dropped: perhaps it was the last one that a graceful end waits for.
    pub(super) fn exchange_ended(&self) {
        if self.draining.get() {
            self.empty.notify_one();
        }
    }
}

fn apply(
    state: &Rc<WorkerState>,
    accepting: &mut HashMap<SocketKey, Accepting>,
    runtime: Arc<Runtime>,
    sockets: Vec<Socket>,
) {
    let contexts: HashMap<SocketKey, Rc<ListenerContext>> = runtime
        .listeners
        .iter()
        .map(|l| {
            (
                socket_key(&l.name, l.address),
                Rc::new(ListenerContext::new(l)),
            )
        })
        .collect();
    accepting.retain(|key, entry| match contexts.get(key) {
        Some(context) => {
            *entry.context.borrow_mut() = Rc::clone(context);
            true
        }
        None => {
            entry.task.abort();
            let gone = Rc::clone(&entry.context.borrow());
            for conn in state
                .conns
                .borrow()
                .values()
                .filter(|c| c.listener.name == gone.name)
            {
                conn.shut_down();
            }
            false
        }
    });
    let pinned = Pinned::new(runtime, &mut state.pools.borrow_mut());
    *state.site.borrow_mut() = Rc::new(pinned);
    state.streams.drop_spares();
    for socket in sockets {
        let (Some(context), Ok(listener)) = (
            contexts.get(&socket.key),
            TcpListener::from_std(socket.listener),
        ) else {
            tracing::error!(
                key = socket.key,
                "a listener could not be taken over by a worker"
            );
            continue;
        };
        let context = Rc::new(RefCell::new(Rc::clone(context)));
        let task = tokio::task::spawn_local(connection::accept(
            Rc::clone(state),
            listener,
            Rc::clone(&context),
            socket.permits,
        ));
        accepting.insert(socket.key, Accepting { context, task });
    }
}

pub(super) fn socket_key(name: &str, address: std::net::SocketAddr) -> SocketKey {
    match address.port() {
        0 => format!("{address} {name}"),
        _ => address.to_string(),
    }
}
