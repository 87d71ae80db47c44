//! Pods that nobody else will remove: on nodes that are gone, and ended ones beyond a number.
//!
//! Source: kubernetes `pkg/controller/podgc/gc_controller.go`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::key::{GroupResource, Key};
use client::informer::Delta;
use client::{PatchType, Resource};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::action::{Action, Deletion, Living, Notes};
use crate::indexes;
use crate::pod;
use crate::shell::{Controller, Run};
use crate::views::{Views, decode};

/// How long a node must be missing before its pods are removed. Source: `quarantineTime`.
const QUARANTINE: Duration = Duration::from_secs(40);
/// How many ended pods are kept. Source: kube-controller-manager, `--terminated-pod-gc-threshold`.
const KEPT: usize = 12_500;
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The state of a pod's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The pod is not bound.
    Nowhere,
    Present,
    /// Taken out of service by an administrator, and not ready.
    OutOfService,
    /// Since this process first noticed.
    Missing(Timestamp),
}

/// What the decision about one pod rests on.
pub struct Observed {
    pub pod: Pod,
    pub place: Place,
    pub now: Timestamp,
}

pub fn reconcile(observed: &Observed) -> Vec<Action> {
    let is_deleting = observed.pod.metadata.deletion_timestamp.is_some();
    match observed.place {
        Place::Missing(since) => {
            let waited = Duration::try_from(observed.now.duration_since(since)).unwrap_or_default();
            if waited < QUARANTINE {
                return vec![Action::RunAgain { after: QUARANTINE - waited }];
            }
            let node = Living {
                of: Resource::of::<Node>(),
                namespace: String::new(),
                name: pod::node_name(&observed.pod).to_owned(),
                uid: String::new(),
            };
            remove(observed, Some("PodGC: node no longer exists"), vec![node])
        }
        Place::Nowhere | Place::OutOfService if is_deleting => remove(observed, None, Vec::new()),
        Place::Nowhere | Place::OutOfService | Place::Present => Vec::new(),
    }
}

/// Marks the pod as failed, because no node will, and deletes it without grace.
fn remove(observed: &Observed, why: Option<&str>, absent: Vec<Living>) -> Vec<Action> {
    let meta = &observed.pod.metadata;
    let (namespace, name) = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
    let of = Resource::of::<Pod>();
    let mut actions = Vec::new();
    if !pod::is_terminal(&observed.pod) {
        let mut status = json!({"phase": "Failed", "observedGeneration": meta.generation});
        if let Some(message) = why {
            status["conditions"] = json!([{
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByPodGC",
                "message": message,
                "observedGeneration": meta.generation,
                "lastTransitionTime": Time(observed.now),
            }]);
        }
        actions.push(Action::Patch {
            of: of.clone(),
            namespace: namespace.clone(),
            name: name.clone(),
            subresource: Some("status"),
            kind: PatchType::Strategic,
            patch: json!({"metadata": {"uid": meta.uid}, "status": status}),
            living: None,
            notes: Notes::none(),
        });
    }
    let how = Deletion { grace_period_seconds: Some(0), absent, ..Deletion::default() };
    let uid = meta.uid.clone().unwrap_or_default();
    actions.push(Action::Delete { of, namespace, name, uid, how, notes: Notes::none() });
    actions
}

/// Returns the ended pods to delete so that `kept` remain: evicted ones first, then the oldest.
pub fn surplus(mut ended: Vec<Pod>, kept: usize) -> Vec<Pod> {
    let count = ended.len().saturating_sub(kept);
    ended.sort_by_cached_key(|pod| {
        let reason = pod.status.as_ref().and_then(|status| status.reason.as_deref());
        let is_evicted = pod::phase(pod) == "Failed" && reason == Some("Evicted");
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (!is_evicted, created, pod.metadata.name.clone())
    });
    ended.truncate(count);
    ended
}

/// Observes pods and nodes for the shell.
#[derive(Default)]
pub struct PodGc {
    /// Since when a node is missing that pods are bound to.
    missing: Mutex<BTreeMap<String, Timestamp>>,
}

impl PodGc {
    fn place(&self, pod: &Pod, run: &Run<'_>) -> Place {
        let name = pod::node_name(pod);
        if name.is_empty() {
            return Place::Nowhere;
        }
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(node) = run.views.of::<Node>().named("", name) else {
            return Place::Missing(*missing.entry(name.to_owned()).or_insert(run.now));
        };
        missing.remove(name);
        let is_out = decode::<Node>(node).is_some_and(|node| {
            let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
            let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
            taints.into_iter().any(|taint| taint.key == OUT_OF_SERVICE) && !ready.any(|ready| ready.status == "True")
        });
        if is_out { Place::OutOfService } else { Place::Present }
    }
}

impl Controller for PodGc {
    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn inputs(&self) -> Vec<GroupResource> {
        vec![Resource::of::<Node>().resource, Resource::of::<Pod>().resource]
    }

    fn affected(&self, delta: &Delta, views: &Views) -> Vec<Key> {
        if delta.key.group_resource().resource == "nodes" {
            let taints = |node: &std::sync::Arc<api::object::Object>| {
                decode::<Node>(node).and_then(|node| node.spec).and_then(|spec| spec.taints)
            };
            let changed = delta.old.is_none() != delta.new.is_none()
                || delta.old.as_ref().map(taints) != delta.new.as_ref().map(taints);
            let pods = indexes::pods_on(views.of::<Pod>(), delta.key.name()).filter(|_| changed);
            return pods.map(|pod| pod.key().clone()).collect();
        }
        if delta.new.is_some() { vec![delta.key.clone()] } else { Vec::new() }
    }

    fn plan(&self, run: &Run<'_>) -> Vec<Action> {
        let Some(pod) = run.views.get::<Pod>(run.key) else { return Vec::new() };
        let place = self.place(&pod, run);
        let pods = run.views.of::<Pod>();
        let mut actions = Vec::new();
        if pod::is_terminal(&pod) && indexes::ended(pods).count() > KEPT {
            let ended = indexes::ended(pods).filter_map(|pod| decode::<Pod>(pod)).collect();
            for pod in surplus(ended, KEPT) {
                actions.extend(remove(&Observed { pod, place: Place::Present, now: run.now }, None, Vec::new()));
            }
        }
        actions.extend(reconcile(&Observed { pod, place, now: run.now }));
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, from_yaml, show};
    use expect_test::{Expect, expect};

    fn check(place: Place, is_deleting: bool, expected: Expect) {
        let mut pod: Pod =
            from_yaml("{metadata: {name: a, namespace: web, uid: u-a}, spec: {containers: [], nodeName: 'n'}}");
        pod.metadata.deletion_timestamp = is_deleting.then(|| Time(at(0)));
        expected.assert_eq(&show(&reconcile(&Observed { pod, place, now: at(60) })));
    }

    #[test]
    fn pods_of_a_missing_node_fail_and_go_after_the_quarantine() {
        check(Place::Missing(at(50)), false, expect!["run again after 30s"]);
        check(
            Place::Missing(at(20)),
            false,
            expect![[r#"
                patch pods a status {"metadata":{"uid":"u-a"},"status":{"conditions":[{"lastTransitionTime":"2027-01-15T08:01:00Z","message":"PodGC: node no longer exists","observedGeneration":null,"reason":"DeletionByPodGC","status":"True","type":"DisruptionTarget"}],"observedGeneration":null,"phase":"Failed"}}
                delete pods a grace 0"#]],
        );
    }

    #[test]
    fn pods_that_no_node_will_end_go_when_they_are_deleted() {
        check(Place::Nowhere, false, expect![""]);
        check(
            Place::Nowhere,
            true,
            expect![[r#"
                patch pods a status {"metadata":{"uid":"u-a"},"status":{"observedGeneration":null,"phase":"Failed"}}
                delete pods a grace 0"#]],
        );
        check(Place::Present, true, expect![""]);
    }

    #[test]
    fn ended_pods_go_evicted_ones_first_then_the_oldest() {
        let pod = |name: &str, created: i64, reason: &str| {
            let mut pod: Pod =
                from_yaml(&format!("{{metadata: {{name: {name}}}, status: {{phase: Failed, reason: {reason}}}}}"));
            pod.metadata.creation_timestamp = Some(Time(at(created)));
            pod
        };
        let gone = surplus(vec![pod("old", 1, "x"), pod("new", 3, "x"), pod("evicted", 2, "Evicted")], 1);
        assert_eq!(
            gone.iter().map(|pod| pod.metadata.name.as_deref().unwrap()).collect::<Vec<_>>(),
            ["evicted", "old"]
        );
    }
}
