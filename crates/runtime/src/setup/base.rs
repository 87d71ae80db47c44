//! The mount namespace in which a pod's containers begin: two small tmpfs and nothing of the host.
//!
//! It holds `/dev/shm`, which containers of a pod share, and an empty directory to mount a root on. Containers copy it instead of
//! the host's table: that is faster, pins none of the host's file systems, and nothing has to be unmounted at the end.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, open};
use rustix::mount::{MountAttrFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::fault::{During, Fault};
use super::file_system::{FileSystem, attach};
use crate::sys;

/// Where the root of a container is mounted.
pub(super) const ROOT: &str = "/root";
/// The pod's shared memory.
pub(super) const SHM: &str = "/shm";
/// Docker's and CRI-O's size of `/dev/shm`.
const SHM_SIZE: &str = "67108864";

/// Makes the namespace and returns to the caller's own.
pub(crate) fn make() -> Result<OwnedFd, Fault> {
    let namespace = || {
        open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .during(|| "open the mount namespace".to_owned())
    };
    let host = namespace()?;
    sys::unshare(UnshareFlags::NEWNS).during(|| "make a mount namespace".to_owned())?;
    let result = namespace().and_then(|base| fill().map(|()| base));
    move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Mount))
        .during(|| "return to the host's mount namespace".to_owned())?;
    result
}

fn fill() -> Result<(), Fault> {
    let old =
        open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).during(|| "open /".to_owned())?;
    let private = sys::MountAttr { propagation: libc::MS_PRIVATE, ..Default::default() };
    sys::mount_setattr(old.as_fd(), true, private).during(|| "make mounts private".to_owned())?;

    let base = FileSystem::open("tmpfs")?.with("mode", "0755")?.with("size", "65536")?;
    let base = base.mount(MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)?;
    attach(base.as_fd(), old.as_fd())?;
    for name in [ROOT, SHM] {
        mkdirat(&base, name.trim_start_matches('/'), Mode::from_raw_mode(0o755)).during(|| format!("make {name}"))?;
    }
    let shm = FileSystem::open("tmpfs")?.with("mode", "1777")?.with("size", SHM_SIZE)?;
    let flags =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let shm = shm.mount(flags)?;
    let target = rustix::fs::openat(&base, "shm", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .during(|| "open the shared memory's mount point".to_owned())?;
    attach(shm.as_fd(), target.as_fd())?;
    pivot(base)
}

/// Makes `root`, a mount, the root of this mount namespace, and lets go of the old one.
pub(super) fn pivot(root: impl AsFd) -> Result<(), Fault> {
    rustix::process::fchdir(root.as_fd()).during(|| "change to the new root".to_owned())?;
    // With "." twice the old root is stacked upon the new one, where it can be unmounted: no directory for it is needed.
    rustix::process::pivot_root(".", ".").during(|| "change the root".to_owned())?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).during(|| "unmount the old root".to_owned())?;
    rustix::process::chdir("/").during(|| "change to /".to_owned())
}

/// A copy of the pod's shared memory mount; in a namespace that was copied from the base.
pub(super) fn shm() -> Result<OwnedFd, Fault> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    open_tree(CWD, SHM, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .during(|| "open the pod's shared memory".to_owned())
}
