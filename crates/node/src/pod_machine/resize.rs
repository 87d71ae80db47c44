//! Changing the resources of containers that run.
//!
//! The machine says what is wanted ([`Machine::changes`]); the shell finds out whether the node has room, and writes cgroups.
//! Sources: allocation/allocation_manager.go (deferred and infeasible), kuberuntime_manager.go, `computePodResizeAction` and
//! `doPodResizeAction`; status/status_manager.go (conditions).

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ResourceRequirements};

use super::Machine;
use super::container::Role;
use super::event::{Change, Effect, Resized};
use crate::resources::{Side, of_container};

/// Where a change of resources stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resize {
    #[default]
    None,
    InProgress {
        error: Option<String>,
    },
    /// The node has no room for it now, or never will.
    Pending {
        reason: &'static str,
        message: String,
    },
}

impl Machine {
    /// The running containers that have other resources than the pod says.
    pub fn changes(&self) -> Vec<Change> {
        let changed = self.slots.iter().filter_map(|slot| {
            if !slot.is_running() || slot.is_stopping() || matches!(slot.role, Role::Init | Role::Ephemeral) {
                return None;
            }
            let container = self.container(&slot.name)?;
            let wanted = container.resources.clone().unwrap_or_default();
            let has = slot.resources.clone().unwrap_or_default();
            let names = differing(&wanted, &has);
            (!names.is_empty()).then(|| Change {
                container: slot.name.clone(),
                id: slot.id.clone().unwrap_or_default(),
                restart: needs_restart(container, &names),
                resources: wanted,
                had: has,
            })
        });
        changed.collect()
    }

    /// Asks for what the pod says, or takes back what was asked for.
    pub(super) fn want_resources(&mut self) {
        if self.stop.is_some() {
            return;
        }
        if !self.changes().is_empty() {
            self.resize = Resize::InProgress { error: None };
            self.out.push(Effect::Resize);
        } else if !self.restarts_for_resize() {
            self.resize = Resize::None;
        }
    }

    /// Whether a container is on its way to its new resources by way of a restart.
    fn restarts_for_resize(&self) -> bool {
        self.resize != Resize::None
            && self.slots.iter().any(|slot| {
                let wanted = self.container(&slot.name).and_then(|container| container.resources.clone());
                slot.restart_for_resize
                    && !differing(&wanted.unwrap_or_default(), &slot.resources.clone().unwrap_or_default()).is_empty()
            })
    }

    pub(super) fn resized(&mut self, resized: Resized, now: Timestamp) {
        if self.stop.is_some() || self.resize == Resize::None {
            return;
        }
        let changes = match resized {
            Resized::Pending { reason, message } => {
                self.record(
                    true,
                    if reason == "Deferred" { "ResizeDeferred" } else { "ResizeInfeasible" },
                    message.clone(),
                    None,
                );
                self.resize = Resize::Pending { reason, message };
                return;
            }
            Resized::Failed(error) => {
                self.record(true, "ResizeError", error.clone(), None);
                self.resize = Resize::InProgress { error: Some(error) };
                return;
            }
            Resized::Done(changes) => changes,
        };
        self.resize = Resize::InProgress { error: None };
        for change in changes {
            let Some(index) = self.index_of_run(&change.container, &change.id) else { continue };
            if change.restart {
                let message = format!("Container {} resize requires restart", change.container);
                self.slots[index].restart_for_resize = true;
                self.stop_for_restart(index, message, None, true, now);
            } else {
                self.slots[index].resources = Some(change.resources);
            }
        }
        if !self.restarts_for_resize() && self.changes().is_empty() {
            self.resize = Resize::None;
            self.record(false, "ResizeCompleted", "Pod resize completed".to_owned(), None);
        }
    }
}

/// The resources, of CPU and memory, whose request or limit differs.
fn differing(a: &ResourceRequirements, b: &ResourceRequirements) -> Vec<&'static str> {
    let of = |requirements: &ResourceRequirements, side, name: &str| {
        let container = Container { resources: Some(requirements.clone()), ..Container::default() };
        of_container(&container, side).get(name).copied()
    };
    let differs =
        |name: &&str| [Side::Requests, Side::Limits].iter().any(|side| of(a, *side, name) != of(b, *side, name));
    ["cpu", "memory"].into_iter().filter(differs).collect()
}

fn needs_restart(container: &Container, names: &[&str]) -> bool {
    let mut policies = container.resize_policy.iter().flatten();
    policies.any(|policy| policy.restart_policy == "RestartContainer" && names.contains(&policy.resource_name.as_str()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::super::event::{Event, Exit, Started};
    use super::*;

    fn pod(cpu: &str, policy: &str, generation: i64) -> Arc<Pod> {
        let container = json!({"name": "a", "image": "i", "resources": {"requests": {"cpu": cpu}},
            "resizePolicy": [{"resourceName": "cpu", "restartPolicy": policy}]});
        let pod = json!({"metadata": {"name": "p", "uid": "u", "generation": generation}, "spec": {"containers": [container]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    struct Running(Machine, Timestamp);

    impl Running {
        fn new(policy: &str) -> Self {
            let now = Timestamp::from_second(1_800_000_000).unwrap();
            let mut running = Self(Machine::new(pod("1", policy, 1), now), now);
            running.step(Event::Tick);
            running.step(Event::VolumesReady);
            running.step(Event::SandboxReady { ips: Vec::new() });
            running.step(Event::ImageReady {
                container: "a".to_owned(),
                image: "i".to_owned(),
                image_id: "i".to_owned(),
            });
            running.start("one");
            running
        }

        fn start(&mut self, id: &str) {
            let (container, image, id) = ("a".to_owned(), "i".to_owned(), id.to_owned());
            self.step(Event::Started(Started { container, image, id, at: self.1, user: None, resources: None }));
        }

        fn step(&mut self, event: Event) -> Vec<Effect> {
            self.0.step(event, self.1)
        }

        /// The requested CPU and the conditions of the resize, as the status has them.
        fn shown(&mut self) -> (Value, Vec<String>) {
            let status = self.0.status(&[], self.1);
            let own = |name: &String| name.starts_with("PodResize");
            let conditions = status.conditions.iter().flatten().map(|c| c.type_.clone()).filter(own).collect();
            let status = json!(status);
            (status["containerStatuses"][0]["resources"]["requests"]["cpu"].clone(), conditions)
        }
    }

    #[test]
    fn a_resize_in_place_shows_while_it_goes_on() {
        let mut pod_running = Running::new("NotRequired");
        assert_eq!(pod_running.shown(), (json!("1"), vec![]));
        let effects = pod_running.step(Event::Updated(pod("2", "NotRequired", 2)));
        assert_eq!(effects, [Effect::Resize]);
        assert_eq!(pod_running.shown(), (json!("1"), vec!["PodResizeInProgress".to_owned()]));
        let changes = pod_running.0.changes();
        assert!(!changes[0].restart);
        pod_running.step(Event::Resized(Resized::Done(changes)));
        assert_eq!(pod_running.shown(), (json!("2"), vec![]));
    }

    #[test]
    fn a_policy_restarts_the_container() {
        let mut pod_running = Running::new("RestartContainer");
        pod_running.step(Event::Updated(pod("2", "RestartContainer", 2)));
        let changes = pod_running.0.changes();
        let effects = pod_running.step(Event::Resized(Resized::Done(changes)));
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Signal { .. })), "{effects:?}");
        assert_eq!(pod_running.shown(), (json!("1"), vec!["PodResizeInProgress".to_owned()]));
        let exit = Exit::unknown("one", "");
        pod_running.step(Event::Exited { container: "a".to_owned(), exit });
        pod_running.step(Event::ImageReady {
            container: "a".to_owned(),
            image: "i".to_owned(),
            image_id: "i".to_owned(),
        });
        pod_running.start("two");
        assert_eq!(pod_running.shown(), (json!("2"), vec![]));
    }

    #[test]
    fn what_there_is_no_room_for_waits_and_can_be_taken_back() {
        let mut pod_running = Running::new("NotRequired");
        pod_running.step(Event::Updated(pod("99", "NotRequired", 2)));
        let message = "no room".to_owned();
        pod_running.step(Event::Resized(Resized::Pending { reason: "Infeasible", message }));
        assert_eq!(pod_running.shown(), (json!("1"), vec!["PodResizePending".to_owned()]));
        assert!(pod_running.step(Event::Updated(pod("1", "NotRequired", 3))).is_empty());
        assert_eq!(pod_running.shown(), (json!("1"), vec![]));
    }
}
