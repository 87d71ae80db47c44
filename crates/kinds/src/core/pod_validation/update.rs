//! What may change in a pod once it exists: little.
//!
//! Source: kubernetes `pkg/apis/core/validation/validation.go`, `ValidatePodUpdate`.

use api::field::Error;
use api::names;
use serde_json::{Value, json};

use super::scheduling;
use crate::diff::unified;
use crate::place::Place;
use crate::schema;
use crate::strategy::same_structs;
use crate::value::{copy, items, remove, set, text};

/// The type of what is compared.
pub(super) const POD_SPEC: &str = "io.k8s.api.core.v1.PodSpec";
const MAY_CHANGE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
    `spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` \
    (allow it to be set to 1 if it was previously negative)";

pub(super) fn validate(spec: &Place<'_>, old: &Value, errors: &mut Vec<Error>) {
    let old = &old["spec"];
    for list in ["containers", "initContainers"] {
        let containers = spec.child(list);
        if containers.len() != items(&old[list]).len() {
            return errors.push(containers.forbidden("pod updates may not add or remove containers"));
        }
    }
    if !deadline(&spec.child("activeDeadlineSeconds"), &old["activeDeadlineSeconds"], errors) {
        return;
    }
    tolerations(&spec.child("tolerations"), &old["tolerations"], errors);
    gates(&spec.child("schedulingGates"), &old["schedulingGates"], errors);

    // With what may change put back, nothing may differ.
    let mut munged = spec.value.clone();
    for list in ["containers", "initContainers"] {
        let containers = munged.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (container, before) in containers.zip(items(&old[list])) {
            copy(container, "image", before);
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        copy(&mut munged, field, old);
    }
    if old["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0)
        && munged["terminationGracePeriodSeconds"] == 1
    {
        copy(&mut munged, "terminationGracePeriodSeconds", old);
    }
    if !items(&old["schedulingGates"]).is_empty() {
        narrowed(spec, &mut munged, old, errors);
    }
    if !same_structs(schema::get(POD_SPEC), &munged, old) {
        let detail = format!("pod updates may not change fields other than {MAY_CHANGE}\n{}", unified(old, &munged));
        errors.push(spec.forbidden(detail));
    }
}

/// Returns whether the rest is worth looking at.
fn deadline(deadline: &Place<'_>, old: &Value, errors: &mut Vec<Error>) -> bool {
    let max = i64::from(i32::MAX);
    match (deadline.value.as_i64(), old.as_i64()) {
        (Some(new), _) if !(0..=max).contains(&new) => {
            errors.extend(names::is_in_range(new, 0, max).into_iter().map(|message| deadline.invalid(message)));
            false
        }
        (Some(new), Some(old)) if old < new => {
            errors.push(deadline.invalid("must be less than or equal to previous value"));
            false
        }
        (None, Some(_)) => {
            errors.push(deadline.invalid("must not update from a positive integer to nil value"));
            true
        }
        (Some(_), _) | (None, None) => true,
    }
}

fn tolerations(new: &Place<'_>, old: &Value, errors: &mut Vec<Error>) {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        remove(&mut toleration, "tolerationSeconds");
        toleration
    };
    let kept: Vec<Value> = items(new.value).iter().map(without_seconds).collect();
    if items(old).iter().any(|old| !kept.contains(&without_seconds(old))) {
        return errors.push(new.forbidden("existing toleration can not be modified except its tolerationSeconds"));
    }
    scheduling::tolerations(new, errors);
}

fn gates(new: &Place<'_>, old: &Value, errors: &mut Vec<Error>) {
    for gate in new.items() {
        let name = gate.child("name");
        if items(old).iter().all(|old| text(&old["name"]) != name.text()) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{}'", name.text());
            errors.push(name.forbidden(detail));
        }
    }
}

/// While a gate holds the pod back, its node selector and required affinity may be narrowed.
fn narrowed(spec: &Place<'_>, munged: &mut Value, old: &Value, errors: &mut Vec<Error>) {
    let selector = spec.child("nodeSelector");
    let kept =
        |old: &Value| old.as_object().into_iter().flatten().all(|(key, value)| selector.value.get(key) == Some(value));
    if !kept(&old["nodeSelector"]) {
        let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.push(selector.invalid(detail));
    }
    copy(munged, "nodeSelector", old);

    let node = spec.child("affinity").child("nodeAffinity");
    let terms = node.child("requiredDuringSchedulingIgnoredDuringExecution").child("nodeSelectorTerms");
    let before =
        &old["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    if !items(before).is_empty() && items(before).len() != terms.len() {
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.push(terms.invalid(detail));
    } else {
        for (term, before) in terms.items().zip(items(before)) {
            let added_to = |field: &str| {
                let list = items(&term.value[field]);
                items(&before[field]).iter().all(|old| list.contains(old))
            };
            if !added_to("matchExpressions") || !added_to("matchFields") {
                errors.push(term.invalid("only additions are allowed (no mutations or deletions)"));
            }
        }
    }
    let affinity = &old["affinity"];
    match munged.get_mut("affinity") {
        Some(new) => copy(new, "nodeAffinity", affinity),
        None if affinity["nodeAffinity"].is_null() => {}
        None => set(munged, "affinity", json!({"nodeAffinity": affinity["nodeAffinity"]})),
    }
}
