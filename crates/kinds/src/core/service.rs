//! Service: one address in front of many pods.
//!
//! Source: kubernetes `pkg/registry/core/service/strategy.go`.

use api::field;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::core::{service_update, service_validation};
use crate::kind::{Claim, Column, Kind, Strategy, Subresource};
use crate::table;
use crate::value::{items, number, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none()
            .defaulting(service_update::fill)
            .preparing(service_update::prepare)
            .validating(service_validation::validate)
            .warning(service_validation::warnings),
        subresources: vec![
            Subresource::proxy("ServiceProxyOptions"),
            Subresource::status(
                Strategy::status()
                    .defaulting(service_update::fill)
                    .validating(service_validation::validate_status)
                    .warning(service_validation::status_warnings),
            ),
        ],
        columns: vec![
            Column::name(),
            Column::text("Type", "How the service is reached."),
            Column::text("Cluster-IP", "Its first address inside the cluster."),
            Column::text("External-IP", "Its addresses or name outside the cluster."),
            Column::text("Port(s)", "Its ports, with their node ports."),
            Column::age(),
            Column::text("Selector", "The labels of the pods behind it.").wide(),
        ],
        row: Box::new(row),
        fields: Box::new(|service| {
            vec![
                ("spec.clusterIP", text(&service["spec"]["clusterIP"]).to_owned()),
                ("spec.type", text(&service["spec"]["type"]).to_owned()),
            ]
        }),
        name: api::validation::name_is_dns_label,
        create_on_update: true,
        claims: Some(Box::new(claims)),
        ..Kind::namespaced("", "v1", "Service", "services").short(&["svc"]).categories(&["all"])
    }
}

/// The addresses and node ports that belong to this service alone. Its own ports may share a node port.
fn claims(service: &Value) -> Vec<Claim> {
    let spec = &service["spec"];
    let at = field::Path::new("spec");
    let mut claims = Vec::new();
    for ip in items(&spec["clusterIPs"]).iter().map(text).filter(|ip| !ip.is_empty() && *ip != "None") {
        let why = format!("failed to allocate IP {ip}: provided IP is already allocated");
        let taken = field::Error::invalid(&at.child("clusterIPs"), spec["clusterIPs"].clone(), why);
        claims.push(Claim { pool: "cluster-ips", value: ip.to_owned(), taken });
    }
    for (i, port) in items(&spec["ports"]).iter().enumerate() {
        let node_port = number(&port["nodePort"]);
        let value = node_port.to_string();
        if node_port > 0 && claims.iter().all(|claim| claim.value != value) {
            let path = at.child("ports").index(i).child("nodePort");
            let taken = field::Error::invalid(&path, node_port, "provided port is already allocated");
            claims.push(Claim { pool: "node-ports", value, taken });
        }
    }
    claims
}

fn row(service: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &service["spec"];
    vec![
        json!(table::name(service)),
        json!(text(&spec["type"])),
        table::or_none(&spec["clusterIPs"][0]),
        json!(external(service)),
        table::or_none(&json!(ports(spec))),
        table::age(service, now),
        table::labels(&spec["selector"]),
    ]
}

fn ports(spec: &Value) -> String {
    let one = |port: &Value| {
        let (number, node) = (number(&port["port"]), number(&port["nodePort"]));
        let protocol = text(&port["protocol"]);
        if node > 0 { format!("{number}:{node}/{protocol}") } else { format!("{number}/{protocol}") }
    };
    items(&spec["ports"]).iter().map(one).collect::<Vec<_>>().join(",")
}

fn external(service: &Value) -> String {
    let spec = &service["spec"];
    let addresses = items(&spec["externalIPs"]).iter().map(text).collect::<Vec<_>>().join(",");
    match text(&spec["type"]) {
        "ClusterIP" | "NodePort" if addresses.is_empty() => "<none>".to_owned(),
        "ClusterIP" | "NodePort" => addresses,
        "LoadBalancer" => {
            let balanced = table::load_balancer(service);
            match (balanced.is_empty(), addresses.is_empty()) {
                (true, true) => "<pending>".to_owned(),
                (false, true) => balanced,
                (true, false) => addresses,
                (false, false) => format!("{balanced},{addresses}"),
            }
        }
        "ExternalName" => text(&spec["externalName"]).to_owned(),
        _ => "<unknown>".to_owned(),
    }
}
