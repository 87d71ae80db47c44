//! Node: a machine that runs pods.
//!
//! Source: kubernetes `pkg/registry/core/node/strategy.go`.

use std::collections::BTreeSet;

use api::field::{Error, Path};
use api::{names, selector};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::core::pod_default::canonical_list;
use crate::core::pod_validation::quantity;
use crate::kind::{Column, Kind, Strategy, Subresource};
use crate::place::Place;
use crate::strategy::{keep_status, only_status};
use crate::table;
use crate::value::{default, drop_zero, flag, items, object, remove, set, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill).preparing(prepare).validating(validate).warning(warnings),
        subresources: vec![Subresource::status(
            Strategy::none().defaulting(fill).preparing(prepare_status).validating(validate_update),
        )],
        columns: vec![
            Column::name(),
            Column::text("Status", "Whether the node is ready, and whether it takes new pods."),
            Column::text("Roles", "The roles that its labels give it."),
            Column::age(),
            Column::text("Version", "The version of the node's agent."),
            Column::text("Internal-IP", "Its address inside the cluster.").wide(),
            Column::text("External-IP", "Its address outside the cluster.").wide(),
            Column::text("OS-Image", "Its operating system.").wide(),
            Column::text("Kernel-Version", "Its kernel and architecture.").wide(),
            Column::text("Container-Runtime", "What runs its containers.").wide(),
        ],
        row: Box::new(row),
        fields: Box::new(|node| vec![("spec.unschedulable", flag(&node["spec"]["unschedulable"]).to_string())]),
        ..Kind::cluster("", "v1", "Node", "nodes").short(&["no"])
    }
}

fn fill(node: &mut Value) {
    if let Some(spec) = object(node, "spec") {
        drop_zero(spec, &["podCIDR", "podCIDRs", "taints", "unschedulable"]);
        // The singular and the plural range say the same; the singular wins.
        let one = text(&spec["podCIDR"]).to_owned();
        if !one.is_empty() && text(&spec["podCIDRs"][0]) != one {
            set(spec, "podCIDRs", json!([one]));
        }
        let first = text(&spec["podCIDRs"][0]).to_owned();
        if !first.is_empty() {
            set(spec, "podCIDR", first);
        }
    }
    let Some(status) = object(node, "status") else { return };
    for list in ["capacity", "allocatable"] {
        if let Some(list) = status.get_mut(list) {
            canonical_list(list);
        }
    }
    let capacity = status["capacity"].clone();
    if !capacity.is_null() {
        default(status, "allocatable", capacity);
    }
}

/// A node may be created with its status: it registers itself so.
fn prepare(node: &mut Value, old: Option<&Value>) {
    if old.is_some() {
        keep_status(node, old, &Value::Null);
    }
    if let Some(spec) = node.get_mut("spec") {
        remove(spec, "configSource");
        // Switched off in upstream.
        remove(spec, "podPreemptionPolicy");
    }
}

/// What was reported of a node's dynamic configuration has been gone since v1.24.
fn prepare_status(node: &mut Value, old: Option<&Value>) {
    only_status(node, old);
    if let Some(status) = node.get_mut("status") {
        remove(status, "config");
    }
}

fn validate(node: &Value, old: Option<&Value>) -> Vec<Error> {
    let spec = Place::root(node).child("spec");
    let mut errors = Vec::new();
    taints(&spec.child("taints"), &mut errors);
    if old.is_none() {
        errors.extend(validate_update(node, None));
    }
    let ranges = spec.child("podCIDRs");
    for range in ranges.items() {
        range.keep(names::is_cidr_for_legacy_field, &mut errors);
    }
    let v6 = ranges.items().filter(|range| range.text().contains(':')).count();
    if ranges.len() > 2 || (ranges.len() == 2 && v6 != 1) {
        errors.push(ranges.invalid("may specify no more than one CIDR for each IP family"));
    }
    if let Some(old) = old {
        errors.extend(validate_update(node, Some(old)));
    }
    errors
}

/// Source: kubernetes `pkg/registry/core/node/strategy.go`, `nodeWarnings`.
fn warnings(node: &Value, _old: Option<&Value>) -> Vec<String> {
    let external = text(&node["spec"]["externalID"]);
    let warning = "spec.externalID: this field is deprecated, and is unused by Kubernetes";
    if external.is_empty() { Vec::new() } else { vec![warning.to_owned()] }
}

/// What holds for every update, the node's own report of its status included.
fn validate_update(node: &Value, old: Option<&Value>) -> Vec<Error> {
    let root = Place::root(node);
    let mut errors = Vec::new();
    for list in ["capacity", "allocatable"] {
        for (name, place) in root.child("status").child(list).entries() {
            // Upstream's path takes the resource for a field.
            let path = Path::new("status").child(list).child(name);
            quantity(&Place::new(place.value, path), &mut errors);
        }
    }
    for feature in root.child("status").child("declaredFeatures").items() {
        let segments = || feature.text().split('/');
        let is_name = |segment: &str| {
            segment.starts_with(|c: char| c.is_ascii_alphabetic()) && segment.bytes().all(|b| b.is_ascii_alphanumeric())
        };
        if !segments().all(is_name) || !feature.text().starts_with(|c: char| c.is_ascii_uppercase()) {
            errors.push(feature.invalid(format!(
                "invalid feature name {:?}: must start with an UpperCamelCase segment, with subsequent segments separated \
                 by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes",
                feature.text()
            )));
        }
    }
    let Some(old) = old else { return errors };
    if text(&node["spec"]["externalID"]) != text(&old["spec"]["externalID"]) {
        errors.push(root.child("spec").child("externalID").forbidden("may not be updated"));
    }
    let mut seen: Vec<&Value> = Vec::new();
    for address in root.child("status").child("addresses").items() {
        if seen.contains(&address.value) {
            errors.push(address.duplicate());
        }
        seen.push(address.value);
    }
    let (spec, before) = (root.child("spec"), &old["spec"]);
    if !items(&before["podCIDRs"]).is_empty() && spec.value["podCIDRs"] != before["podCIDRs"] {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(spec.child("podCIDRs").forbidden(detail));
    }
    let (had, has) = (text(&before["providerID"]), spec.child("providerID"));
    if !had.is_empty() && has.text() != had {
        let what = if has.is_empty() { "cleared" } else { "modified" };
        errors.push(Error::invalid(&has.path, Value::Null, format!("field cannot be {what} once set")));
    }
    errors
}

fn taints(taints: &Place<'_>, errors: &mut Vec<Error>) {
    let mut seen = BTreeSet::new();
    for (i, taint) in taints.items().enumerate() {
        // Upstream reports taints below the metadata.
        let taint = Place::new(taint.value, Path::new("metadata").child("taints").index(i));
        let (key, value, effect) = (taint.child("key"), taint.child("value"), taint.child("effect"));
        errors.extend(selector::validate_label_name(key.text(), &key.path));
        let messages = names::is_label_value(value.text());
        if !messages.is_empty() {
            errors.push(value.invalid(messages.join(";")));
        }
        effect.one_of(&["NoSchedule", "PreferNoSchedule", "NoExecute"], errors);
        if !seen.insert((effect.text(), key.text())) {
            let detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(Error { detail, ..taint.duplicate() });
        }
    }
}

fn row(node: &Value, now: Timestamp) -> Vec<Value> {
    let (status, info) = (&node["status"], &node["status"]["nodeInfo"]);
    let ready = items(&status["conditions"]).iter().rfind(|condition| text(&condition["type"]) == "Ready");
    let mut state = match ready.map(|condition| text(&condition["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if flag(&node["spec"]["unschedulable"]) {
        state.push_str(",SchedulingDisabled");
    }
    let address = |kind: &str| {
        let found = items(&status["addresses"]).iter().find(|address| text(&address["type"]) == kind);
        table::or_none(found.map_or(&Value::Null, |address| &address["address"]))
    };
    let mut kernel = text(&table::or(&info["kernelVersion"], "<unknown>")).to_owned();
    match text(&info["architecture"]) {
        "" => {}
        arch => kernel = format!("{kernel} ({arch})"),
    }
    vec![
        json!(table::name(node)),
        json!(state),
        table::or_none(&json!(roles(node))),
        table::age(node, now),
        json!(text(&info["kubeletVersion"])),
        address("InternalIP"),
        address("ExternalIP"),
        table::or(&info["osImage"], "<unknown>"),
        json!(kernel),
        table::or(&info["containerRuntimeVersion"], "<unknown>"),
    ]
}

fn roles(node: &Value) -> String {
    let labels = node["metadata"]["labels"].as_object();
    let roles: BTreeSet<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None => (key == "kubernetes.io/role").then(|| text(value)),
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.into_iter().collect::<Vec<_>>().join(",")
}
