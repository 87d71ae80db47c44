//! A disk that remembers every call, so that a crash can be put after each of them, and that fails on the call one chooses.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use store::seal::Rng;
use store::vfs::{File, Locking, Vfs};

const SECTOR: usize = 512;

/// xorshift64*: reproducible from its seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// Random bytes from a seed.
pub struct SeededRng(Mutex<Random>);

impl SeededRng {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Random::new(seed))))
    }
}

impl Rng for SeededRng {
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        let mut random = self.0.lock().unwrap();
        bytes.iter_mut().for_each(|byte| *byte = random.next() as u8);
        Ok(())
    }
}

/// A call that changed the disk, or a note of the test's.
#[derive(Clone, Debug)]
pub enum Event {
    Create {
        path: PathBuf,
        inode: usize,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        inode: usize,
    },
    Remove {
        path: PathBuf,
    },
    SyncDir {
        dir: PathBuf,
    },
    Write {
        inode: usize,
        offset: usize,
        data: Vec<u8>,
    },
    Extend {
        inode: usize,
        size: usize,
    },
    Truncate {
        inode: usize,
        size: usize,
    },
    Sync {
        inode: usize,
    },
    /// What it should have made durable stays in memory, marked as if it were: later syncs do not write it.
    FailedSync {
        inode: usize,
    },
    Note(u64),
}

/// What becomes of the calls that nothing had made durable yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// All are done: the process died, the machine did not.
    Killed,
    /// None is done.
    Dropped,
    /// The last write is cut, at a sector or at any byte.
    TornSector,
    TornByte,
    /// Any of them, sector by sector.
    Reordered,
    /// File contents are there, names are not.
    LostNames,
}

impl Crash {
    pub const ALL: [(Self, usize); 6] = [
        (Self::Killed, 1),
        (Self::Dropped, 1),
        (Self::TornSector, 2),
        (Self::TornByte, 3),
        (Self::Reordered, 6),
        (Self::LostNames, 1),
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Enospc,
    Eio,
    /// A write takes half of the data; other calls succeed.
    Short,
    /// A write takes half of the data, and the next call finds the disk full.
    ShortThenFull,
    Interrupted,
    /// Every call that needs space fails from the chosen one on.
    StaysFull,
}

#[derive(Clone, Debug, Default)]
pub struct Image {
    pub names: BTreeMap<PathBuf, usize>,
    pub inodes: Vec<Vec<u8>>,
}

impl Image {
    /// The contents of the files by name, but for the lock.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        self.names.iter().map(|(path, inode)| (path.clone(), self.inodes[*inode].clone())).collect()
    }

    pub fn edit(&mut self, path: &Path) -> &mut Vec<u8> {
        &mut self.inodes[self.names[path]]
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::Create { path, inode } => {
                self.grow(*inode);
                self.names.insert(path.clone(), *inode);
            }
            Event::Rename { from, to, inode } => {
                self.grow(*inode);
                self.names.remove(from);
                self.names.insert(to.clone(), *inode);
            }
            Event::Remove { path } => {
                self.names.remove(path);
            }
            Event::Write { inode, offset, data } => self.write(*inode, *offset, data),
            Event::Extend { inode, size } => {
                self.grow(*inode);
                let size = self.inodes[*inode].len().max(*size);
                self.inodes[*inode].resize(size, 0);
            }
            Event::Truncate { inode, size } => {
                self.grow(*inode);
                self.inodes[*inode].resize(*size, 0);
            }
            Event::SyncDir { .. } | Event::Sync { .. } | Event::FailedSync { .. } | Event::Note(_) => {}
        }
    }

    fn write(&mut self, inode: usize, offset: usize, data: &[u8]) {
        self.grow(inode);
        let contents = &mut self.inodes[inode];
        contents.resize(contents.len().max(offset + data.len()), 0);
        contents[offset..offset + data.len()].copy_from_slice(data);
    }

    fn grow(&mut self, inode: usize) {
        self.inodes.resize(self.inodes.len().max(inode + 1), Vec::new());
    }
}

#[derive(Default)]
struct Disk {
    before: Image,
    now: Image,
    events: Vec<Event>,
    locks: HashSet<PathBuf>,
    calls: u64,
    fault: Option<(u64, Fault)>,
    /// The event during which the fault struck, for messages.
    struck: Option<&'static str>,
    syncs_held: bool,
}

#[derive(Clone, Default)]
pub struct SimVfs(Arc<(Mutex<Disk>, Condvar)>);

impl SimVfs {
    pub fn new(image: Image) -> Self {
        let disk = Disk { before: image.clone(), now: image, ..Disk::default() };
        Self(Arc::new((Mutex::new(disk), Condvar::new())))
    }

    /// A disk whose `nth` call from now on fails.
    pub fn failing(image: Image, nth: u64, fault: Fault) -> Self {
        let disk = Self::new(image);
        disk.disk().fault = Some((nth, fault));
        disk
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.0.lock().unwrap()
    }

    pub fn note(&self, note: u64) {
        self.disk().events.push(Event::Note(note));
    }

    pub fn events(&self) -> Vec<Event> {
        self.disk().events.clone()
    }

    pub fn image(&self) -> Image {
        self.disk().now.clone()
    }

    pub fn calls(&self) -> u64 {
        self.disk().calls
    }

    pub fn struck(&self) -> Option<&'static str> {
        self.disk().struck
    }

    /// Lets calls succeed again.
    pub fn heal(&self) {
        self.disk().fault = None;
    }

    pub fn hold_syncs(&self, held: bool) {
        self.disk().syncs_held = held;
        self.0.1.notify_all();
    }

    /// What a restart finds after a crash behind the first `point` events.
    pub fn crash(&self, point: usize, crash: Crash, random: &mut Random) -> Image {
        let disk = self.disk();
        crash_image(&disk.before, &disk.events[..point], crash, random)
    }

    fn call(&self, name: &'static str) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = self.disk();
        disk.calls += 1;
        let Some((nth, fault)) = disk.fault else { return Ok(disk) };
        let error = match fault {
            Fault::Enospc => ErrorKind::StorageFull.into(),
            Fault::Eio => io::Error::other("EIO"),
            Fault::Interrupted => ErrorKind::Interrupted.into(),
            Fault::Short => return Ok(disk),
            Fault::ShortThenFull if disk.calls == nth + 1 => ErrorKind::StorageFull.into(),
            Fault::ShortThenFull => return Ok(disk),
            Fault::StaysFull if disk.calls >= nth && ["create", "preallocate", "write_at"].contains(&name) => {
                disk.struck = Some(name);
                return Err(ErrorKind::StorageFull.into());
            }
            Fault::StaysFull => return Ok(disk),
        };
        if disk.calls == nth || fault == Fault::ShortThenFull {
            disk.struck = Some(name);
            return Err(error);
        }
        Ok(disk)
    }
}

fn crash_image(before: &Image, events: &[Event], crash: Crash, random: &mut Random) -> Image {
    let durable = durable(events);
    let last_write = events.iter().enumerate().rposition(|(n, e)| !durable[n] && matches!(e, Event::Write { .. }));
    let mut image = before.clone();
    for (n, event) in events.iter().enumerate() {
        let names = matches!(event, Event::Create { .. } | Event::Rename { .. } | Event::Remove { .. });
        match (crash, event) {
            _ if durable[n] => image.apply(event),
            (Crash::Dropped, _) => {}
            (Crash::LostNames, _) if names => {}
            (Crash::TornSector | Crash::TornByte, Event::Write { inode, offset, data }) if Some(n) == last_write => {
                let mut cut = random.below(data.len() + 1);
                if crash == Crash::TornSector {
                    cut = ((offset + cut) / SECTOR * SECTOR).saturating_sub(*offset);
                }
                image.write(*inode, *offset, &data[..cut]);
            }
            (Crash::Reordered, Event::Write { inode, offset, data }) => {
                let mut at = 0;
                while at < data.len() {
                    let end = (((offset + at) / SECTOR + 1) * SECTOR - offset).min(data.len());
                    if random.coin() {
                        image.write(*inode, offset + at, &data[at..end]);
                    }
                    at = end;
                }
            }
            (Crash::Reordered, _) if random.coin() => {}
            (Crash::Killed | Crash::LostNames | Crash::TornSector | Crash::TornByte | Crash::Reordered, event) => {
                image.apply(event)
            }
        }
    }
    image
}

/// Which events a later sync has made durable.
fn durable(events: &[Event]) -> Vec<bool> {
    let (mut files, mut dirs) = (HashSet::new(), HashSet::new());
    let mut durable = vec![false; events.len()];
    for (n, event) in events.iter().enumerate().rev() {
        durable[n] = match event {
            Event::Create { path, .. } | Event::Rename { to: path, .. } | Event::Remove { path } => {
                path.parent().is_some_and(|dir| dirs.contains(dir))
            }
            Event::Write { inode, .. } | Event::Extend { inode, .. } | Event::Truncate { inode, .. } => {
                files.contains(inode)
            }
            Event::Sync { inode } => {
                files.insert(*inode);
                true
            }
            Event::FailedSync { inode } => {
                files.remove(inode);
                true
            }
            Event::SyncDir { dir } => {
                dirs.insert(dir.as_path());
                true
            }
            Event::Note(_) => true,
        };
    }
    durable
}

fn missing() -> io::Error {
    ErrorKind::NotFound.into()
}

struct Unlock(SimVfs, PathBuf);

impl Drop for Unlock {
    fn drop(&mut self) {
        self.0.disk().locks.remove(&self.1);
    }
}

impl Vfs for SimVfs {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        self.call("create_dir").map(|_| ())
    }

    fn lock(&self, path: &Path) -> io::Result<Locking> {
        if self.call("lock")?.locks.insert(path.to_owned()) {
            Ok(Locking::Taken(Box::new(Unlock(self.clone(), path.to_owned()))))
        } else {
            Ok(Locking::HeldBy("1".to_owned()))
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.call("list")?;
        let within = disk.now.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(within.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut disk = self.call("create")?;
        if disk.now.names.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let inode = disk.now.inodes.len();
        disk.record(Event::Create { path: path.to_owned(), inode });
        Ok(Box::new(SimFile { vfs: self.clone(), inode }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let inode = *self.call("open")?.now.names.get(path).ok_or_else(missing)?;
        Ok(Box::new(SimFile { vfs: self.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.call("rename")?;
        let inode = *disk.now.names.get(from).ok_or_else(missing)?;
        disk.record(Event::Rename { from: from.to_owned(), to: to.to_owned(), inode });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.call("remove")?;
        if !disk.now.names.contains_key(path) {
            return Err(missing());
        }
        disk.record(Event::Remove { path: path.to_owned() });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.call("sync_dir")?.record(Event::SyncDir { dir: dir.to_owned() });
        Ok(())
    }
}

impl Disk {
    fn record(&mut self, event: Event) {
        self.now.apply(&event);
        self.events.push(event);
    }
}

struct SimFile {
    vfs: SimVfs,
    inode: usize,
}

impl File for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.vfs.call("size")?.now.inodes[self.inode].len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let disk = self.vfs.call("read_at")?;
        let rest = disk.now.inodes[self.inode].get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        let offset = usize::try_from(offset).unwrap();
        let mut disk = match self.vfs.call("write_at") {
            Ok(disk) => disk,
            Err(error) => {
                // A failed write may have written anything.
                let data = data[..data.len() / 2].to_vec();
                self.vfs.disk().record(Event::Write { inode: self.inode, offset, data });
                return Err(error);
            }
        };
        let short = matches!(disk.fault, Some((nth, Fault::Short | Fault::ShortThenFull)) if disk.calls == nth);
        let len = if short && data.len() > 1 { data.len() / 2 } else { data.len() };
        disk.record(Event::Write { inode: self.inode, offset, data: data[..len].to_vec() });
        Ok(len)
    }

    fn preallocate(&self, size: u64) -> io::Result<()> {
        let size = usize::try_from(size).unwrap();
        self.vfs.call("preallocate")?.record(Event::Extend { inode: self.inode, size });
        Ok(())
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        let size = usize::try_from(size).unwrap();
        self.vfs.call("truncate")?.record(Event::Truncate { inode: self.inode, size });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = match self.vfs.call("sync") {
            Ok(disk) => disk,
            Err(error) => {
                self.vfs.disk().record(Event::FailedSync { inode: self.inode });
                return Err(error);
            }
        };
        while disk.syncs_held {
            disk = self.vfs.0.1.wait(disk).unwrap();
        }
        disk.record(Event::Sync { inode: self.inode });
        Ok(())
    }
}
