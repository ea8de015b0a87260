//! The layer `libpxg_layer.so`: loaded by any host in place of a guest, it loads the real one, hands every call through,
//! and checks both sides of it. What it is told, and what it sees and does not, is in `docs/src/layer.md`.
#![deny(unsafe_code)]

mod content;
mod faults;
mod library;
mod perturb;
mod place;
mod report;
mod settings;
mod sys;
#[cfg(test)]
mod tests;
mod tokens;
mod trace;

pub(crate) use faults::report_faults;

/// At the end of the process.
pub(crate) fn at_exit() {
    let Some(r) = report::current() else {
        return;
    };
    report_faults();
    for l in sys::tables::libraries() {
        l.finish();
    }
    r.end();
}
