//! Pods that want to be near others, or far from them, and pods that want others far from themselves.
//!
//! Source: kubernetes `plugins/interpodaffinity/filtering.go`.

use std::collections::BTreeMap;

use super::Refusal;
use crate::cluster::Cluster;
use crate::facts::{NodeFacts, NodeState, PodFacts};
use crate::terms::{Namespaces, Term};

/// How many pods count against or for each value of a node's label.
type Counts = BTreeMap<(String, String), i64>;

/// Where the pods are that matter to one that is to be placed.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Those that want it far from themselves.
    refusing: Counts,
    /// Those that all of its required terms match.
    wanted: Counts,
    /// Those that it wants to be far from.
    unwanted: Counts,
}

impl State {
    pub fn new(pod: &PodFacts, cluster: &Cluster) -> Self {
        let mut state = Self::default();
        let asks = !pod.neighbours.required.is_empty() || !pod.neighbours.forbidden.is_empty();
        for node in cluster.nodes().values().filter(|node| asks || node.refusing > 0) {
            for other in node.pods.values().filter(|other| asks || !other.neighbours.forbidden.is_empty()) {
                state.count(pod, other, &node.facts, cluster.namespaces(), 1);
            }
        }
        state
    }

    /// Counts one more pod on a node, or one less.
    pub fn count(&mut self, pod: &PodFacts, other: &PodFacts, node: &NodeFacts, namespaces: &Namespaces, by: i64) {
        for term in other.neighbours.forbidden.iter().filter(|term| pod.is_meant(term, namespaces)) {
            add(&mut self.refusing, node, term, by);
        }
        if matches_all(&pod.neighbours.required, other, namespaces) {
            pod.neighbours.required.iter().for_each(|term| add(&mut self.wanted, node, term, by));
        }
        for term in pod.neighbours.forbidden.iter().filter(|term| other.is_meant(term, namespaces)) {
            add(&mut self.unwanted, node, term, by);
        }
    }
}

fn add(counts: &mut Counts, node: &NodeFacts, term: &Term, by: i64) {
    let Some(value) = node.labels.get(&term.topology_key) else { return };
    let place = (term.topology_key.clone(), value.clone());
    let count = counts.entry(place.clone()).or_default();
    *count += by;
    if *count == 0 {
        counts.remove(&place);
    }
}

/// Whether there are terms, and all of them mean this pod.
fn matches_all(terms: &[Term], pod: &PodFacts, namespaces: &Namespaces) -> bool {
    !terms.is_empty() && terms.iter().all(|term| pod.is_meant(term, namespaces))
}

pub fn filter(pod: &PodFacts, node: &NodeState, state: &State, namespaces: &Namespaces) -> Result<(), Refusal> {
    let labels = &node.facts.labels;
    let count = |counts: &Counts, term: &Term| {
        let value = labels.get(&term.topology_key)?;
        Some(counts.get(&(term.topology_key.clone(), value.clone())).copied().unwrap_or(0))
    };
    let required: Vec<Option<i64>> = pod.neighbours.required.iter().map(|term| count(&state.wanted, term)).collect();
    let has_labels = required.iter().all(Option::is_some);
    // The first of pods that want to be together has nobody to join.
    let is_first = state.wanted.is_empty() && matches_all(&pod.neighbours.required, pod, namespaces);
    if !has_labels || !(is_first || required.iter().all(|count| count.is_some_and(|count| count > 0))) {
        return Err(Refusal::firm("node(s) didn't match pod affinity rules"));
    }
    if pod.neighbours.forbidden.iter().any(|term| count(&state.unwanted, term).is_some_and(|count| count > 0)) {
        return Err(Refusal::by_pods("node(s) didn't match pod anti-affinity rules"));
    }
    if state.refusing.iter().any(|((key, value), count)| *count > 0 && labels.get(key) == Some(value)) {
        return Err(Refusal::by_pods("node(s) didn't satisfy existing pods anti-affinity rules"));
    }
    Ok(())
}
