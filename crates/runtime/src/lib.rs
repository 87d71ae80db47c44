//! The container core: pods as namespaces and cgroups, containers as processes in them, one shim process per pod.
//!
//! Main never forks. It spawns a shim for each pod, which holds the pod's namespaces, is the parent of its containers, and owns
//! their logs, terminals and exit codes; main may die at any moment and the next one adopts the shims. Containers follow the OCI
//! runtime specification (`opencontainers/runtime-spec`, config.md and config-linux.md); names of cgroups follow the kubelet's
//! (`pkg/kubelet/cm/pod_container_manager_linux.go`), logs its format (`pkg/kubelet/kuberuntime/logs`).

mod bpf;
mod bundle;
pub mod capability;
mod cgroup;
pub mod confine;
mod containers;
pub mod defaults;
mod device_program;
pub mod error;
#[doc(hidden)]
pub mod fuzz;
mod link;
mod mount_options;
pub mod plan;
pub mod pods;
pub mod seccomp;
mod seqpacket;
mod setup;
pub mod shim;
mod sys;
mod syscall_table;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cgroup::Cgroups;
use crate::error::{Error, io_error};
use crate::plan::Event;
use crate::pods::{PodHandle, Step};

/// Where the runtime keeps its state, and which program its shims run.
#[derive(Clone, Debug)]
pub struct Config {
    /// A directory on a tmpfs, e.g. `/run/coracle/pods`: a reboot starts afresh. Made with mode 0700.
    pub run_dir: PathBuf,
    /// The delegated cgroup below the root of each hierarchy, e.g. `coracle.slice`. Made when missing.
    pub cgroup_root: PathBuf,
    /// The executable whose `shim` subcommand is [`shim::main`]: usually `/proc/self/exe`.
    pub binary: PathBuf,
    /// Called after each step of [`Runtime::create_pod`]: tests end the process here. `None` otherwise.
    pub after_step: Option<fn(Step)>,
}

/// The pods of this machine. Cheap to clone; every clone speaks for the same pods.
///
/// No pod is lost by dropping a future half-way: what exists is found by [`Runtime::adopt`]. When the last clone is dropped, shims and
/// containers go on.
#[derive(Clone, Debug)]
pub struct Runtime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    cgroups: Cgroups,
    /// A read-only mount of the binary that is attached nowhere: what runs from it cannot write to it (CVE-2019-5736).
    binary: OwnedFd,
    events: mpsc::Sender<Event>,
    pods: Mutex<BTreeMap<String, Arc<PodHandle>>>,
    /// One per living shim; they end when this is dropped.
    tasks: Mutex<JoinSet<()>>,
}

/// Events that may wait before shims are made to wait: enough for every container of a full node to end at once.
const EVENTS: usize = 1024;

impl Inner {
    fn binary_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.binary.as_raw_fd()))
    }
}

impl Runtime {
    /// Opens the run directory and mounts the binary read-only for the shims. Touches no pod.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When a cgroup hierarchy that is needed (cpu, memory, pids) is missing, or a directory cannot be made.
    pub fn new(config: Config) -> Result<(Runtime, mpsc::Receiver<Event>), Error> {
        let what = |what: &str| io_error(what.to_owned());
        pods::make_run_dir(&config.run_dir).map_err(what("make the run directory"))?;
        let cgroups = Cgroups::open(&config.cgroup_root).map_err(what("open the control groups"))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let binary = rustix::mount::open_tree(CWD, &config.binary, flags)
            .map_err(|error| what("open the binary for the shims")(error.into()))?;
        let read_only = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        sys::mount_setattr(binary.as_fd(), false, sys::MountAttr { set: read_only, ..Default::default() })
            .map_err(what("make the binary read-only for the shims"))?;
        let (events, receiver) = mpsc::channel(EVENTS);
        let inner = Inner { config, cgroups, binary, events, pods: Mutex::default(), tasks: Mutex::default() };
        Ok((Runtime { inner: Arc::new(inner) }, receiver))
    }

    /// The pod's network namespace, duplicated; `None` with host network.
    ///
    /// # Errors
    /// [`Error::UnknownPod`].
    pub fn netns(&self, pod: &str) -> Result<Option<OwnedFd>, Error> {
        let network = self.pod(pod)?.network.get().map(OwnedFd::try_clone).transpose();
        network.map_err(io_error(format!("duplicate the network namespace of pod {pod}")))
    }

    /// Removes the delegated cgroup and all below it, unless there are processes in it. Blocks. What is started later makes it anew
    /// only by [`Runtime::new`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_cgroups(&self) -> Result<(), Error> {
        self.inner
            .cgroups
            .remove_if_empty(std::path::Path::new(""))
            .map_err(io_error("remove the control groups".to_owned()))
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Arc<PodHandle>>> {
        // Nothing that holds this lock can panic half-way through a change.
        self.inner.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pod(&self, uid: &str) -> Result<Arc<PodHandle>, Error> {
        self.pods().get(uid).cloned().ok_or_else(|| Error::UnknownPod(uid.to_owned()))
    }
}

/// Tells a terminal its size.
///
/// # Errors
/// When `terminal` is none, or its other side is closed.
pub fn resize(terminal: &impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// A fresh container id: 64 hexadecimal digits.
///
/// # Panics
/// When the kernel has no random numbers, which it always has once it is up.
#[must_use]
pub fn new_id() -> String {
    let mut bytes = [0u8; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).expect("the kernel has random numbers");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
