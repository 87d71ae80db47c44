//! Pods from creation to removal.

use serde_json::json;

use crate::bed::{Bed, states};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_prints_and_goes() {
    let bed = Bed::new().await;
    bed.script("hello", "echo hello from $HOSTNAME; id -u; exec sleep 1000").await;
    let status = bed.until_ready("hello").await;
    assert_eq!(states(&status)["main"], "running");
    assert_eq!(status.pod_ip.as_deref(), Some("10.244.0.9"));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.7"));
    assert_eq!(bed.until_log("hello", "main", "0\n").await, "hello from hello\n0\n");
    for event in
        ["Normal Pulled: Container image", "Normal Created: Container created", "Normal Started: Container started"]
    {
        bed.until_event(event).await;
    }
    bed.delete("hello", 1).await;
    bed.until_gone("hello").await;
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_and_last_words_are_told() {
    let bed = Bed::new().await;
    bed.script("good", "exit 0").await;
    bed.script("bad", "echo -n the end > /dev/termination-log; exit 7").await;
    bed.until_phase("good", "Succeeded").await;
    let status = bed.until_phase("bad", "Failed").await;
    let end = status.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!((end.exit_code, end.reason.as_deref(), end.message.as_deref()), (7, Some("Error"), Some("the end")));
    assert!(end.container_id.unwrap().starts_with("coracle://"));
    let command = json!({"name": "main", "command": ["/nothing/here"]});
    bed.pod("ugly", json!({"containers": [command], "restartPolicy": "Never"})).await;
    let status = bed.until_phase("ugly", "Failed").await;
    let end = status.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!((end.exit_code, end.reason.as_deref()), (128, Some("StartError")));
    assert!(end.message.unwrap().contains("/nothing/here"));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_containers_come_first_and_sidecars_last() {
    let bed = Bed::new().await;
    let sh = |name: &str, script: &str| json!({"name": name, "command": ["sh", "-c", script]});
    let mut side = sh("side", "trap 'exit 0' TERM; while true; do sleep 0.05; done");
    side["restartPolicy"] = json!("Always");
    let write = |text: &str| format!("echo {text} >> /shared/order");
    let mut init = sh("init", &write("init"));
    let mut main = sh("main", &format!("{}; cat /shared/order", write("main")));
    for container in [&mut init, &mut main] {
        container["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
    }
    let spec = json!({
        "initContainers": [init, side], "containers": [main], "restartPolicy": "Never",
        "volumes": [{"name": "shared", "emptyDir": {}}], "terminationGracePeriodSeconds": 5,
    });
    bed.pod("ordered", spec).await;
    let status = bed.until_phase("ordered", "Succeeded").await;
    assert_eq!(bed.until_log("ordered", "main", "main").await, "init\nmain\n");
    let states = states(&status);
    assert_eq!([&states["init"], &states["main"], &states["side"]], ["Completed 0"; 3]);
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_wait_longer_each_time() {
    let bed = Bed::new().await;
    let container = json!({"name": "main", "command": ["sh", "-c", "exit 3"]});
    bed.pod("crash", json!({"containers": [container]})).await;
    let status = bed.until_state("crash", "main", "CrashLoopBackOff").await;
    let container = &status.container_statuses.unwrap()[0];
    assert_eq!(container.restart_count, 1);
    let message = container.state.clone().unwrap().waiting.unwrap().message.unwrap();
    assert!(message.starts_with("back-off 10s restarting failed container=main pod=crash_default("), "{message}");
    assert_eq!(container.last_state.clone().unwrap().terminated.unwrap().exit_code, 3);
    bed.until_event("Warning BackOff: Back-off restarting failed container main in pod crash_default(").await;
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_is_not_granted_ends_the_container() {
    let bed = Bed::new().await;
    let container = json!({
        "name": "main", "command": ["sh", "-c", "x=x; while true; do x=$x$x; done"],
        "resources": {"limits": {"memory": "16Mi", "cpu": "1"}},
    });
    bed.pod("greedy", json!({"containers": [container], "restartPolicy": "Never"})).await;
    let status = bed.until_phase("greedy", "Failed").await;
    assert_eq!(states(&status)["main"], "OOMKilled 137");
    assert_eq!(status.qos_class.as_deref(), Some("Guaranteed"));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_ignores_its_signal_is_killed() {
    let bed = Bed::new().await;
    bed.script("deaf", "trap '' TERM; echo up; while true; do sleep 0.05; done").await;
    bed.until_log("deaf", "main", "up").await;
    bed.until_ready("deaf").await;
    bed.delete("deaf", 1).await;
    let status =
        bed.until("deaf", "the kill", |status| states(status).get("main").is_some_and(|state| state != "running"));
    // The object may be gone before it is read again.
    tokio::select! {
        status = status => assert_eq!(states(&status)["main"], "Error 137"),
        () = bed.until_gone("deaf") => {}
    }
    bed.until_event("Normal Killing: Stopping container main").await;
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_refused() {
    let bed = Bed::new().await;
    let container = json!({"name": "main", "resources": {"requests": {"cpu": "1000"}}});
    bed.pod("huge", json!({"containers": [container]})).await;
    let status = bed.until_phase("huge", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("OutOfcpu"));
    assert!(status.message.unwrap().starts_with(
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, used: 0, capacity: "
    ));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_stands_in_the_api() {
    let bed = Bed::new().await;
    bed.script("probe", "exit 0").await;
    bed.until_phase("probe", "Succeeded").await;
    let node: k8s_openapi::api::core::v1::Node = bed.client.get("", "rack").await.unwrap();
    let status = node.status.unwrap();
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("True", Some("KubeletReady")));
    assert_eq!(node.metadata.labels.unwrap()["kubernetes.io/hostname"], "rack");
    assert_eq!(status.allocatable.unwrap()["pods"].0, "110");
    let lease: k8s_openapi::api::coordination::v1::Lease = bed.client.get("kube-node-lease", "rack").await.unwrap();
    assert_eq!(lease.spec.unwrap().holder_identity.as_deref(), Some("rack"));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_given_later_counts() {
    let bed = Bed::new().await;
    bed.script("first", "exit 0").await;
    bed.until_phase("first", "Succeeded").await;
    let spec = || json!({"containers": [{"name": "main", "command": ["true"]}], "nodeSelector": {"disk": "ssd"}, "restartPolicy": "Never"});
    bed.pod("early", spec()).await;
    let status = bed.until_phase("early", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("NodeAffinity"));
    bed.patch_cluster("nodes", "rack", json!({"metadata": {"labels": {"disk": "ssd"}}})).await;
    bed.pod("late", spec()).await;
    bed.until_phase("late", "Succeeded").await;
    bed.finish().await;
}
