//! What the node needs of the pod network, whoever provides it.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use client::BoxFuture;
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
