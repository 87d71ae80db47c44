//! ClusterRole: what may be done in every namespace, or outside them.
//!
//! Source: kubernetes `pkg/registry/rbac/clusterrole/strategy.go`.

use api::field::Error;
use api::names;
use serde_json::Value;

use super::role::rule;
use crate::kind::{Kind, Strategy};
use crate::place::Place;

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(|_| ()).validating(validate),
        name: names::is_path_segment_name,
        create_on_update: true,
        ..Kind::cluster("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles")
    }
}

fn validate(role: &Value, _old: Option<&Value>) -> Vec<Error> {
    let root = Place::root(role);
    let mut errors = Vec::new();
    for one in root.child("rules").items() {
        rule(&one, false, &mut errors);
    }
    let aggregation = root.child("aggregationRule");
    if aggregation.is_set() {
        let why = "cluster roles are not put together from others; list the rules";
        errors.push(aggregation.forbidden(format!("not supported yet by coracle: {why}")));
    }
    errors
}
