//! The monotonic clock of the process, in nanoseconds; never 0.

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since some moment before the process began. Read up to ten times for a filtered request, so without the
/// arithmetic of a `std::time::Instant`.
pub(super) fn now() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return 1; // Linux has this clock
    };
    // Both are never negative.
    (now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned()) | 1
}
