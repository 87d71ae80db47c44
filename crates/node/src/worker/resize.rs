//! A change of the resources of running containers: whether the node has room for it, and the cgroups.
//!
//! Sources: allocation/allocation_manager.go, `canResizePod`; kuberuntime_manager.go, `doPodResizeAction`.

use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use runtime::plan::Resources;

use super::{Message, Worker};
use crate::pod_machine::event::{Change, Event, Resized};
use crate::resources::{self, Amounts, Side};
use crate::shared::Shared;
use api::chain::chain;

/// Whether the pod fits with what it asks for now.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Room {
    Enough,
    /// Others have to go first.
    NotNow(String),
    Never(String),
}

impl Worker {
    pub(super) fn resize(&mut self) {
        if let Some(earlier) = self.resizing.take() {
            earlier.abort();
        }
        let (shared, uid, pod) = (self.shared.clone(), self.uid.clone(), self.machine.pod().clone());
        let (changes, mailbox) = (self.machine.changes(), self.mailbox.clone());
        let task = self.tasks.spawn(async move {
            let tell = async |resized| drop(mailbox.send(Message::Machine(Event::Resized(resized))).await);
            let mut others = shared.registry.changes();
            let mut told = false;
            loop {
                others.borrow_and_update();
                match room(&pod, &uid, &shared) {
                    Room::Enough => break,
                    Room::Never(message) => return tell(Resized::Pending { reason: "Infeasible", message }).await,
                    Room::NotNow(message) if !told => {
                        told = true;
                        tell(Resized::Pending { reason: "Deferred", message }).await;
                    }
                    Room::NotNow(_) => {}
                }
                // The registry is gone only when the node is.
                if others.changed().await.is_err() {
                    return;
                }
            }
            let outcome = write(&shared, &uid, &pod, &changes).await;
            tell(outcome.map_or_else(Resized::Failed, |()| Resized::Done(changes))).await;
        });
        self.resizing = Some(task);
    }
}

fn room(pod: &Arc<Pod>, uid: &str, shared: &Shared) -> Room {
    let known = shared.registry.all();
    let others = known.iter().filter(|known| {
        let over = matches!(known.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        !over && known.pod.metadata.uid.as_deref() != Some(uid)
    });
    let mut used = Amounts::new();
    for spec in others.filter_map(|known| known.pod.spec.as_ref()) {
        for (name, amount) in resources::of_pod(spec, Side::Requests) {
            let sum = used.entry(name).or_insert(Quantity::ZERO);
            *sum = *sum + amount;
        }
    }
    let spec = pod.spec.clone().unwrap_or_default();
    decide(&resources::of_pod(&spec, Side::Requests), &used, &shared.machine.allocatable)
}

fn decide(wanted: &Amounts, used: &Amounts, allocatable: &Amounts) -> Room {
    let number = |name: &str, amount: Quantity| if name == "cpu" { amount.millis() } else { amount.value() };
    let mut missing = Room::Enough;
    for name in ["cpu", "memory"] {
        let (Some(asked), Some(all)) = (wanted.get(name).copied(), allocatable.get(name).copied()) else { continue };
        let taken = used.get(name).copied().unwrap_or(Quantity::ZERO);
        let (requested, capacity) = (number(name, asked), number(name, all));
        if asked > all {
            let text = "Node didn't have enough capacity";
            return Room::Never(format!("{text}: {name}, requested: {requested}, capacity: {capacity}"));
        }
        if asked + taken > all && missing == Room::Enough {
            let text = "Node didn't have enough resource";
            let taken = number(name, taken);
            missing =
                Room::NotNow(format!("{text}: {name}, requested: {requested}, used: {taken}, capacity: {capacity}"));
        }
    }
    missing
}

/// The pod's cgroup holds the old and the new while its containers change, for none may have more than it.
async fn write(shared: &Shared, uid: &str, pod: &Pod, changes: &[Change]) -> Result<(), String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let after = resources::pod_cgroup(&spec);
    let in_place: Vec<(&Change, Resources)> =
        changes.iter().filter(|change| !change.restart).map(|change| (change, limits_of(change))).collect();
    for (change, limits) in &in_place {
        fits_usage(shared, uid, change, limits)?;
    }
    let failed = |error: runtime::error::Error| chain(&error);
    let wide = between(&resources::pod_cgroup(&before(spec, changes)), &after);
    shared.runtime.update_pod(uid, &wide).await.map_err(failed)?;
    for (change, limits) in &in_place {
        shared.runtime.update_container(uid, &change.id, limits).await.map_err(failed)?;
    }
    shared.runtime.update_pod(uid, &after).await.map_err(failed)
}

/// The specification with the resources that its running containers have.
fn before(mut spec: PodSpec, changes: &[Change]) -> PodSpec {
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        if let Some(change) = changes.iter().find(|change| change.container == container.name) {
            container.resources = Some(change.had.clone());
        }
    }
    spec
}

/// Limits under which both fit. What one of them does not limit is left alone: limits are added, and never taken away.
fn between(old: &Resources, new: &Resources) -> Resources {
    let wider = |old: Option<u64>, new: Option<u64>| old.zip(new).map(|(old, new)| old.max(new));
    Resources {
        cpu_quota: wider(old.cpu_quota, new.cpu_quota),
        memory_limit: wider(old.memory_limit, new.memory_limit),
        ..new.clone()
    }
}

fn limits_of(change: &Change) -> Resources {
    resources::container_cgroup(&Container { resources: Some(change.resources.clone()), ..Container::default() })
}

/// Source: kuberuntime_manager.go, `validateMemoryResizeAction`: the kernel would kill, or refuse.
fn fits_usage(shared: &Shared, uid: &str, change: &Change, limits: &Resources) -> Result<(), String> {
    let Some(limit) = limits.memory_limit else { return Ok(()) };
    match shared.runtime.container_stats(uid, &change.id) {
        Ok(stats) if stats.memory_limit.is_none_or(|now| limit < now) && stats.memory_working_set > limit => {
            let used = stats.memory_working_set;
            Err(format!(
                "attempting to set container {:?} memory limit ({limit}) below current usage ({used})",
                change.container
            ))
        }
        // Without its usage the kernel decides.
        Ok(_) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(cpu: &str, memory: &str) -> Amounts {
        [("cpu", cpu), ("memory", memory)].map(|(name, text)| (name.to_owned(), text.parse().unwrap())).into()
    }

    #[test]
    fn room_is_counted_beside_the_other_pods() {
        let all = amounts("2", "1Gi");
        assert_eq!(decide(&amounts("1", "1Gi"), &amounts("1", "0"), &all), Room::Enough);
        let deferred = "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000";
        assert_eq!(decide(&amounts("1500m", "1"), &amounts("1", "0"), &all), Room::NotNow(deferred.to_owned()));
        let never = "Node didn't have enough capacity: memory, requested: 2147483648, capacity: 1073741824";
        assert_eq!(decide(&amounts("1500m", "2Gi"), &amounts("1", "0"), &all), Room::Never(never.to_owned()));
    }

    #[test]
    fn a_pod_is_wide_enough_for_both_while_it_changes() {
        let limits = |quota, memory| Resources { cpu_quota: quota, memory_limit: memory, ..Resources::default() };
        let wide = between(&limits(Some(10), None), &limits(Some(5), Some(7)));
        assert_eq!(wide, limits(Some(10), None));
    }
}
