//! `coracle stop`: the server alone, or everything that it started.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use runtime::plan::{AdoptedContainer, AdoptedPod, ContainerState, Event};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::admin;
use crate::config::Config;

/// How long a role may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(20);
/// The grace of pods that do not say theirs. Source: core/v1, `DefaultTerminationGracePeriodSeconds`.
const GRACE: Duration = Duration::from_secs(30);

/// Ends the server; with `all` also the edge and every container, and removes links, rules and cgroups.
///
/// # Errors
/// When something does not end.
pub fn stop(config: &Config, all: bool) -> Result<()> {
    end(admin::main_pid(config), "the server")?;
    if !all {
        eprintln!("the server is stopped; containers and the edge go on (coracle stop --all stops them too)");
        return Ok(());
    }
    end(admin::edge_pid(config), "the edge")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(remove_pods(config))?;
    unmount_volumes(config)?;
    net::pod::remove_strays(&[]).context("could not remove the pods' links")?;
    net::nft::remove().context("could not remove the services' rules")?;
    Ok(())
}

/// Unmounts the pods' volumes, later mounts first: what is kept in memory must not outlive its pod.
fn unmount_volumes(config: &Config) -> Result<()> {
    use rustix::mount::{UnmountFlags, unmount};
    let pods = config.kubelet_dir.join("pods");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("could not read the list of mounts")?;
    // The fifth field; names of pods and volumes need no escapes.
    let places = mounts.lines().rev().filter_map(|line| line.split(' ').nth(4));
    for place in places.filter(|place| Path::new(place).starts_with(&pods)) {
        let how = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        unmount(place, how).with_context(|| format!("could not unmount {place}"))?;
    }
    Ok(())
}

fn end(pid: Option<u32>, what: &str) -> Result<()> {
    let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid.cast_signed())) else { return Ok(()) };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    pidfd_send_signal(&process, Signal::TERM).with_context(|| format!("could not stop {what}"))?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let mut wait = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        if rustix::event::poll(&mut wait, Some(&second))? > 0 {
            return Ok(());
        }
    }
    ensure!(false, "{what} (pid {pid}) did not stop within {PATIENCE:?}");
    Ok(())
}

async fn remove_pods(config: &Config) -> Result<()> {
    let (runtime, mut events) = runtime::Runtime::new(crate::serve::runtime_config(config))?;
    let pods = runtime.adopt().await?;
    let mut ending = Ending::default();
    let now = tokio::time::Instant::now();
    for pod in &pods {
        let running = |container: &&AdoptedContainer| matches!(container.state, ContainerState::Running { .. });
        for container in pod.containers.iter().filter(running) {
            if runtime.signal(&pod.plan.uid, &container.plan.id, stop_signal(container)).await.is_ok() {
                ending.begin(&pod.plan.uid, &container.plan.id, now + grace(pod));
            }
        }
    }
    while let Some(deadline) = ending.next_deadline() {
        match tokio::time::timeout_at(deadline, events.recv()).await {
            Ok(Some(Event::ContainerExited { pod, container, .. })) => ending.ended(&pod, &container),
            Ok(Some(Event::ShimDied { pod })) => ending.gone(&pod),
            Ok(None) => break,
            Err(_) => {
                for uid in ending.overdue(tokio::time::Instant::now()) {
                    let pod = pods.iter().find(|pod| pod.plan.uid == uid);
                    let name = pod.map_or(uid, |pod| format!("{}/{}", pod.plan.namespace, pod.plan.name));
                    eprintln!("pod {name} did not stop within its grace and is killed");
                }
            }
        }
    }
    for pod in &pods {
        runtime
            .remove_pod(&pod.plan.uid)
            .await
            .with_context(|| format!("could not remove pod {}/{}", pod.plan.namespace, pod.plan.name))?;
    }
    Ok(runtime.remove_cgroups()?)
}

/// How long a pod may take to stop.
fn grace(pod: &AdoptedPod) -> Duration {
    let own = pod.plan.labels.get(node::plan::LABEL_GRACE).and_then(|seconds| seconds.parse().ok());
    own.map_or(GRACE, Duration::from_secs)
}

/// By what a container is asked to stop.
fn stop_signal(container: &AdoptedContainer) -> i32 {
    let own = container.plan.labels.get(node::worker::LABEL_SIGNAL).and_then(|signal| signal.parse().ok());
    own.unwrap_or(Signal::TERM.as_raw())
}

/// The pods that were asked to stop and have not yet.
#[derive(Default)]
struct Ending(BTreeMap<String, (tokio::time::Instant, BTreeSet<String>)>);

impl Ending {
    fn begin(&mut self, pod: &str, container: &str, until: tokio::time::Instant) {
        let (_, containers) = self.0.entry(pod.to_owned()).or_insert_with(|| (until, BTreeSet::new()));
        containers.insert(container.to_owned());
    }

    fn ended(&mut self, pod: &str, container: &str) {
        let Some((_, containers)) = self.0.get_mut(pod) else { return };
        containers.remove(container);
        if containers.is_empty() {
            self.0.remove(pod);
        }
    }

    fn gone(&mut self, pod: &str) {
        self.0.remove(pod);
    }

    fn next_deadline(&self) -> Option<tokio::time::Instant> {
        self.0.values().map(|(until, _)| *until).min()
    }

    /// Gives up on the pods whose time is over, and returns them.
    fn overdue(&mut self, now: tokio::time::Instant) -> Vec<String> {
        let over: Vec<String> =
            self.0.iter().filter(|(_, (until, _))| *until <= now).map(|(pod, _)| pod.clone()).collect();
        self.0.retain(|pod, _| !over.contains(pod));
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pod_is_waited_for_as_long_as_it_may_take() {
        let start = tokio::time::Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut ending = Ending::default();
        ending.begin("slow", "a", at(60));
        ending.begin("slow", "b", at(60));
        ending.begin("quick", "c", at(1));
        ending.begin("lost", "d", at(5));
        assert_eq!(ending.next_deadline(), Some(at(1)));
        assert_eq!(ending.overdue(at(1)), ["quick"]);
        assert_eq!(ending.next_deadline(), Some(at(5)));
        ending.gone("lost");
        ending.ended("slow", "a");
        assert_eq!(ending.next_deadline(), Some(at(60)), "one of its containers still runs");
        ending.ended("slow", "b");
        assert_eq!(ending.next_deadline(), None);
    }
}
