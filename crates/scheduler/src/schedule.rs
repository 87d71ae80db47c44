//! One decision: the best node for a pod, or upstream's words for why there is none.
//!
//! Source: kubernetes `pkg/scheduler/schedule_one.go`, `framework/types.go` (`FitError`), `plugins/defaultpreemption`.
//! Preemption itself is not carried out: a pod that could run only if less important ones were evicted waits, and the
//! message says so.

use std::collections::BTreeMap;

use crate::facts::{NodeState, PodFacts};
use crate::filter::{self, Refusal};
use crate::score;

/// What upstream prints where evicting less important pods would help. We do not evict.
const NO_PREEMPTION: &str = "preemption: not supported, less important pods are not evicted";

/// Chooses a node for the pod.
///
/// Nodes that score the same are told apart by the pod's uid, so that pods spread over them.
///
/// # Errors
/// The message for the pod's `PodScheduled` condition and `FailedScheduling` event.
pub fn schedule(pod: &PodFacts, nodes: &BTreeMap<String, NodeState>) -> Result<String, String> {
    if nodes.is_empty() {
        return Err("no nodes available to schedule pods".to_owned());
    }
    let mut feasible = Vec::new();
    let mut refused = Vec::new();
    for node in nodes.values() {
        match filter::run(pod, node) {
            Ok(()) => feasible.push(node),
            Err(refusal) => refused.push((node, refusal)),
        }
    }
    match feasible.as_slice() {
        [] => Err(fit_error(pod, &refused)),
        [only] => Ok(only.facts.name.clone()),
        several => Ok(best(pod, several).facts.name.clone()),
    }
}

fn best<'a>(pod: &PodFacts, nodes: &[&'a NodeState]) -> &'a NodeState {
    let totals = score::run(pod, nodes);
    let most = totals.iter().copied().max().unwrap_or(0);
    let winners: Vec<&NodeState> =
        nodes.iter().zip(totals).filter(|(_, total)| *total == most).map(|(node, _)| *node).collect();
    let draw = pod.uid.bytes().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    winners[draw % winners.len()]
}

fn fit_error(pod: &PodFacts, refused: &[(&NodeState, Refusal)]) -> String {
    let reasons = refused.iter().flat_map(|(_, refusal)| &refusal.reasons);
    let filters = histogram(refused.len(), reasons);
    format!("{filters} {}", preemption(pod, refused))
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 Too many pods.`
fn histogram<'a>(nodes: usize, reasons: impl Iterator<Item = &'a String>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut parts: Vec<String> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

/// What evicting less important pods would achieve on each node.
fn preemption(pod: &PodFacts, refused: &[(&NodeState, Refusal)]) -> String {
    if !pod.may_preempt {
        return "preemption: not eligible due to preemptionPolicy=Never.".to_owned();
    }
    let mut reasons = Vec::new();
    for (node, refusal) in refused {
        if !refusal.is_resolvable {
            reasons.push("Preemption is not helpful for scheduling".to_owned());
            continue;
        }
        let victims: Vec<&String> =
            node.pods.values().filter(|victim| victim.priority < pod.priority).map(|victim| &victim.uid).collect();
        if victims.is_empty() {
            reasons.push("No preemption victims found for incoming pod".to_owned());
            continue;
        }
        let mut without = (*node).clone();
        for uid in victims {
            without.remove(uid);
        }
        match filter::run(pod, &without) {
            Ok(()) => return NO_PREEMPTION.to_owned(),
            Err(still) => reasons.extend(still.reasons),
        }
    }
    format!("preemption: {}", histogram(refused.len(), reasons.iter()))
}
