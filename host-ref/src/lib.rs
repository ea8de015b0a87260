//! The reference host of proxy_golang.
//!
//! * [`engine`]: the stream state machine, without sockets, clock or threads of its own. A proxy drives it.
//! * [`ffi`]: where guests are called and where they call back; the only module with unsafe code.
//! * [`loader`]: checks a guest library and loads it.
//! * `proxy` (feature `proxy`, on by default): the reverse proxy `pxg-host`.
#![deny(unsafe_code)]

pub mod engine;
#[allow(unsafe_code)] // the boundary itself
pub mod ffi;
pub mod loader;
#[cfg(feature = "proxy")]
pub mod proxy;
