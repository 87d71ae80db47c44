//! Nodes that match preferred terms are better.
//!
//! Source: kubernetes `plugins/nodeaffinity/node_affinity.go`.

use crate::facts::{NodeState, PodFacts};
use crate::filter::node_affinity::term_matches;

/// The sum of the weights of the terms that match.
pub fn preference(pod: &PodFacts, node: &NodeState) -> i64 {
    let matching = pod.preferred.iter().filter(|term| term_matches(&term.preference, &node.facts));
    matching.map(|term| i64::from(term.weight)).sum()
}
