//! The fields of a Service that depend on each other and on the cluster: types, families, addresses, node ports.
//!
//! Source: kubernetes `pkg/registry/core/service/strategy.go` (`dropTypeDependentFields`),
//! `storage/storage.go` (`patchAllocatedValues`, `normalizeClusterIPs`) and `storage/alloc.go` (`initIPFamilyFields`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::field::{Error, Path};
use serde_json::{Value, json};

use crate::core::service_validation;
use crate::strategy::{keep_status, same};
use crate::value::{
    copy, default, default_text, drop_zero, is_empty, items, items_mut, number, object, remove, set, text,
};

/// Keeps the status, drops what the new type has no use for, and keeps addresses and ports that were allotted.
pub fn prepare(service: &mut Value, old: Option<&Value>) {
    keep_status(service, old, &json!({"loadBalancer": {}}));
    if !is_load_balancer(&service["spec"])
        && let Some(status) = service.get_mut("status")
    {
        set(status, "loadBalancer", json!({}));
    }
    let Some(spec) = service.get_mut("spec") else { return };
    if let Some(old) = old {
        drop_type_dependent(spec, &old["spec"]);
        keep_allotted(spec, &old["spec"]);
    }
    normalize_cluster_ips(spec, old.map(|old| &old["spec"]));
}

fn needs_cluster_ip(spec: &Value) -> bool {
    text(&spec["type"]) != "ExternalName"
}

fn needs_node_port(spec: &Value) -> bool {
    matches!(text(&spec["type"]), "NodePort" | "LoadBalancer")
}

fn is_load_balancer(spec: &Value) -> bool {
    text(&spec["type"]) == "LoadBalancer"
}

fn node_ports(spec: &Value) -> BTreeSet<i64> {
    items(&spec["ports"]).iter().map(|port| number(&port["nodePort"])).filter(|&port| port != 0).collect()
}

/// Clears fields that the new type has no use for, where the client did not touch them.
fn drop_type_dependent(new: &mut Value, old: &Value) {
    let unchanged = |new: &Value, field: &str| same(&new[field], &old[field]);
    if needs_cluster_ip(old) && !needs_cluster_ip(new) {
        if unchanged(new, "clusterIP") && unchanged(new, "clusterIPs") {
            remove(new, "clusterIP");
            remove(new, "clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if unchanged(new, field) {
                remove(new, field);
            }
        }
    }
    if needs_node_port(old) && !needs_node_port(new) && node_ports(old).is_superset(&node_ports(new)) {
        for port in items_mut(new.get_mut("ports")) {
            remove(port, "nodePort");
        }
    }
    if needs_node_port(old) && !needs_node_port(new) && unchanged(new, "externalTrafficPolicy") {
        remove(new, "externalTrafficPolicy");
    }
    if is_load_balancer(old) && !is_load_balancer(new) {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if unchanged(new, field) {
                remove(new, field);
            }
        }
    }
}

/// Lets a client leave out what the server had filled in.
fn keep_allotted(new: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        for field in ["clusterIP", "clusterIPs"] {
            if is_empty(&new[field]) {
                copy(new, field, old);
            }
        }
    }
    if needs_node_port(old) && needs_node_port(new) {
        let kept: BTreeSet<i64> = node_ports(old).intersection(&node_ports(new)).copied().collect();
        let by_name: BTreeMap<&str, i64> =
            items(&old["ports"]).iter().map(|port| (text(&port["name"]), number(&port["nodePort"]))).collect();
        for port in items_mut(new.get_mut("ports")) {
            let had = by_name.get(text(&port["name"])).copied().unwrap_or(0);
            if number(&port["nodePort"]) == 0 && had != 0 && !kept.contains(&had) {
                set(port, "nodePort", had);
            }
        }
    }
}

/// Brings the singular and the plural address together for clients that know only one of them.
fn normalize_cluster_ips(new: &mut Value, old: Option<&Value>) {
    let one = new["clusterIP"].clone();
    let Some(old) = old else {
        if !is_empty(&one) && is_empty(&new["clusterIPs"]) {
            set(new, "clusterIPs", json!([one]));
        }
        return;
    };
    let same_one = same(&one, &old["clusterIP"]);
    let same_all = same(&new["clusterIPs"], &old["clusterIPs"]);
    if same_one && is_empty(&new["clusterIPs"]) {
        copy(new, "clusterIPs", old);
    } else if !same_one && same_all {
        if is_empty(&one) {
            remove(new, "clusterIPs");
        } else {
            set(new, "clusterIPs", json!([one]));
        }
    }
}

/// Fills in `ipFamilyPolicy` and `ipFamilies`, so that the addresses to allot are known: one for each family beyond
/// those in `clusterIPs`, unless the service is headless.
///
/// `configured` are the cluster's families, `IPv4` or `IPv6`, the default one first.
///
/// # Errors
/// Every combination that the cluster cannot give.
pub fn init_families(service: &mut Value, old: Option<&Value>, configured: &[&str]) -> Result<(), Vec<Error>> {
    let old = old.map(|old| &old["spec"]);
    let Some(spec) = service.get_mut("spec") else { return Ok(()) };
    if text(&spec["type"]) == "ExternalName" || old.is_some_and(|old| keeps_preferring_dual_stack(spec, old)) {
        return Ok(());
    }
    let headless = text(&spec["clusterIP"]) == "None";
    let selectorless = headless && is_empty(&spec["selector"]);
    let inherited = old.map_or("", |old| text(&old["ipFamilyPolicy"]));
    let policy = match (inherited, selectorless) {
        ("", true) => "RequireDualStack",
        ("", false) => "SingleStack",
        (inherited, _) => inherited,
    };
    default(spec, "ipFamilyPolicy", policy);
    let errors = service_validation::validate_cluster_ips(spec, old);
    if !errors.is_empty() {
        return Err(errors);
    }
    let single = text(&spec["ipFamilyPolicy"]) == "SingleStack";
    let errors = [release_secondary(spec, old, single), infer_families(spec, configured)].concat();
    if !errors.is_empty() {
        return Err(errors);
    }
    if is_empty(&spec["ipFamilies"]) && (selectorless || !configured.is_empty()) {
        set(spec, "ipFamilies", json!([configured.first().copied().unwrap_or("IPv4")]));
    }
    if !selectorless {
        let errors = unavailable(spec, configured);
        if !errors.is_empty() {
            return Err(errors);
        }
    }
    if !single && items(&spec["ipFamilies"]).len() == 1 && (selectorless || configured.len() == 2) {
        let first = text(&spec["ipFamilies"][0]).to_owned();
        let second = if first == "IPv4" { "IPv6" } else { "IPv4" };
        set(spec, "ipFamilies", json!([first, second]));
    }
    Ok(())
}

/// An untouched `PreferDualStack` service stays as it is when the cluster gains or loses a family.
fn keeps_preferring_dual_stack(new: &Value, old: &Value) -> bool {
    let prefers = |spec: &Value| text(&spec["ipFamilyPolicy"]) == "PreferDualStack";
    prefers(new)
        && (prefers(old) || is_empty(&old["ipFamilyPolicy"]))
        && needs_cluster_ip(new)
        && ["type", "clusterIPs", "ipFamilies"].iter().all(|&field| same(&new[field], &old[field]))
}

fn release_secondary(spec: &mut Value, old: Option<&Value>, single: bool) -> Vec<Error> {
    let at = Path::new("spec").child("ipFamilyPolicy");
    let policy = spec["ipFamilyPolicy"].clone();
    let mut errors = Vec::new();
    for (field, thing) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let now = items(&spec[field]).len();
        let Some(old) = old else { continue };
        if single && now > 1 && same(&spec[field], &old[field]) {
            let first = spec[field][0].clone();
            set(spec, field, json!([first]));
        } else if !single && now != 0 && items(&old[field]).len() > now {
            let detail = format!("must be 'SingleStack' to release the secondary {thing}");
            errors.push(Error::invalid(&at, policy.clone(), detail));
        }
    }
    for (field, thing) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
        if single && items(&spec[field]).len() == 2 {
            let detail = format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {thing} are specified");
            errors.push(Error::invalid(&at, policy.clone(), detail));
        }
    }
    errors
}

/// Adds the families of the addresses that were asked for.
fn infer_families(spec: &mut Value, configured: &[&str]) -> Vec<Error> {
    let mut families: Vec<Value> = items(&spec["ipFamilies"]).to_vec();
    let mut errors = Vec::new();
    for (i, ip) in items(&spec["clusterIPs"]).iter().enumerate() {
        let family = match text(ip).parse() {
            Ok(IpAddr::V4(_)) => "IPv4",
            Ok(IpAddr::V6(_)) => "IPv6",
            Err(_) => break,
        };
        if i < families.len() {
            continue;
        }
        if configured.contains(&family) {
            families.push(json!(family));
        } else {
            let at = Path::new("spec").child("clusterIPs").index(i);
            let detail = format!("{family} is not configured on this cluster");
            errors.push(Error::invalid(&at, spec["clusterIPs"].clone(), detail));
        }
    }
    if !families.is_empty() {
        set(spec, "ipFamilies", families);
    }
    errors
}

fn unavailable(spec: &Value, configured: &[&str]) -> Vec<Error> {
    let at = Path::new("spec");
    let mut errors = Vec::new();
    if text(&spec["ipFamilyPolicy"]) == "RequireDualStack" && configured.len() < 2 {
        let detail = "this cluster is not configured for dual-stack services";
        errors.push(Error::invalid(&at.child("ipFamilyPolicy"), spec["ipFamilyPolicy"].clone(), detail));
    }
    for (i, family) in items(&spec["ipFamilies"]).iter().enumerate() {
        if !configured.contains(&text(family)) {
            let detail = "not configured on this cluster";
            errors.push(Error::invalid(&at.child("ipFamilies").index(i), family.clone(), detail));
        }
    }
    errors
}

/// Fills in what a Service gets where it says nothing.
///
/// Source: kubernetes `pkg/apis/core/v1/defaults.go`, `SetDefaults_Service`.
pub fn fill(service: &mut Value) {
    let Some(spec) = object(service, "spec") else { return };
    drop_zero(
        spec,
        &[
            "clusterIP",
            "clusterIPs",
            "externalIPs",
            "externalName",
            "ipFamilies",
            "loadBalancerIP",
            "ports",
            "publishNotReadyAddresses",
            "selector",
        ],
    );
    default_text(spec, "sessionAffinity", "None");
    match text(&spec["sessionAffinity"]) {
        "None" => drop(remove(spec, "sessionAffinityConfig")),
        "ClientIP" if spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].is_null() => {
            set(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
        }
        _ => {}
    }
    default_text(spec, "type", "ClusterIP");
    for port in items_mut(spec.get_mut("ports")) {
        drop_zero(port, &["name", "nodePort"]);
        default_text(port, "protocol", "TCP");
        let target = &port["targetPort"];
        if is_empty(target) || target.as_i64() == Some(0) {
            let own = port["port"].clone();
            set(port, "targetPort", own);
        }
    }
    if needs_node_port(spec) || !is_empty(&spec["externalIPs"]) {
        default_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(text(&spec["type"]), "NodePort" | "LoadBalancer" | "ClusterIP") {
        default(spec, "internalTrafficPolicy", "Cluster");
    }
    if is_load_balancer(spec) {
        default(spec, "allocateLoadBalancerNodePorts", true);
        for entry in items_mut(service["status"]["loadBalancer"].get_mut("ingress")) {
            if !text(&entry["ip"]).is_empty() {
                default(entry, "ipMode", "VIP");
            }
        }
    }
}
