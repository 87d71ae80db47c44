//! Views that lag: what a controller did must never be done again because it does not see it yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use api::object::{Change, Object};
use api::status::Status;
use client::{BoxFuture, Call, Client, PatchType, Progress, Resource, Scope, Transport, Watch, Watched};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::WEB;
use crate::cluster::{Cluster, from_yaml};

/// A client whose watches report late, each time by another while.
pub fn slow(client: Client) -> Client {
    Client::new(Arc::new(Slow(client)))
}

struct Slow(Client);

impl Transport for Slow {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Arc<Object>, Status>> {
        Box::pin(self.0.call(call))
    }

    fn list_watch(&self, scope: Scope) -> BoxFuture<'_, Result<Watched, Status>> {
        Box::pin(async {
            let (listing, watch) = self.0.list_watch(scope).await?;
            Ok((listing, Box::new(SlowWatch(watch)) as Box<dyn Watch>))
        })
    }
}

struct SlowWatch(Box<dyn Watch>);

impl Watch for SlowWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>, Status>> {
        static TURN: AtomicUsize = AtomicUsize::new(0);
        const DELAYS: [u64; 7] = [0, 40, 3, 0, 90, 1, 15];
        let delay = DELAYS[TURN.fetch_add(1, Ordering::Relaxed) % DELAYS.len()];
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            self.0.next().await
        })
    }

    fn revision(&self) -> u64 {
        self.0.revision()
    }

    fn progress(&self) -> Progress {
        self.0.progress()
    }
}

/// The names of everything of a kind that was ever created.
async fn created(mut watch: Box<dyn Watch>) -> Vec<String> {
    let mut names = Vec::new();
    while let Ok(Ok(changes)) = tokio::time::timeout(Duration::from_millis(500), watch.next()).await {
        let added = changes.iter().filter_map(|change| match change {
            Change::Added(object) => Some(object.meta().name.clone()),
            Change::Modified { .. } | Change::Deleted { .. } => None,
        });
        names.extend(added);
    }
    names
}

#[tokio::test(start_paused = true)]
async fn nothing_is_created_twice_however_late_the_views_are() {
    let cluster = Cluster::start_with(slow).await;
    cluster.add_node("node-1", "64").await;
    let client = &cluster.client;
    let (_, pods) = client.list_watch(Resource::of::<Pod>().everywhere()).await.unwrap();
    let (_, sets) = client.list_watch(Resource::of::<ReplicaSet>().everywhere()).await.unwrap();
    client.create::<Deployment>(&from_yaml(WEB)).await.unwrap();
    cluster.complete("web", 3).await;
    for replicas in [10, 25] {
        let patch = json!({"spec": {"replicas": replicas}});
        client.patch::<Deployment>("default", "web", PatchType::Merge, patch).await.unwrap();
        cluster.complete("web", replicas).await;
    }
    assert_eq!(created(sets).await.len(), 1);
    assert_eq!(created(pods).await.len(), 25);
}

#[tokio::test(start_paused = true)]
async fn no_pod_too_many_is_deleted_however_late_the_views_are() {
    let cluster = Cluster::start_with(slow).await;
    cluster.add_node("node-1", "64").await;
    let client = &cluster.client;
    client.create::<Deployment>(&from_yaml(&WEB.replace("replicas: 3", "replicas: 20"))).await.unwrap();
    cluster.complete("web", 20).await;
    let (_, pods) = client.list_watch(Resource::of::<Pod>().everywhere()).await.unwrap();
    client.patch::<Deployment>("default", "web", PatchType::Merge, json!({"spec": {"replicas": 12}})).await.unwrap();
    cluster.complete("web", 12).await;
    assert_eq!(created(pods).await, Vec::<String>::new(), "no pod had to be replaced");
    assert_eq!(cluster.pod_names().await.len(), 12);
}
