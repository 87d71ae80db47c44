//! Cluster IPs and node ports of services.
//!
//! What is taken is in the claims' keys of the store, so there is no second copy to repair. Dynamic allocation begins in
//! the upper band of a range and leaves the lower one to those who choose by hand. Source: kubernetes
//! `pkg/registry/core/service/{ipallocator,portallocator}`, `storage/alloc.go`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use api::cidr::Cidr;
use api::field::{Error, Path};
use kinds::core::service_update::init_families;
use kinds::kind::Kind;
use serde_json::{Value, json};
use store::Snapshot;

use crate::hooks::{Allocator, Rng, Unallocated};
use crate::registry::claims;
use crate::registry::metadata::random_below;

/// The ranges that services get their addresses and ports from.
pub struct Services {
    /// One range for each family, the default family first.
    pub ranges: Vec<Cidr>,
    pub node_ports: RangeInclusive<u16>,
    pub rng: Rng,
}

/// Upstream's default.
pub const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;

const IPS: &str = "cluster-ips";
const PORTS: &str = "node-ports";

impl Allocator for Services {
    fn allocate(
        &self,
        kind: &Kind,
        object: &mut Value,
        old: Option<&Value>,
        snapshot: &Snapshot,
    ) -> Result<(), Unallocated> {
        if !kind.names.resource.group.is_empty() || kind.names.resource.resource != "services" {
            return Ok(());
        }
        let families: Vec<&str> = self.ranges.iter().map(family).collect();
        init_families(object, old, &families).map_err(Unallocated::Invalid)?;
        self.addresses(object, snapshot)?;
        self.ports(object, snapshot)
    }
}

fn family(range: &Cidr) -> &'static str {
    if range.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// A range's usable numbers: how many there are from 1 on, and how many of the first are left to choice by hand.
fn bands(range: &Cidr) -> (u128, u128) {
    let width: u32 = if range.is_ipv4() { 32 } else { 128 };
    let size = 1_u128.checked_shl(width - u32::from(range.prefix())).unwrap_or(u128::MAX);
    // The first address names the network; in IPv4 the last one is its broadcast address.
    let last = if range.is_ipv4() { size.saturating_sub(2) } else { size - 1 };
    (last, (size / 16).clamp(16, 256).min(last))
}

impl Services {
    fn addresses(&self, service: &mut Value, snapshot: &Snapshot) -> Result<(), Unallocated> {
        let spec = &service["spec"];
        if spec["type"] == "ExternalName" || spec["clusterIP"] == "None" {
            return Ok(());
        }
        let path = Path::new("spec").child("clusterIPs");
        let mut errors = Vec::new();
        let mut ips: Vec<Value> = spec["clusterIPs"].as_array().cloned().unwrap_or_default();
        for (index, ip) in ips.iter().enumerate() {
            // Addresses that are none are for validation to refuse.
            let Some(Ok(parsed)) = ip.as_str().map(str::parse::<IpAddr>) else { continue };
            let Some(range) = self.ranges.iter().find(|range| range.is_ipv4() == parsed.is_ipv4()) else { continue };
            let (last, _) = bands(range);
            if !range.contains(parsed) || parsed == range.nth(0) || parsed == range.nth(last + 1) && range.is_ipv4() {
                let why = format!(
                    "failed to allocate IP {parsed}: the provided IP ({parsed}) is not in the valid range. The range of valid IPs is {range}"
                );
                errors.push(Error::invalid(&path.index(index), ip.clone(), why));
            }
        }
        if !errors.is_empty() {
            return Err(Unallocated::Invalid(errors));
        }
        let families: Vec<String> =
            spec["ipFamilies"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        for wanted in families.iter().skip(ips.len()) {
            let Some(range) = self.ranges.iter().find(|range| family(range) == wanted.as_str()) else { continue };
            ips.push(self.free_address(range, snapshot)?.to_string().into());
        }
        if let Some(first) = ips.first().cloned() {
            service["spec"]["clusterIP"] = first;
            service["spec"]["clusterIPs"] = ips.into();
        }
        Ok(())
    }

    fn free_address(&self, range: &Cidr, snapshot: &Snapshot) -> Result<IpAddr, Unallocated> {
        let (last, reserved) = bands(range);
        let free = |n: u128| snapshot.get(&claims::key(IPS, &range.nth(n).to_string())).is_none();
        let found = self.search(reserved + 1, last, free).or_else(|| self.search(1, reserved, free));
        found
            .map(|n| range.nth(n))
            .ok_or_else(|| Unallocated::Exhausted(format!("failed to allocate a serviceIP: range is full: {range}")))
    }

    /// The first free number at or behind a random place, going round once.
    fn search(&self, first: u128, last: u128, free: impl Fn(u128) -> bool) -> Option<u128> {
        if first > last {
            return None;
        }
        let size = last - first + 1;
        let start = random_below(&self.rng, size);
        // No cluster has so many services that a free one is farther away than this.
        (0..size.min(1 << 20)).map(|step| first + (start + step) % size).find(|n| free(*n))
    }

    fn ports(&self, service: &mut Value, snapshot: &Snapshot) -> Result<(), Unallocated> {
        let spec = &service["spec"];
        let wants = match spec["type"].as_str() {
            Some("NodePort") => true,
            Some("LoadBalancer") => spec["allocateLoadBalancerNodePorts"] != false,
            _ => false,
        };
        if matches!(spec["type"].as_str(), Some("ClusterIP" | "ExternalName")) {
            // Validation says that these have none.
            return Ok(());
        }
        let number = |port: &Value, field: &str| port[field].as_u64().and_then(|n| u16::try_from(n).ok());
        let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
        let mut ports: Vec<Value> = spec["ports"].as_array().cloned().unwrap_or_default();
        let mut errors = Vec::new();
        // By the port in front: TCP and UDP of one port share their node port.
        let mut shared: BTreeMap<u16, Vec<(String, u16)>> = BTreeMap::new();
        for (index, port) in ports.iter().enumerate() {
            let Some(node_port) = number(port, "nodePort").filter(|n| *n != 0) else { continue };
            if !self.node_ports.contains(&node_port) {
                let range = format!("{}-{}", self.node_ports.start(), self.node_ports.end());
                let why = format!("provided port is not in the valid range. The range of valid ports is {range}");
                let path = Path::new("spec").child("ports").index(index).child("nodePort");
                errors.push(Error::invalid(&path, node_port, why));
            }
            shared.entry(number(port, "port").unwrap_or(0)).or_default().push((protocol(port), node_port));
        }
        if !errors.is_empty() {
            return Err(Unallocated::Invalid(errors));
        }
        if !wants {
            return Ok(());
        }
        for port in ports.iter_mut().filter(|port| port["nodePort"].as_u64().unwrap_or(0) == 0) {
            let (front, protocol) = (number(port, "port").unwrap_or(0), protocol(port));
            let own: Vec<u16> = shared.values().flatten().map(|(_, node_port)| *node_port).collect();
            let free = |n: u16, protocol: &str| snapshot.get(&claims::key(PORTS, &format!("{n}-{protocol}"))).is_none();
            let beside = shared.get(&front).into_iter().flatten();
            let reused = beside.filter(|(other, _)| *other != protocol).map(|(_, n)| *n).find(|n| free(*n, &protocol));
            let chosen = match reused {
                Some(node_port) => node_port,
                None => self.free_port(|n| {
                    !own.contains(&n) && ["TCP", "UDP", "SCTP"].iter().all(|protocol| free(n, protocol))
                })?,
            };
            port["nodePort"] = json!(chosen);
            shared.entry(front).or_default().push((protocol, chosen));
        }
        service["spec"]["ports"] = ports.into();
        Ok(())
    }

    fn free_port(&self, free: impl Fn(u16) -> bool) -> Result<u16, Unallocated> {
        let (first, last) = (u128::from(*self.node_ports.start()), u128::from(*self.node_ports.end()));
        let size = last - first + 1;
        // Small ranges have no lower band.
        let reserved = if size < 16 { 0 } else { (size / 32).clamp(16, 128) };
        let is_free = |n: u128| u16::try_from(n).is_ok_and(&free);
        let found =
            self.search(first + reserved, last, is_free).or_else(|| self.search(first, first + reserved - 1, is_free));
        found
            .and_then(|n| u16::try_from(n).ok())
            .ok_or_else(|| Unallocated::Exhausted("failed to allocate a nodePort: range is full".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use store::Store;
    use store::memory::Memory;

    use super::*;

    fn services() -> Services {
        let rng: Rng = Arc::new(|out| out.fill(0));
        Services {
            ranges: vec!["10.96.0.0/24".parse().unwrap(), "fd00::/112".parse().unwrap()],
            node_ports: NODE_PORTS,
            rng,
        }
    }

    fn check(spec: Value, expected: Value) {
        let kind = kinds::core::service::kind();
        let mut service = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": spec});
        (kind.strategy.default)(&mut service);
        (kind.strategy.prepare)(&mut service, None);
        let snapshot = Memory::new().snapshot();
        let got = match services().allocate(&kind, &mut service, None, &snapshot) {
            Ok(()) => {
                let spec = &service["spec"];
                let ports: Vec<&Value> =
                    spec["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]).collect();
                json!([spec["clusterIPs"], ports])
            }
            Err(Unallocated::Invalid(errors)) => json!(errors[0].to_string()),
            Err(Unallocated::Exhausted(why)) => json!(why),
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn addresses_come_from_the_upper_band() {
        check(json!({"selector": {"a": "b"}, "ports": [{"port": 80}]}), json!([["10.96.0.17"], [null]]));
        check(
            json!({"selector": {"a": "b"}, "ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]}),
            json!([["10.96.0.17", "fd00::101"], [null]]),
        );
        check(
            json!({"selector": {"a": "b"}, "clusterIP": "10.96.0.10", "ports": [{"port": 80}]}),
            json!([["10.96.0.10"], [null]]),
        );
    }

    #[test]
    fn what_is_outside_is_refused() {
        check(
            json!({"selector": {"a": "b"}, "clusterIP": "10.97.0.10", "ports": [{"port": 80}]}),
            json!(
                "spec.clusterIPs[0]: Invalid value: \"10.97.0.10\": failed to allocate IP 10.97.0.10: the provided IP (10.97.0.10) is not in the valid range. The range of valid IPs is 10.96.0.0/24"
            ),
        );
    }

    #[test]
    fn one_node_port_for_both_protocols_of_a_port() {
        check(
            json!({"type": "NodePort", "selector": {"a": "b"}, "ports": [
                {"name": "t", "port": 53, "protocol": "TCP"}, {"name": "u", "port": 53, "protocol": "UDP"},
                {"name": "o", "port": 54, "protocol": "TCP"},
            ]}),
            json!([["10.96.0.17"], [30086, 30086, 30087]]),
        );
    }
}
