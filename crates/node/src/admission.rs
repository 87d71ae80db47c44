//! Whether this node takes a pod that was bound to it: pure.
//!
//! Sources: lifecycle/predicate.go; scheduler `framework/plugins/{noderesources,nodeaffinity,nodename,nodeports}`, as far as
//! `AdmissionCheck` runs them; lifecycle/handlers.go (AppArmor); sysctl/allowlist.go.

use std::collections::{BTreeMap, BTreeSet};

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration};

use crate::resources::{self, Amounts, Side};

/// Why a pod is refused: its status' reason and message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    pub message: String,
}

/// Sysctls that every pod may set. Source: sysctl/safe_sysctls.go.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

fn refuse(reason: &str, message: impl Into<String>) -> Result<(), Refusal> {
    Err(Refusal { reason: reason.to_owned(), message: message.into() })
}

fn predicate(name: &str, description: &str) -> Result<(), Refusal> {
    refuse(name, format!("Predicate {name} failed: {description}"))
}

/// Decides about `pod` beside `others`, the pods that run on the node already.
///
/// # Errors
/// The first reason against it.
pub fn admit<'a>(pod: &Pod, node: &Node, others: impl Iterator<Item = &'a Pod> + Clone) -> Result<(), Refusal> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    os(pod, spec)?;
    security(spec)?;
    fits(spec, node, others.clone())?;
    if !affinity_matches(spec, node) {
        predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector")?;
    }
    ports(spec, others)?;
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let evicts = |taint: &&Taint| taint.effect == "NoExecute" && !tolerated(taint, spec.tolerations.iter().flatten());
    if taints.into_iter().any(|taint| evicts(&taint)) {
        predicate("TaintToleration", "node(s) had untolerated taint(s)")?;
    }
    Ok(())
}

fn os(pod: &Pod, spec: &PodSpec) -> Result<(), Refusal> {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/os"));
    if label.is_some_and(|os| os != "linux") {
        let text = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        refuse("PodOSSelectorNodeLabelDoesNotMatch", text)?;
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        refuse("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS")?;
    }
    Ok(())
}

/// What this node cannot enforce is not run without.
fn security(spec: &PodSpec) -> Result<(), Refusal> {
    let contexts =
        spec.init_containers.iter().flatten().chain(&spec.containers).filter_map(|c| c.security_context.as_ref());
    let of_pod = spec.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    let mut profiles = contexts.filter_map(|context| context.app_armor_profile.as_ref()).chain(of_pod);
    if profiles.any(|profile| profile.type_ != "Unconfined") {
        refuse("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host")?;
    }
    let sysctls = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    for sysctl in sysctls {
        let name = sysctl.name.replace('/', ".");
        let host = if name.starts_with("net.") { spec.host_network } else { spec.host_ipc };
        if host == Some(true) {
            let what = if name.starts_with("net.") { "host net" } else { "host ipc" };
            refuse("SysctlForbidden", format!("forbidden sysctl: {name:?} not allowed with {what} enabled"))?;
        }
        if !SAFE_SYSCTLS.contains(&name.as_str()) {
            refuse("SysctlForbidden", format!("forbidden sysctl: {name:?} not allowlisted"))?;
        }
    }
    Ok(())
}

fn fits<'a>(spec: &PodSpec, node: &Node, others: impl Iterator<Item = &'a Pod>) -> Result<(), Refusal> {
    let status = node.status.as_ref();
    let allocatable: Amounts = status
        .iter()
        .flat_map(|status| status.allocatable.iter().flatten())
        .filter_map(|(name, amount)| Some((name.clone(), amount.0.parse().ok()?)))
        .collect();
    let (mut used, mut count) = (Amounts::new(), 0);
    for other in others.filter_map(|other| other.spec.as_ref()) {
        count += 1;
        for (name, amount) in resources::of_pod(other, Side::Requests) {
            let sum = used.entry(name).or_insert(Quantity::ZERO);
            *sum = *sum + amount;
        }
    }
    let text = |name: &str, requested: i64, used: i64, capacity: i64| {
        format!("Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}")
    };
    if let Some(pods) = allocatable.get("pods").map(Quantity::value)
        && count + 1 > pods
    {
        refuse("OutOfpods", text("pods", 1, count, pods))?;
    }
    for (name, wanted) in resources::of_pod(spec, Side::Requests) {
        // What the node does not offer at all may be a cluster's resource: the scheduler has seen to it.
        let Some(capacity) = allocatable.get(&name).copied() else { continue };
        let before = used.get(&name).copied().unwrap_or(Quantity::ZERO);
        if wanted.is_zero() || wanted + before <= capacity {
            continue;
        }
        let number = |amount: Quantity| if name == "cpu" { amount.millis() } else { amount.value() };
        refuse(&format!("OutOf{name}"), text(&name, number(wanted), number(before), number(capacity)))?;
    }
    Ok(())
}

fn ports<'a>(spec: &PodSpec, others: impl Iterator<Item = &'a Pod>) -> Result<(), Refusal> {
    let of = |spec: &PodSpec| -> BTreeSet<(String, i32, String)> {
        let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let containers = sidecars.chain(&spec.containers);
        let ports = containers.flat_map(|container| container.ports.iter().flatten());
        ports
            .filter_map(|port| {
                let number = port.host_port.filter(|number| *number > 0)?;
                let ip = port
                    .host_ip
                    .clone()
                    .filter(|ip| !ip.is_empty() && ip != "::")
                    .unwrap_or_else(|| "0.0.0.0".to_owned());
                Some((port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), number, ip))
            })
            .collect()
    };
    let wanted = of(spec);
    if wanted.is_empty() {
        return Ok(());
    }
    for (protocol, number, ip) in others.filter_map(|other| other.spec.as_ref()).flat_map(of) {
        let clash = wanted.iter().any(|(other, port, address)| {
            *other == protocol && *port == number && (*address == ip || ip == "0.0.0.0" || address == "0.0.0.0")
        });
        if clash {
            predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports")?;
        }
    }
    Ok(())
}

fn tolerated<'a>(taint: &Taint, mut tolerations: impl Iterator<Item = &'a Toleration>) -> bool {
    tolerations.any(|toleration| client::toleration::tolerates(toleration, taint))
}

fn affinity_matches(spec: &PodSpec, node: &Node) -> bool {
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let name = node.metadata.name.as_deref().unwrap_or_default();
    selected
        && required
            .is_none_or(|required| required.node_selector_terms.iter().any(|term| term_matches(term, labels, name)))
}

fn term_matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let (expressions, fields) = (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
    // A term that says nothing matches nothing.
    let says_something = expressions.clone().next().is_some() || fields.clone().next().is_some();
    says_something
        && expressions.into_iter().all(|wanted| requirement_holds(wanted, labels.get(&wanted.key).map(String::as_str)))
        && fields.into_iter().all(|wanted| requirement_holds(wanted, (wanted.key == "metadata.name").then_some(name)))
}

fn requirement_holds(wanted: &NodeSelectorRequirement, found: Option<&str>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let among = found.is_some_and(|found| values.iter().any(|value| value == found));
    let compare = |holds: fn(i64, i64) -> bool| {
        let numbers = (found.and_then(|found| found.parse().ok()), values.first().and_then(|value| value.parse().ok()));
        matches!(numbers, (Some(found), Some(value)) if holds(found, value))
    };
    match wanted.operator.as_str() {
        "In" => among,
        "NotIn" => !among,
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compare(|found, value| found > value),
        "Lt" => compare(|found, value| found < value),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(spec: Value, others: &[Value], expected: Result<(), (&str, &str)>) {
        let pod = |spec: &Value| -> Pod {
            let mut spec = spec.clone();
            if spec.get("containers").is_none() {
                spec["containers"] = json!([]);
            }
            serde_json::from_value(json!({"spec": spec})).unwrap()
        };
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "rack", "labels": {"disk": "ssd", "gen": "7"}},
            "spec": {"taints": [{"key": "broken", "effect": "NoExecute"}]},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "3"}},
        }))
        .unwrap();
        let others: Vec<Pod> = others.iter().map(pod).collect();
        let mut spec = spec;
        if spec.get("tolerations").is_none() {
            spec["tolerations"] = json!([{"operator": "Exists"}]);
        }
        let found = admit(&pod(&spec), &node, others.iter());
        let shown = found.as_ref().copied().map_err(|refusal| (refusal.reason.as_str(), refusal.message.as_str()));
        assert_eq!(shown, expected);
    }

    fn cpu(amount: &str) -> Value {
        json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]})
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        check(cpu("1"), &[cpu("1")], Ok(()));
        check(
            cpu("1500m"),
            &[cpu("1")],
            Err(("OutOfcpu", "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000")),
        );
        let three = [json!({}), json!({}), json!({})];
        check(
            json!({}),
            &three,
            Err(("OutOfpods", "Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3")),
        );
    }

    #[test]
    fn labels_and_taints_count_here_too() {
        let affinity = |operator: &str, values: Value| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "gen", "operator": operator, "values": values}]},
            ]}}}})
        };
        let refused =
            Err(("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"));
        check(json!({"nodeSelector": {"disk": "ssd"}}), &[], Ok(()));
        check(json!({"nodeSelector": {"disk": "hdd"}}), &[], refused);
        check(affinity("Gt", json!(["6"])), &[], Ok(()));
        check(affinity("In", json!(["6"])), &[], refused);
        let untolerated =
            Err(("TaintToleration", "Predicate TaintToleration failed: node(s) had untolerated taint(s)"));
        check(json!({"tolerations": []}), &[], untolerated);
    }

    #[test]
    fn host_ports_belong_to_one_pod() {
        let port = |ip: &str| json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip}]}]});
        let taken = Err((
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        ));
        check(port(""), &[port("192.0.2.1")], taken);
        check(port("192.0.2.2"), &[port("192.0.2.1")], Ok(()));
    }

    #[test]
    fn what_cannot_be_enforced_is_refused() {
        let sysctl = |name: &str| json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        check(sysctl("net.ipv4.tcp_syncookies"), &[], Ok(()));
        check(
            sysctl("kernel.msgmax"),
            &[],
            Err(("SysctlForbidden", "forbidden sysctl: \"kernel.msgmax\" not allowlisted")),
        );
        check(
            json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}),
            &[],
            Err(("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host")),
        );
    }
}
