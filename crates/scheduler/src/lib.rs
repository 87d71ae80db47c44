//! The scheduler: gives every pod a node, the most important pod first.
//!
//! [`schedule`] is a pure decision over [`cluster`], built of [`filter`]s and [`score`]s; [`shell`] feeds it and sends the
//! bindings. Follows kubernetes `pkg/scheduler`. Not built: volumes and devices.

use std::sync::Arc;

use client::{Client, Clock};
use tokio_util::sync::CancellationToken;

pub mod cluster;
mod eviction;
pub mod facts;
pub mod filter;
pub mod preemption;
pub mod queue;
pub mod schedule;
pub mod score;
mod shell;
pub mod terms;
#[cfg(test)]
mod tests;

/// What the scheduler needs from the process that runs it.
pub struct Config {
    /// Returns a client that acts as the user of this name.
    pub client_for: Arc<dyn Fn(&str) -> Client + Send + Sync>,
    pub clock: Clock,
}

/// Schedules pods until `cancel` is cancelled.
pub async fn run(config: Config, cancel: CancellationToken) {
    shell::run((config.client_for)("system:kube-scheduler"), config.clock, cancel).await;
}
