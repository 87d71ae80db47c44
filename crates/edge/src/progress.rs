//! How far a request's body is on its way to the application.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

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
    pub fn new(stage: Stage) -> Self {
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

    /// Notes a step.
    pub fn advance(&self, stage: Stage) {
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

    pub fn lost_client(&self) {
        self.client_gone.store(true, Ordering::Relaxed);
    }

    /// Counts bytes from the client; false when there are more than `limit` now. 0 is no limit.
    pub fn receive(&self, bytes: u64, limit: u64) -> bool {
        let received = self.received.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let fits = limit == 0 || received <= limit;
        self.too_long.fetch_or(!fits, Ordering::Relaxed);
        fits
    }

    /// Bytes received from the client.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}
