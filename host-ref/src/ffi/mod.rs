//! The boundary: where guests are called and where they call back. The only module with unsafe code.
//!
//! What the rest of the crate relies on:
//!
//! * **Nothing lent outlives its call.** A guest's result is decoded at once and shown to the engine as an
//!   [`Outcome`](crate::engine::Outcome) that borrows from it; the views of the event die when `on_event` has returned.
//! * **Owned buffers change hands first.** Before anything of a result is judged, every OWNED buffer of it belongs to
//!   a [`bytes::Bytes`] whose last clone releases it, so that it is released exactly once on every path.
//! * **What guests hold lives as long as the process.** Host tables, the page, extension tables and loaded libraries are
//!   leaked on purpose: a guest may call `complete` or `log` from a thread of its own at any time. Their number is
//!   bounded by [`MAX_LIBRARIES`].
//! * **A guest's value is never a pointer.** The `ctx` that guests hand back is looked up; an unknown one is answered
//!   with STALE.
//!
//! What cannot be checked here, and is the guest's word: that the pointers it hands out are valid for the lengths it says.
//! Guests are trusted code in this address space; they are checked for mistakes, not against malice.

mod decode;
mod exports;
mod fault;
mod guest;
mod lent;
mod library;
mod members;
mod metrics;
mod owned;
mod page;
mod plain;
mod pointers;
mod store;
mod text;
mod view;

pub(crate) use exports::{Entry, Shared};
pub(crate) use guest::{ConfigAnswer, GuestTable, NewConfig, RetireQueue};
pub(crate) use library::{GuestAnswer, OpenError, open};
pub(crate) use members::PHASES;
pub(crate) use store::FieldStore;

pub use exports::{LogSink, MAX_LIBRARIES};
pub use metrics::{MetricLimits, MetricSnapshot, MetricValue};
pub use page::PageHandle;
pub use plain::PlainOp;
pub use text::{MAX_LOG_TEXT, clean};
pub use view::{FieldView, StrView};

use proxy_golang_abi::Status;

/// Name of a status in messages.
#[must_use]
pub fn status_name(status: Status) -> &'static str {
    match status {
        Status::OK => "OK",
        Status::FULL => "FULL",
        Status::STALE => "STALE",
        Status::STATE => "STATE",
        Status::ARG => "ARG",
        Status::UNSUPPORTED => "UNSUPPORTED",
        Status::LIMIT => "LIMIT",
        Status::THREAD => "THREAD",
        Status::VERSION => "VERSION",
        Status::NOTFOUND => "NOTFOUND",
        Status(i32::MIN..0) => "INTERNAL",
        _ => "OK",
    }
}
