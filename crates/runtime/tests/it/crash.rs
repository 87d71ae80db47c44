//! Main dies, shims die: who goes on, and what is known afterwards.

use std::process::Command;

use runtime::Runtime;
use runtime::error::Error;
use runtime::plan::{ContainerState, Event};
use runtime::pods::Step;

use crate::bed::{Bed, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn the_next_main_finds_everything() {
    let mut bed = Bed::new();
    bed.pod("p").await;
    let running = bed.plan("echo one; sleep 1; echo two; sleep 600");
    let mut exited = bed.plan("exit 9");
    let mut created = bed.plan("true");
    (exited.name, exited.log_path) = ("exited".to_owned(), None);
    (created.name, created.log_path) = ("created".to_owned(), None);
    let started = bed.start("p", running.clone()).await.unwrap();
    bed.start("p", exited.clone()).await.unwrap();
    assert_eq!(bed.exit().await.exit_code, 9);
    bed.runtime.create_container("p", created.clone()).await.unwrap();

    bed.restart();
    let adopted = bed.runtime.adopt().await.unwrap();
    let [pod] = &adopted[..] else { panic!("{adopted:?}") };
    assert_eq!((pod.plan.uid.as_str(), pod.plan.labels["app"].as_str()), ("p", "test"));
    assert!(pod.pod.netns.is_some());
    let state = |name: &str| {
        let container = pod.containers.iter().find(|container| container.plan.name == name).unwrap();
        (container.plan.id.clone(), container.state.clone())
    };
    assert_eq!(state("created"), (created.id, ContainerState::Created));
    let (id, ContainerState::Running { pid, .. }) = state("main") else { panic!("{pod:?}") };
    assert_eq!((&id, pid), (&running.id, started.pid));
    let (_, ContainerState::Exited(exit)) = state("exited") else { panic!("{pod:?}") };
    assert_eq!(exit.exit_code, 9);
    assert_eq!(pod.containers[2].plan.spec.process(), running.spec.process());

    bed.wait_for_log("p", "two").await;
    assert_eq!(bed.exec("p", &id, "echo still here").await, (0, "still here\n".to_owned()));
    bed.runtime.signal("p", &id, 9).await.unwrap();
    assert_eq!(bed.exit().await.exit_code, 137);
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_without_a_main_is_known_to_the_next() {
    let mut bed = Bed::new();
    let pod = bed.pod("p").await;
    bed.start("p", bed.plan("while ! test -e /tmp/go; do sleep 0.01; done; echo last words; exit 5")).await.unwrap();
    let children = format!("/proc/{}/task/{}/children", pod.shim_pid, pod.shim_pid);
    let child = std::fs::read_to_string(&children).unwrap().trim().to_owned();
    // Nobody is connected to the shim from here.
    (bed.runtime, bed.events) = {
        let config = runtime::Config { run_dir: bed.directory.join("elsewhere"), ..bed.config.clone() };
        Runtime::new(config).unwrap()
    };
    std::fs::write(format!("/proc/{child}/root/tmp/go"), "").unwrap();
    wait_until("the end of the container", || std::fs::read_to_string(&children).unwrap().is_empty()).await;
    bed.restart();
    let adopted = bed.runtime.adopt().await.unwrap();
    let ContainerState::Exited(exit) = &adopted[0].containers[0].state else { panic!("{adopted:?}") };
    assert_eq!((exit.exit_code, bed.log("p").as_str()), (5, "last words\n"));
    assert!(bed.events.try_recv().is_err(), "what adoption tells is not told again");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_dies_takes_its_pod_along() {
    let mut bed = Bed::new();
    let pod = bed.pod("p").await;
    bed.pod("q").await;
    let plan = bed.plan("trap '' TERM HUP; sleep 600 & sleep 600");
    let other = bed.plan("sleep 600");
    let (id, other_id) = (plan.id.clone(), other.id.clone());
    bed.start("p", plan).await.unwrap();
    bed.start("q", other).await.unwrap();
    kill(pod.shim_pid);
    assert_eq!(bed.event().await, Event::ShimDied { pod: "p".to_owned() });
    // They count until whoever inherited them has reaped them.
    wait_until("the end of the pod's processes", || bed.runtime.pod_stats("p").unwrap().pids == 0).await;
    assert!(matches!(bed.runtime.signal("p", &id, 15).await, Err(Error::Shim(_))));
    assert_eq!(bed.exec("q", &other_id, "true").await.0, 0, "the other pod goes on");
    bed.runtime.remove_pod("p").await.unwrap();
    bed.pod("p").await;
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_shim_died_unseen_is_removed() {
    let mut bed = Bed::new();
    let pod = bed.pod("p").await;
    bed.start("p", bed.plan("sleep 600")).await.unwrap();
    bed.restart();
    kill(pod.shim_pid);
    wait_until("the shim's end", || gone(pod.shim_pid)).await;
    assert!(bed.runtime.adopt().await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(&bed.config.run_dir).unwrap().count(), 0);
    bed.finish().await;
}

/// Dead, reaped or not.
fn gone(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z"))
        || !std::path::Path::new(&format!("/proc/{pid}")).exists()
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// A main that dies after the step of that number; see `shim.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_half_made_by_a_dead_main_is_whole_or_gone() {
    for (number, step) in Step::ALL.into_iter().enumerate() {
        let mut bed = Bed::new();
        let plan = serde_json::to_string(&bed.pod_plan("p")).unwrap();
        let status = Command::new(&bed.config.binary)
            .arg("die-after")
            .args([&bed.config.run_dir, &bed.config.cgroup_root])
            .args([&number.to_string(), &plan])
            .status()
            .unwrap();
        assert!(!status.success(), "{step:?}");
        bed.restart();
        for pod in bed.runtime.adopt().await.unwrap() {
            let plan = bed.plan("echo whole");
            let (exit, log) = bed.run_in(&pod.plan.uid, plan).await;
            assert_eq!((exit.exit_code, log.as_str()), (0, "whole\n"), "{step:?}");
            bed.runtime.remove_pod(&pod.plan.uid).await.unwrap();
        }
        assert_eq!(std::fs::read_dir(&bed.config.run_dir).unwrap().count(), 0, "{step:?}");
        bed.pod("p").await;
        bed.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_nobody_adopted_can_be_removed() {
    let mut bed = Bed::new();
    let pod = bed.pod("p").await;
    bed.start("p", bed.plan("sleep 600")).await.unwrap();
    bed.restart();
    bed.runtime.remove_pod("p").await.unwrap();
    wait_until("the shim's end", || gone(pod.shim_pid)).await;
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pod_is_removed_with_its_shim() {
    let mut bed = Bed::new();
    let pod = bed.pod("p").await;
    bed.start("p", bed.plan("sleep 600")).await.unwrap();
    std::fs::write(bed.config.run_dir.join("p/pod.json"), "{").unwrap();
    bed.restart();
    assert!(bed.runtime.adopt().await.unwrap().is_empty());
    wait_until("the shim's end", || gone(pod.shim_pid)).await;
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_holds_nothing_of_its_parents() {
    let bed = Bed::new();
    // As a shell leaves it open to what it starts.
    let leaked = std::fs::File::open("/etc/hostname").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let pod = bed.pod("p").await;
    let open = std::fs::read_dir(format!("/proc/{}/fd", pod.shim_pid)).unwrap();
    let open: Vec<_> = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok()).collect();
    assert!(!open.iter().any(|path| path.ends_with("hostname")), "{open:?}");
    bed.finish().await;
}

#[test]
fn a_shim_that_comes_too_late_gives_up() {
    // Main died right after the spawn, and the next one has removed the pod, perhaps made it anew, before the shim ran.
    let path = std::env::temp_dir().join(format!("coracle-runtime-lock-{}", std::process::id()));
    let lock = std::fs::File::create(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let (_main, socket) = std::os::unix::net::UnixStream::pair().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_runtime-shim"))
        .args(["shim", "/nowhere"])
        .stdin(std::os::fd::OwnedFd::from(socket))
        .stdout(lock)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "shim: the pod is being removed\n");
}
