//! Listening sockets: bound by the config thread, one for each worker.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::sync::Semaphore;

use super::config::{ConfigError, Diagnostic, KeyPath, Site};
use super::site::Runtime;
use super::worker::{SocketKey, socket_key};

/// What one worker may have of a listener's connections.
fn share(connections: u32, workers: usize) -> usize {
    (connections as usize).div_ceil(workers)
}

/// The listeners' sockets, as the config thread knows them.
#[derive(Debug, Default)]
pub(super) struct Sockets(HashMap<SocketKey, Listening>);

#[derive(Debug)]
struct Listening {
    address: SocketAddr,
    /// Of each worker: one that waited for the others would leave connections in its own queue.
    permits: Vec<Arc<Semaphore>>,
    limit: usize,
}

/// Sockets of a new listener, one for each worker.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) key: SocketKey,
    address: SocketAddr,
    pub(super) listeners: Vec<StdListener>,
    pub(super) permits: Vec<Arc<Semaphore>>,
    limit: usize,
}

impl Sockets {
    /// Binds what is new.
    pub(super) fn bind(&mut self, site: &Site, workers: usize) -> Result<Vec<Bound>, ConfigError> {
        let mut bound = Vec::new();
        let mut found = Vec::new();
        for listener in &site.listeners {
            let key = socket_key(&listener.name, listener.address);
            if self.0.contains_key(&key) {
                continue;
            }
            let limit = share(listener.limits.connections, workers);
            match bind(listener.address, workers) {
                Ok((address, listeners)) => bound.push(Bound {
                    key,
                    address,
                    listeners,
                    permits: (0..workers)
                        .map(|_| Arc::new(Semaphore::new(limit)))
                        .collect(),
                    limit,
                }),
                Err(error) => found.push(cannot_bind(
                    site,
                    &listener.key.key("address"),
                    listener.address,
                    &error,
                )),
            }
        }
        if !found.is_empty() {
            return Err(ConfigError { diagnostics: found });
        }
        for bound in &bound {
            self.0.insert(
                bound.key.clone(),
                Listening {
                    address: bound.address,
                    permits: bound.permits.clone(),
                    limit: bound.limit,
                },
            );
        }
        Ok(bound)
    }

    /// Forgets what a configuration does not have, and takes over its limits.
    pub(super) fn keep(&mut self, runtime: &Runtime, workers: usize) {
        let wanted: HashMap<_, _> = runtime
            .listeners
            .iter()
            .map(|l| {
                (
                    socket_key(&l.name, l.address),
                    share(l.limits.connections, workers),
                )
            })
            .collect();
        self.0.retain(|key, _| wanted.contains_key(key));
        for (key, listening) in &mut self.0 {
            let limit = wanted[key];
            for permits in &listening.permits {
                if limit > listening.limit {
                    permits.add_permits(limit - listening.limit);
                } else {
                    permits.forget_permits(listening.limit - limit);
                }
            }
            listening.limit = limit;
        }
    }

    pub(super) fn addresses(&self, runtime: &Runtime) -> Vec<(String, SocketAddr)> {
        let address =
            |name: &str, configured| self.0.get(&socket_key(name, configured)).map(|l| l.address);
        runtime
            .listeners
            .iter()
            .filter_map(|l| Some((l.name.to_string(), address(&l.name, l.address)?)))
            .collect()
    }
}

fn cannot_bind(site: &Site, key: &KeyPath, address: SocketAddr, error: &io::Error) -> Diagnostic {
    let help = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "end the process that listens there, or take another port; 0 takes a free one"
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; 0.0.0.0 and [::] are all of its addresses"
        }
        io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege; take a higher one",
        _ => "take another address",
    };
    let source = &site.source;
    Diagnostic::at(
        &source.file,
        &source.text,
        key,
        format!("cannot listen on {address}: {error}"),
        help,
    )
}

/// One listening socket for each worker. The system spreads connections over them.
fn bind(address: SocketAddr, workers: usize) -> io::Result<(SocketAddr, Vec<StdListener>)> {
    let socket = || {
        let socket = RawSocket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        io::Result::Ok(socket)
    };
    if address.port() != 0 {
        // Sharing a port is for our own workers: another process that allows it too would get half of the connections.
        socket()?.bind(&address.into())?;
    }
    let mut address = address;
    let mut listeners = Vec::new();
    for _ in 0..workers {
        let socket = socket()?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        let listener: StdListener = socket.into();
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok((address, listeners))
}

pub(super) fn bind_admin(site: &Site, address: SocketAddr) -> Result<StdListener, ConfigError> {
    StdListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|e| {
            ConfigError::one(cannot_bind(
                site,
                &KeyPath::new("admin").key("address"),
                address,
                &e,
            ))
        })
}
