//! Services and the names that they have.

use expect_test::{Expect, expect};
use wire::edge::Dns;

use crate::objects::compiled;

fn check(yaml: &str, expected: Expect) {
    expected.assert_eq(&shown(&compiled(yaml).table.dns));
}

fn shown(dns: &Dns) -> String {
    let mut text = String::new();
    for (name, ips) in &dns.addresses {
        let ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
        text.push_str(&format!("{name} {}\n", ips.join(" ")));
    }
    for (name, services) in &dns.services {
        let services: Vec<String> = services.iter().map(|srv| format!("{}:{}", srv.target, srv.port)).collect();
        text.push_str(&format!("{name} {}\n", services.join(" ")));
    }
    for (name, target) in &dns.aliases {
        text.push_str(&format!("{name} = {target}\n"));
    }
    for (ip, names) in &dns.reverse {
        text.push_str(&format!("{ip} is {}\n", names.join(" ")));
    }
    text
}

#[test]
fn a_service_has_addresses_of_both_families_and_named_ports() {
    let yaml = "
- kind: Service
  metadata: {name: web, namespace: rack}
  spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00::1'], ports: [{name: http, port: 80}, {port: 81}, {name: dns, port: 53, protocol: UDP}]}
";
    check(
        yaml,
        expect![[r#"
        web.rack.svc 10.96.0.1 fd00::1
        _dns._udp.web.rack.svc web.rack.svc:53
        _http._tcp.web.rack.svc web.rack.svc:80
        10.96.0.1 is web.rack.svc
        fd00::1 is web.rack.svc
    "#]],
    );
}

fn headless(more: &str) -> String {
    format!(
        "
- kind: Service
  metadata: {{name: db, namespace: rack}}
  spec: {{clusterIP: None, clusterIPs: [None], ports: [{{name: pg, port: 5432}}]{more}}}
- kind: EndpointSlice
  metadata: {{name: db-1, namespace: rack, labels: {{kubernetes.io/service-name: db}}}}
  addressType: IPv4
  ports: [{{name: pg, port: 15432, protocol: TCP}}]
  endpoints:
  - {{addresses: [10.244.0.3], hostname: db-0, conditions: {{ready: true}}}}
  - {{addresses: [10.244.0.4], conditions: {{ready: true}}}}
  - {{addresses: [10.244.0.5], hostname: db-2, conditions: {{ready: false}}}}
"
    )
}

#[test]
fn a_headless_service_has_its_pods_addresses() {
    check(
        &headless(""),
        expect![[r#"
        10-244-0-4.db.rack.svc 10.244.0.4
        db-0.db.rack.svc 10.244.0.3
        db.rack.svc 10.244.0.3 10.244.0.4
        _pg._tcp.db.rack.svc 10-244-0-4.db.rack.svc:15432 db-0.db.rack.svc:15432
        10.244.0.3 is db-0.db.rack.svc
        10.244.0.4 is 10-244-0-4.db.rack.svc
    "#]],
    );
}

#[test]
fn pods_that_are_not_ready_are_published_on_request() {
    let dns = compiled(&headless(", publishNotReadyAddresses: true")).table.dns;
    assert_eq!(dns.addresses["db.rack.svc"].len(), 3);
    assert!(dns.addresses.contains_key("db-2.db.rack.svc"));
}

#[test]
fn external_names_are_aliases() {
    let yaml = "
- kind: Service
  metadata: {name: ext, namespace: rack}
  spec: {type: ExternalName, externalName: DB.example.org.}
";
    check(
        yaml,
        expect![[r#"
        ext.rack.svc = db.example.org
    "#]],
    );
}

#[test]
fn the_server_itself_has_a_name() {
    let yaml = "
- kind: Service
  metadata: {name: kube-dns, namespace: kube-system}
  spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: []}
";
    check(
        yaml,
        expect![[r#"
        kube-dns.kube-system.svc 10.96.0.10
        ns.dns 10.96.0.10
        10.96.0.10 is kube-dns.kube-system.svc
    "#]],
    );
}

#[test]
fn reverse_zones_cover_the_ranges() {
    let dns = compiled("[]").table.dns;
    let zones = &dns.reverse_zones;
    assert_eq!(zones.len(), 17);
    assert_eq!((zones[0].as_str(), zones[15].as_str()), ("96.10.in-addr.arpa", "111.10.in-addr.arpa"));
    assert_eq!(zones[16], "244.10.in-addr.arpa");
    assert_eq!((dns.domain.as_str(), dns.upstreams.len()), ("cluster.local", 1));
}
