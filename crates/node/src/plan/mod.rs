//! From a Pod's specification to what the runtime runs: pure, everything that it needs is passed in.
//!
//! Sources: kuberuntime_container.go (`generateContainerConfig`), kuberuntime_container_linux.go, security_context.go;
//! CRI-O `server/container_create_linux.go` for what the kubelet leaves to the runtime. The result is an OCI configuration
//! (runtime-spec 1.2) with every default filled in: the runtime adds none.

pub mod env;
pub mod files;
pub mod identity;

use std::collections::BTreeMap;
use std::path::PathBuf;

use image::config::ImageConfig;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, SeccompProfile};
use oci_spec::runtime::{LinuxSeccomp, Spec};
use runtime::plan::{Ipc, Network, PidMode, PodPlan};
use runtime::{capability, defaults, seccomp};
use serde_json::{Value, json};

use self::identity::Identity;
use crate::resources;

/// Why no container can be made of the specification: the waiting reason and its message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// `CreateContainerConfigError`.
    #[error("{0}")]
    Config(String),
    /// `CreateContainerError`.
    #[error("{0}")]
    Create(String),
}

impl PlanError {
    /// The reason in `state.waiting`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Config(_) => "CreateContainerConfigError",
            Self::Create(_) => "CreateContainerError",
        }
    }
}

/// One path of the host, seen in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    pub source: PathBuf,
    pub target: String,
    pub read_only: bool,
    /// Also what is mounted below it.
    pub recursive_read_only: bool,
    pub propagation: Propagation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Private,
    HostToContainer,
    Bidirectional,
}

/// A device node of the host, for privileged containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub path: String,
    /// `c` or `b`.
    pub kind: char,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// What a container's plan is made of.
pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub image: &'a ImageConfig,
    pub identity: &'a Identity,
    /// What the pod asks for; the image's own come on top where they are missing here.
    pub env: &'a BTreeMap<String, String>,
    /// Volumes and the pod's own files.
    pub binds: &'a [Bind],
    pub host_name: &'a str,
    /// The file of a `Localhost` profile, if the container asks for one.
    pub seccomp_file: Option<&'a [u8]>,
    /// The host's devices, for a privileged container.
    pub devices: &'a [Device],
    /// Bytes.
    pub memory_capacity: u64,
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes the OCI configuration of a container.
///
/// # Errors
/// [`PlanError`], with the message for the pod's status.
pub fn container(inputs: &Inputs<'_>) -> Result<Spec, PlanError> {
    let privileged = is_privileged(inputs.container);
    let context = inputs.container.security_context.as_ref();
    let capabilities = capabilities(inputs.container)?;
    let profile = seccomp_of(inputs, privileged, &capabilities)?;
    let unmasked = privileged || context.is_some_and(|context| context.proc_mount.as_deref() == Some("Unmasked"));
    // A privileged container may always gain privileges. Source: `AddNoNewPrivileges`.
    let no_new_privileges =
        !privileged && context.is_some_and(|context| context.allow_privilege_escalation == Some(false));
    let user = &inputs.identity.user;
    let env = variables(inputs);
    let arguments = arguments(inputs)?;
    let spec = json!({
        "ociVersion": "1.2.0",
        "hostname": inputs.host_name,
        "root": {"path": "rootfs", "readonly": context.is_some_and(|context| context.read_only_root_filesystem == Some(true))},
        "process": {
            "terminal": inputs.container.tty == Some(true),
            "user": {"uid": user.uid, "gid": user.gid, "umask": 0o022, "additionalGids": user.groups},
            "args": arguments,
            "env": env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
            "cwd": working_dir(inputs),
            // Inheritable and ambient stay empty: CVE-2022-29162.
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
                "inheritable": [],
                "ambient": [],
            },
            "noNewPrivileges": no_new_privileges,
            "oomScoreAdj": resources::oom_score_adj(inputs.pod, inputs.container, inputs.memory_capacity),
        },
        "mounts": mounts(inputs, privileged),
        "linux": {
            "resources": cgroup(inputs, privileged),
            "devices": if privileged { inputs.devices.iter().map(device).collect() } else { Vec::new() },
            "maskedPaths": if unmasked { &[] } else { defaults::MASKED_PATHS },
            "readonlyPaths": if unmasked { &[] } else { defaults::READONLY_PATHS },
            "rootfsPropagation": root_propagation(inputs),
        },
        "annotations": annotations(inputs),
    });
    let mut spec: Spec = serde_json::from_value(spec)
        .map_err(|error| PlanError::Create(format!("the container's configuration is not valid: {error}")))?;
    if let Some(linux) = spec.linux_mut() {
        linux.set_seccomp(profile);
    }
    Ok(spec)
}

pub fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().is_some_and(|context| context.privileged == Some(true))
}

fn capabilities(container: &Container) -> Result<Vec<String>, PlanError> {
    if is_privileged(container) {
        return resolve_capabilities(&["ALL".to_owned()], &[]);
    }
    let wanted =
        container.security_context.as_ref().and_then(|context| context.capabilities.clone()).unwrap_or_default();
    resolve_capabilities(&wanted.add.unwrap_or_default(), &wanted.drop.unwrap_or_default())
}

fn resolve_capabilities(add: &[String], drop: &[String]) -> Result<Vec<String>, PlanError> {
    capability::resolve(add, drop).map_err(|error| PlanError::Create(error.to_string()))
}

/// The profile that the container, else the pod, asks for.
pub fn seccomp_profile<'a>(pod: &'a Pod, container: &'a Container) -> Option<&'a SeccompProfile> {
    let own = container.security_context.as_ref().and_then(|context| context.seccomp_profile.as_ref());
    let of_pod = || pod.spec.as_ref()?.security_context.as_ref()?.seccomp_profile.as_ref();
    own.or_else(of_pod)
}

fn seccomp_of(
    inputs: &Inputs<'_>,
    privileged: bool,
    capabilities: &[String],
) -> Result<Option<LinuxSeccomp>, PlanError> {
    if privileged {
        return Ok(None);
    }
    let profile = seccomp_profile(inputs.pod, inputs.container);
    // No profile is RuntimeDefault: the safe default.
    match profile.map_or("RuntimeDefault", |profile| profile.type_.as_str()) {
        "Unconfined" => Ok(None),
        "Localhost" => {
            let name = profile.and_then(|profile| profile.localhost_profile.as_deref()).unwrap_or_default();
            let file = inputs.seccomp_file.ok_or_else(|| {
                PlanError::Create(format!(
                    "cannot load seccomp profile {name:?}: no such file below the seccomp directory"
                ))
            })?;
            let parsed = seccomp::parse_profile(file, capabilities);
            parsed
                .map(Some)
                .map_err(|error| PlanError::Create(format!("cannot load seccomp profile {name:?}: {error}")))
        }
        _ => Ok(Some(seccomp::runtime_default(capabilities))),
    }
}

/// The image's variables under the pod's, and what every process expects.
fn variables(inputs: &Inputs<'_>) -> BTreeMap<String, String> {
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    env.insert("PATH".to_owned(), PATH.to_owned());
    env.insert("HOSTNAME".to_owned(), inputs.host_name.to_owned());
    env.insert("HOME".to_owned(), inputs.identity.home.clone());
    if inputs.container.tty == Some(true) {
        env.insert("TERM".to_owned(), "xterm".to_owned());
    }
    for variable in &inputs.image.env {
        if let Some((name, value)) = variable.split_once('=') {
            env.insert(name.to_owned(), value.to_owned());
        }
    }
    env.extend(inputs.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    env
}

/// Source: container/helpers.go, `ExpandContainerCommandAndArgs`; OCI image-spec for the image's part.
fn arguments(inputs: &Inputs<'_>) -> Result<Vec<String>, PlanError> {
    // References resolve to the pod's variables alone, as the kubelet does not know the image's.
    let expand = |texts: &Option<Vec<String>>| -> Vec<String> {
        let one = |text: &String| env::expand(text, |name| inputs.env.get(name).cloned());
        texts.iter().flatten().map(one).collect()
    };
    let (command, args) = (expand(&inputs.container.command), expand(&inputs.container.args));
    let image = inputs.image;
    let all = match (command.is_empty(), args.is_empty()) {
        (true, true) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
        (true, false) => [image.entrypoint.clone(), args].concat(),
        (false, _) => [command, args].concat(),
    };
    if all.is_empty() {
        return Err(PlanError::Create("no command specified".to_owned()));
    }
    Ok(all)
}

fn working_dir(inputs: &Inputs<'_>) -> String {
    let own = inputs.container.working_dir.as_deref().filter(|dir| !dir.is_empty());
    let image = Some(inputs.image.working_dir.as_str()).filter(|dir| !dir.is_empty());
    own.or(image).unwrap_or("/").to_owned()
}

fn mounts(inputs: &Inputs<'_>, privileged: bool) -> Vec<Value> {
    let taken = |path: &str| inputs.binds.iter().any(|bind| bind.target.trim_end_matches('/') == path);
    let base = defaults::mounts().into_iter().filter(|mount| !taken(&mount.destination().to_string_lossy()));
    let mut mounts: Vec<Value> = base.map(|mount| json!(mount)).collect();
    if privileged {
        for option in mounts.iter_mut().filter_map(|mount| mount["options"].as_array_mut()).flatten() {
            if option == "ro" {
                *option = json!("rw");
            }
        }
    }
    // A mount below another comes after it. Source: CRI-O, `orderedMounts`.
    let mut binds: Vec<&Bind> = inputs.binds.iter().collect();
    binds.sort_by_key(|bind| bind.target.trim_end_matches('/').matches('/').count());
    for bind in binds {
        let propagation = match bind.propagation {
            Propagation::Private => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        };
        let access = match (bind.read_only, bind.recursive_read_only) {
            (true, true) => "rro",
            (true, false) => "ro",
            (false, _) => "rw",
        };
        mounts.push(json!({"destination": bind.target, "type": "bind", "source": bind.source,
            "options": ["rbind", propagation, access]}));
    }
    mounts
}

/// What mounts that propagate need of the root.
fn root_propagation(inputs: &Inputs<'_>) -> &'static str {
    let any = |wanted| inputs.binds.iter().any(|bind| bind.propagation == wanted);
    if any(Propagation::Bidirectional) {
        "rshared"
    } else if any(Propagation::HostToContainer) {
        "rslave"
    } else {
        "rprivate"
    }
}

fn cgroup(inputs: &Inputs<'_>, privileged: bool) -> Value {
    let limits = resources::container_cgroup(inputs.container);
    // The runtime opens the standard devices by itself.
    let rules = [json!({"allow": privileged, "access": "rwm"})];
    let mut cpu = json!({"shares": limits.cpu_shares});
    if let Some(quota) = limits.cpu_quota {
        cpu["quota"] = json!(quota);
        cpu["period"] = json!(runtime::plan::CPU_PERIOD);
    }
    let mut resources = json!({"cpu": cpu, "devices": rules});
    if let Some(limit) = limits.memory_limit {
        resources["memory"] = json!({"limit": limit, "swap": limit});
    }
    resources
}

fn device(device: &Device) -> Value {
    json!({"path": device.path, "type": device.kind, "major": device.major, "minor": device.minor,
        "fileMode": device.mode, "uid": device.uid, "gid": device.gid})
}

/// What agents on the node read. Source: CRI's annotation names.
fn annotations(inputs: &Inputs<'_>) -> Value {
    let meta = &inputs.pod.metadata;
    json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": inputs.container.name,
        "io.kubernetes.cri.sandbox-name": meta.name,
        "io.kubernetes.cri.sandbox-namespace": meta.namespace,
        "io.kubernetes.cri.sandbox-uid": meta.uid,
    })
}

/// Makes the plan of a pod's sandbox. `log_root` is `/var/log/pods` in production.
///
/// # Errors
/// For what this node cannot give; the message is fit for a `FailedCreatePodSandBox` event.
pub fn pod(pod: &Pod, cluster_domain: &str, log_root: &std::path::Path) -> Result<PodPlan, String> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (uid, namespace, name) = (text(&pod.metadata.uid), text(&pod.metadata.namespace), text(&pod.metadata.name));
    if spec.host_users == Some(false) {
        return Err("spec.hostUsers: false is not supported on this node yet: user namespaces are not built".to_owned());
    }
    let sysctls = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    Ok(PodPlan {
        hostname: files::kernel_host_name(pod, cluster_domain)?,
        network: if spec.host_network == Some(true) { Network::Host } else { Network::Pod },
        ipc: if spec.host_ipc == Some(true) { Ipc::Host } else { Ipc::Pod },
        pid: match (spec.host_pid, spec.share_process_namespace) {
            (Some(true), _) => PidMode::Host,
            (_, Some(true)) => PidMode::Pod,
            _ => PidMode::Container,
        },
        qos: resources::qos(spec),
        resources: resources::pod_cgroup(spec),
        sysctls: sysctls.map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value.clone())).collect(),
        log_dir: log_root.join(format!("{namespace}_{name}_{uid}")),
        labels: BTreeMap::from([(
            LABEL_GRACE.to_owned(),
            spec.termination_grace_period_seconds.unwrap_or(30).to_string(),
        )]),
        uid,
        namespace,
        name,
    })
}

/// The pod's own grace in seconds, for whoever stops it while no server runs.
pub const LABEL_GRACE: &str = "coracle.dev/grace-seconds";

/// The file of a container's log, relative to the pod's directory. Source: `BuildContainerLogsDirectory`.
pub fn log_path(container: &str, attempt: i32) -> PathBuf {
    PathBuf::from(container).join(format!("{attempt}.log"))
}

#[cfg(test)]
mod tests;
