//! Pods that change, and the status that nodes report.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use crate::{check_update, created, errors, kind_of, merge, run, status_strategy, yaml};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: default}
spec:
  restartPolicy: OnFailure
  tolerations: [{key: a, operator: Exists}]
  containers: [{name: c, image: i:1}]
";

fn changed(from: &str, to: &str, expect: Expect) {
    check_update(POD, &POD.replace(from, to), expect);
}

#[test]
fn an_image_may_change() {
    changed("i:1", "i:2", expect!["no errors"]);
    let old = created(yaml(POD));
    let new = run(&kind_of(&old).strategy, yaml(&POD.replace("i:1", "i:2")), Some(&old)).expect("it may change");
    assert_eq!(new["metadata"]["generation"], 2);
}

#[test]
fn a_toleration_may_be_added() {
    changed(
        "[{key: a, operator: Exists}]",
        "[{key: a, operator: Exists}, {key: b, operator: Exists}]",
        expect!["no errors"],
    );
    changed(
        "[{key: a, operator: Exists}]",
        "[{key: b, operator: Exists}]",
        expect!["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"],
    );
}

#[test]
fn little_else_may_change() {
    changed(
        "image: i:1",
        "image: i:1, command: [x]",
        expect![[r#"
        spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)
        @@ -1,6 +1,9 @@
         {
           "containers": [
             {
        +      "command": [
        +        "x"
        +      ],
               "image": "i:1",
               "imagePullPolicy": "IfNotPresent",
               "name": "c",
    "#]],
    );
    changed(
        "[{name: c, image: i:1}]",
        "[{name: c, image: i:1}, {name: d, image: i}]",
        expect!["spec.containers: Forbidden: pod updates may not add or remove containers"],
    );
    changed("spec:", "spec:\n  activeDeadlineSeconds: 5", expect!["no errors"]);
}

/// The errors of reporting `to` after `from`.
fn reported(from: Value, to: Value, expect: Expect) {
    let mut old = created(yaml(POD));
    merge(&mut old["status"], from);
    let mut new = old.clone();
    merge(&mut new["status"], to);
    expect.assert_eq(&errors(run(status_strategy(&kind_of(&old)), new, Some(&old))));
}

#[test]
fn a_container_that_succeeded_stays_so() {
    let ended = |code: i32| json!({"containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": code}}}]});
    let running = json!({"containerStatuses": [{"name": "c", "state": {"running": {}}}]});
    reported(ended(1), running.clone(), expect!["no errors"]);
    let mut old = created(yaml(POD));
    merge(&mut old["status"], ended(0));
    let mut new = old.clone();
    new["status"]["containerStatuses"] = running["containerStatuses"].clone();
    expect!["status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"]
        .assert_eq(&errors(run(status_strategy(&kind_of(&old)), new, Some(&old))));
}

#[test]
fn addresses_come_in_pairs() {
    reported(json!({}), json!({"podIP": "10.0.0.1"}), expect!["no errors"]);
    reported(
        json!({}),
        json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]}),
        expect![[
            r#"status.podIPs: Invalid value: [{"ip":"10.0.0.1"},{"ip":"10.0.0.2"}]: may specify no more than one IP for each IP family"#
        ]],
    );
    reported(
        json!({}),
        json!({"qosClass": "Guaranteed", "conditions": [{"type": "a b", "status": "True"}]}),
        expect![[r#"
            status.conditions[0].Type: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
            status.qosClass: Invalid value: "Guaranteed": field is immutable"#]],
    );
}

#[test]
fn a_status_changes_nothing_else() {
    let mut old = created(yaml(POD));
    old["metadata"]["ownerReferences"] = json!([{"uid": "1"}]);
    let mut new = old.clone();
    new["spec"]["nodeName"] = json!("other");
    new["metadata"]["ownerReferences"] = json!([]);
    new["status"] = json!({"phase": "Running"});
    let new = run(status_strategy(&kind_of(&old)), new, Some(&old)).expect("no errors");
    assert_eq!(
        (&new["spec"], &new["metadata"]["ownerReferences"]),
        (&old["spec"], &old["metadata"]["ownerReferences"])
    );
    assert_eq!(new["status"], json!({"phase": "Running", "qosClass": "BestEffort"}));
}
