//! The status that a node reports.
//!
//! Source: kubernetes `pkg/apis/core/validation/validation.go`, `ValidatePodStatusUpdate`.

use std::net::IpAddr;

use api::field::Error;
use api::names;
use serde_json::Value;

use crate::place::Place;
use crate::strategy::same;
use crate::value::{is_empty, items, number, text};

pub fn validate(pod: &Value, old: Option<&Value>) -> Vec<Error> {
    let mut errors = Vec::new();
    let (status, spec) = (Place::root(pod).child("status"), &pod["spec"]);
    let Some(old) = old else { return errors };
    for condition in status.child("conditions").items() {
        let generation = condition.child("observedGeneration");
        if generation.number() < 0 {
            errors.push(generation.invalid("must be a non-negative integer"));
        }
        let kind = condition.child("type");
        if !matches!(kind.text(), "PodScheduled" | "Ready" | "Initialized") {
            let path = condition.path.child("Type");
            Place::new(kind.value, path).keep(names::is_qualified_name, &mut errors);
        }
    }
    let nominated = status.child("nominatedNodeName");
    if !nominated.is_empty() && !same(nominated.value, &old["status"]["nominatedNodeName"]) {
        nominated.keep(names::is_dns1123_subdomain, &mut errors);
    }
    let class = status.child("qosClass");
    if !same(class.value, &old["status"]["qosClass"]) {
        errors.push(class.invalid("field is immutable"));
    }
    transitions(&status, &old["status"], spec, &mut errors);
    addresses(&status, "podIP", "podIPs", &old["status"], &mut errors);
    addresses(&status, "hostIP", "hostIPs", &old["status"], &mut errors);
    errors
}

/// A container that has ended runs again only where its restart policy says so.
fn transitions(status: &Place<'_>, old: &Value, spec: &Value, errors: &mut Vec<Error>) {
    let policy = text(&spec["restartPolicy"]);
    if policy == "Always" {
        return;
    }
    for (field, list) in [("containerStatuses", "containers"), ("initContainerStatuses", "initContainers")] {
        let statuses = status.child(field);
        for (i, before) in items(&old[field]).iter().enumerate() {
            let ended = &before["state"]["terminated"];
            let failed = number(&ended["exitCode"]) != 0;
            let mut specs = items(&spec[list]).iter().filter(|container| container["name"] == before["name"]);
            let sidecar = specs.any(|container| text(&container["restartPolicy"]) == "Always");
            if ended.is_null() || sidecar || (failed && policy == "OnFailure") {
                continue;
            }
            let mut now = items(statuses.value).iter().filter(|now| now["name"] == before["name"]);
            if now.any(|now| now["state"]["terminated"].is_null()) {
                let path = statuses.path.index(i).child("state");
                errors.push(Error::forbidden(&path, "may not be transitioned to non-terminated state"));
            }
        }
    }
}

fn addresses(status: &Place<'_>, one: &str, all: &str, old: &Value, errors: &mut Vec<Error>) {
    let (single, list) = (status.child(one), status.child(all));
    let mut parsed = Vec::new();
    for entry in list.items() {
        let ip = entry.child("ip");
        if items(&old[all]).iter().all(|before| before["ip"] != *ip.value) {
            let why = names::is_ip_for_legacy_field(ip.text());
            errors.extend(why.into_iter().map(|why| Error::invalid(&entry.path, ip.text(), why)));
        }
        parsed.extend(ip.text().parse::<IpAddr>());
    }
    let one_family = parsed.iter().all(IpAddr::is_ipv4) || parsed.iter().all(IpAddr::is_ipv6);
    if list.len() > 2 || (list.len() == 2 && one_family) {
        errors.push(list.invalid("may specify no more than one IP for each IP family"));
    }
    if one == "podIP" && single.is_empty() != list.is_empty() {
        errors.push(list.invalid("podIP and podIPs must either both be set or both be unset"));
    } else if let Some(first) = list.items().next()
        && !is_empty(first.value)
        && first.child("ip").text() != single.text()
    {
        errors.push(first.child("ip").invalid(format!("must be equal to `{one}`")));
    }
}
