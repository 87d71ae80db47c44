//! A store without a disk, for tests and for clusters that may be forgotten.

use std::sync::{Arc, Mutex, PoisonError};

use crate::state::{Limits, State};
use crate::view::View;
use crate::{BoxFuture, Committed, Compare, Cursor, Error, Op, Snapshot, Store};

/// Everything in memory; a commit is as durable as the process.
#[derive(Debug)]
pub struct Memory {
    view: Arc<View>,
    writing: Mutex<()>,
}

impl Memory {
    pub fn new() -> Arc<Self> {
        Self::with_limits(Limits::default())
    }

    /// A store that keeps another amount of history.
    pub fn with_limits(limits: Limits) -> Arc<Self> {
        Arc::new(Self { view: View::new(State::new(limits)), writing: Mutex::new(()) })
    }

    fn commit(&self, compares: &[Compare], ops: Vec<Op>) -> Result<Committed, Error> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stage = self.view.stage();
        let applied = stage.apply(compares, ops)?;
        if let Some(commit) = applied.commit {
            self.view.publish(stage, vec![commit]);
        }
        Ok(applied.committed)
    }
}

impl Store for Memory {
    fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> BoxFuture<'_, Result<Committed, Error>> {
        Box::pin(async move { self.commit(&compares, ops) })
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

#[cfg(test)]
mod tests {
    use api::key::Key;
    use api::object::{Change, Draft};
    use serde_json::json;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_watch_gets_what_was_written_after_its_place() {
        let store = Memory::new();
        let key = Key::parse("/core/pods/default/a").unwrap();
        let draft = Draft::new(key.clone(), json!({ "metadata": { "name": "a" } })).unwrap();
        let mut watch = store.watch("/core/pods/", store.snapshot().revision()).unwrap();

        let written = store.txn(vec![Compare::Absent(key.clone())], vec![Op::Put(draft)]).await.unwrap();

        let changes = watch.next().await.unwrap();
        assert!(matches!(&changes[..], [Change::Added(object)] if object.revision == written.revision));
        assert_eq!(watch.revision(), written.revision);
        assert!(store.snapshot_at(written.revision - 1).unwrap().get(&key).is_none());
    }
}
