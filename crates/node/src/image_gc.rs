//! Makes room on the disk of images: now and then, and never those in use.
//!
//! Source: images/image_gc_manager.go; kubelet.go, `ImageGCPeriod`.

use std::collections::BTreeSet;
use std::time::Duration;

use client::events::{Recorder, Severity};
use image::gc::Policy;
use image::store::ImageStore;
use k8s_openapi::api::core::v1::{ObjectReference, PodSpec};
use tracing::{info, warn};

use crate::shared::Registry;

/// The images that a pod runs or mounts.
fn images_of(spec: &PodSpec) -> Vec<String> {
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let ephemeral = spec.ephemeral_containers.iter().flatten().filter_map(|container| container.image.clone());
    let mounted = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref()?.reference.clone());
    containers.filter_map(|container| container.image.clone()).chain(ephemeral).chain(mounted).collect()
}

const EVERY: Duration = Duration::from_secs(300);

/// Collects for ever. `node` is what events are about.
pub async fn run(images: ImageStore, registry: Registry, recorder: Recorder, node: ObjectReference) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Not at once: pods of an earlier process are not known yet.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let named: BTreeSet<String> =
            registry.all().iter().filter_map(|known| known.pod.spec.as_ref()).flat_map(images_of).collect();
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
