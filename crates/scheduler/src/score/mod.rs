//! Scores: which of the nodes that a pod may run on is best.
//!
//! Each score is 0 to 100, normalised over the nodes, and weighted as upstream's defaults.
//! Source: kubernetes `pkg/scheduler/apis/config/v1/default_plugins.go`, `plugins/helper/normalize_score.go`.

use crate::cluster::Cluster;
use crate::facts::{NodeState, PodFacts};

pub mod balanced_allocation;
pub mod inter_pod_affinity;
pub mod least_allocated;
pub mod node_affinity;
pub mod pod_topology_spread;
pub mod taint_toleration;

pub const MAX: i64 = 100;

/// Returns the total of each node, in their order.
pub fn run(pod: &PodFacts, nodes: &[&NodeState], cluster: &Cluster) -> Vec<i64> {
    let of_each =
        |score: fn(&PodFacts, &NodeState) -> i64| nodes.iter().map(|node| score(pod, node)).collect::<Vec<_>>();
    let weighted = [
        (3, fewest_is_best(of_each(taint_toleration::intolerable))),
        (2, most_is_best(of_each(node_affinity::preference))),
        (1, of_each(least_allocated::score)),
        (2, pod_topology_spread::scores(pod, nodes, cluster)),
        (2, inter_pod_affinity::scores(pod, nodes, cluster)),
        (1, of_each(balanced_allocation::score)),
    ];
    let mut totals = vec![0; nodes.len()];
    for (weight, scores) in weighted {
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += weight * score;
        }
    }
    totals
}

fn most_is_best(mut counts: Vec<i64>) -> Vec<i64> {
    let most = counts.iter().copied().max().unwrap_or(0);
    if most > 0 {
        counts.iter_mut().for_each(|count| *count = MAX * *count / most);
    }
    counts
}

fn fewest_is_best(counts: Vec<i64>) -> Vec<i64> {
    most_is_best(counts).into_iter().map(|score| MAX - score).collect()
}
