//! Host ports: ports of the node that lead into one pod.
//!
//! Sources: kubernetes `pkg/kubelet/container/helpers.go`, `MakePortMappings`; containernetworking/plugins `plugins/meta/portmap`
//! for what a port without an address means. They are frontends with one endpoint, programmed beside the services.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use crate::proxy::{Backend, Frontend, Protocol, Services};

/// The host ports of a pod that has the addresses `ips`.
///
/// A port without an address is every address of the node, loopback included; `0.0.0.0` and `::` are those of one family.
pub fn of_pod(pod: &Pod, ips: &[IpAddr]) -> Services {
    let spec = pod.spec.iter();
    let containers = spec.flat_map(|spec| {
        let sidecar = |policy: Option<&str>| policy == Some("Always");
        let inits = spec.init_containers.iter().flatten().filter(move |c| sidecar(c.restart_policy.as_deref()));
        inits.chain(&spec.containers)
    });
    let mut all = Services::new();
    for port in containers.flat_map(|container| container.ports.iter().flatten()) {
        let number = |port: i32| u16::try_from(port).ok().filter(|port| *port > 0);
        let (Some(host), Some(own)) = (port.host_port.and_then(number), number(port.container_port)) else { continue };
        let Some(protocol) = Protocol::parse(port.protocol.as_deref()) else { continue };
        let asked: Option<IpAddr> = port.host_ip.as_deref().and_then(|ip| ip.parse().ok());
        for ip in ips.iter().filter(|ip| asked.is_none_or(|asked| asked.is_ipv4() == ip.is_ipv4())) {
            let frontend = match asked.filter(|asked| !asked.is_unspecified()) {
                Some(address) => Frontend::HostAddress(address, protocol, host),
                None => Frontend::HostPort { ipv4: ip.is_ipv4(), protocol, port: host },
            };
            all.insert(frontend, Backend { endpoints: [(*ip, own)].into(), ..Backend::default() });
        }
    }
    all
}

/// What is known of the node's host ports.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Set once the pods of an earlier process are known: their ports must not close while this one starts.
    pub(crate) complete: bool,
    pub(crate) by_pod: BTreeMap<String, Services>,
}

/// The host ports of all pods on the node. Cheap to clone; the proxy's loop follows it.
#[derive(Clone, Debug)]
pub struct HostPorts(watch::Sender<Known>);

impl Default for HostPorts {
    fn default() -> Self {
        Self(watch::Sender::new(Known::default()))
    }
}

impl HostPorts {
    /// Gives a pod's ports, or takes them back when they are empty.
    pub fn set(&self, pod_uid: &str, ports: Services) {
        self.0.send_if_modified(|known| {
            let before = match ports.is_empty() {
                true => known.by_pod.remove(pod_uid),
                false => known.by_pod.insert(pod_uid.to_owned(), ports.clone()),
            };
            before.unwrap_or_default() != ports
        });
    }

    /// Every pod of an earlier process has been told, if there are any.
    pub fn complete(&self) {
        self.0.send_if_modified(|known| !std::mem::replace(&mut known.complete, true));
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Known> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::*;

    fn check(ports: Value, ips: &[&str], expected: Expect) {
        let pod = json!({"spec": {"containers": [{"name": "main", "ports": ports}]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let lines = of_pod(&pod, &ips).into_iter().map(|(from, to)| format!("{from:?} → {:?}\n", to.endpoints));
        expected.assert_eq(&lines.collect::<String>());
    }

    #[test]
    fn a_port_without_an_address_is_on_all_of_both_families() {
        check(
            json!([{"containerPort": 80, "hostPort": 8080, "protocol": "UDP"}, {"containerPort": 81}]),
            &["10.244.0.2", "fd00::2"],
            expect![[r#"
                HostPort { ipv4: false, protocol: Udp, port: 8080 } → {(fd00::2, 80)}
                HostPort { ipv4: true, protocol: Udp, port: 8080 } → {(10.244.0.2, 80)}
            "#]],
        );
    }

    #[test]
    fn a_port_with_an_address_is_of_its_family() {
        check(
            json!([{"containerPort": 80, "hostPort": 80, "hostIP": "127.0.0.1"}, {"containerPort": 81, "hostPort": 81, "hostIP": "::"}]),
            &["10.244.0.2", "fd00::2"],
            expect![[r#"
                HostAddress(127.0.0.1, Tcp, 80) → {(10.244.0.2, 80)}
                HostPort { ipv4: false, protocol: Tcp, port: 81 } → {(fd00::2, 81)}
            "#]],
        );
    }

    #[test]
    fn nothing_is_programmed_before_the_earlier_pods_are_known() {
        let ports = HostPorts::default();
        let told = ports.subscribe();
        let port = Frontend::HostPort { ipv4: true, protocol: Protocol::Tcp, port: 80 };
        ports.set("a", Services::from([(port, Backend::default())]));
        assert!(!told.borrow().complete);
        ports.complete();
        assert!(told.borrow().complete && told.borrow().by_pod.contains_key("a"));
        ports.set("a", Services::new());
        assert!(told.borrow().by_pod.is_empty());
    }
}
