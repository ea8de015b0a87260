//! Tests of `pxg-host` as a process, with real clients, upstreams and guests on loopback.
#![cfg(feature = "proxy")]
#![allow(missing_docs)]

mod client;
mod support;
mod upstream;

mod bodies;
mod check;
mod failures;
mod filters;
mod http1;
mod http2;
mod observe;
mod reload;
mod routing;
mod tunnel;
