//! Pods of a kind are spread evenly over zones, hosts or whatever a label of nodes tells apart.
//!
//! Source: kubernetes `plugins/podtopologyspread/{common,filtering}.go`. Constraints for pods that have none of their own
//! are not built.

use std::collections::BTreeMap;

use super::{Refusal, node_affinity, taint_toleration};
use crate::cluster::Cluster;
use crate::facts::{NodeFacts, NodeState, PodFacts};
use crate::terms::Spread;

/// How many pods count in each domain, for each of the pod's required constraints.
#[derive(Clone, Debug, Default)]
pub struct State(Vec<BTreeMap<String, i64>>);

fn required(pod: &PodFacts) -> impl Iterator<Item = &Spread> {
    pod.spread.iter().filter(|spread| spread.is_required)
}

/// Whether the pods on a node count for a constraint.
pub fn node_counts(pod: &PodFacts, node: &NodeFacts, spread: &Spread) -> bool {
    (spread.counts_unselected || node_affinity::is_selected(pod, node))
        && (spread.counts_tainted || taint_toleration::is_tolerated(pod, node))
}

impl State {
    pub fn new(pod: &PodFacts, cluster: &Cluster) -> Self {
        let mut state = Self(required(pod).map(|_| BTreeMap::new()).collect());
        if state.0.is_empty() {
            return state;
        }
        for node in cluster.nodes().values() {
            state.each(pod, &node.facts, |spread, count| {
                *count += amount(node.pods.values().filter(|other| other.counts_for(spread, pod)).count());
            });
        }
        state
    }

    /// Counts one more pod on a node, or one less.
    pub fn count(&mut self, pod: &PodFacts, other: &PodFacts, node: &NodeFacts, by: i64) {
        self.each(pod, node, |spread, count| {
            if other.counts_for(spread, pod) {
                *count += by;
            }
        });
    }

    /// Calls `change` with the count of the node's domain for each constraint for which the node counts.
    fn each(&mut self, pod: &PodFacts, node: &NodeFacts, change: impl Fn(&Spread, &mut i64)) {
        if !required(pod).all(|spread| node.labels.contains_key(&spread.topology_key)) {
            return;
        }
        for (spread, counts) in required(pod).zip(&mut self.0) {
            if let Some(domain) = node.labels.get(&spread.topology_key)
                && node_counts(pod, node, spread)
            {
                change(spread, counts.entry(domain.clone()).or_default());
            }
        }
    }
}

fn amount(count: usize) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

pub fn filter(pod: &PodFacts, node: &NodeState, state: &State) -> Result<(), Refusal> {
    for (spread, counts) in required(pod).zip(&state.0) {
        let Some(domain) = node.facts.labels.get(&spread.topology_key) else {
            return Err(Refusal::firm("node(s) didn't match pod topology spread constraints (missing required label)"));
        };
        let is_enough = counts.len() >= spread.min_domains;
        let least = counts.values().copied().min().filter(|_| is_enough).unwrap_or(0);
        let own = i64::from(spread.selector.matches(&pod.labels));
        if counts.get(domain).copied().unwrap_or(0) + own - least > spread.max_skew {
            return Err(Refusal::by_pods("node(s) didn't match pod topology spread constraints"));
        }
    }
    Ok(())
}
