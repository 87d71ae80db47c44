//! Namespace: a scope for names.
//!
//! Source: kubernetes `pkg/registry/core/namespace/strategy.go`.

use api::field::{Error, Path};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Action, Column, Kind, Strategy, Subresource, Verb};
use crate::place::Place;
use crate::strategy::keep_status;
use crate::table;
use crate::value::{copy, default_text, items, object, set, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill).preparing(prepare).validating(validate),
        verbs: &[Verb::Create, Verb::Delete, Verb::Get, Verb::List, Verb::Patch, Verb::Update, Verb::Watch],
        subresources: vec![
            Subresource { name: "finalize", body: None, verbs: &[Verb::Update], action: Action::Finalize },
            Subresource::status(Strategy::status().defaulting(fill).validating(validate_status)),
        ],
        columns: vec![
            Column::name(),
            Column::text("Status", "Active, or Terminating while its objects are deleted."),
            Column::age(),
        ],
        row: Box::new(row),
        name: api::validation::name_is_dns_label,
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

fn validate(namespace: &Value, _old: Option<&Value>) -> Vec<Error> {
    let finalizers = Place::root(namespace).child("spec").child("finalizers");
    let mut errors = Vec::new();
    for finalizer in finalizers.items() {
        // Upstream's path leaves the index out.
        validate_finalizer(&Place::new(finalizer.value, finalizers.path.clone()), &mut errors);
    }
    errors
}

/// What is wrong with the finalizers that `finalize` is given.
pub fn validate_finalize(namespace: &Value, _old: Option<&Value>) -> Vec<Error> {
    let mut errors = Vec::new();
    for finalizer in Place::root(namespace).child("spec").child("finalizers").items() {
        validate_finalizer(&finalizer, &mut errors);
    }
    errors
}

fn validate_finalizer(at: &Place<'_>, errors: &mut Vec<Error>) {
    at.keep(names::is_qualified_name, errors);
    let standard = matches!(at.text(), "kubernetes" | "orphan" | "foregroundDeletion");
    if !at.text().contains('/') && !standard {
        errors.push(at.invalid("name is neither a standard finalizer name nor is it fully qualified"));
    }
}

fn validate_status(namespace: &Value, _old: Option<&Value>) -> Vec<Error> {
    let phase = &namespace["status"]["phase"];
    let deleting = !namespace["metadata"]["deletionTimestamp"].is_null();
    let detail = match (deleting, text(phase)) {
        (false, "Active") | (true, "Terminating") => return Vec::new(),
        (false, _) => "may only be 'Active' if `deletionTimestamp` is empty",
        (true, _) => "may only be 'Terminating' if `deletionTimestamp` is not empty",
    };
    vec![Error::invalid(&Path::new("status").child("Phase"), text(phase), detail)]
}

fn row(namespace: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(table::name(namespace)), json!(text(&namespace["status"]["phase"])), table::age(namespace, now)]
}
