//! Rows of `kubectl get`.

use expect_test::{Expect, expect};
use jiff::Timestamp;

use crate::{kind_of, yaml};

/// The cells of an object's row at noon.
fn row(object: &str, expect: Expect) {
    let object = yaml(object);
    let now: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a timestamp");
    let cells = (kind_of(&object).row)(&object, now);
    let cells: Vec<String> = cells.iter().map(|cell| cell.as_str().map_or(cell.to_string(), str::to_owned)).collect();
    expect.assert_eq(&cells.join(" | "));
}

fn pod(spec: &str, status: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: a, creationTimestamp: '2026-01-01T11:00:00Z'}}, spec: {spec}, status: {status}}}"
    )
}

#[test]
fn a_pod_that_runs() {
    row(
        &pod(
            "{nodeName: m1, containers: [{name: c}, {name: d}], readinessGates: [{conditionType: x}]}",
            "{phase: Running, podIPs: [{ip: 10.0.0.1}], containerStatuses: [{name: c, ready: true, state: {running: {}}, restartCount: 2, lastState: {terminated: {finishedAt: '2026-01-01T11:55:00Z'}}}, {name: d, ready: false, state: {running: {}}}]}",
        ),
        expect!["a | 1/2 | Running | 2 (5m ago) | 60m | 10.0.0.1 | m1 | <none> | 0/1"],
    );
}

#[test]
fn the_status_of_a_pod() {
    let status = |spec: &str, status: &str, expect: Expect| {
        let object = yaml(&pod(spec, status));
        let cells = (kind_of(&object).row)(&object, Timestamp::UNIX_EPOCH);
        expect.assert_eq(cells[2].as_str().unwrap_or_default());
    };
    let one = "{containers: [{name: c}]}";
    let inits = "{containers: [{name: c}], initContainers: [{name: i}, {name: j}]}";
    status(one, "{phase: Pending}", expect!["Pending"]);
    status(one, "{phase: Failed, reason: Evicted}", expect!["Evicted"]);
    status(
        one,
        "{phase: Running, containerStatuses: [{name: c, state: {waiting: {reason: CrashLoopBackOff}}}]}",
        expect!["CrashLoopBackOff"],
    );
    status(
        one,
        "{phase: Failed, containerStatuses: [{name: c, state: {terminated: {exitCode: 3}}}]}",
        expect!["ExitCode:3"],
    );
    status(
        one,
        "{phase: Failed, containerStatuses: [{name: c, state: {terminated: {exitCode: 137, reason: OOMKilled}}}]}",
        expect!["OOMKilled"],
    );
    status(
        one,
        "{phase: Succeeded, containerStatuses: [{name: c, state: {terminated: {exitCode: 0, reason: Completed}}}]}",
        expect!["Completed"],
    );
    status(
        inits,
        "{phase: Pending, initContainerStatuses: [{name: i, state: {terminated: {exitCode: 0}}}, {name: j, state: {running: {}}}]}",
        expect!["Init:1/2"],
    );
    status(
        inits,
        "{phase: Pending, initContainerStatuses: [{name: i, state: {waiting: {reason: ImagePullBackOff}}}]}",
        expect!["Init:ImagePullBackOff"],
    );
    status(
        inits,
        "{phase: Pending, initContainerStatuses: [{name: i, state: {terminated: {exitCode: 1, reason: Error}}}]}",
        expect!["Init:Error"],
    );
    status(
        "{schedulingGates: [{name: a}]}",
        "{phase: Pending, conditions: [{type: PodScheduled, status: 'False', reason: SchedulingGated}]}",
        expect!["SchedulingGated"],
    );
}

#[test]
fn a_pod_that_is_deleted() {
    let object =
        pod("{containers: [{name: c}]}", "{phase: Running}").replace("name: a,", "name: a, deletionTimestamp: x,");
    row(&object, expect!["a | 0/1 | Terminating | 0 | 60m | <none> | <none> | <none> | <none>"]);
}

#[test]
fn sidecars_count() {
    row(
        &pod(
            "{containers: [{name: c}], initContainers: [{name: s, restartPolicy: Always}]}",
            "{phase: Running, conditions: [{type: Initialized, status: 'True'}], initContainerStatuses: [{name: s, started: true, ready: true, restartCount: 1, state: {running: {}}}], containerStatuses: [{name: c, ready: true, state: {running: {}}}]}",
        ),
        expect!["a | 2/2 | Running | 1 | 60m | <none> | <none> | <none> | <none>"],
    );
}

#[test]
fn nodes() {
    row(
        "{apiVersion: v1, kind: Node, metadata: {name: a, labels: {node-role.kubernetes.io/control-plane: ''}}, spec: {unschedulable: true}, status: {conditions: [{type: Ready, status: 'True'}], addresses: [{type: InternalIP, address: 192.0.2.1}], nodeInfo: {kubeletVersion: v1.37.2, architecture: amd64, kernelVersion: '6.1'}}}",
        expect![
            "a | Ready,SchedulingDisabled | control-plane | <unknown> | v1.37.2 | 192.0.2.1 | <none> | <unknown> | 6.1 (amd64) | <unknown>"
        ],
    );
}

#[test]
fn workloads_and_networks() {
    row(
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}, spec: {replicas: 3, selector: {matchLabels: {b: c}, matchExpressions: [{key: a, operator: In, values: [z, x]}]}, template: {spec: {containers: [{name: c, image: i}, {name: d, image: j}]}}}, status: {readyReplicas: 1, updatedReplicas: 2}}",
        expect!["a | 1/3 | 2 | 0 | <unknown> | c,d | i,j | a in (x,z),b=c"],
    );
    row(
        "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {type: NodePort, clusterIPs: [10.96.0.1], selector: {a: b}, ports: [{port: 80, nodePort: 30080, protocol: TCP}, {port: 53, protocol: UDP}]}}",
        expect!["a | NodePort | 10.96.0.1 | <none> | 80:30080/TCP,53/UDP | <unknown> | a=b"],
    );
    row(
        "{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: a}, spec: {tls: [{}], rules: [{host: a}, {host: b}, {host: c}, {host: d}]}, status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}}",
        expect!["a | <none> | a,b,c + 1 more... | 192.0.2.1 | 80, 443 | <unknown>"],
    );
    row(
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a}, addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: [a, b]}, {addresses: [c, d]}]}",
        expect!["a | IPv4 | 80 | a,b,c + 1 more... | <unknown>"],
    );
    row(
        "{apiVersion: v1, kind: Endpoints, metadata: {name: a}, subsets: [{addresses: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], ports: [{port: 80}]}]}",
        expect!["a | 10.0.0.1:80,[fd00::1]:80 | <unknown>"],
    );
}

#[test]
fn events() {
    row(
        "{apiVersion: v1, kind: Event, metadata: {name: e}, type: Warning, reason: Failed, message: ' m ', involvedObject: {kind: Pod, name: a, fieldPath: 'spec.containers{c}'}, source: {component: kubelet, host: m1}, firstTimestamp: '2026-01-01T11:00:00Z', lastTimestamp: '2026-01-01T11:58:30Z', count: 7}",
        expect!["90s | Warning | Failed | pod/a | spec.containers{c} | kubelet, m1 | m | 60m | 7 | e"],
    );
}

#[test]
fn bindings() {
    row(
        "{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: a}, roleRef: {kind: Role, name: r}, subjects: [{kind: User, name: u}, {kind: User, name: v}, {kind: ServiceAccount, namespace: ns, name: s}]}",
        expect!["a | Role/r | <unknown> | u, v |  | ns/s"],
    );
}

#[test]
fn ages() {
    let age = |created: &str, expect: &str| {
        let object = yaml(&format!(
            "{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: a, creationTimestamp: '{created}'}}}}"
        ));
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a timestamp");
        assert_eq!((kind_of(&object).row)(&object, now)[1], expect, "{created}");
    };
    age("2026-01-01T11:59:59Z", "1s");
    age("2026-01-01T11:58:00Z", "2m");
    age("2026-01-01T11:56:48Z", "3m12s");
    age("2026-01-01T11:00:00Z", "60m");
    age("2026-01-01T08:30:00Z", "3h30m");
    age("2025-12-31T12:00:00Z", "24h");
    age("2025-12-29T10:00:00Z", "3d2h");
    age("2025-01-01T12:00:00Z", "365d");
    age("2020-01-01T12:00:00Z", "6y2d");
    age("2026-01-01T12:00:05Z", "<invalid>");
}
