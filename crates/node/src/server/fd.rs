//! Pipes and terminals that containers hold the other end of, read and written without blocking.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One end of a pipe, or a terminal's master side.
pub(super) struct Stream {
    fd: AsyncFd<OwnedFd>,
}

impl Stream {
    /// # Errors
    /// When the descriptor cannot be waited for.
    pub(super) fn reader(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, Interest::READABLE)
    }

    /// # Errors
    /// When the descriptor cannot be waited for.
    pub(super) fn writer(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, Interest::WRITABLE)
    }

    // The constructor's successor is unsafe and meant for descriptors that may be closed elsewhere: these are owned.
    #[allow(deprecated)]
    fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Ok(Self { fd: AsyncFd::with_interest(fd, interest)? })
    }

    pub(super) fn raw(&self) -> &OwnedFd {
        self.fd.get_ref()
    }

    /// Reads what there is; 0 at the end. A terminal whose other side is closed has ended. Cancellation safe.
    ///
    /// # Errors
    /// When the kernel fails.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            match rustix::io::read(self.fd.get_ref(), &mut *buffer) {
                Ok(count) => return Ok(count),
                Err(Errno::IO) => return Ok(0),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes everything.
    ///
    /// # Errors
    /// When the other end is closed.
    pub(super) async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.fd.writable().await?;
            match rustix::io::write(self.fd.get_ref(), bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
