//! One pod's worker: feeds the pod's machine with what happens, and carries out what it decides.
//!
//! The loop itself never waits for anything: all work runs in tasks that answer by the worker's own mailbox. Whatever hangs, a
//! dead file server or a slow registry, hangs for this pod alone.

mod launch;
mod resize;
mod sandbox;
mod storage;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use runtime::plan::ContainerPlan;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::events::PodEvents;
use crate::images::Pulled;
use crate::pod_machine::event::{Effect, Event, Exit, ProbeKind, Signal, Started};
use crate::pod_machine::{Machine, any_container};
use crate::probes;
use crate::shared::{Known, Roots, Shared};
use crate::sources::PodSources;
use crate::status::{self, Desired};
use crate::tokens::Tokens;
use crate::volumes::Ready;
use crate::{eviction, hooks, pod_status};

/// Messages that wait for one worker: far more than a pod's containers and probes can have under way.
pub const MAILBOX: usize = 256;

/// What reaches a worker.
#[derive(Debug)]
pub enum Message {
    Machine(Event),
    /// The runtime saw a container end; which one is known by its id.
    ContainerExited {
        id: String,
        exit: runtime::plan::Exit,
    },
    /// All volumes are ready.
    Mounted(BTreeMap<String, Ready>, Tokens),
    /// Payloads were brought up to date.
    Refreshed(Tokens),
    ImageReady {
        container: String,
        name: String,
        pulled: Pulled,
    },
    /// What the pod uses of the disk.
    Measured(eviction::Usage),
    /// A Secret, a ConfigMap, or the machine's mounts may have changed.
    SourcesChanged,
    /// The object is gone from the API.
    Gone,
}

/// What the node's loop keeps of a worker.
#[derive(Clone, Debug)]
pub struct Handle {
    pub pods: watch::Sender<Arc<Pod>>,
    pub mailbox: mpsc::Sender<Message>,
}

/// What was found of the pod when the process started.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// The stop signals of running containers, by name.
    pub stop_signals: BTreeMap<String, i32>,
}

pub struct Worker {
    shared: Arc<Shared>,
    uid: String,
    machine: Machine,
    events: PodEvents,
    sources: PodSources,
    mailbox: mpsc::Sender<Message>,
    tasks: JoinSet<()>,
    probes: BTreeMap<(String, ProbeKind), AbortHandle>,
    volumes: Arc<BTreeMap<String, Ready>>,
    storage: storage::Storage,
    tokens: Tokens,
    images: BTreeMap<String, Arc<Pulled>>,
    stop_signals: BTreeMap<String, i32>,
    /// Ends of containers whose start has not been told yet.
    early: BTreeMap<String, runtime::plan::Exit>,
    desired: watch::Sender<Option<Desired>>,
    /// Probes of containers that started earlier are spread over their first period.
    since: Timestamp,
    gone: bool,
    /// When the pod's use of the disk is to be measured, while it is limited.
    measure_at: Option<tokio::time::Instant>,
    /// Checks and carries out a change of resources.
    resizing: Option<AbortHandle>,
}

/// Starts a worker in `tasks`; it ends when nothing of the pod is left here and in the API, or on `cancel`, which leaves the
/// pod running.
pub fn spawn(
    shared: Arc<Shared>,
    machine: Machine,
    past: Past,
    tasks: &mut JoinSet<String>,
    cancel: CancellationToken,
) -> Handle {
    let pod = machine.pod().clone();
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let (mailbox, messages) = mpsc::channel(MAILBOX);
    let (pods, updates) = watch::channel(pod.clone());
    let (desired, told) = watch::channel(None);
    let worker = Worker {
        events: PodEvents::new(shared.recorder.clone(), &pod),
        sources: shared.sources.of_pod(&pod),
        mailbox: mailbox.clone(),
        tasks: JoinSet::new(),
        probes: BTreeMap::new(),
        volumes: Arc::default(),
        storage: storage::Storage::default(),
        tokens: Tokens::default(),
        images: BTreeMap::new(),
        stop_signals: past.stop_signals,
        early: BTreeMap::new(),
        desired,
        since: shared.now(),
        gone: false,
        measure_at: pod
            .spec
            .as_ref()
            .is_some_and(eviction::is_limited)
            .then(|| tokio::time::Instant::now() + eviction::EVERY),
        resizing: None,
        uid: uid.clone(),
        machine,
        shared,
    };
    let (acknowledged, end_told) = oneshot::channel();
    let writer = status::keep_told(worker.shared.client.clone(), updates.clone(), told, acknowledged);
    tasks.spawn(async move {
        cancel.run_until_cancelled(worker.run(messages, updates, writer, end_told)).await;
        uid
    });
    Handle { pods, mailbox }
}

impl Worker {
    async fn run(
        mut self,
        mut messages: mpsc::Receiver<Message>,
        mut updates: watch::Receiver<Arc<Pod>>,
        writer: impl Future<Output = ()>,
        mut end_told: oneshot::Receiver<()>,
    ) {
        tokio::pin!(writer);
        let (mut written, mut acknowledged) = (false, false);
        self.watch_sources();
        self.step(Event::Tick);
        while !(self.machine.is_finished() && self.gone) {
            let wait = self.machine.next_deadline().map(|deadline| until(deadline, self.shared.now()));
            let refresh = self.tokens.next_refresh().map(|at| until(at, self.shared.now()));
            let event = tokio::select! {
                Some(message) = messages.recv() => self.receive(message),
                Ok(()) = updates.changed() => {
                    let pod = updates.borrow_and_update().clone();
                    self.pod_changed(&pod);
                    Some(Event::Updated(pod))
                }
                // The writer ends when the object is gone from the API.
                () = &mut writer, if !written => {
                    written = true;
                    debug!(pod = self.uid, "nothing left to tell");
                    None
                }
                _ = &mut end_told, if !acknowledged => {
                    acknowledged = true;
                    Some(Event::EndTold)
                }
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => Some(Event::Tick),
                () = tokio::time::sleep(refresh.unwrap_or_default()), if refresh.is_some() => {
                    self.refresh();
                    None
                }
                () = tokio::time::sleep_until(self.measure_at.unwrap_or_else(tokio::time::Instant::now)), if self.measure_at.is_some() => {
                    self.measure_at = None;
                    self.measure();
                    None
                }
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(pod = self.uid, %error, "a task of this pod failed");
                    }
                    None
                }
            };
            if let Some(event) = event {
                self.step(event);
            }
        }
        self.tasks.shutdown().await;
        storage::forget(&self.shared.roots, self.shared.roots.logs(self.machine.pod())).await;
        info!(pod = self.uid, "pod gone");
    }

    fn receive(&mut self, message: Message) -> Option<Event> {
        match message {
            Message::Machine(event) => Some(event),
            Message::ContainerExited { id, exit } => match self.machine.container_of_run(&id) {
                Some(container) => Some(self.exited(container, id, exit)),
                None => {
                    self.early.insert(id, exit);
                    None
                }
            },
            Message::Mounted(volumes, tokens) => {
                self.volumes = Arc::new(volumes);
                self.tokens = tokens;
                Some(Event::VolumesReady)
            }
            Message::Refreshed(tokens) => {
                self.tokens = tokens;
                if self.storage.refreshed() {
                    self.refresh();
                }
                None
            }
            // The pod may want another one by now.
            Message::ImageReady { container, name, .. } if !self.machine.awaits_image(&container, &name) => None,
            Message::ImageReady { container, name, pulled } => {
                let image_id = crate::images::image_ref(&pulled.image);
                let signal = launch::stop_signal(&pulled.image);
                self.stop_signals.insert(container.clone(), signal);
                self.images.insert(container.clone(), Arc::new(pulled));
                Some(Event::ImageReady { container, image: name, image_id })
            }
            Message::Measured(usage) => {
                let over = self.machine.pod().spec.as_ref().and_then(|spec| eviction::verdict(spec, &usage));
                let Some(message) = over.filter(|_| !self.machine.is_stopping()) else {
                    self.measure_at = Some(tokio::time::Instant::now() + eviction::EVERY);
                    return None;
                };
                self.events.warning("Evicted", &message, None);
                let grace = jiff::SignedDuration::from_secs(1);
                Some(Event::Evicted { reason: "Evicted".to_owned(), message, grace })
            }
            Message::SourcesChanged => {
                self.refresh();
                Some(Event::SourcesChanged)
            }
            Message::Gone => {
                self.gone = true;
                Some(Event::Removed)
            }
        }
    }

    fn exited(&self, container: String, id: String, exit: runtime::plan::Exit) -> Event {
        let log = self.log_of(&container);
        let spec = self.machine.container(&container);
        let message = launch::termination_message(&self.shared.roots.pod(&self.uid), spec, &id, &exit, &log);
        Event::Exited { container, exit: launch::ended(&id, &exit, message) }
    }

    fn log_of(&self, container: &str) -> std::path::PathBuf {
        let attempt = self.machine.attempt(container).unwrap_or(0);
        self.shared.roots.logs(self.machine.pod()).join(crate::plan::log_path(container, attempt))
    }

    fn pod_changed(&mut self, pod: &Pod) {
        let (old, new) = (&self.machine.pod().metadata, &pod.metadata);
        if old.labels != new.labels || old.annotations != new.annotations || old.generation != new.generation {
            // The downward API shows them.
            self.refresh();
        }
    }

    fn step(&mut self, event: Event) {
        debug!(pod = self.uid, ?event, "pod event");
        let started = match &event {
            Event::Started(started) => Some(started.clone()),
            _ => None,
        };
        self.take(event);
        if let Some(Started { container, id, .. }) = started {
            // A program may end before its start has been told.
            if let Some(exit) = self.early.remove(&id) {
                let event = self.exited(container, id, exit);
                self.take(event);
            }
        }
        self.publish();
    }

    fn take(&mut self, event: Event) {
        let effects = self.machine.step(event, self.shared.now());
        for effect in effects {
            self.perform(effect);
        }
    }

    fn publish(&mut self) {
        let now = self.shared.now();
        let status = self.machine.status(&self.shared.node_ips, now);
        let pod = self.machine.pod().clone();
        let ended = self.machine.has_ended();
        let remove = self.machine.is_finished() && pod.metadata.deletion_timestamp.is_some();
        self.shared.registry.set(&self.uid, Known { pod, status: status.clone() });
        let next = Some(Desired { status, ended, remove });
        self.desired.send_if_modified(|desired| {
            let changed = *desired != next;
            *desired = next;
            changed
        });
    }

    fn perform(&mut self, effect: Effect) {
        debug!(pod = self.uid, ?effect, "pod effect");
        match effect {
            Effect::MountVolumes => self.mount(),
            Effect::UnmountVolumes => self.unmount(),
            Effect::CreateSandbox => self.create_sandbox(),
            Effect::RemoveSandbox => self.remove_sandbox(),
            Effect::EnsureImage { container } => self.ensure_image(container),
            Effect::LookForImage { container, volume } => self.look_for_image(container, volume),
            Effect::StartContainer { container, attempt } => self.start_container(container, attempt),
            Effect::PostStart { container, id } => self.post_start(container, id),
            Effect::PreStop { container, id, until } => self.pre_stop(container, id, until),
            Effect::Signal { container, id, signal } => self.signal(&container, id, signal),
            Effect::StartProbe { container, id, kind, started_at } => self.start_probe(container, id, kind, started_at),
            Effect::StopProbe { container, kind } => {
                if let Some(probe) = self.probes.remove(&(container, kind)) {
                    probe.abort();
                }
            }
            Effect::Resize => self.resize(),
            Effect::Record { warning: true, reason, message, container } => {
                self.events.warning(reason, &message, container.as_deref());
            }
            Effect::Record { warning: false, reason, message, container } => {
                self.events.normal(reason, &message, container.as_deref());
            }
            Effect::Finish => info!(pod = self.uid, "nothing of the pod is left on the node"),
        }
    }

    /// Runs work whose answer is an event.
    fn answer(&mut self, work: impl Future<Output = Message> + Send + 'static) {
        let mailbox = self.mailbox.clone();
        self.tasks.spawn(async move {
            let message = work.await;
            // The worker is gone only when the pod is.
            mailbox.send(message).await.ok();
        });
    }

    fn watch_sources(&mut self) {
        for mut changes in self.sources.subscribe() {
            let mailbox = self.mailbox.clone();
            self.tasks.spawn(async move {
                loop {
                    changes.next().await;
                    if mailbox.send(Message::SourcesChanged).await.is_err() {
                        return;
                    }
                }
            });
        }
    }

    fn ensure_image(&mut self, container: String) {
        let (shared, events, pod) = (self.shared.clone(), self.events.clone(), self.machine.pod().clone());
        let Some(spec) = self.machine.container(&container).cloned() else { return };
        self.answer(async move {
            let name = spec.image.clone().unwrap_or_default();
            let pulled = async {
                let volumes = storage::volume_images(&shared, &pod, &events, &spec).await;
                let volumes = volumes.map_err(|(volume, missing)| (Some(volume), missing))?;
                let image = crate::images::ensure(&shared.images, &shared.client, &events, &pod, &spec).await;
                Ok(Pulled { image: image.map_err(|missing| (None, missing))?, volumes })
            };
            match pulled.await {
                Ok(pulled) => Message::ImageReady { container, name, pulled },
                Err((volume, missing)) => Message::Machine(Event::ImageFailed {
                    container,
                    image: name,
                    volume,
                    reason: missing.reason.to_owned(),
                    message: missing.message,
                }),
            }
        });
    }

    fn look_for_image(&mut self, container: String, volume: Option<String>) {
        let wanted = match volume {
            None => self.machine.container(&container).cloned(),
            Some(reference) => {
                let volumes = self.machine.pod().spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
                let mut images = volumes.filter_map(|volume| volume.image.as_ref());
                images.find(|image| image.reference.as_ref() == Some(&reference)).map(crate::images::of_volume)
            }
        };
        if wanted.is_some_and(|wanted| crate::images::is_here(&self.shared.images, &wanted)) {
            self.answer(async move { Message::Machine(Event::ImageFound { container }) });
        }
    }

    fn post_start(&mut self, name: String, id: String) {
        let (shared, uid, ip) = (self.shared.clone(), self.uid.clone(), self.pod_ip());
        let Some(container) = self.machine.container(&name).cloned() else { return };
        self.answer(async move {
            let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.clone());
            let failed = match hook {
                Some(hook) => hooks::run(&shared.runtime, &uid, &id, &ip, &container, &hook).await.err(),
                None => None,
            };
            if let Some(error) = &failed {
                // Not in an event: the output may be secret.
                info!(pod = uid, container = name, error, "postStart hook failed");
            }
            Message::Machine(Event::PostStartDone { container: name, id, failed })
        });
    }

    fn pre_stop(&mut self, name: String, id: String, until_time: Timestamp) {
        let (shared, uid, ip, events) = (self.shared.clone(), self.uid.clone(), self.pod_ip(), self.events.clone());
        let Some(container) = self.machine.container(&name).cloned() else { return };
        let limit = until(until_time, self.shared.now());
        self.answer(async move {
            let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.clone());
            if let Some(hook) = hook {
                let run = hooks::run(&shared.runtime, &uid, &id, &ip, &container, &hook);
                if let Ok(Err(error)) = tokio::time::timeout(limit, run).await {
                    info!(pod = uid, container = name, error, "preStop hook failed");
                    events.warning("FailedPreStopHook", "PreStopHook failed", Some(&name));
                }
            }
            Message::Machine(Event::PreStopDone { container: name, id })
        });
    }

    fn signal(&mut self, container: &str, id: String, signal: Signal) {
        let (shared, uid) = (self.shared.clone(), self.uid.clone());
        let number = self.stop_signals.get(container).copied().unwrap_or(launch::SIGTERM);
        self.tasks.spawn(async move {
            let sent = match signal {
                Signal::Stop => shared.runtime.signal(&uid, &id, number).await,
                Signal::Kill => shared.runtime.kill_container(&uid, &id).await,
            };
            if let Err(error) = sent {
                // The shim is dead or the container unknown: its end is told in another way.
                info!(pod = uid, container = id, %error, "signal not sent");
            }
        });
    }

    fn start_probe(&mut self, name: String, id: String, kind: ProbeKind, started_at: Timestamp) {
        let Some(container) = self.machine.container(&name).cloned() else { return };
        let target = probes::Target {
            runtime: self.shared.runtime.clone(),
            pod: self.uid.clone(),
            pod_ip: self.pod_ip(),
            id: id.clone(),
            container,
            kind,
            started_at,
        };
        let (mailbox, events, now) = (self.mailbox.clone(), self.events.clone(), self.shared.now());
        let first = if started_at < self.since { spread(&id, &target) } else { Duration::ZERO };
        let (reports, mut told) = mpsc::channel(1);
        let container = name.clone();
        let task = self.tasks.spawn(async move {
            let tell = async {
                while let Some(report) = told.recv().await {
                    match report {
                        probes::Report::Result(healthy) => {
                            let event = Event::Probed { container: container.clone(), id: id.clone(), kind, healthy };
                            mailbox.send(Message::Machine(event)).await.ok();
                        }
                        probes::Report::Record { reason, message } => {
                            events.warning(reason, &message, Some(&container))
                        }
                    }
                }
            };
            tokio::join!(probes::run(target, first, now, reports), tell);
        });
        if let Some(earlier) = self.probes.insert((name, kind), task) {
            earlier.abort();
        }
    }

    /// The pod's primary address as probes reach it.
    fn pod_ip(&self) -> String {
        let host = self.machine.pod().spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
        let ips = if host { self.shared.host_ips() } else { self.machine.ips().to_vec() };
        ips.first().cloned().unwrap_or_default()
    }

    fn facts(&self) -> crate::plan::env::Facts {
        let pod = self.machine.pod().spec.as_ref();
        let host_network = pod.is_some_and(|spec| spec.host_network == Some(true));
        let host_ips = self.shared.host_ips();
        let pod_ips = if host_network {
            host_ips.clone()
        } else {
            pod_status::by_family(self.machine.ips(), &self.shared.node_ips)
        };
        crate::plan::env::Facts { pod_ips, host_ips, allocatable: self.shared.machine.allocatable.clone() }
    }
}

/// From now until then, nothing when it is past.
fn until(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default()
}

/// A delay within the probe's period that depends on the container.
fn spread(id: &str, target: &probes::Target) -> Duration {
    let period =
        probes::of_container(&target.container, target.kind).and_then(|probe| probe.period_seconds).unwrap_or(10);
    let hash = id.bytes().fold(0u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let millis = u64::try_from(period).unwrap_or(10).max(1) * 1000;
    Duration::from_millis(hash % millis)
}

/// The labels under which a container's stop signal and the image that its pod named are kept in the runtime.
pub use launch::{LABEL_IMAGE, LABEL_SIGNAL};
/// What RuntimeClasses may name.
pub(crate) use sandbox::HANDLERS;

/// Removes what runs and lies around of a pod that nobody knows any more. Tries until it is done.
pub(crate) async fn remove_orphan(shared: &Shared, uid: &str) {
    sandbox::remove_patiently(shared, uid).await;
    storage::remove_patiently(&shared.roots.pod(uid), uid).await;
    storage::forget_uid(&shared.roots, uid).await;
}

/// The machine's words for how a run of an adopted pod ended.
pub(crate) fn machine_exit(roots: &Roots, pod: &Pod, run: &ContainerPlan, exit: &runtime::plan::Exit) -> Exit {
    let dir = roots.pod(pod.metadata.uid.as_deref().unwrap_or_default());
    let spec = pod.spec.as_ref().and_then(|spec| any_container(spec, &run.name));
    let log = roots.logs(pod).join(run.log_path.as_deref().unwrap_or(Path::new("")));
    launch::ended(&run.id, exit, launch::termination_message(&dir, spec.as_ref(), &run.id, exit, &log))
}
