//! Services, their endpoints, and ingresses.

use expect_test::{Expect, expect};
use kinds::core::service_update::init_families;
use serde_json::{Value, json};

use crate::{check, check_part, check_update, check_warnings, created, kind_of, run, status_strategy, yaml};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: a, namespace: default}
spec: {selector: {app: a}, ports: [{port: 80}]}
";

fn service(spec: &str) -> String {
    format!("{{apiVersion: v1, kind: Service, metadata: {{name: a}}, spec: {spec}}}")
}

#[test]
fn a_service_gets_its_defaults() {
    check_part(
        SERVICE,
        "/spec",
        expect![[r#"
        internalTrafficPolicy: Cluster
        ports:
        - port: 80
          protocol: TCP
          targetPort: 80
        selector:
          app: a
        sessionAffinity: None
        type: ClusterIP
    "#]],
    );
    check_part(
        &service("{type: NodePort, sessionAffinity: ClientIP, ports: [{port: 1, targetPort: web}]}"),
        "/spec",
        expect![[r#"
            externalTrafficPolicy: Cluster
            internalTrafficPolicy: Cluster
            ports:
            - port: 1
              protocol: TCP
              targetPort: web
            sessionAffinity: ClientIP
            sessionAffinityConfig:
              clientIP:
                timeoutSeconds: 10800
            type: NodePort
        "#]],
    );
}

#[test]
fn ports_of_services() {
    check(&service("{}"), expect!["spec.ports: Required value"]);
    check(&service("{clusterIP: None}"), expect!["no errors"]);
    check(
        &service(
            "{ports: [{port: 0}, {port: 80, name: A}, {port: 80, name: b}, {port: 80, name: b, nodePort: 30000}]}",
        ),
        expect![[r#"
            spec.ports[0].name: Required value
            spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive
            spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive
            spec.ports[1].name: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            spec.ports[3].name: Duplicate value: "b"
            spec.ports[3].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'
            spec.ports[2]: Duplicate value: {"port":80,"protocol":"TCP"}
            spec.ports[3]: Duplicate value: {"port":80,"protocol":"TCP"}"#]],
    );
}

#[test]
fn addresses_of_services() {
    check(
        &service("{ports: [{port: 1}], clusterIP: 10.96.0.1, clusterIPs: [10.96.0.2, 10.96.0.3, x]}"),
        expect![[r#"
        spec.clusterIPs: Invalid value: ["10.96.0.2","10.96.0.3","x"]: first value must match `clusterIP`
        spec.clusterIPs[2]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
        spec.clusterIPs: Invalid value: ["10.96.0.2","10.96.0.3","x"]: may only hold up to 2 values"#]],
    );
    check(
        &service("{ports: [{port: 1}], clusterIP: 10.96.0.1, ipFamilies: [IPv6, IPv6], ipFamilyPolicy: Dual}"),
        expect![[r#"
            spec.ipFamilies[1]: Duplicate value: "IPv6"
            spec.ipFamilyPolicy: Unsupported value: "Dual": supported values: "PreferDualStack", "RequireDualStack", "SingleStack"
            spec.clusterIPs[0]: Invalid value: "10.96.0.1": expected an IPv6 value as indicated by `ipFamilies[0]`"#]],
    );
    check(
        &service("{type: NodePort, ports: [{port: 1}], clusterIP: None}"),
        expect![[r#"spec.clusterIPs[0]: Invalid value: "None": may not be set to 'None' for NodePort services"#]],
    );
}

#[test]
fn external_names() {
    check(
        &service("{type: ExternalName, externalName: a_b, clusterIP: 10.0.0.1}"),
        expect![[r#"
        spec.clusterIPs: Forbidden: may not be set for ExternalName services
        spec.externalName: Invalid value: "a_b": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"#]],
    );
    check(&service("{type: ExternalName, externalName: a.example.}"), expect!["no errors"]);
}

#[test]
fn what_nothing_acts_on_is_refused() {
    check(
        &service(
            "{type: LoadBalancer, ports: [{port: 1}], externalIPs: [192.0.2.1], trafficDistribution: PreferClose, loadBalancerSourceRanges: [10.0.0.0/8], externalTrafficPolicy: Local}",
        ),
        expect![[r#"
            spec.externalIPs: Forbidden: not supported yet by coracle: external addresses are not programmed
            spec.trafficDistribution: Forbidden: not supported yet by coracle: endpoints are not preferred by topology
            spec.loadBalancerSourceRanges: Forbidden: not supported yet by coracle: sources are not told apart
            spec.externalTrafficPolicy: Forbidden: not supported yet by coracle for load balancers: nothing answers their health checks; use Cluster"#]],
    );
    check(
        &service(
            "{type: Odd, ports: [{port: 1}], sessionAffinity: Cookie, internalTrafficPolicy: Odd, externalTrafficPolicy: Local}",
        ),
        expect![[r#"
            spec.sessionAffinity: Unsupported value: "Cookie": supported values: "ClientIP", "None"
            spec.type: Unsupported value: "Odd": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"
            spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services
            spec.internalTrafficPolicy: Unsupported value: "Odd": supported values: "Cluster", "Local""#]],
    );
}

/// What is filled in for a cluster with these families, as policy and families, or the errors.
fn families(spec: &str, configured: &[&str], expect: Expect) {
    let mut object = created(yaml(&service(spec)));
    let result = match init_families(&mut object, None, configured) {
        Ok(()) => format!("{} {}", object["spec"]["ipFamilyPolicy"], object["spec"]["ipFamilies"]),
        Err(errors) => errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    };
    expect.assert_eq(&result);
}

#[test]
fn families_follow_policy_and_cluster() {
    let both = ["IPv4", "IPv6"];
    families("{ports: [{port: 1}]}", &both, expect![[r#""SingleStack" ["IPv4"]"#]]);
    families(
        "{ports: [{port: 1}], ipFamilyPolicy: PreferDualStack}",
        &both,
        expect![[r#""PreferDualStack" ["IPv4","IPv6"]"#]],
    );
    families(
        "{ports: [{port: 1}], ipFamilyPolicy: PreferDualStack}",
        &["IPv6"],
        expect![[r#""PreferDualStack" ["IPv6"]"#]],
    );
    families("{ports: [{port: 1}], clusterIP: 'fd00::1'}", &both, expect![[r#""SingleStack" ["IPv6"]"#]]);
    families("{clusterIP: None}", &["IPv4"], expect![[r#""RequireDualStack" ["IPv4","IPv6"]"#]]);
    families(
        "{ports: [{port: 1}], ipFamilyPolicy: RequireDualStack}",
        &["IPv4"],
        expect![[
            r#"spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services"#
        ]],
    );
    families(
        "{ports: [{port: 1}], ipFamilies: [IPv6]}",
        &["IPv4"],
        expect![[r#"spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster"#]],
    );
    families(
        "{ports: [{port: 1}], clusterIP: 'fd00::1'}",
        &["IPv4"],
        expect![[r#"spec.clusterIPs[0]: Invalid value: ["fd00::1"]: IPv6 is not configured on this cluster"#]],
    );
}

/// An allotted service, replaced by another.
fn replaced(old: &str, new: &str) -> Value {
    let old = created(yaml(&service(old)));
    run(&kind_of(&old).strategy, yaml(&service(new)), Some(&old)).expect("no errors")["spec"].take()
}

#[test]
fn what_was_allotted_is_kept() {
    let old = "{type: NodePort, clusterIP: 10.96.0.9, ports: [{name: a, port: 80, nodePort: 30001}]}";
    let spec = replaced(old, "{type: NodePort, ports: [{name: a, port: 81}]}");
    assert_eq!((&spec["clusterIP"], &spec["ports"][0]["nodePort"]), (&json!("10.96.0.9"), &json!(30001)));
    let spec = replaced(
        old,
        "{type: ClusterIP, ports: [{name: a, port: 80, nodePort: 30001}], externalTrafficPolicy: Cluster}",
    );
    assert_eq!((&spec["ports"][0]["nodePort"], &spec["externalTrafficPolicy"]), (&Value::Null, &Value::Null));
}

#[test]
fn an_address_does_not_change() {
    let old = service("{ports: [{port: 1}], clusterIP: 10.96.0.9}");
    check_update(
        &old,
        &old.replace("10.96.0.9", "10.96.0.10"),
        expect![[r#"spec.clusterIPs[0]: Invalid value: ["10.96.0.10"]: may not change once set"#]],
    );
}

#[test]
fn families_may_be_left_out_of_an_update() {
    let old = service("{ports: [{port: 1}], clusterIP: 10.96.0.9, ipFamilies: [IPv4]}");
    check_update(&old, &service("{ports: [{port: 1}]}"), expect!["no errors"]);
    let dual = service(
        "{ports: [{port: 1}], clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9, 'fd00::1'], ipFamilyPolicy: RequireDualStack}",
    );
    check_update(
        &dual,
        &dual.replace("[10.96.0.9, 'fd00::1']", "[10.96.0.9]"),
        expect![[
            r#"spec.ipFamilyPolicy: Invalid value: "RequireDualStack": must be set to 'SingleStack' when releasing the secondary clusterIP"#
        ]],
    );
}

#[test]
fn a_service_claims_addresses_and_node_ports() {
    let object = created(yaml(&service(
        "{type: NodePort, clusterIP: 10.96.0.9, ports: [{name: a, port: 53, nodePort: 30053}, {name: b, port: 53, protocol: UDP, nodePort: 30053}]}",
    )));
    let claims = kind_of(&object).claims.expect("services claim")(&object);
    let shown: Vec<String> = claims.iter().map(|c| format!("{} {} {}", c.pool, c.value, c.taken)).collect();
    expect![[r#"
        cluster-ips 10.96.0.9 spec.clusterIPs: Invalid value: ["10.96.0.9"]: failed to allocate IP 10.96.0.9: provided IP is already allocated
        node-ports 30053 spec.ports[0].nodePort: Invalid value: 30053: provided port is already allocated"#]]
    .assert_eq(&shown.join("\n"));
}

#[test]
fn endpoints() {
    check(
        "{apiVersion: v1, kind: Endpoints, metadata: {name: a}, subsets: [{}, {addresses: [{ip: 127.0.0.1, hostname: A}, {ip: x}], ports: [{port: 80}, {port: 0, name: b}]}]}",
        expect![[r#"
            subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`
            subsets[1].addresses[0].hostname: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            subsets[1].addresses[0].ip: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)
            subsets[1].addresses[1].ip: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
            subsets[1].addresses[1].ip: Invalid value: "x": must be a valid IP address
            subsets[1].ports[0].name: Required value
            subsets[1].ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive"#]],
    );
}

#[test]
fn endpoint_slices() {
    let slice = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a}
addressType: IPv4
endpoints: [{addresses: ['fd00::1', 169.254.1.1]}, {addresses: []}]
ports: [{port: 80}, {port: 81}]
";
    check(
        slice,
        expect![[r#"
        ports[1].name: Duplicate value: ""
        endpoints[0].addresses: Invalid value: "fd00::1": must be an IPv4 address
        endpoints[0].addresses[1]: Invalid value: "169.254.1.1": may not be in the link-local range (169.254.0.0/16, fe80::/10)
        endpoints[1].addresses: Required value"#]],
    );
    let good =
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a}, addressType: IPv4, endpoints: []}";
    check_update(
        good,
        &good.replace("IPv4", "IPv6"),
        expect![[r#"addressType: Invalid value: null: field is immutable"#]],
    );
    check_warnings(&good.replace("IPv4", "FQDN"), expect!["spec.addressType: FQDN endpoints are deprecated"]);
}

const INGRESS: &str = "
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: a, namespace: default}
spec:
  tls: [{hosts: [a.example], secretName: a-tls}]
  rules:
  - host: a.example
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: a, port: {number: 80}}}}]}
";

#[test]
fn ingresses() {
    check(INGRESS, expect!["no errors"]);
    check(
        "{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: a}, spec: {}}",
        expect!["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"],
    );
    check(
        &INGRESS.replace("host: a.example", "host: 192.0.2.1").replace("[a.example]", "['*.*.x']"),
        expect![[r#"
        spec.rules[0].host: Invalid value: "192.0.2.1": must be a DNS name, not an IP address
        spec.tls[0].hosts[0]: Invalid value: "*.*.x": a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"#]],
    );
    check(
        &INGRESS.replace("path: /,", "path: a//b/..,").replace("number: 80", "number: 80, name: web"),
        expect![[r#"
        spec.rules[0].http.paths[0].path: Invalid value: "a//b/..": must be an absolute path
        spec.rules[0].http.paths[0].path: Invalid value: "a//b/..": must not contain '//'
        spec.rules[0].http.paths[0].path: Invalid value: "a//b/..": cannot end with '/..'
        spec.rules[0].http.paths[0].backend: Invalid value: "": cannot set both port name & port number"#]],
    );
    check(
        &INGRESS.replace("pathType: Prefix, ", ""),
        expect!["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"],
    );
    check(
        &INGRESS.replace("{service: {name: a, port: {number: 80}}}", "{}"),
        expect![[r#"spec.rules[0].http.paths[0].backend: Invalid value: "": resource or service backend is required"#]],
    );
    check_warnings(
        &INGRESS.replace("name: a, namespace", "annotations: {kubernetes.io/ingress.class: nginx}, name: a, namespace"),
        expect![[
            r#"annotation "kubernetes.io/ingress.class" is deprecated, please use 'spec.ingressClassName' instead"#
        ]],
    );
}

#[test]
fn ingress_classes() {
    let class = "{apiVersion: networking.k8s.io/v1, kind: IngressClass, metadata: {name: a}, spec: {controller: coracle.dev/ingress}}";
    check(class, expect!["no errors"]);
    check(
        &class.replace("coracle.dev/ingress", "nope"),
        expect![[r#"spec.controller: Invalid value: "nope": must be a domain-prefixed path (such as "acme.io/foo")"#]],
    );
    check(
        &class.replace("coracle.dev/ingress", "a.b/c, parameters: {kind: K, name: m, scope: Namespace}"),
        expect!["spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"],
    );
    check_update(
        class,
        &class.replace("ingress}", "other}"),
        expect![[r#"spec.controller: Invalid value: "coracle.dev/other": field is immutable"#]],
    );
}

#[test]
fn load_balancers_are_left_to_whoever_implements_their_class() {
    let balanced =
        "{type: LoadBalancer, loadBalancerClass: example.com/vip, loadBalancerIP: 192.0.2.7, ports: [{port: 1}]}";
    check(&service(balanced), expect!["no errors"]);
    check_part(
        &service(balanced),
        "/spec/allocateLoadBalancerNodePorts",
        expect![[r#"
        true
    "#]],
    );
    check_update(
        &service(balanced),
        &service("{type: LoadBalancer, loadBalancerClass: other, ports: [{port: 1}]}"),
        expect![[r#"spec.loadBalancerClass: Invalid value: "other": may not change once set"#]],
    );
    check(
        &service("{loadBalancerClass: a, allocateLoadBalancerNodePorts: false, ports: [{port: 1}]}"),
        expect![[r#"
            spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'
            spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'"#]],
    );
    // A change of type takes with it what the client left as it was.
    let old = created(yaml(&service(balanced)));
    let mut new = old.clone();
    new["spec"]["type"] = json!("ClusterIP");
    let new = run(&kind_of(&old).strategy, new, Some(&old)).expect("no errors");
    assert_eq!(
        (&new["spec"]["loadBalancerClass"], &new["spec"]["externalTrafficPolicy"]),
        (&Value::Null, &Value::Null)
    );
}

#[test]
fn addresses_of_load_balancers() {
    let check = |spec: &str, ingress: Value, expect: Expect| {
        let old = created(yaml(&service(spec)));
        let mut new = old.clone();
        new["status"]["loadBalancer"]["ingress"] = ingress;
        let new = run(status_strategy(&kind_of(&old)), new, Some(&old));
        expect.assert_eq(&new.map_or_else(|errors| errors, |new| new["status"]["loadBalancer"].to_string()));
    };
    let balanced = "{type: LoadBalancer, ports: [{port: 1}]}";
    check(
        balanced,
        json!([{"ip": "203.0.113.1"}, {"hostname": "a.example"}]),
        expect![[r#"{"ingress":[{"ip":"203.0.113.1","ipMode":"VIP"},{"hostname":"a.example"}]}"#]],
    );
    check(
        balanced,
        json!([{"ip": "x"}, {"ip": "203.0.113.1", "ipMode": "Odd"}, {"hostname": "1.2.3.4", "ipMode": "VIP"}]),
        expect![[r#"
            status.loadBalancer.ingress[0].ip: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
            status.loadBalancer.ingress[1].ipMode: Unsupported value: "Odd": supported values: "Proxy", "VIP"
            status.loadBalancer.ingress[2].ipMode: Forbidden: may not be specified when `ip` is not set
            status.loadBalancer.ingress[2].hostname: Invalid value: "1.2.3.4": must be a DNS name, not an IP address"#]],
    );
    check(
        "{ports: [{port: 1}]}",
        json!([{"ip": "203.0.113.1"}]),
        expect!["status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'"],
    );
}
