//! Mounts, all by descriptor: file systems, binds, masks. No path is resolved twice.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, PROC_SUPER_MAGIC, Statx, StatxFlags, fstat, fstatfs, mkdirat, statx,
};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use super::base;
use super::fault::{During, Fault};
use super::file_system::{FileSystem, attach};
use super::path::{self, Kind};
use crate::mount_options::{self, MountOptions};
use crate::sys::{self, MountAttr};

/// A mount of the configuration with its source open.
pub(super) struct Volume {
    destination: PathBuf,
    kind: String,
    options: MountOptions,
    /// A detached tree, for binds.
    source: Option<(OwnedFd, Kind)>,
    /// The pod's `/dev/shm`.
    shm: bool,
    /// For a cgroup mount: the controllers of each hierarchy, as `/proc/self/cgroup` has them.
    hierarchies: Vec<String>,
}

/// Opens the sources of all binds; in the host's mount namespace.
pub(super) fn open_sources(mounts: &[Mount]) -> Result<Vec<Volume>, Fault> {
    mounts
        .iter()
        .map(|mount| {
            let options = mount_options::parse(mount.options().as_deref().unwrap_or_default());
            let kind = mount.typ().clone().unwrap_or_default();
            let shm = crate::bundle::is_pod_shm(mount);
            let bind = options.bind || kind == "bind";
            let source = match mount.source() {
                Some(source) if bind => Some(open_source(source, &options)?),
                None if bind => return Err(Fault(format!("mount {}: no source", mount.destination().display()))),
                _ => None,
            };
            let hierarchies = if kind == "cgroup" { hierarchies()? } else { Vec::new() };
            Ok(Volume { destination: mount.destination().clone(), kind, options, source, shm, hierarchies })
        })
        .collect()
}

fn hierarchies() -> Result<Vec<String>, Fault> {
    let groups = fs::read_to_string("/proc/self/cgroup").during(|| "read /proc/self/cgroup".to_owned())?;
    let names = groups.lines().filter_map(|line| line.split(':').nth(1)).filter(|names| !names.is_empty());
    Ok(names.map(ToOwned::to_owned).collect())
}

/// Opens a bind's source as a detached tree. With `x-coracle.subpath=` a path below it, resolved inside of it: the volume's contents
/// belong to a container, which may exchange them for links at any time.
fn open_source(source: &Path, options: &MountOptions) -> Result<(OwnedFd, Kind), Fault> {
    let what = || format!("bind {}", source.display());
    let mut at = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).during(what)?;
    if let Some(sub) = crate::bundle::subpath(&options.data) {
        at = path::open_or_make(at.as_fd(), Path::new(sub), Kind::Directory)
            .during(|| format!("bind {} of {}", sub, source.display()))?;
    }
    let kind = match FileType::from_raw_mode(fstat(&at).during(what)?.st_mode) {
        FileType::Directory => Kind::Directory,
        _ => Kind::File,
    };
    if let Some((propagation, _)) = options.propagation {
        demand_propagation(at.as_fd(), source, propagation)?;
    }
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if options.deep {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok((open_tree(&at, "", flags).during(what)?, kind))
}

/// A mount can only take part in propagation when its source does. The words are CRI-O's (`server/container_create_linux.go`).
fn demand_propagation(source: BorrowedFd<'_>, path: &Path, propagation: u64) -> Result<(), Fault> {
    let wanted: &[&str] = match propagation {
        libc::MS_SHARED => &["shared:"],
        libc::MS_SLAVE => &["shared:", "master:"],
        _ => return Ok(()),
    };
    let Statx { stx_mnt_id: id, .. } =
        statx(source, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).during(|| format!("stat {}", path.display()))?;
    let table = fs::read_to_string("/proc/self/mountinfo").during(|| "read the mount table".to_owned())?;
    let line = table.lines().find(|line| line.split(' ').next() == Some(&id.to_string()));
    let Some(fields) = line.map(|line| line.split(' ').collect::<Vec<_>>()) else { return Ok(()) };
    let optional = fields.iter().skip(6).take_while(|field| **field != "-");
    if optional.clone().any(|field| wanted.iter().any(|word| field.starts_with(word))) {
        return Ok(());
    }
    let kind = if propagation == libc::MS_SHARED { "a shared mount" } else { "a shared or slave mount" };
    let on = fields.get(4).copied().unwrap_or_default();
    Err(Fault(format!("path {:?} is mounted on {on:?} but it is not {kind}", path.display().to_string())))
}

/// Mounts everything below `root`, in order.
pub(super) fn mount_all(root: BorrowedFd<'_>, volumes: Vec<Volume>) -> Result<(), Fault> {
    volumes.into_iter().try_for_each(|volume| {
        let destination = volume.destination.clone();
        mount_one(root, volume).map_err(|fault| Fault(format!("mount {}: {fault}", destination.display())))
    })
}

fn mount_one(root: BorrowedFd<'_>, volume: Volume) -> Result<(), Fault> {
    let Volume { destination, kind, options, source, shm, hierarchies } = volume;
    let tree = match source {
        Some((tree, kind)) => {
            let place = path::open_or_make(root, &destination, kind).during(|| "make the mount point".to_owned())?;
            let inside = fstatfs(&place).during(|| "stat the mount point".to_owned())?;
            if inside.f_type == PROC_SUPER_MAGIC {
                return Err(Fault("the destination is inside /proc".to_owned()));
            }
            propagate(tree.as_fd(), options.propagation.unwrap_or((libc::MS_PRIVATE, true)))?;
            restrict(tree.as_fd(), &options)?;
            return attach(tree.as_fd(), place.as_fd());
        }
        None if shm => {
            let tree = base::shm()?;
            restrict(tree.as_fd(), &options)?;
            tree
        }
        None if kind == "cgroup" => return mount_cgroup(root, &destination, &options, &hierarchies),
        None => virtual_file_system(&kind, &options)?,
    };
    let place = plain_directory(root, &destination)?;
    attach(tree.as_fd(), place.as_fd())
}

/// A mount point for what the container must be able to trust: no part of its path is a link, whatever the image contains.
fn plain_directory(root: BorrowedFd<'_>, destination: &Path) -> Result<OwnedFd, Fault> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let opened = match path::open_plain(root, destination, flags) {
        Err(Errno::NOENT) => path::open_or_make(root, destination, Kind::Directory)
            .and_then(|_| path::open_plain(root, destination, flags)),
        opened => opened,
    };
    match opened {
        Err(Errno::LOOP | Errno::NOTDIR) => Err(Fault("the destination must be an ordinary directory".to_owned())),
        opened => opened.during(|| "make the mount point".to_owned()),
    }
}

fn virtual_file_system(kind: &str, options: &MountOptions) -> Result<OwnedFd, Fault> {
    let mut file_system = FileSystem::open(kind)?;
    for (key, value) in &options.data {
        file_system = match value {
            Some(value) => file_system.with(key, value)?,
            None => file_system.flag(key)?,
        };
    }
    let tree = file_system.mount(MountAttrFlags::empty())?;
    restrict(tree.as_fd(), options)?;
    Ok(tree)
}

/// The container's own cgroup: one tree on version 2, a directory of hierarchies on version 1.
fn mount_cgroup(
    root: BorrowedFd<'_>,
    destination: &Path,
    options: &MountOptions,
    hierarchies: &[String],
) -> Result<(), Fault> {
    let place = plain_directory(root, destination)?;
    if hierarchies.iter().all(|names| names.starts_with("name=")) {
        let tree = FileSystem::open("cgroup2")?.mount(MountAttrFlags::empty())?;
        restrict(tree.as_fd(), options)?;
        return attach(tree.as_fd(), place.as_fd());
    }
    let directory = FileSystem::open("tmpfs")?.with("mode", "755")?.mount(MountAttrFlags::empty())?;
    attach(directory.as_fd(), place.as_fd())?;
    for names in hierarchies {
        // A hierarchy that cannot be mounted here (a co-mounted set that changed) is one that the container does not see.
        let Ok(tree) = mount_hierarchy(names) else { continue };
        restrict(tree.as_fd(), options)?;
        let name = names.trim_start_matches("name=");
        mkdirat(&directory, name, Mode::from_raw_mode(0o755)).during(|| format!("make {name}"))?;
        let place = rustix::fs::openat(&directory, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .during(|| format!("open {name}"))?;
        attach(tree.as_fd(), place.as_fd())?;
    }
    restrict(directory.as_fd(), options)
}

fn mount_hierarchy(names: &str) -> Result<OwnedFd, Fault> {
    let mut hierarchy = FileSystem::open("cgroup")?;
    for name in names.split(',') {
        hierarchy = match name.strip_prefix("name=") {
            Some(name) => hierarchy.flag("none")?.with("name", name)?,
            None => hierarchy.flag(name)?,
        };
    }
    hierarchy.mount(MountAttrFlags::empty())
}

fn restrict(tree: BorrowedFd<'_>, options: &MountOptions) -> Result<(), Fault> {
    for (attributes, deep) in [(options.attributes, false), (options.recursive, true)] {
        if !attributes.is_empty() {
            sys::mount_setattr(tree, deep, attributes.attr()).during(|| "set mount options".to_owned())?;
        }
    }
    Ok(())
}

fn propagate(tree: BorrowedFd<'_>, (kind, deep): (u64, bool)) -> Result<(), Fault> {
    if kind == libc::MS_SHARED {
        // It is a peer of its source already, which is shared: see `demand_propagation`.
        return Ok(());
    }
    let attr = MountAttr { propagation: kind, ..MountAttr::default() };
    sys::mount_setattr(tree, deep, attr).during(|| "set mount propagation".to_owned())
}

/// Copies of the host's `/dev/null`, one for each file that will be masked; in the host's mount namespace.
pub(super) fn open_masks(count: usize) -> Result<Vec<OwnedFd>, Fault> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    (0..count)
        .map(|_| {
            let null = open_tree(CWD, "/dev/null", flags).during(|| "open /dev/null".to_owned())?;
            let stat = fstat(&null).during(|| "stat /dev/null".to_owned())?;
            let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
            if device && stat.st_rdev == rustix::fs::makedev(1, 3) {
                Ok(null)
            } else {
                Err(Fault("/dev/null of the host is not the null device".to_owned()))
            }
        })
        .collect()
}

/// Hides paths: directories behind an empty file system, files behind the null device. What does not exist is skipped.
pub(super) fn mask(root: BorrowedFd<'_>, paths: &[String], nulls: Vec<OwnedFd>) -> Result<(), Fault> {
    for (path, null) in paths.iter().zip(nulls) {
        let place = match path::open_plain(root, Path::new(path), OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            place => place.during(|| format!("mask {path}"))?,
        };
        let stat = fstat(&place).during(|| format!("mask {path}"))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let empty = FileSystem::open("tmpfs")?.with("size", "4096")?.with("nr_inodes", "1")?;
            let empty = empty.mount(MountAttrFlags::MOUNT_ATTR_RDONLY)?;
            attach(empty.as_fd(), place.as_fd())?;
        } else {
            attach(null.as_fd(), place.as_fd())?;
        }
    }
    Ok(())
}

/// Makes paths read-only, with all that is mounted below them. What does not exist is skipped.
pub(super) fn make_read_only(root: BorrowedFd<'_>, paths: &[String]) -> Result<(), Fault> {
    for path in paths {
        let place = match path::open_plain(root, Path::new(path), OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            place => place.during(|| format!("make {path} read-only"))?,
        };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(&place, "", flags).during(|| format!("make {path} read-only"))?;
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        sys::mount_setattr(tree.as_fd(), true, attr).during(|| format!("make {path} read-only"))?;
        attach(tree.as_fd(), place.as_fd())?;
    }
    Ok(())
}

/// Makes the working directory if the image lacks it, as runc does.
pub(super) fn make_directory(root: BorrowedFd<'_>, directory: &Path) -> Result<(), Fault> {
    match path::open_or_make(root, directory, Kind::Directory) {
        // A file or a loop: changing to it will say so; a read-only volume without it likewise.
        Ok(_) | Err(Errno::NOTDIR | Errno::LOOP | Errno::ROFS) => Ok(()),
        Err(error) => Err(error).during(|| format!("make working directory {}", directory.display())),
    }
}
