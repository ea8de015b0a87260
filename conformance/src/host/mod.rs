//! The strict host: drives a guest and judges everything that it hands back. It shares no code with any other host.

pub mod config;
pub mod judge;
pub(crate) mod messages;
pub mod model;
pub(crate) mod rig;
pub(crate) mod state;
pub(crate) mod stream;
