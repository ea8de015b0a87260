//! Checks of a host: `pxg-conformance host --adapter FILE`.
//!
//! A probe guest (`probe/`) does what the script of a case says and records every call. This module starts the host as its
//! adapter says, drives it with a client and an upstream of its own, and looks afterwards at what was recorded, at the
//! bytes on both wires, and at what the host printed.
//!
//! | module | what it is |
//! |---|---|
//! | `record`, `journal` | the schema of the records; reading them while they are written |
//! | `changes` | waiting until something has happened |
//! | `history` | what must hold in every run: a pure function over records |
//! | `adapter`, `setup`, `host` | a host as data; its configuration; started, reloaded, stopped |
//! | `probe` | building the probe |
//! | `client`, `h2c`, `upstream`, `message` | HTTP on loopback |
//! | `cx`, `groups`, `cases` | what a case has in its hands, what starts of a host serve, the cases |
//! | `runner`, `cli` | a run and its report |
//! | `layer_check` | the layer between a host and a guest: put there, and what it wrote |
//! | `pair` | a guest of anybody's in a host, with the layer between |
//! | `layered` | what the layer alone finds of the mutants of both sides |

mod adapter;
pub(crate) mod cases;
mod changes;
pub(crate) mod cli;
mod client;
mod cx;
mod groups;
mod h2c;
mod history;
mod host;
mod journal;
pub(crate) mod layer_check;
pub(crate) mod layered;
mod message;
pub(crate) mod pair;
mod probe;
pub(crate) mod record;
mod runner;
pub(crate) mod selftest;
mod setup;
mod upstream;

pub(crate) use runner::{FEATURE_RULE, WHOLE_RUN, WHOLE_RUN_RULES};
