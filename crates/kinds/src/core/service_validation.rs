//! What is wrong with a Service.
//!
//! Source: kubernetes `pkg/apis/core/validation/validation.go`, `ValidateServiceCreate` and `ValidateServiceUpdate`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::field::{Error, Path};
use api::{names, selector};
use serde_json::{Value, json};

use crate::place::Place;
use crate::value::{is_empty, items, text};

const POLICIES: &[&str] = &["Cluster", "Local"];

pub fn validate(service: &Value, old: Option<&Value>) -> Vec<Error> {
    let spec = Place::root(service).child("spec");
    let mut errors = Vec::new();
    let headless = is_headless(spec.value);
    if spec.child("ports").is_empty() && !headless && !spec.child("type").is("ExternalName") {
        errors.push(spec.child("ports").required(""));
    }
    of_type(&spec, &mut errors);
    ports(&spec, &mut errors);
    labels(&spec.child("selector"), &mut errors);
    affinity(&spec, &mut errors);
    errors.extend(validate_cluster_ips(spec.value, old.map(|old| &old["spec"])));
    spec.child("type").one_of(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], &mut errors);
    node_ports(&spec, &mut errors);
    traffic_policies(&spec, &mut errors);
    load_balancer(&spec, old.map(|old| &old["spec"]), &mut errors);
    not_built(&spec, &mut errors);
    if let Some(old) = old {
        unchanged_addresses(&spec, &old["spec"], &mut errors);
    }
    errors
}

fn is_headless(spec: &Value) -> bool {
    let ips = items(&spec["clusterIPs"]);
    ips.len() == 1 && text(&ips[0]) == "None"
}

fn of_type(spec: &Place<'_>, errors: &mut Vec<Error>) {
    let kind = spec.child("type").text();
    if matches!(kind, "LoadBalancer" | "NodePort")
        && is_headless(spec.value)
        && let Some(first) = spec.child("clusterIPs").items().next()
    {
        errors.push(first.invalid(format!("may not be set to 'None' for {kind} services")));
    }
    if kind != "ExternalName" {
        return;
    }
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let place = spec.child(field);
        if !place.is_empty() {
            errors.push(place.forbidden("may not be set for ExternalName services"));
        }
    }
    let name = spec.child("externalName");
    match name.text().trim_end_matches('.') {
        "" => errors.push(name.required("")),
        shown => {
            let messages = names::is_dns1123_subdomain(shown);
            errors.extend(messages.into_iter().map(|message| Error::invalid(&name.path, shown, message)));
        }
    }
}

fn ports(spec: &Place<'_>, errors: &mut Vec<Error>) {
    let ports = spec.child("ports");
    let mut seen = BTreeSet::new();
    for port in ports.items() {
        let name = port.child("name");
        if !name.is_empty() {
            name.keep(names::is_dns1123_label, errors);
            if !seen.insert(name.text()) {
                errors.push(name.duplicate());
            }
        } else if ports.len() > 1 {
            errors.push(name.required(""));
        }
        port.child("port").port_number(errors);
        port.child("protocol").one_of(&["SCTP", "TCP", "UDP"], errors);
        port.child("targetPort").port(errors);
        let protocol = port.child("appProtocol");
        if protocol.is_set() {
            protocol.keep(names::is_qualified_name, errors);
        }
    }
}

/// A map of labels.
pub fn labels(place: &Place<'_>, errors: &mut Vec<Error>) {
    let labels = place.entries().map(|(key, value)| (key.to_owned(), value.text().to_owned())).collect();
    errors.extend(selector::validate_labels(&labels, &place.path));
}

fn affinity(spec: &Place<'_>, errors: &mut Vec<Error>) {
    spec.child("sessionAffinity").one_of(&["ClientIP", "None"], errors);
    let config = spec.child("sessionAffinityConfig");
    match spec.child("sessionAffinity").text() {
        "ClientIP" => {
            let seconds = config.child("clientIP").child("timeoutSeconds");
            let missing =
                [&config, &config.child("clientIP"), &seconds].into_iter().find(|place| !place.is_set()).cloned();
            if let Some(missing) = missing {
                errors.push(missing.required("when session affinity type is ClientIP"));
            } else if !(1..=86400).contains(&seconds.number()) {
                errors.push(seconds.invalid("must be greater than 0 and less than 86400"));
            }
        }
        "None" if config.is_set() => {
            errors.push(config.forbidden("must not be set when session affinity is None"));
        }
        _ => {}
    }
}

fn node_ports(spec: &Place<'_>, errors: &mut Vec<Error>) {
    let ports = spec.child("ports");
    if spec.child("type").is("ClusterIP") {
        let set = ports.items().map(|port| port.child("nodePort")).filter(|port| port.number() != 0);
        errors.extend(set.map(|port| port.forbidden("may not be used when `type` is 'ClusterIP'")));
    }
    let mut seen = BTreeSet::new();
    for port in ports.items() {
        let node_port = port.child("nodePort");
        if node_port.number() != 0 && !seen.insert((port.child("protocol").text(), node_port.number())) {
            errors.push(node_port.duplicate());
        }
    }
    let mut seen = BTreeSet::new();
    for port in ports.items() {
        let (protocol, number) = (port.child("protocol").text(), port.child("port").number());
        if !seen.insert((protocol, number)) {
            errors.push(Error::duplicate(&port.path, json!({"protocol": protocol, "port": number})));
        }
    }
}

fn traffic_policies(spec: &Place<'_>, errors: &mut Vec<Error>) {
    let external = spec.child("externalTrafficPolicy");
    let accessible =
        matches!(spec.child("type").text(), "NodePort" | "LoadBalancer") || !spec.child("externalIPs").is_empty();
    if accessible {
        external.one_of(POLICIES, errors);
    } else if !external.is_empty() {
        errors.push(external.invalid("may only be set for externally-accessible services"));
    }
    let internal = spec.child("internalTrafficPolicy");
    if matches!(spec.child("type").text(), "ClusterIP" | "NodePort" | "LoadBalancer") && !internal.is_set() {
        errors.push(internal.required(""));
    }
    internal.if_set_one_of(POLICIES, errors);
}

/// What only load balancers have. Whoever implements the class assigns the addresses: coracle itself has none to give.
///
/// Source: `validateLoadBalancerClassField`.
fn load_balancer(spec: &Place<'_>, old: Option<&Value>, errors: &mut Vec<Error>) {
    let is_one = spec.child("type").is("LoadBalancer");
    let (allocate, class) = (spec.child("allocateLoadBalancerNodePorts"), spec.child("loadBalancerClass"));
    if is_one {
        if old.is_some_and(|old| text(&old["type"]) == "LoadBalancer" && old["loadBalancerClass"] != *class.value) {
            errors.push(class.invalid("may not change once set"));
        }
        if class.is_set() {
            class.keep(names::is_qualified_name, errors);
        }
        return;
    }
    let set = [allocate, class].into_iter().filter(Place::is_set);
    errors.extend(set.map(|place| place.forbidden("may only be used when `type` is 'LoadBalancer'")));
}

/// Fields that upstream acts on and nothing here does.
fn not_built(spec: &Place<'_>, errors: &mut Vec<Error>) {
    for (field, why) in [
        ("externalIPs", "external addresses are not programmed"),
        ("trafficDistribution", "endpoints are not preferred by topology"),
        ("loadBalancerSourceRanges", "sources are not told apart"),
        ("healthCheckNodePort", "nothing answers health checks of load balancers"),
    ] {
        let place = spec.child(field);
        if !place.is_empty() && place.value.as_i64() != Some(0) {
            errors.push(place.forbidden(format!("not supported yet by coracle: {why}")));
        }
    }
    let distribution = spec.child("trafficDistribution");
    if distribution.is_set() && distribution.is_empty() {
        errors.push(distribution.not_supported(&["PreferClose", "PreferSameZone", "PreferSameNode"]));
    }
    let policy = spec.child("externalTrafficPolicy");
    if spec.child("type").is("LoadBalancer") && policy.is("Local") {
        errors.push(policy.forbidden(
            "not supported yet by coracle for load balancers: nothing answers their health checks; use Cluster",
        ));
    }
}

/// The addresses and families that a client asks for.
///
/// Source: `ValidateServiceClusterIPsRelatedFields`.
pub fn validate_cluster_ips(spec: &Value, old: Option<&Value>) -> Vec<Error> {
    let spec = Place::new(spec, Path::new("spec"));
    let mut errors = Vec::new();
    if spec.child("type").is("ExternalName") {
        return errors;
    }
    let (one, all, families) = (spec.child("clusterIP"), spec.child("clusterIPs"), spec.child("ipFamilies"));
    if one.is_empty() {
        if !all.is_empty() {
            errors.push(all.invalid("must be empty when `clusterIP` is not specified"));
        }
    } else if all.is_empty() {
        errors.push(all.required(""));
    } else if all.value[0] != *one.value {
        errors.push(all.invalid("first value must match `clusterIP`"));
    }
    let mut seen = BTreeSet::new();
    for family in families.items() {
        family.if_set_one_of(&["IPv4", "IPv6"], &mut errors);
        if !seen.insert(family.text()) {
            errors.push(family.duplicate());
        }
    }
    spec.child("ipFamilyPolicy").if_set_one_of(&["PreferDualStack", "RequireDualStack", "SingleStack"], &mut errors);
    addresses(&all, &families, old, &mut errors);
    errors
}

fn addresses(all: &Place<'_>, families: &Place<'_>, old: Option<&Value>, errors: &mut Vec<Error>) {
    let kept = old.map_or(&Value::Null, |old| &old["clusterIPs"]);
    let mut parsed = Vec::new();
    let before = errors.len();
    for (i, ip) in all.items().enumerate() {
        if i == 0 && ip.is("None") {
            if all.len() > 1 {
                errors.push(all.invalid("'None' must be the first and only value"));
            }
        } else if !items(kept).contains(ip.value) {
            ip.keep(names::is_ip_for_legacy_field, errors);
        }
        parsed.extend(ip.text().parse::<IpAddr>());
    }
    let malformed = errors.len() > before;
    if all.len() > 2 {
        errors.push(all.invalid("may only hold up to 2 values"));
    }
    if malformed {
        return;
    }
    if all.len() > 1 && (parsed.iter().all(IpAddr::is_ipv4) || parsed.iter().all(IpAddr::is_ipv6)) {
        errors.push(all.invalid("may specify no more than one IP for each IP family"));
    }
    for ((i, ip), (address, family)) in all.items().enumerate().zip(parsed.iter().zip(families.items())) {
        let actual = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        if family.text() != actual && matches!(family.text(), "IPv4" | "IPv6") {
            errors.push(ip.invalid(format!("expected an {} value as indicated by `ipFamilies[{i}]`", family.text())));
        }
    }
}

/// The first address and family stay; the second may be added, or released by `SingleStack`.
///
/// Source: `validateUpgradeDowngradeClusterIPs`, `validateUpgradeDowngradeIPFamilies`.
fn unchanged_addresses(spec: &Place<'_>, old: &Value, errors: &mut Vec<Error>) {
    if [spec.value, old].iter().any(|spec| text(&spec["type"]) == "ExternalName") {
        return;
    }
    let headless = (is_headless(old), is_headless(spec.value));
    if headless != (true, true) {
        list_unchanged(spec, old, "clusterIPs", "clusterIP", errors);
    }
    // Families are free while a service is, becomes or ceases to be headless.
    if headless == (false, false) {
        list_unchanged(spec, old, "ipFamilies", "ipFamily", errors);
    }
}

fn list_unchanged(spec: &Place<'_>, old: &Value, field: &str, one: &str, errors: &mut Vec<Error>) {
    let list = spec.child(field);
    let (before, now) = (items(&old[field]), items(list.value));
    let wrong = |i: usize, detail: String| Error::invalid(&list.path.index(i), list.value.clone(), detail);
    let changed = "may not change once set";
    if before.len() == now.len() {
        let differing = (0..now.len()).filter(|&i| before[i] != now[i]);
        // For families upstream's path is that of the first, whichever changed.
        errors.extend(differing.map(|i| wrong(if field == "ipFamilies" { 0 } else { i }, changed.to_owned())));
        return;
    }
    if before.len() > now.len() && items(&spec.value["clusterIPs"]).is_empty() {
        errors.push(wrong(0, format!("primary {one} can not be unset")));
    }
    if let ([was, ..], [is, ..]) = (before, now)
        && was != is
    {
        errors.push(wrong(0, changed.to_owned()));
    }
    if before.len() > now.len() && now.len() == 1 && !spec.child("ipFamilyPolicy").is("SingleStack") {
        let detail = format!("must be set to 'SingleStack' when releasing the secondary {one}");
        errors.push(spec.child("ipFamilyPolicy").invalid(detail));
    }
}

/// Source: kubernetes `pkg/apis/core/validation/validation.go`, `ValidateLoadBalancerStatus`.
pub fn validate_status(service: &Value, _old: Option<&Value>) -> Vec<Error> {
    let root = Place::root(service);
    let ingress = root.child("status").child("loadBalancer").child("ingress");
    let mut errors = Vec::new();
    if !root.child("spec").child("type").is("LoadBalancer") && !ingress.is_empty() {
        errors.push(ingress.forbidden("may only be used when `spec.type` is 'LoadBalancer'"));
        return errors;
    }
    for entry in ingress.items() {
        let (ip, mode, hostname) = (entry.child("ip"), entry.child("ipMode"), entry.child("hostname"));
        if !ip.is_empty() {
            ip.keep(names::is_ip_for_legacy_field, &mut errors);
        }
        match (ip.is_empty(), mode.is_set()) {
            (false, false) => errors.push(mode.required("must be specified when `ip` is set")),
            (true, true) => errors.push(mode.forbidden("may not be specified when `ip` is not set")),
            _ => mode.if_set_one_of(&["Proxy", "VIP"], &mut errors),
        }
        if !hostname.is_empty() {
            hostname.keep(names::is_dns1123_subdomain, &mut errors);
            if hostname.text().parse::<IpAddr>().is_ok() {
                errors.push(hostname.invalid("must be a DNS name, not an IP address"));
            }
        }
    }
    errors
}

/// Source: kubernetes `pkg/registry/core/service/strategy.go`, `serviceStatusStrategy`.
pub fn status_warnings(service: &Value, _old: Option<&Value>) -> Vec<String> {
    let ingress = Place::root(service).child("status").child("loadBalancer").child("ingress");
    let ips = ingress.items().filter_map(|entry| names::ip_warning(&entry.path, entry.child("ip").text()));
    ips.collect()
}

/// Source: kubernetes `pkg/api/service/warnings.go`.
pub fn warnings(service: &Value, _old: Option<&Value>) -> Vec<String> {
    let spec = Place::root(service).child("spec");
    let mut warnings: Vec<String> = spec
        .child("clusterIPs")
        .items()
        .filter(|ip| !ip.is("None"))
        .filter_map(|ip| names::ip_warning(&ip.path, ip.text()))
        .collect();
    let balancer = spec.child("loadBalancerIP");
    if !balancer.is_empty() {
        if is_headless(spec.value) {
            warnings.push("spec.loadBalancerIP is ignored for headless services".to_owned());
        }
        warnings.extend(names::ip_warning(&balancer.path, balancer.text()));
    }
    if is_headless(spec.value) && !is_empty(&spec.value["sessionAffinity"]) && !spec.child("sessionAffinity").is("None")
    {
        warnings.push("spec.SessionAffinity is ignored for headless services".to_owned());
    }
    if !spec.child("type").is("ExternalName") && !spec.child("externalName").is_empty() {
        warnings.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    warnings
}
