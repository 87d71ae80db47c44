//! Nodes in domains with fewer pods of the kind are better.
//!
//! Source: kubernetes `plugins/podtopologyspread/scoring.go`.

use std::collections::BTreeMap;

use super::MAX;
use crate::cluster::Cluster;
use crate::facts::{NodeState, PodFacts};
use crate::filter::pod_topology_spread::node_counts;
use crate::terms::Spread;

const HOSTNAME: &str = "kubernetes.io/hostname";

/// 0 to 100 for each node; 0 for all when the pod has no such preference.
pub fn scores(pod: &PodFacts, nodes: &[&NodeState], cluster: &Cluster) -> Vec<i64> {
    let constraints: Vec<&Spread> = pod.spread.iter().filter(|spread| !spread.is_required).collect();
    if constraints.is_empty() {
        return vec![0; nodes.len()];
    }
    let has_labels =
        |node: &NodeState| constraints.iter().all(|spread| node.facts.labels.contains_key(&spread.topology_key));
    let eligible: Vec<&NodeState> = nodes.iter().copied().filter(|node| has_labels(node)).collect();
    let counts: Vec<BTreeMap<&str, i64>> =
        constraints.iter().map(|spread| domains(pod, spread, &eligible, cluster, &has_labels)).collect();
    let counted = constraints.iter().zip(&counts);
    let sum = |node: &NodeState| {
        let each = counted.clone().filter_map(|(spread, counts)| {
            let domain = node.facts.labels.get(&spread.topology_key)?;
            let size = if spread.topology_key == HOSTNAME { eligible.len() } else { counts.len() };
            let count = counts.get(domain.as_str()).copied().unwrap_or(0);
            Some(weighted(count, size, spread.max_skew))
        });
        each.sum::<f64>()
    };
    let sums: Vec<Option<i64>> = nodes.iter().map(|node| has_labels(node).then(|| rounded(sum(node)))).collect();
    let known = || sums.iter().flatten().copied();
    let (least, most) = (known().min().unwrap_or(0), known().max().unwrap_or(0));
    let share = |sum: &Option<i64>| match sum {
        None => 0,
        Some(_) if most == 0 => MAX,
        Some(sum) => MAX * (most + least - sum) / most,
    };
    sums.iter().map(share).collect()
}

/// How many pods count in each domain that an eligible node belongs to.
fn domains<'a>(
    pod: &PodFacts,
    spread: &Spread,
    eligible: &[&'a NodeState],
    cluster: &'a Cluster,
    has_labels: &dyn Fn(&NodeState) -> bool,
) -> BTreeMap<&'a str, i64> {
    let domain = |node: &'a NodeState| node.facts.labels.get(&spread.topology_key).map(String::as_str);
    let mut counts: BTreeMap<&str, i64> = eligible.iter().filter_map(|node| domain(node)).map(|key| (key, 0)).collect();
    // A host's own pods count whatever the policies say of it.
    let counting = |node: &&NodeState| {
        has_labels(node) && (spread.topology_key == HOSTNAME || node_counts(pod, &node.facts, spread))
    };
    for node in cluster.nodes().values().filter(counting) {
        if let Some(count) = domain(node).and_then(|key| counts.get_mut(key)) {
            let pods = node.pods.values().filter(|other| other.counts_for(spread, pod)).count();
            *count += i64::try_from(pods).unwrap_or(i64::MAX);
        }
    }
    counts
}

/// Fewer domains weigh less, so that many hosts do not drown a few zones; a greater permitted skew matters less.
#[allow(clippy::cast_precision_loss, reason = "counts of pods and nodes")]
fn weighted(count: i64, domains: usize, max_skew: i64) -> f64 {
    count as f64 * (domains as f64 + 2.0).ln() + (max_skew - 1) as f64
}

#[allow(clippy::cast_possible_truncation, reason = "a sum of counts of pods")]
fn rounded(sum: f64) -> i64 {
    sum.round() as i64
}
