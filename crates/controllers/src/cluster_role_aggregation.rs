//! Cluster roles that are put together from others, by labels.
//!
//! Source: kubernetes `pkg/controller/clusterroleaggregation/clusterroleaggregation_controller.go`.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use api::key::{GroupResource, Key};
use api::selector::Selector;
use client::Resource;
use client::informer::Delta;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use crate::action::Action;
use crate::shell::{Controller, Run};
use crate::views::{Views, decode};

/// What the decision about one role rests on.
pub struct Observed {
    pub role: ClusterRole,
    /// All others, by name.
    pub others: Vec<ClusterRole>,
}

pub fn reconcile(observed: &Observed) -> Vec<Action> {
    let Observed { role, others } = observed;
    let Some(aggregation) = &role.aggregation_rule else { return Vec::new() };
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in aggregation.cluster_role_selectors.iter().flatten() {
        // The server has validated it; one that cannot be read selects nothing.
        let selector = Selector::from_json(&json!(selector)).unwrap_or_else(|_| Selector::nothing());
        let selected = others.iter().filter(|other| selector.matches(other.metadata.labels.as_ref().unwrap_or(NONE)));
        for rule in selected.flat_map(|other| other.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    if role.rules.as_deref().unwrap_or_default() == rules {
        return Vec::new();
    }
    let object = json!(ClusterRole { rules: Some(rules), ..role.clone() });
    vec![Action::Update { of: Resource::of::<ClusterRole>(), subresource: None, object }]
}

const NONE: &std::collections::BTreeMap<String, String> = &std::collections::BTreeMap::new();

/// Observes cluster roles for the shell.
#[derive(Default)]
pub struct ClusterRoleAggregation {
    /// The roles that are put together: every role that changes concerns them.
    aggregated: Mutex<BTreeSet<Key>>,
}

impl Controller for ClusterRoleAggregation {
    fn name(&self) -> &'static str {
        "clusterrole-aggregation-controller"
    }

    fn inputs(&self) -> Vec<GroupResource> {
        vec![Resource::of::<ClusterRole>().resource]
    }

    fn affected(&self, delta: &Delta, _: &Views) -> Vec<Key> {
        let mut aggregated = self.aggregated.lock().unwrap_or_else(PoisonError::into_inner);
        if delta.new.as_ref().is_some_and(|role| is_aggregated(role)) {
            aggregated.insert(delta.key.clone());
        } else {
            aggregated.remove(&delta.key);
        }
        aggregated.iter().cloned().collect()
    }

    fn plan(&self, run: &Run<'_>) -> Vec<Action> {
        let Some(role) = run.views.get::<ClusterRole>(run.key) else { return Vec::new() };
        let others = run.views.of::<ClusterRole>().iter().filter(|other| other.key() != run.key);
        reconcile(&Observed { role, others: others.filter_map(|other| decode(other)).collect() })
    }
}

/// Reads no more of a role than it must: there are many, and few are put together.
fn is_aggregated(role: &api::object::Object) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Outline {
        aggregation_rule: Option<IgnoredAny>,
    }
    serde_json::from_slice(role.draft().body()).is_ok_and(|outline: Outline| outline.aggregation_rule.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::from_yaml;

    fn role(name: &str, labels: &str, rules: &str) -> ClusterRole {
        from_yaml(&format!("{{metadata: {{name: {name}, labels: {{{labels}}}}}, rules: [{rules}]}}"))
    }

    /// The verbs of the rules that are written, or `None` when nothing is.
    fn verbs(has: &str, others: Vec<ClusterRole>) -> Option<Vec<String>> {
        let role = from_yaml(&format!(
            "{{metadata: {{name: all}}, rules: [{has}], aggregationRule: {{clusterRoleSelectors: \
             [{{matchLabels: {{to: all}}}}, {{matchExpressions: [{{key: more, operator: Exists}}]}}]}}}}"
        ));
        let actions = reconcile(&Observed { role, others });
        let [Action::Update { object, .. }] = actions.as_slice() else { return None };
        let rules: Vec<PolicyRule> = serde_json::from_value(object["rules"].clone()).expect("rules");
        Some(rules.into_iter().flat_map(|rule| rule.verbs).collect())
    }

    #[test]
    fn gathers_the_rules_of_what_it_selects_each_once() {
        let (get, list) = ("{verbs: [get], resources: [a]}", "{verbs: [list], resources: [a]}");
        let others = || {
            vec![
                role("one", "to: all", get),
                role("three", "more: ''", &format!("{get}, {list}")),
                role("two", "to: others", "{verbs: [delete], resources: [a]}"),
            ]
        };
        assert_eq!(verbs("{verbs: [old], resources: [a]}", others()), Some(vec!["get".to_owned(), "list".to_owned()]));
        assert_eq!(verbs(&format!("{get}, {list}"), others()), None, "what is right is left alone");
    }

    #[test]
    fn loses_the_rules_of_what_it_no_longer_selects() {
        assert_eq!(verbs("{verbs: [get], resources: [a]}", Vec::new()), Some(Vec::new()));
        assert_eq!(verbs("", Vec::new()), None);
    }
}
