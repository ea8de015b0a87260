//! The engine: the state machine of a stream and its filters, sans-IO.
//!
//! It has no sockets, no clock and no threads. A proxy (the *driver*) feeds in what arrives and takes out what is to
//! be sent; in between the engine calls the guests. The state diagram that it follows is in `spec/07-bodies.md`, the
//! life of a token in `spec/12-async.md`.

pub mod grammar;

mod body;
mod fields;
mod guest;
mod hub;
#[cfg(all(loom, test))]
mod loom_tests;
mod outcome;
mod stateless;
mod stats;
mod stream;
mod sync;
mod table;
mod worker;

pub use body::BodyBuf;
pub use fields::{Edit, FieldList, FieldView, Fields, Views};
pub use guest::{
    AttrSource, AttrWant, Attributes, Chain, Declared, EventView, FailureMode, Filter, Guest,
    PlainOp, Policy, Take,
};
pub use hub::{Hub, HubLimits, Mail};
#[cfg(feature = "proxy")]
pub(crate) use outcome::action_name;
pub use outcome::{Fault, KeptOutcome, Op, OpKind, Outcome, Payload, Reply};
pub use stateless::check;
pub use stats::{Counter, FilterStats, PHASES, PhaseStats, TIME_BUCKETS_NS};
pub use stream::{
    BodyLength, Cut, Cx, Dir, Failure, Glance, Part, Reason, Signal, Step, Stream, StreamLimits,
};
pub use worker::Worker;
