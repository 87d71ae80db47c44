//! What the configuration of a Kubernetes container begins with: mounts, masked paths, a process without privileges.
//!
//! Sources: CRI-O `server/container_create_linux.go`; runtime-tools `generate`; Docker's masked paths (`moby/oci/defaults.go`).

use oci_spec::runtime::{Linux, LinuxBuilder, Mount, MountBuilder, Process, ProcessBuilder, UserBuilder};

use crate::capability;

/// Hidden from containers unless `procMount: Unmasked`.
pub const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Read-only for containers unless `procMount: Unmasked`.
pub const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The devices of every container: name, major, minor. Source: config-linux.md, "Default Devices".
pub(crate) const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// `/proc`, `/dev` with its parts, `/sys` and the container's cgroup, read-only. `/dev/shm` is the pod's.
///
/// # Panics
/// Never: every part of each mount is given.
#[must_use]
pub fn mounts() -> Vec<Mount> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let builder = MountBuilder::default().destination(destination).typ(kind).source(source).options(options);
        builder.build().expect("every part is given")
    };
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ]
}

/// The Linux part with masked and read-only paths, and no seccomp filter yet.
///
/// # Panics
/// Never: every part is given.
#[must_use]
pub fn linux() -> Linux {
    let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let builder = LinuxBuilder::default().masked_paths(owned(MASKED_PATHS)).readonly_paths(owned(READONLY_PATHS));
    builder.build().expect("every part is given")
}

/// A process of root in `/`, with the default capabilities, which may gain privileges. Arguments are still to be set.
///
/// # Panics
/// Never: every part is given.
#[must_use]
pub fn process() -> Process {
    let names: Vec<String> = capability::DEFAULT.iter().map(|name| (*name).to_owned()).collect();
    let user = UserBuilder::default().uid(0u32).gid(0u32).build().expect("every part is given");
    ProcessBuilder::default()
        .user(user)
        .cwd("/")
        .args(Vec::<String>::new())
        .env(Vec::<String>::new())
        .capabilities(capability::sets(&names))
        .no_new_privileges(false)
        .terminal(false)
        .rlimits(Vec::new())
        .build()
        .expect("every part is given")
}
