//! A process of our own that gives up everything it does not need, instead of executing a program.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};
use rustix::process::{DumpableBehavior, Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, UnshareFlags};
use serde::{Deserialize, Serialize};

use super::fault::{During, Fault};
use super::file_system::{FileSystem, attach};
use super::{base, process};
use crate::sys::{self, MountAttr};

/// What is left to the process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Role {
    pub root: RoleRoot,
    pub uid: u32,
    pub gid: u32,
    /// Bits.
    pub capabilities: u64,
    pub host_network: bool,
    pub filter: Vec<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum RoleRoot {
    Empty,
    /// The first descriptor of the plan's message.
    Directory,
}

/// Confines this process. After an error it may be half confined: it must end.
pub(crate) fn enter(role: &Role, directory: Option<OwnedFd>) -> Result<(), Fault> {
    demand_one_thread()?;
    let tree = match directory {
        Some(directory) => clone_directory(&directory)?,
        None => {
            let empty =
                FileSystem::open("tmpfs")?.with("size", "4096")?.with("nr_inodes", "1")?.with("mode", "0555")?;
            let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            empty.mount(flags)?
        }
    };
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
    if !role.host_network {
        flags |= UnshareFlags::NEWNET;
    }
    sys::unshare(flags).during(|| "make namespaces".to_owned())?;
    let old = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .during(|| "open /".to_owned())?;
    let private = MountAttr { propagation: libc::MS_PRIVATE, ..Default::default() };
    sys::mount_setattr(old.as_fd(), true, private).during(|| "make mounts private".to_owned())?;
    attach(tree.as_fd(), old.as_fd())?;
    base::pivot(tree)?;

    // No memory of it on any disk.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .during(|| "forbid core files".to_owned())?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let keep = CapabilitySet::from_bits_retain(role.capabilities);
    process::drop_bounding(keep)?;
    rustix::thread::clear_ambient_capability_set().during(|| "clear the ambient capabilities".to_owned())?;
    process::become_user(role.uid, role.gid, &[])?;
    process::keep_capabilities(keep, keep)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).during(|| "become undumpable".to_owned())?;
    rustix::thread::set_no_new_privs(true).during(|| "set no_new_privs".to_owned())?;
    sys::install_seccomp(&role.filter).during(|| "install the seccomp filter".to_owned())
}

/// Namespaces, capabilities and the filter are a thread's: another one would keep what this one gives up.
fn demand_one_thread() -> Result<(), Fault> {
    let threads = fs::read_dir("/proc/self/task").during(|| "count the threads".to_owned())?.count();
    if threads == 1 { Ok(()) } else { Err(Fault(format!("the process has {threads} threads, it must have one"))) }
}

fn clone_directory(directory: &OwnedFd) -> Result<OwnedFd, Fault> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(directory, "", flags).during(|| "open the root directory".to_owned())?;
    let set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    sys::mount_setattr(tree.as_fd(), false, MountAttr { set, propagation: libc::MS_PRIVATE, ..Default::default() })
        .during(|| "restrict the root directory".to_owned())?;
    Ok(tree)
}
