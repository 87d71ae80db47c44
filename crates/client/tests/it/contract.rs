//! What every transport owes its users.

use std::sync::Arc;
use std::time::Duration;

use api::object::{Change, Object};
use api::status::Reason;
use client::{Client, DeleteOptions, PatchType, Resource, Watch};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

fn maps() -> Resource {
    Resource::of::<ConfigMap>()
}

fn map(name: &str, color: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap",
           "metadata": {"name": name, "namespace": "default", "labels": {"color": color}}, "data": {"n": "1"}})
}

/// Runs the whole contract against an empty namespace `default`.
pub async fn check(client: &Client) {
    reads_what_it_wrote(client).await;
    refuses_what_conflicts(client).await;
    patches_in_three_ways(client).await;
    deletes_only_what_was_meant(client).await;
    lists_at_one_revision(client).await;
    watches_in_order(client).await;
    selects_by_label(client).await;
    answers_with_the_servers_errors(client).await;
}

async fn reads_what_it_wrote(client: &Client) {
    let created = client.create_object(&maps(), "default", map("a", "red")).await.unwrap();
    assert!(created.revision > 0);
    assert_eq!(created.key().as_str(), "/core/configmaps/default/a");
    assert_eq!(created.value()["metadata"]["resourceVersion"], created.revision.to_string());
    let read = client.get_object(&maps(), "default", "a").await.unwrap();
    assert_eq!((read.revision, &read.meta().uid), (created.revision, &created.meta().uid));
    let typed = client.get::<ConfigMap>("default", "a").await.unwrap();
    assert_eq!(typed.data.unwrap()["n"], "1");
}

async fn refuses_what_conflicts(client: &Client) {
    let twice = client.create_object(&maps(), "default", map("a", "red")).await.unwrap_err();
    assert!(twice.is_already_exists(), "{twice}");
    let mut stale = client.get::<ConfigMap>("default", "a").await.unwrap();
    client.patch::<ConfigMap>("default", "a", PatchType::Merge, json!({"data": {"n": "2"}})).await.unwrap();
    stale.data = None;
    let conflict = client.update(&stale).await.unwrap_err();
    assert!(conflict.is_conflict(), "{conflict}");
}

async fn patches_in_three_ways(client: &Client) {
    let patch = async |kind, patch| client.patch::<ConfigMap>("default", "a", kind, patch).await.unwrap().data.unwrap();
    assert_eq!(patch(PatchType::Merge, json!({"data": {"n": "3"}})).await["n"], "3");
    assert_eq!(patch(PatchType::Strategic, json!({"data": {"n": "4"}})).await["n"], "4");
    let json = json!([{"op": "replace", "path": "/data/n", "value": "5"}]);
    assert_eq!(patch(PatchType::Json, json).await["n"], "5");
}

async fn deletes_only_what_was_meant(client: &Client) {
    let other = DeleteOptions { uid: Some("someone-else".to_owned()), ..DeleteOptions::default() };
    let refused = client.delete::<ConfigMap>("default", "a", other).await.unwrap_err();
    assert!(refused.is_conflict(), "{refused}");
    client.delete::<ConfigMap>("default", "a", DeleteOptions::default()).await.unwrap();
    let gone = client.get::<ConfigMap>("default", "a").await.unwrap_err();
    assert!(gone.is_not_found(), "{gone}");
    assert_eq!(gone.message, r#"configmaps "a" not found"#);
}

async fn lists_at_one_revision(client: &Client) {
    let mut last = 0;
    // More than a page.
    for n in 0..520 {
        last = client.create_object(&maps(), "default", map(&format!("many-{n:03}"), "grey")).await.unwrap().revision;
    }
    let listing = client.list_objects(maps().everywhere()).await.unwrap();
    assert_eq!(listing.objects.len(), 520);
    assert!(listing.revision >= last, "a list shows every write before it");
    assert_eq!(listing.objects[0].value()["kind"], "ConfigMap");
    assert!(listing.objects.is_sorted_by_key(|object| object.key().clone()));
    for object in listing.objects {
        client.delete::<ConfigMap>("default", &object.meta().name, DeleteOptions::default()).await.unwrap();
    }
}

/// The next changes, which may arrive in several batches.
async fn next(watch: &mut Box<dyn Watch>, count: usize) -> Vec<String> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let batch = timeout(PATIENCE, watch.next()).await.expect("a change arrives").unwrap();
        seen.extend(batch.iter().map(told));
        if let Some(last) = batch.last() {
            assert!(watch.revision() >= last.revision());
        }
    }
    seen
}

fn told(change: &Change) -> String {
    let n = |object: &Arc<Object>| object.value()["data"]["n"].as_str().unwrap_or_default().to_owned();
    match change {
        Change::Added(new) => format!("added {} {}", new.meta().name, n(new)),
        Change::Modified { old, new } => format!("modified {} {} to {}", new.meta().name, n(old), n(new)),
        Change::Deleted { last, revision } => {
            assert!(*revision >= last.revision, "a deletion is a change of its own");
            format!("deleted {} {}", last.meta().name, n(last))
        }
    }
}

async fn watches_in_order(client: &Client) {
    client.create_object(&maps(), "default", map("before", "red")).await.unwrap();
    let (listing, mut watch) = client.list_watch(maps().everywhere()).await.unwrap();
    assert_eq!(listing.objects.len(), 1);
    assert!(watch.revision() >= listing.revision);
    client.create_object(&maps(), "default", map("b", "red")).await.unwrap();
    for name in ["before", "b"] {
        client.patch::<ConfigMap>("default", name, PatchType::Merge, json!({"data": {"n": "2"}})).await.unwrap();
    }
    client.delete::<ConfigMap>("default", "b", DeleteOptions::default()).await.unwrap();
    let told = next(&mut watch, 4).await;
    assert_eq!(told, ["added b 1", "modified before 1 to 2", "modified b 1 to 2", "deleted b 2"]);
    client.delete::<ConfigMap>("default", "before", DeleteOptions::default()).await.unwrap();
}

async fn selects_by_label(client: &Client) {
    let mut scope = maps().everywhere();
    scope.label_selector = "color=red".to_owned();
    scope.namespace = Some("default".to_owned());
    let (_, mut watch) = client.list_watch(scope).await.unwrap();
    client.create_object(&maps(), "default", map("c", "blue")).await.unwrap();
    for color in ["red", "blue"] {
        let patch = json!({"metadata": {"labels": {"color": color}}});
        client.patch::<ConfigMap>("default", "c", PatchType::Merge, patch).await.unwrap();
    }
    assert_eq!(next(&mut watch, 2).await, ["added c 1", "deleted c 1"], "entering and leaving the selection");
    client.delete::<ConfigMap>("default", "c", DeleteOptions::default()).await.unwrap();
}

async fn answers_with_the_servers_errors(client: &Client) {
    let invalid = client.create_object(&maps(), "default", map("Not A Name", "red")).await.unwrap_err();
    assert_eq!((invalid.code, invalid.reason), (422, Reason::Invalid));
    assert_eq!(invalid.details.unwrap().causes[0].field, "metadata.name");
    let unknown = Resource::new("", "v1", "unicorns");
    let unknown = client.list_watch(unknown.everywhere()).await.err().expect("there are no unicorns");
    assert!(unknown.is_not_found(), "{unknown}");
}
