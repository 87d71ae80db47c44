//! IngressClass: who serves the ingresses that name it.
//!
//! Source: kubernetes `pkg/registry/networking/ingressclass/strategy.go`.

use api::field::Error;
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy};
use crate::place::Place;
use crate::strategy::{generation, same, spec_changed};
use crate::table;
use crate::value::{default, object, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none()
            .defaulting(fill)
            .preparing(|class, old| generation(class, old, spec_changed))
            .validating(validate),
        columns: vec![
            Column::name(),
            Column::text("Controller", "The controller that serves this class."),
            Column::text("Parameters", "An object with further settings."),
            Column::age(),
        ],
        row: Box::new(row),
        ..Kind::cluster("networking.k8s.io", "v1", "IngressClass", "ingressclasses")
    }
}

fn fill(class: &mut Value) {
    if let Some(parameters) = object(class, "spec").and_then(|spec| spec.get_mut("parameters")) {
        default(parameters, "scope", "Cluster");
    }
}

const MAX_CONTROLLER: usize = 250;

fn validate(class: &Value, old: Option<&Value>) -> Vec<Error> {
    let spec = Place::root(class).child("spec");
    let controller = spec.child("controller");
    let mut errors = Vec::new();
    if old.is_some_and(|old| !same(controller.value, &old["spec"]["controller"])) {
        errors.push(controller.invalid("field is immutable"));
    }
    if controller.text().len() > MAX_CONTROLLER {
        errors.push(Error::too_long(&controller.path, MAX_CONTROLLER));
    }
    match controller.text().split_once('/') {
        // Upstream shows the part that is wrong.
        Some((host, path)) if !host.is_empty() && !path.is_empty() => {
            let of_host = names::is_dns1123_subdomain(host);
            for message in names::is_domain_prefixed_path(controller.text()) {
                let part = if of_host.contains(&message) { host } else { path };
                errors.push(Error::invalid(&controller.path, part, message));
            }
        }
        _ => controller.require(names::is_domain_prefixed_path, &mut errors),
    }
    let parameters = spec.child("parameters");
    if !parameters.is_set() {
        return errors;
    }
    if parameters.child("apiGroup").is_set() {
        parameters.child("apiGroup").keep(names::is_dns1123_subdomain, &mut errors);
    }
    for field in ["kind", "name"] {
        parameters.child(field).require(names::is_path_segment_name, &mut errors);
    }
    let (scope, namespace) = (parameters.child("scope"), parameters.child("namespace"));
    scope.if_set_one_of(&["Cluster", "Namespace"], &mut errors);
    match (scope.text(), namespace.is_set()) {
        ("Namespace", false) => errors.push(namespace.required("`parameters.scope` is set to 'Namespace'")),
        ("Namespace", true) => namespace.keep(names::is_dns1123_label, &mut errors),
        ("Cluster", true) => errors.push(namespace.forbidden("`parameters.scope` is set to 'Cluster'")),
        _ => {}
    }
    errors
}

fn row(class: &Value, now: Timestamp) -> Vec<Value> {
    let default = text(&class["metadata"]["annotations"]["ingressclass.kubernetes.io/is-default-class"]) == "true";
    let name = table::name(class);
    let parameters = &class["spec"]["parameters"];
    let shown = if parameters.is_null() {
        "<none>".to_owned()
    } else {
        let group = parameters["apiGroup"].as_str().map_or_else(String::new, |group| format!(".{group}"));
        format!("{}{group}/{}", text(&parameters["kind"]), text(&parameters["name"]))
    };
    vec![
        json!(if default { format!("{name} (default)") } else { name.to_owned() }),
        json!(text(&class["spec"]["controller"])),
        json!(shown),
        table::age(class, now),
    ]
}
