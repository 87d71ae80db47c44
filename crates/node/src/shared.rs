//! What all pod workers of the node share: the ways out, the node's facts, and the registry of its pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use client::events::Recorder;
use client::informer::Informer;
use client::{Client, Clock};
use image::store::ImageStore;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use runtime::Runtime;
use tokio::sync::watch;

use crate::network::PodNetwork;
use crate::plan::files::ClusterDns;
use crate::pod_machine;
use crate::resources::Amounts;
use crate::sources::Sources;

/// Where the node keeps and finds things. The defaults are the kubelet's places; a test cluster sets its own.
#[derive(Clone, Debug)]
pub struct Roots {
    /// Pods' volumes and files, `pods/<uid>` inside.
    pub kubelet: PathBuf,
    /// `<namespace>_<name>_<uid>/<container>/<n>.log` inside.
    pub pod_logs: PathBuf,
    /// Links into `pod_logs`, for log collectors.
    pub container_logs: PathBuf,
    /// Localhost seccomp profiles.
    pub seccomp: PathBuf,
    pub resolv_conf: PathBuf,
    /// What systemd-resolved asks itself, where `resolv_conf` only names its stub on loopback.
    pub resolved_conf: PathBuf,
    pub hosts: PathBuf,
    pub fstab: PathBuf,
    /// systemd's `.mount` units of the administrator.
    pub units: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            kubelet: "/var/lib/kubelet".into(),
            pod_logs: "/var/log/pods".into(),
            container_logs: "/var/log/containers".into(),
            seccomp: "/var/lib/kubelet/seccomp".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            resolved_conf: "/run/systemd/resolve/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
            fstab: "/etc/fstab".into(),
            units: "/etc/systemd/system".into(),
        }
    }
}

impl Roots {
    /// The pod's directory.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.kubelet.join("pods").join(uid)
    }

    /// The directory of the pod's logs.
    pub fn logs(&self, pod: &Pod) -> PathBuf {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let meta = &pod.metadata;
        self.pod_logs.join(format!("{}_{}_{}", text(&meta.namespace), text(&meta.name), text(&meta.uid)))
    }
}

/// The machine's measures, taken at start.
#[derive(Clone, Debug)]
pub struct Machine {
    pub memory_bytes: u64,
    /// Stands in for limits that pods do not set, and bounds what is admitted.
    pub allocatable: Amounts,
}

/// Shared by all workers and the endpoint.
pub struct Shared {
    pub node_name: String,
    /// Primary family first.
    pub node_ips: Vec<IpAddr>,
    pub roots: Roots,
    pub cluster_dns: ClusterDns,
    pub client: Client,
    pub runtime: Runtime,
    pub images: ImageStore,
    pub network: Arc<dyn PodNetwork>,
    pub recorder: Recorder,
    pub sources: Sources,
    pub services: Informer,
    pub clock: Clock,
    pub machine: Machine,
    pub registry: Registry,
}

impl Shared {
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    pub fn host_ips(&self) -> Vec<String> {
        self.node_ips.iter().map(ToString::to_string).collect()
    }
}

/// A pod as its worker last saw it.
#[derive(Clone, Debug)]
pub struct Known {
    pub pod: Arc<Pod>,
    pub status: PodStatus,
}

impl Known {
    /// A container of the pod, of whichever list.
    pub fn container(&self, name: &str) -> Option<Container> {
        let spec = self.pod.spec.as_ref()?;
        let ephemeral = || pod_machine::ephemeral_containers(spec).into_iter().find(|container| container.name == name);
        pod_machine::container_of(spec, name).cloned().or_else(ephemeral)
    }
}

/// The node's pods by uid. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    pods: Arc<RwLock<BTreeMap<String, Known>>>,
    changes: watch::Sender<()>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { pods: Arc::default(), changes: watch::Sender::new(()) }
    }
}

impl Registry {
    pub fn set(&self, uid: &str, known: Known) {
        self.pods.write().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), known);
        self.changes.send_replace(());
    }

    pub fn remove(&self, uid: &str) {
        self.pods.write().unwrap_or_else(PoisonError::into_inner).remove(uid);
        self.changes.send_replace(());
    }

    /// Wakes up when any pod changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    pub fn all(&self) -> Vec<Known> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The pod of this name: of several, one that is being replaced and its successor, the newest.
    pub fn named(&self, namespace: &str, name: &str) -> Option<Known> {
        let matches = |known: &Known| {
            known.pod.metadata.namespace.as_deref() == Some(namespace)
                && known.pod.metadata.name.as_deref() == Some(name)
        };
        self.all()
            .into_iter()
            .filter(matches)
            .max_by_key(|known| known.pod.metadata.creation_timestamp.as_ref().map(|time| time.0))
    }
}
