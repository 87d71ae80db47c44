//! A pod's sandbox: its namespaces and shim from the runtime, its addresses from the network.

use std::time::Duration;

use tracing::warn;

use super::{Message, Worker};
use crate::network::with_cause;
use crate::plan;
use crate::pod_machine::Event;
use crate::shared::Shared;

/// Between attempts to remove what does not go away.
const RETRY: Duration = Duration::from_secs(5);

impl Worker {
    pub(super) fn create_sandbox(&mut self) {
        self.adopted = false;
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

async fn create(shared: &Shared, pod: &k8s_openapi::api::core::v1::Pod, uid: &str) -> Result<Vec<String>, String> {
    let plan = plan::pod(pod, &shared.cluster_dns.domain, &shared.roots.pod_logs)?;
    // What an attempt that was cut short has left is in the way.
    remove(shared, uid).await?;
    let made = shared.runtime.create_pod(plan).await.map_err(|error| with_cause(&error))?;
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

async fn remove(shared: &Shared, uid: &str) -> Result<(), String> {
    shared.network.detach(uid).await?;
    match shared.runtime.remove_pod(uid).await {
        Ok(()) | Err(runtime::Error::UnknownPod(_)) => Ok(()),
        Err(error) => Err(with_cause(&error)),
    }
}

/// Removes a sandbox that no worker cares for.
pub(super) async fn remove_patiently(shared: &Shared, uid: &str) {
    while let Err(error) = remove(shared, uid).await {
        warn!(pod = uid, error, "sandbox not removed, will try again");
        tokio::time::sleep(RETRY).await;
    }
}
