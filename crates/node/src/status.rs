//! Tells the API what became of a pod: only what changed, in order, until it is told; and removes the pod in the end.
//!
//! Source: status/status_manager.go, `syncPod`, `needsReconcile` and `canBeDeleted`; util/pod, `PatchPodStatus`.

use std::sync::Arc;
use std::time::Duration;

use client::{Client, DeleteOptions, PatchType, Resource};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Map, Value, json};
use tokio::sync::{oneshot, watch};
use tracing::{debug, warn};

use crate::pod_status::OWNED;

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// How long what others wrote into the node's part of a status may stay. Source: status_manager.go, `syncPeriod`.
const REPAIR: Duration = Duration::from_secs(10);

/// The fields of the status that the node writes. Those that are missing from a new status are removed.
const FIELDS: [&str; 16] = [
    "allocatedResources",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "hostIP",
    "hostIPs",
    "initContainerStatuses",
    "message",
    "observedGeneration",
    "phase",
    "podIP",
    "podIPs",
    "qosClass",
    "reason",
    "resources",
    "startTime",
    "conditions",
];

/// What the API should know.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    pub status: PodStatus,
    /// No container will run any more: the status says how each ended.
    pub ended: bool,
    /// Nothing of the pod is left and it is to be deleted: the object may go.
    pub remove: bool,
}

/// A strategic merge patch of the status from `old` to `new`, `None` when there is nothing to tell.
pub fn patch(uid: &str, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let value = |status| serde_json::to_value(status).unwrap_or_default();
    let (old, new) = (value(old), value(new));
    let mut changes = Map::new();
    for field in FIELDS {
        let (before, after) = (&old[field], &new[field]);
        if before == after {
            continue;
        }
        let change = match field {
            "conditions" => conditions(before, after),
            "podIPs" => addresses(before, after),
            _ => after.clone(),
        };
        if change != Value::Array(Vec::new()) {
            changes.insert(field.to_owned(), change);
        }
    }
    (!changes.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changes}))
}

/// The conditions of ours that changed; others are not ours to write.
fn conditions(before: &Value, after: &Value) -> Value {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let before = list(before);
    let owned = |condition: &Value| condition["type"].as_str().is_some_and(|name| OWNED.contains(&name));
    let after = list(after);
    let gone = before.iter().filter(|old| owned(old) && !after.iter().any(|new| new["type"] == old["type"]));
    let removals: Vec<Value> = gone.map(|old| json!({"$patch": "delete", "type": old["type"]})).collect();
    let changed = after.into_iter().filter(|condition| owned(condition) && !before.contains(condition));
    let cleared = |mut condition: Value| {
        // A patch merges: what a condition no longer says must be taken back, or a Ready pod keeps why it was not.
        let old = before.iter().find(|old| old["type"] == condition["type"]).and_then(Value::as_object);
        for key in old.into_iter().flat_map(Map::keys) {
            if condition.get(key).is_none() {
                condition[key] = Value::Null;
            }
        }
        condition
    };
    changed.map(cleared).chain(removals).collect::<Vec<_>>().into()
}

fn addresses(before: &Value, after: &Value) -> Value {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let after = list(after);
    let gone = list(before).into_iter().filter(|ip| !after.contains(ip));
    let removals: Vec<Value> = gone.map(|ip| json!({"$patch": "delete", "ip": ip["ip"]})).collect();
    after.into_iter().chain(removals).collect::<Vec<_>>().into()
}

/// What the API is known to say of a pod.
struct Told {
    status: PodStatus,
    version: u64,
}

impl Told {
    fn by(pod: &Pod) -> Self {
        let version = pod.metadata.resource_version.as_ref().and_then(|version| version.parse().ok());
        Self { status: pod.status.clone().unwrap_or_default(), version: version.unwrap_or_default() }
    }

    /// Takes a version of the pod, unless a newer one is known; says whether it did.
    fn learn(&mut self, pod: &Pod) -> bool {
        let said = Self::by(pod);
        let is_new = said.version > self.version;
        if is_new {
            *self = said;
        }
        is_new
    }
}

/// Writes every change of `desired` until it is told to remove the pod and has, or its sender is gone. `pods` are the API's versions
/// of the pod: what others write into the node's part of its status is put right.
///
/// Failures are tried again with growing delays; what changes meanwhile is told together. `end_told` is used, or dropped by the
/// return, when the API knows the pod's end or has lost the pod.
pub async fn keep_told(
    client: Client,
    mut pods: watch::Receiver<Arc<Pod>>,
    mut desired: watch::Receiver<Option<Desired>>,
    end_told: oneshot::Sender<()>,
) {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (namespace, name, uid, mut told) = {
        let pod = pods.borrow_and_update();
        let meta = &pod.metadata;
        (text(&meta.namespace), text(&meta.name), text(&meta.uid), Told::by(&pod))
    };
    let (mut delay, mut end_told) = (FIRST_RETRY, Some(end_told));
    loop {
        let next = desired.borrow_and_update().clone();
        told.learn(&pods.borrow_and_update());
        let outcome = match &next {
            None => Outcome::Done,
            Some(next) => write(&client, &namespace, &name, &uid, &mut told, next).await,
        };
        match outcome {
            Outcome::Gone => return,
            Outcome::Done => {
                delay = FIRST_RETRY;
                if next.as_ref().is_some_and(|next| next.ended) {
                    // The worker is gone only when the pod is.
                    end_told.take().map(|told| told.send(()).ok());
                }
                tokio::select! {
                    changed = desired.changed() => if changed.is_err() {
                        return;
                    },
                    () = overwritten(&uid, &mut told, next.as_ref(), &mut pods) => {}
                }
            }
            Outcome::Failed => {
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(LAST_RETRY);
            }
        }
    }
}

/// Returns a while after somebody else has written into the node's part of the status. Cancel-safe: `told` is what is known.
async fn overwritten(uid: &str, told: &mut Told, next: Option<&Desired>, pods: &mut watch::Receiver<Arc<Pod>>) {
    loop {
        if pods.changed().await.is_err() {
            // The worker ends.
            std::future::pending::<()>().await;
        }
        let is_new = told.learn(&pods.borrow_and_update());
        if is_new && next.is_some_and(|next| patch(uid, &told.status, &next.status).is_some()) {
            break;
        }
    }
    tokio::time::sleep(REPAIR).await;
}

enum Outcome {
    Done,
    /// The object is not there any more.
    Gone,
    Failed,
}

async fn write(client: &Client, namespace: &str, name: &str, uid: &str, told: &mut Told, next: &Desired) -> Outcome {
    let pods = Resource::of::<Pod>();
    if let Some(patch) = patch(uid, &told.status, &next.status) {
        match client.patch_object(&pods, namespace, name, Some("status"), PatchType::Strategic, patch).await {
            Ok(object) => match object.decode::<Pod>() {
                Ok(written) => drop(told.learn(&written)),
                Err(error) => {
                    warn!(pod = name, %error, "the API's answer is no pod");
                    told.status.clone_from(&next.status);
                }
            },
            // Another pod of this name has taken the place: ours is gone.
            Err(error) if error.is_not_found() || error.is_conflict() => return Outcome::Gone,
            Err(error) => {
                debug!(pod = name, %error, "status not written, will try again");
                return Outcome::Failed;
            }
        }
    }
    if !next.remove {
        return Outcome::Done;
    }
    let options =
        DeleteOptions { grace_period_seconds: Some(0), uid: Some(uid.to_owned()), ..DeleteOptions::default() };
    match client.delete_object(&pods, namespace, name, options).await {
        Ok(_) => Outcome::Gone,
        Err(error) if error.is_not_found() || error.is_conflict() => Outcome::Gone,
        Err(error) => {
            warn!(pod = name, %error, "pod not removed from the API, will try again");
            Outcome::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(old: Value, new: Value, expected: Value) {
        let status = |value| serde_json::from_value(value).unwrap();
        let patch = patch("u", &status(old), &status(new)).map_or(Value::Null, |patch| patch["status"].clone());
        assert_eq!(patch, expected);
    }

    #[test]
    fn only_changes_are_told() {
        check(json!({"phase": "Running"}), json!({"phase": "Running"}), Value::Null);
        check(
            json!({"phase": "Pending", "reason": "old", "podIPs": [{"ip": "10.0.0.1"}]}),
            json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.2"}]}),
            json!({"phase": "Running", "reason": null, "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "delete", "ip": "10.0.0.1"}]}),
        );
    }

    #[test]
    fn a_condition_that_holds_again_does_not_say_why_it_did_not() {
        check(
            json!({"conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "x"}]}),
            json!({"conditions": [{"type": "Ready", "status": "True"}]}),
            json!({"conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null}]}),
        );
    }

    #[test]
    fn a_condition_of_ours_that_is_over_is_removed() {
        check(
            json!({"conditions": [{"type": "PodResizeInProgress", "status": "True"}, {"type": "lb", "status": "True"}]}),
            json!({"conditions": [{"type": "lb", "status": "True"}]}),
            json!({"conditions": [{"$patch": "delete", "type": "PodResizeInProgress"}]}),
        );
    }

    #[test]
    fn conditions_of_others_are_left_alone() {
        let condition = |name: &str, status: &str| json!({"type": name, "status": status});
        check(
            json!({"conditions": [condition("Ready", "False"), condition("lb", "True")]}),
            json!({"conditions": [condition("lb", "False"), condition("Ready", "True")]}),
            json!({"conditions": [condition("Ready", "True")]}),
        );
        check(json!({"conditions": [condition("lb", "True")]}), json!({}), Value::Null);
    }
}
