//! Each verb's semantics, over HTTP.

use serde_json::json;

use crate::cluster::Cluster;

#[tokio::test]
async fn what_is_created_can_be_read() {
    let cluster = Cluster::start().await;
    let made = cluster
        .post("/api/v1/namespaces/default/configmaps", &json!({"metadata": {"name": "a"}, "data": {"k": "v"}}))
        .await;
    assert_eq!(made.code, 201, "{:?}", made.body);
    let read = cluster.get("/api/v1/namespaces/default/configmaps/a").await;
    assert_eq!((read.code, read.value()), (200, made.value()));
}
