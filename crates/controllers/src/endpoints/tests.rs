//! Subsets.

use expect_test::{Expect, expect};

use super::*;
use crate::endpoint_slice::tests::pods;
use crate::testing::from_yaml;

fn service(spec: &str) -> Service {
    from_yaml(&format!(
        "{{metadata: {{name: web, namespace: default, labels: {{team: a}}}}, \
         spec: {{selector: {{app: web}}, clusterIP: 10.96.0.9, ipFamilies: [IPv4], {spec}}}}}"
    ))
}

fn endpoints(actions: &[Action]) -> Endpoints {
    let [Action::Create { object, .. } | Action::Update { object, .. }] = actions else { panic!("{actions:?}") };
    serde_json::from_value(object.clone()).unwrap()
}

/// One line per subset: its ports, the ready addresses, and those that are not.
fn check(spec: &str, words: &str, expected: Expect) {
    let observed = Observed { service: service(spec), pods: pods(words), current: None };
    let endpoints = endpoints(&reconcile(&observed));
    let addresses = |list: &Option<Vec<EndpointAddress>>| {
        list.iter().flatten().map(|address| address.ip.clone()).collect::<Vec<_>>().join(" ")
    };
    let line = |subset: &EndpointSubset| {
        let ports: Vec<String> = subset.ports.iter().flatten().map(|port| port.port.to_string()).collect();
        format!("[{}] {} | {}", ports.join(" "), addresses(&subset.addresses), addresses(&subset.not_ready_addresses))
    };
    expected.assert_eq(&endpoints.subsets.iter().flatten().map(line).collect::<Vec<_>>().join("\n"));
    let again = Observed { current: Some(endpoints), ..observed };
    assert_eq!(reconcile(&again), Vec::new(), "what is right is left alone");
}

#[test]
fn ready_and_unready_addresses_are_told_apart() {
    check("ports: [{port: 80, targetPort: 8080}]", "1! 2 3!~ 4x", expect!["[8080] 10.0.0.1 | 10.0.0.2"]);
}

#[test]
fn ports_of_the_same_addresses_share_a_subset() {
    check("ports: [{name: a, port: 80}, {name: b, port: 81}]", "1! 2!", expect!["[80 81] 10.0.0.1 10.0.0.2 | "]);
}

#[test]
fn pods_that_name_other_ports_are_in_other_subsets() {
    check(
        "ports: [{port: 80, targetPort: http}]",
        "1! 2! 3",
        expect![[r#"
            [8081] 10.0.0.1 | 10.0.0.3
            [8082] 10.0.0.2 | "#]],
    );
}

#[test]
fn unready_and_ending_pods_are_published_on_request() {
    check("publishNotReadyAddresses: true, ports: [{port: 80}]", "1 2~", expect!["[80] 10.0.0.1 10.0.0.2 | "]);
}

#[test]
fn a_headless_service_may_have_no_ports() {
    let mut observed = Observed { service: service(""), pods: pods("1!"), current: None };
    observed.service.spec.as_mut().unwrap().cluster_ip = Some("None".into());
    let endpoints = endpoints(&reconcile(&observed));
    assert_eq!(endpoints.subsets.unwrap()[0].ports, None);
    assert!(endpoints.metadata.labels.unwrap().contains_key(service::HEADLESS));
}

#[test]
fn more_than_a_thousand_addresses_are_cut_by_their_share() {
    let subset = |ready: usize, unready: usize| {
        let list = |count: usize| (count > 0).then(|| vec![EndpointAddress::default(); count]);
        EndpointSubset { addresses: list(ready), not_ready_addresses: list(unready), ports: None }
    };
    let left = |mut subsets: Vec<EndpointSubset>| {
        let is_cut = truncate(&mut subsets);
        let count = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
        let each = |subset: &EndpointSubset| (count(&subset.addresses), count(&subset.not_ready_addresses));
        (is_cut, subsets.iter().map(each).collect::<Vec<_>>())
    };
    assert_eq!(left(vec![subset(900, 100)]), (false, vec![(900, 100)]));
    assert_eq!(left(vec![subset(900, 200)]), (true, vec![(900, 100)]));
    assert_eq!(left(vec![subset(600, 300), subset(300, 100)]), (true, vec![(600, 75), (300, 25)]));
    assert_eq!(left(vec![subset(1000, 5), subset(500, 5)]), (true, vec![(667, 0), (333, 0)]));
}
