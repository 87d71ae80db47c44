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
    for event in ["Normal Pulled: Container image", "Normal Created: Container created", "Normal Started: Container started"] {
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
