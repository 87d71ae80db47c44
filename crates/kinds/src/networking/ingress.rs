//! Ingress: HTTP routes from outside to services.
//!
//! Source: kubernetes `pkg/registry/networking/ingress/strategy.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy, Subresource};
use crate::strategy::{generation, keep_status, spec_changed};
use crate::table;
use crate::value::{is_empty, items, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(|_| ()).preparing(prepare),
        subresources: vec![Subresource::status(Strategy::status())],
        columns: vec![
            Column::name(),
            Column::text("Class", "The ingress class, which says who serves it."),
            Column::text("Hosts", "The host names that its rules are about."),
            Column::text("Address", "The addresses where it is served."),
            Column::text("Ports", "The ports where it is served."),
            Column::age(),
        ],
        row: Box::new(row),
        ..Kind::namespaced("networking.k8s.io", "v1", "Ingress", "ingresses").short(&["ing"])
    }
}

fn prepare(ingress: &mut Value, old: Option<&Value>) {
    keep_status(ingress, old, &json!({"loadBalancer": {}}));
    generation(ingress, old, spec_changed);
}

fn row(ingress: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &ingress["spec"];
    vec![
        json!(table::name(ingress)),
        table::or_none(&spec["ingressClassName"]),
        json!(hosts(items(&spec["rules"]))),
        json!(table::load_balancer(ingress)),
        json!(if is_empty(&spec["tls"]) { "80" } else { "80, 443" }),
        table::age(ingress, now),
    ]
}

fn hosts(rules: &[Value]) -> String {
    let named: Vec<&str> = rules.iter().map(|rule| text(&rule["host"])).filter(|host| !host.is_empty()).collect();
    match named.as_slice() {
        [] => "*".to_owned(),
        // Upstream counts every further rule, named or not, once three names are shown.
        [a, b, c, _, ..] => format!("{a},{b},{c} + {} more...", rules.len() - 3),
        few => few.join(","),
    }
}
