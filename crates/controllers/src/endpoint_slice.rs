//! EndpointSlices of services with selectors: one endpoint per pod, at most 100 in a slice, a slice per address family and
//! set of ports.
//!
//! Source: k8s.io/endpointslice `reconciler.go`, `utils.go`; kubernetes `pkg/controller/endpointslice`. Not built: topology
//! hints and the annotation with the time of the change.

use std::collections::{BTreeMap, VecDeque};

use api::key::{GroupResource, Key};
use client::Resource;
use client::events::reference_to;
use client::informer::Delta;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use crate::action::{Action, Deletion, Note, Notes};
use crate::claim::controller_reference;
use crate::pod;
use crate::service::{self, Family};
use crate::shell::{Controller, Run};
use crate::views::{Views, decode};

/// Source: `--max-endpoints-per-slice`.
const MAX_ENDPOINTS: usize = 100;
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";

/// What the decision about one service rests on.
pub struct Observed {
    pub service: Service,
    /// The pods that it selects.
    pub pods: Vec<Pod>,
    /// The zones of all nodes.
    pub nodes: BTreeMap<String, Option<String>>,
    /// The slices that this controller wrote for it, but those being deleted.
    pub slices: Vec<EndpointSlice>,
}

pub(crate) type Ports = Vec<(String, Option<i32>, String, Option<String>)>;

/// What tells endpoints apart; everything else about them may change in place.
pub(crate) type Identity = (Vec<String>, Option<String>, Option<String>);

/// The slices to write.
#[derive(Default)]
pub(crate) struct Changes {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<EndpointSlice>,
}

pub fn reconcile(observed: &Observed) -> Vec<Action> {
    let Some(spec) = service::selecting(&observed.service) else { return Vec::new() };
    let families = service::families(spec);
    let mut changes = Changes::default();
    for slice in &observed.slices {
        if !families.iter().any(|family| family.as_str() == slice.address_type) {
            changes.delete.push(slice.clone());
        }
    }
    for family in families {
        let of_family = reconcile_family(observed, spec, family);
        changes.create.extend(of_family.create);
        changes.update.extend(of_family.update);
        changes.delete.extend(of_family.delete);
    }
    let service = &observed.service;
    changes.reuse(|slice| is_owned(slice, service));
    let namespace = service.metadata.namespace.clone().unwrap_or_default();
    let notes = || {
        let full_name = format!("{namespace}/{}", service.metadata.name.as_deref().unwrap_or_default());
        let message = format!("Error updating Endpoint Slices for Service {full_name}: {{}}");
        Notes::new(reference_to(service), None, Some(Note::warning("FailedToUpdateEndpointSlices", message)))
    };
    changes.actions(&namespace, service.metadata.deletion_timestamp.is_some(), &notes)
}

fn reconcile_family(observed: &Observed, spec: &ServiceSpec, family: Family) -> Changes {
    let service = &observed.service;
    let mut changes = Changes::default();
    let of_family = || observed.slices.iter().filter(|slice| slice.address_type == family.as_str());
    let mut existing: BTreeMap<Ports, Vec<EndpointSlice>> = BTreeMap::new();
    for slice in of_family() {
        if is_owned(slice, service) {
            existing.entry(ports_key(slice.ports.as_deref().unwrap_or_default())).or_default().push(slice.clone());
        } else {
            changes.delete.push(slice.clone());
        }
    }
    let mut desired: BTreeMap<Ports, (Vec<EndpointPort>, BTreeMap<Identity, Endpoint>)> = BTreeMap::new();
    for pod in observed.pods.iter().filter(|pod| service::has_endpoints(pod)) {
        let ports = endpoint_ports(spec, pod);
        let group = desired.entry(ports_key(&ports)).or_insert_with(|| (ports, BTreeMap::new()));
        let node = observed.nodes.get(pod::node_name(pod));
        if node.is_none() && spec.publish_not_ready_addresses != Some(true) {
            continue;
        }
        let endpoint = endpoint(pod, node.cloned().flatten(), service, spec, family);
        if !endpoint.addresses.is_empty() {
            group.1.insert(identity(&endpoint), endpoint);
        }
    }
    for (key, (ports, endpoints)) in desired {
        let template = new_slice(service, spec, family, ports);
        arrange(template, existing.remove(&key).unwrap_or_default(), endpoints, &mut changes);
    }
    changes.delete.extend(existing.into_values().flatten());
    // There is always one slice, so that consumers can tell a service without endpoints from one not looked at yet.
    if of_family().count() == changes.delete.len() && changes.create.is_empty() {
        let placeholder = new_slice(service, spec, family, Vec::new());
        match changes.delete.as_slice() {
            [only] if is_placeholder(only, &placeholder) => changes.delete.clear(),
            _ => changes.create.push(placeholder),
        }
    }
    changes
}

/// Distributes the endpoints of one set of ports: those that stay stay where they are, slices that change anyway are filled
/// up, then one that has room for all the rest, then new ones.
fn arrange(
    template: EndpointSlice,
    existing: Vec<EndpointSlice>,
    mut desired: BTreeMap<Identity, Endpoint>,
    changes: &mut Changes,
) {
    let (mut update, mut unchanged) = (Vec::new(), Vec::new());
    for mut slice in existing {
        let before = slice.endpoints.take().unwrap_or_default();
        let kept: Vec<Endpoint> = before.iter().filter_map(|endpoint| desired.remove(&identity(endpoint))).collect();
        let same = kept.len() == before.len() && kept.iter().zip(&before).all(|(kept, before)| is_same(kept, before));
        let labelled = slice.metadata.labels == template.metadata.labels;
        if !same && kept.is_empty() {
            slice.endpoints = Some(before);
            changes.delete.push(slice);
            continue;
        }
        slice.endpoints = Some(kept);
        slice.metadata.labels.clone_from(&template.metadata.labels);
        if same && labelled { unchanged.push(slice) } else { update.push(slice) }
    }
    let mut rest: VecDeque<Endpoint> = desired.into_values().collect();
    update.sort_by_key(|slice: &EndpointSlice| std::cmp::Reverse(count(slice)));
    for slice in &mut update {
        fill(slice, &mut rest);
    }
    if !rest.is_empty() && rest.len() < MAX_ENDPOINTS {
        let fits = |slice: &EndpointSlice| count(slice) + rest.len() <= MAX_ENDPOINTS;
        let fullest =
            (0..unchanged.len()).filter(|index| fits(&unchanged[*index])).max_by_key(|index| count(&unchanged[*index]));
        if let Some(index) = fullest {
            let mut slice = unchanged.remove(index);
            fill(&mut slice, &mut rest);
            update.push(slice);
        }
    }
    while !rest.is_empty() {
        let mut slice = template.clone();
        fill(&mut slice, &mut rest);
        changes.create.push(slice);
    }
    changes.update.extend(update);
}

fn count(slice: &EndpointSlice) -> usize {
    slice.endpoints.as_ref().map_or(0, Vec::len)
}

fn fill(slice: &mut EndpointSlice, rest: &mut VecDeque<Endpoint>) {
    let room = MAX_ENDPOINTS.saturating_sub(count(slice)).min(rest.len());
    slice.endpoints.get_or_insert_default().extend(rest.drain(..room));
}

impl Changes {
    /// Slices that would be deleted and are `ours` become those that would be created.
    pub fn reuse(&mut self, ours: impl Fn(&EndpointSlice) -> bool) {
        let mut kept = Vec::new();
        for doomed in self.delete.drain(..) {
            let usable = |slice: &EndpointSlice| slice.address_type == doomed.address_type && ours(&doomed);
            match self.create.iter().rposition(usable) {
                Some(index) => {
                    let mut slice = self.create.remove(index);
                    let ObjectMeta { labels, annotations, owner_references, .. } = slice.metadata;
                    slice.metadata = ObjectMeta { labels, annotations, owner_references, ..doomed.metadata };
                    self.update.push(slice);
                }
                None => kept.push(doomed),
            }
        }
        self.delete = kept;
    }

    /// While what the slices belong to is being deleted the garbage collector deletes them: a new one could escape it.
    pub fn actions(self, namespace: &str, is_ending: bool, notes: &dyn Fn() -> Notes) -> Vec<Action> {
        let of = Resource::of::<EndpointSlice>();
        let mut actions = Vec::new();
        for slice in self.create.into_iter().filter(|_| !is_ending) {
            let (of, namespace, object) = (of.clone(), namespace.to_owned(), json!(slice));
            actions.push(Action::Create { of, namespace, object, copies: 1, notes: notes() });
        }
        for slice in self.update {
            actions.push(Action::Update { of: of.clone(), subresource: None, object: json!(slice) });
        }
        for slice in self.delete {
            actions.push(Action::Delete {
                of: of.clone(),
                namespace: namespace.to_owned(),
                name: slice.metadata.name.unwrap_or_default(),
                uid: slice.metadata.uid.unwrap_or_default(),
                how: Deletion::default(),
                notes: notes(),
            });
        }
        actions
    }
}

fn is_owned(slice: &EndpointSlice, service: &Service) -> bool {
    let mut owners = slice.metadata.owner_references.iter().flatten();
    owners.any(|owner| Some(&owner.uid) == service.metadata.uid.as_ref() && owner.kind == "Service")
}

fn is_placeholder(slice: &EndpointSlice, placeholder: &EndpointSlice) -> bool {
    let empty = count(slice) == 0 && slice.ports.as_ref().is_none_or(Vec::is_empty);
    empty
        && slice.metadata.labels == placeholder.metadata.labels
        && slice.metadata.owner_references == placeholder.metadata.owner_references
}

pub(crate) fn ports_key(ports: &[EndpointPort]) -> Ports {
    let key = |port: &EndpointPort| {
        let (name, protocol) = (port.name.clone().unwrap_or_default(), port.protocol.clone().unwrap_or_default());
        (name, port.port, protocol, port.app_protocol.clone())
    };
    let mut keys: Ports = ports.iter().map(key).collect();
    keys.sort();
    keys
}

pub(crate) fn identity(endpoint: &Endpoint) -> Identity {
    let target = endpoint.target_ref.as_ref();
    let target = target.map(|target| {
        format!("{}/{}", target.namespace.as_deref().unwrap_or_default(), target.name.as_deref().unwrap_or_default())
    });
    let mut addresses = endpoint.addresses.clone();
    addresses.sort();
    (addresses, endpoint.hostname.clone(), target)
}

pub(crate) fn is_same(one: &Endpoint, other: &Endpoint) -> bool {
    let target = |endpoint: &Endpoint| {
        endpoint.target_ref.clone().map(|target| ObjectReference { resource_version: None, ..target })
    };
    one.node_name == other.node_name
        && one.zone == other.zone
        && one.conditions == other.conditions
        && target(one) == target(other)
}

fn endpoint_ports(spec: &ServiceSpec, pod: &Pod) -> Vec<EndpointPort> {
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        let number = service::target_port(pod, port)?;
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(number),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
    });
    ports.collect()
}

fn endpoint(pod: &Pod, zone: Option<String>, service: &Service, spec: &ServiceSpec, family: Family) -> Endpoint {
    let serving = pod::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let ready = spec.publish_not_ready_addresses == Some(true) || (serving && !terminating);
    let addresses = service::addresses(pod).into_iter().filter(|ip| Family::of(ip) == family);
    let conditions = EndpointConditions { ready: Some(ready), serving: Some(serving), terminating: Some(terminating) };
    Endpoint {
        addresses: addresses.map(|ip| ip.to_string()).collect(),
        conditions: Some(conditions),
        hostname: service::hostname(pod, service),
        node_name: Some(pod::node_name(pod).to_owned()).filter(|name| !name.is_empty()),
        target_ref: Some(pod::reference(pod)),
        zone,
        ..Endpoint::default()
    }
}

fn new_slice(service: &Service, spec: &ServiceSpec, family: Family, ports: Vec<EndpointPort>) -> EndpointSlice {
    let name = service.metadata.name.clone().unwrap_or_default();
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels(service, spec, &name)),
            owner_references: Some(vec![controller_reference(service)]),
            ..ObjectMeta::default()
        },
        address_type: family.as_str().to_owned(),
        endpoints: Some(Vec::new()),
        ports: Some(ports),
    }
}

/// The service's labels but for the reserved ones.
fn labels(service: &Service, spec: &ServiceSpec, name: &str) -> BTreeMap<String, String> {
    let reserved = [SERVICE_NAME, MANAGED_BY, service::HEADLESS];
    let own = service.metadata.labels.iter().flatten().filter(|(key, _)| !reserved.contains(&key.as_str()));
    let mut labels: BTreeMap<String, String> = own.map(|(key, value)| (key.clone(), value.clone())).collect();
    if service::is_headless(spec) {
        labels.insert(service::HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), name.to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

/// Observes services, pods and nodes for the shell.
pub struct EndpointSlices;

impl Controller for EndpointSlices {
    fn name(&self) -> &'static str {
        "endpoint-slice-controller"
    }

    fn account(&self) -> &'static str {
        "endpointslice-controller"
    }

    fn inputs(&self) -> Vec<GroupResource> {
        vec![
            service::resource(),
            Resource::of::<Pod>().resource,
            Resource::of::<Node>().resource,
            Resource::of::<EndpointSlice>().resource,
        ]
    }

    fn affected(&self, delta: &Delta, views: &Views) -> Vec<Key> {
        match &*delta.key.group_resource().resource {
            "services" => vec![delta.key.clone()],
            "pods" => service::behind_pod(delta, views),
            "nodes" => {
                let zone = |node: &std::sync::Arc<api::object::Object>| node.meta().labels.get(ZONE).cloned();
                let same = match (&delta.old, &delta.new) {
                    (Some(old), Some(new)) => zone(old) == zone(new),
                    _ => false,
                };
                let services = views.of::<Service>().iter().filter(|_| !same);
                services.map(|service| service.key().clone()).collect()
            }
            _ => {
                let services = delta.states().filter_map(|slice| slice.meta().labels.get(SERVICE_NAME));
                services.map(|name| Key::new(&service::resource(), delta.key.namespace(), name)).collect()
            }
        }
    }

    fn plan(&self, run: &Run<'_>) -> Vec<Action> {
        let Some(service) = run.views.get::<Service>(run.key) else { return Vec::new() };
        let Some(spec) = service::selecting(&service) else { return Vec::new() };
        let pods = service::pods(spec, run.key.namespace(), run.views);
        let nodes = run.views.of::<Node>().iter();
        let nodes = nodes.map(|node| (node.meta().name.clone(), node.meta().labels.get(ZONE).cloned())).collect();
        let slices = run.views.of::<EndpointSlice>().in_namespace(run.key.namespace());
        let own = slices.filter(|slice| {
            let labels = &slice.meta().labels;
            let named = labels.get(SERVICE_NAME).map(String::as_str) == Some(run.key.name());
            named && labels.get(MANAGED_BY).map(String::as_str) == Some(MANAGER) && !slice.meta().is_deleting()
        });
        let slices = own.filter_map(|slice| decode(slice)).collect();
        reconcile(&Observed { service, pods, nodes, slices })
    }
}

#[cfg(test)]
pub(crate) mod tests;
