//! Lifecycle hooks: postStart and preStop. Source: lifecycle/handlers.go.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use runtime::Runtime;

use crate::exec::{self, Ended};
use crate::http_get::Get;

/// How long a hook's HTTP request may take when nothing else bounds it.
const HTTP_TIMEOUT: Duration = Duration::from_secs(600);

/// Runs a hook to its end. Cancel safe: a command that was started is killed by its container's end.
///
/// # Errors
/// With a message for the log; it may contain what the container's owner wants kept secret, so it is not for events.
pub async fn run(
    runtime: &Runtime,
    pod: &str,
    id: &str,
    pod_ip: &str,
    container: &Container,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(action) = &hook.exec {
        let command = action.command.clone().unwrap_or_default();
        return match exec::run(runtime, pod, id, command, None).await {
            Ended::Exited { code: 0, .. } => Ok(()),
            Ended::Exited { code, output } => {
                Err(format!("command terminated with exit code {code}, message: {output:?}"))
            }
            Ended::TimedOut => Err("command timed out".to_owned()),
            Ended::Failed(error) => Err(error),
        };
    }
    if let Some(action) = &hook.http_get {
        // Any answer will do: only a request that fails is a failure.
        return Get::new(action, container, pod_ip, "lifecycle")?.send(HTTP_TIMEOUT).await.map(drop);
    }
    if let Some(action) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err("Cannot run handler: it has no exec, httpGet or sleep".to_owned())
}
