//! The one place for unsafe code in this crate.
#![allow(unsafe_code)] // AsyncFd asks its caller to promise what OwnedFd guarantees.

use std::io;
use std::os::fd::OwnedFd;

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
