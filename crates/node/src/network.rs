//! What the node needs of the pod network, whoever provides it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use api::chain::chain;
use client::{BoxFuture, Clock};
use k8s_openapi::api::core::v1::Pod;

/// Connects pods. Pods on the host's network never come here.
pub trait PodNetwork: Send + Sync + 'static {
    /// Connects the namespace of a pod and gives it its addresses and host ports, primary family first.
    ///
    /// Done again for the same namespace it repairs what is missing and answers with the same addresses: so are pods adopted.
    ///
    /// # Errors
    /// With a text for the `FailedCreatePodSandBox` event.
    fn attach<'a>(&'a self, uid: &'a str, netns: OwnedFd, pod: &'a Pod) -> BoxFuture<'a, Result<PodAddresses, String>>;

    /// Takes over the addresses and host ports of a pod that an earlier process connected.
    fn adopt(&self, pod: &Pod, ips: &[IpAddr]);

    /// Every pod that there is to adopt has been told. Nothing is attached before.
    fn adopted(&self);

    /// Takes the pod's addresses, link and host ports back. A pod that is not known is no error.
    ///
    /// # Errors
    /// With a text for the log; the node tries again.
    fn detach<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<(), String>>;
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodAddresses {
    pub ips: Vec<IpAddr>,
}

/// The pod network of this machine's own kernel.
pub struct KernelNetwork {
    pub pods: net::pods::PodNetwork,
    pub host_ports: net::host_ports::HostPorts,
    pub clock: Clock,
}

impl PodNetwork for KernelNetwork {
    fn attach<'a>(&'a self, uid: &'a str, netns: OwnedFd, pod: &'a Pod) -> BoxFuture<'a, Result<PodAddresses, String>> {
        Box::pin(async move {
            let ips = self.pods.attach(uid, netns, (self.clock)()).await.map_err(|error| chain(&error))?;
            let ports = net::host_ports::of_pod(pod, &ips);
            if !ports.is_empty() {
                net::pod::route_loopback(uid).map_err(|error| chain(&error))?;
            }
            self.host_ports.set(uid, ports);
            Ok(PodAddresses { ips })
        })
    }

    fn adopt(&self, pod: &Pod, ips: &[IpAddr]) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.pods.adopt(uid, ips);
        self.host_ports.set(uid, net::host_ports::of_pod(pod, ips));
    }

    fn adopted(&self) {
        self.host_ports.complete();
    }

    fn detach<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<(), String>> {
        self.host_ports.set(uid, BTreeMap::new());
        Box::pin(async move { self.pods.detach(uid, (self.clock)()).await.map_err(|error| chain(&error)) })
    }
}
