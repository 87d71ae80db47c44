//! A pod that fits nowhere has less important ones evicted.

use client::PatchType;
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde_json::json;

use crate::cluster::{Cluster, from_yaml};

fn pod(name: &str, class: &str, more: &str) -> Pod {
    from_yaml(&format!(
        "{{metadata: {{name: {name}, namespace: default, {more}}}, spec: {{priorityClassName: {class}, \
         containers: [{{name: c, image: i, resources: {{requests: {{cpu: '1'}}}}}}]}}}}"
    ))
}

#[tokio::test(start_paused = true)]
async fn an_important_pod_takes_the_place_of_a_less_important_one() {
    let cluster = Cluster::start().await;
    cluster.add_node("node-1", "1").await;
    let client = &cluster.client;
    for (name, value) in [("low", 1), ("high", 1000)] {
        let class = format!("{{metadata: {{name: {name}}}, value: {value}}}");
        client.create::<PriorityClass>(&from_yaml(&class)).await.unwrap();
    }
    client.create::<Pod>(&pod("victim", "low", "finalizers: [example.com/look]")).await.unwrap();
    let get = async |name: &str| client.get::<Pod>("default", name).await.ok();
    let node_of = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    cluster.until("the first pod to be bound", async || get("victim").await.as_ref().and_then(node_of)).await;

    client.create::<Pod>(&pod("preemptor", "high", "")).await.unwrap();
    let victim = cluster
        .until("the victim to go", async || get("victim").await.filter(|pod| pod.metadata.deletion_timestamp.is_some()))
        .await;
    let conditions = victim.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let told = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget").expect("it is told why");
    assert_eq!((told.status.as_str(), told.reason.as_deref()), ("True", Some("PreemptionByScheduler")));
    let nominated = async || get("preemptor").await?.status?.nominated_node_name;
    assert_eq!(cluster.until("the nomination", nominated).await, "node-1");

    let release = json!({"metadata": {"finalizers": null}});
    client.patch::<Pod>("default", "victim", PatchType::Merge, release).await.unwrap();
    let bound = cluster
        .until("the pod to take the place", async || get("preemptor").await.filter(|pod| node_of(pod).is_some()));
    let bound = bound.await;
    assert_eq!(bound.status.as_ref().and_then(|status| status.nominated_node_name.clone()), None);
    let message = format!("Preempted by pod {} on node node-1", bound.metadata.uid.as_deref().unwrap_or_default());
    cluster
        .until("the event", async || {
            let events = client.list::<Event>("default", "").await.unwrap();
            events.into_iter().find(|event| event.message.as_deref() == Some(&message))
        })
        .await;
}
