//! The module inside real Envoys of each supported version, with real clients, upstreams and guests on loopback.
//!
//! Tests that can share a proxy do: each says which listeners it needs, and one Envoy of each version has them all.
#![allow(missing_docs)] // a test program

#[path = "../../../../host-ref/tests/proxy/client.rs"]
#[allow(dead_code)] // pxg-host's tests use the rest
mod client;
#[path = "../../../../host-ref/tests/proxy/upstream.rs"]
#[allow(dead_code)] // pxg-host's tests use the rest
mod upstream;

mod config;
mod envoy;
mod guests;
mod h2;
mod origin;
mod record;
mod suite;
mod support;

mod asynchronous;
mod bodies;
mod chains;
mod faults;
mod features;
mod libraries;
mod memory;
mod module;
mod phases;
mod readme;
mod replies;
mod restarts;
mod statistics;
mod updates;
mod upstreams;

fn main() -> std::process::ExitCode {
    let mut suite = suite::Suite::default();
    features::add(&mut suite);
    phases::add(&mut suite);
    bodies::add(&mut suite);
    replies::add(&mut suite);
    asynchronous::add(&mut suite);
    chains::add(&mut suite);
    faults::add(&mut suite);
    module::add(&mut suite);
    libraries::add(&mut suite);
    updates::add(&mut suite);
    memory::add(&mut suite);
    restarts::add(&mut suite);
    statistics::add(&mut suite);
    upstreams::add(&mut suite);
    readme::add(&mut suite);
    suite.run()
}
