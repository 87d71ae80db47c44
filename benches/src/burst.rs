//! `burst`: a Deployment from nothing to all of its pods ready, and what the node costs with them.
//!
//! The peer runs twice: as it comes, and with its clients' limits of 20 to 50 requests per second removed. The second is the honest
//! ratio, the first is what a user sees.

use std::time::Instant;

use anyhow::{Context, Result};
use testkit::upstream::node::Throttles;

use crate::Env;
use crate::figures::{Figures, Measure, Which};
use crate::fixtures::{NAMESPACE, deployment};
use crate::pod;
use crate::side::{Cluster, Parts};

const PODS: usize = 50;

/// One way to run it: time, CPU, memory.
type Measures = [Measure; 3];

const DEFAULT: Measures = [
    Measure::cost("burst_50", "s"),
    Measure::cost("burst_50_cpu", "ms of CPU per pod"),
    Measure::cost("burst_50_pss", "MB"),
];
const UNTHROTTLED: Measures = [
    Measure::cost("burst_50_unthrottled", "s"),
    Measure::cost("burst_50_unthrottled_cpu", "ms of CPU per pod"),
    Measure::cost("burst_50_unthrottled_pss", "MB"),
];

pub fn run(env: &Env) -> Result<Figures> {
    let mut figures = Figures::default();
    for _ in 0..env.rounds {
        let ours = once(env, Which::Coracle, Throttles::Default)?;
        for (throttles, measures) in [(Throttles::Default, DEFAULT), (Throttles::Removed, UNTHROTTLED)] {
            let theirs = once(env, Which::Peer, throttles)?;
            for (measure, (ours, theirs)) in measures.into_iter().zip(ours.into_iter().zip(theirs)) {
                figures.record(Which::Coracle, measure, ours);
                figures.record(Which::Peer, measure, theirs);
            }
        }
    }
    Ok(figures)
}

fn once(env: &Env, which: Which, throttles: Throttles) -> Result<[f64; 3]> {
    let cluster = Cluster::start(env, which, Parts::Whole(throttles))?;
    cluster.prepare_namespace()?;
    // It pulls the image.
    pod::one(&cluster, "first")?;
    let deployments = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments");
    let before = cluster.account.cpu()?;
    let began = Instant::now();
    cluster.api.post(&deployments, &deployment("burst", PODS))?;
    let ready = cluster.api.watch_until(&deployments, |deployment| deployment["status"]["readyReplicas"] == PODS);
    ready.with_context(|| {
        let now = cluster.api.get(&format!("{deployments}/burst")).unwrap_or_default();
        format!("waiting for {PODS} pods of {which:?}, whose Deployment is at {}", now["status"])
    })?;
    let took = began.elapsed().as_secs_f64();
    let cpu = (cluster.account.cpu()? - before).as_secs_f64() * 1e3 / PODS as f64;
    Ok([took, cpu, cluster.account.pss() as f64 / 1e6])
}
