//! The proxy_golang ABI: the types, constants and layout that a host and a guest share.
//!
//! A *host* is a proxy. A *guest* is a native library with filters, written in Go, Rust, C or any language that can
//! export one C function. This crate is the source of the C header `include/proxy_golang.h`; the normative text is in
//! `spec/`, and the rule ids that the comments here cite (`PXG-MEM-002`) are listed there.
//!
//! # Life of a guest
//! ```text
//! pxg_guest_init_v1 -> on_config_new -> on_worker(up)
//!     -> on_event ... [PENDING -> complete | on_cancel] ... -> on_event(LOG) -> on_stream_end
//!     -> on_config_drop -> on_worker(down)
//! ```
//!
//! # Thread tags
//! Every function carries one tag.
//!
//! | tag | meaning |
//! |---|---|
//! | `[config-thread]` | serialised with all other config-thread calls, never on a loop thread where the host has `CONFIG_THREAD` |
//! | `[loop-thread]` | the worker thread of the stream; never two calls at once for one stream |
//! | `[any-thread]` | callable from every thread at every time, also before `on_event` returned |
//! | `[in-call]` | only inside the hook that lent the memory, on its thread |
//!
//! # Ownership
//! A pointer says in its comment who owns it and when it dies. Three words recur: a *view* is memory of the host that
//! dies when the hook returns; *borrowed* memory is the guest's and stays valid until the next call into the same
//! guest on the same thread; an *owned* buffer changes hands and is released exactly once. What outlives a call is
//! never a pointer: it is a 64-bit value with a generation, and a late use of it is answered with
//! [`Status::STALE`].
//!
//! # Layout
//! LP64, native endian, fixed-width integers only, no padding. [`layout::STRUCTS`] lists every offset and size and is
//! checked at compile time.
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod codes;
mod config;
mod event;
mod leaf;
mod tables;

pub mod ext;
pub mod feature;
pub mod layout;

pub use codes::*;
pub use config::*;
pub use event::*;
pub use leaf::*;
pub use tables::*;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("proxy_golang v1 is defined for LP64 targets only");

/// The major version of this ABI. It is also part of the entry symbol's name.
pub const VERSION_MAJOR: u32 = 1;

/// The minor version of this ABI. It informs; what may be used is decided by features.
pub const VERSION_MINOR: u32 = 0;

/// The name of the one function that a guest exports.
pub const GUEST_INIT_SYMBOL: &str = "pxg_guest_init_v1";

/// The bit of a phase in a phase mask, 0 for a phase that has none.
#[must_use]
pub const fn phase_bit(phase: Phase) -> u64 {
    if phase.0 == 0 || phase.0 > 63 {
        0
    } else {
        1 << phase.0
    }
}
