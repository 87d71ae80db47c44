//! Which pods stand behind a service, and at which addresses and ports.
//!
//! Source: k8s.io/endpointslice `util/controller_utils.go`, `utils.go`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::key::{GroupResource, Key};
use api::object::Object;
use api::selector::Selector;
use client::Resource;
use client::informer::Delta;
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;

use crate::pod;
use crate::views::{Views, decode};

/// The label that EndpointSlices and Endpoints of services without a cluster IP carry.
pub const HEADLESS: &str = "service.kubernetes.io/headless";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(ip: &IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn parse(name: &str) -> Option<Self> {
        match name {
            "IPv4" => Some(Self::V4),
            "IPv6" => Some(Self::V6),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// The specification of a service whose endpoints are ours to write: it has a selector and is more than a name.
pub fn selecting(service: &Service) -> Option<&ServiceSpec> {
    let spec = service.spec.as_ref()?;
    (spec.selector.is_some() && spec.type_.as_deref() != Some("ExternalName")).then_some(spec)
}

pub fn selector(spec: &ServiceSpec) -> Selector {
    spec.selector.as_ref().map_or_else(Selector::nothing, Selector::from_labels)
}

pub fn is_headless(spec: &ServiceSpec) -> bool {
    matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"))
}

/// The families in which a service has endpoints, the first one first.
pub fn families(spec: &ServiceSpec) -> Vec<Family> {
    let named: Vec<Family> = spec.ip_families.iter().flatten().filter_map(|name| Family::parse(name)).collect();
    if !named.is_empty() {
        return named;
    }
    match spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok()) {
        Some(ip) => vec![Family::of(&ip)],
        None => vec![Family::V4, Family::V6],
    }
}

/// Whether a pod can have endpoints: it has an address and has not ended.
pub fn has_endpoints(pod: &Pod) -> bool {
    !pod::is_terminal(pod) && !addresses(pod).is_empty()
}

pub fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect()
}

/// The port of a pod that a service's port leads to; `None` when the pod has no port of that name.
pub fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        Some(IntOrString::String(name)) => name,
        Some(IntOrString::Int(number)) => return Some(*number),
        None => return Some(port.port),
    };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let protocol = |protocol: &Option<String>| protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    let mut ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let named =
        ports.find(|found| found.name.as_ref() == Some(name) && protocol(&found.protocol) == protocol(&port.protocol));
    named.map(|found| found.container_port)
}

/// The host name under which a headless service publishes a pod.
pub fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let name = spec.hostname.clone().filter(|name| !name.is_empty())?;
    let is_subdomain = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    (is_subdomain && pod.metadata.namespace == service.metadata.namespace).then_some(name)
}

/// The parts of a pod by which endpoints change.
#[derive(Debug, PartialEq, Deserialize)]
struct Outline {
    #[serde(default)]
    spec: SpecOutline,
    #[serde(default)]
    status: StatusOutline,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecOutline {
    node_name: Option<String>,
    hostname: Option<String>,
    subdomain: Option<String>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatusOutline {
    phase: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<BTreeMap<String, String>>>,
    conditions: Option<Vec<ConditionOutline>>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct ConditionOutline {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

fn outline(pod: &Object) -> Option<Outline> {
    let mut outline: Outline = serde_json::from_slice(pod.draft().body()).ok()?;
    if let Some(conditions) = &mut outline.status.conditions {
        conditions.retain(|condition| condition.kind == "Ready");
    }
    Some(outline)
}

/// The services whose endpoints may change because a pod did.
pub fn behind_pod(delta: &Delta, views: &Views) -> Vec<Key> {
    if let (Some(old), Some(new)) = (&delta.old, &delta.new) {
        let (before, after) = (old.meta(), new.meta());
        let same_meta =
            before.uid == after.uid && before.labels == after.labels && before.is_deleting() == after.is_deleting();
        if same_meta && outline(old) == outline(new) {
            return Vec::new();
        }
    }
    let services = views.of::<Service>().in_namespace(delta.key.namespace());
    let selecting = services.filter(|service| {
        let service = decode::<Service>(service);
        let selector = service.as_ref().and_then(self::selecting).map(selector);
        selector.is_some_and(|selector| delta.states().any(|pod| selector.matches(&pod.meta().labels)))
    });
    selecting.map(|service| service.key().clone()).collect()
}

/// The pods that a service selects.
pub fn pods(spec: &ServiceSpec, namespace: &str, views: &Views) -> Vec<Pod> {
    let selector = selector(spec);
    let pods = views.of::<Pod>().in_namespace(namespace);
    pods.filter(|pod| selector.matches(&pod.meta().labels)).filter_map(|pod| decode(pod)).collect()
}

pub fn resource() -> GroupResource {
    Resource::of::<Service>().resource
}
