//! Taints keep pods away that do not tolerate them. A node that is not ready is tainted by the node lifecycle controller.
//!
//! Source: kubernetes `plugins/tainttoleration/taint_toleration.go`, api `core/v1/toleration.go`.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::Refusal;
use crate::facts::{NodeFacts, NodeState, PodFacts};

pub fn filter(pod: &PodFacts, node: &NodeState) -> Result<(), Refusal> {
    if is_tolerated(pod, &node.facts) { Ok(()) } else { Err(Refusal::firm("node(s) had untolerated taint(s)")) }
}

/// Whether a pod tolerates every taint of a node that keeps pods away.
pub fn is_tolerated(pod: &PodFacts, node: &NodeFacts) -> bool {
    let mut forbidding = node.taints.iter().filter(|taint| matches!(&*taint.effect, "NoSchedule" | "NoExecute"));
    forbidding.all(|taint| pod.tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

/// An absent effect tolerates all effects; an absent key with `Exists` all taints. The numeric operators are behind a
/// feature gate that is off, and match nothing.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let unset_or =
        |field: &Option<String>, value: &str| field.as_deref().is_none_or(|text| text.is_empty() || text == value);
    if !unset_or(&toleration.effect, &taint.effect) || !unset_or(&toleration.key, &taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
        "Exists" => true,
        _ => false,
    }
}
