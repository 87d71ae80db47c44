//! Node selectors and required node affinity.
//!
//! Source: kubernetes `plugins/nodeaffinity/node_affinity.go`, component-helpers `scheduling/corev1/nodeaffinity`.

use std::collections::BTreeMap;

use api::selector::{Operator, Requirement};
use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use super::Refusal;
use crate::facts::{NodeFacts, NodeState, PodFacts};

pub fn filter(pod: &PodFacts, node: &NodeState) -> Result<(), Refusal> {
    if is_selected(pod, &node.facts) {
        Ok(())
    } else {
        Err(Refusal::firm("node(s) didn't match Pod's node affinity/selector"))
    }
}

/// Whether a pod's selector and required terms match a node.
pub fn is_selected(pod: &PodFacts, node: &NodeFacts) -> bool {
    let selected = pod.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value));
    let affine = pod
        .required
        .as_ref()
        .is_none_or(|required| required.node_selector_terms.iter().any(|term| term_matches(term, node)));
    selected && affine
}

/// Whether all requirements of a term hold; an empty term matches nothing, as does one that is malformed.
pub fn term_matches(term: &NodeSelectorTerm, node: &NodeFacts) -> bool {
    let (expressions, fields) = (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
    if expressions.clone().next().is_none() && fields.clone().next().is_none() {
        return false;
    }
    let node_fields = BTreeMap::from([("metadata.name".to_owned(), node.name.clone())]);
    expressions.clone().all(|expression| holds(expression, &node.labels))
        && fields.clone().all(|field| field_holds(field, &node_fields))
}

fn holds(requirement: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let operator = match requirement.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan,
        "Lt" => Operator::LessThan,
        _ => return false,
    };
    let values = requirement.values.clone().unwrap_or_default();
    Requirement::new(requirement.key.clone(), operator, values).is_ok_and(|requirement| requirement.matches(labels))
}

/// Fields know only `In` and `NotIn`, each with one value.
fn field_holds(requirement: &NodeSelectorRequirement, fields: &BTreeMap<String, String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let [wanted] = values else { return false };
    let is_equal = fields.get(&requirement.key) == Some(wanted);
    match requirement.operator.as_str() {
        "In" => is_equal,
        "NotIn" => !is_equal,
        _ => false,
    }
}
