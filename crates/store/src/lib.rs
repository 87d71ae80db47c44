//! Revisions, history and watch over one ordered map and one log.
//!
//! Every committed transaction gets the next revision of one sequence; lists, watches and continue tokens all speak of it.
//! Semantics follow etcd's KV and watch guarantees (`etcd.io/docs`, api_guarantees): watches are ordered, unique, atomic,
//! reliable, resumable and bookmarkable.
//!
//! [`memory::Memory`] and [`durable::Durable`] share one engine (`state`, pure) and one reading side (`view`, `topics`). The durable one
//! adds, from the outside in: one thread that writes (`writer`), the log (`log`) and checkpoints (`checkpoint`), what they
//! hold (`record`), how that is told from damage (`frame`), and the way back after a restart (`recover`). Disk and randomness
//! are values (`vfs`, `seal`), so that tests can crash and fail every call.

mod checkpoint;
pub mod durable;
mod frame;
#[doc(hidden)]
pub mod fuzz;
mod log;
pub mod memory;
mod open;
mod record;
mod recover;
pub mod seal;
pub mod state;
mod topics;
pub mod vfs;
mod view;
mod writer;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use api::key::Key;
use api::object::{Change, Draft, Object};

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the API server needs of a store. The in-memory and the durable one pass the same contract tests; etcd fits behind it.
pub trait Store: Send + Sync + 'static {
    /// Commits all `ops` as one revision if every compare holds, durably before it returns. What changes nothing takes no
    /// revision. Dropping the future does not take back what was asked for.
    ///
    /// # Errors
    /// [`Error::Conflict`] names the first compare that does not hold; nothing was written. After any other error nothing was
    /// acknowledged and the store may refuse further writes.
    fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> BoxFuture<'_, Result<Committed, Error>>;

    /// The current state. Cheap: shares structure with the store.
    fn snapshot(&self) -> Snapshot;

    /// The state at an earlier revision, for the next page of a list.
    ///
    /// # Errors
    /// [`Error::Compacted`] when that revision is gone, [`Error::Future`] when it does not exist yet.
    fn snapshot_at(&self, revision: u64) -> Result<Snapshot, Error>;

    /// Waits until `revision` is visible here; at once for a store of one server.
    ///
    /// # Errors
    /// [`Error::Future`] when no server has issued it.
    fn wait_until(&self, revision: u64) -> BoxFuture<'_, Result<(), Error>>;

    /// Watches keys beginning with `prefix` for changes after revision `after`.
    ///
    /// # Errors
    /// [`Error::Compacted`] when history no longer reaches back to `after`, [`Error::Future`] when it does not exist yet.
    fn watch(&self, prefix: &str, after: u64) -> Result<Box<dyn Cursor>, Error>;

    /// The latest revision at which keys beginning with `prefix` are known to be as they were at `revision`: it moves on with changes
    /// elsewhere. Known only while they are watched; otherwise `revision` itself.
    fn unchanged(&self, prefix: &str, revision: u64) -> u64;
}

/// A place in the shared history. Holds no buffer of its own, and is not woken by changes elsewhere.
pub trait Cursor: Send {
    /// Waits for the next changes: whole transactions, in order. A batch may be empty after a look at what was no match.
    ///
    /// Cancellation safe.
    ///
    /// # Errors
    /// [`Error::Compacted`] when history no longer holds a change that was to be returned.
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>, Error>>;

    /// The revision up to which everything has been returned: the value of a bookmark. Moves on with changes elsewhere.
    fn revision(&self) -> u64;
}

/// A condition on a key, checked atomically with the transaction's writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    Absent(Key),
    Exists(Key),
    /// The key exists and was last written at this revision.
    Revision(Key, u64),
}

#[derive(Clone, Debug)]
pub enum Op {
    Put(Draft),
    /// As `Put`, but may stay in memory until the next durable commit: for Lease renewals, which must not wear out disks.
    PutLazily(Draft),
    /// Does nothing when the key is absent.
    Delete(Key),
}

/// A transaction's outcome.
#[derive(Clone, Debug)]
pub struct Committed {
    pub revision: u64,
    /// One entry per op: the object written, or the last state of the one deleted.
    pub objects: Vec<Option<Arc<Object>>>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("compare {index} does not hold")]
    Conflict { index: usize, current: Option<Arc<Object>> },
    #[error("required revision {requested} has been compacted, oldest is {oldest}")]
    Compacted { requested: u64, oldest: u64 },
    #[error("revision {requested} is ahead of the current {current}")]
    Future { requested: u64, current: u64 },
    #[error("store is closed after an earlier failure")]
    Closed,
    #[error("could not write the log")]
    Io(#[source] Arc<std::io::Error>),
}

/// An immutable view at one revision.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(crate) objects: imbl::OrdMap<Key, Arc<Object>>,
    pub(crate) revision: u64,
}

impl Snapshot {
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn get(&self, key: &Key) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// Objects whose key begins with `prefix`, in key order, beginning behind `after` when it is given.
    pub fn range<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        use std::ops::Bound;
        let start = after.map_or(Bound::Included(prefix), Bound::Excluded);
        self.objects
            .range::<_, str>((start, Bound::Unbounded))
            .take_while(move |(key, _)| key.as_str().starts_with(prefix))
            .map(|(_, object)| object)
    }
}
