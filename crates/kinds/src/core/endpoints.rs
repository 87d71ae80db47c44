//! Endpoints: the addresses behind a Service, in the old form.
//!
//! Source: kubernetes `pkg/registry/core/endpoint/strategy.go`.

use std::net::IpAddr;

use api::field::Error;
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy};
use crate::place::Place;
use crate::strategy::same;
use crate::table;
use crate::value::{default_text, items, items_mut, number, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill).validating(validate).warning(warnings),
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

fn validate(endpoints: &Value, old: Option<&Value>) -> Vec<Error> {
    let mut errors = Vec::new();
    if old.is_some_and(|old| same(&old["subsets"], &endpoints["subsets"])) {
        return errors;
    }
    for subset in Place::root(endpoints).child("subsets").items() {
        let lists = [subset.child("addresses"), subset.child("notReadyAddresses")];
        if lists.iter().all(Place::is_empty) {
            errors.push(subset.required("must specify `addresses` or `notReadyAddresses`"));
        }
        for address in lists.iter().flat_map(Place::items) {
            let ip = address.child("ip");
            ip.keep(names::is_ip_for_legacy_field, &mut errors);
            if !address.child("hostname").is_empty() {
                address.child("hostname").keep(names::is_dns1123_label, &mut errors);
            }
            if address.child("nodeName").is_set() {
                address.child("nodeName").keep(names::is_dns1123_subdomain, &mut errors);
            }
            endpoint_address(&ip, &mut errors);
        }
        let ports = subset.child("ports");
        for port in ports.items() {
            let name = port.child("name");
            if !name.is_empty() {
                name.keep(names::is_dns1123_label, &mut errors);
            } else if ports.len() > 1 {
                errors.push(name.required(""));
            }
            port.child("port").port_number(&mut errors);
            port.child("protocol").one_of(&["SCTP", "TCP", "UDP"], &mut errors);
            if port.child("appProtocol").is_set() {
                port.child("appProtocol").keep(names::is_qualified_name, &mut errors);
            }
        }
    }
    errors
}

/// Source: kubernetes `pkg/registry/core/endpoint/strategy.go`, and the deprecation of the whole kind.
fn warnings(endpoints: &Value, _old: Option<&Value>) -> Vec<String> {
    if text(&endpoints["metadata"]["labels"]["endpoints.kubernetes.io/managed-by"]) == "endpoint-controller" {
        return Vec::new();
    }
    let mut warnings = vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned()];
    for subset in Place::root(endpoints).child("subsets").items() {
        let addresses = ["addresses", "notReadyAddresses"].into_iter().flat_map(|list| subset.child(list).items());
        let ips = addresses.map(|address| address.child("ip"));
        warnings.extend(ips.filter_map(|ip| names::ip_warning(&ip.path, ip.text())));
    }
    warnings
}

/// Addresses that traffic must not be sent to, lest a tenant reach the node's own services.
///
/// Source: kubernetes `pkg/apis/core/validation/validation.go`, `ValidateEndpointIP`.
pub(crate) fn endpoint_address(ip: &Place<'_>, errors: &mut Vec<Error>) {
    let Some(address) = names::parse_ip_sloppy(ip.text()) else {
        return errors.push(Error::invalid(&ip.path, ip.text(), "must be a valid IP address"));
    };
    let (local, multicast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    if address.is_unspecified() {
        errors.push(ip.invalid(format!("may not be unspecified ({})", ip.text())));
    }
    if address.is_loopback() {
        errors.push(ip.invalid("may not be in the loopback range (127.0.0.0/8, ::1/128)"));
    }
    if local {
        errors.push(ip.invalid("may not be in the link-local range (169.254.0.0/16, fe80::/10)"));
    }
    if multicast {
        errors.push(ip.invalid("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"));
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
