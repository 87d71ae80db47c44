//! The program that the tests give to the runtime: a shim, and what else the real binary is started as.

use std::ffi::OsString;

use runtime::pods::Step;
use runtime::{Config, Runtime};

fn main() {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|arg| arg.to_str()) {
        Some("shim") => runtime::shim::main(&args[1..]),
        Some("die-after") => die_after(&args[1..]),
        other => {
            eprintln!("unknown command {other:?}");
            std::process::exit(2);
        }
    }
}

/// A main that begins to make a pod and dies, as by `kill -9`, after one of the steps.
fn die_after(args: &[OsString]) {
    let [run_dir, cgroup_root, number, plan] = args else { panic!("die-after RUN_DIR CGROUP_ROOT STEP PLAN") };
    let number: usize = number.to_str().unwrap().parse().unwrap();
    static LAST: std::sync::OnceLock<Step> = std::sync::OnceLock::new();
    LAST.set(Step::ALL[number]).unwrap();
    let config = Config {
        run_dir: run_dir.into(),
        cgroup_root: cgroup_root.into(),
        binary: "/proc/self/exe".into(),
        after_step: Some(|step| {
            if LAST.get() == Some(&step) {
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
            }
        }),
    };
    let tokio = tokio::runtime::Runtime::new().unwrap();
    tokio.block_on(async {
        let (runtime, _events) = Runtime::new(config).unwrap();
        runtime.create_pod(serde_json::from_str(plan.to_str().unwrap()).unwrap()).await.unwrap();
    });
}
