//! What the pods on a node request must fit into what it can allocate.
//!
//! Source: kubernetes `plugins/noderesources/fit.go`.

use super::Refusal;
use crate::facts::{NodeState, PodFacts};

pub fn filter(pod: &PodFacts, node: &NodeState) -> Result<(), Refusal> {
    let mut reasons = Vec::new();
    let mut is_resolvable = true;
    let allocatable = &node.facts.allocatable;
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= allocatable.get("pods") {
        reasons.push("Too many pods".to_owned());
    }
    // CPU, memory and storage are named first, then the others in order.
    let place =
        |name: &str| ["cpu", "memory", "ephemeral-storage"].iter().position(|known| *known == name).unwrap_or(3);
    let mut requests: Vec<(&str, i64)> = pod.requests.iter().filter(|(_, amount)| *amount > 0).collect();
    requests.sort_by_key(|(name, _)| (place(name), *name));
    for (name, amount) in requests {
        let capacity = allocatable.get(name);
        if amount > capacity.saturating_sub(node.requested.get(name)) {
            reasons.push(format!("Insufficient {name}"));
            is_resolvable &= amount <= capacity;
        }
    }
    if reasons.is_empty() { Ok(()) } else { Err(Refusal { reasons, is_resolvable }) }
}
