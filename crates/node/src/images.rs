//! Gets a container's image onto the node, by its pull policy, and says so in events.
//!
//! Source: images/image_manager.go, `EnsureImageExists`; who may use what is there already is decided by [`image::access`]. Back-off is
//! the pod machine's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::status::Status;
use client::Client;
use image::access::{Source, Verdict, verdict};
use image::credentials::{Credentials, from_docker_cfg, from_docker_config_json, offered};
use image::pull::NoProgress;
use image::reference::Reference;
use image::store::{Image, ImageStore};
use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod, Secret};

use crate::events::PodEvents;

/// What a container's start takes: its image, and those of the volumes that it is the first to mount, by name.
#[derive(Debug)]
pub struct Pulled {
    pub image: Arc<Image>,
    pub volumes: BTreeMap<String, Arc<Image>>,
}

/// Why there is no image: the waiting reason and its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub reason: &'static str,
    pub message: String,
}

/// What an image volume asks for, as a container without a name would.
pub fn of_volume(source: &ImageVolumeSource) -> Container {
    let (image, image_pull_policy) = (source.reference.clone(), source.pull_policy.clone());
    Container { image, image_pull_policy, ..Container::default() }
}

/// The pull policy; the API fills it in, this is what it fills in.
fn policy<'a>(container: &'a Container, reference: &Reference) -> &'a str {
    let latest = reference.digest.is_none() && reference.tag.as_deref().is_none_or(|tag| tag == "latest");
    container.image_pull_policy.as_deref().unwrap_or(if latest { "Always" } else { "IfNotPresent" })
}

/// # Errors
/// [`Missing`], with the event already recorded.
pub async fn ensure(
    images: &ImageStore,
    client: &Client,
    events: &PodEvents,
    pod: &Pod,
    container: &Container,
) -> Result<Arc<Image>, Missing> {
    let name = container.image.as_deref().unwrap_or_default();
    // An image that is mounted belongs to no container.
    let of = Some(container.name.as_str()).filter(|name| !name.is_empty());
    let reference = Reference::parse(name).map_err(|error| {
        let message =
            format!("Failed to apply default image tag {name:?}: couldn't parse image name {name:?}: {error}");
        events.warning("InspectFailed", &message, of);
        Missing { reason: "InvalidImageName", message }
    })?;
    let policy = policy(container, &reference);
    let present = images.get(name).filter(|_| policy != "Always");
    let free = present.as_ref().map(|image| verdict(&image.accesses, &reference.name(), &[]) == Verdict::Granted);
    let credentials = match free {
        Some(true) => Vec::new(),
        None if policy == "Never" => Vec::new(),
        Some(false) | None => credentials(client, events, pod).await,
    };
    if let Some(found) = present {
        let verdict = verdict(&found.accesses, &reference.name(), &offered(&credentials, &reference));
        if let Verdict::GrantedTo(grant) = &verdict
            && let Err(error) = images.grant(&found.id, &reference, grant.clone()).await
        {
            tracing::warn!(image = name, %error, "pull secret not remembered");
        }
        if verdict != Verdict::Ask {
            let message = format!("Container image {name:?} already present on machine and can be accessed by the pod");
            events.normal("Pulled", &message, of);
            return Ok(found);
        }
    }
    if policy == "Never" {
        // Also when it is there and not for this pod: that is nobody's business.
        let message = format!("Container image {name:?} is not present with pull policy of Never");
        events.warning("ErrImageNeverPull", &message, of);
        return Err(Missing { reason: "ErrImageNeverPull", message });
    }
    events.normal("Pulling", &format!("Pulling image {name:?}"), of);
    let begun = tokio::time::Instant::now();
    match images.pull(&reference, &credentials, &NoProgress).await {
        Ok(found) => {
            let took = go_millis(begun.elapsed());
            let size = found.size;
            let text = format!(
                "Successfully pulled image {name:?} in {took} ({took} including waiting). Image size: {size} bytes."
            );
            events.normal("Pulled", &text, of);
            Ok(found)
        }
        Err(error) => {
            let message = format!("rpc error: code = {} desc = {error}", error.code());
            events.warning("Failed", &format!("Failed to pull image {name:?}: {message}"), of);
            Err(Missing { reason: "ErrImagePull", message })
        }
    }
}

/// Whether the image is on the node, and no registry need be asked about it.
pub fn is_here(images: &ImageStore, container: &Container) -> bool {
    let name = container.image.as_deref().unwrap_or_default();
    let Ok(reference) = Reference::parse(name) else { return false };
    let free = |image: Arc<Image>| verdict(&image.accesses, &reference.name(), &[]) == Verdict::Granted;
    policy(container, &reference) != "Always" && images.get(name).is_some_and(free)
}

/// The registries' credentials in the pod's pull secrets.
async fn credentials(client: &Client, events: &PodEvents, pod: &Pod) -> Vec<Credentials> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let names =
        pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten()).map(|secret| secret.name.as_str());
    let (mut all, mut missing) = (Vec::new(), Vec::new());
    for name in names.filter(|name| !name.is_empty()) {
        let secret: Result<Secret, Status> = client.get(namespace, name).await;
        match secret.map_err(|error| error.to_string()).and_then(|secret| parse(namespace, &secret)) {
            Ok(found) => all.extend(found),
            Err(error) => {
                tracing::debug!(secret = name, %error, "pull secret not usable");
                missing.push(name);
            }
        }
    }
    if !missing.is_empty() {
        let names = missing.join(", ");
        let text = format!(
            "Unable to retrieve some image pull secrets ({names}); attempting to pull the image may not succeed."
        );
        events.warning("FailedToRetrieveImagePullSecret", &text, None);
    }
    all
}

fn parse(namespace: &str, secret: &Secret) -> Result<Vec<Credentials>, String> {
    let data = |key: &str| secret.data.iter().flatten().find(|(name, _)| *name == key).map(|(_, value)| &value.0);
    let read = match (data(".dockerconfigjson"), data(".dockercfg")) {
        (Some(json), _) => from_docker_config_json(json),
        (None, Some(json)) => from_docker_cfg(json),
        (None, None) => return Err("neither .dockerconfigjson nor .dockercfg".to_owned()),
    };
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (name, uid) = (text(&secret.metadata.name), text(&secret.metadata.uid));
    let source = Source { namespace: namespace.to_owned(), name, uid };
    let mut all = read.map_err(|error| error.to_string())?;
    all.iter_mut().for_each(|one| one.source = Some(source.clone()));
    Ok(all)
}

/// What `status.containerStatuses[].imageID` says: the digest by which the image was pulled, else its id.
pub fn image_ref(image: &Image) -> String {
    image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string())
}

/// A duration cut to milliseconds, as Go prints it: `1.234s`, `345ms`, `1m2.5s`.
pub fn go_millis(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_gos() {
        let shown = [0, 345, 1000, 1200, 62_500, 3_600_000].map(|millis| go_millis(Duration::from_millis(millis)));
        assert_eq!(shown, ["0s", "345ms", "1s", "1.2s", "1m2.5s", "1h0m0s"]);
    }
}
