//! Deletion: at once, gracefully, behind finalizers, in collections.

use serde_json::{Value, json};

use crate::cluster::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

async fn map(cluster: &Cluster, name: &str, metadata: Value) -> Value {
    let mut object = json!({"metadata": metadata});
    object["metadata"]["name"] = name.into();
    let made = cluster.post(MAPS, &object).await;
    assert_eq!(made.code, 201, "{}", made.message());
    made.value()
}

async fn scheduled_pod(cluster: &Cluster, name: &str) {
    let pod =
        json!({"metadata": {"name": name}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    let made = cluster.post(PODS, &pod).await;
    assert_eq!(made.code, 201, "{}", made.message());
}

#[tokio::test]
async fn what_is_deleted_at_once_is_named() {
    let cluster = Cluster::start().await;
    let made = map(&cluster, "a", json!({})).await;
    let gone = cluster.delete(&format!("{MAPS}/a"), &json!({})).await.value();
    let details = json!({"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]});
    assert_eq!((&gone["status"], &gone["details"]), (&json!("Success"), &details));
    assert_eq!(cluster.get(&format!("{MAPS}/a")).await.code, 404);
    assert_eq!(cluster.delete(&format!("{MAPS}/a"), &json!({})).await.code, 404);
}

#[tokio::test]
async fn preconditions_hold_or_conflict() {
    let cluster = Cluster::start().await;
    let made = map(&cluster, "a", json!({})).await;
    let path = format!("{MAPS}/a");
    assert_eq!(cluster.delete(&path, &json!({"preconditions": {"uid": "other"}})).await.code, 409);
    assert_eq!(cluster.delete(&path, &json!({"preconditions": {"resourceVersion": "1"}})).await.code, 409);
    let right = json!({"uid": made["metadata"]["uid"], "resourceVersion": made["metadata"]["resourceVersion"]});
    assert_eq!(cluster.delete(&path, &json!({"preconditions": right})).await.code, 200);
}

#[tokio::test]
async fn finalizers_keep_an_object_until_the_last_is_gone() {
    let cluster = Cluster::start().await;
    map(&cluster, "a", json!({"finalizers": ["example.com/wait"]})).await;
    let path = format!("{MAPS}/a");
    let pending = cluster.delete(&path, &json!({})).await.value();
    assert!(pending["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(pending["metadata"]["deletionGracePeriodSeconds"], 0);

    let more = json!({"metadata": {"finalizers": ["example.com/wait", "example.com/more"]}});
    assert_eq!(cluster.patch(&path, "merge", &more).await.code, 422);
    let again = cluster.post(MAPS, &json!({"metadata": {"name": "a"}})).await;
    assert_eq!(again.message(), "object is being deleted: configmaps \"a\" already exists");

    let last = cluster.patch(&path, "merge", &json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(last.code, 200);
    assert_eq!(cluster.get(&path).await.code, 404);
}

#[tokio::test]
async fn policies_become_finalizers() {
    let cluster = Cluster::start().await;
    for (name, policy, finalizer) in [("a", "Foreground", "foregroundDeletion"), ("b", "Orphan", "orphan")] {
        map(&cluster, name, json!({})).await;
        let pending = cluster.delete(&format!("{MAPS}/{name}"), &json!({"propagationPolicy": policy})).await.value();
        assert_eq!(pending["metadata"]["finalizers"], json!([finalizer]));
    }
    map(&cluster, "c", json!({})).await;
    assert_eq!(cluster.delete(&format!("{MAPS}/c?propagationPolicy=Background"), &json!({})).await.code, 200);
    assert_eq!(cluster.get(&format!("{MAPS}/c")).await.code, 404);
    assert_eq!(cluster.delete(&format!("{MAPS}/a"), &json!({"propagationPolicy": "Sideways"})).await.code, 422);
}

#[tokio::test]
async fn pods_get_their_grace() {
    let cluster = Cluster::start().await;
    scheduled_pod(&cluster, "a").await;
    let path = format!("{PODS}/a");
    let first = cluster.delete(&path, &json!({})).await.value();
    assert_eq!(first["metadata"]["deletionGracePeriodSeconds"], 30);
    let longer = cluster.delete(&path, &json!({"gracePeriodSeconds": 60})).await.value();
    assert_eq!(longer, first, "the period can only be shortened");
    let shorter = cluster.delete(&path, &json!({"gracePeriodSeconds": 5})).await.value();
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    assert!(shorter["metadata"]["deletionTimestamp"].as_str() < first["metadata"]["deletionTimestamp"].as_str());
    let gone = cluster.delete(&path, &json!({"gracePeriodSeconds": 0})).await;
    assert_eq!((gone.code, &gone.value()["kind"]), (200, &json!("Pod")));
    assert_eq!(cluster.get(&path).await.code, 404);
}

#[tokio::test]
async fn a_pod_on_no_node_is_gone_at_once() {
    let cluster = Cluster::start().await;
    let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    cluster.post(PODS, &pod).await;
    let gone = cluster.delete(&format!("{PODS}/a"), &json!({})).await;
    assert_eq!(gone.code, 200);
    let metadata = gone.value()["metadata"].clone();
    assert!(metadata["deletionTimestamp"].is_string());
    assert_eq!([&metadata["deletionGracePeriodSeconds"], &metadata["generation"]], [&json!(0), &json!(2)]);
    assert_eq!(cluster.get(&format!("{PODS}/a")).await.code, 404);
}

#[tokio::test]
async fn collections() {
    let cluster = Cluster::start().await;
    map(&cluster, "a", json!({"labels": {"x": "y"}})).await;
    map(&cluster, "b", json!({})).await;
    let gone = cluster.delete(&format!("{MAPS}?labelSelector=x"), &json!({})).await.value();
    assert_eq!((&gone["kind"], gone["items"].as_array().unwrap().len()), (&json!("ConfigMapList"), 1));
    let left = cluster.get(MAPS).await.value();
    assert_eq!(left["items"][0]["metadata"]["name"], "b");
}

#[tokio::test]
async fn namespaces_wait_for_their_contents() {
    let cluster = Cluster::start().await;
    let path = "/api/v1/namespaces/default";
    let pending = cluster.delete(path, &json!({})).await.value();
    assert_eq!(pending["status"]["phase"], "Terminating");
    assert_eq!(pending["spec"]["finalizers"], json!(["kubernetes"]));
    let mut done = pending.clone();
    done["spec"]["finalizers"] = json!([]);
    let finalized = cluster.put(&format!("{path}/finalize"), &done).await;
    assert_eq!(finalized.code, 200, "{}", finalized.message());
    assert_eq!(cluster.get(path).await.code, 404);
}

#[tokio::test]
async fn finalizers_of_namespaces_are_checked() {
    let cluster = Cluster::start().await;
    let mut namespace = cluster.get("/api/v1/namespaces/default").await.value();
    namespace["spec"]["finalizers"] = json!(["kubernetes", "mine", "example.com/a b"]);
    let refused = cluster.put("/api/v1/namespaces/default/finalize", &namespace).await;
    let causes = refused.value()["details"]["causes"].clone();
    let fields: Vec<&str> = causes.as_array().unwrap().iter().map(|cause| cause["field"].as_str().unwrap()).collect();
    assert_eq!((refused.code, fields), (422, vec!["spec.finalizers[1]", "spec.finalizers[2]"]));
    let message = "name is neither a standard finalizer name nor is it fully qualified";
    assert!(refused.message().contains(message), "{}", refused.message());
    namespace["spec"]["finalizers"] = json!(["kubernetes", "example.com/a"]);
    assert_eq!(cluster.put("/api/v1/namespaces/default/finalize", &namespace).await.code, 200);
}

#[tokio::test]
async fn pod_templates_live_from_creation_to_deletion() {
    let cluster = Cluster::start().await;
    let templates = "/api/v1/namespaces/default/podtemplates";
    let template =
        json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "a:1"}]}});
    let made = cluster.post(templates, &json!({"metadata": {"name": "t"}, "template": template})).await;
    assert_eq!(made.code, 201, "{}", made.message());
    assert_eq!(made.value()["metadata"]["generation"], 1);
    assert_eq!(made.value()["template"]["spec"]["dnsPolicy"], "ClusterFirst");
    let patch = json!({"template": {"spec": {"containers": [{"name": "c", "image": "a:2"}]}}});
    let patched = cluster.patch(&format!("{templates}/t"), "strategic-merge", &patch).await.value();
    assert_eq!(patched["metadata"]["generation"], 2);
    let bad = json!({"metadata": {"name": "u"}, "template": {"spec": {"containers": [{"name": "c_", "image": "a"}]}}});
    let refused = cluster.post(templates, &bad).await;
    assert!(
        refused.code == 422 && refused.message().contains("template.spec.containers[0].name"),
        "{}",
        refused.message()
    );
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = cluster.ask("GET", templates, &accept, "").await.value();
    assert_eq!(table["rows"][0]["cells"], json!(["t", "c", "a:2", "app=a"]));
    assert_eq!(cluster.delete(&format!("{templates}/t"), &json!({})).await.code, 200);
}
