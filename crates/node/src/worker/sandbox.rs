//! A pod's sandbox: its namespaces and shim from the runtime, its addresses from the network.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use tracing::warn;

use super::{Message, Worker};
use crate::plan;
use crate::pod_machine::event::Event;
use crate::shared::Shared;
use api::chain::chain;

/// The handlers of RuntimeClasses that this node runs; without a class it is the empty one.
pub(crate) const HANDLERS: [&str; 2] = ["coracle", "runc"];
/// Between attempts to remove what does not go away.
const RETRY: Duration = Duration::from_secs(5);

impl Worker {
    pub(super) fn create_sandbox(&mut self) {
        let (shared, pod, uid) = (self.shared.clone(), self.machine.pod().clone(), self.uid.clone());
        self.answer(async move {
            Message::Machine(match create(&shared, &pod, &uid).await {
                Ok(ips) => Event::SandboxReady { ips },
                Err(message) => Event::SandboxFailed { message },
            })
        });
    }

    pub(super) fn remove_sandbox(&mut self) {
        let (shared, uid, events) = (self.shared.clone(), self.uid.clone(), self.events.clone());
        self.answer(async move {
            while let Err(error) = remove(&shared, &uid).await {
                warn!(pod = uid, error, "sandbox not removed, will try again");
                events.warning("FailedKillPod", &format!("error killing pod: {error}"), None);
                tokio::time::sleep(RETRY).await;
            }
            Message::Machine(Event::SandboxGone)
        });
    }
}

async fn create(shared: &Shared, pod: &Pod, uid: &str) -> Result<Vec<String>, String> {
    check_runtime(shared, pod).await?;
    let plan = plan::pod(pod, &shared.cluster_dns.domain, &shared.roots.pod_logs)?;
    // What an attempt that was cut short has left is in the way.
    remove(shared, uid).await?;
    let made = shared.runtime.create_pod(plan).await.map_err(|error| chain(&error))?;
    let Some(netns) = made.netns else { return Ok(shared.host_ips()) };
    match shared.network.attach(uid, netns, pod).await {
        Ok(addresses) => Ok(addresses.ips.iter().map(ToString::to_string).collect()),
        Err(error) => {
            if let Err(error) = remove(shared, uid).await {
                warn!(pod = uid, error, "half of a sandbox stays until the next attempt");
            }
            Err(format!("failed to set up the pod's network: {error}"))
        }
    }
}

/// What runtime classes may name: the one runtime that there is, under its own name and under the usual one.
///
/// Source: containerd `internal/cri/server/sandbox_run.go`, for the words.
async fn check_runtime(shared: &Shared, pod: &Pod) -> Result<(), String> {
    let name = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref()).unwrap_or_default();
    if name.is_empty() {
        return Ok(());
    }
    let class: RuntimeClass = shared
        .client
        .get("", name)
        .await
        .map_err(|error| format!("failed to get sandbox runtime: RuntimeClass {name:?}: {error}"))?;
    if HANDLERS.contains(&class.handler.as_str()) {
        return Ok(());
    }
    Err(format!("failed to get sandbox runtime: no runtime for {:?} is configured", class.handler))
}

async fn remove(shared: &Shared, uid: &str) -> Result<(), String> {
    shared.network.detach(uid).await?;
    match shared.runtime.remove_pod(uid).await {
        Ok(()) | Err(runtime::error::Error::UnknownPod(_)) => Ok(()),
        Err(error) => Err(chain(&error)),
    }
}

/// Removes a sandbox that no worker cares for.
pub(super) async fn remove_patiently(shared: &Shared, uid: &str) {
    while let Err(error) = remove(shared, uid).await {
        warn!(pod = uid, error, "sandbox not removed, will try again");
        tokio::time::sleep(RETRY).await;
    }
}
