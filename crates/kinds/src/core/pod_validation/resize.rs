//! What may change when a pod is resized: requests and limits of CPU and memory, and whether a change takes a restart.
//!
//! Source: kubernetes `pkg/apis/core/validation/validation.go`, `ValidatePodResize`.

use api::field::Error;
use serde_json::Value;

use crate::core::pod::qos_class;
use crate::place::Place;
use crate::strategy::same;
use crate::value::{copy, items, object, text};

const LISTS: [&str; 2] = ["containers", "initContainers"];

pub(super) fn validate(pod: &Value, old: &Value, errors: &mut Vec<Error>) {
    let spec = Place::root(pod).child("spec");
    if qos_class(pod) != qos_class(old) {
        let detail = "Pod QOS Class may not change as a result of resizing";
        errors.push(Error::invalid(&spec.path, qos_class(old), detail));
    }
    if !is_supported(old) {
        errors.push(spec.forbidden("Pod running on node without support for resize"));
    }
    let before = errors.len();
    LISTS.into_iter().for_each(|list| order(list, &spec.child(list), &old["spec"][list], errors));
    if errors.len() > before {
        return;
    }
    for list in LISTS {
        for (container, old) in spec.child(list).items().zip(items(&old["spec"][list])) {
            let resources = container.child("resources");
            for side in ["requests", "limits"] {
                let kept = |name: &String| resources.child(side).child(name).is_set();
                if !old["resources"][side].as_object().into_iter().flatten().all(|(name, _)| kept(name)) {
                    errors.push(resources.child(side).forbidden(format!("resource {side} cannot be removed")));
                }
            }
        }
    }
    // With what may change put back, nothing may differ.
    let mut munged = spec.value.clone();
    for list in LISTS {
        let olds = items(&old["spec"][list]);
        let containers = munged.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (place, (container, old)) in spec.child(list).items().zip(containers.zip(olds)) {
            let sidecar_or_main = list == "containers" || text(&old["restartPolicy"]) == "Always";
            if !sidecar_or_main {
                if !same(container, old) {
                    errors.push(spec.forbidden("resources for non-sidecar init containers are immutable"));
                }
                continue;
            }
            put_back(container, old);
            if same(container, old) {
                continue;
            }
            errors.push(if list == "containers" {
                spec.forbidden("only cpu and memory resources are mutable")
            } else {
                place.forbidden("only cpu and memory resources for init or sidecar containers are mutable")
            });
        }
    }
    if errors.is_empty() && !same(&munged, &old["spec"]) {
        errors.push(spec.forbidden("only cpu and memory resources are mutable"));
    }
}

/// Pods that ran before their node could do it have no resources in their status.
fn is_supported(pod: &Value) -> bool {
    let mut running =
        items(&pod["status"]["containerStatuses"]).iter().filter(|status| !status["state"]["running"].is_null());
    running.next().is_none_or(|status| !status["resources"].is_null())
}

fn order(list: &str, containers: &Place<'_>, old: &Value, errors: &mut Vec<Error>) {
    if containers.len() != items(old).len() {
        return errors.push(containers.forbidden(format!("{list} may not be added or removed on resize")));
    }
    for (container, old) in containers.items().zip(items(old)) {
        let name = container.child("name");
        if name.text() != text(&old["name"]) {
            errors.push(name.forbidden(format!("{list} may not be renamed or reordered on resize")));
        }
    }
}

fn put_back(container: &mut Value, old: &Value) {
    copy(container, "resizePolicy", old);
    let Some(resources) = object(container, "resources") else { return };
    for side in ["requests", "limits"] {
        if let Some(list) = object(resources, side) {
            for name in ["cpu", "memory"] {
                copy(list, name, &old["resources"][side]);
            }
        }
    }
}
