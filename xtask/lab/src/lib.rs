//! What the project's demonstration, host benchmark and soak test are made of. `cargo xtask demo`, `cargo xtask bench`
//! and `cargo xtask soak` build it and run it.
#![deny(unsafe_code)]

pub mod bench_envoy;
pub mod bench_host;
pub mod bench_nginx;
mod bench_proxy;
pub mod client;
pub mod demo;
pub mod flat;
pub mod host;
pub mod memory;
pub mod paint;
pub mod process;
pub mod soak;
pub mod stats;
pub mod upstream;
