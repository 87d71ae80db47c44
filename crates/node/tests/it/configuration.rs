//! What reaches a container from the API and the host: variables, volumes, identity.

use std::fs;

use serde_json::{Value, json};

use crate::bed::Bed;

fn main_container(script: &str, more: Value) -> Value {
    let mut container = json!({"name": "main", "command": ["sh", "-c", script]});
    container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    container
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_and_config_maps_arrive_and_change() {
    let bed = Bed::new().await;
    bed.create("secrets", json!({"metadata": {"name": "door"}, "data": {"key": "aHVudGVyMg=="}})).await;
    bed.create("configmaps", json!({"metadata": {"name": "settings"}, "data": {"color": "red"}})).await;
    let script = "echo $KEY; cat /etc/door/key; echo; echo; while ! test \"$(cat /etc/settings/color)\" = blue; do sleep 0.02; done; echo changed; exec sleep 1000";
    let container = main_container(
        script,
        json!({
            "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "door", "key": "key"}}}],
            "volumeMounts": [
                {"name": "door", "mountPath": "/etc/door"},
                {"name": "settings", "mountPath": "/etc/settings"},
            ],
        }),
    );
    let volumes = json!([
        {"name": "door", "secret": {"secretName": "door", "defaultMode": 0o400}},
        {"name": "settings", "configMap": {"name": "settings"}},
    ]);
    bed.pod("reader", json!({"containers": [container], "volumes": volumes})).await;
    assert_eq!(bed.until_log("reader", "main", "hunter2\nhunter2\n\n").await, "hunter2\nhunter2\n\n");
    bed.patch("configmaps", "settings", json!({"data": {"color": "blue"}})).await;
    bed.until_log("reader", "main", "changed").await;
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_secret_is_waited_for() {
    let bed = Bed::new().await;
    let container = main_container(
        "echo $KEY",
        json!({
            "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "late", "key": "key"}}}],
        }),
    );
    bed.pod("patient", json!({"containers": [container], "restartPolicy": "Never"})).await;
    let status = bed.until_state("patient", "main", "CreateContainerConfigError").await;
    let waiting = status.container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.message.as_deref(), Some("secret \"late\" not found"));
    bed.until_event("Warning Failed: Error: secret \"late\" not found").await;
    bed.create("secrets", json!({"metadata": {"name": "late"}, "data": {"key": "eA=="}})).await;
    bed.until_phase("patient", "Succeeded").await;
    assert_eq!(bed.until_log("patient", "main", "x").await, "x\n");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_the_downward_api_are_projected() {
    let bed = Bed::new().await;
    bed.create("serviceaccounts", json!({"metadata": {"name": "robot"}})).await;
    let container = main_container(
        "cat /in/token /in/name; echo; cat /in/labels",
        json!({
            "volumeMounts": [{"name": "in", "mountPath": "/in"}],
        }),
    );
    let sources = json!([
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
        {"downwardAPI": {"items": [
            {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}},
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        ]}},
    ]);
    let spec = json!({
        "containers": [container], "serviceAccountName": "robot", "restartPolicy": "Never",
        "volumes": [{"name": "in", "projected": {"sources": sources}}],
    });
    bed.pod("robot", spec).await;
    bed.until_phase("robot", "Succeeded").await;
    let log = bed.until_log("robot", "main", "token-1").await;
    assert!(log.starts_with("token-1robot\n"), "{log}");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_paths_are_checked_and_waited_for() {
    let bed = Bed::new().await;
    let (books, disk) = (bed.dir.join("books"), bed.dir.join("disk"));
    fs::create_dir(&disk).unwrap();
    fs::write(bed.dir.join("fstab"), format!("/dev/sdz1 {} ext4 defaults 0 2\n", disk.display())).unwrap();
    let pod = |path: &std::path::Path| {
        let container =
            main_container("cat /books/title", json!({"volumeMounts": [{"name": "books", "mountPath": "/books"}]}));
        let volumes = json!([{"name": "books", "hostPath": {"path": path, "type": "Directory"}}]);
        json!({"containers": [container], "volumes": volumes, "restartPolicy": "Never"})
    };
    bed.pod("reader", pod(&books)).await;
    let text = format!(
        "Warning FailedMount: MountVolume.SetUp failed for volume \"books\" : hostPath type check failed: {} is not a directory",
        books.display()
    );
    bed.until_event(&text).await;
    bed.until_state("reader", "main", "ContainerCreating").await;
    fs::create_dir(&books).unwrap();
    fs::write(books.join("title"), "found").unwrap();
    bed.until_phase("reader", "Succeeded").await;

    bed.pod("disk", pod(&disk)).await;
    bed.until_event(&format!("Warning FailedMount: {} is not mounted", disk.display())).await;
    node::volumes::mounts::tmpfs(&disk, None, 0o755).unwrap();
    fs::write(disk.join("title"), "mounted").unwrap();
    bed.until_phase("disk", "Succeeded").await;
    assert_eq!(bed.until_log("disk", "main", "mounted").await, "mounted");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn security_contexts_become_identities() {
    let bed = Bed::new().await;
    let container = main_container(
        "id; touch /root-is-read-only; cat /scratch/sub/../../etc/hostname; stat -c %g /scratch",
        json!({
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 1000, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [{"name": "scratch", "mountPath": "/scratch", "subPath": "sub"}],
        }),
    );
    let spec = json!({
        "containers": [container], "restartPolicy": "Never", "securityContext": {"fsGroup": 4242},
        "volumes": [{"name": "scratch", "emptyDir": {}}],
    });
    bed.pod("careful", spec).await;
    bed.until_phase("careful", "Succeeded").await;
    let log = bed.until_log("careful", "main", "4242\n").await;
    assert!(log.contains("uid=1000(user) gid=1000(user) groups=1000(user),4242"), "{log}");

    let root = main_container("true", json!({"securityContext": {"runAsNonRoot": true}}));
    bed.pod("careless", json!({"containers": [root]})).await;
    bed.until_event(
        "Warning Failed: Error: container has runAsNonRoot and image will run as root (pod: \"careless_default(",
    )
    .await;
    bed.until_state("careless", "main", "CreateContainerConfigError").await;
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_resolvers_are_the_clusters() {
    let bed = Bed::new().await;
    let script = "cat /etc/resolv.conf; cat /etc/hosts; cat /etc/hostname";
    let spec = json!({
        "containers": [main_container(script, json!({}))], "restartPolicy": "Never",
        "dnsConfig": {"searches": ["lan"]}, "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["nas"]}],
    });
    bed.pod("named", spec).await;
    bed.until_phase("named", "Succeeded").await;
    let log = bed.until_log("named", "main", "\nnamed\n").await;
    assert!(log.starts_with("search default.svc.cluster.local svc.cluster.local cluster.local"), "{log}");
    for line in ["nameserver 10.96.0.10\n", "options ndots:5\n", "10.244.0.9\tnamed\n", "192.0.2.9\tnas\n"] {
        assert!(log.contains(line), "{line:?} is not in {log}");
    }

    let host = json!({
        "containers": [main_container("cat /etc/hosts; hostname", json!({}))], "restartPolicy": "Never", "hostNetwork": true,
    });
    bed.pod("host", host).await;
    let status = bed.until_phase("host", "Succeeded").await;
    assert_eq!(status.pod_ip.as_deref(), Some("192.0.2.7"), "the node's own");
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let log = bed.until_log("host", "main", &name).await;
    assert!(log.starts_with("# Kubernetes-managed hosts file (host network).\n"), "{log}");
    bed.finish().await;
}
