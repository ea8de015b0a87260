//! The boundary to Envoy. The only module with unsafe code.
//!
//! What the rest of the crate relies on:
//!
//! * **A [`Filter`] is used on its own thread while its stream lives**: from `on_http_filter_new` until
//!   `on_http_filter_destroy`. It is not `Send`, and [`Session`](crate::session::Session), which keeps it, gives it up
//!   in the destroy hook.
//! * **What Envoy lends lives until the next change of it.** Views of fields are refreshed after each of our edits and at
//!   each hook ([`Head`]); bytes of bodies that are lent to the engine are copied or given back before the hook is left
//!   ([`Filter::lend_body`]).
//! * **No panic crosses.** Every hook catches, and answers what ends the stream.

mod abi;
mod envoy;
mod head;
mod hooks;

pub(crate) use envoy::{
    BodyOf, Config, ConfigBell, Filter, HeaderOf, Scheduler, Stat, StatKind, concurrency,
    has_request_size, is_validating, log, log_enabled,
};
pub(crate) use head::{Head, Heads};
pub(crate) use hooks::guarded;
