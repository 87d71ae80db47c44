//! Role: what may be done in one namespace.
//!
//! Source: kubernetes `pkg/registry/rbac/role/strategy.go`.

use api::field::Error;
use api::validation;
use serde_json::Value;

use crate::kind::{Kind, Strategy};
use crate::place::Place;

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().validating(validate),
        name: validation::name_is_path_segment,
        create_on_update: true,
        ..Kind::namespaced("rbac.authorization.k8s.io", "v1", "Role", "roles")
    }
}

fn validate(role: &Value, _old: Option<&Value>) -> Vec<Error> {
    let mut errors = Vec::new();
    for one in Place::root(role).child("rules").items() {
        rule(&one, true, &mut errors);
    }
    errors
}

/// One rule of a role, or of a cluster role when it is not `namespaced`.
///
/// Source: kubernetes `pkg/apis/rbac/validation/validation.go`, `ValidatePolicyRule`.
pub(super) fn rule(rule: &Place<'_>, namespaced: bool, errors: &mut Vec<Error>) {
    let (verbs, urls) = (rule.child("verbs"), rule.child("nonResourceURLs"));
    let [groups, resources, named] = ["apiGroups", "resources", "resourceNames"].map(|field| rule.child(field));
    if verbs.is_empty() {
        errors.push(verbs.required(""));
    }
    if !urls.is_empty() {
        if namespaced {
            errors.push(urls.invalid("namespaced rules cannot apply to non-resource URLs"));
        }
        if ![groups, resources, named].iter().all(Place::is_empty) {
            errors.push(urls.invalid("rules cannot apply to both regular resources and non-resource URLs"));
        }
        return;
    }
    if groups.is_empty() {
        errors.push(groups.required("resource rules must supply at least one api group"));
    }
    if resources.is_empty() {
        errors.push(resources.required("resource rules must supply at least one resource"));
    }
}
