//! Checks that a guest keeps the rules of the proxy_golang ABI: `pxg-conformance guest ./filter.so`; and that a host does:
//! `pxg-conformance host --adapter FILE`.
//!
//! A strict host of its own drives the guest, each case in a fresh process, with guarded memory and a handler that
//! explains every access that is not allowed. It depends on the ABI crate and on no host.
//!
//! ```no_run
//! // In a test of your own guest:
//! proxy_golang_conformance::assert_guest("target/debug/libmy_filter.so");
//! ```
#![deny(unsafe_code)]

mod cases;
mod child;
pub mod cli;
mod coverage;
mod elf;
mod explain;
mod fault_text;
mod finding;
mod fuzz;
#[doc(hidden)]
pub mod fuzzing;
mod go_runtime;
#[doc(hidden)]
mod host;
mod hostcheck;
mod mutants;
mod report;
mod rules;
mod sandbox;
mod scenario;
mod selftest;
mod subject;
mod suite;
#[doc(hidden)]
mod symbols;
#[doc(hidden)]
mod sys;
mod verdict;

pub use suite::assert_guest;

/// What the layer between a host and a guest shares with the suite: no interface for anybody else.
#[doc(hidden)]
pub mod parts {
    pub use crate::host::{config, judge, model};
    /// For the layer's own tests.
    pub use crate::hostcheck::layered::Layered;
    /// Addresses to places in sources.
    pub mod symbols {
        pub use crate::symbols::{Module, Site, Symbols};
    }
    pub use crate::sys::{peek, reader};
}
