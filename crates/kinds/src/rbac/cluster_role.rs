//! ClusterRole: what may be done in every namespace, or outside them.
//!
//! Source: kubernetes `pkg/registry/rbac/clusterrole/strategy.go`.

use api::field::Error;
use api::validation;
use serde_json::Value;

use super::role::rule;
use crate::kind::{Kind, Strategy};
use crate::place::Place;
use crate::strategy::same;

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().validating(validate),
        name: validation::name_is_path_segment,
        create_on_update: true,
        ..Kind::cluster("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles")
    }
}

fn validate(role: &Value, old: Option<&Value>) -> Vec<Error> {
    let root = Place::root(role);
    let mut errors = Vec::new();
    for one in root.child("rules").items() {
        rule(&one, false, &mut errors);
    }
    // The roles that exist from the start are put together once, when the server writes them.
    let initial = role["metadata"]["labels"]["kubernetes.io/bootstrapping"] == "rbac-defaults";
    let aggregation = root.child("aggregationRule");
    let kept = old.is_some_and(|old| same(aggregation.value, &old["aggregationRule"]));
    if aggregation.is_set() && !initial && !kept {
        let why = "cluster roles are not put together from others; list the rules";
        errors.push(aggregation.forbidden(format!("not supported yet by coracle: {why}")));
    }
    errors
}
