//! The node's loop: gives every pod that is bound to this machine a worker, and passes on what happens.
//!
//! Source: kubelet.go, `syncLoop` and `HandlePodCleanups`; pod_workers.go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::object::Object;
use client::events::{Recorder, Severity};
use client::informer::{Delta, Informer, Informers, View};
use client::{Client, Clock, Resource};
use futures_util::FutureExt;
use image::store::ImageStore;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service};
use runtime::Runtime;
use runtime::plan::{AdoptedPod, ContainerState};
use rustix::event::{PollFd, PollFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::network::PodNetwork;
use crate::node_status::{self, Identity};
use crate::plan::files::ClusterDns;
use crate::pod_machine::{Adopted, AdoptedContainer, Machine};
use crate::shared::{Registry, Roots, Shared};
use crate::sources::Sources;
use crate::worker::{self, Handle, Message, Past};
use crate::{admission, image_gc};

/// How long admission waits for a fresh Node.
const NODE_TIMEOUT: Duration = Duration::from_secs(2);

/// Everything that the node is given.
pub struct Config {
    pub node_name: String,
    /// The machine's addresses, primary family first.
    pub node_ips: Vec<IpAddr>,
    pub roots: Roots,
    pub pod_cidrs: Vec<String>,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// Acts as `system:node:<name>`.
    pub client: Client,
    pub runtime: Runtime,
    pub runtime_events: mpsc::Receiver<runtime::plan::Event>,
    pub images: ImageStore,
    pub network: Arc<dyn PodNetwork>,
    pub clock: Clock,
    /// Such as `v1.37.2+coracle.1`.
    pub version: String,
    /// Where the kubelet's endpoint is served, for the Node's status.
    pub port: u16,
    /// How many pods the node takes.
    pub max_pods: u16,
    /// Filled with the node's pods: what the endpoint serves.
    pub registry: Registry,
}

/// Why the node cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the pods of an earlier process cannot be adopted")]
    Adopt(#[source] runtime::error::Error),
    #[error("the API's pods cannot be followed: {0}")]
    Watch(#[from] client::informer::Stopped),
}

/// Runs the node until `cancel`; pods run on after that, and the next process adopts them.
///
/// # Errors
/// When earlier pods cannot be adopted: running on would start them twice.
pub async fn run(config: Config, cancel: CancellationToken) -> Result<(), Error> {
    let mut tasks = JoinSet::new();
    let mut informers = Informers::new(&cancel);
    let pods = informers.start(&config.client, bound_to(&config.node_name), &[]);
    let services = informers.start(&config.client, Resource::of::<Service>().everywhere(), &[]);
    let machine = node_status::measure(existing(&config.roots.kubelet), config.max_pods);
    let clock = config.clock.clone();
    let recorder =
        Recorder::start(config.client.clone(), "kubelet", &config.node_name, clock.clone(), &mut tasks, cancel.clone());
    let identity = Identity {
        name: config.node_name.clone(),
        ips: config.node_ips.clone(),
        pod_cidrs: config.pod_cidrs,
        version: config.version,
        port: config.port,
        data_dir: existing(&config.roots.kubelet).to_owned(),
    };
    let (registered, node) = watch::channel(None);
    let heartbeat = node_status::keep_alive(
        config.client.clone(),
        identity,
        machine.clone(),
        config.images.clone(),
        clock.clone(),
        move |node: Node| drop(registered.send_replace(Some(node))),
    );
    let stop = cancel.clone();
    tasks.spawn(async move {
        stop.run_until_cancelled(heartbeat).await;
    });
    let about = ObjectReference {
        kind: Some("Node".to_owned()),
        name: Some(config.node_name.clone()),
        uid: Some(config.node_name.clone()),
        ..ObjectReference::default()
    };
    recorder.event(&about, Severity::Normal, "Starting", "Starting kubelet.");
    let collect = image_gc::run(config.images.clone(), config.registry.clone(), recorder.clone(), about);
    let stop = cancel.clone();
    tasks.spawn(async move {
        stop.run_until_cancelled(collect).await;
    });
    let shared = Arc::new(Shared {
        node_name: config.node_name,
        node_ips: config.node_ips,
        roots: config.roots,
        cluster_dns: ClusterDns { servers: config.cluster_dns, domain: config.cluster_domain },
        sources: Sources::new(config.client.clone(), cancel.clone()),
        client: config.client,
        runtime: config.runtime,
        images: config.images,
        network: config.network,
        recorder,
        services,
        clock,
        machine,
        registry: config.registry,
    });
    let node = Loop {
        shared,
        workers: BTreeMap::new(),
        tasks: JoinSet::new(),
        found: BTreeMap::new(),
        node,
        waiting: BTreeMap::new(),
        cancel: cancel.clone(),
    };
    let ended = node.run(pods, config.runtime_events).await;
    cancel.cancel();
    while tasks.join_next().await.is_some() {}
    informers.stop().await;
    ended
}

/// The pods of this node.
fn bound_to(node: &str) -> client::Scope {
    let mut scope = Resource::of::<Pod>().everywhere();
    scope.field_selector = format!("spec.nodeName={node}");
    scope
}

/// The nearest directory that exists, for measuring its disk.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

struct Loop {
    shared: Arc<Shared>,
    workers: BTreeMap<String, Handle>,
    tasks: JoinSet<String>,
    /// Pods of an earlier process that no worker has taken over yet.
    found: BTreeMap<String, AdoptedPod>,
    node: watch::Receiver<Option<Node>>,
    /// New pods, until the node is registered: admission needs to know it.
    waiting: BTreeMap<String, Arc<Pod>>,
    cancel: CancellationToken,
}

impl Loop {
    async fn run(mut self, pods: Informer, mut events: mpsc::Receiver<runtime::plan::Event>) -> Result<(), Error> {
        let found = self.shared.runtime.adopt().await.map_err(Error::Adopt)?;
        self.found = found.into_iter().map(|pod| (pod.plan.uid.clone(), pod)).collect();
        let view = match self.cancel.run_until_cancelled(pods.synced()).await {
            None => return Ok(()),
            Some(view) => view?,
        };
        self.adopt_addresses(&view);
        let mut changes = pods.subscribe();
        // A pod that goes before it was taken makes no change at all: orphans are looked for once all that there were are taken.
        for delta in changes.next().now_or_never().unwrap_or_default() {
            self.changed(&delta).await;
        }
        self.remove_orphans(&pods.view());
        let mut mounts = mount_changes();
        let mut node = self.node.clone();
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => break,
                deltas = changes.next() => {
                    for delta in deltas {
                        self.changed(&delta).await;
                    }
                }
                Some(event) = events.recv() => self.happened(event).await,
                () = mount_changed(&mut mounts) => {
                    for worker in self.workers.values() {
                        worker.mailbox.send(Message::SourcesChanged).await.ok();
                    }
                }
                Ok(()) = node.changed(), if !self.waiting.is_empty() => self.admit_waiting().await,
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    match ended {
                        Ok(uid) => {
                            self.workers.remove(&uid);
                            self.shared.registry.remove(&uid);
                        }
                        Err(error) => warn!(%error, "a pod's worker failed"),
                    }
                }
            }
        }
        while self.tasks.join_next().await.is_some() {}
        Ok(())
    }

    async fn changed(&mut self, delta: &Delta) {
        let uid_of = |object: &Option<Arc<Object>>| object.as_ref().map(|object| object.meta().uid.clone());
        let (old, new) = (uid_of(&delta.old), uid_of(&delta.new));
        if let Some(old) = old.filter(|old| new.as_ref() != Some(old)) {
            self.waiting.remove(&old);
            if let Some(worker) = self.workers.get(&old) {
                worker.mailbox.send(Message::Gone).await.ok();
            }
        }
        let (Some(uid), Some(object)) = (new, &delta.new) else { return };
        let pod: Arc<Pod> = match object.decode() {
            Ok(pod) => Arc::new(pod),
            Err(error) => {
                warn!(pod = %object.key(), %error, "pod cannot be read, it is left alone");
                return;
            }
        };
        if let Some(worker) = self.workers.get(&uid) {
            worker.pods.send_replace(pod);
        } else {
            self.waiting.insert(uid, pod);
            self.admit_waiting().await;
        }
    }

    /// Starts workers for new pods, oldest first, as far as the node is known.
    async fn admit_waiting(&mut self) {
        let mut node = self.node.borrow_and_update().clone();
        let mut waiting: Vec<(String, Arc<Pod>)> = std::mem::take(&mut self.waiting).into_iter().collect();
        waiting.sort_by_key(|(_, pod)| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        for (uid, pod) in waiting {
            // A pod that ran here already was admitted then.
            let ran = self.found.contains_key(&uid) || started_here(&pod);
            match (&mut node, ran) {
                (None, false) => drop(self.waiting.insert(uid, pod)),
                (Some(node), false) => {
                    let mut verdict = self.admit(&pod, node);
                    if verdict.is_err() {
                        // Labels and taints may have changed since: a refusal is for good, so it is looked at again.
                        self.read_again(node).await;
                        verdict = self.admit(&pod, node);
                    }
                    self.start(uid, pod, verdict);
                }
                (_, true) => self.start(uid, pod, Ok(())),
            }
        }
    }

    /// Source: lifecycle/predicate.go, `generalFilter`.
    async fn read_again(&self, node: &mut Node) {
        let asked = self.shared.client.get::<Node>("", &self.shared.node_name);
        match tokio::time::timeout(NODE_TIMEOUT, asked).await {
            Ok(Ok(fresh)) => *node = fresh,
            Ok(Err(error)) => warn!(%error, "the Node object cannot be read, the last known one counts"),
            Err(_) => warn!("the Node object is not answered in time, the last known one counts"),
        }
    }

    fn admit(&self, pod: &Pod, node: &Node) -> Result<(), admission::Refusal> {
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let known = self.shared.registry.all();
        let active =
            known.iter().filter(|known| !matches!(known.status.phase.as_deref(), Some("Succeeded" | "Failed")));
        admission::admit(pod, node, active.map(|known| known.pod.as_ref()))
    }

    fn start(&mut self, uid: String, pod: Arc<Pod>, verdict: Result<(), admission::Refusal>) {
        let now = self.shared.now();
        let (mut past, mut running) = (Past::default(), None);
        let machine = match (verdict, self.found.remove(&uid)) {
            (Err(refusal), _) => {
                info!(pod = uid, reason = refusal.reason, message = refusal.message, "pod refused");
                let events = crate::events::PodEvents::new(self.shared.recorder.clone(), &pod);
                events.warning(&refusal.reason, &refusal.message, None);
                Machine::reject(pod, &refusal.reason, &format!("Pod was rejected: {}", refusal.message), now)
            }
            (Ok(()), Some(found)) => {
                info!(pod = uid, containers = found.containers.len(), "pod adopted");
                let adopted = adopted(&self.shared.roots, &pod, &found, &mut past);
                let half_made = adopted.containers.is_empty() && !has_addresses(&pod);
                #[cfg(feature = "planted")]
                let half_made = half_made || planted::on(planted::Bug::RestartOnAdoption);
                if half_made {
                    // Its start was cut short before it was connected: it is made anew.
                    return self.begin(uid, Machine::new(pod, now), past, None);
                }
                running = Some((pod.clone(), found));
                Machine::adopt(pod, adopted, now)
            }
            (Ok(()), None) => Machine::new(pod, now),
        };
        self.begin(uid, machine, past, running);
    }

    fn begin(&mut self, uid: String, machine: Machine, past: Past, running: Option<(Arc<Pod>, AdoptedPod)>) {
        let status = machine.pod().status.clone().unwrap_or_default();
        self.shared.registry.set(&uid, crate::shared::Known { pod: machine.pod().clone(), status });
        let handle = worker::spawn(self.shared.clone(), machine, past, &mut self.tasks, self.cancel.clone());
        self.workers.insert(uid.clone(), handle);
        if let Some((pod, found)) = running {
            self.reattach(&uid, &pod, found);
        }
    }

    /// Tells the network which addresses are taken, before it gives any away.
    fn adopt_addresses(&self, view: &View) {
        for pod in view.iter().filter(|object| self.found.contains_key(&object.meta().uid)) {
            let Ok(pod) = pod.decode::<Pod>() else { continue };
            let ips: Vec<IpAddr> = pod
                .status
                .iter()
                .flat_map(|status| status.pod_ips.iter().flatten())
                .filter_map(|ip| ip.ip.parse().ok())
                .collect();
            let host_network = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
            if !ips.is_empty() && !host_network {
                self.shared.network.adopt(&pod, &ips);
            }
        }
        self.shared.network.adopted();
    }

    /// Lets the network repair what is missing of an adopted pod.
    fn reattach(&mut self, uid: &str, pod: &Arc<Pod>, found: AdoptedPod) {
        let Some(netns) = found.pod.netns else { return };
        let (shared, uid, pod) = (self.shared.clone(), uid.to_owned(), pod.clone());
        let worker = self.workers.get(&uid).map(|worker| worker.mailbox.clone());
        self.tasks.spawn(async move {
            match (shared.network.attach(&uid, netns, &pod).await, worker) {
                (Ok(addresses), Some(worker)) => {
                    let ips = addresses.ips.iter().map(ToString::to_string).collect();
                    let event = crate::pod_machine::event::Event::Addresses { ips };
                    // The worker is gone only when the pod is.
                    worker.send(Message::Machine(event)).await.ok();
                }
                (Ok(_), None) => {}
                (Err(error), _) => warn!(pod = uid, error, "the adopted pod's network is not repaired"),
            }
            String::new()
        });
    }

    /// What runs, has a directory or logs here and is not in the API goes. Directories and logs of pods that another kubelet has are
    /// left alone. Source: kubernetes `kuberuntime_gc.go`, `evictPodLogsDirectories`.
    fn remove_orphans(&mut self, view: &View) {
        let directories = std::fs::read_dir(self.shared.roots.kubelet.join("pods")).into_iter().flatten().flatten();
        let ours = directories.filter(|entry| crate::volumes::is_ours(&entry.path()));
        let mut orphans: BTreeSet<String> = ours.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        orphans.extend(self.found.keys().cloned());
        let logs = std::fs::read_dir(&self.shared.roots.pod_logs).into_iter().flatten().flatten();
        orphans.extend(logs.filter_map(|entry| {
            let uid = entry.file_name().to_str()?.rsplit_once('_')?.1.to_owned();
            let dir = self.shared.roots.pod(&uid);
            let is_uid = uid.starts_with(|first: char| first.is_ascii_alphanumeric()) && !uid.contains("..");
            (is_uid && (!dir.exists() || crate::volumes::is_ours(&dir))).then_some(uid)
        }));
        for object in view.iter() {
            orphans.remove(&object.meta().uid);
        }
        // A pod that has a worker by now is that one's to remove.
        for uid in orphans.into_iter().filter(|uid| !self.workers.contains_key(uid)) {
            info!(pod = uid, "pod is gone from the API: what is left of it is removed");
            self.found.remove(&uid);
            let shared = self.shared.clone();
            self.tasks.spawn(async move {
                worker::remove_orphan(&shared, &uid).await;
                String::new()
            });
        }
    }

    async fn happened(&mut self, event: runtime::plan::Event) {
        let (pod, message) = match event {
            runtime::plan::Event::ContainerExited { pod, container, exit } => {
                (pod, Message::ContainerExited { id: container, exit })
            }
            runtime::plan::Event::ShimDied { pod } => {
                (pod, Message::Machine(crate::pod_machine::event::Event::SandboxLost))
            }
        };
        if let Some(worker) = self.workers.get(&pod) {
            worker.mailbox.send(message).await.ok();
        }
    }
}

/// Whether the API knows the pod's addresses; on the host's network there are none to know.
fn has_addresses(pod: &Pod) -> bool {
    let host_network = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    host_network || pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten()).next().is_some()
}

/// Whether the API's status shows that this node has begun with the pod.
fn started_here(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| status.start_time.is_some())
}

fn adopted(roots: &Roots, pod: &Pod, found: &AdoptedPod, past: &mut Past) -> Adopted {
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    let mut containers = Vec::new();
    for container in &found.containers {
        let plan = &container.plan;
        let run = |started_at, exit| AdoptedContainer {
            name: plan.name.clone(),
            image: plan.labels.get(worker::LABEL_IMAGE).cloned(),
            id: plan.id.clone(),
            attempt: i32::try_from(plan.attempt).unwrap_or(i32::MAX),
            started_at,
            exit,
        };
        let time = |time: std::time::SystemTime| jiff::Timestamp::try_from(time).unwrap_or_default();
        match &container.state {
            // It never ran: it is made again.
            ContainerState::Created => {}
            ContainerState::Running { started_at, .. } => {
                if let Some(signal) = plan.labels.get(worker::LABEL_SIGNAL).and_then(|text| text.parse().ok()) {
                    past.stop_signals.insert(plan.name.clone(), signal);
                }
                containers.push(run(time(*started_at), None));
            }
            ContainerState::Exited(exit) => {
                let started = exit.started_at.unwrap_or(exit.finished_at);
                containers.push(run(time(started), Some(worker::machine_exit(roots, pod, plan, exit))));
            }
        }
    }
    Adopted { sandbox: Some(ips.map(|ip| ip.ip.clone()).collect()), containers }
}

/// The kernel signals a change of this namespace's mounts on mountinfo as a priority event.
fn mount_changes() -> Option<AsyncFd<std::fs::File>> {
    let file = std::fs::File::open("/proc/self/mountinfo").ok()?;
    // Its successor is unsafe and meant for descriptors that may be closed elsewhere: this one is owned.
    #[allow(deprecated)]
    let watched = AsyncFd::with_interest(file, Interest::PRIORITY);
    watched.ok()
}

async fn mount_changed(mounts: &mut Option<AsyncFd<std::fs::File>>) {
    let Some(watched) = mounts else { return std::future::pending().await };
    match watched.ready(Interest::PRIORITY).await {
        Ok(mut ready) => {
            // Reading the state with poll acknowledges the change.
            let mut poll = [PollFd::new(watched.get_ref(), PollFlags::PRI)];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            if let Err(error) = rustix::event::poll(&mut poll, Some(&now)) {
                warn!(%error, "mounts cannot be watched");
            }
            ready.clear_ready();
        }
        Err(error) => {
            warn!(%error, "mounts cannot be watched");
            *mounts = None;
        }
    }
}
