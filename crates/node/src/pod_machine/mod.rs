//! The life of one pod on its node, as a machine without IO: events and the time go in, effects and a deadline come out.
//!
//! It decides what upstream spreads over `pod_workers.go` (start, terminate, terminated), `kuberuntime_manager.go`
//! (`computePodActions`, `doBackOff`), `kuberuntime_container.go` (`killContainer`), `kuberuntime_termination_order.go`,
//! `active_deadline.go` and `images/image_manager.go` (back-off). Each [`Event`] updates the state, and then one pass
//! ([`start`] or [`stop`]) asks for everything that the state calls for and that has not been asked for yet.

pub mod container;
pub mod event;
mod resize;
mod start;
mod stop;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodCondition, PodStatus, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use self::container::{Replaced, Role, Running, Slot, State, Waiting};
use self::event::{Effect, Event, Exit, ProbeKind};
pub use self::resize::Resize;

/// What was found on the node when the process started.
#[derive(Clone, Debug, Default)]
pub struct Adopted {
    /// The sandbox's addresses, when its shim lives.
    pub sandbox: Option<Vec<String>>,
    pub containers: Vec<AdoptedContainer>,
}

#[derive(Clone, Debug)]
pub struct AdoptedContainer {
    pub name: String,
    /// `None` for runs of releases that did not keep it.
    pub image: Option<String>,
    pub id: String,
    pub attempt: i32,
    pub started_at: Timestamp,
    /// Set when the container ended, while nobody watched or before.
    pub exit: Option<Exit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Volumes {
    None,
    Mounting,
    Ready,
    Failed { retry_at: Timestamp },
    Unmounting,
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sandbox {
    None,
    Creating,
    Ready,
    Failed { retry_at: Timestamp },
    Removing,
    Gone,
}

/// The pod's end has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    pub grace: SignedDuration,
    /// Phase Failed with this reason and message, for evictions and deadlines.
    pub failed: Option<(String, String)>,
}

/// The machine. Its fields are read by `pod_status.rs`, which turns them into the API's status.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(crate) pod: Arc<Pod>,
    /// The pod's ephemeral containers, in the form of ordinary ones.
    ephemeral: Vec<Container>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) volumes: Volumes,
    pub(crate) volume_failures: u32,
    pub(crate) sandbox: Sandbox,
    /// A sandbox existed before this one.
    pub(crate) recreated: bool,
    pub(crate) ips: Vec<String>,
    pub(crate) stop: Option<Stop>,
    pub(crate) start_time: Timestamp,
    /// The conditions as last generated, for their transition times.
    pub(crate) conditions: Vec<PodCondition>,
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) finished: bool,
    /// The API knows how every container ended.
    end_told: bool,
    /// The pod was refused by the node.
    pub(crate) rejected: bool,
    pub(crate) resize: Resize,
    /// Probes of adopted containers have begun.
    resumed: bool,
    out: Vec<Effect>,
}

impl Machine {
    /// A pod that is new to the node. Nothing happens before the first [`Machine::step`].
    pub fn new(pod: Arc<Pod>, now: Timestamp) -> Self {
        Self::adopt(pod, Adopted::default(), now)
    }

    /// A pod refused by admission: it only reports `Failed` with this reason.
    pub fn reject(pod: Arc<Pod>, reason: &str, message: &str, now: Timestamp) -> Self {
        let mut machine = Self::adopt(pod, Adopted::default(), now);
        machine.rejected = true;
        machine.stop =
            Some(Stop { grace: SignedDuration::ZERO, failed: Some((reason.to_owned(), message.to_owned())) });
        machine
    }

    /// A pod that may have run before this process did. Readiness is the API's until a probe says otherwise, so that a
    /// restart of ours shows nowhere.
    pub fn adopt(pod: Arc<Pod>, found: Adopted, now: Timestamp) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let status = pod.status.clone().unwrap_or_default();
        let known: Vec<&ContainerStatus> = all_statuses(&status).collect();
        let ephemeral = ephemeral_containers(&spec);
        let mut slots = Vec::new();
        for container in spec.init_containers.iter().flatten() {
            let sidecar = container.restart_policy.as_deref() == Some("Always");
            slots.push(Slot::new(&container.name, if sidecar { Role::Sidecar } else { Role::Init }));
        }
        slots.extend(spec.containers.iter().map(|container| Slot::new(&container.name, Role::Main)));
        slots.extend(ephemeral.iter().map(|container| Slot::new(&container.name, Role::Ephemeral)));
        let lost = found.sandbox.is_none();
        for slot in &mut slots {
            let before = known.iter().find(|status| status.name == slot.name);
            if let Some(status) = before {
                slot.remember(status);
            }
            let mut runs: Vec<&AdoptedContainer> =
                found.containers.iter().filter(|run| run.name == slot.name).collect();
            runs.sort_by_key(|run| run.attempt);
            adopt_runs(slot, before.copied(), &runs);
            slot.stale = lost && slot.exit.is_some();
            if slot.image.is_none() {
                let container = container_of(&spec, &slot.name).or_else(|| named(&ephemeral, &slot.name));
                slot.image = container.and_then(|container| container.image.clone());
            }
        }
        let had_sandbox = known.iter().any(|status| status.container_id.is_some());
        let ips = match &found.sandbox {
            Some(ips) => ips.clone(),
            None => status.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect(),
        };
        Self {
            ephemeral,
            slots,
            volumes: Volumes::None,
            volume_failures: 0,
            sandbox: if lost { Sandbox::None } else { Sandbox::Ready },
            recreated: lost && had_sandbox,
            ips,
            stop: None,
            start_time: status.start_time.as_ref().map_or(now, |time| time.0),
            conditions: status.conditions.clone().unwrap_or_default(),
            deadline: None,
            finished: false,
            end_told: false,
            rejected: false,
            resize: Resize::None,
            resumed: false,
            out: Vec::new(),
            pod,
        }
    }

    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// Whether everything of the pod is gone from the node.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether the pod's end has begun.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_some()
    }

    /// The pod's addresses, in the order of the node's families.
    pub fn ips(&self) -> &[String] {
        &self.ips
    }

    /// When [`Event::Tick`] is due, if nothing else happens first.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.deadline
    }

    /// Takes one event and returns what to do about it, in order.
    pub fn step(&mut self, event: Event, now: Timestamp) -> Vec<Effect> {
        self.apply(event, now);
        self.deadline = None;
        if !self.finished {
            self.begin_stop_if_due(now);
            if self.stop.is_some() { self.advance_stop(now) } else { self.advance_start(now) }
        }
        std::mem::take(&mut self.out)
    }

    fn apply(&mut self, event: Event, now: Timestamp) {
        match event {
            Event::Updated(pod) => self.updated(pod, now),
            Event::Removed => {
                self.end_told = true;
                self.begin_stop(SignedDuration::from_secs(1), None, now);
            }
            Event::Evicted { reason, message, grace } => self.begin_stop(grace, Some((reason, message)), now),
            Event::VolumesReady => (self.volumes, self.volume_failures) = (Volumes::Ready, 0),
            Event::VolumesFailed => {
                // Source: nestedpendingoperations, exponentialbackoff: 500 ms doubled to 2 min 2 s.
                let delay =
                    SignedDuration::from_millis(500 << self.volume_failures.min(8)).min(SignedDuration::from_secs(122));
                self.volume_failures += 1;
                self.volumes = Volumes::Failed { retry_at: after(now, delay) };
            }
            Event::SourcesChanged => self.sources_changed(now),
            Event::SandboxReady { ips } => (self.sandbox, self.ips) = (Sandbox::Ready, ips),
            Event::Addresses { ips } => self.ips = ips,
            Event::SandboxFailed { message } => {
                let message = format!("Failed to create pod sandbox: {message}");
                self.record(true, "FailedCreatePodSandBox", message, None);
                self.sandbox = Sandbox::Failed { retry_at: after(now, start::RETRY) };
            }
            Event::SandboxLost => self.sandbox_lost(now),
            Event::SandboxGone => self.sandbox = if self.stop.is_some() { Sandbox::Gone } else { Sandbox::None },
            Event::VolumesGone => self.volumes = Volumes::Gone,
            Event::ImageReady { container, image, image_id } => self.image_ready(&container, &image, image_id, now),
            Event::ImageFailed { container, image, volume, reason, message } => {
                self.image_failed(&container, &image, volume, (reason, message), now);
            }
            Event::ImageFound { container } => self.image_found(&container),
            Event::Started(started) => self.started(started),
            Event::StartFailed { container, image, reason, message, exit } => {
                self.start_failed(&container, image, reason, message, exit, now);
            }
            Event::PostStartDone { container, id, failed } => self.post_start_done(&container, &id, failed, now),
            Event::PreStopDone { container, id } => self.pre_stop_done(&container, &id),
            Event::Exited { container, exit } => self.exited(&container, exit, now),
            Event::Probed { container, id, kind, healthy } => self.probed(&container, &id, kind, healthy, now),
            Event::Resized(resized) => self.resized(resized, now),
            Event::EndTold => self.end_told = true,
            Event::Tick => {}
        }
    }

    /// Asks to be woken at `at`, or earlier.
    fn wake(&mut self, at: Timestamp) {
        self.deadline = Some(self.deadline.map_or(at, |earlier| earlier.min(at)));
    }

    fn record(&mut self, warning: bool, reason: &'static str, message: String, container: Option<&str>) {
        self.out.push(Effect::Record { warning, reason, message, container: container.map(str::to_owned) });
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.slots.iter().position(|slot| slot.name == name)
    }

    /// The slot whose newest run has this id.
    fn index_of_run(&self, name: &str, id: &str) -> Option<usize> {
        self.slots.iter().position(|slot| slot.name == name && slot.id.as_deref() == Some(id))
    }

    /// The container's specification in the newest version of the pod.
    pub fn container(&self, name: &str) -> Option<&Container> {
        container_of(self.pod.spec.as_ref()?, name).or_else(|| named(&self.ephemeral, name))
    }

    /// Whether the container waits for this very image.
    pub fn awaits_image(&self, name: &str, image: &str) -> bool {
        let pulls = self.slots.iter().any(|slot| slot.name == name && slot.state == State::Pulling);
        pulls && self.wants_image(name, image)
    }

    fn wants_image(&self, name: &str, image: &str) -> bool {
        self.container(name).is_some_and(|container| container.image.as_deref().unwrap_or_default() == image)
    }

    /// The run whose processes an ephemeral container is to see.
    pub fn target_of(&self, name: &str) -> Option<String> {
        let all = self.pod.spec.as_ref()?.ephemeral_containers.as_ref()?;
        let target = all.iter().find(|container| container.name == name)?.target_container_name.as_deref()?;
        self.run_of(target).filter(|_| !target.is_empty())
    }

    /// The container whose newest run has this id.
    pub fn container_of_run(&self, id: &str) -> Option<String> {
        let slot = self.slots.iter().find(|slot| slot.id.as_deref() == Some(id))?;
        Some(slot.name.clone())
    }

    /// The id of a container's newest run.
    pub fn run_of(&self, name: &str) -> Option<String> {
        self.slots.iter().find(|slot| slot.name == name)?.id.clone()
    }

    /// The number of a container's newest run.
    pub fn attempt(&self, name: &str) -> Option<i32> {
        self.slots.iter().find(|slot| slot.name == name)?.attempt
    }

    /// `name_namespace(uid)`, as upstream writes a pod in messages.
    fn pod_text(&self) -> String {
        let meta = &self.pod.metadata;
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        format!("{}_{}({})", part(&meta.name), part(&meta.namespace), part(&meta.uid))
    }

    fn updated(&mut self, pod: Arc<Pod>, now: Timestamp) {
        let before = std::mem::replace(&mut self.pod, pod);
        self.forget_images(&before);
        let meta = &self.pod.metadata;
        if meta.deletion_timestamp.is_some() {
            let grace = meta.deletion_grace_period_seconds.or(self.spec_grace()).unwrap_or(30);
            // Source: pod_workers.go, `calculateEffectiveGracePeriod`: never below one second.
            self.begin_stop(SignedDuration::from_secs(grace.max(1)), None, now);
            return;
        }
        self.ephemeral = self.pod.spec.as_ref().map(ephemeral_containers).unwrap_or_default();
        for index in 0..self.ephemeral.len() {
            if self.index(&self.ephemeral[index].name).is_none() {
                self.slots.push(Slot::new(&self.ephemeral[index].name, Role::Ephemeral));
            }
        }
        self.want_resources();
    }

    /// Failures of another image, or with other resources, are not held against the new ones, and nothing waits for an image that
    /// is not wanted any more. Source: kuberuntime/helpers.go, `GetBackoffKey`; images/image_manager.go, `EnsureImageExists`.
    fn forget_images(&mut self, before: &Pod) {
        for slot in &mut self.slots {
            let (old, new) = (key(before, &slot.name), key(&self.pod, &slot.name));
            if old != new {
                slot.restarts.reset();
            }
            if old.map(|(image, _)| image) != new.map(|(image, _)| image) {
                slot.pulls.reset();
                (slot.pull_failed_at, slot.retry_at) = (None, None);
                if slot.state == State::Pulling {
                    slot.state = State::Idle;
                }
            }
        }
    }

    fn spec_grace(&self) -> Option<i64> {
        self.pod.spec.as_ref()?.termination_grace_period_seconds
    }

    fn sources_changed(&mut self, now: Timestamp) {
        if let Volumes::Failed { retry_at } = &mut self.volumes {
            *retry_at = now;
        }
        for slot in &mut self.slots {
            if slot.waiting.as_ref().is_some_and(|waiting| waiting.reason == "CreateContainerConfigError") {
                slot.retry_at = None;
            }
        }
    }

    /// The shim died: every run in it ended, and the pod begins anew unless nothing may be restarted.
    fn sandbox_lost(&mut self, now: Timestamp) {
        for index in 0..self.slots.len() {
            self.stop_probes(index);
            let slot = &mut self.slots[index];
            match std::mem::replace(&mut slot.state, State::Idle) {
                State::Running(running) => {
                    let id = slot.id.clone().unwrap_or_default();
                    let mut exit = Exit::unknown(&id, "The pod's shim died and its containers were killed");
                    (exit.started_at, exit.finished_at) = (Some(running.started_at), Some(now));
                    slot.previous = slot.exit.replace(exit);
                }
                State::Idle | State::Pulling | State::Starting => {}
            }
            slot.restart = None;
            (slot.started, slot.ready) = (false, false);
        }
        if self.stop.is_some() {
            self.sandbox = Sandbox::Ready;
            return;
        }
        self.record(false, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.".to_owned(), None);
        self.out.push(Effect::RemoveSandbox);
        self.sandbox = Sandbox::Removing;
        self.recreated = true;
        for slot in &mut self.slots {
            slot.stale = slot.exit.is_some();
        }
    }

    fn exited(&mut self, name: &str, exit: Exit, now: Timestamp) {
        let Some(index) = self.index(name) else { return };
        let slot = &self.slots[index];
        if slot.id.as_deref() != Some(exit.id.as_str()) || !slot.is_running() {
            return;
        }
        self.stop_probes(index);
        let shown = self.shown(index);
        self.end_run(index, exit);
        let slot = &mut self.slots[index];
        if let (Some(true), Some(shown)) = (slot.restart, shown) {
            slot.replaced = Some(Replaced { shown, until: after(now, start::UNSEEN) });
        }
    }

    /// Moves a slot from running to ended.
    fn end_run(&mut self, index: usize, exit: Exit) {
        let slot = &mut self.slots[index];
        slot.restart = match &slot.state {
            State::Running(Running { stopping: Some(stopping), .. }) => stopping.restart,
            State::Running(_) | State::Idle | State::Pulling | State::Starting => None,
        };
        slot.previous = slot.exit.replace(exit);
        slot.state = State::Idle;
        slot.stale = false;
        (slot.started, slot.ready) = (false, false);
    }

    fn stop_probes(&mut self, index: usize) {
        let Some(container) = self.container(&self.slots[index].name) else { return };
        let kinds = [
            (ProbeKind::Startup, container.startup_probe.is_some()),
            (ProbeKind::Readiness, container.readiness_probe.is_some()),
            (ProbeKind::Liveness, container.liveness_probe.is_some()),
        ];
        if !self.slots[index].is_running() {
            return;
        }
        for (kind, _) in kinds.into_iter().filter(|(_, present)| *present) {
            self.out.push(Effect::StopProbe { container: self.slots[index].name.clone(), kind });
        }
    }

    fn wait(&mut self, index: usize, reason: &str, message: String) {
        self.slots[index].waiting = Some(Waiting { reason: reason.to_owned(), message });
    }
}

/// Fills a slot from the runs found on the node, oldest first.
fn adopt_runs(slot: &mut Slot, before: Option<&ContainerStatus>, runs: &[&AdoptedContainer]) {
    for run in runs {
        if slot.attempt.is_some_and(|attempt| attempt > run.attempt) {
            continue;
        }
        let same = slot.id.as_deref() == Some(run.id.as_str());
        slot.attempt = Some(run.attempt);
        slot.id = Some(run.id.clone());
        slot.image.clone_from(&run.image);
        match &run.exit {
            Some(exit) => {
                if slot.exit.as_ref().is_none_or(|known| known.id != run.id) {
                    slot.previous = slot.exit.replace(exit.clone());
                }
            }
            None => {
                slot.state = State::Running(Running { started_at: run.started_at, hook: false, stopping: None });
                let status = before.filter(|_| same);
                slot.started = status.is_some_and(|status| status.started == Some(true));
                slot.ready = status.is_some_and(|status| status.ready);
            }
        }
    }
    let was_running = before.and_then(|status| status.state.as_ref()).is_some_and(|state| state.running.is_some());
    if runs.is_empty() && was_running {
        let id = slot.id.clone().unwrap_or_default();
        let message = "The container could not be located when the pod was deleted.  The container used to be Running";
        slot.previous = slot.exit.replace(Exit::unknown(&id, message));
    }
}

/// What a container's back-offs belong to.
fn key<'a>(pod: &'a Pod, name: &str) -> Option<(&'a Option<String>, &'a Option<ResourceRequirements>)> {
    let container = container_of(pod.spec.as_ref()?, name)?;
    Some((&container.image, &container.resources))
}

pub(crate) fn container_of<'a>(spec: &'a k8s_openapi::api::core::v1::PodSpec, name: &str) -> Option<&'a Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers).find(|container| container.name == name)
}

/// The container of that name in whichever list.
pub(crate) fn any_container(spec: &k8s_openapi::api::core::v1::PodSpec, name: &str) -> Option<Container> {
    container_of(spec, name).cloned().or_else(|| named(&ephemeral_containers(spec), name).cloned())
}

fn named<'a>(containers: &'a [Container], name: &str) -> Option<&'a Container> {
    containers.iter().find(|container| container.name == name)
}

/// A pod's ephemeral containers as ordinary ones, which they are but for their target.
pub(crate) fn ephemeral_containers(spec: &k8s_openapi::api::core::v1::PodSpec) -> Vec<Container> {
    let convert = |container| serde_json::from_value(serde_json::to_value(container).ok()?).ok();
    spec.ephemeral_containers.iter().flatten().filter_map(convert).collect()
}

/// The statuses of all containers, of whichever list.
pub(crate) fn all_statuses(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flat_map(|list| list.iter().flatten())
}

/// `now + by`, at the end of time when that is later.
pub(crate) fn after(now: Timestamp, by: SignedDuration) -> Timestamp {
    now.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// The API's form of an instant, whole seconds.
pub(crate) fn api_time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}
