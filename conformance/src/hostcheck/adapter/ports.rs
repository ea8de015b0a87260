//! Ports for hosts that cannot choose one and tell which: an adapter names them `{port}`, `{h2c_port}` and `{admin_port}`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use tokio::net::TcpSocket;

/// The variables.
pub(super) const NAMES: [&str; 3] = ["port", "h2c_port", "admin_port"];

/// Ports of 127.0.0.1 that are the host's while this lives: each is bound here, with `SO_REUSEADDR` and without listening.
/// So the system gives it to nobody else, and a host that sets `SO_REUSEADDR`, as servers do, can still listen on it.
pub(crate) struct Ports {
    held: Vec<(&'static str, u16, TcpSocket)>,
}

impl Ports {
    pub(crate) fn hold() -> Result<Self> {
        let one = |name| -> Result<_> {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
            let port = socket.local_addr()?.port();
            Ok((name, port, socket))
        };
        let held = NAMES.into_iter().map(one).collect::<Result<_>>();
        Ok(Self {
            held: held.context("cannot bind a port of 127.0.0.1 for the host")?,
        })
    }

    pub(crate) fn values(&self) -> BTreeMap<String, String> {
        self.held
            .iter()
            .map(|(name, port, _)| ((*name).to_string(), port.to_string()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_port_can_be_listened_on_and_is_given_to_nobody_else() {
        let ports = Ports::hold().expect("ports are held");
        for (_, port, _) in &ports.held {
            // The standard library sets SO_REUSEADDR on listeners.
            let host = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, *port));
            let host = host.expect("the host listens on the port that is held");
            drop(host);
            let other = TcpSocket::new_v4().expect("a socket");
            let taken = other.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, *port)));
            assert!(taken.is_err(), "{port} is free to others");
        }
        let numbers: std::collections::BTreeSet<_> = ports.held.iter().map(|p| p.1).collect();
        assert_eq!(numbers.len(), NAMES.len());
    }
}
