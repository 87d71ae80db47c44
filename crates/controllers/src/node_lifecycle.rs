//! Nodes that fall silent: their conditions become unknown, taints keep pods away and drive them out, and their pods count
//! as not ready.
//!
//! Source: kubernetes `pkg/controller/nodelifecycle/node_lifecycle_controller.go`. Time counts from when this process saw a
//! heartbeat, so a node has its whole grace period after a start. Not built: the rate limit of evictions by zone.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::key::{GroupResource, Key};
use client::events::reference_to;
use client::informer::Delta;
use client::{PatchType, Resource};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, ObjectReference, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::action::{Action, Note, Notes};
use crate::indexes::pods_on;
use crate::pod;
use crate::shell::{Controller, Run};
use crate::views::{Views, decode};

/// How long a node may be silent. Source: `config/v1alpha1/defaults.go`, `NodeMonitorGracePeriod`.
const GRACE: Duration = Duration::from_secs(50);
/// How long one may be that never reported its status. Source: `NodeStartupGracePeriod`.
const STARTUP_GRACE: Duration = Duration::from_secs(60);
/// The namespace of the nodes' leases.
const LEASES: &str = "kube-node-lease";
/// What a silent node's conditions say nothing about any more. The network's is not the node's own.
const SILENCED: &[&str] = &["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";
/// Conditions and the taints that follow from them.
const TAINTS: &[(&str, &str, &str)] = &[
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", NETWORK_UNAVAILABLE),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// What the decision about one node rests on.
pub struct Observed {
    pub node: Node,
    /// When this process last saw a sign of life, at the earliest when it started.
    pub heard: Timestamp,
    /// Whether the node was ready when this process last looked.
    pub was_ready: bool,
    /// Whether this is the first look at the node.
    pub is_new: bool,
    /// Whether no node at all is ready: then the fault is likely ours, and nothing is driven out.
    pub all_disrupted: bool,
    /// The pods on the node that say they are ready.
    pub ready_pods: Vec<Pod>,
    pub now: Timestamp,
}

pub fn reconcile(observed: &Observed) -> Vec<Action> {
    let mut actions = Vec::new();
    let name = observed.node.metadata.name.clone().unwrap_or_default();
    let about = ObjectReference {
        kind: Some("Node".to_owned()),
        name: Some(name.clone()),
        uid: observed.node.metadata.uid.clone(),
        ..ObjectReference::default()
    };
    if observed.is_new {
        let note = Note::normal("RegisteredNode", format!("Registered Node {name} in Controller"));
        actions.push(Action::Event { about: Box::new(about.clone()), note });
    }
    let grace = if condition(&observed.node, "Ready").is_some() { GRACE } else { STARTUP_GRACE };
    let due = observed.heard + grace;
    let silent = observed.now > due;
    let node = if silent { silenced(&observed.node, observed.now) } else { observed.node.clone() };
    let ready = condition(&node, "Ready").map(|ready| ready.status.clone());
    if node.status != observed.node.status {
        let (of, object) = (Resource::of::<Node>(), json!(node));
        actions.push(Action::Update { of, subresource: Some("status"), object });
    } else if let Some(patch) = taint(observed, ready.as_deref()) {
        // After the status: both carry the node's version.
        actions.push(patch);
    }
    let lost = observed.was_ready && ready.as_deref() != Some("True");
    if lost {
        let message = format!("Node {name} status is now: NodeNotReady");
        actions.push(Action::Event { about: Box::new(about), note: Note::normal("NodeNotReady", message) });
    }
    if lost || ready.as_deref() == Some("Unknown") {
        actions.extend(observed.ready_pods.iter().map(|pod| mark_not_ready(pod, observed.now)));
    }
    if !silent {
        // A second more: leases and conditions have whole seconds.
        let left = Duration::try_from(due.duration_since(observed.now)).unwrap_or_default();
        actions.push(Action::RunAgain { after: left + Duration::from_secs(1) });
    }
    actions
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|ready| ready.status == "True")
}

/// The node with what it does not report any more made unknown.
fn silenced(node: &Node, now: Timestamp) -> Node {
    let mut node = node.clone();
    let created = node.metadata.creation_timestamp.clone();
    let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
    for kind in SILENCED {
        match conditions.iter_mut().find(|condition| condition.type_ == *kind) {
            None => conditions.push(NodeCondition {
                type_: (*kind).to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: created.clone(),
                last_transition_time: Some(Time(now)),
            }),
            Some(current) if current.status != "Unknown" => {
                current.status = "Unknown".to_owned();
                current.reason = Some("NodeStatusUnknown".to_owned());
                current.message = Some("Kubelet stopped posting node status.".to_owned());
                current.last_transition_time = Some(Time(now));
            }
            Some(_) => {}
        }
    }
    node
}

/// Gives the node the taints that follow from its conditions, and takes those that do not.
fn taint(observed: &Observed, ready: Option<&str>) -> Option<Action> {
    let node = &observed.node;
    let spec = node.spec.clone().unwrap_or_default();
    let current = spec.taints.unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, status, key) in TAINTS {
        if condition(node, kind).is_some_and(|condition| condition.status == *status) {
            wanted.push((key, "NoSchedule"));
        }
    }
    if spec.unschedulable == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let drives_out = match ready {
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        Some(_) | None => None,
    };
    wanted.extend(drives_out.filter(|_| !observed.all_disrupted).map(|key| (key, "NoExecute")));
    let is_ours = |taint: &Taint| match taint.effect.as_str() {
        "NoSchedule" => taint.key == UNSCHEDULABLE || TAINTS.iter().any(|(_, _, key)| *key == taint.key),
        // Without a report of the node's state the taint that it registered with stays.
        "NoExecute" => ready.is_some() && (taint.key == NOT_READY || taint.key == UNREACHABLE),
        _ => false,
    };
    let is_wanted = |taint: &Taint| wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut taints: Vec<Taint> = current.iter().filter(|taint| !is_ours(taint) || is_wanted(taint)).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            let time_added = Some(Time(observed.now));
            taints.push(Taint { key: key.to_owned(), effect: effect.to_owned(), time_added, value: None });
        }
    }
    if taints == current {
        return None;
    }
    let taints = if taints.is_empty() { serde_json::Value::Null } else { json!(taints) };
    let version = &node.metadata.resource_version;
    Some(Action::Patch {
        of: Resource::of::<Node>(),
        namespace: String::new(),
        name: node.metadata.name.clone().unwrap_or_default(),
        subresource: None,
        kind: PatchType::Merge,
        patch: json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}}),
        living: None,
        notes: Notes::none(),
    })
}

fn mark_not_ready(pod: &Pod, now: Timestamp) -> Action {
    let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": Time(now)});
    Action::Patch {
        of: Resource::of::<Pod>(),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        subresource: Some("status"),
        kind: PatchType::Strategic,
        patch: json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}}),
        living: None,
        notes: Notes::new(reference_to(pod), Some(Note::warning("NodeNotReady", "Node is not ready")), None),
    }
}

/// Observes nodes, their leases and their pods for the shell.
#[derive(Default)]
pub struct NodeLifecycle {
    heard: Mutex<BTreeMap<String, Heard>>,
}

/// The last sign of life of one node.
#[derive(Clone, Debug, PartialEq)]
struct Heard {
    uid: Option<String>,
    renewed: Option<String>,
    reported: Option<Time>,
    at: Timestamp,
    was_ready: bool,
    /// Whether no node was ready then.
    all_disrupted: bool,
}

impl NodeLifecycle {
    /// Notes what is seen of a node now, and returns it with what was seen before.
    fn listen(
        &self,
        node: &Node,
        lease: Option<&Lease>,
        all_disrupted: bool,
        now: Timestamp,
    ) -> (Heard, Option<Heard>) {
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref());
        let renewed = renewed.and_then(|time| serde_json::to_string(time).ok());
        let reported = condition(node, "Ready").filter(|ready| ready.reason.as_deref() != Some("NodeStatusUnknown"));
        let reported = reported.and_then(|ready| ready.last_heartbeat_time.clone());
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let name = node.metadata.name.clone().unwrap_or_default();
        let uid = node.metadata.uid.clone();
        let before = heard.get(&name).filter(|before| before.uid == uid).cloned();
        let at = match &before {
            // When the first node comes back, the others get their whole grace period again.
            Some(before) if before.renewed == renewed && before.reported == reported => {
                if before.all_disrupted && !all_disrupted { now } else { before.at }
            }
            Some(_) | None => now,
        };
        let current = Heard { uid, renewed, reported, at, was_ready: is_ready(node), all_disrupted };
        heard.insert(name, current.clone());
        (current, before)
    }
}

impl Controller for NodeLifecycle {
    fn name(&self) -> &'static str {
        "node-controller"
    }

    fn inputs(&self) -> Vec<GroupResource> {
        vec![Resource::of::<Node>().resource, Resource::of::<Lease>().resource, Resource::of::<Pod>().resource]
    }

    fn affected(&self, delta: &Delta, views: &Views) -> Vec<Key> {
        let nodes = Resource::of::<Node>().resource;
        match &*delta.key.group_resource().resource {
            "nodes" => {
                let ready = |node: &std::sync::Arc<api::object::Object>| {
                    decode::<Node>(node).is_some_and(|node| is_ready(&node))
                };
                let changed = delta.old.as_ref().map(ready) != delta.new.as_ref().map(ready);
                let others = views.of::<Node>().iter().filter(|_| changed).map(|node| node.key().clone());
                std::iter::once(delta.key.clone()).chain(others).collect()
            }
            "leases" if delta.key.namespace() == LEASES => vec![Key::new(&nodes, "", delta.key.name())],
            _ => Vec::new(),
        }
    }

    fn plan(&self, run: &Run<'_>) -> Vec<Action> {
        let name = run.key.name();
        let Some(node) = run.views.get::<Node>(run.key) else {
            self.heard.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
            return Vec::new();
        };
        let lease = run.views.of::<Lease>().named(LEASES, name).and_then(|lease| decode::<Lease>(lease));
        let mut nodes = run.views.of::<Node>().iter().filter_map(|node| decode::<Node>(node));
        let all_disrupted = !nodes.any(|node| is_ready(&node));
        let (heard, before) = self.listen(&node, lease.as_ref(), all_disrupted, run.now);
        let was_ready = before.as_ref().map_or(heard.was_ready, |before| before.was_ready);
        let mut ready_pods = Vec::new();
        // Only when it matters: this runs with every heartbeat.
        if run.now > heard.at + GRACE || !heard.was_ready {
            let pods = pods_on(run.views.of::<Pod>(), name).filter_map(|pod| decode::<Pod>(pod));
            ready_pods.extend(pods.filter(pod::is_ready));
        }
        reconcile(&Observed {
            node,
            heard: heard.at,
            was_ready,
            is_new: before.is_none(),
            all_disrupted,
            ready_pods,
            now: run.now,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, from_yaml, show};
    use expect_test::{Expect, expect};

    fn observed(ready: &str, taints: &str) -> Observed {
        let node: Node = from_yaml(&format!(
            "{{metadata: {{name: 'n', uid: u-n, resourceVersion: '7'}}, spec: {{taints: [{taints}]}}, \
             status: {{conditions: [{{type: Ready, status: '{ready}', reason: R, message: M}}]}}}}"
        ));
        Observed {
            node,
            heard: at(0),
            was_ready: ready == "True",
            is_new: false,
            all_disrupted: false,
            ready_pods: Vec::new(),
            now: at(10),
        }
    }

    fn check(observed: &Observed, expected: Expect) {
        let shown = show(&reconcile(observed));
        let brief = |line: &str| {
            let Some(rest) = line.strip_prefix("status nodes n ") else { return line.to_owned() };
            let status: serde_json::Value = serde_json::from_str(rest).unwrap();
            let ready = &status["conditions"][0];
            format!(
                "status {} {} {} of {}",
                ready["status"],
                ready["reason"],
                ready["message"],
                status["conditions"].as_array().map_or(0, Vec::len)
            )
        };
        expected.assert_eq(&shown.lines().map(brief).collect::<Vec<_>>().join("\n"));
    }

    #[test]
    fn a_node_that_reports_is_left_alone_until_its_grace_ends() {
        check(&observed("True", ""), expect!["run again after 41s"]);
    }

    #[test]
    fn a_silent_node_becomes_unknown_and_its_pods_unready() {
        let mut seen = observed("True", "");
        seen.now = at(51);
        seen.ready_pods = vec![from_yaml("{metadata: {name: a, namespace: web, uid: u-a}}")];
        check(
            &seen,
            expect![[r#"
                status "Unknown" "NodeStatusUnknown" "Kubelet stopped posting node status." of 4
                event Node n Normal NodeNotReady: Node n status is now: NodeNotReady
                patch pods a status {"metadata":{"uid":"u-a"},"status":{"conditions":[{"lastTransitionTime":"2027-01-15T08:00:51Z","status":"False","type":"Ready"}]}}"#]],
        );
    }

    #[test]
    fn an_unknown_node_is_tainted_and_pods_are_driven_out() {
        let mut seen = observed("Unknown", "");
        seen.now = at(51);
        seen.node = silenced(&seen.node, at(51));
        check(
            &seen,
            expect![[
                r#"patch nodes n {"metadata":{"resourceVersion":"7"},"spec":{"taints":[{"effect":"NoSchedule","key":"node.kubernetes.io/unreachable","timeAdded":"2027-01-15T08:00:51Z"},{"effect":"NoExecute","key":"node.kubernetes.io/unreachable","timeAdded":"2027-01-15T08:00:51Z"}]}}"#
            ]],
        );
    }

    #[test]
    fn nothing_is_driven_out_when_no_node_is_ready() {
        let mut seen = observed("False", "{key: node.kubernetes.io/not-ready, effect: NoExecute}");
        seen.all_disrupted = true;
        check(
            &seen,
            expect![[r#"
                patch nodes n {"metadata":{"resourceVersion":"7"},"spec":{"taints":[{"effect":"NoSchedule","key":"node.kubernetes.io/not-ready","timeAdded":"2027-01-15T08:00:10Z"}]}}
                run again after 41s"#]],
        );
    }

    #[test]
    fn a_node_that_is_ready_again_loses_our_taints_and_keeps_others() {
        let seen = observed(
            "True",
            "{key: node.kubernetes.io/not-ready, effect: NoSchedule}, {key: node.kubernetes.io/unreachable, effect: NoExecute}, \
             {key: mine, effect: NoExecute}",
        );
        check(
            &seen,
            expect![[r#"
                patch nodes n {"metadata":{"resourceVersion":"7"},"spec":{"taints":[{"effect":"NoExecute","key":"mine"}]}}
                run again after 41s"#]],
        );
    }

    #[test]
    fn a_cordoned_node_is_tainted() {
        let mut seen = observed("True", "");
        seen.node.spec.get_or_insert_default().unschedulable = Some(true);
        check(
            &seen,
            expect![[r#"
                patch nodes n {"metadata":{"resourceVersion":"7"},"spec":{"taints":[{"effect":"NoSchedule","key":"node.kubernetes.io/unschedulable","timeAdded":"2027-01-15T08:00:10Z"}]}}
                run again after 41s"#]],
        );
    }

    #[test]
    fn time_counts_from_what_this_process_saw() {
        let (lifecycle, node) = (NodeLifecycle::default(), observed("True", "").node);
        let lease = |second: u32| -> Lease {
            from_yaml(&format!(
                "{{metadata: {{name: 'n'}}, spec: {{renewTime: '2020-01-01T00:00:{second:02}.000000Z'}}}}"
            ))
        };
        let heard = |second, now| lifecycle.listen(&node, Some(&lease(second)), false, at(now)).0.at;
        assert_eq!(heard(0, 100), at(100), "an old lease, but this process is new");
        assert_eq!(heard(0, 120), at(100));
        assert_eq!(heard(10, 130), at(130));
    }
}
