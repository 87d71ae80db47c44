//! Makes room for a more important pod: says why on each victim's status, then deletes it with its own grace.
//!
//! Source: kubernetes `pkg/scheduler/framework/preemption/executor.go`.

use std::sync::Arc;
use std::time::Duration;

use api::status::Status;
use client::{Client, Clock, DeleteOptions, PatchType, Resource};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;
use tokio::time::timeout;

use crate::facts::PodFacts;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Evicts pods one after the other; returns those that were, and the error that ended it.
///
/// One that is gone already, or goes already, is left alone.
pub async fn run(
    client: &Client,
    clock: &Clock,
    victims: &[Arc<PodFacts>],
) -> (Vec<Arc<PodFacts>>, Result<(), Status>) {
    let mut evicted = Vec::new();
    for victim in victims.iter().filter(|victim| !victim.is_terminating) {
        let request = timeout(REQUEST_TIMEOUT, evict(client, clock, victim));
        match request.await.unwrap_or_else(|_| Err(Status::timeout("no answer to an eviction"))) {
            Ok(()) => evicted.push(victim.clone()),
            // A conflict is about the uid: another pod has taken the name.
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => return (evicted, Err(error)),
        }
    }
    (evicted, Ok(()))
}

async fn evict(client: &Client, clock: &Clock, victim: &PodFacts) -> Result<(), Status> {
    let condition = json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": "default-scheduler: preempting to accommodate a higher priority pod",
        "observedGeneration": victim.generation,
        "lastTransitionTime": Time(clock()),
    });
    let patch = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [condition]}});
    client.patch_status::<Pod>(&victim.namespace, &victim.name, PatchType::Strategic, patch).await?;
    let options = DeleteOptions { uid: Some(victim.uid.clone()), ..DeleteOptions::default() };
    client.delete_object(&Resource::of::<Pod>(), &victim.namespace, &victim.name, options).await.map(drop)
}
