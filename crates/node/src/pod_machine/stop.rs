//! The pass that takes a pod down, and the stages by which a container is stopped.
//!
//! Source: kuberuntime_container.go, `killContainer`; kuberuntime_termination_order.go; pod_workers.go. How containers ended is
//! kept until the API knows: upstream's dead containers stay until the object is gone, and the object until its phase is told
//! (kuberuntime_gc.go, `evictContainers`; status_manager.go, `canBeDeleted`).

use jiff::{SignedDuration, Timestamp};

use super::container::{Role, Stage, State, Stopping, grace_of};
use super::event::{Effect, ProbeKind, Signal};
use super::{Machine, Sandbox, Stop, Volumes, after};

/// What is left to a container after its preStop hook, at least. Source: `minimumGracePeriodInSeconds`.
const LEAST: SignedDuration = SignedDuration::from_secs(2);

impl Machine {
    /// Begins the pod's end, or shortens the time it has.
    pub(super) fn begin_stop(&mut self, grace: SignedDuration, failed: Option<(String, String)>, now: Timestamp) {
        match &mut self.stop {
            None => {
                self.stop = Some(Stop { grace, failed });
                self.stop_all(grace, now);
            }
            Some(stop) if grace < stop.grace => {
                stop.grace = grace;
                let latest = after(now, grace);
                for running in self.slots.iter_mut().filter_map(|slot| slot.running()) {
                    if let Some(stopping) = &mut running.stopping {
                        stopping.kill_at = stopping.kill_at.min(latest);
                    }
                }
            }
            Some(_) => {}
        }
    }

    /// Ends pods whose deadline is over, whose work is done, or that ended before this process began.
    pub(super) fn begin_stop_if_due(&mut self, now: Timestamp) {
        if self.stop.is_some() {
            return;
        }
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            self.begin_stop(SignedDuration::from_secs(1), None, now);
            return;
        }
        if self.pod.metadata.deletion_timestamp.is_some() {
            let grace = self.pod.metadata.deletion_grace_period_seconds.unwrap_or(30).max(1);
            self.begin_stop(SignedDuration::from_secs(grace), None, now);
            return;
        }
        let grace = SignedDuration::from_secs(self.spec_grace().unwrap_or(30).max(0));
        if self.active_deadline().is_some_and(|deadline| now >= deadline) {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.record(false, "DeadlineExceeded", message.clone(), None);
            self.begin_stop(grace, Some(("DeadlineExceeded".to_owned(), message)), now);
        } else if self.is_done() {
            self.begin_stop(grace, None, now);
        }
    }

    fn active_deadline(&self) -> Option<Timestamp> {
        let seconds = self.pod.spec.as_ref()?.active_deadline_seconds?;
        Some(after(self.start_time, SignedDuration::from_secs(seconds)))
    }

    pub(super) fn wake_for_active_deadline(&mut self) {
        if let Some(deadline) = self.active_deadline() {
            self.wake(deadline);
        }
    }

    /// Whether no container but sidecars will ever run again.
    fn is_done(&self) -> bool {
        let ended = |index: usize| {
            let slot = &self.slots[index];
            slot.state == State::Idle && slot.exit.is_some() && !self.may_start(index)
        };
        let failed_init = (0..self.slots.len())
            .any(|index| self.slots[index].role == Role::Init && !self.slots[index].succeeded() && ended(index));
        let mut mains = (0..self.slots.len()).filter(|index| self.slots[*index].role == Role::Main).peekable();
        failed_init || (mains.peek().is_some() && mains.all(ended))
    }

    fn stop_all(&mut self, grace: SignedDuration, now: Timestamp) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if slot.state == State::Pulling {
                slot.state = State::Idle;
            }
            self.stop_container(index, format!("Stopping container {}", self.slots[index].name), grace, None, now);
        }
    }

    /// Stops one container of a pod that goes on.
    pub(super) fn stop_for_restart(
        &mut self,
        index: usize,
        message: String,
        failed: Option<ProbeKind>,
        restart: bool,
        now: Timestamp,
    ) {
        let (Some(container), Some(spec)) = (self.container(&self.slots[index].name), self.pod.spec.as_ref()) else {
            return;
        };
        let grace = grace_of(container, spec, failed);
        self.stop_container(index, message, grace, Some(restart), now);
    }

    fn stop_container(
        &mut self,
        index: usize,
        message: String,
        grace: SignedDuration,
        restart: Option<bool>,
        now: Timestamp,
    ) {
        let name = self.slots[index].name.clone();
        let (Some(id), pod_stops) = (self.slots[index].id.clone(), self.stop.is_some()) else { return };
        let Some(container) = self.container(&name) else { return };
        let hook = container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.pre_stop.is_some());
        let probes = [
            (ProbeKind::Startup, container.startup_probe.is_some()),
            (ProbeKind::Liveness, container.liveness_probe.is_some()),
        ];
        let Some(running) = self.slots[index].running() else { return };
        let kill_at = after(now, grace);
        if let Some(stopping) = &mut running.stopping {
            stopping.kill_at = stopping.kill_at.min(kill_at);
            stopping.restart = restart.and(stopping.restart);
            return;
        }
        let hook = hook && grace > SignedDuration::ZERO;
        let stage = if hook { Stage::Hook } else { Stage::Turn };
        running.stopping = Some(Stopping { stage, kill_at, restart });
        self.record(false, "Killing", message, Some(&name));
        // A container that is being stopped is not killed for failing to answer; readiness goes on when the pod ends.
        for (kind, _) in probes.into_iter().filter(|(_, present)| *present) {
            self.out.push(Effect::StopProbe { container: name.clone(), kind });
        }
        if !pod_stops {
            self.out.push(Effect::StopProbe { container: name.clone(), kind: ProbeKind::Readiness });
        }
        if hook {
            self.out.push(Effect::PreStop { container: name, id, until: kill_at });
        }
    }

    pub(super) fn pre_stop_done(&mut self, name: &str, id: &str) {
        let Some(index) = self.index_of_run(name, id) else { return };
        if let Some(stopping) = self.slots[index].running().and_then(|running| running.stopping.as_mut())
            && stopping.stage == Stage::Hook
        {
            stopping.stage = Stage::Turn;
        }
    }

    /// Moves each container that is being stopped as far as the time and its turn allow.
    pub(super) fn advance_stopping_containers(&mut self, now: Timestamp) {
        for index in 0..self.slots.len() {
            let turn = self.has_its_turn(index);
            let slot = &mut self.slots[index];
            let (name, Some(id)) = (slot.name.clone(), slot.id.clone()) else { continue };
            let Some(stopping) = slot.running().and_then(|running| running.stopping.as_mut()) else { continue };
            let over = now >= stopping.kill_at;
            let (stage, signal) = match stopping.stage {
                Stage::Hook if !over => (Stage::Hook, None),
                Stage::Turn if !turn && !over => (Stage::Turn, None),
                Stage::Hook | Stage::Turn => (Stage::Signalled, Some(Signal::Stop)),
                Stage::Signalled if over => (Stage::Killed, Some(Signal::Kill)),
                stage @ (Stage::Signalled | Stage::Killed) => (stage, None),
            };
            if stage == Stage::Signalled && signal.is_some() {
                stopping.kill_at = stopping.kill_at.max(after(now, LEAST));
            }
            stopping.stage = stage;
            let kill_at = (stage != Stage::Killed).then_some(stopping.kill_at);
            if let Some(signal) = signal {
                self.out.push(Effect::Signal { container: name, id, signal });
            }
            if let Some(at) = kill_at {
                self.wake(at);
            }
        }
    }

    /// A sidecar is signalled after everything that was started behind it has ended. Only the pod's end has an order.
    fn has_its_turn(&self, index: usize) -> bool {
        self.stop.is_none()
            || self.slots[index].role != Role::Sidecar
            || !self.slots[index + 1..].iter().any(|slot| slot.is_running() && slot.role.restarts_on_change())
    }

    pub(super) fn advance_stop(&mut self, now: Timestamp) {
        let grace = self.stop.as_ref().map_or(SignedDuration::ZERO, |stop| stop.grace);
        if self.sandbox == Sandbox::Ready || self.sandbox == Sandbox::Creating {
            // Containers whose start was under way when the end began.
            for index in 0..self.slots.len() {
                if self.slots[index].is_running() && !self.slots[index].is_stopping() {
                    let message = format!("Stopping container {}", self.slots[index].name);
                    self.stop_container(index, message, grace, None, now);
                }
            }
        }
        self.advance_stopping_containers(now);
        let busy = self.slots.iter().any(|slot| slot.state != State::Idle);
        if busy || self.sandbox == Sandbox::Creating || self.volumes == Volumes::Mounting {
            return;
        }
        // The shim remembers how the containers ended, for whoever comes after a main that dies now.
        if !self.end_told {
            return;
        }
        match self.sandbox {
            // Also when it was never made: half of one may be left of an attempt that failed, or of an earlier life.
            Sandbox::None | Sandbox::Failed { .. } | Sandbox::Ready => {
                self.sandbox = Sandbox::Removing;
                self.out.push(Effect::RemoveSandbox);
            }
            Sandbox::Creating | Sandbox::Removing => {}
            Sandbox::Gone => self.unmount(),
        }
    }

    fn unmount(&mut self) {
        match self.volumes {
            Volumes::Gone => {
                self.finished = true;
                self.out.push(Effect::Finish);
            }
            Volumes::None | Volumes::Ready | Volumes::Failed { .. } => {
                self.volumes = Volumes::Unmounting;
                self.out.push(Effect::UnmountVolumes);
            }
            Volumes::Mounting | Volumes::Unmounting => {}
        }
    }
}
