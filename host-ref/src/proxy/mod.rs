//! `pxg-host`: a reverse proxy that drives the engine.
//!
//! One thread per worker with an event loop of its own; a connection, its streams and the connections that they use
//! upstream stay on one worker, so nothing between them is locked. Beside the workers there are the config thread
//! ([`control`]), which alone loads and configures guests, and the admin thread. A configuration in force is immutable
//! (`site`); a request keeps the one that it began with.

mod access;
mod admin;
mod attributes;
mod body;
pub mod cli;
mod clock;
pub mod config;
mod connection;
pub mod control;
mod exchange;
mod features;
mod fields;
mod filtered;
mod framing;
mod guests;
mod head;
mod io;
mod logging;
mod metrics;
mod path;
mod reply;
mod router;
mod site;
mod sockets;
mod tls;
mod upstream;
mod worker;
