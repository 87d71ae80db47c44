//! Taints keep pods away that do not tolerate them. A node that is not ready is tainted by the node lifecycle controller.
//!
//! Source: kubernetes `plugins/tainttoleration/taint_toleration.go`.

use client::toleration::tolerates;

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
