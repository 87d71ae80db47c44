//! Deployments and ReplicaSets.

use expect_test::expect;
use serde_json::json;

use crate::{check, check_part, check_update, check_warnings, created, kind_of, run, status_strategy, yaml};

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: a, namespace: default}
spec:
  selector: {matchLabels: {app: a}}
  template:
    metadata: {labels: {app: a}}
    spec:
      containers: [{name: c, image: i:1}]
";

/// The library as the post has it: the volume is named `db`, the mount `config`.
const POST: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: komga, namespace: default}
spec:
  selector: {matchLabels: {app: komga}}
  template:
    metadata: {labels: {app: komga}}
    spec:
      containers:
      - name: komga
        image: docker.io/gotson/komga:1
        volumeMounts:
        - {name: books, mountPath: /data, readOnly: true}
        - {name: config, mountPath: /config}
      volumes:
      - {name: books, hostPath: {path: /mnt/XS1/books, type: Directory}}
      - {name: db, hostPath: {path: /var/lib/komga}}
";

#[test]
fn the_posts_mistake_is_named_and_mended() {
    check(
        POST,
        expect![[
            r#"spec.template.spec.containers[0].volumeMounts[1].name: Not found: "config": did you mean the volume "db"?"#
        ]],
    );
}

#[test]
fn two_pods_on_one_database_are_warned_of() {
    let mended = POST.replace("name: db", "name: config");
    check_warnings(&mended, expect!["two pods will write to /var/lib/komga during a rollout; use strategy: Recreate"]);
    let recreate = mended.replace("spec:\n  selector", "spec:\n  strategy: {type: Recreate}\n  selector");
    check_warnings(&recreate, expect![""]);
    check_warnings(&mended.replace("/config}", "/config, readOnly: true}"), expect![""]);
    check_warnings(&mended.replace("path: /var/lib/komga", "path: /dev/dri"), expect![""]);
    check_warnings(&mended.replace("path: /var/lib/komga", "path: /run/a.sock, type: Socket"), expect![""]);
}

#[test]
fn a_deployment_gets_its_defaults() {
    check_part(
        DEPLOYMENT,
        "/spec/strategy",
        expect![[r#"
        rollingUpdate:
          maxSurge: 25%
          maxUnavailable: 25%
        type: RollingUpdate
    "#]],
    );
    let made = created(yaml(DEPLOYMENT));
    assert_eq!((&made["spec"]["replicas"], &made["spec"]["revisionHistoryLimit"]), (&json!(1), &json!(10)));
    assert_eq!((&made["spec"]["progressDeadlineSeconds"], &made["metadata"]["generation"]), (&json!(600), &json!(1)));
    // Only pods themselves get these.
    assert!(made["spec"]["template"]["spec"]["enableServiceLinks"].is_null());
}

#[test]
fn selector_and_template_belong_together() {
    check(
        &DEPLOYMENT.replace("labels: {app: a}}\n    spec", "labels: {app: b}}\n    spec"),
        expect![[
            r#"spec.template.metadata.labels: Invalid value: {"app":"b"}: `selector` does not match template `labels`"#
        ]],
    );
    check(
        &DEPLOYMENT.replace("{matchLabels: {app: a}}", "{}"),
        expect!["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
    );
    check(
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}}",
        expect![[r#"
        spec.selector: Required value
        spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`
        spec.template.spec.containers: Required value"#]],
    );
    check(
        &DEPLOYMENT.replace("matchLabels: {app: a}", "matchExpressions: [{key: a, operator: Is}]"),
        expect![[r#"
        spec.selector.matchExpressions[0].operator: Invalid value: "Is": not a valid selector operator
        spec.selector: Invalid value: {"matchExpressions":[{"key":"a","operator":"Is"}]}: invalid label selector"#]],
    );
    check_update(
        DEPLOYMENT,
        &DEPLOYMENT.replace("{app: a}", "{app: b}"),
        expect![[r#"spec.selector: Invalid value: {"matchLabels":{"app":"b"}}: field is immutable"#]],
    );
}

#[test]
fn a_template_is_of_a_pod_that_runs_on() {
    let fields = "spec:\n      restartPolicy: Never\n      activeDeadlineSeconds: 5\n      containers";
    check(
        &DEPLOYMENT.replace("spec:\n      containers", fields),
        expect![[r#"
        spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"
        spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicaSet is not Supported"#]],
    );
}

#[test]
fn strategies() {
    let with =
        |strategy: &str| DEPLOYMENT.replace("spec:\n  selector", &format!("spec:\n  strategy: {strategy}\n  selector"));
    check(
        &with("{type: Recreate, rollingUpdate: {maxSurge: 1}}"),
        expect!["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"],
    );
    check(
        &with("{rollingUpdate: {maxSurge: 0, maxUnavailable: 0%}}"),
        expect![[
            r#"spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "0%": may not be 0 when `maxSurge` is 0"#
        ]],
    );
    check(
        &with("{rollingUpdate: {maxSurge: -1, maxUnavailable: 101%}}"),
        expect![[r#"
        spec.strategy.rollingUpdate.maxSurge: Invalid value: -1: must be greater than or equal to 0
        spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "101%": must not be greater than 100%"#]],
    );
    check(
        &with("{type: Odd}\n  replicas: -1\n  progressDeadlineSeconds: 5\n  minReadySeconds: 5"),
        expect![[r#"
        spec.replicas: Invalid value: -1: must be greater than or equal to 0
        spec.strategy: Unsupported value: {"type":"Odd"}: supported values: "Recreate", "RollingUpdate"
        spec.progressDeadlineSeconds: Invalid value: 5: must be greater than minReadySeconds"#]],
    );
}

#[test]
fn generation_follows_specification_and_annotations() {
    let old = created(yaml(DEPLOYMENT));
    let generation = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut new = yaml(DEPLOYMENT);
        change(&mut new);
        let new = run(&kind_of(&old).strategy, new, Some(&old)).expect("no errors");
        new["metadata"]["generation"].as_i64()
    };
    assert_eq!(generation(&|_| ()), Some(1));
    assert_eq!(generation(&|new| new["metadata"]["labels"] = json!({"a": "b"})), Some(1));
    assert_eq!(generation(&|new| new["spec"]["replicas"] = json!(3)), Some(2));
    assert_eq!(generation(&|new| new["metadata"]["annotations"] = json!({"a": "b"})), Some(2));
    assert_eq!(generation(&|new| new["status"] = json!({"replicas": 3})), Some(1));
}

#[test]
fn counts_add_up() {
    let old = created(yaml(DEPLOYMENT));
    let mut new = old.clone();
    new["status"] = json!({"replicas": 1, "updatedReplicas": 2, "availableReplicas": 1, "readyReplicas": -1});
    let errors = run(status_strategy(&kind_of(&old)), new, Some(&old)).expect_err("they do not");
    expect![[r#"
        status.readyReplicas: Invalid value: -1: must be greater than or equal to 0
        status.updatedReplicas: Invalid value: 2: cannot be greater than status.replicas
        status.availableReplicas: Invalid value: 1: cannot be greater than readyReplicas"#]]
    .assert_eq(&errors);
}

#[test]
fn templates_refuse_what_is_not_built() {
    let nfs = "spec:\n      volumes: [{name: v, nfs: {server: a, path: /}}]\n      containers";
    check(
        &DEPLOYMENT.replace("spec:\n      containers", nfs),
        expect![
            "spec.template.spec.volumes[0].nfs: Forbidden: not supported yet by coracle: this kind of volume is not mounted; mount it on the host and use a hostPath"
        ],
    );
}

#[test]
fn replica_sets() {
    let set = DEPLOYMENT.replace("kind: Deployment", "kind: ReplicaSet");
    check(&set, expect!["no errors"]);
    check(
        &set.replace("{matchLabels: {app: a}}", "{}").replace("spec:\n  sel", "spec:\n  replicas: -1\n  sel"),
        expect![[r#"
            spec.replicas: Invalid value: -1: must be greater than or equal to 0
            spec.selector: Invalid value: {}: empty selector is invalid for deployment"#]],
    );
    check_warnings(
        &set.replace("name: a,", "name: a.b,"),
        expect![
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]"
        ],
    );
}
