//! What lies on the host and in the kernel: after a round there must be as much of it as before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::checker::Violation;
use super::nft;
use crate::host::cgroups_below;
use crate::rack::Rack;

pub const LEAKS: &str = "nothing leaks";

/// How many of each there are, by sort and name. Numbers within names are not kept: a pod that was killed has other ones.
pub type Inventory = BTreeMap<&'static str, BTreeMap<String, usize>>;

/// Descriptors that a process may have more than before: connections that wait for their next request.
const IDLE_CONNECTIONS: usize = 16;
/// Of a sort that is opened and closed all the time.
const AT_WORK: usize = 3;

/// Looks at everything that the rack's host has.
///
/// # Errors
/// When main does not run, or a tool is missing.
pub fn take(rack: &Rack) -> Result<Inventory> {
    let host = rack.lab.host(0);
    let list = |dir: &str| -> Result<BTreeMap<String, usize>> {
        let listed = host.run(&["sh", "-c", &format!("ls {dir} 2>/dev/null || true")])?;
        // Pods have names that are told apart; those of others are their uids.
        Ok(count(listed.lines().map(str::to_owned)))
    };
    let mounts = host.run(&["cat", "/proc/self/mounts"])?;
    // What the machine's own /run had when the host was made is there as well, and goes when it goes there.
    let ours = |place: &&str| ["/var/lib/", "/run/coracle", "/var/log/"].iter().any(|dir| place.starts_with(dir));
    let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(ours).map(without_numbers);
    let links = host.run(&["ip", "-o", "link"])?;
    let links = links.lines().filter_map(|line| line.split(' ').nth(1)).map(without_numbers);
    let (rules, elements) = nft::look(host, &rack.lab.host_netns(0))?;
    let groups = cgroups_below(&host.cgroup_root);
    let (main, edge, shims) = (rack.pid("main")?, rack.pid("edge")?, rack.shims()?);
    let processes: BTreeSet<u32> = groups.iter().flat_map(|group| processes_in(group)).collect();
    let namespaces = processes.iter().filter_map(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).ok());
    let namespaces: BTreeSet<PathBuf> = namespaces.collect();
    let parents: BTreeSet<u32> = [main, edge].into_iter().chain(shims.iter().copied()).collect();
    Ok(BTreeMap::from([
        ("run directory", list("/run/coracle/pods")?),
        ("pod directory", list("/var/lib/kubelet/pods")?),
        ("log directory", list("/var/log/pods")?),
        ("mount", count(mounts)),
        ("link", count(links)),
        ("nft rule", count(rules.lines().map(without_counters))),
        ("nft element of", elements.into_iter().collect()),
        ("cgroup", count(groups.iter().map(|group| without_numbers(&group.to_string_lossy())))),
        ("process", count(processes.iter().filter_map(|pid| Some(without_numbers(&comm(*pid)?))))),
        ("network namespace", BTreeMap::from([("of processes".to_owned(), namespaces.len())])),
        ("zombie", count(zombies_of(&parents)?.into_iter())),
        ("descriptor of main", descriptors(main)),
        ("descriptor of the edge", descriptors(edge)),
        ("descriptor of shims", sum(shims.iter().map(|pid| descriptors(*pid)))),
    ]))
}

/// What there is more of, or less, than before.
pub fn compare(before: &Inventory, after: &Inventory) -> Vec<Violation> {
    let nothing = BTreeMap::new();
    let mut violations = Vec::new();
    for sort in before.keys().chain(after.keys()).copied().collect::<BTreeSet<_>>() {
        let (was, is) = (before.get(sort).unwrap_or(&nothing), after.get(sort).unwrap_or(&nothing));
        for name in was.keys().chain(is.keys()).collect::<BTreeSet<_>>() {
            let (was, is) = (was.get(name).copied().unwrap_or(0), is.get(name).copied().unwrap_or(0));
            let (more, less) = match sort {
                _ if !sort.starts_with("descriptor") => (0, 0),
                // Each is a namespace that cannot go.
                _ if name.starts_with("net:") => (0, usize::MAX),
                _ if name.starts_with("socket:") => (IDLE_CONNECTIONS, usize::MAX),
                _ => (AT_WORK, usize::MAX),
            };
            if is > was + more || is < was.saturating_sub(less) {
                let what = format!("{sort} {name}: there were {was} and there are {is}");
                violations.push(Violation { rule: LEAKS, what });
            }
        }
    }
    violations
}

fn count(names: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    names.for_each(|name| *counted.entry(name).or_default() += 1);
    counted
}

fn sum(all: impl Iterator<Item = BTreeMap<String, usize>>) -> BTreeMap<String, usize> {
    let mut summed = BTreeMap::new();
    all.flatten().for_each(|(name, n)| *summed.entry(name).or_default() += n);
    summed
}

/// With every run of hexadecimal digits that holds a decimal one as `#`.
fn without_numbers(name: &str) -> String {
    let (mut shown, mut run) = (String::new(), String::new());
    for letter in name.chars().chain(['\n']) {
        if letter.is_ascii_hexdigit() {
            run.push(letter);
            continue;
        }
        let is_number = run.bytes().any(|byte| byte.is_ascii_digit());
        shown.push_str(if is_number { "#" } else { &run });
        run.clear();
        shown.push(letter);
    }
    shown.trim_end().to_owned()
}

/// A rule without what differs from moment to moment.
fn without_counters(rule: &str) -> String {
    without_numbers(rule.split(" counter ").next().unwrap_or_default().trim())
}

fn processes_in(group: &Path) -> Vec<u32> {
    let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    pids.lines().filter_map(|pid| pid.parse().ok()).collect()
}

fn comm(pid: u32) -> Option<String> {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    // What a counting pod sleeps for comes and goes.
    Some(comm.trim().to_owned()).filter(|comm| comm != "sleep")
}

/// Ended children that one of these has not waited for.
fn zombies_of(parents: &BTreeSet<u32>) -> Result<Vec<String>> {
    let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let zombie = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let is_zombie =
            fields.next() == Some("Z") && fields.next()?.parse().is_ok_and(|parent| parents.contains(&parent));
        is_zombie.then(|| without_numbers(name.split_once('(').map_or("", |(_, name)| name)))
    };
    Ok(pids.filter_map(zombie).collect())
}

/// A process's descriptors by what they lead to.
fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    count(links.filter_map(|link| Some(without_numbers(&fs::read_link(link.path()).ok()?.to_string_lossy()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(sort: &'static str, name: &str, count: usize) -> Inventory {
        BTreeMap::from([(sort, BTreeMap::from([(name.to_owned(), count)]))])
    }

    #[track_caller]
    fn check(sort: &'static str, name: &str, before: usize, after: usize, is_leak: bool) {
        let violations = compare(&inventory(sort, name, before), &inventory(sort, name, after));
        assert_eq!(!violations.is_empty(), is_leak, "{violations:?}");
    }

    #[test]
    fn what_there_is_more_of_is_a_leak() {
        check("mount", "/a", 2, 2, false);
        check("mount", "/a", 2, 3, true);
        check("mount", "/a", 2, 1, true);
        check("descriptor of main", "socket:[#]", 5, 12, false);
        check("descriptor of main", "socket:[#]", 5, 40, true);
        check("descriptor of main", "/dev/null", 5, 1, false);
        check("descriptor of main", "net:[#]", 3, 4, true);
    }

    #[test]
    fn numbers_are_not_part_of_a_name() {
        assert_eq!(without_numbers("net:[4026531840]"), "net:[#]");
        assert_eq!(without_numbers("/pods/6fb2a1c0-77aa/face"), "/pods/#-#/face");
    }
}
