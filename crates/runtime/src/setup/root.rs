//! The root file system: an overlay of layers, or a directory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use super::base;
use super::fault::{During, Fault};
use super::file_system::{FileSystem, attach as attach_tree};
use crate::plan::Rootfs;
use crate::sys::{self, MountAttr};

/// The longest value that `fsconfig(2)` takes.
const MAX_VALUE: usize = 255;

/// Opens a root as a detached mount; in the host's mount namespace.
pub(super) fn open(rootfs: &Rootfs) -> Result<OwnedFd, Fault> {
    match rootfs {
        Rootfs::Directory(path) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
            let tree = open_tree(CWD, path, flags).during(|| format!("open root {}", path.display()))?;
            let private = MountAttr { propagation: libc::MS_PRIVATE, ..Default::default() };
            sys::mount_setattr(tree.as_fd(), true, private).during(|| "make the root private".to_owned())?;
            Ok(tree)
        }
        Rootfs::Overlay { lower, upper, work } => overlay(lower, upper, work),
    }
}

/// Layers are named by the numbers of their descriptors, relative to `/proc/self/fd`: `fsconfig` takes 255 bytes, and `lowerdir+`,
/// which takes one layer at a time, exists since Linux 6.5 only.
fn overlay(lower: &[impl AsRef<Path>], upper: &Path, work: &Path) -> Result<OwnedFd, Fault> {
    use std::os::fd::AsRawFd;
    let open = |path: &Path| {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .during(|| format!("open layer {}", path.display()))
    };
    let lower = lower.iter().map(|path| open(path.as_ref())).collect::<Result<Vec<_>, _>>()?;
    let (upper, work) = (open(upper)?, open(work)?);
    rustix::process::chdir("/proc/self/fd").during(|| "change to /proc/self/fd".to_owned())?;
    let names: Vec<String> = lower.iter().map(|layer| layer.as_raw_fd().to_string()).collect();
    let mut overlay = FileSystem::open("overlay")?;
    let joined = names.join(":");
    if joined.len() <= MAX_VALUE {
        overlay = overlay.with("lowerdir", &joined)?;
    } else {
        for name in &names {
            overlay = overlay.with("lowerdir+", name)?;
        }
    }
    let overlay = overlay
        .with("upperdir", &upper.as_raw_fd().to_string())?
        .with("workdir", &work.as_raw_fd().to_string())?
        // A container's own layer does not outlive it: nothing to sync at the end.
        .flag("volatile")?
        .mount(MountAttrFlags::empty())?;
    rustix::process::chdir("/").during(|| "change to /".to_owned())?;
    Ok(overlay)
}

/// Mounts a root where the base namespace has a place for it.
pub(super) fn attach(tree: BorrowedFd<'_>) -> Result<(), Fault> {
    let place = rustix::fs::open(base::ROOT, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .during(|| "open the root's mount point".to_owned())?;
    attach_tree(tree, place.as_fd())
}

/// Makes the root the root: after this the process sees nothing else.
pub(super) fn finish(root: BorrowedFd<'_>, read_only: bool, propagation: Option<&str>) -> Result<(), Fault> {
    if read_only {
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
        sys::mount_setattr(root, false, attr).during(|| "make the root read-only".to_owned())?;
    }
    base::pivot(root)?;
    if let Some("shared" | "rshared") = propagation {
        let attr = MountAttr { propagation: libc::MS_SHARED, ..Default::default() };
        sys::mount_setattr(root, false, attr).during(|| "make the root shared".to_owned())?;
    }
    Ok(())
}
