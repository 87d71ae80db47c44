//! IngressClass: who serves the ingresses that name it.
//!
//! Source: kubernetes `pkg/registry/networking/ingressclass/strategy.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy};
use crate::strategy::{generation, spec_changed};
use crate::table;
use crate::value::{default, object, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill).preparing(|class, old| generation(class, old, spec_changed)),
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
