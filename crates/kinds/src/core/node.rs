//! Node: a machine that runs pods.
//!
//! Source: kubernetes `pkg/registry/core/node/strategy.go`.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::core::pod_default::canonical_list;
use crate::kind::{Column, Kind, Strategy, Subresource};
use crate::strategy::keep_status;
use crate::table;
use crate::value::{default, flag, items, object, remove, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill).preparing(prepare),
        subresources: vec![Subresource::status(Strategy::status().defaulting(fill))],
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
    object(node, "spec");
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
