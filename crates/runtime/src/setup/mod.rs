//! From a bundle to a running program: what the child does that a shim forks for a container, or for an exec in one.
//!
//! The child is alone in its process (one thread) and holds everything that it needs in descriptors before it enters the pod's
//! mount namespace. It reports by a socket that closes when the program is executed: `T` with a terminal, `X` right before the
//! execution, `E` and a reason when something fails. The steps follow runc's `libcontainer/rootfs_linux.go` and
//! `standard_init_linux.go` in meaning.

mod base;
mod devices;
mod fault;
mod file_system;
mod mounts;
mod path;
mod process;
mod role;
mod root;

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{Process, Spec};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

pub(crate) use base::make as make_base;
pub(crate) use role::{Role, RoleRoot, enter as enter_role};

use self::fault::{During, Fault};
use crate::bundle::Bundle;
use crate::plan::ExecPlan;
use crate::{seqpacket, sys};

/// The child's end of its standard streams.
pub(crate) enum Stdio {
    /// `None` is `/dev/null`.
    Pipes([Option<OwnedFd>; 3]),
    /// A terminal that is opened inside the container; its master goes to the parent.
    Terminal,
}

/// What to run in the fresh child.
pub(crate) enum Task<'a> {
    /// A container's init, with the pod's mount namespace to begin in.
    Init { base: BorrowedFd<'a> },
    /// Another process beside the init that `init` is a pidfd of; `plan` holds an [`ExecPlan`] as JSON.
    Exec { init: BorrowedFd<'a>, plan: OwnedFd },
}

/// Runs in the child: becomes the program, or reports why not and ends.
pub(crate) fn run(directory: &Path, task: Task<'_>, stdio: Stdio, status: OwnedFd) -> ! {
    // Whoever may look into this process from inside of a container finds nothing of the shim's: no socket, no other container's.
    let of_task = match &task {
        Task::Init { base } => vec![base.as_raw_fd()],
        Task::Exec { init, plan } => vec![init.as_raw_fd(), plan.as_raw_fd()],
    };
    let of_stdio = match &stdio {
        Stdio::Pipes(pipes) => pipes.iter().flatten().map(AsRawFd::as_raw_fd).collect(),
        Stdio::Terminal => Vec::new(),
    };
    sys::close_all_but(&[of_task, of_stdio, vec![status.as_raw_fd()]].concat());
    let outcome = match task {
        Task::Init { base } => init(directory, base, stdio, status.as_fd()),
        Task::Exec { init, plan } => exec(directory, init, plan, stdio, status.as_fd()),
    };
    let Err(fault) = outcome;
    // Nobody is left to tell when this fails: the parent then reports a child that died during set-up.
    seqpacket::send(status.as_fd(), format!("E{fault}").as_bytes(), &[]).ok();
    sys::exit_now(128)
}

fn init(
    directory: &Path,
    base: BorrowedFd<'_>,
    stdio: Stdio,
    status: BorrowedFd<'_>,
) -> Result<std::convert::Infallible, Fault> {
    let loaded = Loaded::read(directory)?;
    let spec = &loaded.spec;
    let process = spec.process().as_ref().ok_or_else(|| Fault("config.json has no process".to_owned()))?;
    begin(&loaded.bundle, process)?;

    // Still among the host's mounts: everything that comes from there becomes a descriptor.
    let tree = root::open(&loaded.bundle.plan.rootfs)?;
    let volumes = mounts::open_sources(spec.mounts().as_deref().unwrap_or_default())?;
    let linux = spec.linux().as_ref();
    let masked = linux.and_then(|linux| linux.masked_paths().clone()).unwrap_or_default();
    let masks = mounts::open_masks(masked.len())?;
    let null = open_null()?;

    // From here on there is nothing but the pod's own mounts.
    rustix::thread::move_into_link_name_space(base, Some(rustix::thread::LinkNameSpaceType::Mount))
        .during(|| "enter the pod's mount namespace".to_owned())?;
    sys::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWCGROUP).during(|| "make a mount namespace".to_owned())?;
    rustix::process::umask(Mode::empty());
    root::attach(tree.as_fd())?;
    let root = tree.as_fd();
    mounts::mount_all(root, volumes)?;
    devices::make(root, linux.and_then(|linux| linux.devices().as_deref()).unwrap_or_default())?;
    let stdio = match stdio {
        Stdio::Terminal => process::Streams::Terminal(devices::open_terminal(root, status, true)?),
        Stdio::Pipes(pipes) => process::Streams::Pipes(pipes),
    };
    mounts::make_directory(root, process.cwd())?;
    mounts::mask(root, &masked, masks)?;
    let readonly = linux.and_then(|linux| linux.readonly_paths().clone()).unwrap_or_default();
    mounts::make_read_only(root, &readonly)?;
    let propagation = linux.and_then(|linux| linux.rootfs_propagation().clone());
    let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    root::finish(root, read_only, propagation.as_deref())?;
    drop(tree);
    process::execute(process, stdio, null, &loaded.filter, status)
}

fn exec(
    directory: &Path,
    init: BorrowedFd<'_>,
    plan: OwnedFd,
    stdio: Stdio,
    status: BorrowedFd<'_>,
) -> Result<std::convert::Infallible, Fault> {
    let loaded = Loaded::read(directory)?;
    let mut text = String::new();
    File::from(plan).read_to_string(&mut text).during(|| "read the exec's plan".to_owned())?;
    let plan: ExecPlan = serde_json::from_str(&text).during(|| "read the exec's plan".to_owned())?;
    let mut process = loaded.spec.process().clone().ok_or_else(|| Fault("config.json has no process".to_owned()))?;
    process.set_args(Some(plan.args)).set_terminal(Some(plan.tty));
    begin(&loaded.bundle, &process)?;
    let null = open_null()?;
    rustix::thread::move_into_thread_name_spaces(init, ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::CONTROL_GROUP)
        .during(|| "enter the container's namespaces".to_owned())?;
    let stdio = match stdio {
        Stdio::Terminal => {
            let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .during(|| "open the container's root".to_owned())?;
            process::Streams::Terminal(devices::open_terminal(root.as_fd(), status, false)?)
        }
        Stdio::Pipes(pipes) => process::Streams::Pipes(pipes),
    };
    process::execute(&process, stdio, null, &loaded.filter, status)
}

/// A bundle as the runtime wrote it.
struct Loaded {
    spec: Spec,
    bundle: Bundle,
    filter: Vec<u64>,
}

impl Loaded {
    fn read(directory: &Path) -> Result<Loaded, Fault> {
        let read = |name: &str| fs::read(directory.join(name)).during(|| format!("read {name}"));
        let filter = read(crate::bundle::FILTER)?;
        Ok(Loaded {
            spec: serde_json::from_slice(&read(crate::bundle::CONFIG)?).during(|| "read config.json".to_owned())?,
            bundle: serde_json::from_slice(&read(crate::bundle::BUNDLE)?).during(|| "read bundle.json".to_owned())?,
            filter: filter
                .chunks_exact(8)
                .map(|bytes| u64::from_ne_bytes(bytes.try_into().expect("chunks of eight")))
                .collect(),
        })
    }
}

/// What every child does first: a session of its own, signals as a program expects them, its cgroup.
fn begin(bundle: &Bundle, process: &Process) -> Result<(), Fault> {
    sys::reset_signals();
    rustix::process::setsid().during(|| "start a session".to_owned())?;
    // A process that shares the pid namespace must not read this one's memory or descriptors before the program is executed.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .during(|| "become undumpable".to_owned())?;
    // Best effort: lowering it takes CAP_SYS_RESOURCE, which a nested machine may lack.
    fs::write("/proc/self/oom_score_adj", process.oom_score_adj().unwrap_or(0).to_string()).ok();
    if !bundle.cgroup_v2 {
        for directory in &bundle.cgroups {
            fs::write(directory.join("cgroup.procs"), "0")
                .during(|| format!("enter cgroup {}", directory.display()))?;
        }
    }
    Ok(())
}

fn open_null() -> Result<OwnedFd, Fault> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).during(|| "open /dev/null".to_owned())
}
