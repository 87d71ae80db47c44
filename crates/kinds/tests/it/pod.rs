//! Pods that are created.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use crate::{check, check_part, check_warnings, created, errors, kind_of, merge, run, yaml};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: default}
spec:
  containers: [{name: c, image: registry.example/c:1}]
";

fn pod_with(spec: &str) -> Value {
    let mut pod = yaml(POD);
    merge(&mut pod["spec"], yaml(spec));
    pod
}

/// The errors of a pod with these fields in its specification.
fn spec(fields: &str, expect: Expect) {
    let pod = pod_with(fields);
    expect.assert_eq(&errors(run(&kind_of(&pod).strategy, pod, None)));
}

/// The errors of a pod with these fields in its only container.
fn container(fields: &str, expect: Expect) {
    let mut pod = yaml(POD);
    merge(&mut pod["spec"]["containers"][0], yaml(fields));
    expect.assert_eq(&errors(run(&kind_of(&pod).strategy, pod, None)));
}

#[test]
fn a_pod_gets_its_defaults() {
    let pod = format!("{POD}\n  volumes: [{{name: v}}, {{name: h, hostPath: {{path: /a}}}}]");
    check_part(
        &pod,
        "/spec",
        expect![[r#"
            containers:
            - image: registry.example/c:1
              imagePullPolicy: IfNotPresent
              name: c
              resources: {}
              terminationMessagePath: /dev/termination-log
              terminationMessagePolicy: File
            dnsPolicy: ClusterFirst
            enableServiceLinks: true
            restartPolicy: Always
            schedulerName: default-scheduler
            securityContext: {}
            terminationGracePeriodSeconds: 30
            volumes:
            - emptyDir: {}
              name: v
            - hostPath:
                path: /a
                type: ""
              name: h
        "#]],
    );
}

#[test]
fn only_untagged_and_latest_images_are_always_pulled() {
    let policy = |image: &str| {
        let mut pod = yaml(POD);
        pod["spec"]["containers"][0]["image"] = json!(image);
        (kind_of(&pod).strategy.default)(&mut pod);
        pod["spec"]["containers"][0]["imagePullPolicy"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(policy("busybox"), "Always");
    assert_eq!(policy("host:5000/busybox"), "Always");
    assert_eq!(policy("busybox:latest"), "Always");
    assert_eq!(policy("busybox:1"), "IfNotPresent");
    assert_eq!(policy("busybox@sha256:0123"), "IfNotPresent");
}

#[test]
fn limits_without_requests_make_a_pod_guaranteed() {
    let pod = POD.replace("image:", "resources: {limits: {cpu: 0.5, memory: 64Mi}}, image:");
    check_part(
        &pod,
        "/spec/containers/0/resources",
        expect![[r#"
        limits:
          cpu: 500m
          memory: 64Mi
        requests:
          cpu: 500m
          memory: 64Mi
    "#]],
    );
    check_part(
        &pod,
        "/status",
        expect![[r#"
        phase: Pending
        qosClass: Guaranteed
    "#]],
    );
}

#[test]
fn a_scheduling_gate_shows_in_the_status() {
    check_part(
        &format!("{POD}\n  schedulingGates: [{{name: a.b/c}}]"),
        "/status/conditions/0/reason",
        expect![[r#"
        SchedulingGated
    "#]],
    );
}

#[test]
fn an_empty_pod_says_all_that_it_needs() {
    check("{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {}}", expect!["spec.containers: Required value"]);
    spec(
        "containers: [{}, {name: A_b, image: ' x'}]",
        expect![[r#"
        spec.containers[0].name: Required value
        spec.containers[0].image: Required value
        spec.containers[1].name: Invalid value: "A_b": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
        spec.containers[1].image: Invalid value: " x": must not have leading or trailing whitespace"#]],
    );
}

#[test]
fn mounts_must_name_volumes() {
    let fields = "
        volumes: [{name: db, hostPath: {path: /var/lib/komga}}]
        containers: [{name: c, image: i, volumeMounts: [{name: config, mountPath: /config}, {name: db, mountPath: /a}]}]";
    spec(fields, expect![[r#"spec.containers[0].volumeMounts[0].name: Not found: "config""#]]);
    let typo = "
        volumes: [{name: config, emptyDir: {}}, {name: other, emptyDir: {}}]
        containers: [{name: c, image: i, volumeMounts: [{name: confg, mountPath: /config}]}]";
    spec(
        typo,
        expect![[r#"spec.containers[0].volumeMounts[0].name: Not found: "confg": did you mean the volume "config"?"#]],
    );
}

#[test]
fn volumes() {
    let fields = "
        volumes:
        - {name: a, hostPath: {path: /a/../b, type: Dir}}
        - {name: a, secret: {}}
        - {name: b, configMap: {name: x, defaultMode: 512, items: [{key: '', path: ../x}]}}
        - {name: c, emptyDir: {sizeLimit: 1Gi}}
        - {name: d, emptyDir: {}, hostPath: {path: /}}
        - {name: e, nfs: {server: s, path: /}}
        - {name: f, projected: {sources: [{serviceAccountToken: {path: t, expirationSeconds: 5}}]}}
        - {name: g, downwardAPI: {items: [{path: x, fieldRef: {fieldPath: spec.nodeName}}]}}";
    spec(
        fields,
        expect![[r#"
            spec.volumes[0].hostPath.path: Invalid value: "/a/../b": must not contain '..'
            spec.volumes[0].hostPath.type: Unsupported value: "Dir": supported values: "", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"
            spec.volumes[1].secret.secretName: Required value
            spec.volumes[2].configMap.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive
            spec.volumes[2].configMap.items[0].key: Required value
            spec.volumes[2].configMap.items[0].path: Invalid value: "../x": must not contain '..'
            spec.volumes[4].hostPath: Forbidden: may not specify more than 1 volume type
            spec.volumes[6].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes
            spec.volumes[7].downwardAPI.fieldRef.fieldPath: Unsupported value: "spec.nodeName": supported values: "metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"
            spec.volumes[6].projected.sources[0].serviceAccountToken: Forbidden: must not be specified when serviceAccountName is not set
            spec.volumes[5].nfs: Forbidden: not supported yet by coracle: this kind of volume is not mounted; mount it on the host and use a hostPath"#]],
    );
}

#[test]
fn mounts() {
    let fields = "
        volumes: [{name: v, emptyDir: {}}]
        containers:
        - name: c
          image: i
          volumeMounts:
          - {name: v, mountPath: /a, subPath: /x}
          - {name: v, mountPath: /a, subPathExpr: a, mountPropagation: Bidirectional}
          - {name: v, mountPath: /b, recursiveReadOnly: Enabled}
          - {name: v, mountPath: /c, readOnly: true, recursiveReadOnly: IfPossible}";
    spec(
        fields,
        expect![[r#"
        spec.containers[0].volumeMounts.subPath: Invalid value: "/x": must be a relative path
        spec.containers[0].volumeMounts[1].mountPath: Invalid value: "/a": must be unique
        spec.containers[0].volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers
        spec.containers[0].volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true"#]],
    );
}

#[test]
fn requests_stay_within_limits() {
    container(
        "resources: {limits: {cpu: 1, memory: 64Mi}, requests: {cpu: 1500m, memory: -1}}",
        expect![[r#"
            spec.containers[0].resources.requests: Invalid value: "1500m": must be less than or equal to cpu limit of 1
            spec.containers[0].resources.requests[memory]: Invalid value: "-1": must be greater than or equal to 0"#]],
    );
    container(
        "resources: {limits: {cpus: 1, nvidia.com/gpu: 1, ephemeral-storage: 1Gi}}",
        expect![[r#"
        spec.containers[0].resources.limits[cpus]: Invalid value: "cpus": must be a standard resource type or fully qualified
        spec.containers[0].resources.limits[cpus]: Invalid value: "cpus": must be a standard resource for containers
        spec.containers[0].resources.requests[cpus]: Invalid value: "cpus": must be a standard resource type or fully qualified
        spec.containers[0].resources.requests[cpus]: Invalid value: "cpus": must be a standard resource for containers"#]],
    );
    container(
        "resources: {limits: {a.b/c: 500m, a.b/d: 1}, requests: {a.b/d: 2, a.b/e: 1}}",
        expect![[r#"
        spec.containers[0].resources.limits[a.b/c]: Invalid value: "500m": must be an integer
        spec.containers[0].resources.requests[a.b/c]: Invalid value: "500m": must be an integer
        spec.containers[0].resources.requests: Invalid value: "2": must be equal to a.b/d limit of 1
        spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources"#]],
    );
    container(
        "resources: {limits: {memory: 1Gib}}",
        expect![[r#"
        spec.containers[0].resources.limits[memory]: Invalid value: "1Gib": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'
        spec.containers[0].resources.requests[memory]: Invalid value: "1Gib": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"#]],
    );
}

#[test]
fn ports() {
    container(
        "ports: [{containerPort: 70000, name: UPPER}, {containerPort: 80, name: web}, {name: web, protocol: X}, {containerPort: 1, hostPort: 80}]",
        expect![[r#"
            spec.containers[0].ports[0].name: Invalid value: "UPPER": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)
            spec.containers[0].ports[0].name: Invalid value: "UPPER": must contain at least one letter (a-z)
            spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive
            spec.containers[0].ports[2].name: Duplicate value: "web"
            spec.containers[0].ports[2].containerPort: Required value
            spec.containers[0].ports[2].protocol: Unsupported value: "X": supported values: "SCTP", "TCP", "UDP""#]],
    );
    spec(
        "{hostNetwork: true, containers: [{name: c, image: i, ports: [{containerPort: 80}, {containerPort: 81, hostPort: 82}]}]}",
        expect![
            "spec.containers[0].ports[1].hostPort: Invalid value: 82: must match `containerPort` when `hostNetwork` is true"
        ],
    );
}

#[test]
fn environment() {
    let fields = "
        env:
        - {name: 'a=b'}
        - {name: A, value: x, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: B, valueFrom: {fieldRef: {fieldPath: status.phase}}}
        - {name: C, valueFrom: {fieldRef: {fieldPath: metadata.nope}}}
        - {name: D, valueFrom: {configMapKeyRef: {name: x, key: 'a b'}, secretKeyRef: {name: x, key: k}}}
        - {name: E, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 2}}}
        - {name: F, valueFrom: {}}
        - {name: G, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['x']\"}}}
        - {name: H, valueFrom: {fileKeyRef: {volumeName: v, path: p, key: k}}}
        envFrom: [{}, {configMapRef: {name: ''}}]";
    container(
        fields,
        expect![[r#"
        spec.containers[0].env[0].name: Invalid value: "a=b": a valid environment variable name must consist only of printable ASCII characters other than '='
        spec.containers[0].env[1].valueFrom: Invalid value: "": may not be specified when `value` is not empty
        spec.containers[0].env[2].valueFrom.fieldRef.fieldPath: Unsupported value: "status.phase": supported values: "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"
        spec.containers[0].env[3].valueFrom.fieldRef.fieldPath: Invalid value: "metadata.nope": error converting fieldPath: field label not supported: metadata.nope
        spec.containers[0].env[4].valueFrom.configMapKeyRef.key: Invalid value: "a b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')
        spec.containers[0].env[4].valueFrom: Invalid value: "": may not have more than one field specified at a time
        spec.containers[0].env[5].valueFrom.resourceFieldRef.divisor: Invalid value: "limits.cpu": only divisor's values 1m and 1 are supported with the cpu resource
        spec.containers[0].env[6].valueFrom: Invalid value: "": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`
        spec.containers[0].envFrom: Invalid value: "": must specify one of: `configMapRef` or `secretRef`
        spec.containers[0].envFrom[1].configMapRef.name: Required value
        spec.containers[0].env[8].valueFrom.fileKeyRef: Forbidden: not supported yet by coracle: variables are not read from files"#]],
    );
}

#[test]
fn probes_and_hooks() {
    let fields = "
        livenessProbe: {successThreshold: 2, periodSeconds: -1, httpGet: {port: http-name-that-is-long, scheme: FTP}}
        readinessProbe: {exec: {command: []}, terminationGracePeriodSeconds: 5}
        startupProbe: {tcpSocket: {port: 0}, grpc: {port: 1}}
        lifecycle: {preStop: {sleep: {seconds: 31}}, postStart: {}}";
    container(
        fields,
        expect![[r#"
        spec.containers[0].lifecycle.postStart: Required value: must specify a handler type
        spec.containers[0].lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)
        spec.containers[0].livenessProbe.httpGet.port: Invalid value: "http-name-that-is-long": must be no more than 15 characters
        spec.containers[0].livenessProbe.httpGet.scheme: Unsupported value: "FTP": supported values: "HTTP", "HTTPS"
        spec.containers[0].livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0
        spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1
        spec.containers[0].readinessProbe.exec.command: Required value
        spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 5: must not be set for readinessProbes
        spec.containers[0].startupProbe.tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive
        spec.containers[0].startupProbe.grpc: Forbidden: may not specify more than 1 handler type"#]],
    );
}

#[test]
fn what_upstream_has_switched_off_is_taken_away() {
    let spec = "
        evictionResponders: [{name: a.example/b, priority: 1}]
        schedulingGroup: {podGroupName: g}
        volumes: [{name: e, emptyDir: {mode: 448}}, {name: s, secret: {secretName: s, defaultUser: 5, items: [{key: a, path: a, user: 5}]}}]
        containers:
        - {name: c, image: i, lifecycle: {stopSignal: SIGUSR1}, volumeMounts: [{name: e, mountPath: /e, bindMountOptions: [noexec]}]}
        - {name: d, image: i, lifecycle: {stopSignal: SIGUSR1, preStop: {httpGet: {port: 80, protocol: H2C}}}, livenessProbe: {grpc: {port: 1, mode: TLS}}}";
    let pod = created(yaml(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:{spec}")));
    let of = &pod["spec"];
    for pointer in
        ["/evictionResponders", "/schedulingGroup", "/containers/0/lifecycle", "/containers/1/lifecycle/stopSignal"]
    {
        assert!(of.pointer(pointer).is_none(), "{pointer}: {of}");
    }
    assert_eq!(of["volumes"][0]["emptyDir"], json!({}));
    assert!(!of.to_string().contains("ser\":5") && !of.to_string().contains("noexec"), "{of}");
    assert_eq!(of["containers"][1]["lifecycle"]["preStop"]["httpGet"]["protocol"], Value::Null);
    assert_eq!(of["containers"][1]["livenessProbe"]["grpc"], json!({"port": 1, "service": ""}));
}

#[test]
fn security_contexts() {
    container(
        "securityContext: {runAsUser: -1, allowPrivilegeEscalation: false, privileged: true}",
        expect![[r#"
        spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive
        spec.containers[0].securityContext: Invalid value: {"allowPrivilegeEscalation":false,"privileged":true,"runAsUser":-1}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true"#]],
    );
    container(
        "securityContext: {procMount: Unmasked, seccompProfile: {type: Localhost}, seLinuxOptions: {level: s0}}",
        expect![[r#"
            spec.containers[0].securityContext.procMount: Invalid value: "Unmasked": `hostUsers` must be false to use `Unmasked`
            spec.containers[0].securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost
            spec.containers[0].securityContext.procMount: Forbidden: not supported yet by coracle: the masked paths of /proc need user namespaces to be shown"#]],
    );
    spec(
        "securityContext: {seccompProfile: {type: Odd, localhostProfile: x}, fsGroupChangePolicy: Now, sysctls: [{name: net.core.somaxconn, value: '1'}, {name: 'a b', value: ''}]}",
        expect![[r#"
            spec.securityContext.sysctls[1].name: Invalid value: "a b": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$
            spec.securityContext.fsGroupChangePolicy: Unsupported value: "Now": supported values: "Always", "OnRootMismatch"
            spec.securityContext.seccompProfile.type: Unsupported value: "Odd": supported values: "Localhost", "RuntimeDefault", "Unconfined"
            spec.securityContext.seccompProfile.localhostProfile: Invalid value: {"localhostProfile":"x","type":"Odd"}: can only be set when seccomp type is Localhost
            spec.securityContext.sysctls[0].name: Forbidden: not supported yet by coracle: only the safe sysctls can be set: those that belong to the pod alone and cannot harm the node
            spec.securityContext.sysctls[1].name: Forbidden: not supported yet by coracle: only the safe sysctls can be set: those that belong to the pod alone and cannot harm the node"#]],
    );
    spec("securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: '0'}]}", expect!["no errors"]);
    spec(
        "{hostNetwork: true, securityContext: {sysctls: [{name: net.ipv4.tcp_rmem, value: '0'}]}}",
        expect![[
            r#"spec.securityContext.sysctls[0].name: Invalid value: "net.ipv4.tcp_rmem": may not be specified when 'hostNetwork' is true"#
        ]],
    );
}

#[test]
fn init_containers() {
    let fields = "
        initContainers:
        - {name: c, image: i}
        - {name: once, image: i, livenessProbe: {exec: {command: [x]}}}
        - {name: sidecar, image: i, restartPolicy: Always, livenessProbe: {exec: {command: [x]}}}
        - {name: odd, image: i, restartPolicy: OnFailure}";
    spec(
        fields,
        expect![[r#"
        spec.initContainers[0].name: Duplicate value: "c"
        spec.initContainers[1].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always
        spec.initContainers[3].restartPolicy: Forbidden: not supported yet by coracle: single containers have no restart policy, except restartPolicy Always of init containers"#]],
    );
    container(
        "restartPolicy: Always",
        expect![
            "spec.containers[0].restartPolicy: Forbidden: not supported yet by coracle: single containers have no restart policy, except restartPolicy Always of init containers"
        ],
    );
}

#[test]
fn where_it_runs() {
    let fields = "
        nodeSelector: {'a b': c}
        affinity:
          nodeAffinity:
            requiredDuringSchedulingIgnoredDuringExecution:
              nodeSelectorTerms: [{matchExpressions: [{key: a, operator: In}, {key: b, operator: Is}], matchFields: [{key: x, operator: In, values: [a]}]}]
            preferredDuringSchedulingIgnoredDuringExecution: [{weight: 101, preference: {}}]
          podAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 0, podAffinityTerm: {topologyKey: a}}]}
          podAntiAffinity:
            requiredDuringSchedulingIgnoredDuringExecution:
            - {namespaces: [A], labelSelector: {matchLabels: {a: b c}}}
            - {topologyKey: a, matchLabelKeys: [b]}
            - {topologyKey: a, labelSelector: {}, matchLabelKeys: [a, b], mismatchLabelKeys: [b]}
        tolerations: [{operator: Equal}, {key: a, operator: Exists, value: b}, {key: a, tolerationSeconds: 5, effect: NoSchedule}, {key: b, operator: Lt, value: '1'}]
        topologySpreadConstraints:
        - {maxSkew: 0, whenUnsatisfiable: Sometimes}
        - {maxSkew: 1, topologyKey: a, whenUnsatisfiable: ScheduleAnyway, minDomains: 0, nodeTaintsPolicy: Sometimes}
        - {maxSkew: 1, topologyKey: a, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchExpressions: [{key: a, operator: In}]}}
        schedulingGates: [{name: a}, {name: a}]
        nodeName: m1";
    spec(
        fields,
        expect![[r#"
            spec.nodeSelector: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[1].operator: Invalid value: "Is": not a valid selector operator
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchFields[0].key: Invalid value: "x": not a valid field selector key
            spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 101: must be in the range 1-100
            spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 0: must be in the range 1-100
            spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector.matchLabels: Invalid value: "b c": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
            spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].namespace: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required value: can not be empty
            spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Invalid value: "": name part must be non-empty
            spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Invalid value: "": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
            spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[1].matchLabelKeys: Forbidden: must not be specified when labelSelector is not set
            spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[2].matchLabelKeys[1]: Invalid value: "b": exists in both matchLabelKeys and mismatchLabelKeys
            spec.schedulingGates[1]: Duplicate value: "a"
            spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero
            spec.topologySpreadConstraints[0].topologyKey: Required value: can not be empty
            spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: "Sometimes": supported values: "DoNotSchedule", "ScheduleAnyway"
            spec.topologySpreadConstraints[1].{topologyKey, whenUnsatisfiable}: Duplicate value: "{a, ScheduleAnyway}"
            spec.topologySpreadConstraints[1].minDomains: Invalid value: 0: must be greater than zero
            spec.topologySpreadConstraints[1].minDomains: Invalid value: 0: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway
            spec.topologySpreadConstraints[1].nodeTaintsPolicy: Unsupported value: "Sometimes": supported values: "Honor", "Ignore"
            spec.topologySpreadConstraints[2].labelSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'
            spec.tolerations[0].operator: Invalid value: "Equal": operator must be Exists when `key` is empty, which means "match all values and all keys"
            spec.tolerations[1].operator: Invalid value: "b": value must be empty when `operator` is 'Exists'
            spec.tolerations[2].effect: Invalid value: "NoSchedule": effect must be 'NoExecute' when `tolerationSeconds` is set
            spec.tolerations[3].operator: Unsupported value: "Lt": supported values: "Equal", "Exists", "Lt", "Gt"
            spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"#]],
    );
}

#[test]
fn names_and_addresses() {
    let fields = "
        hostname: a.b
        subdomain: A
        hostAliases: [{ip: 010.0.0.1, hostnames: [a_b]}]
        dnsPolicy: None
        dnsConfig: {nameservers: [a, 1.1.1.1, 1.1.1.1, 1.1.1.1], searches: [a_b.c, 'x y', .], options: [{}]}
        serviceAccountName: A
        activeDeadlineSeconds: 0
        restartPolicy: Sometimes";
    spec(
        fields,
        expect![[r#"
            spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"
            spec.dnsConfig.nameservers: Invalid value: ["a","1.1.1.1","1.1.1.1","1.1.1.1"]: must not have more than 3 nameservers
            spec.dnsConfig.nameservers[0]: Invalid value: "a": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
            spec.dnsConfig.searches[1]: Invalid value: "x y": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')
            spec.dnsConfig.options[0]: Required value: must not be empty
            spec.serviceAccountName: Invalid value: "A": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive
            spec.hostname: Invalid value: "a.b": must not contain dots
            spec.subdomain: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            spec.hostAliases[0].ip: Invalid value: "010.0.0.1": must not have leading 0s
            spec.hostAliases[0].hostnames[0]: Invalid value: "a_b": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"#]],
    );
    spec(
        "dnsPolicy: None",
        expect!["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
    );
}

#[test]
fn what_is_not_built_says_so() {
    let fields = "
        hostUsers: false
        runtimeClassName: gvisor
        overhead: {cpu: 1}
        os: {name: windows}
        resources: {limits: {cpu: 1}}
        resourceClaims: [{name: a}]
        hostnameOverride: a
        containers:
        - {name: c, image: i, resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}], volumeDevices: [{name: v, devicePath: /dev/x}]}";
    spec(
        fields,
        expect![[r#"
            spec.containers[0].volumeDevices: Forbidden: not supported yet by coracle: persistent volumes are not built; use a hostPath
            spec.hostUsers: Forbidden: not supported yet by coracle: pods have no user namespaces of their own
            spec.hostnameOverride: Forbidden: not supported yet by coracle: use hostname and subdomain
            spec.os.name: Forbidden: not supported yet by coracle: nodes run Linux only
            spec.resourceClaims: Forbidden: not supported yet by coracle: dynamic resource allocation is not built
            spec.resources: Forbidden: not supported yet by coracle: resources are given to containers, not to pods"#]],
    );
}

#[test]
fn what_is_not_built_may_be_set_to_its_default() {
    spec("{hostUsers: true, ephemeralContainers: [], runtimeClassName: '', os: {name: linux}}", expect!["no errors"]);
    container(
        "{securityContext: {procMount: Default}, ports: [{containerPort: 80, hostPort: 0}], volumeDevices: []}",
        expect!["no errors"],
    );
}

#[test]
fn the_security_of_the_post_is_fine() {
    let fields = "
        automountServiceAccountToken: false
        securityContext: {runAsNonRoot: true, runAsUser: 1000, runAsGroup: 1000, fsGroup: 1000, seccompProfile: {type: RuntimeDefault}}
        containers:
        - name: c
          image: i
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          resources: {limits: {cpu: 100m, memory: 32Mi}}";
    spec(fields, expect!["no errors"]);
}

#[test]
fn warnings() {
    let pod = "
apiVersion: v1
kind: Pod
metadata: {name: a.b, namespace: default}
spec:
  imagePullSecrets: [{name: a}, {name: a}, {}]
  hostAliases: [{ip: '::0001'}]
  nodeSelector: {beta.kubernetes.io/os: linux}
  containers:
  - name: c
    image: i
    env: [{name: A, value: '1'}, {name: A, value: '2'}, {name: B, value: '1'}, {name: B, value: $(B)2}]
    ports: [{containerPort: 80, name: a}, {containerPort: 80}]
    resources: {limits: {memory: 128m}}
";
    check_warnings(
        pod,
        expect![[r#"
        metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]
        spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use "kubernetes.io/os" instead
        spec.imagePullSecrets[1].name: duplicate name "a"
        spec.imagePullSecrets[2].name: invalid empty name ""
        spec.containers[0].resources.limits[memory]: fractional byte value "128m" is invalid, must be an integer
        spec.containers[0].resources.requests[memory]: fractional byte value "128m" is invalid, must be an integer
        spec.containers[0].env[1]: hides previous definition of "A", which may be dropped when using apply
        spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]
        spec.hostAliases[0].ip: IPv6 address "::0001" should be in RFC 5952 canonical format ("::1")"#]],
    );
}
