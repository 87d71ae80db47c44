//! What evicting less important pods would achieve for a pod that fits nowhere.
//!
//! Each node that a filter refused because of what runs there is tried without its less important pods; then as many of
//! them as fit beside the pod are spared, the most important first. Source: kubernetes
//! `framework/preemption/preemption.go`, `plugins/defaultpreemption`. All nodes are tried, where upstream samples them
//! above a hundred; there are no disruption budgets to respect yet.

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::Timestamp;

use crate::cluster::Cluster;
use crate::facts::{NodeState, PodFacts};
use crate::filter::{Cycle, Refusal, Trial, histogram};

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Without these pods, the most important first, the pod fits on this node, and is nominated for it.
    Evict { node: String, victims: Vec<Arc<PodFacts>> },
    /// The pod may not evict, or not again yet; it keeps the nomination that it has.
    Wait(&'static str),
    /// No eviction would help; a nomination ends.
    Futile(String),
}

impl Outcome {
    /// The second half of the message of a pod that fits nowhere.
    pub fn message(&self) -> String {
        match self {
            Self::Evict { node, victims } => {
                let count = victims.len();
                format!("preemption: found a potential placement for pod on node {node}, preempting {count} victims")
            }
            Self::Wait(why) => format!("preemption: {why}"),
            Self::Futile(why) => format!("preemption: {why}"),
        }
    }
}

/// Decides whom to evict, given why each node was refused.
pub fn run(pod: &PodFacts, refused: &[(&NodeState, Refusal)], cluster: &Cluster, cycle: &Cycle<'_>) -> Outcome {
    if !pod.may_preempt {
        return Outcome::Wait("not eligible due to preemptionPolicy=Never.");
    }
    if waits_for_victims(pod, refused, cluster) {
        return Outcome::Wait("not eligible due to a terminating pod on the nominated node.");
    }
    let mut candidates = Vec::new();
    let mut reasons = Vec::new();
    for (node, refusal) in refused {
        if !refusal.is_resolvable {
            reasons.push("Preemption is not helpful for scheduling".to_owned());
            continue;
        }
        match victims_on(pod, node, cycle) {
            Ok(victims) => candidates.push((&node.facts.name, victims)),
            Err(still) => reasons.extend(still.reasons),
        }
    }
    match candidates.into_iter().min_by_key(|(_, victims)| cost(victims)) {
        Some((node, victims)) => Outcome::Evict { node: node.clone(), victims },
        None => Outcome::Futile(histogram(refused.len(), reasons.iter())),
    }
}

/// Whether pods were evicted for this one already that have not gone yet.
fn waits_for_victims(pod: &PodFacts, refused: &[(&NodeState, Refusal)], cluster: &Cluster) -> bool {
    let Some(nominated) = cluster.nominated_node(&pod.uid) else { return false };
    let nominated = refused.iter().find(|(node, refusal)| node.facts.name == nominated && refusal.is_resolvable);
    nominated.is_some_and(|(node, _)| {
        node.pods.values().any(|other| other.priority < pod.priority && other.is_terminating && other.is_preempted)
    })
}

/// The pods to evict from a node, the most important first.
fn victims_on(pod: &PodFacts, node: &NodeState, cycle: &Cycle<'_>) -> Result<Vec<Arc<PodFacts>>, Refusal> {
    let mut candidates: Vec<Arc<PodFacts>> =
        node.pods.values().filter(|other| other.priority < pod.priority).cloned().collect();
    if candidates.is_empty() {
        return Err(Refusal::firm("No preemption victims found for incoming pod"));
    }
    let mut trial = Trial::new(cycle, node);
    for candidate in &candidates {
        trial.remove(candidate);
    }
    trial.run()?;
    candidates.sort_by_key(|pod| (Reverse(pod.priority), started(pod)));
    let mut victims = Vec::new();
    for candidate in candidates {
        trial.place(candidate.clone());
        if trial.run().is_err() {
            trial.remove(&candidate);
            victims.push(candidate);
        }
    }
    if victims.is_empty() {
        let reason = format!("expected at least one victim pod on node {:?}", node.facts.name);
        return Err(Refusal::firm(&reason));
    }
    Ok(victims)
}

/// What it costs to evict these pods, the most important first: the least is chosen.
fn cost(victims: &[Arc<PodFacts>]) -> (i32, i64, usize, Reverse<Timestamp>) {
    let highest = victims.first().map_or(i32::MIN, |pod| pod.priority);
    // Shifted above zero, so that many pods of a negative priority cost more than few.
    let sum = victims.iter().map(|pod| i64::from(pod.priority) + i64::from(i32::MAX) + 1).sum();
    let longest = victims.iter().filter(|pod| pod.priority == highest).map(|pod| started(pod)).min();
    (highest, sum, victims.len(), Reverse(longest.unwrap_or(Timestamp::MAX)))
}

/// A pod that has not started counts as one that starts now.
fn started(pod: &PodFacts) -> Timestamp {
    pod.started.unwrap_or(Timestamp::MAX)
}
