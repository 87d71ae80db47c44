//! A request's body on its way through: its limit, its progress, and what happens to the rest that nobody takes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::progress::{Progress, Stage};

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
                if !this.progress.receive(length, this.limit) {
                    return Poll::Ready(Some(Err(Broken::TooLong)));
                }
                this.progress.advance(if inner.is_end_stream() { Stage::Sent } else { Stage::Sending });
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                this.progress.lost_client();
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
