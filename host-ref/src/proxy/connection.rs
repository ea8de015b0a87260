//! Connections of clients: accepting, TLS, which HTTP it is, time limits, graceful end.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::header::HeaderValue;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::clock;
use super::config::{CheckedListener, Limits};
use super::exchange;
use super::io::{ClientIo, IoWatch, TlsInfo, WatchedIo};
use super::worker::{LocalExec, WorkerState};

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a peer gets to take part in a graceful end before its connection is dropped.
const GRACE: Duration = Duration::from_secs(5);

/// A listener as one worker serves it.
pub(super) struct ListenerContext {
    pub name: Arc<str>,
    tls: Option<TlsAcceptor>,
    limits: Limits,
    http1: http1::Builder,
    http2: http2::Builder<LocalExec>,
}

impl std::fmt::Debug for ListenerContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ListenerContext").field(&self.name).finish()
    }
}

impl ListenerContext {
    pub(super) fn new(checked: &CheckedListener) -> Self {
        let limits = checked.limits.clone();
        let header_bytes = usize::try_from(limits.header_bytes.0).unwrap_or(usize::MAX);
        let mut http1 = http1::Builder::new();
        http1
            .max_header_size(header_bytes)
            .max_buf_size(header_bytes.max(64 << 10))
            .max_headers(usize::from(limits.header_fields))
            .header_read_timeout(None); // the connection's own watch does it
        let mut http2 = http2::Builder::new(LocalExec);
        http2
            .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
            .max_concurrent_streams(limits.streams);
        Self {
            name: Arc::clone(&checked.name),
            tls: checked.tls.clone().map(TlsAcceptor::from),
            limits,
            http1,
            http2,
        }
    }
}

/// A client's connection.
#[derive(Debug)]
pub(super) struct Conn {
    pub id: u64,
    pub peer: SocketAddr,
    pub peer_ip: HeaderValue,
    pub local: SocketAddr,
    pub tls: Option<TlsInfo>,
    pub listener: Rc<ListenerContext>,
    pub watch: Arc<IoWatch>,
    pub requests: Cell<u64>,
    closing: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Conn {
    /// Lets the requests that run finish, and takes no more.
    pub(super) fn shut_down(&self) {
        self.closing.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Accepts until its task is aborted. The context may be replaced meanwhile, for the connections to come.
pub(super) async fn accept(
    worker: Rc<WorkerState>,
    listener: TcpListener,
    context: Rc<RefCell<Rc<ListenerContext>>>,
    permits: Arc<Semaphore>,
) {
    loop {
        // Before accepting: who is over the limit waits in the system's queue.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let context = Rc::clone(&context.borrow());
                tokio::task::spawn_local(open(Rc::clone(&worker), stream, peer, context, permit));
            }
            Err(error) => {
                tracing::warn!(%error, listener = %context.borrow().name, "cannot accept a connection");
                // Out of descriptors, most often: it gets no better by trying at once.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn open(
    worker: Rc<WorkerState>,
    stream: TcpStream,
    peer: SocketAddr,
    listener: Rc<ListenerContext>,
    _permit: OwnedSemaphorePermit,
) {
    let _ = stream.set_nodelay(true);
    let limit = listener.limits.header_timeout.limit();
    let opened = async {
        match &listener.tls {
            None => {
                let is_http2 = has_preface(&stream).await?;
                Ok((ClientIo::Plain(stream), is_http2))
            }
            Some(acceptor) => {
                let stream = acceptor.accept(stream).await?;
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                Ok((ClientIo::Tls(Box::new(stream)), is_http2))
            }
        }
    };
    let opened: std::io::Result<_> = match limit {
        Some(limit) => match tokio::time::timeout(limit, opened).await {
            Ok(opened) => opened,
            Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
        },
        None => opened.await,
    };
    let (io, is_http2) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            tracing::debug!(%error, %peer, listener = %listener.name, "a connection did not begin");
            return;
        }
    };
    let Ok(local) = io.local_addr() else { return };
    let conn = Rc::new(Conn {
        id: worker.next_connection(),
        peer,
        peer_ip: HeaderValue::from_str(&peer.ip().to_string()).expect("an address is visible text"),
        local,
        tls: io.tls_info(),
        listener,
        watch: Arc::default(),
        requests: Cell::new(0),
        closing: Cell::new(false),
        waker: RefCell::default(),
    });
    conn.watch.idle_since.store(clock::now(), Relaxed);
    let registered = worker.register(Rc::clone(&conn));
    serve(&worker, &conn, io, is_http2).await;
    drop(registered);
}

/// Whether the client speaks HTTP/2 by prior knowledge.
async fn has_preface(stream: &TcpStream) -> std::io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let n = stream.peek(&mut seen).await?;
        if n == 0 || seen[..n] != PREFACE[..n] {
            return Ok(false);
        }
        if n == PREFACE.len() {
            return Ok(true);
        }
        // A part of the preface: the socket stays readable, so there is nothing to wait on but time.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn serve(worker: &Rc<WorkerState>, conn: &Rc<Conn>, io: ClientIo, is_http2: bool) {
    let io = TokioIo::new(WatchedIo::new(io, Arc::clone(&conn.watch), !is_http2));
    let service =
        service_fn(|request| exchange::handle(Rc::clone(worker), Rc::clone(conn), request));
    let result = if is_http2 {
        drive(
            conn,
            pin!(conn.listener.http2.serve_connection(io, service)),
        )
        .await
    } else {
        drive(
            conn,
            pin!(
                conn.listener
                    .http1
                    .serve_connection(io, service)
                    .with_upgrades()
            ),
        )
        .await
    };
    if let Err(error) = result {
        tracing::debug!(%error, peer = %conn.peer, "a client's connection ended");
    }
}

/// A connection that can be asked to end.
trait Serving: Future<Output = hyper::Result<()>> {
    fn shut_down(self: Pin<&mut Self>);
}

impl<S> Serving for http1::UpgradeableConnection<TokioIo<WatchedIo>, S>
where
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = super::body::OutBody>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn shut_down(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S> Serving for http2::Connection<TokioIo<WatchedIo>, S, LocalExec>
where
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = super::body::OutBody>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: 'static,
{
    fn shut_down(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Runs a connection with its time limits until it ends.
async fn drive<C: Serving>(conn: &Conn, mut serving: Pin<&mut C>) -> hyper::Result<()> {
    let mut timer = pin!(tokio::time::sleep_until(next_check(conn)));
    let mut told = false;
    poll_fn(|cx| {
        register(conn, cx);
        if conn.closing.get() && !told {
            told = true;
            serving.as_mut().shut_down();
        }
        if let Poll::Ready(result) = serving.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        while timer.as_mut().poll(cx).is_ready() {
            match check(conn) {
                Verdict::Wait => timer.as_mut().reset(next_check(conn)),
                Verdict::End if told => return Poll::Ready(Ok(())),
                Verdict::End => {
                    told = true;
                    serving.as_mut().shut_down();
                    if let Poll::Ready(result) = serving.as_mut().poll(cx) {
                        return Poll::Ready(result);
                    }
                    timer.as_mut().reset(Instant::now() + GRACE);
                }
                Verdict::Drop => return Poll::Ready(Ok(())),
            }
        }
        Poll::Pending
    })
    .await
}

fn register(conn: &Conn, cx: &Context<'_>) {
    let mut waker = conn.waker.borrow_mut();
    if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
        *waker = Some(cx.waker().clone());
    }
}

enum Verdict {
    Wait,
    /// Idle for too long.
    End,
    /// A request that does not come to its end.
    Drop,
}

fn check(conn: &Conn) -> Verdict {
    let limits = &conn.listener.limits;
    let over = |since: u64, limit: Option<Duration>| {
        limit.is_some_and(|l| u128::from(clock::now().saturating_sub(since)) >= l.as_nanos())
    };
    let watch = &conn.watch;
    if watch.active.load(Relaxed) > 0 {
        return Verdict::Wait;
    }
    match watch.first_byte.load(Relaxed) {
        0 if over(watch.idle_since.load(Relaxed), limits.idle_timeout.limit()) => Verdict::End,
        0 => Verdict::Wait,
        since if over(since, limits.header_timeout.limit()) => Verdict::Drop,
        _ => Verdict::Wait,
    }
}

/// When [`check`] may find something: a slow head is found within twice its limit.
fn next_check(conn: &Conn) -> Instant {
    let limits = &conn.listener.limits;
    let times = [limits.header_timeout.limit(), limits.idle_timeout.limit()];
    let shortest = times
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(Duration::from_secs(3600));
    Instant::now() + shortest
}
