//! Removes objects of kinds that are kept for a time only, such as events.
//!
//! Deadlines stand in the order of time; the task sleeps until the first. An object that is written again lives on.
//! Source: kubernetes `pkg/registry/core/event/storage/storage.go` (`ttl`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::key::Key;
use api::object::{Change, Object};
use jiff::Timestamp;
use store::{Compare, Op};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::registry::Registry;
use crate::registry::catalog::Served;

/// What is due is removed in transactions of this size at most.
const BATCH: usize = 256;

/// Objects that fall due close to each other go together.
const SLACK: Duration = Duration::from_secs(10);

/// How long a removal that failed waits.
const RETRY: Duration = Duration::from_secs(5);

/// What is kept for a time, by when it is due.
#[derive(Default)]
struct Due {
    order: BTreeSet<(Timestamp, Key)>,
    by_key: BTreeMap<Key, (Timestamp, u64)>,
}

impl Due {
    fn set(&mut self, object: &Object, at: Timestamp) {
        self.remove(object.key());
        self.by_key.insert(object.key().clone(), (at, object.revision));
        self.order.insert((at, object.key().clone()));
    }

    fn remove(&mut self, key: &Key) {
        if let Some((at, _)) = self.by_key.remove(key) {
            self.order.remove(&(at, key.clone()));
        }
    }

    fn next(&self) -> Option<Timestamp> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Keys and revisions of what is due, the oldest first.
    fn due(&self, now: Timestamp) -> Vec<(Key, u64)> {
        let due = self.order.iter().take_while(|(at, _)| *at <= now).take(BATCH);
        due.map(|(_, key)| (key.clone(), self.by_key[key].1)).collect()
    }
}

/// The last time that an object tells of itself.
fn written(object: &Object) -> Option<Timestamp> {
    let value = object.value();
    let times = [&value["lastTimestamp"], &value["series"]["lastObservedTime"], &value["eventTime"]];
    let own = times.into_iter().filter_map(|time| time.as_str()?.parse().ok()).max();
    own.max(object.meta().creation_timestamp)
}

impl Registry {
    /// Removes what has outlived its time, until `cancel`.
    pub async fn expire(self: Arc<Self>, cancel: CancellationToken) {
        let kinds: Vec<(Served, Duration)> = self
            .catalog
            .by_group_version()
            .into_values()
            .flatten()
            .filter(|served| served.is_storage())
            .filter_map(|served| Some((served.clone(), served.kind.ttl?)))
            .collect();
        let each = kinds.into_iter().map(|(served, ttl)| self.expire_kind(served, ttl, cancel.clone()));
        futures_util::future::join_all(each).await;
    }

    async fn expire_kind(&self, served: Served, ttl: Duration, cancel: CancellationToken) {
        let prefix = Key::resource_prefix(&served.kind.names.resource);
        while !cancel.is_cancelled() {
            let snapshot = self.store.snapshot();
            let mut due = Due::default();
            for object in snapshot.range(&prefix, None) {
                let from = written(object).unwrap_or_else(|| self.now());
                due.set(object, from.saturating_add(ttl).unwrap_or(Timestamp::MAX));
            }
            let Ok(mut cursor) = self.store.watch(&prefix, snapshot.revision()) else {
                tokio::time::sleep(RETRY).await;
                continue;
            };
            drop(snapshot);
            // Ends only when this place in history was compacted away, and begins anew.
            loop {
                let wait = due.next().map(|at| {
                    let left = at.duration_since(self.now()).try_into().unwrap_or(Duration::ZERO);
                    left + SLACK
                });
                let changes = tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => None,
                    changes = cursor.next() => Some(changes),
                };
                match changes {
                    Some(Ok(changes)) => {
                        let at = self.now().saturating_add(ttl).unwrap_or(Timestamp::MAX);
                        for change in changes {
                            match change {
                                Change::Added(object) | Change::Modified { new: object, .. } => due.set(&object, at),
                                Change::Deleted { last, .. } => due.remove(last.key()),
                            }
                        }
                    }
                    Some(Err(_)) => break,
                    None => {
                        if let Err(error) = self.remove_due(&due).await {
                            warn!(%error, kind = served.kind_name(), "could not remove what has expired");
                            tokio::time::sleep(RETRY).await;
                        }
                    }
                }
            }
        }
    }

    /// Removes what is due. What was written meanwhile stays, and the watch tells its new time.
    async fn remove_due(&self, due: &Due) -> Result<(), store::Error> {
        let mut all = due.due(self.now());
        while !all.is_empty() {
            let compares = all.iter().map(|(key, revision)| Compare::Revision(key.clone(), *revision)).collect();
            let ops = all.iter().map(|(key, _)| Op::Delete(key.clone())).collect();
            match self.store.txn(compares, ops).await {
                Ok(_) => return Ok(()),
                Err(store::Error::Conflict { index, .. }) => drop(all.remove(index)),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use api::object::Draft;
    use serde_json::json;

    use super::*;

    fn object(name: &str, revision: u64) -> Arc<Object> {
        let key = Key::parse(&format!("/core/events/default/{name}")).unwrap();
        Draft::new(key, json!({"metadata": {"name": name}})).unwrap().commit(revision)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_is_written_again_lives_on() {
        let mut due = Due::default();
        due.set(&object("a", 1), at(10));
        due.set(&object("b", 2), at(11));
        due.set(&object("a", 3), at(20));
        let names: Vec<String> = due.due(at(15)).iter().map(|(key, _)| key.name().to_owned()).collect();
        assert_eq!((names, due.next()), (vec!["b".to_owned()], Some(at(11))));
    }
}
