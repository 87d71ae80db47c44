//! What the edge's table is made from, and what is made.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{ObjectReference, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use wire::edge::Table;

/// What does not change while main runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Such as `cluster.local`.
    pub domain: String,
    /// Base address and prefix length.
    pub service_ranges: Vec<(IpAddr, u8)>,
    pub pod_ranges: Vec<(IpAddr, u8)>,
    /// Where names outside the cluster are asked for.
    pub upstreams: Vec<SocketAddr>,
    /// For hosts without a certificate of their own.
    pub default_certificate: Option<DefaultCertificate>,
}

/// Chain and key in PEM.
#[derive(Clone)]
pub struct DefaultCertificate {
    pub chain: String,
    pub key: String,
}

impl std::fmt::Debug for DefaultCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DefaultCertificate")
    }
}

/// The objects that matter, all of them.
#[derive(Clone, Debug)]
pub struct Observed<'a> {
    pub settings: &'a Settings,
    pub ingresses: Vec<&'a Ingress>,
    pub classes: Vec<&'a IngressClass>,
    pub services: Vec<&'a Service>,
    pub slices: Vec<&'a EndpointSlice>,
    /// Those of type `kubernetes.io/tls`.
    pub secrets: Vec<&'a Secret>,
}

/// What the edge shall do, and what the owners of Ingresses shall know.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// Its generation is the sender's business.
    pub table: Table,
    pub findings: Vec<Finding>,
    /// The Ingresses that are ours, as indexes into [`Observed::ingresses`].
    pub ours: Vec<usize>,
    /// Which Ingress asked for each certificate; `None` for the default.
    pub certificate_owners: Vec<Option<ObjectReference>>,
}

/// Something about an Ingress that its owner shall know: becomes a Warning event.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    pub about: ObjectReference,
    pub reason: &'static str,
    pub message: String,
}

/// Services with their slices, by namespace and name.
pub(crate) struct Services<'a> {
    services: BTreeMap<(&'a str, &'a str), &'a Service>,
    slices: BTreeMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>,
}

impl<'a> Services<'a> {
    pub fn new(observed: &Observed<'a>) -> Self {
        let mut slices: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for slice in &observed.slices {
            let labels = slice.metadata.labels.as_ref();
            let service = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
            if let (Some(namespace), Some(service)) = (&slice.metadata.namespace, service) {
                slices.entry((namespace.as_str(), service.as_str())).or_default().push(*slice);
            }
        }
        let key = |service: &'a Service| {
            let meta = &service.metadata;
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
        };
        let services = observed.services.iter().map(|service| (key(service), *service)).collect();
        Self { services, slices }
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<&'a Service> {
        self.services.get(&(namespace, name)).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str, &'a Service)> {
        self.services.iter().map(|((namespace, name), service)| (*namespace, *name, *service))
    }

    pub fn slices<'s>(&'s self, namespace: &'s str, name: &'s str) -> &'s [&'a EndpointSlice] {
        self.slices.get(&(namespace, name)).map_or(&[], Vec::as_slice)
    }
}
