//! The objects that both sides are loaded with. Every bench that says "ConfigMap" or "Pod" means these.

use bytes::Bytes;
use serde_json::{Value, json};

/// Where everything is created.
pub const NAMESPACE: &str = "bench";
/// Bytes of data in a ConfigMap.
pub const CONFIG_MAP_DATA: usize = 1024;
/// Nobody schedules for it: pods of the API benches stay as they were created.
const NO_SCHEDULER: &str = "nobody";
/// The image of pods that run.
pub const IMAGE: &str = "docker.io/library/busybox:1.37.0-glibc";

/// A ConfigMap with 1 KiB of data.
pub fn config_map(name: &str) -> Bytes {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": "bench"}},
        "data": {"text": "x".repeat(CONFIG_MAP_DATA)},
    });
    object.to_string().into()
}

/// A Pod as a Deployment of a web application would make it, 4 kB as it is sent and 5 to 6 kB as it is answered: two containers with
/// probes, environment, resources and volumes.
pub fn pod(name: &str) -> Bytes {
    let environment: Vec<Value> = (0..12)
        .map(|n| json!({"name": format!("SETTING_{n}"), "value": format!("the value of setting {n}")}))
        .collect();
    let probe = |path: &str| json!({"httpGet": {"path": path, "port": 8080}, "periodSeconds": 10});
    let container = |name: &str| {
        json!({
            "name": name, "image": "registry.example/team/application:1.2.3", "imagePullPolicy": "IfNotPresent",
            "args": ["--listen=:8080", "--log-format=json", "--config=/etc/application/config.yaml"],
            "ports": [{"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090}],
            "env": environment,
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "livenessProbe": probe("/healthz"), "readinessProbe": probe("/readyz"),
            "securityContext": {
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [
                {"name": "config", "mountPath": "/etc/application", "readOnly": true},
                {"name": "cache", "mountPath": "/var/cache/application"},
            ],
        })
    };
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": NAMESPACE,
            "labels": {"app": "application", "tier": "web", "pod-template-hash": "5d4f8c7b9"},
            "annotations": {"example.org/owner": "the team of the application", "example.org/revision": "42"},
        },
        "spec": {
            "schedulerName": NO_SCHEDULER, "automountServiceAccountToken": false,
            "containers": [container("application"), container("sidecar")],
            "volumes": [
                {"name": "config", "configMap": {"name": "application", "optional": true}},
                {"name": "cache", "emptyDir": {}},
            ],
            "tolerations": [{"key": "example.org/dedicated", "operator": "Exists", "effect": "NoSchedule"}],
        },
    });
    object.to_string().into()
}

/// A pod that runs until it is deleted.
pub fn running_pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": "runs"}},
        "spec": running_spec(),
    })
}

/// A Deployment of such pods.
pub fn deployment(name: &str, replicas: usize) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": running_spec()},
        },
    })
}

fn running_spec() -> Value {
    json!({
        "terminationGracePeriodSeconds": 0,
        "containers": [{
            "name": "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"],
        }],
    })
}
