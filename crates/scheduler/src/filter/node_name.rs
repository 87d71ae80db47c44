//! A pod that names its node runs there or nowhere.
//!
//! Source: kubernetes `plugins/nodename/node_name.go`.

use super::Refusal;
use crate::facts::{NodeState, PodFacts};

pub fn filter(pod: &PodFacts, node: &NodeState) -> Result<(), Refusal> {
    match &pod.node {
        Some(name) if *name != node.facts.name => Err(Refusal::firm("node(s) didn't match the requested node name")),
        Some(_) | None => Ok(()),
    }
}
