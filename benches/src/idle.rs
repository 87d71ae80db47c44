//! `idle`: what an empty cluster of one node costs when nobody asks anything of it.
//!
//! Both sides idle at the same time, so that each sees the same machine; neither uses enough of it to disturb the other.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use testkit::upstream::node::Throttles;

use crate::Env;
use crate::figures::{Figures, Measure, Which};
use crate::side::{Cluster, Parts};

/// After the node is Ready, until what the start has stirred up has settled.
const SETTLE: Duration = Duration::from_secs(45);
/// One round: two of the kubelet's status periods.
const WINDOW: Duration = Duration::from_secs(20);

const PSS: Measure = Measure::cost("idle_pss", "MB");
const CPU: Measure = Measure::cost("idle_cpu", "% of a core");
/// Disks are written in blocks of 4 KiB: a side that writes less than one in a round writes none.
const WRITTEN: Measure = Measure { least: 4.096 / WINDOW.as_secs() as f64, ..Measure::cost("idle_written", "kB/s") };

pub fn run(env: &Env) -> Result<Figures> {
    let mut figures = Figures::default();
    let start = |which| Cluster::start(env, which, Parts::Whole(Throttles::Default)).map(|cluster| (which, cluster));
    let mut clusters = Which::BOTH.into_iter().map(start).collect::<Result<Vec<_>>>()?;
    sleep(SETTLE);
    for _ in 0..env.rounds {
        let mut before = Vec::new();
        for (_, cluster) in &clusters {
            before.push((Instant::now(), cluster.account.cpu()?, cluster.account.written()));
        }
        sleep(WINDOW);
        for ((which, cluster), (began, cpu, written)) in clusters.iter_mut().zip(before) {
            cluster.must_run()?;
            let seconds = began.elapsed().as_secs_f64();
            figures.record(*which, PSS, cluster.account.pss() as f64 / 1e6);
            figures.record(*which, CPU, (cluster.account.cpu()? - cpu).as_secs_f64() / seconds * 100.0);
            let written = cluster.account.written().saturating_sub(written);
            figures.record(*which, WRITTEN, written as f64 / 1e3 / seconds);
        }
    }
    Ok(figures)
}
