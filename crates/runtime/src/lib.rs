//! The container core: pods as namespaces and cgroups, containers as processes in them, one shim process per pod.
//!
//! Main never forks. It spawns a shim for each pod, which holds the pod's namespaces, is the parent of its containers, and owns
//! their logs, terminals and exit codes; main may die at any moment and the next one adopts the shims. Containers follow the OCI
//! runtime specification (`opencontainers/runtime-spec`, config.md and config-linux.md); names of cgroups follow the kubelet's
//! (`pkg/kubelet/cm/pod_container_manager_linux.go`), logs its format (`pkg/kubelet/kuberuntime/logs`).

pub mod capability;
pub mod confine;
pub mod plan;
pub mod seccomp;
pub mod shim;

use std::path::PathBuf;

use tokio::sync::mpsc;

use crate::plan::{
    AdoptedPod, AttachIo, AttachPlan, ContainerPlan, Event, ExecIo, ExecPlan, Pod, PodPlan, Resources, Started, Stats,
};

/// Where the runtime keeps its state, and which program its shims run.
#[derive(Clone, Debug)]
pub struct Config {
    /// A directory on a tmpfs, e.g. `/run/coracle/pods`: a reboot starts afresh. Created with mode 0700.
    pub run_dir: PathBuf,
    /// The delegated cgroup below the root of each hierarchy, e.g. `coracle.slice`. Created when missing.
    pub cgroup_root: PathBuf,
    /// The executable whose `shim` subcommand is [`shim::main`]: usually `/proc/self/exe`.
    pub binary: PathBuf,
}

/// The pods of this machine. Cheap to clone; every clone speaks for the same pods.
///
/// No method is cancelled by dropping its future half-way in a way that loses a pod: what exists is found by [`Runtime::adopt`].
#[derive(Clone, Debug)]
pub struct Runtime {}

impl Runtime {
    /// Opens the run directory and mounts the binary read-only for the shims. Touches no pod.
    ///
    /// # Errors
    /// When a cgroup hierarchy that is needed (cpu, memory, pids) is missing, or a directory cannot be made.
    pub fn new(config: Config) -> Result<(Runtime, mpsc::Receiver<Event>), Error> {
        todo!("{config:?}")
    }

    /// Finds the pods of an earlier main process. Half-made pods, and pods whose shim is dead, are removed.
    ///
    /// Call it once, before anything else.
    ///
    /// # Errors
    /// When the run directory cannot be read. A single damaged pod is logged and removed.
    pub async fn adopt(&self) -> Result<Vec<AdoptedPod>, Error> {
        todo!()
    }

    /// Makes a pod: run directory, cgroup, shim, namespaces, sysctls.
    ///
    /// # Errors
    /// When a step fails; everything that the steps before it made is gone again.
    pub async fn create_pod(&self, plan: PodPlan) -> Result<Pod, Error> {
        todo!("{plan:?}")
    }

    /// Writes a container's bundle and makes its cgroup. Nothing of it runs yet.
    ///
    /// # Errors
    /// [`Error::Plan`] for a configuration that the runtime does not support.
    pub async fn create_container(&self, pod: &str, plan: ContainerPlan) -> Result<(), Error> {
        todo!("{pod} {plan:?}")
    }

    /// Runs a created container. Returns when its program has been executed.
    ///
    /// # Errors
    /// [`Error::Start`] with the reason, e.g. `exec: "foo": executable file not found in $PATH`. The container is then `Exited`
    /// with code 128, and no event is sent.
    pub async fn start_container(&self, pod: &str, container: &str) -> Result<Started, Error> {
        todo!("{pod} {container}")
    }

    /// Sends `signal` to a container's init. A container that does not run is no error.
    ///
    /// # Errors
    /// [`Error::UnknownPod`], [`Error::UnknownContainer`].
    pub async fn signal(&self, pod: &str, container: &str, signal: i32) -> Result<(), Error> {
        todo!("{pod} {container} {signal}")
    }

    /// Kills every process of a container. Its exit arrives as an event.
    ///
    /// # Errors
    /// [`Error::UnknownPod`], [`Error::UnknownContainer`].
    pub async fn kill_container(&self, pod: &str, container: &str) -> Result<(), Error> {
        todo!("{pod} {container}")
    }

    /// Forgets a container: kills what is left of it, removes its cgroup and bundle. Its log and its upper directory stay.
    ///
    /// # Errors
    /// [`Error::UnknownPod`]. An unknown container is no error.
    pub async fn remove_container(&self, pod: &str, container: &str) -> Result<(), Error> {
        todo!("{pod} {container}")
    }

    /// Runs a process in a running container.
    ///
    /// # Errors
    /// [`Error::Start`] with the reason; [`Error::NotRunning`].
    pub async fn exec(&self, pod: &str, container: &str, plan: ExecPlan) -> Result<ExecIo, Error> {
        todo!("{pod} {container} {plan:?}")
    }

    /// Connects to a running container's streams. Output begins with what the container writes next.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Plan`] for a stream that the container does not have.
    pub async fn attach(&self, pod: &str, container: &str, plan: AttachPlan) -> Result<AttachIo, Error> {
        todo!("{pod} {container} {plan:?}")
    }

    /// What a container uses now.
    ///
    /// # Errors
    /// [`Error::UnknownContainer`], or when its cgroup is gone.
    pub fn container_stats(&self, pod: &str, container: &str) -> Result<Stats, Error> {
        todo!("{pod} {container}")
    }

    /// What a pod uses now: all of its containers.
    ///
    /// # Errors
    /// [`Error::UnknownPod`], or when its cgroup is gone.
    pub fn pod_stats(&self, pod: &str) -> Result<Stats, Error> {
        todo!("{pod}")
    }

    /// Changes a container's limits while it runs.
    ///
    /// # Errors
    /// When the kernel refuses, e.g. a memory limit below what is in use.
    pub async fn update_container(&self, pod: &str, container: &str, resources: &Resources) -> Result<(), Error> {
        todo!("{pod} {container} {resources:?}")
    }

    /// Opens a container's log anew, after something else moved it. Shims rotate by themselves: this is for the CRI.
    ///
    /// # Errors
    /// [`Error::UnknownContainer`], or when the file cannot be made.
    pub async fn reopen_log(&self, pod: &str, container: &str) -> Result<(), Error> {
        todo!("{pod} {container}")
    }

    /// Kills what is left of a pod and removes its shim, namespaces, cgroups and run directory. Logs stay. Idempotent.
    ///
    /// # Errors
    /// When processes do not die (uninterruptible sleep) within 10 seconds: try again later.
    pub async fn remove_pod(&self, pod: &str) -> Result<(), Error> {
        todo!("{pod}")
    }

    /// The pod's network namespace, opened anew; `None` with host network.
    ///
    /// # Errors
    /// [`Error::UnknownPod`].
    pub fn netns(&self, pod: &str) -> Result<Option<std::os::fd::OwnedFd>, Error> {
        todo!("{pod}")
    }
}

/// Tells a terminal its size.
///
/// # Errors
/// When `terminal` is none, or its other side is closed.
pub fn resize(terminal: &impl std::os::fd::AsFd, columns: u16, rows: u16) -> std::io::Result<()> {
    let _ = (terminal, columns, rows);
    todo!()
}

/// A fresh container id: 64 hexadecimal digits.
#[must_use]
pub fn new_id() -> String {
    todo!()
}

/// Why the runtime could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be executed, or the container not set up. `reason` is fit for a Pod's status, in runc's words.
    #[error("{reason}")]
    Start { reason: String },
    /// The plan asks for what this runtime cannot or must not do.
    #[error("{field}: {problem}")]
    Plan { field: String, problem: String },
    #[error("pod {0:?} is not known to the runtime")]
    UnknownPod(String),
    #[error("container {0:?} is not known to the runtime")]
    UnknownContainer(String),
    #[error("container {0:?} is not running")]
    NotRunning(String),
    /// The pod's shim does not answer; an [`Event::ShimDied`] follows if it is dead.
    #[error("the shim of pod {0:?} does not answer")]
    Shim(String),
    /// `what` says what was being done.
    #[error("could not {what}")]
    Io { what: String, source: std::io::Error },
}
