//! What each guest did with a stream, for access logs and demonstrations. Off unless asked for.

use proxy_golang_abi::{Action, Phase};

/// One decision of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Index of the filter in its chain.
    pub place: usize,
    /// 0 for `apply`.
    pub phase: Phase,
    /// What it decided; ERROR also for a result that was refused.
    pub action: Action,
    /// Number of operations.
    pub ops: usize,
    /// By `complete` or `apply`, and not by a return.
    pub late: bool,
    /// Nanoseconds inside the guest; 0 for a late one, or where the time is not measured.
    pub ns: u64,
}
