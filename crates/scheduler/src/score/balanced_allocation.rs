//! Nodes whose CPU and memory are used evenly, and stay so with the pod, are better.
//!
//! Source: kubernetes `plugins/noderesources/balanced_allocation.go`.

use super::MAX;
use crate::facts::{NodeState, PodFacts};

/// 50 to 100; 0 for a pod that requests neither: it does not tip the balance.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a score of two digits")]
pub fn score(pod: &PodFacts, node: &NodeState) -> i64 {
    if pod.requests.get("cpu") == 0 && pod.requests.get("memory") == 0 {
        return 0;
    }
    let balance = |with_pod: bool| {
        let fraction = |name: &str| {
            let capacity = node.facts.allocatable.get(name);
            let added = if with_pod { pod.requests.get(name) } else { 0 };
            let requested = node.requested.get(name).saturating_add(added);
            (capacity > 0).then(|| (requested as f64 / capacity as f64).min(1.0))
        };
        let deviation = match (fraction("cpu"), fraction("memory")) {
            (Some(cpu), Some(memory)) => ((cpu - memory) / 2.0).abs(),
            _ => 0.0,
        };
        ((1.0 - deviation) * MAX as f64) as i64
    };
    MAX / 2 + (MAX / 2 + balance(true) - balance(false)) / 2
}
