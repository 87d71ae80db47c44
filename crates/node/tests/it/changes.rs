//! Pods that change while they run, and what they take from elsewhere: debugging, resizing, images as volumes, limits of the disk.

use client::PatchType;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Value, json};

use crate::bed::{Bed, PATIENCE, PODS, condition, is_ready};

const FOREVER: &str = "trap 'exit 0' TERM; while true; do sleep 0.05; done";

async fn patch_part(bed: &Bed, pod: &str, part: &'static str, spec: Value) {
    let patch = json!({"spec": spec});
    bed.client.patch_object(&PODS, "default", pod, Some(part), PatchType::Strategic, patch).await.unwrap();
}

fn main_with(more: Value) -> Value {
    let mut container = json!({"name": "main", "command": ["sh", "-c", FOREVER]});
    container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"containers": [container], "terminationGracePeriodSeconds": 1})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ephemeral_container_sees_its_targets_processes() {
    let bed = Bed::new().await;
    bed.pod("web", main_with(json!({}))).await;
    bed.until_ready("web").await;
    let script = format!("cat /proc/1/cmdline; {FOREVER}");
    let debugger = json!({"name": "look", "image": "docker.io/library/busybox:1", "targetContainerName": "main",
        "command": ["sh", "-c", script]});
    patch_part(&bed, "web", "ephemeralcontainers", json!({"ephemeralContainers": [debugger]})).await;
    // Its own command line has the word `cat`, the target's has not.
    let log = bed.until_log("web", "look", "trap").await;
    assert!(!log.contains("cat /proc"), "{log}");
    let running = |status: &PodStatus| {
        let all = status.ephemeral_container_statuses.iter().flatten();
        all.into_iter().any(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()))
    };
    let status = bed.until("web", "the debugger", running).await;
    assert_eq!(status.observed_generation, Some(2));
    bed.finish().await;
}

/// Whoever changes an image and looks at once finds the pod Ready, as with upstream's kubelet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_image_is_run_and_the_pod_stays_ready() {
    let bed = Bed::new().await;
    bed.pod("web", main_with(json!({}))).await;
    bed.until_ready("web").await;
    let (_, mut watch) = bed.client.list_watch(PODS.everywhere()).await.unwrap();
    let image = json!({"spec": {"containers": [{"name": "main", "image": "docker.io/library/busybox:2"}]}});
    bed.client.patch_object(&PODS, "default", "web", None, PatchType::Strategic, image).await.unwrap();
    let mut restarts = 0;
    while restarts == 0 {
        let changes = tokio::time::timeout(PATIENCE, watch.next()).await.expect("the restart comes").unwrap();
        for object in changes.iter().filter_map(|change| change.current()) {
            let status = object.decode::<Pod>().unwrap().status.unwrap();
            assert!(is_ready(&status), "{status:?}");
            restarts = status.container_statuses.unwrap()[0].restart_count;
        }
    }
    bed.finish().await;
}

/// Upstream pulls the old one to its end, starts it, and kills it then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_does_not_come_can_be_changed() {
    let bed = Bed::new().await;
    // Takes every connection and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("{}/nothing:1", silent.local_addr().unwrap());
    bed.pod("web", main_with(json!({"image": image}))).await;
    bed.until_event(&format!("Normal Pulling: Pulling image {image:?}")).await;
    let other = "docker.io/library/busybox:1";
    bed.patch("pods", "web", json!({"spec": main_with(json!({"image": other}))})).await;
    let status = bed.until_ready("web").await;
    let container = &status.container_statuses.unwrap()[0];
    assert_eq!((container.image.as_str(), container.restart_count), (other, 0));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_of_others_stay_and_those_of_the_node_are_put_right() {
    let bed = Bed::new().await;
    bed.pod("web", main_with(json!({}))).await;
    bed.until_ready("web").await;
    for status in [
        json!({"conditions": [{"type": "example.com/lb", "status": "True"}]}),
        json!({"message": "theirs", "conditions": [{"type": "Ready", "status": "False"}]}),
    ] {
        let patch = json!({"status": status});
        let written =
            bed.client.patch_object(&PODS, "default", "web", Some("status"), PatchType::Strategic, patch).await;
        let written = written.unwrap().decode::<Pod>().unwrap().status.unwrap();
        assert_eq!(is_ready(&written), written.message.is_none());
    }
    let status = bed.until_ready("web").await;
    assert_eq!((condition(&status, "example.com/lb").unwrap().0.as_str(), status.message), ("True", None));
    bed.finish().await;
}

fn resources(status: &PodStatus) -> Value {
    json!(status.container_statuses.as_ref().unwrap()[0].resources)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_change_in_place() {
    let bed = Bed::new().await;
    let before = json!({"requests": {"cpu": "100m", "memory": "20Mi"}, "limits": {"cpu": "200m", "memory": "40Mi"}});
    let script =
        "while true; do cat /sys/fs/cgroup/cpu/cpu.shares /sys/fs/cgroup/cpu.weight 2> /dev/null; sleep 0.05; done";
    bed.pod("web", main_with(json!({"resources": before, "command": ["sh", "-c", script]}))).await;
    assert_eq!(resources(&bed.until_ready("web").await), before);
    bed.until_log("web", "main", if cgroup_v2() { "17\n" } else { "102\n" }).await;
    let after = json!({"requests": {"cpu": "200m", "memory": "20Mi"}, "limits": {"cpu": "300m", "memory": "40Mi"}});
    patch_part(&bed, "web", "resize", json!({"containers": [{"name": "main", "resources": after}]})).await;
    let status = bed.until("web", "the resize", |status| resources(status) == after).await;
    let container = &status.container_statuses.unwrap()[0];
    assert_eq!((container.restart_count, status.observed_generation), (0, Some(2)));
    bed.until_log("web", "main", if cgroup_v2() { "29\n" } else { "204\n" }).await;

    let much =
        json!({"containers": [{"name": "main", "resources": {"requests": {"cpu": "300"}, "limits": {"cpu": "300"}}}]});
    patch_part(&bed, "web", "resize", much).await;
    let status = bed
        .until("web", "a refusal", |status| {
            status
                .conditions
                .iter()
                .flatten()
                .any(|c| c.type_ == "PodResizePending" && c.reason.as_deref() == Some("Infeasible"))
        })
        .await;
    assert_eq!(resources(&status), after);
    bed.finish().await;
}

fn cgroup_v2() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_a_volume() {
    let bed = Bed::new().await;
    let volume =
        json!({"name": "tools", "image": {"reference": "docker.io/library/busybox:1", "pullPolicy": "IfNotPresent"}});
    let mounts = json!([
        {"name": "tools", "mountPath": "/tools"},
        {"name": "tools", "mountPath": "/accounts", "subPath": "etc"},
    ]);
    let script = "cat /tools/etc/passwd /accounts/group; echo x > /tools/x; /tools/bin/busybox true; echo code $?";
    let mut spec = main_with(json!({"command": ["sh", "-c", script], "volumeMounts": mounts}));
    (spec["volumes"], spec["restartPolicy"]) = (json!([volume]), json!("Never"));
    bed.pod("tools", spec).await;
    let log = bed.until_log("tools", "main", "code").await;
    assert!(log.contains("user:x:1000:1000") && log.contains("user:x:1000:\n"), "{log}");
    assert!(log.contains("Read-only file system") && log.contains("code 126"), "{log}");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fills_its_empty_dir_is_evicted() {
    let bed = Bed::new().await;
    let script = format!("cat /proc/kallsyms /proc/kallsyms > /data/big; {FOREVER}");
    let mut spec = main_with(json!({
        "command": ["sh", "-c", script], "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }));
    spec["volumes"] = json!([{"name": "data", "emptyDir": {"sizeLimit": "64Ki"}}]);
    bed.pod("greedy", spec).await;
    let status = bed.until_phase("greedy", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    assert_eq!(status.message.as_deref(), Some("Usage of EmptyDir volume \"data\" exceeds the limit \"64Ki\". "));
    // It is the pod's own fault.
    assert_eq!(condition(&status, "DisruptionTarget"), None);
    bed.until_event("Warning Evicted: Usage of EmptyDir volume").await;
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_another_runtime_does_not_run() {
    let bed = Bed::new().await;
    let classes = client::Resource::new("node.k8s.io", "v1", "runtimeclasses");
    for (name, handler) in [("vm", "kata"), ("usual", "runc")] {
        let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": handler});
        bed.client.create_object(&classes, "", class).await.unwrap();
    }
    for name in ["vm", "usual"] {
        let mut spec = main_with(json!({}));
        spec["runtimeClassName"] = json!(name);
        bed.pod(name, spec).await;
    }
    bed.until_ready("usual").await;
    let why = "Failed to create pod sandbox: failed to get sandbox runtime: no runtime for \"kata\" is configured";
    bed.until_event(&format!("Warning FailedCreatePodSandBox: {why}")).await;
    let status = bed.until_state("vm", "main", "ContainerCreating").await;
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    bed.finish().await;
}
