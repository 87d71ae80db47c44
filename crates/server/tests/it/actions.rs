//! Sub-resources that do something.

use std::sync::Arc;

use serde_json::{Value, json};
use server::allocate::{NODE_PORTS, Services};
use server::hooks::{Question, Reviewer, TokenAsk, TokenIssuer};
use server::identity::BoxFuture;

use crate::cluster::{Cluster, rng};

const PODS: &str = "/api/v1/namespaces/default/pods";

async fn pod(cluster: &Cluster, name: &str) -> Value {
    let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let made = cluster.post(PODS, &pod).await;
    assert_eq!(made.code, 201, "{}", made.message());
    made.value()
}

fn binding(name: &str, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": node}})
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let cluster = Cluster::start().await;
    pod(&cluster, "a").await;
    let bound = cluster.post(&format!("{PODS}/a/binding"), &binding("a", "n1")).await;
    assert_eq!((bound.code, &bound.value()["status"]), (201, &json!("Success")), "{}", bound.message());
    let read = cluster.get(&format!("{PODS}/a")).await.value();
    assert_eq!(read["spec"]["nodeName"], "n1");
    let conditions = read["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|c| c["type"] == "PodScheduled" && c["status"] == "True"));
    let again = cluster.post(&format!("{PODS}/a/binding"), &binding("a", "n2")).await;
    let why = "Operation cannot be fulfilled on pods/binding \"a\": pod a is already assigned to node \"n1\"";
    assert_eq!((again.code, again.message()), (409, why.to_owned()));
    pod(&cluster, "b").await;
    let legacy = cluster.post("/api/v1/namespaces/default/bindings", &binding("b", "n1")).await;
    assert_eq!(legacy.code, 201, "{}", legacy.message());
    assert_eq!(cluster.get(&format!("{PODS}/b")).await.value()["spec"]["nodeName"], "n1");
}

#[tokio::test]
async fn status_is_written_apart() {
    let cluster = Cluster::start().await;
    let mut object = pod(&cluster, "a").await;
    object["status"]["phase"] = "Running".into();
    object["spec"]["nodeName"] = "n".into();
    let written = cluster.put(&format!("{PODS}/a/status"), &object).await.value();
    assert_eq!(written["status"]["phase"], "Running");
    assert!(written["spec"].get("nodeName").is_none());
    let patch = json!({"status": {"phase": "Failed"}, "metadata": {"labels": {"a": "b"}}});
    let patched = cluster.patch(&format!("{PODS}/a"), "strategic-merge", &patch).await.value();
    assert_eq!((&patched["status"]["phase"], &patched["metadata"]["labels"]["a"]), (&json!("Running"), &json!("b")));
    let patched = cluster.patch(&format!("{PODS}/a/status"), "strategic-merge", &patch).await.value();
    assert_eq!(patched["status"]["phase"], "Failed");
}

#[tokio::test]
async fn scale_is_a_view_of_replicas() {
    let cluster = Cluster::start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "a"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    cluster.post(path, &deployment).await;
    let scale_path = format!("{path}/a/scale");
    let mut scale = cluster.get(&scale_path).await.value();
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(2)));
    assert_eq!(scale["status"]["selector"], "a=b");
    scale["spec"]["replicas"] = 5.into();
    let written = cluster.put(&scale_path, &scale).await;
    assert_eq!((written.code, &written.value()["spec"]["replicas"]), (200, &json!(5)), "{}", written.message());
    assert_eq!(cluster.put(&scale_path, &scale).await.code, 409, "its revision is old now");
    let patched = cluster.patch(&scale_path, "merge", &json!({"spec": {"replicas": 3}})).await.value();
    assert_eq!(patched["spec"]["replicas"], 3);
    let read = cluster.get(&format!("{path}/a")).await.value();
    assert_eq!((&read["spec"]["replicas"], &read["metadata"]["generation"]), (&json!(3), &json!(3)));
    scale["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    scale["spec"]["replicas"] = (-1).into();
    assert_eq!(cluster.put(&scale_path, &scale).await.code, 422);
}

#[tokio::test]
async fn an_eviction_deletes() {
    let cluster = Cluster::start().await;
    pod(&cluster, "a").await;
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a", "namespace": "default"}});
    let evicted = cluster.post(&format!("{PODS}/a/eviction"), &eviction).await;
    assert_eq!(evicted.code, 201, "{}", evicted.message());
    assert_eq!(cluster.get(&format!("{PODS}/a")).await.code, 404);
}

struct Yes;

impl Reviewer for Yes {
    fn review<'a>(&'a self, question: Question<'a>) -> BoxFuture<'a, Result<Value, api::status::Status>> {
        Box::pin(async move {
            let mut object = question.object;
            object["status"] = json!({"allowed": true, "reason": question.user.name});
            Ok(object)
        })
    }
}

impl TokenIssuer for Yes {
    fn issue<'a>(&'a self, ask: TokenAsk<'a>) -> BoxFuture<'a, Result<Value, api::status::Status>> {
        Box::pin(async move {
            let mut request = ask.request;
            request["status"] = json!({"token": format!("of-{}", ask.service_account.key().name())});
            Ok(request)
        })
    }
}

#[tokio::test]
async fn questions_are_answered_and_not_stored() {
    let cluster = Cluster::with(|config| {
        config.reviewer = Arc::new(Yes);
        config.tokens = Arc::new(Yes);
    })
    .await;
    let review = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let answer = cluster.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await;
    assert_eq!((answer.code, &answer.value()["status"]["reason"]), (201, &json!("tester")), "{}", answer.message());

    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    cluster.post(accounts, &json!({"metadata": {"name": "robot"}})).await;
    let ask = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["a"]}});
    let token = cluster.post(&format!("{accounts}/robot/token"), &ask).await;
    assert_eq!((token.code, &token.value()["status"]["token"]), (201, &json!("of-robot")), "{}", token.message());
    assert_eq!(cluster.post(&format!("{accounts}/nobody/token"), &ask).await.code, 404);
}

#[tokio::test]
async fn addresses_are_taken_with_their_service_and_freed_with_it() {
    let ranges = vec!["10.96.0.0/28".parse().unwrap()];
    let services = Services { ranges, node_ports: NODE_PORTS, rng: rng() };
    let cluster = Cluster::with(|config| config.allocators.push(Box::new(services))).await;
    let path = "/api/v1/namespaces/default/services";
    let service =
        |name: &str| json!({"metadata": {"name": name}, "spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}});
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..14 {
        let made = cluster.post(path, &service(&format!("s{n}"))).await;
        assert_eq!(made.code, 201, "{}", made.message());
        assert!(seen.insert(made.value()["spec"]["clusterIP"].as_str().unwrap().to_owned()));
    }
    let full = cluster.post(path, &service("more")).await;
    assert_eq!(full.code, 500);
    assert!(full.message().contains("range is full"), "{}", full.message());

    let freed = cluster.get(&format!("{path}/s3")).await.value()["spec"]["clusterIP"].clone();
    cluster.delete(&format!("{path}/s3"), &json!({})).await;
    assert_eq!(cluster.post(path, &service("more")).await.value()["spec"]["clusterIP"], freed);
    let mut taken = service("taken");
    taken["spec"]["clusterIP"] = freed.clone();
    let refused = cluster.post(path, &taken).await;
    assert_eq!(refused.code, 422);
    assert!(refused.message().contains("provided IP is already allocated"), "{}", refused.message());
}

#[tokio::test]
async fn many_services_at_once_get_addresses_of_their_own() {
    let ranges = vec!["10.96.0.0/24".parse().unwrap(), "fd00::/112".parse().unwrap()];
    let services = Services { ranges, node_ports: NODE_PORTS, rng: rng() };
    let cluster = Cluster::with(|config| config.allocators.push(Box::new(services))).await;
    let path = "/api/v1/namespaces/default/services";
    let all: Vec<Value> = (0..30)
        .map(|n| {
            json!({"metadata": {"name": format!("s{n}")}, "spec": {"type": "NodePort", "selector": {"a": "b"},
                "ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]}})
        })
        .collect();
    let answers = futures_util::future::join_all(all.iter().map(|service| cluster.post(path, service))).await;
    let mut addresses: Vec<String> = answers.iter().map(|a| a.value()["spec"]["clusterIPs"].to_string()).collect();
    let mut ports: Vec<String> =
        answers.iter().map(|a| a.value()["spec"]["ports"][0]["nodePort"].to_string()).collect();
    for list in [&mut addresses, &mut ports] {
        list.sort();
        list.dedup();
        assert_eq!(list.len(), 30);
    }
}
