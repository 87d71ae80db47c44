//! One decision: the best node for a pod, or upstream's words for why there is none.
//!
//! Source: kubernetes `pkg/scheduler/schedule_one.go`, `framework/types.go` (`FitError`).

use crate::cluster::Cluster;
use crate::facts::{NodeState, PodFacts};
use crate::filter::{Cycle, histogram};
use crate::preemption::{self, Outcome};
use crate::score;

/// Why a pod gets no node now, and what is to be done about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Unschedulable {
    /// For the pod's `PodScheduled` condition and `FailedScheduling` event.
    pub message: String,
    pub preemption: Outcome,
}

/// Chooses a node for the pod.
///
/// Nodes that score the same are told apart by the pod's uid, so that pods spread over them.
///
/// # Errors
/// When none fits; a pod may be nominated for one then, from which others are to be evicted.
pub fn schedule(pod: &PodFacts, cluster: &Cluster) -> Result<String, Unschedulable> {
    let nodes = cluster.nodes();
    if nodes.is_empty() {
        let message = "no nodes available to schedule pods".to_owned();
        return Err(Unschedulable { message: message.clone(), preemption: Outcome::Futile(message) });
    }
    let cycle = Cycle::new(pod, cluster);
    let nominated = cluster.nominated_node(&pod.uid).and_then(|name| nodes.get(name));
    if let Some(node) = nominated.filter(|node| cycle.run(node).is_ok()) {
        return Ok(node.facts.name.clone());
    }
    let mut feasible = Vec::new();
    let mut refused = Vec::new();
    for node in nodes.values() {
        match cycle.run(node) {
            Ok(()) => feasible.push(node),
            Err(refusal) => refused.push((node, refusal)),
        }
    }
    match feasible.as_slice() {
        [] => {
            let preemption = preemption::run(pod, &refused, cluster, &cycle);
            let reasons = refused.iter().flat_map(|(_, refusal)| &refusal.reasons);
            let message = format!("{} {}", histogram(refused.len(), reasons), preemption.message());
            Err(Unschedulable { message, preemption })
        }
        [only] => Ok(only.facts.name.clone()),
        several => Ok(best(pod, several, cluster).facts.name.clone()),
    }
}

fn best<'a>(pod: &PodFacts, nodes: &[&'a NodeState], cluster: &Cluster) -> &'a NodeState {
    let totals = score::run(pod, nodes, cluster);
    let most = totals.iter().copied().max().unwrap_or(0);
    let winners: Vec<&NodeState> =
        nodes.iter().zip(totals).filter(|(_, total)| *total == most).map(|(node, _)| *node).collect();
    let draw = pod.uid.bytes().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    winners[draw % winners.len()]
}
