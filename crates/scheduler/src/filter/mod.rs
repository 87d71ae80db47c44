//! Filters: whether a pod may run on a node, and if not, why.
//!
//! They run in this order, and the first that refuses gives the node's reason.
//! Source: kubernetes `pkg/scheduler/apis/config/v1/default_plugins.go`.

use crate::cluster::Cluster;
use crate::facts::{NodeState, PodFacts};

pub mod node_affinity;
pub mod node_name;
pub mod node_ports;
pub mod node_resources_fit;
pub mod node_unschedulable;
pub mod taint_toleration;

/// Why a node was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reasons: Vec<String>,
    /// Whether removing less important pods from the node could help.
    pub is_resolvable: bool,
}

impl Refusal {
    /// Nothing that happens to other pods changes it.
    pub fn firm(reason: &str) -> Self {
        Self { reasons: vec![reason.to_owned()], is_resolvable: false }
    }
}

type Filter = fn(&PodFacts, &NodeState) -> Result<(), Refusal>;

const ALL: &[Filter] = &[
    node_unschedulable::filter,
    node_name::filter,
    taint_toleration::filter,
    node_affinity::filter,
    node_ports::filter,
    node_resources_fit::filter,
];

/// Runs all filters.
///
/// # Errors
/// The first refusal.
pub fn run(pod: &PodFacts, node: &NodeState) -> Result<(), Refusal> {
    ALL.iter().try_for_each(|filter| filter(pod, node))
}

/// Runs all filters, with and without the pods that are nominated for the node and not less important.
///
/// They hold their room, but what needs them near must not count on them.
/// Source: `pkg/scheduler/framework/runtime/framework.go`, `RunFilterPluginsWithNominatedPods`.
///
/// # Errors
/// The first refusal.
pub fn run_with_nominated(pod: &PodFacts, node: &NodeState, cluster: &Cluster) -> Result<(), Refusal> {
    let is_ahead = |other: &PodFacts| other.priority >= pod.priority && other.uid != pod.uid;
    let ahead = cluster.nominated_for(&node.facts.name).filter(|other| is_ahead(other));
    let mut with_them = None;
    for other in ahead {
        with_them.get_or_insert_with(|| node.clone()).place(other.clone());
    }
    if let Some(node) = &with_them {
        run(pod, node)?;
    }
    run(pod, node)
}
