//! The durable store: everything in memory, and a log and checkpoints that bring it back.
//!
//! Reads never wait for the disk. Writes go through one thread, which answers a group of them after one sync. After a write
//! or a sync has failed the store refuses further writes, because only a restart, which reads the disk again, can tell what
//! is on it; reads go on. A full disk only fails the writes that found it full.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

pub use crate::open::{OpenError, Options};
use crate::recover::recover;
use crate::seal::Rng;
use crate::vfs::{Locking, Vfs, parent};
use crate::view::View;
use crate::writer::{Command, Request, Writer};
use crate::{BoxFuture, Committed, Compare, Cursor, Error, Op, Snapshot, Store};

/// Writers that may wait for the disk; beyond it `txn` waits for a place in the queue.
const QUEUE: usize = 1024;

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

    fn unchanged(&self, prefix: &str, revision: u64) -> u64 {
        self.view.unchanged(prefix, revision)
    }
}
