//! Commands in containers whose output the node itself reads: exec probes and lifecycle hooks.

use std::os::fd::OwnedFd;
use std::time::Duration;

use runtime::Runtime;
use runtime::plan::{ExecPlan, Streams};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// What is kept of a command's output; the rest is read and thrown away. Source: pkg/probe/exec, `maxReadLength`.
const MAX_OUTPUT: usize = 10 << 10;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Exited {
        code: i32,
        output: String,
    },
    /// It was killed because its time was over.
    TimedOut,
    /// It could not be run.
    Failed(String),
}

/// Runs a command to its end. Standard output and error are read together.
pub async fn run(runtime: &Runtime, pod: &str, container: &str, args: Vec<String>, timeout: Option<Duration>) -> Ended {
    let plan = ExecPlan { args, stdin: false, tty: false };
    let io = match runtime.exec(pod, container, plan).await {
        Ok(io) => io,
        Err(error) => return Ended::Failed(error.to_string()),
    };
    let Streams::Pipes { stdout, stderr, .. } = io.streams else {
        return Ended::Failed("the runtime answered with a terminal".to_owned());
    };
    let work = async {
        let (out, err) = tokio::join!(read(stdout), read(stderr));
        let output = String::from_utf8_lossy(&[out, err].concat()).into_owned();
        match io.exit.await {
            Ok(code) => Ended::Exited { code, output },
            Err(_) => Ended::Failed("the container's shim died".to_owned()),
        }
    };
    let Some(timeout) = timeout else { return work.await };
    match tokio::time::timeout(timeout, work).await {
        Ok(ended) => ended,
        Err(_) => {
            if let Err(error) = pidfd_send_signal(&io.pidfd, Signal::KILL) {
                tracing::debug!(%error, "the command ended by itself");
            }
            Ended::TimedOut
        }
    }
}

async fn read(from: Option<OwnedFd>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(from) = from else { return kept };
    let mut from = match pipe::Receiver::from_owned_fd(from) {
        Ok(from) => from,
        Err(error) => {
            tracing::warn!(%error, "a command's output cannot be read");
            return kept;
        }
    };
    let mut buffer = [0; 4096];
    // An error ends the output as its end does.
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let room = MAX_OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
    kept
}
