//! Thirty seconds of `cargo xtask torture`: with a seed that stays the same, and with one that nobody has tried.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use testkit::torture::{Options, run};

use crate::cluster::{CORACLE, guard};

#[test]
fn nobody_notices_what_nobody_may() {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seeds = vec![1, u64::from(since_1970.subsec_nanos()) % 1_000_000];
    println!("seeds {seeds:?}");
    let summary = run(&Options {
        lab: format!("x{:05}", std::process::id() % 100_000),
        binary: Path::new(CORACLE).to_owned(),
        seeds,
        length: Duration::from_secs(30),
        with_clock: cfg!(feature = "faults"),
        planted: None,
        patience: Duration::from_secs(60),
        prepared: guard,
        verbose: false,
    })
    .unwrap_or_else(|error| panic!("{error:#}"));
    println!("{summary}");
    assert!(summary.violations.is_empty(), "{summary}");
}
