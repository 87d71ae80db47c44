//! ReplicaSet: a number of pods of one template.
//!
//! Source: kubernetes `pkg/registry/apps/replicaset/strategy.go`.

use api::field::Error;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::template;
use crate::core::{pod_default, pod_support, pod_warnings};
use crate::kind::{Column, Kind, Strategy, Subresource};
use crate::place::Place;
use crate::strategy::{generation, keep_status, spec_changed};
use crate::table;
use crate::value::{default, drop_zero, number, object};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill).preparing(prepare).validating(validate).warning(warnings),
        subresources: vec![
            Subresource::scale(),
            Subresource::status(Strategy::status().defaulting(fill).validating(validate_status)),
        ],
        columns: columns(),
        row: Box::new(row),
        ..Kind::namespaced("apps", "v1", "ReplicaSet", "replicasets").short(&["rs"]).categories(&["all"])
    }
}

pub(crate) fn columns() -> Vec<Column> {
    vec![
        Column::name(),
        Column::number("Desired", "How many pods are wanted."),
        Column::number("Current", "How many pods there are."),
        Column::number("Ready", "How many pods are ready."),
        Column::age(),
        Column::text("Containers", "The names of the template's containers.").wide(),
        Column::text("Images", "The images of the template's containers.").wide(),
        Column::text("Selector", "The labels of its pods.").wide(),
    ]
}

fn fill(set: &mut Value) {
    let Some(spec) = object(set, "spec") else { return };
    object(spec, "template");
    fill_spec(spec);
}

/// Of a ReplicationController too, which may stand there without a template.
pub(crate) fn fill_spec(spec: &mut Value) {
    drop_zero(spec, &["minReadySeconds"]);
    default(spec, "replicas", 1);
    if let Some(template) = spec.get_mut("template") {
        pod_default::template(template);
    }
}

pub(crate) fn prepare(set: &mut Value, old: Option<&Value>) {
    pod_support::take_away(set, "/spec/template/spec");
    keep_status(set, old, &json!({"replicas": 0}));
    generation(set, old, spec_changed);
}

fn validate(set: &Value, old: Option<&Value>) -> Vec<Error> {
    let spec = Place::root(set).child("spec");
    let mut errors = Vec::new();
    spec.child("replicas").not_negative(&mut errors);
    spec.child("minReadySeconds").not_negative(&mut errors);
    template::validate(&spec, old, &mut errors);
    errors
}

fn validate_status(set: &Value, _old: Option<&Value>) -> Vec<Error> {
    let mut errors = Vec::new();
    let parts = ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
    let others = ["observedGeneration", "terminatingReplicas"];
    template::counts(&Place::root(set).child("status"), &parts, &others, &mut errors);
    errors
}

pub(crate) fn warnings(set: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some_and(|old| !spec_changed(set, old)) {
        return Vec::new();
    }
    let name = if old.is_none() { template::name_warning(set) } else { None };
    name.into_iter().chain(template_warnings(set)).collect()
}

pub(crate) fn template_warnings(set: &Value) -> Vec<String> {
    let template = Place::root(set).child("spec").child("template");
    pod_warnings::pod(&template.child("metadata"), &template.child("spec"))
}

pub(crate) fn row(set: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&set["spec"], &set["status"]);
    let containers = &spec["template"]["spec"]["containers"];
    vec![
        json!(table::name(set)),
        json!(number(&spec["replicas"])),
        json!(number(&status["replicas"])),
        json!(number(&status["readyReplicas"])),
        table::age(set, now),
        table::joined(containers, "name"),
        table::joined(containers, "image"),
        table::selector(&spec["selector"]),
    ]
}
