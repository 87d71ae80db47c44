//! Endpoints: the addresses behind a Service, in the old form.
//!
//! Source: kubernetes `pkg/registry/core/endpoint/strategy.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy};
use crate::table;
use crate::value::{default_text, items, items_mut, number, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill),
        columns: vec![
            Column::name(),
            Column::text("Endpoints", "The ready addresses with their ports."),
            Column::age(),
        ],
        row: Box::new(row),
        create_on_update: true,
        ..Kind::namespaced("", "v1", "Endpoints", "endpoints").short(&["ep"])
    }
}

fn fill(endpoints: &mut Value) {
    for subset in items_mut(endpoints.get_mut("subsets")) {
        for port in items_mut(subset.get_mut("ports")) {
            default_text(port, "protocol", "TCP");
        }
    }
}

fn row(endpoints: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in items(&endpoints["subsets"]) {
        let addresses = items(&subset["addresses"]).iter().map(|address| text(&address["ip"]));
        let ports = items(&subset["ports"]);
        if ports.is_empty() {
            all.extend(addresses.map(str::to_owned));
            continue;
        }
        for port in ports {
            all.extend(addresses.clone().map(|ip| host_port(ip, number(&port["port"]))));
        }
    }
    let shown = if all.is_empty() { "<none>".to_owned() } else { table::first_three(&all) };
    vec![json!(table::name(endpoints)), json!(shown), table::age(endpoints, now)]
}

fn host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}
