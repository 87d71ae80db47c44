//! Parts of running pods that change through sub-resources: ephemeral containers and resources.

use expect_test::{Expect, expect};
use serde_json::Value;

use crate::{created, errors, kind_of, merge, run, strategy_of, yaml};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: default, labels: {a: b}}
spec:
  nodeName: rack
  containers: [{name: c, image: registry.example/c:1, resources: {requests: {cpu: 1, memory: 64Mi}, limits: {cpu: 2}}}]
  initContainers: [{name: i, image: registry.example/i:1}]
";

/// Changes the pod through a sub-resource.
fn changed(part: &str, old: &Value, patch: &str) -> Result<Value, String> {
    let mut pod = old.clone();
    merge(&mut pod, yaml(patch));
    run(strategy_of(&kind_of(old), part), pod, Some(old))
}

fn check(part: &str, old: &Value, patch: &str, expect: Expect) {
    expect.assert_eq(&errors(changed(part, old, patch)));
}

#[test]
fn an_ephemeral_container_is_added_and_nothing_else_changes() {
    let old = created(yaml(POD));
    let patch = "{metadata: {labels: {a: x}}, spec: {nodeName: other, ephemeralContainers: [{name: d, image: i, targetContainerName: c}]}}";
    let pod = changed("ephemeralcontainers", &old, patch).expect("no errors");
    assert_eq!((&pod["spec"]["nodeName"], &pod["metadata"]["labels"]["a"]), (&"rack".into(), &"b".into()));
    assert_eq!(
        (&pod["spec"]["ephemeralContainers"][0]["name"], &pod["metadata"]["generation"]),
        (&"d".into(), &2.into())
    );
    check(
        "ephemeralcontainers",
        &pod,
        "spec: {ephemeralContainers: [{name: e, image: i}]}",
        expect![[r#"
        spec.ephemeralContainers: Forbidden: existing ephemeral containers "d" may not be removed
    "#]],
    );
    check(
        "ephemeralcontainers",
        &pod,
        "spec: {ephemeralContainers: [{name: d, image: i, targetContainerName: c}, {name: e, image: i}]}",
        expect!["no errors"],
    );
}

#[test]
fn an_ephemeral_container_is_no_part_of_the_workload() {
    check(
        "ephemeralcontainers",
        &created(yaml(POD)),
        "spec: {ephemeralContainers: [
            {name: c, image: i, ports: [{containerPort: 80}], resources: {limits: {cpu: 1}}},
            {name: d, image: '', targetContainerName: none, livenessProbe: {exec: {command: [a]}}}]}",
        expect![[r#"
            spec.ephemeralContainers[0].name: Duplicate value: "c"
            spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container
            spec.ephemeralContainers[0].resources: Forbidden: cannot be set for an Ephemeral Container
            spec.ephemeralContainers[1].image: Required value
            spec.ephemeralContainers[1].targetContainerName: Not found: "none"
            spec.ephemeralContainers[1].livenessProbe: Forbidden: cannot be set for an Ephemeral Container"#]],
    );
    let mut pod = yaml(POD);
    merge(&mut pod, yaml("spec: {ephemeralContainers: [{name: d, image: i}]}"));
    expect!["spec.ephemeralContainers: Forbidden: cannot be set on create"].assert_eq(&errors(run(
        &kind_of(&pod).strategy,
        pod,
        None,
    )));
}

#[test]
fn resources_are_raised_and_lowered() {
    let old = created(yaml(POD));
    let patch =
        |resources: &str| format!("spec: {{nodeName: other, containers: [{{name: c, image: other, {resources}}}]}}");
    let pod = changed("resize", &old, &patch("resources: {requests: {cpu: 2, memory: 32Mi}, limits: {cpu: 4}}"))
        .expect("no errors");
    assert_eq!((&pod["spec"]["nodeName"], &pod["metadata"]["generation"]), (&"rack".into(), &2.into()));
    let container = &pod["spec"]["containers"][0];
    assert_eq!(
        (&container["image"], &container["resources"]["requests"]["cpu"]),
        (&"registry.example/c:1".into(), &"2".into())
    );
    check(
        "resize",
        &old,
        &patch("resources: {requests: {cpu: 1}, limits: {cpu: 2}}"),
        expect!["spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed"],
    );
    check(
        "resize",
        &old,
        &patch("resources: {requests: {cpu: 3, memory: 64Mi}, limits: {cpu: 2}}"),
        expect![[
            r#"spec.containers[0].resources.requests: Invalid value: "3": must be less than or equal to cpu limit of 2"#
        ]],
    );
    check(
        "resize",
        &old,
        &patch("resources: {requests: {cpu: 1, memory: 64Mi, ephemeral-storage: 1}, limits: {cpu: 2}}"),
        expect!["spec: Forbidden: only cpu and memory resources are mutable"],
    );
    check(
        "resize",
        &old,
        &patch("resources: {requests: {cpu: 1, memory: 64Mi}, limits: {cpu: 1, memory: 64Mi}}"),
        expect!["no errors"],
    );
    check(
        "resize",
        &old,
        "spec: {containers: [{name: d, image: i}]}",
        expect![[r#"
        spec: Invalid value: "Burstable": Pod QOS Class may not change as a result of resizing
        spec.containers[0].name: Forbidden: containers may not be renamed or reordered on resize"#]],
    );
    check(
        "resize",
        &old,
        "spec: {initContainers: [{name: i, image: i, resources: {limits: {cpu: 1}}}]}",
        expect!["spec: Forbidden: resources for non-sidecar init containers are immutable"],
    );
}
