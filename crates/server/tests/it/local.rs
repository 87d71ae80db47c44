//! The client in process: the same answers, and the store's own objects.

use std::sync::Arc;

use api::object::Change;
use client::{DeleteOptions, PatchType, Resource};
use serde_json::json;
use server::identity::{Authorizer, Decision, User};
use server::path::Attributes;

use crate::cluster::Cluster;

const MAPS: Resource = Resource::new("", "v1", "configmaps");

#[tokio::test]
async fn writes_and_watches() {
    let cluster = Cluster::start().await;
    let client = cluster.server.local(User::loopback("component"));
    let made = client.create_object(&MAPS, "default", json!({"metadata": {"name": "a"}})).await.unwrap();
    let (listing, mut watch) = client.list_watch(MAPS.everywhere()).await.unwrap();
    assert_eq!(listing.revision, made.revision);
    assert!(Arc::ptr_eq(&listing.objects[0], &made), "there is no second copy");

    let patch = json!({"data": {"k": "v"}});
    let patched = client.patch_object(&MAPS, "default", "a", None, PatchType::Merge, patch).await.unwrap();
    let changes = watch.next().await.unwrap();
    assert!(matches!(&changes[..], [Change::Modified { new, .. }] if Arc::ptr_eq(new, &patched)));

    let mut stale = made.value();
    stale["data"] = json!({"k": "w"});
    assert!(client.update_object(&MAPS, stale).await.unwrap_err().is_conflict());
    client.delete_object(&MAPS, "default", "a", DeleteOptions::default()).await.unwrap();
    assert!(client.get_object(&MAPS, "default", "a").await.unwrap_err().is_not_found());
    assert!(matches!(&watch.next().await.unwrap()[..], [Change::Deleted { .. }]));
}

#[tokio::test]
async fn scale_and_binding() {
    let cluster = Cluster::start().await;
    let client = cluster.server.local(User::loopback("component"));
    let pods = Resource::new("", "v1", "pods");
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    client.create_object(&pods, "default", pod).await.unwrap();
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    client.post(&pods, "default", "p", "binding", binding).await.unwrap();
    let bound = client.get_object(&pods, "default", "p").await.unwrap();
    assert_eq!(bound.value()["spec"]["nodeName"], "n");
}

struct Nobody;

impl Authorizer for Nobody {
    fn authorize(&self, user: &User, _: &Attributes) -> Decision {
        if user.name == "tester" { Decision::Allow(String::new()) } else { Decision::NoOpinion("no rule".to_owned()) }
    }
}

#[tokio::test]
async fn the_same_authorization_applies() {
    let cluster = Cluster::with(|config| config.authorizer = Arc::new(Nobody)).await;
    let client = cluster.server.local(User::new("component", &[]));
    let refused = client.get_object(&MAPS, "default", "a").await.unwrap_err();
    let why = "configmaps \"a\" is forbidden: User \"component\" cannot get resource \"configmaps\" in API group \"\" in the namespace \"default\": no rule";
    assert_eq!((refused.code, refused.message.as_str()), (403, why));
    assert_eq!(client.list_objects(MAPS.everywhere()).await.unwrap_err().code, 403);
}
