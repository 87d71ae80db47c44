//! What is wrong with a Deployment, and what is dangerous.
//!
//! Source: kubernetes `pkg/apis/apps/validation/validation.go`, `ValidateDeploymentSpec`.

use api::field::Error;
use api::names;
use serde_json::Value;

use super::template;
use crate::core::pod_warnings;
use crate::place::Place;
use crate::strategy::spec_changed;
use crate::value::number;

pub fn validate(deployment: &Value, old: Option<&Value>) -> Vec<Error> {
    let spec = Place::root(deployment).child("spec");
    let mut errors = Vec::new();
    spec.child("replicas").not_negative(&mut errors);
    template::validate(&spec, old, &mut errors);
    strategy(&spec.child("strategy"), &mut errors);
    spec.child("minReadySeconds").not_negative(&mut errors);
    spec.child("revisionHistoryLimit").not_negative(&mut errors);
    let deadline = spec.child("progressDeadlineSeconds");
    deadline.not_negative(&mut errors);
    if deadline.is_set() && deadline.number() <= spec.child("minReadySeconds").number() {
        errors.push(deadline.invalid("must be greater than minReadySeconds"));
    }
    errors
}

fn strategy(strategy: &Place<'_>, errors: &mut Vec<Error>) {
    let rolling = strategy.child("rollingUpdate");
    match strategy.child("type").text() {
        "Recreate" if rolling.is_set() => {
            errors.push(rolling.forbidden("may not be specified when strategy `type` is 'Recreate'"));
        }
        "Recreate" => {}
        "RollingUpdate" if !rolling.is_set() => {
            errors.push(rolling.required("this should be defaulted and never be nil"));
        }
        "RollingUpdate" => rolling_update(&rolling, errors),
        _ => errors.push(strategy.not_supported(&["Recreate", "RollingUpdate"])),
    }
}

fn rolling_update(rolling: &Place<'_>, errors: &mut Vec<Error>) {
    let (unavailable, surge) = (rolling.child("maxUnavailable"), rolling.child("maxSurge"));
    for bound in [&unavailable, &surge] {
        if bound.value.is_string() {
            bound.keep(names::is_percent, errors);
        } else {
            bound.not_negative(errors);
        }
    }
    if share(&unavailable) == 0 && share(&surge) == 0 {
        errors.push(unavailable.invalid("may not be 0 when `maxSurge` is 0"));
    }
    if unavailable.value.is_string() && share(&unavailable) > 100 {
        errors.push(unavailable.invalid("must not be greater than 100%"));
    }
}

/// The number, or the percentage without its sign.
fn share(bound: &Place<'_>) -> i64 {
    match bound.value.as_str() {
        Some(percent) => percent.trim_end_matches('%').parse().unwrap_or(0),
        None => bound.number(),
    }
}

pub fn validate_status(deployment: &Value, old: Option<&Value>) -> Vec<Error> {
    let status = Place::root(deployment).child("status");
    let mut errors = Vec::new();
    let others = ["observedGeneration", "unavailableReplicas", "terminatingReplicas", "collisionCount"];
    template::counts(&status, &["updatedReplicas", "readyReplicas", "availableReplicas"], &others, &mut errors);
    let collisions = status.child("collisionCount");
    let counted = old.map(|old| &old["status"]["collisionCount"]).filter(|count| !count.is_null());
    if counted.is_some_and(|count| number(count) > collisions.number()) {
        errors.push(Error::invalid(&collisions.path, collisions.number(), "cannot be decremented"));
    }
    errors
}

pub fn warnings(deployment: &Value, old: Option<&Value>) -> Vec<String> {
    let unchanged = old.is_some_and(|old| !spec_changed(deployment, old));
    if unchanged {
        return Vec::new();
    }
    let spec = Place::root(deployment).child("spec");
    let name = if old.is_none() { template::name_warning(deployment) } else { None };
    let template = spec.child("template");
    let mut warnings: Vec<String> = name.into_iter().collect();
    warnings.extend(pod_warnings::pod(&template.child("metadata"), &template.child("spec")));
    warnings.extend(two_writers(&spec));
    warnings
}

/// While one template replaces the other, pods of both write to the same place on the node: two programs that each
/// take a database for their own destroy it.
fn two_writers(spec: &Place<'_>) -> Vec<String> {
    let surge = share(&spec.child("strategy").child("rollingUpdate").child("maxSurge"));
    if !spec.child("strategy").child("type").is("RollingUpdate") || surge == 0 {
        return Vec::new();
    }
    let pod = spec.child("template").child("spec");
    let mounts: Vec<Place<'_>> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| pod.child(list).items())
        .flat_map(|container| container.child("volumeMounts").items())
        .filter(|mount| !mount.child("readOnly").is_true())
        .collect();
    let volumes = pod.child("volumes");
    let written = volumes
        .items()
        .filter(|volume| mounts.iter().any(|mount| mount.child("name").text() == volume.child("name").text()));
    // Devices and sockets are made to be shared.
    let shared = ["Socket", "CharDevice", "BlockDevice"];
    written
        .map(|volume| volume.child("hostPath"))
        .filter(|host| !shared.contains(&host.child("type").text()))
        .map(|host| host.child("path").text())
        .filter(|path| !path.is_empty() && !path.starts_with("/dev/"))
        .map(|path| format!("two pods will write to {path} during a rollout; use strategy: Recreate"))
        .collect()
}
