//! `memory`: what one more object and one more watch keep in memory, over all processes of a side.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use crate::Env;
use crate::figures::{Figures, Measure, Which};
use crate::fixtures::{NAMESPACE, config_map};
use crate::load::Ask;
use crate::side::{Cluster, Parts};

const OBJECTS: usize = 10_000;
const WATCHES: usize = 1_000;
const WRITERS: usize = 16;
/// Until what a load leaves behind for a moment is given back.
const SETTLE: Duration = Duration::from_secs(5);

const PER_OBJECT: Measure = Measure::cost("memory_per_object", "bytes per ConfigMap of 1 KiB");
const PER_WATCH: Measure = Measure::cost("memory_per_watch", "bytes per watch on a connection of its own");

pub fn run(env: &Env) -> Result<Figures> {
    let mut figures = Figures::default();
    for _ in 0..env.rounds {
        for which in Which::BOTH {
            let cluster = Cluster::start(env, which, Parts::Api)?;
            cluster.prepare_namespace()?;
            let client = cluster.client()?;
            let config_maps = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
            let create = move |name: String| Ask::post(config_maps.clone(), config_map(&name));
            let settled = || {
                sleep(SETTLE);
                cluster.account.pss() as f64
            };
            // What a first load reserves is no object's.
            let first = create.clone();
            client.load(WRITERS, OBJECTS / 10, move |n| first(format!("first-{n}")))?;
            let before = settled();
            client.load(WRITERS, OBJECTS, move |n| create(format!("object-{n}")))?;
            let with_objects = settled();
            figures.record(which, PER_OBJECT, (with_objects - before) / OBJECTS as f64);
            // Watches of something that never changes.
            let path = "/api/v1/namespaces/default/pods?watch=1&timeoutSeconds=600";
            let with_watches = client.holding(WATCHES, path, async || Ok(settled()))?;
            figures.record(which, PER_WATCH, (with_watches - with_objects) / WATCHES as f64);
        }
    }
    Ok(figures)
}
