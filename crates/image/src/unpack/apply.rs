//! Puts a layer's entries into a directory, through descriptors only.
//!
//! Every name is resolved by the kernel with that directory as its root (`openat2`, RESOLVE_IN_ROOT); the last component is
//! never followed. A layer stands alone: hard links reach only its own files, and what lies below it is not seen. Whiteouts
//! become what overlayfs understands. Source: OCI image-spec 1.1, `layer.md`; kernel `Documentation/filesystems/overlayfs`.

use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown,
    fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::tar::{Entry, Kind, Reader};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names of directories are kept until the end, for their times.
const DIRECTORY_NAMES_LIMIT: usize = 64 << 20;

/// Names of directories and, last, of the entry.
type Path = Vec<Vec<u8>>;

#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", display(.path))]
pub(crate) struct ApplyError {
    path: Path,
    what: String,
}

fn display(path: &[Vec<u8>]) -> String {
    format!("/{}", String::from_utf8_lossy(&path.join(&b'/')).escape_debug())
}

/// The directory that is being filled.
pub(crate) struct Tree {
    root: OwnedFd,
    /// The last parent, for the entries that follow in it.
    parent: Option<(Path, OwnedFd)>,
    directories: Vec<(Path, (i64, u32))>,
    directory_bytes: usize,
    /// Directories that hide what lies below them. Marking them takes a privilege that this process does not have.
    pub opaque: Vec<Vec<u8>>,
}

impl Tree {
    pub fn new(root: OwnedFd) -> Tree {
        Tree { root, parent: None, directories: Vec::new(), directory_bytes: 0, opaque: Vec::new() }
    }

    /// Makes one entry, reading its content.
    pub fn apply<R: Read>(&mut self, entry: &Entry, content: &mut Reader<R>) -> Result<(), ApplyError> {
        self.place(entry, content).map_err(|what| ApplyError { path: entry.path.clone(), what: what.0 })
    }

    /// Sets the times of the directories, which their entries changed.
    pub fn finish(&mut self) -> Result<(), ApplyError> {
        self.parent = None;
        for (path, mtime) in std::mem::take(&mut self.directories).into_iter().rev() {
            match self.open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
                Ok(directory) => futimens(&directory, &times(mtime)),
                Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => Ok(()), // something else took its place
                Err(error) => Err(error),
            }
            .map_err(|error| ApplyError { path, what: error.to_string() })?;
        }
        Ok(())
    }

    fn place<R: Read>(&mut self, entry: &Entry, content: &mut Reader<R>) -> Result<(), Failure> {
        let Some((name, parents)) = entry.path.split_last() else {
            let root = self.open(&[], OFlags::RDONLY | OFlags::DIRECTORY)?;
            self.directories.push((Vec::new(), entry.mtime));
            return finish_open(root.as_fd(), entry);
        };
        let parent = self.parent(parents)?;
        if name.starts_with(WHITEOUT) {
            let placed = self.whiteout(entry, parent.as_fd(), name, parents);
            self.parent = Some((parents.to_vec(), parent));
            return placed;
        }
        let placed = self.place_in(parent.as_fd(), name, entry, content);
        // The cached descriptor must not outlive a directory that this entry replaced.
        self.parent = placed.as_ref().is_ok_and(|replaced| !replaced).then(|| (parents.to_vec(), parent));
        placed.map(drop)
    }

    /// Returns whether something was removed to make place.
    fn place_in<R: Read>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        content: &mut Reader<R>,
    ) -> Result<bool, Failure> {
        let existing = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        let kind = existing.as_ref().map(|stat| FileType::from_raw_mode(stat.st_mode));
        if entry.kind == Kind::Directory && kind == Some(FileType::Directory) {
            self.remember(entry)?;
            let directory = open_directory(parent, name)?;
            return finish_open(directory.as_fd(), entry).map(|()| false);
        }
        if let Kind::HardLink(target) = &entry.kind {
            return self.hard_link(parent, name, target, existing.as_ref());
        }
        let was_whiteout = existing.as_ref().is_some_and(is_whiteout);
        if existing.is_some() {
            remove(parent, name, kind)?;
        }
        match &entry.kind {
            Kind::File => write_file(parent, name, entry, content)?,
            Kind::Directory => {
                mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
                self.remember(entry)?;
                if was_whiteout {
                    self.opaque.push(entry.path.join(&b'/'));
                }
                finish_open(open_directory(parent, name)?.as_fd(), entry)?;
            }
            Kind::Symlink(target) => {
                symlinkat(&target[..], parent, name)?;
                finish_name(parent, name, entry, false)?;
            }
            Kind::CharDevice(0, 0) => return Err(Failure::text("device 0:0 is overlayfs's whiteout")),
            Kind::CharDevice(major, minor) => node(parent, name, entry, FileType::CharacterDevice, (*major, *minor))?,
            Kind::BlockDevice(major, minor) => node(parent, name, entry, FileType::BlockDevice, (*major, *minor))?,
            Kind::Fifo => node(parent, name, entry, FileType::Fifo, (0, 0))?,
            Kind::HardLink(_) => unreachable!("hard links were made above"),
        }
        Ok(existing.is_some())
    }

    /// The target must be in this layer, and is not followed when it is a symbolic link.
    fn hard_link(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        target: &[Vec<u8>],
        existing: Option<&rustix::fs::Stat>,
    ) -> Result<bool, Failure> {
        let missing = || Failure(format!("its hard link's target {} is not in this layer", display(target)));
        let (target_name, target_parents) = target.split_last().ok_or_else(missing)?;
        let from = self.open(target_parents, OFlags::PATH | OFlags::DIRECTORY).map_err(|_| missing())?;
        let stat = statat(&from, &target_name[..], AtFlags::SYMLINK_NOFOLLOW).map_err(|_| missing())?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory || is_whiteout(&stat) {
            return Err(Failure(format!("its hard link's target {} is no file", display(target))));
        }
        if let Some(existing) = existing {
            if (existing.st_dev, existing.st_ino) == (stat.st_dev, stat.st_ino) {
                return Ok(false);
            }
            remove(parent, name, Some(FileType::from_raw_mode(existing.st_mode)))?;
        }
        linkat(&from, &target_name[..], parent, name, AtFlags::empty())?;
        Ok(existing.is_some())
    }

    fn whiteout(
        &mut self,
        entry: &Entry,
        parent: BorrowedFd<'_>,
        name: &[u8],
        parents: &[Vec<u8>],
    ) -> Result<(), Failure> {
        if entry.kind != Kind::File || entry.size != 0 {
            return Err(Failure::text("a whiteout must be an empty file"));
        }
        if name == OPAQUE {
            self.opaque.push(parents.join(&b'/'));
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if hidden.starts_with(WHITEOUT) {
            return Ok(()); // aufs's own bookkeeping, never part of an image
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Failure::text("a whiteout must name what it hides"));
        }
        match statat(parent, hidden, AtFlags::SYMLINK_NOFOLLOW) {
            // What this layer has under the name hides the lower one already; a directory must also hide its entries.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let path: Vec<&[u8]> = parents.iter().map(Vec::as_slice).chain([hidden]).collect();
                self.opaque.push(path.join(&b'/'));
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => Ok(mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))?),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory `path`, made where it is missing.
    fn parent(&mut self, path: &[Vec<u8>]) -> Result<OwnedFd, Failure> {
        if let Some((cached, directory)) = self.parent.take()
            && cached == path
        {
            return Ok(directory);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.open(path, flags) {
            Ok(directory) => return Ok(directory),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(Failure(format!("its directory: {error}"))),
        }
        let mut directory = self.open(&[], flags)?;
        for depth in 1..=path.len() {
            directory = match self.open(&path[..depth], flags) {
                Err(Errno::NOENT) => {
                    let made = mkdirat(&directory, &path[depth - 1][..], Mode::from_raw_mode(0o755));
                    made.map_err(|error| Failure(format!("its directory: {error}")))?;
                    self.open(&path[..depth], flags)?
                }
                opened => opened?,
            };
        }
        Ok(directory)
    }

    fn open(&self, path: &[Vec<u8>], flags: OFlags) -> Result<OwnedFd, Errno> {
        let joined = if path.is_empty() { b".".to_vec() } else { path.join(&b'/') };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, joined, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    fn remember(&mut self, entry: &Entry) -> Result<(), Failure> {
        self.directory_bytes += entry.path.iter().map(|name| name.len() + size_of::<Vec<u8>>()).sum::<usize>();
        if self.directory_bytes > DIRECTORY_NAMES_LIMIT {
            return Err(Failure::text("the layer has too many directories"));
        }
        self.directories.push((entry.path.clone(), entry.mtime));
        Ok(())
    }
}

/// What went wrong with one entry.
struct Failure(String);

impl Failure {
    fn text(what: &str) -> Failure {
        Failure(what.to_owned())
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Failure {
        Failure(io::Error::from(error).to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure(error.to_string())
    }
}

fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(0, 0)
}

/// Only an empty directory makes place for something else; no honest archive asks for more.
fn remove(parent: BorrowedFd<'_>, name: &[u8], kind: Option<FileType>) -> Result<(), Failure> {
    let flags = if kind == Some(FileType::Directory) { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    unlinkat(parent, name, flags).map_err(|error| match error {
        Errno::NOTEMPTY => Failure::text("it would replace a directory that is not empty"),
        error => error.into(),
    })
}

fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn write_file<R: Read>(
    parent: BorrowedFd<'_>,
    name: &[u8],
    entry: &Entry,
    content: &mut Reader<R>,
) -> Result<(), Failure> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(openat(parent, name, flags, Mode::from_raw_mode(0o600))?);
    let mut buffer = [0; 32 * 1024];
    loop {
        match content.read(&mut buffer)? {
            0 => break,
            got => file.write_all(&buffer[..got])?,
        }
    }
    finish_open(file.as_fd(), entry)
}

fn node(
    parent: BorrowedFd<'_>,
    name: &[u8],
    entry: &Entry,
    kind: FileType,
    (major, minor): (u32, u32),
) -> Result<(), Failure> {
    mknodat(parent, name, kind, Mode::from_raw_mode(0o600), makedev(major, minor))?;
    finish_name(parent, name, entry, true)
}

/// Owner first, for it clears setuid and capabilities; times last.
fn finish_open(file: BorrowedFd<'_>, entry: &Entry) -> Result<(), Failure> {
    fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    fchmod(file, Mode::from_raw_mode(entry.mode))?;
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| is_kept(name)) {
        match fsetxattr(file, name.as_str(), value, XattrFlags::empty()) {
            // Users' own are lost on a file system without them, as everywhere; a capability must not be.
            Err(Errno::OPNOTSUPP) if name.starts_with("user.") => {}
            set => set.map_err(|error| Failure(format!("extended attribute {name}: {error}")))?,
        }
    }
    Ok(futimens(file, &times(entry.mtime))?)
}

/// For what must not be opened: links have no mode, devices and pipes no content. Their extended attributes are dropped.
fn finish_name(parent: BorrowedFd<'_>, name: &[u8], entry: &Entry, mode: bool) -> Result<(), Failure> {
    let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
    rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    if mode {
        // It was made here as what it is, by the only process in this directory: there is no link to follow.
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
    }
    Ok(utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// File capabilities and users' own; never what overlayfs (`trusted.overlay.`, `user.overlay.`) or this host's security
/// modules read.
fn is_kept(xattr: &str) -> bool {
    xattr == "security.capability" || xattr.starts_with("user.") && !xattr.starts_with("user.overlay.")
}

fn times((tv_sec, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}
