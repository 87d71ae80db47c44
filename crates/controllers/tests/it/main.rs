//! The control loops and the scheduler against a server in process, with a kubelet that only pretends.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod cluster;
mod preemption;
mod silence;
mod slow;

use std::time::Duration;

use client::{DeleteOptions, PatchType, Propagation};
use cluster::{Cluster, from_yaml};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Event, Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::ClusterRole;
use serde_json::json;

const WEB: &str = "
metadata: {name: web, namespace: default}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: one, resources: {requests: {cpu: 100m}}}]}
";

#[tokio::test(start_paused = true)]
async fn a_deployment_rolls_out_and_its_service_has_endpoints() {
    let cluster = Cluster::start().await;
    cluster.add_node("node-1", "4").await;
    let client = &cluster.client;
    let service = "
metadata: {name: web, namespace: default}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";
    client.create::<Service>(&from_yaml(service)).await.unwrap();
    client.create::<Deployment>(&from_yaml(WEB)).await.unwrap();
    cluster.complete("web", 3).await;

    let pods = client.list::<Pod>("default", "app=web").await.unwrap();
    assert_eq!(pods.len(), 3, "no pod was created twice");
    let slices = cluster
        .until("three ready endpoints", async || {
            let slices = client.list::<EndpointSlice>("default", "kubernetes.io/service-name=web").await.unwrap();
            let endpoints: Vec<_> = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten()).collect();
            let ready = endpoints
                .iter()
                .filter(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true));
            (ready.count() == 3).then_some(slices.clone())
        })
        .await;
    let ports: Vec<_> = slices.iter().flat_map(|slice| slice.ports.iter().flatten()).map(|port| port.port).collect();
    assert_eq!(ports, [Some(8080)], "one slice with ports, and a placeholder for the other family");
    cluster
        .until("Endpoints too", async || {
            let endpoints = client.get::<Endpoints>("default", "web").await.ok()?;
            (endpoints.subsets?.first()?.addresses.as_ref()?.len() == 3).then_some(())
        })
        .await;
    cluster
        .until("events that tell it", async || {
            let events = client.list::<Event>("default", "").await.unwrap();
            let said = |reason: &str| events.iter().any(|event| event.reason.as_deref() == Some(reason));
            (said("ScalingReplicaSet") && said("SuccessfulCreate") && said("Scheduled")).then_some(())
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_new_template_replaces_the_old_pods_and_undo_brings_them_back() {
    let cluster = Cluster::start().await;
    cluster.add_node("node-1", "4").await;
    let client = &cluster.client;
    client.create::<Deployment>(&from_yaml(WEB)).await.unwrap();
    cluster.complete("web", 3).await;
    for (image, revision) in [("two", "2"), ("one", "3")] {
        let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
        client.patch::<Deployment>("default", "web", PatchType::Strategic, patch).await.unwrap();
        let done = cluster.complete("web", 3).await;
        let annotations = done.metadata.annotations.unwrap_or_default();
        assert_eq!(annotations.get("deployment.kubernetes.io/revision").map(String::as_str), Some(revision));
        cluster
            .until("only new pods", async || {
                let pods = client.list::<Pod>("default", "app=web").await.unwrap();
                let images = pods.iter().map(|pod| pod.spec.as_ref().unwrap().containers[0].image.as_deref());
                (images.clone().count() == 3 && images.into_iter().all(|found| found == Some(image))).then_some(())
            })
            .await;
    }
    assert_eq!(client.list::<ReplicaSet>("default", "").await.unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn deleting_a_deployment_takes_everything_with_it() {
    for propagation in [Propagation::Background, Propagation::Foreground] {
        let cluster = Cluster::start().await;
        cluster.add_node("node-1", "4").await;
        let client = &cluster.client;
        client.create::<Deployment>(&from_yaml(WEB)).await.unwrap();
        cluster.complete("web", 3).await;
        let options = DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() };
        client.delete::<Deployment>("default", "web", options).await.unwrap();
        cluster
            .until("nothing left", async || {
                let deployments = client.list::<Deployment>("default", "").await.unwrap().len();
                let sets = client.list::<ReplicaSet>("default", "").await.unwrap().len();
                let pods = client.list::<Pod>("default", "").await.unwrap().len();
                (deployments + sets + pods == 0).then_some(())
            })
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn orphaned_pods_stay_and_are_adopted_again() {
    let cluster = Cluster::start().await;
    cluster.add_node("node-1", "4").await;
    let client = &cluster.client;
    client.create::<Deployment>(&from_yaml(WEB)).await.unwrap();
    cluster.complete("web", 3).await;
    let orphan = || DeleteOptions { propagation: Some(Propagation::Orphan), ..DeleteOptions::default() };
    client.delete::<Deployment>("default", "web", orphan()).await.unwrap();
    cluster
        .until("a free ReplicaSet", async || {
            let sets = client.list::<ReplicaSet>("default", "").await.unwrap();
            let free = sets.len() == 1 && sets[0].metadata.owner_references.is_none();
            let gone = client.get::<Deployment>("default", "web").await.is_err();
            (free && gone).then_some(())
        })
        .await;
    let before: Vec<_> = cluster.pod_names().await;
    client.create::<Deployment>(&from_yaml(WEB)).await.unwrap();
    cluster.complete("web", 3).await;
    assert_eq!(cluster.pod_names().await, before);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_fits_nowhere_says_so_and_runs_once_there_is_room() {
    let cluster = Cluster::start().await;
    cluster.add_node("node-1", "1").await;
    let client = &cluster.client;
    let pod = "
metadata: {name: big, namespace: default}
spec: {containers: [{name: c, image: one, resources: {requests: {cpu: '2'}}}]}
";
    client.create::<Pod>(&from_yaml(pod)).await.unwrap();
    let message = cluster
        .until("a condition", async || {
            let pod = client.get::<Pod>("default", "big").await.unwrap();
            let conditions = pod.status?.conditions?;
            let scheduled = conditions.into_iter().find(|condition| condition.type_ == "PodScheduled")?;
            (scheduled.reason.as_deref() == Some("Unschedulable")).then_some(scheduled.message)
        })
        .await;
    assert_eq!(
        message.as_deref(),
        Some(
            "0/1 nodes are available: 1 Insufficient cpu. \
             preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        )
    );
    cluster.add_node("node-2", "4").await;
    cluster
        .until("a node", async || {
            let pod = client.get::<Pod>("default", "big").await.unwrap();
            (pod.spec?.node_name.as_deref() == Some("node-2")).then_some(())
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_gets_its_account_and_certificate_and_is_emptied_when_deleted() {
    let cluster = Cluster::start().await;
    cluster.add_node("node-1", "4").await;
    let client = &cluster.client;
    client.create::<Namespace>(&from_yaml("{metadata: {name: shop}}")).await.unwrap();
    cluster
        .until("the account and the certificate", async || {
            client.get::<ServiceAccount>("shop", "default").await.ok()?;
            let published = client.get::<ConfigMap>("shop", "kube-root-ca.crt").await.ok()?;
            assert_eq!(published.data?.get("ca.crt").map(String::as_str), Some("PEM"));
            Some(())
        })
        .await;
    client.create::<Deployment>(&from_yaml(&WEB.replace("default", "shop"))).await.unwrap();
    cluster.until("pods", async || (client.list::<Pod>("shop", "").await.unwrap().len() == 3).then_some(())).await;
    client.delete::<Namespace>("", "shop", DeleteOptions::default()).await.unwrap();
    cluster.until("no namespace", async || client.get::<Namespace>("", "shop").await.is_err().then_some(())).await;
    assert_eq!(client.list::<Pod>("shop", "").await.unwrap().len(), 0);
    assert_eq!(client.list::<ConfigMap>("shop", "").await.unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_renewed_certificate_is_published_everywhere() {
    let cluster = Cluster::start().await;
    let published = async |namespace: &str| {
        let map = cluster.client.get::<ConfigMap>(namespace, "kube-root-ca.crt").await.ok()?;
        map.data?.get("ca.crt").cloned()
    };
    for pem in ["PEM", "renewed", "renewed again"] {
        cluster.root_ca.send_replace(pem.to_owned());
        for namespace in server::bootstrap::NAMESPACES {
            cluster
                .until("the certificate", async || (published(namespace).await.as_deref() == Some(pem)).then_some(()))
                .await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_server_refuses_is_told_and_tried_again() {
    let cluster = Cluster::start().await;
    cluster.add_node("node-1", "4").await;
    let client = &cluster.client;
    let web = WEB.replace("    spec: {containers:", "    spec: {serviceAccountName: robot, containers:");
    client.create::<Deployment>(&from_yaml(&web)).await.unwrap();
    let message = cluster
        .until("the failure", async || {
            let deployment = client.get::<Deployment>("default", "web").await.unwrap();
            let conditions = deployment.status?.conditions?;
            let failure =
                conditions.into_iter().find(|condition| condition.type_.as_deref() == Some("ReplicaFailure"))?;
            assert_eq!(failure.reason.as_deref(), Some("FailedCreate"));
            failure.message
        })
        .await;
    assert!(message.contains(r#"serviceaccount "robot" not found"#), "{message}");
    let said = cluster
        .until("an event", async || {
            let events = client.list::<Event>("default", "").await.unwrap();
            events.into_iter().find(|event| event.reason.as_deref() == Some("FailedCreate"))?.message
        })
        .await;
    assert!(said.starts_with("Error creating: pods \"web-"), "{said}");
    client.create::<ServiceAccount>(&from_yaml("{metadata: {name: robot, namespace: default}}")).await.unwrap();
    let done = cluster.complete("web", 3).await;
    let conditions = done.status.unwrap().conditions.unwrap();
    assert!(conditions.iter().all(|condition| condition.type_.as_deref() != Some("ReplicaFailure")), "{conditions:?}");
}

#[tokio::test(start_paused = true)]
async fn scaling_up_and_down_ends_at_the_number_asked_for() {
    let cluster = Cluster::start().await;
    cluster.add_node("node-1", "64").await;
    let client = &cluster.client;
    client.create::<Deployment>(&from_yaml(WEB)).await.unwrap();
    for replicas in [40, 2, 0, 5] {
        let patch = json!({"spec": {"replicas": replicas}});
        client.patch::<Deployment>("default", "web", PatchType::Merge, patch).await.unwrap();
        cluster.complete("web", replicas).await;
        cluster
            .until("that many pods", async || {
                (cluster.pod_names().await.len() == usize::try_from(replicas).unwrap()).then_some(())
            })
            .await;
    }
}

/// How long a test waits for a condition. In most tests time stands still while anything has to be done.
const PATIENCE: Duration = Duration::from_secs(1000);

#[tokio::test(start_paused = true)]
async fn endpoints_written_by_hand_are_mirrored_and_followed() {
    let cluster = Cluster::start().await;
    let client = &cluster.client;
    client
        .create::<Service>(&from_yaml("{metadata: {name: db, namespace: default}, spec: {ports: [{port: 80}]}}"))
        .await
        .unwrap();
    let mut endpoints: Endpoints = from_yaml(
        "{metadata: {name: db, namespace: default}, subsets: [{addresses: [{ip: 10.1.2.3}], ports: [{port: 80}]}]}",
    );
    client.create::<Endpoints>(&endpoints).await.unwrap();
    let mirrored = async |wanted: &[&str]| {
        cluster
            .until("the slices", async || {
                let slices = client.list::<EndpointSlice>("default", "kubernetes.io/service-name=db").await.unwrap();
                let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
                let addresses: Vec<String> = endpoints.flat_map(|endpoint| endpoint.addresses.clone()).collect();
                (addresses == wanted && slices.len() == wanted.len()).then_some(())
            })
            .await;
    };
    mirrored(&["10.1.2.3"]).await;
    endpoints.subsets.as_mut().unwrap()[0].addresses.as_mut().unwrap()[0].ip = "10.2.3.4".to_owned();
    client.update::<Endpoints>(&endpoints).await.unwrap();
    mirrored(&["10.2.3.4"]).await;
    client.delete::<Endpoints>("default", "db", DeleteOptions::default()).await.unwrap();
    mirrored(&[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_role_gathers_the_rules_of_those_that_it_selects() {
    let cluster = Cluster::start().await;
    let client = &cluster.client;
    let all = "{metadata: {name: all}, aggregationRule: {clusterRoleSelectors: [{matchLabels: {to: all}}]}}";
    client.create::<ClusterRole>(&from_yaml(all)).await.unwrap();
    let part =
        "{metadata: {name: part, labels: {to: all}}, rules: [{apiGroups: [''], resources: [pods], verbs: [get]}]}";
    client.create::<ClusterRole>(&from_yaml(part)).await.unwrap();
    let rules = async |count: usize| {
        cluster
            .until("the rules", async || {
                let role = client.get::<ClusterRole>("", "all").await.unwrap();
                (role.rules.map_or(0, |rules| rules.len()) == count).then_some(())
            })
            .await;
    };
    rules(1).await;
    client.delete::<ClusterRole>("", "part", DeleteOptions::default()).await.unwrap();
    rules(0).await;
}
