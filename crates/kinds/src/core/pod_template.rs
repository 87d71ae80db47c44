//! PodTemplate: a template that stands alone, for controllers outside of the cluster's own.
//!
//! Source: kubernetes `pkg/registry/core/podtemplate/strategy.go`.

use api::field::Error;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::core::{pod_default, pod_support, pod_validation, pod_warnings};
use crate::kind::{Column, Kind, Strategy};
use crate::place::Place;
use crate::strategy::{generation, same_field};
use crate::table;
use crate::value::object;

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill).preparing(prepare).validating(validate).warning(warnings),
        columns: vec![
            Column::name(),
            Column::text("Containers", "The names of the template's containers."),
            Column::text("Images", "The images of the template's containers."),
            Column::text("Pod Labels", "The labels of the pods that are made of it."),
        ],
        row: Box::new(row),
        ..Kind::namespaced("", "v1", "PodTemplate", "podtemplates")
    }
}

fn fill(of: &mut Value) {
    if let Some(template) = object(of, "template") {
        pod_default::template(template);
    }
}

fn prepare(of: &mut Value, old: Option<&Value>) {
    pod_support::take_away(of, "/template/spec");
    generation(of, old, |new, old| !same_field(new, old, "template"));
}

fn validate(of: &Value, _old: Option<&Value>) -> Vec<Error> {
    let mut errors = Vec::new();
    pod_validation::template(&Place::root(of).child("template"), &mut errors);
    errors
}

fn warnings(of: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some_and(|old| same_field(of, old, "template")) {
        return Vec::new();
    }
    let template = Place::root(of).child("template");
    pod_warnings::pod(&template.child("metadata"), &template.child("spec"))
}

fn row(of: &Value, _now: Timestamp) -> Vec<Value> {
    let (template, containers) = (&of["template"], &of["template"]["spec"]["containers"]);
    vec![
        json!(table::name(of)),
        table::joined(containers, "name"),
        table::joined(containers, "image"),
        table::labels(&template["metadata"]["labels"]),
    ]
}
