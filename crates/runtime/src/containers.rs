//! Containers: their bundles and cgroups, made and removed by main; all between is asked of the shim.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Root, Spec};
use rustix::fs::MemfdFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::oneshot;

use crate::bundle::{self, BUNDLE, Bundle, CONFIG, FILTER};
use crate::error::{Error, io_error};
use crate::plan::{
    AttachIo, AttachPlan, ContainerPlan, ExecIo, ExecPlan, PidMode, Resources, Rootfs, Started, Stats, Streams,
};
use crate::pods::{PodHandle, blocking};
use crate::shim::protocol::{Answer, Op, Start};
use crate::{Runtime, seccomp};

/// How much output an attached client may be behind before it is cut off.
const ATTACH_BUFFER: usize = 1 << 20;

impl Runtime {
    /// Writes a container's bundle and makes its cgroup. Nothing of it runs yet.
    ///
    /// # Errors
    /// [`Error::Plan`] for a configuration that the runtime does not support.
    pub async fn create_container(&self, pod: &str, plan: ContainerPlan) -> Result<(), Error> {
        let handle = self.pod(pod)?;
        bundle::validate(&plan)?;
        let id = plan.id.clone();
        let directory = handle.container_directory(&id);
        if directory.exists() {
            return Err(Error::Plan { field: "id".to_owned(), problem: format!("container {id} exists already") });
        }
        let filter = match plan.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) {
            Some(profile) => seccomp::compile(profile)
                .map_err(|error| Error::Plan { field: "linux.seccomp".to_owned(), problem: error.to_string() })?,
            None => Vec::new(),
        };
        let result = self.write_container(&handle, plan, filter, directory).await;
        if result.is_err() {
            let (cgroups, group) = (self.inner.cgroups.clone(), handle.container_group(&id));
            // The first error is the one to tell; the rest goes with the pod.
            blocking(move || cgroups.remove(&group)).await.ok();
        }
        result.map_err(io_error(format!("create container {id}")))
    }

    async fn write_container(
        &self,
        handle: &PodHandle,
        mut plan: ContainerPlan,
        filter: Vec<u64>,
        directory: PathBuf,
    ) -> io::Result<()> {
        let (cgroups, group) = (self.inner.cgroups.clone(), handle.container_group(&plan.id));
        let (shim, own_pids) = (handle.link.pid, handle.plan.pid == PidMode::Container && plan.pid_of.is_none());
        let log_dir = handle.plan.log_dir.clone();
        blocking(move || {
            let resources = plan.spec.linux().as_ref().and_then(|linux| linux.resources().clone());
            cgroups.make(&group)?;
            let resources = resources.unwrap_or_default();
            cgroups.limit(&group, &bundle::limits(&resources).map_err(io::Error::other)?)?;
            let rules = bundle::device_rules(resources.devices().as_deref().unwrap_or_default());
            cgroups.limit_devices(&group, &rules)?;
            if !plan.single_process_oom_kill {
                cgroups.kill_as_one(&group)?;
            }
            if let Rootfs::Overlay { upper, work, .. } = &plan.rootfs {
                fs::create_dir_all(upper)?;
                fs::create_dir_all(work)?;
            }
            if let Some(parent) = plan.log_path.as_ref().and_then(|path| path.parent()) {
                fs::create_dir_all(log_dir.join(parent))?;
            }
            let spec =
                complete(std::mem::take(&mut plan.spec), &plan.rootfs, &cgroups.oci_path(&group), shim, own_pids);
            let bundle = Bundle {
                plan,
                cgroups: cgroups.directories(&group),
                cgroup_v2: cgroups.is_v2(),
                oom: cgroups.oom_counter(&group),
            };
            write_bundle(&directory, &spec, &bundle, &filter)
        })
        .await
    }

    /// Runs a created container. Returns when its program has been executed.
    ///
    /// # Errors
    /// [`Error::Start`] with the reason, e.g. `exec: "foo": executable file not found in $PATH`. The container is then `Exited`
    /// with code 128, and no event is sent.
    pub async fn start_container(&self, pod: &str, container: &str) -> Result<Started, Error> {
        let handle = self.pod(pod)?;
        let directory = handle.container_directory(container);
        let read = |name: &str| fs::read(directory.join(name));
        let text = read(BUNDLE).map_err(|_| Error::UnknownContainer(container.to_owned()))?;
        let what = || format!("read the bundle of container {container}");
        let bundle: Bundle = serde_json::from_slice(&text).map_err(|error| io_error(what())(error.into()))?;
        let config = read(CONFIG).map_err(io_error(what()))?;
        let spec: Spec = serde_json::from_slice(&config).map_err(|error| io_error(what())(error.into()))?;
        let terminal = spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false);
        let start = Start {
            id: container.to_owned(),
            terminal,
            stdin: bundle.plan.stdin,
            pid_of: bundle.plan.pid_of,
            log_path: bundle.plan.log_path,
            log_limits: bundle.plan.log_limits,
            cgroups: bundle.cgroups,
            cgroup_v2: bundle.cgroup_v2,
            oom: bundle.oom,
        };
        match handle.link.call(Op::Start(start), &[], None).await? {
            (Answer::Started { pid, at }, _) => Ok(Started { pid, at }),
            _ => Err(Error::Shim(pod.to_owned())),
        }
    }

    /// Sends `signal` to a container's init. A container that does not run is no error.
    ///
    /// # Errors
    /// [`Error::UnknownPod`], [`Error::UnknownContainer`].
    pub async fn signal(&self, pod: &str, container: &str, signal: i32) -> Result<(), Error> {
        let op = Op::Signal { id: container.to_owned(), signal };
        match self.pod(pod)?.link.prompt(op).await {
            // Created and never started: the shim does not know it.
            Err(Error::UnknownContainer(_)) if self.known(pod, container)? => Ok(()),
            result => result.map(drop),
        }
    }

    fn known(&self, pod: &str, container: &str) -> Result<bool, Error> {
        Ok(self.pod(pod)?.container_directory(container).exists())
    }

    /// Kills every process of a container. Its exit arrives as an event.
    ///
    /// # Errors
    /// [`Error::UnknownPod`]; when a process does not die within 10 seconds.
    pub async fn kill_container(&self, pod: &str, container: &str) -> Result<(), Error> {
        let handle = self.pod(pod)?;
        let (cgroups, group) = (self.inner.cgroups.clone(), handle.container_group(container));
        blocking(move || cgroups.kill(&group)).await.map_err(io_error(format!("kill container {container}")))
    }

    /// Forgets a container: kills what is left of it, removes its cgroup and bundle. Its log and its upper directory stay.
    ///
    /// # Errors
    /// [`Error::UnknownPod`]. An unknown container is no error.
    pub async fn remove_container(&self, pod: &str, container: &str) -> Result<(), Error> {
        let handle = self.pod(pod)?;
        self.kill_container(pod, container).await?;
        // A shim that is dead has forgotten it.
        match handle.link.prompt(Op::Forget { id: container.to_owned() }).await {
            Ok(_) | Err(Error::UnknownContainer(_) | Error::Shim(_)) => {}
            Err(error) => return Err(error),
        }
        let (cgroups, group) = (self.inner.cgroups.clone(), handle.container_group(container));
        let directory = handle.container_directory(container);
        let removed = blocking(move || {
            cgroups.remove(&group)?;
            match fs::remove_dir_all(directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result,
            }
        });
        removed.await.map_err(io_error(format!("remove container {container}")))
    }

    /// Runs a process in a running container.
    ///
    /// # Errors
    /// [`Error::Start`] with the reason; [`Error::NotRunning`].
    pub async fn exec(&self, pod: &str, container: &str, plan: ExecPlan) -> Result<ExecIo, Error> {
        let handle = self.pod(pod)?;
        let what = || io_error(format!("execute in container {container}"));
        let file = plan_file(&plan).map_err(what())?;
        let (mut theirs, mut streams) = (vec![file], None);
        if !plan.tty {
            let (output, output_end) = pipe(None).map_err(what())?;
            let (error, error_end) = pipe(None).map_err(what())?;
            let input = if plan.stdin {
                let (input_end, input) = pipe(None).map_err(what())?;
                theirs.push(input_end);
                Some(input)
            } else {
                None
            };
            theirs.extend([output_end, error_end]);
            streams = Some(Streams::Pipes { stdin: input, stdout: Some(output), stderr: Some(error) });
        }
        let (sender, exit) = oneshot::channel();
        let op = Op::Exec { id: container.to_owned(), terminal: plan.tty, stdin: plan.stdin };
        let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        let (answer, fds) = match handle.link.call(op, &fds, Some(sender)).await {
            // Created and never started: the shim does not know it.
            Err(Error::UnknownContainer(_)) if self.known(pod, container)? => {
                return Err(Error::NotRunning(container.to_owned()));
            }
            result => result?,
        };
        let broken = || Error::Shim(pod.to_owned());
        let Answer::Executing { pid } = answer else { return Err(broken()) };
        let mut fds = fds.into_iter();
        let pidfd = fds.next().ok_or_else(broken)?;
        let streams = match streams {
            Some(streams) => streams,
            None => {
                let input = fds.next().ok_or_else(broken)?;
                let output = input.try_clone().map_err(what())?;
                Streams::Terminal { input, output }
            }
        };
        Ok(ExecIo { pid, pidfd, streams, exit })
    }

    /// Connects to a running container's streams. Output begins with what the container writes next.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Plan`] for a stream that the container does not have.
    pub async fn attach(&self, pod: &str, container: &str, plan: AttachPlan) -> Result<AttachIo, Error> {
        let handle = self.pod(pod)?;
        let what = || io_error(format!("attach to container {container}"));
        let mut theirs = Vec::new();
        let mut end = |wanted: bool| -> io::Result<Option<OwnedFd>> {
            if !wanted {
                return Ok(None);
            }
            let (ours, end) = pipe(Some(ATTACH_BUFFER))?;
            theirs.push(end);
            Ok(Some(ours))
        };
        let (stdout, stderr) = (end(plan.stdout).map_err(what())?, end(plan.stderr).map_err(what())?);
        let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        let op = Op::Attach { id: container.to_owned(), plan };
        let (_, fds) = match handle.link.call(op, &fds, None).await {
            Err(Error::UnknownContainer(_)) if self.known(pod, container)? => {
                return Err(Error::NotRunning(container.to_owned()));
            }
            result => result?,
        };
        let input = fds.into_iter().next();
        let terminal = input.as_ref().is_some_and(rustix::termios::isatty);
        let streams = match (input, stdout) {
            (Some(input), Some(output)) if terminal => Streams::Terminal { input, output },
            (input, stdout) => Streams::Pipes { stdin: input.filter(|_| plan.stdin), stdout, stderr },
        };
        Ok(AttachIo { streams })
    }

    /// What a container uses now.
    ///
    /// # Errors
    /// [`Error::UnknownPod`], or when its cgroup is gone.
    pub fn container_stats(&self, pod: &str, container: &str) -> Result<Stats, Error> {
        let group = self.pod(pod)?.container_group(container);
        self.inner.cgroups.stats(&group).map_err(io_error(format!("read the usage of container {container}")))
    }

    /// What a pod uses now: all of its containers.
    ///
    /// # Errors
    /// [`Error::UnknownPod`], or when its cgroup is gone.
    pub fn pod_stats(&self, pod: &str) -> Result<Stats, Error> {
        let group = &self.pod(pod)?.group;
        self.inner.cgroups.stats(group).map_err(io_error(format!("read the usage of pod {pod}")))
    }

    /// Changes a container's limits while it runs.
    ///
    /// # Errors
    /// When the kernel refuses, e.g. a memory limit below what is in use.
    pub async fn update_container(&self, pod: &str, container: &str, resources: &Resources) -> Result<(), Error> {
        let group = self.pod(pod)?.container_group(container);
        let (cgroups, resources) = (self.inner.cgroups.clone(), resources.clone());
        let updated = blocking(move || cgroups.limit(&group, &resources));
        updated.await.map_err(io_error(format!("change the limits of container {container}")))
    }

    /// Changes the limits of a pod's cgroup: for an in-place resize, before its containers grow or after they have shrunk.
    ///
    /// # Errors
    /// [`Error::UnknownPod`]; when the kernel refuses.
    pub async fn update_pod(&self, pod: &str, resources: &Resources) -> Result<(), Error> {
        let group = self.pod(pod)?.group.clone();
        let (cgroups, resources) = (self.inner.cgroups.clone(), resources.clone());
        let updated = blocking(move || {
            cgroups.limit_pod(&group, &resources)?;
            cgroups.weigh_classes()
        });
        updated.await.map_err(io_error(format!("change the limits of pod {pod}")))
    }

    /// Opens a container's log anew, after something else moved it. Shims rotate by themselves: this is for the CRI.
    ///
    /// # Errors
    /// [`Error::UnknownContainer`], or when the file cannot be made.
    pub async fn reopen_log(&self, pod: &str, container: &str) -> Result<(), Error> {
        self.pod(pod)?.link.prompt(Op::ReopenLog { id: container.to_owned() }).await.map(drop)
    }
}

/// A pipe: the end to read and the end to write. Only the shim makes an end non-blocking, and only its own.
fn pipe(size: Option<usize>) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    if let Some(size) = size {
        // Best effort: the limit for all pipes of a user may be reached.
        rustix::pipe::fcntl_setpipe_size(&write, size).ok();
    }
    Ok((read, write))
}

/// Plans may be as long as the arguments of a program: they travel in a memory file.
fn plan_file(plan: &ExecPlan) -> io::Result<OwnedFd> {
    let mut file = fs::File::from(rustix::fs::memfd_create("exec", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(plan)?)?;
    io::Seek::rewind(&mut file)?;
    Ok(file.into())
}

/// Fills in what a configuration takes from its pod.
fn complete(mut spec: Spec, rootfs: &Rootfs, cgroup: &Path, shim: u32, own_pids: bool) -> Spec {
    let mut root = spec.root().clone().unwrap_or_else(|| {
        let mut root = Root::default();
        root.set_readonly(Some(false));
        root
    });
    root.set_path(match rootfs {
        Rootfs::Directory(path) => path.clone(),
        Rootfs::Overlay { .. } => PathBuf::from("rootfs"),
    });
    let mut linux = spec.linux().clone().unwrap_or_default();
    linux.set_cgroups_path(Some(cgroup.to_owned())).set_namespaces(Some(namespaces(shim, own_pids)));
    spec.set_root(Some(root)).set_hostname(None).set_linux(Some(linux));
    spec
}

fn namespaces(shim: u32, own_pids: bool) -> Vec<LinuxNamespace> {
    let own = |kind| LinuxNamespaceBuilder::default().typ(kind).build();
    let of_shim =
        |kind, name: &str| LinuxNamespaceBuilder::default().typ(kind).path(format!("/proc/{shim}/ns/{name}")).build();
    let mut namespaces = vec![
        own(LinuxNamespaceType::Mount),
        own(LinuxNamespaceType::Cgroup),
        of_shim(LinuxNamespaceType::Network, "net"),
        of_shim(LinuxNamespaceType::Ipc, "ipc"),
        of_shim(LinuxNamespaceType::Uts, "uts"),
    ];
    if own_pids {
        namespaces.push(own(LinuxNamespaceType::Pid));
    }
    namespaces.into_iter().map(|namespace| namespace.expect("the kind is set")).collect()
}

/// Writes a bundle under another name and renames it: a directory with the right name is complete.
fn write_bundle(directory: &Path, spec: &Spec, bundle: &Bundle, filter: &[u64]) -> io::Result<()> {
    let temporary = directory.with_extension("tmp");
    fs::create_dir(&temporary)?;
    fs::write(temporary.join(CONFIG), serde_json::to_vec(spec)?)?;
    fs::write(temporary.join(BUNDLE), serde_json::to_vec(bundle)?)?;
    fs::write(temporary.join(FILTER), filter.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>())?;
    fs::rename(&temporary, directory)
}
