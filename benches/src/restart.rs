//! `restart`: what serves the API is killed with many objects in its store, and started again until it is ready.
//!
//! The peer is etcd and kube-apiserver alone; coracle comes back whole. Files are in the page cache on both sides.

use anyhow::{Context, Result};

use crate::Env;
use crate::figures::{Figures, Measure, Which};
use crate::fixtures::{NAMESPACE, config_map};
use crate::load::{Ask, Client};
use crate::side::{Cluster, Parts};

const OBJECTS: usize = 50_000;
const WRITERS: usize = 64;

const READY: Measure = Measure::cost("restart_50k", "ms until ready with 50,000 ConfigMaps of 1 KiB");
const CPU: Measure = Measure::cost("restart_50k_cpu", "ms of CPU");

pub fn run(env: &Env) -> Result<Figures> {
    let mut figures = Figures::default();
    let mut differences = Vec::new();
    for _ in 0..env.rounds {
        for which in Which::BOTH {
            let mut cluster = Cluster::start(env, which, Parts::Api)?;
            cluster.prepare_namespace()?;
            let client = cluster.client()?;
            let config_maps = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
            let path = config_maps.clone();
            client.load(WRITERS, OBJECTS, move |n| Ask::post(path.clone(), config_map(&format!("object-{n}"))))?;
            let before = count(&client, &config_maps)?;
            let (ready, cpu) = cluster.restart()?;
            figures.record(which, READY, ready.as_secs_f64() * 1e3);
            figures.record(which, CPU, cpu.as_secs_f64() * 1e3);
            let after = count(&client, &config_maps)?;
            if before != after || after < OBJECTS as u64 {
                differences.push(format!("{which:?} has {after} ConfigMaps after the restart, {before} before it"));
            }
        }
    }
    figures.refuse(differences);
    Ok(figures)
}

/// All objects of a collection, by the server's own count.
fn count(client: &Client, collection: &str) -> Result<u64> {
    let page = client.must(Ask::get(format!("{collection}?limit=1")))?;
    let items = page["items"].as_array().context("a list has items")?.len() as u64;
    Ok(items + page["metadata"]["remainingItemCount"].as_u64().unwrap_or_default())
}
