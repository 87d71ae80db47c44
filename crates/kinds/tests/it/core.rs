//! The smaller kinds of the core group, and those of coordination and scheduling.

use expect_test::expect;
use serde_json::json;

use crate::{check, check_part, check_update, created, kind_of, run, status_strategy, yaml};

#[test]
fn namespaces_are_labelled_and_finalized() {
    check_part(
        "{apiVersion: v1, kind: Namespace, metadata: {name: a}}",
        "",
        expect![[r#"
        apiVersion: v1
        kind: Namespace
        metadata:
          labels:
            kubernetes.io/metadata.name: a
          name: a
        spec:
          finalizers:
          - kubernetes
        status:
          phase: Active
    "#]],
    );
    check(
        "{apiVersion: v1, kind: Namespace, metadata: {name: a}, spec: {finalizers: [x]}}",
        expect![[
            r#"spec.finalizers: Invalid value: "x": name is neither a standard finalizer name nor is it fully qualified"#
        ]],
    );
}

#[test]
fn a_namespace_terminates_only_when_it_is_deleted() {
    let old = created(yaml("{apiVersion: v1, kind: Namespace, metadata: {name: a}}"));
    let mut new = old.clone();
    new["status"]["phase"] = json!("Terminating");
    let errors = run(status_strategy(&kind_of(&old)), new.clone(), Some(&old)).expect_err("it is not deleted");
    expect![[r#"status.Phase: Invalid value: "Terminating": may only be 'Active' if `deletionTimestamp` is empty"#]]
        .assert_eq(&errors);
    new["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    run(status_strategy(&kind_of(&old)), new, Some(&old)).expect("it is deleted");
}

#[test]
fn string_data_becomes_data() {
    check_part(
        "{apiVersion: v1, kind: Secret, metadata: {name: a}, stringData: {k: v}, data: {k: eA==, l: eA==}}",
        "",
        expect![[r#"
            apiVersion: v1
            data:
              k: dg==
              l: eA==
            kind: Secret
            metadata:
              name: a
            type: Opaque
        "#]],
    );
}

#[test]
fn types_of_secrets_promise_keys() {
    let secret = |kind: &str, data: &str| {
        format!("{{apiVersion: v1, kind: Secret, metadata: {{name: a}}, type: {kind}, data: {data}}}")
    };
    check(&secret("kubernetes.io/tls", "{tls.crt: ''}"), expect!["data[tls.key]: Required value"]);
    check(
        &secret("kubernetes.io/dockerconfigjson", "{.dockerconfigjson: eA==}"),
        expect![[
            r#"data[.dockerconfigjson]: Invalid value: "<secret contents redacted>": invalid character 'x' looking for beginning of value"#
        ]],
    );
    check(
        &secret("kubernetes.io/basic-auth", "{}"),
        expect![[r#"
        data[username]: Required value
        data[password]: Required value"#]],
    );
    check(&secret("kubernetes.io/ssh-auth", "{}"), expect!["data[ssh-privatekey]: Required value"]);
    check(
        &secret("kubernetes.io/service-account-token", "{}"),
        expect!["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
    );
    check(
        &secret("example.com/own", "{'a b': eA==}"),
        expect![[
            r#"data[a b]: Invalid value: "a b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"#
        ]],
    );
}

#[test]
fn what_is_immutable_stays() {
    let config = "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, immutable: true, data: {a: b}}";
    check_update(
        config,
        &config.replace("a: b", "a: c"),
        expect!["data: Forbidden: field is immutable when `immutable` is set"],
    );
    check_update(
        config,
        &config.replace("immutable: true", "immutable: false"),
        expect!["immutable: Forbidden: field is immutable when `immutable` is set"],
    );
    let secret = "{apiVersion: v1, kind: Secret, metadata: {name: a}, type: x}";
    check_update(
        secret,
        &secret.replace("type: x", "type: z"),
        expect![[r#"type: Invalid value: "z": field is immutable"#]],
    );
}

#[test]
fn keys_of_config_maps() {
    check(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {'a/b': c, d: e}, binaryData: {d: eA==}}",
        expect![[r#"
            data[a/b]: Invalid value: "a/b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')
            data[d]: Invalid value: "d": duplicate of key present in binaryData"#]],
    );
}

#[test]
fn nodes() {
    let node = "
apiVersion: v1
kind: Node
metadata: {name: a}
spec:
  podCIDRs: [10.244.0.0/26, 10.244.1.0/26]
  taints: [{key: a, effect: NoSchedule}, {key: a, effect: NoSchedule}, {key: 'b c', effect: Odd}]
status: {capacity: {cpu: 4, memory: -1}}
";
    check(
        node,
        expect![[r#"
        metadata.taints[1]: Duplicate value: {"effect":"NoSchedule","key":"a"}: taints must be unique by key and effect pair
        metadata.taints[2].key: Invalid value: "b c": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
        metadata.taints[2].effect: Unsupported value: "Odd": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute"
        status.capacity.memory: Invalid value: "-1": must be greater than or equal to 0
        status.allocatable.memory: Invalid value: "-1": must be greater than or equal to 0
        spec.podCIDRs: Invalid value: ["10.244.0.0/26","10.244.1.0/26"]: may specify no more than one CIDR for each IP family"#]],
    );
    let good = "{apiVersion: v1, kind: Node, metadata: {name: a}, spec: {podCIDRs: [10.0.0.0/26]}, status: {capacity: {cpu: 4}}}";
    check_part(
        good,
        "/status",
        expect![[r#"
        allocatable:
          cpu: "4"
        capacity:
          cpu: "4"
    "#]],
    );
    check_update(
        good,
        &good.replace("10.0.0.0", "10.0.1.0"),
        expect![[r#"spec.podCIDRs: Forbidden: node updates may not change podCIDR except from "" to valid"#]],
    );
}

#[test]
fn events() {
    let event = "{apiVersion: v1, kind: Event, metadata: {name: a, namespace: b}, involvedObject: {kind: Pod, namespace: c}, reason: x}";
    check(event, expect![[r#"involvedObject.namespace: Invalid value: "c": does not match event.namespace"#]]);
    check(&event.replace("namespace: c", "namespace: b"), expect!["no errors"]);
    let new =
        event.replace("namespace: c", "namespace: b").replace("reason: x", "eventTime: '2026-01-01T00:00:00.000000Z'");
    check(
        &new,
        expect![[r#"
        reportingComponent: Required value
        reportingComponent: Invalid value: "": name part must be non-empty
        reportingComponent: Invalid value: "": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
        reportingInstance: Required value
        action: Required value
        reason: Required value"#]],
    );
}

#[test]
fn events_of_both_groups_are_one() {
    let kind = kind_of(&yaml("{apiVersion: v1, kind: Event}"));
    let convert = kind.versions[1].convert.as_ref().expect("the second version is converted");
    let new = json!({"regarding": {"name": "a"}, "note": "n", "deprecatedCount": 3, "reportingController": "c", "reason": "r"});
    let mut object = new.clone();
    (convert.to_storage)(&mut object);
    let core =
        json!({"involvedObject": {"name": "a"}, "message": "n", "count": 3, "reportingComponent": "c", "reason": "r"});
    assert_eq!(object, core);
    (convert.from_storage)(&mut object);
    assert_eq!(object, new);
}

#[test]
fn leases() {
    check(
        "{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: a}, spec: {leaseDurationSeconds: 0, leaseTransitions: -1, strategy: Other, preferredHolder: b}}",
        expect![[r#"
            spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0
            spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0"#]],
    );
}

#[test]
fn priority_classes() {
    let class = "{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: a}, value: 5}";
    check_part(
        class,
        "/preemptionPolicy",
        expect![[r#"
        PreemptLowerPriority
    "#]],
    );
    check(
        &class.replace("value: 5", "value: 1000000001"),
        expect!["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"],
    );
    check(
        &class.replace("name: a", "name: system-mine"),
        expect![
            "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-mine is not a known system priority class"
        ],
    );
    check(
        &class.replace("name: a", "name: system-node-critical"),
        expect![
            "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: value of system-node-critical PriorityClass must be 2000001000"
        ],
    );
    check_update(
        class,
        &class.replace("value: 5", "value: 6, preemptionPolicy: Never"),
        expect![[r#"
        value: Forbidden: may not be changed in an update.
        preemptionPolicy: Invalid value: "Never": field is immutable"#]],
    );
}

#[test]
fn service_accounts_keep_names_of_secrets() {
    check_part(
        "{apiVersion: v1, kind: ServiceAccount, metadata: {name: a}, secrets: [{name: b, namespace: c}]}",
        "/secrets",
        expect![[r#"
            - name: b
        "#]],
    );
}
