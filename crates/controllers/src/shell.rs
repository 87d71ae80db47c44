//! The one shell around every controller: it owns the queue, the writes and the retries; controllers only decide.
//!
//! A key is run by one worker at a time, and again only when the view of every kind that it wrote has reached the revision
//! its write returned: so no controller acts twice on what it did itself. This replaces upstream's expectations
//! (kubernetes `controller_utils.go`, `ControllerExpectations`) and follows its newer consistency store
//! (`pkg/controller/util/consistency`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::key::{GroupResource, Key};
use api::object::Object;
use api::status::{Reason, Status};
use client::events::Recorder;
use client::informer::{Delta, Informer, subscribe};
use client::queue::Queue;
use client::{BoxFuture, Client, Clock, DeleteOptions, Resource};
use jiff::Timestamp;
use serde_json::Value;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::action::{Action, Deletion, Living, Notes};
use crate::views::Views;

/// Keys of one controller that are worked on at once. Source: kube-controller-manager, `concurrent-*-syncs`.
const WORKERS: usize = 5;
/// How long a view may take to show a write before the key runs regardless. Source: `ExpectationsTimeout`.
const VIEW_TIMEOUT: Duration = Duration::from_secs(300);
/// How many outcomes are kept before those are dropped that nothing waits for.
const OUTCOMES: usize = 1000;
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A control loop's decisions. All of it is pure but for log lines.
pub trait Controller: Send + Sync + 'static {
    /// Such as `replicaset-controller`: the component that its events name.
    fn name(&self) -> &'static str;

    /// The ServiceAccount in `kube-system` as which it writes, where that has another name.
    fn account(&self) -> &'static str {
        self.name()
    }

    /// The resources that it reads.
    fn inputs(&self) -> Vec<GroupResource>;

    /// The keys to run because an object changed.
    fn affected(&self, delta: &Delta, views: &Views) -> Vec<Key>;

    /// Waits until something changed that is no input: then every key runs again.
    ///
    /// Cancellation safe; pends for ever where there is no such thing.
    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// Decides what to do about one key. The actions are carried out in order, up to the first that fails.
    fn plan(&self, run: &Run<'_>) -> Vec<Action>;
}

/// One run of one key.
pub struct Run<'a> {
    pub key: &'a Key,
    pub views: &'a Views,
    pub now: Timestamp,
    /// What the server refused in the previous run.
    pub failure: Option<&'a str>,
}

/// What a running controller is given.
pub struct Setting {
    pub informers: BTreeMap<GroupResource, Informer>,
    pub client: Client,
    pub recorder: Recorder,
    pub clock: Clock,
}

/// Runs one controller until it is cancelled.
pub async fn run(controller: Arc<dyn Controller>, setting: Arc<Setting>, cancel: CancellationToken) {
    let mut shell = Shell {
        controller,
        setting,
        queue: Queue::default(),
        outcomes: BTreeMap::new(),
        workers: JoinSet::new(),
        running: BTreeMap::new(),
    };
    cancel.run_until_cancelled(shell.work()).await;
    // Dropping the workers aborts them: a write that was sent may or may not have happened, as after a crash.
    shell.workers.shutdown().await;
}

struct Shell {
    controller: Arc<dyn Controller>,
    setting: Arc<Setting>,
    queue: Queue<Key>,
    /// How the last run of a key ended, where the next one needs to know.
    outcomes: BTreeMap<Key, Outcome>,
    workers: JoinSet<Outcome>,
    running: BTreeMap<Id, Key>,
}

#[derive(Debug, Default)]
struct Outcome {
    pending: Vec<Pending>,
    /// The first error: the key is tried again.
    failure: Option<String>,
    /// The first error that was not just a stale view.
    refused: Option<String>,
    again: Option<Duration>,
}

/// Something that a view must show before its key runs again.
#[derive(Debug)]
enum Pending {
    Revision(GroupResource, u64),
    /// The object of this uid is gone or on its way out.
    Deleted(Key, String),
}

impl Shell {
    async fn work(&mut self) {
        let inputs: Vec<Informer> = self.controller.inputs().iter().map(|of| self.setting.informer(of)).collect();
        for informer in &inputs {
            if informer.synced().await.is_err() {
                return;
            }
        }
        let mut changes = subscribe(&inputs);
        let controller = self.controller.clone();
        let mut changed = controller.changed();
        loop {
            self.start_workers();
            let deadline = self.queue.next_deadline();
            tokio::select! {
                deltas = changes.next() => self.enqueue(&deltas),
                Some(ended) = self.workers.join_next_with_id() => self.ended(ended),
                () = &mut changed => {
                    changes = subscribe(&inputs);
                    changed = controller.changed();
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
            }
        }
    }

    fn enqueue(&mut self, deltas: &[Delta]) {
        let views = self.setting.views(&self.controller.inputs());
        for key in deltas.iter().flat_map(|delta| self.controller.affected(delta, &views)) {
            self.queue.add(key);
        }
    }

    fn start_workers(&mut self) {
        while self.running.len() < WORKERS
            && let Some(key) = self.queue.take(Instant::now())
        {
            let before = self.outcomes.remove(&key).unwrap_or_default();
            let (controller, setting) = (self.controller.clone(), self.setting.clone());
            let task = {
                let key = key.clone();
                async move { setting.run_once(&*controller, &key, before).await }
            };
            self.running.insert(self.workers.spawn(task).id(), key);
        }
    }

    fn ended(&mut self, ended: Result<(Id, Outcome), tokio::task::JoinError>) {
        let (id, outcome) = match ended {
            Ok(done) => done,
            Err(error) => (error.id(), Outcome { failure: Some(error.to_string()), ..Outcome::default() }),
        };
        let key = self.running.remove(&id).expect("every worker is registered when it starts");
        self.queue.done(&key);
        if let Some(failure) = &outcome.failure {
            debug!(controller = self.controller.name(), %key, failure, "will try again");
            self.queue.retry(key.clone(), Instant::now());
        } else {
            self.queue.forget(&key);
        }
        if let Some(after) = outcome.again {
            self.queue.add_at(key.clone(), Instant::now() + after);
        }
        if outcome.failure.is_some() || !outcome.pending.is_empty() {
            self.outcomes.insert(key, outcome);
        }
        if self.outcomes.len() > OUTCOMES {
            // Keys that never run again, such as those of objects that this controller removed.
            let setting = &self.setting;
            self.outcomes.retain(|_, outcome| {
                outcome.pending.retain(|pending| !setting.is_visible(pending));
                outcome.refused.is_some() || !outcome.pending.is_empty()
            });
        }
    }
}

impl Setting {
    fn informer(&self, of: &GroupResource) -> Informer {
        self.informers.get(of).unwrap_or_else(|| panic!("{of} has no informer")).clone()
    }

    fn views(&self, inputs: &[GroupResource]) -> Views {
        Views::new(inputs.iter().map(|of| self.informer(of).view()))
    }

    async fn run_once(&self, controller: &dyn Controller, key: &Key, before: Outcome) -> Outcome {
        for pending in &before.pending {
            self.await_view(pending, key).await;
        }
        let views = self.views(&controller.inputs());
        let run = Run { key, views: &views, now: (self.clock)(), failure: before.refused.as_deref() };
        let actions = controller.plan(&run);
        drop(views);
        let mut outcome = Outcome::default();
        for action in actions {
            debug!(controller = controller.name(), %key, %action, "decided");
            self.carry_out(action, &mut outcome).await;
            if outcome.failure.is_some() {
                break;
            }
        }
        outcome
    }

    fn is_visible(&self, pending: &Pending) -> bool {
        let view = |of: &GroupResource| self.informers.get(of).map(Informer::view);
        match pending {
            Pending::Revision(of, revision) => view(of).is_none_or(|view| view.revision() >= *revision),
            Pending::Deleted(object, uid) => view(&object.group_resource()).is_none_or(|view| {
                view.get(object).is_none_or(|found| found.meta().uid != *uid || found.meta().is_deleting())
            }),
        }
    }

    async fn await_view(&self, pending: &Pending, key: &Key) {
        let reached = match pending {
            Pending::Revision(of, revision) => {
                let Some(informer) = self.informers.get(of) else { return };
                timeout(VIEW_TIMEOUT, informer.wait_for(*revision)).await
            }
            Pending::Deleted(object, uid) => {
                let Some(informer) = self.informers.get(&object.group_resource()) else { return };
                let lives = |found: &Arc<Object>| found.meta().uid == *uid && !found.meta().is_deleting();
                timeout(VIEW_TIMEOUT, informer.wait_until(|view| !view.get(object).is_some_and(lives))).await
            }
        };
        if reached.is_err() {
            warn!(%key, ?pending, "the view did not show a write in time");
        }
    }

    async fn carry_out(&self, action: Action, outcome: &mut Outcome) {
        match action {
            Action::Create { of, namespace, object, copies, notes } => {
                self.create(&of, &namespace, object, copies, &notes, outcome).await;
            }
            Action::Update { of, subresource, object } => {
                let reply = match subresource {
                    None => within(self.client.update_object(&of, object)).await,
                    Some(name) => within(self.client.update_subresource(&of, name, object)).await,
                };
                self.record(&of, reply, &Notes::none(), outcome);
            }
            Action::Patch { of, namespace, name, subresource, kind, patch, living, notes } => {
                let request = async {
                    if let Some(living) = &living {
                        self.check_living(living).await?;
                    }
                    self.client.patch_object(&of, &namespace, &name, subresource, kind, patch).await
                };
                let reply = within(request).await;
                self.record(&of, reply, &notes, outcome);
            }
            Action::Delete { of, namespace, name, uid, how, notes } => {
                self.delete(&of, &namespace, &name, uid, how, &notes, outcome).await;
            }
            Action::Event { about, note } => self.recorder.event(&about, note.severity, note.reason, note.message),
            Action::Await { of, revision } => {
                outcome.pending.push(Pending::Revision(of.resource, revision));
                outcome.again = Some(Duration::ZERO);
            }
            Action::RunAgain { after } => outcome.again = Some(outcome.again.map_or(after, |other| other.min(after))),
        }
    }

    async fn create(
        &self,
        of: &Resource,
        namespace: &str,
        object: Value,
        copies: usize,
        notes: &Notes,
        outcome: &mut Outcome,
    ) {
        let (mut remaining, mut batch) = (copies, 1);
        while remaining > 0 {
            batch = batch.min(remaining);
            let requests = (0..batch).map(|_| within(self.client.create_object(of, namespace, object.clone())));
            let replies = futures_util::future::join_all(requests).await;
            let failed = replies.iter().any(Result::is_err);
            for reply in replies {
                self.record(of, reply, notes, outcome);
            }
            if failed {
                return;
            }
            remaining -= batch;
            batch *= 2;
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one action")]
    async fn delete(
        &self,
        of: &Resource,
        namespace: &str,
        name: &str,
        uid: String,
        how: Deletion,
        notes: &Notes,
        outcome: &mut Outcome,
    ) {
        let options = DeleteOptions {
            grace_period_seconds: how.grace_period_seconds,
            uid: (!uid.is_empty()).then(|| uid.clone()),
            resource_version: how.revision.map(|revision| revision.to_string()),
            propagation: how.propagation,
        };
        let request = async {
            for owner in &how.absent {
                match self.check_living(owner).await {
                    Err(error) if error.is_not_found() => {}
                    Err(error) if !error.is_conflict() => return Err(error),
                    Ok(()) | Err(_) => {
                        let why = format_args!("its owner {} exists", owner.name);
                        return Err(Status::conflict(&of.resource, name, why));
                    }
                }
            }
            self.client.delete_object(of, namespace, name, options).await
        };
        match within(request).await {
            Ok(_) => {
                self.note(notes.success(), name);
                outcome.pending.push(Pending::Deleted(Key::new(&of.resource, namespace, name), uid));
            }
            // Replaced, or changed since: there is a new state to decide on.
            Err(error) if error.is_conflict() => {
                outcome.failure.get_or_insert(error.message);
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                self.note(notes.failure(), &error.message);
                outcome.refused.get_or_insert(format!("unable to delete: {}", error.message));
                outcome.failure.get_or_insert(error.message);
            }
        }
    }

    /// Remembers what a view must show, or what went wrong, and says so.
    fn record(&self, of: &Resource, reply: Result<Arc<Object>, Status>, notes: &Notes, outcome: &mut Outcome) {
        match reply {
            Ok(object) => {
                self.note(notes.success(), &object.meta().name);
                outcome.pending.push(Pending::Revision(of.resource.clone(), object.revision));
            }
            // What is being deleted needs nothing any more; what is gone neither.
            Err(error) if namespace_is_terminating(&error) || error.is_not_found() => {
                debug!(%error, "refused, nothing to do");
            }
            Err(error) => {
                // The view was behind: that is no news to anybody.
                let stale = matches!(error.reason, Reason::Conflict | Reason::AlreadyExists);
                if !stale {
                    self.note(notes.failure(), &error.message);
                    outcome.refused.get_or_insert(error.message.clone());
                }
                outcome.failure.get_or_insert(error.message);
            }
        }
    }

    fn note(
        &self,
        note: Option<(&k8s_openapi::api::core::v1::ObjectReference, &crate::action::Note)>,
        replacement: &str,
    ) {
        if let Some((about, note)) = note {
            self.recorder.event(about, note.severity, note.reason, note.message.replacen("{}", replacement, 1));
        }
    }

    async fn check_living(&self, living: &Living) -> Result<(), Status> {
        let found = self.client.get_object(&living.of, &living.namespace, &living.name).await?;
        let meta = found.meta();
        if !living.uid.is_empty() && meta.uid != living.uid {
            return Err(Status::not_found(&living.of.resource, &living.name));
        }
        if meta.is_deleting() {
            return Err(Status::conflict(&living.of.resource, &living.name, "it is being deleted"));
        }
        Ok(())
    }
}

/// Gives every request a time limit.
async fn within<T>(request: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    timeout(REQUEST_TIMEOUT, request)
        .await
        .unwrap_or_else(|_| Err(Status::timeout(format!("no answer within {REQUEST_TIMEOUT:?}"))))
}

/// Source: core/v1 `NamespaceTerminatingCause`.
fn namespace_is_terminating(error: &Status) -> bool {
    error.details.iter().flat_map(|details| &details.causes).any(|cause| cause.reason == "NamespaceTerminating")
}
