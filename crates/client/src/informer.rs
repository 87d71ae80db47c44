//! Informers: a view of the objects in a scope that follows the API server, with indexes on metadata.
//!
//! In process the view shares the store's own `Arc<Object>`: there is no second copy and no typed cache; objects are decoded
//! where they are used. Follows client-go `tools/cache/{reflector,shared_informer,thread_safe_store}.go`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use api::key::{GroupResource, Key};
use api::object::{Change, Object};
use api::status::Status;
use imbl::{OrdMap, OrdSet};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{Client, Listing, Progress, Scope, Watch};

/// The delays between attempts to list again after a failure. Source: client-go `reflector.go`, with an earlier start.
const FIRST_RELIST: Duration = Duration::from_millis(100);
const LAST_RELIST: Duration = Duration::from_secs(30);

/// Returns the values under which an object is found in an index.
pub type IndexFn = fn(&Object) -> Vec<String>;

/// Finds objects by the uid of any of their owners. Every informer has this index.
fn by_owner(object: &Object) -> Vec<String> {
    object.meta().owner_references.iter().map(|owner| owner.uid.clone()).collect()
}

/// An immutable state of an informer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct View {
    resource: GroupResource,
    objects: OrdMap<Key, Arc<Object>>,
    functions: Arc<[IndexFn]>,
    indexes: Vec<OrdMap<String, OrdSet<Key>>>,
    revision: u64,
}

impl View {
    fn new(resource: GroupResource, indexes: &[IndexFn]) -> Self {
        let functions: Arc<[IndexFn]> = std::iter::once(by_owner as IndexFn).chain(indexes.iter().copied()).collect();
        let indexes = functions.iter().map(|_| OrdMap::new()).collect();
        Self { resource, objects: OrdMap::new(), functions, indexes, revision: 0 }
    }

    /// The store's revision that this view shows; 0 before the first list.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn resource(&self) -> &GroupResource {
        &self.resource
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    pub fn get(&self, key: &Key) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// The object of this name; `namespace` is empty for cluster-scoped resources.
    pub fn named(&self, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.objects.get(&Key::new(&self.resource, namespace, name))
    }

    /// All objects in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values()
    }

    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Object>> {
        let prefix = Key::namespace_prefix(&self.resource, namespace);
        let start = std::ops::Bound::Included(prefix.as_str());
        let from = self.objects.range::<_, str>((start, std::ops::Bound::Unbounded));
        let end = prefix.clone();
        from.take_while(move |(key, _)| key.as_str().starts_with(&end))
            .map(|(_, object)| object)
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// The objects that name `uid` among their owners.
    pub fn owned_by(&self, uid: &str) -> impl Iterator<Item = &Arc<Object>> {
        self.find(0, uid)
    }

    /// The objects that the caller's index function number `index` files under `value`.
    ///
    /// # Panics
    /// When the informer was started with fewer index functions.
    pub fn indexed(&self, index: usize, value: &str) -> impl Iterator<Item = &Arc<Object>> {
        self.find(index + 1, value)
    }

    fn find(&self, index: usize, value: &str) -> impl Iterator<Item = &Arc<Object>> {
        let keys = self.indexes[index].get(value);
        keys.into_iter().flatten().map(|key| self.objects.get(key).expect("indexes hold only keys of objects"))
    }

    fn insert(&mut self, object: &Arc<Object>) -> Option<Arc<Object>> {
        let old = self.remove(object.key());
        for (function, index) in self.functions.iter().zip(&mut self.indexes) {
            for value in function(object) {
                index.entry(value).or_default().insert(object.key().clone());
            }
        }
        self.objects.insert(object.key().clone(), object.clone());
        old
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<Object>> {
        let old = self.objects.remove(key)?;
        for (function, index) in self.functions.iter().zip(&mut self.indexes) {
            for value in function(&old) {
                let Some(keys) = index.get_mut(&value) else { continue };
                keys.remove(key);
                if keys.is_empty() {
                    index.remove(&value);
                }
            }
        }
        Some(old)
    }

    /// Applies changes that a watch reported, in order.
    fn apply(&mut self, changes: &[Change], revision: u64) -> Vec<Delta> {
        self.revision = revision;
        let delta = |change: &Change| {
            let new = change.current().cloned();
            let old = match &new {
                Some(object) => self.insert(object),
                None => self.remove(change.key()),
            };
            Delta { key: change.key().clone(), old, new }
        };
        changes.iter().map(delta).collect()
    }

    /// Becomes what a new list shows, and reports how that differs.
    fn replace(&mut self, listing: &Listing) -> Vec<Delta> {
        self.revision = listing.revision;
        let listed: BTreeMap<&Key, &Arc<Object>> =
            listing.objects.iter().map(|object| (object.key(), object)).collect();
        let gone: Vec<Key> = self.objects.keys().filter(|key| !listed.contains_key(key)).cloned().collect();
        let mut deltas = Vec::new();
        for key in gone {
            let old = self.remove(&key);
            deltas.push(Delta { key, old, new: None });
        }
        for (key, object) in listed {
            if self.get(key).is_some_and(|known| known.revision == object.revision) {
                continue;
            }
            let old = self.insert(object);
            deltas.push(Delta { key: key.clone(), old, new: Some(object.clone()) });
        }
        deltas
    }
}

/// How one object differs from what the subscriber was last told. A name that was deleted and created again is one delta
/// whose `old` and `new` have different uids.
#[derive(Clone, Debug)]
pub struct Delta {
    pub key: Key,
    /// `None` for an object that the subscriber does not know yet.
    pub old: Option<Arc<Object>>,
    /// `None` for one that is gone.
    pub new: Option<Arc<Object>>,
}

impl Delta {
    /// The old and the new state, those that exist.
    pub fn states(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.old.iter().chain(&self.new)
    }
}

/// What one subscriber has not fetched yet: at most one delta per object, so a slow subscriber costs no more than the view.
#[derive(Default)]
struct Inbox {
    pending: Mutex<BTreeMap<Key, Delta>>,
    arrived: Notify,
}

impl Inbox {
    fn deliver(&self, deltas: &[Delta]) {
        let mut pending = lock(&self.pending);
        for delta in deltas {
            if let Some(earlier) = pending.get_mut(&delta.key) {
                earlier.new.clone_from(&delta.new);
                if earlier.old.is_none() && earlier.new.is_none() {
                    pending.remove(&delta.key);
                }
            } else {
                pending.insert(delta.key.clone(), delta.clone());
            }
        }
        if !pending.is_empty() {
            self.arrived.notify_one();
        }
    }
}

/// A subscription to an informer's changes.
pub struct Changes {
    inbox: Arc<Inbox>,
}

impl Changes {
    /// Waits for changes and returns all that there are. Pends for ever once the informer is stopped.
    ///
    /// Cancellation safe.
    pub async fn next(&mut self) -> Vec<Delta> {
        loop {
            let pending = std::mem::take(&mut *lock(&self.inbox.pending));
            if !pending.is_empty() {
                return pending.into_values().collect();
            }
            self.inbox.arrived.notified().await;
        }
    }
}

/// The latest state, and how far it is still the latest though nothing was reported.
struct Published {
    view: View,
    progress: Progress,
}

impl Published {
    fn revision(&self) -> u64 {
        (self.progress)(self.view.revision)
    }

    fn view(&self) -> View {
        View { revision: self.revision(), ..self.view.clone() }
    }
}

/// Follows one scope. Cheap to clone; lives as long as the [`Informers`] that started it.
#[derive(Clone)]
pub struct Informer {
    view: watch::Receiver<Published>,
    inboxes: Arc<Mutex<Vec<Weak<Inbox>>>>,
}

/// The informer's task has ended, so its view will not change any more.
#[derive(Debug, thiserror::Error)]
#[error("the informer has stopped")]
pub struct Stopped;

impl Informer {
    /// The latest state.
    pub fn view(&self) -> View {
        self.view.borrow().view()
    }

    /// Waits until the first list has arrived.
    ///
    /// # Errors
    /// [`Stopped`] when it never will.
    pub async fn synced(&self) -> Result<View, Stopped> {
        self.wait_for(1).await
    }

    /// Waits until the view shows at least `revision`, which was written.
    ///
    /// # Errors
    /// [`Stopped`] when it never will.
    pub async fn wait_for(&self, revision: u64) -> Result<View, Stopped> {
        self.reached(|published| published.revision() >= revision).await
    }

    /// Waits until the view satisfies a condition.
    ///
    /// # Errors
    /// [`Stopped`] when it never will.
    pub async fn wait_until(&self, mut condition: impl FnMut(&View) -> bool) -> Result<View, Stopped> {
        self.reached(|published| condition(&published.view)).await
    }

    async fn reached(&self, condition: impl FnMut(&Published) -> bool) -> Result<View, Stopped> {
        let mut view = self.view.clone();
        let reached = view.wait_for(condition).await.map_err(|_| Stopped)?;
        Ok(reached.view())
    }

    /// Subscribes to changes, beginning with all objects there are.
    pub fn subscribe(&self) -> Changes {
        subscribe([self])
    }
}

/// Subscribes to the changes of several informers at once, beginning with all objects there are.
pub fn subscribe<'a>(informers: impl IntoIterator<Item = &'a Informer>) -> Changes {
    let inbox = Arc::new(Inbox::default());
    for informer in informers {
        // Under this lock no change can fall between the state taken and those delivered.
        let mut inboxes = lock(&informer.inboxes);
        let view = informer.view();
        let known = view.objects.iter();
        let initial: Vec<Delta> =
            known.map(|(key, object)| Delta { key: key.clone(), old: None, new: Some(object.clone()) }).collect();
        inbox.deliver(&initial);
        inboxes.push(Arc::downgrade(&inbox));
    }
    Changes { inbox }
}

/// The tasks behind a component's informers. Dropping it stops them all.
pub struct Informers {
    tasks: JoinSet<()>,
    cancel: CancellationToken,
}

impl Informers {
    /// The informers stop when `cancel` is cancelled.
    pub fn new(cancel: &CancellationToken) -> Self {
        Self { tasks: JoinSet::new(), cancel: cancel.child_token() }
    }

    /// Begins to follow `scope`. The functions of `indexes` are numbered from 0 for [`View::indexed`].
    pub fn start(&mut self, client: &Client, scope: Scope, indexes: &[IndexFn]) -> Informer {
        let view = View::new(scope.resource.clone(), indexes);
        let (publish, view) = watch::channel(Published { view, progress: Arc::new(|revision| revision) });
        let informer = Informer { view, inboxes: Arc::default() };
        let publisher = Publisher { view: publish, inboxes: informer.inboxes.clone() };
        let (client, cancel) = (client.clone(), self.cancel.clone());
        self.tasks.spawn(async move {
            cancel.run_until_cancelled(follow(&client, &scope, &publisher)).await;
        });
        informer
    }

    /// Stops all and waits until they have ended.
    pub async fn stop(mut self) {
        self.cancel.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

struct Publisher {
    view: watch::Sender<Published>,
    inboxes: Arc<Mutex<Vec<Weak<Inbox>>>>,
}

impl Publisher {
    /// Changes the view, then tells the subscribers.
    fn publish(&self, change: impl FnOnce(&mut Published) -> Vec<Delta>) {
        let mut inboxes = lock(&self.inboxes);
        let mut deltas = Vec::new();
        self.view.send_modify(|published| deltas = change(published));
        if deltas.is_empty() {
            return;
        }
        inboxes.retain(|inbox| {
            let inbox = inbox.upgrade();
            inbox.inspect(|inbox| inbox.deliver(&deltas)).is_some()
        });
    }
}

/// Lists and watches, again and again.
async fn follow(client: &Client, scope: &Scope, publisher: &Publisher) {
    let mut delay = FIRST_RELIST;
    loop {
        let error = match client.list_watch(scope.clone()).await {
            Ok((listing, watch)) => {
                delay = FIRST_RELIST;
                publisher.publish(|published| {
                    published.progress = watch.progress();
                    published.view.replace(&listing)
                });
                drop(listing);
                pump(watch, publisher).await
            }
            Err(error) => error,
        };
        if error.reason == api::status::Reason::Expired {
            debug!(resource = %scope.resource, %error, "listing again");
        } else {
            warn!(resource = %scope.resource, %error, ?delay, "could not follow, will try again");
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(LAST_RELIST);
    }
}

/// Publishes what a watch reports until it fails.
async fn pump(mut watch: Box<dyn Watch>, publisher: &Publisher) -> Status {
    loop {
        match watch.next().await {
            Ok(changes) => {
                let revision = watch.revision();
                publisher.publish(|published| published.view.apply(&changes, revision));
            }
            Err(error) => return error,
        }
    }
}

/// A panic elsewhere while the lock was held leaves nothing half done: every critical section here is a few assignments.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
