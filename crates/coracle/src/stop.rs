//! `coracle stop`: the server alone, or everything that it started.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::admin;
use crate::config::Config;

/// How long a role may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long containers may take after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

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
    let mut running = 0;
    for pod in &pods {
        for container in &pod.containers {
            if runtime.signal(&pod.plan.uid, &container.plan.id, Signal::TERM.as_raw()).await.is_ok() {
                running += 1;
            }
        }
    }
    let all_ended = async {
        while running > 0 && events.recv().await.is_some() {
            running -= 1;
        }
    };
    if tokio::time::timeout(GRACE, all_ended).await.is_err() {
        eprintln!("some containers did not stop within {GRACE:?} and are killed");
    }
    for pod in &pods {
        runtime
            .remove_pod(&pod.plan.uid)
            .await
            .with_context(|| format!("could not remove pod {}/{}", pod.plan.namespace, pod.plan.name))?;
    }
    Ok(runtime.remove_cgroups()?)
}
