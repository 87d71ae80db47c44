//! Puts into a cluster what it begins with, at every start: what is there already stays.

use std::net::IpAddr;

use anyhow::{Context, Result};
use api::key::GroupResource;
use api::status::Status;
use client::{Client, Resource};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use server::bootstrap::{Initial, NAMESPACES, priority_classes, reconciled, roles_and_bindings};

/// The parts of the objects that differ from cluster to cluster.
pub struct Wanted {
    /// Of the API itself, one for each family: the first address of each range.
    pub api_ips: Vec<IpAddr>,
    pub node_ips: Vec<IpAddr>,
    pub api_port: u16,
    /// Of the cluster's DNS, one for each family.
    pub dns_ips: Vec<IpAddr>,
    /// Where the edge answers DNS on the node.
    pub dns_port: u16,
    pub node_name: String,
}

/// Creates and repairs all of them.
///
/// # Errors
/// What the API answers when it refuses one of them.
pub async fn run(client: &Client, wanted: &Wanted) -> Result<()> {
    let namespaces = resource("", "namespaces", "v1");
    for name in NAMESPACES {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure(client, &namespaces, "", object).await?;
    }
    // At once: one sync of the log serves them all.
    try_join_all(roles_and_bindings().iter().map(|initial| role_or_binding(client, initial))).await?;
    for (plural, object) in ingress_controller_rights() {
        ensure(client, &resource("rbac.authorization.k8s.io", plural, "v1"), "", object).await?;
    }
    for initial in priority_classes() {
        ensure(client, &resource(initial.group, initial.resource, "v1"), "", initial.object).await?;
    }
    for name in ["coracle", "nginx"] {
        let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": name},
                            "spec": {"controller": "coracle.dev/ingress"}});
        ensure(client, &resource("networking.k8s.io", "ingressclasses", "v1"), "", object).await?;
    }
    for (namespace, service, slices) in [api_service(wanted), dns_service(wanted)] {
        ensure(client, &resource("", "services", "v1"), namespace, service).await?;
        for slice in slices {
            replace(client, &resource("discovery.k8s.io", "endpointslices", "v1"), namespace, slice).await?;
        }
    }
    let (endpoints, object) = (resource("", "endpoints", "v1"), api_endpoints(wanted));
    replace(client, &endpoints, "default", object).await
}

async fn role_or_binding(client: &Client, initial: &Initial) -> Result<()> {
    let of = resource(initial.group, initial.resource, "v1");
    let namespace = text(&initial.object["metadata"]["namespace"]);
    match create(client, &of, namespace, initial.object.clone()).await? {
        Created::New => Ok(()),
        Created::Exists => reconcile(client, &of, namespace, &initial.object).await,
    }
}

/// What compiles Ingresses for the edge reads what they name, and says what it found.
fn ingress_controller_rights() -> [(&'static str, Value); 2] {
    const NAME: &str = "coracle:ingress-controller";
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    let read = ["get", "list", "watch"];
    let rules = json!([
        rule(&[""], &["services", "secrets"], &read),
        rule(&["discovery.k8s.io"], &["endpointslices"], &read),
        rule(&["networking.k8s.io"], &["ingresses", "ingressclasses"], &read),
        rule(&["networking.k8s.io"], &["ingresses/status"], &["patch", "update"]),
        rule(&["", "events.k8s.io"], &["events"], &["create", "patch", "update"]),
    ]);
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": NAME}, "rules": rules});
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": NAME},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME},
        "subjects": [{"kind": "ServiceAccount", "namespace": "kube-system", "name": "ingress-controller"}],
    });
    [("clusterroles", role), ("clusterrolebindings", binding)]
}

fn resource(group: &'static str, plural: &'static str, version: &'static str) -> Resource {
    Resource { resource: GroupResource::new(group, plural), version }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

enum Created {
    New,
    Exists,
}

async fn create(client: &Client, of: &Resource, namespace: &str, object: Value) -> Result<Created> {
    let name = text(&object["metadata"]["name"]).to_owned();
    match client.create_object(of, namespace, object).await {
        Ok(_) => Ok(Created::New),
        Err(status) if status.is_already_exists() => Ok(Created::Exists),
        Err(status) => Err(failed(status)).with_context(|| format!("could not create {} {name:?}", of.resource)),
    }
}

async fn ensure(client: &Client, of: &Resource, namespace: &str, object: Value) -> Result<()> {
    create(client, of, namespace, object).await.map(drop)
}

/// Brings what exists to what is wanted: for objects that follow the node's addresses.
async fn replace(client: &Client, of: &Resource, namespace: &str, object: Value) -> Result<()> {
    let name = text(&object["metadata"]["name"]).to_owned();
    if let Created::Exists = create(client, of, namespace, object.clone()).await? {
        let existing = client.get_object(of, namespace, &name).await.map_err(failed)?.value();
        let parts = ["endpoints", "ports", "subsets"].into_iter().filter(|part| object[part].is_array());
        let stale: Vec<&str> = parts.filter(|part| existing[part] != object[part]).collect();
        if !stale.is_empty() {
            let mut updated = existing;
            for part in stale {
                updated[part] = object[part].clone();
            }
            client.update_object(of, updated).await.map_err(failed)?;
        }
    }
    Ok(())
}

async fn reconcile(client: &Client, of: &Resource, namespace: &str, wanted: &Value) -> Result<()> {
    let name = text(&wanted["metadata"]["name"]);
    let existing = client.get_object(of, namespace, name).await.map_err(failed)?.value();
    if let Some(merged) = reconciled(&existing, wanted) {
        client
            .update_object(of, merged)
            .await
            .map_err(failed)
            .with_context(|| format!("could not repair {} {name:?}", of.resource))?;
    }
    Ok(())
}

fn failed(status: Status) -> anyhow::Error {
    anyhow::anyhow!("{status}")
}

type ServiceWithSlices = (&'static str, Value, Vec<Value>);

fn families(ips: &[IpAddr]) -> Vec<&'static str> {
    ips.iter().map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" }).collect()
}

/// Source: kubernetes `pkg/controlplane/controller/kubernetesservice/controller.go`.
fn api_service(wanted: &Wanted) -> ServiceWithSlices {
    let ports = json!([{"name": "https", "port": 443, "protocol": "TCP", "targetPort": wanted.api_port}]);
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    // Upstream keeps this service to one family.
    let service = service("kubernetes", &labels, &wanted.api_ips[..1], "SingleStack", ports);
    let endpoint_ports = json!([{"name": "https", "port": wanted.api_port, "protocol": "TCP"}]);
    (
        "default",
        service,
        slices("default", "kubernetes", &wanted.api_ips[..1], &wanted.node_ips, &wanted.node_name, &endpoint_ports),
    )
}

/// The same as the slice, for clients that read the older kind; the label keeps it from being mirrored to another slice.
///
/// Source: kubernetes `pkg/controlplane/reconcilers/instancecount.go`.
fn api_endpoints(wanted: &Wanted) -> Value {
    let family = families(&wanted.api_ips[..1])[0];
    let ips = wanted.node_ips.iter().filter(|ip| families(std::slice::from_ref(*ip))[0] == family).take(1);
    let addresses: Vec<Value> = ips.map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default",
                     "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": addresses, "ports": [{"name": "https", "port": wanted.api_port, "protocol": "TCP"}]}],
    })
}

fn dns_service(wanted: &Wanted) -> ServiceWithSlices {
    let ports = json!([
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": wanted.dns_port},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": wanted.dns_port},
    ]);
    let labels =
        json!({"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"});
    let policy = if wanted.dns_ips.len() > 1 { "RequireDualStack" } else { "SingleStack" };
    let service = service("kube-dns", &labels, &wanted.dns_ips, policy, ports);
    let endpoint_ports = json!([
        {"name": "dns", "port": wanted.dns_port, "protocol": "UDP"},
        {"name": "dns-tcp", "port": wanted.dns_port, "protocol": "TCP"},
    ]);
    let slices =
        slices("kube-system", "kube-dns", &wanted.dns_ips, &wanted.node_ips, &wanted.node_name, &endpoint_ports);
    ("kube-system", service, slices)
}

/// Without a selector: the endpoints are ours, not pods'.
fn service(name: &str, labels: &Value, ips: &[IpAddr], policy: &str, ports: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels},
        "spec": {"type": "ClusterIP", "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": families(ips),
                 "ipFamilyPolicy": policy, "ports": ports, "sessionAffinity": "None"},
    })
}

fn slices(
    namespace: &str,
    service: &str,
    ips: &[IpAddr],
    node_ips: &[IpAddr],
    node: &str,
    ports: &Value,
) -> Vec<Value> {
    let of_family = |family: &&str| {
        let address = node_ips.iter().find(|ip| families(std::slice::from_ref(*ip))[0] == *family);
        address.map(|ip| {
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family, "ports": ports,
                "metadata": {"name": format!("{service}-{}", family.to_ascii_lowercase()), "namespace": namespace,
                             "labels": {"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "coracle.dev"}},
                "endpoints": [{"addresses": [ip], "conditions": {"ready": true, "serving": true, "terminating": false}, "nodeName": node}],
            })
        })
    };
    families(ips).iter().filter_map(of_family).collect()
}
