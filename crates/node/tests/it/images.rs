//! Images from a registry: credentials, policies, back-off.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::registries::Registries;
use serde_json::json;
use testkit::registry::{Auth, Registry};

use crate::bed::{Bed, busybox};

const LOGIN: &str = "user:hunter2";

/// A node beside a registry that wants [`LOGIN`], and the image that it has.
async fn private() -> (Bed, Registry, String) {
    let registry = Registry::start().unwrap();
    registry.add("library/private", "2", &busybox());
    registry.require(Auth::Basic(LOGIN.to_owned()));
    let host = registry.address().to_string();
    let bed = Bed::with(Registries::parse(&registry.registries_yaml(&[&host])).unwrap()).await;
    (bed, registry, format!("{host}/library/private:2"))
}

async fn pull_secret(bed: &Bed, registry: &Registry, name: &str, login: &str) {
    let auths = json!({"auths": {registry.address().to_string(): {"auth": STANDARD.encode(login)}}});
    let data = json!({".dockerconfigjson": STANDARD.encode(auths.to_string())});
    let secret = json!({"metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson", "data": data});
    bed.create("secrets", secret).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_images_need_the_pods_secret() {
    let (bed, registry, image) = private().await;
    let container = json!({"name": "main", "image": image, "command": ["echo", "pulled"]});
    bed.pod("denied", json!({"containers": [container], "restartPolicy": "Never"})).await;
    bed.until_state("denied", "main", "ErrImagePull").await;
    let status = bed.until_state("denied", "main", "ImagePullBackOff").await;
    let message = status.container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap().message.unwrap();
    assert!(message.starts_with(&format!("Back-off pulling image {image:?}: ErrImagePull: ")), "{message}");
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    bed.until_event(&format!("Warning Failed: Failed to pull image {image:?}: ")).await;
    bed.until_event(&format!("Normal BackOff: Back-off pulling image {image:?}")).await;

    pull_secret(&bed, &registry, "login", LOGIN).await;
    let spec = json!({"containers": [container], "restartPolicy": "Never", "imagePullSecrets": [{"name": "login"}, {"name": "none"}]});
    bed.pod("granted", spec).await;
    let status = bed.until_phase("granted", "Succeeded").await;
    let image_id = status.container_statuses.unwrap()[0].image_id.clone();
    let name = image.strip_suffix(":2").unwrap();
    assert!(image_id.starts_with(&format!("{name}@sha256:")), "{image_id}");
    bed.until_event(&format!("Normal Pulling: Pulling image {image:?}")).await;
    bed.until_event(&format!("Normal Pulled: Successfully pulled image {image:?} in ")).await;
    bed.until_event("Warning FailedToRetrieveImagePullSecret: Unable to retrieve some image pull secrets (none);")
        .await;
    bed.finish().await;
}

/// What is on the node already is not for those who could not have pulled it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_images_stay_private_on_the_node() {
    let (bed, registry, image) = private().await;
    for (name, login) in [("login", LOGIN), ("copy", LOGIN), ("other", "user:wrong")] {
        pull_secret(&bed, &registry, name, login).await;
    }
    let spec = |secret: &str, policy: &str| {
        let container = json!({"name": "main", "image": image, "imagePullPolicy": policy, "command": ["echo", "run"]});
        json!({"containers": [container], "restartPolicy": "Never", "imagePullSecrets": [{"name": secret}]})
    };
    bed.pod("first", spec("login", "IfNotPresent")).await;
    bed.until_phase("first", "Succeeded").await;
    bed.pod("stranger", spec("other", "IfNotPresent")).await;
    bed.until_state("stranger", "main", "ErrImagePull").await;
    bed.pod("quiet", spec("other", "Never")).await;
    bed.until_state("quiet", "main", "ErrImageNeverPull").await;
    let why = format!("Container image {image:?} is not present with pull policy of Never");
    bed.until_event(&format!("Warning ErrImageNeverPull: {why}")).await;
    // Whoever has the credentials does not need the registry.
    drop(registry);
    for (name, policy) in [("login", "Never"), ("copy", "IfNotPresent")] {
        bed.pod(name, spec(name, policy)).await;
        bed.until_phase(name, "Succeeded").await;
    }
    let what = format!("Container image {image:?} already present on machine and can be accessed by the pod");
    bed.until_event(&format!("Normal Pulled: {what}")).await;
    bed.finish().await;
}

/// Whoever does not mount it starts, and it is tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_volume_that_cannot_be_pulled_says_so() {
    let registry = Registry::start().unwrap();
    let host = registry.address().to_string();
    let image = format!("{host}/library/tools:1");
    let bed = Bed::with(Registries::parse(&registry.registries_yaml(&[&host])).unwrap()).await;
    let script = "cat /tools/etc/passwd; exec sleep 1000";
    let mounts = json!([{"name": "tools", "mountPath": "/tools"}]);
    let main = json!({"name": "main", "command": ["sh", "-c", script], "volumeMounts": mounts});
    let other = json!({"name": "other", "command": ["sleep", "1000"]});
    let volume = json!({"name": "tools", "image": {"reference": image}});
    let spec = json!({"containers": [main, other], "volumes": [volume], "terminationGracePeriodSeconds": 0});
    bed.pod("web", spec).await;
    bed.until_state("web", "main", "ErrImagePull").await;
    let status = bed.until_state("web", "main", "ImagePullBackOff").await;
    let waiting = status.container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
    let prefix = format!("Back-off pulling image {image:?}: ErrImagePull: rpc error: code = NotFound desc = ");
    assert!(waiting.message.as_ref().is_some_and(|message| message.starts_with(&prefix)), "{waiting:?}");
    bed.until_state("web", "other", "running").await;
    bed.until_event(&format!("Warning Failed: Failed to pull image {image:?}: ")).await;
    bed.until_event(&format!("Normal BackOff: Back-off pulling image {image:?}")).await;
    bed.until_event("Warning Failed: Error: ImagePullBackOff").await;
    assert!(!bed.events().await.iter().any(|event| event.contains("FailedMount")));

    registry.add("library/tools", "1", &busybox());
    bed.until_ready("web").await;
    bed.until_log("web", "main", "user:x:1000:1000").await;
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_policies_are_told_apart() {
    let bed = Bed::new().await;
    for (name, image) in [("never", "absent:1"), ("wrong", "UPPER:1")] {
        let container = json!({"name": "main", "image": image, "imagePullPolicy": "Never"});
        bed.pod(name, json!({"containers": [container]})).await;
    }
    bed.until_state("never", "main", "ErrImageNeverPull").await;
    bed.until_event("Warning ErrImageNeverPull: Container image \"absent:1\" is not present with pull policy of Never")
        .await;
    bed.until_state("wrong", "main", "InvalidImageName").await;
    bed.until_event(
        "Warning InspectFailed: Failed to apply default image tag \"UPPER:1\": couldn't parse image name \"UPPER:1\": ",
    )
    .await;
    bed.finish().await;
}
