//! Confined processes of this binary that are no containers: the edge, and short-lived children that handle hostile bytes.
//!
//! Main spawns `<binary> <args…>`; the child calls [`enter`] before anything else, while it has one thread, and has from then on
//! only what the plan gave it. No program is executed afterwards, so the filter need not allow `execve`.

use std::os::fd::OwnedFd;

use crate::Error;

/// What a confined process may do and have.
#[derive(Debug)]
pub struct ConfinedPlan {
    /// Arguments for the binary, e.g. `["edge"]`. Its environment is empty.
    pub args: Vec<String>,
    /// What it sees as `/`.
    pub root: Root,
    pub uid: u32,
    pub gid: u32,
    /// Capabilities that it keeps, by name (`CAP_CHOWN`); usually none.
    pub capabilities: Vec<String>,
    /// System calls that it may make, by name, besides those that every Rust program needs ([`BASE_SYSCALLS`]); any other kills it
    /// when it should never happen (`execve`, `ptrace`, `mount` …) and answers EPERM else.
    pub syscalls: Vec<String>,
    /// False: an empty network namespace of its own.
    pub host_network: bool,
    /// Bytes; enforced by a cgroup `name` below the runtime's root.
    pub memory_limit: Option<u64>,
    /// Name of its cgroup, unique on this machine, e.g. `edge`.
    pub name: String,
    /// Given to the child in this order, see [`enter`].
    pub fds: Vec<OwnedFd>,
    /// Its standard output and error; `None` is `/dev/null`.
    pub stderr: Option<OwnedFd>,
}

/// The root of a confined process.
#[derive(Debug)]
pub enum Root {
    /// An empty read-only tmpfs.
    Empty,
    /// This directory, writable, nosuid, nodev and noexec. Nothing above it can be reached.
    Directory(OwnedFd),
}

/// A running confined process. Dropping it does not end the process.
#[derive(Debug)]
pub struct Confined {
    pub pid: u32,
    /// Readable when it ends.
    pub pidfd: OwnedFd,
}

impl Confined {
    /// Waits until the process ends: its exit code, 128 + signal when killed.
    ///
    /// # Errors
    /// When it is not a child of this process (it was adopted).
    pub async fn wait(&self) -> std::io::Result<i32> {
        todo!()
    }

    /// Sends a signal; a dead process is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, signal: i32) -> std::io::Result<()> {
        todo!("{signal}")
    }
}

impl crate::Runtime {
    /// Starts a confined process.
    ///
    /// # Errors
    /// When it cannot be spawned. What goes wrong inside [`enter`] ends the child with code 125 and a line on its stderr.
    pub fn spawn_confined(&self, plan: ConfinedPlan) -> Result<Confined, Error> {
        todo!("{plan:?}")
    }
}

/// Confines this process by the plan that its parent passed, and returns the plan's `fds`.
///
/// Must be the first thing that the process does: it has one thread and has opened nothing.
///
/// # Errors
/// When it was not started by [`Runtime::spawn_confined`](crate::Runtime::spawn_confined), or a step is refused. The caller must
/// exit: the process may be half confined.
pub fn enter() -> Result<Vec<OwnedFd>, Error> {
    todo!()
}

/// What the allocator, threads, time and plain reading and writing need.
pub const BASE_SYSCALLS: &[&str] = &[];
