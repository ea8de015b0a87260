//! A host in memory for tests of the engine: scripted guests, a driver that takes everything that comes out, a clock
//! that stands still until it is set.
#![allow(dead_code, unreachable_pub, missing_docs)] // each test binary uses its part

mod answer;
mod guest;
mod world;

pub use answer::*;
pub use guest::*;
pub use world::*;

pub use bytes::Bytes;
pub use proxy_golang_abi::feature::Feature;
pub use proxy_golang_abi::{
    Action, BodyMode, ConfigFlags, DirectionEnd, EndReason, EventFlags, Phase, ReplyFlags,
    ResultFlags, Status, Target, phase_bit,
};
pub use proxy_golang_host::engine::*;

pub const REQ_H: Phase = Phase::REQUEST_HEADERS;
pub const REQ_B: Phase = Phase::REQUEST_BODY;
pub const REQ_T: Phase = Phase::REQUEST_TRAILERS;
pub const RES_H: Phase = Phase::RESPONSE_HEADERS;
pub const RES_B: Phase = Phase::RESPONSE_BODY;
pub const RES_T: Phase = Phase::RESPONSE_TRAILERS;
pub const LOG: Phase = Phase::LOG;
pub const WAKE: Phase = Phase::WAKE;
pub const ALL_PHASES: [Phase; 8] = [REQ_H, REQ_B, REQ_T, RES_H, RES_B, RES_T, LOG, WAKE];

pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        REQ_H => "REQ_H",
        REQ_B => "REQ_B",
        REQ_T => "REQ_T",
        RES_H => "RES_H",
        RES_B => "RES_B",
        RES_T => "RES_T",
        LOG => "LOG",
        WAKE => "WAKE",
        _ => "?",
    }
}

/// A field list from literals.
pub fn fields(list: &[(&str, &str)]) -> FieldList {
    list.iter()
        .map(|(n, v)| (n.as_bytes(), v.as_bytes()))
        .collect()
}

pub fn pairs(list: &FieldList) -> Vec<(String, String)> {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    list.iter().map(|(n, v)| (text(n), text(v))).collect()
}
