//! `/dev`: the standard nodes and links, the plan's devices, the terminal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, chownat, fstat, fstatfs, makedev, mknodat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::pty::OpenptFlags;

use super::fault::{During, Fault};
use super::file_system::attach;
use super::path::{self, Kind};
use crate::defaults::NODES;
use crate::seqpacket;

/// Source: runc `libcontainer/rootfs_linux.go`, `setupDevSymlinks`; config-linux.md for `ptmx`.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS: i64 = 0x1cd1;
/// `TMPFS_MAGIC`.
const TMPFS: i64 = 0x0102_1994;

/// Fills `/dev`, when it is a tmpfs of the container's own: a `/dev` bound from elsewhere is left alone, as runc does.
pub(super) fn make(root: BorrowedFd<'_>, devices: &[LinuxDevice]) -> Result<(), Fault> {
    let dev = match path::open_plain(root, Path::new("dev"), OFlags::PATH | OFlags::DIRECTORY) {
        Err(Errno::NOENT) => return Ok(()),
        dev => dev.during(|| "open /dev".to_owned())?,
    };
    if fstatfs(&dev).during(|| "stat /dev".to_owned())?.f_type != TMPFS {
        return Ok(());
    }
    for (name, major, minor) in NODES {
        node(dev.as_fd(), name, FileType::CharacterDevice, 0o666, (major, minor))?;
    }
    for (name, target) in LINKS {
        match symlinkat(target, &dev, name) {
            // Something of the plan is mounted there.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).during(|| format!("make /dev/{name}")),
        }
    }
    devices.iter().try_for_each(|device| add(root, device))
}

fn node(at: BorrowedFd<'_>, name: &str, kind: FileType, mode: u32, (major, minor): (u32, u32)) -> Result<(), Fault> {
    match mknodat(at, name, kind, Mode::from_raw_mode(mode), makedev(major, minor)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).during(|| format!("make device {name}")),
    }
}

fn add(root: BorrowedFd<'_>, device: &LinuxDevice) -> Result<(), Fault> {
    let what = || format!("make device {}", device.path().display());
    let (Some(parent), Some(name)) = (device.path().parent(), device.path().file_name().and_then(|name| name.to_str()))
    else {
        return Err(Fault(format!("{}: not the path of a device", device.path().display())));
    };
    let at = path::open_or_make(root, parent, Kind::Directory).during(what)?;
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::C | LinuxDeviceType::U | LinuxDeviceType::A => FileType::CharacterDevice,
    };
    let numbers = (device.major() as u32, device.minor() as u32);
    node(at.as_fd(), name, kind, device.file_mode().unwrap_or(0o666), numbers)?;
    let (uid, gid) = (device.uid().map(Uid::from_raw), device.gid().map(Gid::from_raw));
    chownat(&at, name, uid, gid, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).during(what)
}

/// Opens a new terminal of the container and sends its master to the parent. `console` mounts it on `/dev/console`.
pub(super) fn open_terminal(root: BorrowedFd<'_>, status: BorrowedFd<'_>, console: bool) -> Result<OwnedFd, Fault> {
    let what = || "open a terminal".to_owned();
    // The path is the container's: trust it only when it is the multiplexer of a devpts.
    let master = path::open_plain(root, Path::new("dev/pts/ptmx"), OFlags::RDWR | OFlags::NOCTTY).during(what)?;
    let stat = fstat(&master).during(what)?;
    if fstatfs(&master).during(what)?.f_type != DEVPTS || stat.st_rdev != makedev(5, 2) {
        return Err(Fault("/dev/pts/ptmx is not a terminal multiplexer".to_owned()));
    }
    rustix::pty::unlockpt(&master).during(what)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).during(what)?;
    seqpacket::send(status, b"T", &[master.as_fd()]).during(what)?;
    if console {
        let place = path::open_or_make(root, Path::new("dev/console"), Kind::File).during(what)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(&slave, "", flags).during(|| "open /dev/console".to_owned())?;
        attach(tree.as_fd(), place.as_fd())?;
    }
    Ok(slave)
}
