//! The Node object and its Lease: what this machine is, and that it lives.
//!
//! A task of its own: nothing that pods do can hold up a heartbeat. Sources: kubelet_node_status.go; nodestatus/setters.go;
//! component-helpers `apimachinery/lease/controller.go`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::quantity::{Format, Quantity};
use api::status::Status;
use client::{Client, Clock, PatchType};
use image::store::ImageStore;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use crate::resources::Amounts;
use crate::shared::Machine;

/// Source: KubeletConfiguration, `nodeLeaseDurationSeconds` 40, renewed after a quarter of it.
const LEASE_SECONDS: i32 = 40;
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// A status that does not change is told this rarely. Source: `nodeStatusReportFrequency`.
const REPORT_EVERY: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_millis(200);
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Images shown. Source: `nodeStatusMaxImages`.
const MAX_IMAGES: usize = 50;

/// What the Node object says about itself.
#[derive(Clone)]
pub struct Identity {
    pub name: String,
    pub ips: Vec<IpAddr>,
    pub pod_cidrs: Vec<String>,
    /// Such as `v1.37.2+coracle.1`.
    pub version: String,
    /// Where the kubelet's endpoint listens.
    pub port: u16,
    pub data_dir: std::path::PathBuf,
}

/// Measures the machine. `data_dir` lies on the disk that pods write to.
pub fn measure(data_dir: &std::path::Path, max_pods: u16) -> Machine {
    let memory_bytes = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_memory(&text)).unwrap_or(0);
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let disk = rustix::fs::statvfs(data_dir).map_or(0, |stat| stat.f_blocks * stat.f_frsize);
    let whole = |number: u64, format| Quantity::new(i64::try_from(number).unwrap_or(i64::MAX), format);
    let allocatable = Amounts::from([
        ("cpu".to_owned(), whole(cpus as u64, Format::DecimalSi)),
        ("memory".to_owned(), whole(memory_bytes / 1024 * 1024, Format::BinarySi)),
        ("ephemeral-storage".to_owned(), whole(disk, Format::BinarySi)),
        ("pods".to_owned(), Quantity::new(max_pods.into(), Format::DecimalSi)),
    ]);
    Machine { memory_bytes, allocatable }
}

fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

fn trimmed(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The system's name as os-release gives it.
fn os_image() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The labels that a node gives itself.
fn labels(name: &str) -> BTreeMap<String, String> {
    [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn fresh_node(identity: &Identity) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": identity.name, "labels": labels(&identity.name), "annotations": {"node.alpha.kubernetes.io/ttl": "0"}},
        "spec": {"podCIDR": identity.pod_cidrs.first(), "podCIDRs": identity.pod_cidrs},
    })
}

/// How much room is left, for the pressure conditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

/// Source: eviction defaults: memory.available<100Mi, nodefs.available<10 %, nodefs.inodesFree<5 %.
fn pressure(data_dir: &std::path::Path) -> Pressure {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available: Option<u64> = available.and_then(|line| line.split_whitespace().next()?.parse().ok());
    let disk = rustix::fs::statvfs(data_dir).is_ok_and(|stat| {
        let short_of_inodes = stat.f_files > 0 && stat.f_favail * 20 < stat.f_files;
        stat.f_bavail * 10 < stat.f_blocks || short_of_inodes
    });
    let number = |path: &str| trimmed(path).parse::<u64>().ok();
    let processes =
        trimmed("/proc/loadavg").split(' ').nth(3).and_then(|part| part.split('/').nth(1)?.parse::<u64>().ok());
    let pids = match (processes, number("/proc/sys/kernel/pid_max")) {
        (Some(used), Some(max)) => used * 10 > max * 9,
        _ => false,
    };
    Pressure { memory: available.is_some_and(|kib| kib < 100 << 10), disk, pids }
}

/// The status as it should be, the transition times of `old` kept where nothing changed.
fn status(
    identity: &Identity,
    machine: &Machine,
    images: &ImageStore,
    pressure: Pressure,
    old: &Value,
    now: Timestamp,
) -> Value {
    let amounts: BTreeMap<String, String> =
        machine.allocatable.iter().map(|(name, amount)| (name.clone(), amount.to_string())).collect();
    let mut addresses: Vec<Value> =
        identity.ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()})).collect();
    addresses.push(json!({"type": "Hostname", "address": identity.name}));
    json!({
        "capacity": amounts,
        "allocatable": amounts,
        "addresses": addresses,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": identity.port}},
        "nodeInfo": {
            "machineID": trimmed("/etc/machine-id"),
            "systemUUID": trimmed("/sys/class/dmi/id/product_uuid"),
            "bootID": trimmed("/proc/sys/kernel/random/boot_id"),
            "kernelVersion": trimmed("/proc/sys/kernel/osrelease"),
            "osImage": os_image(),
            "containerRuntimeVersion": format!("coracle://{}", identity.version.trim_start_matches('v')),
            "kubeletVersion": identity.version,
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": architecture(),
        },
        "features": {"supplementalGroupsPolicy": true},
        "runtimeHandlers": runtime_handlers(),
        "images": image_list(images),
        "conditions": conditions(pressure, &old["conditions"], now),
    })
}

/// The default one has no name.
fn runtime_handlers() -> Vec<Value> {
    let all = std::iter::once("").chain(crate::worker::HANDLERS);
    all.map(|name| json!({"name": name, "features": {"recursiveReadOnlyMounts": true, "userNamespaces": false}}))
        .collect()
}

fn image_list(images: &ImageStore) -> Vec<Value> {
    let mut all = images.list();
    all.sort_by_key(|image| std::cmp::Reverse(image.size));
    let shown = all.iter().take(MAX_IMAGES).map(|image| {
        let names: Vec<&String> = image.repo_digests.iter().chain(&image.repo_tags).take(5).collect();
        json!({"names": names, "sizeBytes": image.size})
    });
    shown.collect()
}

fn conditions(pressure: Pressure, old: &Value, now: Timestamp) -> Vec<Value> {
    let stamp = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let one = |name: &str, status: bool, reason: &str, message: &str| {
        let text = if status { "True" } else { "False" };
        let before = old.as_array().into_iter().flatten().find(|condition| condition["type"] == name);
        let since = before
            .filter(|condition| condition["status"] == text)
            .map(|condition| condition["lastTransitionTime"].clone());
        let since = since.filter(Value::is_string).unwrap_or_else(|| json!(stamp));
        json!({"type": name, "status": text, "reason": reason, "message": message,
            "lastHeartbeatTime": stamp, "lastTransitionTime": since})
    };
    let memory = if pressure.memory {
        ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available")
    } else {
        ("KubeletHasSufficientMemory", "kubelet has sufficient memory available")
    };
    let disk = if pressure.disk {
        ("KubeletHasDiskPressure", "kubelet has disk pressure")
    } else {
        ("KubeletHasNoDiskPressure", "kubelet has no disk pressure")
    };
    let pids = if pressure.pids {
        ("KubeletHasInsufficientPID", "kubelet has insufficient PID available")
    } else {
        ("KubeletHasSufficientPID", "kubelet has sufficient PID available")
    };
    vec![
        one("MemoryPressure", pressure.memory, memory.0, memory.1),
        one("DiskPressure", pressure.disk, disk.0, disk.1),
        one("PIDPressure", pressure.pids, pids.0, pids.1),
        one("Ready", true, "KubeletReady", "kubelet is posting ready status"),
    ]
}

/// Registers the node, or takes an existing registration over, and returns it as the API has it.
///
/// # Errors
/// When the API refuses; try again.
pub async fn register(client: &Client, identity: &Identity) -> Result<Node, Status> {
    let fresh: Node = serde_json::from_value(fresh_node(identity)).map_err(Status::internal)?;
    match client.create(&fresh).await {
        Ok(node) => return Ok(node),
        Err(error) if error.is_already_exists() => {}
        Err(error) => return Err(error),
    }
    let node: Node = client.get("", &identity.name).await?;
    let wanted = labels(&identity.name);
    let have = node.metadata.labels.clone().unwrap_or_default();
    if wanted.iter().all(|(key, value)| have.get(key) == Some(value)) {
        return Ok(node);
    }
    client.patch("", &identity.name, PatchType::Merge, json!({"metadata": {"labels": wanted}})).await
}

/// Keeps the Node's status and Lease alive. Never returns; `registered` is called once the node stands in the API and is Ready.
pub async fn keep_alive(
    client: Client,
    identity: Identity,
    machine: Machine,
    images: ImageStore,
    clock: Clock,
    registered: impl FnOnce(Node) + Send,
) {
    let node = loop {
        match begin(&client, &identity, &machine, &images, &clock).await {
            Ok(node) => break node,
            Err(error) => {
                debug!(%error, "node not registered yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    info!(node = identity.name, "node registered");
    let mut lease = Heartbeat { client: client.clone(), name: identity.name.clone(), uid: node.metadata.uid.clone() };
    registered(node);
    let mut ticks = tokio::time::interval(RENEW_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = (Pressure::default(), 0, tokio::time::Instant::now());
    loop {
        ticks.tick().await;
        if let Err(error) = lease.renew(clock()).await {
            warn!(%error, "lease not renewed");
        }
        let now = (pressure(&identity.data_dir), images.list().len());
        let due = last.2.elapsed() >= REPORT_EVERY || now != (last.0, last.1);
        if due {
            match report(&client, &identity, &machine, &images, clock()).await {
                Ok(()) => last = (now.0, now.1, tokio::time::Instant::now()),
                Err(error) if error.is_not_found() => {
                    info!(node = identity.name, "the Node object was deleted: registering again");
                    if let Err(error) = register(&client, &identity).await {
                        warn!(%error, "node not registered");
                    }
                }
                Err(error) => warn!(%error, "node status not written"),
            }
        }
    }
}

async fn begin(
    client: &Client,
    identity: &Identity,
    machine: &Machine,
    images: &ImageStore,
    clock: &Clock,
) -> Result<Node, Status> {
    register(client, identity).await?;
    report(client, identity, machine, images, clock()).await?;
    client.get("", &identity.name).await
}

async fn report(
    client: &Client,
    identity: &Identity,
    machine: &Machine,
    images: &ImageStore,
    now: Timestamp,
) -> Result<(), Status> {
    let node: Node = client.get("", &identity.name).await?;
    let old = serde_json::to_value(&node.status).map_err(Status::internal)?;
    let status = status(identity, machine, images, pressure(&identity.data_dir), &old, now);
    let mut status = status;
    // What others advertise by setting a capacity can be allocated. Source: nodestatus/setters.go, `MachineInfo`.
    for (name, amount) in old["capacity"].as_object().into_iter().flatten() {
        if name.contains('/') && !name.contains("kubernetes.io/") {
            status["allocatable"][name] = amount.clone();
        }
    }
    // A merge patch replaces lists whole; conditions of others are kept by hand.
    let ours = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];
    let foreign = old["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|condition| condition["type"].as_str().is_some_and(|name| !ours.contains(&name)));
    let foreign: Vec<Value> = foreign.cloned().collect();
    if let Some(conditions) = status["conditions"].as_array_mut() {
        conditions.splice(0..0, foreign);
    }
    client.patch_status::<Node>("", &identity.name, PatchType::Merge, json!({"status": status})).await.map(drop)
}

struct Heartbeat {
    client: Client,
    name: String,
    uid: Option<String>,
}

impl Heartbeat {
    /// Changes nothing but the time, so that the store need not write it at once.
    async fn renew(&mut self, now: Timestamp) -> Result<(), Status> {
        let time = MicroTime(now);
        let patch =
            json!({"spec": {"renewTime": time, "holderIdentity": self.name, "leaseDurationSeconds": LEASE_SECONDS}});
        #[cfg(feature = "planted")]
        let patch = if planted::on(planted::Bug::LeaseNotRenewed) { json!({}) } else { patch };
        match self.client.patch::<Lease>(LEASE_NAMESPACE, &self.name, PatchType::Merge, patch).await {
            Err(error) if error.is_not_found() => {}
            result => return result.map(drop),
        }
        let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": self.name, "uid": self.uid}]);
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(LEASE_NAMESPACE.to_owned()),
                owner_references: serde_json::from_value(owner).ok(),
                ..ObjectMeta::default()
            },
            spec: serde_json::from_value(json!({
                "holderIdentity": self.name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": MicroTime(now),
            }))
            .ok(),
        };
        self.client.create(&lease).await.map(drop)
    }
}

/// Shared with the node's loop: the Node as it was registered.
pub type Registered = Arc<Node>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_times_move_only_with_the_status() {
        let now: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
        let old = json!([
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "DiskPressure", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]);
        let found = conditions(Pressure { disk: true, ..Pressure::default() }, &old, now);
        let since = |name: &str| {
            let condition = found.iter().find(|condition| condition["type"] == name).unwrap();
            (
                condition["status"].as_str().unwrap().to_owned(),
                condition["lastTransitionTime"].as_str().unwrap().to_owned(),
            )
        };
        assert_eq!(since("Ready"), ("True".to_owned(), "2026-01-01T00:00:00Z".to_owned()));
        assert_eq!(since("DiskPressure"), ("True".to_owned(), "2026-11-23T10:00:00Z".to_owned()));
    }

    #[test]
    fn the_machine_is_measured() {
        assert_eq!(total_memory("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        let machine = measure(std::path::Path::new("/"), 110);
        assert!(machine.memory_bytes > 0 && machine.allocatable["cpu"].millis() >= 1000);
    }
}
