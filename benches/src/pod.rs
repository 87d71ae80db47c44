//! `pod`: one pod after the other, each from its creation until a watch says that it runs; the image is on the node.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use testkit::host::eventually;
use testkit::upstream::node::Throttles;

use crate::Env;
use crate::figures::{Figures, Measure, Which};
use crate::fixtures::{NAMESPACE, running_pod};
use crate::side::{Cluster, Parts};
use crate::stats::median;

/// Pods of a round, after one that has pulled the image.
const PODS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(60);

const RUNNING: Measure = Measure::cost("pod_create_to_running", "ms");
const CPU: Measure = Measure::cost("pod_create_to_running_cpu", "ms of CPU");

pub fn run(env: &Env) -> Result<Figures> {
    let mut figures = Figures::default();
    for _ in 0..env.rounds {
        for which in Which::BOTH {
            let cluster = Cluster::start(env, which, Parts::Whole(Throttles::Default))?;
            cluster.prepare_namespace()?;
            one(&cluster, "first")?;
            let before = cluster.account.cpu()?;
            let mut times = Vec::new();
            for n in 0..PODS {
                times.push(one(&cluster, &format!("pod-{n}"))?.as_secs_f64() * 1e3);
            }
            let cpu = (cluster.account.cpu()? - before).as_secs_f64() * 1e3 / PODS as f64;
            figures.record(which, RUNNING, median(&times).context("there were pods")?);
            figures.record(which, CPU, cpu);
        }
    }
    Ok(figures)
}

/// Whether every container runs; the phase is Running also while they fail.
fn runs(pod: &Value) -> bool {
    let statuses = pod["status"]["containerStatuses"].as_array();
    let all = |statuses: &Vec<Value>| statuses.iter().all(|status| status["state"]["running"].is_object());
    pod["status"]["phase"] == "Running" && statuses.is_some_and(all)
}

/// Creates a pod, waits until it runs, and removes it again: how long the first two took.
pub fn one(cluster: &Cluster, name: &str) -> Result<Duration> {
    let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let api = &cluster.api;
    let took = std::thread::scope(|scope| {
        let watched = format!("{pods}?fieldSelector=metadata.name={name}");
        let watching = scope.spawn(move || api.watch_until(&watched, runs).map(|()| Instant::now()));
        let began = Instant::now();
        api.post(&pods, &running_pod(name))?;
        let running = watching.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
        anyhow::Ok(running - began)
    })?;
    let path = format!("{pods}/{name}");
    api.delete(&path)?;
    eventually(PATIENCE, "the pod to be gone", || Ok(api.get(&path).is_err().then_some(())))?;
    Ok(took)
}
