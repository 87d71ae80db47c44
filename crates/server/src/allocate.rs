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
        dry_run: bool,
    ) -> Result<(), Unallocated> {
        if !kind.names.resource.group.is_empty() || kind.names.resource.resource != "services" {
            return Ok(());
        }
        let families: Vec<&str> = self.ranges.iter().map(family).collect();
        init_families(object, old, &families).map_err(Unallocated::Invalid)?;
        self.addresses(object, snapshot)?;
        self.ports(object, old, snapshot, dry_run)
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

    /// Which node ports of other services are taken is told by their claims, here and in dry runs too.
    ///
    /// Source: `storage/alloc.go`, `initNodePorts` and `updateNodePorts`.
    fn ports(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        snapshot: &Snapshot,
        dry_run: bool,
    ) -> Result<(), Unallocated> {
        let spec = &service["spec"];
        let wants = match spec["type"].as_str() {
            Some("NodePort") => true,
            Some("LoadBalancer") => spec["allocateLoadBalancerNodePorts"] != false,
            // Validation says that the others have none.
            _ => return Ok(()),
        };
        let node_port = |port: &Value| port["nodePort"].as_i64().unwrap_or(0);
        let front = |port: &Value| port["port"].as_i64().unwrap_or(0);
        let of = |service: &Value| service["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let had: Vec<i64> = old.map(of).unwrap_or_default().iter().map(node_port).collect();
        let mut ports = of(service);
        let refuse = |index: usize, number: i64, why: String| {
            let path = Path::new("spec").child("ports").index(index).child("nodePort");
            Err(Unallocated::Invalid(vec![Error::invalid(&path, number, why)]))
        };
        let mut taken: Vec<i64> = ports.iter().map(node_port).filter(|number| *number != 0).collect();
        let mut own: Vec<i64> = Vec::new();
        // By the port in front: TCP and UDP of one port share their node port.
        let mut shared: BTreeMap<i64, i64> = BTreeMap::new();
        for index in 0..ports.len() {
            let (mut number, before) = (node_port(&ports[index]), front(&ports[index]));
            if number == 0 && !wants {
                continue;
            }
            let beside = shared.get(&before).copied();
            if number == 0 {
                let mut asked = ports.iter().filter(|port| front(port) == before).map(node_port);
                number = match beside.or_else(|| asked.find(|number| *number != 0)) {
                    Some(number) => number,
                    // As upstream, whose dry runs know no free ports.
                    None if dry_run => own.iter().max().map_or(i64::from(*self.node_ports.end()) + 2, |last| last + 1),
                    None => {
                        let free = |n: u16| {
                            !taken.contains(&i64::from(n))
                                && snapshot.get(&claims::key(PORTS, &n.to_string())).is_none()
                        };
                        i64::from(self.free_port(free)?)
                    }
                };
                taken.push(number);
                ports[index]["nodePort"] = json!(number);
            }
            shared.entry(before).or_insert(number);
            if beside == Some(number) || had.contains(&number) {
                continue;
            }
            let in_range = u16::try_from(number).is_ok_and(|number| self.node_ports.contains(&number));
            if !in_range && !dry_run {
                let range = format!("{}-{}", self.node_ports.start(), self.node_ports.end());
                let why = format!("provided port is not in the valid range. The range of valid ports is {range}");
                return refuse(index, number, why);
            }
            // On an update, ports of one service may share what they ask for.
            if own.contains(&number) && old.is_none() {
                return refuse(index, number, "provided port is already allocated".to_owned());
            }
            own.push(number);
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
        check_beside(&[], spec, false, expected);
    }

    /// As `check`, where other services have some node ports.
    fn check_beside(taken: &[u16], spec: Value, dry_run: bool, expected: Value) {
        let kind = kinds::core::service::kind();
        let mut service = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": spec});
        (kind.strategy.default)(&mut service);
        (kind.strategy.prepare)(&mut service, None);
        let store = Memory::new();
        let claim = |port: &u16| {
            let key = claims::key(PORTS, &port.to_string());
            store::Op::Put(api::object::Draft::new(key, json!({"metadata": {"name": port.to_string()}})).unwrap())
        };
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(store.txn(Vec::new(), taken.iter().map(claim).collect()))
            .unwrap();
        let snapshot = store.snapshot();
        let got = match services().allocate(&kind, &mut service, None, &snapshot, dry_run) {
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
    fn node_ports_of_others_are_left_alone() {
        let spec = json!({"type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 53}]});
        check_beside(&[30086, 30087], spec, false, json!([["10.96.0.17"], [30088]]));
    }

    #[test]
    fn what_is_asked_for_is_looked_at_unless_the_run_is_dry() {
        let spec = |ports: Value| json!({"type": "NodePort", "selector": {"a": "b"}, "ports": ports});
        let outside = || spec(json!([{"port": 53, "nodePort": 1}]));
        check(
            outside(),
            json!(
                "spec.ports[0].nodePort: Invalid value: 1: provided port is not in the valid range. The range of valid ports is 30000-32767"
            ),
        );
        check_beside(&[], outside(), true, json!([["10.96.0.17"], [1]]));
        check(
            spec(json!([{"port": 53, "nodePort": 30001}, {"port": 54, "nodePort": 30001}])),
            json!("spec.ports[1].nodePort: Invalid value: 30001: provided port is already allocated"),
        );
        check(
            spec(json!([{"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP", "nodePort": 30001}])),
            json!([["10.96.0.17"], [30001, 30001]]),
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
