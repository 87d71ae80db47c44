//! Namespace: a scope for names.
//!
//! Source: kubernetes `pkg/registry/core/namespace/strategy.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Action, Column, Kind, Strategy, Subresource, Verb};
use crate::strategy::keep_status;
use crate::table;
use crate::value::{copy, default_text, items, object, set, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill).preparing(prepare),
        verbs: &[Verb::Create, Verb::Delete, Verb::Get, Verb::List, Verb::Patch, Verb::Update, Verb::Watch],
        subresources: vec![
            Subresource { name: "finalize", body: None, verbs: &[Verb::Update], action: Action::Finalize },
            Subresource::status(Strategy::status()),
        ],
        columns: vec![
            Column::name(),
            Column::text("Status", "Active, or Terminating while its objects are deleted."),
            Column::age(),
        ],
        row: Box::new(row),
        fields: Box::new(|namespace| {
            vec![
                ("status.phase", text(&namespace["status"]["phase"]).to_owned()),
                ("name", table::name(namespace).to_owned()),
            ]
        }),
        ..Kind::cluster("", "v1", "Namespace", "namespaces").short(&["ns"])
    }
}

/// The finalizer that keeps a namespace until its objects are gone.
const FINALIZER: &str = "kubernetes";

fn fill(namespace: &mut Value) {
    let name = table::name(namespace).to_owned();
    if !name.is_empty()
        && let Some(labels) = object(namespace, "metadata").and_then(|metadata| object(metadata, "labels"))
    {
        set(labels, "kubernetes.io/metadata.name", name);
    }
    if let Some(status) = namespace.get_mut("status") {
        default_text(status, "phase", "Active");
    }
}

fn prepare(namespace: &mut Value, old: Option<&Value>) {
    keep_status(namespace, old, &json!({"phase": "Active"}));
    let Some(spec) = object(namespace, "spec") else { return };
    if let Some(old) = old {
        copy(spec, "finalizers", &old["spec"]);
        return;
    }
    let mut finalizers = items(&spec["finalizers"]).to_vec();
    if finalizers.iter().all(|finalizer| text(finalizer) != FINALIZER) {
        finalizers.push(json!(FINALIZER));
        set(spec, "finalizers", finalizers);
    }
}

fn row(namespace: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(table::name(namespace)), json!(text(&namespace["status"]["phase"])), table::age(namespace, now)]
}
