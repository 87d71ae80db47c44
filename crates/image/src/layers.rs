//! The layers on disk: `layers/<diff id>/fs`, each with a marker that it is complete.
//!
//! A layer is filled in `tmp`, made durable, and renamed: what stands under `layers` is whole, whenever the power failed.
//! Processes share the directory: whoever pulls holds `pulls.lock` shared, whoever deletes layers holds it alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;

use crate::digest::Digest;
use crate::unpack::{Limits, Report, Unpacker};

const MARKER: &str = "complete";
const MARKER_VERSION: u32 = 1;
/// Part of the file system that unpacking leaves free.
const RESERVE_PERCENT: u64 = 2;

/// The layer directories of one store.
pub(crate) struct Layers {
    dir: PathBuf,
    unpacker: Unpacker,
    /// One unpacking of a layer at a time in this process.
    busy: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    sizes: Mutex<BTreeMap<Digest, Tree>>,
}

/// What a layer's directory holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tree {
    pub entries: u64,
    /// As the file system counts them.
    pub disk_bytes: u64,
    /// Over names, kinds, modes, owners, sizes, times and devices.
    pub hash: Digest,
}

#[derive(Serialize, Deserialize)]
struct Marker {
    version: u32,
    diff_id: Digest,
    #[serde(flatten)]
    tree: Tree,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    /// The layer itself is at fault.
    #[error("{0}")]
    Refused(String),
    #[error("{context}: {source}")]
    Io { context: String, source: io::Error },
}

impl LayerError {
    fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> LayerError {
        let context = context.into();
        move |source| LayerError::Io { context, source }
    }
}

/// Held while layers are being added, so that nobody deletes those that no image names yet.
pub(crate) struct Adding(#[expect(dead_code, reason = "held for its lock")] Locked);

/// Held while layers are being deleted.
pub(crate) struct Alone(#[expect(dead_code, reason = "held for its lock")] Locked);

/// A file with a lock, which is given back by name: a process that is just being forked has the file too, and would keep the lock
/// of one that is merely closed until its exec.
struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::flock(&self.0, FlockOperation::Unlock) {
            tracing::warn!(%error, "the lock on the layers is not given back"); // closing does it, a moment later
        }
    }
}

impl Layers {
    pub fn new(dir: &Path, unpacker: Unpacker) -> Layers {
        Layers { dir: dir.to_owned(), unpacker, busy: Mutex::default(), sizes: Mutex::default() }
    }

    /// Makes the directories; deletes the leftovers of processes that are gone. Blocks.
    pub fn open(&self) -> io::Result<()> {
        for name in ["layers", "tmp"] {
            fs::create_dir_all(self.dir.join(name))?;
        }
        if let Some(_alone) = self.alone()? {
            for entry in fs::read_dir(self.dir.join("tmp"))? {
                remove_tree(&entry?.path());
            }
        }
        Ok(())
    }

    /// The layer's root directory.
    pub fn path(&self, diff_id: &Digest) -> PathBuf {
        self.dir.join("layers").join(diff_id.hex()).join("fs")
    }

    /// What the layer holds; None when it is not here.
    pub fn tree(&self, diff_id: &Digest) -> Option<Tree> {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.dir.join("layers").join(diff_id.hex()).join(MARKER);
        if !path.exists() {
            sizes.remove(diff_id);
            return None;
        }
        if let Some(tree) = sizes.get(diff_id) {
            return Some(tree.clone());
        }
        let marker: Marker = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        if marker.version != MARKER_VERSION || marker.diff_id != *diff_id {
            return None;
        }
        sizes.insert(diff_id.clone(), marker.tree.clone());
        Some(marker.tree)
    }

    /// Waits until no other task of this process unpacks the layer.
    pub async fn lock(&self, diff_id: &Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.retain(|_, lock| lock.strong_count() > 0);
            match busy.get(diff_id).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(tokio::sync::Mutex::new(()));
                    busy.insert(diff_id.clone(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }

    /// Blocks while another process deletes layers.
    pub fn adding(&self) -> io::Result<Adding> {
        let file = self.lock_file()?;
        rustix::fs::flock(&file, FlockOperation::LockShared)?;
        Ok(Adding(Locked(file)))
    }

    /// None while anyone adds layers.
    pub fn alone(&self) -> io::Result<Option<Alone>> {
        let file = self.lock_file()?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Alone(Locked(file)))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn lock_file(&self) -> io::Result<File> {
        File::options().create(true).truncate(false).write(true).open(self.dir.join("pulls.lock"))
    }

    /// Bytes that layers may still take.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        let reserve = stat.f_blocks * stat.f_frsize / 100 * RESERVE_PERCENT;
        Ok((stat.f_bavail * stat.f_frsize).saturating_sub(reserve))
    }

    pub fn scratch(&self) -> io::Result<Scratch> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join("tmp").join(format!("{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Scratch { path })
    }

    /// Starts the child for one layer (or any tar) with an empty directory. Blocks for a fork.
    pub fn begin(&self) -> Result<Unpacking, LayerError> {
        let failed = |source| LayerError::Io { context: "could not start the unpacking process".to_owned(), source };
        let scratch = self.scratch().map_err(LayerError::io("could not make a directory for the layer"))?;
        let root = scratch.path.join("fs");
        fs::create_dir(&root)
            .and_then(|()| fs::set_permissions(&root, fs::Permissions::from_mode(0o755)))
            .map_err(failed)?;
        let limits = Limits::within(self.free_bytes().map_err(failed)?);
        let limits = serde_json::to_string(&limits).expect("numbers become JSON");
        let mut command = Command::new(&self.unpacker.program);
        command.args(&self.unpacker.args).arg(limits).env_clear().current_dir(&root);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdin = pipe::Sender::from_owned_fd(OwnedFd::from(stdin)).map_err(failed)?;
        Ok(Unpacking { child: Some(child), stdin: Some(stdin), scratch: Some(scratch) })
    }

    /// Makes an unpacked layer durable and visible. Blocks.
    pub fn commit(&self, filled: Filled, diff_id: &Digest) -> Result<(), LayerError> {
        if filled.report.diff_id != *diff_id {
            let got = &filled.report.diff_id;
            return Err(LayerError::Refused(format!("the layer's diff ID is {got}, the image says {diff_id}")));
        }
        let failed = || LayerError::io(format!("could not keep layer {diff_id}"));
        let io = |error: Errno| failed()(error.into());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let home = rustix::fs::open(&filled.scratch.path, flags, Mode::empty()).map_err(io)?;
        let root = rustix::fs::openat(&home, "fs", flags | OFlags::NOFOLLOW, Mode::empty()).map_err(io)?;
        mark_opaque(root.as_fd(), &filled.report)?;
        let tree = summarize(root.as_fd()).map_err(io)?;
        let marker = Marker { version: MARKER_VERSION, diff_id: diff_id.clone(), tree };
        let marker = serde_json::to_vec(&marker).expect("a marker becomes JSON");
        fs::write(filled.scratch.path.join(MARKER), marker).map_err(failed())?;
        rustix::fs::syncfs(&home).map_err(io)?;
        let place = self.dir.join("layers").join(diff_id.hex());
        match fs::rename(&filled.scratch.path, &place) {
            Ok(()) => {}
            // Another process was first, or damage that was found takes its way out.
            Err(_) if self.tree(diff_id).is_some() => return Ok(()),
            Err(_) if place.exists() => {
                self.discard(diff_id).map_err(failed())?;
                fs::rename(&filled.scratch.path, &place).map_err(failed())?;
            }
            Err(error) => return Err(failed()(error)),
        }
        File::open(self.dir.join("layers")).and_then(|layers| layers.sync_all()).map_err(failed())
    }

    /// Compares the layer with its marker; false when it is damaged or not here. Blocks for as long as a walk takes.
    pub fn verify(&self, diff_id: &Digest) -> bool {
        let Some(expected) = self.tree(diff_id) else { return false };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(self.path(diff_id), flags, Mode::empty());
        root.and_then(|root| summarize(root.as_fd())).is_ok_and(|found| found == expected)
    }

    /// All layers here, complete or not.
    pub fn all(&self) -> io::Result<Vec<Digest>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.dir.join("layers"))? {
            let name = entry?.file_name();
            found.extend(name.to_str().and_then(|name| format!("sha256:{name}").parse().ok()));
        }
        found.sort();
        Ok(found)
    }

    /// Takes the layers out that are not in `needed`, which must have been read under `alone`.
    ///
    /// Returns the bytes that become free and the directories that go away when they are dropped: after `alone`, since
    /// deleting takes a while.
    pub fn sweep(&self, needed: &BTreeSet<Digest>, _alone: &Alone) -> io::Result<(u64, Vec<Scratch>)> {
        let mut freed = 0;
        let mut gone = Vec::new();
        for diff_id in self.all()?.into_iter().filter(|diff_id| !needed.contains(diff_id)) {
            freed += self.tree(&diff_id).map_or(0, |tree| tree.disk_bytes);
            gone.push(self.take_out(&diff_id)?);
        }
        Ok((freed, gone))
    }

    /// Deletes one layer.
    pub fn discard(&self, diff_id: &Digest) -> io::Result<()> {
        self.take_out(diff_id).map(drop)
    }

    /// Renames the layer to where it is deleted: a crash half-way leaves nothing that looks like a layer.
    fn take_out(&self, diff_id: &Digest) -> io::Result<Scratch> {
        let scratch = self.scratch()?;
        fs::rename(self.dir.join("layers").join(diff_id.hex()), scratch.path.join("gone"))?;
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner).remove(diff_id);
        Ok(scratch)
    }
}

/// A directory below `tmp`, deleted on drop unless it was renamed.
pub(crate) struct Scratch {
    pub path: PathBuf,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_tree(&self.path);
    }
}

fn remove_tree(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "could not delete a temporary directory; the next start tries again");
        }
        _ => {}
    }
}

/// A layer on its way into the child. Dropping it kills the child and deletes what it made.
pub(crate) struct Unpacking {
    child: Option<Child>,
    stdin: Option<pipe::Sender>,
    scratch: Option<Scratch>,
}

/// A layer that the child has unpacked.
pub(crate) struct Filled {
    pub scratch: Scratch,
    pub report: Report,
}

impl Unpacking {
    /// Feeds the child. Once it has died nothing more is written, and [`Unpacking::finish`] tells why.
    pub async fn write(&mut self, bytes: &[u8]) {
        if let Some(stdin) = &mut self.stdin
            && stdin.write_all(bytes).await.is_err()
        {
            self.stdin = None;
        }
    }

    /// Waits for the child to end. Blocks.
    pub fn finish(mut self) -> Result<Filled, LayerError> {
        let failed =
            |source| LayerError::Io { context: "could not read from the unpacking process".to_owned(), source };
        self.stdin = None;
        let (Some(mut child), Some(scratch)) = (self.child.take(), self.scratch.take()) else {
            unreachable!("both are there until the end");
        };
        let (mut report, mut message) = (Vec::new(), String::new());
        let outputs = (child.stdout.take(), child.stderr.take());
        if let (Some(mut stdout), Some(stderr)) = outputs {
            stdout.read_to_end(&mut report).map_err(failed)?;
            // It comes from hostile hands: one line, and not a long one.
            stderr.take(4096).read_to_string(&mut message).map_err(failed)?;
        }
        let status = child.wait().map_err(failed)?;
        if !status.success() {
            let line = message.lines().next_back().unwrap_or_default().trim();
            let line: String = line.chars().filter(|c| !c.is_control()).take(512).collect();
            return Err(LayerError::Refused(if line.is_empty() {
                format!("the unpacking process ended with {status}")
            } else {
                line
            }));
        }
        let report = serde_json::from_slice(&report)
            .map_err(|error| LayerError::Refused(format!("the unpacking process reported nonsense: {error}")))?;
        Ok(Filled { scratch, report })
    }
}

impl Drop for Unpacking {
    fn drop(&mut self) {
        self.stdin = None;
        if let Some(mut child) = self.child.take() {
            let scratch = self.scratch.take();
            // Waiting and deleting take a while, and drop may run on a thread that serves others.
            std::thread::spawn(move || {
                let _ = child.kill(); // it has ended already
                let _ = child.wait();
                drop(scratch);
            });
        }
    }
}

/// The mark needs CAP_SYS_ADMIN, which the child has not: the child has ended, and the path is resolved inside the layer.
fn mark_opaque(root: BorrowedFd<'_>, report: &Report) -> Result<(), LayerError> {
    for path in report.opaque() {
        let path = path.ok_or_else(|| LayerError::Refused("the unpacking process reported nonsense".to_owned()))?;
        let path = if path.is_empty() { b".".to_vec() } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let marked = rustix::fs::openat2(root, &path[..], flags, Mode::empty(), resolve).and_then(|directory| {
            rustix::fs::fsetxattr(&directory, "trusted.overlay.opaque", b"y", XattrFlags::empty())
        });
        marked.map_err(|error| {
            let path = String::from_utf8_lossy(&path).escape_debug().to_string();
            LayerError::Io { context: format!("could not make /{path} opaque"), source: error.into() }
        })?;
    }
    Ok(())
}

/// Walks the tree in a fixed order, through descriptors.
fn summarize(root: BorrowedFd<'_>) -> Result<Tree, Errno> {
    let mut sum = Summary { hasher: Sha256::new(), entries: 0, disk_bytes: 0, linked: BTreeSet::new() };
    sum.entry(b"", &rustix::fs::fstat(root)?);
    sum.directory(root)?;
    Ok(Tree { entries: sum.entries, disk_bytes: sum.disk_bytes, hash: Digest::from_hasher(sum.hasher) })
}

struct Summary {
    hasher: Sha256,
    entries: u64,
    disk_bytes: u64,
    /// Files with several names count once.
    linked: BTreeSet<u64>,
}

impl Summary {
    fn directory(&mut self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut names = Vec::new();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push(name.to_vec());
            }
        }
        names.sort();
        for name in names {
            let stat = rustix::fs::statat(directory, &name[..], AtFlags::SYMLINK_NOFOLLOW)?;
            self.entry(&name, &stat);
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let inner = rustix::fs::openat(directory, &name[..], flags, Mode::empty())?;
                    self.directory(inner.as_fd())?;
                    self.hasher.update([0xff]); // the directory's end
                }
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(directory, &name[..], Vec::new())?;
                    self.hasher.update(target.as_bytes_with_nul());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn entry(&mut self, name: &[u8], stat: &rustix::fs::Stat) {
        self.entries += 1;
        if stat.st_nlink == 1 || self.linked.insert(stat.st_ino) {
            self.disk_bytes += stat.st_blocks as u64 * 512;
        }
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let size = if directory { 0 } else { stat.st_size as u64 }; // that of a directory depends on the file system
        self.hasher.update(name);
        self.hasher.update([0]);
        for field in
            [u64::from(stat.st_mode), stat.st_uid.into(), stat.st_gid.into(), size, stat.st_rdev, stat.st_mtime as u64]
        {
            self.hasher.update(field.to_le_bytes());
        }
    }
}

/// Replaces a file, which is whole or as it was, whatever happens. The caller keeps others from doing so. Blocks.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_durably_by(&path.with_extension("new"), path, bytes)
}

/// The same by way of a name that the caller alone uses.
pub(crate) fn write_durably_by(new: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let written = File::create(new).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(error) = written.and_then(|()| fs::rename(new, path)) {
        let _ = fs::remove_file(new); // the first error is the one to tell
        return Err(error);
    }
    File::open(path.parent().expect("files lie in a directory"))?.sync_all()
}
