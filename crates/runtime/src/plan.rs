//! What to run: plans of pods, containers and processes, as the node and the CRI server hand them to the runtime.
//!
//! A container's plan is an OCI `config.json` (runtime-spec 1.2) with what that format has no word for: the layers of its root,
//! its log and its standard input. Values are complete and resolved: the runtime adds no default of its own to a plan.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::SystemTime;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// A pod's sandbox: what its containers share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodPlan {
    /// The Pod's `metadata.uid`; the key of the pod in every call. Letters, digits, `-` and `.`, at most 63 of them.
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// Host name inside the pod's UTS namespace. Ignored with [`Network::Host`], where the pod has the host's.
    pub hostname: String,
    pub network: Network,
    pub ipc: Ipc,
    pub pid: PidMode,
    /// Decides the parent of the pod's cgroup: `kubepods`, `kubepods/burstable` or `kubepods/besteffort`.
    pub qos: Qos,
    /// Limits of the pod's cgroup: the sums over its containers, as the kubelet computes them.
    pub resources: Resources,
    /// Written into the pod's namespaces before any container starts. Only namespaced sysctls are accepted.
    pub sysctls: BTreeMap<String, String>,
    /// `/var/log/pods/<ns>_<name>_<uid>`; created with mode 0755.
    pub log_dir: PathBuf,
    /// Opaque to the runtime; given back by [`Runtime::adopt`](crate::Runtime::adopt).
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// A network namespace of the pod's own, empty but for `lo`, which is up.
    Pod,
    Host,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ipc {
    Pod,
    Host,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidMode {
    /// Each container has its own process namespace.
    Container,
    /// `shareProcessNamespace: true`: one for the pod, with a pause process as its init.
    Pod,
    Host,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// Limits of one cgroup; `None` leaves the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// cgroup v1's shares, 2 to 262144: `milli * 1024 / 1000`. Becomes `cpu.weight` on v2: 1 CPU is 100 and 100m 17 for a
    /// container, 39 and 4 for a pod.
    pub cpu_shares: Option<u64>,
    /// Microseconds in each [`CPU_PERIOD`] of 100 ms: `milli * 100`, at least 1000.
    pub cpu_quota: Option<u64>,
    /// Bytes; swap is not granted on top.
    pub memory_limit: Option<u64>,
    pub pids_limit: Option<u64>,
}

/// The CFS period in microseconds. Source: kubelet `cm/helpers_linux.go`, `QuotaPeriod`.
pub const CPU_PERIOD: u64 = 100_000;

/// A container of a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// 64 hexadecimal digits, see [`new_id`].
    pub id: String,
    pub name: String,
    pub attempt: u32,
    /// The OCI configuration. `root.path` is ignored in favour of `rootfs`; `hostname`, `linux.namespaces` and `linux.cgroupsPath`
    /// are the pod's, set by the runtime. Hooks, user namespaces, Intel RDT and the like are refused by name, never ignored. A bind
    /// with the option `x-coracle.subpath=PATH` is of that path inside its source, which it cannot leave. A tmpfs on `/dev/shm` with
    /// source `shm` is the pod's shared memory. Stored beside the plan, as `config.json`.
    #[serde(skip)]
    pub spec: Spec,
    pub rootfs: Rootfs,
    /// Relative to the pod's `log_dir`, e.g. `app/0.log`; its directory is created. `None`: output is thrown away.
    pub log_path: Option<PathBuf>,
    pub log_limits: LogLimits,
    pub stdin: Stdin,
    /// The id of a running container whose process namespace this one shares, instead of what the pod's plan says.
    #[serde(default)]
    pub pid_of: Option<String>,
    /// On cgroup v2 the kernel kills the whole container when it runs out of memory, unless this is set.
    pub single_process_oom_kill: bool,
    /// Opaque to the runtime; given back on adoption.
    pub labels: BTreeMap<String, String>,
}

/// Where a container's root filesystem comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rootfs {
    /// An overlay mounted in the container's own mount namespace: nothing of it is visible, or stays behind, on the host.
    /// `lower` is ordered from the top layer down. `upper` and `work` lie on one filesystem and are created when missing.
    Overlay { lower: Vec<PathBuf>, upper: PathBuf, work: PathBuf },
    /// A directory used as it is.
    Directory(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// Bytes after which a log is rotated to `<path>.<n>`.
    pub max_size: u64,
    /// Files kept, the current one included; at least 2.
    pub max_files: u32,
}

impl Default for LogLimits {
    /// 10Mi and 5 files. Source: KubeletConfiguration, `containerLogMaxSize` and `containerLogMaxFiles`.
    fn default() -> Self {
        LogLimits { max_size: 10 << 20, max_files: 5 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdin {
    /// `/dev/null`.
    Null,
    /// Open as long as the container runs: `stdin: true`.
    Open,
    /// Closed when the first attached client leaves: `stdinOnce: true`.
    Once,
}

/// A process in a running container. Identity, capabilities, no_new_privs and seccomp are those of the container's init.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecPlan {
    pub args: Vec<String>,
    /// Connects a standard input; otherwise `/dev/null`.
    pub stdin: bool,
    /// Gives the process a terminal; stderr is then part of stdout.
    pub tty: bool,
}

/// A started exec, with the streams that were asked for. Dropping the descriptors hangs the process up but does not kill it.
#[derive(Debug)]
pub struct ExecIo {
    pub pid: u32,
    /// For `pidfd_send_signal`, and readable when the process ends.
    pub pidfd: OwnedFd,
    pub streams: Streams,
    /// The exit code (128 + signal for a killed process). An error when the shim died first.
    pub exit: oneshot::Receiver<i32>,
}

/// The running container's streams. `output` that is not read in time is cut off; the container never waits for it.
#[derive(Debug)]
pub struct AttachIo {
    pub streams: Streams,
}

/// Pipes, or one terminal. All are blocking descriptors with close-on-exec set.
#[derive(Debug)]
pub enum Streams {
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    },
    /// `input` is the pty's master side: write to it and resize it ([`resize`](crate::resize)). Output arrives by `output`,
    /// which for an exec is the same terminal and for attach a pipe.
    Terminal {
        input: OwnedFd,
        output: OwnedFd,
    },
}

/// Which streams an attach wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachPlan {
    /// Only for containers created with [`Stdin::Open`] or [`Stdin::Once`].
    pub stdin: bool,
    pub stdout: bool,
    /// Must be false for a container with a terminal.
    pub stderr: bool,
}

/// The state of a container, as its shim keeps it on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Its bundle is complete; it was never started.
    Created,
    Running {
        /// In the host's process namespace.
        pid: u32,
        started_at: SystemTime,
    },
    Exited(Exit),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 0 to 255; 128 + signal for a killed process, 128 when it could not be started.
    pub exit_code: i32,
    /// The signal that ended the container's init.
    pub signal: Option<i32>,
    /// The kernel killed a process of the container for want of memory, and its init died of SIGKILL.
    pub oom_killed: bool,
    /// Unset when the container could not be started.
    pub started_at: Option<SystemTime>,
    pub finished_at: SystemTime,
    /// Why it could not be started; empty otherwise.
    pub message: String,
}

/// A pod whose namespaces and shim exist.
#[derive(Debug)]
pub struct Pod {
    pub uid: String,
    pub shim_pid: u32,
    /// The pod's network namespace; `None` with [`Network::Host`].
    pub netns: Option<OwnedFd>,
}

/// A pod that outlived the main process that started it.
#[derive(Debug)]
pub struct AdoptedPod {
    pub plan: PodPlan,
    pub pod: Pod,
    pub containers: Vec<AdoptedContainer>,
}

#[derive(Debug)]
pub struct AdoptedContainer {
    pub plan: ContainerPlan,
    pub state: ContainerState,
}

/// A container's init runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// In the host's process namespace.
    pub pid: u32,
    pub at: SystemTime,
}

/// What happens without being asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Sent exactly once for each container that was started, also when it ended while no main process ran and was then adopted:
    /// in that case its state is in [`AdoptedContainer`] and no event follows.
    ContainerExited { pod: String, container: String, exit: Exit },
    /// The pod's shim died. Its processes have been killed and its containers' exits are lost; `remove_pod` cleans up.
    ShimDied { pod: String },
}

/// Usage of a cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time consumed, in nanoseconds.
    pub cpu_nanos: u64,
    /// Bytes charged, page cache included.
    pub memory_usage: u64,
    /// `memory_usage` without inactive file pages: what eviction and `kubectl top` look at.
    pub memory_working_set: u64,
    /// Anonymous memory in bytes.
    pub memory_rss: u64,
    pub memory_page_faults: u64,
    pub memory_major_page_faults: u64,
    /// Bytes; `None` when unlimited.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
}
