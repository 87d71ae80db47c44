//! `start`: from an empty directory to a node that is Ready, certificates and all.

use anyhow::Result;
use testkit::upstream::node::Throttles;

use crate::Env;
use crate::figures::{Figures, Measure, Which};
use crate::side::{Cluster, Parts};

const NODE_READY: Measure = Measure::cost("node_ready", "ms");

pub fn run(env: &Env) -> Result<Figures> {
    let mut figures = Figures::default();
    for _ in 0..env.rounds {
        for which in Which::BOTH {
            let cluster = Cluster::start(env, which, Parts::Whole(Throttles::Default))?;
            figures.record(which, NODE_READY, cluster.ready.as_secs_f64() * 1e3);
        }
    }
    Ok(figures)
}
