//! What a pod's machine is told, and what it asks for.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod, ResourceRequirements};

/// What happened to the pod, told by the shell that carries out the effects.
#[derive(Clone, Debug)]
pub enum Event {
    /// The API's newest version of the pod.
    Updated(Arc<Pod>),
    /// The object is gone from the API without waiting for us.
    Removed,
    /// The pod has to go, and its phase becomes Failed.
    Evicted {
        reason: String,
        message: String,
        grace: SignedDuration,
    },
    VolumesReady,
    /// Not all volumes could be set up; the next attempt waits for a back-off or for a source to change.
    VolumesFailed,
    /// A source that failed before may have changed: a Secret, a ConfigMap, a mount.
    SourcesChanged,
    SandboxReady {
        ips: Vec<String>,
    },
    /// The adopted sandbox has these addresses.
    Addresses {
        ips: Vec<String>,
    },
    SandboxFailed {
        message: String,
    },
    /// The shim died and took its containers with it.
    SandboxLost,
    SandboxGone,
    VolumesGone,
    ImageReady {
        container: String,
        /// What was asked for; the pod may ask for another one by now.
        image: String,
        image_id: String,
    },
    ImageFailed {
        container: String,
        image: String,
        /// The image that is missing, when it is that of a volume.
        volume: Option<String>,
        reason: String,
        message: String,
    },
    /// An image that could not be pulled has come in another way: [`Effect::LookForImage`].
    ImageFound {
        container: String,
    },
    Started(Started),
    StartFailed {
        container: String,
        image: String,
        reason: String,
        message: String,
        exit: Option<Exit>,
    },
    PostStartDone {
        container: String,
        id: String,
        failed: Option<String>,
    },
    PreStopDone {
        container: String,
        id: String,
    },
    Exited {
        container: String,
        exit: Exit,
    },
    /// A probe passed its threshold.
    Probed {
        container: String,
        id: String,
        kind: ProbeKind,
        healthy: bool,
    },
    /// What became of [`Effect::Resize`].
    Resized(Resized),
    /// The API has acknowledged a status of [`Machine::has_ended`](super::Machine::has_ended), or has lost the pod.
    EndTold,
    /// Time passed.
    Tick,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Started {
    pub container: String,
    pub image: String,
    pub id: String,
    pub at: Timestamp,
    pub user: Option<User>,
    /// What it was started with, when that is not what the pod says now.
    pub resources: Option<ResourceRequirements>,
}

/// The identity that a container's first process got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// How a container's run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Without `coracle://`; empty when the container was never created.
    pub id: String,
    pub code: i32,
    pub reason: String,
    pub message: String,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

impl Exit {
    pub fn from_api(from: &ContainerStateTerminated) -> Self {
        Self {
            id: from.container_id.as_deref().unwrap_or_default().trim_start_matches("coracle://").to_owned(),
            code: from.exit_code,
            reason: from.reason.clone().unwrap_or_default(),
            message: from.message.clone().unwrap_or_default(),
            started_at: from.started_at.as_ref().map(|time| time.0),
            finished_at: from.finished_at.as_ref().map(|time| time.0),
        }
    }

    /// The end of a run that nobody saw. Source: kubelet_pods.go, `convertToAPIContainerStatuses`.
    pub fn unknown(id: &str, message: &str) -> Self {
        Self {
            id: id.to_owned(),
            code: 137,
            reason: "ContainerStatusUnknown".to_owned(),
            message: message.to_owned(),
            started_at: None,
            finished_at: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    Startup,
    Readiness,
    Liveness,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The image's or the spec's stop signal, SIGTERM by default.
    Stop,
    Kill,
}

/// What the shell is to do. Each is answered by an event, except signals, probes, records and looking in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    MountVolumes,
    CreateSandbox,
    EnsureImage {
        container: String,
    },
    /// Somebody else may have brought the image that could not be pulled; it is that of a volume when one is given.
    LookForImage {
        container: String,
        volume: Option<String>,
    },
    StartContainer {
        container: String,
        attempt: i32,
    },
    PostStart {
        container: String,
        id: String,
    },
    PreStop {
        container: String,
        id: String,
        until: Timestamp,
    },
    Signal {
        container: String,
        id: String,
        signal: Signal,
    },
    /// Begins to probe; a probe of the same kind on the container's earlier run is replaced.
    StartProbe {
        container: String,
        id: String,
        kind: ProbeKind,
        started_at: Timestamp,
    },
    StopProbe {
        container: String,
        kind: ProbeKind,
    },
    /// Gives running containers the resources of [`Machine::changes`](super::Machine::changes), as soon as the node has room; replaces an earlier one.
    Resize,
    RemoveSandbox,
    UnmountVolumes,
    Record {
        warning: bool,
        reason: &'static str,
        message: String,
        container: Option<String>,
    },
    /// Nothing of the pod is left on the node.
    Finish,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq)]
pub enum Resized {
    /// Reason `Deferred` or `Infeasible`.
    Pending {
        reason: &'static str,
        message: String,
    },
    Failed(String),
    /// These are what containers have now; those that must be restarted for it have not changed.
    Done(Vec<Change>),
}

/// A running container whose resources differ from what the pod says.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub container: String,
    pub id: String,
    pub resources: ResourceRequirements,
    pub had: ResourceRequirements,
    /// Its policy for one of the resources that change is `RestartContainer`.
    pub restart: bool,
}
