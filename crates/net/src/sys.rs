//! The one place for unsafe code in this crate.
#![allow(unsafe_code)] // AsyncFd asks its caller to promise what OwnedFd guarantees, rustix what one flag of unshare does.

use std::io;
use std::os::fd::OwnedFd;

use rustix::thread::{UnshareFlags, unshare_unsafe};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits for a descriptor to become readable; it must be in non-blocking mode.
///
/// # Errors
/// When the runtime cannot register it.
pub fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `OwnedFd` names the same open descriptor until it is dropped, and nobody here takes it out or replaces it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// Gives this thread a new network namespace, which goes when the thread does.
///
/// # Errors
/// Without the privilege, or when there is no room for one.
pub fn leave_network() -> io::Result<()> {
    // SAFETY: the call is unsafe for `FILES` alone, by which threads stop sharing descriptors.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}
