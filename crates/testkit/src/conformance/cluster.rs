//! The cluster under test: one machine in namespaces with the images on its loopback.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::images::{MIRRORED, offer};
use super::tools::{Tools, root};
use crate::debian::Debian;
use crate::host::{Lab, eventually};
use crate::images::digest;
use crate::netns::within;
use crate::registry::Registry;
use crate::web::Api;

const PATIENCE: Duration = Duration::from_secs(60);
/// Tests of the garbage collector make as many pods as half of the node takes.
const MAX_PODS: &str = "60";

/// What lies in memory, and how much of it may: a disk that is nearly full would have every pod of the suite evicted.
const IN_MEMORY: &[&str] = &["/var/lib/coracle", "/var/lib/kubelet"];
const MEMORY: &str = "size=6g,mode=755";

/// A lab's name is the machine's, so that each checkout has one of its own.
fn lab_name() -> String {
    let of_checkout = digest(root().as_os_str().as_encoded_bytes());
    format!("cf{}", of_checkout.chars().skip("sha256:".len()).take(6).collect::<String>())
}

/// A running cluster; dropping it takes everything down.
pub struct Cluster {
    server: Child,
    log: PathBuf,
    pub api: Api,
    _registry: Registry,
    lab: Lab,
}

impl Cluster {
    /// Starts `binary` and waits until the node is Ready. Its log goes to `log`.
    ///
    /// # Errors
    /// When an image cannot be made, or the server ends or is not ready in time.
    pub fn start(binary: &Path, tools: &Tools, log: &Path) -> Result<Self> {
        let mut lab = Lab::new(&lab_name())?;
        lab.add_host("node-1")?;
        let host = lab.host(0);
        for directory in IN_MEMORY {
            host.run(&["mount", "-t", "tmpfs", "-o", MEMORY, "tmpfs", directory])?;
        }
        let listener = within(&lab.host_netns(0), || Ok(TcpListener::bind("127.0.0.1:5000")?))?;
        let registry = Registry::serve(listener)?;
        offer(&registry, tools, &Debian::new()).context("could not make the images of the suite")?;
        fs::write(host.dir.join("etc/coracle/registries.yaml"), registry.registries_yaml(MIRRORED))?;
        // What the mirror does not have is asked of the registry itself, which no test may wait for.
        host.run(&["sh", "-c", "echo nameserver 127.0.0.1 > /etc/resolv.conf"])?;
        let mut command = host.command(binary);
        command.args(["server", "--cgroup-root", &host.cgroup_root, "--max-pods", MAX_PODS]);
        let output = File::create(log).with_context(|| format!("could not create {}", log.display()))?;
        let mut server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output).spawn()?;
        let kubeconfig = host.dir.join("etc/coracle/kubeconfig");
        let switch = Path::new("/run/netns").join(lab.switch());
        let begun = eventually(PATIENCE, "the API", || {
            if let Some(status) = server.try_wait()? {
                bail!("the server ended ({status}):\n{}", fs::read_to_string(log).unwrap_or_default());
            }
            let Ok(text) = fs::read_to_string(&kubeconfig) else { return Ok(None) };
            let api = Api::new(&switch, &text)?;
            Ok(api.get("/readyz").is_ok().then_some(api))
        });
        let begun = begun.and_then(|api| {
            api.watch_until("/api/v1/nodes", |node| {
                let conditions = node["status"]["conditions"].as_array();
                conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
            })?;
            Ok(api)
        });
        match begun {
            Ok(api) => Ok(Self { server, log: log.to_owned(), api, _registry: registry, lab }),
            Err(error) => {
                // The lab removes what is left; a server that is gone already needs no killing.
                let _ = server.kill();
                let _ = server.wait();
                Err(error)
            }
        }
    }

    /// A command that runs where a person on the home network would.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.lab.switch())).arg("--").arg(program);
        command
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.lab.host(0).dir.join("etc/coracle/kubeconfig")
    }

    /// Seen through the server, in whose mount namespace it lies.
    pub fn audit_log(&self) -> PathBuf {
        Path::new("/proc").join(self.server.id().to_string()).join("root/var/lib/coracle/audit.log")
    }

    /// What to say when the server has ended.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.server.try_wait().ok().flatten()?;
        Some(format!("the server ended ({status}); its log is {}", self.log.display()))
    }

    /// Ends the server, and with it every watch.
    pub fn stop(&mut self) {
        // It may have ended by itself.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}
