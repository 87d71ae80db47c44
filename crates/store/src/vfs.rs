//! The disk as a value: what the store asks of a file system, and the real one.
//!
//! Tests pass a disk that forgets, tears and reorders what was not synced, and that fails on the call they choose.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};

/// A file system. Paths are absolute or relative to where the process runs; names within a directory are UTF-8.
pub trait Vfs: Send + Sync + 'static {
    /// Creates a directory, and its parents, durably and for this user alone; an existing one stays as it is.
    ///
    /// # Errors
    /// As the operating system gives them; this holds for every function here.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the exclusive lock that a file stands for, without waiting.
    fn lock(&self, path: &Path) -> io::Result<Locking>;
    /// The names in a directory, in no particular order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Creates a file that does not exist, for this user alone.
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>>;
    /// Opens an existing file to read and write.
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>>;
    /// Renames a file over another one or to a new name, atomically. Durable after [`Vfs::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the directory's entries durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file.
pub trait File: Send + Sync {
    fn size(&self) -> io::Result<u64>;
    /// Reads at most `buffer.len()` bytes; 0 at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes at least one and at most `data.len()` bytes.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize>;
    /// Reserves space up to `size`; the file is that long afterwards and reads as zeros where nothing was written.
    fn preallocate(&self, size: u64) -> io::Result<()>;
    fn truncate(&self, size: u64) -> io::Result<()>;
    /// Makes contents and size durable.
    fn sync(&self) -> io::Result<()>;
}

/// What came of trying to take a lock.
pub enum Locking {
    /// Held until it is dropped.
    Taken(Box<dyn Send + Sync>),
    /// What the holder wrote into the file: its process id.
    HeldBy(String),
}

/// The directory that holds the entry of `path`.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads until `buffer` is full or the file ends, and returns how much that was.
///
/// # Errors
/// As [`File::read_at`], interrupts aside.
pub fn read_full_at(file: &dyn File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Writes all of `data`, in as many calls as that takes.
///
/// # Errors
/// As [`File::write_at`], interrupts aside; any part of `data` may have been written.
pub fn write_all_at(file: &dyn File, data: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < data.len() {
        match file.write_at(&data[done..], offset + done as u64) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => done += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealVfs;

impl Vfs for RealVfs {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let missing: Vec<_> = dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        missing.into_iter().try_for_each(|dir| self.sync_dir(parent(dir)))
    }

    fn lock(&self, path: &Path) -> io::Result<Locking> {
        let mut file =
            fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder)?;
                let holder = holder.trim();
                return Ok(Locking::HeldBy(if holder.is_empty() { "(unknown)" } else { holder }.to_owned()));
            }
            Err(errno) => return Err(errno.into()),
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Locking::Taken(Box::new(file)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            // What is not UTF-8 was not written by the store.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(RealFile(fs::OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }
}

struct RealFile(fs::File);

impl File for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        self.0.write_at(data, offset)
    }

    fn preallocate(&self, size: u64) -> io::Result<()> {
        match rustix::io::retry_on_intr(|| fallocate(&self.0, FallocateFlags::empty(), 0, size)) {
            Ok(()) => Ok(()),
            // Such as NFS before 4.2: an append then costs a size update, and may find the disk full.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) if self.size()? < size => self.0.set_len(size),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.0.set_len(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
