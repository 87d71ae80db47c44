//! Nodes that fall silent, in a time that runs as fast as it can.

use std::time::Duration;

use client::PatchType;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde_json::json;
use tokio::time::Instant;

use crate::WEB;
use crate::cluster::{Cluster, from_yaml};

/// Renews a node's lease every ten seconds until the task is dropped.
async fn beat(cluster: &Cluster, name: &str) {
    let mut lease: Lease =
        from_yaml(&format!("{{metadata: {{name: {name}, namespace: kube-node-lease}}, spec: {{}}}}"));
    cluster.client.create(&lease).await.unwrap();
    loop {
        lease.spec.get_or_insert_default().renew_time = Some(MicroTime((cluster.clock)()));
        let patch = json!({"spec": {"renewTime": lease.spec.as_ref().unwrap().renew_time}});
        cluster.client.patch::<Lease>("kube-node-lease", name, PatchType::Merge, patch).await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}

async fn ready(cluster: &Cluster, name: &str) -> String {
    let node = cluster.client.get::<Node>("", name).await.unwrap();
    let conditions = node.status.unwrap().conditions.unwrap_or_default();
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready").unwrap();
    format!("{} {}", ready.status, ready.message.unwrap_or_default()).trim_end().to_owned()
}

async fn nodes_of_pods(cluster: &Cluster) -> Vec<String> {
    let pods = cluster.client.list::<Pod>("default", "").await.unwrap();
    let mut names: Vec<String> = pods.into_iter().filter_map(|pod| pod.spec?.node_name).collect();
    names.sort();
    names.dedup();
    names
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_silent_node_move_after_five_minutes() {
    let cluster = Cluster::start().await;
    cluster.add_node("loud", "4").await;
    cluster.add_node("silent", "4").await;
    let test = async {
        cluster.client.create::<Deployment>(&from_yaml(WEB)).await.unwrap();
        cluster.complete("web", 3).await;
        let start = Instant::now();
        cluster
            .until("an unknown node", async || {
                (ready(&cluster, "silent").await == "Unknown Kubelet stopped posting node status.").then_some(())
            })
            .await;
        assert!((49..=53).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        assert_eq!(ready(&cluster, "loud").await, "True");
        assert_eq!(nodes_of_pods(&cluster).await, ["loud", "silent"]);
        cluster.until("the pods to move", async || (nodes_of_pods(&cluster).await == ["loud"]).then_some(())).await;
        assert!((340..=370).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        cluster.complete("web", 3).await;
    };
    tokio::select! {
        () = test => {}
        () = beat(&cluster, "loud") => unreachable!("hearts beat for ever"),
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_moves_while_no_node_is_heard() {
    let cluster = Cluster::start().await;
    cluster.add_node("alone", "4").await;
    cluster.client.create::<Deployment>(&from_yaml(WEB)).await.unwrap();
    cluster.complete("web", 3).await;
    let before = cluster.pod_names().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(ready(&cluster, "alone").await, "Unknown Kubelet stopped posting node status.");
    assert_eq!(cluster.pod_names().await, before);
    let node = cluster.client.get::<Node>("", "alone").await.unwrap();
    let taints = node.spec.unwrap().taints.unwrap_or_default();
    assert!(taints.iter().all(|taint| taint.effect == "NoSchedule"), "{taints:?}");
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_deleted_node_are_replaced() {
    let cluster = Cluster::start().await;
    cluster.add_node("stays", "4").await;
    cluster.add_node("goes", "4").await;
    cluster.client.create::<Deployment>(&from_yaml(WEB)).await.unwrap();
    cluster.complete("web", 3).await;
    cluster.client.delete::<Node>("", "goes", client::DeleteOptions::default()).await.unwrap();
    cluster.until("pods on the other node", async || (nodes_of_pods(&cluster).await == ["stays"]).then_some(())).await;
    cluster.complete("web", 3).await;
}
