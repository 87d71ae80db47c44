//! The durable store: everything in memory, and a log and checkpoints that bring it back.
//!
//! Reads never wait for the disk. Writes go through one thread, which answers a group of them after one sync. After a write
//! or a sync has failed the store refuses further writes, because only a restart, which reads the disk again, can tell what
//! is on it; reads go on. A full disk only fails the writes that found it full.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use crate::record::BadRecord;
use crate::recover::recover;
use crate::seal::{KeyId, Keyring, Rng};
use crate::state::Limits;
use crate::vfs::{Locking, Vfs, parent};
use crate::view::View;
use crate::writer::{Command, Request, Writer};
use crate::{BoxFuture, Committed, Compare, Cursor, Error, Op, Snapshot, Store};

/// Writers that may wait for the disk; beyond it `txn` waits for a place in the queue.
const QUEUE: usize = 1024;

/// Where and how a store is kept.
#[derive(Debug)]
pub struct Options {
    /// The store's own directory, created if it is missing.
    pub dir: PathBuf,
    /// The keys that Secrets are sealed with; their file belongs outside `dir`.
    pub keys: Arc<Keyring>,
    pub limits: Limits,
    /// The size that a segment of the log is preallocated with.
    pub segment_bytes: u64,
    /// How much log there is before a checkpoint replaces it. A larger store waits for a log of its own size.
    pub checkpoint_bytes: u64,
}

impl Options {
    pub fn new(dir: impl Into<PathBuf>, keys: Keyring) -> Self {
        Self {
            dir: dir.into(),
            keys: Arc::new(keys),
            limits: Limits::default(),
            segment_bytes: 4 << 20,
            checkpoint_bytes: 8 << 20,
        }
    }
}

/// Why a store was not opened. Nothing on disk was changed, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} is in use by process {holder}: stop it, or choose another data directory", dir.display())]
    Locked { dir: PathBuf, holder: String },
    #[error(
        "{} has format version {found} and this build knows only {known}: start the release that wrote it", path.display()
    )]
    Version { path: PathBuf, found: u32, known: u32 },
    #[error("{} is sealed with key {key}, which the key file does not hold: put that key's line back", path.display())]
    Key { path: PathBuf, key: KeyId },
    #[error("{} is damaged at byte {offset}: {what}; {repair}", path.display())]
    Damaged { path: PathBuf, offset: u64, what: &'static str, repair: String },
    /// A store that was only half created or mended is completed by the next attempt.
    #[error("could not {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl OpenError {
    /// The way out of damage that nothing on this disk can mend.
    pub(crate) const BACKUP: &str = "restore the directory from a backup";

    pub(crate) fn damaged(path: &Path, offset: u64, what: &'static str) -> Self {
        Self::damaged_but(path, offset, what, Self::BACKUP)
    }

    pub(crate) fn damaged_but(path: &Path, offset: u64, what: &'static str, repair: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, what, repair: repair.into() }
    }

    /// An intact frame whose payload was not taken.
    pub(crate) fn record(path: &Path, offset: u64, bad: BadRecord, repair: impl Into<String>) -> Self {
        match bad {
            BadRecord::UnknownKey(key) => Self::Key { path: path.to_owned(), key },
            BadRecord::Damaged(what) => Self::damaged_but(path, offset, what, repair),
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

/// A store on disk.
pub struct Durable {
    view: Arc<View>,
    queue: mpsc::Sender<Command>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// Opens the store in `options.dir`, or creates one. Blocks while it reads.
///
/// Its revision is one that was never issued before, unless the store was closed and nothing was lost.
///
/// # Errors
/// When another process has it open, or what is on disk is not a whole store that this build understands.
pub fn open(vfs: Arc<dyn Vfs>, rng: Arc<dyn Rng>, options: Options) -> Result<Arc<Durable>, OpenError> {
    let dir = &options.dir;
    let io = |action, source| OpenError::io(action, dir, source);
    vfs.create_dir(dir).map_err(|source| io("create", source))?;
    // It may have been created by a process that was killed before it could sync.
    vfs.sync_dir(parent(dir)).map_err(|source| io("sync the parent of", source))?;
    let lock = match vfs.lock(&dir.join("lock")).map_err(|source| io("lock", source))? {
        Locking::Taken(lock) => lock,
        Locking::HeldBy(holder) => return Err(OpenError::Locked { dir: dir.clone(), holder }),
    };
    let recovered = recover(&vfs, &options, &*rng)?;
    tracing::info!(dir = %dir.display(), revision = recovered.state.revision(), "store opened");
    let (queue, commands) = mpsc::channel(QUEUE);
    let (writer, view) = Writer::new(vfs, rng, lock, &options, recovered);
    let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || writer.run(commands));
    let thread = thread.map_err(|source| io("start the writer of", source))?;
    Ok(Arc::new(Durable { view, queue, writer: Mutex::new(Some(thread)) }))
}

impl Durable {
    /// Writes what is still in memory, notes that nothing was lost, and gives the directory free. Later writes fail.
    ///
    /// # Errors
    /// When the last write failed, or the store was closed before.
    pub async fn close(&self) -> Result<(), Error> {
        let (reply, closed) = oneshot::channel();
        self.queue.send(Command::Close(reply)).await.map_err(|_| Error::Closed)?;
        closed.await.map_err(|_| Error::Closed)?
    }

    /// Whether writes are refused, because one failed or [`Durable::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Waits until writes are refused: after a failure only a restart brings them back.
    ///
    /// Cancellation safe.
    pub async fn closed(&self) {
        self.queue.closed().await;
    }
}

/// Waits for the writer, so that the directory is free afterwards. Without [`Durable::close`] it stops as a crash would.
impl Drop for Durable {
    fn drop(&mut self) {
        let (unconnected, _) = mpsc::channel(1);
        self.queue = unconnected;
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if writer.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's writer panicked");
        }
    }
}

impl Store for Durable {
    fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> BoxFuture<'_, Result<Committed, Error>> {
        Box::pin(async move {
            let (reply, committed) = oneshot::channel();
            let request = Request { compares, ops, reply };
            self.queue.send(Command::Txn(request)).await.map_err(|_| Error::Closed)?;
            committed.await.map_err(|_| Error::Closed)?
        })
    }

    fn snapshot(&self) -> Snapshot {
        self.view.snapshot()
    }

    fn snapshot_at(&self, revision: u64) -> Result<Snapshot, Error> {
        self.view.snapshot_at(revision)
    }

    fn wait_until(&self, revision: u64) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.view.wait_until(revision) })
    }

    fn watch(&self, prefix: &str, after: u64) -> Result<Box<dyn Cursor>, Error> {
        self.view.watch(prefix, after)
    }
}
