//! Feeds the cluster's state and the queue, decides one pod after the other, and sends bindings and evictions without
//! waiting for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::key::{GroupResource, Key};
use api::object::Object;
use api::status::Status;
use client::events::{Recorder, Severity, reference};
use client::informer::{Delta, Informer, Informers, subscribe};
use client::{Client, Clock, PatchType, Resource};
use k8s_openapi::api::core::v1::{Namespace, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::cluster::{Cluster, News};
use crate::eviction;
use crate::facts::{NodeFacts, PodFacts};
use crate::preemption::Outcome;
use crate::queue::Queue;
use crate::schedule::{Unschedulable, schedule};

/// Bindings that are under way at once.
const BINDINGS: usize = 64;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Decisions between two looks at what changed.
const DECISIONS: usize = 32;
/// Events longer than this are cut. Source: `schedule_one.go`, `truncateMessage`.
const NOTE_MAX: usize = 1024;

pub async fn run(client: Client, clock: Clock, cancel: CancellationToken) {
    let mut informers = Informers::new(&cancel);
    let pods = informers.start(&client, Resource::of::<Pod>().everywhere(), &[]);
    let nodes = informers.start(&client, Resource::of::<Node>().everywhere(), &[]);
    let namespaces = informers.start(&client, Resource::of::<Namespace>().everywhere(), &[]);
    let mut recorders = JoinSet::new();
    let recorder =
        Recorder::start(client.clone(), "default-scheduler", "", clock.clone(), &mut recorders, cancel.clone());
    let mut shell = Shell {
        client,
        clock,
        recorder,
        pods,
        cluster: Cluster::default(),
        queue: Queue::default(),
        waiting: BTreeMap::new(),
        wakes: 0,
        bindings: JoinSet::new(),
        evictions: JoinSet::new(),
        reports: JoinSet::new(),
    };
    cancel.run_until_cancelled(shell.work(&nodes, &namespaces)).await;
    shell.bindings.shutdown().await;
    shell.evictions.shutdown().await;
    shell.reports.shutdown().await;
    recorders.shutdown().await;
    informers.stop().await;
}

struct Shell {
    client: Client,
    clock: Clock,
    recorder: Recorder,
    pods: Informer,
    cluster: Cluster,
    queue: Queue,
    /// The pods without a node that are ours to place.
    waiting: BTreeMap<Key, PodFacts>,
    /// How often something changed that may help a pod that fits nowhere.
    wakes: u64,
    bindings: JoinSet<Binding>,
    evictions: JoinSet<Eviction>,
    /// Writes of pod conditions.
    reports: JoinSet<()>,
}

/// How a binding ended.
struct Binding {
    key: Key,
    pod: PodFacts,
    node: String,
    result: Result<(), Status>,
}

/// How the evictions for a pod ended.
struct Eviction {
    key: Key,
    pod: PodFacts,
    node: String,
    evicted: Vec<Arc<PodFacts>>,
    result: Result<(), Status>,
    /// [`Shell::wakes`] when it began.
    began: u64,
}

impl Shell {
    async fn work(&mut self, nodes: &Informer, namespaces: &Informer) {
        for informer in [namespaces, nodes, &self.pods] {
            if informer.synced().await.is_err() {
                return;
            }
        }
        let mut changes = subscribe([namespaces, nodes, &self.pods]);
        loop {
            let deadline = self.queue.next_deadline();
            let may_decide = self.queue.is_ready() && self.bindings.len() < BINDINGS;
            tokio::select! {
                biased;
                deltas = changes.next() => self.apply_all(&deltas),
                Some(ended) = self.bindings.join_next() => match ended {
                    Ok(binding) => self.bound(binding),
                    Err(error) => warn!(%error, "a binding was lost"),
                },
                Some(ended) = self.evictions.join_next() => match ended {
                    Ok(eviction) => self.evicted(eviction),
                    Err(error) => warn!(%error, "an eviction was lost"),
                },
                Some(_) = self.reports.join_next() => {}
                () = std::future::ready(()), if may_decide => self.decide_some(),
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => self.decide_some(),
            }
        }
    }

    fn apply_all(&mut self, deltas: &[Delta]) {
        let mut news = News::None;
        for delta in deltas {
            let told = match &*delta.key.group_resource().resource {
                "nodes" => self.apply_node(delta),
                "namespaces" => {
                    let labels = delta.new.as_ref().map(|namespace| namespace.meta().labels.clone());
                    let is_news = self.cluster.set_namespace(delta.key.name(), labels);
                    if is_news { News::Neighbour } else { News::None }
                }
                _ => self.apply_pod(delta),
            };
            news = news.max(told);
        }
        self.wake(news);
    }

    /// Has the pods looked at again that fitted nowhere and may fit now.
    fn wake(&mut self, news: News) {
        if news == News::None {
            return;
        }
        self.wakes += u64::from(news == News::Room);
        let waiting = &self.waiting;
        let looks = |key: &Key| waiting.get(key).is_some_and(PodFacts::looks_at_others);
        self.queue.wake_if(Instant::now(), |key| news == News::Room || looks(key));
    }

    fn apply_node(&mut self, delta: &Delta) -> News {
        match &delta.new {
            Some(node) => {
                let set = |node: Node| self.cluster.set_node(NodeFacts::new(&node));
                News::room(decode::<Node>(node).is_some_and(set))
            }
            None => {
                self.cluster.remove_node(delta.key.name());
                News::Neighbour
            }
        }
    }

    fn apply_pod(&mut self, delta: &Delta) -> News {
        let key = &delta.key;
        let new = delta.new.as_ref().and_then(|pod| decode::<Pod>(pod));
        let replaced = delta
            .old
            .as_ref()
            .filter(|old| new.as_ref().is_none_or(|new| new.metadata.uid.as_ref() != Some(&old.meta().uid)));
        let mut freed = false;
        if let Some(gone) = replaced {
            let (placed, nominated) = (self.cluster.remove(&gone.meta().uid), self.cluster.withdraw(&gone.meta().uid));
            freed = placed || nominated;
            self.forget(key);
        }
        let Some(pod) = new else { return News::room(freed) };
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let facts = PodFacts::new(&pod);
        if matches!(phase, Some("Succeeded" | "Failed")) {
            self.forget(key);
            freed |= self.cluster.withdraw(&facts.uid);
            return News::room(self.cluster.remove(&facts.uid) || freed);
        }
        if let Some(node) = facts.node.clone() {
            self.forget(key);
            freed |= self.cluster.withdraw(&facts.uid);
            return self.cluster.place(facts, &node).max(News::room(freed));
        }
        let scheduler = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
        let is_ours = scheduler.is_none_or(|name| name == "default-scheduler");
        if !is_ours || pod.metadata.deletion_timestamp.is_some() {
            self.forget(key);
            return News::room(self.cluster.withdraw(&facts.uid) || freed);
        }
        let before = delta.old.as_ref().filter(|old| old.meta().uid == facts.uid);
        let before = before.and_then(|old| decode::<Pod>(old)).and_then(|old| nominated(&old));
        let told = nominated(&pod);
        if told != before {
            match &told {
                Some(node) => self.cluster.nominate(facts.clone(), node),
                None => freed |= self.cluster.withdraw(&facts.uid),
            }
        }
        if !facts.gates.is_empty() {
            self.forget(key);
            let message = "Scheduling is blocked due to non-empty scheduling gates";
            self.report(key, &facts, Some(("SchedulingGated", message)));
            return News::room(freed);
        }
        if self.waiting.get(key) != Some(&facts) {
            self.queue.add(key, facts.priority);
            self.waiting.insert(key.clone(), facts);
        }
        News::room(freed)
    }

    fn forget(&mut self, key: &Key) {
        self.queue.remove(key);
        self.waiting.remove(key);
    }

    fn decide_some(&mut self) {
        for _ in 0..DECISIONS {
            if self.bindings.len() >= BINDINGS {
                return;
            }
            let now = Instant::now();
            let Some(key) = self.queue.take(now) else { return };
            let Some(pod) = self.waiting.get(&key).cloned() else { continue };
            match schedule(&pod, &self.cluster) {
                Ok(node) => self.bind(key, pod, node),
                Err(Unschedulable { message, preemption }) => {
                    debug!(pod = %pod.full_name(), message, "fits nowhere");
                    match preemption {
                        Outcome::Evict { node, victims } => self.preempt(&key, &pod, node, victims),
                        Outcome::Wait(_) => self.queue.unschedulable(&key, now),
                        Outcome::Futile(_) => {
                            self.queue.unschedulable(&key, now);
                            let ended = self.cluster.withdraw(&pod.uid);
                            self.wake(News::room(ended));
                        }
                    }
                    self.failed(&key, &pod, "Unschedulable", &message);
                }
            }
        }
    }

    /// Assumes that the pod runs on the node from now on, and sends the binding.
    fn bind(&mut self, key: Key, pod: PodFacts, node: String) {
        let news = self.cluster.place(pod.clone(), &node);
        self.cluster.withdraw(&pod.uid);
        self.wake(news);
        let client = self.client.clone();
        self.bindings.spawn(async move {
            let body = json!({
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"namespace": pod.namespace, "name": pod.name, "uid": pod.uid},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node},
            });
            let pods = Resource::of::<Pod>();
            let request = client.post(&pods, &pod.namespace, &pod.name, "binding", body);
            let result = timeout(REQUEST_TIMEOUT, request).await;
            let result = result.unwrap_or_else(|_| Err(Status::timeout("no answer to the binding"))).map(drop);
            Binding { key, pod, node, result }
        });
    }

    fn bound(&mut self, ended: Binding) {
        let Binding { key, pod, node, result } = ended;
        let error = match result {
            Ok(()) => {
                let message = format!("Successfully assigned {} to {node}", pod.full_name());
                self.recorder.event(&about(&pod), Severity::Normal, "Scheduled", message);
                return;
            }
            Err(error) => error,
        };
        let in_view = self.pods.view().get(&key).is_some_and(|found| found.meta().uid == pod.uid);
        let still_waits = self.waiting.get(&key).is_some_and(|waiting| waiting.uid == pod.uid);
        if still_waits {
            self.cluster.remove(&pod.uid);
            self.wake(News::Room);
        }
        if error.is_not_found() || !in_view || !still_waits {
            debug!(pod = %pod.full_name(), %error, "gone before it was bound");
            return;
        }
        self.queue.failed(&key, Instant::now());
        self.failed(&key, &pod, "SchedulerError", &error.message);
    }

    /// Nominates the pod for the node and has the victims evicted; the pod is not looked at again before that is done.
    fn preempt(&mut self, key: &Key, pod: &PodFacts, node: String, victims: Vec<Arc<PodFacts>>) {
        let yielding: Vec<_> =
            self.cluster.nominated_for(&node).filter(|other| other.priority < pod.priority).cloned().collect();
        for other in yielding {
            let key = Key::new(&GroupResource::new("", "pods"), &other.namespace, &other.name);
            self.cluster.withdraw(&other.uid);
            self.report(&key, &other, None);
            self.queue.add(&key, other.priority);
        }
        self.cluster.nominate(pod.clone(), &node);
        let (client, clock, key, pod) = (self.client.clone(), self.clock.clone(), key.clone(), pod.clone());
        let began = self.wakes;
        self.evictions.spawn(async move {
            let (evicted, result) = eviction::run(&client, &clock, &victims).await;
            Eviction { key, pod, node, evicted, result, began }
        });
    }

    fn evicted(&mut self, ended: Eviction) {
        let Eviction { key, pod, node, evicted, result, began } = ended;
        for victim in evicted {
            self.cluster.evicted(&victim.uid);
            let message = format!("Preempted by pod {} on node {node}", pod.uid);
            self.recorder.event(&about(&victim), Severity::Normal, "Preempted", message);
        }
        let Some(waiting) = self.waiting.get(&key).filter(|waiting| waiting.uid == pod.uid) else { return };
        let (is_changed, now) = (*waiting != pod, Instant::now());
        if let Err(error) = result {
            warn!(pod = %pod.full_name(), %error, "could not evict less important pods");
            self.queue.failed(&key, now);
            return;
        }
        self.queue.unschedulable(&key, now);
        if is_changed {
            self.queue.add(&key, pod.priority);
        } else if self.wakes != began {
            self.queue.wake(now);
        }
    }

    fn failed(&mut self, key: &Key, pod: &PodFacts, reason: &'static str, message: &str) {
        let end = (0..=NOTE_MAX.min(message.len())).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        self.recorder.event(&about(pod), Severity::Warning, "FailedScheduling", &message[..end]);
        self.report(key, pod, Some((reason, message)));
    }

    /// Writes why the pod is not scheduled, if it is known, and which node it is nominated for, unless it says the same already.
    fn report(&mut self, key: &Key, pod: &PodFacts, why: Option<(&'static str, &str)>) {
        let current = self.pods.view().get(key).and_then(|pod| decode::<Pod>(pod)).unwrap_or_default();
        let mut status = serde_json::Map::new();
        let node = self.cluster.nominated_node(&pod.uid);
        if node != nominated(&current).as_deref() {
            status.insert("nominatedNodeName".to_owned(), json!(node));
        }
        if let Some(condition) = why.and_then(|(reason, message)| self.condition(&current, pod, reason, message)) {
            status.insert("conditions".to_owned(), json!([condition]));
        }
        if status.is_empty() {
            return;
        }
        let patch = json!({"metadata": {"uid": pod.uid}, "status": status});
        let (client, pod) = (self.client.clone(), pod.clone());
        self.reports.spawn(async move {
            let pods = Resource::of::<Pod>();
            let request =
                client.patch_object(&pods, &pod.namespace, &pod.name, Some("status"), PatchType::Strategic, patch);
            match timeout(REQUEST_TIMEOUT, request).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) if error.is_not_found() || error.is_conflict() => {}
                Ok(Err(error)) => warn!(pod = %pod.full_name(), %error, "could not set the pod's condition"),
                Err(_) => warn!(pod = %pod.full_name(), "no answer to a pod's condition"),
            }
        });
    }

    /// The `PodScheduled` condition that says why the pod is not scheduled, unless it is there.
    fn condition(&self, current: &Pod, pod: &PodFacts, reason: &str, message: &str) -> Option<Value> {
        let conditions = current.status.as_ref().and_then(|status| status.conditions.as_ref());
        let current = conditions.into_iter().flatten().find(|condition| condition.type_ == "PodScheduled");
        let says_so = current.is_some_and(|condition| {
            let same = condition.reason.as_deref() == Some(reason) && condition.message.as_deref() == Some(message);
            same && condition.status == "False" && condition.observed_generation == pod.generation
        });
        let since = current.filter(|condition| condition.status == "False");
        let since = since.and_then(|condition| condition.last_transition_time.clone());
        (!says_so).then(|| {
            json!({
                "type": "PodScheduled",
                "status": "False",
                "reason": reason,
                "message": message,
                "observedGeneration": pod.generation,
                "lastTransitionTime": since.unwrap_or_else(|| Time((self.clock)())),
            })
        })
    }
}

fn nominated(pod: &Pod) -> Option<String> {
    let node = pod.status.as_ref().and_then(|status| status.nominated_node_name.clone());
    node.filter(|node| !node.is_empty())
}

fn about(pod: &PodFacts) -> ObjectReference {
    let meta = api::meta::Meta {
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        uid: pod.uid.clone(),
        ..api::meta::Meta::default()
    };
    reference("v1", "Pod", &meta)
}

fn decode<K: client::typed::Typed>(object: &Object) -> Option<K> {
    object.decode().inspect_err(|error| warn!(key = %object.key(), %error, "could not decode, ignored")).ok()
}
