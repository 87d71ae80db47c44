//! Services, their pods and their slices.

use expect_test::{Expect, expect};

use super::*;
use crate::testing::from_yaml;

fn service(spec: &str) -> Service {
    from_yaml(&format!(
        "{{metadata: {{name: web, namespace: default, uid: u-web, labels: {{team: a}}}}, \
         spec: {{selector: {{app: web}}, clusterIP: 10.96.0.9, ipFamilies: [IPv4], {spec}}}}}"
    ))
}

const PORT: &str = "ports: [{port: 80, targetPort: 8080, protocol: TCP}]";

/// One pod per word: a number for its address, then `!` ready, `~` being deleted, `x` failed, `@` on a node that is unknown.
pub fn pods(words: &str) -> Vec<Pod> {
    let pod = |word: &str| {
        let number = word.trim_end_matches(['!', '~', 'x', '@']);
        let has = |mark: char| word.contains(mark);
        let yaml = format!(
            "{{metadata: {{name: p{number}, namespace: default, uid: u-{number}, labels: {{app: web}}}}, \
             spec: {{nodeName: {}, containers: [{{name: c, ports: [{{name: http, containerPort: {}}}]}}]}}, \
             status: {{phase: {}, podIPs: [{{ip: 10.0.0.{number}}}, {{ip: 'fd00::{number}'}}], conditions: [{}]}}}}",
            if has('@') { "gone" } else { "node" },
            // Odd pods name another port than even ones.
            if number.parse::<u32>().unwrap_or(0) % 2 == 1 { 8081 } else { 8082 },
            if has('x') { "Failed" } else { "Running" },
            if has('!') { "{type: Ready, status: 'True'}" } else { "" },
        );
        let mut pod: Pod = from_yaml(&yaml);
        pod.metadata.deletion_timestamp =
            has('~').then(|| k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(crate::testing::at(0)));
        pod
    };
    words.split_whitespace().map(pod).collect()
}

fn observed(service: Service, words: &str, slices: Vec<EndpointSlice>) -> Observed {
    let nodes = [("node".to_owned(), Some("zone-a".to_owned()))].into();
    Observed { service, pods: pods(words), nodes, slices }
}

/// One line per write: the slice, its ports, and its endpoints as address and ready, serving, terminating.
fn show(actions: &[Action]) -> String {
    let line = |action: &Action| {
        let (what, object) = match action {
            Action::Create { object, .. } => ("create", object),
            Action::Update { object, .. } => ("update", object),
            Action::Delete { name, .. } => return format!("delete {name}"),
            other => return other.to_string(),
        };
        let slice: EndpointSlice = serde_json::from_value(object.clone()).unwrap();
        let ports: Vec<String> = slice.ports.iter().flatten().map(|port| port.port.unwrap_or(0).to_string()).collect();
        let endpoint = |endpoint: &Endpoint| {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let flags = [(conditions.ready, 'r'), (conditions.serving, 's'), (conditions.terminating, 't')];
            let flags: String = flags.iter().filter(|(on, _)| *on == Some(true)).map(|(_, flag)| *flag).collect();
            format!("{}:{flags}", endpoint.addresses.join("+"))
        };
        let endpoints: Vec<String> = slice.endpoints.iter().flatten().map(endpoint).collect();
        let name = slice.metadata.name.unwrap_or_default();
        format!("{what} {name}{} [{}] {}", slice.address_type, ports.join(" "), endpoints.join(" "))
            .trim_end()
            .to_owned()
    };
    actions.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn check(observed: &Observed, expected: Expect) {
    expected.assert_eq(&show(&reconcile(observed)));
}

/// The slices after the decisions were carried out.
fn apply(observed: &Observed) -> Vec<EndpointSlice> {
    let mut slices = observed.slices.clone();
    for (number, action) in reconcile(observed).into_iter().enumerate() {
        match action {
            Action::Create { object, .. } => {
                let mut slice: EndpointSlice = serde_json::from_value(object).unwrap();
                slice.metadata.name = Some(format!("web-{}{number} ", slice.address_type));
                slices.push(slice);
            }
            Action::Update { object, .. } => {
                let slice: EndpointSlice = serde_json::from_value(object).unwrap();
                slices.retain(|other| other.metadata.name != slice.metadata.name);
                slices.push(slice);
            }
            Action::Delete { name, .. } => slices.retain(|slice| slice.metadata.name.as_ref() != Some(&name)),
            other => panic!("{other}"),
        }
    }
    slices
}

#[test]
fn ready_serving_and_terminating_are_told_apart() {
    check(
        &observed(service(PORT), "1! 2 3!~ 4~ 5x", vec![]),
        expect!["create IPv4 [8080] 10.0.0.1:rs 10.0.0.2: 10.0.0.3:st 10.0.0.4:t"],
    );
}

#[test]
fn unready_addresses_are_published_on_request() {
    let spec = format!("publishNotReadyAddresses: true, {PORT}");
    check(&observed(service(&spec), "1 2~", vec![]), expect!["create IPv4 [8080] 10.0.0.1:r 10.0.0.2:rt"]);
}

#[test]
fn a_slice_carries_the_services_labels_and_its_owner() {
    let actions = reconcile(&observed(service(PORT), "1!", vec![]));
    let [Action::Create { object, .. }] = actions.as_slice() else { panic!("{actions:?}") };
    let labels = &object["metadata"]["labels"];
    assert_eq!(
        (&labels["team"], &labels[SERVICE_NAME], &labels[MANAGED_BY]),
        (&json!("a"), &json!("web"), &json!(MANAGER))
    );
    assert_eq!(labels.get(service::HEADLESS), None);
    assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "u-web");
    let endpoint = &object["endpoints"][0];
    assert_eq!(
        (&endpoint["zone"], &endpoint["nodeName"], &endpoint["targetRef"]["name"]),
        (&json!("zone-a"), &json!("node"), &json!("p1"))
    );
}

#[test]
fn each_family_has_its_slice() {
    let mut both = service(PORT);
    both.spec.as_mut().unwrap().ip_families = Some(vec!["IPv4".into(), "IPv6".into()]);
    check(
        &observed(both, "1!", vec![]),
        expect![[r#"
            create IPv4 [8080] 10.0.0.1:rs
            create IPv6 [8080] fd00::1:rs"#]],
    );
}

#[test]
fn pods_that_name_other_ports_are_in_other_slices() {
    let named = service("ports: [{port: 80, targetPort: http, protocol: TCP}]");
    check(
        &observed(named, "1! 2! 3!", vec![]),
        expect![[r#"
            create IPv4 [8081] 10.0.0.1:rs 10.0.0.3:rs
            create IPv4 [8082] 10.0.0.2:rs"#]],
    );
}

#[test]
fn a_service_without_pods_has_an_empty_slice_and_keeps_it() {
    let seen = observed(service(PORT), "", vec![]);
    check(&seen, expect!["create IPv4 []"]);
    let slices = apply(&seen);
    assert_eq!(reconcile(&observed(service(PORT), "", slices.clone())), Vec::new());
    check(&observed(service(PORT), "1!", slices), expect!["update web-IPv40 IPv4 [8080] 10.0.0.1:rs"]);
}

#[test]
fn what_is_right_is_left_alone() {
    let slices = apply(&observed(service(PORT), "1! 2 3!~", vec![]));
    assert_eq!(reconcile(&observed(service(PORT), "3!~ 2 1!", slices)), Vec::new());
}

#[test]
fn changes_stay_in_the_slice_that_they_concern() {
    let slices = apply(&observed(service(PORT), "1! 2!", vec![]));
    check(
        &observed(service(PORT), "1 2!", slices.clone()),
        expect!["update web-IPv40 IPv4 [8080] 10.0.0.1: 10.0.0.2:rs"],
    );
    check(
        &observed(service(PORT), "2! 3!", slices.clone()),
        expect!["update web-IPv40 IPv4 [8080] 10.0.0.2:rs 10.0.0.3:rs"],
    );
    check(&observed(service(PORT), "", slices), expect!["update web-IPv40 IPv4 []"]);
}

#[test]
fn a_slice_has_a_hundred_endpoints_at_most() {
    let many = (1..=250).map(|n| format!("{n}!")).collect::<Vec<_>>().join(" ");
    let slices = apply(&observed(service(PORT), &many, vec![]));
    let mut sizes: Vec<usize> = slices.iter().map(count).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [50, 100, 100]);
    // Ten more fit into the one that has room; the others are not touched.
    let more = (1..=254).map(|n| format!("{n}!")).collect::<Vec<_>>().join(" ");
    let actions = reconcile(&observed(service(PORT), &more, slices));
    let [Action::Update { object, .. }] = actions.as_slice() else { panic!("{}", show(&actions)) };
    assert_eq!(object["endpoints"].as_array().map(Vec::len), Some(54));
}

#[test]
fn pods_on_unknown_nodes_wait_unless_everything_is_published() {
    check(&observed(service(PORT), "1!@ 2!", vec![]), expect!["create IPv4 [8080] 10.0.0.2:rs"]);
    let spec = format!("publishNotReadyAddresses: true, {PORT}");
    check(&observed(service(&spec), "1!@", vec![]), expect!["create IPv4 [8080] 10.0.0.1:rs"]);
}

#[test]
fn slices_of_a_service_of_the_same_name_are_replaced() {
    let mut old = apply(&observed(service(PORT), "1!", vec![]));
    old[0].metadata.owner_references.as_mut().unwrap()[0].uid = "u-old".into();
    check(
        &observed(service(PORT), "1!", old),
        expect![[r#"
            create IPv4 [8080] 10.0.0.1:rs
            delete web-IPv40 "#]],
    );
}

#[test]
fn labels_follow_the_service() {
    let slices = apply(&observed(service(PORT), "1!", vec![]));
    let mut relabelled = service(PORT);
    relabelled.metadata.labels = Some([("team".to_owned(), "b".to_owned())].into());
    check(&observed(relabelled, "1!", slices), expect!["update web-IPv40 IPv4 [8080] 10.0.0.1:rs"]);
}

#[test]
fn host_names_are_published_in_the_services_subdomain() {
    let mut seen = observed(service(PORT), "1!", vec![]);
    let spec = seen.pods[0].spec.as_mut().unwrap();
    (spec.hostname, spec.subdomain) = (Some("db-0".into()), Some("web".into()));
    let actions = reconcile(&seen);
    let [Action::Create { object, .. }] = actions.as_slice() else { panic!("{actions:?}") };
    assert_eq!(object["endpoints"][0]["hostname"], "db-0");
}

#[test]
fn services_without_a_selector_are_their_owners_business() {
    let mut manual = service(PORT);
    manual.spec.as_mut().unwrap().selector = None;
    assert_eq!(reconcile(&observed(manual, "1!", vec![])), Vec::new());
    assert_eq!(reconcile(&observed(service("type: ExternalName"), "1!", vec![])), Vec::new());
}

#[test]
fn nothing_is_created_for_a_service_that_is_being_deleted() {
    let mut dying = service(PORT);
    dying.metadata.deletion_timestamp = pods("1~")[0].metadata.deletion_timestamp.clone();
    assert_eq!(reconcile(&observed(dying, "1!", vec![])), Vec::new());
}
