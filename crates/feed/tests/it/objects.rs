//! Objects from short YAML, compiled.

use feed::compile::{Compiled, Observed, Settings, compile};
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use serde::de::DeserializeOwned;
use serde_json::Value;
use wire::edge::{Options, PathMatch, Target};

/// Two Services with endpoints, and the class of all Ingresses that name none.
pub const RACK: &str = r#"
- kind: IngressClass
  metadata: {name: coracle, annotations: {ingressclass.kubernetes.io/is-default-class: "true"}}
  spec: {controller: coracle.dev/ingress}
- kind: IngressClass
  metadata: {name: other}
  spec: {controller: example.org/other}
- kind: Service
  metadata: {name: web, namespace: rack}
  spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ipFamilies: [IPv4], ports: [{name: http, port: 80, targetPort: 8080}, {name: tls, port: 443}]}
- kind: EndpointSlice
  metadata: {name: web-1, namespace: rack, labels: {kubernetes.io/service-name: web}}
  addressType: IPv4
  ports: [{name: http, port: 8080, protocol: TCP}, {name: tls, port: 8443, protocol: TCP}]
  endpoints:
  - {addresses: [10.244.0.3], conditions: {ready: true}}
  - {addresses: [10.244.0.4], conditions: {ready: false}}
- kind: Service
  metadata: {name: api, namespace: rack}
  spec: {clusterIP: 10.96.0.2, clusterIPs: [10.96.0.2], ports: [{port: 3000}]}
"#;

pub fn settings() -> Settings {
    Settings {
        domain: "cluster.local".into(),
        service_ranges: vec![("10.96.0.0".parse().unwrap(), 12)],
        pod_ranges: vec![("10.244.0.0".parse().unwrap(), 16)],
        upstreams: vec!["192.0.2.53:53".parse().unwrap()],
        default_certificate: None,
    }
}

pub fn compiled(yaml: &str) -> Compiled {
    let objects: Vec<Value> = serde_saphyr::from_str(yaml).unwrap();
    fn of<K: DeserializeOwned>(objects: &[Value], kind: &str) -> Vec<K> {
        let found = objects.iter().filter(|object| object["kind"] == kind);
        found
            .map(|object| {
                let mut object = object.clone();
                object.as_object_mut().unwrap().remove("kind");
                serde_json::from_value(object).unwrap()
            })
            .collect()
    }
    let (ingresses, classes) = (of::<Ingress>(&objects, "Ingress"), of::<IngressClass>(&objects, "IngressClass"));
    let (services, slices) = (of::<Service>(&objects, "Service"), of::<EndpointSlice>(&objects, "EndpointSlice"));
    let (secrets, settings) = (of::<Secret>(&objects, "Secret"), settings());
    compile(&Observed {
        settings: &settings,
        ingresses: ingresses.iter().collect(),
        classes: classes.iter().collect(),
        services: services.iter().collect(),
        slices: slices.iter().collect(),
        secrets: secrets.iter().collect(),
    })
}

/// An Ingress of one host, in namespace `rack`, with these annotations and paths (`PATHTYPE PATH SERVICE:PORT`).
pub fn ingress(name: &str, host: &str, annotations: &str, paths: &[&str]) -> String {
    let path = |line: &&str| {
        let [kind, path, backend] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let (service, port) = backend.split_once(':').unwrap();
        let port = if port.parse::<u16>().is_ok() { format!("number: {port}") } else { format!("name: {port}") };
        format!("{{path: '{path}', pathType: {kind}, backend: {{service: {{name: {service}, port: {{{port}}}}}}}}}")
    };
    let paths = paths.iter().map(path).collect::<Vec<_>>().join(", ");
    let host = if host.is_empty() { String::new() } else { format!("host: '{host}', ") };
    format!(
        "- kind: Ingress\n  metadata: {{name: {name}, namespace: rack, uid: {name}, annotations: {{{annotations}}}}}\n  \
         spec: {{rules: [{{{host}http: {{paths: [{paths}]}}}}]}}\n"
    )
}

/// One line for each route, certificate and finding.
pub fn shown(compiled: &Compiled) -> String {
    let mut text = String::new();
    for (host, rules) in &compiled.table.hosts {
        for route in &rules.routes {
            let path = match &route.path {
                PathMatch::Exact(path) => format!("={path}"),
                PathMatch::Prefix(path) => path.clone(),
            };
            let target = match &route.target {
                Target::Status(status) => status.to_string(),
                Target::Upstream(index) => {
                    let upstream = &compiled.table.upstreams[*index];
                    let endpoints: Vec<String> = upstream.endpoints.iter().map(ToString::to_string).collect();
                    format!("{} [{}]", upstream.name, endpoints.join(", "))
                }
            };
            let host = if host.is_empty() { "*" } else { host };
            text.push_str(&format!("{host} {path} -> {target}{}\n", options(&route.options)));
        }
    }
    for certificate in &compiled.table.certificates {
        text.push_str(&format!("certificate {} for {}\n", certificate.chain, certificate.hosts.join(", ")));
    }
    for finding in &compiled.findings {
        let name = finding.about.name.as_deref().unwrap_or_default();
        text.push_str(&format!("{name}: {}: {}\n", finding.reason, finding.message));
    }
    text
}

fn options(options: &Options) -> String {
    let default = Options::default();
    let mut text = String::new();
    let mut say = |is: bool, what: String| {
        if is {
            text.push_str(&format!(" {what}"));
        }
    };
    say(options.redirect_to_https, "redirect".into());
    say(options.upstream_tls, "tls".into());
    say(options.body_limit != default.body_limit, format!("body={}", options.body_limit));
    say(options.connect_timeout_ms != default.connect_timeout_ms, format!("connect={}", options.connect_timeout_ms));
    say(options.read_timeout_ms != default.read_timeout_ms, format!("read={}", options.read_timeout_ms));
    say(options.send_timeout_ms != default.send_timeout_ms, format!("send={}", options.send_timeout_ms));
    text
}
