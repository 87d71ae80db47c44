//! Nodes with fewer `PreferNoSchedule` taints that the pod does not tolerate are better.
//!
//! Source: kubernetes `plugins/tainttoleration/taint_toleration.go`.

use client::toleration::tolerates;

use crate::facts::{NodeState, PodFacts};

/// How many taints of the node would rather keep the pod away.
pub fn intolerable(pod: &PodFacts, node: &NodeState) -> i64 {
    let advising = node.facts.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
    let resented = advising.filter(|taint| !pod.tolerations.iter().any(|toleration| tolerates(toleration, taint)));
    resented.count().try_into().unwrap_or(i64::MAX)
}
