//! Views, subscriptions and waits, over a client of any transport.

use std::time::Duration;

use api::object::Object;
use client::informer::{Informers, subscribe};
use client::{Client, DeleteOptions, PatchType, Resource};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

fn by_color(object: &Object) -> Vec<String> {
    object.meta().labels.get("color").cloned().into_iter().collect()
}

fn object(kind: &str, name: &str, color: &str, owner: &str) -> Value {
    json!({"apiVersion": "v1", "kind": kind, "metadata": {
        "name": name, "namespace": "default", "labels": {"color": color},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Namespace", "name": "default", "uid": owner}],
    }})
}

pub async fn check(client: &Client) {
    let maps = Resource::of::<ConfigMap>();
    let cancel = CancellationToken::new();
    client.create_object(&maps, "default", object("ConfigMap", "a", "red", "u-1")).await.unwrap();
    let mut informers = Informers::new(&cancel);
    let informer = informers.start(client, maps.everywhere(), &[by_color]);
    let view = timeout(PATIENCE, informer.synced()).await.unwrap().unwrap();
    assert_eq!((view.len(), view.named("default", "a").is_some()), (1, true));

    let written = client.create_object(&maps, "default", object("ConfigMap", "b", "blue", "u-1")).await.unwrap();
    let view = timeout(PATIENCE, informer.wait_for(written.revision)).await.unwrap().unwrap();
    let names = |objects: Vec<&std::sync::Arc<Object>>| {
        objects.iter().map(|object| object.meta().name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(view.owned_by("u-1").collect()), ["a", "b"]);
    assert_eq!(names(view.indexed(0, "blue").collect()), ["b"]);
    assert_eq!(names(view.in_namespace("default").collect()), ["a", "b"]);
    assert_eq!(names(view.in_namespace("other").collect()), Vec::<String>::new());

    let repaint = json!({"metadata": {"labels": {"color": "red"}}});
    client.patch::<ConfigMap>("default", "b", PatchType::Merge, repaint).await.unwrap();
    let red = |view: &client::informer::View| view.indexed(0, "red").count() == 2;
    let view = timeout(PATIENCE, informer.wait_until(red)).await.unwrap().unwrap();
    assert_eq!(view.indexed(0, "blue").count(), 0, "an index follows its objects");

    let secrets = informers.start(client, Resource::of::<Secret>().everywhere(), &[]);
    timeout(PATIENCE, secrets.synced()).await.unwrap().unwrap();
    let mut changes = subscribe([&informer, &secrets]);
    let initial = timeout(PATIENCE, changes.next()).await.unwrap();
    assert!(initial.iter().all(|delta| delta.old.is_none()));
    assert_eq!(initial.len(), 2, "a subscription begins with what there is");

    client.delete::<ConfigMap>("default", "a", DeleteOptions::default()).await.unwrap();
    client.create_object(&Resource::of::<Secret>(), "default", object("Secret", "s", "red", "u-2")).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        for delta in timeout(PATIENCE, changes.next()).await.unwrap() {
            seen.push((delta.key.name().to_owned(), delta.old.is_some(), delta.new.is_some()));
        }
    }
    seen.sort();
    assert_eq!(seen, [("a".to_owned(), true, false), ("s".to_owned(), false, true)]);

    timeout(PATIENCE, informers.stop()).await.unwrap();
    assert!(informer.wait_for(u64::MAX).await.is_err(), "a view that stands still says so");
}
