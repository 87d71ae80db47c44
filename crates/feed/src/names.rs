//! The cluster's names, as the Kubernetes DNS specification 1.1.0 has them.
//!
//! Source: kubernetes/dns `docs/specification.md`; CoreDNS `plugin/kubernetes` for the names of endpoints without a hostname.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::Endpoint;
use wire::edge::{Dns, Srv};

use crate::values::{Observed, Services};

/// The service behind which the DNS server is reached.
const DNS_SERVICE: (&str, &str) = ("kube-system", "kube-dns");

/// Compiles the names of all Services.
pub(crate) fn compile(observed: &Observed<'_>, services: &Services<'_>) -> Dns {
    let settings = observed.settings;
    let mut names = Names { dns: Dns::default() };
    for (namespace, name, service) in services.iter() {
        names.add(services, namespace, name, service);
    }
    if let Some(service) = services.get(DNS_SERVICE.0, DNS_SERVICE.1) {
        names.dns.addresses.insert("ns.dns".to_owned(), cluster_ips(service));
    }
    let mut dns = names.dns;
    for list in dns.addresses.values_mut() {
        list.sort_unstable();
        list.dedup();
    }
    for list in dns.services.values_mut() {
        list.sort_unstable();
        list.dedup();
    }
    for list in dns.reverse.values_mut() {
        list.sort_unstable();
        list.dedup();
    }
    dns.domain.clone_from(&settings.domain);
    dns.upstreams.clone_from(&settings.upstreams);
    dns.pod_ranges.clone_from(&settings.pod_ranges);
    let ranges = settings.service_ranges.iter().chain(&settings.pod_ranges);
    dns.reverse_zones = ranges.flat_map(|(base, length)| reverse_zones(*base, *length)).collect();
    dns
}

/// Whether the service's first family is IPv4.
pub(crate) fn primary_is_ipv4(service: &Service) -> bool {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref());
    families.and_then(|families| families.first()).is_none_or(|family| family != "IPv6")
}

fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut ips: Vec<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
    ips.sort_unstable();
    ips.dedup();
    ips
}

struct Names {
    dns: Dns,
}

impl Names {
    fn add(&mut self, services: &Services<'_>, namespace: &str, name: &str, service: &Service) {
        let Some(spec) = &service.spec else { return };
        let own = format!("{name}.{namespace}.svc");
        if spec.type_.as_deref() == Some("ExternalName") {
            if let Some(target) = spec.external_name.as_deref().filter(|target| !target.is_empty()) {
                self.dns.aliases.insert(own, target.trim_end_matches('.').to_ascii_lowercase());
            }
            return;
        }
        if spec.cluster_ip.as_deref() == Some("None") {
            return self.add_headless(services, namespace, name, service, &own);
        }
        let ips = cluster_ips(service);
        if ips.is_empty() {
            return;
        }
        for ip in &ips {
            self.dns.reverse.entry(*ip).or_default().push(own.clone());
        }
        for port in spec.ports.iter().flatten() {
            if let (Some(port_name), Ok(number)) = (&port.name, u16::try_from(port.port)) {
                self.add_port(port_name, port.protocol.as_deref(), &own, number, &own);
            }
        }
        self.dns.addresses.insert(own, ips);
    }

    fn add_headless(&mut self, services: &Services<'_>, namespace: &str, name: &str, service: &Service, own: &str) {
        let unready = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
        self.dns.addresses.entry(own.to_owned()).or_default();
        for slice in services.slices(namespace, name) {
            for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| unready || is_ready(endpoint)) {
                for ip in endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok()) {
                    let label = endpoint.hostname.clone().unwrap_or_else(|| dashed(ip));
                    let host = format!("{label}.{own}");
                    self.dns.addresses.entry(own.to_owned()).or_default().push(ip);
                    self.dns.addresses.entry(host.clone()).or_default().push(ip);
                    self.dns.reverse.entry(ip).or_default().push(host.clone());
                    for port in slice.ports.iter().flatten() {
                        let number = port.port.and_then(|port| u16::try_from(port).ok());
                        if let (Some(port_name), Some(number)) = (&port.name, number) {
                            self.add_port(port_name, port.protocol.as_deref(), own, number, &host);
                        }
                    }
                }
            }
        }
    }

    fn add_port(&mut self, port_name: &str, protocol: Option<&str>, own: &str, port: u16, target: &str) {
        if port_name.is_empty() {
            return;
        }
        let protocol = protocol.unwrap_or("TCP").to_ascii_lowercase();
        let record = Srv { port, target: target.to_owned() };
        self.dns.services.entry(format!("_{port_name}._{protocol}.{own}")).or_default().push(record);
    }
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

/// The reverse zones that cover a range: more than one where it does not end between labels.
fn reverse_zones(base: IpAddr, length: u8) -> Vec<String> {
    let (bits, width, step) = match base {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()), 32, 8),
        IpAddr::V6(ip) => (ip.to_bits(), 128, 4),
    };
    let length = u32::from(length).min(width);
    let labels = length.div_ceil(step);
    let first = bits.checked_shr(width - labels * step).unwrap_or(0);
    let spare = labels * step - length;
    let first = first >> spare << spare;
    let suffix = if base.is_ipv4() { "in-addr.arpa" } else { "ip6.arpa" };
    let zone = |prefix: u128| {
        let part = |index: u32| prefix >> (index * step) & ((1 << step) - 1);
        let text = |part: u128| if step == 8 { part.to_string() } else { format!("{part:x}") };
        (0..labels).map(|index| format!("{}.", text(part(index)))).collect::<String>() + suffix
    };
    (first..first + (1 << spare)).map(zone).collect()
}
