//! What a pod says about where other pods run: affinity to them, distance from them, and an even spread.
//!
//! Source: kube-scheduler `framework/types.go` (`AffinityTerm`), kubernetes `plugins/podtopologyspread/common.go`.

use std::collections::{BTreeMap, BTreeSet};

use api::selector::{Operator, Requirement, Selector};
use k8s_openapi::api::core::v1::{Affinity, PodAffinityTerm, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// The labels of each namespace, by name.
pub type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

/// Pods that are meant, and the label of nodes by which near and far are told apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    namespaces: BTreeSet<String>,
    namespace_selector: Selector,
    selector: Selector,
    pub topology_key: String,
}

impl Term {
    fn new(term: &PodAffinityTerm, namespace: &str) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(namespace.to_owned());
        }
        Self {
            namespaces,
            namespace_selector: selector(term.namespace_selector.as_ref()),
            selector: selector(term.label_selector.as_ref()),
            topology_key: term.topology_key.clone(),
        }
    }

    /// Whether a pod with these labels, in this namespace, is meant.
    pub fn matches(&self, namespace: &str, labels: &BTreeMap<String, String>, namespaces: &Namespaces) -> bool {
        const NONE: &BTreeMap<String, String> = &BTreeMap::new();
        let in_namespace = self.namespaces.contains(namespace)
            || self.namespace_selector.matches(namespaces.get(namespace).unwrap_or(NONE));
        in_namespace && self.selector.matches(labels)
    }
}

/// What a pod asks of the pods near it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Neighbours {
    pub required: Vec<Term>,
    pub forbidden: Vec<Term>,
    /// With weights; those of pods to stay away from are negative.
    pub preferred: Vec<(i64, Term)>,
}

impl Neighbours {
    pub fn new(affinity: &Affinity, namespace: &str) -> Self {
        let (near, far) = (affinity.pod_affinity.as_ref(), affinity.pod_anti_affinity.as_ref());
        let terms = |list: Option<&Vec<PodAffinityTerm>>| -> Vec<Term> {
            list.into_iter().flatten().map(|term| Term::new(term, namespace)).collect()
        };
        let liked = near.and_then(|near| near.preferred_during_scheduling_ignored_during_execution.as_ref());
        let disliked = far.and_then(|far| far.preferred_during_scheduling_ignored_during_execution.as_ref());
        let liked = liked.into_iter().flatten().map(|term| (1, term));
        let disliked = disliked.into_iter().flatten().map(|term| (-1, term));
        let weighted = |(sign, term): (i64, &k8s_openapi::api::core::v1::WeightedPodAffinityTerm)| {
            (sign * i64::from(term.weight), Term::new(&term.pod_affinity_term, namespace))
        };
        Self {
            required: terms(near.and_then(|near| near.required_during_scheduling_ignored_during_execution.as_ref())),
            forbidden: terms(far.and_then(|far| far.required_during_scheduling_ignored_during_execution.as_ref())),
            preferred: liked.chain(disliked).map(weighted).collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.required.is_empty() && self.forbidden.is_empty() && self.preferred.is_empty()
    }
}

/// How evenly pods are spread over the values of a node's label.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// Whether nodes that break it are refused, not only worse.
    pub is_required: bool,
    pub max_skew: i64,
    pub topology_key: String,
    pub selector: Selector,
    pub min_domains: usize,
    /// Whether nodes count that the pod's node selector and affinity refuse, or its lack of tolerations.
    pub counts_unselected: bool,
    pub counts_tainted: bool,
}

impl Spread {
    pub fn new(constraint: &TopologySpreadConstraint, labels: &BTreeMap<String, String>) -> Self {
        let mut selector = selector(constraint.label_selector.as_ref());
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = labels.get(key)
                && let Ok(same) = Requirement::new(key.clone(), Operator::Equals, vec![value.clone()])
            {
                selector = selector.and(same);
            }
        }
        Self {
            is_required: constraint.when_unsatisfiable == "DoNotSchedule",
            max_skew: constraint.max_skew.into(),
            topology_key: constraint.topology_key.clone(),
            selector,
            min_domains: constraint.min_domains.and_then(|number| number.try_into().ok()).unwrap_or(1),
            counts_unselected: constraint.node_affinity_policy.as_deref() == Some("Ignore"),
            counts_tainted: constraint.node_taints_policy.as_deref() != Some("Honor"),
        }
    }
}

/// An absent selector selects nothing. The server has validated it; one that cannot be read selects nothing either.
fn selector(of: Option<&LabelSelector>) -> Selector {
    let value = serde_json::to_value(of).unwrap_or_default();
    Selector::from_json(&value).unwrap_or_else(|_| Selector::nothing())
}
