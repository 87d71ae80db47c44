//! Control groups, version 2 and version 1 (hybrid machines): one tree of names, whatever the hierarchies behind it.
//!
//! A group is named by its path below the delegated root, e.g. `kubepods/burstable/pod<uid>/<id>`, as the kubelet's cgroupfs driver
//! names them (`pkg/kubelet/cm/cgroup_manager_linux.go`). Conversions follow `opencontainers/cgroups`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::device_program::{self, DeviceRule};
use crate::plan::{CPU_PERIOD, Resources, Stats};

/// The hierarchies of this machine and the delegated root in them.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    hierarchies: Hierarchies,
    root: PathBuf,
}

#[derive(Clone, Debug)]
enum Hierarchies {
    V2(PathBuf),
    /// Mount points by controller; `cpu` and `cpuacct` may share one.
    V1(BTreeMap<&'static str, PathBuf>),
}

/// The version 1 controllers that a container is put under. Without `cpuset`, whose new groups are empty and admit nobody.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "memory", "pids", "devices", "freezer"];

/// The range of `cpu.shares`.
const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;

/// How long processes may take to die: beyond it they hang in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A file in which the kernel counts kills for want of memory, and the word before the count.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct OomCounter {
    pub file: PathBuf,
    pub key: String,
}

impl OomCounter {
    /// Processes of the group that the kernel has killed; 0 when the group is gone.
    pub(crate) fn read(&self) -> u64 {
        fs::read_to_string(&self.file).ok().and_then(|text| field(&text, &self.key)).unwrap_or(0)
    }
}

impl Cgroups {
    /// Finds the hierarchies in the mount table of this process and makes the delegated root.
    ///
    /// # Errors
    /// When cpu, memory or pids are not to be had.
    pub(crate) fn open(root: &Path) -> io::Result<Cgroups> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let hierarchies = find(&mounts)?;
        let root = root.strip_prefix("/").unwrap_or(root).to_owned();
        let cgroups = Cgroups { hierarchies, root };
        cgroups.make(Path::new(""))?;
        Ok(cgroups)
    }

    pub(crate) fn is_v2(&self) -> bool {
        matches!(self.hierarchies, Hierarchies::V2(_))
    }

    /// The directories of a group, one per hierarchy.
    pub(crate) fn directories(&self, group: &Path) -> Vec<PathBuf> {
        let mut directories: Vec<PathBuf> = match &self.hierarchies {
            Hierarchies::V2(mount) => vec![mount.join(&self.root).join(group)],
            Hierarchies::V1(mounts) => mounts.values().map(|mount| mount.join(&self.root).join(group)).collect(),
        };
        directories.sort();
        directories.dedup();
        directories
    }

    /// The value of `linux.cgroupsPath` for a group.
    pub(crate) fn oci_path(&self, group: &Path) -> PathBuf {
        Path::new("/").join(&self.root).join(group)
    }

    fn v1(&self, controller: &str, group: &Path) -> io::Result<PathBuf> {
        match &self.hierarchies {
            Hierarchies::V2(mount) => Ok(mount.join(&self.root).join(group)),
            Hierarchies::V1(mounts) => match mounts.get(controller) {
                Some(mount) => Ok(mount.join(&self.root).join(group)),
                None => Err(io::Error::new(io::ErrorKind::NotFound, format!("no cgroup controller {controller}"))),
            },
        }
    }

    /// Makes a group and those above it. On version 2 the groups above hand their controllers down.
    pub(crate) fn make(&self, group: &Path) -> io::Result<()> {
        for directory in self.directories(group) {
            fs::create_dir_all(&directory)?;
        }
        if let Hierarchies::V2(mount) = &self.hierarchies {
            let whole = self.root.join(group);
            let mut at = mount.clone();
            for part in &whole {
                hand_down(&at)?;
                at.push(part);
            }
        }
        Ok(())
    }

    /// Sets a group's limits; those that are `None` stay as they are.
    pub(crate) fn limit(&self, group: &Path, resources: &Resources) -> io::Result<()> {
        match &self.hierarchies {
            Hierarchies::V2(_) => {
                let directory = self.v1("", group)?;
                if let Some(shares) = resources.cpu_shares {
                    put(&directory.join("cpu.weight"), &cpu_weight(shares).to_string())?;
                }
                if let Some(quota) = resources.cpu_quota {
                    put(&directory.join("cpu.max"), &format!("{quota} {CPU_PERIOD}"))?;
                }
                if let Some(bytes) = resources.memory_limit {
                    put(&directory.join("memory.max"), &bytes.to_string())?;
                    put_if_there(&directory.join("memory.swap.max"), "0")?;
                }
                if let Some(pids) = resources.pids_limit {
                    put(&directory.join("pids.max"), &pids.to_string())?;
                }
            }
            Hierarchies::V1(_) => {
                if let Some(shares) = resources.cpu_shares {
                    put(&self.v1("cpu", group)?.join("cpu.shares"), &shares.to_string())?;
                }
                if let Some(quota) = resources.cpu_quota {
                    let directory = self.v1("cpu", group)?;
                    put(&directory.join("cpu.cfs_period_us"), &CPU_PERIOD.to_string())?;
                    put(&directory.join("cpu.cfs_quota_us"), &quota.to_string())?;
                }
                if let Some(bytes) = resources.memory_limit {
                    limit_memory_v1(&self.v1("memory", group)?, bytes)?;
                }
                if let Some(pids) = resources.pids_limit {
                    put(&self.v1("pids", group)?.join("pids.max"), &pids.to_string())?;
                }
            }
        }
        Ok(())
    }

    /// Sets the limits of a pod: among each other pods weigh in proportion to their requests, which containers do not.
    ///
    /// Source: kubelet `cm/cgroup_manager_linux.go`, `getCPUWeight`.
    pub(crate) fn limit_pod(&self, group: &Path, resources: &Resources) -> io::Result<()> {
        if let Some(shares) = resources.cpu_shares {
            self.weigh(group, shares)?;
        }
        self.limit(group, &Resources { cpu_shares: None, ..resources.clone() })
    }

    /// Gives the classes of pods their share of the machine: that of all burstable pods together, and next to nothing.
    ///
    /// Source: kubelet `cm/qos_container_manager_linux.go`, `setCPUCgroupConfig`.
    pub(crate) fn weigh_classes(&self) -> io::Result<()> {
        let (burstable, best_effort) = (Path::new("kubepods/burstable"), Path::new("kubepods/besteffort"));
        self.make(burstable)?;
        self.make(best_effort)?;
        self.weigh(best_effort, MIN_SHARES)?;
        let mut shares = self.shares_below(burstable)?;
        loop {
            self.weigh(burstable, shares)?;
            // A pod that came or went meanwhile has been counted by neither, or by one that wrote before us.
            let now = self.shares_below(burstable)?;
            if now == shares {
                return Ok(());
            }
            shares = now;
        }
    }

    /// The shares of the pods of a class together.
    fn shares_below(&self, class: &Path) -> io::Result<u64> {
        let mut sum = 0;
        for entry in fs::read_dir(self.v1("cpu", class)?)? {
            let path = entry?.path();
            let read = if self.is_v2() {
                number(&path.join("cpu.weight")).map(shares_of_weight)
            } else {
                number(&path.join("cpu.shares"))
            };
            match read {
                Ok(shares) => sum += shares,
                // A file of the class itself, or a pod that went.
                Err(error) if is_gone(&error) || error.kind() == io::ErrorKind::NotADirectory => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sum.max(MIN_SHARES))
    }

    fn weigh(&self, group: &Path, shares: u64) -> io::Result<()> {
        let directory = self.v1("cpu", group)?;
        match &self.hierarchies {
            Hierarchies::V2(_) => put(&directory.join("cpu.weight"), &pod_weight(shares).to_string()),
            Hierarchies::V1(_) => put(&directory.join("cpu.shares"), &shares.to_string()),
        }
    }

    /// Makes the kernel kill the whole group when it runs out of memory; version 1 cannot.
    pub(crate) fn kill_as_one(&self, group: &Path) -> io::Result<()> {
        match &self.hierarchies {
            Hierarchies::V2(_) => put(&self.v1("", group)?.join("memory.oom.group"), "1"),
            Hierarchies::V1(_) => Ok(()),
        }
    }

    /// Allows only the devices that `rules` name; the last rule that matches decides, and none means no.
    pub(crate) fn limit_devices(&self, group: &Path, rules: &[DeviceRule]) -> io::Result<()> {
        let directory = self.v1("devices", group)?;
        if self.is_v2() {
            let program = device_program::compile(rules);
            let directory = fs::File::open(&directory)?;
            return crate::sys::load_device_program(&program, directory.as_fd());
        }
        put(&directory.join("devices.deny"), "a")?;
        for rule in rules {
            let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
            let file = if rule.allow { "devices.allow" } else { "devices.deny" };
            // `a` alone means everything; with numbers the kernel wants one kind a line.
            let kinds: &[char] = match rule.kind {
                'a' => &['b', 'c'],
                'b' => &['b'],
                _ => &['c'],
            };
            for kind in kinds {
                let line = format!("{kind} {}:{} {}", number(rule.major), number(rule.minor), rule.access);
                put(&directory.join(file), &line)?;
            }
        }
        Ok(())
    }

    /// Where the kernel counts the group's kills for want of memory.
    pub(crate) fn oom_counter(&self, group: &Path) -> Option<OomCounter> {
        let file = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        let directory = self.v1("memory", group).ok()?;
        Some(OomCounter { file: directory.join(file), key: "oom_kill".to_owned() })
    }

    /// Moves a process into a group, in every hierarchy.
    pub(crate) fn put_process(&self, group: &Path, pid: u32) -> io::Result<()> {
        self.directories(group).iter().try_for_each(|directory| put(&directory.join("cgroup.procs"), &pid.to_string()))
    }

    /// The processes of a group and of those below it.
    fn processes(&self, group: &Path) -> io::Result<Vec<Pid>> {
        let directory = self.v1("pids", group)?;
        let mut pids = Vec::new();
        for directory in tree(&directory)? {
            let text = match fs::read_to_string(directory.join("cgroup.procs")) {
                Err(error) if is_gone(&error) => continue,
                text => text?,
            };
            pids.extend(text.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw));
        }
        Ok(pids)
    }

    /// Kills every process of a group and of those below it, and waits until they are gone. Blocks.
    ///
    /// Version 1 has no `cgroup.kill`: the group is frozen so that nothing forks away, signalled one by one, and thawed.
    ///
    /// # Errors
    /// `TimedOut` when a process does not die within [`KILL_TIMEOUT`].
    pub(crate) fn kill(&self, group: &Path) -> io::Result<()> {
        let deadline = Instant::now() + KILL_TIMEOUT;
        let mut pause = Duration::from_micros(200);
        loop {
            match self.signal_all(group) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if is_gone(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "processes do not die"));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Sends SIGKILL to all; true when there was nobody left.
    fn signal_all(&self, group: &Path) -> io::Result<bool> {
        if self.processes(group)?.is_empty() {
            return Ok(true);
        }
        if let Hierarchies::V2(_) = self.hierarchies {
            match put(&self.v1("", group)?.join("cgroup.kill"), "1") {
                // Linux before 5.14.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => return result.map(|()| false),
            }
        }
        let freezer = match self.hierarchies {
            Hierarchies::V1(_) => self.v1("freezer", group).ok().map(|directory| directory.join("freezer.state")),
            Hierarchies::V2(_) => None,
        };
        if let Some(state) = &freezer {
            put_if_there(state, "FROZEN")?;
        }
        for pid in self.processes(group)? {
            match kill_process(pid, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(state) = &freezer {
            put_if_there(state, "THAWED")?;
        }
        Ok(false)
    }

    /// Removes a group and those below it, which must be empty of processes. A missing one is no error. Blocks.
    pub(crate) fn remove(&self, group: &Path) -> io::Result<()> {
        #[cfg(feature = "planted")]
        if planted::on(planted::Bug::LeakedCgroup) {
            return Ok(());
        }
        let deadline = Instant::now() + KILL_TIMEOUT;
        for directory in self.directories(group) {
            let mut all = match tree(&directory) {
                Err(error) if is_gone(&error) => continue,
                all => all?,
            };
            all.reverse();
            for directory in all {
                // A process that was reaped just now may still be counted: EBUSY for a moment.
                loop {
                    match fs::remove_dir(&directory) {
                        Ok(()) => break,
                        Err(error) if is_gone(&error) => break,
                        Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes a group unless it has processes or groups in it.
    pub(crate) fn remove_if_empty(&self, group: &Path) -> io::Result<()> {
        if self.processes(group)?.is_empty() { self.remove(group) } else { Ok(()) }
    }

    /// What a group uses now.
    pub(crate) fn stats(&self, group: &Path) -> io::Result<Stats> {
        match &self.hierarchies {
            Hierarchies::V2(_) => self.stats_v2(group),
            Hierarchies::V1(_) => self.stats_v1(group),
        }
    }

    fn stats_v2(&self, group: &Path) -> io::Result<Stats> {
        let directory = self.v1("", group)?;
        let cpu = fs::read_to_string(directory.join("cpu.stat"))?;
        let memory = fs::read_to_string(directory.join("memory.stat"))?;
        let usage = number(&directory.join("memory.current"))?;
        let inactive = field(&memory, "inactive_file").unwrap_or(0);
        Ok(Stats {
            cpu_nanos: field(&cpu, "usage_usec").unwrap_or(0) * 1000,
            memory_usage: usage,
            memory_working_set: usage.saturating_sub(inactive),
            memory_rss: field(&memory, "anon").unwrap_or(0),
            memory_page_faults: field(&memory, "pgfault").unwrap_or(0),
            memory_major_page_faults: field(&memory, "pgmajfault").unwrap_or(0),
            memory_limit: number(&directory.join("memory.max")).ok(),
            pids: number(&directory.join("pids.current"))?,
        })
    }

    fn stats_v1(&self, group: &Path) -> io::Result<Stats> {
        let memory_directory = self.v1("memory", group)?;
        let memory = fs::read_to_string(memory_directory.join("memory.stat"))?;
        let usage = number(&memory_directory.join("memory.usage_in_bytes"))?;
        let inactive = field(&memory, "total_inactive_file").unwrap_or(0);
        let limit = number(&memory_directory.join("memory.limit_in_bytes"))?;
        Ok(Stats {
            cpu_nanos: number(&self.v1("cpuacct", group)?.join("cpuacct.usage"))?,
            memory_usage: usage,
            memory_working_set: usage.saturating_sub(inactive),
            memory_rss: field(&memory, "total_rss").unwrap_or(0),
            memory_page_faults: field(&memory, "total_pgfault").unwrap_or(0),
            memory_major_page_faults: field(&memory, "total_pgmajfault").unwrap_or(0),
            // Unlimited is the largest multiple of a page.
            memory_limit: (limit < i64::MAX as u64 - 65_536).then_some(limit),
            pids: number(&self.v1("pids", group)?.join("pids.current"))?,
        })
    }
}

/// Finds the hierarchies in a mount table.
fn find(mountinfo: &str) -> io::Result<Hierarchies> {
    let mut v1 = BTreeMap::new();
    let mut v2 = None;
    for line in mountinfo.lines() {
        let Some((mount, source)) = line.split_once(" - ") else { continue };
        let Some(target) = mount.split(' ').nth(4) else { continue };
        let mut source = source.split(' ');
        match source.next() {
            Some("cgroup2") => v2 = Some(PathBuf::from(target)),
            Some("cgroup") => {
                let options = source.nth(1).unwrap_or_default();
                for controller in CONTROLLERS {
                    if options.split(',').any(|option| option == controller) {
                        v1.insert(controller, PathBuf::from(target));
                    }
                }
            }
            _ => {}
        }
    }
    let missing = |what: &str| io::Error::new(io::ErrorKind::NotFound, format!("no cgroup controller {what}"));
    match v2 {
        // A hybrid machine mounts version 2 without controllers.
        Some(mount) if v1.is_empty() => {
            let there = fs::read_to_string(mount.join("cgroup.controllers"))?;
            for controller in ["cpu", "memory", "pids"] {
                if !there.split_whitespace().any(|name| name == controller) {
                    return Err(missing(controller));
                }
            }
            Ok(Hierarchies::V2(mount))
        }
        _ => match CONTROLLERS.iter().find(|controller| !v1.contains_key(**controller)) {
            Some(controller) => Err(missing(controller)),
            None => Ok(Hierarchies::V1(v1)),
        },
    }
}

/// Enables the controllers that exist for the groups below `directory`.
fn hand_down(directory: &Path) -> io::Result<()> {
    let available = fs::read_to_string(directory.join("cgroup.controllers"))?;
    let enabled = fs::read_to_string(directory.join("cgroup.subtree_control"))?;
    for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
        let has = |list: &str| list.split_whitespace().any(|name| name == controller);
        if has(&available) && !has(&enabled) {
            put(&directory.join("cgroup.subtree_control"), &format!("+{controller}"))?;
        }
    }
    Ok(())
}

/// With swap accounting the sum of memory and swap must never be below memory: the order depends on the direction.
fn limit_memory_v1(directory: &Path, bytes: u64) -> io::Result<()> {
    let (memory, both) = (directory.join("memory.limit_in_bytes"), directory.join("memory.memsw.limit_in_bytes"));
    let text = bytes.to_string();
    if put(&memory, &text).is_err() {
        put_if_there(&both, &text)?;
        put(&memory, &text)?;
    }
    put_if_there(&both, &text)
}

/// `cpu.weight` of a pod or a class: a straight line from 2 shares to 262144.
fn pod_weight(shares: u64) -> u64 {
    1 + (shares.clamp(MIN_SHARES, MAX_SHARES) - MIN_SHARES) * 9999 / (MAX_SHARES - MIN_SHARES)
}

/// The fewest shares that have this weight.
fn shares_of_weight(weight: u64) -> u64 {
    MIN_SHARES + (weight.saturating_sub(1) * (MAX_SHARES - MIN_SHARES)).div_ceil(9999)
}

/// `cpu.weight` of a container for version 1's shares: 1024 is 100, 102 is 17, 2 is 1, 262144 is 10000.
///
/// Source: `opencontainers/cgroups` `utils.go`, `ConvertCPUSharesToCgroupV2Value` since 0.0.3.
pub(crate) fn cpu_weight(shares: u64) -> u64 {
    match shares {
        0 | 1 => 1,
        2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

/// A directory and all below it, parents first.
fn tree(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = vec![directory.to_owned()];
    let mut next = 0;
    while next < all.len() {
        for entry in fs::read_dir(&all[next])? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                all.push(entry.path());
            }
        }
        next += 1;
    }
    Ok(all)
}

fn is_gone(error: &io::Error) -> bool {
    // ENODEV: the group was removed between open and read.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn put(file: &Path, value: &str) -> io::Result<()> {
    // Opened without O_CREAT: in a cgroup file system that is EACCES instead of ENOENT.
    let mut opened = fs::OpenOptions::new().write(true).open(file)?;
    io::Write::write_all(&mut opened, value.as_bytes())
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
}

fn put_if_there(file: &Path, value: &str) -> io::Result<()> {
    match put(file, value) {
        Err(error) if is_gone(&error) => Ok(()),
        result => result,
    }
}

fn number(file: &Path) -> io::Result<u64> {
    fs::read_to_string(file)?.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// The number after `key` in a file of `key number` lines.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_follow_the_shares() {
        let weights: Vec<u64> = [2, 102, 256, 512, 1024, 2048, 262_144].into_iter().map(cpu_weight).collect();
        assert_eq!(weights, [1, 17, 35, 59, 100, 174, 10_000]);
    }

    #[test]
    fn pods_weigh_in_proportion() {
        let weights: Vec<u64> = [2, 102, 1024, 2048, 262_144, 300_000].into_iter().map(pod_weight).collect();
        assert_eq!(weights, [1, 4, 39, 79, 10_000, 10_000]);
        for weight in [1, 4, 39, 5000, 10_000] {
            assert_eq!(pod_weight(shares_of_weight(weight)), weight);
        }
    }

    #[test]
    fn hybrid_machines_are_version_1() {
        let line =
            |target: &str, kind: &str, options: &str| format!("1 2 0:3 / {target} rw - {kind} {kind} rw,{options}\n");
        let mut table = line("/sys/fs/cgroup/unified", "cgroup2", "nsdelegate");
        table += &line("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "cpu,cpuacct");
        for name in ["memory", "pids", "devices", "freezer"] {
            table += &line(&format!("/sys/fs/cgroup/{name}"), "cgroup", name);
        }
        let Ok(Hierarchies::V1(mounts)) = find(&table) else { panic!("not version 1") };
        assert_eq!(mounts["cpuacct"], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
    }

    #[test]
    fn a_missing_controller_is_named() {
        let error = find("1 2 0:3 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n").unwrap_err();
        assert_eq!(error.to_string(), "no cgroup controller memory");
    }

    #[test]
    fn fields_are_whole_words() {
        assert_eq!(field("oom 1\noom_kill 3\n", "oom"), Some(1));
        assert_eq!(field("oom 1\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(field("total_rss 5\n", "rss"), None);
    }

    /// A version 2 group with a process in it, on whatever version 2 hierarchy there is: a hybrid machine's has no controllers, but
    /// killing, forking into it and device programs need none.
    struct Group {
        cgroups: Cgroups,
        child: std::process::Child,
    }

    impl Group {
        fn new(name: &str, command: &[&str]) -> Group {
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("version 2 is mounted");
            let mount = PathBuf::from(line.split(' ').nth(4).unwrap());
            let root = PathBuf::from(format!("coracle-cgroup-{}-{name}", std::process::id()));
            let cgroups = Cgroups { hierarchies: Hierarchies::V2(mount), root };
            cgroups.make(Path::new("a/b")).unwrap();
            let mut child = std::process::Command::new(command[0])
                .args(&command[1..])
                .stdin(std::process::Stdio::piped())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            cgroups.put_process(Path::new("a/b"), child.id()).unwrap();
            // The command begins when its input does.
            io::Write::write_all(child.stdin.as_mut().unwrap(), b"go\n").unwrap();
            Group { cgroups, child }
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            self.cgroups.kill(Path::new("")).unwrap();
            self.child.wait().unwrap();
            self.cgroups.remove(Path::new("")).unwrap();
        }
    }

    #[test]
    fn version_2_kills_a_group_with_all_below() {
        let mut group = Group::new("kill", &["sh", "-c", "read x; sleep 600 & sleep 600"]);
        group.cgroups.kill(Path::new("a")).unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(group.child.wait().unwrap().signal(), Some(9));
        group.cgroups.remove(Path::new("a")).unwrap();
        assert_eq!(group.cgroups.processes(Path::new("a")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn version_2_takes_a_child_as_it_is_forked() {
        let group = Group::new("fork", &["sleep", "600"]);
        let directory = fs::File::open(group.cgroups.v1("", Path::new("a")).unwrap()).unwrap();
        let Some(pid) = crate::sys::fork(0, Some(directory.as_fd())).unwrap() else {
            loop {
                crate::sys::wait_for_signal();
            }
        };
        let child = Pid::from_raw(pid.try_into().unwrap()).unwrap();
        assert!(group.cgroups.processes(Path::new("a")).unwrap().contains(&child));
        kill_process(child, Signal::KILL).unwrap();
        rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()).unwrap();
    }

    #[test]
    fn version_2_opens_only_allowed_devices() {
        let open = |allow: bool| {
            let name = if allow { "devices-yes" } else { "devices-no" };
            let mut group = Group::new(name, &["sh", "-c", "read x; read y; : < /dev/full"]);
            let rule = DeviceRule { allow, kind: 'c', major: Some(1), minor: Some(7), access: "rwm".to_owned() };
            let none = DeviceRule { allow: false, kind: 'a', major: None, minor: None, access: "rwm".to_owned() };
            group.cgroups.limit_devices(Path::new("a/b"), &[none, rule]).unwrap();
            io::Write::write_all(group.child.stdin.as_mut().unwrap(), b"go\n").unwrap();
            group.child.wait().unwrap().success()
        };
        assert!(open(true));
        assert!(!open(false));
    }
}
