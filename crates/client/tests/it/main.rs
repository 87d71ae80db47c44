//! One contract for every transport, and the informers over each.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod contract;
mod informers;
mod transports;

use transports::{local, over_tls};

#[tokio::test]
async fn in_process_keeps_the_contract() {
    contract::check(&local().await.client).await;
}

#[tokio::test]
async fn over_tls_keeps_the_contract() {
    contract::check(&over_tls().await.client).await;
}

#[tokio::test]
async fn informers_follow_in_process() {
    informers::check(&local().await.client).await;
}

#[tokio::test]
async fn informers_follow_over_tls() {
    informers::check(&over_tls().await.client).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_in_the_error() {
    let cluster = over_tls().await;
    cluster.stop().await;
    let error = cluster.client.get::<k8s_openapi::api::core::v1::Namespace>("", "default").await.unwrap_err();
    assert_eq!(error.code, 503, "{error}");
    assert!(error.message.starts_with("could not reach 127.0.0.1:"), "{error}");
}
