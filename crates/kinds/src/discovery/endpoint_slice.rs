//! EndpointSlice: some of the addresses behind a Service.
//!
//! Source: kubernetes `pkg/registry/discovery/endpointslice/strategy.go`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::field::Error;
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::core::endpoints::endpoint_address;
use crate::kind::{Column, Kind, Strategy};
use crate::place::Place;
use crate::strategy::{generation, same, same_field};
use crate::table;
use crate::value::{default, items, items_mut, remove, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill).preparing(prepare).validating(validate).warning(warnings),
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
        fields.iter().any(|&field| !same_field(new, old, field))
            || !same(&new["metadata"]["labels"], &old["metadata"]["labels"])
    });
    // Of the beta version; `nodeName` and `zone` took its place.
    for endpoint in items_mut(slice.get_mut("endpoints")) {
        remove(endpoint, "deprecatedTopology");
    }
}

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_HINTS: usize = 8;

fn validate(slice: &Value, old: Option<&Value>) -> Vec<Error> {
    let root = Place::root(slice);
    let kind = root.child("addressType");
    let mut errors = Vec::new();
    kind.one_of(&["FQDN", "IPv4", "IPv6"], &mut errors);
    ports(&root.child("ports"), &mut errors);
    if !old.is_some_and(|old| same(&old["endpoints"], &slice["endpoints"])) {
        endpoints(&root.child("endpoints"), kind.text(), &mut errors);
    }
    if old.is_some_and(|old| old["addressType"] != slice["addressType"]) {
        errors.push(Error::invalid(&kind.path, Value::Null, "field is immutable"));
    }
    errors
}

fn ports(ports: &Place<'_>, errors: &mut Vec<Error>) {
    if ports.len() > MAX_PORTS {
        return errors.push(Error::too_many(&ports.path, ports.len(), MAX_PORTS));
    }
    let mut seen = BTreeSet::new();
    for port in ports.items() {
        let name = port.child("name");
        if !name.is_empty() {
            name.keep(names::is_dns1123_label, errors);
        }
        if !seen.insert(name.text()) {
            errors.push(name.duplicate());
        }
        let protocol = port.child("protocol");
        if !["SCTP", "TCP", "UDP"].contains(&protocol.text()) {
            errors.push(protocol.not_supported(&["SCTP", "TCP", "UDP"]));
        }
        if port.child("appProtocol").is_set() {
            port.child("appProtocol").keep(names::is_qualified_name, errors);
        }
    }
}

fn endpoints(endpoints: &Place<'_>, kind: &str, errors: &mut Vec<Error>) {
    if endpoints.len() > MAX_ENDPOINTS {
        return errors.push(Error::too_many(&endpoints.path, endpoints.len(), MAX_ENDPOINTS));
    }
    for endpoint in endpoints.items() {
        let addresses = endpoint.child("addresses");
        if addresses.is_empty() {
            errors.push(addresses.required(""));
        } else if addresses.len() > MAX_ADDRESSES {
            errors.push(Error::too_many(&addresses.path, addresses.len(), MAX_ADDRESSES));
        }
        for one in addresses.items() {
            address(&one, &addresses, kind, errors);
        }
        for (field, rule) in
            [("nodeName", names::is_dns1123_subdomain as fn(&str) -> _), ("hostname", names::is_dns1123_label)]
        {
            if endpoint.child(field).is_set() {
                endpoint.child(field).keep(rule, errors);
            }
        }
        hints(&endpoint.child("hints"), errors);
    }
}

fn address(address: &Place<'_>, list: &Place<'_>, kind: &str, errors: &mut Vec<Error>) {
    let before = errors.len();
    match kind {
        "IPv4" => address.keep(names::is_ip_for_legacy_field, errors),
        "IPv6" => address.keep(names::is_ip, errors),
        "FQDN" => return domain(address, errors),
        _ => return,
    }
    if errors.len() > before {
        return;
    }
    let of_kind = address.text().parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4() == (kind == "IPv4"));
    if !of_kind {
        errors.push(Error::invalid(&list.path, address.text(), format!("must be an {kind} address")));
    }
    endpoint_address(address, errors);
}

/// A name of two labels or more.
///
/// Source: apimachinery `pkg/util/validation/validation.go`, `IsFullyQualifiedDomainName`.
fn domain(address: &Place<'_>, errors: &mut Vec<Error>) {
    if address.is_empty() {
        return errors.push(address.required(""));
    }
    let name = address.text().strip_suffix('.').unwrap_or(address.text());
    let messages = names::is_dns1123_subdomain(name);
    let wrong = |part: &str, detail: String| Error::invalid(&address.path, part, detail);
    if !messages.is_empty() {
        errors.push(wrong(name, messages.join(",")));
    } else if !name.contains('.') {
        errors.push(wrong(name, "should be a domain with at least two segments separated by dots".to_owned()));
    } else if let Some(label) = name.split('.').find(|label| !names::is_dns1123_label(label).is_empty()) {
        errors.push(wrong(label, names::is_dns1123_label(label).join(",")));
    }
}

fn hints(hints: &Place<'_>, errors: &mut Vec<Error>) {
    for (field, rule) in
        [("forZones", names::is_label_value as fn(&str) -> _), ("forNodes", names::is_dns1123_subdomain)]
    {
        let list = hints.child(field);
        if list.len() > MAX_HINTS {
            return errors.push(Error::too_many(&list.path, list.len(), MAX_HINTS));
        }
        let mut seen = BTreeSet::new();
        for name in list.items().map(|hint| hint.child("name")) {
            if !seen.insert(name.text()) {
                errors.push(name.duplicate());
            }
            name.keep(rule, errors);
        }
    }
}

fn warnings(slice: &Value, old: Option<&Value>) -> Vec<String> {
    let mut warnings = Vec::new();
    if old.is_none() && text(&slice["addressType"]) == "FQDN" {
        warnings.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
    }
    if text(&slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"]) != "endpointslice-controller.k8s.io"
    {
        let endpoints = Place::root(slice).child("endpoints");
        let addresses = endpoints.items().flat_map(|endpoint| endpoint.child("addresses").items());
        warnings.extend(addresses.filter_map(|address| names::ip_warning(&address.path, address.text())));
    }
    warnings
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
