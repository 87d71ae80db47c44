//! Decisions: which node a pod gets, and the words when it gets none.

use expect_test::{Expect, expect};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde::de::DeserializeOwned;

use crate::cluster::{Cluster, News};
use crate::facts::{NodeFacts, NodeState, PodFacts};
use crate::preemption::Outcome;
use crate::schedule::schedule;
use crate::score;

mod neighbours;

fn from_yaml<K: DeserializeOwned>(yaml: &str) -> K {
    let value: serde_json::Value = serde_saphyr::from_str(yaml).expect("tests write YAML");
    serde_json::from_value(value).expect("tests write objects of the right kind")
}

/// A pod from its specification.
fn pod(name: &str, spec: &str) -> PodFacts {
    let containers = if spec.contains("containers:") { "" } else { "containers: [], " };
    let yaml = format!("{{metadata: {{name: {name}, namespace: web, uid: u-{name}}}, spec: {{{containers}{spec}}}}}");
    PodFacts::new(&from_yaml::<Pod>(&yaml))
}

fn asking(name: &str, cpu: &str, memory: &str) -> PodFacts {
    pod(name, &format!("containers: [{{name: c, resources: {{requests: {{cpu: '{cpu}', memory: {memory}}}}}}}]"))
}

/// A node with 4 CPUs, 8 GiB and 10 pods; `more` adds to its specification.
fn node(name: &str, labels: &str, more: &str) -> NodeFacts {
    let yaml = format!(
        "{{metadata: {{name: {name}, labels: {{{labels}}}}}, spec: {{{more}}}, \
         status: {{allocatable: {{cpu: '4', memory: 8Gi, pods: '10'}}}}}}"
    );
    NodeFacts::new(&from_yaml::<Node>(&yaml))
}

fn cluster(nodes: &[NodeFacts]) -> Cluster {
    let mut cluster = Cluster::default();
    for node in nodes {
        cluster.set_node(node.clone());
    }
    cluster
}

fn check(cluster: &Cluster, pod: &PodFacts, expected: Expect) {
    let decision = schedule(pod, cluster);
    expected.assert_eq(&decision.map_or_else(|none| none.message, |node| format!("to {node}")));
}

#[test]
fn without_nodes_there_is_nothing_to_say_about_them() {
    check(&Cluster::default(), &pod("a", ""), expect!["no nodes available to schedule pods"]);
}

#[test]
fn the_only_node_that_fits_is_taken() {
    let mut cluster = cluster(&[node("one", "", ""), node("two", "", "")]);
    cluster.place(asking("full", "4", "1Gi"), "one");
    check(&cluster, &asking("a", "1", "1Gi"), expect!["to two"]);
}

#[test]
fn all_that_lacks_is_named_and_counted_over_the_nodes() {
    let mut cluster = cluster(&[node("one", "", ""), node("two", "", "")]);
    cluster.place(asking("full", "4", "1Gi"), "one");
    check(
        &cluster,
        &asking("a", "3", "9Gi"),
        expect![
            "0/2 nodes are available: 1 Insufficient cpu, 2 Insufficient memory. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
        ],
    );
}

#[test]
fn a_full_node_without_less_important_pods_has_no_victims() {
    let mut cluster = cluster(&[node("one", "", "")]);
    cluster.place(asking("full", "4", "1Gi"), "one");
    check(
        &cluster,
        &asking("a", "1", "1Gi"),
        expect![
            "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
        ],
    );
}

/// A pod that asks for CPUs, of a priority.
fn ranked(name: &str, cpu: &str, priority: i32) -> PodFacts {
    PodFacts { priority, ..asking(name, cpu, "1Gi") }
}

/// What is to be evicted for a pod, and the second half of its message.
fn check_preemption(cluster: &Cluster, pod: &PodFacts, expected: Expect) {
    let none = schedule(pod, cluster).expect_err("it fits nowhere");
    let victims = match &none.preemption {
        Outcome::Evict { victims, .. } => victims.iter().map(|victim| victim.name.as_str()).collect(),
        Outcome::Wait(_) | Outcome::Futile(_) => Vec::new(),
    };
    let message = none.message.split_once("preemption: ").expect("it is about preemption").1;
    expected.assert_eq(&format!("{victims:?} {message}"));
}

#[test]
fn less_important_pods_make_room() {
    let mut cluster = cluster(&[node("one", "", "")]);
    cluster.place(ranked("low", "2", 1), "one");
    cluster.place(ranked("middle", "2", 100), "one");
    check_preemption(
        &cluster,
        &ranked("a", "2", 1000),
        expect![[r#"["low"] found a potential placement for pod on node one, preempting 1 victims"#]],
    );
    check_preemption(
        &cluster,
        &ranked("a", "3", 1000),
        expect![[r#"["middle", "low"] found a potential placement for pod on node one, preempting 2 victims"#]],
    );
    check_preemption(&cluster, &ranked("a", "3", 100), expect!["[] 0/1 nodes are available: 1 Insufficient cpu."]);
    let modest = PodFacts { may_preempt: false, ..ranked("a", "2", 1000) };
    check_preemption(&cluster, &modest, expect!["[] not eligible due to preemptionPolicy=Never."]);
}

#[test]
fn pods_that_fit_beside_it_are_spared_the_most_important_and_oldest_first() {
    let mut cluster = cluster(&[node("one", "", "")]);
    let since = |second: i64, pod: PodFacts| PodFacts { started: jiff::Timestamp::from_second(second).ok(), ..pod };
    cluster.place(since(20, ranked("young", "1", 1)), "one");
    cluster.place(since(10, ranked("old", "1", 1)), "one");
    cluster.place(since(30, ranked("higher", "2", 2)), "one");
    check_preemption(
        &cluster,
        &ranked("a", "1", 10),
        expect![[r#"["young"] found a potential placement for pod on node one, preempting 1 victims"#]],
    );
}

#[test]
fn the_node_is_taken_where_it_costs_least() {
    let nodes = [node("one", "", ""), node("two", "", ""), node("three", "", "")];
    let placed = [
        ("one", ranked("a", "4", 9)),
        ("two", ranked("b", "2", 8)),
        ("two", ranked("c", "2", 8)),
        ("three", ranked("d", "4", 8)),
    ];
    let chosen = |cluster: &Cluster| match schedule(&ranked("new", "4", 10), cluster).unwrap_err().preemption {
        Outcome::Evict { node, .. } => node,
        other => panic!("{other:?}"),
    };
    assert_eq!(chosen(&with_pods(&nodes, &placed)), "three", "the least important, and the fewest of them");
    assert_eq!(chosen(&with_pods(&nodes[..2], &placed[..3])), "two", "importance counts before number");
}

#[test]
fn room_that_was_made_for_a_pod_is_kept_for_it() {
    let mut cluster = cluster(&[node("one", "", "")]);
    cluster.place(ranked("victim", "4", 1), "one");
    let preemptor = ranked("preemptor", "4", 100);
    cluster.nominate(preemptor.clone(), "one");
    cluster.evicted("u-victim");
    check_preemption(&cluster, &preemptor, expect!["[] not eligible due to a terminating pod on the nominated node."]);
    cluster.remove("u-victim");
    check_preemption(
        &cluster,
        &ranked("other", "1", 100),
        expect!["[] 0/1 nodes are available: 1 No preemption victims found for incoming pod."],
    );
    check(&cluster, &ranked("higher", "4", 101), expect!["to one"]);
    check(&cluster, &preemptor, expect!["to one"]);
    assert!(cluster.withdraw("u-preemptor"));
    check(&cluster, &ranked("other", "1", 100), expect!["to one"]);
}

#[test]
fn a_node_takes_no_more_pods_than_it_says() {
    let mut cluster = cluster(&[node("one", "", "")]);
    for n in 0..10 {
        cluster.place(pod(&format!("p{n}"), ""), "one");
    }
    check(
        &cluster,
        &pod("a", ""),
        expect![
            "0/1 nodes are available: 1 Too many pods. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
        ],
    );
    assert!(cluster.remove("u-p3"));
    check(&cluster, &pod("a", ""), expect!["to one"]);
}

#[test]
fn resources_that_no_node_has_are_named() {
    let cluster = cluster(&[node("one", "", "")]);
    let asks = "containers: [{name: c, resources: {requests: {example.com/gpu: '1', ephemeral-storage: 1Gi}}}]";
    check(
        &cluster,
        &pod("a", asks),
        expect![
            "0/1 nodes are available: 1 Insufficient ephemeral-storage, 1 Insufficient example.com/gpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        ],
    );
}

#[test]
fn a_pod_needs_what_its_most_demanding_moment_needs() {
    let requests = |spec: &str| pod("a", spec).requests.get("cpu");
    let container = |cpu: &str| format!("{{name: c, resources: {{requests: {{cpu: '{cpu}'}}}}}}");
    let sidecar = |cpu: &str| format!("{{name: s, restartPolicy: Always, resources: {{requests: {{cpu: '{cpu}'}}}}}}");
    let (one, two, five) = (container("1"), container("2"), container("5"));
    assert_eq!(requests(&format!("containers: [{one}, {two}]")), 3000);
    assert_eq!(requests(&format!("containers: [{one}], initContainers: [{five}, {two}]")), 5000);
    let beside = sidecar("1");
    assert_eq!(requests(&format!("containers: [{one}], initContainers: [{beside}, {five}]")), 6000);
    assert_eq!(requests(&format!("containers: [{one}], initContainers: [{five}, {beside}]")), 5000);
    assert_eq!(requests(&format!("containers: [{five}], overhead: {{cpu: 100m}}")), 5100);
    assert_eq!(requests(&format!("containers: [{five}], resources: {{requests: {{cpu: '7'}}}}")), 7000);
}

#[test]
fn cordoned_nodes_take_only_pods_that_tolerate_it() {
    let cluster = cluster(&[node("one", "", "unschedulable: true")]);
    check(
        &cluster,
        &pod("a", ""),
        expect![
            "0/1 nodes are available: 1 node(s) were unschedulable. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        ],
    );
    check(
        &cluster,
        &pod("a", "tolerations: [{key: node.kubernetes.io/unschedulable, operator: Exists}]"),
        expect!["to one"],
    );
}

#[test]
fn taints_keep_pods_away_that_do_not_tolerate_them() {
    let cluster = cluster(&[node("one", "", "taints: [{key: gpu, value: 'yes', effect: NoSchedule}]")]);
    check(
        &cluster,
        &pod("a", ""),
        expect![
            "0/1 nodes are available: 1 node(s) had untolerated taint(s). preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        ],
    );
    for tolerated in [
        "{key: gpu, value: 'yes', effect: NoSchedule}",
        "{key: gpu, operator: Exists}",
        "{operator: Exists}",
        "{key: gpu, operator: Equal, value: 'yes'}",
    ] {
        check(&cluster, &pod("a", &format!("tolerations: [{tolerated}]")), expect!["to one"]);
    }
    for other in
        ["{key: gpu, value: 'no'}", "{key: cpu, operator: Exists}", "{key: gpu, operator: Exists, effect: NoExecute}"]
    {
        assert!(schedule(&pod("a", &format!("tolerations: [{other}]")), &cluster).is_err(), "{other}");
    }
}

#[test]
fn node_selectors_and_required_affinity_must_match() {
    let cluster = cluster(&[node("one", "disk: ssd, cores: '8'", "")]);
    check(&cluster, &pod("a", "nodeSelector: {disk: ssd}"), expect!["to one"]);
    check(
        &cluster,
        &pod("a", "nodeSelector: {disk: hdd}"),
        expect![
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        ],
    );
    let fits = |term: &str| {
        let affinity = format!(
            "affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{term}]}}}}}}"
        );
        schedule(&pod("a", &affinity), &cluster).is_ok()
    };
    assert!(fits("{matchExpressions: [{key: disk, operator: In, values: [ssd, nvme]}]}"));
    assert!(fits(
        "{matchExpressions: [{key: disk, operator: NotIn, values: [hdd]}, {key: cores, operator: Gt, values: ['4']}]}"
    ));
    assert!(fits("{matchExpressions: [{key: gpu, operator: DoesNotExist}]}"));
    assert!(fits("{matchFields: [{key: metadata.name, operator: In, values: [one]}]}"));
    assert!(fits(
        "{matchExpressions: [{key: gpu, operator: Exists}]}, {matchExpressions: [{key: disk, operator: Exists}]}"
    ));
    assert!(!fits("{matchExpressions: [{key: cores, operator: Lt, values: ['8']}]}"));
    assert!(!fits("{matchFields: [{key: metadata.name, operator: NotIn, values: [one]}]}"));
    assert!(!fits("{}"), "an empty term matches nothing");
}

#[test]
fn a_port_of_the_host_is_taken_once_per_address_and_protocol() {
    let with_port = |name: &str, port: &str| {
        pod(name, &format!("containers: [{{name: c, ports: [{{containerPort: 80, {port}}}]}}]"))
    };
    let mut cluster = cluster(&[node("one", "", "")]);
    cluster.place(with_port("taken", "hostPort: 80, hostIP: 10.0.0.1"), "one");
    check(
        &cluster,
        &with_port("a", "hostPort: 80"),
        expect![
            "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
        ],
    );
    for free in ["hostPort: 81", "hostPort: 80, protocol: UDP", "hostPort: 80, hostIP: 10.0.0.2"] {
        check(&cluster, &with_port("a", free), expect!["to one"]);
    }
}

#[test]
fn pods_wait_for_a_node_that_they_were_placed_on_before_it_was_known() {
    let mut cluster = Cluster::default();
    cluster.place(asking("early", "4", "1Gi"), "one");
    assert!(cluster.nodes().is_empty());
    cluster.set_node(node("one", "", ""));
    assert!(schedule(&asking("a", "1", "1Gi"), &cluster).is_err(), "its requests count");
    cluster.remove_node("one");
    cluster.set_node(node("one", "", ""));
    assert!(schedule(&asking("a", "1", "1Gi"), &cluster).is_err(), "and again when it comes back");
}

#[test]
fn only_what_may_help_wakes_waiting_pods() {
    let mut cluster = Cluster::default();
    assert!(cluster.set_node(node("one", "", "")), "a new node");
    assert!(!cluster.set_node(node("one", "", "")), "a heartbeat");
    assert!(cluster.set_node(node("one", "disk: ssd", "")), "a label");
    assert_eq!(cluster.place(asking("a", "1", "1Gi"), "one"), News::Neighbour, "a binding");
    assert_eq!(cluster.place(asking("a", "1", "1Gi"), "one"), News::None, "its status");
    assert_eq!(cluster.place(asking("a", "500m", "1Gi"), "one"), News::Room, "a pod that needs less");
    assert!(cluster.remove("u-a"), "a pod that is gone");
}

fn with_pods(nodes: &[NodeFacts], placed: &[(&str, PodFacts)]) -> Cluster {
    let mut cluster = cluster(nodes);
    for (node, pod) in placed {
        cluster.place(pod.clone(), node);
    }
    cluster
}

#[test]
fn the_emptier_node_is_better() {
    let cluster = with_pods(&[node("one", "", ""), node("two", "", "")], &[("one", asking("some", "2", "4Gi"))]);
    assert_eq!(schedule(&asking("a", "1", "2Gi"), &cluster).as_deref(), Ok("two"));
    let all: Vec<&NodeState> = cluster.nodes().values().collect();
    // Both are balanced (75 points); one is three quarters full, two one quarter. The others are all or nothing.
    assert_eq!(score::run(&asking("a", "1", "2Gi"), &all, &cluster), [300 + 25 + 75, 300 + 75 + 75]);
}

#[test]
fn a_pod_that_evens_out_cpu_and_memory_is_welcome() {
    let cluster = with_pods(
        &[node("one", "", ""), node("two", "", "")],
        &[("one", asking("some", "2", "1Gi")), ("two", asking("other", "1", "3Gi"))],
    );
    let balance = |name: &str| score::balanced_allocation::score(&asking("a", "100m", "2Gi"), &cluster.nodes()[name]);
    assert!(balance("one") > balance("two"), "{} {}", balance("one"), balance("two"));
    assert_eq!(score::balanced_allocation::score(&pod("a", ""), &cluster.nodes()["one"]), 0);
}

#[test]
fn preferences_weigh_more_than_room() {
    let cluster =
        with_pods(&[node("one", "disk: ssd", ""), node("two", "", "")], &[("one", asking("some", "1", "1Gi"))]);
    let prefers = "affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: \
                   [{weight: 1, preference: {matchExpressions: [{key: disk, operator: Exists}]}}]}}";
    assert_eq!(schedule(&pod("a", prefers), &cluster).as_deref(), Ok("one"));
    let tainted =
        with_pods(&[node("one", "", "taints: [{key: slow, effect: PreferNoSchedule}]"), node("two", "", "")], &[]);
    assert_eq!(schedule(&pod("a", ""), &tainted).as_deref(), Ok("two"));
}

#[test]
fn equal_nodes_share_equal_pods() {
    let cluster = with_pods(&[node("one", "", ""), node("two", "", ""), node("three", "", "")], &[]);
    let chosen: std::collections::BTreeSet<_> =
        (0..20).map(|n| schedule(&pod(&format!("p{n}"), ""), &cluster).unwrap()).collect();
    assert_eq!(chosen.len(), 3);
}
