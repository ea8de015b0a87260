//! The process of one case.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cases::{self, Run};
use crate::finding::{Record, note, record, suite_error};
use crate::fuzz::Script;
use crate::subject::Subject;
use crate::sys::shared::{self, Shared, Stage};
use crate::sys::{clock, fault, process, threads};

/// What the suite tells a case's process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) case: String,
    pub(crate) guest: PathBuf,
    pub(crate) has_go: bool,
    pub(crate) seed: u64,
    pub(crate) subjects: Vec<Subject>,
    pub(crate) grace_ms: u64,
    /// Let wrong accesses through; otherwise the guest's own handler explains the first one.
    pub(crate) heal: bool,
    /// For scenarios.
    #[serde(default)]
    pub(crate) script: Option<Script>,
    /// Record the case to this file.
    #[serde(default)]
    pub(crate) trace: Option<PathBuf>,
}

/// Runs the case of `order` and ends the process.
pub(crate) fn main(fd: RawFd, order: &Order) -> ! {
    match Shared::map(fd) {
        Ok(s) if s.is_valid() => shared::install(s),
        _ => process::exit_now(3),
    }
    run(order);
    if let Some(s) = shared::current() {
        s.set_stage(Stage::Finished);
    }
    // No destructors: a guest's threads still run, and its exit handlers are not this suite's business.
    process::exit_now(0);
}

/// Runs the case in this process.
pub(crate) fn run(order: &Order) {
    let Some(case) = cases::find(&order.case) else {
        suite_error(format!("no case {:?}", order.case));
        return;
    };
    if let Some(path) = &order.trace {
        let collects = case.env.iter().any(|(k, _)| *k == "GOGC");
        if let Err(e) = crate::scenario::record::start(path, case.name, collects) {
            suite_error(format!("cannot record to {}: {e}", path.display()));
            return;
        }
    }
    fault::set_heal(order.heal);
    threads::adopt_orphans();
    let mut run = Run::new(
        order.guest.clone(),
        order.has_go,
        order.seed,
        order.subjects.clone(),
    );
    run.script.clone_from(&order.script);
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (case.run)(&mut run)));
    if ended.is_err() {
        suite_error(format!(
            "the case {} panicked; its text is in the output",
            case.name
        ));
        return;
    }
    if let Some(s) = shared::current() {
        s.set_stage(Stage::Draining);
        if s.hooks_entered() > 0 {
            clock::linger(Duration::from_millis(order.grace_ms));
        }
    }
    let children = threads::children();
    if !children.is_empty() {
        note(
            "PXG-RT-008",
            "started processes that are still there",
            [format!("{children:?}")],
        );
    } else if threads::children_were_reaped() {
        note("PXG-RT-008", "started a process and waited for it", []);
    }
    record(&Record::Checked(run.checked_so_far()));
}
