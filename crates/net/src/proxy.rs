//! Services as the kernel sees them: which address and port leads to which endpoints.
//!
//! Pure: Services and EndpointSlices in, the contents of the table's sets out. Semantics follow kube-proxy
//! (`pkg/proxy/{serviceport,topology}.go`); the shape of the table is [`crate::table`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// Transport protocols by their number in the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

impl Protocol {
    pub(crate) fn parse(name: Option<&str>) -> Option<Self> {
        match name.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

/// Where clients connect to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Frontend {
    /// A cluster IP, or an address of a load balancer.
    Address(IpAddr, Protocol, u16),
    /// A port on every address of the node, for one family.
    NodePort { ipv4: bool, protocol: Protocol, port: u16 },
    /// A pod's port at one address of the node, or on loopback.
    HostAddress(IpAddr, Protocol, u16),
    /// A pod's port on every address of the node, loopback included, for one family.
    HostPort { ipv4: bool, protocol: Protocol, port: u16 },
}

impl Frontend {
    pub fn is_ipv4(&self) -> bool {
        match self {
            Self::Address(ip, ..) | Self::HostAddress(ip, ..) => ip.is_ipv4(),
            Self::NodePort { ipv4, .. } | Self::HostPort { ipv4, .. } => *ipv4,
        }
    }

    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Address(_, protocol, _)
            | Self::NodePort { protocol, .. }
            | Self::HostAddress(_, protocol, _)
            | Self::HostPort { protocol, .. } => *protocol,
        }
    }
}

/// Where a frontend leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// In order, without repetitions. Empty: connections are refused, or dropped when `drop_when_empty`.
    pub endpoints: BTreeSet<(IpAddr, u16)>,
    /// How long a client stays with its endpoint.
    pub affinity_seconds: Option<u64>,
    /// A `Local` policy without a local endpoint, while others exist: upstream drops, so that load balancers go elsewhere.
    pub drop_when_empty: bool,
}

/// Every frontend of the cluster on this node.
pub type Services = BTreeMap<Frontend, Backend>;

/// Works out the frontends from all Services and EndpointSlices. `node` is this node's name.
pub fn services<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    node: &str,
) -> Services {
    let mut by_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        let name = slice.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
        if let (Some(namespace), Some(name)) = (&slice.metadata.namespace, name) {
            by_service.entry((namespace, name)).or_default().push(slice);
        }
    }
    let mut all = Services::new();
    for service in services {
        let key = (
            service.metadata.namespace.as_deref().unwrap_or_default(),
            service.metadata.name.as_deref().unwrap_or_default(),
        );
        add_service(service, by_service.get(&key).map_or(&[], Vec::as_slice), node, &mut all);
    }
    all
}

fn add_service(service: &Service, slices: &[&EndpointSlice], node: &str, all: &mut Services) {
    let Some(spec) = &service.spec else { return };
    let ips: Vec<IpAddr> = spec.cluster_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
    if spec.type_.as_deref() == Some("ExternalName") || ips.is_empty() {
        return;
    }
    let affinity_seconds = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let seconds = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
        u64::try_from(seconds.unwrap_or(10_800)).unwrap_or(10_800)
    });
    for port in spec.ports.iter().flatten() {
        let (Some(protocol), Ok(number)) = (Protocol::parse(port.protocol.as_deref()), u16::try_from(port.port)) else {
            continue;
        };
        let name = port.name.as_deref().unwrap_or_default();
        let backend = |ipv4: bool, local: bool| {
            let found = endpoints(slices, name, protocol, ipv4);
            let here = found.usable(|endpoint| !local || endpoint.node == Some(node));
            let drop_when_empty = local && here.is_empty() && !found.usable(|_| true).is_empty();
            Backend { endpoints: here, affinity_seconds, drop_when_empty }
        };
        let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
        let internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
        for ip in &ips {
            all.insert(Frontend::Address(*ip, protocol, number), backend(ip.is_ipv4(), internal_local));
        }
        if let Some(node_port) = port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0) {
            for ip in &ips {
                let frontend = Frontend::NodePort { ipv4: ip.is_ipv4(), protocol, port: node_port };
                all.insert(frontend, backend(ip.is_ipv4(), external_local));
            }
        }
        for ip in balanced(service) {
            // No one's load balancer takes another's cluster IP.
            let frontend = Frontend::Address(ip, protocol, number);
            all.entry(frontend).or_insert_with(|| backend(ip.is_ipv4(), external_local));
        }
    }
}

/// The addresses of a load balancer whose packets come as they were sent.
///
/// Source: kubernetes `pkg/proxy/serviceport.go`, `newBaseServiceInfo`.
fn balanced(service: &Service) -> impl Iterator<Item = IpAddr> {
    let is_one = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
    let status = service.status.as_ref().filter(|_| is_one).and_then(|status| status.load_balancer.as_ref());
    let entries = status.into_iter().flat_map(|status| status.ingress.iter().flatten());
    entries
        .filter(|entry| entry.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|entry| entry.ip.as_deref()?.parse().ok())
}

struct Endpoint<'a> {
    address: (IpAddr, u16),
    ready: bool,
    serving: bool,
    terminating: bool,
    node: Option<&'a str>,
}

struct Endpoints<'a>(Vec<Endpoint<'a>>);

impl Endpoints<'_> {
    /// Ready ones; when there are none, those that still serve while they terminate (KEP-1669).
    fn usable(&self, wanted: impl Fn(&Endpoint<'_>) -> bool) -> BTreeSet<(IpAddr, u16)> {
        let of = |state: fn(&Endpoint<'_>) -> bool| -> BTreeSet<_> {
            self.0.iter().filter(|e| state(e) && wanted(e)).map(|e| e.address).collect()
        };
        let ready = of(|e| e.ready);
        if ready.is_empty() { of(|e| e.serving && e.terminating) } else { ready }
    }
}

fn endpoints<'a>(slices: &[&'a EndpointSlice], port_name: &str, protocol: Protocol, ipv4: bool) -> Endpoints<'a> {
    let mut found = Vec::new();
    let family = if ipv4 { "IPv4" } else { "IPv6" };
    for slice in slices.iter().filter(|slice| slice.address_type == family) {
        let ports = slice.ports.iter().flatten();
        let matching = ports.filter(|p| {
            p.name.as_deref().unwrap_or_default() == port_name
                && Protocol::parse(p.protocol.as_deref()) == Some(protocol)
        });
        for port in matching.filter_map(|p| u16::try_from(p.port?).ok()) {
            for endpoint in slice.endpoints.iter().flatten() {
                let conditions = endpoint.conditions.clone().unwrap_or_default();
                let terminating = conditions.terminating.unwrap_or(false);
                let ready = conditions.ready.unwrap_or(true);
                // Every address of an endpoint is the same pod: only the first counts.
                let ip = endpoint.addresses.first().and_then(|a| a.parse().ok());
                found.extend(ip.filter(acceptable).map(|ip: IpAddr| Endpoint {
                    address: (ip, port),
                    ready,
                    serving: conditions.serving.unwrap_or(ready),
                    terminating,
                    node: endpoint.node_name.as_deref(),
                }));
            }
        }
    }
    Endpoints(found)
}

/// Endpoints on loopback or link-local addresses would open the node's own services (CVE-2021-25737).
fn acceptable(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::*;

    fn check(spec: Value, endpoints: &[Value], expected: Expect) {
        check_with(spec, json!({}), endpoints, expected);
    }

    fn check_with(spec: Value, status: Value, endpoints: &[Value], expected: Expect) {
        let service = json!({"metadata": {"namespace": "rack", "name": "web"}, "spec": spec, "status": status});
        let slice = json!({
            "metadata": {"namespace": "rack", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        });
        let service: Service = serde_json::from_value(service).expect("service");
        let slice: EndpointSlice = serde_json::from_value(slice).expect("slice");
        let mut shown = String::new();
        for (frontend, backend) in services([&service], [&slice], "here") {
            let ends: Vec<String> = backend.endpoints.iter().map(|(ip, port)| format!("{ip}:{port}")).collect();
            shown.push_str(&format!("{frontend:?} → [{}]", ends.join(" ")));
            if backend.drop_when_empty {
                shown.push_str(" drop");
            }
            if let Some(seconds) = backend.affinity_seconds {
                shown.push_str(&format!(" for {seconds}s"));
            }
            shown.push('\n');
        }
        expected.assert_eq(&shown);
    }

    fn endpoint(ip: &str, node: &str, conditions: Value) -> Value {
        json!({"addresses": [ip], "nodeName": node, "conditions": conditions})
    }

    #[test]
    fn ready_endpoints_of_the_named_port() {
        check(
            json!({"clusterIPs": ["10.96.0.7"], "ports": [{"name": "http", "port": 80}]}),
            &[
                endpoint("10.244.0.3", "here", json!({"ready": true})),
                endpoint("10.244.0.4", "here", json!({"ready": false})),
            ],
            expect![[r#"
                Address(10.96.0.7, Tcp, 80) → [10.244.0.3:8080]
            "#]],
        );
    }

    #[test]
    fn terminating_ones_serve_when_no_other_does() {
        check(
            json!({"clusterIPs": ["10.96.0.7"], "ports": [{"name": "http", "port": 80}]}),
            &[endpoint("10.244.0.3", "here", json!({"ready": false, "serving": true, "terminating": true}))],
            expect![[r#"
                Address(10.96.0.7, Tcp, 80) → [10.244.0.3:8080]
            "#]],
        );
    }

    #[test]
    fn local_policies_keep_to_this_node() {
        check(
            json!({"clusterIPs": ["10.96.0.7"], "externalTrafficPolicy": "Local", "type": "NodePort",
                   "ports": [{"name": "http", "port": 80, "nodePort": 30080}], "sessionAffinity": "ClientIP"}),
            &[endpoint("10.244.1.3", "there", json!({}))],
            expect![[r#"
                Address(10.96.0.7, Tcp, 80) → [10.244.1.3:8080] for 10800s
                NodePort { ipv4: true, protocol: Tcp, port: 30080 } → [] drop for 10800s
            "#]],
        );
    }

    #[test]
    fn addresses_of_a_load_balancer_lead_to_its_endpoints() {
        check_with(
            json!({"clusterIPs": ["10.96.0.7"], "type": "LoadBalancer", "ports": [{"name": "http", "port": 80}]}),
            json!({"loadBalancer": {"ingress": [
                {"ip": "203.0.113.1", "ipMode": "VIP"}, {"ip": "203.0.113.2", "ipMode": "Proxy"},
                {"hostname": "web.example"}, {"ip": "10.96.0.7", "ipMode": "VIP"},
            ]}}),
            &[endpoint("10.244.0.3", "here", json!({}))],
            expect![[r#"
                Address(10.96.0.7, Tcp, 80) → [10.244.0.3:8080]
                Address(203.0.113.1, Tcp, 80) → [10.244.0.3:8080]
            "#]],
        );
    }

    #[test]
    fn endpoints_on_loopback_are_not_reached() {
        check(
            json!({"clusterIPs": ["10.96.0.7"], "ports": [{"name": "http", "port": 80}]}),
            &[endpoint("127.0.0.1", "here", json!({})), endpoint("169.254.169.254", "here", json!({}))],
            expect![[r#"
                Address(10.96.0.7, Tcp, 80) → []
            "#]],
        );
    }

    #[test]
    fn headless_services_have_no_frontend() {
        check(json!({"clusterIPs": ["None"], "ports": [{"name": "http", "port": 80}]}), &[], expect![""]);
    }
}
