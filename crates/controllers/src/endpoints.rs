//! Endpoints of services with selectors, which users and older clients still read.
//!
//! Source: kubernetes `pkg/controller/endpoint/endpoints_controller.go`, `pkg/api/v1/endpoints/util.go`.

use std::collections::{BTreeMap, BTreeSet};

use api::key::{GroupResource, Key};
use client::Resource;
use client::informer::Delta;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use crate::action::{Action, Deletion, Notes};
use crate::pod;
use crate::service::{self, Family};
use crate::shell::{Controller, Run};
use crate::views::Views;

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses in one object at most. Source: `maxCapacity`.
const MAX_ADDRESSES: usize = 1000;

/// What the decision about one service rests on.
pub struct Observed {
    pub service: Service,
    /// The pods that it selects.
    pub pods: Vec<Pod>,
    pub current: Option<Endpoints>,
}

pub fn reconcile(observed: &Observed) -> Vec<Action> {
    let Observed { service, current, .. } = observed;
    let Some(spec) = service::selecting(service) else { return Vec::new() };
    let mut subsets = repack(&service_ports(spec, service, &observed.pods));
    let is_cut = truncate(&mut subsets);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(service::HEADLESS);
    if service::is_headless(spec) {
        labels.insert(service::HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut metadata = current.as_ref().map(|current| current.metadata.clone()).unwrap_or_else(|| ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        ..ObjectMeta::default()
    });
    metadata.labels = Some(labels);
    if is_cut {
        metadata.annotations.get_or_insert_default().insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(OVER_CAPACITY);
    }
    metadata.annotations = metadata.annotations.filter(|annotations| !annotations.is_empty());
    let subsets = (!subsets.is_empty()).then_some(subsets);
    let wanted = Endpoints { metadata, subsets };
    let of = Resource::of::<Endpoints>();
    let object = json!(wanted);
    match current {
        Some(current) if is_same(current, &wanted) => Vec::new(),
        Some(_) => vec![Action::Update { of, subresource: None, object }],
        None if service.metadata.deletion_timestamp.is_some() => Vec::new(),
        None => {
            let namespace = service.metadata.namespace.clone().unwrap_or_default();
            vec![Action::Create { of, namespace, object, copies: 1, notes: Notes::none() }]
        }
    }
}

fn is_same(current: &Endpoints, wanted: &Endpoints) -> bool {
    let annotations = |endpoints: &Endpoints| endpoints.metadata.annotations.clone().unwrap_or_default();
    let subsets = |endpoints: &Endpoints| endpoints.subsets.clone().unwrap_or_default();
    current.metadata.labels == wanted.metadata.labels
        && annotations(current) == annotations(wanted)
        && subsets(current) == subsets(wanted)
}

/// One address of one pod at one port; without a port for services that have none.
struct Offer {
    address: EndpointAddress,
    port: Option<EndpointPort>,
    is_ready: bool,
}

fn service_ports(spec: &ServiceSpec, service: &Service, pods: &[Pod]) -> Vec<Offer> {
    let publish = spec.publish_not_ready_addresses == Some(true);
    let mut offers = Vec::new();
    for pod in pods.iter().filter(|pod| service::has_endpoints(pod)) {
        if pod.metadata.deletion_timestamp.is_some() && !publish {
            continue;
        }
        let Some(address) = address(spec, service, pod) else { continue };
        let is_ready = publish || pod::is_ready(pod);
        let ports = spec.ports.as_deref().unwrap_or_default();
        if ports.is_empty() && service::is_headless(spec) {
            offers.push(Offer { address: address.clone(), port: None, is_ready });
        }
        for port in ports {
            let Some(number) = service::target_port(pod, port) else { continue };
            let port = EndpointPort {
                name: port.name.clone().filter(|name| !name.is_empty()),
                port: number,
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            };
            offers.push(Offer { address: address.clone(), port: Some(port), is_ready });
        }
    }
    offers
}

/// The pod's address in the service's first family.
fn address(spec: &ServiceSpec, service: &Service, pod: &Pod) -> Option<EndpointAddress> {
    let family = service::families(spec).first().copied()?;
    let ip = service::addresses(pod).into_iter().find(|ip| Family::of(ip) == family)?;
    Some(EndpointAddress {
        ip: ip.to_string(),
        hostname: service::hostname(pod, service),
        node_name: Some(pod::node_name(pod).to_owned()).filter(|name| !name.is_empty()),
        target_ref: Some(pod::reference(pod)),
    })
}

type PortKey = (Option<String>, i32, Option<String>, Option<String>);
/// Addresses are told apart by pod too: pods on the host's network share one.
type AddressKey = (String, Option<String>);

/// Groups the ports that the same addresses offer into one subset, in a fixed order. An address that is not ready for a
/// port in one place is not ready for it at all.
fn repack(offers: &[Offer]) -> Vec<EndpointSubset> {
    let mut addresses: BTreeMap<AddressKey, &EndpointAddress> = BTreeMap::new();
    let mut by_port: BTreeMap<Option<PortKey>, BTreeMap<AddressKey, bool>> = BTreeMap::new();
    for offer in offers {
        let uid = offer.address.target_ref.as_ref().and_then(|target| target.uid.clone());
        let key = (offer.address.ip.clone(), uid);
        addresses.entry(key.clone()).or_insert(&offer.address);
        let port = offer.port.as_ref();
        let port = port.map(|port| (port.name.clone(), port.port, port.protocol.clone(), port.app_protocol.clone()));
        let ready = by_port.entry(port).or_default().entry(key).or_insert(true);
        *ready &= offer.is_ready;
    }
    let mut by_addresses: BTreeMap<BTreeMap<AddressKey, bool>, BTreeSet<PortKey>> = BTreeMap::new();
    for (port, offering) in by_port {
        by_addresses.entry(offering).or_default().extend(port);
    }
    let subset = |(offering, ports): (BTreeMap<AddressKey, bool>, BTreeSet<PortKey>)| {
        let those = |wanted: bool| {
            let chosen = offering.iter().filter(|(_, ready)| **ready == wanted).map(|(key, _)| addresses[key].clone());
            Some(chosen.collect::<Vec<_>>()).filter(|chosen| !chosen.is_empty())
        };
        let port = |(name, port, protocol, app_protocol)| EndpointPort { name, port, protocol, app_protocol };
        let ports: Vec<EndpointPort> = ports.into_iter().map(port).collect();
        EndpointSubset {
            addresses: those(true),
            not_ready_addresses: those(false),
            ports: (!ports.is_empty()).then_some(ports),
        }
    };
    by_addresses.into_iter().map(subset).collect()
}

/// The subsets in their fixed form, as somebody may have written them otherwise.
pub(crate) fn repacked(subsets: &[EndpointSubset]) -> Vec<EndpointSubset> {
    let mut offers = Vec::new();
    for subset in subsets {
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, is_ready) in ready.chain(unready) {
            let offer = |port| Offer { address: address.clone(), port, is_ready };
            match subset.ports.as_deref().unwrap_or_default() {
                [] => offers.push(offer(None)),
                ports => offers.extend(ports.iter().map(|port| offer(Some(port.clone())))),
            }
        }
    }
    repack(&offers)
}

/// Keeps what fits: ready addresses before others, of each subset its share, rounded up; returns whether something was cut.
///
/// Source: `truncateEndpoints`.
fn truncate(subsets: &mut [EndpointSubset]) -> bool {
    let count = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
    let ready: usize = subsets.iter().map(|subset| count(&subset.addresses)).sum();
    let unready: usize = subsets.iter().map(|subset| count(&subset.not_ready_addresses)).sum();
    if ready + unready <= MAX_ADDRESSES {
        return false;
    }
    let only_ready = ready > MAX_ADDRESSES;
    let (total, room) = if only_ready { (ready, MAX_ADDRESSES) } else { (unready, MAX_ADDRESSES - ready) };
    let mut left = room;
    for subset in subsets {
        if only_ready {
            subset.not_ready_addresses = None;
        }
        let list = if only_ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        let Some(addresses) = list else { continue };
        addresses.truncate((addresses.len() * room).div_ceil(total).min(left));
        left -= addresses.len();
        if addresses.is_empty() {
            *list = None;
        }
    }
    true
}

/// Observes services and pods for the shell.
///
/// A key of a service means that it, or a pod behind it, changed; a key of Endpoints means that its service was deleted.
pub struct EndpointsObjects;

impl Controller for EndpointsObjects {
    fn name(&self) -> &'static str {
        "endpoint-controller"
    }

    fn inputs(&self) -> Vec<GroupResource> {
        vec![service::resource(), Resource::of::<Pod>().resource, Resource::of::<Endpoints>().resource]
    }

    fn affected(&self, delta: &Delta, views: &Views) -> Vec<Key> {
        let endpoints = Resource::of::<Endpoints>().resource;
        let (namespace, name) = (delta.key.namespace(), delta.key.name());
        match &*delta.key.group_resource().resource {
            "services" if delta.new.is_none() => vec![Key::new(&endpoints, namespace, name)],
            "services" => vec![delta.key.clone()],
            "pods" => service::behind_pod(delta, views),
            // What this controller wrote outlives its service if the process was down when that was deleted.
            _ if delta.states().any(|endpoints| is_ours(endpoints)) => {
                let service = Key::new(&service::resource(), namespace, name);
                if views.of::<Service>().get(&service).is_some() { vec![service] } else { vec![delta.key.clone()] }
            }
            _ => vec![Key::new(&service::resource(), namespace, name)],
        }
    }

    fn plan(&self, run: &Run<'_>) -> Vec<Action> {
        let (namespace, name) = (run.key.namespace(), run.key.name());
        let endpoints = run.views.of::<Endpoints>().named(namespace, name);
        let service = Key::new(&service::resource(), namespace, name);
        match run.views.get::<Service>(&service) {
            Some(service) => {
                let Some(spec) = service::selecting(&service) else { return Vec::new() };
                let pods = service::pods(spec, namespace, run.views);
                let current = endpoints.and_then(|endpoints| crate::views::decode(endpoints));
                reconcile(&Observed { service, pods, current })
            }
            None if *run.key == service => Vec::new(),
            None => {
                let delete = |endpoints: &std::sync::Arc<api::object::Object>| Action::Delete {
                    of: Resource::of::<Endpoints>(),
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                    uid: endpoints.meta().uid.clone(),
                    how: Deletion::default(),
                    notes: Notes::none(),
                };
                endpoints.map(delete).into_iter().collect()
            }
        }
    }
}

fn is_ours(endpoints: &api::object::Object) -> bool {
    endpoints.meta().labels.get(MANAGED_BY).map(String::as_str) == Some(MANAGER)
}

#[cfg(test)]
mod tests;
