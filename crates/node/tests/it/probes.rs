//! Probes of running containers.

use serde_json::{Value, json};

use crate::bed::{Bed, is_ready, states};

fn probe(command: &str, failures: i32) -> Value {
    json!({"exec": {"command": ["sh", "-c", command]}, "periodSeconds": 1, "failureThreshold": failures, "timeoutSeconds": 5})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_follows_its_probe() {
    let bed = Bed::new().await;
    let script = "sleep 0.3; echo yes > /tmp/ready; while true; do sleep 0.05; done";
    let mut container = json!({"name": "main", "command": ["sh", "-c", script]});
    container["readinessProbe"] = probe("cat /tmp/ready", 1);
    bed.pod("ready", json!({"containers": [container], "terminationGracePeriodSeconds": 1})).await;
    let status = bed.until_phase("ready", "Running").await;
    assert!(!is_ready(&status), "no probe has succeeded yet");
    bed.until_event("Warning Unhealthy: Readiness probe failed: cat: can't open '/tmp/ready'").await;
    bed.until_ready("ready").await;
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_ready_as_soon_as_it_can_be() {
    let bed = Bed::new().await;
    let script = "sleep 0.3; echo yes > /tmp/ready; while true; do sleep 0.05; done";
    let mut container = json!({"name": "main", "command": ["sh", "-c", script]});
    container["readinessProbe"] = probe("cat /tmp/ready", 1);
    // The next one in turn would come too late for this test.
    container["readinessProbe"]["periodSeconds"] = json!(300);
    bed.pod("eager", json!({"containers": [container], "terminationGracePeriodSeconds": 1})).await;
    bed.until_ready("eager").await;
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_container_is_restarted() {
    let bed = Bed::new().await;
    let mut container =
        json!({"name": "main", "command": ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.05; done"]});
    container["startupProbe"] = probe("true", 1);
    container["livenessProbe"] = probe("echo sick; exit 1", 1);
    bed.pod("sick", json!({"containers": [container], "terminationGracePeriodSeconds": 3})).await;
    bed.until("sick", "a restart", |status| {
        status.container_statuses.iter().flatten().any(|container| container.restart_count == 1)
    })
    .await;
    bed.until_event("Warning Unhealthy: Liveness probe failed: sick").await;
    bed.until_event("Normal Killing: Container main failed liveness probe, will be restarted").await;
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_run_around_the_container() {
    let bed = Bed::new().await;
    let hook = |script: &str| json!({"exec": {"command": ["sh", "-c", script]}});
    let container = json!({
        "name": "main", "command": ["sh", "-c", "while ! test -e /tmp/stop; do sleep 0.02; done; cat /tmp/start; exec sleep 1000"],
        "lifecycle": {"postStart": hook("echo started > /tmp/start"), "preStop": hook("touch /tmp/stop; sleep 0.5")},
    });
    bed.pod("hooked", json!({"containers": [container], "terminationGracePeriodSeconds": 5})).await;
    let status = bed.until_ready("hooked").await;
    assert_eq!(states(&status)["main"], "running");
    let log = bed.until_log("hooked", "main", "started");
    bed.delete("hooked", 5).await;
    log.await;
    bed.until_gone("hooked").await;
    bed.finish().await;
}
