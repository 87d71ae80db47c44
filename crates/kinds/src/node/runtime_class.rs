//! RuntimeClass: a name for how the containers of a pod are run.
//!
//! Sources: kubernetes `pkg/registry/node/runtimeclass/strategy.go`, `pkg/apis/node/validation/validation.go`.

use std::collections::BTreeSet;

use api::field::Error;
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::core::pod_default::canonical_list;
use crate::core::pod_validation::{resource_list, tolerations};
use crate::core::service_validation::labels;
use crate::kind::{Column, Kind, Strategy};
use crate::place::Place;
use crate::table;
use crate::value::text;

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill).validating(validate),
        columns: vec![
            Column::name(),
            Column::text("Handler", "The configuration of the node's runtime that runs its pods."),
            Column::age(),
        ],
        row: Box::new(row),
        create_on_update: true,
        unconditional_update: false,
        ..Kind::cluster("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses")
    }
}

fn fill(class: &mut Value) {
    if let Some(list) = class.get_mut("overhead").and_then(|overhead| overhead.get_mut("podFixed")) {
        canonical_list(list);
    }
}

fn validate(class: &Value, old: Option<&Value>) -> Vec<Error> {
    let root = Place::root(class);
    let (handler, scheduling) = (root.child("handler"), root.child("scheduling"));
    let mut errors = Vec::new();
    match old {
        // Upstream's rules for what is created are newer, and count bytes.
        None => handler
            .require(|text| names::is_dns1123_label(text).into_iter().map(names::in_bytes).collect(), &mut errors),
        Some(old) => {
            handler.require(names::is_dns1123_label, &mut errors);
            if text(&old["handler"]) != handler.text() {
                errors.push(Error::invalid(&handler.path, Value::Null, "field is immutable"));
            }
        }
    }
    let limits =
        Place::new(root.child("overhead").child("podFixed").value, root.path.child("overhead").child("limits"));
    resource_list(&limits, &mut errors);
    labels(&scheduling.child("nodeSelector"), &mut errors);
    tolerations(&scheduling.child("tolerations"), &mut errors);
    let mut seen = BTreeSet::new();
    for toleration in scheduling.child("tolerations").items() {
        let key = ["key", "operator", "value", "effect"].map(|field| toleration.child(field).text());
        if !seen.insert(key) {
            errors.push(toleration.duplicate());
        }
    }
    errors
}

fn row(class: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(table::name(class)), json!(text(&class["handler"])), table::age(class, now)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(class: Value, old: Option<Value>, expected: &[&str]) {
        let errors: Vec<String> = validate(&class, old.as_ref()).iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), expected.len(), "{errors:?}");
        for (error, expected) in errors.iter().zip(expected) {
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_handler_is_a_label_and_stays() {
        let class = |handler: &str| json!({"metadata": {"name": "c"}, "handler": handler});
        check(class("runc"), None, &[]);
        check(class(""), None, &["handler: Required value"]);
        check(class("Run C"), None, &["handler: Invalid value: \"Run C\""]);
        check(class("runc"), Some(class("kata")), &["handler: Invalid value: null: field is immutable"]);
    }

    #[test]
    fn what_is_merged_into_pods_is_checked_here() {
        let toleration = json!({"key": "a", "operator": "Exists"});
        check(
            json!({"handler": "runc", "overhead": {"podFixed": {"cpu": "-1"}}, "scheduling": {"tolerations": [toleration, toleration]}}),
            None,
            &["overhead.limits[cpu]: Invalid value: \"-1\"", "scheduling.tolerations[1]: Duplicate value"],
        );
    }
}
