//! Main's connection to one shim: requests and replies, notices, and the shim's death.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::error::Error;
use crate::plan::{ContainerState, Event, Exit};
use crate::seqpacket::{self, MAX_MESSAGE};
use crate::shim::protocol::{Answer, Failure, Message, Op, Request, VERSION};
use crate::shim::{SOCKET, open_directory, socket_address};

/// For what a shim answers without waiting for anything.
const PROMPT: Duration = Duration::from_secs(10);

/// How long a closed connection may precede the death of its shim.
const DYING: Duration = Duration::from_secs(1);

type Reply = (Result<Answer, Failure>, Vec<OwnedFd>);

/// A living shim.
#[derive(Debug)]
pub(crate) struct Link {
    pod: String,
    pub pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    /// To be reaped, if this process started it.
    child: Mutex<Option<Child>>,
    socket: Mutex<std::sync::Arc<AsyncFd<OwnedFd>>>,
    next: AtomicU64,
    pending: Mutex<BTreeMap<u64, Pending>>,
    execs: Mutex<BTreeMap<u64, oneshot::Sender<i32>>>,
    /// Containers whose exit has not been told yet.
    running: Mutex<BTreeSet<String>>,
}

#[derive(Debug)]
struct Pending {
    reply: oneshot::Sender<Reply>,
    /// The container that a successful reply starts.
    starts: Option<String>,
}

/// What a shim says of itself.
pub(crate) struct Welcome {
    pub containers: Vec<(String, ContainerState)>,
    pub network: Option<OwnedFd>,
}

/// How a connection ended.
pub(crate) enum End {
    Dead,
    /// The shim cut this connection off, or it broke: connect anew.
    Disconnected,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds these locks can panic half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// A link over a fresh connection. Nothing is said yet.
    pub(crate) fn new(pod: &str, socket: OwnedFd, pid: u32) -> io::Result<Link> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK)?;
        Ok(Link {
            pod: pod.to_owned(),
            pid,
            pidfd: crate::sys::watch(pidfd, Interest::READABLE)?,
            child: Mutex::new(None),
            socket: Mutex::new(std::sync::Arc::new(asynchronous(socket)?)),
            next: AtomicU64::new(1),
            pending: Mutex::default(),
            execs: Mutex::default(),
            running: Mutex::default(),
        })
    }

    /// The shim is a child of this process, to be reaped by it.
    pub(crate) fn with_child(self, child: Child) -> Link {
        *locked(&self.child) = Some(child);
        self
    }

    /// Connects to the shim that listens in `directory`: the socket, and the shim's pid.
    pub(crate) fn connect(directory: &Path) -> io::Result<(OwnedFd, u32)> {
        let opened = open_directory(directory)?;
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &socket_address(&directory.join(SOCKET), &opened)?)?;
        // The credentials of whoever called listen.
        let peer = rustix::net::sockopt::socket_peercred(&socket)?;
        if peer.uid != rustix::process::geteuid() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok((socket, peer.pid.as_raw_nonzero().get() as u32))
    }

    fn socket(&self) -> std::sync::Arc<AsyncFd<OwnedFd>> {
        locked(&self.socket).clone()
    }

    fn dead(&self) -> Error {
        Error::Shim(self.pod.clone())
    }

    /// Asks the shim for its state, and for notices from then on.
    ///
    /// [`Link::serve`] must run meanwhile.
    pub(crate) async fn hello(&self) -> Result<Welcome, Error> {
        let (answer, mut fds) = self.prompt(Op::Hello { version: VERSION }).await?;
        let Answer::Welcome { containers, .. } = answer else { return Err(self.dead()) };
        Ok(Welcome { containers, network: fds.pop() })
    }

    /// A request that is answered at once.
    pub(crate) async fn prompt(&self, op: Op) -> Result<(Answer, Vec<OwnedFd>), Error> {
        tokio::time::timeout(PROMPT, self.call(op, &[], None)).await.unwrap_or_else(|_| Err(self.dead()))
    }

    /// A request that takes as long as it takes: a container's volumes may lie on a dead server. Cancellation safe.
    pub(crate) async fn call(
        &self,
        op: Op,
        fds: &[BorrowedFd<'_>],
        exit: Option<oneshot::Sender<i32>>,
    ) -> Result<(Answer, Vec<OwnedFd>), Error> {
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let (starts, container) = match &op {
            Op::Start(start) => (Some(start.id.clone()), start.id.clone()),
            Op::Exec { id, .. }
            | Op::Attach { id, .. }
            | Op::Signal { id, .. }
            | Op::ReopenLog { id }
            | Op::Forget { id } => (None, id.clone()),
            Op::Hello { .. } | Op::Shutdown => (None, String::new()),
        };
        let text = serde_json::to_vec(&Request { seq, op }).map_err(|_| self.dead())?;
        let (reply, answer) = oneshot::channel();
        locked(&self.pending).insert(seq, Pending { reply, starts });
        if let Some(exit) = exit {
            locked(&self.execs).insert(seq, exit);
        }
        let socket = self.socket();
        let sent = socket.async_io(Interest::WRITABLE, |socket| seqpacket::send_now(socket.as_fd(), &text, fds)).await;
        if sent.is_err() {
            locked(&self.pending).remove(&seq);
        }
        let outcome = match sent {
            Ok(()) => answer.await.ok(),
            Err(_) => None,
        };
        match outcome {
            Some((Ok(answer), fds)) => Ok((answer, fds)),
            other => {
                locked(&self.execs).remove(&seq);
                match other {
                    Some((Err(failure), _)) => Err(self.error(failure, container)),
                    _ => Err(self.dead()),
                }
            }
        }
    }

    fn error(&self, failure: Failure, container: String) -> Error {
        match failure {
            Failure::UnknownContainer => Error::UnknownContainer(container),
            Failure::NotRunning => Error::NotRunning(container),
            Failure::Start(reason) => Error::Start { reason },
            Failure::Stream(problem) => Error::Plan { field: "attach".to_owned(), problem },
            Failure::Other(reason) => {
                Error::Io { what: format!("run pod {}", self.pod), source: io::Error::other(reason) }
            }
        }
    }

    /// Reads what the shim says until the connection ends. Not cancellation safe: an exit may be lost.
    pub(crate) async fn serve(&self, events: &mpsc::Sender<Event>) -> End {
        let socket = self.socket();
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            let received =
                socket.async_io(Interest::READABLE, |socket| seqpacket::receive(socket.as_fd(), &mut buffer)).await;
            let (length, fds) = match received {
                Ok((length, fds)) if length > 0 => (length, fds),
                _ => break,
            };
            match serde_json::from_slice(&buffer[..length]) {
                Ok(message) => self.take(message, fds, events).await,
                Err(error) => tracing::warn!(pod = self.pod, %error, "a shim said what main does not understand"),
            }
        }
        // Whoever waits for a reply on this connection waits in vain.
        locked(&self.pending).clear();
        match tokio::time::timeout(DYING, self.death()).await {
            Ok(()) => End::Dead,
            Err(_) => End::Disconnected,
        }
    }

    async fn take(&self, message: Message, fds: Vec<OwnedFd>, events: &mpsc::Sender<Event>) {
        match message {
            Message::Reply { seq, result } => {
                let Some(pending) = locked(&self.pending).remove(&seq) else { return };
                // Here and not where the reply is awaited: the next message may be the end of what runs.
                match (&result, pending.starts) {
                    (Ok(Answer::Welcome { containers, .. }), _) => {
                        let is_running = |state: &ContainerState| matches!(state, ContainerState::Running { .. });
                        let running = containers.iter().filter(|(_, state)| is_running(state));
                        locked(&self.running).extend(running.map(|(id, _)| id.clone()));
                    }
                    (Ok(_), Some(id)) => {
                        locked(&self.running).insert(id);
                    }
                    (Ok(_), None) | (Err(_), _) => {}
                }
                // The caller may have been cancelled.
                pending.reply.send((result, fds)).ok();
            }
            Message::Exited { id, exit } => self.exited(id, exit, events).await,
            Message::ExecExited { seq, code } => {
                if let Some(exit) = locked(&self.execs).remove(&seq) {
                    // Nobody may care any more.
                    exit.send(code).ok();
                }
            }
        }
    }

    /// Tells an exit, once.
    pub(crate) async fn exited(&self, container: String, exit: Exit, events: &mpsc::Sender<Event>) {
        if locked(&self.running).remove(&container) {
            let event = Event::ContainerExited { pod: self.pod.clone(), container, exit };
            // The receiver is gone when main is going down.
            events.send(event).await.ok();
        }
    }

    /// Replaces a connection that the shim has cut off.
    pub(crate) fn reconnect(&self, directory: &Path) -> io::Result<()> {
        let (socket, _) = Link::connect(directory)?;
        *locked(&self.socket) = std::sync::Arc::new(asynchronous(socket)?);
        // Exits of execs were told to the old connection only.
        locked(&self.execs).clear();
        Ok(())
    }

    /// Waits until the shim is dead, and reaps it if it is ours.
    pub(crate) async fn death(&self) {
        if let Err(error) = self.pidfd.readable().await {
            tracing::warn!(pod = self.pod, %error, "could not watch a shim");
        }
        #[cfg(feature = "planted")]
        if planted::on(planted::Bug::ShimZombie) {
            return;
        }
        if let Some(child) = locked(&self.child).as_mut() {
            // An adopted shim is init's child.
            child.try_wait().ok();
        }
    }

    /// Ends a shim that does not end by itself.
    pub(crate) fn kill(&self) {
        // Dead already: fine.
        rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL).ok();
    }

    /// Nobody will answer any more.
    pub(crate) fn close(&self) {
        locked(&self.pending).clear();
        locked(&self.execs).clear();
    }
}

fn asynchronous(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = rustix::fs::fcntl_getfl(&socket)?;
    rustix::fs::fcntl_setfl(&socket, flags | OFlags::NONBLOCK)?;
    tracing::trace!(fd = socket.as_raw_fd(), "connected to a shim");
    crate::sys::watch(socket, Interest::READABLE | Interest::WRITABLE)
}
