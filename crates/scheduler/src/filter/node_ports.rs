//! Two pods cannot have the same port of a host.
//!
//! Source: kubernetes `plugins/nodeports/node_ports.go`.

use super::Refusal;
use crate::facts::{NodeState, PodFacts};

pub fn filter(pod: &PodFacts, node: &NodeState) -> Result<(), Refusal> {
    let taken = pod.ports.iter().any(|port| node.used_ports.iter().any(|used| port.conflicts(used)));
    if taken {
        let reasons = vec!["node(s) didn't have free ports for the requested pod ports".to_owned()];
        return Err(Refusal { reasons, is_resolvable: true });
    }
    Ok(())
}
