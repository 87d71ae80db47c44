//! The engine of both stores, without IO or locks: transactions, history and compaction over one persistent map.
//!
//! Writes go to a [`Stage`], a private continuation of the state that costs nothing to throw away; once its commits are as
//! durable as the store promises, [`State::publish`] makes them visible. Semantics follow etcd's `server/storage/mvcc`.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::key::Key;
use api::object::{Change, Object};
use imbl::OrdMap;

use crate::{Committed, Compare, Error, Op, Snapshot};

/// How much history is kept for watches and continue tokens. What exceeds one of the limits is compacted, oldest first, with the next
/// write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Transactions.
    pub commits: usize,
    /// Memory held by superseded objects, in bytes.
    pub bytes: usize,
    /// How long a transaction is remembered.
    pub age: Duration,
}

/// etcd's compaction interval under Kubernetes (apiserver `pkg/storage/storagebackend/config.go`), of a busy small cluster.
impl Default for Limits {
    fn default() -> Self {
        Self { commits: 16_384, bytes: 12 << 20, age: Duration::from_secs(5 * 60) }
    }
}

/// One transaction as history keeps it: at most one change per key.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub revision: u64,
    pub changes: Arc<[Change]>,
    /// Whether it may wait in memory for the next durable commit.
    pub lazy: bool,
}

impl Commit {
    /// What history alone keeps alive because of this commit, in bytes.
    fn cost(&self) -> usize {
        /// An object's metadata and allocations beside its body, measured on a Pod.
        const OVERHEAD: usize = 512;
        let superseded = |change: &Change| match change {
            Change::Added(_) => 0,
            Change::Modified { old, .. } => OVERHEAD + old.draft().body().len(),
            Change::Deleted { last, .. } => OVERHEAD + last.draft().body().len(),
        };
        size_of::<Self>() + self.changes.iter().map(|change| size_of::<Change>() + superseded(change)).sum::<usize>()
    }
}

/// Revisions that a crash took: they may have been seen, but nobody knows what they held. Both ends are included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lost {
    first: u64,
    last: u64,
}

#[derive(Debug)]
pub(crate) struct State {
    objects: OrdMap<Key, Arc<Object>>,
    revision: u64,
    /// Ascending by revision and by when it became visible, complete after `compacted` except for `lost`.
    history: VecDeque<(Instant, Commit)>,
    compacted: u64,
    lost: VecDeque<Lost>,
    bytes: usize,
    limits: Limits,
}

impl State {
    /// An empty state. It begins at revision 1 as etcd's does: to clients 0 means "any".
    pub fn new(limits: Limits) -> Self {
        Self { compacted: 0, ..Self::at(OrdMap::new(), 1, limits) }
    }

    /// A state without history.
    pub fn at(objects: OrdMap<Key, Arc<Object>>, revision: u64, limits: Limits) -> Self {
        Self {
            objects,
            revision,
            history: VecDeque::new(),
            compacted: revision,
            lost: VecDeque::new(),
            bytes: 0,
            limits,
        }
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot { objects: self.objects.clone(), revision: self.revision }
    }

    pub fn stage(&self) -> Stage {
        Stage { objects: self.objects.clone(), revision: self.revision }
    }

    /// Moves to what was staged at this moment. Returns the compacted part of history, for the caller to drop outside its lock.
    pub fn publish(&mut self, stage: Stage, commits: Vec<Commit>, now: Instant) -> Vec<Commit> {
        self.objects = stage.objects;
        self.revision = stage.revision;
        self.bytes += commits.iter().map(Commit::cost).sum::<usize>();
        self.history.extend(commits.into_iter().map(|commit| (now, commit)));
        self.compact(now)
    }

    /// Commits again, as `revision`, what was read back. Nobody looks at the state yet, so that it is changed in place.
    pub fn replay(&mut self, revision: u64, ops: Vec<Op>, now: Instant) -> Vec<Commit> {
        let mut stage = Stage { objects: std::mem::take(&mut self.objects), revision };
        let (_, changes) = stage.write(revision, ops);
        self.publish(stage, vec![Commit { revision, changes: changes.into(), lazy: false }], now)
    }

    /// Moves to `revision` without a change, because the revisions between may have been issued before a crash.
    pub fn skip_to(&mut self, revision: u64) {
        if revision > self.revision + 1 {
            self.lost.push_back(Lost { first: self.revision + 1, last: revision - 1 });
        }
        self.revision = self.revision.max(revision);
    }

    /// The latest commit always stays, so that a watcher which kept up until now gets it whatever its size.
    fn compact(&mut self, now: Instant) -> Vec<Commit> {
        let mut dropped = Vec::new();
        let Limits { commits, bytes, age } = self.limits;
        while self.history.len() > 1
            && (self.history.len() > commits || self.bytes > bytes || now.duration_since(self.history[0].0) > age)
        {
            let (_, commit) = self.history.pop_front().expect("it has more than one entry");
            self.bytes -= commit.cost();
            self.compacted = commit.revision;
            dropped.push(commit);
        }
        while self.lost.front().is_some_and(|lost| lost.last < self.compacted) {
            self.lost.pop_front();
        }
        dropped
    }

    /// Checks that the state at `revision` and every change after it are known.
    pub fn reaches(&self, revision: u64) -> Result<(), Error> {
        if revision > self.revision {
            return Err(Error::Future { requested: revision, current: self.revision });
        }
        if revision < self.compacted {
            return Err(Error::Compacted { requested: revision, oldest: self.compacted });
        }
        match self.lost.iter().find(|lost| (lost.first..=lost.last).contains(&revision)) {
            Some(lost) => Err(Error::Compacted { requested: revision, oldest: lost.last + 1 }),
            None => Ok(()),
        }
    }

    /// The commits after a revision, oldest first.
    pub fn since(&self, revision: u64) -> impl DoubleEndedIterator<Item = &Commit> {
        let start = self.history.partition_point(|(_, commit)| commit.revision <= revision);
        self.history.range(start..).map(|(_, commit)| commit)
    }

    /// The commits of these revisions, which ascend and often follow each other.
    pub fn commits(&self, revisions: impl Iterator<Item = u64>) -> impl Iterator<Item = &Commit> {
        let mut next = 0;
        revisions.filter_map(move |revision| {
            let is_wanted = |(_, commit): &&(Instant, Commit)| commit.revision == revision;
            if self.history.get(next).filter(is_wanted).is_none() {
                next = self.history.partition_point(|(_, commit)| commit.revision < revision);
            }
            let (_, commit) = self.history.get(next).filter(is_wanted)?;
            next += 1;
            Some(commit)
        })
    }
}

/// Undoes `commits`, given newest first.
///
/// Continue tokens are seconds old, so that undoing costs little; a map kept for every revision would cost each commit a copy
/// of the tree's path for as long as history lasts.
pub(crate) fn rewind(mut objects: OrdMap<Key, Arc<Object>>, commits: &[Commit]) -> OrdMap<Key, Arc<Object>> {
    for change in commits.iter().flat_map(|commit| commit.changes.iter()) {
        match change {
            Change::Added(object) => objects.remove(object.key()),
            Change::Modified { old: object, .. } | Change::Deleted { last: object, .. } => {
                objects.insert(object.key().clone(), object.clone())
            }
        };
    }
    objects
}

/// A continuation of the state that nobody sees yet.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    objects: OrdMap<Key, Arc<Object>>,
    revision: u64,
}

/// A transaction's outcome, and what it adds to history when it changed anything.
#[derive(Debug)]
pub(crate) struct Applied {
    pub committed: Committed,
    pub commit: Option<Commit>,
}

impl Stage {
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Applies a transaction as the next revision. One that changes nothing takes no revision, as in etcd.
    ///
    /// # Errors
    /// [`Error::Conflict`]; the stage is as before.
    pub fn apply(&mut self, compares: &[Compare], ops: Vec<Op>) -> Result<Applied, Error> {
        for (index, compare) in compares.iter().enumerate() {
            self.check(compare).map_err(|current| Error::Conflict { index, current })?;
        }
        let lazy = ops.iter().all(|op| matches!(op, Op::PutLazily(_)));
        #[cfg(feature = "planted")]
        if !lazy && planted::every(planted::Bug::RevisionAgain, 50) {
            self.revision -= 1;
        }
        let (objects, changes) = self.write(self.revision + 1, ops);
        let commit = (!changes.is_empty()).then(|| {
            self.revision += 1;
            Commit { revision: self.revision, changes: changes.into(), lazy }
        });
        Ok(Applied { committed: Committed { revision: self.revision, objects }, commit })
    }

    /// Returns the object that is in the way when the compare does not hold.
    fn check(&self, compare: &Compare) -> Result<(), Option<Arc<Object>>> {
        let (Compare::Absent(key) | Compare::Exists(key) | Compare::Revision(key, _)) = compare;
        let object = self.objects.get(key);
        let holds = match compare {
            Compare::Absent(_) => object.is_none(),
            Compare::Exists(_) => object.is_some(),
            Compare::Revision(_, revision) => object.is_some_and(|object| object.revision == *revision),
        };
        if holds { Ok(()) } else { Err(object.cloned()) }
    }

    /// Applies ops in order; a key written twice shows once among the changes.
    fn write(&mut self, revision: u64, ops: Vec<Op>) -> (Vec<Option<Arc<Object>>>, Vec<Change>) {
        let several = ops.len() > 1;
        let mut written = Vec::with_capacity(ops.len());
        // Each key with what it was before.
        let (mut touched, mut seen) = (Vec::with_capacity(ops.len()), HashSet::new());
        let mut touch = |key: Key, before: Option<Arc<Object>>| {
            if !several || seen.insert(key.clone()) {
                touched.push((key, before));
            }
        };
        for op in ops {
            match op {
                Op::Put(draft) | Op::PutLazily(draft) => {
                    let key = draft.key.clone();
                    let object = draft.commit(revision);
                    let before = self.objects.insert(key.clone(), object.clone());
                    written.push(Some(object));
                    touch(key, before);
                }
                #[cfg(feature = "planted")]
                Op::Delete(key) if planted::every(planted::Bug::DeleteNotApplied, 10) => {
                    written.push(self.objects.get(&key).cloned());
                }
                Op::Delete(key) => {
                    let before = self.objects.remove(&key);
                    written.push(before.clone());
                    touch(key, before);
                }
            }
        }
        let changes = touched.into_iter().filter_map(|(key, before)| match (before, self.objects.get(&key)) {
            (None, None) => None,
            (None, Some(new)) => Some(Change::Added(new.clone())),
            (Some(old), Some(new)) => Some(Change::Modified { old, new: new.clone() }),
            (Some(last), None) => Some(Change::Deleted { last, revision }),
        });
        (written, changes.collect())
    }
}

#[cfg(test)]
mod tests {
    use api::object::Draft;
    use serde_json::json;

    use super::*;

    fn write(state: &mut State, at: Instant) -> u64 {
        let key = Key::parse("/core/pods/default/a").unwrap();
        let mut stage = state.stage();
        let draft = Draft::new(key, json!({"metadata": {"name": "a"}, "revision": stage.revision()})).unwrap();
        let commit = stage.apply(&[], vec![Op::Put(draft)]).unwrap().commit.unwrap();
        let revision = commit.revision;
        state.publish(stage, vec![commit], at);
        revision
    }

    #[test]
    fn old_transactions_are_forgotten_with_the_next_write() {
        let start = Instant::now();
        let minutes = |n: u64| start + Duration::from_secs(60 * n);
        let mut state = State::new(Limits::default());
        let (first, second) = (write(&mut state, start), write(&mut state, minutes(4)));
        assert!(state.reaches(first - 1).is_ok());

        let third = write(&mut state, minutes(6));
        let gone = state.reaches(first - 1).unwrap_err();
        assert!(matches!(gone, Error::Compacted { oldest, .. } if oldest == first), "{gone}");
        assert_eq!(state.since(first).map(|commit| commit.revision).collect::<Vec<_>>(), [second, third]);

        // Whoever kept up until now misses nothing, however long it was quiet.
        let fourth = write(&mut state, minutes(60));
        assert_eq!(state.since(third).map(|commit| commit.revision).collect::<Vec<_>>(), [fourth]);
        assert!(state.reaches(third).is_ok() && state.reaches(second).is_err());
    }
}
