//! What is allowed in a pod, and probably not meant.
//!
//! Source: kubernetes `pkg/api/pod/warnings.go`.

use std::collections::{BTreeMap, BTreeSet};

use api::names;
use api::quantity::Quantity;
use serde_json::Value;

use crate::core::overlapping_paths;
use crate::place::Place;

/// Warnings about a pod or a template. Upstream gives none on updates of pods.
pub fn pod(metadata: &Place<'_>, spec: &Place<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    for (key, value) in metadata.child("annotations").entries() {
        if let Some(why) = deaf_annotation(key, spec) {
            warnings.push(format!("{}: {why}", value.path));
        }
    }
    for (key, value) in spec.child("nodeSelector").entries() {
        if let Some(instead) = deprecated_node_label(key) {
            warnings.push(format!("{}: {instead}", value.path));
        }
    }
    affinity(&spec.child("affinity").child("nodeAffinity"), &mut warnings);
    warnings.extend(overlapping_paths::warnings(&spec.child("volumes")));
    repeated(spec, "hostAliases", "ip", "duplicate ip", &mut warnings);
    repeated(spec, "imagePullSecrets", "name", "duplicate name", &mut warnings);
    for name in spec.child("imagePullSecrets").items().map(|secret| secret.child("name")) {
        if name.is_empty() {
            warnings.push(format!("{}: invalid empty name \"\"", name.path));
        }
    }
    let grace = spec.child("terminationGracePeriodSeconds");
    if grace.number() < 0 {
        warnings.push(format!("{}: must be >= 0; negative values are invalid and will be treated as 1", grace.path));
    }
    for list in ["initContainers", "containers"] {
        for container in spec.child(list).items() {
            of_container(&container, &mut warnings);
        }
    }
    ports(spec, &mut warnings);
    selinux(spec, &mut warnings);
    for server in spec.child("dnsConfig").child("nameservers").items() {
        warnings.extend(names::ip_warning(&server.path, server.text()));
    }
    for alias in spec.child("hostAliases").items() {
        let ip = alias.child("ip");
        warnings.extend(names::ip_warning(&ip.path, ip.text()));
    }
    warnings
}

/// Annotations that once did something.
fn deaf_annotation(key: &str, spec: &Place<'_>) -> Option<&'static str> {
    const SECCOMP: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    let has_profile = |place: &Place<'_>| place.child("securityContext").child("seccompProfile").is_set();
    if let Some(container) = key.strip_prefix("container.seccomp.security.alpha.kubernetes.io/") {
        let mut containers = ["initContainers", "containers"].into_iter().flat_map(|list| spec.child(list).items());
        let found = containers.find(|one| one.child("name").is(container));
        return found.is_some_and(|one| !has_profile(&one)).then_some(SECCOMP);
    }
    if key.starts_with("container.apparmor.security.beta.kubernetes.io/") {
        return Some("not supported yet by coracle: AppArmor profiles are not loaded");
    }
    match key {
        "scheduler.alpha.kubernetes.io/critical-pod" => {
            Some("non-functional in v1.16+; use the \"priorityClassName\" field instead")
        }
        "security.alpha.kubernetes.io/sysctls" | "security.alpha.kubernetes.io/unsafe-sysctls" => {
            Some("non-functional in v1.11+; use the \"sysctls\" field instead")
        }
        "seccomp.security.alpha.kubernetes.io/pod" if !has_profile(spec) => Some(SECCOMP),
        _ => None,
    }
}

/// Labels of required terms are validated instead.
fn affinity(node: &Place<'_>, warnings: &mut Vec<String>) {
    let required = node.child("requiredDuringSchedulingIgnoredDuringExecution").child("nodeSelectorTerms");
    let preferred = node.child("preferredDuringSchedulingIgnoredDuringExecution");
    let terms = required.items().map(|term| (term, false));
    for (term, preferred) in terms.chain(preferred.items().map(|term| (term.child("preference"), true))) {
        for expression in term.child("matchExpressions").items() {
            let key = expression.child("key");
            if let Some(instead) = deprecated_node_label(key.text()) {
                warnings.push(format!("{}: {} is {instead}", key.path, key.text()));
            }
            for value in expression.child("values").items().filter(|_| preferred) {
                let messages = names::is_label_value(value.text()).into_iter();
                warnings
                    .extend(messages.map(|message| format!("{}: {} is invalid, {message}", value.path, value.text())));
            }
        }
    }
}

fn deprecated_node_label(key: &str) -> Option<&'static str> {
    Some(match key {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
        }
        "beta.kubernetes.io/instance-type" => {
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"
        }
        _ => return None,
    })
}

fn repeated(spec: &Place<'_>, list: &str, field: &str, what: &str, warnings: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for item in spec.child(list).items() {
        let value = item.child(field).text();
        if !seen.insert(value) {
            warnings.push(format!("{}.{field}: {what} {value:?}", item.path));
        }
    }
}

fn of_container(container: &Place<'_>, warnings: &mut Vec<String>) {
    for list in ["limits", "requests"] {
        for (name, entry) in container.child("resources").child(list).entries() {
            let amount = Quantity::from_json(entry.value).unwrap_or_default();
            // A fraction of a byte: somebody wrote `128m` for 128 megabytes.
            if name == "memory" && Quantity::new(amount.value(), amount.format()) != amount {
                let written = amount.to_string();
                warnings
                    .push(format!("{}: fractional byte value {written:?} is invalid, must be an integer", entry.path));
            }
        }
    }
    let mut seen = BTreeSet::new();
    for variable in container.child("env").items() {
        let name = variable.child("name");
        // The same name again means to replace the value, unless the new value refers to the old one.
        let own = format!("$({})", name.text());
        let value = variable.child("value").text();
        let refers = !variable.child("valueFrom").is_set() && value.contains(&own) && value != own;
        if !seen.insert(name.text()) && !refers {
            warnings.push(format!(
                "{}: hides previous definition of {:?}, which may be dropped when using apply",
                variable.path,
                name.text()
            ));
        }
    }
}

/// Upstream ignores labels where SELinux is off, and says nothing.
fn selinux(spec: &Place<'_>, warnings: &mut Vec<String>) {
    let containers = ["initContainers", "containers"].into_iter().flat_map(|list| spec.child(list).items());
    for at in std::iter::once(spec.clone()).chain(containers) {
        let options = at.child("securityContext").child("seLinuxOptions");
        if options.is_set() {
            warnings.push(format!("{}: has no effect, SELinux labels are not set by coracle", options.path));
        }
    }
}

/// Ports that two containers, or one twice, claim.
fn ports(spec: &Place<'_>, warnings: &mut Vec<String>) {
    let all = || {
        let containers = ["initContainers", "containers"].into_iter().flat_map(|list| spec.child(list).items());
        containers.flat_map(|container| container.child("ports").items())
    };
    let mut seen: Vec<Place<'_>> = Vec::new();
    for port in all() {
        let same = |other: &Place<'_>, field: &str| port.child(field).value == other.child(field).value;
        let hosts = |other: &Place<'_>| [port.child("hostPort").number(), other.child("hostPort").number()];
        if !port.child("hostIP").is_empty() && port.child("hostPort").number() == 0 {
            let [name, protocol, host] = ["name", "protocol", "hostIP"].map(|field| port.child(field).text());
            let number = port.child("containerPort").number();
            warnings.push(format!(
                "{}: hostIP set without hostPort: {{Name:{name} HostPort:0 ContainerPort:{number} Protocol:{protocol} \
                 HostIP:{host}}}",
                port.path
            ));
        }
        for other in seen.iter().filter(|other| same(other, "containerPort") && same(other, "protocol")) {
            if same(other, "hostIP") && hosts(other)[0] == hosts(other)[1] {
                warnings.push(format!("{}: duplicate port definition with {}", port.path, other.path));
            } else if hosts(other).contains(&0) {
                warnings.push(format!("{}: overlapping port definition with {}", port.path, other.path));
            }
        }
        seen.push(port);
    }
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    for port in all() {
        let name = port.child("name").text();
        if let Some(first) = names.get(name) {
            warnings.push(format!(
                "{}: duplicate port name {name:?} with {first}, services and probes that select ports by name will use \
                 {first}",
                port.path
            ));
        } else if !name.is_empty() {
            names.insert(name, port.path.to_string());
        }
    }
}

/// Warnings about a new pod itself.
pub fn on_create(pod_object: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some() {
        return Vec::new();
    }
    let root = Place::root(pod_object);
    let messages = names::is_dns1123_label(root.child("metadata").child("name").text());
    let mut warnings = Vec::new();
    if !messages.is_empty() {
        warnings.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is \
             recommended: [{}]",
            messages.join(" ")
        ));
    }
    warnings.extend(pod(&root.child("metadata"), &root.child("spec")));
    warnings
}
