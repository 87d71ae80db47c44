//! ReplicaSet: a number of pods of one template.
//!
//! Source: kubernetes `pkg/registry/apps/replicaset/strategy.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::core::pod_default::pod_spec;
use crate::kind::{Column, Kind, Strategy, Subresource};
use crate::strategy::{generation, keep_status, spec_changed};
use crate::table;
use crate::value::{default, number, object};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill).preparing(prepare),
        subresources: vec![Subresource::scale(), Subresource::status(Strategy::status().defaulting(fill))],
        columns: vec![
            Column::name(),
            Column::number("Desired", "How many pods are wanted."),
            Column::number("Current", "How many pods there are."),
            Column::number("Ready", "How many pods are ready."),
            Column::age(),
            Column::text("Containers", "The names of the template's containers.").wide(),
            Column::text("Images", "The images of the template's containers.").wide(),
            Column::text("Selector", "The labels of its pods.").wide(),
        ],
        row: Box::new(row),
        ..Kind::namespaced("apps", "v1", "ReplicaSet", "replicasets").short(&["rs"]).categories(&["all"])
    }
}

fn fill(set: &mut Value) {
    let Some(spec) = object(set, "spec") else { return };
    default(spec, "replicas", 1);
    if let Some(template) = object(spec, "template").and_then(|template| object(template, "spec")) {
        pod_spec(template);
    }
}

fn prepare(set: &mut Value, old: Option<&Value>) {
    keep_status(set, old, &json!({"replicas": 0}));
    generation(set, old, spec_changed);
}

fn row(set: &Value, now: Timestamp) -> Vec<Value> {
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
