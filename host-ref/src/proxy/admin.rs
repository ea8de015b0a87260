//! The admin listener and the signals, on a thread of their own.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::config::Level;
use super::control::{Order, Shared};
use super::guests::Counted;
use super::metrics;
use crate::engine::{PHASES, TIME_BUCKETS_NS};

/// The thread that was started; its listener comes later, when there is something to tell.
pub(super) struct Admin {
    serve: oneshot::Sender<(Arc<Shared>, Option<StdListener>)>,
}

impl Admin {
    pub(super) fn serve(self, shared: Arc<Shared>, listener: Option<StdListener>) {
        let _ = self.serve.send((shared, listener));
    }
}

/// Takes over SIGHUP, SIGTERM and SIGINT.
pub(super) fn start(orders: mpsc::Sender<Order>) -> io::Result<Admin> {
    let (serve, begin) = oneshot::channel();
    let (started, ready) = mpsc::channel();
    std::thread::Builder::new()
        .name("admin".into())
        .spawn(move || {
            let runtime = match Builder::new_current_thread()
                .enable_all()
                .build_local(LocalOptions::default())
            {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return;
                }
            };
            runtime.block_on(async move {
                let handlers = [
                    SignalKind::hangup(),
                    SignalKind::terminate(),
                    SignalKind::interrupt(),
                ]
                .map(signal);
                let [Ok(mut hangup), Ok(mut terminate), Ok(mut interrupt)] = handlers else {
                    let _ = started.send(Err(io::Error::other(
                        "cannot handle SIGHUP, SIGTERM and SIGINT",
                    )));
                    return;
                };
                let _ = started.send(Ok(()));
                tokio::task::spawn_local(async move {
                    if let Ok((shared, Some(listener))) = begin.await {
                        accept(shared, listener).await;
                    }
                });
                let mut ending = false;
                loop {
                    tokio::select! {
                        _ = hangup.recv() => {
                            let _ = orders.send(Order::Reload(None));
                            continue;
                        }
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                    if ending {
                        tracing::warn!("a second signal: ending now");
                        std::process::exit(super::cli::EXIT_CUT);
                    }
                    ending = true;
                    let _ = orders.send(Order::Drain);
                }
            });
        })?;
    ready
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other("the admin thread ended")))?;
    Ok(Admin { serve })
}

async fn accept(shared: Arc<Shared>, listener: StdListener) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "cannot serve the admin listener");
            return;
        }
    };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::task::spawn_local(async move {
            let service = service_fn(|request| answer(Arc::clone(&shared), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(hyper_util::rt::TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an admin connection ended");
            }
        });
    }
}

type Reply = Response<Full<Bytes>>;

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Reply, Infallible> {
    let query = request.uri().query().unwrap_or("");
    Ok(match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/") => text(StatusCode::OK, INDEX),
        (&Method::GET | &Method::HEAD, "/healthz") => {
            if shared.is_draining() {
                text(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
            } else {
                text(StatusCode::OK, "ok\n")
            }
        }
        (&Method::GET, "/config") => configuration(&shared),
        (&Method::GET, "/guests") => json_reply(StatusCode::OK, &guests(&shared)),
        (&Method::GET, "/metrics") => {
            let mut reply = text(StatusCode::OK, &metrics::render(&shared));
            let kind = HeaderValue::from_static(
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            );
            reply.headers_mut().insert(header::CONTENT_TYPE, kind);
            reply
        }
        (&Method::POST, "/reload") => reload(&shared).await,
        (&Method::POST, "/drain") => {
            shared.order(Order::Drain);
            text(StatusCode::ACCEPTED, "draining\n")
        }
        (&Method::POST, "/log_level") => log_level(&shared, query),
        (
            _,
            "/healthz" | "/config" | "/guests" | "/metrics" | "/reload" | "/drain" | "/log_level",
        ) => text(
            StatusCode::METHOD_NOT_ALLOWED,
            "another method is expected; GET / has the list\n",
        ),
        _ => text(
            StatusCode::NOT_FOUND,
            "there is no such page; GET / has the list\n",
        ),
    })
}

const INDEX: &str = "\
GET  /healthz               200 while serving, 503 while draining
GET  /config                the configuration in force, its generation and file, the listeners' addresses
GET  /guests                the guest libraries, their filters and counters
GET  /metrics               everything for Prometheus
POST /reload                take the configuration file again: 200, or 422 with the reason
POST /drain                 finish what runs, then end
POST /log_level?level=LEVEL trace, debug, info, warn, error or off, until the next reload
";

fn text(status: StatusCode, body: &str) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *reply.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    reply.headers_mut().insert(header::CONTENT_TYPE, kind);
    reply
}

fn json_reply(status: StatusCode, value: &Value) -> Reply {
    let mut reply = text(status, &format!("{value:#}\n"));
    reply.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    reply
}

fn configuration(shared: &Shared) -> Reply {
    let runtime = shared.runtime();
    let listening: serde_json::Map<_, _> = shared
        .addresses()
        .into_iter()
        .map(|(name, address)| (name, json!(address)))
        .collect();
    let value = json!({
        "generation": runtime.generation,
        "file": runtime.file,
        "listening": listening,
        "config": runtime.config,
    });
    json_reply(StatusCode::OK, &value)
}

async fn reload(shared: &Shared) -> Reply {
    let (reply, answer) = oneshot::channel();
    shared.order(Order::Reload(Some(reply)));
    match answer.await {
        Ok(Ok(generation)) => json_reply(StatusCode::OK, &json!({"generation": generation})),
        Ok(Err(reason)) => text(StatusCode::UNPROCESSABLE_ENTITY, &format!("{reason}\n")),
        Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the host ends\n"),
    }
}

fn log_level(shared: &Shared, query: &str) -> Reply {
    let level = query.strip_prefix("level=").unwrap_or("");
    match serde_json::from_value::<Level>(json!(level)) {
        Ok(level) => {
            shared.order(Order::Level(level));
            text(StatusCode::OK, "changed\n")
        }
        Err(_) => text(
            StatusCode::BAD_REQUEST,
            &format!(
                "{level:?} is no level; expected ?level=trace, debug, info, warn, error or off\n"
            ),
        ),
    }
}

fn guests(shared: &Shared) -> Value {
    let libraries: Vec<_> = shared
        .libraries()
        .iter()
        .map(|library| {
            let facts = library.facts();
            json!({
                "id": library.id(),
                "name": library.name(),
                "version": library.version(),
                "path": facts.path,
                "device": facts.device,
                "inode": facts.inode,
                "bytes": facts.len,
                "build_id": facts.build_id,
                "go": facts.go,
                "filters": library.filters(),
                "live_configurations": library.live_configs(),
            })
        })
        .collect();
    let filters: serde_json::Map<_, _> = shared
        .filter_stats()
        .into_iter()
        .map(|(name, Counted { stats, .. })| {
            let phases: serde_json::Map<_, _> = PHASES
                .iter()
                .map(|(phase, word)| {
                    let p = stats.phase(*phase);
                    let times: Vec<_> = p.time.iter().map(crate::engine::Counter::get).collect();
                    let value = json!({
                        "calls": p.calls.get(),
                        "errors": p.errors.get(),
                        "panics": p.panics.get(),
                        "pending": p.pending.get(),
                        "time_ns": p.time_ns.get(),
                        "calls_by_time": times,
                    });
                    ((*word).to_owned(), value)
                })
                .collect();
            let value = json!({
                "phases": phases,
                "stale_completions": stats.stale.get(),
                "unused_completions": stats.unused_completions.get(),
                "deadlines": stats.deadlines.get(),
                "over_pending_cap": stats.over_pending_cap.get(),
                "skipped_operations": stats.skipped_ops.get(),
                "late_replies": stats.late_replies.get(),
                "bypassed": stats.bypassed.get(),
                "pending_now": stats.pending_now.get(),
            });
            (name, value)
        })
        .collect();
    json!({
        "libraries": libraries,
        "filters": filters,
        "time_buckets_ns": TIME_BUCKETS_NS,
    })
}
