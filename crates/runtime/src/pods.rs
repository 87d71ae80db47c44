//! Pods: made step by step, found again after a crash at any of them, and removed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cgroup::Cgroups;
use crate::error::{Error, io_error};
use crate::link::{End, Link, Welcome};
use crate::plan::{
    AdoptedContainer, AdoptedPod, ContainerPlan, ContainerState, Event, Ipc, Network, Pod, PodPlan, Qos,
};
use crate::shim::protocol::Op;
use crate::shim::{CONTAINERS, LOCK, POD};
use crate::{Runtime, bundle};

/// The cgroup of the shims: not the pods', whose limits must not stop a log or kill a shim.
const SHIMS: &str = "shims";

/// How long a shim that is alive may take to become reachable.
const REACHABLE: Duration = Duration::from_secs(5);

/// The steps of [`Runtime::create_pod`], in order. After any of them main may die: the next main finds what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The pod's run directory exists, with an unlocked lock.
    Directory,
    /// It holds the plan.
    Plan,
    /// The log directory exists.
    Logs,
    /// The cgroup exists, with its limits.
    Cgroup,
    /// The shim has been spawned and moved to the shims' cgroup.
    Shim,
    /// The shim has made the namespaces and answered.
    Namespaces,
}

impl Step {
    pub const ALL: [Step; 6] = [Step::Directory, Step::Plan, Step::Logs, Step::Cgroup, Step::Shim, Step::Namespaces];
}

/// A pod with a living shim, or one whose shim died and that was not removed yet.
#[derive(Debug)]
pub(crate) struct PodHandle {
    pub plan: PodPlan,
    pub directory: PathBuf,
    /// Its cgroup, below the root.
    pub group: PathBuf,
    pub link: Link,
    /// Set when the shim has answered, unless the pod has the host's.
    pub network: OnceLock<OwnedFd>,
    /// Set when the end of the shim is wanted.
    pub removing: AtomicBool,
}

impl PodHandle {
    pub(crate) fn container_directory(&self, id: &str) -> PathBuf {
        crate::shim::container_directory(&self.directory, id)
    }

    pub(crate) fn container_group(&self, id: &str) -> PathBuf {
        self.group.join(id)
    }
}

/// The cgroup of a pod. Source: kubelet `cm/pod_container_manager_linux.go`, `GetPodContainerName`.
fn group(qos: Qos, uid: &str) -> PathBuf {
    let parent = match qos {
        Qos::Guaranteed => "kubepods",
        Qos::Burstable => "kubepods/burstable",
        Qos::BestEffort => "kubepods/besteffort",
    };
    Path::new(parent).join(format!("pod{uid}"))
}

fn validate(plan: &PodPlan) -> Result<(), Error> {
    let refuse = |field: &str, problem: String| Err(Error::Plan { field: field.to_owned(), problem });
    let letters = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    if plan.uid.is_empty() || plan.uid.len() > 63 || !letters(&plan.uid) || plan.uid.starts_with('.') {
        return refuse("uid", "must be 1 to 63 letters, digits, `-` and `.`".to_owned());
    }
    if plan.hostname.len() > 64 || !letters(&plan.hostname) {
        return refuse("hostname", "must be at most 64 letters, digits, `-` and `.`".to_owned());
    }
    if !plan.log_dir.is_absolute() {
        return refuse("log_dir", "must be an absolute path".to_owned());
    }
    for name in plan.sysctls.keys() {
        if let Some(problem) = sysctl_problem(name, plan) {
            return refuse(&format!("sysctls[{name}]"), problem);
        }
    }
    Ok(())
}

/// Only what a namespace of the pod's own holds may be set. Source: kubernetes `pkg/apis/core/validation`, `component-helpers` and
/// `pkg/kubelet/sysctl/namespace.go`.
fn sysctl_problem(name: &str, plan: &PodPlan) -> Option<String> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || !name.bytes().all(fine) || name.split('.').any(str::is_empty) {
        return Some("must be names of letters, digits, `-` and `_`, separated by dots".to_owned());
    }
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| name.starts_with(prefix))
        || name == "kernel.sem";
    match (ipc, name.starts_with("net.")) {
        (true, _) if plan.ipc == Ipc::Host => Some("the sysctl belongs to the host's IPC namespace".to_owned()),
        (_, true) if plan.network == Network::Host => {
            Some("the sysctl belongs to the host's network namespace".to_owned())
        }
        (false, false) => Some("the sysctl is not namespaced".to_owned()),
        _ => None,
    }
}

impl Runtime {
    /// Makes a pod: run directory, cgroup, shim, namespaces, sysctls.
    ///
    /// # Errors
    /// [`Error::Plan`] for a plan that cannot be; otherwise when a step fails: everything that the steps before it made is gone again.
    pub async fn create_pod(&self, plan: PodPlan) -> Result<Pod, Error> {
        validate(&plan)?;
        let uid = plan.uid.clone();
        if self.pod(&uid).is_ok() {
            return Err(Error::Plan { field: "uid".to_owned(), problem: format!("pod {uid} exists already") });
        }
        let directory = self.inner.config.run_dir.join(&uid);
        // Outside of what is undone: a pod of that name that nobody adopted is left alone.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(io_error(format!("make the run directory of pod {uid}")))?;
        match self.build(plan, directory).await {
            Ok(handle) => {
                let network = clone_network(&handle)?;
                Ok(Pod { uid, shim_pid: handle.link.pid, netns: network })
            }
            Err(error) => {
                // The first error is the one to tell; what is left is found by `adopt`.
                if let Err(second) = self.sweep(&uid).await {
                    tracing::warn!(pod = uid, error = %second, "could not clean up after a pod that failed");
                }
                Err(error)
            }
        }
    }

    async fn build(&self, plan: PodPlan, directory: PathBuf) -> Result<Arc<PodHandle>, Error> {
        let uid = plan.uid.clone();
        let group = group(plan.qos, &uid);
        let what = |what: &str| io_error(format!("{what} of pod {uid}"));

        fs::create_dir(directory.join(CONTAINERS)).map_err(what("make the run directory"))?;
        let lock = File::create(directory.join(LOCK)).map_err(what("make the lock"))?;
        self.after(Step::Directory);

        let text = serde_json::to_vec(&plan).map_err(|error| what("write the plan")(error.into()))?;
        bundle::write_atomically(&directory.join(POD), &text).map_err(what("write the plan"))?;
        self.after(Step::Plan);

        fs::create_dir_all(&plan.log_dir).map_err(what("make the log directory"))?;
        self.after(Step::Logs);

        self.make_group(&group, &plan).await.map_err(what("make the cgroup"))?;
        self.after(Step::Cgroup);

        let (ours, theirs) = crate::seqpacket::pair().map_err(what("make a socket"))?;
        let errors = File::create(directory.join("shim.log")).map_err(what("make the shim's log"))?;
        let mut child = Command::new(self.inner.binary_path())
            .arg0("coracle")
            .arg("shim")
            .arg(&directory)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(lock))
            .stderr(Stdio::from(errors))
            .spawn()
            .map_err(what("start the shim"))?;
        let pid = child.id();
        if let Err(error) = self.inner.cgroups.put_process(Path::new(SHIMS), pid) {
            child.kill().and_then(|()| child.wait()).map_err(what("end the shim"))?;
            return Err(what("move the shim")(error));
        }
        self.after(Step::Shim);

        let link = match Link::new(&uid, ours, pid) {
            Ok(link) => link.with_child(child),
            Err(error) => {
                child.kill().and_then(|()| child.wait()).map_err(what("end the shim"))?;
                return Err(what("watch the shim")(error));
            }
        };
        let (handle, _) = self.welcome(plan, directory, link).await?;
        self.after(Step::Namespaces);
        Ok(handle)
    }

    fn after(&self, step: Step) {
        if let Some(after) = self.inner.config.after_step {
            after(step);
        }
    }

    async fn make_group(&self, group: &Path, plan: &PodPlan) -> io::Result<()> {
        let (cgroups, group, resources) = (self.inner.cgroups.clone(), group.to_owned(), plan.resources.clone());
        blocking(move || {
            cgroups.make(&group)?;
            cgroups.make(Path::new(SHIMS))?;
            cgroups.limit_pod(&group, &resources)?;
            cgroups.weigh_classes()
        })
        .await
    }

    /// Takes a pod in and asks its shim for its state.
    async fn welcome(
        &self,
        plan: PodPlan,
        directory: PathBuf,
        link: Link,
    ) -> Result<(Arc<PodHandle>, Vec<(String, ContainerState)>), Error> {
        let (uid, group) = (plan.uid.clone(), group(plan.qos, &plan.uid));
        let handle = Arc::new(PodHandle {
            plan,
            directory,
            group,
            link,
            network: OnceLock::new(),
            removing: AtomicBool::default(),
        });
        self.pods().insert(uid.clone(), handle.clone());
        {
            let mut tasks = self.tasks();
            // Tasks end with their shims: collect what has ended.
            while tasks.try_join_next().is_some() {}
            tasks.spawn(watch(handle.clone(), self.inner.events.clone(), self.inner.cgroups.clone()));
        }
        match handle.link.hello().await {
            Ok(Welcome { containers, network }) => {
                if let Some(network) = network {
                    handle.network.set(network).ok();
                }
                Ok((handle, containers))
            }
            Err(error) => {
                handle.removing.store(true, Ordering::Release);
                handle.link.kill();
                handle.link.death().await;
                self.pods().remove(&uid);
                Err(shim_error(&handle.directory, error))
            }
        }
    }

    /// Finds the pods of an earlier main process. Half-made pods, and pods whose shim is dead, are removed.
    ///
    /// Call it once, before anything else.
    ///
    /// # Errors
    /// When the run directory cannot be read. A single damaged pod is logged and removed.
    pub async fn adopt(&self) -> Result<Vec<AdoptedPod>, Error> {
        let entries =
            fs::read_dir(&self.inner.config.run_dir).map_err(io_error("read the run directory".to_owned()))?;
        let mut found = JoinSet::new();
        for entry in entries {
            let entry = entry.map_err(io_error("read the run directory".to_owned()))?;
            let Ok(uid) = entry.file_name().into_string() else { continue };
            let runtime = self.clone();
            // Each on its own: a shim that does not answer delays the others not.
            found.spawn(async move {
                let outcome = runtime.adopt_one(&uid, entry.path()).await;
                (uid, outcome)
            });
        }
        let mut adopted = Vec::new();
        while let Some(joined) = found.join_next().await {
            match joined {
                Ok((_, Ok(Some(pod)))) => adopted.push(pod),
                Ok((uid, Ok(None))) => tracing::info!(pod = uid, "removed what was left of a pod"),
                Ok((uid, Err(error))) => tracing::warn!(pod = uid, %error, "could not adopt a pod"),
                Err(error) => tracing::error!(%error, "adopting a pod panicked"),
            }
        }
        adopted.sort_by(|left, right| left.plan.uid.cmp(&right.plan.uid));
        Ok(adopted)
    }

    async fn adopt_one(&self, uid: &str, directory: PathBuf) -> Result<Option<AdoptedPod>, Error> {
        let Some((socket, pid)) = reach(&directory).await else {
            self.sweep(uid).await?;
            return Ok(None);
        };
        match self.adopt_reached(uid, directory, socket, pid).await {
            Ok(pod) => Ok(Some(pod)),
            Err(error) => {
                tracing::warn!(pod = uid, %error, "could not adopt a pod");
                if let Some(handle) = self.pods().remove(uid) {
                    // Its end is no event: nobody was told of the pod.
                    handle.removing.store(true, Ordering::Release);
                }
                kill_shim(pid);
                self.sweep(uid).await?;
                Ok(None)
            }
        }
    }

    async fn adopt_reached(
        &self,
        uid: &str,
        directory: PathBuf,
        socket: OwnedFd,
        pid: u32,
    ) -> Result<AdoptedPod, Error> {
        let what = |what: &str| io_error(format!("{what} of pod {uid}"));
        let text = fs::read(directory.join(POD)).map_err(what("read the plan"))?;
        let plan: PodPlan = serde_json::from_slice(&text).map_err(|error| what("read the plan")(error.into()))?;
        let link = Link::new(uid, socket, pid).map_err(what("watch the shim"))?;
        let (handle, states) = self.welcome(plan.clone(), directory, link).await?;
        let containers = adopt_containers(&handle, states).map_err(what("read the containers"))?;
        let pod = Pod { uid: uid.to_owned(), shim_pid: pid, netns: clone_network(&handle)? };
        Ok(AdoptedPod { plan, pod, containers })
    }

    /// Kills what is left of a pod and removes its shim, namespaces, cgroups and run directory. Logs stay. Idempotent.
    ///
    /// # Errors
    /// When processes do not die (uninterruptible sleep) within 10 seconds: try again later.
    pub async fn remove_pod(&self, pod: &str) -> Result<(), Error> {
        let handle = match self.pod(pod) {
            Ok(handle) => handle,
            // Nobody adopted it, or there is none.
            Err(_) => match self.adopt_one(pod, self.inner.config.run_dir.join(pod)).await? {
                Some(_) => self.pod(pod)?,
                None => return Ok(()),
            },
        };
        handle.removing.store(true, Ordering::Release);
        #[cfg(feature = "planted")]
        if planted::on(planted::Bug::LeakedNetns) {
            std::mem::forget(clone_network(&handle));
        }
        let (cgroups, group) = (self.inner.cgroups.clone(), handle.group.clone());
        blocking(move || cgroups.kill(&group)).await.map_err(io_error(format!("kill pod {pod}")))?;
        // A shim that does not answer is killed like one that does.
        handle.link.prompt(Op::Shutdown).await.ok();
        if tokio::time::timeout(REACHABLE, handle.link.death()).await.is_err() {
            handle.link.kill();
            handle.link.death().await;
        }
        self.sweep(pod).await?;
        self.pods().remove(pod);
        Ok(())
    }

    /// Removes whatever there is of a pod whose shim is dead, or never was.
    async fn sweep(&self, uid: &str) -> Result<(), Error> {
        let directory = self.inner.config.run_dir.join(uid);
        let cgroups = self.inner.cgroups.clone();
        let uid_owned = uid.to_owned();
        let swept = blocking(move || {
            for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
                let group = group(qos, &uid_owned);
                cgroups.kill(&group)?;
                cgroups.remove(&group)?;
            }
            cgroups.weigh_classes()?;
            // Last: as long as it exists, the pod is found.
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result,
            }
        });
        swept.await.map_err(io_error(format!("remove pod {uid}")))
    }
}

/// Serves a pod's connection until its shim is dead.
async fn watch(handle: Arc<PodHandle>, events: mpsc::Sender<Event>, cgroups: Cgroups) {
    let uid = handle.plan.uid.clone();
    let mut end = handle.link.serve(&events).await;
    while let End::Disconnected = end {
        if handle.link.reconnect(&handle.directory).is_err() {
            // It does not listen any more, so it is ending, or it never will be of use again.
            handle.link.kill();
            handle.link.death().await;
            break;
        }
        // Replies arrive only while the connection is served.
        (end, ()) = tokio::join!(handle.link.serve(&events), catch_up(&handle.link, &events));
    }
    handle.link.close();
    if handle.removing.load(Ordering::Acquire) {
        return;
    }
    tracing::warn!(pod = uid, "the pod's shim died");
    let group = handle.group.clone();
    if let Err(error) = blocking(move || cgroups.kill(&group)).await {
        tracing::warn!(pod = uid, %error, "could not kill what a dead shim left behind");
    }
    // The receiver is gone when main is going down.
    events.send(Event::ShimDied { pod: uid }).await.ok();
}

/// Tells what happened while there was no connection.
async fn catch_up(link: &Link, events: &mpsc::Sender<Event>) {
    let Ok(Welcome { containers, .. }) = link.hello().await else { return };
    for (id, state) in containers {
        if let ContainerState::Exited(exit) = state {
            link.exited(id, exit, events).await;
        }
    }
}

/// Connects to the shim of a pod, if it is alive. One that was just being started gets time to listen; one that does not is killed.
async fn reach(directory: &Path) -> Option<(OwnedFd, u32)> {
    let deadline = tokio::time::Instant::now() + REACHABLE;
    loop {
        if let Ok(reached) = Link::connect(directory) {
            return Some(reached);
        }
        // It is free because there is no shim, or because one was spawned that did not get so far: it will find the lock unlinked.
        let lock = File::open(directory.join(LOCK)).ok()?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            fs::remove_file(directory.join(LOCK)).ok();
            return None;
        }
        if tokio::time::Instant::now() > deadline {
            kill_holder(directory);
            return None;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Kills a shim that holds its lock but cannot be reached.
fn kill_holder(directory: &Path) {
    let pid = fs::read_to_string(directory.join(LOCK)).ok().and_then(|text| text.trim().parse().ok());
    // It holds the lock with its pid in it, so that the pid is not another's.
    pid.into_iter().for_each(kill_shim);
}

fn kill_shim(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
    }
}

fn adopt_containers(handle: &PodHandle, states: Vec<(String, ContainerState)>) -> io::Result<Vec<AdoptedContainer>> {
    let mut states: BTreeMap<String, ContainerState> = states.into_iter().collect();
    let mut containers = Vec::new();
    for entry in fs::read_dir(handle.directory.join(CONTAINERS))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(plan) = read_bundle(&entry.path()) else {
            // Main died while it wrote it.
            fs::remove_dir_all(entry.path())?;
            continue;
        };
        let state = states.remove(&name).unwrap_or(ContainerState::Created);
        containers.push(AdoptedContainer { plan, state });
    }
    containers.sort_by(|left, right| (&left.plan.name, left.plan.attempt).cmp(&(&right.plan.name, right.plan.attempt)));
    Ok(containers)
}

fn read_bundle(directory: &Path) -> Option<ContainerPlan> {
    if directory.extension().is_some() {
        return None;
    }
    let read = |name: &str| fs::read(directory.join(name)).ok();
    let bundle: bundle::Bundle = serde_json::from_slice(&read(bundle::BUNDLE)?).ok()?;
    let spec = serde_json::from_slice(&read(bundle::CONFIG)?).ok()?;
    Some(ContainerPlan { spec, ..bundle.plan })
}

fn clone_network(handle: &PodHandle) -> Result<Option<OwnedFd>, Error> {
    let network = handle.network.get().map(OwnedFd::try_clone).transpose();
    network.map_err(io_error("duplicate a network namespace".to_owned()))
}

/// A shim that fails to start says why on its standard error.
fn shim_error(directory: &Path, error: Error) -> Error {
    match (fs::read_to_string(directory.join("shim.log")), error) {
        (Ok(text), Error::Shim(_)) if !text.trim().is_empty() => {
            let source = io::Error::other(text.trim().trim_start_matches("shim: ").to_owned());
            Error::Io { what: "start the pod's shim".to_owned(), source }
        }
        (_, error) => error,
    }
}

/// Runs what waits for the kernel where it delays nobody.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Makes the run directory, for root alone.
pub(crate) fn make_run_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(network: Network) -> PodPlan {
        PodPlan {
            uid: "u".into(),
            namespace: "default".into(),
            name: "p".into(),
            hostname: "p".into(),
            network,
            ipc: Ipc::Pod,
            pid: crate::plan::PidMode::Container,
            qos: Qos::BestEffort,
            resources: crate::plan::Resources::default(),
            sysctls: BTreeMap::new(),
            log_dir: "/var/log/pods/x".into(),
            labels: BTreeMap::new(),
        }
    }

    #[test]
    fn only_namespaced_sysctls_are_set() {
        let problem = |name, network| sysctl_problem(name, &plan(network));
        assert_eq!(problem("net.ipv4.ip_forward", Network::Pod), None);
        assert_eq!(problem("kernel.shm_rmid_forced", Network::Host), None);
        assert!(problem("net.ipv4.ip_forward", Network::Host).is_some());
        assert!(problem("kernel.panic", Network::Pod).is_some());
        assert!(problem("net...", Network::Pod).is_some());
        assert!(problem("net/../kernel.panic", Network::Pod).is_some());
    }

    #[test]
    fn uids_are_names() {
        for uid in ["", ".", "..", "a/b", &"x".repeat(64)] {
            assert!(validate(&PodPlan { uid: uid.to_owned(), ..plan(Network::Pod) }).is_err(), "{uid:?}");
        }
    }
}
