//! The client's contract: the same answers in process and over TLS.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::object::Change;
use api::status::Status;
use client::{Client, DeleteOptions, PatchType, Resource, Scope};
use serde_json::json;
use server::identity::{Authenticator, Authorizer, BoxFuture, Decision, PeerCertificates, User};
use server::path::Attributes;

use crate::cluster::Cluster;

const MAPS: Resource = Resource::new("", "v1", "configmaps");
const PODS: Resource = Resource::new("", "v1", "pods");
const DEPLOYMENTS: Resource = Resource::new("apps", "v1", "deployments");

/// Both ways to the same server.
async fn clients(cluster: &Cluster) -> [Client; 2] {
    [cluster.server.local(User::loopback("component")), cluster.tls("component").await]
}

fn map(name: &str) -> serde_json::Value {
    json!({"metadata": {"name": name}})
}

#[tokio::test]
async fn writes_conflicts_and_deletions() {
    let cluster = Cluster::start().await;
    for client in clients(&cluster).await {
        let made = client.create_object(&MAPS, "default", map("a")).await.unwrap();
        assert_eq!(made.meta().name, "a");
        assert!(client.create_object(&MAPS, "default", map("a")).await.unwrap_err().is_already_exists());
        let patch = json!({"data": {"k": "v"}});
        let patched = client.patch_object(&MAPS, "default", "a", None, PatchType::Merge, patch).await.unwrap();
        assert!(patched.revision > made.revision);
        let mut stale = made.value();
        stale["data"] = json!({"k": "w"});
        assert!(client.update_object(&MAPS, stale).await.unwrap_err().is_conflict());
        let wrong = DeleteOptions { uid: Some("other".to_owned()), ..DeleteOptions::default() };
        assert!(client.delete_object(&MAPS, "default", "a", wrong).await.unwrap_err().is_conflict());
        client.delete_object(&MAPS, "default", "a", DeleteOptions::default()).await.unwrap();
        assert!(client.get_object(&MAPS, "default", "a").await.unwrap_err().is_not_found());
    }
}

/// Waits until the watch has told of something.
async fn next(watch: &mut Box<dyn client::Watch>) -> Vec<Change> {
    loop {
        let changes = watch.next().await.unwrap();
        if !changes.is_empty() {
            return changes;
        }
    }
}

#[tokio::test]
async fn a_watch_follows_its_list() {
    let cluster = Cluster::start().await;
    for client in clients(&cluster).await {
        let mut labelled = map("a");
        labelled["metadata"]["labels"] = json!({"x": "y"});
        client.create_object(&MAPS, "default", labelled).await.unwrap();
        client.create_object(&MAPS, "default", map("b")).await.unwrap();
        let scope = Scope { label_selector: "x=y".to_owned(), ..MAPS.everywhere() };
        let (listing, mut watch) = client.list_watch(scope).await.unwrap();
        let names: Vec<&str> = listing.objects.iter().map(|object| object.meta().name.as_str()).collect();
        assert_eq!(names, ["a"]);

        let label = |value: &'static str| json!({"metadata": {"labels": {"x": value}}});
        let patch = async |name: &str, value: &'static str| {
            client.patch_object(&MAPS, "default", name, None, PatchType::Merge, label(value)).await.unwrap()
        };
        patch("b", "y").await;
        assert!(matches!(&next(&mut watch).await[..], [Change::Added(object)] if object.meta().name == "b"));
        let left = patch("a", "z").await;
        let changes = next(&mut watch).await;
        assert!(matches!(&changes[..], [Change::Deleted { last, revision }]
            if last.meta().labels == BTreeMap::from([("x".to_owned(), "y".to_owned())]) && *revision == left.revision));
        for name in ["a", "b"] {
            client.delete_object(&MAPS, "default", name, DeleteOptions::default()).await.unwrap();
        }
        assert!(matches!(&next(&mut watch).await[..], [Change::Deleted { last, .. }] if last.meta().name == "b"));
    }
}

#[tokio::test]
async fn scale_binding_and_status() {
    let cluster = Cluster::start().await;
    for client in clients(&cluster).await {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        client.create_object(&PODS, "default", pod).await.unwrap();
        let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
        client.post(&PODS, "default", "p", "binding", binding).await.unwrap();
        let bound = client.get_object(&PODS, "default", "p").await.unwrap();
        assert_eq!(bound.value()["spec"]["nodeName"], "n");
        let mut running = bound.value();
        running["status"]["phase"] = "Running".into();
        let written = client.update_subresource(&PODS, "status", running).await.unwrap();
        assert_eq!(written.value()["status"]["phase"], "Running");
        let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        client.delete_object(&PODS, "default", "p", now).await.unwrap();

        let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        client.create_object(&DEPLOYMENTS, "default", deployment).await.unwrap();
        let patch = json!({"spec": {"replicas": 4}});
        let scale =
            client.patch_object(&DEPLOYMENTS, "default", "d", Some("scale"), PatchType::Merge, patch).await.unwrap();
        assert_eq!(scale.value()["spec"]["replicas"], 4);
        client.delete_object(&DEPLOYMENTS, "default", "d", DeleteOptions::default()).await.unwrap();
    }
}

#[tokio::test]
async fn in_process_there_is_no_second_copy() {
    let cluster = Cluster::start().await;
    let client = cluster.server.local(User::loopback("component"));
    let made = client.create_object(&MAPS, "default", map("a")).await.unwrap();
    let (listing, mut watch) = client.list_watch(MAPS.everywhere()).await.unwrap();
    assert_eq!(listing.revision, made.revision);
    assert!(Arc::ptr_eq(&listing.objects[0], &made));
    let patch = json!({"data": {"k": "v"}});
    let patched = client.patch_object(&MAPS, "default", "a", None, PatchType::Merge, patch).await.unwrap();
    assert!(matches!(&next(&mut watch).await[..], [Change::Modified { new, .. }] if Arc::ptr_eq(new, &patched)));
}

/// Who shows a certificate is `certified`, the others are `tester`.
struct ByCertificate;

impl Authenticator for ByCertificate {
    fn authenticate<'a>(
        &'a self,
        _: &'a http::request::Parts,
        peer: &'a PeerCertificates,
    ) -> BoxFuture<'a, Result<User, Status>> {
        let name = if peer.leaf.is_some() { "certified" } else { "tester" };
        Box::pin(async move { Ok(User::new(name, &[])) })
    }
}

struct OnlyTester;

impl Authorizer for OnlyTester {
    fn authorize(&self, user: &User, _: &Attributes) -> Decision {
        if user.name == "tester" { Decision::Allow(String::new()) } else { Decision::NoOpinion("no rule".to_owned()) }
    }
}

#[tokio::test]
async fn the_same_authorization_applies() {
    let cluster = Cluster::with(|config| {
        config.authenticator = Arc::new(ByCertificate);
        config.authorizer = Arc::new(OnlyTester);
    })
    .await;
    for client in [cluster.server.local(User::new("certified", &[])), cluster.tls("certified").await] {
        let refused = client.get_object(&MAPS, "default", "a").await.unwrap_err();
        let why = "configmaps \"a\" is forbidden: User \"certified\" cannot get resource \"configmaps\" in API group \"\" in the namespace \"default\": no rule";
        assert_eq!((refused.code, refused.message.as_str()), (403, why));
        assert_eq!(client.list_objects(MAPS.everywhere()).await.unwrap_err().code, 403);
    }
}

#[tokio::test]
async fn impersonation_is_for_those_who_may() {
    let cluster = Cluster::with(|config| config.authorizer = Arc::new(OnlyTester)).await;
    let refused = cluster.ask("GET", "/api/v1/nodes", &[("impersonate-user", "jane")], "").await;
    assert_eq!(refused.code, 403);
    assert!(refused.message().contains("User \"jane\" cannot list resource \"nodes\""), "{}", refused.message());
}

/// Keeps a line for each event.
#[derive(Default)]
struct Kept(std::sync::Mutex<Vec<String>>);

impl server::audit::Audit for Kept {
    fn record(&self, event: &server::audit::Event<'_>) {
        let value = event.value();
        let text = |path: &str| value.pointer(path).map(ToString::to_string).unwrap_or_default().replace('"', "");
        let line = ["/user/username", "/verb", "/requestURI", "/responseStatus/code"].map(text).join(" ");
        self.0.lock().unwrap().push(line);
    }
}

#[tokio::test]
async fn what_components_write_is_audited_and_what_they_read_is_not() {
    let kept = Arc::new(Kept::default());
    let sink = kept.clone();
    let cluster = Cluster::with(|config| config.audit = Some(sink)).await;
    kept.0.lock().unwrap().clear();
    let client = cluster.server.local(User::loopback("component"));
    client.create_object(&MAPS, "default", map("a")).await.unwrap();
    client.create_object(&MAPS, "default", map("a")).await.unwrap_err();
    client.get_object(&MAPS, "default", "a").await.unwrap();
    client.delete_object(&MAPS, "default", "a", DeleteOptions::default()).await.unwrap();
    let leases = Resource::new("coordination.k8s.io", "v1", "leases");
    client.create_object(&leases, "default", map("l")).await.unwrap();
    let renewal = json!({"spec": {"renewTime": "2026-01-01T00:00:00.000000Z"}});
    client.patch_object(&leases, "default", "l", None, PatchType::Merge, renewal).await.unwrap();
    let expected = [
        "component create /api/v1/namespaces/default/configmaps 201",
        "component create /api/v1/namespaces/default/configmaps 409",
        "component delete /api/v1/namespaces/default/configmaps/a 200",
        "component create /apis/coordination.k8s.io/v1/namespaces/default/leases 201",
    ];
    assert_eq!(*kept.0.lock().unwrap(), expected);
}
