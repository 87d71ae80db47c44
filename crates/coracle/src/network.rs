//! The pod network as the node asks for it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use client::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use net::pods::PodNetwork;
use node::network::PodAddresses;

/// Joins the node's trait and net's implementation, which do not know each other.
pub struct Network(pub Arc<PodNetwork>);

impl node::network::PodNetwork for Network {
    fn attach<'a>(&'a self, uid: &'a str, netns: OwnedFd, pod: &'a Pod) -> BoxFuture<'a, Result<PodAddresses, String>> {
        Box::pin(async move {
            if self.0.addresses(uid).is_empty() {
                let status = pod.status.as_ref().and_then(|status| status.pod_ips.as_ref());
                let known: Vec<_> = status.into_iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
                self.0.adopt(uid, &known);
            }
            let attached = self.0.attach(uid, netns, Timestamp::now()).await;
            attached.map(|ips| PodAddresses { ips }).map_err(|error| chain(&error))
        })
    }

    fn detach<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move { self.0.detach(uid, Timestamp::now()).await.map_err(|error| chain(&error)) })
    }
}

/// An error with its causes, for an event.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
