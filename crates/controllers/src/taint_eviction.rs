//! Pods that do not tolerate a `NoExecute` taint of their node, or not any longer, are deleted.
//!
//! Source: kubernetes `pkg/controller/tainteviction/taint_eviction.go`. As upstream's, the time that a pod tolerates a taint
//! counts from when this process saw both.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::key::{GroupResource, Key};
use client::events::reference_to;
use client::informer::Delta;
use client::toleration::tolerates;
use client::{PatchType, Resource};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::action::{Action, Deletion, Note, Notes};
use crate::indexes::pods_on;
use crate::pod;
use crate::shell::{Controller, Run};
use crate::views::{Views, decode};

/// What the decision about one pod rests on.
pub struct Observed {
    pub pod: Pod,
    /// The `NoExecute` taints of its node.
    pub taints: Vec<Taint>,
    /// When this process first saw the pod on a tainted node.
    pub since: Timestamp,
    pub now: Timestamp,
}

pub fn reconcile(observed: &Observed) -> Vec<Action> {
    if observed.taints.is_empty() || observed.pod.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let Some(tolerated) = tolerated_for(&observed.pod, &observed.taints) else { return evict(observed) };
    let Some(seconds) = tolerated else { return Vec::new() };
    let left = Duration::try_from((observed.since + seconds).duration_since(observed.now)).unwrap_or_default();
    if left.is_zero() { evict(observed) } else { vec![Action::RunAgain { after: left }] }
}

/// How long the pod tolerates all the taints; the inner `None` for ever, the outer one not at all.
fn tolerated_for(pod: &Pod, taints: &[Taint]) -> Option<Option<Duration>> {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut shortest: Option<Duration> = None;
    for taint in taints {
        let matching = tolerations.iter().find(|toleration| tolerates(toleration, taint))?;
        if let Some(seconds) = matching.toleration_seconds {
            let seconds = Duration::from_secs(seconds.try_into().unwrap_or(0));
            shortest = Some(shortest.map_or(seconds, |shortest| shortest.min(seconds)));
        }
    }
    Some(shortest)
}

fn evict(observed: &Observed) -> Vec<Action> {
    let meta = &observed.pod.metadata;
    let (namespace, name) = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
    let message = format!("Marking for deletion Pod {namespace}/{name}");
    let condition = json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "DeletionByTaintManager",
        "message": "Taint manager: deleting due to NoExecute taint",
        "observedGeneration": meta.generation,
        "lastTransitionTime": Time(observed.now),
    });
    let of = Resource::of::<Pod>();
    vec![
        Action::Event {
            about: Box::new(reference_to(&observed.pod)),
            note: Note::normal("TaintManagerEviction", message),
        },
        Action::Patch {
            of: of.clone(),
            namespace: namespace.clone(),
            name: name.clone(),
            subresource: Some("status"),
            kind: PatchType::Strategic,
            patch: json!({"metadata": {"uid": meta.uid}, "status": {"conditions": [condition]}}),
            living: None,
            notes: Notes::none(),
        },
        Action::Delete {
            of,
            namespace,
            name,
            uid: meta.uid.clone().unwrap_or_default(),
            how: Deletion::default(),
            notes: Notes::none(),
        },
    ]
}

/// Observes pods and the taints of their nodes for the shell.
#[derive(Default)]
pub struct TaintEviction {
    /// By uid of the pods on tainted nodes.
    since: Mutex<BTreeMap<String, Timestamp>>,
}

impl Controller for TaintEviction {
    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }

    fn account(&self) -> &'static str {
        "node-controller"
    }

    fn inputs(&self) -> Vec<GroupResource> {
        vec![Resource::of::<Node>().resource, Resource::of::<Pod>().resource]
    }

    fn affected(&self, delta: &Delta, views: &Views) -> Vec<Key> {
        if delta.key.group_resource().resource == "nodes" {
            let taints =
                |node: &std::sync::Arc<api::object::Object>| decode::<Node>(node).map(|node| no_execute(&node));
            if delta.old.as_ref().and_then(taints) == delta.new.as_ref().and_then(taints) {
                return Vec::new();
            }
            return pods_on(views.of::<Pod>(), delta.key.name()).map(|pod| pod.key().clone()).collect();
        }
        if delta.new.is_none()
            && let Some(gone) = &delta.old
        {
            self.since.lock().unwrap_or_else(PoisonError::into_inner).remove(&gone.meta().uid);
        }
        let node = delta.new.as_ref().and_then(|pod| crate::indexes::node_of(pod));
        let node = node.and_then(|name| views.of::<Node>().named("", &name)).and_then(|node| decode::<Node>(node));
        let is_tainted = node.is_some_and(|node| !no_execute(&node).is_empty());
        if is_tainted { vec![delta.key.clone()] } else { Vec::new() }
    }

    fn plan(&self, run: &Run<'_>) -> Vec<Action> {
        let Some(pod) = run.views.get::<Pod>(run.key) else { return Vec::new() };
        let node = run.views.of::<Node>().named("", pod::node_name(&pod)).and_then(|node| decode::<Node>(node));
        let taints = node.map(|node| no_execute(&node)).unwrap_or_default();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut all = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if taints.is_empty() {
            all.remove(&uid);
            return Vec::new();
        }
        let since = *all.entry(uid).or_insert(run.now);
        drop(all);
        reconcile(&Observed { pod, taints, since, now: run.now })
    }
}

fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    taints.into_iter().filter(|taint| taint.effect == "NoExecute").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, from_yaml, show};
    use expect_test::{Expect, expect};

    fn check(tolerations: &str, now: i64, expected: Expect) {
        let pod = format!(
            "{{metadata: {{name: a, namespace: web, uid: u-a}}, spec: {{containers: [], tolerations: [{tolerations}]}}}}"
        );
        let seen = Observed {
            pod: from_yaml(&pod),
            taints: vec![from_yaml("{key: gone, effect: NoExecute}")],
            since: at(0),
            now: at(now),
        };
        expected.assert_eq(&show(&reconcile(&seen)));
    }

    #[test]
    fn a_pod_that_does_not_tolerate_the_taint_goes_at_once() {
        check(
            "",
            0,
            expect![[r#"
                event Pod a Normal TaintManagerEviction: Marking for deletion Pod web/a
                patch pods a status {"metadata":{"uid":"u-a"},"status":{"conditions":[{"lastTransitionTime":"2027-01-15T08:00:00Z","message":"Taint manager: deleting due to NoExecute taint","observedGeneration":null,"reason":"DeletionByTaintManager","status":"True","type":"DisruptionTarget"}]}}
                delete pods a"#]],
        );
    }

    #[test]
    fn a_pod_that_tolerates_it_stays_for_its_time() {
        check("{key: gone, operator: Exists}", 9999, expect![""]);
        check("{key: gone, operator: Exists, tolerationSeconds: 300}", 100, expect!["run again after 200s"]);
        check(
            "{key: gone, operator: Exists, tolerationSeconds: 300}",
            300,
            expect![[r#"
                event Pod a Normal TaintManagerEviction: Marking for deletion Pod web/a
                patch pods a status {"metadata":{"uid":"u-a"},"status":{"conditions":[{"lastTransitionTime":"2027-01-15T08:05:00Z","message":"Taint manager: deleting due to NoExecute taint","observedGeneration":null,"reason":"DeletionByTaintManager","status":"True","type":"DisruptionTarget"}]}}
                delete pods a"#]],
        );
    }
}
