//! Faults of a result: what was found, what was expected.

use proxy_golang_abi::Status;

use crate::engine::Fault;

/// The order in which faults are answered when there are several (spec 1.5).
pub(super) fn worse(known: &mut Option<Fault>, fault: Fault) {
    let rank = |f: &Fault| match f.status {
        Status::UNSUPPORTED => 0,
        Status::ARG => 1,
        Status::STATE => 2,
        _ => 3,
    };
    if known.as_ref().is_none_or(|k| rank(&fault) < rank(k)) {
        *known = Some(fault);
    }
}

#[cold]
#[inline(never)]
pub(super) fn cold(status: Status, text: impl FnOnce() -> String) -> Fault {
    Fault::new(status, text())
}

#[cold]
pub(super) fn outside(what: impl std::fmt::Display, beyond: usize) -> Fault {
    Fault::new(
        Status::ARG,
        format!(
            "{what}: found memory that begins in a lent region and ends {beyond} bytes beyond it; expected it to end \
             there (PXG-MEM-012). Ask scratch_more for more"
        ),
    )
}

#[cold]
pub(super) fn unknown_bits(what: impl std::fmt::Display, found: u64, known: u64) -> Fault {
    Fault::new(
        Status::UNSUPPORTED,
        format!("{what}: found {found:#x}, expected no bits beside {known:#x} (PXG-ABI-005)"),
    )
}
