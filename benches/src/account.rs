//! What a side costs: CPU time, memory and writes, summed over all of its processes, also those that have ended.
//!
//! A side's processes and everything that they start lie below one control group; its counter holds what short-lived children used,
//! such as `runc` or `nft`. Source: kernel `admin-guide/cgroup-v1/cpuacct.rst`, `admin-guide/cgroup-v2.rst` (`cpu.stat`).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use testkit::rack::{pss_bytes, written_bytes};

const CGROUPS: &str = "/sys/fs/cgroup";

/// The control groups of one side, below the root that its lab removes.
#[derive(Debug)]
pub struct Account {
    /// The side's root in the hierarchy that counts CPU time.
    root: PathBuf,
    /// Where its long-lived processes are put, one for each hierarchy that has the side's root.
    processes: PathBuf,
    unified: bool,
}

impl Account {
    /// Makes the groups. `root` is as in [`testkit::host::Host::cgroup_root`].
    ///
    /// # Errors
    /// When there is no hierarchy that counts CPU time.
    pub fn open(root: &str) -> Result<Self> {
        let unified = Path::new(CGROUPS).join("cgroup.controllers").exists();
        let hierarchies = if unified { vec![PathBuf::from(CGROUPS)] } else { version_1()? };
        for hierarchy in &hierarchies {
            make(hierarchy, root)?;
        }
        let counts = |hierarchy: &&PathBuf| unified || hierarchy.join("cpuacct.usage").exists();
        let counting = hierarchies.iter().find(counts).context("no control group hierarchy counts CPU time")?;
        let root = counting.join(root);
        let processes = root.join("processes");
        fs::create_dir_all(&processes).with_context(|| format!("could not make {}", processes.display()))?;
        Ok(Self { root, processes, unified })
    }

    /// Counts a process from now on, and what it starts.
    ///
    /// # Errors
    /// When it is gone.
    pub fn adopt(&self, pid: u32) -> Result<()> {
        fs::write(self.processes.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("could not count process {pid}"))
    }

    /// CPU time used so far.
    ///
    /// # Errors
    /// When the counter cannot be read.
    pub fn cpu(&self) -> Result<Duration> {
        let read = |name: &str| {
            let path = self.root.join(name);
            fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))
        };
        if self.unified {
            let stat = read("cpu.stat")?;
            let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).context("no usage_usec")?;
            return Ok(Duration::from_micros(usage.parse()?));
        }
        Ok(Duration::from_nanos(read("cpuacct.usage")?.trim().parse()?))
    }

    /// Bytes of memory, shared pages in proportion.
    pub fn pss(&self) -> u64 {
        self.sum(pss_bytes)
    }

    /// Bytes that the living processes have caused to be written to disks.
    pub fn written(&self) -> u64 {
        self.sum(written_bytes)
    }

    /// A process that ended while it was looked at has nothing any more.
    fn sum(&self, of: impl Fn(u32) -> Result<u64>) -> u64 {
        self.pids().into_iter().filter_map(|pid| of(pid).ok()).sum()
    }

    /// Every living process of the side.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        walk(&self.root, &mut pids);
        pids
    }
}

fn walk(dir: &Path, pids: &mut Vec<u32>) {
    let own = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(own.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), pids);
        }
    }
}

/// The hierarchies of version 1.
fn version_1() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(CGROUPS).with_context(|| format!("could not read {CGROUPS}"))?;
    let mut dirs: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|p| p.is_dir()).collect();
    dirs.sort();
    Ok(dirs)
}

/// The kubelet wants its root in every hierarchy, and a new `cpuset` admits nobody until it is filled in.
fn make(hierarchy: &Path, root: &str) -> Result<()> {
    let dir = hierarchy.join(root);
    fs::create_dir_all(&dir).with_context(|| format!("could not make {}", dir.display()))?;
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if hierarchy.join("cpuset.sched_load_balance").exists() {
            fs::write(dir.join(name), fs::read(hierarchy.join(name))?)?;
        }
    }
    Ok(())
}
