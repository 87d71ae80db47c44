//! Nodes with more unrequested CPU and memory are better.
//!
//! Source: kubernetes `plugins/noderesources/least_allocated.go`.

use super::MAX;
use crate::facts::{NodeState, PodFacts};

pub fn score(pod: &PodFacts, node: &NodeState) -> i64 {
    let free = |name: &str| {
        let capacity = node.facts.allocatable.get(name);
        let requested = node.assumed_requested.get(name).saturating_add(pod.assumed_requests.get(name));
        (capacity > 0).then(|| if requested > capacity { 0 } else { share(capacity - requested, capacity) })
    };
    let scores: Vec<i64> = ["cpu", "memory"].into_iter().filter_map(free).collect();
    if scores.is_empty() { 0 } else { scores.iter().sum::<i64>() / i64::try_from(scores.len()).unwrap_or(1) }
}

fn share(part: i64, whole: i64) -> i64 {
    i64::try_from(i128::from(part) * i128::from(MAX) / i128::from(whole)).unwrap_or(MAX)
}
