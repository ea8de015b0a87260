//! Descriptors that a runtime waits for.

use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers `fd` with the current runtime.
pub(crate) fn readable(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and stands for the same file until it is dropped, and here it is moved in.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}
