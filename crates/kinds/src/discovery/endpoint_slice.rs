//! EndpointSlice: some of the addresses behind a Service.
//!
//! Source: kubernetes `pkg/registry/discovery/endpointslice/strategy.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy};
use crate::strategy::{generation, same};
use crate::table;
use crate::value::{default, items, items_mut, remove, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill).preparing(prepare),
        columns: vec![
            Column::name(),
            Column::text("AddressType", "IPv4, IPv6 or FQDN."),
            Column::text("Ports", "The ports that every endpoint has."),
            Column::text("Endpoints", "The addresses."),
            Column::age(),
        ],
        row: Box::new(row),
        ..Kind::namespaced("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
    }
}

fn fill(slice: &mut Value) {
    for port in items_mut(slice.get_mut("ports")) {
        default(port, "name", "");
        default(port, "protocol", "TCP");
    }
}

fn prepare(slice: &mut Value, old: Option<&Value>) {
    generation(slice, old, |new, old| {
        let fields = ["addressType", "endpoints", "ports"];
        fields.iter().any(|&field| !same(&new[field], &old[field]))
            || !same(&new["metadata"]["labels"], &old["metadata"]["labels"])
    });
    // Of the beta version; `nodeName` and `zone` took its place.
    for endpoint in items_mut(slice.get_mut("endpoints")) {
        remove(endpoint, "deprecatedTopology");
    }
}

fn row(slice: &Value, now: Timestamp) -> Vec<Value> {
    let port = |port: &Value| match (port["port"].as_i64(), port["name"].as_str()) {
        (Some(number), _) => number.to_string(),
        (None, Some(name)) => name.to_owned(),
        (None, None) => "*".to_owned(),
    };
    let ports: Vec<String> = items(&slice["ports"]).iter().map(port).collect();
    let endpoints = items(&slice["endpoints"]).iter().flat_map(|endpoint| items(&endpoint["addresses"]));
    let addresses: Vec<String> = endpoints.map(|address| text(address).to_owned()).collect();
    vec![
        json!(table::name(slice)),
        json!(text(&slice["addressType"])),
        json!(table::first_three(&ports)),
        json!(table::first_three(&addresses)),
        table::age(slice, now),
    ]
}
