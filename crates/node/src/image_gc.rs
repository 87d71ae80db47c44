//! Makes room on the disk of images: now and then, and never those in use.
//!
//! Source: images/image_gc_manager.go; kubelet.go, `ImageGCPeriod`.

use std::collections::BTreeSet;
use std::time::Duration;

use client::events::{Recorder, Severity};
use image::gc::Policy;
use image::store::ImageStore;
use k8s_openapi::api::core::v1::ObjectReference;
use tracing::{info, warn};

use crate::shared::Registry;

const EVERY: Duration = Duration::from_secs(300);

/// Collects for ever. `node` is what events are about.
pub async fn run(images: ImageStore, registry: Registry, recorder: Recorder, node: ObjectReference) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Not at once: pods of an earlier process are not known yet.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let named: BTreeSet<String> = registry
            .all()
            .iter()
            .filter_map(|known| known.pod.spec.as_ref())
            .flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
            .filter_map(|container| container.image.clone())
            .collect();
        let in_use = named.iter().filter_map(|name| images.get(name)).map(|image| image.id.clone()).collect();
        match images.collect(&Policy::default(), &in_use).await {
            Ok(deleted) if deleted.eligible_bytes < deleted.wanted_bytes => {
                let message = format!(
                    "Failed to garbage collect required amount of images. Attempted to free {} bytes, but only found {} bytes eligible to free.",
                    deleted.wanted_bytes, deleted.eligible_bytes
                );
                recorder.event(&node, Severity::Warning, "FreeDiskSpaceFailed", message);
            }
            Ok(deleted) if deleted.images.is_empty() => {}
            Ok(deleted) => info!(count = deleted.images.len(), "unused images deleted"),
            Err(error) => {
                warn!(%error, "images not collected");
                recorder.event(&node, Severity::Warning, "ImageGCFailed", error.to_string());
            }
        }
    }
}
