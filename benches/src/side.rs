//! The two sides: coracle, and upstream's own programs. Each begins from an empty directory, on a machine of its own in namespaces.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use testkit::debian::Debian;
use testkit::host::{Lab, checked, claim, eventually, labs_dir, remove_leftovers};
use testkit::netns::within;
use testkit::registry::Registry;
use testkit::stand_ins;
use testkit::upstream::control_plane::ControlPlane;
use testkit::upstream::node::{Node, PAUSE, Throttles};
use testkit::web::Api;

use crate::Env;
use crate::account::Account;
use crate::figures::Which;
use crate::fixtures::NAMESPACE;
use crate::load::{Ask, Client};

/// Longer than any start takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Where the registry with the images of a side listens.
const REGISTRY: &str = "127.0.0.1:5000";
/// The machine of the bench that has no cluster.
pub const OCI_LAB: &str = "bench3";
/// A user who is no administrator: each request is judged by a role.
const USER: &str = "bench";

/// How much of the peer runs. coracle is always whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// etcd and kube-apiserver.
    Api,
    /// Everything that makes one node.
    Whole(Throttles),
}

/// The machine of a side.
fn lab(which: Which) -> &'static str {
    match which {
        Which::Coracle => "bench1",
        Which::Peer => "bench2",
    }
}

/// A running side. Dropping it takes everything down.
pub struct Cluster {
    pub account: Account,
    pub api: Api,
    /// From the first process to the node's condition Ready; without a node to the API's.
    pub ready: Duration,
    programs: Programs,
    _registry: Registry,
    lab: Lab,
}

/// Dropped before the lab.
enum Programs {
    Coracle { binary: PathBuf, server: Child },
    Peer { node: Option<Node>, control_plane: Box<ControlPlane> },
}

impl Drop for Programs {
    fn drop(&mut self) {
        if let Self::Coracle { server, .. } = self {
            // One that has ended needs no killing; the lab ends what it has started.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

impl Cluster {
    /// Starts a side and waits until its node is Ready, or its API when it has no node.
    ///
    /// # Errors
    /// When a program ends or is not ready in time; the end of its log is in the message.
    pub fn start(env: &Env, which: Which, parts: Parts) -> Result<Self> {
        let mut lab = Lab::new(lab(which))?;
        lab.add_host("rack")?;
        let account = Account::open(&lab.host(0).cgroup_root)?;
        let registry = registry(&lab)?;
        let started = match which {
            Which::Coracle => start_coracle(env, &lab, &account, &registry),
            Which::Peer => start_peer(&lab, &account, &registry, parts),
        };
        let (programs, api, ready) = started.with_context(|| format!("{which:?} does not start"))?;
        Ok(Self { account, api, ready, programs, _registry: registry, lab })
    }

    /// Makes the namespace of the bench and waits until pods may be created in it.
    ///
    /// # Errors
    /// When it is refused.
    pub fn prepare_namespace(&self) -> Result<()> {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        self.api.post("/api/v1/namespaces", &namespace)?;
        let accounts = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts");
        if matches!(self.programs, Programs::Peer { node: None, .. }) {
            // Nobody else makes it where no controllers run.
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
            self.api.post(&accounts, &account)?;
        }
        let default = format!("{accounts}/default");
        eventually(PATIENCE, "the default service account", || Ok(self.api.get(&default).ok()))?;
        Ok(())
    }

    /// A client for the load: a user with a certificate, to whom a role of the cluster's gives what the benches do.
    ///
    /// # Errors
    /// When the role is refused.
    pub fn client(&self) -> Result<Client> {
        let client = self.stranger()?;
        let names = json!({"name": USER});
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": names,
            "rules": [{"apiGroups": [""], "resources": ["configmaps", "pods"], "verbs": ["create", "get", "list", "watch"]}],
        });
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": names,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": USER},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER}],
        });
        self.api.post("/apis/rbac.authorization.k8s.io/v1/clusterroles", &role)?;
        self.api.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding)?;
        eventually(PATIENCE, "the role to be heeded", || {
            Ok((client.ask(Ask::get("/api/v1/configmaps"))?.0 == 200).then_some(()))
        })?;
        Ok(client)
    }

    /// The same user before anything was given to them.
    ///
    /// # Errors
    /// When no certificate can be had.
    pub fn stranger(&self) -> Result<Client> {
        Client::new(self.switch(), &self.user_kubeconfig()?, false)
    }

    /// Somebody without a certificate.
    ///
    /// # Errors
    /// When no kubeconfig can be had.
    pub fn anonymous(&self) -> Result<Client> {
        Client::new(self.switch(), &self.user_kubeconfig()?, true)
    }

    fn user_kubeconfig(&self) -> Result<String> {
        match &self.programs {
            Programs::Coracle { binary, .. } => {
                checked(self.lab.host(0).command(binary).args(["kubeconfig", "--user", USER]))
            }
            Programs::Peer { control_plane, .. } => {
                let path = control_plane.kubeconfig(USER, None)?;
                fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))
            }
        }
    }

    fn switch(&self) -> PathBuf {
        Path::new("/run/netns").join(self.lab.switch())
    }

    /// Kills what serves the API, and starts it again on the same data: returns time and CPU until it is ready.
    ///
    /// # Errors
    /// When it does not become ready; the end of its log is in the message.
    pub fn restart(&mut self) -> Result<(Duration, Duration)> {
        let host = self.lab.host(0);
        match &mut self.programs {
            Programs::Coracle { server, .. } => {
                server.kill()?;
                server.wait()?;
            }
            Programs::Peer { control_plane, .. } => control_plane.kill(),
        }
        let (began, before) = (Instant::now(), self.account.cpu()?);
        match &mut self.programs {
            Programs::Coracle { binary, server } => {
                *server = spawn_coracle(binary, &self.lab, &self.account)?;
                eventually(PATIENCE, "coracle's API", || {
                    coracle_must_run(server, &log(&self.lab))?;
                    Ok(self.api.get("/readyz").is_ok().then_some(()))
                })?;
            }
            Programs::Peer { control_plane, .. } => {
                control_plane.launch(host)?;
                control_plane.pids().into_iter().try_for_each(|(_, pid)| self.account.adopt(pid))?;
                control_plane.wait_until_ready()?;
            }
        }
        Ok((began.elapsed(), self.account.cpu()? - before))
    }

    /// # Errors
    /// When a program has ended; the end of its log is in the message.
    pub fn must_run(&mut self) -> Result<()> {
        match &mut self.programs {
            Programs::Coracle { server, .. } => coracle_must_run(server, &log(&self.lab)),
            Programs::Peer { node, control_plane } => {
                control_plane.must_run()?;
                node.as_mut().map_or(Ok(()), Node::must_run)
            }
        }
    }
}

/// Begins a run, which lasts as long as what is returned, and removes what a killed one has left behind.
///
/// # Errors
/// When another run goes on: its machines are left alone, and its figures undisturbed.
pub fn begin() -> Result<UnixListener> {
    let run = claim("bench")?;
    clean()?;
    Ok(run)
}

/// Removes the machines of this run.
///
/// # Errors
/// When something is still in use.
pub fn clean() -> Result<()> {
    let labs = Which::BOTH.map(lab);
    labs.into_iter().chain([OCI_LAB]).try_for_each(|lab| remove_leftovers(&labs_dir().join(lab)))
}

fn registry(lab: &Lab) -> Result<Registry> {
    let listener = within(&lab.host_netns(0), || Ok(TcpListener::bind(REGISTRY)?))?;
    let registry = Registry::serve(listener)?;
    registry.add("library/busybox", "1.37.0-glibc", &stand_ins::busybox(&Debian::new())?);
    let (repository, tag) =
        PAUSE.split_once('/').and_then(|(_, name)| name.split_once(':')).context("an image name")?;
    registry.add(repository, tag, &stand_ins::pause()?);
    Ok(registry)
}

fn log(lab: &Lab) -> PathBuf {
    lab.host(0).dir.join("server.log")
}

fn coracle_must_run(server: &mut Child, log: &Path) -> Result<()> {
    if let Some(status) = server.try_wait()? {
        bail!("coracle ended ({status}):\n{}", fs::read_to_string(log).unwrap_or_default());
    }
    Ok(())
}

fn spawn_coracle(binary: &Path, lab: &Lab, account: &Account) -> Result<Child> {
    let host = lab.host(0);
    let mut command = host.command(binary);
    command.args(["server", "--cgroup-root", &host.cgroup_root]);
    let output = fs::File::create(log(lab))?;
    let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output).spawn()?;
    account.adopt(server.id())?;
    Ok(server)
}

type Started = (Programs, Api, Duration);

fn start_coracle(env: &Env, lab: &Lab, account: &Account, registry: &Registry) -> Result<Started> {
    let host = lab.host(0);
    fs::write(host.dir.join("etc/coracle/registries.yaml"), registry.registries_yaml(&["docker.io"]))?;
    let began = Instant::now();
    let server = spawn_coracle(&env.coracle, lab, account)?;
    let mut programs = Programs::Coracle { binary: env.coracle.clone(), server };
    let kubeconfig = host.dir.join("etc/coracle/kubeconfig");
    let api = eventually(PATIENCE, "coracle's API", || {
        if let Programs::Coracle { server, .. } = &mut programs {
            coracle_must_run(server, &log(lab))?;
        }
        let Ok(text) = fs::read_to_string(&kubeconfig) else { return Ok(None) };
        let api = Api::new(Path::new("/run/netns").join(lab.switch()), &text)?;
        Ok(api.get("/readyz").is_ok().then_some(api))
    })?;
    wait_for_node(&api).with_context(|| fs::read_to_string(log(lab)).unwrap_or_default())?;
    Ok((programs, api, began.elapsed()))
}

fn start_peer(lab: &Lab, account: &Account, registry: &Registry, parts: Parts) -> Result<Started> {
    let began = Instant::now();
    let node = match parts {
        Parts::Api => None,
        Parts::Whole(throttles) => Some(Node::container_runtime(lab, 0, registry, throttles)?),
    };
    let control_plane = Box::new(ControlPlane::start(lab, 0, &[])?);
    let mut programs = Programs::Peer { node, control_plane };
    let Programs::Peer { node, control_plane } = &mut programs else { bail!("the peer was made above") };
    if let Some(node) = node {
        node.join(lab, 0, control_plane)?;
    }
    let pids = control_plane.pids().into_iter().chain(node.iter().flat_map(Node::pids));
    pids.into_iter().try_for_each(|(_, pid)| account.adopt(pid))?;
    let kubeconfig = fs::read_to_string(control_plane.admin_kubeconfig())?;
    let api = Api::new(Path::new("/run/netns").join(lab.switch()), &kubeconfig)?;
    if let Some(node) = node {
        wait_for_node(&api).with_context(|| node.logs())?;
    }
    Ok((programs, api, began.elapsed()))
}

fn wait_for_node(api: &Api) -> Result<()> {
    api.watch_until("/api/v1/nodes", |node| {
        let conditions = node["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
    })
}
