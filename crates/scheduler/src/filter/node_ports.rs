//! Two pods cannot have the same port of a host.
//!
//! Source: kubernetes `plugins/nodeports/node_ports.go`.

use super::Refusal;
use crate::facts::{NodeState, PodFacts};

pub fn filter(pod: &PodFacts, node: &NodeState) -> Result<(), Refusal> {
    let taken = pod.ports.iter().any(|port| node.used_ports.iter().any(|used| port.conflicts(used)));
    if taken {
        return Err(Refusal::by_pods("node(s) didn't have free ports for the requested pod ports"));
    }
    Ok(())
}
