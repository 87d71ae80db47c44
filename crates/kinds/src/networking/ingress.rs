//! Ingress: HTTP routes from outside to services.
//!
//! Source: kubernetes `pkg/registry/networking/ingress/strategy.go`.

use api::field::{Error, Path};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy, Subresource};
use crate::place::Place;
use crate::strategy::{generation, keep_status, spec_changed};
use crate::table;
use crate::value::{is_empty, items, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().preparing(prepare).validating(validate).warning(warnings),
        subresources: vec![Subresource::status(
            Strategy::status().validating(validate_status).warning(status_warnings),
        )],
        columns: vec![
            Column::name(),
            Column::text("Class", "The ingress class, which says who serves it."),
            Column::text("Hosts", "The host names that its rules are about."),
            Column::text("Address", "The addresses where it is served."),
            Column::text("Ports", "The ports where it is served."),
            Column::age(),
        ],
        row: Box::new(row),
        ..Kind::namespaced("networking.k8s.io", "v1", "Ingress", "ingresses").short(&["ing"])
    }
}

fn prepare(ingress: &mut Value, old: Option<&Value>) {
    keep_status(ingress, old, &json!({"loadBalancer": {}}));
    generation(ingress, old, spec_changed);
}

/// What the class was named by, before there was a field for it.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

fn validate(ingress: &Value, old: Option<&Value>) -> Vec<Error> {
    let spec = Place::root(ingress).child("spec");
    let (backend, rules, class) = (spec.child("defaultBackend"), spec.child("rules"), spec.child("ingressClassName"));
    let mut errors = Vec::new();
    if rules.is_empty() && !backend.is_set() {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.push(Error::invalid(&spec.path, rules.value.clone(), detail));
    }
    if backend.is_set() {
        validate_backend(&backend, &mut errors);
    }
    for rule in rules.items() {
        host(&rule.child("host"), &mut errors);
        let http = rule.child("http");
        if http.is_set() {
            http.child("paths").must_be_set(&mut errors);
        }
        for path in http.child("paths").items() {
            validate_path(&path, &mut errors);
        }
    }
    for tls in spec.child("tls").items() {
        for name in tls.child("hosts").items() {
            name.keep(host_rule(name.text()), &mut errors);
        }
        if !tls.child("secretName").is_empty() {
            tls.child("secretName").keep(names::is_dns1123_subdomain, &mut errors);
        }
    }
    if class.is_set() {
        class.keep(names::is_dns1123_subdomain, &mut errors);
    }
    let annotation = &ingress["metadata"]["annotations"][CLASS_ANNOTATION];
    if old.is_none() && class.is_set() && !annotation.is_null() && annotation != class.value {
        let path = Path::new("annotations").child(CLASS_ANNOTATION);
        let detail = "must match `ingressClassName` when both are specified";
        errors.push(Error::invalid(&path, annotation.clone(), detail));
    }
    errors
}

fn host_rule(host: &str) -> fn(&str) -> names::Messages {
    if host.contains('*') { names::is_wildcard_dns1123_subdomain } else { names::is_dns1123_subdomain }
}

fn host(host: &Place<'_>, errors: &mut Vec<Error>) {
    if host.is_empty() {
        return;
    }
    if names::parse_ip_sloppy(host.text()).is_some() {
        errors.push(host.invalid("must be a DNS name, not an IP address"));
    }
    host.keep(host_rule(host.text()), errors);
}

fn validate_path(rule: &Place<'_>, errors: &mut Vec<Error>) {
    let (kind, path) = (rule.child("pathType"), rule.child("path"));
    if !kind.is_set() {
        return errors.push(kind.required("pathType must be specified"));
    }
    kind.if_set_one_of(&["Exact", "ImplementationSpecific", "Prefix"], errors);
    let strict = matches!(kind.text(), "Exact" | "Prefix");
    let absolute = path.text().starts_with('/');
    if !absolute && (strict || (kind.is("ImplementationSpecific") && !path.is_empty())) {
        errors.push(Error::invalid(&path.path, path.text(), "must be an absolute path"));
    }
    if strict {
        for sequence in ["//", "/./", "/../", "%2f", "%2F"] {
            if path.text().contains(sequence) {
                errors.push(path.invalid(format!("must not contain '{sequence}'")));
            }
        }
        for suffix in ["/..", "/."] {
            if path.text().ends_with(suffix) {
                errors.push(path.invalid(format!("cannot end with '{suffix}'")));
            }
        }
    }
    validate_backend(&rule.child("backend"), errors);
}

fn validate_backend(backend: &Place<'_>, errors: &mut Vec<Error>) {
    let (resource, service) = (backend.child("resource"), backend.child("service"));
    let wrong = |detail: &str| Error::invalid(&backend.path, "", detail);
    match (resource.is_set(), service.is_set()) {
        (true, true) => errors.push(wrong("cannot set both resource and service backends")),
        (true, false) => {
            if resource.child("apiGroup").is_set() {
                resource.child("apiGroup").keep(names::is_dns1123_subdomain, errors);
            }
            for field in ["kind", "name"] {
                resource.child(field).require(names::is_path_segment_name, errors);
            }
        }
        (false, true) => {
            service.child("name").require(names::is_dns1123_label, errors);
            let (name, number) = (service.child("port").child("name"), service.child("port").child("number"));
            match (name.is_empty(), number.number()) {
                (true, 0) => errors.push(backend.required("port name or number is required")),
                (true, _) => number.port_number(errors),
                (false, 0) => name.keep(names::is_port_name, errors),
                (false, _) => errors.push(wrong("cannot set both port name & port number")),
            }
        }
        (false, false) => errors.push(wrong("resource or service backend is required")),
    }
}

fn validate_status(ingress: &Value, _old: Option<&Value>) -> Vec<Error> {
    let mut errors = Vec::new();
    for point in Place::root(ingress).child("status").child("loadBalancer").child("ingress").items() {
        let (ip, name) = (point.child("ip"), point.child("hostname"));
        if !ip.is_empty() {
            ip.keep(names::is_ip_for_legacy_field, &mut errors);
        }
        if !name.is_empty() {
            name.keep(names::is_dns1123_subdomain, &mut errors);
            if names::parse_ip_sloppy(name.text()).is_some() {
                errors.push(name.invalid("must be a DNS name, not an IP address"));
            }
        }
    }
    errors
}

fn warnings(ingress: &Value, old: Option<&Value>) -> Vec<String> {
    let annotated = !ingress["metadata"]["annotations"][CLASS_ANNOTATION].is_null();
    if old.is_none() && annotated && ingress["spec"]["ingressClassName"].is_null() {
        let instead = "is deprecated, please use 'spec.ingressClassName' instead";
        return vec![format!("annotation {CLASS_ANNOTATION:?} {instead}")];
    }
    Vec::new()
}

fn status_warnings(ingress: &Value, _old: Option<&Value>) -> Vec<String> {
    let points = Place::root(ingress).child("status").child("loadBalancer").child("ingress");
    points.items().filter_map(|point| names::ip_warning(&point.path, point.child("ip").text())).collect()
}

fn row(ingress: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &ingress["spec"];
    vec![
        json!(table::name(ingress)),
        table::or_none(&spec["ingressClassName"]),
        json!(hosts(items(&spec["rules"]))),
        json!(table::load_balancer(ingress)),
        json!(if is_empty(&spec["tls"]) { "80" } else { "80, 443" }),
        table::age(ingress, now),
    ]
}

fn hosts(rules: &[Value]) -> String {
    let named: Vec<&str> = rules.iter().map(|rule| text(&rule["host"])).filter(|host| !host.is_empty()).collect();
    match named.as_slice() {
        [] => "*".to_owned(),
        // Upstream counts every further rule, named or not, once three names are shown.
        [a, b, c, _, ..] => format!("{a},{b},{c} + {} more...", rules.len() - 3),
        few => few.join(","),
    }
}
