//! Taking over the listening sockets of an edge that outlived its main.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tracing::warn;
use wire::edge::{MAX_SOCKETS, MAX_UP_FRAME, Role, Socket, Up, take};

/// How long an edge may take to answer: it does nothing else on that thread.
const ANSWER: Duration = Duration::from_secs(2);

/// Asks the edge behind `control` for its listening sockets. Main keeps them, so that the ports stay open when that edge dies.
///
/// Nothing that the edge says is believed: a descriptor that is not the socket it is said to be is closed.
///
/// # Errors
/// `ConnectionRefused` and `NotFound`: there is no edge. Others: there is something that is none.
pub fn listeners(control: &Path) -> io::Result<Vec<(Socket, OwnedFd)>> {
    let stream = UnixStream::connect(control)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let (mut received, mut descriptors) = (Vec::new(), Vec::new());
    loop {
        if let Some(hello) = take::<Up>(&mut received, MAX_UP_FRAME).map_err(io::Error::other)? {
            let Up::Hello { sockets, .. } = hello else {
                return Err(io::Error::other("the first frame of the edge is no Hello"));
            };
            return Ok(believable(sockets, descriptors));
        }
        let mut buffer = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let buffers = &mut [IoSliceMut::new(&mut buffer)];
        let message = recvmsg(&stream, buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if message.bytes == 0 || descriptors.len() > MAX_SOCKETS {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        received.extend_from_slice(&buffer[..message.bytes]);
    }
}

fn believable(sockets: Vec<Socket>, descriptors: Vec<OwnedFd>) -> Vec<(Socket, OwnedFd)> {
    let pairs = sockets.into_iter().zip(descriptors);
    pairs
        .filter(|(socket, descriptor)| {
            let is_it = is_that(socket, descriptor);
            if !is_it {
                warn!(?socket, "the edge sent another socket than it named");
            }
            is_it
        })
        .collect()
}

fn is_that(socket: &Socket, descriptor: &OwnedFd) -> bool {
    use rustix::net::SocketType;
    use rustix::net::sockopt::{socket_acceptconn, socket_type};
    let descriptor = descriptor.as_fd();
    let bound = rustix::net::getsockname(descriptor).ok().and_then(|address| SocketAddr::try_from(address).ok());
    let kind = match socket.role {
        Role::DnsUdp => SocketType::DGRAM,
        Role::Http | Role::Https | Role::DnsTcp => SocketType::STREAM,
    };
    let listens = kind == SocketType::DGRAM || socket_acceptconn(descriptor) == Ok(true);
    bound == Some(socket.address) && socket_type(descriptor) == Ok(kind) && listens
}
