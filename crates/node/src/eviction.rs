//! Which pods use more of the node's disk than they may: emptyDirs above their size, containers and pods above their limits of
//! ephemeral storage. Deciding is pure; measuring walks the pod's own directories.
//!
//! Source: eviction/eviction_manager.go, `localStorageEviction` and `evictPod`. Such a pod gets no condition `DisruptionTarget`: that
//! is for pods that go without being at fault, which here they never do.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::resources::{self, Side};
use crate::volumes;

/// Between two measurements of a pod that has limits. Source: kubelet.go, `evictionMonitoringPeriod`.
pub const EVERY: Duration = Duration::from_secs(10);
const STORAGE: &str = "ephemeral-storage";
/// From this priority on pods are never evicted. Source: types/pod_update.go, `IsCriticalPod`.
const CRITICAL: i32 = 2_000_000_000;

/// Bytes on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By name, of emptyDirs on disk.
    pub volumes: BTreeMap<String, u64>,
    /// By name: what a container changed in its root, and its logs.
    pub containers: BTreeMap<String, u64>,
}

/// Whether anything of the pod's usage is limited at all, and the pod may go for it.
pub fn is_limited(spec: &PodSpec) -> bool {
    let limited = limited_volumes(spec).next().is_some() || resources::of_pod(spec, Side::Limits).contains_key(STORAGE);
    limited && spec.priority.is_none_or(|priority| priority < CRITICAL)
}

/// The containers whose usage counts: those that run as long as the pod does.
pub fn measured(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let init = spec.init_containers.iter().flatten();
    spec.containers.iter().chain(init.filter(|container| container.restart_policy.as_deref() == Some("Always")))
}

/// Why the pod has to go, when it uses more than it may.
pub fn verdict(spec: &PodSpec, usage: &Usage) -> Option<String> {
    for (name, limit) in limited_volumes(spec) {
        if usage.volumes.get(name).is_some_and(|used| exceeds(*used, limit)) {
            return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ", limit.to_string()));
        }
    }
    let all: u64 = usage.volumes.values().chain(usage.containers.values()).sum();
    // Without a limit on every container the pod as a whole has that of those that do.
    if let Some(limit) = resources::of_pod(spec, Side::Limits).get(STORAGE).copied()
        && exceeds(all, limit)
    {
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "));
    }
    let over = measured(spec).find_map(|container| {
        let limit = limit_of(container)?;
        let used = usage.containers.get(&container.name).copied().unwrap_or(0);
        exceeds(used, limit).then(|| (container.name.clone(), limit))
    });
    over.map(|(name, limit)| {
        format!("Container {name} exceeded its local ephemeral storage limit {:?}. ", limit.to_string())
    })
}

fn exceeds(used: u64, limit: Quantity) -> bool {
    i64::try_from(used).is_ok_and(|used| used > limit.value())
}

fn limit_of(container: &Container) -> Option<Quantity> {
    resources::of_container(container, Side::Limits).get(STORAGE).copied().filter(|limit| !limit.is_zero())
}

/// The kernel limits those in memory.
fn limited_volumes(spec: &PodSpec) -> impl Iterator<Item = (&str, Quantity)> {
    spec.volumes.iter().flatten().filter_map(|volume| {
        let dir = volume.empty_dir.as_ref().filter(|dir| dir.medium.as_deref().unwrap_or_default().is_empty())?;
        let limit: Quantity = dir.size_limit.as_ref()?.0.parse().ok()?;
        (!limit.is_zero()).then_some((volume.name.as_str(), limit))
    })
}

/// Where a pod's usage is found.
#[derive(Clone, Debug)]
pub struct Places {
    /// The pod's directory.
    pub dir: PathBuf,
    pub logs: PathBuf,
    /// What each container changes in its root, by name.
    pub roots: BTreeMap<String, PathBuf>,
}

/// Measures a pod. Blocks. Files that go meanwhile count as nothing.
pub fn measure(pod: &Pod, places: &Places) -> Usage {
    let spec = pod.spec.clone().unwrap_or_default();
    let on_disk = spec.volumes.iter().flatten().filter(|volume| {
        volume.empty_dir.as_ref().is_some_and(|dir| dir.medium.as_deref().unwrap_or_default().is_empty())
    });
    let volumes = on_disk.map(|volume| {
        let path = volumes::empty_dir_place(&places.dir, &volume.name);
        (volume.name.clone(), disk_usage(&path))
    });
    let containers =
        places.roots.iter().map(|(name, root)| (name.clone(), disk_usage(root) + disk_usage(&places.logs.join(name))));
    Usage { volumes: volumes.collect(), containers: containers.collect() }
}

/// The space that a directory and all below it take. Links are not followed, other disks are not entered.
fn disk_usage(dir: &Path) -> u64 {
    let Ok(top) = dir.symlink_metadata() else { return 0 };
    let (mut sum, mut todo) = (0, vec![dir.to_owned()]);
    while let Some(path) = todo.pop() {
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.dev() != top.dev() {
            continue;
        }
        sum += metadata.blocks() * 512;
        if metadata.is_dir() {
            todo.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(spec: Value, volumes: &[(&str, u64)], containers: &[(&str, u64)], expected: Option<&str>) {
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let named = |list: &[(&str, u64)]| list.iter().map(|(name, used)| ((*name).to_owned(), *used)).collect();
        let usage = Usage { volumes: named(volumes), containers: named(containers) };
        assert!(is_limited(&spec));
        assert_eq!(verdict(&spec, &usage).as_deref(), expected);
    }

    #[test]
    fn an_empty_dir_has_its_size() {
        let spec = json!({"containers": [], "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]});
        check(spec.clone(), &[("v", 1 << 20)], &[], None);
        let why = "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ";
        check(spec, &[("v", (1 << 20) + 1)], &[], Some(why));
    }

    #[test]
    fn containers_have_their_limits_and_the_pod_their_sum() {
        let container = |name: &str| json!({"name": name, "resources": {"limits": {"ephemeral-storage": "1Mi"}}});
        let spec = json!({"containers": [container("a"), container("b")]});
        let (less, more) = (1 << 19, (1 << 20) + 1);
        check(spec.clone(), &[("v", less)], &[("a", less), ("b", less)], None);
        let of_one = "Container b exceeded its local ephemeral storage limit \"1Mi\". ";
        check(spec.clone(), &[], &[("a", less), ("b", more)], Some(of_one));
        let of_all = "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ";
        check(spec, &[("v", 2 << 20)], &[("a", less)], Some(of_all));
    }

    #[test]
    fn sidecars_count_and_other_init_containers_do_not() {
        let limit = |size: &str| json!({"limits": {"ephemeral-storage": size}});
        let init = json!({"name": "i", "resources": limit("1Mi")});
        let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": limit("1Mi")});
        let main = json!({"name": "a", "resources": limit("8Mi")});
        let spec = json!({"initContainers": [init, sidecar], "containers": [main]});
        let more = (1 << 20) + 1;
        let why = "Container s exceeded its local ephemeral storage limit \"1Mi\". ";
        check(spec.clone(), &[], &[("s", more)], Some(why));
        check(spec, &[], &[("i", more)], None);
    }

    #[test]
    fn critical_pods_stay() {
        let spec = |priority: i32| {
            let spec = json!({"containers": [], "priority": priority, "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]});
            serde_json::from_value(spec).unwrap()
        };
        assert!(is_limited(&spec(1_999_999_999)));
        assert!(!is_limited(&spec(2_000_000_000)));
    }

    #[test]
    fn memory_is_not_measured_here() {
        let spec =
            json!({"containers": [], "volumes": [{"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]});
        assert!(!is_limited(&serde_json::from_value(spec).unwrap()));
    }
}
