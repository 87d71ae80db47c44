//! ClusterRole: what may be done in every namespace, or outside them.
//!
//! Source: kubernetes `pkg/registry/rbac/clusterrole/strategy.go`.

use api::field::Error;
use api::{selector, validation};
use serde_json::Value;

use super::role::rule;
use crate::kind::{Kind, Strategy};
use crate::place::Place;

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().validating(validate),
        name: validation::name_is_path_segment,
        create_on_update: true,
        ..Kind::cluster("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles")
    }
}

fn validate(role: &Value, _: Option<&Value>) -> Vec<Error> {
    let root = Place::root(role);
    let mut errors = Vec::new();
    for one in root.child("rules").items() {
        rule(&one, false, &mut errors);
    }
    let aggregation = root.child("aggregationRule");
    let selectors = aggregation.child("clusterRoleSelectors");
    if aggregation.is_set() && selectors.is_empty() {
        errors.push(selectors.required("at least one clusterRoleSelector required if aggregationRule is non-nil"));
    }
    for one in selectors.items() {
        errors.extend(selector::validate_label_selector(one.value, &one.path));
    }
    errors
}
