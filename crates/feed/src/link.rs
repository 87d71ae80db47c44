//! The connection to the edge: whichever edge answers gets the sockets that it lacks and the latest table.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};
use wire::edge::{Down, Hello, MAX_SOCKETS, MAX_UP_FRAME, Problem, Socket, Table, Up, VERSION, frame, take};

/// The pauses between attempts to reach the edge.
const FIRST_RETRY: Duration = Duration::from_millis(10);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// How long the edge may take to read or to acknowledge a table.
const ANSWER: Duration = Duration::from_secs(10);

/// Opens the edge's access log, and moves one that is too long aside.
pub type OpenLog = Arc<dyn Fn() -> io::Result<OwnedFd> + Send + Sync>;

/// What the edge said about the table in use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    pub generation: u64,
    pub problems: Vec<Problem>,
}

pub struct Link {
    /// The Unix socket on which the edge listens.
    pub control: PathBuf,
    pub listeners: Vec<(Socket, OwnedFd)>,
    pub open_log: OpenLog,
    /// The table to be used; `None` until there is one.
    pub wanted: watch::Receiver<Option<Arc<Table>>>,
    pub applied: watch::Sender<Option<Applied>>,
}

/// Why the edge is not spoken to any more.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("the edge does not answer")]
    Io(#[from] io::Error),
    #[error("the edge is not understood")]
    Frame(#[from] wire::edge::BadFrame),
    #[error("the edge speaks version {0} of the protocol")]
    Version(u32),
    #[error("the edge did not begin with its Hello")]
    NoHello,
    #[error("nobody makes tables any more")]
    Finished,
}

impl Link {
    /// Keeps the edge at the latest table, for ever.
    pub async fn run(mut self) {
        let mut pause = FIRST_RETRY;
        loop {
            match self.serve(&mut pause).await {
                Broken::Finished => return,
                Broken::Io(error) if is_absent(&error) => {}
                broken => {
                    warn!(error = %broken, cause = ?std::error::Error::source(&broken), "lost the edge; trying again")
                }
            }
            self.applied.send_replace(None);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_RETRY);
        }
    }

    async fn serve(&mut self, pause: &mut Duration) -> Broken {
        let Err(broken) = self.converse(pause).await;
        broken
    }

    async fn converse(&mut self, pause: &mut Duration) -> Result<std::convert::Infallible, Broken> {
        let stream = UnixStream::connect(&self.control).await?;
        let (read, mut write) = stream.into_split();
        let mut edge = Reader { read, received: Vec::new() };
        let Up::Hello { version, sockets, generation } = timed(edge.next()).await?? else {
            return Err(Broken::NoHello);
        };
        if version != VERSION {
            return Err(Broken::Version(version));
        }
        timed(write.write_all(&frame(&Down::Hello(Hello { version: VERSION })))).await??;
        info!(generation, held = sockets.len(), "the edge answers");
        *pause = FIRST_RETRY;
        // Generations grow over mains, so that an old acknowledgement is never taken for a new one.
        let mut generation = generation;
        self.wanted.mark_changed();
        // A new edge listens once it has a table: until then connections wait, and are not told that nothing is served here.
        let mut held = Some(sockets);
        loop {
            tokio::select! {
                changed = self.wanted.changed() => {
                    changed.map_err(|_| Broken::Finished)?;
                    let Some(table) = self.wanted.borrow_and_update().clone() else { continue };
                    generation = generation.wrapping_add(1);
                    let table = Table { generation, ..Table::clone(&table) };
                    timed(write.write_all(&frame(&Down::Table(Box::new(table))))).await??;
                    self.await_ack(&mut edge, &mut write, generation).await?;
                    if let Some(held) = held.take() {
                        self.give_sockets(&mut write, &held).await?;
                    }
                }
                said = edge.next() => match said? {
                    Up::LogFull => self.give_log(&mut write).await?,
                    Up::Hello { .. } | Up::Ack { .. } | Up::Counters(_) => {}
                },
            }
        }
    }

    async fn await_ack(&self, edge: &mut Reader, write: &mut OwnedWriteHalf, wanted: u64) -> Result<(), Broken> {
        loop {
            match timed(edge.next()).await?? {
                Up::Ack { generation, problems } if generation == wanted => {
                    self.applied.send_replace(Some(Applied { generation, problems }));
                    return Ok(());
                }
                Up::LogFull => self.give_log(write).await?,
                Up::Hello { .. } | Up::Ack { .. } | Up::Counters(_) => {}
            }
        }
    }

    /// Sends the sockets that the edge does not hold; their descriptors travel with the first byte.
    async fn give_sockets(&self, write: &mut OwnedWriteHalf, held: &[Socket]) -> io::Result<()> {
        let missing: Vec<_> =
            self.listeners.iter().filter(|(socket, _)| !held.contains(socket)).take(MAX_SOCKETS).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let bytes = frame(&Down::Listen { sockets: missing.iter().map(|(socket, _)| socket.clone()).collect() });
        let descriptors: Vec<_> = missing.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
        send_with(write, &bytes, &descriptors).await
    }

    /// Gives the edge another access log. One that asks without need gets the same file again.
    async fn give_log(&self, write: &mut OwnedWriteHalf) -> io::Result<()> {
        match (self.open_log)() {
            Ok(log) => send_with(write, &frame(&Down::Log), &[log.as_fd()]).await,
            Err(error) => {
                warn!(%error, "the access log of the edge grows: there is no other");
                Ok(())
            }
        }
    }
}

/// Sends a frame; the descriptors travel with its first byte.
async fn send_with(write: &mut OwnedWriteHalf, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let stream: &UnixStream = write.as_ref();
    let send = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
    };
    let sent = timed(stream.async_io(Interest::WRITABLE, send)).await??;
    timed(write.write_all(&bytes[sent..])).await?
}

/// No edge is there, or not yet: its start takes a moment, and whoever starts it says so.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

async fn timed<T>(exchange: impl Future<Output = T>) -> io::Result<T> {
    timeout(ANSWER, exchange).await.map_err(|_| io::ErrorKind::TimedOut.into())
}

struct Reader {
    read: OwnedReadHalf,
    received: Vec<u8>,
}

impl Reader {
    /// The next frame. Cancellation safe.
    async fn next(&mut self) -> Result<Up, Broken> {
        loop {
            if let Some(said) = take(&mut self.received, MAX_UP_FRAME)? {
                return Ok(said);
            }
            let mut buffer = [0; 4096];
            let length = self.read.read(&mut buffer).await?;
            if length == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            self.received.extend_from_slice(&buffer[..length]);
        }
    }
}
