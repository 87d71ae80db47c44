//! File systems by the kernel's new calls: opened, set, and put in their place.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, move_mount,
};

use super::fault::{During, Fault};

/// A file system on its way to be mounted.
pub(super) struct FileSystem {
    context: OwnedFd,
    kind: String,
}

impl FileSystem {
    pub(super) fn open(kind: &str) -> Result<FileSystem, Fault> {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).during(|| format!("open file system {kind}"))?;
        Ok(FileSystem { context, kind: kind.to_owned() })
    }

    pub(super) fn with(self, key: &str, value: &str) -> Result<FileSystem, Fault> {
        fsconfig_set_string(self.context.as_fd(), key, value)
            .during(|| format!("set {key}={value} of file system {}", self.kind))?;
        Ok(self)
    }

    pub(super) fn flag(self, key: &str) -> Result<FileSystem, Fault> {
        fsconfig_set_flag(self.context.as_fd(), key).during(|| format!("set {key} of file system {}", self.kind))?;
        Ok(self)
    }

    /// A detached mount of it.
    pub(super) fn mount(self, attributes: MountAttrFlags) -> Result<OwnedFd, Fault> {
        fsconfig_create(self.context.as_fd()).during(|| format!("create file system {}", self.kind))?;
        fsmount(self.context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .during(|| format!("mount file system {}", self.kind))
    }
}

/// Puts a detached mount on a directory or file.
pub(super) fn attach(tree: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Fault> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", place, "", flags).during(|| "attach a mount".to_owned())
}
