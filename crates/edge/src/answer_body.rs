//! An answer's body on its way through, with its time-out and its log line.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use crate::access_log::Line;
use crate::pool::Lease;
use crate::request_body::Broken;
use crate::shared::Running;

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
