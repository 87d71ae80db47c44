//! What building and running need of the machine: looked at before anything is built or changed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Result, run};

/// Debian packages, each with a file that shows that it is there.
type Packages = &'static [(&'static str, &'static str)];

pub const FOR_UP: Packages = &[
    ("iproute2", "/usr/sbin/ip"),
    ("gcc", "/usr/bin/cc"),
    ("libc6-dev", "/usr/include/stdio.h"),
    ("dpkg-dev", "/usr/bin/dpkg-deb"),
];

pub const FOR_TESTS: Packages = &[
    ("iproute2", "/usr/sbin/ip"),
    ("gcc", "/usr/bin/cc"),
    ("libc6-dev", "/usr/include/stdio.h"),
    ("dpkg-dev", "/usr/bin/dpkg-deb"),
    ("nftables", "/usr/sbin/nft"),
    ("busybox-static", "/bin/busybox"),
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    ("strace", "/usr/bin/strace"),
];

/// One sentence with its remedy for the first thing that is missing.
///
/// # Errors
/// That sentence.
pub fn check() -> Result {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let is_root = status.lines().any(|line| line.starts_with("Uid:\t") && line.split_whitespace().nth(2) == Some("0"));
    need(is_root, "this needs root for namespaces, mounts and cgroups: run it with sudo -E")?;
    let is_debian = Path::new("/usr/bin/apt-get").exists() && Path::new("/usr/bin/dpkg-deb").exists();
    need(
        is_debian,
        "this needs Debian's apt-get and dpkg-deb to fetch what the stand-in images are made of: run it on Debian",
    )?;
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    need(filesystems.contains("overlay"), "the kernel has no overlayfs: run `modprobe overlay`")?;
    let has_cgroups =
        ["/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/memory/tasks"].iter().any(|p| Path::new(p).exists());
    need(
        has_cgroups,
        "no cgroup hierarchy with the memory controller: mount cgroup2 on /sys/fs/cgroup, or boot with cgroup_enable=memory",
    )?;
    let unshare = Command::new("unshare").args(["--net", "--mount", "true"]).stderr(Stdio::null()).status();
    let has_namespaces = unshare.is_ok_and(|status| status.success());
    need(
        has_namespaces,
        "network and mount namespaces cannot be made here: run it outside of a container, or in a privileged one",
    )
}

fn need(holds: bool, sentence: &str) -> Result {
    if holds { Ok(()) } else { Err(sentence.to_owned()) }
}

/// Installs the packages whose file is missing.
///
/// # Errors
/// When apt-get fails; it has said why.
pub fn install(packages: Packages) -> Result {
    let missing: Vec<&str> =
        packages.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("xtask: installing {}", missing.join(" "));
    run(Command::new("apt-get").args(["update", "--quiet=2"]))?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "--yes", "--quiet=2", "--no-install-recommends"]);
    run(install.args(missing))
}
