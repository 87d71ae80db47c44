//! Pods near others, far from others, and evenly spread.

use expect_test::{Expect, expect};

use super::{check, cluster, node, pod, schedule};
use crate::cluster::Cluster;
use crate::facts::PodFacts;
use crate::preemption::Outcome;

/// Two nodes in zone `a`, one in zone `b`.
fn zones() -> Cluster {
    let host = |name: &str, zone: &str| node(name, &format!("zone: {zone}, host: {name}"), "");
    cluster(&[host("a1", "a"), host("a2", "a"), host("b1", "b")])
}

fn labelled(name: &str, app: &str, spec: &str) -> PodFacts {
    PodFacts { labels: [("app".to_owned(), app.to_owned())].into(), ..pod(name, spec) }
}

/// The rules by which a pod wants to be near pods of an app, or far from them, within a domain.
fn rule(kind: &str, app: &str, topology_key: &str) -> String {
    format!(
        "affinity: {{{kind}: {{requiredDuringSchedulingIgnoredDuringExecution: \
         [{{topologyKey: {topology_key}, labelSelector: {{matchLabels: {{app: {app}}}}}}}]}}}}"
    )
}

fn node_of(cluster: &Cluster, pod: &PodFacts) -> String {
    schedule(pod, cluster).unwrap_or_else(|none| panic!("{}", none.message))
}

fn reasons(cluster: &Cluster, pod: &PodFacts, expected: Expect) {
    let none = schedule(pod, cluster).expect_err("it fits nowhere");
    expected.assert_eq(none.message.split_once(" preemption:").expect("there are two halves").0);
}

#[test]
fn a_pod_goes_where_those_are_that_it_wants_near() {
    let mut cluster = zones();
    cluster.place(labelled("db", "db", ""), "b1");
    let near = labelled("web", "web", &rule("podAffinity", "db", "zone"));
    check(&cluster, &near, expect!["to b1"]);
    cluster.remove("u-db");
    reasons(&cluster, &near, expect!["0/3 nodes are available: 3 node(s) didn't match pod affinity rules."]);
    let elsewhere = PodFacts { namespace: "other".to_owned(), ..labelled("db", "db", "") };
    cluster.place(elsewhere, "b1");
    assert!(schedule(&near, &cluster).is_err(), "a pod of another namespace is not meant");
}

#[test]
fn the_first_of_pods_that_want_to_be_together_goes_anywhere_with_the_label() {
    let mut cluster = zones();
    let together = |name: &str| labelled(name, "db", &rule("podAffinity", "db", "host"));
    let first = node_of(&cluster, &together("one"));
    cluster.place(together("one"), &first);
    assert_eq!(node_of(&cluster, &together("two")), first);
    let nowhere = labelled("three", "db", &rule("podAffinity", "db", "rack"));
    reasons(&cluster, &nowhere, expect!["0/3 nodes are available: 3 node(s) didn't match pod affinity rules."]);
}

#[test]
fn pods_that_keep_away_from_each_other_take_one_domain_each() {
    let mut cluster = zones();
    let alone = |name: &str| labelled(name, "db", &rule("podAntiAffinity", "db", "zone"));
    cluster.place(alone("one"), "a1");
    check(&cluster, &alone("two"), expect!["to b1"]);
    cluster.place(alone("two"), "b1");
    reasons(
        &cluster,
        &alone("three"),
        expect!["0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules."],
    );
    reasons(
        &cluster,
        &labelled("plain", "db", ""),
        expect!["0/3 nodes are available: 3 node(s) didn't satisfy existing pods anti-affinity rules."],
    );
    check(&cluster, &labelled("other", "web", "nodeSelector: {host: a2}"), expect!["to a2"]);
}

#[test]
fn namespaces_are_named_or_selected() {
    let mut cluster = zones();
    let elsewhere = PodFacts { namespace: "data".to_owned(), ..labelled("db", "db", "") };
    cluster.place(elsewhere, "b1");
    let near = |of: &str| {
        let term = format!("[{{topologyKey: host, labelSelector: {{}}, {of}}}]");
        let required = format!("requiredDuringSchedulingIgnoredDuringExecution: {term}");
        labelled("web", "web", &format!("affinity: {{podAffinity: {{{required}}}}}"))
    };
    let fits = |cluster: &Cluster, of: &str| schedule(&near(of), cluster).is_ok_and(|node| node == "b1");
    assert!(fits(&cluster, "namespaces: [data]"));
    assert!(fits(&cluster, "namespaceSelector: {}"), "every namespace");
    assert!(!fits(&cluster, "namespaceSelector: {matchLabels: {team: x}}"));
    assert!(cluster.set_namespace("data", Some([("team".to_owned(), "x".to_owned())].into())));
    assert!(fits(&cluster, "namespaceSelector: {matchLabels: {team: x}}"));
}

#[test]
fn wishes_decide_between_nodes_that_fit() {
    let mut cluster = zones();
    cluster.place(labelled("db", "db", ""), "b1");
    let wish = |kind: &str| {
        let term = "{topologyKey: zone, labelSelector: {matchLabels: {app: db}}}";
        let preferred =
            format!("preferredDuringSchedulingIgnoredDuringExecution: [{{weight: 10, podAffinityTerm: {term}}}]");
        labelled("web", "web", &format!("affinity: {{{kind}: {{{preferred}}}}}"))
    };
    check(&cluster, &wish("podAffinity"), expect!["to b1"]);
    assert_ne!(node_of(&cluster, &wish("podAntiAffinity")), "b1");
}

/// A pod of the app `web` with one constraint.
fn spread(name: &str, constraint: &str) -> PodFacts {
    let selector = "labelSelector: {matchLabels: {app: web}}";
    labelled(name, "web", &format!("topologySpreadConstraints: [{{maxSkew: 1, {constraint}, {selector}}}]"))
}

#[test]
fn no_domain_gets_ahead_by_more_than_the_skew() {
    let mut cluster = zones();
    let hard = "topologyKey: zone, whenUnsatisfiable: DoNotSchedule";
    cluster.place(spread("one", hard), "a1");
    check(&cluster, &spread("two", hard), expect!["to b1"]);
    let pinned = PodFacts { node_selector: [("zone".to_owned(), "a".to_owned())].into(), ..spread("two", hard) };
    assert!(node_of(&cluster, &pinned).starts_with('a'), "nodes that it cannot go to do not count");
    let unselected = PodFacts { spread: spread("x", &format!("{hard}, nodeAffinityPolicy: Ignore")).spread, ..pinned };
    reasons(
        &cluster,
        &unselected,
        expect![
            "0/3 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 2 node(s) didn't match pod topology spread constraints."
        ],
    );
    let unknown = spread("two", "topologyKey: rack, whenUnsatisfiable: DoNotSchedule");
    reasons(
        &cluster,
        &unknown,
        expect![
            "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints (missing required label)."
        ],
    );
    cluster.place(spread("two", hard), "b1");
    let many = spread("three", &format!("{hard}, minDomains: 3"));
    reasons(
        &cluster,
        &many,
        expect!["0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints."],
    );
}

#[test]
fn pods_that_go_do_not_count() {
    let mut cluster = zones();
    let hard = "topologyKey: zone, whenUnsatisfiable: DoNotSchedule";
    cluster.place(PodFacts { is_terminating: true, ..spread("one", hard) }, "a1");
    cluster.place(spread("two", hard), "b1");
    assert_ne!(node_of(&cluster, &spread("three", hard)), "b1");
}

#[test]
fn a_soft_constraint_prefers_the_emptier_domain() {
    let mut cluster = zones();
    let soft = "topologyKey: zone, whenUnsatisfiable: ScheduleAnyway";
    cluster.place(spread("one", soft), "a1");
    check(&cluster, &spread("two", soft), expect!["to b1"]);
    cluster.place(spread("two", soft), "b1");
    cluster.place(spread("three", soft), "b1");
    assert_ne!(node_of(&cluster, &spread("four", soft)), "b1");
}

#[test]
fn pods_are_evicted_that_keep_a_more_important_one_away() {
    let mut cluster = zones();
    for (name, node) in [("one", "a1"), ("two", "b1")] {
        cluster.place(labelled(name, "db", &rule("podAntiAffinity", "web", "zone")), node);
    }
    let web = PodFacts { priority: 10, ..labelled("web", "web", "nodeSelector: {host: a1}") };
    let none = schedule(&web, &cluster).expect_err("it is not wanted anywhere");
    let Outcome::Evict { node, victims } = none.preemption else { panic!("{}", none.message) };
    assert_eq!((node.as_str(), victims.len(), victims[0].name.as_str()), ("a1", 1, "one"));
}
