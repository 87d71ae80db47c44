//! A node on a machine of its own: Debian's kernel, with nothing but version 2 of the control groups.
//!
//! Values are upstream's: kubelet `pkg/kubelet/cm` for pods and their classes, `opencontainers/cgroups` for containers.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use testkit::debian::Debian;
use testkit::guest::Guest;
use testkit::images::docker_archive;
use testkit::kubectl::RELEASES;
use testkit::stand_ins;

use crate::cluster::{BUSYBOX, CORACLE};

/// The processor is emulated, on a machine that also builds.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the scenario noted, by name.
type Results<'a> = BTreeMap<&'a str, &'a str>;

#[test]
fn a_node_runs_on_cgroup_version_2() {
    let debian = Debian::new();
    let image = stand_ins::busybox(&debian).unwrap();
    let libc = debian.unpacked("libc6").unwrap().join("usr/lib/x86_64-linux-gnu");
    let library = |name: &str| std::fs::read(libc.join(name)).unwrap();
    let console = Guest::new(&debian)
        .and_then(|guest| guest.program("usr/bin/coracle", Path::new(CORACLE)))
        .and_then(|guest| guest.program("usr/bin/kubectl", &RELEASES[0].program()?))
        .unwrap()
        // kubectl's, which alone is not static.
        .file("lib64/ld-linux-x86-64.so.2", 0o755, &library("ld-linux-x86-64.so.2"))
        .file("lib/x86_64-linux-gnu/libc.so.6", 0o755, &library("libc.so.6"))
        .file("busybox.tar", 0o644, &docker_archive(&[(BUSYBOX, &image)]))
        .file("pods.yaml", 0o644, include_bytes!("guest/pods.yaml"))
        .run(include_str!("guest/scenario.sh"), PATIENCE)
        .unwrap();
    let results = console.results();
    let outcome = std::panic::catch_unwind(|| check(&results));
    if let Err(panic) = outcome {
        eprintln!("{}", console.tail());
        std::panic::resume_unwind(panic);
    }
}

fn check(results: &Results<'_>) {
    let is = |name: &str, expected: &str| assert_eq!(results.get(name).copied(), Some(expected), "{name}");
    is("check", "0");
    is("cgroups", "ok      cgroup v2 with cpu, memory, pids");
    limits(&is);
    devices(results);
    is("exec.inside", "1");
    // The child that ate was killed, and with it the whole container.
    is("hungry", "OOMKilled 137");
    is("hungry.left", "0");
    is("adopted", "0");
    is("restarts", "0 0 0 0");
    is("deleted", "0");
    is("left", "");
    is("left.running", "");
    is("stopped", "0");
}

/// Places and files of the groups. Shares of 102 (100m) and 1024 (1 CPU) weigh 17 and 100 in a pod, 4 and 39 between pods.
fn limits(is: &impl Fn(&str, &str)) {
    is("limited.place", "kubepods/burstable/podUID/ID");
    is("whole.place", "kubepods/podUID/ID");
    is("humble.place", "kubepods/besteffort/podUID/ID");
    is(
        "limited.container",
        "cpu.weight=17 cpu.max=50000 100000 memory.max=67108864 memory.swap.max=0 memory.oom.group=1 pids.max=max",
    );
    is("whole.container", "cpu.weight=100 cpu.max=100000 100000 memory.max=67108864 memory.oom.group=1");
    is("humble.container", "cpu.weight=1 cpu.max=max 100000 memory.max=max");
    is("limited.pod", "cpu.weight=4 cpu.max=50000 100000 memory.max=67108864");
    is("whole.pod", "cpu.weight=39 cpu.max=100000 100000 memory.max=67108864");
    is("humble.pod", "cpu.weight=1");
    is("classes", "burstable/cpu.weight=4 besteffort/cpu.weight=1");
    // The container sees its own group as the root, and cannot write to it.
    is("limited.view", "0::/ 50000 100000 67108864 17");
    is("limited.writes", "touch: /sys/fs/cgroup/cgroup.freeze: Read-only file system");
}

/// A container may make the node of a device, and open only those that every container has.
fn devices(results: &Results<'_>) {
    assert_eq!(results["limited.devices"], "made sh: can't open /tmp/kmsg: Operation not permitted null");
}
