//! Ingresses and the routes that they become.

use expect_test::{Expect, expect};

use crate::objects::{RACK, compiled, ingress, shown};

fn check(yaml: &str, expected: Expect) {
    expected.assert_eq(&shown(&compiled(&format!("{RACK}{yaml}"))));
}

#[test]
fn paths_are_tried_exact_first_then_the_longest() {
    let paths = [
        "Prefix / web:80",
        "Prefix /a web:http",
        "ImplementationSpecific /a/b/ web:tls",
        "Exact /a web:443",
        "Prefix /aa web:80",
    ];
    check(
        &ingress("i", "X.example.org", "", &paths),
        expect![[r#"
        x.example.org =/a -> rack-web-443 [10.244.0.3:8443]
        x.example.org /a/b -> rack-web-443 [10.244.0.3:8443]
        x.example.org /aa -> rack-web-80 [10.244.0.3:8080]
        x.example.org /a -> rack-web-80 [10.244.0.3:8080]
        x.example.org / -> rack-web-80 [10.244.0.3:8080]
    "#]],
    );
}

#[test]
fn paths_without_a_rule_are_not_found() {
    check(
        &ingress("i", "x", "", &["Exact /a web:80"]),
        expect![[r#"
        x =/a -> rack-web-80 [10.244.0.3:8080]
        x / -> 404
    "#]],
    );
}

#[test]
fn a_service_without_endpoints_has_a_route_all_the_same() {
    check(
        &ingress("i", "x", "", &["Prefix / api:3000"]),
        expect![[r#"
        x / -> rack-api-3000 []
    "#]],
    );
}

#[test]
fn backends_that_are_not_there_are_named() {
    let paths = ["Prefix /a nobody:80", "Prefix /b web:81", "Prefix /c web:metrics"];
    check(
        &ingress("i", "x", "", &paths),
        expect![[r#"
        x /a -> 503
        x /b -> 503
        x /c -> 503
        x / -> 404
        i: ServiceNotFound: service "nobody" not found in namespace "rack"; its paths answer 503 until it exists
        i: ServicePortNotFound: service "web" has no TCP port 81; its paths answer 503
        i: ServicePortNotFound: service "web" has no TCP port "metrics"; its paths answer 503
    "#]],
    );
}

#[test]
fn external_names_are_no_backends() {
    let service = "- kind: Service\n  metadata: {name: ext, namespace: rack}\n  spec: {type: ExternalName, externalName: example.org, ports: [{port: 80}]}\n";
    check(
        &format!("{service}{}", ingress("i", "x", "", &["Prefix / ext:80"])),
        expect![[r#"
        x / -> 503
        i: BackendUnsupported: service "ext" is of type ExternalName, which is not supported as a backend; 503 is answered
    "#]],
    );
}

#[test]
fn services_of_other_namespaces_are_out_of_reach() {
    let other = ingress("i", "x", "", &["Prefix / web:80"]).replace("namespace: rack", "namespace: other");
    check(
        &other,
        expect![[r#"
        x / -> 503
        i: ServiceNotFound: service "web" not found in namespace "other"; its paths answer 503 until it exists
    "#]],
    );
}

#[test]
fn terminating_endpoints_serve_when_no_others_do() {
    let slice = "- kind: EndpointSlice\n  metadata: {name: api-1, namespace: rack, labels: {kubernetes.io/service-name: api}}\n  \
                 addressType: IPv4\n  ports: [{name: '', port: 3000}]\n  endpoints:\n  \
                 - {addresses: [10.244.0.7], conditions: {ready: false, serving: true, terminating: true}}\n  \
                 - {addresses: [10.244.0.8], conditions: {ready: false, serving: false, terminating: true}}\n";
    check(
        &format!("{slice}{}", ingress("i", "x", "", &["Prefix / api:3000"])),
        expect![[r#"
        x / -> rack-api-3000 [10.244.0.7:3000]
    "#]],
    );
}

#[test]
fn the_oldest_rule_wins() {
    let at = |ingress: String, second: u32| {
        ingress.replace("annotations:", &format!("creationTimestamp: '2026-01-01T00:00:0{second}Z', annotations:"))
    };
    let young = at(ingress("young", "x", "", &["Prefix / api:3000", "Prefix /young api:3000"]), 2);
    let old = at(ingress("old", "x", "", &["Prefix / web:80"]), 1);
    check(
        &format!("{young}{old}"),
        expect![[r#"
        x /young -> rack-api-3000 []
        x / -> rack-web-80 [10.244.0.3:8080]
        young: PathConflict: an older rule for x has path "/" already: this one has no effect
    "#]],
    );
}

#[test]
fn a_rule_for_everything_takes_the_place_of_not_found() {
    let first = ingress("a", "x", "", &["Prefix /a web:80"]);
    let second = ingress("b", "x", "", &["Prefix / api:3000"]);
    check(
        &format!("{first}{second}"),
        expect![[r#"
        x /a -> rack-web-80 [10.244.0.3:8080]
        x / -> rack-api-3000 []
    "#]],
    );
}

#[test]
fn only_our_classes_are_followed() {
    let classes = [
        ("a", "spec: {ingressClassName: coracle, "),
        ("b", "spec: {ingressClassName: other, "),
        ("c", "spec: {ingressClassName: nobody, "),
        ("d", "spec: {"),
    ];
    let yaml: String = classes
        .iter()
        .map(|(name, spec)| {
            ingress(name, name, "", &["Prefix / web:80"]).replace("spec: {rules", &format!("{spec}rules"))
        })
        .collect();
    let annotated = ingress("e", "e", "kubernetes.io/ingress.class: coracle", &["Prefix / web:80"]);
    let foreign = ingress("f", "f", "kubernetes.io/ingress.class: nginx", &["Prefix / web:80"]);
    check(
        &format!("{yaml}{annotated}{foreign}"),
        expect![[r#"
        a / -> rack-web-80 [10.244.0.3:8080]
        d / -> rack-web-80 [10.244.0.3:8080]
        e / -> rack-web-80 [10.244.0.3:8080]
    "#]],
    );
}

#[test]
fn the_default_backend_takes_the_rest() {
    let alone = "- kind: Ingress\n  metadata: {name: a, namespace: rack}\n  spec: {defaultBackend: {service: {name: web, port: {number: 80}}}}\n";
    let beside = ingress("b", "x", "", &["Prefix /a web:80"])
        .replace("spec: {", "spec: {defaultBackend: {service: {name: api, port: {number: 3000}}}, ");
    check(
        &format!("{alone}{beside}"),
        expect![[r#"
        * / -> rack-web-80 [10.244.0.3:8080]
        x /a -> rack-web-80 [10.244.0.3:8080]
        x / -> rack-api-3000 []
    "#]],
    );
}

#[test]
fn hosts_with_tls_have_certificates_and_redirect() {
    let secret = "- kind: Secret\n  metadata: {name: site, namespace: rack}\n  type: kubernetes.io/tls\n  data: {tls.crt: Q0VSVA==, tls.key: S0VZ}\n";
    let tls = |ingress: String, tls: &str| ingress.replace("spec: {", &format!("spec: {{tls: [{tls}], "));
    let a = tls(ingress("a", "a.x", "", &["Prefix / web:80"]), "{hosts: [A.x, '*.b.x'], secretName: site}");
    let c = tls(
        ingress("c", "c.x", "nginx.ingress.kubernetes.io/ssl-redirect: 'false'", &["Prefix / web:80"]),
        "{secretName: site}",
    );
    let d = tls(ingress("d", "d.x", "", &["Prefix / web:80"]), "{hosts: [d.x], secretName: gone}");
    let e = ingress("e", "e.x", "nginx.ingress.kubernetes.io/force-ssl-redirect: 'true'", &["Prefix / web:80"]);
    let f = ingress("f", "f.x", "", &["Prefix / web:80"]);
    check(
        &format!("{secret}{a}{c}{d}{e}{f}"),
        expect![[r#"
        a.x / -> rack-web-80 [10.244.0.3:8080] redirect
        c.x / -> rack-web-80 [10.244.0.3:8080]
        d.x / -> rack-web-80 [10.244.0.3:8080] redirect
        e.x / -> rack-web-80 [10.244.0.3:8080] redirect
        f.x / -> rack-web-80 [10.244.0.3:8080]
        certificate CERT for a.x, *.b.x
        certificate CERT for c.x
        d: CertificateMissing: secret "gone" of type kubernetes.io/tls not found in namespace "rack"; HTTPS fails
    "#]],
    );
}

#[test]
fn annotations_set_options() {
    let annotations = "nginx.ingress.kubernetes.io/proxy-body-size: 8m, nginx.ingress.kubernetes.io/proxy-connect-timeout: '3', \
                       nginx.ingress.kubernetes.io/proxy-read-timeout: '600', nginx.ingress.kubernetes.io/proxy-send-timeout: 90s, \
                       nginx.ingress.kubernetes.io/backend-protocol: https";
    let unlimited =
        "nginx.ingress.kubernetes.io/proxy-body-size: '0', nginx.ingress.kubernetes.io/backend-protocol: HTTP";
    let yaml =
        ingress("a", "a", annotations, &["Prefix / web:80"]) + &ingress("b", "b", unlimited, &["Prefix / web:80"]);
    check(
        &yaml,
        expect![[r#"
        a / -> rack-web-80 [10.244.0.3:8080] tls body=8388608 connect=3000 read=600000 send=90000
        b / -> rack-web-80 [10.244.0.3:8080] body=0
    "#]],
    );
}

#[test]
fn values_that_make_no_sense_are_named() {
    let annotations = "nginx.ingress.kubernetes.io/proxy-body-size: lots, nginx.ingress.kubernetes.io/proxy-read-timeout: '-1', \
                       nginx.ingress.kubernetes.io/ssl-redirect: 'perhaps'";
    check(
        &ingress("a", "a", annotations, &["Prefix / web:80"]),
        expect![[r#"
        a / -> rack-web-80 [10.244.0.3:8080]
        a: InvalidAnnotation: annotation nginx.ingress.kubernetes.io/proxy-body-size has the value "lots", which is no size such as 8m; the default is used
        a: InvalidAnnotation: annotation nginx.ingress.kubernetes.io/proxy-read-timeout has the value "-1", which is no number of seconds; the default is used
        a: InvalidAnnotation: annotation nginx.ingress.kubernetes.io/ssl-redirect has the value "perhaps", which is no "true" or "false"; the default is used
    "#]],
    );
}

#[test]
fn what_would_open_an_application_closes_it() {
    for name in [
        "auth-url",
        "auth-type",
        "whitelist-source-range",
        "denylist-source-range",
        "limit-rps",
        "satisfy",
        "server-snippet",
    ] {
        let yaml = ingress("a", "a", &format!("nginx.ingress.kubernetes.io/{name}: x"), &["Prefix /x web:80"]);
        let text = shown(&compiled(&format!("{RACK}{yaml}")));
        let expected = format!(
            "a /x -> 503\na / -> 404\na: Closed: not supported: nginx.ingress.kubernetes.io/{name}; because access would be wider \
             than intended, all paths of this Ingress answer 503 until the annotation is removed\n"
        );
        assert_eq!(text, expected);
    }
}

#[test]
fn a_closed_pattern_closes_all_that_it_may_match() {
    let closed = "nginx.ingress.kubernetes.io/auth-url: x, nginx.ingress.kubernetes.io/use-regex: 'true'";
    let open = ingress("open", "a", "", &["Prefix / web:80", "Prefix /in/side web:80"]);
    let yaml = open + &ingress("closed", "a", closed, &["ImplementationSpecific /in/(a|b).* web:80"]);
    check(
        &yaml,
        expect![[r#"
        a /in/side -> rack-web-80 [10.244.0.3:8080]
        a /in -> 503
        a / -> rack-web-80 [10.244.0.3:8080]
        closed: Closed: not supported: nginx.ingress.kubernetes.io/auth-url; because access would be wider than intended, all paths of this Ingress answer 503 until the annotation is removed
        closed: UnsupportedAnnotation: not supported, and without effect: nginx.ingress.kubernetes.io/use-regex
    "#]],
    );
}

#[test]
fn other_annotations_are_named() {
    let annotations = "nginx.ingress.kubernetes.io/enable-cors: 'true', nginx.ingress.kubernetes.io/affinity: cookie, example.org/x: other";
    check(
        &ingress("a", "a", annotations, &["Prefix / web:80"]),
        expect![[r#"
        a / -> rack-web-80 [10.244.0.3:8080]
        a: UnsupportedAnnotation: not supported, and without effect: nginx.ingress.kubernetes.io/affinity, nginx.ingress.kubernetes.io/enable-cors
    "#]],
    );
}

#[test]
fn a_canary_gets_no_requests() {
    let canary = "nginx.ingress.kubernetes.io/canary: 'true', nginx.ingress.kubernetes.io/canary-weight: '10'";
    let yaml = ingress("a", "a", canary, &["Prefix / api:3000"]) + &ingress("b", "a", "", &["Prefix / web:80"]);
    check(
        &yaml,
        expect![[r#"
        a / -> rack-web-80 [10.244.0.3:8080]
        a: UnsupportedAnnotation: not supported, and without effect: nginx.ingress.kubernetes.io/canary-weight
        a: UnsupportedAnnotation: not supported: nginx.ingress.kubernetes.io/canary; this Ingress receives no requests
    "#]],
    );
}
