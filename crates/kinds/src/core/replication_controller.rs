//! ReplicationController: what ReplicaSets were before they had selectors of more than labels.
//!
//! Source: kubernetes `pkg/registry/core/replicationcontroller/strategy.go`, `pkg/apis/core/v1/defaults.go`.

use std::collections::BTreeMap;

use api::field::Error;
use api::selector::Selector;
use api::{names, validation};
use jiff::Timestamp;
use serde_json::Value;

use crate::apps::{replica_set, template};
use crate::kind::{Kind, Strategy, Subresource};
use crate::place::Place;
use crate::strategy::spec_changed;
use crate::table;
use crate::value::{is_empty, number, object, set};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none()
            .defaulting(fill)
            .preparing(replica_set::prepare)
            .validating(validate)
            .warning(warnings),
        subresources: vec![
            Subresource::scale(),
            Subresource::status(Strategy::status().defaulting(fill).validating(validate_status)),
        ],
        columns: replica_set::columns(),
        row: Box::new(row),
        fields: Box::new(|controller| vec![("status.replicas", number(&controller["status"]["replicas"]).to_string())]),
        name,
        orphans: true,
        ..Kind::namespaced("", "v1", "ReplicationController", "replicationcontrollers")
            .short(&["rc"])
            .categories(&["all"])
    }
}

/// Of the names of the kinds that are declared by upstream's newer rules; these count bytes.
///
/// Source: kubernetes `pkg/apis/core/validation/validation.go`, `ValidateReplicationController`.
fn name(name: &str, prefix: bool) -> names::Messages {
    validation::name_is_dns_subdomain(name, prefix).into_iter().map(names::in_bytes).collect()
}

/// On an update upstream looks at the template that was.
fn warnings(controller: &Value, old: Option<&Value>) -> Vec<String> {
    match old {
        Some(old) if spec_changed(controller, old) => replica_set::template_warnings(old),
        Some(_) => Vec::new(),
        None => replica_set::warnings(controller, None),
    }
}

/// The template's labels stand for a selector, and for labels of its own.
fn fill(controller: &mut Value) {
    if let Some(spec) = object(controller, "spec") {
        replica_set::fill_spec(spec);
    }
    let labels = controller["spec"]["template"]["metadata"]["labels"].clone();
    if is_empty(&labels) {
        return;
    }
    if let Some(spec) = object(controller, "spec").filter(|spec| is_empty(&spec["selector"])) {
        set(spec, "selector", labels.clone());
    }
    if let Some(metadata) = object(controller, "metadata").filter(|metadata| is_empty(&metadata["labels"])) {
        set(metadata, "labels", labels);
    }
}

fn row(controller: &Value, now: Timestamp) -> Vec<Value> {
    let mut row = replica_set::row(controller, now);
    row.pop();
    row.push(table::labels(&controller["spec"]["selector"]));
    row
}

fn validate(controller: &Value, _old: Option<&Value>) -> Vec<Error> {
    let spec = Place::root(controller).child("spec");
    let mut errors = Vec::new();
    spec.child("minReadySeconds").not_negative(&mut errors);
    let selector = spec.child("selector");
    selector.must_be_set(&mut errors);
    spec.child("replicas").not_negative(&mut errors);
    let labels: BTreeMap<String, String> =
        selector.entries().map(|(key, value)| (key.to_owned(), value.text().to_owned())).collect();
    let template = spec.child("template");
    if template.is_set() {
        template::template(&template, &Selector::from_labels(&labels), "ReplicationController", &mut errors);
    } else {
        errors.push(template.required(""));
    }
    errors
}

fn validate_status(controller: &Value, _old: Option<&Value>) -> Vec<Error> {
    let mut errors = Vec::new();
    let parts = ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
    template::counts(&Place::root(controller).child("status"), &parts, &["observedGeneration"], &mut errors);
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_templates_labels_stand_for_what_is_not_said() {
        let mut controller = json!({"metadata": {}, "spec": {"template": {"metadata": {"labels": {"a": "b"}}}}});
        fill(&mut controller);
        assert_eq!(controller["spec"]["selector"], json!({"a": "b"}));
        assert_eq!(controller["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(controller["spec"]["replicas"], 1);
    }
}
