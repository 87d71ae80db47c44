//! What containers of a pod share, and what they do not.

use runtime::plan::{Ipc, Network, PidMode};

use crate::bed::{Bed, wait_until};

fn own(name: &str) -> String {
    std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_share_network_ipc_and_host_name_but_not_processes() {
    let mut bed = Bed::new();
    bed.pod("p").await;
    let script = "for n in net ipc uts pid mnt cgroup; do readlink /proc/self/ns/$n; done";
    let (_, first) = bed.run_in("p", bed.plan(script)).await;
    let mut plan = bed.plan(script);
    plan.log_path = Some("main/1.log".into());
    bed.run_in("p", plan).await;
    let second = std::fs::read_to_string(bed.directory.join("logs/p/main/1.log")).unwrap();
    let second = crate::bed::text_of(&second);
    let (first, second): (Vec<_>, Vec<_>) = (first.lines().collect(), second.lines().collect());
    assert_eq!(first[..3], second[..3]);
    for (index, name) in ["net", "ipc", "uts", "pid", "mnt", "cgroup"].into_iter().enumerate() {
        assert_ne!(first[index], own(name), "{name} is not the host's");
    }
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pods_network_is_ready_for_the_node() {
    let mut bed = Bed::new();
    let pod = bed.pod("p").await;
    assert!(pod.netns.is_some() && bed.runtime.netns("p").unwrap().is_some());
    let (_, log) = bed.run_in("p", bed.plan("hostname; ip -o link show")).await;
    assert!(log.starts_with("host-of-the-pod\n1: lo: <LOOPBACK,UP,LOWER_UP>"), "{log}");
    assert_eq!(log.lines().count(), 2, "{log}");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sysctls_are_the_pods() {
    let mut bed = Bed::new();
    let mut plan = bed.pod_plan("p");
    plan.sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned());
    plan.sysctls.insert("kernel.shm_rmid_forced".to_owned(), "1".to_owned());
    bed.runtime.create_pod(plan).await.unwrap();
    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced";
    assert_eq!(bed.run_in("p", bed.plan(script)).await.1, "80\n1\n");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sysctl_that_the_kernel_refuses_is_named() {
    let bed = Bed::new();
    let mut plan = bed.pod_plan("p");
    plan.sysctls.insert("net.no.such".to_owned(), "1".to_owned());
    let error = bed.runtime.create_pod(plan).await.unwrap_err();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(text.contains("set sysctl net.no.such=1"), "{text}");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_can_be_shared() {
    let mut bed = Bed::new();
    let mut plan = bed.pod_plan("p");
    (plan.network, plan.ipc, plan.pid) = (Network::Host, Ipc::Host, PidMode::Host);
    let pod = bed.runtime.create_pod(plan).await.unwrap();
    assert!(pod.netns.is_none());
    let script = "for n in net ipc uts pid; do readlink /proc/self/ns/$n; done";
    let (_, log) = bed.run_in("p", bed.plan(script)).await;
    assert_eq!(log.lines().collect::<Vec<_>>(), ["net", "ipc", "uts", "pid"].map(own));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_of_a_container_in_the_hosts_process_namespace_die_with_it() {
    let mut bed = Bed::new();
    let mut plan = bed.pod_plan("p");
    plan.pid = PidMode::Host;
    bed.runtime.create_pod(plan).await.unwrap();
    let plan = bed.plan("setsid sleep 600 & echo ready");
    let id = plan.id.clone();
    bed.run_in("p", plan).await;
    wait_until("the end of all", || bed.runtime.container_stats("p", &id).unwrap().pids == 0).await;
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_may_share_its_processes() {
    let mut bed = Bed::new();
    let mut plan = bed.pod_plan("p");
    plan.pid = PidMode::Pod;
    bed.runtime.create_pod(plan).await.unwrap();
    let sleeper = bed.plan("exec sleep 601");
    let id = sleeper.id.clone();
    bed.start("p", sleeper).await.unwrap();
    let mut plan = bed.plan("cat /proc/1/comm; cat /proc/[0-9]*/cmdline | tr '\\0' ' '");
    plan.log_path = Some("main/1.log".into());
    bed.run_in("p", plan).await;
    let log = std::fs::read_to_string(bed.directory.join("logs/p/main/1.log")).unwrap();
    let log = crate::bed::text_of(&log);
    assert!(log.starts_with("pause\n") && log.contains("sleep 601"), "{log}");
    assert_eq!(bed.exec("p", &id, "cat /proc/1/comm").await, (0, "pause\n".to_owned()));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_memory_is_the_pods() {
    let mut bed = Bed::new();
    bed.pod("p").await;
    bed.run_in("p", bed.plan("echo kept > /dev/shm/x")).await;
    let mut plan = bed.plan("cat /dev/shm/x; stat -f -c %T /dev/shm");
    plan.log_path = Some("main/1.log".into());
    bed.run_in("p", plan).await;
    let log = std::fs::read_to_string(bed.directory.join("logs/p/main/1.log")).unwrap();
    assert_eq!(crate::bed::text_of(&log), "kept\ntmpfs\n");
    bed.finish().await;
}
