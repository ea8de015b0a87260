//! The only module with `unsafe`: shared memory, guarded pages, signal handlers, processes, and the calls across the
//! boundary. What it offers the rest of the crate is safe.
#![allow(unsafe_code)] // the boundary itself: the one module that has it

pub(crate) mod allocations;
pub(crate) mod arena;
pub(crate) mod boundary;
pub(crate) mod calls;
pub(crate) mod clock;
pub(crate) mod entry;
pub(crate) mod fault;
pub(crate) mod heap;
pub mod peek;
pub(crate) mod process;
pub(crate) mod readable;
pub mod reader;
pub(crate) mod shared;
pub(crate) mod threads;
pub(crate) mod thunks;
pub(crate) mod userfault;
