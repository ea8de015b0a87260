//! Clusters, their endpoints, and each worker's connections to them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::body::OutBody;
use super::clock;
use super::config::{Balance, CheckedCluster, UpstreamProtocol};
use super::worker::LocalExec;

/// The host's own reply to a request that cannot be answered otherwise. `details` go to the log, never to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostReply {
    pub status: u16,
    pub details: &'static str,
}

impl HostReply {
    pub(super) const fn new(status: u16, details: &'static str) -> Self {
        Self { status, details }
    }
}

/// Servers that are equal to each other; shared by all workers.
#[derive(Debug)]
pub(super) struct Cluster {
    pub name: String,
    pub endpoints: Vec<Arc<Endpoint>>,
    pub balance: Balance,
    pub protocol: UpstreamProtocol,
    pub connect_timeout: Duration,
    pub max_idle: usize,
    pub idle_timeout: Duration,
    /// What it was made from: an equal one of the next configuration is this one.
    pub checked: CheckedCluster,
    next: AtomicUsize,
}

/// One server of a cluster; shared by all workers.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub address: SocketAddr,
    in_flight: AtomicU32,
    pub requests: AtomicU64,
    pub connects: AtomicU64,
    pub failures: AtomicU64,
}

impl Cluster {
    pub(super) fn new(checked: &CheckedCluster) -> Self {
        let config = &checked.config;
        let endpoint = |address: &SocketAddr| {
            Arc::new(Endpoint {
                address: *address,
                in_flight: AtomicU32::new(0),
                requests: AtomicU64::new(0),
                connects: AtomicU64::new(0),
                failures: AtomicU64::new(0),
            })
        };
        Self {
            name: config.name.clone(),
            endpoints: checked.endpoints.iter().map(endpoint).collect(),
            balance: config.balance,
            protocol: config.protocol,
            connect_timeout: config.connect_timeout.duration(),
            max_idle: config.max_idle as usize,
            idle_timeout: config.idle_timeout.duration(),
            checked: checked.clone(),
            next: AtomicUsize::new(0),
        }
    }

    /// The index of the endpoint for the next request.
    fn pick(&self) -> usize {
        let n = self.endpoints.len();
        if n == 1 {
            return 0;
        }
        let turn = self.next.fetch_add(1, Relaxed) % n;
        match self.balance {
            Balance::RoundRobin => turn,
            Balance::LeastRequest => (0..n)
                .map(|i| (turn + i) % n)
                .min_by_key(|i| self.endpoints[*i].in_flight.load(Relaxed))
                .unwrap_or(turn),
        }
    }
}

/// What one worker keeps for one address.
#[derive(Debug)]
pub(super) struct EndpointPool {
    address: SocketAddr,
    /// Most recently used last.
    idle: RefCell<Vec<Idle>>,
    http2: RefCell<Option<http2::SendRequest<OutBody>>>,
    max_idle: Cell<usize>,
    idle_timeout: Cell<Duration>,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<OutBody>,
    since: u64,
}

/// All connections of one worker to upstreams; they outlive reloads.
#[derive(Debug, Default)]
pub(super) struct Pools {
    pools: HashMap<(SocketAddr, UpstreamProtocol), Rc<EndpointPool>>,
}

impl Pools {
    pub(super) fn get(&mut self, cluster: &Cluster, address: SocketAddr) -> Rc<EndpointPool> {
        let new = || {
            Rc::new(EndpointPool {
                address,
                idle: RefCell::default(),
                http2: RefCell::default(),
                max_idle: Cell::new(0),
                idle_timeout: Cell::new(Duration::ZERO),
            })
        };
        let pool = self
            .pools
            .entry((address, cluster.protocol))
            .or_insert_with(new);
        pool.max_idle.set(cluster.max_idle);
        pool.idle_timeout.set(cluster.idle_timeout);
        Rc::clone(pool)
    }

    /// Closes what has been idle for too long, and forgets addresses that no configuration uses.
    pub(super) fn sweep(&mut self) {
        let now = clock::now();
        self.pools.retain(|_, pool| {
            let limit = u64::try_from(pool.idle_timeout.get().as_nanos()).unwrap_or(u64::MAX);
            pool.idle
                .borrow_mut()
                .retain(|i| now - i.since < limit && !i.sender.is_closed());
            Rc::strong_count(pool) > 1
        });
    }

    pub(super) fn idle(&self) -> usize {
        self.pools.values().map(|p| p.idle.borrow().len()).sum()
    }
}

/// A connection that carries one exchange. It goes back to its pool when the exchange has ended well on both sides.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Rc<EndpointPool>,
    endpoint: Option<Arc<Endpoint>>,
    sender: Option<http1::SendRequest<OutBody>>,
}

impl Lease {
    /// The response has been read to its end: the connection can be used again.
    pub(super) fn give_back(mut self) {
        if let Some(sender) = self.sender.take() {
            let mut idle = self.pool.idle.borrow_mut();
            if !sender.is_closed() && idle.len() < self.pool.max_idle.get() {
                idle.push(Idle {
                    sender,
                    since: clock::now(),
                });
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(endpoint) = &self.endpoint {
            endpoint.in_flight.fetch_sub(1, Relaxed);
        }
    }
}

/// What came of a request.
#[derive(Debug)]
pub(super) struct Answer {
    pub response: Response<Incoming>,
    pub lease: Lease,
}

/// What the caller learns while a request is on its way.
pub(super) trait Progress {
    /// An attempt begins.
    fn attempt(&self, endpoint: SocketAddr);
}

/// Sends a request to one endpoint of a cluster. `pools` are this worker's, in the order of the endpoints.
pub(super) async fn send(
    cluster: &Cluster,
    pools: &[Rc<EndpointPool>],
    mut request: Request<OutBody>,
    progress: &impl Progress,
) -> Result<Answer, HostReply> {
    let first = cluster.pick();
    let mut tried = 0;
    let mut fresh = false;
    loop {
        let index = (first + tried) % pools.len();
        let (pool, endpoint) = (&pools[index], &cluster.endpoints[index]);
        progress.attempt(endpoint.address);
        let mut lease = Lease {
            pool: Rc::clone(pool),
            endpoint: (cluster.balance == Balance::LeastRequest).then(|| {
                endpoint.in_flight.fetch_add(1, Relaxed);
                Arc::clone(endpoint)
            }),
            sender: None,
        };
        let connection = match pool.take(cluster.protocol, fresh).await {
            Some(connection) => Ok((connection, true)),
            None => pool.connect(cluster, endpoint).await.map(|c| (c, false)),
        };
        let (connection, reused) = match connection {
            Ok(connection) => connection,
            Err(reply) => {
                endpoint.failures.fetch_add(1, Relaxed);
                tried += 1;
                if tried < pools.len().min(3) {
                    continue; // nothing was sent: another endpoint may take it
                }
                return Err(reply);
            }
        };
        endpoint.requests.fetch_add(1, Relaxed);
        let again = if reused && is_replayable(&request) {
            Some(copy(&request))
        } else {
            None
        };
        let result = match connection {
            Connection::Http1(mut sender) => {
                let result = sender.try_send_request(request).await;
                lease.sender = Some(sender);
                result
            }
            Connection::Http2(mut sender) => sender.try_send_request(request).await,
        };
        match result {
            Ok(response) => return Ok(Answer { response, lease }),
            Err(error) => {
                endpoint.failures.fetch_add(1, Relaxed);
                request = retry(error, again, reused)?;
                fresh = true;
            }
        }
    }
}

/// The request to send again, or the end of it. A connection that was kept may have been closed by the other side at the
/// very moment when it was used; a fresh one that breaks is an answer.
fn retry(
    mut error: TrySendError<Request<OutBody>>,
    copy: Option<Request<OutBody>>,
    reused: bool,
) -> Result<Request<OutBody>, HostReply> {
    let unsent = error.take_message();
    let error = error.error();
    tracing::debug!(%error, reused, unsent = unsent.is_some(), "upstream connection broke");
    if !reused {
        return Err(broken(error));
    }
    let nothing_came =
        error.is_incomplete_message() || error.is_canceled() || error.is_closed() || is_io(error);
    match (unsent, copy) {
        (Some(request), _) => Ok(request),
        (None, Some(request)) if nothing_came => Ok(request),
        _ => Err(broken(error)),
    }
}

fn is_io(error: &hyper::Error) -> bool {
    std::error::Error::source(error).is_some_and(|e| e.is::<std::io::Error>())
}

fn broken(error: &hyper::Error) -> HostReply {
    if error.is_parse() {
        HostReply::new(502, "host.upstream_protocol_error")
    } else {
        HostReply::new(502, "host.upstream_reset")
    }
}

/// Whether sending it twice does no harm and needs no body.
fn is_replayable(request: &Request<OutBody>) -> bool {
    matches!(request.body(), OutBody::Empty)
        && matches!(
            *request.method(),
            Method::GET
                | Method::HEAD
                | Method::OPTIONS
                | Method::PUT
                | Method::DELETE
                | Method::TRACE
        )
}

fn copy(request: &Request<OutBody>) -> Request<OutBody> {
    let mut copy = Request::new(OutBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

enum Connection {
    Http1(http1::SendRequest<OutBody>),
    Http2(http2::SendRequest<OutBody>),
}

impl EndpointPool {
    /// A connection that is ready now.
    async fn take(&self, protocol: UpstreamProtocol, fresh: bool) -> Option<Connection> {
        if fresh {
            // One kept connection was stale: its neighbours probably are, too.
            self.idle.borrow_mut().clear();
            self.http2.borrow_mut().take_if(|s| s.is_closed());
        }
        match protocol {
            UpstreamProtocol::Http2 => {
                let mut sender = self.http2.borrow().clone()?;
                match sender.ready().await {
                    Ok(()) => Some(Connection::Http2(sender)),
                    Err(_) => {
                        self.http2.borrow_mut().take_if(|s| s.is_closed());
                        None
                    }
                }
            }
            UpstreamProtocol::Http1 => loop {
                let mut sender = self.idle.borrow_mut().pop()?.sender;
                // Its task may still have to see the end of the last response.
                if sender.is_ready() || sender.ready().await.is_ok() {
                    return Some(Connection::Http1(sender));
                }
            },
        }
    }

    async fn connect(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
    ) -> Result<Connection, HostReply> {
        let connect = TcpStream::connect(self.address);
        let stream = match tokio::time::timeout(cluster.connect_timeout, connect).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::warn!(cluster = cluster.name, endpoint = %self.address, %error, "cannot connect to upstream");
                return Err(HostReply::new(503, "host.upstream_connect_failure"));
            }
            Err(_) => {
                tracing::warn!(
                    cluster = cluster.name,
                    endpoint = %self.address,
                    timeout = ?cluster.connect_timeout,
                    "cannot connect to upstream in time"
                );
                return Err(HostReply::new(503, "host.upstream_connect_timeout"));
            }
        };
        endpoint.connects.fetch_add(1, Relaxed);
        // Without it small bodies may wait for an acknowledgement; a failure only costs time.
        let _ = stream.set_nodelay(true);
        let io = TokioIo::new(stream);
        let failed = |error: hyper::Error| {
            tracing::warn!(%error, "handshake with upstream failed");
            HostReply::new(502, "host.upstream_protocol_error")
        };
        match cluster.protocol {
            UpstreamProtocol::Http1 => {
                let (sender, connection) = http1::handshake(io).await.map_err(failed)?;
                tokio::task::spawn_local(async move {
                    if let Err(error) = connection.with_upgrades().await {
                        tracing::debug!(%error, "upstream connection ended");
                    }
                });
                Ok(Connection::Http1(sender))
            }
            UpstreamProtocol::Http2 => {
                let (sender, connection) = http2::Builder::new(LocalExec)
                    .handshake(io)
                    .await
                    .map_err(failed)?;
                tokio::task::spawn_local(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "upstream connection ended");
                    }
                });
                *self.http2.borrow_mut() = Some(sender.clone());
                Ok(Connection::Http2(sender))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::config::{Cluster as Config, Millis};

    fn cluster(balance: Balance, n: u16) -> Cluster {
        Cluster::new(&CheckedCluster {
            config: Config {
                name: "c".into(),
                endpoints: Vec::new(),
                balance,
                protocol: UpstreamProtocol::Http1,
                connect_timeout: Millis::secs(1),
                max_idle: 1,
                idle_timeout: Millis::secs(1),
            },
            endpoints: (1..=n).map(|port| ([127, 0, 0, 1], port).into()).collect(),
        })
    }

    #[test]
    fn round_robin_takes_turns() {
        let cluster = cluster(Balance::RoundRobin, 3);
        let picks: Vec<_> = (0..6).map(|_| cluster.pick()).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn least_request_avoids_the_busy() {
        let cluster = cluster(Balance::LeastRequest, 3);
        cluster.endpoints[0].in_flight.store(2, Relaxed);
        cluster.endpoints[2].in_flight.store(1, Relaxed);
        assert!((0..5).all(|_| cluster.pick() == 1));
        cluster.endpoints[1].in_flight.store(1, Relaxed);
        let picks: Vec<_> = (0..6).map(|_| cluster.pick()).collect();
        assert!(picks.contains(&1) && picks.contains(&2) && !picks.contains(&0));
    }
}
