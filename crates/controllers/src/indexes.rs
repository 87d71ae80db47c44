//! The indexes that the shared informers keep beside the one by owner.

use std::sync::Arc;

use api::object::Object;
use client::informer::{IndexFn, View};
use serde::Deserialize;

/// The indexes of every resource.
pub const COMMON: &[IndexFn] = &[by_orphanage];
/// The indexes of pods.
pub const PODS: &[IndexFn] = &[by_orphanage, by_node];

/// Objects without a controller, by namespace.
fn by_orphanage(object: &Object) -> Vec<String> {
    let orphan = object.meta().controller().is_none();
    if orphan { vec![object.meta().namespace.clone()] } else { Vec::new() }
}

/// Pods by the node that they are bound to.
fn by_node(object: &Object) -> Vec<String> {
    node_of(object).into_iter().collect()
}

/// The node that a pod is bound to.
pub fn node_of(pod: &Object) -> Option<String> {
    #[derive(Deserialize)]
    struct Outline {
        spec: Option<Spec>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        node_name: Option<String>,
    }
    let outline: Outline = serde_json::from_slice(pod.draft().body()).ok()?;
    outline.spec?.node_name.filter(|name| !name.is_empty())
}

/// The objects of a namespace that have no controller.
pub fn orphans<'a>(view: &'a View, namespace: &str) -> impl Iterator<Item = &'a Arc<Object>> {
    view.indexed(0, namespace)
}

/// The pods that are bound to a node.
pub fn pods_on<'a>(pods: &'a View, node: &str) -> impl Iterator<Item = &'a Arc<Object>> {
    pods.indexed(1, node)
}
