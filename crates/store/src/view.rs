//! What readers of a store share: the visible state behind a lock, and who waits for what.
//!
//! A watch is a place in the shared history. Nothing is buffered for it: a slow one costs nothing, and ends only when a change that it
//! has not seen is compacted away. It sleeps while others' keys change, and its place counts as moving on with them.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use api::object::Change;
use tokio::sync::watch;

use crate::state::{Commit, Stage, State, rewind};
use crate::topics::Topics;
use crate::{BoxFuture, Cursor, Error, Snapshot};

#[derive(Debug)]
pub(crate) struct View(RwLock<Visible>);

#[derive(Debug)]
struct Visible {
    state: State,
    topics: Topics,
}

impl View {
    pub fn new(state: State) -> Arc<Self> {
        Arc::new(Self(RwLock::new(Visible { state, topics: Topics::default() })))
    }

    fn read(&self) -> RwLockReadGuard<'_, Visible> {
        // Nothing that holds the lock can panic half-way through a change.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Visible> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stage(&self) -> Stage {
        self.read().state.stage()
    }

    pub fn publish(&self, stage: Stage, commits: Vec<Commit>) {
        let now = Instant::now();
        let (woken, dropped) = {
            let Visible { state, topics } = &mut *self.write();
            let woken = topics.touch(&commits, state.revision());
            let dropped = state.publish(stage, commits, now);
            topics.forget(&dropped);
            (woken, dropped)
        };
        // Outside of the lock, which all who are woken take.
        woken.iter().for_each(|wake| wake.send_replace(()));
        drop(dropped);
    }

    pub fn snapshot(&self) -> Snapshot {
        self.read().state.snapshot()
    }

    pub fn snapshot_at(&self, revision: u64) -> Result<Snapshot, Error> {
        let (current, newer) = {
            let state = &self.read().state;
            state.reaches(revision)?;
            (state.snapshot(), state.since(revision).rev().cloned().collect::<Vec<_>>())
        };
        Ok(Snapshot { objects: rewind(current.objects, &newer), revision })
    }

    /// Only this store issues revisions, so that one it has not issued will not become visible by waiting.
    pub fn wait_until(&self, revision: u64) -> Result<(), Error> {
        let current = self.read().state.revision();
        if revision > current { Err(Error::Future { requested: revision, current }) } else { Ok(()) }
    }

    pub fn unchanged(&self, prefix: &str, revision: u64) -> u64 {
        let Visible { state, topics } = &*self.read();
        match topics.of(prefix).and_then(|topic| topic.touched_after(revision)) {
            Some(mut touched) => touched.next().map_or(state.revision(), |next| next - 1),
            None => revision,
        }
    }

    pub fn watch(self: &Arc<Self>, prefix: &str, after: u64) -> Result<Box<dyn Cursor>, Error> {
        let Visible { state, topics } = &mut *self.write();
        state.reaches(after)?;
        let wake = topics.join(prefix, state.revision());
        Ok(Box::new(Place { view: self.clone(), prefix: prefix.into(), revision: after, wake }))
    }
}

/// A cursor's place in the shared history.
struct Place {
    view: Arc<View>,
    prefix: Box<str>,
    /// Everything up to here has been returned.
    revision: u64,
    wake: watch::Receiver<()>,
}

impl Place {
    /// Takes what has happened since, or `None` when nothing has.
    fn advance(&mut self) -> Result<Option<Vec<Change>>, Error> {
        let Visible { state, topics } = &*self.view.read();
        let touched = topics.of(&self.prefix).and_then(|topic| topic.touched_after(self.revision));
        let (reached, changes) = match touched {
            Some(touched) if touched.len() == 0 => {
                self.revision = state.revision();
                return Ok(None);
            }
            Some(touched) => matching(&self.prefix, state.commits(touched)),
            // It begins before the topic was followed, or a change that it has not seen is gone.
            None => {
                state.reaches(self.revision)?;
                matching(&self.prefix, state.since(self.revision))
            }
        };
        self.revision = reached.unwrap_or(state.revision());
        Ok(Some(changes))
    }
}

/// What the next commits change of a prefix, and the last that was looked at, unless that was all.
fn matching<'a>(prefix: &str, mut commits: impl Iterator<Item = &'a Commit>) -> (Option<u64>, Vec<Change>) {
    /// Commits looked at under one hold of the lock, so that a watch from far back does not delay writers.
    const BATCH: usize = 512;
    let (mut last, mut changes) = (None, Vec::new());
    for commit in commits.by_ref().take(BATCH) {
        last = Some(commit.revision);
        changes.extend(commit.changes.iter().filter(|change| change.key().as_str().starts_with(prefix)).cloned());
    }
    #[cfg(feature = "planted")]
    if !changes.is_empty() && planted::every(planted::Bug::WatchDropsEvent, 40) {
        changes.pop();
    }
    #[cfg(feature = "planted")]
    if !changes.is_empty() && planted::every(planted::Bug::WatchDoublesEvent, 40) {
        changes.extend(changes.last().cloned());
    }
    (last.filter(|_| commits.next().is_some()), changes)
}

impl Cursor for Place {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>, Error>> {
        Box::pin(async {
            loop {
                self.wake.mark_unchanged();
                if let Some(changes) = self.advance()? {
                    return Ok(changes);
                }
                // The sender lives in `view` for as long as this place has not left.
                self.wake.changed().await.map_err(|_| Error::Closed)?;
            }
        })
    }

    fn revision(&self) -> u64 {
        self.view.unchanged(&self.prefix, self.revision)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.view.write().topics.leave(&self.prefix);
    }
}
