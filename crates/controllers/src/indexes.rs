//! The indexes that the shared informers keep beside the one by owner.

use std::sync::Arc;

use api::object::Object;
use client::informer::{IndexFn, View};
use serde::Deserialize;

/// The indexes of every resource.
pub const COMMON: &[IndexFn] = &[by_orphanage];
/// The indexes of pods.
pub const PODS: &[IndexFn] = &[by_orphanage, by_node, by_end];

/// Objects without a controller, by namespace.
fn by_orphanage(object: &Object) -> Vec<String> {
    let orphan = object.meta().controller().is_none();
    if orphan { vec![object.meta().namespace.clone()] } else { Vec::new() }
}

/// Pods by the node that they are bound to.
fn by_node(object: &Object) -> Vec<String> {
    node_of(object).into_iter().collect()
}

/// Pods whose containers have ended for good, under one value.
fn by_end(object: &Object) -> Vec<String> {
    let phase = outline(object).and_then(|pod| pod.status?.phase);
    if matches!(phase.as_deref(), Some("Succeeded" | "Failed")) { vec![String::new()] } else { Vec::new() }
}

#[derive(Deserialize)]
struct Outline {
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
}

#[derive(Deserialize)]
struct Status {
    phase: Option<String>,
}

fn outline(pod: &Object) -> Option<Outline> {
    serde_json::from_slice(pod.draft().body()).ok()
}

/// The node that a pod is bound to.
pub fn node_of(pod: &Object) -> Option<String> {
    outline(pod)?.spec?.node_name.filter(|name| !name.is_empty())
}

/// The objects of a namespace that have no controller.
pub fn orphans<'a>(view: &'a View, namespace: &str) -> impl Iterator<Item = &'a Arc<Object>> {
    view.indexed(0, namespace)
}

/// The pods that are bound to a node.
pub fn pods_on<'a>(pods: &'a View, node: &str) -> impl Iterator<Item = &'a Arc<Object>> {
    pods.indexed(1, node)
}

/// The pods whose containers have ended for good.
pub fn ended(pods: &View) -> impl Iterator<Item = &Arc<Object>> {
    pods.indexed(2, "")
}
