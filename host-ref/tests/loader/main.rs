//! From a path to a configured filter.

#[path = "../support/mod.rs"]
mod support;

mod configurations;
mod loaded;
mod refused;
