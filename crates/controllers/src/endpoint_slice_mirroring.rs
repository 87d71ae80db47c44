//! EndpointSlices for the Endpoints that somebody wrote by hand for a service without a selector.
//!
//! Source: kubernetes `pkg/controller/endpointslicemirroring`. Services with selectors have their slices from
//! [`crate::endpoint_slice`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::key::{GroupResource, Key};
use client::Resource;
use client::events::reference_to;
use client::informer::Delta;
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::action::{Action, Note, Notes};
use crate::claim::controller_reference;
use crate::endpoint_slice::{Changes, Identity, MANAGED_BY, Ports, SERVICE_NAME, identity, is_same, ports_key};
use crate::endpoints::repacked;
use crate::service::{self, Family};
use crate::shell::{Controller, Run};
use crate::views::{Views, decode};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that say something of the Endpoints object alone.
const OWN_ANNOTATIONS: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];
/// Addresses of one subset that are mirrored at most. Source: `--mirroring-max-endpoints-per-subset`.
const MAX_ENDPOINTS: usize = 1000;

/// What the decision about one Endpoints object rests on.
pub struct Observed {
    /// `None` when there is nothing to mirror (any more).
    pub endpoints: Option<Endpoints>,
    /// The slices that mirror it, but those being deleted.
    pub slices: Vec<EndpointSlice>,
}

pub fn reconcile(observed: &Observed, namespace: &str) -> Vec<Action> {
    let mut changes = Changes::default();
    let mut existing: BTreeMap<(String, Ports), Vec<EndpointSlice>> = BTreeMap::new();
    for slice in &observed.slices {
        let ports = ports_key(slice.ports.as_deref().unwrap_or_default());
        existing.entry((slice.address_type.clone(), ports)).or_default().push(slice.clone());
    }
    let mut actions = Vec::new();
    let mut is_ending = true;
    if let Some(endpoints) = &observed.endpoints {
        is_ending = endpoints.metadata.deletion_timestamp.is_some();
        let (wanted, notes) = wanted(endpoints);
        actions.extend(notes.into_iter().map(|note| Action::Event { about: Box::new(reference_to(endpoints)), note }));
        for (key, slice) in wanted {
            let mut found = existing.remove(&key).unwrap_or_default().into_iter();
            match found.next() {
                None => changes.create.push(slice),
                Some(before) if is_mirrored(&before, &slice) => {}
                Some(before) => changes.update.push(replacing(before, slice)),
            }
            changes.delete.extend(found);
        }
    }
    changes.delete.extend(existing.into_values().flatten());
    changes.reuse(|_| true);
    actions.extend(changes.actions(namespace, is_ending, &Notes::none));
    actions
}

/// One slice for each address family and set of ports, and what was left out.
fn wanted(endpoints: &Endpoints) -> (BTreeMap<(String, Ports), EndpointSlice>, Vec<Note>) {
    let mut slices = BTreeMap::new();
    let (mut invalid, mut skipped) = (0, 0);
    for subset in repacked(endpoints.subsets.as_deref().unwrap_or_default()) {
        let port = |port: &k8s_openapi::api::core::v1::EndpointPort| EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(port.port),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        };
        let ports: Vec<EndpointPort> = subset.ports.iter().flatten().map(port).collect();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let mut room = MAX_ENDPOINTS;
        for (address, is_ready) in ready.chain(unready) {
            let Some((family, endpoint)) = mirrored(address, is_ready) else {
                invalid += 1;
                continue;
            };
            if room == 0 {
                skipped += 1;
                continue;
            }
            room -= 1;
            let slice = slices
                .entry((family.as_str().to_owned(), ports_key(&ports)))
                .or_insert_with(|| new_slice(endpoints, family, ports.clone()));
            slice.endpoints.get_or_insert_default().push(endpoint);
        }
    }
    let mut notes = Vec::new();
    if invalid > 0 {
        let message = format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices");
        notes.push(Note::warning("InvalidIPAddress", message));
    }
    if skipped > 0 {
        let message = format!(
            "A max of {MAX_ENDPOINTS} addresses can be mirrored to EndpointSlices per Endpoints subset. \
             {} addresses were skipped",
            skipped + invalid
        );
        notes.push(Note::warning("TooManyAddressesToMirror", message));
    }
    (slices, notes)
}

fn mirrored(address: &EndpointAddress, is_ready: bool) -> Option<(Family, Endpoint)> {
    let ip: IpAddr = address.ip.parse().ok()?;
    let endpoint = Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions { ready: Some(is_ready), ..EndpointConditions::default() }),
        target_ref: address.target_ref.clone(),
        node_name: address.node_name.clone(),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        ..Endpoint::default()
    };
    Some((Family::of(&ip), endpoint))
}

fn new_slice(endpoints: &Endpoints, family: Family, ports: Vec<EndpointPort>) -> EndpointSlice {
    let name = endpoints.metadata.name.clone().unwrap_or_default();
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name.clone());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !OWN_ANNOTATIONS.contains(&key.as_str()));
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: endpoints.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            owner_references: Some(vec![controller_reference(endpoints)]),
            ..ObjectMeta::default()
        },
        address_type: family.as_str().to_owned(),
        endpoints: Some(Vec::new()),
        ports: Some(ports),
    }
}

fn replacing(before: EndpointSlice, slice: EndpointSlice) -> EndpointSlice {
    let ObjectMeta { labels, annotations, owner_references, .. } = slice.metadata;
    let metadata = ObjectMeta { labels, annotations, owner_references, ..before.metadata };
    EndpointSlice { metadata, ..slice }
}

fn is_mirrored(before: &EndpointSlice, slice: &EndpointSlice) -> bool {
    fn by_identity(slice: &EndpointSlice) -> BTreeMap<Identity, &Endpoint> {
        slice.endpoints.iter().flatten().map(|endpoint| (identity(endpoint), endpoint)).collect()
    }
    let (old, new) = (by_identity(before), by_identity(slice));
    let same_endpoints =
        old.len() == new.len() && new.iter().all(|(key, new)| old.get(key).is_some_and(|old| is_same(old, new)));
    let annotations = |slice: &EndpointSlice| slice.metadata.annotations.clone().unwrap_or_default();
    same_endpoints
        && before.metadata.labels == slice.metadata.labels
        && annotations(before) == annotations(slice)
        && before.metadata.owner_references == slice.metadata.owner_references
}

/// Observes Endpoints, services and slices for the shell.
pub struct EndpointSliceMirroring;

impl Controller for EndpointSliceMirroring {
    fn name(&self) -> &'static str {
        "endpoint-slice-mirroring-controller"
    }

    fn account(&self) -> &'static str {
        "endpointslicemirroring-controller"
    }

    fn inputs(&self) -> Vec<GroupResource> {
        vec![service::resource(), Resource::of::<Endpoints>().resource, Resource::of::<EndpointSlice>().resource]
    }

    fn affected(&self, delta: &Delta, _: &Views) -> Vec<Key> {
        let endpoints = |name: &str| Key::new(&Resource::of::<Endpoints>().resource, delta.key.namespace(), name);
        match &*delta.key.group_resource().resource {
            "endpointslices" => {
                let ours = delta.states().filter(|slice| is_ours(slice));
                ours.filter_map(|slice| slice.meta().labels.get(SERVICE_NAME)).map(|name| endpoints(name)).collect()
            }
            _ => vec![endpoints(delta.key.name())],
        }
    }

    fn plan(&self, run: &Run<'_>) -> Vec<Action> {
        let (namespace, name) = (run.key.namespace(), run.key.name());
        let slices = run.views.of::<EndpointSlice>().in_namespace(namespace);
        let ours = slices.filter(|slice| {
            is_ours(slice)
                && slice.meta().labels.get(SERVICE_NAME).map(String::as_str) == Some(name)
                && !slice.meta().is_deleting()
        });
        let slices = ours.filter_map(|slice| decode(slice)).collect();
        let service: Option<Service> = run.views.get(&Key::new(&service::resource(), namespace, name));
        let is_by_hand = service.and_then(|service| service.spec).is_some_and(|spec| spec.selector.is_none());
        let endpoints = if is_by_hand { run.views.get(run.key).filter(is_to_mirror) } else { None };
        reconcile(&Observed { endpoints, slices }, namespace)
    }
}

fn is_ours(slice: &api::object::Object) -> bool {
    slice.meta().labels.get(MANAGED_BY).map(String::as_str) == Some(MANAGER)
}

fn is_to_mirror(endpoints: &Endpoints) -> bool {
    let label = endpoints.metadata.labels.as_ref().and_then(|labels| labels.get(SKIP));
    let leads = endpoints.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(LEADER));
    label.map(String::as_str) != Some("true") && !leads
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{from_yaml, show};
    use expect_test::{Expect, expect};

    fn by_hand(subsets: &str) -> Endpoints {
        from_yaml(&format!(
            "{{metadata: {{name: db, namespace: web, uid: u, labels: {{app: db}}, annotations: \
             {{note: x, kubectl.kubernetes.io/last-applied-configuration: z}}}}, subsets: [{subsets}]}}"
        ))
    }

    fn mirror(subsets: &str, slices: Vec<EndpointSlice>) -> Vec<Action> {
        reconcile(&Observed { endpoints: Some(by_hand(subsets)), slices }, "web")
    }

    /// The slices that are written, as they would be stored.
    fn written(actions: &[Action]) -> Vec<EndpointSlice> {
        let object = |(at, action): (usize, &Action)| {
            let (Action::Create { object, .. } | Action::Update { object, .. }) = action else { return None };
            let mut slice: EndpointSlice = serde_json::from_value(object.clone()).expect("a slice");
            slice.metadata.name.get_or_insert(format!("db-{at}"));
            Some(slice)
        };
        actions.iter().enumerate().filter_map(object).collect()
    }

    fn check(subsets: &str, expected: Expect) {
        let slices = written(&mirror(subsets, Vec::new()));
        let line = |slice: &EndpointSlice| {
            let ports: Vec<_> = slice.ports.iter().flatten().filter_map(|port| port.port).collect();
            let address = |endpoint: &Endpoint| {
                let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true);
                format!("{}{}", endpoint.addresses.join(","), if ready { "" } else { "?" })
            };
            let addresses: Vec<String> = slice.endpoints.iter().flatten().map(address).collect();
            format!("{} {ports:?} {}", slice.address_type, addresses.join(" "))
        };
        expected.assert_eq(&slices.iter().map(line).collect::<Vec<_>>().join("\n"));
        assert_eq!(show(&mirror(subsets, slices)), "", "what is right is left alone");
    }

    #[test]
    fn addresses_of_a_family_that_offer_the_same_ports_share_a_slice() {
        check(
            "{addresses: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], notReadyAddresses: [{ip: 10.0.0.2}], ports: [{port: 80}]}",
            expect![[r#"
                IPv4 [80] 10.0.0.1 10.0.0.2?
                IPv6 [80] fd00::1"#]],
        );
        check(
            "{addresses: [{ip: 10.0.0.1}], ports: [{name: a, port: 80}]}, \
             {addresses: [{ip: 10.0.0.1}], ports: [{name: b, port: 81}]}",
            expect!["IPv4 [80, 81] 10.0.0.1"],
        );
    }

    #[test]
    fn a_slice_carries_labels_and_annotations_and_its_owner() {
        let slices = written(&mirror("{addresses: [{ip: 10.0.0.1}], ports: [{port: 80}]}", Vec::new()));
        let metadata = &slices[0].metadata;
        let labels = metadata.labels.as_ref().expect("labels");
        assert_eq!((labels["app"].as_str(), labels[SERVICE_NAME].as_str()), ("db", "db"));
        assert_eq!(labels[MANAGED_BY], MANAGER);
        assert_eq!(metadata.annotations.as_ref().expect("annotations").len(), 1);
        assert_eq!(metadata.owner_references.as_ref().expect("an owner")[0].kind, "Endpoints");
    }

    #[test]
    fn changes_are_followed_and_what_is_gone_goes() {
        let before = written(&mirror("{addresses: [{ip: 10.0.0.1}], ports: [{port: 80}]}", Vec::new()));
        let moved = mirror("{addresses: [{ip: 10.0.0.9}], ports: [{port: 80}]}", before.clone());
        assert_eq!(show(&moved), "update endpointslices.discovery.k8s.io db-0");
        let other_port = mirror("{addresses: [{ip: 10.0.0.1}], ports: [{port: 81}]}", before.clone());
        assert_eq!(show(&other_port), "update endpointslices.discovery.k8s.io db-0", "the slice is used again");
        let gone = reconcile(&Observed { endpoints: None, slices: before }, "web");
        assert_eq!(show(&gone), "delete endpointslices.discovery.k8s.io db-0");
    }

    #[test]
    fn no_more_than_a_thousand_addresses_are_mirrored_and_that_is_said() {
        let addresses: Vec<String> = (0..1100).map(|n| format!("{{ip: 10.0.{}.{}}}", n / 250, n % 250)).collect();
        let actions = mirror(&format!("{{addresses: [{}], ports: [{{port: 80}}]}}", addresses.join(",")), Vec::new());
        assert!(show(&actions).starts_with(
            "event Endpoints db Warning TooManyAddressesToMirror: A max of 1000 addresses can be mirrored to \
             EndpointSlices per Endpoints subset. 100 addresses were skipped"
        ));
        assert_eq!(written(&actions)[0].endpoints.as_ref().map(Vec::len), Some(1000));
    }

    #[test]
    fn some_endpoints_are_not_for_mirroring() {
        let with = |metadata: &str| from_yaml(&format!("{{metadata: {{{metadata}}}}}"));
        assert!(is_to_mirror(&with("name: a")));
        assert!(!is_to_mirror(&with("labels: {endpointslice.kubernetes.io/skip-mirror: 'true'}")));
        assert!(!is_to_mirror(&with("annotations: {control-plane.alpha.kubernetes.io/leader: x}")));
    }
}
