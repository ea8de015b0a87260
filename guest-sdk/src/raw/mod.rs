//! The only unsafe code of the crate: everything that touches a pointer of the boundary.
//!
//! The invariants that the `SAFETY` lines name:
//!
//! * **host contract**: the host keeps the rules of the spec that it owns. Tables live as long as the process
//!   (PXG-NEG-001), views stay valid and unchanged until the hook returns (PXG-MEM-001), a configuration's value is
//!   one that this guest answered and has not been dropped (PXG-CFG-005), `user` is echoed (PXG-EVT-007), and events
//!   of one stream never overlap (PXG-EVT-002).
//! * **call lifetime**: an [`Event`] lives on the stack of `on_event`, so a reference to it outlives no view.
//! * **borrowed until the next call**: what has lifetime `'c` is the filter's or the stream's own memory, lent for the
//!   whole call; the host has read it before it can drop either (PXG-MEM-003).
#![allow(unsafe_code)] // the boundary itself

mod buffer;
mod call;
mod hooks;
mod host;
pub(crate) mod mini;
mod outgoing;
mod view;

pub use buffer::Buffer;
pub use call::{
    BodyEvent, ConnectionEvent, DataEvent, Event, HeadersEvent, LogEvent, MessageEvent,
    ReplyBuilder, TrailersEvent, WakeEvent,
};
pub use hooks::{FilterEntry, Library, NoPhases, Probe, init};
pub use host::Host;
pub(crate) use host::MetricsTable;
pub(crate) use outgoing::{Bytes, Outgoing, OutgoingOp, OutgoingReply, Payload};
pub use view::{ConfigInput, Field, FieldIter, Fields};
