//! A container's output: read once, written to the log and to whoever is attached.

use std::os::fd::{AsFd, OwnedFd};
use std::time::SystemTime;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::log::{Log, Stream};

/// The size of a read, and so of the longest log line: CRI's 16 KiB.
pub(super) const CHUNK: usize = 16 * 1024;

/// At the end of a container no more than this is read from a stream that another process keeps filling.
const DRAIN_LIMIT: usize = 4 << 20;

pub(super) struct Output {
    source: OwnedFd,
    pub stream: Stream,
    /// Pipes of attached clients; never blocking.
    clients: Vec<OwnedFd>,
    /// Nothing more will come.
    pub ended: bool,
}

impl Output {
    pub(super) fn new(source: OwnedFd, stream: Stream) -> Output {
        Output { source, stream, clients: Vec::new(), ended: false }
    }

    pub(super) fn source(&self) -> &OwnedFd {
        &self.source
    }

    /// Lets a client see what comes from now on.
    pub(super) fn attach(&mut self, client: OwnedFd) -> rustix::io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&client)?;
        rustix::fs::fcntl_setfl(&client, flags | OFlags::NONBLOCK)?;
        self.clients.push(client);
        Ok(())
    }

    /// Reads what is there. False at the end of the stream.
    ///
    /// Call it only when the source is readable: it would block otherwise.
    pub(super) fn pump(&mut self, log: Option<&mut Log>, buffer: &mut [u8; CHUNK]) -> bool {
        let length = match rustix::io::read(&self.source, &mut buffer[..]) {
            Ok(0) => return false,
            Ok(length) => length,
            Err(Errno::INTR | Errno::AGAIN) => return true,
            // A terminal whose last user is gone: EIO.
            Err(_) => return false,
        };
        let chunk = &buffer[..length];
        if let Some(log) = log {
            log.write(self.stream, chunk, SystemTime::now());
        }
        self.clients.retain(|client| matches!(rustix::io::write(client, chunk), Ok(written) if written == chunk.len()));
        true
    }

    /// Reads all that is there without waiting.
    pub(super) fn drain(&mut self, mut log: Option<&mut Log>, buffer: &mut [u8; CHUNK]) {
        let mut budget = DRAIN_LIMIT / CHUNK;
        while budget > 0 && readable(&self.source) && self.pump(log.as_deref_mut(), buffer) {
            budget -= 1;
        }
    }
}

/// Whether a read would return at once.
pub(super) fn readable(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(ready) if ready > 0)
}
