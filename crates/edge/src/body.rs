//! Bodies on their way through: the request's with its limit and its progress, the answer's with its time-out and its log line.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, timeout};
use tokio_util::task::TaskTracker;

use crate::access_log::Line;
use crate::http::Running;
use crate::pool::Lease;

/// Source: nginx `lingering_timeout`.
const LINGERING_TIME: Duration = Duration::from_secs(5);

/// Why a body ends before its end. It reaches nobody but hyper, which closes the connection.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("the body is longer than the limit")]
    TooLong,
    #[error("the application sends nothing")]
    Silent,
    #[error("the connection broke")]
    Hyper(#[from] hyper::Error),
}

/// Where the sending of a request's body stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// The application has to take what there is.
    Sending = 0,
    /// The client has to send more.
    Receiving = 1,
    /// All is sent: the application has to answer.
    Sent = 2,
}

/// How far a request's body is, for whoever waits for the answer.
#[derive(Debug)]
pub struct Progress {
    stage: AtomicU8,
    too_long: AtomicBool,
    client_gone: AtomicBool,
    received: AtomicU64,
    start: Instant,
    /// Milliseconds from `start` to the last step.
    step: AtomicU64,
    turned: Notify,
}

impl Progress {
    fn new(stage: Stage) -> Self {
        Self {
            stage: AtomicU8::new(stage as u8),
            too_long: AtomicBool::new(false),
            client_gone: AtomicBool::new(false),
            received: AtomicU64::new(0),
            start: Instant::now(),
            step: AtomicU64::new(0),
            turned: Notify::new(),
        }
    }

    fn advance(&self, stage: Stage) {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.step.store(elapsed, Ordering::Relaxed);
        if self.stage.swap(stage as u8, Ordering::Relaxed) != stage as u8 {
            self.turned.notify_one();
        }
    }

    /// Waits until the stage is another. Cancellation safe.
    pub async fn turned(&self) {
        self.turned.notified().await;
    }

    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Sending,
            1 => Stage::Receiving,
            _ => Stage::Sent,
        }
    }

    /// When the last step was.
    pub fn last_step(&self) -> Instant {
        self.start + Duration::from_millis(self.step.load(Ordering::Relaxed))
    }

    /// Begins to wait for the application anew, such as for the next endpoint.
    pub fn restart(&self) {
        self.advance(self.stage());
    }

    pub fn is_too_long(&self) -> bool {
        self.too_long.load(Ordering::Relaxed)
    }

    pub fn is_client_gone(&self) -> bool {
        self.client_gone.load(Ordering::Relaxed)
    }

    /// Bytes received from the client.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// A request's body on its way to the application.
#[derive(Debug)]
pub struct RequestBody {
    inner: Option<Incoming>,
    /// Bytes; 0 is no limit.
    limit: u64,
    progress: Arc<Progress>,
    /// For a body that the application does not take.
    lingering: Option<TaskTracker>,
}

impl RequestBody {
    /// With `lingering`, what the application does not take is read all the same, so that the client sees the answer.
    pub fn new(inner: Incoming, limit: u64, lingering: Option<TaskTracker>) -> (Self, Arc<Progress>) {
        let stage = if inner.is_end_stream() { Stage::Sent } else { Stage::Receiving };
        let progress = Arc::new(Progress::new(stage));
        (Self { inner: Some(inner), limit, progress: progress.clone(), lingering }, progress)
    }

    /// The body of the same request once more, for one that has none.
    pub fn none(progress: Arc<Progress>) -> Self {
        Self { inner: None, limit: 0, progress, lingering: None }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let (Some(body), Some(tasks)) = (self.inner.take(), self.lingering.take())
            && !body.is_end_stream()
            && !self.progress.is_client_gone()
        {
            linger(body, &tasks);
        }
    }
}

/// Reads on for a while: a connection that is closed with bytes unread is reset, and the answer lost.
///
/// Source: nginx `lingering_close`.
pub fn linger(mut body: Incoming, tasks: &TaskTracker) {
    // Without a runtime the process is about to end.
    let Ok(runtime) = Handle::try_current() else { return };
    let reading = timeout(LINGERING_TIME, async move { while let Some(Ok(_)) = body.frame().await {} });
    tasks.spawn_on(reading, &runtime);
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        let Poll::Ready(frame) = Pin::new(&mut *inner).poll_frame(cx) else {
            if this.progress.stage() != Stage::Receiving {
                this.progress.advance(Stage::Receiving);
            }
            return Poll::Pending;
        };
        match frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                let received = this.progress.received.fetch_add(length, Ordering::Relaxed) + length;
                if this.limit > 0 && received > this.limit {
                    this.progress.too_long.store(true, Ordering::Relaxed);
                    return Poll::Ready(Some(Err(Broken::TooLong)));
                }
                this.progress.advance(if inner.is_end_stream() { Stage::Sent } else { Stage::Sending });
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                this.progress.client_gone.store(true, Ordering::Relaxed);
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                this.progress.advance(Stage::Sent);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// An answer's body on its way to the client. Its end, however it comes, is the request's end: the log line is written and the
/// application's connection is free for the next.
pub struct AnswerBody {
    source: Source,
    line: Option<Box<Line>>,
    /// Dropped with the answer.
    #[allow(dead_code, reason = "held for its Drop")]
    running: Option<Running>,
}

enum Source {
    Own(Full<Bytes>),
    Application { body: Incoming, lease: Option<Lease>, patience: Patience },
}

/// Waits at most so long between two frames.
struct Patience {
    limit: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl AnswerBody {
    /// A body of the edge's own.
    pub fn own(text: impl Into<Bytes>, line: Option<Box<Line>>) -> Self {
        Self { source: Source::Own(Full::new(text.into())), line, running: None }
    }

    pub fn application(body: Incoming, lease: Lease, read_timeout: Duration, line: Box<Line>) -> Self {
        let patience = Patience { limit: read_timeout, sleep: None };
        Self { source: Source::Application { body, lease: Some(lease), patience }, line: Some(line), running: None }
    }

    /// Counts as running until the answer has ended.
    pub fn holding(mut self, running: Running) -> Self {
        self.running = Some(running);
        self
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Own(body) => {
                ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(|never| match never {}))
            }
            Source::Application { body, lease, patience } => match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    patience.sleep = None;
                    Some(Ok(frame))
                }
                Poll::Ready(Some(Err(error))) => {
                    *lease = None;
                    Some(Err(error.into()))
                }
                Poll::Ready(None) => {
                    if let Some(lease) = lease.take() {
                        lease.give_back();
                    }
                    None
                }
                Poll::Pending => {
                    let sleep = patience.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience.limit)));
                    ready!(sleep.as_mut().poll(cx));
                    *lease = None;
                    Some(Err(Broken::Silent))
                }
            },
        };
        if let (Some(line), Some(Ok(frame))) = (&mut this.line, &frame) {
            line.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(body) => body.is_end_stream(),
            Source::Application { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(body) => body.size_hint(),
            Source::Application { body, .. } => body.size_hint(),
        }
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        // hyper does not ask for the end of a body whose length it knows.
        if let Source::Application { body, lease, .. } = &mut self.source
            && body.is_end_stream()
            && let Some(lease) = lease.take()
        {
            lease.give_back();
        }
    }
}
