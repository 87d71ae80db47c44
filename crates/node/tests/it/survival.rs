//! Pods outlive the node's process, and the node outlives shims.

use client::DeleteOptions;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::json;

use crate::bed::{Bed, PODS, is_ready, states, wait_for};

fn container(status: &PodStatus) -> (Option<String>, i32) {
    let container = &status.container_statuses.as_ref().unwrap()[0];
    (container.container_id.clone(), container.restart_count)
}

/// Ends with 9 when it is told to.
const WAITS: &str = "while ! test -e /tmp/go; do sleep 0.02; done; echo bye > /dev/termination-log; exit 9";

/// The uid of a pod that is Ready, and the id of its container.
async fn run_of(bed: &Bed, name: &str) -> (String, String) {
    let status = bed.until_ready(name).await;
    let uid = bed.client.get::<Pod>("default", name).await.unwrap().metadata.uid.unwrap();
    (uid, container(&status).0.unwrap().trim_start_matches("coracle://").to_owned())
}

/// Tells a container that [`WAITS`] to end.
async fn end(runtime: &runtime::Runtime, (uid, id): &(String, String)) {
    let plan = runtime::plan::ExecPlan {
        args: vec!["sh".into(), "-c".into(), "echo > /tmp/go".into()],
        stdin: false,
        tty: false,
    };
    let exec = runtime.exec(uid, id, plan).await.unwrap();
    // 137 when the container's end takes it along.
    let code = exec.exit.await.unwrap();
    assert!([0, 137].contains(&code), "{code}");
}

fn last_words(status: &PodStatus) -> Option<String> {
    status.container_statuses.as_ref()?[0].state.as_ref()?.terminated.as_ref()?.message.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_node_shows_nowhere() {
    let mut bed = Bed::new().await;
    let container_spec = json!({
        "name": "main", "command": ["sh", "-c", "touch /tmp/ready; exec sleep 1000"],
        "readinessProbe": {"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1},
    });
    bed.pod("steady", json!({"containers": [container_spec], "terminationGracePeriodSeconds": 1})).await;
    let before = bed.until_ready("steady").await;
    let (_, mut watch) = bed.client.list_watch(PODS.everywhere()).await.unwrap();
    bed.restart_node().await;
    // The new process has taken over when it knows the pod and has started another.
    bed.script("after", "exit 0").await;
    bed.until_phase("after", "Succeeded").await;
    let after = bed.status("steady").await;
    assert_eq!(container(&before), container(&after));
    assert_eq!(before.start_time, after.start_time);
    while let Ok(Ok(changes)) = tokio::time::timeout(std::time::Duration::from_millis(1), watch.next()).await {
        for object in changes.iter().filter_map(|change| change.current()) {
            let pod: Pod = object.decode().unwrap();
            if pod.metadata.name.as_deref() == Some("steady") {
                assert!(is_ready(&pod.status.unwrap()), "readiness flickered");
            }
        }
    }
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exits_while_nobody_watched_are_told() {
    let mut bed = Bed::new().await;
    bed.script("brief", WAITS).await;
    let run = run_of(&bed, "brief").await;
    bed.stop_node().await;
    end(&bed.adopted().await, &run).await;
    bed.restart_node().await;
    let status = bed.until_phase("brief", "Failed").await;
    assert_eq!((states(&status)["main"].as_str(), last_words(&status).as_deref()), ("Error 9", Some("bye\n")));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_changed_while_nobody_watched_is_run() {
    let mut bed = Bed::new().await;
    bed.script("web", "trap 'exit 0' TERM; while true; do sleep 0.05; done").await;
    let before = bed.until_ready("web").await;
    bed.stop_node().await;
    let image = "docker.io/library/busybox:2";
    let patch = json!({"spec": {"containers": [{"name": "main", "image": image}]}});
    bed.client.patch_object(&PODS, "default", "web", None, client::PatchType::Strategic, patch).await.unwrap();
    bed.restart_node().await;
    let status = bed.until("web", "the restart", |status| container(status).1 == 1).await;
    assert_ne!(container(&before).0, container(&status).0);
    assert_eq!(status.container_statuses.unwrap()[0].image, image);
    bed.until_event("Normal Killing: Container main definition changed, will be restarted").await;
    bed.finish().await;
}

/// A disk was full, and main was killed before it was not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_could_not_be_told_is_told_by_the_next() {
    let mut bed = Bed::new().await;
    bed.script("brief", WAITS).await;
    let run = run_of(&bed, "brief").await;
    bed.deaf.0.lock().unwrap().insert("brief".to_owned());
    end(&bed.runtime, &run).await;
    wait_for("the end", async || {
        let known = bed.registry.all();
        known.iter().any(|known| known.status.phase.as_deref() == Some("Failed"))
    })
    .await;
    // A whole life of another pod: if anything of the first were to go, it would have gone.
    bed.script("later", "exit 0").await;
    bed.until_phase("later", "Succeeded").await;
    bed.delete("later", 1).await;
    bed.until_gone("later").await;
    bed.restart_node().await;
    bed.deaf.0.lock().unwrap().clear();
    let status = bed.until_phase("brief", "Failed").await;
    assert_eq!((states(&status)["main"].as_str(), last_words(&status).as_deref()), ("Error 9", Some("bye\n")));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletions_while_nobody_watched_are_done() {
    let mut bed = Bed::new().await;
    bed.script("doomed", "exec sleep 1000").await;
    bed.until_ready("doomed").await;
    bed.stop_node().await;
    // Removed by force: the new process finds a pod that the API does not know.
    bed.delete("doomed", 0).await;
    bed.until_gone("doomed").await;
    bed.restart_node().await;
    bed.finish().await;
}

/// Whatever the next process was doing when the API lost the pod.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletions_while_the_node_starts_are_done() {
    let mut bed = Bed::new().await;
    for millis in [0, 1, 2, 3, 5, 8, 12, 20] {
        let name = format!("doomed-{millis}");
        bed.script(&name, "exec sleep 1000").await;
        bed.until_ready(&name).await;
        bed.stop_node().await;
        let client = bed.client.clone();
        let deleting = tokio::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(millis)).await;
            let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
            client.delete_object(&PODS, "default", &name, options).await.map(drop)
        });
        bed.restart_node().await;
        deleting.await.unwrap().unwrap();
    }
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_shim_restarts_its_pod_alone() {
    let bed = Bed::new().await;
    for name in ["victim", "bystander"] {
        let container = json!({"name": "main", "command": ["sh", "-c", "exec sleep 1000"]});
        bed.pod(name, json!({"containers": [container], "terminationGracePeriodSeconds": 1})).await;
    }
    let (victim, bystander) = (bed.until_ready("victim").await, bed.until_ready("bystander").await);
    let uid = bed.client.get::<Pod>("default", "victim").await.unwrap().metadata.uid.unwrap();
    let shim = bed.shim_of(&uid);
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
    let after =
        bed.until("victim", "another run", |status| is_ready(status) && container(status) != container(&victim)).await;
    assert_eq!(container(&after).1, 1);
    bed.until_event("Normal SandboxChanged: Pod sandbox changed, it will be killed and re-created.").await;
    assert_eq!(container(&bed.status("bystander").await), container(&bystander));
    bed.finish().await;
}

/// The node dies at many points of a pod's start; whatever it left half-made, the next one gets the pod going, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_cut_short_is_finished() {
    let mut bed = Bed::new().await;
    let container_spec = json!({"name": "main", "command": ["sh", "-c", "echo run; exec sleep 1000"]});
    for millis in [0, 2, 4, 6, 8, 10, 13, 16, 20, 25, 30] {
        let name = format!("cut-{millis}");
        bed.pod(&name, json!({"containers": [container_spec], "terminationGracePeriodSeconds": 1})).await;
        // Where in the start this falls differs from run to run, and that is the point.
        tokio::time::sleep(std::time::Duration::from_millis(millis)).await;
        bed.restart_node().await;
        let status = bed.until_ready(&name).await;
        assert_eq!(states(&status)["main"], "running");
        let uid = bed.client.get::<Pod>("default", &name).await.unwrap().metadata.uid.unwrap();
        assert_eq!(bed.processes_of(&uid), 1, "one container runs");
    }
    bed.finish().await;
}
