//! What readers of a store share: the visible state behind a lock, and one channel that tells its revision.
//!
//! A watch is a place in the shared history. Nothing is buffered for it: a slow one costs nothing, and ends only when its
//! place is compacted away.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use api::object::Change;
use tokio::sync::watch;

use crate::state::{Commit, Stage, State, rewind};
use crate::{BoxFuture, Cursor, Error, Snapshot};

#[derive(Debug)]
pub(crate) struct View {
    state: RwLock<State>,
    head: watch::Sender<u64>,
}

impl View {
    pub fn new(state: State) -> Arc<Self> {
        let head = watch::Sender::new(state.revision());
        Arc::new(Self { state: RwLock::new(state), head })
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        // Nothing that holds the lock can panic half-way through a change.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stage(&self) -> Stage {
        self.read().stage()
    }

    pub fn publish(&self, stage: Stage, commits: Vec<Commit>) {
        let revision = stage.revision();
        let now = Instant::now();
        let dropped = self.state.write().unwrap_or_else(PoisonError::into_inner).publish(stage, commits, now);
        self.head.send_replace(revision);
        drop(dropped);
    }

    pub fn snapshot(&self) -> Snapshot {
        self.read().snapshot()
    }

    pub fn snapshot_at(&self, revision: u64) -> Result<Snapshot, Error> {
        let (current, newer) = {
            let state = self.read();
            state.reaches(revision)?;
            (state.snapshot(), state.since(revision).rev().cloned().collect::<Vec<_>>())
        };
        Ok(Snapshot { objects: rewind(current.objects, &newer), revision })
    }

    /// Only this store issues revisions, so that one it has not issued will not become visible by waiting.
    pub fn wait_until(&self, revision: u64) -> Result<(), Error> {
        let current = self.read().revision();
        if revision > current { Err(Error::Future { requested: revision, current }) } else { Ok(()) }
    }

    pub fn watch(self: &Arc<Self>, prefix: &str, after: u64) -> Result<Box<dyn Cursor>, Error> {
        self.read().reaches(after)?;
        let head = self.head.subscribe();
        Ok(Box::new(Place { view: self.clone(), prefix: prefix.into(), revision: after, head }))
    }
}

/// A cursor's place in the shared history.
struct Place {
    view: Arc<View>,
    prefix: Box<str>,
    revision: u64,
    head: watch::Receiver<u64>,
}

impl Place {
    /// Takes what has happened since, or `None` when nothing has.
    fn advance(&mut self) -> Result<Option<Vec<Change>>, Error> {
        /// Commits looked at under one hold of the lock, so that a watch from far back does not delay writers.
        const BATCH: usize = 512;
        let state = self.view.read();
        if state.revision() == self.revision {
            return Ok(None);
        }
        state.reaches(self.revision)?;
        let mut changes = Vec::new();
        let mut reached = state.revision();
        for (n, commit) in state.since(self.revision).enumerate() {
            if n == BATCH {
                break;
            }
            reached = commit.revision;
            changes.extend(commit.changes.iter().filter(|c| c.key().as_str().starts_with(&*self.prefix)).cloned());
        }
        #[cfg(feature = "planted")]
        if !changes.is_empty() && planted::every(planted::Bug::WatchDropsEvent, 40) {
            changes.pop();
        }
        #[cfg(feature = "planted")]
        if !changes.is_empty() && planted::every(planted::Bug::WatchDoublesEvent, 40) {
            changes.extend(changes.last().cloned());
        }
        self.revision = reached;
        Ok(Some(changes))
    }
}

impl Cursor for Place {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>, Error>> {
        Box::pin(async {
            loop {
                self.head.borrow_and_update();
                if let Some(changes) = self.advance()? {
                    return Ok(changes);
                }
                // The sender lives in `view`, which this place keeps alive.
                self.head.changed().await.map_err(|_| Error::Closed)?;
            }
        })
    }

    fn revision(&self) -> u64 {
        self.revision
    }
}
