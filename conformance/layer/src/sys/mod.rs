//! The only module with `unsafe`: the calls in both directions, guarded copies, the handler of faults, and what the
//! operating system is asked.
#![allow(unsafe_code)] // the boundary itself: the one module that has it

pub(crate) mod fault;
pub(crate) mod handover;
mod hooks;
mod host_calls;
mod load;
pub(crate) mod memory;
pub(crate) mod platform;
pub(crate) mod tables;
pub(crate) mod view;
