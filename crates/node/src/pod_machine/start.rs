//! The pass that brings a pod up and keeps it up. Source: kuberuntime_manager.go, `computePodActions` and `SyncPod`.

use jiff::{SignedDuration, Timestamp};

use super::container::{Role, Running, State, restarts_on_probe_failure, should_restart};
use super::event::{Effect, Exit, ProbeKind, Started};
use super::{Machine, Sandbox, Volumes, after};
use crate::backoff::go_duration;

/// Between attempts that failed for a reason that may pass. Source: pod_workers.go, `backOffPeriod`.
pub(super) const RETRY: SignedDuration = SignedDuration::from_secs(10);
/// How long ErrImagePull is shown before it becomes ImagePullBackOff.
const PULL_ERROR_SHOWN: SignedDuration = SignedDuration::from_secs(2);

/// How long a container that is stopped and started again is shown as if it ran on.
///
/// Upstream stops and starts it in one pass and reports statuses between passes only, whatever the pull takes meanwhile; this is
/// how often it looks. Source: kubelet.go, `SyncPod` and `genericPlegRelistPeriod`.
pub(super) const UNSEEN: SignedDuration = SignedDuration::from_secs(1);

impl Machine {
    pub(super) fn advance_start(&mut self, now: Timestamp) {
        self.wake_for_active_deadline();
        let shown_until =
            self.slots.iter().filter_map(|slot| Some(slot.replaced.as_ref()?.until)).filter(|at| *at > now);
        if let Some(at) = shown_until.min() {
            self.wake(at);
        }
        self.ensure_volumes(now);
        self.ensure_sandbox(now);
        if self.volumes != Volumes::Ready {
            return;
        }
        if self.sandbox == Sandbox::Ready {
            self.resume_probes();
            self.replace_changed_containers(now);
            self.start_containers(now);
            self.advance_stopping_containers(now);
        }
    }

    fn ensure_volumes(&mut self, now: Timestamp) {
        match self.volumes {
            Volumes::Failed { retry_at } if retry_at > now => self.wake(retry_at),
            Volumes::None | Volumes::Failed { .. } => {
                self.volumes = Volumes::Mounting;
                self.out.push(Effect::MountVolumes);
            }
            Volumes::Mounting | Volumes::Ready | Volumes::Unmounting | Volumes::Gone => {}
        }
    }

    fn ensure_sandbox(&mut self, now: Timestamp) {
        match self.sandbox {
            Sandbox::Failed { retry_at } if retry_at > now => self.wake(retry_at),
            Sandbox::None | Sandbox::Failed { .. } => {
                self.sandbox = Sandbox::Creating;
                self.out.push(Effect::CreateSandbox);
            }
            Sandbox::Creating | Sandbox::Ready | Sandbox::Removing | Sandbox::Gone => {}
        }
    }

    /// After adoption, probes of running containers begin again. A container is probed from its start, once.
    fn resume_probes(&mut self) {
        if self.resumed {
            return;
        }
        self.resumed = true;
        self.want_resources();
        for index in 0..self.slots.len() {
            if self.slots[index].is_running() {
                self.probe_from_start(index);
            }
        }
    }

    /// Stops what runs from another image than the pod says, also when it changed while the old one was being started or nobody
    /// watched. Source: kuberuntime_manager.go, `containerChanged`; container/helpers.go, `HashContainer`: image and name.
    fn replace_changed_containers(&mut self, now: Timestamp) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let changed = !self.wants_image(&slot.name, slot.image.as_deref().unwrap_or_default());
            if !changed || !slot.is_running() || slot.is_stopping() || !slot.role.restarts_on_change() {
                continue;
            }
            let message = if slot.role == Role::Sidecar {
                format!("Init container {} definition changed", slot.name)
            } else {
                format!("Container {} definition changed, will be restarted", slot.name)
            };
            self.stop_for_restart(index, message, None, true, now);
        }
    }

    fn start_containers(&mut self, now: Timestamp) {
        // Whatever the others wait for may be what is to be looked into.
        for index in 0..self.slots.len() {
            if self.slots[index].role == Role::Ephemeral {
                self.want_running(index, now);
            }
        }
        let initialized = self.slots.iter().any(|slot| slot.role == Role::Main && slot.has_started());
        for index in 0..self.slots.len() {
            match self.slots[index].role {
                Role::Ephemeral => {}
                Role::Init if initialized || self.slots[index].succeeded() => {}
                Role::Init => {
                    self.want_running(index, now);
                    return;
                }
                Role::Sidecar => {
                    self.want_running(index, now);
                    if !initialized && !self.slots[index].started {
                        return;
                    }
                }
                Role::Main => {
                    self.want_running(index, now);
                    // One after the other: a postStart hook holds up the containers behind it.
                    if self.slots[index].is_in_flight() {
                        return;
                    }
                }
            }
        }
    }

    /// Starts a container that is idle, unless its policy or a back-off forbids it.
    fn want_running(&mut self, index: usize, now: Timestamp) {
        if self.slots[index].state != State::Idle || !self.may_start(index) || self.backs_off(index, now) {
            return;
        }
        let slot = &self.slots[index];
        if let Some(retry_at) = slot.retry_at.filter(|at| *at > now) {
            self.wake(retry_at);
            return;
        }
        if self.pull_backs_off(index, now) {
            return;
        }
        let slot = &mut self.slots[index];
        slot.retry_at = None;
        slot.state = State::Pulling;
        let container = slot.name.clone();
        self.out.push(Effect::EnsureImage { container });
    }

    /// Whether policy lets the container run (again).
    pub(crate) fn may_start(&self, index: usize) -> bool {
        let slot = &self.slots[index];
        let (Some(container), Some(spec)) = (self.container(&slot.name), self.pod.spec.as_ref()) else { return false };
        if slot.role == Role::Ephemeral {
            return slot.attempt.is_none();
        }
        if slot.stale {
            // A new sandbox starts everything over, but not what must run only once and did.
            let policy = container.restart_policy.as_deref().or(spec.restart_policy.as_deref());
            let done = slot.exit.as_ref().is_some_and(|exit| exit.code == 0);
            return match policy {
                Some("Never") => slot.role != Role::Main,
                Some("OnFailure") => !done || slot.role != Role::Main,
                _ => true,
            };
        }
        match slot.current_exit() {
            None => true,
            Some(exit) => slot.restart.unwrap_or_else(|| should_restart(container, spec, slot.role, exit.code)),
        }
    }

    /// Source: kuberuntime_manager.go, `doBackOff`.
    fn backs_off(&mut self, index: usize, now: Timestamp) -> bool {
        let slot = &self.slots[index];
        let Some(since) = slot.current_exit().map(|exit| exit.finished_at.unwrap_or(now)) else { return false };
        let Some(until) = slot.restarts.until(since, now) else { return false };
        let (name, delay) = (slot.name.clone(), go_duration(slot.restarts.delay()));
        let new = slot.waiting.as_ref().is_none_or(|waiting| waiting.reason != "CrashLoopBackOff");
        if new {
            let pod = self.pod_text();
            let message = format!("Back-off restarting failed container {name} in pod {pod}");
            self.record(true, "BackOff", message, Some(&name));
            self.wait(
                index,
                "CrashLoopBackOff",
                format!("back-off {delay} restarting failed container={name} pod={pod}"),
            );
        }
        self.wake(until);
        true
    }

    fn pull_backs_off(&mut self, index: usize, now: Timestamp) -> bool {
        let slot = &self.slots[index];
        let Some(failed_at) = slot.pull_failed_at else { return false };
        let Some(until) = slot.pulls.until(failed_at, now) else { return false };
        let flip_at = after(failed_at, PULL_ERROR_SHOWN);
        let shown = slot.waiting.as_ref().is_some_and(|waiting| waiting.reason == "ImagePullBackOff");
        if !shown && now >= flip_at {
            let name = slot.name.clone();
            // The image of a volume belongs to the pod.
            let (image, of) = match &slot.pull_of {
                Some(image) => (Some(image.clone()), None),
                None => (self.container(&name).and_then(|container| container.image.clone()), Some(name.as_str())),
            };
            let message = format!("Back-off pulling image {:?}", image.unwrap_or_default());
            let detail = format!("{message}: {}", slot.pull_error);
            self.record(false, "BackOff", message, of);
            self.record(true, "Failed", "Error: ImagePullBackOff".to_owned(), Some(&name));
            self.wait(index, "ImagePullBackOff", detail);
        } else if !shown {
            self.wake(flip_at);
        }
        // Upstream looks whenever it syncs the pod, which it does as often. Source: image_manager.go, `imagePullPrecheck`.
        let slot = &mut self.slots[index];
        if slot.look_at.is_none_or(|at| at <= now) {
            slot.look_at = Some(after(now, RETRY));
            let (container, volume) = (slot.name.clone(), slot.pull_of.clone());
            self.out.push(Effect::LookForImage { container, volume });
        }
        self.wake(self.slots[index].look_at.map_or(until, |at| at.min(until)));
        true
    }

    /// The back-off is over; it goes on where it was when the image is gone again.
    pub(super) fn image_found(&mut self, name: &str) {
        if let Some(index) = self.index(name) {
            self.slots[index].pull_failed_at = None;
        }
    }

    pub(super) fn image_ready(&mut self, name: &str, image: &str, image_id: String, now: Timestamp) {
        let Some(index) = self.index(name).filter(|_| self.awaits_image(name, image)) else { return };
        let slot = &mut self.slots[index];
        slot.pulls.reset();
        slot.pull_failed_at = None;
        if self.stop.is_some() {
            slot.state = State::Idle;
            return;
        }
        slot.image_id = Some(image_id);
        if let Some(exit) = slot.current_exit() {
            let since = exit.finished_at.unwrap_or(now);
            slot.restarts.next(since, now);
        }
        slot.state = State::Starting;
        let attempt = slot.attempt.map_or(0, |attempt| attempt + 1);
        self.out.push(Effect::StartContainer { container: name.to_owned(), attempt });
    }

    pub(super) fn image_failed(
        &mut self,
        name: &str,
        image: &str,
        volume: Option<String>,
        (reason, message): (String, String),
        now: Timestamp,
    ) {
        let Some(index) = self.index(name).filter(|_| self.awaits_image(name, image)) else { return };
        let slot = &mut self.slots[index];
        slot.state = State::Idle;
        slot.replaced = None;
        if reason == "ErrImagePull" {
            if slot.pull_of != volume {
                slot.pulls.reset();
                slot.pull_of = volume;
            }
            let since = slot.pull_failed_at.unwrap_or(now);
            slot.pulls.next(since, now);
            (slot.pull_failed_at, slot.look_at) = (Some(now), Some(after(now, RETRY)));
            slot.pull_error = format!("{reason}: {message}");
        } else {
            slot.retry_at = Some(after(now, RETRY));
        }
        self.record(true, "Failed", format!("Error: {reason}"), Some(name));
        self.wait(index, &reason, message);
    }

    pub(super) fn started(&mut self, started: Started) {
        let Some(index) = self.index(&started.container) else { return };
        let hook = self
            .container(&started.container)
            .and_then(|container| container.lifecycle.as_ref())
            .is_some_and(|lifecycle| lifecycle.post_start.is_some());
        let resources = self.container(&started.container).and_then(|container| container.resources.clone());
        self.begin_run(index, &started.id, started.image);
        let slot = &mut self.slots[index];
        slot.restart_for_resize = false;
        slot.resources = Some(started.resources.clone().or(resources).unwrap_or_default());
        slot.user = started.user;
        slot.waiting = None;
        slot.state = State::Running(Running { started_at: started.at, hook, stopping: None });
        if self.stop.is_some() {
            return;
        }
        // They may have changed while it was being started, and what was wanted may now be had.
        self.want_resources();
        if hook {
            self.out.push(Effect::PostStart { container: started.container, id: started.id });
        } else {
            self.probe_from_start(index);
        }
    }

    /// Counts a run that was created, and lets its successor wait longer.
    fn begin_run(&mut self, index: usize, id: &str, image: String) {
        let slot = &mut self.slots[index];
        slot.image = Some(image);
        slot.attempt = Some(slot.attempt.map_or(0, |attempt| attempt + 1));
        slot.id = Some(id.to_owned());
        slot.restart = None;
        slot.replaced = None;
        slot.stale = false;
        (slot.started, slot.ready) = (false, false);
    }

    pub(super) fn start_failed(
        &mut self,
        name: &str,
        image: String,
        reason: String,
        message: String,
        exit: Option<Exit>,
        now: Timestamp,
    ) {
        let Some(index) = self.index(name) else { return };
        self.record(true, "Failed", format!("Error: {message}"), Some(name));
        self.slots[index].state = State::Idle;
        self.slots[index].replaced = None;
        let wanted = self.wants_image(name, &image);
        match exit {
            Some(exit) => {
                self.begin_run(index, &exit.id.clone(), image);
                self.end_run(index, exit);
            }
            None => self.slots[index].retry_at = wanted.then(|| after(now, RETRY)),
        }
        if wanted && self.may_start(index) {
            self.wait(index, &reason, message);
        }
    }

    pub(super) fn post_start_done(&mut self, name: &str, id: &str, failed: Option<String>, now: Timestamp) {
        let Some(index) = self.index_of_run(name, id) else { return };
        let Some(running) = self.slots[index].running().filter(|running| running.hook) else { return };
        running.hook = false;
        if running.stopping.is_some() {
            return;
        }
        match failed {
            None => self.probe_from_start(index),
            Some(_) => {
                self.record(true, "FailedPostStartHook", "PostStartHook failed".to_owned(), Some(name));
                self.stop_for_restart(index, "FailedPostStartHook".to_owned(), None, true, now);
                if let Some(stopping) = self.slots[index].running().and_then(|running| running.stopping.as_mut()) {
                    stopping.restart = None;
                }
            }
        }
    }

    /// The container runs: its startup probe decides when the others begin.
    fn probe_from_start(&mut self, index: usize) {
        let slot = &self.slots[index];
        let startup = self.container(&slot.name).is_some_and(|container| container.startup_probe.is_some());
        if matches!(slot.role, Role::Init | Role::Ephemeral) {
            self.slots[index].started = true;
        } else if startup && !slot.started {
            self.start_probe(index, ProbeKind::Startup);
        } else {
            self.has_started_up(index);
        }
    }

    fn has_started_up(&mut self, index: usize) {
        let slot = &self.slots[index];
        let Some(container) = self.container(&slot.name) else { return };
        let (readiness, liveness) = (container.readiness_probe.is_some(), container.liveness_probe.is_some());
        self.slots[index].started = true;
        if !readiness {
            self.slots[index].ready = true;
        } else {
            self.start_probe(index, ProbeKind::Readiness);
        }
        if liveness {
            self.start_probe(index, ProbeKind::Liveness);
        }
    }

    fn start_probe(&mut self, index: usize, kind: ProbeKind) {
        let slot = &self.slots[index];
        if let (State::Running(running), Some(id)) = (&slot.state, &slot.id) {
            let (container, id) = (slot.name.clone(), id.clone());
            self.out.push(Effect::StartProbe { container, id, kind, started_at: running.started_at });
        }
    }

    pub(super) fn probed(&mut self, name: &str, id: &str, kind: ProbeKind, healthy: bool, now: Timestamp) {
        let Some(index) = self.index_of_run(name, id) else { return };
        if !self.slots[index].is_running() {
            return;
        }
        match (kind, healthy) {
            (ProbeKind::Readiness, ready) => self.slots[index].ready = ready,
            (ProbeKind::Startup, true) => {
                if !self.slots[index].started {
                    self.has_started_up(index);
                }
            }
            (ProbeKind::Liveness, true) => {}
            (ProbeKind::Startup | ProbeKind::Liveness, false) => self.probe_failed(index, kind, now),
        }
    }

    fn probe_failed(&mut self, index: usize, kind: ProbeKind, now: Timestamp) {
        let slot = &self.slots[index];
        if self.stop.is_some() || slot.is_stopping() {
            return;
        }
        let (Some(container), Some(spec)) = (self.container(&slot.name), self.pod.spec.as_ref()) else { return };
        let restart = restarts_on_probe_failure(container, spec, slot.role);
        let what = if kind == ProbeKind::Startup { "startup" } else { "liveness" };
        let mut message = format!("Container {} failed {what} probe", slot.name);
        if restart {
            message.push_str(", will be restarted");
        }
        self.stop_for_restart(index, message, Some(kind), restart, now);
    }
}
