//! Nodes near pods that the pod likes, or that like it, are better; nodes near those that it does not like are worse.
//!
//! Source: kubernetes `plugins/interpodaffinity/scoring.go`.

use std::collections::BTreeMap;

use super::MAX;
use crate::cluster::Cluster;
use crate::facts::{NodeState, PodFacts};
use crate::terms::Term;

/// What a required term of another pod weighs. Source: `apis/config/v1/defaults.go`, `HardPodAffinityWeight`.
const HARD_WEIGHT: i64 = 1;

/// 0 to 100 for each node; 0 for all when nobody has a preference.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a score of three digits")]
pub fn scores(pod: &PodFacts, nodes: &[&NodeState], cluster: &Cluster) -> Vec<i64> {
    let mut weights: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    let asks = !pod.neighbours.preferred.is_empty();
    for node in cluster.nodes().values() {
        let mut add = |term: &Term, weight: i64| {
            if let Some((key, value)) = node.facts.labels.get_key_value(&term.topology_key) {
                *weights.entry((key, value)).or_default() += weight;
            }
        };
        for other in node.pods.values().filter(|other| asks || !other.neighbours.is_empty()) {
            let means = |term: &Term, pod: &PodFacts| pod.is_meant(term, cluster.namespaces());
            for (weight, term) in pod.neighbours.preferred.iter().filter(|(_, term)| means(term, other)) {
                add(term, *weight);
            }
            for term in other.neighbours.required.iter().filter(|term| means(term, pod)) {
                add(term, HARD_WEIGHT);
            }
            for (weight, term) in other.neighbours.preferred.iter().filter(|(_, term)| means(term, pod)) {
                add(term, *weight);
            }
        }
    }
    let of_node = |node: &NodeState| -> i64 {
        let of_label = |(key, value): (&String, &String)| weights.get(&(key.as_str(), value.as_str())).copied();
        node.facts.labels.iter().filter_map(of_label).sum()
    };
    let sums: Vec<i64> = nodes.iter().map(|node| of_node(node)).collect();
    let (least, most) = (sums.iter().copied().min().unwrap_or(0), sums.iter().copied().max().unwrap_or(0));
    let range = (most - least) as f64;
    let share = |sum: &i64| if range > 0.0 { (MAX as f64 * ((sum - least) as f64 / range)) as i64 } else { 0 };
    sums.iter().map(share).collect()
}
