//! Pods get the amounts of their namespace's LimitRanges where they name none, and stay within them.
//!
//! Source: kubernetes `plugin/pkg/admission/limitranger/admission.go`. Limits of claims are not built, as claims are not.

use std::collections::BTreeMap;

use api::key::{GroupResource, Key};
use api::quantity::Quantity;
use api::status::Status;
use serde_json::{Map, Value, json};

use crate::admit::{AdmissionAttributes, Operation, Plugin};
use crate::identity::BoxFuture;

const RANGES: GroupResource = GroupResource::new("", "limitranges");
const NOTE: &str = "kubernetes.io/limit-ranger";

pub struct LimitRanger;

type Amounts = BTreeMap<String, Quantity>;

/// The LimitRanges that concern the request: of a new pod's namespace.
fn ranges(at: &AdmissionAttributes<'_>) -> Vec<Value> {
    if !at.is("", "pods") || at.operation != Operation::Create {
        return Vec::new();
    }
    let prefix = Key::namespace_prefix(&RANGES, at.namespace);
    at.snapshot.range(&prefix, None).map(|range| range.value()).collect()
}

fn limits<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    range["spec"]["limits"].as_array().into_iter().flatten().filter(move |limit| limit["type"] == kind)
}

/// Fills in what the containers do not say, and notes on the pod what that was.
fn fill(range: &Value, pod: &mut Value) {
    let mut notes = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (to, from, word) in [("requests", "defaultRequest", "request"), ("limits", "default", "limit")] {
                let mut added = Vec::new();
                for (resource, amount) in
                    limits(range, "Container").flat_map(|limit| limit[from].as_object().into_iter().flatten())
                {
                    let Some(resources) = object(container, "resources") else { continue };
                    let list = resources.entry(to).or_insert_with(|| json!({}));
                    if let Some(list) = list.as_object_mut().filter(|list| !list.contains_key(resource)) {
                        list.insert(resource.clone(), amount.clone());
                        added.push(resource.as_str());
                    }
                }
                added.sort_unstable();
                if !added.is_empty() {
                    notes.push(format!("{} {word} for {what} {name}", added.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty()
        && let Some(metadata) = object(pod, "metadata")
        && let Some(annotations) = metadata.entry("annotations").or_insert_with(|| json!({})).as_object_mut()
    {
        annotations.insert(NOTE.to_owned(), json!(format!("LimitRanger plugin set: {}", notes.join("; "))));
    }
}

/// The object of a field, made where it is absent.
fn object<'a>(parent: &'a mut Value, field: &str) -> Option<&'a mut Map<String, Value>> {
    let entry = parent.as_object_mut()?.entry(field).or_insert_with(|| json!({}));
    if entry.is_null() {
        *entry = json!({});
    }
    entry.as_object_mut()
}

fn amounts(list: &Value) -> Amounts {
    let entries = list.as_object().into_iter().flatten();
    entries.filter_map(|(name, amount)| Some((name.clone(), Quantity::from_json(amount).ok()?))).collect()
}

/// What is wrong with the pod, in upstream's words.
fn complaints(range: &Value, pod: &Value) -> Vec<String> {
    let mut all = Vec::new();
    for limit in limits(range, "Container") {
        for list in ["containers", "initContainers"] {
            for container in pod["spec"][list].as_array().into_iter().flatten() {
                let resources = &container["resources"];
                check(limit, "Container", &amounts(&resources["requests"]), &amounts(&resources["limits"]), &mut all);
            }
        }
    }
    for limit in limits(range, "Pod") {
        check(limit, "Pod", &of_pod(pod, "requests"), &of_pod(pod, "limits"), &mut all);
    }
    all
}

/// What a pod needs at its most demanding moment, as the scheduler counts it, but for overhead.
fn of_pod(pod: &Value, list: &str) -> Amounts {
    let add = |to: &mut Amounts, more: &Amounts| {
        for (name, amount) in more {
            let sum = to.entry(name.clone()).or_insert(Quantity::ZERO);
            *sum = *sum + *amount;
        }
    };
    let raise = |to: &mut Amounts, other: &Amounts| {
        for (name, amount) in other {
            let most = to.entry(name.clone()).or_insert(*amount);
            *most = (*most).max(*amount);
        }
    };
    let containers = |field: &str| pod["spec"][field].as_array().into_iter().flatten();
    let (mut total, mut sidecars, mut starting) = (Amounts::new(), Amounts::new(), Amounts::new());
    containers("containers").for_each(|container| add(&mut total, &amounts(&container["resources"][list])));
    for init in containers("initContainers") {
        let mut own = amounts(&init["resources"][list]);
        if init["restartPolicy"] == "Always" {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            raise(&mut starting, &sidecars);
        } else {
            add(&mut own, &sidecars);
            raise(&mut starting, &own);
        }
    }
    raise(&mut total, &starting);
    total.extend(amounts(&pod["spec"]["resources"][list]));
    total
}

fn check(limit: &Value, kind: &str, requests: &Amounts, has: &Amounts, all: &mut Vec<String>) {
    for (name, least) in amounts(&limit["min"]) {
        let rule = format!("minimum {name} usage per {kind} is {least}");
        match (requests.get(&name), has.get(&name)) {
            (None, _) => all.push(format!("{rule}.  No request is specified")),
            (Some(request), _) if *request < least => all.push(format!("{rule}, but request is {request}")),
            (_, Some(limit)) if *limit < least => all.push(format!("{rule}, but limit is {limit}")),
            _ => {}
        }
    }
    for (name, most) in amounts(&limit["max"]) {
        let rule = format!("maximum {name} usage per {kind} is {most}");
        match (requests.get(&name), has.get(&name)) {
            (_, None) => all.push(format!("{rule}.  No limit is specified")),
            (_, Some(limit)) if *limit > most => all.push(format!("{rule}, but limit is {limit}")),
            (Some(request), _) if *request > most => all.push(format!("{rule}, but request is {request}")),
            _ => {}
        }
    }
    for (name, most) in amounts(&limit["maxLimitRequestRatio"]) {
        let rule = format!("{name} max limit to request ratio per {kind} is {most}");
        let millis = |list: &Amounts| list.get(&name).map(|amount| amount.millis()).filter(|amount| *amount != 0);
        match (millis(requests), millis(has)) {
            (None, _) => all.push(format!("{rule}, but no request is specified or request is 0")),
            (_, None) => all.push(format!("{rule}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                #[allow(clippy::cast_precision_loss, reason = "as upstream shows it")]
                let ratio = limit as f64 / request as f64;
                #[allow(clippy::cast_precision_loss, reason = "as upstream compares it")]
                if ratio * 1000.0 > most.millis() as f64 {
                    all.push(format!("{rule}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn admit<'a>(&'a self, at: &'a AdmissionAttributes<'a>, pod: &'a mut Value) -> BoxFuture<'a, Result<(), Status>> {
        ranges(at).iter().for_each(|range| fill(range, pod));
        Box::pin(async { Ok(()) })
    }

    fn validate<'a>(
        &'a self,
        at: &'a AdmissionAttributes<'a>,
        object: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let outcome = object.map_or(Ok(()), |pod| {
            let first = ranges(at).iter().map(|range| complaints(range, pod)).find(|found| !found.is_empty());
            match first {
                None => Ok(()),
                Some(found) if found.len() == 1 => Err(at.forbidden(object, &found[0])),
                Some(found) => Err(at.forbidden(object, format!("[{}]", found.join(", ")))),
            }
        });
        Box::pin(async { outcome })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> Value {
        json!({"spec": {"limits": [
            {"type": "Container", "min": {"cpu": "50m"}, "max": {"cpu": "500m"}, "default": {"cpu": "500m", "memory": "1Gi"},
             "defaultRequest": {"cpu": "100m"}, "maxLimitRequestRatio": {"cpu": "5"}},
            {"type": "Pod", "max": {"cpu": "1"}},
        ]}})
    }

    fn pod(containers: &Value) -> Value {
        json!({"metadata": {"name": "a"}, "spec": {"containers": containers}})
    }

    #[test]
    fn a_container_gets_what_it_does_not_say_and_the_pod_a_note_of_it() {
        let mut pod = pod(
            &json!([{"name": "c", "resources": {"limits": {"cpu": "300m"}, "requests": {"cpu": "300m"}}}, {"name": "d"}]),
        );
        fill(&range(), &mut pod);
        let containers = &pod["spec"]["containers"];
        assert_eq!(containers[0]["resources"]["limits"], json!({"cpu": "300m", "memory": "1Gi"}));
        assert_eq!(containers[1]["resources"]["requests"], json!({"cpu": "100m"}));
        assert_eq!(
            pod["metadata"]["annotations"][NOTE],
            "LimitRanger plugin set: memory limit for container c; cpu request for container d; cpu, memory limit for \
             container d"
        );
    }

    #[test]
    fn amounts_beyond_the_range_are_refused_and_named() {
        let of = |request: &str, limit: &str| json!({"name": "c", "resources": {"requests": {"cpu": request}, "limits": {"cpu": limit}}});
        assert_eq!(complaints(&range(), &pod(&json!([of("100m", "500m")]))), Vec::<String>::new());
        assert_eq!(
            complaints(&range(), &pod(&json!([of("10m", "600m")]))),
            [
                "minimum cpu usage per Container is 50m, but request is 10m",
                "maximum cpu usage per Container is 500m, but limit is 600m",
                "cpu max limit to request ratio per Container is 5, but provided ratio is 60.000000",
            ]
        );
        let three = json!([of("400m", "400m"), of("400m", "400m"), of("400m", "400m")]);
        assert_eq!(complaints(&range(), &pod(&three)), ["maximum cpu usage per Pod is 1, but limit is 1200m"]);
    }
}
