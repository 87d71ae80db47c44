//! Memory, processes, usage.

use std::fs;

use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder};
use runtime::plan::{ContainerPlan, Resources};

use crate::bed::Bed;

fn limit(plan: &mut ContainerPlan, resources: LinuxResources) {
    plan.spec.linux_mut().as_mut().unwrap().set_resources(Some(resources));
}

fn memory(bytes: i64) -> LinuxResources {
    let memory = LinuxMemoryBuilder::default().limit(bytes).build().unwrap();
    LinuxResourcesBuilder::default().memory(memory).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn over_the_memory_limit_is_oom_killed() {
    let mut bed = Bed::new();
    // tail keeps what it reads until a line ends.
    let mut plan = bed.plan("exec tail -c 200000000 /dev/zero");
    limit(&mut plan, memory(16 << 20));
    let (exit, _) = bed.run(plan).await;
    assert_eq!((exit.exit_code, exit.signal, exit.oom_killed), (137, Some(9), true));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_end_is_no_oom_kill() {
    let mut bed = Bed::new();
    let mut plan = bed.plan("tail -c 200000000 /dev/zero; echo survived $?");
    limit(&mut plan, memory(16 << 20));
    let (exit, log) = bed.run(plan).await;
    assert_eq!((exit.exit_code, exit.oom_killed), (0, false));
    assert!(log.contains("survived 137"), "{log}");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_are_limited() {
    let mut bed = Bed::new();
    let mut plan = bed.plan("for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; echo unlimited");
    let pids = LinuxPidsBuilder::default().limit(5i64).build().unwrap();
    limit(&mut plan, LinuxResourcesBuilder::default().pids(pids).build().unwrap());
    let (exit, log) = bed.run(plan).await;
    assert_ne!(exit.exit_code, 0);
    assert!(log.contains("can't fork"), "{log}");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_reach_the_cgroup_and_can_change() {
    let bed = Bed::new();
    bed.pod("p").await;
    let mut plan = bed.plan("sleep 600");
    let id = plan.id.clone();
    let cpu = LinuxCpuBuilder::default().shares(102u64).quota(10_000i64).period(100_000u64).build().unwrap();
    let resources = LinuxResourcesBuilder::default()
        .cpu(cpu)
        .memory(LinuxMemoryBuilder::default().limit(32i64 << 20).build().unwrap())
        .build()
        .unwrap();
    limit(&mut plan, resources);
    bed.start("p", plan).await.unwrap();
    assert_eq!(bed.runtime.container_stats("p", &id).unwrap().memory_limit, Some(32 << 20));
    assert_eq!(cpu_files(&bed, &id), ["17", "10000 100000"]);

    let changed =
        Resources { cpu_shares: Some(1024), cpu_quota: Some(50_000), memory_limit: Some(64 << 20), pids_limit: None };
    bed.runtime.update_container("p", &id, &changed).await.unwrap();
    assert_eq!(bed.runtime.container_stats("p", &id).unwrap().memory_limit, Some(64 << 20));
    assert_eq!(cpu_files(&bed, &id), ["100", "50000 100000"]);
    bed.finish().await;
}

/// Weight and quota as version 2 has them, whatever the machine has.
fn cpu_files(bed: &Bed, id: &str) -> [String; 2] {
    let group = format!("kubepods/burstable/podp/{id}");
    for directory in bed.cgroups() {
        let read =
            |name: &str| fs::read_to_string(directory.join(&group).join(name)).map(|text| text.trim().to_owned());
        if let (Ok(weight), Ok(max)) = (read("cpu.weight"), read("cpu.max")) {
            return [weight, max];
        }
        if let (Ok(shares), Ok(quota), Ok(period)) =
            (read("cpu.shares"), read("cpu.cfs_quota_us"), read("cpu.cfs_period_us"))
        {
            let weight = match shares.as_str() {
                "102" => "17",
                "1024" => "100",
                shares => shares,
            };
            return [weight.to_owned(), format!("{quota} {period}")];
        }
    }
    panic!("no cpu controller");
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_counted() {
    let bed = Bed::new();
    bed.pod("p").await;
    let plan = bed.plan("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo counted; sleep 600");
    let id = plan.id.clone();
    bed.start("p", plan).await.unwrap();
    bed.wait_for_log("p", "counted").await;
    let stats = bed.runtime.container_stats("p", &id).unwrap();
    assert!(stats.cpu_nanos > 1_000_000, "{stats:?}");
    assert!(stats.memory_working_set > 0 && stats.memory_working_set <= stats.memory_usage, "{stats:?}");
    assert!(stats.pids >= 1, "{stats:?}");
    assert!(bed.runtime.pod_stats("p").unwrap().cpu_nanos >= stats.cpu_nanos);
    bed.finish().await;
}
