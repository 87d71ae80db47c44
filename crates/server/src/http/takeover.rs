//! Watches over HTTP/1.1 leave hyper: once such an answer has begun, its connection sends the events itself.
//!
//! hyper keeps 8 KiB to read into and 8 KiB to write from for as long as a connection lives: most of what an idle watch would cost.
//! hyper sends the head and what is there at once; then [`Handing`] takes the stream from under it and ends it with an error. What
//! remains is a body in chunks (RFC 9112, section 7.1) on a connection that closes behind it, as the head has said.

use std::io::{self, IoSlice};
use std::iter::once;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use hyper::body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Pieces of a body, each of parts that go in one write, though they are not copied into one.
pub type Events = Pin<Box<dyn Stream<Item = Vec<Bytes>> + Send>>;

/// The parts of a piece as one, for whoever cannot send them otherwise.
pub fn joined(mut piece: Vec<Bytes>) -> Bytes {
    if piece.len() == 1 { piece.remove(0) } else { piece.concat().into() }
}

/// A connection's stream, which hyper has until a watch takes it.
pub struct Lent<S>(Arc<Mutex<State<S>>>);

struct State<S> {
    stream: Option<S>,
    /// Whether the stream has taken everything that hyper had when it last flushed.
    flushed: bool,
    events: Option<Events>,
}

/// Lets a watch take the connection that it came over. Part of its request.
#[derive(Clone)]
pub struct Takeover(Arc<dyn Lender>);

trait Lender: Send + Sync {
    fn begin(&self);
    /// Takes stream and events, when everything before them was flushed.
    fn take(&self, events: &mut Option<Events>) -> bool;
}

impl<S: Send + 'static> Lent<S> {
    pub fn new(stream: S) -> Self {
        Self(Arc::new(Mutex::new(State { stream: Some(stream), flushed: false, events: None })))
    }

    /// For a request that comes over this stream.
    pub fn takeover(&self) -> Takeover {
        Takeover(self.0.clone())
    }

    /// Another hold of the same stream.
    pub fn share(&self) -> Self {
        Self(self.0.clone())
    }

    /// The stream and what is to go over it, when a watch has taken it.
    pub fn taken(&self) -> Option<(S, Events)> {
        let mut state = lock(&self.0);
        let events = state.events.take()?;
        Some((state.stream.take()?, events))
    }
}

fn lock<S>(state: &Mutex<State<S>>) -> MutexGuard<'_, State<S>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Send> Lender for Mutex<State<S>> {
    fn begin(&self) {
        lock(self).flushed = false;
    }

    fn take(&self, events: &mut Option<Events>) -> bool {
        let mut state = lock(self);
        if state.flushed {
            state.events = events.take();
        }
        state.flushed
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lent<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut lock(&self.0).stream {
            Some(stream) => Pin::new(stream).poll_read(cx, buf),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lent<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.0);
        state.flushed = false;
        match &mut state.stream {
            Some(stream) => Pin::new(stream).poll_write(cx, buf),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.0);
        state.flushed = false;
        match &mut state.stream {
            Some(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        lock(&self.0).stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = lock(&self.0);
        if let Some(stream) = &mut state.stream {
            ready!(Pin::new(stream).poll_flush(cx))?;
        }
        // hyper flushes only when it has nothing left to write.
        state.flushed = true;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut lock(&self.0).stream {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

/// The body of a watch, for as long as hyper has the connection.
pub struct Handing {
    events: Option<Events>,
    takeover: Takeover,
    begun: bool,
}

impl Handing {
    pub fn new(events: Events, takeover: Takeover) -> Self {
        Self { events: Some(events), takeover, begun: false }
    }
}

impl Body for Handing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        if !std::mem::replace(&mut this.begun, true) {
            // The head is in hyper's buffer by now: what was flushed before does not count.
            this.takeover.0.begin();
        }
        if this.takeover.0.take(&mut this.events) {
            return Poll::Ready(Some(Err(io::Error::other("the connection serves a watch from here on"))));
        }
        let Some(events) = &mut this.events else { return Poll::Ready(None) };
        events.poll_next_unpin(cx).map(|piece| piece.map(|piece| Ok(Frame::data(joined(piece)))))
    }
}

/// Sends the rest of a watch, until it is over or the client goes.
///
/// # Errors
/// When the connection breaks.
pub async fn tell<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, mut events: Events) -> io::Result<()> {
    let mut heard = [0];
    loop {
        let piece = tokio::select! {
            piece = events.next() => piece,
            // There is nothing to be said to a watch: its client is heard only when it goes.
            heard = stream.read(&mut heard) => match heard? {
                0 => return Ok(()),
                _ => continue,
            },
        };
        let Some(piece) = piece else { break };
        // Boxed, because the task keeps room for it while nothing is sent.
        Box::pin(send(&mut stream, &piece)).await?;
    }
    stream.write_all(b"0\r\n\r\n").await?;
    stream.shutdown().await
}

/// Sends a piece as one chunk.
async fn send<S: AsyncWrite + Unpin>(stream: &mut S, piece: &[Bytes]) -> io::Result<()> {
    let head = format!("{:x}\r\n", piece.iter().map(Bytes::len).sum::<usize>());
    let parts = piece.iter().map(|part| &part[..]);
    let mut slices: Vec<_> = once(head.as_bytes()).chain(parts).chain(once(&b"\r\n"[..])).map(IoSlice::new).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        match stream.write_vectored(rest).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => IoSlice::advance_slices(&mut rest, written),
        }
    }
    stream.flush().await
}
