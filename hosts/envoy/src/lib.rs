//! Runs `proxy_golang` guests inside a stock Envoy: a dynamic module that drives them through the reference engine.
//!
//! Envoy 1.39 and 1.40 load `libproxy_golang.so`; how to is in the crate's `README.md`, the configuration in
//! the module `config`, what this host lacks in [`features::LACKS`]. One of our filters in Envoy runs a chain of guests;
//! several of them in one HTTP connection manager each run their own.

#![deny(unsafe_code)]

mod attributes;
mod bell;
mod config;
mod fault;
pub mod features;
mod process;
mod reply;
mod session;
mod site;
mod stats;
#[allow(unsafe_code)] // the boundary to Envoy: the one module that has it
mod sys;
mod worker;
