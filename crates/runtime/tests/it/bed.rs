//! A runtime of its own for each test: directories, cgroup root and a root file system with busybox.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use oci_spec::runtime::{Mount, MountBuilder, Spec};
use runtime::error::Error;
use runtime::plan::{
    ContainerPlan, Event, ExecPlan, Exit, Ipc, LogLimits, Network, PidMode, PodPlan, Qos, Resources, Rootfs, Started,
    Stdin, Streams,
};
use runtime::{Config, Runtime};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

/// Everything that a test waits for comes in milliseconds; a slow machine may take longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Bed {
    pub runtime: Runtime,
    pub events: mpsc::Receiver<Event>,
    pub directory: PathBuf,
    pub config: Config,
    finished: bool,
}

fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("coracle-runtime-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Bed {
    pub fn new() -> Bed {
        let name = unique();
        let directory = PathBuf::from("/run").join(&name);
        fs::create_dir_all(&directory).unwrap();
        make_rootfs(&directory.join("layer"));
        let config = Config {
            run_dir: directory.join("pods"),
            cgroup_root: PathBuf::from(name),
            binary: PathBuf::from(env!("CARGO_BIN_EXE_runtime-shim")),
            after_step: None,
        };
        let (runtime, events) = Runtime::new(config.clone()).unwrap();
        Bed { runtime, events, directory, config, finished: false }
    }

    /// As after a `kill -9` of main: the shims do not notice more than a closed connection.
    pub fn restart(&mut self) {
        (self.runtime, self.events) = Runtime::new(self.config.clone()).unwrap();
    }

    pub fn pod_plan(&self, uid: &str) -> PodPlan {
        PodPlan {
            uid: uid.to_owned(),
            namespace: "default".to_owned(),
            name: uid.to_owned(),
            hostname: "host-of-the-pod".to_owned(),
            network: Network::Pod,
            ipc: Ipc::Pod,
            pid: PidMode::Container,
            qos: Qos::Burstable,
            resources: Resources::default(),
            sysctls: BTreeMap::new(),
            log_dir: self.directory.join("logs").join(uid),
            labels: BTreeMap::from([("app".to_owned(), "test".to_owned())]),
        }
    }

    pub async fn pod(&self, uid: &str) -> runtime::plan::Pod {
        self.runtime.create_pod(self.pod_plan(uid)).await.unwrap()
    }

    /// A container that runs `script` in a shell.
    pub fn plan(&self, script: &str) -> ContainerPlan {
        let id = runtime::new_id();
        let scratch = self.directory.join("containers").join(&id);
        let mut spec = Spec::default();
        let mut process = runtime::defaults::process();
        process
            .set_args(Some(["sh", "-c", script].map(str::to_owned).to_vec()))
            .set_env(Some(vec!["PATH=/bin:/usr/bin".to_owned()]));
        let mut linux = runtime::defaults::linux();
        linux.set_seccomp(Some(runtime::seccomp::runtime_default(&default_capabilities())));
        spec.set_process(Some(process)).set_mounts(Some(runtime::defaults::mounts())).set_linux(Some(linux));
        let mut root = oci_spec::runtime::Root::default();
        root.set_readonly(Some(false));
        spec.set_root(Some(root));
        ContainerPlan {
            id,
            name: "main".to_owned(),
            attempt: 0,
            spec,
            rootfs: Rootfs::Overlay {
                lower: vec![self.directory.join("layer")],
                upper: scratch.join("upper"),
                work: scratch.join("work"),
            },
            log_path: Some(PathBuf::from("main/0.log")),
            log_limits: LogLimits::default(),
            pid_of: None,
            stdin: Stdin::Null,
            single_process_oom_kill: false,
            labels: BTreeMap::new(),
        }
    }

    pub async fn start(&self, pod: &str, plan: ContainerPlan) -> Result<Started, Error> {
        let id = plan.id.clone();
        self.runtime.create_container(pod, plan).await?;
        self.runtime.start_container(pod, &id).await
    }

    pub async fn event(&mut self) -> Event {
        tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("no event came").expect("the runtime is gone")
    }

    pub async fn exit(&mut self) -> Exit {
        match self.event().await {
            Event::ContainerExited { exit, .. } => exit,
            event => panic!("not an exit: {event:?}"),
        }
    }

    /// Runs a plan in a pod of its own to its end: its exit and what it printed.
    pub async fn run(&mut self, plan: ContainerPlan) -> (Exit, String) {
        let pod = unique();
        self.pod(&pod).await;
        self.run_in(&pod, plan).await
    }

    pub async fn run_in(&mut self, pod: &str, plan: ContainerPlan) -> (Exit, String) {
        self.start(pod, plan).await.unwrap();
        let exit = self.exit().await;
        (exit, self.log(pod))
    }

    /// The text of a pod's log, without times and tags.
    pub fn log(&self, pod: &str) -> String {
        let text = fs::read_to_string(self.directory.join("logs").join(pod).join("main/0.log")).unwrap();
        text_of(&text)
    }

    /// Waits until a pod's log contains `needle`.
    pub async fn wait_for_log(&self, pod: &str, needle: &str) {
        wait_until(needle, || self.log(pod).contains(needle)).await;
    }

    /// Runs a command in a container: its exit code and output.
    pub async fn exec(&self, pod: &str, container: &str, script: &str) -> (i32, String) {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        let plan = ExecPlan { args, stdin: false, tty: false };
        let exec = self.runtime.exec(pod, container, plan).await.unwrap();
        let Streams::Pipes { stdout: Some(stdout), stderr: Some(stderr), .. } = exec.streams else {
            panic!("no pipes");
        };
        let output = read_all(stdout).await + &read_all(stderr).await;
        (exec.exit.await.unwrap(), output)
    }

    /// Removes every pod, and checks that nothing stays behind.
    pub async fn finish(mut self) {
        for entry in fs::read_dir(&self.config.run_dir).unwrap() {
            let uid = entry.unwrap().file_name().into_string().unwrap();
            self.runtime.remove_pod(&uid).await.unwrap();
        }
        assert_eq!(fs::read_dir(&self.config.run_dir).unwrap().count(), 0);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.directory.to_str().unwrap()), "a mount stayed behind");
        for directory in self.cgroups() {
            let left: Vec<_> = tree(&directory.join("kubepods")).into_iter().filter(|path| is_pod(path)).collect();
            assert_eq!(left, Vec::<PathBuf>::new());
        }
        self.clear();
    }

    /// The directories of the cgroup root, one per hierarchy.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        let candidates = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]);
        candidates.map(|path| path.join(&self.config.cgroup_root)).filter(|path| path.exists()).collect()
    }

    fn clear(&mut self) {
        self.finished = true;
        for directory in self.cgroups() {
            for directory in tree(&directory).iter().rev() {
                let deadline = std::time::Instant::now() + PATIENCE;
                while fs::remove_dir(directory).is_err() && std::time::Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        fs::remove_dir_all(&self.directory).unwrap();
    }
}

impl Drop for Bed {
    /// A test that failed leaves nothing behind either.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let config = self.config.clone();
        let cleaner = std::thread::spawn(move || {
            let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio.block_on(async {
                let (runtime, _events) = Runtime::new(config).unwrap();
                for pod in runtime.adopt().await.unwrap() {
                    runtime.remove_pod(&pod.plan.uid).await.unwrap();
                }
            });
        });
        if cleaner.join().is_ok() {
            self.clear();
        }
    }
}

fn is_pod(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pod"))
}

fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut all = vec![directory.to_owned()];
    if let Ok(entries) = fs::read_dir(directory) {
        for entry in entries.filter_map(Result::ok) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                all.extend(tree(&entry.path()));
            }
        }
    }
    all
}

fn make_rootfs(root: &Path) {
    for directory in ["bin", "etc", "tmp", "proc", "sys", "dev", "home/user"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("the package busybox-static is installed");
    let applets = std::process::Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
}

pub fn default_capabilities() -> Vec<String> {
    runtime::capability::DEFAULT.iter().map(|name| (*name).to_owned()).collect()
}

/// A bind mount.
pub fn bind(source: &Path, destination: &str, options: &[&str]) -> Mount {
    MountBuilder::default()
        .destination(destination)
        .typ("bind")
        .source(source)
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
        .unwrap()
}

pub fn text_of(log: &str) -> String {
    log.lines().fold(String::new(), |mut text, line| {
        let mut fields = line.splitn(4, ' ').skip(2);
        let (tag, rest) = (fields.next().unwrap(), fields.next().unwrap_or_default());
        text.push_str(rest);
        if tag == "F" {
            text.push('\n');
        }
        text
    })
}

pub async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub async fn read_all(fd: std::os::fd::OwnedFd) -> String {
    let mut text = String::new();
    let mut file = tokio::fs::File::from_std(fs::File::from(fd));
    tokio::time::timeout(PATIENCE, file.read_to_string(&mut text)).await.expect("a stream did not end").unwrap();
    text
}
