//! Starting a container: variables, identity, files and mounts come together in a plan, and the runtime runs it.
//!
//! Source: kuberuntime_container.go, `startContainer`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use image::store::Image;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Service};
use runtime::plan::{ContainerPlan, LogLimits, Rootfs, Stdin};
use tracing::info;

use super::storage::Volumes;
use super::{Message, Worker};
use crate::events::PodEvents;
use crate::plan::env::Facts;
use crate::plan::files::Dns;
use crate::plan::{self, Bind, Device, PlanError, Propagation};
use crate::pod_machine::event::{Event, Exit, Started, User};
use crate::shared::Shared;
use crate::sources::PodSources;
use crate::{accounts, volumes};
use api::chain::chain;

pub(super) const SIGTERM: i32 = 15;
/// What is kept of a termination message. Source: container/runtime, `MaxContainerTerminationMessageLength`.
const MAX_MESSAGE: usize = 4096;
/// How long the first list of services may take.
const SERVICES_TIMEOUT: Duration = Duration::from_secs(10);
/// Labels that a container keeps in the runtime, for the process that adopts it.
pub const LABEL_SIGNAL: &str = "coracle.dev/stop-signal";
/// As upstream's `io.kubernetes.container.hash`: whether a run is of the definition that the pod has now.
pub const LABEL_IMAGE: &str = "coracle.dev/image";

/// A container that did not start.
struct Failed {
    reason: &'static str,
    message: String,
    exit: Option<Box<Exit>>,
}

impl From<PlanError> for Failed {
    fn from(error: PlanError) -> Self {
        Self { reason: error.reason(), message: error.to_string(), exit: None }
    }
}

fn config(message: String) -> Failed {
    PlanError::Config(message).into()
}

/// Everything that one start needs, owned.
struct Launch {
    shared: Arc<Shared>,
    uid: String,
    pod: Arc<Pod>,
    container: Container,
    attempt: i32,
    image: Arc<Image>,
    image_volumes: BTreeMap<String, Arc<Image>>,
    volumes: Volumes,
    sources: PodSources,
    facts: Facts,
    pod_ips: Vec<String>,
    events: PodEvents,
    /// The run before, whose leftovers go.
    previous: Option<String>,
    /// The run whose processes it sees.
    target: Option<String>,
}

impl Worker {
    pub(super) fn start_container(&mut self, name: String, attempt: i32) {
        let (Some(container), Some(pulled)) = (self.machine.container(&name).cloned(), self.images.get(&name).cloned())
        else {
            return;
        };
        let launch = Launch {
            shared: self.shared.clone(),
            uid: self.uid.clone(),
            pod: self.machine.pod().clone(),
            container,
            attempt,
            image: pulled.image.clone(),
            image_volumes: pulled.volumes.clone(),
            volumes: self.volumes.clone(),
            // Of the pod as it is now: an ephemeral container may name more than the pod did when it came.
            sources: self.shared.sources.of_pod(self.machine.pod()),
            facts: self.facts(),
            pod_ips: crate::pod_status::by_family(self.machine.ips(), &self.shared.node_ips),
            events: self.events.clone(),
            previous: self.machine.run_of(&name),
            target: self.machine.target_of(&name),
        };
        let of = launch.image_name();
        self.answer(async move {
            Message::Machine(match launch.run().await {
                Ok(started) => Event::Started(started),
                Err(failed) => Event::StartFailed {
                    container: name,
                    image: of,
                    reason: failed.reason.to_owned(),
                    message: failed.message,
                    exit: failed.exit.map(|exit| *exit),
                },
            })
        });
    }
}

impl Launch {
    async fn run(self) -> Result<Started, Failed> {
        let (runtime, name) = (self.shared.runtime.clone(), self.container.name.clone());
        let snapshot = self.sources.snapshot().await.map_err(config)?;
        let services = self.services().await?;
        let env =
            plan::env::environment(&self.pod, &self.container, &services, &snapshot, &self.facts).map_err(config)?;
        let id = runtime::new_id();
        let this = Arc::new(self);
        let (planner, plan_id) = (this.clone(), id.clone());
        // Sub-paths may lie on disks that do not answer.
        let planned = tokio::task::spawn_blocking(move || planner.plan(&plan_id, &env)).await;
        let (plan, user) =
            planned.map_err(|error| config(format!("the container could not be planned: {error}")))??;
        let log = plan.log_path.clone();
        if let Some(previous) = &this.previous {
            if let Err(error) = runtime.remove_container(&this.uid, previous).await {
                info!(pod = this.uid, container = name, %error, "the earlier run is not removed");
            }
            this.remove_writable(previous).await;
        }
        let create_failed = |error: runtime::error::Error| Failed {
            reason: "CreateContainerError",
            message: chain(&error),
            exit: None,
        };
        runtime.create_container(&this.uid, plan).await.map_err(create_failed)?;
        this.events.normal("Created", "Container created", Some(&name));
        let started = match runtime.start_container(&this.uid, &id).await {
            Ok(started) => started,
            Err(error) => {
                let message = chain(&error);
                let now = this.shared.now();
                let exit = Exit {
                    id,
                    code: 128,
                    reason: "StartError".to_owned(),
                    message: message.clone(),
                    started_at: None,
                    finished_at: Some(now),
                };
                return Err(Failed { reason: "RunContainerError", message, exit: Some(Box::new(exit)) });
            }
        };
        this.events.normal("Started", "Container started", Some(&name));
        this.shared.images.mark_used(&this.image.id);
        if let Some(log) = log {
            this.link_log(&id, &log);
            this.remove_old_logs();
        }
        let (image, resources) = (this.image_name(), this.container.resources.clone());
        Ok(Started { container: name, image, id, at: timestamp(started.at), user: Some(user), resources })
    }

    fn image_name(&self) -> String {
        self.container.image.clone().unwrap_or_default()
    }

    async fn services(&self) -> Result<Vec<Service>, Failed> {
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or_default();
        let synced = tokio::time::timeout(SERVICES_TIMEOUT, self.shared.services.synced()).await;
        let Ok(Ok(view)) = synced else {
            return Err(config("services have not yet been read at least once, cannot construct envvars".to_owned()));
        };
        let links = self.pod.spec.as_ref().is_none_or(|spec| spec.enable_service_links != Some(false));
        let own = view.in_namespace(namespace).filter(|_| links);
        let all = own.chain(view.named("default", "kubernetes"));
        Ok(all.filter_map(|object| object.decode().ok()).collect())
    }

    /// Blocks.
    fn plan(&self, id: &str, env: &BTreeMap<String, String>) -> Result<(ContainerPlan, User), Failed> {
        let (shared, container) = (&self.shared, &self.container);
        let dir = shared.roots.pod(&self.uid);
        let accounts = accounts::read(&self.image.layers);
        let identity =
            plan::identity::resolve(&self.pod, container, &self.image.config.user, &accounts).map_err(config)?;
        for (volume, image) in &self.image_volumes {
            let mounted = volumes::mounts::image(&volumes::image_place(&dir, volume), &image.layers);
            mounted
                .map_err(|error| PlanError::Create(format!("ImageVolumeMountFailed: volume {volume:?}: {error}")))?;
        }
        let mut binds = volumes::binds(container, &self.volumes, env, &dir).map_err(config)?;
        self.add_files(&dir, id, &mut binds)
            .map_err(|error| config(format!("the pod's files cannot be written: {error}")))?;
        self.warn_unmounted_volumes(&binds);
        let host_name = if self.host_network() {
            fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
        } else {
            plan::files::kernel_host_name(&self.pod, &shared.cluster_dns.domain).map_err(config)?
        };
        let seccomp_file = self.seccomp_file()?;
        let privileged = plan::is_privileged(container);
        let devices = if privileged { host_devices(Path::new("/dev")) } else { Vec::new() };
        let spec = plan::container(&plan::Inputs {
            pod: &self.pod,
            container,
            image: &self.image.config,
            identity: &identity,
            env,
            binds: &binds,
            host_name: &host_name,
            seccomp_file: seccomp_file.as_deref(),
            devices: &devices,
            memory_capacity: shared.machine.memory_bytes,
        })?;
        let writable = self.writable(id);
        let plan = ContainerPlan {
            id: id.to_owned(),
            name: container.name.clone(),
            attempt: u32::try_from(self.attempt).unwrap_or(0),
            spec,
            rootfs: Rootfs::Overlay {
                lower: self.image.layers.clone(),
                upper: writable.join("upper"),
                work: writable.join("work"),
            },
            log_path: Some(plan::log_path(&container.name, self.attempt)),
            log_limits: LogLimits::default(),
            stdin: match (container.stdin, container.stdin_once) {
                (Some(true), Some(true)) => Stdin::Once,
                (Some(true), _) => Stdin::Open,
                _ => Stdin::Null,
            },
            pid_of: self.target.clone(),
            single_process_oom_kill: false,
            labels: BTreeMap::from([
                (LABEL_SIGNAL.to_owned(), stop_signal(&self.image).to_string()),
                (LABEL_IMAGE.to_owned(), self.image_name()),
            ]),
        };
        Ok((plan, identity.user))
    }

    fn host_network(&self) -> bool {
        self.pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true))
    }

    /// Where the container's changes to its root go. Below the pod's directory, and so gone with it.
    fn writable(&self, id: &str) -> PathBuf {
        self.shared.roots.pod(&self.uid).join("overlay").join(id)
    }

    async fn remove_writable(&self, id: &str) {
        let dir = self.writable(id);
        let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(dir)).await;
        if let Ok(Err(error)) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            info!(pod = self.uid, %error, "an earlier run's files stay until the pod goes");
        }
    }

    fn seccomp_file(&self) -> Result<Option<Vec<u8>>, Failed> {
        let profile = plan::seccomp_profile(&self.pod, &self.container).filter(|profile| profile.type_ == "Localhost");
        let Some(name) = profile.and_then(|profile| profile.localhost_profile.as_deref()) else { return Ok(None) };
        let inside = Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !inside {
            return Err(config(format!("localhostProfile {name:?} must be a path below the seccomp directory")));
        }
        let path = self.shared.roots.seccomp.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => {
                Err(PlanError::Create(format!("cannot load seccomp profile {:?}: {error}", path.display())).into())
            }
        }
    }

    /// hosts, host name, resolv.conf and the termination message, unless the container mounts its own there.
    fn add_files(&self, dir: &Path, id: &str, binds: &mut Vec<Bind>) -> std::io::Result<()> {
        let cluster = &self.shared.cluster_dns;
        let read_only = self
            .container
            .security_context
            .as_ref()
            .is_some_and(|context| context.read_only_root_filesystem == Some(true));
        let mut add = |source: PathBuf, target: &str, read_only: bool| {
            if !binds.iter().any(|bind| bind.target == target) {
                let target = target.to_owned();
                let propagation = Propagation::Private;
                binds.push(Bind { source, target, read_only, recursive_read_only: false, propagation });
            }
        };
        let hosts = if self.host_network() {
            plan::files::hosts_of_host(&self.pod, &fs::read_to_string(&self.shared.roots.hosts).unwrap_or_default())
        } else {
            plan::files::hosts(&self.pod, &self.pod_ips, &cluster.domain)
        };
        add(write(dir, "etc-hosts", &hosts, 0o644)?, "/etc/hosts", false);
        if !self.host_network() {
            let name = plan::files::kernel_host_name(&self.pod, &cluster.domain).unwrap_or_default();
            add(write(dir, "hostname", &format!("{name}\n"), 0o644)?, "/etc/hostname", read_only);
        }
        let main = fs::read_to_string(&self.shared.roots.resolv_conf).unwrap_or_default();
        let resolved = fs::read_to_string(&self.shared.roots.resolved_conf).ok().filter(|_| !self.host_network());
        let host_dns = Dns::of_host(&main, resolved.as_deref());
        let (dns, warnings) = plan::files::dns(&self.pod, cluster, &host_dns);
        for (reason, message) in warnings {
            self.events.warning(reason, &message, None);
        }
        add(write(dir, "resolv.conf", &dns.text(), 0o644)?, "/etc/resolv.conf", read_only);
        let target = self.container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
        let message = message_path(dir, &self.container.name, id);
        if let Some(parent) = message.parent() {
            fs::create_dir_all(parent)?;
            // Any user of the container may write its last words.
            let name = message.file_name().unwrap_or_default().to_string_lossy().into_owned();
            add(write(parent, &name, "", 0o666)?, target, false);
        }
        Ok(())
    }

    /// An image says that it keeps data in a path, and nothing is mounted there.
    fn warn_unmounted_volumes(&self, binds: &[Bind]) {
        for volume in &self.image.config.volumes {
            let covered = binds.iter().any(|bind| Path::new(volume).starts_with(&bind.target));
            if !covered {
                let name = &self.container.name;
                self.events.warning("UnmountedImageVolume", &format!("{volume} dies with this pod"), Some(name));
            }
        }
    }

    /// For collectors that look in one place. Source: legacy.go, `legacyLogSymlink`.
    fn link_log(&self, id: &str, log: &Path) {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let meta = &self.pod.metadata;
        let name = format!("{}_{}_{}-{id}.log", text(&meta.name), text(&meta.namespace), self.container.name);
        let links = &self.shared.roots.container_logs;
        let target = self.shared.roots.logs(&self.pod).join(log);
        let linked = fs::create_dir_all(links).and_then(|()| std::os::unix::fs::symlink(target, links.join(name)));
        if let Err(error) = linked {
            info!(pod = self.uid, %error, "no link to the container's log");
        }
    }
}

impl Launch {
    /// Keeps the logs of this run and of the one before, and no link to any other.
    ///
    /// Source: kuberuntime_gc.go, with its default of one dead container for each container.
    fn remove_old_logs(&self) {
        let logs = self.shared.roots.logs(&self.pod);
        let number = |path: &Path| {
            let name = path.file_name()?.to_str()?;
            name.split('.').next()?.parse::<i32>().ok()
        };
        let old = |path: &Path| number(path).is_some_and(|run| run < self.attempt - 1);
        let files =
            fs::read_dir(logs.join(&self.container.name)).into_iter().flatten().flatten().map(|entry| entry.path());
        let links =
            fs::read_dir(&self.shared.roots.container_logs).into_iter().flatten().flatten().map(|entry| entry.path());
        let dangling = links.filter(|link| {
            let own = logs.join(&self.container.name);
            fs::read_link(link).is_ok_and(|target| target.starts_with(own) && old(&target))
        });
        for path in files.filter(|path| old(path)).chain(dangling) {
            if let Err(error) = fs::remove_file(&path) {
                info!(path = %path.display(), %error, "an old log stays");
            }
        }
    }
}

/// Writes a file anew, in place: containers that run see the change.
fn write(dir: &Path, name: &str, text: &str, mode: u32) -> std::io::Result<PathBuf> {
    let path = dir.join(name);
    if fs::read_to_string(&path).ok().as_deref() != Some(text) {
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    Ok(path)
}

fn message_path(dir: &Path, container: &str, id: &str) -> PathBuf {
    dir.join("containers").join(container).join(id.get(..8).unwrap_or(id))
}

/// A container's last words: its file, else by policy the end of its log, else why it did not start.
pub(super) fn termination_message(
    dir: &Path,
    container: Option<&Container>,
    id: &str,
    exit: &runtime::plan::Exit,
    log: &Path,
) -> String {
    let Some(container) = container else { return exit.message.clone() };
    let path = message_path(dir, &container.name, id);
    let written = fs::read(path).unwrap_or_default();
    let from = written.len().saturating_sub(MAX_MESSAGE);
    let text = String::from_utf8_lossy(&written[from..]).into_owned();
    let falls_back = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if !text.is_empty() {
        text
    } else if falls_back && exit.exit_code != 0 {
        crate::logs::last_words(log)
    } else {
        exit.message.clone()
    }
}

/// The machine's words for how a run ended.
pub(super) fn ended(id: &str, exit: &runtime::plan::Exit, message: String) -> Exit {
    let reason = match (exit.oom_killed, exit.exit_code, exit.started_at) {
        (true, _, _) => "OOMKilled",
        (false, _, None) => "StartError",
        (false, 0, Some(_)) => "Completed",
        (false, _, Some(_)) => "Error",
    };
    Exit {
        id: id.to_owned(),
        code: exit.exit_code,
        reason: reason.to_owned(),
        message,
        started_at: exit.started_at.map(timestamp),
        finished_at: Some(timestamp(exit.finished_at)),
    }
}

fn timestamp(time: std::time::SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or_default()
}

/// The image's stop signal by number.
pub(super) fn stop_signal(image: &Image) -> i32 {
    let Some(wanted) = &image.config.stop_signal else { return SIGTERM };
    signal_number(wanted).unwrap_or(SIGTERM)
}

fn signal_number(name: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = name.strip_prefix("SIG").unwrap_or(name);
    if let Some(offset) = name.strip_prefix("RTMIN+").and_then(|offset| offset.parse::<i32>().ok()) {
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    NAMES.iter().position(|known| *known == name).and_then(|index| i32::try_from(index + 1).ok())
}

/// The machine's device nodes, which a privileged container sees. Terminals are its own.
fn host_devices(dir: &Path) -> Vec<Device> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = path.symlink_metadata() else { continue };
        let name = entry.file_name();
        let kind = metadata.file_type();
        if kind.is_dir() {
            if !["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"].iter().any(|skipped| name == *skipped) {
                found.extend(host_devices(&path));
            }
            continue;
        }
        if name == "console" || !(kind.is_char_device() || kind.is_block_device()) {
            continue;
        }
        let device = metadata.rdev();
        found.push(Device {
            path: path.to_string_lossy().into_owned(),
            kind: if kind.is_block_device() { 'b' } else { 'c' },
            major: rustix::fs::major(device),
            minor: rustix::fs::minor(device),
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        let numbers = ["SIGTERM", "INT", "9", "SIGRTMIN+3", "SIGNONE", "0"].map(signal_number);
        assert_eq!(numbers, [Some(15), Some(2), Some(9), Some(37), None, None]);
    }
}
