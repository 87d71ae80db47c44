//! `api`: objects created, read, listed and watched, per second and per second of the server's CPU.
//!
//! The peer is etcd and kube-apiserver alone; coracle runs whole, with its controllers, node and edge in the same process, so its
//! CPU includes what they do with every change. That favours the peer.

use anyhow::{Context, Result, ensure};

use crate::Env;
use crate::equal;
use crate::figures::{Figures, Measure, Which};
use crate::fixtures::{NAMESPACE, config_map, pod};
use crate::load::{Ask, Client, Outcome};
use crate::side::{Cluster, Parts};
use crate::stats::median;

const CONNECTIONS: usize = 64;
const WARM: usize = 1_000;
const SERIAL: usize = 300;
const BESIDE: usize = 1_000;
const WRITES: usize = 8_000;
const READS: usize = 20_000;
const PODS: usize = 10_000;
const LISTS: usize = 5;
const WATCHERS: usize = 200;
const CHANGES: usize = 500;
const CHANGERS: usize = 8;

const SERIAL_TIME: Measure = Measure::cost("create_serial", "ms");
const SERIAL_CPU: Measure = Measure::cost("create_serial_cpu", "µs of CPU");
const WRITE_RATE: Measure = Measure::rate("create_64_writers", "1/s");
const WRITE_CPU: Measure = Measure::cost("create_64_writers_cpu", "µs of CPU");
const BESIDE_CPU: Measure =
    Measure::cost("create_serial_beside_200_watches_cpu", "µs of CPU, beside idle watches of Pods");
const GET_RATE: Measure = Measure::rate("get", "1/s");
const GET_CPU: Measure = Measure::cost("get_cpu", "µs of CPU");
const POD_RATE: Measure = Measure::rate("create_pods", "1/s");
const POD_CPU: Measure = Measure::cost("create_pods_cpu", "µs of CPU");
const LIST_TIME: Measure = Measure::cost("list_10k_pods", "ms");
const LIST_CPU: Measure = Measure::cost("list_10k_pods_cpu", "ms of CPU");
const FAN_RATE: Measure = Measure::rate("watch_fanout", "events/s");
const FAN_CPU: Measure = Measure::cost("watch_fanout_cpu", "µs of CPU per event");
const PSS: Measure = Measure::cost("api_pss", "MB after all of it");

pub fn run(env: &Env) -> Result<Figures> {
    let mut figures = Figures::default();
    let mut seen = Vec::new();
    for round in 0..env.rounds {
        for which in Which::BOTH {
            let mut cluster = Cluster::start(env, which, Parts::Api)?;
            cluster.prepare_namespace()?;
            let refused = equal::refused(&cluster)?;
            let client = cluster.client()?;
            if round == 0 {
                seen.push(equal::observe(&cluster, &client, refused)?);
            }
            measure(which, &cluster, &client, &mut figures)?;
            cluster.must_run()?;
        }
    }
    let [ours, theirs] = seen.as_slice() else { unreachable!("the first round looks at both sides") };
    figures.refuse(equal::differences(ours, theirs));
    Ok(figures)
}

fn measure(which: Which, cluster: &Cluster, client: &Client, figures: &mut Figures) -> Result<()> {
    let config_maps = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let create = |prefix: &'static str| {
        let path = config_maps.clone();
        move |n: usize| Ask::post(path.clone(), config_map(&format!("{prefix}-{n}")))
    };
    let timed = |width: usize, total: usize, ask: Box<dyn Fn(usize) -> Ask>| -> Result<Load> {
        let before = cluster.account.cpu()?;
        let outcome = client.load(width, total, ask)?;
        let cpu = (cluster.account.cpu()? - before).as_secs_f64();
        Ok(Load { cpu: cpu / total as f64, rate: total as f64 / outcome.elapsed.as_secs_f64(), outcome })
    };
    client.load(CONNECTIONS, WARM, create("warm"))?;

    let load = timed(1, SERIAL, Box::new(create("serial")))?;
    figures.record(which, SERIAL_TIME, load.median_ms()?);
    figures.record(which, SERIAL_CPU, load.cpu * 1e6);

    let load = timed(CONNECTIONS, WRITES, Box::new(create("write")))?;
    figures.record(which, WRITE_RATE, load.rate);
    figures.record(which, WRITE_CPU, load.cpu * 1e6);

    let idle = "/api/v1/namespaces/default/pods?watch=1&timeoutSeconds=300";
    let cpu = client.holding(WATCHERS, idle, async || {
        let before = cluster.account.cpu()?;
        client.loading(1, BESIDE, create("beside")).await?;
        Ok(cluster.account.cpu()? - before)
    })?;
    figures.record(which, BESIDE_CPU, cpu.as_secs_f64() * 1e6 / BESIDE as f64);

    let load = {
        let path = config_maps.clone();
        timed(CONNECTIONS, READS, Box::new(move |n| Ask::get(format!("{path}/write-{}", n % WRITES))))?
    };
    figures.record(which, GET_RATE, load.rate);
    figures.record(which, GET_CPU, load.cpu * 1e6);

    let load = {
        let path = pods.clone();
        timed(CONNECTIONS, PODS, Box::new(move |n| Ask::post(path.clone(), pod(&format!("pod-{n}")))))?
    };
    figures.record(which, POD_RATE, load.rate);
    figures.record(which, POD_CPU, load.cpu * 1e6);

    let listed = client.must(Ask::get(&pods))?;
    let count = listed["items"].as_array().map_or(0, Vec::len);
    ensure!(count >= PODS, "a list has {count} pods instead of {PODS}");
    drop(listed);
    let load = {
        let path = pods.clone();
        timed(1, LISTS, Box::new(move |_| Ask::get(path.clone())))?
    };
    figures.record(which, LIST_TIME, load.median_ms()?);
    figures.record(which, LIST_CPU, load.cpu * 1e3);

    let now = client.must(Ask::get(format!("{config_maps}?limit=1")))?;
    let revision = now["metadata"]["resourceVersion"].as_str().context("a list has a resourceVersion")?;
    let watched = format!("{config_maps}?watch=1&timeoutSeconds=300&resourceVersion={revision}");
    let before = cluster.account.cpu()?;
    let took = client.fan_out(WATCHERS, &watched, CHANGERS, CHANGES, create("change"))?;
    let cpu = (cluster.account.cpu()? - before).as_secs_f64();
    let told = (WATCHERS * CHANGES) as f64;
    figures.record(which, FAN_RATE, told / took.as_secs_f64());
    figures.record(which, FAN_CPU, cpu * 1e6 / told);
    figures.record(which, PSS, cluster.account.pss() as f64 / 1e6);
    Ok(())
}

/// A load with the server's CPU seconds per request.
struct Load {
    cpu: f64,
    rate: f64,
    outcome: Outcome,
}

impl Load {
    fn median_ms(&self) -> Result<f64> {
        let millis: Vec<f64> = self.outcome.latencies.iter().map(|latency| latency.as_secs_f64() * 1e3).collect();
        median(&millis).context("there were requests")
    }
}
