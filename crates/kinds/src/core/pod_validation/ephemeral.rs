//! Ephemeral containers: what they may be, and that those which are there stay as they are.

use std::collections::BTreeSet;

use api::field::Error;
use serde_json::Value;

use super::Pod;
use super::containers::common;
use crate::diff::unified;
use crate::place::Place;
use crate::strategy::same;
use crate::value::{is_empty, items, text};

/// Fields of a container that make it part of the workload.
const OF_WORKLOADS: [&str; 9] = [
    "lifecycle",
    "livenessProbe",
    "ports",
    "readinessProbe",
    "resizePolicy",
    "resources",
    "restartPolicy",
    "restartPolicyRules",
    "startupProbe",
];
const FORBIDDEN: &str = "cannot be set for an Ephemeral Container";

pub(super) fn validate(pod: &Pod<'_>, errors: &mut Vec<Error>) {
    let names_of = |list: &str| pod.spec.child(list).items().map(|container| container.child("name").text());
    let others: BTreeSet<&str> = names_of("containers").chain(names_of("initContainers")).collect();
    let mut all = others.clone();
    for container in pod.spec.child("ephemeralContainers").items() {
        common(&container, pod, errors);
        let (name, target) = (container.child("name"), container.child("targetContainerName"));
        if !all.insert(name.text()) {
            errors.push(Error::duplicate(&name.path, name.text()));
        }
        if !target.is_empty() && !others.contains(target.text()) {
            errors.push(target.not_found());
        }
        for field in OF_WORKLOADS {
            let place = container.child(field);
            // Of what upstream holds by a pointer an empty object is something.
            let is_something = match place.value.as_object() {
                Some(members) => field != "resources" || !members.is_empty(),
                None => !is_empty(place.value),
            };
            if place.is_set() && is_something {
                errors.push(place.forbidden(FORBIDDEN));
            }
        }
        for mount in container.child("volumeMounts").items() {
            for field in ["subPath", "subPathExpr"] {
                if !mount.child(field).is_empty() {
                    errors.push(mount.child(field).forbidden(FORBIDDEN));
                }
            }
        }
    }
}

/// Source: `ValidatePodEphemeralContainersUpdate`.
pub(super) fn update(list: &Place<'_>, old: &Value, errors: &mut Vec<Error>) {
    for before in items(&old["spec"]["ephemeralContainers"]) {
        let name = text(&before["name"]);
        match items(list.value).iter().find(|now| text(&now["name"]) == name) {
            None => errors.push(list.forbidden(format!("existing ephemeral containers {name:?} may not be removed\n"))),
            Some(now) if !same(now, before) => {
                let diff = unified(before, now);
                errors
                    .push(list.forbidden(format!("existing ephemeral containers {name:?} may not be changed\n{diff}")));
            }
            Some(_) => {}
        }
    }
}
