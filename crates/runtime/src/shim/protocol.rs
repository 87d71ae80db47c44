//! What main and a shim say to each other: JSON, one message per packet of a `SOCK_SEQPACKET` socket.
//!
//! A shim outlives the main process that started it, upgrades included. JSON lets either side be older: unknown fields are ignored,
//! and `Hello` carries the version for what cannot be added that way. Descriptors travel beside a message; which ones is said here.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::cgroup::OomCounter;
use crate::plan::{AttachPlan, ContainerState, Exit, LogLimits, Stdin};

/// The version of this protocol.
pub(crate) const VERSION: u32 = 1;

/// Main asks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// Comes back in the reply.
    pub seq: u64,
    pub op: Op,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Op {
    /// First on every connection; notices follow from then on.
    Hello {
        version: u32,
    },
    Start(Start),
    /// With a memory file that holds the `ExecPlan`, then, unless `terminal`, the ends that become stdin (if `stdin`), stdout, stderr.
    Exec {
        id: String,
        terminal: bool,
        stdin: bool,
    },
    /// With the ends that take stdout and stderr, as far as asked for.
    Attach {
        id: String,
        plan: AttachPlan,
    },
    Signal {
        id: String,
        signal: i32,
    },
    ReopenLog {
        id: String,
    },
    /// Forgets a container that does not run.
    Forget {
        id: String,
    },
    /// The shim ends, with all that is left of its pod.
    Shutdown,
}

/// What a shim must know of a container to start it; the rest it leaves to the child, which reads the bundle.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub id: String,
    pub terminal: bool,
    pub stdin: Stdin,
    /// The running container whose process namespace is entered.
    #[serde(default)]
    pub pid_of: Option<String>,
    /// Relative to the pod's log directory.
    pub log_path: Option<PathBuf>,
    pub log_limits: LogLimits,
    /// One on version 2; there the child is forked into it.
    pub cgroups: Vec<PathBuf>,
    pub cgroup_v2: bool,
    pub oom: Option<OomCounter>,
}

/// A shim answers, or tells.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    Reply { seq: u64, result: Result<Answer, Failure> },
    Exited { id: String, exit: Exit },
    ExecExited { seq: u64, code: i32 },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    /// With the network namespace, unless it is the host's.
    Welcome {
        version: u32,
        pid: u32,
        containers: Vec<(String, ContainerState)>,
    },
    Started {
        pid: u32,
        at: SystemTime,
    },
    /// With a pidfd and, if asked for, the terminal.
    Executing {
        pid: u32,
    },
    /// With the input side, if stdin was asked for or the container has a terminal.
    Attached,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    UnknownContainer,
    NotRunning,
    /// A program could not be started.
    Start(String),
    /// A stream that the container does not have.
    Stream(String),
    Other(String),
}
