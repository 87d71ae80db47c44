//! Ingresses: whose they are, and the routes and certificates that they ask for.
//!
//! Semantics follow networking/v1 `types.go` and, where it leaves a choice, ingress-nginx (`internal/ingress/controller`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use client::events::reference_to;
use k8s_openapi::api::core::v1::{ObjectReference, Secret, Service, ServicePort};
use k8s_openapi::api::networking::v1::{Ingress, IngressBackend, IngressTLS, ServiceBackendPort};
use wire::edge::{Certificate, Host, PathMatch, Route, Table, Target, Upstream};

use crate::annotations::{PREFIX, Wishes};
use crate::names::primary_is_ipv4;
use crate::values::{Compiled, Finding, Observed, Services};

/// `spec.controller` of the classes that are ours.
pub const CONTROLLER: &str = "coracle.dev/ingress";
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";
/// What cannot be served is answered with this.
const UNAVAILABLE: Target = Target::Status(503);
const NOT_FOUND: Target = Target::Status(404);

/// Compiles everything but the names.
pub(crate) fn compile(observed: &Observed<'_>, services: &Services<'_>) -> Compiled {
    let classes = Classes::new(observed);
    let mut ours: Vec<(usize, &Ingress, Wishes)> = observed
        .ingresses
        .iter()
        .enumerate()
        .filter(|(_, ingress)| classes.serve(ingress))
        .map(|(index, ingress)| (index, *ingress, Wishes::read(ingress.metadata.annotations.as_ref())))
        .collect();
    // The oldest rule wins; but a rule that closes more than it names, because its pattern is not followed, wins over all.
    ours.sort_by_cached_key(|(_, ingress, wishes)| {
        let meta = &ingress.metadata;
        let covering = !wishes.closing.is_empty() && paths(ingress).any(|path| literal_part(path).is_some());
        (!covering, meta.creation_timestamp.clone(), meta.namespace.clone(), meta.name.clone())
    });
    let mut compiler = Compiler {
        services,
        secrets: observed.secrets.iter().map(|secret| (key(&secret.metadata), *secret)).collect(),
        has_default_certificate: observed.settings.default_certificate.is_some(),
        hosts: BTreeMap::new(),
        upstreams: BTreeMap::new(),
        table: Table::default(),
        owners: Vec::new(),
        certified: BTreeSet::new(),
        findings: Vec::new(),
    };
    for (_, ingress, wishes) in &ours {
        compiler.add(ingress, wishes);
    }
    let mut indexes: Vec<usize> = ours.iter().map(|(index, ..)| *index).collect();
    indexes.sort_unstable();
    compiler.finish(indexes)
}

type NamespacedName<'a> = (&'a str, &'a str);

fn key(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> NamespacedName<'_> {
    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// The classes that are ours.
struct Classes<'a> {
    names: BTreeSet<&'a str>,
    serves_unclassed: bool,
}

impl<'a> Classes<'a> {
    fn new(observed: &Observed<'a>) -> Self {
        let ours = || {
            let controller = |class: &&&k8s_openapi::api::networking::v1::IngressClass| {
                class.spec.as_ref().and_then(|spec| spec.controller.as_deref()) == Some(CONTROLLER)
            };
            observed.classes.iter().filter(controller)
        };
        let is_default = |class: &&k8s_openapi::api::networking::v1::IngressClass| {
            let annotations = class.metadata.annotations.as_ref();
            annotations.and_then(|all| all.get(DEFAULT_CLASS)).is_some_and(|value| value == "true")
        };
        let names = ours().filter_map(|class| class.metadata.name.as_deref()).collect();
        Self { names, serves_unclassed: ours().any(is_default) }
    }

    fn serve(&self, ingress: &Ingress) -> bool {
        let annotation = ingress.metadata.annotations.as_ref().and_then(|all| all.get(CLASS_ANNOTATION));
        let named = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_deref());
        match annotation.map(String::as_str).or(named) {
            Some(class) => self.names.contains(class),
            None => self.serves_unclassed,
        }
    }
}

/// A route's place in its host: rules for the same one are in conflict.
type Place = (bool, String);

struct Compiler<'a> {
    services: &'a Services<'a>,
    secrets: BTreeMap<NamespacedName<'a>, &'a Secret>,
    has_default_certificate: bool,
    hosts: BTreeMap<String, BTreeMap<Place, Route>>,
    upstreams: BTreeMap<(String, String, i32), usize>,
    table: Table,
    owners: Vec<Option<ObjectReference>>,
    /// Hosts that have a certificate.
    certified: BTreeSet<String>,
    findings: Vec<Finding>,
}

impl<'a> Compiler<'a> {
    fn add(&mut self, ingress: &'a Ingress, wishes: &Wishes) {
        let about = reference_to(ingress);
        self.report(&about, wishes);
        let Some(spec) = &ingress.spec else { return };
        let (namespace, _) = key(&ingress.metadata);
        let rule_hosts: Vec<&str> = spec.rules.iter().flatten().filter_map(|rule| rule.host.as_deref()).collect();
        let mut secure = BTreeSet::new();
        for tls in spec.tls.iter().flatten() {
            secure.extend(self.add_certificate(namespace, tls, &rule_hosts, &about));
        }
        if wishes.canary {
            return;
        }
        let everywhere = spec.rules.as_ref().is_none_or(Vec::is_empty);
        let fallback = spec.default_backend.as_ref().map(|backend| self.target(namespace, backend, wishes, &about));
        let options = |host: &str| {
            let redirect = wishes.force_ssl_redirect || wishes.ssl_redirect && secure.contains(host);
            wire::edge::Options { redirect_to_https: redirect, ..wishes.options.clone() }
        };
        if everywhere && let Some(target) = &fallback {
            let path = PathMatch::Prefix("/".to_owned());
            self.place("", Route { path, target: target.clone(), options: options("") }, &about);
        }
        for rule in spec.rules.iter().flatten() {
            let host = rule.host.as_deref().unwrap_or_default().to_ascii_lowercase();
            for path in rule.http.iter().flat_map(|http| &http.paths) {
                let target = self.target(namespace, &path.backend, wishes, &about);
                let pattern = path_match(path.path.as_deref().unwrap_or("/"), &path.path_type, wishes);
                self.place(&host, Route { path: pattern, target, options: options(&host) }, &about);
            }
        }
        // Only now, so that no rule of this Ingress is in conflict with what it falls back to.
        for rule in spec.rules.iter().flatten() {
            let host = rule.host.as_deref().unwrap_or_default().to_ascii_lowercase();
            let target = match (&fallback, &rule.http) {
                (Some(target), _) => target.clone(),
                (None, _) => NOT_FOUND,
            };
            let place = (true, "/".to_owned());
            let path = PathMatch::Prefix("/".to_owned());
            let route = Route { path, target, options: options(&host) };
            let routes = self.hosts.entry(host).or_default();
            match routes.get(&place) {
                Some(existing) if existing.target != NOT_FOUND => {}
                Some(_) if route.target == NOT_FOUND => {}
                Some(_) | None => {
                    routes.insert(place, route);
                }
            }
        }
    }

    fn report(&mut self, about: &ObjectReference, wishes: &Wishes) {
        if !wishes.closing.is_empty() {
            let message = format!(
                "not supported: {}; because access would be wider than intended, all paths of this Ingress answer 503 until the \
                 annotation is removed",
                listed(&wishes.closing)
            );
            self.find(about, "Closed", message);
        }
        if !wishes.unknown.is_empty() {
            let message = format!("not supported, and without effect: {}", listed(&wishes.unknown));
            self.find(about, "UnsupportedAnnotation", message);
        }
        if wishes.canary {
            let message = format!("not supported: {PREFIX}canary; this Ingress receives no requests");
            self.find(about, "UnsupportedAnnotation", message);
        }
        for message in &wishes.invalid {
            self.find(about, "InvalidAnnotation", message.clone());
        }
    }

    fn find(&mut self, about: &ObjectReference, reason: &'static str, message: String) {
        let finding = Finding { about: about.clone(), reason, message };
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// Adds the certificate for the hosts of an entry that have none yet, and returns all hosts of the entry.
    fn add_certificate(
        &mut self,
        namespace: &str,
        tls: &IngressTLS,
        rule_hosts: &[&str],
        about: &ObjectReference,
    ) -> Vec<String> {
        let named = tls.hosts.iter().flatten().map(String::as_str);
        let mut hosts: Vec<String> = named.map(str::to_ascii_lowercase).collect();
        if hosts.is_empty() {
            hosts = rule_hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        }
        let Some(name) = tls.secret_name.as_deref().filter(|name| !name.is_empty()) else { return hosts };
        let Some(secret) = self.secrets.get(&(namespace, name)) else {
            let instead = if self.has_default_certificate { "the default certificate is used" } else { "HTTPS fails" };
            let message =
                format!("secret {name:?} of type kubernetes.io/tls not found in namespace {namespace:?}; {instead}");
            self.find(about, "CertificateMissing", message);
            return hosts;
        };
        let text = |key: &str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(key));
            bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok())
        };
        let (Some(chain), Some(private)) = (text("tls.crt"), text("tls.key")) else {
            let message = format!("secret {name:?} has no tls.crt and tls.key in PEM");
            self.find(about, "CertificateInvalid", message);
            return hosts;
        };
        let uncertified: Vec<String> =
            hosts.iter().filter(|host| self.certified.insert((*host).clone())).cloned().collect();
        if !uncertified.is_empty() {
            self.table.certificates.push(Certificate { hosts: uncertified, chain, key: private });
            self.owners.push(Some(about.clone()));
        }
        hosts
    }

    fn place(&mut self, host: &str, route: Route, about: &ObjectReference) {
        let place = match &route.path {
            PathMatch::Exact(path) => (false, path.clone()),
            PathMatch::Prefix(path) => (true, path.clone()),
        };
        let routes = self.hosts.entry(host.to_owned()).or_default();
        match routes.get(&place) {
            // What another Ingress only falls back to gives way.
            Some(existing) if existing.target == NOT_FOUND => {}
            None => {}
            Some(existing) if existing.target == route.target => return,
            Some(_) => {
                let shown = if host.is_empty() { "all hosts" } else { host };
                let message =
                    format!("an older rule for {shown} has path {:?} already: this one has no effect", place.1);
                return self.find(about, "PathConflict", message);
            }
        }
        routes.insert(place, route);
    }

    fn target(
        &mut self,
        namespace: &str,
        backend: &IngressBackend,
        wishes: &Wishes,
        about: &ObjectReference,
    ) -> Target {
        if !wishes.closing.is_empty() {
            return UNAVAILABLE;
        }
        let Some(service) = &backend.service else {
            let message = "backends other than services are not supported; their paths answer 503".to_owned();
            self.find(about, "BackendUnsupported", message);
            return UNAVAILABLE;
        };
        let name = service.name.as_str();
        let Some(found) = self.services.get(namespace, name) else {
            let message =
                format!("service {name:?} not found in namespace {namespace:?}; its paths answer 503 until it exists");
            self.find(about, "ServiceNotFound", message);
            return UNAVAILABLE;
        };
        if found.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName") {
            let message = format!(
                "service {name:?} is of type ExternalName, which is not supported as a backend; 503 is answered"
            );
            self.find(about, "BackendUnsupported", message);
            return UNAVAILABLE;
        }
        let Some(port) = service.port.as_ref().and_then(|wanted| service_port(found, wanted)) else {
            let wanted = service.port.as_ref().map(shown).unwrap_or_default();
            let message = format!("service {name:?} has no TCP port {wanted}; its paths answer 503");
            self.find(about, "ServicePortNotFound", message);
            return UNAVAILABLE;
        };
        Target::Upstream(self.upstream(namespace, name, found, port))
    }

    fn upstream(&mut self, namespace: &str, name: &str, service: &Service, port: &ServicePort) -> usize {
        let key = (namespace.to_owned(), name.to_owned(), port.port);
        if let Some(index) = self.upstreams.get(&key) {
            return *index;
        }
        let index = self.table.upstreams.len();
        let endpoints = endpoints(self.services, namespace, name, service, port.name.as_deref().unwrap_or_default());
        self.table.upstreams.push(Upstream { name: format!("{namespace}-{name}-{}", port.port), endpoints });
        self.upstreams.insert(key, index);
        index
    }

    fn finish(self, ours: Vec<usize>) -> Compiled {
        let mut table = self.table;
        let in_order = |routes: BTreeMap<Place, Route>| {
            let mut routes: Vec<(Place, Route)> = routes.into_iter().collect();
            // Exact ones first, then the longest prefix.
            routes.sort_by(|((a_prefix, a), _), ((b_prefix, b), _)| {
                a_prefix.cmp(b_prefix).then(b.len().cmp(&a.len())).then(a.cmp(b))
            });
            Host { routes: routes.into_iter().map(|(_, route)| route).collect() }
        };
        table.hosts = self.hosts.into_iter().map(|(host, routes)| (host, in_order(routes))).collect();
        Compiled { table, findings: self.findings, ours, certificate_owners: self.owners }
    }
}

fn listed(names: &[String]) -> String {
    names.iter().map(|name| format!("{PREFIX}{name}")).collect::<Vec<_>>().join(", ")
}

fn paths(ingress: &Ingress) -> impl Iterator<Item = &str> {
    let rules = ingress.spec.iter().flat_map(|spec| spec.rules.iter().flatten());
    rules.flat_map(|rule| rule.http.iter().flat_map(|http| &http.paths)).filter_map(|path| path.path.as_deref())
}

fn path_match(path: &str, path_type: &str, wishes: &Wishes) -> PathMatch {
    let path = if path.is_empty() { "/" } else { path };
    if !wishes.closing.is_empty()
        && let Some(covering) = literal_part(path)
    {
        return PathMatch::Prefix(covering.to_owned());
    }
    match path_type {
        "Exact" => PathMatch::Exact(path.to_owned()),
        // Prefix, and ImplementationSpecific.
        _ => {
            let trimmed = path.trim_end_matches('/');
            PathMatch::Prefix(if trimmed.is_empty() { "/" } else { trimmed }.to_owned())
        }
    }
}

/// For a path that is a regular expression, the elements before it: everything that it can match lies below.
fn literal_part(path: &str) -> Option<&str> {
    let pattern = path.find(['(', ')', '[', ']', '{', '}', '*', '+', '?', '|', '^', '$', '\\'])?;
    // What stands before an operator may belong to it: `/admin.*`, `/admins?`.
    let element = path[..pattern].rfind('/').unwrap_or(0);
    Some(if element == 0 { "/" } else { &path[..element] })
}

fn shown(port: &ServiceBackendPort) -> String {
    port.name.as_ref().map_or_else(|| port.number.unwrap_or_default().to_string(), |name| format!("{name:?}"))
}

fn service_port<'s>(service: &'s Service, wanted: &ServiceBackendPort) -> Option<&'s ServicePort> {
    let tcp = |port: &&ServicePort| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    let mut ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).filter(tcp);
    match (&wanted.name, wanted.number) {
        (Some(name), _) if !name.is_empty() => ports.find(|port| port.name.as_ref() == Some(name)),
        (_, number) => ports.find(|port| Some(port.port) == number),
    }
}

/// The ready endpoints of the service's first family; when there are none, those that still serve while they terminate
/// (KEP-1669).
fn endpoints(
    services: &Services<'_>,
    namespace: &str,
    name: &str,
    service: &Service,
    port_name: &str,
) -> Vec<SocketAddr> {
    let family = if primary_is_ipv4(service) { "IPv4" } else { "IPv6" };
    let (mut ready, mut terminating) = (BTreeSet::new(), BTreeSet::new());
    for slice in services.slices(namespace, name).iter().filter(|slice| slice.address_type == family) {
        let port = slice.ports.iter().flatten().find(|port| {
            port.name.as_deref().unwrap_or_default() == port_name
                && port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
        });
        let Some(port) = port.and_then(|port| u16::try_from(port.port?).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(ip) = endpoint.addresses.first().and_then(|address| address.parse().ok()) else { continue };
            let conditions = endpoint.conditions.as_ref();
            let is_ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let is_terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
            let is_serving = conditions.and_then(|c| c.serving).unwrap_or(is_ready);
            if is_ready {
                ready.insert(SocketAddr::new(ip, port));
            } else if is_terminating && is_serving {
                terminating.insert(SocketAddr::new(ip, port));
            }
        }
    }
    let found = if ready.is_empty() { terminating } else { ready };
    found.into_iter().collect()
}
