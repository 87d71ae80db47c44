//! A cluster of one node for each test: server over memory, runtime, images, directories and cgroup root of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use client::{BoxFuture, Client, DeleteOptions, PatchType, Resource};
use image::registries::Registries;
use image::store::ImageStore;
use image::unpack::Unpacker;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod, PodStatus};
use node::network::{PodAddresses, PodNetwork};
use node::run::Config;
use node::server::{Authorizer, Endpoint};
use node::shared::{Registry, Roots};
use runtime::Runtime;
use serde_json::{Value, json};
use server::admission::node_restriction::NodeRestriction;
use server::admit::{AdmissionAttributes, Chain, Plugin};
use server::authz;
use server::hooks::{NodeAddress, NodeDialer, Stream, TokenAsk, TokenIssuer};
use server::identity::{Decision, Everybody, User};
use server::path::Attributes;
use server::server::{Server, ServerConfig};
use store::memory::Memory;
use testkit::images::{BuiltImage, Compression, Layer, oci_archive};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Everything that a test waits for comes soon; a loaded machine may take longer.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const PODS: Resource = Resource::new("", "v1", "pods");

pub struct Bed {
    pub server: Arc<Server>,
    pub client: Client,
    pub dir: PathBuf,
    pub runtime: Runtime,
    pub registry: Registry,
    pub deaf: Deaf,
    dialer: Dialer,
    images: ImageStore,
    runtime_config: runtime::Config,
    running: Option<Running>,
    finished: bool,
}

fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("coracle-node-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Pods see only themselves: enough for everything but traffic between them.
struct Lonely;

impl PodNetwork for Lonely {
    fn attach<'a>(&'a self, _: &'a str, _: OwnedFd, _: &'a Pod) -> BoxFuture<'a, Result<PodAddresses, String>> {
        Box::pin(async { Ok(PodAddresses { ips: vec!["10.244.0.9".parse().unwrap()] }) })
    }

    fn adopt(&self, _: &Pod, _: &[std::net::IpAddr]) {}

    fn adopted(&self) {}

    fn detach<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

/// Numbers its tokens.
#[derive(Default)]
struct Numbered(Mutex<u32>);

impl TokenIssuer for Numbered {
    fn issue<'a>(&'a self, ask: TokenAsk<'a>) -> server::identity::BoxFuture<'a, Result<Value, api::status::Status>> {
        let mut reply = ask.request;
        let mut count = self.0.lock().unwrap();
        *count += 1;
        let expires =
            Timestamp::now() + jiff::SignedDuration::from_secs(reply["spec"]["expirationSeconds"].as_i64().unwrap());
        reply["status"] = json!({"token": format!("token-{count}"), "expirationTimestamp": expires.to_string()});
        Box::pin(async move { Ok(reply) })
    }
}

/// The node may do what a node may do, the test everything.
struct NodeRules(Arc<dyn store::Store>);

impl server::identity::Authorizer for NodeRules {
    fn authorize(&self, user: &User, attributes: &Attributes) -> Decision {
        match authz::node::node_of(user) {
            Some(_) => authz::node::authorize(&self.0.snapshot(), user, attributes),
            None => Decision::Allow(String::new()),
        }
    }
}

/// Leads the API server to the node's endpoint, over TLS as in earnest.
#[derive(Clone, Default)]
struct Dialer(Arc<Mutex<Option<Endpoint>>>);

impl NodeDialer for Dialer {
    fn dial<'a>(
        &'a self,
        _: &'a NodeAddress,
    ) -> server::identity::BoxFuture<'a, Result<Box<dyn Stream>, api::status::Status>> {
        let endpoint = self.0.lock().unwrap().clone();
        Box::pin(async move {
            let endpoint = endpoint.ok_or_else(|| api::status::Status::unavailable("the node does not run"))?;
            let issued = rcgen::generate_simple_self_signed(["node".to_owned()]).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let tls = rustls::ServerConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(
                    vec![issued.cert.der().clone()],
                    issued.signing_key.serialize_der().try_into().unwrap(),
                )
                .unwrap();
            let mut roots = rustls::RootCertStore::empty();
            roots.add(issued.cert.der().clone()).unwrap();
            let trust = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(endpoint.serve(listener, Arc::new(tls)));
            let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
            let stream =
                tokio_rustls::TlsConnector::from(Arc::new(trust)).connect("node".try_into().unwrap(), tcp).await;
            Ok(Box::new(stream.unwrap()) as Box<dyn Stream>)
        })
    }
}

/// Refuses to write the status of these pods, as a full disk does.
#[derive(Clone, Default)]
pub struct Deaf(pub Arc<Mutex<BTreeSet<String>>>);

impl Plugin for Deaf {
    fn name(&self) -> &'static str {
        "Deaf"
    }

    fn validate<'a>(
        &'a self,
        at: &'a AdmissionAttributes<'a>,
        _: Option<&'a Value>,
    ) -> server::identity::BoxFuture<'a, Result<(), api::status::Status>> {
        let refused = at.subresource == "status" && self.0.lock().unwrap().contains(at.name);
        Box::pin(async move { if refused { Err(api::status::Status::internal("no space left")) } else { Ok(()) } })
    }
}

/// busybox with its applets, run by nobody in particular.
pub fn busybox() -> BuiltImage {
    let program = fs::read("/bin/busybox").expect("the package busybox-static is installed");
    let mut layer = Layer::new().dir("bin", 0o755).dir("etc", 0o755).dir("tmp", 0o1777);
    layer = layer.file("bin/busybox", 0o755, &program);
    for applet in
        ["sh", "cat", "echo", "sleep", "id", "env", "hostname", "ls", "true", "false", "date", "test", "stat", "kill"]
    {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    let layer = layer.file("etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n").file(
        "etc/group",
        0o644,
        b"root:x:0:\nuser:x:1000:\n",
    );
    let config = json!({
        "architecture": testkit::images::architecture(), "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
    });
    BuiltImage::new(config, &[layer.finish()], Compression::Gzip)
}

/// A node in this process.
struct Running {
    cancel: CancellationToken,
    task: JoinHandle<()>,
    threads: tokio::runtime::Runtime,
}

impl Bed {
    pub async fn new() -> Self {
        Self::with(Registries::default()).await
    }

    /// A cluster whose images come from where `registries` says.
    pub async fn with(registries: Registries) -> Self {
        let name = unique();
        let dir = PathBuf::from("/run").join(&name);
        fs::create_dir_all(&dir).unwrap();
        let random = ring::rand::SystemRandom::new();
        let store: Arc<dyn store::Store> = Memory::new();
        let mut config = ServerConfig::new(
            store.clone(),
            kinds::registry(),
            Arc::new(Everybody(User::loopback("tester"))),
            Arc::new(NodeRules(store)),
            Arc::new(Timestamp::now),
            Arc::new(move |out| ring::rand::SecureRandom::fill(&random, out).expect("the kernel gives randomness")),
        );
        let deaf = Deaf::default();
        config.tokens = Arc::new(Numbered::default());
        config.admission = Chain(vec![Box::new(NodeRestriction), Box::new(deaf.clone())]);
        let dialer = Dialer::default();
        config.node_dialer = Arc::new(dialer.clone());
        let server = Server::new(config);
        let client = server.local(User::loopback("tester"));
        let namespaces = Resource::new("", "v1", "namespaces");
        for name in ["default", "kube-node-lease"] {
            client.create_object(&namespaces, "", json!({"metadata": {"name": name}})).await.unwrap();
        }
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_node-child"));
        let runtime_config = runtime::Config {
            run_dir: dir.join("run"),
            cgroup_root: PathBuf::from(&name),
            binary: binary.clone(),
            after_step: None,
        };
        let unpacker = Unpacker { program: binary, args: vec!["unpack".into()] };
        let images = dir.join("images");
        let images = tokio::task::spawn_blocking(move || ImageStore::open(&images, registries, unpacker));
        let images = images.await.unwrap().unwrap();
        let image = busybox();
        let names = [("docker.io/library/busybox:1", &image), ("docker.io/library/busybox:2", &image)];
        images.import(&oci_archive(&names)[..]).await.unwrap();
        let (runtime, events) = Runtime::new(runtime_config.clone()).unwrap();
        let mut bed = Self {
            server,
            client,
            dir,
            runtime,
            registry: Registry::default(),
            deaf,
            dialer,
            images,
            runtime_config,
            running: None,
            finished: false,
        };
        bed.start_node(events);
        bed
    }

    pub fn roots(&self) -> Roots {
        Roots {
            kubelet: self.dir.join("kubelet"),
            pod_logs: self.dir.join("logs/pods"),
            container_logs: self.dir.join("logs/containers"),
            seccomp: self.dir.join("seccomp"),
            fstab: self.dir.join("fstab"),
            units: self.dir.join("units"),
            ..Roots::default()
        }
    }

    fn start_node(&mut self, runtime_events: tokio::sync::mpsc::Receiver<runtime::plan::Event>) {
        let cancel = CancellationToken::new();
        let config = Config {
            node_name: "rack".to_owned(),
            node_ips: vec!["192.0.2.7".parse().unwrap()],
            roots: self.roots(),
            pod_cidrs: vec!["10.244.0.0/24".to_owned()],
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".to_owned(),
            client: self.server.local(User::new("system:node:rack", &["system:nodes", "system:authenticated"])),
            runtime: self.runtime.clone(),
            runtime_events,
            images: self.images.clone(),
            network: Arc::new(Lonely),
            clock: client::system_clock(),
            version: "v1.37.2+coracle.0".to_owned(),
            port: 10250,
            max_pods: 110,
            registry: self.registry.clone(),
        };
        let allow_all: Authorizer = Arc::new(|_, _| Box::pin(async { Ok(()) }));
        let (runtime, stop) = (self.runtime.clone(), cancel.clone());
        let endpoint = Endpoint::new(self.registry.clone(), runtime, self.roots(), allow_all, stop);
        *self.dialer.0.lock().unwrap() = Some(endpoint);
        let stop = cancel.clone();
        // With threads of its own, so that its end can wait for what it left to them: a process that is killed takes them along.
        let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let task = threads.spawn(async move { node::run::run(config, stop).await.unwrap() });
        self.running = Some(Running { cancel, task, threads });
    }

    /// As after a `kill -9` of main: the pods run on, and a new node adopts them.
    pub async fn restart_node(&mut self) {
        self.stop_node().await;
        let (runtime, events) = Runtime::new(self.runtime_config.clone()).unwrap();
        self.runtime = runtime;
        self.registry = Registry::default();
        self.start_node(events);
    }

    pub async fn stop_node(&mut self) {
        if let Some(Running { cancel, task, threads }) = self.running.take() {
            cancel.cancel();
            task.await.unwrap();
            tokio::task::spawn_blocking(move || drop(threads)).await.unwrap();
        }
    }

    /// The pods as somebody sees them who is not the node.
    pub async fn adopted(&self) -> Runtime {
        let (runtime, _events) = Runtime::new(self.runtime_config.clone()).unwrap();
        runtime.adopt().await.unwrap();
        runtime
    }

    /// How many processes the pod's containers have.
    pub fn processes_of(&self, uid: &str) -> usize {
        fn count(dir: &std::path::Path, uid: &str, inside: bool) -> usize {
            let inside = inside || dir.to_string_lossy().ends_with(&format!("pod{uid}"));
            let own = if inside {
                fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines().count()
            } else {
                0
            };
            let below = fs::read_dir(dir).into_iter().flatten().flatten();
            let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            own + below.map(|entry| count(&entry.path(), uid, inside)).sum::<usize>()
        }
        let roots = ["pids", "memory", ""].map(|hierarchy| PathBuf::from("/sys/fs/cgroup").join(hierarchy));
        let root = roots.into_iter().find(|root| root.join(&self.runtime_config.cgroup_root).exists()).unwrap();
        count(&root.join(&self.runtime_config.cgroup_root), uid, false)
    }

    /// The shim of a pod: the parent of its containers' first processes.
    pub fn shim_of(&self, uid: &str) -> rustix::process::Pid {
        let name = self.runtime_config.run_dir.to_string_lossy().into_owned();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            if command.contains("shim") && command.contains(uid) && command.contains(&name) {
                return rustix::process::Pid::from_raw(pid).unwrap();
            }
        }
        panic!("no shim of pod {uid}");
    }

    /// Creates an object of a core resource.
    pub async fn create(&self, resource: &'static str, object: Value) {
        self.client.create_object(&Resource::new("", "v1", resource), "default", object).await.unwrap();
    }

    /// Creates a pod bound to the node. `spec` may leave out the image.
    pub async fn pod(&self, name: &str, mut spec: Value) {
        spec["nodeName"] = json!("rack");
        for list in ["containers", "initContainers"] {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                if container.get("image").is_none() {
                    container["image"] = json!("docker.io/library/busybox:1");
                }
            }
            if spec[list].is_null() {
                spec.as_object_mut().unwrap().remove(list);
            }
        }
        self.create("pods", json!({"metadata": {"name": name}, "spec": spec})).await;
    }

    /// A pod with one container that runs a script.
    pub async fn script(&self, name: &str, script: &str) {
        let container = json!({"name": "main", "command": ["sh", "-c", script]});
        self.pod(
            name,
            json!({"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 1}),
        )
        .await;
    }

    pub async fn status(&self, name: &str) -> PodStatus {
        self.client.get::<Pod>("default", name).await.unwrap().status.unwrap_or_default()
    }

    /// Waits until the pod's status satisfies a condition, and returns it.
    pub async fn until(&self, name: &str, what: &str, mut holds: impl FnMut(&PodStatus) -> bool) -> PodStatus {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let status = self.status(name).await;
            if holds(&status) {
                return status;
            }
            if tokio::time::Instant::now() > deadline {
                let events = self.events().await;
                panic!(
                    "waited in vain for {what}: {}\nevents: {events:#?}",
                    serde_json::to_string_pretty(&status).unwrap()
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn until_phase(&self, name: &str, phase: &str) -> PodStatus {
        self.until(name, phase, |status| status.phase.as_deref() == Some(phase)).await
    }

    /// Waits until one of the pod's containers is in this state, as [`states`] tells it. Events may come before the status.
    pub async fn until_state(&self, name: &str, container: &str, state: &str) -> PodStatus {
        let is = |status: &PodStatus| states(status).get(container).is_some_and(|found| found == state);
        self.until(name, state, is).await
    }

    pub async fn until_ready(&self, name: &str) -> PodStatus {
        self.until(name, "readiness", is_ready).await
    }

    /// The events so far, as `Type Reason: message`.
    pub async fn events(&self) -> Vec<String> {
        let all: Vec<Event> = self.client.list("default", "").await.unwrap();
        let text = |event: &Event| {
            let part = |text: &Option<String>| text.clone().unwrap_or_default();
            format!("{} {}: {}", part(&event.type_), part(&event.reason), part(&event.message))
        };
        all.iter().map(text).collect()
    }

    pub async fn until_event(&self, text: &str) {
        wait_for(text, async || self.events().await.iter().any(|event| event.contains(text))).await;
    }

    /// What a container printed, once the log contains `needle`.
    pub async fn until_log(&self, pod: &str, container: &str, needle: &str) -> String {
        let uid = self.client.get::<Pod>("default", pod).await.unwrap().metadata.uid.unwrap();
        let log = self.dir.join("logs/pods").join(format!("default_{pod}_{uid}")).join(container).join("0.log");
        let read = || {
            let mut text = Vec::new();
            if let Ok(mut reader) = node::logs::Reader::open(&log, &node::logs::Options::default()) {
                while let Some(more) = reader.read().ok().filter(|more| !more.is_empty()) {
                    text.extend(more);
                }
            }
            String::from_utf8(text).unwrap()
        };
        wait_for(needle, async || read().contains(needle)).await;
        read()
    }

    pub async fn delete(&self, name: &str, grace: i64) {
        let options = DeleteOptions { grace_period_seconds: Some(grace), ..DeleteOptions::default() };
        self.client.delete_object(&PODS, "default", name, options).await.unwrap();
    }

    pub async fn until_gone(&self, name: &str) {
        wait_for("the pod's end", async || {
            self.client.get_object(&PODS, "default", name).await.is_err_and(|error| error.is_not_found())
        })
        .await;
    }

    pub async fn patch(&self, resource: &'static str, name: &str, patch: Value) {
        let resource = Resource::new("", "v1", resource);
        self.client.patch_object(&resource, "default", name, None, PatchType::Merge, patch).await.unwrap();
    }

    /// As [`Bed::patch`], for an object without a namespace.
    pub async fn patch_cluster(&self, resource: &'static str, name: &str, patch: Value) {
        let resource = Resource::new("", "v1", resource);
        self.client.patch_object(&resource, "", name, None, PatchType::Merge, patch).await.unwrap();
    }

    /// Serves the API and runs kubectl against it: its exit code and what it printed.
    pub async fn kubectl(&self, arguments: &[&str], stdin: &str) -> (i32, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(self.server.clone().serve(listener, None, stop.clone()));
        let mut child = tokio::process::Command::new(testkit::kubectl::RELEASES[0].program().expect("kubectl"))
            .arg(format!("--server=http://{address}"))
            .args(arguments)
            .env("HOME", &self.dir)
            .env_remove("KUBECONFIG")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("kubectl is installed");
        let mut pipe = child.stdin.take().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut pipe, stdin.as_bytes()).await.unwrap();
        drop(pipe);
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("kubectl hangs").unwrap();
        stop.cancel();
        serving.await.unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap_or(-1), text)
    }

    /// Deletes every pod and checks that nothing stays behind.
    pub async fn finish(mut self) {
        let pods: Vec<Pod> = self.client.list("default", "").await.unwrap();
        for pod in &pods {
            self.delete(pod.metadata.name.as_deref().unwrap(), 1).await;
        }
        for pod in &pods {
            self.until_gone(pod.metadata.name.as_deref().unwrap()).await;
        }
        let empty = |dir: &str| fs::read_dir(self.dir.join(dir)).map_or(0, Iterator::count) == 0;
        wait_for("the pods' directories to go", async || {
            ["kubelet/pods", "logs/pods", "logs/containers", "run"].iter().all(|dir| empty(dir))
        })
        .await;
        self.stop_node().await;
        self.clear();
    }

    fn clear(&mut self) {
        self.finished = true;
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        for root in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
            remove_cgroups(&root.join(&self.runtime_config.cgroup_root));
        }
        node::volumes::mounts::remove_tree(&self.dir).unwrap();
    }
}

fn remove_cgroups(dir: &std::path::Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    fs::remove_dir(dir).ok();
}

impl Drop for Bed {
    /// A test that failed leaves nothing behind either.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if let Some(Running { cancel, threads, .. }) = self.running.take() {
            cancel.cancel();
            threads.shutdown_background();
        }
        let config = self.runtime_config.clone();
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

pub fn is_ready(status: &PodStatus) -> bool {
    condition(status, "Ready").is_some_and(|(is, _)| is == "True")
}

/// A condition's status and message.
pub fn condition(status: &PodStatus, name: &str) -> Option<(String, String)> {
    let found = status.conditions.iter().flatten().find(|condition| condition.type_ == name)?;
    Some((found.status.clone(), found.message.clone().unwrap_or_default()))
}

/// The containers' states by name: `running`, a waiting reason, or an exit code.
pub fn states(status: &PodStatus) -> BTreeMap<String, String> {
    let all = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    all.map(|container| {
        let state = container.state.clone().unwrap_or_default();
        let text = match (state.waiting, state.terminated) {
            (Some(waiting), _) => waiting.reason.unwrap_or_default(),
            (_, Some(end)) => format!("{} {}", end.reason.unwrap_or_default(), end.exit_code),
            _ => "running".to_owned(),
        };
        (container.name.clone(), text)
    })
    .collect()
}

pub async fn wait_for<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
