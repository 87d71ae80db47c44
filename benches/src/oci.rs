//! `oci`: a container's whole life (created, started, ended, removed) by coracle's container core, and by crun and runc.
//!
//! The same OCI configuration in the same root: namespaces of its own, cgroup limits, default capabilities and seccomp filter, masked
//! paths. coracle makes a pod around it, with a shim that would outlive the caller; crun and runc are run once each, from create to
//! delete. Everything runs in a child on a machine of its own, whose control group counts all of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{
    Linux, LinuxCpuBuilder, LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder,
    LinuxResourcesBuilder, Root, Spec,
};
use runtime::plan::{self, ContainerPlan, Event, Ipc, LogLimits, Network, PidMode, PodPlan, Qos, Resources, Rootfs};
use runtime::{Config, Runtime};
use testkit::host::Lab;
use testkit::upstream::container_runtime::ContainerRuntime;

use crate::Env;
use crate::account::Account;
use crate::figures::{Figures, Measure, Which};
use crate::side::OCI_LAB;
use crate::stats::median;

/// The hidden first argument of the child.
pub const INSIDE: &str = "inside-oci";
const CONTAINERS: usize = 30;
/// Before the clock runs.
const WARM: usize = 3;
const PATIENCE: Duration = Duration::from_secs(20);

const AGAINST_CRUN: [Measure; 2] =
    [Measure::cost("oci_run_crun", "ms"), Measure::cost("oci_run_crun_cpu", "ms of CPU")];
const AGAINST_RUNC: [Measure; 2] =
    [Measure::cost("oci_run_runc", "ms"), Measure::cost("oci_run_runc_cpu", "ms of CPU")];

pub fn run(env: &Env) -> Result<Figures> {
    let programs = ContainerRuntime::unpacked()?;
    let mut lab = Lab::new(OCI_LAB)?;
    lab.add_host("rack")?;
    let host = lab.host(0);
    let account = Account::open(&host.cgroup_root)?;
    let dir = host.dir.join("oci");
    make_root(&dir.join("root"))?;
    // crun refuses version 1 where version 2 is mounted beside it without any controller; this host does not see that mount.
    host.run(&["sh", "-c", "if [ -d /sys/fs/cgroup/unified ]; then umount /sys/fs/cgroup/unified; fi"])?;
    let once = |program: &Path| -> Result<[f64; 2]> {
        let before = account.cpu()?;
        let mut command = host.command(std::env::current_exe()?);
        let child = command.args([INSIDE, &host.cgroup_root]).arg(&dir).arg(program).arg(&env.coracle);
        let child = child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        account.adopt(child.id())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{}: {}", program.display(), output.status);
        let millis: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
        Ok([millis, (account.cpu()? - before).as_secs_f64() * 1e3 / (WARM + CONTAINERS) as f64])
    };
    let mut figures = Figures::default();
    for _ in 0..env.rounds {
        let ours = once(&env.coracle)?;
        for (program, measures) in [(&programs.crun, AGAINST_CRUN), (&programs.runc, AGAINST_RUNC)] {
            let theirs = once(program)?;
            for (measure, (ours, theirs)) in measures.into_iter().zip(ours.into_iter().zip(theirs)) {
                figures.record(Which::Coracle, measure, ours);
                figures.record(Which::Peer, measure, theirs);
            }
        }
    }
    Ok(figures)
}

/// The child: runs the containers and prints the median in milliseconds.
///
/// # Errors
/// When a container does not end with success.
pub fn inside(arguments: &[String]) -> Result<()> {
    let [cgroup_root, dir, program, coracle] = arguments else { bail!("{INSIDE} is not for people") };
    let (dir, program) = (PathBuf::from(dir), PathBuf::from(program));
    let bed = Bed { cgroup_root, root: dir.join("root"), dir };
    let times = if program == Path::new(coracle) { bed.by_coracle(&program)? } else { bed.by_command(&program)? };
    println!("{}", median(&times[WARM..]).context("there were containers")?);
    Ok(())
}

/// What the containers are run with.
struct Bed<'a> {
    cgroup_root: &'a str,
    dir: PathBuf,
    root: PathBuf,
}

impl Bed<'_> {
    fn by_coracle(&self, binary: &Path) -> Result<Vec<f64>> {
        let config = Config {
            run_dir: "/run/bench/pods".into(),
            cgroup_root: self.cgroup_root.into(),
            binary: binary.to_owned(),
            after_step: None,
        };
        fs::create_dir_all("/run/bench")?;
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        tokio.block_on(async {
            let (runtime, mut events) = Runtime::new(config)?;
            let mut times = Vec::new();
            for n in 0..WARM + CONTAINERS {
                let began = Instant::now();
                let (uid, container) = (format!("bench-{n}"), self.container()?);
                let id = container.id.clone();
                runtime.create_pod(self.pod(&uid)).await?;
                runtime.create_container(&uid, container).await?;
                runtime.start_container(&uid, &id).await?;
                let event = tokio::time::timeout(PATIENCE, events.recv()).await.context("waiting for the end")?;
                match event.context("the runtime is gone")? {
                    Event::ContainerExited { exit, .. } if exit.exit_code == 0 => {}
                    event => bail!("a container did not succeed: {event:?}"),
                }
                runtime.remove_pod(&uid).await?;
                times.push(began.elapsed().as_secs_f64() * 1e3);
            }
            Ok(times)
        })
    }

    fn pod(&self, uid: &str) -> PodPlan {
        PodPlan {
            uid: uid.to_owned(),
            namespace: "bench".to_owned(),
            name: uid.to_owned(),
            hostname: "bench".to_owned(),
            network: Network::Pod,
            ipc: Ipc::Pod,
            pid: PidMode::Container,
            qos: Qos::Burstable,
            resources: Resources::default(),
            sysctls: BTreeMap::new(),
            log_dir: self.dir.join("logs").join(uid),
            labels: BTreeMap::new(),
        }
    }

    fn container(&self) -> Result<ContainerPlan> {
        Ok(ContainerPlan {
            id: runtime::new_id(),
            name: "c".to_owned(),
            attempt: 0,
            spec: self.spec(None)?,
            rootfs: Rootfs::Directory(self.root.clone()),
            log_path: None,
            log_limits: LogLimits::default(),
            stdin: plan::Stdin::Null,
            pid_of: None,
            single_process_oom_kill: false,
            labels: BTreeMap::new(),
        })
    }

    fn by_command(&self, program: &Path) -> Result<Vec<f64>> {
        let name = program.file_name().context("a program has a name")?.to_string_lossy().into_owned();
        let (bundle, state) = (self.dir.join(&name), format!("/run/bench-{name}"));
        fs::create_dir_all(&bundle)?;
        let mut times = Vec::new();
        for n in 0..WARM + CONTAINERS {
            let id = format!("{name}-{n}");
            let began = Instant::now();
            let spec = self.spec(Some(&format!("/{}/{id}", self.cgroup_root)))?;
            fs::write(bundle.join("config.json"), serde_json::to_vec(&spec)?)?;
            let mut command = Command::new(program);
            command.args(["--root", &state, "run", "--bundle"]).arg(&bundle).arg(&id);
            let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
            ensure!(status.success(), "{name} run: {status}");
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        Ok(times)
    }

    /// `busybox true` as a pod's container. With a path of a control group come the namespaces, which coracle sets by itself.
    fn spec(&self, cgroup: Option<&str>) -> Result<Spec> {
        let names: Vec<String> = runtime::capability::DEFAULT.iter().map(|name| (*name).to_owned()).collect();
        let mut process = runtime::defaults::process();
        process
            .set_args(Some(["/bin/busybox", "true"].map(str::to_owned).to_vec()))
            .set_env(Some(vec!["PATH=/bin".to_owned()]));
        let mut linux = runtime::defaults::linux();
        linux.set_seccomp(Some(runtime::seccomp::runtime_default(&names))).set_resources(Some(
            LinuxResourcesBuilder::default()
                .cpu(LinuxCpuBuilder::default().shares(102_u64).build()?)
                .memory(LinuxMemoryBuilder::default().limit(64_i64 << 20).build()?)
                .pids(LinuxPidsBuilder::default().limit(100_i64).build()?)
                .build()?,
        ));
        if let Some(cgroup) = cgroup {
            set_namespaces(&mut linux, cgroup)?;
        }
        let mut root = Root::default();
        root.set_readonly(Some(false)).set_path(self.root.clone());
        let mut spec = Spec::default();
        spec.set_process(Some(process)).set_mounts(Some(runtime::defaults::mounts())).set_linux(Some(linux));
        spec.set_root(Some(root));
        Ok(spec)
    }
}

fn set_namespaces(linux: &mut Linux, cgroup: &str) -> Result<()> {
    let kinds = [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Cgroup,
    ];
    let namespaces = kinds.map(|kind| LinuxNamespaceBuilder::default().typ(kind).build());
    linux.set_namespaces(Some(namespaces.into_iter().collect::<Result<_, _>>()?));
    linux.set_cgroups_path(Some(cgroup.into()));
    Ok(())
}

fn make_root(root: &Path) -> Result<()> {
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("the package busybox-static is installed")?;
    Ok(())
}
