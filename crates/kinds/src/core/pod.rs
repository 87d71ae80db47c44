//! Pod: containers that run together on one node.
//!
//! Source: kubernetes `pkg/registry/core/pod/strategy.go`.

use api::quantity::Quantity;
use serde_json::{Value, json};

use crate::core::{pod_default, pod_support, pod_table, pod_validation, pod_warnings};
use crate::kind::{Action, Kind, READ_WRITE, Strategy, Subresource, Verb};
use crate::strategy::{generation, keep_status, only_status, spec_changed};
use crate::value::{copy, flag, is_empty, items, items_mut, remove, set, text};

pub fn kind() -> Kind {
    let node = |name, body, verbs| Subresource { name, body, verbs, action: Action::Node };
    Kind {
        strategy: Strategy::none()
            .defaulting(pod_default::pod)
            .preparing(prepare)
            .validating(pod_validation::validate)
            .warning(pod_warnings::on_create),
        subresources: vec![
            node("attach", Some(("", "v1", "PodAttachOptions")), &[Verb::Create, Verb::Get]),
            Subresource {
                name: "binding",
                body: Some(("", "v1", "Binding")),
                verbs: &[Verb::Create],
                action: Action::Binding,
            },
            Subresource {
                name: "eviction",
                body: Some(("policy", "v1", "Eviction")),
                verbs: &[Verb::Create],
                action: Action::Eviction,
            },
            Subresource {
                name: "ephemeralcontainers",
                body: None,
                verbs: READ_WRITE,
                action: Action::Own(
                    Strategy::none()
                        .defaulting(pod_default::pod)
                        .preparing(|pod, old| only_part(pod, old, add_ephemeral))
                        .validating(pod_validation::validate_ephemeral),
                ),
            },
            node("exec", Some(("", "v1", "PodExecOptions")), &[Verb::Create, Verb::Get]),
            node("log", None, &[Verb::Get]),
            node("portforward", Some(("", "v1", "PodPortForwardOptions")), &[Verb::Create, Verb::Get]),
            Subresource::proxy("PodProxyOptions"),
            Subresource {
                name: "resize",
                body: None,
                verbs: READ_WRITE,
                action: Action::Own(
                    Strategy::none()
                        .defaulting(pod_default::pod)
                        .preparing(|pod, old| only_part(pod, old, resize))
                        .validating(pod_validation::validate_resize),
                ),
            },
            Subresource::status(
                Strategy::none()
                    .defaulting(pod_default::pod)
                    .preparing(prepare_status)
                    .resetting(&["spec", "metadata.deletionTimestamp", "metadata.ownerReferences"])
                    .validating(pod_validation::validate_status),
            ),
        ],
        columns: pod_table::columns(),
        row: Box::new(pod_table::row),
        fields: Box::new(fields),
        grace: Some(Box::new(grace)),
        ..Kind::namespaced("", "v1", "Pod", "pods").short(&["po"]).categories(&["all"])
    }
}

fn prepare(pod: &mut Value, old: Option<&Value>) {
    pod_support::take_away(pod, "/spec");
    if old.is_none() {
        select_by_own_labels(pod);
    }
    let mut status = json!({"phase": "Pending", "qosClass": qos_class(pod)});
    if !is_empty(&pod["spec"]["schedulingGates"]) {
        let condition = json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastTransitionTime": pod["metadata"]["creationTimestamp"],
        });
        set(&mut status, "conditions", json!([condition]));
    }
    keep_status(pod, old, &status);
    generation(pod, old, spec_changed);
}

/// Adds to each selector of other pods what it takes over from the pod's own labels.
///
/// Source: kubernetes `pkg/registry/core/pod/strategy.go`, `mutatePodAffinity`, `mutateTopologySpreadConstraints`.
fn select_by_own_labels(pod: &mut Value) {
    let labels = pod["metadata"]["labels"].clone();
    let Some(spec) = pod.get_mut("spec") else { return };
    for constraint in items_mut(spec.get_mut("topologySpreadConstraints")) {
        take_over(constraint, &labels);
    }
    let Some(affinity) = spec.get_mut("affinity").and_then(Value::as_object_mut) else { return };
    for (_, kind) in affinity.iter_mut().filter(|(kind, _)| *kind == "podAffinity" || *kind == "podAntiAffinity") {
        for term in items_mut(kind.get_mut("requiredDuringSchedulingIgnoredDuringExecution")) {
            take_over(term, &labels);
        }
        for weighted in items_mut(kind.get_mut("preferredDuringSchedulingIgnoredDuringExecution")) {
            if let Some(term) = weighted.get_mut("podAffinityTerm") {
                take_over(term, &labels);
            }
        }
    }
}

fn take_over(term: &mut Value, labels: &Value) {
    let mut added = Vec::new();
    for (field, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in items(&term[field]).iter().map(text) {
            if let Some(value) = labels[key].as_str() {
                added.push(json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
    let Some(selector) = term.get_mut("labelSelector").filter(|selector| selector.is_object()) else { return };
    if !added.is_empty() {
        let expressions = [items(&selector["matchExpressions"]), &added].concat();
        set(selector, "matchExpressions", expressions);
    }
}

/// How the pod fares when memory is short.
///
/// Source: kubernetes `pkg/apis/core/v1/helper/qos/qos.go`.
pub fn qos_class(pod: &Value) -> &'static str {
    let amount = |container: &Value, list: &str, resource: &str| {
        Quantity::from_json(&container["resources"][list][resource]).unwrap_or(Quantity::ZERO)
    };
    let mut classes =
        ["initContainers", "containers"].into_iter().flat_map(|list| items(&pod["spec"][list])).flat_map(|container| {
            ["cpu", "memory"].map(|resource| {
                let (request, limit) = (amount(container, "requests", resource), amount(container, "limits", resource));
                match (request == limit, request.is_zero()) {
                    (false, _) => "Burstable",
                    (true, true) => "BestEffort",
                    (true, false) => "Guaranteed",
                }
            })
        });
    let first = classes.next().unwrap_or("BestEffort");
    if classes.all(|class| class == first) { first } else { "Burstable" }
}

/// For sub-resources that change a part of the specification: keeps everything but what `part` takes over from the new one.
///
/// Source: `dropNonEphemeralContainerUpdates` and `dropNonResizeUpdates`.
fn only_part(pod: &mut Value, old: Option<&Value>, part: fn(&mut Value, &Value)) {
    let Some(old) = old else { return };
    let mut spec = old["spec"].clone();
    part(&mut spec, &pod["spec"]);
    set(pod, "spec", spec);
    pod_support::take_away(pod, "/spec");
    copy(pod, "status", old);
    if let Some(metadata) = pod.get_mut("metadata") {
        for field in ["annotations", "finalizers", "labels", "ownerReferences"] {
            copy(metadata, field, &old["metadata"]);
        }
    }
    generation(pod, Some(old), spec_changed);
}

fn add_ephemeral(spec: &mut Value, new: &Value) {
    copy(spec, "ephemeralContainers", new);
}

/// Containers that were renamed or moved are taken as they are: validation says that they must not be.
fn resize(spec: &mut Value, new: &Value) {
    for list in ["containers", "initContainers"] {
        let names = |of: &Value| items(&of[list]).iter().map(|one| text(&one["name"]).to_owned()).collect::<Vec<_>>();
        if names(spec) != names(new) {
            copy(spec, list, new);
            continue;
        }
        for (container, new) in items_mut(spec.get_mut(list)).zip(items(&new[list])) {
            for field in ["resources", "resizePolicy"] {
                copy(container, field, new);
            }
        }
    }
}

/// The node reports the status; it changes neither owners nor the class that was given at creation.
fn prepare_status(pod: &mut Value, old: Option<&Value>) {
    let Some(old) = old else { return };
    only_status(pod, Some(old));
    if let Some(metadata) = pod.get_mut("metadata") {
        copy(metadata, "ownerReferences", &old["metadata"]);
    }
    let Some(status) = pod.get_mut("status") else { return };
    // Switched off in upstream: `pkg/api/pod/util.go`, `dropDisabledPodStatusFields`.
    for field in ["nodeAllocatableResourceClaimStatuses", "volumeHealth"] {
        remove(status, field);
    }
    for field in ["qosClass", "observedGeneration"] {
        if is_empty(&status[field]) || status[field] == 0 {
            copy(status, field, &old["status"]);
        }
    }
    for condition in items_mut(status.get_mut("conditions")) {
        let before = items(&old["status"]["conditions"]).iter().find(|before| before["type"] == condition["type"]);
        if let Some(before) = before
            && condition["observedGeneration"].is_null()
        {
            copy(condition, "observedGeneration", before);
        }
    }
}

fn fields(pod: &Value) -> Vec<(&'static str, String)> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    vec![
        ("spec.nodeName", text(&spec["nodeName"]).to_owned()),
        ("spec.restartPolicy", text(&spec["restartPolicy"]).to_owned()),
        ("spec.schedulerName", text(&spec["schedulerName"]).to_owned()),
        ("spec.serviceAccountName", text(&spec["serviceAccountName"]).to_owned()),
        ("spec.hostNetwork", flag(&spec["hostNetwork"]).to_string()),
        ("status.phase", text(&status["phase"]).to_owned()),
        ("status.podIP", text(&status["podIP"]).to_owned()),
        ("status.nominatedNodeName", text(&status["nominatedNodeName"]).to_owned()),
    ]
}

/// Seconds that a pod gets to stop: none when it was never scheduled or is done.
fn grace(pod: &Value, asked: Option<i64>) -> i64 {
    let never_ran = text(&pod["spec"]["nodeName"]).is_empty();
    let done = matches!(text(&pod["status"]["phase"]), "Failed" | "Succeeded");
    if never_ran || done {
        return 0;
    }
    let seconds = asked.or(pod["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(0);
    if seconds < 0 { 1 } else { seconds }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_of_other_pods_take_over_own_labels() {
        let mut pod = json!({
            "metadata": {"labels": {"app": "a", "hash": "x"}},
            "spec": {
                "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
                    "labelSelector": {"matchLabels": {"app": "a"}}, "mismatchLabelKeys": ["hash", "none"]}]}},
                "topologySpreadConstraints": [
                    {"labelSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}, "matchLabelKeys": ["hash"]},
                    {"matchLabelKeys": ["hash"]}],
            },
        });
        select_by_own_labels(&mut pod);
        let term = &pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
        let expression = |operator: &str| json!({"key": "hash", "operator": operator, "values": ["x"]});
        assert_eq!(term["labelSelector"]["matchExpressions"], json!([expression("NotIn")]));
        let [spread, without] = items(&pod["spec"]["topologySpreadConstraints"]) else { panic!("both are there") };
        assert_eq!(spread["labelSelector"]["matchExpressions"][1], expression("In"));
        assert!(without["labelSelector"].is_null(), "no selector selects nothing");
    }

    #[test]
    fn grants_the_pods_own_grace_unless_asked_for_another() {
        let pod = json!({"spec": {"nodeName": "a", "terminationGracePeriodSeconds": 30}});
        assert_eq!([grace(&pod, None), grace(&pod, Some(5)), grace(&pod, Some(-1))], [30, 5, 1]);
    }

    #[test]
    fn grants_none_to_a_pod_that_runs_nothing() {
        let unscheduled = json!({"spec": {"terminationGracePeriodSeconds": 30}});
        let done = json!({"spec": {"nodeName": "a"}, "status": {"phase": "Failed"}});
        assert_eq!([grace(&unscheduled, Some(9)), grace(&done, Some(9))], [0, 0]);
    }
}
