//! Filters: whether a pod may run on a node, and if not, why.
//!
//! They run in this order, and the first that refuses gives the node's reason.
//! Source: kubernetes `pkg/scheduler/apis/config/v1/default_plugins.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cluster::Cluster;
use crate::facts::{NodeState, PodFacts};

pub mod inter_pod_affinity;
pub mod node_affinity;
pub mod node_name;
pub mod node_ports;
pub mod node_resources_fit;
pub mod node_unschedulable;
pub mod pod_topology_spread;
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

    /// Other pods are in the way.
    pub fn by_pods(reason: &str) -> Self {
        Self { reasons: vec![reason.to_owned()], is_resolvable: true }
    }
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 Too many pods.`
pub fn histogram<'a>(nodes: usize, reasons: impl Iterator<Item = &'a String>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut parts: Vec<String> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
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

/// What filters know of the whole cluster when they look at one node: where the pods are that matter to the one to place.
#[derive(Clone, Debug)]
pub struct Cycle<'a> {
    pod: &'a PodFacts,
    cluster: &'a Cluster,
    affinity: inter_pod_affinity::State,
    spread: pod_topology_spread::State,
}

impl<'a> Cycle<'a> {
    pub fn new(pod: &'a PodFacts, cluster: &'a Cluster) -> Self {
        let affinity = inter_pod_affinity::State::new(pod, cluster);
        Self { pod, cluster, affinity, spread: pod_topology_spread::State::new(pod, cluster) }
    }

    /// Runs all filters, with and without the pods that are nominated for the node and not less important.
    ///
    /// They hold their room, but what needs them near must not count on them.
    /// Source: `pkg/scheduler/framework/runtime/framework.go`, `RunFilterPluginsWithNominatedPods`.
    ///
    /// # Errors
    /// The first refusal.
    pub fn run(&self, node: &NodeState) -> Result<(), Refusal> {
        let is_ahead = |other: &PodFacts| other.priority >= self.pod.priority && other.uid != self.pod.uid;
        let mut ahead = self.cluster.nominated_for(&node.facts.name).filter(|other| is_ahead(other)).peekable();
        if ahead.peek().is_some() {
            let mut trial = Trial::new(self, node);
            ahead.for_each(|other| trial.place(other.clone()));
            trial.cycle.run_plainly(&trial.node)?;
        }
        self.run_plainly(node)
    }

    fn run_plainly(&self, node: &NodeState) -> Result<(), Refusal> {
        ALL.iter().try_for_each(|filter| filter(self.pod, node))?;
        pod_topology_spread::filter(self.pod, node, &self.spread)?;
        inter_pod_affinity::filter(self.pod, node, &self.affinity, self.cluster.namespaces())
    }

    fn count(&mut self, other: &PodFacts, node: &NodeState, by: i64) {
        self.affinity.count(self.pod, other, &node.facts, self.cluster.namespaces(), by);
        self.spread.count(self.pod, other, &node.facts, by);
    }
}

/// A node as it would be with other pods on it.
pub struct Trial<'a> {
    cycle: Cycle<'a>,
    node: NodeState,
}

impl<'a> Trial<'a> {
    pub fn new(cycle: &Cycle<'a>, node: &NodeState) -> Self {
        Self { cycle: cycle.clone(), node: node.clone() }
    }

    pub fn place(&mut self, other: Arc<PodFacts>) {
        self.cycle.count(&other, &self.node, 1);
        self.node.place(other);
    }

    pub fn remove(&mut self, other: &PodFacts) {
        if self.node.remove(&other.uid).is_some() {
            self.cycle.count(other, &self.node, -1);
        }
    }

    /// As [`Cycle::run`].
    ///
    /// # Errors
    /// The first refusal.
    pub fn run(&self) -> Result<(), Refusal> {
        self.cycle.run(&self.node)
    }
}
